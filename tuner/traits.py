"""Traits: cheap numbers of frames that decide how they compress, in plain numpy.

One function is one trait; `TRAITS` names them with their unit. All are finite for constant, empty, NaN and wholly
masked frames, where a share is 0 and so is a value that does not exist. None depends on the order of frames or on byte
order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Multiples of a step that a float may hold without filling its mantissa; above, having a step would say nothing.
_MOST_STEPS = {2: 2.0**10, 4: 2.0**23, 8: 2.0**32}

#: Codes of which a histogram is made, at most.
_MOST_CODES = 1 << 20

#: Values that are counted at once.
_PART = 1 << 20

#: A code is missing if so many neighbours on either side occur that often on average, and it does not.
_NEIGHBOURS, _EXPECTED = 7, 16


@dataclass(frozen=True, slots=True)
class Pixels:
    """Frames, and of what several traits are computed."""

    frames: NDArray[Any]
    """Shape (n, *frame_shape)."""
    valid: NDArray[np.bool_]
    """True where a pixel counts, same shape."""
    saturated: NDArray[np.bool_] | None = None
    """True where the detector could not count, same shape; no such pixel is valid, nor is it masked."""
    values: NDArray[Any] = field(init=False, repr=False)
    """The valid and finite pixels, one axis; integers for booleans."""
    step: float = field(init=False)
    """Of which all values are multiples; 0 where there is none."""

    def __post_init__(self) -> None:
        values = self.frames[self.valid]
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        elif values.dtype.kind == "b":
            values = values.view(np.uint8)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "step", common_step(values))


def traits(
    frames: NDArray[Any], valid: NDArray[np.bool_], saturated: NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """All traits of frames.

    Parameters
    ----------
    frames : ndarray
        Shape (n, *frame_shape); booleans, integers or floats.
    valid : ndarray of bool
        True where a pixel counts, same shape; neither masked nor saturated.
    saturated : ndarray of bool, optional
        True where the detector could not count, same shape; disjoint from `valid`.

    Examples
    --------
    >>> found = traits(np.array([[[0, 4, 4, 12]]], np.uint16), np.ones((1, 1, 4), bool))
    >>> found["zero_fraction"], found["step"], found["effective_bits"]
    (0.25, 4.0, 2.0)
    """
    pixels = Pixels(frames, valid, saturated)
    return {name: float(trait(pixels)) for name, trait in TRAITS.items()}


def zero_fraction(pixels: Pixels) -> float:
    """Share of valid pixels that are 0."""
    return 1 - np.count_nonzero(pixels.values) / pixels.values.size if pixels.values.size else 0.0


def repeat_fraction(pixels: Pixels) -> float:
    """Share of pixels that equal their left neighbour, valid or not; NaN equals nothing."""
    frames = pixels.frames
    pairs = frames[..., 1:].size if frames.ndim > 1 else 0
    return np.count_nonzero(frames[..., 1:] == frames[..., :-1]) / pairs if pairs else 0.0


def masked_fraction(pixels: Pixels) -> float:
    """Share of pixels that count neither as values nor as saturated."""
    return _share(~pixels.valid if pixels.saturated is None else ~(pixels.valid | pixels.saturated))


def saturated_fraction(pixels: Pixels) -> float:
    """Share of pixels that the detector could not count; 0 where that is unknown."""
    return 0.0 if pixels.saturated is None else _share(pixels.saturated)


def minimum(pixels: Pixels) -> float:
    """Least valid value, data units."""
    return float(pixels.values.min()) if pixels.values.size else 0.0


def maximum(pixels: Pixels) -> float:
    """Greatest valid value, data units."""
    return float(pixels.values.max()) if pixels.values.size else 0.0


def mean(pixels: Pixels) -> float:
    """Mean of the valid values, data units."""
    if not pixels.values.size:
        return 0.0
    with np.errstate(over="ignore"):
        average = float(pixels.values.mean(dtype=np.float64))
    # The mean of finite numbers is finite, though their sum need not be.
    return average if np.isfinite(average) else float((pixels.values / pixels.values.size).sum())


def effective_bits(pixels: Pixels) -> float:
    """Bits from the lowest to the highest that any value sets, sign apart; for floats without a step, their mantissa's.

    The bit length of ``max |value| / step`` where there is a step.
    """
    if not pixels.values.size or not pixels.values.any():
        return 0.0
    if pixels.step == 0:
        return float(np.finfo(pixels.values.dtype).nmant + 1)
    low, high = pixels.values.min(), pixels.values.max()
    if pixels.values.dtype.kind == "f":
        return float(int(max(-float(low), float(high)) / pixels.step).bit_length())
    return float((max(-int(low), int(high)) // int(pixels.step)).bit_length())


def step(pixels: Pixels) -> float:
    """The greatest number of which all valid values are multiples, data units; 0 where there is none."""
    return pixels.step


def missing_codes(pixels: Pixels) -> float:
    """Share of codes that do not occur although their neighbours do often: data that were rounded or rescaled before.

    A code is a multiple of the step; it is missing if the 7 codes on either side occur 16 times on average, when
    chance leaves out one in exp(16) = 9 million.
    """
    if pixels.step == 0 or not pixels.values.size:
        return 0.0
    above = _above_minimum(pixels.values)
    # Long tails of single bright pixels are sparse by nature, and where codes are dense there are many of them.
    dense = above[above < _MOST_CODES * pixels.step]
    if not dense.size:
        return 0.0
    counts = histogram(
        dense if pixels.step == 1 else np.rint(dense / pixels.step), int(dense.max() / pixels.step + 1.5)
    )
    if len(counts) <= 2 * _NEIGHBOURS:
        return 0.0
    sums = np.cumsum(np.concatenate(([0], counts)))
    beside = (sums[_NEIGHBOURS:] - sums[:-_NEIGHBOURS]) / _NEIGHBOURS
    often = np.minimum(beside[: -_NEIGHBOURS - 1], beside[_NEIGHBOURS + 1 :]) >= _EXPECTED
    absent = counts[_NEIGHBOURS : len(counts) - _NEIGHBOURS] == 0
    return float(absent[often].mean()) if often.any() else 0.0


def byte_entropy(pixels: Pixels) -> float:
    """Mean over the byte planes of the entropy of a byte of the valid values, bits of 8 (Shannon 1948)."""
    return _byte_entropy(pixels.values)


def difference_byte_entropy(pixels: Pixels) -> float:
    """As `byte_entropy`, of differences of left and right neighbours that are both valid; of floats, of their XOR."""
    both = pixels.valid[..., 1:] & pixels.valid[..., :-1]
    if pixels.frames.ndim < 2 or not both.any():
        return 0.0
    native = np.ascontiguousarray(pixels.frames, pixels.frames.dtype.newbyteorder("="))
    whole = native.view(f"u{native.itemsize}")
    after, before = whole[..., 1:], whole[..., :-1]
    differences = after ^ before if pixels.frames.dtype.kind == "f" else after - before
    return _byte_entropy(differences[both])


#: Every trait by its name.
TRAITS: dict[str, Callable[[Pixels], float]] = {
    function.__name__: function
    for function in (
        zero_fraction,
        repeat_fraction,
        masked_fraction,
        saturated_fraction,
        minimum,
        maximum,
        mean,
        effective_bits,
        step,
        missing_codes,
        byte_entropy,
        difference_byte_entropy,
    )
}


def stuck(frames: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[int, float]:
    """The greatest value, and the share of a frame's pixels that have it in all frames: perhaps gaps nobody marked.

    The share is 0 for one frame, and where the value is not one that counters and converters end with, 2^n - 1 of 8
    bits or more.

    Parameters
    ----------
    frames : ndarray
        Shape (n, *frame_shape).
    valid : ndarray of bool
        True where a pixel counts, same shape.

    Examples
    --------
    >>> frames = np.array([[3, 7, 4095], [4095, 8, 4095]], "u4")
    >>> stuck(frames, np.ones(frames.shape, bool))
    (4095, 0.3333333333333333)
    """
    if len(frames) < 2 or not valid.any() or frames.dtype.kind == "b":
        return 0, 0.0
    greatest = frames[valid].max()
    value = int(greatest) if np.isfinite(greatest) and greatest >= 255 else 0
    if value != greatest or value & (value + 1):
        return 0, 0.0
    return value, float(((frames == greatest) & valid).all(axis=0).mean())


def common_step(values: NDArray[Any]) -> float:
    """The greatest number of which all values are multiples; 0 for none, for zeros, and for floats without a step.

    For integers their greatest common divisor. For floats first the lowest bit that any value sets, then the greatest
    common divisor in units of it; both are exact. Floats whose mantissas are full have no step.

    >>> common_step(np.array([0.25, 1.5, 1000.75], np.float32)), common_step(np.array([30, 0, -12]))
    (0.25, 6.0)
    """
    values = values[values != 0]
    if not values.size:
        return 0.0
    if values.dtype.kind != "f":
        return float(_gcd(values))
    most = _MOST_STEPS[values.dtype.itemsize]
    unit = np.inf
    with np.errstate(over="ignore"):
        for part in np.array_split(values, -(-values.size // (1 << 16))):
            scaled = part / np.float64(unit)
            if unit == np.inf or not np.array_equal(scaled, np.rint(scaled)):
                unit = min(unit, _lowest_bit(part))
            if np.abs(part).max() / np.float64(unit) >= most:
                return 0.0
        scaled = values / np.float64(unit)
        return unit * _gcd(scaled.astype(np.int64)) if np.abs(scaled).max() < most else 0.0


def _share(where: NDArray[np.bool_]) -> float:
    return np.count_nonzero(where) / where.size if where.size else 0.0


def _lowest_bit(values: NDArray[Any]) -> float:
    """The weight of the lowest bit set in the mantissa of any of the values, none of which is 0."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    digits = (mantissa * 2.0**53).astype(np.int64)
    lowest = np.ldexp((digits & -digits).astype(np.float64), exponent - 53)
    return float(lowest.min())


