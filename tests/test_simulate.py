"""The simulator: data that behaves as the instrument's physics says, the same for the same seed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters)
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.read.hdf5 import open_hdf5
from tuner.simulate import TECHNIQUES, Jungfrau, Mx, Saxs, Tomography, Xrf, simulate, write_nexus
from tuner.simulate.simulation import world
from tuner.simulate.tomography import draw_phantom, project
from tuner.stack import Kind

SHAPES = {"tomography": (96, 128), "mx": (160, 150), "saxs": (160, 150), "xrf": (4, 1300), "jungfrau": (128, 192)}
SHAPES["xpcs"] = (96, 120)
each_technique = pytest.mark.parametrize("technique", TECHNIQUES)


def frames_of(technique: str, frames: int = 8, seed: int = 5) -> NDArray[Any]:
    return np.stack(list(simulate(technique, frames, seed, SHAPES[technique])))


@each_technique
def test_frames_are_what_the_simulation_says(technique: str) -> None:
    simulation = simulate(technique, 12, 0, SHAPES[technique])
    frames = list(simulation)
    assert len(frames) == len(simulation) == 12 == np.prod(simulation.scan_shape)
    assert {(frame.shape, frame.dtype) for frame in frames} == {(SHAPES[technique], simulation.dtype)}
    assert simulation.shape == simulation.scan_shape + simulation.frame_shape
    assert [np.shape(axis.value) for axis in simulation.axes] == [(extent,) for extent in simulation.shape]


@each_technique
def test_a_seed_decides_everything(technique: str) -> None:
    simulation = simulate(technique, 4, 7, SHAPES[technique])
    first, again = np.stack(list(simulation)), np.stack(list(simulation))
    assert np.array_equal(first, again), "iterating twice"
    assert np.array_equal(first, frames_of(technique, 4, 7)), "simulating twice"
    assert not np.array_equal(first, frames_of(technique, 4, 8))
    assert len(np.unique(first, axis=0)) == 4, "no two exposures have the same noise"


def test_a_seed_decides_everything_in_another_process() -> None:
    code = (
        "import hashlib; from tuner.simulate import *\n"
        f"print(*(hashlib.sha256(b''.join(f.tobytes() for f in simulate(t, 3, 2, s))).hexdigest() "
        f"for t, s in {SHAPES}.items()))"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1


def test_frames_do_not_depend_on_how_many_follow() -> None:
    for technique in ("mx", "jungfrau", "xpcs"):
        assert np.array_equal(frames_of(technique, 3), frames_of(technique, 6)[:3])


def test_importing_the_simulator_loads_nothing_heavy() -> None:
    heavy = "optuna sklearn joblib scipy dask pandas matplotlib rich"
    code = f"import sys, tuner.simulate; print(*(m for m in '{heavy}'.split() if m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == ""


# Photon counters ------------------------------------------------------------------------------------------------------


def off_peaks(stack: NDArray[np.float64]) -> NDArray[np.float64]:
    """Index of dispersion (variance over mean in time) of the pixels that never see a peak."""
    mean, variance = stack.mean(0), stack.var(0, ddof=1)
    quiet = (mean > 0.2) & (stack.max(0) < mean + 6 * np.sqrt(mean) + 4)
    assert quiet.mean() > 0.5
    return variance[quiet] / mean[quiet]


def test_mx_counts_are_poisson_off_the_peaks() -> None:
    simulation = Mx(shape=(160, 150), spot=0.0, background=5.0).simulate(60, seed=3)
    stack = np.stack(list(simulation)).astype(np.float64)
    assert off_peaks(np.where(stack > 1e9, 0, stack)).mean() == pytest.approx(1, abs=0.02)


def test_saxs_counts_are_poisson() -> None:
    # Without growth all that differs in time is the beam's intensity, which adds little where counts are few.
    simulation = Saxs(shape=(160, 150), growth=0.0, flux=50.0).simulate(60, seed=3)
    stack = np.stack(list(simulation)).astype(np.float64)
    assert off_peaks(np.maximum(stack, 0)).mean() == pytest.approx(1, abs=0.02)


def test_xrf_counts_are_poisson() -> None:
    # Neighbouring channels of the smooth continuum have nearly the same mean.
    counts = np.stack(list(Xrf(shape=(4, 1300), counts=30000.0).simulate(64, seed=1)))[:, :, 1000:1060].astype(
        np.float64
    )
    halves = counts[..., 0::2], counts[..., 1::2]
    assert ((halves[0] - halves[1]) ** 2).sum() / counts.sum() == pytest.approx(1, abs=0.06)


def test_mx_gaps_and_dead_pixels_read_the_maximum_and_are_masked() -> None:
    simulation = simulate("mx", 3, 1, (320, 300))
    mask = next(field.value for field in simulation.metadata if field.path.endswith("pixel_mask"))
    for frame in simulation:
        marked = frame == np.iinfo("uint32").max
        assert marked[mask & 0b11 != 0].all()
        assert (marked & (mask == 0)).mean() < 1e-3, "only overloads"
    assert 0.02 < (mask & 1 != 0).mean() < 0.1


def test_mx_overloads_read_the_maximum() -> None:
    parameters = Mx(shape=(160, 150), dtype="uint16", spot=1e6, saturation=20000)
    frame = next(iter(parameters.simulate(1, seed=0)))
    counts = frame[frame != 65535]
    assert counts.max() < 20000
    assert (frame == 65535).sum() > (next(iter(Mx(shape=(160, 150), dtype="uint16").simulate(1, 0))) == 65535).sum()


def test_mx_spots_appear_and_vanish_as_the_crystal_turns() -> None:
    stack = np.stack(list(Mx(background=0.0, spot=500.0, shape=(300, 300)).simulate(40, seed=2)))
    bright = np.argwhere((stack > 50) & (stack < 60000))
    there = np.zeros((40, *stack.shape[1:]), dtype=bool)
    there[tuple(bright.T)] = True
    frames_lit = there.sum(0)[there.any(0)]
    assert there.any((1, 2)).all(), "every frame has spots"
    assert np.median(frames_lit) < 20, "none stays"


def test_saxs_marks_gaps_and_bad_pixels() -> None:
    simulation = simulate("saxs", 3, 1, (400, 380))
    frames = np.stack(list(simulation))
    assert set(np.unique(frames[frames < 0])) == {-2, -1}
    assert all(np.array_equal(frame < 0, frames[0] < 0) for frame in frames)
    assert 0.04 < (frames[0] == -1).mean() < 0.12


def test_xrf_lines_stand_where_the_elements_have_them() -> None:
    simulation = Xrf(counts=20000.0, shape=(4, 1300)).simulate(16, seed=4)
    total = sum(frame.astype(np.float64) for frame in simulation).sum(0)
    assert total[1200:1210].mean() > 5 * total[1080:1090].mean(), "the elastic peak at 12 keV"
    strongest = max(("Ca", 369), ("Fe", 640), ("Cu", 805), ("Zn", 864), key=lambda line: total[line[1]])
    peak = int(total[strongest[1] - 30 : strongest[1] + 30].argmax()) + strongest[1] - 30
    assert abs(peak - strongest[1]) <= 3
    assert total[1290:].sum() < 1e-3 * total.sum(), "nothing above the beam's energy"


def test_xrf_floats_hold_whole_counts() -> None:
    frame = next(iter(Xrf(dtype="float32", shape=(2, 1300)).simulate(1, seed=0)))
    assert frame.dtype == np.float32
    assert np.array_equal(frame, np.rint(frame))


@pytest.mark.parametrize(("frames", "scan"), [(1, (1, 1)), (12, (3, 4)), (64, (8, 8)), (13, (1, 13))])
def test_xrf_maps_as_many_points_as_asked_for(frames: int, scan: tuple[int, int]) -> None:
    assert simulate("xrf", frames, 0).scan_shape == scan


# Integrating detectors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [12, 14, 16])
def test_tomography_fills_the_bits_of_its_digitiser(bits: int) -> None:
    frames = np.stack(list(Tomography(shape=(96, 128), bits=bits, flux=28000.0).simulate(16, seed=1)))
    assert 2 ** (bits - 1) < frames.max() < 2**bits


def test_tomography_kinds_look_like_what_they_are() -> None:
    simulation = simulate("tomography", 32, 3, SHAPES["tomography"])
    image_key = next(field.value for field in simulation.metadata if field.path.endswith("image_key"))
    assert image_key.shape == (32,)
    frames = np.stack(list(simulation)).astype(np.float64)
    dark, flat, data = (frames[image_key == kind].mean() for kind in (Kind.DARK, Kind.FLAT, Kind.DATA))
    assert dark == pytest.approx(100, abs=5)
    assert dark < data < flat
    assert list(np.flatnonzero(image_key == Kind.DATA)) == list(range(6, 30))


def test_tomography_noise_is_shot_noise_and_read_noise() -> None:
    camera = Tomography(shape=(96, 128), phase=0.0)
    kinds = np.array([Kind.FLAT] * 200, dtype=np.uint8)
    flats = np.stack(list(camera._frames(kinds, np.zeros(200), seed=1))).astype(np.float64)
    region = flats[:, 40:60, 40:90]
    # Differences remove what stays, a row's median the drift of the stripes, and the median deviation bears zingers.
    change = np.diff(region, axis=0)
    change -= np.median(change, axis=2, keepdims=True)
    variance = (1.4826 * np.median(np.abs(change))) ** 2 / 2
    expected = camera.gain * (region.mean() - camera.offset) + (camera.gain * camera.read_noise) ** 2
    assert variance == pytest.approx(expected, rel=0.06)


def test_tomography_half_a_turn_mirrors() -> None:
    phantom = draw_phantom(world(3), features=30)
    front, back = project(phantom, 0.3, (60, 80)), project(phantom, 0.3 + np.pi, (60, 80))
    assert front == pytest.approx(back[:, ::-1], abs=1e-4)
    # What is in a slice is there from every side.
    mass = [project(phantom[:1], angle, (60, 200)).sum(1) for angle in (0.0, 0.7, 1.4)]
    assert mass[1] == pytest.approx(mass[0], rel=1e-2)
    assert mass[2] == pytest.approx(mass[0], rel=1e-2)


def test_jungfrau_switches_gain_with_charge() -> None:
    parameters = Jungfrau(shape=(256, 256), spot=4e5, hits=1.0)
    simulation = parameters.simulate(6, seed=1)
    pedestal = next(field.value for field in simulation.metadata if field.path.endswith("pedestal"))
    gain = next(field.value for field in simulation.metadata if field.path.endswith("/gain"))
    frames = np.stack(list(simulation))
    code, value = frames >> 14, (frames & 0x3FFF).astype(np.float64)
    assert set(np.unique(code)) == {0, 1, 3}
    assert (frames == 0xFFFF).any(), "all ones where even the lowest gain is full"
    energy = [((value - pedestal[g]) / gain[g])[(code == c) & (frames != 0xFFFF)] for g, c in enumerate((0, 1, 3))]
    assert np.median(energy[0]) < np.median(energy[1]) < np.median(energy[2])
    assert energy[1].min() > 150, "a pixel switches when the high gain is full, at some 300 keV"


def test_jungfrau_pixels_without_photons_stay_at_their_pedestal() -> None:
    parameters = Jungfrau(shape=(128, 128), background=0.0, hits=0.0)
    simulation = parameters.simulate(40, seed=1)
    pedestal = next(field.value for field in simulation.metadata if field.path.endswith("pedestal"))
    frames = np.stack(list(simulation)).astype(np.float64)
    assert (frames.mean(0) - pedestal[0]).std() < 4
    assert frames.std(0).mean() == pytest.approx(0.3 * 41, rel=0.05)


# Files ----------------------------------------------------------------------------------------------------------------


@each_technique
def test_the_file_holds_the_frames_and_its_default_plot(technique: str, tmp_path: Path) -> None:
    simulation = simulate(technique, 8, 5, SHAPES[technique])
    write_nexus(tmp_path / "scan.nxs", simulation)
    with h5py.File(tmp_path / "scan.nxs") as file:
        entry = file[file.attrs["default"]]
        data = entry[entry.attrs["default"]]
        signal = data[data.attrs["signal"]]
        assert np.array_equal(signal[()].reshape(-1, *SHAPES[technique]), frames_of(technique))
        assert signal.attrs["interpretation"] == simulation.interpretation
        assert signal.chunks == (1,) * len(simulation.scan_shape) + simulation.frame_shape
        assert [data[axis].size for axis in data.attrs["axes"]] == list(signal.shape)
        assert entry["instrument/detector"].attrs["NX_class"] == "NXdetector"
        assert entry["instrument/detector/data"] == signal
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nxs"]


@each_technique
def test_the_reader_understands_the_file(technique: str, tmp_path: Path) -> None:
    simulation = simulate(technique, 16, 5, SHAPES[technique])
    write_nexus(tmp_path / "scan.nxs", simulation)
    stack = open_hdf5(tmp_path / "scan.nxs")
    assert stack.shape == simulation.shape
    assert stack.axes == tuple(axis.path for axis in simulation.axes)
    assert stack.frame_ndim == (1 if simulation.interpretation == "spectrum" else 2)
    assert (stack.mask is not None) == (technique in ("mx", "saxs", "xpcs"))
    assert (stack.kinds is not None) == (technique == "tomography")
    assert stack.photon_counting == (technique in ("mx", "saxs", "xrf", "xpcs"))
    stack.source.close()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import resource, sys\n"
        "from tuner.errors import TunerError\n"
        "from tuner.simulate import simulate, write_nexus\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n"
        "    write_nexus(sys.argv[1], simulate('jungfrau', 20, 0, (128, 192)))\n"
        "except TunerError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, tmp_path / "scan.nxs"], capture_output=True, text=True)
    assert run.stderr == ""
    assert run.stdout == f"{tmp_path / 'scan.nxs'}: cannot be written: File too large\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ptychography", 1, 0), "technique must be one of"),
        (("mx", 0, 0), "frames must be a whole number >= 1, got 0"),
        (("mx", -4, 0), "frames must be a whole number >= 1, got -4"),
        (("mx", 4, -1), "seed must be a whole number >= 0, got -1"),
        (("mx", 4, 0, (8, 100)), r"shape\[0\] must be a whole number >= 16, got 8"),
        (("mx", 4, 0, (100,)), "shape must be the two axes of a frame"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate(*arguments)


def test_bad_parameters_are_named() -> None:
    with pytest.raises(InputError, match="flux must be a number >= 0, got -1"):
        Tomography(flux=-1.0)
    with pytest.raises(InputError, match="dtype must be one of uint16 uint32, got 'int8'"):
        Mx(dtype="int8")


def test_a_missing_folder_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere must exist$"):
        write_nexus(tmp_path / "nowhere" / "scan.nxs", simulate("xrf", 1, 0))
    assert not list(tmp_path.iterdir())


def test_an_interrupted_simulation_leaves_what_was_there(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    simulation = simulate("xrf", 4, 0, SHAPES["xrf"])
    write_nexus(tmp_path / "scan.nxs", simulation)
    before = (tmp_path / "scan.nxs").read_bytes()

    def stop() -> Any:
        yield from islice(simulation, 2)
        raise Interrupted

    with pytest.raises(Interrupted):
        write_nexus(tmp_path / "scan.nxs", replace(simulation, make=stop))
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nxs"]
    assert (tmp_path / "scan.nxs").read_bytes() == before


def test_memory_is_bounded_by_the_frame(tmp_path: Path) -> None:
    process = psutil.Process()
    simulation = simulate("jungfrau", 200, 0, (256, 512))
    frames = iter(simulation)
    list(islice(frames, 20))
    before = process.memory_info().rss
    for _ in frames:
        pass
    assert process.memory_info().rss - before < 0.3 * 180 * 256 * 512 * 2
