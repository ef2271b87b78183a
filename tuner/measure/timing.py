"""A clock for code whose speed depends on caches and on what else the machine does."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import blosc2
import h5py
import hdf5plugin
import numpy as np

import tuner
from tuner.apply.encode import Encoder
from tuner.config import Blosc2

Item = TypeVar("Item")

#: Where the system does not say how large its last-level cache is.
_USUAL_CACHE = 32 << 20
#: More than this is never kept in memory to get past a cache.
_MOST_CACHE = 64 << 20


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast something ran, over its repeats."""

    mb_s: float
    """The median, in MB (10^6 bytes) per second."""
    low: float
    """The first quartile."""
    high: float
    """The third quartile."""

    @classmethod
    def of(cls, rates: Sequence[float]) -> Timing:
        """The median and quartiles of some rates in bytes per second."""
        low, median, high = np.percentile(np.asarray(rates) / 1e6, [25, 50, 75])
        return cls(float(median), float(low), float(high))


class Reference:
    """A fixed kernel: lz4 with bitshuffle on a fixed MiB of Poisson counts.

    Run between the repeats of everything that is timed, it tells how fast the machine was just then, and so makes the
    speeds of one machine, or of one hour, comparable to those of another.
    """

    def __init__(self) -> None:
        self._chunk = np.random.default_rng(0).poisson(10, 1 << 19).astype(np.uint16)
        self._encoder = Encoder(Blosc2(typesize=2), self._chunk.shape, self._chunk.dtype)
        self.seconds = 0.0
        """Time that the kernel took in all."""

    def rate(self) -> float:
        """Run it once; bytes per second."""
        start = time.perf_counter()
        self._encoder.compress(self._chunk)
        took = time.perf_counter() - start
        self.seconds += took
        return self._chunk.nbytes / took


def timed(
    function: Callable[[Item], object],
    items: Sequence[Item],
    nbytes: int,
    reference: Reference,
    *,
    windows: int = 5,
    window_seconds: float = 0.004,
) -> tuple[Timing, float]:
    """Time a function over items of `nbytes` each, taken in turn, in windows between which the reference kernel runs.

    Returns
    -------
    Timing
        Over the windows.
    float
        The reference kernel's median rate in MB/s meanwhile.
    """
    rates, references = [], []
    index = 0
    function(items[0])  # the first call pays for pages and code that were never touched
    for _ in range(windows):
        references.append(reference.rate())
        done = 0
        start = time.perf_counter()
        while True:
            index = (index + 1) % len(items)
            function(items[index])
            done += nbytes
            took = time.perf_counter() - start
            if took >= window_seconds:
                break
        rates.append(done / took)
    return Timing.of(rates), float(np.median(references)) / 1e6


@cache
def last_level_cache() -> int:
    """Bytes of the largest cache of the first core, bounded to what we are willing to keep in memory."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) << 10)
    return min(max(sizes, default=_USUAL_CACHE), _MOST_CACHE)


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


@cache
def versions() -> dict[str, str]:
    """The versions of what encodes, as evidence names them."""
    return {
        "tuner": tuner.__version__,
        "python": platform.python_version(),
        "blosc2": blosc2.__version__,
        "c-blosc2": blosc2.blosclib_version.split()[0],
        "hdf5plugin": hdf5plugin.version,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "numpy": np.__version__,
    }
