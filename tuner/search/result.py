"""What a search says: how far it is, and in the end what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tuner.evaluation import Evaluation
from tuner.goal import Goal


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search is."""

    phase: str
    """What it does just now."""
    measured: int
    """Configurations measured so far."""
    seconds: float
    """Time since it began."""
    best: Evaluation | None
    """The best so far."""
    itemsize: int
    """Bytes of a pixel."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a search found."""

    best: Evaluation
    """The configuration to take."""
    front: tuple[Evaluation, ...]
    """What was timed again and no other is better than in every objective."""
    baselines: Mapping[str, Evaluation]
    """What users have today, on the same sample."""
    fallback: Evaluation
    """The fastest lossless configuration for the same chunks."""
    goal: Goal
    """What was searched for."""
    itemsize: int
    """Bytes of a pixel."""
    measured: int
    """Configurations measured, baselines and finalists included."""
    seconds: float
    """How long it took."""
    stopped: str
    """Why it ended."""
