"""Tomography: projections of a rotating phantom through scintillator and scientific CMOS camera."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.document import Interval
from tuner.simulate.simulation import Field, Simulation, check_parameters, moment, pixel_axes, texture, world
from tuner.stack import Kind

Image = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tomography:
    """A scan in a parallel beam: darks, flats, projections over half a turn, flats again."""

    shape: tuple[int, int] = (1024, 1024)
    """Rows and columns of a frame."""
    dtype: str = "uint16"
    """What the camera writes."""
    bits: int = 16
    """Bits of the camera's digitiser; the full well fills them."""
    flux: float = 12000.0
    """Electrons in the brightest pixel of a flat."""
    full_well: float = 30000.0
    """Electrons that saturate a pixel."""
    read_noise: float = 1.6
    """Standard deviation in electrons."""
    offset: float = 100.0
    """Counts of a pixel without light."""
    absorption: float = 1.2
    """Optical depth through the thickest part of the sample."""
    blur: float = 0.9
    """Standard deviation of the scintillator's point spread in pixels."""
    phase: float = 0.4
    """Strength of the phase-contrast fringe at edges."""
    features: int = 60
    """Grains and pores within the sample."""

    def __post_init__(self) -> None:
        check_parameters(self, ("uint16",))
        Interval(8, 16).check(self.bits, "bits")

    @property
    def gain(self) -> float:
        """Counts per electron."""
        return float((2**self.bits - 1 - self.offset) / self.full_well)

    def simulate(self, frames: int, seed: int) -> Simulation:
        """Of `frames`, an eighth are darks and an eighth flats, at most 20 each."""
        kinds = scan_kinds(frames)
        projections = int((kinds == Kind.DATA).sum())
        angles = np.zeros(frames)
        angles[kinds == Kind.DATA] = np.arange(projections) * 180.0 / projections
        angles[np.flatnonzero(kinds == Kind.DATA)[-1] + 1 :] = 180.0
        return Simulation(
            technique="tomography",
            scan_shape=(frames,),
            frame_shape=self.shape,
            dtype=np.dtype(self.dtype),
            interpretation="image",
            axes=(Field("rotation_angle", angles, "deg"), *pixel_axes(self.shape, 0.65)),
            metadata=(
                Field("definition", "NXtomo"),
                Field("instrument/detector/image_key", kinds.astype(np.int32)),
                Field("instrument/detector/x_pixel_size", 0.65, "um"),
                Field("instrument/detector/y_pixel_size", 0.65, "um"),
                Field("instrument/detector/count_time", 0.05, "s"),
                Field("instrument/detector/bit_depth_readout", self.bits),
                Field("instrument/detector/saturation_value", 2**self.bits - 1),
                Field("instrument/detector/type", "scientific CMOS, lens-coupled to a LuAG scintillator"),
                Field("instrument/beam/incident_energy", 25.0, "keV"),
                Field("sample/name", "ellipsoids in an ellipsoid"),
                Field("sample/rotation_angle", angles, "deg"),
            ),
            make=lambda: self._frames(kinds, angles, seed),
        )

    def _frames(self, kinds: NDArray[np.uint8], angles: NDArray[np.float64], seed: int) -> Iterator[NDArray[Any]]:
        rng = world(seed)
        phantom = draw_phantom(rng, self.features)
        beam, stripes = draw_beam(rng, self.shape)
        sensitivity = 1 + 0.006 * rng.standard_normal(self.shape, dtype=np.float32)
        pedestal = self.offset + 0.4 * rng.standard_normal((1, self.shape[1]), dtype=np.float32)
        pedestal = pedestal + rng.standard_normal(self.shape, dtype=np.float32) * np.float32(0.3)
        hot = rng.random(self.shape) < 2e-5
        pedestal[hot] += rng.exponential(300 * self.gain, int(hot.sum())).astype(np.float32)
        top = 2**self.bits - 1
        row = np.arange(self.shape[0])
        for index, kind in enumerate(kinds):
            rng = moment(seed, index)
            counts = pedestal + np.float32(self.read_noise * self.gain) * rng.standard_normal(
                self.shape, dtype=np.float32
            )
            if kind != Kind.DARK:
                # The monochromator's stripes drift with its temperature, the ring current ripples.
                drift = 1.5 * np.sin(index / 40) + 0.2 * rng.standard_normal()
                strength = self.flux * (1 + 0.003 * rng.standard_normal())
                light = beam * np.interp(row + drift, np.arange(stripes.size), stripes).astype(np.float32)[:, None]
                light *= np.float32(strength)
                if kind == Kind.DATA:
                    path = project(phantom, np.deg2rad(angles[index]), self.shape)
                    path *= np.float32(-self.absorption)
                    light *= self._transmission(np.exp(path, out=path))
                light *= sensitivity
                counts += rng.poisson(light) * np.float32(self.gain)
                add_zingers(rng, counts, top)
            np.rint(counts, out=counts)
            yield np.clip(counts, 0, top, out=counts).astype(self.dtype)

    def _transmission(self, transmission: Image) -> Image:
        """What the camera sees of it: blurred by the scintillator, with the fringe that free propagation adds.

        To first order the fringe is the Laplacian of the phase, which goes with that of the thickness
        (transport of intensity; Paganin et al. 2002, doi:10.1046/j.1365-2818.2002.01010.x).
        """
        seen = smooth(transmission, self.blur)
        padded = np.pad(seen, 1, mode="edge")
        laplacian = padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2] - 4 * seen
        return np.maximum(seen - np.float32(self.phase) * laplacian, 0)


