"""Pictures show what steps do: their numbers are those of the qualities, and what is correlated looks so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tuner.cli import main
from tuner.config import Config
from tuner.errors import InputError
from tuner.noise import Noise
from tuner.profile import Invalid, Match, Profile
from tuner.quality import compare
from tuner.read.npy import open_npy
from tuner.report.pictures import autocorrelation, draw
from tuner.stack import Kind, Stack
from tuner.steps import Pixels, prepare
from tuner.steps.noise_aware import Sigma
from tuner.steps.uniform import Uniform

NOISE = Noise(1.0, 0.0, 0.0, "given").floored(1.0)


def profile_for(stack: Stack, *steps: Sigma | Uniform) -> Profile:
    config = Config((1, *(-1,) * stack.frame_ndim), steps=steps)
    invalid = Invalid(stack.invalid, saturation=stack.saturation, underload=stack.underload)
    return Profile("counts", Match(stack.dtype.name), config, replace(config, steps=()), invalid, NOISE)


def stack_of(folder: Path, frames: NDArray[np.generic]) -> Stack:
    path = folder / "frames.npy"
    np.save(path, frames)
    return open_npy(path)


@given(hnp.arrays(np.float64, hnp.array_shapes(max_dims=2, max_side=9), elements=st.floats(-8, 8, width=16)))
@settings(max_examples=60)
def test_the_autocorrelation_is_the_sum_over_all_pairs(residual: NDArray[np.float64]) -> None:
    found = autocorrelation(residual, 2)
    total = float((residual**2).sum())
    if total == 0:
        assert np.isnan(found).all()
        return
    padded = np.pad(residual, 2)
    inner = (slice(2, -2),) * residual.ndim
    for place in np.ndindex(found.shape):
        lag = tuple(index - 2 for index in place)
        ahead = np.roll(padded, tuple(-x for x in lag), tuple(range(residual.ndim)))[inner]
        wanted = float((residual * ahead).sum()) / total
        assert np.isnan(found[place]) if not any(lag) else np.isclose(found[place], wanted, atol=1e-9)


def test_a_frame_that_stays_as_it_is_is_not_drawn_as_if_it_were_rounded(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(500, (4, 30, 30)).astype(np.uint16)
    kinds = np.array([Kind.FLAT, Kind.DATA, Kind.DARK, Kind.DARK], np.uint8)
    stack = replace(stack_of(tmp_path, frames), kinds=kinds)
    profile = profile_for(stack, Uniform(8))
    assert draw(profile, stack, tmp_path / "picture.png")["frame"] == 1
    for number in (0, 2):
        with pytest.raises(InputError, match="--frame must be that of data"):
            draw(profile, stack, tmp_path / "picture.png", number)
    with pytest.raises(InputError, match="must have data frames"):
        draw(profile, replace(stack, kinds=np.full(4, Kind.DARK, np.uint8)), tmp_path / "picture.png")


@pytest.mark.parametrize("name", ["picture.xyz", "picture.jpg", "picture"])
def test_a_picture_is_a_png(name: str, tmp_path: Path) -> None:
    stack = stack_of(tmp_path, np.random.default_rng(0).poisson(100, (2, 40, 50)).astype(np.uint16))
    with pytest.raises(InputError, match=r"must end in \.png, got "):
        draw(profile_for(stack, Sigma(1.0)), stack, tmp_path / name)
    assert not (tmp_path / name).exists()
    stack.close()


def test_its_numbers_are_the_qualities_of_the_frame(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(100, (3, 80, 120)).astype(np.uint16)
    stack, steps = stack_of(tmp_path, frames), (Sigma(1.0),)
    told = draw(profile_for(stack, *steps), stack, tmp_path / "p.png", 2)
    wanted = compare(frames[2:], prepare(steps, frames[2:], Pixels(noise=NOISE)), stack.valid(frames[2:]), NOISE)
    assert told["max_error"] == pytest.approx(float(wanted["max_error_sigma"][0]))
    assert told["autocorrelation"] < 0.05
    assert (tmp_path / "p.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "p.png").stat().st_size < 150_000


def test_an_error_that_follows_the_sample_shows_as_correlated(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(80), np.arange(90)).astype(np.uint16)[None]
    stack = stack_of(tmp_path, ramp)
    assert draw(profile_for(stack, Uniform(16)), stack, tmp_path / "p.png")["autocorrelation"] > 0.5


@pytest.mark.parametrize(
    "frames",
    [
        np.random.default_rng(0).poisson(50, (4, 300)).astype(np.float32),
        np.full((1, 8, 9), np.nan, np.float32),
        np.zeros((2, 200, 5), np.int32),
    ],
    ids=["spectra", "nothing counts", "constant"],
)
def test_frames_of_all_kinds_are_drawn(frames: NDArray[np.generic], tmp_path: Path) -> None:
    stack = stack_of(tmp_path, frames)
    stack = replace(stack, frame_ndim=frames.ndim - 1)
    told = draw(profile_for(stack, Uniform(2)), stack, tmp_path / "p.png")
    assert np.isfinite([told["max_error"], told["autocorrelation"]]).all()


def test_what_cannot_be_drawn_is_said_in_a_line(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, np.zeros((2, 20, 20), np.uint16))
    with pytest.raises(InputError, match="must have steps"):
        draw(profile_for(stack), stack, tmp_path / "p.png")
    with pytest.raises(InputError, match=r"--frame must be in 0..1, got 2"):
        draw(profile_for(stack, Uniform(2)), stack, tmp_path / "p.png", 2)


def test_the_command_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = stack_of(tmp_path, np.random.default_rng(0).poisson(100, (2, 40, 40)).astype(np.uint16))
    profile_for(stack, Sigma(1.0)).save(tmp_path / "p.yaml")
    words = ["show", str(tmp_path / "p.yaml"), str(tmp_path / "frames.npy"), "-o", str(tmp_path / "p.png")]
    assert main(words) == 0
    assert "p.png: frame 1, error at most 0.4" in capsys.readouterr().out
    assert main([*words[:-1], str(tmp_path / "frames.npy")]) == 2, "an original is no place to draw to"
    assert main([*words, "--frame", "7"]) == 2
