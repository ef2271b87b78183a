"""Profile: a configuration with the evidence for it, as one screen of YAML."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from tuner.config import FRAMES, PLUGINS, Config, one_line
from tuner.container import CONTAINERS
from tuner.document import (
    Interval,
    OneOf,
    canonical_json,
    check_bounds,
    check_list,
    check_mapping,
    check_number,
    check_schema,
    check_str,
    dump_yaml,
    join,
    load_yaml,
    write_atomically,
)
from tuner.errors import InputError, TunerWarning
from tuner.goal import Constraint, Goal
from tuner.noise import Noise
from tuner.stack import Marks
from tuner.steps import check_steps
from tuner.steps.reduced import Chain, reductions_from, reductions_to
from tuner.steps.reductions import Form, Reduction

#: The profile's version; older ones are read for ever, newer ones refused.
SCHEMA = 1

#: What a filter or a codec needs of a reader; every other is read since Blosc2 came in. For the filter by hdf5plugin's
#: release notes, for the plug-ins by trial: they need c-blosc2 3, which came with 7.0, and 6.0 fails.
_FIRST_HDF5PLUGIN = {"bytedelta": "4.4.0", **dict.fromkeys(PLUGINS, "7.0.0")}
_BLOSC2_CAME_IN = "4.1.0"

_DTYPES = (
    "bool",
    *(f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64"),
)


#: Of a pixel, of any dtype.
_INTEGER = Interval(-(1 << 63), (1 << 64) - 1)


class EvidenceVoidWarning(TunerWarning):
    """A profile was changed after it was measured: what it says of itself is no longer proven."""


@dataclass(frozen=True, slots=True)
class Match:
    """The frames that a profile is for."""

    dtype: str
    """Name of the pixels' dtype, in native byte order."""
    axes: tuple[str, ...] = ()
    """Names of the stack's axes, where the file gave them."""
    frame_shape: tuple[int, ...] | None = None
    """Shape of a frame; None for any."""

    def check(self, dtype: np.dtype[Any], frame_shape: tuple[int, ...], place: str) -> None:
        """Raise InputError where frames of this dtype and shape are not those that the profile is for."""
        if dtype.newbyteorder("=").name != self.dtype:
            raise InputError(f"{place}: the profile is for dtype {self.dtype}, got {dtype.name}")
        if self.frame_shape is not None and frame_shape != self.frame_shape:
            alike = len(frame_shape) == len(self.frame_shape)
            hint = "frame_shape: null in the profile takes any" if alike else "--axes says which axes form a frame"
            wanted, got = list(self.frame_shape), list(frame_shape)
            raise InputError(f"{place}: the profile is for frames of shape {wanted}, got {got} ({hint})")


@dataclass(frozen=True, slots=True)
class Invalid:
    """The pixels that are not data."""

    values: tuple[int, ...] = ()
    """Values that mark a pixel as invalid in one frame."""
    mask: str | None = None
    """Digest of the mask of pixels that are invalid in all frames; None without a mask."""
    saturation: float | None = None
    """The least value that the detector could not count; None where it is unknown."""
    underload: float | None = None
    """The least valid value; None where none is declared."""

    @property
    def marks(self) -> Marks:
        """The values that tell which pixels count."""
        return Marks(self.values, self.saturation, self.underload)


@dataclass(frozen=True, slots=True)
class Readers:
    """Who can read what the profile writes."""

    hdf5plugin: str
    """The least version."""
    plugins: tuple[str, ...] = ()
    """Packages that a reader needs beside hdf5plugin."""

    @classmethod
    def of(cls, *configs: Config) -> Readers:
        """The readers of files that hold chunks of all these configurations.

        >>> Readers.of(Config())
        Readers(hdf5plugin='4.1.0', plugins=())
        """
        names = {name for config in configs for name in (config.blosc2.codec, *config.blosc2.filters)}
        versions = [version for name, version in _FIRST_HDF5PLUGIN.items() if name in names]
        plugins = {PLUGINS[config.blosc2.codec] for config in configs if config.blosc2.codec in PLUGINS}
        return cls(max([_BLOSC2_CAME_IN, *versions]), tuple(sorted(plugins)))


