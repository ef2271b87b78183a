"""Steps that look at a whole frame: what they find there is a rounding of single pixels, for this frame alone."""

from __future__ import annotations

import math
from bisect import bisect_left
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
from tuner.steps.uniform import Uniform, nearest_multiples, quotients

#: Bins of a histogram: one for each value of 16 bits.
_BINS = 1 << 16

#: Turns a median of absolute deviations into a standard deviation, for Gaussian values.
_MAD = 1.4826

#: How often a frame is looked at until the same is found again; mostly twice.
_PASSES = 8

#: Of so many pixels of a frame, evenly spread, the distribution is taken.
_SEEN = 1 << 17

#: Pixels that are worked on at once, so that they stay in the cache.
_PART = 1 << 17


@runtime_checkable
class Framewise(Protocol):
    """A step whose parameters are found in each frame anew."""

    def found(self, levels: Levels, low: Any, high: Any) -> Pointwise:
        """The rounding for a frame of these levels, and with this least and greatest value."""
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
        True where a pixel does not count in any frame, shape of a frame; what these become does not matter.
    noise : Noise, optional
    """
    stepped = np.empty(frames.shape, frames.dtype)
    masked = None if mask is None else np.ascontiguousarray(mask).reshape(-1)
    for frame, result in zip(np.ascontiguousarray(frames), stepped, strict=True):
        result[...] = _round_frame(step, frame.reshape(-1), marks, masked, noise).reshape(frame.shape)
    return stepped


def _round_frame(
    step: Framewise, frame: NDArray[Any], marks: Marks, masked: NDArray[np.bool_] | None, noise: Noise | None
) -> NDArray[Any]:
    every = _apart(frame.size)
    seen, counts = distinct(frame[::every] if masked is None else frame[::every][~masked[::every]])
    valid = marks.valid(seen)
    if not valid.all():
        seen, counts = seen[valid], None if counts is None else counts[valid]
    if not len(seen):
        return frame
    ends = _ends(frame, marks, masked, seen[0])
    roundings = [step.found(Levels.of(seen, counts), *ends)]
    now = np.append(seen, ends)
    for _ in range(_PASSES):
        now = round_pixels(roundings[-1], now, marks, noise, ends)
        then = step.found(Levels.of(now[:-2], counts), *now[-2:])
        if then == roundings[-1]:
            return round_pixels(Chain(tuple(roundings), marks), frame, marks, noise, ends)
        roundings.append(then)
    return frame


def _apart(size: int) -> int:
    """How far apart the pixels are that are looked at: an odd number, so that no column is left out in even ones."""
    return size // _SEEN | 1 if size > _SEEN else 1


def distinct(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp] | None]:
    """The values that there are, and how many of each; of floats and of a wide range just the values, one of each."""
    if values.dtype.itemsize <= 2:
        patterns = np.bincount(values.view(f"u{values.dtype.itemsize}"))
        places = np.flatnonzero(patterns)
        return places.astype(f"u{values.dtype.itemsize}").view(values.dtype), patterns[places]
    low = values.min(initial=0)
    if values.dtype.kind == "f" or int(values.max(initial=0)) - int(low) >= _BINS:
        return values, None
    counts = np.bincount(np.subtract(values, low, dtype=np.intp, casting="unsafe"))
    places = np.flatnonzero(counts)
    return low + places.astype(values.dtype), counts[places]


def _ends(
    values: NDArray[Any], marks: Marks, masked: NDArray[np.bool_] | None, one: Any
) -> tuple[np.generic, np.generic]:
    """The least and the greatest of the pixels that count, of which one is given."""
    low = high = one
    for at in range(0, values.size, _PART):
        part = values[at : at + _PART].copy()
        if masked is not None:
            np.copyto(part, one, where=masked[at : at + _PART])
        ends = _extremes(part)
        if not marks.valid(ends).all():
            np.copyto(part, one, where=~marks.valid(part))
            ends = _extremes(part)
        low, high = ends.min(initial=low), ends.max(initial=high)
    return low, high


def _extremes(values: NDArray[Any]) -> NDArray[Any]:
    """Some of the values, among them the least and the greatest; NaN where there is one."""
    if values.dtype != np.float16:
        return np.array([values.min(), values.max()])
    # Floats of two bytes compare slowly, their patterns do not: they rise above zero and fall below it.
    ends = [pattern(values.view(kind)) for kind in (np.int16, np.uint16) for pattern in (np.min, np.max)]
    return np.array(ends).astype(np.uint16).view(np.float16)


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
    """A histogram, of what is in its bins: each value in the middle of its bin."""

    places: NDArray[np.intp]
    """The bins that are not empty, from the first, 0, to the last."""
    counts: NDArray[Any]
    """How many values are in each of them."""
    start: float
    """Half of the least value, as the span of the largest floats is no float."""
    step: float
    """Half of the width of bins."""
    top: float
    """What is above no value."""

    @classmethod
    def of(cls, values: NDArray[Any], counts: NDArray[np.intp] | None = None) -> Levels:
        """Integers within 16 bits each have a bin; a wider range has 65,536 of equal size.

        Parameters
        ----------
        values : ndarray
            Shape (n,), n of at least 1; finite.
        counts : ndarray of int, optional
            How many there are of each.
        """
        low, high = values.min(), values.max()
        start, step, top = float(low) / 2, 0.5, math.inf
        if values.dtype.kind != "f" and float(high) - float(low) < _BINS:
            index = np.subtract(values, low, dtype=np.intp, casting="unsafe")
        else:
            span, top = float(high) / 2 - start, float(high)
            step = span / (_BINS - 1)
            wide = np.multiply(values, 0.5, dtype=np.float64)
            wide -= start
            wide *= (_BINS - 1) / span if span > 1e-300 else 0.0
            index = np.rint(wide, out=wide).astype(np.int32)
        every = np.bincount(index, counts)
        places = np.flatnonzero(every)
        return cls(places, every[places], start, step, top)

    def value(self, places: Any) -> Any:
        """The middles of some bins, in their order."""
        return np.minimum(2 * (self.start + places * self.step), self.top)

    def median(self) -> float:
        """The value that half of all are not above."""
        sums = np.cumsum(self.counts)
        return float(self.value(self.places[np.searchsorted(sums, sums[-1] / 2)]))

    def deviation(self, median: float) -> float:
        """The median distance from a value, as a standard deviation."""
        last, sums = int(self.places[-1]), np.cumsum(np.append(0, self.counts))
        middle = bisect_left(range(last), median, key=self.value)

        def near(distance: int) -> float:
            first, behind = np.searchsorted(self.places, (middle - distance, middle + distance + 1))
            return float(sums[behind] - sums[first])

        place = bisect_left(range(last), sums[-1] / 2, key=near)
        return _MAD * place * float(self.value(last) - self.value(0)) / max(last, 1)

    def otsu(self) -> float:
        """The value up to which one class reaches, so that the variance between two is largest.

        N. Otsu, IEEE Trans. Systems, Man and Cybernetics 9, 62 (1979).

        >>> Levels.of(np.array([1, 2, 3, 2, 50, 51], "uint16")).otsu()
        3.0
        """
        values = self.value(self.places)
        below = np.cumsum(self.counts).astype(np.float64)
        total = np.cumsum(self.counts * (values - values[0]))
        above = below[-1] - below
        between = (total[-1] * below - total * below[-1]) ** 2 / np.where(above, below * above, 1)
        return float(values[np.argmax(np.where(above, between, -1.0))])


@dataclass(frozen=True, slots=True)
class Split:
    """Values up to a threshold rounded in one way, those above in another; no value crosses it."""

    threshold: float
    low: float
    """Width below, data units; 0 to keep values."""
    high: float
    """Above."""

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype."""
        within = _between(values, -math.inf, self.threshold)
        if values.dtype.kind == "f" or values.dtype.itemsize <= 4:
            kind = quotients(values.dtype, self.low, self.high)
            rounded = nearest_multiples(values, _chosen(kind(self.low), kind(self.high), within))
        else:
            low = Uniform(self.low).round_values(values, None) if self.low else values
            high = Uniform(self.high).round_values(values, None) if self.high else values
            rounded = _chosen(low, high, within)
        # What would leave its class stays.
        leaving = within != _between(rounded, -math.inf, self.threshold)
        return _chosen(values, rounded, leaving) if leaving.any() else rounded


