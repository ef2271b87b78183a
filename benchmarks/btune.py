"""Btune beside ours: at no lower speed, is the ratio higher, and how long does it take?

    TUNER_REAL_DATA=FOLDER python benchmarks/btune.py [--sets NAME...] [--work FOLDER] [--seconds 8]

Btune runs in an environment of its own, made in the work folder, as it does nothing with later versions of blosc2. It
sees the same frames again and again until it has stopped trying or its time is over; what it chose last is measured
there by its own versions of the codecs, and here in turn with ours. We are given its speed as requirement, a guess that
never saw the data, and `predict`, then 10 and 30 seconds if they are needed. What is done is kept in the work folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from grid import count_own_time, timed_in_turn, write_table
from regret import FEASIBLE, SETS, surrogate_without

from tuner import find_profile
from tuner.config import Blosc2, Config, one_line
from tuner.errors import UnsatisfiableError
from tuner.evaluation import Evaluation
from tuner.goal import Constraint, Goal
from tuner.measure.meter import Meter
from tuner.read import open_stacks
from tuner.read.sampling import Sample, draw_sample
from tuner.search.champion import shipped_log
from tuner.search.find import PREDICT_BUDGET
from tuner.search.run import ROUNDS, small_part
from tuner.search.surrogate import Surrogate, is_usable

PACKAGES = ("blosc2==4.1.2", "blosc2-btune==1.2.1", "numpy")
TRADEOFFS = (0.3, 0.5, 0.8, 1.0)
#: What Btune is to make fast, and our metric of it.
MODES = {"COMP": "encode_mb_s", "DECOMP": "decode_mb_s"}
#: What ours takes, the next only where the one before did not do.
WAYS = {"predict": PREDICT_BUDGET, "10 s": "10s", "30 s": "30s"}
#: Small frames are stored several to a chunk, as for the baselines.
_CHUNK_NBYTES = 1 << 20
#: After fewer chunks than that Btune has stopped trying, if it is given the time.
_CHUNKS = 400
#: Btune's numbers of filters, as c-blosc2 applies them.
_FILTERS = {"0": (), "1": ("shuffle",), "2": ("bitshuffle",), "35": ("shuffle", "bytedelta")}
#: Codec, filter, split mode and level of a line of Btune's trace, and whether it won.
_TRACED = re.compile(r"^\|\s*(\w+) \|\s*(\d+) \|\s*([01]) \|\s*(\d+) \|.*\| ([WS-])$", re.MULTILINE)

#: Run in Btune's environment: compress the chunks in turn and tell when each was done. On one core, as Btune tries
#: several threads too.
_TUNE = """
import json, os, sys, time
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
import blosc2, numpy as np
file, typesize, seconds, most = sys.argv[1], *map(float, sys.argv[2:])
chunks = np.load(file)
cparams = {"tuner": blosc2.Tuner.BTUNE, "typesize": int(typesize), "nthreads": 1}
schunk = blosc2.SChunk(chunksize=chunks[0].nbytes, cparams=cparams, dparams={"nthreads": 1})
start = time.perf_counter()
schunk.append_data(chunks[0])
done = [time.perf_counter() - start]
while len(done) < most and done[-1] < seconds:
    schunk.update_data(0, chunks[len(done) % len(chunks)], copy=True)
    done.append(time.perf_counter() - start)
print(json.dumps(done))
"""

#: Run in Btune's environment: ratio and speeds of given parameters with one thread.
_MEASURE = """
import json, sys, time
import blosc2, numpy as np
chunks, given = np.load(sys.argv[1]), json.loads(sys.argv[2])
filters = [getattr(blosc2.Filter, name.upper()) for name in given.pop("filters")]
codec = getattr(blosc2.Codec, given.pop("codec").upper())
split = getattr(blosc2.SplitMode, given.pop("splitmode").upper() + "_SPLIT")
cparams = dict(given, codec=codec, splitmode=split, filters=filters, filters_meta=[0] * len(filters), nthreads=1)
encode, decode, begun = [], [], time.perf_counter()
while not encode or time.perf_counter() - begun < 1:
    start = time.thread_time()
    frames = [blosc2.compress2(chunk, **cparams) for chunk in chunks]
    middle = time.thread_time()
    for frame in frames:
        blosc2.decompress2(frame, nthreads=1)
    encode.append(chunks.nbytes / 1e6 / (middle - start))
    decode.append(chunks.nbytes / 1e6 / (time.thread_time() - middle))
