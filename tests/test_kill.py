"""Killed at any moment, a writer leaves every frame that it said is safe, a repacker nothing under the final name."""

from __future__ import annotations

import io
import os
import random
import signal
import struct
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
from tuner.apply.opening import open_writer
from tuner.apply.recover import recover
from tuner.apply.repack import repack
from tuner.apply.torn import PAGE_NBYTES, mend_torn
from tuner.config import Blosc2, Config
from tuner.errors import InputError
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
        try:
            check_numbers(path, safe)  # plain: without clearing flags, without SWMR
        except OSError:  # one kill in some thousands tears a block of the index
            assert recover(path)["mended"]
            check_numbers(path, safe)


def check_numbers(path: Path, safe: int) -> None:
    with h5py.File(path) as file:
        dataset = file["entry/data/data"]
        assert len(dataset) >= safe
        assert (dataset[:safe] == np.arange(1, safe + 1, dtype="uint16")[:, None, None]).all()


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


Writes = list[tuple[int, bytes | None]]


def recorded(
    frames: int, per_flush: int, tiles: int = 1, datasets: int = 1, before: int = 0
) -> tuple[bytes, Writes, dict[int, int], list[str]]:
    """A file with some frames, the writes that further ones made, after how many writes so many were safe; datasets."""
    recorder = Recorder()
    h5py.File(recorder, "w").close()
    encoder = Encoder(Blosc2(typesize=2), (1, 2, 2), np.dtype("uint16"))
    with h5py.File(recorder, "r+", libver=("v110", "v110")) as file:
        names = ["data", *map(str, range(1, datasets))]
        shapes = (0, 2 * tiles, 2), (None, 2 * tiles, 2), (1, 2, 2)
        made = [create_dataset(file, name, *shapes, encoder) for name in names]
        safe: dict[int, int] = {}
        for number in range(before + frames):
            if number == before:
                file.flush()
                content = recorder.getvalue()
                recorder.log.clear()
                safe[0] = number
            for dataset in made:
                dataset.resize(number + 1, axis=0)
                for tile in range(tiles):
                    chunk = with_checksum(encoder.encode(np.full((1, 2, 2), (number + 1) % 65536, "uint16")))
                    dataset.id.write_direct_chunk((number, 2 * tile, 0), chunk)
            if number >= before and number % per_flush == per_flush - 1:
                file.flush()
                safe[len(recorder.log)] = number + 1
    return content, recorder.log, safe, names


def wrote(image: bytes, entry: tuple[int, bytes | None]) -> bytes:
    place, data = entry
    image = image.ljust(place, b"\0")
    return image[:place] if data is None else image[:place] + data + image[place + len(data) :]


def holds(file: h5py.File, names: list[str], safe: int) -> bool:
    return all(file[name][:safe, -1, -1].tolist() == list(range(1, safe + 1)) for name in names)


@pytest.mark.parametrize(
    ("frames", "per_flush", "tiles", "datasets"),
    [(60, 1, 1, 1), (120, 7, 1, 1), (60, 3, 3, 1), (300, 100, 1, 1), (60, 1, 1, 2), (120, 7, 1, 3)],
)
def test_what_was_flushed_reads_after_every_single_write_to_the_file(
    frames: int, per_flush: int, tiles: int, datasets: int
) -> None:
    """HDF5's B-tree fails this in the middle of a flush; the newer index, which the writer chooses, does not."""
    image, log, flushes, names = recorded(frames, per_flush, tiles, datasets)
    safe = 0
    for count, entry in enumerate(log, 1):
        image = wrote(image, entry)
        safe = flushes.get(count, safe)
        with h5py.File(io.BytesIO(image)) as file:
            assert holds(file, names, safe)


