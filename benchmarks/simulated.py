"""Simulated data sets to learn from: five X-ray techniques, electron detectors and camera frames, as files keep them.

What is drawn at random is what differs between beamlines: flux over decades, frame sizes, dtypes, noise, gaps, and what
the writer did to the counts: floats, bits shifted to the top, darks subtracted, flat fields divided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.simulate import Jungfrau, Mx, Saxs, Tomography, Xrf
from tuner.simulate.tomography import scan_kinds
from tuner.stack import Kind, Stack, convention

Frames = NDArray[Any]
Rng = np.random.Generator

#: Bytes of a data set, at least and at most; and frames, of which a simulation takes a millisecond or more each.
_LEAST_NBYTES, _MOST_NBYTES, _MOST_FRAMES = 1.5e6, 6e6, 800


@dataclass(frozen=True, slots=True)
class InMemory:
    """Frames as a stack reads them."""

    frames: Frames

    def read(self, start: int, stop: int) -> Frames:
        return self.frames[start:stop]

    def stored_bytes(self) -> None:
        return None

    def close(self) -> None:
        pass


def dataset(index: int, seed: int) -> tuple[str, Stack]:
    """Technique and frames of a data set; the same for the same arguments."""
    rng = np.random.default_rng([seed, index])
    names = [name for name, (_, weight) in FAMILIES.items() for _ in range(weight)]
    technique = names[index * 7 % len(names)]
    frames = np.ascontiguousarray(FAMILIES[technique][0](rng))
    frame_ndim = 1 if technique == "xrf" else 2
    source = InMemory(frames.reshape(-1, *frames.shape[frames.ndim - frame_ndim :]))
    invalid = convention(frames.dtype)
    return technique, Stack(f"{technique}-{index}", frames.shape, frame_ndim, frames.dtype, source, invalid=invalid)


def tomography(rng: Rng) -> Frames:
    shape = _shape(rng, 20, 1500)
    bits = int(rng.choice([8, 10, 12, 12, 14, 16, 16, 16]))
    technique = Tomography(
        shape=shape,
        bits=bits,
        flux=_decades(rng, 30, 25000),
        read_noise=_decades(rng, 0.5, 30),
        offset=float(rng.uniform(0, 0.4 * 2 ** min(bits, 8))),
        absorption=float(rng.uniform(0.2, 4)),
        blur=float(rng.uniform(0.4, 3)),
        phase=float(rng.uniform(0, 1)),
        features=int(rng.integers(3, 40)),
    )
    n = _count(rng, shape, 2)
    total = n + 2 * max(2, n // 5)
    kinds = scan_kinds(total)
    every = np.stack(list(technique.simulate(total, int(rng.integers(1 << 30)))))
    data, flats, darks = (every[kinds == kind] for kind in (Kind.DATA, Kind.FLAT, Kind.DARK))
    data = data[:n]
    look = rng.choice(["raw", "raw", "raw", "left", "u8", "float", "quarter", "flat", "log", "dark", "raw"])
    dark = darks.mean(axis=0) if len(darks) else np.full(shape, technique.offset)
    flat = np.maximum((flats.mean(axis=0) if len(flats) else every.mean(axis=0) * 2) - dark, 1)
    if look == "left":
        return data << np.uint16(16 - bits)
    if look == "u8":
        return (data.astype(np.float32) * (255 / max(1, int(data.max())))).astype(np.uint8)
    if look == "float":
        return data.astype(np.float32)
    if look == "quarter":
        return data[:, : shape[0] // 2 * 2].astype(np.float32) * np.float32(0.25)
    if look == "flat":
        return ((data - dark) / flat).astype(np.float32)
    if look == "log":
        return -np.log(np.maximum((data - dark) / flat, 1e-3)).astype(np.float32)
    if look == "dark":
        return (data - np.rint(dark)).astype(rng.choice(["int16", "int32", "float32"]))
    return data


def mx(rng: Rng) -> Frames:
    dtype = str(rng.choice(["uint16", "uint32", "uint32"]))
    shape = _shape(rng, 100, 1500 if dtype == "uint16" else int(rng.choice([1050, 1050, 1050, 1700])))
    technique = Mx(
        shape=shape,
        dtype=dtype,
        modules=_modules(rng, shape),
        background=_decades(rng, 0.003, 40),
        spot=_decades(rng, 10, 5000),
        spot_size=float(rng.uniform(0.6, 3)),
        oscillation=float(rng.choice([0.05, 0.1, 0.5])),
        saturation=60000 if dtype == "uint16" else int(rng.choice([60000, 1 << 20])),
    )
    frames = _stacked(technique, rng, shape, np.dtype(dtype).itemsize)
    look = rng.choice(["raw", "raw", "raw", "i4", "u8", "float"])
    marked = frames == np.iinfo(dtype).max
    if look == "i4":
        return np.where(marked, -1, frames.astype(np.int32))
    if look == "u8":
        return np.where(marked, 255, np.minimum(frames, 254)).astype(np.uint8)
    if look == "float":
        return np.where(marked, np.nan if rng.random() < 0.5 else -1, frames).astype(np.float32)
    return frames


def saxs(rng: Rng) -> Frames:
    shape = _shape(rng, 40, 1050)
    technique = Saxs(
        shape=shape,
        modules=_modules(rng, shape),
        flux=_decades(rng, 1, 1e6),
        background=_decades(rng, 0.005, 20),
        oscillations=float(rng.uniform(1, 15)),
        polydispersity=float(rng.uniform(0.02, 0.3)),
    )
    frames = _stacked(technique, rng, shape, 4)
    look = rng.choice(["raw", "raw", "raw", "zero", "u4", "u2", "float", "monitor", "shifted"])
    masked = frames < 0
    counts = np.maximum(frames, 0)
    if look == "zero":  # gaps that read as no counts
        return counts
    if look == "u4":
        return np.where(masked, np.uint32(2**32 - 1), counts.astype(np.uint32))
    if look == "u2":
        return np.where(masked, 65535, np.minimum(counts, 65534)).astype(np.uint16)
    if look == "float":
        return frames.astype(np.float32)
    if look == "monitor":
        return (counts / rng.normal(1, 0.02, (len(frames), 1, 1))).astype(np.float32)
    if look == "shifted":  # far-field frames with the beam in the corners, as ptychography codes keep them
        return np.fft.fftshift(counts, axes=(1, 2)).astype(np.float32)
    return frames


def xrf(rng: Rng) -> Frames:
    shape = (int(rng.choice([1, 1, 4, 7])), int(rng.choice([512, 1024, 2000, 2048, 4096])))
    technique = Xrf(shape=shape, dtype="uint32", counts=_decades(rng, 20, 1e5))
    frames = _stacked(technique, rng, shape, 4)
    look = rng.choice(["raw", "raw", "u2", "float", "float", "deadtime"])
    if look == "u2":
        return np.minimum(frames, 65535).astype(np.uint16)
    if look == "float":
        return frames.astype(np.float32)
    if look == "deadtime":
        return (frames * rng.uniform(1, 1.2, (*frames.shape[:-1], 1))).astype(np.float32)
    return frames


def jungfrau(rng: Rng) -> Frames:
    shape = _shape(rng, 100, 1050)
    technique = Jungfrau(
        shape=shape,
        energy=float(rng.uniform(5, 16)),
        background=_decades(rng, 0.005, 30),
        spot=_decades(rng, 50, 20000),
        hits=float(rng.random()),
        noise=_decades(rng, 0.1, 1.5),
    )
    frames = _stacked(technique, rng, shape, 2)
    look = rng.choice(["raw", "raw", "raw", "kev", "photons", "dark"])
    pedestal = np.median(frames & 0x3FFF, axis=0)
    value = (frames & 0x3FFF) - pedestal + rng.normal(0, 0.3, shape)
    if look == "kev":
        return (value / 40).astype(np.float32)
    if look == "photons":
        return np.rint(np.maximum(value, 0) / 40 / technique.energy).astype(rng.choice(["int32", "uint16", "float32"]))
    if look == "dark":
        return np.rint(value).astype(rng.choice(["int16", "int32"]))
    return frames


def stem(rng: Rng) -> Frames:
    """Four-dimensional STEM: a disk of undiffracted electrons and Bragg disks that brighten and move with the probe."""
    side = int(rng.choice([64, 96, 128, 128, 192, 256, 256, 515]))
    dtype = str(rng.choice(["uint8", "uint16", "uint16", "uint32", "float32", "float32"]))
    n = _count(rng, (side, side), np.dtype(dtype).itemsize)
    row, column = np.indices((side, side)) - side / 2
    radius = side * rng.uniform(0.05, 0.2)
    lattice = rng.normal(0, 1, (2, 2)) * side * 0.2
    orders = [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
    dose, tails = _decades(rng, 0.01, 2000), _decades(rng, 1e-4, 3e-2)
    frames = []
    for _ in range(n):
        expected = tails / (1 + (np.hypot(row, column) / radius) ** 2)
        for i, j in orders:
            at = i * lattice[0] + j * lattice[1] + rng.normal(0, 0.02 * side, 2)
            strength = 1.0 if i == j == 0 else 0.3 * rng.exponential() / (i * i + j * j)
            expected += strength / (1 + np.exp(np.clip((np.hypot(row - at[0], column - at[1]) - radius) * 2, -30, 30)))
        frames.append(rng.poisson(expected * dose))
    counts = np.stack(frames)
    if dtype == "float32" and rng.random() < 0.5:  # an integrating camera, gain corrected
        return (counts * rng.uniform(10, 60) + rng.normal(0, 5, counts.shape)).astype(np.float32)
    top = np.iinfo(dtype).max - 1 if dtype != "float32" else 1 << 24
    return np.minimum(counts, top).astype(dtype)


def events(rng: Rng) -> Frames:
    """Direct electron detectors and photon counters at low flux: events, single or spread over their neighbours."""
    dtype = str(rng.choice(["uint8", "uint16", "uint16", "float32", "bool"]))
    shape = _shape(rng, 64, 1400 if np.dtype(dtype).itemsize < 4 else 900)
    n = _count(rng, shape, np.dtype(dtype).itemsize)
    rate = _decades(rng, 1e-5, 0.5) * (0.2 + np.exp(-(((np.indices(shape)[0] / shape[0] - 0.5) / 0.3) ** 2)))
    counts = rng.poisson(rate, (n, *shape))
    if rng.random() < 0.4:
        weight = rng.integers(5, 60, counts.shape) * counts
        counts = weight + np.roll(weight, 1, axis=2) // 2 + np.roll(weight, 1, axis=1) // 3
    top = {"uint8": 255, "bool": 1}.get(dtype, 65534)
    return np.minimum(counts, top).astype(dtype)


def camera(rng: Rng) -> Frames:
    """Frames without counting statistics: offsets, columns, slow shading; also constant, empty and random ones."""
    shape = _shape(rng, 16, 1500)
    n = _count(rng, shape, 2)
    look = rng.choice(["noise", "noise", "shading", "smooth", "constant", "empty", "random", "steps", "double"])
    noise = rng.normal(0, _decades(rng, 0.3, 300), (n, *shape))
    waves = [np.cos(np.arange(size) / (size * rng.uniform(0.1, 1)) + rng.uniform(0, 6)) for size in shape]
    shading = waves[0][:, None] + waves[1]
    columns = rng.normal(0, _decades(rng, 0.1, 30), (1, shape[1]))
    if look == "noise":
        return np.rint(1000 + columns + noise).clip(0, 65534).astype(rng.choice(["uint16", "uint16", "int32"]))
    if look == "shading":
        return np.rint(20000 + 6000 * shading + noise).clip(0, 65534).astype(np.uint16)
    if look == "smooth":
        return (
            np.broadcast_to(np.float32(shading), (n, *shape))
            * (1 + 0.01 * np.arange(n, dtype=np.float32))[:, None, None]
        )
    if look == "constant":
        return np.full((n, *shape), int(rng.integers(0, 1000)), rng.choice(["uint8", "uint16", "uint32", "float32"]))
    if look == "empty":  # a few lit pixels in nothing
        return (rng.random((n, *shape)) < 1e-4).astype(rng.choice(["uint8", "uint16", "uint32", "float32"])) * 3
    if look == "random":
        return rng.integers(0, 256, (n, *shape)).astype(rng.choice(["uint8", "uint16"]))
    if look == "steps":  # an already rounded reconstruction
        return (np.rint((shading + 0.02 * noise / noise.std()) * 64) / 64).astype(np.float32)
    return (shading + 0.001 * noise)[: max(1, n // 2)].astype(np.float64)


#: What makes the frames of a technique, and how often it is among a hundred data sets or so.
FAMILIES: dict[str, tuple[Callable[[Rng], Frames], int]] = {
    "tomography": (tomography, 24),
    "mx": (mx, 16),
    "saxs": (saxs, 18),
    "xrf": (xrf, 11),
    "jungfrau": (jungfrau, 11),
    "stem": (stem, 10),
    "events": (events, 8),
    "camera": (camera, 13),
}


def _stacked(technique: Any, rng: Rng, shape: tuple[int, int], itemsize: int) -> Frames:
    simulation = technique.simulate(_count(rng, shape, itemsize), int(rng.integers(1 << 30)))
    return np.stack(list(simulation))


def _decades(rng: Rng, low: float, high: float) -> float:
    """As likely in one decade as in another."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _shape(rng: Rng, low: int, high: int) -> tuple[int, int]:
    """Rows and columns: powers of two at times, some long and flat."""
    rows, columns = _decades(rng, low, high) * np.exp(rng.normal(0, 0.35, 2) * [1, -1])
    if rng.random() < 0.3:
        rows, columns = 2.0 ** np.rint(np.log2([rows, columns]))
    return int(np.clip(rows, 16, high)), int(np.clip(columns, 16, high))


def _count(rng: Rng, shape: tuple[int, int], itemsize: int) -> int:
    wanted = _decades(rng, _LEAST_NBYTES, _MOST_NBYTES) / (shape[0] * shape[1] * itemsize)
    return int(np.clip(wanted, 1, _MOST_FRAMES))


def _modules(rng: Rng, shape: tuple[int, int]) -> tuple[int, int]:
    rows, columns = (int(rng.integers(1, max(2, min(8, extent // 64) + 1))) for extent in shape)
    return rows, columns


def datasets(count: int, seed: int) -> Iterator[tuple[str, Callable[[], tuple[str, Stack]]]]:
    """Name of each data set, and what makes it."""
    for index in range(count):
        yield f"sim-{index:04d}", partial(dataset, index, seed)
