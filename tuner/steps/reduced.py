"""Stacks as reductions make them: everything downstream sees fewer and smaller frames, and nothing else."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tuner.document import OneOf, check_list, check_mapping, join
from tuner.errors import InputError
from tuner.noise import Noise
from tuner.stack import Kind, Stack
from tuner.steps.reductions import Bin, Crop, Form, Reduction, Scale, Sum
from tuner.steps.triage import Triage

#: Bytes of frames that are read at once, about, to be reduced.
_BATCH_NBYTES = 32 << 20

_R = TypeVar("_R")

#: Every reduction by its name, in the order in which they are done.
REDUCTIONS: Mapping[str, type[Reduction]] = {kind.name: kind for kind in (Triage, Sum, Bin, Crop, Scale)}


def check_order(reductions: Sequence[Reduction]) -> tuple[Reduction, ...]:
    """Return reductions if each is there once at most, in the order in which they are done, and they go together."""
    order = list(REDUCTIONS)
    names = [reduction.name for reduction in reductions]
    if names != sorted(set(names), key=order.index):
        raise InputError(f"reduce must be some of {' '.join(order)}, each once, in this order, got {' '.join(names)}")
    if names[:2] == ["triage", "sum"]:
        raise InputError("reduce must not sum after triage, as frames that are left follow others that are not")
    return tuple(reductions)


def reductions_from(document: Any, place: str) -> tuple[Reduction, ...]:
    """Reductions from a document's list, as `reductions_to` makes it.

    >>> reductions_from([{"step": "sum", "n": 4}, {"step": "bin", "n": 1}], "i03.yaml: reduce")
    Traceback (most recent call last):
    tuner.errors.InputError: i03.yaml: reduce[1].n must be in 2..256, got 1

    Raises
    ------
    InputError
        With the place in the document.
    """
    found = []
    for index, item in enumerate(check_list(document, place)):
        where = join(place, index)
        check_mapping(item, where, required=("step",))
        kind = REDUCTIONS[OneOf(tuple(REDUCTIONS)).check(item["step"], join(where, "step"))]
        needed = [f.name for f in fields(kind) if f.default is MISSING]  # type: ignore[arg-type]
        check_mapping(item, where, ("step", *kind.valid), needed)
        try:
            found.append(kind(**{key: value for key, value in item.items() if key != "step"}))
        except InputError as error:
            raise InputError(join(where, str(error))) from None
    try:
        return check_order(found)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def reductions_to(reductions: Sequence[Reduction]) -> list[dict[str, Any]]:
    """Reductions as YAML has them.

    >>> reductions_to([Sum(4), Bin(2)])
    [{'step': 'sum', 'n': 4}, {'step': 'bin', 'n': 2}]
    """
    return [{"step": reduction.name, **asdict(reduction)} for reduction in reductions]  # type: ignore[call-overload]


def parse_reductions(text: str, place: str = "--reduce") -> tuple[Reduction, ...]:
    """Reductions from words such as ``sum=4,bin=2,crop=0:0:512:512,scale=uint16:0.5:-10``, in any order.

    >>> parse_reductions("bin=2,sum=4")
    (Sum(n=4), Bin(n=2))

    Raises
    ------
    InputError
        For a word that is none, a parameter that is missing or not allowed.
    """
    items = []
    for word in text.split(","):
        name, _, values = word.strip().partition("=")
        kind = REDUCTIONS[OneOf(tuple(REDUCTIONS)).check(name, place)]
        given = values.split(":") if values else []
        if len(given) > len(kind.valid):
            raise InputError(f"{place} must have at most {len(kind.valid)} values for {name}, got {word.strip()!r}")
        items.append({"step": name, **{key: _value(v) for key, v in zip(kind.valid, given, strict=False)}})
    order = list(REDUCTIONS)
    return reductions_from(sorted(items, key=lambda item: order.index(item["step"])), place)


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


class Chain:
    """Reductions one after the other, for frames of one form.

    Raises InputError where one cannot be done to such frames.
    """

    def __init__(self, reductions: Sequence[Reduction], form: Form) -> None:
        self.reductions = check_order(reductions)
        self._forms = [form]
        for reduction in self.reductions:
            self._forms.append(reduction.form(self._forms[-1]))

    @property
    def before(self) -> Form:
        """What frames are that are given."""
        return self._forms[0]

    @property
    def after(self) -> Form:
        """What frames are that come of them."""
        return self._forms[-1]

    @property
    def each(self) -> int:
        """Frames that make one frame."""
        return math.prod(reduction.parts[0] for reduction in self.reductions)

    @property
    def binned(self) -> int:
        """Pixels along an axis that make one pixel."""
        return math.prod(reduction.parts[1] for reduction in self.reductions)

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of the first pixel that is kept, in pixels as they were."""
        crop = self.find(Crop)
        return (0, 0) if crop is None else (crop.top * self.binned, crop.left * self.binned)

    def find(self, kind: type[_R]) -> _R | None:
        """The reduction of a kind; None without."""
        return next((reduction for reduction in self.reductions if isinstance(reduction, kind)), None)

    def frames(self, frames: NDArray[Any]) -> NDArray[Any]:
        """Reduced frames, shape (k, *after.frame_shape), of frames of shape (k * each, *before.frame_shape)."""
        for reduction, before, after in zip(self.reductions, self._forms, self._forms[1:], strict=False):
            frames = reduction.frames(frames, before, after)
        return frames

    def noise(self, noise: Noise) -> Noise:
        """The noise of a reduced pixel, from that of a pixel."""
        for reduction in self.reductions:
            noise = reduction.noise(noise, len(self.before.frame_shape))
        return noise


