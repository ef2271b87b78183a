"""Every rounding, held to one law over every value of every narrow dtype and over all kinds of floats."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tuner.errors import InputError
from tuner.noise import Noise
from tuner.stack import Marks
from tuner.steps import STEPS, Pixels, Step, check_steps, defaults, prepare, step_from_dict, step_to_dict
from tuner.steps.noise_aware import Octave, Sigma
from tuner.steps.uniform import Mantissa, Uniform, Window

NARROW = ("uint8", "int8", "uint16", "int16")
WIDE = ("uint32", "int32", "uint64", "int64")
FLOATS = ("float16", "float32", "float64")
#: Conventions of the detectors: nothing marked, the maximum, what is above a limit, and negative marks.
MARKS = (Marks(), Marks(invalid=(65535, 255, 127)), Marks(saturation=100), Marks(invalid=(-1, -2), underload=0))


def everything(dtype: str) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    """Every value of a narrow integer, or many of a wider one: all small ones, its ends, and some of each size."""
    kind = np.dtype(dtype)
    if kind.itemsize <= 2:
        return np.arange(1 << 8 * kind.itemsize, dtype=f"u{kind.itemsize}").view(kind)
    limits = np.iinfo(kind)
    random = np.random.default_rng(0).integers(limits.min, limits.max, 20000, dtype, endpoint=True)
    shifted = random >> np.random.default_rng(1).integers(0, 8 * kind.itemsize, 20000).astype(dtype)
    ends = np.array([limits.min, limits.min + 1, limits.max - 1, limits.max], dtype)
    return np.concatenate((np.arange(-5000 if limits.min else 0, 5000).astype(dtype), random, shifted, ends))


def holds(step: Step, values: np.ndarray, marks: Marks, noise: Noise | None = None) -> np.ndarray:  # type: ignore[type-arg]
    """The law of roundings: dtype and shape, marks, bound, twice is once; the rounded values."""
    frames = values.reshape(1, 1, -1)
    pixels = Pixels(marks, None, noise)
    check_steps([step], values.dtype, noise)
    rounded = prepare([step], frames, pixels)
    assert rounded.dtype == frames.dtype
    assert rounded.shape == frames.shape
    counts = marks.valid(frames)
    assert rounded[~counts].tobytes() == frames[~counts].tobytes()
    assert np.array_equal(marks.valid(rounded), counts)
    assert prepare([step], rounded, pixels).tobytes() == rounded.tobytes()
    before, after = (array[counts].astype(np.longdouble) for array in (frames, rounded))
    assert (np.abs(after - before) <= step.bound(frames[counts], noise)).all()
    return rounded.reshape(-1)


@pytest.mark.parametrize("marks", MARKS, ids=str)
@pytest.mark.parametrize("dtype", [*NARROW, *WIDE])
@pytest.mark.parametrize("width", [1, 2, 3, 64, 100])
def test_uniform_on_every_integer(dtype: str, width: int, marks: Marks) -> None:
    rounded = holds(Uniform(width), everything(dtype), marks)
    if marks == Marks():  # multiples, but for what has none within the dtype
        ends = np.iinfo(dtype)
        inner = rounded[(rounded > ends.min + width) & (rounded < ends.max - width)]
        assert not (inner % inner.dtype.type(width)).any()


@pytest.mark.parametrize("width", [3, 1000, 12345, 32768, 65535])
def test_wide_uniform_on_every_uint16(width: int) -> None:
    holds(Uniform(width), everything("uint16"), Marks(invalid=(65535,)))


def test_ties_go_both_ways() -> None:
    assert Uniform(2).round_values(np.arange(9, dtype="uint16"), None).tolist() == [0, 0, 2, 4, 4, 4, 6, 8, 8]
    values = np.arange(60000, dtype="uint16")
    for width in (2, 4, 10, 64):
        moved = prepare([Uniform(width)], values[None, None], Pixels())[0, 0].astype(int) - values
        assert abs(moved[: 60000 // (2 * width) * 2 * width].mean()) < 1e-3


@given(
    values=st.sampled_from(FLOATS).flatmap(
        lambda dtype: arrays.arrays(dtype, st.integers(1, 40), elements=arrays.from_dtype(np.dtype(dtype)))
    ),
    width=st.floats(1e-6, 1e6),
)
def test_uniform_on_all_floats(values: np.ndarray, width: float) -> None:  # type: ignore[type-arg]
    holds(Uniform(width), values, Marks())
    holds(Uniform(width), values, Marks(saturation=60000.0, underload=-1.0))


@given(
    values=st.sampled_from(FLOATS).flatmap(
        lambda dtype: arrays.arrays(dtype, st.integers(1, 40), elements=arrays.from_dtype(np.dtype(dtype)))
    ),
    keep=st.integers(0, 9),
)
def test_mantissa_on_all_floats(values: np.ndarray, keep: int) -> None:  # type: ignore[type-arg]
    rounded = holds(Mantissa(keep), values, Marks())
    bits = rounded[np.isfinite(rounded)].view(f"u{values.dtype.itemsize}")
    drop = {2: 10, 4: 23, 8: 52}[values.dtype.itemsize] - keep
    finite = np.isfinite(values)
    changed = rounded[finite] != values[finite]
    assert not (bits[changed] & bits.dtype.type((1 << drop) - 1)).any()


@pytest.mark.parametrize("dtype", [*NARROW[2:], *WIDE])
@pytest.mark.parametrize(
    ("bits", "low", "high"), [(8, 0, 4095), (4, 100, 1000), (1, 0, 1), (8, 0, 255), (10, 7, 32000)]
)
def test_window_on_every_integer(dtype: str, bits: int, low: int, high: int) -> None:
    rounded = holds(Window(bits, low, high), everything(dtype), Marks())
    assert len(np.unique(rounded)) <= 2**bits
    assert rounded.min() >= low
    assert rounded.max() <= high


@pytest.mark.parametrize("dtype", FLOATS)
def test_window_on_floats(dtype: str) -> None:
    values = np.concatenate((np.linspace(-300, 300, 10007), [np.nan, np.inf, -np.inf, -0.0, 6e4])).astype(dtype)
    rounded = holds(Window(6, -100.0, 200.0), values, Marks())
    assert len(np.unique(rounded[np.isfinite(rounded)])) <= 64


#: A photon counter, two integrating detectors, and read noise alone.
NOISES = [
    Noise(1.0, 0.0, 0.0, "given", 1.0),
    Noise(0.17, 0.0, 2.1, "given", 1 / 12),
    Noise(5.0, 98.0, 20.0, "given", 1 / 12),
    Noise(0.0, 0.0, 3.0, "given", 1 / 12),
]


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("dtype", [*NARROW, *WIDE])
@pytest.mark.parametrize("kind", [Sigma, Octave])
def test_sigma_on_every_integer(kind: type[Sigma], dtype: str, noise: Noise) -> None:
    for width, marks in itertools.product((0.3, 1.0, 1.9), (MARKS[0], MARKS[3])):
        holds(kind(width), everything(dtype), marks, noise)


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("grid", [0.0, 1.0, 0.25])
@pytest.mark.parametrize("kind", [Sigma, Octave])
def test_sigma_on_floats(kind: type[Sigma], noise: Noise, grid: float) -> None:
    random = np.random.default_rng(0)
    spread = random.normal(0, 1, 4000) * 10 ** random.uniform(-3, 7, 4000)
    values = np.concatenate((spread, np.rint(spread), np.arange(0, 5000, 0.25), [np.nan, np.inf, -np.inf, -0.0]))
    for dtype, width in itertools.product(("float32", "float64"), (0.3, 1.0, 1.9)):
        holds(kind(width, grid), values.astype(dtype), Marks(), noise)


@pytest.mark.parametrize("step", [Uniform(3), Window(3, 0, 70)])
def test_neither_frames_given_at_once_nor_their_layout_matter(step: Step) -> None:
    frames = np.random.default_rng(0).integers(0, 90, (7, 33, 41)).astype("int32")
    mask = np.random.default_rng(1).random((33, 41)) < 0.1
    pixels = Pixels(Marks(invalid=(-1,)), mask)
    whole = prepare([step], frames, pixels)
    assert np.array_equal(whole, np.concatenate([prepare([step], frame[None], pixels) for frame in frames]))
    assert np.array_equal(whole, prepare([step], np.asfortranarray(frames), pixels))
    assert np.array_equal(whole[:, mask], frames[:, mask])


def test_without_steps_nothing_is_copied() -> None:
    frames = np.zeros((1, 2, 2))
    assert prepare([], frames, Pixels(mask=np.ones((2, 2), bool))) is frames


@pytest.mark.parametrize("step", [Uniform(0.5), Window(8, -1.0, 4.0), Mantissa(7), Sigma(1.0), Octave(0.5, 0.0)])
def test_documents_come_back(step: Step) -> None:
    assert step_from_dict(step_to_dict(step), "steps[0]") == step
    assert eval(repr(step)) == step
    assert set(step_to_dict(step)) == {"step", *type(step).valid}


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({}, "steps[0].step must be given: one of"),
        ([], "steps[0] must be a mapping, got []"),
        ({"step": "unifrom", "width": 1}, "steps[0].step must be one of"),
        ({"step": "uniform"}, "steps[0].width must be given"),
        ({"step": "uniform", "width": 0}, "steps[0].width must be a number above 0, got 0"),
        ({"step": "uniform", "width": float("nan")}, "steps[0].width must be a finite number, got nan"),
        ({"step": "uniform", "width": 2, "with": 3}, "steps[0].with is not a known key (did you mean 'width'?)"),
        ({"step": "mantissa", "keep": 52}, "steps[0].keep must be in 0..51, got 52"),
        ({"step": "window", "bits": 0, "low": 0, "high": 1}, "steps[0].bits must be in 1..32, got 0"),
    ],
)
def test_bad_documents_give_one_line(document: object, line: str) -> None:
    with pytest.raises(InputError) as caught:
        step_from_dict(document, "steps[0]")
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("step", "dtype", "line"),
    [
        (Uniform(0.5), "uint16", "steps[0].width must be a whole number in 1..65535 for uint16, got 0.5"),
        (Uniform(300), "uint8", "steps[0].width must be a whole number in 1..255 for uint8, got 300"),
        (Sigma(1.0), "uint16", "steps[0].step sigma must have a noise model"),
        (Octave(1.0, 0.5), "uint16", "steps[0].step octave must have a noise model"),
        (Mantissa(3), "int32", "steps[0].step mantissa must be used on floats, got int32"),
        (Mantissa(10), "float16", "steps[0].keep must be below float16's 10 bits, got 10"),
        (Window(8, 5, 5), "uint16", "steps[0].low must be below high, got 5 and 5"),
        (Window(8, 0, 70000), "uint16", "steps[0].low and high must be values of uint16, got 0 and 70000"),
        (Window(20, 0, 100), "uint16", "steps[0].bits must be at most those of uint16, got 20"),
        (Window(8, 0, 100), "uint16", "steps[0].bits must leave levels at least 1 apart, got 8 over 0..100"),
        (Window(2, 0.5, 100), "uint16", "steps[0].low and high must be whole numbers for uint16, got 0.5 and 100"),
    ],
)
def test_what_a_dtype_cannot_take_gives_one_line(step: Step, dtype: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        check_steps([step], np.dtype(dtype), None)
    assert str(caught.value) == line


def test_every_step_is_held_to_the_law_and_known_to_the_schema_of_profiles() -> None:
    """A step that is added is added above too."""
    assert set(STEPS) == {"uniform", "window", "mantissa", "sigma", "octave"}
    schema = json.loads((Path(__file__).parents[1] / "docs" / "profile.schema.json").read_text())
    described = schema["$defs"]["config"]["properties"]["steps"]["items"]["oneOf"]
    found = {one["properties"]["step"]["const"]: (set(one["properties"]), set(one["required"])) for one in described}
    assert found == {
        name: ({"step", *step.valid}, {"step", *step.valid} - set(defaults(step))) for name, step in STEPS.items()
    }
