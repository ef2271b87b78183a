"""Analyses tell what changes a scientist's result from what does not, and only code that was allowed is run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tuner import load_profile
from tuner.analysis import ANALYSES, Own, RadialProfile, Reconstruction
from tuner.cli import main
from tuner.errors import InputError
from tuner.goal import Goal, load_goal
from tuner.measure.analyses import Scan, analyse, breach, check_allowed, scans_of
from tuner.measure.analyses.reconstruction import _projections, _reconstruct
from tuner.measure.analyses.scan import Measured, draws
from tuner.noise import Noise
from tuner.read import open_stacks
from tuner.simulate import Mx, Saxs, Tomography, Xrf, write_nexus
from tuner.simulate.simulation import Simulation, world
from tuner.simulate.tomography import draw_phantom
from tuner.steps import Pixels, prepare
from tuner.steps.noise_aware import Sigma

POISSON = Noise(1.0, 0.0, 0.0, "given", 1.0)
CAMERA = Tomography(shape=(48, 128))

#: Small scans of each technique, with the noise that they were made with.
SCANS: dict[str, tuple[Simulation, Noise]] = {
    "saxs": (Saxs(shape=(256, 240), flux=500.0).simulate(12, 1), POISSON),
    "mx": (Mx(shape=(260, 250), spot=300.0, dtype="uint16").simulate(10, 1), POISSON),
    "tomography": (CAMERA.simulate(90, 1), Noise(CAMERA.gain, CAMERA.offset, CAMERA.read_noise * CAMERA.gain, "given")),
    "xrf": (Xrf(shape=(1, 2048)).simulate(49, 1), POISSON),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("analyses")
    paths = {technique: folder / f"{technique}.nxs" for technique in SCANS}
    for technique, (simulation, _) in SCANS.items():
        write_nexus(paths[technique], simulation)
    return paths


def scan_of(path: Path, noise: Noise, change: Callable[[NDArray[Any]], NDArray[Any]] | None = None) -> Scan:
    """A scan of which pixels that count are changed in some way; not at all where none is given."""
    (stack,) = open_stacks([path])
    pixels = Pixels(stack.marks, stack.mask, noise)

    def changed(frames: NDArray[Any]) -> NDArray[Any]:
        after = frames if change is None else change(frames)
        return np.where(pixels.valid(frames), after, frames).astype(frames.dtype)

    (scan,) = scans_of([stack], [pixels], ())
    return Scan(stack, scan.numbers, pixels, changed)


def weak_erased(frames: NDArray[Any]) -> NDArray[Any]:
    return np.where((frames > 4) & (frames < 12), 2, frames)


def line_erased(frames: NDArray[Any]) -> NDArray[Any]:
    """Without the iron K-alpha line, 6.4 keV."""
    after = frames.copy()
    after[..., 620:660] = after[..., 580:620]
    return after


def shifted(frames: NDArray[Any]) -> NDArray[Any]:
    return np.roll(frames, 1, axis=-1)


#: What a scientist of each field would be angry about.
CHEATS: list[tuple[str, Callable[[NDArray[Any]], NDArray[Any]]]] = [
    *((technique, shifted) for technique in SCANS),
    *((technique, np.zeros_like) for technique in SCANS),
    ("saxs", lambda frames: np.where(frames > 3, frames, 0)),
    ("saxs", lambda frames: frames // 2 * 2),
    ("saxs", lambda frames: np.rint(frames * 1.015)),
    ("mx", lambda frames: np.where(frames > 6, frames, 0)),
    ("mx", weak_erased),
    ("mx", lambda frames: np.rint(frames * 1.05)),
    ("tomography", lambda frames: (frames.astype(float) + np.roll(frames, 1, -1) + np.roll(frames, -1, -1)) / 3),
    ("tomography", lambda frames: frames // 512 * 512),
    ("xrf", line_erased),
    ("xrf", lambda frames: np.where(frames > 1, frames, 0)),
    ("xrf", lambda frames: np.rint(frames * 1.05)),
]


@pytest.mark.parametrize(("technique", "cheat"), CHEATS)
def test_an_analysis_finds_what_spoils_it(
    files: dict[str, Path], technique: str, cheat: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    goal = load_goal(technique)
    found = analyse(goal, [scan_of(files[technique], SCANS[technique][1], cheat)])
    assert breach(goal, found) is not None


@pytest.mark.parametrize("technique", SCANS)
def test_rounding_below_the_noise_changes_no_analysis_by_a_per_cent(files: dict[str, Path], technique: str) -> None:
    noise = SCANS[technique][1]
    goal, scan = load_goal(technique), scan_of(files[technique], noise)
    found = analyse(goal, [scan_of(files[technique], noise, lambda f: prepare([Sigma(0.5)], f, scan.pixels))])
    assert breach(goal, found) is None
    assert found.metrics != perfect(goal)


def perfect(goal: Goal) -> dict[str, float]:
    """Of all figures but those that peaks have only of pairs of frames."""
    figures = [(f"{a.name}.{name}", figure) for a in goal.analyses for name, figure in a.figures.items()]
    halves = {analysis.name for analysis in goal.analyses if getattr(analysis, "halves", False)}
    return {name: f.perfect for name, f in figures if "half_cc" not in name or name.partition(".")[0] in halves}


@pytest.mark.parametrize("technique", SCANS)
def test_frames_that_came_back_have_the_perfect_value_of_each_figure(files: dict[str, Path], technique: str) -> None:
    goal = load_goal(technique)
    found = analyse(goal, [scan_of(files[technique], SCANS[technique][1])])
    assert found.metrics == pytest.approx(perfect(goal), abs=1e-9)
    assert all(low <= found.metrics[name] <= high for name, (low, high) in found.spread.items())


@pytest.mark.parametrize(("units", "least"), [(4, 0.85), (6, 0.89), (8, 0.91), (12, 0.92), (24, 0.92), (100, 0.92)])
def test_an_interval_holds_the_truth_as_often_as_is_documented(units: int, least: float) -> None:
    weights = draws(units)
    scans = np.random.default_rng(units).normal(size=(2000, units))
    found = [Measured.of(scan.mean(), weights @ scan, units) for scan in scans]
    assert least <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.97


def test_a_radial_profile_is_what_counting_pixels_in_rings_gives(files: dict[str, Path]) -> None:
    """A pixel that is brighter by a known number moves the bin that it is in by that over the bin's error bar."""
    scan = scan_of(files["saxs"], POISSON)
    frame = scan.stack.read(0, 1)[0]
    valid = scan.pixels.valid(frame[None])[0]
    y, x = np.indices(frame.shape) + 0.5
    distance = np.hypot(y - 120, x - 118)
    ring = valid & (distance >= 50) & (distance < 51)
    at = tuple(np.argwhere(ring)[7])

    def brighter(frames: NDArray[Any]) -> NDArray[Any]:
        after = frames.copy()
        after[(slice(None), *at)] += 40
        return after

    # Bins of pyFAI reach from the least distance to the largest of pixels that count, so some of one pixel or so.
    bins = int(distance[valid].max())
    analysis = RadialProfile(centre=(120, 118), bins=bins)
    one = Scan(scan.stack, np.array([0]), scan.pixels, brighter)
    found = analyse(Goal(("ratio",), analyses=(analysis,)), [one])
    expected = 40 / np.sqrt(frame[ring].sum())
    assert found.metrics["radial_profile.frame_error_bars"] == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("flux", [0.0005, 0.05, 50.0])
