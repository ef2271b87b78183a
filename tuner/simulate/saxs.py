"""Small-angle scattering: a growing suspension of spheres on a photon-counting Pilatus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.simulate.diffraction import beamstop, module_gaps, radius
from tuner.simulate.simulation import Field, Simulation, check_parameters, moment, pixel_axes, world

#: What a Pilatus writes where there is no pixel, and where there is a bad one.
GAP, BAD = -1, -2

#: Sub-divisions of a pixel in the table of the radial intensity.
_STEPS = 4


@dataclass(frozen=True, slots=True)
class Saxs:
    """A kinetic series in which particles grow; gaps read -1, bad pixels -2, as Dectris writes them."""

    shape: tuple[int, int] = (1043, 981)
    """Rows and columns of a frame; the default is a Pilatus 1M."""
    dtype: str = "int32"
    """What the detector writes."""
    modules: tuple[int, int] = (5, 2)
    """Modules along each axis."""
    flux: float = 5000.0
    """Photons a pixel at the plateau of the form factor."""
    background: float = 0.5
    """Photons a pixel everywhere."""
    oscillations: float = 7.0
    """Minima of the form factor between the beam and the edge, at the start."""
    polydispersity: float = 0.08
    """Standard deviation of the spheres' radius, as a fraction of it."""
    growth: float = 0.3
    """How much the radius grows over the series, as a fraction of it."""
    saturation: int = 1_048_500
    """Count cut-off."""

    def __post_init__(self) -> None:
        check_parameters(self, ("int32",))

    def simulate(self, frames: int, seed: int) -> Simulation:
        """A frame each second."""
        rng = world(seed)
        rows, columns = self.shape
        centre = (rows * rng.uniform(0.45, 0.62), columns * rng.uniform(0.42, 0.58))
        gaps = module_gaps(self.shape, self.modules, (17 / 212, 7 / 494))
        marks = np.where(rng.random(self.shape) < 5e-5, BAD, 0).astype(self.dtype)
        marks[gaps] = GAP
        detector = "instrument/detector"
        return Simulation(
            technique="saxs",
            scan_shape=(frames,),
            frame_shape=self.shape,
            dtype=np.dtype(self.dtype),
            interpretation="image",
            axes=(Field("time", np.arange(frames, dtype=np.float64), "s"), *pixel_axes(self.shape, 172.0)),
            metadata=(
                Field("definition", "NXsas"),
                Field(f"{detector}/pixel_mask", (marks != 0).astype(np.uint32)),
                Field(f"{detector}/saturation_value", self.saturation),
                Field(f"{detector}/underload_value", 0),
                Field(f"{detector}/x_pixel_size", 172e-6, "m"),
                Field(f"{detector}/y_pixel_size", 172e-6, "m"),
                Field(f"{detector}/beam_center_x", centre[1], "pixel"),
                Field(f"{detector}/beam_center_y", centre[0], "pixel"),
                Field(f"{detector}/distance", 3.2, "m"),
                Field(f"{detector}/count_time", 0.9, "s"),
                Field(f"{detector}/description", "photon counting, as a Dectris Pilatus"),
                Field("instrument/beam/incident_wavelength", 1.0, "angstrom"),
                Field("sample/name", "polydisperse spheres"),
            ),
            make=lambda: self._frames(frames, seed, centre, marks),
        )

    def _frames(
        self, frames: int, seed: int, centre: tuple[float, float], marks: NDArray[Any]
    ) -> Iterator[NDArray[Any]]:
        rng = world(seed, part=1)
        distance = radius(self.shape, centre)
        nearest = (distance * _STEPS).astype(np.int32)
        size = 0.025 * max(self.shape)
        through = beamstop(distance, centre, size)
        through *= 1 + 0.01 * rng.standard_normal(self.shape, dtype=np.float32)
        hot = tuple(rng.integers(0, extent, 4) for extent in self.shape)
        edge = 0.5 * max(self.shape)
        table = np.arange(int(nearest.max()) + 1) / _STEPS
        parasitic = 0.05 * (size / np.maximum(table, size)) ** 3
        for index in range(frames):
            rng = moment(seed, index)
            grown = 1 + self.growth * index / max(1, frames - 1)
            # A minimum of a sphere's form factor comes every pi in q r.
            sphere = form_factor(table * (np.pi * self.oscillations * grown / edge), self.polydispersity)
            profile = self.flux * (sphere + parasitic) * (1 + 0.005 * rng.standard_normal()) + self.background
            expected = profile.astype(np.float32)[nearest]
            expected *= through
            expected[hot] += 5000
            counts = np.minimum(rng.poisson(expected), self.saturation).astype(self.dtype)
            yield np.where(marks, marks, counts)


def form_factor(qr: NDArray[np.float64], polydispersity: float) -> NDArray[np.float64]:
    """Scattering of spheres (Rayleigh 1911), 1 at 0, averaged over a normal distribution of their radius.

    >>> form_factor(np.array([0.0, 4.4934]), 0.0).round(4) + 0.0
    array([1., 0.])
    """
    total, weights = np.zeros_like(qr), 0.0
    for deviation in np.linspace(-2, 2, 9) if polydispersity else (0.0,):
        grown = 1 + polydispersity * deviation
        x = np.maximum(qr * grown, 1e-2)
        weight = np.exp(-(deviation**2) / 2) * grown**6
        total += weight * (3 * (np.sin(x) - x * np.cos(x)) / x**3) ** 2
        weights += weight
    return total / weights
