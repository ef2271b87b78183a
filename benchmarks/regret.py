"""What a guess, ten seconds and a minute are worth beside the exhaustive grid, for data that was never learned from.

    TUNER_REAL_DATA=FOLDER python benchmarks/regret.py [--sets NAME...] [--work FOLDER] [--output results/regret.md]

For each data set a surrogate learns from the shipped log without it. Then it is asked, under `encode_mb_s >=` 1, 1/2
and 1/4 of bitshuffle-lz4's: for its first guess, unmeasured; for `predict`; for searches of 10 and of 60 seconds. All
picks and the grid's winner are measured on the whole sample and timed in turn with the reference kernel between. A pick
is feasible if it reaches 0.97 of the limit; its regret is the share of the grid's ratio that it misses. What is done is
kept in the work folder: a run that is stopped goes on where it was. Speeds are per second of the thread's own time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from grid import best_of, count_own_time, measure_grid, timed_in_turn, write_table

from tuner import find_profile
from tuner.config import Config
from tuner.evaluation import Evaluation
from tuner.goal import Constraint, Goal, Judge
from tuner.measure.baseline import measure_baselines
from tuner.measure.meter import FINAL_WINDOWS, Meter
from tuner.read import open_stacks
from tuner.read.sampling import draw_sample
from tuner.search.champion import shipped_log
from tuner.search.evidence import traits_of
from tuner.search.find import PREDICT_BUDGET
from tuner.search.score import widening
from tuner.search.surrogate import Data, Surrogate, dataset_of, is_usable
from tuner.space import load_space

SETS = {
    "chip_xradia": "tomography/chip_xradia.tif",
    "tooth_aps2bm": "tomography/tooth_aps2bm.h5",
    "k11_diad_dls": "tomography/k11_diad_dls.h5",
    "xrf_map_aps2ide": "spectroscopy/xrf_map_aps2ide.nxs",
    "txm_xanes_aps": "tomography/txm_xanes_aps.nxs",
    "siemens_star_ptychography_aps": "coherent/siemens_star_ptychography_aps.nxs",
    "lab6_waxs_pilatus300kw_ssrl": "scattering/lab6_waxs_pilatus300kw_ssrl.nxs",
    "eiger4m_bragg": "mx/eiger4m_bragg.h5",
    "thaumatin_pilatus6m_i24": "mx/thaumatin_pilatus6m_i24",
}
SHARES = (1.0, 0.5, 0.25)
WAYS = {"predict": PREDICT_BUDGET, "10 s": "10s", "60 s": "60s"}
FEASIBLE = 0.97
#: Configurations of a space that are measured; where it holds more, they are drawn at random.
MOST = 20000


def surrogate_without(name: str, log: list[Evaluation]) -> Surrogate:
    """What leads a search, had it never seen a data set."""
    others = [e for e in log if dataset_of(e) != name]
    return Surrogate.fit(others).calibrated(widening(others))


def speed_today(meter: Meter) -> float:
    """How fast bitshuffle-lz4 is just now, MB/s."""
    return measure_baselines(meter, FINAL_WINDOWS)["bslz4"].metrics["encode_mb_s"]


def first_guess(surrogate: Surrogate, meter: Meter, traits: dict[str, float], limit: float) -> Config:
    """The configuration with the best expected ratio among those that are expected to meet the limit."""
    sample = meter.sample
    run = max(len(r.frames) for r in sample.runs)
    space = load_space("portable").bind(sample.frame_shape, sample.dtype, run)
    configs = [config for _, config in space.grid() if fits(config, meter)]
    data = Data(sample.frame_shape, sample.dtype, traits)
    guesses = surrogate.guess(configs, data, meter.reference.usual / 1e6)
    best = Judge(Goal(("ratio",), (Constraint("encode_mb_s", ">=", limit),)), {}).rank(guesses)
    config = (best or guesses)[0].config
    assert config is not None
    return config


def fits(config: Config, meter: Meter) -> bool:
    try:
        meter.resolve(config)
    except ValueError:
        return False
    return True


def judge_set(name: str, path: str, log: list[Evaluation], work: Path, most: int) -> dict[str, Any]:
    """All picks for one data set, and what they are worth."""
    surrogate = surrogate_without(name, log)
    stacks = open_stacks([path])
    sample = draw_sample(stacks)
    whole = Meter(sample)
    grid = measure_grid([path], min(SHARES) * speed_today(whole) / 4, work, most)
    traits = traits_of(sample, stacks)
    document: dict[str, Any] = {"name": name, "grid_seconds": grid.seconds, "configurations": len(grid.evaluations)}
    for share in SHARES:
        limit = share * speed_today(whole)
        constraint = Constraint("encode_mb_s", ">=", share, "bslz4")
        picks: dict[str, tuple[Config, float]] = {}
        start = time.perf_counter()
        best, _ = best_of(grid, constraint, limit)
        assert best.config is not None
        picks["grid"] = (best.config, grid.seconds + time.perf_counter() - start)
        start = time.perf_counter()
        picks["guess"] = (first_guess(surrogate, grid.meter, traits, limit), time.perf_counter() - start)
        for way, budget in WAYS.items():
            os.environ["TUNER_HOME"] = tempfile.mkdtemp()
            start = time.perf_counter()
            goal = Goal(("ratio",), (constraint,))
            try:
                found = find_profile([path], goal=goal, budget=budget, surrogate=surrogate)
            except Exception as error:
                print(f"{name} {share} {way}: {error}")
                continue
            assert found.result.best.config is not None
            picks[way] = (found.result.best.config, time.perf_counter() - start)
        before = speed_today(whole)
        again = timed_in_turn(whole, [config for config, _ in picks.values()])
        limit = share * (before + speed_today(whole)) / 2
        judged = dict(zip(picks, again, strict=True))
        document[str(share)] = {
            way: {
                "regret": 1 - judged[way].metrics["ratio"] / judged["grid"].metrics["ratio"],
                "of_limit": judged[way].metrics["encode_mb_s"] / limit,
                "seconds": seconds,
            }
            for way, (_, seconds) in picks.items()
        }
        print(name, share, json.dumps(document[str(share)]))
    return document


def best_of_all(judged: dict[str, dict[str, float]]) -> float:
    """The ratio of the best that proved to be feasible, over that of the grid's winner."""
    return max((1 - cell["regret"] for cell in judged.values() if cell["of_limit"] >= FEASIBLE), default=1.0)


