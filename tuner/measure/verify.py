"""Whether a profile holds on other data than it was found on."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tuner.apply.checksum import CHECKSUM_NBYTES
from tuner.apply.cut import cut
from tuner.apply.pipeline import default_workers
from tuner.apply.plugin import open_encoder
from tuner.apply.prepare import Preparation, kept_of
from tuner.errors import CodecError, InputError, VerificationError
from tuner.estimate import doubts
from tuner.goal import Goal, Judge
from tuner.measure.analyses import analyse, check_allowed, scans_of
from tuner.measure.baseline import measure_baselines
from tuner.measure.meter import FINAL_WINDOWS, SEARCH_WINDOWS, Meter, same_bytes
from tuner.measure.target import Target
from tuner.profile import Profile
from tuner.read.sampling import draw_sample, with_repeats
from tuner.stack import Stack
from tuner.steps.reduced import reduced, times_smaller

#: Bytes that are read at once where a chunk is smaller.
_SLAB_NBYTES = 16 << 20


def verify_original(
    profile: Profile,
    stacks: Sequence[Stack],
    sample_nbytes: int,
    notify: Callable[[int, int], None] = lambda _done, _all: None,
    *,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Encode and decode every frame in memory, and hold the profile to its requirements on a sample.

    Parameters
    ----------
    profile : Profile
    stacks : sequence of Stack
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
        that made them, `metrics` on the sample, `requirements` with what was found, and `warnings`: timed requirements
        that this machine missed just now, and why the profile's noise may be too large for these frames.

    Raises
    ------
    InputError
        Where the profile is for other frames, or no frame was ever written.
    VerificationError
        Naming the first frame that does not come back bit for bit, or the requirement that is not met.
    """
    for stack in stacks:
        profile.match.check(stack.dtype, stack.frame_shape, stack.name)
    originals, stacks = stacks, [reduced(stack, profile.reduce) for stack in stacks]
    if profile.config.steps and profile.evidence.get("goal"):
        check_allowed(Goal.from_dict(profile.evidence["goal"], "evidence.goal"), allow_code)
    pixels = stored = frames = 0
    total = sum(len(stack) for stack in stacks)
    for stack in stacks:
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
                    for index, breach in enumerate(prepare.breaches(part, prepared)):
                        if breach is not None:
                            raise VerificationError(f"{stack.name}: frame {start + index}: {breach}")
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
                notify(frames, total)
    if not frames:
        raise InputError(f"{stacks[0].name}: must have frames that were written, got none")
    return {
        "frames": frames,
        "nbytes": pixels,
        "ratio": pixels / stored,
        "reduction": times_smaller(originals, stacks),
        **_hold(profile, stacks, sample_nbytes),
    }


def _hold(profile: Profile, stacks: Sequence[Stack], sample_nbytes: int) -> dict[str, Any]:
    """Measure the profile's requirements on a sample: what is exact must be met, what is timed is told."""
    document = profile.evidence.get("goal")
    if not document:
        return {"metrics": {}, "requirements": [], "warnings": []}
    goal = Goal.from_dict(document, "evidence.goal")
    sample = draw_sample(stacks, sample_nbytes)
    axes = stacks[0].shape
    pixels = [Preparation.of_stack(profile, stack).pixels for stack in stacks]
    meter = Meter(sample, len(stacks[0]) if len(axes) == 3 else 0, pixels, goal.qualities, target=_target(profile))
    evaluation = meter.timed(meter.exact(profile.config), FINAL_WINDOWS)
    if evaluation.failure is not None:
        raise VerificationError(f"{stacks[0].name}: {evaluation.failure}")
    if meter.target is not None:
        evaluation = meter.written(evaluation, meter.write(profile.config))
    if not profile.config.steps:  # no analysis can tell
        goal = goal.without_analyses
    elif goal.analyses:
        found = analyse(goal, scans_of(stacks, pixels, profile.config.steps))
        metrics, spread = {**evaluation.metrics, **found.metrics}, {**evaluation.spread, **found.spread}
        evaluation = replace(evaluation, metrics=metrics, spread=spread)
    judge = Judge(goal, measure_baselines(meter, SEARCH_WINDOWS))
    # What the best is, only a search could tell: here it is what the profile itself reaches.
    bounds = judge.bounds([evaluation])
    requirements, warnings = [], _suspicions(profile, stacks, sample_nbytes)
    for constraint, bound in zip(goal.require, bounds, strict=True):
        met = constraint.violation(evaluation, bound) <= 0
        got = evaluation.metrics.get(constraint.metric)
        if got is None:
            raise InputError(
                f"{stacks[0].name}: must have three axes, as the profile promises {constraint}, got {axes}"
            )
        requirements.append({"requirement": str(constraint), "limit": bound, "got": got, "met": met})
        low, high = evaluation.low(constraint.metric), evaluation.high(constraint.metric)
        # Of a limit on an analysis the far end of its interval counts.
        interval = f" ({low:.4g} to {high:.4g})" if low < high else ""
        text = f"{constraint} (here {bound:.4g}), got {got:.4g}{interval}"
        if not met and constraint.what.timed:
            warnings.append(f"this machine misses just now {text}")
        elif not met:
            raise VerificationError(f"{stacks[0].name}: the profile promises {text}")
    return {"metrics": dict(evaluation.metrics), "requirements": requirements, "warnings": warnings}


def _suspicions(profile: Profile, stacks: Sequence[Stack], sample_nbytes: int) -> list[str]:
    """Why the noise that steps rest on may be too large for these frames: limits in sigma then say nothing of them."""
    if not profile.config.steps or profile.noise is None:
        return []
    return [
        f"{stack.name}: the profile's noise may be too large for these frames: {doubt}"
        for stack in stacks
        for doubt in doubts(
            profile.noise, stack, with_repeats(draw_sample([stack], sample_nbytes), stack), math.inf, 1.0
        )
        if not doubt.safe
    ]


def _target(profile: Profile) -> Target | None:
    """Where a profile was written to when it was found; another folder where that is not there; none if it was not."""
    writer = profile.evidence.get("writer")
    if not writer:
        return None
    folder = Path(writer["target"])
    return Target(folder if folder.is_dir() else Path(tempfile.gettempdir()), default_workers())
