"""How predictable bytes are is what the formulas say, and finite whatever the frames."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tuner.redundancy import REDUNDANCIES, redundancies

DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="="),
    hnp.unsigned_integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
)
FRAMES = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=2, max_dims=4, max_side=9))


def of(frames: NDArray[Any]) -> dict[str, float]:
    return redundancies(frames, np.ones(frames.shape, np.bool_))


@given(FRAMES, st.data())
def test_every_trait_is_finite_and_within_its_bounds(frames: NDArray[Any], data: st.DataObject) -> None:
    found = redundancies(frames, data.draw(hnp.arrays(np.bool_, frames.shape)))
    assert list(found) == list(REDUNDANCIES)
    assert all(math.isfinite(value) for value in found.values())
    for name, value in found.items():
        if name.endswith("_fraction") and name != "noise_fraction":
            assert 0 <= value <= 1
        if name.endswith("entropy"):
            assert 0 <= value <= (1 if name.startswith("bit_") else 16 if name == "value_entropy" else 8)


@given(FRAMES)
def test_byte_order_does_not_matter(frames: NDArray[Any]) -> None:
    assert of(frames.astype(frames.dtype.newbyteorder("S"))) == of(frames)


#: These see the pixel before also where a frame begins.
ACROSS_FRAMES = ("bytedelta", "low_byte_conditional", "bit_change", "group_repeat")


@given(FRAMES)
def test_read_backwards_frames_are_the_same(frames: NDArray[Any]) -> None:
    there, back = of(frames), of(frames[::-1])
    for name in REDUNDANCIES:
        if not name.startswith(ACROSS_FRAMES):
            assert back[name] == pytest.approx(there[name], rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int32", "uint64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(0, 8, 8), (3, 0, 8), (3, 8, 0), (3, 0), (1, 1, 1), (3, 8, 8), (1, 40)])
@pytest.mark.parametrize("content", ["one", "zero", "masked"])
def test_degenerate_frames(dtype: str, shape: tuple[int, ...], content: str) -> None:
    frames = np.full(shape, 0 if content == "zero" else 1, dtype)
    found = redundancies(frames, np.full(shape, content != "masked"))
    assert all(math.isfinite(value) for value in found.values())
    assert all(value == 0 for name, value in found.items() if name.endswith("entropy"))
    assert found["noise_fraction"] == 0
    assert found["constant_bit_fraction"] == (1 if frames.size else 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.finfo(np.float32).max, -1e-45])
def test_extreme_floats(value: float) -> None:
    frames = np.full((2, 16, 16), value, np.float32)
    frames[:, ::2, ::2] = -value
    assert all(math.isfinite(found) for found in of(frames).values())


def test_planes_are_numbered_from_the_most_significant() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 256, 256)).astype(np.uint32) << 16
    found = of(frames)
    assert [round(found[f"byte_{plane}_entropy"]) for plane in range(4)] == [0, 8, 0, 0]
    assert found["constant_bit_fraction"] == 0.75
    assert found["bitshuffle_constant_fraction"] == pytest.approx(0.75 + 0.25 * 2 / 256, abs=0.002)
    assert of(frames.astype(np.uint16))["byte_3_entropy"] == 0


def test_filters_make_ramps_and_repeats_predictable() -> None:
    ramp = np.broadcast_to(np.arange(4096, dtype=np.uint16), (4, 64, 4096))
    found = of(ramp)
    assert found["byte_1_entropy"] == 8
    assert found["bytedelta_1_entropy"] < 0.1
    assert found["low_byte_conditional_entropy"] < 0.1
    assert found["column_difference_entropy"] == found["row_difference_entropy"] == 0
    assert found["frame_difference_entropy"] == 0
    assert found["frame_repeat_fraction"] == 1


def test_noise_is_told_from_signal() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(1000, 30, (2, 256, 256))
    smooth = 5000 + 1000 * np.sin(np.arange(256) / 40)
    assert of(noise.astype(np.float32))["noise_fraction"] == pytest.approx(1, abs=0.02)
    assert of((smooth + noise).astype(np.uint16))["noise_fraction"] == pytest.approx(30**2 / (30**2 + 700**2), rel=0.2)
    assert of((smooth + noise).astype(np.uint16))["noise_bits"] == pytest.approx(math.log2(31), abs=0.1)
    shifted = (noise + smooth).astype(np.uint16) << 4
    assert of(shifted)["noise_bits"] == pytest.approx(math.log2(31), abs=0.1)


def test_what_does_not_count_is_no_noise() -> None:
    frames = np.full((1, 64, 64), 7, np.uint16)
    frames[:, ::3, ::3] = 65535
    found = redundancies(frames, frames != 65535)
    assert found["noise_fraction"] == found["noise_bits"] == 0
    assert found["value_entropy"] > 0.4, "a codec sees it"


@pytest.mark.parametrize("shape", [(2, 4096, 4096), (30_000, 22, 26), (40_000, 1000)])
def test_the_work_does_not_grow_with_the_frames(shape: tuple[int, ...]) -> None:
    """Half a million pixels, and forty times as many, take about as long."""
    rng = np.random.default_rng(0)
    frames = np.tile(rng.poisson(50, 1 << 16).astype(np.uint16), math.prod(shape) // (1 << 16) + 1)
    frames = frames[: math.prod(shape)].reshape(shape)
    valid = np.broadcast_to(np.bool_(True), shape)
    small = rng.poisson(50, (2, 512, 512)).astype(np.uint16)

    def seconds(pixels: NDArray[Any], counted: NDArray[np.bool_]) -> float:
        start = time.perf_counter()
        redundancies(pixels, counted)
        return time.perf_counter() - start

    few = min(seconds(small, np.ones(small.shape, np.bool_)) for _ in range(3))
    assert min(seconds(frames, valid) for _ in range(3)) < 5 * few
