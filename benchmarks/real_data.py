"""Every dataset of a folder: what a search finds, beside what users have today.

    TUNER_REAL_DATA=FOLDER python benchmarks/real_data.py [--budget 60s] [--goal balanced --goal archive]

Prints the table, writes results/real_data.md, and puts a short form of it into README.md, between the lines
`<!-- results/real_data.md -->` and `<!-- end -->`. Each search starts knowing nothing; the numbers are those that its
profile holds as evidence. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner import find_profile
from tuner.config import Config, one_line
from tuner.errors import UnsatisfiableError
from tuner.goal import BASELINES
from tuner.measure.baseline import TEXTS
from tuner.measure.timing import machine, versions

_ROOT = Path(__file__).parents[1]
#: Files that hold a stack each; files of any other format form one series with those beside them.
_STACKS = (".h5", ".nxs", ".hdf5", ".npy", ".tif", ".tiff")
_PLACE = re.compile(r"(<!-- results/real_data\.md -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Row:
    """What one method makes of one dataset."""

    method: str
    """A baseline, or a goal."""
    ratio: float
    """Bytes of the pixels / bytes stored."""
    encode_mb_s: float
    """MB of pixels encoded per second on one core."""
    decode_mb_s: float
    """MB of pixels decoded per second on one core."""
    text: str
    """The configuration."""
    search: str = ""
    """How long it was searched for."""

    def short(self) -> str:
        """The three numbers in a cell."""
        return f"{self.ratio:.2f}, {self.encode_mb_s:,.0f} / {self.decode_mb_s:,.0f}"


def datasets(folder: Path) -> Iterator[Path]:
    """Files, and folders whose files are one series."""
    series = set()
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix in (".md", ".txt"):
            continue
        if path.suffix in _STACKS:
            yield path
        elif path.parent not in series:
            series.add(path.parent)
            yield path.parent


def measure(path: Path, goals: Sequence[str], budget: str) -> tuple[str, list[Row]]:
    """What the frames are, and a row for each baseline, of the first search, and for each goal."""
    rows: dict[str, Row] = {}
    what = ""
    for goal in goals:
        os.environ["TUNER_HOME"] = tempfile.mkdtemp()
        try:
            profile = find_profile([path], goal=goal, budget=budget).profile
        except UnsatisfiableError as error:
            print(f"{path.name}: {goal}: {error}", flush=True)
            continue
        evidence, match = profile.evidence, profile.match
        frame = "x".join(map(str, match.frame_shape or ()))
        count = evidence["sample"]["of_frames"]
        what = f"{match.dtype}, {count} frame{'s' * (count != 1)} of {frame}"
        for name in BASELINES:
            rows.setdefault(name, _row(name, evidence["baselines"][name], TEXTS[name]))
        searched = f"{evidence['search']['measured']} in {evidence['search']['seconds']:.0f} s"
        rows[goal] = _row(f"tuner, {goal}", evidence["metrics"], _config(profile.config), searched)
        print(f"{path.name}: {goal}: {rows[goal].short()}", flush=True)
    return what, list(rows.values())


def _config(config: Config) -> str:
    return f"`{one_line(config)}`"


def _row(method: str, metrics: Mapping[str, Any], text: str, searched: str = "") -> Row:
    numbers = {
        name: value[0] if isinstance(value := metrics[name], list) else value
        for name in ("ratio", "encode_mb_s", "decode_mb_s")
    }
    return Row(method, **numbers, text=text, search=searched)


def long_table(measured: Mapping[str, tuple[str, list[Row]]]) -> str:
    """A row for each dataset and method."""
    lines = [
        "| data | method | ratio | encode MB/s | decode MB/s | configuration | measured |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for name, (what, rows) in measured.items():
        for index, row in enumerate(rows):
            data = {0: f"**{name}**", 1: what}.get(index, "")
            lines.append(
                f"| {data} | {row.method} | {row.ratio:.2f} | {row.encode_mb_s:,.0f} | {row.decode_mb_s:,.0f}"
                f" | {row.text} | {row.search} |"
            )
    return "\n".join(lines)


def short_table(measured: Mapping[str, tuple[str, list[Row]]], goals: Sequence[str]) -> str:
    """A row for each dataset, a column for gzip, bitshuffle-lz4 and each goal."""
    columns = {"gzip": "gzip-4 + shuffle", "bslz4": "bitshuffle-lz4"} | {f"tuner, {g}": f"tuner, `{g}`" for g in goals}
    lines = [f"| data | {' | '.join(columns.values())} |", f"|---|{'---:|' * len(columns)}"]
    for name, (what, rows) in measured.items():
        cells = {row.method: row.short() for row in rows}
        lines.append(f"| {name}: {what} | {' | '.join(cells.get(method, '') for method in columns)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--goal", action="append", dest="goals")
    options = parser.parse_args()
    folder = os.environ.get("TUNER_REAL_DATA")
    if not folder:
        parser.error("the environment variable TUNER_REAL_DATA must name the folder of real data")
    goals = options.goals or ["balanced", "archive"]
    load = os.getloadavg()[0]
    measured = {}
    for path in datasets(Path(folder)):
        measured[str(path.relative_to(folder).with_suffix(""))] = measure(path, goals, options.budget)
    here, with_ = machine(), versions()
    taken = (
        f"Taken on {datetime.date.today()}, {options.budget} for each search, on {here['cpu']}, {here['cores']} cores,"
        f" load average before {load:.1f}"
    )
    text = "\n".join(
        [
            "# Real data: what a search finds, beside what users have today",
            "",
            f"`python benchmarks/real_data.py --budget {options.budget}`. Ratio: bytes of the pixels / bytes stored, on"
            " a sample of 16 MB; speeds: MB of pixels per second on one core, medians. All lossless; all of a dataset"
            " from the same run. *measured*: configurations, and the time that the search took.",
            "",
            long_table(measured),
            "",
            f"{taken}; {', '.join(f'{name} {version}' for name, version in with_.items())}.",
            "",
        ]
    )
    (_ROOT / "results" / "real_data.md").write_text(text, encoding="utf-8")
    readme = _ROOT / "README.md"
    body = f"{short_table(measured, goals)}\n\n{taken}.\n"
    # A function, as what is put in is no pattern.
    readme.write_text(_PLACE.sub(lambda m: m[1] + body + m[2], readme.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
