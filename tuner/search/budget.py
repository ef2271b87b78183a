"""How long a search may take."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field

from tuner.errors import InputError

_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|)")
_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(slots=True)
class Budget:
    """Seconds, or measured configurations, baselines and finalists included; what was used is noted here."""

    seconds: float = math.inf
    """The most seconds, counted from when this was made."""
    configurations: int | None = None
    """The most configurations."""
    started: float = field(default_factory=time.perf_counter)
    """When it began, by `time.perf_counter`."""
    measured: int = 0
    """Configurations measured so far."""

    @classmethod
    def parse(cls, text: str, place: str = "--budget") -> Budget:
        """Read ``60s``, ``5m``, ``1h`` or a number of configurations.

        >>> Budget.parse("5m").seconds, Budget.parse("200").configurations
        (300.0, 200)

        Raises
        ------
        InputError
            Where the text is neither, or is nothing.
        """
        match = _BUDGET.fullmatch(text.strip())
        if match is None or (not match[2] and "." in match[1]) or not 0 < float(match[1]) < math.inf:
            raise InputError(f"{place} must be a time such as 60s or 5m, or a number of configurations, got {text!r}")
        if match[2]:
            return cls(seconds=float(match[1]) * _UNITS[match[2]])
        return cls(configurations=int(match[1]))

    def restart(self) -> None:
        """Count from now."""
        self.started = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self.started

    def left(self, seconds: float = 0.0, configurations: int = 0) -> int:
        """How many configurations may still be measured when so much is kept for later."""
        if self.elapsed + seconds >= self.seconds:
            return 0
        if self.configurations is None:
            return 1 << 30
        return max(0, self.configurations - self.measured - configurations)
