"""What an HDF5 file says about its frames, in the conventions of NeXus, data-exchange and Dectris."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from tuner.errors import InputError
from tuner.read.links import (
    MAX_DEPTH,
    as_text,
    canonical,
    is_numeric,
    link_at,
    nx_class,
    open_link,
    peek,
    refuse_broken,
    walk,
)

#: A Dectris master links its data files as data_000001, data_000002, ...
SERIES = re.compile(r"data_\d{3,}")

_FLATS = re.compile(r"(data_)?(flats?|whites?|bright)(_?(fields?|data|images?))?", re.IGNORECASE)
_DARKS = re.compile(r"(data_)?(darks?)(_?(fields?|data|images?|current))?", re.IGNORECASE)

#: Names of datasets that are about the frames and are not the frames.
_ASIDE = re.compile(
    r".*(mask|flat|dark|white|bright|background|offset|angle|gain|pedestal|error|uncertaint|weight|time|distance|calib"
    r"|position|efficiency|image_key).*"
    r"|theta|phi|chi|omega|kappa|[xyz]|energy|energies|channels?|q|[xyz]_.*|index|indices",
    re.IGNORECASE,
)

#: A stack that is only by its name about the frames is taken for them if it is that much larger than any other dataset.
_ASIDE_WEIGHT = 16

#: How many candidates a message lists.
_LISTED = 6


def find_frames(file: h5py.File, dataset: str | None = None) -> tuple[str, ...]:
    """Path of the dataset that holds the frames; of several that a Dectris master joins, in their order.

    The one that is asked for, else the default plot, else data-exchange's, else the largest numeric one.

    Raises
    ------
    InputError
        Listing the candidates where the one asked for does not exist; naming the file of a link that leads nowhere.
    """
    if dataset is not None:
        return _asked(file, dataset)
    found = _default_plot(file)
    if found is None and isinstance(peek(file, "exchange/data"), h5py.Dataset):
        found = "/exchange/data"
    if found is None:
        _refuse_unlinked(file)
        found = canonical(file, _largest(file))
    return _series(file, found)


def _refuse_unlinked(file: h5py.File) -> None:
    """Raise InputError for the master of an Eiger that is still to link its first data file: its mask is no frame."""
    group = peek(file, "entry/data")
    specific = peek(file, "entry/instrument/detector/detectorSpecific")
    if isinstance(group, h5py.Group) and not len(group) and specific is not None:
        raise InputError(f"{file.filename}: must link a data file in /entry/data, got none yet")


def _asked(file: h5py.File, dataset: str) -> tuple[str, ...]:
    path = canonical(file, dataset)
    node = peek(file, path)
    if node is None:
        refuse_broken(file, path)
        raise InputError(f"{file.filename}: dataset must be one of {_candidates(file)}, got {dataset!r}")
    if isinstance(node, h5py.Dataset):
        return (path,)
    signal = _signal(node) if isinstance(node, h5py.Group) else None
    if signal is None:
        raise InputError(f"{file.filename}: dataset must be one of {_candidates(file)}, got the group {dataset!r}")
    return _series(file, canonical(file, f"{path}/{signal}"))


def _default_plot(file: h5py.File) -> str | None:
    """Follow @default from the root; without it, or where it ends above, the largest @signal of the NXdata below.

    https://manual.nexusformat.org/datarules.html#find-the-plottable-data
    """
    path, node = "", file
    for _ in range(MAX_DEPTH):
        name = as_text(node.attrs.get("default"))
        if not name or link_at(node, name) is None:
            break
        path = canonical(file, f"{path}/{name}")
        node = open_link(file, path)
        if isinstance(node, h5py.Dataset):
            return path
    if nx_class(node) == "NXdata":
        plots = [path]
    else:
        below = [f"{path}/{name}" for name in node] if nx_class(node) != "NXentry" else []
        entries = [path] if nx_class(node) == "NXentry" else [p for p in below if nx_class(peek(file, p)) == "NXentry"]
        plots = [f"{entry}/{name}" for entry in entries for name in file[entry]]
        plots = [plot for plot in plots if nx_class(peek(file, plot)) == "NXdata"]
    signals = []
    for plot in plots:
        signal = _signal(file[plot])
        if signal is not None:
            signals.append(canonical(file, f"{plot}/{signal}"))
    sizes = {signal: _nbytes(open_link(file, signal)) for signal in signals}
    return max(signals, key=lambda signal: sizes[signal], default=None)


def _signal(group: h5py.Group) -> str | None:
    """The name of the plotted dataset in a group: by @signal, by a child's @signal = 1, or a Dectris series."""
    name = as_text(group.attrs.get("signal"))
    if name and link_at(group, name) is not None:
        return name
    for child in group:
        node = peek(group, child)
        if isinstance(node, h5py.Dataset) and str(as_text(node.attrs.get("signal"))) == "1":
            return str(child)
    return min((str(child) for child in group if SERIES.fullmatch(child)), default=None)


