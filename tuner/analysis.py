"""Analyses: what a scientist does with the data, as limits on what lossy steps may change of its result.

Here is what they are told and what they answer; `tuner.measure.analyses` runs them. Loading one executes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Protocol

from tuner.document import (
    Interval,
    Number,
    check_bounds,
    check_list,
    check_mapping,
    check_str,
    join,
    kind_of,
    parse_size,
    suggest,
)
from tuner.errors import InputError

_NAME = re.compile(r"[a-z]\w*")

#: What starts the name of an analysis of the user's own.
OWN = ("python:", "command:")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that an analysis answers with."""

    text: str
    """What it is, in a line."""
    unit: str
    """Its unit; ``1`` where it has none."""
    of: str
    """The unit of evaluation: frame, slice or scan. Of frames and slices the worst one counts."""
    better: str = "smaller"
    """``smaller`` or ``larger``."""
    perfect: float = 0.0
    """Its value where every pixel came back as it was."""


class Valid(Protocol):
    """What a parameter may be."""

    def check(self, value: Any, place: str) -> Any:
        """Return `value` as the analysis takes it; raises InputError where it cannot."""
        ...


@dataclass(frozen=True, slots=True)
class Maybe:
    """Something, or nothing."""

    inner: Valid
    """What it is where it is given."""

    def check(self, value: Any, place: str) -> Any:
        """Return `value` if it is None or what `inner` allows."""
        return None if value is None else self.inner.check(value, place)


class Text:
    """A text that is not empty."""

    def check(self, value: Any, place: str) -> str:
        """Return `value` if it is one."""
        if not check_str(value, place).strip():
            raise InputError(f"{place} must be a text, got an empty one")
        return str(value)


class Texts:
    """Texts, at least one."""

    def check(self, value: Any, place: str) -> tuple[str, ...]:
        """Return `value` as a tuple if it is a list of them."""
        texts = tuple(Text().check(text, join(place, i)) for i, text in enumerate(check_list(value, place)))
        if not texts:
            raise InputError(f"{place} must name at least one, got none")
        return texts


class Point:
    """Row and column, in pixels."""

    def check(self, value: Any, place: str) -> tuple[float, float]:
        """Return `value` as a tuple if it is a list of two numbers."""
        numbers = check_list(value, place)
        if len(numbers) != 2:
            raise InputError(f"{place} must be [row, column], got {kind_of(value)}")
        row, column = (Number().check(number, join(place, i)) for i, number in enumerate(numbers))
        return row, column


class Range:
    """Two numbers, the lower first."""

    def check(self, value: Any, place: str) -> tuple[float, float]:
        """Return `value` as a tuple if it is a list of them."""
        return check_bounds(value, place)


class Size:
    """Bytes, such as ``2GiB``."""

    def check(self, value: Any, place: str) -> str:
        """Return `value` if it is one."""
        parse_size(value, place)
        return str(value)


class Flag:
    """True or false."""

    def check(self, value: Any, place: str) -> bool:
        """Return `value` if it is one."""
        if not isinstance(value, bool):
            raise InputError(f"{place} must be true or false, got {kind_of(value)}")
        return value


class Analysis(Protocol):
    """What is compared before and after; frozen, its fields are its parameters."""

    kind: ClassVar[str]
    """What documents call it."""
    every: ClassVar[bool]
    """Whether it needs every frame of a scan; else it is of any frames."""
    valid: ClassVar[Mapping[str, Valid]]
    """What each parameter may be."""
    figures: ClassVar[Mapping[str, Figure]]
    """What it answers; empty where nobody knows before it has run."""

    @property
    def name(self) -> str:
        """What its numbers are called by: ``name.figure``."""
        ...


class _Checked:
    """Holds the fields to `valid`."""

    valid: ClassVar[Mapping[str, Valid]]

    def __post_init__(self) -> None:
        for key, valid in self.valid.items():
            object.__setattr__(self, key, valid.check(getattr(self, key), key))


@dataclass(frozen=True)
class RadialProfile(_Checked):
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


@dataclass(frozen=True)
class Peaks(_Checked):
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
            "correlation of intensities, found or weak, in the worst resolution shell", "1", "scan", "larger", 1.0
        ),
        "shell_scale_percent": Figure("change of the sum of these intensities in the worst shell", "%", "scan"),
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
class Reconstruction(_Checked):
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
class Spectrum(_Checked):
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


class _Rings(_Checked):
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
class Own(_Checked):
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


_KINDS = (RadialProfile, Peaks, Reconstruction, Spectrum, G2, Contrast)

#: Every analysis that is not the user's own by its kind.
ANALYSES: Mapping[str, type[Any]] = {
    kind.kind: kind for kind in (RadialProfile, Peaks, Reconstruction, Spectrum, G2, Contrast)
}


def analysis_to_dict(analysis: Any) -> dict[str, Any]:
    """What stands under an analysis's name in a document: its kind and the parameters that are not the default.

    >>> analysis_to_dict(RadialProfile(centre=(500, 480)))
    {'analysis': 'radial_profile', 'centre': [500.0, 480.0]}
    """
    kind = analysis.run if isinstance(analysis, Own) else analysis.kind
    given = {f.name: getattr(analysis, f.name) for f in fields(analysis) if f.name in analysis.valid}
    defaults = {f.name: f.default for f in fields(analysis)}
    stated = {key: list(v) if isinstance(v, tuple) else v for key, v in given.items() if v != defaults[key]}
    return {"analysis": kind, **stated}


def analysis_from_dict(name: str, document: Any, place: str) -> Any:
    """The inverse of `analysis_to_dict`; an analysis without a kind is of the kind that its name is.

    >>> analysis_from_dict("peaks", {"strong": 1}, "mx.yaml: analyses.peaks")
    Traceback (most recent call last):
    tuner.errors.InputError: mx.yaml: analyses.peaks.strong must be a number at least 3, got 1

    Raises
    ------
    InputError
        With the place in the document.
    """
    document = check_mapping({} if document is None else document, place)
    if not _NAME.fullmatch(name):
        raise InputError(f"{place} must be named by lower-case letters, digits and _, got {name!r}")
    kind = check_str(document.get("analysis", name), join(place, "analysis"))
    of = Own if kind.startswith(OWN) else ANALYSES.get(kind)
    if of is None:
        known = (*ANALYSES, "python:module.function", "command:program")
        raise InputError(
            f"{join(place, 'analysis')} must be one of {' '.join(known)}, got {kind!r}{suggest(kind, known)}"
        )
    needed = [f.name for f in fields(of) if f.name in of.valid and f.default is MISSING]
    check_mapping(document, place, ("analysis", *of.valid), needed)
    given = {key: value for key, value in document.items() if key != "analysis"}
    if of is Own:
        given["run"] = kind
    try:
        return of(name=name, **given)
    except InputError as error:
        raise InputError(join(place, str(error))) from None
