"""Bins of a closed form: equally wide in sigma, and how they join narrower ones so that means stay."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tuner.steps.staircase import WIDEST, Floats

#: Widest bins, in sigma, where sigma is below so many photons: there bins grow too fast for wider ones.
_WIDEST_GROWING, _GROWING = 1.6, 20


def widest(sigma: float, gain: float) -> float:
    """The widest bins that keep means from a sigma on, in sigma."""
    return WIDEST if sigma >= _GROWING * gain else _WIDEST_GROWING


def _join(rho: float) -> Floats:
    """Two bins that join a lattice of width sqrt(rho) to one of width 1 and keep means.

    Expanded about the place where they join, the bias of values of any smooth distribution P is a sum over the
    derivatives of P. A lattice that ends contributes ``rho / 12`` to the factor of P and ``-rho**2 / 720`` to that of
    the second derivative (Euler and Maclaurin), the two bins the moments of their error. The solution, by Newton's
    method, has no term up to the third derivative, and no error of more than half the wider width.

    >>> _join(1.0).round(3).tolist(), _join(0.0).round(3).tolist()
    ([1.0, 0.5, 1.0, 1.5], [0.543, 0.164, 0.94, 0.986])

    Returns
    -------
    ndarray of float64
        Width of the first, what it is decoded to, width of the second, what it is decoded to; from where they begin.
    """
    order, factorial = np.arange(4), np.array([1.0, 1.0, 2.0, 6.0])

    def moments(low: float, high: float, middle: float) -> Floats:
        up, down = order + 1, order + 2
        moment: Floats = middle * (high**up - low**up) / up - (high**down - low**down) / down
        return moment

    def terms(bins: Floats) -> Floats:
        first, one, second, two = bins.tolist()
        end = first + second
        inner: Floats = (moments(0.0, first, one) + moments(first, end, two)) / factorial
        outer = [(1 - rho) / 12, end / 12, end**2 / 24 - (1 - rho**2) / 720, end**3 / 72 - end / 720]
        inner += outer
        return inner

    bins = rho * np.array([1, 0.5, 1, 1.5]) + (1 - rho) * np.array([0.543, 0.164, 0.94, 0.986])
    for _ in range(8):
        now = terms(bins)
        slopes = np.array([(terms(bins + shift) - now) / 1e-6 for shift in 1e-6 * np.eye(4)]).T
        bins = bins - np.linalg.solve(slopes, now)
    return bins


def _join_whole(square: float, before: float) -> tuple[int, int, int, int]:
    """The same for lattices of those widths squared, in whole numbers; the middles from where each bin begins."""
    guess = _join(min(max(before / square, 0), 1.5)) * math.sqrt(square)
    grid = np.arange(-4, 5)
    axes = np.meshgrid(round(guess[0]) + grid, round(guess[2]) + grid, [0, 1], [0, 1])
    one, two, first, second = (axis.ravel() for axis in axes)
    one, two = np.maximum(one, 1), np.maximum(two, 1)
    first, second = first + int(guess[1]), second + int(guess[3] - guess[0])
    # What they take from E, together and the first alone.
    fall, last = one * ((one - 1) / 2 - first), two * ((two - 1) / 2 - second)
    off = np.abs(fall + last - (square - before) / 12) + 0.1 * np.abs(fall - guess[0] * (guess[0] / 2 - guess[1]))
    best = int(np.argmin(np.where((first < one) & (second < two), off, np.inf)))
    return int(one[best]), int(two[best]), int(first[best]), int(second[best])


@dataclass(frozen=True, slots=True)
class Bins:
    """Bins that are equally wide in ``s = integral dx / sigma(x)``, from an edge on.

    With V(x) = sigma, ``s = 2 (V - V0) / gain``, and its inverse is ``x - x0 = s (V0 + gain s / 4)``. A bin's mean is
    ``width**2 gain / 16`` above its middle in s; E keeps its mean where the value decoded to is as much below the mean
    as ``width**2 gain / 12``, by which E would else rise. All errors stay below width / 2 * V if the bins are narrower
    by ``width**2 gain / (12 V)``.
    """

    first: float
    """Where they begin, with two bins that are not of the kind."""
    between: float
    """Where the second of these begins."""
    middles: tuple[float, float]
    """What these are decoded to."""
    edge: float
    """Where they end."""
    sigma: float
    """There."""
    gain: float
    width: float
    """In sigma."""

    @classmethod
    def make(cls, first: float, sigma: float, gain: float, width: float, before: float, unit: float) -> Bins:
        """Bins at most `width` sigma wide, of whole multiples of `unit`, behind others of that width squared."""
        width = min(width, widest(sigma, gain))
        narrower = (width / (1 + gain * width / (12 * sigma)) - unit / sigma) * (1 - 1e-9)
        while True:
            bins = cls._joining(first, sigma, gain, narrower, before, unit)
            ends = np.array([first, bins.between - unit / 2, bins.between + unit / 2, bins.edge - unit / 2])
            errors = np.abs(ends - np.repeat(bins.middles, 2))
            excess = float((errors / (width / 2 * np.sqrt(sigma * sigma + gain * (ends - first)))).max())
            if excess <= 1 or narrower * sigma < unit:
                return bins
            narrower *= 0.999 / excess

    @classmethod
    def _joining(cls, first: float, sigma: float, gain: float, width: float, before: float, unit: float) -> Bins:
        size, join = 0.0, np.zeros(4)
        for _ in range(20):
            square = width * width * (sigma * sigma + gain * size)
            join = _join(min(max(before / square, 0), 1.5)) * math.sqrt(square)
            size = float(join[0] + join[2])
        one, middles = float(join[0]), (first + float(join[1]), first + float(join[3]))
        if unit:
            one, two, inner, outer = _join_whole(square, before)
            size, middles = one + two, (first + inner, first + one + outer)
        at = math.sqrt(sigma * sigma + gain * size)
        # Whole numbers lie half a unit from the edges.
        return cls(first, first + one - unit / 2, middles, first + size - unit / 2, at, gain, width)

    def number(self, u: Floats, v: Floats) -> Floats:
        """Which bin values lie in that are so far beyond `edge`, with fractions; instead of them.

        What is before the edge may become anything. The second array is overwritten.
        """
        np.multiply(u, self.gain, out=v)
        v += self.sigma * self.sigma
        np.sqrt(v, out=v)
        v += self.sigma
        u *= 2 / self.width
        u /= v
        return u

    def begin(self, number: int) -> float:
        """Where a bin begins; nowhere where there is no such."""
        s = number * self.width
        return self.edge + s * (self.gain / 4 * s + self.sigma) if number > 0 else -math.inf

    def middle(self, number: Floats) -> Floats:
        """What values in these bins are decoded to."""
        s: Floats = np.floor(number) + 0.5
        s *= self.width
        return s * (self.gain / 4 * s + self.sigma) + (self.edge - self.gain * self.width**2 / 48)

    def decoded(self, x: Floats) -> Floats:
        """What values from `edge` on are decoded to."""
        return self.middle(self.number(x - self.edge, np.empty_like(x)))

    def joined(self, x: Floats) -> Floats:
        """What values from `first` to `edge` are decoded to."""
        return np.where(x < self.between, *self.middles)
