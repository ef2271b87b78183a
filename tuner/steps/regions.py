"""Steps that keep places of a frame exactly and round what is around them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tuner.document import Interval, Number
from tuner.errors import InputError
from tuner.noise import Noise
from tuner.stack import Marks
from tuner.steps.noise_aware import Octave
from tuner.steps.pointwise import check_parameters, round_pixels
from tuner.steps.tiles import Tiles
from tuner.steps.uniform import Uniform

#: Edge of the squares that a background is taken of, pixels, about; and the least, in tiles.
_EDGE, _TILES = 32, 8

#: Turns the distance of the quartiles into a standard deviation, for Gaussian values.
_QUARTILES = 1 / 1.349


@runtime_checkable
class Regional(Protocol):
    """A step that keeps some places of each frame."""

    @property
    def width(self) -> float:
        """Of the other pixels' levels, data units."""
        ...

    @property
    def bin(self) -> int:
        """Edge of the tiles over which the other pixels are shared out."""
        ...

    @property
    def around(self) -> Uniform | Octave:
        """The rounding of all other pixels."""
        ...

    def kept(
        self,
        frame: NDArray[Any],
        valid: NDArray[np.bool_],
        background: NDArray[Any],
        known: NDArray[np.bool_],
        noise: Noise | None,
    ) -> NDArray[np.bool_]:
        """True where pixels stay, shape (rows, columns) as the frame and `valid`.

        The background is the frame rounded everywhere, or of such a frame the means of tiles, as far as they are
        `known`. Neither rounding what is not kept nor sharing it out must make less of it.
        """
        ...


@np.errstate(over="ignore", invalid="ignore")
def round_around(
    step: Regional, frames: NDArray[Any], marks: Marks, mask: NDArray[np.bool_] | None, noise: Noise | None
) -> NDArray[Any]:
    """Frames with every valid pixel rounded, and binned, but those that are kept: new array, same shape and dtype.

    Parameters
    ----------
    step : Regional
    frames : ndarray
        Shape (n, *frame_shape); a spectrum is a frame of one row.
    marks : Marks
        Which values do not count.
    mask : ndarray of bool, optional
        True where a pixel does not count in any frame, shape of a frame.
    noise : Noise, optional

    Raises
    ------
    InputError
        Where what is to be kept is not in the frame.
    """
    result = round_pixels(step.around, frames, marks, noise)
    for frame, rounded in zip(frames, result, strict=True):
        whole, into, valid = (np.atleast_2d(array) for array in (frame, rounded, marks.valid(frame, mask)))
        if step.bin == 1:
            kept = step.kept(whole, valid, into, valid, noise)
        else:
            tiles = Tiles.of(into, valid, step.bin, step.width)
            kept = step.kept(into, valid, *tiles.means(), noise)
            into[...] = tiles.shared(~kept, marks)
        np.copyto(into, whole, where=kept)
    return result


