"""Every benchmark starts: it imports what it needs, and says how it is called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))
#: What others import.
PARTS = (
    "simulated.py",
    "lossy_sets.py",
    "lossy_page.py",
    "quantiser.py",
    "techniques_own.py",
    "techniques_page.py",
    "techniques_sets.py",
    "writer_page.py",
)


@pytest.mark.slow
@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.name not in PARTS], ids=lambda script: script.stem)
def test_benchmark_says_how_it_is_called(script: Path) -> None:
    told = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    assert f"python benchmarks/{script.name}" in told, "its usage line names another script"


def test_benchmarks_are_listed() -> None:
    listed = (SCRIPTS[0].parent / "README.md").read_text(encoding="utf-8")
    missing = [script.name for script in SCRIPTS if f"`{script.name}" not in listed]
    assert not missing, f"benchmarks/README.md does not list {missing}"
