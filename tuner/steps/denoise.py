"""Denoisers: what is not noise of a frame, guessed from its neighbourhood; filters, as round trips are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tuner.document import Interval, Number
from tuner.errors import InputError
from tuner.noise import Noise
from tuner.steps.pointwise import check_parameters
from tuner.steps.round_trip import need

#: Values that far from 0 are no signal of a detector, and spoil sums that others are in: they stay.
_MOST, _MOST_SIGMA = 2.0**53, 1e6

#: How far images are continued by their edge before they are transformed, in pixels.
_PADDING = 32

#: Edge of a patch, and how far away patches are compared, in pixels.
_PATCH, _REACH = 5, 5

#: The least extent of a frame that BM3D takes.
_LEAST_EXTENT = 16

_Array = NDArray[np.float64]


class _Denoiser:
    """What denoisers share: frames stay within their own range; there is no bound."""

    __slots__ = ()

    def __post_init__(self) -> None:
        check_parameters(self)

    def bound(self, values: NDArray[Any], noise: Noise | None) -> _Array:
        """None by construction."""
        return np.full(values.shape, np.inf)

    def coded(self, frame: NDArray[Any], valid: NDArray[np.bool_], noise: Noise | None) -> NDArray[np.bool_]:
        """True where values are as a detector has them."""
        return valid & (frame <= _MOST) & (frame >= -_MOST)

    def filtered(self, frame: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """The frame without what is taken for noise."""
        after = self.denoised(frame.astype(np.float64), noise)
        after = np.clip(after, float(frame.min()), float(frame.max()))
        return (after if frame.dtype.kind == "f" else np.rint(after)).astype(frame.dtype)

    def denoised(self, frame: _Array, noise: Noise | None) -> _Array:
        """A frame in data units without what is taken for noise, same shape."""
        raise NotImplementedError


class _Stabilised(_Denoiser):
    """A denoiser that works where noise is 1 everywhere."""

    __slots__ = ()

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError without a noise model."""
        if noise is None:
            raise InputError(f"step {self.name} must have a noise model")  # type: ignore[attr-defined]

    def coded(self, frame: NDArray[Any], valid: NDArray[np.bool_], noise: Noise | None) -> NDArray[np.bool_]:
        """True where values are as a detector has them."""
        assert noise is not None
        return super().coded(frame, valid, noise) & (np.abs(stabilised(frame, noise)) < _MOST_SIGMA)

    def denoised(self, frame: _Array, noise: Noise | None) -> _Array:
        """A frame in data units without what is taken for noise, same shape."""
        assert noise is not None
        return restored(self.smoothed(stabilised(frame, noise)), noise)

    def smoothed(self, frame: _Array) -> _Array:
        """A frame with noise of 1 without it, same shape."""
        raise NotImplementedError


def stabilised(frame: NDArray[Any], noise: Noise) -> _Array:
    """Values on a scale on which their noise is 1 everywhere, same shape.

    The generalised Anscombe transform (Starck, Murtagh & Bijaoui, Image Processing and Data Analysis, 1998, eq. 2.23).
    Below the value without light it goes on as a line, so that what is below stays below.
    """
    light = np.asarray(frame, np.float64) - noise.offset
    least, root = _dark(noise)
    if not noise.gain:
        return light / least
    bright = 2 / noise.gain * np.sqrt(noise.gain * np.maximum(light, 0.0) + least * least)
    return np.where(light >= 0, bright, root + light / least)


def restored(scaled: _Array, noise: Noise) -> _Array:
    """The means in data units that stabilised values are expected of, same shape: the inverse of `stabilised`.

    The algebraic inverse is biased at few counts; this is the closed form of the exact unbiased one (Mäkitalo & Foi,
    IEEE Trans. Image Process. 22, 91, 2013, eq. 8), and the line below it.

    >>> counts = Noise(1.0, 0.0, 0.0, "given")
    >>> restored(stabilised(np.array([0.0, 100.0]), counts), counts).round(2) + 0.0
    array([  0.  , 100.26])
    """
    least, root = _dark(noise)
    if not noise.gain:
        return np.asarray(scaled * least + noise.offset)
    d, below = np.maximum(scaled, root), np.minimum(scaled - root, 0.0)
    few = math.sqrt(3 / 2) / 4 / d - 11 / 8 / d**2 + 5 / 8 * math.sqrt(3 / 2) / d**3
    counts = d * d / 4 + few - 1 / 8 - (noise.read_noise / noise.gain) ** 2
    return np.asarray(noise.gain * counts + below * least + noise.offset)


def _dark(noise: Noise) -> tuple[float, float]:
    """Without light: what a step of 1 is in data units, and the stabilised value."""
    least = math.sqrt(3 / 8 * noise.gain**2 + noise.read_noise**2)
    return least, 2 * least / noise.gain if noise.gain else 0.0


