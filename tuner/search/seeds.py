"""Where a search without a guide begins: what is often right, and what is next to the baselines."""

from __future__ import annotations

import math
from dataclasses import replace

from tuner.config import Blosc2, Config
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
#: Bytes of a chunk below which the header of its frame tells.
_CHUNK_NBYTES = 1 << 20


def often_right(sample: Sample) -> list[Config]:
    """Good configurations for many data, in chunks of several frames where one is small, then of one."""
    ndim, itemsize = len(sample.frame_shape), sample.dtype.itemsize
    several = max(1, min(sample.longest, _CHUNK_NBYTES // max(1, math.prod(sample.frame_shape) * itemsize)))
    blosc2s = [replace(b, typesize=itemsize) for b in (*_GOOD, *(c.blosc2 for c in equivalents(ndim).values()))]
    # Small frames first several to a chunk: alone each pays for a frame's header.
    depths = dict.fromkeys((1 << several.bit_length() - 1, 1))
    return [Config((frames, *(-1,) * ndim), blosc2) for frames in depths for blosc2 in blosc2s]


def settled_in(space: Space, config: Config) -> Config:
    """The configuration with the space's steps, typesize or block size left open where the space has no such."""
    config = replace(config, steps=space.steps()[0])
    for blocksize in (config.blosc2.blocksize, 0):
        for typesize in (config.blosc2.typesize, 0):
            settled = replace(config, blosc2=replace(config.blosc2, blocksize=blocksize, typesize=typesize))
            if space.locate(settled) is not None:
                return settled
    return config
