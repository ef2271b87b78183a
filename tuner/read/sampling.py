"""Sample: a few runs of frames that stand for all, drawn so that their bytes are bounded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.stack import Kind, Stack

#: A run is at most that long, unless one frame is longer.
RUN_NBYTES = 4 << 20

#: First, last, most and least compressible, brightest.
_TARGETS = 5

#: How much is read, at most, to find the brightest frames of a stack: frames, and bytes beyond the first few.
_PROBES = 32
_PROBE_NBYTES = 64 << 20
_MIN_PROBES = 4


@dataclass(frozen=True, slots=True)
class Run:
    """Frames that follow each other."""

    stack: int
    """Index of their stack."""
    start: int
    """Number of the first."""
    frames: NDArray[Any]
    """Shape (n, *frame_shape), native, C-contiguous."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Runs of frames of one shape and dtype."""

    runs: tuple[Run, ...]
    """By stack, then by number; at least one, and disjoint."""

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one frame."""
        return self.runs[0].frames.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of all frames."""
        return self.runs[0].frames.dtype

    @property
    def n_frames(self) -> int:
        """Frames in all runs."""
        return sum(len(run.frames) for run in self.runs)

    @property
    def longest(self) -> int:
        """Frames of the longest run: more are nowhere known to follow each other."""
        return max(len(run.frames) for run in self.runs)

    @property
    def nbytes(self) -> int:
        """Bytes of all runs."""
        return sum(run.frames.nbytes for run in self.runs)

    @property
    def digest(self) -> str:
        """SHA-256 of dtype, shapes and pixels, in hexadecimal; where the frames came from does not count."""
        digest = hashlib.sha256(self.dtype.str.encode())
        for run in self.runs:
            digest.update(repr(run.frames.shape).encode())
            digest.update(np.ascontiguousarray(run.frames).data)
        return digest.hexdigest()


