"""Places of a frame that stay exactly, among pixels that are rounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tuner.errors import InputError
from tuner.noise import Noise
from tuner.stack import Marks
from tuner.steps import Pixels, check_steps, prepare, step_from_dict, step_to_dict
from tuner.steps.regions import Regions, Roi

COUNTS = Noise(1.0, 0.0, 0.0, "given", 1.0)
STEPS = (
    Regions(6.0, 2, width=4),
    Regions(1.0, 0, width=1),
    Regions(3.0, 1, width=60),
    Regions(5.0, 3, sigma=1.0),
    Regions(0.5, 1, sigma=1.9),
    Roi(0, 0, 1, 1, width=7),
    Roi(0, 0, 1, 1, sigma=0.9),
)
MARKS = (Marks(), Marks(invalid=(255, 65535)), Marks(saturation=100), Marks(invalid=(-1,), underload=0))


def diffraction(seed: int, shape: tuple[int, int, int] = (3, 150, 170), background: float = 30.0) -> np.ndarray:  # type: ignore[type-arg]
    """Poisson counts that fall off from a corner, and spots on them."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    mean = np.repeat((background / (1 + (rows + columns) / 100))[None], shape[0], axis=0)
    for frame in mean:
        for _ in range(40):
            row, column = random.integers(0, shape[1]), random.integers(0, shape[2])
            frame += random.exponential(400) * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 2)
    return random.poisson(mean)


@pytest.mark.parametrize("step", STEPS, ids=repr)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32"])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_the_law_of_roundings(step: Regions | Roi, dtype: str, data: st.DataObject) -> None:
    """Dtype, shape, marks and bound; twice is once; what is kept is kept, in the result as in the original."""
    kind = np.dtype(dtype)
    shape = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 70), st.integers(1, 70)))
    few = arrays.from_dtype(kind) | st.integers(0, 120).map(kind.type)
    frames = data.draw(arrays.arrays(kind, shape, elements=few, fill=st.integers(0, 9).map(kind.type)))
    frames = frames + np.random.default_rng(shape).integers(0, 4, shape).astype(kind)
    marks, mask = data.draw(st.sampled_from(MARKS)), np.random.default_rng(shape).random(shape[1:]) < 0.05
    pixels = Pixels(marks, mask, COUNTS)
    rounded = prepare([step], frames, pixels)
    assert (rounded.dtype, rounded.shape) == (frames.dtype, frames.shape)
    counts = pixels.valid(frames)
    assert rounded[~counts].tobytes() == frames[~counts].tobytes()
    assert np.array_equal(pixels.valid(rounded), counts)
    assert prepare([step], rounded, pixels).tobytes() == rounded.tobytes()
    moved = np.abs(rounded[counts].astype(np.longdouble) - frames[counts].astype(np.longdouble))
    assert (moved <= step.bound(frames[counts], COUNTS)).all()
    alone = np.concatenate([prepare([step], frame[None], pixels) for frame in frames])
    assert alone.tobytes() == rounded.tobytes()


@pytest.mark.parametrize("background", [0.05, 3.0, 200.0])
@pytest.mark.parametrize("change", [{"width": 2}, {"width": 16}, {"width": 200}, {"sigma": 0.5}, {"sigma": 1.9}])
def test_what_stands_out_by_the_noise_given_stays_and_the_rest_is_rounded(
    background: float, change: dict[str, float]
) -> None:
    """Found here by the mean that no step knows."""
    frames = diffraction(0, background=background).astype("uint16")
    step = Regions(6.0, 2, **change)
    rounded = prepare([step], frames, Pixels(noise=COUNTS))
    # A threshold lies higher by what rounding may hide, where the background is brightest.
    brightest = 1.3 * background + change.get("width", 0) + 2
    peaks = frames > brightest + 8 * np.sqrt(2 * brightest)
    assert peaks.any()
    for shift in ((0, 0), (2, 2), (-2, 1)):
        near = np.roll(peaks, shift, (1, 2))
        near[:, :2], near[:, -2:], near[:, :, :2], near[:, :, -2:] = False, False, False, False
        assert np.array_equal(rounded[near], frames[near])
    if "width" in change:
        assert (rounded % change["width"] == 0).mean() > 0.6


