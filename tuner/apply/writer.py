"""The streaming writer: frames of a running acquisition to an HDF5 file that opens without us."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tuner.apply.arrived import CompressedFrame
from tuner.apply.closing import OPEN, close_forgotten, flush_regularly
from tuner.apply.flow import Flow, Frames
from tuner.apply.guard import Watch
from tuner.apply.output import Output, SingleFile
from tuner.apply.plugin import lossless_encoders, open_encoder
from tuner.apply.prepare import Preparation, chain_of
from tuner.apply.rolling import RollingFiles
from tuner.apply.scan_file import Layout
from tuner.apply.target import check_target, reason
from tuner.container import BLOSC2, Container
from tuner.errors import CodecError, InputError, OverloadError, TunerError
from tuner.profile import Profile

#: What may go wrong on the way to the file.
FAILURES = (OSError, RuntimeError, MemoryError, CodecError)


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
        config = container.resolve(profile.config, frame_shape, dtype)
        watch = Watch(verify)
        if profile.provisional and verify != "all":
            raise InputError(
                f"{path}: verify must be 'all' for a provisional profile, as too few frames prove what its"
                f" steps do, got {verify!r}"
            )
        preparation = Preparation(profile, mask, watch, chain)
        if beside is None:
            check_target(path, overwrite)
        encoder = open_encoder(config, profile.fallback.blosc2, dtype, container=container)
        # One codec is declared for all chunks of bitshuffle: there is nothing else to encode them with.
        lossless = lossless_encoders(profile.fallback.blosc2, config, dtype) if container is BLOSC2 else [encoder]
        layout = Layout(dataset, frame_shape, dtype, encoder, profile, mask, fields, eiger)
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
            encoder.close()
            raise TunerError(f"{path}: cannot be created: {reason(error)}") from None
        except BaseException:
            encoder.close()
            raise
        self._output = output
        self._flush_frames, self._flush_seconds = flush_every
        self._flushed = 0
        self._safe = 0
        self._error: TunerError | None = None
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._finished = False
        try:
            # No cycle leads back to the writer: it is closed as soon as it is forgotten.
            self._flow = Flow(
                output,
                layout,
                preparation,
                lossless,
                watch,
                verify=verify,
                workers=workers,
                on_drift=on_drift,
                on_overload=on_overload,
            )
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
        return self._flow.waiting

    @property
    def depth(self) -> int:
        """Chunks in flight at most; beyond, `append` waits or refuses."""
        return self._flow.depth

    @property
    def frames_written(self) -> int:
        """Frames that `append` has taken; `flush` says how many of them are safe."""
        return self._flow.ledger.taken

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
            number = self._flow.ledger.end if index is None else index
            raise InputError(f"{self.path}: frame {number}: {error}") from None
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
                try:
                    self._flow.end()
                    self._acknowledge(sync=False)
                    self._output.close(self._flow.notes())
                except FAILURES as error:
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
        if not getattr(self, "_closed", True):
            close_forgotten(self)

    def _admit(self, frames: Frames, index: int | None, lossless: bool, lent: bool = False) -> None:
        with self._lock:
            self._check_open()
            try:
                start = self._flow.start_of(index, len(frames))
            except (InputError, OverloadError) as error:
                raise type(error)(f"{self.path}: {error}") from None
            try:
                self._flow.take(frames, start, lossless, lent)
            except FAILURES as error:
                raise self._fail(error) from None
            if self._flow.ledger.taken - self._flushed >= self._flush_frames:
                self.flush()

    def _share(self, layout: Layout, frames: int) -> Output:
        with self._lock:
            self._check_open()
            if self._flow.ledger.end:
                raise InputError(f"{self.path}: takes another dataset before the first frame only")
            return self._output.beside(layout, frames)

    def _acknowledge(self, sync: bool) -> int:
        with self._lock:
            self._check_open()
            self._flushed = self._flow.ledger.taken
            try:
                self._flow.drain()
                acknowledge = self._output.sync if sync else self._output.flush
                self._safe = acknowledge(self._flow.ledger.stored, self._flow.notes())
            except FAILURES as error:
                raise self._fail(error) from None
            return self._safe

    def _fail(self, error: BaseException) -> TunerError:
        """Close the file with the frames that are complete in it, and say which is the first that is not."""
        self._end()
        safe = self._output.save(self._flow.ledger.stored, self._flow.notes())
        self._error = TunerError(
            f"{self.path}: {reason(error)}: frames from {safe} on are not safely written, those before can be read"
        )
        return self._error

    def _end(self) -> None:
        self._ended.set()
        self._flow.stop()
        self._closed = True
        OPEN.discard(self)

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise InputError(f"{self.path}: the writer is closed")
