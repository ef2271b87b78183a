"""What is proposed: every configuration once, within the space, and told to whoever watches."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy.pool import NullPool

from tuner.config import Blosc2, Config
from tuner.errors import InputError, TunerWarning
from tuner.evaluation import Evaluation
from tuner.goal import Goal, goal_of
from tuner.search import optimize
from tuner.search.optimize import Proposer
from tuner.space import Space, load_space

FRAME, DTYPE, RUN = (1024, 1024), np.dtype("uint16"), 4


def canonical(config: Config) -> Config:
    return config.resolve(FRAME, DTYPE)


def bound(name: str) -> Space:
    return load_space(name).bind(FRAME, DTYPE, RUN)


def proposer(space: Space, goal: Goal | None = None, seed: int = 0, **storage: str) -> Proposer:
    return Proposer(space, canonical, goal or Goal(("ratio", "encode_mb_s")), seed, **storage)


def measured(config: Config) -> Evaluation:
    """What a made-up codec does: each choice is worth something, and they trade off."""
    blosc2 = config.blosc2
    strength = blosc2.clevel * (2 if blosc2.codec == "zstd" else 1) + 3 * ("shuffle" in blosc2.filters)
    return Evaluation(config, {"ratio": 1.0 + 0.1 * strength, "encode_mb_s": 3000.0 / (1 + strength)})


def explore(
    proposes: Proposer, most: int, front: bool = True, evaluate: Callable[[Config], Evaluation] = measured
) -> list[Config]:
    """Ask and tell until nothing is left, or often enough."""
    asked: list[Evaluation] = []
    while len(asked) < most:
        best = sorted((e for e in asked if e.failure is None), key=lambda e: -e.metrics["ratio"])[:4] if front else []
        config = proposes.ask([e.config for e in best if e.config])
        if config is None:
            break
        evaluation = evaluate(config)
        asked.append(evaluation)
        proposes.tell(evaluation, [])
    return [e.config for e in asked if e.config]


@pytest.mark.parametrize("front", [False, True])
def test_a_space_is_exhausted_each_configuration_exactly_once(front: bool) -> None:
    space = bound("quick")
    proposes = proposer(space)
    asked = explore(proposes, 10_000, front)
    stored = [canonical(config) for config in asked]
    assert len(set(stored)) == len(stored)
    assert set(stored) == {canonical(config) for _, config in space.grid()}
    assert proposes.ask([]) is None
    assert proposes.ask(asked[:3]) is None


@pytest.mark.parametrize("name", ["portable", "compatible", "plugins"])
def test_what_is_asked_lies_in_the_space_and_never_stores_the_same_bytes(name: str) -> None:
    space = bound(name)
    asked = explore(proposer(space), 60)
    assert len(asked) == 60
    assert len({canonical(config) for config in asked}) == 60
    for config in asked:
        choices = space.locate(config)
        assert choices is not None
        assert space.at(choices) == config


def test_configurations_that_no_data_allows_are_never_proposed() -> None:
    """Of typesizes that do not divide the chunk only the others are asked for; no time is lost on the rest."""
    space = Space.from_dict({"chunks": [1, 3, 3], "blosc2": {"typesize": {"choose": [1, 2, 3, 4, 6, 8]}}})
    shape, dtype = (3, 3), np.dtype("uint16")
    proposes = Proposer(space.bind(shape, dtype, 1), lambda c: c.resolve(shape, dtype), Goal(("ratio",)), 0)
    asked = explore(proposes, 100, evaluate=lambda config: Evaluation(config, {"ratio": 1.0}))
    assert sorted(config.blosc2.typesize for config in asked) == [1, 2, 3, 6]


def test_a_space_without_holes_has_one_configuration() -> None:
    space = Space.from_dict({"blosc2": {"codec": "zstd", "clevel": 3}}).bind(FRAME, DTYPE, RUN)
    asked = explore(proposer(space), 10)
    assert [config.blosc2.codec for config in asked] == ["zstd"]


def test_only_what_the_space_holds_can_be_claimed_and_once() -> None:
    space = bound("quick")
    proposes = proposer(space)
    _, first = next(iter(space.grid()))
    assert proposes.claim(first)
    assert not proposes.claim(first)
    assert not proposes.claim(Config((1, -1, -1), Blosc2("zlib", clevel=4, typesize=2)))
    assert not proposes.claim(Config((1, -1), Blosc2("lz4", clevel=1, typesize=2)))
    asked = proposes.ask([])
    assert asked is not None
    assert not proposes.claim(asked)
    proposes.tell(measured(first), [])
    assert canonical(first) not in {canonical(config) for config in explore(proposes, 10_000)}


@pytest.mark.parametrize("front", [False, True])
def test_the_same_seed_and_values_give_the_same_proposals(front: bool) -> None:
    def sequence(seed: int) -> list[Config]:
        proposes = proposer(bound("portable"), seed=seed)
        proposes.asking = -1e9  # whether Optuna can be afforded depends on the clock; here it always can
        return explore(proposes, 40, front)

    assert sequence(0) == sequence(0)
    assert sequence(0) != sequence(1)


def test_where_asking_optuna_took_too_long_neighbours_of_the_front_are_proposed_for_nothing() -> None:
    space = bound("portable")
    proposes = proposer(space)
    front = proposes.ask([])
    assert front is not None
    proposes.tell(measured(front), [])
    proposes.asking = 1e9
    chosen = space.locate(front)
    assert chosen is not None
    for _ in range(20):
        neighbour = proposes.ask([front])
        assert neighbour is not None
        choices = space.locate(neighbour)
        assert choices is not None
        # At most three choices differ, beside those that only another branch has.
        assert sum(choices[name] != chosen[name] for name in choices if name in chosen) <= 3
        proposes.tell(measured(neighbour), [])
    assert proposes.asking - 1e9 < 1.0


def test_proposals_learn() -> None:
    """One in 2,000 of a space is best; 80 proposals at random find such in one search of 27, ours in most."""
    space = bound("portable")
    wanted = Blosc2("zstd", clevel=9, filters=("shuffle", "bytedelta"), splitmode="always", blocksize=1 << 20)

    def ratio(config: Config) -> float:
        names = ("codec", "filters", "splitmode", "blocksize")
        return config.blosc2.clevel / 9 + sum(getattr(config.blosc2, n) == getattr(wanted, n) for n in names)

    found = 0
    for seed in range(8):
        proposes = proposer(space, Goal(("ratio",)), seed)
        proposes.asking = -1e9
        asked = explore(proposes, 80, evaluate=lambda config: Evaluation(config, {"ratio": ratio(config)}))
        found += max(map(ratio, asked)) == ratio(replace(asked[0], blosc2=wanted))
    assert found >= 3


# What Optuna gets to see


def load(url: str) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": NullPool})
    (summary,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=summary.study_name, storage=storage).trials


def test_the_mirror_holds_every_trial_with_its_constraints(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    goal = goal_of(None, ["ratio", "encode_mb_s"], ["ratio >= 2", "encode_mb_s >= 500"])
    space = bound("quick")
    proposes = proposer(space, goal, storage=storage, name="scan")
    told: list[tuple[Evaluation, list[float]]] = []
    for violations in ([-0.5, 0.25], [0.0, float("inf")], [], [1.0, -1.0]):
        config = proposes.ask([])
        assert config is not None
        failed = not violations
        evaluation = Evaluation(config, failure="does not decode to the same pixels") if failed else measured(config)
        told.append((evaluation, violations))
        proposes.tell(evaluation, violations or [float("inf")] * 2)
    for trial, (evaluation, violations) in zip(load(storage), told, strict=True):
        assert evaluation.config is not None
        assert trial.params == space.locate(evaluation.config)
        if evaluation.failure is not None:
            assert trial.state is TrialState.FAIL
            assert trial.user_attrs == {"failure": evaluation.failure}
            continue
        assert trial.state is TrialState.COMPLETE
        assert trial.values == [evaluation.metrics["ratio"], evaluation.metrics["encode_mb_s"]]
        assert trial.user_attrs == evaluation.metrics
        constraints = {str(c): min(v, 1e9) for c, v in zip(goal.require, violations, strict=True)}
        assert trial.constraints == constraints


def test_two_runs_share_a_database(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    for _ in range(2):
        explore(proposer(bound("quick"), storage=storage, name="scan"), 3)
    assert len(load(storage)) == 6


def test_runs_that_make_a_database_at_once_share_it(tmp_path: Path) -> None:
    for turn in range(3):
        storage = f"sqlite:///{tmp_path}/study{turn}.db"
        together = threading.Barrier(4)

        def start(name: str, storage: str = storage, together: threading.Barrier = together) -> None:
            together.wait()
            optimize._mirror(storage, name, [optuna.study.StudyDirection.MAXIMIZE])

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(start, "abcd"))
        database = optuna.storages.RDBStorage(storage, engine_kwargs={"poolclass": NullPool})
        assert sorted(study.study_name for study in database.get_all_studies()) == list("abcd")


def test_a_failed_evaluation_is_no_end() -> None:
    def fails(config: Config) -> Evaluation:
        return Evaluation(config, failure="no") if config.blosc2.codec == "lz4" else measured(config)

    asked = explore(proposer(bound("quick")), 10_000, evaluate=fails)
    assert {config.blosc2.codec for config in asked} == {"lz4", "zstd"}


@pytest.mark.parametrize("storage", ["nonsense", "sqlite:////no/such/folder/study.db", "mysql://nobody@nowhere/x"])
def test_a_storage_that_cannot_be_written_to_is_refused_in_one_line(storage: str) -> None:
    with pytest.raises(InputError, match=r"^--storage must be the URL of a database") as refused:
        proposer(bound("quick"), storage=storage, name="scan")
    assert "\n" not in str(refused.value)


def test_a_database_that_fails_stops_no_search(tmp_path: Path) -> None:
    proposes = proposer(bound("quick"), storage=f"sqlite:///{tmp_path}/study.db", name="scan")
    warned: list[Any] = []
    for breaks in (False, True, True):
        config = proposes.ask([])
        assert config is not None
        if breaks:
            (tmp_path / "study.db").write_bytes(b"junk" * 4096)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            proposes.tell(measured(config), [])
        warned += [w for w in caught if issubclass(w.category, TunerWarning)]
    assert len(warned) == 1
    assert "--storage: failed, trials are no longer copied" in str(warned[0].message)


def test_optuna_says_nothing(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    verbosity = optuna.logging.get_verbosity()
    explore(proposer(bound("quick")), 20)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert optuna.logging.get_verbosity() == verbosity
