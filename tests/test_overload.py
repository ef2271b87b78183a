"""Frames that come too fast: taken with less effort or refused, never lost, and never out of bounds."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tuner.apply.encode import Encoder
from tuner.apply.opening import open_writer
from tuner.apply.overload import Shedding
from tuner.apply.scan_file import ScanFile
from tuner.config import Blosc2, Config
from tuner.errors import InputError, OverloadError
from tuner.noise import Noise
from tuner.profile import Match, Profile
from tuner.steps import Uniform

SHAPE = (256, 256)
DEPTH = 12


def profile(steps: tuple[Any, ...] = (), chunks: tuple[int, ...] = (1, -1, -1)) -> Profile:
    """Slow at its best, much faster in its fallback."""
    return Profile(
        "slow",
        Match("uint16"),
        Config(chunks, Blosc2("zstd", clevel=9), steps=steps),
        Config(chunks, Blosc2("lz4", clevel=1)),
        noise=Noise(1.0, 0.0, 0.0, "given"),
        evidence={"promise": {"provisional": False}},
    )


def counts(number: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).poisson(200, (number, *SHAPE)).astype("uint16")


def shedding(levels: int = 2) -> Shedding:
    encoders = [Encoder(Blosc2(clevel=0, typesize=2), (1, 4, 5), np.dtype("uint16")) for _ in range(levels)]
    return Shedding(encoders, DEPTH)


@given(st.lists(st.integers(0, DEPTH), max_size=300))
def test_every_frame_is_accounted_for(backlogs: list[int]) -> None:
    policy = shedding()
    level = 0
    shed = {}
    for frame, backlog in enumerate(backlogs):
        encoder = policy.encoder(backlog, frame, frame + 1)
        assert (encoder is None) == (policy.level == 0)
        assert abs(policy.level - level) <= 1
        assert policy.level <= level or 4 * backlog >= 3 * DEPTH, "effort is stepped down only where a queue is"
        assert policy.level >= level or 4 * backlog <= DEPTH, "effort is stepped up only where none is"
        level = policy.level
        if level:
            shed[frame] = level
    runs = policy.notes().get("tuner_shed_frames", np.empty((0, 3), int)).tolist()
    assert {frame: level for first, after, level in runs for frame in range(first, after)} == shed
    assert all(one[1:] != [other[0], other[2]] for one, other in itertools.pairwise(runs)), "runs are joined"


def test_a_queue_steps_down_to_the_last_and_calm_back_to_the_first() -> None:
    policy = shedding()
    for frame in range(3 * DEPTH):
        policy.encoder(DEPTH, frame, frame + 1)
    assert policy.level == 2
    for frame in range(200):
        policy.encoder(1, frame, frame + 1)
    assert policy.level == 0
    assert policy.steps == 4


def test_a_load_at_the_edge_is_tried_ever_less_often() -> None:
    """The profile is too slow for what comes, the fallback is not: steps get rare, they do not swing for ever."""
    policy = shedding(1)
    steps = []
    for frame in range(20_000):
        policy.encoder(DEPTH if policy.level == 0 else 0, frame, frame + 1)
        steps.append(policy.steps)
    assert steps[-1] - steps[-5000] <= 10, "two steps in a thousand frames"


def read(path: Path) -> tuple[NDArray[Any], dict[str, Any]]:
    with h5py.File(path) as file:
        return file["entry/data/data"][:], dict(file["entry/data/data"].attrs)


@pytest.mark.parametrize("lossy", [False, True])
def test_a_burst_is_written_with_less_effort_and_every_pixel(tmp_path: Path, lossy: bool) -> None:
    frames = counts(60)
    ours = profile((Uniform(4),) if lossy else ())
    with open_writer(
        tmp_path / "a.h5", ours, frame_shape=SHAPE, dtype="uint16", workers=2, on_overload="shed"
    ) as writer:
        for frame in frames:  # faster than level 9 of zstd can take them
            writer.append(frame)
    written, notes = read(tmp_path / "a.h5")
    shed = np.zeros(len(frames), bool)
    for first, after, level in notes["tuner_shed_frames"]:
        assert level in (1, 2)
        shed[first:after] = True
    assert shed.any()
    assert not shed[0]
    assert notes["tuner_shed_steps"] >= 1
    assert (written[shed] == frames[shed]).all()
    if lossy:
        kept = np.zeros(len(frames), bool)
        for first, after in notes["tuner_lossless_frames"]:
            kept[first:after] = True
        assert (kept == shed).all()
        assert (written[~shed] != frames[~shed]).any(axis=(1, 2)).all()
    else:
        assert (written == frames).all()


def test_after_a_burst_the_profile_is_taken_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each step is logged, counted, and its frames are listed; the last ones are as small as those before it."""
    frames = counts(200)
    with open_writer(
        tmp_path / "a.h5", profile(), frame_shape=SHAPE, dtype="uint16", workers=2, on_overload="shed"
    ) as writer:
        for number, frame in enumerate(frames):
            writer.append(frame)
            while writer.waiting and not 10 <= number < 50:
                time.sleep(1e-3)
    written, notes = read(tmp_path / "a.h5")
    assert (written == frames).all()
    runs = notes["tuner_shed_frames"]
    assert 10 <= runs[0, 0] < 50 <= runs[-1, 1] < 190
    steps = [record.message for record in caplog.records if "are encoded with" in record.message]
    assert len(steps) == notes["tuner_shed_steps"] >= 2
    assert f"frames from {runs[-1, 1]} on are encoded with the profile" in steps[-1]
    with h5py.File(tmp_path / "a.h5") as file:
        sizes = [file["entry/data/data"].id.get_chunk_info(number).size for number in range(len(frames))]
    assert max(sizes[:10] + sizes[190:]) < min(sizes[first] for first, _, _ in runs)


