"""The log of evaluations that comes with the package: what many configurations do to many kinds of data.

    python benchmarks/make_log.py [--count 220] [--minutes N] [--work FOLDER] [--seed 0]

Simulated data sets, and real ones where TUNER_REAL_DATA names their folder, each leave a file in the work folder; those
that are there are not measured again, so that a run that was stopped, by its limit or by a kill, goes on where it was.
In the end all are merged into results/evaluations/.
"""

from __future__ import annotations

import argparse
import gzip
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from grid import count_own_time
from simulated import datasets

from tuner.config import Config
from tuner.errors import InputError
from tuner.evaluation import Evaluation, Log, read_log
from tuner.goal import Goal
from tuner.measure.baseline import measure_baselines
from tuner.measure.meter import Meter
from tuner.measure.timing import Timing
from tuner.read import open_stacks
from tuner.read.sampling import Sample, draw_sample
from tuner.search.budget import Budget
from tuner.search.evidence import traits_of
from tuner.search.run import Search, small_part
from tuner.space import Choose, Space, load_space
from tuner.stack import Stack

OUTPUT = Path(__file__).parent.parent / "results" / "evaluations"

#: How many configurations of each codec and level are measured; the fast ones matter most, the slow ones take long.
DRAWN: Mapping[str, Mapping[int, int]] = {
    "lz4": {0: 1, 1: 11, 5: 8, 9: 5},
    "lz4hc": {1: 5, 5: 4, 9: 3},
    "blosclz": {1: 3, 5: 3, 9: 4},
    "zstd": {1: 16, 2: 10, 3: 9, 5: 6, 7: 4, 9: 4},
    "zlib": {1: 4, 4: 3, 9: 2},
}

#: A configuration that takes longer for the sample is skipped; one that takes longer than this is not timed again.
MOST_SECONDS, LONG_SECONDS = 0.5, 0.1
#: Repeats of a timing, and the seconds after which no more configurations of a data set are measured.
WINDOWS, DATASET_SECONDS = 2, 6.0
#: Configurations that are drawn at a time.
PART = 45

#: The files under TUNER_REAL_DATA by the name of their data set and its technique.
REAL: Mapping[str, tuple[str, str]] = {
    "tooth_aps2bm": ("tomography", "tomography/tooth_aps2bm.h5"),
    "k11_diad_dls": ("tomography", "tomography/k11_diad_dls.h5"),
    "txm_xanes_aps": ("tomography", "tomography/txm_xanes_aps.nxs"),
    "chip_xradia": ("tomography", "tomography/chip_xradia.tif"),
    "thaumatin_pilatus6m_i24": ("mx", "mx/thaumatin_pilatus6m_i24/*.cbf.bz2"),
    "eiger4m_bragg": ("mx", "mx/eiger4m_bragg.h5"),
    "lab6_waxs_pilatus300kw_ssrl": ("scattering", "scattering/lab6_waxs_pilatus300kw_ssrl.nxs"),
    "siemens_star_ptychography_aps": ("coherent", "coherent/siemens_star_ptychography_aps.nxs"),
    "xrf_map_aps2ide": ("spectroscopy", "spectroscopy/xrf_map_aps2ide.nxs"),
}
#: Bytes of the samples drawn of each, the seed being the place.
REAL_NBYTES = (16 << 20, 8 << 20, 4 << 20)


class Draw:
    """Decides at random what a space leaves open, but for what is given; every other typesize is the dtype's."""

    def __init__(self, rng: np.random.Generator, given: Mapping[str, str], itemsize: int) -> None:
        self._rng = rng
        self._given = given
        self._itemsize = str(itemsize)

    def choose(self, name: str, labels: tuple[str, ...]) -> str:
        if name.endswith("typesize") and self._itemsize in labels and self._rng.random() < 0.5:
            return self._itemsize
        return self._given.get(name) or str(labels[self._rng.integers(len(labels))])

    def number(self, name: str, low: int, high: int) -> int:
        return int(self._rng.integers(low, high + 1))


def drawn(space: Space, meter: Meter, rng: np.random.Generator) -> Iterator[Config]:
    """Configurations of a bound space, so many of each codec and level, in random order."""
    blosc2 = space.tree["blosc2"]
    assert isinstance(blosc2, Choose)
    strata = [
        {"blosc2": f"#{index}", f"blosc2[{index}].clevel": str(clevel)}
        for index, option in enumerate(blosc2.options)
        for clevel, count in DRAWN[option["codec"]].items()  # type: ignore[index, call-overload]
        for _ in range(count)
    ]
    for index in rng.permutation(len(strata)):
        for _ in range(20):
            try:
                config = space.suggest(Draw(rng, strata[index], meter.sample.dtype.itemsize))
                meter.resolve(config)
            except InputError:
                continue
            yield config
            break


