"""How long a guess, a prediction and a search take, against the sample, the frames and the space.

    python benchmarks/scaling.py [--budget 60s] [--output results/scaling.md]

On simulated tomography. One of the three is varied at a time; the others are those of the row that all tables share.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from grid import write_table

from tuner import find_profile
from tuner.apply.pipeline import default_workers
from tuner.evaluation import Log
from tuner.goal import Goal
from tuner.measure.probe import probe_traits
from tuner.measure.timing import Reference
from tuner.read import open_stacks
from tuner.read.sampling import draw_sample
from tuner.search.budget import Budget
from tuner.search.champion import load_surrogate
from tuner.search.evidence import traits_of
from tuner.search.find import PREDICT_BUDGET
from tuner.search.run import Search
from tuner.search.surrogate import Data, Surrogate
from tuner.simulate import Tomography
from tuner.simulate.tomography import scan_kinds
from tuner.space import Choose, Space, load_space
from tuner.stack import Kind

SAMPLES_MB = (1, 4, 16, 64)
SHAPES = ((22, 26), (128, 128), (512, 512), (2048, 2048), (4096, 4096))
#: Blocks beside those of the portable space, which make it twice as large.
BLOCKSIZES = (8 << 10, 16 << 10, 64 << 10, 192 << 10, 384 << 10, 768 << 10, 1536 << 10, 8 << 20)
#: So many exposures are simulated, and repeated where more are needed.
_EXPOSURES = 48
COLUMNS = (
    "traits and probe",
    "of it probe",
    "guess",
    "of it the model",
    "first round",
    "`tuner predict`",
    "`tuner search`",
)


@dataclass(frozen=True, slots=True)
class Case:
    """What is varied."""

    nbytes: int = 16 * 10**6
    """Of the sample."""
    shape: tuple[int, int] = (512, 512)
    """Of a frame, uint16."""
    space: str = "portable"
    """Name of a shipped space, or `doubled`."""


@dataclass(frozen=True, slots=True)
class Times:
    """What one case takes."""

    seconds: Mapping[str, float]
    """By column."""
    guessed: int
    """Distinct configurations of the space."""
    measured: int
    """Configurations that the search measured before it ended."""


def frames_file(shape: tuple[int, int], folder: Path) -> Path:
    """Frames of one shape, enough for the largest sample that is drawn from them."""
    path = folder / f"{'x'.join(map(str, shape))}.npy"
    if not path.exists():
        nbytes = max(SAMPLES_MB) * 10**6 if shape == Case().shape else Case().nbytes
        count = max(1, nbytes // (shape[0] * shape[1] * 2))
        exposures = np.stack(list(Tomography(shape=shape).simulate(min(count + 8, _EXPOSURES), seed=0)))
        data = exposures[scan_kinds(len(exposures)) == Kind.DATA]
        np.save(path, np.resize(data, (count, *shape)))
    return path


def space_of(name: str) -> Space:
    if name != "doubled":
        return load_space(name)
    tree: dict[str, Any] = dict(load_space("portable").tree)
    options = tree["blosc2"].options
    blocks = Choose((*options[0]["blocksize"].options, *BLOCKSIZES))
    return Space(name, {**tree, "blosc2": Choose(tuple({**option, "blocksize": blocks} for option in options))})


def measure(case: Case, surrogate: Surrogate, budget: str, folder: Path) -> Times:
    """Time every part of one case."""
    path, space = frames_file(case.shape, folder), space_of(case.space)
    stacks = open_stacks([path])
    sample = draw_sample(stacks, case.nbytes)
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def note(column: str) -> None:
        nonlocal start
        seconds[column] = time.perf_counter() - start
        start = time.perf_counter()

    traits = traits_of(sample, stacks)
    note("traits and probe")
    probe_traits(sample, Reference())
    note("of it probe")
    with tempfile.TemporaryDirectory() as logs:
        search = Search(
            sample,
            0,
            space,
            Goal(("ratio", "encode_mb_s")),
            Budget(seconds=60.0),
            Log(Path(logs) / "log.jsonl"),
            traits=traits,
            jobs=default_workers(),
        )
        for _ in range(50):
            search._meter.reference.run()
        start = time.perf_counter()
        guide = search._guide = search._make_guide(surrogate)
        note("guess")
        assert guide is not None
        surrogate.predict(guide.configs, Data(sample.frame_shape, sample.dtype, traits))
        note("of it the model")
        search._measure(search._ask(default_workers(), 0)[0])
        note("first round")
    measured = 0
    for column, limit in (("`tuner predict`", PREDICT_BUDGET), ("`tuner search`", budget)):
        os.environ["TUNER_HOME"] = tempfile.mkdtemp()  # it starts knowing nothing
        start = time.perf_counter()
        found = find_profile([path], space=space, budget=limit, sample=f"{case.nbytes}B", surrogate=surrogate)
        note(column)
        measured = found.result.measured
    times = Times(seconds, len(guide.configs), measured)
    print(case, {column: round(value, 2) for column, value in seconds.items()}, measured, flush=True)
    return times


def table(title: str, rows: Sequence[tuple[str, Times]]) -> list[str]:
    lines = [
        "",
        f"| {title} | configurations | {' | '.join(COLUMNS)} | measured |",
        f"|---|{'---:|' * (len(COLUMNS) + 2)}",
    ]
    for label, times in rows:
        cells = [f"{times.seconds[column]:.2f} s" for column in COLUMNS]
        lines.append(f"| {label} | {times.guessed:,} | {' | '.join(cells)} | {times.measured} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="60s", help="the most that a search may take")
    parser.add_argument("--output", default="results/scaling.md")
    options = parser.parse_args()
    os.environ["TUNER_HOME"] = tempfile.mkdtemp()
    surrogate = load_surrogate()
    assert surrogate is not None
    with tempfile.TemporaryDirectory() as folder:
        timed = functools.cache(lambda case: measure(case, surrogate, options.budget, Path(folder)))
        lines = [
            "# Scaling: what a guess, a prediction and a search take",
            "",
            f"`python benchmarks/scaling.py --budget {options.budget}`, simulated tomography, uint16,"
            f" {default_workers()} threads. Traits of at most four runs of the sample; the guess lists every distinct"
            " configuration of the space and asks the model; the first round of a search, asked for and measured; then"
            " whole commands but for loading Python and the model, the search until no configuration is likely to be"
            f" better by a per cent, {options.budget} at most, with so many configurations *measured*. They measure on"
            " 8 MB of the sample, or a frame, and finalists on all of it.",
            *table("sample", [(f"{mb} MB", timed(Case(nbytes=mb * 10**6))) for mb in SAMPLES_MB]),
            *table("frames", [(f"{height}x{width}", timed(Case(shape=(height, width)))) for height, width in SHAPES]),
            *table("space", [(name, timed(Case(space=name))) for name in ("quick", "portable", "doubled")]),
        ]
    write_table(options.output, lines)


if __name__ == "__main__":
    main()
