"""Contrast of speckles before and after, ring by ring."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.analysis import Contrast
from tuner.errors import InputError
from tuner.measure.analyses.rings import SECTORS, Rings, Told, measured, ratio, rings_of, worst
from tuner.measure.analyses.scan import Measured, Scan, draws

_Array = NDArray[np.float64]

#: How often a mean of light is in each of the sums: pixels, light, its squares, variance.
_POWERS = np.array([0, 1, 2, 2])[:, None, None]


def compare_contrasts(analysis: Contrast, scan: Scan) -> dict[str, Measured]:
    """The figures of `Contrast`: of each ring, over all frames of a scan.

    The contrast of a ring is the variance of its pixels over the square of their mean, less what noise makes of it:
    ``var / mean^2 - 1 / mean`` for photon counts, which is 1 / modes of the light (Goodman, Speckle Phenomena in
    Optics, 2007, sec. 4.5; Hruszkewycz et al., Phys. Rev. Lett. 109, 185502, 2012). Pixels are taken over the mean of
    their ring in their frame, so that neither the fall-off from ring to ring nor a beam that flickers counts. The noise
    is that of the detector before and after: what a step adds shows as contrast.

    The error bar is the spread over sectors of the ring, drawn again.

    Raises
    ------
    InputError
        Where frames are no images, the centre or the noise is not known, or nothing was counted.
    """
    rings = rings_of(analysis, scan)
    before, after = np.zeros((2, 4, rings.rings, SECTORS))
    for pair in scan.pairs():
        for original, decoded, valid in zip(pair.original, pair.decoded, pair.valid, strict=True):
            counted = rings.of(valid)
            sums = [_sums(rings, scan, frame, counted) for frame in (original, decoded)]
            # Over the mean of the ring before, on both sides, so that light that was lost in a frame shows.
            mean = ratio(sums[0][1].sum(axis=1), sums[0][0].sum(axis=1))
            before += _over(sums[0], mean)
            after += _over(sums[1], mean)
    first, second = (_contrast(moments) for moments in (before, after))
    seen = [Told.of(first[:, ring], second[:, ring]) for ring in np.flatnonzero(np.isfinite(first[0]))]
    if not seen:
        raise InputError(f"{scan.stack.name}: must have light in a ring for analysis {analysis.name}, got none")
    return {
        "error_bars": measured(worst([one.error_bars for one in seen])),
        "percent": measured(worst([one.percent for one in seen])),
        "shift": measured(worst([one.change for one in seen])),
    }


def _sums(rings: Rings, scan: Scan, frame: NDArray[Any], counted: _Array) -> _Array:
    """Of each sector the pixels, their light, its squares and the variance of the noise, shape (4, rings, SECTORS)."""
    pixels = np.where(counted > 0, rings.of(frame), 0.0)
    noise = scan.pixels.noise
    light = np.where(counted > 0, pixels - (noise.offset if noise is not None else 0.0), 0.0)
    variance = np.where(counted > 0, scan.variance(pixels), 0.0)
    return np.stack([rings.sums(values) for values in (counted, light, light * light, variance)])


def _over(sums: _Array, mean: _Array) -> _Array:
    """Sums of pixels over the mean of their ring, same shape; 0 where that is dark."""
    lit = np.where(mean > 0, mean, np.inf)[:, None]
    return np.where(mean[:, None] > 0, sums / lit**_POWERS, 0.0)


def _contrast(moments: _Array) -> _Array:
    """Of all sectors and of each draw of them, shape (1 + draws, rings); NaN where nothing was counted."""
    weights = np.concatenate([np.ones((1, SECTORS)), draws(SECTORS) * SECTORS])
    pixels, light, squares, variance = np.moveaxis(moments @ weights.T, -1, 1)
    mean = ratio(light, pixels)
    return ratio(ratio(squares - variance, pixels) - mean**2, mean**2)
