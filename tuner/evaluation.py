"""Evaluation: what one configuration did to one sample; and the append-only log that remembers it."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tuner.config import Config
from tuner.document import canonical_json, check_bounds, check_mapping, check_numbers, check_str, join
from tuner.errors import InputError, TunerError, TunerWarning
from tuner.quality import QUALITIES


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that a configuration is judged by."""

    text: str
    """What it is, in a line."""
    timed: bool
    """Whether it was taken with a clock, and so has a spread."""
    quality: bool = False
    """Whether it says what lossy steps did to pixels: to be required, not maximized; in others more is better."""

    @property
    def weight(self) -> float:
        """What its logarithm is worth beside that of others: twice the speed weighs as much as a tenth more ratio."""
        return math.log(1.1) / math.log(2) if self.timed else 1.0


#: Every metric by its name, which ends in its unit; a ratio has none.
METRICS = {
    "ratio": Metric("bytes of the pixels / bytes stored, frame headers, padding and checksums included", False),
    "encode_mb_s": Metric("MB of pixels encoded per second on one core", True),
    "decode_mb_s": Metric("MB of pixels decoded per second on one core", True),
    "frame_read_mb_s": Metric("useful MB per second when one frame is read: all chunks that hold it are decoded", True),
    "sinogram_read_mb_s": Metric("useful MB per second when one row of all frames is read, for three axes", True),
    "write_mb_s": Metric("MB of pixels per second that the writer takes with all its threads, to the target", True),
    **{name: Metric(quality.text, timed=False, quality=True) for name, quality in QUALITIES.items()},
}

#: A number that an analysis of a goal answers, which is named after it, such as ``peaks.recall``.
ANALYSED = Metric("a number of an analysis", False)

#: The metrics that a goal may maximize.
OBJECTIVES = tuple(name for name, metric in METRICS.items() if not metric.quality)


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
        spread, origin = (check_mapping(document.get(key, {}), join(place, key)) for key in ("spread", "origin"))
        config, failure = document["config"], document.get("failure")
        return cls(
            config=None if config is None else Config.from_dict(config, join(place, "config")),
            metrics=check_numbers(document["metrics"], join(place, "metrics")),
            spread={key: check_bounds(v, join(place, f"spread.{key}")) for key, v in spread.items()},
            traits=check_numbers(document.get("traits", {}), join(place, "traits")),
            origin=dict(origin),
            failure=None if failure is None else check_str(failure, join(place, "failure")),
        )


def home() -> Path:
    """Where what a user's runs learn lives: `$TUNER_HOME`, else `$XDG_STATE_HOME/tuner`.

    Raises
    ------
    InputError
        Where neither is given and the user has no home.
    """
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    try:  # cron and Slurm hand on a ~ as it is
        return Path(os.environ.get("TUNER_HOME") or f"{state}/tuner").expanduser()
    except RuntimeError:
        raise InputError("$TUNER_HOME must name a folder, as this user has no home, got none") from None


#: More than a search of the default budget logs.
_ROOM_NBYTES = 1 << 20


def check_room(folder: Path) -> None:
    """Make a folder below `home`, and see that it can be written to, before what is to be kept there takes its time.

    Raises
    ------
    TunerError
        Where it cannot, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_ROOM_NBYTES))
    except OSError as error:
        raise TunerError(
            f"{folder}: must be a folder that can be written to ($TUNER_HOME may name another): {error.strerror}"
        ) from None


class Log:
    """An append-only file of evaluations, one JSON line each; a run appends to a file of its own.

    A line is handed to the system in one write: a kill leaves at most the last one torn, and `read_log` skips it. What
    the line before of the same data says too, traits, machine and versions, is left out and only named under ``same``.

    Parameters
    ----------
    path : path
        Made, with its folders, when the first evaluation arrives.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        self._before: dict[str, dict[str, Any]] = {}

    def append(self, evaluation: Evaluation) -> None:
        """Write one evaluation.

        Raises
        ------
        TunerError
            Where the file cannot be written to.
        """
        text = canonical_json(_shortened(evaluation.to_dict(), self._before))
        # A file's name may hold bytes that are no UTF-8: JSON has them as \udcff.
        line = text.encode(errors="backslashreplace") + b"\n"
        try:
            if self._handle is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                if os.fstat(self._handle).st_size:
                    line = b"\n" + line  # what another left torn is a line of its own
            while line:
                line = line[os.write(self._handle, line) :]
        except OSError as error:
            # The next line must neither rely on this one nor go on where it was torn.
            self._before.clear()
            self.close()
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