def _gcd(values: NDArray[Any]) -> int:
    """Greatest common divisor of integers other than 0, given up once it is 1."""
    divisor = np.uint64(0)
    for part in np.split(values, range(4096, values.size, _PART)):
        # The least int64 has no absolute value there; in uint64 it has.
        part = np.abs(part.astype(np.int64)).view(np.uint64) if part.dtype.kind == "i" else part.astype(np.uint64)
        if divisor == 0 or (part % divisor).any():
            divisor = np.gcd.reduce(part, initial=divisor)
        if divisor == 1:
            break
    return int(divisor)


def _above_minimum(values: NDArray[Any]) -> NDArray[Any]:
    """By how much each value is above the least: unsigned for integers, as their range may exceed their own type."""
    low = values.min()
    if values.dtype.kind == "i":
        difference: NDArray[Any] = (values.astype(np.int64) - np.int64(low)).view(np.uint64)
        return difference
    with np.errstate(over="ignore"):
        return values.astype(np.float64) - np.float64(low) if values.dtype.kind == "f" else values - low


def _byte_entropy(values: NDArray[Any]) -> float:
    if not values.size:
        return 0.0
    planes = np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.dtype.itemsize)
    return sum(entropy(histogram(plane, 256)) for plane in planes.T) / planes.shape[1]


def histogram(codes: NDArray[Any], length: int) -> NDArray[np.intp]:
    """How often each whole number from 0 occurs; part by part, as numpy makes eight bytes of each."""
    counts = np.zeros(length, np.intp)
    for part in np.split(codes, range(_PART, codes.size, _PART)):
        counts += np.bincount(part.astype(np.intp, copy=False), minlength=length)
    return counts


def entropy(counts: NDArray[np.intp]) -> float:
    """Entropy of what occurred so often, bits."""
    shares = counts[counts > 0] / counts.sum()
    return max(0.0, -float((shares * np.log2(shares)).sum()))
