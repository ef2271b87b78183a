"""X-ray photon correlation spectroscopy: fluctuating speckles of a suspension on a photon-counting Maxipix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.simulate.diffraction import beamstop, radius
from tuner.simulate.simulation import Field, Simulation, check_parameters, moment, pixel_axes, world

#: What a pixel that does not count reads.
BAD = 65535


@dataclass(frozen=True, slots=True)
class Xpcs:
    """Speckles that lose their memory as particles diffuse, at a rate that goes with the angle squared."""

    shape: tuple[int, int] = (256, 256)
    """Rows and columns of a frame; the default is one chip of a Maxipix."""
    dtype: str = "uint16"
    """What the detector writes."""
    flux: float = 20.0
    """Photons a pixel near the beam."""
    modes: int = 2
    """Modes of the light, all alike: the contrast of the speckles is one over them."""
    speckle: float = 1.0
    """Standard deviation of the field's correlation, in pixels."""
    rate: float = 0.2
    """Relaxation rate a frame at the edge, half the larger extent of a frame away from the beam."""

    def __post_init__(self) -> None:
        check_parameters(self, ("uint16",))

    def simulate(self, frames: int, seed: int) -> Simulation:
        """A frame each millisecond."""
        rng = world(seed)
        centre = (0.15 * self.shape[0], 0.2 * self.shape[1])
        bad = rng.random(self.shape) < 2e-4
        bad[self.shape[0] // 2, self.shape[1] // 3] = True
        detector = "instrument/detector"
        return Simulation(
            technique="xpcs",
            scan_shape=(frames,),
            frame_shape=self.shape,
            dtype=np.dtype(self.dtype),
            interpretation="image",
            axes=(Field("time", np.arange(frames) * 1e-3, "s"), *pixel_axes(self.shape, 55.0)),
            metadata=(
                Field("definition", "NXxpcs"),
                Field(f"{detector}/pixel_mask", bad.astype(np.uint32)),
                Field(f"{detector}/saturation_value", 11810),
                Field(f"{detector}/x_pixel_size", 55e-6, "m"),
                Field(f"{detector}/y_pixel_size", 55e-6, "m"),
                Field(f"{detector}/beam_center_x", centre[1], "pixel"),
                Field(f"{detector}/beam_center_y", centre[0], "pixel"),
                Field(f"{detector}/distance", 5.0, "m"),
                Field(f"{detector}/count_time", 1e-3, "s"),
                Field(f"{detector}/description", "photon counting, as a Maxipix"),
                Field("instrument/beam/incident_wavelength", 1.5, "angstrom"),
                Field("sample/name", "silica spheres in water"),
            ),
            make=lambda: self._frames(frames, seed, centre, bad),
        )

    def rates(self, centre: tuple[float, float]) -> NDArray[np.float64]:
        """The relaxation rate a frame of each pixel, shape of a frame: ``g2 - 1 = exp(-2 rate t) / modes``."""
        return np.asarray(self.rate * (radius(self.shape, centre) / (0.5 * max(self.shape))).astype(np.float64) ** 2)

    def _frames(
        self, frames: int, seed: int, centre: tuple[float, float], bad: NDArray[np.bool_]
    ) -> Iterator[NDArray[Any]]:
        distance = radius(self.shape, centre)
        edge = 0.5 * max(self.shape)
        light = self.flux / (1 + (4 * distance / edge) ** 2) * beamstop(distance, centre, 0.03 * max(self.shape))
        kept = np.exp(-self.rates(centre))
        renewed = np.sqrt(1 - kept**2)
        field = self._field(moment(seed, 0))
        for index in range(frames):
            rng = moment(seed, index + 1)
            counts = rng.poisson(light * (np.abs(field) ** 2).mean(axis=0)).astype(self.dtype)
            yield np.where(bad, BAD, counts).astype(self.dtype)
            field = kept * field + renewed * self._field(rng)

    def _field(self, rng: np.random.Generator) -> NDArray[np.complex128]:
        """A complex field of mean square 1 for each mode, shape (modes, rows, columns)."""
        white = rng.standard_normal((2, self.modes, *self.shape))
        frequencies = (np.fft.fftfreq(extent) for extent in self.shape)
        row, column = np.meshgrid(*frequencies, indexing="ij")
        passed = np.exp(-((2 * np.pi * self.speckle) ** 2) * (row**2 + column**2) / 2)
        spectrum = np.fft.fft2(white[0] + 1j * white[1]) * (passed / np.sqrt(2 * (passed**2).mean()))
        return np.asarray(np.fft.ifft2(spectrum))