class _Around:
    """What steps do to what they do not keep.

    They round it to multiples of `width`, which may be binned then, or to `octave` levels in proportion to noise.
    """

    __slots__ = ()

    width: float
    sigma: float
    grid: float
    bin: int

    @property
    def around(self) -> Uniform | Octave:
        """The rounding of all other pixels."""
        return Uniform(self.width) if self.width else Octave(self.sigma, self.grid)

    def __post_init__(self) -> None:
        check_parameters(self)
        if (self.width > 0) == (self.sigma > 0):
            raise InputError(f"either width or sigma must be above 0, got {self.width:g} and {self.sigma:g}")
        if self.bin > 1 and not self.width:
            raise InputError(f"bin must be 1 where width is not given, got {self.bin}")

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be rounded so."""
        if self.sigma and noise is None:
            raise InputError("sigma must be 0 where there is no noise model")
        self.around.check(dtype, noise)

    def bound(self, values: NDArray[Any], noise: Noise | None) -> NDArray[np.float64]:
        """The most that each value can move by, data units; none by construction where tiles are shared out."""
        return self.around.bound(values, noise) if self.bin == 1 else np.full(values.shape, np.inf)


_ROUNDED = {name: Number(least=0.0) for name in ("width", "sigma", "grid")} | {"bin": Interval(1, 8)}


@dataclass(frozen=True, slots=True)
class Regions(_Around):
    """Keep all pixels near a peak exactly, and round the rest, or bin it.

    A pixel is of a peak where it is more than `sigmas` standard deviations above the background of its square of about
    32 x 32 pixels: the median, and the larger of the noise there and of what the quartiles tell. Both are taken of the
    frame rounded everywhere, so that they are the same once peaks alone are as they were, and the threshold lies higher
    by what the median may have moved. Without a noise model peaks of less than about three widths may not be found.

    With `bin` frames stay as large as they are, but the other pixels of each tile of ``bin`` x ``bin`` tell no more
    than their sum: it is shared out evenly in multiples of `width`, and what is over goes to the first pixels, row by
    row. No sum of a tile is lost, however few counts it has, as it would be if means were rounded. Background and
    quartiles are of the tiles' means then, in squares of at least 8 x 8 tiles. Pixels of 4 million widths and more, and
    tiles in which a pixel would no longer count, are only rounded.

    Law: twice is once, and each pixel within `radius` of one of a peak stays; without `bin` no other moves by more than
    the rounding allows, with it each tile's sum is that of its rounded pixels. ROIBIN-SZ (Underwood et al., Synchrotron
    Radiation News 36, 17, 2023), but for its SZ.

    >>> frame = np.array([[[3, 2, 4, 3, 2, 57, 90, 5, 2, 3]]], "uint16")
    >>> round_around(Regions(6.0, 1, width=4), frame, Marks(), None, None).tolist()
    [[[4, 0, 4, 4, 2, 57, 90, 5, 0, 4]]]
    >>> round_around(Regions(6.0, 1, width=1, bin=4), frame, Marks(), None, None).tolist()
    [[[3, 3, 3, 3, 2, 57, 90, 5, 3, 2]]]
    """

    sigmas: float
    """Standard deviations above the background from which a pixel is of a peak."""
    radius: int
    """Pixels around it that stay, in rows and in columns."""
    width: float = 0.0
    """Of the other pixels' levels, data units; 0 where `sigma` is given."""
    sigma: float = 0.0
    """The most that the other pixels' levels lie apart, in standard deviations of their noise; 0 for `width`."""
    grid: float = 1.0
    """Of which the values are multiples, data units; 0 for floats that are of none. Matters with `sigma` alone."""
    bin: int = 1
    """Edge of the tiles over which the other pixels' levels are shared out, with `width`; 1 for none."""

    name: ClassVar[str] = "regions"
    valid: ClassVar[Mapping[str, Number | Interval]] = {
        "sigmas": Number(above=0.0),
        "radius": Interval(0, 64),
        **_ROUNDED,
    }

    def kept(
        self,
        frame: NDArray[Any],
        valid: NDArray[np.bool_],
        background: NDArray[Any],
        known: NDArray[np.bool_],
        noise: Noise | None,
    ) -> NDArray[np.bool_]:
        """True near a peak."""
        edge = max(_EDGE // self.bin, _TILES)
        (rows, high), (columns, wide) = (_squares(extent, edge) for extent in background.shape)

        def squares(array: NDArray[Any], tile: int) -> NDArray[Any]:
            shape = (rows, high * tile, columns, wide * tile)
            padding = ((0, rows * shape[1] - array.shape[0]), (0, columns * shape[3] - array.shape[1]))
            return (np.pad(array, padding) if np.any(padding) else array).reshape(shape)

        around, there = squares(background, 1), squares(known, 1)
        pixels, count = squares(frame, self.bin), squares(valid, self.bin)
        some = self._candidates(pixels, count, around, there, noise)
        flags = np.zeros(pixels.shape, np.bool_)
        if len(some[0]):
            shape = (len(some[0]), high * wide)
            values, among = (array.swapaxes(1, 2)[some].reshape(shape) for array in (around, there))
            # Pixels are noisier than tiles; but what these differ by beyond a noise that is known is the scene.
            size = min(self.bin, len(frame)) * min(self.bin, frame.shape[1])
            noisier = math.sqrt(size) if noise is None else 1.0
            threshold = self._threshold(values, among, noisier, noise)
            bright = pixels.swapaxes(1, 2)[some] > threshold[:, None, None]
            flags.swapaxes(1, 2)[some] = bright & count.swapaxes(1, 2)[some]
        whole = flags.reshape(rows * pixels.shape[1], columns * pixels.shape[3])
        return _within(whole[: frame.shape[0], : frame.shape[1]], self.radius)

    def _candidates(
        self,
        frame: NDArray[Any],
        valid: NDArray[np.bool_],
        background: NDArray[Any],
        known: NDArray[np.bool_],
        noise: Noise | None,
    ) -> tuple[NDArray[np.intp], ...]:
        """Where in (rows, columns) the squares are of which the brightest pixel may be above the threshold.

        Most of the background of a square is at least the median of its columns' least, and so is its median; at this
        value the threshold is no higher than at the median, and many squares are done without sorting their pixels.
        """
        if noise is None:  # quartiles alone tell the spread
            return np.nonzero(np.ones(frame.shape[::2], np.bool_))
        # What does not count may be 0 here: a square too many is looked at, never one too few.
        inside = np.where(valid, frame, _least(frame.dtype)) if frame.dtype.kind == "f" else frame * valid
        brightest = inside.max(axis=1).max(axis=-1)
        columns = np.where(known.all(axis=1), background.min(axis=1), _least(background.dtype))
        lowest = np.sort(columns, axis=-1)[..., (background.shape[-1] - 1) // 2]
        return np.nonzero(~(brightest <= self._above(lowest, np.zeros(1), noise)))

    def _threshold(
        self, values: NDArray[Any], valid: NDArray[np.bool_], noisier: float, noise: Noise | None
    ) -> NDArray[np.float64]:
        """What a peak is above, for each square of a background that spreads less than pixels do by a factor."""
        last = np.inf if values.dtype.kind == "f" else np.iinfo(values.dtype).max
        ordered = np.where(valid, values, values.dtype.type(last))
        # Of 8 bits numpy sorts a third as many as of 16.
        ordered = np.sort(ordered.astype(f"{values.dtype.kind}2") if values.dtype.itemsize == 1 else ordered, axis=-1)
        most = np.maximum(np.count_nonzero(valid, axis=-1) - 1, 0)
        low, median, high = (
            np.take_along_axis(ordered, (most * part // 4)[..., None], -1)[..., 0] for part in (1, 2, 3)
        )
        return self._above(median.astype(values.dtype), noisier * (high.astype(np.float64) - low), noise)

    def _above(self, median: NDArray[Any], apart: NDArray[np.float64], noise: Noise | None) -> NDArray[np.float64]:
        """What a peak is above where rounded pixels have a median, and quartiles so far apart."""
        moved = self.around.bound(median, noise)
        level = median + moved
        if noise is None:  # the quartiles tell no spread finer than the levels
            spread = (apart + moved) * _QUARTILES
        else:
            spread = np.maximum((apart - 2 * moved) * _QUARTILES, np.sqrt(noise.variance(level)))
        return np.asarray(level + self.sigmas * spread, np.float64)


def _squares(extent: int, most: int) -> tuple[int, int]:
    """How many squares an axis has, and their edge, `most` at most: all alike, but the last may be short."""
    edge = -(-extent // -(-extent // most))
    return -(-extent // edge), edge


def _least(dtype: np.dtype[Any]) -> Any:
    """The least value that a dtype holds."""
    return dtype.type(-np.inf if dtype.kind == "f" else np.iinfo(dtype).min)


def _within(flags: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """True where a flag is in the square of ``2 * radius + 1`` pixels, same shape."""
    if not radius or not flags.any():
        return flags
    near = np.pad(flags, radius)
    for axis in range(2):
        length = 1
        while length < 2 * radius + 1:  # each turn as much further as there is already
            step = min(length, 2 * radius + 1 - length)
            near = near[:-step] | near[step:] if axis == 0 else near[:, :-step] | near[:, step:]
            length += step
    return near


@dataclass(frozen=True, slots=True)
class Roi(_Around):
    """Keep a rectangle of every frame exactly, and round the rest, or bin it as `Regions` does.

    Law: twice is once, and each pixel of the rectangle stays; without `bin` no other moves by more than the rounding
    allows, with it each tile's sum is that of its rounded pixels.

    >>> frame = np.array([[[3, 2, 4, 3], [2, 5, 9, 5]]], "uint16")
    >>> round_around(Roi(1, 1, 1, 2, width=4), frame, Marks(), None, None).tolist()
    [[[4, 0, 4, 4], [0, 5, 9, 4]]]
    """

    top: int
    """The first row; 0 for spectra."""
    left: int
    """The first column."""
    rows: int
    """How many; 1 for spectra."""
    columns: int
    """How many."""
    width: float = 0.0
    """Of the other pixels' levels, data units; 0 where `sigma` is given."""
    sigma: float = 0.0
    """The most that the other pixels' levels lie apart, in standard deviations of their noise; 0 for `width`."""
    grid: float = 1.0
    """Of which the values are multiples, data units; 0 for floats that are of none. Matters with `sigma` alone."""
    bin: int = 1
    """Edge of the tiles over which the other pixels' levels are shared out, with `width`; 1 for none."""

    name: ClassVar[str] = "roi"
    valid: ClassVar[Mapping[str, Number | Interval]] = {
        "top": Interval(0),
        "left": Interval(0),
        "rows": Interval(1),
        "columns": Interval(1),
        **_ROUNDED,
    }

    def kept(
        self,
        frame: NDArray[Any],
        valid: NDArray[np.bool_],
        background: NDArray[Any],
        known: NDArray[np.bool_],
        noise: Noise | None,
    ) -> NDArray[np.bool_]:
        """True in the rectangle; raises InputError where it is not in the frame."""
        ends = (self.top + self.rows, self.left + self.columns)
        if ends[0] > frame.shape[0] or ends[1] > frame.shape[1]:
            raise InputError(f"step roi must end within a frame of {frame.shape}, got an end at {ends}")
        kept = np.zeros(frame.shape, np.bool_)
        kept[self.top : ends[0], self.left : ends[1]] = True
        return kept
