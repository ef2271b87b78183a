"""The rows of `techniques.py`: what the field publishes, at its authors' settings, and the frames it is tried on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from lossy_sets import two_phase_flow
from numpy.typing import NDArray

from tuner.read import open_stacks
from tuner.simulate import Mx, Tomography, write_nexus
from tuner.simulate.simulation import Technique as Simulated
from tuner.simulate.simulation import moment

#: Counts of simulated truth are kept in such parts of a photon.
_PARTS = 1000

#: Simulated scans: the technique, frames, and the noise as it was simulated.
_SCANS: dict[str, tuple[Simulated, int, str]] = {
    "tomography": (Tomography((128, 512)), 64, "gain=2.18,offset=100,read=3.49"),
    "rotation": (Mx((512, 514), dtype="uint16"), 32, "gain=1"),
    "serial": (Mx((512, 514), dtype="uint16", background=30.0, oscillation=5.0), 16, "gain=1"),
}

#: Noise of a reconstructed value, as `two_phase_flow` adds it; and how many of its slices are taken.
_SLICE_NOISE, _SLICES = 0.05, 48

#: Real files: what is opened below the folder, and the noise where the file does not declare it.
_REAL: dict[str, tuple[str, str | None]] = {
    "eiger4m": ("mx/eiger4m_bragg.h5", "gain=1"),
    "thaumatin": ("mx/thaumatin_pilatus6m_i24", "gain=1"),
    "txm": ("tomography/txm_xanes_aps.nxs", None),
    "chip": ("tomography/chip_xradia.tif", None),
    "siemens": ("coherent/siemens_star_ptychography_aps.nxs", "gain=1"),
    "lab6": ("scattering/lab6_waxs_pilatus300kw_ssrl.nxs", "gain=1"),
    "tooth": ("tomography/tooth_aps2bm.h5", None),
    "k11": ("tomography/k11_diad_dls.h5", None),
    "xrf": ("spectroscopy/xrf_map_aps2ide.nxs", "gain=1"),
}


#: What detectors stored the frames as.
_DTYPES = {
    "two_phase_flow": "float32",
    "siemens": "float32",
    "eiger4m": "uint32",
    "thaumatin": "int32",
    "lab6": "int32",
    "tooth": "float32",
    "xrf": "float32",
}


@dataclass(frozen=True, slots=True)
class Technique:
    """A published technique on one set of frames."""

    name: str
    """What it is, in a few words."""
    data: str
    """``simulated/NAME`` or ``real/NAME``."""
    published: str
    """The figure that its authors publish, and of what."""
    steps: tuple[Mapping[str, Any], ...]
    """Their setting."""
    space: str
    """The shipped space that is searched."""
    reduce: str = ""
    """What makes fewer pixels and frames before, as ``--reduce`` takes it."""
    analyses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What is done with such data."""
    figures: tuple[str, ...] = ()
    """Which numbers of the analyses must be no worse than theirs."""
    qualities: tuple[str, ...] = ("dose_cost", "max_error_sigma", "bias_sigma", "nrmse_range")
    """Which qualities must be no worse than theirs."""
    why: str = ""
    """Where a figure of ours is not the published one: why."""

    @property
    def dtype(self) -> str:
        """Of a pixel as it was stored."""
        return _DTYPES.get(self.data.partition("/")[2], "uint16")


_PEAKS: dict[str, dict[str, Any]] = {"peaks": {}}
_FOUND = ("peaks.recall", "peaks.precision", "peaks.scale_percent", "peaks.weak_scale_percent", "peaks.rms_sigma")
_RECONSTRUCTION = {"reconstruction": {"rows": 2}}
_SLICE = ("reconstruction.nrmse_percent", "reconstruction.frc_loss")
_TOOTH = {"reconstruction": {"rows": 1, "centre": 296}}
_PROFILE = {"radial_profile": {"centre": [97, 737], "bins": 300}}
_RINGS = ("radial_profile.scan_percent", "radial_profile.scan_chi2", "radial_profile.frame_chi2")

_H16 = ({"step": "hcompress", "scale": 16},)
_J360 = ({"step": "jpeg2000", "ratio": 360},)

