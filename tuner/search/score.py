"""How well a surrogate does on data that it never saw: what its picks cost, and whether its intervals hold."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tuner.config import Config
from tuner.errors import InputError
from tuner.evaluation import Evaluation
from tuner.goal import Goal, Judge, load_goal
from tuner.search.guide import Guide
from tuner.search.surrogate import (
    TARGETS,
    Data,
    Matrix,
    Surrogate,
    data_of,
    dataset_of,
    is_usable,
    logarithms,
)

#: The goals that picks are judged by.
GOALS = ("balanced", "archive", "acquire", "read")
#: So many configurations are measured, as `tuner predict` does.
PICKS = 8
#: Data of which fewer were measured tell no picks apart.
_LEAST_CONFIGS = 20
#: No pick counts for worse, as a logarithm: one bad log must not outweigh all others.
_WORST = 1.0
#: Parts that data sets are judged in, each by trees that learned from the others; and how many trees.
_FOLDS, _TREES = 4, 40
#: Parts for calibrating.
_HALVES = 2
#: A standard deviation is multiplied by no less and no more than this.
_WIDEN = (0.25, 8.0)
#: The share of a normal distribution within one standard deviation.
_ONE_SIGMA = 0.6827


@dataclass(frozen=True, slots=True)
class Case:
    """One sample of a data set, with the configurations of it that were measured."""

    dataset: str
    """Name of the data set."""
    digest: str
    """Of the sample."""
    data: Data
    """What a prediction of it starts from."""
    evaluations: tuple[Evaluation, ...]
    """Resolved configurations, each once."""
    baselines: Mapping[str, Evaluation]
    """Baseline name to its evaluation."""


@dataclass(slots=True)
class Score:
    """How a log's surrogate did, each data set judged by one that learned from the others."""

    regret: dict[str, dict[str, float]] = field(default_factory=lambda: {goal: {} for goal in GOALS})
    """Goal to the sample's digest to what the pick is worth less than the best, as a logarithm."""
    within: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Target to the shares of what was measured within one and two standard deviations of the guess."""


def cases_of(evaluations: Iterable[Evaluation]) -> list[Case]:
    """What picks can be judged by: data with baselines, of which many configurations were measured."""
    usable: dict[str, dict[Config, Evaluation]] = defaultdict(dict)
    baselines: dict[str, dict[str, Evaluation]] = defaultdict(dict)
    for evaluation in evaluations:
        if evaluation.config is None:
            baselines[str(evaluation.origin.get("data"))][str(evaluation.origin.get("baseline"))] = evaluation
        elif is_usable(evaluation):
            data = data_of(evaluation)
            config = evaluation.config.resolve(data.frame_shape, data.dtype)
            usable[evaluation.origin["data"]][config] = replace(evaluation, config=config)
    return [
        Case(dataset_of(first), digest, data_of(first), tuple(of_data.values()), baselines[digest])
        for digest, of_data in sorted(usable.items())
        if len(of_data) >= _LEAST_CONFIGS and digest in baselines
        for first in itertools.islice(of_data.values(), 1)
    ]


def score(logs: Sequence[Sequence[Evaluation]], cases: Sequence[Case], jobs: int = -1) -> list[Score]:
    """Score of the surrogate of each log; where a log is too small for one, of picks at random.

    All are judged on the same cases, and none by a surrogate that learned from their data set.
    """
    goals = [load_goal(name) for name in GOALS]
    names = sorted({case.dataset for case in cases})
    fold_of = dict(zip(names, np.random.default_rng(0).permutation(len(names)) % _FOLDS, strict=True))
    scores = [Score() for _ in logs]
    for log, result in zip(logs, scores, strict=True):
        usable = [e for e in log if is_usable(e)]
        widen = widening(usable, jobs)
        missed: list[tuple[str, Matrix]] = []
        for fold in sorted(set(fold_of.values())):
            judged = [case for case in cases if fold_of[case.dataset] == fold]
            surrogate = _fitted_without(usable, {case.dataset for case in judged}, jobs)
            if surrogate is not None:
                surrogate = surrogate.calibrated(widen)
                missed += [(case.dataset, _standardised(surrogate, case.evaluations)) for case in judged]
            for case, goal in itertools.product(judged, goals):
                if not math.isnan(worth_less := regret(surrogate, case, goal)):
                    result.regret[goal.name][case.digest] = worth_less
        if missed:
            result.within = {
                target: (_share(missed, index, 1.0), _share(missed, index, 2.0)) for index, target in enumerate(TARGETS)
            }
    return scores


def regret(surrogate: Surrogate | None, case: Case, goal: Goal) -> float:
    """What the best of `PICKS` measurements that a surrogate asks for is worth less than the best of all measured.

    A logarithm, in units of the goal's first objectives as `Judge.worth` adds them. By how much a pick misses a
    requirement counts too. At most 1; NaN where nothing that was measured meets the goal. Without a surrogate the picks
    are random ones.
    """
    needed = {*goal.maximize, *(c.metric for c in goal.require)}
    evaluations = [e for e in case.evaluations if needed <= set(e.metrics)]
    judge = Judge(goal, case.baselines)
    ranked = judge.rank(evaluations)
    if not ranked:
        return math.nan
    seen = _picked(surrogate, case.data, evaluations, judge)
    among = judge.rank(seen)
    nearest = judge.nearest(seen)
    assert nearest is not None
    pick = among[0] if among else nearest[0]
    short = sum(max(0.0, v) for v in judge.violations(pick, judge.bounds(evaluations)))
    return min(_WORST, max(0.0, judge.worth(ranked[0]) - judge.worth(pick)) + short)


def widening(usable: Sequence[Evaluation], jobs: int = -1) -> Matrix:
    """By what each target's standard deviation is to be multiplied so that it holds for data that was never seen.

    Each half of the data sets is guessed by trees that learned from the other. 1 where usable evaluations are too few.
    """
    names = sorted({dataset_of(e) for e in usable})
    half_of = dict(zip(names, np.random.default_rng(1).permutation(len(names)) % _HALVES, strict=True))
    missed: list[tuple[str, Matrix]] = []
    for half in range(_HALVES):
        judged = {name for name in names if half_of[name] == half}
        surrogate = _fitted_without(usable, judged, jobs)
        if surrogate is None:
            return np.ones(len(TARGETS))
        for _, of_data in _by_data(e for e in usable if dataset_of(e) in judged):
            missed.append((dataset_of(of_data[0]), _standardised(surrogate, of_data)))
    sizes = np.array([len(z) for _, z in missed])
    weights = np.repeat(1 / sizes, sizes)
    z = np.abs(np.concatenate([z for _, z in missed]))
    widen = []
    for column in z.T:
        order = np.argsort(column)
        share = np.cumsum(weights[order]) / weights.sum()
        widen.append(column[order][min(np.searchsorted(share, _ONE_SIGMA), len(order) - 1)])
    clipped: Matrix = np.clip(np.array(widen), *_WIDEN)
    return clipped


def _fitted_without(usable: Sequence[Evaluation], datasets: Collection[str], jobs: int) -> Surrogate | None:
    """A surrogate that learned from no evaluation of some data sets, nor of their data under another name."""
    digests = {e.origin["data"] for e in usable if dataset_of(e) in datasets}
    try:
        left = [e for e in usable if dataset_of(e) not in datasets and e.origin["data"] not in digests]
        return Surrogate.fit_usable(left, jobs=jobs, trees=_TREES)
    except InputError:
        return None


def _picked(
    surrogate: Surrogate | None, data: Data, evaluations: Sequence[Evaluation], judge: Judge
) -> list[Evaluation]:
    if surrogate is None:
        order = np.random.default_rng(0).permutation(len(evaluations))
        return [evaluations[index] for index in order[:PICKS]]
    of_config = {e.config: e for e in evaluations}
    # How much more is decoded than is read follows from the chunks alone.
    access = {
        name: np.array([math.log(e.metrics[name] / e.metrics["decode_mb_s"]) for e in evaluations])
        for name in ("frame_read_mb_s", "sinogram_read_mb_s")
        if all(e.metrics.get(name, 0.0) > 0 for e in evaluations)
    }
    reference = float(np.median([e.origin["reference_mb_s"] for e in evaluations]))
    guide = Guide(
        surrogate,
        [e.config for e in evaluations if e.config],
        data,
        reference,
        int(evaluations[0].origin["nbytes"]),
        access,
    )
    seen: list[Evaluation] = []
    while len(seen) < PICKS:
        picks, _ = guide.propose(judge, seen, 1)
        if not picks:
            break
        seen.append(of_config[picks[0]])
        guide.learn(seen[-1])
    return seen


def _by_data(evaluations: Iterable[Evaluation]) -> Iterable[tuple[str, list[Evaluation]]]:
    of_data: dict[str, list[Evaluation]] = defaultdict(list)
    for evaluation in evaluations:
        of_data[evaluation.origin["data"]].append(evaluation)
    return of_data.items()


def _standardised(surrogate: Surrogate, evaluations: Sequence[Evaluation]) -> Matrix:
    """By how many standard deviations guesses missed what was measured, shape (evaluations, targets)."""
    mean, std = surrogate.predict([e.config for e in evaluations if e.config], data_of(evaluations[0]))
    z: Matrix = (logarithms(evaluations) - mean) / np.maximum(std, 1e-9)
    return z


def _share(missed: Sequence[tuple[str, Matrix]], target: int, within: float) -> float:
    """The share within so many standard deviations, every case weighing the same."""
    return float(np.mean([np.mean(np.abs(z[:, target]) <= within) for _, z in missed]))
