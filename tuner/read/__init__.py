"""File to stack: any file a beamline has, read piece by piece."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tuner.errors import InputError
from tuner.read.series import head_of
from tuner.stack import Stack

# fmt: off
_HDF5 = frozenset([".h5", ".hdf5", ".hdf", ".he5", ".nxs", ".nx", ".nx5", ".nexus", ".cxi", ".emd", ".hspy"])
_TIFF = frozenset([".tif", ".tiff", ".btf"])
_MRC = frozenset([".mrc", ".mrcs"])
_MIB = frozenset([".mib"])
_DM = frozenset([".dm3", ".dm4"])
#: Formats that fabio reads, by their usual endings; what is named one by one may end differently.
_FABIO = frozenset([
    ".cbf", ".edf", ".img", ".mccd", ".marccd", ".mar2300", ".mar3450", ".osc", ".stl", ".raxis", ".sfrm", ".gfrm",
    ".kccd", ".fit2d", ".f2d", ".spe", ".spr", ".esperanto", ".pnm", ".pgm", ".tri", ".hipic", ".xsd", ".msk",
])
# fmt: on
_COMPRESSED = frozenset([".bz2", ".gz"])

#: Formats of which all files are one stack.
_SERIES = ("tiff", "fabio")

#: What a file of a format has, and at which byte.
_SIGNATURES = (
    (0, b"\x89HDF\r\n\x1a\n", "hdf5"),
    (0, b"\x93NUMPY", "npy"),
    (0, b"II*\x00", "tiff"),
    (0, b"MM\x00*", "tiff"),
    (0, b"II+\x00", "tiff"),
    (0, b"MM\x00+", "tiff"),
    (0, b"MQ1,", "mib"),
    (208, b"MAP ", "mrc"),
)
_HEAD_NBYTES = 212


def open_stacks(
    paths: Sequence[str | os.PathLike[str]], dataset: str | None = None, axes: Sequence[str] | None = None
) -> list[Stack]:
    """Open files, folders and globs as stacks.

    Each HDF5, ``.npy``, MRC, MIB and DM file is a stack of its own. All TIFF files are one, as are all files of another
    format, in the order in which they are given; those of a folder or a glob, and a list that a shell made of one, in
    natural order (``2`` before ``10``). The data files of a Dectris master are left to the master.

    Parameters
    ----------
    paths : sequence of str or path
    dataset : str, optional
        Path of the dataset in each HDF5 file.
    axes : sequence of str, optional
        A name for each axis, those of a frame last.

    Raises
    ------
    InputError
        One line that begins with the path.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    return [_open(files, dataset, axes) for files in files_of_stacks(paths)]


def files_of_stacks(paths: Sequence[str | os.PathLike[str]]) -> list[list[Path]]:
    """The files of each stack that `open_stacks` makes of some paths: one, or those of a series.

    Raises
    ------
    InputError
        Where a folder or a glob holds nothing; what cannot be read is a stack of its own, and opening it says why.
    """
    stacks: dict[str, list[Path]] = {}
    for number, path in enumerate(_expand([Path(path) for path in paths])):
        try:
            format_ = _format(path)
        except InputError:
            format_ = "unknown"
        stacks.setdefault(format_ if format_ in _SERIES else str(number), []).append(path)
    return list(stacks.values())


def _open(files: list[Path], dataset: str | None, axes: Sequence[str] | None) -> Stack:
    path, format_ = files[0], _format(files[0])
    if dataset is not None and format_ != "hdf5":
        raise InputError(f"{path}: must be HDF5 where a dataset is named, got {format_} and {dataset!r}")
    if format_ == "hdf5":
        from tuner.read.hdf5 import open_hdf5

        return open_hdf5(path, dataset, axes)
    if format_ == "npy":
        from tuner.read.npy import open_npy

        return open_npy(path, axes)
    if format_ == "mrc":
        from tuner.read.mrc import open_mrc

        return open_mrc(path, axes)
    if format_ == "mib":
        from tuner.read.mib import open_mib

        return open_mib(path, axes)
    if format_ == "dm":
        from tuner.read.dm import open_dm

        return open_dm(path, axes)
    if format_ == "tiff":
        from tuner.read.tiff import open_tiff

        return open_tiff(files, axes)
    from tuner.read.fabio_series import open_fabio

    return open_fabio(files, axes)


def _expand(paths: list[Path]) -> list[Path]:
    """Replace folders by the readable files in them, and globs by what they match."""
    if not paths:
        raise InputError("files: must be at least one, got none")
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += _folder(path)
        elif not path.exists() and glob.has_magic(str(path)):
            root = Path(path.anchor or ".")
            matches = [match for match in root.glob(str(path.relative_to(path.anchor))) if match.is_file()]
            if not matches:
                raise InputError(f"{path}: must match a file, got none")
            files += natural(matches)
        else:
            files.append(path)
    files = _without_parts(files)
    # A shell sorts the names of a glob by characters; any other order is one that somebody chose.
    return natural(files) if files == sorted(files) else files


def _folder(folder: Path) -> list[Path]:
    try:
        inside = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    except PermissionError:
        raise InputError(f"{folder}: no permission to read it") from None
    known = _HDF5 | _TIFF | _MRC | _MIB | _DM | _FABIO | {".npy"}
    files = [path for path in inside if _suffix(path) in known]
    if not files:
        raise InputError(f"{folder}: must hold files of a format that can be read, got none of {len(inside)}")
    return natural(files)


def _without_parts(files: list[Path]) -> list[Path]:
    """Leave the data files of a Dectris master to the master."""
    masters = {str(path).rpartition("_master.")[0] for path in files}
    return [path for path in files if re.sub(r"_data_\d+\.\w+$", "", str(path)) not in masters]


def natural(paths: Iterable[Path]) -> list[Path]:
    """Sort paths with the numbers in them compared as numbers.

    >>> [path.name for path in natural([Path("a10.cbf"), Path("a2.cbf")])]
    ['a2.cbf', 'a10.cbf']
    """

    def key(path: Path) -> list[tuple[int, str]]:
        parts = re.split(r"([0-9]+)", str(path))  # every second one is a number
        return [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]

    return sorted(paths, key=key)


def _suffix(path: Path) -> str:
    """The ending of a file's name in lower case, without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _format(path: Path) -> str:
    """The name of a format: by the ending where that is sure (MarCCD has TIFF's signature), else by content."""
    head = head_of(path, _HEAD_NBYTES)
    suffix = _suffix(path)
    if suffix in _HDF5:
        return "hdf5"
    if suffix in _FABIO:
        return "fabio"
    if suffix in _DM:
        return "dm"
    for place, signature, format_ in _SIGNATURES:
        if head.startswith(signature, place):
            return format_
    if suffix in _MRC:
        return "mrc"
    if suffix in _MIB:
        return "mib"
    if suffix == ".npy":
        return "npy"
    if suffix in _TIFF:
        return "tiff"
    import h5py

    return "hdf5" if h5py.is_hdf5(path) else "fabio"  # HDF5 after a user block
