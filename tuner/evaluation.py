"""Evaluation: what one configuration did to one sample; and the append-only log that remembers it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tuner.config import Config
from tuner.document import canonical_json, check_bounds, check_mapping, check_number, check_str, join
from tuner.errors import TunerError


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that a configuration is judged by; more is better for all of them."""

    text: str
    """What it is, in a line."""
    timed: bool
    """Whether it was taken with a clock, and so has a spread."""


#: Every metric by its name, which ends in its unit; a ratio has none.
METRICS = {
    "ratio": Metric("bytes of the pixels / bytes stored, frame headers, padding and checksums included", False),
    "encode_mb_s": Metric("MB of pixels encoded per second on one core", True),
    "decode_mb_s": Metric("MB of pixels decoded per second on one core", True),
    "frame_read_mb_s": Metric("useful MB per second when one frame is read: all chunks that hold it are decoded", True),
    "sinogram_read_mb_s": Metric("useful MB per second when one row of all frames is read, for three axes", True),
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one configuration did to one sample."""

    config: Config | None
    """The configuration; None for a baseline that is not written by Blosc2 chunks of ours."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Name in `METRICS` to value; empty after a failure."""
    spread: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Timed metric to the quartiles of its repeats."""
    traits: Mapping[str, float] = field(default_factory=dict)
    """Traits of the sample."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Where it is from: `data` digest, `machine`, `versions`, `timing`, `baseline` name."""
    failure: str | None = None
    """Why it has no metrics; None for a success."""

    def low(self, metric: str) -> float:
        """The value that a requirement may rest on: the low end of the spread of a timed metric; NaN where missing."""
        if metric in self.spread:
            return self.spread[metric][0]
        return self.metrics.get(metric, math.nan)

    def high(self, metric: str) -> float:
        """The high end of the spread of a timed metric, else the value; NaN where missing."""
        if metric in self.spread:
            return self.spread[metric][1]
        return self.metrics.get(metric, math.nan)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as the log has them."""
        return {
            "config": None if self.config is None else self.config.to_dict(),
            "metrics": dict(self.metrics),
            "spread": {name: list(bounds) for name, bounds in self.spread.items()},
            "traits": dict(self.traits),
            "origin": dict(self.origin),
            "failure": self.failure,
        }

    @classmethod
    def from_dict(cls, document: Any, place: str = "") -> Evaluation:
        """The inverse of `to_dict`.

        >>> evaluation = Evaluation(Config(), {"ratio": 2.5})
        >>> Evaluation.from_dict(evaluation.to_dict()) == evaluation
        True

        Raises
        ------
        InputError
            With the place in the document, also where a number is not finite.
        """
        check_mapping(document, place, [f.name for f in fields(cls)], required=("config", "metrics"))
        parts = {
            key: check_mapping(document.get(key, {}), join(place, key))
            for key in ("metrics", "spread", "traits", "origin")
        }
        config, failure = document["config"], document.get("failure")
        return cls(
            config=None if config is None else Config.from_dict(config, join(place, "config")),
            metrics={key: check_number(v, join(place, f"metrics.{key}")) for key, v in parts["metrics"].items()},
            spread={key: check_bounds(v, join(place, f"spread.{key}")) for key, v in parts["spread"].items()},
            traits={key: check_number(v, join(place, f"traits.{key}")) for key, v in parts["traits"].items()},
            origin=dict(parts["origin"]),
            failure=None if failure is None else check_str(failure, join(place, "failure")),
        )


def home() -> Path:
    """Where what a user's runs learn lives: `$TUNER_HOME`, else `$XDG_STATE_HOME/tuner`."""
    if given := os.environ.get("TUNER_HOME"):
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "tuner"


class Log:
    """An append-only file of evaluations, one JSON line each; a run appends to a file of its own.

    A line is handed to the system in one write: a kill leaves at most the last one torn, and `read_log` skips it.

    Parameters
    ----------
    path : path
        Made, with its folders, when the first evaluation arrives.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def append(self, evaluation: Evaluation) -> None:
        """Write one evaluation.

        Raises
        ------
        TunerError
            Where the file cannot be written to.
        """
        line = canonical_json(evaluation.to_dict()).encode() + b"\n"
        try:
            if self._handle is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                if os.fstat(self._handle).st_size:
                    line = b"\n" + line  # what another left torn is a line of its own
            while line:
                line = line[os.write(self._handle, line) :]
        except OSError as error:
            raise TunerError(f"{self.path}: the log cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Let go of the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_log(path: Path, containing: Iterable[str] = ()) -> Iterator[Evaluation]:
    """The evaluations of a log file, or of all ``*.jsonl`` below a folder; what is torn or not ours is skipped.

    Parameters
    ----------
    path : path
    containing : texts
        Only lines that contain one of them, where any are given; the others are not even parsed.
    """
    texts = [text.encode() for text in containing]
    files: Iterable[Path] = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    for file in files:
        try:
            lines = file.open("rb")
        except OSError:
            continue
        with lines:
            for line in lines:
                if texts and not any(text in line for text in texts):
                    continue
                try:
                    yield Evaluation.from_dict(json.loads(line))
                except (ValueError, RecursionError):  # InputError is a ValueError
                    continue
