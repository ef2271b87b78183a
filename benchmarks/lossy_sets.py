"""The data of `lossy.py`: every real set, and simulated ones whose noise is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from real_data import datasets

from tuner.simulate import Jungfrau, Mx, Saxs, Tomography, write_nexus
from tuner.simulate.simulation import Technique

#: Frames of a simulated scan.
_FRAMES = 80

#: Of a slice: rows and columns, slices, noise of a reconstructed value.
_SLICE, _SLICES, _SLICE_NOISE = 256, 120, 0.05

_COUNTER = "given: a photon counter, which the file does not declare"


@dataclass(frozen=True, slots=True)
class Set:
    """Frames of one detector, and what is known of them."""

    name: str
    """Folder and file."""
    path: Path
    """What is opened."""
    space: str
    """The shipped space that is searched."""
    noise: str | None = None
    """What ``--noise`` says; None leaves it to the file and the estimates."""
    source: str = ""
    """Why that is right; empty where nothing is given."""
    published: tuple[str, float, str] | None = None
    """A quantiser of `quantiser.py`, the ratio that its authors published for such data, and where."""


#: Real sets by what is known of their detector: the space, and the noise where it is known.
_REAL = {
    "coherent/siemens_star_ptychography_aps": ("counting", "gain=1", _COUNTER),
    "mx/eiger4m_bragg": ("counting", "gain=1", _COUNTER),
    "mx/thaumatin_pilatus6m_i24": ("counting", None, ""),
    "scattering/lab6_waxs_pilatus300kw_ssrl": ("counting", "gain=1", _COUNTER),
    "spectroscopy/xrf_map_aps2ide": ("counting", "gain=1", "given: counts of photons in channels"),
}

#: Simulated sets: the technique, the space, and the noise as it was simulated.
_SIMULATED: dict[str, tuple[Technique, str, str | None]] = {
    "tomography": (Tomography((512, 512)), "integrating", "gain=2.18,offset=100,read=3.49"),
    "tomography_12_bit": (
        Tomography((512, 512), bits=12, flux=4000.0),
        "integrating",
        "gain=0.133,offset=100,read=0.213",
    ),
    "mx_dim": (Mx((300, 400), background=0.3, spot=60.0), "counting", "gain=1"),
    "saxs": (Saxs((300, 300)), "counting", "gain=1"),
    "serial": (Mx((300, 400), background=30.0, oscillation=5.0), "counting", "gain=1"),
    "jungfrau_raw": (Jungfrau((256, 256)), "integrating", None),
}

#: Leading bits with an exponent: against raw, where lossless gives about 5 (Galchenkova et al., IUCrJ 11, 190, 2024).
_SERIAL = ("leading bits", 30.0, "Galchenkova et al. 2024")
#: Threshold quantisation of reconstructed two-phase flow, with Zstandard.
_TWO_PHASE = ("two ranges", 18.3, "TQC, LEAPS-INNOV D7.4, reconstructed ROFEX")


def sets(real: Path | None, work: Path, words: Sequence[str] | None = None) -> Iterator[Set]:
    """Real sets where their folder is given, then simulated ones, which are written to `work` once.

    Only those with one of `words` in their names, where some are given.
    """

    def wanted(name: str) -> bool:
        return not words or any(word in name for word in words)

    for path in datasets(real) if real else ():
        name = str(path.relative_to(real or path).with_suffix(""))
        space, noise, source = _REAL.get(name, ("integrating", None, ""))
        if wanted(name):
            yield Set(name, path, space, noise, source)
    work.mkdir(parents=True, exist_ok=True)
    for name, (technique, space, noise) in _SIMULATED.items():
        if not wanted(f"simulated/{name}"):
            continue
        path = work / f"{name}.nxs"
        if not path.exists():
            write_nexus(path, technique.simulate(_FRAMES, seed=4))
        published = _SERIAL if name == "serial" else None
        yield Set(f"simulated/{name}", path, space, noise, "as simulated" if noise else "", published)
    if not wanted("simulated/two_phase_flow"):
        return
    path = work / "two_phase_flow.npy"
    if not path.exists():
        np.save(path, two_phase_flow())
    yield Set("simulated/two_phase_flow", path, "float", f"read={_SLICE_NOISE}", "as simulated", _TWO_PHASE)


def two_phase_flow(seed: int = 4) -> NDArray[np.float32]:
    """Reconstructed slices of bubbles that rise in a pipe: liquid near 1, gas near 0, nothing outside, white noise.

    Shape (slices, rows, columns). A slice of ultrafast tomography resolves some pixels, so edges are that wide.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:_SLICE, :_SLICE].astype(np.float32) - (_SLICE - 1) / 2
    pipe = np.hypot(x, y) < 0.47 * _SLICE
    centres = rng.uniform(-0.35, 0.35, (60, 2)) * _SLICE
    radii, times = rng.gamma(4, 3.0, 60) + 4, rng.uniform(0, _SLICES, 60)
    frames = np.empty((_SLICES, _SLICE, _SLICE), np.float32)
    for index, frame in enumerate(frames):
        liquid = np.ones((_SLICE, _SLICE), np.float32)
        for (cx, cy), radius, time in zip(centres, radii, times, strict=True):
            inside = radius**2 - (2 * (index - time)) ** 2
            if inside > 0:
                liquid *= 1 / (1 + np.exp((np.sqrt(inside) - np.hypot(x - cx, y - cy)) / 1.5))
        frame[:] = np.where(pipe, liquid + rng.normal(0, _SLICE_NOISE, liquid.shape), 0)
    return frames
