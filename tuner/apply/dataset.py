"""A dataset of encoded chunks in HDF5, declared so that every reader with their filter decodes and checks it."""

from __future__ import annotations

import ctypes
import json
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tuner.apply.plugin import ChunkEncoder, FallbackEncoder
from tuner.apply.runs import runs_of
from tuner.container import Container
from tuner.profile import Profile
from tuner.read.hdf5 import Hdf5Source
from tuner.read.storage import open_file, physical
from tuner.stack import Stack
from tuner.steps.reduced import reductions_to


def create_dataset(
    group: h5py.Group,
    name: str,
    shape: tuple[int, ...],
    maxshape: tuple[int | None, ...],
    chunk_shape: tuple[int, ...],
    encoder: ChunkEncoder,
    fill: Any = None,
) -> h5py.Dataset:
    """Create a dataset for chunks of `encoder`, written directly, with `with_checksum` if its container has one.

    Chunks that are never written read as `fill`, or as zero. Boolean data takes h5py's enumeration.
    """
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    properties.set_chunk(chunk_shape)
    # Optional, as the filter itself is not needed for writing; a reader without it still gets an error, not raw bytes.
    properties.set_filter(encoder.container.hdf5_filter, h5py.h5z.FLAG_OPTIONAL, encoder.filter_values)
    if encoder.container.checked:
        properties.set_fletcher32()
    if fill is not None:
        properties.set_fill_value(np.asarray(fill, encoder.dtype))
    unlimited = tuple(h5py.h5s.UNLIMITED if size is None else size for size in maxshape)
    identifier = h5py.h5d.create(
        group.id,
        name.encode(),
        h5py.h5t.py_create(encoder.dtype, logical=True),
        h5py.h5s.create_simple(shape, unlimited),
        properties,
    )
    return h5py.Dataset(identifier)


def fill_of_missing(stack: Stack) -> Any:
    """What the first frame reads as that was never written, whichever file says so; None where all were."""
    written = stack.written()
    if written.all():
        return None
    first = int(written.argmin())
    return stack.read(first, first + 1).ravel()[0]


def to_older_index(dataset: h5py.Dataset) -> None:
    """Have the chunks of a dataset found by the index of HDF5 1.8, which programs that parse files themselves know.

    Between its writes a file may be unreadable: it is for files that nobody has seen yet. Builds of HDF5 that do not
    export the function leave the dataset as it is.
    """
    try:
        convert = ctypes.CDLL(h5py.h5.__file__).H5Dformat_convert
    except (OSError, AttributeError):
        return
    convert.argtypes = (ctypes.c_int64,)
    if convert(dataset.id.id) < 0:
        raise OSError(f"{dataset.name}: its index of chunks cannot be converted")


def stamp(dataset: h5py.Dataset, profile: Profile, container: Container) -> None:
    """Say on the dataset which profile it was written with, and what its steps did to pixels."""
    dataset.attrs["tuner_profile"] = profile.name
    dataset.attrs["tuner_digest"] = profile.digest
    dataset.attrs["tuner_config"] = json.dumps(profile.config.to_dict())
    dataset.attrs["tuner_container"] = container.name
    dataset.attrs["tuner_version"] = version("tuner")
    if profile.reduce:
        dataset.attrs["tuner_reduce"] = json.dumps(reductions_to(profile.reduce))
    if profile.config.steps:
        dataset.attrs["tuner_steps"] = json.dumps(profile.config.to_dict()["steps"])
        dataset.attrs["tuner_noise"] = json.dumps(None if profile.noise is None else asdict(profile.noise))
        dataset.attrs["tuner_bounds"] = json.dumps([str(limit) for limit in profile.limits])


def stamp_kept(dataset: h5py.Dataset, kept: NDArray[np.bool_]) -> None:
    """Say on the dataset which frames its steps left as they were, as runs [first, after the last]; shape (frames,)."""
    dataset.attrs["tuner_lossless_frames"] = runs_of(kept)


def stamp_past(dataset: h5py.Dataset, original: h5py.Dataset) -> None:
    """Say on the copy of a dataset what was done before to the pixels that it is joined from, if nothing is said."""
    for part in physical(original):
        for name in ("tuner_reduce", "tuner_steps", "tuner_noise", "tuner_bounds"):
            if name in part.attrs and name not in dataset.attrs:
                dataset.attrs[name] = part.attrs[name]


def done_before(stack: Stack) -> str:
    """With which reductions and steps a stack was written, as JSON, and where; empty where every pixel is as it was.

    A virtual dataset says nothing of it, the datasets that it is joined from do.
    """
    if isinstance(stack.source, Hdf5Source):
        with open_file(stack.source.path) as file:
            for name in stack.source.datasets:
                for part in physical(file[name]):
                    stamped = [part.attrs.get(f"tuner_{what}", "") for what in ("reduce", "steps")]
                    if steps := ", ".join(text for text in stamped if isinstance(text, str) and text):
                        return f"{name} was written lossily before ({steps})"
    return ""


def stamp_fallbacks(dataset: h5py.Dataset, encoder: ChunkEncoder) -> None:
    """Say on the dataset in how many chunks a plug-in gave way to the profile's fallback."""
    if isinstance(encoder, FallbackEncoder):
        dataset.attrs.modify("tuner_fallback_chunks", np.int64(encoder.fallbacks))
