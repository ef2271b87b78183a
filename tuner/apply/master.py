"""Masters: files that join the finished data files of a scan, by a virtual dataset or by Dectris' external links."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tuner.apply.fields import add_groups
from tuner.apply.nexus import check_own_group, data_group, tell_apart
from tuner.apply.scan_file import Layout, Notes
from tuner.errors import InputError
from tuner.read.links import groups, peek
from tuner.read.nexus import SERIES

#: The group that a Dectris master has its links in, and where a data file has its frames.
EIGER_DATA = "entry/data"
EIGER_DATASET = f"{EIGER_DATA}/data"

_DETECTOR = "entry/instrument/detector"
_SPECIFIC = f"{_DETECTOR}/detectorSpecific"


def part_name(master: Path, number: int, label: str = "") -> str:
    """The name of the data file of a number, counted from 1, beside its master: as Dectris has it.

    >>> part_name(Path("scan.h5"), 1), part_name(Path("/data/scan_master.h5"), 12, "pilatus")
    ('scan_data_000001.h5', 'scan_pilatus_data_000012.h5')
    """
    return f"{_stem(master, label)}_data_{number:06d}.h5"


def label_of(dataset: str, first: str) -> str:
    """What tells the data files of a dataset from those of the `first` of the same master: its group.

    >>> label_of("entry/data/data", "entry/data/data"), label_of("entry/pilatus/data", "entry/data/data")
    ('', 'pilatus')
    >>> label_of("other/pilatus/data", "entry/data/data"), label_of("entry/pilatus", "entry/data/data")
    ('other_pilatus', 'pilatus')
    """
    if dataset == first:
        return ""
    *groups, name = dataset.split("/")
    if groups and groups[0] == first.split("/")[0]:
        groups = groups[1:]
    return "_".join(groups) or name


def data_files(master: Path, label: str = "") -> Iterator[tuple[int, Path]]:
    """The data files that are there beside a master, with their numbers."""
    name = re.compile(re.escape(_stem(master, label)) + r"_data_(\d{6,})\.h5")
    for path in sorted(master.parent.iterdir()):
        if found := name.fullmatch(path.name):
            yield int(found[1]), path


def unfinished(master: Path, label: str) -> Iterator[tuple[int, Path]]:
    """Data files that are still under a temporary name, with their numbers."""
    for path in sorted(master.parent.iterdir()):
        found = re.fullmatch(r"\.(.*_data_(\d{6,})\.h5)\.\d+\.part", path.name)
        if found and found[1] == part_name(master, int(found[2]), label):
            yield int(found[2]), path


@dataclass(frozen=True, slots=True)
class Piece:
    """A finished data file of a scan."""

    start: int
    """Its first frame."""
    frames: int
    name: str
    """Of the file, beside the master."""


@dataclass(eq=False)
class Joined:
    """A dataset of a master, and what it is joined from by now."""

    layout: Layout
    label: str = ""
    """What the names of its data files have between those of the master and their numbers."""
    pieces: Sequence[Piece] = ()
    """Finished data files, in their order."""
    notes: Notes = field(default_factory=dict)


def join(
    group: h5py.Group,
    name: str,
    pieces: Sequence[Piece],
    frame_shape: tuple[int, ...],
    dtype: np.dtype[Any],
    fill: Any,
) -> h5py.Dataset:
    """A virtual dataset joined from data files that have theirs at the same path; what lies between reads as `fill`."""
    total = max((piece.start + piece.frames for piece in pieces), default=0)
    path = f"{group.name.rstrip('/')}/{name}"
    joined = h5py.VirtualLayout((total, *frame_shape), dtype, maxshape=(None, *frame_shape))
    for piece in pieces:
        source = h5py.VirtualSource(piece.name, path, (piece.frames, *frame_shape), dtype)
        joined[piece.start : piece.start + piece.frames] = source
    return group.create_virtual_dataset(name, joined, fillvalue=fill)


def check_eiger(path: Path, dataset: str, frame_shape: tuple[int, ...]) -> None:
    """Raise InputError for what the programs that read an Eiger's files would not find."""
    if not path.name.endswith("_master.h5"):
        raise InputError(f"{path}: must end in _master.h5 for the layout of an Eiger")
    if dataset != EIGER_DATASET:
        raise InputError(f"dataset must be /{EIGER_DATASET} for the layout of an Eiger, got /{dataset}")
    if len(frame_shape) != 2:
        raise InputError(f"frame_shape must have two axes for the layout of an Eiger, got {frame_shape}")


def is_eiger(file: h5py.File) -> bool:
    """Whether a file is a master that `link` made."""
    group = peek(file, EIGER_DATA)
    return isinstance(group, h5py.Group) and "tuner_digest" in group.attrs


def link(group: h5py.Group, pieces: Sequence[Piece]) -> None:
    """Links to the data files in a group, as Dectris names them; those that it has are replaced.

    Programs count the frames behind the links one after the other: no file may be missing between two.
    """
    for name in [name for name in group if SERIES.fullmatch(name)]:
        del group[name]
    for number, piece in enumerate(pieces, 1):
        group[f"data_{number:06d}"] = h5py.ExternalLink(piece.name, f"/{EIGER_DATASET}")
    if pieces:
        group.attrs["signal"] = np.bytes_("data_000001")
    elif "signal" in group.attrs:
        del group.attrs["signal"]


