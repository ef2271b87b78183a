"""In each access, a reader that opens, holds and reopens a file sees what was acknowledged, before and after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest
from killing import Victims, write

from tuner.apply.recover import check_unused, recover
from tuner.errors import InputError
from tuner.read import open_stacks

#: How often each access is killed; `make test-faults` says more.
KILLS = int(os.environ.get("TUNER_FAULTS", "3"))

#: Only h5py and hdf5plugin: opens, reads all, holds, reads again, closes, and again until its stdin ends. What it finds
#: wrong it prints.
READ = """
import h5py, hdf5plugin, numpy, select, sys, time
path, swmr = sys.argv[1], sys.argv[2] == "swmr"
print("ready", flush=True)
seen = opened = told = 0
while not told:
    told = select.select([sys.stdin], [], [], 0)[0]  # it looks once more then
    with h5py.File(path, "r", libver="latest", swmr=True, locking=False) if swmr else h5py.File(path, "r") as file:
        opened += 1
        group = file["entry/data"]
        parts = [group[name] for name in sorted(group)]
        for look in range(3):
            if swmr:
                parts[0].refresh()
            count = sum(map(len, parts))
            if count < seen:
                print(f"{count} frames after {seen}")
            # The last frames may be under way where a file grows; a joined one is whole.
            seen = max(seen, count)
            sure = count if not swmr else max(0, count - 40)
            numbers, start = [numpy.empty((0, 2, 2), "uint16")], 0
            for part in parts:
                a, b = max(0, sure - 30 - start), min(len(part), sure - start)
                if a < b:
                    numbers.append(part[a:b, ::31, ::31])
                start += len(part)
            numbers = numpy.concatenate(numbers)
            wanted = numpy.arange(max(0, sure - 30), sure)[:, None, None] + 1
            if not (numbers == wanted).all():
                print(f"frames before {sure}: {numbers[:, 0, 0].tolist()}")
            time.sleep(0.01)
    if opened == 20:
        print("often", flush=True)
print(f"opened {opened} {seen}", flush=True)
"""


def right(path: Path, count: int) -> None:
    with h5py.File(path) as file:  # plain: without SWMR
        group = file["entry/data"]
        data = np.concatenate([np.empty((0, 32, 32), "uint16"), *(group[name][()] for name in sorted(group))])
        assert len(data) >= count
        assert (data[:count] == np.arange(1, count + 1, dtype="uint16")[:, None, None]).all()


@pytest.mark.parametrize("access", ["rolling", "eiger", "single", "swmr"])
@pytest.mark.parametrize(("frames", "tile"), [(1, -1), (8, 10)])
def test_a_killed_writer_leaves_what_it_acknowledged(
    victims: Victims, tmp_path: Path, access: str, frames: int, tile: int
) -> None:
    moments = random.Random(frames)
    for attempt in range(KILLS):
        path = tmp_path / f"{attempt}_master.h5"
        after = moments.uniform(0, 0.3)
        safe = victims.kill(write, path, frames, tile, access, True, after=after, fresh=not attempt).last
        if access != "swmr":
            right(path, safe)
        found = recover(path)
        assert found["cleared"] == (access == "swmr")
        right(path, safe)
        if safe:
            assert found["safe"][0][0] == 0
            assert found["safe"][0][1] >= safe
            right(path, found["safe"][0][1])
            assert len(open_stacks([path])[0]) == found["frames"]
        assert recover(path)["safe"] == found["safe"]  # a second time changes nothing


def test_a_master_joins_whole_files_only_and_a_recovered_one_all_that_is_safe(victims: Victims, tmp_path: Path) -> None:
    path = tmp_path / "scan_master.h5"
    safe = victims.kill(write, path, 4, -1, "rolling", True, after=0.4).last
    with h5py.File(path) as file:
        joined = len(file["entry/data/data"])
    assert joined % 20 == 0
    assert joined >= safe
    found = recover(path)
    assert found["frames"] >= joined
    right(path, found["frames"])
    assert recover(path) == {**found, "finished": [], "mended": 0}  # what is left has nothing that is safe
    for number, name in enumerate(sorted(tmp_path.glob("scan_data_*.h5"))):
        with h5py.File(name) as file:
            attributes = file["entry/data/data"].attrs
            assert attributes["image_nr_low"] == 20 * number + 1
            assert attributes["image_nr_high"] == 20 * number + len(file["entry/data/data"])


@pytest.mark.parametrize("access", ["rolling", "eiger", "swmr"])
def test_a_reader_that_holds_and_reopens_sees_no_wrong_frame(victims: Victims, tmp_path: Path, access: str) -> None:
    path = tmp_path / "scan_master.h5"
    command = [sys.executable, "-I", "-c", READ, str(path), access]
    with victims.start(write, path, 4, -1, access, True) as writer:
        writer.ready()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
            assert reader.stdout.readline() == "often\n"
            writer.end(signal.SIGKILL)
            said, _ = reader.communicate("stop")
    assert said.startswith("opened"), said
    assert int(said.split()[1]) > 20
    assert int(said.split()[2]) >= writer.last > 0


def test_a_plain_reader_of_a_single_file_sees_what_was_flushed_before_it_opened(tmp_path: Path) -> None:
    """It holds the file open while more is flushed, and gets the same; only the next open gets more."""
    script = """
