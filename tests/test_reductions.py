"""Reductions: sums that keep counts and never wrap, and stacks whose frames, mask, marks and noise go together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import Memory, stack_of
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.noise import Noise
from tuner.space import Space
from tuner.stack import Marks, Stack, convention
from tuner.steps import Pixels, prepare
from tuner.steps.reduced import Chain, Reduced, form_of, parse_reductions, reduced, reductions_from, reductions_to
from tuner.steps.reductions import Bin, Crop, Form, Reduction, Scale, Sum
from tuner.steps.scale import Photonise
from tuner.steps.triage import Triage

INTEGERS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
DTYPES = [*INTEGERS, "float16", "float32", "float64"]


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
@settings(max_examples=300)
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
        elif after.dtype == np.int64 and abs(total + (1 << 62)) <= 1 << 12:  # nor here
            assert abs(int(summed[at]) - total) <= 1 << 12
        elif total < max(least := int(np.iinfo(after.dtype).min), -(1 << 62)):
            assert summed[at] == max(least, -(1 << 62))
        else:
            assert valid[at]
            assert summed[at] == total
        if masked.any():
            assert not valid[at]


@given(case=forms(), dtype=st.sampled_from(["uint8", "uint16", "uint32", "int8", "int16"]), data=st.data())
@settings(max_examples=200)
def test_a_scaled_pixel_is_within_half_a_step_or_says_why_not(
    case: tuple[NDArray[Any], Form], dtype: str, data: st.DataObject
) -> None:
    frames, before = case
    if before.dtype.itemsize == 8 and before.dtype.kind != "f":
        return  # doubles do not hold them all
    factor = data.draw(st.sampled_from([1.0, 0.5, 3.0, 0.01]))
    offset = data.draw(st.sampled_from([0.0, -30.0, 7.5]))
    chain = Chain([Scale(dtype, factor, offset)], before)
    after, stored = chain.after, chain.frames(frames)
    assert stored.dtype == np.dtype(dtype)
    valid, saturated = after.marks.valid(stored, after.mask), after.marks.saturated(stored, after.mask)
    was_valid, was_saturated = (f(frames, before.mask) for f in (before.marks.valid, before.marks.saturated))
    values = (stored.astype(np.float64) + offset) * factor
    error = np.abs(values - frames)[valid]
    assert (error <= factor / 2 * (1 + 1e-9) + 1e-9 * np.abs(values[valid])).all()
    assert not (valid & ~was_valid).any()  # none counts that did not
    assert not (was_saturated & ~saturated).any()
    assert not (saturated & ~(was_saturated | was_valid)).any()
    if after.mask is not None:
        assert not valid[:, after.mask].any()


def test_scale_saturates_what_is_above_and_hides_what_is_below() -> None:
    frames = np.array([[[-3, 0, 5, 70000, -1]]], "int32")
    chain = Chain([Scale("uint16", 1.0, -1.0)], Form((1, 5), np.dtype("int32"), Marks((-1, -2))))
    stored = chain.frames(frames)
    assert stored.tolist() == [[[65535, 1, 6, 65534, 65535]]]
    assert chain.after.marks.valid(stored).tolist() == [[[False, True, True, False, False]]]
    assert chain.after.marks.saturated(stored).tolist() == [[[False, False, False, True, False]]]


@pytest.mark.parametrize("each", [(), (Sum(3),), (Bin(2),), (Sum(2), Bin(3), Crop(1, 0, 2, 3), Scale("uint16", 0.5))])
def test_frames_of_a_reduced_stack_do_not_depend_on_how_many_are_read(
    each: tuple[Reduction, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.random.default_rng(0).poisson(9, (20, 9, 11)).astype("uint16")
    kinds = np.repeat([2, 1, 0, 3, 0], [3, 4, 6, 1, 6]).astype("uint8")
    original = stack_of(frames, kinds=kinds, saturation=25.0, mask=np.eye(9, 11, dtype=bool))
    stack = reduced(original, each)
    whole = stack.read(0, len(stack))
    monkeypatch.setattr("tuner.steps.reduced._BATCH_NBYTES", 500)
    parts = [stack.read(i, min(i + 3, len(stack))) for i in range(0, len(stack), 3)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert whole.shape == (len(stack), *stack.frame_shape)
    assert whole.dtype == stack.dtype
    assert stack.kinds is not None
    assert len(stack.kinds) == len(stack)


def test_frames_of_one_kind_are_summed_and_what_is_left_over_is_left_out() -> None:
    """Beam-off and top-up frames, which image_key marks as invalid, are in no sum of data."""
    frames = np.arange(1, 15, dtype="uint16")[:, None, None] * np.ones((14, 2, 2), "uint16")
    kinds = np.array([2, 2, 1, 1, 1, 0, 0, 0, 3, 0, 0, 0, 0, 0], "uint8")
    stack = reduced(stack_of(frames, kinds=kinds), [Sum(2)])
    assert stack.read(0, len(stack))[:, 0, 0].tolist() == [1 + 2, 3 + 4, 6 + 7, 10 + 11, 12 + 13]
    assert stack.kinds is not None
    assert stack.kinds.tolist() == [2, 1, 0, 0, 0]


def test_a_sum_of_which_a_frame_was_never_written_was_not_either() -> None:
    stored = np.array([5, 5, 5, 0, 0, 0, 7, 8])
    original = stack_of(np.zeros((8, 2, 2), "uint16"))
    stack = reduced(replace(original, source=Memory(np.zeros((8, 2, 2), "uint16"), stored)), [Sum(2)])
    sizes = stack.source.stored_bytes()
    assert sizes is not None
    assert sizes.tolist() == [10, 0, 0, 15]


@given(seed=st.integers(0, 99), n=st.integers(2, 4))
def test_bin_then_crop_is_crop_then_bin_and_sum_commutes_with_both(seed: int, n: int) -> None:
    frames = np.random.default_rng(seed).poisson(3, (n * 2, 4 * n + 1, 5 * n)).astype("uint16")
    mask = np.random.default_rng(seed).random(frames.shape[1:]) < 0.03
    form = form_of(stack_of(frames, mask=mask))
    one = Chain([Sum(n), Bin(n), Crop(1, 2, 3, 3)], form)
    cropped = Chain([Crop(n, 2 * n, 3 * n, 3 * n)], form)
    other = Chain([Bin(n)], cropped.after)
    last = Chain([Sum(n)], other.after)
    ours, theirs = one.frames(frames), last.frames(other.frames(cropped.frames(frames)))
    valid = one.after.marks.valid(ours, one.after.mask)
    assert np.array_equal(valid, last.after.marks.valid(theirs, last.after.mask))
    assert np.array_equal(ours[valid], theirs[valid])


def test_a_hot_pixel_above_the_cut_off_saturates_what_it_is_summed_into() -> None:
    frames = np.full((4, 4, 4), 7, "uint32")
    frames[1, 0, 1] = 2_000_000  # a hot pixel, above the cut-off of 1,000 but no gap
    stack = reduced(stack_of(frames, saturation=1001.0, invalid=(2**32 - 1,)), [Sum(4), Bin(2)])
    summed = stack.read(0, 1)
    assert stack.saturation == 16 * 1000 + 1
    assert stack.saturated(summed).tolist() == [[[True, False], [False, False]]]
    assert summed[stack.valid(summed)].tolist() == [7 * 16] * 3


def test_negatives_of_dark_subtracted_frames_are_summed_as_they_are() -> None:
    """In int16 they are data, and so in what they are summed into: never in int32, whose -1 and -2 are gaps."""
    frames = np.random.default_rng(0).normal(0, 3, (40, 8, 8)).round().astype("int16")
    frames[0] = -32768
    stack = reduced(stack_of(frames), [Sum(4), Bin(2)])
    summed = stack.read(0, len(stack))
    assert stack.dtype == np.int64
    assert stack.valid(summed).all()
    assert summed.sum() == frames.sum()
    # In int32 they were read as data but for -1 and -2; a sum never becomes one of these.
    wide = stack_of(frames.astype("int32") * 3, invalid=(-1, -2))
    binned = reduced(wide, [Bin(2)])
    assert binned.valid(binned.read(0, 40)).all()


def test_the_noise_of_a_reduced_pixel_is_that_of_its_sum() -> None:
    rng = np.random.default_rng(0)
    noise = Noise(2.0, 100.0, 5.0, "given")
    counts = 2.0 * rng.poisson(30, (400, 16, 16)) + rng.normal(100, 5, (400, 16, 16))
    chain = Chain([Sum(4), Bin(2), Scale("uint16", 3.0, 10.0)], form_of(stack_of(counts.astype("float32"))))
    frames = chain.frames(counts.astype("float32"))
    predicted = chain.noise(noise)
    assert predicted.gain == pytest.approx(2 / 3)
    assert predicted.offset == pytest.approx(1600 / 3 - 10)
    assert predicted.read_noise == pytest.approx(20 / 3)
    assert frames.var(axis=0).mean() == pytest.approx(predicted.variance(frames).mean(), rel=0.05)


def test_photons_that_share_their_charge_are_counted_after_binning() -> None:
    """Photonising pixels loses photons of which no pixel got half; summed first, intensities stay."""
    rng = np.random.default_rng(0)
    frames = np.zeros((50, 64, 64))
    for frame in frames:  # each photon spreads over the four pixels of a bin
        at = rng.integers(0, 32, (60, 2)) * 2
        share = rng.dirichlet((1.5, 1.5, 1.5, 1.5), 60)
        for (row, column), parts in zip(at, share, strict=True):
            frame[row : row + 2, column : column + 2] += 100 * parts.reshape(2, 2)
    measured = (frames + rng.normal(0, 4, frames.shape)).astype("float32")
    noise = Noise(100.0, 0.0, 4.0, "given")
    photons = 50 * 60
    alone = prepare([Photonise()], measured, Pixels(noise=noise)).sum() / 100
    stack = reduced(stack_of(measured), [Bin(2)])
    chain = Chain([Bin(2)], form_of(stack_of(measured)))
    binned = prepare([Photonise()], stack.read(0, 50), Pixels(noise=chain.noise(noise))).sum() / 100
    assert abs(binned / photons - 1) < 0.005
    assert abs(alone / photons - 1) > 0.1


def test_reductions_are_documents_and_words() -> None:
    reductions = (Sum(4), Bin(2), Crop(0, 1, 5, 6), Scale("uint16", 0.5, -3.0))
    assert reductions_from(reductions_to(reductions), "reduce") == reductions
    assert parse_reductions("bin=2,crop=0:1:5:6,sum=4,scale=uint16:0.5:-3") == reductions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bun=2", "--reduce must be one of triage sum bin crop scale, got 'bun' (did you mean 'bin'?)"),
        ("bin=1", "--reduce[0].n must be in 2..256, got 1"),
        ("bin", "--reduce[0].n must be given"),
        ("bin=2:3", "--reduce must have at most 1 values for bin, got 'bin=2:3'"),
        (
            "bin=2,bin=3",
            "--reduce: reduce must be some of triage sum bin crop scale, each once, in this order, got bin bin",
        ),
        ("scale=float32", "--reduce[0].dtype must be one of uint8 uint16 uint32 int8 int16, got 'float32'"),
        ("crop=0:0:0:5", "--reduce[0].rows must be a whole number >= 1, got 0"),
    ],
)
def test_a_word_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_reductions(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("stack", "reductions", "message"),
    [
        (stack_of(np.zeros((3, 4, 4), "u2")), [Sum(4)], "must have 4 frames of one kind that follow each other"),
        (stack_of(np.zeros((3, 4, 4), "u2")), [Bin(5)], "reduction bin must be of at most 4 pixels, got 5"),
        (stack_of(np.zeros((3, 4, 4), "u2")), [Crop(2, 0, 3, 4)], "must end within a frame of (4, 4), got an end at"),
        (stack_of(np.zeros((3, 4, 4), bool)), [Bin(2)], "frames must be numbers to be summed, got bool"),
        (stack_of(np.zeros((3, 4, 4), "u2")), [Bin(2), Sum(2)], "in this order, got bin sum"),
        (stack_of(np.zeros((3, 4, 4), "u2")), [Triage(1, 5.0)], "must have frames with 1 peaks, got none of 3"),
        (stack_of(np.zeros((3, 4, 4), "u2")), [Triage(1, 5.0), Sum(2)], "must not sum after triage"),
        (
            stack_of(np.zeros((3, 4, 5, 6), "u2"), 2),
            [Sum(2)],
            "frames must be numbered by one axis to be summed, got shape (3, 4, 5, 6)",
        ),
    ],
)
def test_what_cannot_be_reduced_is_refused(stack: Stack, reductions: list[Reduction], message: str) -> None:
    with pytest.raises(InputError) as caught:
        reduced(stack, reductions)
    assert message in str(caught.value)


def serial(heights: list[float], peaks: int = 20) -> NDArray[np.uint16]:
    """Frames of a serial measurement: peaks of these photons in the brightest pixel, on a background of three."""
    rng = np.random.default_rng(0)
    means = np.full((len(heights), 96, 96), 3.0)
    spot = np.exp(-np.add.outer(np.arange(-2, 3) ** 2, np.arange(-2, 3) ** 2) / 2)
    for mean, height in zip(means, heights, strict=True):
        for place in rng.choice(64, peaks, replace=False):
            row, column = 11 * np.array(divmod(place, 8)) + 6
            mean[row - 2 : row + 3, column - 2 : column + 3] += height * spot
    return rng.poisson(means).astype("uint16")


def test_triage_keeps_hits_and_every_so_many_th_of_the_rest() -> None:
    heights = [200.0 if number % 4 == 0 else 0.0 for number in range(40)]
    frames = serial(heights)
    frames[:, 0, :30] = 60000  # a bad row that the mask knows
    mask = np.zeros((96, 96), bool)
    mask[0, :30] = True
    kinds = np.zeros(40, "uint8")
    kinds[[1, 2]] = 2
    stack = reduced(stack_of(frames, mask=mask, kinds=kinds), [Triage(peaks=15, least=25.0, audit=7)])
    source = stack.source
    assert isinstance(source, Reduced)
    hits = [number for number in range(40) if heights[number]]
    without = [number for number in range(40) if not heights[number] and number > 2]
    assert source.starts.tolist() == sorted([*hits, 1, 2, *without[6::7]])  # darks stay
    assert source.starts[source.audited].tolist() == without[6::7]
    assert np.array_equal(stack.read(0, len(stack)), frames[source.starts])


def test_weaker_peaks_are_found_in_boxes_of_pixels() -> None:
    triage = Triage(peaks=15, least=25.0)
    strong, weak, empty = serial([200.0, 15.0, 0.0])
    everywhere = np.ones((96, 96), bool)
    assert triage.count(strong, everywhere) >= 20
    assert triage.count(weak, everywhere) < 15 <= triage.count_weak(weak, everywhere)
    assert triage.count(empty, everywhere) == 0
    assert triage.count_weak(empty, everywhere) < 3
    assert triage.count(strong, np.zeros((96, 96), bool)) == 0
    assert triage.count(strong[0], everywhere[0]) == triage.count(strong[:1], everywhere[:1])


@given(seed=st.integers(0, 999), plateau=st.integers(1, 4))
def test_a_plateau_is_one_peak(seed: int, plateau: int) -> None:
    rng = np.random.default_rng(seed)
    frame = np.zeros((50, 70), "int32")
    row, column = rng.integers(0, 46), rng.integers(0, 66)
    frame[row, column : column + plateau] = 100
    for one in (frame, frame.T):
        assert Triage(peaks=1, least=10.0).count(one, np.ones(one.shape, bool)) == 1


def test_a_space_may_reduce_and_says_where_it_is_wrong() -> None:
    space = Space.from_dict({"reduce": [{"step": "bin", "n": 2}]}, "my.yaml:")
    assert space.reduce == (Bin(2),)
    with pytest.raises(InputError) as caught:
        Space.from_dict({"reduce": {"choose": [[], [{"step": "bin", "n": 2}]]}}, "my.yaml:")
    assert str(caught.value) == "my.yaml: reduce must be a list, got a mapping"
    with pytest.raises(InputError) as caught:
        Space.from_dict({"reduce": [{"step": "bin", "n": 1}]}, "my.yaml:")
    assert str(caught.value) == "my.yaml: reduce[0].n must be in 2..256, got 1"
