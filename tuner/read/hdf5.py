"""HDF5: the frames of a NeXus, data-exchange or Dectris file, or of any other, read piece by piece."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.read.axes import check_array, check_axes, frame_ndim
from tuner.read.detector import declared_marks, detector
from tuner.read.links import open_link
from tuner.read.nexus import axis_names, beside, find_frames
from tuner.read.storage import cache_nbytes, frame_bytes, open_file, open_handle, refusing_damage, storage
from tuner.stack import Stack, Storage, convention


class Hdf5Source:
    """Frames of one dataset, or of several that follow each other along the first axis.

    The file is opened at the first read, without a lock, and again after `close`.

    Parameters
    ----------
    path : str or path
    datasets : tuple of str
        Paths in the file, links followed.
    shapes : tuple of tuple of int
        Shape of each dataset.
    frame_ndim : int
    dtype : numpy.dtype
        Native.
    cache : int
        Bytes of HDF5's chunk cache.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        datasets: tuple[str, ...],
        shapes: tuple[tuple[int, ...], ...],
        frame_ndim: int,
        dtype: np.dtype[Any],
        cache: int,
    ) -> None:
        self.path = os.fspath(path)
        self.datasets = datasets
        self.frame_ndim = frame_ndim
        self.dtype = dtype
        self.shapes = shapes
        self._cache = cache
        self._leads = [shape[: len(shape) - frame_ndim] for shape in shapes]
        self._ends = np.cumsum([int(np.prod(lead, dtype=np.int64)) for lead in self._leads])
        self._file: h5py.File | None = None
        self._open: h5py.Dataset | None = None

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Frames `start` to `stop`, shape (stop - start, *frame_shape), in native byte order.

        Raises
        ------
        InputError
            Where the file is damaged or changed since it was opened.
        """
        frame_shape = self.shapes[0][len(self.shapes[0]) - self.frame_ndim :]
        pieces = [np.empty((0, *frame_shape), self.dtype)]
        for name, lead, end in zip(self.datasets, self._leads, self._ends, strict=True):
            first = int(end) - int(np.prod(lead, dtype=np.int64))
            a, b = max(start, first), min(stop, int(end))
            if a >= b:
                continue
            for selection in slabs(a - first, b - first, lead):
                with refusing_damage(f"{self.path}: {name}: frames {a - first} to {b - first - 1} cannot be read"):
                    piece = self._dataset(name)[selection]
                pieces.append(np.asarray(piece).reshape(-1, *frame_shape).astype(self.dtype, copy=False))
        return pieces[1] if len(pieces) == 2 else np.concatenate(pieces)

    def _dataset(self, name: str) -> h5py.Dataset:
        """A dataset, of which the last stays open: HDF5 drops its decoded chunks when it is closed.

        Not so a virtual one, which would keep those of all its sources.
        """
        if self._file is None:
            self._file = open_handle(self.path, self._cache)
        if self._open is None or self._open.name != name:
            self._open = None
            dataset = self._file[name]
            if dataset.is_virtual:
                return dataset
            self._open = dataset
        return self._open

    def stored_bytes(self) -> NDArray[np.int64] | None:
        """Bytes that each frame takes in its file, shape (frames,); 0 where never written; None if unknown.

        As they were when it was asked first.
        """
        return self._stored

    @cached_property
    def _stored(self) -> NDArray[np.int64] | None:
        parts = []
        with open_file(self.path) as file, refusing_damage(f"{self.path}: is cut or damaged"):
            for name in self.datasets:
                nbytes = frame_bytes(open_link(file, name), self.frame_ndim)
                if nbytes is None:
                    return None
                parts.append(nbytes)
        return np.concatenate(parts)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = self._open = None


def slabs(start: int, stop: int, lead: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Selections of the leading axes that together are frames `start` to `stop`, numbered in C order, the fewest.

    >>> frames = np.arange(16).reshape(4, 4)
    >>> [frames[selection].tolist() for selection in slabs(3, 9, (4, 4))]
    [[[3]], [[4, 5, 6, 7]], [[8]]]
    """
    if not lead:
        yield ()
        return
    inner = int(np.prod(lead[1:], dtype=np.int64))
    row, last = start // inner, stop // inner
    if start % inner:
        end = min(inner, stop - row * inner)
        yield from ((slice(row, row + 1), *rest) for rest in slabs(start % inner, end, lead[1:]))
        row += 1
    if row < last:
        yield (slice(row, last), *(slice(0, n) for n in lead[1:]))
    if last >= row and stop % inner:
        yield from ((slice(last, last + 1), *rest) for rest in slabs(0, stop % inner, lead[1:]))


