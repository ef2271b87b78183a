"""What a profile promises of pixels holds on frames that the search never saw, and no cheat gets one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_memory import stack_of
from numpy.typing import NDArray

from tuner import load_profile
from tuner.cli import main
from tuner.config import Blosc2, Config
from tuner.document import Interval, Number
from tuner.errors import UnsatisfiableError
from tuner.evaluation import Evaluation, Log
from tuner.goal import Goal
from tuner.measure.meter import Meter
from tuner.noise import Noise
from tuner.read import open_stacks
from tuner.read.sampling import Sample, draw_sample
from tuner.search.lossy import REPORTED, Option, on_grid, rank_steps, settle_noise
from tuner.search.parts import Parts, split
from tuner.search.promise import Promise, expected_worst, hold, units_for, upper_bound
from tuner.space import Space
from tuner.stack import Kind, Stack
from tuner.steps import Pixels, Step, prepare
from tuner.steps.noise_aware import Octave, Sigma
from tuner.steps.uniform import Uniform, Window

SUB_NOISE = Goal.from_dict({"maximize": ["ratio"], "require": ["max_error_sigma <= 0.5", "bias_sigma <= 0.01"]})
EQUIVALENT = Goal.from_dict(
    {
        "maximize": ["ratio"],
        "require": [
            "dose_cost <= 0.083",
            "bias_sigma <= 0.01",
            "residual_autocorrelation <= 0.05",
            "residual_signal_correlation <= 0.05",
        ],
    }
)
POISSON = Noise(1.0, 0.0, 0.0, "given", 1.0)


def scene(n: int = 100) -> NDArray[np.uint16]:
    """Counts on a slope with weak and strong peaks on it."""
    y, x = np.mgrid[:128, :128]
    light = 20 + 2.0 * y
    for row, column, height in ((20, 30, 12.0), (60, 90, 60.0), (100, 50, 4000.0)):
        light = light + height * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 8)
    return np.random.default_rng(0).poisson(light, (n, 128, 128)).astype(np.uint16)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("promise") / "scan.h5"
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = scene()
    return path


@dataclass(frozen=True)
class Opened:
    """The scan as a search has it."""

    stacks: list[Stack]
    parts: Parts
    sample: Sample
    pixels: list[Pixels]

    def hold(self, options: list[Option], goal: Goal) -> tuple[Option, Promise]:
        return hold(options, goal, self.stacks, self.pixels, self.parts, 0.05)


def opened_of(path: Path) -> Opened:
    stacks = open_stacks([path])
    parts = split(stacks, units_for(0.05), 0)
    sample = draw_sample(stacks, 12 * 128 * 128 * 2, among=parts.search)
    return Opened(stacks, parts, sample, [Pixels(stack.marks, None, POISSON) for stack in stacks])


@pytest.fixture
def opened(scan: Path) -> Opened:
    return opened_of(scan)


@dataclass(frozen=True)
class Cheat:
    """A step that promises nothing and changes pixels; no step of ours."""

    name: ClassVar[str] = "cheat"
    valid: ClassVar[Mapping[str, Number | Interval]] = {}

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        pass

    def bound(self, values: NDArray[Any], noise: Noise | None) -> NDArray[np.float64]:
        return np.zeros(values.shape)

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        raise NotImplementedError


class Zeros(Cheat):
    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        return np.zeros_like(values)


class Constant(Cheat):
    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        return np.full_like(values, 150)


class Random(Cheat):
    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        return np.random.default_rng(0).integers(0, 300, values.shape).astype(values.dtype)


class Floor(Cheat):
    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        return values // 8 * 8


class Brighter(Cheat):
    """A third of a sigma everywhere."""

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        return (values + np.rint(0.3 * np.sqrt(values))).astype(values.dtype)


class NoBackground(Cheat):
    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        return np.where(values > 1000, values, 0).astype(values.dtype)


class NoWeakPeaks(Cheat):
    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        return np.where((values > 300) & (values < 1000), 280, values).astype(values.dtype)


CHEATS = [Zeros(), Constant(), Random(), Floor(), Brighter(), NoBackground(), NoWeakPeaks()]


def option(step: Step) -> Option:
    return Option((step,), Evaluation(Config(), {"ratio": 100.0}))


@pytest.mark.parametrize("goal", [SUB_NOISE, EQUIVALENT], ids=["sub-noise", "noise-equivalent"])
@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: type(cheat).__name__)
def test_cheats_get_no_promise(opened: Opened, cheat: Step, goal: Goal) -> None:
    with pytest.raises(UnsatisfiableError, match="is broken"):
        opened.hold([option(cheat)], goal)


@pytest.mark.parametrize("goal", [SUB_NOISE, EQUIVALENT], ids=["sub-noise", "noise-equivalent"])
def test_cheats_do_not_even_become_candidates(opened: Opened, goal: Goal, tmp_path: Path) -> None:
    meter = Meter(opened.sample, pixels=opened.pixels, qualities=(*REPORTED, *goal.qualities))
    with Log(tmp_path / "log.jsonl") as log:
        allowed, refused = rank_steps([(), *((cheat,) for cheat in CHEATS)], meter, goal, log)
    assert [option.steps for option in allowed] == [()]
    assert len(refused) == len(CHEATS)


def test_noise_that_is_overestimated_gets_no_profile(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten times the noise would let ten times the error pass: what is estimated is taken, and what is given doubted."""
    space = tmp_path / "space.yaml"
    space.write_text("steps: {choose: [[], [{step: uniform, width: {choose: [2, 60]}}]]}")
    command = ["search", str(scan), "-o", str(tmp_path / "p.yaml"), "--space", str(space), "--unguided", "--quiet"]
    limits = ["--maximize", "ratio", "--require", "max_error_sigma <= 0.5", "--budget", "12"]
    assert main([*command, *limits]) == 0
    estimated = load_profile(tmp_path / "p.yaml", strict=True)
    assert estimated.noise is not None
    assert estimated.noise.gain == pytest.approx(1, rel=0.15)
    assert estimated.config.steps == (Uniform(2.0),)
    assert main([*command, *limits, "--noise", "gain=100"]) == 0
    assert "the noise given may be wrong" in capsys.readouterr().err
    assert load_profile(tmp_path / "p.yaml", strict=True).evidence["noise"]["doubts"]


