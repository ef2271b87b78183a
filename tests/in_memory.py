"""Stacks and samples of frames in memory, for tests that need no file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.read.sampling import Run, Sample
from tuner.stack import Stack


class Memory:
    """A source of frames in memory; notes the most that were asked for at once."""

    def __init__(self, frames: NDArray[Any], stored: NDArray[np.int64] | None = None) -> None:
        self.frames = frames
        self.stored = stored
        self.most = 0

    def read(self, start: int, stop: int) -> NDArray[Any]:
        self.most = max(self.most, stop - start)
        return self.frames[start:stop].copy()

    def stored_bytes(self) -> NDArray[np.int64] | None:
        return self.stored

    def close(self) -> None:
        pass


def stack_of(frames: NDArray[Any], frame_ndim: int | None = None, name: str = "memory", **facts: Any) -> Stack:
    """Frames as a stack in native byte order; the first axis leads unless `frame_ndim` says otherwise."""
    ndim = frames.ndim - 1 if frame_ndim is None else frame_ndim
    frames = frames.astype(frames.dtype.newbyteorder("="), copy=False)
    source = Memory(frames.reshape(-1, *frames.shape[frames.ndim - ndim :]))
    return Stack(name, frames.shape, ndim, frames.dtype, source, **facts)


def sample_of(*runs: NDArray[Any]) -> Sample:
    """Runs of one stack, none next to another."""
    return Sample(tuple(Run(0, index * 1000, frames) for index, frames in enumerate(runs)))
