"""Triage: frames without peaks are left out, but for some that are kept to audit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tuner.document import Interval, Number, OneOf
from tuner.noise import Noise
from tuner.steps.reductions import Form, check_parameters

#: Edge of the squares that a background is taken of, pixels.
_EDGE = 32

#: Turns the distance of the quartiles into a standard deviation, for Gaussian values.
_QUARTILES = 1 / 1.349

#: Edge of the boxes that pixels are added in to find weaker peaks; odd.
_BOX = 3


@dataclass(frozen=True, slots=True)
class Triage:
    """Keep frames with so many peaks, and every so many-th of those without.

    A peak is a pixel that is the largest of its 3 x 3 and stands out of the background of its square of 32 x 32 pixels:
    by more than `sigmas` times the spread of that, which its quartiles tell, and by more than `least`. Flats, darks and
    the like are kept.

    >>> frames = np.zeros((3, 40, 40), "uint16")
    >>> frames[1, 5::10, 5::10] = 50
    >>> triage = Triage(peaks=10, least=20.0)
    >>> [triage.count(frame, np.ones((40, 40), bool)) for frame in frames]
    [0, 16, 0]
    """

    peaks: int
    """From how many peaks on a frame is kept."""
    least: float
    """What a peak is at least above its background, data units."""
    sigmas: float = 6.0
    """What it is at least above it in standard deviations of the background."""
    audit: int = 50
    """Of the frames without, each so many-th is kept."""

    name: ClassVar[str] = "triage"
    valid: ClassVar[Mapping[str, Number | Interval | OneOf]] = {
        "peaks": Interval(1),
        "least": Number(above=0.0),
        "sigmas": Number(above=0.0),
        "audit": Interval(1),
    }

    def __post_init__(self) -> None:
        check_parameters(self)

    @property
    def parts(self) -> tuple[int, int]:
        """Frames that make one frame, and pixels along an axis that make one pixel."""
        return 1, 1

    def form(self, before: Form) -> Form:
        """As it was."""
        return before

    def frames(self, frames: NDArray[Any], before: Form, after: Form) -> NDArray[Any]:
        """As they were: which frames there are is not theirs to say."""
        return frames

    def noise(self, noise: Noise, ndim: int) -> Noise:
        """As it was."""
        return noise

    def count(self, frame: NDArray[Any], valid: NDArray[np.bool_]) -> int:
        """Peaks of one frame among the pixels that count."""
        values = np.where(valid, frame, 0).astype(np.float32)
        return self._count(np.atleast_2d(values), np.atleast_2d(valid), self.least)

    def count_weak(self, frame: NDArray[Any], valid: NDArray[np.bool_]) -> int:
        """The same where the pixels of each 3 x 3 are added first, by which weaker peaks stand out too.

        A box with a pixel that does not count is none.
        """
        values = np.where(valid, frame, 0).astype(np.float32)
        boxes = _boxes(np.atleast_2d(values), np.add)
        return self._count(boxes, _boxes(np.atleast_2d(valid), np.logical_and), self.least)

    def _count(self, values: NDArray[np.float32], valid: NDArray[np.bool_], least: float) -> int:
        rows, columns = np.nonzero(valid & (values > self._threshold(values, valid, least)))
        padded = np.pad(np.where(valid, values, -np.inf), 1, constant_values=-np.inf)
        centre = padded[rows + 1, columns + 1]
        largest = np.ones(len(rows), np.bool_)
        for row, column in np.ndindex(3, 3):
            beside = padded[rows + row, columns + column]
            # Of several that are alike, the first.
            largest &= centre > beside if (row, column) < (1, 1) else centre >= beside
        return int(np.count_nonzero(largest))

    def _threshold(self, values: NDArray[np.float32], valid: NDArray[np.bool_], least: float) -> NDArray[np.float32]:
        """What a peak is above, same shape."""
        high, wide = (min(_EDGE, size) for size in values.shape)
        rows, columns = (-(-size // edge) for size, edge in zip(values.shape, (high, wide), strict=True))
        padding = ((0, rows * high - values.shape[0]), (0, columns * wide - values.shape[1]))
        squares = np.pad(np.where(valid, values, np.inf), padding, constant_values=np.inf)
        squares = squares.reshape(rows, high, columns, wide).swapaxes(1, 2).reshape(rows, columns, high * wide)
        ordered = np.sort(squares, axis=-1)
        most = np.maximum(np.count_nonzero(np.isfinite(ordered), axis=-1) - 1, 0)
        first, median, third = (np.take_along_axis(ordered, (most * q // 4)[..., None], -1)[..., 0] for q in (1, 2, 3))
        with np.errstate(invalid="ignore"):  # a square in which nothing counts
            level = median + np.maximum(self.sigmas * _QUARTILES * (third - first), least)
        whole = np.repeat(np.repeat(level, high, axis=0), wide, axis=1)
        return np.asarray(whole[: values.shape[0], : values.shape[1]], np.float32)


def _boxes(values: NDArray[Any], join: np.ufunc) -> NDArray[Any]:
    """The pixels of the box around each joined, same shape; beyond the edge are zeros."""
    for axis in range(2):
        padding = [(_BOX // 2, _BOX // 2) if a == axis else (0, 0) for a in range(2)]
        padded = np.moveaxis(np.pad(values, padding), axis, 0)
        shifted = [padded[i : i + values.shape[axis]] for i in range(_BOX)]
        joined = shifted[0]
        for other in shifted[1:]:
            joined = join(joined, other)
        values = np.moveaxis(joined, 0, axis)
    return values
