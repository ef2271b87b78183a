"""What an HDF5 file says about the detector of its frames: masks, limits, frame kinds, photon counting."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tuner.read.links import as_text, nx_class, peek, walk
from tuner.stack import Kind

_COUNTERS = re.compile(
    r"pilatus|eiger|mythen|medipix|maxipix|merlin|lambda|xspress|photon[ _-]?count|\bhpc\b|hybrid photon", re.IGNORECASE
)
_INTEGRATORS = re.compile(r"\bs?cmos\b|\b(em)?ccd\b|jungfrau|\bagipd\b|\bepix|charge[ _-]?integrat", re.IGNORECASE)
#: Bits of a mask of CXI (Maia 2012) that say that a pixel is not to be trusted: invalid, saturated, hot, dead,
#: shadowed, to be ignored, bad, missing, noisy, failed correction. Others tell of peaks, resolution and corrections.
_CXI_BAD = 0x16DF


@dataclass(frozen=True, slots=True)
class Detector:
    """What a file says about the detector of a stack."""

    mask: NDArray[np.bool_] | None
    """True where a pixel is invalid in all frames, of the frame's shape."""
    saturation: float | None
    """The least value that it could not count."""
    underload: float | None
    """The least valid value."""
    photon_counting: bool | None
    """Whether it counts photons."""
    switches_gain: bool
    """Whether it is a JUNGFRAU."""
    kinds: NDArray[np.uint8] | None
    """A `Kind` for each frame."""


def detector(file: h5py.File, path: str, frames: int, frame_shape: tuple[int, ...]) -> Detector:
    """What the groups that describe a dataset's detector say, the nearest first."""
    groups = detector_groups(file, path)
    mask = kinds = None
    for group in groups:
        # Dectris: any bit that is set says why not to trust a pixel.
        if mask is None and (flags := _flags(group, "pixel_mask", frame_shape)) is not None:
            mask = flags != 0
        if mask is None and "cxi_version" in file and (flags := _flags(group, "mask", frame_shape)) is not None:
            mask = flags & _CXI_BAD != 0
        keys = peek(group, "image_key")
        if kinds is None and isinstance(keys, h5py.Dataset) and keys.size == frames and keys.dtype.kind in "biuf":
            values = keys[()].ravel()
            kinds = np.where((values >= 0) & (values <= max(Kind)), values, Kind.INVALID).astype(np.uint8)
    # NeXus: the value at which the detector goes into saturation; Dectris: the last count that is trusted.
    saturation = _number(groups, "saturation_value")
    cutoff = _number(groups, "count_cutoff", "countrate_correction_count_cutoff")
    if saturation is None and cutoff is not None:
        saturation = cutoff + 1
    said = _description(groups)
    return Detector(
        mask=mask if mask is not None and mask.any() else None,
        saturation=saturation if saturation is not None and saturation > 0 else None,
        underload=_number(groups, "underload_value"),
        photon_counting=True if _COUNTERS.search(said) else False if _INTEGRATORS.search(said) else None,
        switches_gain="jungfrau" in said.lower(),
        kinds=kinds if kinds is not None and kinds.any() else None,
    )


def _flags(group: h5py.Group, name: str, frame_shape: tuple[int, ...]) -> NDArray[np.int64] | None:
    """What a dataset says of each pixel of all frames; one for each of several modules has a leading axis."""
    node = peek(group, name)
    if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "biu":
        return None
    lead = node.shape[: -len(frame_shape)]
    if node.shape[-len(frame_shape) :] != frame_shape or math.prod(lead) != 1:
        return None
    flags: NDArray[np.int64] = node[()].reshape(frame_shape).astype(np.int64)
    return flags


def declared_marks(dataset: h5py.Dataset, dtype: np.dtype[Any]) -> tuple[int, ...]:
    """Values that a dataset's own attributes call missing, where they are whole numbers that its dtype can hold.

    https://cfconventions.org/cf-conventions/cf-conventions.html#missing-data
    """
    if dtype.kind == "b":
        return ()
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    declared = [np.ravel(dataset.attrs.get(name, ())) for name in ("_FillValue", "missing_value")]
    values = [value for array in declared if array.dtype.kind in "iuf" for value in array.tolist()]
    return tuple(int(value) for value in values if limits.min <= value <= limits.max and value == int(value))


def detector_groups(file: h5py.File, path: str) -> list[h5py.Group]:
    """The dataset's own group, that of its NeXus @target, and the NXdetectors of its entry, if it is clear which."""
    dataset = file[path]
    own = [file[path.rpartition("/")[0] or "/"]]
    target = as_text(dataset.attrs.get("target"))
    if target and target != path and isinstance(peek(file, target), h5py.Dataset):
        own.append(file[target.rpartition("/")[0] or "/"])
    entry = peek(file, "/" + path.split("/")[1])
    entry = entry if isinstance(entry, h5py.Group) else file
    known = {h5py.h5o.get_info(group.id).addr for group in own}
    others = [
        node
        for _, node in walk(entry)
        if nx_class(node) == "NXdetector" and h5py.h5o.get_info(node.id).addr not in known
    ]
    if any(nx_class(group) == "NXdetector" for group in own):
        others = []  # it is known already: what else there is is another one
    elif len(others) > 1:
        # Several detectors: the one that holds this dataset too, or has the name of the dataset or its group.
        names = path.split("/")
        others = [group for group in others if _holds(group, dataset) or group.name.rpartition("/")[2] in names]
    groups = own + (others if len(others) == 1 else [])
    specific = [peek(group, "detectorSpecific") for group in groups]
    return groups + [group for group in specific if isinstance(group, h5py.Group)]


def _holds(group: h5py.Group, dataset: h5py.Dataset) -> bool:
    return any(isinstance(child, h5py.Dataset) and child == dataset for child in (peek(group, name) for name in group))


def _number(groups: list[h5py.Group], *names: str) -> float | None:
    """The first of the named scalars that is a finite number."""
    for group in groups:
        for name in names:
            node = peek(group, name)
            if isinstance(node, h5py.Dataset) and node.size == 1 and node.dtype.kind in "iuf":
                value = node[()].item() if node.shape == () else node[()].ravel()[0].item()
                if math.isfinite(value):
                    return float(value)
    return None


def _description(groups: list[h5py.Group]) -> str:
    """The detector's description, type and names."""
    texts = []
    for group in groups:
        for name in ("type", "description", "model", "local_name", "detector_type"):
            node = peek(group, name)
            if isinstance(node, h5py.Dataset) and node.shape in ((), (1,)) and node.dtype.kind in "SO":
                value = node[()]
                texts.append(as_text(value if node.shape == () else value[0]) or "")
    return " | ".join(texts)
