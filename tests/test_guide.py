"""A guide asks for each configuration once, takes the promising first, and learns from what was measured."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import synthetic_log as world

from tuner.config import Blosc2, Config
from tuner.evaluation import Evaluation
from tuner.goal import Constraint, Goal, Judge
from tuner.search import guide as definition
from tuner.search.guide import Guide
from tuner.search.surrogate import FEATURE_WEIGHTS, TARGETS, Data, Surrogate, config_features

SMALL = Goal(("ratio",), (Constraint.parse("encode_mb_s >= 500"),))


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    return Surrogate.fit(world.log(12))


@pytest.fixture(scope="module")
def measured() -> dict[Config, Evaluation]:
    """What measuring all configurations of data that the surrogate never saw would give."""
    return {e.config: e for e in world.evaluations("new", 0.9, 1.2) if e.config is not None}


def guide_of(surrogate: Surrogate, measured: dict[Config, Evaluation], seed: int = 0, every: int = 1) -> Guide:
    data = Data(world.SHAPE, np.dtype(world.DTYPE), next(iter(measured.values())).traits)
    configs = list(measured)[::every]
    access = {"frame_read_mb_s": np.full(len(configs), math.log(0.5))}
    return Guide(surrogate, configs, data, world.REFERENCE_MB_S, 4 << 20, access, seed)


def walk(
    guide: Guide, measured: dict[Config, Evaluation], goal: Goal, count: int, at_once: int = 1
) -> list[Evaluation]:
    seen: list[Evaluation] = []
    while len(seen) < count:
        picks, _ = guide.propose(Judge(goal, {}), seen, at_once)
        if not picks:
            break
        for config in picks:
            seen.append(measured[config])
            guide.learn(measured[config])
    return seen


@pytest.mark.parametrize("at_once", [1, 7])
def test_all_are_proposed_once_and_then_none(
    surrogate: Surrogate, measured: dict[Config, Evaluation], at_once: int
) -> None:
    guide = guide_of(surrogate, measured, every=5)
    seen = walk(guide, measured, SMALL, 10**6, at_once)
    assert len(seen) == len(guide.configs)
    assert {e.config for e in seen} == set(guide.configs)
    assert guide.propose(Judge(SMALL, {}), seen, 3) == ([], 0.0)


def test_failures_are_proposed_once_too(surrogate: Surrogate, measured: dict[Config, Evaluation]) -> None:
    failed = {config: Evaluation(config, failure="refused") for config in measured}
    guide = guide_of(surrogate, measured)
    seen = walk(guide, failed, SMALL, 10**6, 16)
    assert {e.config for e in seen} == set(measured)
    assert len(seen) == len(measured)


def test_the_shortlist_never_hides_what_is_left(
    surrogate: Surrogate, measured: dict[Config, Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definition, "_SHORTLIST", 5)
    monkeypatch.setattr(definition, "_HIGHEST", 1)
    guide = guide_of(surrogate, measured, every=5)
    assert len(walk(guide, measured, SMALL, 10**6)) == len(guide.configs)


def test_twins_by_their_features_are_picked_once(surrogate: Surrogate, measured: dict[Config, Evaluation]) -> None:
    chains = (("shuffle", "bytedelta"), ("bytedelta", "shuffle"))
    one, other = (Config((1, *world.SHAPE), Blosc2("zstd", clevel=1, filters=chain, typesize=2)) for chain in chains)
    guide = guide_of(surrogate, {config: next(iter(measured.values())) for config in (one, other)})
    picks, _ = guide.propose(Judge(SMALL, {}), [], 5)
    assert sorted(picks, key=repr) == sorted([one, other], key=repr)


def test_the_seed_decides(surrogate: Surrogate, measured: dict[Config, Evaluation]) -> None:
    one, same = (walk(guide_of(surrogate, measured, seed=5), measured, SMALL, 12) for _ in range(2))
    assert one == same


def test_picks_of_a_round_are_unlike_each_other(surrogate: Surrogate, measured: dict[Config, Evaluation]) -> None:
    guide = guide_of(surrogate, measured)
    picks, _ = guide.propose(Judge(SMALL, {}), [], 8)
    data = Data(world.SHAPE, np.dtype(world.DTYPE), next(iter(measured.values())).traits)

    def nearest(configs: list[Config]) -> float:
        features = config_features(configs, data) * FEATURE_WEIGHTS
        apart = np.abs(features[:, None] - features[None]).sum(axis=2) + np.diag(np.full(len(configs), np.inf))
        return float(apart.min(axis=1).mean())

    mean, _ = guide.expected(np.arange(len(guide.configs)))
    sixteen_twins = [guide.configs[place] for place in np.argsort(-mean[:, 0])[:8]]
    assert nearest(picks) > nearest(sixteen_twins)


@pytest.mark.parametrize(
    "goal",
    [
        SMALL,
        Goal(("ratio", "encode_mb_s")),
        Goal(("encode_mb_s",), (Constraint.parse("ratio >= 3"),)),
        Goal(("frame_read_mb_s",), (Constraint.parse("ratio >= 0.95 * best"),)),
    ],
    ids=lambda goal: "-".join(goal.maximize),
)
def test_eight_measurements_come_near_the_best_of_all(
    surrogate: Surrogate, measured: dict[Config, Evaluation], goal: Goal
) -> None:
    judge = Judge(goal, {})
    best = judge.worth(judge.rank(measured.values())[0])
    seen = walk(guide_of(surrogate, measured), measured, goal, 8)
    limits = judge.bounds(measured.values())
    allowed = [e for e in judge.rank(seen) if all(v <= 0 for v in judge.violations(e, limits))]
    assert best - judge.worth(allowed[0]) < 0.05
    drawn = np.random.default_rng(1).choice(len(measured), 8, replace=False)
    random = judge.rank([list(measured.values())[place] for place in drawn])
    assert not random or judge.worth(allowed[0]) >= judge.worth(random[0])


def test_what_is_nearest_to_the_limit_is_tried_where_nothing_is_expected_to_meet_it(
    surrogate: Surrogate, measured: dict[Config, Evaluation]
) -> None:
    stored = Evaluation(
        Config((1, *world.SHAPE), Blosc2(clevel=0, filters=())), dict.fromkeys(TARGETS, 1e5) | {"ratio": 1.0}
    )
    goal = Goal(("ratio",), (Constraint.parse("encode_mb_s >= 9000"),))
    slowest_first = sorted(measured, key=lambda config: measured[config].metrics["encode_mb_s"])
    picks, likely = guide_of(surrogate, {c: measured[c] for c in slowest_first}).propose(Judge(goal, {}), [stored], 4)
    assert likely == 0.0
    assert set(picks) <= set(slowest_first[-len(slowest_first) // 4 :])


def test_what_is_sure_is_the_best_of_what_meets_a_limit_with_room(
    surrogate: Surrogate, measured: dict[Config, Evaluation]
) -> None:
    judge = Judge(SMALL, {})
    guide = guide_of(surrogate, measured)
    seen = walk(guide, measured, SMALL, 4)
    sure = guide.surest(judge, seen, math.log(1.2), None)
    assert sure is not None
    assert measured[sure].metrics["encode_mb_s"] > 1.1 * 500
    with_room = [e.metrics["ratio"] for e in measured.values() if e.metrics["encode_mb_s"] > 1.4 * 500]
    assert measured[sure].metrics["ratio"] > 0.8 * max(with_room)
    for evaluation in measured.values():
        guide.learn(evaluation)
    assert guide.surest(judge, seen, 0.0, None) is None


def test_it_says_when_nothing_better_is_likely(surrogate: Surrogate, measured: dict[Config, Evaluation]) -> None:
    judge = Judge(SMALL, {})
    guide = guide_of(surrogate, measured)
    assert guide.propose(judge, [], 1)[1] == 1.0
    seen = walk(guide, measured, SMALL, 40, 4)
    assert judge.worth(judge.rank(seen)[0]) == judge.worth(judge.rank(measured.values())[0])
    assert guide.propose(judge, seen, 1)[1] < 0.3


def test_before_measuring_it_expects_what_the_surrogate_guesses(
    surrogate: Surrogate, measured: dict[Config, Evaluation]
) -> None:
    guide = guide_of(surrogate, measured)
    data = Data(world.SHAPE, np.dtype(world.DTYPE), next(iter(measured.values())).traits)
    mean, std = surrogate.predict(guide.configs, data)
    expected, spread = guide.expected(np.arange(len(guide.configs)))
    np.testing.assert_allclose(expected, mean + np.log([1, world.REFERENCE_MB_S, world.REFERENCE_MB_S]))
    np.testing.assert_allclose(spread, std)


def test_guesses_that_hold_are_trusted_more_and_those_that_do_not_less(
    surrogate: Surrogate, measured: dict[Config, Evaluation]
) -> None:
    every = np.arange(len(measured))
    spreads = []
    for misses in (0.0, 4.0):  # standard deviations, to either side in turn
        guide = guide_of(surrogate, measured)
        mean, std = guide.expected(every)
        for place in range(0, 40, 4):
            side = 1 if place % 8 else -1
            logs = mean[place] + side * misses * std[place]
            metrics = dict(zip(TARGETS, np.exp(logs), strict=True))
            evaluation = measured[guide.configs[place]]
            guide.learn(replace(evaluation, metrics={**evaluation.metrics, **metrics}))
        spreads.append(guide.expected(every)[1][41:])
    assert (spreads[0] < std[41:]).all()
    assert (spreads[1] > 2 * spreads[0]).all()


def test_a_measurement_moves_those_that_are_alike_most(
    surrogate: Surrogate, measured: dict[Config, Evaluation]
) -> None:
    guide = guide_of(surrogate, measured)
    every = np.arange(len(guide.configs))
    before, wide = guide.expected(every)
    first = guide.configs[0]
    better = {name: value * 1.5 for name, value in measured[first].metrics.items()}
    guide.learn(replace(measured[first], metrics=better))
    after, narrow = guide.expected(every)
    surprise = math.log(better["ratio"]) - before[0, 0]
    moved = (after - before)[:, 0] / surprise / (wide[:, 0] / wide[0, 0])
    data = Data(world.SHAPE, np.dtype(world.DTYPE), measured[first].traits)
    features = config_features(guide.configs, data) * FEATURE_WEIGHTS
    order = np.argsort(np.abs(features - features[0]).sum(axis=1))
    assert moved[0] > 0.9
    assert (np.diff(moved[order]) <= 1e-9).all()
    assert moved.min() > 0.2
    assert (narrow / wide)[0, 0] == (narrow / wide)[:, 0].min()


def test_it_expects_what_the_formula_of_a_gaussian_process_says(
    surrogate: Surrogate, measured: dict[Config, Evaluation]
) -> None:
    guide = guide_of(surrogate, measured, every=30)
    data = Data(world.SHAPE, np.dtype(world.DTYPE), next(iter(measured.values())).traits)
    prior, std = guide.expected(np.arange(len(guide.configs)))
    seen = [1, 4, 6]
    for place in seen:
        guide.learn(measured[guide.configs[place]])
    mean, spread = guide.expected(np.arange(len(guide.configs)))
    features = config_features(guide.configs, data) * FEATURE_WEIGHTS
    common, noises = definition._COMMON, (definition._RATIO_NOISE, definition._ALONE_NOISE, definition._ALONE_NOISE)
    for target, name in enumerate(TARGETS):
        size = len(guide.configs)
        kernel = np.empty((size, size))
        for i in range(size):
            for j in range(size):
                alike = math.exp(-sum(abs(features[i] - features[j])))
                kernel[i, j] = std[i, target] * std[j, target] * (common + (1 - common) * alike)
        inverse = np.linalg.inv(kernel[np.ix_(seen, seen)] + noises[target] ** 2 * np.eye(len(seen)))
        missed = [math.log(measured[guide.configs[p]].metrics[name]) - prior[p, target] for p in seen]
        across = kernel[:, seen]
        np.testing.assert_allclose(mean[:, target], prior[:, target] + across @ inverse @ missed, rtol=1e-6)
        variance = np.diag(kernel) - np.einsum("ij,jk,ik->i", across, inverse, across)
        variance *= (definition._TRUST + missed @ inverse @ missed) / (definition._TRUST + len(seen))
        np.testing.assert_allclose(spread[:, target], np.sqrt(np.maximum(variance, 1e-8)), rtol=1e-4)
