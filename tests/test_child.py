"""The child that runs codecs: whatever they do, a call gives an answer or a CodecError, and the next call works."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tuner.apply.child
from tuner.apply.child import PluginChild, frame_codec, probe
from tuner.config import PLUGINS, Blosc2, Config
from tuner.errors import CodecError

CHEATING = (sys.executable, str(Path(__file__).with_name("cheating_codecs.py")))


def resolved(chunk: NDArray[Any], codec: str = "zstd") -> Config:
    return Config((len(chunk), -1, -1), Blosc2(codec, filters=())).resolve(chunk.shape[1:], chunk.dtype)


def order(number: int) -> NDArray[np.uint8]:
    """A chunk that tells the cheating codec what to do."""
    return np.full((1, 8, 8), number, dtype=np.uint8)


@pytest.fixture(scope="module")
def cheating() -> Iterator[PluginChild]:
    with PluginChild(timeout_s=1.0, memory_bytes=3 << 30, command=CHEATING) as child:
        yield child


@pytest.fixture(scope="module")
def honest() -> Iterator[PluginChild]:
    with PluginChild() as child:
        yield child


def test_modules_of_the_current_folder_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blosc2.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    chunk = order(7)
    with PluginChild() as child:
        assert (child.decode(child.encode(resolved(chunk), chunk), chunk.shape, chunk.dtype) == chunk).all()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (1, r"^codec j2k aborted the process \(signal 6\)$"),
        (2, r"^codec j2k aborted the process \(signal 11\)$"),
        (3, r"^codec j2k took more than 1 s to encode$"),
        (4, r"^codec j2k cannot encode: it needs more than 3072 MiB of memory$"),
        (5, r"^codec j2k ended the process \(exit status 3\)$"),
        (6, r"^codec j2k cannot encode: codec says no$"),
        (8, r"^codec j2k took more than 1 s to encode$"),
    ],
)
def test_a_misbehaving_codec_is_named_and_the_next_call_works(cheating: PluginChild, number: int, message: str) -> None:
    config = resolved(order(number), "j2k")
    with pytest.raises(CodecError, match=message):
        cheating.encode(config, order(number))
    assert cheating.encode(config, order(0)) == order(0).tobytes()


def test_a_codec_that_prints_does_not_garble_answers(cheating: PluginChild) -> None:
    assert cheating.timed_encode(resolved(order(7)), order(7)) == (order(7).tobytes(), 0.25)


def test_an_answer_of_the_wrong_size_is_an_error(cheating: PluginChild, honest: PluginChild) -> None:
    frame = honest.encode(resolved(order(0)), order(0))
    with pytest.raises(CodecError, match=r"codec zstd returned \d+ bytes for a chunk of shape \(1, 8, 8\), uint8"):
        cheating.decode(frame, (1, 8, 8), np.dtype("uint8"))


def test_one_process_serves_all_calls_until_it_dies(honest: PluginChild) -> None:
    chunk = order(3)
    honest.encode(resolved(chunk), chunk)
    process = honest._process
    for _ in range(20):
        honest.encode(resolved(chunk), chunk)
    assert honest._process is process
    assert process is not None
    process.kill()
    process.wait()
    assert len(honest.encode(resolved(chunk), chunk)) > 0
    assert honest._process is not process


def test_closing_leaves_no_process() -> None:
    with PluginChild() as child:
        child.encode(resolved(order(0)), order(0))
        assert child._process is not None
        pid = child._process.pid
    assert not psutil.pid_exists(pid)
    with PluginChild():
        pass  # Never used, nothing started.


@pytest.mark.parametrize("busy", [False, True])
def test_the_child_dies_with_its_parent(busy: bool, tmp_path: Path) -> None:
    # A parent that is killed while its child waits, or while the child's codec hangs.
    program = (
        "import os, sys, threading, time, numpy as np\n"
        "from tuner.apply.child import PluginChild\n"
        "from tuner.config import Blosc2, Config\n"
        f"child = PluginChild(timeout_s=1.0, command={CHEATING!r})\n"
        "def call(number):\n"
        "    chunk = np.full((1, 8, 8), number, dtype='uint8')\n"
        "    child.encode(Config((1, -1, -1), Blosc2(filters=())).resolve((8, 8), chunk.dtype), chunk)\n"
        "call(0)\n"
        f"threading.Thread(target=call, args=({3 if busy else 0},)).start()\n"
        "print(child._process.pid, flush=True)\n"
        "time.sleep(0.3)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    process = int(run.stdout)
    patience = time.monotonic() + 20
    while psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < patience
        time.sleep(0.05)


def test_an_interrupted_call_leaves_no_answer_to_the_next(cheating: PluginChild) -> None:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        cheating.encode(resolved(order(3)), order(3))
    assert cheating.encode(resolved(order(9)), order(9)) == order(9).tobytes()


def test_threads_take_turns(honest: PluginChild) -> None:
    chunks = [np.full((1, 20, 30), value, dtype=np.uint16) for value in range(40)]

    def round_trip(chunk: NDArray[Any]) -> bool:
        frame = honest.encode(resolved(chunk), chunk)
        return np.array_equal(honest.decode(frame, chunk.shape, chunk.dtype), chunk)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(round_trip, chunks))


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "int32", "uint32", "float32", "float64", "float16", "bool"]),
    codec=st.sampled_from(["zstd", "lz4", "blosclz"]),
    seed=st.integers(0, 99),
)
def test_decoding_what_was_encoded_gives_the_chunk(
    honest: PluginChild, shape: tuple[int, ...], dtype: str, codec: str, seed: int
) -> None:
    chunk = np.random.default_rng(seed).poisson(3, shape).astype(dtype)
    frame, encode_s = honest.timed_encode(resolved(chunk, codec), chunk)
    assert frame_codec(frame) == codec
    back, decode_s = honest.timed_decode(frame, shape, np.dtype(dtype))
    assert back.dtype == chunk.dtype
    assert np.array_equal(back, chunk)
    assert back.flags.writeable
    assert 0 < encode_s < 30
    assert 0 < decode_s < 30


def test_what_cannot_be_encoded_or_decoded_is_an_error(honest: PluginChild) -> None:
    chunk = np.arange(600, dtype="uint16").reshape(1, 20, 30)
    frame = honest.encode(resolved(chunk), chunk)
    with pytest.raises(CodecError, match="not a Blosc2 frame"):
        honest.decode(b"nothing of the kind", chunk.shape, chunk.dtype)
    with pytest.raises(CodecError, match=r"the frame must hold \[1, 30, 20\] <u2, got \(1, 20, 30\) uint16"):
        honest.decode(frame, (1, 30, 20), chunk.dtype)
    with pytest.raises(CodecError):
        honest.decode(frame[:120] + bytes(len(frame) - 120), chunk.shape, chunk.dtype)
    with pytest.raises(CodecError, match="typesize must be that of uint16, got 1"):
        honest.encode(Config((1, -1, -1), Blosc2("zstd", typesize=1)), chunk)


def test_a_process_that_does_not_start_is_an_error() -> None:
    with (
        PluginChild(command=(sys.executable, "-c", "raise SystemExit(4)")) as child,
        pytest.raises(CodecError, match=r"did not start: it ended the process \(exit status 4\)"),
    ):
        child.encode(resolved(order(0)), order(0))


def test_the_child_imports_nothing_heavy() -> None:
    heavy = "optuna sklearn joblib scipy dask pandas matplotlib rich"
    code = f"import sys, tuner.apply.child; print(*(m for m in '{heavy}'.split() if m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == ""


# The plug-ins themselves ----------------------------------------------------------------------------------------------


def installed(codec: str) -> bool:
    return importlib.util.find_spec(PLUGINS[codec].replace("-", "_")) is not None


each_plugin = pytest.mark.parametrize(
    "codec",
    [
        pytest.param(codec, marks=pytest.mark.skipif(not installed(codec), reason=f"{package} is not installed"))
        for codec, package in PLUGINS.items()
    ],
)


@pytest.mark.parametrize("codec", PLUGINS)
def test_a_plugin_that_is_not_installed_says_how_to_get_it(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tuner.apply.child.PLUGINS, codec, "blosc2-no-such-codec")
    assert probe(codec) == "blosc2-no-such-codec is not installed: pip install tuner[plugins]"


@each_plugin
def test_an_installed_plugin_works(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever `python` is on PATH.
    monkeypatch.setenv("PATH", "/nowhere")
    assert probe(codec) is None


@each_plugin
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_a_plugin_returns_the_pixels(honest: PluginChild, codec: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for shape in [(1, 256, 300), (3, 200, 180), (1, 64, 64)]:
        chunk = rng.poisson(rng.choice([0.3, 50]), shape).astype(dtype)
        frame = honest.encode(resolved(chunk, codec), chunk)
        assert frame_codec(frame) == codec
        assert np.array_equal(honest.decode(frame, shape, chunk.dtype), chunk)


@each_plugin
def test_a_plugin_refuses_what_it_cannot_hold(honest: PluginChild, codec: str) -> None:
    chunk = np.zeros((1, 64, 64), dtype=np.uint32) + np.arange(64, dtype=np.uint32)
    with pytest.raises(CodecError, match=f"^codec {codec} cannot encode: "):
        honest.encode(resolved(chunk, codec), chunk)


@each_plugin
def test_a_plugin_is_loaded_before_the_clock_starts(codec: str) -> None:
    chunk = np.arange(64 * 64, dtype=np.uint16).reshape(1, 64, 64)
    with PluginChild() as child:
        first = child.timed_encode(resolved(chunk, codec), chunk)[1]
        later = min(child.timed_encode(resolved(chunk, codec), chunk)[1] for _ in range(5))
    assert first < 20 * later
