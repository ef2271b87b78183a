"""Reductions: what makes fewer pixels or frames, before any step: bin, sum, crop, scale.

A reduction rewrites what frames are: shape, dtype, mask, marks and noise. A sum of which a part does not count does not
count, a sum of which a part is saturated is saturated, and no sum wraps: what is beyond the dtype is saturated too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce as fold
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from tuner.document import Interval, Number, OneOf
from tuner.errors import InputError
from tuner.noise import Noise
from tuner.stack import Marks, convention

#: Beyond the greatest count; a double holds it and what is next to it.
_HUGE = 1 << 62

#: What sums of integers may be stored in, the first that holds them; of 32 bits at most, as many readers take no more.
#: Not in int32, whose -1 and -2 readers take for gaps, but where they were taken so before.
_WIDER = {
    "uint8": ("uint8", "uint16", "uint32"),
    "uint16": ("uint16", "uint32"),
    "int8": ("int8", "int16", "int64"),
    "int16": ("int16", "int64"),
}

#: Of the marks of int32, the values that count next to them.
_BESIDE = {-1: 0, -2: -3}


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """What frames are, as far as a reduction changes it."""

    frame_shape: tuple[int, ...]
    """Shape of a frame."""
    dtype: np.dtype[Any]
    """Of a pixel."""
    marks: Marks
    """The values that do not count."""
    mask: NDArray[np.bool_] | None = None
    """True where a pixel does not count in any frame, shape `frame_shape`."""
    photon_counting: bool | None = None
    """Whether values are photon counts; None where nobody says."""

    @property
    def filler(self) -> float:
        """What a pixel that does not count holds: the first mark, NaN, or a value below the least; else 0."""
        if self.dtype.kind == "f":
            return math.nan
        if self.marks.invalid:
            return self.marks.invalid[0]
        if self.marks.underload is not None and self.marks.underload > np.iinfo(self.dtype).min:
            return math.ceil(self.marks.underload) - 1
        return 0


class Reduction(Protocol):
    """What makes fewer pixels or frames; frozen and hashable, its fields are its parameters."""

    name: ClassVar[str]
    """What documents call it."""
    valid: ClassVar[Mapping[str, Number | Interval | OneOf]]
    """What each parameter may be: used to validate, and to read `--reduce`."""

    def __hash__(self) -> int:
        """Of what it does."""
        ...

    @property
    def parts(self) -> tuple[int, int]:
        """Frames that make one frame, and pixels along an axis that make one pixel."""
        ...

    def form(self, before: Form) -> Form:
        """What frames are afterwards; raises InputError where it cannot be done."""
        ...

    def frames(self, frames: NDArray[Any], before: Form, after: Form) -> NDArray[Any]:
        """The reduced frames."""
        ...

    def noise(self, noise: Noise, ndim: int) -> Noise:
        """The noise of a pixel afterwards, of frames with so many axes."""
        ...


def check_parameters(reduction: Reduction) -> None:
    """Replace each parameter by what its range makes of it; raises InputError outside."""
    for name, valid in reduction.valid.items():
        object.__setattr__(reduction, name, valid.check(getattr(reduction, name), name))


@dataclass(frozen=True, slots=True)
class Sum:
    """Add so many frames that follow each other.

    Laws: where all parts count and none is saturated, the sum of the counts is kept; a pixel of which a part does not
    count does not count; one of which a part is saturated, or whose sum is beyond the dtype, is saturated.
    """

    n: int
    """Frames that make one."""

    name: ClassVar[str] = "sum"
    valid: ClassVar[Mapping[str, Number | Interval | OneOf]] = {"n": Interval(2, 1 << 16)}

    def __post_init__(self) -> None:
        check_parameters(self)

    @property
    def parts(self) -> tuple[int, int]:
        """Frames that make one frame, and pixels along an axis that make one pixel."""
        return self.n, 1

    def form(self, before: Form) -> Form:
        """What sums of frames are."""
        return _summed(before, self.n, before.frame_shape, before.mask)

    def frames(self, frames: NDArray[Any], before: Form, after: Form) -> NDArray[Any]:
        """Sums of each `n` of frames, shape (k * n, *frame_shape); shape (k, *frame_shape)."""
        return _sums(frames, before, after, [np.s_[i :: self.n] for i in range(self.n)])

    def noise(self, noise: Noise, ndim: int) -> Noise:
        """The noise of a sum."""
        return _noise_of_sum(noise, self.n)


@dataclass(frozen=True, slots=True)
class Bin:
    """Add squares of pixels, or stretches of channels; what is left over at the far edges is dropped.

    Laws as for `Sum`.

    >>> form = Form((2, 5), np.dtype("uint16"), Marks((65535,)))
    >>> frames = np.array([[[1, 2, 3, 65535, 9], [4, 5, 6, 7, 9]]], "uint16")
    >>> Bin(2).frames(frames, form, Bin(2).form(form)).tolist()
    [[[12, 4294967295]]]
    """

    n: int
    """Pixels along each axis that make one."""

    name: ClassVar[str] = "bin"
    valid: ClassVar[Mapping[str, Number | Interval | OneOf]] = {"n": Interval(2, 256)}

    def __post_init__(self) -> None:
        check_parameters(self)

    @property
    def parts(self) -> tuple[int, int]:
        """Frames that make one frame, and pixels along an axis that make one pixel."""
        return 1, self.n

    def form(self, before: Form) -> Form:
        """What binned frames are."""
        if min(before.frame_shape) < self.n:
            raise InputError(f"reduction bin must be of at most {min(before.frame_shape)} pixels, got {self.n}")
        shape = tuple(size // self.n for size in before.frame_shape)
        mask = before.mask
        if mask is not None:
            mask = np.logical_or.reduce([mask[part] for part in self._places(before)])
        return _summed(before, self.n ** len(shape), shape, mask)

    def frames(self, frames: NDArray[Any], before: Form, after: Form) -> NDArray[Any]:
        """Binned frames, shape (n, *frame_shape)."""
        return _sums(frames, before, after, [(slice(None), *part) for part in self._places(before)])

    def noise(self, noise: Noise, ndim: int) -> Noise:
        """The noise of a binned pixel."""
        return _noise_of_sum(noise, self.n**ndim)

    def _places(self, before: Form) -> list[tuple[slice, ...]]:
        """Of a frame, the first pixel of each bin, the second, and so on."""
        ends = [size - size % self.n for size in before.frame_shape]
        starts = np.ndindex(*(self.n,) * len(ends))
        return [tuple(slice(at, end, self.n) for at, end in zip(start, ends, strict=True)) for start in starts]


@dataclass(frozen=True, slots=True)
class Crop:
    """Keep a rectangle; in pixels as binned, where frames are binned too."""

    top: int
    """The first row; 0 for spectra."""
    left: int
    """The first column."""
    rows: int
    """How many; 1 for spectra."""
    columns: int
    """How many."""

    name: ClassVar[str] = "crop"
    valid: ClassVar[Mapping[str, Number | Interval | OneOf]] = {
        "top": Interval(0),
        "left": Interval(0),
        "rows": Interval(1),
        "columns": Interval(1),
    }

    def __post_init__(self) -> None:
        check_parameters(self)

    @property
    def parts(self) -> tuple[int, int]:
        """Frames that make one frame, and pixels along an axis that make one pixel."""
        return 1, 1

    def places(self, ndim: int) -> tuple[slice, ...]:
        """Of a frame, what is kept."""
        return (slice(self.top, self.top + self.rows), slice(self.left, self.left + self.columns))[-ndim:]

    def form(self, before: Form) -> Form:
        """What cropped frames are."""
        shape = (1, *before.frame_shape)[-2:]
        if self.top + self.rows > shape[0] or self.left + self.columns > shape[1]:
            end = (self.top + self.rows, self.left + self.columns)
            raise InputError(f"reduction crop must end within a frame of {shape}, got an end at {end}")
        mask = None if before.mask is None else before.mask[self.places(len(before.frame_shape))]
        kept = (self.rows, self.columns)[-len(before.frame_shape) :]
        return replace(before, frame_shape=kept, mask=mask if mask is not None and mask.any() else None)

    def frames(self, frames: NDArray[Any], before: Form, after: Form) -> NDArray[Any]:
        """Cropped frames, shape (n, *frame_shape)."""
        return frames[(slice(None), *self.places(len(before.frame_shape)))].copy()

    def noise(self, noise: Noise, ndim: int) -> Noise:
        """As it was."""
        return noise


@dataclass(frozen=True, slots=True)
class Scale:
    """Store integers of another dtype, ``rint(value / factor - offset)``, of which NeXus says what they were.

    ``value = (stored + offset) * factor``, as NXdata has it for fields named ``data_offset`` and
    ``data_scaling_factor``.

    Law: a pixel that counts afterwards has moved by at most half of `factor`. What is above the dtype is saturated;
    what is below it does not count, so an offset must leave room for the least value.
    """

    dtype: str
    """Of what is stored."""
    factor: float = 1.0
    """Data units of a step."""
    offset: float = 0.0
    """Steps that are taken off before; below 0 to leave room for values below 0."""

    name: ClassVar[str] = "scale"
    valid: ClassVar[Mapping[str, Number | Interval | OneOf]] = {
        "dtype": OneOf(("uint8", "uint16", "uint32", "int8", "int16")),
        "factor": Number(above=0.0),
        "offset": Number(),
    }

    def __post_init__(self) -> None:
        check_parameters(self)

    @property
    def parts(self) -> tuple[int, int]:
        """Frames that make one frame, and pixels along an axis that make one pixel."""
        return 1, 1

    def form(self, before: Form) -> Form:
        """What scaled frames are."""
        if before.dtype.kind not in "iuf":
            raise InputError(f"reduction scale must be of numbers, got {before.dtype}")
        dtype, marks = np.dtype(self.dtype), before.marks
        low, high = _ends(dtype)
        most = self._steps(_reach(before)[1])
        saturation = None
        if marks.saturation is not None or most > high:
            saturation = float(min(np.rint(most) + 1, high))
        underload = None if marks.underload is None else max(math.floor(self._steps(marks.underload)), low)
        if not convention(dtype):  # what does not count must have a value
            underload = max(low + 1, low if underload is None else underload)
        return replace(
            before,
            dtype=dtype,
            marks=Marks(convention(dtype), saturation, underload),
            photon_counting=before.photon_counting if self._exact else None,
        )

    def frames(self, frames: NDArray[Any], before: Form, after: Form) -> NDArray[Any]:
        """Scaled frames, same shape."""
        valid = before.marks.valid(frames, before.mask)
        if self._exact and frames.dtype.kind != "f" and frames.dtype.itemsize < 8:
            steps: NDArray[Any] = frames.astype(np.int64)
        else:
            steps = np.rint(self._steps(np.where(valid, frames, 0).astype(np.float64)))
        least = _ends(after.dtype)[0] if after.marks.underload is None else after.marks.underload
        return _stored(steps, valid & (steps >= least), before.marks.saturated(frames, before.mask), after)

    def noise(self, noise: Noise, ndim: int) -> Noise:
        """The noise in steps."""
        return replace(
            noise,
            gain=noise.gain / self.factor,
            offset=float(self._steps(noise.offset)),
            read_noise=noise.read_noise / self.factor,
            floor=noise.floor / self.factor**2,
        )

    @property
    def _exact(self) -> bool:
        return self.factor == 1 and self.offset == 0

    def _steps(self, values: Any) -> Any:
        return values / self.factor - self.offset


def _ends(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The least and the greatest integer that counts; of 64 bits fewer, so that doubles tell what is beyond."""
    limits = np.iinfo(dtype)
    if dtype.itemsize == 8:
        return max(limits.min, -_HUGE), _HUGE
    return limits.min, limits.max - (dtype.kind == "u")


