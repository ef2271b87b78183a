"""Filtered back-projection of a few rows before and after, by scikit-image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.analysis import Reconstruction
from tuner.errors import InputError
from tuner.measure.analyses.scan import Measured, Scan, library
from tuner.stack import Kind

_Array = NDArray[np.float64]

#: Rows around each that Paganin's filter sees: in units of its length, the square root of its strength.
_REACH = 4

#: Flats and darks that are averaged, at most of each.
_MOST_CALIBRATION = 40

#: Rings of which the correlation of halves is judged: those where that before is at least this much.
_CORRELATED = 0.143


def compare_reconstructions(analysis: Reconstruction, scan: Scan) -> dict[str, Measured]:
    """The figures of `Reconstruction`: of the worst of its slices.

    Flat field: -log((frame - dark) / (flat - dark)), flats and darks averaged, of the file's own or of its frames of
    such a kind, and the same before and after, as steps leave them alone. With Paganin's filter (Paganin et al.,
    J. Microscopy 206, 33, 2002) the logarithm is taken of the filtered image. Back-projection with a ramp filter:
    `skimage.transform.iradon`. Figures are over the disc that all projections see. Fourier ring correlation (van Heel &
    Schatz, J. Struct. Biol. 151, 250, 2005) is of the slice of even against that of odd projections, before, less the
    same after: in rings up to Nyquist in which that before is at least 0.143.

    Raises
    ------
    InputError
        Where scikit-image is not installed, there are no flats, or fewer than 8 projections.
    """
    rows, projections, changed = _projections(analysis, scan)
    angles = _angles(analysis, scan)
    frames_before, frames_after = (_reconstruct(analysis, one, angles) for one in (projections, changed))
    found: dict[str, list[float]] = {name: [] for name in analysis.figures}
    for index in range(len(rows)):
        for name, value in _compare(frames_before[index], frames_after[index]).items():
            found[name].append(value)
    return {
        name: Measured.exactly((max if analysis.figures[name].better == "smaller" else min)(values))
        for name, values in found.items()
    }


def _projections(analysis: Reconstruction, scan: Scan) -> tuple[NDArray[np.int64], _Array, _Array]:
    """The rows, and their projections before and after as line integrals, shape (rows, projections, columns)."""
    stack = scan.stack
    if len(stack.frame_shape) != 2:
        raise InputError(f"{stack.name}: frames must be images for reconstruction, got {stack.frame_shape}")
    if len(scan.numbers) < 8:
        raise InputError(f"{stack.name}: must have 8 projections or more to reconstruct, got {len(scan.numbers)}")
    height = stack.frame_shape[0]
    rows = np.unique(np.linspace(0, height - 1, analysis.rows + 2).round().astype(np.int64)[1:-1])
    reach = int(np.ceil(_REACH * np.sqrt(analysis.paganin)))
    # Bands of rows, each with those around it that the filter sees.
    bands = [slice(max(0, row - reach), min(height, row + reach + 1)) for row in rows]
    flat, dark = _calibration(scan)
    light = np.maximum(flat - dark, 1.0)
    before: list[list[_Array]] = [[] for _ in rows]
    after: list[list[_Array]] = [[] for _ in rows]
    for pair in scan.pairs():
        for frames, side in ((pair.original, before), (pair.decoded, after)):
            for index, (row, band) in enumerate(zip(rows, bands, strict=True)):
                seen = (frames[:, band].astype(np.float64) - dark[band]) / light[band]
                filtered = _paganin(seen, analysis.paganin)[:, row - band.start]
                side[index].append(-np.log(np.maximum(filtered, 1e-3)))
    stacked = [np.stack([np.concatenate(parts) for parts in side]) for side in (before, after)]
    return rows, stacked[0], stacked[1]


def _paganin(seen: _Array, strength: float) -> _Array:
    if not strength:
        return seen
    ky, kx = np.meshgrid(*(2 * np.pi * np.fft.fftfreq(extent) for extent in seen.shape[1:]), indexing="ij")
    return np.real(np.fft.ifft2(np.fft.fft2(seen) / (1 + strength * (kx**2 + ky**2)))).astype(np.float64)


def _calibration(scan: Scan) -> tuple[_Array, _Array]:
    """Mean flat and dark; no darks are the offset of the noise, or 0."""
    stack = scan.stack
    found: list[_Array | None] = []
    for beside, kind in ((stack.flats, Kind.FLAT), (stack.darks, Kind.DARK)):
        if beside is not None:
            frames: Any = beside.read(0, min(len(beside), _MOST_CALIBRATION))
        elif stack.kinds is not None and (stack.kinds == kind).any():
            numbers = np.flatnonzero(stack.kinds == kind)[:_MOST_CALIBRATION]
            frames = np.concatenate([stack.read(int(number), int(number) + 1) for number in numbers])
        else:
            found.append(None)
            continue
        found.append(frames.mean(axis=0, dtype=np.float64).reshape(stack.frame_shape))
    flat, dark = found
    if flat is None:
        raise InputError(f"{stack.name}: must have flats to reconstruct, got none")
    offset = scan.pixels.noise.offset if scan.pixels.noise is not None else 0.0
    return flat, np.full(stack.frame_shape, offset) if dark is None else dark


def _angles(analysis: Reconstruction, scan: Scan) -> _Array:
    """The angle of each projection, degrees."""
    if analysis.degrees is not None:
        return np.linspace(*analysis.degrees, len(scan.numbers))
    named = ("rotation_angle", "theta", "angles")
    for size in (len(scan.stack), len(scan.numbers)):
        angles = scan.declared(*named, size=size)
        if angles is not None and np.ptp(angles) > 0:
            return angles[scan.numbers] if size == len(scan.stack) else angles
    return np.linspace(0, 180, len(scan.numbers), endpoint=False)


def _reconstruct(analysis: Reconstruction, sinograms: _Array, angles: _Array) -> list[tuple[_Array, _Array]]:
    """Slices of the even and of the odd projections, of each row."""
    with library("reconstruction"):
        from skimage.transform import iradon

    columns = sinograms.shape[2]
    centre = (columns - 1) / 2 if analysis.centre is None else analysis.centre
    if not 0.25 * columns <= centre <= 0.75 * columns:
        raise InputError(f"{analysis.name}.centre must be near the middle of {columns} columns, got {centre:g}")
    # scikit-image turns about column n // 2.
    moved = _moved(sinograms, columns // 2 - centre)
    return [
        (
            iradon(one[0::2].T, angles[0::2], filter_name="ramp", circle=True),  # type: ignore[no-untyped-call]
            iradon(one[1::2].T, angles[1::2], filter_name="ramp", circle=True),  # type: ignore[no-untyped-call]
        )
        for one in moved
    ]


def _moved(sinograms: _Array, columns: float) -> _Array:
    """Sinograms moved by so many columns, a part of one too, with the outermost ones continued.

    By the phases of their Fourier transform, which keeps every frequency: interpolating between columns would halve the
    noise in a slice where the axis is between two of them, and what a step adds to it.
    """
    count = sinograms.shape[2]
    wide = np.pad(sinograms, ((0, 0), (0, 0), (count // 2, count // 2)), mode="edge")
    periodic = np.concatenate([wide, wide[..., ::-1]], axis=2)  # without a jump from its end to its start
    phases = np.exp(-2j * np.pi * columns * np.fft.rfftfreq(periodic.shape[2]))
    moved = np.fft.irfft(np.fft.rfft(periodic, axis=2) * phases, periodic.shape[2], axis=2)
    return np.asarray(moved[..., count // 2 : count // 2 + count], np.float64)


def _compare(before: Sequence[_Array], after: Sequence[_Array]) -> dict[str, float]:
    """The figures of one slice, of its halves before and after."""
    with library("reconstruction"):
        from skimage.metrics import structural_similarity

    size = before[0].shape[0]
    y, x = np.ogrid[:size, :size]
    disc = np.hypot(y - size // 2, x - size // 2) < size // 2 - 4
    slices = [np.where(disc, (pair[0] + pair[1]) / 2, 0.0) for pair in (before, after)]
    low, high = np.percentile(slices[0][disc], [0.1, 99.9])
    extent = max(float(high - low), 1e-300)
    _, similarity = structural_similarity(*slices, data_range=extent, full=True)  # type: ignore[no-untyped-call]
    change = slices[1] - slices[0]
    correlations = [_ring_correlation(np.where(disc, a, 0.0), np.where(disc, b, 0.0)) for a, b in (before, after)]
    counted = correlations[0] >= _CORRELATED
    return {
        "nrmse_percent": 100 * float(np.sqrt((change[disc] ** 2).mean())) / extent,
        "ssim": float(similarity[disc].mean()),
        "line_percent": 100 * float(np.abs(change[size // 2]).max()) / extent,
        "frc_loss": float(max(0.0, (correlations[0] - correlations[1])[counted].max(initial=0.0))),
    }


def _ring_correlation(first: _Array, second: _Array) -> _Array:
    """Correlation of two slices in each ring of spatial frequency, from the second to Nyquist."""
    size = first.shape[0]
    a, b = np.fft.fft2(first), np.fft.fft2(second)
    frequency = np.fft.fftfreq(size)
    ring = np.rint(np.hypot(frequency[:, None], frequency) * size).astype(np.intp).ravel()
    sums = [np.bincount(ring, v.ravel()) for v in ((a * b.conj()).real, np.abs(a) ** 2, np.abs(b) ** 2)]
    cross, one, two = (total[2 : size // 2] for total in sums)
    return np.asarray(cross / np.sqrt(np.maximum(one * two, 1e-300)))
