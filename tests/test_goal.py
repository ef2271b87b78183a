"""A goal ranks what was measured: nothing on its front is dominated, and nothing off it is better."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from refusal import refusal

from tuner.document import dump_yaml, parse_yaml
from tuner.errors import InputError
from tuner.evaluation import METRICS, OBJECTIVES, Evaluation
from tuner.goal import BASELINES, Constraint, Goal, Judge, goal_of

finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.none() | st.sampled_from([*BASELINES, "best"])
constraints = st.builds(
    Constraint,
    metric=st.sampled_from(list(METRICS)),
    op=st.sampled_from([">=", "<="]),
    limit=finite,
    name=names,
)
objectives = st.lists(st.sampled_from(OBJECTIVES), min_size=1, max_size=3, unique=True).map(tuple)


@st.composite
def goals(draw: st.DrawFn) -> Goal:
    """Every goal that does not contradict itself."""
    wishes = draw(st.lists(constraints, max_size=3))
    try:
        return Goal(draw(objectives), tuple(wishes), draw(st.text("abc 1.:", max_size=5)))
    except InputError:
        assume(False)
        raise


#: Few values, so that many evaluations tie.
values = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0]) | st.floats(1e-3, 1e5)


@st.composite
def evaluations(draw: st.DrawFn) -> Evaluation:
    if draw(st.integers(0, 9)) == 0:
        return Evaluation(None, failure="crashed")
    metrics = draw(st.fixed_dictionaries({"ratio": values, "encode_mb_s": values, "decode_mb_s": values}))
    part = draw(st.sampled_from([0.0, 0.1]))
    spread = {name: (v * (1 - part), v * (1 + part)) for name, v in metrics.items() if METRICS[name].timed}
    return Evaluation(None, metrics, spread)


measured = st.lists(evaluations(), max_size=8)
judges = st.builds(
    Judge,
    st.builds(
        Goal,
        st.lists(st.sampled_from(["ratio", "encode_mb_s", "decode_mb_s"]), min_size=1, max_size=3, unique=True).map(
            tuple
        ),
        st.lists(
            st.sampled_from(
                [
                    "ratio >= 1.0 * bslz4",
                    "encode_mb_s >= 1",
                    "ratio >= 0.9 * best",
                    "decode_mb_s >= 1 * best",
                    "ratio <= 9",
                ]
            ),
            max_size=2,
        ).map(lambda texts: tuple(Constraint.parse(text) for text in texts)),
    ),
    st.dictionaries(st.sampled_from(BASELINES), evaluations().filter(lambda e: e.failure is None)).map(
        lambda reference: {"bslz4": Evaluation(None, {"ratio": 1.0}), **reference}
    ),
)


def refused(document: Any) -> str:
    """The one line that refuses a goal's document."""
    return refusal(lambda: Goal.from_dict(document, "my.yaml:"), "my.yaml")


def columns(judge: Judge, evaluation: Evaluation) -> list[float]:
    return [evaluation.metrics[name] for name in judge.goal.maximize]


@given(goals())
@example(Goal(("ratio",), (Constraint("ratio", ">=", 0.1234567890123), Constraint("ratio", ">=", 1e-07, "bslz4"))))
@example(Goal(("ratio",), (Constraint("encode_mb_s", "<=", 1.7976931348623157e308),)))
def test_from_dict_is_the_inverse_of_to_dict(goal: Goal) -> None:
    assert Goal.from_dict(goal.to_dict()) == goal
    assert Goal.from_dict(parse_yaml(dump_yaml(goal.to_dict()), "")) == goal


@given(goals())
def test_repr_is_the_constructor_call(goal: Goal) -> None:
    assert eval(repr(goal)) == goal