def open_hdf5(path: str | os.PathLike[str], dataset: str | None = None, axes: Sequence[str] | None = None) -> Stack:
    """Open the frames of an HDF5 file.

    Parameters
    ----------
    path : str or path
    dataset : str, optional
        Path of the dataset, or of an NXdata group, in the file; else it is found (`tuner.read.nexus.find_frames`).
    axes : sequence of str, optional
        A name for each axis, those of a frame last; else as the file says.

    Raises
    ------
    InputError
        One line: no such file, not HDF5, cut, no frames in it, dtype or shape that cannot be frames, a missing linked
        file, a filter that is not installed.
    """
    path = os.fspath(path)
    with open_file(path) as file, refusing_damage(f"{path}: is cut or damaged"):
        names = find_frames(file, dataset)
        stack = _stack(file, path, names, axes)
        flats = _references(file, stack, names[0], flats=True)
        darks = _references(file, stack, names[0], flats=False)
        return replace(stack, flats=flats, darks=darks)


def _stack(file: h5py.File, path: str, names: tuple[str, ...], axes: Sequence[str] | None) -> Stack:
    nodes = [open_link(file, name) for name in names]
    place = f"{path}: {names[0]}"
    dtype = check_array(nodes[0].shape, nodes[0].dtype, place)
    shape = tuple(nodes[0].shape)
    if axes is None:
        found, interpretation = axis_names(file, names[0], len(shape))
    else:
        found, interpretation = check_axes(axes, shape, place), None
    ndim = frame_ndim(shape, found, interpretation)
    shapes = tuple(tuple(node.shape) for node in nodes)
    if len(nodes) > 1:
        for name, node in zip(names, nodes, strict=True):
            if check_array(node.shape, node.dtype, f"{path}: {name}") != dtype or node.shape[1:] != shape[1:]:
                raise InputError(
                    f"{path}: {name} must be like {names[0]}, {dtype}{shape[1:]}, got {node.dtype}{node.shape[1:]}"
                )
        if len(shape) <= ndim:
            raise InputError(f"{path}: {names[0]} must have an axis that numbers frames, got shape {shape}")
        shape = (sum(part[0] for part in shapes), *shape[1:])
    stored = [storage(node) for node in nodes]
    total = Storage(sum(part.nbytes for part in stored), stored[0].chunks, stored[0].filters)
    source = Hdf5Source(path, names, shapes, ndim, dtype, cache_nbytes(total, shape, ndim, dtype.itemsize))
    frame_shape = shape[len(shape) - ndim :]
    about = detector(file, names[0], int(np.prod(shape[: len(shape) - ndim], dtype=np.int64)), frame_shape)
    return Stack(
        name=path,
        shape=shape,
        frame_ndim=ndim,
        dtype=dtype,
        source=source,
        axes=found,
        mask=about.mask,
        invalid=_marks(nodes[0], dtype, about.saturation),
        saturation=about.saturation,
        underload=about.underload,
        kinds=about.kinds,
        photon_counting=about.photon_counting,
        switches_gain=about.switches_gain,
        storage=total,
        dataset=names[0],
    )


def _marks(node: h5py.Dataset, dtype: np.dtype[Any], saturation: float | None) -> tuple[int, ...]:
    """The values that mark invalid pixels, by convention and as the dataset says, each once."""
    # Where the mark is the declared saturation, a pixel that has it is saturated and no gap.
    usual = [value for value in convention(dtype) if value != saturation]
    return tuple(dict.fromkeys([*usual, *declared_marks(node, dtype)]))


def _references(file: h5py.File, stack: Stack, name: str, flats: bool) -> Stack | None:
    """The flat fields, or the darks, beside a stack, if they are frames of the same detector."""
    found = beside(file, name, flats)
    if found is None:
        return None
    node = file[found]
    shape = tuple(node.shape or ())
    lead = len(shape) - stack.frame_ndim
    if lead < 0 or shape[lead:] != stack.frame_shape or node.dtype.newbyteorder("=") != stack.dtype or 0 in shape:
        return None
    stored = storage(node)
    cache = cache_nbytes(stored, shape, stack.frame_ndim, stack.dtype.itemsize)
    source = Hdf5Source(stack.name, (found,), (shape,), stack.frame_ndim, stack.dtype, cache)
    return replace(
        stack,
        name=f"{stack.name}: {found}",
        shape=shape,
        source=source,
        axes=stack.axes if lead == len(stack.lead_shape) else (),
        kinds=None,
        storage=stored,
        dataset=found,
    )
