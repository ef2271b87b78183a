"""Macromolecular crystallography: a rotating crystal on a photon-counting Eiger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.simulate.diffraction import Crystal, Geometry, add_spots, beamstop, module_gaps, orientation, radius, turn
from tuner.simulate.simulation import Field, Simulation, check_parameters, moment, pixel_axes, world

#: Bits of `pixel_mask` in NXdetector.
GAP, DEAD, HOT = 1 << 0, 1 << 1, 1 << 3


@dataclass(frozen=True, slots=True)
class Mx:
    """A rotation scan; gaps, dead and overloaded pixels read as the dtype's maximum, as Dectris writes them."""

    shape: tuple[int, int] = (1065, 1030)
    """Rows and columns of a frame; the default is an Eiger 1M."""
    dtype: str = "uint32"
    """uint16 or uint32, by the exposure time."""
    modules: tuple[int, int] = (2, 1)
    """Modules along each axis."""
    background: float = 1.5
    """Photons a pixel in the solvent ring."""
    spot: float = 150.0
    """Photons of a mean reflection at low resolution."""
    spot_size: float = 1.1
    """Standard deviation of a spot in pixels."""
    oscillation: float = 0.1
    """Rotation during a frame in degrees."""
    mosaicity: float = 0.15
    """Standard deviation of a reflection's rocking curve in degrees."""
    saturation: int = 60000
    """The least count that the detector cannot tell; such pixels read as the dtype's maximum."""

    def __post_init__(self) -> None:
        check_parameters(self, ("uint16", "uint32"))

    def simulate(self, frames: int, seed: int) -> Simulation:
        """Rotates by `oscillation` every frame."""
        rng = world(seed)
        cell = rng.uniform(40, 90, 3)
        # As far as the spots stay apart, with the edge of the detector at 1.8 angstrom at best.
        geometry = self._geometry(cell)
        mask = self._mask(rng)
        omega = np.arange(frames) * self.oscillation
        detector = "instrument/detector"
        return Simulation(
            technique="mx",
            scan_shape=(frames,),
            frame_shape=self.shape,
            dtype=np.dtype(self.dtype),
            interpretation="image",
            axes=(Field("omega", omega, "deg"), *pixel_axes(self.shape, 75.0)),
            metadata=(
                Field("definition", "NXmx"),
                Field(f"{detector}/pixel_mask", mask),
                Field(f"{detector}/pixel_mask_applied", 1),
                Field(f"{detector}/saturation_value", self.saturation),
                Field(f"{detector}/bit_depth_image", np.dtype(self.dtype).itemsize * 8),
                Field(f"{detector}/x_pixel_size", 75e-6, "m"),
                Field(f"{detector}/y_pixel_size", 75e-6, "m"),
                Field(f"{detector}/beam_center_x", geometry.centre[1], "pixel"),
                Field(f"{detector}/beam_center_y", geometry.centre[0], "pixel"),
                Field(f"{detector}/detector_distance", geometry.distance * 75e-6, "m"),
                Field(f"{detector}/count_time", 0.01, "s"),
                Field(f"{detector}/sensor_material", "Si"),
                Field(f"{detector}/sensor_thickness", 450e-6, "m"),
                Field(f"{detector}/description", "photon counting, as a Dectris Eiger"),
                Field("instrument/beam/incident_wavelength", geometry.wavelength, "angstrom"),
                Field("sample/unit_cell", cell, "angstrom"),
                Field("sample/omega", omega, "deg"),
                Field("sample/oscillation_range", self.oscillation, "deg"),
            ),
            make=lambda: self._frames(frames, seed, cell, geometry, mask),
        )

    def _geometry(self, cell: NDArray[np.float64]) -> Geometry:
        wavelength, edge = 0.97, 0.5 * max(self.shape)
        at_edge = max(1.8, 9 * self.spot_size * cell.max() / edge)
        distance = edge / np.tan(2 * np.arcsin(min(wavelength / (2 * at_edge), 0.6)))
        return Geometry(self.shape, (0.51 * self.shape[0], 0.49 * self.shape[1]), float(distance), wavelength)

    def _mask(self, rng: np.random.Generator) -> NDArray[np.uint32]:
        gaps = module_gaps(self.shape, self.modules, (37 / 551, 10 / 1040))
        flaw = rng.random(self.shape)
        mask = np.where(gaps, GAP, 0) | np.where(flaw < 3e-5, DEAD, 0) | np.where(flaw > 1 - 1e-5, HOT, 0)
        return mask.astype(np.uint32)

    def _frames(
        self, frames: int, seed: int, cell: NDArray[np.float64], geometry: Geometry, mask: NDArray[np.uint32]
    ) -> Iterator[NDArray[Any]]:
        rng = world(seed, part=1)
        distance = radius(self.shape, geometry.centre)
        d = geometry.d_spacing(distance)
        # Air scatter near the beam, the solvent's ring at 3.6 angstrom, and what the loop adds everywhere.
        ring = np.exp(-(((1 / d - 1 / 3.6) / 0.07) ** 2) / 2)
        pattern = 0.25 + ring + 4 * np.exp(-distance / (0.06 * max(self.shape)))
        through = beamstop(distance, geometry.centre, 0.02 * max(self.shape))
        sensitivity = 1 + 0.01 * rng.standard_normal(self.shape, dtype=np.float32)
        pattern = (pattern * through * sensitivity * self.background).astype(np.float32)
        # Noisy pixels that nobody has put into the mask yet.
        noisy = tuple(rng.integers(0, extent, 3) for extent in self.shape)
        pattern[noisy] += rng.exponential(300, 3).astype(np.float32)
        crystal = Crystal(rng, cell, float(d.min()))
        start = orientation(rng)
        width = np.deg2rad(np.hypot(self.mosaicity, self.oscillation / 2))
        invalid = mask != 0
        top = np.iinfo(self.dtype).max
        for index in range(frames):
            rng = moment(seed, index)
            rotation = turn(0, np.deg2rad((index + 0.5) * self.oscillation)) @ start
            positions, strength = crystal.spots(geometry, rotation, width)
            # The crystal is not equally thick all around.
            diffracting = self.spot * (1 + 0.2 * np.sin(np.deg2rad(index * self.oscillation * 2)))
            expected = pattern.copy()
            add_spots(expected, positions, strength * diffracting, self.spot_size)
            counts = rng.poisson(expected)
            counts[invalid | (counts >= self.saturation)] = top
            yield counts.astype(self.dtype)
