"""Which frames of a scan were given, which of them wait in memory, and which are written."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.apply.arrived import Undecoded
from tuner.apply.checksum import Encoded
from tuner.apply.cut import tiles_of
from tuner.apply.output import Output
from tuner.apply.runs import Runs, runs_of
from tuner.errors import InputError
from tuner.steps.reductions import Form

#: HDF5 numbers the chunks of a dataset in 32 bits; one that it cannot number would take what is open down with it.
_MOST_CHUNKS = 2**32


@dataclass(slots=True, eq=False)
class Slab:
    """The frames of one row of chunks, as they are filled in."""

    first: int
    """Number of its first frame."""
    frames: NDArray[Any]
    """Shape (n, *frame_shape)."""
    lossless: NDArray[np.bool_]
    """Which of them stay as they are, shape (n,); final once they are written."""
    undecoded: Undecoded = field(default_factory=Undecoded)
    """Which of them arrived compressed."""
    borrowed: bool = False
    """Whether the frames are in the caller's memory."""


class Ledger:
    """The account of one scan. What it holds grows with the frames that wait and with gaps, not with the scan.

    Parameters
    ----------
    output : Output
    frame_shape : tuple of int
    dtype : numpy.dtype
    fill : number
        What a missing frame reads as.
    chunk_shape : tuple of int
    depth : int
        Chunks in flight: what was submitted that many chunks ago is written.
    given : Form, optional
        What frames are as they are given, where they are reduced before they are written.
    """

    def __init__(
        self,
        output: Output,
        frame_shape: tuple[int, ...],
        dtype: np.dtype[Any],
        fill: Any,
        chunk_shape: tuple[int, ...],
        depth: int,
        given: Form | None = None,
    ) -> None:
        self.output = output
        self.end = 0
        """The frame after the last that was given."""
        self.gaps = Runs()
        """Frames before it that were not given."""
        self.open: dict[int, Slab] = {}
        """Slabs that are being filled, by their number."""
        self.lossless = Runs()
        """Frames that were written as they were given."""
        self.lost = Runs()
        """Gaps that cannot be filled any more."""
        self._nbytes = self._stored_nbytes = 0
        self._shape = (chunk_shape[0], *(frame_shape if given is None else given.frame_shape))
        self._dtype = dtype if given is None else given.dtype
        self._fill = fill if given is None else given.filler
        self._depth = depth
        self._most = _MOST_CHUNKS // tiles_of(frame_shape, chunk_shape[1:]) * chunk_shape[0]
        self._last_tile = tuple((n - 1) // c * c for n, c in zip(frame_shape, chunk_shape[1:], strict=True))
        self._chunk_nbytes = int(np.prod(chunk_shape)) * dtype.itemsize
        self._waiting: dict[int, Slab] = {}
        self._submitted = 0
        self._extent = self._extended = 0
        self._buffers: deque[tuple[int, NDArray[Any]]] = deque()

    @property
    def taken(self) -> int:
        """How many frames were given."""
        return self.end - self.gaps.total

    @property
    def stored(self) -> int:
        """The frame before which all that were given are written."""
        waiting = [*self._waiting.values(), *self.open.values()]
        return min((slab.first for slab in waiting), default=self.end)

    def check(self, start: int, count: int) -> None:
        """Raise InputError where frames cannot come here: given already, too late, or beyond what a file can number."""
        if start + count > self._most:
            raise InputError(f"frames {start} to {start + count - 1} must be below {self._most}, as HDF5 counts chunks")
        if start >= self.end:
            return
        stop = min(start + count, self.end)
        if self.gaps.count(start, stop) < stop - start:
            raise InputError(f"frames {start} to {stop - 1} must be new, got some of them before")
        if self.lost.meets(start, stop) or (stop > start and start < self.output.horizon(self.end - 1)):
            raise InputError(f"frames {start} to {stop - 1} come too late: what is around them is written already")

    def take(self, start: int, stop: int) -> None:
        """Note that frames were given and are in their slab."""
        if start < self.end:
            self.gaps.remove(start, stop)
        elif start > self.end:
            self.gaps.add(self.end, start)
        if stop > self.end:
            self.end = stop

    def slab(self, number: int, lent: NDArray[Any] | None = None) -> Slab:
        """The slab of a number, to be filled; one that is not open yet may be lent all of its frames."""
        slab = self.open.get(number)
        if slab is None and lent is not None:
            slab = self.open[number] = Slab(number * len(lent), lent, np.zeros(len(lent), np.bool_), borrowed=True)
        elif slab is None:
            # What was submitted `depth` chunks ago is written: its memory is free.
            free = self._buffers and self._submitted - self._buffers[0][0] >= self._depth
            frames = self._buffers.popleft()[1] if free else np.empty(self._shape, self._dtype)
            slab = self.open[number] = Slab(number * len(frames), frames, np.zeros(len(frames), np.bool_))
        return slab

    def complete(self, slab: Slab) -> bool:
        """Whether all frames of a slab were given."""
        stop = slab.first + len(slab.frames)
        return stop <= self.end and not (self.gaps.total and self.gaps.meets(slab.first, stop))

    def seal(self, slab: Slab, last: bool) -> NDArray[Any]:
        """The frames of a slab that is now written; missing ones have the fill value.

        Those after the last frame of all are missing, too, as others will follow; unless the slab is the last.
        """
        stop = slab.first + len(slab.frames)
        if last:
            stop = min(stop, self.end)
        for first, after in (*self.gaps.within(slab.first, stop), (self.end, stop)):
            if first < after:
                slab.frames[first - slab.first : after - slab.first] = self._fill
                self.lost.add(first, after)
        self._waiting[slab.first] = slab
        self._extent = max(self._extent, stop)
        return slab.frames[: stop - slab.first]

    def submitted(self, number: int, chunks: int) -> None:
        """Note that the chunks of a slab were handed on."""
        slab = self.open.pop(number)
        self._submitted += chunks
        if not slab.borrowed:
            self._buffers.append((self._submitted, slab.frames))

    def write(self, place: tuple[int, ...], chunk: Encoded) -> None:
        """Write a chunk of a slab."""
        # Here, as the output is used by one thread at a time and the one that seals slabs is not to wait for it.
        if self._extent > self._extended:
            self._extended = self._extent
            self.output.extend(self._extended)
        self.output.write(place, chunk)
        self._nbytes += self._chunk_nbytes
        self._stored_nbytes += len(chunk)
        if place[1:] != self._last_tile:
            return
        slab = self._waiting.pop(place[0], None)
        if slab is not None and slab.lossless.any():
            for first, after in runs_of(slab.lossless):
                self.lossless.add(slab.first + first, slab.first + after)

    def recent_ratio(self) -> float | None:
        """Bytes of the chunks written since this was asked last by what they take; None where there are none."""
        ratio = self._nbytes / self._stored_nbytes if self._stored_nbytes else None
        self._nbytes = self._stored_nbytes = 0
        return ratio
