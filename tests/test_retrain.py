"""Retraining promotes what is better by more than noise, nothing else; every verdict is kept, and can be taken back."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import synthetic_log as world
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import Victims

from tuner import evaluation
from tuner.cli import main
from tuner.config import Blosc2, Config
from tuner.errors import InputError, TunerWarning
from tuner.evaluation import Evaluation, Log
from tuner.search import champion
from tuner.search.champion import keep_log, load_surrogate, shipped_log
from tuner.search.retrain import retrain, rollback
from tuner.search.score import GOALS, cases_of
from tuner.search.sift import sift
from tuner.search.surrogate import TARGETS, Surrogate
from tuner.search.verdict import SHIPPED, Verdict, champion_log, folder, verdicts, write_verdict

#: Data sets of the log that takes the place of the shipped one: levels and blocks are worth nothing in them.
SHIPPED_SETS = world.log(8, busy=(0.0, 0.2))
#: Others, in which they are worth much: who knows only the shipped ones guesses them badly.
NEW_SETS = world.log(8, busy=(2.4, 3.0), each=30, seed=1)
#: Others that are like the shipped ones: they have nothing to teach.
LIKE_SETS = world.log(4, busy=(0.0, 0.2), seed=2)


def written(path: Path, evaluations: Sequence[Evaluation]) -> Path:
    path.unlink(missing_ok=True)
    with Log(path) as log:
        for evaluation in evaluations:
            log.append(evaluation)
    return path


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's searches leave their logs; the package ships the synthetic log."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    written(tmp_path / "shipped" / "log.jsonl", SHIPPED_SETS)
    monkeypatch.setattr(champion, "_shipped", lambda: tmp_path / "shipped")
    assert shipped_log() == SHIPPED_SETS
    return tmp_path / "home" / "evaluations"


def promoted(evaluations: Sequence[Evaluation]) -> str:
    """Promote a log without judging it."""
    before, name = champion_log(), keep_log(evaluations)
    write_verdict(Verdict("promoted", "for this test", name, before, "2026-01-01T00:00:00+00:00"))
    return name


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["retrain", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_what_is_better_by_more_than_noise_is_promoted_and_serves(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(own / "night.jsonl", NEW_SETS)
    before = load_surrogate()
    code, out, err = run(capsys)
    assert code == 0
    assert "verdict 0001: the challenger is promoted" in out
    assert [name for name in (*GOALS, *TARGETS) if name in out] == [*GOALS, *TARGETS]
    assert err.startswith("tuner: judging on 16 of 16 data sets, 8 of them from the new logs\n")
    (verdict,) = verdicts()
    assert verdict.decision == "promoted"
    assert (verdict.before, verdict.champion) == (SHIPPED, champion_log())
    assert verdict.log == {"evaluations": 560, "datasets": 16, "new_evaluations": 240, "new_datasets": 8}
    assert verdict.difference is not None
    mean, low, high = verdict.difference
    assert 0 < low <= mean <= high
    for of in verdict.regret.values():
        assert of["challenger"]["mean"] <= of["champion"]["mean"] + 0.01
    # It serves searches, and guesses data like the new better than the old one did.
    data = next(world.evaluations("unseen", 0.9, 2.7))
    truth = np.array([world.truth(config, 0.9, 2.7) for config in world.configs()])
    after = load_surrogate()
    old, new = (missed(surrogate, data, truth) for surrogate in (before, after))
    assert new < 0.5 * old
    # The log is kept: its model can be made anew once the files that it was read from are gone.
    (own / "night.jsonl").unlink()
    for model in (folder() / "cache").rglob("*.model"):
        model.unlink()
    assert missed(load_surrogate(), data, truth) == new
    # What it knows already teaches nothing the second time.
    written(own / "night.jsonl", NEW_SETS)
    again = retrain()
    assert (again.decision, again.champion) == ("kept", verdict.champion)
    assert again.dropped == {"known already": 240}


def missed(surrogate: Surrogate | None, of: Evaluation, truth: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    assert surrogate is not None
    data = next(case.data for case in cases_of([*world.evaluations(of.origin["dataset"], 0.9, 2.7)]))
    mean, _ = surrogate.predict(world.configs(), data)
    return float(np.sqrt(np.mean((mean - truth)[:, 0] ** 2)))


def test_what_is_no_better_is_not_promoted_and_its_verdict_has_the_scores(own: Path) -> None:
    written(own / "night.jsonl", LIKE_SETS)
    verdict = retrain()
    assert verdict.decision == "kept"
    assert verdict.reason.endswith("no more than the noise")
    assert champion_log() == SHIPPED
    (kept,) = verdicts()
    assert kept.to_dict() == json.loads(json.dumps(verdict.to_dict()))
    assert kept.judged == 12
    assert set(kept.regret) == set(GOALS)
    assert set(kept.within) == {"champion", "challenger"}
    assert set(kept.within["champion"]) == set(TARGETS)


def changed(evaluations: Sequence[Evaluation], change: Callable[[str, float], float]) -> list[Evaluation]:
    """Evaluations, but for their baselines, with another number for each metric."""
    return [
        replace(e, metrics={name: change(name, value) for name, value in e.metrics.items()}, spread={})
        if e.config
        else e
        for e in evaluations
    ]


def shuffled(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Evaluations whose metrics went to other configurations of the same data."""
    rng = np.random.default_rng(0)
    found = [e for e in evaluations if e.config is None]
    for name in {e.origin["data"]: None for e in evaluations}:
        of_data = [e for e in evaluations if e.config and e.origin["data"] == name]
        order = rng.permutation(len(of_data))
        found += [replace(e, metrics=of_data[i].metrics, spread={}) for e, i in zip(of_data, order, strict=True)]
    return found


