"""Correlation of intensities in time (XPCS) before and after, ring by ring."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tuner.analysis import G2
from tuner.errors import InputError
from tuner.measure.analyses.rings import SECTORS, Rings, Told, measured, moved, ratio, rings_of, worst
from tuner.measure.analyses.scan import Measured, Scan, draws, library

#: Delays of a level; the next one has frames added in pairs, and only the longer half of them.
_BUFFERS = 8

#: Pixels of a sector that are correlated at most, evenly taken: hundreds of frames of them are held.
_MOST_PIXELS = 2048

#: Pairs of frames that a delay needs, at least.
_LEAST_PAIRS = 4

_Array = NDArray[np.float64]


def compare_g2(analysis: G2, scan: Scan) -> dict[str, Measured]:
    """The figures of `G2`: of each ring and delay, over a stretch of consecutive frames from the middle of the scan.

    ``g2(t) = <I(s) I(s + t)> / (<I(s)> <I(s + t)>)``, means over the pixels of a ring and all frames s that have a
    frame t after them, each frame by the means of its own kind of pairs (symmetric normalisation; Schätzel, Quantum
    Opt. 2, 287, 1990), with delays in multi-tau: 1 to 7 frames, then 4 to 7 of sums of two, four, ... (Cipelletti &
    Weitz, Rev. Sci. Instrum. 70, 3214, 1999, as in scikit-beam). The rate is that of ``1 + b exp(-2 r t)`` fitted to
    it, weighted by its error bars; the change of a rate is that of the fit linearised there.

    The error bar is the spread over sectors of the ring, drawn again, of at most 2048 pixels a sector.

    Raises
    ------
    InputError
        Where scipy is not installed, frames are no images or fewer than 16, the centre is not known, or nothing was
        counted.
    """
    rings = _thinned(rings_of(analysis, scan))
    numbers = scan.numbers[max(0, (len(scan.numbers) - analysis.frames) // 2) :][: analysis.frames]
    if len(numbers) < 2 * _BUFFERS:
        raise InputError(f"{scan.stack.name}: must have {2 * _BUFFERS} frames for g2, got {len(numbers)}")
    offset = scan.pixels.noise.offset if scan.pixels.noise is not None else 0.0
    before, after = _Correlator(rings), _Correlator(rings)
    for pair in replace(scan, numbers=numbers).pairs():
        for original, decoded, valid in zip(pair.original, pair.decoded, pair.valid, strict=True):
            counted = rings.of(valid)
            for correlator, frame in ((before, original), (after, decoded)):
                correlator.add(np.where(counted > 0, rings.of(frame) - offset, 0.0), counted)
    delays, first = before.g2()
    second = after.g2()[1]
    drawn = np.ma.masked_invalid(first[1:])  # draws of dark sectors alone have none
    error = drawn.std(axis=0).filled(0.0)
    usable = np.isfinite(first[0]) & (error > 0)
    if not usable.any():
        raise InputError(f"{scan.stack.name}: must have light in a ring for analysis {analysis.name}, got none")
    # A ring that lost its light has lost its correlation.
    change = moved(first, second)[:, usable] / error[usable]
    rings_seen = np.flatnonzero(usable.all(axis=1))
    contrasts = [Told.of(first[..., ring, 0] - 1, second[..., ring, 0] - 1) for ring in rings_seen]
    rates = []
    for ring in rings_seen:
        rate, response = _rate(delays, first[0, ring] - 1, error[ring])
        shift = [rate + (one[:, ring] - first[0, ring]) @ response for one in (first, second)]
        rates.append(Told.of(*shift))
    return {
        "error_bars": measured(change.max(axis=1)),
        "contrast_percent": measured(worst([one.percent for one in contrasts])),
        "rate_error_bars": measured(worst([one.error_bars for one in rates])),
        "rate_percent": measured(worst([one.percent for one in rates])),
    }


def _thinned(rings: Rings) -> Rings:
    """The same rings with at most so many pixels a sector."""
    stops = np.append(rings.starts[1:], len(rings.pixels))
    kept = [
        np.arange(start, stop)[np.linspace(0, stop - start - 1, min(stop - start, _MOST_PIXELS)).astype(np.intp)]
        for start, stop in zip(rings.starts, stops, strict=True)
    ]
    starts = np.cumsum([0, *(len(one) for one in kept[:-1])])
    return replace(rings, pixels=rings.pixels[np.concatenate(kept)], starts=starts)


@dataclass(slots=True)
class _Entry:
    """A frame, or the mean of several that follow each other."""

    light: _Array
    """Of each pixel; 0 where it does not count."""
    counted: _Array
    """1 where it counts, else 0."""
    sums: _Array
    """Of the light over each sector."""


@dataclass(slots=True)
class _Level:
    """What is correlated of frames that were added 2^n times."""

    sums: _Array
    """Products, light before, light after, and pairs of pixels, for each delay: shape (delays, 4, rings, SECTORS)."""
    pairs: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BUFFERS, np.int64))
    """Pairs of frames for each delay."""
    last: list[_Entry] = field(default_factory=list)
    """The last frames, the newest first."""
    waiting: _Entry | None = None
    """One that waits for the next to be added to it."""


class _Correlator:
    """Correlates frames as they come, with bounded memory."""

    def __init__(self, rings: Rings) -> None:
        self._rings = rings
        self._levels: list[_Level] = []

    def add(self, light: _Array, counted: _Array) -> None:
        """The pixels of the next frame, 0 where they do not count."""
        for number in itertools.count():
            if number == len(self._levels):
                self._levels.append(_Level(np.zeros((_BUFFERS, 4, self._rings.rings, SECTORS))))
            level = self._levels[number]
            entry = _Entry(light, counted, self._rings.sums(light))
            for delay in range(1 if number == 0 else _BUFFERS // 2, min(_BUFFERS, len(level.last) + 1)):
                level.sums[delay] += self._products(level.last[delay - 1], entry)
                level.pairs[delay] += 1
            level.last = [entry, *level.last[: _BUFFERS - 2]]
            other, level.waiting = level.waiting, entry if level.waiting is None else None
            if other is None:
                return
            counted = counted * other.counted
            light = (light + other.light) / 2 * counted

    def _products(self, past: _Entry, now: _Entry) -> _Array:
        both = past.counted * now.counted
        if both.all():
            sums = (past.sums, now.sums)
        else:
            sums = (self._rings.sums(past.light * now.counted), self._rings.sums(now.light * past.counted))
        return np.stack([self._rings.sums(past.light * now.light), *sums, self._rings.sums(both)])

    def g2(self) -> tuple[_Array, _Array]:
        """Delays in frames, and g2 of the sectors as they are and drawn again, shape (1 + draws, rings, delays)."""
        weights = np.concatenate([np.ones((1, SECTORS)), draws(SECTORS) * SECTORS])
        delays, found = [], []
        for number, level in enumerate(self._levels):
            for delay in np.flatnonzero(level.pairs >= _LEAST_PAIRS):
                product, past, now, pixels = np.moveaxis(level.sums[delay] @ weights.T, -1, 1)
                delays.append(int(delay) << number)
                found.append(ratio(product * pixels, past * now))
        order = np.argsort(delays)
        return np.array(delays, np.float64)[order], np.stack(found, axis=-1)[..., order]


def _rate(delays: _Array, decay: _Array, error: _Array) -> tuple[float, _Array]:
    """The rate a frame of b exp(-2 r t) fitted to g2 - 1, and how it moves with each point; 0 where nothing decays."""
    with library("g2"):
        from scipy.optimize import least_squares

    fallen = decay < decay[0] / 2
    start = np.log(2) / 2 / (delays[fallen.argmax()] if fallen.any() else 2 * delays[-1])

    def misfit(parameters: _Array) -> _Array:
        return np.asarray((parameters[0] * np.exp(-2 * parameters[1] * delays) - decay) / error)

    fitted = least_squares(misfit, [max(decay[0], 1e-6), start], bounds=(0, np.inf), x_scale=[1.0, start])
    response = np.linalg.pinv(fitted.jac)[1] / error
    return float(fitted.x[1]), response