_ROI = "about 40 (ROI plus lossy, against raw serial data)"
_OWN_FILE = (
    "We take what is published as JPEG 2000's own file, whose size is what one asks for. Decoded pixels have as"
    " many values as before: stored for any reader they take about what they took without loss. Rounded ones take"
    " less, but not so little, as zstd knows neither wavelets nor parts of a bit."
)
_MEANS = (
    "Published slices are others, and their quality is of derived variables; ours have noise in every pixel,"
    " which the ratio depends on, and are judged by pixels. TQC rounds gas and liquid to levels of their own,"
    " which move means by a third of sigma; `float` and `tomography` hold it for goals of your own, as no shipped one"
    " lets that pass."
)
_LOW_PASS = (
    "A low-pass leaves noise of low frequencies, in all the bits: little is gained without a rounding after it,"
    " as in the row of non-local means. The search is smaller, and nearer to the frames as measured; but the"
    " denoised frames are nearer to the truth, which no limit against measured frames can tell."
)
_BIN = (
    "Published is of other crystals, frames and counters. HCompress's own file comes near to it; stored for any"
    " reader, what it leaves takes more."
)
_FAR = (
    "At 360 a binned frame of ours has some hundred bytes, and most of its peaks are gone: see recall, in the"
    " last table. No goal of ours would let that pass, and equal quality means little here."
)
_COUNTS = (
    "Published is of other frames: in those of Galchenkova et al. lossless makes about 5; the simulated ones have"
    " a background of 30 photons a pixel, of which it makes 3.3, and the Eiger's are a single frame. ROIBIN-SZ"
    " also bins what is around peaks, which is not done here."
)
_TILES = (
    " An only frame is judged by tiles of it. By them whole square roots passed, which make 15.8, but break two limits"
    " in all of the frame. With these lowered as much, the search ends at multiples of 5, theirs offered or not."
)
_SPECTRA = (
    "A step sees one spectrum at a time, and SZ3 leaves one of 2,000 channels as it was. Spectra side by side would"
    " suit both codecs better."
)
_EIGHT = (
    "8 bits halve what is stored as it is; here it is compressed on. What lies beyond the ends is gone, so that equal"
    " quality allows much."
)
_MX_111 = "111 (l_bnl_compress b2 s2 H16; rotation MX against 16-bit raw)"
_MX_77 = "77 (l_bnl_compress b2 s2 J360; rotation MX against 16-bit raw)"
_MARONE = "3 to 4, transparent (JPEG 2000; Marone et al. 2020)"
_ESRF = "10 (JPEG 2000; imaging, ESRF)"
_WINDOW = "2 (16 to 8 bits, before any compression)"
_DENOISED = "2.4 (gain over lossless at most; denoised tomography, LEAPS D7.4)"

