"""TIFF: a file of many pages, or a series of files; a page is a frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.read.series import check_same, join_series, only_input_errors
from tuner.stack import Stack


def open_tiff(paths: Sequence[Path], axes: Sequence[str] | None = None) -> Stack:
    """Open TIFF files as one stack of shape (pages, rows, columns); pages are read one by one.

    Parameters
    ----------
    paths : sequence of Path
        At least one, in the order of the frames; each of one or more pages.
    axes : sequence of str, optional
        Names of the three axes.

    Raises
    ------
    InputError
        Naming the file that is cut, in colour, or whose pages differ in shape or dtype.
    """
    paths = [Path(path) for path in paths]
    counts: list[int] = []
    stored: list[int] = []
    first: Any = None
    for path in paths:
        with only_input_errors(path):
            file = _Pages(path)
            try:
                page: Any
                for page in file.pages:
                    first = page if first is None else first
                    _check_grey(path, page)
                    if page.dtype is None:
                        raise InputError(
                            f"{path}: must have samples of 1, 8, 16, 32 or 64 bits, got {page.bitspersample}"
                        )
                    check_same(path, page.shape, page.dtype, first.shape, first.dtype, paths[0])
                    stored.append(sum(page.databytecounts))
                counts.append(len(file))
            finally:
                file.close()
    if first is None:
        raise InputError(f"{paths[0]}: must have at least one page, got none")
    with only_input_errors(paths[0]):
        # Decodes one page now, so that a compression which is not installed is known before anything starts.
        frame = _first_page(paths[0])
    return join_series(paths, counts, _Pages, frame, np.array(stored, np.int64), _filters(first), axes)


class _Pages:
    """The pages of one TIFF file."""

    def __init__(self, path: Path) -> None:
        import tifffile

        # tifffile leaves a file open that it cannot make sense of; this one is ours to close.
        self._file = path.open("rb")
        try:
            self.pages = tifffile.TiffFile(self._file, name=path.name).pages
        except BaseException:
            self._file.close()
            raise
        # Frames as tifffile calls pages of which it reads few tags would take the first page's shape for granted.
        self.pages.useframes = False

    def __len__(self) -> int:
        return len(self.pages)

    def frame(self, index: int) -> NDArray[Any]:
        page: NDArray[Any] = self.pages[index].asarray()
        return page

    def close(self) -> None:
        self._file.close()


def _first_page(path: Path) -> NDArray[Any]:
    file = _Pages(path)
    try:
        return file.frame(0)
    finally:
        file.close()


def _check_grey(path: Path, page: Any) -> None:
    if page.samplesperpixel != 1:
        raise InputError(f"{path}: pages must be grey, one value a pixel, got {page.samplesperpixel} (colour)")
    if len(page.shape) != 2:
        raise InputError(f"{path}: pages must be images of rows and columns, got shape {page.shape}")


def _filters(page: Any) -> tuple[str, ...]:
    """The compression of a page, in TIFF's words; empty where there is none."""
    if page.compression == 1:
        return ()
    name = getattr(page.compression, "name", str(page.compression)).lower().replace("_", " ")
    predictor = () if page.predictor == 1 else (f"predictor {int(page.predictor)}",)
    return (*predictor, f"TIFF {name}")