def measure(sample: Sample, stacks: Sequence[Stack], rng: np.random.Generator, folder: Path) -> Iterator[Evaluation]:
    """Evaluations of baselines, of what a search begins with, and of what is drawn."""
    begin = time.perf_counter()
    traits = traits_of(sample, stacks)
    frames = len(stacks[0]) if len(stacks[0].shape) == 3 else 0
    small = small_part(sample)
    meter = Meter(small, frames)
    space = load_space("portable")
    bound = space.bind(small.frame_shape, small.dtype, max(len(run.frames) for run in small.runs))
    for evaluation in measure_baselines(meter, WINDOWS).values():
        yield replace(evaluation, traits=traits)
    search = Search(sample, frames, space, Goal(("ratio",)), Budget(configurations=99), Log(folder / "unused.jsonl"))
    known: set[Config] = set()
    # Those of one chunk shape follow each other, as their buffers are the same; each part stands for all.
    wanted = [*search._seeds(), *drawn(bound, meter, rng)]
    parts = [sorted(wanted[at : at + PART], key=lambda config: config.chunks) for at in range(0, len(wanted), PART)]
    for config in (config for part in parts for config in part):
        if time.perf_counter() - begin > DATASET_SECONDS + small.nbytes / 4e6:
            return
        resolved = meter.resolve(config)
        if resolved in known:
            continue
        known.add(resolved)
        evaluation = meter.exact(config, most_seconds=MOST_SECONDS)
        if evaluation.failure is not None:
            if "takes" in evaluation.failure:
                continue
        elif small.nbytes / 1e6 / evaluation.metrics["encode_mb_s"] > LONG_SECONDS:
            for _ in range(5):
                meter.reference.run()
            encode, decode = (Timing((evaluation.metrics[name],)) for name in ("encode_mb_s", "decode_mb_s"))
            evaluation = meter.with_timings(evaluation, resolved.chunks, encode, decode)
        else:
            evaluation = meter.timed(evaluation, WINDOWS)
        yield replace(meter.signed(evaluation), traits=traits)


def short(evaluation: Evaluation, **origin: str) -> Evaluation:
    """The same with the digits that a measurement has, and without the name of the machine."""
    machine = {key: value for key, value in evaluation.origin["machine"].items() if key != "host"}
    reference = {key: float(f"{evaluation.origin[key]:.5g}") for key in ("reference_mb_s",) if key in evaluation.origin}
    return replace(
        evaluation,
        metrics={name: float(f"{value:.5g}") for name, value in evaluation.metrics.items()},
        spread={name: (float(f"{low:.4g}"), float(f"{high:.4g}")) for name, (low, high) in evaluation.spread.items()},
        traits={name: float(f"{value:.5g}") for name, value in evaluation.traits.items()},
        origin={**evaluation.origin, **origin, **reference, "machine": machine},
    )


def write(name: str, technique: str, sample: Sample, stacks: Sequence[Stack], seed: int, target: Path) -> int:
    """Measure a sample and leave its file, whole or not at all; how many evaluations that are."""
    rng = np.random.default_rng([seed, *target.stem.encode()])
    part = target.with_suffix(".part")
    part.unlink(missing_ok=True)
    count = 0
    with Log(part) as log:
        for evaluation in measure(sample, stacks, rng, target.parent):
            log.append(short(evaluation, dataset=name, technique=technique))
            count += 1
    part.rename(target)
    return count


def tasks(count: int, seed: int) -> Iterator[tuple[str, str, Callable[[], tuple[str, Sample, Sequence[Stack]]]]]:
    """File name, name of the data set, and what makes technique, sample and stacks; real data among the simulated."""

    def simulated(make: Callable[[], tuple[str, Stack]], index: int) -> tuple[str, Sample, Sequence[Stack]]:
        technique, stack = make()
        nbytes = (2 << 20, 4 << 20, 16 << 20)[index % 3]
        return technique, draw_sample([stack], nbytes, seed), [stack]

    def real(technique: str, pattern: str, at: int) -> tuple[str, Sample, Sequence[Stack]]:
        stacks = open_stacks(sorted(str(path) for path in Path(os.environ["TUNER_REAL_DATA"]).glob(pattern)))
        return technique, draw_sample(stacks, REAL_NBYTES[at], at), stacks

    if os.environ.get("TUNER_REAL_DATA"):
        for at in range(len(REAL_NBYTES)):
            for name, (technique, pattern) in REAL.items():
                yield f"real-{name}-{at}", name, partial(real, technique, pattern, at)
    for index, (name, make) in enumerate(datasets(count, seed)):
        yield name, name, partial(simulated, make, index)


def merge(folder: Path) -> None:
    """All that was measured, into one file for the simulated and one for the real data.

    The speed of the reference kernel is the median of all: measured again, configurations differ less than the kernel,
    which is so fast that it feels what others do to the memory. The work folder is to be of one machine.
    """
    kinds = {"simulated": "sim-*.jsonl", "real": "real-*.jsonl"}
    logs = {name: [list(read_log(file)) for file in sorted(folder.glob(kind))] for name, kind in kinds.items()}
    speeds = [e.origin["reference_mb_s"] for log in logs.values() for one in log for e in one if e.failure is None]
    usual = {"reference_mb_s": float(np.median(speeds))}
    for name in (name for name in logs if logs[name]):
        merged = folder / f"{name}.merged"
        merged.unlink(missing_ok=True)
        with Log(merged) as log:
            for evaluation in (e for one in logs[name] for e in one):
                log.append(replace(evaluation, origin={**evaluation.origin, **usual}))
        lines = merged.read_bytes()
        packed = gzip.compress(lines, 9, mtime=0)
        (OUTPUT / f"{name}.jsonl.gz").write_bytes(packed)
        count = lines.count(b"\n")
        print(f"{name}: {len(logs[name])} samples, {count} evaluations, {len(packed)} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=220, help="simulated data sets")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long; the next run goes on")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tuner_log")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count_own_time()
    options.work.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    for file, name, make in tasks(options.count, options.seed):
        target = options.work / f"{file}.jsonl"
        if target.exists():
            continue
        if time.perf_counter() - begin > 60 * options.minutes:
            break
        start = time.perf_counter()
        technique, sample, stacks = make()
        count = write(name, technique, sample, stacks, options.seed, target)
        took = time.perf_counter() - start
        size = f"{sample.dtype} {sample.frame_shape} {sample.nbytes / 1e6:.1f} MB"
        print(f"{file} {technique} {size}: {count} in {took:.1f} s", flush=True)
    merge(options.work)


if __name__ == "__main__":
    main()