def test_neither_masked_pixels_nor_marks_are_peaks_or_background() -> None:
    frames = diffraction(0).astype("int32")
    mask = np.zeros(frames.shape[1:], bool)
    mask[:, 60:75] = True
    frames[:, 20:30] = -1
    broken = np.where(mask, 1 << 30, frames)
    pixels = Pixels(Marks(invalid=(-1,)), mask)
    step = Regions(6.0, 3, width=16)
    rounded, calm = prepare([step], broken, pixels), prepare([step], np.where(mask, 0, frames), pixels)
    assert np.array_equal(rounded[:, ~mask], calm[:, ~mask])
    assert (rounded[:, 20:30, :60] == -1).all()
    assert (rounded[:, mask] == 1 << 30).all()
    # What is next to a gap is rounded as what is far from it.
    assert (rounded[:, 31:40, 55:60] % 16 == 0).mean() > 0.5


def test_a_rectangle_stays_and_all_else_is_rounded() -> None:
    frames = diffraction(1).astype("uint16")
    rounded = prepare([Roi(10, 20, 30, 40, width=64)], frames, Pixels())
    inside = np.zeros(frames.shape, bool)
    inside[:, 10:40, 20:60] = True
    assert np.array_equal(rounded[inside], frames[inside])
    assert not (rounded[~inside] % 64).any()


def test_spectra_are_frames_of_one_row() -> None:
    spectra = np.random.default_rng(0).poisson(20, (5, 300)).astype("uint16")
    spectra[:, 100] = 900
    rounded = prepare([Regions(6.0, 2, width=16)], spectra, Pixels())
    assert np.array_equal(rounded[:, 98:103], spectra[:, 98:103])
    assert not (rounded[:, 110:200] % 16).any()
    rounded = prepare([Roi(0, 50, 1, 20, width=16)], spectra, Pixels())
    assert np.array_equal(rounded[:, 50:70], spectra[:, 50:70])
    assert not (rounded[:, :50] % 16).any()


@pytest.mark.parametrize("fill", [7.0, np.nan, np.inf])
def test_a_frame_of_one_value_or_without_a_valid_pixel_stays(fill: float) -> None:
    frame = np.full((1, 40, 40), fill)
    assert np.array_equal(prepare([Regions(3.0, 1, width=1.0)], frame, Pixels()), frame, equal_nan=True)


def test_a_rectangle_beyond_the_frame_is_refused() -> None:
    with pytest.raises(InputError, match=r"^step roi must end within a frame of \(4, 5\), got an end at \(3, 6\)$"):
        prepare([Roi(2, 3, 1, 3, width=2)], np.zeros((1, 4, 5), "uint16"), Pixels())


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_documents_come_back(step: Regions | Roi) -> None:
    assert step_from_dict(step_to_dict(step), "steps[0]") == step
    assert eval(repr(step)) == step


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({"sigmas": 6, "radius": 2}, "steps[0].either width or sigma must be above 0, got 0 and 0"),
        ({"sigmas": 6, "radius": 2, "width": 2, "sigma": 1}, "steps[0].either width or sigma must be above 0, got 2"),
        ({"sigmas": 0, "radius": 2, "width": 2}, "steps[0].sigmas must be a number above 0, got 0"),
        ({"sigmas": 6, "radius": 65, "width": 2}, "steps[0].radius must be in 0..64, got 65"),
    ],
)
def test_bad_documents_give_one_line(document: dict[str, float], line: str) -> None:
    with pytest.raises(InputError) as caught:
        step_from_dict({"step": "regions", **document}, "steps[0]")
    assert str(caught.value).startswith(line)


def test_sigma_needs_noise_and_integers_whole_widths() -> None:
    with pytest.raises(InputError, match=r"^steps\[0\]\.sigma must be 0 where there is no noise model$"):
        check_steps([Regions(6.0, 2, sigma=1.0)], np.dtype("uint16"), None)
    with pytest.raises(
        InputError, match=r"^steps\[0\]\.width must be a whole number in 1\.\.65535 for uint16, got 0\.5$"
    ):
        check_steps([Roi(0, 0, 1, 1, width=0.5)], np.dtype("uint16"), None)
