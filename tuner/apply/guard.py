"""What is written is verified: does a chunk decode to what was encoded, do frames keep what is promised of them."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.apply.checksum import Encoded
from tuner.apply.plugin import ChunkEncoder
from tuner.apply.runs import Runs
from tuner.errors import CodecError, InputError

#: Of how many things one is looked at, by the words of `verify=`; 0 is none.
EVERY = {"off": 0, "sample": 64, "all": 1}

_log = logging.getLogger(__name__)


class Watch:
    """Which of many things that threads do are verified: the first of every thread and one in so many, or all.

    Once one was found wrong, all are.

    Parameters
    ----------
    verify : "off", "sample" or "all"
    """

    def __init__(self, verify: str) -> None:
        if verify not in EVERY:
            raise InputError(f"verify must be 'off', 'sample' or 'all', got {verify!r}")
        self.found = 0
        """How many were wrong."""
        self._every = EVERY[verify]
        self._count = itertools.count(1)
        self._thread = threading.local()
        self._lock = threading.Lock()

    def due(self) -> bool:
        """Whether the one at hand is to be looked at."""
        if self._every <= 1:
            return self._every == 1
        first = not hasattr(self._thread, "seen")
        self._thread.seen = True
        return next(self._count) % self._every == 0 or first

    def report(self, what: str, count: int = 1) -> None:
        """Say that so many were wrong; logged at first, and whenever their number has doubled."""
        with self._lock:
            before, self.found = self.found, self.found + count
            self._every = 1
        if before.bit_length() != self.found.bit_length():
            _log.warning("%s (%d so far)", what, self.found)


class Verifier:
    """Decodes frames that were encoded; where one does not return its chunk, bit for bit, makes another one.

    It does so, too, where a chunk cannot be encoded at all.

    Safe to share between threads.

    Parameters
    ----------
    encoder : ChunkEncoder
        What the frames were encoded with.
    instead : sequence of ChunkEncoder
        Lossless ones, tried in their order.
    watch : Watch
    """

    def __init__(self, encoder: ChunkEncoder, instead: Sequence[ChunkEncoder], watch: Watch) -> None:
        self.watch = watch
        self.replaced = Runs()
        """Frames with a chunk that was made otherwise."""
        self._encoder = encoder
        self._instead = instead
        self._lock = threading.Lock()
        self._decoded = threading.local()

    def __call__(self, place: tuple[int, ...], chunk: NDArray[Any], frame: Encoded | Exception) -> Encoded:
        """The frame to be written for the chunk at a place, of which there is one, or the reason why there is none.

        Raises
        ------
        CodecError
            Where no encoder makes a frame that returns the chunk.
        """
        if isinstance(frame, Exception):
            what = f"a chunk cannot be encoded, {frame or type(frame).__name__}"
        elif not self.watch.due() or self._returns(self._encoder, frame, chunk):
            return frame
        else:
            what = "a chunk decodes to something else"
        first, stop = place[0], place[0] + len(chunk)
        with self._lock:
            self.replaced.add(first, stop)
        self.watch.report(f"frames {first} to {stop - 1}: {what}, written otherwise")
        for encoder in self._instead:
            with contextlib.suppress(Exception):
                frame = encoder.encode(chunk)
                if self._returns(encoder, frame, chunk):
                    return frame
        raise CodecError(f"frames {first} to {stop - 1}: no codec returns them as they are")

    def _returns(self, encoder: ChunkEncoder, frame: Encoded, chunk: NDArray[Any]) -> bool:
        out = getattr(self._decoded, "chunk", None)
        if out is None:
            out = self._decoded.chunk = np.empty(chunk.shape, chunk.dtype)
        # What is left of an earlier chunk must not pass for this one.
        np.bitwise_not(chunk.reshape(-1).view(np.uint8)[-1:], out=out.reshape(-1).view(np.uint8)[-1:])
        try:
            encoder.decode(frame, out)
        except CodecError:
            return False
        whole = f"u{chunk.dtype.itemsize}"
        return np.array_equal(out.view(whole), chunk.view(whole))
