"""Existing files written anew as a profile says: an HDF5 file with all that is in it, a series as a NeXus file."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tuner.apply.cut import corners, slabs, tiles_of
from tuner.apply.data_files import DataFiles, becomes_eiger, frames_of_a_file
from tuner.apply.dataset import (
    create_dataset,
    done_before,
    fill_of_missing,
    stamp,
    stamp_fallbacks,
    stamp_kept,
    stamp_past,
)
from tuner.apply.master import add_eiger_detector, check_eiger, count_images, data_files
from tuner.apply.metadata import Metadata, note, reduced_fill
from tuner.apply.nexus import add_detector, check_dataset_path, data_group
from tuner.apply.pipeline import Pipeline, default_workers, depth_of
from tuner.apply.plugin import open_encoder
from tuner.apply.prepare import Batch, Preparation, kept_of
from tuner.apply.provenance import add_process
from tuner.apply.scan_file import LIBVER, closing_once
from tuner.apply.target import check_target, publish, reason, temporary_name
from tuner.apply.tree import copy_tree, remove
from tuner.config import Config, chunk_grid
from tuner.container import BLOSC2, CONTAINERS, Container
from tuner.errors import InputError, TunerError, TunerWarning
from tuner.profile import Profile
from tuner.read.hdf5 import Hdf5Source
from tuner.read.storage import open_file, physical
from tuner.stack import Kind, Stack
from tuner.steps.reduced import Reduced, reduced, times_smaller


def repack(
    profile: Profile,
    stacks: Sequence[Stack],
    source_paths: Sequence[str | os.PathLike[str]],
    destination: str | os.PathLike[str],
    dataset: str | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    again: bool = False,
    container: str = "blosc2",
    layout: str | None = None,
) -> dict[str, Any]:
    """Write stacks as `profile` says, each into a file that appears under its name when it is complete.

    An HDF5 source is copied whole: groups, attributes, links, dimension scales, and other datasets as they are stored.
    Its stack keeps path, shape, fill value and what was never written. What it was joined from, a virtual dataset or
    the external links of a Dectris master, becomes one real dataset in the place of the first: for a master, `data`
    beside where `data_000001` was, and the links are dropped; unless a master is written again, with data files beside
    it. Of any other source a NeXus file is made.

    Parameters
    ----------
    profile : Profile
    stacks : sequence of Stack
        As `open_stacks` returns them.
    source_paths : sequence of path
        What the stacks were opened from; none of them is ever written to.
    destination : path
        A file; a folder that exists if there are several stacks, where the files take the names of their sources.
    dataset : str, optional
        Where the stack goes if the source is no HDF5 file; the default is /entry/data/data.
    overwrite : bool
        Replace existing files.
    workers : int, optional
        Threads that encode; the default is one for each core that the process may use.
    again : bool
        Let a profile's steps change frames that were written lossily before.
    container : "blosc2", "bitshuffle" or "bitshuffle-zstd"
        As for `open_writer`.
    layout : "nexus" or "eiger", optional
        One file, or a master with data files as an Eiger has them, which appear one after the other, the master last; a
        destination must end in ``_master.h5``. By default, a Dectris master that is written to such a name stays one.

    Returns
    -------
    dict
        `files`: for each, source, destination, dataset, shape, nbytes, stored_nbytes, ratio, seconds; ratio_of_data, of
        the chunks that hold data frames alone, and other_frames, how many are no data: flats, darks and the like;
        missing_frames, how many were never written, which do not count in nbytes and ratio; reduction, how many times
        smaller the profile's reductions made frames before; all else is of what they made.

    Raises
    ------
    InputError
        Before anything is written: frames that the profile is not for, a destination that exists or cannot be created.
    TunerError
        Where writing fails; nothing is left behind.
    """
    if container not in CONTAINERS:
        raise InputError(f"container must be {' or '.join(CONTAINERS)}, got {container}")
    if layout not in (None, "nexus", "eiger"):
        raise InputError(f"layout must be 'nexus' or 'eiger', got {layout!r}")
    place = check_dataset_path(dataset or "/entry/data/data")
    targets = _targets(stacks, source_paths, Path(destination))
    plans = []
    for stack, target in zip(stacks, targets, strict=True):
        profile.match.check(stack.dtype, stack.frame_shape, stack.name)
        view = reduced(stack, profile.reduce)
        if target.exists() and any(path.exists() and target.samefile(path) for path in _inputs(stack, source_paths)):
            raise InputError(f"{target}: is an input; it must be another file")
        check_target(target, overwrite)
        # Errors of two passes add up, and no evidence is of both.
        if (profile.reduce or profile.config.steps) and not again and (done := done_before(stack)):
            raise InputError(f"{stack.name}: {done}; --again changes it once more")
        plan = _Plan(profile, stack, view, CONTAINERS[container])
        if becomes_eiger(stack, target, layout):
            _check_eiger(stack, view, target, place, overwrite, source_paths)
            plan.master = target
        plans.append(plan)
    files = [
        _write(plan, target, place, overwrite, workers or default_workers())
        for plan, target in zip(plans, targets, strict=True)
    ]
    return {"files": files}


def _targets(stacks: Sequence[Stack], source_paths: Sequence[str | os.PathLike[str]], destination: Path) -> list[Path]:
    if not destination.is_dir():
        if len(stacks) > 1:
            raise InputError(f"{destination}: must be an existing folder, as there are {len(stacks)} files to write")
        return [destination]
    targets = []
    for stack in stacks:
        source = Path(stack.name if stack.dataset else source_paths[0] if len(stacks) == 1 else stack.name)
        targets.append(destination / (source.name if stack.dataset else f"{source.stem.strip('*?_') or 'stack'}.h5"))
    for target in targets:
        if targets.count(target) > 1:
            raise InputError(f"{target}: two of the sources have this name; write them one by one")
    return targets


def _inputs(stack: Stack, source_paths: Sequence[str | os.PathLike[str]]) -> Iterator[Path]:
    """Files that a stack may be read from: named, in a named folder or glob, or where links of an HDF5 file lead."""
    for path in map(Path, source_paths):
        yield path
        yield from path.iterdir() if path.is_dir() else path.parent.glob(path.name)
    if isinstance(stack.source, Hdf5Source):
        with open_file(stack.source.path) as file:
            yield from (Path(node.file.filename) for name in stack.source.datasets for node in physical(file[name]))


def _check_eiger(
    stack: Stack,
    view: Stack,
    target: Path,
    place: str,
    overwrite: bool,
    source_paths: Sequence[str | os.PathLike[str]],
) -> None:
    if isinstance(stack.source, Hdf5Source):
        place = f"{stack.source.datasets[0].rpartition('/')[0]}/data".strip("/")
    check_eiger(target, place, view.frame_shape)
    if len(view.lead_shape) != 1:
        raise InputError(f"{stack.name}: must have three axes for the layout of an Eiger, got shape {view.shape}")
    for _, path in data_files(target):
        check_target(path, overwrite)
        if any(source.exists() and path.samefile(source) for source in _inputs(stack, source_paths)):
            raise InputError(f"{path}: is an input; it must be another file")


class _Plan:
    """How one stack is stored: its configuration with nothing left open, and the chunks of its dataset."""

    def __init__(self, profile: Profile, original: Stack, stack: Stack, container: Container) -> None:
        self.profile = profile
        self.master: Path | None = None
        """Where there are to be data files, the master that links them."""
        self.files: DataFiles | None = None
        self.original = original
        self.stack = stack
        self.preparation = Preparation.of_stack(profile, stack)
        config = container.resolve(profile.config, stack.frame_shape, stack.dtype)
        self.chunks = chunk_grid(stack.shape, stack.frame_ndim, config.chunks)
        lead = len(stack.lead_shape)
        self.lead_chunk = self.chunks[:lead]
        frames = math.prod(self.lead_chunk)
        # There may be fewer frames in it than the profile says: of the type size, what divides them.
        typesize = math.gcd(config.blosc2.typesize, math.prod(self.chunks) * stack.dtype.itemsize)
        blosc2 = replace(config.blosc2, typesize=typesize)
        # The same bytes as the dataset's chunk, with its leading axes as one.
        config = container.resolve(Config((frames, *config.chunks[1:]), blosc2), stack.frame_shape, stack.dtype)
        self.encoder = open_encoder(config, profile.fallback.blosc2, stack.dtype, self.chunks, container)

    def create(self, group: h5py.Group, name: str, maxshape: tuple[int | None, ...], fill: Any = None) -> h5py.Dataset:
        dataset = create_dataset(group, name, self.stack.shape, maxshape, self.chunks, self.encoder, fill)
        stamp(dataset, self.profile, self.encoder.container)
        if self.preparation.steps and (kept := kept_of(self.stack, 0, len(self.stack))) is not None:
            stamp_kept(dataset, kept)
        return dataset

    def fill(self, dataset: h5py.Dataset, workers: int, same_fill: bool = False) -> None:
        """Encode the stack into its dataset, a row of chunks at a time, without what was never written.

        Without `same_fill` that may read as the fill value of any of several files; where it is another it is written.
        """
        stack = self.stack
        tiles = tiles_of(stack.frame_shape, self.encoder.chunk_shape[1:])
        depth = depth_of(workers, tiles if self.preparation.steps else 1)
        write = dataset.id.write_direct_chunk
        if self.master is not None:
            each = -(-frames_of_a_file(self.original) // self.lead_chunk[0]) * self.lead_chunk[0]
            self.files = DataFiles(self.master, each, len(stack), partial(self._create_like, dataset))
            write = self.files.write
        pipeline = Pipeline(self.encoder, write, workers, depth=depth)
        try:
            for slab in slabs(stack.lead_shape, self.lead_chunk):
                missing = not stack.written(slab.start, slab.stop).any()
                if missing and same_fill:
                    continue
                frames = stack.read(slab.start, slab.stop)
                if missing and frames.tobytes() == np.full_like(frames, dataset.fillvalue).tobytes():
                    continue
                batch = Batch(frames, self.preparation, kept_of(stack, slab.start, slab.stop))
                for corner in corners(frames.shape, self.encoder.chunk_shape):
                    pipeline.put((*slab.corner, *corner[1:]), batch, corner)
            pipeline.drain()
            stamp_fallbacks(dataset, self.encoder)
        finally:
            pipeline.close()

    def finish(self, dataset: h5py.Dataset) -> _Written:
        """What a dataset came to that is filled; links to data files take its place, where these have the frames."""
        if self.files is None:
            return _Written.of([(0, dataset)], self.stack)
        group, file, stack = dataset.parent, dataset.file, self.stack
        for name in [name for name in dataset.attrs if name.startswith("tuner_")]:
            group.attrs[name] = dataset.attrs[name]
        for dimension in dataset.dims:
            for scale in dimension.values():
                dimension.detach_scale(scale)
        remove(dataset)  # it is empty, and so would read any other name that it has
        self.files.join(group)
        add_eiger_detector(file, stack.frame_shape, stack.dtype, stack.mask, len(stack))
        if len(stack) != len(self.original):
            count_images(file, len(stack))
        with self.files.parts() as parts:
            written = _Written.of(parts, stack)
        return replace(written, dataset=f"{group.name}/data_000001")

    def _create_like(self, dataset: h5py.Dataset, group: h5py.Group, name: str, frames: int) -> h5py.Dataset:
        """A part of a dataset, in a file of its own."""
        shape = (frames, *self.stack.frame_shape)
        part = create_dataset(group, name, shape, (None, *shape[1:]), self.chunks, self.encoder, dataset.fillvalue)
        of_all = ("DIMENSION_LIST", "tuner_lossless_frames")
        part.attrs.update({name: value for name, value in dataset.attrs.items() if name not in of_all})
        return part


def _write(plan: _Plan, target: Path, place: str, overwrite: bool, workers: int) -> dict[str, Any]:
    start = time.perf_counter()
    stack, source = plan.stack, plan.original.source
    temporary = temporary_name(target)
    try:
        if isinstance(source, Hdf5Source):
            written = _copy(plan, source, temporary, workers)
        else:
            written = _fresh(plan, temporary, place, workers)
        if plan.files is None:
            publish(temporary, target, overwrite)
        else:
            plan.files.publish(temporary, overwrite)
    except TunerError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:  # what h5py makes of HDF5's errors
        raise TunerError(f"{target}: cannot be written: {reason(error)}; nothing is left of it") from None
    finally:
        temporary.unlink(missing_ok=True)
        if plan.files is not None:
            plan.files.discard()
    missing = int(np.count_nonzero(~stack.written()))
    nbytes = stack.nbytes - missing * stack.frame_nbytes
    return {
        "source": stack.name,
        "destination": str(target),
        "dataset": written.dataset,
        "shape": list(stack.shape),
        "nbytes": nbytes,
        "stored_nbytes": written.nbytes,
        "ratio": nbytes / written.nbytes if written.nbytes else None,
        "ratio_of_data": written.ratio_of_data,
        "reduction": times_smaller([plan.original], [stack]),
        "other_frames": 0 if stack.kinds is None else int(np.count_nonzero(stack.kinds != Kind.DATA)),
        "missing_frames": missing,
        "seconds": time.perf_counter() - start,
    }


@dataclass(frozen=True, slots=True)
class _Written:
    """What became of a stack."""

    dataset: str
    """Where it is."""
    nbytes: int
    """What it takes."""
    ratio_of_data: float | None
    """Of the chunks that hold data frames alone: those that a search measures. None where there are none."""

    @classmethod
    def of(cls, parts: Sequence[tuple[int, h5py.Dataset]], stack: Stack) -> _Written:
        """Ask datasets that are complete, of which the first has the frames from a number on."""
        lead = len(stack.lead_shape)
        data = np.ones(stack.lead_shape, np.bool_) if stack.kinds is None else stack.kinds == Kind.DATA
        data, totals = data.reshape(stack.lead_shape), np.zeros(2)

        def add(data: NDArray[np.bool_], dataset: h5py.Dataset, chunk: Any) -> None:
            inside = tuple(slice(at, at + n) for at, n in zip(chunk.chunk_offset, dataset.chunks, strict=True))
            if data[inside[:lead]].all():
                pixels = math.prod(min(s.stop, n) - s.start for s, n in zip(inside, dataset.shape, strict=True))
                totals[:] += pixels * stack.dtype.itemsize, chunk.size

        for start, dataset in parts:
            dataset.id.chunk_iter(partial(add, data[start:] if start else data, dataset))
        ratio = float(totals[0] / totals[1]) if totals[1] else None
        nbytes = sum(dataset.id.get_storage_size() for _, dataset in parts)
        return cls(str(parts[0][1].name), nbytes, ratio)


def _copy(plan: _Plan, source: Hdf5Source, temporary: Path, workers: int) -> _Written:
    """The whole tree of an HDF5 file with its stack re-encoded."""
    stack = plan.stack
    joined = len(source.datasets) > 1
    made: list[h5py.Dataset] = []
    reduction = isinstance(stack.source, Reduced)

    def make(group: h5py.Group, name: str, original: h5py.Dataset) -> h5py.Dataset:
        if joined:
            name = "data"
            group.attrs["signal"] = name
        real = not joined and not original.is_virtual and not reduction
        defined = original.id.get_create_plist().fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED
        fill = original.fillvalue if real and defined else reduced_fill(stack) if reduction else None
        fill = fill if real or reduction else fill_of_missing(stack)
        new = plan.create(group, name, original.maxshape if real else stack.shape, fill)
        stamp_past(new, original)
        if (joined or reduction) and "image_nr_low" in original.attrs:
            new.attrs["image_nr_low"] = original.attrs["image_nr_low"]
            new.attrs["image_nr_high"] = original.attrs["image_nr_low"] + np.int32(len(stack) - 1)
        made.append(new)
        return new

    with open_file(source.path) as original, closing_once(_new_file(temporary, plan, like=original)) as file:
        metadata = Metadata(original, stack) if reduction else None
        copy_tree(original, file, source.datasets, make, None if metadata is None else metadata.rewrite)
        add_process(file, made[0].name, plan.profile, plan.encoder.container)
        plan.fill(made[0], workers, reduction or not (joined or original[source.datasets[0]].is_virtual))
        if metadata is not None:
            note(made[0], stack)
            if metadata.left:
                text = f"{stack.name}: not reduced, as what they mean is not known: {', '.join(metadata.left)}"
                warnings.warn(text, TunerWarning, stacklevel=2)
        return plan.finish(made[0])


def _new_file(path: Path, plan: _Plan, like: h5py.File | None = None) -> h5py.File:
    """A file whose root keeps the order of its members if that of another does.

    In the format of HDF5 1.10, whose index of chunks has checksums: in the older one a flipped bit hides chunks, which
    then read as zeros. In the other containers, for programs that parse HDF5 themselves, the older one; of 1.8 where
    attributes above 64 KiB may be copied.
    """
    ordered = like is not None and like.id.get_create_plist().get_link_creation_order() & h5py.h5p.CRT_ORDER_TRACKED
    older = ("earliest", "latest") if like is None else ("v108", "latest")
    bounds = LIBVER if plan.encoder.container is BLOSC2 else older
    return h5py.File(path, "x", libver=bounds, locking=False, track_order=bool(ordered))


def _fresh(plan: _Plan, temporary: Path, place: str, workers: int) -> _Written:
    """A NeXus file with the stack."""
    stack = plan.stack
    with closing_once(_new_file(temporary, plan)) as file:
        group = data_group(file, place)
        dataset = plan.create(group, place.split("/")[-1], stack.shape)
        dataset.attrs["interpretation"] = "image" if stack.frame_ndim == 2 else "spectrum"
        if stack.axes:
            group.attrs["axes"] = list(stack.axes)
        add_process(file, place, plan.profile, plan.encoder.container)
        add_detector(file, place, stack.mask, saturation_value=stack.saturation, underload_value=stack.underload)
        plan.fill(dataset, workers)
        if isinstance(stack.source, Reduced):
            note(dataset, stack)
        return plan.finish(dataset)
