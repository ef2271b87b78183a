"""Quantisers that `lossy.py` compares the search with: the best that can be constructed, and bisection."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tuner.noise import Noise
from tuner.steps import STEPS, Step

_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Levels:
    """Rounds each value of a sample to a level of its own; others stay."""

    text: str
    """How it was made."""
    grid: float
    """Of which values are multiples, about."""
    values: NDArray[np.int64] = field(repr=False)
    """Values in units of the grid, sorted."""
    levels: NDArray[Any] = field(repr=False)
    """What each becomes, data units."""

    name: ClassVar[str] = "levels"
    valid: ClassVar[Mapping[str, Any]] = {}

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Made for one dtype and noise."""

    def bound(self, values: NDArray[Any], noise: Noise | None) -> _Floats:
        """How far each value moves, data units."""
        return np.abs(self.round_values(values, noise).astype(np.float64) - values)

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype."""
        wanted = np.rint(values / self.grid).astype(np.int64)
        at = np.minimum(np.searchsorted(self.values, wanted), len(self.values) - 1)
        return np.where(self.values[at] == wanted, self.levels[at].astype(values.dtype), values)


@dataclass(frozen=True)
class Histogram:
    """The values of a sample, with how far each may move."""

    grid: float
    """Levels are multiples of it."""
    values: NDArray[np.int64]
    """In units of the grid, sorted."""
    counts: _Floats
    """How often each comes."""
    sigma: _Floats
    """Of each, in units of the grid."""
    slack: float
    """Of the grid: how much further a value is moved than the grid tells, where it is no multiple."""

    @classmethod
    def of(cls, values: NDArray[Any], noise: Noise, step: float) -> Histogram:
        """Of valid values that are multiples of `step`, or of none where it is 0."""
        slack = 0.0
        if step <= 0:
            least = math.sqrt(float(noise.variance(values).min()))
            step, slack = 2.0 ** math.floor(math.log2(least / 16)), 0.5
        found, counts = np.unique(np.rint(values / step).astype(np.int64), return_counts=True)
        sigma = np.sqrt(noise.variance(found * step)) / step
        return cls(step, found, counts.astype(np.float64), sigma, slack)

    def levels(self, text: str, levels: NDArray[Any]) -> Levels:
        """A step that rounds to these."""
        return Levels(text, self.grid, self.values, levels * self.grid)


def constructed(histogram: Histogram, most_sigma: float) -> Iterator[Levels]:
    """Quantisers of which no value moves by more than `most_sigma` of its noise; means are to be judged.

    Those of least entropy, by dynamic programming over all ways to cut the values into bins that have a level in reach
    of every member, of several reaches; levels at the mean of a bin with feedback of its error, or at the roundest
    number near it. And lattices of powers of two, as wide as the noise allows at each intensity.
    """
    for share in (1.0, 0.9, 0.8):
        reach = np.maximum(most_sigma * share * histogram.sigma - histogram.slack, 0)
        lowest, highest = (
            np.maximum.accumulate(x) for x in (np.ceil(histogram.values - reach), np.floor(histogram.values + reach))
        )
        starts = _least_entropy(histogram, lowest, highest)
        for loose in (0.0, 0.1, 0.3):
            levels = _placed(histogram, starts, lowest, highest, loose)
            yield histogram.levels(f"least entropy, reach {share:g}, levels {loose:g} sigma loose", levels)
    for share in (1.0, 0.5):
        reach = np.maximum(most_sigma * share * histogram.sigma - histogram.slack, 0.5)
        width = np.exp2(np.floor(np.log2(2 * reach)))
        levels = np.rint(histogram.values / width) * width
        moved = np.abs(levels - histogram.values) <= most_sigma * histogram.sigma - histogram.slack
        yield histogram.levels(f"powers of two, reach {share:g}", np.where(moved, levels, histogram.values))


def _least_entropy(histogram: Histogram, lowest: _Floats, highest: _Floats) -> NDArray[np.intp]:
    """Where bins begin so that the entropy of the levels is least."""
    total = np.concatenate(([0.0], np.cumsum(histogram.counts))) / histogram.counts.sum()
    first = np.searchsorted(highest, lowest)  # the lowest value with a level in reach of both
    cost, begin = np.zeros(len(lowest) + 1), np.zeros(len(lowest), np.intp)
    for last, low in enumerate(first):
        share = total[last + 1] - total[low : last + 1]
        bits = cost[low : last + 1] - share * np.log2(share)
        best = int(bits.argmin())
        cost[last + 1], begin[last] = bits[best], low + best
    starts = []
    last = len(lowest) - 1
    while last >= 0:
        starts.append(begin[last])
        last = int(begin[last]) - 1
    return np.array(starts[::-1], np.intp)


def _placed(histogram: Histogram, starts: NDArray[np.intp], lowest: _Floats, highest: _Floats, loose: float) -> _Floats:
    """A level for each value: at the mean of its bin less the error so far, or the roundest number near that."""
    ends = np.append(starts[1:], len(lowest))
    weight = np.add.reduceat(histogram.counts, starts)
    mean = np.add.reduceat(histogram.counts * histogram.values, starts) / weight
    levels = np.empty(len(starts))
    carried = 0.0
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        low, high = lowest[end - 1], highest[start]
        wanted = min(max(mean[index] - carried / weight[index], low), high)
        near = max(loose * histogram.sigma[start], 0.5)
        levels[index] = _roundest(max(low, math.ceil(wanted - near)), min(high, math.floor(wanted + near)), wanted)
        # An error counts where it was made, and less further off.
        carried = 0.7 * (carried + weight[index] * (levels[index] - mean[index]))
    return np.repeat(levels, ends - starts)


def _roundest(low: float, high: float, wanted: float) -> float:
    """The multiple of the largest power of two from `low` to `high`, the one nearest to what is wanted."""
    if low >= high:
        return low
    step = 2.0 ** math.floor(math.log2(high - low + 1))
    while math.ceil(low / step) * step > high:
        step /= 2
    return min(max(round(wanted / step), math.ceil(low / step)), math.floor(high / step)) * step


def leading_bits(histogram: Histogram, bits: int) -> Levels:
    """So many leading bits of a whole number and its exponent, rounded to the nearest."""
    size = np.maximum(np.abs(histogram.values), 1)
    unit = np.exp2(np.maximum(np.floor(np.log2(size)) + 1 - bits, 0))
    return histogram.levels(f"{bits} leading bits and exponent", np.rint(histogram.values / unit) * unit)


def two_ranges(histogram: Histogram, below: int, above: int) -> Levels:
    """Values below Otsu's threshold in so many bits, those above in others, both from the least to the most of them."""
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    mean = np.cumsum(histogram.counts * histogram.values) / histogram.counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean[-1] * share - mean) ** 2 / (share * (1 - share))
    cut = int(np.nanargmax(np.where(np.isfinite(between), between, np.nan))) + 1
    levels = histogram.values.astype(np.float64)
    for part, bits in ((slice(None, cut), below), (slice(cut, None), above)):
        low, high = levels[part].min(), levels[part].max()
        spacing = max(high - low, 1.0) / ((1 << bits) - 1)
        levels[part] = low + np.rint((levels[part] - low) / spacing) * spacing
    return histogram.levels(f"Otsu's threshold, {below} and {above} bits", np.rint(levels))


