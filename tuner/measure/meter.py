"""What one configuration does to one sample: exactly, and by the clock."""

from __future__ import annotations

import atexit
import itertools
import math
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from tuner.apply.bitshuffle import BitshuffleEncoder
from tuner.apply.checksum import CHECKSUM_NBYTES
from tuner.apply.child import PluginChild
from tuner.apply.cut import cut, tiles_of
from tuner.apply.encode import Encoder
from tuner.apply.plugin import PluginEncoder
from tuner.config import PLUGINS, Config
from tuner.container import BLOSC2, Container
from tuner.errors import CodecError, InputError
from tuner.evaluation import Evaluation
from tuner.measure.target import Target
from tuner.measure.timing import Reference, Scratch, Timing, beyond_cache, clocked, machine, timed, versions
from tuner.quality import QUALITIES, compare, worst
from tuner.read.sampling import Sample
from tuner.steps import Pixels, Step, check_steps, prepare

#: Repeats of a timing while searching, and of a finalist's.
SEARCH_WINDOWS, FINAL_WINDOWS = 5, 15

#: The one process in which every plug-in is measured; the first of them starts it.
PLUGIN_CHILD = PluginChild()
atexit.register(PLUGIN_CHILD.close)

#: Encoded frames that are kept to be decoded: as a writer lets go of each, new memory for all would be paid for.
_KEPT_NBYTES = 4 << 20

#: What several steps make of the sample is kept for so many of them.
_MOST_PREPARED = 3


@dataclass(frozen=True, slots=True)
class Prepared:
    """What steps make of a sample."""

    sample: Sample
    """The same runs, stepped."""
    seconds: float
    """What preparing it took, in passing."""
    quality: Mapping[str, float]
    """Each quality of the worst frame."""


class _TooLongError(CodecError):
    """A configuration takes longer than it may; with more time it might have done."""


