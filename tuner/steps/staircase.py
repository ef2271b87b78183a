"""The fewest levels that whole numbers can be rounded to in proportion to their noise, if their means are to stay.

A value x is decoded to d(x), with ``|d(x) - x| <= width / 2 * sigma(x)``. What remains is the bias. With e = d - x and
its running sum E, summation by parts gives for values of distribution P

    E[d] - mean = sum P(x) e(x) = -sum P'(x) E(x), which is d/dmean of the mean of E.

A bin of odd width w, decoded to its middle, leaves E at the baseline B on which it found it, and above it on average by
``(w**2 - 1) / 12``. Bins that grow with sigma thus tilt the mean of E by ``width**2 * gain / 12``, which is below 0.005
sigma from ``sigma = 17 * width**2 * gain`` on. Below, where bins are narrow or have just begun, it is not: there the
baseline has to fall as bins grow, which bins of even width do, decoded to the lower of their middles. Which bins are
even is found by a beam search that carries the bias of every mean nearby; the result is checked, mean by mean
(docs/decisions/0013-staircase.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

#: The most that a mean may be moved by, in its sigma.
LAW = 0.01

#: Width of the widest bins, in sigma: a lattice of period w leaves ``sigma w / pi exp(-2 pi**2 / w**2)`` of a mean's
#: place in its bin, 0.0034 sigma; for 2.16 it would be 0.01.
WIDEST = 1.95

#: As the mean of E may rise in a search, in sigma, of which the better is taken; and from where on none is needed.
_RISES, _FLAT = (0.0, 0.003), 0.005

#: Widest bins below 20 steps of sigma, tried in turn until the law holds: what is too greedy there fails later.
_TRIALS = (WIDEST, 1.4, 1.0, 0.8)

#: States that a search carries; widths that it tries in each; and the part of the law that it uses.
_BEAM, _WIDTHS, _MARGIN = 12, 8, 0.95

#: The bias that is left to chance where a search ends.
_LEVEL = 0.002


def staircase(sigma: Floats, width: float, *, poisson: bool = False, grow: int = 0) -> Integers:
    """Decoded values of the whole numbers 0, 1, ... n - 1, the fewest that the law allows, as far as is known.

    They never decrease, ``d[d] == d`` and ``abs(d - x) <= width / 2 * sigma``. Below 0 the lattice of the first bin,
    whose middle is 0, may go on. A mean x moves by at most 0.01 sigma[x]; where no bins are found that hold this, all
    values stay.

    Parameters
    ----------
    sigma : ndarray of float64
        Standard deviation of each value, steps; nowhere less than before, shape (n,).
    width : float
        Of the bins, in sigma.
    poisson : bool
        Whether values are Poisson counts; else they are Gaussian.
    grow : int
        Bins are as wide as the first one below this value.

    Examples
    --------
    >>> staircase(np.full(9, 3.0), 1.0).tolist()
    [0, 0, 3, 3, 3, 6, 6, 6, 8]
    """
    tried = set()
    while width / 2 * sigma[-1] >= 1:
        for trial in _TRIALS:
            plans = [_Plan.make(sigma, width, trial, rise, poisson, grow) for rise in _RISES]
            if (alike := plans[0].half.tobytes()) in tried:
                continue
            tried.add(alike)
            found = [(levels, plan.worst_bias(levels)) for plan in plans for levels in [plan.search()]]
            if lawful := [levels for levels, bias in found if bias <= LAW]:
                return min(lawful, key=lambda levels: _spent(levels, sigma))
        width *= 0.8
    return np.arange(len(sigma))


def _spent(levels: Integers, sigma: Floats) -> float:
    """Bits that remain, up to a constant, in the mean over the logarithm of intensities."""
    starts = np.flatnonzero(np.diff(levels, prepend=-1))
    widths = np.diff(starts, append=len(levels))
    return -float((widths * np.log2(widths) / sigma[starts] ** 2).sum())


@lru_cache(maxsize=1)
def _log_factorials(n: int) -> Floats:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n)))])


@dataclass(frozen=True, slots=True)
class Means:
    """Means whose bias is watched, a quarter of a sigma apart, and the distribution of each."""

    mean: Floats
    sigma: Floats
    poisson: bool

    @classmethod
    def over(cls, sigma: Floats, first: int, last: int, poisson: bool) -> Means:
        """Means that values from `first` to `last` are likely for."""
        first, last = max(first - int(8 * sigma[first]), 0), min(last + int(8 * sigma[last]) + 8, len(sigma) - 1)
        if poisson:
            root = np.arange(max(2 * math.sqrt(first), 0.44), 2 * math.sqrt(last), 0.25)
            return cls(root * root / 4, np.maximum(root / 2, 1), poisson)
        place = np.concatenate([[0.0], np.cumsum(1 / sigma[first:last])])
        mean = np.interp(np.arange(0, place[-1], 0.25), place, np.arange(first, last + 1))
        return cls(mean, np.interp(mean, np.arange(len(sigma)), sigma), poisson)

    def near(self, first: int, last: int, sigma: float) -> slice:
        """Those for which values from `first` to `last` matter."""
        return slice(*np.searchsorted(self.mean, (first - 7 * sigma - 8, last + 8 * sigma + 8)))

    def probability(self, values: Integers, which: slice) -> Floats:
        """Of each value for each mean, shape (values, means)."""
        mean, sigma, column = self.mean[which], self.sigma[which], values[:, None]
        if not self.poisson:
            return np.exp(-(((column - mean) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))
        logs = _log_factorials(1 << max(16, int(values[-1]).bit_length()))[np.maximum(column, 0)]
        return np.where(column < 0, 0, np.exp(column * np.log(mean) - mean - logs))


@dataclass(frozen=True, slots=True)
class _Beam:
    """Beginnings of a staircase that a search still considers; arrays of one item, or row, for each."""

    end: Integers
    """The value at which the next bin starts."""
    baseline: Integers
    """The sum of the errors so far, B."""
    lost: Floats
    """Bits lost to narrow bins."""
    score: Floats
    """The largest bias of any mean if the mean of E goes on as planned, as a part of the law."""
    bias: Floats
    """Of each mean nearby, from the values so far, less what the plan makes there."""
    node: Integers
    """The last bin, in the list of all."""

    def take(self, which: NDArray[Any]) -> _Beam:
        """Some of them."""
        return _Beam(*(getattr(self, name)[which] for name in self.__slots__))

    def join(self, other: _Beam) -> _Beam:
        """These and others."""
        return _Beam(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What bins may be, and where they have to be searched."""

    sigma: Floats
    reach: Integers
    """The largest error allowed."""
    half: Integers
    """The reach of odd bins that hold the law among their like."""
    mean: Floats
    """Of E, as wanted: that of odd bins, but nowhere rising faster than it may."""
    width: float
    poisson: bool
    spans: tuple[tuple[int, int], ...]
    """From where to where bins are searched; elsewhere they are odd."""

    @classmethod
    def make(cls, sigma: Floats, width: float, trial: float, rise: float, poisson: bool, grow: int) -> _Plan:
        """The plan for bins of `width`, of at most `trial` sigma where sigma is small."""
        reach = np.floor(width / 2 * sigma).astype(np.int64)
        lawful = np.where(sigma < 20, trial, WIDEST) * sigma
        half = np.minimum(reach, np.maximum(lawful.astype(np.int64) - 1, 0) // 2)
        if grow:
            half[:grow] = half[0] if not poisson else 0
        half = np.maximum.accumulate(half)
        natural = half * (half + 1) / 3
        ramp = np.cumsum(rise * sigma)
        mean = ramp + np.minimum.accumulate(natural - ramp)
        width = min(width, WIDEST)
        slope = width * width / 12 * np.diff(sigma * sigma, append=sigma[-1] ** 2)
        busy = np.flatnonzero(
            ((mean < natural - 1e-9) & (sigma < 20 * width)) | ((slope > _FLAT * sigma) & (natural > 0))
        )
        spans: list[tuple[int, int]] = []
        if busy.size:
            gaps = np.flatnonzero(np.diff(busy) > 16 * sigma[busy[:-1]])
            firsts, lasts = busy[np.concatenate([[0], gaps + 1])], busy[np.concatenate([gaps, [busy.size - 1]])]
            spans = list(zip(firsts.tolist(), (lasts + 1).tolist(), strict=True))
        return cls(sigma, reach, half, mean, width, poisson, tuple(spans))

    def search(self) -> Integers:
        """The staircase."""
        n = len(self.sigma)
        widths, middles = [int(self.half[0]) + 1], [0]
        end = widths[0]
        for first, last in self.spans:
            end = self._fill(end, first, widths, middles)
            for width, middle in self._search_span(end, last, self._errors(widths, middles)):
                widths.append(width)
                middles.append(middle)
                end += width
        self._fill(end, n, widths, middles)
        starts = np.cumsum([0, *widths[:-1]])
        return np.minimum(np.repeat(starts + middles, widths)[:n], n - 1)

    def _fill(self, end: int, until: int, widths: list[int], middles: list[int]) -> int:
        """Add odd bins until one ends at or behind `until`; return where."""
        while end < until:
            half = int(self.half[end])
            same = min(int(np.searchsorted(self.half, half, "right")), until)
            number = -(-(same - end) // (2 * half + 1))
            widths += [2 * half + 1] * number
            middles += [half] * number
            end += (2 * half + 1) * number
        return end

    @staticmethod
    def _errors(widths: list[int], middles: list[int]) -> Floats:
        starts = np.cumsum([0, *widths[:-1]])
        return np.repeat(starts + middles, widths) - np.arange(sum(widths), dtype=np.float64)

    @staticmethod
    def _extended(errors: Floats, first: int, last: int, half: int) -> Floats:
        """Errors of values from `first`, which may be negative, to `last`."""
        below = np.arange(min(first, 0), 0)
        lattice = (below + half) // (2 * half + 1) * (2 * half + 1) - below
        return np.concatenate([lattice, errors[max(first, 0) : last]])

    def _search_span(self, start: int, until: int, errors: Floats) -> Iterator[tuple[int, int]]:
        """Widths and middles of the bins from `start` until behind `until`."""
        if start >= until:
            return
        rise = np.diff(self.mean, prepend=self.mean[0])
        means = Means.over(self.sigma, start, until - 1, self.poisson)
        ramp = np.interp(means.mean, np.arange(len(rise)), rise)
        before = np.arange(start - int(9 * self.sigma[start]) - 9, start)
        errors = self._extended(errors, int(before[0]), start, int(self.half[0])) - rise[np.maximum(before, 0)]
        window = means.near(start, start, float(self.sigma[start]))
        bias = (errors @ means.probability(before, window))[None]
        beam = _Beam(np.array([start]), np.array([0]), np.zeros(1), np.zeros(1), bias, np.array([-1]))
        tree: list[tuple[int, int, int]] = []
        patience = min(until + int(64 * self.sigma[until - 1]), len(rise) - 5 * int(self.half[-1]) - 16)
        while (lead := int(beam.end.min())) < patience and (lead < until or self._off(beam).min() > _LEVEL):
            near = means.near(lead, lead + 4 * int(self.half[lead]) + 8, float(self.sigma[lead]))
            near = slice(max(near.start, window.start), max(near.stop, window.stop))
            padded = np.pad(beam.bias[:, near.start - window.start :], ((0, 0), (0, near.stop - window.stop)))
            beam, window = replace(beam, bias=padded), near
            behind = beam.end < lead + max(1, int(self.half[lead]))
            grown = self._grown(beam.take(behind), means, near, rise, ramp, tree)
            beam = self._best(grown.join(beam.take(~behind)))
        # What follows are odd bins, so the mean of E should be where they begin.
        node = int(beam.node[np.argmin(self._key(beam) + (250 * self._off(beam)) ** 2)])
        bins = []
        while node >= 0:
            node, width, middle = tree[node]
            bins.append((width, middle))
        yield from reversed(bins)

    def _grown(
        self,
        beam: _Beam,
        means: Means,
        near: slice,
        rise: Floats,
        ramp: Floats,
        tree: list[tuple[int, int, int]],
    ) -> _Beam:
        """Each of the beam with one bin more, of any kind."""
        sigma = self.sigma
        source, width, middle = self._kinds(beam)
        start = beam.end[source]
        end = start + width
        baseline = beam.baseline[source] + width * middle - width * (width - 1) // 2
        # Sums over the values of each bin, as differences of running sums.
        first = int(start.min()) - 1
        values = np.arange(first, int(end.max()) + 2)
        p = means.probability(values, near)
        ones = np.concatenate([np.zeros((1, p.shape[1])), np.cumsum(p, axis=0)])
        planned = np.concatenate([ones[:1], np.cumsum(p * (values + rise[np.maximum(values, 0)])[:, None], axis=0)])
        low, high = start - first, end - first
        added = (start + middle)[:, None] * (ones[high] - ones[low]) - (planned[high] - planned[low])
        bias = beam.bias[source] + added
        # What follows: E jumps to its planned mean; and bins end, whose sum of E is no integral (Euler and Maclaurin).
        ahead = np.minimum(2 * self.half[end] + 1, self.width * sigma[end])
        curvature = (p[high + 1] - p[high] - p[high - 1] + p[high - 2]) / 2
        total = bias + ramp[near] + p[high] * (self.mean[end] - rise[end] - baseline)[:, None]
        total -= curvature * (np.maximum(ahead**4 - 1, 0) / 720)[:, None]
        score = np.abs(total / (LAW * means.sigma[near])).max(axis=1, initial=0)
        lost = beam.lost[source] + width * np.log2((self.width * sigma[start] + 1) / width) / sigma[start] ** 2
        node = len(tree) + np.arange(len(end))
        tree += zip(beam.node[source].tolist(), width.tolist(), middle.tolist(), strict=True)
        return _Beam(end, baseline, lost, score, bias, node)

    def _kinds(self, beam: _Beam) -> tuple[Integers, Integers, Integers]:
        """Bins that may follow: which of the beam they do, their widths and middles."""
        reach, half = self.reach, self.half[beam.end]
        widest = 2 * half + 1 + (reach[beam.end + 2 * half + 1] > half)
        width = np.repeat(widest[:, None] - np.arange(_WIDTHS), 3, axis=1)
        middle = (width - 1) // 2 + np.tile([0, 1, -1], _WIDTHS)
        # Decoded off its middle, a bin brings the baseline to where it should be at once.
        off = self._mismatch(beam)[:, None]
        size = np.sqrt(np.maximum(widest[:, None] ** 2 - 6 * off, widest[:, None] ** 2 / 2))
        size = np.rint(size).astype(np.int64) + np.arange(-1, 3)
        width, middle = np.hstack([width, size]), np.hstack([middle, np.rint((size - 1) / 2 - off / size).astype(int)])
        start = np.broadcast_to(beam.end[:, None], width.shape)
        fits = (width > 0) & (middle >= 0) & (middle < width) & (middle <= reach[start]) & (width <= widest[:, None])
        fits &= width - 1 - middle <= reach[start + np.clip(width, 1, widest[:, None]) - 1]
        return np.nonzero(fits)[0], width[fits], middle[fits]

    def _mismatch(self, beam: _Beam) -> Floats:
        """How far the mean of E would be above the planned one, if odd bins followed."""
        return beam.baseline + self.half[beam.end] * (self.half[beam.end] + 1) / 3 - self.mean[beam.end]

    def _off(self, beam: _Beam) -> Floats:
        """The bias that a mismatch makes where it ends, in sigma, about."""
        off: Floats = np.abs(self._mismatch(beam)) * 0.4 / self.sigma[beam.end] ** 2
        return off

    def _key(self, beam: _Beam) -> Floats:
        """The smaller, the better."""
        off = self._mismatch(beam) / (self.width * self.sigma[beam.end] + 1)
        broken = np.where(beam.score > _MARGIN, 1e3 * beam.score, 0)
        return beam.lost + 0.01 * beam.score**2 + 0.005 * off**2 + broken

    def _best(self, beam: _Beam) -> _Beam:
        """The best, one of those that continue alike."""
        order = np.argsort(self._key(beam), kind="stable")
        alike = (beam.end * (1 << 32) + beam.baseline)[order]
        kept = np.sort(np.unique(alike, return_index=True)[1])[:_BEAM]
        return beam.take(order[kept])

    def worst_bias(self, levels: Integers) -> float:
        """The largest bias of any mean that the spans matter for, in its sigma."""
        n, worst = len(levels), 0.0
        errors = (levels - np.arange(n)).astype(np.float64)
        half = int(np.searchsorted(levels, 0, "right")) - 1
        for start, until in self.spans:
            means = Means.over(self.sigma, start, min(until + until // 4, n - 1), self.poisson)
            for part in range(0, len(means.mean), 16):
                which = slice(part, part + 16)
                spread = 8 * float(means.sigma[which][-1]) + 8
                first, last = int(means.mean[which][0] - spread), int(means.mean[which][-1] + spread)
                if last >= n:
                    break
                biases = self._extended(errors, first, last, half) @ means.probability(np.arange(first, last), which)
                worst = max(worst, float(np.abs(biases / means.sigma[which]).max()))
        return worst
