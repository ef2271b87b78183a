"""Quality is what its formulas say, nothing else counts, and who cheats is found out."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.noise import Noise
from tuner.quality import QUALITIES, compare, worst

Array = NDArray[Any]

#: As of an integrating detector.
NOISE = Noise(2.0, 10.0, 3.0, "given")


class Counter(Noise):
    """The noise of a photon counter, of one count at least."""

    def __init__(self) -> None:
        super().__init__(1.0, 0.0, 0.0, "photon counter")

    def variance(self, x: Array) -> NDArray[np.float64]:
        return np.maximum(np.asarray(x, np.float64), 1.0)


def everywhere(frames: Array) -> NDArray[np.bool_]:
    return np.ones(frames.shape, np.bool_)


@st.composite
def pairs(draw: st.DrawFn, dtype: str = "uint16", most: int = 4000) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Frames of one or two axes, what a rounding and rare damage made of them, and what is valid."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    original = rng.integers(0, draw(st.integers(1, most)), shape)
    step = draw(st.integers(1, 50))
    decoded = np.where(rng.random(shape) < draw(st.sampled_from([0, 0.1, 1])), original // step * step, original)
    valid = rng.random(shape) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    return original.astype(dtype), np.where(valid, decoded, original).astype(dtype), valid


def assert_same(one: dict[str, Array], other: dict[str, Array], but: tuple[str, ...] = (), rtol: float = 1e-7) -> None:
    assert one.keys() == other.keys()
    for name in one.keys() - set(but):
        np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=1e-9, err_msg=name)


# Formulas, against the plainest code.


def reference(original: Array, decoded: Array, valid: NDArray[np.bool_], noise: Noise) -> dict[str, float]:
    """The metrics of one frame that has no invalid pixel changed, pixel by pixel; NaN where they have no value."""
    x = [float(v) for v in original[valid]]
    e = [float(int(b) - int(a)) for a, b in zip(original[valid], decoded[valid], strict=True)]
    sigma = [float(s) for s in np.sqrt(noise.variance(original[valid]))]
    count = len(x)
    ordered = sorted(x)
    extent = ordered[math.ceil(0.999 * (count - 1))] - ordered[math.floor(0.001 * (count - 1))]
    rmse = math.sqrt(sum(v * v for v in e) / count)
    dose = sum((v / s) ** 2 for v, s in zip(e, sigma, strict=True)) / count
    return {
        "max_abs_error": max(abs(v) for v in e),
        "rmse": rmse,
        "max_error_sigma": max(abs(v) / s for v, s in zip(e, sigma, strict=True)),
        "rms_error_sigma": math.sqrt(dose),
        "dose_cost": dose,
        "nrmse_range": rmse / extent if extent else math.inf,
        "psnr_db": 20 * math.log10(extent / rmse) if extent else -200,
        "ks": max(
            abs(np.mean(original[valid] <= v) - np.mean(decoded[valid] <= v))
            for v in {*x, *(a + b for a, b in zip(x, e, strict=True))}
        ),
        "ssim": plain_ssim(original.astype(float), decoded.astype(float), valid, extent),
    }


def plain_ssim(x: Array, y: Array, valid: NDArray[np.bool_], extent: float) -> float:
    """Wang et al. 2004, equations 13 to 17, with equal weights, window by window."""
    size = tuple(min(7, side) for side in x.shape)
    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    values = []
    for corner in np.ndindex(*(side - extent + 1 for side, extent in zip(x.shape, size, strict=True))):
        window = tuple(slice(start, start + length) for start, length in zip(corner, size, strict=True))
        a, b = x[window], y[window]
        if valid[window].all() and extent:
            covariance = ((a - a.mean()) * (b - b.mean())).mean()
            value = (2 * a.mean() * b.mean() + c1) * (2 * covariance + c2)
            values.append(value / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (a.var() + b.var() + c2)))
    return float(np.mean(values)) if values else -1.0


@given(pairs())
@settings(max_examples=150)
def test_metrics_are_what_their_formulas_say(pair: tuple[Array, Array, NDArray[np.bool_]]) -> None:
    original, decoded, valid = pair
    found = compare(original, decoded, valid, NOISE)
    for frame in range(len(original)):
        if (original[frame] == decoded[frame]).all():
            assert all(found[name][frame] == QUALITIES[name].perfect for name in found)
            continue
        for name, value in reference(original[frame], decoded[frame], valid[frame], NOISE).items():
            assert found[name][frame] == pytest.approx(value, rel=1e-6, abs=1e-9), name
        assert found["mask_violations"][frame] == 0


@given(pairs())
@settings(max_examples=100)
def test_pearson_is_the_correlation_and_0_with_a_constant(pair: tuple[Array, Array, NDArray[np.bool_]]) -> None:
    original, decoded, valid = pair
    found = compare(original, decoded, valid, None, ["pearson"])["pearson"]
    for frame in range(len(original)):
        a, b = (array[frame][valid[frame]].astype(float) for array in (original, decoded))
        if (a == b).all():
            assert found[frame] == 1
        elif np.ptp(a) == 0 or np.ptp(b) == 0:
            assert found[frame] == 0
        else:
            assert found[frame] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-9)


def test_bias_is_the_mean_error_in_sigma_of_the_worst_stratum() -> None:
    rng = np.random.default_rng(0)
    light = np.where(np.arange(512) < 128, 400.0, 2500.0) * np.ones((512, 1))
    original = rng.poisson(light, (1, 512, 512)).astype(np.int32)
    # A fifth of a sigma too much where it is bright, a fifth too little where it is dim: the mean is not the worst.
    decoded = original + np.where(light > 1000, 10, -4).astype(np.int32)
    assert compare(original, decoded, everywhere(original), Counter(), ["bias_sigma"])["bias_sigma"] == pytest.approx(
        0.2, abs=0.01
    )


@pytest.mark.parametrize(("axis", "lag"), [(1, 1), (1, 5), (2, 1), (2, 4)])
def test_autocorrelation_is_found_at_its_lag_and_axis(axis: int, lag: int) -> None:
    white = np.random.default_rng(0).normal(0, 10, (1, 200, 300))
    echo = np.roll(white, lag, axis)
    original = np.random.default_rng(1).normal(1000, 100, white.shape)
    names = ["residual_autocorrelation", "residual_signal_correlation"]
    quiet = compare(original, original + white, everywhere(original), None, names)
    loud = compare(original, original + white + echo, everywhere(original), None, names)
    assert quiet["residual_autocorrelation"] < 0.02
    assert quiet["residual_signal_correlation"] < 0.02
    # Two independent parts of equal power, one the echo of the other: half of it.
    assert loud["residual_autocorrelation"] == pytest.approx(0.5, abs=0.03)


@given(pairs(), st.booleans())
@settings(max_examples=60)
def test_residual_correlations_of_one_frame(pair: tuple[Array, Array, NDArray[np.bool_]], noisy: bool) -> None:
    original, decoded, valid = (array[:1] for array in pair)
    noise = NOISE if noisy else None
    found = compare(original, decoded, valid, noise)
    if (original == decoded).all():
        return
    sigma = np.sqrt(NOISE.variance(original[0])) if noisy else np.ones(original.shape[1:])
    r = np.where(valid[0], (decoded[0].astype(float) - original[0]) / sigma, np.nan)
    r -= np.nanmean(r)
    r[~valid[0]] = 0
    if r.any():
        shifts = [(axis, lag) for axis in range(r.ndim) for lag in range(1, min(6, r.shape[axis]))]
        lags = [(np.delete(r, range(lag), axis) * np.delete(r, range(-lag, 0), axis)).sum() for axis, lag in shifts]
        expected = max(np.abs(lags), default=0.0) / (r * r).sum()
    else:
        expected = 1.0
    assert found["residual_autocorrelation"][0] == pytest.approx(expected, abs=1e-9)
    signal = ((original[0] - original[0][valid[0]].mean()) / sigma)[valid[0]]
    residual = r[valid[0]]
    expected = abs(np.corrcoef(signal, residual)[0, 1]) if np.ptp(signal) and np.ptp(residual) else 0.0
    assert found["residual_signal_correlation"][0] == pytest.approx(expected, abs=1e-6)


# Laws.


@given(pairs(), st.sampled_from([2, 3, 7]))
@settings(max_examples=60)
def test_scaling_scales_errors_and_leaves_what_has_no_unit(
    pair: tuple[Array, Array, NDArray[np.bool_]], factor: int
) -> None:
    original, decoded, valid = (array.astype(np.int64) if array.dtype != bool else array for array in pair)
    louder = Noise(NOISE.gain * factor, NOISE.offset * factor, NOISE.read_noise * factor, "given")
    once, scaled = compare(original, decoded, valid, NOISE), compare(original * factor, decoded * factor, valid, louder)
    np.testing.assert_allclose(scaled["max_abs_error"], once["max_abs_error"] * factor)
    np.testing.assert_allclose(scaled["rmse"], once["rmse"] * factor)
    assert_same(once, scaled, but=("max_abs_error", "rmse"), rtol=1e-6)


@given(pairs(dtype="int32"), st.integers(-(10**6), 10**6))
@settings(max_examples=60)
def test_an_offset_of_both_changes_nothing_but_ssim(pair: tuple[Array, Array, NDArray[np.bool_]], offset: int) -> None:
    original, decoded, valid = pair
    shifted = Noise(NOISE.gain, NOISE.offset + offset, NOISE.read_noise, "given")
    once = compare(original, decoded, valid, NOISE)
    moved = compare(original + np.int32(offset), decoded + np.int32(offset), valid, shifted)
    assert_same(once, moved, but=("ssim",), rtol=1e-5)


@given(pairs(), st.integers(0, 2**32))
@settings(max_examples=60)
def test_the_order_of_frames_does_not_matter(pair: tuple[Array, Array, NDArray[np.bool_]], seed: int) -> None:
    original, decoded, valid = pair
    order = np.random.default_rng(seed).permutation(len(original))
    once, permuted = compare(original, decoded, valid, NOISE), compare(*(a[order] for a in pair), NOISE)
    assert_same({name: values[order] for name, values in once.items()}, permuted)


@given(pairs(dtype="float64"), st.integers(0, 2**32))
@settings(max_examples=60)
def test_invalid_pixels_do_not_matter_at_all(pair: tuple[Array, Array, NDArray[np.bool_]], seed: int) -> None:
    original, decoded, valid = pair
    junk = np.random.default_rng(seed).choice([0, -1, 1e300, np.nan, np.inf, 65535], original.shape)
    once = compare(original, decoded, valid, NOISE)
    other = compare(np.where(valid, original, junk), np.where(valid, decoded, junk), valid, NOISE)
    assert_same(once, other, rtol=0)


@given(pairs(most=250), st.sampled_from(["uint8", "int16", "uint32", "int64", "uint64", "float32", "float64", ">u2"]))
@settings(max_examples=80)
def test_the_dtype_does_not_matter(pair: tuple[Array, Array, NDArray[np.bool_]], dtype: str) -> None:
    original, decoded, valid = pair
    once = compare(original, decoded, valid, NOISE)
    assert_same(once, compare(original.astype(dtype), decoded.astype(dtype), valid, NOISE))


def test_pieces_of_large_frames_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    original = rng.poisson(np.linspace(1, 90, 61), (3, 83, 61)).astype(np.uint16)
    decoded, valid = original // 4 * 4 + 1, rng.random(original.shape) < 0.97
    decoded[~valid] = original[~valid]
    whole = compare(original, decoded, valid, NOISE)
    monkeypatch.setattr("tuner.pair._PIXELS", 100)
    assert_same(whole, compare(original, decoded, valid, NOISE))


@given(pairs(), st.sets(st.sampled_from(sorted(QUALITIES))))
@settings(max_examples=60)
def test_a_metric_asked_for_alone_is_the_same(pair: tuple[Array, Array, NDArray[np.bool_]], names: set[str]) -> None:
    whole, some = compare(*pair, NOISE), compare(*pair, NOISE, names)
    assert list(some) == [name for name in QUALITIES if name in names]
    assert_same({name: whole[name] for name in some}, some, rtol=0)


# Extremes.


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("uint64", 0, 2**64 - 1), ("int64", -(2**63), 2**63 - 1), ("uint8", 0, 255), ("int8", -128, 127), ("bool", 0, 1)],
)
def test_integers_subtract_without_wrapping(dtype: str, low: int, high: int) -> None:
    frames = np.array([[low, high, low, high]], dtype)
    found = compare(frames, frames[:, ::-1], everywhere(frames), None)
    assert found["max_abs_error"] == found["rmse"] == float(high - low)
    assert found["nrmse_range"] == 1
    assert found["pearson"] == pytest.approx(-1)


@pytest.mark.parametrize("dtype", ["uint64", "int64"])
def test_one_count_of_2_to_the_63_is_one_count(dtype: str) -> None:
    frames = np.full((1, 64), np.iinfo(dtype).max, dtype)
    assert compare(frames, frames - frames.dtype.type(1), everywhere(frames), None)["max_abs_error"] == 1


@pytest.mark.parametrize("dtype", ["uint16", "int64", "float32", "float64", "bool"])
@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 4, 4), (2, 1), (1, 1, 1), (2, 9, 9)])
@pytest.mark.parametrize("valid", [True, False])
def test_frames_that_came_back_are_perfect_even_without_pixels(dtype: str, shape: tuple[int, ...], valid: bool) -> None:
    frames = np.ones(shape, dtype)
    found = compare(frames, frames.copy(), np.full(shape, valid), NOISE)
    assert list(found) == list(QUALITIES)
    for name, quality in QUALITIES.items():
        assert found[name].tolist() == [quality.perfect] * shape[0]
    assert worst(found) == {name: quality.perfect for name, quality in QUALITIES.items()}


@pytest.mark.parametrize("value", [0, 7, -5])
def test_constant_frames_that_changed_have_defined_values(value: int) -> None:
    frames = np.full((1, 20, 20), value, np.int32)
    speck = frames.copy()
    speck[0, 3, 4] += 2
    for decoded in (frames + 1, speck):
        found = {name: float(v[0]) for name, v in compare(frames, decoded, everywhere(frames), NOISE).items()}
        assert found["nrmse_range"] == math.inf
        assert (found["psnr_db"], found["ssim"], found["pearson"]) == (-200, -1, 0)
        assert found["residual_signal_correlation"] == 0
        assert found["max_abs_error"] == np.abs(decoded - frames).max()
    assert found["ks"] == pytest.approx(1 / 400)
    # A constant error has nothing random about it.
    assert compare(frames, frames + 1, everywhere(frames), NOISE)["residual_autocorrelation"] == 1


def test_nothing_is_free_where_sigma_is_0_or_beyond_numbers() -> None:
    frames = np.array([[0.0, 0.0, 4.0, 1e308]])
    names = ["max_error_sigma", "dose_cost", "bias_sigma"]
    steep = Noise(100.0, 0.0, 0.0, "given")
    fine = compare(frames, frames + np.array([0, 0, 1, 0]), everywhere(frames), steep, names)
    assert fine["max_error_sigma"] == pytest.approx(1 / 20)
    for error in ([0.1, 0, 0, 0], [0, 0, 0, 1e300]):
        found = compare(frames, frames + np.array(error), everywhere(frames), steep, names)
        assert (found["max_error_sigma"], found["dose_cost"]) == (math.inf, math.inf)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_largest_floats_give_no_warning_and_no_nan(dtype: str) -> None:
    top = np.finfo(dtype).max
    frames = np.array([[-top, top, 0, top / 2] * 8], dtype)
    found = compare(frames, -frames, everywhere(frames), NOISE)
    assert not any(np.isnan(values).any() for values in found.values())
    assert found["max_abs_error"] == 2 * float(top)


# The mask.


def test_nan_in_its_place_is_equal_and_anywhere_else_is_a_violation() -> None:
    original = np.array([[1, 2, np.nan, np.inf, 5]], np.float32)
    for valid in (np.isfinite(original), everywhere(original)):
        assert compare(original, original.copy(), valid, None)["mask_violations"] == 0
        for place, value in [(0, np.nan), (1, np.inf), (2, 0), (2, np.inf), (3, 7), (3, -np.inf), (3, np.nan)]:
            decoded = original.copy()
            decoded[0, place] = value
            found = compare(original, decoded, valid, NOISE)
            assert found.pop("mask_violations") == 1
            assert all(values == QUALITIES[name].broken for name, values in found.items())


def test_an_invalid_pixel_that_changed_breaks_its_frame_and_no_other() -> None:
    original = np.full((3, 10, 10), 40, np.uint16)
    original[:, 2, 2] = 65535
    valid = original != 65535
    decoded = original.copy()
    decoded[1, 2, 2] = 65534
    decoded[2, 5, 5] = 41
    found = compare(original, decoded, valid, NOISE)
    assert found["mask_violations"].tolist() == [0, 1, 0]
    assert found["max_abs_error"].tolist() == [0, math.inf, 1]
    assert found["psnr_db"].tolist() == [200, -200, -200]


def test_a_count_that_became_the_mark_of_bad_pixels_is_a_violation() -> None:
    original = np.array([[65530, 9, 65535]], np.uint16)
    decoded = np.array([[65535, 9, 65535]], np.uint16)
    valid, still = original != 65535, decoded != 65535
    assert compare(original, decoded, valid, None)["mask_violations"] == 0
    assert compare(original, decoded, valid, None, still_valid=still)["mask_violations"] == 1


def test_negative_zero_and_payload_of_nan_count_only_where_nothing_is_valid() -> None:
    original = np.array([[0.0, np.nan]])
    decoded = np.array([[-0.0, -np.nan]])
    assert compare(original, decoded, everywhere(original), None)["mask_violations"] == 0
    assert compare(original, decoded, ~everywhere(original), None)["mask_violations"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(4), np.zeros(4), np.ones(4, bool), None), "original must have shape"),
        ((np.zeros((1, 4)), np.zeros((1, 5)), np.ones((1, 4), bool), None), "decoded must be float64 of shape"),
        ((np.zeros((1, 4)), np.zeros((1, 4), "f4"), np.ones((1, 4), bool), None), "decoded must be float64"),
        ((np.zeros((1, 4)), np.zeros((1, 4)), np.ones((1, 4)), None), "valid must be bool"),
        ((np.zeros((1, 4), complex), np.zeros((1, 4), complex), np.ones((1, 4), bool), None), "original must be bool"),
        ((np.zeros((1, 4)), np.zeros((1, 4)), np.ones((1, 4), bool), None, ["rsme"]), "did you mean 'rmse'"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        compare(*arguments)
    assert "\n" not in str(error.value)


def test_without_noise_there_is_nothing_in_sigma() -> None:
    frames = np.ones((1, 4))
    found = compare(frames, frames, everywhere(frames), None)
    assert list(found) == [name for name, quality in QUALITIES.items() if not quality.needs_noise]


def test_the_worst_frame_is_by_what_is_better() -> None:
    found = {name: np.array([0.25, 0.75]) for name in QUALITIES}
    assert worst(found) == {n: 0.75 if q.better == "smaller" else 0.25 for n, q in QUALITIES.items()}


# Cheats, on counted photons: 12 frames of 256 x 256, a slope of light with peaks on it.


@lru_cache(maxsize=1)
def photons() -> tuple[Array, NDArray[np.float64]]:
    """Counts, and their expectation."""
    y, x = np.indices((256, 256))
    light = 20 + 180 * x / 255 + np.where((x % 32 == 16) & (y % 32 == 16), 4000.0, 0)
    light += np.where((x % 32 == 8) & (y % 32 == 8), 60.0, 0)
    return np.random.default_rng(5).poisson(light, (12, 256, 256)).astype(np.int32), light


def sub_noise(found: dict[str, float]) -> bool:
    return found["max_error_sigma"] <= 0.5 and found["bias_sigma"] <= 0.01


def noise_equivalent(found: dict[str, float]) -> bool:
    white = found["residual_autocorrelation"] <= 0.05 and found["residual_signal_correlation"] <= 0.05
    return found["dose_cost"] <= 0.083 and found["bias_sigma"] <= 0.01 and white


def judged(original: Array, decoded: Array) -> dict[str, float]:
    return worst(compare(original, decoded, everywhere(original), Counter()))


def floor_to_sigma(x: Array) -> Array:
    step = np.maximum(np.sqrt(x), 1)
    return (np.floor(x / step) * step).astype(x.dtype)


def damaged(x: Array) -> Array:
    y = x.copy()
    y[7] = y[7, ::-1]
    return y


def weak_peaks_erased(x: Array) -> Array:
    y = x.copy()
    y[:, 8::32, 8::32] = y[:, 8::32, 9::32]
    return y


CHEATS: dict[str, Callable[[Array], Array]] = {
    "zeros": np.zeros_like,
    "constant": lambda x: np.full_like(x, x.mean()),
    "noise": lambda x: np.random.default_rng(1).poisson(x.mean(), x.shape).astype(x.dtype),
    "negation": np.negative,
    "mean of the sample": lambda x: np.broadcast_to(np.rint(x.mean(axis=0)), x.shape).astype(x.dtype),
    "a new exposure": lambda x: np.random.default_rng(2).poisson(photons()[1], x.shape).astype(x.dtype),
    "floor to sigma": floor_to_sigma,
    "floor to 3 counts": lambda x: x // 3 * 3,
    "0.3 sigma too much": lambda x: x + np.rint(0.3 * np.sqrt(x)).astype(x.dtype),
    "too much where bright, too little where dim": lambda x: (
        x + np.rint(np.where(photons()[1] > 110, 0.2, -0.2) * np.sqrt(x)).astype(x.dtype)
    ),
    "shift by a pixel": lambda x: np.roll(x, 1, axis=2),
    "background zeroed": lambda x: np.where(x > 1000, x, 0),
    "weak peaks erased": weak_peaks_erased,
    "1 frame damaged": damaged,
    "smoothed": lambda x: ((x + np.roll(x, 1, 1) + np.roll(x, 1, 2)) / 3).astype(x.dtype),
}


@pytest.mark.parametrize("name", CHEATS)
def test_who_cheats_meets_no_goal(name: str) -> None:
    original, _ = photons()
    found = judged(original, CHEATS[name](original))
    assert not sub_noise(found)
    assert not noise_equivalent(found)


def test_one_bad_frame_of_two_hundred_is_found_though_each_is_too_small_to_tell() -> None:
    """Of 4096 pixels no bias of 0.01 sigma can be told, but one of 0.3 can."""
    original = np.random.default_rng(3).poisson(400, (200, 64, 64)).astype(np.int32)
    decoded = np.rint(original / 9).astype(np.int32) * 9
    assert noise_equivalent(judged(original, decoded))
    decoded[77] = original[77] + 6
    found = compare(original, decoded, everywhere(original), Counter(), ["max_error_sigma", "bias_sigma"])
    assert found["max_error_sigma"][77] < 0.4
    assert np.flatnonzero(found["bias_sigma"] > 0.01).tolist() == [77]


@pytest.mark.parametrize("mean", [100, 400, 10_000])
@pytest.mark.parametrize("shape", [(16, 256, 256), (256, 4096), (300, 22, 26)])
def test_rounding_to_one_sigma_meets_both_goals(mean: int, shape: tuple[int, ...]) -> None:
    original = np.random.default_rng(mean).poisson(mean * np.linspace(0.9, 1.1, shape[-1]), shape).astype(np.int32)
    # Odd, as ties would need care, and of the dimmest pixels.
    step = int(math.sqrt(original.min())) // 2 * 2 - 1
    found = judged(original, np.rint(original / step).astype(np.int32) * step)
    assert sub_noise(found)
    assert noise_equivalent(found)


def test_few_bright_pixels_that_are_rounded_do_not_look_like_a_correlation() -> None:
    # Of so few the correlation of a frame scatters by 0.02: more than a limit of 0.05 takes, without any being there.
    frames = np.random.default_rng(1).poisson(0.5, (200, 100, 100)).astype(np.uint16)
    spot = frames[:, 40:80, 40:80]
    spot[:] = np.random.default_rng(2).poisson(300, spot.shape)
    decoded = frames.copy()
    decoded[:, 40:80, 40:80] = np.rint(spot / 16) * 16
    found = compare(frames, decoded, everywhere(frames), Counter(), ["residual_signal_correlation"])
    assert worst(found)["residual_signal_correlation"] < 0.02
    decoded[:, 40:80, 40:80] += np.uint16(2) * (spot > 300)
    found = compare(frames, decoded, everywhere(frames), Counter(), ["residual_signal_correlation"])
    assert found["residual_signal_correlation"].min() > 0.05


def test_rounding_proportional_to_sigma_meets_both_goals_where_counts_are_high() -> None:
    light = 1000 * np.linspace(0.5, 1.5, 256)
    original = np.random.default_rng(0).poisson(light, (16, 256, 256)).astype(np.int32)
    found = judged(original, middles(int(original.max()) + 1)[original].astype(np.int32))
    assert sub_noise(found)
    assert noise_equivalent(found)


@pytest.mark.parametrize("mean", [0.05, 1, 9, 16, 100, 1000])
@pytest.mark.parametrize("step", ["fixed", "growing"])
def test_the_bias_is_that_of_the_law_for_roundings(mean: float, step: str) -> None:
    """|E[decoded] - mean| over sqrt(max(mean, 1)), from the Poisson probabilities of each count.

    The worst of some twenty strata, so somewhat above it.
    """
    counts = np.arange(int(mean + 12 * math.sqrt(mean) + 12))
    probability = np.exp([n * math.log(mean) - mean - math.lgamma(n + 1) for n in counts])
    fixed = int(math.sqrt(mean)) // 2 * 2 + 1
    rounded = np.rint(counts / fixed) * fixed if step == "fixed" else middles(len(counts))
    law = abs(float(probability @ (rounded - counts))) / math.sqrt(max(mean, 1))
    original = np.random.default_rng(0).poisson(mean, (8, 512, 512)).astype(np.int32)
    assert judged(original, rounded[original].astype(np.int32))["bias_sigma"] == pytest.approx(law, rel=0.5, abs=0.007)


def middles(stop: int) -> Array:
    """For each count the middle of the step, odd and at most sigma, that it lies in."""
    middle = np.arange(stop)
    start = 0
    while start < stop:
        step = max((math.isqrt(start) + 1) // 2 * 2 - 1, 1)
        middle[start : start + step] = start + step // 2
        start += step
    return middle


def test_all_zeros_pass_range_and_correlation_limits_on_hot_pixels() -> None:
    """Why no goal rests on those alone: a few photons, one hot pixel in a thousand, and nothing or only those kept."""
    original = np.random.default_rng(0).poisson(0.5, (1, 400, 400)).astype(np.int32)
    original[0, ::25, ::40] = 200_000
    zeros = judged(original, np.zeros_like(original))
    assert zeros["nrmse_range"] < 0.05
    assert zeros["psnr_db"] > 29
    assert zeros["residual_autocorrelation"] < 0.05
    hot = judged(original, np.where(original > 1000, original, 0))
    assert hot["nrmse_range"] < 0.0001
    assert hot["psnr_db"] > 100
    assert hot["pearson"] > 0.9999
    assert hot["ssim"] > 0.99
    for found in (zeros, hot):
        assert not sub_noise(found)
        assert not noise_equivalent(found)
