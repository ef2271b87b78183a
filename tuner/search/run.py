"""A search: baselines, good guesses, proposals, finalists; the beginning is `seeds`, the end `finals`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tuner.config import Config, one_line
from tuner.errors import InputError, UnsatisfiableError
from tuner.evaluation import METRICS, Evaluation, Log
from tuner.goal import Goal, Judge
from tuner.measure.baseline import FILTERS, measure_baselines
from tuner.measure.meter import FINAL_WINDOWS, SEARCH_WINDOWS, Meter
from tuner.measure.target import Target
from tuner.read.sampling import Sample
from tuner.search.budget import Budget
from tuner.search.finals import ROOM, candidates, fallback, timed_in_turn, with_room
from tuner.search.guide import Guide, guessed
from tuner.search.lossy import REPORTED
from tuner.search.optimize import Proposer
from tuner.search.result import Progress as Progress
from tuner.search.result import Result as Result
from tuner.search.seeds import named_in, often_right, settled_in
from tuner.search.surrogate import Data, Surrogate
from tuner.space import Space
from tuner.steps import Pixels

#: A search measures on this much of its sample; finalists on all of it.
SMALL_NBYTES = 8 << 20
#: How many finalists are timed again, and in how many rounds in turn.
FINALISTS, ROUNDS = 6, 3
#: The share of a time budget that is kept for the finalists.
_FINAL_SHARE = 0.2
#: Rounds that a guide leads before explorers take each fourth.
_LED = 8
#: The search ends once so many rounds that a guide leads find in turn an improvement less likely than this.
_PATIENCE, _UNLIKELY = 8, 0.05
#: So many are measured at most in the end because they surely meet timed limits, or met them by so much.
_SURE, _FAR = 3, 0.3
#: Speeds taken beside other threads come out lower than alone, but hardly by more than this factor.
_CONTENTION = 2.0


class Search:
    """One search on one sample.

    Parameters
    ----------
    sample : Sample
    frames : int
        Frames of the stack where it has three axes, else 0.
    space : Space
        Not yet bound to the sample's frames.
    goal : Goal
    budget : Budget
    log : Log
        Takes every evaluation as soon as it is there.
    traits : mapping
        What a guess is made from, and what the log keeps of the data; a guide needs them.
    pixels : sequence of Pixels
        What steps need to know of each stack that the sample was drawn from.
    seed : int
        Decides the proposals.
    jobs : int
        Threads for what is not timed.
    prefer : str, optional
        The objective whose end of the front is taken, instead of the knee.
    storage : str, optional
        URL of an Optuna storage that mirrors every trial.
    study : str
        The study's name there.
    dataset : str
        What the log calls the data.
    known : sequence of Evaluation
        Taken as measured where they are of this sample: what a killed search left.
    warm : sequence of Config
        Measured first: what was best for the same data before.
    target : Target, optional
        Where finalists are written to; needed where the goal has `write_mb_s`.
    notify : callable
        Called with a `Progress` as the search goes on.

    Raises
    ------
    InputError
        Where the goal needs what the sample or the target does not give, and for a budget below the least.
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
            got = "spectra" if len(sample.frame_shape) == 1 else "a single image or a map"
            raise InputError(f"sinogram_read_mb_s needs data with three axes, got {got}")
        if "write_mb_s" in used and target is None:
            raise InputError("write_mb_s needs a target to write to, got none")
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
        self._space = space.bind(sample.frame_shape, sample.dtype, self._meter.sample.longest)
        self._proposer = Proposer(self._space, self._meter.resolve, goal, seed, storage, study)
        self._known: dict[Config, Evaluation] = {}
        for evaluation in known:
            whole = "stopped" not in str(evaluation.origin.get("timing"))
            if evaluation.config is not None and whole and evaluation.origin.get("data") == self._meter.digest:
                with contextlib.suppress(InputError):  # a log may hold what such frames do not take
                    self._known[self._meter.resolve(evaluation.config)] = self._meter.bounded(evaluation)
        self.evaluations: list[Evaluation] = []
        self._judge = Judge(goal, {})
        self._rests_on = sorted({c.name for c in goal.require if c.name in FILTERS and c.what.timed})
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
                if likely is not None:
                    unlikely = unlikely + 1 if likely < _UNLIKELY else 0
                if unlikely >= _PATIENCE:
                    stopped = "no configuration is likely to be better by a per cent"
                    break
                self._measure(batch)
                rounds += 1
            self._make_sure()
            return self._finish(stopped)
        except KeyboardInterrupt:
            if not self._judge.feasible(self.evaluations):
                raise
            return self._settle(self.evaluations, self._judge, "interrupted")

    def _left(self) -> int:
        kept = min(_FINAL_SHARE * self.budget.seconds, 20.0) if math.isfinite(self.budget.seconds) else 0.0
        return self.budget.left(kept, self._finals + (self.budget.configurations is not None and self._is_unsure()))

    @property
    def _finals(self) -> int:
        """Configurations of a budget that are kept for finalists."""
        return min(FINALISTS, (self.budget.configurations or 0) // 4)

    def _is_unsure(self) -> bool:
        """Whether nothing that was measured meets timed limits with room to spare, and a guide may know what would."""
        limited = self._guide is not None and any(c.what.timed for c in self.goal.require)
        return limited and not with_room(self._judge, self.evaluations)

    def _make_sure(self) -> None:
        """Measure what will meet timed limits: of finalists that all just met them, none may when timed again."""
        for number in range(_SURE):
            # However late it is, one is measured.
            late = not self.budget.left(0.0, self._finals)
            if late and (number or self.budget.configurations is not None):
                return
            if self._guide is None or not self._is_unsure():
                return
            config = self._guide.surest(self._judge, self.evaluations, ROOM, self._prefer)
            if config is None or not self._proposer.claim(config):
                return
            self._measure([config])

    def _seeds(self) -> list[Config]:
        """What was right for this data before; what its limits name, or without a guide what is often right."""
        sample = self._meter.sample
        others = named_in(self.goal, sample) if self._guide else often_right(sample)
        return [settled_in(self._space, config) for config in (*self._warm, *others)]

    def _make_guide(self, surrogate: Surrogate) -> Guide | None:
        """The surrogate's guess over the whole space, mended by what is known; None where it can guess nothing."""
        sample = self._meter.sample
        configs = guessed(self._space, sample, self._seed)
        if not configs:
            return None
        return Guide(
            surrogate,
            configs,
            Data(sample.frame_shape, sample.dtype, self._traits),
            self._meter.reference.usual / 1e6,
            sample.nbytes,
            self._meter.access_factors(configs),
            self._seed,
            self._meter.target,
        )

    def _ask(self, count: int, rounds: int) -> tuple[list[Config], float | None]:
        """What to measure next: the guide leads, and after a while leaves each fourth round to explorers.

        The number tells how likely it is that a configuration is better by a per cent; None where explorers ask.
        """
        likely = None
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
        windows = FINAL_WINDOWS if self._rests_on else SEARCH_WINDOWS
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
        turns: list[dict[str, Evaluation]] = []
        left = candidates(self._judge, self.evaluations, self._prefer, 3 * FINALISTS)
        # Where the machine is slower than while it searched: what met limits by far.
        far = with_room(self._judge, self.evaluations, self._prefer, _FAR)[:_SURE]
        while left:
            measured, named = self._measure_finalists(left[:FINALISTS])
            finals, turns = finals + measured, turns + named
            judge = Judge(self.goal, {**baselines, **{name: _typical(turns, name) for name in self._rests_on}})
            if far and not judge.feasible(finals):
                tried = [*left[:FINALISTS], *far]
                left = [*(e for e in far if e not in left[:FINALISTS]), *(e for e in left if e not in tried)]
                far = []
                continue
            if not self.budget.left():
                break
            # The clock may have wronged what is better than the best final: all of that has its turn.
            best = [f.config for f in judge.rank(finals, self._prefer)[:1]]
            worth = max((self._worth(e) for e in left if e.config in best), default=-math.inf)
            left = [e for e in left[FINALISTS:] if self._worth(e) > worth]
        return self._settle(finals, judge, stopped)

    def _worth(self, evaluation: Evaluation) -> float:
        return self._judge.worth(evaluation, self._prefer)

    def _measure_finalists(self, chosen: Sequence[Evaluation]) -> tuple[list[Evaluation], list[dict[str, Evaluation]]]:
        """Measure on the whole sample, as many as the time allows, and time them in turn, as what limits rest on."""
        finals: list[Evaluation] = []
        for candidate in chosen:
            assert candidate.config is not None
            # However late it is, the best is measured, and what is sure; configurations are kept for that.
            late = not self.budget.left(self._seconds_of_final(candidate))
            if late and (len(finals) > 1 or self.budget.configurations is not None):
                continue
            final = self._whole.exact(candidate.config)
            self.budget.measured += 1
            if final.failure is None:
                finals.append(final)
            else:
                self._sign(self._whole, final)
        timed, named = timed_in_turn(self._whole, finals, self._rests_on, ROUNDS, FINAL_WINDOWS // ROUNDS)
        signed = [self._sign(self._whole, evaluation) for evaluation in timed]
        return [evaluation for evaluation in signed if evaluation.failure is None], named

    def _seconds_of_final(self, candidate: Evaluation) -> float:
        """About what measuring a finalist takes: all of the sample once, and the clock."""
        speeds = (candidate.metrics["encode_mb_s"], candidate.metrics["decode_mb_s"])
        once = sum(self._whole.sample.nbytes / 1e6 / speed for speed in speeds)
        return once + (0.5 * once if self._whole.is_slow(candidate) else 0.2)

    def _settle(self, finals: Sequence[Evaluation], judge: Judge, stopped: str) -> Result:
        ranked = judge.rank(finals, self._prefer)
        if not ranked:
            raise UnsatisfiableError(self._miss(finals or self.evaluations, judge))
        best = ranked[0]
        assert best.config is not None
        return Result(
            best=best,
            front=tuple(judge.front(finals)),
            baselines=judge.reference,
            fallback=self._fallback(best),
            goal=self.goal,
            itemsize=self._meter.sample.dtype.itemsize,
            measured=self.budget.measured,
            seconds=self.budget.elapsed,
            stopped=stopped,
        )

    def _miss(self, finals: Sequence[Evaluation], judge: Judge) -> str:
        nearest = judge.nearest(finals) or judge.nearest(self.evaluations)
        if nearest is None:
            failures = [e.failure for e in self.evaluations if e.failure]
            return f"no configuration could be measured: {failures[0] if failures else 'the space is empty'}"
        evaluation, missed = nearest
        assert evaluation.config is not None
        itemsize = self._meter.sample.dtype.itemsize
        return f"nothing meets the requirements; nearest is {one_line(evaluation.config, itemsize)}: {missed}"

    def _fallback(self, best: Evaluation) -> Evaluation:
        return fallback(self._meter, best)

    def _progress(self, phase: str) -> None:
        itemsize = self._meter.sample.dtype.itemsize
        self._notify(Progress(phase, self.budget.measured, self.budget.elapsed, self._best, itemsize))


def _typical(turns: Sequence[Mapping[str, Evaluation]], name: str) -> Evaluation:
    """A baseline with the median over turns of each of its metrics, and of either end of their spread."""
    every = [turn[name] for turn in turns]
    metrics = {metric: float(np.median([e.metrics[metric] for e in every])) for metric in every[0].metrics}
    ends = {metric: np.median([e.spread[metric] for e in every], axis=0) for metric in every[0].spread}
    spread = {metric: (float(low), float(high)) for metric, (low, high) in ends.items()}
    return replace(every[0], metrics=metrics, spread=spread)


def small_part(sample: Sample) -> Sample:
    """What a search measures on: at most `SMALL_NBYTES` of a sample, or a frame, in at most two runs."""
    if sample.nbytes <= SMALL_NBYTES:
        return sample
    wanted = max(1, SMALL_NBYTES // sample.runs[0].frames[0].nbytes)
    runs = sample.runs[:: -(-len(sample.runs) // min(wanted, 2))]
    # A power of two of frames from each, so that chunks of several frames cut the same pixels.
    frames = 1 << (max(1, wanted // len(runs)).bit_length() - 1)
    return Sample(tuple(replace(run, frames=run.frames[:frames]) for run in runs))
