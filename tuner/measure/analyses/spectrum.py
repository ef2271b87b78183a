"""Areas of fluorescence lines before and after, fitted by PyMca."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.analysis import Spectrum
from tuner.errors import InputError
from tuner.measure.analyses.scan import KNOWN, Measured, Scan, draws, library

#: Fano factor of silicon, and the width that it gives a line at 5.9 keV, in keV (X-ray Data Booklet, section 4.5).
_FANO, _FANO_FWHM = 0.115, 2.355 * (0.115 * 0.00366 * 5.9) ** 0.5

#: Channels from 1 keV to the beam's energy, at least: fewer are none of a spectrum in keV.
_FEWEST = 16

#: Channels of which the response is asked at once, as each takes a spectrum.
_AT_ONCE = 512

_Array = NDArray[np.float64]


def compare_spectra(analysis: Spectrum, scan: Scan) -> dict[str, Measured]:
    """The figures of `Spectrum`: of every spectrum of a scan by itself, and of their sum.

    Areas are those of PyMca's linear fit (Solé et al., Spectrochim. Acta B 62, 63, 2007), all channels weighted alike:
    K lines below the beam's energy, L lines of elements whose K edge is above it, and scatter, over a SNIP background.
    The error bar of a line in the sum is what the noise of the channels makes of its area, with the background as it
    is, one count at least; in one spectrum it is that of the mean spectrum, less by the square root of their number.
    Channels that do not count are 0.

    Raises
    ------
    InputError
        Where PyMca is not installed, frames are no spectra, the calibration or the noise is not known, an element has
        no line that can be seen, or no channel counts.
    """
    if len(scan.stack.frame_shape) != 1:
        raise InputError(f"{scan.stack.name}: frames must be spectra for spectrum, got {scan.stack.frame_shape}")
    configuration = _configuration(analysis, scan)
    pairs = list(scan.pairs())
    if not any(pair.valid.any() for pair in pairs):
        raise InputError(f"{scan.stack.name}: must have channels that count for analysis {analysis.name}, got none")
    before = np.concatenate([np.where(pair.valid, pair.original, 0) for pair in pairs]).astype(np.float64)
    after = np.concatenate([np.where(pair.valid, pair.decoded, 0) for pair in pairs]).astype(np.float64)
    variance = sum(np.where(pair.valid, scan.variance(pair.original), 0.0).sum(axis=0) for pair in pairs)
    one = scan.pixels.noise.gain if scan.pixels.noise is not None else 1.0
    spectra = len(before)
    weights = draws(spectra) * spectra
    sums = [np.concatenate([side.sum(axis=0)[None], weights @ side]) for side in (before, after)]
    first, second, sum_first, sum_second = (_fit(configuration, side) for side in (before, after, *sums))
    # Areas of single counts without a background: how far each channel moves each area, as the fit is linear.
    flat, channels = {**configuration, "fit": {**configuration["fit"], "stripflag": 0}}, before.shape[1]
    counts = (np.eye(min(_AT_ONCE, channels - at), channels, at) for at in range(0, channels, _AT_ONCE))
    response = np.concatenate([_fit(flat, some) for some in counts], axis=1)
    error = np.maximum(np.sqrt(response**2 @ variance), max(one, 1e-300))[:, None]
    moved = (second - first) / (error / spectra**0.5)
    change = np.abs(sum_second - sum_first)
    known = np.abs(sum_first) >= KNOWN * error
    percent = 100 * np.divide(change, np.abs(sum_first), out=np.zeros_like(change), where=known).max(axis=0)
    bars = (change / error).max(axis=0)
    return {
        "scan_percent": Measured.of(percent[0], percent[1:], spectra),
        "scan_error_bars": Measured.of(bars[0], bars[1:], spectra),
        "pixel_error_bars": Measured.exactly(np.abs(moved).max()),
        "pixel_rms_error_bars": Measured.exactly(np.sqrt((moved**2).mean(axis=1)).max()),
    }


def _fit(configuration: dict[str, Any], spectra: _Array) -> _Array:
    """Areas of the lines, shape (lines, spectra); below 0 too, as noise has it."""
    with library("spectrum"):
        from PyMca5.PyMcaPhysics.xrf.FastXRFLinearFit import FastXRFLinearFit

    found = FastXRFLinearFit().fitMultipleSpectra(
        x=np.arange(spectra.shape[1]),
        y=spectra[None],
        configuration=configuration,
        concentrations=False,
        weight=0,
        refit=False,
    )
    return np.asarray(found["parameters"], np.float64)[:, 0]


def _configuration(analysis: Spectrum, scan: Scan) -> dict[str, Any]:
    """PyMca's own, with our lines, calibration and resolution."""
    with library("spectrum"):
        from PyMca5.PyMcaPhysics.xrf import Elements
        from PyMca5.PyMcaPhysics.xrf.ClassMcaTheory import McaTheory

    zero, gain = analysis.calibration or _calibration(scan)
    channels = scan.stack.frame_shape[0]
    lowest = max(0, int((1.0 - zero) / gain)) if gain > 0 else channels
    highest = min(channels - 1, int((analysis.beam_kev - 0.4 - zero) / gain)) if gain > 0 else 0
    if highest - lowest < _FEWEST:
        raise InputError(f"{analysis.name}.calibration must reach from 1 keV up, got {zero:g} and {gain:g} a channel")
    low, high = zero + gain * lowest, zero + gain * highest
    lines = {}
    for element in analysis.elements:
        if element not in Elements.Element:
            raise InputError(f"{analysis.name}.elements must name elements such as Fe, got {element!r}")
        about = Elements.Element[element]
        shell, edge = ("K", "K") if about["binding"]["K"] < analysis.beam_kev else ("L", "L3")
        seen = any(low <= about[ray]["energy"] <= high for ray in about[f"{shell} xrays"])
        if not seen or about["binding"][edge] >= analysis.beam_kev:
            raise InputError(
                f"{analysis.name}.elements must have K or L lines from {low:.4g} to {high:.4g} keV that the beam"
                f" excites, got {element!r}"
            )
        lines[element] = [shell]
    configuration: dict[str, Any] = McaTheory().configure()
    configuration["peaks"] = lines
    configuration["fit"].update(
        energy=[analysis.beam_kev],
        energyweight=[1.0],
        energyflag=[1],
        energyscatter=[1],
        scatterflag=1,
        use_limit=1,
        xmin=lowest,
        xmax=highest,
        linearfitflag=1,
        stripflag=1,
        stripalgorithm=1,
        escapeflag=0,
        sumflag=0,
        hypermetflag=1,
    )
    electronic = max(analysis.fwhm_kev**2 - _FANO_FWHM**2, 1e-6) ** 0.5
    configuration["detector"].update(zero=zero, gain=gain, noise=electronic, fano=_FANO, sum=0.0)
    return configuration


def _calibration(scan: Scan) -> tuple[float, float]:
    """keV of channel 0 and of each further one, from the energy axis of the file."""
    axis = scan.declared("energy", "energies", size=scan.stack.frame_shape[0])
    if axis is None or not (np.diff(axis) > 0).all():
        raise InputError(f"{scan.stack.name}: has no energy axis: spectrum must be given calibration")
    # Energies above any X-ray's in keV are eV.
    scale = 1e-3 if axis[-1] > 500 else 1.0
    return float(axis[0]) * scale, float(axis[-1] - axis[0]) / (len(axis) - 1) * scale