def test_a_shuffled_log_is_judged_and_never_replaces_the_champion(own: Path) -> None:
    written(own / "night.jsonl", shuffled(NEW_SETS))
    verdict = retrain()
    assert verdict.decision == "kept"
    assert verdict.judged == 16
    assert verdict.difference is not None
    mean, low, high = verdict.difference
    assert low < mean < high
    assert low <= 0


def test_a_log_in_a_foreign_unit_of_too_few_to_tell_never_replaces_the_champion(own: Path) -> None:
    few = changed(world.log(30, each=6, seed=3), lambda name, value: value / (1 if name == "ratio" else 1000))
    written(own / "night.jsonl", few)
    verdict = retrain()
    assert verdict.decision == "kept"
    assert verdict.log["new_evaluations"] > 0


POISONS: dict[str, Callable[[], list[Evaluation]]] = {
    "ratios of another world": lambda: changed(NEW_SETS, lambda name, value: value * (1e6 if name == "ratio" else 1)),
    "GB/s, or another machine's reference": lambda: changed(
        NEW_SETS, lambda name, value: value / (1 if name == "ratio" else 1000)
    ),
    "bytes per second": lambda: changed(NEW_SETS, lambda name, value: value * (1 if name == "ratio" else 1e6)),
    "zeros": lambda: changed(NEW_SETS, lambda name, value: 0.0),
    "negative": lambda: changed(NEW_SETS, lambda name, value: -value),
    "huge": lambda: changed(NEW_SETS, lambda name, value: 1e300),
    "tiny": lambda: changed(NEW_SETS, lambda name, value: 5e-324),
    "contradictory": lambda: [
        *NEW_SETS,
        *changed(NEW_SETS, lambda name, value: value * (2 if name == "ratio" else 1)),
    ],
    "contradicts the shipped log": lambda: changed(
        SHIPPED_SETS, lambda name, value: value * (2 if name == "ratio" else 1)
    ),
    "failures": lambda: [replace(e, metrics={}, spread={}, failure="crashed") for e in NEW_SETS],
    "baselines only": lambda: [e for e in NEW_SETS if e.config is None],
}


@pytest.mark.parametrize("poison", POISONS)
def test_a_poisoned_log_teaches_nothing_and_the_verdict_says_why(own: Path, poison: str) -> None:
    written(own / "night.jsonl", POISONS[poison]())
    verdict = retrain()
    assert verdict.decision == "kept"
    assert verdict.reason == "the champion stays: the logs hold nothing new that can be learned from"
    assert sum(verdict.dropped.values()) >= (0 if poison == "baselines only" else 200)
    assert verdicts() == [verdict]
    assert champion_log() == SHIPPED


def nan_lines(path: Path) -> None:
    text = written(path, NEW_SETS).read_text()
    path.write_text(text.replace('"ratio":', '"ratio":NaN,"was":'))


def torn(path: Path) -> None:
    # Each line lost its end: none is whole.
    path.write_text("".join(f"{line[:-9]}\n" for line in written(path, NEW_SETS).read_text().splitlines()))


