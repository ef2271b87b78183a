"""What real detectors and beams do that a model of noise does not know: a test for each trap."""

from __future__ import annotations

import numpy as np
import pytest
from in_memory import stack_of
from numpy.typing import NDArray
from scipy import ndimage

from tuner.estimate import doubts, estimate
from tuner.goal import Goal
from tuner.measure.analyses import Scan, analyse
from tuner.noise import Noise
from tuner.quality import compare
from tuner.stack import Marks
from tuner.steps import Pixels, Step, prepare
from tuner.steps.framewise import ClipBackground, Tqc
from tuner.steps.noise_aware import Octave, Sigma
from tuner.steps.regions import Regions
from tuner.steps.scale import Photonise
from tuner.steps.uniform import Uniform

COUNTS = Noise(1.0, 0.0, 0.0, "given", 1.0)
#: Light on a frame, photons.
SLOPE = np.linspace(50, 500, 256)[:, None] * np.ones((256, 256))


def counted(light: NDArray[np.float64], n: int, seed: int = 0) -> NDArray[np.int32]:
    """Frames of photons."""
    return np.random.default_rng(seed).poisson(light, (n, *light.shape)).astype(np.int32)


# Charge sharing -------------------------------------------------------------------------------------------------------


def test_photons_that_share_their_charge_between_pixels_are_not_lost() -> None:
    """Levels of a fifth of a photon, twice the read noise, keep the sum; whole photons lose parts, which is noticed."""
    rng = np.random.default_rng(0)
    gain, read = 45.0, 4.5  # levels are 9 counts apart, an odd number: no value is in the middle of two
    photons = rng.poisson(0.3, (4, 200, 200)) * gain
    kernel = np.array([[0.0, 0.15, 0.0], [0.15, 0.4, 0.15], [0.0, 0.15, 0.0]])
    shared = np.stack([ndimage.convolve(frame, kernel, mode="wrap") for frame in photons])
    frames = np.rint(shared + rng.normal(0, read, shared.shape)).astype("int32")
    pixels = Pixels(noise=Noise(gain, 0.0, read, "given"))
    fraction, whole = (prepare([Photonise(gain, part)], frames, pixels) for part in (0.2, 1.0))
    assert fraction.sum() == pytest.approx(frames.sum(), rel=0.005)
    assert whole.sum() != pytest.approx(frames.sum(), rel=0.02)
    good, bad = (
        compare(frames, after, np.ones(frames.shape, bool), pixels.noise, ("bias_sigma",))["bias_sigma"].max()
        for after in (fraction, whole)
    )
    assert good < 0.05 < 0.1 < bad


# Large and interpolated pixels ----------------------------------------------------------------------------------------

#: The first of two columns that were made of a wide one between chips.
WIDE = np.arange(31, 255, 32)


def with_wide_pixels(frames: NDArray[np.int32]) -> NDArray[np.int32]:
    """Half of the counts of a wide pixel stand in each of two."""
    total = frames[..., WIDE] + frames[..., WIDE + 1]
    frames[..., WIDE], frames[..., WIDE + 1] = total - total // 2, total // 2
    return frames


@pytest.mark.parametrize("step", [Octave(0.99), Sigma(0.99), Regions(6.0, 2, width=1, bin=4)], ids=repr)
def test_wide_pixels_keep_their_counts(step: Step) -> None:
    """Both halves are alike, and rounded alike: errors add up, within what two may move, and the mean stays."""
    frames = with_wide_pixels(counted(SLOPE, 6))
    after = prepare([step], frames, Pixels(noise=COUNTS))
    before, now = (each[..., WIDE].astype(float) + each[..., WIDE + 1] for each in (frames, after))
    change = (now - before) / np.sqrt(2 * SLOPE[:, WIDE])
    if not isinstance(step, Regions):
        assert np.abs((now - before) / np.sqrt(before)).max() <= np.sqrt(2) * 0.99 / 2 + 0.01
    assert abs(change.mean()) < 0.02


