"""The nightly example holds profiles to new scans, touches no live one, and may be killed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tuner import find_profile
from tuner.config import Blosc2, Config
from tuner.profile import load_profile

NIGHTLY = Path(__file__).parents[1] / "docs" / "examples" / "nightly.py"

#: The program; retraining is over at once, as it knows no other data than the searches of this test.
PROGRAM = """#!{python}
import sys
from pathlib import Path
from tuner.cli import main
if sys.argv[1] == "retrain":
    from tuner.search import champion
    champion._shipped = lambda: Path({shipped!r})
sys.exit(main())
"""

NIGHT = """
tuner = "{folder}/tuner"

[[instrument]]
profile = "profiles/old.yaml"
scans = "scans/*"
search = ["--space", "quick", "--budget", "9", "--unguided"]

[[instrument]]
profile = "profiles/good.yaml"
scans = "scans/alike.h5"
search = ["--space", "quick", "--budget", "9", "--unguided"]

[[instrument]]
profile = "profiles/good.yaml"
scans = "not/mounted/*"
search = []
"""


def counts(mean: float, seed: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.random.default_rng(seed).poisson(mean, (16, 64, 64)).astype(np.uint16)


def stored(path: Path, frames: np.ndarray[Any, Any], minutes: float = 60, keep: int | None = None) -> Path:
    """A scan that was written so many minutes ago, of which so many bytes are left."""
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = frames
    if keep is not None:
        os.truncate(path, keep)
    os.utime(path, (time.time() - 60 * minutes,) * 2)
    return path


@dataclass
class Night:
    """A facility, and how to run its nightly job."""

    folder: Path

    @property
    def journal(self) -> list[tuple[str, dict[str, Any]]]:
        return [tuple(json.loads(line)) for line in (self.folder / "nightly.jsonl").read_text().splitlines()]

    @property
    def profiles(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "profiles").iterdir()}

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(NIGHTLY), str(self.folder / "nightly.toml")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TUNER_HOME": str(self.folder / "home")},
            start_new_session=True,
        )

    def run(self) -> tuple[int, str]:
        process = self.start()
        out, err = process.communicate()
        assert err == ""
        return process.returncode, out


@pytest.fixture(scope="module")
def facility(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """Two profiles with the evidence of a search, of which `old` is set to what hardly compresses, and new scans."""
    folder = tmp_path_factory.mktemp("nightly")
    for name in ("profiles", "scans", "shipped"):
        (folder / name).mkdir()
    reference = stored(folder / "reference.h5", counts(20, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(folder / "home"))
        found = find_profile(
            [reference],
            space="quick",
            budget="9",
            surrogate=False,
            name="good",
            maximize=["ratio"],
            require=["ratio >= 1.65"],
        )
    shutil.copy(found.log, folder / "shipped")
    program = folder / "tuner"
    program.write_text(PROGRAM.format(python=sys.executable, shipped=str(folder / "shipped")))
    program.chmod(0o755)
    (folder / "nightly.toml").write_text(NIGHT.format(folder=folder))
    found.profile.save(folder / "profiles" / "good.yaml")
    old = Config((1, -1, -1), Blosc2("lz4", clevel=9, filters=("shuffle",)))
    replace(found.profile, name="old", config=old).save(folder / "profiles" / "old.yaml")
    stored(folder / "scans" / "alike.h5", counts(20, 1), 400)
    stored(folder / "scans" / "brighter.h5", counts(4000, 2), 300)
    stored(folder / "scans" / "other.h5", counts(20, 3)[:, :32], 200)
    stored(folder / "scans" / "fresh.h5", counts(9000, 5), 0)
    stored(folder / "scans" / "cut.h5", counts(20, 4), 100, keep=90_000)
    return Night(folder)


@dataclass(frozen=True)
class Outcome:
    """What a night did that was killed once, and then run to its end."""

    before: dict[str, bytes]
    exit_code: int
    report: str
    kept: tuple[str, dict[str, Any]]
    """What the journal had when the job was killed."""


@pytest.fixture(scope="module")
def outcome(facility: Night) -> Outcome:
    before = facility.profiles
    process = facility.start()
    journal = facility.folder / "nightly.jsonl"
    while not (journal.exists() and journal.read_text().endswith("\n")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = facility.journal[0]
    with journal.open("a") as file:
        file.write('["torn", {"exit_co')
    return Outcome(before, *facility.run(), kept)


def test_a_broken_promise_leads_to_a_candidate_beside_the_live_profile(facility: Night, outcome: Outcome) -> None:
    assert outcome.exit_code == 4
    after = facility.profiles
    assert {name: after[name] for name in outcome.before} == outcome.before, "no live profile was touched"
    assert {*after} - {*outcome.before} == {"old.candidate.yaml"}
    candidate = load_profile(facility.folder / "profiles" / "old.candidate.yaml", strict=True)
    live = load_profile(facility.folder / "profiles" / "old.yaml", strict=True)
    assert candidate.evidence["goal"] == live.evidence["goal"]
    assert candidate.name.startswith("old-2")
    old, _, good = outcome.report.partition("profiles/good.yaml: ")
    assert old.startswith("profiles/old.yaml: a promise is broken\n")
    assert good.startswith("all promises hold\n  1 scans verified: ratio ")
    assert "\nprofiles/good.yaml: a scan, or the profile, cannot be used\n" in good
    assert "not/mounted/*: must match a scan that is finished, got none\nretrain: the champion stays: " in good
    brighter, cut = (next(line for line in old.splitlines() if name in line) for name in ("brighter.h5", "cut.h5"))
    assert "the profile promises ratio >= 1.65" in brighter
    assert "is cut or damaged" in cut
    assert "other.h5: the profile is for frames of shape [64, 64], got [32, 64]" in old
    assert "fresh.h5" not in outcome.report, "it may still be being written"
    assert "promise broken on 0, 1; ratio " in old
    assert old.endswith(": better\n")


def test_a_run_that_was_killed_goes_on(facility: Night, outcome: Outcome) -> None:
    lines = (facility.folder / "nightly.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == [*outcome.kept]
    assert lines[1].startswith('["torn"')
    keys = [json.loads(line)[0] for line in (lines[0], *lines[2:])]
    assert len(keys) == len({*keys}), "nothing was verified twice"
    assert sum("alike.h5" in key for key in keys) == 2, "by each profile"


def test_another_run_at_the_same_time_is_refused(facility: Night) -> None:
    with (facility.folder / "nightly.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = facility.start()
        assert process.communicate() == ("", "nightly: another run is at work\n")
    assert process.returncode == 1


@pytest.mark.slow
def test_the_next_night_says_so_again_until_the_candidate_is_adopted(facility: Night, outcome: Outcome) -> None:
    journal = (facility.folder / "nightly.jsonl").read_text()
    candidate = facility.folder / "profiles" / "old.candidate.yaml"
    aside = candidate.rename(facility.folder / "aside.yaml")
    code, report = facility.run()
    assert (facility.folder / "nightly.jsonl").read_text() == journal, (
        "no scan is verified twice, no search is repeated"
    )
    assert code == 4
    assert ": better, but it was rejected" in report
    aside.rename(facility.folder / "profiles" / "old.yaml")
    code, report = facility.run()
    assert code == 2, "the scans that cannot be read are left"
    assert report.startswith("profiles/old.yaml: a scan, or the profile, cannot be used\n")
    assert not candidate.exists()
