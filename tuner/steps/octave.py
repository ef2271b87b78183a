"""Rounding to powers of two that double with the noise, so that bits are empty where codecs look for them.

Where a lattice of width w ends in one of width 2 w, at a level X of both, the running sum of the errors rises, and the
means nearby move by ``w**2 / 8`` of their probability there (Euler and Maclaurin). Shifting the four edges next to X
takes that back, and the next three terms of the expansion in derivatives of the probability with it
(docs/decisions/0016-octaves.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.noise import Noise
from tuner.steps.bins import counted, deviation, growth
from tuner.steps.staircase import LAW, WIDEST, Floats, Means

#: How far the edges next to X are shifted, in widths w below X: the solution, by Newton's method, of the four equations
#: ``sum J ((t + s)**(k + 1) - t**(k + 1)) / (k + 1)! = (-1/8, 0, 7/384, 0)`` for k of 0 to 3, with t and J as below.
_SHIFTS = (0.0328, -0.1262, -0.0180, 0.0022)
#: Where these edges were, from X, and how far apart the levels beside each are, both in w.
_EDGES, _JUMPS = (-1.5, -0.5, 1.0, 3.0), (1, 1, 2, 2)
#: Levels beside them, from X, in w.
_LEVELS = np.array([-2.0, -1.0, 0.0, 2.0, 4.0])

#: Part of the law that is used; steps that a width is made of where edges are tried, at most; and how far around.
_MARGIN, _FINE, _AROUND = 0.75, 64, 2

#: Widths that are so far below sigma move no mean where they change, even if nothing is shifted: ``w**2 / 8`` times the
#: most of a probability, 0.4 / sigma, are 0.003 sigma.
_NARROW = 1 / 4

#: Above this sigma, in steps, it matters little that edges lie between whole numbers.
_SMOOTH = 16

#: Sign, exponent and first bits of the mantissa of a float of 32 bits: by these the distance of levels is found.
_LEADING = 16

#: Whole numbers below this are exact in double precision.
_EXACT = 2.0**50

#: Below this mean counts are Poisson values, above as good as Gaussian.
_POISSON = 1 << 14


def round_to_octaves(values: NDArray[Any], noise: Noise, step: float, width: float) -> NDArray[Any]:
    """Values rounded to powers of two times `step` that are at most `width` sigma; twice is once.

    No value moves by more than ``width / 2 * sigma``, and a float's spacing, with sigma as `deviation` has it, and no
    mean by more than 0.01 of its sigma: as `round_to_noise`, with more levels but fewer bits that are not empty.

    Parameters
    ----------
    values : ndarray
        Of integers or floats, data units, any shape. NaN, infinities, and what is no multiple of `step` stay. No other
        value becomes the greatest of an integer dtype, or the least of a signed one.
    noise : Noise
        Data units.
    step : float
        Of which the values are multiples, data units; 0 for floats that are of none.
    width : float
        The largest distance of two levels, in sigma; wider than 1.95 is taken as that.

    Returns
    -------
    ndarray
        Same shape and dtype.

    Raises
    ------
    InputError
        Where the width is not above 0.

    Examples
    --------
    >>> counts = np.array([0, 5, 100, 105, 1000], "uint16")
    >>> round_to_octaves(counts, Noise(1, 0, 0, "photon counter"), 1, 1.0).tolist()
    [0, 5, 96, 104, 992]
    """
    if not 0 < width < math.inf:
        raise InputError(f"width must be a finite number above 0, got {width}")
    flat = values.astype(values.dtype.newbyteorder("="), copy=False).reshape(-1)
    return _rounded(flat, noise, step, width).reshape(values.shape)


@np.errstate(over="ignore", invalid="ignore")
def _rounded(values: NDArray[Any], noise: Noise, step: float, width: float) -> NDArray[Any]:
    dtype = values.dtype
    limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    if dtype.kind != "f":
        step = max(1.0, float(round(step)))
    levels = octaves(noise, step, width, float(limits.max), float(limits.eps) if dtype.kind == "f" else 0.0)
    x = values.astype(np.float64)
    kept: NDArray[np.bool_] | None = None
    if step not in (0.0, 1.0):
        x /= step
        np.rint(x, out=x)
        kept = (x * step).astype(dtype) != values
    elif dtype.kind == "f":
        kept = np.rint(x) != x if step else np.isnan(x)
    if kept is not None and kept.any():
        x[kept] = 0
    else:
        kept = None
    level = levels.round(x)
    if step not in (0.0, 1.0):
        level *= step
    # What no other value becomes; whole numbers beyond double precision stay too.
    low = -1.0 if dtype.kind == "u" else float(limits.min)
    if values.size and not (level.min() > low and level.max() < limits.max and (not step or np.abs(x).max() < _EXACT)):
        beyond = (level <= low) | (level >= limits.max) | (bool(step) & (np.abs(x) >= _EXACT))
        level[beyond] = 0
        kept = beyond if kept is None else kept | beyond
    rounded = level.astype(dtype)
    return rounded if kept is None else np.where(kept, values, rounded)


@dataclass(frozen=True, slots=True)
class _Doubling:
    """From where on levels are twice as far apart."""

    at: float
    """A level of both, in steps."""
    width: float
    """Below, steps; 0 where all values stay."""
    above: float
    """Distance of levels above."""
    edges: Floats
    """The least value that goes to the next of `levels`, steps, shape (4,)."""

    @property
    def levels(self) -> Floats:
        """Beside the edges, shape (5,)."""
        levels: Floats = self.at + _LEVELS * self.width
        return levels


@dataclass(frozen=True)
class Octaves:
    """Levels that are powers of two apart, twice as far wherever sigma is."""

    width: float
    """Distance of the levels where there is no light, steps; 0 where values stay."""
    doublings: tuple[_Doubling, ...] = ()
    """In rising order."""

    @cached_property
    def _distances(self) -> Floats:
        """The distance of levels for values of which the leading bits are given; NaN where they do not tell it."""
        bits = np.arange(1 << _LEADING, dtype=np.uint32)
        ends = np.stack([bits, bits + 1]).astype(np.uint32) << np.uint32(32 - _LEADING)
        values = ends.view(np.float32).astype(np.float64)
        # Bits are those of the nearest float, which may be another one than the value.
        slack = np.abs(values).max(axis=0) * 2.0**-22
        low, high = values.min(axis=0) - slack, values.max(axis=0) + slack
        begun = np.searchsorted([d.at - 2 * d.width for d in self.doublings], high, "right")
        ended = np.searchsorted([d.at + 4 * d.width for d in self.doublings], low, "left")
        distances = np.array([self.width, *(d.above for d in self.doublings)])[ended]
        return np.where((begun == ended) & (distances > 0), distances, np.nan)

    def round(self, x: Floats) -> Floats:
        """What values become, both in steps."""
        leading = x.astype(np.float32).view(np.uint32)
        leading >>= np.uint32(32 - _LEADING)
        scale = self._distances.take(leading.astype(np.intp), mode="clip")
        level: Floats = x / scale
        np.rint(level, out=level)
        level *= scale
        unknown = np.flatnonzero(np.isnan(scale))
        if unknown.size:
            level[unknown] = self._round_anywhere(x[unknown])
        return level

    def _round_anywhere(self, x: Floats) -> Floats:
        """The same, also next to where the distance doubles."""
        place = np.searchsorted([doubling.at for doubling in self.doublings], x, "right")
        scale = np.array([self.width, *(doubling.above for doubling in self.doublings)])[place]
        level = np.where(scale > 0, np.rint(x / np.where(scale > 0, scale, 1)) * scale, x)
        low, high = float(x.min()), float(x.max())
        for doubling in self.doublings:
            if doubling.width and doubling.at + 4 * doubling.width >= low and doubling.at - 2 * doubling.width <= high:
                levels = doubling.levels
                near = np.flatnonzero((x >= levels[0]) & (x <= levels[-1]))
                level[near] = levels[np.searchsorted(doubling.edges, x[near], "right")]
        return level


@lru_cache(maxsize=32)
def octaves(noise: Noise, step: float, width: float, top: float, eps: float) -> Octaves:
    """Levels for multiples of a step, or for floats that are of none.

    No value moves by more than ``width / 2`` sigma, with sigma as `deviation` has it, and no mean by more than 0.01 of
    its sigma. Levels double as soon as both allow.

    Parameters
    ----------
    noise : Noise
        Data units.
    step : float
        Data units; 0 for floats that are of none.
    width : float
        The largest distance of levels, in sigma; wider than 1.95 is taken as that.
    top : float
        The largest value, data units.
    eps : float
        Relative distance of two values, beyond which there is nothing to round; 0 for integers.
    """
    unit = step or 1.0
    plan = _Plan(noise, step, unit, min(width, WIDEST))
    origin, dark = plan.origin, float(plan.sigma(np.array(plan.origin)))
    base = _power(plan.width * (1 - 1e-12) * dark)
    while base and plan.lattice_bias(base, dark) > _MARGIN * LAW:
        base /= 2
    found = Octaves(max(base, 1.0) if step else base)
    start = origin + (growth(noise, step) if step else 16 * noise.gain * (noise.read_noise < 2 * noise.gain))
    if not found.width and noise.gain:
        # Values stay up to here; levels that are narrow beside the noise move no mean where they begin.
        above = _power(min(_NARROW, plan.width) * (1 - 1e-9) * float(plan.sigma(np.array(start))))
        found = (
            Octaves(0.0, (_Doubling(math.ceil(start / above) * above, 0.0, above, np.empty(0)),)) if above else found
        )
    while noise.gain and (doubling := plan.next(found, start, top / unit, eps)) is not None:
        found = Octaves(found.width, (*found.doublings, doubling))
    return found


@dataclass(frozen=True, slots=True)
class _Plan:
    """What levels have to keep to; all in units of the step, or of the data where there is none."""

    noise: Noise
    step: float
    unit: float
    width: float
    """In sigma."""

    @property
    def origin(self) -> float:
        """Where there is no light."""
        return math.floor(self.noise.offset / self.unit) if self.step else self.noise.offset

    def sigma(self, x: Floats) -> Floats:
        """Of values."""
        sigma: Floats = deviation(x * self.unit, self.noise, self.step) / self.unit
        return sigma

    def lattice_bias(self, width: float, sigma: float) -> float:
        """The most that a lattice moves a mean, in sigma: its period, and twice that where ties go up and down."""
        bias = width / (math.pi * sigma) * math.exp(-2 * (math.pi * sigma / width) ** 2)
        return bias + (math.exp(-((math.pi * sigma / width) ** 2) / 2) / sigma if self.step and width > 1 else 0.0)

    def next(self, found: Octaves, start: float, top: float, eps: float) -> _Doubling | None:
        """The first place from `start` on where levels may double again; None where there is none up to the top."""
        last = found.doublings[-1] if found.doublings else _Doubling(-math.inf, 0.0, found.width, np.empty(0))
        width = last.above
        if not width:
            return None
        variance = (2 * width / self.width) ** 2 - float(self.sigma(np.array(self.origin))) ** 2
        at = max(start, last.at + 4 * width, self.origin + variance * self.unit / self.noise.gain)
        if at > top or width < eps * abs(at):
            return None
        at = math.ceil(at / (4 * width)) * (4 * width)
        while at <= top and width >= eps * abs(at):
            edges = self._scaled(last, at, width)
            if edges is None:
                edges = self._edges(found, at, width)
            if edges is not None:
                return _Doubling(at, width, 2 * width, edges)
            at += 4 * width * max(1, math.ceil((at - self.origin) / (256 * width)))
        return None

    def _scaled(self, last: _Doubling, at: float, width: float) -> Floats | None:
        """The edges of the doubling before, twice as far; None where the noise is not at least as smooth there."""
        sigma, before = self.sigma(np.array([at, last.at]))
        if last.width < (4 * _FINE if self.step else math.ulp(0)) or sigma < 1.96 * before:
            return None
        edges: Floats = 2 * (last.edges - last.at)
        levels = np.stack([_LEVELS[:-1], _LEVELS[1:]]) * width
        reach = self.width / 2 * (1 - 1e-9) * self.sigma(at + edges) - (1 if self.step else 0)
        return at + edges if (np.abs(edges - levels) <= reach).all() else None

    def _edges(self, found: Octaves, at: float, width: float) -> Floats | None:
        """The edges beside a level from which on levels are twice as far apart; None where the law does not hold."""
        fine = 1.0 if self.step and width <= _FINE else width / _FINE
        w = int(width / fine)
        nominal = np.array([-(w // 2) - w + (w > 1), -(w // 2), w + 1, 3 * w])
        shifts = np.rint(np.multiply(_SHIFTS, w)).astype(int)[:, None] + np.arange(-_AROUND, _AROUND + 1)
        edges = nominal[:, None] + shifts
        # The values beside each edge, half a unit further where they may lie anywhere.
        slack = 0.5 if fine != 1 or not self.step else 0.0
        sides = np.stack([edges - 1 + slack, edges - slack], axis=-1)
        levels = np.stack([_LEVELS[:-1], _LEVELS[1:]], axis=-1)[:, None] * w
        reach = self.width / 2 * (1 - 1e-12) * self.sigma(at + sides * fine) / fine
        # Every level stays in a bin of its own.
        own = (edges > levels[..., 0]) & (edges <= levels[..., 1])
        allowed = (np.abs(sides - levels) <= reach).all(axis=-1) & own
        if not allowed.any(axis=1).all():
            return None
        sigma = float(self.sigma(np.array(at))) / fine
        if sigma > max(w / _NARROW, _SMOOTH):
            off = np.abs(shifts - np.multiply(_SHIFTS, w)[:, None])
            best: tuple[Any, ...] = tuple(np.where(allowed, off, np.inf).argmin(axis=1))
        else:
            means = self._means(at, sigma, fine)
            first = -int(10 * sigma) - 3 * w
            values = np.arange(first, int(11 * sigma) + 3 * w)
            p = means.probability(values + round(at / fine), slice(None)) / means.sigma
            doubled = Octaves(found.width, (*found.doublings, _Doubling(at, width, 2 * width, at + nominal * fine)))
            x = np.asarray(at + values * fine, np.float64)
            bias: NDArray[Any] = (doubled.round(x) - x) / fine @ p
            total = np.concatenate([np.zeros((1, p.shape[1])), np.cumsum(p, axis=0)])
            moved = [
                -jump * w * (total[e - first] - total[n - first])
                for jump, e, n in zip(_JUMPS, edges, nominal, strict=True)
            ]
            # Every combination of shifts, an axis for each edge.
            for axis, (some, row) in enumerate(zip(moved, allowed, strict=True)):
                some[~row] = np.inf
                bias = np.asarray(bias + np.expand_dims(some, [other for other in range(4) if other != axis]))
            worst = np.abs(bias).max(axis=-1)
            best = np.unravel_index(np.argmin(worst), worst.shape)
            if not worst[best] <= _MARGIN * LAW:
                return None
        # Half a unit below the first value that goes up; of those on a whole number, every other takes it too.
        shared = np.array([0.0, 0.5, 0.0, 0.5]) if self.step and fine > 1 else 0.0
        chosen: Floats = np.asarray(at + (edges[np.arange(4), best] - 0.5) * fine + shared, np.float64)
        return chosen

    def _means(self, at: float, sigma: float, fine: float) -> Means:
        """Means within four sigma of a place, an eighth apart, in units of `fine`."""
        mean = at / fine + np.arange(-4, 4.1, 0.125) * sigma
        poisson = counted(self.noise, self.step) and fine == 1 and at < _POISSON
        sigmas = self.sigma(mean * fine) / fine
        likely = (mean > 0) if poisson else (sigmas > 0)
        return Means(mean[likely], sigmas[likely], poisson)


def _power(x: float) -> float:
    """The largest power of two that is no larger; 0 where there is none."""
    return math.ldexp(1.0, math.floor(math.log2(x))) if x > 1e-140 else 0.0
