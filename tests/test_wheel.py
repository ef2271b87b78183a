"""A wheel carries what the package reads at run time: search spaces, goals, and the shipped log."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from tuner.evaluation import read_log

ROOT = Path(__file__).parent.parent
PARTS = ("pyproject.toml", "README.md", "LICENSE", "tuner", "search_spaces", "results/evaluations")


@pytest.mark.slow
def test_a_wheel_carries_spaces_goals_and_the_log(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for part in PARTS:
        (source / part).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    if "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("building a wheel: no package index to take setuptools from")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    carried = set(zipfile.ZipFile(wheel).namelist())
    for folder, package, pattern in (
        ("search_spaces", "search_spaces", "**/*.yaml"),
        ("results/evaluations", "evaluations", "*.jsonl.gz"),
    ):
        wanted = {f"tuner/{package}/{path.relative_to(ROOT / folder)}" for path in (ROOT / folder).glob(pattern)}
        assert wanted
        assert wanted <= carried


def test_the_shipped_log_is_found_and_whole() -> None:
    with as_file(files("tuner.evaluations")) as folder:
        shipped = list(read_log(Path(folder)))
    assert len({e.origin["dataset"] for e in shipped}) > 100
    assert all(e.traits and "reference_mb_s" in e.origin for e in shipped if e.failure is None)
    assert all("host" not in e.origin["machine"] for e in shipped)
    assert sum(path.stat().st_size for path in (ROOT / "results" / "evaluations").glob("*.gz")) < 4 << 20
