"""Ctrl-C at a line of `close`: what was given is in the file, and no thread and no descriptor is left."""

from __future__ import annotations

import gc
import linecache
import logging
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest

import tuner
from tuner.apply.opening import open_writer
from tuner.config import Config
from tuner.profile import Match, Profile

FOLDER = str(Path(tuner.__file__).parent)

#: Lines of a block's beginning, to which also its end belongs, are none at which Python looks for interrupts.
UNSEEN = ("with ", "try:")

CONFIG = Config((2, -1, -1))
PROFILE = Profile("interrupted", Match("uint16"), CONFIG, CONFIG, envelope={"mean": (0.0, 10.0)})


def interrupted(line: int, path: Path, access: str) -> bool:
    """Write eleven frames and interrupt `close` at a line of ours, counted from when it is called; whether it has one.

    Not where Python itself does not look for interrupts, nor between the opening of a descriptor and its having a name.
    """
    writer = open_writer(
        path, PROFILE, frame_shape=(8, 8), dtype="uint16", mode="w", access=access, roll_every=4, workers=2
    )
    writer.append(np.broadcast_to(np.arange(11, dtype="uint16")[:, None, None], (11, 8, 8)))
    count = 0

    def trace(frame: FrameType, event: str, about: Any) -> Any:
        nonlocal count
        code = frame.f_code
        if not code.co_filename.startswith(FOLDER) or code.co_name in ("__del__", "sync_folder"):
            return None
        if event == "line" and not linecache.getline(code.co_filename, frame.f_lineno).strip().startswith(UNSEEN):
            count += 1
            if count == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        writer.close()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    if line % 2:  # what is forgotten closes itself
        writer.close()
    return count >= line


def used() -> tuple[int, int]:
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


@pytest.mark.parametrize(("access", "every"), [("single", 23), ("rolling", 61)])
def test_an_interrupt_in_close_loses_nothing_and_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, access: str, every: int
) -> None:
    path, line = tmp_path / "scan.h5", 1
    interrupted(0, path, access)
    gc.collect()
    before = used()
    with caplog.at_level(logging.WARNING):
        while interrupted(line, path, access):
            latest = time.monotonic() + 30
            while used() != before:
                assert time.monotonic() < latest, (line, threading.enumerate())
                gc.collect()
                time.sleep(0.001)
            with h5py.File(path) as file:
                assert file["entry/data/data"][:, 0, 0].tolist() == list(range(11)), line
            assert not list(tmp_path.glob(".*")), line
            assert not caplog.text, line
            line += every
    assert line > 100