def table(documents: list[dict[str, Any]]) -> list[str]:
    """Rows of the result: for each way and limit the median and worst regret of feasible picks."""
    rows = []
    for way in ("guess", *WAYS):
        for share in SHARES:
            judged = [d[str(share)] for d in documents if way in d[str(share)]]
            cells = [each[way] for each in judged]
            feasible = [
                1 - (1 - each[way]["regret"]) / best_of_all(each)
                for each in judged
                if each[way]["of_limit"] >= FEASIBLE
            ]
            share_of_time = [each[way]["seconds"] / each["grid"]["seconds"] for each in judged]
            if not feasible:
                continue
            rows.append(
                f"| {way} | {share:g} | {statistics.median(feasible):.1%} | {max(feasible):.1%}"
                f" | {len(feasible)} of {len(documents)} | {statistics.median(c['seconds'] for c in cells):.1f} s"
                f" | 1/{1 / statistics.median(share_of_time):.0f} |"
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "tuner-regret"))
    parser.add_argument("--output", default="results/regret.md")
    parser.add_argument("--most", type=int, default=MOST, help="configurations of a grid; beyond that drawn at random")
    options = parser.parse_args()
    count_own_time()
    root, work = Path(os.environ["TUNER_REAL_DATA"]), Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    log = [e for e in shipped_log() if is_usable(e)]
    documents = []
    for name in options.sets:
        kept = work / f"{name}.json"
        if not kept.exists():
            kept.write_text(json.dumps(judge_set(name, str(root / SETS[name]), log, work, options.most)))
        documents.append(json.loads(kept.read_text()))
    lucky = [1 for d in documents for share in SHARES if d[str(share)]["grid"]["of_limit"] < FEASIBLE]
    lines = [
        "# Regret: how far a pick is from the exhaustive grid's",
        "",
        f"`python benchmarks/regret.py`, {len(documents)} data sets ({', '.join(d['name'] for d in documents)}), each"
        f" left out of the training when it is judged; the log holds {len({dataset_of(e) for e in log})} data sets."
        " Most ratio with `encode_mb_s` at least so much of bitshuffle-lz4's; a pick is feasible if, timed again in"
        f" turn, it reaches {FEASIBLE} of that. Regret is of feasible picks: the share that they miss of the ratio of"
        " the best feasible one, the grid's winner or a pick. The grid's winner met the limit twice, but missed it when"
        f" timed in turn in {len(lucky)} of {len(documents) * len(SHARES)} cases.",
        "",
        "| by | of bslz4's speed | median regret | worst | feasible | time | of the grid's time |",
        "|---|---|---|---|---|---|---|",
        *table(documents),
        "",
        f"The grid measured {min(d['configurations'] for d in documents)} to"
        f" {max(d['configurations'] for d in documents)} configurations (of large frames so many drawn at random) in"
        f" {min(d['grid_seconds'] for d in documents):.0f} to {max(d['grid_seconds'] for d in documents):.0f} s.",
    ]
    write_table(options.output, lines)


if __name__ == "__main__":
    main()
