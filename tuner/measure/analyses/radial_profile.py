"""Azimuthal integration before and after, by pyFAI, and how far profiles moved in their error bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.analysis import RadialProfile
from tuner.errors import InputError
from tuner.measure.analyses.scan import KNOWN, Measured, Scan, draws, library
from tuner.steps.reduced import Reduced

#: Each pixel belongs to one bin, so that the errors of bins are independent.
_METHOD = ("no", "csr", "cython")

_Array = NDArray[np.float64]


def compare_profiles(analysis: RadialProfile, scan: Scan) -> dict[str, Measured]:
    """The figures of `RadialProfile`: of the worst frame, and of the mean of all frames.

    A frame's error bars are those of its profile before, from the variance of its pixels without rounding it up. A bin
    in which nothing was counted has the error bar of one count.

    The longest run of equal signs and its probability are those of CorMap (Franke, Jeffries & Svergun, Nature Methods
    12, 419, 2015), by freesas, over the bins that changed.

    Raises
    ------
    InputError
        Where pyFAI is not installed, the geometry is not known or not of such frames, or the noise is not known.
    """
    integrate = _integrator(analysis, scan)
    before, after, variances = [], [], []
    for pair in scan.pairs():
        for original, decoded, valid in zip(pair.original, pair.decoded, pair.valid, strict=True):
            variance = scan.variance(original)
            profile, sigma, norm = integrate(original, variance, valid)
            before.append(profile)
            after.append(integrate(decoded, variance, valid)[0])
            one = scan.pixels.noise.gain if scan.pixels.noise is not None else 1.0
            # At least one count in the pixels of the bin; a bin without pixels has no error bar.
            least = np.divide(one, norm, out=np.full_like(norm, np.nan), where=norm > 0)
            variances.append(np.maximum(sigma, least) ** 2)
    profiles, moved, variance = (np.stack(values) for values in (before, after, variances))
    counted = np.isfinite(profiles).all(axis=0) & np.isfinite(variance).all(axis=0)
    profiles, variance = profiles[:, counted], variance[:, counted]
    shift = moved[:, counted] - profiles
    in_bars = shift / np.sqrt(variance)

    @np.errstate(divide="ignore", invalid="ignore")
    def of_scan(weights: _Array) -> dict[str, _Array]:
        mean, change = weights @ profiles, weights @ shift
        sigma = np.sqrt(weights @ variance / len(profiles))
        bars = np.abs(change) / sigma
        known = np.abs(mean) >= KNOWN * sigma
        return {
            "scan_chi2": (bars**2).mean(axis=1),
            "scan_error_bars": bars.max(axis=1),
            "scan_percent": 100 * np.where(known, np.abs(change) / np.abs(mean), 0.0).max(axis=1),
            "scan_run_p": np.array([_run_probability(one) for one in change]),
        }

    value = of_scan(np.full((1, len(profiles)), 1 / len(profiles)))
    drawn = of_scan(draws(len(profiles)))
    return {
        "frame_chi2": Measured.exactly((in_bars**2).mean(axis=1).max()),
        "frame_error_bars": Measured.exactly(np.abs(in_bars).max()),
        **{name: Measured.of(float(value[name][0]), drawn[name]) for name in value if name != "scan_run_p"},
        "scan_run_p": Measured.exactly(value["scan_run_p"][0]),
    }


def _run_probability(change: _Array) -> float:
    """How often a fair coin has a run as long; 1 where nothing, or too little to toss, changed."""
    with library("radial_profile"):
        from freesas import cormap

    change = change[change != 0]
    return float(cormap.gof(np.zeros_like(change), change).P) if change.size > 1 else 1.0


def _integrator(analysis: RadialProfile, scan: Scan) -> Any:
    """A function from a frame, its variance and its valid pixels to profile, error bars and pixels of each bin."""
    if len(scan.stack.frame_shape) != 2:
        raise InputError(f"{scan.stack.name}: frames must be images for radial_profile, got {scan.stack.frame_shape}")
    with library("radial_profile"):
        from pyFAI import load
        from pyFAI.integrator.azimuthal import AzimuthalIntegrator
    if analysis.poni is not None:
        if not Path(analysis.poni).is_file():
            raise InputError(f"{analysis.poni}: no such file, which analysis {analysis.name} names as poni")
        geometry, unit = load(analysis.poni), "q_nm^-1"
        source = scan.stack.source
        wanted = source.original.frame_shape if isinstance(source, Reduced) else scan.stack.frame_shape
        shape = geometry.detector.shape
        if shape is not None and tuple(shape) != wanted:
            raise InputError(f"{analysis.poni}: must be of frames {wanted}, got {tuple(shape)}")
        if isinstance(source, Reduced):
            top, left = source.chain.corner
            geometry = AzimuthalIntegrator(
                dist=geometry.dist,
                poni1=geometry.poni1 - top * geometry.pixel1,
                poni2=geometry.poni2 - left * geometry.pixel2,
                rot1=geometry.rot1,
                rot2=geometry.rot2,
                rot3=geometry.rot3,
                pixel1=geometry.pixel1 * source.chain.binned,
                pixel2=geometry.pixel2 * source.chain.binned,
                wavelength=geometry.wavelength,
            )
    else:
        row, column = analysis.centre or _centre(scan)
        # A pixel of a millimetre, so that the distance from the centre is in pixels.
        geometry = AzimuthalIntegrator(dist=1.0, poni1=row * 1e-3, poni2=column * 1e-3, pixel1=1e-3, pixel2=1e-3)
        unit = "r_mm"

    def integrate(frame: NDArray[Any], variance: _Array, valid: NDArray[np.bool_]) -> tuple[_Array, _Array, _Array]:
        found = geometry.integrate1d(
            np.where(valid, frame, 0).astype(np.float64),
            analysis.bins,
            unit=unit,
            variance=np.where(valid, variance, 0.0),
            mask=~valid,
            method=_METHOD,
            correctSolidAngle=analysis.poni is not None,
            dummy=np.nan,
        )
        return np.asarray(found.intensity), np.asarray(found.sigma), np.asarray(found.sum_normalization)

    return integrate


def _centre(scan: Scan) -> tuple[float, float]:
    row, column = scan.declared("beam_center_y"), scan.declared("beam_center_x")
    if row is None or column is None:
        raise InputError(f"{scan.stack.name}: has no beam centre: radial_profile must be given centre or poni")
    return float(row[0]), float(column[0])
