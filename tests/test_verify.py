"""A profile is held to other data: every pixel, and what it promises."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from in_memory import Memory, stack_of
from numpy.typing import NDArray

from tuner.apply.encode import Encoder
from tuner.config import Blosc2, Config
from tuner.errors import CodecError, InputError, VerificationError
from tuner.goal import Goal, goal_of
from tuner.measure import verify
from tuner.measure.meter import Meter
from tuner.measure.timing import machine
from tuner.measure.verify import verify_original
from tuner.noise import Noise
from tuner.profile import Match, Profile
from tuner.read.hdf5 import open_hdf5
from tuner.read.sampling import draw_sample
from tuner.search.evidence import envelope
from tuner.steps.noise_aware import Sigma
from tuner.steps.uniform import Uniform

SAMPLE_NBYTES = 1 << 20


def counts(*shape: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).poisson(100, shape).astype(np.uint16)


def profile(goal: Goal | None = None, chunks: tuple[int, ...] = (1, -1, -1)) -> Profile:
    config = Config(chunks, Blosc2("zstd", clevel=1))
    evidence = {} if goal is None else {"goal": goal.to_dict()}
    return Profile("test", Match("uint16"), config, config, evidence=evidence)


def test_what_holds_is_told_in_numbers() -> None:
    goal = goal_of(None, ["ratio"], ["ratio >= 1.5", "ratio >= 0.9 * blosc2", "encode_mb_s >= 0.001"])
    told: list[tuple[int, int]] = []
    report = verify_original(
        profile(goal, (2, -1, 50)), stack_of(counts(9, 64, 60)), SAMPLE_NBYTES, lambda *n: told.append(n)
    )
    assert report["frames"] == 9
    assert report["nbytes"] == 9 * 64 * 60 * 2
    assert told == [(9, 9)]
    # All of it is in the sample.
    assert report["ratio"] == report["metrics"]["ratio"]
    assert [entry["requirement"] for entry in report["requirements"]] == [str(c) for c in goal.require]
    assert all(entry["met"] and entry["got"] >= entry["limit"] for entry in report["requirements"])
    assert report["warnings"] == []


def test_a_profile_made_by_hand_promises_nothing_but_the_pixels() -> None:
    report = verify_original(profile(), stack_of(counts(3, 40, 50)), SAMPLE_NBYTES)
    assert (report["requirements"], report["warnings"], report["metrics"]) == ([], [], {})
    assert report["ratio"] > 1.5


def test_frames_that_were_never_written_are_no_gain(tmp_path: Path) -> None:
    for name, count in (("none.h5", 0), ("scan.h5", 8)):
        with h5py.File(tmp_path / name, "w") as file:
            data = file.create_dataset("x", (20, 40, 50), "u2", chunks=(1, 40, 50))
            data[:count] = np.random.default_rng(0).integers(0, 1 << 16, (count, 40, 50))
    with closing(open_hdf5(tmp_path / "none.h5")) as stack, pytest.raises(InputError, match="written, got none"):
        verify_original(profile(), stack, SAMPLE_NBYTES)
    with closing(open_hdf5(tmp_path / "scan.h5")) as stack:
        verified = verify_original(profile(), stack, SAMPLE_NBYTES)
    assert (verified["frames"], verified["nbytes"]) == (8, 8 * 40 * 50 * 2)
    assert 0.9 < verified["ratio"] <= 1, "nothing makes noise smaller"


def test_what_is_read_at_once_is_bounded() -> None:
    scan = stack_of(counts(10, 1024, 1024))
    verify_original(profile(), scan, SAMPLE_NBYTES)
    assert isinstance(scan.source, Memory)
    assert scan.source.most * scan.frame_nbytes <= 16 << 20


def cheating_from(frame: int) -> Callable[..., Encoder]:
    """An encoder of a scan whose frames are numbered by their first pixel: wrong in one pixel of one frame."""

    class Cheat(Encoder):
        def decode(self, encoded: bytes | memoryview, out: NDArray[Any] | None = None) -> NDArray[Any]:
            decoded = super().decode(encoded, out)
            decoded[decoded[:, 0, 0] >= frame, -1, -1] ^= 1
            return decoded

    return lambda config, fallback, dtype: Cheat(config.blosc2, config.chunks, dtype)


@pytest.mark.parametrize("chunks", [(1, -1, -1), (4, -1, -1), (3, -1, 20)])
@pytest.mark.parametrize("wrong", [0, 5, 9])
def test_the_first_frame_that_comes_back_different_is_named(
    monkeypatch: pytest.MonkeyPatch, chunks: tuple[int, ...], wrong: int
) -> None:
    frames = counts(10, 32, 40)
    # The first pixel of each tile tells the frame.
    frames[:, 0, ::20] = np.arange(10)[:, None]
    monkeypatch.setattr(verify, "open_encoder", cheating_from(wrong))
    with pytest.raises(VerificationError, match=rf"^memory: frame {wrong}: does not decode to the same pixels$"):
        verify_original(profile(chunks=chunks), stack_of(frames), SAMPLE_NBYTES)


def test_a_codec_that_fails_is_a_failed_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(Encoder):
        def encode(self, chunk: NDArray[Any]) -> bytes:
            if chunk[0, 0, 0] == 3:
                raise CodecError("does not feel like it")
            return super().encode(chunk)

    frames = counts(6, 32, 40)
    frames[:, 0, 0] = np.arange(6)
    monkeypatch.setattr(verify, "open_encoder", lambda config, _, dtype: Refuses(config.blosc2, config.chunks, dtype))
    with pytest.raises(VerificationError, match=r"^memory: frame 3: does not feel like it$"):
        verify_original(profile(), stack_of(frames), SAMPLE_NBYTES)


@pytest.mark.parametrize("requirement", ["ratio >= 100", "ratio >= 3 * gzip", "ratio <= 0.5 * best"])
def test_an_exact_requirement_that_is_missed_fails(requirement: str) -> None:
    goal = goal_of(None, ["encode_mb_s"], [requirement])
    with pytest.raises(VerificationError) as failed:
        verify_original(profile(goal), stack_of(counts(4, 64, 64)), SAMPLE_NBYTES)
    text = str(failed.value)
    assert text.startswith(f"memory: the profile promises {goal.require[0]} (here ")
    assert "\n" not in text


def test_what_was_measured_of_a_profile_that_fails_is_told_too() -> None:
    goal = goal_of(None, ["ratio"], ["ratio >= 100"])
    with pytest.raises(VerificationError) as failed:
        verify_original(profile(goal), stack_of(counts(4, 64, 64)), SAMPLE_NBYTES)
    held = verify_original(profile(goal_of(None, ["ratio"])), stack_of(counts(4, 64, 64)), SAMPLE_NBYTES)
    assert failed.value.found["ratio"] == held["ratio"]
    assert failed.value.found["worth"] == held["worth"] == pytest.approx(np.log(held["metrics"]["ratio"]))


def test_frames_that_break_a_limit_are_counted() -> None:
    goal = goal_of(None, ["ratio"], ["max_error_sigma <= 0.3"])
    lossy = replace(profile(goal), noise=Noise(1.0, 0.0, 0.0, "given", 1.0))
    lossy = replace(lossy, config=replace(lossy.config, steps=(Uniform(8),)))
    frames = counts(6, 64, 64) * 100
    frames[[2, 3, 5]] //= 100
    with pytest.raises(VerificationError, match=r"^memory: frame 2: max_error_sigma .*; 3 of 6 frames break a limit$"):
        verify_original(lossy, stack_of(frames), SAMPLE_NBYTES)


def measured_on(frames: NDArray[Any], scale: float = 1.0) -> Profile:
    """A profile as a search leaves it, on a processor on which everything was so many times as fast."""
    stack = stack_of(frames)
    sample = draw_sample([stack], SAMPLE_NBYTES)
    plain = profile(goal_of(None, ["encode_mb_s"]))
    meter = Meter(sample)
    evaluation = meter.timed(meter.exact(plain.config))
    metrics = {"ratio": evaluation.metrics["ratio"]}
    metrics |= {name: evaluation.low(name) * scale for name in ("encode_mb_s", "decode_mb_s")}
    reference = {"reference_mb_s": evaluation.origin["reference_mb_s"] * scale}
    evidence = {"metrics": metrics, "sample": {"frames": sample.n_frames}, "machine": {**machine(), **reference}}
    return replace(plain, envelope=envelope(sample, [stack]), evidence={**plain.evidence, **evidence})


def test_data_unlike_those_that_the_profile_was_measured_on_are_told() -> None:
    known = measured_on(counts(16, 64, 64))
    for alike in (counts(16, 64, 64, seed=1), counts(4, 64, 64, seed=2)):
        assert {*verify_original(known, stack_of(alike), SAMPLE_NBYTES)["outside"]} <= {"encode_mb_s", "decode_mb_s"}
    brighter = verify_original(known, stack_of(counts(16, 64, 64) * 7), SAMPLE_NBYTES)["outside"]
    assert {"mean", "maximum", "step"} <= {*brighter}
    value, low, high = brighter["mean"]
    assert value == pytest.approx(700, rel=0.01)
    assert low < 100 < high < value
    noise = np.random.default_rng(0).integers(0, 1 << 16, (16, 64, 64)).astype(np.uint16)
    value, low, high = verify_original(known, stack_of(noise), SAMPLE_NBYTES)["outside"]["ratio"]
    assert value < low < known.evidence["metrics"]["ratio"]
    assert high is None


def test_a_machine_that_is_busy_is_no_drift_and_slower_code_is() -> None:
    frames = counts(16, 64, 64)
    # All was a hundred times as fast, the reference kernel too; or what the profile does alone.
    outside = verify_original(measured_on(frames, 100.0), stack_of(frames), SAMPLE_NBYTES)["outside"]
    assert all(value > low / 3 for value, low, _ in outside.values()), "as far as a busy machine varies"
    alone = measured_on(frames)
    metrics = {name: value * 100 for name, value in alone.evidence["metrics"].items()}
    slower = replace(alone, evidence={**alone.evidence, "metrics": {**metrics, "ratio": 1.0}})
    assert {*verify_original(slower, stack_of(frames), SAMPLE_NBYTES)["outside"]} == {"encode_mb_s", "decode_mb_s"}


def test_a_limit_that_breaks_at_the_far_end_of_its_interval_tells_the_interval() -> None:
    def held_to(limit: float) -> Profile:
        wanted = {"maximize": ["ratio"], "require": [f"radial_profile.scan_chi2 <= {limit}"]}
        goal = Goal.from_dict({**wanted, "analyses": {"radial_profile": {"centre": [32, 32], "bins": 20}}})
        lossy = profile(goal)
        steps = replace(lossy.config, steps=(Uniform(8),))
        return replace(lossy, config=steps, noise=Noise(1.0, 0.0, 0.0, "given", 1.0))

    scan = stack_of(counts(8, 64, 64))
    value = verify_original(held_to(9), scan, SAMPLE_NBYTES)["metrics"]["radial_profile.scan_chi2"]
    with pytest.raises(VerificationError, match=r", got ([\d.e-]+) \([\d.e-]+ to [\d.e-]+\)$"):
        verify_original(held_to(1.01 * value), scan, SAMPLE_NBYTES)


def test_frames_with_less_noise_than_the_profile_says_are_a_warning() -> None:
    """Their limits hold, in a sigma that is not theirs: as of another gain, or of means of frames."""
    goal = goal_of(None, ["ratio"], ["max_error_sigma <= 0.5"])
    lossy = replace(profile(goal), noise=Noise(1.0, 0.0, 0.0, "given", 1.0))
    lossy = replace(lossy, config=replace(lossy.config, steps=(Sigma(0.9),)))
    rng = np.random.default_rng(0)
    noisy, quiet = (rng.normal(4000, sigma, (4, 128, 128)).astype(np.uint16) for sigma in (63, 16))
    assert verify_original(lossy, stack_of(noisy), SAMPLE_NBYTES)["warnings"] == []
    (warning,) = verify_original(lossy, stack_of(quiet), SAMPLE_NBYTES)["warnings"]
    assert warning.startswith("memory: the profile's noise may be too large for these frames: differences have 0.0")


def test_a_timed_requirement_that_is_missed_is_a_warning() -> None:
    goal = goal_of(None, ["ratio"], ["encode_mb_s >= 1e9", "ratio >= 1.5"])
    report = verify_original(profile(goal), stack_of(counts(4, 64, 64)), SAMPLE_NBYTES)
    (warning,) = report["warnings"]
    assert warning.startswith("this machine misses just now encode_mb_s >= 1e+09 (here 1e+09), got ")
    assert [entry["met"] for entry in report["requirements"]] == [False, True]


@pytest.mark.parametrize("lead", [(), (3, 4)])
def test_what_was_promised_for_three_axes_cannot_be_held_of_others(lead: tuple[int, ...]) -> None:
    goal = goal_of(None, ["ratio"], ["sinogram_read_mb_s >= 1"])
    frames = counts(*(lead or (1,)), 64, 64)
    scan = stack_of(frames.reshape(*lead, 64, 64), 2)
    with pytest.raises(InputError, match=r"^memory: must have three axes, as the profile promises sinogram_read_mb_s"):
        verify_original(profile(goal), scan, SAMPLE_NBYTES)


def test_a_profile_of_other_frames_is_refused() -> None:
    with pytest.raises(InputError, match=r"^memory: the profile is for dtype uint16, got int32$"):
        verify_original(profile(), stack_of(np.zeros((2, 4, 4), np.int32)), SAMPLE_NBYTES)
