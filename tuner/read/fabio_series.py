"""The formats that fabio reads (CBF, EDF, SMV, MarCCD...), also compressed with bzip2 or gzip, as a series of files."""

from __future__ import annotations

import bz2
import gzip
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.read.series import check_same, join_series, only_input_errors
from tuner.stack import Stack

_OUTER = {".bz2": "bzip2", ".gz": "gzip"}
_OPENERS: dict[str, Callable[[Path], Any]] = {".bz2": bz2.BZ2File, ".gz": gzip.GzipFile}

#: Hybrid photon counters of Dectris, by the name that their headers give the detector.
_COUNTERS = re.compile(r"Detector:\s*(?:Dectris\s+)?(?:PILATUS|EIGER|MYTHEN)", re.IGNORECASE)

#: fabio looks for the binary section in the first 8 KiB of a CBF file, and for its start right behind.
_CBF_HEADER = 16 * 512 + 4096
_CBF_START = b"\x0c\x1a\x04\xd5"


def open_fabio(paths: Sequence[Path], axes: Sequence[str] | None = None) -> Stack:
    """Open files of one series as one stack of shape (frames, rows, columns); one file is open at a time.

    Only the first file is opened here, unless files may have several frames (EDF, or where the first one does): those
    of a series have to be like it, and one that is not is named when it is read.

    Parameters
    ----------
    paths : sequence of Path
        At least one, in the order of the frames.
    axes : sequence of str, optional
        Names of the three axes.

    Raises
    ------
    InputError
        Naming the file that is cut, of an unknown format, or whose frames differ in shape or dtype.
    """
    paths = [Path(path) for path in paths]
    with only_input_errors(paths[0]):
        file = _Frames(paths[0])
        try:
            frame, header, format_ = file.frame(0), file.header, file.format
            counts = [len(file)]
        finally:
            file.close()
    several = format_ == "EDF" or counts[0] > 1
    counts += [_count(path, frame, paths[0]) if several else 1 for path in paths[1:]]
    sizes = [_size(path) // count for path, count in zip(paths, counts, strict=True)]
    stored = np.repeat(np.array(sizes, np.int64), counts)
    return join_series(
        paths,
        counts,
        _Frames,
        frame,
        stored,
        _filters(paths[0], format_, header),
        axes,
        saturation=_saturation(header),
        photon_counting=True if _COUNTERS.search(header.get("_array_data.header_contents", "")) else None,
    )


class _Frames:
    """The frames of one file."""

    def __init__(self, path: Path) -> None:
        import fabio

        _check_cbf(path)
        try:
            self._image = fabio.open(str(path))
        except OSError as error:
            if "could not identify" not in str(error):
                raise
            known = "must be HDF5, NumPy, MRC, MIB, DM, TIFF or of a format that fabio reads"
            raise InputError(f"{path}: {known}, got an unknown format: h5py puts other frames into HDF5") from None
        self.header: Mapping[str, str] = {str(key): str(value) for key, value in self._image.header.items()}
        self.format = type(self._image).__name__.removesuffix("Image").upper()

    def __len__(self) -> int:
        return int(self._image.nframes)

    def frame(self, index: int) -> NDArray[Any]:
        image = self._image if len(self) == 1 else self._image.get_frame(index)
        data: NDArray[Any] | None = image.data
        if data is None:
            raise EOFError("the frame has no pixels")
        return data

    @property
    def frame_type(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype, without reading pixels where the format allows."""
        return tuple(self._image.shape), np.dtype(self._image.dtype)

    def close(self) -> None:
        self._image.close()


def _size(path: Path) -> int:
    with only_input_errors(path):
        return path.stat().st_size


def _count(path: Path, first: NDArray[Any], first_path: Path) -> int:
    with only_input_errors(path):
        file = _Frames(path)
        try:
            check_same(path, *file.frame_type, first.shape, first.dtype, first_path)
            return len(file)
        finally:
            file.close()


def _check_cbf(path: Path) -> None:
    """Raise InputError where a CBF header does not end: fabio 2026.6 would look for its end for ever."""
    with _OPENERS.get(path.suffix.lower(), io.FileIO)(path) as file:
        head = file.read(_CBF_HEADER)
    is_cbf = head.startswith(b"###CBF") or ".cbf" in [suffix.lower() for suffix in path.suffixes]
    section = head.find(b"--CIF-BINARY-FORMAT-SECTION--")
    if is_cbf and (section < 0 or head.find(_CBF_START, section) < 0):
        raise InputError(f"{path}: is cut or damaged: the CBF header does not end")


def _saturation(header: Mapping[str, str]) -> float | None:
    """The least value that could not be counted: one above the cut-off of a Dectris counter, or an SMV overload."""
    cutoff = re.search(r"Count_cutoff\s+(\d+)", header.get("_array_data.header_contents", ""))
    if cutoff:
        return float(cutoff[1]) + 1
    overload = header.get("CCD_IMAGE_SATURATION", "")
    return float(overload) if overload.isdigit() and int(overload) else None


def _filters(path: Path, format_: str, header: Mapping[str, str]) -> tuple[str, ...]:
    inner = header.get("conversions", "").removeprefix("x-") if format_ == "CBF" else header.get("COMPRESSION", "")
    outer = _OUTER.get(path.suffix.lower(), "")
    return tuple(text for text in (inner.replace("_", " ").lower().replace("cbf", "CBF"), outer) if text)
