"""Lossy steps: the noise they rest on, which of a space's are allowed, and what is left to compress."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tuner.config import Blosc2, Config
from tuner.errors import InputError, TunerWarning
from tuner.estimate import Doubt, believe, estimate
from tuner.evaluation import Evaluation, Log
from tuner.goal import Constraint, Goal, Judge, broken
from tuner.measure.meter import Meter
from tuner.noise import Noise
from tuner.quality import compare
from tuner.read.sampling import Sample, with_repeats
from tuner.stack import Stack
from tuner.steps import Pixels, Step, check_steps, prepare
from tuner.steps.information import informative_bits
from tuner.steps.pointwise import Pointwise
from tuner.steps.uniform import Mantissa
from tuner.traits import common_step, stuck, traits

#: What of quality every lossy profile reports, whatever its goal requires.
REPORTED = ("mask_violations", "max_abs_error", "max_error_sigma", "dose_cost", "bias_sigma")

#: By these, what steps leave is compressed to compare them: fast, and near the best for most data.
_PROBES = (
    Blosc2("zstd", clevel=1, filters=("bitshuffle",), splitmode="never", blocksize=1 << 18),
    Blosc2("zstd", clevel=1, filters=("shuffle",), splitmode="always", blocksize=1 << 18),
    Blosc2("zstd", clevel=3, filters=("shuffle", "bytedelta"), splitmode="always", blocksize=1 << 20),
)
#: Bytes of frames that they compress at once, about.
_PROBED_NBYTES = 1 << 20

#: By how much, as a logarithm, steps must be better than none.
_LEAST_GAIN = 0.01

#: What steps do to each pixel by itself; and how many are asked before all.
BOUNDED = ("max_abs_error", "max_error_sigma")
_ASKED = 1 << 16


@dataclass(frozen=True, slots=True)
class NoiseFound:
    """The noise that steps and limits in sigma rest on."""

    noise: Noise
    """The one that is used."""
    estimates: tuple[Noise, ...]
    """All that the data allows."""
    doubts: tuple[Doubt, ...]
    """Why it may be wrong; an estimate of which one is not safe is not used."""
    step: float = 1.0
    """Of which the values are multiples, data units; 0 where they are of none."""


def settle_noise(given: Noise | None, stack: Stack, sample: Sample, lossless: Evaluation) -> NoiseFound:
    """The noise of a stack: given, as the file declares, or the smallest estimate that nothing speaks against.

    Parameters
    ----------
    given : Noise, optional
    stack : Stack
    sample : Sample
        Of that stack.
    lossless : Evaluation
        The best that a lossless configuration made of the sample.

    Raises
    ------
    InputError
        Where there is no noise to find, or the data speaks against all that is found.
    """
    runs = with_repeats(sample, stack)
    frames = np.concatenate([run.frames for run in sample.runs])
    valid = stack.valid(frames)
    floats = frames.dtype.kind == "f"
    grid = traits(frames, valid, stack.saturated(frames))["step"] if floats else max(common_step(frames[valid]), 1.0)
    # Whole numbers that are multiples of more may be so by chance, and must not make the noise any larger.
    step = grid if floats else 1.0
    value, share = stuck(frames, valid)
    if share:
        text = (
            f"{share:.2g} of the pixels are {value} in every frame that was looked at: if these are gaps, _FillValue of"
        )
        warnings.warn(
            f"{stack.name}: {text} the dataset must say so, or they may be rounded", TunerWarning, stacklevel=4
        )
    estimates = estimate(stack, runs)
    if given is None and not estimates:
        raise InputError(f"{stack.name}: --noise must be given, as the data tells none")
    bits = frames.nbytes * 8 / lossless.metrics["ratio"] / max(1, int(np.count_nonzero(valid)))
    candidates = [noise.floored(step) for noise in ((given,) if given else estimates)]
    noise, found = believe(candidates[:1] if stack.photon_counting else candidates, stack, runs, bits, step)
    unsafe = [doubt for doubt in found if not doubt.safe]
    if unsafe and given is None and not stack.photon_counting:
        raise InputError(f"{stack.name}: --noise must be given, as the estimate from {noise.source} fails: {unsafe[0]}")
    return NoiseFound(noise, estimates, found, grid)


def on_grid(options: Sequence[tuple[Step, ...]], step: float) -> list[tuple[Step, ...]]:
    """The same steps, on the grid of values that are multiples of `step`, or of none where it is 0.

    A step leaves values that are not on its grid: of quarters all but one in four, if it takes them for whole numbers.
    Where it takes multiples of 16 for whole numbers, it moves means: most values of a bin do not occur.

    >>> from tuner.steps.noise_aware import Sigma
    >>> [option[0].grid for option in on_grid([(Sigma(1.0),), (Sigma(1.0, grid=0.125),), (Sigma(1.0, grid=0),)], 0.25)]
    [0.25, 0.25, 0.0]
    """
    return [
        tuple(replace(one, grid=step) if getattr(one, "grid", 0.0) else one for one in steps)  # type: ignore[type-var]
        for steps in options
    ]


def informed(options: Sequence[tuple[Step, ...]], sample: Sample, pixels: Sequence[Pixels]) -> list[tuple[Step, ...]]:
    """The same options, and, where one rounds mantissas alone, one that keeps the bits which hold information."""
    if sample.dtype.kind != "f" or not any(len(o) == 1 and isinstance(o[0], Mantissa) for o in options):
        return list(options)
    frames = np.concatenate([run.frames for run in sample.runs])
    valid = np.concatenate([pixels[run.stack].valid(run.frames) for run in sample.runs])
    keep = informative_bits(frames, valid)
    proposed = [] if keep is None else [(Mantissa(keep),)]
    return list(dict.fromkeys([*options, *proposed]))


@dataclass(frozen=True, slots=True)
class Option:
    """One way to prepare frames that a space allows."""

    steps: tuple[Step, ...]
    """The steps."""
    evaluation: Evaluation
    """What a fast codec makes of what they leave, and the qualities."""


def rank_steps(
    options: Sequence[tuple[Step, ...]], meter: Meter, goal: Goal, log: Log
) -> tuple[list[Option], list[Evaluation]]:
    """The options that keep the goal's limits on quality, the most promising first; and those that do not.

    Qualities are taken once for each option, and what it leaves is compressed by fast codecs only: which codec is best
    is searched for afterwards, for the option that is taken. What some pixels break is not tried on the rest. No pixel
    is given away for less than a per cent.
    """
    quality = replace(goal, require=goal.limits)
    judge = Judge(quality, {})
    single = tuple(limit for limit in goal.limits if limit.metric in BOUNDED and limit.op == "<=")
    allowed: list[Option] = []
    refused: list[Evaluation] = []
    shape, itemsize = meter.sample.frame_shape, meter.sample.dtype.itemsize
    several = max(1, min(len(meter.sample.runs[0].frames), _PROBED_NBYTES // (math.prod(shape) * itemsize)))
    chunks = (1 << several.bit_length() - 1, *(-1,) * len(shape))
    for steps in options:
        if (far := _too_far(steps, meter, single)) is not None:
            refused.append(Evaluation(Config(chunks, steps=steps), failure=far))
            continue
        probes = (meter.exact(Config(chunks, replace(b, typesize=itemsize), steps)) for b in _PROBES)
        best = next(probes)
        if best.failure is not None or judge.feasible([best]):  # else no codec makes it better
            best = max((best, *probes), key=lambda e: e.metrics.get("ratio", 0.0))
        log.append(meter.signed(best))
        if best.failure is None and judge.feasible([best]):
            allowed.append(Option(steps, best))
        else:
            refused.append(best)
    allowed.sort(key=lambda o: judge.worth(o.evaluation) + (0 if o.steps else _LEAST_GAIN), reverse=True)
    return allowed, refused


def _too_far(steps: tuple[Step, ...], meter: Meter, limits: Sequence[Constraint]) -> str | None:
    """Which limit on single pixels a few of the sample break already, in words: all of them break it too.

    What rounds single pixels is asked with some rows of a frame, other steps with a frame, unless there is no other.
    """
    if not steps or not limits:
        return None
    run, every = meter.sample.runs[0], 1
    if all(isinstance(step, Pointwise) for step in steps):
        every = -(-math.prod(meter.sample.frame_shape) // _ASKED)
    elif sum(len(other.frames) for other in meter.sample.runs) == 1:
        return None
    about, part = meter.pixels[run.stack], run.frames[:1, ::every]
    rows = replace(about, mask=None if about.mask is None else about.mask[::every])
    try:
        check_steps(steps, part.dtype, about.noise)
    except InputError:  # which is told as any other failure
        return None
    after = prepare(steps, part, rows)
    names = ("mask_violations", *(limit.metric for limit in limits))
    valid, still = rows.valid(part), rows.valid(after)
    if meter.seen is not None:  # as for all of the sample
        seen = meter.seen[::every]
        part, after, valid, still = np.where(seen, part, 0), np.where(seen, after, 0), valid & seen, still & seen
    return broken(compare(part, after, valid, about.noise, names, still_valid=still), limits)
