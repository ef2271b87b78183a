"""What users have today, measured on the same sample: HDF5's filters as h5py and hdf5plugin apply them."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from tuner.config import Blosc2, Config
from tuner.errors import CodecError
from tuner.evaluation import Evaluation
from tuner.measure.meter import Meter, same_bytes
from tuner.measure.timing import Timing, timed

#: Small frames are stored several to a chunk, as anyone would who looks at the speed.
_CHUNK_NBYTES = 1 << 20

#: Where once through the sample takes longer, its own chunks are repeats enough.
_LONG_SECONDS = 0.3

#: Each baseline's filters, as arguments of h5py's create_dataset.
FILTERS: dict[str, Mapping[str, Any]] = {
    "none": {},
    "gzip": {"compression": "gzip", "compression_opts": 4, "shuffle": True},
    "bslz4": dict(hdf5plugin.Bitshuffle(cname="lz4")),
    "blosc2": dict(hdf5plugin.Blosc2()),
    "zstd": dict(hdf5plugin.Zstd()),
}

#: What each is in words.
TEXTS = {
    "none": "uncompressed",
    "gzip": "gzip-4 with shuffle",
    "bslz4": "bitshuffle-lz4, what Dectris writes",
    "blosc2": "hdf5plugin.Blosc2 as it comes",
    "zstd": "hdf5plugin.Zstd as it comes",
}


def equivalents(ndim: int) -> dict[str, Config]:
    """The Blosc2 configuration next to each baseline, for frames of `ndim` axes."""
    chunks = (1, *(-1,) * ndim)
    return {
        "none": Config(chunks, Blosc2("lz4", clevel=0, filters=(), splitmode="never")),
        "gzip": Config(chunks, Blosc2("zlib", clevel=4, filters=("shuffle",), splitmode="never")),
        "bslz4": Config(chunks, Blosc2("lz4", clevel=5, filters=("bitshuffle",), splitmode="never")),
        "blosc2": Config(chunks, Blosc2("blosclz", clevel=5, filters=("shuffle",), splitmode="always")),
        "zstd": Config(chunks, Blosc2("zstd", clevel=3, filters=(), splitmode="never")),
    }


def measure_baselines(meter: Meter, windows: int, names: Collection[str] = tuple(FILTERS)) -> dict[str, Evaluation]:
    """The ratio and per-core speeds of some baselines on the meter's sample, `none` always among them.

    Through HDF5's filter pipeline into memory, chunk by chunk. What that costs without any filter, measured as `none`,
    is taken off, so that speeds compare with those of Blosc2 chunks, which are encoded before HDF5 sees them.
    """
    sample = meter.sample
    nbytes = math.prod(sample.frame_shape) * sample.dtype.itemsize
    depth = max(1, min(_CHUNK_NBYTES // max(nbytes, 1), sample.longest))
    # Whole chunks only, as many as a run has.
    chunks = [
        np.ascontiguousarray(run.frames[start : start + depth])
        for run in sample.runs
        for start in range(0, len(run.frames) - depth + 1, depth)
    ]
    measured: dict[str, Evaluation] = {}
    for name, filters in FILTERS.items():
        if name not in ("none", *names):
            continue
        with _dataset(chunks[0], len(chunks), filters) as dataset:
            encode, decode = _speeds(meter, dataset, chunks, windows)
            ratio = sum(chunk.nbytes for chunk in chunks) / dataset.id.get_storage_size()
        if name != "none":
            idle = measured["none"].metrics
            encode, decode = _without(encode, idle["encode_mb_s"]), _without(decode, idle["decode_mb_s"])
        shell = Evaluation(None, {"ratio": ratio, "encode_mb_s": 0.0})
        evaluation = meter.with_timings(shell, chunks[0].shape, encode, decode)
        measured[name] = meter.signed(evaluation, baseline=name)
    return measured


@contextmanager
def _dataset(chunk: NDArray[Any], count: int, filters: Mapping[str, Any]) -> Iterator[h5py.Dataset]:
    """A dataset in memory that filters every chunk at once, as nothing is cached."""
    with h5py.File("baseline", "w", driver="core", backing_store=False, rdcc_nbytes=0) as file:
        shape = (len(chunk) * count, *chunk.shape[1:])
        yield file.create_dataset("data", shape, chunk.dtype, chunks=chunk.shape, **filters)


def _speeds(meter: Meter, dataset: h5py.Dataset, chunks: list[NDArray[Any]], windows: int) -> tuple[Timing, Timing]:
    depth = len(chunks[0])
    target = np.empty_like(chunks[0])

    def place(index: int) -> tuple[slice, ...]:
        return (slice(index * depth, (index + 1) * depth), *(slice(None),) * (target.ndim - 1))

    def write(index: int) -> float:
        start = time.perf_counter()
        dataset.write_direct(chunks[index], dest_sel=place(index))
        return time.perf_counter() - start

    def read(index: int) -> float:
        start = time.perf_counter()
        dataset.read_direct(target, source_sel=place(index))
        return time.perf_counter() - start

    first: list[tuple[float, float]] = []
    for index, chunk in enumerate(chunks):
        first.append((write(index), read(index)))
        meter.reference.run()
        if not same_bytes(chunk, target):
            raise CodecError("a baseline does not decode to the same pixels")
    if sum(map(sum, first)) > _LONG_SECONDS:  # steady enough: repeats would cost more than they tell
        write_rates, read_rates = (
            tuple(target.nbytes / 1e6 / s for s in column) for column in zip(*first, strict=True)
        )
        return Timing(write_rates), Timing(read_rates)
    indices = list(range(len(chunks)))
    return (
        timed(write, indices, target.nbytes, meter.reference, windows=windows),
        timed(read, indices, target.nbytes, meter.reference, windows=windows),
    )


def _without(timing: Timing, idle_mb_s: float) -> Timing:
    """A timing less what the same took without a filter; at least half of the time is the filter's."""
    return Timing(tuple(1 / max(1 / rate - 1 / idle_mb_s, 0.5 / rate) for rate in timing.rates))
