"""Soaking: frames at a detector's pace through the real writer, for as long as it takes to trust it."""

from __future__ import annotations

import datetime
import itertools
import math
import os
import shutil
import time
from array import array
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tuner.apply.opening import open_writer
from tuner.apply.pipeline import default_workers
from tuner.apply.target import check_target
from tuner.apply.writer import Writer
from tuner.errors import InputError
from tuner.measure.target import temporary_file
from tuner.measure.timing import machine, versions
from tuner.profile import Profile
from tuner.simulate.simulation import texture
from tuner.stack import Stack

#: Frames that are played in turn, so that neither reading nor simulating is what is measured.
_PLAYED_NBYTES = 256 << 20
#: Different frames that are simulated, and the mean of their counts.
_SIMULATED, _COUNTS = 16, 100.0
#: The part of a disk that stays free.
_SPARE = 0.05
_DATASET = "/entry/data/data"
#: How long a writer that is behind may go on: as long as it was asked to, or so many seconds.
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Soak:
    """How a writer kept up."""

    frames: int
    """How many were due."""
    played: int
    """How many of these were played, until the writer was stopped as it was far behind; all others are late."""
    seconds: float
    """From the first to when the last was taken."""
    closing_s: float
    """From then to when the file was closed and synced."""
    rate_hz: float
    """Frames per second that were asked for."""
    sustained_hz: float
    """Frames per second from the first to when the file was closed and synced."""
    worst_hz: float
    """Frames per second taken in the worst whole second, or in all where it is shorter."""
    write_mb_s: float
    """MB of pixels per second, sustained."""
    ratio: float
    """Bytes of the pixels / bytes of the file."""
    latency_ms: dict[str, float]
    """Quantile to ms from when a frame was due to when it was taken."""
    queue: dict[str, float]
    """Chunks that wait for their encoding or writing: `median`, `max`, and `depth`, of which none can be more."""
    late: int
    """Frames that were not asked for until the next one was due: a detector without memory had lost them."""
    shed: int
    """Frames that were encoded with less effort."""
    workers: int
    """Threads that encoded."""
    profile: str
    """Name of the profile."""
    target: str
    """Folder that was written to."""
    data: str
    """What was played."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, with machine, versions and date."""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {**asdict(self), "machine": machine(), "versions": versions(), "date": now}


def soak(
    profile: Profile,
    target: Path,
    rate: float,
    seconds: float,
    stack: Stack | None = None,
    *,
    workers: int | None = None,
    on_overload: str = "block",
) -> Soak:
    """Play frames at a detector's pace into a temporary file.

    Parameters
    ----------
    profile : Profile
    target : Path
        The folder to write to; nothing is left in it.
    rate : float
        Frames per second.
    seconds : float
        How long.
    stack : Stack, optional
        Whose frames are played; else simulated ones of the profile's shape.
    workers, on_overload
        As for `open_writer`.

    Raises
    ------
    InputError
        Where the folder cannot be written to or has too little space, or the profile has no shape to be simulated.
    TunerError
        Where the writer fails.
    """
    frames, mask = _frames_of(profile, stack)
    total = max(1, round(rate * seconds))
    check_target(target / "soak.h5", overwrite=True)
    _check_space(target, total * frames[0].nbytes / _expected_ratio(profile), seconds)
    threads = workers or default_workers()
    taken, queue = array("d"), array("L")
    with temporary_file(target) as path:
        writer = open_writer(
            path,
            # What is simulated is not what the profile was measured on.
            profile if stack is not None else replace(profile, envelope={}),
            dataset=_DATASET,
            frame_shape=frames.shape[1:],
            dtype=frames.dtype,
            mask=mask,
            workers=threads,
            verify="all" if profile.provisional else "sample",
            on_overload=on_overload,
        )
        with writer:
            until = seconds + max(seconds, _GRACE_S)
            start, late = _play(writer, frames, rate, total, until, taken, queue)
            last = time.perf_counter()
            depth = writer.depth
        with path.open("rb") as file:
            os.fsync(file.fileno())
        closed = time.perf_counter()
        stored = path.stat().st_size
        with h5py.File(path, locking=False) as file:
            runs = file[_DATASET].attrs.get("tuner_shed_frames", np.empty((0, 3), int))
    times = np.array(taken) - start
    played = len(times)
    latency = (times - np.arange(played) / rate) * 1e3
    nbytes = played * frames[0].nbytes
    return Soak(
        frames=total,
        played=played,
        seconds=last - start,
        closing_s=closed - last,
        rate_hz=rate,
        sustained_hz=played / (closed - start),
        worst_hz=_worst(times),
        write_mb_s=nbytes / (closed - start) / 1e6,
        ratio=nbytes / stored,
        latency_ms={f"{q:g} %": float(np.percentile(latency, q)) for q in (50, 90, 99, 99.9, 100)},
        queue={"median": float(np.median(queue)), "max": float(max(queue)), "depth": float(depth)},
        late=late + total - played,
        shed=int(sum(after - first for first, after, _ in runs)),
        workers=threads,
        profile=profile.name,
        target=str(target),
        data="simulated" if stack is None else stack.name,
    )