@dataclass(frozen=True, slots=True, eq=False)
class Reduced:
    """The source of a reduced stack."""

    original: Stack
    """What is reduced."""
    chain: Chain
    """How."""
    starts: NDArray[np.int64]
    """For each frame the number of the first frame that it is made of, shape (frames,)."""
    audited: NDArray[np.bool_]
    """Which are kept though triage leaves their like out, shape (frames,)."""
    stored: NDArray[np.int64] | None
    """Bytes that what each is made of takes in its file; 0 where a part was never written; None if unknown."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Frames `start` to `stop`, shape (stop - start, *frame_shape); of what was never written nothing counts."""
        each = self.chain.each
        several = max(1, _BATCH_NBYTES // max(1, each * self.original.frame_nbytes))
        frames = np.empty((stop - start, *self.chain.after.frame_shape), self.chain.after.dtype)
        for first in range(start, stop, several):
            starts = self.starts[first : min(first + several, stop)]
            # What follows each other is read at once.
            runs = np.split(starts, np.flatnonzero(np.diff(starts) != each) + 1)
            whole = [self.original.read(int(run[0]), int(run[-1]) + each) for run in runs]
            pieces = whole[0] if len(whole) == 1 else np.concatenate(whole)
            frames[first - start : first - start + len(starts)] = self.chain.frames(pieces)
        if self.stored is not None:
            frames[self.stored[start:stop] == 0] = self.chain.after.filler
        return frames

    def stored_bytes(self) -> NDArray[np.int64] | None:
        """Bytes that what each frame is made of takes in its file; 0 where a part of it was never written."""
        return self.stored

    def close(self) -> None:
        """Let go of the file."""
        self.original.source.close()


def form_of(stack: Stack) -> Form:
    """What the frames of a stack are."""
    return Form(stack.frame_shape, stack.dtype, stack.marks, stack.mask, stack.photon_counting)


def reduced(stack: Stack, reductions: Sequence[Reduction]) -> Stack:
    """A stack as reductions make it; the stack itself where there are none.

    Its flats and darks are reduced likewise. Only frames of one kind that follow each other are summed; of each run of
    them what is left over is left out.

    Parameters
    ----------
    stack : Stack
    reductions : sequence of Reduction
        In the order in which they are done.

    Raises
    ------
    InputError
        Where they cannot be done to such frames: too few, or numbered by several axes.
    """
    if not reductions:
        return stack
    try:
        chain = Chain(reductions, form_of(stack))
    except InputError as error:
        raise InputError(f"{stack.name}: {error}") from None
    starts, audited = _starts(stack, chain)
    of_pixels = [reduction for reduction in reductions if not isinstance(reduction, Triage)]
    renumbered = chain.each > 1 or chain.find(Triage) is not None
    form = chain.after
    return replace(
        stack,
        shape=(*((len(starts),) if renumbered else stack.lead_shape), *form.frame_shape),
        dtype=form.dtype,
        source=Reduced(stack, chain, starts, audited, _stored(stack, starts, chain.each)),
        mask=form.mask,
        invalid=form.marks.invalid,
        saturation=form.marks.saturation,
        underload=form.marks.underload,
        kinds=None if stack.kinds is None else stack.kinds[starts],
        flats=None if stack.flats is None else reduced(stack.flats, of_pixels),
        darks=None if stack.darks is None else reduced(stack.darks, of_pixels),
        photon_counting=form.photon_counting,
    )


def _stored(stack: Stack, starts: NDArray[np.int64], each: int) -> NDArray[np.int64] | None:
    stored = stack.source.stored_bytes()
    if stored is None:
        return None
    parts = stored[starts[:, None] + np.arange(each)]
    return np.where((parts > 0).all(axis=1), parts.sum(axis=1), 0)


def _starts(stack: Stack, chain: Chain) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The first of the frames that make each frame, and which are kept for audit."""
    each, triage = chain.each, chain.find(Triage)
    none = np.zeros(len(stack), np.bool_)
    if each == 1 and triage is None:
        return np.arange(len(stack), dtype=np.int64), none
    if len(stack.lead_shape) != 1:
        what = "summed" if triage is None else "left out"
        raise InputError(f"{stack.name}: frames must be numbered by one axis to be {what}, got shape {stack.shape}")
    kinds = np.zeros(len(stack), np.uint8) if stack.kinds is None else stack.kinds
    if triage is not None:
        return _triaged(stack, triage, kinds)
    edges = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    runs = [np.arange(a, b - each + 1, each) for a, b in itertools.pairwise(edges)]
    starts = np.concatenate(runs).astype(np.int64)
    if not len(starts):
        raise InputError(f"{stack.name}: must have {each} frames of one kind that follow each other to be summed")
    return starts, none[: len(starts)]


def _triaged(stack: Stack, triage: Triage, kinds: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Numbers of the frames that are kept, and which of them for audit: each frame is read once."""
    written = stack.written()
    kept = np.ones(len(stack), np.bool_)
    for number in np.flatnonzero(kinds == Kind.DATA):
        if written[number]:
            frame = stack.read(int(number), int(number) + 1)
            kept[number] = triage.count(frame[0], stack.valid(frame)[0]) >= triage.peaks
    rejected = np.flatnonzero(~kept)
    audited = np.zeros(len(stack), np.bool_)
    audited[rejected[triage.audit - 1 :: triage.audit]] = True
    starts = np.flatnonzero(kept | audited)
    if not len(starts):
        raise InputError(f"{stack.name}: must have frames with {triage.peaks} peaks, got none of {len(stack)}")
    return starts.astype(np.int64), audited[starts]


def times_smaller(originals: Sequence[Stack], stacks: Sequence[Stack]) -> float:
    """Bytes of frames as they were over those as reduced; 1 where they are not."""
    return sum(stack.nbytes for stack in originals) / sum(stack.nbytes for stack in stacks)
