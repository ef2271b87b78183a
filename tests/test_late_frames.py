"""Frames in any order: what `flush` says is safe can be read, whatever came late, came twice, or never came."""

from __future__ import annotations

import random
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest

from tuner.apply.opening import open_writer
from tuner.config import Config
from tuner.errors import InputError
from tuner.profile import Match, Profile

MISSING = 65535


@pytest.mark.parametrize("access", ["rolling", "single"])
@pytest.mark.parametrize("seed", [0, 13, 17, *range(30, 35)])
def test_what_is_said_to_be_safe_reads_in_whatever_order_frames_came(tmp_path: Path, access: str, seed: int) -> None:
    size = random.Random(seed).choice([1, 1, 3, 8])
    roll_every = random.Random(seed + 1).choice([4, 10, 24])
    chance = random.Random(seed)
    config = Config((size, -1, -1))
    path, given = tmp_path / "scan.h5", dict[int, int]()
    profile = Profile("late", Match("uint16"), config, config)
    with open_writer(path, profile, frame_shape=(6, 7), dtype="uint16", access=access, roll_every=roll_every) as writer:
        for _ in range(60):
            count = chance.choice([1, 1, 2, 5])
            near = max(0, writer.frames_written + chance.randrange(-12, 12))
            index = chance.choice([None, None, near, chance.randrange(60)])
            values = [chance.randrange(1, MISSING) for _ in range(count)]
            frames = np.array(values, "uint16")[:, None, None].repeat(6, 1).repeat(7, 2)
            start = max(given, default=-1) + 1 if index is None else index
            try:
                writer.append(frames, index=index)
            except InputError:  # given before, or too late: none of them is taken
                continue
            assert not given.keys() & set(range(start, start + count))
            given |= dict(enumerate(values, start))
            if chance.random() < 0.2:
                safe = writer.flush() if chance.random() < 0.5 else writer.sync()
                with h5py.File(path, locking=False) as file:
                    read = file["entry/data/data"][:safe, 2, 3]
                expected = {number: value for number, value in given.items() if number < safe}
                assert {number: int(read[number]) for number in expected} == expected
    with h5py.File(path) as file:
        data = file["entry/data/data"]
        assert data[:, 2, 3].tolist() == [given.get(number, MISSING) for number in range(max(given) + 1)]
        listed = [number for first, after in data.attrs["tuner_missing_frames"] for number in range(first, after)]
        assert listed == [number for number in range(max(given)) if number not in given]
