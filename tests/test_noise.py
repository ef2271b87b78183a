"""Estimates find the noise that was put in, and the entropy bound is one."""

from __future__ import annotations

import bz2
import lzma
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_memory import stack_of
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.estimate import Doubt, _fit, believe, doubts, estimate
from tuner.noise import _COUNTED, Noise, _counted, entropy_bound, gaussian_entropy
from tuner.stack import Kind

#: Light on a frame: a slope, so that intensities from 0.1 to 1 occur.
SLOPE = np.linspace(0.1, 1, 256)[:, None] * np.ones((256, 256))


def expose(
    light: NDArray[np.float64], n: int, gain: float = 1, offset: float = 0, read_noise: float = 0, seed: int = 0
) -> NDArray[Any]:
    """Frames of an expectation `light`, in data units above the offset, with the noise of that model."""
    rng = np.random.default_rng(seed)
    photons = rng.poisson(np.broadcast_to(light / gain, (n, *light.shape)))
    return np.rint(photons * gain + offset + rng.normal(0, read_noise, photons.shape)).astype(np.int32)


@pytest.mark.parametrize(
    ("top", "gain", "offset", "read_noise"),
    [(0.2, 1, 0, 0), (5, 1, 0, 0), (1000, 1, 0, 0), (20000, 0.17, 0, 0), (2000, 2, 100, 3), (60000, 5, 98, 20)],
)
def test_repeats_and_neighbours_find_the_noise(top: float, gain: float, offset: float, read_noise: float) -> None:
    frames = expose(top * SLOPE, 8, gain, offset, read_noise)
    truth = Noise(gain, offset, read_noise, "")
    estimates = estimate(stack_of(frames), [frames])
    assert [noise.source.split()[2] for noise in sorted(estimates, key=lambda n: n.source)] == [
        "consecutive",
        "neighbouring",
    ]
    at = offset + top * np.array([0.2, 0.5, 1])
    for noise in estimates:
        np.testing.assert_allclose(noise.variance(at), truth.variance(at), rtol=0.1)


def test_flux_that_changes_is_not_noise() -> None:
    bright, dim = expose(1000 * SLOPE, 1), expose(700 * SLOPE, 1, seed=1)
    frames = np.concatenate([bright, dim])
    for noise in estimate(stack_of(frames), [frames]):
        assert 0.9 < noise.gain < 1.1


@pytest.mark.parametrize("blank", [1, 3])
def test_frames_without_light_are_no_repeats_of_others(blank: int) -> None:
    # A fixed pattern, so that neighbours do not tell the noise.
    pattern = np.random.default_rng(0).gamma(30, 20, (256, 256))
    frames = np.concatenate([expose(pattern, 8 - blank), np.zeros((blank, 256, 256), np.int32)])
    believed = estimate(stack_of(frames), [frames])[0]
    assert believed.source == "differences of consecutive frames"
    assert believed.variance(np.array(600.0)) == pytest.approx(600, rel=0.1)


def test_a_scene_that_changes_does_not_raise_the_estimate_taken() -> None:
    frames = np.concatenate([expose(1000 * np.roll(SLOPE, 20 * shift, 0), 1, seed=shift) for shift in range(4)])
    taken, other = estimate(stack_of(frames), [frames])
    assert taken.source == "differences of neighbouring pixels"
    assert 0.9 < taken.gain < 1.1
    assert other.variance(np.array([500.0])) > 2 * taken.variance(np.array([500.0]))


def test_structure_does_not_raise_the_estimate_taken() -> None:
    checkered = 1000 * SLOPE * (1 + 0.5 * (np.indices(SLOPE.shape).sum(axis=0) % 2))
    frames = expose(checkered, 4)
    taken, other, *_ = estimate(stack_of(frames), [frames])
    assert taken.source == "differences of consecutive frames"
    assert 0.9 < taken.gain < 1.1
    assert other.gain > 10


