"""Noise: the variance of a pixel; and what it leaves any lossless code to gain."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import InputError

#: Pixels that are worked on at once, as the arithmetic takes many times their memory.
PART = 1 << 20

#: What `Noise.parse` knows, in the order of its fields.
_WORDS = ("gain", "offset", "read")


@dataclass(frozen=True, slots=True)
class Noise:
    """``variance = max(gain * max(x - offset, 0) + read_noise**2, floor)``, in data units.

    >>> Noise(gain=2.0, offset=100.0, read_noise=3.0, source="given").variance(np.array([90, 100, 150])).tolist()
    [9.0, 9.0, 109.0]
    """

    gain: float
    """Data units for a photon, or for an electron."""
    offset: float
    """Value without light."""
    read_noise: float
    """Standard deviation without light, data units."""
    source: str
    """Where the numbers come from."""
    floor: float = 0.0
    """The least variance, data units squared: see `floored`."""

    def variance(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Variance of pixels of value `x`, same shape, data units squared."""
        light = np.maximum(np.asarray(x, np.float64) - self.offset, 0)
        variance: NDArray[np.float64] = np.maximum(self.gain * light + self.read_noise * self.read_noise, self.floor)
        return variance

    def floored(self, step: float) -> Noise:
        """The same, with the least variance that a pixel can have.

        That of one count where photons are counted, so without read noise, as no count at all is no certainty; else
        that of digitisation, ``step**2 / 12``, with `step` of which the values are multiples.

        >>> Noise(1.0, 0.0, 0.0, "given").floored(1.0).floor, round(Noise(0.2, 0.0, 3.0, "given").floored(1.0).floor, 3)
        (1.0, 0.083)
        """
        return replace(self, floor=self.gain * self.gain if not self.read_noise else step * step / 12)

    @classmethod
    def parse(cls, text: str, place: str = "--noise") -> Noise:
        """Read ``gain=G,offset=O,read=R``; offset and read noise are 0 where they are left out.

        >>> Noise.parse("gain=0.5,read=2")
        Noise(gain=0.5, offset=0.0, read_noise=2.0, source='given', floor=0.0)

        Raises
        ------
        InputError
            For anything else, and where there is neither gain nor read noise.
        """
        words = dict(word.partition("=")[::2] for word in text.split(","))
        unknown = next((word for word in words if word not in _WORDS), None)
        if unknown is not None or len(words) < text.count(",") + 1:
            raise InputError(f"{place} must read gain=G,offset=O,read=R, got {text!r}")
        numbers = {}
        for word, number in words.items():
            try:
                numbers[word] = float(number)
            except ValueError:
                numbers[word] = math.nan
            if not math.isfinite(numbers[word]) or (word != "offset" and numbers[word] < 0):
                raise InputError(f"{place} must have a number for {word}, at least 0 but for offset, got {number!r}")
        gain, offset, read_noise = (numbers.get(word, 0.0) for word in _WORDS)
        if not gain and not read_noise:
            raise InputError(f"{place} must have a gain or a read noise above 0, got {text!r}")
        return cls(gain, offset, read_noise, "given")


@np.errstate(over="ignore", invalid="ignore")
def entropy_bound(noise: Noise, frames: NDArray[Any], valid: NDArray[np.bool_], step: float) -> float:
    """The ratio that no lossless code can pass, as it must spend the entropy of the noise: stored bits over entropy.

    Exact for a known mean: the entropy of a variable is at least its entropy given anything else (Cover and Thomas,
    Elements of Information Theory, theorem 2.6.5), here the scene. Invalid pixels count as free. Infinity without
    noise.

    Parameters
    ----------
    noise : Noise
    frames : ndarray
        Shape (n, *frame_shape).
    valid : ndarray of bool
        True where a pixel counts, same shape.
    step : float
        Of which the values are multiples; 0 where they are of none, and a float's own spacing is.

    Examples
    --------
    >>> frames = np.full((1, 64, 64), 1000, np.uint16)
    >>> round(entropy_bound(Noise(0, 0, 10, "given"), frames, np.ones(frames.shape, bool), 1), 2)
    2.98
    """
    values = frames[valid]
    bits = sum(float(entropy(noise, part, step).sum()) for part in np.split(values, range(PART, values.size, PART)))
    return frames.nbytes * 8 / bits if bits > 0 else math.inf


