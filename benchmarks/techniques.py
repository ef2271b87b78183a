"""The field's techniques at their authors' settings, beside what the search finds under the same quality.

    TUNER_REAL_DATA=FOLDER python benchmarks/techniques.py [--rows NAME...] [--budget 20] [--work FOLDER]

For each row: the best lossless configuration of the frames as they are, and as reduced; the authors' setting, with the
codec that suits it best; and the best that a search of the technique's shipped space finds when no quality, and no
number of the analysis, may be worse than theirs, over all frames. Where that ends below them, once more with their step
in the space. Where a codec's own file is smaller than what was found, and plug-ins j2k or htj2k are installed, also
JPEG 2000 inside Blosc2. Simulated rows need no folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from grid import count_own_time, write_table
from lossy import CODECS, SLOW, Bench
from lossy_page import METRICS
from numpy.typing import NDArray
from techniques_own import InBlosc2, own_ratio
from techniques_page import BELOW, IN_BLOSC2, SHIPPED, THEIRS, Line, Row, page
from techniques_sets import TECHNIQUES, Frames, Technique, frames_of

import tuner
from tuner.analysis import ANALYSES
from tuner.apply.child import PluginChild, probe
from tuner.config import PLUGINS, Config
from tuner.errors import CodecError, TunerError, TunerWarning
from tuner.goal import Goal
from tuner.measure.analyses import analyse, scans_of
from tuner.measure.meter import Meter
from tuner.noise import Noise
from tuner.quality import compare, worst
from tuner.read import open_stacks
from tuner.read.sampling import draw_sample
from tuner.search.lossy import settle_noise
from tuner.search.parts import split
from tuner.search.promise import RISK, expected_worst, units_for
from tuner.search.reduction import noise_of
from tuner.search.run import small_part
from tuner.space import shipped
from tuner.stack import Kind, Stack
from tuner.steps import Step, prepare, step_from_dict
from tuner.steps.reduced import parse_reductions, reduced, times_smaller

#: Of what searches see.
_SAMPLE_NBYTES = 2_000_000
#: Frames are judged so many bytes at a time, as a search does it.
_BATCH_NBYTES = 32 << 20
#: Within this share, qualities are the same.
_SAME = 0.02
#: Searches with limits that are lowered where the one before broke them over all frames.
_TRIES = 3
#: Plug-ins take the ratio in tenths, as one byte.
_RATES = 256
#: Limits are those of the authors' setting, but for how they are written.
_DIGITS = 1e-5


def data_frames(stack: Stack) -> NDArray[np.intp]:
    """Numbers of the frames that are neither flats nor darks."""
    return np.arange(len(stack)) if stack.kinds is None else np.flatnonzero(stack.kinds == Kind.DATA)


def quality_of(bench: Bench, steps: Sequence[Step], truth: Stack | None) -> tuple[dict[str, float], float | None]:
    """Each quality of the worst of all frames; and, where the truth is known, how far from it they are.

    That is the root mean square distance after over that before, in sigma: below 1, steps lead towards the truth.
    """
    names = (*METRICS, "rmse")
    found: list[Mapping[str, NDArray[np.float64]]] = []
    distance = np.zeros(2)
    for stack, about in zip(bench.stacks, bench.pixels, strict=True):
        several = max(1, _BATCH_NBYTES // stack.frame_nbytes)
        frames = data_frames(stack)
        for at in range(0, len(frames), several):
            part = frames[at : at + several]
            before = np.concatenate([stack.read(int(n), int(n) + 1) for n in part])
            after = prepare(steps, before, about)
            valid = about.valid(before)
            found.append(compare(before, after, valid, bench.noise, names, still_valid=about.valid(after)))
            if truth is not None and bench.noise is not None:
                right = np.concatenate([truth.read(int(n), int(n) + 1) for n in part]).astype(np.float64)
                variance = np.maximum(bench.noise.variance(right), 1e-300)
                distance += [np.sum(((side - right) ** 2 / variance)[valid]) for side in (before, after)]
    quality = worst({name: np.concatenate([each[name] for each in found]) for name in found[0]})
    return quality, math.sqrt(distance[1] / distance[0]) if distance[0] else None


def limits_of(technique: Technique, line: Line) -> Goal:
    """The goal that asks for the best ratio where nothing is worse than in a line."""
    require = [f"{name} <= {line.quality[name] * (1 + _DIGITS):.7g}" for name in technique.qualities]
    for name in technique.figures:
        if name not in line.figures:
            continue
        kind, _, figure = name.partition(".")
        _, low, high = line.figures[name]
        larger = ANALYSES[kind].figures[figure].better == "larger"
        require.append(f"{name} >= {low * (1 - _DIGITS):.7g}" if larger else f"{name} <= {high * (1 + _DIGITS):.7g}")
    document = {"maximize": ["ratio"], "require": require, "analyses": dict(technique.analyses)}
    return tuner.Goal.from_dict(document, technique.name)


def as_judged(bench: Bench, technique: Technique, steps: Sequence[Step], line: Line) -> Line:
    """The line with what a search takes steps to do: theirs must pass if offered.

    Of the sample, of tiles of an only frame, the worst to be expected of more frames, intervals of few frames.
    """
    names, frames = technique.qualities, sum(map(len, bench.stacks))
    small = Meter(small_part(bench.sample), 0, bench.pixels, names, bench.parts.seen).prepared(tuple(steps)).quality
    quality = {name: max(line.quality[name], small[name]) for name in names}
    figures = dict(line.figures)
    for units in (bench.parts.select, bench.parts.test):
        if not units:
            continue
        sides: list[list[NDArray[Any]]] = [[], [], [], []]
        for unit in units:
            frame, about = bench.stacks[unit.stack].read(unit.frame, unit.frame + 1), bench.pixels[unit.stack]
            stepped = prepare(steps, frame, about)
            for side, of in zip(sides, (frame, stepped, about.valid(frame), about.valid(stepped)), strict=True):
                side.append(of[(slice(None), *unit.place)])
        before, after, valid, still = (np.concatenate(side) for side in sides)
        each = compare(before, after, valid, bench.noise, names, still_valid=still)
        quality = {name: max(quality[name], expected_worst(each[name], frames)) for name in names}
        if not technique.analyses:
            continue
        numbers = {i: [unit.frame for unit in units if unit.stack == i] for i in range(len(bench.stacks))}
        found = analyse(analyses_of(technique), scans_of(bench.stacks, bench.pixels, steps, numbers))
        for name, (low, high) in found.spread.items():
            if name in figures and math.isfinite(low) and math.isfinite(high):
                value, least, most = figures[name]
                figures[name] = (value, min(least, low), max(most, high))
    return replace(line, quality={**line.quality, **quality}, figures=figures)


def broken_limits(goal: Goal, line: Line) -> str:
    """The limits that a line does not keep over all frames."""
    values = {**line.quality, **{name: number[0] for name, number in line.figures.items()}}
    broken = []
    for limit in goal.require:
        value = values.get(limit.metric, math.nan)
        slack = _SAME * abs(limit.limit)
        if not (value <= limit.limit + slack if limit.op == "<=" else value >= limit.limit - slack):
            broken.append(f"{limit}, got {value:.4g}")
    return "; ".join(broken)


def tightened(goal: Goal, measured: Goal, line: Line) -> Goal:
    """A goal with the limits that a line breaks over all frames lowered by as much as it is beyond them."""
    require = list(goal.require)
    for index, (limit, least) in enumerate(zip(goal.require, measured.require, strict=True)):
        value = line.quality.get(limit.metric, 0.0)
        if limit.op == "<=" and value > least.limit * (1 + _SAME):
            require[index] = replace(limit, limit=limit.limit * least.limit / value)
    return replace(goal, require=tuple(require))


def space_with(technique: Technique, file: Path) -> Path:
    """The shipped space with the authors' steps among its choices, as a file."""
    document, _, _ = shipped(technique.space, "search_spaces", "space")
    document["steps"]["choose"].append([dict(step) for step in technique.steps])
    document["name"] = file.stem
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    return file


