"""Verdicts: which log's surrogate is the champion, since when and why; each in a file that is never changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tuner.document import write_atomically
from tuner.errors import TunerError
from tuner.evaluation import home

#: How verdicts call the log that comes with the package.
SHIPPED = "shipped"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided, and from what."""

    decision: str
    """``promoted``, ``kept`` or ``rolled back``."""
    reason: str
    """Why, in a sentence."""
    champion: str
    """The log that the surrogate learns from afterwards: `SHIPPED`, or the digest of a kept one."""
    before: str
    """The log that it learned from before."""
    date: str
    """When, ISO 8601 in UTC."""
    number: int = 0
    """Its place among all; the last one that did not keep the champion rules."""
    log: Mapping[str, int] = field(default_factory=dict)
    """Evaluations and data sets that the challenger learned from, and those of them that were new."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason to the number of evaluations that were not learned from."""
    judged: int = 0
    """Data sets on which both were judged."""
    regret: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    """Goal to champion and challenger to mean and worst regret over data sets, a logarithm."""
    difference: tuple[float, float, float] | None = None
    """Mean of what the challenger's regret is less by, and its 95 % interval."""
    within: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    """Champion and challenger to target to the shares within one and two standard deviations."""

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def folder() -> Path:
    """Where the champion, its cache and the verdicts live."""
    return home() / "surrogate"


def verdicts() -> list[Verdict]:
    """All verdicts, the oldest first; what is no whole verdict is skipped."""
    found = []
    for path in sorted((folder() / "verdicts").glob("[0-9]*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            verdict = Verdict(**{key: document[key] for key in document if key in _KEYS})
            if isinstance(verdict.champion, str) and isinstance(verdict.number, int):
                found.append(verdict)
        except (OSError, ValueError, TypeError):
            continue
    return sorted(found, key=lambda verdict: verdict.number)


def champion_log() -> str:
    """The log that today's champion learns from: who keeps it does not undo what another process decided meanwhile."""
    return next((verdict.champion for verdict in reversed(verdicts()) if verdict.decision != "kept"), SHIPPED)


def write_verdict(verdict: Verdict) -> Verdict:
    """Keep a verdict under the next free number; from then on it rules, unless it keeps the champion.

    Raises
    ------
    TunerError
        Where it cannot be written.
    """
    place = folder() / "verdicts"
    try:
        place.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.stem) for path in place.glob("[0-9]*.json") if path.stem.isdecimal()), default=0)
        while True:
            path = place / f"{number:04d}.json"
            try:  # an empty file takes the number, also from another process; a kill here leaves no verdict
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
                break
            except FileExistsError:
                number += 1
    except OSError as error:
        raise TunerError(f"{place}: the verdict cannot be written: {error.strerror}") from None
    document = {**verdict.to_dict(), "number": number}
    write_atomically(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
    return Verdict(**document)


_KEYS = frozenset(f.name for f in fields(Verdict))
