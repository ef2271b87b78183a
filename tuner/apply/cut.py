"""Whole frames to full chunks: one cutting for the writer, the repacker and the measurement."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def corners(shape: tuple[int, ...], chunk_shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The first index of each chunk of an array, in C order.

    >>> list(corners((3, 5), (2, 4)))
    [(0, 0), (0, 4), (2, 0), (2, 4)]
    """
    return itertools.product(*(range(0, size, extent) for size, extent in zip(shape, chunk_shape, strict=True)))


def tiles_of(frame_shape: tuple[int, ...], tile: tuple[int, ...]) -> int:
    """How many tiles a frame is cut into, those that reach over its edge included.

    >>> tiles_of((3, 5), (2, 4))
    4
    """
    return math.prod(-(-size // extent) for size, extent in zip(frame_shape, tile, strict=True))


def chunk_at(array: NDArray[Any], corner: tuple[int, ...], chunk_shape: tuple[int, ...]) -> NDArray[Any]:
    """The chunk whose first index is `corner`: C-contiguous, of full `chunk_shape`.

    A view where the array holds it so already; else a copy, padded with zeros where the chunk reaches over the edge.
    """
    part = array[tuple(slice(first, first + extent) for first, extent in zip(corner, chunk_shape, strict=True))]
    if part.shape == chunk_shape:
        return np.ascontiguousarray(part)
    chunk = np.zeros(chunk_shape, array.dtype)
    chunk[tuple(slice(size) for size in part.shape)] = part
    return chunk


def cut(frames: NDArray[Any], chunk_shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
    """Cut frames, shape (n, *frame_shape), into chunks of (frames, *tile); yield the first index of each and the chunk.

    >>> for corner, chunk in cut(np.arange(6).reshape(3, 2), (2, 2)):
    ...     print(corner, chunk.tolist())
    (0, 0) [[0, 1], [2, 3]]
    (2, 0) [[4, 5], [0, 0]]
    """
    for corner in corners(frames.shape, chunk_shape):
        yield corner, chunk_at(frames, corner, chunk_shape)


@dataclass(frozen=True, slots=True)
class Slab:
    """A run of frames that fills one row of chunks of a dataset."""

    corner: tuple[int, ...]
    """Its first index along the axes that number the frames."""
    extent: tuple[int, ...]
    """How much of each of these axes it takes; less than the chunk's at an edge."""
    start: int
    """Its first frame."""

    @property
    def stop(self) -> int:
        """The frame after its last."""
        return self.start + math.prod(self.extent)


def slabs(lead_shape: tuple[int, ...], lead_chunk: tuple[int, ...]) -> Iterator[Slab]:
    """The slabs of a dataset whose leading axes number its frames in C order, `lead_chunk` as `chunk_grid` has it.

    >>> [(slab.corner, slab.start, slab.stop) for slab in slabs((2, 3, 4), (1, 2, 4))]
    [((0, 0, 0), 0, 8), ((0, 2, 0), 8, 12), ((1, 0, 0), 12, 20), ((1, 2, 0), 20, 24)]
    >>> [(slab.corner, slab.start, slab.stop) for slab in slabs((), ())]
    [((), 0, 1)]
    """
    strides = [math.prod(lead_shape[axis + 1 :]) for axis in range(len(lead_shape))]
    for corner in corners(lead_shape, lead_chunk):
        extent = tuple(
            min(chunk, size - first) for first, chunk, size in zip(corner, lead_chunk, lead_shape, strict=True)
        )
        yield Slab(corner, extent, sum(first * stride for first, stride in zip(corner, strides, strict=True)))
