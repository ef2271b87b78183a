"""A meter counts every stored byte, believes no codec, and spends its time on encoding and decoding."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import sample_of
from numpy.typing import NDArray

from tuner.apply.encode import Encoder
from tuner.config import Blosc2, Config
from tuner.errors import CodecError
from tuner.evaluation import METRICS, Evaluation
from tuner.measure.meter import Meter, same_bytes
from tuner.measure.timing import Reference, Timing
from tuner.noise import Noise
from tuner.quality import compare, worst
from tuner.read.sampling import Run, Sample
from tuner.stack import Marks
from tuner.steps import Pixels, prepare
from tuner.steps.uniform import Mantissa, Uniform

CHECKSUM_NBYTES = 4

#: Adversaries take the place of the encoders of configurations with this level.
LEVEL = 7


def counts(*shape: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).poisson(100, shape).astype(np.uint16)


class Substituted(Meter):
    """A meter some of whose encoders are of another kind."""

    def __init__(self, sample: Sample, kind: Callable[..., Encoder], level: int = LEVEL, frames: int = 0) -> None:
        super().__init__(sample, frames)
        self._kind = kind
        self._level = level

    def encoder(self, config: Config, timeout_s: float = math.inf) -> Any:
        resolved = self.resolve(config)
        kind = self._kind if resolved.blosc2.clevel == self._level else Encoder
        return kind(resolved.blosc2, resolved.chunks, self.sample.dtype)


# What is stored


@st.composite
def cuttings(draw: st.DrawFn) -> tuple[Sample, Config, tuple[int, ...]]:
    """Runs of small frames, and chunks that cut them in any way."""
    tile = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=2)))
    dtype = draw(st.sampled_from(["uint8", "uint16", "int32", "float64"]))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=2))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    sample = sample_of(*(rng.integers(0, 99, (n, *tile)).astype(dtype) for n in lengths))
    extents = tuple(draw(st.just(-1) | st.integers(1, 15)) for _ in tile)
    codec, filters = draw(st.sampled_from(["lz4", "zstd"])), draw(st.sampled_from([(), ("shuffle",), ("bitshuffle",)]))
    config = Config((draw(st.integers(1, 6)), *extents), Blosc2(codec, clevel=1, filters=filters))
    return sample, config, tuple(size if e == -1 else min(e, size) for e, size in zip(extents, tile, strict=True))


@given(cuttings())
@settings(max_examples=60)
def test_the_ratio_is_bytes_of_pixels_over_frames_and_checksums_of_all_padded_chunks(
    cutting: tuple[Sample, Config, tuple[int, ...]],
) -> None:
    sample, config, tile = cutting
    chunks = (config.chunks[0], *tile)
    encoder = Encoder(config.resolve(sample.frame_shape, sample.dtype).blosc2, chunks, sample.dtype)
    stored = 0
    for run in sample.runs:
        margins = [(0, -size % extent) for size, extent in zip(run.frames.shape, chunks, strict=True)]
        padded = np.pad(run.frames, margins)
        starts = [range(0, size, extent) for size, extent in zip(padded.shape, chunks, strict=True)]
        for corner in itertools.product(*starts):
            part = padded[tuple(slice(a, a + n) for a, n in zip(corner, chunks, strict=True))]
            stored += len(encoder.encode(np.ascontiguousarray(part))) + CHECKSUM_NBYTES
    evaluation = Meter(sample).exact(config)
    assert evaluation.failure is None
    assert evaluation.metrics["ratio"] == sample.nbytes / stored


@given(cuttings())
@settings(max_examples=30)
def test_configurations_that_resolve_alike_store_the_same(cutting: tuple[Sample, Config, tuple[int, ...]]) -> None:
    sample, config, _ = cutting
    meter = Meter(sample)
    resolved = meter.resolve(config)
    assert meter.resolve(resolved) == resolved
    assert meter.exact(resolved).metrics["ratio"] == meter.exact(config).metrics["ratio"]


def test_ratios_depend_on_no_other_thread_and_come_in_order() -> None:
    meter = Meter(sample_of(counts(4, 64, 64), counts(3, 64, 64, seed=1)))
    configs = [
        Config((frames, -1, 30), Blosc2(codec, clevel=clevel))
        for frames, codec, clevel in itertools.product((1, 3), ("lz4", "zstd"), (1, 5))
    ]
    alone = [meter.exact(config) for config in configs]
    for jobs in (1, 2, 5):
        measured = meter.exact_many(configs, jobs)
        assert [e.config for e in measured] == configs
        assert [e.metrics["ratio"] for e in measured] == [e.metrics["ratio"] for e in alone]
    assert meter.exact_many([], 2) == []


def test_what_the_frames_do_not_allow_is_a_failure_with_its_reason() -> None:
    evaluation = Meter(sample_of(counts(1, 3, 3))).exact(Config((1, -1, -1), Blosc2(typesize=4)))
    assert evaluation.failure == "typesize must divide the chunk of 18 bytes, got 4"
    assert not evaluation.metrics


# Codecs that cheat


class Zeros(Encoder):
    def decode(self, frame: bytes | memoryview, out: NDArray[Any] | None = None) -> NDArray[Any]:
        assert out is not None
        out.fill(0)
        return out


class Untouched(Encoder):
    """Leaves what was decoded before: the right pixels, where chunks are alike."""

    def decode(self, frame: bytes | memoryview, out: NDArray[Any] | None = None) -> NDArray[Any]:
        assert out is not None
        return out


class Junk(Encoder):
    def decode(self, frame: bytes | memoryview, out: NDArray[Any] | None = None) -> NDArray[Any]:
        assert out is not None
        out.view(np.uint8)[:] = np.random.default_rng(0).integers(0, 256, out.view(np.uint8).shape)
        return out


class Negated(Encoder):
    def decode(self, frame: bytes | memoryview, out: NDArray[Any] | None = None) -> NDArray[Any]:
        decoded = super().decode(frame, out)
        decoded.view(np.uint16)[:] = ~decoded.view(np.uint16)
        return decoded


class LastBit(Encoder):
    """Wrong by one in the very last pixel."""

    def decode(self, frame: bytes | memoryview, out: NDArray[Any] | None = None) -> NDArray[Any]:
        decoded = super().decode(frame, out)
        decoded.view(np.uint8).reshape(-1)[-1] ^= 1
        return decoded


class Previous(Encoder):
    """Every chunk but the first is taken for the one before."""

    before: NDArray[Any] | None = None

    def encode(self, chunk: NDArray[Any]) -> bytes:
        frame = super().encode(chunk if self.before is None else self.before)
        self.before = chunk
        return frame


class Torn(Encoder):
    def encode(self, chunk: NDArray[Any]) -> bytes:
        frame = super().encode(chunk)
        return frame[: len(frame) // 2]


class Refuses(Encoder):
    def encode(self, chunk: NDArray[Any]) -> bytes:
        raise CodecError("does not feel like it")


CHEATS = [Zeros, Untouched, Junk, Negated, LastBit, Previous, Torn, Refuses]


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_codec_that_cheats_is_a_failure_without_metrics(cheat: type[Encoder]) -> None:
    meter = Substituted(sample_of(counts(4, 40, 50)), cheat)
    config = Config((1, -1, -1), Blosc2(clevel=LEVEL))
    evaluation = meter.exact(config)
    assert evaluation.failure
    assert "\n" not in evaluation.failure
    assert (evaluation.config, evaluation.metrics, evaluation.spread) == (config, {}, {})
    assert meter.timed(evaluation) is evaluation


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_among_others_harms_none(cheat: type[Encoder]) -> None:
    meter = Substituted(sample_of(counts(4, 40, 50)), cheat)
    configs = [Config((1, -1, -1), Blosc2(codec, clevel=level)) for codec in ("lz4", "zstd") for level in (1, LEVEL, 9)]
    for config, evaluation in zip(configs, meter.exact_many(configs, 3), strict=True):
        assert (evaluation.failure is None) == (config.blosc2.clevel != LEVEL)
        if evaluation.failure is None:
            assert evaluation.metrics["ratio"] == Meter(meter.sample).exact(config).metrics["ratio"]


class Canonical(Encoder):
    """Every NaN becomes the usual one: equal by value, not by bits."""

    def decode(self, frame: bytes | memoryview, out: NDArray[Any] | None = None) -> NDArray[Any]:
        decoded = super().decode(frame, out)
        decoded[np.isnan(decoded)] = np.nan
        return decoded


class Unsigned(Encoder):
    """-0.0 becomes 0.0: equal by value, not by bits."""

    def decode(self, frame: bytes | memoryview, out: NDArray[Any] | None = None) -> NDArray[Any]:
        decoded = super().decode(frame, out)
        decoded[decoded == 0] = 0.0
        return decoded


@pytest.mark.parametrize("cheat", [Canonical, Unsigned])
def test_payloads_of_nan_and_the_sign_of_zero_are_pixels(cheat: type[Encoder]) -> None:
    frames = np.zeros((2, 8, 9), np.float32)
    frames[:, 0] = -0.0
    frames.view(np.uint32)[:, 1] = 0x7FC00123  # a NaN that says more
    config = Config((1, -1, -1), Blosc2(clevel=LEVEL))
    assert Meter(sample_of(frames)).exact(config).failure is None
    assert Substituted(sample_of(frames), cheat).exact(config).failure == "does not decode to the same pixels"


@given(st.integers(1, 40), st.sampled_from(["uint8", "uint16", "float32"]), st.data())
def test_bytes_are_the_same_only_if_all_are(size: int, dtype: str, data: st.DataObject) -> None:
    first = np.random.default_rng(size).integers(0, 256, size * np.dtype(dtype).itemsize).astype(np.uint8).view(dtype)
    second = first.copy()
    assert same_bytes(first, second)
    flipped = data.draw(st.integers(0, second.nbytes - 1))
    second.view(np.uint8)[flipped] ^= 1 << data.draw(st.integers(0, 7))
    assert not same_bytes(first, second)


# What is not worth measuring


class Slow(Encoder):
    """Says that a chunk takes 30 ms, and counts the chunks."""

    encoded = 0

    def timed_encode(self, chunk: NDArray[Any]) -> tuple[bytes, float]:
        Slow.encoded += 1
        return self.encode(chunk), 0.03


def test_what_is_too_slow_is_stopped_early_and_says_so() -> None:
    frames = counts(6, 64, 64)
    frames[0] = 7  # far smaller than the others
    config = Config((1, -1, -1), Blosc2(clevel=LEVEL))
    meter = Substituted(sample_of(frames), Slow)
    slow_mb_s = frames[0].nbytes / 0.03 / 1e6
    Slow.encoded = 0
    stopped = meter.exact(config, least_mb_s=1.1 * slow_mb_s)
    assert Slow.encoded == 1
    assert stopped.origin["timing"] == "in passing, stopped as too slow"
    Slow.encoded = 0
    whole = meter.exact(config, least_mb_s=0.9 * slow_mb_s)
    assert Slow.encoded == 6
    assert whole.origin["timing"] == "in passing"
    assert whole.metrics["encode_mb_s"] == pytest.approx(slow_mb_s)
    assert stopped.metrics["ratio"] > 5 * whole.metrics["ratio"]  # that of the first frame alone


def test_what_takes_more_than_its_share_is_a_failure() -> None:
    meter = Substituted(sample_of(counts(6, 64, 64)), Slow)
    Slow.encoded = 0
    refused = meter.exact(Config((1, -1, -1), Blosc2(clevel=LEVEL)), most_seconds=0.1)
    assert "takes more than 0.1 s" in str(refused.failure)
    assert refused.origin["timing"] == "stopped as too slow"  # unlike a codec that fails, it may be tried again
    assert Slow.encoded == 4
    assert meter.exact(Config((1, -1, -1), Blosc2(clevel=LEVEL)), most_seconds=1.0).failure is None


def test_a_large_chunk_that_will_take_too_long_is_not_begun() -> None:
    class Never(Encoder):
        def encode(self, chunk: NDArray[Any]) -> bytes:
            raise AssertionError("was begun")

    meter = Substituted(sample_of(counts(1, 2048, 1100)), Never)
    refused = meter.exact(Config((1, -1, -1), Blosc2("zstd", clevel=LEVEL)), most_seconds=1e-4)
    assert "more than its share of the budget" in str(refused.failure)


# By the clock


class Metronome(Encoder):
    """Says that encoding takes a nanosecond a byte, and decoding half as long: padding as long as pixels."""

    def timed_encode(self, chunk: NDArray[Any]) -> tuple[bytes, float]:
        return self.encode(chunk), chunk.nbytes * 1e-9

    def timed_decode(self, frame: bytes, out: NDArray[Any]) -> float:
        self.decode(frame, out)
        return out.nbytes * 0.5e-9


@pytest.mark.parametrize(("chunks", "pixels"), [((1, -1, -1), 1.0), ((2, -1, -1), 3 / 4), ((2, 128, 96), 9 / 16)])
def test_speeds_count_pixels_and_not_the_padding(chunks: tuple[int, ...], pixels: float) -> None:
    meter = Substituted(sample_of(counts(3, 192, 96)), Metronome)
    config = Config(chunks, Blosc2(clevel=LEVEL))
    exact = meter.exact(config)
    for evaluation in (exact, meter.timed(exact)):
        assert evaluation.metrics["encode_mb_s"] == pytest.approx(1000 * pixels)
        assert evaluation.metrics["decode_mb_s"] == pytest.approx(2000 * pixels)


@given(
    st.tuples(*[st.integers(1, 20)] * 3),
    st.tuples(*[st.integers(1, 20)] * 3),
    st.lists(st.floats(1.0, 1e4), min_size=1, max_size=9),
    st.data(),
)
@settings(max_examples=60)
def test_reading_a_frame_or_a_sinogram_decodes_every_chunk_that_holds_a_part_of_it(
    shape: tuple[int, int, int], extents: tuple[int, int, int], rates: list[float], data: st.DataObject
) -> None:
    frames = np.zeros(shape, np.uint16)
    chunks = (extents[0], min(extents[1], shape[1]), min(extents[2], shape[2]))
    row, frame = data.draw(st.integers(0, shape[1] - 1)), data.draw(st.integers(0, shape[0] - 1))
    places = np.stack(np.indices(shape)) // np.reshape(chunks, (3, 1, 1, 1))

    def useful(index: tuple[Any, ...]) -> float:
        touched = len(np.unique(places[(slice(None), *index)].reshape(3, -1), axis=1).T)
        return frames[index].size / (touched * math.prod(chunks))

    shell = Evaluation(Config(), {"ratio": 2.0})
    decode = Timing(tuple(rates))
    meter = Meter(sample_of(frames), len(frames))
    meter.reference.run()
    evaluation = meter.with_timings(shell, chunks, Timing((5.0,)), decode)
    metrics, spread = evaluation.metrics, evaluation.spread
    assert metrics["sinogram_read_mb_s"] == pytest.approx(decode.mb_s * useful(np.s_[:, row, :]))
    assert metrics["frame_read_mb_s"] == pytest.approx(decode.mb_s * useful(np.s_[frame, :, :]))
    assert set(spread) == {name for name, metric in METRICS.items() if metric.timed} - {"write_mb_s"}  # no target
    for name, (low, high) in spread.items():
        assert low <= metrics[name] * (1 + 1e-9)
        assert metrics[name] <= high * (1 + 1e-9)


def test_only_three_axes_have_sinograms() -> None:
    for frames, stack in ((counts(2, 9, 9), 0), (counts(5, 40), 5)):
        metrics = Meter(sample_of(frames), stack).exact(Config((1, *(-1,) * (frames.ndim - 1)))).metrics
        assert "sinogram_read_mb_s" not in metrics
        assert "frame_read_mb_s" in metrics


def test_what_was_timed_alone_says_so_with_machine_versions_and_reference() -> None:
    meter = Meter(sample_of(counts(4, 64, 64)))
    evaluation = meter.signed(meter.timed(meter.exact(Config())), dataset="scan")
    assert evaluation.origin["timing"] == "alone"
    assert evaluation.origin["reference_mb_s"] > 1
    assert evaluation.origin["dtype"] == "uint16"
    assert evaluation.origin["frame_shape"] == [64, 64]
    assert evaluation.origin["data"] == meter.sample.digest
    assert evaluation.origin["dataset"] == "scan"
    assert {"machine", "versions", "nbytes"} <= set(evaluation.origin)
    assert Evaluation.from_dict(evaluation.to_dict()) == evaluation


class Stopwatch:
    """Seconds that encoding, decoding and the reference kernel took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - start

        return watched