def test_figures_of_profiles_are_what_their_definitions_give_of_few_counts_and_of_pixels_that_fail_in_some_frames(
    tmp_path: Path, flux: float
) -> None:
    """The error bar of a mean is that of all its counts: not that of one count a frame, which hid a bias of few."""
    rng = np.random.default_rng(2)
    frames = rng.poisson(flux, (40, 64, 60)).astype(np.int32)
    after = frames + (rng.random(frames.shape) < 0.05)
    bad = rng.random(frames.shape) < 0.02
    bad[3] = bad[5:25, 40:] = True
    frames[bad] = after[bad] = -1
    np.save(tmp_path / "frames.npy", frames)
    goal = Goal.from_dict({"maximize": ["ratio"], "analyses": {"radial_profile": {"centre": [30.2, 28.7], "bins": 16}}})
    found = analyse(goal, [scan_of(tmp_path / "frames.npy", POISSON, lambda _: after)]).metrics

    y, x = np.indices(frames.shape[1:]) + 0.5
    distance = np.hypot(y - 30.2, x - 28.7)
    low, high = distance.min(), distance.max()
    bins = np.minimum((distance - low) / (high - low) * 16, 15).astype(int)
    pixels, counts, more = (
        np.array(
            [np.bincount(bins.ravel(), np.where(out, 0, one).ravel(), 16) for out, one in zip(bad, of, strict=True)]
        )
        for of in (np.ones_like(frames), frames, after)
    )
    seen = pixels > 0
    scaled, moved, variance, least = (
        np.divide(one, n, out=np.zeros_like(counts), where=seen)
        for one, n in ((counts, pixels), (more - counts, pixels), (counts, pixels**2), (1.0, pixels))
    )
    bars = np.divide(moved, np.sqrt(np.maximum(variance, least**2)), out=np.zeros_like(counts), where=seen)
    times = seen.sum(axis=0)
    sigma = np.maximum(np.sqrt(variance.sum(axis=0)) / times, least.sum(axis=0) / times**2)
    mean, change = scaled.sum(axis=0) / times, moved.sum(axis=0) / times
    known = mean >= 100 * sigma
    expected = {
        "frame_chi2": max((one[s] ** 2).mean() for one, s in zip(bars, seen, strict=True) if s.any()),
        "frame_error_bars": bars.max(),
        "scan_chi2": ((change / sigma) ** 2).mean(),
        "scan_error_bars": (change / sigma).max(),
        "scan_percent": 100 * np.divide(change, mean, out=np.zeros(16), where=known).max(),
    }
    assert known.any() == (flux == 50)
    got = {name: found[f"radial_profile.{name}"] for name in expected}
    assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("linked", [False, True])
