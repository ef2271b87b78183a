"""Rounding in proportion to the noise: no value moves far, no mean moves, twice is once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.noise import Noise
from tuner.steps.bins import round_to_noise, table
from tuner.steps.octave import octaves, round_to_octaves
from tuner.steps.staircase import LAW

Rounding: TypeAlias = Callable[[NDArray[Any], Noise, float, float], NDArray[Any]]
COUNTER = Noise(1.0, 0.0, 0.0, "photon counter")

#: Levels as far apart as the noise allows, and powers of two.
ROUNDINGS: tuple[Rounding, ...] = (round_to_noise, round_to_octaves)
either = st.sampled_from(ROUNDINGS)
both = pytest.mark.parametrize("rounding", ROUNDINGS, ids=["levels", "octaves"])
widths = st.floats(0.1, 4.0)
noises = st.one_of(
    st.just(COUNTER),
    st.builds(Noise, st.floats(0, 30), st.floats(-20, 300), st.floats(0, 40), st.just("given")),
)


@np.errstate(invalid="ignore")
def sigma_of(values: NDArray[Any], noise: Noise, step: float) -> NDArray[np.float64]:
    return np.sqrt(noise.floored(step).variance(values))


def log_factorials(n: int) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n)))])


def poisson(mean: float, logs: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Counts and their probabilities, all but 1e-15."""
    spread = 9 * math.sqrt(mean) + 20
    x = np.arange(max(0, int(mean - spread)), int(mean + spread))
    return x, np.exp(x * math.log(mean) - mean - logs[x])


def entropy(p: NDArray[np.float64]) -> float:
    p = p[p > 1e-15]
    return float(-(p * np.log2(p)).sum())


def laws_hold(rounded: NDArray[Any], values: NDArray[Any], bound: NDArray[np.float64]) -> None:
    """For sorted values."""
    finite = np.isfinite(values.astype(np.float64))
    assert np.array_equal(rounded[~finite], values[~finite], equal_nan=True)
    wide, was = rounded[finite].astype(np.longdouble), values[finite].astype(np.longdouble)
    assert np.all(np.diff(wide) >= 0)
    assert np.all(np.abs(wide - was) <= bound[finite])


# Few examples, as each builds a table.
@settings(max_examples=15)
@given(widths, noises)
@example(4.0, COUNTER)
@example(0.65, COUNTER)
@example(2.0, Noise(0.001, 0.0, 2.0, "given"))
def test_whole_numbers_move_by_half_a_width_at_most(width: float, noise: Noise) -> None:
    levels = table(noise, 1.0, width, 3000)
    x = np.arange(3000)
    sigma = sigma_of(x + math.floor(noise.offset), noise, 1.0)
    assert np.all(np.abs(levels - x) <= width / 2 * sigma)
    assert np.all(np.diff(levels) >= 0)
    assert np.array_equal(levels[levels], levels)


@settings(max_examples=15)
@given(either, widths, noises, st.sampled_from(["uint8", "int16", "uint16", "float16"]), st.sampled_from([1.0, 4.0]))
def test_every_value_of_two_bytes(rounding: Rounding, width: float, noise: Noise, dtype: str, step: float) -> None:
    codes = np.arange(1 << 8 * np.dtype(dtype).itemsize, dtype=f"u{np.dtype(dtype).itemsize}").view(dtype)
    values = np.sort(codes)
    rounded = rounding(values, noise, step, width)
    assert rounded.dtype == values.dtype
    assert np.array_equal(rounding(rounded, noise, step, width), rounded, equal_nan=True)
    with np.errstate(invalid="ignore"):
        wide = values.astype(np.float64)
        multiples = np.flatnonzero(~np.isfinite(wide) | (np.rint(wide / step) * step == wide))
    laws_hold(rounded[multiples], values[multiples], width / 2 * sigma_of(values[multiples], noise, step))
    others = np.ones(values.size, bool)
    others[multiples] = False
    assert np.array_equal(rounded[others], values[others])
    if values.dtype.kind != "f":
        limits = np.iinfo(dtype)
        assert not np.any((rounded == limits.max) & (values != limits.max))
        assert values.dtype.kind == "u" or not np.any((rounded == limits.min) & (values != limits.min))