def draw_sample(
    stacks: Sequence[Stack],
    nbytes: int = 16 << 20,
    seed: int = 0,
    among: Sequence[NDArray[np.bool_]] | None = None,
) -> Sample:
    """Draw runs of frames from stacks of one detector.

    Where all frames fit into `nbytes` they are the sample, each stretch of frames that may be drawn one run. Else the
    frames are cut into slots of a power of two frames, so that chunks of 1, 2, 4... frames cut the same pixels, and of
    each stack are drawn, as far as its share reaches: the first slot, the last, those with the least and the most
    compressible frame by their stored bytes, that with the brightest, and the rest at random from equal strata of
    stored bytes. Where the file does not tell stored bytes, means of evenly spaced frames stand for them.

    Only data frames are drawn, where there are any, and never one whose chunks were not written.

    Parameters
    ----------
    stacks : sequence of Stack
        Of one dtype and frame shape.
    nbytes : int
        What the sample takes at most; a single frame that is larger is drawn nevertheless, alone. Stacks share it
        evenly, and what a short one does not need goes to the others; where there are more stacks than frames, evenly
        spaced stacks give one each. Where a stack gives one frame, it is that of median stored bytes.
    seed : int
        Decides what is left to chance.
    among : sequence of bool array, optional
        For each stack the frames that may be drawn, shape (frames,).

    Raises
    ------
    InputError
        Where stacks differ, or none of their frames was ever written.
    """
    if not stacks:
        raise InputError("files: must be at least one, got none")
    first = stacks[0]
    for stack in stacks[1:]:
        if (stack.dtype, stack.frame_shape) != (first.dtype, first.frame_shape):
            raise InputError(
                f"{stack.name}: frames must be as those of {first.name}, {first.dtype}{first.frame_shape}, "
                f"got {stack.dtype}{stack.frame_shape}"
            )
    eligible = [eligible_frames(stack) for stack in stacks]
    if among is not None:
        eligible = [frames[allowed[frames]] for frames, allowed in zip(eligible, among, strict=True)]
    if not any(len(frames) for frames in eligible):
        raise InputError(f"{first.name}: must have frames that were written, got none of {sum(map(len, stacks))}")
    budget = max(1, nbytes // first.frame_nbytes)
    whole = sum(map(len, eligible)) <= budget
    runs = []
    shares = _share([len(frames) for frames in eligible], budget)
    for index, (stack, frames, share) in enumerate(zip(stacks, eligible, shares, strict=True)):
        if share == 0:
            continue
        segments = _segments(frames)
        if not whole:
            rng = np.random.default_rng([seed, index])
            segments = _choose(stack, stack.source.stored_bytes(), frames, segments, share, rng)
        runs += [Run(index, int(start), _read(stack, int(start), int(stop))) for start, stop in segments]
    return Sample(tuple(runs))


def with_repeats(sample: Sample, stack: Stack) -> list[NDArray[Any]]:
    """The runs of a sample of `stack`, and two frames that follow each other where no run has two.

    Large frames are drawn one by one, and one frame alone does not tell a fixed pattern of its pixels from noise.
    """
    runs = [run.frames for run in sample.runs]
    if sample.longest > 1:
        return runs
    frames = eligible_frames(stack)
    firsts = frames[:-1][np.diff(frames) == 1]
    if not len(firsts):
        return runs
    first = int(firsts[len(firsts) // 2])
    return [*runs, _read(stack, first, first + 2)]


def _read(stack: Stack, start: int, stop: int) -> NDArray[Any]:
    return np.ascontiguousarray(stack.read(start, stop))


def eligible_frames(stack: Stack) -> NDArray[np.int64]:
    """Numbers of the data frames whose chunks were written; of all that were where none is data."""
    written = stack.written()
    data = written if stack.kinds is None else written & (stack.kinds == Kind.DATA)
    return np.flatnonzero(data if data.any() else written)


def _share(lengths: list[int], budget: int) -> list[int]:
    """Frames that each stack gives, in all at most `budget`: the short ones all, the others as evenly as it goes.

    >>> _share([2, 100, 100], 12), _share([9, 9, 9, 9, 9], 3)
    ([2, 5, 5], [1, 0, 1, 0, 1])
    """
    filled = [index for index, length in enumerate(lengths) if length]
    if len(filled) > budget:
        filled = [filled[round(i)] for i in np.linspace(0, len(filled) - 1, budget)]
    shares = [0] * len(lengths)
    for left, index in zip(range(len(filled), 0, -1), sorted(filled, key=lambda i: lengths[i]), strict=True):
        shares[index] = min(lengths[index], budget // left)
        budget -= shares[index]
    return shares


def _segments(frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """Stretches of consecutive numbers, as (start, stop).

    >>> _segments(np.array([0, 1, 2, 5, 6])).tolist()
    [[0, 3], [5, 7]]
    """
    breaks = np.flatnonzero(np.diff(frames) != 1)
    starts = frames[np.concatenate(([0], breaks + 1))]
    stops = frames[np.concatenate((breaks, [len(frames) - 1]))] + 1
    return np.stack([starts, stops], axis=1)


def _slots(segments: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Cut stretches into slots of `length`, a power of two, and smaller powers of two for what remains before the last.

    >>> _slots(np.array([[0, 19]]), 4).tolist()
    [[0, 4], [4, 8], [8, 12], [12, 14], [14, 15], [15, 19]]
    """
    slots = []
    for start, stop in segments:
        rest = [1 << bit for bit in reversed(range(length.bit_length())) if (stop - start) % length >> bit & 1]
        full = [length] * ((stop - start) // length)
        lengths = [*full[:-1], *rest, *full[-1:]]
        stops = start + np.cumsum(lengths)
        slots.append(np.stack([stops - lengths, stops], axis=1))
    return np.concatenate(slots)


def _choose(
    stack: Stack,
    stored: NDArray[np.int64] | None,
    frames: NDArray[np.int64],
    segments: NDArray[np.int64],
    share: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """The slots that are drawn from one stack, in their order, of `share` frames in all at most."""
    room = max(1, min(RUN_NBYTES // stack.frame_nbytes, share // _TARGETS))
    slots = _slots(segments, 1 << (room.bit_length() - 1))
    sizes, targets = _rank(stack, stored, frames, share)
    wanted = np.searchsorted(slots[:, 1], frames[targets], side="right")
    lengths = slots[:, 1] - slots[:, 0]
    chosen: list[int] = []
    for slot in dict.fromkeys(wanted.tolist()):
        if lengths[slot] <= share - lengths[chosen].sum():
            chosen.append(slot)
    rest = np.setdiff1d(np.arange(len(slots)), chosen)
    mean_sizes = np.add.reduceat(sizes, np.searchsorted(frames, slots[:, 0])) / lengths
    rest = rest[np.argsort(mean_sizes[rest], kind="stable")]
    count = int((share - lengths[chosen].sum()) // lengths.max())
    chosen += [int(rng.choice(stratum)) for stratum in np.array_split(rest, count) if len(stratum)] if count else []
    drawn: NDArray[np.int64] = slots[np.sort(chosen)]
    return drawn


def _rank(
    stack: Stack, stored: NDArray[np.int64] | None, frames: NDArray[np.int64], share: int
) -> tuple[NDArray[np.float64], list[int]]:
    """A size of each frame to sort by, and the positions of those to draw, the most wanted first.

    A single frame is the one of median size: the first of a scan may well be empty.
    """
    told = stored is not None and np.ptp(stored[frames]) > 0
    sizes = stored[frames].astype(np.float64) if told and stored is not None else np.zeros(len(frames))
    if share == 1:
        return sizes, [int(np.argsort(sizes, kind="stable")[len(frames) // 2])]
    brightest = []
    if share >= (_TARGETS if told else 3):
        probed = _probes(sizes, _read_nbytes(stack))
        means = np.array([_mean(stack, int(frames[position])) for position in probed])
        brightest = [int(probed[means.argmax()])]
        if not told:
            sizes = np.interp(np.arange(len(frames)), probed, means)
    return sizes, [0, len(frames) - 1, int(sizes.argmax()), int(sizes.argmin()), *brightest]


def _read_nbytes(stack: Stack) -> int:
    """Bytes that must be decoded to read one frame: those of its chunks."""
    chunks = stack.storage.chunks if stack.storage else None
    return stack.frame_nbytes * (math.prod(chunks[: -stack.frame_ndim]) if chunks else 1)


def _probes(sizes: NDArray[np.float64], read_nbytes: int) -> NDArray[np.int64]:
    """Positions of frames to look at for the brightest, in order: evenly spaced, and as many of the largest."""
    count = min(len(sizes), max(_MIN_PROBES, min(_PROBES, _PROBE_NBYTES // read_nbytes)))
    largest = np.argsort(sizes, kind="stable")[len(sizes) - count // 2 :] if sizes.any() else np.zeros(0, np.int64)
    even = np.linspace(0, len(sizes) - 1, count - len(largest)).round().astype(np.int64)
    return np.unique(np.concatenate((even, largest)))


def _mean(stack: Stack, frame: int) -> float:
    """Mean over the valid pixels of one frame; 0 where there are none."""
    pixels = stack.read(frame, frame + 1)
    valid = pixels[stack.valid(pixels)]
    return float(valid.mean(dtype=np.float64)) if valid.size else 0.0
