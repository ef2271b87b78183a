"""Roundings on a scale of their own: photons, leading bits, logarithm, powers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tuner.document import Interval, Number
from tuner.errors import InputError
from tuner.noise import Noise
from tuner.steps.pointwise import check_parameters
from tuner.steps.uniform import Mantissa, spacing

_Floats = NDArray[np.float64]

#: Levels of a scale that are kept, so that they stay in the cache.
_LEVELS = 1 << 16


def _within(level: _Floats, values: NDArray[Any]) -> NDArray[Any]:
    """Levels in the dtype of the values, which stay where it has no such level inside its ends."""
    if values.dtype.kind == "f":
        return level.astype(values.dtype)
    level = np.rint(level)
    limits = np.iinfo(values.dtype)
    # The ends as doubles may be beyond the dtype; so they are left out.
    low, high = float(limits.min) - (limits.min == 0), float(limits.max)
    if level.size and low < level.min() and level.max() < high:
        return level.astype(values.dtype)
    inside = (level > low) & (level < high)
    return np.where(inside, np.where(inside, level, 0).astype(values.dtype), values)


def _settled(once: NDArray[Any], twice: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Rounded values; those that would go on to another level stay as they were, so that twice is once."""
    return np.where(twice == once, once, values)


@dataclass(frozen=True, slots=True)
class Photonise:
    """Round to whole photons, or to a fraction of one, from the value without light on; ties go to the even one.

    Law: twice is once, and no pixel moves by more than half of ``fraction * gain`` (and half a count, as integers stay
    such, and a float's spacing). Where read noise is far below that, it is removed; from half of it on, means stay, but
    for integers whose levels are an even number of counts apart, and have ties, only from all of it on. In between, and
    where photons share their charge between pixels, parts of photons are lost or made: take a fraction.

    >>> Photonise(gain=10.0).round_values(np.array([4, 16, 98], "int32"), Noise(1.0, 0.0, 2.0, "given")).tolist()
    [0, 20, 100]
    """

    gain: float = 0.0
    """Data units for a photon; 0 for that of the noise."""
    fraction: float = 1.0
    """Of a photon, of which levels are multiples."""

    name: ClassVar[str] = "photonise"
    valid: ClassVar[Mapping[str, Number | Interval]] = {
        "gain": Number(least=0.0),
        "fraction": Number(above=0.0, most=1.0),
    }

    def __post_init__(self) -> None:
        check_parameters(self)

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be rounded so."""
        if noise is None:
            raise InputError("step photonise must have a noise model, for the value without light")
        if not self._width(noise):
            raise InputError("gain must be above 0, here or in the noise, got 0")
        if dtype.kind != "f" and not 1 <= self._width(noise) <= np.iinfo(dtype).max:
            raise InputError(
                f"gain times fraction must be in 1..{np.iinfo(dtype).max} for {dtype}, got {self._width(noise):g}"
            )

    @np.errstate(over="ignore")
    def bound(self, values: NDArray[Any], noise: Noise | None) -> _Floats:
        """The most that each value can move by, data units."""
        assert noise is not None
        half = self._width(noise) / 2
        # Levels are sums, each of which is rounded.
        reach = np.abs(values.astype(np.float64)) + half + abs(noise.offset)
        return (
            half
            + 4 * spacing(reach.astype(values.dtype) if values.dtype.kind == "f" else reach)
            + (values.dtype.kind != "f") / 2
        )

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype."""
        assert noise is not None
        once = self._nearest(values, noise)
        return once if self._told_apart(values, noise) else _settled(once, self._nearest(once, noise), values)

    def _nearest(self, values: NDArray[Any], noise: Noise) -> NDArray[Any]:
        width, offset = self._width(noise), self._offset(values, noise)
        level = np.subtract(values, offset, dtype=np.float64)
        level /= width
        np.rint(level, out=level)
        level *= width
        level += offset
        return _within(level, values)

    def _told_apart(self, values: NDArray[Any], noise: Noise) -> bool:
        """Whether the dtype holds levels near these values so well that rounding twice is rounding once."""
        width = self._width(noise)
        if values.dtype.kind != "f":
            # Levels move by half a count when they become integers; as doubles they are right to 2**-20.
            return values.dtype.itemsize <= 4 and width >= 1.00001
        low, high = (float(bound(values)) for bound in (np.fmin.reduce, np.fmax.reduce))
        reach = max(abs(low), abs(high)) + abs(self._offset(values, noise)) + width
        return 4 * reach * float(np.finfo(values.dtype).eps) < width

    def _offset(self, values: NDArray[Any], noise: Noise) -> float:
        return noise.offset if values.dtype.kind == "f" else float(round(noise.offset))

    def _width(self, noise: Noise) -> float:
        return (self.gain or noise.gain) * self.fraction


