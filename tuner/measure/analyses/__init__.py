"""Analyses run on frames before and after: what lossy steps change of a scientist's result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tuner.analysis import Own, Peaks, RadialProfile, Reconstruction, Spectrum
from tuner.errors import InputError
from tuner.evaluation import Evaluation
from tuner.goal import Goal
from tuner.measure.analyses.own import run_own
from tuner.measure.analyses.peaks import compare_peaks
from tuner.measure.analyses.radial_profile import compare_profiles
from tuner.measure.analyses.reconstruction import compare_reconstructions
from tuner.measure.analyses.scan import Measured, Scan
from tuner.measure.analyses.spectrum import compare_spectra

__all__ = ["Measured", "Scan", "analyse", "check_allowed", "perfect"]

#: What runs each analysis: from it and a scan to its figures.
_RUN: Mapping[type[Any], Callable[[Any, Scan], dict[str, Measured]]] = {
    RadialProfile: compare_profiles,
    Peaks: compare_peaks,
    Reconstruction: compare_reconstructions,
    Spectrum: compare_spectra,
    Own: run_own,
}


def check_allowed(goal: Goal, allow_code: bool) -> None:
    """Raise InputError where a goal runs code of the user's that was not allowed on the command line."""
    for analysis in goal.analyses:
        if isinstance(analysis, Own) and not allow_code:
            raise InputError(
                f"analysis {analysis.name} runs {analysis.run}: --allow-code must be given, if you trust it"
            )


def perfect(goal: Goal) -> dict[str, float]:
    """What a goal's analyses answer where every pixel came back; those of the user's own are not asked."""
    return {f"{a.name}.{name}": figure.perfect for a in goal.analyses for name, figure in a.figures.items()}


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
            for name, measured in _RUN[type(analysis)](analysis, scan).items():
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