@dataclass(frozen=True, slots=True)
class Inside:
    """Values between two limits rounded, those beyond kept; no value leaves, none comes in."""

    least: float
    most: float
    width: float
    """Data units."""

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype."""
        rounded = Uniform(self.width).round_values(values, None)
        inside = _between(values, self.least, self.most)
        inside &= _between(rounded, self.least, self.most)
        return _chosen(rounded, values, inside)


def _between(values: NDArray[Any], least: float, most: float) -> NDArray[np.bool_]:
    """True for what is not below the least, nor above the most."""
    if values.dtype.kind != "f":  # whole numbers compare as such
        limits = np.iinfo(values.dtype)
        most = math.floor(max(min(most, limits.max), limits.min - 1))
        least = math.ceil(min(least, limits.max + 1)) if least > limits.min else -math.inf
    between: NDArray[np.bool_] = values <= most
    if least > -math.inf:
        between &= values >= least
    return between


def _chosen(first: Any, second: Any, which: NDArray[np.bool_]) -> NDArray[Any]:
    """The first where true, else the second: by their bits, as it is slow to branch at random."""
    bits = f"i{first.dtype.itemsize}"
    chosen = which.astype(bits)
    np.negative(chosen, out=chosen)
    chosen &= first.view(bits) ^ second.view(bits)
    chosen ^= second.view(bits)
    return chosen.view(first.dtype)


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

    def found(self, levels: Levels, low: Any, high: Any) -> Pointwise:
        """The rounding for a frame."""
        threshold = levels.otsu()
        below = _power(threshold - float(low), self.background, low.dtype)
        above = _power(float(high) - threshold, self.signal, low.dtype)
        if below:
            # Just below the next level, so that it is the same in the rounded frame.
            threshold = _before((math.floor(threshold / below) + 1) * below, low.dtype)
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

    def found(self, levels: Levels, low: Any, high: Any) -> Pointwise:
        """The rounding for a frame."""
        median = levels.median()
        reach = self.sigmas * levels.deviation(median)
        return Inside(median - reach, median + reach, self.width)
