"""Retraining: a challenger that also learned from new logs takes the champion's place only where it is better."""

from __future__ import annotations

import datetime
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.evaluation import Evaluation, check_room, home, log_files
from tuner.search.champion import fitted, keep_log, named_log, read_logs, shipped_log
from tuner.search.score import GOALS, Case, Score, cases_of, score
from tuner.search.sift import MOST_ROWS, Sifted, sift
from tuner.search.surrogate import dataset_of
from tuner.search.verdict import SHIPPED, Verdict, champion_log, folder, verdicts, write_verdict

#: At most so many data sets of each log are judged.
_MOST_JUDGED = 40
#: Fewer data sets than these tell nothing from noise.
_LEAST_JUDGED = 5
#: Draws of the bootstrap, and the quantiles of its interval.
_DRAWS, _QUANTILES = 4000, (0.025, 0.975)
#: By how much, as a logarithm, a goal's worst case may get worse.
_WORSE = 0.1

Notify = Callable[[str], object]


def retrain(paths: Sequence[str] = (), notify: Notify = lambda _: None, jobs: int = -1) -> Verdict:
    """Fit a challenger on the champion's log and others, judge both, and promote it if it is better.

    Both are judged on the same data sets, each by trees that did not learn from it. Better means: over data sets, the
    95 % interval of the mean difference of their regrets is above zero (Efron 1979, bootstrap of paired differences);
    that of the data sets that the champion knows is not below zero; and no goal's worst case gets much worse. A kill
    leaves the champion as it was.

    Parameters
    ----------
    paths : sequence of path
        Logs, files or folders; the default is what this user's searches left.
    notify : callable
        Called with a line as it goes on.
    jobs : int
        Threads; -1 for all cores.

    Raises
    ------
    InputError
        Where there is no such file or folder, or no log in it.
    TunerError
        Where the verdict cannot be kept; at once, if that can be known.
    """
    before = champion_log()
    own = home() / "evaluations"
    given = read_logs(paths or ([str(own)] if own.is_dir() else []), notify)
    if (empty := next((path for path in paths if not log_files(Path(path))), None)) is not None:
        raise InputError(f"{empty}: must hold logs of searches, got none")
    check_room(folder())
    shipped = shipped_log()
    known = _known(before, shipped, notify)
    new = sift(given, known)
    log = _bounded([*known, *new.evaluations], shipped)
    verdict = _judge(known, new, log, _undecided(before, new), notify, jobs)
    if verdict.decision == "promoted":
        name = keep_log(log)
        fitted(name, notify)
        verdict = replace(verdict, champion=name)
    now = champion_log()
    if now != before:
        reason = f"the {_called(now)} stays: another verdict came while this one was found, retrain again"
        verdict = replace(verdict, decision="kept", reason=reason, champion=now)
    return write_verdict(verdict)


def rollback() -> Verdict:
    """Return to the champion before the last promotion, at last to the shipped one.

    Raises
    ------
    InputError
        Where the shipped one serves already.
    TunerError
        Where the verdict cannot be kept.
    """
    past, now = verdicts(), champion_log()
    if now == SHIPPED:
        raise InputError("--rollback must have a promotion to take back, got the shipped surrogate")
    earlier = next((v.before for v in reversed(past) if v.decision == "promoted" and v.champion == now), SHIPPED)
    named_log(earlier)  # what is lost cannot be returned to
    reason = f"returned to the {_called(earlier)}, as it was wished"
    return write_verdict(Verdict("rolled back", reason, earlier, now, _now()))


def _known(champion: str, shipped: list[Evaluation], notify: Notify) -> list[Evaluation]:
    """What the champion learned from, and what the package ships by now."""
    if champion == SHIPPED:
        return shipped
    try:
        kept = named_log(champion)
    except InputError as error:
        notify(f"the promoted log is lost, the shipped one is learned from: {error}")
        return shipped
    return [*kept, *sift(shipped, kept).evaluations]


def _bounded(evaluations: Sequence[Evaluation], shipped: Sequence[Evaluation]) -> list[Evaluation]:
    """Those of shipped data, and of the rest the latest: without end a model would grow with each promotion."""
    ours = {e.origin.get("data") for e in shipped}
    own = [e for e in evaluations if e.origin.get("data") not in ours]
    return [*(e for e in evaluations if e.origin.get("data") in ours), *own[-MOST_ROWS:]]


def _undecided(champion: str, new: Sifted) -> Verdict:
    return Verdict("kept", "", champion, champion, _now(), dropped=new.dropped)


