"""Noise: the variance of a pixel, from the file or estimated; and what it leaves any lossless code to gain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.stack import Kind, Stack

#: Pixels that one estimate looks at, at most; more would not make it more certain.
_PIXELS = 4 << 20

#: Pixels that are worked on at once, as the arithmetic takes many times their memory.
_PART = 1 << 20

#: Extent of the tiles over which a variance is averaged, along each axis of an image, and of a spectrum.
_TILE = {1: 64, 2: 16}

#: Tiles of similar intensity that give one point of the fit, at least, and points at most.
_TILES_A_POINT, _POINTS = 16, 32

#: Flats and darks that are read, at most.
_CALIBRATION_FRAMES = 8


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
def estimate(stack: Stack, runs: Sequence[NDArray[Any]]) -> tuple[Noise, ...]:
    """All estimates of a stack's noise, the one to believe first; empty where there is nothing to estimate from.

    A declared photon counter is believed. Else the estimate with the smallest variance on these frames is: a scene that
    changes, or has structure, adds to every estimate and takes from none. Pairs of frames of one X-ray microscope gave
    gains from 0.36 to 2.61, neighbouring pixels 0.17 to 0.20.

    Parameters
    ----------
    stack : Stack
        Its flats and darks, invalid pixels, and what it declares.
    runs : sequence of ndarray
        Frames that follow each other in the stack, shape (n, *frame_shape).
    """
    estimates = [
        noise
        for noise in (_from_calibration(stack), _from_repeats(stack, runs), _from_neighbours(stack, runs))
        if noise is not None
    ]
    values = np.concatenate([band[valid] for run in runs for band, valid in _bands(stack, run)] or [np.empty(0)])
    values = values[:: max(1, values.size // _PART)]
    estimates.sort(key=lambda noise: float(noise.variance(values).mean()) if values.size else 0.0)
    if stack.photon_counting:
        estimates.insert(0, Noise(1.0, 0.0, 0.0, "photon counter, as the file declares"))
    return tuple(estimates)


#: Variance found over variance predicted must lie between these in every tenth of the intensities.
_TRUSTED = (0.8, 1.25)
#: Tiles that a tenth must have to be judged.
_LEAST_TILES = 8


@np.errstate(over="ignore", invalid="ignore")
@dataclass(frozen=True, slots=True)
class Doubt:
    """A reason not to believe a noise model."""

    text: str
    """In words."""
    safe: bool
    """Whether it only says that the noise may be larger: limits that hold in a smaller one hold in it too."""

    def __str__(self) -> str:
        return self.text


def doubts(
    noise: Noise, stack: Stack, runs: Sequence[NDArray[Any]], bits_per_pixel: float, step: float
) -> tuple[Doubt, ...]:
    """Why a noise model is not to be believed; empty where both guards hold.

    Noise cannot hold more entropy than a lossless code spends: ``log2(sigma sqrt(2 pi e))`` bits a pixel in the mean
    (Cover and Thomas, theorems 5.4.1 and 8.4.1), or that of counted photons. And of the differences between
    repeated frames, or neighbouring pixels where those differ less, the variance over that predicted must lie in 0.8 to
    1.25 in every tenth of the intensities.

    Parameters
    ----------
    noise : Noise
    stack : Stack
    runs : sequence of ndarray
        Frames that follow each other in the stack, shape (n, *frame_shape).
    bits_per_pixel : float
        Bits that the best lossless code spends for a valid pixel.
    step : float
        Of which the values are multiples; 0 where they are of none.
    """
    found = []
    values = np.concatenate([run[stack.valid(run)] for run in runs] or [np.empty(0)])[:_PIXELS]
    entropy = float(_entropy(noise, values, step).mean()) if values.size else 0.0
    if entropy > bits_per_pixel:
        text = f"it would hold {entropy:.2f} bits a pixel, and all of the data takes {bits_per_pixel:.2f}"
        found.append(Doubt(text, safe=False))
    points = [_differences(stack, runs, how) for how in (_repeats, _neighbours)]
    ratios = [ratio for intensity, v in points if len(ratio := _ratios(noise, intensity, v))]
    if ratios:
        # A scene that changes adds to the differences, one with structure to those of neighbours; both only add.
        least = min(ratios, key=lambda ratio: float(np.median(ratio)))
        low, high = float(least.min()), float(least.max())
        if low < _TRUSTED[0] or high > _TRUSTED[1]:
            text = (
                f"differences have {low:.2f} to {high:.2f} times the variance that it predicts, by intensity;"
                f" it must be {_TRUSTED[0]} to {_TRUSTED[1]}"
            )
            found.append(Doubt(text, safe=low >= _TRUSTED[0]))
    return tuple(found)


def _differences(
    stack: Stack, runs: Sequence[NDArray[Any]], how: Callable[..., tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intensity and variance of tiles of all runs that are long enough for differences of a kind."""
    least = (2, 1) if how is _repeats else (1, 3)
    points = [
        how(*band) for run in runs if len(run) >= least[0] and run.shape[-1] >= least[1] for band in _bands(stack, run)
    ]
    return _join(points) if points else (np.empty(0), np.empty(0))


