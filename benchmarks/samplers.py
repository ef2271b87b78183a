"""Ways to choose what to measure next, beside each other at equal numbers of measured configurations.

    TUNER_REAL_DATA=FOLDER python benchmarks/samplers.py [--sets NAME...] [--seeds 10] [--work FOLDER]

The portable space is measured once for each data set, in the folder that regret.py uses too; then every way looks up
there what it asks for, so that all see the same. They look for the most ratio at half of bitshuffle-lz4's encoding
speed. Ours are the real search, one configuration at a time, with a surrogate that never saw the data set, and without
any. Optuna's get the same space, and the limit as a constraint. What is done is kept in the work folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

sys.path.insert(0, str(Path(__file__).parent))

from grid import count_own_time, measure_grid, write_table
from regret import SETS, SHARES, surrogate_without

from tuner.config import Config
from tuner.errors import InputError, UnsatisfiableError
from tuner.evaluation import Evaluation, Log
from tuner.goal import Constraint, Goal
from tuner.measure.baseline import measure_baselines
from tuner.measure.meter import FINAL_WINDOWS, Meter
from tuner.read import open_stacks
from tuner.read.sampling import Sample, draw_sample
from tuner.search.budget import Budget
from tuner.search.champion import shipped_log
from tuner.search.evidence import traits_of
from tuner.search.optimize import TrialChooser
from tuner.search.run import FINALISTS, Result, Search
from tuner.search.surrogate import Surrogate, is_usable
from tuner.space import Space, load_space

COUNTS = (10, 20, 40, 80)
SHARE = 0.5
OURS = "ours"
#: An Optuna sampler that proposes nothing new any more ends after so many trials.
_TRIALS = 10 * COUNTS[-1]

#: The script that everyone writes: codec x level x filter, the rest as it comes.
SCRIPT: dict[str, Any] = {
    "chunks": ["1MiB", "..."],
    "blosc2": {
        "choose": [
            {"codec": "lz4", "clevel": {"choose": [1, 5, 9]}},
            {"codec": "zstd", "clevel": {"choose": [1, 3, 5, 9]}},
            {"codec": "zlib", "clevel": {"choose": [1, 4, 9]}},
        ],
        "filters": {"choose": [[], ["shuffle"], ["bitshuffle"]]},
    },
}


class Replay(Search):
    """The search where all is known: it measures neither baselines nor finalists, and goes on to its last pick."""

    def follow(self, surrogate: Surrogate | None) -> list[Evaluation]:
        """What it took as measured, in its order."""
        self._proposer._started = -math.inf  # measuring takes no time here, of which asking is to be a small part
        with contextlib.suppress(UnsatisfiableError):
            self.run(surrogate)
        return self.evaluations

    def _measure_baselines(self, meter: Meter) -> dict[str, Evaluation]:
        for _ in range(50):
            meter.reference.run()
        return {}

    def _ask(self, count: int, rounds: int) -> tuple[list[Config], None]:
        return super()._ask(count, rounds)[0], None

    def _finish(self, stopped: str) -> Result:
        return self._settle(self.evaluations, self._judge, stopped)

    def _fallback(self, best: Evaluation) -> Evaluation:
        return best


class Oracle:
    """Every configuration of the space on one sample, and the ways to walk through them."""

    def __init__(self, meter: Meter, evaluations: Iterable[Evaluation], traits: Mapping[str, float], limit: float):
        self.meter = meter
        self.traits = traits
        self.constraint = Constraint("encode_mb_s", ">=", limit)
        # Taken as if alone: there is no better speed of them here.
        origin = {"data": meter.digest, "timing": "alone"}
        self.known = {meter.resolve(e.config): replace(e, origin=origin) for e in evaluations if e.config}
        self.best = max(map(self.worth, self.known.values()))

    def worth(self, evaluation: Evaluation) -> float:
        """The ratio; 0 where the configuration failed or is too slow."""
        allowed = evaluation.failure is None and self.constraint.violation(evaluation, self.constraint.limit) <= 0
        return evaluation.metrics["ratio"] if allowed else 0.0

    def regrets(self, evaluations: Sequence[Evaluation]) -> list[float]:
        """After each of `COUNTS`, the share of the best ratio that is missed; 1 while nothing is fast enough."""
        return [1 - max(map(self.worth, evaluations[:count])) / self.best for count in COUNTS]

    def by_ours(self, surrogate: Surrogate | None, seed: int) -> list[Evaluation]:
        with tempfile.TemporaryDirectory() as folder:
            search = Replay(
                self.meter.sample,
                0,
                load_space("portable"),
                Goal(("ratio",), (self.constraint,)),
                Budget(configurations=COUNTS[-1] + FINALISTS),
                Log(Path(folder) / "log.jsonl"),
                traits=self.traits,
                seed=seed,
                known=self.known.values(),
            )
            return search.follow(surrogate)

    def by_optuna(self, sampler: optuna.samplers.BaseSampler) -> list[Evaluation]:
        """Each configuration counts once, however often it is proposed."""
        space = bound(load_space("portable"), self.meter.sample)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        seen: dict[Config, Evaluation] = {}
        while len(seen) < COUNTS[-1] and len(study.get_trials(deepcopy=False)) < _TRIALS:
            trial = study.ask()
            try:
                config = self.meter.resolve(space.suggest(TrialChooser(trial)))
            except InputError:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            evaluation = seen.setdefault(config, self.known[config])
            if evaluation.failure is not None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            trial.set_constraint(str(self.constraint), self.constraint.violation(evaluation, self.constraint.limit))
            study.tell(trial, evaluation.metrics["ratio"])
        return list(seen.values())

    def by_script(self, seed: int) -> list[Evaluation]:
        configs = [config for _, config in bound(Space.from_dict(SCRIPT), self.meter.sample).grid()]
        random.Random(seed).shuffle(configs)
        return [self.known[self.meter.resolve(as_split(config))] for config in configs]


def bound(space: Space, sample: Sample) -> Space:
    return space.bind(sample.frame_shape, sample.dtype, max(len(run.frames) for run in sample.runs))


def as_split(config: Config) -> Config:
    """The same with the split mode that c-blosc2 takes by itself (its stune.c): the grid has no `auto`."""
    blosc2 = config.blosc2
    fast = blosc2.codec == "lz4" or (blosc2.codec == "zstd" and blosc2.clevel <= 5)
    split = fast and blosc2.filters == ("shuffle",)
    return replace(config, blosc2=replace(blosc2, splitmode="always" if split else "never"))


def judge_set(name: str, path: str, log: list[Evaluation], seeds: int, work: Path) -> dict[str, Any]:
    """Regrets on one data set: for each way one list for each seed."""
    stacks = open_stacks([path])
    sample = draw_sample(stacks)
    today = measure_baselines(Meter(sample), FINAL_WINDOWS)["bslz4"].metrics["encode_mb_s"]
    grid = measure_grid([path], min(SHARES) * today / 4, work)
    oracle = Oracle(grid.meter, grid.evaluations, traits_of(sample, stacks), SHARE * today)
    surrogate = surrogate_without(name, log)
    ways: dict[str, Callable[[int], list[Evaluation]]] = {
        OURS: lambda seed: oracle.by_ours(surrogate, seed),
        "ours, unguided": lambda seed: oracle.by_ours(None, seed),
        "random": lambda seed: oracle.by_optuna(optuna.samplers.RandomSampler(seed)),
        "TPE, univariate": lambda seed: oracle.by_optuna(optuna.samplers.TPESampler(multivariate=False, seed=seed)),
        "Optuna's default": lambda seed: oracle.by_optuna(optuna.samplers.TPESampler(seed=seed)),
        "the usual script": oracle.by_script,
    }
    feasible = sum(oracle.worth(e) > 0 for e in oracle.known.values())
    document: dict[str, Any] = {"name": name, "configurations": len(oracle.known), "feasible": feasible, "regrets": {}}
    for way, walk in ways.items():
        document["regrets"][way] = [oracle.regrets(walk(seed)) for seed in range(seeds)]
        means = [f"{statistics.mean(column):.1%}" for column in zip(*document["regrets"][way], strict=True)]
        print(f"{name}: {way}: {', '.join(means)}", flush=True)
    return document


def regrets_of(documents: Sequence[dict[str, Any]], way: str, place: int) -> list[float]:
    """After one of `COUNTS`, on every data set with every seed."""
    return [regrets[place] for document in documents for regrets in document["regrets"][way]]


def verdict(documents: Sequence[dict[str, Any]]) -> str:
    """The claim in plain words."""
    others = [way for way in documents[0]["regrets"] if not way.startswith(OURS)]
    behind = [
        f"{name} after {count}"
        for place, count in enumerate(COUNTS)
        for name, of in (("median", statistics.median), ("mean", statistics.mean))
        if of(regrets_of(documents, OURS, place)) > min(of(regrets_of(documents, way, place)) for way in others)
    ]
    missed = f"The aim is missed: {', '.join(behind)}." if behind else "The aim is reached, by median and mean."
    return f"Aim: ours ahead of Optuna's and of the script after {', '.join(map(str, COUNTS))}. {missed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "tuner-regret"))
    parser.add_argument("--output", default="results/samplers.md")
    options = parser.parse_args()
    count_own_time()
    root, work = Path(os.environ["TUNER_REAL_DATA"]), Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    log = [e for e in shipped_log() if is_usable(e)]
    documents = []
    for name in options.sets:
        kept = work / f"samplers-{name}-{options.seeds}.json"
        if not kept.exists():
            kept.write_text(json.dumps(judge_set(name, str(root / SETS[name]), log, options.seeds, work)))
        documents.append(json.loads(kept.read_text()))
    rows = []
    for way in documents[0]["regrets"]:
        columns = [regrets_of(documents, way, place) for place in range(len(COUNTS))]
        cells = [f"{statistics.median(c):.1%} / {statistics.mean(c):.1%} / {max(c):.0%}" for c in columns]
        rows.append(f"| {way} | {' | '.join(cells)} |")
    lines = [
        "# Samplers: what is worth measuring next",
        "",
        f"`python benchmarks/samplers.py --seeds {options.seeds}`, {len(documents)} data sets"
        f" ({', '.join(d['name'] for d in documents)}). Regret after so many measured configurations: the share of the"
        " best ratio of the portable space that is missed, median / mean / worst over data sets and seeds; all of it"
        f" while nothing measured encodes at {SHARE:g} of bitshuffle-lz4's speed. Each configuration was measured once,"
        f" {min(d['configurations'] for d in documents)} to {max(d['configurations'] for d in documents)} a data set,"
        f" {min(d['feasible'] / d['configurations'] for d in documents):.0%} to"
        f" {max(d['feasible'] / d['configurations'] for d in documents):.0%} of them fast enough, and is looked up."
        " Speeds were taken in passing, beside other threads: rougher than in a search, and the same for all.",
        "",
        "*Ours*: the search as it is, its surrogate without the data set, one configuration at a time, not stopped"
        " early; *unguided*: without a surrogate. *Random*, *TPE* and *Optuna's default* (`TPESampler()`, multivariate)"
        " draw from the same space with the limit as a constraint; what they propose twice counts once. *The usual"
        " script*: lz4, zstd and zlib at three or four levels, each with no filter, shuffle and bitshuffle, 30 in any"
        " order.",
        "",
        verdict(documents),
        "",
        f"| by | {' | '.join(f'after {count}' for count in COUNTS)} |",
        f"|---|{'---|' * len(COUNTS)}",
        *rows,
    ]
    write_table(options.output, lines)


if __name__ == "__main__":
    main()
