"""Killed at any moment, a search leaves a log that can be read, and no profile or a whole one; `--resume` goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from killing import Victims

import tuner.search.find  # noqa: F401  what the program loads when it searches
from tuner.cli import main
from tuner.evaluation import read_log
from tuner.profile import load_profile

pytestmark = pytest.mark.usefixtures("empty_home")

#: The program as users run it.
TUNER = Path(sys.executable).with_name("tuner")

SPACE = """
chunks: {choose: [[1, ...], [4, ...]]}
blosc2:
  codec: zstd
  clevel: {range: [1, 3]}
  filters: {choose: [[shuffle], [bitshuffle], [shuffle, bytedelta]]}
"""
CONFIGURATIONS = 2 * 3 * 3


@pytest.fixture
def search(tmp_path: Path) -> list[str]:
    """A search through a space of a few configurations that take a while each."""
    frames = np.random.default_rng(0).poisson(100, (16, 64, 64)).astype("uint16")
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["entry/data/data"] = frames
    (tmp_path / "space.yaml").write_text(SPACE)
    options = ["--space", str(tmp_path / "space.yaml"), "--resume", "--budget", "10m", "--jobs", "1", "--unguided"]
    return ["search", str(tmp_path / "scan.h5"), "-o", str(tmp_path / "scan.yaml"), *options]


def run(home: str, *arguments: str) -> None:
    os.environ["TUNER_HOME"] = home
    print("ready", flush=True)
    sys.exit(main([*arguments, "--quiet"]))


def wait_until(there: Callable[[], bool]) -> None:
    latest = time.monotonic() + 120
    while not there():
        assert time.monotonic() < latest
        time.sleep(0.02)


def records(home: Path) -> list[dict[str, Any]]:
    """All whole lines of all logs; that they are JSON is a part of the claim."""
    texts = [path.read_text() for path in sorted((home / "evaluations").glob("*.jsonl"))]
    return [json.loads(line) for text in texts for line in text.splitlines(keepends=True) if line.endswith("\n")]


def searched(home: Path) -> Counter[str]:
    """How often each configuration was measured in searching, baselines and finalists aside."""
    return Counter(
        json.dumps(record["config"], sort_keys=True)
        for record in records(home)
        if record["config"] and not record["origin"].get("finalist")
    )


def test_killed_again_and_again_a_search_measures_nothing_twice_and_finishes(
    victims: Victims, tmp_path: Path, search: list[str]
) -> None:
    moments = random.Random(0)
    home, profile = tmp_path / "home", tmp_path / "scan.yaml"

    def interrupted(there: Callable[[], bool], after: float, fresh: bool = False) -> None:
        with victims.start(run, home, *search, fresh=fresh) as running:
            running.ready()
            wait_until(there)
            time.sleep(after)
            running.end(signal.SIGKILL)
        assert set(searched(home).values()) <= {1}
        assert len(list(read_log(home / "evaluations"))) == len(records(home))
        if profile.exists():
            load_profile(profile, strict=True)

    for more in (0, 1, 0, 2, 2):  # with no more than what was measured before, it begins or measures baselines
        enough = min(searched(home).total() + more, CONFIGURATIONS)
        interrupted(lambda enough=enough: searched(home).total() >= enough, moments.uniform(0, 0.1), fresh=more == 1)
    assert 5 <= searched(home).total() <= CONFIGURATIONS
    # As if the last kill had come in the middle of a write.
    log = max((home / "evaluations").iterdir(), key=lambda path: path.stat().st_mtime)
    with log.open("ab") as file:
        file.write(b'{"config": {"chunks": [1')
    interrupted(lambda: any("scan.yaml" in path.name for path in tmp_path.iterdir()), 0)  # while the profile is saved
    visible = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert visible - {"scan.yaml"} == {"scan.h5", "space.yaml", "home"}
    done = subprocess.run([TUNER, *search, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert Path(found["log"]).exists()
    assert found["profile"]["evidence"]["search"]["stopped"] == "every configuration of the space was measured"
    counts = searched(home)
    assert set(counts.values()) == {1}
    assert len(counts) == CONFIGURATIONS
    assert load_profile(profile, strict=True).digest == found["profile"]["digest"]
