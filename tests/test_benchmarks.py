"""Every benchmark starts: it imports what it needs, and says how it is called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


#: Runs each script as if from its folder, one after the other, as they import much the same.
PROGRAM = """
import contextlib, io, json, runpy, sys
told = {}
for script in sys.argv[1:]:
    sys.argv, sys.path[0] = [script, "--help"], script.rpartition("/")[0]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    told[script] = out.getvalue()
print(json.dumps(told))
"""


def test_every_benchmark_says_how_it_is_called() -> None:
    scripts = [str(script) for script in SCRIPTS if script.name not in PARTS]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *scripts], stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(done.stdout)
    assert [script for script in scripts if f"python benchmarks/{Path(script).name}" not in told[script]] == []


def test_benchmarks_are_listed() -> None:
    listed = (SCRIPTS[0].parent / "README.md").read_text(encoding="utf-8")
    missing = [script.name for script in SCRIPTS if f"`{script.name}" not in listed]
    assert not missing, f"benchmarks/README.md does not list {missing}"
