"""Runs are sets of numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tuner.apply.runs import Runs

SPAN = st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 12))


@given(st.lists(SPAN, max_size=30), st.integers(0, 30), st.integers(0, 30))
def test_runs_are_the_set_that_was_made(operations: list[tuple[bool, int, int]], start: int, stop: int) -> None:
    runs, expected = Runs(), set[int]()
    for adds, first, count in operations:
        if adds:
            runs.add(first, first + count)
            expected |= set(range(first, first + count))
        else:
            runs.remove(first, first + count)
            expected -= set(range(first, first + count))
        array = runs.array()
        assert {n for low, high in array.tolist() for n in range(low, high)} == expected
        assert runs.total == len(expected)
        assert (array[1:, 0] > array[:-1, 1]).all()  # apart: no two runs could be one
        assert (array[:, 1] > array[:, 0]).all()
    assert runs.count(start, stop) == len(expected & set(range(start, stop)))
    assert runs.meets(start, stop) == bool(expected & set(range(start, stop)))
