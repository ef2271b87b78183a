"""A probe tells the same of the same frames, in little time, and what is worth a filter."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import numpy as np
import pytest
from in_memory import sample_of
from numpy.typing import NDArray

from tuner.apply.encode import Encoder
from tuner.measure.probe import PROBES, probe_traits
from tuner.measure.timing import Reference
from tuner.read.sampling import Sample


def smooth() -> Sample:
    rows = 2000 + 1500 * np.sin(np.arange(512) / 60)
    frames = np.random.default_rng(0).normal(rows, 3, (4, 512, 512)).astype(np.uint16)
    return sample_of(frames[:2], frames[2:])


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((3, 256, 256), np.uint16),
        np.ones((1, 1, 1), np.uint8),
        np.ones((2, 3), np.float64),
        np.full((2, 40, 40), np.nan, np.float32),
        np.zeros((2, 70, 70), np.bool_),
        np.random.default_rng(0).integers(0, 2**63, (1, 300, 301)).astype(np.uint64),
        np.random.default_rng(0).normal(size=(5, 77, 13)).astype(np.float16),
    ],
    ids=lambda frames: f"{frames.dtype}{frames.shape}",
)
def test_every_number_is_finite(frames: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    found = probe_traits(sample_of(frames), Reference())
    assert len(found) == 3 * len(PROBES)
    assert all(math.isfinite(value) for value in found.values())


def test_ratios_are_the_same_each_time_and_speeds_nearly() -> None:
    reference, sample = Reference(), smooth()
    probe_traits(sample, reference)
    first, second = probe_traits(sample, reference), probe_traits(sample, reference)
    ratios = [name for name in first if name.endswith("ratio")]
    assert [first[name] for name in ratios] == [second[name] for name in ratios]
    apart = [abs(first[name] - second[name]) for name in first if name not in ratios]
    assert np.median(apart) < 0.25


def test_what_interrupts_every_fifth_piece_changes_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another program does that takes the core for 20 ms at a time."""
    reference, sample = Reference(), smooth()
    alone, calls, real = probe_traits(sample, reference), itertools.count(), Encoder.timed_encode

    def interrupted(encoder: Encoder, chunk: NDArray[Any]) -> tuple[bytes, float]:
        frame, seconds = real(encoder, chunk)
        return frame, seconds + (0.02 if next(calls) % 5 == 0 else 0)

    monkeypatch.setattr(Encoder, "timed_encode", interrupted)
    found = probe_traits(sample, reference)
    apart = [abs(found[name] - alone[name]) for name in alone if name.endswith("encode")]
    assert np.median(apart) < 0.25
    assert max(apart) < 1


def test_filters_are_told_apart() -> None:
    found = probe_traits(smooth(), Reference())
    plain, shuffled, delta = (
        found[f"probe_zstd1_{chain}_log_ratio"] for chain in ("plain", "shuffle", "shuffle_bytedelta")
    )
    assert plain < shuffled < delta
    assert found["probe_lz41_bitshuffle_log_encode"] > found["probe_zstd1_bitshuffle_log_encode"]


def test_the_pieces_are_spread_over_all_runs() -> None:
    flat, noise = np.zeros((1, 512, 512), np.uint16), np.random.default_rng(0).integers(0, 65536, (1, 512, 512))
    found = probe_traits(sample_of(flat, noise.astype(np.uint16)), Reference())
    assert math.exp(found["probe_zstd1_shuffle_log_ratio"]) == pytest.approx(2, rel=0.02)


def test_large_frames_take_no_longer_than_small() -> None:
    reference = Reference()
    rng = np.random.default_rng(0)
    small, large = (sample_of(rng.poisson(99, (1, size, size)).astype(np.uint16)) for size in (512, 4096))

    def seconds(sample: Sample) -> float:
        start = time.perf_counter()
        probe_traits(sample, reference)
        return time.perf_counter() - start

    assert min(seconds(large) for _ in range(3)) < 3 * min(seconds(small) for _ in range(3))
