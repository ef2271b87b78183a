"""Denoisers: nearer to the truth than what was measured, without moving means; what they need and what they spare."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.noise import Noise
from tuner.stack import Marks
from tuner.steps import Pixels, Step, check_steps, prepare, step_from_dict, step_to_dict
from tuner.steps.denoise import Bm3d, Butterworth, NlMeans, restored, stabilised

pytest.importorskip("skimage", reason="denoisers need scikit-image: pip install 'tuner[denoise]'")

COUNTS = Noise(1.0, 0.0, 0.0, "given", 1.0)
CAMERA = Noise(2.0, 100.0, 7.0, "given", 1 / 12)
DARK = Noise(0.0, 100.0, 3.0, "given", 1 / 12)
needs_bm3d = pytest.mark.skipif(find_spec("bm3d") is None, reason="pip install 'tuner[bm3d]', for non-commercial use")
STABILISED = [NlMeans(0.8), pytest.param(Bm3d(1.0), marks=needs_bm3d)]
DENOISERS = [Butterworth(0.15), *STABILISED]


def measured(light: NDArray[np.float64], noise: Noise, seed: int = 0) -> NDArray[np.float64]:
    """Whole numbers as a detector with such noise counts them, of light in data units."""
    random = np.random.default_rng(seed)
    counts = random.poisson(light / noise.gain) * noise.gain if noise.gain else light
    return np.asarray(np.rint(counts + noise.offset + noise.read_noise * random.standard_normal(light.shape)))


def scene(level: float, shape: tuple[int, int] = (120, 140)) -> NDArray[np.float64]:
    """Light of a smooth body with an edge, data units."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    disc = (rows - 60) ** 2 + (columns - 70) ** 2 < 40**2
    return np.asarray(level * (1 + 0.3 * np.sin(rows / 25) * np.cos(columns / 30)) * np.where(disc, 0.6, 1.0))


@pytest.mark.parametrize("noise", [COUNTS, CAMERA, DARK], ids=["counts", "camera", "dark"])
@pytest.mark.parametrize("level", [5.0, 100.0, 10000.0])
def test_noise_is_one_everywhere_once_it_is_stabilised(noise: Noise, level: float) -> None:
    values = measured(np.full((400, 400), level), noise)
    assert stabilised(values, noise).std() == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("noise", [COUNTS, CAMERA, DARK], ids=["counts", "camera", "dark"])
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0, 5.0, 100.0, 10000.0])
def test_means_of_stabilised_values_are_restored_without_a_bias(noise: Noise, level: float) -> None:
    values = measured(np.full((1000, 1000), level), noise)
    found = restored(stabilised(values, noise).mean()[None], noise)[0] - noise.offset
    sigma = np.sqrt(noise.variance(np.array(level + noise.offset)))
    assert abs(found - level) < 0.05 * sigma


@pytest.mark.parametrize("step", DENOISERS, ids=repr)
@pytest.mark.parametrize(("noise", "level"), [(COUNTS, 3.0), (COUNTS, 300.0), (CAMERA, 30.0), (CAMERA, 20000.0)])
def test_what_is_left_is_nearer_to_the_truth(step: Step, noise: Noise, level: float) -> None:
    truth = scene(level)
    frame = measured(truth, noise)
    after = prepare([step], frame[None].astype("float32"), Pixels(noise=noise))[0] - noise.offset
    sigma = np.sqrt(noise.variance(truth + noise.offset))
    error = (after - truth) / sigma
    if isinstance(step, Butterworth) and level == 20000.0:  # an edge of 50 sigma is blurred, as any low-pass does it
        error = error[:10]
    assert error.std() < 0.6
    assert abs(error.mean()) < 0.05


@pytest.mark.parametrize("step", STABILISED, ids=repr)
def test_small_things_of_six_sigma_keep_their_contrast(step: Step) -> None:
    rows, columns = np.mgrid[:200, :200]
    things = ((rows % 25 - 12) ** 2 + (columns % 25 - 12) ** 2) <= 4
    frame = measured(np.where(things, 400 + 6 * 20, 400.0), COUNTS)
    after = prepare([step], frame[None].astype("uint16"), Pixels(noise=COUNTS))[0]
    assert (after[things].mean() - 400) / 120 > 0.75
    assert after[~things].std() < 8  # of 20


