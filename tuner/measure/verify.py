"""Whether a profile holds on other data than it was found on, and how unlike they are."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tuner.apply.checksum import CHECKSUM_NBYTES
from tuner.apply.cut import cut
from tuner.apply.drift import SHRUNK, drift_bounds, piece_frames
from tuner.apply.pipeline import default_workers
from tuner.apply.plugin import open_encoder
from tuner.apply.prepare import Preparation, kept_of
from tuner.errors import CodecError, InputError, VerificationError
from tuner.estimate import doubts
from tuner.evaluation import METRICS, Evaluation
from tuner.goal import Goal, Judge
from tuner.measure.baseline import measure_baselines
from tuner.measure.meter import FINAL_WINDOWS, SEARCH_WINDOWS, Meter, same_bytes
from tuner.measure.target import Target
from tuner.measure.timing import machine
from tuner.profile import Profile
from tuner.read.sampling import Sample, draw_sample, with_repeats
from tuner.stack import Stack
from tuner.steps.reduced import reduced, times_smaller
from tuner.traits import traits

#: Bytes that are read at once where a chunk is smaller.
_SLAB_NBYTES = 16 << 20


def verify_original(
    profile: Profile,
    original: Stack,
    sample_nbytes: int,
    notify: Callable[[int, int], None] = lambda _done, _all: None,
    *,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Encode and decode every frame in memory, and hold the profile to its requirements on a sample.

    Parameters
    ----------
    profile : Profile
    original : Stack
        Of the dtype and frame shape that the profile is for.
    sample_nbytes : int
        Bytes of the sample that requirements are measured on.
    notify : callable
        Called with the frames done and all frames.
    allow_code : bool
        Run analyses of the user's own that the profile's goal names.

    Returns
    -------
    dict
        `frames`, `nbytes`, `ratio` over all frames as reduced that were written, `reduction`, how many times smaller
        that made them, `metrics` on the sample, `reference_mb_s`, the speed of a reference kernel beside them, `worth`,
        the logarithm of what they are worth to the goal, with speeds relative to that kernel: profiles of one goal
        compare by it; `requirements` with what was found;
        `outside`, what is unlike the data that the profile was measured on, as [value, low, high], None for no bound:
        traits and ratio beyond what a writer warns of, and speeds on such a processor, relative likewise; and
        `warnings`: timed requirements that this machine missed just now, and why the profile's noise may be too large
        for these frames. Without a goal in its evidence a profile has neither metrics nor worth.

    Raises
    ------
    InputError
        Where the profile is for other frames, or no frame was ever written.
    VerificationError
        Naming the first frame that does not come back bit for bit; or the first that breaks a limit on quality, else
        the requirement that is not met, with all of the above as its `found`.
    """
    profile.match.check(original.dtype, original.frame_shape, original.name)
    stack = reduced(original, profile.reduce)
    document = profile.evidence.get("goal")
    if profile.config.steps and document and (goal := Goal.from_dict(document, "evidence.goal")).analyses:
        from tuner.measure.analyses import check_allowed  # they need scipy

        check_allowed(goal, allow_code)
    pixels = stored = frames = 0
    breaches: list[str] = []
    resolved = profile.config.resolve(stack.frame_shape, stack.dtype)
    prepare = Preparation.of_stack(profile, stack)
    written = stack.written()
    with closing(open_encoder(resolved, profile.fallback.blosc2, stack.dtype)) as encoder:
        decoded = np.empty(resolved.chunks, stack.dtype)
        depth = resolved.chunks[0]
        step = depth * max(1, _SLAB_NBYTES // max(1, depth * stack.frame_nbytes))
        for start in range(0, len(stack), step):
            part = stack.read(start, min(start + step, len(stack)))
            prepared = prepare(part, kept_of(stack, start, start + len(part)))
            if profile.config.steps:
                found = enumerate(prepare.breaches(part, prepared), start)
                breaches += [f"frame {number}: {breach}" for number, breach in found if breach is not None]
            for corner, chunk in cut(prepared, resolved.chunks):
                if not written[start + corner[0] :][:depth].any():  # nor would it be
                    continue
                try:
                    frame = encoder.encode(chunk)
                    encoder.decode(frame, decoded)
                except CodecError as error:
                    raise VerificationError(f"{stack.name}: frame {start + corner[0]}: {error}") from None
                if not same_bytes(chunk, decoded):
                    wrong = next(i for i in range(depth) if not same_bytes(chunk[i], decoded[i]))
                    raise VerificationError(
                        f"{stack.name}: frame {start + corner[0] + wrong}: does not decode to the same pixels"
                    )
                stored += len(frame) + CHECKSUM_NBYTES
            count = int(np.count_nonzero(written[start : start + len(part)]))
            pixels += count * stack.frame_nbytes
            frames += count
            notify(frames, len(stack))
    if not frames:
        raise InputError(f"{stack.name}: must have frames that were written, got none")
    held, missed = _hold(profile, stack, sample_nbytes)
    verified = {
        "frames": frames,
        "nbytes": pixels,
        "ratio": pixels / stored,
        "reduction": times_smaller([original], [stack]),
        **held,
    }
    if breaches:
        more = f"; {len(breaches)} of {len(stack)} frames break a limit" if len(breaches) > 1 else ""
        raise VerificationError(f"{stack.name}: {breaches[0]}{more}", verified)
    if missed:
        raise VerificationError(f"{stack.name}: {missed}", verified)
    return verified


def _hold(profile: Profile, stack: Stack, sample_nbytes: int) -> tuple[dict[str, Any], str]:
    """Measure the profile's requirements on a sample: what is timed is told, what is exact and not met, in words."""
    document = profile.evidence.get("goal")
    if not document:
        nothing: dict[str, Any] = {"requirements": [], "outside": {}, "warnings": []}
        return {"metrics": {}, "reference_mb_s": None, "worth": None, **nothing}, ""
    goal = Goal.from_dict(document, "evidence.goal")
    sample = draw_sample([stack], sample_nbytes)
    pixels = [Preparation.of_stack(profile, stack).pixels]
    meter = Meter(sample, len(stack) if len(stack.shape) == 3 else 0, pixels, goal.qualities, target=_target(profile))
    evaluation = meter.timed(meter.exact(profile.config), FINAL_WINDOWS)
    if evaluation.failure is not None:
        raise VerificationError(f"{stack.name}: {evaluation.failure}")
    if meter.target is not None:
        evaluation = meter.written(evaluation, meter.write(profile.config))
    if not profile.config.steps:  # no analysis can tell
        goal = goal.without_analyses
    elif goal.analyses:
        from tuner.measure.analyses import analyse, scans_of

        found = analyse(goal, scans_of([stack], pixels, profile.config.steps))
        metrics, spread = {**evaluation.metrics, **found.metrics}, {**evaluation.spread, **found.spread}
        evaluation = replace(evaluation, metrics=metrics, spread=spread)
    judge = Judge(goal, measure_baselines(meter, SEARCH_WINDOWS))
    # What the best is, only a search could tell: here it is what the profile itself reaches.
    bounds = judge.bounds([evaluation])
    requirements, missed, warnings = [], "", _suspicions(profile, stack, sample)
    for constraint, bound in zip(goal.require, bounds, strict=True):
        met = constraint.violation(evaluation, bound) <= 0
        got = evaluation.metrics.get(constraint.metric)
        if got is None:
            raise InputError(
                f"{stack.name}: must have three axes, as the profile promises {constraint}, got {stack.shape}"
            )
        requirements.append({"requirement": str(constraint), "limit": bound, "got": got, "met": met})
        low, high = evaluation.low(constraint.metric), evaluation.high(constraint.metric)
        # Of a limit on an analysis the far end of its interval counts.
        interval = f" ({low:.4g} to {high:.4g})" if low < high else ""
        text = f"{constraint} (here {bound:.4g}), got {got:.4g}{interval}"
        if not met and constraint.what.timed:
            warnings.append(f"this machine misses just now {text}")
        elif not met:
            missed = missed or f"the profile promises {text}"
    return {
        "metrics": dict(evaluation.metrics),
        "reference_mb_s": evaluation.origin["reference_mb_s"],
        "worth": _worth(judge, evaluation),
        "requirements": requirements,
        "outside": _outside(profile, stack, sample, evaluation),
        "warnings": warnings,
    }, missed


def _worth(judge: Judge, evaluation: Evaluation) -> float | None:
    """What the goal's objectives are worth, as if the reference kernel did 1 MB/s; None where one was not measured."""
    if not {*judge.goal.maximize} <= {*evaluation.metrics}:
        return None
    timed = sum(METRICS[name].weight for name in judge.goal.maximize if METRICS[name].timed)
    return judge.worth(evaluation) - timed * math.log(evaluation.origin["reference_mb_s"])


def _outside(
    profile: Profile, stack: Stack, sample: Sample, evaluation: Evaluation
) -> dict[str, tuple[float, float, float | None]]:
    """What is unlike the data that a profile was measured on: of traits, the median over pieces of a sample."""
    bounds = drift_bounds(profile, stack.mask is not None)
    if not bounds:
        return {}
    frames_each = piece_frames(profile)
    rows = [
        traits(piece, stack.valid(piece), stack.saturated(piece))
        for run in sample.runs
        for piece in (run.frames[start : start + frames_each] for start in range(0, len(run.frames), frames_each))
    ]
    values = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    values["ratio"] = evaluation.metrics["ratio"]
    before = profile.evidence.get("machine", {})
    if before.get("cpu") == machine()["cpu"] and "reference_mb_s" in before:
        busy = evaluation.origin["reference_mb_s"] / before["reference_mb_s"]  # so that other work is no drift
        for name in ("encode_mb_s", "decode_mb_s"):
            values[name] = evaluation.high(name)
            bounds[name] = (busy * SHRUNK * float(np.min(profile.evidence["metrics"][name])), math.inf)
    return {
        name: (values[name], low, high if math.isfinite(high) else None)
        for name, (low, high) in bounds.items()
        if name in values and not low <= values[name] <= high
    }


def _suspicions(profile: Profile, stack: Stack, sample: Sample) -> list[str]:
    """Why the noise that steps rest on may be too large for these frames: limits in sigma then say nothing of them."""
    if not profile.config.steps or profile.noise is None:
        return []
    return [
        f"{stack.name}: the profile's noise may be too large for these frames: {doubt}"
        for doubt in doubts(profile.noise, stack, with_repeats(sample, stack), math.inf, 1.0)
        if not doubt.safe
    ]


def _target(profile: Profile) -> Target | None:
    """Where a profile was written to when it was found; another folder where that is not there; none if it was not."""
    writer = profile.evidence.get("writer")
    if not writer:
        return None
    folder = Path(writer["target"])
    return Target(folder if folder.is_dir() else Path(tempfile.gettempdir()), default_workers())
