"""Files of a writer that was killed: made to open again, and which of their frames are safe."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from tuner.apply.bitshuffle import BitshuffleEncoder
from tuner.apply.checksum import CHECKSUM_NBYTES, fletcher32
from tuner.apply.cut import tiles_of
from tuner.apply.data_files import settle
from tuner.apply.master import (
    EIGER_DATA,
    EIGER_DATASET,
    Piece,
    count_images,
    data_files,
    image_numbers,
    is_eiger,
    join,
    label_of,
    link,
    part_name,
    unfinished,
)
from tuner.apply.provenance import has_process
from tuner.apply.runs import Runs
from tuner.apply.scan_file import LIBVER, sync_folder
from tuner.apply.superblock import clear_flag
from tuner.apply.target import publish, temporary_name
from tuner.apply.torn import mend_torn
from tuner.container import BLOSC2, CONTAINERS
from tuner.errors import InputError
from tuner.read.links import DEAD_LINK, as_text, groups, link_at, peek, walk
from tuner.read.nexus import SERIES, find_frames
from tuner.read.storage import refusing_damage


def recover(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Make the file of a writer that was killed open again, and say which of its frames are safe.

    A flag that SWMR access leaves is cleared, and the checksums of blocks of metadata that a kill may have torn, as
    they lie in two pages, are made right. Of a master that joins data files, the one that was being written is
    finished with its safe frames, and the master is replaced by one that joins it too.

    Parameters
    ----------
    path : path
        A file of any of the writer's accesses, whose writer is dead.

    Returns
    -------
    dict
        `dataset`, its `frames`, `cleared` (whether a flag was), `mended` (how many blocks), `finished` (names of data
        files), and runs [first, after the last] of frames that are `safe`: all their chunks are there and their
        checksums right. `beside`: what of this is to be said of other datasets that were written into the same file.

    Raises
    ------
    InputError
        No such file, no HDF5 file, a file that a process on this machine is writing, one without frames, or whose
        frames were not written with a profile; a master whose data files are not beside it.
    """
    place = Path(path)
    if not place.is_file():
        raise InputError(f"{place}: {'must be a file, got a folder' if place.is_dir() else 'no such file'}")
    check_unused(place)
    cleared = clear_flag(place)
    with refusing_damage(f"{place}: cannot be opened"):
        with h5py.File(place, locking=False) as file:
            ours = has_process(file)
        mended = mend_torn(place) if ours else 0
        with h5py.File(place, locking=False) as file:
            eiger = is_eiger(file)
            name = f"/{EIGER_DATASET}" if eiger else find_frames(file)[0]
            if not eiger and "tuner_digest" not in file[name].attrs:
                also = "; its flag is cleared" if cleared else ""
                raise InputError(f"{place}: {name} must be written with a profile to tell which frames are safe{also}")
            if not eiger and not file[name].is_virtual:
                dataset = file[name]
                beside = _beside(dataset, place)
                return {**_safe(dataset, place), "cleared": cleared, "mended": mended, "finished": [], "beside": beside}
            names = [name] if eiger else [name, *(other for other in _plotted(file) if other != name)]
    return _recover_rolling(place, names, eiger)


def _safe(dataset: h5py.Dataset, path: Path) -> dict[str, Any]:
    return {"dataset": dataset.name, "frames": len(dataset), "safe": safe_frames(dataset, path).array().tolist()}


def _beside(first: h5py.Dataset, path: Path) -> list[dict[str, Any]]:
    """The same of the other datasets that were written with a profile."""
    nodes = (node for _, node in walk(first.file) if isinstance(node, h5py.Dataset) and node != first)
    return [_safe(node, path) for node in nodes if "tuner_digest" in node.attrs]


def _plotted(file: h5py.File) -> Iterator[str]:
    """Datasets that were written with a profile, by the paths at which groups say that they are to be plotted."""
    for path, node in walk(file):
        signal = as_text(node.attrs.get("signal")) if isinstance(node, h5py.Group) else None
        if signal and isinstance(found := peek(node, signal), h5py.Dataset) and "tuner_digest" in found.attrs:
            yield f"{path}/{signal}"


def safe_frames(dataset: h5py.Dataset, path: Path) -> Runs:
    """Frames all of whose chunks are stored with the right checksum; decode, where the container has none.

    Parameters
    ----------
    dataset : h5py.Dataset
        Written by a writer: the first axis numbers frames.
    path : Path
        Of its file.
    """
    chunks = dataset.chunks
    tiles = tiles_of(dataset.shape[1:], chunks[1:])
    found: dict[int, int] = {}
    container = CONTAINERS.get(dataset.attrs.get("tuner_container", BLOSC2.name), BLOSC2)
    whole = _checksum_is_right if container.checked else BitshuffleEncoder(container, chunks, dataset.dtype).decodes
    with path.open("rb") as file:

        def look(chunk: Any) -> None:
            file.seek(chunk.byte_offset)
            data = file.read(chunk.size)
            if len(data) == chunk.size and whole(data):
                found[chunk.chunk_offset[0]] = found.get(chunk.chunk_offset[0], 0) + 1

        dataset.id.chunk_iter(look)
    runs = Runs()
    for first in sorted(found):
        if found[first] == tiles:
            runs.add(first, min(first + chunks[0], len(dataset)))
    return runs