def test_a_low_pass_lets_through_half_of_what_is_at_its_cutoff() -> None:
    columns = np.arange(256)
    for frequency, passed in ((0.01, 1.0), (0.1, 0.5), (0.4, 0.0)):
        wave = np.tile(1000 + 100 * np.cos(2 * np.pi * frequency * columns), (1, 64, 1))
        after = prepare([Butterworth(0.1, 3)], wave, Pixels())[0, 20:40, 40:-40]
        assert (after - 1000).std() / (wave[0, 20:40, 40:-40] - 1000).std() == pytest.approx(passed, abs=0.03)


@pytest.mark.parametrize("step", DENOISERS, ids=repr)
def test_what_is_in_a_gap_or_saturated_touches_no_other_pixel(step: Step) -> None:
    frames = measured(scene(300.0), COUNTS).astype("int32")[None]
    mask = np.zeros(frames.shape[1:], bool)
    mask[40:48] = True
    gaps, calm = frames.copy(), frames.copy()
    gaps[:, 40:48], gaps[:, 70, 80], gaps[:, 20:22, 30] = 1 << 30, -1, 60000
    calm[:, 40:48], calm[:, 70, 80], calm[:, 20:22, 30] = 0, -2, 50001
    pixels = Pixels(Marks(invalid=(-1, -2), saturation=50000), mask, COUNTS)
    counts = pixels.valid(gaps)
    after, quiet = prepare([step], gaps, pixels), prepare([step], calm, pixels)
    assert np.array_equal(after[counts], quiet[counts])
    assert np.array_equal(after[~counts], gaps[~counts])


@pytest.mark.parametrize("step", DENOISERS, ids=repr)
def test_absurd_numbers_neither_change_nor_spoil_the_others(step: Step) -> None:
    frame = measured(scene(300.0), COUNTS)[None]
    absurd = frame.copy()
    absurd[0, 5, 5], absurd[0, 100, 100] = 1e300, -1e300
    after = prepare([step], absurd, Pixels(noise=COUNTS))
    assert after[0, 5, 5] == 1e300
    assert after[0, 100, 100] == -1e300
    assert np.abs(after - prepare([step], frame, Pixels(noise=COUNTS)))[0, 30:80].max() < 0.5  # sigma is 17


def test_values_below_the_dark_stay_below() -> None:
    """What was dark-subtracted has true negatives."""
    frame = np.full((1, 64, 64), 100.0)
    frame[:, 20:40, 20:40] = 60
    after = prepare([NlMeans(0.8)], measured(frame[0] - 100, DARK)[None], Pixels(noise=CAMERA))
    assert after[0, 22:38, 22:38].mean() == pytest.approx(60, abs=1)


@pytest.mark.parametrize("step", [Butterworth(0.1), Butterworth(0.1, 4), NlMeans(0.8), Bm3d(1.0)], ids=repr)
def test_documents_come_back(step: Step) -> None:
    assert step_from_dict(step_to_dict(step), "steps[0]") == step
    assert eval(repr(step)) == step


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({"step": "butterworth", "cutoff": 0.6}, "steps[0].cutoff must be a number above 0 and at most 0.5, got 0.6"),
        ({"step": "butterworth", "cutoff": 0.1, "order": 0}, "steps[0].order must be in 1..16, got 0"),
        ({"step": "nl_means"}, "steps[0].strength must be given"),
        ({"step": "bm3d", "strength": 0}, "steps[0].strength must be a number above 0 and at most 10, got 0"),
    ],
)
def test_bad_documents_give_one_line(document: Any, line: str) -> None:
    with pytest.raises(InputError) as caught:
        step_from_dict(document, "steps[0]")
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("step", "module", "line"),
    [
        (Butterworth(0.1), "skimage", "butterworth needs scikit-image: pip install 'tuner[denoise]'"),
        (NlMeans(0.8), "skimage", "nl_means needs scikit-image: pip install 'tuner[denoise]'"),
        (Bm3d(1.0), "bm3d", "bm3d needs bm3d, which is free for non-commercial use: pip install 'tuner[bm3d]'"),
    ],
)
def test_a_library_that_is_missing_is_named(
    step: Step, module: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as caught:
        check_steps([step], np.dtype("uint16"), COUNTS)
    assert str(caught.value) == f"steps[0].step {line}"


def test_what_rests_on_the_noise_needs_it() -> None:
    with pytest.raises(InputError, match=r"^steps\[0\]\.step nl_means must have a noise model$"):
        check_steps([NlMeans(0.8)], np.dtype("uint16"), None)
    check_steps([Butterworth(0.1)], np.dtype("uint16"), None)