def test_wide_pixels_do_not_spoil_an_estimate() -> None:
    frames = with_wide_pixels(counted(SLOPE, 4))
    for noise in estimate(stack_of(frames), [frames]):
        assert 0.9 < noise.gain < 1.1


# Corrected counts: variance is not the mean ---------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "safe"), [(2.5, True), (0.4, False)])
def test_counts_times_a_factor_are_no_counts_and_that_is_noticed(factor: float, safe: bool) -> None:
    """Where their variance is below the mean, noise would be taken as too large, which is refused; else it is safe."""
    frames = (counted(SLOPE, 6) * factor).astype("float32")
    found = doubts(Noise(1.0, 0.0, 0.0, "photon counter"), stack_of(frames), [frames], 32.0, 0.0)
    assert [doubt.safe for doubt in found] == [safe]
    for noise in estimate(stack_of(frames), [frames]):
        assert noise.gain == pytest.approx(factor, rel=0.1)


def test_counts_divided_by_a_flat_field_keep_their_means_and_move_by_less_than_their_noise() -> None:
    """A pixel that counts half is half as noisy as it says; none of a flat field of 15 % moves by half its noise."""
    flat = np.random.default_rng(1).normal(1, 0.15, SLOPE.shape).clip(0.6, 1.4)
    frames = (counted(SLOPE * flat, 6) / flat).astype("float32")
    (first, *_) = estimate(stack_of(frames), [frames])
    assert 0.9 < first.gain < 1.15
    after = prepare([Octave(0.75, grid=0.0)], frames, Pixels(noise=COUNTS)).astype(float)
    own = np.sqrt(frames / flat)
    assert np.abs((after - frames) / own).max() < 0.5
    assert abs(((after - frames) / own).mean()) < 0.01


def test_counts_corrected_for_their_rate_vary_more_than_they_say_which_is_safe() -> None:
    """Rates near those of a dead time: N / (1 - N tau) has a variance of up to 1 / (1 - N tau)^3 of itself."""
    tau = 6e-4
    light = SLOPE * 2
    seen = counted(light / (1 + light * tau), 6)
    frames = np.rint(seen / (1 - seen * tau)).astype("int32")
    noise = Noise(1.0, 0.0, 0.0, "photon counter")
    found = doubts(noise, stack_of(frames, photon_counting=True), [frames], 32.0, 1.0)
    assert found
    assert all(doubt.safe for doubt in found)
    scatter = frames.std(axis=0, ddof=1)[200:].mean()
    after = prepare([Octave(0.99)], frames, Pixels(noise=COUNTS))
    assert np.abs(after - frames)[:, 200:].max() < 0.5 * scatter


# A scintillator's correlated noise ------------------------------------------------------------------------------------


def test_noise_that_a_scintillator_spreads_is_not_overestimated() -> None:
    """Neighbours vary alike: their differences tell less noise than there is, never more."""
    blurred = np.stack([ndimage.gaussian_filter(f, 0.9) for f in counted(20 * SLOPE, 6).astype(float)])
    frames = np.rint(blurred).astype("int32")
    truth = frames.astype(float).var(axis=0, ddof=1)[100:150].mean()
    at = np.array([frames[:, 100:150].mean()])
    found = estimate(stack_of(frames), [frames])
    assert found
    assert all(float(noise.variance(at)[0]) < 1.1 * truth for noise in found)
    # Rounded to the noise of a pixel by itself, what is taken away is not correlated, though the noise is.
    told = next(noise for noise in found if "consecutive" in noise.source)
    after = prepare([Octave(0.99)], frames, Pixels(noise=told))
    judged = compare(frames, after, np.ones(frames.shape, bool), told, ("residual_autocorrelation",))
    assert (after != frames).mean() > 0.8
    assert judged["residual_autocorrelation"].max() < 0.05


# Hot pixels above the cut-off -----------------------------------------------------------------------------------------

ROUNDINGS = [
    Octave(0.99),
    Uniform(4),
    Tqc(3, 4),
    ClipBackground(3.0, 8),
    Regions(6.0, 3, width=4),
    Regions(6.0, 3, width=1, bin=4),
]


