"""Redundancy: how predictable the bytes of frames are to a codec behind shuffle, bitshuffle, bytedelta or delta.

One function is one trait; `REDUNDANCIES` names them. `tuner.traits` tells what valid pixels are like; here masked and
saturated ones count too, as a codec sees them all, but where a line says otherwise. The work is bounded: of what has
more than a quarter of a million pixels, some is looked at, always the same. All are finite for constant, empty, NaN and
wholly masked frames, where what does not exist is 0. None depends on byte order, nor on the direction in which frames
that are looked at wholly are read, but for those that see the pixel before also where a frame begins.

Entropies are Shannon's (1948), in bits, of the distribution that is found; the filters are those of
https://github.com/Blosc/c-blosc2/blob/main/README_CHUNK_FORMAT.rst.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.traits import common_step, entropy, histogram

#: About as many pixels are looked at, at most; and of how many values a histogram needs sorting.
_MOST_PIXELS, _MOST_SORTED = 1 << 18, 1 << 16

#: What is left out is left out between stretches of so many frames, rows or channels that follow each other.
_STRETCH = 8

#: Byte planes that have traits of their own, the most significant first.
_PLANES = 4

#: The bits that are set in each value of a byte, shape (256, 8).
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)


@dataclass(frozen=True, slots=True)
class Pieces:
    """What is looked at of frames, and of what several traits are computed.

    Arrays have the axes (pieces, frames, *frame); along the last three at most, neighbours are neighbours in the data.
    """

    shape: tuple[int, ...]
    """Shape of all frames, (n, *frame_shape)."""
    dtype: np.dtype[Any]
    """Their dtype, native."""
    frames: NDArray[Any]
    """Pieces of them, native."""
    valid: NDArray[np.bool_]
    """True where a pixel counts, shape of `frames`."""
    words: NDArray[Any] = field(init=False, repr=False)
    """The pieces' bits as unsigned integers, same shape."""
    planes: NDArray[np.uint8] = field(init=False, repr=False)
    """Their bytes by significance, the highest first, shape (itemsize, pixels)."""

    def __post_init__(self) -> None:
        words = self.frames.view(f"u{self.dtype.itemsize}")
        planes = words.reshape(-1, 1).view(np.uint8)
        object.__setattr__(self, "words", words)
        order = slice(None, None, -1) if np.little_endian else slice(None)
        object.__setattr__(self, "planes", np.ascontiguousarray(planes.T[order]))

    @classmethod
    def of(cls, frames: NDArray[Any], valid: NDArray[np.bool_]) -> Pieces:
        """Cut bounded pieces: evenly spaced rows, the same in every frame; where that is still too much, frames too."""
        frames = frames.astype(frames.dtype.newbyteorder("="), copy=False)
        pick = _stretches(frames.shape)
        kept, counted = (np.stack([array[some, rows] for some, rows in pick]) for array in (frames, valid))
        return cls(frames.shape, frames.dtype, np.ascontiguousarray(kept), counted)

    @property
    def groups(self) -> NDArray[Any]:
        """Eight pixels that follow each other in each row, shape (groups, 8); what remains of a row is left out."""
        width = self.words.shape[-1] // 8 * 8
        groups: NDArray[Any] = self.words[..., :width].reshape(-1, 8)
        return groups


def redundancies(frames: NDArray[Any], valid: NDArray[np.bool_]) -> dict[str, float]:
    """All traits of frames that follow each other.

    Parameters
    ----------
    frames : ndarray
        Shape (n, *frame_shape), one or more axes a frame; booleans, integers or floats.
    valid : ndarray of bool
        True where a pixel counts, same shape.

    Examples
    --------
    The high byte of small counts is always the same, the low one nearly random:

    >>> counts = np.random.default_rng(0).integers(0, 256, (2, 64, 64)).astype(np.uint16)
    >>> found = redundancies(counts, np.ones(counts.shape, bool))
    >>> found["byte_0_entropy"], round(found["byte_1_entropy"], 1), found["constant_bit_fraction"]
    (0.0, 8.0, 0.5)
    """
    pieces = Pieces.of(frames, valid)
    return {name: float(trait(pieces)) for name, trait in REDUNDANCIES.items()}


def log2_itemsize(pieces: Pieces) -> float:
    """Logarithm of the bytes of a pixel."""
    return math.log2(pieces.dtype.itemsize)


def log2_frame_nbytes(pieces: Pieces) -> float:
    """Logarithm of the bytes of a frame."""
    return math.log2(max(1, math.prod(pieces.shape[1:]) * pieces.dtype.itemsize))


def log2_row_nbytes(pieces: Pieces) -> float:
    """Logarithm of the bytes along the last axis, which is how far rows are apart."""
    return math.log2(max(1, pieces.shape[-1] * pieces.dtype.itemsize))


