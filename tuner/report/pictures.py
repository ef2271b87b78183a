"""Pictures of what a profile's steps do to a frame: original, decoded, difference in sigma, its autocorrelation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tuner.apply.prepare import Preparation, kept_of
from tuner.errors import InputError
from tuner.profile import Profile
from tuner.stack import Stack
from tuner.steps.reduced import reduced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Rows and columns of the part of a frame that is shown, around its middle: enough to see single pixels.
_SHOWN = 96
#: Lags of the autocorrelation to either side.
_LAGS = 8
#: What the colours of the autocorrelation reach to: the limit of the goal `noise-equivalent`.
_CORRELATED = 0.05


def draw(profile: Profile, stack: Stack, path: str | os.PathLike[str], frame: int | None = None) -> dict[str, Any]:
    """Draw one frame as it was, reduced if the profile reduces, and as the profile's steps make it.

    What is compressed comes back as the steps made it, so this is what a reader gets. Pixels that do not count are
    left blank. Differences are of the shown part, the autocorrelation of the whole frame.

    Parameters
    ----------
    profile : Profile
        With steps.
    stack : Stack
        The originals.
    path : path
        Of the PNG to write.
    frame : int, optional
        Its number; the data frame in the middle where it is not given.

    Returns
    -------
    dict
        `path`, `frame`, `unit` of the difference, its largest size over the frame as `max_error`, and the largest
        `autocorrelation` of those drawn.

    Raises
    ------
    InputError
        Where the profile is for other frames or keeps every pixel, where the frame does not exist or is no data, as
        it stays as it is then, and where the path is not that of a PNG.
    """
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"{path}: must end in .png, got {Path(path).suffix or 'no ending'}")
    profile.match.check(stack.dtype, stack.frame_shape, stack.name)
    stack = reduced(stack, profile.reduce)
    if not profile.config.steps:
        raise InputError(f"{profile.name}: must have steps, as there is nothing to show where every pixel is kept")
    kept = kept_of(stack, 0, len(stack))
    changed = np.arange(len(stack)) if kept is None else np.flatnonzero(~kept)
    if not len(changed):
        raise InputError(f"{stack.name}: must have data frames, as all others stay as they are")
    number = int(changed[len(changed) // 2]) if frame is None else frame
    if not 0 <= number < len(stack):
        raise InputError(f"--frame must be in 0..{len(stack) - 1}, got {number}")
    if number not in changed:
        raise InputError(
            f"--frame must be that of data, as flats, darks and missing frames stay as they are, got {number}"
        )
    preparation = Preparation.of_stack(profile, stack)
    original = stack.read(number, number + 1)
    decoded = preparation(original)[0]
    valid, original = stack.valid(original)[0], original[0]
    noise = profile.noise
    sigma = np.ones(original.shape) if noise is None else np.sqrt(np.maximum(noise.variance(original), 1e-300))
    error = np.where(valid, (decoded.astype(np.float64) - original) / np.where(valid, sigma, 1), 0)
    unit = "data units" if noise is None else "sigma"
    lags = autocorrelation(np.where(valid, error - error[valid].mean() if valid.any() else 0, 0), _LAGS)
    figure = _figure(original, decoded, error, lags, valid, unit)
    figure.suptitle(f"{Path(stack.name).name}, frame {number}: {_steps(profile)}", fontsize=9)
    figure.savefig(path, dpi=80, metadata={"Software": None})
    return {
        "path": os.fspath(path),
        "frame": number,
        "unit": unit,
        "max_error": float(np.abs(error).max()),
        "autocorrelation": float(np.nan_to_num(np.abs(lags)).max()),
    }


def autocorrelation(residual: NDArray[np.float64], lags: int) -> NDArray[np.float64]:
    """``sum(r_i r_(i+lag)) / sum(r^2)`` for each lag of up to so many pixels along each axis, what is beyond being 0.

    Parameters
    ----------
    residual : ndarray
        Of one or two axes.
    lags : int
        To either side.

    Returns
    -------
    ndarray
        Of extent ``2 * lags + 1`` along each axis; NaN at lag 0, where it is 1, and everywhere for a residual of zeros.

    Examples
    --------
    >>> autocorrelation(np.array([1.0, -1.0, 1.0, -1.0]), 2).round(2).tolist()
    [0.5, -0.75, nan, -0.75, 0.5]
    """
    shape = [extent + lags for extent in residual.shape]
    axes = tuple(range(residual.ndim))
    power = np.abs(np.fft.rfftn(residual, shape, axes)) ** 2
    products = np.fft.irfftn(power, shape, axes)
    near = np.ix_(*(np.arange(-lags, lags + 1) % extent for extent in shape))
    total = float((residual * residual).sum())
    found: NDArray[np.float64] = products[near] / total if total else np.full(products[near].shape, np.nan)
    found[(lags,) * residual.ndim] = np.nan
    return found


def _steps(profile: Profile) -> str:
    return ", ".join(repr(step) for step in profile.config.steps)


def _figure(
    original: NDArray[Any],
    decoded: NDArray[Any],
    error: NDArray[np.float64],
    lags: NDArray[np.float64],
    valid: NDArray[np.bool_],
    unit: str,
) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3), layout="constrained")
    axes = figure.subplots(1, 4)
    place = tuple(
        slice(max(0, (extent - _SHOWN) // 2), max(0, (extent - _SHOWN) // 2) + _SHOWN) for extent in original.shape
    )
    before, after, difference = (np.where(valid, frame, np.nan)[place] for frame in (original, decoded, error))
    low, high = np.nanpercentile(before, [0.5, 99.5]) if np.isfinite(before).any() else (0.0, 1.0)
    most = float(np.abs(error).max()) or 1.0
    for axis, title, values, colours, limits in (
        (axes[0], "original", before, "gray", (low, high)),
        (axes[1], "decoded", after, "gray", (low, high)),
        (axes[2], f"difference, {unit}", difference, "RdBu", (-most, most)),
        (axes[3], "autocorrelation of the difference", lags, "RdBu", (-_CORRELATED, _CORRELATED)),
    ):
        _panel(figure, axis, title, values, colours, limits)
        first = [-_LAGS] * lags.ndim if values is lags else [part.start for part in place]
        _number_axes(axis, values, first)
    return figure


def _panel(
    figure: Figure, axis: Axes, title: str, values: NDArray[np.float64], colours: str, limits: tuple[float, float]
) -> None:
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7)
    if values.ndim == 1:
        axis.plot(values, "k.-", linewidth=0.7, markersize=2)
        axis.set_ylim(*limits)
        return
    axis.set_facecolor("tan")
    image = axis.imshow(values, colours, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    figure.colorbar(image, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)


def _number_axes(axis: Axes, values: NDArray[np.float64], first: list[int]) -> None:
    """Ticks that number rows and columns of the frame, or lags."""
    for extent, start, ticks in zip(values.shape[::-1], first[::-1], (axis.set_xticks, axis.set_yticks), strict=False):
        places = [0, (extent - 1) // 2, extent - 1]
        ticks(places, [str(start + place) for place in places])
