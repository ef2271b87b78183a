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

#: How often the mean of the ring is put into each of the sums: pixels, light, its squares, variance, that of the mean.
_POWERS = np.array([2, 1, 0, 0, 0])[:, None, None]


def compare_contrasts(analysis: Contrast, scan: Scan) -> dict[str, Measured]:
    """The figures of `Contrast`: of each ring, over all frames of a scan.

    The contrast of a ring is the variance of its pixels over the square of their mean, less what noise makes of it:
    ``var / mean^2 - 1 / mean`` for photon counts, which is 1 / modes of the light (Goodman, Speckle Phenomena in
    Optics, 2007, sec. 4.5; Hruszkewycz et al., Phys. Rev. Lett. 109, 185502, 2012). Pixels are compared with the mean
    of their ring in their frame, so that neither the fall-off from ring to ring nor a beam that flickers counts; frames
    weigh as the square of that mean, and it is known as well as its pixels' noise allows, so that a ring may have less
    than a photon a frame. The noise is that of the detector before and after: what a step adds shows as contrast.

    The error bar is the spread over sectors of the ring, drawn again.

    Raises
    ------
    InputError
        Where frames are no images, the centre or the noise is not known, or nothing was counted.
    """
    rings = rings_of(analysis, scan)
    before, after = np.zeros((2, len(_POWERS), rings.rings, SECTORS))
    for pair in scan.pairs():
        for original, decoded, valid in zip(pair.original, pair.decoded, pair.valid, strict=True):
            counted = rings.of(valid)
            sums = [_sums(rings, scan, frame, counted) for frame in (original, decoded)]
            # By the mean of the ring before, on both sides, so that light that was lost in a frame shows.
            mean = sums[0][1].sum(axis=1) / np.maximum(sums[0][0].sum(axis=1), 1)
            before += sums[0] * mean[:, None] ** _POWERS
            after += sums[1] * mean[:, None] ** _POWERS
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
    """Of each sector the sums that `_POWERS` names, shape (5, rings, SECTORS)."""
    pixels = np.where(counted > 0, rings.of(frame), 0.0)
    noise = scan.pixels.noise
    light = np.where(counted > 0, pixels - (noise.offset if noise is not None else 0.0), 0.0)
    variance = np.where(counted > 0, scan.variance(pixels), 0.0)
    sums = [rings.sums(values) for values in (counted, light, light * light, variance)]
    of_mean = sums[3] / np.maximum(sums[0].sum(axis=1, keepdims=True), 1)
    return np.stack([*sums, of_mean])


def _contrast(moments: _Array) -> _Array:
    """Of all sectors and of each draw of them, shape (1 + draws, rings); NaN where too little was counted to tell."""
    weights = np.concatenate([np.ones((1, SECTORS)), draws(SECTORS) * SECTORS])
    pixels, light, squares, variance, of_mean = np.moveaxis(moments @ weights.T, -1, 1)
    mean, noise = ratio(light, pixels), ratio(of_mean, pixels)
    return ratio(ratio(squares - variance, pixels), mean**2 - noise) - 1
