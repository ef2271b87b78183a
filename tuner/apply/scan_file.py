"""One HDF5 file of a running acquisition: its dataset grows chunk by chunk, and what was flushed survives a kill."""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py._hl.base import phil  # h5py's lock, which all of its calls take
from numpy.typing import NDArray

from tuner.apply.checksum import Encoded
from tuner.apply.dataset import create_dataset, stamp, to_older_index
from tuner.apply.fields import add_fields
from tuner.apply.metadata import note_scale
from tuner.apply.nexus import add_detector, check_own_group, data_group, tell_apart
from tuner.apply.plugin import ChunkEncoder
from tuner.apply.provenance import add_process
from tuner.container import BLOSC2
from tuner.errors import InputError
from tuner.profile import Profile
from tuner.stack import convention

#: Attributes that say what is only known while frames are written.
Notes = Mapping[str, Any]

#: What HDF5's index of chunks and a dataset's header may take in a flush.
_INDEX_NBYTES = 1 << 16

#: What HDF5 1.10 and later read: the upper bound is stated too, so that no later library takes what 1.10 cannot read.
LIBVER = ("v110", "v110")


@dataclass(frozen=True)
class Layout:
    """What the files of a scan have in common."""

    dataset: str
    """Path without its leading slash."""
    frame_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    encoder: ChunkEncoder
    profile: Profile
    mask: NDArray[np.bool_] | None
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else is said, by path."""
    eiger: bool = False
    """Whether the master joins data files as Dectris does."""

    @property
    def name(self) -> str:
        """The dataset's name in its group."""
        return self.dataset.split("/")[-1]

    @property
    def fill(self) -> Any:
        """What a pixel that was never written reads as: invalid, where a dtype has a value for that."""
        return np.nan if self.dtype.kind == "f" else next(iter(convention(self.dtype)), 0)

    def create(self, file: h5py.File, first: h5py.Dataset | None = None) -> h5py.Dataset:
        """The dataset, empty, with the groups and attributes around it; beside a `first` that the file has."""
        maxshape = (None, *self.frame_shape)
        shape = (0, *self.frame_shape)
        group = data_group(file, self.dataset)
        dataset = create_dataset(group, self.name, shape, maxshape, self.encoder.chunk_shape, self.encoder, self.fill)
        self.describe(file, dataset, "detector" if first is None else tell_apart(first, dataset))
        return dataset

    def check(self) -> None:
        """Raise InputError for what no file can hold, before there is one."""
        with h5py.File("memory", "w", driver="core", backing_store=False) as file:
            self.create(file)

    def describe(self, file: h5py.File, dataset: h5py.Dataset, detector: str = "detector") -> None:
        """Say what the frames are and what they were written with."""
        dataset.attrs["interpretation"] = "image" if len(self.frame_shape) == 2 else "spectrum"
        stamp(dataset, self.profile, self.encoder.container)
        add_detector(file, self.dataset, self.mask, detector, **self._limits())
        note_scale(dataset, self.profile.reduce)
        add_process(file, self.dataset, self.profile, self.encoder.container)
        add_fields(file, self.fields)

    def _limits(self) -> dict[str, float | None]:
        """From where on reduced pixels saturate, unless the user says it."""
        if not self.profile.reduce:
            return {}
        marks, said = self.profile.form.marks, {path.rpartition("/")[2] for path in self.fields}
        limits = {"saturation_value": marks.saturation, "underload_value": marks.underload}
        return {name: value for name, value in limits.items() if name not in said}


