"""Raw frames of detectors that switch gain, as JUNGFRAU's: the value bits are rounded, the gain bits never."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tuner.document import Interval, Number
from tuner.errors import InputError
from tuner.noise import Noise
from tuner.steps.pointwise import check_parameters
from tuner.steps.uniform import Uniform

#: Bits of the value, below the two of the gain.
_VALUE_BITS = 14
#: Codes of the three gains, high to low; the fourth is none that a detector gives.
_CODES = (0, 1, 3)


@dataclass(frozen=True, slots=True)
class Stages:
    """Round the 14 value bits of raw JUNGFRAU pixels, in each of the three gains to a width of its own.

    Law: twice is once, gain bits stay, and no pixel moves by more than half the width of its gain. Pixels of gain code
    2, which no detector gives, and saturated ones, all ones, stay, and none becomes such. The lower gains count down,
    and a count is worth some thirty to four hundred times the energy (Mozzanica et al., JINST 11, C02047, 2016): their
    widths should be small.

    >>> raw = np.array([2905, 0x4000 | 14803, 0x8000 | 77, 0xC000 | 15203, 0xFFFF], "uint16")
    >>> [hex(v) for v in (Stages(8, 2, 1).round_values(raw, None) ^ raw).tolist()]
    ['0x1', '0x7', '0x0', '0x0', '0x0']
    """

    high: int
    """Width in the high gain, counts; 1 for every value."""
    medium: int = 1
    """In the medium gain."""
    low: int = 1
    """In the low gain."""

    name: ClassVar[str] = "stages"
    valid: ClassVar[Mapping[str, Number | Interval]] = {
        name: Interval(1, (1 << _VALUE_BITS) - 1) for name in ("high", "medium", "low")
    }

    def __post_init__(self) -> None:
        check_parameters(self)

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be rounded so."""
        if dtype != np.dtype("uint16"):
            raise InputError(f"step stages must be used on uint16, 2 bits of gain and 14 of value, got {dtype}")

    def bound(self, values: NDArray[Any], noise: Noise | None) -> NDArray[np.float64]:
        """The most that each value can move by, data units."""
        halves = np.zeros(4)
        halves[list(_CODES)] = np.array([self.high, self.medium, self.low]) // 2
        bound: NDArray[np.float64] = halves[values >> _VALUE_BITS]
        return bound

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype."""
        last = (1 << _VALUE_BITS) - 1
        bits = values & last
        rounded = values.copy()
        for code, width in zip(_CODES, (self.high, self.medium, self.low), strict=True):
            value = Uniform(width).round_values(bits, None)
            # The last value is that of saturated pixels in the low gain; in the others it is the end of the scale.
            taken = (values >> _VALUE_BITS == code) & (value < last) & (bits < last)
            rounded[taken] = (code << _VALUE_BITS | value[taken]).astype(values.dtype)
        return rounded