@pytest.mark.parametrize("mean", [0.05, 200])
def test_what_compresses_best_is_asked_of_all_frames_of_a_short_scan(tmp_path: Path, mean: float) -> None:
    """Of twelve frames ten judge the steps, and one is left: too few to know what several in a chunk are worth."""
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).poisson(mean, (12, 64, 64)).astype("uint16"))
    command = ["search", str(tmp_path / "scan.npy"), "-o", str(tmp_path / "p.yaml"), "--unguided", "--quiet"]
    lossy = ["--space", "counting", "--goal", "sub-noise", "--noise", "gain=1", "--budget", "12"]
    assert main([*command, *lossy]) == 0
    found = load_profile(tmp_path / "p.yaml", strict=True)
    assert bool(found.config.steps) == (mean > 1)
    assert found.evidence["sample"]["frames"] == 12


def test_a_step_that_is_right_where_the_search_looked_and_wrong_elsewhere_is_caught(opened: Opened) -> None:
    seen = {run.frames[index].tobytes() for run in opened.sample.runs for index in range(len(run.frames))}

    def learned(steps: Any, frames: NDArray[Any], about: Pixels) -> NDArray[Any]:
        """Frames that were seen as they are, others as zeros: no table of single values could."""
        return np.stack([frame if frame.tobytes() in seen else np.zeros_like(frame) for frame in frames])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tuner.search.promise.prepare", learned)
        with pytest.raises(UnsatisfiableError, match="is broken"):
            opened.hold([option(Uniform(2))], SUB_NOISE)


def test_one_damaged_frame_in_many_is_found_with_the_confidence_that_is_stated() -> None:
    """Of steps that break a limit in a share of frames above the risk, at most one in twenty passes."""
    rng = np.random.default_rng(0)
    for risk in (0.05, 0.1, 0.2):
        units = units_for(risk)
        assert upper_bound(units, 0.95) <= risk < upper_bound(units - 1, 0.95)
        passed = (rng.random((20000, units)) >= risk).all(axis=1).mean()
        assert passed <= 0.05


