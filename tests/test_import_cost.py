"""A writer loads no more than it needs: neither what searches nor what draws tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("optuna", "sklearn", "scipy", "joblib", "rich", "pandas", "matplotlib", "dask", "plotly")

#: Run in a process of its own, which prints what it loaded.
REPORT = f"\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"

WRITE = """
import numpy as np
import tuner
from tuner import load_profile, open_writer
from tuner.config import Config
from tuner.profile import Match, Profile

folder = sys.argv[1]
Profile("light", Match("uint16"), Config(), Config()).save(folder + "/light.yaml")
profile = load_profile(folder + "/light.yaml", strict=True)
with open_writer(folder + "/out.h5", profile, frame_shape=(32, 32), dtype="uint16") as writer:
    writer.append(np.ones((3, 32, 32), "uint16"))
    writer.flush()
"""

APPLY = """
from tuner.cli import main
assert main(["demo", "-o", folder + "/scan.h5", "--technique", "saxs", "--frames", "2", "--quiet"]) == 0
assert main(["read", folder + "/scan.h5", "--quiet"]) == 0
"""


def loaded(script: str, *arguments: object) -> list[str]:
    """Which of the heavy packages a script loads."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + script + REPORT, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("name", ["load_profile", "open_writer", "open_stacks", "draw_sample", "load_space", "Goal"])
def test_a_public_name_that_does_not_search_loads_nothing_heavy(name: str) -> None:
    assert loaded(f"import tuner\ntuner.{name}") == []


def test_writing_loads_nothing_heavy(tmp_path: Path) -> None:
    assert loaded(WRITE, tmp_path) == []


def test_commands_that_do_not_search_load_nothing_heavy(tmp_path: Path) -> None:
    assert loaded("folder = sys.argv[1]" + APPLY, tmp_path) == []


def test_searching_does_so_the_test_can_tell() -> None:
    assert {"optuna", "joblib"} <= set(loaded("import tuner.search.find"))
