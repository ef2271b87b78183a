"""The log remembers every evaluation whole, whatever happens to the process that appends and to the file."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tuner import evaluation as evaluation_module
from tuner.config import CHAINS, CODECS, Blosc2, Config
from tuner.document import dump_yaml, parse_yaml
from tuner.errors import InputError, TunerError, TunerWarning
from tuner.evaluation import METRICS, Evaluation, Log, check_room, home, latest_logs, read_log

numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
keys = texts.filter(lambda key: key.isprintable() and key != "")
configs = st.builds(
    Config,
    chunks=st.tuples(st.integers(1, 99), st.integers(1, 99)),
    blosc2=st.builds(
        Blosc2, codec=st.sampled_from(list(CODECS)), clevel=st.integers(0, 9), filters=st.sampled_from(CHAINS)
    ),
)
evaluations = st.builds(
    Evaluation,
    config=st.none() | configs,
    metrics=st.dictionaries(st.sampled_from(list(METRICS)), numbers),
    spread=st.dictionaries(
        st.sampled_from(list(METRICS)), st.tuples(numbers, numbers).map(lambda ends: (min(ends), max(ends)))
    ),
    traits=st.dictionaries(keys, numbers, max_size=3),
    origin=st.dictionaries(keys, st.none() | st.booleans() | numbers | texts | st.lists(texts, max_size=2), max_size=3),
    failure=st.none() | texts,
)

#: Lines that no version of ours writes, or a later one.
JUNK = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"5",
    b'"config"',
    b"{}",
    b"\x80\xff\x00",
    b"[" * 10**5,
    b'{"config":' * 10**4,
    b'{"config":null}',
    b'{"config":null,"metrics":[]}',
    b'{"config":null,"metrics":{"ratio":NaN}}',
    b'{"config":null,"metrics":{"ratio":Infinity}}',
    b'{"config":null,"metrics":{"ratio":1e999}}',
    b'{"config":null,"metrics":{"ratio":true}}',
    b'{"config":null,"metrics":{"ratio":"2"}}',
    b'{"config":null,"metrics":{"ratio":1' + b"0" * 400 + b"}}",
    b'{"config":null,"metrics":{"ratio":1' + b"0" * 5000 + b"}}",
    b'{"config":null,"metrics":{},"spread":{"ratio":[2,1]}}',
    b'{"config":null,"metrics":{},"spread":{"ratio":1}}',
    b'{"config":null,"metrics":{},"origin":[["a",1]]}',
    b'{"config":null,"metrics":{},"failure":5}',
    b'{"config":null,"metrics":{},"quality":{}}',
    b'{"config":{"stages":[]},"metrics":{}}',
    b'{"config":{"blosc2":{"codec":"lz77"}},"metrics":{}}',
    b'{"config":{"blosc2":{"filters":["shuffle","delta"]}},"metrics":{}}',
    b'{"config":{"chunks":5},"metrics":{}}',
)


def evaluation_of(clevel: int) -> Evaluation:
    return Evaluation(Config((1, -1, -1), Blosc2(clevel=clevel)), {"ratio": 2.0}, origin={"data": "abc"})


@given(evaluations)
@example(Evaluation(None, {"ratio": 1e-05}))
def test_from_dict_is_the_inverse_of_to_dict(evaluation: Evaluation) -> None:
    assert Evaluation.from_dict(evaluation.to_dict()) == evaluation
    assert Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict()))) == evaluation
    assert Evaluation.from_dict(parse_yaml(dump_yaml(evaluation.to_dict()), "")) == evaluation


@given(evaluations)
def test_low_and_high_are_around_what_a_requirement_may_rest_on(evaluation: Evaluation) -> None:
    for name in METRICS:
        low, high = evaluation.low(name), evaluation.high(name)
        if name in evaluation.spread:
            assert (low, high) == evaluation.spread[name]
        elif name in evaluation.metrics:
            assert low == high == evaluation.metrics[name]
        else:
            assert math.isnan(low)
            assert math.isnan(high)


@given(st.lists(evaluations, max_size=5))
def test_what_is_appended_is_read_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, appended: list[Evaluation]
) -> None:
    path = tmp_path_factory.mktemp("log") / "new" / "run.jsonl"
    with Log(path) as log:
        for evaluation in appended:
            log.append(evaluation)
    assert list(read_log(path)) == appended


def test_the_name_of_any_file_is_remembered(tmp_path: Path) -> None:
    evaluation = Evaluation(None, {"ratio": 1.0}, origin={"dataset": os.fsdecode(b"sc\xffn.npy")})
    with Log(tmp_path / "run.jsonl") as log:
        log.append(evaluation)
    assert list(read_log(tmp_path)) == [evaluation]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.sampled_from([0.0, 1.0])), max_size=8))
def test_what_lines_have_in_common_is_restored(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[str, str, float]]
) -> None:
    path = tmp_path_factory.mktemp("log") / "run.jsonl"
    appended = [
        Evaluation(None, {"ratio": 1.0}, traits={"mean": mean}, origin={"data": data, "machine": {"host": host}})
        for data, host, mean in runs
    ]
    with Log(path) as log:
        for evaluation in appended:
            log.append(evaluation)
    assert list(read_log(path)) == appended
    assert list(read_log(path, containing=['"a"'])) == [e for e in appended if e.origin["data"] == "a"]


def test_a_folder_is_read_with_all_below_it(tmp_path: Path) -> None:
    for index, name in enumerate(("a.jsonl", "b/c.jsonl", "b/d/e.jsonl", "b/ignored.txt")):
        with Log(tmp_path / name) as log:
            log.append(evaluation_of(index))
    assert list(read_log(tmp_path)) == [evaluation_of(index) for index in range(3)]
    assert list(read_log(tmp_path / "none")) == []


def test_only_lines_that_contain_a_text_are_read(tmp_path: Path) -> None:
    with Log(tmp_path / "run.jsonl") as log:
        log.append(evaluation_of(1))
        log.append(Evaluation(None, {"ratio": 1.0}, origin={"data": "xyz"}))
    assert [e.origin["data"] for e in read_log(tmp_path, containing=["xyz", "none"])] == ["xyz"]


@pytest.mark.parametrize("junk", JUNK)
def test_lines_that_are_not_ours_are_skipped(junk: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Log(path) as log:
        log.append(evaluation_of(1))
        with path.open("ab") as file:
            file.write(junk + b"\n")
        log.append(evaluation_of(2))
    assert list(read_log(path)) == [evaluation_of(1), evaluation_of(2)]


@given(st.binary(max_size=100))
def test_any_bytes_are_read_without_an_error(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("log") / "run.jsonl"
    path.write_bytes(junk)
    assert list(read_log(path)) == []


def test_what_is_skipped_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    newer = json.dumps({**evaluation_of(1).to_dict(), "verdict": 1})
    path.write_text(f'{json.dumps(evaluation_of(1).to_dict())}\n\n{newer}\n{{"config": nu')
    said: list[tuple[str, str]] = []
    assert list(read_log(path, skipped=lambda *what: said.append(what))) == [evaluation_of(1)]
    (newer_place, newer_wrong), torn = said
    assert newer_place == f"{path}: line 3"
    assert newer_wrong.startswith("verdict is not a known key")
    assert torn == (f"{path}: line 4", "is torn, or no JSON")


def packed(path: Path, count: int) -> bytes:
    """A compressed log; its lines do not repeat each other, so that a part of it holds some of them."""
    with Log(path) as log:
        for index in range(count):
            log.append(replace(evaluation_of(1), origin={"data": random.Random(index).randbytes(200).hex()}))
    return gzip.compress(path.read_bytes())


@pytest.mark.parametrize("damage", ["cut", "changed", "no gzip"])
def test_a_damaged_log_is_named_and_read_as_far_as_it_goes(damage: str, tmp_path: Path) -> None:
    whole = packed(tmp_path / "whole.jsonl", 2000)
    half = len(whole) // 2
    path = tmp_path / "log.jsonl.gz"
    content = {"cut": whole[:half], "changed": whole[:half] + b"junk" * 50 + whole[half + 200 :], "no gzip": b"junk"}
    path.write_bytes(content[damage])
    with pytest.warns(TunerWarning) as caught:
        found = list(read_log(path))
    read = int(str(caught[0].message).split()[-4])
    assert [str(w.message) for w in caught] == [f"{path}: is cut or damaged: only its first {read} lines are read"]
    assert len(found) in (read, read - 1) if damage == "cut" else len(found) <= read
    assert (len(found) == 0) if damage == "no gzip" else (500 < len(found) < 1500)


def test_of_a_log_without_end_the_beginning_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.jsonl"
    packed(path, 10)
    path.write_bytes(path.read_bytes() + b"x" * (4 << 20))  # one line that would not fit
    monkeypatch.setattr(evaluation_module, "_MOST_NBYTES", 2 << 20)
    with pytest.warns(TunerWarning, match=r"run.jsonl: must be of at most 2 MiB: only its first \d+ lines are read$"):
        assert len(list(read_log(path))) == 10


def test_the_latest_logs_that_fit_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_module, "_MOST_NBYTES", 1000)
    for name in ("b/20260101.jsonl", "a/20260102.jsonl", "b/20260103.jsonl", "a/20260104.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(400))
    names = ["20260102.jsonl", "20260103.jsonl", "20260104.jsonl"]
    found, earlier = latest_logs([tmp_path / "a", tmp_path / "b", tmp_path])
    assert ([path.name for path in found], earlier) == (names, 1)
    (tmp_path / "20260105.jsonl.gz").write_bytes(bytes(2000))
    found, earlier = latest_logs([tmp_path])
    assert ([path.name for path in found], earlier) == (["20260105.jsonl.gz"], 4)
    assert latest_logs([tmp_path / "none"]) == ([tmp_path / "none"], 0)


def test_a_torn_last_line_is_skipped_wherever_it_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Log(path) as log:
        log.append(evaluation_of(1))
        log.append(evaluation_of(2))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert list(read_log(path)) == [evaluation_of(1)]


def test_what_follows_a_torn_line_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Log(path) as log:
        log.append(evaluation_of(1))
    path.write_bytes(path.read_bytes()[:-20])
    with Log(path) as log:
        log.append(evaluation_of(2))
    assert list(read_log(path)) == [evaluation_of(2)]


APPENDING = """
import sys
from pathlib import Path
from tuner.config import Blosc2, Config
from tuner.evaluation import Evaluation, Log
with Log(Path(sys.argv[1])) as log:
    for index in range(int(sys.argv[2])):
        log.append(Evaluation(Config((1 + index, -1, -1), Blosc2()), {"ratio": 2.0}, origin={"run": sys.argv[1]}))
        print(index, flush=True)
