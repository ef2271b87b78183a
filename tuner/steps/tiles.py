"""Tiles of a frame: their means, and their sums shared out among their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.stack import Marks
from tuner.steps.uniform import MANTISSA

#: Levels up to this are shared out, so that all sums are exact; more widths than that are no background.
_MOST = 1 << 22


@dataclass(frozen=True, slots=True)
class Tiles:
    """A frame of multiples of a width, cut into tiles; those at its end may be smaller.

    Everything is counted in whole levels, so that sums are exact, and what is found of a frame is found again once its
    sums are shared out.
    """

    frame: NDArray[Any]
    """Shape (rows, columns)."""
    levels: NDArray[np.int32]
    """Multiples of the width, 0 where not `among`; shape (tiles, edge, tiles, edge)."""
    among: NDArray[np.bool_]
    """True for pixels that count and are multiples, same shape."""
    width: float
    """Distance of two levels, data units."""

    @classmethod
    def of(cls, frame: NDArray[Any], valid: NDArray[np.bool_], edge: int, width: float) -> Tiles:
        """Those of a frame that was rounded to multiples of a width, as far as pixels are `valid`."""
        most: float = _MOST
        if frame.dtype.kind == "f":
            most = min(most, 2.0 ** (MANTISSA[frame.dtype.itemsize] - 1))  # beyond, floats cannot tell levels apart
            multiples: NDArray[Any] = np.rint(np.divide(frame, width, dtype=np.float64))
        else:
            multiples = frame // frame.dtype.type(int(width))
        among = valid & (multiples < most) & (multiples > -most)
        levels = multiples.astype(np.int32)
        among &= _values(levels, width, frame.dtype) == frame
        return cls(frame, _cut(levels * among, edge), _cut(among, edge), width)

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The mean of each tile, data units, and whether it has any; shape (tiles, tiles)."""
        pixels = _sums(self.among)
        return _sums(self.levels) * float(self.width) / np.maximum(pixels, 1), pixels > 0

    def shared(self, chosen: NDArray[np.bool_], marks: Marks) -> NDArray[Any]:
        """The frame with the sum of the chosen pixels of each tile shared out among them, as new array.

        They differ by at most one level, and the first ones, row by row, have the higher one; the sum stays. A tile in
        which that would make a pixel that does not count stays as it was.
        """
        edge, columns = self.levels.shape[1], self.levels.shape[2]
        among = self.among & _cut(chosen, edge)
        pixels = _sums(among)
        each, rest = np.divmod(_sums(self.levels * among), np.maximum(pixels, 1))
        out = np.empty_like(self.levels)
        wide, more = np.repeat(each, edge, axis=-1), np.repeat(rest, edge, axis=-1)
        for row in range(edge):
            rank = np.tile(np.arange(row * edge, (row + 1) * edge, dtype=np.int32), columns)
            out[:, row] = (wide + (rank < more)).reshape(len(out), columns, edge)
        some = np.nonzero((pixels > 0) & (pixels < edge * edge))  # ranks are of the chosen alone
        parts = among.swapaxes(1, 2)[some].reshape(len(some[0]), edge * edge)
        rank = np.cumsum(parts, axis=-1, dtype=np.int32) - 1
        out.swapaxes(1, 2)[some] = (each[some][:, None] + (rank < rest[some][:, None])).reshape(-1, edge, edge)
        values = _values(out, self.width, self.frame.dtype)
        if (spoilt := among & ~marks.valid(values)).any():
            among &= ~spoilt.any(axis=(1, 3), keepdims=True)
        rows, across = self.frame.shape
        whole = (len(out) * edge, columns * edge)
        changed, values = (array.reshape(whole)[:rows, :across] for array in (among, values))
        return np.where(changed, values, self.frame)


def _cut(frame: NDArray[Any], edge: int) -> NDArray[Any]:
    """A frame as tiles, 0 beyond its end; shape (tiles, edge, tiles, edge)."""
    padding = [(0, -extent % edge) for extent in frame.shape]
    whole = np.pad(frame, padding) if np.any(padding) else frame
    return whole.reshape(whole.shape[0] // edge, edge, whole.shape[1] // edge, edge)


def _sums(tiles: NDArray[Any]) -> NDArray[np.int32]:
    """Of each tile, shape (tiles, tiles)."""
    rows: NDArray[np.int32] = tiles.sum(axis=1, dtype=np.int32)
    return sum((rows[..., column] for column in range(1, rows.shape[-1])), rows[..., 0])


def _values(levels: NDArray[np.int32], width: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Levels in data units."""
    if dtype.kind == "f":
        return (levels * float(width)).astype(dtype)
    return np.asarray(levels.astype(dtype) * dtype.type(int(width)))
