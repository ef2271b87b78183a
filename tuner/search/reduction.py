"""What a reduction did before anything was searched for: how much smaller frames became, and what it hid."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tuner.errors import InputError
from tuner.noise import Noise
from tuner.profile import Invalid, Profile
from tuner.read.sampling import Sample
from tuner.search.evidence import digest_of
from tuner.search.promise import CONFIDENCE, upper_bound
from tuner.stack import Stack
from tuner.steps.reduced import Chain, Reduced, times_smaller
from tuner.steps.reductions import Reduction, Scale
from tuner.steps.triage import Triage

#: Frames that triage leaves out and that are looked at again, at most.
_AUDITED = 300

#: Frames that are looked at for pixels that a reduction hides, at most.
_FRAMES = 16


def noise_of(noise: Noise, stack: Stack) -> Noise:
    """The noise of a stack's pixels, from that of a pixel of the detector."""
    return stack.source.chain.noise(noise) if isinstance(stack.source, Reduced) else noise


def about_reduction(originals: Sequence[Stack], stacks: Sequence[Stack], sample: Sample) -> dict[str, Any]:
    """What a profile says of its reduction, as evidence: the part of the ratio that is due to it, apart from the rest.

    Parameters
    ----------
    originals : sequence of Stack
    stacks : sequence of Stack
        The same as reduced.
    sample : Sample
        Of the reduced ones.

    Raises
    ------
    InputError
        Where pixels that count have no value afterwards, as they are below the dtype that they are scaled to.
    """
    frames = ((stacks[run.stack], run.start + i) for run in sample.runs for i in range(len(run.frames)))
    hidden = [_hidden(*frame) for frame in itertools.islice(frames, _FRAMES)]
    triaged = {"triage": _triaged(stacks)} if any(_triage(stack) for stack in stacks) else {}
    return {
        "dtype": stacks[0].dtype.name,
        "frame_shape": list(stacks[0].frame_shape),
        "frames": [sum(map(len, originals)), sum(map(len, stacks))],
        "ratio": float(f"{times_smaller(originals, stacks):.5g}"),
        "compared_with": "the same reduction of the original",
        "saturated": {
            "before": float(f"{np.mean([before for before, _ in hidden]):.3g}"),
            "after": float(f"{np.mean([after for _, after in hidden]):.3g}"),
        },
        **triaged,
    }


def _triage(stack: Stack) -> Triage | None:
    return stack.source.chain.find(Triage) if isinstance(stack.source, Reduced) else None


def _triaged(stacks: Sequence[Stack]) -> dict[str, float]:
    """What triage left out, and the share of it that are hits: as many weaker peaks, in boxes of pixels."""
    left: list[tuple[Stack, int]] = []
    audited = 0
    for stack in stacks:
        source = stack.source
        assert isinstance(source, Reduced)
        original = source.original
        kept = np.zeros(len(original), np.bool_)
        kept[source.starts[~source.audited]] = True
        audited += int(np.count_nonzero(source.audited))
        left += [(stack, int(number)) for number in np.flatnonzero(~kept)]
    looked = [left[at] for at in np.linspace(0, len(left) - 1, min(len(left), _AUDITED)).astype(int)]
    hits = sum(_is_hit(stack, number) for stack, number in looked)
    return {
        "without_peaks": len(left),
        "audited": audited,
        "looked": len(looked),
        "lost_hits": float(f"{hits / len(looked):.3g}") if looked else 0.0,
        "lost_hits_bound": float(f"{upper_bound(len(looked), CONFIDENCE, hits):.3g}") if left else 0.0,
    }


def _is_hit(stack: Stack, number: int) -> bool:
    triage, source = _triage(stack), stack.source
    assert triage is not None
    assert isinstance(source, Reduced)
    frame = source.original.read(number, number + 1)
    return triage.count_weak(frame[0], source.original.valid(frame)[0]) >= triage.peaks


def as_of(profile: Profile, original: Stack, reductions: tuple[Reduction, ...], about: Mapping[str, Any]) -> Profile:
    """The profile of reduced frames as one that reduces them: for frames as they were, with the evidence of that."""
    mask = original.mask
    return replace(
        profile,
        match=replace(profile.match, dtype=original.dtype.name, frame_shape=original.frame_shape),
        invalid=Invalid(
            original.invalid, None if mask is None else digest_of(mask), original.saturation, original.underload
        ),
        reduce=reductions,
        evidence={**profile.evidence, "reduction": dict(about)},
    )


def _hidden(stack: Stack, frame: int) -> tuple[float, float]:
    """Shares of pixels that are saturated in what a frame is made of, and in the frame."""
    source = stack.source
    assert isinstance(source, Reduced)
    chain, start = source.chain, int(source.starts[frame])
    parts = source.original.read(start, start + chain.each)
    scale = chain.find(Scale)
    if scale is not None:
        unscaled = Chain(chain.reductions[:-1], chain.before)
        values, stored = unscaled.frames(parts), chain.frames(parts)
        counted = unscaled.after.marks.valid(values, unscaled.after.mask)
        kept = stack.valid(stored) | stack.saturated(stored)
        if (counted & ~kept).any():
            least = float(values[counted].min())
            most = least / scale.factor - (stack.underload or 0)
            raise InputError(
                f"{stack.name}: reduction scale must leave room for the least value, {least:g}: its offset must be at"
                f" most {most:g}, got {scale.offset:g}"
            )
    after = stack.saturated(chain.frames(parts))
    return float(source.original.saturated(parts).mean()), float(after.mean())
