"""Rings around the beam, each cut into sectors: the pixels that analyses of speckles average over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.analysis import G2, Contrast
from tuner.errors import InputError
from tuner.measure.analyses.scan import KNOWN, Measured, Scan

#: Sectors of a ring. Speckles of one tell nothing of those of another, so they are the units to draw again.
SECTORS = 24

_Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rings:
    """Pixels of a frame, sorted by ring and sector."""

    pixels: NDArray[np.intp]
    """Where they are in a flat frame."""
    starts: NDArray[np.intp]
    """Where each sector of each ring that has pixels begins among them."""
    places: NDArray[np.intp]
    """Number of each such sector, ring by ring."""
    rings: int
    """How many rings there are."""

    def of(self, frame: NDArray[Any]) -> _Array:
        """The pixels of a frame in their order."""
        return np.asarray(frame.reshape(-1)[self.pixels], np.float64)

    def sums(self, values: _Array) -> _Array:
        """Sums of values in that order over each sector, shape (rings, SECTORS); 0 where there are no pixels."""
        found = np.zeros(self.rings * SECTORS)
        found[self.places] = np.add.reduceat(values, self.starts)
        return found.reshape(self.rings, SECTORS)


def rings_of(analysis: G2 | Contrast, scan: Scan) -> Rings:
    """Rings of equal width from `inner` to `outer`, or to where 99 % of the pixels are; of unmasked pixels.

    Raises
    ------
    InputError
        Where frames are no images, the centre is not known, or no pixel lies in the rings.
    """
    shape = scan.stack.frame_shape
    if len(shape) != 2:
        raise InputError(f"{scan.stack.name}: frames must be images for {analysis.kind}, got {shape}")
    centre = analysis.centre
    if centre is None:
        row, column = scan.declared("beam_center_y"), scan.declared("beam_center_x")
        if row is None or column is None:
            raise InputError(f"{scan.stack.name}: has no beam centre: {analysis.name} must be given centre")
        centre = (float(row[0]), float(column[0]))
    rows, columns = (np.arange(extent) + 0.5 - at for extent, at in zip(shape, centre, strict=True))
    distance = np.hypot(rows[:, None], columns)
    known = np.ones(shape, np.bool_) if scan.pixels.mask is None else ~scan.pixels.mask
    outer = analysis.outer or float(np.percentile(distance[known], 99)) if known.any() else 0.0
    known &= (distance >= analysis.inner) & (distance < outer)
    if not known.any():
        raise InputError(
            f"{analysis.name} must have pixels in its rings from {analysis.inner:g} to {outer:g} pixels, got none"
        )
    pixels = np.flatnonzero(known)
    ring = ((distance.ravel()[pixels] - analysis.inner) / (outer - analysis.inner) * analysis.rings).astype(np.intp)
    angle = np.arctan2(rows[:, None], columns).ravel()[pixels]
    order = np.lexsort((angle, ring))
    # Sectors of as many pixels each, as a beam near a corner leaves a part of a ring.
    count = np.bincount(ring, minlength=analysis.rings)
    place_in_ring = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
    sector = place_in_ring * SECTORS // np.repeat(count, count)
    places, starts = np.unique(ring[order] * SECTORS + sector, return_index=True)
    return Rings(pixels[order], starts.astype(np.intp), places, analysis.rings)


def ratio(numerator: _Array, denominator: _Array) -> _Array:
    """Their quotient, NaN where there is nothing to divide by."""
    quotient: _Array = np.divide(
        numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0
    )
    return quotient


def worst(rings: list[_Array]) -> _Array:
    """The largest of all rings for each draw; 0 without any."""
    return np.max(rings, axis=0) if rings else np.zeros(2)


def measured(drawn: _Array) -> Measured:
    """A number from the scan as it is, and as it is drawn again; draws without light say nothing."""
    if not np.isfinite(drawn[0]):
        return Measured.exactly(drawn[0])
    return Measured.of(float(drawn[0]), np.where(np.isfinite(drawn[1:]), drawn[1:], drawn[0]), SECTORS)


def moved(before: _Array, after: _Array) -> _Array:
    """How far a number moved: infinity where it was lost, 0 where there was none before."""
    return np.where(np.isfinite(before), np.where(np.isfinite(after), np.abs(after - before), np.inf), 0.0)


@dataclass(frozen=True, slots=True)
class Told:
    """The change of a number of which draws tell the error bar, each of shape (draws,)."""

    change: _Array
    """Of it, in its own unit."""
    error_bars: _Array
    """The same in error bars."""
    percent: _Array
    """The same in per cent, where it is known to one; 0 elsewhere."""

    @classmethod
    def of(cls, before: _Array, after: _Array) -> Told:
        """Of the number before and after, that of the scan as it is first; draws without one before say nothing."""
        error, value = before[1:][np.isfinite(before[1:])].std(), abs(before[0])
        change = moved(before, after)
        bars = change / error if error > 0 else np.zeros_like(change)
        return cls(
            change, bars, 100 * change / value if error > 0 and value >= KNOWN * error else np.zeros_like(change)
        )
