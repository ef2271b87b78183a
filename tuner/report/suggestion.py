"""Which shipped space and goal may fit a file: a guess at the technique, which says that it is one."""

from __future__ import annotations

from dataclasses import dataclass

import h5py
import numpy as np

from tuner.read.links import as_text, peek
from tuner.stack import Kind, Stack

#: Technique to the space and the goal that are shipped for it.
FITS = {
    "tomography": ("tomography", "tomography"),
    "crystallography": ("mx", "mx"),
    "scattering": ("scattering", "saxs"),
    "photon correlation": ("scattering", "xpcs"),
    "coherent diffraction": ("scattering", "coherent"),
    "fluorescence": ("spectroscopy", "xrf"),
    # Where only the values tell something.
    "photon counts": ("counting", "sub-noise"),
    "a camera": ("integrating", "sub-noise"),
    "computed values": ("float", "sub-noise"),
}

#: NeXus application definitions, https://manual.nexusformat.org/classes/applications/.
_DEFINITIONS = {
    "NXtomo": "tomography",
    "NXtomophase": "tomography",
    "NXmx": "crystallography",
    "NXlauetof": "crystallography",
    "NXsas": "scattering",
    "NXcanSAS": "scattering",
    "NXxpcs": "photon correlation",
    "NXcxi_ptycho": "coherent diffraction",
    "NXptycho": "coherent diffraction",
    "NXfluo": "fluorescence",
}

#: What frames that are numbered by such an axis are of.
_AXES = {"rotation_angle": "tomography", "theta": "tomography", "omega": "crystallography", "phi": "crystallography"}


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What may fit."""

    technique: str
    """A key of `FITS`."""
    because: str
    """What it was guessed from."""
    space: str
    """The shipped space."""
    goal: str
    """The shipped goal."""

    def __str__(self) -> str:
        return f"perhaps {self.technique}, by {self.because}: --space {self.space} --goal {self.goal} (lossy)"


def suggestion(stack: Stack, step: float, counts: bool | None = None) -> Suggestion:
    """What the file's definition, else its spectra, flats, axes or detector make likely, else its noise or dtype.

    Pictures are not looked at: a diffraction pattern and a speckle pattern of the same detector may look alike.

    Parameters
    ----------
    stack : Stack
    step : float
        Of which floats are multiples; 0 where they are of none.
    counts : bool, optional
        Whether the pixels tell counts: True by their noise, False by negative values.
    """
    technique, because = _technique(stack) or _values(stack, step, counts)
    return Suggestion(technique, because, *FITS[technique])


def _values(stack: Stack, step: float, counts: bool | None) -> tuple[str, str]:
    """What values are of, and from what that was guessed."""
    if stack.photon_counting is not None:
        return "photon counts" if stack.photon_counting else "a camera", "its detector"
    if counts:
        return "photon counts", "its noise"
    if counts is False and (stack.dtype.kind != "f" or step == 1):
        return "a camera", "its negative values"
    if stack.dtype.kind == "f":
        return ("photon counts", "whole numbers in floats") if step == 1 else ("computed values", f"its {stack.dtype}")
    # Dectris marks gaps with negative values or the maximum, and counts in 32 bits.
    return "photon counts" if stack.dtype.itemsize == 4 else "a camera", f"its {stack.dtype}"


def _technique(stack: Stack) -> tuple[str, str] | None:
    definition = _definition(stack)
    if definition in _DEFINITIONS:
        return _DEFINITIONS[definition], f"its definition {definition}"
    if stack.frame_ndim == 1:
        return "fluorescence", "its spectra"
    kinds = set() if stack.kinds is None else set(np.unique(stack.kinds).tolist())
    if stack.flats is not None or Kind.FLAT in kinds:
        return "tomography", "its flats"
    axis = next((name for name in stack.axes[: len(stack.lead_shape)] if name.lower() in _AXES), None)
    # A rotating sample in front of a photon counter is a crystal; a camera sees through it.
    if axis is not None and stack.photon_counting is not None:
        return "crystallography" if stack.photon_counting else "tomography", f"its axis {axis} and its detector"
    if axis is not None:
        return _AXES[axis.lower()], f"its axis {axis}"
    return None


def _definition(stack: Stack) -> str | None:
    """The application definition of the entry that the frames are in; None without one, or in other formats."""
    if stack.dataset is None:
        return None
    try:
        file = h5py.File(stack.name, "r", locking=False)
    except OSError:
        return None
    with file:
        node = peek(file, f"/{stack.dataset.split('/')[1]}/definition")
        if not isinstance(node, h5py.Dataset) or node.size != 1 or node.dtype.kind not in "SO":
            return None
        value = node[()] if node.shape == () else node[()].ravel()[0]
        return as_text(value)
