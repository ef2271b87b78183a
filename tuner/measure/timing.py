"""A clock for code whose speed depends on caches and on what else the machine does."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tuner.apply.encode import Encoder
from tuner.apply.provenance import versions as versions  # beside `machine`, as evidence has them
from tuner.config import Blosc2

Item = TypeVar("Item")

#: A window is disturbed by what else the machine does if the reference kernel beside it is slower than this share of
#: its usual rate; such windows are repeated, as far as twice the number goes.
_CALM = 0.75

#: Chunks below some kilobytes need not fill the cache: calling the codec takes longer than fetching their bytes.
_MOST_BUFFERS = 1 << 14

#: Where the system does not say how large its last-level cache is.
_USUAL_CACHE = 32 << 20
#: More than this is never kept in memory to get past a cache.
_MOST_CACHE = 64 << 20


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast something ran."""

    rates: tuple[float, ...]
    """MB (10^6 bytes) per second of every repeat."""

    def __add__(self, other: Timing) -> Timing:
        return Timing(self.rates + other.rates)

    def after(self, other: Timing) -> Timing:
        """How fast both run one after the other on the same bytes.

        >>> Timing((600.0, 1000.0)).after(Timing((300.0,))).rates
        (200.0, 230.76923076923077)
        """
        return Timing(tuple(1 / (1 / own + 1 / its) for own, its in zip(self.rates, cycle(other.rates), strict=False)))

    @property
    def mb_s(self) -> float:
        """The median."""
        return float(np.median(self.rates))

    @property
    def spread(self) -> tuple[float, float]:
        """The first and the third quartile."""
        low, high = np.percentile(self.rates, [25, 75])
        return float(low), float(high)


class Reference:
    """A fixed kernel: lz4 with bitshuffle on a fixed MiB of Poisson counts.

    Run between the repeats of everything that is timed, it tells how fast the machine was just then, and so makes the
    speeds of one machine, or of one hour, comparable to those of another.
    """

    def __init__(self) -> None:
        self._chunk = np.random.default_rng(0).poisson(10, 1 << 19).astype(np.uint16)
        self._encoder = Encoder(Blosc2(typesize=2), self._chunk.shape, self._chunk.dtype)
        self.rates: list[float] = []
        """Bytes per second of every run."""

    def run(self) -> float:
        """Run it once and note its rate in bytes per second."""
        start = time.perf_counter()
        self._encoder.compress(self._chunk)
        self.rates.append(self._chunk.nbytes / (time.perf_counter() - start))
        return self.rates[-1]

    @property
    def usual(self) -> float:
        """The median rate of the last runs, in bytes per second."""
        return float(np.median(self.rates[-200:]))


def clocked(function: Callable[[Item], object]) -> Callable[[Item], float]:
    """The function as one that returns the seconds it took."""

    def seconds(item: Item) -> float:
        start = time.perf_counter()
        function(item)
        return time.perf_counter() - start

    return seconds


def timed(
    seconds: Callable[[Item], float],
    items: Sequence[Item],
    nbytes: float,
    reference: Reference,
    *,
    windows: int = 5,
    window_seconds: float = 0.004,
) -> Timing:
    """Time a function over items taken in turn, in windows between which the reference kernel runs.

    A window in which the machine was disturbed, as that kernel tells, is repeated.

    Parameters
    ----------
    seconds : callable
        Treats one item and returns the seconds that took.
    items : sequence
        Together larger than the last-level cache where that is to count.
    nbytes : float
        Bytes that one item stands for.
    reference : Reference
    windows, window_seconds
        How many repeats there are, and the least that each lasts.
    """
    index = 0
    # The first call pays for pages and code that were never touched; where it outlasts a window by far, that is little.
    if seconds(items[0]) > 10 * window_seconds:
        windows = min(windows, 3)
    calm: list[float] = []
    disturbed: list[float] = []
    before = reference.run()
    while len(calm) < windows and len(calm) + len(disturbed) < 2 * windows:
        done, took = 0.0, 0.0
        while took < window_seconds:
            index = (index + 1) % len(items)
            took += seconds(items[index])
            done += nbytes
        after = reference.run()
        (calm if min(before, after) >= _CALM * reference.usual else disturbed).append(done / took / 1e6)
        before = after
    return Timing(tuple(calm + disturbed[: max(0, windows - len(calm))]))


@cache
def last_level_cache() -> int:
    """Bytes of the largest cache of the first core, bounded to what we are willing to keep in memory."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) << 10)
    return min(max(sizes, default=_USUAL_CACHE), _MOST_CACHE)


def beyond_cache(chunks: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """The chunks, all of one size, and as many copies of them as together exceed the last-level cache; at least two."""
    wanted = max(2, min(-(-last_level_cache() // chunks[0].nbytes), _MOST_BUFFERS))
    return [*chunks, *(chunks[index % len(chunks)].copy() for index in range(wanted - len(chunks)))]


class Scratch:
    """Memory to decode into, kept between timings: at least as much as the last-level cache holds."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def arrays(self, shape: tuple[int, ...], dtype: np.dtype[Any], count: int) -> list[NDArray[Any]]:
        """So many arrays, taken in turn from all of it."""
        nbytes = math.prod(shape) * dtype.itemsize
        wanted = max(nbytes, last_level_cache())
        if len(self._bytes) < wanted:
            self._bytes = np.empty(wanted, np.uint8)
            self._bytes.fill(0)  # pages that were never touched would be paid for by what is timed
        places = len(self._bytes) // nbytes
        starts = (nbytes * (index % places) for index in range(count))
        return [self._bytes[at : at + nbytes].view(dtype).reshape(shape) for at in starts]


@cache
def machine() -> dict[str, Any]:
    """The machine that timed something, as evidence names it."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"cpu": name, "cores": cores, "cache_mib": last_level_cache() >> 20, "host": platform.node()}
