"""The complete examples of the documentation do what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import h5py
import hdf5plugin
import numpy as np
import pytest
from foreign import read_elsewhere
from numpy.typing import NDArray

from tuner.config import Blosc2, Config
from tuner.profile import Match, Profile

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def saved(folder: Path, frame_shape: tuple[int, int], frames: int = 1) -> Path:
    """A profile as a search leaves it, in a file."""
    config = Config((frames, -1, -1), Blosc2("zstd", clevel=1, filters=("shuffle", "bytedelta")))
    path = folder / "profile.yaml"
    Profile("example", Match("uint16", frame_shape=frame_shape), config, Config((frames, -1, -1))).save(path)
    return path


def test_the_plain_acquisition_runs_as_a_program(tmp_path: Path) -> None:
    profile = saved(tmp_path, (1024, 1024))
    command = [sys.executable, str(EXAMPLES / "acquire.py"), str(profile), str(tmp_path / "scan.h5"), "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "5 frames written" in done.stdout
    assert "written with example" in done.stdout
    frames = np.random.default_rng(0)
    with h5py.File(tmp_path / "scan.h5") as file:
        assert file["entry/data/data"].shape == (5, 1024, 1024)
        assert not file["entry/data/data"][0].any()
        for number in range(1, 5):
            assert (file["entry/data/data"][number] == frames.poisson(100, (1024, 1024))).all()
        assert file["entry/instrument/detector/pixel_mask"][512].all()
    refused = subprocess.run([*command[:2], str(tmp_path / "no.yaml"), *command[3:]], capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.startswith("acquire: ")
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("chunk", [1, 4])
def test_bluesky_scans_into_a_file_that_a_profile_describes(tmp_path: Path, chunk: int) -> None:
    pytest.importorskip("ophyd_async", reason="ophyd-async is not installed: pip install 'tuner[test]'")
    from bluesky import __version__
    from ophyd_async.core import StandardDetector

    assert __version__
    assert StandardDetector
    profile = saved(tmp_path, (1024, 1024), chunk)
    command = [sys.executable, str(EXAMPLES / "bluesky_detector.py"), str(profile), str(tmp_path), "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    documents = [line.split() for line in done.stdout.splitlines()]
    names = [name for name, *_ in documents]
    assert (names[0], names[-1]) == ("start", "stop")
    assert names.count("event") == 6
    assert "stream_datum" in names
    ((_, uri),) = (line for line in documents if line[0] == "stream_resource")
    frames = np.random.default_rng(0)
    with h5py.File(urlparse(uri).path) as file:
        data = file["entry/data/data"]
        assert data.chunks == (chunk, 1024, 1024)
        assert data.attrs["tuner_profile"] == "example"
        for number in range(6):
            assert (data[number] == frames.poisson(100, (1024, 1024))).all()


CHANNEL = "TEST:Pva1:Image"
SCAN = np.random.default_rng(0).poisson(5, (8, 48, 64)).astype("uint16")


class Ioc:
    """A pvAccess server with one channel of NTNDArray, on ports of its own that only this machine can reach."""

    def __init__(self) -> None:
        from p4p.nt import NTNDArray
        from p4p.server import Server
        from p4p.server.thread import SharedPV

        self.kind = NTNDArray.buildType()
        self.channel = SharedPV(initial=self.array(57, SCAN[0]))  # what an acquisition before left there
        self.server = Server([{CHANNEL: self.channel}], isolate=True)
        self.conf = self.server.conf()
        self.clients: list[subprocess.Popen[str]] = []

    def array(self, number: int, frame: NDArray[Any], codec: str = "") -> Any:
        """A frame as NDPluginPva sends it."""
        from p4p import Value

        data = compressed(frame, codec) if codec else frame.ravel()
        member = {"uint8": "ubyteValue", "uint16": "ushortValue", "float32": "floatValue"}[data.dtype.name]
        return Value(
            self.kind,
            {
                "value": (member, data),
                "codec": {"name": codec, "parameters": 6 if codec else None},  # 6 is uint16
                "compressedSize": data.nbytes,
                "uncompressedSize": frame.nbytes,
                "uniqueId": number,
                "dataTimeStamp": {"secondsPastEpoch": 1_700_000_000 + number, "nanoseconds": 500_000_000},
                "dimension": [{"size": size, "fullSize": size, "binning": 1} for size in reversed(frame.shape)],
            },
        )

    def send(self, number: int, frame: NDArray[Any], codec: str = "") -> None:
        self.channel.post(self.array(number, frame, codec))

    def restart(self) -> None:
        from p4p.server import Server

        self.server.stop()
        self.server = Server([{CHANNEL: self.channel}], conf=self.conf, useenv=False)


def compressed(frame: NDArray[Any], codec: str) -> NDArray[np.uint8]:
    """What NDPluginCodec makes of a frame: its LZ4 and BSLZ4 are what HDF5's filters make, without their headers."""
    if codec == "zlib":
        return np.frombuffer(zlib.compress(frame), np.uint8)
    filters = {"bslz4": hdf5plugin.Bitshuffle(cname="lz4"), "blosc": hdf5plugin.Blosc(cname="lz4", clevel=5)}
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        made = file.create_dataset("x", data=frame, chunks=frame.shape, **filters.get(codec, hdf5plugin.LZ4()))
        chunk = made.id.read_direct_chunk((0, 0))[1]
    return np.frombuffer(chunk, np.uint8)[{"bslz4": 12, "lz4": 16}.get(codec, 0) :]


