"""Steps: what may be done to whole frames before they are compressed, one family a file.

Every step keeps shape and dtype, leaves pixels that do not count exactly as they were, and creates none. Of a
*rounding* twice is once; a `Filter`, as is a round trip through a lossy codec, promises no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from tuner.document import Interval, Number, OneOf, check_mapping, join
from tuner.errors import InputError
from tuner.noise import Noise
from tuner.stack import Marks
from tuner.steps.denoise import Bm3d, Butterworth, NlMeans
from tuner.steps.framewise import ClipBackground, Framewise, Tqc, round_frames
from tuner.steps.jungfrau import Stages
from tuner.steps.noise_aware import Octave, Sigma
from tuner.steps.pointwise import Pointwise, round_pixels
from tuner.steps.regions import Regional, Regions, Roi, round_around
from tuner.steps.round_trip import Filter, HCompress, Jpeg2000, Sz3, Zfp, filter_frames
from tuner.steps.scale import LeadingBits, Log, Photonise, Power
from tuner.steps.uniform import Mantissa, Uniform, Window


class Step(Protocol):
    """What may be done to frames; frozen and hashable, its fields are its parameters.

    It is `Pointwise`, `Framewise` where what it does is found in each frame anew, `Regional` where places stay, or a
    `Filter`.
    """

    name: ClassVar[str]
    """What documents call it."""
    valid: ClassVar[Mapping[str, Number | Interval]]
    """What each parameter may be: used to validate, to search and to generate bad values."""

    def __hash__(self) -> int:
        """Of what it does."""
        ...

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where it cannot be done to pixels of a dtype with that noise."""
        ...

    def bound(self, values: NDArray[Any], noise: Noise | None) -> NDArray[np.float64]:
        """The most that pixels of these values can move by, data units, same shape: a promise by construction.

        Infinite where there is none.
        """
        ...


#: Every step by its name.
STEPS: Mapping[str, type[Step]] = {
    step.name: step
    for step in (
        Uniform,
        Window,
        Mantissa,
        Sigma,
        Octave,
        Photonise,
        LeadingBits,
        Log,
        Power,
        Tqc,
        ClipBackground,
        Stages,
        Regions,
        Roi,
        Jpeg2000,
        Zfp,
        Sz3,
        HCompress,
        Butterworth,
        NlMeans,
        Bm3d,
    )
}


@dataclass(frozen=True, slots=True)
class Pixels:
    """What steps need to know of the frames that they are given."""

    marks: Marks = field(default_factory=Marks)
    """The values that do not count."""
    mask: NDArray[np.bool_] | None = field(default=None, compare=False)
    """True where a pixel does not count in any frame, shape of a frame."""
    noise: Noise | None = None
    """The variance of a pixel."""

    def valid(self, frames: NDArray[Any]) -> NDArray[np.bool_]:
        """True for the pixels of whole frames that count, same shape."""
        return self.marks.valid(frames, self.mask)


def prepare(steps: Sequence[Step], frames: NDArray[Any], pixels: Pixels) -> NDArray[Any]:
    """Frames as they are to be stored: each step in turn; the frames themselves where there is none.

    The result depends neither on how many frames are given at once nor on what chunks they are cut into.

    Parameters
    ----------
    steps : sequence of Step
    frames : ndarray
        Whole frames, shape (n, *frame_shape).
    pixels : Pixels

    Examples
    --------
    >>> frames = np.array([[[7, 65535], [9, 9]]], "uint16")
    >>> mask = np.array([[False, False], [False, True]])
    >>> prepare([Uniform(4)], frames, Pixels(Marks(invalid=(65535,)), mask)).tolist()
    [[[8, 65535], [8, 9]]]
    """
    prepared = frames
    for step in steps:
        if isinstance(step, Framewise):
            prepared = round_frames(step, prepared, pixels.marks, pixels.mask, pixels.noise)
        elif isinstance(step, Regional):
            prepared = round_around(step, prepared, pixels.marks, pixels.mask, pixels.noise)
        elif isinstance(step, Filter):
            prepared = filter_frames(step, prepared, pixels.marks, pixels.mask, pixels.noise)
        else:
            assert isinstance(step, Pointwise)
            prepared = round_pixels(step, prepared, pixels.marks, pixels.noise)
    if steps and pixels.mask is not None:
        np.copyto(prepared, frames, where=pixels.mask)
    return prepared


def check_steps(steps: Sequence[Step], dtype: np.dtype[Any], noise: Noise | None) -> None:
    """Raise InputError where a step cannot be done to pixels of a dtype with that noise.

    >>> check_steps([Uniform(2)], np.dtype(bool), None)
    Traceback (most recent call last):
    tuner.errors.InputError: steps must be used on numbers, got bool, which has nothing to round
    """
    if steps and dtype.kind == "b":
        raise InputError("steps must be used on numbers, got bool, which has nothing to round")
    for index, step in enumerate(steps):
        try:
            step.check(dtype, noise)
        except InputError as error:
            raise InputError(join(join("steps", index), str(error))) from None


def step_to_dict(step: Step) -> dict[str, Any]:
    """A step as YAML has it.

    >>> step_from_dict(step_to_dict(Uniform(4)), "config.steps[0]") == Uniform(4)
    True
    """
    return {"step": step.name, **asdict(step)}  # type: ignore[call-overload]


def step_from_dict(document: Any, place: str) -> Step:
    """The inverse of `step_to_dict`.

    >>> step_from_dict({"step": "uniform", "width": -1}, "i03.yaml: config.steps[0]")
    Traceback (most recent call last):
    tuner.errors.InputError: i03.yaml: config.steps[0].width must be a number above 0, got -1

    Raises
    ------
    InputError
        With the place in the document.
    """
    kind = step_kind(document, place)
    check_mapping(document, place, ("step", *kind.valid), required=set(kind.valid) - set(defaults(kind)))
    try:
        return kind(**{key: document[key] for key in kind.valid if key in document})
    except InputError as error:
        raise InputError(join(place, str(error))) from None


def defaults(kind: type[Step]) -> dict[str, float]:
    """The parameters of a step that need not be given."""
    return {f.name: f.default for f in fields(kind) if f.default is not MISSING}  # type: ignore[arg-type]


def step_kind(document: Any, place: str) -> type[Step]:
    """The class of a step's document; raises InputError where it is none."""
    check_mapping(document, place)
    if "step" not in document:
        raise InputError(f"{join(place, 'step')} must be given: one of {' '.join(STEPS)}")
    return STEPS[OneOf(tuple(STEPS)).check(document["step"], join(place, "step"))]
