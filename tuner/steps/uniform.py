"""Uniform roundings: to a width, to so many bits over a range, to so many bits of a float's mantissa."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tuner.document import Interval, Number
from tuner.errors import InputError
from tuner.noise import Noise
from tuner.steps.pointwise import check_parameters

#: Bits of the mantissa of floats, by their bytes.
MANTISSA = {2: 10, 4: 23, 8: 52}

#: Double precision tells the quotients of integers below this from ties.
_TOLD = 2.0**51


def spacing(values: NDArray[Any]) -> NDArray[np.float64]:
    """The distance to the next number that the dtype holds, at most; of integers that of double precision."""
    float_info = np.finfo(values.dtype if values.dtype.kind == "f" else np.float64)
    wide = np.abs(values.astype(np.float64))
    return np.maximum(wide, float(float_info.tiny)) * float(float_info.eps)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Round to the nearest multiple of `width`; ties go to the even multiple.

    Law: twice is once, and no pixel moves by more than ``width / 2`` (and a float's spacing). Widths that are powers of
    two empty bit planes.

    >>> Uniform(4).round_values(np.array([1, 2, 3, 6, 65535], "uint16"), None).tolist()
    [0, 0, 4, 8, 65535]
    """

    width: float
    """In data units; a whole number for integers."""

    name: ClassVar[str] = "uniform"
    valid: ClassVar[Mapping[str, Number | Interval]] = {"width": Number(above=0.0)}

    def __post_init__(self) -> None:
        check_parameters(self)

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be rounded so."""
        if dtype.kind == "f":
            return
        if self.width != int(self.width) or not 1 <= self.width <= np.iinfo(dtype).max:
            raise InputError(
                f"width must be a whole number in 1..{np.iinfo(dtype).max} for {dtype}, got {self.width:g}"
            )

    def bound(self, values: NDArray[Any], noise: Noise | None) -> NDArray[np.float64]:
        """The most that each value can move by, data units."""
        half = np.full(values.shape, self.width / 2 if values.dtype.kind == "f" else self.width // 2)
        return half + spacing(values) if values.dtype.kind == "f" else half

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype."""
        if values.dtype.kind == "f":
            return nearest_multiples(values, quotients(values.dtype, self.width)(self.width))
        width, most = int(self.width), np.iinfo(values.dtype).max
        if width > 1 and not width & (width - 1) and values.max(initial=0) <= most - width // 2:
            return _multiples_of_bits(values, width.bit_length() - 1)
        if values.dtype.itemsize <= 4 or _inside(values, -_TOLD, _TOLD):
            return nearest_multiples(values, self.width)
        return _multiples_of_wide(values, values.dtype.type(width))


def quotients(dtype: np.dtype[Any], *widths: float) -> type[np.floating[Any]]:
    """The floats that values are divided in: their own where these hold quotients by powers of two, else doubles."""
    own = dtype == np.float32 and all(1e-38 < width < 1e38 and math.frexp(width)[0] == 0.5 for width in widths)
    return np.float32 if own else np.float64


def nearest_multiples(values: NDArray[Any], width: Any) -> NDArray[Any]:
    """The multiple of a width that is nearest to each value, ties to the even one; values without one stay.

    By the floats that the width is, or the widths are: doubles tell the quotient of any two integers of 32 bits from a
    tie. Floats stay where their dtype cannot tell multiples apart, and all values where a width is 0.

    >>> nearest_multiples(np.array([3, 6, 65535], "uint16"), 4.0).tolist()
    [4, 8, 65535]
    """
    multiple: NDArray[Any] = np.divide(values, width, dtype=np.asarray(width).dtype)
    np.rint(multiple, out=multiple)
    if values.dtype.kind == "f":
        most = 2.0 ** (MANTISSA[values.dtype.itemsize] - 1)
        stay = None if _inside(multiple, -most, most) else ~(np.abs(multiple) < most)
        multiple *= width
    else:
        low, high = np.iinfo(values.dtype).min - 0.5, np.iinfo(values.dtype).max + 0.5
        multiple *= width
        stay = None if _inside(multiple, low, high) else ~((multiple > low) & (multiple < high))
    if stay is not None:
        np.copyto(multiple, values, where=stay)
    return multiple.astype(values.dtype, copy=False)


