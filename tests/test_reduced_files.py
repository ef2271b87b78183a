"""Files of reduced frames: what else they say is true of the frames that are in them, for any reader."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest
import tifffile

import tuner
from tuner.apply.foreign import verify_written
from tuner.apply.prepare import Preparation
from tuner.apply.repack import repack
from tuner.cli import main
from tuner.config import Blosc2, Config
from tuner.errors import InputError, TunerWarning
from tuner.profile import Invalid, Match, Profile, load_profile
from tuner.read import open_stacks
from tuner.stack import Stack
from tuner.steps.reduced import parse_reductions, reduced
from tuner.steps.uniform import Uniform

FRAMES = np.random.default_rng(0).poisson(4, (22, 33, 50)).astype("uint16")


def profile_for(stack: Stack, words: str, steps: tuple[Any, ...] = ()) -> Profile:
    """A profile that reduces so, for what comes of a stack."""
    reductions = parse_reductions(words)
    view = reduced(stack, reductions)
    config = Config((1, *(-1,) * view.frame_ndim), Blosc2("zstd", clevel=1))
    return Profile(
        "reduces",
        Match(stack.dtype.name),
        Config(config.chunks, config.blosc2, steps),
        config,
        Invalid(stack.invalid, None, stack.saturation, stack.underload),
        reduce=reductions,
    )


def write(source: Path, words: str, steps: tuple[Any, ...] = ()) -> tuple[Path, dict[str, Any], Stack]:
    """Reduce a file; the new one, what was said, and the stack that it should hold. A foreign reader compared them."""
    (stack,) = open_stacks([source])
    profile = profile_for(stack, words, steps)
    target = source.parent / "out.h5"
    said = repack(profile, [stack], [source], target)["files"][0]
    view = reduced(stack, profile.reduce)
    verify_written(view, target, preparation=Preparation.of_stack(profile, view))
    (again,) = open_stacks([target], said["dataset"])
    assert (again.shape, again.dtype, again.marks) == (view.shape, view.dtype, view.marks)
    for ours, theirs in ((again.mask, view.mask), (again.kinds, view.kinds)):
        assert (ours is None) == (theirs is None)
        assert ours is None or np.array_equal(ours, theirs)
    assert again.photon_counting == view.photon_counting
    again.close()
    stack.close()
    return target, said, view


def scan(path: Path) -> Path:
    """A rotation scan as NXmx has it."""
    mask = np.zeros((33, 50), "uint32")
    mask[3, 4], mask[20, 30], mask[21, 31] = 1, 16, 2
    with h5py.File(path, "w") as file:
        file.attrs["default"] = "entry"
        entry = file.create_group("entry")
        entry.attrs.update({"NX_class": "NXentry", "default": "data"})
        data = entry.create_group("data")
        data.attrs.update({"NX_class": "NXdata", "signal": "data", "axes": ["omega", "y", "x"]})
        frames = FRAMES.copy()
        frames[:, mask != 0] = 65535
        frames[5, 6, 7], frames[9, 8, 9] = 60000, 65535
        dataset = data.create_dataset("data", data=frames, chunks=(1, 33, 50), compression="gzip")
        dataset.attrs["units"] = "counts"
        for name, values in (
            ("omega", np.arange(22) * 0.1),
            ("omega_end", np.arange(22) * 0.1 + 0.1),
            ("x", np.arange(50.0)),
            ("y", np.arange(33.0)),
        ):
            data[name] = values
        for axis, name in enumerate(("omega", "y", "x")):
            data[name].make_scale(name)
            dataset.dims[axis].attach_scale(data[name])
        data["omega_increment_set"] = 0.1
        instrument = entry.create_group("instrument")
        instrument.attrs["NX_class"] = "NXinstrument"
        detector = instrument.create_group("detector")
        detector.attrs["NX_class"] = "NXdetector"
        detector["data"] = h5py.SoftLink("/entry/data/data")
        detector["description"] = "Eiger"
        detector["pixel_mask"] = mask
        detector["flatfield"] = np.tile(np.float32([1, 3]), (33, 25))
        for name, value, units in (
            ("x_pixel_size", 75e-6, "m"),
            ("y_pixel_size", 75e-3, "mm"),
            ("beam_center_x", 25.5, "pixel"),
            ("beam_center_y", 1.5e-3, "m"),
            ("count_time", 0.01, "s"),
            ("frame_time", 0.0101, "s"),
            ("detector_distance", 0.2, "m"),
        ):
            detector[name] = value
            detector[name].attrs["units"] = units
        detector["saturation_value"] = np.uint16(50000)
        detector["bit_depth_image"] = 16
        detector["sequence_number"] = np.arange(100, 122)
        module = detector.create_group("module")
        module.attrs["NX_class"] = "NXdetector_module"
        module["data_origin"], module["data_size"] = np.array([0, 0]), np.array([33, 50])
        module["fast_pixel_direction"] = 75e-6
        monitor = entry.create_group("monitor")
        monitor.attrs["NX_class"] = "NXmonitor"
        monitor["data"] = np.full(22, 40000, "uint16")
        entry["names"] = [f"n{i}" for i in range(22)]
        entry["temperature"] = np.linspace(100, 121, 22)
        entry["title"] = "22 frames"
    return path


def test_metadata_of_binned_summed_and_cropped_frames_is_rewritten(tmp_path: Path) -> None:
    target, said, view = write(scan(tmp_path / "scan.nxs"), "sum=4,bin=2,crop=1:2:14:20")
    assert said["shape"] == [5, 14, 20]
    assert said["reduction"] == pytest.approx(FRAMES.nbytes / view.nbytes)
    found: dict[str, Any] = {}
    with h5py.File(target) as file:
        file.visititems(lambda name, node: found.update({name: node[()]} if isinstance(node, h5py.Dataset) else {}))
        detector, data = file["entry/instrument/detector"], file["entry/data"]
        assert detector["x_pixel_size"].attrs["units"] == "m"
        assert [data["data"].dims[axis][0].name for axis in range(3)] == [
            f"/entry/data/{n}" for n in ("omega", "y", "x")
        ]
        assert data["data"].attrs["units"] == "counts"
        assert json.loads(data["data"].attrs["tuner_reduce"])[0] == {"step": "sum", "n": 4}
        assert dict(detector["frame_numbers"].attrs)["frames_left_out"] == 2
        assert detector["data"][0, 0, 0] == found["entry/data/data"][0, 0, 0]
    detector = "entry/instrument/detector"
    expected = {
        f"{detector}/frame_numbers": [0, 4, 8, 12, 16],
        "entry/data/omega": [0, 0.4, 0.8, 1.2, 1.6],
        "entry/data/omega_end": [0.4, 0.8, 1.2, 1.6, 2.0],
        "entry/data/omega_increment_set": 0.4,
        "entry/data/x": np.arange(2, 22) * 2 + 0.5,
        "entry/data/y": np.arange(1, 15) * 2 + 0.5,
        "entry/monitor/data": [160000] * 5,
        "entry/temperature": np.linspace(100, 121, 22)[:20].reshape(5, 4).mean(axis=1),
        f"{detector}/x_pixel_size": 150e-6,
        f"{detector}/y_pixel_size": 150e-3,
        f"{detector}/beam_center_x": 25.5 / 2 - 2,
        f"{detector}/beam_center_y": 1.5e-3 - 2 * 75e-6,
        f"{detector}/count_time": 0.04,
        f"{detector}/frame_time": 0.0404,
        f"{detector}/detector_distance": 0.2,
        f"{detector}/saturation_value": 16 * 49999 + 1,
        f"{detector}/bit_depth_image": 32,
        f"{detector}/sequence_number": [100, 104, 108, 112, 116],
        f"{detector}/flatfield": np.full((14, 20), 2.0),
        f"{detector}/module/data_origin": [0, 0],
        f"{detector}/module/data_size": [14, 20],
        f"{detector}/module/fast_pixel_direction": 150e-6,
    }
    for name, value in expected.items():
        assert found.pop(name) == pytest.approx(np.asarray(value)), name
    mask = found.pop(f"{detector}/pixel_mask")
    assert {tuple(at): mask[tuple(at)] for at in np.argwhere(mask).tolist()} == {(0, 0): 1, (9, 13): 16 | 2}
    assert found.pop("entry/names").tolist() == [b"n0", b"n4", b"n8", b"n12", b"n16"]
    kept = {name for name in found if not name.startswith("entry/tuner/")}
    assert kept == {"entry/data/data", f"{detector}/description", "entry/title"}


def eiger(folder: Path) -> Path:
    """A master as a Dectris Eiger writes it, with two data files."""
    path = folder / "series_master.h5"
    with h5py.File(path, "w") as master:
        master.create_group("entry").attrs["NX_class"] = "NXentry"
        data = master.create_group("entry/data")
        data.attrs["NX_class"] = "NXdata"
        for index, (start, stop) in enumerate([(0, 12), (12, 22)], 1):
            name = f"series_data_{index:06d}.h5"
            with h5py.File(folder / name, "w") as file:
                part = file.create_dataset(
                    "entry/data/data", data=FRAMES[start:stop].astype("uint32"), chunks=(1, 33, 50)
                )
                part.attrs.update({"image_nr_low": np.int32(start + 1), "image_nr_high": np.int32(stop)})
            data[f"data_{index:06d}"] = h5py.ExternalLink(name, "/entry/data/data")
        detector = master.create_group("entry/instrument/detector")
        detector.attrs["NX_class"] = "NXdetector"
        specific = detector.create_group("detectorSpecific")
        for group, name, value in (
            (detector, "description", "Dectris EIGER2 Si 4M"),
            (detector, "x_pixel_size", np.float32(75e-6)),
            (detector, "beam_center_x", np.float32(20)),
            (detector, "beam_center_y", np.float32(10)),
            (detector, "count_time", np.float32(0.5)),
            (detector, "frame_time", np.float32(0.5)),
            (detector, "bit_depth_image", np.uint32(32)),
            (detector, "count_cutoff", np.uint32(20)),
            (specific, "x_pixels_in_detector", np.uint32(50)),
            (specific, "y_pixels_in_detector", np.uint32(33)),
            (specific, "nimages", np.uint32(22)),
            (specific, "ntrigger", np.uint32(1)),
            (specific, "countrate_correction_count_cutoff", np.uint32(20)),
            (specific, "flatfield", np.ones((33, 50), "float32")),
            (specific, "pixel_mask", (np.arange(33 * 50).reshape(33, 50) == 52).astype("uint32")),
        ):
            group[name] = value
        goniometer = master.create_group("entry/sample/goniometer")
        for name, shift in (("omega", 0.0), ("omega_end", 0.2)):
            goniometer[name] = np.arange(22) * 0.2 + shift
        goniometer["omega_increment"] = 0.2
        goniometer["omega_range_average"] = 0.2
        goniometer["omega_range_total"] = 4.4
    return path


def test_an_eiger_master_tells_of_the_reduced_frames(tmp_path: Path) -> None:
    target, _, view = write(eiger(tmp_path), "sum=5,bin=2")
    assert view.photon_counting
    with h5py.File(target) as file:
        detector = file["entry/instrument/detector"]
        specific, goniometer = detector["detectorSpecific"], file["entry/sample/goniometer"]
        dataset = file["entry/data/data"]
        assert dataset.shape == (4, 16, 25)
        assert (dataset.attrs["image_nr_low"], dataset.attrs["image_nr_high"]) == (1, 4)
        for group, name, value in (
            (detector, "x_pixel_size", 150e-6),
            (detector, "beam_center_x", 10),
            (detector, "beam_center_y", 5),
            (detector, "count_time", 2.5),
            (detector, "frame_time", 2.5),
            (detector, "bit_depth_image", 32),
            (detector, "count_cutoff", 400),
            (specific, "x_pixels_in_detector", 25),
            (specific, "y_pixels_in_detector", 16),
            (specific, "nimages", 4),
            (specific, "ntrigger", 1),
            (specific, "countrate_correction_count_cutoff", 400),
            (goniometer, "omega_increment", 1.0),
            (goniometer, "omega_range_average", 1.0),
            (goniometer, "omega_range_total", 4.4),
        ):
            assert group[name][()] == pytest.approx(value), name
        assert np.argwhere(specific["pixel_mask"][()]).tolist() == [[0, 1]]
        assert specific["pixel_mask"].dtype == np.uint32
        assert goniometer["omega"][()] == pytest.approx([0, 1, 2, 3])
        assert goniometer["omega_end"][()] == pytest.approx([1, 2, 3, 4])
    assert main(["read", str(target), "--quiet"]) == 0


#: What any reader gets, with h5py and hdf5plugin alone: the sums, and what they were made of.
FOREIGN = """
import h5py, hdf5plugin, numpy as np, sys
with h5py.File(sys.argv[1]) as old, h5py.File(sys.argv[2]) as new:
    before, after = old["entry/data/data"][()].astype(np.int64), new["entry/data/data"][()]
    mask = new["entry/instrument/detector/pixel_mask"][()] != 0
    starts = new["entry/instrument/detector/frame_numbers"][()]
    saturation = new["entry/instrument/detector/saturation_value"][()]
    valid = ~mask & (after < saturation)
    whole = before[:, :32].reshape(22, 16, 2, 25, 2).sum(axis=(2, 4))
    sums = np.stack([whole[start : start + 4].sum(axis=0) for start in starts])
    assert (after[valid] == sums[valid]).all() and valid.mean() > 0.98
    assert (after[:, mask] == np.iinfo(after.dtype).max).all()
