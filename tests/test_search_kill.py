"""Killed at any moment, a search leaves a log that can be read, and no profile or a whole one; `--resume` goes on."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tuner.evaluation import read_log
from tuner.profile import load_profile

pytestmark = pytest.mark.usefixtures("empty_home")

#: The program as users run it.
TUNER = Path(sys.executable).with_name("tuner")

SPACE = """
chunks: {choose: [[1, ...], [4, ...]]}
blosc2:
  codec: zstd
  clevel: {range: [1, 7]}
  filters: {choose: [[shuffle], [bitshuffle], [shuffle, bytedelta]]}
"""
CONFIGURATIONS = 2 * 7 * 3


@pytest.fixture
def search(tmp_path: Path) -> list[str]:
    """A search through a space of a few dozen configurations that take a while each."""
    frames = np.random.default_rng(0).poisson(100, (16, 256, 256)).astype("uint16")
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["entry/data/data"] = frames
    (tmp_path / "space.yaml").write_text(SPACE)
    options = ["--space", str(tmp_path / "space.yaml"), "--resume", "--budget", "10m", "--jobs", "1", "--unguided"]
    return [str(TUNER), "search", str(tmp_path / "scan.h5"), "-o", str(tmp_path / "scan.yaml"), *options]


def kill(command: list[str], after: float) -> bool:
    """Run a command and kill it some seconds after it began to measure; whether it lived so long."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "baselines" in process.stderr.readline()
        time.sleep(after)
        alive = process.poll() is None
        process.kill()
    return alive


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


@pytest.mark.slow
def test_killed_again_and_again_a_search_measures_nothing_twice_and_finishes(tmp_path: Path, search: list[str]) -> None:
    moments = random.Random(0)
    home = tmp_path / "home"
    killed = 0
    for attempt in itertools.count():
        if attempt >= 6 and searched(home):
            break
        # Later and later, as a busy machine takes a while for the baselines alone.
        killed += kill(search, after=(1 + attempt) * moments.uniform(0.1, 1.0))
        counts = searched(home)
        assert set(counts.values()) <= {1}
        assert len(list(read_log(home / "evaluations"))) == len(records(home))
        profile = tmp_path / "scan.yaml"
        if profile.exists():
            load_profile(profile, strict=True)
            break
    assert killed
    # As if the last kill had come in the middle of a write.
    log = max((home / "evaluations").iterdir(), key=lambda path: path.stat().st_mtime)
    with log.open("ab") as file:
        file.write(b'{"config": {"chunks": [1')
    done = subprocess.run([*search, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert Path(found["log"]).exists()
    assert found["profile"]["evidence"]["search"]["stopped"] == "every configuration of the space was measured"
    counts = searched(home)
    assert set(counts.values()) == {1}
    assert len(counts) == CONFIGURATIONS
    assert load_profile(tmp_path / "scan.yaml", strict=True).digest == found["profile"]["digest"]


@pytest.mark.slow
def test_a_profile_is_there_whole_or_not_at_all(tmp_path: Path, search: list[str]) -> None:
    moments = random.Random(1)
    profile = tmp_path / "scan.yaml"
    command = [part if part != "10m" else "0.4s" for part in search]
    command[command.index("--resume")] = "--quiet"
    ended = 0
    for _ in range(6):
        with subprocess.Popen(command) as process:
            time.sleep(moments.uniform(0.5, 3.5))
            ended += process.poll() == 0
            process.kill()
        if profile.exists():
            load_profile(profile, strict=True)
        assert len(list(read_log(tmp_path / "home"))) == len(records(tmp_path / "home"))
    visible = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert visible - {"scan.yaml", "home"} == {"scan.h5", "space.yaml"}
    assert profile.exists() or not ended
