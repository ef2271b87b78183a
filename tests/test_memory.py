"""The memory that a command takes is bounded by its sample and by the chunk, never by the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

#: The command line, and then its peak in KiB. (`ru_maxrss` would count what the test itself holds when it forks.)
PROGRAM = """
import sys
from tuner.cli import main
assert main(sys.argv[1:]) == 0
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


def peak_mib(*arguments: object) -> float:
    """The most memory that a command had at a time, as the kernel knows it since the program started."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments), "--quiet"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024


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
    profile = tmp_path / "scan.yaml"
    for command in (
        ("read",),
        ("search", "-o", profile, "--space", "quick", "--budget", "10"),
    ):
        few, many = (peak_mib(*command, path, "--sample", "8MB") for path in (small, large))
        print(f"{command[0]}: {few:.0f} MiB, a hundred times the file {many:.0f} MiB")
        assert many < few + NOISE_MIB


@pytest.mark.slow
def test_writing_anew_and_verifying_hold_a_few_chunks(tmp_path: Path) -> None:
    small, large = tmp_path / "small.h5", tmp_path / "large.h5"
    store(small, 24, (1024, 1024))
    store(large, 240, (1024, 1024))
    profile = tmp_path / "scan.yaml"
    peak_mib("search", small, "-o", profile, "--space", "quick", "--budget", "10")
    for command in (("apply", profile), ("verify", profile)):
        peaks = []
        for path in (small, large):
            out = tmp_path / f"out-{path.name}"
            peaks.append(peak_mib(*command, path, *([out] if command[0] == "apply" else [])))
            if command[0] == "apply":
                peaks[-1] = max(peaks[-1], peak_mib("verify", profile, out, "--against", path))
        few, many = peaks
        print(f"{command[0]}: {few:.0f} MiB, ten times the file {many:.0f} MiB")
        assert many < few + NOISE_MIB