def scan_kinds(frames: int) -> NDArray[np.uint8]:
    """The kind of each frame: darks, half of the flats, projections, the other flats.

    >>> scan_kinds(16)
    array([2, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], dtype=uint8)
    """
    few = min(20, frames // 8)
    kinds = np.full(frames, Kind.DATA, dtype=np.uint8)
    kinds[:few] = Kind.DARK
    kinds[few : few + few - few // 2] = Kind.FLAT
    kinds[frames - few // 2 :] = Kind.FLAT
    return kinds


def draw_phantom(rng: np.random.Generator, features: int) -> NDArray[np.float64]:
    """Ellipsoids upright in a body that leaves the frame at the bottom, in units of half the frame's width.

    Returns
    -------
    ndarray of float64, shape (features + 1, 8)
        Centre x, y, z; half axes a, b, c; turn of a in radians; density, negative for a pore.
    """
    a, b = rng.uniform(0.45, 0.8, 2)
    bottom, c, turn, density = 1.5, rng.uniform(1.9, 2.6), rng.uniform(0, np.pi), 0.5 / max(a, b)
    rows = [(0.0, 0.0, bottom, a, b, c, turn, density)]
    for size in rng.exponential(0.05, features).clip(0.015, 0.2):
        z, angle = rng.uniform(max(-1.0, bottom - 0.9 * c), 1), rng.uniform(0, 2 * np.pi)
        radius = np.sqrt(rng.random() * (1 - ((z - bottom) / c) ** 2)) * 0.9
        x, y = radius * (a - size) * np.cos(angle), radius * (b - size) * np.sin(angle)
        centre = (x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn), z)
        contrast = -density if rng.random() < 0.5 else rng.uniform(0.5, 2.5)
        rows.append((*centre, *(size * rng.uniform(0.6, 1.4, 3)), rng.uniform(0, np.pi), contrast))
    return np.array(rows)


def project(phantom: NDArray[np.float64], angle: float, shape: tuple[int, int]) -> Image:
    """Line integrals through the ellipsoids, turned by `angle` about the vertical axis; shape `shape`."""
    rows, columns = shape
    half = columns / 2
    path = np.zeros(shape, dtype=np.float32)
    for x, y, z, a, b, c, turn, density in phantom:
        centre = x * np.cos(angle) - y * np.sin(angle)
        reach = np.hypot(a * np.cos(turn + angle), b * np.sin(turn + angle))
        across, s = unit_interval(centre, reach, columns, half)
        down, t = unit_interval(z, c, rows, half)
        inside = np.maximum((1 - t**2)[:, None] - s**2, 0)
        path[down, across] += np.sqrt(inside, out=inside) * np.float32(2 * density * a * b / reach)
    return np.maximum(path, 0, out=path)


def unit_interval(centre: float, reach: float, extent: int, half: float) -> tuple[slice, Image]:
    """The pixels of an axis within `reach` of `centre`, and their place between them, -1 to 1."""
    low, high = ((centre + side * reach) * half + extent / 2 for side in (-1, 1))
    inside = slice(*(int(np.clip(edge, 0, extent)) for edge in (low, high + 1)))
    position = (np.arange(inside.start, inside.stop) + 0.5 - extent / 2) / half
    return inside, ((position - centre) / reach).astype(np.float32)


def draw_beam(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Image, Image]:
    """The beam on the scintillator, at most about 1, shape `shape`, and its stripes, shape (rows,)."""
    y, x = (np.linspace(-1, 1, extent, dtype=np.float32) for extent in shape)
    height, centre = rng.uniform(0.8, 1.4), rng.uniform(-0.2, 0.2, 2)
    profile = np.exp(-(((y - centre[0]) / height) ** 2) / 2)[:, None] * (1 - 0.15 * (x - centre[1]) ** 2)
    beam = (profile * (1 + 0.004 * texture(rng, shape, 6) + 0.01 * texture(rng, shape, 90))).astype(np.float32)
    for _ in range(12):  # dust and scratches
        row, column = rng.integers(0, shape[0] - 8), rng.integers(0, shape[1] - 8)
        height, width = rng.integers(1, 8, 2)
        beam[row : row + height, column : column + width] *= rng.uniform(0.7, 0.97)
    stripes = 1 + 0.03 * texture(rng, (shape[0], 1), 9)[:, 0] + 0.05 * texture(rng, (shape[0], 1), 45)[:, 0]
    return smooth(beam, 1.0) / np.float32(1.1), stripes


def smooth(image: Image, sigma: float) -> Image:
    """Convolved with a Gaussian of `sigma` pixels; edges repeat."""
    if sigma == 0:
        return image
    reach = int(np.ceil(2.5 * sigma))
    kernel = np.exp(-((np.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (0, 1):
        padded = np.pad(image, [(reach, reach) if axis == along else (0, 0) for along in (0, 1)], mode="edge")
        extent = image.shape[axis]
        image = np.zeros_like(image)
        for shift, weight in enumerate(kernel):
            image += weight * (padded[shift : shift + extent] if axis == 0 else padded[:, shift : shift + extent])
    return image


def add_zingers(rng: np.random.Generator, counts: Image, top: int) -> None:
    """Scattered X-rays that hit the camera's chip itself: a few bright pixels a frame."""
    hits = rng.poisson(counts.size * 2e-6)
    rows, columns = rng.integers(0, counts.shape[0], hits), rng.integers(0, counts.shape[1], hits)
    counts[rows, columns] += rng.exponential(0.2 * top, hits).astype(np.float32)
