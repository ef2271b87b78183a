"""Optuna, in one file: what to measure next."""

from __future__ import annotations

import random
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.pool import NullPool

from tuner.choices import Choices
from tuner.config import Config
from tuner.errors import InputError, TunerWarning
from tuner.evaluation import Evaluation
from tuner.goal import Goal
from tuner.space import Space

#: Proposals that nothing new came of before the space is walked through in order instead.
_PATIENCE = 30
#: The share of the run's time that asking Optuna may take; beyond it, neighbours of the front are proposed for nothing.
_ASK_SHARE = 0.08
#: Seconds to wait after each try to open a database.
_PAUSES = (0.1, 0.5, 0.0)


class Proposer:
    """Proposes configurations of a space, each once, and learns from their evaluations.

    Those that a guide put in come first. Of the rest, half come from Optuna's TPE, multivariate and grouped by the
    space's branches; the other half change a choice or two of a configuration on the front, which is free and where
    most improvements lie. While asking has taken more than 8 % of the run's time, only such neighbours are proposed:
    what is proposed depends on the clock, so a seed alone does not repeat a run.

    Parameters
    ----------
    space : Space
        Bound to the data.
    canonical : callable
        A configuration to the one that stores the same bytes, the same for all that do; InputError where not allowed.
    goal : Goal
    seed : int
    storage : str, optional
        URL of an Optuna storage that mirrors every trial.
    name : str
        The study's name there.
    """

    def __init__(
        self,
        space: Space,
        canonical: Callable[[Config], Config],
        goal: Goal,
        seed: int,
        storage: str | None = None,
        name: str = "",
    ) -> None:
        self._space = space
        self._canonical = canonical
        self._goal = goal
        self._random = random.Random(seed)
        with _quiet():
            self._sampler = GuidedSampler(seed)
            directions = [optuna.study.StudyDirection.MAXIMIZE] * len(goal.maximize)
            self._study = optuna.create_study(directions=directions, sampler=self._sampler)
            self._mirror = _mirror(storage, name, directions) if storage else None
        self._asked: dict[Config, tuple[Choices, dict[str, BaseDistribution]]] = {}
        self._seen: set[Config] = set()
        self._walk: Iterator[tuple[Choices, Config]] | None = None
        self._turn = 0
        self._started = time.perf_counter()
        self.asking = 0.0
        """Seconds that asking and telling took."""

    def ask(self, front: Sequence[Config]) -> Config | None:
        """A configuration that was not proposed before; None once the space has no other.

        Parameters
        ----------
        front : sequence of Config
            Those that are the best so far, the best first.
        """
        start = time.perf_counter()
        try:
            for _ in range(_PATIENCE if self._walk is None else 0):
                config = self._propose(front)
                if config is not None and self._is_new(config):
                    return config
            self._walk = self._walk or self._space.grid()
            for choices, config in self._walk:
                if self._is_new(config):
                    self._asked[config] = (choices, _distributions(self._space, choices))
                    return config
            return None
        finally:
            self.asking += time.perf_counter() - start

    def put(self, configs: Sequence[Config]) -> None:
        """Configurations of the space that the next asks are to propose, in this order."""
        start = time.perf_counter()
        self._sampler.queue.extend(choices for config in configs if (choices := self._space.locate(config)))
        self.asking += time.perf_counter() - start

    def claim(self, config: Config) -> bool:
        """Take a configuration of the space as proposed; False where the space does not hold it or it was before."""
        choices = self._space.locate(config)
        if choices is None or not self._is_new(config):
            return False
        self._asked[config] = (choices, _distributions(self._space, choices))
        return True

    def tell(self, evaluation: Evaluation, violations: Sequence[float]) -> None:
        """Learn from the evaluation of a configuration that was proposed or claimed.

        Parameters
        ----------
        evaluation : Evaluation
        violations : sequence of float
            For each requirement how far it is from being met; at most 0 where it is.
        """
        start = time.perf_counter()
        assert evaluation.config is not None
        choices, distributions = self._asked.pop(evaluation.config)
        values = [evaluation.metrics.get(name) for name in self._goal.maximize]
        complete = evaluation.failure is None and None not in values
        trial = create_trial(
            state=TrialState.COMPLETE if complete else TrialState.FAIL,
            values=[value for value in values if value is not None] if complete else None,
            params=dict(choices),
            distributions=distributions,
            user_attrs={"failure": evaluation.failure} if evaluation.failure else dict(evaluation.metrics),
            constraints={
                str(constraint): min(violation, 1e9)  # Optuna takes no infinity into a database
                for constraint, violation in zip(self._goal.require, violations, strict=True)
            }
            if complete
            else None,
        )
        with _quiet():
            self._study.add_trial(trial)
            self._add_to_mirror(trial)
        self.asking += time.perf_counter() - start

    def _add_to_mirror(self, trial: FrozenTrial) -> None:
        """Copy a trial; a database that fails is left alone from then on, as the search does not need it."""
        if self._mirror is None:
            return
        try:
            self._mirror.add_trial(trial)
        except Exception as error:  # every database has exceptions of its own
            self._mirror = None
            reason = str(error).partition("\n")[0]
            warnings.warn(f"--storage: failed, trials are no longer copied: {reason}", TunerWarning, stacklevel=2)

    def _is_new(self, config: Config) -> bool:
        try:
            canonical = self._canonical(config)
        except InputError:
            return False
        new = canonical not in self._seen
        self._seen.add(canonical)
        return new

    def _propose(self, front: Sequence[Config]) -> Config | None:
        self._turn += 1
        if self._sampler.queue:
            return self._ask_optuna()
        affordable = self.asking <= _ASK_SHARE * (time.perf_counter() - self._started)
        if front and (self._turn % 2 or not affordable):
            # The square favours the first of the front, around its knee, and leaves none out.
            return self._neighbour(front[int(len(front) * self._random.random() ** 2)])
        return self._ask_optuna()

    def _ask_optuna(self) -> Config | None:
        with _quiet():
            trial = self._study.ask()
            chooser = TrialChooser(trial)
            try:
                config = self._space.suggest(chooser)
            except InputError:
                self._study.tell(trial, state=TrialState.FAIL)
                return None
            # The finished trial that `tell` adds takes its place.
            self._study.tell(trial, state=TrialState.FAIL)
        self._asked.setdefault(config, (trial.params, trial.distributions))
        return config

    def _neighbour(self, config: Config) -> Config | None:
        choices = self._space.locate(config)
        if not choices:
            return self._ask_optuna()
        names = list(choices)
        changed = self._random.sample(names, k=min(len(names), self._random.choice((1, 1, 2, 3))))
        chooser = MutatingChooser(choices, changed, self._random)
        try:
            neighbour = self._space.suggest(chooser)
        except InputError:
            return None
        self._asked.setdefault(neighbour, (chooser.choices, chooser.distributions))
        return neighbour


