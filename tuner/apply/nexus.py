"""The groups around a dataset that make NeXus readers plot it."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.read.links import peek


def check_dataset_path(dataset: str) -> str:
    """Return a dataset's path in its file without its leading slash.

    >>> check_dataset_path("/entry/data/data")
    'entry/data/data'
    """
    parts = dataset.removeprefix("/").split("/")
    if not all(part and part != "." for part in parts) or "\0" in dataset:
        raise InputError(f"dataset must be a path such as /entry/data/data, got {dataset!r}")
    return "/".join(parts)


def check_own_group(file: h5py.File, dataset: str) -> None:
    """Raise InputError where a dataset would stand in one group with another that is to be plotted."""
    group, _, _ = dataset.rpartition("/")
    node = peek(file, group) if group else file
    if node is not None and (not isinstance(node, h5py.Group) or "signal" in node.attrs):
        raise InputError(f"dataset must be in a group of its own, got /{dataset} beside what is there")


def data_group(file: h5py.File, dataset: str) -> h5py.Group:
    """The group that a dataset belongs into, made with the classes and defaults that lead a reader there.

    The first group is an NXentry, that of the dataset an NXdata; one that is both is an NXdata.
    """
    *groups, name = dataset.split("/")
    file.attrs["NX_class"] = "NXroot"
    group: h5py.Group = file
    for depth, part in enumerate(groups):
        if "default" not in group.attrs:
            group.attrs["default"] = part
        last = depth == len(groups) - 1
        if part not in group:
            made = group.create_group(part)
            made.attrs["NX_class"] = "NXdata" if last else "NXentry" if depth == 0 else "NXcollection"
        group = group[part]
    group.attrs["signal"] = name
    return group


def tell_apart(first: h5py.Dataset, second: h5py.Dataset) -> str:
    """The name of the second's detector; where both are of one entry, each dataset is in an NXdetector, too."""
    entry, group = str(second.name).strip("/").split("/")[:2]
    if entry != first.name.strip("/").split("/")[0]:
        return "detector"
    name = "detector_2" if group == "detector" else group
    for detector, dataset in (("detector", first), (name, second)):
        held = _detector(first.file, entry, detector)
        if "data" not in held:
            held["data"] = dataset
    return name


def add_detector(
    file: h5py.File,
    dataset: str,
    mask: NDArray[np.bool_] | None = None,
    name: str = "detector",
    **numbers: float | None,
) -> None:
    """Beside the data, in an NXdetector: pixel_mask, 1 where invalid, and those `numbers` that are known."""
    fields: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    if mask is None and not fields:
        return
    entry, slash, _ = dataset.partition("/")
    parent = _detector(file, entry if slash else "", name)
    for field, value in fields.items():
        parent[field] = value
    if mask is not None:
        parent.create_dataset("pixel_mask", data=mask.astype(np.uint32), chunks=mask.shape, compression="gzip")


def _detector(file: h5py.File, entry: str, name: str) -> h5py.Group:
    group = file.require_group(f"{entry}/instrument")
    group.attrs["NX_class"] = "NXinstrument"
    group = group.require_group(name)
    group.attrs["NX_class"] = "NXdetector"
    return group
