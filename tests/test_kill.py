"""Killed at any moment, a writer leaves every frame that it said is safe, a repacker nothing under the final name."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest

WRITE = """
import sys
import numpy as np
from tuner.apply.writer import open_writer
from tuner.config import Config
from tuner.profile import Match, Profile

path, frames, tile = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
config = Config((frames, tile, -1))
profile = Profile("kill", Match("uint16"), config, config)
with open_writer(path, profile, frame_shape=(32, 32), dtype="uint16") as writer:
    print("ready", flush=True)
    for number in range(1, 1_000_000):
        writer.append(np.full((32, 32), number, "uint16"))
        if number % 3 == 0:
            print(writer.flush(), flush=True)
"""

REPACK = """
import sys
from tuner.apply.repack import repack
from tuner.config import Config
from tuner.profile import Match, Profile
from tuner.read import open_stacks

source, destination, frames = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = Config((frames, -1, -1))
stacks = open_stacks([source])
print("ready", flush=True)
repack(Profile("kill", Match("uint16"), config, config), stacks, [source], destination)
print("done", flush=True)
"""


def killed(script: str, *arguments: object, after: float, by: int = signal.SIGKILL) -> list[str]:
    """What a process printed until it was killed, some seconds after it was ready."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = process.stdout.readline()
        time.sleep(after)
        process.send_signal(by)
        lines = process.stdout.read().split()
        assert ready == "ready\n", process.stderr.read()
        return lines


@pytest.mark.parametrize(("frames", "tile"), [(1, -1), (8, -1), (5, 10)])
def test_a_killed_writer_leaves_what_flush_acknowledged(tmp_path: Path, frames: int, tile: int) -> None:
    moments = random.Random(frames)
    for attempt in range(8):
        path = tmp_path / f"{attempt}.h5"
        safe = int(["0", *killed(WRITE, path, frames, tile, after=moments.uniform(0, 0.15))][-1])
        with h5py.File(path) as file:  # plain: without clearing flags, without SWMR
            dataset = file["entry/data/data"]
            assert len(dataset) >= safe
            numbers = np.arange(1, safe + 1, dtype="uint16")[:, None, None]
            assert (dataset[:safe] == numbers).all()


INTERRUPT = (
    WRITE.replace("with open_writer", "try:\n  with open_writer").replace("\n    ", "\n      ")
    + """
except KeyboardInterrupt:
    print(f"\\n{writer.frames_written}", flush=True)
"""
)


@pytest.mark.parametrize(("frames", "tile"), [(1, -1), (5, 10)])
def test_an_interrupted_writer_leaves_a_file_without_a_gap(tmp_path: Path, frames: int, tile: int) -> None:
    moments = random.Random(frames)
    for attempt in range(6):
        path = tmp_path / f"{attempt}.h5"
        after = moments.uniform(0.01, 0.15)
        written = int(killed(INTERRUPT, path, frames, tile, after=after, by=signal.SIGINT)[-1])
        with h5py.File(path) as file:
            assert file["entry/data/data"].shape == (written, 32, 32)
            numbers = np.arange(1, written + 1, dtype="uint16")[:, None, None]
            assert (file["entry/data/data"][()] == numbers).all()


def test_the_file_of_a_writer_can_be_read_from_the_moment_that_it_is_there(tmp_path: Path) -> None:
    for attempt in range(4):
        path = tmp_path / f"{attempt}.h5"
        with subprocess.Popen(
            [sys.executable, "-c", WRITE, str(path), "1", "-1"], stdout=subprocess.DEVNULL
        ) as process:
            while not path.exists():
                assert process.poll() is None
            process.kill()
        with h5py.File(path) as file:
            assert file["entry/data/data"].shape[1:] == (32, 32)


@pytest.mark.parametrize("frames", [1, 8])
def test_a_killed_repack_leaves_nothing_under_the_final_name(tmp_path: Path, frames: int) -> None:
    source = tmp_path / "scan.h5"
    content = np.random.default_rng(0).poisson(5, (400, 128, 128)).astype("uint16")
    with h5py.File(source, "w") as file:
        file["entry/data/data"] = content
    moments = random.Random(frames)
    for attempt in range(6):
        target = tmp_path / f"{attempt}.h5"
        done = killed(REPACK, source, target, frames, after=moments.uniform(0, 0.3))
        assert target.exists() or not done
        if target.exists():
            with h5py.File(target) as file:
                assert (file["entry/data/data"][()] == content).all()
    with h5py.File(source) as file:
        assert (file["entry/data/data"][()] == content).all()
