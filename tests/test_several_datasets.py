"""Several datasets in one file, each with its writer: what one promises holds whatever the others do."""

from __future__ import annotations

import gc
import os
import random
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest
from killing import Victims
from numpy.typing import NDArray

from tuner.apply.opening import open_writer
from tuner.apply.recover import recover
from tuner.apply.writer import Writer
from tuner.config import Blosc2, Config
from tuner.errors import InputError
from tuner.profile import Match, Profile
from tuner.read.hdf5 import open_hdf5

#: How often each access is killed; `make test-faults` says more.
KILLS = int(os.environ.get("TUNER_FAULTS", "3"))

MASKS = {"data": np.eye(16, 20, dtype=bool), "pilatus": np.eye(16, 20, 3, dtype=bool)}


def profile(dtype: str, frames: int = 1) -> Profile:
    config = Config((frames, -1, -1), Blosc2("zstd", clevel=1))
    return Profile(dtype, Match(dtype), config, config)


def first_of(path: Path, **about: Any) -> Writer:
    return open_writer(path, profile("uint16", 2), frame_shape=(16, 20), dtype="uint16", mask=MASKS["data"], **about)


def second_of(writer: Writer, **about: Any) -> Writer:
    about = {"dataset": "/entry/pilatus/data", "frame_shape": (16, 20), "mask": MASKS["pilatus"]} | about
    return open_writer(writer, profile("int32"), dtype="int32", **about)


def numbered(start: int, stop: int, dtype: str) -> NDArray[Any]:
    return np.arange(start, stop, dtype=dtype)[:, None, None] * np.ones((16, 20), dtype)


def seen(path: Path) -> tuple[list[int], list[int]]:
    with h5py.File(path, locking=False) as file:
        parts = [file[f"entry/{name}/data"][:, 3, 5].tolist() for name in ("data", "pilatus")]
    return parts[0], parts[1]


def check_dtypes_and_masks(path: Path) -> None:
    for name, dtype in (("data", "uint16"), ("pilatus", "int32")):
        stack = open_hdf5(path, dataset=f"/entry/{name}/data")
        assert stack.dtype == dtype
        assert stack.mask is not None
        assert (stack.mask == MASKS[name]).all()
        stack.source.close()  # type: ignore[union-attr]


