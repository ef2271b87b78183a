"""What is left out of a line of the log comes back when it is read, and never from other data."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.config import Config
from tuner.errors import TunerWarning
from tuner.evaluation import Evaluation, Log, read_log

MACHINES = ({}, {"cpu": "a"}, {"cpu": "b"})
evaluations = st.builds(
    lambda data, traits, machine, extra: Evaluation(
        Config(), {"ratio": 2.0}, traits=traits, origin={**data, **machine, **extra}
    ),
    data=st.sampled_from([{}, {"data": "a1"}, {"data": "b2"}]),
    traits=st.sampled_from([{}, {"mean": 1.0}, {"mean": 2.0}]),
    machine=st.sampled_from([{}, *({"machine": machine, "versions": {"tuner": "1"}} for machine in MACHINES)]),
    extra=st.sampled_from([{}, {"timing": "alone"}]),
)


def written(path: Path, several: list[Evaluation]) -> list[bytes]:
    with Log(path) as log:
        for evaluation in several:
            log.append(evaluation)
    return path.read_bytes().splitlines(keepends=True)


@given(several=st.lists(evaluations, max_size=12))
def test_what_is_left_out_comes_back(several: list[Evaluation], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("log") / "run.jsonl"
    if several:
        written(path, several)
    assert list(read_log(path)) == several


@given(several=st.lists(evaluations, min_size=2, max_size=12), data=st.data())
def test_a_lost_line_gives_no_other_data_s_traits(
    several: list[Evaluation], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "run.jsonl"
    lines = written(path, several)
    lost = data.draw(st.integers(0, len(lines) - 1))
    lines[lost] = lines[lost][: len(lines[lost]) // 2] + b"\n"
    path.write_bytes(b"".join(lines))
    kept = several[:lost] + several[lost + 1 :]
    found = list(read_log(path))
    assert len(found) == len(kept)
    for read, wrote in zip(found, kept, strict=True):
        same = [e.traits for e in several if e.origin.get("data") == wrote.origin.get("data")]
        assert read.traits == wrote.traits or not read.traits or read.traits in same


def test_a_hundred_lines_of_the_same_data_say_it_once(tmp_path: Path) -> None:
    traits = {f"trait_{index}": index / 7 for index in range(80)}
    origin = {"data": "f" * 64, "machine": {"cpu": "x" * 40}, "versions": {"blosc2": "4.14.1"}}
    lines = written(tmp_path / "run.jsonl", [Evaluation(Config(), {"ratio": 2.0}, {}, traits, origin)] * 100)
    assert len(lines[0]) > 1500
    assert all(len(line) < 400 for line in lines[1:])


def test_only_lines_of_some_data_are_restored_too(tmp_path: Path) -> None:
    several = [Evaluation(None, {"ratio": 1.0}, {}, {"mean": float(d == "a1")}, {"data": d}) for d in ("a1", "b2") * 3]
    written(tmp_path / "run.jsonl", several)
    assert list(read_log(tmp_path, containing=["b2"])) == several[1::2]


@pytest.mark.parametrize("same", [5, "traits", ["traits", [], None, {}], [["machine"]], {"traits": 1}])
def test_a_line_that_names_nonsense_is_read_or_skipped(same: Any, tmp_path: Path) -> None:
    first = Evaluation(None, {"ratio": 1.0}, {}, {"mean": 1.0}, {"data": "a1"})
    lines = [first.to_dict(), {**first.to_dict(), "same": same}]
    (tmp_path / "run.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list(read_log(tmp_path)) == [first, first]


def test_compressed_logs_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    several = [Evaluation(Config(), {"ratio": 1.0 + index}, {}, {"mean": 1.0}, {"data": "a1"}) for index in range(500)]
    lines = written(tmp_path / "plain.jsonl", several)
    packed = gzip.compress(b"".join(lines))
    (tmp_path / "plain.jsonl").unlink()
    (tmp_path / "run.jsonl.gz").write_bytes(packed)
    assert list(read_log(tmp_path)) == several
    (tmp_path / "run.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.warns(TunerWarning, match="run.jsonl.gz: is cut or damaged: only its first "):
        assert list(read_log(tmp_path)) == several[: len(list(read_log(tmp_path)))]
    for junk in (b"no gzip", packed[:-4] + b"junk", packed[:20] + b"\xff" * 50):
        (tmp_path / "run.jsonl.gz").write_bytes(junk)
        with pytest.warns(TunerWarning, match="run.jsonl.gz: is cut or damaged: only its first "):
            list(read_log(tmp_path))
    (tmp_path / "run.jsonl.gz").write_bytes(b"")
    assert list(read_log(tmp_path)) == []
