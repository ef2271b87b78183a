"""The streaming writer: frames of a running acquisition to an HDF5 file that opens without us."""

from __future__ import annotations

import contextlib
import json
import math
import operator
import os
import threading
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tuner.apply.arrived import Arrivals, CompressedFrame
from tuner.apply.closing import OPEN, close_quietly, flush_regularly
from tuner.apply.cut import corners, tiles_of
from tuner.apply.drift import Drift
from tuner.apply.guard import Verifier, Watch
from tuner.apply.ledger import Ledger
from tuner.apply.output import Output, SingleFile
from tuner.apply.overload import Shedding
from tuner.apply.pipeline import Pipeline, depth_of
from tuner.apply.plugin import FallbackEncoder, lossless_encoders, open_encoder
from tuner.apply.prepare import Batch, Preparation, chain_of
from tuner.apply.rolling import RollingFiles
from tuner.apply.scan_file import Layout
from tuner.apply.target import check_target, reason
from tuner.container import BLOSC2, Container
from tuner.errors import CodecError, InputError, OverloadError, TunerError
from tuner.profile import Profile

#: Frames of one `append`: an array, or a list of one frame that arrived compressed.
Frames = NDArray[Any] | list[CompressedFrame]


class Writer:
    """Encodes frames in threads and writes them in order; made by `open_writer`, used by one thread.

    Frames collect in memory until a chunk is full. At most 2 * workers + 8 chunks wait to be encoded or written, beyond
    that `append` blocks: the memory used is that of as many chunks, and of one row of chunks being filled; of as many
    rows where frames come out of order. The file is not locked, so that other processes may read it meanwhile.
    Beyond what `flush` acknowledged, a process killed in the middle of one may leave frames that cannot be read or that
    read as invalid: NaN, the maximum of unsigned integers, -1 of int32; other dtypes have no such value, and get 0.
    (HDF5 lets the same process open it again only with ``locking=False`` too.) A writer that is forgotten, or open when
    the interpreter exits, closes its file.
    """

    def __init__(
        self,
        path: Path,
        profile: Profile,
        dataset: str,
        frame_shape: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        mask: NDArray[np.bool_] | None,
        fields: Mapping[str, Any],
        eiger: bool,
        beside: Writer | None,
        container: Container,
        overwrite: bool,
        access: str,
        roll_every: int,
        flush_every: tuple[float, float],
        workers: int,
        verify: str,
        on_drift: str,
        on_overload: str,
    ) -> None:
        self._closed = True
        self.path = path
        self._dtype = dtype
        self._frame_shape = frame_shape
        profile.match.check(dtype, frame_shape, str(path))
        if (profile.config.steps or profile.reduce) and profile.invalid.mask is not None and mask is None:
            raise InputError(f"{path}: mask must be given, as the profile's steps leave masked pixels as they are")
        chain = chain_of(profile, frame_shape, dtype, mask, str(path))
        if chain is not None:  # what is written
            frame_shape, dtype, mask = chain.after.frame_shape, chain.after.dtype, chain.after.mask
        self._stored_shape = frame_shape
        config = container.resolve(profile.config, frame_shape, dtype)
        self._watch = Watch(verify)
        if profile.provisional and verify != "all":
            raise InputError(
                f"{path}: verify must be 'all' for a provisional profile, as too few frames prove what its"
                f" steps do, got {verify!r}"
            )
        self._preparation = Preparation(profile, mask, self._watch, chain)
        if beside is None:
            check_target(path, overwrite)
        self._encoder = open_encoder(config, profile.fallback.blosc2, dtype, container=container)
        # One codec is declared for all chunks of bitshuffle: there is nothing else to encode them with.
        lossless = lossless_encoders(profile.fallback.blosc2, config, dtype) if container is BLOSC2 else [self._encoder]
        self._verifier = Verifier(self._encoder, lossless, Watch(verify))
        self._chunk_shape = config.chunks
        layout = Layout(dataset, frame_shape, dtype, self._encoder, profile, mask, fields, eiger)
        output: Output
        each = -(-roll_every // config.chunks[0]) * config.chunks[0]
        try:
            if beside is not None:
                output = beside._share(layout, each)
            elif access == "rolling":
                output = RollingFiles(path, layout, overwrite, each)
            else:
                output = SingleFile(path, layout, overwrite, swmr=access == "swmr")
        except OSError as error:
            self._encoder.close()
            raise TunerError(f"{path}: cannot be created: {reason(error)}") from None
        except BaseException:
            self._encoder.close()
            raise
        # No cycle leads back to the writer: it is closed as soon as it is forgotten.
        self._tiles = tiles_of(frame_shape, config.chunks[1:])
        depth = depth_of(workers, self._tiles if self._preparation.changes else 1)
        given = None if chain is None else chain.before
        self._ledger = Ledger(output, frame_shape, dtype, layout.fill, config.chunks, depth, given)
        self._workers = workers
        self._most_open = depth_of(workers)
        self._refuse = on_overload == "raise"
        self._shedding = Shedding(lossless if on_overload == "shed" else (), depth)
        self._output = output
        self._drift = Drift(profile, self._preparation.pixels, chain)
        self._look = partial(_look, self._drift, self._ledger, threading.Lock())
        self._arrivals = Arrivals(layout.fill if given is None else given.filler, self._look)
        self._on_drift = on_drift
        self._flush_frames, self._flush_seconds = flush_every
        self._flushed = 0
        self._safe = 0
        self._error: TunerError | None = None
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._finished = False
        try:
            self._pipeline = Pipeline(self._encoder, self._ledger.write, workers, self._verifier, depth)
        except BaseException as error:
            output.save(0, {})
            if isinstance(error, RuntimeError):  # the system gives no more threads
                raise TunerError(f"{path}: cannot be written: {error}") from None
            raise
        self._closed = False
        OPEN.add(self)
        if self._flush_seconds < math.inf:
            arguments = (weakref.ref(self), self._flush_seconds, self._ended)
            threading.Thread(target=flush_regularly, args=arguments, name="tuner-flush", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Chunks that wait to be encoded or written, at most `depth`."""
        return self._pipeline.waiting

    @property
    def depth(self) -> int:
        """Chunks in flight at most; beyond, `append` waits or refuses."""
        return self._pipeline.depth

    @property
    def frames_written(self) -> int:
        """Frames that `append` has taken; `flush` says how many of them are safe."""
        return self._ledger.taken

    def append(self, frames: ArrayLike, *, index: int | None = None, lossless: bool = False, copy: bool = True) -> None:
        """Take one frame, shape `frame_shape`, or several, shape (n, *frame_shape); the caller may reuse its buffer.

        Parameters
        ----------
        frames : array
            Or what numpy makes one of, such as a list of frames.
        index : int, optional
            Number of the first of them in the scan, counted from 0; by default they follow the last. Frames that are
            left out keep the fill value and are listed in the file, until they come.
        lossless : bool
            Whether the profile's steps leave them as they are: flats and darks, which are divided into every frame.
        copy : bool
            False where the caller leaves the frames as they are until it has given `depth` more chunks, or `flush` or
            `close` has returned: contiguous frames that fill whole chunks are then encoded from where they are.

        Raises
        ------
        InputError
            For another shape or dtype, frames that were given before, or that come when what is around them has been
            written; nothing of `frames` is taken and the writer goes on.
        OverloadError
            With ``on_overload="raise"``, where there is no room; nothing of `frames` is taken and the writer goes on.
        TunerError
            Where the file cannot be written; it names the first frame that is not safe, and the writer is closed.
        """
        # numpy loads masked arrays when they are first asked for.
        if type(frames) is not np.ndarray and isinstance(frames, np.ma.MaskedArray) and np.ma.is_masked(frames):
            raise InputError(
                f"{self.path}: frames must have no masked pixels, as the file has one mask for all frames: give them"
                " filled, and mask= to open_writer"
            )
        try:
            frames = np.asarray(frames)
        except ValueError as error:  # a list of frames of several shapes
            raise InputError(f"{self.path}: frames must be one array: {error}") from None
        if frames.dtype != self._dtype and frames.dtype.newbyteorder("=") != self._dtype:
            raise InputError(f"{self.path}: frames must be {self._dtype}, got {frames.dtype}")
        ndim = len(self._frame_shape)
        if frames.shape == self._frame_shape:
            frames = frames[None]
        elif frames.shape[-ndim:] != self._frame_shape or frames.ndim > ndim + 1:
            many = ", ".join(map(str, ("n", *self._frame_shape)))
            raise InputError(f"{self.path}: frames must have shape {self._frame_shape} or ({many}), got {frames.shape}")
        self._admit(frames, index, lossless, not copy and frames.flags.c_contiguous and frames.dtype == self._dtype)

    def append_compressed(
        self,
        data: bytes | bytearray | memoryview,
        compression: str = "bslz4",
        *,
        index: int | None = None,
        lossless: bool = False,
    ) -> None:
        """Take one frame that arrives compressed, to be decoded in the threads that encode; `data` may be reused.

        Parameters
        ----------
        data : bytes
            As Dectris' stream has it, or a chunk of HDF5's filters bitshuffle (32008) and lz4 (32004).
        compression : "bslz4", "bszstd", "lz4" or "lz4-block"
            The last is LZ4 without HDF5's header, as the first version of the stream has it.
        index, lossless
            As of `append`.

        Raises
        ------
        InputError
            As by `append`, and where `data` does not begin as a frame of this shape and dtype; nothing of it is taken
            and the writer goes on. What is found damaged later reads as missing and is listed in the file.
        OverloadError, TunerError
            As by `append`.
        """
        frame = CompressedFrame(bytes(data), compression)
        try:
            frame.check(self._dtype, math.prod(self._frame_shape) * self._dtype.itemsize)
        except InputError as error:
            raise InputError(f"{self.path}: frame {self._ledger.end if index is None else index}: {error}") from None
        self._admit([frame], index, lossless)

    def flush(self) -> int:
        """Write all whole chunks; return how many frames survive the death of this process.

        All frames given by now whose number is below that. Frames of a chunk that is not full yet stay in memory, as a
        chunk that a reader may have seen is never written again. In rolling access, those in finished files.
        """
        return self._acknowledge(sync=False)

    def sync(self) -> int:
        """Flush, and have the disk hold it; return how many frames survive the death of this machine."""
        return self._acknowledge(sync=True)

    def close(self) -> None:
        """Write what is left, the last chunk padded, and close the file; once closed it does nothing."""
        with self._lock:
            if self._closed:
                return
            if not self._finished:  # interrupted after that, only what is left is done
                for number in sorted(self._ledger.open):
                    self._submit(number, last=True)
                self._acknowledge(sync=False)
                try:
                    self._output.close(self._notes())
                except (OSError, RuntimeError) as error:
                    raise self._fail(error) from None
                self._finished = True
            self._end()

    def leave(self) -> None:
        """In a process that was forked from the writer's: have nothing to do with its file, which that one writes."""
        self._lock = threading.RLock()  # whoever held it is not here
        self._error = InputError(
            f"{self.path}: the writer must be used by process {os.getppid()}, which opened it, got process"
            f" {os.getpid()}, which was forked from it"
        )
        self._closed = True

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.path}: a writer belongs to its process and cannot be copied or pickled")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        if self._pipeline.is_here:
            threading.Thread(target=close_quietly, args=(self,), name="tuner-close", daemon=False).start()
        else:
            close_quietly(self)

    def _admit(self, frames: Frames, index: int | None, lossless: bool, lent: bool = False) -> None:
        with self._lock:
            self._check_open()
            start = self._ledger.end if index is None else self._check_index(index, len(frames))
            if self._refuse:
                self._check_room(start, len(frames))
            self._take(frames, start, lossless, lent)
            if self._ledger.taken - self._flushed >= self._flush_frames:
                self.flush()

    def _share(self, layout: Layout, frames: int) -> Output:
        with self._lock:
            self._check_open()
            if self._ledger.end:
                raise InputError(f"{self.path}: takes another dataset before the first frame only")
            return self._output.beside(layout, frames)

    def _take(self, frames: Frames, start: int, lossless: bool, lent: bool) -> None:
        ledger, size = self._ledger, self._chunk_shape[0]
        lossless |= self._on_drift == "lossless" and bool(self._drift.outside)
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
            if not isinstance(part, list) and not lossless and self._drift.due():
                self._look(start + done, part)
            done += count
            if ledger.complete(slab):
                self._submit(number)
        while len(ledger.open) > self._most_open:
            self._submit(min(ledger.open))

    def _check_index(self, index: int, count: int) -> int:
        try:
            if not hasattr(index, "__index__") or index < 0:
                raise InputError(f"index must be a whole number >= 0, got {index!r}")
            start = operator.index(index)
            self._ledger.check(start, count)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None
        return start

    def _check_room(self, start: int, count: int) -> None:
        size = self._chunk_shape[0]
        chunks = (start % size + count) // size * self._tiles
        waiting = self._pipeline.waiting
        if chunks and waiting and waiting + chunks > self._pipeline.depth:
            raise OverloadError(
                f"{self.path}: frames {start} to {start + count - 1} come too fast: {waiting} chunks wait to be"
                f" written, at most {self._pipeline.depth} may"
            )

    def _give_up(self, horizon: int) -> None:
        """Write what can no longer be completed."""
        for number in sorted(n for n, slab in self._ledger.open.items() if slab.first < horizon):
            self._submit(number)

    def _submit(self, number: int, last: bool = False) -> None:
        try:
            slab = self._ledger.open[number]
            frames = self._ledger.seal(slab, last)
            faster = self._shedding.encoder(self._pipeline.backlog, slab.first, slab.first + len(frames))
            if faster is not None:
                slab.lossless[:] = True
            kept = slab.lossless[: len(frames)]
            decode = partial(self._arrivals.decode, slab.undecoded, slab.first, frames, kept)
            kept_whole = faster is not None and self._preparation.chain is None
            batch = Batch(frames, None if kept_whole else self._preparation, kept, decode)
            chunks = 0
            for corner in corners((len(frames), *self._stored_shape), self._chunk_shape):
                self._pipeline.put((slab.first, *corner[1:]), batch, corner, faster)
                chunks += 1
            # Counted last: interrupted before, the slab is put again, byte for byte the same.
            self._ledger.submitted(number, chunks)
        except (OSError, RuntimeError, CodecError) as error:
            raise self._fail(error) from None

    def _acknowledge(self, sync: bool) -> int:
        with self._lock:
            self._check_open()
            self._flushed = self._ledger.taken
            try:
                self._pipeline.drain()
                acknowledge = self._output.sync if sync else self._output.flush
                self._safe = acknowledge(self._ledger.stored, self._notes())
            except (OSError, RuntimeError, CodecError) as error:
                raise self._fail(error) from None
            return self._safe

    def _notes(self) -> dict[str, Any]:
        """Attributes of what is only known by now."""
        notes: dict[str, Any] = {"tuner_workers": np.int64(self._workers), **self._shedding.notes()}
        if isinstance(self._encoder, FallbackEncoder):
            notes["tuner_fallback_chunks"] = np.int64(self._encoder.fallbacks)
        if self._preparation.steps:
            notes["tuner_lossless_frames"] = self._ledger.lossless.array()
        if self._arrivals.damaged.total:
            notes["tuner_damaged_frames"] = self._arrivals.damaged.array()
        if self._ledger.gaps.total:
            notes["tuner_missing_frames"] = self._ledger.gaps.array()
        if self._watch.found:
            notes["tuner_broken_frames"] = np.int64(self._watch.found)
        if self._verifier.watch.found:
            notes["tuner_replaced_chunks"] = np.int64(self._verifier.watch.found)
            notes["tuner_replaced_frames"] = self._verifier.replaced.array()
        if self._drift.outside:
            notes["tuner_outside_envelope"] = json.dumps(self._drift.outside)
        return notes

    def _fail(self, error: BaseException) -> TunerError:
        """Close the file with the frames that are complete in it, and say which is the first that is not."""
        self._end()
        safe = self._output.save(self._ledger.stored, self._notes())
        self._error = TunerError(
            f"{self.path}: {reason(error)}: frames from {safe} on are not safely written, those before can be read"
        )
        return self._error

    def _end(self) -> None:
        self._ended.set()
        self._pipeline.close()
        self._drift.close()
        self._closed = True
        OPEN.discard(self)

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise InputError(f"{self.path}: the writer is closed")


def _look(drift: Drift, ledger: Ledger, lock: threading.Lock, number: int, frames: NDArray[Any]) -> None:
    """Look at frames, if it is time for that; those of a detector may come decoded from several threads."""
    # When the interpreter exits, no thread starts any more.
    with lock, contextlib.suppress(RuntimeError):
        if drift.due():
            drift.look(number, frames, ledger.recent_ratio)
