"""Goal: what is better, and what is allowed."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.analysis import analysis_from_dict, analysis_to_dict
from tuner.document import (
    OneOf,
    check_list,
    check_mapping,
    check_schema,
    check_str,
    join,
    kind_of,
    suggest,
)
from tuner.errors import InputError
from tuner.evaluation import ANALYSED, METRICS, OBJECTIVES, Evaluation, Metric
from tuner.quality import worst
from tuner.space import shipped

#: The version of a goal's document.
SCHEMA = 1

#: What users have today, measured on the same sample in the same run.
BASELINES = ("none", "gzip", "bslz4", "blosc2", "zstd")

_CONSTRAINT = re.compile(
    r"\s*(?P<metric>[\w.]+)\s*(?P<op>>=|<=)\s*(?:(?P<limit>[-+]?[\d.]+(?:e[-+]?\d+)?)\s*(?:\*\s*(?P<name>\w+))?|(?P<alone>[a-z]\w*))\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Constraint:
    """A requirement: METRIC >= LIMIT or METRIC <= LIMIT."""

    metric: str
    """One of `METRICS`, or ``analysis.figure``."""
    op: str
    """``>=`` or ``<=``."""
    limit: float
    """A number, or a factor where `name` is given."""
    name: str | None = None
    """A baseline, or `best`: the limit is `limit` times its value of the same metric."""

    @classmethod
    def parse(cls, text: Any, place: str = "requirement") -> Constraint:
        """Read ``ratio >= 2`` or ``encode_mb_s >= 0.5 * bslz4``.

        >>> Constraint.parse("ratio >= 1.0 * bslz4")
        Constraint(metric='ratio', op='>=', limit=1.0, name='bslz4')

        Raises
        ------
        InputError
            Where the text is not a requirement, or names no metric or no baseline.
        """
        match = _CONSTRAINT.fullmatch(check_str(text, place))
        if match is None:
            raise InputError(f"{place} must read METRIC >= LIMIT or METRIC <= LIMIT, got {kind_of(text)}")
        metric = match["metric"]
        if "." not in metric:
            OneOf(tuple(METRICS)).check(metric, place)
        name = match["name"] or match["alone"]
        known = (*BASELINES, "best")
        if name is not None and name not in known:
            raise InputError(f"{place} must name one of {' '.join(known)}, got {name!r}{suggest(name, known)}")
        try:
            limit = float(match["limit"] or 1.0)
        except ValueError:
            limit = math.nan
        if not math.isfinite(limit):
            raise InputError(f"{place} must have a finite number as limit, got {match['limit']!r}")
        if "." in metric and name is not None:
            raise InputError(f"{place} must have a number as limit of an analysis, got {name!r}")
        return cls(metric, match["op"], limit, name)

    @property
    def what(self) -> Metric:
        """What kind of number it limits."""
        return METRICS.get(self.metric, ANALYSED)

    def __str__(self) -> str:
        limit = f"{self.limit:g}"
        if float(limit) != self.limit:
            limit = repr(self.limit)
        return f"{self.metric} {self.op} {limit}{f' * {self.name}' if self.name else ''}"

    def bound(self, reference: Mapping[str, Evaluation], best: Mapping[str, float]) -> float:
        """The limit as a number: NaN where what it refers to was not measured.

        Of a timed baseline the same end of the spread as of what is compared with it: a minute in which the machine is
        disturbed lowers both.

        Parameters
        ----------
        reference : mapping
            Baseline's name to its evaluation.
        best : mapping
            Metric to its best value so far.
        """
        if self.name is None:
            return self.limit
        if self.name == "best":
            return self.limit * best.get(self.metric, math.nan)
        return self.limit * self._end_of(reference[self.name]) if self.name in reference else math.nan

    def _end_of(self, evaluation: Evaluation) -> float:
        """What counts of a metric: the low end of its spread for ``>=``, the high end for ``<=``."""
        return evaluation.low(self.metric) if self.op == ">=" else evaluation.high(self.metric)

    def violation(self, evaluation: Evaluation, bound: float) -> float:
        """How far an evaluation is from meeting the limit, relative to it; at most 0 where it is met.

        Infinite where the metric was not measured, or what the limit refers to. A timed requirement holds when the low
        end of the spread does (the high end for ``<=``).
        """
        value = self._end_of(evaluation)
        if math.isnan(value) or math.isnan(bound):
            return math.inf
        missing: float = bound - value if self.op == ">=" else value - bound
        return missing / max(abs(bound), 1e-12)

    def missed(self, evaluation: Evaluation, bound: float) -> str:
        """What an evaluation has instead, in words: with the end of a spread that counts, and what the limit is of."""
        end = f"{'low' if self.op == '>=' else 'high'} end" if self.metric in evaluation.spread else ""
        got = f" ({end} {self._end_of(evaluation):.4g})" if end else ""
        named = f" ({self.limit:g} * {self.name}{f', {end}' if end else ''})" if self.name else ""
        value = evaluation.metrics.get(self.metric, math.nan)
        return f"{self.metric} {value:.4g}{got} must be {self.op} {bound:.4g}{named}"


@dataclass(frozen=True, slots=True)
class Goal:
    """What is better, and what is allowed."""

    maximize: tuple[str, ...]
    """Metrics, each better when larger."""
    require: tuple[Constraint, ...] = ()
    """What a configuration must meet."""
    name: str = ""
    """How tables call it."""
    analyses: tuple[Any, ...] = ()
    """What is compared before and after; each an `Analysis`."""

    def __post_init__(self) -> None:
        if not self.maximize:
            raise InputError("maximize must name at least one metric, got none")
        if len(set(self.maximize)) != len(self.maximize):
            raise InputError(f"maximize must name each metric once, got {list(self.maximize)}")
        self._check_consistent()
        self._check_analyses()

    def _check_analyses(self) -> None:
        known = {analysis.name: analysis for analysis in self.analyses}
        for constraint in self.analysed:
            name, _, figure = constraint.metric.partition(".")
            if name not in known:
                names = " ".join(known) or "but has none"
                raise InputError(f"require must name an analysis that the goal has, {names}, got '{constraint}'")
            if (figures := known[name].figures) and figure not in figures:
                hint = suggest(figure, figures)
                raise InputError(f"require must name one of {name}'s {' '.join(figures)}, got '{constraint}'{hint}")

    def _check_consistent(self) -> None:
        for lower in self.require:
            for upper in self.require:
                same = lower.metric == upper.metric and lower.name == upper.name
                if same and lower.op == ">=" and upper.op == "<=" and lower.limit > upper.limit:
                    raise InputError(f"require must not contradict itself, got '{lower}' and '{upper}'")
            if lower.name == "best" and lower.op == ">=" and lower.limit > 1:
                raise InputError(f"require must be possible, got '{lower}': nothing is better than the best")

    @property
    def timed(self) -> bool:
        """Whether any part of it needs a clock."""
        return any(METRICS[name].timed for name in self.maximize) or any(c.what.timed for c in self.require)

    @property
    def qualities(self) -> tuple[str, ...]:
        """The qualities that it requires."""
        return tuple(dict.fromkeys(limit.metric for limit in self.limits))

    @property
    def limits(self) -> tuple[Constraint, ...]:
        """What it requires of qualities."""
        return tuple(c for c in self.require if c.what.quality)

    @property
    def analysed(self) -> tuple[Constraint, ...]:
        """What it requires of analyses."""
        return tuple(c for c in self.require if c.what is ANALYSED)

    @property
    def without_analyses(self) -> Goal:
        """The same for what comes after steps, which changes no pixel and so no analysis."""
        return replace(self, require=tuple(c for c in self.require if c.what is not ANALYSED), analyses=())

    def to_dict(self) -> dict[str, Any]:
        """All fields, as YAML has them."""
        document = {"name": self.name, "maximize": list(self.maximize), "require": [str(c) for c in self.require]}
        if not self.analyses:
            return document
        return {**document, "analyses": {analysis.name: analysis_to_dict(analysis) for analysis in self.analyses}}

    @classmethod
    def from_dict(cls, document: Any, place: str = "") -> Goal:
        """The inverse of `to_dict`.

        >>> goal = Goal.from_dict({"maximize": ["ratio"], "require": ["encode_mb_s >= 500"]})
        >>> Goal.from_dict(goal.to_dict()) == goal
        True
        >>> Goal.from_dict({"maximize": ["ratio"], "require": ["ratio >= 3", "ratio <= 2"]}, "my.yaml:")
        Traceback (most recent call last):
        tuner.errors.InputError: my.yaml: require must not contradict itself, got 'ratio >= 3' and 'ratio <= 2'

        Raises
        ------
        InputError
            With the place in the document; also where the requirements contradict each other.
        """
        check_mapping(document, place, ("schema", "name", "maximize", "require", "analyses"), required=("maximize",))
        check_schema(document, place, SCHEMA)
        where = join(place, "maximize")
        listed = check_list(document["maximize"], where)
        maximize = [OneOf(OBJECTIVES).check(name, join(where, i)) for i, name in enumerate(listed)]
        where = join(place, "require")
        listed = check_list(document.get("require", []), where)
        require = [Constraint.parse(text, join(where, i)) for i, text in enumerate(listed)]
        name = check_str(document.get("name", ""), join(place, "name"))
        where = join(place, "analyses")
        named = check_mapping(document.get("analyses", {}), where)
        analyses = [analysis_from_dict(key, value, join(where, key)) for key, value in named.items()]
        try:
            return cls(tuple(maximize), tuple(require), name, tuple(analyses))
        except InputError as error:
            raise InputError(join(place, str(error))) from None


@dataclass(frozen=True, slots=True)
class Judge:
    """A goal with the numbers that its limits refer to, ready to rank evaluations."""

    goal: Goal
    """What is better, and what is allowed."""
    reference: Mapping[str, Evaluation]
    """Baseline name to its evaluation."""

    def bounds(self, evaluations: Iterable[Evaluation]) -> tuple[float, ...]:
        """The limit of each requirement as a number.

        `best` is that of the evaluations that meet the other requirements, the low end of its spread where timed: so
        the best itself always meets ``>= 1 * best``.
        """
        absolute = [c.bound(self.reference, {}) for c in self.goal.require]
        if not any(c.name == "best" for c in self.goal.require):
            return tuple(absolute)
        others = [(c, b) for c, b in zip(self.goal.require, absolute, strict=True) if c.name != "best"]
        allowed = [e for e in evaluations if e.failure is None and all(c.violation(e, b) <= 0 for c, b in others)]
        best = {
            c.metric: max((e.low(c.metric) for e in allowed if c.metric in e.metrics), default=math.nan)
            for c in self.goal.require
            if c.name == "best"
        }
        return tuple(c.bound(self.reference, best) for c in self.goal.require)

    def violations(self, evaluation: Evaluation, bounds: Sequence[float]) -> tuple[float, ...]:
        """For each requirement how far it is from being met; at most 0 where it is."""
        return tuple(c.violation(evaluation, b) for c, b in zip(self.goal.require, bounds, strict=True))

    def feasible(self, evaluations: Iterable[Evaluation]) -> list[Evaluation]:
        """Those that meet every requirement and have every objective."""
        evaluations = [e for e in evaluations if e.failure is None and all(m in e.metrics for m in self.goal.maximize)]
        bounds = self.bounds(evaluations)
        return [e for e in evaluations if all(v <= 0 for v in self.violations(e, bounds))]

    def front(self, evaluations: Iterable[Evaluation]) -> list[Evaluation]:
        """The feasible ones that no other is better than in every objective, best in the first objective first."""
        feasible = self.feasible(evaluations)
        feasible.sort(key=self._values, reverse=True)
        front: list[Evaluation] = []
        for evaluation in feasible:
            values = self._values(evaluation)
            if not any(all(f >= v for f, v in zip(self._values(other), values, strict=True)) for other in front):
                front.append(evaluation)
        return front

    def rank(self, evaluations: Iterable[Evaluation], prefer: str | None = None) -> list[Evaluation]:
        """The feasible ones, the one to take first.

        By the metric that `prefer` names, then by all in their order; else by their `worth`: the first is the front's
        knee, where its slope passes the rate at which the objectives are worth each other.
        """
        # Sorting keeps the order of equals: what another is better than never comes before it.
        feasible = sorted(self.feasible(evaluations), key=self._values, reverse=True)
        if prefer is not None:
            return sorted(feasible, key=lambda e: e.metrics[prefer], reverse=True)
        return sorted(feasible, key=self.worth, reverse=True)

    def worth(self, evaluation: Evaluation, prefer: str | None = None) -> float:
        """What the objectives are worth: the sum of their logarithms by their `weight`; or that of `prefer` alone."""
        values = zip(self.goal.maximize, self._values(evaluation), strict=True)
        return float(self.worth_of_logs({name: math.log(max(value, 1e-12)) for name, value in values}, prefer))

    def worth_of_logs(self, logs: Mapping[str, Any], prefer: str | None = None) -> Any:
        """`worth` of objectives given as logarithms, numbers or arrays."""
        if prefer is not None:
            return logs[prefer]
        return sum(METRICS[name].weight * logs[name] for name in self.goal.maximize)

    def nearest(self, evaluations: Iterable[Evaluation]) -> tuple[Evaluation, str] | None:
        """The evaluation that misses the requirements by the least, and what it misses by how much."""
        evaluations = [e for e in evaluations if e.failure is None and e.metrics]
        if not evaluations:
            return None
        bounds = self.bounds(evaluations)
        nearest = min(evaluations, key=lambda e: max(self.violations(e, bounds), default=0.0))
        missed = [
            c.missed(nearest, b)
            for c, b, v in zip(self.goal.require, bounds, self.violations(nearest, bounds), strict=True)
            if v > 0
        ]
        return nearest, ", ".join(missed)

    def _values(self, evaluation: Evaluation) -> tuple[float, ...]:
        return tuple(evaluation.metrics[name] for name in self.goal.maximize)


def broken(found: Mapping[str, NDArray[np.float64]], limits: Sequence[Constraint]) -> str | None:
    """Which limit on quality the worst of some frames breaks, in words; none where all hold.

    That pixels which do not count stay as they were is always required.

    Parameters
    ----------
    found : mapping
        Quality to its value of each frame, as `compare` returns them; shape (n,).
    limits : sequence of Constraint
        On qualities.
    """
    values = worst(found)
    for limit in (Constraint("mask_violations", "<=", 0.0), *limits):
        if limit.metric not in values:
            return f"{limit} cannot be held without a noise model"
        got = values[limit.metric]
        if not (got <= limit.limit if limit.op == "<=" else got >= limit.limit):
            return f"{limit} is broken, got {got:.4g}"
    return None


def load_goal(name_or_path: str | os.PathLike[str]) -> Goal:
    """A shipped goal by its name, or a user's own by its path.

    >>> load_goal("archive").name
    'archive'

    Raises
    ------
    InputError
        Where there is no such goal, with the shipped ones; or with the place of a mistake in it.
    """
    document, place, name = shipped(name_or_path, "search_spaces/goals", "goal")
    return Goal.from_dict({"name": name, **document}, place)


def goal_of(goal: Goal | None, maximize: Sequence[str] = (), require: Sequence[str] = ()) -> Goal:
    """A goal with the command line's wishes: `maximize` replaces the objectives, `require` adds to the requirements."""
    added = tuple(Constraint.parse(text, "--require") for text in require)
    objectives = tuple(OneOf(OBJECTIVES).check(name, "--maximize") for name in maximize)
    if goal is None:
        return Goal(objectives, added, "given")
    return replace(goal, maximize=objectives or goal.maximize, require=(*goal.require, *added))