class Meter:
    """Measures configurations on one sample.

    Parameters
    ----------
    sample : Sample
        Whole frames; what is measured is this sample, padding at its edges included.
    frames : int
        Frames of the stack, for `sinogram_read_mb_s`; 0 where it has no three axes.
    pixels : sequence of Pixels
        What steps need to know of each stack that the sample was drawn from; needed where there are steps.
    qualities : collection of str
        Which of `QUALITIES` are taken of what steps make.
    seen : ndarray of bool, optional
        The pixels that they are taken of, shape of a frame; all that count where it is not given.
    target : Target, optional
        Where `write_mb_s` is to be known.
    container : Container
        What chunks are stored in; in another than Blosc2 they are whole frames, and only steps make a difference.
    """

    def __init__(
        self,
        sample: Sample,
        frames: int = 0,
        pixels: Sequence[Pixels] = (),
        qualities: Collection[str] = (),
        seen: NDArray[np.bool_] | None = None,
        target: Target | None = None,
        container: Container = BLOSC2,
    ) -> None:
        self.sample = sample
        self.frames = frames
        self.pixels = pixels
        self.qualities = qualities
        self.seen = seen
        self.target = target
        self.container = container
        self.digest = sample.digest
        self.reference = Reference()
        self._scratch = Scratch()
        self._chunks: tuple[tuple[Step, ...], tuple[int, ...], list[NDArray[Any]]] = ((), (), [])
        as_it_was = {name: QUALITIES[name].perfect for name in qualities}
        self._prepared: dict[tuple[Step, ...], Prepared] = {(): Prepared(sample, 0.0, as_it_was)}
        self._preparing = threading.Lock()

    def resolve(self, config: Config) -> Config:
        """The configuration for this sample's frames; two that resolve alike store the same bytes."""
        return self.container.resolve(config, self.sample.frame_shape, self.sample.dtype)

    def encoder(self, config: Config, timeout_s: float = math.inf) -> Encoder | PluginEncoder | BitshuffleEncoder:
        """What encodes and decodes chunks of the sample; a call of a plug-in may take `timeout_s` seconds."""
        resolved = self.resolve(config)
        if self.container is not BLOSC2:
            return BitshuffleEncoder(self.container, resolved.chunks, self.sample.dtype)
        if resolved.blosc2.codec in PLUGINS:
            return PluginEncoder(resolved, self.sample.dtype, PLUGIN_CHILD, timeout_s)
        return Encoder(resolved.blosc2, resolved.chunks, self.sample.dtype)

    def prepared(self, steps: tuple[Step, ...]) -> Prepared:
        """What steps make of the sample, and what that did to its pixels: once for all codecs.

        Raises
        ------
        InputError
            Where a step cannot be done to such pixels.
        """
        with self._preparing:
            if steps not in self._prepared:
                check_steps(steps, self.sample.dtype, self.pixels[0].noise)
                kept = list(self._prepared)[1:]  # the first is the sample itself
                for earlier in kept[: len(kept) + 1 - _MOST_PREPARED]:
                    del self._prepared[earlier]
                self._prepared[steps] = self._prepare(steps)
            return self._prepared[steps]

    def _prepare(self, steps: tuple[Step, ...]) -> Prepared:
        prepare(steps, self.sample.runs[0].frames[:0], self.pixels[0])  # tables are made once, not for every frame
        start = time.perf_counter()
        stepped = prepare_sample(steps, self.sample, self.pixels)
        seconds = time.perf_counter() - start
        sides = (self.sample.runs, stepped.runs)
        before, after = (np.concatenate([run.frames for run in side]) for side in sides)
        valid, still = (np.concatenate([self.pixels[r.stack].valid(r.frames) for r in side]) for side in sides)
        if self.seen is not None:
            # What does not count must stay as it is in all of the frame; only then a part of it is left out.
            before, after = (np.where(self.seen, frames, 0) for frames in (before, after))
            valid, still = valid & self.seen, still & self.seen
        found = worst(compare(before, after, valid, self.pixels[0].noise, self.qualities, still_valid=still))
        if broken := [name for name, value in found.items() if not math.isfinite(value)]:
            raise CodecError(
                f"{broken[0]} has no value: a pixel that does not count was changed, or one stopped counting"
            )
        return Prepared(stepped, seconds, found)

    def exact(self, config: Config, least_mb_s: float = 0.0, most_seconds: float = math.inf) -> Evaluation:
        """Encode, decode and compare every chunk of the sample; safe to run in several threads.

        The speeds that come out were taken in passing, maybe beside other threads; `timed` replaces them.

        Parameters
        ----------
        config : Config
        least_mb_s : float
            Stop once encoding turns out slower than this; the ratio is then of the chunks that were seen.
        most_seconds : float
            Fail where encoding the sample would take longer than this, as the first MiB of it tells; a plug-in is
            stopped.
        """
        try:
            resolved = self.resolve(config)
            prepared = self.prepared(resolved.steps)
            encoder = self.encoder(resolved, most_seconds)
            decoded = np.empty(resolved.chunks, self.sample.dtype)
            self._check_duration(resolved, most_seconds)
            pixels = stored = 0
            encoding = decoding = 0.0
            for useful, chunk in self._cut(resolved.chunks, resolved.steps):
                frame, seconds = encoder.timed_encode(chunk)
                encoding += seconds
                decoding += encoder.timed_decode(frame, decoded)
                if not same_bytes(chunk, decoded):
                    raise CodecError("does not decode to the same pixels")
                pixels += useful
                stored += len(frame) + CHECKSUM_NBYTES * self.container.checked
                if encoding > most_seconds:
                    raise _TooLongError(f"takes more than {most_seconds:.1f} s for the sample, its share of the budget")
                if encoding > 0.02 and pixels / encoding < least_mb_s * 1e6:
                    break
        except _TooLongError as error:
            return Evaluation(config, origin={"timing": "stopped as too slow"}, failure=str(error))
        except (CodecError, InputError) as error:
            return Evaluation(config, failure=str(error))
        encoding += prepared.seconds * pixels / self.sample.nbytes
        speeds = {"encode_mb_s": pixels / encoding / 1e6, "decode_mb_s": pixels / decoding / 1e6}
        metrics = {"ratio": pixels / stored, **speeds, **self._access(resolved.chunks, speeds["decode_mb_s"])}
        metrics |= prepared.quality
        timing = "in passing" if pixels == self.sample.nbytes else "in passing, stopped as too slow"
        return self.bounded(Evaluation(config, metrics, origin={"timing": timing}))

    def exact_many(
        self, configs: Sequence[Config], jobs: int, least_mb_s: float = 0.0, most_seconds: float = math.inf
    ) -> list[Evaluation]:
        """`exact` of several configurations, `jobs` at a time; c-blosc2 lets other threads run meanwhile.

        Plug-ins take their turn afterwards: there is one process for them.
        """
        ours = [config for config in configs if config.blosc2.codec not in PLUGINS]
        parallel = joblib.Parallel(n_jobs=min(jobs, len(ours)) or 1, prefer="threads")
        measured = parallel(joblib.delayed(self.exact)(config, least_mb_s, most_seconds) for config in ours)
        evaluations = dict(zip(ours, measured, strict=True))
        return [
            evaluations[config] if config in evaluations else self.exact(config, least_mb_s, most_seconds)
            for config in configs
        ]

    def clock(self, evaluation: Evaluation, windows: int = SEARCH_WINDOWS) -> tuple[Timing, Timing]:
        """How fast an evaluated configuration encodes, steps included, and decodes, beyond the last-level cache.

        Nothing else of ours may run meanwhile.

        Raises
        ------
        CodecError
            Where a plug-in fails on what it did before.
        """
        assert evaluation.config is not None
        resolved = self.resolve(evaluation.config)
        encoder = self.encoder(resolved)
        chunks = self._buffers(resolved.chunks, resolved.steps)
        nbytes = self._useful_nbytes(resolved.chunks)
        frames: list[bytes] = []
        kept = 0

        def encode_at(index: int) -> float:
            nonlocal kept
            frame, seconds = encoder.timed_encode(chunks[index])
            if kept < _KEPT_NBYTES:
                frames.append(frame)
                kept += len(frame)
            return seconds

        encode = timed(encode_at, range(len(chunks)), nbytes, self.reference, windows=windows)
        into = self._scratch.arrays(resolved.chunks, self.sample.dtype, len(chunks))
        items = list(zip(itertools.cycle(frames), into, strict=False))
        decode = timed(lambda item: encoder.timed_decode(*item), items, nbytes, self.reference, windows=windows)
        if resolved.steps:
            encode = encode.after(self._clock_steps(resolved.steps, windows))
        return encode, decode

    def _clock_steps(self, steps: tuple[Step, ...], windows: int) -> Timing:
        """How fast whole frames are prepared, one at a time."""
        frames = [
            (run.frames[i : i + 1], self.pixels[run.stack]) for run in self.sample.runs for i in range(len(run.frames))
        ]
        return timed(
            clocked(lambda item: prepare(steps, *item)), frames, frames[0][0].nbytes, self.reference, windows=windows
        )

    def with_timings(
        self, evaluation: Evaluation, chunks: tuple[int, ...], encode: Timing, decode: Timing
    ) -> Evaluation:
        """The same evaluation with these speeds, taken alone, and what follows from them."""
        metrics = {**evaluation.metrics, "encode_mb_s": encode.mb_s, "decode_mb_s": decode.mb_s}
        metrics |= self._access(chunks, decode.mb_s)
        low, high = (self._access(chunks, end) for end in decode.spread)
        spread = {"encode_mb_s": encode.spread, "decode_mb_s": decode.spread}
        spread |= {name: (low[name], high[name]) for name in low}
        recent = float(np.median(self.reference.rates[-10:])) / 1e6
        origin = {**evaluation.origin, "timing": "alone", "reference_mb_s": recent}
        return self.bounded(replace(evaluation, metrics=metrics, spread=spread, origin=origin))

    def bounded(self, evaluation: Evaluation) -> Evaluation:
        """The same evaluation with the most that a writer could take to the target, if there is one."""
        if self.target is None or evaluation.failure is not None:
            return evaluation
        ratio, encode = evaluation.metrics["ratio"], evaluation.metrics["encode_mb_s"]
        # What is no configuration of ours goes through a filter of HDF5, in one thread.
        cores = None if evaluation.config else 1
        ends = evaluation.spread.get("encode_mb_s", (encode, encode))
        usual, low, high = (float(self.target.bound(ratio, speed, cores)) for speed in (encode, *ends))
        return replace(
            evaluation,
            metrics={**evaluation.metrics, "write_mb_s": usual},
            spread={**evaluation.spread, "write_mb_s": (low, high)},
        )

    def write(self, config: Config) -> Timing:
        """How fast the writer takes the sample to the target."""
        assert self.target is not None
        return self.target.measure(config, self.sample, self.pixels[0] if self.pixels else Pixels())

    def written(self, evaluation: Evaluation, timing: Timing) -> Evaluation:
        """The same evaluation with the speed at which the writer took the sample to the target."""
        assert self.target is not None
        return replace(
            evaluation,
            metrics={**evaluation.metrics, "write_mb_s": timing.mb_s},
            spread={**evaluation.spread, "write_mb_s": timing.spread},
            origin={**evaluation.origin, "target": str(self.target.folder), "workers": self.target.workers},
        )

    def is_slow(self, evaluation: Evaluation) -> bool:
        """Whether a single chunk takes so long that the clock needs no repeats, nor buffers beyond the cache."""
        if evaluation.config is None or evaluation.failure is not None:
            return False
        nbytes = math.prod(self.resolve(evaluation.config).chunks) * self.sample.dtype.itemsize
        return nbytes / 1e6 / evaluation.metrics["encode_mb_s"] > 0.1

    def timed(self, evaluation: Evaluation, windows: int = SEARCH_WINDOWS) -> Evaluation:
        """The same evaluation with its speeds taken alone; a failure stays as it is, or is one of a plug-in."""
        if evaluation.failure is not None or evaluation.config is None:
            return evaluation
        try:
            encode, decode = self.clock(evaluation, windows)
        except CodecError as error:
            return Evaluation(evaluation.config, failure=str(error))
        return self.with_timings(evaluation, self.resolve(evaluation.config).chunks, encode, decode)

    def signed(self, evaluation: Evaluation, **origin: Any) -> Evaluation:
        """The same evaluation with the data, the machine and the versions that it comes from."""
        return replace(
            evaluation,
            origin={
                **evaluation.origin,
                **origin,
                "data": self.digest,
                "nbytes": self.sample.nbytes,
                "dtype": self.sample.dtype.name,
                "frame_shape": list(self.sample.frame_shape),
                "machine": machine(),
                "versions": versions(),
            },
        )

    def _check_duration(self, resolved: Config, most_seconds: float) -> None:
        """Raise _TooLongError where encoding the sample would take too long.

        A chunk cannot be stopped half-way, but for those of a plug-in.
        """
        start = self.sample.runs[0].frames.reshape(-1)[: (1 << 20) // self.sample.dtype.itemsize]
        nbytes = math.prod(resolved.chunks) * self.sample.dtype.itemsize
        if math.isinf(most_seconds) or nbytes < 4 * start.nbytes or resolved.blosc2.codec in PLUGINS:
            return
        blosc2 = replace(resolved.blosc2, blocksize=min(resolved.blosc2.blocksize, start.nbytes))
        seconds = clocked(Encoder(blosc2, start.shape, start.dtype).encode)(start)
        expected = seconds * self.sample.nbytes / start.nbytes
        if expected > most_seconds:
            raise _TooLongError(f"takes about {expected:.1f} s for the sample, more than its share of the budget")

    def _useful_nbytes(self, chunks: tuple[int, ...]) -> float:
        """Bytes of pixels in a chunk, on average: what pads it at edges is not counted."""
        counts = [useful for useful, _ in self._cut(chunks)]
        return sum(counts) / len(counts)

    def _cut(self, chunks: tuple[int, ...], steps: tuple[Step, ...] = ()) -> Iterator[tuple[int, NDArray[Any]]]:
        """Every chunk of the prepared sample, with how many of its bytes are pixels and not padding."""
        itemsize = self.sample.dtype.itemsize
        for run in self.prepared(steps).sample.runs:
            for corner, chunk in cut(run.frames, chunks):
                inside = (
                    min(extent, size - first)
                    for first, extent, size in zip(corner, chunks, run.frames.shape, strict=True)
                )
                yield math.prod(inside) * itemsize, chunk

    def _buffers(self, chunks: tuple[int, ...], steps: tuple[Step, ...]) -> list[NDArray[Any]]:
        """Distinct copies of the prepared sample's chunks that together exceed the last-level cache."""
        if self._chunks[:2] != (steps, chunks):
            self._chunks = ((), (), [])  # let go of the old ones first
            self._chunks = (steps, chunks, beyond_cache([chunk for _, chunk in self._cut(chunks, steps)]))
        return self._chunks[2]

    def access_factors(self, configs: Sequence[Config]) -> dict[str, NDArray[np.float64]]:
        """Metric of reading to the logarithm of its factor over decoding, shape (configurations,)."""
        distinct = {c.chunks: c for c in configs}
        factors = {chunks: self._access(self.resolve(c).chunks, 1.0) for chunks, c in distinct.items()}
        return {name: np.log([factors[c.chunks][name] for c in configs]) for name in factors[configs[0].chunks]}

    def _access(self, chunks: tuple[int, ...], decode_mb_s: float) -> dict[str, float]:
        """Useful speed of reading one frame, and one sinogram, when every chunk that holds a part is decoded whole."""
        frame_shape = self.sample.frame_shape
        tiles = tiles_of(frame_shape, chunks[1:])
        chunk = math.prod(chunks)
        access = {"frame_read_mb_s": decode_mb_s * math.prod(frame_shape) / (tiles * chunk)}
        if self.frames and len(frame_shape) == 2:
            columns = -(-frame_shape[1] // chunks[2])
            depth = -(-self.frames // chunks[0])
            access["sinogram_read_mb_s"] = decode_mb_s * self.frames * frame_shape[1] / (columns * depth * chunk)
        return access


def prepare_sample(steps: Sequence[Step], sample: Sample, pixels: Sequence[Pixels]) -> Sample:
    """The same runs with their frames as they are to be stored."""
    return Sample(tuple(replace(run, frames=prepare(steps, run.frames, pixels[run.stack])) for run in sample.runs))


def same_bytes(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Whether two C-contiguous arrays hold the same bytes: NaN equals the same NaN, and -0.0 is not 0.0."""
    word = np.uint64 if first.nbytes % 8 == 0 else np.uint8
    return bool(np.array_equal(first.reshape(-1).view(word), second.reshape(-1).view(word)))
