"""A scan of very many small frames: the last appends cost what the first did, memory and handles stay flat."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest

from tuner.apply.opening import open_writer
from tuner.apply.writer import Writer
from tuner.config import Blosc2, Config
from tuner.noise import Noise
from tuner.profile import Match, Profile
from tuner.steps import Step, Uniform

SHAPE = (22, 26)
#: Blocks before the last are timed, rounds in which they are, and the frames of one.
BLOCKS, ROUNDS, BLOCK = 12, 4, 20_000


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(), (Uniform(4),)], ids=["lossless", "lossy"])
def test_the_last_of_many_appends_cost_what_the_first_did(tmp_path: Path, steps: tuple[Step, ...]) -> None:
    config = Config((128, -1, -1), Blosc2("lz4", clevel=1), steps=steps)
    profile = Profile(
        "long",
        Match("uint16"),
        config,
        Config((128, -1, -1)),
        noise=Noise(1.0, 0.0, 0.0, "given"),
        evidence={"promise": {"provisional": False}},
    )
    frames = np.random.default_rng(0).poisson(20, (50, *SHAPE)).astype("uint16")
    memory, open_files, threads = [], [], []

    def block(writer: Writer) -> float:
        start = time.process_time()
        for number in range(BLOCK):
            writer.append(frames[number % 50])
        writer.flush()
        return time.process_time() - start

    def opened(name: str) -> Writer:
        return open_writer(tmp_path / name, profile, frame_shape=SHAPE, dtype="uint16", workers=2)

    with opened("a.h5") as old:
        for _ in range(BLOCKS):
            block(old)
            memory.append(resident())
            open_files.append(handles())
            threads.append(threading.active_count())
        # In the same minutes as those of a new writer, as the machine is faster or slower in others. What else it does
        # only makes blocks slower: the least of some counts, and while others disturb, more follow.
        with opened("b.h5") as new:
            block(new)
            last, first = [block(old)], [block(new)]
            while len(last) < ROUNDS or (min(last) > 1.2 * min(first) and len(last) < 5 * ROUNDS):
                last.append(block(old))
                first.append(block(new))
    assert min(last) <= 1.2 * min(first)
    assert max(memory[BLOCKS // 3 :]) <= memory[BLOCKS // 3 - 1] + (4 << 20)
    assert len(set(open_files)) == len(set(threads)) == 1
    with h5py.File(tmp_path / "a.h5") as file:
        data = file["entry/data/data"]
        assert len(data) == (BLOCKS + len(last)) * BLOCK
        whole = data[-200:]
    if not steps:
        assert (whole == np.concatenate([frames] * 4)).all()


@pytest.mark.slow
def test_what_a_ledger_holds_does_not_grow_with_the_scan(tmp_path: Path) -> None:
    """Late frames, too: gaps that were filled leave nothing behind."""
    config = Config((16, -1, -1), Blosc2("lz4", clevel=1))
    profile = Profile("late", Match("uint16"), config, config)
    frame = np.ones(SHAPE, "uint16")
    sizes = []
    with open_writer(tmp_path / "a.h5", profile, frame_shape=SHAPE, dtype="uint16", workers=2) as writer:
        ledger = writer._flow.ledger
        for number in range(0, 60_000, 2):
            writer.append(frame, index=number + 1)
            writer.append(frame, index=number)
            if number % 10_000 == 9_998:
                writer.flush()
                held = (ledger.open, ledger._waiting, ledger.gaps.array(), ledger.lossless.array(), ledger.lost.array())
                sizes.append([len(part) for part in held])
    assert all(one == sizes[0] for one in sizes), sizes
    assert len(sizes) == 6