def log2_frames(pieces: Pieces) -> float:
    """Logarithm of the number of frames that follow each other."""
    return math.log2(max(1, pieces.shape[0]))


def frame_ndim(pieces: Pieces) -> float:
    """Axes of a frame."""
    return len(pieces.shape) - 1


def is_float(pieces: Pieces) -> float:
    """1 for floats, else 0."""
    return float(pieces.dtype.kind == "f")


def is_signed(pieces: Pieces) -> float:
    """1 where values may be negative, else 0."""
    return float(pieces.dtype.kind in "if")


def byte_entropy_of(plane: int, pieces: Pieces) -> float:
    """Entropy of a byte of one significance, as shuffle puts them together; 0 where pixels have no such byte."""
    return _entropy(pieces.planes[plane]) if plane < len(pieces.planes) else 0.0


def bytedelta_entropy_of(plane: int, pieces: Pieces) -> float:
    """As `byte_entropy_of`, of the differences modulo 256 to the pixel before: shuffle, then bytedelta."""
    return _entropy(np.diff(pieces.planes[plane])) if plane < len(pieces.planes) else 0.0


def low_byte_conditional_entropy(pieces: Pieces) -> float:
    """Entropy of the least significant byte where that of the pixel before is known: that of pairs less that of one."""
    low = pieces.planes[-1].astype(np.uint16)
    if low.size < 2:
        return 0.0
    pairs = histogram(low[:-1] << 8 | low[1:], 1 << 16)
    return max(0.0, entropy(pairs) - entropy(pairs.reshape(256, 256).sum(axis=1)))