@dataclass(frozen=True, slots=True)
class Butterworth(_Denoiser):
    """A low-pass filter with the response 1 / (1 + (f / cutoff)^(2 order)) (Butterworth, 1930; scikit-image).

    The same everywhere, and linear: it blurs edges and rings beside what is sharp. Values beyond 2^53 stay. Law: shape,
    dtype and pixels that do not count stay; no pixel starts or stops counting. No bound, and twice is not once.
    As LEAPS-INNOV D7.4 did to projections.
    """

    cutoff: float
    """Where the response is one half, in cycles a pixel; 0.5 is the finest pattern that pixels hold."""
    order: int = 2
    """How steep it is."""

    name: ClassVar[str] = "butterworth"
    valid: ClassVar[Mapping[str, Number | Interval]] = {"cutoff": Number(above=0.0, most=0.5), "order": Interval(1, 16)}

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where scikit-image is not installed."""
        need("skimage", "scikit-image", "pip install 'tuner[denoise]'", self.name)

    def denoised(self, frame: _Array, noise: Noise | None) -> _Array:
        """A frame in data units without what is taken for noise, same shape."""
        from skimage.filters import butterworth

        passed: _Array = butterworth(frame, self.cutoff, False, self.order, npad=_PADDING)  # type: ignore[no-untyped-call]
        return passed


@dataclass(frozen=True, slots=True)
class NlMeans(_Stabilised):
    """Means of pixels whose surroundings are alike (Buades, Coll & Morel, CVPR 2005, p. 60; scikit-image).

    On the scale on which the noise is 1 everywhere (Anscombe). Surroundings of 5 x 5 pixels are compared with those up
    to 5 pixels away, less what noise makes of their distance (Darbon et al., ISBI 2008). It keeps the contrast of what
    is small better than total variation or wavelets do; what stands out by less than about three sigma fades. Values of
    a million sigma stay. Law: shape, dtype and pixels that do not count stay; no pixel starts or stops counting. No
    bound, and twice is not once.
    """

    strength: float
    """How far surroundings may differ, in standard deviations of the noise: 0.6 to 1."""

    name: ClassVar[str] = "nl_means"
    valid: ClassVar[Mapping[str, Number | Interval]] = {"strength": Number(above=0.0, most=10.0)}

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError without a noise model, or where scikit-image is not installed."""
        need("skimage", "scikit-image", "pip install 'tuner[denoise]'", self.name)
        _Stabilised.check(self, dtype, noise)

    def smoothed(self, frame: _Array) -> _Array:
        """A frame with noise of 1 without it, same shape."""
        from skimage.restoration import denoise_nl_means

        whole = _enlarged(frame)
        smooth = denoise_nl_means(whole, _PATCH, _REACH, self.strength, fast_mode=True, sigma=1.0, preserve_range=True)
        return np.asarray(smooth)[: frame.shape[0], : frame.shape[1]]


@dataclass(frozen=True, slots=True)
class Bm3d(_Stabilised):
    """Block matching and collaborative filtering, by its authors (Mäkinen, Azzari & Foi, IEEE TIP 29, 8339, 2020).

    On the scale on which the noise is 1 everywhere (Anscombe), on one thread. Its licence allows no commercial use.
    Values of a million sigma stay. Law: shape, dtype and pixels that do not count stay; no pixel starts or stops
    counting. No bound, and twice is not once. As LEAPS-INNOV D7.4 did.
    """

    strength: float
    """Of the noise that it is told of, as a multiple of what there is: 1."""

    name: ClassVar[str] = "bm3d"
    valid: ClassVar[Mapping[str, Number | Interval]] = {"strength": Number(above=0.0, most=10.0)}

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError without a noise model, or where bm3d is not installed."""
        need("bm3d", "bm3d, which is free for non-commercial use", "pip install 'tuner[bm3d]'", self.name)
        _Stabilised.check(self, dtype, noise)

    def smoothed(self, frame: _Array) -> _Array:
        """A frame with noise of 1 without it, same shape."""
        from bm3d import BM3DProfile, bm3d

        profile = BM3DProfile()
        profile.num_threads = 1  # of more, the order of sums varies, and with it the result
        return np.asarray(bm3d(_enlarged(frame), self.strength, profile))[: frame.shape[0], : frame.shape[1]]


def _enlarged(frame: _Array) -> _Array:
    """A frame of at least the extent that denoisers take along each axis, its edge repeated."""
    short = [max(0, _LEAST_EXTENT - extent) for extent in frame.shape]
    return np.pad(frame, [(0, extent) for extent in short], mode="edge")
