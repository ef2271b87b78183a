"""A search's result to a profile with the evidence for it."""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.apply.drift import PIECES
from tuner.config import Config
from tuner.container import BLOSC2, CONTAINERS
from tuner.evaluation import Evaluation
from tuner.measure.meter import FINAL_WINDOWS, Meter
from tuner.measure.probe import probe_traits
from tuner.measure.timing import Reference, machine, versions
from tuner.profile import Invalid, Match, Profile
from tuner.read.sampling import Sample, eligible_frames
from tuner.redundancy import redundancies
from tuner.search.result import Result
from tuner.stack import Stack
from tuner.steps import Pixels
from tuner.traits import traits

#: Runs of which traits are taken, at most.
_RUNS = 4

#: Frames that an envelope is of, if the data have as many.
_FRAMES = 8


def profile_of(
    name: str,
    result: Result,
    sample: Sample,
    stacks: Sequence[Stack],
    bounds: Mapping[str, tuple[float, float]],
    seed: int,
    h5py_mb_s: float,
) -> Profile:
    """The profile of a search's result.

    Parameters
    ----------
    name : str
    result : Result
    sample : Sample
        What was measured.
    stacks : sequence of Stack
        What the sample was drawn from.
    bounds : mapping
        Their `envelope`.
    seed : int
        What the sample was drawn with.
    h5py_mb_s : float
        Speed at which h5py reads single frames of what the configuration writes.
    """
    first = stacks[0]
    best, fallback = result.best.config, result.fallback.config
    assert best is not None
    assert fallback is not None
    axes = first.axes if len(first.axes) == len(first.shape) else ()
    mask = first.mask
    return Profile(
        name=name,
        match=Match(sample.dtype.name, axes, sample.frame_shape),
        config=best,
        fallback=fallback,
        invalid=Invalid(first.invalid, mask if mask is None else digest_of(mask), first.saturation, first.underload),
        envelope=bounds,
        evidence={
            "goal": result.goal.to_dict(),
            "metrics": {**_metrics(result.best), "h5py_frame_read_mb_s": _short(h5py_mb_s)},
            "fallback": _metrics(result.fallback),
            "baselines": {
                name: {metric: _short(evaluation.metrics[metric]) for metric in ("ratio", "encode_mb_s", "decode_mb_s")}
                for name, evaluation in result.baselines.items()
            },
            "sample": {
                "files": [readable(stack.name) for stack in stacks[:8]],
                "of_files": len(stacks),
                "frames": sample.n_frames,
                "of_frames": sum(len(stack) for stack in stacks),
                "nbytes": sample.nbytes,
                "seed": seed,
            },
            "data": f"sha256:{sample.digest}",
            "search": {"measured": result.measured, "seconds": _short(result.seconds), "stopped": result.stopped},
            "machine": {**machine(), **_reference(result.best)},
            "versions": versions(),
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
    )


def _reference(best: Evaluation) -> dict[str, float]:
    """The speed of a reference kernel beside its timing; empty for what was not timed before an interrupt."""
    return {name: _short(best.origin[name]) for name in ("reference_mb_s",) if name in best.origin}


def other_containers(config: Config, sample: Sample, pixels: Sequence[Pixels]) -> dict[str, Mapping[str, Any]]:
    """Ratio and speeds of what a configuration's steps make of a sample, in each other container that works here."""
    found: dict[str, Mapping[str, Any]] = {}
    for container in CONTAINERS.values():
        if container is not BLOSC2:
            meter = Meter(sample, pixels=pixels, container=container)
            metrics = _metrics(meter.timed(meter.exact(config), FINAL_WINDOWS))
            if metrics:  # not every hdf5plugin has the library of bitshuffle
                found[container.name] = {name: metrics[name] for name in ("ratio", "encode_mb_s", "decode_mb_s")}
    return found


def envelope(sample: Sample, stacks: Sequence[Stack]) -> dict[str, tuple[float, float]]:
    """The 5 % and 95 % quantiles of each trait over pieces of a sample; empty where there is but one.

    Of a sample of few frames, some others of the stacks count too: one large frame does not tell how frames differ.
    """
    rows = [traits(frames, stack.valid(frames), stack.saturated(frames)) for stack, frames in _pieces(sample, stacks)]
    if len(rows) < 2:
        return {}
    names = [name for name in rows[0] if all(name in row for row in rows)]
    bounds = {}
    for name in names:
        low, high = np.quantile([row[name] for row in rows], [0.05, 0.95])
        bounds[name] = (_short(float(low)), _short(float(high)))
    return bounds


def _pieces(sample: Sample, stacks: Sequence[Stack]) -> Iterator[tuple[Stack, NDArray[Any]]]:
    frames_each = max(1, sample.n_frames // PIECES)
    for run in sample.runs:
        for start in range(0, len(run.frames), frames_each):
            yield stacks[run.stack], run.frames[start : start + frames_each]
    if sample.n_frames >= _FRAMES:
        return
    sampled = {(run.stack, run.start + place) for run in sample.runs for place in range(len(run.frames))}
    eligible = [eligible_frames(stack) for stack in stacks]
    ends = np.cumsum([len(numbers) for numbers in eligible])
    for place in np.unique(np.linspace(0, ends[-1] - 1, _FRAMES).astype(int)):
        index = int(np.searchsorted(ends, place, side="right"))
        number = int(eligible[index][place - ends[index]])  # counted from the end
        if (index, number) not in sampled:
            yield stacks[index], stacks[index].read(number, number + 1)


def traits_of(sample: Sample, stacks: Sequence[Stack]) -> dict[str, float]:
    """What a guess is made from: traits and redundancies of some evenly spaced runs, on average, and a probe of all."""
    spaced = np.linspace(0, len(sample.runs) - 1, min(len(sample.runs), _RUNS)).round().astype(int)
    runs = [sample.runs[index] for index in spaced]
    rows = []
    for run in runs:
        stack = stacks[run.stack]
        valid, saturated = stack.valid(run.frames), stack.saturated(run.frames)
        rows.append({**traits(run.frames, valid, saturated), **redundancies(run.frames, valid)})
    weights = [run.frames.nbytes for run in runs]
    means = {name: float(np.average([row[name] for row in rows], weights=weights)) for name in rows[0]}
    return {**means, **probe_traits(sample, Reference())}


def digest_of(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
    """How a profile names a mask: SHA-256 of its shape and bits."""
    text = repr(mask.shape).encode() + np.packbits(mask).tobytes()
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def _metrics(evaluation: Evaluation) -> Mapping[str, Any]:
    """Metrics as evidence has them: a number, or [median, first quartile, third quartile]."""
    return {
        name: [_short(value), *(_short(bound) for bound in evaluation.spread[name])]
        if name in evaluation.spread
        else _short(value)
        for name, value in evaluation.metrics.items()
    }


def readable(name: str) -> str:
    """A file's name as text that every document takes; bytes that are no UTF-8 show as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _short(value: float) -> float:
    """A number with the digits that a measurement has."""
    return float(f"{value:.5g}")