def test_of_several_detectors_each_has_its_own_beam_centre_or_none(tmp_path: Path, linked: bool) -> None:
    """That of another one would be a profile about a point where no beam is."""
    frames = np.random.default_rng(0).poisson(9, (4, 32, 32)).astype(np.uint16)
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        for name, centre in {"saxs": (10.0, 20.0), "waxs": (30.0, 40.0), "none": None}.items():
            detector = file.create_group(f"entry/instrument/{name}")
            detector.attrs["NX_class"] = "NXdetector"
            detector["data"] = frames
            if centre is not None:
                detector["beam_center_y"], detector["beam_center_x"] = centre
            if linked:
                file[f"entry/plot_{name}/data"] = detector["data"]
        for group in ("entry", "entry/instrument"):
            file[group].attrs["NX_class"] = {"entry": "NXentry"}.get(group, "NXinstrument")
    for name, expected in {"saxs": (10, 20), "waxs": (30, 40), "none": (None, None)}.items():
        place = f"entry/plot_{name}/data" if linked else f"entry/instrument/{name}/data"
        (stack,) = open_stacks([tmp_path / "a.nxs"], dataset=place)
        scan = Scan(stack, np.arange(4), Pixels(noise=POISSON), lambda frames: frames)
        centre = [scan.declared(f"beam_center_{axis}") for axis in "yx"]
        assert tuple(None if at is None else at[0] for at in centre) == expected


