"""What retraining decided, as a table."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tuner.report.terminal import console

if TYPE_CHECKING:
    from tuner.search.verdict import Verdict


def print_verdict(verdict: Verdict) -> None:
    """Regrets by goal, shares within the intervals by target, what was not learned from, and the verdict."""
    out = console(sys.stdout)
    for heads, rows in (
        (("goal", "regret of champion", "worst", "of challenger", "worst"), _regrets(verdict)),
        (("within 1 and 2 sigma", "champion", "challenger"), _shares(verdict)),
    ):
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for place, head in enumerate(heads):
            table.add_column(head, justify="right" if place else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        if rows:
            out.print(table)
    for reason, count in verdict.dropped.items():
        out.print(f"{count} evaluations of the logs passed over: {reason}", markup=False)
    out.print(f"verdict {verdict.number:04d}: {verdict.reason}", markup=False)


def _regrets(verdict: Verdict) -> list[tuple[str, ...]]:
    return [
        (goal, *(f"{of[who][what]:.2%}" for who in ("champion", "challenger") for what in ("mean", "worst")))
        for goal, of in verdict.regret.items()
    ]


def _shares(verdict: Verdict) -> list[tuple[str, ...]]:
    sides = [verdict.within.get(who, {}) for who in ("champion", "challenger")]
    targets = list(dict.fromkeys(target for side in sides for target in side))
    return [
        (target, *(" and ".join(f"{share:.0%}" for share in side.get(target, ())) or "none" for side in sides))
        for target in targets
    ]
