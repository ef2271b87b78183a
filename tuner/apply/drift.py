"""Are the frames of a scan still like those that its profile was measured on? Traits of some of them say so."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.profile import Profile
from tuner.steps import Pixels
from tuner.steps.reduced import Chain
from tuner.traits import traits

#: Into how many pieces a sample is cut for the envelope, to see how its traits vary.
PIECES = 32

#: Share of one thread's time that looking may take.
SHARE = 0.01

#: A profile's envelope holds nine of ten pieces of its data: frames are outside where they are this many times its
#: width beyond it, and that many looks in a row.
_WIDTHS, _LOOKS = 1.0, 3

#: What counts as no change: of the value itself, and absolute, for shares and bits.
_RELATIVE, _ABSOLUTE = 0.05, 0.01

#: A ratio, or a speed, is too low below this part of what was measured.
SHRUNK = 0.7

_log = logging.getLogger(__name__)


class Drift:
    """Follows the traits of frames and their ratio; warns once for each that leaves what the profile was measured on.

    A look takes as many frames, one after the other, as the pieces had of which the envelope was made. Traits are
    computed in a thread of their own, as often as takes a hundredth of its time.

    Parameters
    ----------
    profile : Profile
        One without an envelope is never left, nor is one for data with a mask where none is given.
    pixels : Pixels
        Which pixels count.
    chain : Chain, optional
        The profile's reductions, where frames are given that are not reduced yet.
    """

    def __init__(self, profile: Profile, pixels: Pixels, chain: Chain | None = None) -> None:
        self._chain = chain
        self.outside: dict[str, list[float]] = {}
        """What was left: trait to [value, low, high, frame]."""
        self._pixels = pixels
        self._bounds = drift_bounds(profile, pixels.mask is not None)
        self._in_a_row = dict.fromkeys(self._bounds, 0)
        self._frames = piece_frames(profile)
        self._seen: list[NDArray[Any]] = []
        self._looking: threading.Thread | None = None
        self._next = 0.0 if self._bounds else math.inf

    def due(self) -> bool:
        """Whether frames are wanted for a look."""
        return time.monotonic() >= self._next and (self._looking is None or not self._looking.is_alive())

    def look(self, number: int, frames: NDArray[Any], ratio: Callable[[], float | None]) -> None:
        """Take frames, shape (n, *frame_shape), of which copies are made, and look at them once they are enough.

        Parameters
        ----------
        number : int
            Of the first of them.
        frames : ndarray
        ratio : callable
            The ratio of late, None where nothing was written.
        """
        wanted = frames[: self._frames - sum(map(len, self._seen))]
        self._seen.append(wanted.copy() if self._chain is None else self._chain.frames(wanted))
        if sum(map(len, self._seen)) == self._frames:
            seen, self._seen = np.concatenate(self._seen), []
            about = (number, seen, ratio())
            self._looking = threading.Thread(target=self._judge, args=about, name="tuner-drift", daemon=True)
            self._looking.start()

    def close(self) -> None:
        """Wait for the last look; where that is interrupted, its thread ends by itself."""
        if self._looking is not None and self._looking.is_alive():
            self._looking.join()

    def _judge(self, number: int, frames: NDArray[Any], ratio: float | None) -> None:
        start = time.thread_time()
        marks = self._pixels.marks
        found = traits(frames, self._pixels.valid(frames), marks.saturated(frames, self._pixels.mask))
        if ratio is not None:
            found["ratio"] = ratio
        for name, (low, high) in self._bounds.items():
            if name not in found or name in self.outside:
                continue
            self._in_a_row[name] = 0 if low <= found[name] <= high else self._in_a_row[name] + 1
            if self._in_a_row[name] == _LOOKS:
                self.outside[name] = [found[name], low, high, float(number)]
                _log.warning(
                    "frame %d: %s is %.5g, the profile is for %.5g to %.5g", number, name, found[name], low, high
                )
        self._next = time.monotonic() + (time.thread_time() - start) / SHARE


def drift_bounds(profile: Profile, masked: bool) -> dict[str, tuple[float, float]]:
    """Between what each trait, and the ratio, of frames like those of a profile lies: its envelope, widened.

    Empty without an envelope, and where the profile is for data with a mask and these have none.
    """
    known = profile.invalid.mask is None or masked
    bounds = {name: _widened(*bounds) for name, bounds in profile.envelope.items() if known}
    measured = np.atleast_1d(profile.evidence.get("metrics", {}).get("ratio", []))
    if bounds and measured.size:
        bounds["ratio"] = (SHRUNK * float(measured[0]), math.inf)
    return bounds


def piece_frames(profile: Profile) -> int:
    """How many frames the pieces had of which a profile's envelope was made."""
    return max(1, int(profile.evidence.get("sample", {}).get("frames", 0)) // PIECES)


def _widened(low: float, high: float) -> tuple[float, float]:
    slack = _WIDTHS * (high - low) + _RELATIVE * max(abs(low), abs(high)) + _ABSOLUTE
    return low - slack, high + slack
