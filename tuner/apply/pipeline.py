"""Prepare and encode chunks in threads, write them in order in another, with a bounded number in flight."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.apply.checksum import Encoded, with_checksum
from tuner.apply.cut import chunk_at
from tuner.apply.encode import ROOM_NBYTES
from tuner.apply.plugin import ChunkEncoder
from tuner.apply.prepare import Batch

Corner = tuple[int, ...]

#: Sees the place of a chunk, the chunk, and its frame or why there is none, in the thread that encoded it; returns the
#: frame to be written.
Check = Callable[[Corner, NDArray[Any], Encoded | Exception], Encoded]


def default_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def depth_of(workers: int, chunks: int = 1) -> int:
    """How many chunks are in flight at most: 2 * workers + 8, or those of workers + 1 batches where that is more.

    With two for each thread alone, on few cores, threads wait for the caller's copy (decision 19).

    Parameters
    ----------
    workers : int
    chunks : int
        That a batch with steps is cut into: while one batch is encoded, others are prepared.
    """
    return max(2 * workers + 8, (workers + 1) * chunks)


@dataclass(slots=True, eq=False)
class _Chunk:
    """A chunk on its way to the file."""

    place: Corner
    row: _Row
    corner: Corner
    encoder: ChunkEncoder
    frame: Encoded | None = None
    """What is written; None until it is encoded."""
    memory: NDArray[np.uint8] | None = None
    """What the frame may lie in."""
    error: BaseException | None = None
    """Why it cannot be encoded."""


@dataclass(slots=True, eq=False)
class _Row:
    """The chunks of one batch: they are up for encoding once it is prepared."""

    batch: Batch
    prepared: bool = False
    chunks: list[_Chunk] = field(default_factory=list)
    """Those that came before it was prepared."""


class Pipeline:
    """Chunks go in by `put`, and in the same order their bytes, checksum included, to `write` in a thread of its own.

    No thread waits for another while there is something to be done: one prepares a batch while others encode the chunks
    of the batches before. At most `depth` chunks are in flight; `put` waits where there are more. An error of encoding
    or of `write` is raised by the next `put` or `drain`, and nothing that came after the chunk in question is written.
    One thread at a time puts and drains; interrupted, it may put the chunk again, drain and close. Where a thread
    cannot be started, also by an interrupt, those that were are gone before that is raised, and the encoder is closed.

    Parameters
    ----------
    encoder : ChunkEncoder
        Closed with the pipeline.
    write : callable
        Takes the place of a chunk and its bytes, which it must not keep: their memory is used again.
    workers : int
        Threads that prepare and encode.
    check : callable, optional
    depth : int, optional
        By default that of `workers`.
    """

    def __init__(
        self,
        encoder: ChunkEncoder,
        write: Callable[[Corner, Encoded], None],
        workers: int,
        check: Check | None = None,
        depth: int | None = None,
    ) -> None:
        self.depth = depth or depth_of(workers)
        self._encoder = encoder
        self._write = write
        self._check = check
        self._pending: deque[_Chunk] = deque()  # in the order of writing
        self._todo: deque[_Row | _Chunk] = deque()  # the oldest first
        self._row: _Row | None = None
        self._memory: list[NDArray[np.uint8]] = []  # of frames that are written, for others
        self._encoded = 0
        self._error: BaseException | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # something is to be done
        self._head = threading.Condition(self._lock)  # the next chunk to be written is encoded
        # Free once a chunk was written, or nothing more will be. The caller may be interrupted, and a condition would
        # be left without its lock: a caller waits for none, and takes the lock itself.
        self._room = threading.Lock()
        self._room.acquire()
        # They end with the process, so that what still runs when the interpreter exits may close a file.
        self._threads = [
            threading.Thread(target=self._encode_all, name=f"tuner-encode-{index}", daemon=True)
            for index in range(workers)
        ]
        self._threads.append(threading.Thread(target=self._write_all, name="tuner-write", daemon=True))
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.close()
            raise

    @property
    def waiting(self) -> int:
        """Chunks that are not written yet."""
        return len(self._pending)

    @property
    def backlog(self) -> int:
        """Chunks that are not encoded yet."""
        with self._lock:
            return len(self._pending) - self._encoded

    def put(self, place: Corner, batch: Batch, corner: Corner, encoder: ChunkEncoder | None = None) -> None:
        """Encode the chunk of a batch that starts at `corner`; `write` gets it with its `place` in the dataset.

        The batch's frames must stay as they are until `write` has been called, or `depth` chunks later. The chunks of a
        batch come one after the other. Another `encoder` may be given, which is not closed.
        """
        while True:
            with self._lock:
                self._raise()
                if len(self._pending) < self.depth:
                    if self._row is None or self._row.batch is not batch:
                        row = _Row(batch)
                        self._todo.append(row)
                        self._row = row
                    chunk = _Chunk(place, self._row, corner, encoder or self._encoder)
                    # Pending last: interrupted in between, it is encoded for nothing, and nobody waits for it.
                    (self._todo if self._row.prepared else self._row.chunks).append(chunk)
                    self._pending.append(chunk)
                    self._work.notify()
                    return
            self._wait()

    def drain(self) -> None:
        """Wait until everything put in has been written."""
        while True:
            with self._lock:
                self._raise()
                if not self._pending:
                    return
            self._wait()

    def close(self) -> None:
        """Drop what has not been written, let the threads and the encoder go; what is being done is done first."""
        with self._lock:
            self._closed = True
            self._drop()
        try:
            for thread in self._threads:
                if thread.is_alive():  # not all are, where one could not be started
                    thread.join()
        finally:
            self._encoder.close()

    def _wait(self) -> None:
        """Wait until the next chunk was written, or none will be."""
        with self._lock:
            self._work.notify()  # an interrupt may have come after something was to be done, and before that was told
        self._room.acquire()

    def _look_again(self) -> None:
        if self._room.locked():
            self._room.release()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _drop(self) -> None:
        self._todo.clear()
        self._pending.clear()
        self._encoded = 0
        self._row = None
        for condition in (self._work, self._head):
            condition.notify_all()
        self._look_again()

    def _encode_all(self) -> None:
        while True:
            with self._work:
                while not self._todo and not self._closed:
                    self._work.wait()
                if self._closed:
                    return
                task = self._todo.popleft()
                if isinstance(task, _Chunk) and self._memory:
                    task.memory = self._memory.pop()
            if isinstance(task, _Row):
                self._prepare(task)
            else:
                self._encode(task)
            del task

    def _prepare(self, row: _Row) -> None:
        error = None
        try:
            row.batch.prepared()
        except BaseException as raised:
            error = raised
        with self._work:
            row.prepared = True
            chunks, row.chunks = row.chunks, []  # a cycle would keep what is written in memory
            if self._closed or self._error is not None:
                return
            if error is not None:
                for chunk in chunks:
                    chunk.error = error
                self._encoded += len(chunks)
                self._head.notify()
                return
            # The oldest first: what is written next must not wait for what came later.
            self._todo.extendleft(reversed(chunks))
            self._work.notify(len(chunks))

    def _encode(self, chunk: _Chunk) -> None:
        frame: Encoded = b""
        error: BaseException | None = None
        try:
            pixels = chunk_at(chunk.row.batch.prepared(), chunk.corner, chunk.encoder.chunk_shape)
            if chunk.memory is None:
                chunk.memory = np.empty(pixels.nbytes + ROOM_NBYTES, np.uint8)
            try:
                frame = chunk.encoder.encode(pixels, chunk.memory)
                failure = None
            except Exception as raised:
                failure = raised
            if self._check is not None:
                frame = self._check(chunk.place, pixels, failure or frame)
            elif failure is not None:
                raise failure
            if chunk.encoder.container.checked:
                frame = with_checksum(frame)
        except BaseException as raised:
            error = raised
        with self._head:
            chunk.frame, chunk.error = frame, error
            if chunk in self._pending and not self._closed and self._error is None:
                self._encoded += 1
                if chunk is self._pending[0]:
                    self._head.notify()

    def _write_all(self) -> None:
        while True:
            with self._head:
                while not self._closed and not self._next_is_ready():
                    self._head.wait()
                if self._closed:
                    return
                chunk = self._pending[0]
            error = chunk.error
            if error is None:
                assert chunk.frame is not None
                try:
                    self._write(chunk.place, chunk.frame)
                except BaseException as raised:
                    error = raised
            with self._lock:
                if self._closed:
                    return
                if error is not None:
                    self._error = error
                    self._drop()
                else:
                    # Let go of only now that it is written: its frames may be overwritten.
                    self._pending.popleft()
                    self._encoded -= 1
                    if chunk.memory is not None:
                        self._memory.append(chunk.memory)
                    self._look_again()
            del chunk

    def _next_is_ready(self) -> bool:
        return bool(self._pending) and (self._pending[0].frame is not None or self._pending[0].error is not None)