def test_incompressible_frames_are_shed_too(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).integers(0, 65536, (60, *SHAPE), "uint16")
    with open_writer(
        tmp_path / "a.h5", profile(), frame_shape=SHAPE, dtype="uint16", workers=2, on_overload="shed"
    ) as writer:
        writer.append(frames)
    written, notes = read(tmp_path / "a.h5")
    assert (written == frames).all()
    assert notes["tuner_shed_frames"][0, 0] < 30
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["entry/data/data"].id.get_storage_size() < 1.01 * frames.nbytes


class Disk:
    """Pauses the disk: while it does, no write of a chunk returns."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.running.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    real = ScanFile.write

    def write(self: ScanFile, place: tuple[int, ...], chunk: bytes) -> None:
        disk.running.wait(60)
        real(self, place, chunk)

    monkeypatch.setattr(ScanFile, "write", write)
    yield disk
    disk.running.set()


def test_a_disk_that_pauses_holds_frames_back_and_sheds_none(tmp_path: Path, disk: Disk) -> None:
    """Chunks that are larger would make it wait longer: what waits for the disk is no reason to shed."""
    frames = counts(80)
    writer = open_writer(tmp_path / "a.h5", profile(), frame_shape=SHAPE, dtype="uint16", workers=2, on_overload="shed")
    disk.running.clear()
    taken = threading.Event()

    def append() -> None:
        for frame in frames:
            writer.append(frame)
            while writer.waiting and writer._flow._pipeline.backlog:  # the detector is slow enough for the profile
                taken.wait(1e-3)
        taken.set()

    detector = threading.Thread(target=append)
    detector.start()
    while writer.waiting < DEPTH:
        assert detector.is_alive()
        assert not taken.is_set()
    held = writer.frames_written
    assert not taken.wait(0.5)
    assert writer.waiting == DEPTH
    assert writer.frames_written <= held + 1, "what is in memory is bounded"
    disk.running.set()
    detector.join(60)
    assert taken.is_set()
    writer.close()
    written, notes = read(tmp_path / "a.h5")
    assert (written == frames).all()
    assert "tuner_shed_frames" not in notes


@pytest.mark.slow
def test_a_disk_that_pauses_for_seconds_costs_time_and_nothing_else(tmp_path: Path, disk: Disk) -> None:
    """In each access at once, with a clock that flushes meanwhile; `sync` waits too and acknowledges nothing before."""
    frames = counts(60)
    accesses = ("rolling", "single", "swmr")
    writers = [
        open_writer(
            tmp_path / f"{access}.h5",
            profile(chunks=(2, -1, -1)),
            frame_shape=SHAPE,
            dtype="uint16",
            workers=1,
            access=access,
            roll_every=10,
            flush_every="0.1s",
        )
        for access in accesses
    ]
    safe: dict[int, int] = {}

    def fill(number: int) -> None:
        for frame in frames:
            writers[number].append(frame)
        safe[number] = writers[number].sync()

    detectors = [threading.Thread(target=fill, args=(number,)) for number in range(len(writers))]
    disk.running.clear()
    for detector in detectors:
        detector.start()
    time.sleep(2)  # the clock flushes twenty times
    assert not safe
    for access, writer in zip(accesses, writers, strict=True):
        assert writer.waiting <= writer.depth
        assert writer.frames_written < len(frames)
        with h5py.File(tmp_path / f"{access}.h5", swmr=access == "swmr", locking=False) as file:
            assert (file["entry/data/data"][()] == 65535).all(), "what was not acknowledged reads as missing"
    disk.running.set()
    for detector in detectors:
        detector.join(60)
    assert list(safe.values()) == [len(frames)] * 3
    for access, writer in zip(accesses, writers, strict=True):
        writer.close()
        written, notes = read(tmp_path / f"{access}.h5")
        assert (written == frames).all()
        assert "tuner_missing_frames" not in notes
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tuner")]


def test_what_cannot_be_taken_is_refused_and_the_scan_goes_on(tmp_path: Path, disk: Disk) -> None:
    frames = counts(40)
    with open_writer(
        tmp_path / "a.h5",
        profile(chunks=(2, -1, -1)),
        frame_shape=SHAPE,
        dtype="uint16",
        workers=2,
        on_overload="raise",
    ) as writer:
        disk.running.clear()
        taken = list(range(2 * DEPTH + 1))
        for number in taken:
            writer.append(frames[number])
        for frame in frames[len(taken) :]:
            said = f"frames {len(taken)} to {len(taken)} come too fast: {DEPTH} chunks wait"
            with pytest.raises(OverloadError, match=said):
                writer.append(frame)
        disk.running.set()
        writer.flush()
        writer.append(frames[-1])
    written, _ = read(tmp_path / "a.h5")
    assert (written == frames[[*taken, -1]]).all()


def test_another_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="on_overload must be 'block' or 'raise' or 'shed', got 'drop'"):
        open_writer(tmp_path / "a.h5", profile(), frame_shape=SHAPE, dtype="uint16", on_overload="drop")
