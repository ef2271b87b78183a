"""Serial crystallography at a free-electron laser: raw frames of a gain-switching Jungfrau."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.simulate.diffraction import Crystal, Geometry, add_spots, orientation, radius
from tuner.simulate.simulation import Field, Simulation, check_parameters, moment, pixel_axes, world

#: Bits of the value below the two of the gain.
VALUE_BITS = 14

#: The two top bits of a pixel in each gain, high to low.
CODES = (0, 1, 3)

#: Counts per keV in each gain, negative as the lower two count down, and counts without light
#: (Mozzanica et al. 2016, doi:10.1088/1748-0221/11/02/C02047).
SLOPES, PEDESTALS = (41.0, -1.45, -0.105), (2900.0, 14800.0, 15200.0)

#: What a saturated pixel reads.
SATURATED = 0xFFFF

#: Highest value that the high gain reaches before a pixel switches.
_SWITCH = 15000

#: Chips of a module, rows and columns of each.
_CHIP = 256


@dataclass(frozen=True, slots=True)
class Jungfrau:
    """Shots into a stream of crystals, some of which hit; values are not corrected."""

    shape: tuple[int, int] = (512, 1024)
    """Rows and columns of a frame; the default is one module."""
    dtype: str = "uint16"
    """Two bits of gain, 14 bits of value."""
    energy: float = 9.5
    """Energy of a photon in keV."""
    background: float = 0.4
    """Photons a pixel in the solvent ring."""
    spot: float = 6000.0
    """Photons of a mean reflection at low resolution."""
    hits: float = 0.4
    """Fraction of the shots that hit a crystal."""
    noise: float = 0.3
    """Electronic noise of the high gain in keV; the others have as many counts as it has."""
    sharing: float = 0.25
    """Probability that a photon shares its charge with a neighbour."""

    def __post_init__(self) -> None:
        check_parameters(self, ("uint16",))

    def simulate(self, frames: int, seed: int) -> Simulation:
        """Shots at 100 Hz."""
        pedestal, gain = self._calibration(world(seed))
        detector = "instrument/detector"
        return Simulation(
            technique="jungfrau",
            scan_shape=(frames,),
            frame_shape=self.shape,
            dtype=np.dtype(self.dtype),
            interpretation="image",
            axes=(Field("pulse_id", 10_000_000_000 + np.arange(frames)), *pixel_axes(self.shape, 75.0)),
            metadata=(
                Field("definition", "NXmx"),
                Field(f"{detector}/pedestal", pedestal),
                Field(f"{detector}/gain", gain, "1/keV"),
                Field(f"{detector}/gain_codes", np.array(CODES)),
                Field(f"{detector}/saturation_value", SATURATED),
                Field(f"{detector}/bit_depth_readout", VALUE_BITS),
                Field(f"{detector}/x_pixel_size", 75e-6, "m"),
                Field(f"{detector}/y_pixel_size", 75e-6, "m"),
                Field(f"{detector}/count_time", 20e-6, "s"),
                Field(f"{detector}/description", "charge integrating, gain switching, raw, as a Jungfrau"),
                Field("instrument/beam/incident_energy", self.energy, "keV"),
            ),
            make=lambda: self._frames(frames, seed, pedestal, gain),
        )

    def _calibration(self, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Pedestal and counts per keV of every pixel in every gain, shape (3, *shape)."""
        chips = tuple(-(-extent // _CHIP) for extent in self.shape)
        pedestals, gains = [], []
        for level, slope, spread in zip(PEDESTALS, SLOPES, (90.0, 120.0, 120.0), strict=True):
            chip = np.kron(rng.normal(0, spread, chips), np.ones((_CHIP, _CHIP)))[: self.shape[0], : self.shape[1]]
            column = rng.normal(0, spread / 6, (1, self.shape[1]))
            pedestals.append(level + chip + column + rng.normal(0, spread / 2, self.shape))
            gains.append(slope * (1 + rng.normal(0, 0.02, self.shape)))
        return np.stack(pedestals).astype(np.float32), np.stack(gains).astype(np.float32)

    def _frames(
        self, frames: int, seed: int, pedestal: NDArray[np.float32], gain: NDArray[np.float32]
    ) -> Iterator[NDArray[Any]]:
        rng = world(seed, part=1)
        cell = rng.uniform(40, 90, 3)
        rows, columns = self.shape
        # The beam passes below the module; its far corner is at 2.2 angstrom where the spots then stay apart.
        corner, wavelength = float(np.hypot(1.1 * rows, columns / 2)), 12.398 / self.energy
        at_corner = max(2.2, 10 * cell.max() / corner)
        distance = corner / np.tan(2 * np.arcsin(min(wavelength / (2 * at_corner), 0.6)))
        geometry = Geometry(self.shape, (1.1 * rows, 0.5 * columns), float(distance), wavelength)
        away = radius(self.shape, geometry.centre)
        d = geometry.d_spacing(away)
        pattern = 0.2 + np.exp(-(((1 / d - 1 / 3.4) / 0.06) ** 2) / 2) + np.exp(-away / (0.3 * rows))
        pattern = (pattern * self.background).astype(np.float32)
        crystal = Crystal(rng, cell, float(d.min()))
        for index in range(frames):
            rng = moment(seed, index)
            pulse = rng.gamma(12, 1 / 12)  # pulses of a self-amplified beam differ in energy
            expected = pattern * np.float32(pulse)
            if rng.random() < self.hits:
                positions, strength = crystal.spots(geometry, orientation(rng), np.deg2rad(0.12))
                # A crystal is hit anywhere between its edge and its centre.
                add_spots(expected, positions, strength * (self.spot * pulse * rng.exponential()), 0.8)
            yield self._read_out(rng, self._deposit(rng, rng.poisson(expected)), pedestal, gain)

    def _deposit(self, rng: np.random.Generator, photons: NDArray[np.int64]) -> NDArray[np.float32]:
        """Energy in keV that reaches each pixel, part of it in the neighbour's."""
        energy = photons.astype(np.float32) * np.float32(self.energy)
        flat = energy.ravel()
        lit = np.flatnonzero(photons)
        sharing = rng.binomial(photons.ravel()[lit], self.sharing)
        giver, sharing = lit[sharing > 0], sharing[sharing > 0]
        charge = (sharing * self.energy * rng.uniform(0, 0.5, giver.size)).astype(np.float32)
        # A pixel at an edge gives to the next row: nobody will tell.
        taker = giver + rng.choice([-1, 1, -energy.shape[1], energy.shape[1]], giver.size)
        flat[giver] -= charge
        np.add.at(flat, taker.clip(0, flat.size - 1), charge)
        return energy

    def _read_out(
        self,
        rng: np.random.Generator,
        energy: NDArray[np.float32],
        pedestal: NDArray[np.float32],
        gain: NDArray[np.float32],
    ) -> NDArray[Any]:
        """Each pixel in the highest gain that holds its charge; all ones where none does."""
        noise = np.float32(self.noise * SLOPES[0]) * rng.standard_normal(self.shape, dtype=np.float32)
        value = pedestal[0] + gain[0] * energy
        code = np.zeros(self.shape, dtype=np.uint16)
        for stage in (1, 2):
            beyond = (value > _SWITCH) if stage == 1 else (value < 0)
            value[beyond] = (pedestal[stage] + gain[stage] * energy)[beyond]
            code[beyond] = CODES[stage]
        saturated = (value < 0) & (code == CODES[2])
        value = np.rint(value + noise).clip(0, 2**VALUE_BITS - 1)
        return np.where(saturated, SATURATED, code << VALUE_BITS | value.astype(np.uint16)).astype(self.dtype)