def test_pixels_that_came_back_as_no_number_break_every_limit_on_a_profile(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", np.full((4, 32, 32), 900, np.float32))
    goal = Goal.from_dict({"maximize": ["ratio"], "analyses": {"radial_profile": {"centre": [16, 16], "bins": 8}}})
    lost = np.full((4, 32, 32), 900, np.float32)
    lost[2, 3, 4] = np.nan
    found = analyse(goal, [scan_of(tmp_path / "frames.npy", POISSON, lambda _: lost)]).metrics
    assert found.pop("radial_profile.scan_run_p") == 0
    assert set(found.values()) == {np.inf}


def test_a_calibration_that_is_none_is_answered_in_one_line(tmp_path: Path, files: dict[str, Path]) -> None:
    (tmp_path / "text.poni").write_text("no calibration\n")
    (tmp_path / "dark.poni").write_text("Distance: 0.1\nPoni1: 0\nPoni2: 0\nPixelSize1: 1e-4\nPixelSize2: 1e-4\n")
    (tmp_path / "list.poni").write_text("[1, 2\n")
    for name, text in (
        ("text", "must"),
        ("dark", "must tell the wavelength"),
        ("list", "must"),
        ("gone", "no such file"),
    ):
        path = tmp_path / f"{name}.poni"
        goal = Goal.from_dict({"maximize": ["ratio"], "analyses": {"radial_profile": {"poni": str(path)}}})
        with pytest.raises(InputError, match=rf"^{path}: {text}[^\n]*$"):
            analyse(goal, [scan_of(files["saxs"], POISSON)])


def test_slices_show_the_phantom_and_a_wrong_axis_does_not(files: dict[str, Path]) -> None:
    scan = scan_of(files["tomography"], SCANS["tomography"][1]).whole()
    phantom = draw_phantom(world(1), CAMERA.features)
    likeness = []
    for centre in (None, 66.5):
        goal = Goal.from_dict({"maximize": ["ratio"], "analyses": {"reconstruction": {"rows": 1, "centre": centre}}})
        (analysis,) = goal.analyses
        rows, projections, _ = _projections(analysis, scan)
        (halves,) = _reconstruct(analysis, projections, np.linspace(0, 180, len(scan.numbers), endpoint=False))
        seen = sum(halves) / 2
        truth = density(phantom, int(rows[0]), *CAMERA.shape)
        likeness.append(max(np.corrcoef(seen.ravel(), flipped.ravel())[0, 1] for flipped in (truth, truth[::-1])))
    assert likeness[0] > 0.8
    assert likeness[0] > likeness[1] + 0.05


@given(st.floats(-3, 3), st.integers(48, 65), st.integers(0, 1000))
@settings(max_examples=20)
def test_noise_of_slices_does_not_depend_on_where_between_two_columns_the_axis_is(
    aside: float, columns: int, seed: int
) -> None:
    """Else a change of projections would look smaller than it is; by a half between two columns, interpolated."""
    noise = np.random.default_rng(seed).standard_normal((1, 24, columns))
    angles = np.linspace(0, 180, 24, endpoint=False)
    y, x = np.ogrid[:columns, :columns]
    disc = np.hypot(y - columns // 2, x - columns // 2) < columns // 2 - 6
    on_a_column, between = (
        np.std(np.sum(_reconstruct(Reconstruction(centre=centre), noise, angles)[0], axis=0)[disc])
        for centre in (columns // 2, columns // 2 + aside)
    )
    assert between == pytest.approx(on_a_column, rel=0.15)


def density(phantom: NDArray[np.float64], row: int, rows: int, columns: int) -> NDArray[np.float64]:
    """The phantom in the plane of a row, as scikit-image has its axes."""
    half = columns / 2
    place = (np.arange(columns) + 0.5 - half) / half
    x, y = place[None, :], place[:, None]
    z = (row + 0.5 - rows / 2) / half
    inside = np.zeros((columns, columns))
    for cx, cy, cz, a, b, c, turn, weight in phantom:
        u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
        v = -(x - cx) * np.sin(turn) + (y - cy) * np.cos(turn)
        inside += weight * ((u / a) ** 2 + (v / b) ** 2 + ((z - cz) / c) ** 2 < 1)
    return inside


def test_peaks_that_were_put_there_are_found(tmp_path: Path) -> None:
    """Of spots of 300 counts all are found; where every other is taken away, half of them are missed."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:200, :200]
    light = np.full((200, 200), 2.0)
    spots = [(r, c) for r in range(20, 190, 20) for c in range(20, 190, 20)]
    for row, column in spots:
        light += 300 / (2 * np.pi) * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 2)
    frames = rng.poisson(light, (3, 200, 200)).astype(np.uint16)
    np.save(tmp_path / "spots.npy", frames)

    def half(frames: NDArray[Any]) -> NDArray[Any]:
        after = frames.copy()
        for row, column in spots[::2]:
            after[:, row - 4 : row + 5, column - 4 : column + 5] = 2
        return after

    goal = Goal.from_dict({"maximize": ["ratio"], "analyses": {"peaks": {"strong": 8}}})
    found = analyse(goal, [scan_of(tmp_path / "spots.npy", POISSON, half)])
    assert found.metrics["peaks.recall"] == pytest.approx(1 - len(spots[::2]) / len(spots), abs=0.01)
    assert found.metrics["peaks.precision"] == 1
    assert found.metrics["peaks.scale_percent"] == pytest.approx(50, abs=2)


@pytest.mark.parametrize("background", [0.0, 0.05])
def test_a_sharp_peak_without_background_is_one_and_stays_where_it_was(tmp_path: Path, background: float) -> None:
    """All boxes that hold it hold the same; which one is a peak is not up to the background, nor to the last digit."""
    rng = np.random.default_rng(0)
    light = np.full((200, 200), background)
    light[20:190:20, 20:190:20] = 200
    frames = rng.poisson(light, (6, 200, 200)).astype(np.uint16)
    np.save(tmp_path / "sharp.npy", frames)
    pixels = Pixels(noise=POISSON)
    goal = Goal.from_dict({"maximize": ["ratio"], "analyses": {"peaks": {"centre": [100, 100]}}})
    rounded = scan_of(tmp_path / "sharp.npy", POISSON, lambda frames: prepare([Sigma(0.99)], frames, pixels))
    found = analyse(goal, [rounded]).metrics
    assert found["peaks.rms_sigma"] > 0
    assert found["peaks.recall"] == found["peaks.precision"] == 1
    # Twins that are added are as many again.
    apart = scan_of(tmp_path / "sharp.npy", POISSON, lambda frames: np.maximum(frames, np.roll(frames, 10, -1)))
    assert analyse(goal, [apart]).metrics["peaks.precision"] == pytest.approx(0.5, abs=0.01)


def test_a_shell_of_few_reflections_does_not_judge(tmp_path: Path) -> None:
    """Correlation of one reflection is lost with any change of it; and weak ones that are not there are not lost."""
    frames = np.zeros((3, 300, 300), np.uint16)
    frames[:, 100:200:20, 100:200:20] = np.random.default_rng(0).integers(200, 700, (3, 5, 5))
    frames[0, 20, 20] = 403
    np.save(tmp_path / "few.npy", frames)
    goal = Goal.from_dict({"maximize": ["ratio"], "analyses": {"peaks": {"centre": [150, 150]}}})
    assert breach(load_goal("mx"), analyse(load_goal("mx"), [scan_of(tmp_path / "few.npy", POISSON)])) is None
    lower = scan_of(tmp_path / "few.npy", POISSON, lambda frames: frames // 8 * 8)
    found = analyse(goal, [lower]).metrics
    assert 0.99 < found["peaks.shell_cc"] < 1
    assert 0 < found["peaks.shell_scale_percent"] < 3


def test_what_is_lost_at_high_resolution_shows_in_its_shell(files: dict[str, Path]) -> None:
    """Intensities far from the beam are few counts among many: the others hide what becomes of them."""
    scan = scan_of(files["mx"], POISSON)
    y, x = np.indices(scan.stack.frame_shape)
    outside = np.hypot(y - 0.51 * 260, x - 0.49 * 250) > 145

    def erased(frames: NDArray[Any]) -> NDArray[Any]:
        return np.where(outside, 1, frames)

    found = analyse(load_goal("mx"), [scan_of(files["mx"], POISSON, erased)]).metrics
    assert found["peaks.cc"] > 0.8
    assert found["peaks.shell_cc"] < 0.3
    assert found["peaks.shell_scale_percent"] > 2 * found["peaks.scale_percent"]


HALVES = Goal.from_dict({"maximize": ["ratio"], "analyses": {"peaks": {"halves": True}}})


def test_noise_in_either_frame_lowers_the_correlation_of_halves_as_its_variance_says(tmp_path: Path) -> None:
    """What is added to both is no loss: halves agree as before."""
    rng = np.random.default_rng(0)
    spots = [(r, c) for r in range(20, 390, 20) for c in range(20, 390, 20)]
    light = np.full((400, 400), 2.0)
    y, x = np.mgrid[-7:8, -7:8]
    for (row, column), counts in zip(spots, rng.uniform(200, 900, len(spots)), strict=True):
        light[row - 7 : row + 8, column - 7 : column + 8] += counts / 6 * np.exp(-(y**2 + x**2) / 2)
    frames = rng.poisson(light, (6, 400, 400)).astype(np.float32)
    np.save(tmp_path / "spots.npy", frames)
    noise = rng.normal(0, 20, frames.shape).astype(np.float32)
    before = np.array([[sums(frame, at) for at in spots] for frame in frames])
    expected = np.mean([np.corrcoef(before[k], before[k + 1])[0, 1] for k in (0, 2, 4)])
    spoilt = np.array([[sums(frame, at) for at in spots] for frame in frames + noise])
    lower = np.mean([np.corrcoef(spoilt[k], spoilt[k + 1])[0, 1] for k in (0, 2, 4)])
    assert expected - lower > 0.1
    (stack,) = open_stacks([tmp_path / "spots.npy"])

    def found(change: Callable[[NDArray[Any]], NDArray[Any]], numbers: list[int]) -> Any:
        return analyse(HALVES, [Scan(stack, np.array(numbers), Pixels(noise=POISSON), change)])

    every = list(range(6))
    got = found(lambda f: f + noise[: len(f)], every)
    assert got.metrics["peaks.half_cc_loss"] == pytest.approx(expected - lower, abs=0.03)
    low, high = got.spread["peaks.half_cc_loss"]
    assert 0 < low < got.metrics["peaks.half_cc_loss"] < high < 2 * low
    assert found(lambda f: f, every).metrics["peaks.half_cc_loss"] == 0
    assert abs(found(lambda f: 1.5 * f, every).metrics["peaks.half_cc_loss"]) < 1e-6
    # Of frames drawn by chance, the others of their pairs are read.
    some = found(lambda f: f + noise[: len(f)], [1, 4])
    assert some.metrics["peaks.half_cc_loss"] == pytest.approx(got.metrics["peaks.half_cc_loss"], abs=0.05)
    with pytest.raises(InputError, match=r"must have frames that follow each other for peaks\.halves$"):
        analyse(HALVES, [one_frame(tmp_path, frames[:1])])


def sums(frame: NDArray[Any], at: tuple[int, int]) -> float:
    """The counts of a spot above its surroundings, 2 in truth."""
    return float((frame[at[0] - 2 : at[0] + 3, at[1] - 2 : at[1] + 3] - 2).sum())


def one_frame(folder: Path, frames: NDArray[Any]) -> Scan:
    np.save(folder / "one.npy", frames)
    return scan_of(folder / "one.npy", POISSON)


def exposures(background: float, spectra: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The same spectra taken twice: lines of Fe and Cu, no Mn, over a flat background."""
    energy = np.arange(1200) * 0.01
    light = np.full(1200, background)
    for at, counts in ((6.40, 880), (7.06, 120), (8.04, 176), (8.90, 24)):
        width = np.hypot(0.15, 2.355 * np.sqrt(0.115 * 0.00366 * max(at - 5.9, 0))) / 2.355
        light += counts * 0.01 / (width * np.sqrt(2 * np.pi)) * np.exp(-((energy - at) ** 2) / (2 * width**2))
    first, second = np.random.default_rng(1).poisson(light, (2, spectra, 1200)).astype(np.float32)
    return first, second


@pytest.mark.parametrize("background", [0.02, 20.0])
@pytest.mark.parametrize("gain", [1.0, 1e-3, 100.0])
def test_a_repeated_exposure_moves_areas_by_their_error_bars_whatever_the_background_and_the_unit(
    tmp_path: Path, background: float, gain: float
) -> None:
    """By more of them, what is harmless is refused; by less, what is not passes."""
    first, second = exposures(background, 50)
    write_frames(tmp_path / "spectra.h5", first * np.float32(gain), "spectrum")
    scan = scan_of(tmp_path / "spectra.h5", Noise(gain, 0.0, 0.0, "given"), lambda _: second * np.float32(gain))
    analysis = {"elements": ["Mn", "Fe", "Cu"], "calibration": [0, 0.01], "beam_kev": 11.5}
    goal = Goal.from_dict({"maximize": ["ratio"], "analyses": {"spectrum": analysis}})
    found = analyse(goal, [scan]).metrics
    assert 0.9 * 2**0.5 < found["spectrum.pixel_rms_error_bars"] < 2.0 * 2**0.5
    assert found["spectrum.scan_error_bars"] < 8


@pytest.mark.parametrize(
    ("kind", "given", "shape"),
    [
        ("radial_profile", {"centre": [16, 16]}, (3, 32, 32)),
        ("spectrum", {"elements": ["Fe"], "calibration": [0, 0.01]}, (3, 1200)),
        ("peaks", {}, (3, 32, 32)),
        ("contrast", {"centre": [16, 16]}, (3, 32, 32)),
    ],
)
def test_frames_of_which_nothing_counts_have_no_perfect_numbers(
    tmp_path: Path, kind: str, given: dict[str, Any], shape: tuple[int, ...]
) -> None:
    write_frames(tmp_path / "a.h5", np.full(shape, -1, np.int32), "image" if len(shape) == 3 else "spectrum")
    goal = Goal.from_dict({"maximize": ["ratio"], "analyses": {kind: given}})
    with pytest.raises(InputError, match=r"a\.h5: must have [^\n]*got none"):
        analyse(goal, [scan_of(tmp_path / "a.h5", POISSON)])


def write_frames(path: Path, frames: NDArray[Any], interpretation: str) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = frames
        file["data"].attrs["interpretation"] = interpretation


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"elements": ["Fe", "C"]}, r"lines from 1 to 11\.6 keV that the beam excites, got 'C'$"),
        ({"elements": ["Pb"]}, r"lines from 1 to 11\.6 keV that the beam excites, got 'Pb'$"),
        ({"elements": ["fe"]}, "must name elements such as Fe, got 'fe'$"),
        ({"calibration": [0, 0]}, "calibration must reach from 1 keV up, got 0 and 0 a channel$"),
        ({"calibration": [0, 10]}, "calibration must reach from 1 keV up, got 0 and 10 a channel$"),
    ],
)
def test_lines_that_cannot_be_fitted_are_answered_in_one_line(
    files: dict[str, Path], given: dict[str, Any], message: str
) -> None:
    analysis = {"elements": ["Fe"], "calibration": [0, 0.01], "beam_kev": 12, **given}
    goal = Goal.from_dict({"maximize": ["ratio"], "analyses": {"spectrum": analysis}})
    with pytest.raises(InputError, match=message):
        analyse(goal, [scan_of(files["xrf"], POISSON)])