@given(constraints)
def test_a_requirement_reads_what_it_prints(constraint: Constraint) -> None:
    assert Constraint.parse(str(constraint)) == constraint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ratio>=2", Constraint("ratio", ">=", 2.0)),
        ("  ratio  >=  2.5  ", Constraint("ratio", ">=", 2.5)),
        ("encode_mb_s >= 1e3", Constraint("encode_mb_s", ">=", 1000.0)),
        ("ratio >= .5*best", Constraint("ratio", ">=", 0.5, "best")),
        ("ratio >= bslz4", Constraint("ratio", ">=", 1.0, "bslz4")),
        ("decode_mb_s <= -1 * zstd", Constraint("decode_mb_s", "<=", -1.0, "zstd")),
    ],
)
def test_requirements_are_read(text: str, expected: Constraint) -> None:
    assert Constraint.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "--require must read METRIC >= LIMIT or METRIC <= LIMIT, got ''"),
        ("ratio", "--require must read METRIC >= LIMIT or METRIC <= LIMIT, got 'ratio'"),
        ("ratio > 2", "--require must read METRIC >= LIMIT or METRIC <= LIMIT, got 'ratio > 2'"),
        ("ratio >= 2 3", "--require must read METRIC >= LIMIT"),
        ("ratio >= 2 * 3", "--require must name one of none gzip bslz4 blosc2 zstd best, got '3'"),
        ("2 <= ratio", "--require must be one of ratio"),
        ("ratios >= 2", "--require must be one of ratio encode_mb_s decode_mb_s"),
        (
            "ratio >= 2 * bslz5",
            "--require must name one of none gzip bslz4 blosc2 zstd best, got 'bslz5' (did you mean",
        ),
        ("ratio >= nan", "--require must name one of none gzip bslz4 blosc2 zstd best, got 'nan'"),
        ("ratio >= 1.2.3", "--require must have a finite number as limit, got '1.2.3'"),
        ("ratio >= 1e999", "--require must have a finite number as limit, got '1e999'"),
        ("ratio >= 2\nratio >= 3", "--require must read METRIC >= LIMIT"),
        (2, "--require must be a text, got 2"),
        (None, "--require must be a text, got nothing"),
        (True, "--require must be a text, got True"),
    ],
)
def test_what_is_no_requirement_is_refused(text: Any, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        Constraint.parse(text, "--require")
    assert str(caught.value).startswith(expected)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, "my.yaml: maximize must be given"),
        ([], "my.yaml must be a mapping, got []"),
        ({"maximize": []}, "my.yaml: maximize must name at least one metric, got none"),
        ({"maximize": "ratio"}, "my.yaml: maximize must be a list, got 'ratio'"),
        ({"maximize": ["ratio", "ratio"]}, "my.yaml: maximize must name each metric once, got ['ratio', 'ratio']"),
        ({"maximize": ["ratio", "rati"]}, "my.yaml: maximize[1] must be one of ratio encode_mb_s"),
        ({"maximize": [1]}, "my.yaml: maximize[0] must be one of ratio"),
        ({"maximize": ["ratio"], "require": None}, "my.yaml: require must be a list, got nothing"),
        ({"maximize": ["ratio"], "require": "ratio >= 2"}, "my.yaml: require must be a list, got 'ratio >= 2'"),
        ({"maximize": ["ratio"], "require": ["ratio >= 2", "x"]}, "my.yaml: require[1] must read METRIC >= LIMIT"),
        ({"maximize": ["ratio"], "name": 5}, "my.yaml: name must be a text, got 5"),
        ({"maximize": ["ratio"], "schema": 2}, "my.yaml: schema must be at most 1, got 2: a newer tuner wrote it"),
        ({"maximise": ["ratio"]}, "my.yaml: maximise is not a known key (did you mean 'maximize'?)"),
        (
            {"maximize": ["ratio"], "require": ["ratio >= 3", "ratio <= 2"]},
            "my.yaml: require must not contradict itself, got 'ratio >= 3' and 'ratio <= 2'",
        ),
        (
            {"maximize": ["ratio"], "require": ["ratio <= 0.5 * bslz4", "ratio >= 0.6 * bslz4"]},
            "my.yaml: require must not contradict itself, got 'ratio >= 0.6 * bslz4' and 'ratio <= 0.5 * bslz4'",
        ),
        (
            {"maximize": ["ratio"], "require": ["ratio >= 1.1 * best"]},
            "my.yaml: require must be possible, got 'ratio >= 1.1 * best': nothing is better than the best",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(document: Any, expected: str) -> None:
    assert refused(document).startswith(expected)


def test_requirements_that_are_added_may_not_contradict_the_goal() -> None:
    goal = Goal(("ratio",), (Constraint.parse("ratio >= 3"),))
    with pytest.raises(InputError, match="'ratio >= 3' and 'ratio <= 2'"):
        goal_of(goal, require=["ratio <= 2"])
    with pytest.raises(InputError, match="'ratio >= 3' and 'ratio <= 2'"):
        goal_of(None, ["encode_mb_s"], ["ratio >= 3", "ratio <= 2"])
    assert len(goal_of(goal, require=["ratio <= 3"]).require) == 2


def test_maximize_replaces_and_require_adds() -> None:
    goal = Goal(("ratio",), (Constraint.parse("ratio >= 3"),), "mine")
    assert goal_of(goal) == goal
    changed = goal_of(goal, ["encode_mb_s", "ratio"], ["decode_mb_s >= 5"])
    assert changed.maximize == ("encode_mb_s", "ratio")
    assert [str(constraint) for constraint in changed.require] == ["ratio >= 3", "decode_mb_s >= 5"]
    with pytest.raises(InputError, match=r"^--maximize must be one of ratio"):
        goal_of(goal, ["size"])


@given(judges, measured)
def test_every_feasible_one_is_on_the_front_or_no_better_than_one_of_it(
    judge: Judge, evaluated: list[Evaluation]
) -> None:
    front, feasible = judge.front(evaluated), judge.feasible(evaluated)
    assert all(member in feasible for member in front)
    for member in front:
        for other in feasible:
            no_worse = all(o >= m for o, m in zip(columns(judge, other), columns(judge, member), strict=True))
            assert not no_worse or columns(judge, other) == columns(judge, member)
    for other in feasible:
        assert any(
            all(m >= o for m, o in zip(columns(judge, member), columns(judge, other), strict=True)) for member in front
        )
    firsts = [columns(judge, member)[0] for member in front]
    assert firsts == sorted(firsts, reverse=True)


@given(judges, measured, st.data())
def test_the_one_to_take_first_is_on_the_front(judge: Judge, evaluated: list[Evaluation], data: st.DataObject) -> None:
    front, feasible = judge.front(evaluated), judge.feasible(evaluated)
    prefer = data.draw(st.none() | st.sampled_from(judge.goal.maximize))
    ranked = judge.rank(evaluated, prefer)
    assert len(ranked) == len(feasible)
    assert all(evaluation in feasible for evaluation in ranked)
    if not feasible:
        return
    assert columns(judge, ranked[0]) in [columns(judge, member) for member in front]
    if prefer:
        assert ranked[0].metrics[prefer] == max(evaluation.metrics[prefer] for evaluation in feasible)


def test_twice_the_speed_is_worth_a_tenth_more_ratio() -> None:
    judge = Judge(Goal(("ratio", "encode_mb_s")), {})
    slow = Evaluation(None, {"ratio": 2.2, "encode_mb_s": 500.0})
    assert judge.rank([Evaluation(None, {"ratio": 2.01, "encode_mb_s": 1000.0}), slow])[0] is not slow
    assert judge.rank([Evaluation(None, {"ratio": 1.99, "encode_mb_s": 1000.0}), slow])[0] is slow


@given(judges, measured)
def test_the_order_of_evaluations_does_not_matter(judge: Judge, evaluated: list[Evaluation]) -> None:
    def front_of(some: list[Evaluation]) -> list[list[float]]:
        return [columns(judge, member) for member in judge.front(some)]

    assert front_of(evaluated) == front_of(evaluated[::-1])


@given(judges, measured)
def test_what_fails_is_never_taken(judge: Judge, evaluated: list[Evaluation]) -> None:
    assert all(evaluation.failure is None for evaluation in judge.rank(evaluated))
    nearest = judge.nearest(evaluated)
    assert (nearest is None) == all(evaluation.failure is not None for evaluation in evaluated)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=8))
