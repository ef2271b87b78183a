"""Traits are what their formulas say, and finite whatever the frames."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tuner.traits import TRAITS, common_step, traits

DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="="),
    hnp.unsigned_integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
)
FRAMES = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=2, max_dims=4, max_side=6))


def everywhere(frames: NDArray[Any]) -> NDArray[np.bool_]:
    return np.ones(frames.shape, np.bool_)


@given(FRAMES, st.data())
def test_every_trait_is_finite_and_shares_are_shares(frames: NDArray[Any], data: st.DataObject) -> None:
    valid = data.draw(hnp.arrays(np.bool_, frames.shape))
    saturated = data.draw(st.none() | hnp.arrays(np.bool_, frames.shape))
    found = traits(frames, valid, None if saturated is None else saturated & ~valid)
    assert list(found) == list(TRAITS)
    assert all(math.isfinite(value) for value in found.values())
    for name in found:
        if name.endswith("_fraction") or name == "missing_codes":
            assert 0 <= found[name] <= 1
        if name.endswith("entropy"):
            assert 0 <= found[name] <= 8


@given(FRAMES)
def test_the_order_of_frames_does_not_matter(frames: NDArray[Any]) -> None:
    there, back = traits(frames, everywhere(frames)), traits(frames[::-1], everywhere(frames))
    for name, value in there.items():
        # A sum of floats depends on its order, in its last bits.
        assert back[name] == pytest.approx(
            value, rel=1e-6, abs=1e-6 * max(abs(there["minimum"]), abs(there["maximum"]), 1)
        )


@given(FRAMES)
def test_byte_order_does_not_matter(frames: NDArray[Any]) -> None:
    swapped = frames.astype(frames.dtype.newbyteorder())
    assert traits(swapped, everywhere(frames)) == pytest.approx(traits(frames, everywhere(frames)), abs=1e-9)


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "uint16", "int32", "uint64", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("content", ["constant", "zero", "masked", "empty"])
def test_degenerate_frames(dtype: str, content: str) -> None:
    frames = np.full((0 if content == "empty" else 3, 8, 8), 0 if content == "zero" else 1, dtype)
    valid = np.full(frames.shape, content != "masked")
    found = traits(frames, valid)
    assert all(math.isfinite(value) for value in found.values())
    assert found["byte_entropy"] == 0
    assert found["difference_byte_entropy"] == 0
    assert found["zero_fraction"] == (1 if content == "zero" else 0)
    assert found["masked_fraction"] == (1 if content == "masked" else 0)
    assert found["step"] == (1 if content == "constant" else 0)


def test_nan_is_not_a_value() -> None:
    frames = np.array([[[np.nan, 1, 2, np.inf]]], np.float32)
    found = traits(frames, everywhere(frames))
    assert (found["minimum"], found["maximum"], found["mean"], found["step"]) == (1, 2, 1.5, 1)


def test_masked_and_saturated_are_told_apart() -> None:
    frames = np.array([[[-1, 5, 1000, 1001]]], np.int32)
    valid = np.array([[[False, True, False, False]]])
    found = traits(frames, valid, saturated=frames >= 1000)
    assert (found["masked_fraction"], found["saturated_fraction"], found["maximum"]) == (0.25, 0.5, 5)


def test_the_step_of_every_uint16_value() -> None:
    values = np.arange(1, 65536, dtype=np.uint16)
    assert common_step(values) == 1
    for value in values[::97]:
        assert common_step(np.array([value, 0, value])) == value
        assert common_step(np.array([value], np.float32)) == value


@given(
    hnp.arrays(np.int64, st.integers(1, 50), elements=st.integers(-(2**20), 2**20)),
    st.integers(-10, 10),
    st.sampled_from(["float32", "float64"]),
)
def test_the_step_divides_all_values_and_no_greater_one_does(
    numbers: NDArray[np.int64], power: int, dtype: str
) -> None:
    values = (numbers * 2.0**power).astype(dtype)
    step = common_step(values)
    assert step == np.gcd.reduce(numbers) * 2.0**power


@given(hnp.arrays(hnp.integer_dtypes(endianness="=") | hnp.unsigned_integer_dtypes(endianness="="), st.integers(1, 40)))
def test_the_step_of_integers_is_their_greatest_common_divisor(values: NDArray[Any]) -> None:
    assert common_step(values) == float(math.gcd(*map(int, values)))


def test_measured_floats_have_no_step() -> None:
    rng = np.random.default_rng(0)
    for dtype in ("float16", "float32", "float64"):
        assert common_step(rng.normal(0, 1, 10_000).astype(dtype)) == 0
    assert common_step(rng.uniform(0.5, 1, 10_000).astype(np.float32).astype(np.float64)) == 2.0**-24, "float32 inside"


@pytest.mark.parametrize(("shift", "used"), [(0, 12), (4, 12)])
def test_bits_used_do_not_count_those_below_the_step(shift: int, used: int) -> None:
    frames = (np.arange(4096, dtype=np.uint16) << shift).reshape(1, 64, 64)
    assert traits(frames, everywhere(frames))["effective_bits"] == used


def test_missing_codes_are_found_where_data_were_rescaled() -> None:
    counts = np.random.default_rng(0).poisson(1000, (4, 256, 256))
    raw = counts.astype(np.uint16)
    rescaled = np.floor(counts * 1.25).astype(np.uint16)
    rounded = np.where(counts > 1000, counts & ~3, counts).astype(np.uint16)
    assert traits(raw, everywhere(raw))["missing_codes"] == 0
    assert traits(rescaled, everywhere(rescaled))["missing_codes"] == pytest.approx(0.2, abs=0.02)
    assert traits(rounded, everywhere(rounded))["missing_codes"] == pytest.approx(0.75 / 2, abs=0.1)


@pytest.mark.parametrize("tail", [60_000, 2**31 - 1])
def test_a_sparse_bright_tail_is_not_missing_codes(tail: int) -> None:
    frames = np.random.default_rng(0).poisson(5, (4, 256, 256)).astype(np.int32)
    frames[:, :20, 0] = np.linspace(100, tail, 20).astype(np.int32)
    assert traits(frames, everywhere(frames))["missing_codes"] == 0


def test_entropies_of_known_distributions() -> None:
    frames = np.arange(65536, dtype=np.uint16).reshape(1, 256, 256)
    found = traits(frames, everywhere(frames))
    assert found["byte_entropy"] == 8
    assert found["difference_byte_entropy"] == 0
    noise = np.random.default_rng(0).integers(0, 256, (1, 512, 512)).astype(np.uint16)
    assert traits(noise, everywhere(noise))["byte_entropy"] == pytest.approx(4, abs=0.01)