def test_the_worst_of_many_is_foretold_by_some() -> None:
    """Of tails that fall as fast as those of noise: right in the median, and never below the worst that was seen."""
    rng = np.random.default_rng(0)
    for draw in (rng.exponential, lambda size: np.abs(rng.normal(size=size))):
        many = draw(size=(400, 600))
        foretold = np.array([expected_worst(each[:60], 600) for each in many])
        assert (foretold >= many[:, :60].max(axis=1)).all()
        assert np.median(foretold / many.max(axis=1)) == pytest.approx(1, abs=0.15)
    assert expected_worst(np.full(60, 0.3), 600) == 0.3
    assert expected_worst(np.arange(10.0), 600) == 9


@dataclass(frozen=True)
class Growing(Cheat):
    """Moves pixels the further the more they are above 1000."""

    share: float

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        return values + self.share * (values - 1000)


def test_of_those_that_stray_the_one_is_taken_that_strays_least() -> None:
    brightness = 1000 + np.random.default_rng(0).exponential(100, 2000)
    parts = split([stack_of(np.zeros((2000, 4, 4)))], 59, 0)
    held = [unit.frame for unit in (*parts.select, *parts.test)]
    brightness[held] = np.minimum(brightness[held], 1400)  # but of 2000 such frames 1760 is to be expected
    stack = stack_of(np.broadcast_to(brightness[:, None, None], (2000, 4, 4)).copy())
    goal = Goal.from_dict({"maximize": ["ratio"], "require": ["rmse <= 401"]})
    harsh, gentle = option(Growing(1.0)), option(Growing(0.97))
    for options in ([harsh, gentle], [gentle, harsh]):
        taken, promise = hold(options, goal, [stack], [Pixels(noise=POISSON)], parts, 0.05)
        assert (taken, promise.looks) == (gentle, 1)
    assert hold([harsh, option(Growing(0.1))], goal, [stack], [Pixels(noise=POISSON)], parts, 0.05)[0] != harsh
    assert hold([harsh], goal, [stack], [Pixels(noise=POISSON)], parts, 0.05)[0] == harsh


