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


@dataclass(frozen=True, slots=True)
class _Integrated:
    """A peak at every pixel of a frame, as if there were one."""

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
    for pair in scan.pairs():
        for original, decoded, valid in zip(pair.original, pair.decoded, pair.valid, strict=True):
            before = _integrate(analysis, original, scan.variance(original), valid)
            after = _integrate(analysis, decoded, scan.variance(decoded), valid)
            rows.append(_frame(analysis, before, after))
    sums = {key: np.array([row[key] for row in rows], np.float64) for key in rows[0]}
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


def _frame(analysis: Peaks, before: _Integrated, after: _Integrated) -> dict[str, Any]:
    """What is summed over frames."""
    found, again = before.found(analysis.strong), after.found(analysis.strong)
    weak = before.found(*_WEAK)
    kept = after.intensity[weak] >= before.intensity[weak] / 2
    change = [((after.intensity[at] - before.intensity[at]) / before.sigma[at]) ** 2 for at in (found, weak)]
    return {
        "before": np.count_nonzero(found),
        "after": np.count_nonzero(again),
        "recalled": np.count_nonzero(found & _near(again)),
        "real": np.count_nonzero(again & _near(found)),
        "weak": np.count_nonzero(weak),
        "weak_kept": np.count_nonzero(kept),
        "squares": change[0].sum() + change[1].sum(),
        "strong_moments": _moments(before.intensity[found], after.intensity[found]),
        "weak_moments": _moments(before.intensity[weak], after.intensity[weak]),
    }


def _moments(x: _Array, y: _Array) -> list[float]:
    return [float(v) for v in (x.size, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum())]


@np.errstate(divide="ignore", invalid="ignore")
def _figures(sums: dict[str, _Array]) -> dict[str, _Array]:
    """The figures from sums over frames, each of shape (draws,) or (draws, moments)."""
    strong, weak = sums["strong_moments"], sums["weak_moments"]
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
    }


def _correlation(moments: _Array) -> _Array:
    """Pearson's, from sums; 0 where one side is constant, 1 where both are the same."""
    n, x, y, xx, yy, xy = moments.T
    cov, var_x, var_y = n * xy - x * y, n * xx - x * x, n * yy - y * y
    spread = np.sqrt(np.maximum(var_x, 0) * np.maximum(var_y, 0))
    same = (x == y) & (xx == yy) & (xx == xy)
    return np.asarray(np.where(same, 1.0, np.where(spread > 0, cov / spread, 0.0)))


def _near(flags: _Flags) -> _Flags:
    """True within a pixel of a flag."""
    with library("peaks"):
        from scipy import ndimage
    return np.asarray(ndimage.binary_dilation(flags, np.ones((3, 3), np.bool_)))


def _integrate(analysis: Peaks, frame: NDArray[Any], variance: _Array, valid: _Flags) -> _Integrated:
    with library("peaks"):
        from scipy import ndimage

    def total(values: _Array, extent: int) -> _Array:
        return np.asarray(ndimage.uniform_filter(values, extent, mode="constant") * extent**2)

    def ring(values: _Array) -> _Array:
        return total(values, analysis.background) - total(values, analysis.box)

    counts, variance = np.where(valid, frame, 0).astype(np.float64), np.where(valid, variance, 0.0)
    inside = valid.astype(np.float64)
    pixels = np.maximum(np.rint(total(inside, analysis.background)), 1)
    mean, spread = (total(values, analysis.background) / pixels for values in (counts, variance))
    quiet = valid & (counts <= mean + _OUTLIER * np.sqrt(np.maximum(spread, 1e-12)))
    around = np.rint(ring(quiet.astype(np.float64)))
    enough = np.maximum(around, 1)
    background = ring(np.where(quiet, counts, 0.0)) / enough
    background_variance = ring(np.where(quiet, variance, 0.0)) / enough
    box = analysis.box**2
    intensity = total(counts, analysis.box) - box * background
    sigma = np.sqrt(np.maximum(total(variance, analysis.box) + box**2 * background_variance / enough, 1e-12))
    whole = np.rint(total(inside, analysis.box)) == box
    whole &= around >= box
    tops = whole & (intensity == ndimage.maximum_filter(np.where(whole, intensity, -np.inf), analysis.box))
    return _Integrated(intensity, sigma, tops)
