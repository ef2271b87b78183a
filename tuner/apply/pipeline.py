"""Prepare and encode chunks in threads, hand them on in order, with a bounded number in flight."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

from tuner.apply.checksum import with_checksum
from tuner.apply.cut import chunk_at
from tuner.apply.plugin import ChunkEncoder
from tuner.apply.prepare import Batch

Corner = tuple[int, ...]

#: Sees the place of a chunk, the chunk and its frame in the thread that encoded it; returns the frame to be written.
Check = Callable[[Corner, NDArray[Any], bytes], bytes]


def default_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Pipeline:
    """Chunks go in by `put`, and in the same order their bytes, checksum included, to `write` in the caller's thread.

    At most `depth` chunks, 2 * workers + 2, are in flight; `put` waits where there are more. An error of encoding or of
    `write` is raised by the `put` or `drain` that meets it.
    """

    def __init__(
        self,
        encoder: ChunkEncoder,
        write: Callable[[Corner, bytes], None],
        workers: int,
        check: Check | None = None,
    ) -> None:
        self.depth = 2 * workers + 2
        self._encoder = encoder
        self._check = check
        self._write = write
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="tuner-encode")
        self._pending: deque[tuple[Corner, Future[bytes]]] = deque()

    def put(self, place: Corner, batch: Batch, corner: Corner) -> None:
        """Encode the chunk of a batch that starts at `corner`; `write` gets it with its `place` in the dataset.

        The batch's frames must stay as they are until `write` has been called, or `depth` chunks later.
        """
        while len(self._pending) >= self.depth:
            self._write_next()
        self._pending.append((place, self._pool.submit(self._encode, place, batch, corner)))
        while self._pending and self._pending[0][1].done():
            self._write_next()

    def drain(self) -> None:
        """Wait until everything put in has been written."""
        while self._pending:
            self._write_next()

    def close(self) -> None:
        """Drop what has not been written, let the threads and the encoder go."""
        self._pending.clear()
        self._pool.shutdown(cancel_futures=True)
        self._encoder.close()

    def _encode(self, place: Corner, batch: Batch, corner: Corner) -> bytes:
        chunk = chunk_at(batch.prepared(), corner, self._encoder.chunk_shape)
        frame = self._encoder.encode(chunk)
        return with_checksum(frame if self._check is None else self._check(place, chunk, frame))

    def _write_next(self) -> None:
        # Let go of only when it is written: an interrupt here must not lose a chunk from the middle.
        place, encoded = self._pending[0]
        self._write(place, encoded.result())
        self._pending.popleft()