def test_rounding_below_the_noise_costs_no_half_set_correlation_and_noise_of_a_cheat_does(
    files: dict[str, Path],
) -> None:
    rng = np.random.default_rng(3)
    scan = scan_of(files["mx"], POISSON)
    rounded, noisy = (
        analyse(HALVES, [scan_of(files["mx"], POISSON, change)]).metrics
        for change in (
            lambda f: prepare([Sigma(0.5)], f, scan.pixels),
            lambda f: np.maximum(f + rng.normal(0, 3 * np.sqrt(f + 1.0)), 0),
        )
    )
    for name in ("peaks.half_cc_loss", "peaks.shell_half_cc_loss"):
        assert rounded[name] < 0.02 < noisy[name]


def test_what_an_analysis_needs_is_asked_for_in_one_line(tmp_path: Path, files: dict[str, Path]) -> None:
    np.save(tmp_path / "flat.npy", np.ones((9, 64, 64), np.uint16))
    expected = {"radial_profile": "centre or poni", "peaks": "must have peaks", "reconstruction": "must have flats"}
    for kind, text in expected.items():
        goal = Goal.from_dict({"maximize": ["ratio"], "analyses": {kind: {}}})
        with pytest.raises(InputError, match=text):
            analyse(goal, [scan_of(tmp_path / "flat.npy", POISSON)])
        with pytest.raises(InputError, match="must be images"):
            analyse(goal, [scan_of(files["xrf"], POISSON)])
    goal = Goal.from_dict({"maximize": ["ratio"], "analyses": {"spectrum": {"elements": ["Fe"]}}})
    with pytest.raises(InputError, match="must be spectra"):
        analyse(goal, [scan_of(tmp_path / "flat.npy", POISSON)])
    goal = Goal.from_dict({"maximize": ["ratio"], "analyses": {"spectrum": {"elements": ["Xx"]}}})
    with pytest.raises(InputError, match="'Xx'"):
        analyse(goal, [scan_of(files["xrf"], POISSON)])


