"""Bragg peaks before and after: found, matched, and integrated by summation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.analysis import Peaks
from tuner.errors import InputError
from tuner.measure.analyses.scan import Measured, Scan, draws, library

#: I/sigma of the weak peaks.
_WEAK = (1.0, 3.0)

#: Pixels that far above the background, in sigma, are no background.
_OUTLIER = 4.0

_Array = NDArray[np.float64]
_Flags = NDArray[np.bool_]


#: Rows that are integrated at once, so that what lies between two operations stays in the cache.
_ROWS = 128


@dataclass(frozen=True, slots=True)
class _Integrated:
    """A peak at every pixel of some rows, as if there were one."""

    intensity: _Array
    """Counts in the box above the background."""
    sigma: _Array
    """Its standard deviation."""
    tops: _Flags
    """True where the intensity is the largest within a box."""

    def found(self, low: float, high: float = np.inf) -> _Flags:
        """The peaks with an I/sigma of `low` to below `high`."""
        return self.tops & (self.intensity >= low * self.sigma) & (self.intensity < high * self.sigma)


def compare_peaks(analysis: Peaks, scan: Scan) -> dict[str, Measured]:
    """The figures of `Peaks`, over all frames of a scan.

    Intensity is the sum over a box less the mean of the square ring around it, its variance that of the box plus that
    of the background in it (summation integration; Leslie, Acta Cryst. D62, 48, 2006, eq. 6). Outliers are left out of
    the ring. A peak is a pixel whose intensity is the largest within a box and `strong` times its sigma. Boxes with a
    pixel that does not count are none. Weak ones are found in the frames before alone, by their own noise too, and
    integrated at the same place after, as programs do that predict where reflections are.

    Raises
    ------
    InputError
        Where scipy is not installed, frames are no images, the noise is not known, or there are no peaks.
    """
    if len(scan.stack.frame_shape) != 2:
        raise InputError(f"{scan.stack.name}: frames must be images for peaks, got {scan.stack.frame_shape}")
    rows = []
    windows, shells = _Windows(analysis), _Shells.of(analysis, scan)
    for pair in scan.pairs():
        for original, decoded, valid in zip(pair.original, pair.decoded, pair.valid, strict=True):
            rows.append(_frame(analysis, scan, original, decoded, windows.of(valid), shells))
    sums = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    if not sums["before"].sum():
        raise InputError(
            f"{scan.stack.name}: must have peaks of I/sigma {analysis.strong:g} for analysis {analysis.name},"
            f" got none in {len(rows)} frames"
        )
    value = _figures({key: one.sum(axis=0)[None] for key, one in sums.items()})
    weights = draws(len(rows))
    drawn = _figures({key: len(rows) * np.tensordot(weights, one, 1) for key, one in sums.items()})
    return {name: Measured.of(float(value[name][0]), _defined(drawn[name], value[name][0])) for name in value}


def _defined(drawn: _Array, value: float) -> _Array:
    """Draws without a single peak say nothing."""
    return np.where(np.isfinite(drawn), drawn, value)


@dataclass(frozen=True, slots=True)
class _Window:
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


class _Windows:
    """The windows of frames, kept as long as the same pixels count."""

    def __init__(self, analysis: Peaks) -> None:
        self._analysis = analysis
        self._valid = np.empty(0, np.bool_)
        self._windows: list[_Window] = []

    def of(self, valid: _Flags) -> list[_Window]:
        """Those of a frame in which these pixels count."""
        if not np.array_equal(valid, self._valid):
            self._valid = valid
            self._windows = [self._window(start) for start in range(0, len(valid), _ROWS)]
        return self._windows

    def _window(self, start: int) -> _Window:
        box, background = self._analysis.box, self._analysis.background
        around = 2 * (background // 2) + box // 2 + 1
        stop = min(start + _ROWS, len(self._valid))
        outer = slice(max(0, start - around), stop + around)
        inside = self._valid[outer].astype(np.float64)
        return _Window(
            outer=outer,
            inner=slice(start - outer.start, stop - outer.start),
            valid=self._valid[outer],
            pixels=np.maximum(np.rint(_total(inside, background)), 1),
            whole=np.rint(_total(inside, box)) == box**2,
        )


def _frame(
    analysis: Peaks,
    scan: Scan,
    original: NDArray[Any],
    decoded: NDArray[Any],
    windows: list[_Window],
    shells: _Shells | None,
) -> dict[str, _Array]:
    """What is summed over frames."""
    sums: dict[str, _Array] = {}
    for window in windows:
        before, after = (
            _integrate(analysis, frame[window.outer], scan.variance(frame[window.outer]), window)
            for frame in (original, decoded)
        )
        for key, value in _rows(analysis, before, after, window, shells).items():
            sums[key] = sums.get(key, 0.0) + np.asarray(value, np.float64)
    return sums


@dataclass(frozen=True, slots=True)
class _Shells:
    """Rings of equal area around the beam."""

    centre: tuple[float, float]
    """Row and column of the beam."""
    reach: float
    """The square of the largest distance from it that a frame has, in pixels."""
    number: int
    """How many."""

    @classmethod
    def of(cls, analysis: Peaks, scan: Scan) -> _Shells | None:
        """Those of an analysis; None where the centre is not known."""
        row, column = scan.declared("beam_center_y"), scan.declared("beam_center_x")
        if analysis.centre is None and (row is None or column is None):
            return None
        centre = analysis.centre or (float(row[0]), float(column[0]))  # type: ignore[index]
        furthest = (max(at, extent - at) for at, extent in zip(centre, scan.stack.frame_shape, strict=True))
        return cls(centre, sum(one**2 for one in furthest), analysis.shells)

    def moments(self, places: NDArray[np.intp], x: _Array, y: _Array) -> _Array:
        """Those of intensities before and after at places (row, column) of a frame, shape (shells, 6)."""
        distance = sum((at + 0.5 - of) ** 2 for at, of in zip(places, self.centre, strict=True))
        shell = np.minimum(distance / self.reach * self.number, self.number - 1).astype(np.intp)
        weights = (np.ones_like(x), x, y, x * x, y * y, x * y)
        return np.stack([np.bincount(shell, each, self.number) for each in weights], axis=1)


def _rows(
    analysis: Peaks, before: _Integrated, after: _Integrated, window: _Window, shells: _Shells | None
) -> dict[str, Any]:
    """What is summed over rows, of the inner ones."""
    inner = window.inner
    found, again, weak = before.found(analysis.strong), after.found(analysis.strong), before.found(*_WEAK)
    recalled, real = _beside(found, again, inner), _beside(again, found, inner)
    places = [np.nonzero(flags[inner]) for flags in (found, weak)]
    (strong, strong_after, strong_sigma), (dim, dim_after, dim_sigma) = (
        (before.intensity[inner][at], after.intensity[inner][at], before.sigma[inner][at]) for at in places
    )
    by_shell = {}
    if shells is not None:
        where = np.concatenate(places, axis=1)
        where[0] += window.outer.start + inner.start
        sides = np.concatenate([strong, dim]), np.concatenate([strong_after, dim_after])
        by_shell = {"shells": shells.moments(where, *sides)}
    change = (((strong_after - strong) / strong_sigma) ** 2).sum() + (((dim_after - dim) / dim_sigma) ** 2).sum()
    return {
        "before": strong.size,
        "after": np.count_nonzero(again[inner]),
        "recalled": recalled,
        "real": real,
        "weak": dim.size,
        "weak_kept": np.count_nonzero(dim_after >= dim / 2),
        "squares": change,
        "strong_moments": _moments(strong, strong_after),
        "weak_moments": _moments(dim, dim_after),
        **by_shell,
    }


def _moments(x: _Array, y: _Array) -> list[float]:
    return [float(v) for v in (x.size, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum())]


@np.errstate(divide="ignore", invalid="ignore")
def _figures(sums: dict[str, _Array]) -> dict[str, _Array]:
    """The figures from sums over frames, each of shape (draws,) or (draws, moments)."""
    strong, weak = sums["strong_moments"], sums["weak_moments"]
    by_shell = {}
    if "shells" in sums:
        shells = sums["shells"]
        scale = np.where(shells[..., 1] > 0, np.abs(shells[..., 2] / shells[..., 1] - 1), 0.0)
        by_shell = {"shell_cc": _correlation(shells).min(axis=1), "shell_scale_percent": 100 * scale.max(axis=1)}
    return {
        "recall": sums["recalled"] / sums["before"],
        # Where nothing is left, nothing of it is real.
        "precision": np.where(sums["after"] > 0, sums["real"] / sums["after"], 0.0),
        "cc": _correlation(strong),
        "scale_percent": 100 * np.abs(strong[:, 2] / strong[:, 1] - 1),
        "weak_recall": sums["weak_kept"] / sums["weak"],
        "weak_cc": _correlation(weak),
        "weak_scale_percent": 100 * np.abs(weak[:, 2] / weak[:, 1] - 1),
        "rms_sigma": np.sqrt(sums["squares"] / (sums["before"] + sums["weak"])),
        **by_shell,
    }


def _correlation(moments: _Array) -> _Array:
    """Pearson's, from sums; 0 where one side is constant, 1 where both are the same."""
    n, x, y, xx, yy, xy = np.moveaxis(moments, -1, 0)
    cov, var_x, var_y = n * xy - x * y, n * xx - x * x, n * yy - y * y
    spread = np.sqrt(np.maximum(var_x, 0) * np.maximum(var_y, 0))
    same = (x == y) & (xx == yy) & (xx == xy)
    return np.asarray(np.where(same, 1.0, np.where(spread > 0, cov / spread, 0.0)))


def _beside(flags: _Flags, others: _Flags, inner: slice) -> int:
    """How many flags of the inner rows have another within a pixel."""
    rows, columns = np.nonzero(flags[inner])
    padded = np.pad(others, 1)
    shifts = [(row, column) for row in range(3) for column in range(3)]
    return int(np.any([padded[rows + inner.start + r, columns + c] for r, c in shifts], axis=0).sum())


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


def _integrate(analysis: Peaks, rows: NDArray[Any], variance: _Array, window: _Window) -> _Integrated:
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
    tops = whole & (intensity == _largest(np.where(whole, intensity, -np.inf), analysis.box))
    return _Integrated(intensity, sigma, tops)
