"""What frames were written with, as NeXus says it: an NXprocess beside them."""

from __future__ import annotations

import datetime
import itertools
import json
import platform
from functools import cache
from typing import Any

import h5py
import hdf5plugin
import numpy as np

import tuner
from tuner.apply.codec import blosc2
from tuner.container import Container
from tuner.document import dump_yaml
from tuner.profile import Profile
from tuner.steps.reduced import reductions_to


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
    process["program"] = "tuner"
    process["version"] = tuner.__version__
    process["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    process["sequence_index"] = before + 1
    note = _group(process, "profile", "NXnote")
    note["type"] = "application/yaml"
    note["file_name"] = f"{profile.name}.yaml"
    note["description"] = "The profile that the frames were written with, as tuner loads it."
    note["data"] = dump_yaml(profile.to_dict())
    terms: dict[str, Any] = {
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
        parameters[term] = value
    return process


def _group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def _is_process(group: h5py.Group, name: str) -> bool:
    """Whether a member is an NXprocess; links are not followed, as what they lead to may be gone."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        return False
    return group[name].attrs.get("NX_class") in ("NXprocess", b"NXprocess")