def _play(
    writer: Writer,
    frames: NDArray[Any],
    rate: float,
    total: int,
    until: float,
    taken: array[float],
    queue: array[int],
) -> tuple[float, int]:
    """Append each frame when it is due, for `until` seconds at most; when the first was, and how many were late."""
    late = 0
    start = time.perf_counter()
    for number, frame in zip(range(total), itertools.cycle(frames), strict=False):
        due = start + number / rate
        now = time.perf_counter()
        if number and now - start > until:
            break
        wait = due - now
        if wait > 0:
            time.sleep(wait)
        else:
            late += -wait >= 1 / rate
        writer.append(frame)
        taken.append(time.perf_counter())
        queue.append(writer.waiting)
    return start, late


def _worst(times: NDArray[np.float64]) -> float:
    """Frames per second in the worst whole second."""
    whole = int(times[-1])
    if not whole:
        return float(len(times) / times[-1])
    return float(np.bincount(times.astype(int), minlength=whole)[:whole].min())


def _frames_of(profile: Profile, stack: Stack | None) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """What is played, shape (n, *frame_shape), and which pixels do not count."""
    if stack is not None:
        profile.match.check(stack.dtype, stack.frame_shape, stack.name)
        each = max(1, math.prod(stack.frame_shape) * stack.dtype.itemsize)
        frames = stack.read(0, min(len(stack), max(1, _PLAYED_NBYTES // each)))
        if not len(frames):
            raise InputError(f"{stack.name}: must have frames, got none")
        return frames, stack.mask
    shape = profile.match.frame_shape
    if shape is None:
        raise InputError(f"profile {profile.name} must have a frame_shape for frames to be simulated: give --data")
    mask = None if profile.invalid.mask is None else np.zeros(shape, np.bool_)
    return simulated(shape, np.dtype(profile.match.dtype)), mask


def simulated(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Counts of a smooth image with Poisson noise; shape (n, *shape)."""
    rng = np.random.default_rng(0)
    plane = shape if len(shape) == 2 else (1, *shape)
    mean = _COUNTS * np.exp(texture(rng, (plane[0], plane[1]), 32.0) / 2)
    count = max(1, min(_SIMULATED, _PLAYED_NBYTES // (math.prod(shape) * dtype.itemsize)))
    counts = np.stack([rng.poisson(mean).reshape(shape) for _ in range(count)])
    if dtype.kind == "b":
        return counts > _COUNTS
    most = np.iinfo(dtype).max if dtype.kind in "ui" else 2048
    return np.minimum(counts, most).astype(dtype)


def _expected_ratio(profile: Profile) -> float:
    ratio = profile.evidence.get("metrics", {}).get("ratio", 1.0)
    return float(ratio[0] if isinstance(ratio, list) else ratio)


def _check_space(target: Path, nbytes: float, seconds: float) -> None:
    usage = shutil.disk_usage(target)
    free = usage.free - _SPARE * usage.total
    if nbytes > free:
        raise InputError(
            f"{target}: must have about {nbytes / 1e9:,.1f} GB free for this, got {max(free, 0) / 1e9:,.1f} GB:"
            f" enough for about {max(free, 0) / nbytes * seconds:.0f} s"
        )