@settings(max_examples=15)
@given(either, widths, noises, st.sampled_from(["int32", "uint32", "int64", "uint64"]), st.integers(0, 1 << 32))
def test_long_integers(rounding: Rounding, width: float, noise: Noise, dtype: str, seed: int) -> None:
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(seed)
    dense = [np.arange(max(start, limits.min), start + 3000) for start in (-1500, 2500, 260000, 1 << 20, 1 << 30)]
    spread = np.exp(rng.uniform(0, math.log(limits.max), 2000)) * (rng.choice([-1, 1], 2000) if limits.min else 1)
    values = np.concatenate([*(d.astype(dtype) for d in dense), spread.astype(dtype)])
    values = np.sort(np.append(values, np.array([limits.min, limits.max], dtype)))
    rounded = rounding(values, noise, 1.0, width)
    assert np.array_equal(rounding(rounded, noise, 1.0, width), rounded)
    laws_hold(rounded, values, width / 2 * sigma_of(values, noise, 1.0))


@example(round_to_octaves, 0.3125, Noise(2.3e-308, 0.0, 1.0, "given"), "float64", 0)
@settings(max_examples=20)
@given(either, widths, noises, st.sampled_from(["float32", "float64", "float16"]), st.integers(0, 1 << 32))
@example(round_to_octaves, 1.0, Noise(0.0, 0.0, 0.0, "none"), "float32", 0)
@example(round_to_octaves, 1.0, Noise(0.0, 1e6, 1e-3, "far"), "float32", 0)
@example(round_to_octaves, 1.0, Noise(1e-12, 0.0, 1e-9, "small"), "float64", 0)
@example(round_to_octaves, 1.0, Noise(0.0, 1.0, 1e-38, "tiny"), "float32", 0)
@example(round_to_octaves, 1.0, Noise(1e-300, 0.0, 0.0, "small"), "float64", 0)
@example(round_to_noise, 1.0, Noise(1e-12, 0.0, 1e-9, "small"), "float64", 0)
def test_floats(rounding: Rounding, width: float, noise: Noise, dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = np.concatenate([rng.uniform(-100, 1000, 3000), rng.uniform(0, 30, 2000), rng.uniform(0, 1e5, 2000)])
    sign = rng.choice([-1, 1], 3000)
    top = math.log(float(np.finfo(dtype).max) / 2)
    values = np.concatenate([dense + noise.offset, sign * np.exp(rng.uniform(-top, top, 3000))])
    with np.errstate(over="ignore"):
        values = np.sort(np.append(values, [-np.inf, 0, np.inf, np.nan]).astype(dtype))
    rounded = rounding(values, noise, 0.0, width)
    assert rounded.dtype == values.dtype
    assert np.array_equal(rounding(rounded, noise, 0.0, width), rounded, equal_nan=True)
    with np.errstate(over="ignore", invalid="ignore"):
        half = width / 2 * sigma_of(values, noise, 0.0)
        # What a value is decoded to may be larger than itself, and so may the spacing there.
        reach = np.maximum(np.abs(values.astype(np.float64)) + half, float(np.finfo(dtype).tiny))
        laws_hold(rounded, values, half + reach * float(np.finfo(dtype).eps))


@both
@pytest.mark.parametrize("width", [0.1, 0.25, 0.5, 0.65, 0.8, 1.0, 1.3, 2.0, 3.46])
def test_means_of_counts_stay(rounding: Rounding, width: float) -> None:
    n = 104_000
    errors = rounding(np.arange(n, dtype=np.uint32), COUNTER, 1.0, width).astype(np.int64) - np.arange(n)
    logs = log_factorials(n)
    means = np.concatenate([np.geomspace(0.05, 100, 600), np.geomspace(100, 1e5, 1200)])
    for mean in means:
        x, p = poisson(mean, logs)
        assert abs((p * errors[x]).sum()) <= LAW * math.sqrt(max(mean, 1)), mean


def gaussian_bias(noise: Noise, mean: float, rounded: Callable[[NDArray[Any]], NDArray[Any]], step: float) -> float:
    """Shift of the mean of rounded Gaussian values of a given mean, in sigma."""
    sigma = float(sigma_of(np.array(mean), noise, step))
    if step:
        x = np.arange(math.floor((mean - 8 * sigma) / step), (mean + 8 * sigma) / step + 1) * step
        p = np.exp(-(((x - mean) / sigma) ** 2) / 2) * step / (sigma * math.sqrt(2 * math.pi))
    else:
        t = np.linspace(-8, 8, 20_001)
        x, p = mean + sigma * t, np.exp(-t * t / 2) * (t[1] - t[0]) / math.sqrt(2 * math.pi)
    return float((p * (rounded(x) - x)).sum()) / sigma


def rounded_as(rounding: Rounding, x: NDArray[np.float64], noise: Noise, step: float, width: float) -> NDArray[Any]:
    return rounding(x.astype(np.int32 if step else np.float64), noise, step, width)


@both
@pytest.mark.parametrize("step", [1.0, 0.0])
@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("gain", "offset", "read_noise"),
    [(0.0, 100, 3.0), (0.17, 98, 2.0), (0.4, 100.5, 5.0), (1.0, 0, 3.0), (2.0, 100, 6.0), (5.0, 50, 20.0), (30, 0, 70)],
)
def test_means_of_gaussian_values_stay(
    rounding: Rounding, gain: float, offset: float, read_noise: float, width: float, step: float
) -> None:
    noise = Noise(gain, offset, read_noise, "given")
    means = np.concatenate([offset + np.linspace(-10, 400, 400), offset + np.geomspace(400, 60_000, 400)])
    for mean in means if rounding is round_to_noise else means[::8]:
        bias = gaussian_bias(noise, mean, lambda x: rounded_as(rounding, x, noise, step, width), step)
        assert abs(bias) <= LAW, mean


