"""Sets of frame numbers that are mostly neighbours."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray


class Runs:
    """Frame numbers as runs, in order and apart: what it takes grows with the runs, not with the frames.

    >>> runs = Runs()
    >>> runs.add(3, 9)
    >>> runs.remove(5, 6)
    >>> runs.array().tolist(), runs.total, runs.meets(5, 6), runs.meets(5, 7)
    ([[3, 5], [6, 9]], 5, False, True)
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.total = 0
        """How many numbers."""

    def add(self, start: int, stop: int) -> None:
        """Take in the numbers from `start` to before `stop`."""
        if start >= stop:
            return
        if not self._stops or start > self._stops[-1]:  # as most come
            self._starts.append(start)
            self._stops.append(stop)
            self.total += stop - start
            return
        first, last = bisect_left(self._stops, start), bisect_right(self._starts, stop)
        merged = (min([start, *self._starts[first:last]]), max([stop, *self._stops[first:last]]))
        self._replace(first, last, [merged])

    def remove(self, start: int, stop: int) -> None:
        """Drop the numbers from `start` to before `stop`, as far as they are in it."""
        first, last = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        if first >= last or start >= stop:
            return
        ends = [(self._starts[first], start), (stop, self._stops[last - 1])]
        self._replace(first, last, [(low, high) for low, high in ends if low < high])

    def meets(self, start: int, stop: int) -> bool:
        """Whether any number from `start` to before `stop` is in it."""
        return self.count(start, stop) > 0

    def count(self, start: int, stop: int) -> int:
        """How many numbers from `start` to before `stop` are in it."""
        return sum(high - low for low, high in self.within(start, stop))

    def within(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The runs of it from `start` to before `stop`, cut at both."""
        first, last = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        ends = zip(self._starts[first:last], self._stops[first:last], strict=True)
        return [(max(low, start), min(high, stop)) for low, high in ends if start < stop]

    def array(self) -> NDArray[np.int64]:
        """The runs [first, after the last], shape (runs, 2)."""
        return np.array([self._starts, self._stops], np.int64).T

    def _replace(self, first: int, last: int, runs: list[tuple[int, int]]) -> None:
        old = sum(self._stops[first:last]) - sum(self._starts[first:last])
        self._starts[first:last] = [low for low, _ in runs]
        self._stops[first:last] = [high for _, high in runs]
        self.total += sum(high - low for low, high in runs) - old


def runs_of(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The runs of true values, [first, after the last], shape (runs, 2).

    >>> runs_of(np.array([True, True, False, True])).tolist()
    [[0, 2], [3, 4]]
    """
    return np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])))).reshape(-1, 2)