def entropy(noise: Noise, values: NDArray[Any], step: float) -> NDArray[np.float64]:
    """Entropy of the noise of pixels, bits each; in the mean never above that of pixels with those expectations.

    Parameters
    ----------
    noise : Noise
    values : ndarray
        Any shape; finite.
    step : float
        Of which the values are multiples; 0 where they are of none, and a float's own spacing is.

    Returns
    -------
    ndarray of float64
        Same shape; at most the bits of the dtype.
    """
    spacing = np.spacing(np.abs(values)).astype(np.float64) if step <= 0 else step
    if step > 0 and noise.gain >= 0.9 * step and noise.read_noise < 0.3 * noise.gain:
        # Whole photons. A read noise, were there one, could only add.
        return _counted((values.astype(np.float64) - noise.offset) / max(noise.gain, step))
    sigma = np.sqrt(noise.variance(values)) / spacing
    if step > 0:
        # Of the variance of rounded values, rounding made step**2 / 12.
        sigma = np.sqrt(np.maximum(sigma * sigma - 1 / 12, 0))
    return np.minimum(gaussian_entropy(sigma), 8 * values.dtype.itemsize)


#: Entropy to book for k counted photons, bits: its mean over Poisson counts of *any* expectation is at most, and
#: nearly, the entropy of that Poisson distribution; from 12 on log2(2 pi e k) / 2 does it. The entropy of a Poisson
#: distribution of mean k would book half of that for dim frames, as k is mostly 0. Found by linear programming;
#: tests/test_noise.py proves it.
_COUNTED = (0.0, 2.82, 2.82, 2.82, 2.82, 2.99, 3.6, 3.6, 3.6, 3.6, 3.6, 3.93)


def _counted(photons: NDArray[np.float64]) -> NDArray[np.float64]:
    counts = np.maximum(np.rint(photons), 0)
    bright = 0.5 * np.log2(2 * math.pi * math.e * np.maximum(counts, 1))
    table = np.array(_COUNTED)
    return np.where(counts < len(table), table[np.minimum(counts, len(table) - 1).astype(np.intp)], bright)


def gaussian_entropy(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of rounded Gaussian noise, bits; `sigma` in units of the rounding step; the mean over all expectations.

    From one step on ``log2(2 pi e (sigma**2 + 1/12)) / 2``, that of a Gaussian (Cover and Thomas, theorem 8.3.1) with
    the variance that rounding adds (Sheppard's correction); below, the sum over the rounded values. Never less than
    ``log2(sigma sqrt(2 pi e))``, and never negative.

    >>> gaussian_entropy(np.array([0.0, 0.1, 0.5, 1.0, 100.0])).round(2).tolist()
    [0.0, 0.26, 1.25, 2.1, 8.69]
    """
    wide = 0.5 * np.log2(2 * math.pi * math.e * (np.maximum(sigma, 1) ** 2 + 1 / 12))
    return np.where(sigma >= 1, wide, np.interp(sigma, *_narrow()))


@lru_cache(maxsize=1)
def _narrow() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sigmas up to one step and their entropies, averaged over where the expectation lies between two codes."""
    erf = np.frompyfunc(math.erf, 1, 1)
    sigmas = np.linspace(0, 1, 101)
    edges = np.arange(-7, 9) - 0.5
    phases = (np.arange(32) + 0.5) / 64  # the other half mirrors it
    entropies = [0.0]
    for sigma in sigmas[1:]:
        cumulative = erf((edges[:, None] - phases) / (sigma * math.sqrt(2))).astype(np.float64) / 2
        p = np.maximum(np.diff(cumulative, axis=0), 1e-300)
        entropies.append(float(-(p * np.log2(p)).sum(axis=0).mean()))
    return sigmas, np.array(entropies)