@dataclass(frozen=True, slots=True)
class Profile:
    """What an acquisition writer loads."""

    name: str
    """How files written with it call it."""
    match: Match
    """The frames it is for."""
    config: Config
    """What is done to them."""
    fallback: Config
    """A lossless, faster configuration."""
    invalid: Invalid = field(default_factory=Invalid)
    """The pixels that are not data."""
    noise: Noise | None = None
    """The noise that lossy steps rest on; None where there are none."""
    envelope: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Quantiles of the traits of the data that it was measured on: trait to (low, high)."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Goal, metrics with spread, baselines, sample, digest of the data, machine, versions, date."""
    reduce: tuple[Reduction, ...] = ()
    """What makes fewer pixels or frames of those of `match` and `invalid`; all else is of what comes of it."""

    @property
    def form(self) -> Form:
        """What its reductions make of the frames that it is for; a frame shape that says nothing where any is taken."""
        ndim = len(self.config.chunks) - 1
        return _reduced(self.match, self.invalid, self.reduce, ndim)

    @property
    def readers(self) -> Readers:
        """Who can read what it writes."""
        return Readers.of(self.config, self.fallback)

    @property
    def limits(self) -> tuple[Constraint, ...]:
        """What it promises of the quality of every frame."""
        goal = self.evidence.get("goal")
        return Goal.from_dict(goal, "evidence.goal").limits if goal else ()

    @property
    def provisional(self) -> bool:
        """Whether its steps change pixels and too few frames, or none, were judged to promise what that does."""
        return bool(self.config.steps) and self.evidence.get("promise", {}).get("provisional", True)

    @property
    def digest(self) -> str:
        """What binds the evidence to what was measured: all that is stated, but for the name.

        Neither defaults nor what follows from the rest are stated, so a key that a later version adds leaves the
        digests of older profiles as they are.
        """
        default = Profile("", Match(""), Config(), Config())._document()
        if self.noise is not None:
            default["noise"] = {"floor": 0.0}  # a key that came in later
        document = _stated(self._document(), default)
        for key in ("schema", "name", "readers"):
            document.pop(key, None)
        return "sha256:" + hashlib.sha256(canonical_json(document).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """All keys, as YAML has them."""
        return {**self._document(), "digest": self.digest}

    def _document(self) -> dict[str, Any]:
        frame_shape = self.match.frame_shape
        noise = self.noise
        return {
            "schema": SCHEMA,
            "name": self.name,
            "match": {
                "dtype": self.match.dtype,
                "axes": list(self.match.axes),
                "frame_shape": None if frame_shape is None else list(frame_shape),
            },
            "reduce": reductions_to(self.reduce),
            "config": self.config.to_dict(),
            "invalid": {**asdict(self.invalid), "values": list(self.invalid.values)},
            "noise": None if noise is None else asdict(noise),
            "envelope": {name: list(bounds) for name, bounds in self.envelope.items()},
            "fallback": self.fallback.to_dict(),
            "readers": {
                "hdf5plugin": f">={self.readers.hdf5plugin}",
                "plugins": list(self.readers.plugins),
                **{c.name: {"tested": list(c.tested), "not": list(c.not_read_by)} for c in CONTAINERS.values()},
            },
            "evidence": dict(self.evidence),
        }

    @classmethod
    def from_dict(cls, document: Any, place: str = "") -> Profile:
        """The inverse of `to_dict`; the digest is not checked here, `load_profile` does."""
        check_mapping(document, place, _KEYS, required=("schema", "name", "match", "config"))
        check_schema(document, place, SCHEMA)
        readers = [*(f.name for f in fields(Readers)), *CONTAINERS]
        check_mapping(document.get("readers", {}), join(place, "readers"), readers)
        envelope = check_mapping(document.get("envelope", {}), join(place, "envelope"))
        match = _match(document["match"], join(place, "match"))
        noise = _noise(document.get("noise"), join(place, "noise"))
        invalid = _invalid(document.get("invalid", {}), join(place, "invalid"))
        reductions = reductions_from(document.get("reduce", []), join(place, "reduce"))
        config = Config.from_dict(document["config"], join(place, "config"))
        fallback = replace(config, steps=())
        if "fallback" in document:
            fallback = Config.from_dict(document["fallback"], join(place, "fallback"))
        try:
            form = _reduced(match, invalid, reductions, len(config.chunks) - 1)
        except InputError as error:
            raise InputError(f"{join(place, 'reduce')}: {error}") from None
        _check_config(config, join(place, "config"), match, form, noise)
        _check_config(fallback, join(place, "fallback"), match, form, noise)
        profile = cls(
            name=check_str(document["name"], join(place, "name")),
            match=match,
            config=config,
            fallback=fallback,
            reduce=reductions,
            invalid=invalid,
            noise=noise,
            envelope={name: check_bounds(v, join(place, f"envelope.{name}")) for name, v in envelope.items()},
            evidence=_evidence(document.get("evidence", {}), join(place, "evidence")),
        )
        if len(profile.fallback.chunks) != len(config.chunks):
            raise InputError(
                f"{join(place, 'fallback.chunks')} must have the {len(config.chunks)} extents of config.chunks,"
                f" got {list(profile.fallback.chunks)}"
            )
        if not profile.fallback.lossless:
            raise InputError(f"{join(place, 'fallback')} must be lossless, got {one_line(profile.fallback)}")
        return profile

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile as YAML, by a temporary file and a rename."""
        write_atomically(path, dump_yaml(self.to_dict()))


def load_profile(path: str | os.PathLike[str], strict: bool = False) -> Profile:
    """Read a profile; one that was changed after it was measured loads with a warning and void evidence.

    Parameters
    ----------
    path : path
        Of a YAML file.
    strict : bool
        Refuse a profile whose digest does not match instead.

    Raises
    ------
    InputError
        With the place in the document.
    """
    place = f"{os.fspath(path)}:"
    document = load_yaml(path)
    profile = Profile.from_dict(document, place)
    stated = document.get("digest")
    if stated == profile.digest:
        return profile
    what = "has no digest" if stated is None else "was changed after it was measured (its digest does not match)"
    if strict:
        raise InputError(f"{place} {what}")
    warnings.warn(f"{place} {what}: its evidence is void", EvidenceVoidWarning, stacklevel=2)
    return replace(profile, envelope={}, evidence={"void": what})


def _stated(document: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """What of a document differs from the default one."""
    return {
        key: _stated(value, default[key]) if isinstance(value, Mapping) and default.get(key) else value
        for key, value in document.items()
        if key not in default or value != default[key]
    }


_KEYS = (
    "schema",
    "name",
    "match",
    "reduce",
    "config",
    "invalid",
    "noise",
    "envelope",
    "fallback",
    "readers",
    "evidence",
    "digest",
)


def _match(document: Any, place: str) -> Match:
    check_mapping(document, place, [f.name for f in fields(Match)], required=("dtype",))
    dtype = OneOf(_DTYPES).check(document["dtype"], join(place, "dtype"))
    where = join(place, "axes")
    axes = tuple(check_str(a, join(where, i)) for i, a in enumerate(check_list(document.get("axes", []), where)))
    shape = document.get("frame_shape")
    where = join(place, "frame_shape")
    if shape is not None:
        shape = tuple(FRAMES.check(size, join(where, i)) for i, size in enumerate(check_list(shape, where)))
        if not 1 <= len(shape) <= 2:
            raise InputError(f"{where} must have one or two axes, got {list(shape)}")
    return Match(dtype, axes, shape)


def _reduced(match: Match, invalid: Invalid, reductions: Sequence[Reduction], ndim: int) -> Form:
    """What reductions make of frames."""
    shape = (1 << 31,) * ndim if match.frame_shape is None else match.frame_shape
    return Chain(reductions, Form(shape, np.dtype(match.dtype), invalid.marks)).after


def _check_config(config: Config, place: str, match: Match, form: Form, noise: Noise | None) -> None:
    try:
        check_steps(config.steps, form.dtype, noise)
    except InputError as error:
        raise InputError(join(place, str(error))) from None
    if match.frame_shape is not None:
        try:
            config.resolve(form.frame_shape, form.dtype)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None


def _invalid(document: Any, place: str) -> Invalid:
    check_mapping(document, place, [f.name for f in fields(Invalid)])
    where = join(place, "values")
    values = tuple(
        _INTEGER.check(v, join(where, i)) for i, v in enumerate(check_list(document.get("values", []), where))
    )
    mask = document.get("mask")
    limits = {
        key: None if (value := document.get(key)) is None else check_number(value, join(place, key))
        for key in ("saturation", "underload")
    }
    return Invalid(values, None if mask is None else check_str(mask, join(place, "mask")), **limits)


def _noise(document: Any, place: str) -> Noise | None:
    if document is None:
        return None
    check_mapping(document, place, [f.name for f in fields(Noise)], required=("gain",))
    keys = ("gain", "offset", "read_noise", "floor")
    numbers = {key: check_number(document.get(key, 0.0), join(place, key)) for key in keys}
    for key in ("gain", "read_noise", "floor"):
        if numbers[key] < 0:
            raise InputError(f"{join(place, key)} must be at least 0, got {numbers[key]:g}")
    return Noise(**numbers, source=check_str(document.get("source", "given"), join(place, "source")))


def _evidence(document: Any, place: str) -> dict[str, Any]:
    try:
        canonical_json(check_mapping(document, place))
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{place} must hold finite numbers, texts, lists and mappings only: {error}") from None
    return dict(document)
