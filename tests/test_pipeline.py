"""The pipeline: order, bounds and bytes hold for any number of workers, and no error leaves a thread waiting."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tuner.apply.checksum import Encoded
from tuner.apply.cut import corners
from tuner.apply.encode import Encoder
from tuner.apply.pipeline import Pipeline, depth_of
from tuner.apply.prepare import Batch, Preparation
from tuner.config import Blosc2, Config
from tuner.profile import Match, Profile
from tuner.steps import Uniform

SHAPE = (8, 6)
TILE = (1, 4, 3)
PROFILE = Profile("test", Match("uint16"), Config(steps=(Uniform(4),)), Config())


class Slow(Encoder):
    """Takes a different time for each chunk, so that threads overtake each other."""

    def __init__(self, chunk_shape: tuple[int, ...] = TILE) -> None:
        super().__init__(Blosc2(typesize=2), chunk_shape, np.dtype("uint16"))

    def encode(self, chunk: NDArray[Any], out: NDArray[np.uint8] | None = None) -> Encoded:
        time.sleep(int(chunk.flat[0]) % 7 * 2e-4)
        return super().encode(chunk, out)


class Failing(Encoder):
    """Fails on one value."""

    def __init__(self, value: int) -> None:
        super().__init__(Blosc2(typesize=2), TILE, np.dtype("uint16"))
        self.value = value

    def encode(self, chunk: NDArray[Any], out: NDArray[np.uint8] | None = None) -> Encoded:
        if chunk.flat[0] == self.value:
            raise MemoryError("one chunk too many")
        return super().encode(chunk, out)


def frames(count: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 60000, (count, *SHAPE), "uint16")


def run(pipeline: Pipeline, batches: NDArray[np.uint16], preparation: Preparation | None = None) -> None:
    for number, frame in enumerate(batches):
        batch = Batch(frame[None], preparation)
        for corner in corners((1, *SHAPE), TILE):
            pipeline.put((number, *corner[1:]), batch, corner)


@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(0, 12), st.booleans(), st.integers(0, 99))
def test_the_same_bytes_in_the_same_order_for_any_number_of_workers(
    workers: int, count: int, lossy: bool, seed: int
) -> None:
    preparation = Preparation(PROFILE) if lossy else None
    written: list[list[tuple[tuple[int, ...], bytes]]] = []
    for threads in (1, workers):
        out: list[tuple[tuple[int, ...], bytes]] = []
        pipeline = Pipeline(Slow(), lambda place, chunk, out=out: out.append((place, bytes(chunk))), threads)  # type: ignore[misc]
        run(pipeline, frames(count, seed), preparation)
        pipeline.drain()
        pipeline.close()
        written.append(out)
    assert written[0] == written[1]
    assert [place for place, _ in written[0]] == [(n, *c[1:]) for n in range(count) for c in corners((1, *SHAPE), TILE)]


@pytest.mark.parametrize("depth", [None, 1, 3])
def test_no_more_than_depth_chunks_are_in_flight(depth: int | None) -> None:
    put, written, most = 0, 0, 0

    def write(place: tuple[int, ...], chunk: Encoded) -> None:
        nonlocal written
        time.sleep(1e-4)
        written += 1

    pipeline = Pipeline(Slow(), write, 2, depth=depth)
    batch = Batch(frames(1))
    for _ in range(60):
        pipeline.put((0, 0, 0), batch, (0, 0, 0))
        put += 1
        most = max(most, put - written)
        assert pipeline.backlog <= pipeline.waiting <= pipeline.depth
    pipeline.drain()
    assert written == put
    assert pipeline.waiting == pipeline.backlog == 0
    pipeline.close()
    assert most <= pipeline.depth == (depth or 12)


def test_a_batch_is_prepared_while_another_is() -> None:
    """Two workers meet in the steps of two frames, each cut into many chunks: neither waits for the other's."""
    both = threading.Barrier(2, timeout=20)
    once = threading.local()

    class Meeting(Batch):
        def prepared(self) -> NDArray[Any]:
            if not hasattr(once, "met"):
                once.met = True
                both.wait()
            return super().prepared()

    chunks = len(list(corners((1, *SHAPE), TILE)))
    pipeline = Pipeline(Slow(), lambda place, chunk: None, 2, depth=depth_of(2, chunks))
    for number, frame in enumerate(frames(2)):
        batch = Meeting(frame[None], Preparation(PROFILE))
        for corner in corners((1, *SHAPE), TILE):
            pipeline.put((number, *corner[1:]), batch, corner)
    pipeline.drain()
    pipeline.close()
    assert not both.broken


