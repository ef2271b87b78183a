"""Places of a frame that stay exactly, among pixels that are rounded."""

from __future__ import annotations

from typing import Any

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
from tuner.steps.uniform import Uniform

COUNTS = Noise(1.0, 0.0, 0.0, "given", 1.0)
STEPS = (
    Regions(6.0, 2, width=4),
    Regions(1.0, 0, width=1),
    Regions(3.0, 1, width=60),
    Regions(5.0, 3, sigma=1.0),
    Regions(0.5, 1, sigma=1.9),
    Regions(4.0, 1, width=1, bin=2),
    Regions(1.0, 0, width=3, bin=3),
    Regions(0.5, 2, width=20, bin=8),
    Roi(0, 0, 1, 1, width=7),
    Roi(0, 0, 1, 1, sigma=0.9),
    Roi(0, 0, 1, 1, width=2, bin=4),
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
@settings(max_examples=8)
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
    background: float, change: dict[str, Any]
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


@pytest.mark.parametrize("noise", [COUNTS, None], ids=["noise", "no noise"])
@pytest.mark.parametrize("light", [2.0, 90.0])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_what_is_found_is_what_the_quartiles_of_every_square_tell(
    noise: Noise | None, light: float, dtype: str
) -> None:
    """Squares that are left out, as nothing in them can be a peak, have none: here all are looked at."""
    frame = np.minimum(diffraction(4, (1, 128, 160), light)[0], 250).astype(dtype)
    valid = np.random.default_rng(0).random(frame.shape) > 0.01
    step, rounded = Regions(5.0, 0, width=4), (np.rint(frame / 4.0) * 4).astype(dtype)
    peaks = np.zeros(frame.shape, bool)
    for row in range(0, 128, 32):
        for column in range(0, 160, 32):
            at = (slice(row, row + 32), slice(column, column + 32))
            seen = np.sort(rounded[at][valid[at]].astype(float))
            low, median, high = (seen[(len(seen) - 1) * part // 4] for part in (1, 2, 3))
            moved = float(step.bound(np.array([median], dtype), noise)[0])
            spread = (high - low + moved) / 1.349
            if noise is not None:
                spread = max((high - low - 2 * moved) / 1.349, np.sqrt(noise.variance(np.array(median + moved))))
            peaks[at] = valid[at] & (frame[at] > median + moved + 5 * spread)
    assert peaks.any()
    assert np.array_equal(step.kept(frame, valid, rounded, valid, noise), peaks)


def tiles(frames: np.ndarray, edge: int) -> np.ndarray:  # type: ignore[type-arg]
    """Tiles of whole numbers, 0 beyond the end; shape (frames, tiles, tiles, pixels)."""
    whole = np.pad(frames.astype(int), [(0, 0), (0, -frames.shape[1] % edge), (0, -frames.shape[2] % edge)])
    cut = whole.reshape(len(frames), whole.shape[1] // edge, edge, whole.shape[2] // edge, edge)
    return cut.swapaxes(2, 3).reshape(*cut.shape[:2], cut.shape[3], edge * edge)


@pytest.mark.parametrize("background", [0.05, 3.0, 200.0])
@pytest.mark.parametrize(("width", "edge"), [(1, 2), (1, 4), (1, 8), (6, 3)])
def test_of_what_is_binned_the_sums_of_tiles_are_left_and_no_more(background: float, width: int, edge: int) -> None:
    """As few counts as they are; pixels of a tile differ by one level; those that do not count are as they were."""
    frames = diffraction(0, background=background).astype("uint16")
    mask = np.random.default_rng(1).random(frames.shape[1:]) < 0.02
    frames[:, mask] = 65535
    pixels = Pixels(Marks((65535,)), mask, COUNTS)
    binned = prepare([Roi(40, 50, 30, 40, width=width, bin=edge)], frames, pixels)
    rounded = prepare([Uniform(width)], frames, pixels)
    kept = np.zeros(mask.shape, bool)
    kept[40:70, 50:90] = True
    assert np.array_equal(binned[:, kept | mask], frames[:, kept | mask])
    left = ~(kept | mask)
    before, after = (tiles(np.where(left, one, 0), edge) for one in (rounded, binned))
    assert np.array_equal(before.sum(-1), after.sum(-1))
    among = tiles(left[None], edge).astype(bool)
    span = np.where(among, after, -1).max(-1) - np.where(among, after, 1 << 20).min(-1)
    assert span.max() == width
    # Who reads tiles learns the same from peaks' surroundings.
    near_peaks = prepare([Regions(6.0, 2, width=1, bin=edge)], frames, pixels)
    counts = [tiles(np.where(mask, 0, one), edge).sum(-1) for one in (frames, near_peaks)]
    assert np.array_equal(*counts)
    assert (near_peaks != frames).mean() > 0.02


@pytest.mark.parametrize("background", [0.05, 3.0, 200.0])
@pytest.mark.parametrize("edge", [2, 4, 8])
def test_peaks_are_found_among_tiles_as_among_pixels(background: float, edge: int) -> None:
    frames = diffraction(0, background=background).astype("uint16")
    brightest = 1.3 * background + 2
    peaks = frames > brightest + 9 * np.sqrt(2 * brightest)
    binned = prepare([Regions(6.0, 2, width=1, bin=edge)], frames, Pixels(noise=COUNTS))
    assert (binned == frames)[peaks].mean() > 0.99


def test_a_tile_whose_level_would_mark_a_pixel_is_only_rounded() -> None:
    frame = np.array([[[6, 8, 6, 8, 3, 5, 4, 4]]], "uint16")
    assert prepare([Roi(0, 7, 1, 1, width=1, bin=4)], frame, Pixels(Marks((7,)))).tolist() == [
        [[6, 8, 6, 8, 4, 4, 4, 4]]
    ]


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
        ({"sigmas": 6, "radius": 2, "sigma": 1, "bin": 2}, "steps[0].bin must be 1 where width is not given, got 2"),
        ({"sigmas": 6, "radius": 2, "width": 2, "bin": 9}, "steps[0].bin must be in 1..8, got 9"),
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
