"""Writing to a folder: what it can be at most, what it is, and what a search makes of a requirement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner import find_profile
from tuner.config import Blosc2, Config
from tuner.errors import InputError, UnsatisfiableError
from tuner.measure.target import Target
from tuner.measure.verify import verify_original
from tuner.profile import load_profile
from tuner.read import open_stacks
from tuner.read.sampling import draw_sample
from tuner.simulate import Tomography, write_nexus
from tuner.steps import Pixels

RATIO, SPEED = st.floats(1.0, 100.0), st.floats(1.0, 1e5)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("target") / "scan.nxs"
    write_nexus(str(path), Tomography(shape=(96, 128)).simulate(16, seed=0))
    return path


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target(tmp_path_factory.mktemp("written"), 2)


@given(RATIO, SPEED, st.integers(1, 64), st.floats(1.0, 4.0))
def test_a_bound_is_one(target: Target, ratio: float, encode: float, cores: int, more: float) -> None:
    bound = target.bound(ratio, encode, cores)
    assert 0 < bound <= cores * encode
    assert bound <= ratio / target.write_s / 1e6, "one file is written to by one thread at a time"
    assert target.bound(ratio * more, encode, cores) >= bound
    assert target.bound(ratio, encode * more, cores) >= bound
    assert target.bound(ratio, encode, cores + 1) >= bound
    assert (target.bound(np.array([ratio]), np.array([encode]), cores) == bound).all(), "for many at once as for one"


def test_what_is_measured_leaves_nothing(target: Target, scan: Path) -> None:
    sample = draw_sample(open_stacks([scan]))
    timing = target.measure(Config((4, -1, -1), Blosc2("zstd", clevel=1)), sample, Pixels())
    assert timing.mb_s > 0
    assert list(target.folder.iterdir()) == []


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder .*none must exist"):
        Target(tmp_path / "none", 1)


def test_a_search_measures_its_finalists_through_the_writer(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    folder = tmp_path / "visit"
    folder.mkdir()
    found = find_profile(
        [scan],
        space="quick",
        maximize=["ratio"],
        require=["encode_mb_s >= 0.001"],
        detector="128x96:uint16@2Hz",
        budget="10",
        target=folder,
        surrogate=False,
    )
    assert list(folder.iterdir()) == []
    best = found.result.best
    assert best.origin["target"] == str(folder)
    low, high = best.spread["write_mb_s"]
    assert low <= best.metrics["write_mb_s"] <= high
    assert "write_mb_s >= 0.06144" in found.profile.evidence["goal"]["require"]
    found.profile.save(tmp_path / "p.yaml")
    profile = load_profile(tmp_path / "p.yaml", strict=True)
    assert profile.evidence["writer"]["target"] == str(folder)
    verified = verify_original(profile, open_stacks([scan])[0], 1 << 20)
    assert [r["met"] for r in verified["requirements"] if r["requirement"].startswith("write_mb_s")] == [True]
    assert list(folder.iterdir()) == []
    with pytest.raises(UnsatisfiableError, match=r"write_mb_s .* must be >= 3.072e"):
        find_profile(
            [scan],
            space="quick",
            maximize=["ratio"],
            detector="128x96:uint16@100000kHz",
            budget="8",
            target=folder,
            surrogate=False,
        )


def test_a_detector_of_other_frames_is_refused(scan: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--detector must be of the frames at hand, 128x96:uint16, got '96x128:uint16"):
        find_profile([scan], maximize=["ratio"], detector="96x128:uint16@1Hz", target=tmp_path)
