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

    Error bars are those of the profile before, from the variance of its pixels without rounding it up. A bin in which
    nothing was counted has the error bar of one count, in a frame as in the mean of all. A bin of which no pixel counts
    in a frame is left out of it. What came back as no number breaks every limit.

    The longest run of equal signs and its probability are those of CorMap (Franke, Jeffries & Svergun, Nature Methods
    12, 419, 2015), by freesas, over the bins that changed.

    Raises
    ------
    InputError
        Where pyFAI is not installed, the geometry is not known or not of such frames, the noise is not known, or no
        pixel counts.
    """
    integrate = _integrator(analysis, scan)
    one = scan.pixels.noise.gain if scan.pixels.noise is not None else 1.0
    found = []
    for pair in scan.pairs():
        for original, decoded, valid in zip(pair.original, pair.decoded, pair.valid, strict=True):
            variance = scan.variance(original)
            profile, sigma, norm = integrate(original, variance, valid)
            after = integrate(decoded, variance, valid)[0]
            if not np.isfinite(decoded[valid]).all():  # pyFAI would leave such pixels out
                after = np.full_like(after, np.nan)
            # A count in the pixels of the bin; a bin without pixels has none.
            least = np.divide(one, norm, out=np.full_like(norm, np.nan), where=norm > 0)
            found.append((profile, after - profile, sigma**2, least))
    profiles, shift, variances, leasts = (np.stack(values) for values in zip(*found, strict=True))
    counted = np.isfinite(profiles) & np.isfinite(variances) & np.isfinite(leasts)
    if not counted.any():
        raise InputError(f"{scan.stack.name}: must have pixels that count for analysis {analysis.name}, got none")
    in_bars = np.where(counted, shift / np.sqrt(np.maximum(variances, leasts**2)), 0.0)
    seen = counted.any(axis=0)
    profiles, shift, variances, leasts = (
        np.where(counted, values, 0.0)[:, seen] for values in (profiles, shift, variances, leasts)
    )
    frames = len(profiles)

    @np.errstate(divide="ignore", invalid="ignore")
    def of_scan(weights: _Array) -> dict[str, _Array]:
        # Bins are means over the frames in which they count, which are some share of all.
        share = weights @ counted[:, seen]
        mean, change, least = (weights @ values / share for values in (profiles, shift, leasts))
        sigma = np.maximum(np.sqrt(weights @ variances / frames) / share, least / (frames * share))
        bars = np.where(share > 0, np.abs(change) / sigma, 0.0)
        percent = np.where(np.abs(mean) >= KNOWN * sigma, np.abs(change) / np.abs(mean), 0.0)
        return {
            "scan_chi2": (bars**2).mean(axis=1),
            "scan_error_bars": bars.max(axis=1),
            "scan_percent": 100 * percent.max(axis=1),
            "scan_run_p": np.array([_run_probability(one[some]) for one, some in zip(change, share > 0, strict=True)]),
        }

    value = of_scan(np.full((1, frames), 1 / frames))
    drawn = of_scan(draws(frames))
    return {
        "frame_chi2": Measured.exactly(((in_bars**2).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)).max()),
        "frame_error_bars": Measured.exactly(np.abs(in_bars).max()),
        **{name: Measured.of(float(value[name][0]), drawn[name], frames) for name in value if name != "scan_run_p"},
        "scan_run_p": Measured.exactly(value["scan_run_p"][0]),
    }


def _run_probability(change: _Array) -> float:
    """How often a fair coin has a run as long; 1 where nothing, or too little to toss, changed."""
    with library("radial_profile"):
        from freesas import cormap

    if not np.isfinite(change).all():
        return 0.0
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
        try:
            geometry, unit = load(analysis.poni), "q_nm^-1"
        except Exception as error:  # whatever pyFAI meets in what is no such file
            raise InputError(f"{analysis.poni}: must be a poni file of pyFAI: {error}".splitlines()[0]) from None
        if not geometry.wavelength:
            raise InputError(f"{analysis.poni}: must tell the wavelength for q, got none")
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
        # Bins are the same in all frames, as what counts in some only is no mask: pyFAI leaves out what is no number.
        found = geometry.integrate1d(
            np.where(valid, frame, np.nan).astype(np.float64),
            analysis.bins,
            unit=unit,
            variance=np.where(valid, variance, 0.0),
            mask=scan.pixels.mask,
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
