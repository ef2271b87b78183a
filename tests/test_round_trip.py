"""Filters: what each promises, and no more; and round trips through lossy codecs, with the real libraries."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import read_elsewhere
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from tuner import open_writer
from tuner.config import Blosc2, Config
from tuner.errors import InputError
from tuner.noise import Noise
from tuner.profile import Invalid, Match, Profile
from tuner.stack import Marks
from tuner.steps import Pixels, Step, check_steps, prepare, step_from_dict, step_to_dict
from tuner.steps.denoise import Bm3d, Butterworth, NlMeans
from tuner.steps.round_trip import HCompress, Jpeg2000, Sz3, Zfp, filled

pytest.importorskip("PIL", reason="jpeg2000 needs Pillow: pip install 'tuner[round-trips]'")
pytest.importorskip("zfpy", reason="zfp needs zfpy: pip install 'tuner[round-trips]'")
pytest.importorskip("skimage", reason="denoisers need scikit-image: pip install 'tuner[denoise]'")
pytest.importorskip("astropy", reason="hcompress needs astropy: pip install 'tuner[round-trips]'")

INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
FLOATS = ("float16", "float32", "float64")
STEPS = [(step, dtype) for step in (Jpeg2000(1.5), Jpeg2000(80)) for dtype in INTEGERS]
STEPS += [(step, dtype) for step in (Zfp(0.4), Zfp(30.0)) for dtype in (*INTEGERS, *FLOATS)]
STEPS += [(HCompress(12), dtype) for dtype in ("uint8", "int16", "uint32", "int64")]
STEPS += [(s, d) for s in (Sz3(3.0), Butterworth(0.2), NlMeans(0.8)) for d in ("uint8", "int16", "uint64", "float32")]
STEPS += [(Bm3d(1.0), dtype) for dtype in ("uint16", "float32") if find_spec("bm3d")]
NOISE = Noise(2.0, 5.0, 1.0, "given", 1.0)
MARKS = (Marks(), Marks(invalid=(255, 65535)), Marks(saturation=100), Marks(invalid=(-1,), underload=0))


def scene(seed: int = 0, shape: tuple[int, int, int] = (2, 90, 110)) -> NDArray[np.float64]:
    """Means without noise."""
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    turn = np.random.default_rng(seed).uniform(20, 40, (shape[0], 1, 1))
    return np.asarray(1000 + 500 * np.sin(rows / turn) * np.cos(columns / turn))


@pytest.mark.parametrize(("step", "dtype"), STEPS, ids=str)
@settings(max_examples=10)  # libraries load on first use
@given(data=st.data())
def test_the_law_of_filters(step: Step, dtype: str, data: st.DataObject) -> None:
    """Shape, dtype and marks stay, a bound holds where there is one, and frames do not know of each other."""
    kind = np.dtype(dtype)
    shape = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 40)))
    few = arrays.from_dtype(kind) | st.integers(0, 120).map(kind.type)
    frames = data.draw(arrays.arrays(kind, shape, elements=few, fill=st.integers(0, 9).map(kind.type)))
    mask = np.random.default_rng(shape).random(shape[1:]) < 0.05
    marks = MARKS if kind.kind != "f" else (Marks(), Marks(saturation=100.0, underload=-1.0))
    pixels = Pixels(data.draw(st.sampled_from(marks)), mask, NOISE)
    check_steps([step], kind, NOISE)
    after = prepare([step], frames, pixels)
    assert (after.dtype, after.shape) == (frames.dtype, frames.shape)
    counts = pixels.valid(frames)
    assert after[~counts].tobytes() == frames[~counts].tobytes()
    assert np.array_equal(pixels.valid(after), counts)
    moved = np.abs(after[counts].astype(np.longdouble) - frames[counts].astype(np.longdouble))
    assert (moved <= step.bound(frames[counts], None)).all()
    alone = np.concatenate([prepare([step], frame[None], pixels) for frame in frames])
    assert alone.tobytes() == after.tobytes()
    assert prepare([step], np.asfortranarray(frames), pixels).tobytes() == after.tobytes()


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int32"])
def test_jpeg2000_comes_nearer_to_the_truth_than_what_was_measured(dtype: str) -> None:
    truth = scene()
    frames = np.random.default_rng(1).poisson(truth).astype(dtype)
    after = prepare([Jpeg2000(20)], frames, Pixels()).astype(float)
    assert (after - truth).std() < 0.8 * (frames - truth).std()
    assert abs((after - frames).mean()) < 0.02 * np.sqrt(truth.mean())


def test_a_higher_ratio_or_bound_takes_more() -> None:
    frames = np.random.default_rng(1).poisson(scene()).astype("uint16")
    for kind, parameters in (
        (Jpeg2000, (2, 5, 20, 200)),
        (Zfp, (2, 20, 200, 2000)),
        (Sz3, (2, 20, 200)),
        (HCompress, (4, 40, 400)),
    ):
        errors = [(prepare([kind(p)], frames, Pixels()).astype(float) - frames).std() for p in parameters]
        assert errors == sorted(errors)
        assert errors[0] < 5 < errors[-1]


@pytest.mark.parametrize("step", [Jpeg2000(10), Zfp(50.0), Sz3(20.0), HCompress(100)], ids=repr)
def test_what_is_in_a_gap_or_saturated_touches_no_other_pixel(step: Step) -> None:
    frames = np.random.default_rng(1).poisson(scene()).astype("int32")
    mask = np.zeros(frames.shape[1:], bool)
    mask[40:48] = True
    gaps, calm = frames.copy(), frames.copy()
    gaps[:, 40:48], gaps[:, 70, 80], gaps[:, 20:22, 30] = 1 << 30, -1, 60000
    calm[:, 40:48], calm[:, 70, 80], calm[:, 20:22, 30] = 0, -2, 50001
    pixels = Pixels(Marks(invalid=(-1, -2), saturation=50000), mask)
    counts = pixels.valid(gaps)
    after, quiet = prepare([step], gaps, pixels), prepare([step], calm, pixels)
    assert np.array_equal(after[counts], quiet[counts])
    assert np.array_equal(after[~counts], gaps[~counts])
    # Beside the gap errors are as they are without one: it does not ring.
    beside = (slice(None), [37, 38, 39, 48, 49, 50])
    ringing = (after - gaps)[beside].std() / (prepare([step], frames, Pixels()) - frames)[beside].std()
    assert ringing < 1.25


def test_values_that_a_codec_cannot_take_stay() -> None:
    frames = np.random.default_rng(1).poisson(scene()).astype("int64")
    frames[:, 5, 5], frames[:, 50, 60] = 1 << 20, 1 << 60
    after = prepare([Jpeg2000(10)], frames, Pixels())
    assert (after[:, 5, 5] == 1 << 20).all()
    assert (after[:, 50, 60] == 1 << 60).all()
    assert after.max() == 1 << 60
    assert (prepare([Zfp(50.0)], frames, Pixels())[:, 50, 60] == 1 << 60).all()
    assert (prepare([Sz3(50.0)], frames, Pixels())[:, 50, 60] == 1 << 60).all()
    after = prepare([HCompress(50)], frames, Pixels())
    assert (after[:, 50, 60] == 1 << 60).all()
    assert (after[:, 5, 5] != 1 << 20).any()


def test_a_bright_pixel_of_a_narrow_integer_does_not_turn_dark() -> None:
    """Decoders overshoot: 255 comes back as more, which is no value of 8 bits."""
    blocks = np.random.default_rng(0).integers(0, 2, (2, 8, 8)).astype("uint8") * 255
    frames = np.repeat(np.repeat(blocks, 8, 1), 8, 2)
    for step in (Jpeg2000(12), HCompress(60), Zfp(60.0), Sz3(60.0), Butterworth(0.3)):
        assert np.abs(prepare([step], frames, Pixels()).astype(int) - frames).max() < 200


def test_twice_need_not_be_once() -> None:
    """Why a filter is no rounding: what it leaves must not be stepped again."""
    frames = np.random.default_rng(1).poisson(scene()).astype("uint16")
    once = prepare([Jpeg2000(10)], frames, Pixels())
    assert not np.array_equal(prepare([Jpeg2000(10)], once, Pixels()), once)


@given(data=st.data())
@settings(max_examples=50)
def test_gaps_are_filled_from_what_is_around_them(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    frame = data.draw(arrays.arrays("int64", shape, elements=st.integers(-(1 << 53), 1 << 53)))
    known = data.draw(arrays.arrays(bool, shape).filter(lambda flags: bool(flags.any())))
    full = filled(frame, known)
    assert np.array_equal(full[known], frame[known])
    assert full.min() == frame[known].min()
    assert full.max() == frame[known].max()
    assert (filled(np.where(known, 7, frame), known) == 7).all()


def test_spectra_are_frames_of_one_row() -> None:
    spectra = np.random.default_rng(0).poisson(200, (5, 300)).astype("uint16")
    for step in (Jpeg2000(5), Zfp(60.0), HCompress(30)):
        after = prepare([step], spectra, Pixels())
        assert 0 < np.abs(after.astype(int) - spectra).max() < 100


@pytest.mark.parametrize("step", [Jpeg2000(10), Zfp(50.0), Sz3(20.0), HCompress(100)], ids=repr)
def test_any_reader_opens_the_file(step: Step, tmp_path: Path) -> None:
    frames = np.random.default_rng(1).poisson(scene(0, (6, 90, 110))).astype("uint16")
    frames[:, 20, 30] = 65535
    config = Config((1, -1, -1), Blosc2("zstd", clevel=1), (step,))
    match = Match("uint16", (), frames.shape[1:])
    profile = Profile("lossy", match, config, Config((1, -1, -1), config.blosc2), invalid=Invalid((65535,)))
    with open_writer(
        tmp_path / "a.h5", profile, frame_shape=frames.shape[1:], dtype="uint16", workers=3, verify="all"
    ) as writer:
        writer.append(frames)
    expected = prepare([step], frames, Pixels(Marks((65535,))))
    assert np.array_equal(read_elsewhere(tmp_path / "a.h5"), expected)
    assert not np.array_equal(expected, frames)


@pytest.mark.parametrize("step", [Jpeg2000(10), Zfp(0.5), Sz3(0.5), HCompress(4)], ids=repr)
def test_documents_come_back(step: Step) -> None:
    assert step_from_dict(step_to_dict(step), "steps[0]") == step
    assert eval(repr(step)) == step


@pytest.mark.parametrize(
    ("step", "module", "package"),
    [(Jpeg2000(10), "PIL", "Pillow"), (Zfp(0.5), "zfpy", "zfpy"), (HCompress(4), "astropy", "astropy")],
)
def test_a_library_that_is_missing_is_named(
    step: Step, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as caught:
        check_steps([step], np.dtype("uint16"), None)
    assert str(caught.value) == f"steps[0].step {step.name} needs {package}: pip install 'tuner[round-trips]'"


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({"step": "jpeg2000", "ratio": 1}, "steps[0].ratio must be a number above 1 and at most 10000, got 1"),
        ({"step": "zfp", "error": 0}, "steps[0].error must be a number above 0, got 0"),
        ({"step": "sz3", "error": 0}, "steps[0].error must be a number above 0, got 0"),
        ({"step": "hcompress", "scale": 1.5}, "steps[0].scale must be in 2..1048576, got 1.5"),
    ],
)
def test_bad_documents_give_one_line(document: Any, line: str) -> None:
    with pytest.raises(InputError) as caught:
        step_from_dict(document, "steps[0]")
    assert str(caught.value) == line


def test_jpeg2000_takes_no_floats() -> None:
    with pytest.raises(InputError, match=r"^steps\[0\]\.step jpeg2000 must be used on integers, got float32$"):
        check_steps([Jpeg2000(10)], np.dtype("float32"), None)
