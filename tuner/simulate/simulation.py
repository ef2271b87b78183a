"""Simulation: frames made one at a time, with what a detector file says about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tuner.document import Interval, check_list, join, kind_of
from tuner.errors import InputError

#: The least extent of an image's axis, below which it shows no structure.
MIN_EXTENT = 16


@dataclass(frozen=True, slots=True)
class Field:
    """A value of a NeXus file."""

    path: str
    """Where it is kept below the entry, groups by `/`; for an axis, its name."""
    value: Any
    """A text, a number or an array."""
    units: str = ""
    """Its unit; empty where it has none."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """Simulated exposures; iterating makes them anew, equal each time, and keeps none."""

    technique: str
    """What was simulated."""
    scan_shape: tuple[int, ...]
    """Shape of the axes that number the exposures, in C order."""
    frame_shape: tuple[int, ...]
    """Shape of one exposure."""
    dtype: np.dtype[Any]
    """Dtype of a pixel."""
    interpretation: str
    """`image` or `spectrum`: what the last axes form, as NeXus calls it."""
    axes: tuple[Field, ...]
    """The coordinates along every axis, of the scan and of the exposure."""
    metadata: tuple[Field, ...] = field(repr=False)
    """What else the file says: pixel size, mask, exposure."""
    make: Callable[[], Iterator[NDArray[Any]]] = field(repr=False, compare=False)
    """Starts the frames from the first."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole stack."""
        return (*self.scan_shape, *self.frame_shape)

    def __len__(self) -> int:
        return math.prod(self.scan_shape)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Exposures in the order of the scan, shape `frame_shape`, dtype `dtype`."""
        return self.make()


class Technique(Protocol):
    """The parameters of one family of data; what they leave open the seed decides."""

    def simulate(self, frames: int, seed: int) -> Simulation:
        """A scan of `frames` exposures."""
        ...


def check_parameters(parameters: Any, dtypes: tuple[str, ...], places: int = 2) -> None:
    """Raise InputError where the parameters of a technique are none: a number below 0, a shape too small, a dtype.

    Parameters
    ----------
    parameters : dataclass instance
        With `shape` and `dtype`; all other fields are numbers or tuples of numbers.
    dtypes : tuple of str
        What such a detector writes.
    places : int
        How many of the last axes must span `MIN_EXTENT` pixels.
    """
    shape = check_list(parameters.shape, "shape")
    if len(shape) != 2:
        raise InputError(f"shape must be the two axes of a frame, got {kind_of(parameters.shape)}")
    for index, extent in enumerate(shape):
        Interval(MIN_EXTENT if index >= 2 - places else 1).check(extent, join("shape", index))
    if parameters.dtype not in dtypes:
        raise InputError(f"dtype must be one of {' '.join(dtypes)}, got {kind_of(parameters.dtype)}")
    for name in (f.name for f in fields(parameters) if f.name not in ("shape", "dtype")):
        value = getattr(parameters, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not (isinstance(number, int | float) and 0 <= number < math.inf):
                raise InputError(f"{name} must be a number >= 0, got {kind_of(value)}")


def world(seed: int, part: int = 0) -> np.random.Generator:
    """Draws what stays the same through a scan: sample, detector, beam; independent for each part."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, part)))


def moment(seed: int, index: int) -> np.random.Generator:
    """Draws what differs in one exposure, whatever the number of exposures."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, index)))


def texture(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> NDArray[np.float32]:
    """A smooth random field, shape `shape`, standard normal at points `scale` pixels apart, bilinear between."""
    knots = rng.standard_normal([int(extent // scale) + 2 for extent in shape], dtype=np.float32)
    for axis, extent in enumerate(shape):
        position = np.arange(extent) / scale
        low = position.astype(np.intp)
        part = (position - low).astype(np.float32)
        part = part[:, None] if axis == 0 else part
        knots = knots.take(low, axis) * (1 - part) + knots.take(low + 1, axis) * part
    return knots


def pixel_axes(shape: tuple[int, ...], pixel_um: float) -> tuple[Field, Field]:
    """Coordinates of the rows and columns of an image."""
    rows, columns = (np.arange(extent, dtype=np.float32) * np.float32(pixel_um) for extent in shape)
    return Field("y", rows, "um"), Field("x", columns, "um")
