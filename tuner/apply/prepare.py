"""Frames on their way into a file: what a profile's steps make of them, and which are left as they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.apply.guard import Watch
from tuner.errors import InputError
from tuner.goal import broken
from tuner.profile import Profile
from tuner.quality import compare
from tuner.stack import Kind, Stack
from tuner.steps import Pixels, Step, prepare
from tuner.steps.reduced import Chain
from tuner.steps.reductions import Form


class Preparation:
    """What a profile does to whole frames before they are cut into chunks.

    Parameters
    ----------
    profile : Profile
    mask : ndarray of bool, optional
        True where a pixel does not count in any frame, shape of a frame.
    watch : Watch, optional
        Which frames are held to what the profile promises of them; one that breaks that stays as it is.
    chain : Chain, optional
        The profile's reductions, where frames are given that are not reduced yet.
    """

    def __init__(
        self,
        profile: Profile,
        mask: NDArray[np.bool_] | None = None,
        watch: Watch | None = None,
        chain: Chain | None = None,
    ) -> None:
        self.chain = chain
        self.steps: Sequence[Step] = profile.config.steps
        self.pixels = Pixels(profile.form.marks, mask, profile.noise)
        self._watch = watch
        self._limits = profile.limits

    @classmethod
    def of_stack(cls, profile: Profile, stack: Stack) -> Preparation:
        """The same for frames of a file, which says itself which of its pixels count.

        Raises
        ------
        InputError
            Where it says so by other values than those that the profile's steps leave alone.
        """
        marks = profile.form.marks
        if profile.config.steps and stack.marks != marks:
            raise InputError(
                f"{stack.name}: the profile's steps leave alone: {marks}; but the file marks: {stack.marks}"
            )
        return cls(profile, stack.mask)

    def __call__(self, frames: NDArray[Any], kept: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """Frames as they are stored, shape (n, *frame_shape); those of `kept`, shape (n,), as they are or are reduced.

        A frame that breaks what is promised of it is noted in `kept`.
        """
        if self.chain is not None:
            frames = self.chain.frames(frames)
        prepared = prepare(self.steps, frames, self.pixels)
        if not self.steps or kept is None:
            return prepared
        if self._watch is not None and self._watch.due():
            breaches = self.breaches(frames, prepared)
            broken = np.array([breach is not None for breach in breaches], np.bool_) & ~kept
            if broken.any():
                self._watch.report(f"frames are written as they are: {breaches[broken.argmax()]}", int(broken.sum()))
            kept |= broken
        prepared[kept] = frames[kept]
        return prepared

    @property
    def changes(self) -> bool:
        """Whether frames are stored as anything but what they are."""
        return bool(self.steps) or self.chain is not None

    def breaches(self, frames: NDArray[Any], prepared: NDArray[Any]) -> list[str | None]:
        """Which limit on quality each of some frames breaks, in words; None for a frame that keeps all."""
        valid, still = self.pixels.valid(frames), self.pixels.valid(prepared)
        names = dict.fromkeys(("mask_violations", *(limit.metric for limit in self._limits)))
        found = compare(frames, prepared, valid, self.pixels.noise, names, still_valid=still)
        each = [{name: values[i : i + 1] for name, values in found.items()} for i in range(len(frames))]
        return [broken(one, self._limits) for one in each]


def kept_of(stack: Stack, start: int, stop: int) -> NDArray[np.bool_] | None:
    """Which frames of a stack stay as they are: all but data, as flats and darks are divided into every frame.

    So do frames that were never written, which read as a fill value. None where there is none of either.
    """
    other = None if stack.kinds is None else stack.kinds[start:stop] != Kind.DATA
    written = stack.written(start, stop)
    if written.all():
        return other
    return ~written if other is None else ~written | other


class Batch:
    """Some frames, prepared once: by the first thread that needs them, while the others wait.

    The frames themselves are left as they are, after `decode`, where given, has filled in what arrived compressed.
    """

    def __init__(
        self,
        frames: NDArray[Any],
        preparation: Preparation | None = None,
        kept: NDArray[np.bool_] | None = None,
        decode: Callable[[], None] | None = None,
    ) -> None:
        self._frames = frames
        self._decode = decode
        self._preparation = preparation if preparation is not None and preparation.changes else None
        self._kept = kept
        self._lock = threading.Lock()

    def prepared(self) -> NDArray[Any]:
        """The frames as they are stored."""
        with self._lock:
            if self._decode is not None:
                self._decode()
                self._decode = None
            if self._preparation is not None:
                self._frames = self._preparation(self._frames, self._kept)
                self._preparation = None
        return self._frames


def chain_of(
    profile: Profile, frame_shape: tuple[int, ...], dtype: np.dtype[Any], mask: NDArray[np.bool_] | None, place: str
) -> Chain | None:
    """What a profile's reductions make of frames one by one; None where it has none.

    Raises
    ------
    InputError
        For frames that cannot be reduced so, or one by one.
    """
    if not profile.reduce:
        return None
    try:
        chain = Chain(profile.reduce, Form(frame_shape, dtype, profile.invalid.marks, mask))
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    if chain.each > 1:
        raise InputError(f"{place}: the profile sums {chain.each} frames, which only `tuner apply` does, not a writer")
    return chain
