"""Verify on write and drift: an encoder that cheats, frames that break a limit, a scan that leaves its profile."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest
from in_memory import stack_of
from numpy.typing import NDArray

from tuner.apply.checksum import Encoded
from tuner.apply.encode import Encoder
from tuner.apply.guard import EVERY, Verifier, Watch
from tuner.apply.opening import open_writer
from tuner.config import Blosc2, Config
from tuner.errors import CodecError, InputError
from tuner.noise import Noise
from tuner.profile import Match, Profile
from tuner.read.sampling import Run, Sample
from tuner.search.evidence import envelope
from tuner.stack import Kind
from tuner.steps.uniform import Uniform
from tuner.traits import traits

SHAPE = (1, 20, 30)
DTYPE = np.dtype("uint16")
CHEATS = {
    "zeros": lambda chunk: np.zeros_like(chunk),
    "negation": lambda chunk: ~chunk,
    "a bit": lambda chunk: chunk ^ (np.arange(chunk.size).reshape(chunk.shape) == 311).astype(chunk.dtype),
    "the chunk before": lambda chunk: chunk - 1,
}


def frames_of(count: int) -> NDArray[np.uint16]:
    return (np.random.default_rng(0).poisson(40, (1, 20, 30)) + np.arange(count)[:, None, None]).astype(np.uint16)


class Cheat(Encoder):
    """An encoder of c-blosc2 that encodes something else, of some chunks."""

    def __init__(self, cheat: Any, wrong: Any) -> None:
        super().__init__(Blosc2("zstd", typesize=2), SHAPE, DTYPE)
        self.cheat = cheat
        self.wrong = wrong

    def encode(self, chunk: NDArray[Any], out: NDArray[np.uint8] | None = None) -> Encoded:
        return super().encode(self.cheat(chunk) if self.wrong() else chunk, out)


class Nothing(Encoder):
    """An encoder whose frames decode to nothing: what is in the buffer stays in it."""

    def __init__(self) -> None:
        super().__init__(Blosc2("zstd", typesize=2), SHAPE, DTYPE)

    def decode(self, frame: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        assert out is not None
        return out


def honest(clevel: int = 0) -> Encoder:
    return Encoder(Blosc2("lz4", clevel=clevel, typesize=2), SHAPE, DTYPE)


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS)
def test_a_frame_that_does_not_return_its_chunk_is_never_written(cheat: Any) -> None:
    cheating = Cheat(cheat, lambda: True)
    verifier = Verifier(cheating, [Cheat(cheat, lambda: True), honest()], Watch("all"))
    chunks = frames_of(9)[:, None]
    for number, chunk in enumerate(chunks):
        frame = verifier((number, 0, 0), chunk, cheating.encode(chunk))
        assert (honest().decode(frame) == chunk).all()
    assert verifier.watch.found == 9
    assert verifier.replaced.array().tolist() == [[0, 9]]
    with pytest.raises(CodecError, match="frames 3 to 3: no codec returns them as they are"):
        Verifier(cheating, [cheating], Watch("all"))((3, 0, 0), chunks[3], cheating.encode(chunks[3]))


def test_what_is_left_in_a_buffer_does_not_pass_for_a_decoded_chunk() -> None:
    encoder = Nothing()
    verifier = Verifier(encoder, [honest()], Watch("all"))
    chunk = frames_of(1)
    for number in range(3):  # the same chunk again: it is in the buffer
        verifier((number, 0, 0), chunk, encoder.encode(chunk))
    assert verifier.watch.found == 3


def test_frames_that_cannot_be_decoded_and_nan_are_compared_as_they_are() -> None:
    verifier = Verifier(honest(), [honest()], Watch("all"))
    chunk = frames_of(1)
    assert (honest().decode(verifier((0, 0, 0), chunk, b"no frame at all")) == chunk).all()
    floats = Encoder(Blosc2("zstd", typesize=4), (1, 4), np.dtype("float32"))
    nan = np.array([[np.nan, -0.0, 1, np.inf]], "float32")
    verifier = Verifier(floats, [floats], Watch("all"))
    verifier((0, 0), nan, floats.encode(nan))
    assert verifier.watch.found == 0
    verifier((0, 0), nan, floats.encode(np.abs(nan)))  # -0.0 became 0.0
    assert verifier.watch.found == 1


@pytest.mark.parametrize("verify", EVERY)
def test_a_sample_is_the_first_of_every_thread_and_one_in_64(verify: str) -> None:
    watch = Watch(verify)
    due: dict[int, list[bool]] = {}

    def work(thread: int) -> None:
        due[thread] = [watch.due() for _ in range(640)]

    for thread in range(3):
        started = threading.Thread(target=work, args=(thread,))
        started.start()
        started.join()
    counts = [sum(seen) for seen in due.values()]
    assert counts == {"off": [0] * 3, "sample": [11] * 3, "all": [640] * 3}[verify]
    assert all(seen[0] == (verify != "off") for seen in due.values())
    watch.report("something")
    if verify == "sample":
        assert all(watch.due() for _ in range(100))  # once one was wrong, all are looked at


def test_the_words_of_verify_are_checked() -> None:
    with pytest.raises(InputError, match="verify must be 'off', 'sample' or 'all', got 'most'"):
        Watch("most")


def profile_of(config: Config, **facts: Any) -> Profile:
    return Profile("guard", Match("uint16"), config, replace(config, steps=()), **facts)


#: A process in which c-blosc2 cheats or fails from a chunk on, as a bug in it would: nothing else is replaced.
CHEATING = """
import sys, logging
import numpy as np
from tuner.apply.compressor import Compressor, library
from tuner.apply.opening import open_writer
from tuner.config import Config
from tuner.profile import Match, Profile
from tuner.read.sampling import Run, Sample
from tuner.search.evidence import envelope
from tuner.stack import Kind
library()  # is probed honestly
real, compress, calls = Compressor.__init__, Compressor.__call__, [0]
def init(self, library, cparams):
    self.honest = cparams["clevel"] == 0
    real(self, library, cparams)