def _checksum_is_right(chunk: bytes) -> bool:
    stated = int.from_bytes(chunk[-CHECKSUM_NBYTES:], "little")
    return len(chunk) > CHECKSUM_NBYTES and fletcher32(chunk[:-CHECKSUM_NBYTES]) == stated


def _recover_rolling(master: Path, names: list[str], eiger: bool) -> dict[str, Any]:
    if eiger:
        settle(master)
    found = [_recover_parts(master, name, label_of(name.strip("/"), names[0].strip("/"))) for name in names]
    mended = sum(torn for *_, torn in found)
    for left in master.parent.glob(f".{glob.escape(master.name)}.*.part"):  # a master that was not renamed any more
        check_unused(left)
        left.unlink()
    temporary = temporary_name(master)
    try:
        shutil.copyfile(master, temporary)
        with h5py.File(temporary, "r+", locking=False) as file:
            frames = [
                _link(file, pieces, master) if eiger else _join(file, name, pieces, master)
                for name, (pieces, *_) in zip(names, found, strict=True)
            ]
            file.flush()
            os.fsync(file.id.get_vfd_handle())
        publish(temporary, master, overwrite=True)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(master.parent)
    first, *beside = (
        {"dataset": name, "frames": count, "safe": safe.array().tolist()}
        for name, count, (_, safe, *_) in zip(names, frames, found, strict=True)
    )
    finished = [file for _, _, files, _ in found for file in files]
    return {**first, "cleared": False, "mended": mended, "finished": finished, "beside": beside}


def _recover_parts(master: Path, name: str, label: str) -> tuple[list[Piece], Runs, list[str], int]:
    """Finish the data files of a dataset: all that there are, their safe frames, those finished now, blocks mended."""
    safe, pieces, finished, mended = Runs(), [], [], 0
    for number, part in unfinished(master, label):
        check_unused(part)
        with contextlib.suppress(*DEAD_LINK):  # killed before its first flush, there is nothing in it
            mended += mend_torn(part)
            if _finish(part, master.with_name(part_name(master, number, label)), name):
                finished.append(part_name(master, number, label))
    for _, path in data_files(master, label):
        with h5py.File(path, locking=False) as file:
            dataset = file[name]
            start = int(dataset.attrs["image_nr_low"]) - 1
            pieces.append(Piece(start, len(dataset), path.name))
            for first, after in safe_frames(dataset, path).array().tolist():
                safe.add(start + first, start + after)
    return pieces, safe, finished, mended


def _join(file: h5py.File, name: str, pieces: list[Piece], master: Path) -> int:
    old = file[name]
    attributes, before = dict(old.attrs), len(old)
    shape, dtype, fill = old.shape[1:], old.dtype, old.fillvalue
    links = [
        (group, member)
        for group in groups(file)
        for member in group
        if isinstance(link_at(group, member), h5py.HardLink) and group[member] == old
    ]
    for group, member in links:
        del group[member]
    parent, _, own = name.rpartition("/")
    dataset = join(file[parent or "/"], own, pieces, shape, dtype, fill)
    if len(dataset) < before:
        raise InputError(f"{master}: must have the data files of {before} frames beside it, got {len(dataset)}")
    dataset.attrs.update(attributes)
    for group, member in links:
        if member not in group:  # in an NXdetector, too
            group[member] = dataset
    return len(dataset)


def _link(file: h5py.File, pieces: list[Piece], master: Path) -> int:
    """As many data files as follow each other without a gap, which links cannot tell of; their frames."""
    if not pieces and any(SERIES.fullmatch(member) for member in file[EIGER_DATA]):
        raise InputError(f"{master}: must have its data files beside it, got none")
    frames, whole = 0, []
    for piece in pieces:
        if piece.start != frames:
            break
        whole.append(piece)
        frames += piece.frames
    link(file[EIGER_DATA], whole)
    count_images(file, frames)
    return frames


def _finish(part: Path, path: Path, name: str) -> bool:
    """Give a data file its name with its safe frames; False, and it stays, where it has none."""
    with h5py.File(part, "r+", libver=LIBVER, locking=False) as file:
        dataset = file[name]
        start = int(dataset.attrs["image_nr_low"]) - 1
        safe = safe_frames(dataset, part).array()
        if not len(safe):
            return False
        count = int(safe[-1, 1])
        dataset.resize(count, axis=0)  # whole chunks: HDF5 would decode the last one to cut it
        dataset.attrs.update(image_numbers(Piece(start, count, part.name)))
        file.flush()
        os.fsync(file.id.get_vfd_handle())
    publish(part, path, overwrite=False)
    return True


def check_unused(path: Path) -> None:
    """Raise InputError where a process on this machine has the file open for writing."""
    target = path.stat()
    for descriptor in _descriptors():
        try:
            there = descriptor.stat()
            if (there.st_dev, there.st_ino) != (target.st_dev, target.st_ino):
                continue
            info = (descriptor.parent.parent / "fdinfo" / descriptor.name).read_text()
        except OSError:  # it is gone, or another user's
            continue
        flags = int(re.search(r"flags:\s*(\d+)", info)[1], 8)  # type: ignore[index]
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise InputError(f"{path}: must not be in use, is being written by process {descriptor.parts[2]}")


def _descriptors() -> Iterator[Path]:
    """What processes have open, as links in /proc; a process may end while it is looked at."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield from list((process / "fd").iterdir())