#: What leaves nothing to read, and what leaves lines of which none is known.
EMPTY: dict[str, Callable[[Path], object]] = {
    "no file": lambda path: path.parent.mkdir(parents=True),
    "an empty one": lambda path: written(path, NEW_SETS).write_bytes(b""),
    "no gzip": lambda path: written(path, NEW_SETS).rename(path.with_suffix(".jsonl.gz")),
    "a folder of that name": lambda path: path.mkdir(parents=True),
}
UNKNOWN: dict[str, Callable[[Path], object]] = {
    "NaN": nan_lines,
    "torn lines": torn,
    "no JSON": lambda path: written(path, NEW_SETS).write_bytes(b"\x00\xff" * 5000 + b"\n[[[[" + b"[" * 100_000),
    "other JSON": lambda path: written(path, NEW_SETS).write_text('{"config": {}, "metrics": 5}\n[]\n5\nnull\n{}\n'),
}


@pytest.mark.filterwarnings("ignore:.*is cut or damaged:tuner.errors.TunerWarning")
@pytest.mark.parametrize("kind", EMPTY)
def test_what_cannot_be_read_teaches_nothing(own: Path, kind: str) -> None:
    EMPTY[kind](own / "night.jsonl")
    verdict = retrain()
    assert verdict.reason == "the champion stays: the logs hold nothing new that can be learned from"
    assert verdicts() == [verdict]


@pytest.mark.parametrize("kind", UNKNOWN)
def test_lines_of_which_none_is_known_are_refused_without_a_verdict(own: Path, kind: str) -> None:
    UNKNOWN[kind](own / "night.jsonl")
    with pytest.raises(InputError, match=r"night.jsonl: line 1: .*; none of \d+ lines is an evaluation"):
        retrain()
    assert verdicts() == []


def test_what_of_a_cut_log_is_whole_is_learned_from(tmp_path: Path, own: Path) -> None:
    whole = written(own / "night.jsonl", NEW_SETS).read_bytes()
    (own / "night.jsonl").write_bytes(whole[: len(whole) // 2])
    (own / "cut.jsonl.gz").write_bytes(gzip.compress(written(tmp_path / "like.jsonl", LIKE_SETS).read_bytes())[:-500])
    with pytest.warns(TunerWarning, match=r"cut.jsonl.gz: is cut or damaged: only its first \d+ lines are read$"):
        sifted = sift(champion.read_logs([own]), SHIPPED_SETS)
    assert {name.split("-")[1] for e in sifted.evaluations if (name := e.origin["dataset"])} == {"1", "2"}
    assert 100 < len(sifted.evaluations) < len(NEW_SETS) + len(LIKE_SETS)


lies = st.fixed_dictionaries(
    {},
    optional={
        "data": st.sampled_from(["digest of set-0-0", "digest of set-1-0", "", None, 5, ["a"]]),
        "dataset": st.sampled_from(["set-0-0", "set-0-1", "", None, {}]),
        "dtype": st.sampled_from(["uint16", "float64", ">u2", "O", "S4", "(", "(2,)u2", "c16", "", None, 5]),
        "frame_shape": st.sampled_from(
            [[512, 512], [600], [3, 7], [0, 4], [-1, 4], [512.0, 512], ["512"], [10**30] * 2, [10**400] * 2, 5, None]
        ),
        "nbytes": st.sampled_from([4 << 20, 0, -1, math.nan, math.inf, 10**400, "4MB", None, [5]]),
        "reference_mb_s": st.sampled_from([5000.0, 0, -1.0, math.nan, math.inf, 10**400, 1e-300, "fast", None]),
        "timing": st.sampled_from(["alone", "in passing", None, 5]),
        "baseline": st.sampled_from(["bslz4", None, [5]]),
    },
)
numbers = st.sampled_from([0.0, -1.0, 5e-324, 1e-30, 0.5, 2.0, 700.0, 1e30, 1e300, -1e300])
LYING = [e for e in NEW_SETS if e.origin["dataset"] == "set-1-0"]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(LYING) - 1),
            lies,
            st.dictionaries(st.sampled_from(["ratio", "encode_mb_s", "frame_read_mb_s"]), numbers),
            st.dictionaries(st.sampled_from(sorted(LYING[0].traits)), numbers),
        ),
        max_size=6,
    )
)
def test_records_may_lie_and_what_is_kept_of_them_can_be_learned_from(
    changes: list[tuple[int, dict[str, Any], dict[str, float], dict[str, float]]],
) -> None:
    """Sifting raises nothing, and neither does learning or judging by what it leaves; warnings are errors here."""
    records = list(LYING)
    for place, origin, metrics, traits in changes:
        true = records[place]
        records[place] = replace(
            true,
            config=Config((1, 600), Blosc2()) if true.config and origin.get("frame_shape") == [600] else true.config,
            metrics={**true.metrics, **metrics},
            traits={**true.traits, **traits},
            origin={**true.origin, **origin},
        )
    left = sift(records, SHIPPED_SETS).evaluations
    surrogate = Surrogate.fit([*SHIPPED_SETS, *left], jobs=1, trees=1)
    for case in cases_of(left):
        mean, std = surrogate.predict([e.config for e in case.evaluations if e.config], case.data)
        assert np.isfinite(mean).all()
        assert np.isfinite(std).all()