def _reach(form: Form) -> tuple[float, float]:
    """The least and the greatest value that a pixel that counts may have."""
    marks = form.marks
    low, high = (-math.inf, math.inf) if form.dtype.kind == "f" else _ends(form.dtype)
    if marks.saturation is not None:
        high = min(high, marks.saturation if form.dtype.kind == "f" else math.ceil(marks.saturation) - 1)
    return (low if marks.underload is None else max(low, marks.underload)), high


def _summed(before: Form, parts: int, shape: tuple[int, ...], mask: NDArray[np.bool_] | None) -> Form:
    """What sums of so many pixels are: of the first dtype that holds them all, or the last, where they saturate."""
    if before.dtype.kind not in "iuf":
        raise InputError(f"frames must be numbers to be summed, got {before.dtype}")
    marks, (low, high) = before.marks, _reach(before)
    underload = None if marks.underload is None else parts * marks.underload
    if before.dtype.kind == "f":
        dtype = np.dtype(np.float32) if before.dtype.itemsize < 4 else before.dtype
        saturation = None if marks.saturation is None else float(dtype.type(parts * marks.saturation))
    else:
        dtypes = [np.dtype(name) for name in _WIDER.get(before.dtype.name, (before.dtype.name,))]
        holding = [d for d in dtypes if parts * high <= _ends(d)[1] and parts * low >= _ends(d)[0]]
        dtype = (holding or dtypes[-1:])[0]
        saturates = marks.saturation is not None or not holding
        saturation = float(min(parts * high + 1, _ends(dtype)[1])) if saturates else None
    summed = Marks(convention(dtype), saturation, underload)
    return replace(before, frame_shape=shape, dtype=dtype, mask=mask, marks=summed)


