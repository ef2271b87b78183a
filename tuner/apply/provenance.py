"""What frames were written with, as NeXus says it: an NXprocess beside them."""

from __future__ import annotations

import datetime
import itertools
import json
import platform
from functools import cache

import h5py
import hdf5plugin
import numpy as np

import tuner
from tuner.apply.codec import blosc2
from tuner.container import Container
from tuner.document import dump_yaml
from tuner.profile import Profile
from tuner.read.links import as_text, peek
from tuner.steps.reduced import reductions_to

#: Bytes that fit into a dataset's header, about.
_MOST_COMPACT = 60_000


@cache
def versions() -> dict[str, str]:
    """The versions of what encodes, as evidence and files name them."""
    return {
        "tuner": tuner.__version__,
        "python": platform.python_version(),
        "blosc2": blosc2.__version__,
        "c-blosc2": blosc2.blosclib_version.split()[0],
        "hdf5plugin": hdf5plugin.version,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "numpy": np.__version__,
    }


def add_process(file: h5py.File, dataset: str, profile: Profile, container: Container) -> h5py.Group:
    """Add an NXprocess to the entry of a dataset, or to the file's root where it is in none.

    It is called tuner, or tuner_2 and on where that is taken; its sequence_index says which process it is that the
    frames went through. The whole profile is in it as an NXnote; digest, steps, limits and versions as NXparameters.
    """
    first = file.get(dataset.strip("/").split("/")[0])
    entry = first if isinstance(first, h5py.Group) and first.attrs.get("NX_class") in ("NXentry", b"NXentry") else file
    before = sum(_is_process(entry, name) for name in entry)
    names = itertools.chain(("tuner",), (f"tuner_{number}" for number in itertools.count(before + 1)))
    name = next(name for name in names if name not in entry)
    process = _group(entry, name, "NXprocess")
    _put(process, "program", "tuner")
    _put(process, "version", tuner.__version__)
    _put(process, "date", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    _put(process, "sequence_index", before + 1)
    note = _group(process, "profile", "NXnote")
    _put(note, "type", "application/yaml")
    _put(note, "file_name", f"{profile.name}.yaml")
    _put(note, "description", "The profile that the frames were written with, as tuner loads it.")
    _put(note, "data", dump_yaml(profile.to_dict()))
    terms = {
        "dataset": f"/{dataset.strip('/')}",
        "profile": profile.name,
        "digest": profile.digest,
        "container": container.name,
        "steps": json.dumps(profile.config.to_dict()["steps"]),
        "bounds": json.dumps([str(limit) for limit in profile.limits] if profile.config.steps else []),
        "versions": json.dumps(versions()),
    }
    if profile.reduce:
        terms["reduce"] = json.dumps(reductions_to(profile.reduce))
    parameters = _group(process, "parameters", "NXparameters")
    for term, value in terms.items():
        _put(parameters, term, value)
    return process


def has_process(file: h5py.File) -> bool:
    """Whether an NXprocess of ours is in the file's root or one of its groups; datasets may be damaged."""
    for group in (file, *(node for name in file if isinstance(node := peek(file, name), h5py.Group))):
        for name in group:
            program = peek(group, f"{name}/program") if name.split("_")[0] == "tuner" else None
            if isinstance(program, h5py.Dataset) and as_text(program[()]) == "tuner":
                return True
    return False


def _group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def _put(group: h5py.Group, name: str, value: str | int) -> None:
    """Store a value in the header of its dataset: of a full disk HDF5 then tells when the file is flushed."""
    array = np.array(value.encode() if isinstance(value, str) else value)
    kind = h5py.string_dtype("utf-8", array.dtype.itemsize) if array.dtype.kind == "S" else array.dtype
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if array.nbytes <= _MOST_COMPACT:
        properties.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create(h5py.h5s.SCALAR)
    made = h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(kind, logical=True), space, properties)
    made.write(space, space, array.astype(kind))


def _is_process(group: h5py.Group, name: str) -> bool:
    """Whether a member is an NXprocess; links are not followed, as what they lead to may be gone."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        return False
    return group[name].attrs.get("NX_class") in ("NXprocess", b"NXprocess")
