"""The noise of a stack, estimated from its frames; and what speaks against a model of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.noise import PART, Noise, entropy
from tuner.stack import Kind, Stack

#: Intensity and variance of tiles.
_Points = tuple[NDArray[np.float64], NDArray[np.float64]]

#: Pixels that one estimate looks at, at most; more would not make it more certain.
_PIXELS = 4 << 20

#: Extent of the tiles over which a variance is averaged, along each axis of an image, and of a spectrum.
_TILE = {1: 64, 2: 16}

#: Tiles of similar intensity that give one point of the fit, at least, and points at most.
_TILES_A_POINT, _POINTS = 16, 32

#: Frames repeat each other if one has so much of the light of the other: not where a beam was lost or a shutter shut.
_ALIKE = 0.5

#: Flats and darks that are read, at most.
_CALIBRATION_FRAMES = 8

#: Variance found over variance predicted must lie between these in every tenth of the intensities.
_TRUSTED = (0.8, 1.25)
#: Tiles that a tenth must have to be judged.
_LEAST_TILES = 8

#: Of the variance of noise finer differences leave this share at least; those of real frames left 0.93 to 1.03.
_WHITE = 0.85

#: What an estimate calls itself that rests on differences.
_OF_REPEATS, _OF_NEIGHBOURS = "differences of consecutive frames", "differences of neighbouring pixels"


@np.errstate(over="ignore", invalid="ignore")
def estimate(stack: Stack, runs: Sequence[NDArray[Any]]) -> tuple[Noise, ...]:
    """All estimates of a stack's noise, the one to believe first; empty where there is nothing to estimate from.

    A declared photon counter is believed. Else the estimate with the smallest variance on these frames is: a scene that
    changes, or has structure, adds to every estimate and takes from none. Pairs of frames of one X-ray microscope gave
    gains from 0.36 to 2.61, neighbouring pixels 0.17 to 0.20. Where structure is in the brighter part alone, a line
    through all predicts too much of the rest: the last estimates are of where differences are least, see `believe`.

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
    values = values[:: max(1, values.size // PART)]
    estimates.sort(key=lambda noise: float(noise.variance(values).mean()) if values.size else 0.0)
    least = (_from_repeats(stack, runs, least=True), _from_neighbours(stack, runs, least=True))
    estimates += [noise for noise in least if noise is not None]
    if stack.photon_counting:
        estimates.insert(0, Noise(1.0, 0.0, 0.0, "photon counter, as the file declares"))
    return tuple(estimates)


@dataclass(frozen=True, slots=True)
class Doubt:
    """A reason not to believe a noise model."""

    text: str
    """In words."""
    safe: bool
    """Whether it only says that the noise may be larger: limits that hold in a smaller one hold in it too."""

    def __str__(self) -> str:
        return self.text


@np.errstate(over="ignore", invalid="ignore")
def doubts(
    noise: Noise, stack: Stack, runs: Sequence[NDArray[Any]], bits_per_pixel: float, step: float
) -> tuple[Doubt, ...]:
    """Why a noise model is not to be believed; empty where both guards hold.

    Noise cannot hold more entropy than a lossless code spends: ``log2(sigma sqrt(2 pi e))`` bits a pixel in the mean
    (Cover and Thomas, theorems 5.4.1 and 8.4.1), or that of counted photons. And of the differences between
    repeated frames, or neighbouring pixels where those differ less, the variance over that predicted must lie in 0.8 to
    1.25 in every tenth of the intensities. Where the model itself is of such differences, these must be those of noise
    that each pixel has for itself: finer differences must leave 0.85 of the variance. Of a scene they leave less.

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
    bits = float(entropy(noise, values, step).mean()) if values.size else 0.0
    if bits > bits_per_pixel:
        text = f"it would hold {bits:.2f} bits a pixel, and all of the data takes {bits_per_pixel:.2f}"
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
    left = _left(stack, runs, noise.source)
    if left < _WHITE and _from_calibration(stack) is None:
        text = f"finer differences have {left:.2f} times the variance; below {_WHITE} it may be that of a scene"
        found.append(Doubt(text, safe=False))
    return tuple(found)


def believe(
    estimates: Sequence[Noise], stack: Stack, runs: Sequence[NDArray[Any]], bits_per_pixel: float, step: float
) -> tuple[Noise, tuple[Doubt, ...]]:
    """The first estimate that nothing unsafe speaks against, else the first of all; and its doubts.

    Parameters
    ----------
    estimates : sequence of Noise
        At least one, as of `estimate`.
    stack, runs, bits_per_pixel, step
        As for `doubts`.
    """
    first: tuple[Noise, tuple[Doubt, ...]] | None = None
    for noise in estimates:
        found = doubts(noise, stack, runs, bits_per_pixel, step)
        if all(doubt.safe for doubt in found):
            return noise, found
        first = first or (noise, found)
    assert first is not None
    return first


def _left(stack: Stack, runs: Sequence[NDArray[Any]], source: str) -> float:
    """Variance of finer differences over that of those which an estimate is from; 1 for others, or with few tiles."""
    kinds: dict[str, tuple[Callable[..., _Points], Callable[..., _Points]]]
    kinds = {_OF_REPEATS: (_repeats, _changes), _OF_NEIGHBOURS: (_neighbours, partial(_neighbours, times=2))}
    pair = next((pair for kind, pair in kinds.items() if source.startswith(kind)), None)
    if pair is None:
        return 1.0
    coarse, fine = (_differences(stack, runs, how)[1] for how in pair)
    whole = float(np.median(coarse)) if min(len(coarse), len(fine)) >= _TILES_A_POINT else 0.0
    return float(np.median(fine)) / whole if whole > 0 else 1.0


def _differences(stack: Stack, runs: Sequence[NDArray[Any]], how: Callable[..., _Points]) -> _Points:
    """Intensity and variance of tiles of all runs that are long enough for differences of a kind."""
    least = {_repeats: (2, 1), _changes: (2, 3), _neighbours: (1, 3)}.get(how, (1, 5))
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


def _calibration(stack: Stack, kind: Kind) -> _Points | None:
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


def _from_repeats(stack: Stack, runs: Sequence[NDArray[Any]], least: bool = False) -> Noise | None:
    """From differences of frames that follow each other, normalised for flux."""
    points = _differences(stack, runs, _repeats)
    return (_fit_least if least else _fit)(*points, _OF_REPEATS) if len(points[0]) else None


def _from_neighbours(stack: Stack, runs: Sequence[NDArray[Any]], least: bool = False) -> Noise | None:
    """From second differences within frames, which smooth structure leaves near zero."""
    points = _differences(stack, runs, _neighbours)
    return (_fit_least if least else _fit)(*points, _OF_NEIGHBOURS) if len(points[0]) else None


def _bands(stack: Stack, run: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """The first frames of a run, two at least where it has them, in bands of rows; and what is valid in them."""
    frames = run[: max(2, _PIXELS // math.prod(run.shape[1:]))]
    valid = stack.valid(frames)
    rows = max(PART // (frames[:, 0].size * _TILE[2]), 1) * _TILE[2] if frames.ndim > 2 else frames.shape[1]
    for start in range(0, frames.shape[1], rows):
        yield frames[:, start : start + rows], valid[:, start : start + rows]


def _join(points: list[_Points]) -> _Points:
    return np.concatenate([m for m, _ in points]), np.concatenate([v for _, v in points])


def _repeats(frames: NDArray[Any], valid: NDArray[np.bool_]) -> _Points:
    """Intensity and variance of tiles, from the differences of pairs of frames.

    For frames a and b of equal expectation but for the flux, with r the ratio of their sums,
    ``Var(a - r b) = gain a (1 + r) + read_noise**2 (1 + r**2)``, which is twice the variance for r = 1.
    """
    return _of_pairs(frames, valid, lambda intensity, noise, both: _tiles(intensity, noise**2, both))


def _changes(frames: NDArray[Any], valid: NDArray[np.bool_]) -> _Points:
    """The same, from second differences of those differences, which a scene that changes smoothly leaves near zero."""
    return _of_pairs(frames, valid, lambda _, noise, both: _neighbours(noise, both))


def _of_pairs(frames: NDArray[Any], valid: NDArray[np.bool_], points_of: Callable[..., _Points]) -> _Points:
    """Points of the intensity of pairs of frames, their difference with the variance of one, and what is valid."""
    points, alike = [], []
    for first in range(0, len(frames) - 1, 2):
        both = valid[first] & valid[first + 1]
        a, b = (np.where(both, frames[i], 0).astype(np.float64) for i in (first, first + 1))
        light = sorted((a.sum(), b.sum()))
        ratio = a.sum() / b.sum() if light[0] > 0 and light[1] < np.inf else 1.0
        difference = (a - ratio * b) / math.sqrt(1 + ratio)
        points.append(points_of((a + ratio * b)[None] / 2, difference[None], both[None]))
        alike.append(light[0] < 0 or light[0] >= _ALIKE * light[1])  # of a difference to darks, sums tell no light
    return _join([point for point, one in zip(points, alike, strict=True) if one] or points)


def _neighbours(frames: NDArray[Any], valid: NDArray[np.bool_], times: int = 1) -> _Points:
    """Intensity and variance of tiles, from second differences along each axis of the frame that is long enough.

    A second difference of independent pixels has 6 times their variance, one along two axes 36 times (Immerkaer, Fast
    noise variance estimation, 1996); one that is taken `times` 2 along an axis 70 times, by its binomial coefficients.
    """
    difference = np.where(valid, frames, 0).astype(np.float64)
    intensity, scale = difference, 1.0
    for axis in range(1, frames.ndim):
        if frames.shape[axis] < 1 + 2 * times:
            continue
        before, here, after = ((slice(None),) * axis + (s,) for s in (slice(-2), slice(1, -1), slice(2, None)))
        for _ in range(times):
            difference = difference[before] - 2 * difference[here] + difference[after]
            intensity = (intensity[before] + intensity[here] + intensity[after]) / 3
            valid = valid[before] & valid[here] & valid[after]
        scale *= math.comb(4 * times, 2 * times)
    return _tiles(intensity, difference**2 / scale, valid)


def _tiles(intensity: NDArray[np.float64], variance: NDArray[np.float64], valid: NDArray[np.bool_]) -> _Points:
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
    return _line(points[:, 0], points[:, 1], source) if len(points) else None


def _fit_least(intensity: NDArray[np.float64], variance: NDArray[np.float64], source: str) -> Noise | None:
    """The same, through the medians that are left when those of a scene are not: it only adds, so they lie highest.

    As long as the line predicts too much of one, that which lies highest above it is left out. None where the line
    through all does not, where less than an eighth is left, or no noise.
    """
    points = np.array(list(_medians(intensity, variance)))
    x, y = points.T
    while True:
        noise = _line(x, y, f"{source}, where they are least")
        predicted = noise.variance(x)
        ratio = np.divide(y, predicted, out=np.ones(len(y)), where=predicted > 0)
        if ratio.min() >= _TRUSTED[0]:
            return noise if len(points) / 8 <= len(x) < len(points) and y.all() else None
        highest = int(np.argmax(ratio))
        x, y = np.delete(x, highest), np.delete(y, highest)


def _line(x: NDArray[np.float64], y: NDArray[np.float64], source: str) -> Noise:
    """The line through variances `y` of intensities `x`, which ascend."""
    # One intensity tells no gain; brighter pixels are then taken for no noisier, which is the safe side.
    flat = Noise(0.0, 0.0, math.sqrt(float(np.median(y))), source)
    if x[-1] - x[0] <= 0.1 * abs(x[-1]) or not y.any():
        return flat
    least = float(y[y > 0].min())
    sigma = np.maximum(y, least)
    with warnings.catch_warnings():
        warnings.simplefilter("error", np.exceptions.RankWarning)
        try:
            for _ in range(4):
                # The spread of an estimated variance is proportional to it.
                gain, constant = np.polyfit(x, y, 1, w=1 / sigma)
                sigma = np.maximum(gain * x + constant, 0.1 * sigma)
        except np.exceptions.RankWarning:  # variances of so many magnitudes that one point alone has a weight
            return flat
    if gain <= 0:
        return flat
    # Below no light, as darks that were subtracted leave it, the line is level; where most is below 0, so is no light.
    zero = -float(constant / gain)
    offset = max(zero, 0.0 if x[len(x) // 2] >= 0 else float(x[0]))
    dark = float(gain) * (offset - zero)
    # What is beyond the digits of the fit would claim to know of tiles without a count.
    return Noise(float(gain), offset, math.sqrt(dark) if dark > 1e-6 * least else 0.0, source)


def _medians(intensity: NDArray[np.float64], variance: NDArray[np.float64]) -> Iterator[tuple[float, float]]:
    order = np.argsort(intensity, kind="stable")
    for part in np.array_split(order, max(1, min(_POINTS, len(order) // _TILES_A_POINT))):
        if len(part):
            yield float(np.median(intensity[part])), float(np.median(variance[part]))
