"""What a search tells on a terminal, or in a pipe: rich in the one, plain and uncut in the other."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from tuner.config import one_line
from tuner.evaluation import METRICS, Evaluation
from tuner.measure.baseline import TEXTS
from tuner.profile import Profile
from tuner.steps.reduced import reductions_to

if TYPE_CHECKING:
    from tuner.search.result import Progress, Result

#: Seconds between two lines of progress where nothing better was found, in a pipe.
_PATIENCE = 10.0
#: Wide enough for every table: a pipe has no width.
_PIPE_WIDTH = 200

#: Column heads of the metrics that tables show.
_COLUMNS = {
    "ratio": "ratio",
    "encode_mb_s": "encode MB/s",
    "decode_mb_s": "decode MB/s",
    "frame_read_mb_s": "frame read MB/s",
    "sinogram_read_mb_s": "sinogram read MB/s",
    "write_mb_s": "write MB/s",
}


def console(file: TextIO) -> Console:
    """A console that colours a terminal, and neither colours, wraps nor cuts anywhere else."""
    if file.isatty():
        return Console(file=file, highlight=False)
    return Console(file=file, highlight=False, width=_PIPE_WIDTH, force_terminal=False, no_color=True, soft_wrap=True)


class SearchProgress:
    """Follows a search on stderr: one living line on a terminal, a line for every better result in a pipe."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._console = console(sys.stderr)
        self._status: Status | None = None
        self._best: Evaluation | None = None
        self._phase = ""
        self._last = time.monotonic()

    def __enter__(self) -> SearchProgress:
        if not self._quiet and self._console.is_terminal:
            self._status = self._console.status("starting")
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, progress: Progress) -> None:
        """Show how far the search is."""
        if self._quiet:
            return
        head = f"{progress.seconds:6.1f} s  {progress.measured:4d} measured  "
        text = head + (f"best so far: {_brief(progress.best, progress.itemsize)}" if progress.best else progress.phase)
        if self._status is not None:
            self._status.update(f"{escape(text)}  [dim]{escape(progress.phase)}[/dim]")
            return
        late = time.monotonic() - self._last > _PATIENCE
        if progress.phase != self._phase and progress.phase != "searching":
            text = head + progress.phase
        elif progress.best is self._best and not late:
            return
        self._console.print(text, markup=False)
        self._best, self._phase, self._last = progress.best, progress.phase, time.monotonic()


def print_result(result: Result) -> None:
    """The table of a search's result: what was chosen, the rest of the front, what users have today."""
    out = console(sys.stdout)
    shown = [name for name in _COLUMNS if any(name in e.metrics for e in result.front)]
    extra = [name for name in ("sinogram_read_mb_s",) if name in shown and not _wanted(name, result)]
    shown = [name for name in shown if name not in extra]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("configuration", no_wrap=True)
    for name in shown:
        table.add_column(_COLUMNS[name], justify="right", no_wrap=True)
    rows = [result.best, *(e for e in result.front if e is not result.best)]
    for evaluation in rows:
        assert evaluation.config is not None
        mark = "> " if evaluation is result.best else "  "
        style = "bold green" if evaluation is result.best else None
        table.add_row(mark + one_line(evaluation.config, result.itemsize), *_cells(evaluation, shown), style=style)
    table.add_section()
    for name, evaluation in result.baselines.items():
        table.add_row(f"  {name}: {TEXTS[name]}", *_cells(evaluation, shown), style="dim")
    out.print(table)
    today = result.baselines["bslz4"].metrics["ratio"]
    best = result.best.metrics
    out.print(
        f"> is the result: ratio {best['ratio']:.2f}, {_compared(best['ratio'], today)} bitshuffle-lz4,"
        f" at {best['encode_mb_s']:,.0f} MB/s a core.",
        markup=False,
    )
    out.print(f"{result.measured} configurations measured in {result.seconds:.1f} s, {result.stopped}.", markup=False)


def format_reduction(profile: Profile) -> str:
    """What a profile's reduction adds to its ratio, which is of frames as reduced."""
    times, ratio = profile.evidence["reduction"]["ratio"], profile.evidence["metrics"]["ratio"]
    words = [" ".join(str(value) for value in step.values()) for step in reductions_to(profile.reduce)]
    text = f"Frames were reduced {times:.2f} times before, by {', '.join(words)}: {times * ratio:.2f} in all."
    triage = profile.evidence["reduction"].get("triage")
    if triage:
        lost, bound = triage["lost_hits"], triage["lost_hits_bound"]
        text += f"\nOf {triage['without_peaks']} frames without peaks {lost:.1%} are hits, at most {bound:.1%}."
    return text


def _wanted(name: str, result: Result) -> bool:
    return name in result.goal.maximize or any(c.metric == name for c in result.goal.require)


def _compared(ratio: float, today: float) -> str:
    change = 1 - today / ratio
    if abs(change) < 0.005:
        return "the same size as"
    return f"{abs(change):.0%} {'smaller' if change > 0 else 'larger'} than"


def _cells(evaluation: Evaluation, names: list[str]) -> list[str]:
    cells = []
    for name in names:
        value = evaluation.metrics.get(name)
        if value is None:
            cells.append("")
        elif METRICS[name].timed:
            cells.append(f"{value:,.0f}" if value >= 10 else f"{value:.1f}")
        else:
            cells.append(f"{value:.2f}")
    return cells


def _brief(evaluation: Evaluation, itemsize: int) -> str:
    assert evaluation.config is not None
    metrics = evaluation.metrics
    text = one_line(evaluation.config, itemsize)
    return f"ratio {metrics['ratio']:.2f}, encode {metrics['encode_mb_s']:,.0f} MB/s, {text}"
