"""What a user says of a scan beside its frames: values at paths of a NeXus file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from tuner.apply.nexus import check_dataset_path
from tuner.errors import InputError

#: What groups of a name are in NeXus, and in the files of Dectris.
_CLASSES = {
    "attenuator": "NXattenuator",
    "beam": "NXbeam",
    "detector": "NXdetector",
    "geometry": "NXgeometry",
    "goniometer": "NXtransformations",
    "instrument": "NXinstrument",
    "monochromator": "NXmonochromator",
    "orientation": "NXorientation",
    "sample": "NXsample",
    "source": "NXsource",
    "transformations": "NXtransformations",
    "translation": "NXtranslation",
    "user": "NXuser",
}


def add_groups(file: h5py.File, path: str) -> h5py.Group:
    """The group at a path; those on the way that are not there are made, of the class that NeXus has for their name.

    Raises
    ------
    InputError
        Where there is something else on the way.
    """
    group: h5py.Group = file
    for part in path.split("/") if path else ():
        node = group.get(part)
        if node is None:
            node = group.create_group(part)
            node.attrs["NX_class"] = "NXentry" if group == file else _CLASSES.get(part, "NXcollection")
        if not isinstance(node, h5py.Group):
            raise InputError(f"fields: {node.name} must be a group, as {path} is to be made")
        group = node
    return group


def add_fields(file: h5py.File, fields: Mapping[str, Any]) -> None:
    """Write values at their paths: text, a number, an array, or one of these with its unit, (value, unit).

    Raises
    ------
    InputError
        For a value that is none of these, or a path that is taken.
    """
    for path, value in fields.items():
        value, unit = (
            value if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str) else (value, None)
        )
        array = np.asarray(value)
        if array.dtype.kind == "U":
            array = np.char.encode(array, "utf-8")
        if array.dtype.kind not in "biufS":
            raise InputError(f"fields: {path} must be text, a number, an array, or (value, unit), got {value!r}")
        parent, _, name = check_dataset_path(path).rpartition("/")
        group = add_groups(file, parent)
        if name in group:
            raise InputError(f"fields: {path} must not be what is written anyway")
        dataset = group.create_dataset(name, data=array)
        if unit is not None:
            dataset.attrs["units"] = np.bytes_(unit.encode())
