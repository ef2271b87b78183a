"""A bluesky scan whose frames are written as a profile says, by a detector of ophyd-async.

    pip install tuner ophyd-async bluesky
    python bluesky_detector.py profiles/id19.yaml . 100

Put your detector in the place of `frame_of_the_detector`. The documents of a scan say where its frames are, as those of
any ophyd-async detector do: a stream resource for the file, and stream datums for the events.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import bluesky.plans as bp
import numpy as np
from bluesky.run_engine import RunEngine
from numpy.typing import NDArray
from ophyd_async.core import (
    DetectorAcquireLogic,
    DetectorDataLogic,
    DetectorTriggerLogic,
    PathProvider,
    StandardDetector,
    StaticFilenameProvider,
    StaticPathProvider,
    StreamableDataProvider,
    StreamResourceDataProvider,
    StreamResourceInfo,
    init_devices,
    soft_signal_r_and_setter,
)

import tuner
from tuner.apply.writer import Writer

DATASET = "/entry/data/data"


class TunerDataLogic(DetectorDataLogic):
    """Writes a file for each scan, through `tuner.open_writer`."""

    def __init__(
        self, path_provider: PathProvider, profile: tuner.Profile, shape: tuple[int, int], dtype: np.dtype
    ) -> None:
        profile.match.check(dtype, shape, "detector")  # before a scan is even planned
        self.path_provider, self.profile, self.shape, self.dtype = path_provider, profile, shape, dtype
        self.frames_written, self._set_frames_written = soft_signal_r_and_setter(int)
        self._writer: Writer | None = None

    async def prepare_unbounded(self, datakey_name: str) -> StreamableDataProvider:
        """Open the file of a scan."""
        where = self.path_provider(datakey_name)
        self._set_frames_written(0)
        self._writer = tuner.open_writer(
            f"{where.directory_path}/{where.filename}.h5",
            self.profile,
            dataset=DATASET,
            frame_shape=self.shape,
            dtype=self.dtype,
            flush_every="1s",
        )
        frames = StreamResourceInfo(
            data_key=datakey_name,
            shape=self.shape,
            chunk_shape=(self.profile.config.chunks[0], *self.shape),
            dtype_numpy=self.dtype.str,
            parameters={"dataset": DATASET, "tuner_digest": self.profile.digest},
        )
        return StreamResourceDataProvider(
            uri=f"{where.directory_uri}{where.filename}.h5",
            resources=[frames],
            mimetype="application/x-hdf5",
            collections_written_signal=self.frames_written,
        )

    async def write(self, frame: NDArray) -> None:
        """Take a frame; where the writer has to wait for the disk, other devices go on meanwhile."""
        assert self._writer is not None
        await asyncio.to_thread(self._writer.append, frame)
        self._set_frames_written(self._writer.frames_written)

    async def stop(self) -> None:
        """Close the file: all that was given is in it, also after a scan that was aborted."""
        if self._writer is not None:
            await asyncio.to_thread(self._writer.close)
            self._writer = None

    def get_hinted_fields(self, datakey_name: str) -> Sequence[str]:
        """What live plots show."""
        return [datakey_name]


class TunerTriggerLogic(DetectorTriggerLogic):
    """Remembers how many frames are asked for; a real one sets exposure and period."""

    count = 1

    async def prepare_internal(self, num: int, livetime: float, deadtime: float) -> None:
        """Set up the detector for frames that it times itself."""
        self.count = num


class TunerAcquireLogic(DetectorAcquireLogic):
    """Takes frames and hands them on."""

    def __init__(self, trigger: TunerTriggerLogic, data: TunerDataLogic, take_frame: Callable[[], NDArray]) -> None:
        self.trigger, self.data, self.take_frame = trigger, data, take_frame
        self._task: asyncio.Task[None] | None = None

    async def start_acquiring(self) -> None:
        """Start taking the frames that were asked for."""
        self._task = asyncio.create_task(self._acquire())

    async def _acquire(self) -> None:
        for _ in range(self.trigger.count):
            await self.data.write(await asyncio.to_thread(self.take_frame))

    async def wait_for_idle(self) -> None:
        """Wait for the last frame."""
        if self._task is not None:
            await self._task

    async def ensure_stopped(self) -> None:
        """Stop at once; what went wrong in writing is raised here, if not before."""
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


class TunerDetector(StandardDetector):
    """A detector whose frames are stored as a profile says.

    Parameters
    ----------
    path_provider : PathProvider
    profile : tuner.Profile
        As `tuner.load_profile` returns it.
    take_frame : callable
        Returns the next frame, shape `shape`.
    shape, dtype
        Of a frame.
    name : str
    """

    def __init__(
        self,
        path_provider: PathProvider,
        profile: tuner.Profile,
        take_frame: Callable[[], NDArray],
        shape: tuple[int, int],
        dtype: np.dtype,
        name: str = "",
    ) -> None:
        trigger = TunerTriggerLogic()
        data = TunerDataLogic(path_provider, profile, shape, dtype)
        self.add_detector_logics(trigger, TunerAcquireLogic(trigger, data, take_frame), data)
        super().__init__(name=name)


SHAPE = (1024, 1024)
_RANDOM = np.random.default_rng(0)


def frame_of_the_detector() -> NDArray[np.uint16]:
    """Stands for yours."""
    return _RANDOM.poisson(100, SHAPE).astype(np.uint16)


def scan(profile_path: str, folder: str, count: int) -> None:
    """Take so many frames into ``scan.h5`` in a folder."""
    engine = RunEngine()
    profile = tuner.load_profile(profile_path, strict=True)
    where = StaticPathProvider(StaticFilenameProvider("scan"), Path(folder).resolve())
    with init_devices():
        camera = TunerDetector(where, profile, frame_of_the_detector, SHAPE, np.dtype(np.uint16))
    engine(bp.count([camera], num=count), lambda name, document: print(name, document.get("uri", "")))


if __name__ == "__main__":
    scan(sys.argv[1], sys.argv[2], int(sys.argv[3]))
