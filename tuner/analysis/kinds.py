"""Each analysis: its parameters and its figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tuner.analysis.parameters import Checked, Figure, Flag, Maybe, Point, Range, Size, Text, Texts, Valid
from tuner.document import Interval, Number, kind_of
from tuner.errors import InputError

#: What starts the name of an analysis of the user's own.
OWN = ("python:", "command:")


@dataclass(frozen=True)
class RadialProfile(Checked):
    """Azimuthal integration, as SAXS, WAXS and powder diffraction do it."""

    name: str = "radial_profile"
    """What its numbers are called by."""
    poni: str | None = None
    """pyFAI's calibration; without it the profile is over the distance from the centre, in pixels."""
    centre: tuple[float, float] | None = None
    """Row and column that the beam would hit; the file's own where there is neither this nor `poni`."""
    bins: int = 500
    """Points of a profile."""

    kind: ClassVar[str] = "radial_profile"
    every: ClassVar[bool] = False
    valid: ClassVar[Mapping[str, Valid]] = {
        "poni": Maybe(Text()),
        "centre": Maybe(Point()),
        "bins": Interval(8, 100_000),
    }
    figures: ClassVar[Mapping[str, Figure]] = {
        "frame_chi2": Figure("reduced chi^2 of a frame's profile, after against before", "1", "frame"),
        "frame_error_bars": Figure("largest deviation of a frame's profile, in its error bars", "error bars", "frame"),
        "scan_chi2": Figure("the same of the mean of all frames", "1", "scan"),
        "scan_error_bars": Figure("the same of the mean of all frames", "error bars", "scan"),
        "scan_percent": Figure("largest change of the mean profile where it is known to 1 %", "%", "scan"),
        "scan_run_p": Figure(
            "how probable a run of equal signs as long as the mean's is by chance", "1", "scan", "larger", 1.0
        ),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.poni is not None and self.centre is not None:
            raise InputError("centre must not be given beside poni, which tells it, got both")


@dataclass(frozen=True)
class Peaks(Checked):
    """Bragg peaks, found and integrated, as rotation, serial and Laue crystallography need them."""

    name: str = "peaks"
    """What its numbers are called by."""
    strong: float = 5.0
    """I/sigma from which a peak is found."""
    box: int = 5
    """Extent of the square that a peak's counts are summed over, in pixels; odd."""
    background: int = 15
    """Extent of the square around it that tells the background, in pixels; odd."""
    centre: tuple[float, float] | None = None
    """Row and column that the beam would hit; the file's own where it is not given."""
    shells: int = 5
    """Resolution shells: rings around the beam of equal area; there are none where the centre is not known."""
    halves: bool = False
    """Whether frames are compared in pairs that follow each other too; takes the other of each frame's pair."""

    kind: ClassVar[str] = "peaks"
    every: ClassVar[bool] = False
    valid: ClassVar[Mapping[str, Valid]] = {
        "strong": Number(least=3.0),
        "box": Interval(3, 101),
        "background": Interval(5, 301),
        "centre": Maybe(Point()),
        "shells": Interval(1, 100),
        "halves": Flag(),
    }
    figures: ClassVar[Mapping[str, Figure]] = {
        "recall": Figure("share of the peaks before that are found after, within a pixel", "1", "scan", "larger", 1.0),
        "precision": Figure(
            "share of the peaks after that were found before, within a pixel", "1", "scan", "larger", 1.0
        ),
        "cc": Figure("correlation of the intensities of found peaks, after with before", "1", "scan", "larger", 1.0),
        "scale_percent": Figure("change of the sum of the intensities of found peaks", "%", "scan"),
        "weak_recall": Figure(
            "share of the weak ones (I/sigma 1 to 3) that keep half of their intensity", "1", "scan", "larger", 1.0
        ),
        "weak_cc": Figure("correlation of the intensities of weak peaks", "1", "scan", "larger", 1.0),
        "weak_scale_percent": Figure("change of the sum of the intensities of weak peaks", "%", "scan"),
        "rms_sigma": Figure(
            "root mean square change of an intensity, found or weak, in its own sigma", "sigma", "scan"
        ),
        "shell_cc": Figure(
            "correlation of intensities, found or weak, in the worst resolution shell of 20 or more",
            "1",
            "scan",
            "larger",
            1.0,
        ),
        "shell_scale_percent": Figure("change of the sum of these intensities in the worst such shell", "%", "scan"),
        "half_cc_loss": Figure(
            "loss of the correlation of reflections' intensities in one frame of a pair with the other, with halves",
            "1",
            "scan",
        ),
        "shell_half_cc_loss": Figure("the same in the worst resolution shell of 20 reflections or more", "1", "scan"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.box % 2 == 0 or self.background % 2 == 0 or self.background <= self.box + 1:
            raise InputError(
                f"background must be odd and larger than the odd box by 4 or more, got {self.background} and {self.box}"
            )


@dataclass(frozen=True)
class Reconstruction(Checked):
    """Tomography: flat field, optional Paganin filter, filtered back-projection of a few rows."""

    name: str = "reconstruction"
    """What its numbers are called by."""
    centre: float | None = None
    """Column of the rotation axis; the middle of the frame where it is not given."""
    rows: int = 2
    """How many rows are reconstructed, evenly spaced."""
    degrees: tuple[float, float] | None = None
    """First and last angle; the file's own, or 0 to 180 without the last, where not given."""
    paganin: float = 0.0
    """Strength a of Paganin's filter 1 / (1 + a k^2), in pixels squared; 0 for none."""

    kind: ClassVar[str] = "reconstruction"
    every: ClassVar[bool] = True
    valid: ClassVar[Mapping[str, Valid]] = {
        "centre": Maybe(Number()),
        "rows": Interval(1, 64),
        "degrees": Maybe(Range()),
        "paganin": Number(least=0.0),
    }
    figures: ClassVar[Mapping[str, Figure]] = {
        "nrmse_percent": Figure(
            "root mean square change of a slice over its range, 0.1 to 99.9 percentile", "%", "slice"
        ),
        "ssim": Figure("structural similarity of a slice (Wang et al. 2004)", "1", "slice", "larger", 1.0),
        "line_percent": Figure(
            "largest change along the line through the middle of a slice, over its range", "%", "slice"
        ),
        "frc_loss": Figure(
            "largest loss of Fourier ring correlation between slices of even and odd projections", "1", "slice"
        ),
    }


@dataclass(frozen=True)
class Spectrum(Checked):
    """Fluorescence: areas of elements' lines, fitted to the spectrum of the scan and of each pixel of the map."""

    elements: tuple[str, ...]
    """Which lines are fitted, such as Fe."""
    name: str = "spectrum"
    """What its numbers are called by."""
    calibration: tuple[float, float] | None = None
    """keV of channel 0 and of each further channel; the file's energy axis where not given."""
    beam_kev: float = 20.0
    """Energy of the beam."""
    fwhm_kev: float = 0.15
    """Full width at half maximum of a line at 5.9 keV."""

    kind: ClassVar[str] = "spectrum"
    every: ClassVar[bool] = False
    valid: ClassVar[Mapping[str, Valid]] = {
        "elements": Texts(),
        "calibration": Maybe(Point()),
        "beam_kev": Number(above=0.0),
        "fwhm_kev": Number(above=0.0),
    }
    figures: ClassVar[Mapping[str, Figure]] = {
        "scan_percent": Figure(
            "largest change of a line's area in the sum of all spectra, of those known to 1 %", "%", "scan"
        ),
        "scan_error_bars": Figure("the same in error bars", "error bars", "scan"),
        "pixel_error_bars": Figure(
            "largest change of a line's area in one pixel of the map, in its error bars", "error bars", "frame"
        ),
        "pixel_rms_error_bars": Figure(
            "root mean square change of a line's area over the pixels; of the worst line", "error bars", "scan"
        ),
    }


class _Rings(Checked):
    """Parameters of what is averaged over rings around the beam."""

    inner: float
    outer: float

    valid: ClassVar[Mapping[str, Valid]] = {
        "centre": Maybe(Point()),
        "rings": Interval(1, 1000),
        "inner": Number(least=0.0),
        "outer": Number(least=0.0),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.outer and self.outer <= self.inner:
            raise InputError(f"outer must be above inner, got {self.outer:g} and {self.inner:g}")


@dataclass(frozen=True)
class G2(_Rings):
    """Correlation of intensities in time, as X-ray photon correlation spectroscopy (XPCS) does it."""

    name: str = "g2"
    """What its numbers are called by."""
    centre: tuple[float, float] | None = None
    """Row and column that the beam would hit; the file's own where it is not given."""
    rings: int = 8
    """How many rings of equal width are correlated."""
    inner: float = 0.0
    """Radius from which they begin, in pixels."""
    outer: float = 0.0
    """Radius at which they end, in pixels; 0 for that of 99 % of the pixels."""
    frames: int = 1024
    """Consecutive frames that are correlated at most, from the middle of the scan."""

    kind: ClassVar[str] = "g2"
    every: ClassVar[bool] = True
    valid: ClassVar[Mapping[str, Valid]] = {**_Rings.valid, "frames": Interval(16, 1 << 20)}
    figures: ClassVar[Mapping[str, Figure]] = {
        "error_bars": Figure("largest change of g2, at any delay in any ring, in its error bars", "error bars", "scan"),
        "contrast_percent": Figure("largest change of g2 - 1 at the first delay, if known to 1 %", "%", "scan"),
        "rate_error_bars": Figure("largest change of a relaxation rate, in its error bars", "error bars", "scan"),
        "rate_percent": Figure("largest change of a relaxation rate that is known to 1 %", "%", "scan"),
    }


@dataclass(frozen=True)
class Contrast(_Rings):
    """Contrast of speckles, as coherent diffraction imaging and ptychography live on it."""

    name: str = "contrast"
    """What its numbers are called by."""
    centre: tuple[float, float] | None = None
    """Row and column that the beam would hit; the file's own where it is not given."""
    rings: int = 8
    """How many rings of equal width are looked at."""
    inner: float = 0.0
    """Radius from which they begin, in pixels."""
    outer: float = 0.0
    """Radius at which they end, in pixels; 0 for that of 99 % of the pixels."""

    kind: ClassVar[str] = "contrast"
    every: ClassVar[bool] = False
    figures: ClassVar[Mapping[str, Figure]] = {
        "error_bars": Figure("largest change of a ring's contrast, in its error bars", "error bars", "scan"),
        "percent": Figure("largest change of a contrast that is known to 1 %", "%", "scan"),
        "shift": Figure("largest change of a ring's contrast", "1", "scan"),
    }


@dataclass(frozen=True)
class Own(Checked):
    """The user's own pipeline: it gets frames before and after as files, and returns named numbers.

    >>> Own("flux", "python:beamline.flux", seconds=60).seconds
    60.0
    """

    name: str
    """What its numbers are called by."""
    run: str
    """``python:module.function`` or ``command:program argument...``."""
    seconds: float = 600.0
    """What it may take."""
    memory: str = "4GiB"
    """Address space that it may take."""

    kind: ClassVar[str] = "own"
    every: ClassVar[bool] = False
    valid: ClassVar[Mapping[str, Valid]] = {"seconds": Number(above=0.0), "memory": Size()}
    figures: ClassVar[Mapping[str, Figure]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        scheme, _, what = self.run.partition(":")
        if not self.run.startswith(OWN) or not what.strip():
            raise InputError(f"analysis must be python:module.function or command:program, got {kind_of(self.run)}")
        if scheme == "python" and not re.fullmatch(r"\w+(\.\w+)+", what):
            raise InputError(f"analysis must name module.function after python:, got {kind_of(what)}")