@dataclass(frozen=True, slots=True)
class LeadingBits:
    """Keep so many leading bits of an integer's magnitude, rounded to the nearest; ties go to even.

    Law: twice is once; integers below ``2**keep`` stay, and no other moves by more than ``2**-keep`` of itself. What is
    kept is the leading bits and their place, as in a float (Galchenkova et al., IUCrJ 11, 190, 2024).

    >>> LeadingBits(3).round_values(np.array([7, 9, 17, 1000], "uint16"), None).tolist()
    [7, 8, 16, 1024]
    """

    keep: int
    """Leading bits that are kept, the first among them."""

    name: ClassVar[str] = "leading_bits"
    valid: ClassVar[Mapping[str, Number | Interval]] = {"keep": Interval(1, 32)}

    def __post_init__(self) -> None:
        check_parameters(self)

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be rounded so."""
        if dtype.kind == "f":
            raise InputError(f"step leading_bits must be used on integers, got {dtype}")
        if self.keep >= 8 * dtype.itemsize:
            raise InputError(f"keep must be below {dtype}'s {8 * dtype.itemsize} bits, got {self.keep}")

    def bound(self, values: NDArray[Any], noise: Noise | None) -> _Floats:
        """The most that each value can move by, data units."""
        wide = np.abs(values.astype(np.float64))
        return np.where(wide < 2.0**self.keep, 0.0, wide * 2.0**-self.keep + spacing(values))

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype."""
        # A double's mantissa has the first bit left out.
        return _within(Mantissa(self.keep - 1).round_values(values.astype(np.float64), None), values)


@dataclass(frozen=True, slots=True)
class Log:
    """Round to levels evenly spaced in ``log(1 + |x| / linear)``, with the sign of x.

    Law: twice is once, and no pixel moves by more than ``exp(width / 2) - 1`` of ``|x| + linear`` (and half a count, as
    integers stay such, and a float's spacing). As l_bnl_compress offers it; means of wide bins move, by about
    ``width**2 / 24`` of themselves: limit `bias_sigma`.

    >>> Log(0.5, 10.0).round_values(np.array([0, 3, 30, 1000], "int32"), None).tolist()
    [0, 6, 35, 890]
    """

    width: float
    """Of the logarithm: 0.01 is a per cent."""
    linear: float
    """Below this, levels are about evenly spaced; data units."""

    name: ClassVar[str] = "log"
    valid: ClassVar[Mapping[str, Number | Interval]] = {
        "width": Number(above=0.0, most=2.0),
        "linear": Number(above=0.0),
    }

    def __post_init__(self) -> None:
        check_parameters(self)

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be rounded so."""
        _check_at_most("linear", self.linear, dtype)

    @np.errstate(over="ignore")
    def bound(self, values: NDArray[Any], noise: Noise | None) -> _Floats:
        """The most that each value can move by, data units."""
        return _inexact((np.abs(values.astype(np.float64)) + self.linear) * math.expm1(self.width / 2), values)

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype."""
        return _by_index(self, values)

    def index(self, size: _Floats) -> _Floats:
        """The number of the level nearest to each size of a value; overwrites them."""
        size /= self.linear
        np.log1p(size, out=size)
        size /= self.width
        return np.rint(size, out=size)

    def level(self, index: _Floats) -> _Floats:
        """The size of each level."""
        return np.expm1(index * self.width) * self.linear


