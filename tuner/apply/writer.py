"""The streaming writer: frames of a running acquisition to an HDF5 file that opens without us."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tuner.apply.cut import corners
from tuner.apply.dataset import create_dataset, stamp, stamp_fallbacks, stamp_kept
from tuner.apply.nexus import add_detector, check_dataset_path, data_group
from tuner.apply.pipeline import Pipeline, default_workers
from tuner.apply.plugin import ChunkEncoder, open_encoder
from tuner.apply.prepare import Batch, Preparation
from tuner.apply.target import check_target, publish, reason, temporary_name
from tuner.errors import CodecError, InputError, TunerError
from tuner.profile import Profile
from tuner.stack import convention

#: What HDF5's index of chunks and a dataset's header may take in a flush.
_INDEX_NBYTES = 1 << 16


def open_writer(
    path: str | os.PathLike[str],
    profile: Profile,
    *,
    dataset: str = "/entry/data/data",
    frame_shape: tuple[int, ...],
    dtype: DTypeLike,
    mask: ArrayLike | None = None,
    mode: str = "x",
    workers: int | None = None,
    verify: str = "off",
) -> Writer:
    """Create an HDF5 file for frames of one shape and dtype, stored as `profile` says.

    Parameters
    ----------
    path : path of the file
        It appears under this name complete with its empty dataset: readers may open it at any time.
    profile : Profile
        As `load_profile` returns it.
    dataset : str
        Where the frames go in the file; the groups around it are made as NeXus readers expect them.
    frame_shape : tuple of int
        (H, W), or (channels,) for spectra.
    dtype : dtype of the frames
        Boolean, integer or float; stored in little-endian byte order.
    mask : bool array of `frame_shape`, optional
        True where a pixel is invalid in all frames; stored as `pixel_mask` of an NXdetector.
    mode : "x" or "w"
        "x" refuses an existing file, "w" replaces it once the new one has been created.
    workers : int, optional
        Threads that encode; the default is one for each core that the process may use.
    verify : "off" or "all"
        "all" holds every frame that the profile's steps changed to what the profile promises; one that breaks it is
        written as it is, and noted in the file. A provisional profile is taken only so.

    Raises
    ------
    InputError
        Before anything is created: a file that exists, a folder that does not, frames that the profile is not for.

    Examples
    --------
    >>> import tempfile
    >>> from tuner.config import Config
    >>> from tuner.profile import Match, Profile
    >>> profile = Profile("doc", Match("uint16"), config=Config(), fallback=Config())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open_writer(f"{folder}/scan.h5", profile, frame_shape=(4, 5), dtype="uint16") as writer:
    ...         writer.append(np.ones((3, 4, 5), "uint16"))
    ...         writer.append(np.zeros((4, 5), "uint16"))
    ...         writer.flush()
    4
    """
    try:
        shape = tuple(int(size) for size in frame_shape)
    except (TypeError, ValueError):
        raise InputError(f"frame_shape must be one or two whole numbers, got {frame_shape!r}") from None
    if not shape or min(shape) < 1:
        raise InputError(f"frame_shape must be one or two whole numbers >= 1, got {shape}")
    try:
        pixel = np.dtype(dtype)
    except TypeError:
        raise InputError(f"dtype must be one of numpy's, got {dtype!r}") from None
    return Writer(path, profile, dataset, shape, pixel, mask, mode, workers, verify)


class Writer:
    """Encodes frames in threads and writes them in order; made by `open_writer`, used by one thread.

    Frames collect in memory until a chunk is full. At most 2 * workers + 2 chunks wait to be encoded or written, beyond
    that `append` blocks: the memory used is that of as many chunks, and of one row of chunks being filled. The file is
    not locked, so that other processes may read it meanwhile; what they see when they open it is the last `flush`.
    Beyond what `flush` acknowledged, a process killed in the middle of one may leave frames that cannot be read or that
    read as invalid: NaN, the maximum of unsigned integers, -1 of int32; other dtypes have no such value, and get 0.
    (HDF5 lets the same process open it again only with ``locking=False`` too.)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        profile: Profile,
        dataset: str,
        frame_shape: tuple[int, ...],
        dtype: np.dtype[Any],
        mask: ArrayLike | None,
        mode: str,
        workers: int | None,
        verify: str,
    ) -> None:
        self.path = Path(path)
        if mode not in ("x", "w"):
            raise InputError(f"mode must be 'x' or 'w', got {mode!r}")
        if workers is not None and workers < 1:
            raise InputError(f"workers must be at least 1, got {workers}")
        self._dtype = dtype.newbyteorder("=")
        self._frame_shape = frame_shape
        profile.match.check(self._dtype, frame_shape, str(self.path))
        config = profile.config.resolve(frame_shape, self._dtype)
        invalid = None if mask is None else _check_mask(mask, frame_shape)
        if config.steps and profile.invalid.mask is not None and invalid is None:
            raise InputError(f"{self.path}: mask must be given, as the profile's steps leave masked pixels as they are")
        if verify not in ("off", "all"):
            raise InputError(f"verify must be 'off' or 'all', got {verify!r}")
        if profile.provisional and verify != "all":
            raise InputError(
                f"{self.path}: verify must be 'all' for a provisional profile, as too few frames prove what its"
                f" steps do, got {verify!r}"
            )
        self._preparation = Preparation(profile, invalid, verify == "all")
        dataset = check_dataset_path(dataset)
        check_target(self.path, overwrite=mode == "w")
        self._encoder = encoder = open_encoder(config, profile.fallback.blosc2, self._dtype)

        self._chunk_shape = config.chunks
        self._slab_shape = (config.chunks[0], *frame_shape)
        tiles = len(list(corners(self._slab_shape, self._chunk_shape)))
        self._pipeline = Pipeline(encoder, self._write, workers or default_workers())
        # Chunks are written in order and at most `depth` are in flight, so the slab after next in this ring is free.
        self._ring: list[NDArray[Any] | None] = [None] * (-(-self._pipeline.depth // tiles) + 1)
        self._last_tile = tuple((n - 1) // c * c for n, c in zip(frame_shape, config.chunks[1:], strict=True))
        self._kept = np.zeros(config.chunks[0], np.bool_)
        self._lossless: list[NDArray[np.bool_]] = []
        self._submitted = 0
        self._filled = 0
        self._taken = 0
        self._extent = 0
        self._stored = 0
        self._safe = 0
        self._closed = False
        self._error: TunerError | None = None
        try:
            self._file = self._create(profile, dataset, encoder, invalid, mode)
        except BaseException:
            self._pipeline.close()
            raise

    def _create(
        self, profile: Profile, dataset: str, encoder: ChunkEncoder, mask: NDArray[np.bool_] | None, mode: str
    ) -> h5py.File:
        temporary = temporary_name(self.path)
        try:
            # Created with the default version bounds: a newer superblock keeps a flag for which a file that was not
            # closed refuses to open. Reopened with those of HDF5 1.10 for their index of chunks: the older one, a
            # B-tree, cannot be read between two of the writes that make up a flush.
            h5py.File(temporary, "x", locking=False).close()
            file = h5py.File(temporary, "r+", libver=("v110", "v110"), locking=False)
            try:
                shape = (0, *self._frame_shape)
                maxshape = (None, *self._frame_shape)
                group = data_group(file, dataset)
                name = dataset.split("/")[-1]
                fill = _absent(self._dtype)
                self._dataset = create_dataset(group, name, shape, maxshape, self._chunk_shape, encoder, fill)
                self._dataset.attrs["interpretation"] = "image" if len(self._frame_shape) == 2 else "spectrum"
                stamp(self._dataset, profile)
                stamp_fallbacks(self._dataset, encoder)
                add_detector(file, dataset, mask)
                file.flush()
                publish(temporary, self.path, overwrite=mode == "w")
            except BaseException:
                file.close()
                raise
        except OSError as error:
            raise TunerError(f"{self.path}: cannot be created: {reason(error)}") from None
        finally:
            temporary.unlink(missing_ok=True)
        return file

    @property
    def frames_written(self) -> int:
        """Frames that `append` has taken; `flush` says how many of them are safe."""
        return self._taken

    def append(self, frames: ArrayLike, *, lossless: bool = False) -> None:
        """Take one frame, shape `frame_shape`, or several, shape (n, *frame_shape); the caller may reuse its buffer.

        Parameters
        ----------
        frames : array
        lossless : bool
            Whether the profile's steps leave them as they are: flats and darks, which are divided into every frame.

        Raises
        ------
        InputError
            For another shape or dtype; nothing of `frames` is taken and the writer goes on.
        TunerError
            Where the file cannot be written; it names the first frame that is not safe, and the writer is closed.
        """
        self._check_open()
        frames = np.asarray(frames)
        if frames.dtype.newbyteorder("=") != self._dtype:
            raise InputError(f"{self.path}: frames must be {self._dtype}, got {frames.dtype}")
        ndim = len(self._frame_shape)
        if frames.shape[-ndim:] != self._frame_shape or frames.ndim > ndim + 1:
            many = ", ".join(map(str, ("n", *self._frame_shape)))
            raise InputError(f"{self.path}: frames must have shape {self._frame_shape} or ({many}), got {frames.shape}")
        frames = frames.reshape(-1, *self._frame_shape)
        done = 0
        while done < len(frames):
            slab = self._slab()
            count = min(len(slab) - self._filled, len(frames) - done)
            slab[self._filled : self._filled + count] = frames[done : done + count]
            self._kept[self._filled : self._filled + count] = lossless
            self._filled += count
            self._taken += count
            done += count
            if self._filled == len(slab):
                self._submit(slab)

    def flush(self) -> int:
        """Write all whole chunks; return how many frames survive the death of this process.

        Frames of a chunk that is not full yet stay in memory, as a chunk that a reader may have seen is never written
        again.
        """
        self._check_open()
        try:
            self._pipeline.drain()
            self._check_present()
            self._stamp()
            self._file.flush()
        except (OSError, RuntimeError, CodecError) as error:
            raise self._fail(error) from None
        self._safe = self._stored
        return self._safe

    def close(self) -> None:
        """Write what is left, the last chunk padded, and close the file; once closed it does nothing."""
        if self._closed:
            return
        if self._filled:
            self._submit(self._slab()[: self._filled])
        self.flush()
        self._closed = True
        self._pipeline.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _stamp(self) -> None:
        """Say on the dataset what is only known by now."""
        stamp_fallbacks(self._dataset, self._encoder)
        if self._lossless:
            self._lossless = [np.concatenate(self._lossless)]
            stamp_kept(self._dataset, self._lossless[0])

    def _slab(self) -> NDArray[Any]:
        index = self._submitted % len(self._ring)
        slab = self._ring[index]
        if slab is None:
            slab = self._ring[index] = np.empty(self._slab_shape, self._dtype)
        return slab

    def _submit(self, slab: NDArray[Any]) -> None:
        first = self._submitted * self._slab_shape[0]
        try:
            self._extend(first + len(slab))
            kept = self._kept[: len(slab)].copy()
            batch = Batch(slab, self._preparation, kept)
            for corner in corners(slab.shape, self._chunk_shape):
                self._pipeline.put((first, *corner[1:]), batch, corner)
            # Counted last: interrupted before, the slab is put again, byte for byte the same.
            self._submitted += 1
            self._filled = 0
            if self._preparation.steps:
                self._lossless.append(kept)
        except (OSError, RuntimeError, CodecError) as error:
            raise self._fail(error) from None

    def _extend(self, frames: int) -> None:
        self._dataset.id.set_extent((frames, *self._frame_shape))
        self._extent = frames

    def _write(self, place: tuple[int, ...], chunk: bytes) -> None:
        descriptor = self._file.id.get_vfd_handle()
        size = os.fstat(descriptor).st_size
        try:
            self._dataset.id.write_direct_chunk(place, chunk)
        except OSError:
            # A part of the chunk may have taken the last of the disk, which the index now needs.
            os.ftruncate(descriptor, size)
            raise
        if place[1:] == self._last_tile:
            self._stored = min(place[0] + self._slab_shape[0], self._extent)

    def _fail(self, error: BaseException) -> TunerError:
        """Close the file with the frames that are complete in it, and say which is the first that is not."""
        self._closed = True
        self._pipeline.close()
        descriptor = self._file.id.get_vfd_handle()
        try:
            self._check_present()
            # The index of the chunks needs a little more; better known before HDF5 has written half of it.
            size = os.fstat(descriptor).st_size
            os.posix_fallocate(descriptor, size, max(0, self._file.id.get_filesize() - size) + _INDEX_NBYTES)
            self._extend(self._stored)
            self._stamp()
            self._file.flush()
            self._safe = self._stored
        except (OSError, RuntimeError):
            # HDF5 closes no file without flushing into it: it may do so into a file that is nowhere.
            nowhere = os.memfd_create("tuner")
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
        if isinstance(error, FileNotFoundError):
            self._safe = 0
        with contextlib.suppress(OSError, RuntimeError):
            self._file.close()
        self._error = TunerError(
            f"{self.path}: {reason(error)}: frames from {self._safe} on are not safely written,"
            " those before can be read"
        )
        return self._error

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise InputError(f"{self.path}: the writer is closed")

    def _check_present(self) -> None:
        """Raise OSError if the file under our name is no longer the one that we write."""
        ours = os.fstat(self._file.id.get_vfd_handle())
        there = self.path.stat()
        if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
            raise FileNotFoundError(f"{self.path} was replaced")


def _check_mask(mask: ArrayLike, frame_shape: tuple[int, ...]) -> NDArray[np.bool_]:
    array = np.asarray(mask)
    if array.dtype != np.bool_ or array.shape != frame_shape:
        raise InputError(f"mask must be bool of shape {frame_shape}, got {array.dtype} of shape {array.shape}")
    return array


def _absent(dtype: np.dtype[Any]) -> Any:
    """What a pixel that was never written reads as: invalid, where a dtype has a value for that."""
    return np.nan if dtype.kind == "f" else next(iter(convention(dtype)), 0)