#: The one parameter of a step, from gentle to harsh.
PARAMETERS = {
    "sigma": ("width", 0.05, 1.95),
    "octave": ("width", 0.05, 1.95),
    "uniform": ("width", 1.0, 4096.0),
    "mantissa": ("keep", 20.0, 1.0),
}


def bisect(
    make: Callable[[float], Step], gentle: float, harsh: float, holds: Callable[[Step], bool], rounds: int = 7
) -> Step | None:
    """The harshest parameter at which limits hold, by bisection on its logarithm; None where not even gentle ones do.

    As FRaZ, OptZConfig and enstools-compression search for an error bound.
    """
    low, high = math.log(gentle), math.log(harsh)
    if not holds(make(gentle)):
        return None
    found, tried = make(gentle), {make(gentle), make(harsh)}
    if holds(make(harsh)):
        return make(harsh)
    for _ in range(rounds):
        middle = (low + high) / 2
        step = make(math.exp(middle))
        if step in tried and step != found:
            high = middle
            continue
        tried.add(step)
        if holds(step):
            found, low = step, middle
        else:
            high = middle
    return found


def maker(name: str, whole: bool, grid: float) -> Callable[[float], Step]:
    """A step by its name, from the parameter that is bisected."""
    key, *_ = PARAMETERS[name]
    kind = STEPS[name]
    fixed = {"grid": grid} if "grid" in kind.valid else {}

    def make(value: float) -> Step:
        return kind(**{key: round(value) if whole else value}, **fixed)

    return make
