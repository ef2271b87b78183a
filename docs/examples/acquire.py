"""A complete acquisition: frames from a detector into one file, as a profile says.

    python acquire.py profiles/id19.yaml scan.h5 100

Needs what `pip install tuner` installs. Put your detector in the place of `frames_of_the_detector`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import h5py
import hdf5plugin  # for reading: registers the filters
import numpy as np
from numpy.typing import NDArray

import tuner
from tuner.errors import TunerError

SHAPE = (1024, 1024)


def frames_of_the_detector(count: int) -> Iterator[NDArray[np.uint16]]:
    """Stands for yours: one buffer, that is filled again and again."""
    random = np.random.default_rng(0)
    buffer = np.empty(SHAPE, np.uint16)
    for _ in range(count):
        buffer[:] = random.poisson(100, SHAPE)
        yield buffer


def acquire(profile_path: str, path: str, count: int) -> None:
    """Write a scan, read it back, and say what became of it."""
    profile = tuner.load_profile(profile_path, strict=True)  # what was measured, unchanged
    mask = np.zeros(SHAPE, dtype=bool)  # True where a pixel is invalid in all frames
    mask[512, :] = True
    with tuner.open_writer(
        path,
        profile,
        dataset="/entry/data/data",
        frame_shape=SHAPE,
        dtype=np.uint16,
        mask=mask,
        mode="w",
        flush_every="1s",  # at most a second of frames is lost if this process dies
        on_overload="shed",  # rather larger chunks than a detector that waits
        on_drift="warn",
    ) as writer:
        dark = np.zeros(SHAPE, np.uint16)
        writer.append(dark, lossless=True)  # steps of a lossy profile leave flats and darks alone
        for frame in frames_of_the_detector(count):
            writer.append(frame)
        safe = writer.sync()  # so many frames survive the death of this machine
    print(f"{writer.frames_written} frames written, of which the disk held {safe} before the file was closed")
    with h5py.File(path) as file:  # any reader with hdf5plugin
        data = file["entry/data/data"]
        stored = data.id.get_storage_size()
        print(f"{data.shape} {data.dtype}, ratio {data.nbytes / stored:.2f}, hdf5plugin {hdf5plugin.version}")
        print(f"written with {data.attrs['tuner_profile']}, {file['entry/tuner/date'].asstr()[()]}")


if __name__ == "__main__":
    try:
        acquire(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except TunerError as error:  # one line: where, what, must be, got
        sys.exit(f"acquire: {error}")
