"""What lossy steps gain, beside the best lossless configuration of the same frames, and whether limits hold.

    TUNER_REAL_DATA=FOLDER python benchmarks/lossy.py [--sets NAME...] [--budget 20] [--work FOLDER]

For each set: the best lossless configuration; each rounding as its authors used it; what the search finds under
`sub-noise`, `noise-equivalent` and ``dose_cost <= 0.3``; bisection of one parameter under the same limits; and the best
quantiser that can be constructed for `sub-noise`. Each ratio is of the same frames, with the same codecs. Then every
frame that a search has not seen is held to its limits. Simulated sets need no folder.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from grid import count_own_time, write_table
from lossy_page import GOALS, METRICS, Row, page
from lossy_sets import Set, sets
from numpy.typing import NDArray
from quantiser import PARAMETERS, Histogram, bisect, constructed, leading_bits, maker, two_ranges

import tuner
from tuner.config import Blosc2, Config, one_line
from tuner.errors import InputError, TunerError, TunerWarning
from tuner.goal import Goal, broken
from tuner.measure.meter import Meter
from tuner.noise import Noise
from tuner.quality import QUALITIES, compare, worst
from tuner.read import open_stacks
from tuner.read.sampling import Sample, draw_sample
from tuner.search.find import Found
from tuner.search.lossy import on_grid, settle_noise
from tuner.search.parts import Parts, split
from tuner.search.promise import RISK, units_for
from tuner.space import load_space
from tuner.stack import Kind, Stack
from tuner.steps import STEPS, Pixels, Step, defaults, prepare, step_from_dict
from tuner.traits import traits

#: What is compressed with, whatever the quantiser: those of the shipped lossy spaces that win most often.
CODECS = (
    Blosc2("zstd", clevel=1, filters=("bitshuffle",), splitmode="never", blocksize=1 << 18),
    Blosc2("zstd", clevel=3, filters=("shuffle",), splitmode="always", blocksize=1 << 20),
    Blosc2("zstd", clevel=3, filters=("shuffle",), splitmode="never", blocksize=1 << 20),
    Blosc2("zstd", clevel=3, filters=("shuffle", "bytedelta"), splitmode="always", blocksize=1 << 20),
)
#: Steps that have parameters. Of leading bits the setting is the authors'; the others publish the kind of rounding, and
#: the factors are ours.
_BY_AUTHORS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Galchenkova et al. 2024: 3 leading bits and exponent", {"step": "leading_bits", "keep": 3}),
    ("as Jungfraujoch: square root in halves (factor ours)", {"step": "power", "exponent": 0.5, "width": 0.5}),
    ("as l_bnl_compress: logarithm, a per cent (width ours)", {"step": "log", "width": 0.01, "linear": 1.0}),
    ("as l_bnl_compress: square root, whole (width ours)", {"step": "power", "exponent": 0.5, "width": 1.0}),
)
#: Bits below and above Otsu's threshold.
_TWO_RANGES = ((1, 1), (1, 4), (2, 4))
#: By these, constructed quantisers are compared first.
_QUICK = CODECS[:2]
#: Lossless may take longer: gains over it are no smaller with faster ones.
SLOW = (Blosc2("zstd", clevel=9, filters=("shuffle",), splitmode="always", blocksize=1 << 20),)
#: Repeats of a timing.
_WINDOWS = 3
#: Of what searches see.
_SAMPLE_NBYTES = 4_000_000
#: Frames that no search has seen are compared so many bytes at a time, as a search judges them.
_BATCH_NBYTES = 32 << 20


@dataclass
class Bench:
    """One set, its frames and what is known of their noise."""

    stacks: Sequence[Stack]
    sample: Sample
    """What searches measure on."""
    parts: Parts
    """What else they see."""
    noise: Noise | None
    qualities: dict[Step, Mapping[str, float]] = field(default_factory=dict)

    @cached_property
    def pixels(self) -> list[Pixels]:
        return [Pixels(stack.marks, stack.mask, self.noise) for stack in self.stacks]

    @cached_property
    def meter(self) -> Meter:
        names = [name for name in METRICS if self.noise is not None or not QUALITIES[name].needs_noise]
        return Meter(self.sample, 0, self.pixels, names)

    def quality(self, step: Step) -> Mapping[str, float]:
        """Each quality of the worst frame of the sample; none where the step cannot be done."""
        if step not in self.qualities:
            try:
                self.qualities[step] = self.meter.prepared((step,)).quality
            except TunerError:
                self.qualities[step] = {}
        return self.qualities[step]

    def best(self, steps: tuple[Step, ...], codecs: Sequence[Blosc2]) -> tuple[Config, float, dict[str, float]]:
        """Of some codecs the one of the best ratio with these steps, and the qualities; raises InputError."""
        chunks = (1, *(-1,) * len(self.sample.frame_shape))
        several = max(1, (1 << 20) // self.stacks[0].frame_nbytes)
        tried = [self.meter.exact(Config((several, *chunks[1:]), codec, steps)) for codec in codecs]
        found = max(tried, key=lambda evaluation: evaluation.metrics.get("ratio", 0.0))
        if found.config is None or not found.metrics:
            raise InputError(found.failure or "nothing could be encoded")
        return found.config, found.metrics["ratio"], {n: found.metrics[n] for n in self.meter.qualities}

    def row(self, method: str, config: Config, seconds: float = 0.0, note: str = "") -> Row:
        """Measured with the clock on the whole sample."""
        evaluation = self.meter.timed(self.meter.exact(config), _WINDOWS)
        if evaluation.failure is not None:
            return Row(method, one_line(config), note=evaluation.failure)
        metrics = evaluation.metrics
        speeds = (metrics[name] for name in ("ratio", "encode_mb_s", "decode_mb_s"))
        quality = {name: metrics[name] for name in self.meter.qualities}
        return Row(method, one_line(config, self.sample.dtype.itemsize), *speeds, quality, seconds, note=note)

    def values(self) -> NDArray[Any]:
        """All valid values of the sample."""
        return np.concatenate([r.frames[self.stacks[r.stack].valid(r.frames)].reshape(-1) for r in self.sample.runs])

    def all_values(self) -> NDArray[Any]:
        """Those of the sample, and of frames all over that it does not hold: what is constructed knows them all."""
        found = [self.values()]
        for index, frames in self._unseen():
            every = -(-len(frames) * self.stacks[index].frame_nbytes // _BATCH_NBYTES)
            for number in frames[:: max(every, 1)]:
                frame = self.stacks[index].read(int(number), int(number) + 1)
                found.append(frame[self.stacks[index].valid(frame)])
        return np.concatenate(found)

    @cached_property
    def step(self) -> float:
        """Of which the values are multiples."""
        frames = np.concatenate([run.frames for run in self.sample.runs])
        stack = self.stacks[0]
        return 1.0 if frames.dtype.kind != "f" else traits(frames, stack.valid(frames), stack.saturated(frames))["step"]

    def check_unseen(self, row: Row, steps: tuple[Step, ...], limits: Goal) -> None:
        """Hold every frame that was neither searched on nor selected by to the limits, some at a time."""
        several = max(1, _BATCH_NBYTES // self.stacks[0].frame_nbytes)
        names = tuple(dict.fromkeys(("mask_violations", *(limit.metric for limit in limits.require))))
        furthest = 0.0
        for index, frames in self._unseen():
            about = self.pixels[index]
            for at in range(0, len(frames), several):
                part = frames[at : at + several]
                before = np.concatenate([self.stacks[index].read(int(n), int(n) + 1) for n in part])
                after = prepare(steps, before, about)
                valid, still = (about.marks.valid(x, about.mask) for x in (before, after))
                found = compare(before, after, valid, self.noise, names, still_valid=still)
                row.unseen += len(part)
                for one in range(len(part)):
                    row.broke += broken({n: v[one : one + 1] for n, v in found.items()}, limits.require) is not None
                for limit in limits.require:
                    value = worst(found)[limit.metric]
                    if value / limit.limit > furthest:
                        furthest, row.furthest = value / limit.limit, f"{limit.metric} {value:.3g}"

    def _unseen(self) -> Iterator[tuple[int, NDArray[np.intp]]]:
        for index, stack in enumerate(self.stacks):
            free = np.ones(len(stack), np.bool_)
            if (stored := stack.source.stored_bytes()) is not None:
                free &= stored > 0
            if stack.kinds is not None:
                free &= stack.kinds == Kind.DATA
            for run in self.sample.runs:
                if run.stack == index:
                    free[run.start : run.start + len(run.frames)] = False
            free[[unit.frame for unit in self.parts.select if unit.stack == index]] = False
            yield index, np.flatnonzero(free)


def goal_of(name: str) -> Goal:
    """The goal with these limits: the best ratio."""
    return tuner.Goal.from_dict({"maximize": ["ratio"], "require": list(GOALS[name])}, name)


def keeps(quality: Mapping[str, float], goal: Goal) -> bool:
    """Whether these qualities keep the goal's limits."""
    return broken({name: np.array([value]) for name, value in quality.items()}, goal.require) is None


