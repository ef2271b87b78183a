"""What follows when frames come faster than they are encoded: wait, refuse them, or encode them with less effort."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from tuner.apply.plugin import ChunkEncoder

#: The words of `on_overload=`.
WAYS = ("block", "raise", "shed")

#: Rows of chunks that must come without a queue before more effort is made again; doubled by each relapse, at most so.
_CALM, _MOST_CALM = 32, 1024

_log = logging.getLogger(__name__)


class Shedding:
    """How much effort is made: that of the profile, of one of its faster fallbacks, or none.

    What counts is the queue of chunks to be encoded: one that waits for the disk gets no shorter by being larger. At
    three quarters of what may be in flight, effort is stepped down, and again if that did not help; after 32 rows of
    chunks that met at most a quarter, it is stepped up. One that must be taken back at once is tried half as often.

    Parameters
    ----------
    encoders : sequence of ChunkEncoder
        The faster ones, each faster than the one before; none for no shedding.
    depth : int
        Chunks in flight at most.

    Examples
    --------
    >>> from tuner.apply.encode import Encoder
    >>> from tuner.config import Blosc2
    >>> shedding = Shedding([Encoder(Blosc2(clevel=0, typesize=2), (1, 4, 5), np.dtype("uint16"))], depth=6)
    >>> [shedding.encoder(backlog, frame, frame + 1) is None for frame, backlog in enumerate([0, 4, 5, 3])]
    [True, True, False, False]
    >>> shedding.notes()["tuner_shed_frames"].tolist()
    [[2, 4, 1]]
    """

    def __init__(self, encoders: Sequence[ChunkEncoder], depth: int) -> None:
        self.level = 0
        """Which encoder is used: 0 is the profile's."""
        self.steps = 0
        """How often it changed."""
        self._encoders = encoders
        self._depth = depth
        self._runs: list[list[int]] = []
        self._rest = 0
        self._calm = 0
        self._wanted = _CALM
        self._since_up = _MOST_CALM

    def encoder(self, backlog: int, start: int, stop: int) -> ChunkEncoder | None:
        """What frames `start` to before `stop` are encoded with when so many chunks are not yet; None: the profile's.

        With another one frames are written as they are, without the profile's steps.
        """
        self._rest = max(0, self._rest - 1)
        self._since_up += 1
        self._calm = self._calm + 1 if 4 * backlog <= self._depth else 0
        if 4 * backlog >= 3 * self._depth and self.level < len(self._encoders) and not self._rest:
            if self._since_up < self._wanted:
                self._wanted = min(2 * self._wanted, _MOST_CALM)
            self._step(self.level + 1, backlog, start)
            self._rest = self._depth  # those that wait were begun with more effort
        elif self.level and self._calm >= self._wanted:
            self._step(self.level - 1, backlog, start)
            self._since_up = self._calm = 0
        if not self.level:
            return None
        if self._runs and self._runs[-1][1:] == [start, self.level]:
            self._runs[-1][1] = stop
        else:
            self._runs.append([start, stop, self.level])
        return self._encoders[self.level - 1]

    def notes(self) -> dict[str, Any]:
        """Attributes: how often effort was stepped, and runs [first, after the last, level]."""
        if not self.steps:
            return {}
        return {
            "tuner_shed_steps": np.int64(self.steps),
            "tuner_shed_frames": np.array(self._runs, np.int64).reshape(-1, 3),
        }

    def _step(self, level: int, backlog: int, frame: int) -> None:
        self.level = level
        self.steps += 1
        with_ = f"fallback {level} of {len(self._encoders)}" if level else "the profile"
        _log.warning("frames from %d on are encoded with %s: %d chunks wait", frame, with_, backlog)