@pytest.mark.parametrize("where", ["beside", "between"])
def test_flats_and_darks_tell_offset_gain_and_read_noise(where: str) -> None:
    flats, darks = expose(5000 * SLOPE, 6, 2, 100, 3), expose(0 * SLOPE, 6, 2, 100, 3, seed=1)
    rng = np.random.default_rng(2)
    data = rng.integers(0, 10_000, (2, 256, 256)).astype(np.int32)
    if where == "beside":
        stack = stack_of(data, flats=stack_of(flats), darks=stack_of(darks))
    else:
        kinds = np.repeat([Kind.DARK, Kind.FLAT, Kind.DATA], [6, 6, 2]).astype(np.uint8)
        stack = stack_of(np.concatenate([darks, flats, data]), kinds=kinds)
    taken, *_ = estimate(stack, [data])
    assert taken.source == "flats and darks"
    assert (taken.gain, taken.offset, taken.read_noise) == pytest.approx((2, 100, 3), rel=0.05)


def test_a_declared_photon_counter_is_believed_and_the_others_are_kept() -> None:
    frames = expose(20 * SLOPE, 4)
    first, *others = estimate(stack_of(frames, photon_counting=True), [frames])
    assert (first.gain, first.offset, first.read_noise) == (1, 0, 0)
    assert len(others) == 2


def test_masked_pixels_do_not_count() -> None:
    frames = expose(20 * SLOPE, 4)
    frames[:, ::16] = -1
    frames[:, :, 100:110] = -2
    for noise in estimate(stack_of(frames, invalid=(-1, -2)), [frames]):
        assert 0.9 < noise.gain < 1.1


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, 1, 1), np.uint16),
        np.zeros((2, 3, 3), np.uint16),
        np.full((2, 40, 40), 7, np.uint8),
        np.full((2, 40, 40), np.nan, np.float32),
        np.zeros((2, 40), np.bool_),
        np.full((1, 2, 500), 2**63, np.uint64),
        np.full((3, 20, 20), -1, np.int32),
        np.ones((1, 1, 2), np.float64),
    ],
    ids=str,
)
def test_what_has_no_noise_gives_finite_estimates_or_none(frames: NDArray[Any]) -> None:
    stack = stack_of(frames, invalid=(-1,) if frames.dtype == np.int32 else ())
    for noise in estimate(stack, [frames]):
        assert all(map(math.isfinite, (noise.gain, noise.offset, noise.read_noise)))
        assert noise.gain >= 0
        assert noise.read_noise >= 0
        assert entropy_bound(noise, frames, stack.valid(frames), 1.0) > 0


def test_frames_larger_than_a_band_are_read_in_bands() -> None:
    frames = expose(np.tile(50 * SLOPE, (8, 8)), 2)
    for noise in estimate(stack_of(frames), [frames]):
        assert 0.95 < noise.gain < 1.05


def poisson(mean: float) -> NDArray[np.float64]:
    k = np.arange(int(mean + 12 * math.sqrt(mean) + 40))
    logs = k * math.log(mean) - mean - np.array([math.lgamma(i + 1) for i in k])
    return np.exp(logs)


@given(st.floats(-7, 7).map(math.exp))
def test_entropy_booked_for_counts_is_never_above_that_of_the_distribution(mean: float) -> None:
    p = poisson(mean)
    entropy = -(p * np.log2(np.maximum(p, 1e-300))).sum()
    booked = (p * _counted(np.arange(len(p), dtype=np.float64))).sum()
    assert booked <= entropy * (1 + 1e-9)
    if mean > 1:
        assert booked > 0.9 * entropy
    assert len(_COUNTED) == 12


def test_gaussian_entropy_is_that_of_a_rounded_gaussian() -> None:
    rng = np.random.default_rng(0)
    for sigma in (0.1, 0.3, 0.5, 0.99, 1.01, 7.0):
        entropies = []
        for phase in (np.arange(8) + 0.5) / 8:
            counts = np.unique(np.rint(phase + rng.normal(0, sigma, 200_000)), return_counts=True)[1] / 200_000
            entropies.append(-(counts * np.log2(counts)).sum())
        assert float(gaussian_entropy(np.array(sigma))) == pytest.approx(np.mean(entropies), abs=0.01)


def test_gaussian_entropy_grows_from_zero_without_a_jump() -> None:
    entropies = gaussian_entropy(np.linspace(0, 2, 2001))
    assert entropies[0] == 0
    steps = np.diff(entropies)
    assert (steps >= 0).all()
    assert steps[400:].max() < 0.01


