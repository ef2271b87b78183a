"""Frames that are written anew, dealt out to data files as a Dectris Eiger has them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py

from tuner.apply.master import EIGER_DATASET, Piece, data_files, image_numbers, link, part_name
from tuner.apply.nexus import data_group
from tuner.apply.scan_file import sync_folder
from tuner.apply.target import check_target, publish, temporary_name
from tuner.read.hdf5 import Hdf5Source
from tuner.read.nexus import SERIES
from tuner.stack import Stack

#: Creates the dataset of a data file: of a group, under a name, for so many frames.
Make = Callable[[h5py.Group, str, int], h5py.Dataset]


def becomes_eiger(stack: Stack, target: Path, layout: str | None) -> bool:
    """Whether a stack is written as a master with data files: as `layout` says, else where it is and the name fits."""
    if layout is not None:
        return layout == "eiger"
    return _is_series(stack) and target.name.endswith("_master.h5")


def frames_of_a_file(stack: Stack) -> int:
    """As many as the data files had that a stack is read from, or what Dectris takes by default."""
    return stack.source.shapes[0][0] if isinstance(stack.source, Hdf5Source) and _is_series(stack) else 1000


def _is_series(stack: Stack) -> bool:
    return SERIES.fullmatch((stack.dataset or "").rpartition("/")[2]) is not None


class DataFiles:
    """The data files of one master, under temporary names until `publish`; their chunks come in the order of frames.

    Parameters
    ----------
    master : Path
        Where the master will be.
    frames : int
        In a data file; whole chunks.
    total : int
        Frames of all.
    make : callable
    """

    def __init__(self, master: Path, frames: int, total: int, make: Make) -> None:
        self._master = master
        self._frames = frames
        self._total = total
        self._make = make
        self._pieces: list[Piece] = []
        self._open: h5py.Dataset | None = None

    def write(self, place: tuple[int, ...], chunk: bytes | memoryview) -> None:
        """Write a chunk by its place in the whole stack."""
        number, first = divmod(place[0], self._frames)
        self._begin(number + 1)
        assert self._open is not None
        self._open.id.write_direct_chunk((first, *place[1:]), chunk)

    def join(self, group: h5py.Group) -> list[tuple[int, h5py.Dataset]]:
        """Finish the last file and link all in a group; number of the first frame and dataset of each, to be read."""
        self._begin(-(-self._total // self._frames))
        self._close()
        link(group, self._pieces)
        return [
            (piece.start, h5py.File(self._path(piece, hidden=True), locking=False)[EIGER_DATASET])
            for piece in self._pieces
        ]

    def publish(self, temporary: Path, overwrite: bool) -> None:
        """Give all their names, the master last; of an older one that is replaced, nothing is left."""
        for path in (self._path(piece) for piece in self._pieces):
            check_target(path, overwrite)
        if overwrite:
            self._master.unlink(missing_ok=True)  # it must not lead to a mixture
            for _, old in list(data_files(self._master)):
                old.unlink()
        for piece in self._pieces:
            publish(self._path(piece, hidden=True), self._path(piece), overwrite)
        publish(temporary, self._master, overwrite)
        sync_folder(self._master.parent)

    def discard(self) -> None:
        """Remove what was not published."""
        self._close()
        for piece in self._pieces:
            self._path(piece, hidden=True).unlink(missing_ok=True)

    def _begin(self, count: int) -> None:
        """Have so many files; none is left out, as links do not say which frames they lead to."""
        while len(self._pieces) < count:
            self._close()
            start = len(self._pieces) * self._frames
            name = part_name(self._master, len(self._pieces) + 1)
            piece = Piece(start, min(self._frames, self._total - start), name)
            self._pieces.append(piece)
            file = h5py.File(self._path(piece, hidden=True), "x", locking=False)
            *_, name = EIGER_DATASET.split("/")
            self._open = self._make(data_group(file, EIGER_DATASET), name, piece.frames)
            self._open.attrs.update(image_numbers(piece))

    def _close(self) -> None:
        if self._open is not None:
            file = self._open.file
            file.flush()
            os.fsync(file.id.get_vfd_handle())
            file.close()
            self._open = None

    def _path(self, piece: Piece, hidden: bool = False) -> Path:
        path = self._master.with_name(piece.name)
        return temporary_name(path) if hidden else path
