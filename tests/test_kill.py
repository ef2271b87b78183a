"""Killed at any moment, a writer leaves every frame that it said is safe, a repacker nothing under the final name."""

from __future__ import annotations

import io
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest
from killing import Victims, write

from tuner.apply.checksum import with_checksum
from tuner.apply.dataset import create_dataset
from tuner.apply.encode import Encoder
from tuner.apply.repack import repack
from tuner.config import Blosc2, Config
from tuner.profile import Match, Profile
from tuner.read import open_stacks

#: Half of how often each is killed; `make test-faults` says more.
KILLS = int(os.environ.get("TUNER_FAULTS", "3"))


def rewrite(source: str, destination: str, frames: int) -> None:
    config = Config((frames, -1, -1))
    stacks = open_stacks([source])
    print("ready", flush=True)
    repack(Profile("kill", Match("uint16"), config, config), stacks, [source], destination)


@pytest.mark.parametrize(("frames", "tile"), [(1, -1), (8, -1), (5, 10)])
def test_a_killed_writer_leaves_what_flush_acknowledged(
    victims: Victims, tmp_path: Path, frames: int, tile: int
) -> None:
    moments = random.Random(frames)
    for attempt in range(2 * KILLS):
        path = tmp_path / f"{attempt}.h5"
        safe = victims.kill(write, path, frames, tile, after=moments.uniform(0, 0.15), fresh=not attempt).last
        with h5py.File(path) as file:  # plain: without clearing flags, without SWMR
            dataset = file["entry/data/data"]
            assert len(dataset) >= safe
            numbers = np.arange(1, safe + 1, dtype="uint16")[:, None, None]
            assert (dataset[:safe] == numbers).all()


@pytest.mark.parametrize(("frames", "tile"), [(1, -1), (5, 10)])
def test_an_interrupted_writer_leaves_a_file_without_a_gap(
    victims: Victims, tmp_path: Path, frames: int, tile: int
) -> None:
    moments = random.Random(frames)
    for attempt in range(2 * KILLS):
        path = tmp_path / f"{attempt}.h5"
        after = moments.uniform(0.01, 0.15)
        written = victims.kill(write, path, frames, tile, after=after, by=signal.SIGINT, fresh=not attempt).last
        with h5py.File(path) as file:
            assert file["entry/data/data"].shape == (written, 32, 32)
            numbers = np.arange(1, written + 1, dtype="uint16")[:, None, None]
            assert (file["entry/data/data"][()] == numbers).all()


def test_the_file_of_a_writer_can_be_read_from_the_moment_that_it_is_there(victims: Victims, tmp_path: Path) -> None:
    for attempt in range(4 * KILLS):
        path = tmp_path / f"{attempt}.h5"
        with victims.start(write, path, 1, -1, fresh=not attempt) as writer:
            latest = time.monotonic() + 60
            while not path.exists():
                assert time.monotonic() < latest
            writer.end(signal.SIGKILL)
        with h5py.File(path) as file:
            assert file["entry/data/data"].shape[1:] == (32, 32)


@pytest.mark.parametrize("frames", [1, 8])
def test_a_killed_repack_leaves_nothing_under_the_final_name(victims: Victims, tmp_path: Path, frames: int) -> None:
    source = tmp_path / "scan.h5"
    content = np.random.default_rng(0).poisson(5, (400, 128, 128)).astype("uint16")
    with h5py.File(source, "w") as file:
        file["entry/data/data"] = content
    moments = random.Random(frames)
    for attempt in range(2 * KILLS):
        target = tmp_path / f"{attempt}.h5"
        done = victims.kill(rewrite, source, target, frames, after=moments.uniform(0, 0.3), fresh=not attempt)
        assert target.exists() or done.status
        if target.exists():
            with h5py.File(target) as file:
                assert (file["entry/data/data"][()] == content).all()
        for rest in {*tmp_path.iterdir()} - {source}:
            assert rest == target or rest.name.startswith(".")
            rest.unlink()
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
