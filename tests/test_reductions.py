"""Reductions: sums that keep counts and never wrap, and stacks whose frames, mask, marks and noise go together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.noise import Noise
from tuner.stack import Marks, Stack, convention
from tuner.steps import Pixels, prepare
from tuner.steps.reduced import Chain, form_of, parse_reductions, reduced, reductions_from, reductions_to
from tuner.steps.reductions import Bin, Crop, Form, Reduction, Scale, Sum
from tuner.steps.scale import Photonise

INTEGERS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
DTYPES = [*INTEGERS, "float16", "float32", "float64"]


class Frames:
    """Frames in memory as a source."""

    def __init__(self, frames: NDArray[Any], stored: NDArray[np.int64] | None = None) -> None:
        self.frames = frames
        self.stored = stored
        self.most = 0

    def read(self, start: int, stop: int) -> NDArray[Any]:
        self.most = max(self.most, stop - start)
        return self.frames[start:stop].copy()

    def stored_bytes(self) -> NDArray[np.int64] | None:
        return self.stored

    def close(self) -> None:
        pass


def stack_of(frames: NDArray[Any], **more: Any) -> Stack:
    return Stack("memory", frames.shape, frames.ndim - 1, frames.dtype, Frames(frames), **more)


@st.composite
def forms(draw: st.DrawFn) -> tuple[NDArray[Any], Form]:
    """Frames of any numbers, near the ends of their dtype too, with a mask, marks and limits."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = (draw(st.integers(2, 9)), *draw(st.lists(st.integers(2, 7), min_size=1, max_size=2)))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    if dtype.kind == "f":
        frames = rng.normal(0, 100, shape).astype(dtype)
        frames[rng.random(shape) < 0.05] = draw(st.sampled_from([np.nan, np.inf]))
        ends = (-100.0, 150.0)
    else:
        limits = np.iinfo(dtype)
        small = rng.integers(0 if dtype.kind == "u" else -20, 50, shape)
        frames = small.astype(dtype)
        for special in (limits.min, limits.max, limits.max - 1, limits.max // 2):
            frames[rng.random(shape) < draw(st.sampled_from([0, 0.03]))] = special
        ends = (float(-3 * (dtype.kind == "i")), 40.5)
    mask = rng.random(shape[1:]) < 0.1 if draw(st.booleans()) else None
    saturation = draw(st.sampled_from([None, ends[1]]))
    underload = draw(st.sampled_from([None, ends[0]]))
    return frames, Form(shape[1:], dtype, Marks(convention(dtype), saturation, underload), mask)


def blocks(frames: NDArray[Any], n: int, frame_by_frame: bool) -> Any:
    """For each reduced pixel the pixels that make it, by plain loops."""
    if not frame_by_frame:
        for at in np.ndindex(len(frames) // n, *frames.shape[1:]):
            yield at, frames[(slice(at[0] * n, at[0] * n + n), *at[1:])].ravel()
        return
    for at in np.ndindex(len(frames), *(size // n for size in frames.shape[1:])):
        yield at, frames[(at[0], *(slice(i * n, i * n + n) for i in at[1:]))].ravel()


@given(case=forms(), n=st.integers(2, 3), kind=st.sampled_from([Sum, Bin]))
@settings(max_examples=300, deadline=None)
def test_a_sum_is_that_of_its_parts_or_says_why_not(
    case: tuple[NDArray[Any], Form], n: int, kind: type[Sum] | type[Bin]
) -> None:
    frames, before = case
    if kind is Sum:
        frames = frames[: len(frames) // n * n]
    if (kind is Sum and not len(frames)) or (kind is Bin and min(before.frame_shape) < n):
        return
    chain = Chain([kind(n)], before)
    after = chain.after
    summed = chain.frames(frames)
    assert summed.dtype == after.dtype
    assert summed.shape[1:] == after.frame_shape
    valid, saturated = after.marks.valid(summed, after.mask), after.marks.saturated(summed, after.mask)
    mask = np.zeros(before.frame_shape, bool) if before.mask is None else before.mask
    hidden = np.broadcast_to(mask, frames.shape)
    parts_valid, parts_beyond = (f(frames, before.mask) for f in (before.marks.valid, before.marks.saturated))
    integer = after.dtype.kind != "f"
    for (at, values), (_, ok), (_, over), (_, masked) in zip(
        blocks(frames, n, kind is Bin),
        blocks(parts_valid, n, kind is Bin),
        blocks(parts_beyond, n, kind is Bin),
        blocks(hidden, n, kind is Bin),
        strict=True,
    ):
        total = sum(int(v) if integer else float(v) for v in values)
        if (~(ok | over)).any():
            # Of int16 and int64 without a least value, no value marks a pixel: there, nothing but the mask does.
            assert not valid[at]
            assert not saturated[at]
        elif over.any():
            assert saturated[at]
        elif not integer:
            assert summed[at] == pytest.approx(total, rel=1e-3 if before.dtype.itemsize == 2 else 1e-5, abs=1e-3)
        elif saturated[at]:
            assert after.marks.saturation is not None
            assert total >= after.marks.saturation or abs(total) >= (1 << 62) - (1 << 12)  # doubles tell no finer
        elif after.dtype == np.int32 and total in (-1, -2):
            assert summed[at] in (0, -3)
        elif total < max(least := int(np.iinfo(after.dtype).min), -(1 << 62)):
            assert summed[at] == max(least, -(1 << 62))
        else:
            assert valid[at]
            assert summed[at] == total
        if masked.any():
            assert not valid[at]
