"""What `lossy.py` shows: a line for each set, then one for each of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_BIAS = "bias_sigma <= 0.01"
#: What is searched for: the limits on quality by the goal's name.
GOALS: Mapping[str, tuple[str, ...]] = {
    "sub-noise": ("max_error_sigma <= 0.5", _BIAS),
    "noise-equivalent": (
        "dose_cost <= 0.083",
        _BIAS,
        "residual_autocorrelation <= 0.05",
        "residual_signal_correlation <= 0.05",
    ),
    "dose_cost <= 0.3": ("dose_cost <= 0.3", _BIAS),
}

#: Qualities that every row has.
METRICS = (
    "mask_violations",
    "max_error_sigma",
    "dose_cost",
    "bias_sigma",
    "residual_autocorrelation",
    "residual_signal_correlation",
    "nrmse_range",
)


@dataclass
class Row:
    """What one method makes of one set."""

    method: str
    """Goal, rounding, or what else."""
    config: str = ""
    """Steps and compression in a line."""
    ratio: float = 0.0
    """Bytes of the pixels / bytes stored; 0 where there is none."""
    encode_mb_s: float = 0.0
    """MB of pixels a second on one core, steps included; 0 where it was not timed."""
    decode_mb_s: float = 0.0
    """MB of pixels a second on one core; 0 where it was not timed."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Each quality of the worst frame of the sample."""
    seconds: float = 0.0
    """What finding it took."""
    unseen: int = 0
    """Frames that it was not made on and that were checked."""
    broke: int = 0
    """How many of those break a limit."""
    furthest: str = ""
    """The limit that comes nearest to breaking on them, and its value."""
    note: str = ""
    """Why there is none, or what is published."""


def summary(measured: Mapping[str, list[Row]]) -> Iterator[str]:
    """A line for each set."""
    yield (
        "| data | lossless | sub-noise | of the best constructed | noise-equivalent | dose_cost <= 0.3"
        " | search, bisection | unseen frames, broken |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, rows in measured.items():
        by = {row.method: row for row in rows}
        lossless = by["best lossless"]
        found = [by[f"search: {goal}"] for goal in GOALS]
        ratios = [f"{r.ratio:.2f} ({r.ratio / lossless.ratio:.2f})" if r.ratio else "refused" for r in found]
        best = by.get("best quantiser constructed: sub-noise")
        share = f"{found[0].ratio / max(best.ratio, lossless.ratio):.0%}" if best and found[0].ratio else ""
        ours, theirs = (sum(r.seconds for r in rows if r.method.startswith(w)) for w in ("search", "bisection"))
        unseen = sum(r.unseen for r in found)
        yield (
            f"| {name} | {lossless.ratio:.2f} | {ratios[0]} | {share} | {ratios[1]} | {ratios[2]}"
            f" | {ours:.0f} s, {theirs:.0f} s | {unseen}, {sum(r.broke for r in found)} |"
        )


def table(measured: Mapping[str, list[Row]]) -> Iterator[str]:
    """A line for each row of each set."""
    yield (
        "| data | method | ratio | over lossless | encode, decode MB/s | max, sigma | dose cost | bias, sigma"
        " | autocorrelation | with signal | nrmse | s | unseen: broken, nearest to its limit | what |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|---|"
    for name, rows in measured.items():
        lossless = next(row.ratio for row in rows if row.method == "best lossless")
        for number, row in enumerate(rows):
            data = "" if number else f"**{name}**"
            if not row.ratio:
                yield f"| {data} | {row.method} |{' |' * 11} {row.note} |"
                continue
            quality = " | ".join(_number(row.metrics.get(metric)) for metric in METRICS[1:])
            speeds = f"{row.encode_mb_s:,.0f}, {row.decode_mb_s:,.0f}" if row.encode_mb_s else ""
            unseen = f"{row.broke} of {row.unseen}: {row.furthest or 'lossless'}" if row.unseen else ""
            what = "; ".join(text for text in (row.note, f"`{row.config}`") if text)
            yield (
                f"| {data} | {row.method} | {row.ratio:.2f} | {row.ratio / lossless:.2f} | {speeds} | {quality}"
                f" | {row.seconds:.1f} | {unseen} | {what} |"
            )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


#: A gain over lossless below this is none.
_GAIN = 1.03


def page(measured: Mapping[str, list[Row]], budget: str) -> Iterator[str]:
    """The result as a page."""
    yield from ("# Lossy steps: what they gain, and whether limits hold", "")
    yield (
        f"`python benchmarks/lossy.py --budget {budget}`. Ratio: bytes of the pixels / bytes stored, of the same frames"
        " and codecs in all rows of a set; in brackets over the best lossless one, for which zstd-9 is tried too."
        " *Of the best constructed*: our ratio under `sub-noise` over that of the best quantiser that keeps its limits"
        " on every frame: of least entropy by dynamic programming, powers of two as wide as the noise allows, or our"
        " steps by bisection; never less than lossless. *Search, bisection*: seconds of a core for the three goals."
        " *Unseen frames*: neither searched on nor selected by; those that break any limit of the goal, of all three."
    )
    yield ""
    yield from summary(measured)
    yield ""
    if none := [name for name, rows in measured.items() if _no_gain(rows)]:
        yield (
            f"Less than {_GAIN - 1:.0%} is to be gained under `sub-noise`, by whatever quantiser, in {', '.join(none)}:"
            " counts are so low, or sigma so few digits, that nothing can be rounded."
        )
        yield ""
    yield from table(measured)


def _no_gain(rows: list[Row]) -> bool:
    by = {row.method: row.ratio for row in rows}
    best = by.get("best quantiser constructed: sub-noise")
    return best is not None and best < _GAIN * by["best lossless"]
