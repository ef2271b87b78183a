"""A simulation as a NeXus file, stored as the instrument would store it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from tuner.errors import InputError, TunerError
from tuner.simulate.simulation import Field, Simulation

#: NeXus classes of the groups in a field's path.
CLASSES = {"instrument": "NXinstrument", "detector": "NXdetector", "beam": "NXbeam", "sample": "NXsample"}

#: Techniques whose beamlines commonly write through areaDetector with gzip; the others use bitshuffle and lz4.
GZIP = ("saxs", "xrf")


def write_nexus(path: str | os.PathLike[str], simulation: Simulation) -> None:
    """Write the simulation to `path`, which appears only when it is complete; a file of that name is replaced.

    The frames are `/entry/data/data`, one exposure a chunk; memory holds one of them.

    Raises
    ------
    InputError
        Where the folder does not exist or may not be written to.
    TunerError
        Where writing fails, such as on a full disk.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: folder {path.parent} must exist")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: must be a file, got a {'folder' if path.is_dir() else 'device'}")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: folder {path.parent} must be writable")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with _Disk(part, "w+") as disk:
            try:
                with h5py.File(disk, "w") as file:
                    _write(file, simulation, disk)
            finally:
                disk.check()
        part.replace(path)
    except OSError as error:
        raise TunerError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


class _Disk(io.FileIO):
    """A file that takes what a full disk does not, as HDF5 crashes over a write that fails; `check` tells of it."""

    _error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it, or note why not; the bytes written, as far as HDF5 is to know."""
        left = memoryview(data).cast("B")
        nbytes = len(left)
        try:
            while left and self._error is None:
                left = left[super().write(left) :]
        except OSError as error:
            self._error = error
        return nbytes

    def truncate(self, size: int | None = None) -> int:
        """Set the length, or note why not."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0

    def check(self) -> None:
        """Raise what went wrong first."""
        if self._error is not None:
            raise self._error


def _write(file: h5py.File, simulation: Simulation, disk: _Disk) -> None:
    file.attrs["default"] = "entry"
    entry = _group(file, "entry", "NXentry")
    entry.attrs["default"] = "data"
    entry["title"] = f"simulated {simulation.technique}"
    for field in simulation.metadata:
        group, at = entry, field.path.split("/")
        for name in at[:-1]:
            group = _group(group, name, CLASSES[name])
        _write_field(group, at[-1], field)
    data = _group(entry, "data", "NXdata")
    data.attrs["signal"] = "data"
    data.attrs["axes"] = [axis.path for axis in simulation.axes]
    for index, axis in enumerate(simulation.axes):
        data.attrs[f"{axis.path}_indices"] = index
        _write_field(data, axis.path, axis)
    _group(_group(entry, "instrument", "NXinstrument"), "detector", "NXdetector")["data"] = h5py.SoftLink(
        "/entry/data/data"
    )
    compression = (
        {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        if simulation.technique in GZIP
        else {"compression": hdf5plugin.Bitshuffle(cname="lz4")}
    )
    chunks = (1,) * len(simulation.scan_shape) + simulation.frame_shape
    dataset = data.create_dataset("data", simulation.shape, simulation.dtype, chunks=chunks, **compression)
    dataset.attrs["interpretation"] = simulation.interpretation
    for index, frame in enumerate(simulation):
        dataset[np.unravel_index(index, simulation.scan_shape)] = frame
        disk.check()


def _group(parent: h5py.Group, name: str, nexus_class: str) -> h5py.Group:
    group = parent.require_group(name)
    group.attrs["NX_class"] = nexus_class
    return group


def _write_field(group: h5py.Group, name: str, field: Field) -> None:
    value: Any = field.value
    group[name] = value
    if field.units:
        group[name].attrs["units"] = field.units