@pytest.fixture
def ioc() -> Iterator[Ioc]:
    pytest.importorskip("p4p", reason="p4p is not installed: pip install 'tuner[test]'")
    ioc = Ioc()
    yield ioc
    for running in ioc.clients:  # of a test that failed
        running.kill()
        running.communicate()
    ioc.server.stop()


def client(ioc: Ioc, profile: Path, path: Path) -> subprocess.Popen[str]:
    """The example, once it listens."""
    program = [sys.executable, str(EXAMPLES / "areadetector.py")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EPICS_")} | ioc.conf
    running = subprocess.Popen(
        [*program, str(profile), CHANNEL, str(path), str(len(SCAN)), "--first", "1"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ioc.clients.append(running)
    assert running.stdout is not None
    assert running.stdout.readline() == f"listening to {CHANNEL}\n"
    return running


def test_frames_of_an_ioc_are_written_where_their_number_says(tmp_path: Path, ioc: Ioc) -> None:
    path = tmp_path / "scan.h5"
    running = client(ioc, saved(tmp_path, SCAN.shape[1:], frames=4), path)
    for index, codec in enumerate(["", "bslz4", "lz4", "dropped", "lz4hdf5", "blosc", "zlib", "bslz4"]):
        if codec != "dropped":
            ioc.send(index + 1, SCAN[index], codec)
    said, wrong = running.communicate(timeout=30)
    assert (running.returncode, wrong) == (3, "")
    assert said == f"{path}: 7 of 8 frames, missing: 3\n"
    written = read_elsewhere(path)
    expected = SCAN.copy()
    expected[3] = 65535  # reads as invalid
    assert (written == expected).all()
    with h5py.File(path) as file:
        assert file["entry/data/data"].attrs["tuner_missing_frames"].tolist() == [[3, 4]]
        stamps = 1_700_000_001.5 + np.arange(8.0)
        stamps[3] = np.nan
        assert np.array_equal(file["entry/data/dataTimeStamp"], stamps, equal_nan=True)


def test_a_scan_goes_on_when_its_ioc_comes_back(tmp_path: Path, ioc: Ioc) -> None:
    path = tmp_path / "scan.h5"
    running = client(ioc, saved(tmp_path, SCAN.shape[1:]), path)
    ioc.send(1, SCAN[0])
    ioc.restart()  # the channel sends what it has once more
    assert running.stderr is not None
    assert running.stderr.readline() == f"{CHANNEL}: disconnected\n"
    assert running.stderr.readline() == f"{CHANNEL}: is back\n"
    for index in range(1, 8):
        ioc.send(index + 1, SCAN[index])
    said, wrong = running.communicate(timeout=30)
    assert (running.returncode, said, wrong) == (0, f"{path}: 8 of 8 frames\n", "")
    assert (read_elsewhere(path) == SCAN).all()


def test_a_frame_of_another_kind_ends_a_scan_in_one_line(tmp_path: Path, ioc: Ioc) -> None:
    path = tmp_path / "scan.h5"
    running = client(ioc, saved(tmp_path, SCAN.shape[1:]), path)
    ioc.send(1, SCAN[0])
    ioc.send(2, SCAN[1].astype("float32"))
    _, wrong = running.communicate(timeout=30)
    assert wrong == f"areadetector: {CHANNEL}: uniqueId 2: the profile is for dtype uint16, got float32\n"
    assert running.returncode == 1
    assert (read_elsewhere(path) == SCAN[:1]).all()


def test_a_scan_that_is_interrupted_has_the_frames_that_came(tmp_path: Path, ioc: Ioc) -> None:
    path = tmp_path / "scan.h5"
    running = client(ioc, saved(tmp_path, SCAN.shape[1:]), path)
    for index in range(3):
        ioc.send(index + 1, SCAN[index])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with h5py.File(path, locking=False) as file:  # flushed every second
            if len(file["entry/data/data"]) == 3:
                break
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    said, wrong = running.communicate(timeout=30)
    assert (running.returncode, wrong) == (3, "")
    assert said == f"{path}: 3 of 8 frames, missing: 3, 4, 5, 6, 7\n"
    assert (read_elsewhere(path) == SCAN[:3]).all()