class Watched(Meter):
    """A meter whose encoders and kernel are under a stopwatch."""

    def __init__(self, sample: Sample) -> None:
        super().__init__(sample)
        self.watch = Stopwatch()
        self.reference = Reference()
        self.reference.run = self.watch.around(self.reference.run)  # type: ignore[method-assign]

    def encoder(self, config: Config, timeout_s: float = math.inf) -> Any:
        encoder: Any = super().encoder(config, timeout_s)
        encoder.timed_encode = self.watch.around(encoder.timed_encode)
        encoder.timed_decode = self.watch.around(encoder.timed_decode)
        return encoder


def test_measuring_costs_little_beyond_encoding_decoding_and_the_kernel() -> None:
    meter = Watched(sample_of(counts(4, 1024, 1024)))
    blosc2 = Blosc2("zstd", clevel=1, filters=("shuffle", "bytedelta"), splitmode="always")
    configs = [Config(chunks, blosc2) for chunks in ((1, -1, -1), (2, -1, -1), (1, 256, -1), (1, 512, 512))]
    start = time.perf_counter()
    for config in configs:
        assert meter.timed(meter.exact(config)).failure is None
    overhead = (time.perf_counter() - start) / meter.watch.seconds - 1
    print(f"measuring costs {overhead:.2f} of encoding, decoding and the reference kernel")
    # About 0.15 where nothing else runs, 0.3 is promised; the margin is the machine's noise.
    assert overhead < 0.6


