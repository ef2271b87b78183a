"""Rolling files: data files of so many frames each, joined by a master; readers meet only finished files."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tuner.apply.checksum import Encoded
from tuner.apply.cut import corners
from tuner.apply.master import Piece, data_files, image_numbers, part_name, write_master
from tuner.apply.scan_file import Layout, Notes, ScanFile, sync_folder
from tuner.apply.target import check_target, publish, temporary_name

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
    """

    def __init__(self, path: Path, layout: Layout, overwrite: bool, frames: int) -> None:
        self._path = path
        self._layout = layout
        self._frames = frames
        self._chunks = len(list(corners((frames, *layout.frame_shape), layout.encoder.chunk_shape)))
        self._parts: dict[int, _Part] = {}
        self._pieces: dict[int, Piece] = {}
        self._begun = 0
        self._joined = 0
        self._extent = 0
        self._notes: Notes = {}
        for _, old in list(data_files(path)):
            check_target(old, overwrite)
        layout.check()
        self._replace_master(overwrite)
        for _, old in list(data_files(path)):
            old.unlink()
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="tuner-finish")
        self._finishing: Future[None] | None = None

    def horizon(self, frame: int) -> int:
        """The first frame of the data file before that of `frame`."""
        return max(0, frame // self._frames - 1) * self._frames

    def extend(self, frames: int) -> None:
        """Note how many frames there are."""
        self._extent = max(self._extent, frames)

    def write(self, place: Corner, chunk: Encoded) -> None:
        """Write one chunk into its data file, which is finished once all its chunks are written."""
        number, first = divmod(place[0], self._frames)
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
        self._notes = notes
        for part in self._parts.values():
            part.file.flush()
        return self._safe

    def sync(self, stored: int, notes: Notes) -> int:
        """Those in finished files that the master joins, all of which are synced."""
        self.flush(stored, notes)
        self._wait()
        return self._safe

    def close(self, notes: Notes) -> None:
        """Finish the last data file, which may be shorter, and the master."""
        self._notes = notes
        if not self._parts:
            self._wait()
            self._replace_master()
        for number in sorted(self._parts):
            self._finish(number)
        self._wait()
        self._finisher.shutdown()

    def save(self, stored: int, notes: Notes) -> int:
        """Finish what can be; the rest stays under its temporary name, for `tuner recover` where there is room."""
        self._notes = notes
        self._extent = min(self._extent, stored)
        try:
            self._wait()
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
        return self._joined if self._path.exists() else 0

    @property
    def _safe(self) -> int:
        return min([self._joined, *(number * self._frames for number in self._parts)])

    def _piece(self, number: int) -> Piece:
        start = number * self._frames
        return Piece(start, min(self._frames, self._extent - start), part_name(self._path, number + 1))

    def _begin(self, number: int) -> _Part:
        for old in sorted(n for n in self._parts if n < number - 1):
            self._finish(old)
        path = self._path.with_name(part_name(self._path, number + 1))
        part = self._parts[number] = _Part(path, self._layout, number * self._frames)
        self._begun = max(self._begun, number + 1)
        return part

    def _finish(self, number: int) -> None:
        self._wait()
        part, piece = self._parts[number], self._piece(number)
        part.extend(piece.frames)
        part.file.note(image_numbers(piece))
        part.file.close(seen=False)
        del self._parts[number]
        # A file that is still open may lie before this one: the master waits for it.
        joins = all(other > number for other in self._parts)
        try:
            self._finishing = self._finisher.submit(self._publish, number, part, piece, joins)
        except RuntimeError:  # the interpreter is going down and starts no thread
            self._publish(number, part, piece, joins)

    def _publish(self, number: int, part: _Part, piece: Piece, joins: bool) -> None:
        with part.temporary.open("rb") as file:
            os.fsync(file.fileno())
        publish(part.temporary, part.path, overwrite=True)
        sync_folder(part.path.parent)
        self._pieces[number] = piece
        if joins:
            self._replace_master()
            self._joined = max(piece.start + piece.frames for piece in self._pieces.values())

    def _replace_master(self, overwrite: bool = True) -> None:
        temporary = temporary_name(self._path)
        try:
            write_master(temporary, self._layout, [self._pieces[n] for n in sorted(self._pieces)], self._notes)
            publish(temporary, self._path, overwrite)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(self._path.parent)

    def _wait(self) -> None:
        if self._finishing is not None:
            self._finishing.result()
            self._finishing = None
