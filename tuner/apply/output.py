"""Where the chunks of a scan go: one file, or files of so many frames each that a master joins."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Protocol

from tuner.apply.checksum import Encoded
from tuner.apply.scan_file import Layout, Notes, ScanFile, annotate, sync_folder
from tuner.apply.superblock import clear_flag
from tuner.apply.target import publish, temporary_name
from tuner.errors import InputError


class Output(Protocol):
    """Takes the chunks of a scan, in the order in which they were encoded; used by one thread at a time.

    `stored` is how many frames are complete: all chunks of all frames below it that were given have been written.
    """

    def beside(self, layout: Layout, frames: int) -> Output:
        """For another dataset of the same scan, before its first frame; in data files of so many, if there are any.

        Raises
        ------
        InputError
            Where it cannot stand beside what is there; that is as it was.
        """
        ...

    def horizon(self, frame: int) -> int:
        """The first frame that can still be written once `frame` is."""
        ...

    def extend(self, frames: int) -> None:
        """Make room for so many frames."""
        ...

    def write(self, place: tuple[int, ...], chunk: Encoded) -> None:
        """Write one chunk at its first index in the whole scan."""
        ...

    def flush(self, stored: int, notes: Notes) -> int:
        """How many frames survive the death of this process."""
        ...

    def sync(self, stored: int, notes: Notes) -> int:
        """How many frames survive the death of the machine."""
        ...

    def close(self, notes: Notes) -> None:
        """Finish what was written; once more where that was interrupted."""
        ...

    def save(self, stored: int, notes: Notes) -> int:
        """After a failure: close everything with the complete frames; how many of them can be read."""
        ...


class SingleFile:
    """One file, under its name from the start: a reader sees what the last flush wrote.

    Parameters
    ----------
    path : Path
    layout : Layout
    overwrite : bool
    swmr : bool
        In HDF5's SWMR mode, where readers that follow need not open it again.
    """

    def __init__(self, path: Path, layout: Layout, overwrite: bool, swmr: bool = False) -> None:
        self._path = path
        self._layout = layout
        self._swmr = swmr
        temporary = temporary_name(path)
        try:
            self._file = ScanFile(temporary, layout, swmr)
            try:
                if swmr:
                    self._file.start_swmr()
                publish(temporary, path, overwrite)
            except BaseException:
                self._file.discard()
                raise
        finally:
            temporary.unlink(missing_ok=True)
        self._flushed = 0

    def beside(self, layout: Layout, frames: int) -> SingleFile:
        """For another dataset in the same file."""
        if self._swmr:
            raise InputError(f"{self._path}: must be in single or rolling access to take another dataset, is in SWMR")
        other = copy(self)
        other._layout = layout
        other._file = self._file.beside(layout)
        other._flushed = 0
        return other

    def horizon(self, frame: int) -> int:
        """Any frame can be written at any time."""
        return 0

    def extend(self, frames: int) -> None:
        """Make room for so many frames."""
        self._file.extend(frames)

    def write(self, place: tuple[int, ...], chunk: Encoded) -> None:
        """Write one chunk."""
        self._file.write(place, chunk)

    def flush(self, stored: int, notes: Notes) -> int:
        """All that is complete; nothing is left to be done where an interrupt came once the file was closed."""
        if self._file.is_open:
            self._check_present()
            if not self._swmr:
                self._file.note(notes)
            self._file.flush()
        self._flushed = stored
        return stored

    def sync(self, stored: int, notes: Notes) -> int:
        """All that is complete."""
        self.flush(stored, notes)
        self._file.sync()
        sync_folder(self._path.parent)
        return stored

    def close(self, notes: Notes) -> None:
        """Close the file; in SWMR mode, which allows no new attributes, open it once more for these."""
        if not self._swmr and self._file.is_open:
            self._file.note(notes)
        self._file.close()
        if self._swmr:
            annotate(self._path, self._layout.dataset, notes)

    def save(self, stored: int, notes: Notes) -> int:
        """All that is complete, if the file is still there."""
        if self._file.discarded:  # by what is written beside
            return self._flushed
        try:
            self._check_present()
        except OSError:
            self._file.discard()
            return 0
        if self._file.save(stored, notes):
            return stored
        if self._swmr:
            clear_flag(self._path)
        return self._flushed

    def _check_present(self) -> None:
        """Raise OSError if the file under our name is no longer the one that we write."""
        if not self._file.same_as(self._path):
            raise FileNotFoundError(f"{self._path} was replaced")
