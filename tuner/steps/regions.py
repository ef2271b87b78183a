"""Steps that keep places of a frame exactly and round what is around them."""

from __future__ import annotations

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
from tuner.steps.uniform import Uniform

#: Edge of the squares that a background is taken of, pixels, about.
_EDGE = 32

#: Turns the distance of the quartiles into a standard deviation, for Gaussian values.
_QUARTILES = 1 / 1.349


@runtime_checkable
class Regional(Protocol):
    """A step that keeps some places of each frame."""

    @property
    def around(self) -> Uniform | Octave:
        """The rounding of all other pixels."""
        ...

    def kept(
        self, frame: NDArray[Any], rounded: NDArray[Any], valid: NDArray[np.bool_], noise: Noise | None
    ) -> NDArray[np.bool_]:
        """True where pixels stay, shape (rows, columns) as the frame, and as it when rounded everywhere.

        Rounding what is not kept must not make less of it.
        """
        ...


@np.errstate(over="ignore", invalid="ignore")
def round_around(
    step: Regional, frames: NDArray[Any], marks: Marks, mask: NDArray[np.bool_] | None, noise: Noise | None
) -> NDArray[Any]:
    """Frames with every valid pixel rounded but those that are kept, as new array of the same shape and dtype.

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
        np.copyto(into, whole, where=step.kept(whole, into, valid, noise))
    return result


class _Around:
    """How steps round what they do not keep: to multiples of `width`, or to `octave` levels in proportion to noise."""

    __slots__ = ()

    width: float
    sigma: float
    grid: float

    @property
    def around(self) -> Uniform | Octave:
        """The rounding of all other pixels."""
        return Uniform(self.width) if self.width else Octave(self.sigma, self.grid)

    def __post_init__(self) -> None:
        check_parameters(self)
        if (self.width > 0) == (self.sigma > 0):
            raise InputError(f"either width or sigma must be above 0, got {self.width:g} and {self.sigma:g}")

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be rounded so."""
        if self.sigma and noise is None:
            raise InputError("sigma must be 0 where there is no noise model")
        self.around.check(dtype, noise)

    def bound(self, values: NDArray[Any], noise: Noise | None) -> NDArray[np.float64]:
        """The most that each value can move by, data units."""
        return self.around.bound(values, noise)


_ROUNDED = {name: Number(least=0.0) for name in ("width", "sigma", "grid")}


@dataclass(frozen=True, slots=True)
class Regions(_Around):
    """Keep all pixels near a peak exactly, and round the rest.

    A pixel is of a peak where it is more than `sigmas` standard deviations above the background of its square of about
    32 x 32 pixels: the median, and the larger of the noise there and of what the quartiles tell. Both are taken of the
    frame rounded everywhere, so that they are the same once peaks alone are as they were, and the threshold lies higher
    by what the median may have moved. Without a noise model peaks of less than about three widths may not be found.

    Law: twice is once, each pixel within `radius` of one of a peak stays, and no other moves by more than the rounding
    allows. As ROIBIN-SZ (Underwood et al., Synchrotron Radiation News 36, 17, 2023), which also bins what is around
    peaks.

    >>> frame = np.array([[[3, 2, 4, 3, 2, 57, 90, 5, 2, 3]]], "uint16")
    >>> round_around(Regions(6.0, 1, width=4), frame, Marks(), None, None).tolist()
    [[[4, 0, 4, 4, 2, 57, 90, 5, 0, 4]]]
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

    name: ClassVar[str] = "regions"
    valid: ClassVar[Mapping[str, Number | Interval]] = {
        "sigmas": Number(above=0.0),
        "radius": Interval(0, 64),
        **_ROUNDED,
    }

    def kept(
        self, frame: NDArray[Any], rounded: NDArray[Any], valid: NDArray[np.bool_], noise: Noise | None
    ) -> NDArray[np.bool_]:
        """True near a peak."""
        (rows, high), (columns, wide) = (_squares(extent) for extent in frame.shape)
        padded = ((0, rows * high - frame.shape[0]), (0, columns * wide - frame.shape[1]))

        def squares(array: NDArray[Any]) -> NDArray[Any]:
            whole = np.pad(array, padded).reshape(rows, high, columns, wide)
            return whole.swapaxes(1, 2).reshape(rows, columns, high * wide)

        threshold = self._threshold(squares(rounded), squares(valid), noise)
        each = np.repeat(np.repeat(threshold, high, 0)[: frame.shape[0]], wide, 1)[:, : frame.shape[1]]
        return _within(valid & (frame > each), self.radius)

    def _threshold(self, values: NDArray[Any], valid: NDArray[np.bool_], noise: Noise | None) -> NDArray[np.float64]:
        """What a peak is above, for each square of rounded pixels; shape of `values` but for the last axis."""
        last = np.inf if values.dtype.kind == "f" else np.iinfo(values.dtype).max
        ordered = np.sort(np.where(valid, values, values.dtype.type(last)), axis=-1)
        most = np.maximum(np.count_nonzero(valid, axis=-1) - 1, 0)
        low, median, high = (
            np.take_along_axis(ordered, (most * part // 4)[..., None], -1)[..., 0] for part in (1, 2, 3)
        )
        moved = self.bound(median, noise)
        level = median + moved
        apart = high.astype(np.float64) - low
        if noise is None:  # the quartiles tell no spread finer than the levels
            spread = (apart + moved) * _QUARTILES
        else:
            spread = np.maximum((apart - 2 * moved) * _QUARTILES, np.sqrt(noise.variance(level)))
        return np.asarray(level + self.sigmas * spread, np.float64)


def _squares(extent: int) -> tuple[int, int]:
    """How many squares an axis has, and their edge: all alike, but the last may be short."""
    edge = -(-extent // -(-extent // _EDGE))
    return -(-extent // edge), edge


def _within(flags: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """True where a flag is in the square of ``2 * radius + 1`` pixels, same shape."""
    for axis in range(flags.ndim):
        source = np.moveaxis(flags, axis, 0)
        near = source.copy()
        for shift in range(1, min(radius, len(source) - 1) + 1):
            near[shift:] |= source[:-shift]
            near[:-shift] |= source[shift:]
        flags = np.moveaxis(near, 0, axis)
    return flags


@dataclass(frozen=True, slots=True)
class Roi(_Around):
    """Keep a rectangle of every frame exactly, and round the rest.

    Law: twice is once, each pixel of the rectangle stays, and no other moves by more than the rounding allows.

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

    name: ClassVar[str] = "roi"
    valid: ClassVar[Mapping[str, Number | Interval]] = {
        "top": Interval(0),
        "left": Interval(0),
        "rows": Interval(1),
        "columns": Interval(1),
        **_ROUNDED,
    }

    def kept(
        self, frame: NDArray[Any], rounded: NDArray[Any], valid: NDArray[np.bool_], noise: Noise | None
    ) -> NDArray[np.bool_]:
        """True in the rectangle; raises InputError where it is not in the frame."""
        ends = (self.top + self.rows, self.left + self.columns)
        if ends[0] > frame.shape[0] or ends[1] > frame.shape[1]:
            raise InputError(f"step roi must end within a frame of {frame.shape}, got an end at {ends}")
        kept = np.zeros(frame.shape, np.bool_)
        kept[self.top : ends[0], self.left : ends[1]] = True
        return kept
