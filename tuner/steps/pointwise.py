"""Roundings that take each pixel by itself: one kernel for all of them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tuner.noise import Noise
from tuner.stack import Marks

#: Pixels that are worked on at once: what lies between two operations stays in the cache, and threads that round side
#: by side seldom wait for the GIL.
_PART = 1 << 17

#: Values of a wide integer that a table holds, so that it stays in the cache; fewer pixels than that need none.
_SPAN, _FEW = 1 << 18, 1 << 12
#: The share of pixels that have to be in a table for it to be of use.
_MOST = 0.7
#: A table that is used once pays for pixels that are so many times its values.
_GAIN = 4

#: Every finite float of two bytes, sorted.
_HALVES = np.concatenate((np.arange(0xFBFF, 0x7FFF, -1), np.arange(0x7C00))).astype(np.uint16).view(np.float16)


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


def round_pixels(
    rounding: Pointwise,
    frames: NDArray[Any],
    marks: Marks,
    noise: Noise | None,
    ends: tuple[np.generic, np.generic] | None = None,
) -> NDArray[Any]:
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
    ends : (least, greatest), optional
        Given where the rounding is of these frames alone, so that no table is kept: a pixel beyond need not be rounded.
    """
    stepped = np.empty(frames.shape, frames.dtype)
    source, target = np.ascontiguousarray(frames).reshape(-1), stepped.reshape(-1)
    start, table = 0, None
    if ends is not None:
        start, table = _passing(rounding, source, marks, noise, *ends)
    elif source.dtype.itemsize <= 2:
        table = _narrow(rounding, source.dtype, marks, noise)
    elif source.dtype.kind in "iu" and source.size >= _FEW:
        start, enough = _start(source)
        table = _wide(rounding, source.dtype, marks, noise, start) if enough else None
    if table is None:
        for at in range(0, source.size, _PART):
            target[at : at + _PART] = rounded(rounding, source[at : at + _PART], marks, noise)
        return stepped
    if source.dtype.itemsize <= 2:
        source = source.view(f"u{source.dtype.itemsize}")
    index = np.empty(min(source.size, _PART), np.intp)
    for at in range(0, source.size, _PART):
        part, into = source[at : at + _PART], target[at : at + _PART]
        if part.itemsize == 1:
            # As text, which is looked up faster.
            into[...] = np.frombuffer(bytearray(part).translate(table.tobytes()), into.dtype)
            continue
        places = np.subtract(part, start, out=index[: len(part)], casting="unsafe", dtype=np.intp)
        # Said so, numpy looks up without a check and a copy.
        table.take(places, mode="clip", out=into)
        if part.itemsize > 2 and (beyond := np.flatnonzero(places.view(np.uintp) >= len(table))).size:
            into[beyond] = part[beyond] if ends else rounded(rounding, part[beyond], marks, noise)
    return stepped


def _passing(
    rounding: Pointwise, pixels: NDArray[Any], marks: Marks, noise: Noise | None, low: Any, high: Any
) -> tuple[int, NDArray[Any] | None]:
    """A table of what values become, if it pays: where it begins, and the table; of two bytes at most, by patterns."""
    dtype = pixels.dtype
    if dtype.kind != "f":
        many = int(high) - int(low) + 1
    elif dtype.itemsize == 2:
        first, last = np.searchsorted(_HALVES, low), np.searchsorted(_HALVES, high, "right")
        many = int(last - first)
    else:
        return 0, None
    if many > min(pixels.size // _GAIN, _SPAN):
        return 0, None
    values = _HALVES[first:last] if dtype.kind == "f" else low + np.arange(many).astype(dtype)
    found = rounded(rounding, values, marks, noise)
    if dtype.itemsize > 2:
        return int(low), found
    patterns = np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}")
    table = patterns.view(dtype)
    table[values.view(patterns.dtype)] = found
    return 0, table


def _start(values: NDArray[Any]) -> tuple[int, bool]:
    """Where a table of the values that are most common begins; and whether it holds most of the values."""
    some = values[:: max(values.size // _FEW, 1)]
    half = _SPAN // 2
    start = max((int(np.median(some)) - half // 2) // half * half, int(np.iinfo(values.dtype).min))
    places = np.subtract(some, start, casting="unsafe", dtype=np.intp).view(np.uintp)
    return start, bool(np.mean(places < _SPAN) > _MOST)


@lru_cache(maxsize=16)
def _narrow(rounding: Pointwise, dtype: np.dtype[Any], marks: Marks, noise: Noise | None) -> NDArray[Any]:
    """What each value of at most two bytes becomes, by its bit pattern."""
    values = np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype)
    return rounded(rounding, values, marks, noise)


@lru_cache(maxsize=16)
def _wide(rounding: Pointwise, dtype: np.dtype[Any], marks: Marks, noise: Noise | None, start: int) -> NDArray[Any]:
    """What the integers from `start` on become; those beyond the end of the dtype are never asked for."""
    last = int(np.iinfo(dtype).max)
    values = np.minimum(np.arange(_SPAN, dtype=np.uint64), last - start).astype(dtype) + dtype.type(start)
    return rounded(rounding, values, marks, noise)


def rounded(rounding: Pointwise, values: NDArray[Any], marks: Marks, noise: Noise | None) -> NDArray[Any]:
    """What single values become, as new array: rounded where both they and their rounding count."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        found = rounding.round_values(values, noise)
        if values.dtype.kind == "f" or marks != Marks():
            counts = marks.valid(values)
            counts &= marks.valid(found)
            if not counts.all():
                np.copyto(found, values, where=~counts)
    return found
