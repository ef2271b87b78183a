"""A surrogate answers for every configuration of any data, the same each time, and learns from every data set alike."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import synthetic_log as world
from hypothesis import given
from hypothesis import strategies as st

from tuner.config import CHAINS, SPLITMODES, Blosc2, Config
from tuner.errors import InputError
from tuner.evaluation import Evaluation
from tuner.measure.probe import PROBES
from tuner.search.surrogate import (
    FEATURE_WEIGHTS,
    TARGETS,
    Data,
    Surrogate,
    config_features,
    data_of,
    dataset_of,
    is_usable,
)
from tuner.space import load_space

DATA = Data(world.SHAPE, np.dtype(world.DTYPE), next(world.evaluations("new", 0.8, 1.0)).traits)


@pytest.fixture(scope="module")
def log() -> list[Evaluation]:
    return world.log(12)


@pytest.fixture(scope="module")
def surrogate(log: list[Evaluation]) -> Surrogate:
    return Surrogate.fit(log)


def test_it_answers_in_evaluations(surrogate: Surrogate) -> None:
    configs = world.configs()
    guesses = surrogate.guess(configs, DATA, world.REFERENCE_MB_S)
    assert [guess.config for guess in guesses] == configs
    for guess in guesses:
        assert Evaluation.from_dict(guess.to_dict()) == guess
        assert set(guess.metrics) == set(TARGETS)
        assert all(guess.low(name) <= guess.metrics[name] <= guess.high(name) for name in TARGETS)


def test_a_faster_machine_is_guessed_faster_and_no_smaller(surrogate: Surrogate) -> None:
    one, two = (surrogate.guess(world.configs(), DATA, speed) for speed in (1000.0, 2000.0))
    for slow, fast in zip(one, two, strict=True):
        assert fast.metrics["ratio"] == slow.metrics["ratio"]
        assert fast.metrics["encode_mb_s"] == pytest.approx(2 * slow.metrics["encode_mb_s"])


def test_it_guesses_data_that_it_never_saw(surrogate: Surrogate) -> None:
    configs = world.configs()
    mean, _ = surrogate.predict(configs, DATA)
    truth = np.array([world.truth(config, 0.8, 1.0) for config in configs])
    guessed = np.sqrt(np.mean((mean - truth) ** 2, axis=0))
    assert (guessed < 0.4 * truth.std(axis=0)).all()


blosc2s = st.builds(
    Blosc2,
    codec=st.sampled_from(["lz4", "lz4hc", "blosclz", "zstd", "zlib"]),
    clevel=st.integers(0, 9),
    filters=st.sampled_from(CHAINS),
    splitmode=st.sampled_from(sorted(SPLITMODES)),
    typesize=st.sampled_from([0, 1, 2, 4, 8]),
    blocksize=st.sampled_from([0, 4096, 1 << 20, 1 << 28]),
)


@given(
    configs=st.lists(
        st.builds(Config, st.tuples(st.integers(1, 9), st.sampled_from([-1, 8, 512]), st.just(-1)), blosc2s), min_size=1
    ),
    dtype=st.sampled_from(["bool", "uint8", ">u2", "float16", "int32", "float64", "uint64"]),
    size=st.sampled_from([8, 1000]),
    extreme=st.sampled_from([0.0, -1e300, 1e300]),
)
def test_it_is_defined_for_every_allowed_configuration(
    surrogate: Surrogate, configs: list[Config], dtype: str, size: int, extreme: float
) -> None:
    data = Data((size, 8), np.dtype(dtype), {**DATA.traits, "smooth": extreme, "never heard of": extreme})
    mean, std = surrogate.predict(configs, data)
    assert mean.shape == std.shape == (len(configs), len(TARGETS))
    assert np.isfinite(mean).all()
    assert (std >= 0).all()
    assert np.isfinite(std).all()
    assert config_features(configs, data).shape == (len(configs), len(FEATURE_WEIGHTS))


def test_what_is_guessed_does_not_depend_on_what_is_guessed_beside_it(surrogate: Surrogate) -> None:
    configs = world.configs()
    together, _ = surrogate.predict(configs, DATA)
    alone = np.concatenate([surrogate.predict([config], DATA)[0] for config in configs[::20]])
    np.testing.assert_allclose(together[::20], alone, rtol=0, atol=1e-12)


def test_the_seed_decides(log: list[Evaluation]) -> None:
    one, same, other = (Surrogate.fit(log, seed=seed, trees=10).predict(world.configs(), DATA)[0] for seed in (3, 3, 4))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_order_of_data_sets_in_the_log_is_nothing(log: list[Evaluation]) -> None:
    groups = [[e for e in log if dataset_of(e) == name] for name in sorted({dataset_of(e) for e in log}, reverse=True)]
    one, same = (Surrogate.fit(lines, trees=10) for lines in (log, [e for group in groups for e in group]))
    assert np.array_equal(one.predict(world.configs(), DATA)[0], same.predict(world.configs(), DATA)[0])


def test_one_data_set_measured_often_does_not_drown_the_others(log: list[Evaluation]) -> None:
    loud = list(world.evaluations("loud", 0.8, 3.0, chosen=world.configs()[::6]))
    often = [replace(e, origin={**e.origin, "data": f"digest {index}"}) for index in range(30) for e in loud]
    truth = np.array([world.truth(config, 0.8, 1.0) for config in world.configs()])
    once, drowned, heavier = (
        np.abs(Surrogate.fit(lines, trees=60).predict(world.configs(), DATA)[0] - truth)[:, 0].mean()
        for lines in (
            log + loud,
            log + often,
            log + [replace(e, origin={**e.origin, "dataset": e.origin["data"]}) for e in often],
        )
    )
    assert len(often) > 2 * len(log)
    assert drowned - once < 0.5 * (heavier - once)


def test_too_little_to_learn_from_is_said_in_a_line(log: list[Evaluation]) -> None:
    for few in ([], log[:100], [e for e in log if dataset_of(e) == "set-0-0"] * 20):
        with pytest.raises(InputError, match=r"log: must hold 200 evaluations of 5 data sets to learn from, got "):
            Surrogate.fit(few)


@pytest.mark.parametrize(
    "change",
    [
        {"timing": "in passing"},
        {"reference_mb_s": 0.0},
        {"reference_mb_s": float("nan")},
        {"reference_mb_s": "fast"},
        {"dtype": "no dtype"},
        {"dtype": "O"},
        {"dtype": None},
        {"frame_shape": [4]},
        {"frame_shape": [0, 0]},
        {"frame_shape": "512"},
        {"frame_shape": 5},
        {"data": None},
        {"data": ["a", "list"]},
    ],
    ids=str,
)
def test_what_has_no_sound_origin_teaches_nothing(log: list[Evaluation], change: dict[str, object]) -> None:
    sound = next(e for e in log if e.config is not None)
    assert is_usable(sound)
    assert not is_usable(replace(sound, origin={**sound.origin, **change}))


def test_widening_multiplies_the_standard_deviation(surrogate: Surrogate) -> None:
    mean, std = surrogate.predict(world.configs(), DATA)
    same, wide = surrogate.calibrated(np.array([1.0, 2.0, 3.0])).predict(world.configs(), DATA)
    assert np.array_equal(mean, same)
    np.testing.assert_allclose(wide, std * [1.0, 2.0, 3.0])


def test_a_probe_stands_for_every_chain(log: list[Evaluation]) -> None:
    first = next(e for e in log if e.config is not None)
    assert all(f"probe_{name}_log_ratio" in first.traits for name in PROBES)
    assert data_of(first).frame_shape == world.SHAPE


@pytest.mark.slow
def test_a_space_of_tens_of_thousands_is_guessed_at_once(
    surrogate: Surrogate, capsys: pytest.CaptureFixture[str]
) -> None:
    space = load_space("portable").bind((512, 512), np.dtype("uint16"), 16)
    found = {}
    for _, config in space.grid():
        found[config.resolve((512, 512), np.dtype("uint16"))] = None
    configs = list(found)
    few = configs[:: len(configs) // 300]
    seconds = []
    for part in (few, configs):
        begin = time.perf_counter()
        with warnings.catch_warnings():
            mean, _ = surrogate.predict(part, DATA)
        seconds.append(time.perf_counter() - begin)
        assert len(mean) == len(part)
    with capsys.disabled():
        print(f"\n{len(configs)} configurations guessed in {seconds[1]:.2f} s, {len(few)} in {seconds[0]:.2f} s")
    # No worse than in proportion to their number.
    assert seconds[1] / seconds[0] < 3 * len(configs) / len(few)