@pytest.mark.parametrize("step", ROUNDINGS, ids=repr)
def test_hot_pixels_above_the_cut_off_stay_and_are_neither_peaks_nor_range_nor_in_any_sum(step: Step) -> None:
    """Of a Pilatus 6M: a million counts where the detector can tell 115,897."""
    calm = counted(SLOPE[:64, :64] / 10, 2)
    hot = calm.copy()
    hot[:, 10, 20], hot[:, 40, 41] = 1_046_527, 200_000
    place = np.zeros(hot.shape[1:], bool)
    place[10, 20] = place[40, 41] = True
    marks = Marks(saturation=115_897)
    after = prepare([step], hot, Pixels(marks, None, COUNTS))
    assert np.array_equal(after[:, place], hot[:, place])
    # As of frames in which these pixels are masked.
    assert np.array_equal(after[:, ~place], prepare([step], calm, Pixels(marks, place, COUNTS))[:, ~place])


# True negatives of dark-subtracted data -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("step", [*ROUNDINGS[:2], *ROUNDINGS[3:], Photonise(1.0)], ids=repr)
def test_negatives_count_and_means_of_nothing_stay_nothing(step: Step, dtype: str) -> None:
    """Half of the pixels without light are below 0: to clip them would make light of noise."""
    noise = Noise(1.0, 0.0, 5.0, "given", 1 / 12)
    frames = np.rint(np.random.default_rng(0).normal(0, 5, (4, 160, 160))).astype(dtype)
    pixels = Pixels(noise=noise)
    after = prepare([step], frames, pixels)
    assert pixels.valid(after).all()
    assert (after < 0).mean() == pytest.approx((after > 0).mean(), abs=0.01)
    assert abs(float((after - frames).mean(dtype=float))) < 0.01 * 5
    below = frames < -3
    assert after[below].mean(dtype=float) < 0


# Beam-off and top-up frames -------------------------------------------------------------------------------------------


def with_gaps_in_the_beam() -> NDArray[np.int32]:
    """Eight frames; in the third there was no beam, in the sixth a third of it."""
    frames = counted(SLOPE, 8)
    frames[2] = 0
    frames[5] = counted(SLOPE / 3, 1, seed=9)[0]
    return frames


def test_frames_without_beam_do_not_spoil_an_estimate() -> None:
    frames = with_gaps_in_the_beam()
    first = estimate(stack_of(frames), [frames])[0]
    assert 0.9 < first.gain < 1.1
    assert doubts(Noise(1.0, 0.0, 0.0, "given"), stack_of(frames), [frames], 32.0, 1.0) == ()


@pytest.mark.parametrize("step", ROUNDINGS, ids=repr)
def test_frames_without_beam_are_rounded_by_themselves_and_stay_empty(step: Step) -> None:
    frames = with_gaps_in_the_beam()
    after = prepare([step], frames, Pixels(noise=COUNTS))
    assert not after[2].any()
    others = np.arange(8) != 2
    assert np.array_equal(after[others], prepare([step], frames[others], Pixels(noise=COUNTS)))


def test_frames_without_beam_have_no_peaks_and_spoil_none() -> None:
    y, x = np.mgrid[:120, :120]
    light = 2 + sum(40 * np.exp(-((y - r) ** 2 + (x - c) ** 2) / 2) for r in range(20, 110, 20) for c in (30, 70))
    frames = counted(np.asarray(light), 6)
    frames[2] = 0
    goal = Goal.from_dict({"maximize": ["ratio"], "analyses": {"peaks": {}}})

    def found(numbers: list[int]) -> dict[str, float]:
        pixels = Pixels(noise=COUNTS)
        scan = Scan(stack_of(frames), np.array(numbers), pixels, lambda f: prepare([Sigma(0.5)], f, pixels))
        return dict(analyse(goal, [scan]).metrics)

    assert found([0, 1, 2, 3, 4, 5]) == pytest.approx(found([0, 1, 3, 4, 5]))
