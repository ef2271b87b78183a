"""The sampler keeps Optuna's own contract, and takes what is queued first."""

from __future__ import annotations

from collections.abc import Callable

import optuna
import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from tuner.search.optimize import GuidedSampler

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning", "ignore::UserWarning")


class TestOptunasContract(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    """The tests that Optuna exports for samplers."""

    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        return GuidedSampler


class TestOptunasContractOfRelativeSamplers(RelativeSamplerTestCase):
    """The tests that Optuna exports for samplers that draw all parameters together."""

    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        # Optuna's own TPE keeps this contract only without startup trials and groups.
        return lambda: GuidedSampler(0, startup=0, group=False)


def objective(trial: optuna.Trial) -> float:
    codec = trial.suggest_categorical("codec", ("lz4", "zstd"))
    return trial.suggest_int("level", 1, 9) + (codec == "zstd")


def test_what_is_queued_comes_first_and_in_its_order() -> None:
    sampler = GuidedSampler(0)
    study = optuna.create_study(sampler=sampler)
    wanted = [{"codec": "zstd", "level": level} for level in (3, 9, 1)]
    sampler.queue.extend(wanted)
    study.optimize(objective, n_trials=5)
    assert [trial.params for trial in study.trials[:3]] == wanted
    assert not sampler.queue


def test_what_the_space_does_not_hold_is_sampled_instead() -> None:
    sampler = GuidedSampler(0)
    sampler.queue.append({"codec": "lz5", "level": 12, "blocksize": 4})
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=1)
    assert study.trials[0].params["codec"] in ("lz4", "zstd")
    assert 1 <= study.trials[0].params["level"] <= 9


def test_without_a_queue_it_is_tpe() -> None:
    def trials(sampler: optuna.samplers.BaseSampler) -> list[dict[str, object]]:
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=20)
        return [trial.params for trial in study.trials]

    tpe = optuna.samplers.TPESampler(seed=3, multivariate=True, group=True, n_startup_trials=8)
    assert trials(GuidedSampler(3)) == trials(tpe)
