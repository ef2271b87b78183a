"""Bits of a mantissa that are worth keeping, on data whose information is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tuner import find_profile
from tuner.steps.information import bit_information, informative_bits
from tuner.steps.uniform import Mantissa


def entropy(q: float) -> float:
    return float(-q * np.log2(q) - (1 - q) * np.log2(1 - q))


def chains(flips: list[float], dtype: str) -> NDArray[np.floating]:
    """Floats from 1 to 2: bit n of the mantissa flips with this probability from pixel to pixel, others are noise."""
    rng = np.random.default_rng(0)
    digits = {"float16": 10, "float32": 23, "float64": 52}[dtype]
    shape = (200, 1000)
    values = np.zeros(shape)
    for place in range(digits):
        flip = rng.random(shape) < (flips[place] if place < len(flips) else 0.5)
        values += (flip.cumsum(axis=1) % 2) * 2.0 ** -(place + 1)
    return (1 + values).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_information_is_that_of_what_was_made(dtype: str) -> None:
    """A bit that flips with probability q tells 1 - H(q) bits of the next one; constant bits and noise tell nothing."""
    flips = [0.01, 0.03, 0.1, 0.3]
    frames = chains(flips, dtype)
    found = bit_information(frames, np.ones(frames.shape, bool))
    before = len(found) - {"float16": 10, "float32": 23, "float64": 52}[dtype]
    assert found[before : before + 4] == pytest.approx([1 - entropy(q) for q in flips], abs=0.01)
    # One of a hundred random bits may pass for more.
    assert np.count_nonzero(found[:before]) == 0
    assert found[before + 4 :].sum() < 1e-4
    assert informative_bits(frames, np.ones(frames.shape, bool)) == 4
    assert informative_bits(frames, np.ones(frames.shape, bool), share=0.6) == 2


def test_half_the_noise_is_one_more_bit() -> None:
    rng = np.random.default_rng(0)
    scene = 1.5 + 0.4 * np.sin(np.linspace(0, 3, 1000))
    kept = []
    for digits in range(4, 9):
        frames = (scene + rng.normal(0, 2.0**-digits, (100, 1000))).astype("float32")
        kept.append(informative_bits(frames, np.ones(frames.shape, bool)))
    assert np.diff(np.array(kept, float)).tolist() == [1.0] * 4


def test_pixels_that_do_not_count_say_nothing() -> None:
    frames = chains([0.01, 0.1], "float32")
    spoiled, valid = frames.copy(), np.ones(frames.shape, bool)
    valid[:, 300:500] = False
    spoiled[~valid] = np.nan
    calm = bit_information(frames, valid)
    assert bit_information(spoiled, valid).tolist() == calm.tolist()
    assert not bit_information(spoiled, np.zeros(valid.shape, bool)).any()
    assert informative_bits(spoiled, np.zeros(valid.shape, bool)) is None
    noise = np.random.default_rng(0).integers(0, 1 << 23, (3, 400)).astype("uint32") | np.uint32(0x3F800000)
    assert informative_bits(noise.view("float32"), np.ones(noise.shape, bool)) is None


def test_a_search_among_mantissas_tries_what_information_proposes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The space offers hardly any bits, or all: the search adds what the data holds."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    rng = np.random.default_rng(0)
    scene = 1.5 + 0.4 * np.sin(np.linspace(0, 20, 64))
    frames = (scene + rng.normal(0, 2.0**-7, (40, 64, 64))).astype("float32")
    np.save(tmp_path / "a.npy", frames)
    (tmp_path / "space.yaml").write_text(
        "steps: {choose: [[], [{step: mantissa, keep: {choose: [1, 20]}}]]}\n"
        "chunks: [1, ...]\nblosc2: {codec: zstd, clevel: 1, filters: [shuffle]}\n"
    )
    found = find_profile(
        [tmp_path / "a.npy"],
        space=tmp_path / "space.yaml",
        maximize=["ratio"],
        require=["rmse <= 0.02"],
        noise=f"read={2.0**-7}",
        budget="9",
        sample="300kB",
        surrogate=False,
    )
    proposed = informative_bits(frames, np.ones(frames.shape, bool))
    assert found.profile.config.steps == (Mantissa(proposed or 0),)
