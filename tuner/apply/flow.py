"""The way of frames through a writer: collected until a chunk is full, encoded in threads, written in their order."""

from __future__ import annotations

import contextlib
import json
import operator
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.apply.arrived import Arrivals, CompressedFrame
from tuner.apply.cut import corners, tiles_of
from tuner.apply.drift import Drift
from tuner.apply.guard import Verifier, Watch
from tuner.apply.ledger import Ledger
from tuner.apply.output import Output
from tuner.apply.overload import Shedding
from tuner.apply.pipeline import Pipeline, depth_of
from tuner.apply.plugin import ChunkEncoder, FallbackEncoder
from tuner.apply.prepare import Batch, Preparation
from tuner.apply.scan_file import Layout
from tuner.errors import InputError, OverloadError

#: Frames of one `append`: an array, or a list of one frame that arrived compressed.
Frames = NDArray[Any] | list[CompressedFrame]


class Flow:
    """Takes the frames of one dataset, of which it holds those that wait; used by one thread at a time.

    What goes wrong on the way, as OSError, RuntimeError or CodecError, is raised by the next call. An interrupted call
    may be made again.

    Parameters
    ----------
    output : Output
    layout : Layout
    preparation : Preparation
    lossless : sequence of ChunkEncoder
        What takes the place of the layout's encoder where that fails, each faster than the one before.
    watch : Watch
        Which frames are held to what the profile promises of them.
    verify : "off", "sample" or "all"
        Which chunks are decoded.
    workers : int
    on_drift, on_overload : str
        As of `open_writer`.
    """

    def __init__(
        self,
        output: Output,
        layout: Layout,
        preparation: Preparation,
        lossless: Sequence[ChunkEncoder],
        watch: Watch,
        *,
        verify: str,
        workers: int,
        on_drift: str,
        on_overload: str,
    ) -> None:
        self._output = output
        self._encoder = layout.encoder
        self._chunk_shape = layout.encoder.chunk_shape
        self._frame_shape = layout.frame_shape
        self._preparation = preparation
        self._watch = watch
        self._verifier = Verifier(layout.encoder, lossless, Watch(verify))
        self._tiles = tiles_of(layout.frame_shape, self._chunk_shape[1:])
        self._workers = workers
        self._most_open = depth_of(workers)
        depth = depth_of(workers, self._tiles if preparation.changes else 1)
        given = None if preparation.chain is None else preparation.chain.before
        self.ledger = Ledger(output, layout.frame_shape, layout.dtype, layout.fill, self._chunk_shape, depth, given)
        self._on_drift = on_drift
        self.drift = Drift(layout.profile, preparation.pixels, preparation.chain)
        self._look = partial(_look, self.drift, self.ledger, threading.Lock())
        self._arrivals = Arrivals(layout.fill if given is None else given.filler, self._look)
        self._refuse = on_overload == "raise"
        self._shedding = Shedding(lossless if on_overload == "shed" else (), depth)
        self._pipeline = Pipeline(layout.encoder, self.ledger.write, workers, self._verifier, depth)

    @property
    def waiting(self) -> int:
        """Chunks that wait to be encoded or written, at most `depth`."""
        return self._pipeline.waiting

    @property
    def depth(self) -> int:
        """Chunks in flight at most."""
        return self._pipeline.depth

    def start_of(self, index: int | None, count: int) -> int:
        """The number of the first of so many frames that are to be taken.

        Raises
        ------
        InputError
            Where none of that number can come any more.
        OverloadError
            Where there is no room and none is waited for.
        """
        start = self.ledger.end
        if index is not None:
            if not hasattr(index, "__index__") or index < 0:
                raise InputError(f"index must be a whole number >= 0, got {index!r}")
            start = operator.index(index)
            self.ledger.check(start, count)
        if self._refuse:
            self._check_room(start, count)
        return start

    def take(self, frames: Frames, start: int, lossless: bool, lent: bool = False) -> None:
        """Take frames from a number on, as `start_of` gives it; the chunks that they fill are encoded."""
        ledger, size = self.ledger, self._chunk_shape[0]
        lossless |= self._on_drift == "lossless" and bool(self.drift.outside)
        done = 0
        while done < len(frames):
            number, offset = divmod(start + done, size)
            if number not in ledger.open:
                self._give_up(self._output.horizon(start + done))
            part = frames[done : done + size - offset]
            count = len(part)
            if isinstance(part, list):
                slab = ledger.slab(number)
                slab.undecoded.add(offset, part[0])
            else:
                slab = ledger.slab(number, part if lent and count == size else None)
                if not slab.borrowed:
                    slab.frames[offset : offset + count] = part
            if lossless:
                slab.lossless[offset : offset + count] = True
            ledger.take(start + done, start + done + count)
            if not isinstance(part, list) and not lossless and self.drift.due():
                self._look(start + done, part)
            done += count
            if ledger.complete(slab):
                self._submit(number)
        while len(ledger.open) > self._most_open:
            self._submit(min(ledger.open))

    def end(self) -> None:
        """Have all that is left encoded, the last chunk padded."""
        for number in sorted(self.ledger.open):
            self._submit(number, last=True)

    def drain(self) -> None:
        """Wait until all whole chunks are written."""
        self._pipeline.drain()

    def stop(self) -> None:
        """Let the threads and the encoder go; what has not been written is dropped."""
        self._pipeline.close()
        self.drift.close()

    def notes(self) -> dict[str, Any]:
        """Attributes of what is only known by now."""
        notes: dict[str, Any] = {"tuner_workers": np.int64(self._workers), **self._shedding.notes()}
        if isinstance(self._encoder, FallbackEncoder):
            notes["tuner_fallback_chunks"] = np.int64(self._encoder.fallbacks)
        if self._preparation.steps:
            notes["tuner_lossless_frames"] = self.ledger.lossless.array()
        if self._arrivals.damaged.total:
            notes["tuner_damaged_frames"] = self._arrivals.damaged.array()
        if self.ledger.gaps.total:
            notes["tuner_missing_frames"] = self.ledger.gaps.array()
        if self._watch.found:
            notes["tuner_broken_frames"] = np.int64(self._watch.found)
        if self._verifier.watch.found:
            notes["tuner_replaced_chunks"] = np.int64(self._verifier.watch.found)
            notes["tuner_replaced_frames"] = self._verifier.replaced.array()
        if self.drift.outside:
            notes["tuner_outside_envelope"] = json.dumps(self.drift.outside)
        return notes

    def _check_room(self, start: int, count: int) -> None:
        size = self._chunk_shape[0]
        chunks = (start % size + count) // size * self._tiles
        waiting = self._pipeline.waiting
        if chunks and waiting and waiting + chunks > self._pipeline.depth:
            raise OverloadError(
                f"frames {start} to {start + count - 1} come too fast: {waiting} chunks wait to be written, at most"
                f" {self._pipeline.depth} may"
            )

    def _give_up(self, horizon: int) -> None:
        """Write what can no longer be completed."""
        for number in sorted(n for n, slab in self.ledger.open.items() if slab.first < horizon):
            self._submit(number)

    def _submit(self, number: int, last: bool = False) -> None:
        slab = self.ledger.open[number]
        frames = self.ledger.seal(slab, last)
        faster = self._shedding.encoder(self._pipeline.backlog, slab.first, slab.first + len(frames))
        if faster is not None:
            slab.lossless[:] = True
        kept = slab.lossless[: len(frames)]
        decode = partial(self._arrivals.decode, slab.undecoded, slab.first, frames, kept)
        kept_whole = faster is not None and self._preparation.chain is None
        batch = Batch(frames, None if kept_whole else self._preparation, kept, decode)
        chunks = 0
        for corner in corners((len(frames), *self._frame_shape), self._chunk_shape):
            self._pipeline.put((slab.first, *corner[1:]), batch, corner, faster)
            chunks += 1
        # Counted last: interrupted before, the slab is put again, byte for byte the same.
        self.ledger.submitted(number, chunks)


def _look(drift: Drift, ledger: Ledger, lock: threading.Lock, number: int, frames: NDArray[Any]) -> None:
    """Look at frames, if it is time for that; those of a detector may come decoded from several threads."""
    # When the interpreter exits, no thread starts any more.
    with lock, contextlib.suppress(RuntimeError):
        if drift.due():
            drift.look(number, frames, ledger.recent_ratio)