@pytest.mark.parametrize(
    ("top", "gain", "read_noise"), [(0.1, 1, 0), (1, 1, 0), (30, 1, 0), (1000, 0.2, 2), (1000, 3, 1), (50, 0.05, 0.3)]
)
def test_no_compressor_passes_the_bound(top: float, gain: float, read_noise: float) -> None:
    frames = expose(top * SLOPE, 4, gain, 0, read_noise).astype(np.int16)
    bound = entropy_bound(Noise(gain, 0, read_noise, ""), frames, np.ones(frames.shape, np.bool_), 1.0)
    shuffled = frames.view(np.uint8).reshape(-1, 2).T.tobytes()
    best = frames.nbytes / min(len(bz2.compress(shuffled)), len(lzma.compress(shuffled)))
    assert best < bound
    if top >= 1:
        assert bound < 1.6 * best, "a bound that says something"


def test_masked_pixels_cost_nothing_and_no_noise_bounds_nothing() -> None:
    frames = expose(100 * SLOPE, 1)
    valid = np.ones(frames.shape, np.bool_)
    noise = Noise(0, 0, 10, "")
    whole = entropy_bound(noise, frames, valid, 1.0)
    valid[:, ::2] = False
    assert entropy_bound(noise, frames, valid, 1.0) == pytest.approx(2 * whole)
    assert entropy_bound(Noise(0, 0, 0, ""), frames, valid, 1.0) == math.inf
    assert entropy_bound(noise, frames, np.zeros_like(valid), 1.0) == math.inf


def test_floats_without_a_step_are_bounded_by_their_own_spacing() -> None:
    frames = np.random.default_rng(0).normal(1000, 1, (1, 100, 100)).astype(np.float32)
    bound = entropy_bound(Noise(0, 0, 1, ""), frames, np.ones(frames.shape, np.bool_), 0.0)
    # 1000 is between 2**9 and 2**10: its spacing is 2**-14.
    assert bound == pytest.approx(32 / (14 + math.log2(math.sqrt(2 * math.pi * math.e))), rel=0.01)


def lossless_bits(frames: NDArray[Any]) -> float:
    return min(len(pack(frames.tobytes())) for pack in (bz2.compress, lzma.compress)) * 8 / frames.size


@pytest.mark.parametrize(
    ("top", "gain", "offset", "read_noise"), [(5, 1, 0, 0), (1000, 1, 0, 0), (2000, 2, 100, 3), (60000, 5, 98, 20)]
)
def test_the_truth_is_not_doubted_and_noise_that_is_too_large_is(
    top: float, gain: float, offset: float, read_noise: float
) -> None:
    frames = expose(top * SLOPE, 8, gain, offset, read_noise)
    stack, bits = stack_of(frames), lossless_bits(frames[:2])
    assert doubts(Noise(gain, offset, read_noise, "given").floored(1.0), stack, [frames], bits, 1.0) == ()
    for factor in (1.5, 2, 10):
        found = doubts(Noise(gain * factor, offset, read_noise * factor, "given"), stack, [frames], bits, 1.0)
        assert any("times the variance" in doubt.text and not doubt.safe for doubt in found)
    found = doubts(Noise(0.0, 0.0, 8 * math.sqrt(gain * top + read_noise**2), "given"), stack, [frames], bits, 1.0)
    assert any("bits a pixel" in doubt.text and not doubt.safe for doubt in found)


def test_noise_that_is_too_small_is_doubted_and_safe() -> None:
    frames = expose(1000 * SLOPE, 8)
    (doubt,) = doubts(Noise(0.5, 0.0, 0.0, "given"), stack_of(frames), [frames], 16.0, 1.0)
    assert "times the variance" in str(doubt)
    assert doubt.safe


@pytest.mark.parametrize("size", [1e200, 1e307])
def test_values_whose_squares_overflow_are_judged_without_a_warning(size: float) -> None:
    frames = np.random.default_rng(0).normal(size=(4, 64, 64)) * size
    found = doubts(Noise(1.0, 0.0, 1.0, "given"), stack_of(frames), [frames], 0.0, 0.0)
    assert all(isinstance(doubt, Doubt) for doubt in found)


def test_a_changing_scene_throws_no_doubt_on_the_truth() -> None:
    scenes = [1000 * np.roll(SLOPE, 40 * shift, axis=0) for shift in range(4)]
    frames = np.concatenate([expose(scene, 1, seed=seed) for seed, scene in enumerate(scenes)])
    found = doubts(Noise(1.0, 0.0, 0.0, "given"), stack_of(frames), [frames], 16.0, 1.0)
    assert found == ()


