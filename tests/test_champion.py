"""The champion is rebuilt whenever its file is not what this installation made; nothing foreign is unpickled."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import synthetic_log as world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuner.errors import InputError
from tuner.evaluation import Evaluation, Log, read_log
from tuner.search import champion as definition
from tuner.search.champion import fitted, keep_log, load_surrogate, named_log, shipped_log, training_log
from tuner.search.model_cache import cached
from tuner.search.sift import sift
from tuner.search.surrogate import Data, Surrogate, dataset_of, is_usable
from tuner.search.verdict import SHIPPED, Verdict, champion_log, folder, verdicts, write_verdict

pytestmark = pytest.mark.usefixtures("empty_home")

DATA = Data(world.SHAPE, np.dtype(world.DTYPE), next(world.evaluations("new", 0.8, 1.0)).traits)


@pytest.fixture(scope="module")
def log() -> list[Evaluation]:
    return world.log(8)


@pytest.fixture
def promoted(log: list[Evaluation]) -> str:
    """A champion that learned from the log, as a promotion leaves it, without its model."""
    name = keep_log(log)
    write_verdict(Verdict("promoted", "it is better", name, SHIPPED, "2026-01-01T00:00:00+00:00"))
    return name


def guessed(surrogate: Surrogate | None) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    assert surrogate is not None
    return np.stack(surrogate.predict(world.configs(), DATA))


def model_of(_: str) -> Path:
    (path,) = (folder() / "cache" / str(os.getuid()) / "models").iterdir()
    return path


def test_what_is_promoted_is_loaded_and_fitted_once(promoted: str) -> None:
    said: list[str] = []
    first = load_surrogate(said.append)
    again = load_surrogate(said.append)
    assert len(said) == 1
    assert said[0].startswith("training the surrogate on ")
    assert np.array_equal(guessed(first), guessed(again))
    assert champion_log() == promoted


def test_a_model_is_rebuilt_where_it_was_removed(promoted: str) -> None:
    first = guessed(load_surrogate())
    model_of(promoted).unlink()
    assert np.array_equal(guessed(load_surrogate()), first)


class Bomb:
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_planted_pickle_is_never_loaded(promoted: str, tmp_path: Path) -> None:
    first = guessed(load_surrogate())
    planted, content = tmp_path / "planted", pickle.dumps(Bomb(tmp_path / "planted"))
    pickle.loads(content)
    assert planted.exists()
    planted.unlink()
    model = model_of(promoted)
    whole = model.read_bytes()
    for file in (content, whole[:32] + content, bytes(32) + content):
        model.write_bytes(file)
        assert np.array_equal(guessed(load_surrogate()), first)
        assert not planted.exists()
        assert model.read_bytes() == whole


def test_what_another_installation_signed_is_made_anew(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    cached(theirs, "model", lambda: Bomb(planted))
    cached(ours, "other", lambda: 0)
    (ours / "models" / "model").write_bytes((theirs / "models" / "model").read_bytes())
    assert cached(ours, "model", lambda: 42) == 42
    assert not planted.exists()


def test_a_model_under_another_name_is_made_anew(tmp_path: Path) -> None:
    assert cached(tmp_path, "old version", lambda: "old") == "old"
    (tmp_path / "models" / "old version").rename(tmp_path / "models" / "new version")
    assert cached(tmp_path, "new version", lambda: "new") == "new"
    assert cached(tmp_path, "new version", lambda: "never made") == "new"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cut_or_changed_file_is_made_anew(tmp_path: Path, data: st.DataObject) -> None:
    assert cached(tmp_path, "model", lambda: list(range(50))) == list(range(50))
    path = tmp_path / "models" / "model"
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytes([whole[place] ^ data.draw(st.integers(1, 255))])
    path.write_bytes(whole[:place] if data.draw(st.booleans()) else whole[:place] + flipped + whole[place + 1 :])
    assert cached(tmp_path, "model", lambda: "made anew") == "made anew"
    path.write_bytes(whole)


def test_the_key_is_the_users_alone_and_another_is_drawn_where_it_is_not(tmp_path: Path) -> None:
    cached(tmp_path, "model", lambda: "first")
    key = tmp_path / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(key.read_bytes()) == 32
    key.chmod(0o644)
    assert cached(tmp_path, "model", lambda: "second") == "second"
    assert key.stat().st_mode & 0o777 == 0o600
    key.write_bytes(b"short")
    assert cached(tmp_path, "model", lambda: "third") == "third"
    assert cached(tmp_path, "model", lambda: "fourth") == "third"


def test_few_models_are_kept(tmp_path: Path) -> None:
    for index in range(8):
        cached(tmp_path, f"model {index}", lambda: 0)
        time.sleep(0.01)
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"model 5", "model 6", "model 7"}


def test_without_a_folder_to_write_to_it_is_made_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert [cached(tmp_path / "file" / "folder", "model", lambda made=made: made) for made in (1, 2)] == [1, 2]


def test_another_version_has_another_model(promoted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    load_surrogate(said.append)
    monkeypatch.setattr(definition.sklearn, "__version__", "0.0.1")
    load_surrogate(said.append)
    assert len(said) == 2
    assert len(list((folder() / "cache").rglob("*.model"))) == 2


def test_two_processes_at_once_both_have_it(promoted: str) -> None:
    program = "from tuner.search.champion import load_surrogate; s = load_surrogate(); assert s is not None"
    both = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert not list(folder().rglob("*.tmp"))


def test_where_the_promoted_log_is_lost_the_shipped_one_serves(home: Path, promoted: str) -> None:
    (kept,) = (folder() / "logs").iterdir()
    usable = any(map(is_usable, shipped_log()))
    for spoil in (lambda: kept.write_bytes(kept.read_bytes()[:100]), lambda: kept.write_bytes(b""), kept.unlink):
        spoil()
        said: list[str] = []
        surrogate = load_surrogate(said.append)
        assert "the shipped one serves" in said[0]
        assert (surrogate is not None) == usable
        with pytest.raises(InputError):
            named_log(promoted)


def test_a_log_is_kept_as_it_is_and_once(log: list[Evaluation]) -> None:
    name = keep_log(log)
    assert keep_log(log) == name
    assert named_log(name) == log
    assert [path.name for path in (folder() / "logs").iterdir()] == [f"{name}.jsonl.gz"]


def test_a_name_of_a_log_is_no_path(home: Path) -> None:
    write_verdict(Verdict("promoted", "", "../../evil", SHIPPED, ""))
    said: list[str] = []
    load_surrogate(said.append)
    assert "must be shipped or the digest of a log, got '../../evil'" in said[0]


def test_torn_verdicts_are_passed_over(promoted: str) -> None:
    (folder() / "verdicts" / "0002.json").write_text("")
    (folder() / "verdicts" / "0003.json").write_text('{"champion": 5}')
    (folder() / "verdicts" / "0004.json").write_text("[]")
    assert champion_log() == promoted
    assert write_verdict(Verdict("kept", "", promoted, promoted, "")).number == 5
    assert [verdict.number for verdict in verdicts()] == [1, 5]


def test_nothing_to_learn_from_is_said_by_fitting_only() -> None:
    name = keep_log(world.log(2))
    with pytest.raises(InputError, match="must hold 200 evaluations of 5 data sets"):
        fitted(name)


def test_the_shipped_log_is_what_the_package_holds() -> None:
    evaluations = shipped_log()
    assert all(isinstance(e, Evaluation) for e in evaluations)
    if evaluations:
        assert len({dataset_of(e) for e in evaluations}) >= 5
        assert {e.origin.get("baseline") for e in evaluations if e.config is None} >= {"bslz4", "gzip"}


def test_training_log_reads_files_and_folders(tmp_path: Path, log: list[Evaluation]) -> None:
    with Log(tmp_path / "logs" / "night" / "one.jsonl") as file:
        for evaluation in log:
            file.append(evaluation)
    assert training_log([tmp_path / "logs"]) == training_log([tmp_path / "logs" / "night" / "one.jsonl"])
    assert len(training_log([tmp_path / "logs"])) == len(log)
    with pytest.raises(InputError, match="nope: no such file or folder"):
        training_log([tmp_path / "logs", tmp_path / "nope"])


def test_sifting_twice_is_sifting_once_and_its_memory_is_bounded() -> None:
    many = (e for index in range(40) for e in world.evaluations("one", 0.8, 1.0, seed=index))
    sifted = sift(many)
    assert len(sifted.evaluations) == 150 + 2
    assert sift(sifted.evaluations).evaluations == sifted.evaluations
    assert sift(sifted.evaluations, known=sifted.evaluations).evaluations == []


def test_a_log_comes_back_from_its_file(tmp_path: Path, log: list[Evaluation]) -> None:
    with Log(tmp_path / "log.jsonl") as file:
        for evaluation in log:
            file.append(evaluation)
    assert list(read_log(tmp_path / "log.jsonl")) == log