def value_entropy(pieces: Pieces) -> float:
    """Entropy of a pixel's value, of 65536 of them where it takes sorting: at most 16."""
    words = pieces.words.reshape(-1)
    if words.dtype.itemsize <= 2:
        return entropy(histogram(words, 1 << 8 * words.dtype.itemsize)) if words.size else 0.0
    few = words[:: -(-words.size // _MOST_SORTED) or 1]
    return entropy(np.unique(few, return_counts=True)[1]) if few.size else 0.0


def constant_bit_fraction(pieces: Pieces) -> float:
    """Share of bit planes that are the same in every pixel."""
    shares = _set_bits(pieces.planes)
    return float(np.mean((shares == 0) | (shares == 1))) if pieces.words.size else 0.0


def bit_entropy(pieces: Pieces) -> float:
    """Mean over the bit planes of the entropy of a bit."""
    return _binary_entropy(_set_bits(pieces.planes))


def bit_change_entropy(pieces: Pieces) -> float:
    """Mean over the bit planes of the entropy of whether a bit differs from the pixel before: what is left of runs."""
    return _binary_entropy(_set_bits(pieces.planes[:, 1:] ^ pieces.planes[:, :-1]))


def bitshuffle_constant_fraction(pieces: Pieces) -> float:
    """Share of the bytes after bitshuffle that are 0 or 255: one bit of eight pixels that follow each other."""
    groups = pieces.groups
    if not groups.size:
        return 0.0
    differ = np.zeros(len(groups), groups.dtype)
    for at in range(1, 8):
        differ |= groups[:, at] ^ groups[:, 0]
    return 1.0 - float(np.bitwise_count(differ).mean()) / (8 * groups.dtype.itemsize)


def group_repeat_fraction(pieces: Pieces) -> float:
    """Share of groups of eight pixels that equal the group before: long matches for an LZ77 codec."""
    groups = pieces.groups
    return float((groups[1:] == groups[:-1]).all(axis=1).mean()) if len(groups) > 1 else 0.0


def column_difference_entropy(pieces: Pieces) -> float:
    """Mean over the byte planes of the entropy of a byte of differences of left and right neighbours."""
    return _difference_entropy(pieces, -1)


def row_difference_entropy(pieces: Pieces) -> float:
    """As `column_difference_entropy`, of neighbours in the rows above and below; 0 for spectra."""
    return _difference_entropy(pieces, -2) if len(pieces.shape) > 2 else 0.0


def frame_difference_entropy(pieces: Pieces) -> float:
    """As `column_difference_entropy`, of the XOR of a pixel with that of the frame before; 0 for a single frame.

    XOR with bytes that came before is what c-blosc2's delta does.
    """
    return _difference_entropy(pieces, 1)


def frame_repeat_fraction(pieces: Pieces) -> float:
    """Share of pixels that are the same in the frame before; 0 for a single frame."""
    same = pieces.words[:, 1:] == pieces.words[:, :-1]
    return float(same.mean()) if same.size else 0.0


def noise_fraction(pieces: Pieces) -> float:
    """Variance of the noise over that of the valid pixels: 1 for white noise, near 0 for what is smooth.

    Of second differences along rows, which are those of a straight line plus noise of six times its variance
    (Immerkaer 1996, doi:10.1006/cviu.1996.0060, for one axis).
    """
    values, second = _second_differences(pieces)
    variance = float(values.var()) if values.size else 0.0
    return min(float(np.mean(second**2)) / 6 / variance, 4.0) if variance > 0 and second.size else 0.0


def noise_bits(pieces: Pieces) -> float:
    """Bits that noise fills: ``log2(1 + sigma / step)``, sigma from the median of the same second differences.

    For floats without a step, the step is their spacing at the median.
    """
    values, second = _second_differences(pieces)
    if not second.size:
        return 0.0
    counted = pieces.frames[pieces.valid]
    step = common_step(counted[np.isfinite(counted)] if counted.dtype.kind == "f" else counted)
    step /= _peak(pieces)
    if step == 0 and pieces.dtype.kind == "f":
        step = float(np.finfo(pieces.dtype).eps) * float(np.median(np.abs(values)))
    sigma = 1.4826 * float(np.median(np.abs(second))) / math.sqrt(6)
    return math.log2(1 + sigma / step) if step > 0 else 0.0


#: Every trait by its name.
REDUNDANCIES: Mapping[str, Callable[[Pieces], float]] = {
    **{
        function.__name__: function
        for function in (
            log2_itemsize,
            log2_frame_nbytes,
            log2_row_nbytes,
            log2_frames,
            frame_ndim,
            is_float,
            is_signed,
        )
    },
    **{f"byte_{plane}_entropy": partial(byte_entropy_of, plane) for plane in range(_PLANES)},
    **{f"bytedelta_{plane}_entropy": partial(bytedelta_entropy_of, plane) for plane in range(_PLANES)},
    **{
        function.__name__: function
        for function in (
            low_byte_conditional_entropy,
            value_entropy,
            constant_bit_fraction,
            bit_entropy,
            bit_change_entropy,
            bitshuffle_constant_fraction,
            group_repeat_fraction,
            column_difference_entropy,
            row_difference_entropy,
            frame_difference_entropy,
            frame_repeat_fraction,
            noise_fraction,
            noise_bits,
        )
    },
}


def _stretches(shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
    """Which frames and which of their rows are looked at, as pairs of slices of the same lengths."""
    share = _MOST_PIXELS / max(1, math.prod(shape))
    # Spectra are looked at whole.
    rows = _spaced(shape[1], share) if len(shape) > 2 else [slice(0, shape[1])]
    share *= shape[1] / max(1, len(rows) * (rows[0].stop - rows[0].start))
    return [(frames, band) for frames in _spaced(shape[0], share) for band in rows]


def _spaced(extent: int, share: float) -> list[slice]:
    """Stretches of an axis that take about a share of it: all of it, or evenly spaced ones."""
    count = max(1, round(extent * share / _STRETCH))
    if share >= 1 or count * _STRETCH >= extent:
        return [slice(0, extent)]
    starts = np.linspace(0, extent - _STRETCH, count + 2)[1:-1].astype(int)
    return [slice(start, start + _STRETCH) for start in starts.tolist()]


def _entropy(codes: NDArray[np.uint8]) -> float:
    return entropy(histogram(codes, 256)) if codes.size else 0.0


def _set_bits(planes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The share of pixels in which each bit is set, one axis; of no pixels, 0."""
    counts = np.stack([histogram(plane, 256) for plane in planes])
    shares: NDArray[np.float64] = ((counts @ _BITS) / max(1, planes.shape[1])).reshape(-1)
    return shares


def _binary_entropy(shares: NDArray[np.float64]) -> float:
    p = shares[(shares > 0) & (shares < 1)]
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum() / shares.size)


def _difference_entropy(pieces: Pieces, axis: int) -> float:
    words = np.moveaxis(pieces.words, axis, 0)
    after, before = words[1:], words[:-1]
    if not after.size:
        return 0.0
    differences = after ^ before if axis == 1 or pieces.dtype.kind == "f" else after - before
    planes = np.ascontiguousarray(differences).reshape(-1, 1).view(np.uint8)
    return sum(_entropy(plane) for plane in planes.T) / planes.shape[1]


def _peak(pieces: Pieces) -> float:
    """The greatest absolute value of the valid pixels; 1 where there is none but 0."""
    values = pieces.frames[pieces.valid].astype(np.float64)
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) or 1.0


def _second_differences(pieces: Pieces) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The valid pixels, and the second differences of three beside each other, both over the greatest of them."""
    valid = pieces.valid & np.isfinite(pieces.frames) if pieces.dtype.kind == "f" else pieces.valid
    values = np.where(valid, pieces.frames, 0).astype(np.float64) / _peak(pieces)
    second = values[..., :-2] - 2 * values[..., 1:-1] + values[..., 2:]
    return values[valid], second[valid[..., :-2] & valid[..., 1:-1] & valid[..., 2:]]