def test_the_best_meets_the_requirement_of_the_best(pairs: list[tuple[float, float]]) -> None:
    goal = Goal(("ratio",), (Constraint.parse("encode_mb_s >= 1 * best"),))
    evaluated = [
        Evaluation(None, {"ratio": ratio, "encode_mb_s": speed}, {"encode_mb_s": (0.9 * speed, 1.1 * speed)})
        for ratio, speed in pairs
    ]
    speeds = [evaluation.metrics["encode_mb_s"] for evaluation in Judge(goal, {}).feasible(evaluated)]
    assert speeds
    assert set(speeds) == {max(speed for _, speed in pairs)}


def test_best_is_of_those_that_meet_the_other_requirements() -> None:
    goal = Goal(("encode_mb_s",), (Constraint.parse("ratio >= 0.95 * best"), Constraint.parse("encode_mb_s >= 100")))
    slow = Evaluation(None, {"ratio": 9.0, "encode_mb_s": 1.0})
    small = Evaluation(None, {"ratio": 2.0, "encode_mb_s": 100.0})
    fast = Evaluation(None, {"ratio": 1.91, "encode_mb_s": 900.0})
    large = Evaluation(None, {"ratio": 1.89, "encode_mb_s": 999.0})
    judge = Judge(goal, {})
    assert judge.bounds([slow, small, fast, large]) == (0.95 * 2.0, 100.0)
    assert judge.front([slow, small, fast, large]) == [fast]


@given(st.floats(1, 1e4), st.floats(0, 0.5), st.floats(1, 1e4))
def test_a_timed_requirement_holds_when_the_low_end_of_the_spread_does(speed: float, part: float, limit: float) -> None:
    low, high = speed * (1 - part), speed * (1 + part)
    evaluation = Evaluation(None, {"ratio": 1.0, "encode_mb_s": speed}, {"encode_mb_s": (low, high)})
    for op, holds in ((">=", low >= limit), ("<=", high <= limit)):
        judge = Judge(Goal(("ratio",), (Constraint("encode_mb_s", op, limit),)), {})
        assert bool(judge.feasible([evaluation])) == holds
        (violation,) = judge.violations(evaluation, judge.bounds([evaluation]))
        assert (violation <= 0) == holds