#: So many bytes of logs are of use at most, and of one log are read: about what a model learns from.
_MOST_NBYTES = 128 << 20
#: A compressed log holds about so many times its size.
_PACKED = 10
#: No evaluation is longer.
_MOST_LINE_NBYTES = 1 << 20


def read_log(
    path: Path, containing: Iterable[str] = (), skipped: Callable[[str, str], object] = lambda *_: None
) -> Iterator[Evaluation]:
    """The evaluations of a log file, or of all logs below a folder; what is torn or not ours is skipped.

    A log is ``*.jsonl`` or ``*.jsonl.gz``. Where the line is torn or skipped that another one leaves traits, machine or
    versions to, that one has none. Of a log that is cut, damaged or longer than 128 MiB what is before is read, and a
    warning says so.

    Parameters
    ----------
    path : path
    containing : texts
        Only lines that contain one of them, such as digests of data, where any are given; others are not even parsed.
    skipped : callable
        Called with the place of each line that is no evaluation, and with what is wrong.
    """
    texts = [text.encode() for text in containing]
    for file in log_files(path):
        before: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(_lines(file), 1):
            if line.isspace() or (texts and not any(text in line for text in texts)):
                continue
            try:
                yield Evaluation.from_dict(_restored(json.loads(line), before))
            except InputError as error:
                skipped(f"{file}: line {number}", str(error))
            except (ValueError, RecursionError):
                skipped(f"{file}: line {number}", "is torn, or no JSON")


def log_files(path: Path) -> list[Path]:
    """The logs below a folder, in the order of their names; a file is one itself."""
    return sorted([*path.rglob("*.jsonl"), *path.rglob("*.jsonl.gz")]) if path.is_dir() else [path]


def latest_logs(paths: Iterable[Path]) -> tuple[list[Path], int]:
    """The logs below some folders, or files, that hold 128 MiB together, and how many earlier ones do not fit.

    They are in the order of their names, which begin with a date; of however large ones, the latest is there.
    """
    found = sorted({file for path in paths for file in log_files(path)}, key=lambda file: (file.name, file))
    left, room = len(found), _MOST_NBYTES
    while left and (room > 0 or left == len(found)):
        left -= 1
        with contextlib.suppress(OSError):  # it was removed meanwhile
            room -= found[left].stat().st_size * (_PACKED if found[left].suffix == ".gz" else 1)
    return found[left:], left


#: What may be left out of a line: the traits, and these of the origin.
_REPEATED = ("machine", "versions")


def _lines(file: Path) -> Iterator[bytes]:
    """The lines of a log, as far as it can be read."""
    number, room = 0, _MOST_NBYTES
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            while (line := lines.readline(_MOST_LINE_NBYTES)) and (room := room - len(line)) >= 0:
                yield line
                number += 1
        damage = f"must be of at most {_MOST_NBYTES >> 20} MiB" if line else None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        damage = "is cut or damaged"
    except OSError:
        return
    if damage:
        warnings.warn(f"{file}: {damage}: only its first {number} lines are read", TunerWarning, stacklevel=2)


def _shortened(document: dict[str, Any], before: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A line's document without what `before` has of the same data; `before` is brought up to date."""
    origin = document["origin"]
    known = before.setdefault(str(origin.get("data")), {})
    whole = {"traits": document["traits"], **{key: origin[key] for key in _REPEATED if key in origin}}
    same = [key for key, value in whole.items() if value and known.get(key) == value]
    known.update(whole)
    if not same:
        return document
    short = {key: value for key, value in document.items() if key not in same}
    return {**short, "origin": {key: value for key, value in origin.items() if key not in same}, "same": same}


def _restored(document: Any, before: dict[str, dict[str, Any]]) -> Any:
    """The inverse of `_shortened`, line by line; what is no such document is left to `Evaluation.from_dict`."""
    if not isinstance(document, dict) or not isinstance(origin := document.get("origin"), dict):
        return document
    known = before.setdefault(str(origin.get("data")), {})
    same = document.pop("same", None)
    for key in known if isinstance(same, list) else ():
        if key in same:
            (document if key == "traits" else origin)[key] = known[key]
    known["traits"] = document.get("traits", {})
    known.update((key, origin[key]) for key in _REPEATED if key in origin)
    return document