"""


def test_a_foreign_reader_finds_sums_of_the_counts(tmp_path: Path) -> None:
    target, _, _ = write(scan(tmp_path / "scan.nxs"), "sum=4,bin=2")
    subprocess.run([sys.executable, "-I", "-c", FOREIGN, tmp_path / "scan.nxs", target], check=True)


def test_flats_and_darks_beside_the_data_are_reduced_too(tmp_path: Path) -> None:
    path = tmp_path / "tomo.h5"
    with h5py.File(path, "w") as file:
        file["exchange/data"] = FRAMES
        file["exchange/data_white"] = FRAMES[:4] * 2
        file["exchange/data_dark"] = FRAMES[:5] // 2
        file["exchange/theta"] = np.linspace(0, 180, 22)
    target, _, _ = write(path, "sum=2,bin=3")
    with h5py.File(target) as file:
        assert file["exchange/data_white"].shape == (2, 11, 16)
        assert file["exchange/data_dark"].shape == (2, 11, 16)
        expected = (FRAMES[:4] * 2).reshape(2, 2, 33, 50)[..., :48].reshape(2, 2, 11, 3, 16, 3).sum(axis=(1, 3, 5))
        assert np.array_equal(file["exchange/data_white"][()], expected)
        assert file["exchange/data_white"].dtype == file["exchange/data"].dtype
        assert file["exchange/theta"][()] == pytest.approx(np.linspace(0, 180, 22).reshape(11, 2).mean(axis=1))


def test_a_single_flat_is_binned_and_cannot_be_summed(tmp_path: Path) -> None:
    path = tmp_path / "tomo.h5"
    with h5py.File(path, "w") as file:
        file["exchange/data"] = FRAMES
        file["exchange/data_white"] = FRAMES[0]
    target, _, _ = write(path, "bin=2")
    with h5py.File(target) as file:
        expected = FRAMES[0, :32].reshape(16, 2, 25, 2).sum(axis=(1, 3))
        assert np.array_equal(file["exchange/data_white"][()], expected)
    (stack,) = open_stacks([path])
    with pytest.raises(InputError, match="data_white: frames must be numbered by one axis to be summed"):
        reduced(stack, parse_reductions("sum=2"))
    stack.close()


def test_scaled_frames_say_what_they_were_as_nexus_does(tmp_path: Path) -> None:
    path = tmp_path / "float.nxs"
    values = np.random.default_rng(0).normal(10, 5, (6, 20, 30)).astype("float32")
    values[0, 0, 0] = np.nan
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = values
    target, _, view = write(path, "scale=uint16:0.01:-4000")
    with h5py.File(target) as file:
        group = file["entry/data"]
        assert group["data"].dtype == np.uint16
        back = (group["data"][()].astype(float) + group["data_offset"][()]) * group["data_scaling_factor"][()]
    valid = view.valid(view.read(0, 6))
    assert np.argwhere(~valid).tolist() == [[0, 0, 0]]
    assert np.abs(back - values)[valid].max() <= 0.005 + 1e-6


def test_of_a_series_of_images_a_file_is_made(tmp_path: Path) -> None:
    for index, frame in enumerate(FRAMES[:9]):
        tifffile.imwrite(tmp_path / f"a_{index}.tif", frame)
    (stack,) = open_stacks([tmp_path])
    profile = profile_for(stack, "sum=2,scale=uint8")
    repack(profile, [stack], [tmp_path], tmp_path / "out.h5")
    view = reduced(stack, profile.reduce)
    verify_written(view, tmp_path / "out.h5")
    stack.close()
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["entry/instrument/detector/frame_numbers"][()].tolist() == [0, 2, 4, 6]
        assert file["entry/instrument/detector/saturation_value"][()] == 254
        assert file["entry/data/data"].dtype == np.uint8


def test_another_detector_stays_as_it_is_and_what_is_not_known_is_named(tmp_path: Path) -> None:
    path = scan(tmp_path / "scan.nxs")
    with h5py.File(path, "r+") as file:
        other = file.create_group("entry/instrument/other")
        other.attrs["NX_class"] = "NXdetector"
        other["count_time"], other["x_pixel_size"], other["pixel_mask"] = 0.01, 1e-4, np.ones((33, 50), "uint8")
        other["spectra"] = np.zeros((22, 100), "int32")
    with pytest.warns(TunerWarning, match="not known: /entry/instrument/other/pixel_mask, .*/spectra"):
        target, _, _ = write(path, "sum=4,bin=2")
    with h5py.File(target) as file:
        other = file["entry/instrument/other"]
        assert (other["count_time"][()], other["x_pixel_size"][()]) == (0.01, 1e-4)
        assert other["pixel_mask"].shape == (33, 50)
        assert file["entry/instrument/detector/x_pixel_size"][()] == pytest.approx(150e-6)


def test_reduced_frames_are_reduced_again_only_if_asked(tmp_path: Path) -> None:
    target, _, _ = write(scan(tmp_path / "scan.nxs"), "bin=2")
    (stack,) = open_stacks([target])
    again = profile_for(stack, "bin=2")
    with pytest.raises(InputError, match="was written lossily before"):
        repack(again, [stack], [target], tmp_path / "twice.h5")
    repack(again, [stack], [target], tmp_path / "twice.h5", again=True)
    stack.close()


def test_steps_after_a_reduction_are_of_its_frames(tmp_path: Path) -> None:
    target, _, view = write(scan(tmp_path / "scan.nxs"), "sum=2", (Uniform(4.0),))
    with h5py.File(target) as file:
        frames = file["entry/data/data"][()]
    valid = view.valid(frames)
    assert not (frames[valid] % 4).any()


@pytest.mark.usefixtures("empty_home")
def test_a_search_finds_a_profile_for_reduced_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = np.random.default_rng(0).poisson(60, (40, 66, 80)).astype("uint16")
    source = tmp_path / "scan.npy"
    np.save(source, frames)
    (tmp_path / "space.yaml").write_text(
        "reduce: [{step: sum, n: 4}, {step: bin, n: 2}]\n"
        "steps: {choose: [[], [{step: sigma, width: 0.9}]]}\n"
        "blosc2: {codec: zstd, clevel: 1, filters: [shuffle]}\n"
    )
    found = tuner.find_profile(
        [source], space=tmp_path / "space.yaml", goal="sub-noise", noise="gain=1", budget="8", surrogate=False
    )
    profile = found.profile
    profile.save(tmp_path / "p.yaml")
    assert load_profile(tmp_path / "p.yaml", strict=True) == profile
    assert profile.match.frame_shape == (66, 80)
    assert profile.form.dtype == np.uint32
    assert profile.form.frame_shape == (33, 40)
    assert profile.config.steps
    assert profile.noise is not None
    assert (profile.noise.gain, profile.noise.read_noise) == (1, 0)
    about = profile.evidence["reduction"]
    assert (about["dtype"], about["frame_shape"], about["frames"]) == ("uint32", [33, 40], [40, 10])
    assert about["ratio"] == 8
    assert about["compared_with"] == "the same reduction of the original"
    files = [str(tmp_path / name) for name in ("p.yaml", "scan.npy", "out.h5")]
    assert main(["apply", *files]) == 0
    assert "reduced 8.00 times" in capsys.readouterr().out
    assert main(["verify", files[0], files[2], "--against", files[1]]) == 0
    assert main(["verify", files[0], files[1]]) == 0
    assert "reduced 8.00 times" in capsys.readouterr().out
    np.save(source, frames + np.uint16(1))
    assert main(["verify", files[0], files[2], "--against", files[1]]) == 4


@pytest.mark.usefixtures("empty_home")
def test_a_scale_without_room_for_the_least_value_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(0, 3, (8, 16, 16)).astype("float32"))
    with pytest.raises(InputError, match="must leave room for the least value, -"):
        tuner.find_profile([tmp_path / "a.npy"], reduce="scale=uint16", space="quick", budget="8")


@pytest.mark.parametrize("access", ["single", "rolling"])
def test_a_writer_reduces_what_it_is_given(tmp_path: Path, access: str) -> None:
    mask = np.zeros((33, 50), bool)
    mask[4, 5] = True
    frames = FRAMES.copy()
    frames[2, 10, 10] = 65535
    np.save(tmp_path / "a.npy", frames)
    (stack,) = open_stacks([tmp_path / "a.npy"])
    stack = replace(stack, mask=mask)
    profile = profile_for(stack, "bin=2,crop=1:0:15:20,scale=uint16:0.5:-3", (Uniform(4.0),))
    path = tmp_path / ("b.h5" if access == "single" else "b_master.h5")
    with tuner.open_writer(
        path, profile, frame_shape=(33, 50), dtype="uint16", mask=mask, verify="all", access=access, roll_every=8
    ) as writer:
        writer.append(frames[:5])
        for frame in frames[5:12]:
            writer.append(frame, lossless=True)
        writer.append(frames[14:], index=14)
    view = reduced(stack, profile.reduce)
    expected = view.read(0, 22)
    prepared = Preparation.of_stack(profile, view)(expected)
    prepared[5:12] = expected[5:12]
    (written,) = open_stacks([path])
    found = written.read(0, 22)
    gap = np.arange(22)[12:14]
    assert not written.valid(found)[gap].any()
    kept = np.setdiff1d(np.arange(22), gap)
    assert np.array_equal(found[kept], prepared[kept])
    assert written.mask is not None
    assert np.array_equal(written.mask, view.mask)
    assert written.marks == view.marks
    written.close()
    with h5py.File(path) as file:
        assert file["entry/data/data_scaling_factor"][()] == 0.5


def test_a_writer_sheds_effort_and_still_reduces(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FRAMES)
    (stack,) = open_stacks([tmp_path / "a.npy"])
    profile = profile_for(stack, "bin=2")
    with tuner.open_writer(
        tmp_path / "b.h5", profile, frame_shape=(33, 50), dtype="uint16", workers=1, on_overload="shed"
    ) as writer:
        for _ in range(20):
            writer.append(FRAMES)
    with h5py.File(tmp_path / "b.h5") as file:
        assert np.array_equal(file["entry/data/data"][-22:], reduced(stack, profile.reduce).read(0, 22))


def test_a_writer_refuses_to_sum(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FRAMES)
    profile = profile_for(open_stacks([tmp_path / "a.npy"])[0], "sum=2")
    with pytest.raises(InputError, match="the profile sums 2 frames, which only `tuner apply` does, not a writer"):
        tuner.open_writer(tmp_path / "b.h5", profile, frame_shape=(33, 50), dtype="uint16")
    assert not (tmp_path / "b.h5").exists()


def test_an_eiger_layout_holds_reduced_frames(tmp_path: Path) -> None:
    source = eiger(tmp_path)
    (stack,) = open_stacks([source])
    profile = profile_for(stack, "sum=5,bin=2")
    target = tmp_path / "small_master.h5"
    repack(profile, [stack], [source], target)
    view = reduced(stack, profile.reduce)
    (again,) = open_stacks([target])
    assert np.array_equal(again.read(0, len(again)), view.read(0, len(view)))
    assert again.marks == view.marks
    again.close()
    with h5py.File(target) as file:
        assert list(file["entry/data"]) == ["data_000001"]
        assert file["entry/instrument/detector/detectorSpecific/nimages"][()] == 4
        assert file["entry/instrument/detector/frame_numbers"][()].tolist() == [0, 5, 10, 15]
    stack.close()


@pytest.mark.usefixtures("empty_home")
def test_triage_says_what_it_left_out_and_how_many_hits_that_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.poisson(2, (60, 64, 64)).astype("uint16")
    hits = np.arange(0, 60, 5)
    for number in hits:
        frames[number].reshape(-1)[rng.choice(64 * 64, 40, replace=False)] = 300
    frames[1, 4::8, 4::8] += 20  # 64 peaks, too weak for single pixels beside their noise
    frames[1, 4::8, 5::8] += 20
    source = tmp_path / "serial.nxs"
    with h5py.File(source, "w") as file:
        file["entry/data/data"] = frames
        file["entry/data/timestamp"] = np.arange(60.0)
        file["entry/data/exposure_time"] = np.full(60, 0.1)
    found = tuner.find_profile(
        [source], reduce="triage=20:30:5:10", space="quick", maximize=["ratio"], budget="8", surrogate=False
    )
    about = found.profile.evidence["reduction"]
    assert about["frames"] == [60, len(hits) + 4]
    triage = about["triage"]
    assert (triage["without_peaks"], triage["audited"], triage["looked"]) == (48, 4, 48)
    assert triage["lost_hits"] == pytest.approx(1 / 48, rel=0.01)
    assert triage["lost_hits"] < triage["lost_hits_bound"] < 0.1
    found.profile.save(tmp_path / "p.yaml")
    files = [str(tmp_path / name) for name in ("p.yaml", "serial.nxs", "out.h5")]
    assert main(["apply", *files, "--quiet"]) == 0
    assert main(["verify", files[0], files[2], "--against", files[1], "--quiet"]) == 0
    with h5py.File(tmp_path / "out.h5") as file:
        numbers = file["entry/data/frame_numbers"][()]
        assert np.array_equal(file["entry/data/timestamp"][()], numbers)
        assert np.array_equal(file["entry/data/exposure_time"][()], np.full(len(numbers), 0.1))
        audited = file["entry/data/frames_audited"][()]
        assert len(audited) == 4
        assert sorted([*hits, *audited]) == numbers.tolist()


def test_analyses_take_the_geometry_of_reduced_frames(tmp_path: Path) -> None:
    pytest.importorskip("pyFAI")
    from tuner.analysis import RadialProfile
    from tuner.measure.analyses.radial_profile import _integrator
    from tuner.measure.analyses.scan import Scan
    from tuner.steps import Pixels

    poni = tmp_path / "a.poni"
    poni.write_text(
        "poni_version: 2.1\nDetector: Detector\n"
        'Detector_config: {"pixel1": 1e-4, "pixel2": 1e-4, "max_shape": [120, 100], "orientation": 3}\n'
        "Distance: 0.1\nPoni1: 0.0052\nPoni2: 0.0041\nRot1: 0.0\nRot2: 0.0\nRot3: 0.0\nWavelength: 1e-10\n"
    )
    rows, columns = np.indices((120, 100)) + 0.5
    ring = 1000 * np.exp(-((np.hypot(rows - 52, columns - 41) - 30) ** 2) / 50)
    path = tmp_path / "ring.h5"
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = ring[None].round().astype("uint32")
        file["entry/data/beam_center_x"], file["entry/data/beam_center_y"] = 41.0, 52.0
    (original,) = open_stacks([path])
    view = reduced(original, parse_reductions("bin=2,crop=2:3:50:40"))
    for analysis in (RadialProfile(poni=str(poni), bins=20), RadialProfile(bins=20)):
        peaks = []
        for stack in (original, view):
            scan = Scan(stack, np.array([0]), Pixels(stack.marks, stack.mask), lambda frames: frames)
            frame = stack.read(0, 1)[0]
            intensity, _, _ = _integrator(analysis, scan)(frame, np.ones(frame.shape), np.ones(frame.shape, bool))
            peaks.append(np.nanmax(intensity))
            if analysis.poni is None:
                centre = [scan.declared(f"beam_center_{letter}") for letter in "yx"]
                assert centre == ([52, 41] if stack is original else [24, 17.5])
        # A sum of four pixels of the same ring; a wrong centre would smear it.
        assert peaks[1] == pytest.approx(4 * peaks[0], rel=0.1)
    original.close()


@pytest.mark.parametrize("fill", [None, 5])
@pytest.mark.parametrize("words", ["bin=2", "sum=4", "bin=2,sum=4", "crop=0:0:20:20", "triage=1:1:3:5"])
def test_what_was_never_written_counts_in_no_sum(tmp_path: Path, words: str, fill: int | None) -> None:
    """A foreign reader compares; of a sum that misses a part, nothing is known."""
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        data = file.create_dataset("x", FRAMES.shape, "u2", chunks=(1, *FRAMES.shape[1:]), fillvalue=fill)
        data[:6] = FRAMES[:6]
    target, _, view = write(tmp_path / "scan.h5", words)
    stored = view.source.stored_bytes()
    assert stored is not None
    with h5py.File(target) as file:
        written = file["x"][()]
    assert 0 < np.count_nonzero(stored) < len(stored)
    assert (written[stored == 0] == np.iinfo(written.dtype).max).all()
    assert not (written[stored > 0] == np.iinfo(written.dtype).max).any()
