"""The clock: windows that were disturbed are repeated, but not for ever."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.measure.timing import Reference, Timing, clocked, last_level_cache, machine, timed, versions

rates = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=20).map(tuple)

WINDOW_S = 0.004


class Scripted(Reference):
    """A reference kernel whose rates are written down: 1 is usual, less is a machine that was disturbed."""

    def __init__(self, script: Iterable[float]) -> None:
        self.rates = [1.0] * 1000
        self._script = iter(script)

    def run(self) -> float:
        self.rates.append(next(self._script))
        return self.rates[-1]


@given(rates)
def test_the_spread_holds_the_median_and_lies_within_all_rates(given_rates: tuple[float, ...]) -> None:
    low, high = Timing(given_rates).spread
    slack = 1e-9 * max(given_rates)  # interpolated in floating point
    assert min(given_rates) - slack <= low <= Timing(given_rates).mb_s + slack
    assert Timing(given_rates).mb_s - slack <= high <= max(given_rates) + slack


@given(rates, rates)
def test_timings_add_up_to_one_with_all_repeats(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    assert Timing(first) + Timing(second) == Timing((*first, *second))


@given(st.integers(1, 6), st.lists(st.sampled_from([1.0, 0.9, 0.7, 0.3]), min_size=13, max_size=13))
def test_disturbed_windows_are_repeated_but_never_more_than_twice_as_many(windows: int, script: list[float]) -> None:
    """Each call of the function outlasts a window, and takes a time of its own: so rates tell which windows counted."""
    calls: list[float] = []

    def seconds(_: int) -> float:
        calls.append(WINDOW_S * (1 + len(calls)))
        return calls[-1]

    timing = timed(seconds, [0], 1e6, Scripted(script), windows=windows, window_seconds=WINDOW_S)
    calm = [min(script[i], script[i + 1]) >= 0.75 for i in range(2 * windows)]
    took = calls[1:]  # the first call is not counted
    assert len(took) <= 2 * windows
    assert len(timing.rates) == windows
    counted = [took.index(pytest.approx(1 / rate)) for rate in timing.rates]
    assert len(set(counted)) == windows
    # What is calm counts first; only where too little was, the disturbed fill up.
    assert sum(calm[i] for i in counted) == min(windows, sum(calm[: len(took)]))
    assert len(took) == 2 * windows or all(calm[i] for i in counted)


def test_items_are_taken_in_turn_for_as_long_as_a_window_lasts() -> None:
    taken: list[int] = []

    def seconds(item: int) -> float:
        taken.append(item)
        return WINDOW_S / 4

    timing = timed(seconds, range(3), 5e6, Scripted([1.0] * 99), windows=5, window_seconds=WINDOW_S)
    assert taken == [index % 3 for index in range(1 + 5 * 4)]
    assert timing.rates == pytest.approx([5 / (WINDOW_S / 4)] * 5)


def test_what_takes_long_is_not_repeated_often() -> None:
    taken: list[int] = []

    def seconds(item: int) -> float:
        taken.append(item)
        return 1.0

    timing = timed(seconds, range(9), 2e6, Scripted([1.0] * 99), windows=15)
    assert timing.rates == (2.0, 2.0, 2.0)
    assert len(taken) == 4


def test_the_reference_kernel_notes_each_run_in_bytes_per_second() -> None:
    reference = Reference()
    found = [reference.run() for _ in range(5)]
    assert reference.rates == found
    assert all(rate > 1e6 for rate in found)
    assert reference.usual == np.median(found)


def test_the_kernel_is_the_same_for_all() -> None:
    first, second = Reference(), Reference()
    assert first._encoder.compress(first._chunk) == second._encoder.compress(second._chunk)


def test_a_clocked_function_is_called_once_with_its_item() -> None:
    items: list[str] = []
    assert clocked(items.append)("chunk") >= 0.0
    assert items == ["chunk"]


def test_evidence_of_machine_and_versions_is_plain_data() -> None:
    assert json.loads(json.dumps([machine(), versions()])) == [machine(), versions()]
    assert machine()["cores"] >= 1
    assert {"tuner", "blosc2", "c-blosc2", "hdf5plugin", "h5py", "hdf5", "numpy", "python"} == set(versions())
    assert all(versions().values())
    assert 0 < last_level_cache() <= 64 << 20