def stuck(work: Callable[[], None]) -> bool:
    """Whether something does not end."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    return thread.is_alive()


class Interrupted(BaseException):
    """What a signal raises in the main thread, between any two of its steps."""


def test_interrupted_at_any_moment_it_takes_the_chunk_again_drains_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    died: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", died.append)

    came = threading.Event()

    def interrupt(*_: object) -> None:
        came.set()
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    frame, moments = frames(1), random.Random(0)
    try:
        for _ in range(50 * int(os.environ.get("TUNER_FAULTS", "3"))):
            written: list[int] = []
            pipeline = Pipeline(Slow(), lambda place, chunk, written=written: written.append(place[0]), 2)  # type: ignore[misc]
            given: list[int] = []
            came.clear()

            # A function of its own: where a loop within `with` jumps back, Python 3.12 looks for signals outside of it.
            def go(pipeline: Pipeline = pipeline, given: list[int] = given) -> None:
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-4, 2e-3))
                while not came.is_set():  # what is raised within a callback is dropped by Python
                    pipeline.put((len(given), 0, 0), Batch(frame), (0, 0, 0))
                    given.append(len(given))
                    if len(given) % 5 == 0:
                        pipeline.drain()

            with contextlib.suppress(Interrupted):
                go()
            number = len(given)

            def go_on(pipeline: Pipeline = pipeline, number: int = number) -> None:
                pipeline.put((number, 0, 0), Batch(frame), (0, 0, 0))
                pipeline.drain()
                pipeline.close()

            assert not stuck(go_on)
            assert not died
            # The last may be there twice: it was put, and then came the interrupt.
            assert written in ([*range(number + 1)], [*range(number + 1), number])
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("where", ["encode", "write", "check", "prepare"])
def test_an_error_is_raised_once_met_and_nothing_after_it_is_written(where: str, workers: int) -> None:
    given = frames(20)
    given[:, 0, 0] = np.arange(20)
    written: list[int] = []

    class Broken(Batch):
        def prepared(self) -> NDArray[Any]:
            ready = super().prepared()
            if where == "prepare" and ready[0, 0, 0] == 9:
                raise MemoryError("one chunk too many")
            return ready

    def write(place: tuple[int, ...], chunk: Encoded) -> None:
        if where == "write" and place[0] == 9:
            raise MemoryError("one chunk too many")
        written.append(place[0])

    def check(place: tuple[int, ...], chunk: NDArray[Any], frame: Encoded | Exception) -> Encoded:
        if where == "check" and place[0] == 9:
            raise MemoryError("one chunk too many")
        assert not isinstance(frame, Exception)
        return frame

    encoder = Failing(9 if where == "encode" else 99)
    pipeline = Pipeline(encoder, write, workers, check if where == "check" else None)
    raised: list[BaseException] = []

    def work() -> None:
        try:
            for number, frame in enumerate(given):
                pipeline.put((number, 0, 0), Broken(frame[None]), (0, 0, 0))
            pipeline.drain()
        except MemoryError as error:
            raised.append(error)
        pipeline.close()
        pipeline.close()

    assert not stuck(work)
    assert len(raised) == 1
    assert written == list(range(9))


def test_closing_drops_what_waits_and_leaves_no_thread() -> None:
    going = threading.Event()
    before = threading.active_count()
    written: list[tuple[int, ...]] = []

    def write(place: tuple[int, ...], chunk: Encoded) -> None:
        going.wait(20)
        written.append(place)

    pipeline = Pipeline(Slow(), write, 2)
    run(pipeline, frames(1))
    timer = threading.Timer(0.05, going.set)
    timer.start()
    assert not stuck(pipeline.close)
    assert len(written) <= 1, "the chunk being written is finished, those behind it are not begun"
    timer.join()
    assert threading.active_count() == before


FORGOTTEN = """
import gc, sys, threading
import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
from tuner.apply.encode import Encoder
from tuner.apply.opening import open_writer
from tuner.config import Config
from tuner.profile import Match, Profile

real = Encoder.encode
forgotten, collected = threading.Event(), threading.Event()

def encode(self, chunk, out=None):
    forgotten.wait()
    gc.collect()
    collected.set()
    return real(self, chunk, out)

config = Config()
writer = open_writer(sys.argv[1], Profile("test", Match("uint16"), config, config), frame_shape=(8, 6), dtype="uint16",
                     workers=1)
for number in range(5):
    writer.append(np.full((8, 6), number, "uint16"))
Encoder.encode = encode
circle = [writer]
circle.append(circle)
gc.disable()
writer.append(np.full((8, 6), 5, "uint16"))
del writer, circle
forgotten.set()  # from here on only a collection finds it, in the thread that encodes for it
collected.wait()
"""


COLLECTED_BY_HDF5 = """
import gc, sys
import numpy as np
from h5py._objects import phil
from tuner.apply.opening import open_writer
from tuner.config import Config
from tuner.profile import Match, Profile

config = Config((4, -1, -1))
writer = open_writer(sys.argv[1], Profile("test", Match("uint16"), config, config), frame_shape=(8, 6), dtype="uint16")
for number in range(6):
    writer.append(np.full((8, 6), number, "uint16"))
circle = [writer]
circle.append(circle)
del writer, circle
with phil:  # that all calls to HDF5 take, and writing the last frames needs
    gc.collect()
"""


@pytest.mark.parametrize("program", [FORGOTTEN, COLLECTED_BY_HDF5], ids=["by its own thread", "in a call to HDF5"])
def test_a_forgotten_writer_closes_its_file_by_whomever_it_is_collected(tmp_path: Path, program: str) -> None:
    command = [sys.executable, "-c", program, str(tmp_path / "a.h5")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["entry/data/data"][:, 0, 0].tolist() == list(range(6))
