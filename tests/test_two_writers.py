"""Two writers on one path: the later has it, the earlier says so in a line, and no frame of the one is the other's."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest

from tuner.apply.opening import open_writer
from tuner.apply.recover import recover
from tuner.config import Config
from tuner.errors import InputError, TunerError
from tuner.profile import Match, Profile

CONFIG = Config((2, -1, -1))
PROFILE = Profile("two", Match("uint16"), CONFIG, CONFIG)

#: Does what each line of its input says, and says how many frames are safe, or in a line what went wrong.
DO = """
import sys, numpy
from test_two_writers import PROFILE
from tuner.apply.opening import open_writer
from tuner.errors import TunerError

for line in sys.stdin:
    what, *words = line.split()
    try:
        if what == "open":
            path, value, access = words
            how = dict(access="rolling", layout="eiger") if access == "eiger" else dict(access=access)
            writer = open_writer(path, PROFILE, frame_shape=(8, 8), dtype="uint16", mode="w", roll_every=4, **how)
            number = int(value)
        elif what == "append":
            for _ in range(int(words[0])):
                writer.append(numpy.full((8, 8), number, "uint16"))
                number += 1
        elif what != "close":
            print(getattr(writer, what)(), flush=True)
            continue
        else:
            writer.close()
        print("done", flush=True)
    except TunerError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
"""


class Program:
    """A process that does what it is told."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", DO]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
        )

    def __call__(self, *words: object) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def programs() -> Iterator[tuple[Program, Program]]:
    two = Program(), Program()
    yield two
    for program in two:
        program.process.communicate()


def values(path: Path) -> list[int]:
    with h5py.File(path) as file:
        group = file["entry/data"]
        return [int(value) for name in sorted(group) for value in group[name][:, 3, 3]]


@pytest.mark.parametrize("access", ["rolling", "eiger", "single", "swmr"])
@pytest.mark.parametrize("seed", range(4))
def test_the_earlier_of_two_processes_fails_and_the_later_loses_nothing(
    programs: tuple[Program, Program], tmp_path: Path, access: str, seed: int
) -> None:
    earlier, later = programs
    path = tmp_path / "scan_master.h5"
    chance = random.Random(seed)
    assert earlier("open", path, 1, access) == "done"
    assert earlier("append", chance.randrange(12)) == "done"
    assert later("open", path, 1001, access) == "done"
    given, said = 0, ""
    for _ in range(8):
        if not said:
            answer = earlier(*chance.choice([("append", chance.randrange(1, 12)), ("flush",), ("sync",)]))
            said = answer if "Error" in answer else ""
        count = chance.randrange(1, 6)
        assert later("append", count) == "done"
        given += count
        safe = int(later("sync"))
        if access != "swmr":  # which others open once it is closed
            assert values(path)[:safe] == list(range(1001, 1001 + safe))
    said = said or earlier("close")
    assert said.startswith(f"TunerError: {path}: ")
    assert "scan_master.h5 was replaced: frames from 0 on are not safely written" in said
    assert later("close") == "done"
    assert values(path) == list(range(1001, 1001 + given))
    assert not [rest.name for rest in tmp_path.iterdir() if rest.name.startswith(".")]
    assert recover(path)["safe"] == [[0, given]]


def test_what_a_killed_writer_left_is_not_joined_to_the_scan_that_replaces_it(tmp_path: Path) -> None:
    path, victim = tmp_path / "scan_master.h5", Program()
    assert victim("open", path, 1, "rolling") == "done"
    assert victim("append", 7) == "done"
    assert victim("sync") == "4"
    victim.process.kill()
    victim.process.communicate()
    (left,) = tmp_path.glob(".scan_data_000002.h5.*.part")
    for old in tmp_path.glob("scan*"):
        old.unlink()
    with pytest.raises(InputError, match=rf"{left.name}: exists already and is not overwritten unasked"):
        open_writer(path, PROFILE, frame_shape=(8, 8), dtype="uint16", access="rolling")
    with open_writer(path, PROFILE, frame_shape=(8, 8), dtype="uint16", mode="w", access="rolling"):
        pass
    assert recover(path)["frames"] == 0
    assert list(tmp_path.iterdir()) == [path]


def test_two_masters_whose_data_files_have_the_same_names_overwrite_none(tmp_path: Path) -> None:
    """scan.h5 and scan_master.h5 both have scan_data_000001.h5; whoever finishes it first has it."""
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(
                open_writer(
                    tmp_path / name, PROFILE, frame_shape=(8, 8), dtype="uint16", access="rolling", roll_every=4
                )
            )
            for name in ("scan.h5", "scan_master.h5")
        )
        first.append(np.full((4, 8, 8), 1, "uint16"))
        assert first.sync() == 4
        second.append(np.full((4, 8, 8), 2, "uint16"))
        with pytest.raises(TunerError, match=r"scan_data_000001\.h5 exists already: frames from 0 on are not safely"):
            second.sync()
        assert values(tmp_path / "scan.h5") == [1, 1, 1, 1]
