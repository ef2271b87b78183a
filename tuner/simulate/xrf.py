"""X-ray fluorescence: a raster scan with a silicon drift detector of several elements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.simulate.simulation import Field, Simulation, check_parameters, moment, world

#: K-alpha and K-beta energies in keV (X-ray Data Booklet, LBNL, table 1-2).
LINES = {
    "S": (2.308, 2.464),
    "K": (3.314, 3.590),
    "Ca": (3.692, 4.013),
    "Ti": (4.511, 4.932),
    "Mn": (5.899, 6.490),
    "Fe": (6.404, 7.058),
    "Ni": (7.478, 8.265),
    "Cu": (8.048, 8.905),
    "Zn": (8.639, 9.572),
}

#: Width of a channel and energy of the beam, in keV.
CHANNEL, BEAM = 0.01, 12.0

#: What the scattered beam and the continuum give relative to an element's line of concentration 1.
_SCATTER = {"elastic": 0.8, "Compton": 1.5, "continuum": 1.0}


@dataclass(frozen=True, slots=True)
class Xrf:
    """A map with a spectrum of each detector element at every point, and spectrum as the last axis."""

    shape: tuple[int, int] = (4, 4096)
    """Detector elements and energy channels of 10 eV."""
    dtype: str = "uint32"
    """uint32, or float32 as some writers keep counts."""
    counts: float = 3000.0
    """Photons that an element counts at a point, on average."""

    def __post_init__(self) -> None:
        check_parameters(self, ("uint32", "float32"), places=1)

    def simulate(self, frames: int, seed: int) -> Simulation:
        """A map of `frames` points, as near to a square as its divisors allow."""
        rows = max(divisor for divisor in range(1, math.isqrt(frames) + 1) if frames % divisor == 0)
        columns = frames // rows
        elements, channels = self.shape
        return Simulation(
            technique="xrf",
            scan_shape=(rows, columns),
            frame_shape=self.shape,
            dtype=np.dtype(self.dtype),
            interpretation="spectrum",
            axes=(
                Field("y", np.arange(rows) * 0.5, "um"),
                Field("x", np.arange(columns) * 0.5, "um"),
                Field("element", np.arange(elements)),
                Field("energy", np.arange(channels) * CHANNEL, "keV"),
            ),
            metadata=(
                Field("definition", "NXfluo"),
                Field("instrument/detector/count_time", 0.05, "s"),
                Field("instrument/detector/description", "photon counting silicon drift detector"),
                Field("instrument/beam/incident_energy", BEAM, "keV"),
                Field("sample/name", f"cells with {' '.join(LINES)}"),
            ),
            make=lambda: self._frames(rows, columns, seed),
        )

    def _frames(self, rows: int, columns: int, seed: int) -> Iterator[NDArray[Any]]:
        rng = world(seed)
        spectra = self._spectra(rng)
        blobs = rng.uniform(0, 1, (len(LINES), 6, 2))
        sizes = rng.uniform(0.05, 0.25, (len(LINES), 6))
        abundance = np.sort(rng.lognormal(-1, 1.2, len(LINES)))[rng.permutation(len(LINES))]
        scatter = np.array(list(_SCATTER.values()))
        for index in range(rows * columns):
            rng = moment(seed, index)
            place = np.array([index // columns / rows, index % columns / columns])
            away = ((blobs - place) ** 2).sum(-1)
            maps = 0.05 + np.exp(-away / (2 * sizes**2)).sum(1)
            # Where there is more sample, more is scattered.
            weights = np.concatenate([abundance * maps, scatter * (0.5 + maps.mean())])
            yield rng.poisson(spectra @ weights).astype(self.dtype)

    def _spectra(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Counts for one unit of each component, shape (elements, channels, components)."""
        energy = np.arange(self.shape[1]) * CHANNEL
        # Air and windows absorb the soft lines; the continuum piles up towards low energies and ends below the beam.
        efficiency = np.exp(-((2.0 / np.maximum(energy, 0.1)) ** 2.5))
        continuum = (np.exp(-energy / 2.5) + 0.05) * (energy < BEAM)
        result = []
        for solid_angle, stretch in zip(
            rng.uniform(0.75, 1.0, self.shape[0]), rng.normal(1, 5e-4, self.shape[0]), strict=True
        ):
            lines = [peak(energy, a * stretch) + 0.15 * peak(energy, b * stretch) for a, b in LINES.values()]
            compton = peak(energy, BEAM * 0.977 * stretch, extra=0.12)
            scatter = [peak(energy, BEAM * stretch), compton, continuum / continuum.sum()]
            result.append(solid_angle * efficiency[:, None] * np.stack([*lines, *scatter], axis=1))
        spectra = np.stack(result)
        typical = spectra @ np.concatenate([np.ones(len(LINES)), list(_SCATTER.values())])
        return np.asarray(spectra * (self.counts / max(typical.sum(1).mean(), 1e-12)))


def peak(energy: NDArray[Any], centre: float, extra: float = 0.0) -> NDArray[np.float64]:
    """A line of one photon as silicon resolves it: electronic noise and Fano statistics, `extra` keV beside."""
    # 3.66 eV a pair, Fano factor 0.115, 80 eV full width of the electronics.
    sigma = math.sqrt((0.080 / 2.355) ** 2 + 0.115 * 0.00366 * centre + extra**2)
    return np.asarray(np.exp(-(((energy - centre) / sigma) ** 2) / 2) * CHANNEL / (sigma * math.sqrt(2 * math.pi)))
