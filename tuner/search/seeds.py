"""Where a search begins: at what is often right, or with a guide, next to the baselines that its limits name."""

from __future__ import annotations

import math
from dataclasses import replace

from tuner.config import Blosc2, Config
from tuner.goal import Goal
from tuner.measure.baseline import equivalents
from tuner.read.sampling import Sample
from tuner.space import Space

#: Ratios within some per cent of the best for many data, at a hundred times its speed; and what detectors write.
_GOOD = (
    Blosc2("zstd", clevel=1, filters=("shuffle", "bytedelta"), splitmode="always", blocksize=1 << 20),
    Blosc2("zstd", clevel=1, filters=("bitshuffle",), splitmode="never", blocksize=1 << 20),
    Blosc2("lz4", clevel=1, filters=("bitshuffle",), splitmode="never", blocksize=1 << 17),
    Blosc2("zstd", clevel=1, filters=("shuffle",), splitmode="always", blocksize=1 << 18),
)
#: A limit of less than this much of a baseline's speed is not where that baseline is.
_NEAR = 0.7
#: Bytes of a chunk below which the header of its frame tells.
_CHUNK_NBYTES = 1 << 20


def often_right(sample: Sample) -> list[Config]:
    """Good configurations for many data, in chunks of several frames where one is small, then of one."""
    blosc2s = (*_GOOD, *(config.blosc2 for config in equivalents(len(sample.frame_shape)).values()))
    # Small frames first several to a chunk: alone each pays for a frame's header.
    return [_of_frames(sample, frames, blosc2) for frames in dict.fromkeys((_several(sample), 1)) for blosc2 in blosc2s]


def named_in(goal: Goal, sample: Sample) -> list[Config]:
    """What is next to the baselines whose speed is asked for: about as fast, it tells a guide where the limit is."""
    known = equivalents(len(sample.frame_shape))
    names = dict.fromkeys(c.name for c in goal.require if c.what.timed and c.name in known and c.limit >= _NEAR)
    return [_of_frames(sample, _several(sample), known[name].blosc2) for name in names]


def _several(sample: Sample) -> int:
    """Frames in a chunk of about 1 MiB, a power of two."""
    nbytes = math.prod(sample.frame_shape) * sample.dtype.itemsize
    return 1 << max(1, min(sample.longest, _CHUNK_NBYTES // max(1, nbytes))).bit_length() - 1


def _of_frames(sample: Sample, frames: int, blosc2: Blosc2) -> Config:
    return Config((frames, *(-1,) * len(sample.frame_shape)), replace(blosc2, typesize=sample.dtype.itemsize))


def settled_in(space: Space, config: Config) -> Config:
    """The configuration with the space's steps, typesize or block size left open where the space has no such."""
    config = replace(config, steps=space.steps()[0])
    for blocksize in (config.blosc2.blocksize, 0):
        for typesize in (config.blosc2.typesize, 0):
            settled = replace(config, blosc2=replace(config.blosc2, blocksize=blocksize, typesize=typesize))
            if space.locate(settled) is not None:
                return settled
    return config
