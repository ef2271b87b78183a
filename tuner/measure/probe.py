"""A probe: what a few cheap encodings make of a few pieces of a sample, in about a quarter of a second."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.apply.encode import Encoder
from tuner.config import Blosc2
from tuner.measure.timing import Reference
from tuner.read.sampling import Sample

#: Pieces that are encoded, and the bytes of one.
_PIECES, PIECE_NBYTES = 4, 128 << 10

#: They are encoded and decoded in so many rounds at least, and in more as long as there is time; of each piece the
#: shortest time counts, so that what else the machine does spoils none.
_ROUNDS, _SECONDS = 3, 0.25

#: What is tried, by name; lz4 and zstd at level 1 are fast, and tell what filters and an entropy coder are worth.
_CHAINS: tuple[tuple[str, ...], ...] = (
    (),
    ("shuffle",),
    ("bitshuffle",),
    ("shuffle", "bytedelta"),
    ("bitshuffle", "bytedelta"),
    ("delta", "shuffle"),
    ("delta", "bitshuffle"),
)
PROBES: dict[str, Blosc2] = {
    "_".join((f"{codec}1", *(chain or ("plain",)))): Blosc2(
        codec,
        clevel=1,
        filters=chain,
        splitmode="always" if "shuffle" in chain else "never",
        blocksize=PIECE_NBYTES // 2,
    )
    for codec in ("lz4", "zstd")
    for chain in _CHAINS
}


def probe_traits(sample: Sample, reference: Reference) -> dict[str, float]:
    """Traits that a probe finds: for each of `PROBES`, logarithms of its ratio and of its speeds.

    Natural logarithms; speeds are over that of the reference kernel beside it, which makes those of one machine
    comparable to those of another. Ratios are the same each time.

    Parameters
    ----------
    sample : Sample
        Of which contiguous pixels are taken, evenly spaced; at least one.
    reference : Reference

    Examples
    --------
    >>> from tuner.read.sampling import Run
    >>> frames = np.random.default_rng(0).poisson(20, (4, 256, 256)).astype(np.uint16)
    >>> found = probe_traits(Sample((Run(0, 0, frames),)), Reference())
    >>> len(found), math.exp(found["probe_zstd1_bitshuffle_log_ratio"]) > 2
    (42, True)
    """
    chunks = list(_pieces(sample))
    nbytes = sum(chunk.nbytes for chunk in chunks)
    targets = [np.empty_like(chunk) for chunk in chunks]
    trials = {name: _Trial(_encoder(blosc2, chunks[0])) for name, blosc2 in PROBES.items()}
    end = time.perf_counter() + _SECONDS
    kernel, done = 0.0, 0
    while done < _ROUNDS or time.perf_counter() < end:
        for trial in trials.values():
            trial.run(chunks, targets)
            kernel = max(kernel, reference.run())
        done += 1
    found: dict[str, float] = {}
    for name, trial in trials.items():
        found[f"probe_{name}_log_ratio"] = math.log(nbytes / trial.stored)
        found[f"probe_{name}_log_encode"] = math.log(nbytes / trial.encode.sum() / kernel)
        found[f"probe_{name}_log_decode"] = math.log(nbytes / trial.decode.sum() / kernel)
    return found


@dataclass(slots=True)
class _Trial:
    """What one encoder made of all pieces so far."""

    encoder: Encoder
    stored: int = 0
    """Bytes."""
    encode: NDArray[np.float64] = field(default_factory=lambda: np.full(_PIECES, np.inf))
    """The shortest time for each, seconds."""
    decode: NDArray[np.float64] = field(default_factory=lambda: np.full(_PIECES, np.inf))
    """The shortest time for each, seconds."""

    def run(self, chunks: Sequence[NDArray[Any]], targets: Sequence[NDArray[Any]]) -> None:
        frames, seconds = zip(*map(self.encoder.timed_encode, chunks), strict=True)
        self.stored = sum(map(len, frames))
        np.fmin(self.encode, seconds, out=self.encode)
        np.fmin(self.decode, [*map(self.encoder.timed_decode, frames, targets)], out=self.decode)


def _pieces(sample: Sample) -> Iterator[NDArray[Any]]:
    """Contiguous pixels of equal length, evenly spaced over all runs; small frames are not cut at the start."""
    itemsize = sample.dtype.itemsize
    runs = [run.frames.reshape(-1) for run in sample.runs]
    length = min(PIECE_NBYTES // itemsize, max(len(pixels) for pixels in runs))
    runs = [pixels for pixels in runs if len(pixels) >= length]
    frame = math.prod(sample.frame_shape)
    starts = np.cumsum([0, *(len(pixels) for pixels in runs)])
    for share in (np.arange(_PIECES) + 0.5) / _PIECES:
        at = int(share * starts[-1])
        index = int(np.searchsorted(starts, at, side="right")) - 1
        start = min(at - int(starts[index]), len(runs[index]) - length)
        start -= start % frame if frame <= length else 0
        yield runs[index][start : start + length]


def _encoder(blosc2: Blosc2, chunk: NDArray[Any]) -> Encoder:
    """What encodes chunks such as one: typesize its dtype's, blocks no larger than it."""
    blocksize = blosc2.blocksize if blosc2.blocksize <= chunk.nbytes else 0
    return Encoder(replace(blosc2, typesize=chunk.itemsize, blocksize=blocksize), chunk.shape, chunk.dtype)
