"""Summation integration: a peak at every pixel of a frame, as if there were one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.analysis import Peaks
from tuner.measure.analyses.scan import library

#: Pixels that far above the background, in sigma, are no background.
_OUTLIER = 4.0

_Array = NDArray[np.float64]
_Flags = NDArray[np.bool_]


#: Rows that are integrated at once, so that what lies between two operations stays in the cache.
_ROWS = 128


@dataclass(frozen=True, slots=True)
class Integrated:
    """A peak at every pixel of some rows, as if there were one."""

    intensity: _Array
    """Counts in the box above the background."""
    sigma: _Array
    """Its standard deviation."""
    whole: _Flags
    """True where all of the box counts, and there is enough around it."""
    rank: _Array
    """The intensity with what is in the middle of the box counted more: largest in the middle of a peak."""
    tops: _Flags
    """True where the rank is the largest within a box."""

    def found(self, low: float, high: float = np.inf) -> _Flags:
        """The peaks with an I/sigma of `low` to below `high`."""
        return self.tops & (self.intensity >= low * self.sigma) & (self.intensity < high * self.sigma)


@dataclass(frozen=True, slots=True)
class Window:
    """Some rows of a frame with those around that their integration needs."""

    outer: slice
    """All of these rows."""
    inner: slice
    """Which of the outer rows they are themselves."""
    valid: _Flags
    """True where a pixel counts."""
    pixels: _Array
    """Valid pixels in the square around each pixel, at least 1."""
    whole: _Flags
    """True where all pixels of the box count."""


class Windows:
    """The windows of frames, kept as long as the same pixels count."""

    def __init__(self, analysis: Peaks) -> None:
        self._analysis = analysis
        self._valid = np.empty(0, np.bool_)
        self._windows: list[Window] = []

    def of(self, valid: _Flags) -> list[Window]:
        """Those of a frame in which these pixels count."""
        if not np.array_equal(valid, self._valid):
            self._valid = valid
            self._windows = [self._window(start) for start in range(0, len(valid), _ROWS)]
        return self._windows

    def _window(self, start: int) -> Window:
        box, background = self._analysis.box, self._analysis.background
        around = 2 * (background // 2) + box // 2 + 1
        stop = min(start + _ROWS, len(self._valid))
        outer = slice(max(0, start - around), stop + around)
        inside = self._valid[outer].astype(np.float64)
        return Window(
            outer=outer,
            inner=slice(start - outer.start, stop - outer.start),
            valid=self._valid[outer],
            pixels=np.maximum(np.rint(_total(inside, background)), 1),
            whole=np.rint(_total(inside, box)) == box**2,
        )


def _total(values: _Array, extent: int) -> _Array:
    """Sums over squares of `extent` pixels, same shape."""
    with library("peaks"):
        from scipy import ndimage
    return np.asarray(ndimage.uniform_filter(values, extent, mode="constant") * extent**2)


def _largest(values: _Array, extent: int) -> _Array:
    """The largest over squares of `extent` pixels, odd, same shape."""
    for _ in range(2):  # along rows, then along columns
        reach, length = extent // 2, 1
        runs = np.pad(values, ((reach, reach), (0, 0)), constant_values=-np.inf)
        while length < extent:
            step = min(length, extent - length)
            runs = np.maximum(runs[:-step], runs[step:])
            length += step
        values = runs.T
    return values


def integrate(analysis: Peaks, rows: NDArray[Any], variance: _Array, window: Window) -> Integrated:
    """Some rows of a frame, with the variance of their pixels, shape (rows, columns)."""

    def ring(values: _Array) -> _Array:
        return _total(values, analysis.background) - _total(values, analysis.box)

    valid = window.valid
    counts, variance = np.where(valid, rows, 0).astype(np.float64), np.where(valid, variance, 0.0)
    # Of photon counts both are the same, and so are all sums of them.
    alike = np.array_equal(counts, variance)
    mean = _total(counts, analysis.background) / window.pixels
    spread = mean if alike else _total(variance, analysis.background) / window.pixels
    quiet = valid & (counts <= mean + _OUTLIER * np.sqrt(np.maximum(spread, 1e-12)))
    around = np.rint(ring(quiet.astype(np.float64)))
    enough = np.maximum(around, 1)
    background = ring(np.where(quiet, counts, 0.0)) / enough
    background_variance = background if alike else ring(np.where(quiet, variance, 0.0)) / enough
    box = analysis.box**2
    summed = _total(counts, analysis.box)
    intensity = summed - box * background
    noise = summed if alike else _total(variance, analysis.box)
    sigma = np.sqrt(np.maximum(noise + box**2 * background_variance / enough, 1e-12))
    whole = window.whole & (around >= box)
    # Which of the boxes that hold a sharp peak is its own would else be up to the background, or to rounding.
    rank = intensity + _total(_total(counts, 3), 3) / 9
    return Integrated(intensity, sigma, whole, rank, tops_of(rank, whole, analysis.box))


def tops_of(rank: _Array, whole: _Flags, box: int) -> _Flags:
    """True where a rank is the largest within a box, of those that are `whole`; same shape."""
    return np.asarray(whole & (rank == _largest(np.where(whole, rank, -np.inf), box)))
