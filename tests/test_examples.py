"""The complete examples of the documentation do what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest

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
