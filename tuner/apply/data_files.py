"""Frames that are written anew, dealt out to data files as a Dectris Eiger has them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py

from tuner.apply.master import EIGER_DATA, EIGER_DATASET, Piece, data_files, image_numbers, link, part_name
from tuner.apply.nexus import data_group
from tuner.apply.scan_file import close_once, closing_once, sync_folder
from tuner.apply.target import check_target, publish, reason, temporary_name
from tuner.errors import TunerError
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

    def join(self, group: h5py.Group) -> None:
        """Finish the last file and link all in a group."""
        self._begin(-(-self._total // self._frames))
        self._close()
        link(group, self._pieces)

    @contextlib.contextmanager
    def parts(self) -> Iterator[list[tuple[int, h5py.Dataset]]]:
        """Number of the first frame and dataset of each finished file, to be read in a block."""
        with contextlib.ExitStack() as opened:
            paths = [(piece.start, self._path(piece, hidden=True)) for piece in self._pieces]
            files = [(start, opened.enter_context(h5py.File(path, locking=False))) for start, path in paths]
            yield [(start, file[EIGER_DATASET]) for start, file in files]

    def publish(self, temporary: Path, overwrite: bool) -> None:
        """Give all their names, the master last; of an older one that is replaced, nothing is left.

        A kill at any moment leaves the older master with its data files or the new one with its own.
        """
        for path in (self._path(piece) for piece in self._pieces):
            check_target(path, overwrite)
        if overwrite:
            sync_folder(self._master.parent)
            _relink(temporary, self._master, [self._path(piece, hidden=True).name for piece in self._pieces])
            self._pieces.clear()  # they are the master's from here on
            settle(self._master)
            return
        for piece in self._pieces:
            publish(self._path(piece, hidden=True), self._path(piece), overwrite)
        publish(temporary, self._master, overwrite)
        sync_folder(self._master.parent)

    def discard(self) -> None:
        """Remove what was not published."""
        if self._open is not None:
            with contextlib.suppress(OSError, RuntimeError):
                close_once(self._open.file)
            self._open = None
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
            try:
                self._open = self._make(data_group(file, EIGER_DATASET), name, piece.frames)
            except BaseException:
                close_once(file)
                raise
            self._open.attrs.update(image_numbers(piece))

    def _close(self) -> None:
        if self._open is not None:
            file = self._open.file
            file.flush()
            os.fsync(file.id.get_vfd_handle())
            self._open = None
            close_once(file)

    def _path(self, piece: Piece, hidden: bool = False) -> Path:
        path = self._master.with_name(piece.name)
        return temporary_name(path, "copy") if hidden else path


def settle(master: Path) -> None:
    """Have the data files of a master that links them by temporary names take their own, in the place of older ones.

    Whoever opens the master meanwhile finds all of its frames. It does nothing where that was done before.

    Raises
    ------
    TunerError
        Where it cannot be done; the master is whole, and this can be called again.
    """
    with h5py.File(master, locking=False) as file:
        group = file[EIGER_DATA]
        links = [group.get(name, getlink=True) for name in sorted(group) if SERIES.fullmatch(name)]
    own = [part_name(master, number) for number in range(1, len(links) + 1)]
    hidden = [
        (master.with_name(there.filename), master.with_name(name))
        for there, name in zip(links, own, strict=True)
        if re.fullmatch(rf"\.{re.escape(name)}\.\d+\.copy", getattr(there, "filename", ""))
    ]
    if not hidden:
        return
    try:
        for path, final in hidden:
            _give_name(path, final)
        sync_folder(master.parent)
        _relink(master, master, own)
        for number, old in list(data_files(master)):
            if number > len(own):
                old.unlink()
        for path, _ in hidden:
            path.unlink(missing_ok=True)
        sync_folder(master.parent)
    except (OSError, RuntimeError) as error:
        raise TunerError(
            f"{master}: is whole, but its data files have temporary names: {reason(error)}; tuner recover renames them"
        ) from None


def _give_name(path: Path, final: Path) -> None:
    """Another name for a file, in the place of what has it; it keeps its own where the file system has hard links."""
    spare = path.with_suffix(".link")
    spare.unlink(missing_ok=True)
    try:
        spare.hardlink_to(path)
    except OSError:
        if path.exists():
            path.replace(final)
    else:
        spare.replace(final)
        spare.unlink(missing_ok=True)  # both were the same already


def _relink(master: Path, target: Path, names: Sequence[str]) -> None:
    """Replace a file by a master that links data files of other names, in one step."""
    temporary = temporary_name(target, "copy")
    try:
        shutil.copyfile(master, temporary)
        with closing_once(h5py.File(temporary, "r+", locking=False)) as file:
            link(file[EIGER_DATA], [Piece(0, 0, name) for name in names])
            file.flush()
            os.fsync(file.id.get_vfd_handle())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)
