"""The groups around a dataset that make NeXus readers plot it."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tuner.errors import InputError


def check_dataset_path(dataset: str) -> str:
    """Return a dataset's path in its file without its leading slash.

    >>> check_dataset_path("/entry/data/data")
    'entry/data/data'
    """
    parts = dataset.removeprefix("/").split("/")
    if not all(part and part != "." for part in parts) or "\0" in dataset:
        raise InputError(f"dataset must be a path such as /entry/data/data, got {dataset!r}")
    return "/".join(parts)


def data_group(file: h5py.File, dataset: str) -> h5py.Group:
    """The group that a dataset belongs into, made with the classes and defaults that lead a reader there.

    The first group is an NXentry, that of the dataset an NXdata; one that is both is an NXdata.
    """
    *groups, name = dataset.split("/")
    file.attrs["NX_class"] = "NXroot"
    group: h5py.Group = file
    for depth, part in enumerate(groups):
        group.attrs["default"] = part
        group = group.create_group(part)
        last = depth == len(groups) - 1
        group.attrs["NX_class"] = "NXdata" if last else "NXentry" if depth == 0 else "NXcollection"
    group.attrs["signal"] = name
    return group


def add_detector(file: h5py.File, dataset: str, mask: NDArray[np.bool_] | None = None, **numbers: float | None) -> None:
    """Beside the data, in an NXdetector: pixel_mask, 1 where invalid, and those `numbers` that are known."""
    fields: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    if mask is None and not fields:
        return
    parent: h5py.Group = file
    for name, nx_class in (("instrument", "NXinstrument"), ("detector", "NXdetector")):
        parent = parent.require_group(f"{dataset.split('/')[0]}/{name}" if parent == file and "/" in dataset else name)
        parent.attrs["NX_class"] = nx_class
    for name, value in fields.items():
        parent[name] = value
    if mask is not None:
        parent.create_dataset("pixel_mask", data=mask.astype(np.uint32), chunks=mask.shape, compression="gzip")