def test_steps_are_part_of_what_is_measured() -> None:
    """Ratio and speed are those of preparing and encoding, qualities those of the worst frame, once for all codecs."""
    frames = np.random.default_rng(0).poisson(100, (6, 64, 64)).astype(np.uint16)
    frames[:, 3, 4] = 65535
    sample = Sample((Run(0, 0, frames[:4]), Run(0, 9, frames[4:])))
    pixels = Pixels(Marks(invalid=(65535,)), None, Noise(1.0, 0.0, 0.0, "given"))
    names = ("mask_violations", "max_abs_error", "dose_cost")
    meter = Meter(sample, pixels=[pixels], qualities=names)
    plain = Config(blosc2=Blosc2("zstd", clevel=1, filters=("bitshuffle",)))
    lossless, *lossy = (meter.exact(replace(plain, steps=steps)) for steps in ((), (Uniform(4),), (Uniform(16),)))
    assert [lossless.metrics[name] for name in names] == [0, 0, 0]
    assert lossless.metrics["ratio"] < lossy[0].metrics["ratio"] < lossy[1].metrics["ratio"]
    for evaluation, width in zip(lossy, (4, 16), strict=True):
        assert evaluation.failure is None
        stepped = prepare([Uniform(width)], frames, pixels)
        expected = worst(compare(frames, stepped, frames != 65535, pixels.noise, names))
        assert {name: evaluation.metrics[name] for name in names} == expected
        assert expected["max_abs_error"] == width / 2
        # The prepared frames are what is encoded.
        alone = Meter(Sample((Run(0, 0, stepped[:4]), Run(0, 9, stepped[4:])))).exact(plain)
        assert alone.metrics["ratio"] == evaluation.metrics["ratio"]
    # Storing takes so much less than a step that it shows.
    stored = Config(blosc2=Blosc2("lz4", clevel=0, filters=()))
    speeds = [
        meter.timed(meter.exact(replace(stored, steps=steps))).metrics["encode_mb_s"] for steps in ((), (Uniform(4),))
    ]
    assert speeds[1] < 0.8 * speeds[0]


def test_a_step_that_the_pixels_do_not_allow_is_a_failure() -> None:
    meter = Meter(Sample((Run(0, 0, np.zeros((2, 8, 8), np.uint16)),)), pixels=[Pixels()])
    assert (
        meter.exact(Config(steps=(Mantissa(3),))).failure == "steps[0].step mantissa must be used on floats, got uint16"
    )
