"""The search against the exhaustive grid of the portable space, under the same requirement.

    python benchmarks/grid.py FILE... [--require "encode_mb_s >= 500"] [--budget 60s] [--output results/grid.md]

Every configuration of the space is encoded, decoded and compared; those that may meet the requirement are timed alone,
from the best ratio downwards, until none that is left can be better. Then the search runs with its budget, knowing
nothing of it, and both winners are timed once more, in turn.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
import time
from pathlib import Path

from tuner.config import Config, one_line
from tuner.errors import InputError
from tuner.evaluation import Evaluation
from tuner.goal import Constraint
from tuner.measure.meter import FINAL_WINDOWS, Meter
from tuner.measure.timing import machine, versions
from tuner.read import open_stacks
from tuner.read.sampling import draw_sample
from tuner.search.find import find_profile
from tuner.search.run import small_part
from tuner.space import load_space

#: Configurations whose ratio is below this share of the best that meets the requirement are not timed.
_MARGIN = 0.995
_BATCH = 64


def grid_best(meter: Meter, constraint: Constraint, run: int) -> tuple[Evaluation, int, int, float]:
    """The best ratio that meets the requirement; how many configurations were measured, and timed; seconds."""
    start = time.perf_counter()
    space = load_space("portable").bind(meter.sample.frame_shape, meter.sample.dtype, run)
    configs: dict[Config, Config] = {}
    for _, config in space.grid():
        try:
            configs.setdefault(meter.resolve(config), config)
        except InputError:
            continue
    pending = list(configs.values())
    hopeful: list[Evaluation] = []
    for at in range(0, len(pending), _BATCH):
        evaluations = meter.exact_many(pending[at : at + _BATCH], os.cpu_count() or 1, constraint.limit / 4)
        hopeful += [e for e in evaluations if e.metrics.get("encode_mb_s", 0.0) > constraint.limit / 2]
        print(f"\r{at + _BATCH} of {len(pending)} measured, {time.perf_counter() - start:.0f} s", end="", flush=True)
    print()
    hopeful.sort(key=lambda e: e.metrics["ratio"], reverse=True)
    best: Evaluation | None = None
    timed = 0
    for evaluation in hopeful:
        if best is not None and evaluation.metrics["ratio"] < _MARGIN * best.metrics["ratio"]:
            break
        timed += 1
        evaluation = meter.timed(evaluation, FINAL_WINDOWS)
        met = constraint.violation(evaluation, constraint.limit) <= 0
        if met and (best is None or evaluation.metrics["ratio"] > best.metrics["ratio"]):
            best = evaluation
    if best is None:
        raise SystemExit("nothing in the grid meets the requirement")
    return best, len(pending), timed, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--require", default="encode_mb_s >= 500")
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--output", default="results/grid.md")
    options = parser.parse_args()
    constraint = Constraint.parse(options.require)
    os.environ["TUNER_HOME"] = tempfile.mkdtemp()  # the search starts knowing nothing
    rows = []
    for path in options.files:
        stacks = open_stacks([path])
        sample = draw_sample(stacks)
        small = small_part(sample)
        run = max(len(r.frames) for r in small.runs)
        best, measured, timed, seconds = grid_best(Meter(small), constraint, run)
        found = find_profile([path], maximize=["ratio"], require=[options.require], budget=options.budget)
        assert best.config is not None
        assert found.result.best.config is not None
        whole = Meter(sample)
        finals = [whole.exact(config) for config in (best.config, found.result.best.config)]
        clocks = [[whole.clock(final, 5) for final in finals] for _ in range(5)]
        pair = []
        for index, final in enumerate(finals):
            encode = clocks[0][index][0]
            decode = clocks[0][index][1]
            for turn in clocks[1:]:
                encode, decode = encode + turn[index][0], decode + turn[index][1]
            assert final.config is not None
            pair.append(whole.with_timings(final, whole.resolve(final.config).chunks, encode, decode))
        share = pair[1].metrics["ratio"] / pair[0].metrics["ratio"]
        result = found.result
        lines = [
            (Path(path).name, "grid", f"{measured} ({timed} timed)", seconds, pair[0], "100 %"),
            ("", "search", str(result.measured), result.seconds, pair[1], f"{share:.1%}"),
        ]
        for data, by, count, took, final, part in lines:
            assert final.config is not None
            metrics = final.metrics
            rows.append(
                f"| {data} | {by} | {count} | {took:.0f} s | {metrics['ratio']:.4f} | {metrics['encode_mb_s']:.0f}"
                f" | {one_line(final.config)} | {part} |"
            )
    here, with_ = machine(), versions()
    text = "\n".join(
        [
            "# The search against the exhaustive grid",
            "",
            f"`python benchmarks/grid.py {' '.join(Path(p).name for p in options.files)}`: most ratio of the portable"
            f" space under `{options.require}` (the first quartile of the repeats must meet it). Ratio and speed are of"
            " both winners measured again on the whole sample, timed in turn.",
            "",
            "| data | by | configurations | time | ratio | encode MB/s a core | configuration | of the grid's ratio |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Taken on {datetime.date.today()}: {here['cpu']}, {here['cores']} cores;"
            f" {', '.join(f'{name} {version}' for name, version in with_.items())}.",
            "",
        ]
    )
    Path(options.output).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