@pytest.fixture
def lucky(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """The scan with steps of zeros that spare the frames by which is selected."""
    spared = {opened.stacks[0].read(u.frame, u.frame + 1).tobytes() for u in opened.parts.select}

    def sparing(steps: Any, frames: NDArray[Any], about: Pixels) -> NDArray[Any]:
        return frames if isinstance(steps[0], Zeros) and frames.tobytes() in spared else prepare(steps, frames, about)

    monkeypatch.setattr("tuner.search.promise.prepare", sparing)
    return opened


def test_a_second_look_is_harder_to_pass(lucky: Opened) -> None:
    bad, good = option(Zeros()), option(Uniform(2))
    goal = Goal.from_dict({"maximize": ["ratio"], "require": ["max_abs_error <= 1"]})
    first, one = lucky.hold([good], goal)
    second, two = lucky.hold([bad, good], goal)
    third, three = lucky.hold([bad, bad, good], goal)
    assert first == second == third == good
    assert [p.looks for p in (one, two, three)] == [1, 2, 3]
    assert [p.confidence for p in (one, two, three)] == [0.95, 0.975, 0.9875]
    assert one.bound < two.bound < three.bound
    assert not one.provisional
    assert two.provisional
    assert one.limits == {"max_abs_error <= 1": "by construction"}
    assert one.worst["max_abs_error"] == 1


def test_what_fails_on_the_select_part_costs_no_look(opened: Opened) -> None:
    taken, promise = opened.hold([option(Zeros()), option(Uniform(2))], SUB_NOISE)
    assert taken == option(Uniform(2))
    assert (promise.looks, promise.confidence) == (1, 0.95)


@given(n=st.integers(3, 400), count=st.integers(1, 120), seed=st.integers(0, 5))
def test_no_frame_is_in_two_parts_and_between_them_is_a_gap(n: int, count: int, seed: int) -> None:
    stack = stack_of(np.zeros((n, 2, 2), np.uint16))
    parts = split([stack], count, seed)
    (search,) = parts.search
    select, test = ([unit.frame for unit in part] for part in (parts.select, parts.test))
    assert search.any()
    assert test
    assert len(test) <= count
    assert test == sorted(set(test))
    assert not set(test) & set(select)
    assert not search[test].any()
    assert not search[select].any()
    if n >= 24:
        near = [frame + shift for frame in test for shift in (-1, 1) if 0 <= frame + shift < n]
        assert not search[near].any()
    if n >= 3 * count + 48:
        assert len(test) == count
    again = split([stack], count, seed)
    assert (again.test, again.select) == (parts.test, parts.select)
    assert (again.search[0] == search).all()


@pytest.mark.parametrize("frames", [240, 1000, 5000])
def test_what_breaks_a_limit_for_a_while_is_not_missed_more_often_than_the_bound_says(frames: int) -> None:
    stack, run, missed = stack_of(np.zeros((frames, 1, 1), np.uint8)), frames // 10, 0
    for seed in range(100):
        first = int(np.random.default_rng([seed, 9]).integers(0, frames - run + 1))
        test = split([stack], units_for(0.05), seed).test
        assert len(test) == units_for(0.05)
        missed += not any(first <= unit.frame < first + run for unit in test)
    assert missed <= 5  # one tenth of the frames is twice the bound, which has a confidence of 0.95


@given(frames=st.lists(st.integers(1, 9), min_size=2, max_size=40), seed=st.integers(0, 5))
def test_of_several_files_whole_ones_are_held_back(frames: list[int], seed: int) -> None:
    stacks = [stack_of(np.zeros((n, 2, 2), np.uint16)) for n in frames]
    parts = split(stacks, 59, seed)
    searched = {index for index, allowed in enumerate(parts.search) if allowed.any()}
    selected, tested = ({unit.stack for unit in part} for part in (parts.select, parts.test))
    assert searched
    assert tested
    assert not searched & tested
    assert not searched & selected
    assert not selected & tested
    assert all(parts.search[index].all() for index in searched)
    assert len(frames) < 3 or selected


def test_frames_that_are_not_data_are_in_no_part() -> None:
    kinds = np.array([Kind.DARK] * 5 + [Kind.DATA] * 40 + [Kind.FLAT] * 5, np.uint8)
    parts = split([replace(stack_of(np.zeros((50, 2, 2), np.uint16)), kinds=kinds)], 59, 0)
    frames = {unit.frame for unit in (*parts.select, *parts.test)} | set(np.flatnonzero(parts.search[0]).tolist())
    assert frames <= set(range(5, 45))


@pytest.mark.parametrize("shape", [(22, 26), (128, 128), (1000, 300), (2048,), (3, 5000)])
def test_of_a_single_frame_tiles_are_held_back(shape: tuple[int, ...]) -> None:
    stack = stack_of(np.zeros((1, *shape), np.uint16))
    parts = split([stack], 59, 0)
    covered = np.zeros(shape, int)
    for unit in (*parts.select, *parts.test):
        covered[unit.place] += 1
    assert parts.seen is not None
    assert (covered <= 1).all()
    assert ((covered == 1) == ~parts.seen).all()
    assert parts.seen.mean() > 0.3
    assert "tiles" in parts.population


def test_a_search_on_a_single_frame_promises_tiles_and_catches_what_spares_its_own(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.tile(scene(1), (1, 4, 4)))
    one = opened_of(tmp_path / "one.npy")
    assert one.parts.seen is not None
    seen = one.parts.seen
    taken, promise = one.hold([option(Uniform(2))], SUB_NOISE)
    assert taken == option(Uniform(2))
    assert promise.units == 59
    assert (promise.bound, promise.provisional) == (1, True)  # of other frames they say nothing
    meter = Meter(one.sample, pixels=one.pixels, qualities=("max_abs_error",), seen=seen)

    def sparing(steps: Any, frames: NDArray[Any], about: Pixels) -> NDArray[Any]:
        return np.where(seen, frames, 0).astype(frames.dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tuner.measure.meter.prepare", sparing)
        assert meter.prepared((Uniform(2),)).quality["max_abs_error"] == 0
        patch.setattr("tuner.search.promise.prepare", sparing)
        with pytest.raises(UnsatisfiableError, match="is broken"):
            one.hold([option(Uniform(2))], SUB_NOISE)


def test_what_keeps_every_pixel_needs_no_frames(opened: Opened) -> None:
    lossless = Option((), Evaluation(Config(), {"ratio": 2.0}))
    taken, promise = opened.hold([option(Zeros()), lossless], SUB_NOISE)
    assert taken == lossless
    assert (promise.bound, promise.provisional) == (0.0, False)


@pytest.mark.parametrize("step", [Sigma(0.97), Octave(0.97), Sigma(0.5), Octave(1.4)])
def test_no_mean_moves_where_whole_numbers_are_multiples_of_more(step: Step) -> None:
    """As those of a camera of 12 bits that fills 16 from above."""
    rng, noise = np.random.default_rng(0), Noise(8.0, 1600.0, 19.2, "given")

    def frames(photons: float) -> NDArray[np.uint16]:
        return 16 * np.rint(0.5 * rng.poisson(photons, (4, 256, 256)) + rng.normal(100, 1.2, (4, 256, 256))).astype(
            "u2"
        )

    stack = stack_of(frames(20))
    found = settle_noise(noise, stack, draw_sample([stack]), Evaluation(Config(), {"ratio": 1.5}))
    (steps,) = on_grid([(step,)], found.step)
    about = Pixels(noise=found.noise)
    for photons in np.geomspace(0.1, 1000, 24):
        before = frames(photons)
        moved = (prepare(steps, before, about).astype(float) - before).mean()
        assert abs(moved) <= 0.012 * np.sqrt(found.noise.variance(np.array(1600 + 8 * photons)))  # 0.002 by chance


@pytest.mark.usefixtures("home")
def test_from_a_scan_to_a_lossy_file_that_keeps_its_promise(scan: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "steps: {choose: [[], [{step: sigma, width: {choose: [0.5, 0.99]}}]]}\n"
        "blosc2: {codec: zstd, clevel: 1, filters: {choose: [[shuffle], [bitshuffle]]}}"
    )
    profile, out = tmp_path / "p.yaml", tmp_path / "out.h5"
    search = ["search", str(scan), "-o", str(profile), "--space", str(space), "--noise", "gain=1", "--sample", "0.5MB"]
    require = [part for c in SUB_NOISE.require for part in ("--require", str(c))]
    assert main([*search, "--maximize", "ratio", *require, "--budget", "12", "--quiet"]) == 0
    found = load_profile(profile, strict=True)
    assert found.config.steps
    promise = found.evidence["promise"]
    assert promise["looks"] == 1
    assert promise["units"] == 59
    assert promise["provisional"] is False
    assert promise["worst"]["max_error_sigma"] <= 0.5
    assert promise["worst"]["bias_sigma"] <= 0.01
    assert found.evidence["metrics"]["ratio"] > 1.3 * found.evidence["baselines"]["bslz4"]["ratio"]
    assert main(["apply", str(profile), str(scan), str(out), "--quiet"]) == 0
    assert main(["verify", str(profile), str(out), "--against", str(scan), "--quiet"]) == 0
    assert main(["verify", str(profile), str(scan), "--quiet"]) == 0
    # Other data than it was found on: the same detector with its light shut off breaks nothing, with a wrong one all.
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["entry/data/data"] = np.random.default_rng(1).normal(2000, 2, (4, 128, 128)).astype(np.uint16)
    assert main(["verify", str(profile), str(tmp_path / "other.h5"), "--quiet"]) == 4


def test_units_and_bounds() -> None:
    assert [units_for(risk) for risk in (0.5, 0.05, 0.01)] == [5, 59, 299]
    assert upper_bound(0, 0.95) == 1
    for units in (1, 10, 59, 1000):
        bound = upper_bound(units, 0.95)
        assert math.isclose((1 - bound) ** units, 0.05)


def test_steps_of_a_space_and_a_space_with_steps() -> None:
    space = Space.from_dict({"steps": {"choose": [[], [{"step": "uniform", "width": {"choose": [2, 4]}}]]}})
    assert space.steps() == [(), (Uniform(2.0),), (Uniform(4.0),)]
    assert space.with_steps((Uniform(4.0),)).steps() == [(Uniform(4.0),)]
    given = Config(blosc2=Blosc2("lz4"), steps=(Window(3, 0, 70),))
    assert Space("given", given.to_dict()).steps() == [given.steps]
