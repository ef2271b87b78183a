"""Soaking: what is reported is what happened, and nothing of it is left."""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tuner.apply.scan_file import ScanFile
from tuner.cli import main
from tuner.config import Config
from tuner.errors import InputError
from tuner.measure.pace import Detector, parse_duration, parse_rate
from tuner.measure.soak import simulated, soak
from tuner.profile import Match, Profile
from tuner.read.npy import open_npy
from tuner.report.soak import format_soak

SHAPE = (64, 48)


def profile(dtype: str = "uint16", shape: tuple[int, ...] | None = SHAPE) -> Profile:
    config = Config((1, *(-1,) * len(shape or SHAPE)))
    return Profile("soaked", Match(dtype, (), shape), config, config)


@given(
    st.integers(1, 9999), st.integers(1, 9999), st.sampled_from(["uint8", "uint16", "float32"]), st.integers(1, 9999)
)
def test_a_detector_reads_as_it_is_written(width: int, height: int, dtype: str, rate: int) -> None:
    detector = Detector.parse(f"{width}x{height}:{dtype}@{rate}Hz")
    assert detector.frame_shape == (height, width)
    assert detector == Detector.parse(f" {width}x{height}:{dtype}@{rate / 1000}kHz ") or rate / 1000 * 1000 != rate
    assert math.isclose(detector.mb_s * 1e6, width * height * np.dtype(dtype).itemsize * rate)


@pytest.mark.parametrize(
    "text", ["", "2048:uint16@5Hz", "0x5:uint16@5Hz", "4x5:uint17@5Hz", "4x5:str@5Hz", "4x5:uint16@0Hz", "4x5:uint16@5"]
)
def test_what_is_no_detector_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--detector must"):
        Detector.parse(text)


@pytest.mark.parametrize("text", ["", "5", "-5Hz", "0Hz", "5 MHz", "nanHz"])
def test_what_is_no_rate_or_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--rate must be a rate such as"):
        parse_rate(text)
    with pytest.raises(InputError, match="--for must be a time such as"):
        parse_duration(text)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint32", "float32"])
@pytest.mark.parametrize("shape", [(40,), SHAPE])
def test_frames_are_simulated_for_any_profile(dtype: str, shape: tuple[int, ...]) -> None:
    frames = simulated(shape, np.dtype(dtype))
    assert frames.dtype == dtype
    assert frames.shape[1:] == shape
    assert len(np.unique(frames)) > 1
    assert (frames[0] != frames[1]).any()


def saved(path: Path) -> Path:
    np.save(path, simulated(SHAPE, np.dtype("uint16")))
    return path


def test_what_is_reported_adds_up(tmp_path: Path) -> None:
    found = soak(profile(), tmp_path, rate=100.0, seconds=1.2, workers=2)
    assert found.frames == found.played == 120
    assert found.seconds >= 119 / 100, "no frame is played before it is due"
    assert found.sustained_hz <= 120 / found.seconds
    assert found.worst_hz <= 101
    assert math.isclose(found.write_mb_s, found.sustained_hz * math.prod(SHAPE) * 2 / 1e6)
    latencies = list(found.latency_ms.values())
    assert latencies == sorted(latencies)
    assert 0 <= found.queue["median"] <= found.queue["max"] <= found.queue["depth"] == 12
    assert found.shed == 0
    assert list(tmp_path.iterdir()) == []


def test_a_slow_disk_makes_frames_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ScanFile.write

    def write(self: ScanFile, *arguments: Any) -> None:
        time.sleep(0.02)
        real(self, *arguments)

    monkeypatch.setattr(ScanFile, "write", write)
    found = soak(profile(), tmp_path, rate=500.0, seconds=0.2, workers=1)
    assert found.late > 50
    assert found.worst_hz <= found.rate_hz / 5
    assert found.queue["max"] == found.queue["depth"]
    assert found.latency_ms["100 %"] > 1000


def test_a_writer_far_behind_is_stopped_and_what_was_not_played_is_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ScanFile.write

    def write(self: ScanFile, *arguments: Any) -> None:
        time.sleep(0.02)
        real(self, *arguments)

    monkeypatch.setattr(ScanFile, "write", write)
    monkeypatch.setattr("tuner.measure.soak._GRACE_S", 0.5)
    found = soak(profile(), tmp_path, rate=5000.0, seconds=0.2, workers=1)  # 20 s at this pace
    assert found.frames == 1000
    assert 0 < found.played <= 100
    assert found.late >= 1000 - found.played
    assert found.sustained_hz < 100
    assert f"stopped far behind, after {found.played} of them" in format_soak(found)


def test_simulated_frames_are_no_drift(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = replace(profile(), envelope={"mean": (0.0, 1.0)})
    soak(told, tmp_path, rate=500.0, seconds=0.5)
    assert "the profile is for" not in caplog.text
    played = open_npy(saved(tmp_path / "frames.npy"))
    soak(told, tmp_path, rate=500.0, seconds=0.5, stack=played)
    played.close()
    assert "mean is " in caplog.text


def test_what_cannot_be_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder .*none must exist"):
        soak(profile(), tmp_path / "none", 5.0, 1.0)
    with pytest.raises(InputError, match=r"must have about .* GB free for this, got .*: enough for about"):
        soak(profile(), tmp_path, 1e9, 1e6)
    with pytest.raises(InputError, match="profile soaked must have a frame_shape for frames to be simulated"):
        soak(profile(shape=None), tmp_path, 5.0, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_the_command_keeps_its_report_and_tells_of_late_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "target").mkdir()
    profile().save(tmp_path / "p.yaml")
    np.save(tmp_path / "frames.npy", simulated(SHAPE, np.dtype("uint16")))
    command = ["soak", str(tmp_path / "p.yaml"), "--target", str(tmp_path / "target")]
    report = tmp_path / "report.yaml"
    slowly = ["--rate", "1Hz", "--for", "2s", "--data", str(tmp_path / "frames.npy")]
    assert main([*command, *slowly, "-o", str(report)]) == 0
    assert "sustained" in capsys.readouterr().out
    kept = yaml.safe_load(report.read_text())
    assert kept["frames"] == 2
    assert kept["late"] == 0
    assert kept["data"].endswith("frames.npy")
    real = ScanFile.write
    monkeypatch.setattr(ScanFile, "write", lambda self, *a: (time.sleep(0.05), real(self, *a))[1])
    assert main([*command, "--rate", "100Hz", "--for", "1s", "--json", "-o", str(tmp_path / "report.json")]) == 3
    told = capsys.readouterr()
    assert told.err.strip().endswith("of 100 frames were late at 100Hz")
    assert json.loads(told.out) == json.loads((tmp_path / "report.json").read_text())
    assert list((tmp_path / "target").iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tuner-")]