TECHNIQUES: Mapping[str, Technique] = {
    "tqc": Technique(
        "threshold quantisation (TQC), 2 and 4 bits",
        "simulated/two_phase_flow",
        "18.3 (reconstructed two-phase flow, NRMSE over 15 derived variables below 1 %)",
        ({"step": "tqc", "background": 2, "signal": 4},),
        "float",
        why=_MEANS,
    ),
    "j10_tomography": Technique(
        "JPEG 2000 at 10", "simulated/tomography", _ESRF, ({"step": "jpeg2000", "ratio": 10},), "tomography",
        analyses=_RECONSTRUCTION, figures=_SLICE,
        why=_OWN_FILE,
    ),
    "tqc_j2k": Technique(
        "JPEG 2000 at 10 of slices as 16-bit integers",
        "simulated/two_phase_flow",
        "9.8 -> 21.2 (legend of the same figure, with JPEG 2000; reconstructed two-phase flow)",
        ({"step": "jpeg2000", "ratio": 10},),
        "tomography",
        reduce="scale=uint16:0.001:-500",
        why=_OWN_FILE,
    ),
    "butterworth": Technique(
        "denoised by Butterworth, cut-off 0.25", "simulated/tomography", _DENOISED,
        ({"step": "butterworth", "cutoff": 0.25},), "tomography", analyses=_RECONSTRUCTION, figures=_SLICE,
        why=_LOW_PASS,
    ),
    "nl_means": Technique(
        "denoised by non-local means, then sigma apart", "real/chip", _DENOISED,
        ({"step": "nl_means", "strength": 0.8}, {"step": "octave", "width": 0.99}), "tomography",
    ),
    "j4_tomography": Technique(
        "JPEG 2000 at 4", "simulated/tomography", _MARONE, ({"step": "jpeg2000", "ratio": 4},), "tomography",
        analyses=_RECONSTRUCTION, figures=_SLICE,
        why=_OWN_FILE,
    ),
    "j4_chip": Technique(
        "JPEG 2000 at 4", "real/chip", _MARONE, ({"step": "jpeg2000", "ratio": 4},), "tomography",
        why=_OWN_FILE,
    ),
    "j10_txm": Technique(
        "JPEG 2000 at 10", "real/txm", _ESRF, ({"step": "jpeg2000", "ratio": 10},), "tomography",
        why=_OWN_FILE,
    ),
    "h16_rotation": Technique(
        "bin 2, sum 2, HCompress 16", "simulated/rotation", _MX_111, _H16, "mx", "bin=2,sum=2", _PEAKS, _FOUND,
        why=_BIN,
    ),
    "j360_rotation": Technique(
        "bin 2, sum 2, JPEG 2000 at 360", "simulated/rotation", _MX_77, _J360, "mx", "bin=2,sum=2", _PEAKS, _FOUND,
        why=_FAR,
    ),
    "h16_thaumatin": Technique(
        "bin 2, sum 2, HCompress 16", "real/thaumatin", _MX_111, _H16, "mx", "bin=2,sum=2", _PEAKS, _FOUND,
        why=_BIN,
    ),
    "j360_thaumatin": Technique(
        "bin 2, sum 2, JPEG 2000 at 360", "real/thaumatin", _MX_77, _J360, "mx", "bin=2,sum=2", _PEAKS, _FOUND,
        why=_FAR,
    ),
    "roi_serial": Technique(
        "peaks exactly, the rest to 16 counts", "simulated/serial", _ROI,
        ({"step": "regions", "sigmas": 6, "radius": 4, "width": 16},), "mx", analyses=_PEAKS, figures=_FOUND,
        why=_COUNTS,
    ),
    "bits_serial": Technique(
        "3 bits and an exponent", "simulated/serial", "above 30 (against raw serial data)",
        ({"step": "leading_bits", "keep": 3},), "mx", analyses=_PEAKS, figures=_FOUND,
        why=_COUNTS,
    ),
    "roi_eiger": Technique(
        "peaks exactly, the rest to 8 counts", "real/eiger4m", _ROI,
        ({"step": "regions", "sigmas": 6, "radius": 4, "width": 8},), "mx",
        why=_COUNTS + _TILES,
    ),
    "j4_tooth": Technique(
        "JPEG 2000 at 4 of counts as 16-bit integers", "real/tooth", _MARONE, ({"step": "jpeg2000", "ratio": 4},),
        "tomography", "scale=uint16:1:0", _TOOTH, _SLICE,
        why=_OWN_FILE,
    ),
    "window_tooth": Technique(
        "8 bits from the 0.1 to the 99.9 percentile", "real/tooth", _WINDOW,
        ({"step": "window", "bits": 8, "low": 4400, "high": 32496},), "tomography",
        why=_EIGHT,
    ),
    "j4_k11": Technique(
        "JPEG 2000 at 4", "real/k11", _MARONE, ({"step": "jpeg2000", "ratio": 4},), "tomography",
        why=_OWN_FILE,
    ),
    "window_k11": Technique(
        "8 bits from the 0.1 to the 99.9 percentile", "real/k11", _WINDOW,
        ({"step": "window", "bits": 8, "low": 22518, "high": 51947},), "tomography",
        why=_EIGHT,
    ),
    "sqrt_xrf": Technique(
        "square root, whole", "real/xrf", "none for such data (l_bnl_compress has it for MX)",
        ({"step": "power", "exponent": 0.5, "width": 1},), "spectroscopy",
    ),
    "zfp_xrf": Technique(
        "ZFP within 2 counts", "real/xrf", "none for such data", ({"step": "zfp", "error": 2},), "spectroscopy",
        why=_SPECTRA,
    ),
    "sz3_xrf": Technique(
        "SZ3 within 2 counts", "real/xrf", "none for such data", ({"step": "sz3", "error": 2},), "spectroscopy",
        why=_SPECTRA,
    ),
    "zfp_siemens": Technique(
        "ZFP within 4 counts", "real/siemens", "none for such data", ({"step": "zfp", "error": 4},), "counting",
    ),
    "sz3_lab6": Technique(
        "SZ3 within 2 counts", "real/lab6", "none for such data", ({"step": "sz3", "error": 2},), "scattering",
        analyses=_PROFILE, figures=_RINGS,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames to try a technique on."""

    path: Path
    """What is opened."""
    noise: str | None
    """What ``--noise`` says; None leaves it to file and estimates."""
    truth: Path | None
    """What the frames would be without noise, as ``.npy`` of the same shape; None where nobody knows."""


def frames_of(data: str, real: Path | None, work: Path) -> Frames | None:
    """The frames of a row, written to `work` once where they are simulated or cut; None without the real folder."""
    kind, _, name = data.partition("/")
    path, truth = work / f"{name}.npy", work / f"{name}_truth.npy"
    if kind == "real":
        if real is None:
            return None
        below, noise = _REAL[name]
        if name not in ("thaumatin", "k11"):
            return Frames(real / below, noise, None)
        if not path.exists() and name == "k11":  # some of its thousands of projections, without flats and darks
            (stack,) = open_stacks([real / below])
            np.save(path, stack.read(1000, 1512))
        elif not path.exists():  # a part of each frame, as a file of 25 MB a frame takes long to open
            (stack,) = open_stacks(sorted((real / below).glob("*.cbf.bz2"))[:8])
            np.save(path, stack.read(0, 8)[:, 900:1924, 900:1924])
        return Frames(path, noise, None)
    if name == "two_phase_flow":
        if not path.exists():
            np.save(path, two_phase_flow()[:_SLICES])
            with mock.patch("lossy_sets._SLICE_NOISE", 0.0):
                np.save(truth, two_phase_flow()[:_SLICES])
        return Frames(path, f"read={_SLICE_NOISE}", truth)
    technique, frames, noise = _SCANS[name]
    path = path.with_suffix(".nxs")
    if not path.exists():
        write_nexus(path, technique.simulate(frames, seed=4))
        np.save(truth, _without_noise(technique, frames))
    return Frames(path, noise, truth)


class _Mean:
    """Draws as a generator of numpy does, but the mean where it is the noise of an image."""

    def __init__(self, rng: np.random.Generator, parts: int) -> None:
        self._rng, self._parts = rng, parts

    def poisson(self, mean: Any) -> Any:
        """The mean, in parts of a photon; no event where it is a number of events."""
        return np.rint(np.asarray(mean, np.float64) * self._parts) if np.ndim(mean) else 0

    def standard_normal(self, size: Any = None, dtype: Any = np.float64) -> Any:
        """Of images 0; a number is of the scene."""
        drawn = self._rng.standard_normal(size, dtype)
        return drawn if size is None else np.zeros_like(drawn)

    def integers(self, low: int, high: int, size: int) -> NDArray[np.int64]:
        """As the generator."""
        return self._rng.integers(low, high, size)

    def exponential(self, scale: float, size: int) -> NDArray[np.float64]:
        """As the generator."""
        return self._rng.exponential(scale, size)


def _without_noise(technique: Simulated, frames: int) -> NDArray[np.float32]:
    """A scan with every count at its mean, shape (frames, *frame_shape); pixels that do not count hold anything."""
    if isinstance(technique, Mx):
        technique, parts = replace(technique, dtype="uint32", saturation=1 << 31), _PARTS
    else:
        parts = 1
    with (
        mock.patch("tuner.simulate.mx.moment", lambda *at: _Mean(moment(*at), parts)),
        mock.patch("tuner.simulate.tomography.moment", lambda *at: _Mean(moment(*at), parts)),
    ):
        scan: Iterable[NDArray[Any]] = technique.simulate(frames, seed=4)
        return np.stack([(frame / parts).astype(np.float32) for frame in scan])