def test_what_a_requirement_refers_to_must_have_been_measured() -> None:
    constraint = Constraint.parse("ratio >= 1 * gzip")
    assert math.isnan(constraint.bound({}, {}))
    assert math.isnan(constraint.bound({"gzip": Evaluation(None, failure="none here")}, {}))
    assert Judge(Goal(("ratio",), (constraint,)), {}).feasible([Evaluation(None, {"ratio": 9.0})]) == []


def test_a_metric_that_was_not_measured_meets_nothing() -> None:
    goal = Goal(("ratio",), (Constraint.parse("sinogram_read_mb_s >= 1"),))
    evaluation = Evaluation(None, {"ratio": 2.0})
    assert Judge(goal, {}).feasible([evaluation]) == []
    assert Judge(goal, {}).violations(evaluation, [1.0]) == (math.inf,)
    assert Judge(Goal(("sinogram_read_mb_s",)), {}).front([evaluation]) == []


def test_the_nearest_says_what_it_misses_by_how_much() -> None:
    goal = Goal(("ratio",), (Constraint.parse("ratio >= 4"), Constraint.parse("encode_mb_s >= 100")))
    near = Evaluation(None, {"ratio": 3.9, "encode_mb_s": 105.0}, {"encode_mb_s": (99.0, 110.0)})
    far = Evaluation(None, {"ratio": 2.0, "encode_mb_s": 500.0})
    nearest = Judge(goal, {}).nearest([far, near])
    assert nearest is not None
    assert nearest[0] == near
    assert nearest[1] == "ratio 3.9 must be >= 4, encode_mb_s 105 (low end 99) must be >= 100"
    goal = Goal(("ratio",), (Constraint.parse("ratio >= 1.5 * bslz4"), Constraint.parse("encode_mb_s <= 100")))
    nearest = Judge(goal, {"bslz4": far}).nearest([near])
    assert nearest is not None
    assert nearest[1] == "encode_mb_s 105 (high end 110) must be <= 100"
    nearest = Judge(goal, {"bslz4": near}).nearest([far])
    assert nearest is not None
    assert nearest[1] == "ratio 2 must be >= 5.85 (1.5 * bslz4), encode_mb_s 500 must be <= 100"
    nearest = Judge(Goal(("ratio",), (Constraint.parse("encode_mb_s >= 2 * bslz4"),)), {"bslz4": near}).nearest([near])
    assert nearest is not None
    assert nearest[1] == "encode_mb_s 105 (low end 99) must be >= 198 (2 * bslz4, low end)"


@pytest.mark.parametrize("op", [">=", "<="])
@given(st.lists(st.floats(1, 1e4), min_size=3, max_size=3), st.floats(0.01, 1))
def test_what_slows_all_that_is_timed_decides_no_limit_that_is_a_baseline_s(
    op: str, rates: list[float], slower: float
) -> None:
    low, usual, high = sorted(rates)
    requirement = Constraint.parse(f"encode_mb_s {op} bslz4")
    itself = Evaluation(None, {"ratio": 2.0, "encode_mb_s": usual}, {"encode_mb_s": (low, high)})
    disturbed = Evaluation(None, {"ratio": 2.0, "encode_mb_s": usual}, {"encode_mb_s": (low * slower, high / slower)})
    for evaluation in (itself, disturbed):
        assert Judge(Goal(("ratio",), (requirement,)), {"bslz4": evaluation}).feasible([evaluation]) == [evaluation]


@pytest.mark.parametrize(
    ("maximize", "require", "timed"),
    [
        (("ratio",), (), False),
        (("ratio",), ("ratio >= 2",), False),
        (("ratio",), ("encode_mb_s >= 2",), True),
        (("ratio", "decode_mb_s"), (), True),
    ],
)
def test_a_goal_knows_whether_it_needs_a_clock(
    maximize: tuple[str, ...], require: tuple[str, ...], timed: bool
) -> None:
    assert Goal(maximize, tuple(Constraint.parse(text) for text in require)).timed == timed


def test_a_quality_is_required_and_never_maximized() -> None:
    goal = Goal.from_dict({"maximize": ["ratio"], "require": ["max_error_sigma <= 0.5", "ratio >= 1", "psnr_db >= 60"]})
    assert goal.qualities == ("max_error_sigma", "psnr_db")
    with pytest.raises(InputError, match="maximize\\[0\\] must be one of ratio encode_mb_s"):
        Goal.from_dict({"maximize": ["psnr_db"]})
