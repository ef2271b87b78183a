"""The page of `writer.py`: its tables and its picture, of the rows that were measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grid import write_table
from matplotlib.figure import Figure

METHODS = ("ours", "ours, lent", "ours, verified", "Blosc2 filter", "Bitshuffle filter", "naive pool", "uncompressed")
PARTS = ("prepare", "encode", "checksum", "write")


def bounds(row: dict[str, Any], cores: int) -> list[float]:
    """The most MB/s, round by round: all cores always busy, or the file always being written to."""
    return [min(cores / sum(parts.values()), 1 / parts["write"]) / 1e6 for parts in row["parts"]]


def crowded_bounds(row: dict[str, Any]) -> list[float]:
    """The same from parts that were timed while every core was at them."""
    return [
        min(sum(1 / sum(parts.values()) for parts in cores), 1 / single["write"]) / 1e6
        for cores, single in zip(row["crowded"], row["parts"], strict=True)
    ]


def share(row: dict[str, Any], others: Sequence[float], method: str = "ours") -> float:
    """The median over rounds of ours over others'."""
    return statistics.median(o / other for o, other in zip(row["mb_s"][method], others, strict=True))


def beside_others(rows: Sequence[dict[str, Any]]) -> list[str]:
    """MB/s of every method, and ours of the bound."""
    lines = [
        f"| frames | stored with | to | ratio | {' | '.join(METHODS)} | bound | of the bound | crowded bound"
        " | of the crowded bound | times Blosc2 filter |",
        f"|---|---|---|---:|{'---:|' * (len(METHODS) + 5)}",
    ]
    for row in rows:
        speeds = " | ".join(f"{statistics.median(row['mb_s'][name]):,.0f}" for name in METHODS)
        most, crowded = bounds(row, row["cores"]), crowded_bounds(row)
        lines.append(
            f"| {row['size']} | {row['codec']} | {row['to']} | {row['ratio']:.2f} | {speeds}"
            f" | {statistics.median(most):,.0f} | {share(row, most):.0%}, {share(row, most, 'ours, lent'):.0%}"
            f" | {statistics.median(crowded):,.0f}"
            f" | {share(row, crowded):.0%}, {share(row, crowded, 'ours, lent'):.0%}"
            f" | {share(row, row['mb_s']['Blosc2 filter']):.2f} |"
        )
    return lines


def parts_of_rows(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Nanoseconds for a byte."""
    lines = [
        f"| frames | stored with | to | {' | '.join(PARTS)} | sum | ours, CPU of all threads |",
        "|---|---|---|" + "---:|" * 6,
    ]
    for row in rows:
        cells = [statistics.median(parts[name] for parts in row["parts"]) * 1e9 for name in PARTS]
        cells += [sum(cells), statistics.median(row["cpu_ns"])]
        numbers = " | ".join(f"{cell:.3f}" for cell in cells)
        lines.append(f"| {row['size']} | {row['codec']} | {row['to']} | {numbers} |")
    return lines


def against_workers(rows: Sequence[dict[str, Any]]) -> list[str]:
    """MB/s and the share of the bound, for every number of workers and frame size."""
    counts = range(1, rows[0]["cores"] + 2)
    headings = " | ".join(f"{count} worker{'s' * (count > 1)}" for count in counts)
    lines = [
        f"| frames | {headings} | CPU s / GB | bound | all cores, of the bound |",
        f"|---|{'---:|' * (len(counts) + 3)}",
    ]
    for row in rows:
        cells = " | ".join(f"{statistics.median(one['mb_s']['ours']):,.0f}" for one in row["workers"])
        best = row["workers"][-2]
        most = bounds(best, row["cores"])
        lines.append(
            f"| {row['side']}x{row['side']}, {row['chunk']} to a chunk | {cells}"
            f" | {statistics.median(best['cpu_ns']):.2f} | {statistics.median(most):,.0f} | {share(best, most):.0%} |"
        )
    return lines


def picture(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Nanoseconds of the wall for a byte against the side of a frame, a line for each number of workers."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    sides = [row["side"] for row in rows]
    for index in range(len(rows[0]["workers"])):
        costs = [1e3 / statistics.median(row["workers"][index]["mb_s"]["ours"]) for row in rows]
        axes.plot(sides, costs, "o-", label=f"{index + 1} worker{'s' * (index > 0)}")
    cores = rows[0]["cores"]
    floor = [1e3 / statistics.median(bounds(row["workers"][-2], cores)) for row in rows]
    axes.plot(sides, floor, "k--", label=f"bound, cores: {cores}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sides, [str(side) for side in sides])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("side of a square frame of uint16, pixels")
    axes.set_ylabel("ns for a byte of pixels")
    axes.set_title("What writing costs: lz4, checksums, to memory")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def write_page(
    output: Path,
    rows: Sequence[dict[str, Any]],
    scaling: Sequence[dict[str, Any]],
    starts: dict[str, Any] | None,
) -> None:
    """Write all tables that there are rows for."""
    lines = ["# The writer, beside other ways to the same file", ""]
    if rows:
        one = rows[0]
        lines += [
            f"`python benchmarks/writer.py`: MB of pixels per second, medians of {one['rounds']} rounds of"
            f" {one['nbytes'] >> 20} MB, until the file is closed and synced; load average before at most"
            f" {max(row['load'] for row in rows):.1f}. Tomography as uint16, photon counts as int32; 22x26 in chunks of"
            " 1024 frames, 128x128 of 64, 2 Mpixel in whole frames, 16 Mpixel in quarters. *Ours* takes frame after"
            " frame, or as many at once as the row says, with checksums; *lent*: by copy=False, encoded where they are"
            " if they fill whole chunks; its share of the bound stands second; *verified*: with the default"
            ' verify="sample", of which each thread\'s first chunk weighs more here than in a scan. The *filters* are'
            " hdf5plugin's through h5py, a row of chunks at a time; the *naive pool* maps threads over chunks, without"
            f" checksums. The *bound* is {one['cores']} cores / (prepare + encode + checksum + write seconds for a"
            " byte), each timed alone, or what writing alone allows, whichever is less; the *crowded bound* is of parts"
            " timed while every core does the same in a process of its own: what cores that share memory and its caches"
            " can do together. Ratios are taken within a round.",
            "",
            *beside_others(rows),
            "",
            "## Nanoseconds for a byte of pixels",
            "",
            "Each part alone, in one thread; and what all threads of the writer take for all of them, copy included.",
            "",
            *parts_of_rows(rows),
            "",
        ]
    if scaling:
        lines += [
            "## Workers and size of frames",
            "",
            "lz4, to a memory file system, MB/s; the bound is that of all cores. As a picture:"
            " [docs/pictures/writer.png](../docs/pictures/writer.png).",
            "",
            *against_workers(scaling),
            "",
        ]
    if starts:
        lines += [
            "## Import and open: time from interpreter start to first frame accepted",
            "",
            *(f"- {name}: {starts[name]:.2f} s" for name in ("ours", "h5py with hdf5plugin")),
        ]
    write_table(str(output), lines)
