"""Fixtures that several test files share."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from killing import Victims

from tuner.measure import verify
from tuner.search import evidence, run
from tuner.search.champion import load_surrogate

#: A program that tests run, not one of them.
collect_ignore = ["stand_in_codecs.py"]

# A shell has what it starts in the background ignore interrupts, and children inherit that; some are to be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)


# A busy machine is no failure.
settings.register_profile("tuner", deadline=None)
settings.load_profile("tuner")


@pytest.fixture(scope="session", autouse=True)
def _few_repeats() -> Iterator[None]:
    """Searches repeat what they time less often than those of users: no test claims how exact a speed is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "SEARCH_WINDOWS", 2)
        for module in (run, evidence, verify):
            patch.setattr(module, "FINAL_WINDOWS", 3)
        yield


@pytest.fixture
def real_data() -> Path:
    """The folder of frames from real instruments; the test is skipped where there is none."""
    folder = os.environ.get("TUNER_REAL_DATA")
    if not folder:
        pytest.skip("real data: set TUNER_REAL_DATA to the folder that holds it")
    return Path(folder)


@pytest.fixture(scope="session")
def victims() -> Iterator[Victims]:
    """Processes to be killed."""
    victims = Victims()
    yield victims
    victims.close()


@pytest.fixture
def few(tmp_path: Path) -> Callable[[Path], Path]:
    """What is in a path: a file, or the first files of a series, as a large one takes minutes to unpack."""

    def few(path: Path) -> Path:
        if path.is_file():
            return path
        folder = tmp_path / path.name
        folder.mkdir()
        for file in sorted(path.iterdir())[:2]:
            (folder / file.name).symlink_to(file)
        return folder

    return few


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose shipped surrogate is fitted, as a user has it after the first search."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return trained(tmp_path_factory.mktemp("trained"))
    # Processes that share the tests share it: the first fits while the others wait.
    home = tmp_path_factory.getbasetemp().parent / "trained"
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return trained(home)


def trained(home: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        load_surrogate()
    return home


@pytest.fixture
def home(trained_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, that this test's searches use."""
    shutil.copytree(trained_home, tmp_path / "home", copy_function=os.link)
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of a user who never searched: no log, and no surrogate that is fitted."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