def _series(file: h5py.File, path: str) -> tuple[str, ...]:
    """All siblings of a dataset of a Dectris series, in order; else the dataset itself."""
    parent, _, name = path.rpartition("/")
    if not SERIES.fullmatch(name):
        return (path,)
    names = sorted((child for child in file[parent or "/"] if SERIES.fullmatch(child)), key=lambda n: int(n[5:]))
    for child in names:
        open_link(file, f"{parent}/{child}")
    return tuple(f"{parent}/{child}" for child in names)


def _largest(file: h5py.File) -> str:
    found: dict[str, int] = {}
    aside: dict[str, int] = {}
    axes: set[str] = set()
    refused: list[str] = []
    broken: list[str] = []
    for path, node in walk(file, broken):
        axes.update(_inside(path, _names(node.attrs.get("axes"))))
        if not is_numeric(node):
            if isinstance(node, h5py.Dataset) and node.shape:
                refused.append(path)
            continue
        name = path.rpartition("/")[2]
        scale = as_text(node.attrs.get("CLASS")) == "DIMENSION_SCALE"
        group = aside if _ASIDE.fullmatch(name) or scale or "axis" in node.attrs else found
        group[path] = _nbytes(node)
    found = {path: size for path, size in found.items() if path not in axes} or found
    if not found and broken:
        refuse_broken(file, broken[0])
    found |= {path: size // _ASIDE_WEIGHT for path, size in aside.items() if not found or file[path].ndim > 2}
    if not found:
        got = f"only {', '.join(refused[:_LISTED])}, which are not" if refused else "none"
        raise InputError(f"{file.filename}: must hold a numeric dataset of 1 to 6 axes, got {got}")
    return max(found, key=lambda path: found[path])


def _inside(path: str, names: tuple[str, ...]) -> Iterator[str]:
    """Paths of named axes, whether the names are a group's attribute or a dataset's."""
    for name in names:
        yield f"{path}/{name}"
        yield f"{path.rpartition('/')[0]}/{name}"


def _candidates(file: h5py.File) -> str:
    found = {path: node for path, node in walk(file, []) if is_numeric(node)}
    largest = sorted(found, key=lambda path: -_nbytes(found[path]))
    texts = [f"{path} {found[path].dtype}{found[path].shape}" for path in largest[:_LISTED]]
    return "; ".join(texts + ["..."] * (len(largest) > _LISTED)) if texts else "its numeric datasets (it has none)"


def axis_names(file: h5py.File, path: str, ndim: int) -> tuple[tuple[str, ...], str | None]:
    """Names of a dataset's axes and its @interpretation, as the dataset or its group says; empty and None without."""
    dataset = file[path]
    group = file[path.rpartition("/")[0] or "/"]
    interpretation = as_text(dataset.attrs.get("interpretation")) or as_text(group.attrs.get("interpretation"))
    for names in (
        _names(dataset.attrs.get("axes")),
        _names(group.attrs.get("axes")),
        tuple(dimension.label for dimension in dataset.dims),
    ):
        if len(names) == ndim and all(names):
            return names, interpretation
    return _hyperspy_axes(group, ndim) or ((), interpretation)


def _hyperspy_axes(group: h5py.Group, ndim: int) -> tuple[tuple[str, ...], str | None] | None:
    """The same of a signal of HyperSpy, whose axes are groups of their own: those not navigated are of a frame.

    https://hyperspy.org/rosettasciio/file_specification/hspy.html
    """
    axes = [peek(group, f"axis-{number}") for number in range(ndim)]
    if not axes or not all(isinstance(axis, h5py.Group) and "navigate" in axis.attrs for axis in axes):
        return None
    names = tuple(as_text(axis.attrs.get("name")) or "" for axis in axes)
    signal = sum(not axis.attrs["navigate"] for axis in axes)
    return names if all(names) else (), {1: "spectrum", 2: "image"}.get(signal)


def beside(file: h5py.File, path: str, flats: bool) -> str | None:
    """The dataset of flat fields, or of darks, beside a dataset of frames."""
    parent, _, name = path.rpartition("/")
    pattern = _FLATS if flats else _DARKS
    group = file[parent or "/"]
    for child in group:
        if child != name and pattern.fullmatch(child) and isinstance(peek(group, child), h5py.Dataset):
            return f"{parent}/{child}"
    return None


def _nbytes(node: Any) -> int:
    return math.prod(node.shape) * node.dtype.itemsize if isinstance(node, h5py.Dataset) and node.shape else 0


def _names(value: Any) -> tuple[str, ...]:
    """Names of axes from a list of them, or from one text with colons or commas, as old files have it.

    >>> _names("theta:y:x"), _names(np.array([b".", b"y", b"x"])), _names("[y,x]"), _names(None)
    (('theta', 'y', 'x'), ('.', 'y', 'x'), ('y', 'x'), ())
    """
    if isinstance(value, np.ndarray | list | tuple) and np.size(value) != 1:
        return tuple(as_text(item) or "" for item in np.ravel(value))
    return tuple(part.strip() for part in re.split("[:,]", (as_text(value) or "").strip("[] ")) if part.strip())
