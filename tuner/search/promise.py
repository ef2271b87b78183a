"""The promise: what a profile's limits on quality are worth for frames that nobody has looked at."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import UnsatisfiableError
from tuner.goal import Constraint, Goal, broken
from tuner.measure.analyses import analyse, breach, scans_of
from tuner.quality import compare, worst
from tuner.search.lossy import BOUNDED, REPORTED, Option
from tuner.search.parts import Parts, Unit
from tuner.stack import Stack
from tuner.steps import Pixels, prepare

#: The confidence that an upper bound holds with, for the first candidate that is judged.
CONFIDENCE = 0.95
#: The share of frames that may break a limit, if a profile is to be more than provisional.
RISK = 0.05
#: Of fewer units nothing is said of a tail; which begins above this quantile.
_LEAST_FOR_TAIL, _TAIL = 20, 0.8
#: Frames are compared so many bytes at a time.
_BATCH_NBYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Promise:
    """What frames that were held back said of the limits on quality."""

    units: int
    """Frames that were judged, none of which the search had seen; or tiles of an only frame."""
    looks: int
    """How many candidates were judged on them; each look lowers the error that the next may have."""
    confidence: float
    """What the bound holds with: ``1 - 0.05 / 2**k`` for the k-th candidate after the first."""
    bound: float
    """Upper bound of the share of frames that break a limit (Clopper and Pearson 1934); 1 where tiles were judged."""
    risk: float
    """The share that was asked for."""
    limits: Mapping[str, str] = field(default_factory=dict)
    """Each limit on quality, and whether it holds by construction or by sample."""
    worst: Mapping[str, float] = field(default_factory=dict)
    """Each quality of the worst frame that was judged."""
    population: str = ""
    """What the frames stand for."""
    analyses: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Each number that an analysis answered of them, with the ends of its interval."""

    @property
    def provisional(self) -> bool:
        """Whether too few frames were judged for the risk."""
        return self.bound > self.risk

    def to_dict(self) -> dict[str, Any]:
        """All fields, as YAML has them."""
        return {**asdict(self), "provisional": self.provisional}


def upper_bound(units: int, confidence: float, found: int = 0) -> float:
    """Upper Clopper-Pearson bound of a share of which some, or nothing, was found in so many units.

    >>> round(upper_bound(59, 0.95), 4), upper_bound(0, 0.95), round(upper_bound(100, 0.95, 2), 4)
    (0.0495, 1.0, 0.0616)
    """
    if found >= units:
        return 1.0
    if not found:
        return float(1 - (1 - confidence) ** (1 / units))
    low, high = found / units, 1.0
    for _ in range(60):  # the share of which so few are found with the rest of the confidence
        share = (low + high) / 2
        few = sum(math.comb(units, k) * share**k * (1 - share) ** (units - k) for k in range(found + 1))
        low, high = (share, high) if few > 1 - confidence else (low, share)
    return high


def units_for(risk: float) -> int:
    """How many units without a violation it takes for that risk, with a confidence of 0.95.

    >>> units_for(0.05), units_for(0.01)
    (59, 299)
    """
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - risk))


def expected_worst(values: NDArray[np.float64], frames: int) -> float:
    """The largest value to expect among so many frames, from that of some; the largest of these where they are few.

    Excesses over the quantile of 0.8 are taken as exponential, with their mean: the generalised Pareto distribution of
    shape 0 (J. Pickands, Annals of Statistics 3, 119, 1975).

    >>> values = np.random.default_rng(0).exponential(1, 60)
    >>> round(float(values.max()), 1), round(expected_worst(values, 60 * 60), 1)
    (6.1, 8.7)
    """
    largest = float(values.max(initial=-math.inf))
    if len(values) < _LEAST_FOR_TAIL or frames <= len(values) or not np.isfinite(values).all():
        return largest
    threshold = float(np.quantile(values, _TAIL))
    excess = values[values > threshold] - threshold
    if not excess.size:
        return largest
    return max(largest, threshold + float(excess.mean()) * math.log(frames * excess.size / len(values)))


def hold(
    options: Sequence[Option],
    goal: Goal,
    stacks: Sequence[Stack],
    pixels: Sequence[Pixels],
    parts: Parts,
    risk: float,
) -> tuple[Option, Promise]:
    """The first option that keeps the limits on the select part, and on the test part; and what the latter is worth.

    Candidates come last of which some frame is to be expected beyond a limit, as the tail of the select part tells, and
    of these first the one that strays least. The test part is opened for one candidate, and for another only if that
    one fails: at a confidence that rises with every look.

    Parameters
    ----------
    options : sequence of Option
        The most promising first.
    goal : Goal
    stacks : sequence of Stack
    pixels : sequence of Pixels
        Of each stack.
    parts : Parts
        Of the data; the search has seen nothing but its part of them.
    risk : float
        The share of frames that may break a limit.

    Raises
    ------
    UnsatisfiableError
        Where all options break a limit.
    """
    limits = goal.limits
    names = tuple(dict.fromkeys((*REPORTED, *goal.qualities)))
    miss, looks, frames = "", 0, sum(map(len, stacks))
    waiting, strays = deque(options), list[tuple[float, Option]]()
    while waiting or strays:
        # Those that stray come last, but before pixels are kept.
        careful = bool(waiting) and (bool(waiting[0].steps) or not strays)
        if careful:
            option = waiting.popleft()
        else:
            nearest = min(strays, key=itemgetter(0))
            strays.remove(nearest)
            option = nearest[1]
        if not option.steps:  # what keeps every pixel needs no frames to prove it
            always = {str(c): "by construction" for c in (*limits, *goal.analysed)}
            return option, Promise(0, looks, 1.0, 0.0, risk, always, {}, parts.population)
        each, broke = _judge(option, limits, parts.select, stacks, pixels, names)
        if broke is None and careful and (beyond := _strays(each, limits, frames)) > 0:
            strays.append((beyond, option))
            continue
        analysed: Mapping[str, Sequence[float]] = {}
        if broke is None and parts.select:  # analyses take long: only what is cheap to ask comes so far
            _, broke = _analyse(option, goal, parts.select, stacks, pixels, sure=False)
        found: Mapping[str, float] = {}
        if broke is None:
            looks += 1
            each, broke = _judge(option, limits, parts.test, stacks, pixels, names)
            found = worst(each)
        if broke is None:
            analysed, broke = _analyse(option, goal, parts.test, stacks, pixels, sure=True)
        if broke is not None:
            miss = broke
            continue
        confidence = 1 - (1 - CONFIDENCE) / 2 ** (looks - 1)
        promise = Promise(
            units=len(parts.test),
            looks=looks,
            confidence=confidence,
            bound=upper_bound(len(parts.test) if parts.seen is None else 0, confidence),
            risk=risk,
            limits={str(c): _how(c, option, stacks[0].dtype, pixels[0]) for c in (*limits, *goal.analysed)},
            worst=found,
            population=parts.population,
            analyses=analysed,
        )
        return option, promise
    raise UnsatisfiableError(f"no step keeps the limits on frames that were held back: {miss}")