"""


def appending(path: Path, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", APPENDING, path, str(count)], stdout=subprocess.PIPE)


def test_two_processes_append_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"run{index}.jsonl" for index in range(2)]
    children = [appending(path, 300) for path in paths]
    for child in children:
        child.communicate()
    by_run = {
        run: [e.config.chunks[0] for e in group if e.config]
        for run, group in itertools.groupby(read_log(tmp_path), key=lambda e: e.origin["run"])
    }
    assert by_run == {str(path): list(range(1, 301)) for path in paths}


def test_a_kill_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    chance = random.Random(1)
    for turn in range(10):
        path = tmp_path / f"run{turn}.jsonl"
        with appending(path, 10**6) as child:
            assert child.stdout
            child.stdout.readline()
            time.sleep(chance.uniform(0, 0.05))
            os.kill(child.pid, signal.SIGKILL)
            acknowledged = 1 + child.stdout.read().count(b"\n")
        frames = [e.config.chunks[0] for e in read_log(path) if e.config]
        assert frames == list(range(1, len(frames) + 1))
        assert len(frames) >= acknowledged


def test_a_full_disk_is_told_before_a_run_begins(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "evaluations"
    check_room(folder)
    assert [*tmp_path.rglob("*")] == [folder.parent, folder]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(TunerError, match=r"evaluations: must be a folder .*: File too large"):
            check_room(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_follows_a_line_that_found_no_room_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Log(path) as log:
        log.append(evaluation_of(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
        try:
            with pytest.raises(TunerError, match="the log cannot be written"):
                log.append(evaluation_of(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        log.append(evaluation_of(3))
    assert list(read_log(path)) == [evaluation_of(1), evaluation_of(3)]


def test_a_log_that_cannot_be_written_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Log(tmp_path / "file" / "run.jsonl") as log, pytest.raises(TunerError, match="the log cannot be written: "):
        log.append(evaluation_of(1))
    with Log(Path("/dev/full")) as log, pytest.raises(TunerError, match=r"^/dev/full: the log cannot be written"):
        log.append(evaluation_of(1))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"metrics": {"ratio": math.nan}}, "run: metrics.ratio must be a finite number, got nan"),
        ({"metrics": None}, "run: metrics must be a mapping, got nothing"),
        ({"spread": {"encode_mb_s": [2, 1]}}, "run: spread.encode_mb_s must be [low, high], got [2, 1]"),
        ({"traits": {"mean": "1"}}, "run: traits.mean must be a finite number, got '1'"),
        ({"failure": 1}, "run: failure must be a text, got 1"),
        ({"config": {"blosc2": {"clevel": 10}}}, "run: config.blosc2.clevel must be in 0..9, got 10"),
        ({"other": 1}, "run: other is not a known key"),
    ],
)
def test_a_mistake_is_told_with_its_place(changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        Evaluation.from_dict({**evaluation_of(1).to_dict(), **changed}, "run:")
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TUNER_HOME": "/a", "XDG_STATE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_STATE_HOME": "/b", "HOME": "/c"}, "/b/tuner"),
        ({"TUNER_HOME": "~/a b", "HOME": "/c"}, "/c/a b"),
        ({"TUNER_HOME": "", "XDG_STATE_HOME": "", "HOME": "/c"}, "/c/.local/state/tuner"),
    ],
)
def test_what_is_learnt_lives_where_the_user_says(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TUNER_HOME", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert home() == Path(expected)


def test_a_user_without_a_home_is_told_to_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNER_HOME", "~nobody of that name")
    with pytest.raises(InputError, match="TUNER_HOME must name a folder, as this user has no home, got none"):
        home()
