"""What `tuner read` prints of a file says what is in it."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tuner.errors import InputError, TunerWarning
from tuner.goal import load_goal
from tuner.read.hdf5 import open_hdf5
from tuner.read.npy import open_npy
from tuner.read.sampling import draw_sample
from tuner.read.tiff import open_tiff
from tuner.report.inspection import format_inspection, inspect
from tuner.report.suggestion import FITS, suggestion
from tuner.search.find import find_profile
from tuner.simulate import simulate, write_nexus
from tuner.space import load_space
from tuner.stack import Stack


def told(stack: Stack) -> tuple[dict[str, Any], dict[str, str]]:
    """The inspection, and the printed rows by their labels."""
    inspection = inspect(stack, draw_sample([stack]))
    text = format_inspection(inspection)
    lines = text.splitlines()
    assert len(lines) <= 24, "one screen"
    assert max(map(len, lines[1:])) <= 120
    assert text.isascii() or not stack.name.isascii()
    rows: dict[str, str] = {}
    for line in lines[1:]:
        label, _, value = line.strip().partition("  ")
        rows.setdefault(label, value.strip())
    stack.source.close()
    return inspection, rows


def saved(path: Path, frames: NDArray[Any]) -> Stack:
    np.save(path / "frames.npy", frames)
    return open_npy(path / "frames.npy")


def test_a_camera_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    light = np.linspace(100, 3000, 128)[:, None] * np.ones((128, 128))
    frames = np.rint(rng.poisson(light / 2, (6, 128, 128)) * 2.0 + 100).astype(np.uint16)
    frames[:, 5, 5] = 65535
    tifffile.imwrite(tmp_path / "scan.tif", frames, photometric="minisblack", compression="zlib")
    inspection, rows = told(open_tiff([tmp_path / "scan.tif"], axes=["theta", "y", "x"]))
    assert rows["shape"] == "6 x 128 x 128 (theta, y, x)"
    assert rows["frames"] == "6 images of 128 x 128 pixels"
    assert rows["pixel"] == "uint16, 197 kB in all"
    assert rows["stored"].startswith("TIFF adobe deflate, ratio 1.")
    assert rows["masked"] == "0.0061 % (marked by 65535)"
    assert rows["bits used"] == "11 of 16", "the lowest of 12 is never set"
    assert rows["steps"] == "multiples of 2"
    assert rows["noise"].startswith("sigma ")
    assert inspection["noise"][0]["gain"] == pytest.approx(2, rel=0.1)
    assert inspection["storage"]["ratio"] < inspection["noise"][0]["ratio_bound"]


def test_counts_held_in_floats(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(4, (4, 100, 100)).astype(np.float32)
    frames[:, :10] = 0
    _, rows = told(saved(tmp_path, frames))
    assert rows["steps"] == "whole numbers held in floats"
    assert rows["bits used"] == "4 of the 24 that a float32 keeps"
    assert rows["zeros"].endswith("(10 % of the pixels are 0 in every frame)")
    assert "steps" in told(saved(tmp_path, frames / 4))[1]


def test_data_that_were_rescaled(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(1000, (4, 200, 200))
    _, rows = told(saved(tmp_path, np.floor(counts * 1.25).astype(np.uint16)))
    assert rows["gaps"].endswith("% of the codes never occur: rounded or rescaled before")
    assert "gaps" not in told(saved(tmp_path, counts.astype(np.uint16)))[1]


def test_a_fixed_pattern_of_large_frames_is_not_taken_for_noise(tmp_path: Path) -> None:
    # Frames that are drawn one by one; neighbours alone would say 110.
    rng = np.random.default_rng(0)
    light = rng.gamma(30, 20, (512, 512))
    stack = saved(tmp_path, rng.poisson(light, (6, 512, 512)).astype(np.uint16))
    sample = draw_sample([stack], 2 * stack.frame_nbytes)
    assert sample.longest == 1
    believed, other = inspect(stack, sample)["noise"]
    assert believed["source"] == "differences of consecutive frames"
    assert believed["sigma_at_mean"] == pytest.approx(24.5, rel=0.1)
    assert other["sigma_at_mean"] > 100
    stack.close()


def test_frames_that_were_never_written_are_told(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        data = file.create_dataset("x", (20, 40, 50), "i4", chunks=(1, 40, 50))
        data[:8] = 1
    inspection, rows = told(open_hdf5(tmp_path / "scan.h5"))
    assert (inspection["frames"], inspection["written_frames"]) == (20, 8)
    assert rows["frames"] == "20 images of 40 x 50 pixels, of which 8 were written"


@pytest.mark.parametrize(("mark", "told_of"), [(65535, True), (4095, True), (4000, False)])
def test_gaps_that_nobody_marked_are_told(mark: int, told_of: bool, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(20, (6, 64, 64)).astype(np.uint32)
    frames[:, :16] = mark
    inspection, rows = told(saved(tmp_path, frames))
    assert inspection["stuck_fraction"] == (0.25 if told_of else 0)
    assert ("25 % of the pixels have the greatest in every frame: gaps?" in rows["range"]) == told_of


@pytest.mark.usefixtures("empty_home")
def test_a_lossy_search_warns_of_gaps_that_nobody_marked(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(200, (12, 64, 64)).astype(np.uint32)
    frames[:, :16] = 65535
    saved(tmp_path, frames).close()
    about = {"space": "counting", "goal": "sub-noise", "noise": "gain=1", "surrogate": False, "budget": "8"}
    with warnings.catch_warnings(record=True, category=TunerWarning) as told:
        warnings.simplefilter("always")
        find_profile([tmp_path / "frames.npy"], **about)  # type: ignore[arg-type]
    assert any("frames.npy: 0.25 of the pixels are 65535 in every frame" in str(one.message) for one in told)


def test_nothing_valid(tmp_path: Path) -> None:
    _, rows = told(saved(tmp_path, np.full((2, 30, 30), -1, np.int32)))
    assert rows["masked"] == "all (marked by -1 or -2)"
    assert rows["values"] == "none that is valid"
    assert "noise" not in rows


def test_gaps_above_the_limit_of_the_detector_are_masked_and_not_saturated(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(3, (2, 40, 50)).astype(np.uint32)
    frames[:, 10:14] = 2**32 - 1
    frames[:, 0, 0] = 70_000
    _, rows = told(replace(saved(tmp_path, frames), saturation=60_000.0))
    assert rows["masked"] == "10 % (marked by 4294967295)"
    assert rows["saturated"] == "0.05 % (60000 and above)"


def test_a_constant(tmp_path: Path) -> None:
    _, rows = told(saved(tmp_path, np.full((3, 30, 30), 7, np.uint8)))
    assert rows["range"] == "7 to 7, mean 7"
    assert rows["lossless"] == "no noise to be found that would limit the ratio"


@settings(max_examples=80)
@given(
    frames=hnp.arrays(
        hnp.boolean_dtypes()
        | hnp.integer_dtypes()
        | hnp.unsigned_integer_dtypes()
        | hnp.floating_dtypes(sizes=(16, 32, 64)),
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=8),
    )
)
def test_whatever_is_in_a_file_can_be_told(tmp_path_factory: pytest.TempPathFactory, frames: NDArray[Any]) -> None:
    inspection, rows = told(saved(tmp_path_factory.mktemp("any"), frames))
    assert json.loads(json.dumps(inspection, allow_nan=False)) == inspection
    assert {"shape", "frames", "pixel", "stored", "looked at", "masked"} <= set(rows)


@pytest.mark.parametrize(
    ("technique", "line"),
    [
        ("tomography", "perhaps tomography, by its definition NXtomo: --space tomography --goal tomography (lossy)"),
        ("mx", "perhaps crystallography, by its definition NXmx: --space mx --goal mx (lossy)"),
        ("saxs", "perhaps scattering, by its definition NXsas: --space scattering --goal saxs (lossy)"),
        ("xrf", "perhaps fluorescence, by its definition NXfluo: --space spectroscopy --goal xrf (lossy)"),
        ("xpcs", "perhaps photon correlation, by its definition NXxpcs: --space scattering --goal xpcs (lossy)"),
    ],
)
def test_a_space_and_a_goal_are_suggested_from_what_a_file_says(technique: str, line: str, tmp_path: Path) -> None:
    shape = (1, 64) if technique == "xrf" else (64, 72)
    write_nexus(tmp_path / "scan.nxs", simulate(technique, 16, 0, shape))
    inspection, rows = told(open_hdf5(tmp_path / "scan.nxs"))
    assert rows["try"] == line
    suggested = inspection["suggestion"]
    assert load_space(suggested["space"]).name == suggested["space"]


@pytest.mark.parametrize(
    ("said", "technique"),
    [
        ({}, "a camera"),
        ({"kinds": np.array([0, 1], np.uint8)}, "tomography"),
        ({"axes": ("omega", "y", "x")}, "crystallography"),
        ({"axes": ("omega", "y", "x"), "photon_counting": False}, "tomography"),
        ({"axes": ("theta", "y", "x"), "photon_counting": True}, "crystallography"),
        ({"photon_counting": True}, "photon counts"),
        ({"dtype": np.dtype("int32")}, "photon counts"),
        ({"dtype": np.dtype("float32")}, "computed values"),
        ({"frame_ndim": 1}, "fluorescence"),
    ],
)
def test_without_a_definition_hints_are_taken_and_the_guess_stays_one(
    said: dict[str, Any], technique: str, tmp_path: Path
) -> None:
    stack = replace(saved(tmp_path, np.zeros((2, 16, 16), "uint16")), **said)
    found = suggestion(stack, 0.0)
    assert found.technique == technique
    assert str(found).startswith(f"perhaps {technique}, by its ")


def test_frames_whose_noise_is_that_of_counting_are_no_camera_s(tmp_path: Path) -> None:
    counted = np.random.default_rng(0).poisson(np.linspace(0.5, 9, 128), (4, 128, 128)).astype("uint16")
    _, rows = told(saved(tmp_path, counted))
    assert rows["try"] == "perhaps photon counts, by its noise: --space counting --goal sub-noise (lossy)"
    _, rows = told(saved(tmp_path, counted * 7))
    assert rows["try"].startswith("perhaps a camera, by its uint16")


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32"])
def test_negative_values_are_no_counts_and_the_marks_among_them_no_gaps(dtype: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 4, (8, 64, 64)).round().astype(dtype)
    _, rows = told(saved(tmp_path, values))
    assert rows["try"] == "perhaps a camera, by its negative values: --space integrating --goal sub-noise (lossy)"
    assert "gaps" not in rows
    assert ("(marked by -1 or -2, though there are values below)" in rows["masked"]) == (dtype == "int32")


@pytest.mark.parametrize("value", [0.0, 3.25, np.nan])
def test_nothing_lossy_is_suggested_for_frames_of_one_value(value: float, tmp_path: Path) -> None:
    inspection, rows = told(saved(tmp_path, np.full((3, 32, 32), value, "float32")))
    assert inspection["suggestion"] is None
    assert "try" not in rows


def jungfrau(path: Path, light: float) -> Path:
    """A pedestal with little noise, and one pixel of some thousand that has switched its gain, if there is light."""
    rng = np.random.default_rng(0)
    frames = rng.normal(2900, 10, (8, 64, 64)).astype(np.uint16)
    frames[rng.random(frames.shape) < light] = 1 << 14 | 14000
    with h5py.File(path, "w") as file:
        file["entry/detector/data"] = frames
        file["entry/detector/description"] = "JUNGFRAU 0.5M"
    return path


@pytest.mark.usefixtures("empty_home")
@pytest.mark.parametrize("light", [0.001, 0])
def test_nothing_that_rounds_gains_is_suggested_or_searched(light: float, tmp_path: Path) -> None:
    path = jungfrau(tmp_path / "raw.h5", light)
    _, rows = told(open_hdf5(path))
    assert ("try" in rows) == (not light), "in one gain they are numbers like others"
    if light:
        line = r"raw\.h5: steps must be stages alone, as raw frames of a JUNGFRAU have the gain in the upper bits"
        with pytest.raises(InputError, match=line):
            find_profile([path], space="integrating", goal="sub-noise", noise="gain=0,read=10", surrogate=False)


def test_every_suggestion_is_shipped() -> None:
    for space, goal in FITS.values():
        assert load_space(space).steps()[0] == ()
        assert load_goal(goal).limits