@both
@pytest.mark.parametrize("gain", [0.2, 3.0, 500.0])
@pytest.mark.parametrize("step", [1.0, 0.0])
def test_means_stay_where_single_photons_are_resolved(rounding: Rounding, gain: float, step: float) -> None:
    """Values are sums of whole photons and of read noise far below one: peaks, no Gaussian."""
    noise = Noise(gain, 100.0, gain / 5, "given")
    logs = log_factorials(3000)
    for mean in np.geomspace(0.05, 8, 40):
        k, p = poisson(mean, logs)
        shift = 0.0
        for photons, weight in zip(k[:40], p[:40], strict=True):
            peak = Noise(0.0, 0.0, max(noise.read_noise, 0.3 * step), "peak")
            bias = gaussian_bias(peak, 100 + gain * photons, lambda x: rounded_as(rounding, x, noise, step, 1.0), step)
            shift += weight * bias * float(sigma_of(np.array(0.0), peak, step))
        assert abs(shift) <= LAW * float(sigma_of(np.array(100 + gain * mean), noise, step)), mean


@pytest.mark.parametrize(("width", "rest"), [(0.5, 0.25), (1.0, 0.25), (1.5, 0.45)])
def test_levels_are_about_as_few_as_those_of_square_root_bins(width: float, rest: float) -> None:
    """Which shift the means of counts."""
    n = 3000
    levels, x = table(COUNTER, 1.0, width, n), np.arange(n)
    starts = np.flatnonzero(np.diff(np.floor(np.sqrt(x) * 2 / width), prepend=-1))
    sizes = np.diff(starts, append=n)
    roots = np.repeat(starts + (sizes - 1) // 2, sizes)
    logs = log_factorials(n)
    shifts = []
    for mean in (3, 5, 10, 20, 50, 100, 200, 500, 1000):
        x, p = poisson(mean, logs)
        ours, theirs = (entropy(np.bincount(d[x], p)) for d in (levels, roots))
        assert ours <= entropy(p) + 1e-9
        assert mean < 20 or ours <= theirs + rest
        assert mean < 500 or ours <= theirs + 0.05
        shifts.append(abs((p * (roots[x] - x)).sum()) / math.sqrt(mean))
    assert max(shifts) > 3 * LAW


@pytest.mark.parametrize(
    ("width", "saved"),
    [(0.5, {20: 1.1, 50: 1.5, 200: 2.7, 1000: 3.9}), (1.0, {10: 0.8, 20: 2.1, 50: 2.6, 200: 3.7, 1000: 4.9})],
)
def test_bits_that_are_saved(width: float, saved: dict[int, float]) -> None:
    levels, logs = table(COUNTER, 1.0, width, 3000), log_factorials(3000)
    for mean, bits in saved.items():
        x, p = poisson(mean, logs)
        assert entropy(p) - entropy(np.bincount(levels[x], p)) >= bits, mean


@both
def test_values_move_up_as_often_as_down(rounding: Rounding) -> None:
    x = np.arange(1000, 20_000, dtype=np.uint32)
    moved = rounding(x, COUNTER, 1.0, 1.0).astype(int) - x
    assert 0.95 < (moved > 0).sum() / (moved < 0).sum() < 1.05


@both
def test_counts_are_rounded_alike_in_every_dtype(rounding: Rounding) -> None:
    counts = np.arange(0, 65_000, 7)
    expected = rounding(counts.astype(np.uint32), COUNTER, 1.0, 1.0)
    for dtype in ("uint16", "int32", "uint64", "float32", "float64", ">i4", ">u2"):
        assert np.array_equal(rounding(counts.astype(dtype), COUNTER, 1.0, 1.0), expected), dtype
    scaled = rounding((counts * 4).astype(np.int32), Noise(4.0, 0.0, 0.0, "counter"), 4.0, 1.0)
    assert np.array_equal(scaled, expected * 4)
    tenths = rounding((counts * 0.1).astype(np.float32), Noise(0.1, 0.0, 0.0, "counter"), 0.1, 1.0)
    assert np.array_equal(tenths, (expected * 0.1).astype(np.float32))


@both
def test_no_noise_no_rounding(rounding: Rounding) -> None:
    values = np.array([-1.5, 0, 3.25, 1e30])
    assert np.array_equal(rounding(values, Noise(0, 0, 0, "none"), 0.0, 1.0), values)
    assert np.array_equal(rounding(np.arange(99), Noise(0, 0, 0, "none"), 1.0, 4.0), np.arange(99))


@both
@pytest.mark.parametrize("width", [0.0, -1.0, math.nan, math.inf])
def test_a_width_is_a_number_above_0(rounding: Rounding, width: float) -> None:
    with pytest.raises(InputError, match="width must be a finite number above 0, got"):
        rounding(np.arange(3), COUNTER, 1.0, width)


def test_octaves_empty_bits() -> None:
    """From a width on, every level is a multiple of it; levels are at most twice as close as the noise allows."""
    noise = Noise(2.18, 100.0, 3.5, "given")
    x = np.arange(65_000, dtype=np.uint16)
    levels = round_to_octaves(x, noise, 1.0, 1.0)
    doublings = octaves(noise, 1.0, 1.0, 65535.0, 0.0).doublings
    assert len(doublings) >= 6
    for doubling in doublings:
        assert not (levels[levels > doubling.at] % int(doubling.above)).any()
    found = np.unique(levels[int(doublings[2].at) :])
    assert (np.diff(found) > sigma_of(found[1:], noise, 1.0) / 2.2).all()


@both
def test_shapes_stay(rounding: Rounding) -> None:
    values = np.zeros((2, 0, 3), np.float32)
    assert rounding(values, COUNTER, 0.0, 1.0).shape == (2, 0, 3)
    assert rounding(np.full((2, 5, 3), 7, np.uint16)[:, ::2], COUNTER, 1.0, 1.0).shape == (2, 3, 3)
