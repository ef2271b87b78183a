"""A budget is seconds or configurations, and says how many are left."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.errors import InputError
from tuner.search.budget import Budget

UNITS = {"s": 1, "m": 60, "h": 3600}


@given(st.floats(0.001, 1e6), st.sampled_from(list(UNITS)), st.sampled_from(["", " "]))
def test_a_time_is_read_in_its_unit(number: float, unit: str, space: str) -> None:
    text = f"{number:.3f}{space}{unit}"
    assert Budget.parse(text).seconds == float(f"{number:.3f}") * UNITS[unit]
    assert Budget.parse(text).configurations is None


@given(st.integers(1, 10**9))
def test_a_number_is_configurations(number: int) -> None:
    budget = Budget.parse(f" {number} ")
    assert (budget.configurations, budget.seconds) == (number, math.inf)


@pytest.mark.parametrize(
    "text",
    ["", "0", "0s", "0.0m", "-5", "-5s", "5.5", "1e3", "5 d", "s", "5ss", "5s 3m", "nan", "inf", "٣x", "9" * 400 + "s"],
)
def test_what_is_no_budget_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(InputError, match=r"^--budget must be a time such as 60s or 5m, or a number") as refused:
        Budget.parse(text)
    assert "\n" not in str(refused.value)
    assert repr(text) in str(refused.value)


@given(st.integers(1, 100), st.integers(0, 120), st.integers(0, 120))
def test_what_is_left_is_what_was_not_measured_and_is_not_kept(most: int, measured: int, kept: int) -> None:
    budget = Budget(configurations=most, measured=measured)
    assert budget.left(configurations=kept) == max(0, most - measured - kept)


@given(st.floats(0.0, 50.0), st.floats(0.0, 100.0), st.integers(0, 10**6))
def test_time_runs_out_by_what_is_kept_earlier(elapsed: float, kept: float, measured: int) -> None:
    budget = Budget(seconds=60.0, started=time.perf_counter() - elapsed, measured=measured)
    left = budget.left(seconds=kept)
    if abs(elapsed + kept - 60.0) > 1.0:  # the clock goes on meanwhile
        assert (left > 0) == (elapsed + kept < 60.0)
    assert budget.left(seconds=61.0) == 0


def test_counting_starts_again_at_restart() -> None:
    budget = Budget(seconds=60.0, started=time.perf_counter() - 1000)
    assert budget.left() == 0
    budget.restart()
    assert budget.elapsed < 60.0
    assert budget.left() > 10**6