class GuidedSampler(optuna.samplers.BaseSampler):
    """Optuna's TPE, but that trials take what is queued first.

    Parameters
    ----------
    seed : int, optional
    startup : int
        Trials that are drawn at random before TPE begins to model.
    group : bool
        Model each branch of a conditional space by itself.
    """

    def __init__(self, seed: int | None = None, startup: int = 8, group: bool = True) -> None:
        self.queue: deque[Mapping[str, Any]] = deque()
        """Parameters by name that the next trials are to take, each a trial; one that a trial lacks is sampled."""
        self._taken: dict[int, Mapping[str, Any]] = {}
        with _quiet():
            self._tpe = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=group, n_startup_trials=startup)

    def reseed_rng(self) -> None:
        """Draw otherwise than before, as a forked worker must."""
        self._tpe.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What TPE samples together; nothing for a trial that takes what is queued."""
        if self.queue:
            self._taken[trial.number] = self.queue.popleft()
            return {}
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """TPE's proposal; nothing for a trial that takes what is queued."""
        if trial.number in self._taken:
            return {}
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The queued value where there is one that the distribution holds, else TPE's."""
        taken = self._taken.get(trial.number, {})
        with suppress(ValueError):  # a choice that the distribution does not have
            if param_name in taken and param_distribution._contains(
                param_distribution.to_internal_repr(taken[param_name])
            ):
                return taken[param_name]
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """As TPE."""
        self._tpe.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As TPE; what was queued for the trial is forgotten."""
        self._taken.pop(trial.number, None)
        self._tpe.after_trial(study, trial, state, values)


class TrialChooser:
    """A chooser that asks an Optuna trial."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def choose(self, name: str, labels: tuple[str, ...]) -> str:
        return str(self._trial.suggest_categorical(name, labels))

    def number(self, name: str, low: int, high: int) -> int:
        return self._trial.suggest_int(name, low, high)


class MutatingChooser:
    """A chooser that keeps to given choices but for a few names, and notes what Optuna needs to know of a trial."""

    def __init__(self, choices: Choices, changed: Sequence[str], random: random.Random) -> None:
        self._given = choices
        self._changed = changed
        self._random = random
        self.choices: Choices = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def choose(self, name: str, labels: tuple[str, ...]) -> str:
        given = self._given.get(name)
        others = [label for label in labels if label != given]
        keep = given in labels and (name not in self._changed or not others)
        label = str(given) if keep else self._random.choice(others or list(labels))
        self.choices[name] = label
        self.distributions[name] = CategoricalDistribution(labels)
        return label

    def number(self, name: str, low: int, high: int) -> int:
        given = self._given.get(name)
        keep = isinstance(given, int) and name not in self._changed
        number = int(given) if keep and given is not None else self._random.randint(low, high)
        self.choices[name] = number
        self.distributions[name] = IntDistribution(low, high)
        return number


def _distributions(space: Space, choices: Choices) -> dict[str, BaseDistribution]:
    chooser = MutatingChooser(choices, (), random.Random(0))
    space.suggest(chooser)
    return chooser.distributions


def _mirror(storage: str, name: str, directions: Sequence[optuna.study.StudyDirection]) -> optuna.Study:
    """The study in a storage of the user's, to which the search's trials are copied."""
    reason = ""
    for pause in _PAUSES:  # of searches that make the same database at once, Optuna lets all but one fail
        try:
            # Without a pool nothing stays open between two trials: nobody has to close the database.
            database = optuna.storages.RDBStorage(storage, engine_kwargs={"poolclass": NullPool})
            return optuna.create_study(storage=database, study_name=name, directions=directions, load_if_exists=True)
        except Exception as error:  # every database has exceptions of its own
            reason = str(error).partition("\n")[0]
            time.sleep(pause)
    raise InputError(f"--storage must be the URL of a database that Optuna can write to: {reason}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's progress, and without its warning that `group` is experimental."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
