"""Every rounding, held to one law over every value of every narrow dtype and over all kinds of floats."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tuner.errors import InputError
from tuner.noise import Noise
from tuner.stack import Marks
from tuner.steps import STEPS, Pixels, Step, check_steps, defaults, prepare, step_from_dict, step_to_dict
from tuner.steps.framewise import ClipBackground, Levels, Tqc, distinct
from tuner.steps.jungfrau import Stages
from tuner.steps.noise_aware import Octave, Sigma
from tuner.steps.scale import LeadingBits, Log, Photonise, Power
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


@given(data=st.data(), dtype=st.sampled_from([*NARROW, *WIDE]))
@settings(max_examples=200)
def test_uniform_is_exact_division_with_ties_to_even(data: st.DataObject, dtype: str) -> None:
    ends = np.iinfo(dtype)
    width = data.draw(st.integers(1, min(int(ends.max), 1 << 53)) | st.sampled_from([2, 4, 16, 64]))
    values = data.draw(st.lists(st.integers(int(ends.min), int(ends.max)), min_size=1, max_size=9))
    multiples = [width * round(Fraction(value, width)) for value in values]
    expected = [m if ends.min <= m <= ends.max else v for m, v in zip(multiples, values, strict=True)]
    assert Uniform(width).round_values(np.array(values, dtype), None).tolist() == expected


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
    for width, marks in ((0.3, MARKS[3]), (1.0, MARKS[0]), (1.0, MARKS[3]), (1.9, MARKS[0])):
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


#: Each with what is gentle and what is harsh, of integers of 16 bits and of wider ones.
SCALES: list[Step] = [
    Photonise(0.0, 1.0),
    Photonise(100.0, 0.3),
    LeadingBits(1),
    LeadingBits(7),
    Log(0.01, 1.0),
    Log(0.3, 20.0),
    Log(2.0, 0.1),
    Power(0.5, 0.1),
    Power(0.5, 3.0),
    Tqc(2, 6),
    Tqc(7, 3),
    ClipBackground(3.0, 4.0),
    ClipBackground(0.5, 60.0),
]


@pytest.mark.parametrize("marks", MARKS, ids=str)
@pytest.mark.parametrize("dtype", [*NARROW, *WIDE])
@pytest.mark.parametrize("step", SCALES, ids=repr)
def test_other_scales_on_every_integer(step: Step, dtype: str, marks: Marks) -> None:
    holds(step, everything(dtype), marks, Noise(5.0, 8.4, 20.0, "given", 1 / 12))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("step", [step for step in SCALES if not isinstance(step, LeadingBits)], ids=repr)
@given(data=st.data())
@settings(max_examples=10)
def test_other_scales_on_all_floats(step: Step, dtype: str, data: st.DataObject) -> None:
    kind = np.dtype(dtype)
    values = data.draw(arrays.arrays(kind, st.integers(1, 40), elements=arrays.from_dtype(kind)))
    holds(step, values, Marks(), Noise(5.0, 8.4, 20.0, "given"))
    holds(step, values, Marks(saturation=60000.0, underload=-1.0), Noise(5.0, 8.4, 20.0, "given"))


@pytest.mark.parametrize("step", [step for step in SCALES if not isinstance(step, LeadingBits)], ids=repr)
def test_the_span_of_the_largest_floats_is_no_obstacle(step: Step) -> None:
    values = np.array([5.6e304, -1.79713524e308, 1.7e308, 0.0])
    holds(step, values, Marks(), Noise(5.0, 8.4, 20.0, "given"))


@given(
    widths=st.tuples(*[st.sampled_from([1, 2, 3, 8, 100, 16383])] * 3),
    marks=st.sampled_from([Marks(), Marks(saturation=65535), Marks(invalid=(0, 65535))]),
)
@settings(max_examples=10)
def test_gain_bits_of_raw_frames_stay(widths: tuple[int, int, int], marks: Marks) -> None:
    raw = everything("uint16")
    rounded = holds(Stages(*widths), raw, marks)
    assert np.array_equal(rounded >> 14, raw >> 14)
    assert np.array_equal(rounded[raw >> 14 == 2], raw[raw >> 14 == 2])
    assert np.array_equal(rounded == 65535, raw == 65535)
    for code, width in zip((0, 1, 3), widths, strict=True):
        moved = (raw >> 14 == code) & (rounded != raw)
        assert not ((rounded[moved] & 16383) % width).any()


def test_leading_bits_are_few_and_ties_go_both_ways() -> None:
    values = np.arange(1 << 15, dtype="uint16")
    rounded = prepare([LeadingBits(3)], values[None, None], Pixels())[0, 0].astype(int)
    assert len(np.unique(rounded)) == 8 + 4 * 12 + 1
    assert not rounded[values >= 8].astype("uint16").view("uint16")[0] & 1
    middle = slice(1 << 10, 1 << 14)
    assert abs((rounded - values)[middle].mean()) < 0.1


def test_photons_are_whole_where_read_noise_is_small() -> None:
    random = np.random.default_rng(0)
    photons = random.poisson(2.0, (3, 50, 60))
    frames = np.rint(100 + 40 * photons + random.normal(0, 4, photons.shape)).astype("uint16")
    rounded = prepare([Photonise()], frames, Pixels(noise=Noise(40.0, 100.0, 4.0, "given")))
    assert (rounded == 100 + 40 * photons).mean() > 0.9999


def test_thresholds_are_of_each_frame_and_of_pixels_that_count() -> None:
    random = np.random.default_rng(0)
    frames = random.poisson(50, (4, 40, 40)).astype("int32")
    frames[:, :8] += np.array([200, 400, 4000, 8000])[:, None, None]
    mask = np.zeros((40, 40), bool)
    mask[20] = True
    marks = Marks(invalid=(-1,))
    broken = frames.copy()
    broken[:, 20], broken[:, 30, :9] = 1 << 30, -1
    calm = frames.copy()
    calm[:, 20], calm[:, 30, :9] = 0, -1
    counts = ~mask
    counts[30, :9] = False
    for step in (Tqc(2, 5), ClipBackground(5.0, 64.0)):
        rounded = prepare([step], broken, Pixels(marks, mask))
        assert np.array_equal(rounded[:, counts], prepare([step], calm, Pixels(marks, mask))[:, counts])
        assert np.array_equal(rounded[:, ~counts], broken[:, ~counts])
        alone = np.concatenate([prepare([step], frame[None], Pixels(marks, mask)) for frame in broken])
        assert np.array_equal(rounded, alone)
        assert len(np.unique(rounded[0, 8:][counts[8:]])) <= 5
    kept = prepare([ClipBackground(5.0, 64.0)], frames, Pixels())
    assert np.array_equal(kept[:, :8], frames[:, :8])


@given(
    values=st.sampled_from([*NARROW, *WIDE, *FLOATS]).flatmap(
        lambda dtype: arrays.arrays(
            dtype,
            st.integers(1, 60),
            elements=st.integers(0, 99) | arrays.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False),
        )
    )
)
def test_a_histogram_of_distinct_values_is_that_of_all(values: np.ndarray) -> None:  # type: ignore[type-arg]
    whole, once = Levels.of(values), Levels.of(*distinct(values))
    assert whole.places.tolist() == once.places.tolist()
    assert whole.counts.tolist() == once.counts.tolist()
    assert (whole.start, whole.step, whole.top) == (once.start, once.step, once.top)
    if values.dtype.kind != "f" and values.dtype.itemsize <= 2:
        median = whole.median()
        assert 2 * (values <= median).sum() >= len(values) > 2 * (values < median).sum()
        nearest = np.sort(np.abs(values - median))
        assert whole.deviation(median) == pytest.approx(1.4826 * nearest[(len(values) - 1) // 2])


def test_a_frame_without_a_valid_pixel_or_of_one_value_stays() -> None:
    for frame in (np.full((1, 4, 4), np.nan), np.full((1, 4, 4), 7.0)):
        for step in (Tqc(1, 1), ClipBackground(3.0, 1.0)):
            assert np.array_equal(prepare([step], frame, Pixels()), frame, equal_nan=True)


@pytest.mark.parametrize("step", [Uniform(3), Window(3, 0, 70), Tqc(2, 3), ClipBackground(1.0, 8.0), Power(0.5, 0.7)])
def test_neither_frames_given_at_once_nor_their_layout_matter(step: Step) -> None:
    frames = np.random.default_rng(0).integers(0, 90, (7, 33, 41)).astype("int32")
    mask = np.random.default_rng(1).random((33, 41)) < 0.1
    pixels = Pixels(Marks(invalid=(-1,)), mask)
    whole = prepare([step], frames, pixels)
    assert np.array_equal(whole, np.concatenate([prepare([step], frame[None], pixels) for frame in frames]))
    assert np.array_equal(whole, prepare([step], np.asfortranarray(frames), pixels))
    assert np.array_equal(whole[:, mask], frames[:, mask])


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "float32"])
@pytest.mark.parametrize("step", [Sigma(1.0), Octave(1.0), *SCALES[:1], Log(0.01, 1.0), Power(0.5, 0.1), Uniform(100)])
def test_tables_hold_what_single_values_become(step: Step, dtype: str) -> None:
    """Most values of a large frame are looked up, those of a small one are not."""
    random = np.random.default_rng(0)
    for light in (50, 30_000, 3_000_000):
        frame = np.rint(random.gamma(2.0, light, (1, 90, 100))).astype(dtype)
        frame[0, :3, :7] = np.array(-1).astype(dtype)
        pixels = Pixels(Marks(invalid=(-1,)), None, Noise(2.0, 10.0, 4.0, "given", 1 / 12))
        whole = prepare([step], frame, pixels)
        rows = [prepare([step], frame[:, row : row + 1], pixels) for row in range(90)]
        assert np.array_equal(whole, np.concatenate(rows, axis=1))


def test_thresholds_of_large_frames_are_found_again() -> None:
    """Their distribution is taken of some of their pixels."""
    random = np.random.default_rng(0)
    frames = random.poisson(50, (1, 700, 700)).astype("int32")
    frames[:, 100:200, 300:500] += 4000
    frames[:, 5, 5], frames[:, 9] = 100_000, -1
    mask = random.random((700, 700)) < 0.01
    for step in (Tqc(2, 5), ClipBackground(5.0, 64.0)):
        for dtype in ("uint16", "int32", "float32"):
            pixels = Pixels(Marks(invalid=(-1, 65535)), mask)
            before = frames.astype(dtype)
            once = prepare([step], before, pixels)
            assert np.array_equal(prepare([step], once, pixels), once)
            assert np.array_equal(once[:, mask], before[:, mask])
            # Neither bright nor dim pixels crossed the threshold.
            assert np.array_equal(once > 1000, before > 1000)


def test_without_steps_nothing_is_copied() -> None:
    frames = np.zeros((1, 2, 2))
    assert prepare([], frames, Pixels(mask=np.ones((2, 2), bool))) is frames


@pytest.mark.parametrize(
    "step", [Uniform(0.5), Window(8, -1.0, 4.0), Mantissa(7), Sigma(1.0), Octave(0.5, 0.0), *SCALES, Stages(8)]
)
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
        ({"step": "photonise", "gain": -1}, "steps[0].gain must be a number at least 0, got -1"),
        ({"step": "photonise", "fraction": 2}, "steps[0].fraction must be a number above 0 and at most 1, got 2"),
        ({"step": "leading_bits", "keep": 0}, "steps[0].keep must be in 1..32, got 0"),
        ({"step": "log", "width": 3, "linear": 1}, "steps[0].width must be a number above 0 and at most 2, got 3"),
        ({"step": "power", "exponent": 0, "width": 1}, "steps[0].exponent must be a number at least 0.1"),
        ({"step": "power", "exponent": float("nan"), "width": 1}, "steps[0].exponent must be a finite number, got nan"),
        ({"step": "tqc", "background": 1}, "steps[0].signal must be given"),
        ({"step": "tqc", "background": 1, "signal": 17}, "steps[0].signal must be in 1..16, got 17"),
        ({"step": "clip_background", "sigmas": 0, "width": 1}, "steps[0].sigmas must be a number above 0, got 0"),
        ({"step": "stages", "high": -2}, "steps[0].high must be in 1..16383, got -2"),
        ({"step": "window", "bits": 0, "low": 0, "high": 1}, "steps[0].bits must be in 1..32, got 0"),
        (
            {"step": "window", "bits": 8, "low": float("nan"), "high": 1},
            "steps[0].low must be a finite number, got nan",
        ),
        ({"step": "window", "bits": 8, "low": 9, "high": 1}, "steps[0].low must be below high, got 9 and 1"),
        ({"step": "window", "bits": 8, "low": 5, "high": 5}, "steps[0].low must be below high, got 5 and 5"),
        ({"step": "uniform", "width": -4}, "steps[0].width must be a number above 0, got -4"),
        ({"step": "uniform", "width": float("inf")}, "steps[0].width must be a finite number, got inf"),
        ({"step": "uniform", "width": "4"}, "steps[0].width must be a finite number, got '4'"),
        ({"step": "uniform", "width": True}, "steps[0].width must be a finite number, got True"),
        ({"step": "mantissa", "keep": -1}, "steps[0].keep must be in 0..51, got -1"),
        ({"step": "mantissa", "keep": 7.5}, "steps[0].keep must be in 0..51, got 7.5"),
        ({"step": "sigma", "width": -1}, "steps[0].width must be a number above 0, got -1"),
        ({"step": "sigma", "width": float("nan")}, "steps[0].width must be a finite number, got nan"),
        ({"step": "sigma", "width": 1, "grid": -1}, "steps[0].grid must be a number at least 0, got -1"),
        ({"step": "octave", "width": 0}, "steps[0].width must be a number above 0, got 0"),
        ({"step": "octave", "width": 1, "grid": float("nan")}, "steps[0].grid must be a finite number, got nan"),
        ({"step": "photonise", "gain": float("nan")}, "steps[0].gain must be a finite number, got nan"),
        ({"step": "photonise", "fraction": 0}, "steps[0].fraction must be a number above 0 and at most 1, got 0"),
        ({"step": "leading_bits", "keep": 33}, "steps[0].keep must be in 1..32, got 33"),
        ({"step": "log", "width": 1, "linear": 0}, "steps[0].linear must be a number above 0, got 0"),
        ({"step": "log", "width": 1, "linear": float("nan")}, "steps[0].linear must be a finite number, got nan"),
        ({"step": "power", "exponent": 0.5, "width": -1}, "steps[0].width must be a number above 0, got -1"),
        ({"step": "tqc", "background": 0, "signal": 1}, "steps[0].background must be in 1..16, got 0"),
        ({"step": "clip_background", "sigmas": float("nan"), "width": 1}, "steps[0].sigmas must be a finite number"),
        ({"step": "clip_background", "sigmas": 3, "width": -1}, "steps[0].width must be a number above 0, got -1"),
        ({"step": "stages", "high": 8, "low": 16384}, "steps[0].low must be in 1..16383, got 16384"),
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
        (Photonise(), "uint16", "steps[0].step photonise must have a noise model, for the value without light"),
        (LeadingBits(3), "float32", "steps[0].step leading_bits must be used on integers, got float32"),
        (LeadingBits(16), "uint16", "steps[0].keep must be below uint16's 16 bits, got 16"),
        (Log(0.1, 300.0), "uint8", "steps[0].linear must be at most uint8's 255, got 300"),
        (Power(0.5, 300.0), "uint8", "steps[0].width must be at most uint8's 255, got 300"),
        (Tqc(9, 3), "uint8", "steps[0].background must be at most the bits of uint8, got 9"),
        (ClipBackground(3.0, 0.5), "uint8", "steps[0].width must be a whole number in 1..255 for uint8, got 0.5"),
        (Stages(8), "int32", "steps[0].step stages must be used on uint16, 2 bits of gain and 14 of value, got int32"),
        (Mantissa(3), "int32", "steps[0].step mantissa must be used on floats, got int32"),
        (Mantissa(10), "float16", "steps[0].keep must be below float16's 10 bits, got 10"),
        (Window(8, 0, 70000), "float16", "steps[0].low and high must be values of float16, got 0 and 70000"),
        (Window(9, -1, 9), "int8", "steps[0].bits must be at most those of int8, got 9"),
        (Tqc(3, 9), "int8", "steps[0].signal must be at most the bits of int8, got 9"),
        (LeadingBits(8), "int8", "steps[0].keep must be below int8's 8 bits, got 8"),
        (Uniform(128), "int8", "steps[0].width must be a whole number in 1..127 for int8, got 128"),
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


@pytest.mark.parametrize(
    ("step", "dtype", "noise", "line"),
    [
        (Photonise(), "uint16", Noise(0.0, 0.0, 3.0, "given"), "gain must be above 0, here or in the noise, got 0"),
        (Photonise(), "uint16", NOISES[1], "gain times fraction must be in 1..65535 for uint16, got 0.17"),
        (Photonise(300.0), "uint8", NOISES[1], "gain times fraction must be in 1..255 for uint8, got 300"),
        (Sigma(1.0, 0.5), "uint16", NOISES[1], "grid must be a whole number for uint16, got 0.5"),
        (Octave(1.0, 0.5), "int32", NOISES[1], "grid must be a whole number for int32, got 0.5"),
    ],
)
def test_what_a_noise_does_not_allow_gives_one_line(step: Step, dtype: str, noise: Noise, line: str) -> None:
    with pytest.raises(InputError) as caught:
        check_steps([step], np.dtype(dtype), noise)
    assert str(caught.value) == f"steps[0].{line}"


@pytest.mark.parametrize("dtype", FLOATS)
def test_marks_that_a_float_cannot_hold_are_none_of_its_pixels(dtype: str) -> None:
    values = np.array([1, np.inf, -np.inf, np.nan, 60000], dtype)
    counts = Marks((65535, -(10**6), 10**300), saturation=1e9, underload=-1e9).valid(values)
    assert counts.tolist() == [True, False, False, False, True]


def test_every_step_is_held_to_the_law_and_known_to_the_schema_of_profiles() -> None:
    """A step that is added is added above too."""
    assert set(STEPS) == {
        "uniform",
        "window",
        "mantissa",
        "sigma",
        "octave",
        "photonise",
        "leading_bits",
        "log",
        "power",
        "tqc",
        "clip_background",
        "stages",
        "regions",
        "roi",
        "jpeg2000",
        "zfp",
        "sz3",
        "hcompress",
        "butterworth",
        "nl_means",
        "bm3d",
    }
    schema = json.loads((Path(__file__).parents[1] / "docs" / "profile.schema.json").read_text())
    described = schema["$defs"]["config"]["properties"]["steps"]["items"]["oneOf"]
    found = {one["properties"]["step"]["const"]: (set(one["properties"]), set(one["required"])) for one in described}
    assert found == {
        name: ({"step", *step.valid}, {"step", *step.valid} - set(defaults(step))) for name, step in STEPS.items()
    }
