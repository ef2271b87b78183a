"""Analyses run on frames before and after: what lossy steps change of a scientist's result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.analysis import G2, Contrast, Own, Peaks, RadialProfile, Reconstruction, Spectrum
from tuner.errors import InputError
from tuner.evaluation import Evaluation
from tuner.goal import Goal
from tuner.measure.analyses.contrast import compare_contrasts
from tuner.measure.analyses.g2 import compare_g2
from tuner.measure.analyses.own import run_own
from tuner.measure.analyses.peaks import compare_peaks
from tuner.measure.analyses.radial_profile import compare_profiles
from tuner.measure.analyses.reconstruction import compare_reconstructions
from tuner.measure.analyses.scan import Measured, Scan
from tuner.measure.analyses.spectrum import compare_spectra
from tuner.stack import Stack
from tuner.steps import Pixels, Step, prepare

__all__ = ["Measured", "Scan", "analyse", "breach", "check_allowed", "scans_of"]

#: Frames of a scan that are analysed at most, and their bytes: evenly spaced where there are more.
_MOST_FRAMES, _MOST_NBYTES = 4096, 512 << 20

#: What runs each analysis: from it and a scan to its figures.
_RUN: Mapping[type[Any], Callable[[Any, Scan], dict[str, Measured]]] = {
    RadialProfile: compare_profiles,
    Peaks: compare_peaks,
    Reconstruction: compare_reconstructions,
    Spectrum: compare_spectra,
    G2: compare_g2,
    Contrast: compare_contrasts,
    Own: run_own,
}


def check_allowed(goal: Goal, allow_code: bool) -> None:
    """Raise InputError where a goal runs code of the user's that was not allowed on the command line."""
    for analysis in goal.analyses:
        if isinstance(analysis, Own) and not allow_code:
            raise InputError(
                f"analysis {analysis.name} runs {analysis.run}: --allow-code must be given, if you trust it"
            )


def scans_of(
    stacks: Sequence[Stack],
    pixels: Sequence[Pixels],
    steps: Sequence[Step],
    frames: Mapping[int, Sequence[int]] | None = None,
) -> list[Scan]:
    """Scans of what steps make of some stacks.

    Parameters
    ----------
    stacks : sequence of Stack
    pixels : sequence of Pixels
        Of each stack.
    steps : sequence of Step
    frames : mapping, optional
        Index of a stack to numbers of its frames; all data frames of all stacks by default. Of many, evenly spaced ones
        are taken; an analysis that needs every frame of a scan takes them nevertheless.
    """
    scans = []
    for index, (stack, about) in enumerate(zip(stacks, pixels, strict=True)):
        change = partial(_prepare, steps, about)
        if frames is None:
            numbers = Scan(stack, np.empty(0, np.int64), about, change).whole().numbers
        else:
            numbers = np.unique(np.asarray(frames.get(index, ()), np.int64))
        most = min(len(numbers), _MOST_FRAMES, max(1, _MOST_NBYTES // max(1, stack.frame_nbytes)))
        numbers = numbers[np.linspace(0, len(numbers) - 1, most).astype(np.int64)]
        if len(numbers):
            scans.append(Scan(stack, numbers, about, change))
    return scans


def _prepare(steps: Sequence[Step], pixels: Pixels, frames: NDArray[Any]) -> NDArray[Any]:
    return prepare(steps, frames, pixels)


def breach(goal: Goal, found: Evaluation) -> str | None:
    """Which limit on an analysis is broken, in words: by the far end of its interval; None where all hold."""
    for constraint in goal.analysed:
        if constraint.violation(found, constraint.limit) > 0:
            low, high = found.low(constraint.metric), found.high(constraint.metric)
            got = f"{found.metrics[constraint.metric]:.4g}"
            return f"{constraint} is broken, got {got}" + (f" ({low:.4g} to {high:.4g})" if low < high else "")
    return None


def analyse(goal: Goal, scans: Sequence[Scan]) -> Evaluation:
    """Run a goal's analyses: each of its numbers as a metric, of the worst scan, with its interval as spread.

    Parameters
    ----------
    goal : Goal
        With analyses. Those of the user's own are run: `check_allowed` comes first.
    scans : sequence of Scan

    Raises
    ------
    InputError
        Where an analysis cannot be done to such frames, a library is missing, or an own one fails.
    """
    metrics: dict[str, float] = {}
    spread: dict[str, tuple[float, float]] = {}
    least = {c.metric for c in goal.require if c.op == ">="}
    for analysis in goal.analyses:
        for scan in scans:
            seen = scan.whole() if analysis.every else scan
            for name, measured in _RUN[type(analysis)](analysis, seen).items():
                metric = f"{analysis.name}.{name}"
                figure = analysis.figures.get(name)
                larger = metric in least if figure is None else figure.better == "larger"
                # What has no value meets no limit.
                value = measured.value if math.isfinite(measured.value) else (-math.inf if larger else math.inf)
                worse = min if larger else max
                if metric not in metrics or worse(value, metrics[metric]) == value:
                    metrics[metric] = value
                    spread[metric] = (measured.low, measured.high) if math.isfinite(measured.value) else (value, value)
    for constraint in goal.analysed:
        if constraint.metric not in metrics:
            known = sorted(name for name in metrics if name.startswith(constraint.metric.partition(".")[0] + "."))
            raise InputError(
                f"require must name a number that the analysis answers, got {constraint}; it answers {known}"
            )
    return Evaluation(None, metrics, spread)