def authors(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Roundings at the settings that their authors used: who, and the step as a document."""
    values = bench.values()
    integers = bench.sample.dtype.kind != "f"
    grid = {} if integers else {"grid": bench.step}
    if bench.noise is not None:
        yield "Bernstein et al. 2010: levels a sigma apart", {"step": "sigma", "width": 1.0, **grid}
        sigma = float(np.sqrt(bench.noise.variance(np.median(values))))
        width = max(np.floor(sigma / 4 / bench.step), 1.0) * bench.step if bench.step else sigma / 4
        yield (
            "fpack (Pence et al. 2009): a quarter of the background's sigma",
            {"step": "uniform", "width": float(width)},
        )
    low, high = np.percentile(values, [0.1, 99.9])
    if integers:
        high = max(high, low + 255)
    yield (
        "16 to 8 bit: 256 levels from the 0.1 to the 99.9 percentile",
        {
            "step": "window",
            "bits": 8,
            "low": float(np.floor(low)) if integers else float(low),
            "high": float(np.ceil(high)) if integers else float(high),
        },
    )
    if not integers:
        yield "Klöwer et al. 2021: 7 bits of the mantissa", {"step": "mantissa", "keep": 7}
    for who, document in _BY_AUTHORS:
        if integers or document["step"] != "leading_bits":
            yield who, document
    for name, kind in STEPS.items():
        if set(kind.valid) <= set(defaults(kind)):
            yield f"{name} as it comes", {"step": name}


def measure(data: Set, budget: str) -> list[Row]:
    """All rows of a set."""
    stacks = open_stacks([data.path])
    parts = split(stacks, units_for(RISK), 0)
    sample = draw_sample(stacks, _SAMPLE_NBYTES, 0, parts.search)
    rows: list[Row] = []
    searched: dict[str, tuple[Found, float]] = {}
    for name in GOALS:
        start = time.thread_time()
        try:
            found = tuner.find_profile(
                [data.path],
                space=data.space,
                goal=goal_of(name),
                budget=budget,
                sample=f"{_SAMPLE_NBYTES}B",
                noise=data.noise,
                jobs=1,
            )
        except TunerError as error:
            rows.append(Row(f"search: {name}", note=str(error).removeprefix(f"{data.path}: ")))
            continue
        searched[name] = found, time.thread_time() - start
    plain = Bench(stacks, sample, parts, None)
    config, _, _ = plain.best((), (*CODECS, *SLOW))
    given = Noise.parse(data.noise) if data.noise else None
    try:
        noise = settle_noise(given, stacks[0], sample, plain.meter.exact(config)).noise
    except InputError:  # as the searches said
        noise = None
    bench = Bench(stacks, sample, parts, noise)
    own = tuple(dict.fromkeys(found.profile.config.blosc2 for found, _ in searched.values()))
    codecs = (*CODECS, *(replace(codec, typesize=0) for codec in own))
    config, _, _ = bench.best((), (*codecs, *SLOW))
    lossless = bench.row("best lossless", config)
    rows.insert(0, lossless)
    for who, document in authors(bench):
        rows.append(_as_used(bench, who, document, codecs))
    rows.extend(_published(bench, data, codecs))
    for name, (found, seconds) in searched.items():
        goal = goal_of(name)
        rows.append(bench.row(f"search: {name}", found.profile.config, seconds))
        bench.check_unseen(rows[-1], found.profile.config.steps, goal)
        if bench.noise is not None:
            rows.append(_bisected(bench, data.space, name, goal, codecs))
    if bench.noise is not None:
        rows.append(_constructed(bench, [row for row in rows if "sub-noise" in row.method], codecs))
    for stack in stacks:
        stack.close()
    return rows


def _as_used(bench: Bench, who: str, document: dict[str, Any], codecs: Sequence[Blosc2]) -> Row:
    """A rounding at its authors' settings, with the codec that suits it best."""
    try:
        return bench.row(who, bench.best((step_from_dict(document, who),), codecs)[0])
    except InputError as error:
        return Row(who, note=str(error))


def _published(bench: Bench, data: Set, codecs: Sequence[Blosc2]) -> Iterator[Row]:
    """What is published for such data, beside the same quantiser on these frames at several settings."""
    if data.published is None or bench.noise is None:
        return
    kind, ratio, where = data.published
    histogram = Histogram.of(bench.values(), bench.noise, bench.step)
    if kind == "leading bits":
        made = [leading_bits(histogram, bits) for bits in (1, 2, 3)]
    else:
        made = [two_ranges(histogram, *bits) for bits in _TWO_RANGES]
        for below, above in _TWO_RANGES:  # ours, of which levels are powers of two
            row = _as_used(bench, f"tqc, {below} and {above} bits", _tqc(below, above), codecs)
            yield replace(row, note=row.note or f"published {ratio:g} ({where})")
    for step in made:
        config, found, metrics = bench.best((step,), codecs)
        note = f"published {ratio:g} ({where})"
        yield Row(step.text, one_line(replace(config, steps=())), found, metrics=metrics, note=note)


def _tqc(background: int, signal: int) -> dict[str, Any]:
    return {"step": "tqc", "background": background, "signal": signal}


def _bisected(bench: Bench, space: str, name: str, goal: Goal, codecs: Sequence[Blosc2]) -> Row:
    """The best of the space's steps of one parameter, each as harsh as the limits allow where a search looks."""
    best = Row(f"bisection: {name}", note="the gentlest of every step breaks a limit")
    winner: tuple[Step, ...] = ()
    start = time.thread_time()
    for kind, one in {step.name: step for option in load_space(space).steps() for step in option}.items():
        if kind not in PARAMETERS:
            continue
        _, gentle, harsh = PARAMETERS[kind]
        whole = kind == "mantissa" or (kind == "uniform" and bench.sample.dtype.kind != "f")
        make = maker(kind, whole, getattr(on_grid([(one,)], bench.step)[0][0], "grid", 1.0))
        step = bisect(make, gentle, harsh, lambda step: keeps(bench.quality(step), goal))
        if step is None:
            continue
        config, ratio, metrics = bench.best((step,), codecs)
        if ratio > best.ratio:
            best, winner = Row(best.method, one_line(config), ratio, metrics=metrics), (step,)
    best.seconds = time.thread_time() - start
    if winner:
        bench.check_unseen(best, winner, goal)
    return best


def _constructed(bench: Bench, others: Sequence[Row], codecs: Sequence[Blosc2]) -> Row:
    """The best quantiser that keeps `sub-noise` on every frame: constructed, or found by bisection."""
    assert bench.noise is not None
    goal, start = goal_of("sub-noise"), time.thread_time()
    best = Row("best quantiser constructed: sub-noise", note="none keeps the limits")
    candidates = list(constructed(Histogram.of(bench.all_values(), bench.noise, bench.step), 0.5))
    kept = [step for step in candidates if keeps(bench.quality(step), goal)]
    kept.sort(key=lambda step: bench.best((step,), _QUICK)[1], reverse=True)
    for step in kept:
        config, ratio, metrics = bench.best((step,), codecs)
        row = Row(best.method, one_line(replace(config, steps=())), ratio, metrics=metrics, note=step.text)
        bench.check_unseen(row, (step,), goal)
        if not row.broke:
            best = row
            break
    for row in others:
        if row.method.startswith("bisection") and row.ratio > best.ratio and keeps(row.metrics, goal) and not row.broke:
            best = replace(row, method=best.method, note=row.method)
    best.seconds = time.thread_time() - start
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", metavar="NAME", help="those with one of these in their names")
    parser.add_argument("--budget", default="20", help="of each search: seconds, or configurations")
    parser.add_argument("--work", type=Path, help="folder that keeps what was measured: a run that was stopped goes on")
    parser.add_argument("--output", default="results/lossy.md")
    options = parser.parse_args()
    count_own_time()
    warnings.simplefilter("ignore", TunerWarning)
    folder = os.environ.get("TUNER_REAL_DATA")
    work = options.work or Path(tempfile.mkdtemp())
    os.environ["TUNER_HOME"] = str(work / "home")  # what leads searches is trained once; it knows none of the data
    measured = {}
    for data in sets(Path(folder) if folder else None, work, options.sets):
        kept = work / f"{data.name.replace('/', '_')}.json"
        if not kept.exists():
            start = time.thread_time()
            rows = measure(data, options.budget)
            kept.write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
            print(f"{data.name}: {len(rows)} rows, {time.thread_time() - start:.0f} s", flush=True)
        measured[data.name] = [Row(**row) for row in json.loads(kept.read_text(encoding="utf-8"))]
    write_table(options.output, list(page(measured, options.budget)))


if __name__ == "__main__":
    main()
