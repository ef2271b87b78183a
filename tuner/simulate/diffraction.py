"""What diffraction detectors share: module gaps, beam stop, radial patterns, and Bragg spots of a crystal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def module_gaps(shape: tuple[int, int], modules: tuple[int, int], gap: tuple[float, float]) -> NDArray[np.bool_]:
    """True between the modules of a detector, shape `shape`.

    Parameters
    ----------
    shape : tuple of int
    modules : tuple of int
        How many there are along each axis.
    gap : tuple of float
        Width of a gap as a fraction of the pitch from module to module.

    Examples
    --------
    The Eiger 4M has gaps of 37 rows and 10 columns, 5.6 % of its pixels:

    >>> gaps = module_gaps((2167, 2070), (4, 2), (37 / 551, 10 / 1040))
    >>> int(gaps[:, 0].sum()), int(gaps[0].sum()), round(float(gaps.mean()), 3)
    (111, 10, 0.056)
    """
    gaps = np.zeros(shape, dtype=np.bool_)
    for axis, (extent, count, fraction) in enumerate(zip(shape, modules, gap, strict=True)):
        width = max(1, round(extent * fraction / (count - fraction)))
        pitch = (extent + width) / count
        for index in range(1, count):
            start = round(index * pitch) - width
            gaps[(slice(None),) * axis + (slice(start, start + width),)] = True
    return gaps


def radius(shape: tuple[int, int], centre: tuple[float, float]) -> NDArray[np.float32]:
    """Distance from `centre` (row, column) in pixels, shape `shape`."""
    rows, columns = (np.arange(extent, dtype=np.float32) - at for extent, at in zip(shape, centre, strict=True))
    return np.asarray(np.hypot(rows[:, None], columns), dtype=np.float32)


def beamstop(distance: NDArray[np.float32], centre: tuple[float, float], size: float) -> NDArray[np.float32]:
    """What a round stop of radius `size` pixels and its holder let through, 0.02 to 1; shape of `distance`."""
    through = np.clip((distance - size) / 2, 0.02, 1)
    column = np.abs(np.arange(distance.shape[1], dtype=np.float32) - centre[1])
    holder = np.clip((column - size / 3) / 2, 0.25, 1)
    through[int(max(centre[0], 0)) :] *= holder
    return np.asarray(through, dtype=np.float32)


def turn(axis: int, angle: float) -> NDArray[np.float64]:
    """Rotation by `angle` radians about an axis of the laboratory."""
    matrix = np.eye(3)
    first, second = (index for index in range(3) if index != axis)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def orientation(rng: np.random.Generator) -> NDArray[np.float64]:
    """A rotation, all equally likely."""
    matrix, triangle = np.linalg.qr(rng.standard_normal((3, 3)))
    matrix = matrix * np.sign(np.diag(triangle))
    if np.linalg.det(matrix) < 0:
        matrix[:, 0] = -matrix[:, 0]
    return np.asarray(matrix)


@dataclass(frozen=True, slots=True)
class Geometry:
    """A flat detector across the beam."""

    shape: tuple[int, int]
    """Rows and columns."""
    centre: tuple[float, float]
    """Row and column that the beam would hit."""
    distance: float
    """From the sample, in pixels."""
    wavelength: float
    """In angstrom."""

    def d_spacing(self, distance: NDArray[np.float32]) -> NDArray[np.float32]:
        """Lattice spacing in angstrom that diffracts `distance` pixels from the beam."""
        angle = np.arctan(np.maximum(distance, 0.5) / np.float32(self.distance))
        return np.asarray(self.wavelength / (2 * np.sin(angle / 2)), dtype=np.float32)


class Crystal:
    """Reciprocal lattice points of an orthorhombic crystal, with intensities of mean 1 before they fall off.

    Intensities follow Wilson's statistics (exponential), damped by an overall temperature factor.

    Parameters
    ----------
    rng : numpy.random.Generator
    cell : array of float, shape (3,)
        Cell edges in angstrom.
    d_min : float
        The finest spacing that still diffracts, in angstrom.
    temperature_factor : float
        B in square angstrom.
    """

    def __init__(
        self, rng: np.random.Generator, cell: NDArray[np.float64], d_min: float, temperature_factor: float = 18.0
    ) -> None:
        reach = np.ceil(cell / d_min).astype(int)
        indices = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1).reshape(-1, 3)
        points = indices / cell
        length = np.linalg.norm(points, axis=1)
        near = (length > 0) & (length <= 1 / d_min)
        self.points = points[near]
        self.length = length[near]
        self.intensity = rng.exponential(1.0, near.sum()) * np.exp(-temperature_factor / 2 * self.length**2)

    def spots(
        self, geometry: Geometry, rotation: NDArray[np.float64], width: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The reflections that the Ewald sphere cuts.

        Parameters
        ----------
        geometry : Geometry
        rotation : array, shape (3, 3)
            From the crystal to the laboratory: x along columns, y along rows, z along the beam.
        width : float
            Standard deviation of a reflection in radians: mosaicity, divergence, rotation during the exposure.

        Returns
        -------
        positions : array, shape (spots, 2)
            Rows and columns in pixels, some of them outside of the detector.
        intensities : array, shape (spots,)
        """
        wave = 1 / geometry.wavelength
        along = self.points @ rotation[2] + wave
        across = self.length**2 - (along - wave) ** 2
        error = (np.sqrt(along**2 + across) - wave) / (width * self.length)
        cut = (np.abs(error) < 3) & (along > 0)
        out = self.points[cut] @ rotation[1::-1].T
        positions = geometry.distance * out / along[cut, None] + geometry.centre
        return positions, self.intensity[cut] * np.exp(-(error[cut] ** 2) / 2)


def add_spots(
    image: NDArray[np.float32], positions: NDArray[np.float64], counts: NDArray[np.float64], sigma: float
) -> None:
    """Add Gaussian spots of `counts` photons each to `image`, in place; those outside are left out."""
    reach = int(np.ceil(4 * sigma))
    low, high = np.full(2, reach), np.array(image.shape) - reach - 1
    inside = ((positions >= low) & (positions <= high)).all(axis=1)
    corner = np.rint(positions[inside]).astype(np.intp)
    shift = np.arange(-reach, reach + 1)
    off = positions[inside] - corner
    rows, columns = (np.exp(-(((shift - off[:, axis, None]) / sigma) ** 2) / 2) for axis in (0, 1))
    spots: NDArray[Any] = rows[:, :, None] * columns[:, None, :]
    spots *= (counts[inside] / (2 * np.pi * sigma**2))[:, None, None]
    at = (corner[:, 0, None, None] + shift[:, None], corner[:, 1, None, None] + shift)
    np.add.at(image, at, spots.astype(np.float32))