@pytest.mark.parametrize(
    ("frames", "per_flush", "tiles", "datasets", "before", "every"),
    [
        (60, 3, 1, 1, 0, 64),
        (60, 3, 3, 1, 0, 512),
        (300, 100, 1, 1, 0, 512),
        (40, 3, 1, 2, 200, 512),
        (20, 5, 1, 1, 2000, 512),
    ],
)
def test_what_was_flushed_reads_once_recovered_wherever_a_write_was_torn(
    tmp_path: Path, frames: int, per_flush: int, tiles: int, datasets: int, before: int, every: int
) -> None:
    """The kernel ends a write of a killed process between two pages: a block of 20 bytes a frame may lie in both."""
    image, log, flushes, names = recorded(frames, per_flush, tiles, datasets, before)
    path = tmp_path / "torn.h5"
    safe, torn = before, 0
    for count, (place, data) in enumerate(log):
        safe = flushes.get(count, safe)
        for cut in range(place // every * every + every, place + len(data or b""), every):
            assert data is not None
            path.write_bytes(wrote(image, (place, data[: cut - place])))
            mended = mend_torn(path, every)
            with h5py.File(path) as file:
                assert holds(file, names, safe)
            assert mend_torn(path, every) == 0
            torn += mended
        image = wrote(image, (place, data))
    assert torn > 0
    path.write_bytes(image)
    assert mend_torn(path, every) == 0, "what is whole is left alone"
    assert path.read_bytes() == image


def test_a_torn_page_of_a_long_index_is_mended_too(tmp_path: Path) -> None:
    """From 131,057 frames on, blocks of the index have pages of 1,024 frames, each with a checksum."""
    frames, path = 131_100, tmp_path / "torn.h5"
    encoder = Encoder(Blosc2(typesize=2), (1, 2, 2), np.dtype("uint16"))
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        dataset = create_dataset(file, "data", (frames, 2, 2), (None, 2, 2), (1, 2, 2), encoder)
        chunk = with_checksum(encoder.encode(np.ones((1, 2, 2), "uint16")))
        for number in range(frames - 3000, frames):  # those before were never written
            dataset.id.write_direct_chunk((number, 0, 0), chunk)
    image = path.read_bytes()
    assert mend_torn(path) == 0
    (element,) = struct.unpack_from("<B", image, image.index(b"EAHD") + 6)
    page = image.rindex(b"EADB") + 22  # of the block's own: signature, address, offset and checksum
    torn = bytearray(image)
    torn[page + 1024 * element] ^= 1
    path.write_bytes(torn)
    with h5py.File(path) as file, pytest.raises(OSError, match="checksum"):
        file["data"][-1]
    assert mend_torn(path) == 1
    assert path.read_bytes() == image


def test_a_flipped_bit_within_a_page_gets_no_right_checksum(tmp_path: Path) -> None:
    path, config = tmp_path / "a.h5", Config((1, -1, -1))
    profile = Profile("damaged", Match("uint16"), config, config)
    with open_writer(path, profile, frame_shape=(8, 8), dtype="uint16") as writer:
        writer.append(np.arange(40 * 64, dtype="uint16").reshape(40, 8, 8))
    damaged = bytearray(path.read_bytes())
    block = damaged.index(b"EADB")  # of 340 bytes
    assert block // PAGE_NBYTES == (block + 340) // PAGE_NBYTES
    damaged[block + 30] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="incorrect metadata checksum"):
        recover(path)
    assert path.read_bytes() == damaged
    assert mend_torn(path, page=64) == 1, "as if pages were smaller"


def test_metadata_of_another_program_gets_no_right_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(recorded(1, 1, before=2000)[0])
    assert mend_torn(path) == 0
    damaged = bytearray(path.read_bytes())
    damaged[damaged.rindex(b"EADB") + 30] ^= 4  # of more than a page
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="must be written with a profile"):
        recover(path)
    assert path.read_bytes() == damaged
    assert mend_torn(path) == 1, "of a writer of ours it may have been torn"


def test_metadata_that_is_damaged_is_recovered_or_refused_and_never_a_crash(tmp_path: Path) -> None:
    path, config = tmp_path / "a.h5", Config((1, -1, -1))
    with open_writer(
        path, Profile("damaged", Match("uint16"), config, config), frame_shape=(8, 8), dtype="uint16"
    ) as w:
        w.append(np.arange(200 * 64, dtype="uint16").reshape(200, 8, 8))
    image, random_ = path.read_bytes(), random.Random(0)
    signatures = (b"OHDR", b"OCHK", b"EAHD", b"EAIB", b"EADB", b"EASB")
    blocks = [place for place in range(len(image)) if image.startswith(signatures, place)]
    refused: list[str] = []
    for _ in range(100):
        damaged, block = bytearray(image), random_.choice(blocks)
        for _ in range(random_.choice((1, 4, 40))):
            damaged[min(block + random_.randrange(4, 300), len(image) - 1)] = random_.randrange(256)
        path.write_bytes(damaged)
        try:
            recover(path)
        except InputError as error:
            refused.append(str(error))
    assert 0 < len(refused) < 100
    assert not any("\n" in text for text in refused)