def analyses_of(technique: Technique) -> Goal:
    """A goal that requires nothing of the technique's analyses."""
    return Goal.from_dict({"maximize": ["ratio"], "analyses": dict(technique.analyses)}, technique.name)


def judged(line: Line, bench: Bench, technique: Technique, steps: Sequence[Step], truth: Stack | None) -> Line:
    """A line with its qualities and figures over all frames."""
    line.quality, line.truth = quality_of(bench, steps, truth)
    if technique.analyses:
        found = analyse(analyses_of(technique), scans_of(bench.stacks, bench.pixels, steps))
        line.figures = {
            name: (value, *found.spread[name]) for name, value in found.metrics.items() if math.isfinite(value)
        }
    return line


def measure(technique: Technique, frames: Frames, work: Path, budget: str) -> Row:
    """A row: lossless, the authors' setting, what the search finds."""
    began = time.thread_time()
    originals = open_stacks([frames.path])
    reductions = parse_reductions(technique.reduce) if technique.reduce else ()
    stacks = [reduced(stack, reductions) for stack in originals]
    truth = None
    if frames.truth is not None:
        (right,) = open_stacks([frames.truth])
        # What does not count in the frames does not count in sums of them either; of the truth all counts.
        truth = reduced(right, [r for r in reductions if r.name in ("sum", "bin")]) if technique.reduce else right
        truth = None if "scale" in technique.reduce else truth
    parts = split(stacks, units_for(RISK), 0)
    sample = draw_sample(stacks, _SAMPLE_NBYTES, 0, parts.search)
    plain = Bench(stacks, sample, parts, None)
    config, _, _ = plain.best((), (*CODECS, *SLOW))
    times = times_smaller(originals, stacks)
    row = Row(technique.name, technique.data, technique.published, technique.why, times)
    lossless = _timed(plain, Line("best lossless"), config, 1.0)
    if technique.reduce:
        whole = split(originals, units_for(RISK), 0)
        before = Bench(originals, draw_sample(originals, _SAMPLE_NBYTES, 0, whole.search), whole, None)
        config_before, _, _ = before.best((), (*CODECS, *SLOW))
        row.lines.append(_timed(before, lossless, config_before, 1.0))
        row.lines.append(_timed(plain, Line(f"best lossless after {technique.reduce}"), config, times))
    else:
        row.lines.append(lossless)
    given = noise_of(Noise.parse(frames.noise), stacks[0]) if frames.noise else None
    noise = settle_noise(given, stacks[0], sample, plain.meter.exact(config)).noise
    bench = Bench(stacks, sample, parts, noise)
    steps = tuple(step_from_dict(dict(step), technique.name) for step in technique.steps)
    authors = judged(Line("authors' setting"), bench, technique, steps, truth)
    measured = limits_of(technique, authors)
    goal = limits_of(technique, as_judged(bench, technique, steps, authors))
    theirs = _timed(bench, authors, bench.best(steps, CODECS)[0], times)
    theirs.own = own_ratio(bench, steps) * times
    row.lines.append(theirs)
    for method in (SHIPPED, THEIRS):
        space = technique.space if method == SHIPPED else space_with(technique, work / f"{method}.yaml")
        start, limits = time.thread_time(), goal
        line = Line(method)
        for _ in range(_TRIES):
            try:
                found = tuner.find_profile(
                    [frames.path],
                    space=space,
                    reduce=technique.reduce or None,
                    goal=limits,
                    budget=budget,
                    sample=f"{_SAMPLE_NBYTES}B",
                    noise=frames.noise if technique.reduce else noise,
                    jobs=1,
                ).profile
            except TunerError as error:
                line.note = str(error)
                break
            line = judged(Line(method), bench, technique, found.config.steps, truth)
            line.broken = broken_limits(measured, line)
            if not line.broken:
                break
            limits = tightened(limits, measured, line)
        line.seconds = time.thread_time() - start
        row.lines.append(_timed(bench, line, found.config, times) if line.quality else line)
        if row.reaches(method, theirs.ratio):
            break
    if theirs.own * BELOW > row.best:
        inside = (in_blosc2(codec, bench, technique, measured, truth, times) for codec in PLUGINS)
        row.lines += [each for each in inside if each is not None]
    for stack in originals:
        stack.close()
    row.seconds = time.thread_time() - began
    return row