def _multiples_of_bits(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """The nearest multiples of a power of two; to half of it one is added where the multiple below is odd, for ties."""
    rounded: NDArray[Any] = values >> bits
    rounded &= 1
    rounded += values
    rounded += (1 << bits - 1) - 1
    rounded &= ~values.dtype.type((1 << bits) - 1)
    return rounded


def _multiples_of_wide(values: NDArray[Any], width: Any) -> NDArray[Any]:
    """The nearest multiples of integers that doubles do not hold; values without one stay."""
    multiple = values // width
    rest = values - multiple * width
    # Compared without doubling, which may pass the dtype.
    up = (rest > width - rest) | ((rest == width - rest) & (multiple & 1).astype(np.bool_))
    rounded = values - rest + np.where(up, width, values.dtype.type(0))
    # Wrapped around the end of the dtype: there is no such multiple.
    return np.where(up == (rounded > values), rounded, values)


def _inside(values: NDArray[Any], low: float, high: float) -> bool:
    """Whether all are numbers between two others."""
    return not values.size or bool(values.min() > low and values.max() < high)


@dataclass(frozen=True, slots=True)
class Window:
    """Round to one of ``2**bits`` evenly spaced levels from `low` to `high`; what lies beyond is clipped to the ends.

    Law: twice is once; between the ends no pixel moves by more than half the spacing of the levels (and half a count,
    as integers stay such). As ESRF reduces 32 to 16 bits; the dtype stays, so no reader needs to know.

    >>> Window(2, 0, 30).round_values(np.array([0, 4, 6, 16, 99], "int32"), None).tolist()
    [0, 0, 10, 20, 30]
    """

    bits: int
    """Of the number of levels."""
    low: float
    """The lowest level, data units."""
    high: float
    """The highest, data units."""

    name: ClassVar[str] = "window"
    valid: ClassVar[Mapping[str, Number | Interval]] = {"bits": Interval(1, 32), "low": Number(), "high": Number()}

    def __post_init__(self) -> None:
        check_parameters(self)
        if not self.low < self.high:
            raise InputError(f"low must be below high, got {self.low:g} and {self.high:g}")

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be rounded so."""
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        if not (float(limits.min) <= self.low and self.high <= float(limits.max)):
            raise InputError(f"low and high must be values of {dtype}, got {self.low:g} and {self.high:g}")
        if self.bits > 8 * dtype.itemsize:
            raise InputError(f"bits must be at most those of {dtype}, got {self.bits}")
        if dtype.kind != "f" and self.spacing < 1:
            raise InputError(
                f"bits must leave levels at least 1 apart, got {self.bits} over {self.low:g}..{self.high:g}"
            )
        if dtype.kind != "f" and (self.low != int(self.low) or self.high != int(self.high)):
            raise InputError(f"low and high must be whole numbers for {dtype}, got {self.low:g} and {self.high:g}")

    @property
    def spacing(self) -> float:
        """Distance of two levels, data units."""
        return (self.high - self.low) / ((1 << self.bits) - 1)

    def bound(self, values: NDArray[Any], noise: Noise | None) -> NDArray[np.float64]:
        """The most that each value can move by, data units; beyond the ends it is how far they are."""
        wide = values.astype(np.float64)
        inside = self.spacing / 2 + (0.0 if values.dtype.kind == "f" else 0.5)
        bound: NDArray[np.float64] = np.maximum(np.maximum(self.low - wide, wide - self.high), inside)
        return bound + spacing(values)

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype."""
        level = np.rint((np.clip(values.astype(np.float64), self.low, self.high) - self.low) / self.spacing)
        wide = self.low + level * self.spacing
        return (wide if values.dtype.kind == "f" else np.rint(wide)).astype(values.dtype)


@dataclass(frozen=True, slots=True)
class Mantissa:
    """Keep so many bits of a float's mantissa, rounded to the nearest; ties go to even.

    Law: twice is once, and no pixel moves by more than ``2**-(keep + 1)`` of itself. As numcodecs' BitRound and
    netCDF's granular bit rounding do (Klöwer et al., Nature Computational Science 1, 713, 2021).

    >>> Mantissa(2).round_values(np.array([1.1, 1.2, 3.3], "float32"), None).tolist()
    [1.0, 1.25, 3.5]
    """

    keep: int
    """Bits of the mantissa that are kept."""

    name: ClassVar[str] = "mantissa"
    valid: ClassVar[Mapping[str, Number | Interval]] = {"keep": Interval(0, 51)}

    def __post_init__(self) -> None:
        check_parameters(self)

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be rounded so."""
        if dtype.kind != "f":
            raise InputError(f"step mantissa must be used on floats, got {dtype}")
        if self.keep >= MANTISSA[dtype.itemsize]:
            raise InputError(f"keep must be below {dtype}'s {MANTISSA[dtype.itemsize]} bits, got {self.keep}")

    def bound(self, values: NDArray[Any], noise: Noise | None) -> NDArray[np.float64]:
        """The most that each value can move by, data units."""
        wide = np.abs(values.astype(np.float64))
        # Below the least normal number the bits are worth as much as just above it.
        return np.maximum(wide, float(np.finfo(values.dtype).tiny)) * 2.0 ** -(self.keep + 1)

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype."""
        unsigned = np.dtype(f"u{values.dtype.itemsize}").type
        bits = values.view(unsigned)
        drop = MANTISSA[values.dtype.itemsize] - self.keep
        odd = (bits >> unsigned(drop)) & unsigned(1)
        rounded = (bits + unsigned((1 << drop - 1) - 1) + odd) & unsigned(~((1 << drop) - 1) & np.iinfo(unsigned).max)
        result: NDArray[Any] = rounded.view(values.dtype)
        return result
