"""Steps that look at a whole frame: what they find there is a rounding of single pixels, for this frame alone."""

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
from tuner.steps.pointwise import Pointwise, check_parameters, round_pixels, rounded
from tuner.steps.uniform import Uniform, nearest_multiples

#: Bins of a histogram: one for each value of 16 bits.
_BINS = 1 << 16

#: Turns a median of absolute deviations into a standard deviation, for Gaussian values.
_MAD = 1.4826

#: How often a frame is looked at until the same is found again; mostly twice.
_PASSES = 8

#: Of so many pixels of a frame, evenly spread, the distribution is taken.
_SEEN = 1 << 17

#: Pixels that are worked on at once, so that they stay in the cache.
_PART = 1 << 15


@runtime_checkable
class Framewise(Protocol):
    """A step whose parameters are found in each frame anew."""

    def found(self, seen: NDArray[Any], low: Any, high: Any) -> Pointwise:
        """The rounding for a frame with these valid pixels, shape (n,), n of at least 1; and its least and its most."""
        ...


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def round_frames(
    step: Framewise, frames: NDArray[Any], marks: Marks, mask: NDArray[np.bool_] | None, noise: Noise | None
) -> NDArray[Any]:
    """Frames with every valid pixel rounded as is found for its frame, as new array of the same shape and dtype.

    What is found is found again in the rounded frame, until it is the same; so twice is once. A frame in which that
    does not end stays as it is, as does one without a valid pixel. Of frames with more than 131,072 pixels, the
    distribution of values is taken of about as many, evenly spread.

    Parameters
    ----------
    step : Framewise
    frames : ndarray
        Shape (n, *frame_shape).
    marks : Marks
        Which values do not count.
    mask : ndarray of bool, optional
        True where a pixel does not count in any frame, shape of a frame.
    noise : Noise, optional
    """
    stepped = frames.copy()
    masked = None if mask is None else np.ascontiguousarray(mask).reshape(-1)
    for frame, result in zip(np.ascontiguousarray(frames), stepped, strict=True):
        whole = frame.reshape(-1)
        every = _apart(whole.size)
        some = whole[::every]
        seen = some[marks.valid(some, None if masked is None else masked[::every])]
        if not len(seen):
            continue
        ends = _ends(whole, marks, masked, seen[0])
        now, roundings = np.append(seen, ends), [step.found(seen, *ends)]
        for _ in range(_PASSES):
            now = round_pixels(roundings[-1], now, marks, noise, passing=True)
            then = step.found(now[:-2], *now[-2:])
            if then == roundings[-1]:
                result[...] = round_pixels(Chain(tuple(roundings), marks), frame, marks, noise, passing=True)
                break
            roundings.append(then)
    if mask is not None:
        np.copyto(stepped, frames, where=mask)
    return stepped


def _apart(size: int) -> int:
    """How far apart the pixels are that are looked at: an odd number, so that no column is left out in even ones."""
    return size // _SEEN | 1 if size > _SEEN else 1


def _ends(
    values: NDArray[Any], marks: Marks, masked: NDArray[np.bool_] | None, one: Any
) -> tuple[np.generic, np.generic]:
    """The least and the greatest of the pixels that count, of which one is given."""
    low = high = one
    for at in range(0, values.size, _PART):
        part = values[at : at + _PART]
        counts = marks.valid(part, None if masked is None else masked[at : at + _PART])
        part = part if counts.all() else np.where(counts, part, one)
        low, high = min(low, part.min()), max(high, part.max())
    return low, high


