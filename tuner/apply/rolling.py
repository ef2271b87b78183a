"""Rolling files: data files of so many frames each, joined by a master; readers meet only finished files."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np

from tuner.apply.checksum import Encoded
from tuner.apply.cut import tiles_of
from tuner.apply.master import Joined, Piece, data_files, image_numbers, label_of, part_name, unfinished, write_master
from tuner.apply.scan_file import Layout, Notes, ScanFile, sync_folder
from tuner.apply.target import check_target, publish, temporary_name
from tuner.errors import InputError
from tuner.read.links import peek

Corner = tuple[int, ...]


class _Part:
    """A data file that is being written, and which chunks it has by now."""

    def __init__(self, path: Path, layout: Layout, start: int) -> None:
        self.path = path
        self.temporary = temporary_name(path)
        self.file = ScanFile(self.temporary, layout)
        self.file.note({"image_nr_low": np.int64(start + 1)})
        self.frames = 0
        self.places: set[Corner] = set()

    def extend(self, frames: int) -> None:
        """Make room for so many frames; never for fewer, as HDF5 would decode the last chunk to cut it."""
        if frames > self.frames:
            self.file.extend(frames)
            self.frames = frames


class _Held:
    """A file that is held open: as long as it is, no other file has its inode."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def same_as(self, path: Path) -> bool:
        """Whether it has a name; OSError where nothing has."""
        return os.path.samestat(os.fstat(self._descriptor), path.stat())

    def __del__(self) -> None:
        os.close(self._descriptor)