def cheating(self, chunk, out):
    calls[0] += not self.honest
    if self.honest or calls[0] <= int(sys.argv[2]):
        return compress(self, chunk, out)
    if sys.argv[4] == "raises":
        raise RuntimeError("the codec says no")
    return 0 if sys.argv[4] == "fails" else compress(self, np.zeros_like(chunk), out)
Compressor.__init__, Compressor.__call__ = init, cheating
config = Config((2, 10, -1))
frames = np.random.default_rng(0).integers(1, 60, (200, 20, 30), "uint16")
with open_writer(sys.argv[1], Profile("t", Match("uint16"), config, config), frame_shape=(20, 30), dtype="uint16",
                 workers=2, verify=sys.argv[3]) as writer:
    for frame in frames:
        writer.append(frame)
"""


def written_by(path: Path, after: int, verify: str, what: str) -> tuple[NDArray[Any], dict[str, Any], str]:
    """Which frames are wrong in the file of a codec that goes wrong, its attributes, and the log."""
    command = [sys.executable, "-c", CHEATING, str(path), str(after), verify, what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count("\n") < 10  # not a line a chunk
    frames = np.random.default_rng(0).integers(1, 60, (200, 20, 30), "uint16")
    with h5py.File(path) as file:
        data = file["entry/data/data"]
        return (data[()] != frames).any((1, 2)), dict(data.attrs), done.stderr


@pytest.mark.parametrize(("after", "verify"), [(0, "sample"), (70, "sample"), (70, "all")])
def test_a_codec_that_goes_wrong_is_found_counted_and_logged(tmp_path: Path, after: int, verify: str) -> None:
    wrong, attributes, log = written_by(tmp_path / "a.h5", after, verify, "cheats")
    assert "a chunk decodes to something else, written otherwise" in log
    assert attributes["tuner_replaced_chunks"] > 0
    # All after the first that was seen is right, but for what was in flight.
    assert not wrong[int(attributes["tuner_replaced_frames"][0, 0]) + 40 :].any()
    assert verify == "sample" or not wrong.any()
    assert after or not wrong[0]  # the first chunk of a thread is looked at


@pytest.mark.parametrize("verify", ["off", "sample"])
@pytest.mark.parametrize(("what", "why"), [("raises", "the codec says no"), ("fails", "c-blosc2 cannot compress")])
def test_a_chunk_that_cannot_be_encoded_is_written_otherwise(tmp_path: Path, what: str, why: str, verify: str) -> None:
    wrong, attributes, log = written_by(tmp_path / "a.h5", 70, verify, what)
    assert not wrong.any()
    assert attributes["tuner_replaced_chunks"] == 200 - 70  # of two frames each, in two tiles
    assert sum(after - first for first, after in attributes["tuner_replaced_frames"]) in range(130, 133)
    assert "a chunk cannot be encoded" in log
    assert why in log


def test_a_frame_that_breaks_a_limit_turns_sampling_into_verifying_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    goal = {"name": "own", "maximize": ["ratio"], "require": ["max_error_sigma <= 0.2"]}
    frames = np.full((200, 20, 30), 800, np.uint16)
    frames[63:, 5, 5] = 3  # a step of 8 moves it by more than a fifth of its sigma
    config = Config((1, -1, -1), Blosc2("zstd", clevel=1), (Uniform(8),))
    evidence = {"goal": goal, "promise": {"provisional": False}}
    profile = profile_of(config, noise=Noise(1.0, 0.0, 0.0, "given", 1.0), evidence=evidence)
    with open_writer(tmp_path / "a.h5", profile, frame_shape=(20, 30), dtype="uint16", workers=1) as writer:
        writer.append(frames)
    with h5py.File(tmp_path / "a.h5") as file:
        data = file["entry/data/data"]
        assert data.attrs["tuner_lossless_frames"].tolist() == [[63, 200]]
        assert data.attrs["tuner_broken_frames"] == 137
        assert (data[63:] == frames[63:]).all()
    assert "max_error_sigma <= 0.2 is broken" in caplog.text


def envelope_of(frames: NDArray[Any]) -> dict[str, tuple[float, float]]:
    rows = [traits(frame[None], np.ones((1, *frame.shape), bool)) for frame in frames]
    return {
        name: (float(np.quantile([row[name] for row in rows], 0.05)), float(np.quantile([r[name] for r in rows], 0.95)))
        for name in rows[0]
    }


def scan(seed: int, mean: float, count: int = 40) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).poisson(mean, (count, 40, 60)).astype(np.uint16)


def test_the_envelope_of_few_large_frames_is_of_some_others_too() -> None:
    """Else a flickering beam would be a drift: a sample may hold a single frame."""
    frames = np.concatenate([scan(number, 20 + number, 1) for number in range(24)])
    frames[19] = 5000
    kinds = np.where(np.arange(24) == 19, Kind.FLAT, Kind.DATA)
    stacks = [stack_of(frames[:3]), stack_of(frames, kinds=kinds)]
    sample = Sample((Run(1, 7, frames[7:8]),))
    low, high = envelope(sample, stacks)["mean"]
    assert 19 < low < 22
    assert 39 < high < 44
    assert envelope(Sample((Run(0, 0, frames[:1]),)), [stack_of(frames[:1])]) == {}
    many = Sample((Run(1, 0, frames[:9]),))
    assert envelope(many, stacks)["mean"] == pytest.approx(envelope_of(frames[:9])["mean"], rel=1e-4)


@pytest.mark.parametrize("on_drift", ["warn", "lossless"])
def test_a_scan_that_leaves_its_profile_says_so_once_with_numbers(
    tmp_path: Path, on_drift: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.apply.drift.SHARE", 1e9)  # look all the time
    config = Config((1, -1, -1), Blosc2("zstd", clevel=1), (Uniform(2),))
    evidence = {"promise": {"provisional": False}}
    profile = profile_of(
        config, envelope=envelope_of(scan(0, 20)), evidence=evidence, noise=Noise(1.0, 0.0, 0.0, "given")
    )
    path = tmp_path / "a.h5"
    like, unlike = scan(1, 20), scan(2, 300)
    with (
        caplog.at_level(logging.WARNING),
        open_writer(path, profile, frame_shape=(40, 60), dtype="uint16", on_drift=on_drift) as writer,
    ):
        for frame in like:
            writer.append(frame)
        writer._flow.drift._looking.join()  # type: ignore[union-attr]
        assert not caplog.text
        for frame in unlike:
            writer.append(frame)
            writer._flow.drift._looking.join()  # type: ignore[union-attr]
    lines = [line for line in caplog.text.splitlines() if "mean is" in line]
    assert len(lines) == 1
    with h5py.File(path) as file:
        data = file["entry/data/data"]
        value, low, high, number = json.loads(data.attrs["tuner_outside_envelope"])["mean"]
        assert low < 20 < high < 250 < value
        assert 40 <= number < 46
        kept = data.attrs["tuner_lossless_frames"].tolist()
        assert kept == ([[int(number) + 1, 80]] if on_drift == "lossless" else [])
        assert (data[60:] == unlike[20:]).all() == (on_drift == "lossless")


def test_a_scan_like_its_profile_warns_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    profile = profile_of(Config(), envelope=envelope_of(scan(0, 20)), evidence={"metrics": {"ratio": [2.0, 1.9, 2.1]}})
    for seed in range(5):
        path = tmp_path / f"{seed}.h5"
        with open_writer(path, profile, frame_shape=(40, 60), dtype="uint16") as writer:
            for frame in scan(seed + 1, 20, 20):
                writer.append(frame)
        with h5py.File(path) as file:
            assert "tuner_outside_envelope" not in file["entry/data/data"].attrs
    assert not caplog.text