def speckles(n: int, slow: float) -> NDArray[np.float64]:
    """Intensities of speckles of two pixels or so, mean 1; of one frame to the next the fields correlate by `slow`."""
    rng = np.random.default_rng(0)
    field, frames = np.zeros((256, 256), complex), []
    for _ in range(n):
        new = rng.normal(size=(2, 257, 257)) / 4
        grains = (new + np.roll(new, 1, 1) + np.roll(new, 1, 2) + np.roll(new, 1, (1, 2)))[:, 1:, 1:]
        field = (
            slow * field + math.sqrt(1 - slow**2) * (grains[0] + 1j * grains[1])
            if frames
            else grains[0] + 1j * grains[1]
        )
        frames.append(np.abs(field) ** 2 * 2)
    return np.stack(frames)


@pytest.mark.parametrize("slow", [0.0, 0.95])
def test_speckles_that_change_are_not_taken_for_noise(slow: float) -> None:
    """No estimate is near the truth, all of them agree with the differences: what gives it away is finer ones."""
    light = 1000 * SLOPE * speckles(8, slow)
    frames = np.concatenate([expose(one, 1, 0.5, 100, 2, seed) for seed, one in enumerate(light)])
    taken = estimate(stack_of(frames), [frames])[0]
    assert taken.variance(np.array(600.0)) > 4 * Noise(0.5, 100, 2, "").variance(np.array(600.0))
    found = doubts(taken, stack_of(frames), [frames], 16.0, 1.0)
    assert any("finer" in doubt.text and not doubt.safe for doubt in found)
    # Flats and darks tell what the noise is at most; who gives it is believed.
    darks, flats = expose(0 * SLOPE, 4, 0.5, 100, 2), expose(1000 * SLOPE, 4, 0.5, 100, 2)
    kinds = np.repeat(np.array([Kind.DARK, Kind.FLAT, Kind.DATA], np.uint8), (4, 4, len(frames)))
    stack = stack_of(np.concatenate([darks, flats, frames]), kinds=kinds)
    assert estimate(stack, [frames])[0].source == "flats and darks"
    for known in (taken, Noise(0.5, 100, 2, "given")):
        found = doubts(known, stack, [frames], 16.0, 1.0)
        assert not any("finer" in doubt.text for doubt in found)


@pytest.mark.parametrize(("gain", "offset", "read_noise"), [(1, 0, 0), (0.46, 100, 1.6), (5, 98, 20), (0.01, 50, 10)])
@pytest.mark.parametrize("top", [0.2, 30, 20000])
def test_finer_differences_of_noise_are_no_smaller(top: float, gain: float, offset: float, read_noise: float) -> None:
    scenes = [top * np.roll(SLOPE, 20 * shift, 0) for shift in range(4)]
    moving = np.concatenate([expose(scene, 1, gain, offset, read_noise, at) for at, scene in enumerate(scenes)])
    for frames in (moving, expose(top * SLOPE, 4, gain, offset, read_noise), moving[:1]):
        taken = estimate(stack_of(frames), [frames])[0]
        assert not any("finer" in doubt.text for doubt in doubts(taken, stack_of(frames), [frames], 32.0, 1.0))


def test_nothing_to_judge_by_throws_no_doubt() -> None:
    frames = np.full((1, 2, 2), 65535, np.uint16)
    assert doubts(Noise(1.0, 0.0, 0.0, "given"), stack_of(frames, invalid=(65535,)), [frames], 1.0, 1.0) == ()