def _judge(
    known: Sequence[Evaluation],
    new: Sifted,
    log: Sequence[Evaluation],
    verdict: Verdict,
    notify: Notify,
    jobs: int,
) -> Verdict:
    """The verdict over a challenger that learned from `log`, which has what is new too."""
    fresh = [e for e in new.evaluations if e.config is not None]
    learned_from = [e for e in log if e.config is not None]
    verdict = replace(
        verdict,
        log={
            "evaluations": len(learned_from),
            "datasets": len({dataset_of(e) for e in learned_from}),
            "new_evaluations": len(fresh),
            "new_datasets": len({dataset_of(e) for e in fresh} - {dataset_of(e) for e in known}),
        },
    )
    if not fresh:
        return replace(verdict, reason="the champion stays: the logs hold nothing new that can be learned from")
    # Whatever new records say that they are of, what the champion knows is judged by what it knows.
    learned, added = _drawn(cases_of(known)), _drawn(cases_of(new.evaluations))
    both = [*learned, *added]
    names = {case.dataset for case in both}
    if len(names) < _LEAST_JUDGED:
        reason = f"the champion stays: {len(names)} data sets to judge by are too few, it takes {_LEAST_JUDGED}"
        return replace(verdict, reason=reason, judged=len(names))
    notify(
        f"judging on {len(names)} of {verdict.log['datasets']} data sets,"
        f" {len({case.dataset for case in added})} of them from the new logs"
    )
    champion, challenger = score([known, log], both, jobs)
    better = _differences(champion, challenger, both)
    safe = _differences(champion, challenger, learned)
    mean, low, high = _interval(better)
    verdict = replace(
        verdict,
        judged=len(names),
        difference=(mean, low, high),
        regret={
            goal: {
                "champion": _mean_and_worst(champion, goal, both),
                "challenger": _mean_and_worst(challenger, goal, both),
            }
            for goal in GOALS
            if champion.regret[goal]
        },
        within={"champion": champion.within, "challenger": challenger.within},
    )
    gained = f"the challenger's regret is less by {mean:.2%} ({low:.2%} to {high:.2%})"
    worse = [
        goal for goal, of in verdict.regret.items() if of["challenger"]["worst"] > of["champion"]["worst"] + _WORSE
    ]
    if low <= 0:
        why = "no more than the noise" if high >= 0 else "so it is worse"
        return replace(verdict, reason=f"the champion stays: {gained}, {why}")
    if len(safe) and _interval(safe)[2] < 0:
        return replace(verdict, reason=f"the champion stays: {gained}, but more on the data sets that it knows")
    if worse:
        return replace(verdict, reason=f"the champion stays: {gained}, but its worst case gets worse for {worse[0]}")
    return replace(verdict, decision="promoted", reason=f"the challenger is promoted: {gained}")


def _drawn(cases: Sequence[Case]) -> list[Case]:
    """The cases of a part of the data sets that is always the same."""
    names = sorted({case.dataset for case in cases}, key=lambda name: hashlib.sha256(name.encode()).digest())
    drawn = set(names[:_MOST_JUDGED])
    return [case for case in cases if case.dataset in drawn]


def _differences(champion: Score, challenger: Score, cases: Sequence[Case]) -> NDArray[np.float64]:
    """By what the challenger's regret is less, of each data set the mean over goals."""
    less: dict[str, list[float]] = defaultdict(list)
    for goal in GOALS:
        before, after = (_of_datasets(score, goal, cases) for score in (champion, challenger))
        for name in before:
            less[name].append(before[name] - after[name])
    return np.array([np.mean(less[name]) for name in sorted(less)], np.float64)


def _of_datasets(score: Score, goal: str, cases: Sequence[Case]) -> dict[str, float]:
    """Data set to the mean regret of its samples."""
    regrets: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        if case.digest in score.regret[goal]:
            regrets[case.dataset].append(score.regret[goal][case.digest])
    return {name: float(np.mean(of_samples)) for name, of_samples in regrets.items()}


def _interval(differences: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean, and the interval that the means of 95 % of the bootstrap's draws are in."""
    if not len(differences):
        return 0.0, 0.0, 0.0
    drawn = np.random.default_rng(0).integers(len(differences), size=(_DRAWS, len(differences)))
    low, high = np.quantile(differences[drawn].mean(axis=1), _QUANTILES)
    return float(differences.mean()), float(low), float(high)


def _mean_and_worst(score: Score, goal: str, cases: Sequence[Case]) -> dict[str, float]:
    regrets = list(_of_datasets(score, goal, cases).values())
    return {"mean": float(np.mean(regrets)), "worst": float(np.max(regrets))}


def _called(champion: str) -> str:
    return "shipped surrogate" if champion == SHIPPED else f"surrogate of log {champion[:12]}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
