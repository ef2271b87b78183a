"""Stack: frames with their axes, invalid pixels and kinds, whatever file they come from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Kind(IntEnum):
    """What a frame shows, numbered as `image_key` of NXtomo."""

    DATA = 0
    FLAT = 1
    DARK = 2
    INVALID = 3


class Source(Protocol):
    """Where frames are read from; frames are numbered in C order over the leading axes."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Frames `start` to `stop`, shape (stop - start, *frame_shape), native byte order."""
        ...

    def stored_bytes(self) -> NDArray[np.int64] | None:
        """Bytes that each frame takes in its file, shape (frames,); 0 where it was never written; None if unknown."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


@dataclass(frozen=True, slots=True)
class Storage:
    """How a stack is stored today."""

    nbytes: int
    """Bytes it takes in its file."""
    chunks: tuple[int, ...] | None = None
    """Chunk shape; None where it is contiguous."""
    filters: tuple[str, ...] = ()
    """A text for each filter with its parameters, in the order in which they are applied."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The values that tell which pixels count."""

    invalid: tuple[int, ...] = ()
    """Values that mark a pixel as invalid in one frame."""
    saturation: float | None = None
    """The least value that the detector could not count; None where it is unknown."""
    underload: float | None = None
    """The least valid value; None where none is declared."""

    def __str__(self) -> str:
        """What it marks, in words.

        >>> str(Marks((65535,), saturation=60000.0)), str(Marks())
        ('65535, 60000 and above', 'no value')
        """
        words = [str(value) for value in self.invalid]
        words += [] if self.saturation is None else [f"{self.saturation:.15g} and above"]
        words += [] if self.underload is None else [f"below {self.underload:.15g}"]
        return ", ".join(words) or "no value"

    def valid(self, frames: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """True where a pixel counts: neither masked, marked, underloaded nor saturated, and finite; as `frames`.

        >>> Marks(invalid=(65535,), saturation=60000).valid(np.array([0, 59999, 60000, 65535], np.uint16)).tolist()
        [True, True, False, False]
        """
        counted = self._counted(frames, mask)
        if self.saturation is not None:
            counted &= ~self._beyond(frames, self.saturation)
        return counted

    def saturated(self, frames: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """True where the detector could not count, same shape as `frames`; a gap marked by a higher value is not."""
        if self.saturation is None:
            return np.zeros(frames.shape, np.bool_)
        return self._counted(frames, mask) & self._beyond(frames, self.saturation)

    def _counted(self, frames: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        floats = frames.dtype.kind == "f"
        counted = np.isfinite(frames) if floats else np.ones(frames.shape, np.bool_)
        if mask is not None:
            counted &= ~mask
        for value in self.invalid:
            # What a narrow float cannot hold is none of its pixels.
            if not floats or abs(value) <= float(np.finfo(frames.dtype).max):
                counted &= frames != value
        if self.underload is not None:
            counted &= self._beyond(frames, self.underload)
        return counted

    def _beyond(self, frames: NDArray[Any], limit: float) -> NDArray[np.bool_]:
        """True where pixels are at a limit, or above it."""
        if frames.dtype.kind == "f":  # in double precision, as the limit may be above what a narrow float can hold
            beyond: NDArray[np.bool_] = frames >= np.float64(limit)
            return beyond
        # Whole numbers compare as such: a floating limit would take eight bytes a pixel.
        return np.asarray(frames >= math.ceil(limit))


@dataclass(frozen=True, slots=True)
class Stack:
    """Frames of one detector, read piece by piece."""

    name: str
    """The path as it was given; how messages call it."""
    shape: tuple[int, ...]
    """Shape in the file; the last `frame_ndim` axes form a frame, those before number the frames in C order."""
    frame_ndim: int
    """1 for spectra, 2 for images."""
    dtype: np.dtype[Any]
    """The dtype in native byte order."""
    source: Source = field(repr=False, compare=False)
    """Where the frames are read from."""
    axes: tuple[str, ...] = ()
    """A name for each axis; empty where the file names none."""
    mask: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)
    """True where a pixel is invalid in all frames, shape `frame_shape`; None where the file has none."""
    invalid: tuple[int, ...] = ()
    """Values that mark a pixel as invalid in one frame."""
    saturation: float | None = None
    """The least value that the detector could not count; None where it is unknown."""
    underload: float | None = None
    """The least valid value; None where the file declares none."""
    kinds: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    """A `Kind` for each frame, shape (frames,); None where all are data."""
    flats: Stack | None = field(default=None, repr=False, compare=False)
    """Flat fields that the file keeps beside the data."""
    darks: Stack | None = field(default=None, repr=False, compare=False)
    """Darks that the file keeps beside the data."""
    photon_counting: bool | None = None
    """Whether values are photon counts: as the file declares, None where it does not say."""
    switches_gain: bool = False
    """Whether the detector is a JUNGFRAU, whose raw pixels tell their gain in the upper two of 16 bits."""
    storage: Storage | None = field(default=None, repr=False, compare=False)
    """How it is stored today; None where that has no meaning."""
    dataset: str | None = None
    """Where it is in its HDF5 file; None in other formats."""

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one frame."""
        return self.shape[len(self.shape) - self.frame_ndim :]

    @property
    def lead_shape(self) -> tuple[int, ...]:
        """Shape of the axes that number the frames; empty for a single frame without such an axis."""
        return self.shape[: len(self.shape) - self.frame_ndim]

    def __len__(self) -> int:
        return math.prod(self.lead_shape)

    @property
    def frame_nbytes(self) -> int:
        """Bytes of one frame."""
        return math.prod(self.frame_shape) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all frames, uncompressed."""
        return len(self) * self.frame_nbytes

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Frames `start` to `stop`, shape (stop - start, *frame_shape), in the stack's dtype."""
        return self.source.read(start, stop)

    def written(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        """True for frames that were written, as far as the source tells, from `start` to before `stop`."""
        stored = self.source.stored_bytes()
        return np.ones(len(range(len(self))[start:stop]), np.bool_) if stored is None else stored[start:stop] > 0

    def close(self) -> None:
        """Let go of the files; they are opened again where more is read."""
        for stack in (self, self.flats, self.darks):
            if stack is not None:
                stack.source.close()

    @property
    def marks(self) -> Marks:
        """The values that tell which pixels count."""
        return Marks(self.invalid, self.saturation, self.underload)

    def valid(self, frames: NDArray[Any]) -> NDArray[np.bool_]:
        """True where a pixel counts: not masked, not marked invalid, not underloaded, finite; same shape as `frames`.

        A saturated pixel is not valid either: its value is not a count.
        """
        return self.marks.valid(frames, self.mask)

    def saturated(self, frames: NDArray[Any]) -> NDArray[np.bool_]:
        """True where the detector could not count, same shape as `frames`; a gap marked by a higher value is not."""
        return self.marks.saturated(frames, self.mask)

    def tells_gain(self, frames: NDArray[Any]) -> bool:
        """Whether the upper two bits of some pixels are a gain: such values are not to be rounded as numbers."""
        if not self.switches_gain or frames.dtype != np.dtype("uint16"):
            return False
        return bool((frames[self.valid(frames)] >= 1 << 14).any())


def convention(dtype: np.dtype[Any]) -> tuple[int, ...]:
    """Values that mark invalid pixels where the file does not say.

    The dtype's maximum for unsigned integers (Dectris Eiger), -1 and -2 for int32 (Pilatus); other negatives are data.

    >>> convention(np.dtype("uint16")), convention(np.dtype("int32")), convention(np.dtype("float32"))
    ((65535,), (-1, -2), ())
    """
    if dtype.kind == "u":
        return (int(np.iinfo(dtype).max),)
    if dtype == np.dtype("int32"):
        return (-1, -2)
    return ()