def write_master(path: Path, datasets: Sequence[Joined]) -> None:
    """Write and sync a file that joins the data files of each dataset; `path` must not exist.

    Raises
    ------
    InputError
        Where a dataset cannot stand beside those before it.
    """
    # Made in memory: on a full disk HDF5 neither says what is wrong nor closes the file.
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        if datasets[0].layout.eiger:
            _link_dataset(file, datasets[0])
        else:
            first = _join_dataset(file, datasets[0])
            for another in datasets[1:]:
                check_own_group(file, another.layout.dataset)
                _join_dataset(file, another, first)
        file.flush()
        image = file.id.get_file_image()
    with path.open("xb") as written:
        written.write(image)
        written.flush()
        os.fsync(written.fileno())


def _link_dataset(file: h5py.File, joined: Joined) -> None:
    layout, group = joined.layout, data_group(file, joined.layout.dataset)
    link(group, joined.pieces)
    replace(layout, mask=None).describe(file, group)  # the mask has a place of its own
    group.attrs.update(joined.notes)
    frames = sum(piece.frames for piece in joined.pieces)
    add_eiger_detector(file, layout.frame_shape, layout.dtype, layout.mask, frames)


def _join_dataset(file: h5py.File, joined: Joined, first: h5py.Dataset | None = None) -> h5py.Dataset:
    layout, group = joined.layout, data_group(file, joined.layout.dataset)
    dataset = join(group, layout.name, joined.pieces, layout.frame_shape, layout.dtype, layout.fill)
    layout.describe(file, dataset, "detector" if first is None else tell_apart(first, dataset))
    dataset.attrs.update(joined.notes)
    return dataset


def count_images(file: h5py.File, frames: int) -> None:
    """Have an Eiger's master say that it has so many frames, unless they are those of several triggers."""
    specific = file[_SPECIFIC]
    if specific["ntrigger"][()] == 1:
        specific["nimages"][()] = frames


def add_eiger_detector(
    file: h5py.File, frame_shape: tuple[int, ...], dtype: np.dtype[Any], mask: NDArray[np.bool_] | None, frames: int
) -> None:
    """What neggia, durin and dxtbx ask of a master beside its links, as far as the file says nothing else."""
    detector, specific = add_groups(file, _DETECTOR), add_groups(file, _SPECIFIC)
    numbers = _mask_of(detector, specific, frame_shape)
    if mask is not None:
        numbers[mask & (numbers == 0)] = 1
    height, width = frame_shape
    known = [
        (detector, "bit_depth_image", np.uint32(8 * dtype.itemsize)),
        (specific, "nimages", np.uint32(frames)),
        (specific, "ntrigger", np.uint32(1)),
        (specific, "x_pixels_in_detector", np.uint32(width)),
        (specific, "y_pixels_in_detector", np.uint32(height)),
        (specific, "number_of_excluded_pixels", np.uint32(np.count_nonzero(numbers))),
    ]
    saturation = detector.get("saturation_value")
    if saturation is not None and saturation.dtype.kind in "iuf":
        known.append((specific, "saturation_value", saturation[()]))
        # NeXus: where it saturates; Dectris: the last count that is trusted.
        known.append((specific, "countrate_correction_count_cutoff", saturation[()] - 1))
    for group, name, value in known:
        if name not in group:
            group[name] = value
    _store_mask(detector, specific, numbers)
    # dxtbx compares classes with bytes, which is what h5py reads of texts of fixed length.
    for group in groups(file):
        if (nx_class := group.attrs.get("NX_class")) is not None:
            group.attrs["NX_class"] = np.bytes_(nx_class)


def _mask_of(detector: h5py.Group, specific: h5py.Group, frame_shape: tuple[int, ...]) -> NDArray[np.uint32]:
    """The mask that a master has, with the bits that say what is wrong with a pixel, or zeros; shape `frame_shape`."""
    for group in (specific, detector):
        node = peek(group, "pixel_mask")
        if isinstance(node, h5py.Dataset) and node.shape == frame_shape and node.dtype.kind in "biu":
            return np.asarray(node[()]).astype(np.uint32)
    return np.zeros(frame_shape, np.uint32)


def _store_mask(detector: h5py.Group, specific: h5py.Group, numbers: NDArray[np.uint32]) -> None:
    """Put the mask where neggia wants it and as it reads it: uint32, in one chunk of bitshuffle with lz4."""
    import hdf5plugin

    old, beside = peek(specific, "pixel_mask"), peek(detector, "pixel_mask")
    attributes = {} if old is None else dict(old.attrs)
    for group in (specific, *([detector] if old is not None and old == beside else [])):
        if "pixel_mask" in group:
            del group["pixel_mask"]
    made = specific.create_dataset("pixel_mask", data=numbers, chunks=numbers.shape, **hdf5plugin.Bitshuffle())
    made.attrs.update(attributes)
    if "pixel_mask" not in detector:
        detector["pixel_mask"] = made


def _stem(master: Path, label: str) -> str:
    stem = master.name.removesuffix(master.suffix).removesuffix("_master")
    return f"{stem}_{label}" if label else stem


def image_numbers(piece: Piece) -> Notes:
    """Which frames a data file has, counted from 1, as Dectris says it."""
    return {
        "image_nr_low": np.int64(piece.start + 1),
        "image_nr_high": np.int64(piece.start + piece.frames),
    }
