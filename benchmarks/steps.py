"""How fast each rounding is, for each dtype and at three levels of light.

    python benchmarks/steps.py [--steps NAME...] [--dtypes NAME...] [--output results/steps.md]

MB of pixels a second on one core, by the thread's own clock. In a round every case is timed once, so that whatever else
slows the machine slows all of them; of all rounds the median counts. Tables that a process keeps are made before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from grid import write_table

from tuner.errors import InputError
from tuner.noise import Noise
from tuner.stack import Marks, convention
from tuner.steps import Pixels, Step, check_steps, prepare, step_from_dict
from tuner.steps.round_trip import Filter

#: What is asked of every rounding.
AIM_MB_S = 500

DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]
#: The mean of the frames, counts; below and above what tables hold.
LIGHT = {"dim": 5.0, "bright": 20_000.0, "high": 5_000_000.0}
#: Each step as in the shipped spaces and the documentation, by what it is called in the table.
STEPS: Mapping[str, Mapping[str, Any]] = {
    "uniform": {"width": 16},
    "window": {"bits": 8, "low": 0, "high": 2**16 - 1},
    "mantissa": {"keep": 7},
    "sigma": {"width": 1.0},
    "sigma, grid 0": {"width": 1.0, "grid": 0.0},
    "octave": {"width": 1.0},
    "octave, grid 0": {"width": 1.0, "grid": 0.0},
    "photonise": {},
    "leading_bits": {"keep": 3},
    "log": {"width": 0.01, "linear": 10.0},
    "power": {"exponent": 0.5, "width": 1.0},
    "tqc": {"background": 2, "signal": 4},
    "clip_background": {"sigmas": 3.0, "width": 16},
    "stages": {"high": 8},
    "regions": {"sigmas": 5.0, "radius": 3, "width": 16},
    "regions, binned": {"sigmas": 5.0, "radius": 3, "width": 1, "bin": 4},
    "roi": {"width": 16, "top": 100, "left": 100, "rows": 300, "columns": 300},
}
NOISE = Noise(2.0, 100.0, 4.0, "given", 1 / 12)
FRAMES = (2, 1024, 1024)


@dataclass
class Case:
    """One step on frames of one dtype and level of light."""

    step: str
    dtype: str
    light: str
    steps: Sequence[Step]
    pixels: Pixels
    seconds: list[float] = field(default_factory=list)


def frames_of(dtype: str, light: str) -> NDArray[Any] | None:
    """A smooth scene with noise, a hundredth of it masked or invalid; None where the dtype cannot hold it."""
    kind = np.dtype(dtype)
    most = float(np.finfo(kind).max if kind.kind == "f" else np.iinfo(kind).max)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: FRAMES[1], : FRAMES[2]] / FRAMES[1]
    scene = LIGHT[light] * (1 + 0.5 * np.sin(6 * x) * np.cos(5 * y))
    wide = rng.normal(scene + NOISE.offset * (light != "dim"), np.sqrt(NOISE.variance(scene)), FRAMES)
    if wide.max() > most or (kind == np.float16 and light == "bright"):
        return None
    wide = np.maximum(np.rint(wide), 0)
    wide[:, ::100] = (convention(kind) or (0,))[0]
    return wide.astype(kind)


def cases(steps: Sequence[str] | None, dtypes: Sequence[str] | None) -> Iterator[Case]:
    mask = np.zeros(FRAMES[1:], np.bool_)
    mask[:, ::100] = True
    for name, parameters in STEPS.items():
        for dtype in dtypes or DTYPES:
            for light in LIGHT:
                kind = np.dtype(dtype)
                word = name.split(",")[0]
                if (steps and word not in steps) or (", grid 0" in name and kind.kind != "f"):
                    continue
                step = step_from_dict({"step": word, **parameters}, name)
                pixels = Pixels(Marks(convention(kind)), mask, NOISE)
                try:
                    check_steps((step,), kind, NOISE)
                except InputError:
                    continue
                if not isinstance(step, Filter):
                    yield Case(name, dtype, light, (step,), pixels)


def run(todo: Sequence[Case], rounds: int) -> None:
    """Time every case once a round."""
    held = {(c.dtype, c.light): frames_of(c.dtype, c.light) for c in todo}
    for number in range(rounds + 1):
        for case in todo:
            frames = held[case.dtype, case.light]
            if frames is None:
                continue
            start = time.thread_time()
            prepare(case.steps, frames, case.pixels)
            if number:
                case.seconds.append(time.thread_time() - start)


def mb_s(case: Case) -> float:
    return float(np.prod(FRAMES) * np.dtype(case.dtype).itemsize / 1e6 / np.median(case.seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="*", metavar="NAME")
    parser.add_argument("--dtypes", nargs="*", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default="results/steps.md")
    options = parser.parse_args()
    todo = list(cases(options.steps, options.dtypes))
    run(todo, options.rounds)
    timed = [case for case in todo if case.seconds]
    lines = [
        "# Steps: how fast they are",
        "",
        f"`python benchmarks/steps.py`. MB of pixels a second on one core, of {FRAMES[0]} frames of {FRAMES[1]} x"
        f" {FRAMES[2]} pixels, mask and marks included, by the thread's own clock; the slowest of frames with a mean of"
        f" {', '.join(f'{v:,.0f}' for v in LIGHT.values())} counts, as far as the dtype holds them (float16 does not"
        " hold the second). Tables are made before, once for a process.",
        "",
        f"| step | {' | '.join(DTYPES)} |",
        f"|---|{'---:|' * len(DTYPES)}",
    ]
    for name, parameters in STEPS.items():
        cells = []
        for dtype in DTYPES:
            found = [mb_s(case) for case in timed if (case.step, case.dtype) == (name, dtype)]
            cells.append(f"{min(found):,.0f}" if found else "")
        if any(cells):
            given = " ".join(f"{k}={v}" for k, v in parameters.items() if k != "grid")
            lines.append(f"| {name}{f' ({given})' if given else ''} | {' | '.join(cells)} |")
    below = [f"{c.step} of {c.dtype}, {c.light}: {mb_s(c):,.0f}" for c in timed if mb_s(c) < AIM_MB_S]
    lines += ["", f"Below {AIM_MB_S} MB/s: {'; '.join(below) or 'none'}."]
    write_table(options.output, lines)


if __name__ == "__main__":
    main()
