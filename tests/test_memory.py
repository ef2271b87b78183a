"""The memory that a command takes is bounded by its sample and by the chunk, never by the file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from tuner.config import Config
from tuner.goal import load_goal
from tuner.profile import Match, Profile

#: Command lines, and after each the peak so far in KiB. (`ru_maxrss` would count what the test holds when it forks.)
PROGRAM = """
import json, sys
from tuner.cli import main
for command in json.loads(sys.argv[1]):
    assert main([*command, "--quiet"]) == 0
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc/self/status"),
    pytest.mark.usefixtures("home"),
]

#: What two runs of the same command differ by anyway: arenas, threads, the order of what is measured.
NOISE_MIB = 48


def store(path: Path, frames: int, shape: tuple[int, int], depth: int = 1) -> None:
    """A large scan that takes little disk and no time: a few sparse chunks, compressed once, again and again."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w", libver="latest") as file:
        chunks = (depth, *shape)
        dataset = file.create_dataset(
            "entry/data/data", (frames, *shape), "uint16", chunks=chunks, compression="gzip", compression_opts=1
        )
        first = [(random.random(chunks) < 0.02 * (1 + n)) * random.poisson(9, chunks) for n in range(4)]
        stored = []
        for n, content in enumerate(first):
            dataset[n * depth : (n + 1) * depth] = content
            stored.append(dataset.id.read_direct_chunk((n * depth, 0, 0))[1])
        for start in range(len(first) * depth, frames, depth):
            dataset.id.write_direct_chunk((start, 0, 0), stored[start // depth % len(stored)])


def peaks_mib(*commands: Sequence[object]) -> list[float]:
    """The most memory at a time until the end of each of some commands, that one process runs in turn."""
    text = json.dumps(commands, default=str)
    done = subprocess.run([sys.executable, "-c", PROGRAM, text], capture_output=True, text=True, check=True)
    return [int(line) / 1024 for line in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "shape", "depth"), [(1200, (1024, 1024), 1), (1280, (1024, 1024), 4), (250_000, (64, 64), 1)]
)
def test_a_hundred_times_the_file_takes_no_more_memory(
    tmp_path: Path, frames: int, shape: tuple[int, int], depth: int
) -> None:
    small, large = tmp_path / "small.h5", tmp_path / "large.h5"
    store(small, max(16, frames // 100), shape, depth)
    store(large, frames, shape, depth)
    with h5py.File(large) as file:
        assert file["entry/data/data"].nbytes > 2e9
    profile, sample = tmp_path / "scan.yaml", ("--sample", "8MB")
    peaks = [
        peaks_mib(
            ("read", path, *sample), ("search", path, "-o", profile, "--space", "quick", "--budget", "10", *sample)
        )
        for path in (small, large)
    ]
    for command, few, many in zip(("read", "search"), *peaks, strict=True):
        print(f"{command}: {few:.0f} MiB, a hundred times the file {many:.0f} MiB")
        assert many < few + NOISE_MIB


@pytest.mark.slow
def test_writing_anew_and_verifying_hold_a_few_chunks(tmp_path: Path) -> None:
    small, large = tmp_path / "small.h5", tmp_path / "large.h5"
    store(small, 24, (1024, 1024))
    store(large, 240, (1024, 1024))
    profile = tmp_path / "scan.yaml"
    config, evidence = Config((2, -1, -1)), {"goal": load_goal("balanced").to_dict()}
    Profile("quick", Match("uint16"), config, config, evidence=evidence).save(profile)
    peaks = [
        peaks_mib(("apply", profile, path, out), ("verify", profile, out, "--against", path), ("verify", profile, path))
        for path, out in ((small, tmp_path / "out-small.h5"), (large, tmp_path / "out-large.h5"))
    ]
    for command, few, many in zip(("apply", "verify --against", "verify"), *peaks, strict=True):
        print(f"{command}: {few:.0f} MiB, ten times the file {many:.0f} MiB")
        assert many < few + NOISE_MIB
