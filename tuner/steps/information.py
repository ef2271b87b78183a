"""How much of what floats say is in each of their bits, and so how many bits of their mantissa are worth keeping."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.steps.uniform import MANTISSA

#: Of the information, so much is to be kept.
SHARE = 0.99

#: Standard deviations within which 99 % of Gaussian values lie.
_Z = 2.5758


def bit_information(frames: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The information in each bit: what a bit tells of the same bit of the next pixel in the row, bits.

    M. Klöwer et al., Nature Computational Science 1, 713 (2021): the mutual information of neighbours,
    ``sum over r, s of p_rs log2(p_rs / (p_r p_s))`` with p_rs the share of pairs of which this bit is r and s. Noise
    has none, as its bits know nothing of each other. What N pairs of random bits would reach in one of a hundred
    cases is none either: below ``1 - H(1/2 + 2.58 / (2 sqrt(N)))``, H the entropy of a bit, it is set to 0.

    Parameters
    ----------
    frames : ndarray
        Floats, shape (n, *frame_shape).
    valid : ndarray of bool
        True where a pixel counts, same shape.

    Returns
    -------
    ndarray of float64
        Shape (bits,): sign, exponent, mantissa, the most significant bit first. All 0 where there is no pair.

    Examples
    --------
    >>> halves = np.random.default_rng(0).integers(0, 2, (50, 40)).repeat(50, axis=1) / 2 + 1
    >>> bit_information(halves.astype("float32"), np.ones(halves.shape, bool)).nonzero()[0].tolist()
    [9]
    """
    width = 8 * frames.dtype.itemsize
    bits = np.ascontiguousarray(frames).view(f"u{frames.dtype.itemsize}")
    pairs = valid[..., 1:] & valid[..., :-1]
    first, second = bits[..., :-1][pairs], bits[..., 1:][pairs]
    found = np.zeros(width)
    if not first.size:
        return found
    half = min(0.5 + _Z / (2 * math.sqrt(first.size)), 1.0)
    chance = 1 - float(_entropy(np.array([half, 1 - half])))
    for place in range(width):
        one = first.dtype.type(1 << width - 1 - place)
        a, b = (first & one) != 0, (second & one) != 0
        both, only_a, only_b = (np.count_nonzero(x) for x in (a & b, a & ~b, b & ~a))
        p = np.array([[first.size - both - only_a - only_b, only_b], [only_a, both]]) / first.size
        mutual = float(_entropy(p.sum(axis=0)) + _entropy(p.sum(axis=1)) - _entropy(p.ravel()))
        found[place] = mutual if mutual > chance else 0.0
    return found


def informative_bits(frames: NDArray[Any], valid: NDArray[np.bool_], share: float = SHARE) -> int | None:
    """How many bits of the mantissa hold, with sign and exponent, a share of the information in all bits.

    Parameters
    ----------
    frames, valid
        As for `bit_information`.
    share : float
        Of the information, 0.99 as in the paper.

    Returns
    -------
    int or None
        None where there is no information, or no bit that could be dropped.
    """
    information = bit_information(frames, valid)
    total = information.sum()
    if not total:
        return None
    needed = int(np.searchsorted(np.cumsum(information), share * total)) + 1
    mantissa = MANTISSA[frames.dtype.itemsize]
    keep = max(needed - (len(information) - mantissa), 0)
    return keep if keep < mantissa else None


def _entropy(p: NDArray[np.float64]) -> np.float64:
    """Of a distribution, bits."""
    p = p[p > 0]
    return np.float64(-(p * np.log2(p)).sum())
