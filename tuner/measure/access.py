"""How fast a reader gets at one frame, as h5py does it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tuner.apply.checksum import with_checksum
from tuner.apply.child import plugin_environment
from tuner.apply.cut import cut
from tuner.apply.dataset import create_dataset
from tuner.config import PLUGINS, Config
from tuner.errors import CodecError
from tuner.measure.meter import Meter
from tuner.measure.timing import Timing

#: Frames that are read, one by one.
_MOST_FRAMES = 64

#: Seconds that a process has to read them with a plug-in.
_TIMEOUT_S = 60.0


def read_frames(meter: Meter, config: Config) -> Timing:
    """Read frames of the sample one by one through h5py with its default chunk cache, each time from a new handle.

    The file is in memory: what is timed is HDF5, its filters and the cache, where a chunk above the cache's size is
    decoded again for every frame in it. A plug-in's frames are read in another process.

    Raises
    ------
    CodecError
        Where h5py cannot read the frames, or they come back different.
    """
    frames = max((run.frames for run in meter.sample.runs), key=len)
    if config.blosc2.codec in PLUGINS:
        rates, digest = _read_elsewhere(meter, config, frames)
    else:
        with h5py.File("access", "w", driver="core", backing_store=False) as file:
            _write(file, meter, config, frames)
            rates, digest = _read(file)
    if digest != hashlib.sha256(np.ascontiguousarray(frames[:_MOST_FRAMES]).data).hexdigest():
        raise CodecError(f"h5py reads other pixels than were written with {config.blosc2}")
    return Timing(tuple(rates))


def _write(file: h5py.File, meter: Meter, config: Config, frames: NDArray[Any]) -> None:
    encoder = meter.encoder(config)
    dataset = create_dataset(file, "data", frames.shape, frames.shape, encoder.chunk_shape, encoder)
    for corner, chunk in cut(frames, encoder.chunk_shape):
        dataset.id.write_direct_chunk(corner, with_checksum(encoder.encode(chunk)))


def _read(file: h5py.File) -> tuple[list[float], str]:
    """MB per second of each frame, and the digest of all that were read."""
    target = np.empty(file["data"].shape[1:], file["data"].dtype)
    digest = hashlib.sha256()
    rates = []
    for index in range(min(file["data"].shape[0], _MOST_FRAMES)):
        handle = file["data"]
        start = time.perf_counter()
        handle.read_direct(target, source_sel=np.s_[index])
        rates.append(target.nbytes / 1e6 / (time.perf_counter() - start))
        del handle  # the chunk cache goes with the last handle
        digest.update(target.data)
    return rates, digest.hexdigest()


def _read_elsewhere(meter: Meter, config: Config, frames: NDArray[Any]) -> tuple[list[float], str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "access.h5"
        with h5py.File(path, "w") as file:
            _write(file, meter, config, frames)
        command = [sys.executable, "-P", "-m", "tuner.measure.access", str(path)]
        try:
            done = subprocess.run(command, env=plugin_environment(), capture_output=True, text=True, timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise CodecError(f"h5py took more than {_TIMEOUT_S:g} s to read {config.blosc2}") from None
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise CodecError(f"h5py cannot read {config.blosc2}: {why}")
    rates, digest = json.loads(done.stdout)
    return rates, digest


if __name__ == "__main__":
    with h5py.File(sys.argv[1], "r", driver="core") as written:
        print(json.dumps(_read(written)))
