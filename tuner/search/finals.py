"""The end of a search: what is timed again, in turn, and what a writer falls back to."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Collection, Sequence
from dataclasses import replace

from tuner.config import Blosc2, Config
from tuner.errors import CodecError
from tuner.evaluation import Evaluation
from tuner.goal import Judge
from tuner.measure.baseline import measure_baselines
from tuner.measure.meter import Meter
from tuner.measure.timing import Timing

#: A configuration this far from a timed limit, relative to it, may be on the other side when it is timed again.
ROOM = 0.1

#: What is fast and lossless for nearly all data, the last by storing.
_FAST = (
    Blosc2("lz4", clevel=1, filters=("bitshuffle",), splitmode="never"),
    Blosc2("lz4", clevel=1, filters=("shuffle",), splitmode="always"),
    Blosc2("lz4", clevel=0, filters=(), splitmode="never"),
)


def candidates(judge: Judge, evaluations: Sequence[Evaluation], prefer: str | None, most: int) -> list[Evaluation]:
    """What may be the best: the best ranked, what nearly met a limit, and what limits refer to as `best`.

    Among the first few is one that meets timed limits with room to spare, should the clock have been kind to others.

    Parameters
    ----------
    judge : Judge
    evaluations : sequence of Evaluation
        All that was measured.
    prefer : str, optional
        The objective that alone decides.
    most : int
        How many of the best ranked there are at most, and of what nearly met a limit.

    Returns
    -------
    list of Evaluation
        Those to look at first come first; the nearest where nothing comes near, and empty where nothing was measured.
    """
    bounds = judge.bounds(evaluations)
    worth = functools.partial(judge.worth, prefer=prefer)
    measured = [e for e in evaluations if e.failure is None]
    ranked = judge.rank(evaluations, prefer)[:most]
    missed = {id(e): max(judge.violations(e, bounds), default=0.0) for e in measured}
    nearly = sorted((e for e in measured if 0 < missed[id(e)] <= ROOM), key=lambda e: missed[id(e)])
    if ranked:
        nearly = [e for e in nearly if worth(e) > worth(ranked[0])][:most]
    nearly.sort(key=worth, reverse=True)
    named = {c.metric for c in judge.goal.require if c.name == "best"}
    found = [max(measured, key=lambda e: e.metrics.get(metric, 0.0)) for metric in named if measured]
    found += [*ranked[:1], *with_room(judge, evaluations, prefer)[:1], *nearly[:1]]
    for pair in itertools.zip_longest(ranked, nearly):
        found += [e for e in pair if e is not None]
    if not found and (nearest := judge.nearest(evaluations)):
        found = [nearest[0]]
    return list({id(e): e for e in found}.values())


def with_room(
    judge: Judge, evaluations: Sequence[Evaluation], prefer: str | None = None, room: float = ROOM
) -> list[Evaluation]:
    """What meets timed limits by so much that it will when it is timed again, in the order of the judge's rank."""
    limits = zip(judge.goal.require, judge.bounds(evaluations), strict=True)
    timed = [(c, bound) for c, bound in limits if c.what.timed]
    return [e for e in judge.rank(evaluations, prefer) if all(c.violation(e, bound) <= -room for c, bound in timed)]


def timed_in_turn(
    meter: Meter, evaluations: Sequence[Evaluation], baselines: Collection[str], rounds: int, windows: int
) -> tuple[list[Evaluation], list[dict[str, Evaluation]]]:
    """The same evaluations timed in turn, so that a minute in which the machine is slower wrongs none more than others.

    So are baselines, that limits rest on: of a faster minute they would be what nothing meets.

    Parameters
    ----------
    meter : Meter
    evaluations : sequence of Evaluation
        Of configurations, none a failure.
    baselines : collection of str
        Names.
    rounds : int
        How often each has its turn; once where a single chunk takes long.
    windows : int
        Repeats in each turn.

    Returns
    -------
    list of Evaluation
        In the same order; a failure where a plug-in fails on what it did before.
    list of dict
        Those baselines by name, of each turn.
    """
    named: list[dict[str, Evaluation]] = []
    clocks: list[list[tuple[Timing, Timing]]] = [[] for _ in evaluations]
    writes: list[list[Timing]] = [[] for _ in evaluations]
    failures: dict[int, str] = {}
    for turn in range(rounds):
        if baselines:
            named.append(measure_baselines(meter, windows, baselines))
        for index, evaluation in enumerate(evaluations):
            if index in failures or (turn and meter.is_slow(evaluation)):
                continue
            assert evaluation.config is not None
            try:
                clocks[index].append(meter.clock(evaluation, windows))
                if meter.target:
                    writes[index].append(meter.write(evaluation.config))
            except CodecError as error:
                failures[index] = str(error)
    timed = [
        Evaluation(evaluation.config, failure=failures[index])
        if index in failures
        else _with_turns(meter, evaluation, clocks[index], writes[index])
        for index, evaluation in enumerate(evaluations)
    ]
    return timed, named


def _with_turns(
    meter: Meter, evaluation: Evaluation, clocks: Sequence[tuple[Timing, Timing]], writes: Sequence[Timing]
) -> Evaluation:
    assert evaluation.config is not None
    encode, decode = (functools.reduce(operator.add, turns) for turns in zip(*clocks, strict=True))
    timed = meter.with_timings(evaluation, meter.resolve(evaluation.config).chunks, encode, decode)
    if writes:
        timed = meter.written(timed, functools.reduce(operator.add, writes))
    return replace(timed, origin={**timed.origin, "finalist": True})


def fallback(meter: Meter, best: Evaluation) -> Evaluation:
    """The fastest lossless configuration for the same chunks that is faster than the best; else storing."""
    assert best.config is not None
    chunks, typesize = best.config.chunks, meter.sample.dtype.itemsize
    configs = [best.config, *(Config(chunks, replace(blosc2, typesize=typesize)) for blosc2 in _FAST)]
    # All at one time, as the machine may have been faster or slower when the best was timed.
    now, *measured, stored = [meter.timed(meter.exact(config), 3) for config in configs]
    slowest = (best if now.failure else now).low("encode_mb_s")
    faster = [e for e in measured if e.low("encode_mb_s") > slowest]
    return max(faster, key=lambda e: e.metrics["encode_mb_s"], default=stored)
