"""The promise: what a profile's limits on quality are worth for frames that nobody has looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import UnsatisfiableError
from tuner.goal import Constraint, Goal, broken
from tuner.quality import compare, worst
from tuner.read.sampling import Sample
from tuner.search.lossy import REPORTED, Option
from tuner.stack import Kind, Stack
from tuner.steps import Pixels, prepare

#: The confidence that an upper bound holds with, for the first candidate that is judged.
CONFIDENCE = 0.95
#: The share of frames that may break a limit, if a profile is to be more than provisional.
RISK = 0.05
#: Frames are compared so many bytes at a time.
_BATCH_NBYTES = 32 << 20
#: Frames between those that were searched on and those that are judged on.
_GUARD = 1


@dataclass(frozen=True, slots=True)
class Promise:
    """What frames that were held back said of the limits on quality."""

    units: int
    """Frames that were judged, none of which the search had seen."""
    looks: int
    """How many candidates were judged on them; each look lowers the error that the next may have."""
    confidence: float
    """What the bound holds with: ``1 - 0.05 / 2**k`` for the k-th candidate after the first."""
    bound: float
    """Upper bound of the share of frames that break a limit (Clopper and Pearson 1934); 1 without frames."""
    risk: float
    """The share that was asked for."""
    limits: Mapping[str, str] = field(default_factory=dict)
    """Each limit on quality, and whether it holds by construction or by sample."""
    worst: Mapping[str, float] = field(default_factory=dict)
    """Each quality of the worst frame that was judged."""
    population: str = ""
    """What the frames stand for."""

    @property
    def provisional(self) -> bool:
        """Whether too few frames were judged for the risk."""
        return self.bound > self.risk

    def to_dict(self) -> dict[str, Any]:
        """All fields, as YAML has them."""
        return {**asdict(self), "provisional": self.provisional}


def upper_bound(units: int, confidence: float) -> float:
    """Upper Clopper-Pearson bound of a share of which nothing was found in so many units.

    >>> round(upper_bound(59, 0.95), 4), upper_bound(0, 0.95)
    (0.0495, 1.0)
    """
    return float(1 - (1 - confidence) ** (1 / units)) if units else 1.0


def units_for(risk: float, confidence: float = CONFIDENCE) -> int:
    """How many units without a violation it takes for that risk.

    >>> units_for(0.05), units_for(0.01)
    (59, 299)
    """
    return math.ceil(math.log(1 - confidence) / math.log(1 - risk))


def hold(
    options: Sequence[Option],
    goal: Goal,
    stacks: Sequence[Stack],
    pixels: Sequence[Pixels],
    searched: Sample,
    risk: float,
    seed: int,
) -> tuple[Option, Promise]:
    """The first option of which no frame that was held back breaks a limit, and what that is worth.

    Frames are drawn at random from those that the search has not seen, a guard apart; each candidate is judged on all
    of them, and at a confidence that rises with every look.

    Parameters
    ----------
    options : sequence of Option
        The most promising first.
    goal : Goal
    stacks : sequence of Stack
    pixels : sequence of Pixels
        Of each stack.
    searched : Sample
        What the search saw.
    risk : float
        The share of frames that may break a limit.
    seed : int

    Raises
    ------
    UnsatisfiableError
        Where all options break a limit.
    """
    limits = goal.limits
    names = tuple(dict.fromkeys((*REPORTED, *(c.metric for c in limits))))
    count = units_for(risk)
    held = held_back(stacks, searched, count, seed)
    # Frames that are too small to tell a bias are judged together.
    several = max(1, _BATCH_NBYTES // stacks[0].frame_nbytes)
    batches = [held[start : start + several] for start in range(0, len(held), several)]
    miss = ""
    for look, option in enumerate(options):
        if not option.steps:  # what keeps every pixel needs no frames to prove it
            return option, Promise(len(held), look + 1, 1.0, 0.0, risk, {str(c): "by construction" for c in limits})
        found: list[Mapping[str, NDArray[np.float64]]] = []
        for batch in batches:
            found.append(_compare(option, batch, stacks, pixels, names))
            if (breach := broken(found[-1], limits)) is not None:
                miss = f"{breach} in frames {', '.join(f'{frame}' for _, frame in batch[:3])}..."
                break
        else:
            confidence = 1 - (1 - CONFIDENCE) / 2**look
            merged = {name: np.concatenate([f[name] for f in found]) for name in (found[0] if found else ())}
            promise = Promise(
                units=len(held),
                looks=look + 1,
                confidence=confidence,
                bound=upper_bound(len(held), confidence),
                risk=risk,
                limits={str(c): _how(c, option, searched, pixels[0]) for c in limits},
                worst=worst(merged),
                population=f"frames of these {len(stacks)} files" if len(stacks) > 1 else "frames of this scan",
            )
            return option, promise
    raise UnsatisfiableError(f"no step keeps the limits on frames that were held back: {miss}")


def _compare(
    option: Option,
    batch: Sequence[tuple[int, int]],
    stacks: Sequence[Stack],
    pixels: Sequence[Pixels],
    names: Sequence[str],
) -> dict[str, NDArray[np.float64]]:
    """Each quality of some frames, told by stack and number."""
    original, after, valid, still = [], [], [], []
    for index, frame in batch:
        about = pixels[index]
        original.append(stacks[index].read(frame, frame + 1))
        after.append(prepare(option.steps, original[-1], about))
        valid.append(about.valid(original[-1]))
        still.append(about.valid(after[-1]))
    return compare(
        np.concatenate(original),
        np.concatenate(after),
        np.concatenate(valid),
        pixels[0].noise,
        names,
        still_valid=np.concatenate(still),
    )


def held_back(stacks: Sequence[Stack], searched: Sample, count: int, seed: int) -> list[tuple[int, int]]:
    """Stacks and numbers of frames that the search has not seen, drawn at random, in order; `count` at most.

    Only data frames whose chunks were written; none within a guard of a frame of the sample.
    """
    free = list(_free(stacks, searched))
    drawn = np.random.default_rng([seed, 1]).permutation(len(free))[:count]
    return [free[index] for index in np.sort(drawn)]


def _free(stacks: Sequence[Stack], searched: Sample) -> Iterator[tuple[int, int]]:
    for index, stack in enumerate(stacks):
        free = np.ones(len(stack), np.bool_)
        stored = stack.source.stored_bytes()
        if stored is not None:
            free &= stored > 0
        if stack.kinds is not None:
            free &= stack.kinds == Kind.DATA
        for run in searched.runs:
            if run.stack == index:
                free[max(0, run.start - _GUARD) : run.start + len(run.frames) + _GUARD] = False
        yield from ((index, int(frame)) for frame in np.flatnonzero(free))


def _how(limit: Constraint, option: Option, searched: Sample, pixels: Pixels) -> str:
    """Whether a limit holds by construction, for every value that the dtype has; wide ones have too many to ask."""
    if limit.metric not in ("max_abs_error", "max_error_sigma") or limit.op != "<=":
        return "by sample"
    dtype = searched.dtype
    if dtype.kind == "f" or dtype.itemsize > 2:
        return "by sample"
    values = np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype)
    values = values[pixels.marks.valid(values)]
    bound = sum(step.bound(values, pixels.noise) for step in option.steps)
    if limit.metric == "max_error_sigma":
        assert pixels.noise is not None  # a step was judged by it
        bound = bound / np.sqrt(np.maximum(pixels.noise.variance(values), 1e-300))
    return "by construction" if float(np.max(bound)) <= limit.limit else "by sample"
