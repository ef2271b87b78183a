"""MIB, the frames of a Medipix3 detector as its Merlin readout writes them, mapped into memory.

Each frame has a text header, that begins with ``MQ1``, its number, bytes of the header, chips, columns, rows, pixel
type, with commas between; then rows of big-endian counts: Merlin EM user manual, Quantum Detectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.read.axes import check_array, check_axes
from tuner.read.npy import Mapped
from tuner.read.series import head_of
from tuner.stack import Stack, Storage, convention

_PIXELS = {"U08": "u1", "U16": ">u2", "U32": ">u4"}

#: Where the pixel type ends at the latest.
_HEAD_NBYTES = 64


def open_mib(path: Path, axes: Sequence[str] | None = None) -> Stack:
    """Open a ``.mib`` file as a stack of shape (frames, rows, columns).

    Raises
    ------
    InputError
        No such file, not of that format, cut, or of raw pixels as the chips send them.
    """
    path = Path(path)
    words = head_of(path, _HEAD_NBYTES).decode("latin-1").split(",")
    numbers = [int(word) for word in words[1:6] if word.isdecimal()]
    if len(words) < 8 or words[0] != "MQ1" or len(numbers) < 5 or min(numbers[1:]) < 1:
        raise InputError(f"{path}: must be of the format MIB, got a header that is cut or of something else")
    if words[6] not in _PIXELS:
        raise InputError(f"{path}: pixels must be of {', '.join(_PIXELS)}, got {words[6]!r}")
    stored = np.dtype(_PIXELS[words[6]])
    _, header, _, columns, rows = numbers
    frame = np.dtype([("header", f"V{header}"), ("pixels", stored, (rows, columns))])
    size = path.stat().st_size
    if size % frame.itemsize:
        raise InputError(f"{path}: is cut: must have a multiple of {frame.itemsize} bytes, got {size}")
    shape = (size // frame.itemsize, rows, columns)
    dtype = check_array(shape, stored, str(path))
    mapped = partial(_mapped, path, frame, shape[0])
    if bytes(np.memmap(path, frame, "r", 0, (shape[0],))["header"][-1])[:4] != b"MQ1,":
        raise InputError(f"{path}: is damaged: the last frame must begin with a header as the first")
    return Stack(
        name=str(path),
        shape=shape,
        frame_ndim=2,
        dtype=dtype,
        source=Mapped(mapped, dtype, 2),
        axes=check_axes(axes, shape, str(path)) if axes else (),
        invalid=convention(dtype),
        storage=Storage(size),
    )


def _mapped(path: Path, frame: np.dtype[Any], count: int) -> NDArray[Any]:
    pixels: NDArray[Any] = np.memmap(path, frame, "r", 0, (count,))["pixels"]
    return pixels
