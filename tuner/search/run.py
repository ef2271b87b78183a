"""A search: baselines, good guesses, proposals, finalists."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import operator
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tuner.config import PLUGINS, Blosc2, Config, one_line
from tuner.errors import CodecError, InputError, UnsatisfiableError
from tuner.evaluation import METRICS, Evaluation, Log
from tuner.goal import Goal, Judge
from tuner.measure.baseline import FILTERS, equivalents, measure_baselines
from tuner.measure.meter import FINAL_WINDOWS, SEARCH_WINDOWS, Meter
from tuner.measure.target import Target
from tuner.measure.timing import Timing
from tuner.read.sampling import Sample
from tuner.search.budget import Budget
from tuner.search.guide import Guide
from tuner.search.lossy import REPORTED
from tuner.search.optimize import MutatingChooser, Proposer
from tuner.search.surrogate import Data, Surrogate
from tuner.space import Space
from tuner.steps import Pixels

#: A search measures on this much of its sample; finalists on all of it.
SMALL_NBYTES = 8 << 20
#: How many finalists are timed again, and in how many rounds in turn.
FINALISTS, ROUNDS = 6, 3
#: Configurations that the surrogate guesses, at most.
_MOST_GUESSED = 1 << 16
#: The share of a time budget that is kept for the finalists.
_FINAL_SHARE = 0.2
#: A configuration this far from a timed limit may meet it when it is timed again.
_NEARLY = 0.1
#: Rounds that a guide leads before explorers take each fourth.
_LED = 8
#: The search ends once so many rounds in turn find an improvement less likely than this.
_PATIENCE, _UNLIKELY = 8, 0.05
#: Speeds taken beside other threads come out lower than alone, but hardly by more than this factor.
_CONTENTION = 2.0


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


class Search:
    """One search on one sample.

    Parameters
    ----------
    sample : Sample
    frames : int
        Frames of the stack where it has three axes, else 0.
    space, goal, budget
    log : Log
        Takes every evaluation as soon as it is there.
    pixels : sequence of Pixels
        What steps need to know of each stack that the sample was drawn from.
    seed : int
    jobs : int
        Threads for what is not timed.
    dataset : str
        What the log calls the data.
    known : sequence of Evaluation
        Taken as measured where they are of this sample: what a killed search left.
    warm : sequence of Config
        Measured first: what was best for the same data before.
    target : Target, optional
        Where finalists are written to; needed where the goal has `write_mb_s`.
    """

    def __init__(
        self,
        sample: Sample,
        frames: int,
        space: Space,
        goal: Goal,
        budget: Budget,
        log: Log,
        *,
        traits: Mapping[str, float] | None = None,
        pixels: Sequence[Pixels] = (),
        seed: int = 0,
        jobs: int = 1,
        prefer: str | None = None,
        storage: str | None = None,
        study: str = "",
        dataset: str = "",
        known: Iterable[Evaluation] = (),
        warm: Sequence[Config] = (),
        target: Target | None = None,
        notify: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        used = {*goal.maximize, *(c.metric for c in goal.require)}
        if "sinogram_read_mb_s" in used and not (frames and len(sample.frame_shape) == 2):
            raise InputError("sinogram_read_mb_s needs data with three axes")
        if "write_mb_s" in used and target is None:
            raise InputError("write_mb_s needs a target to write to")
        if prefer is not None and prefer not in goal.maximize:
            raise InputError(f"--prefer must name one of the objectives {' '.join(goal.maximize)}, got {prefer!r}")
        least = len(FILTERS) + 2
        if budget.configurations is not None and budget.configurations < least:
            raise InputError(
                f"--budget must be at least {least} configurations, got {budget.configurations}:"
                f" the {len(FILTERS)} baselines, one more, and that one again as finalist"
            )
        self.goal = goal
        self.budget = budget
        self._log = log
        self._traits = dict(traits or {})
        self._seed = seed
        self._jobs = jobs
        self._prefer = prefer
        self._notify = notify
        self._dataset = dataset
        self._warm = warm
        self._guide: Guide | None = None
        qualities = dict.fromkeys((*(REPORTED if any(space.steps()) else ()), *goal.qualities))
        self._whole = Meter(sample, frames, pixels, qualities, target=target)
        small = small_part(sample)
        self._meter = self._whole if small is sample else Meter(small, frames, pixels, qualities, target=target)
        run = max(len(run.frames) for run in self._meter.sample.runs)
        self._space = space.bind(sample.frame_shape, sample.dtype, run)
        self._proposer = Proposer(self._space, self._meter.resolve, goal, seed, storage, study)
        self._known = {
            self._meter.resolve(e.config): self._meter.bounded(e)
            for e in known
            if e.config is not None
            and e.origin.get("data") == self._meter.digest
            and "stopped" not in str(e.origin.get("timing"))  # the whole of the sample counts
            and _resolved(e.config, sample)
        }
        self.evaluations: list[Evaluation] = []
        self._judge = Judge(goal, {})
        self._bounds: tuple[float, ...] = ()
        self._front: list[Evaluation] = []
        self._best: Evaluation | None = None

    @property
    def asking(self) -> float:
        """Seconds that asking and telling took."""
        return self._proposer.asking

    def run(self, surrogate: Surrogate | None = None) -> Result:
        """Search until the budget is used, the space is exhausted, or the user interrupts.

        Parameters
        ----------
        surrogate : Surrogate, optional
            What leads the search; without it, good configurations that are known for many data are where it begins.

        Raises
        ------
        UnsatisfiableError
            Where nothing that was measured meets the requirements.
        KeyboardInterrupt
            Where the user interrupts before there is any result.
        """
        stopped = "budget used"
        try:
            self._progress("baselines")
            self._judge = Judge(self.goal, self._measure_baselines(self._meter))
            self._rank()
            self._guide = self._make_guide(surrogate) if surrogate else None
            # However short the budget, something is measured.
            self._measure([c for c in self._seeds() if self._proposer.claim(c)][: max(1, self._left())])
            rounds = unlikely = 0
            while left := self._left() or int(not self.evaluations):
                batch, likely = self._ask(min(left, self._jobs if self._guide else self._jobs * 2), rounds)
                if not batch:
                    stopped = "every configuration of the space was measured"
                    break
                unlikely = unlikely + 1 if likely < _UNLIKELY else 0
                if unlikely >= _PATIENCE:
                    stopped = "no configuration is likely to be better by a per cent"
                    break
                self._measure(batch)
                rounds += 1
            return self._finish(stopped)
        except KeyboardInterrupt:
            if not self._judge.feasible(self.evaluations):
                raise
            return self._settle(self.evaluations, self._judge, "interrupted")

    def _left(self) -> int:
        kept = min(_FINAL_SHARE * self.budget.seconds, 20.0) if math.isfinite(self.budget.seconds) else 0.0
        return self.budget.left(kept, min(FINALISTS, (self.budget.configurations or 0) // 4))

    def _seeds(self) -> list[Config]:
        """What is often right, what is next to the baselines, and what was right for this data before."""
        ndim = len(self._meter.sample.frame_shape)
        whole = (1, *(-1,) * ndim)
        good = [
            Blosc2("zstd", clevel=1, filters=("shuffle", "bytedelta"), splitmode="always", blocksize=1 << 20),
            Blosc2("zstd", clevel=1, filters=("bitshuffle",), splitmode="never", blocksize=1 << 20),
            Blosc2("lz4", clevel=1, filters=("bitshuffle",), splitmode="never", blocksize=1 << 17),
            Blosc2("zstd", clevel=1, filters=("shuffle",), splitmode="always", blocksize=1 << 18),
        ]
        itemsize = self._meter.sample.dtype.itemsize
        run = max(len(run.frames) for run in self._meter.sample.runs)
        several = max(1, min(run, (1 << 20) // max(1, math.prod(self._meter.sample.frame_shape) * itemsize)))
        deep = (1 << several.bit_length() - 1, *whole[1:])
        seeds = list(self._warm)
        if self._guide is not None:
            return [self._settled_in_space(config) for config in seeds]
        # Small frames first several to a chunk: alone each pays for a frame's header.
        for chunks in dict.fromkeys((deep, whole)):
            seeds += [Config(chunks, replace(blosc2, typesize=itemsize)) for blosc2 in good]
            seeds += [
                replace(config, chunks=chunks, blosc2=replace(config.blosc2, typesize=itemsize))
                for config in equivalents(ndim).values()
            ]
        return [self._settled_in_space(config) for config in seeds]

    def _settled_in_space(self, config: Config) -> Config:
        """The configuration with the space's steps, typesize or block size left open where the space has no such."""
        config = replace(config, steps=self._space.steps()[0])
        for blocksize in (config.blosc2.blocksize, 0):
            for typesize in (config.blosc2.typesize, 0):
                settled = replace(config, blosc2=replace(config.blosc2, blocksize=blocksize, typesize=typesize))
                if self._space.locate(settled) is not None:
                    return settled
        return config

    def _make_guide(self, surrogate: Surrogate) -> Guide | None:
        """The surrogate's guess over the whole space, mended by what is known."""
        distinct: dict[Config, Config] = {}
        for config in self._guessed():
            if config.blosc2.codec not in PLUGINS and (resolved := _resolved(config, self._meter.sample)):
                distinct.setdefault(resolved, config)
        configs = list(distinct.values())
        if not configs:
            return None
        return Guide(
            surrogate,
            configs,
            Data(self._meter.sample.frame_shape, self._meter.sample.dtype, self._traits),
            self._meter.reference.usual / 1e6,
            self._meter.sample.nbytes,
            self._meter.access_factors(configs),
            self._seed,
            self._meter.target,
        )

    def _guessed(self) -> Iterator[Config]:
        """All of the space, or so much of it at random as a guess may take."""
        if self._space.size <= _MOST_GUESSED:
            yield from (config for _, config in self._space.grid())
            return
        rng = random.Random(self._seed)
        for _ in range(_MOST_GUESSED):
            with contextlib.suppress(InputError):
                yield self._space.suggest(MutatingChooser({}, (), rng))

    def _ask(self, count: int, rounds: int) -> tuple[list[Config], float]:
        """What to measure next: the guide leads, and after a while leaves each fourth round to explorers.

        The number tells how likely it is that a configuration is better by a per cent; 1 without a guide.
        """
        likely = 1.0
        if self._guide is not None and (rounds < _LED or rounds % 4):
            picks, likely = self._guide.propose(self._judge, self.evaluations, count, self._prefer)
            self._proposer.put(picks)
        front = [e.config for e in self._front if e.config is not None]
        if not front and (nearest := self._judge.nearest(self.evaluations)) and nearest[0].config:
            front = [nearest[0].config]
        batch = []
        for _ in range(count):
            config = self._proposer.ask(front)
            if config is None:
                break
            batch.append(config)
        return batch, likely

    def _measure(self, configs: Sequence[Config]) -> None:
        """Measure configurations: exactly side by side, then by the clock, alone, those that may matter."""
        for start in range(0, len(configs), self._jobs * 2):
            batch = configs[start : start + self._jobs * 2]
            fresh = [c for c in batch if self._meter.resolve(c) not in self._known]
            measured = self._meter.exact_many(fresh, self._jobs, self._least_mb_s(), self._most_seconds())
            exact = dict(zip(fresh, measured, strict=True))
            for config in batch:
                evaluation = exact.get(config)
                if evaluation is None:
                    evaluation = replace(self._known[self._meter.resolve(config)], config=config)
                elif self.goal.timed and not self._meter.is_slow(evaluation) and self._may_matter(evaluation):
                    evaluation = self._meter.timed(evaluation)
                self._take(evaluation)
            self._rank()

    def _take(self, evaluation: Evaluation) -> None:
        evaluation = self._sign(self._meter, evaluation)
        self.evaluations.append(evaluation)
        self.budget.measured += 1
        self._proposer.tell(evaluation, self._judge.violations(evaluation, self._bounds))
        if self._guide is not None:
            self._guide.learn(evaluation)

    def _rank(self) -> None:
        """Find the limits, the front and the best anew."""
        self._bounds = self._judge.bounds(self.evaluations)
        self._front = self._judge.rank(self._judge.front(self.evaluations), self._prefer)
        self._best = self._front[0] if self._front else None
        self._progress("searching")

    def _sign(self, meter: Meter, evaluation: Evaluation) -> Evaluation:
        """Note where the evaluation is from, and log it."""
        if "data" not in evaluation.origin:
            evaluation = replace(meter.signed(evaluation, dataset=self._dataset), traits=self._traits)
            self._log.append(evaluation)
        return evaluation

    def _least_mb_s(self) -> float:
        """Encoding slower than this cannot meet the goal, whatever the other threads do."""
        cores = self._meter.target.workers if self._meter.target else 1
        limits = [
            bound / (cores if c.metric == "write_mb_s" else 1)
            for c, bound in zip(self.goal.require, self._bounds, strict=True)
            if c.metric in ("encode_mb_s", "write_mb_s") and c.op == ">=" and not math.isnan(bound)
        ]
        return max(limits, default=0.0) / (2 * _CONTENTION)

    def _most_seconds(self) -> float:
        """No single configuration may take more than a tenth of a time budget."""
        return max(0.5, self.budget.seconds / 10)

    def _may_matter(self, evaluation: Evaluation) -> bool:
        """Whether speeds up to `_CONTENTION` times those taken in passing could put it on the front."""
        if evaluation.failure is not None:
            return False
        hopeful = replace(
            evaluation,
            metrics={
                name: value * _CONTENTION if METRICS[name].timed else value
                for name, value in evaluation.metrics.items()
            },
        )
        if any(violation > 0 for violation in self._judge.violations(hopeful, self._bounds)):
            return False
        return not any(
            all(other.metrics[name] > hopeful.metrics[name] for name in self.goal.maximize) for other in self._front
        )

    def _measure_baselines(self, meter: Meter) -> dict[str, Evaluation]:
        # A limit that refers to one rests on it: what it is wrong by, every configuration would be.
        rests = any(c.name in FILTERS and c.what.timed for c in self.goal.require)
        windows = FINAL_WINDOWS if rests else SEARCH_WINDOWS
        measured = measure_baselines(meter, windows)
        self.budget.measured += len(measured) if meter is self._meter else 0
        for evaluation in measured.values():
            self._log.append(evaluation)
        return measured

    def _finish(self, stopped: str) -> Result:
        """Time the finalists again, in turn and on the whole sample, and settle for one."""
        self._progress("finalists")
        baselines = self._judge.reference if self._meter is self._whole else self._measure_baselines(self._whole)
        judge = Judge(self.goal, baselines)
        finals: list[Evaluation] = []
        candidates = self._candidates()
        while candidates:
            finals += self._measure_finalists(candidates[:FINALISTS])
            if not self.budget.left():
                break
            # The clock may have wronged what is better than the best final: all of that has its turn.
            best = [f.config for f in judge.rank(finals, self._prefer)[:1]]
            worth = max((self._worth(e) for e in candidates if e.config in best), default=-math.inf)
            candidates = [e for e in candidates[FINALISTS:] if self._worth(e) > worth]
        return self._settle(finals, judge, stopped)

    def _candidates(self) -> list[Evaluation]:
        """Candidates for the final: the best ranked, those that nearly met a limit, and those that `best` needs."""
        measured = [e for e in self.evaluations if e.failure is None]
        ranked = self._judge.rank(self.evaluations, self._prefer)[: 3 * FINALISTS]
        missed = {id(e): max(self._judge.violations(e, self._bounds), default=0.0) for e in measured}
        nearly = sorted((e for e in measured if 0 < missed[id(e)] <= _NEARLY), key=lambda e: missed[id(e)])
        if ranked:
            nearly = [e for e in nearly if self._worth(e) > self._worth(ranked[0])][: 3 * FINALISTS]
        nearly.sort(key=self._worth, reverse=True)
        named = {c.metric for c in self.goal.require if c.name == "best"}
        candidates = [max(measured, key=lambda e: e.metrics.get(metric, 0.0)) for metric in named if measured]
        for evaluation, another in itertools.zip_longest(ranked, nearly):
            candidates += [e for e in (evaluation, another) if e is not None]
        if not candidates and (nearest := self._judge.nearest(self.evaluations)):
            candidates = [nearest[0]]
        return list({id(e): e for e in candidates}.values())

    def _worth(self, evaluation: Evaluation) -> float:
        return self._judge.worth(evaluation, self._prefer)

    def _measure_finalists(self, candidates: Sequence[Evaluation]) -> list[Evaluation]:
        """Measure on the whole sample, as many as the time allows, and time them in turn."""
        finals: list[Evaluation] = []
        for candidate in candidates:
            assert candidate.config is not None
            # However late it is, one is measured; configurations are kept for that.
            late = not self.budget.left(self._seconds_of_final(candidate))
            if late and (finals or self.budget.configurations is not None):
                continue
            final = self._whole.exact(candidate.config)
            self.budget.measured += 1
            if final.failure is None:
                finals.append(final)
            else:
                self._sign(self._whole, final)
        clocks: list[list[tuple[Timing, Timing]]] = [[] for _ in finals]
        written: list[list[Timing]] = [[] for _ in finals]
        for turn in range(ROUNDS):
            for index, final in enumerate(finals):
                if final.failure is None and (turn == 0 or not self._whole.is_slow(final)):
                    try:
                        clocks[index].append(self._whole.clock(final, FINAL_WINDOWS // ROUNDS))
                        if self._whole.target and final.config:
                            written[index].append(self._whole.write(final.config))
                    except CodecError as error:  # a plug-in that did it before
                        finals[index] = Evaluation(final.config, failure=str(error))
        measured = []
        for final, timings, writes in zip(finals, clocks, written, strict=True):
            assert final.config is not None
            if final.failure is not None:
                self._sign(self._whole, final)
                continue
            encode = functools.reduce(operator.add, (pair[0] for pair in timings))
            decode = functools.reduce(operator.add, (pair[1] for pair in timings))
            timed = self._whole.with_timings(final, self._whole.resolve(final.config).chunks, encode, decode)
            if writes:
                timed = self._whole.written(timed, functools.reduce(operator.add, writes))
            measured.append(self._sign(self._whole, replace(timed, origin={**timed.origin, "finalist": True})))
        return measured

    def _seconds_of_final(self, candidate: Evaluation) -> float:
        """About what measuring a finalist takes: all of the sample once, and the clock."""
        speeds = (candidate.metrics["encode_mb_s"], candidate.metrics["decode_mb_s"])
        once = sum(self._whole.sample.nbytes / 1e6 / speed for speed in speeds)
        return once + (0.5 * once if self._whole.is_slow(candidate) else 0.2)

    def _settle(self, candidates: Sequence[Evaluation], judge: Judge, stopped: str) -> Result:
        ranked = judge.rank(candidates, self._prefer)
        if not ranked:
            raise UnsatisfiableError(self._miss(candidates or self.evaluations, judge))
        best = ranked[0]
        assert best.config is not None
        return Result(
            best=best,
            front=tuple(judge.front(candidates)),
            baselines=judge.reference,
            fallback=self._fallback(best),
            goal=self.goal,
            itemsize=self._meter.sample.dtype.itemsize,
            measured=self.budget.measured,
            seconds=self.budget.elapsed,
            stopped=stopped,
        )

    def _miss(self, candidates: Sequence[Evaluation], judge: Judge) -> str:
        nearest = judge.nearest(candidates) or judge.nearest(self.evaluations)
        if nearest is None:
            failures = [e.failure for e in self.evaluations if e.failure]
            return f"no configuration could be measured: {failures[0] if failures else 'the space is empty'}"
        evaluation, missed = nearest
        assert evaluation.config is not None
        itemsize = self._meter.sample.dtype.itemsize
        return f"nothing meets the requirements; nearest is {one_line(evaluation.config, itemsize)}: {missed}"

    def _fallback(self, best: Evaluation) -> Evaluation:
        """The fastest lossless configuration for the same chunks that is faster than the best; else storing."""
        assert best.config is not None
        fast = [
            Blosc2("lz4", clevel=1, filters=("bitshuffle",), splitmode="never"),
            Blosc2("lz4", clevel=1, filters=("shuffle",), splitmode="always"),
            Blosc2("lz4", clevel=0, filters=(), splitmode="never"),
        ]
        typesize = self._meter.sample.dtype.itemsize
        configs = [best.config, *(Config(best.config.chunks, replace(b, typesize=typesize)) for b in fast)]
        # All at one time, as the machine may have been faster or slower when the best was timed.
        now, *measured, stored = [self._meter.timed(self._meter.exact(config), 3) for config in configs]
        slowest = (best if now.failure else now).low("encode_mb_s")
        faster = [e for e in measured if e.low("encode_mb_s") > slowest]
        return max(faster, key=lambda e: e.metrics["encode_mb_s"], default=stored)

    def _progress(self, phase: str) -> None:
        itemsize = self._meter.sample.dtype.itemsize
        self._notify(Progress(phase, self.budget.measured, self.budget.elapsed, self._best, itemsize))


def small_part(sample: Sample) -> Sample:
    """What a search measures on: at most `SMALL_NBYTES` of a sample, or a frame, in at most two runs."""
    if sample.nbytes <= SMALL_NBYTES:
        return sample
    wanted = max(1, SMALL_NBYTES // sample.runs[0].frames[0].nbytes)
    runs = sample.runs[:: -(-len(sample.runs) // min(wanted, 2))]
    # A power of two of frames from each, so that chunks of several frames cut the same pixels.
    frames = 1 << (max(1, wanted // len(runs)).bit_length() - 1)
    return Sample(tuple(replace(run, frames=run.frames[:frames]) for run in runs))


def _resolved(config: Config, sample: Sample) -> Config | None:
    """The configuration for a sample's frames; None where they do not take it."""
    try:
        return config.resolve(sample.frame_shape, sample.dtype)
    except InputError:
        return None