def _judge(
    option: Option,
    limits: Sequence[Constraint],
    units: Sequence[Unit],
    stacks: Sequence[Stack],
    pixels: Sequence[Pixels],
    names: Sequence[str],
) -> tuple[Mapping[str, NDArray[np.float64]], str | None]:
    """Each quality of each unit, and the first limit that is broken, in words."""
    # Units that are too small to tell a bias are judged together.
    several = max(1, _BATCH_NBYTES // stacks[0].frame_nbytes)
    found: list[Mapping[str, NDArray[np.float64]]] = []
    for start in range(0, len(units), several):
        batch = units[start : start + several]
        found.append(_compare(option, batch, stacks, pixels, names))
        if (broke := broken(found[-1], limits)) is not None:
            frames = ", ".join(dict.fromkeys(str(unit.frame) for unit in batch))
            return {}, f"{broke} in frames {frames if len(frames) < 20 else frames[:20] + '...'}"
    return {name: np.concatenate([each[name] for each in found]) for name in (found[0] if found else ())}, None


def _strays(each: Mapping[str, NDArray[np.float64]], limits: Sequence[Constraint], frames: int) -> float:
    """How far beyond a limit one of all frames is to be expected, as a share of the limit; 0 where none is.

    What steps bound for single pixels is not asked: there is no tail.
    """
    beyond = 0.0
    for limit in limits:
        if limit.metric not in each or limit.metric in BOUNDED:
            continue
        sign = 1 if limit.op == "<=" else -1
        excess = expected_worst(sign * each[limit.metric], frames) - sign * limit.limit
        beyond = max(beyond, excess / (abs(limit.limit) or 1.0))
    return beyond


def _analyse(
    option: Option,
    goal: Goal,
    units: Sequence[Unit],
    stacks: Sequence[Stack],
    pixels: Sequence[Pixels],
    *,
    sure: bool,
) -> tuple[dict[str, list[float]], str | None]:
    """What the goal's analyses answer of the frames of some units, and the first limit that is broken, in words.

    A limit must hold at the far end of the interval, where it is to be `sure`: few frames have wide ones. Where no
    frames are held back they are of those that there are.
    """
    if not goal.analyses:
        return {}, None
    frames = {unit.stack: [other.frame for other in units if other.stack == unit.stack] for unit in units}
    found = analyse(goal, scans_of(stacks, pixels, option.steps, frames or None))
    numbers = {name: (value, *found.spread[name]) for name, value in found.metrics.items()}
    finite = {name: [float(f"{v:.5g}") for v in each] for name, each in numbers.items() if np.isfinite(each).all()}
    return finite, breach(goal, found if sure else replace(found, spread={}))


def _compare(
    option: Option,
    batch: Sequence[Unit],
    stacks: Sequence[Stack],
    pixels: Sequence[Pixels],
    names: Sequence[str],
) -> dict[str, NDArray[np.float64]]:
    """Each quality of some units."""
    original, after, valid, still = [], [], [], []
    for unit in batch:
        about, place = pixels[unit.stack], (slice(None), *unit.place)
        frame = stacks[unit.stack].read(unit.frame, unit.frame + 1)
        stepped = prepare(option.steps, frame, about)
        original.append(frame[place])
        after.append(stepped[place])
        valid.append(about.valid(frame)[place])
        still.append(about.valid(stepped)[place])
    return compare(
        np.concatenate(original),
        np.concatenate(after),
        np.concatenate(valid),
        pixels[0].noise,
        names,
        still_valid=np.concatenate(still),
    )


def _how(limit: Constraint, option: Option, dtype: np.dtype[Any], pixels: Pixels) -> str:
    """Whether a limit holds by construction, for every value that the dtype has; wide ones have too many to ask."""
    if limit.metric not in BOUNDED or limit.op != "<=":
        return "by sample"
    # Of several steps, each has a bound of what the one before left.
    if dtype.kind == "f" or dtype.itemsize > 2 or len(option.steps) > 1:
        return "by sample"
    values = np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype)
    values = values[pixels.marks.valid(values)]
    bound = sum(step.bound(values, pixels.noise) for step in option.steps)
    if limit.metric == "max_error_sigma":
        assert pixels.noise is not None  # a step was judged by it
        bound = bound / np.sqrt(np.maximum(pixels.noise.variance(values), 1e-300))
    return "by construction" if float(np.max(bound)) <= limit.limit else "by sample"
