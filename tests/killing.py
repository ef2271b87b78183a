"""Processes for tests that kill: forked from one that has imported what they need, a kill costs only its own time."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tuner.apply.opening import open_writer
from tuner.config import Config
from tuner.profile import Match, Profile

Function = Callable[..., None]

#: numpy and blosc2 start pools of threads as they are imported, and a fork has but the thread that forks.
ALONE = dict.fromkeys(("OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS"), "1")


def write(
    path: str, frames: int, tile: int, access: str = "single", sync: bool = False, container: str = "blosc2"
) -> None:
    """Write frames, of which frame n is n + 1 everywhere, and say after every third how many are safe; at last, all.

    An interrupt ends it as it ends an acquisition. With `sync` every other time is a sync. Access "eiger" is rolling.
    """
    how: dict[str, Any] = {"access": "rolling", "layout": "eiger"} if access == "eiger" else {"access": access}
    config = Config((frames, tile, -1))
    profile = Profile("kill", Match("uint16"), config, config)
    how |= {"roll_every": 20, "container": container}
    writer = open_writer(path, profile, frame_shape=(32, 32), dtype="uint16", **how)
    with contextlib.suppress(KeyboardInterrupt), writer:
        print("ready", flush=True)
        for number in range(1, 60_000):
            writer.append(np.full((32, 32), number, "uint16"))
            if number % 3 == 0:
                print((writer.sync if sync and number % 2 else writer.flush)(), flush=True)
    print(f"\n{writer.frames_written}", flush=True)


class Victim:
    """A process that runs a function, and the numbers that it said."""

    def __init__(self, parent: subprocess.Popen[str]) -> None:
        self._parent = parent
        self.said: list[int] = []
        #: As subprocess has it; None as long as it was not ended.
        self.status: int | None = None
        self.pid = int(self._line())

    def _line(self) -> str:
        assert self._parent.stdout is not None
        line = self._parent.stdout.readline()
        assert line, "what forks is no more"
        if line.startswith("over"):
            self.status = int(line.split()[1])
            tell(self._parent, "")
            return ""
        return line.strip()

    def ready(self) -> None:
        """Wait until it says that it is."""
        line = self._line()
        assert line == "ready", (line, self.status)

    @property
    def last(self) -> int:
        """The last number that it said; 0 if it said none."""
        return self.said[-1] if self.said else 0

    def end(self, by: int = 0) -> None:
        """Send it a signal, or none, and wait until it is no more and has said all. That it failed is an error."""
        os.kill(self.pid, by)
        while self.status is None:
            self.said += [int(word) for word in self._line().split() if word.isdigit()]
        assert self.status in (0, -by), self.status


def tell(parent: subprocess.Popen[str], line: str) -> None:
    assert parent.stdin is not None
    parent.stdin.write(f"{line}\n")
    parent.stdin.flush()


class Victims:
    """Forks one victim at a time, from a process that has one thread, no file open, and all modules imported."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        pipe = subprocess.PIPE
        self._parent = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | ALONE)

    def close(self) -> None:
        with self._parent:
            pass

    @contextlib.contextmanager
    def start(self, function: Function, *arguments: object, fresh: bool = False) -> Iterator[Victim]:
        """A victim, killed at the latest at the end; a fresh one is an interpreter of its own, as users have it.

        The function must be one of a module in this folder, its arguments what JSON can say, or paths.
        """
        module = function.__module__.rpartition(".")[2]
        tell(self._parent, json.dumps((fresh, module, function.__name__, arguments), default=str))
        victim = Victim(self._parent)
        try:
            yield victim
        finally:
            if victim.status is None:
                victim.end(signal.SIGKILL)

    def kill(
        self, function: Function, *arguments: object, after: float, by: int = signal.SIGKILL, fresh: bool = False
    ) -> Victim:
        """One that was sent a signal some seconds after it was ready."""
        with self.start(function, *arguments, fresh=fresh) as victim:
            victim.ready()
            time.sleep(after)
            victim.end(by)
        return victim


def fork_each() -> str:
    """Fork a victim for each line of the input; in a victim, return its line."""
    while line := sys.stdin.readline():
        fresh, module, *_ = json.loads(line)
        importlib.import_module(module)
        assert len(list(Path("/proc/self/task").iterdir())) == 1
        pid = os.fork()
        if not pid:
            if fresh:
                usual = {name: value for name, value in os.environ.items() if name not in ALONE}
                os.execve(sys.executable, [sys.executable, __file__, line], usual)
            return line
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        print("\nover", ended.si_status * (1 if ended.si_code == os.CLD_EXITED else -1), flush=True)
        sys.stdin.readline()  # until then its number is its own, so that a late kill hits nobody else
        os.waitpid(pid, 0)
    return ""


if __name__ == "__main__" and (request := sys.argv[1] if len(sys.argv) > 1 else fork_each()):
    print(os.getpid(), flush=True)
    _, module, name, arguments = json.loads(request)
    getattr(importlib.import_module(module), name)(*arguments)