class _Master:
    """The file that joins the data files of all datasets of a scan; replaced in one step, by the thread of any.

    Whose master has the name, has those of the data files, too: an earlier writer leaves them to a later one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.datasets: list[Joined] = []
        self._lock = threading.Lock()
        self._naming = threading.Lock()
        self._held: tuple[_Held, ...] = ()
        self._used: set[Joined] = set()

    def add(self, joined: Joined, overwrite: bool) -> None:
        """Join another dataset; where that cannot be, nothing has changed."""
        with self._lock:
            self._write([*self.datasets, joined], overwrite)
            self.datasets.append(joined)
            self._used.add(joined)

    def leave(self, joined: Joined) -> None:
        """Nothing more will be joined to a dataset; once that holds for all, the file is let go of."""
        self._used.discard(joined)
        if not self._used:
            self._held = ()

    def replace(self) -> None:
        """Write it anew, with what is joined by now."""
        with self._lock:
            self._write(self.datasets, overwrite=True)

    def check(self) -> None:
        """Raise OSError if the file under its name is no longer the one that was written last."""
        with self._naming:
            self._check()

    def _check(self) -> None:
        if self._held and not any(held.same_as(self.path) for held in self._held):
            raise FileNotFoundError(f"{self.path} was replaced")

    def _write(self, datasets: Sequence[Joined], overwrite: bool) -> None:
        temporary = temporary_name(self.path)
        try:
            write_master(temporary, datasets)
            held = _Held(os.open(temporary, os.O_RDONLY))
            with self._naming:
                self._check()
                self._held = (*self._held, held)  # either has the name, where this is interrupted
                publish(temporary, self.path, overwrite)
                self._held = (held,)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(self.path.parent)


class RollingFiles:
    """Data files under temporary names until they are finished, and a master that is replaced after each.

    A finished file has been closed, synced and renamed, in a thread of its own, at most one at a time. Frames may come
    late as long as they belong to the file being filled or to the one before.

    Parameters
    ----------
    path : Path
        The master.
    layout : Layout
    overwrite : bool
        Replace a master, and remove the data files that it had.
    frames : int
        In a data file; whole chunks.
    master : _Master, optional
        Of the datasets that it joins already.
    """

    def __init__(self, path: Path, layout: Layout, overwrite: bool, frames: int, master: _Master | None = None) -> None:
        self._path = path
        self._layout = layout
        self._overwrite = overwrite
        self._frames = frames
        depth, *tile = layout.encoder.chunk_shape
        self._chunks = frames // depth * tiles_of(layout.frame_shape, tuple(tile))
        self._parts: dict[int, _Part] = {}
        self._pieces: dict[int, Piece] = {}
        self._finished: set[int] = set()
        self._begun = 0
        self._safe_below = 0
        self._extent = 0
        self._master = master or _Master(path)
        known = self._master.datasets
        label = label_of(layout.dataset, known[0].layout.dataset) if known else ""
        for other in known:
            if label == other.label:
                raise InputError(
                    f"dataset must be in a group of its own, got /{layout.dataset}, whose data files would have the"
                    f" names of those of /{other.layout.dataset}"
                )
        self._joined = Joined(layout, label)
        for older in _older(path, label):
            check_target(older, overwrite)
            if label and not _holds(older, layout.dataset):
                raise InputError(f"{older}: exists already, and holds no /{layout.dataset} that might be replaced")
        layout.check()
        self._master.add(self._joined, overwrite or master is not None)
        # Seen from here on by the writer of an older master, which adds no file any more.
        for older in _older(path, label) if overwrite else ():
            if not label or _holds(older, layout.dataset):
                older.unlink(missing_ok=True)
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="tuner-finish")
        self._finishing: tuple[int, Future[None]] | None = None

    def beside(self, layout: Layout, frames: int) -> RollingFiles:
        """For another dataset of the same master, with data files of its own."""
        if self._layout.eiger:
            raise InputError(f"{self._path}: takes one dataset, as an Eiger's; /{layout.dataset} needs another master")
        return RollingFiles(self._path, layout, self._overwrite, frames, self._master)

    def horizon(self, frame: int) -> int:
        """The first frame of the data file before that of `frame`."""
        return max(0, frame // self._frames - 1) * self._frames

    def extend(self, frames: int) -> None:
        """Note how many frames there are."""
        self._extent = max(self._extent, frames)

    def write(self, place: Corner, chunk: Encoded) -> None:
        """Write one chunk into its data file, which is finished once all its chunks are written."""
        number, first = divmod(place[0], self._frames)
        if number in self._finished:  # put again by who was interrupted: it is there
            return
        part = self._parts.get(number)
        if part is None:
            # Links say nothing about numbers of frames: no file may be left out.
            for missing in range(self._begun, number) if self._layout.eiger else ():
                self._begin(missing)
            part = self._begin(number)
        part.extend(self._piece(number).frames)
        part.file.write((first, *place[1:]), chunk)
        part.places.add(place)
        if len(part.places) == self._chunks:
            self._finish(number)

    def flush(self, stored: int, notes: Notes) -> int:
        """Those in finished files that the master joins; others survive in a file that `tuner recover` finishes."""
        self._master.check()
        self._joined.notes = notes
        for part in self._parts.values():
            part.file.flush()
        return self._safe(stored)

    def sync(self, stored: int, notes: Notes) -> int:
        """Those in finished files that the master joins, all of which are synced."""
        self.flush(stored, notes)
        self._wait()
        return self._safe(stored)

    def close(self, notes: Notes) -> None:
        """Finish the last data file, which may be shorter, and the master."""
        self._joined.notes = notes
        if not self._parts:
            self._wait()
            self._replace_master()
        for number in sorted(self._parts):
            self._finish(number)
        self._wait()
        self._finisher.shutdown()
        self._master.leave(self._joined)

    def save(self, stored: int, notes: Notes) -> int:
        """Finish what can be; the rest stays under its temporary name, for `tuner recover` where there is room."""
        self._joined.notes = notes
        self._extent = min(self._extent, stored)
        try:
            self._wait()
            self._master.check()
            for number in sorted(n for n in self._parts if n * self._frames < stored):
                part, piece = self._parts[number], self._piece(number)
                if not part.file.save(piece.frames, image_numbers(piece)):
                    break
                del self._parts[number]
                self._publish(number, part, piece, joins=True)
        except (OSError, RuntimeError):
            pass  # what the master joins stays
        self._finisher.shutdown()
        for part in self._parts.values():
            part.file.discard()
        try:
            self._master.check()
        except OSError:
            return 0
        finally:
            self._master.leave(self._joined)
        return self._safe(stored)

    def _safe(self, stored: int) -> int:
        # Where frames came out of their order, a file may be joined before what lies before it.
        unfinished = [number * self._frames for number in self._parts]
        if self._finishing is not None:
            number, done = self._finishing
            if not done.done() or done.exception() is not None:
                unfinished.append(number * self._frames)
        return min([stored, self._safe_below, *unfinished])

    def _piece(self, number: int) -> Piece:
        start = number * self._frames
        return Piece(start, min(self._frames, self._extent - start), self._name(number))

    def _name(self, number: int) -> str:
        return part_name(self._path, number + 1, self._joined.label)

    def _begin(self, number: int) -> _Part:
        for old in sorted(n for n in self._parts if n < number - 1):
            self._finish(old)
        path = self._path.with_name(self._name(number))
        part = _Part(path, self._layout, number * self._frames)
        try:
            self._master.check()
        except OSError:
            part.temporary.unlink(missing_ok=True)
            part.file.discard()
            raise
        self._parts[number] = part
        self._begun = max(self._begun, number + 1)
        return part

    def _finish(self, number: int) -> None:
        """Close a data file and have it named; once more where that was interrupted."""
        self._wait()
        part, piece = self._parts[number], self._piece(number)
        if part.file.is_open:
            part.extend(piece.frames)
            part.file.note(image_numbers(piece))
        part.file.close(seen=False)
        self._finished.add(number)
        # A file that is still open may lie before this one: the master waits for it.
        joins = all(other >= number for other in self._parts)
        try:
            self._finishing = number, self._finisher.submit(self._publish, number, part, piece, joins)
        except RuntimeError:  # the interpreter is going down and starts no thread
            self._publish(number, part, piece, joins)
        del self._parts[number]

    def _publish(self, number: int, part: _Part, piece: Piece, joins: bool) -> None:
        if number not in self._pieces:
            self._master.check()
            with part.temporary.open("rb") as file:
                os.fsync(file.fileno())
            self._master.check()
            if os.path.lexists(part.path):  # as of another scan that gives its data files the same names
                raise FileExistsError(f"{part.path} exists already")
            publish(part.temporary, part.path, overwrite=True)
            sync_folder(part.path.parent)
            self._pieces[number] = piece
        if joins:
            self._replace_master()
            self._safe_below = max(piece.start + piece.frames for piece in self._pieces.values())

    def _replace_master(self) -> None:
        self._joined.pieces = [self._pieces[number] for number in sorted(self._pieces)]
        self._master.replace()

    def _wait(self) -> None:
        if self._finishing is not None:
            self._finishing[1].result()
            self._finishing = None


def _older(master: Path, label: str) -> list[Path]:
    """Data files of an earlier scan, finished and unfinished."""
    return [path for files in (data_files, unfinished) for _, path in files(master, label)]


def _holds(path: Path, dataset: str) -> bool:
    """Whether a file is one that a dataset of a scan went into."""
    try:
        with h5py.File(path, locking=False) as file:
            return isinstance(peek(file, dataset), h5py.Dataset)
    except OSError:
        return False