@dataclass(frozen=True, slots=True)
class Chain:
    """Roundings one after another."""

    roundings: tuple[Pointwise, ...]
    marks: Marks
    """What does not count; what would become such stays."""

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype."""
        for rounding in self.roundings[:-1]:
            values = rounded(rounding, values, self.marks, noise)
        return self.roundings[-1].round_values(values, noise)


@dataclass(frozen=True, slots=True)
class Levels:
    """Each value in the middle of a bin of a histogram, and how many there are."""

    values: NDArray[np.float64]
    """Sorted."""
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, values: NDArray[Any]) -> Levels:
        """Integers within 16 bits each have a bin; a wider range has 65,536 of equal size."""
        low, high = values.min(), values.max()
        span = float(high) - float(low)
        if values.dtype.kind != "f" and span < _BINS:
            wide = values.astype(np.int64) if values.dtype.kind == "i" else values
            counts = np.bincount((wide - wide.dtype.type(low)).astype(np.int64))
            return cls(np.asarray(np.arange(len(counts)) + float(low), np.float64), counts)
        # Halves, as the span of the largest floats is none.
        start, span = float(low) / 2, float(high) / 2 - float(low) / 2
        scale = (_BINS - 1) / span if span > 1e-300 else 0.0
        index = np.rint((values.astype(np.float64) / 2 - start) * scale).astype(np.int64)
        middles = np.minimum(2 * (start + np.arange(_BINS) * (span / (_BINS - 1))), float(high))
        return cls(np.asarray(middles, np.float64), np.bincount(index, minlength=_BINS))

    def median(self) -> float:
        """The value that half of all are not above."""
        sums = np.cumsum(self.counts)
        return float(self.values[np.searchsorted(sums, sums[-1] / 2)])

    def deviation(self, median: float) -> float:
        """The median distance from a value, as a standard deviation."""
        apart = np.abs(np.arange(len(self.values)) - np.searchsorted(self.values, median))
        sums = np.cumsum(np.bincount(apart, self.counts))
        place = int(np.searchsorted(sums, sums[-1] / 2))
        return _MAD * place * float(self.values[-1] - self.values[0]) / max(len(self.values) - 1, 1)

    def otsu(self) -> float:
        """The value up to which one class reaches, so that the variance between two is largest.

        N. Otsu, IEEE Trans. Systems, Man and Cybernetics 9, 62 (1979).

        >>> Levels.of(np.array([1, 2, 3, 2, 50, 51], "uint16")).otsu()
        3.0
        """
        below = np.cumsum(self.counts).astype(np.float64)
        total = np.cumsum(self.counts * (self.values - self.values[0]))
        above = below[-1] - below
        used = (self.counts > 0) & (above > 0)
        between = (total[-1] * below - total * below[-1]) ** 2 / np.where(used, below * above, 1)
        return float(self.values[np.argmax(np.where(used, between, -1.0))])


@dataclass(frozen=True, slots=True)
class Split:
    """Values up to a threshold rounded in one way, those above in another; no value crosses it."""

    threshold: float
    low: float
    """Width below, data units; 0 to keep values."""
    high: float
    """Above."""
    least: float = -math.inf
    """Values below stay."""

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype."""
        within = self._within(values)
        if self.low and self.high and (values.dtype.kind == "f" or values.dtype.itemsize <= 4):
            rounded = nearest_multiples(values, np.where(within, self.low, self.high))
        else:
            rounded = self._multiples(values, self.low)
            np.copyto(rounded, self._multiples(values, self.high), where=~within)
        # What would leave its class stays.
        leaving = np.flatnonzero(within != self._within(rounded))
        rounded[leaving] = values[leaving]
        if self.least > -math.inf:
            crossing = np.flatnonzero((values < self.least) != (rounded < self.least))
            rounded[crossing] = values[crossing]
        return rounded

    def _within(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """True for what is not above the threshold, nor below the least."""
        threshold, least = self.threshold, self.least
        if values.dtype.kind != "f":  # whole numbers compare as such
            limits = np.iinfo(values.dtype)
            threshold = math.floor(max(min(threshold, limits.max), limits.min - 1))
            least = math.ceil(min(max(least, limits.min), limits.max + 1))
        within: NDArray[np.bool_] = values <= threshold
        if least > -math.inf:
            within &= values >= least
        return within

    def _multiples(self, values: NDArray[Any], width: float) -> NDArray[Any]:
        return Uniform(width).round_values(values, None) if width else values.copy()


@dataclass(frozen=True, slots=True)
class Tqc:
    """Threshold quantisation: a threshold for each frame, about ``2**background`` levels below, ``2**signal`` above.

    Otsu's threshold parts the valid pixels of a frame. Levels are multiples of a power of two, the least for which the
    range of a class has no more levels than that (and one). Law: twice is once, no pixel crosses the threshold, and
    pixels move by at most half the distance of levels, which depends on the frame: so no bound by construction.

    >>> frame = np.array([[[0, 3, 9, 10, 500, 603]]], "uint16")
    >>> round_frames(Tqc(1, 3), frame, Marks(), None, None).tolist()
    [[[0, 0, 8, 8, 512, 640]]]
    """

    background: int
    """Bits."""
    signal: int
    """Bits."""

    name: ClassVar[str] = "tqc"
    valid: ClassVar[Mapping[str, Number | Interval]] = {"background": Interval(1, 16), "signal": Interval(1, 16)}

    def __post_init__(self) -> None:
        check_parameters(self)

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be rounded so."""
        for name in ("background", "signal"):
            if getattr(self, name) > 8 * dtype.itemsize:
                raise InputError(f"{name} must be at most the bits of {dtype}, got {getattr(self, name)}")

    def bound(self, values: NDArray[Any], noise: Noise | None) -> NDArray[np.float64]:
        """None by construction."""
        return np.full(values.shape, np.inf)

    def found(self, seen: NDArray[Any], low: Any, high: Any) -> Pointwise:
        """The rounding for a frame."""
        threshold = Levels.of(seen).otsu()
        below = _power(threshold - float(low), self.background, seen.dtype)
        above = _power(float(high) - threshold, self.signal, seen.dtype)
        if below:
            # Just below the next level, so that it is the same in the rounded frame.
            threshold = _before((math.floor(threshold / below) + 1) * below, seen.dtype)
        return Split(threshold, below, above)


def _before(value: float, dtype: np.dtype[Any]) -> float:
    """The last value of a dtype below another."""
    return float(np.nextafter(dtype.type(value), dtype.type(-np.inf))) if dtype.kind == "f" else value - 1


def _power(span: float, bits: int, dtype: np.dtype[Any]) -> float:
    """The least power of two that parts a span into at most so many bits of levels; 0 where all values may stay."""
    if not (span > 0 and math.isfinite(span)):
        return 0.0
    power = 2.0 ** math.ceil(math.log2(span) - bits)
    if dtype.kind == "f":
        return power
    # The dtype has to hold the width itself.
    return min(power, 2.0 ** (8 * dtype.itemsize - 2)) if power > 1 else 0.0


@dataclass(frozen=True, slots=True)
class ClipBackground:
    """Round the background of each frame to multiples of `width`, and keep every pixel above it exactly.

    Background is what lies within ``sigmas`` standard deviations of the frame's median, which is taken from the median
    of the absolute deviations, so that no signal widens it. Law: twice is once, signal stays, no pixel becomes signal,
    and no pixel moves by more than ``width / 2`` (and a float's spacing).

    >>> frame = np.array([[[9, 10, 10, 11, 12, 13, 80]]], "uint16")
    >>> round_frames(ClipBackground(3.0, 8.0), frame, Marks(), None, None).tolist()
    [[[8, 8, 8, 8, 12, 13, 80]]]
    """

    sigmas: float
    """Standard deviations that the background reaches to."""
    width: float
    """Of its levels, data units; a whole number for integers."""

    name: ClassVar[str] = "clip_background"
    valid: ClassVar[Mapping[str, Number | Interval]] = {"sigmas": Number(above=0.0), "width": Number(above=0.0)}

    def __post_init__(self) -> None:
        check_parameters(self)

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be rounded so."""
        Uniform(self.width).check(dtype, noise)

    def bound(self, values: NDArray[Any], noise: Noise | None) -> NDArray[np.float64]:
        """The most that each value can move by, data units."""
        return Uniform(self.width).bound(values, noise)

    def found(self, seen: NDArray[Any], low: Any, high: Any) -> Pointwise:
        """The rounding for a frame."""
        levels = Levels.of(seen)
        median = levels.median()
        reach = self.sigmas * levels.deviation(median)
        return Split(median + reach, self.width, 0.0, median - reach)
