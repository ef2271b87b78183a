"""What analyses are given: frames before and after, and what their file says beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from tuner.apply.metadata import Metadata
from tuner.errors import InputError
from tuner.noise import Noise
from tuner.read.detector import detector_groups
from tuner.read.links import nx_class, peek, walk
from tuner.read.sampling import eligible_frames
from tuner.stack import Stack
from tuner.steps import Pixels
from tuner.steps.reduced import Reduced

#: Bytes of frames that are held at once.
_BATCH_NBYTES = 32 << 20

#: Percentages are of what is known to one: that many error bars. Below, a change is to be compared with the error bar.
KNOWN = 100.0

#: How often units are drawn again for an interval.
_DRAWS = 200


@dataclass(frozen=True, slots=True)
class Pair:
    """Some frames before and after."""

    numbers: NDArray[np.int64]
    """Their numbers in the stack, shape (n,)."""
    original: NDArray[Any]
    """Shape (n, *frame_shape)."""
    decoded: NDArray[Any]
    """As a reader will get them, same shape and dtype."""
    valid: NDArray[np.bool_]
    """True where a pixel counts, same shape."""


@dataclass(frozen=True, slots=True)
class Scan:
    """Frames of one stack, before and after."""

    stack: Stack
    """Where they are read from."""
    numbers: NDArray[np.int64]
    """Which of them, in order."""
    pixels: Pixels
    """Which pixels count, and their noise."""
    change: Callable[[NDArray[Any]], NDArray[Any]]
    """What is done to frames, shape (n, *frame_shape)."""

    def whole(self) -> Scan:
        """The same of every data frame that was written."""
        return replace(self, numbers=eligible_frames(self.stack))

    def pairs(self) -> Iterator[Pair]:
        """The frames, as many at a time as memory is meant to hold."""
        several = max(1, _BATCH_NBYTES // max(1, self.stack.frame_nbytes))
        for start in range(0, len(self.numbers), several):
            numbers = self.numbers[start : start + several]
            runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
            original = np.concatenate([self.stack.read(int(run[0]), int(run[-1]) + 1) for run in runs])
            yield Pair(numbers, original, self.change(original), self.pixels.valid(original))

    def variance(self, frames: NDArray[Any]) -> NDArray[np.float64]:
        """The variance of each pixel without its floor, same shape, as it is summed over many pixels.

        Raises
        ------
        InputError
            Where the noise is not known, and values are no counts that would tell it.
        """
        noise = self.pixels.noise
        if noise is None:
            if self.stack.photon_counting is False or (frames.dtype.kind == "f" and self.stack.photon_counting is None):
                raise InputError(f"{self.stack.name}: --noise must be given, as error bars rest on it")
            noise = Noise(1.0, 0.0, 0.0, "counts")
        light = np.maximum(frames.astype(np.float64) - noise.offset, 0.0)
        return np.asarray(noise.gain * light + noise.read_noise**2)

    def declared(self, *names: str, size: int = 1) -> NDArray[np.float64] | None:
        """The numbers that the file has under the first of some names with so many values; None without.

        Those of the detector's own groups come first, and those of another detector are none. Of reduced frames they
        are those that such a file has.
        """
        try:
            file = h5py.File(self.stack.name, "r", locking=False)
        except OSError:
            return None
        with file:
            metadata = Metadata(file, self.stack) if isinstance(self.stack.source, Reduced) else None
            path = self.stack.dataset
            groups = detector_groups(file, path) if path is not None and peek(file, path) is not None else []
            # Groups are compared as such: one may have several paths.
            others = tuple(f"{at}/" for at, node in walk(file) if nx_class(node) == "NXdetector" and node not in groups)
            found, of_its_own = {}, set[str]()
            for at, node in walk(file):
                name = at.rpartition("/")[2]
                if name in names and isinstance(node, h5py.Dataset) and node.dtype.kind in "iuf":
                    value = np.asarray(node[()] if metadata is None else metadata.value(node), np.float64)
                    own = node.parent in groups
                    if value.size == size and not at.startswith(others) and (own or name not in of_its_own):
                        found[name] = value.reshape(-1)
                        of_its_own |= {name} if own else set()
            return next((found[name] for name in names if name in found), None)


@dataclass(frozen=True, slots=True)
class Measured:
    """A number that an analysis answered."""

    value: float
    """The number."""
    low: float
    """Of a scan: the low end of an interval of 95 % confidence, over draws of its units; else `value`."""
    high: float
    """The high end."""

    @classmethod
    def exactly(cls, value: float) -> Measured:
        """A number without an interval."""
        return cls(float(value), float(value), float(value))

    @classmethod
    def of(cls, value: float, draws: NDArray[np.float64], units: int) -> Measured:
        """A number with the interval of the draws of so many units, which holds the number itself.

        Its percentiles are expanded to the tails of Student's t (Hesterberg 2015, The American Statistician 69, 371):
        of 4 units they are 0.07 and 99.93, of many 2.5 and 97.5.
        """
        tail = ndtr(stdtrit(max(units - 1, 1), 0.025))
        low, high = np.quantile(draws, [tail, 1 - tail])
        return cls(float(value), float(min(low, value)), float(max(high, value)))


def draws(units: int) -> NDArray[np.float64]:
    """Weights of units drawn again with replacement (bootstrap; Efron 1979), shape (draws, units), each row sums to 1.

    One fewer is drawn than there are, which would else scatter too little by ``sqrt((units - 1) / units)`` (Hesterberg
    2015). The same every time, so that what is judged twice is judged alike; a single unit is only ever itself.
    """
    many = max(units - 1, 1)
    drawn = np.random.default_rng(0).multinomial(many, np.full(units, 1 / units), _DRAWS)
    return np.asarray(drawn / many, np.float64)


@contextmanager
def library(analysis: str) -> Iterator[None]:
    """Around the imports of an analysis: what is missing is named in one line."""
    try:
        yield
    except ImportError as error:
        missing = (error.name or "a library").partition(".")[0]
        raise InputError(f"analysis {analysis} needs {missing}: pip install 'tuner[analyses]'") from None