@given(gain=st.floats(0, 1e6), offset=st.floats(-1e6, 1e6), read_noise=st.floats(0, 1e6))
def test_noise_is_read_as_it_is_written(gain: float, offset: float, read_noise: float) -> None:
    text = f"gain={gain!r},offset={offset!r},read={read_noise!r}"
    if not gain and not read_noise:
        with pytest.raises(InputError, match="must have a gain or a read noise above 0"):
            Noise.parse(text)
    else:
        assert Noise.parse(text) == Noise(gain, offset, read_noise, "given")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "--noise must read gain=G,offset=O,read=R, got ''"),
        ("gain", "--noise must have a number for gain, at least 0 but for offset, got ''"),
        ("gain=0", "--noise must have a gain or a read noise above 0, got 'gain=0'"),
        ("gain=-1", "--noise must have a number for gain, at least 0 but for offset, got '-1'"),
        ("gain=nan", "--noise must have a number for gain, at least 0 but for offset, got 'nan'"),
        ("gain=1,gain=2", "--noise must read gain=G,offset=O,read=R, got 'gain=1,gain=2'"),
        ("gain=1;read=2", "--noise must have a number for gain, at least 0 but for offset, got '1;read=2'"),
        ("sigma=1", "--noise must read gain=G,offset=O,read=R, got 'sigma=1'"),
    ],
)
def test_noise_that_is_none_gives_one_line(text: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        Noise.parse(text)
    assert str(caught.value) == line


@given(value=st.floats(-1e6, 1e6), gain=st.floats(0, 1e3), read_noise=st.floats(0, 1e3))
def test_a_floor_only_adds_to_the_variance(value: float, gain: float, read_noise: float) -> None:
    noise = Noise(gain, 0.0, read_noise, "given")
    floored = noise.floored(1.0)
    assert floored.variance(np.array(value)) == max(noise.variance(np.array(value)), floored.floor)
    assert floored.variance(np.array(0.0)) >= (gain**2 if read_noise == 0 else 1 / 12)


def test_variances_of_so_many_magnitudes_that_one_point_has_all_the_weight_tell_no_gain() -> None:
    intensity = np.repeat([1.0, 2.0, 3.0], 400)
    fitted = _fit(intensity, np.repeat([1e-40, 1.0, 1e40], 400), "test")
    assert fitted is not None
    assert (fitted.gain, fitted.offset) == (0, 0)


def test_structure_in_the_bright_part_alone_does_not_raise_the_noise_of_the_rest() -> None:
    """A grain on a dark background: a line through both is ten times too much for the background."""
    light = np.full((256, 256), 10.0)
    light[150:] += np.random.default_rng(1).gamma(0.5, 4000, (106, 256))
    frames = expose(light, 1, 0.1, 100, 5)
    estimates = estimate(stack_of(frames), [frames])
    taken, found = believe(estimates, stack_of(frames), [frames], 16.0, 1.0)
    assert estimates[0].variance(np.array(110.0)) > 3 * 26
    assert taken.variance(np.array(110.0)) == pytest.approx(26, rel=0.1)
    assert found
    assert all(doubt.safe for doubt in found)


def test_an_estimate_that_nothing_speaks_against_is_believed_whatever_comes_after_it() -> None:
    frames = expose(1000 * SLOPE, 4)
    first = estimate(stack_of(frames), [frames])[0]
    wrong = Noise(10.0, 0.0, 0.0, "given")
    assert believe([first, wrong], stack_of(frames), [frames], 16.0, 1.0)[0] is first
    assert believe([wrong, first], stack_of(frames), [frames], 16.0, 1.0)[0] is first
    taken, found = believe([wrong, replace(wrong, gain=20.0)], stack_of(frames), [frames], 16.0, 1.0)
    assert taken is wrong
    assert not all(doubt.safe for doubt in found)


def test_spectra_with_channels_without_a_count_are_counted() -> None:
    """What the digits of a fit leave as read noise would claim to know of channels that saw nothing."""
    lines = np.where(np.arange(2048) > 1400, 0.0, 60 * np.exp(-np.arange(2048) / 300))
    frames = expose(lines * np.linspace(0.2, 2, 200)[:, None], 1)
    taken = estimate(stack_of(frames), [frames])[0]
    assert doubts(taken, stack_of(frames), [frames], 16.0, 1.0) == ()
    assert taken.variance(np.array(20.0)) == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize("pedestal", [0, -30, -300])
def test_a_negative_pedestal_is_no_light(pedestal: int) -> None:
    frames = expose(50 * SLOPE, 4, 2, pedestal, 3)
    for noise in estimate(stack_of(frames), [frames])[:2]:
        at = pedestal + 50 * np.array([0.2, 0.5, 1])
        np.testing.assert_allclose(noise.variance(at), Noise(2, pedestal, 3, "").variance(at), rtol=0.1)
        assert not any(not doubt.safe for doubt in doubts(noise, stack_of(frames), [frames], 16.0, 1.0))