class _Handle:
    """An open file, the datasets that it is in use by, and whether what they write goes nowhere by now."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self.descriptor = int(file.id.get_vfd_handle())
        self.datasets: list[h5py.Dataset] = []
        self.users: set[str] = set()
        self.discarded = False
        _OPEN.add(self)

    def lose(self) -> None:
        """Have what is written from here on go into a file that is nowhere: HDF5 closes none without flushing it."""
        self.discarded = True
        nowhere = os.memfd_create("tuner")
        os.dup2(nowhere, self.descriptor)
        os.close(nowhere)


#: Files that this process writes.
_OPEN: weakref.WeakSet[_Handle] = weakref.WeakSet()


def _lose_all() -> None:
    for handle in list(_OPEN):
        handle.lose()


# What is forked shares the file, and would flush into it what it takes for its state.
os.register_at_fork(after_in_child=_lose_all)


class ScanFile:
    """A file that is being written; other processes may open it, what they see is the last `flush`.

    Of several that are made by `beside`, the last to be closed closes the file.

    Parameters
    ----------
    path : Path
        Must not exist.
    layout : Layout
    swmr : bool
        Made so that `start_swmr` can follow.
    """

    def __init__(self, path: Path, layout: Layout, swmr: bool = False) -> None:
        # Created with the default version bounds, then opened again with those of HDF5 1.10: the old superblock has no
        # flag for which a file that was not closed refuses to open, the newer index of chunks can be read between any
        # two writes of a flush. SWMR wants the newer superblock.
        close_once(h5py.File(path, "x", libver=LIBVER if swmr else None, locking=False))
        self._handle = _Handle(h5py.File(path, "r+", libver=LIBVER, locking=False))
        try:
            self._create(layout)
        except BaseException:
            self.discard()
            raise

    def beside(self, layout: Layout) -> ScanFile:
        """Another dataset in the same file; before the first frame, as a kill in between may damage the file."""
        if any(len(dataset) for dataset in self._handle.datasets):
            raise InputError(f"/{layout.dataset} must be asked for before the first frame of what is written beside it")
        check_own_group(self._file, layout.dataset)
        layout.check()
        other = copy(self)
        other._create(layout, self._dataset)
        return other

    def _create(self, layout: Layout, first: h5py.Dataset | None = None) -> None:
        self._name = layout.dataset
        self._frame_shape = layout.frame_shape
        self._container = layout.encoder.container
        self._noted: dict[str, Any] = {}
        self._released = False
        self._dataset = layout.create(self._file, first)
        self._handle.datasets.append(self._dataset)
        self.flush()
        self._handle.users.add(self._name)

    def start_swmr(self) -> None:
        """Go into HDF5's SWMR mode: nothing but chunks can be added from here on."""
        self._file.swmr_mode = True

    def extend(self, frames: int) -> None:
        """Make the dataset hold so many frames."""
        self._dataset.id.set_extent((frames, *self._frame_shape))

    def write(self, place: tuple[int, ...], chunk: Encoded) -> None:
        """Write one chunk; a failed one leaves the file as long as it was."""
        with phil:  # what is cut off again must not be what is written beside
            if self._handle.discarded:
                raise FileNotFoundError("what is written beside it could not be saved")
            size = os.fstat(self._descriptor).st_size
            try:
                self._dataset.id.write_direct_chunk(place, chunk)
            except OSError:
                # A part of the chunk may have taken the last of the disk, which the index now needs.
                os.ftruncate(self._descriptor, size)
                raise

    def note(self, notes: Notes) -> None:
        """Set attributes of the dataset, those that changed, and drop those of earlier notes that are no longer so."""
        for name in self._noted.keys() - notes.keys():
            del self._dataset.attrs[name]
            del self._noted[name]
        for name, value in notes.items():
            if name not in self._noted or not np.array_equal(self._noted[name], value):
                self._dataset.attrs[name] = value
                self._noted[name] = value

    def flush(self) -> None:
        """Hand what was written to the system: it survives the death of this process."""
        with phil:
            # HDF5 notes the length that it gave away before it makes the file as long: too late on a full disk.
            self._allocate()
            self._file.flush()

    def sync(self) -> None:
        """Have the disk hold what was flushed: it survives the death of the machine."""
        os.fsync(self._descriptor)

    def same_as(self, path: Path) -> bool:
        """Whether the file under a name is this one.

        Raises
        ------
        OSError
            Where there is none.
        """
        ours, there = os.fstat(self._descriptor), path.stat()
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def close(self, seen: bool = True) -> None:
        """Flush and close, again if interrupted; a file that nobody has seen yet, as its container's readers want."""
        if self.is_open:
            if not seen and self._container is not BLOSC2:
                to_older_index(self._dataset)
            self.flush()
        self._release()

    def save(self, frames: int, notes: Notes) -> bool:
        """After a failure: close the file with its first frames only; False where that cannot be written either."""
        try:
            # The index of the chunks needs a little more; better known before HDF5 has written half of it.
            self._allocate(_INDEX_NBYTES)
            self.extend(frames)
            if not self._file.swmr_mode:
                self.note(notes)
            self.flush()
            with contextlib.suppress(OSError, RuntimeError):
                self._release()
        except (OSError, RuntimeError):
            self.discard()
            return False
        return True

    def _allocate(self, more: int = 0) -> None:
        """Make the file as long as HDF5 believes, and longer; a file that is shorter than it says does not open."""
        size = os.fstat(self._descriptor).st_size
        if (missing := max(0, self._file.id.get_filesize() - size) + more) > 0:
            os.posix_fallocate(self._descriptor, size, missing)

    def discard(self) -> None:
        """Close the file without another byte being written to it; once is enough."""
        if self._released:
            return
        with phil:
            if not self._handle.discarded:
                self._handle.lose()
        with contextlib.suppress(OSError, RuntimeError):
            self._release()

    @property
    def is_open(self) -> bool:
        """Whether the dataset can be written to."""
        return bool(self._dataset)

    @property
    def discarded(self) -> bool:
        """Whether what is written goes nowhere by now."""
        return self._handle.discarded

    def _release(self) -> None:
        with phil:
            self._handle.users.discard(self._name)
            if not self._handle.users:
                _OPEN.discard(self._handle)  # its descriptor may be another's soon
                try:
                    close_once(self._file)
                except (OSError, RuntimeError):
                    self._released = True
                    raise
            self._released = True

    @property
    def _file(self) -> h5py.File:
        return self._handle.file

    @property
    def _descriptor(self) -> int:
        return self._handle.descriptor


def close_once(file: h5py.File) -> None:
    """Close a file; one that cannot be closed properly is not closed again by the interpreter's exit, which may crash.

    Raises
    ------
    OSError, RuntimeError
        Where HDF5 cannot write what is left.
    """
    number = file.id.id
    with phil:
        try:
            file.close()
        except (OSError, RuntimeError):
            # HDF5 has freed the file, and keeps its number as if it had not. Not all builds export the function.
            with contextlib.suppress(AttributeError):
                forget = ctypes.CDLL(h5py.h5.__file__).H5I_remove
                forget.argtypes, forget.restype = (ctypes.c_int64,), ctypes.c_void_p
                if h5py.h5i.get_type(file.id) == h5py.h5i.FILE:
                    forget(number)
            raise


@contextlib.contextmanager
def closing_once(file: h5py.File) -> Iterator[h5py.File]:
    """A file for a block, after which it is closed by `close_once`; why the block failed counts, not what followed."""
    try:
        yield file
    except BaseException:
        with contextlib.suppress(OSError, RuntimeError):
            close_once(file)
        raise
    close_once(file)


def sync_folder(folder: Path) -> None:
    """Have the disk hold the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def annotate(path: Path, dataset: str, notes: Notes) -> None:
    """Set attributes of a dataset of a closed file."""
    if notes:
        with h5py.File(path, "r+", libver=LIBVER, locking=False) as file:
            file[dataset].attrs.update(notes)