def test_each_has_its_frames_its_profile_and_its_mask(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with first_of(path) as first, second_of(first) as second:
        for number in range(25):
            first.append(numbered(2 * number, 2 * number + 2, "uint16"))
            second.append(numbered(number, number + 1, "int32"))
            if number == 9:
                assert (first.flush(), second.flush()) == (20, 10)
                assert seen(path) == (list(range(20)), list(range(10)))
    assert seen(path) == (list(range(50)), list(range(25)))
    check_dtypes_and_masks(path)
    stack = open_hdf5(path)  # the default plot is the first
    assert stack.dataset == "/entry/data/data"
    stack.source.close()  # type: ignore[union-attr]
    with h5py.File(path) as file:
        assert file["entry/pilatus/data"].attrs["tuner_profile"] == "int32"
    found = recover(path)
    assert (found["dataset"], found["safe"]) == ("/entry/data/data", [[0, 50]])
    assert found["beside"] == [{"dataset": "/entry/pilatus/data", "frames": 25, "safe": [[0, 25]]}]


def test_a_file_is_closed_with_its_last_writer(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    first = first_of(path)
    second = second_of(first)
    first.append(numbered(0, 3, "uint16"))
    first.close()
    first.close()
    second.append(numbered(0, 4, "int32"))
    assert second.sync() == 4
    assert seen(path) == ([0, 1, 2], [0, 1, 2, 3])
    second.append(numbered(4, 6, "int32"))
    del second
    gc.collect()
    assert seen(path) == ([0, 1, 2], [0, 1, 2, 3, 4, 5])
    with h5py.File(path, "r+"):  # locked by nobody
        pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tuner")]


def test_threads_may_fill_them_at_once(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with first_of(path) as first, second_of(first, flush_every=7) as second:

        def fill(writer: Writer, dtype: str) -> None:
            for number in range(400):
                writer.append(numbered(number, number + 1, dtype))

        threads = [threading.Thread(target=fill, args=about) for about in ((first, "uint16"), (second, "int32"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen(path) == (list(range(400)), list(range(400)))


def write_both(path: str, access: str) -> None:
    first = first_of(Path(path), access=access, roll_every=20)
    second = second_of(first, roll_every=15)
    print("ready", flush=True)
    for number in range(30_000):
        first.append(numbered(number, number + 1, "uint16"))
        second.append(numbered(number, number + 1, "int32"))
        if number % 3 == 0:
            print(first.flush(), second.flush(), flush=True)


@pytest.mark.parametrize("access", ["single", "rolling"])
def test_a_kill_leaves_what_each_acknowledged(victims: Victims, tmp_path: Path, access: str) -> None:
    moments = random.Random(0)
    for attempt in range(KILLS):
        path = tmp_path / f"{attempt}.h5"
        said = victims.kill(write_both, path, access, after=moments.uniform(0, 0.4), fresh=not attempt).said
        safe = [0, 0, *said][-2:]
        for frames, count in zip(seen(path), safe, strict=True):
            assert len(frames) >= count
            assert frames[:count] == list(range(count))
        found = recover(path)
        for one, frames, count in zip([found, *found["beside"]], seen(path), safe, strict=True):
            assert one["frames"] == len(frames) >= count
            for first, after in one["safe"]:
                assert frames[first:after] == list(range(first, after))
            assert not count or one["safe"][0][1] >= count


FILL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_several_datasets import *
from tuner.errors import TunerError
first = first_of(Path(sys.argv[1]), access=sys.argv[3], roll_every=20)
second = second_of(first, roll_every=15)
rng = np.random.default_rng(0)
safe, failed = {first: 0, second: 0}, set()
for number in range(1500):
    for writer, dtype in ((first, "uint16"), (second, "int32")):
        try:
            writer.append(rng.integers(0, 60000, (16, 20)).astype(dtype) // 100 * 100 + number % 100)
            if number % 7 == 0:
                safe[writer] = writer.flush()
        except TunerError as error:
            assert any(f"{why}: frames from" in str(error) for why in ("left on device", "not be saved")), error
            safe[writer] = max(safe[writer], int(str(error).split("frames from ")[1].split()[0]))
            failed.add(writer)
assert failed == {first, second}
for writer in (first, second):
    writer.close()
print(*safe.values())
"""

LOOK = """
import sys, h5py, hdf5plugin, numpy as np
with h5py.File(sys.argv[1]) as file:
    for name, count in zip(("data", "pilatus"), map(int, sys.argv[2:]), strict=True):
        data = file[f"entry/{name}/data"]
        assert len(data) >= count > 5
        assert (data[:count] % 100 == (np.arange(count) % 100)[:, None, None]).all()
"""


@pytest.mark.parametrize(("access", "size"), [("single", "220k"), ("rolling", "600k")])
def test_on_a_full_disk_each_keeps_what_it_acknowledged(tmp_path: Path, access: str, size: str) -> None:
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    disk = f"mount -t tmpfs -o size={size} none {tmp_path}"
    if subprocess.run([*alone, disk], capture_output=True, check=False).returncode:
        pytest.skip("the system lets nobody mount a small file system")
    path = str(tmp_path / "a.h5")
    fill = shlex.join([sys.executable, "-c", FILL, path, str(Path(__file__).parent), access])
    look = shlex.join([sys.executable, "-c", LOOK, path])
    script = f"{disk} && safe=$({fill}) && {look} $safe"
    done = subprocess.run([*alone, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_cannot_stand_in_a_file_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with first_of(path) as first:
        for about, said in (
            ({"dataset": "/entry/data/other"}, "must be in a group of its own, got /entry/data/other"),
            ({"dataset": "/entry/data/data"}, "must be in a group of its own"),
            ({"mode": "w"}, "mode, access and layout must be left out"),
            ({"access": "rolling"}, "mode, access and layout must be left out"),
            ({"layout": "eiger"}, "mode, access and layout must be left out"),
            ({"fields": {"/entry/pilatus/data": 1}}, "must not be what is written anyway"),
        ):
            with pytest.raises(InputError, match=said):
                second_of(first, **about)
        with second_of(first) as second:
            second.append(numbered(0, 1, "int32"))
            second.flush()
            with pytest.raises(
                InputError, match="/entry/third/data must be asked for before the first frame of what is"
            ):
                second_of(first, dataset="/entry/third/data")
        first.append(numbered(0, 3, "uint16"))
        with pytest.raises(InputError, match="before the first frame only"):
            second_of(first, dataset="/entry/third/data")
    assert seen(path) == ([0, 1, 2], [0])
    with pytest.raises(InputError, match="the writer is closed"):
        second_of(first)
    with (
        first_of(tmp_path / "swmr.h5", access="swmr") as writer,
        pytest.raises(InputError, match="single or rolling access"),
    ):
        second_of(writer)


def test_detectors_of_a_rolling_scan_have_data_files_of_their_own_and_one_master(tmp_path: Path) -> None:
    path = tmp_path / "scan_master.h5"
    with first_of(path, access="rolling", roll_every=6) as first, second_of(first, roll_every=4) as second:
        for number in range(10):
            first.append(numbered(2 * number, 2 * number + 2, "uint16"))
            second.append(numbered(number, number + 1, "int32"))
            assert (first.sync(), second.sync()) == ((number + 1) // 3 * 6, (number + 1) // 4 * 4)
            assert seen(path) == (list(range((number + 1) // 3 * 6)), list(range((number + 1) // 4 * 4)))
        second.append(numbered(14, 15, "int32"), index=14)
    filled = [*range(10), *[-1] * 4, 14]
    assert seen(path) == (list(range(20)), filled)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *(f"scan_data_{number:06d}.h5" for number in (1, 2, 3, 4)),
        "scan_master.h5",
        *(f"scan_pilatus_data_{number:06d}.h5" for number in (1, 2, 3, 4)),
    ]
    check_dtypes_and_masks(path)
    with h5py.File(path) as file:
        assert file["entry/pilatus/data"].attrs["tuner_missing_frames"].tolist() == [[10, 14]]
        assert file["entry/instrument/pilatus/data"] == file["entry/pilatus/data"]
        assert "tuner_missing_frames" not in file["entry/data/data"].attrs
    for _ in range(2):  # a second time changes nothing
        found = recover(path)
        assert (found["dataset"], found["safe"]) == ("/entry/data/data", [[0, 20]])
        assert found["beside"] == [{"dataset": "/entry/pilatus/data", "frames": 15, "safe": [[0, 10], [14, 15]]}]
        assert seen(path) == (list(range(20)), filled)
        with h5py.File(path) as file:
            assert file["entry/instrument/pilatus/data"] == file["entry/pilatus/data"]


def test_a_master_is_replaced_with_the_data_files_of_its_own_datasets_alone(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    for mode, frames in (("x", 9), ("w", 3)):
        with (
            first_of(path, access="rolling", roll_every=2, mode=mode) as first,
            second_of(first, roll_every=2) as second,
        ):
            first.append(numbered(0, frames, "uint16"))
            second.append(numbered(0, frames, "int32"))
    assert len(list(tmp_path.iterdir())) == 1 + 2 * 2
    other = tmp_path / "scan_third.h5"  # another scan, whose files are named as those of a third dataset
    with first_of(other, access="rolling") as writer:
        writer.append(numbered(0, 2, "uint16"))
    with first_of(path, access="rolling", mode="w") as first:
        with pytest.raises(InputError, match=r"scan_third_data_000001\.h5: exists already, and holds no /entry/third"):
            second_of(first, dataset="/entry/third/data")
        for dataset, said in (
            ("/entry/data/other", "must be in a group of its own"),
            ("/entry/data/data", "whose data files would have the names of those of /entry/data/data"),
        ):
            with pytest.raises(InputError, match=said):
                second_of(first, dataset=dataset)
        with pytest.raises(InputError, match="must not be what is written anyway"):
            second_of(first, fields={"/entry/data/data": 1})
        with second_of(first) as second:
            second.append(numbered(0, 1, "int32"))
        first.append(numbered(0, 3, "uint16"))
    assert seen(path) == ([0, 1, 2], [0])
    with h5py.File(other) as file:
        assert len(file["entry/data/data"]) == 2


def test_the_master_of_an_eiger_takes_one_dataset(tmp_path: Path) -> None:
    said = r"scan_master\.h5: takes one dataset, as an Eiger's; /entry/pilatus/data needs another master"
    with first_of(tmp_path / "scan_master.h5", access="rolling", layout="eiger") as writer:
        with pytest.raises(InputError, match=said):
            second_of(writer)
        writer.append(numbered(0, 2, "uint16"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scan_data_000001.h5", "scan_master.h5"]
