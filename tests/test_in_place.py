"""In place: the original stays until a verified copy is there, whatever happens; what would be lost is refused."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import tifffile
from killing import Victims

from tuner.apply import in_place
from tuner.apply.in_place import replace_in_place
from tuner.apply.opening import open_writer
from tuner.cli import main
from tuner.config import Blosc2, Config
from tuner.errors import InputError, TunerError, VerificationError
from tuner.noise import Noise
from tuner.profile import Match, Profile
from tuner.read import open_stacks
from tuner.steps import step_from_dict

#: Half of how often each is killed; `make test-faults` says more.
KILLS = int(os.environ.get("TUNER_FAULTS", "3"))
FRAMES = np.random.default_rng(0).poisson(5, (40, 64, 64)).astype("uint16")


def profile(lossy: bool = False, limit: str = "max_abs_error <= 2") -> Profile:
    steps = (step_from_dict({"step": "uniform", "width": 4}, "step"),) if lossy else ()
    config = Config((2, -1, -1), Blosc2("zstd", clevel=1), steps)
    evidence = {"goal": {"name": "test", "maximize": ["ratio"], "require": [limit]}}
    noise = Noise(1.0, 0.0, 0.0, "given")
    return Profile("test", Match("uint16"), config, Config((2, -1, -1)), noise=noise, evidence=evidence)


def scan(path: Path, frames: np.ndarray[Any, Any] = FRAMES) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["default"] = "entry"
        file.create_dataset("entry/data/data", data=frames, chunks=(1, *frames.shape[1:]))
        file["entry/angles"] = np.linspace(0, 180, len(frames))
        file.create_dataset("entry/flat", data=np.ones((64, 64)), **hdf5plugin.Zstd())
        file["entry/title"] = ["a scan", "of ours"]
        file["entry/where"] = file["entry/angles"].ref
        file["entry/outside"] = h5py.ExternalLink("nowhere.h5", "/x")
    return path


def apply(path: Path, ours: Profile | None = None, **options: Any) -> dict[str, Any]:
    stacks = open_stacks([path])
    try:
        return replace_in_place(ours or profile(), stacks, **options)
    finally:
        for stack in stacks:
            stack.close()


def beside(path: Path) -> list[str]:
    return sorted(other.name for other in path.resolve().parent.iterdir())


def test_the_copy_takes_the_name_and_all_that_belongs_to_it(tmp_path: Path) -> None:
    path = scan(tmp_path / "scan.h5")
    path.chmod(0o640)
    os.setxattr(path, "user.visit", b"hg-1")
    inode = path.stat().st_ino
    (done,) = apply(path)["files"]
    assert done["destination"] == str(path)
    assert path.stat().st_ino != inode
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.getxattr(path, "user.visit") == b"hg-1"
    assert beside(path) == ["scan.h5"]
    with h5py.File(path) as file:
        assert (file["entry/data/data"][()] == FRAMES).all()
        assert file["entry/data/data"].attrs["tuner_profile"] == "test"
        assert (file["entry/angles"][()] == np.linspace(0, 180, 40)).all()
        assert file[file["entry/where"][()]] == file["entry/angles"]
        assert file.get("entry/outside", getlink=True).filename == "nowhere.h5"
    size = path.stat()
    assert apply(path) == {"files": [], "skipped": [str(path)]}  # after a kill among many files, go on with the rest
    assert path.stat() == size
    assert len(apply(path, container="bitshuffle")["files"]) == 1


def test_a_file_system_without_extended_attributes_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_: object) -> list[str]:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))  # what Linux answers for one in user space

    monkeypatch.setattr(os, "listxattr", unsupported)
    assert len(apply(scan(tmp_path / "scan.h5"))["files"]) == 1


def test_what_a_symbolic_link_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = scan(tmp_path / "data" / "scan.h5")
    link = tmp_path / "latest.h5"
    link.symlink_to("data/scan.h5")
    apply(link)
    assert link.is_symlink()
    assert beside(path) == ["scan.h5"]
    with h5py.File(path) as file:
        assert "tuner_digest" in file["entry/data/data"].attrs


def test_pixels_are_changed_only_when_asked_for(tmp_path: Path) -> None:
    frames = np.minimum(FRAMES, 60_000)
    path = scan(tmp_path / "scan.h5", frames)
    (stack,) = open_stacks([path])
    stack.close()
    marks = {"values": [*stack.marks.invalid], "saturation": stack.marks.saturation, "underload": None}
    lossy = Profile.from_dict({**profile(lossy=True).to_dict(), "invalid": marks})
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"^profile test changes pixels: .*--discard-original allows it$"):
        apply(path, lossy)
    assert path.read_bytes() == before
    apply(path, lossy, discard_original=True)
    with h5py.File(path) as file:
        error = np.abs(file["entry/data/data"][()].astype(int) - frames)
        assert 0 < error.max() <= 2
    tight = Profile.from_dict({**profile(lossy=True, limit="max_abs_error <= 1").to_dict(), "invalid": marks})
    before = scan(path, frames).read_bytes()
    with pytest.raises(VerificationError, match=r"frame 0: max_abs_error.*the file stays as it was$"):
        apply(path, tight, discard_original=True)
    assert path.read_bytes() == before
    assert beside(path) == ["scan.h5"]


def virtual(path: Path) -> Path:
    layout = h5py.VirtualLayout(FRAMES.shape, "uint16")
    layout[:] = h5py.VirtualSource("scan.h5", "entry/data/data", FRAMES.shape, "uint16")
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("entry/data/data", layout)
    return path


def linked(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["entry/data/data_000001"] = h5py.ExternalLink("scan.h5", "/entry/data/data")
    return path


def with_user_block(path: Path) -> Path:
    with h5py.File(path, "w", userblock_size=512) as file:
        file["entry/data/data"] = FRAMES
    return path


@pytest.mark.parametrize(("make", "why"), [(virtual, "must hold its frames itself"), (linked, "must hold its frames")])
def test_masters_are_refused(tmp_path: Path, make: Any, why: str) -> None:
    scan(tmp_path / "scan.h5")
    path = make(tmp_path / "scan_master.h5")
    before = path.read_bytes()
    with pytest.raises(InputError, match=why):
        apply(path)
    assert path.read_bytes() == before


def test_what_would_be_lost_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has a user block in front of HDF5, which would be lost"):
        apply(with_user_block(tmp_path / "block.h5"))
    path = scan(tmp_path / "scan.h5")
    (tmp_path / "other.h5").hardlink_to(path)
    with pytest.raises(InputError, match=r"scan\.h5: has 2 names \(hard links\), of which only this one"):
        apply(path)
    (tmp_path / "other.h5").unlink()
    tifffile.imwrite(tmp_path / "scan.tif", FRAMES)
    with pytest.raises(InputError, match=r"scan\.tif: must be HDF5 to be replaced in place"):
        apply(tmp_path / "scan.tif")
    stacks = open_stacks([path]) * 2
    with pytest.raises(InputError, match="must be named once, got 2 times"):
        replace_in_place(profile(), stacks)
    stacks[0].close()
    with open_writer(tmp_path / "live.h5", profile(), frame_shape=(64, 64), dtype="uint16") as writer:
        writer.append(FRAMES)
        writer.flush()
        with pytest.raises(InputError, match=r"live\.h5: must not be in use, is being written by process"):
            apply(tmp_path / "live.h5")
    assert all(name[0] != "." for name in beside(path))


def test_a_file_that_changes_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scan(tmp_path / "scan.h5")
    verify = in_place.verify_written

    def verify_while_another_writes(*arguments: Any) -> Any:
        late = f"import h5py\nh5py.File({str(path)!r}, 'r+', locking=False)['entry/late'] = 1"
        subprocess.run([sys.executable, "-c", late], check=True)
        return verify(*arguments)

    monkeypatch.setattr(in_place, "verify_written", verify_while_another_writes)
    with pytest.raises(TunerError, match=r"stays as it was|was changed meanwhile"):
        apply(path)
    with h5py.File(path) as file:
        assert "late" in file["entry"]
        assert "tuner_digest" not in file["entry/data/data"].attrs
    assert beside(path) == ["scan.h5"]


@pytest.mark.parametrize("name", ["entry/data/data", "entry/angles", "entry/title"])
def test_a_copy_that_is_not_the_same_never_replaces_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = scan(tmp_path / "scan.h5")
    before = path.read_bytes()
    write = in_place.repack

    def wrong(*arguments: Any, **options: Any) -> Any:
        said = write(*arguments, **options)
        with h5py.File(arguments[3], "r+") as file:
            file[name][-1] = file[name][0]
        return said

    monkeypatch.setattr(in_place, "repack", wrong)
    with pytest.raises(VerificationError):
        apply(path)
    assert path.read_bytes() == before
    assert beside(path) == ["scan.h5"]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = scan(tmp_path / "scan.h5")
    profile().save(tmp_path / "p.yaml")
    apply_it = ["apply", "--in-place", str(tmp_path / "p.yaml"), str(path)]
    assert main([*apply_it, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["destination"] == str(path)
    assert main(apply_it) == 0
    assert "was written with this profile before" in capsys.readouterr().out
    assert main([*apply_it, "--overwrite"]) == 2
    assert "--overwrite must not come with --in-place" in capsys.readouterr().err
    assert main(["apply", "--discard-original", str(tmp_path / "p.yaml"), str(path), str(tmp_path / "o.h5")]) == 2
    assert "must come with --in-place" in capsys.readouterr().err


def replace(path: str, frames: int) -> None:
    config = Config((frames, -1, -1))
    stacks = open_stacks([path])
    print("ready", flush=True)
    replace_in_place(Profile("kill", Match("uint16"), config, config), stacks)


@pytest.mark.parametrize("frames", [1, 8])
def test_a_kill_at_any_moment_leaves_one_of_the_two_whole(victims: Victims, tmp_path: Path, frames: int) -> None:
    content = np.random.default_rng(0).poisson(5, (200, 128, 128)).astype("uint16")
    path = scan(tmp_path / "scan.h5", content)
    original = path.read_bytes()
    with victims.start(replace, path, frames) as whole:
        whole.ready()
        start = time.perf_counter()
        whole.end()
        seconds = time.perf_counter() - start
    moments = random.Random(frames)
    for attempt in range(2 * KILLS):
        path.write_bytes(original)
        victims.kill(replace, path, frames, after=moments.uniform(0, seconds), fresh=not attempt)
        with h5py.File(path) as file:
            replaced = "tuner_digest" in file["entry/data/data"].attrs
            assert (file["entry/data/data"][()] == content).all()
            assert file["entry/angles"].shape == (200,)
        assert replaced or path.read_bytes() == original
        for name in beside(path):
            if name != "scan.h5":
                assert name.startswith(".")
                path.with_name(name).unlink()