@dataclass(frozen=True, slots=True)
class Power:
    """Round to levels evenly spaced in ``|x|**exponent``, with the sign of x.

    Law: twice is once, and no pixel moves by more than ``(|x|**exponent + width / 2)**(1 / exponent) - |x|`` (and half
    a count, as integers stay such, and a float's spacing). With 0.5 the levels follow the noise of counts; for means
    that stay use `sigma` or `octave`. As l_bnl_compress offers it.

    >>> Power(0.5, 1.0).round_values(np.array([0, 2, 5, 20, 1000], "int32"), None).tolist()
    [0, 1, 4, 16, 1024]
    """

    exponent: float
    """1 for levels that are evenly spaced, less for wider ones at higher values."""
    width: float
    """Of the levels, data units to the power of the exponent."""

    name: ClassVar[str] = "power"
    valid: ClassVar[Mapping[str, Number | Interval]] = {
        "exponent": Number(least=0.1, most=1.0),
        "width": Number(above=0.0),
    }

    def __post_init__(self) -> None:
        check_parameters(self)

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be rounded so."""
        _check_at_most("width", self.width, dtype)

    @np.errstate(over="ignore")
    def bound(self, values: NDArray[Any], noise: Noise | None) -> _Floats:
        """The most that each value can move by, data units."""
        wide = np.abs(values.astype(np.float64))
        return _inexact((wide**self.exponent + self.width / 2) ** (1 / self.exponent) - wide, values)

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype."""
        return _by_index(self, values)

    def index(self, size: _Floats) -> _Floats:
        """The number of the level nearest to each size of a value; overwrites them."""
        size **= self.exponent
        size /= self.width
        return np.rint(size, out=size)

    def level(self, index: _Floats) -> _Floats:
        """The size of each level."""
        level: _Floats = (index * self.width) ** (1 / self.exponent)
        return level


def _by_index(scale: Log | Power, values: NDArray[Any]) -> NDArray[Any]:
    """Values rounded to the nearest level of a scale, with their sign: by a table of the first levels."""
    levels, settled, all_settled = _levels(scale, values.dtype)
    index = scale.index(np.abs(values, dtype=np.float64))
    places = index.astype(np.int32)
    rounded = levels.take(places, mode="clip")
    if values.dtype.kind == "f":
        if np.signbit(values).any():
            np.copysign(rounded, values, out=rounded)
    elif values.dtype.kind == "i" and values.min(initial=0) < 0:
        rounded *= np.sign(values)
    if places.min(initial=all_settled) < all_settled:
        np.copyto(rounded, values, where=~settled.take(places, mode="clip"))
    # NaN, which stays as it is, has no place either.
    if not index.max(initial=0) < len(levels):
        beyond = np.flatnonzero(~(index < len(levels)))
        far = values[beyond]
        once = _nearest(scale, far)
        rounded[beyond] = _settled(once, _nearest(scale, once), far)
    return rounded


def _nearest(scale: Log | Power, values: NDArray[Any]) -> NDArray[Any]:
    wide = values.astype(np.float64)
    return _within(np.copysign(scale.level(scale.index(np.abs(wide))), wide), values)


@lru_cache(maxsize=16)
@np.errstate(over="ignore")
def _levels(scale: Log | Power, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[np.bool_], int]:
    """The first levels, whether each is rounded to itself, and from where on all are."""
    most = float(np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max)
    wide = scale.level(np.arange(_LEVELS, dtype=np.float64))
    wide = wide[wide < most]
    levels = (wide if dtype.kind == "f" else np.rint(wide)).astype(dtype)
    settled = _nearest(scale, levels) == levels
    return levels, settled, int(np.flatnonzero(~settled).max(initial=-1)) + 1


def _check_at_most(name: str, value: float, dtype: np.dtype[Any]) -> None:
    most = float(np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max)
    if value > most:
        raise InputError(f"{name} must be at most {dtype}'s {most:g}, got {value:g}")


def _inexact(bound: _Floats, values: NDArray[Any]) -> _Floats:
    """A bound with what the dtype cannot hold, and what logarithms and powers leave of a double."""
    wide = np.abs(values.astype(np.float64))
    rest = 2 * spacing((wide + bound).astype(values.dtype)) if values.dtype.kind == "f" else 0.5
    inexact: _Floats = bound * (1 + 1e-9) + rest + wide * 1e-12
    return inexact