@pytest.mark.parametrize(
    ("technique", "module", "package"),
    [
        ("saxs", "pyFAI", "pyFAI"),
        ("mx", "scipy", "scipy"),
        ("tomography", "skimage.transform", "skimage"),
        ("xrf", "PyMca5.PyMcaPhysics.xrf", "PyMca5"),
    ],
)
def test_a_library_that_is_missing_is_named(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, technique: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    with pytest.raises(InputError, match=rf"^analysis \w+ needs {package}: pip install 'tuner\[analyses\]'$"):
        analyse(load_goal(technique), [scan_of(files[technique], SCANS[technique][1])])


# Documents ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("technique", SCANS)
def test_a_goal_with_analyses_comes_back_from_its_document(technique: str) -> None:
    goal = load_goal(technique)
    assert goal.analysed
    assert Goal.from_dict(json.loads(json.dumps(goal.to_dict()))) == goal
    plain = goal.without_analyses
    assert "analyses" not in plain.to_dict()
    assert plain.limits == goal.limits


@pytest.mark.parametrize(
    ("analyses", "require", "message"),
    [
        ({"radial": {}}, [], r"analyses\.radial\.analysis must be one of .* 'radial'.*did you mean 'radial_profile'"),
        ({"peaks": {"strong": 1}}, [], r"analyses\.peaks\.strong must be a number at least 3, got 1"),
        ({"peaks": {"boxes": 5}}, [], r"analyses\.peaks\.boxes is not a known key"),
        ({"peaks": {"halves": 1}}, [], r"analyses\.peaks\.halves must be true or false, got 1"),
        ({"peaks": {"box": 4}}, [], r"analyses\.peaks\.background must be odd"),
        ({"radial_profile": {"centre": [1]}}, [], r"centre must be \[row, column\]"),
        (
            {"radial_profile": {"centre": [1, 2], "poni": "a"}},
            [],
            r"radial_profile\.centre must not be given beside poni",
        ),
        ({"spectrum": {}}, [], r"analyses\.spectrum\.elements must be given"),
        ({"Mine": {"analysis": "python:a.b"}}, [], "lower-case"),
        ({"mine": {"analysis": "python:os"}}, [], r"module\.function"),
        ({"mine": {"analysis": "command:"}}, [], "command:program"),
        ({"mine": {"analysis": "python:a.b", "memory": "lots"}}, [], "memory must be a size"),
        ({}, ["peaks.recall >= 0.9"], "must name an analysis that the goal has"),
        ({"peaks": {}}, ["peaks.recal >= 0.9"], "did you mean 'recall'"),
        ({"peaks": {}}, ["peaks.recall >= 0.9 * bslz4"], "must have a number as limit"),
    ],
)
def test_mistakes_in_a_document_are_answered_with_their_place(
    analyses: dict[str, Any], require: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Goal.from_dict({"maximize": ["ratio"], "require": require, "analyses": analyses}, "g.yaml:")


def test_every_parameter_is_held_to_what_it_may_be() -> None:
    for kind in ANALYSES.values():
        for key in kind.valid:
            given = {"elements": ("Fe",), key: object()} if "elements" in kind.valid else {key: object()}
            with pytest.raises(InputError, match=key):
                kind(**given)


# The user's own -------------------------------------------------------------------------------------------------------


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a module of the user's and a few frames."""
    (tmp_path / "mine.py").write_text(
        "import os, sys, time\n"
        "import numpy as np\n"
        "open('was_imported', 'w').close()\n"
        "def total(before, after):\n"
        "    print('this is no answer')\n"
        "    a, b = np.load(before), np.load(after)\n"
        "    return {'percent': 100 * abs(b.sum(dtype=float) / a.sum(dtype=float) - 1), 'frames': len(a)}\n"
        "def fails(before, after): raise ValueError('no beam')\n"
        "def hangs(before, after): time.sleep(60)\n"
        "def eats(before, after): return {'n': len(bytearray(8 << 30))}\n"
        "def dies(before, after): os.abort()\n"
        "def words(before, after): return {'n': 'many'}\n"
        "def nan(before, after): return {'n': float('nan')}\n"
        "def nothing(before, after): return {}\n"
    )
    np.save(tmp_path / "frames.npy", np.random.default_rng(0).poisson(500, (40, 32, 32)).astype(np.uint16))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_own(run: str, change: Callable[[NDArray[Any]], NDArray[Any]] | None = None, **limits: Any) -> dict[str, float]:
    goal = Goal(("ratio",), analyses=(Own("mine", run, **limits),))
    return dict(analyse(goal, [scan_of(Path("frames.npy"), POISSON, change)]).metrics)


@pytest.mark.usefixtures("lab")
def test_a_function_or_a_program_gets_files_and_answers_with_numbers() -> None:
    doubled = run_own("python:mine.total", lambda frames: frames * 2)
    assert doubled == {"mine.percent": pytest.approx(100.0), "mine.frames": 40}
    Path("size.sh").write_text('echo "{\\"same\\": $(cmp -s "$1" "$2" && echo 1 || echo 0)}"\n')
    assert run_own("command:sh size.sh") == {"mine.same": 1}
    assert run_own("command:sh size.sh", lambda frames: frames + 1) == {"mine.same": 0}


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize(
    ("run", "limits", "message"),
    [
        ("python:mine.fails", {}, "ended with exit status 1: ValueError: no beam"),
        ("python:mine.gone", {}, "has no attribute 'gone'"),
        ("python:absent.total", {}, "No module named 'absent'"),
        ("python:mine.hangs", {"seconds": 1.5}, "took more than 1.5 s"),
        ("python:mine.eats", {"memory": "2GiB"}, "MemoryError"),
        ("python:mine.dies", {}, "ended with signal 6"),
        ("python:mine.words", {}, "could not convert"),
        ("python:mine.nan", {}, "must answer with named finite numbers"),
        ("python:mine.nothing", {}, "must answer with named numbers"),
        ("command:echo", {}, "must print one JSON object"),
        ("command:no-such-program", {}, "No such file"),
    ],
)
def test_a_failure_is_one_clear_line(run: str, limits: dict[str, Any], message: str) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=message) as raised:
        run_own(run, **limits)
    assert str(raised.value).startswith(f"analysis mine: {run}: ")
    assert "\n" not in str(raised.value)
    assert time.monotonic() - start < 50  # far from the minute that one of them sleeps


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize("answer", ["[" * 10**5, f'{{"n": 1{"0" * 400}}}', f'{{"n": 1{"0" * 5000}}}', '{"n": 1e999}'])
def test_an_answer_beyond_all_bounds_is_one_clear_line(answer: str) -> None:
    Path("answer.json").write_text(answer)
    Path("say.sh").write_text("cat answer.json\n")
    with pytest.raises(InputError, match=r"^analysis mine: command:sh say\.sh: must .*, got .{1,90}$"):
        run_own("command:sh say.sh")


def test_nothing_outlives_an_analysis_that_was_stopped(lab: Path) -> None:
    Path("child.sh").write_text("sleep 60 & echo $! > pid; wait\n")
    with pytest.raises(InputError, match="took more than"):
        run_own("command:sh child.sh", seconds=1.0)
    left = Path(f"/proc/{(lab / 'pid').read_text().strip()}/status")
    assert not left.exists() or "zombie" in left.read_text()


def test_code_runs_only_where_it_is_allowed(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(lab / "home"))
    (lab / "goal.yaml").write_text(
        "maximize: [ratio]\nrequire: ['flux.percent <= 0.01', 'max_error_sigma <= 1']\n"
        "analyses:\n  flux: {analysis: 'python:mine.total', seconds: 60}\n"
    )
    (lab / "space.yaml").write_text(
        "steps: {choose: [[{step: uniform, width: {choose: [4, 32]}}]]}\n"
        "blosc2: {codec: zstd, clevel: 1, filters: {choose: [[shuffle], [bitshuffle]]}}"
    )
    search = "search frames.npy -o p.yaml --space space.yaml --goal goal.yaml --noise gain=1 --budget 8 --unguided"
    quick = ["--sample", "20kB", "--quiet"]
    assert main([*search.split(), *quick]) == 2
    assert "--allow-code must be given" in capfd.readouterr().err
    assert not (lab / "was_imported").exists()
    assert main([*search.split(), *quick, "--allow-code"]) == 0
    profile = load_profile("p.yaml", strict=True)
    assert profile.evidence["promise"]["analyses"]["flux.percent"][0] <= 0.01
    assert profile.evidence["promise"]["limits"]["flux.percent <= 0.01"] == "by sample"
    (lab / "was_imported").unlink()
    load_profile("p.yaml")
    assert main(["apply", "p.yaml", "frames.npy", "out.h5", "--quiet"]) == 0
    assert main(["verify", "p.yaml", "frames.npy", "--quiet"]) == 2
    assert not (lab / "was_imported").exists()
    assert main(["verify", "p.yaml", "frames.npy", "--quiet", "--allow-code"]) == 0
    assert (lab / "was_imported").exists()
    (lab / "mine.py").write_text("def total(before, after): return {'percent': 5.0}\n")
    assert main(["verify", "p.yaml", "frames.npy", "--quiet", "--allow-code"]) == 4
    assert "flux.percent" in capfd.readouterr().err


def test_only_what_runs_code_needs_to_be_allowed() -> None:
    check_allowed(load_goal("saxs"), allow_code=False)
    with pytest.raises(InputError, match="--allow-code"):
        check_allowed(Goal(("ratio",), analyses=(Own("mine", "command:true"),)), allow_code=False)
