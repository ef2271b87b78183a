"""Pair: frames before and after a change, and what can be counted of them piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.noise import Noise

_Floats = NDArray[np.float64]
_Flags = NDArray[np.bool_]

#: Pixels that are worked on at once, so that what is made of them stays in the cache.
_PIXELS = 1 << 15

#: Standard error of a bias that decides about 0.01 at five standard errors. At three, one of some hundred strata
#: without bias would fail.
_BIAS_ERROR = 0.002

#: Standard error of a correlation that decides about 0.05, likewise.
_CORRELATION_ERROR = 0.01

#: A mean this many standard errors from zero is believed, however few pixels it is of.
_CERTAIN = 5

#: Least variance that a rounding is taken to have, sigma squared: that of rounding to one sigma.
_ROUNDING = 1 / 12

#: Between these quantiles of the expected intensity lie the strata: eighths, and ever rarer ones at both ends.
_QUANTILES = sorted({k / 8 for k in range(1, 8)} | {q for j in range(4, 11) for q in (2.0**-j, 1 - 2.0**-j)})

#: Expected intensities of which those quantiles are taken, about.
_SAMPLE = 1 << 18

#: Neighbours on either side that say what to expect of a pixel, for one axis and for two: eight in all.
_REACH = {1: 4, 2: 1}

_LAGS = 5

#: Extent of the windows of SSIM along each axis, and its constants (Wang et al. 2004, section III-C).
_WINDOW, _K1, _K2 = 7, 0.01, 0.03


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of some frames in double precision, few enough pixels to stay in the cache."""

    frames: slice
    """The frames that it is of."""
    rows: slice
    """Their rows that it holds, those around it included."""
    inner: slice
    """Of its rows, those that are its own."""
    original: _Floats
    """Shape (frames, rows, ...); 0 where nothing counts."""
    error: _Floats
    """Decoded - original, same shape; 0 where nothing counts."""
    counted: _Flags
    """True where a pixel counts, same shape."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Frames before and after; each method gives a number a frame, of use where the frame is `changed`."""

    original: NDArray[Any]
    """Shape (n, *frame_shape), native byte order; integers or floats."""
    decoded: NDArray[Any]
    """What came back, same shape and dtype."""
    valid: _Flags
    """True where a pixel of the original counts, same shape."""
    still_valid: _Flags | None
    """True where a pixel of what came back counts, same shape; None where that is not to be looked at."""
    noise: Noise | None
    """Of the original; None where it is unknown, and errors stay in data units."""
    changed: _Flags
    """The frames to look at, shape (n,)."""

    def blocks(self, before: int = 0, after: int = 0) -> Iterator[Block]:
        """All changed frames piece by piece, with so many rows around each piece as the frame has."""
        count, height = self.original.shape[:2]
        row = math.prod(self.original.shape[2:])
        high = max(_PIXELS // max(row, 1), 4 * (before + after), 1)
        many = max(_PIXELS // max(row * height, 1), 1)
        for first in range(0, count, many):
            frames = slice(first, first + many)
            if not self.changed[frames].any():
                continue
            for top in range(0, height, high):
                rows = slice(max(top - before, 0), min(top + high + after, height))
                inner = slice(top - rows.start, min(top + high, height) - rows.start)
                original, decoded, counted = (a[frames, rows] for a in (self.original, self.decoded, self.valid))
                if original.dtype.kind == "f":
                    counted = counted & np.isfinite(original)
                wide, error = original.astype(np.float64), _difference(original, decoded)
                if not counted.all():
                    wide[~counted] = 0
                    error[~counted] = 0
                yield Block(frames, rows, inner, wide, error, counted)

    def in_sigma(self, value: _Floats, intensity: _Floats) -> _Floats:
        """Values over the sigma of an intensity; 0 stays 0, and anything else over a sigma of 0 is infinite."""
        if self.noise is None:
            return value
        variance = self.noise.variance(intensity)
        scaled = value / np.sqrt(variance)
        if variance.size and not (variance.min() > 0 and variance.max() < np.inf):
            # An infinite variance would excuse any error.
            scaled[np.isinf(variance)] = np.nan
            scaled[value == 0] = 0
        return scaled

    def errors(self) -> dict[str, _Floats]:
        """The metrics that are a count, a maximum or a mean of single pixels; those in sigma only with a noise."""
        violations, pixels, largest, squares, largest_sigma, squares_sigma = np.zeros((6, len(self.changed)))
        for block in self.blocks():
            still = None if self.still_valid is None else self.still_valid[block.frames, block.rows]
            original, decoded, valid = (a[block.frames, block.rows] for a in (self.original, self.decoded, self.valid))
            violations[block.frames] += _sums(_violations(original, decoded, valid, block.counted, still))
            pixels[block.frames] += _sums(block.counted)
            _raise_to(largest[block.frames], block.error)
            squares[block.frames] += _sums(block.error, block.error)
            if self.noise is not None:
                error = self.in_sigma(block.error, block.original)
                _raise_to(largest_sigma[block.frames], error)
                squares_sigma[block.frames] += _sums(error, error)
        pixels = np.maximum(pixels, 1)
        return {
            "mask_violations": violations,
            "max_abs_error": largest,
            "rmse": np.sqrt(squares / pixels),
            "max_error_sigma": largest_sigma,
            "rms_error_sigma": np.sqrt(squares_sigma / pixels),
            "dose_cost": squares_sigma / pixels,
        }

    def bias(self) -> _Floats:
        """Largest mean error in sigma, of the frame and of strata of the intensity to expect."""
        edges = self.strata()
        strata = len(edges) + 1
        reach = _REACH[self.original.ndim - 1]
        # Pixels, sum and sum of squares of each stratum, and in the last place of what belongs to none.
        moments = np.zeros((3, len(self.changed), strata + 1))
        for block in self.blocks(reach, reach):
            inner = (slice(None), block.inner)
            around, expected = (a[inner] for a in _surroundings(block.original, block.counted, reach))
            error = self.in_sigma(block.error[inner], around)
            counted = block.counted[inner]
            # Comparing with each edge is several times faster than searching among them.
            place = np.zeros(expected.shape, np.uint8)
            for edge in edges:
                place += expected >= edge
            place[~(counted & ~np.isnan(expected))] = strata
            error[~counted] = 0
            here = moments[:, block.frames]
            index = np.arange(here.shape[1])[:, None] * (strata + 1) + place.reshape(here.shape[1], -1)
            flat = error.ravel()
            for part, weights in enumerate((None, flat, flat * flat)):
                here[part] += np.bincount(index.ravel(), weights, here[part].size).reshape(here[part].shape)
            # A pixel without neighbours is of no stratum, but of the frame.
            here[0, :, -1] -= _sums(~counted)
        frame = self.believed(moments.sum(axis=2), _mean_error, _BIAS_ERROR)
        parts = self.believed(moments[..., :-1], _mean_error, _BIAS_ERROR, any_pool=False)
        return np.asarray(np.maximum(frame, parts.max(axis=1)))

    def strata(self) -> _Floats:
        """Edges between the strata: quantiles of the expected intensity in all frames, of every so many rows."""
        every = max(min(self.original.size // _SAMPLE, self.original.shape[1] // 3), 1)
        sample = replace(
            self, original=self.original[:, ::every], decoded=self.original[:, ::every], valid=self.valid[:, ::every]
        )
        reach = _REACH[self.original.ndim - 1]
        parts = []
        for block in sample.blocks(reach, reach):
            _, expected = _surroundings(block.original, block.counted, reach)
            parts.append(expected[:, block.inner][block.counted[:, block.inner]])
        values = np.concatenate(parts or [np.empty(0)])
        values = np.sort(values[~np.isnan(values)])
        return np.unique(values[[int(q * len(values)) for q in _QUANTILES]]) if len(values) else values

    def means(self) -> tuple[_Floats, _Floats]:
        """Means of the original and of the error in sigma; exact where all pixels are alike."""
        pixels, *totals = np.zeros((3, len(self.changed)))
        low, high = np.full((2, 2, len(self.changed)), [[[np.inf]], [[-np.inf]]])
        for block in self.blocks():
            pixels[block.frames] += _sums(block.counted)
            for part, value in enumerate((block.original, self.in_sigma(block.error, block.original))):
                flat, counted = value.reshape(len(value), -1), block.counted.reshape(len(value), -1)
                totals[part][block.frames] += flat.sum(axis=1)
                least, most = low[part, block.frames], high[part, block.frames]
                np.minimum(least, flat.min(axis=1, where=counted, initial=np.inf), out=least)
                np.maximum(most, flat.max(axis=1, where=counted, initial=-np.inf), out=most)
        original, error = np.clip(totals / np.maximum(pixels, 1), low, high)
        return original, error

    def pearson(self, mean: _Floats) -> _Floats:
        """Correlation of decoded and original."""
        pixels, total, squares, error_total, error_squares, products = np.zeros((6, len(self.changed)))
        for block in self.blocks():
            centred = _centred(block.original, mean[block.frames], block.counted)
            pixels[block.frames] += _sums(block.counted)
            total[block.frames] += _sums(centred)
            squares[block.frames] += _sums(centred, centred)
            error_total[block.frames] += _sums(block.error)
            error_squares[block.frames] += _sums(block.error, block.error)
            products[block.frames] += _sums(centred, block.error)
        pixels = np.maximum(pixels, 1)
        squares -= total * total / pixels
        products -= total * error_total / pixels
        decoded_squares = squares + 2 * products + error_squares - error_total * error_total / pixels
        correlation = (squares + products) / np.sqrt(squares * decoded_squares)
        # What is left of the variance of a constant is the rounding of these sums.
        constant = (squares == 0) | (decoded_squares <= 1e-12 * squares)
        return np.where(constant, 0.0, np.clip(correlation, -1, 1))

    def signal_correlation(self, mean: _Floats, mean_error: _Floats) -> _Floats:
        """Correlation of error and original, each pixel's in its sigma, without its sign."""
        moments = np.zeros((7, len(self.changed)))
        for block in self.blocks():
            error = _centred(self.in_sigma(block.error, block.original), mean_error[block.frames], block.counted)
            signal = self.in_sigma(_centred(block.original, mean[block.frames], block.counted), block.original)
            product = error * signal
            terms = (_sums(block.counted), _sums(signal), _sums(signal, signal), _sums(error, error))
            moments[:, block.frames] += (*terms, _sums(product), _sums(product, error), _sums(product, product))
        return self.believed(moments, _signal_correlation, _CORRELATION_ERROR)

    def autocorrelation(self, mean_error: _Floats) -> _Floats:
        """Largest autocorrelation of the error in sigma, over lags and axes."""
        lags = [(axis, lag) for axis in range(1, self.original.ndim) for lag in range(1, _LAGS + 1)]
        # For each lag the power, the sum of products and that of their squares.
        moments = np.zeros((3, len(self.changed), len(lags)))
        for block in self.blocks(after=_LAGS):
            error = _centred(self.in_sigma(block.error, block.original), mean_error[block.frames], block.counted)
            inner = error[:, block.inner]
            power = _sums(inner, inner)
            for number, (axis, lag) in enumerate(lags):
                if axis == 1:
                    ahead = error[:, lag : inner.shape[1] + lag]
                    product = inner[:, : ahead.shape[1]] * ahead
                else:
                    product = inner[:, :, :-lag] * inner[:, :, lag:]
                moments[:, block.frames, number] += (power, _sums(product), _sums(product, product))
        return np.asarray(self.believed(moments, _autocorrelation, _CORRELATION_ERROR).max(axis=1))

    def believed(
        self,
        moments: _Floats,
        estimate: Callable[[_Floats], tuple[_Floats, _Floats]],
        most: float,
        any_pool: bool = True,
    ) -> _Floats:
        """Sizes of means: a frame's own where its standard error is small or it is certain, else that of all frames.

        Parameters
        ----------
        moments : ndarray
            Sums, shape (sums, n, ...).
        estimate : callable
            From such sums a mean and its standard error, both of shape (n, ...).
        most : float
            Standard error that is small enough.
        any_pool : bool
            Whether that of all frames counts even if it is neither; 0 stands for it otherwise.
        """
        (mean, own), (pooled, whole) = (
            (np.abs(mean), ~((error > most) & (np.abs(mean) <= _CERTAIN * error)))
            for mean, error in (estimate(moments), estimate(moments[:, self.changed].sum(axis=1, keepdims=True)))
        )
        return np.where(own, mean, pooled if any_pool else np.where(whole, pooled, 0.0))

    def ranges(self) -> tuple[_Floats, _Floats]:
        """The 0.1 percentile of the original, and how far above it the 99.9 percentile is."""
        low, extent = np.zeros((2, len(self.changed)))
        for frame, values in self.counted_values(self.original):
            first, last = math.floor(0.001 * (len(values) - 1)), math.ceil(0.999 * (len(values) - 1))
            bounds = np.partition(values, (first, last))
            low[frame] = bounds[first]
            extent[frame] = float(bounds[last]) - float(bounds[first])
        return low, extent

    def ssim(self, low: _Floats, extent: _Floats) -> _Floats:
        """Structural similarity, the mean over windows of counted pixels; with equal weights, in units of the range."""
        sizes = [min(_WINDOW, size) for size in self.original.shape[1:]]
        windows, total = np.zeros((2, len(self.changed)))
        for block in self.blocks(after=_WINDOW - 1):
            unit = extent[block.frames].reshape(-1, *(1,) * (block.original.ndim - 1))
            base = low[block.frames].reshape(unit.shape)
            # Values above the base keep their digits; the error is small beside them.
            x, e = np.where(block.counted, block.original - base, 0) / unit, block.error / unit
            full = _windows(block.counted.astype(np.float64), sizes) == 1
            mx, me, xx, xe, ee = (_windows(a, sizes) for a in (x, e, x * x, x * e, e * e))
            vx, cxe, ve = xx - mx * mx, xe - mx * me, ee - me * me
            mx += base / unit
            my, vy, cxy = mx + me, vx + 2 * cxe + ve, vx + cxe
            similar = (2 * mx * my + _K1**2) * (2 * cxy + _K2**2)
            similar /= (mx * mx + my * my + _K1**2) * (vx + vy + _K2**2)
            windows[block.frames] += _sums(full)
            total[block.frames] += _sums(np.where(full, similar, 0))
        return total / windows

    def ks(self) -> _Floats:
        """Kolmogorov-Smirnov distance of the distributions of values."""
        distance = np.zeros(len(self.changed))
        pairs = zip(self.counted_values(self.original), self.counted_values(self.decoded), strict=True)
        for (frame, before), (_, after) in pairs:
            before.sort()
            after.sort()
            for values in (before, after):
                last = np.append(values[1:] != values[:-1], True)
                for some in np.split(values[last], range(_PIXELS, np.count_nonzero(last), _PIXELS)):
                    apart = before.searchsorted(some, "right") - after.searchsorted(some, "right")
                    distance[frame] = max(distance[frame], float(np.abs(apart).max()) / len(before))
        return distance

    def counted_values(self, frames: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
        """For each changed frame its number, and of `frames` the pixels that count, one axis."""
        for frame in np.flatnonzero(self.changed):
            counted = self.valid[frame]
            if self.original.dtype.kind == "f":
                counted = counted & np.isfinite(self.original[frame])
            yield int(frame), frames[frame][counted]


def _difference(original: NDArray[Any], decoded: NDArray[Any]) -> _Floats:
    """Decoded - original in double precision, right to its last digit also for integers of 64 bits."""
    if original.dtype.kind == "f" or original.dtype.itemsize < 8:
        return np.asarray(np.subtract(decoded, original, dtype=np.float64))
    bits, changed_bits = original.view(np.uint64), decoded.view(np.uint64)
    larger = decoded > original
    # Modulo 2^64 the larger less the smaller is exact, signed or not.
    apart = np.where(larger, changed_bits - bits, bits - changed_bits).astype(np.float64)
    return np.asarray(np.where(larger, apart, -apart))


def _violations(
    original: NDArray[Any], decoded: NDArray[Any], valid: _Flags, counted: _Flags, still_valid: _Flags | None
) -> _Flags:
    """True where a pixel that does not count changed, or one that does became none."""
    bits = np.dtype(f"u{original.dtype.itemsize}")
    wrong = np.zeros(original.shape, np.bool_)
    if not valid.all():
        wrong |= ~valid & (original.view(bits) != decoded.view(bits))
    if original.dtype.kind == "f":
        wrong |= counted & ~np.isfinite(decoded)
        wrong |= valid & ~counted & (original != decoded) & ~(np.isnan(original) & np.isnan(decoded))
    if still_valid is not None:
        wrong |= counted & ~still_valid
    return wrong


def _sums(a: NDArray[Any], b: NDArray[Any] | None = None) -> _Floats:
    """The sum over each frame, of `a` or of a product, shape (n,)."""
    flat = a.reshape(len(a), -1)
    if b is not None:
        return np.asarray(np.einsum("ij,ij->i", flat, b.reshape(len(b), -1)))
    return np.asarray(flat.sum(axis=1), np.float64) if a.dtype.kind == "f" else np.count_nonzero(flat, axis=1) * 1.0


def _raise_to(largest: _Floats, values: _Floats) -> None:
    """Raise the largest size of each frame to that of `values`; NaN stays."""
    flat = values.reshape(len(values), -1)
    np.maximum(largest, np.maximum(flat.max(axis=1, initial=0), -flat.min(axis=1, initial=0)), out=largest)


def _centred(values: _Floats, mean: _Floats, counted: _Flags) -> _Floats:
    """Values less the mean of their frame; 0 where nothing counts."""
    return np.where(counted, values - mean.reshape(-1, *(1,) * (values.ndim - 1)), 0)


def _surroundings(values: _Floats, counted: _Flags, reach: int) -> tuple[_Floats, _Floats]:
    """Means over the counted pixels around each pixel: with itself, and without; NaN where there are none."""
    total, number = values, counted.view(np.uint8)
    for axis in range(1, values.ndim):
        total, number = _spread(total, axis, reach), _spread(number, axis, reach)
    return total / number, (total - values) / (number - counted)


def _spread(values: NDArray[Any], axis: int, reach: int) -> NDArray[Any]:
    """The sum over each pixel and its neighbours on both sides along one axis."""
    spread = values.copy()
    for lag in range(1, reach + 1):
        start, end = ((slice(None),) * axis + (cut,) for cut in (slice(lag, None), slice(-lag)))
        spread[start] += values[end]
        spread[end] += values[start]
    return spread


def _windows(values: _Floats, sizes: list[int]) -> _Floats:
    """Means over all windows of that extent along each axis of a frame."""
    for axis, size in enumerate(sizes, start=1):
        end = max(values.shape[axis] - size + 1, 0)
        parts = (values[(slice(None),) * axis + (slice(lag, end + lag),)] for lag in range(size))
        values = sum(parts, np.zeros(())) / size
    return values


def _mean_error(moments: _Floats) -> tuple[_Floats, _Floats]:
    """Mean and standard error, from number, sum and sum of squares."""
    number, total, squares = moments
    mean = np.where(number > 0, total / number, 0)
    return mean, np.sqrt(np.maximum(squares / number - mean * mean, _ROUNDING) / number)


def _signal_correlation(moments: _Floats) -> tuple[_Floats, _Floats]:
    """Correlation of an error of mean 0 with a signal, and its standard error, which knows rare and large products."""
    number, total, squares, power, products, weighted, squared_products = moments
    # Divided by sigma, a signal has a mean again: that of dark pixels weighs more.
    mean = total / number
    scale = np.sqrt(power * (squares - total * mean))
    spread = np.sqrt(np.maximum(squared_products - 2 * mean * weighted + mean * mean * power, 0))
    return np.where(scale > 0, products / scale, 0), np.where(scale > 0, spread / scale, 0)


def _autocorrelation(moments: _Floats) -> tuple[_Floats, _Floats]:
    """Autocorrelation and its standard error likewise; no number for a constant error."""
    power, products, squared_products = moments
    return products / power, np.sqrt(squared_products) / power
