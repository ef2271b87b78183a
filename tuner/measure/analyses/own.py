"""The user's own analysis: run in a child process on files of frames, within limits."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from tuner.analysis import Own
from tuner.document import kind_of, parse_size
from tuner.errors import InputError
from tuner.measure.analyses.scan import Measured, Scan

#: What may stand on its standard output, at most.
_MOST_NBYTES = 1 << 20

#: Becomes the command, with at most so many bytes of memory and seconds of processor time.
_LIMIT = """
import os, resource, sys
memory, seconds = map(int, sys.argv[1:3])
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.execvp(sys.argv[3], sys.argv[3:])
"""

#: Runs ``module.function`` as its one argument says; what the function prints goes to standard error.
_CALL = """
import contextlib, importlib, json, sys
module, _, name = sys.argv[1].rpartition(".")
sys.path.insert(0, "")
with contextlib.redirect_stdout(sys.stderr):
    found = getattr(importlib.import_module(module), name)(sys.argv[2], sys.argv[3])
    found = {str(key): float(value) for key, value in found.items()}
print(json.dumps(found))
"""


def run_own(analysis: Own, scan: Scan) -> dict[str, Measured]:
    """What the user's own pipeline makes of the frames: its named numbers.

    It gets two more arguments, the paths of two ``.npy`` files of the frames before and after, shape
    (n, *frame_shape), which are gone when it ends. A function returns a mapping of names to numbers; a program writes
    such a JSON object to standard output. Either runs in the folder where `tuner` was started.

    Raises
    ------
    InputError
        One line: it failed, took too long or too much memory, or did not answer with named finite numbers.
    """
    with tempfile.TemporaryDirectory(prefix="tuner-analysis-") as folder:
        paths = [Path(folder) / "original.npy", Path(folder) / "decoded.npy"]
        _write(scan, paths)
        answer = _run(analysis, [str(path) for path in paths])
    return {name: Measured.exactly(value) for name, value in _numbers(analysis, answer).items()}


def _write(scan: Scan, paths: list[Path]) -> None:
    shape = (len(scan.numbers), *scan.stack.frame_shape)
    files = [open_memmap(path, "w+", scan.stack.dtype, shape) for path in paths]
    start = 0
    for pair in scan.pairs():
        stop = start + len(pair.numbers)
        for file, frames in zip(files, (pair.original, pair.decoded), strict=True):
            file[start:stop] = frames
        start = stop
    for file in files:
        file.flush()


def _command(run: str) -> list[str]:
    scheme, _, what = run.partition(":")
    return [sys.executable, "-P", "-c", _CALL, what] if scheme == "python" else shlex.split(what)


def _run(analysis: Own, paths: list[str]) -> str:
    place = f"analysis {analysis.name}: {analysis.run}"
    # Processor time is limited too, should nobody be left to stop it.
    seconds = math.ceil(analysis.seconds) * (os.cpu_count() or 1) + 5
    limits = [sys.executable, "-P", "-c", _LIMIT, str(parse_size(analysis.memory, "memory")), str(seconds)]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*limits, *_command(analysis.run), *paths],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for us, and all that it starts ends with it
        )
        try:
            process.wait(analysis.seconds)
        except subprocess.TimeoutExpired:
            raise InputError(f"{place}: took more than {analysis.seconds:g} s") from None
        finally:
            _end(process)
        output.seek(0)
        errors.seek(0)
        text, said = output.read(_MOST_NBYTES), errors.read()[-2000:].decode(errors="replace").strip()
    if process.returncode:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit status {process.returncode}"
        raise InputError(f"{place}: ended with {how}{': ' + said.splitlines()[-1] if said else ''}")
    return text.decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _numbers(analysis: Own, answer: str) -> dict[str, float]:
    place = f"analysis {analysis.name}: {analysis.run}"
    try:
        found: Any = json.loads(answer)
    except (ValueError, RecursionError):
        raise InputError(f"{place}: must print one JSON object, got {kind_of(answer[:80])}") from None
    if not isinstance(found, dict) or not found:
        raise InputError(f"{place}: must answer with named numbers, got {kind_of(found)}")
    for name, value in found.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        if not number or not name.isidentifier():
            raise InputError(f"{place}: must answer with named finite numbers, got {name!r}: {kind_of(value)}")
    return {name: float(np.float64(value)) for name, value in found.items()}