def in_blosc2(
    codec: str, bench: Bench, technique: Technique, goal: Goal, truth: Stack | None, times: float
) -> Line | None:
    """JPEG 2000 inside Blosc2 at the authors' ratio, or at the highest that keeps a goal where they took another codec.

    None where the plug-in is not here, or does not take such pixels or ratios: it takes 16 bits, and 25.5 at most.
    """
    if bench.sample.dtype.itemsize != 2 or probe(codec):
        return None

    def tried(rate: int) -> Line:
        with PluginChild() as child:  # a new one, as j2k keeps the rate that it was given first
            step = InBlosc2(codec, rate, child)
            line = Line(IN_BLOSC2[codec], f"{codec} at {rate / 10:g}, chunk 1xallxall")
            try:  # frames are prepared by it as by any filter
                line = judged(line, bench, technique, (step,), truth)  # type: ignore[arg-type]
            except CodecError as error:  # what gets no smaller
                return replace(line, note=str(error))
        line.ratio = step.pixels / step.stored * times
        line.encode_mb_s, line.decode_mb_s = (step.pixels / 1e6 / seconds for seconds in step.seconds)
        line.broken = broken_limits(goal, line)
        return line

    rates = [round(10 * step["ratio"]) for step in technique.steps if step["step"] == "jpeg2000"]
    if rates:
        return tried(rates[0]) if rates[0] < _RATES else None
    best, low, high = Line(IN_BLOSC2[codec], note="no ratio keeps the limits"), 0, _RATES
    while high - low > 1:
        line = tried((low + high) // 2)
        if line.broken:
            high = (low + high) // 2
        else:
            best, low = line, (low + high) // 2
    return best


def _timed(bench: Bench, line: Line, config: Config, times: float) -> Line:
    """The line with ratio, against the frames as they were, speeds and what they are of."""
    measured = bench.row(line.method, config)
    line.config, line.ratio, line.note = measured.config, measured.ratio * times, measured.note
    line.encode_mb_s, line.decode_mb_s = measured.encode_mb_s, measured.decode_mb_s
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", metavar="NAME", help=f"of {' '.join(TECHNIQUES)}; all by default")
    parser.add_argument("--budget", default="20", help="of each search: seconds, or configurations")
    parser.add_argument("--work", type=Path, help="folder that keeps what was measured: a run that was stopped goes on")
    parser.add_argument("--output", default="results/techniques.md")
    options = parser.parse_args()
    count_own_time()
    warnings.simplefilter("ignore", TunerWarning)
    folder = os.environ.get("TUNER_REAL_DATA")
    work = options.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    os.environ["TUNER_HOME"] = str(work / "home")  # what leads searches is trained once; it knows none of the data
    kept = {name: work / f"{name}.json" for name in TECHNIQUES}
    for name in options.rows or TECHNIQUES:
        technique = TECHNIQUES[name]
        frames = None if kept[name].exists() else frames_of(technique.data, Path(folder) if folder else None, work)
        if frames is None:
            continue
        try:
            row = measure(technique, frames, work, options.budget)
        except TunerError as error:
            row = Row(technique.name, technique.data, technique.published, failed=str(error))
        kept[name].write_text(json.dumps(asdict(row)), encoding="utf-8")
        print(f"{name}: {row.seconds:.0f} s", flush=True)
    rows = []
    for name, technique in TECHNIQUES.items():
        if not kept[name].exists():
            continue
        document = json.loads(kept[name].read_text(encoding="utf-8"))
        lines = [Line(**line) for line in document.pop("lines")]
        said = {"data": f"{technique.data}, {technique.dtype}", "published": technique.published, "why": technique.why}
        rows.append(Row(**{**document, **said, "lines": lines}))
    write_table(options.output, list(page(rows, options.budget)))


if __name__ == "__main__":
    main()
