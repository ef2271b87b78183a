"""How fast a reader gets at one frame, as h5py does it."""

from __future__ import annotations

import time

import h5py
import numpy as np

from tuner.apply.checksum import with_checksum
from tuner.apply.cut import cut
from tuner.apply.dataset import create_dataset
from tuner.apply.encode import Encoder
from tuner.config import Config
from tuner.measure.meter import Meter
from tuner.measure.timing import Timing


def read_frames(meter: Meter, config: Config) -> Timing:
    """Read every frame of the sample by itself through h5py with its default chunk cache, each time from a new handle.

    The file is in memory: what is timed is HDF5, its filters and the cache, where a chunk above the cache's size is
    decoded again for every frame in it.
    """
    resolved = meter.resolve(config)
    frames = max((run.frames for run in meter.sample.runs), key=len)
    encoder = Encoder(resolved.blosc2, resolved.chunks, frames.dtype)
    with h5py.File("access", "w", driver="core", backing_store=False) as file:
        dataset = create_dataset(file, "data", frames.shape, frames.shape, resolved.chunks, encoder)
        for corner, chunk in cut(frames, resolved.chunks):
            dataset.id.write_direct_chunk(corner, with_checksum(encoder.encode(chunk)))
        target = np.empty_like(frames[0])
        rates = []
        del dataset
        for index in range(min(len(frames), 64)):
            handle = file["data"]
            start = time.perf_counter()
            handle.read_direct(target, source_sel=np.s_[index])
            rates.append(target.nbytes / 1e6 / (time.perf_counter() - start))
            del handle  # the chunk cache goes with the last handle
    return Timing(tuple(rates))
