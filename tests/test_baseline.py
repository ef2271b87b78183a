"""What users have today, as h5py and hdf5plugin write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from in_memory import sample_of
from numpy.typing import NDArray

from tuner.config import Config
from tuner.document import canonical_json
from tuner.evaluation import Evaluation
from tuner.goal import BASELINES
from tuner.measure import baseline
from tuner.measure.baseline import FILTERS, TEXTS, equivalents, measure_baselines
from tuner.measure.meter import Meter


def counts(*shape: int) -> NDArray[np.uint16]:
    return np.random.default_rng(0).poisson(20, shape).astype(np.uint16)


#: As users would write them, in h5py's words.
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "gzip": {"compression": "gzip", "compression_opts": 4, "shuffle": True},
    "bslz4": {**hdf5plugin.Bitshuffle(nelems=0, cname="lz4")},
    "blosc2": {**hdf5plugin.Blosc2()},
    "zstd": {**hdf5plugin.Zstd()},
}


def test_the_baselines_are_those_that_a_goal_may_name_in_its_order() -> None:
    assert tuple(FILTERS) == tuple(TEXTS) == tuple(equivalents(2)) == BASELINES


@pytest.mark.parametrize(
    ("frames", "chunks"),
    [
        (counts(3, 700, 900), (1, 700, 900)),  # large frames are stored one to a chunk
        (counts(8, 64, 48), (8, 64, 48)),  # small ones several
        (counts(50, 300).astype(np.float32), (50, 300)),
        (counts(2, 40, 50) > 20, (2, 40, 50)),
    ],
    ids=["large", "small", "spectra", "bool"],
)
def test_a_ratio_is_that_of_a_file_that_h5py_writes(
    tmp_path: Path, frames: NDArray[Any], chunks: tuple[int, ...]
) -> None:
    measured = measure_baselines(Meter(sample_of(frames)), windows=1)
    assert tuple(measured) == BASELINES
    for name, evaluation in measured.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            dataset = file.create_dataset("data", data=frames, chunks=chunks, **OPTIONS[name])
            file.flush()
            assert evaluation.metrics["ratio"] == frames.nbytes / dataset.id.get_storage_size()
    assert measured["none"].metrics["ratio"] == 1.0


def check(measured: dict[str, Evaluation], meter: Meter) -> None:
    for name, evaluation in measured.items():
        assert evaluation.config is None
        assert evaluation.failure is None
        assert evaluation.origin["baseline"] == name
        assert evaluation.origin["data"] == meter.sample.digest
        assert evaluation.origin["timing"] == "alone"
        assert evaluation.origin["reference_mb_s"] > 1
        for metric in ("encode_mb_s", "decode_mb_s", "frame_read_mb_s"):
            low, high = evaluation.spread[metric]
            assert 0 < low <= evaluation.metrics[metric] * (1 + 1e-9)
            assert evaluation.metrics[metric] <= high * (1 + 1e-9)
        canonical_json(evaluation.to_dict())  # as the log has it: finite numbers only


def test_speeds_are_positive_with_their_spread() -> None:
    meter = Meter(sample_of(counts(4, 256, 256), counts(1, 256, 256)), 9)
    measured = measure_baselines(meter, windows=3)
    check(measured, meter)
    assert all("sinogram_read_mb_s" in evaluation.metrics for evaluation in measured.values())
    # What a filter takes is less than what it takes with HDF5 around it, but never nothing.
    assert measured["gzip"].metrics["encode_mb_s"] < measured["bslz4"].metrics["encode_mb_s"]


def test_a_large_sample_is_timed_once_through_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "_LONG_SECONDS", 0.0)
    meter = Meter(sample_of(counts(4, 512, 512)))
    check(measure_baselines(meter, windows=3), meter)


@pytest.mark.parametrize("ndim", [1, 2])
def test_the_blosc2_configuration_next_to_each_is_measured_and_about_as_small(ndim: int) -> None:
    frames = counts(4, 512, 600) if ndim == 2 else counts(4, 300_000)
    meter = Meter(sample_of(frames))
    measured = measure_baselines(meter, windows=1)
    for name, config in equivalents(ndim).items():
        assert isinstance(config, Config)
        evaluation = meter.exact(config)
        assert evaluation.failure is None
        assert evaluation.metrics["ratio"] == pytest.approx(measured[name].metrics["ratio"], rel=0.1)