def _ratios(noise: Noise, intensity: NDArray[np.float64], variance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of the variance found over that predicted, in each tenth of the intensities with enough tiles."""
    predicted = replace(noise, floor=0.0).variance(intensity)  # a floor claims nothing
    lit = predicted > 0
    intensity, ratio = intensity[lit], variance[lit] / predicted[lit]
    tenths = np.array_split(np.argsort(intensity, kind="stable"), 10)
    return np.array([np.median(ratio[tenth]) for tenth in tenths if len(tenth) >= _LEAST_TILES])


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
    bits = sum(float(_entropy(noise, part, step).sum()) for part in np.split(values, range(_PART, values.size, _PART)))
    return frames.nbytes * 8 / bits if bits > 0 else math.inf


def _entropy(noise: Noise, values: NDArray[Any], step: float) -> NDArray[np.float64]:
    """Entropy of the noise of pixels, bits each; in the mean never above that of pixels with those expectations."""
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


def _from_calibration(stack: Stack) -> Noise | None:
    """From repeated darks, which give offset and read noise, and repeated flats, which give the gain."""
    darks, flats = _calibration(stack, Kind.DARK), _calibration(stack, Kind.FLAT)
    if flats is None:
        return None
    if darks is None:
        return _fit(*flats, "differences of repeated flats")
    offset, dark_variance = float(np.median(darks[0])), float(np.median(darks[1]))
    light = flats[0] - offset
    lit = light > 0.1 * max(float(np.median(light)), 0)
    if not lit.any():
        return None
    gain = max(float(np.median((flats[1][lit] - dark_variance) / light[lit])), 0.0)
    return Noise(gain, offset, math.sqrt(dark_variance), "flats and darks")


def _calibration(stack: Stack, kind: Kind) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Intensity and variance of tiles, from differences of the first frames of one kind; None with less than two."""
    beside = stack.darks if kind == Kind.DARK else stack.flats
    count = max(2, min(_CALIBRATION_FRAMES, _PIXELS // math.prod(stack.frame_shape)))
    if beside is not None:
        if len(beside) < 2:
            return None
        frames = beside.read(0, min(count, len(beside)))
        return _join([_repeats(*band) for band in _bands(beside, frames)])
    if stack.kinds is None:
        return None
    numbers = np.flatnonzero(stack.kinds == kind)[:count]
    if len(numbers) < 2:
        return None
    frames = np.concatenate([stack.read(int(number), int(number) + 1) for number in numbers])
    return _join([_repeats(*band) for band in _bands(stack, frames)])


def _from_repeats(stack: Stack, runs: Sequence[NDArray[Any]]) -> Noise | None:
    """From differences of frames that follow each other, normalised for flux."""
    points = _differences(stack, runs, _repeats)
    return _fit(*points, "differences of consecutive frames") if len(points[0]) else None


def _from_neighbours(stack: Stack, runs: Sequence[NDArray[Any]]) -> Noise | None:
    """From second differences within frames, which smooth structure leaves near zero."""
    points = _differences(stack, runs, _neighbours)
    return _fit(*points, "differences of neighbouring pixels") if len(points[0]) else None


def _bands(stack: Stack, run: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """The first frames of a run, two at least where it has them, in bands of rows; and what is valid in them."""
    frames = run[: max(2, _PIXELS // math.prod(run.shape[1:]))]
    valid = stack.valid(frames)
    rows = max(_PART // (frames[:, 0].size * _TILE[2]), 1) * _TILE[2] if frames.ndim > 2 else frames.shape[1]
    for start in range(0, frames.shape[1], rows):
        yield frames[:, start : start + rows], valid[:, start : start + rows]


def _join(
    points: list[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.concatenate([m for m, _ in points]), np.concatenate([v for _, v in points])


def _repeats(frames: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intensity and variance of tiles, from the differences of pairs of frames.

    For frames a and b of equal expectation but for the flux, with r the ratio of their sums,
    ``Var(a - r b) = gain a (1 + r) + read_noise**2 (1 + r**2)``, which is twice the variance for r = 1.
    """
    points = []
    for first in range(0, len(frames) - 1, 2):
        both = valid[first] & valid[first + 1]
        a, b = (np.where(both, frames[i], 0).astype(np.float64) for i in (first, first + 1))
        ratio = a.sum() / b.sum() if 0 < a.sum() < np.inf and 0 < b.sum() < np.inf else 1.0
        points.append(_tiles((a + ratio * b)[None] / 2, ((a - ratio * b) ** 2)[None] / (1 + ratio), both[None]))
    return _join(points)


def _neighbours(frames: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intensity and variance of tiles, from second differences along each axis of the frame that is long enough.

    A second difference of independent pixels has 6 times their variance, one along two axes 36 times (Immerkaer, Fast
    noise variance estimation, 1996).
    """
    difference = np.where(valid, frames, 0).astype(np.float64)
    intensity, scale = difference, 1.0
    for axis in range(1, frames.ndim):
        if frames.shape[axis] < 3:
            continue
        before, here, after = ((slice(None),) * axis + (s,) for s in (slice(-2), slice(1, -1), slice(2, None)))
        difference = difference[before] - 2 * difference[here] + difference[after]
        intensity = (intensity[before] + intensity[here] + intensity[after]) / 3
        valid = valid[before] & valid[here] & valid[after]
        scale *= 6
    return _tiles(intensity, difference**2 / scale, valid)


def _tiles(
    intensity: NDArray[np.float64], variance: NDArray[np.float64], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over the valid pixels of tiles of a frame, those that are at least half valid."""
    extent = _TILE[min(valid.ndim - 1, 2)]
    shape: list[int] = [len(valid)]
    for size in valid.shape[1:]:
        shape += [size // min(size, extent), min(size, extent)]
    cut = tuple(slice(count * tile) for count, tile in zip(shape[1::2], shape[2::2], strict=True))
    sums = [
        np.where(valid, array, 0)[(slice(None), *cut)].reshape(shape).sum(axis=tuple(range(2, len(shape), 2))).ravel()
        for array in (intensity, variance, valid)
    ]
    full = sums[2] >= max(math.prod(shape[2::2]) // 2, 1)
    means, variances = sums[0][full] / sums[2][full], sums[1][full] / sums[2][full]
    # Squares of floats above 1e154 are not finite.
    finite = np.isfinite(means) & np.isfinite(variances)
    return means[finite], variances[finite]


def _fit(intensity: NDArray[np.float64], variance: NDArray[np.float64], source: str) -> Noise | None:
    """The line of variance over intensity, through medians of tiles of similar intensity, or None without tiles."""
    points = np.array(list(_medians(intensity, variance)))
    if not len(points):
        return None
    x, y = points.T
    if x[-1] - x[0] <= 0.1 * abs(x[-1]) or not y.any():
        # One intensity tells no gain; brighter pixels are then taken for no noisier, which is the safe side.
        return Noise(0.0, 0.0, math.sqrt(float(np.median(y))), source)
    sigma = np.maximum(y, y[y > 0].min())
    for _ in range(4):
        # The spread of an estimated variance is proportional to it.
        gain, constant = np.polyfit(x, y, 1, w=1 / sigma)
        sigma = np.maximum(gain * x + constant, 0.1 * sigma)
    if gain <= 0:
        return Noise(0.0, 0.0, math.sqrt(float(np.median(y))), source)
    offset = max(-float(constant / gain), 0.0)
    return Noise(float(gain), offset, math.sqrt(max(float(constant), 0.0)), source)


def _medians(intensity: NDArray[np.float64], variance: NDArray[np.float64]) -> Iterator[tuple[float, float]]:
    order = np.argsort(intensity, kind="stable")
    for part in np.array_split(order, max(1, min(_POINTS, len(order) // _TILES_A_POINT))):
        if len(part):
            yield float(np.median(intensity[part])), float(np.median(variance[part]))
