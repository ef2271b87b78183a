"""How fast the writer takes frames into a folder: at most, from parts timed apart, and as it is."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tuner.apply.checksum import fletcher32
from tuner.apply.opening import open_writer
from tuner.apply.target import check_target
from tuner.config import Config
from tuner.measure.timing import Timing
from tuner.profile import Invalid, Match, Profile
from tuner.read.sampling import Sample
from tuner.steps import Pixels

#: What the cost of writing is taken on: so many bytes in chunks of so many, so often.
_PROBE_NBYTES, _PROBE_CHUNK, _PROBES = 32 << 20, 1 << 20, 3
#: The least that a run through the writer takes: pixels, and seconds.
_LEAST_NBYTES, _LEAST_SECONDS = 32 << 20, 0.2


class Target:
    """A folder that files are written to.

    Parameters
    ----------
    folder : Path
    workers : int
        Threads that encode; what more than the cores could do is not counted on.

    Raises
    ------
    InputError
        Where the folder cannot be written to.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        check_target(folder / "probe.h5", overwrite=True)
        self.folder = folder
        self.workers = workers
        chunk = np.random.default_rng(0).bytes(_PROBE_CHUNK)
        runs = [self._probe(chunk) for _ in range(_PROBES)]
        self.checksum_s, self.write_s = (float(np.median(column)) for column in zip(*runs, strict=True))

    def bound(self, ratio: Any, encode_mb_s: Any, cores: int | None = None) -> Any:
        """MB of pixels per second that no writer exceeds which keeps all cores busy and one file written to.

        ``cores / (encode + checksum + write)`` seconds for a byte of pixels, or ``1 / write`` where that is less.

        Parameters
        ----------
        ratio, encode_mb_s : number or array
            Bytes of pixels / bytes stored, and MB of pixels per second on one core, steps included.
        cores : int, optional
            By default, as many as there are workers.
        """
        whole = 1 / encode_mb_s + (self.checksum_s + self.write_s) * 1e6 / ratio
        return np.minimum((cores or self.workers) / whole, ratio / self.write_s / 1e6)

    def measure(self, config: Config, sample: Sample, pixels: Pixels) -> Timing:
        """MB of pixels per second through the writer: from the first frame until the file is closed and synced.

        Parameters
        ----------
        config : Config
        sample : Sample
            Its frames are written again and again.
        pixels : Pixels
            Of the stack that the sample is from.
        """
        marks = pixels.marks
        profile = Profile(
            "measured",
            Match(sample.dtype.name),
            config,
            Config(config.chunks),
            Invalid(marks.invalid, None, marks.saturation, marks.underload),
            pixels.noise,
            evidence={"promise": {"provisional": False}},
        )
        taken = 0
        with temporary_file(self.folder) as path:
            writer = open_writer(
                path,
                profile,
                frame_shape=sample.frame_shape,
                dtype=sample.dtype,
                mask=pixels.mask,
                workers=self.workers,
            )
            start = time.perf_counter()
            with writer:
                for frame in _again_and_again(sample):
                    writer.append(frame)
                    taken += frame.nbytes
                    if taken >= _LEAST_NBYTES and time.perf_counter() - start >= _LEAST_SECONDS:
                        break
            _sync(path)
            return Timing((taken / (time.perf_counter() - start) / 1e6,))

    def _probe(self, chunk: bytes) -> tuple[float, float]:
        """Seconds for a stored byte: its checksum, and its way into a file on the disk."""
        count = _PROBE_NBYTES // len(chunk)
        start = time.perf_counter()
        for _ in range(count):
            fletcher32(chunk)
        between = time.perf_counter()
        with temporary_file(self.folder) as path:
            with h5py.File(path, "x", libver=("v110", "v110"), locking=False) as file:
                data = file.create_dataset("data", (count, len(chunk)), "u1", chunks=(1, len(chunk)))
                for index in range(count):
                    data.id.write_direct_chunk((index, 0), chunk)
            _sync(path)
            after = time.perf_counter()
        return (between - start) / _PROBE_NBYTES, (after - between) / _PROBE_NBYTES


@contextmanager
def temporary_file(folder: Path) -> Iterator[Path]:
    """The name of a file that is not there, nor is it afterwards."""
    path = folder / f".tuner-{os.getpid()}-{time.monotonic_ns()}.h5"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _again_and_again(sample: Sample) -> Iterator[NDArray[Any]]:
    return itertools.cycle([frame for run in sample.runs for frame in run.frames])
