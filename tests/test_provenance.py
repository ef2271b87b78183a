"""What frames were written with can be read from the file, as NeXus says it, without any of our code."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import silx.io
import tifffile
import yaml
from silx.io.nxdata import get_default

import tuner
from tuner.apply.opening import open_writer
from tuner.apply.repack import repack
from tuner.config import Blosc2, Config
from tuner.container import CONTAINERS
from tuner.noise import Noise
from tuner.profile import Match, Profile
from tuner.read import open_stacks
from tuner.steps import step_from_dict

FRAMES = np.random.default_rng(0).poisson(5, (6, 30, 50)).astype("uint16")


def profile(lossy: bool = False) -> Profile:
    steps = (step_from_dict({"step": "uniform", "width": 4}, "step"),) if lossy else ()
    config = Config(blosc2=Blosc2("zstd", clevel=1), steps=steps)
    evidence = {"goal": {"name": "test", "maximize": ["ratio"], "require": ["max_abs_error <= 2"]}}
    return Profile("test", Match("uint16"), config, Config(), noise=Noise(1.0, 0.0, 0.0, "given"), evidence=evidence)


def check(process: h5py.Group, ours: Profile, container: str = "blosc2", index: int = 1) -> None:
    assert process.attrs["NX_class"] == "NXprocess"
    assert process["program"].asstr()[()] == "tuner"
    assert process["version"].asstr()[()] == tuner.__version__
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(process["date"].asstr()[()])
    assert datetime.timedelta(seconds=-1) <= age < datetime.timedelta(minutes=5)
    assert process["sequence_index"][()] == index
    assert process["profile"].attrs["NX_class"] == "NXnote"
    assert process["profile/type"].asstr()[()] == "application/yaml"
    document = yaml.safe_load(process["profile/data"].asstr()[()])
    assert Profile.from_dict(document) == ours
    terms = process["parameters"]
    assert terms.attrs["NX_class"] == "NXparameters"
    says = {name: terms[name].asstr()[()] for name in terms}
    assert says["digest"] == document["digest"] == ours.digest
    assert says["container"] == container
    assert says["profile"] == "test"
    assert json.loads(says["steps"]) == document["config"]["steps"]
    assert json.loads(says["bounds"]) == (["max_abs_error <= 2"] if ours.config.steps else [])
    assert {"blosc2", "c-blosc2", "hdf5plugin", "tuner"} <= {*json.loads(says["versions"])}
    assert process.file[says["dataset"]].attrs["tuner_digest"] == ours.digest


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("access", ["single", "rolling", "swmr"])
def test_a_writers_files_have_an_nxprocess_in_their_entry(tmp_path: Path, access: str, container: str) -> None:
    path, ours = tmp_path / "scan.h5", profile(lossy=True)
    with open_writer(
        path, ours, frame_shape=(30, 50), dtype="uint16", verify="all", access=access, roll_every=3, container=container
    ) as writer:
        writer.append(FRAMES)
    for file in tmp_path.glob("*.h5"):
        with h5py.File(file) as opened:
            check(opened["entry/tuner"], ours, container)
    with silx.io.open(str(path)) as opened:
        assert get_default(opened).signal.name == "/entry/data/data"  # what a viewer shows first is still the frames


@pytest.mark.parametrize("dataset", ["entry/data/data", "frames"])
def test_each_time_that_a_file_is_written_anew_is_told(tmp_path: Path, dataset: str) -> None:
    with h5py.File(tmp_path / "0.h5", "w") as file:
        file[dataset] = FRAMES
        if "entry" in dataset:
            file["entry"].attrs["NX_class"] = "NXentry"
            file["entry/azint"] = h5py.SoftLink("/nowhere")
            file.create_group("entry/reduction").attrs["NX_class"] = "NXprocess"
    for number in (1, 2):
        source = tmp_path / f"{number - 1}.h5"
        (stack,) = open_stacks([source])
        repack(profile(), [stack], [source], tmp_path / f"{number}.h5")
        stack.close()
    with h5py.File(tmp_path / "2.h5") as file:
        entry = file["entry"] if "entry" in dataset else file
        others = 1 if "entry" in dataset else 0
        check(entry["tuner"], profile(), index=others + 1)
        check(entry[f"tuner_{others + 2}"], profile(), index=others + 2)


def test_a_file_that_is_made_of_images_has_one(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "scan.tif", FRAMES)
    (stack,) = open_stacks([tmp_path / "scan.tif"])
    repack(profile(), [stack], [tmp_path / "scan.tif"], tmp_path / "out.h5", dataset="scan/frames/data")
    stack.close()
    with h5py.File(tmp_path / "out.h5") as file:
        check(file["scan/tuner"], profile())