def test_logs_that_are_too_old_and_lines_of_another_version_are_passed_over_and_named(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written(own / "20260101.jsonl", NEW_SETS)
    late = written(own / "20260102.jsonl", LIKE_SETS)
    blank = "\n" * (1 << 20)  # nothing that is shipped is larger
    late.write_text(late.read_text() + blank + '{"config":null,"metrics":{},"newer":1}\n{"conf')
    monkeypatch.setattr(evaluation, "_MOST_NBYTES", late.stat().st_size)
    code, _, err = run(capsys)
    assert code == 0
    assert err.splitlines()[0] == "tuner: 1 logs are too old to be read, the latest 1 are"
    assert err.splitlines()[1].startswith(f"tuner: {late}: line ")
    assert "newer is not a known key" in err.splitlines()[1]
    assert err.splitlines()[1].endswith("; 2 such lines are passed over, torn or of another version")
    assert verdicts()[-1].log["new_datasets"] == 4


def test_a_champion_learns_from_so_many_besides_what_is_shipped(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of shipped data stay; of the others, however often it is promoted, the latest."""
    monkeypatch.setattr("tuner.search.retrain.MOST_ROWS", 240)
    written(own / "night.jsonl", NEW_SETS)
    verdict = retrain()
    assert verdict.decision == "promoted"
    kept = champion.named_log(verdict.champion)
    assert kept[: len(SHIPPED_SETS)] == SHIPPED_SETS
    assert kept[len(SHIPPED_SETS) :] == sift(NEW_SETS).evaluations[-240:]


def test_records_that_claim_to_be_of_known_data_do_not_judge_it(own: Path) -> None:
    """Who calls lies by the names of all that is known would else be the only one to judge by."""
    names = sorted({e.origin["dataset"] for e in SHIPPED_SETS})
    lies = [
        replace(e, origin={**e.origin, "dataset": names[int(e.origin["dataset"][-1]) % len(names)]})
        for e in shuffled(NEW_SETS)
    ]
    written(own / "night.jsonl", lies)
    verdict = retrain()
    assert verdict.decision == "kept"
    assert (verdict.judged, verdict.log["new_datasets"]) == (len(names), 0)


def test_data_of_another_shape_under_the_same_digest_is_passed_over(own: Path) -> None:
    other = [
        replace(e, config=Config((1, 600), e.config.blosc2), origin={**e.origin, "frame_shape": [600]})
        for e in SHIPPED_SETS
        if e.config
    ]
    written(own / "night.jsonl", other)
    assert retrain().dropped == {"of another shape or dtype than the same data before": len(other)}


def test_rollback_returns_step_by_step_to_the_shipped_one() -> None:
    first, second = promoted(NEW_SETS), promoted([*NEW_SETS, *LIKE_SETS])
    write_verdict(Verdict("kept", "for this test", second, second, "2026-01-02T00:00:00+00:00"))
    for serves in (first, SHIPPED):
        verdict = rollback()
        assert (verdict.decision, verdict.champion, champion_log()) == ("rolled back", serves, serves)
    with pytest.raises(InputError, match="--rollback must have a promotion to take back, got the shipped surrogate"):
        rollback()
    third = promoted(LIKE_SETS)
    assert champion_log() == third
    assert rollback().champion == SHIPPED
    assert [verdict.number for verdict in verdicts()] == list(range(1, 8))


def test_a_verdict_that_keeps_the_champion_undoes_nothing_that_came_meanwhile(own: Path) -> None:
    promoted(SHIPPED_SETS)
    written(own / "night.jsonl", LIKE_SETS)
    verdict = retrain(notify=lambda text: rollback() if text.startswith("judging") else None)
    assert (verdict.decision, verdict.champion, champion_log()) == ("kept", SHIPPED, SHIPPED)
    assert "another verdict came" in verdict.reason


def test_the_command_line_says_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    champion = promoted(SHIPPED_SETS)
    log = str(written(tmp_path / "elsewhere.jsonl", POISONS["contradictory"]()))
    code, out, err = run(capsys, log, str(tmp_path / "shipped"))
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("verdict 0002: the champion stays: ")
    assert "480 evaluations of the logs passed over: contradicts another of the same configuration and data" in out
    code, out, err = run(capsys, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {**verdicts()[-1].to_dict(), "number": 3, "champion": champion, "decision": "kept"}
    code, out, err = run(capsys, "--rollback")
    assert (code, err) == (0, "")
    assert out == "verdict 0004: returned to the shipped surrogate, as it was wished\n"
    assert run(capsys, "--quiet") == (0, "", "")
    assert [verdict.decision for verdict in verdicts()] == ["promoted", "kept", "kept", "rolled back", "kept"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nope.jsonl"], "nope.jsonl: no such file or folder"),
        (["--rollback"], "--rollback must have a promotion to take back, got the shipped surrogate"),
        (["--rollback", "night.jsonl"], "--rollback must stand alone, got logs too"),
        ([""], "argument LOG: must be a path, got an empty text (see tuner retrain --help)"),
    ],
)
def test_an_error_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *arguments) == (2, "", f"tuner: {line}\n")
    assert verdicts() == []


def test_a_folder_that_is_named_and_holds_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not the one that searches write to."""
    (tmp_path / "evaluatoins").mkdir()
    line = f"tuner: {tmp_path}/evaluatoins: must hold logs of searches, got none\n"
    assert run(capsys, str(tmp_path / "evaluatoins")) == (2, "", line)
    assert verdicts() == []


@pytest.mark.parametrize("given", [True, False])
def test_logs_of_which_no_line_is_known_are_an_error(
    given: bool, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scan that was taken for a log, or what a newer version left: a nightly job must not pass over it for ever."""
    log = written(own / "night.jsonl", NEW_SETS[:1])
    log.write_text(log.read_text().replace('{"config"', '{"newer":1,"config"'))
    count = len(log.read_text().splitlines())
    line = f"tuner: {log}: line 1: newer is not a known key; known: config metrics spread traits origin failure"
    arguments = [str(log)] if given else []
    text = f"{line}; none of {count} lines is an evaluation that this version knows\n"
    assert run(capsys, "--quiet", *arguments) == (2, "", text)
    assert verdicts() == []


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_judged(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = str(written(own / "night.jsonl", NEW_SETS))
    monkeypatch.setenv("TUNER_HOME", log)
    line = f"tuner: {log}/surrogate: must be a folder that can be written to ($TUNER_HOME may name another): "
    assert run(capsys, log) == (1, "", f"{line}Not a directory\n")


def test_a_log_that_may_not_be_read_is_warned_of_and_the_others_are_learned_from(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(own / "night.jsonl", LIKE_SETS)
    for name in ("a.jsonl", "b.jsonl.gz"):
        (own / name).symlink_to(own / "nowhere")
    code, out, err = run(capsys, "--quiet")
    assert (code, out) == (0, "")
    assert err == f"tuner: warning: {own / 'a.jsonl'}: must be readable; 2 such logs are not learned from\n"
    assert verdicts()[-1].log["new_datasets"] == 4


def learn(home: str, shipped: str) -> None:
    """Retrain where another log is shipped, and leave a file once it judges."""
    os.environ["TUNER_HOME"] = home
    champion._shipped = lambda: Path(shipped)
    print("ready", flush=True)
    retrain(notify=lambda text: Path(home, "judging").touch() if text.startswith("judging") else None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("until", "pauses"),
    [
        ("judging", [0.1]),
        ("surrogate/logs/.*", [0.0]),
        ("surrogate/logs/*.gz", [0.0]),
        ("surrogate/verdicts/*", [0.0, 0.1]),
    ],
)
def test_killed_at_any_moment_it_leaves_a_champion_and_verdicts(
    victims: Victims, tmp_path: Path, own: Path, until: str, pauses: list[float]
) -> None:
    written(own / "night.jsonl", NEW_SETS)
    for pause in pauses:
        past = len(verdicts())
        (own.parent / "judging").unlink(missing_ok=True)
        with victims.start(learn, own.parent, tmp_path / "shipped", fresh=until == "judging") as running:
            running.ready()
            process, latest = psutil.Process(running.pid), time.monotonic() + 120
            while process.status() != psutil.STATUS_ZOMBIE and len(list(own.parent.glob(until))) <= past:
                assert time.monotonic() < latest
                time.sleep(0.001)
            time.sleep(pause)
            running.end(signal.SIGKILL)
        assert [verdict.number for verdict in verdicts()] == sorted({verdict.number for verdict in verdicts()})
        assert len(verdicts()) - past in (0, 1)
        said: list[str] = []
        assert load_surrogate(said.append) is not None
        assert not any("cannot be rebuilt" in line for line in said)
    # What a kill left is in nobody's way.
    verdict = retrain()
    assert verdicts()[-1].number == verdict.number
    assert champion_log() == verdict.champion != SHIPPED