ratio = chunks.nbytes / sum(map(len, frames))
print(json.dumps({"ratio": ratio, "encode_mb_s": float(np.median(encode)), "decode_mb_s": float(np.median(decode))}))
"""


def environment(work: Path) -> Path:
    """The interpreter of an environment that holds `PACKAGES`."""
    folder = work / "environment"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (folder / "complete").touch()
    return python


def run(python: Path, code: str, *arguments: object, **variables: str) -> str:
    """What a script prints in Btune's environment, which finds its library through the first `python` on PATH."""
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(python), "-c", code, *map(str, arguments)]
    environ = {**os.environ, "PATH": path, **variables}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout


def write_chunks(sample: Sample, file: Path) -> int:
    """Chunks of the sample as an array of bytes, shape (chunks, bytes); the frames in each."""
    small = small_part(sample)
    frame_nbytes = math.prod(small.frame_shape) * small.dtype.itemsize
    depth = max(1, min(_CHUNK_NBYTES // frame_nbytes, max(len(run.frames) for run in small.runs)))
    chunks = [
        np.ascontiguousarray(run.frames[start : start + depth]).reshape(-1).view(np.uint8)
        for run in small.runs
        for start in range(0, len(run.frames) - depth + 1, depth)
    ]
    np.save(file, np.stack(chunks))
    return depth


def let_tune(python: Path, file: Path, itemsize: int, mode: str, tradeoff: float, seconds: float) -> dict[str, Any]:
    """What Btune chose, after how many trials, and what that is worth in its own environment."""
    told = run(
        python,
        _TUNE,
        file,
        itemsize,
        seconds,
        _CHUNKS,
        BTUNE_TRACE="1",
        BTUNE_TRADEOFF=str(tradeoff),
        BTUNE_PERF_MODE=mode,
    )
    trials = _TRACED.findall(told)
    winners = [trial for trial in trials if trial[4] == "W"]
    if not winners:
        raise SystemExit(f"Btune chose nothing:\n{told[-2000:]}")
    codec, filters, split, level, _ = winners[-1]
    blosc2 = Blosc2(codec, 0, int(level), _FILTERS[filters], "always" if split == "1" else "never", itemsize)
    given = {key: value for key, value in blosc2.to_dict().items() if key not in ("codec_meta", "blocksize")}
    done = json.loads(told.strip().splitlines()[-1])
    return {
        "blosc2": blosc2.to_dict(),
        "there": json.loads(run(python, _MEASURE, file, json.dumps(given))),
        "trials": len(trials),
        "settled": len(trials) < len(done),
        "seconds": done[len(trials) - 1],  # it tries with each chunk until it stops
    }


def beat(path: str, sample: Sample, config: Config, metric: str, surrogate: Surrogate) -> dict[str, Any]:
    """Search for more ratio at no lower speed than a configuration has, longer while there is none."""
    whole = Meter(sample)
    document: dict[str, Any] = {"ratio": 0.0, "theirs": whole.exact(config).metrics["ratio"]}
    for way, budget in WAYS.items():
        # Timed as finalists are, and each time anew, as the machine may be faster or slower than it was.
        limit = timed_in_turn(whole, [config], ROUNDS)[0].low(metric)
        goal = Goal(("ratio",), (Constraint(metric, ">=", limit),))
        os.environ["TUNER_HOME"] = tempfile.mkdtemp()
        start = time.perf_counter()
        try:
            found = find_profile([path], goal=goal, budget=budget, surrogate=surrogate).result.best.config
        except UnsatisfiableError:
            continue
        seconds = time.perf_counter() - start
        assert found is not None
        theirs, ours = timed_in_turn(whole, [config, found])
        allowed = ours.metrics[metric] >= FEASIBLE * theirs.metrics[metric]
        if allowed and ours.metrics["ratio"] > document["ratio"]:
            document = {
                "way": way,
                "seconds": seconds,
                "ratio": ours.metrics["ratio"],
                "mb_s": ours.metrics[metric],
                "theirs": theirs.metrics["ratio"],
                "theirs_mb_s": theirs.metrics[metric],
                "config": one_line(whole.resolve(found), sample.dtype.itemsize),
            }
        if document["ratio"] > document["theirs"]:
            break
    return document


def judge_set(
    name: str, path: str, log: list[Evaluation], python: Path, seconds: float, work: Path
) -> list[dict[str, Any]]:
    """All of Btune's settings on one data set, each with ours beside it."""
    surrogate = surrogate_without(name, log)
    sample = draw_sample(open_stacks([path]))
    file = work / f"{name}.npy"
    depth = write_chunks(sample, file)
    rows: list[dict[str, Any]] = []
    for mode, metric in MODES.items():
        for tradeoff in TRADEOFFS:
            chosen = let_tune(python, file, sample.dtype.itemsize, mode, tradeoff, seconds)
            config = Config((depth, *(-1,) * len(sample.frame_shape)), Blosc2.from_dict(chosen["blosc2"]))
            same = [row for row in rows if row["mode"] == mode and row["blosc2"] == chosen["blosc2"]]
            ours = same[0]["ours"] if same else beat(path, sample, config, metric, surrogate)
            text = one_line(config, sample.dtype.itemsize)
            rows.append({"name": name, "mode": mode, "tradeoff": tradeoff, "text": text, **chosen, "ours": ours})
            print(json.dumps(rows[-1]), flush=True)
    file.unlink()
    return rows


def row_of(row: dict[str, Any]) -> str:
    ours, there = row["ours"], row["there"]
    metric = MODES[row["mode"]]
    cells = [
        row["name"],
        row["mode"],
        f"{row['tradeoff']:g}",
        row["text"],
        f"{there['ratio']:.3f}, {there[metric]:.0f}",
        f"{row['trials']}{'' if row['settled'] else '+'}, {row['seconds']:.1f} s",
    ]
    if ours["ratio"]:
        cells += [
            f"{ours['theirs']:.3f}, {ours['theirs_mb_s']:.0f}",
            f"{ours['ratio']:.3f}, {ours['mb_s']:.0f}",
            f"{ours['ratio'] / ours['theirs'] - 1:+.1%}",
            f"{ours['way']}, {ours['seconds']:.1f} s",
            ours["config"],
        ]
    else:
        cells += [f"{ours['theirs']:.3f}", "", "nothing as fast found", "", ""]
    return f"| {' | '.join(cells)} |"


def summary(rows: list[dict[str, Any]]) -> str:
    """The claim in plain words."""
    lines = []
    for mode, metric in MODES.items():
        gains = [r["ours"]["ratio"] / r["ours"]["theirs"] - 1 for r in rows if r["mode"] == mode]
        found = [g for g in gains if g > -1]
        higher, equal = sum(g > 0 for g in found), sum(g == 0 for g in found)
        lines.append(
            f"{mode} (`{metric}` at least Btune's): higher in {higher} of {len(gains)}, equal in {equal}, lower in"
            f" {len(found) - higher - equal}, nothing as fast found in {len(gains) - len(found)}; gain where found"
            f" {np.median(found or [math.nan]):+.1%} in the median, {min(found, default=math.nan):+.1%} at least."
        )
    missed = sorted({r["name"] for r in rows if r["ours"]["ratio"] <= r["ours"]["theirs"]})
    reached = "The aim is reached" if not missed else f"The aim is missed, on {', '.join(missed)}"
    return f"Aim: at no lower speed a higher ratio on every data set. {reached}. {' '.join(lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "tuner-btune"))
    parser.add_argument("--seconds", type=float, default=8.0, help="how long Btune may try, for each setting")
    parser.add_argument("--output", default="results/btune.md")
    options = parser.parse_args()
    count_own_time()
    root, work = Path(os.environ["TUNER_REAL_DATA"]), Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    python = environment(work)
    log = [e for e in shipped_log() if is_usable(e)]
    rows: list[dict[str, Any]] = []
    for name in options.sets:
        kept = work / f"{name}.json"
        if not kept.exists():
            kept.write_text(json.dumps(judge_set(name, str(root / SETS[name]), log, python, options.seconds, work)))
        rows += json.loads(kept.read_text())
    lines = [
        "# Btune beside ours",
        "",
        f"`python benchmarks/btune.py --seconds {options.seconds:g}`: {' '.join(PACKAGES)} in an environment of its"
        " own, one thread, without models, which are sold: Btune tries codecs, filters, split modes and levels chunk by"
        " chunk. *Trials*: how many its trace shows until it stopped, or with a + until its time was over; *there*:"
        " measured by its own versions of the codecs; *here*: both winners measured on the whole sample by ours, timed"
        " in turn. Pairs are ratio and MB/s on one core, of encoding for COMP, of decoding for DECOMP. Ours searched"
        f" for most ratio at no lower speed, and counts if it reaches {FEASIBLE} of Btune's when timed again; its guess"
        " never saw the data set.",
        "",
        summary(rows),
        "",
        "| data | mode | tradeoff | Btune's choice | there | trials | Btune here | ours here | ratio | reached by"
        " | ours |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *map(row_of, rows),
    ]
    write_table(options.output, lines)


if __name__ == "__main__":
    main()
