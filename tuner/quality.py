"""Quality: what a change did to pixels, frame by frame, in plain numpy; `QUALITIES` states each metric.

Only *counted* pixels have an error: valid, and finite in the original. All others must come back as they were, bit for
bit (a NaN that is called valid: as a NaN), and no counted pixel may become NaN or infinite. Three rules, no exception:

- A frame whose counted pixels all came back, also one that has none, gets the `perfect` value of every metric.
- A frame with a mask violation gets the `broken` value of every metric.
- So does what has no value: an error over a range of 0, a sigma that is no number, a square beyond double precision.
  No limit is met for want of a number.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.document import suggest
from tuner.errors import InputError
from tuner.noise import Noise
from tuner.pair import Pair

_Flags = NDArray[np.bool_]

#: Logs take finite numbers only: frames that are alike have this PSNR, dB, and broken ones its negative.
_MOST_DB = 200.0


@dataclass(frozen=True, slots=True)
class Quality:
    """A number that says what a change did to pixels."""

    text: str
    """What it is, in a line."""
    formula: str
    """How it is computed; e = decoded - original over the N counted pixels of a frame."""
    unit: str
    """Its unit; ``1`` where it has none."""
    of: str
    """The unit of evaluation, that a limit holds or breaks for."""
    better: str
    """``smaller`` or ``larger``."""
    construction: bool
    """Whether a step may promise a bound on it for every frame there will be; else it holds by sample."""
    perfect: float = 0.0
    """Its value for pixels that came back as they were."""
    broken: float = math.inf
    """Its value for a frame with a mask violation, and where it has none."""
    needs_noise: bool = False
    """Whether it is only there with a noise model."""


#: Every quality by its name, the cheap ones first.
QUALITIES: Mapping[str, Quality] = {
    "mask_violations": Quality(
        "pixels that are not valid and changed, and counted ones that became invalid, NaN or infinite",
        "count", "pixels", "frame", "smaller", True,
    ),
    "max_abs_error": Quality("largest error", "max |e|", "data units", "frame", "smaller", True),
    "rmse": Quality("root mean square error", "sqrt(mean(e^2))", "data units", "frame", "smaller", False),
    "max_error_sigma": Quality(
        "largest error in sigma", "max |e| / sigma(original)", "sigma", "frame", "smaller", True, needs_noise=True,
    ),
    "rms_error_sigma": Quality(
        "root mean square error in sigma", "sqrt(mean(e^2 / sigma(original)^2))", "sigma", "frame", "smaller", False,
        needs_noise=True,
    ),
    "dose_cost": Quality(
        "variance added over variance there, read it as the exposure lost",
        "mean(e^2 / sigma(original)^2)", "1", "frame", "smaller", False, needs_noise=True,
    ),
    "bias_sigma": Quality(
        "largest mean error in sigma, of the frame and of strata of equal expected intensity",
        "max over strata |mean(e / sigma(mean of pixel and its 8 neighbours))|, strata by the mean of the neighbours",
        "sigma", "frame, or all frames where it has too few pixels", "smaller", False, needs_noise=True,
    ),
    "nrmse_range": Quality("rmse over the range", "rmse / (p99.9 - p0.1)", "1", "frame", "smaller", False),
    "psnr_db": Quality(
        "peak signal to noise ratio, the range as peak, from -200 to 200",
        "20 log10((p99.9 - p0.1) / rmse)", "dB", "frame", "larger", False, _MOST_DB, -_MOST_DB,
    ),
    "pearson": Quality(
        "correlation of decoded and original; 0 where one is constant", "cov(decoded, original) / (std std)",
        "1", "frame", "larger", False, 1.0, -1.0,
    ),
    "residual_autocorrelation": Quality(
        "largest autocorrelation of the error, in sigma where the noise is known, at lags 1 to 5 along each axis",
        "max |sum(r_i r_(i+lag))| / sum(r^2), r = e / sigma(original) less its mean",
        "1", "frame, or all frames where it has too few pixels", "smaller", False, 0.0, 1.0,
    ),
    "residual_signal_correlation": Quality(
        "correlation of error and original, in sigma where the noise is known; 0 where the original is constant",
        "|corr(e / sigma, (original - mean) / sigma)|, sigma = sigma(original)",
        "1", "frame, or all frames where it has too few pixels", "smaller", False, 0.0, 1.0,
    ),
    "ssim": Quality(
        "structural similarity (Wang et al. 2004), mean over the windows of 7 x 7 counted pixels",
        "(2 mx my + C1)(2 cxy + C2) / ((mx^2 + my^2 + C1)(vx + vy + C2)), C1 = (0.01 R)^2, C2 = (0.03 R)^2, "
        "R = p99.9 - p0.1",
        "1", "frame", "larger", False, 1.0, -1.0,
    ),
    "ks": Quality(
        "Kolmogorov-Smirnov distance of the distributions of values", "max over v |F_decoded(v) - F_original(v)|",
        "1", "frame", "smaller", False, 0.0, 1.0,
    ),
}  # fmt: skip


def worst(per_frame: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """The value of the worst frame for each metric; the perfect one where there are no frames.

    >>> worst({"rmse": np.array([0.5, 2.0]), "ssim": np.array([0.9, 1.0])})
    {'rmse': 2.0, 'ssim': 0.9}
    """
    return {
        name: float(
            (values.max if QUALITIES[name].better == "smaller" else values.min)(initial=QUALITIES[name].perfect)
        )
        for name, values in per_frame.items()
    }


@np.errstate(all="ignore")
def compare(
    original: NDArray[Any],
    decoded: NDArray[Any],
    valid: NDArray[np.bool_],
    noise: Noise | None,
    metrics: Collection[str] | None = None,
    *,
    still_valid: NDArray[np.bool_] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """What a change did to frames: one value a frame for each metric.

    The range of a frame is from the 0.1 to the 99.9 percentile of its counted pixels, never the dtype's. Integers of 64
    bits are subtracted without loss.

    Three metrics are means that say nothing about a frame with too few pixels: `bias_sigma` and the two residual
    correlations. A frame's own counts where its standard error is at most a fifth of the usual limit (0.002 for a
    bias, from 20,834 pixels on for a rounding to one sigma; 0.01 for a correlation, 10,000 pixels), or where it is
    further than five standard errors from zero; else that over all changed frames does. A stratum for which that is
    no better does not count.

    A bias is what the mean of many exposures is off by, over the sigma of one: so its sigma is that of the intensity
    to expect, for which the mean of the pixel and its neighbours stands (with the pixel, as a hot one would weigh too
    much among dark ones). A stratum is told by the neighbours alone: what is selected by a pixel's own value is biased
    by its noise.

    Parameters
    ----------
    original : ndarray
        Shape (n, *frame_shape), frames of one or two axes; booleans, integers or floats up to 64 bits.
    decoded : ndarray
        What came back, same shape and dtype.
    valid : ndarray of bool
        True where a pixel of the original counts, same shape.
    noise : Noise or None
        Of the original; without it there are no metrics in sigma.
    metrics : collection of str, optional
        The names to compute; all of them by default, which is slow.
    still_valid : ndarray of bool, optional
        True where a pixel of `decoded` counts, same shape: a count rounded to the mark of bad pixels is a violation.

    Returns
    -------
    dict of str to ndarray of float64
        Shape (n,), never NaN; in the order of `QUALITIES`.

    Raises
    ------
    InputError
        Where shapes or dtypes do not match, or a metric is unknown.

    Examples
    --------
    >>> frames = np.array([[[1, 5, 9, 65535]]], np.uint16)
    >>> found = compare(frames, frames // 2 * 2 + (frames == 65535), frames != 65535, Noise(1.0, 0.0, 2.0, "given"))
    >>> found["max_abs_error"].tolist(), found["mask_violations"].tolist(), found["dose_cost"].round(3).tolist()
    ([1.0], [0.0], [0.129])
    """
    pair = _checked(original, decoded, valid, noise, still_valid)
    for name in metrics or ():
        if name not in QUALITIES:
            raise InputError(f"metric must be one of {' '.join(QUALITIES)}, got {name!r}{suggest(name, QUALITIES)}")
    names = [
        name
        for name, quality in QUALITIES.items()
        if (metrics is None or name in metrics) and not (quality.needs_noise and noise is None)
    ]
    found = pair.errors()
    violated = found["mask_violations"] > 0
    pair.changed[:] = ~violated & (found["max_abs_error"] != 0)
    if "bias_sigma" in names:
        found["bias_sigma"] = pair.bias()
    if not {"nrmse_range", "psnr_db", "ssim"}.isdisjoint(names):
        low, extent = pair.ranges()
        found["nrmse_range"] = np.where(extent > 0, found["rmse"] / extent, np.inf)
        found["psnr_db"] = np.clip(-20 * np.log10(found["nrmse_range"]), -_MOST_DB, _MOST_DB)
        if "ssim" in names:
            found["ssim"] = pair.ssim(low, extent)
    if not {"pearson", "residual_autocorrelation", "residual_signal_correlation"}.isdisjoint(names):
        mean, mean_error = pair.means()
        if "pearson" in names:
            found["pearson"] = pair.pearson(mean)
        if "residual_autocorrelation" in names:
            found["residual_autocorrelation"] = pair.autocorrelation(mean_error)
        if "residual_signal_correlation" in names:
            found["residual_signal_correlation"] = pair.signal_correlation(mean, mean_error)
    if "ks" in names:
        found["ks"] = pair.ks()
    for name in set(names) - {"mask_violations"}:
        quality = QUALITIES[name]
        values = np.where(pair.changed, found[name], quality.perfect)
        found[name] = np.where(violated | np.isnan(values), quality.broken, values)
    return {name: found[name] for name in names}


def _checked(
    original: NDArray[Any], decoded: NDArray[Any], valid: _Flags, noise: Noise | None, still_valid: _Flags | None
) -> Pair:
    """The arguments of `compare` in native byte order; booleans as 0 and 1."""
    if original.ndim not in (2, 3):
        raise InputError(f"original must have shape (n, *frame_shape) with frames of 1 or 2 axes, got {original.shape}")
    if original.dtype.kind not in "buif" or original.dtype.itemsize > 8:
        raise InputError(f"original must be booleans, integers or floats of at most 64 bits, got {original.dtype}")
    for name, array, dtype in (
        ("decoded", decoded, original.dtype),
        ("valid", valid, np.dtype(bool)),
        ("still_valid", still_valid, np.dtype(bool)),
    ):
        if array is not None and (array.shape != original.shape or array.dtype != dtype):
            raise InputError(f"{name} must be {dtype} of shape {original.shape}, got {array.dtype} of {array.shape}")
    native = np.dtype(np.uint8) if original.dtype.kind == "b" else original.dtype.newbyteorder("=")
    return Pair(
        original.astype(native, copy=False),
        decoded.astype(native, copy=False),
        valid,
        still_valid,
        noise,
        np.ones(len(original), np.bool_),
    )
