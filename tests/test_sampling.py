"""Laws of `draw_sample`, on stacks made of their frame numbers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.read.hdf5 import open_hdf5
from tuner.read.sampling import Sample, draw_sample
from tuner.stack import Kind, Stack

PIXELS = 8


@dataclass
class Numbered:
    """Frames of 8 uint32 pixels that all hold the frame's number, or its brightness."""

    sizes: NDArray[np.int64] | None = None
    brightness: NDArray[np.uint32] | None = None

    def read(self, start: int, stop: int) -> NDArray[Any]:
        numbers = np.arange(start, stop, dtype=np.uint32)
        values = numbers if self.brightness is None else self.brightness[start:stop]
        return np.repeat(values, PIXELS).reshape(-1, 2, PIXELS // 2)

    def stored_bytes(self) -> NDArray[np.int64] | None:
        return self.sizes

    def close(self) -> None: ...


def numbered(
    frames: int,
    sizes: NDArray[np.int64] | None = None,
    kinds: NDArray[np.uint8] | None = None,
    brightness: NDArray[np.uint32] | None = None,
) -> Stack:
    return Stack(
        name=f"{frames} frames",
        shape=(frames, 2, PIXELS // 2),
        frame_ndim=2,
        dtype=np.dtype("uint32"),
        source=Numbered(sizes, brightness),
        kinds=kinds,
    )


@st.composite
def stacks(draw: st.DrawFn) -> list[Stack]:
    made = []
    for _ in range(draw(st.integers(1, 4))):
        frames = draw(st.integers(1, 300))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        told = draw(st.sampled_from(["unknown", "equal", "varied", "gaps"]))
        sizes = {
            "unknown": None,
            "equal": np.full(frames, 7),
            "varied": rng.integers(1, 1000, frames),
            "gaps": rng.integers(0, 3, frames),
        }[told]
        kinds = rng.choice([0, 0, 0, 1, 2, 3], frames).astype(np.uint8) if draw(st.booleans()) else None
        made.append(numbered(frames, sizes, kinds))
    return made


def eligible(stack: Stack) -> set[int]:
    stored = stack.source.stored_bytes()
    written = np.ones(len(stack), bool) if stored is None else stored > 0
    data = written if stack.kinds is None else written & (stack.kinds == Kind.DATA)
    return set(np.flatnonzero(data if data.any() else written).tolist())


def drawn(sample: Sample, index: int) -> list[int]:
    return [run.start + i for run in sample.runs if run.stack == index for i in range(len(run.frames))]


FRAME = PIXELS * 4


@settings(max_examples=200)
@given(stacks(), st.integers(1, 400 * FRAME), st.integers(0, 5))
def test_laws(made: list[Stack], nbytes: int, seed: int) -> None:
    allowed = [eligible(stack) for stack in made]
    if not any(allowed):
        with pytest.raises(InputError, match="must have frames that were written"):
            draw_sample(made, nbytes, seed)
        return
    sample = draw_sample(made, nbytes, seed)
    again = draw_sample(made, nbytes, seed)
    frames = [drawn(sample, index) for index in range(len(made))]
    budget = max(1, nbytes // FRAME)
    # What is read is what the numbers say.
    for run in sample.runs:
        assert (run.frames[:, 0, 0] == np.arange(run.start, run.start + len(run.frames))).all()
        assert run.frames.flags.c_contiguous
    # Disjoint, in order, within the budget, deterministic; never a frame that was not written or is no data.
    assert all(numbers == sorted(set(numbers)) for numbers in frames)
    assert sample.n_frames == sum(map(len, frames)) <= budget
    assert sample.nbytes == sample.n_frames * FRAME
    assert again.digest == sample.digest
    assert [(run.stack, run.start) for run in again.runs] == [(run.stack, run.start) for run in sample.runs]
    assert all(set(numbers) <= may for numbers, may in zip(frames, allowed, strict=True))
    if sum(map(len, allowed)) <= budget:
        assert [set(numbers) for numbers in frames] == allowed
        return
    assert all(len(run.frames).bit_count() == 1 for run in sample.runs)
    # Every stack contributes, as far as there are frames for all; the budget is used.
    filled = [index for index, may in enumerate(allowed) if may]
    if len(filled) <= budget:
        assert all(frames[index] for index in filled)
    for index in filled:
        count = len(frames[index])
        if count > 1:
            assert min(allowed[index]) in frames[index]
            assert max(allowed[index]) in frames[index]


@given(st.integers(50, 5000), st.integers(20, 45), st.integers(0, 10))
def test_extremes_are_in(frames: int, share: int, seed: int) -> None:
    sizes = np.random.default_rng(seed).permutation(frames) + 1
    brightness = np.random.default_rng(seed + 1).integers(0, 9, frames).astype(np.uint32)
    brightness[sizes.argsort()[-3]] = 1000  # one of the large ones, as photons make both
    sample = draw_sample([numbered(frames, sizes, brightness=brightness)], share * FRAME, seed)
    assert {0, frames - 1, int(sizes.argmin()), int(sizes.argmax()), int(brightness.argmax())} <= set(drawn(sample, 0))
    assert len(sample.runs) >= 4


def test_without_stored_bytes_means_stand_for_them() -> None:
    """A slow change of brightness over an uncompressed scan: the bright stretch and the dark one are both drawn."""
    numbers = np.arange(6400)
    brightness = (1000 + 900 * np.sin(numbers / 6400 * 2 * np.pi)).astype(np.uint32)
    sample = draw_sample([numbered(6400, brightness=brightness)], 64 * FRAME)
    values = np.concatenate([run.frames[:, 0, 0] for run in sample.runs])
    assert values.max() > 1880
    assert values.min() < 120


def test_runs_of_two_to_the_k_are_cut_the_same_by_every_shorter_chunk() -> None:
    sample = draw_sample([numbered(10_000)], 100 * FRAME)
    lengths = {len(run.frames) for run in sample.runs}
    assert max(lengths) == 16
    assert len(sample.runs) >= 5


def test_another_seed_is_another_sample() -> None:
    sizes = np.arange(1, 10_001)
    starts = {tuple(run.start for run in draw_sample([numbered(10_000, sizes)], 100 * FRAME, s).runs) for s in range(5)}
    assert len(starts) == 5


def test_a_frame_larger_than_the_sample_is_drawn_alone() -> None:
    sizes = np.array([1, 90, 80, 70, 2, 60, 50, 40, 99])
    assert drawn(draw_sample([numbered(9, sizes)], nbytes=1), 0) == [5]  # of median size
    assert drawn(draw_sample([numbered(9)], nbytes=1), 0) == [4]
    many = draw_sample([numbered(9)] * 9, nbytes=3 * FRAME)
    assert [run.stack for run in many.runs] == [0, 4, 8]


def test_only_data_frames_unless_there_are_none() -> None:
    kinds = np.array([2, 1, 0, 0, 0, 1, 3, 0], np.uint8)
    sample = draw_sample([numbered(8, kinds=kinds)])
    assert [(run.start, len(run.frames)) for run in sample.runs] == [(2, 3), (7, 1)]
    assert draw_sample([numbered(3, kinds=np.ones(3, np.uint8))]).n_frames == 3


def test_stacks_must_agree() -> None:
    other = Stack("b.h5", (4, 3, 3), 2, np.dtype("uint16"), Numbered())
    with pytest.raises(InputError, match=r"b\.h5: frames must be as those of 7 frames, uint32\(2, 4\), got uint16"):
        draw_sample([numbered(7), other])


def test_digest_is_of_the_pixels_and_their_form() -> None:
    sample = draw_sample([numbered(8)])
    assert draw_sample([numbered(8, brightness=np.arange(8, dtype=np.uint32))]).digest == sample.digest
    assert draw_sample([numbered(9)]).digest != sample.digest
    assert len(sample.digest) == 64


MEASURE = """
import resource, sys
from tuner.read import open_stacks
from tuner.read.sampling import draw_sample
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stacks = open_stacks(sys.argv[1:])
sample = draw_sample(stacks)
print(sum(stack.nbytes for stack in stacks), sample.nbytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("virtual", [False, True])
def test_memory_is_bounded_by_the_sample_and_a_chunk(tmp_path: Path, virtual: bool) -> None:
    """16 GB of frames that compress to nothing, in chunks of 16 MiB, sampled in a process of its own."""
    frames, shape = 4096, (1024, 1024)
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (frames, *shape), "float32", chunks=(4, *shape), compression="gzip")
        block = np.random.default_rng(0).integers(0, 2, (4, *shape)).astype(np.float32)
        data[:4] = block
        _, chunk = data.id.read_direct_chunk((0, 0, 0))
        for start in range(4, frames, 4):
            data.id.write_direct_chunk((start, 0, 0), chunk)
    if virtual:
        layout = h5py.VirtualLayout((frames, *shape), "float32")
        layout[:] = h5py.VirtualSource(path, "data", (frames, *shape))
        path = tmp_path / "vds.h5"
        with h5py.File(path, "w") as file:
            file.create_virtual_dataset("data", layout)
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    total, sampled, grown_kib = map(int, done.stdout.split())
    assert total == 16 << 30
    assert sampled == 16 << 20
    assert grown_kib < 200 << 10


def test_a_scan_that_was_cut_short(tmp_path: Path) -> None:
    """Frames that were planned and never written are no data, although they read as the fill value."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", (100, 16, 16), "uint16", chunks=(8, 16, 16))
        data[:24] = 5
    sample = draw_sample([open_hdf5(tmp_path / "a.h5")])
    assert [(run.start, len(run.frames)) for run in sample.runs] == [(0, 24)]
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("data", (100, 16, 16), "uint16", chunks=(8, 16, 16))
    with pytest.raises(InputError, match=r"b\.h5: must have frames that were written, got none of 100"):
        draw_sample([open_hdf5(tmp_path / "b.h5")])
