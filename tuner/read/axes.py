"""Which axes form a frame, and which arrays can be frames at all; one rule for every format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tuner.errors import InputError

# fmt: off
#: Names of axes that form an image.
IMAGE_AXES = frozenset([
    "y", "x", "v", "h", "i", "j", "row", "rows", "column", "columns", "col", "cols", "height", "width", "slow", "fast",
    "qx", "qy", "qz",
])

#: Names of axes that form a spectrum.
SPECTRUM_AXES = frozenset([
    "energy", "energies", "channel", "channels", "bin", "bins", "q", "tth", "two_theta", "twotheta", "2theta",
    "wavelength", "tof", "time_of_flight",
])
# fmt: on

#: The most axes a stack may have.
MAX_NDIM = 6


def check_array(shape: Sequence[int] | None, dtype: np.dtype[Any], place: str) -> np.dtype[Any]:
    """Return the native form of `dtype`, if an array of that shape and dtype can be a stack.

    Booleans, integers, and floats of 16, 32 and 64 bits, of 1 to 6 axes, none of them empty.

    Raises
    ------
    InputError
        Which begins with `place`.

    Examples
    --------
    >>> check_array((10, 4, 5), np.dtype(">u2"), "scan.h5").isnative
    True
    >>> check_array((0, 4, 5), np.dtype("u2"), "scan.h5")
    Traceback (most recent call last):
    tuner.errors.InputError: scan.h5: must have at least one frame and no empty axis, got shape (0, 4, 5)
    """
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        kind = {"c": "complex", "V": "compound", "O": "text or objects", "S": "text", "U": "text"}.get(dtype.kind, "")
        got = f"{kind} ({dtype})" if kind and kind != "compound" else kind or str(dtype)
        raise InputError(f"{place}: must hold booleans, integers or floats of at most 64 bits, got {got}")
    if shape is None or not 1 <= len(shape) <= MAX_NDIM:
        got = "none" if not shape else f"{len(shape)}: shape {tuple(shape)}"
        raise InputError(f"{place}: must have 1 to {MAX_NDIM} axes, got {got}")
    if 0 in shape:
        raise InputError(f"{place}: must have at least one frame and no empty axis, got shape {tuple(shape)}")
    # By kind and size: HDF5 enumerations carry metadata that a plain array must not.
    return np.dtype(f"{dtype.kind}{dtype.itemsize}")


def check_axes(axes: Sequence[str], shape: Sequence[int], place: str) -> tuple[str, ...]:
    """Return the names that a user gave to the axes, if there is one for each and those of the frame come last.

    >>> check_axes(["theta", "y", "x"], (181, 2, 640), "scan.h5")
    ('theta', 'y', 'x')
    """
    names = tuple(axes)
    if len(names) != len(shape):
        raise InputError(
            f"{place}: axes must name each of {len(shape)} axes, got {len(names)}: {' '.join(names)} for shape {shape}"
        )
    known = [name.lower() in IMAGE_AXES | SPECTRUM_AXES for name in names]
    if any(known) and not known[-1]:
        raise InputError(f"{place}: axes must end with those of a frame, such as theta y x, got {' '.join(names)}")
    return names


def frame_ndim(shape: Sequence[int], axes: Sequence[str] = (), interpretation: str | None = None) -> int:
    """How many of the last axes form a frame: 1 for a spectrum, 2 for an image.

    Names and NeXus's @interpretation decide; where there are none, the shape does: one axis is a spectrum, two are one
    image, more are images, unless there are four or more and the last is much longer than a short one before it, as in
    a fluorescence map (y, x, detector element, energy channel).

    Examples
    --------
    >>> frame_ndim((181, 2, 640)), frame_ndim((11, 11, 4, 2000)), frame_ndim((2048,))
    (2, 1, 1)
    >>> frame_ndim((4, 8, 1, 256, 256))  # 4D-STEM, with an axis for the counters of a Medipix
    2
    >>> frame_ndim((50, 1000), ["frame", "q"]), frame_ndim((50, 1000), interpretation="spectrum")
    (1, 1)
    """
    ndim = len(shape)
    names = [name.lower() for name in axes]
    if ndim == 1 or interpretation == "spectrum":
        return 1
    if interpretation == "image":
        return 2
    if names and names[-1] in SPECTRUM_AXES:
        return 1
    if names and names[-1] in IMAGE_AXES:
        return 1 if ndim == 2 and names[0] not in IMAGE_AXES else 2
    if ndim >= 4 and shape[-2] < 16 and shape[-1] >= 8 * shape[-2]:
        return 1
    return 2
