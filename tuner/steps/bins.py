"""Rounding in proportion to the noise, of values of any dtype: bins of so many sigma that keep means.

Whole numbers of steps are rounded by a table (staircase.py) where sigma is a few steps. Below it, where there is no
light, bins are as wide as the first one. Where sigma spans many steps, and for floats of no step, bins have a closed
form (even_bins.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.noise import Noise
from tuner.steps.even_bins import Bins, widest
from tuner.steps.staircase import Floats, Integers, staircase

#: Where photons are far apart, as the noise of reading is below two of them, values are no Gaussian: bins grow from so
#: many photons on.
_PHOTONS = 16

#: From this sigma on, in steps, bins of whole numbers have the closed form; longest table.
_COARSE, _LONGEST = 128, 1 << 18

#: Values below the offset that a table holds, at most.
_DARK = 1 << 14

#: Whole numbers below this are exact in double precision, and so are the middles of bins between them.
_EXACT = 2.0**50

#: Values that are worked on at once, so that they stay in the cache.
_BLOCK = 1 << 15


def round_to_noise(values: NDArray[Any], noise: Noise, step: float, width: float) -> NDArray[Any]:
    """Values rounded in proportion to their noise; twice is once, and what is more never becomes less.

    No value moves by more than ``width / 2 * sigma``, and a float's spacing, with sigma as `deviation` has it. A mean
    moves by at most 0.01 of its sigma: that of Poisson counts where the noise is theirs, else that of Gaussian values.
    Where read noise is below two photons, fewer than 16 photons are rounded in proportion to the read noise alone, as
    they are no Gaussian. No bin is wider than 1.95 sigma, which could not keep means.

    Parameters
    ----------
    values : ndarray
        Of integers or floats, data units, any shape. NaN, infinities, what is no multiple of `step`, and values so
        large that their spacing is of the order of sigma stay. No other value becomes the greatest of an integer dtype,
        or the least of a signed one.
    noise : Noise
        Data units.
    step : float
        Of which the values are multiples, data units; 0 for floats that are of none.
    width : float
        Of the bins, in sigma.

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
    >>> counts = np.array([0, 5, 100, 104, 105, 1000], "uint16")
    >>> round_to_noise(counts, Noise(1, 0, 0, "photon counter"), 1, 1.0).tolist()
    [0, 5, 103, 103, 103, 985]
    """
    if not 0 < width < math.inf:
        raise InputError(f"width must be a finite number above 0, got {width}")
    dtype = values.dtype.newbyteorder("=")
    if dtype.kind != "f":
        step = max(1.0, float(round(step)))
    flat = np.ascontiguousarray(values, dtype).reshape(-1)
    if dtype.itemsize <= 2:
        codes = _codes(noise, step, float(width), dtype)
        return codes.take(flat.view(f"u{dtype.itemsize}"), mode="clip").reshape(values.shape)
    bins = _bins(noise, step, float(width), dtype)
    rounded, scratch = np.empty_like(flat), np.empty((4, _BLOCK))
    for start in range(0, flat.size, _BLOCK):
        bins.round_block(flat[start : start + _BLOCK], rounded[start : start + _BLOCK], scratch)
    return rounded.reshape(values.shape)


def counted(noise: Noise, step: float) -> bool:
    """Whether values are counted photons, a step each."""
    return noise.read_noise == 0 and noise.offset == 0 and 0.9 * step <= noise.gain <= 1.1 * step


@np.errstate(invalid="ignore")
def deviation(values: NDArray[Any], noise: Noise, step: float) -> Floats:
    """The sigma of values that bins are in proportion to, data units, same shape; never above that of `Noise.floored`.

    >>> deviation(np.array([0, 9]), Noise(1, 0, 0, "photon counter"), 1).tolist()
    [1.0, 3.0]
    """
    sigma: Floats = np.sqrt(_floored(noise, step).variance(values))
    return sigma


def _floored(noise: Noise, step: float) -> Noise:
    """The noise with the least variance of whole numbers of steps; not of one photon where photons are no step."""
    return replace(noise, floor=noise.gain**2 if counted(noise, step) else step * step / 12)


@lru_cache(maxsize=32)
def table(noise: Noise, step: float, width: float, n: int) -> Integers:
    """What whole numbers of steps, from the offset on (rounded down), are decoded to; read only.

    Parameters
    ----------
    noise : Noise
        Data units.
    step : float
        Data units.
    width : float
        Of the bins, in sigma.
    n : int
        How many.

    Returns
    -------
    ndarray of int64
        Steps, shape (n,).
    """
    x = np.arange(n, dtype=np.float64)
    base = math.floor(noise.offset / step)
    sigma = deviation((x + base) * step, noise, step) / step
    if step != int(step):
        # Multiples of such steps are not exact; the deviation of whole photons should be.
        sigma *= 1 + 1e-12
    levels = staircase(sigma, width, poisson=counted(noise, step), grow=growth(noise, step))
    levels.flags.writeable = False
    return levels


def growth(noise: Noise, step: float) -> int:
    """The step above the offset from which bins grow with the signal."""
    apart = not counted(noise, step) and noise.read_noise < 2 * noise.gain
    return math.ceil(_PHOTONS * noise.gain / step) if apart else 0


@lru_cache(maxsize=32)
def _codes(noise: Noise, step: float, width: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    """All values of a dtype of at most two bytes, rounded, in the order of their bits."""
    values = np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype)
    rounded = np.empty_like(values)
    _bins(noise, step, width, dtype).round_block(values, rounded, np.empty((4, len(values))))
    return rounded


@lru_cache(maxsize=32)
def _bins(noise: Noise, step: float, width: float, dtype: np.dtype[Any]) -> _WholeBins | _FloatBins:
    return _WholeBins.make(noise, step, width, dtype) if step else _FloatBins.make(noise, width, dtype)


@dataclass(frozen=True, slots=True)
class _WholeBins:
    """Rounds multiples of a step: by a table, with a lattice below it and bins of closed form above it."""

    step: float
    origin: int
    """The offset, rounded down, steps."""
    start: int
    """Where the table begins, steps."""
    decoded: NDArray[Any]
    """The table, in the values' own dtype and unit."""
    lattice: int
    """Width of the bins below, one of which has the origin in its middle."""
    bins: Bins
    """Steps above the origin."""
    middles: NDArray[Any]
    """What the first of them are decoded to, in the values' own dtype and unit."""
    end: float
    """Where the last of these begins, steps above the origin."""
    low: float
    high: float
    """What no other value becomes; values beyond stay; data units."""

    @classmethod
    def make(cls, noise: Noise, step: float, width: float, dtype: np.dtype[Any]) -> _WholeBins:
        """The bins for values of a dtype."""
        origin, gain, grow = math.floor(noise.offset / step), noise.gain / step, growth(noise, step)

        def sigma(x: float) -> float:
            return float(deviation(np.asarray((x + origin) * step), noise, step)) / step

        limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        low, high = (-1.0 if dtype.kind == "u" else float(limits.min)), float(limits.max)
        if dtype.kind == "f":
            # Beyond, floats have no room for all whole numbers.
            high = min(high, step * 2.0 ** (limits.nmant + 1))
            low = -high
        coarse = max(_COARSE, 16 / width)
        until = max((coarse**2 - sigma(0) ** 2) / gain, grow) if gain else math.inf
        until = int(max(min(until, _LONGEST, high / step - origin), 1))
        longer = int(24 * sigma(until)) + 64
        if until == grow:
            # So many steps a photon that there is nothing to search for.
            levels = staircase(np.full(until + longer, sigma(0)), width)
        else:
            levels = table(noise, step, width, until + longer)
        edges = np.flatnonzero(np.diff(levels, prepend=-1))
        behind = int(np.searchsorted(edges, until))
        end = int(edges[behind])
        # The table begins with some bins of the lattice, so that dark values are found in it too.
        lattice = 2 * int(np.searchsorted(levels, 0, "right")) - 1
        dark = lattice * math.ceil((8 * sigma(0) + min(max(origin, 0), _DARK)) / lattice)
        x = np.arange(-(lattice // 2) - dark, end)
        levels = np.where(x < 0, (x + lattice // 2) // lattice * lattice, levels[np.maximum(x, 0)])
        if sigma(end) < coarse:
            bins = Bins(end, end, (end, end), end - 0.5, 1.0, 0.0, float(edges[behind + 1] - end))
        else:
            before = _mean_square(levels, x, 4 * sigma(end))
            bins = Bins.make(end, sigma(end - 0.5), gain, width, before, 1.0)
        if dtype.itemsize > 2 and high > (origin + _LONGEST) * step:
            # What has a closed form is looked up too, as far as the table stays in the cache.
            between, further = np.split(np.arange(end, _LONGEST, dtype=np.float64), [math.ceil(bins.edge) - end])
            further = np.rint(bins.decoded(further))
            levels = np.concatenate((levels, bins.joined(between), further)).astype(np.int64)
            x = np.arange(x[0], x[0] + len(levels))
        own, decoded = (x + origin) * step, (levels + origin) * step
        decoded = np.where((decoded > low) & (decoded < high) & (own < high), decoded, own)
        decoded = np.clip(decoded, limits.min, limits.max).astype(dtype)
        # Bins that end well before what no other value becomes.
        last = bins.number(np.array([max(high / step - origin - bins.edge, 0.0)]), np.empty(1))[0] - 2
        middles = np.rint(bins.middle(np.arange(min(last, _LONGEST))))
        middles = ((middles + origin) * step).astype(dtype)
        end_of_middles = bins.begin(len(middles) - 1)
        return cls(step, origin, origin + int(x[0]), decoded, lattice, bins, middles, end_of_middles, low, high)

    @np.errstate(invalid="ignore", over="ignore")
    def round_block(self, values: NDArray[Any], rounded: NDArray[Any], scratch: Floats) -> None:
        """Round some values, shape (n,), into an array of the same dtype; `scratch` has at least the shape (4, n)."""
        x, one, two, places = scratch[:, : len(values)]
        stay = self._steps(values, x, one)
        inside = x >= self.start
        inside &= x < self.start + len(self.decoded)
        if inside.all():
            index = np.subtract(x, self.start, out=places.view(np.int64), casting="unsafe")
            self.decoded.take(index, mode="clip", out=rounded)
        else:
            beyond = np.subtract(x, self.origin + self.bins.edge, out=one)
            others = beyond < 0
            others |= beyond >= self.end - self.bins.edge
            others &= ~inside
            if len(self.middles):
                bin_of = places.view(np.int32)[: len(values)]
                np.copyto(bin_of, self.bins.number(beyond, two), casting="unsafe")
                self.middles.take(bin_of, mode="clip", out=rounded)
            if others.any():
                some = np.flatnonzero(others)
                rounded[some] = self._beyond(values[some], x[some] - self.origin)
            if inside.any():
                some = np.flatnonzero(inside)
                rounded[some] = self.decoded.take((x[some] - self.start).astype(np.int64))
        if stay is not None:
            np.copyto(rounded, values, where=stay)

    def _steps(self, values: NDArray[Any], x: Floats, one: Floats) -> NDArray[np.bool_] | None:
        """Put values in steps into `x`; which stay: no whole numbers, or larger than what double precision holds."""
        x[:] = values
        if self.step == 1:
            if values.dtype.kind != "f" and values.dtype.itemsize < 8:
                return None
            own = values if values.dtype.kind == "f" else x
            stay = np.not_equal(np.rint(own, out=one.view(own.dtype)[: len(own)]), own)
        else:
            x /= self.step
            np.rint(x, out=x)
            stay = np.multiply(x, self.step, out=one).astype(values.dtype) != values
        if not (x.min(initial=0) > -_EXACT and x.max(initial=0) < _EXACT):
            stay |= ~(np.abs(x) < _EXACT)
        if not stay.any():
            return None
        np.copyto(x, self.start, where=stay)
        return stay

    def _beyond(self, values: NDArray[Any], x: Floats) -> NDArray[Any]:
        """Values that are in no table, rounded; and they in steps above the origin."""
        level = np.rint(self.bins.decoded(x))
        front = x < self.bins.edge
        below = x[front]
        lower = np.floor((below + self.lattice // 2) / self.lattice) * self.lattice
        level[front] = np.where(below < self.bins.first, lower, self.bins.joined(below))
        level += self.origin
        level *= self.step
        held = (level > self.low) & (level < self.high) & (values > self.low) & (values < self.high)
        level[~held] = 0
        return np.where(held, level.astype(values.dtype), values)


def _mean_square(levels: Integers, x: Integers, size: float) -> float:
    """The width squared of odd bins with the same mean of E as the last of these, which begin `size` before the end."""
    bounds = np.flatnonzero(np.diff(levels)) + 1
    some = int(bounds[max(int(np.searchsorted(bounds, len(x) - size)) - 1, 0)])
    rise = np.cumsum((levels - x)[some:])
    return 12.0 * float((rise - rise[-1]).mean()) + 1


@dataclass(frozen=True, slots=True)
class _FloatBins:
    """Rounds floats that are of no step: a lattice, and above it bins of closed form."""

    offset: float
    """The middle of one of the bins of the lattice."""
    lattice: float
    """Their width; 0 for none."""
    last: float
    """The middle of the uppermost of them."""
    bins: Bins
    bottom: float
    top: float
    """Beyond, a float's spacing is of the order of sigma."""
    middles: NDArray[Any]
    """What the first bins are decoded to, in the values' own dtype."""
    end: float
    """Where the last of these begins."""

    @classmethod
    def make(cls, noise: Noise, width: float, dtype: np.dtype[Any]) -> _FloatBins:
        """The bins for values of a dtype."""
        spacing = 64 * float(np.finfo(dtype).eps)
        lattice = min(width, widest(noise.read_noise, noise.gain)) * noise.read_noise * (1 - 1e-9)
        grow = _PHOTONS * noise.gain if noise.read_noise < 2 * noise.gain else 0.0
        if lattice < max(1e-9 * grow, spacing * abs(noise.offset)):
            lattice = 0.0
        last = noise.offset + (lattice * math.ceil(grow / lattice - 0.5) if lattice else grow)
        first = last + lattice / 2
        sigma = float(deviation(np.asarray(first), noise, 0))
        # Its square has to have room in a double.
        if sigma < max(1e-140, 0.0 if lattice else spacing * first):
            return cls(0, 0, 0, Bins(0, 0, (0, 0), 0, 1, 0, 1), 0, 0, np.empty(0, dtype), -math.inf)
        bins = Bins.make(first, sigma, noise.gain, width, lattice**2, 0.0)
        bottom = -(2.0 ** math.floor(math.log2(lattice / spacing))) if lattice else -math.inf
        top = 2.0 ** math.ceil(math.log2(max(first, 1e-30)))
        while bins.width * float(deviation(np.asarray(2 * top), noise, 0)) > spacing * 2 * top:
            top *= 2
        many = bins.number(np.array([max(top - bins.edge, 0.0)]), np.empty(1))[0] - 2
        middles = bins.middle(np.arange(max(min(many, _LONGEST), 0))).astype(dtype)
        return cls(noise.offset, lattice, last, bins, bottom, top, middles, bins.begin(len(middles) - 1))

    @np.errstate(invalid="ignore", over="ignore")
    def round_block(self, values: NDArray[Any], rounded: NDArray[Any], scratch: Floats) -> None:
        """Round some values, shape (n,), into an array of the same dtype; `scratch` has at least the shape (4, n)."""
        x, one, two, places = scratch[:, : len(values)]
        x[:] = values
        others = ~((x >= self.bins.edge) & (x < self.end))
        if others.all():
            rounded[:] = self._beyond(values, x)
            return
        number = self.bins.number(np.subtract(x, self.bins.edge, out=one), two)
        bin_of = places.view(np.int32)[: len(values)]
        np.copyto(bin_of, number, casting="unsafe")
        self.middles.take(bin_of, mode="clip", out=rounded)
        if others.any():
            rounded[others] = self._beyond(values[others], x[others])

    def _beyond(self, values: NDArray[Any], x: Floats) -> NDArray[Any]:
        """Values that are in no table, rounded; and they in double precision."""
        d = self._lower(x)
        if not x.max() < self.bins.first:
            upper = np.where(x < self.bins.edge, self.bins.joined(x), self.bins.decoded(x))
            d = np.where(x < self.bins.first, d, upper)
        if x.min() > self.bottom and x.max() < self.top:
            return d.astype(values.dtype)
        d = np.clip(d, self.bottom, self.top)
        return np.where((x > self.bottom) & (x < self.top), d.astype(values.dtype), values)

    def _lower(self, x: Floats) -> Floats:
        """What values below the bins become: those of the lattice, where there is one."""
        if not self.lattice:
            return x
        lower = x - self.offset
        lower *= 1 / self.lattice
        np.rint(lower, out=lower)
        lower *= self.lattice
        lower += self.offset
        return np.minimum(lower, self.last, out=lower)