import h5py, hdf5plugin, json, sys
for line in sys.stdin:
    with h5py.File(sys.argv[1], "r") as file:
        data = file["entry/data/data"]
        print(json.dumps(data[:, 0, 0].tolist()), flush=True)
        sys.stdin.readline()
        print(json.dumps(data[:, -1, -1].tolist()), flush=True)
"""
    from tuner.apply.opening import open_writer
    from tuner.config import Config
    from tuner.profile import Match, Profile

    path = tmp_path / "scan.h5"
    config = Config((4, -1, -1))
    profile = Profile("t", Match("uint16"), config, config)
    with (
        open_writer(path, profile, frame_shape=(8, 8), dtype="uint16") as writer,
        subprocess.Popen(
            [sys.executable, "-I", "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as reader,
    ):
        assert reader.stdin is not None
        assert reader.stdout is not None

        def ask() -> list[int]:
            assert reader.stdin is not None
            assert reader.stdout is not None
            reader.stdin.write("\n")
            reader.stdin.flush()
            return list(json.loads(reader.stdout.readline()))

        for number in range(1, 40):
            writer.append(np.full((8, 8), number, "uint16"))
            if number % 3 == 0:  # in the middle of chunks of four, too
                safe = writer.flush()
                assert ask() == list(range(1, safe + 1))
                writer.append(np.full((0, 8, 8), 0, "uint16"))
                writer.flush()
                assert ask() == list(range(1, safe + 1))
        reader.stdin.close()


@pytest.mark.parametrize("access", ["rolling", "swmr"])
def test_an_interrupted_writer_leaves_files_without_a_gap(victims: Victims, tmp_path: Path, access: str) -> None:
    moments = random.Random(access)
    for attempt in range(KILLS):
        path = tmp_path / f"{attempt}.h5"
        about = {"after": moments.uniform(0.01, 0.2), "by": signal.SIGINT, "fresh": not attempt}
        written = victims.kill(write, path, 5, 10, access, True, **about).last
        with h5py.File(path) as file:
            assert len(file["entry/data/data"]) == written
        right(path, written)
        assert not list(tmp_path.glob(".*"))


def test_processes_that_end_meanwhile_are_no_error(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    path.touch()
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            for process in [subprocess.Popen(["true"]) for _ in range(5)]:
                process.wait()

    crowd = [threading.Thread(target=come_and_go) for _ in range(2)]
    for thread in crowd:
        thread.start()
    try:
        for _ in range(100):
            check_unused(path)
    finally:
        done.set()
        for thread in crowd:
            thread.join()


def test_a_file_that_is_being_written_is_not_recovered(victims: Victims, tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with victims.start(write, path, 1, -1, "swmr", True) as writer:
        writer.ready()
        with pytest.raises(InputError, match=f"must not be in use, is being written by process {writer.pid}"):
            recover(path)
    assert recover(path)["cleared"]
