"""Roundings that take each pixel by itself: one kernel for all of them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tuner.noise import Noise
from tuner.stack import Marks

#: Pixels that are worked on at once, so that what lies between two operations stays in the cache.
_PART = 1 << 15


def check_parameters(step: Any) -> None:
    """Hold a step's fields to its `valid`; raises InputError with the parameter's name."""
    for name, valid in step.valid.items():
        object.__setattr__(step, name, valid.check(getattr(step, name), name))


@runtime_checkable
class Pointwise(Protocol):
    """A rounding of single values."""

    def __hash__(self) -> int:
        """Of what it does, as its table is kept."""
        ...

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype. What comes of NaN, infinities and overflow does not matter."""
        ...


def round_pixels(rounding: Pointwise, frames: NDArray[Any], marks: Marks, noise: Noise | None) -> NDArray[Any]:
    """Frames with every valid pixel rounded, as new array of the same shape and dtype.

    A pixel that does not count stays bit for bit as it is, and so does one whose rounding would not count: none that
    is valid becomes invalid or saturated. Where `rounding` twice is rounding once, so is this.

    Parameters
    ----------
    rounding : Pointwise
    frames : ndarray
        Pixels of any dtype.
    marks : Marks
        Which values do not count.
    noise : Noise, optional
        What a noise-aware rounding needs.
    """
    rounded = np.empty(frames.shape, frames.dtype)
    if frames.dtype.kind in "iu" and frames.dtype.itemsize <= 2:
        index = f"u{frames.dtype.itemsize}"
        table = _table(rounding, frames.dtype, marks, noise)
        # Every index is inside; said so, numpy looks up without a check and a copy.
        np.take(table, np.ascontiguousarray(frames).view(index), out=rounded, mode="clip")
        return rounded
    source, target = np.ascontiguousarray(frames).reshape(-1), rounded.reshape(-1)
    for start in range(0, source.size, _PART):
        part = source[start : start + _PART]
        target[start : start + _PART] = _rounded(rounding, part, marks, noise)
    return rounded


@lru_cache(maxsize=16)
def _table(rounding: Pointwise, dtype: np.dtype[Any], marks: Marks, noise: Noise | None) -> NDArray[Any]:
    """What each value of a narrow integer becomes, by its bit pattern."""
    values = np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype)
    return _rounded(rounding, values, marks, noise)


def _rounded(rounding: Pointwise, values: NDArray[Any], marks: Marks, noise: Noise | None) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        rounded = rounding.round_values(values, noise)
        if values.dtype.kind == "f" or marks != Marks():
            rounded = np.where(marks.valid(values) & marks.valid(rounded), rounded, values)
    return rounded
