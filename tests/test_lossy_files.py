"""Files that are written lossily: what steps may not touch, what the files say, and what other readers get."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from foreign import read_elsewhere
from numpy.typing import NDArray

from tuner import load_profile, open_writer
from tuner.apply.foreign import verify_written
from tuner.apply.prepare import Preparation
from tuner.apply.repack import repack
from tuner.cli import main
from tuner.config import Blosc2, Config
from tuner.errors import InputError
from tuner.noise import Noise
from tuner.profile import Invalid, Match, Profile
from tuner.read import open_stacks
from tuner.steps.noise_aware import Sigma
from tuner.steps.uniform import Uniform

#: A process that has only h5py, hdf5plugin and numpy.
MASK = np.zeros((40, 60), bool)
MASK[10:12] = True


def counts(n: int = 12) -> NDArray[np.uint16]:
    frames = np.random.default_rng(0).poisson(500, (n, 40, 60)).astype(np.uint16)
    frames[:, 20, 30] = 65535
    frames[:, MASK] = 7
    frames[:, 25, 35] = 60001
    return frames


def profile_of(config: Config, **facts: Any) -> Profile:
    given = {"invalid": Invalid((65535,), saturation=60000.0), "noise": Noise(1.0, 0.0, 0.0, "given", 1.0), **facts}
    return Profile("lossy", Match("uint16", (), (40, 60)), config, replace(config, steps=()), **given)


PLAIN = Config((1, -1, -1), Blosc2("zstd", clevel=1), (Uniform(8),))


def holds(written: NDArray[Any], frames: NDArray[Any], kept: NDArray[Any]) -> None:
    data = np.broadcast_to(~MASK, frames.shape) & (frames < 60000)
    data = data & ~kept[:, None, None]
    assert np.array_equal(written[~data], frames[~data])
    assert not (written[data] % 8).any()
    assert np.abs(written[data].astype(int) - frames[data]).max() == 4


@pytest.mark.parametrize("chunks", [(1, -1, -1), (5, -1, -1), (3, 16, 25)])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_writer_steps_what_counts_and_nothing_else(tmp_path: Path, chunks: tuple[int, ...], workers: int) -> None:
    frames, kept = counts(), np.zeros(12, bool)
    kept[[2, 3, 11]] = True
    path = tmp_path / "a.h5"
    profile = profile_of(replace(PLAIN, chunks=chunks))
    with open_writer(
        path, profile, frame_shape=(40, 60), dtype="uint16", mask=MASK, workers=workers, verify="all"
    ) as writer:
        for start, stop, lossless in ((0, 2, False), (2, 4, True), (4, 11, False), (11, 12, True)):
            writer.append(frames[start:stop], lossless=lossless)
    holds(read_elsewhere(path), frames, kept)
    with h5py.File(path) as file:
        attributes = file["entry/data/data"].attrs
        assert json.loads(attributes["tuner_steps"]) == [{"step": "uniform", "width": 8}]
        assert json.loads(attributes["tuner_noise"])["gain"] == 1
        assert attributes["tuner_lossless_frames"].tolist() == [[2, 4], [11, 12]]


def test_a_lossless_file_says_nothing_of_steps(tmp_path: Path) -> None:
    profile = profile_of(replace(PLAIN, steps=()))
    with open_writer(tmp_path / "a.h5", profile, frame_shape=(40, 60), dtype="uint16") as writer:
        writer.append(counts())
    with h5py.File(tmp_path / "a.h5") as file:
        assert not {"tuner_steps", "tuner_noise", "tuner_lossless_frames"} & set(file["entry/data/data"].attrs)
    assert np.array_equal(read_elsewhere(tmp_path / "a.h5"), counts())


def test_a_provisional_profile_is_taken_only_if_every_frame_is_verified(tmp_path: Path) -> None:
    """What breaks the limit is written as it is, and noted; so are frames that are given as lossless."""
    goal = {"name": "own", "maximize": ["ratio"], "require": ["max_error_sigma <= 0.2"]}
    frames = counts()
    frames[3, 5, 5] = 3  # a step of 8 moves it by more than a fifth of its sigma
    profile = profile_of(PLAIN, evidence={"goal": goal})
    about: dict[str, Any] = {"frame_shape": (40, 60), "dtype": "uint16", "mask": MASK}
    with pytest.raises(InputError, match="verify must be 'all' for a provisional profile"):
        open_writer(tmp_path / "a.h5", profile, **about)
    with pytest.raises(InputError, match="verify must be 'off', 'sample' or 'all', got 'most'"):
        open_writer(tmp_path / "a.h5", profile, verify="most", **about)
    with open_writer(tmp_path / "a.h5", profile, verify="all", **about) as writer:
        writer.append(frames)
    holds(read_elsewhere(tmp_path / "a.h5"), frames, np.arange(12) == 3)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["entry/data/data"].attrs["tuner_lossless_frames"].tolist() == [[3, 4]]
    judged = profile_of(PLAIN, evidence={"goal": goal, "promise": {"provisional": False}})
    with open_writer(tmp_path / "b.h5", judged, verify="off", **about) as writer:
        writer.append(frames)
    holds(read_elsewhere(tmp_path / "b.h5"), frames, np.zeros(12, bool))


def test_the_mask_that_steps_leave_alone_must_be_given(tmp_path: Path) -> None:
    profile = profile_of(PLAIN, invalid=Invalid((65535,), "sha256:0"))
    with pytest.raises(InputError, match="mask must be given"):
        open_writer(tmp_path / "a.h5", profile, frame_shape=(40, 60), dtype="uint16")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A NeXus scan with flats and darks among its frames, and a profile with steps beside it."""
    path = tmp_path / "scan.nxs"
    with h5py.File(path, "w") as file:
        detector = file.create_group("entry/instrument/detector")
        detector.attrs["NX_class"] = "NXdetector"
        detector["data"] = counts()
        detector["image_key"] = np.array([2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3])
        detector["pixel_mask"] = MASK.astype("uint32")
        detector["saturation_value"] = 60000
        group = file.create_group("entry/data")
        group.attrs.update({"NX_class": "NXdata", "signal": "data"})
        group["data"] = h5py.SoftLink("/entry/instrument/detector/data")
        file["entry"].attrs.update({"NX_class": "NXentry", "default": "data"})
        file.attrs["default"] = "entry"
    profile_of(PLAIN).save(tmp_path / "p.yaml")
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_repacked_scan_keeps_flats_and_darks(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, profile = tmp_path / "out.h5", tmp_path / "p.yaml"
    assert run("apply", profile, scan, out) == 0
    kept = np.array([True, True, *[False] * 8, True, True])
    holds(read_elsewhere(out), counts(), kept)
    assert run("verify", profile, out, "--against", scan) == 0
    assert "as the profile's steps made them" in capsys.readouterr().out
    # What was rounded is not rounded again unasked.
    assert run("apply", profile, out, tmp_path / "again.h5") == 2
    assert "was written lossily before" in capsys.readouterr().err
    assert run("apply", "--again", profile, out, tmp_path / "again.h5") == 0
    assert np.array_equal(read_elsewhere(tmp_path / "again.h5"), read_elsewhere(out))


def test_a_profile_without_limits_is_not_said_to_keep_any(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made by hand, or measured and changed since, which voids its limits with its evidence."""
    assert run("verify", tmp_path / "p.yaml", scan) == 0
    told = capsys.readouterr().out
    assert "no limit on quality" in told
    assert "within the limits" not in told


def test_what_was_rounded_is_known_through_a_virtual_dataset_and_its_copy(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, virtual, profile = tmp_path / "out.h5", tmp_path / "virtual.h5", tmp_path / "p.yaml"
    assert run("apply", profile, scan, out) == 0
    with h5py.File(out) as written, h5py.File(virtual, "w") as file:
        layout = h5py.VirtualLayout((12, 40, 60), "u2")
        layout[:] = h5py.VirtualSource(written["entry/instrument/detector/data"])
        file.create_virtual_dataset("entry/instrument/detector/data", layout)
        for name in ("image_key", "pixel_mask", "saturation_value"):
            file[f"entry/instrument/detector/{name}"] = written[f"entry/instrument/detector/{name}"][()]
        file["entry/instrument/detector"].attrs["NX_class"] = "NXdetector"
    capsys.readouterr()
    assert run("apply", profile, virtual, tmp_path / "again.h5") == 2
    assert "was written lossily before" in capsys.readouterr().err
    # A lossless copy of it says so too.
    lossless, copy = tmp_path / "lossless.yaml", tmp_path / "copy.h5"
    profile_of(replace(PLAIN, steps=())).save(lossless)
    assert run("apply", lossless, virtual, copy) == 0
    with h5py.File(copy) as file:
        assert json.loads(file["entry/instrument/detector/data"].attrs["tuner_steps"]) == [
            {"step": "uniform", "width": 8}
        ]
    assert run("apply", profile, copy, tmp_path / "again.h5") == 2
    # A search that may round warns that it holds its limits against what was rounded.
    capsys.readouterr()
    told = ("--space", "counting", "--noise", "gain=16", "--require", "max_error_sigma <= 0.5", "--budget", "8")
    assert run("search", virtual, "-o", tmp_path / "found.yaml", *told, "--unguided", "--risk", "0.9") == 0
    assert "was written lossily before" in capsys.readouterr().err


@pytest.mark.parametrize("fill", [None, 101])
@pytest.mark.parametrize("chunk", [1, 4])
def test_frames_that_were_never_written_are_not_rounded(tmp_path: Path, fill: int | None, chunk: int) -> None:
    path, out = tmp_path / "scan.h5", tmp_path / "out.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", (20, 40, 50), "u2", chunks=(1, 40, 50), fillvalue=fill)
        data[:6] = np.random.default_rng(0).poisson(500, (6, 40, 50))
    noise = Noise(2.18, 100, 3.5, "given").floored(1.0)
    lossless = Config((chunk, -1, -1))
    config = replace(lossless, steps=(Sigma(0.99),))
    profile = Profile("test", Match("uint16"), config, lossless, Invalid((65535,)), noise)
    (stack,) = open_stacks([path])
    repack(profile, [stack], [path], out)
    verify_written(stack, out, preparation=Preparation.of_stack(profile, stack))
    stack.close()
    with h5py.File(path) as before, h5py.File(out) as after:
        assert (after["x"][6:] == before["x"][6:]).all()
        assert (after["x"][:6] != before["x"][:6]).any()
        assert after["x"].attrs["tuner_lossless_frames"].tolist() == [[6, 20]]


def test_applying_tells_the_ratio_of_data_frames_apart(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flats and darks are kept lossless, so that a file is larger than the ratio of its profile says."""
    assert run("apply", "--json", tmp_path / "p.yaml", scan, tmp_path / "out.h5") == 0
    (told,) = json.loads(capsys.readouterr().out)["files"]
    with h5py.File(tmp_path / "out.h5") as file:
        stored = [file["entry/data/data"].id.get_chunk_info(index).size for index in range(12)]
    assert told["other_frames"] == 4
    assert told["ratio_of_data"] == pytest.approx(8 * 40 * 60 * 2 / sum(stored[2:10]))
    assert told["ratio_of_data"] > told["ratio"]
    assert run("apply", "--overwrite", tmp_path / "p.yaml", scan, tmp_path / "out.h5") == 0
    assert f"{told['ratio_of_data']:.2f} of data frames alone: 4 flats, darks" in capsys.readouterr().out
    # Without steps all are, and nobody should think that the others are not.
    profile_of(replace(PLAIN, steps=())).save(tmp_path / "plain.yaml")
    assert run("apply", "--overwrite", tmp_path / "plain.yaml", scan, tmp_path / "out.h5") == 0
    assert "kept as they are" not in capsys.readouterr().out
    # In chunks of several kinds nobody can tell.
    profile_of(replace(PLAIN, chunks=(12, -1, -1))).save(tmp_path / "p.yaml")
    assert run("apply", "--json", tmp_path / "p.yaml", scan, tmp_path / "all.h5") == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["ratio_of_data"] is None


def test_a_pixel_that_moved_further_is_found(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, profile = tmp_path / "out.h5", tmp_path / "p.yaml"
    assert run("apply", profile, scan, out) == 0
    coarser = tmp_path / "coarser.yaml"
    profile_of(replace(PLAIN, steps=(Uniform(16),))).save(coarser)
    assert run("verify", coarser, out, "--against", scan) == 4
    assert "frame 2 differs from that of" in capsys.readouterr().err
    # A lossless profile promises every pixel.
    profile_of(replace(PLAIN, steps=())).save(coarser)
    assert run("verify", coarser, out, "--against", scan) == 4


def test_a_goal_that_is_broken_names_constraint_and_frame(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for limit, code in ((0.3, 0), (0.1, 4)):
        goal = {"name": "own", "maximize": ["ratio"], "require": [f"max_error_sigma <= {limit}"]}
        profile_of(PLAIN, evidence={"goal": goal}).save(tmp_path / "p.yaml")
        assert run("verify", tmp_path / "p.yaml", scan) == code
    assert "frame 2: max_error_sigma <= 0.1 is broken, got 0.1" in capsys.readouterr().err


def test_other_marks_than_those_that_steps_leave_alone_are_refused(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile_of(PLAIN, invalid=Invalid((65535,))).save(tmp_path / "p.yaml")
    assert run("apply", tmp_path / "p.yaml", scan, tmp_path / "out.h5") == 2
    assert "leave alone: 65535; but the file marks: 65535, 60000 and above" in capsys.readouterr().err
    assert not (tmp_path / "out.h5").exists()


def test_profiles_with_steps_come_back_and_state_a_lossless_fallback(tmp_path: Path) -> None:
    profile = profile_of(PLAIN)
    profile.save(tmp_path / "p.yaml")
    assert load_profile(tmp_path / "p.yaml", strict=True) == profile
    text = (tmp_path / "p.yaml").read_text()
    (tmp_path / "bad.yaml").write_text(text.replace("steps: []", "steps: [{step: uniform, width: 4}]"))
    with pytest.raises(InputError, match="fallback must be lossless, got uniform 4"):
        load_profile(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_text(text.replace("{step: uniform, width: 8.0}", "{step: mantissa, keep: 3}"))
    with pytest.raises(InputError, match=r"config.steps\[0\].step mantissa must be used on floats, got uint16"):
        load_profile(tmp_path / "bad.yaml")
