"""Killed at any moment, a writer leaves every frame that it said is safe, a repacker nothing under the final name."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest

from tuner.apply.checksum import with_checksum
from tuner.apply.dataset import create_dataset
from tuner.apply.encode import Encoder
from tuner.config import Blosc2

#: Half of how often each is killed; `make test-faults` says more.
KILLS = int(os.environ.get("TUNER_FAULTS", "3"))

WRITE = """
import sys
import numpy as np
from tuner.apply.opening import open_writer
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
    for attempt in range(2 * KILLS):
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
    for attempt in range(2 * KILLS):
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
    for attempt in range(2 * KILLS):
        target = tmp_path / f"{attempt}.h5"
        done = killed(REPACK, source, target, frames, after=moments.uniform(0, 0.3))
        assert target.exists() or not done
        if target.exists():
            with h5py.File(target) as file:
                assert (file["entry/data/data"][()] == content).all()
    with h5py.File(source) as file:
        assert (file["entry/data/data"][()] == content).all()


class Recorder(io.BytesIO):
    """A file that remembers each of its writes: what a killed process leaves is what some first of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[int, bytes | None]] = []

    def write(self, data: Any) -> int:
        self.log.append((self.tell(), bytes(data)))
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        self.log.append((size, None))
        if size > len(self.getbuffer()):
            place = self.tell()
            self.seek(size - 1)
            super().write(b"\0")
            self.seek(place)
        return super().truncate(size)


@pytest.mark.parametrize(
    ("frames", "per_flush", "tiles", "datasets"),
    [(60, 1, 1, 1), (120, 7, 1, 1), (60, 3, 3, 1), (300, 100, 1, 1), (60, 1, 1, 2), (120, 7, 1, 3)],
)
def test_what_was_flushed_reads_after_every_single_write_to_the_file(
    frames: int, per_flush: int, tiles: int, datasets: int
) -> None:
    """HDF5's B-tree fails this in the middle of a flush; the newer index, which the writer chooses, does not."""
    recorder = Recorder()
    h5py.File(recorder, "w").close()
    encoder = Encoder(Blosc2(typesize=2), (1, 2, 2), np.dtype("uint16"))
    safe: dict[int, int] = {}
    with h5py.File(recorder, "r+", libver=("v110", "v110")) as file:
        names = ["data", *map(str, range(1, datasets))]
        shapes = (0, 2 * tiles, 2), (None, 2 * tiles, 2), (1, 2, 2)
        made = [create_dataset(file, name, *shapes, encoder) for name in names]
        file.flush()
        safe[len(recorder.log)] = 0
        for number in range(frames):
            for dataset in made:
                dataset.resize(number + 1, axis=0)
                for tile in range(tiles):
                    chunk = with_checksum(encoder.encode(np.full((1, 2, 2), number + 1, "uint16")))
                    dataset.id.write_direct_chunk((number, 2 * tile, 0), chunk)
            if number % per_flush == per_flush - 1:
                file.flush()
                safe[len(recorder.log)] = number + 1
    image = bytearray()
    flushed = None
    for count, (place, data) in enumerate(recorder.log, 1):
        end = place if data is None else place + len(data)
        image.extend(bytes(max(0, end - len(image))))
        if data is None:
            del image[end:]
        else:
            image[place:end] = data
        flushed = safe.get(count, flushed)
        if flushed is not None:
            with h5py.File(io.BytesIO(bytes(image))) as file:
                for name in names:
                    assert file[name][:flushed, -1, -1].tolist() == list(range(1, flushed + 1))