def _sums(frames: NDArray[Any], before: Form, after: Form, places: Sequence[Any]) -> NDArray[Any]:
    """Sums of the pixels of each place, as `after` stores them."""
    valid = before.marks.valid(frames, before.mask)
    whole = fold(np.logical_and, (valid[place] for place in places))
    total = np.zeros(whole.shape, _accumulator(before.dtype, len(places)))
    with np.errstate(over="ignore", invalid="ignore"):
        for place in places:
            total += frames[place]
    saturated = np.zeros(whole.shape, np.bool_)
    if not whole.all():
        beyond = before.marks.saturated(frames, before.mask)
        saturated = fold(np.logical_and, (valid[place] | beyond[place] for place in places)) & ~whole
    if before.dtype.itemsize == 8 and before.dtype.kind != "f":  # may have wrapped
        about = fold(np.add, (frames[place].astype(np.float64) for place in places))
        total = np.where(np.abs(about) < _HUGE, total, np.sign(about).astype(total.dtype) * total.dtype.type(_HUGE))
    return _stored(total, whole, saturated, after)


def _accumulator(dtype: np.dtype[Any], parts: int) -> np.dtype[Any]:
    """What sums of so many pixels fit into while they are made."""
    if dtype.kind == "u" and parts * int(np.iinfo(dtype).max) < 1 << 32:
        return np.dtype(np.uint32)
    return np.dtype(f"{dtype.kind}8")


def _stored(values: NDArray[Any], valid: NDArray[np.bool_], saturated: NDArray[np.bool_], form: Form) -> NDArray[Any]:
    """Values as a form stores them: what is beyond it, or was saturated, is saturated; what does not count is filled.

    A value that falls onto a mark goes to the nearest that is none.
    """
    if form.dtype.kind == "f":
        beyond = saturated
        with np.errstate(over="ignore"):
            result = values.astype(form.dtype)
    else:
        low, high = _ends(form.dtype)
        beyond = saturated | (valid & (values > high))
        result = np.clip(values, low, high).astype(form.dtype)
        for mark, other in _BESIDE.items() if form.marks.invalid == tuple(_BESIDE) else ():
            result[result == mark] = other
    if form.marks.saturation is not None:
        result[beyond] = form.marks.saturation if form.dtype.kind == "f" else math.ceil(form.marks.saturation)
    result[~(valid | beyond)] = form.filler
    return result


def _noise_of_sum(noise: Noise, parts: int) -> Noise:
    """Variances add: those of light do as the light does, so the gain stays."""
    return replace(noise, offset=parts * noise.offset, read_noise=math.sqrt(parts) * noise.read_noise)
