"""Profile: a configuration with the evidence for it, as one screen of YAML."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tuner.config import PLUGINS, Config
from tuner.document import (
    Interval,
    canonical_json,
    check_list,
    check_mapping,
    check_str,
    dump_yaml,
    join,
    kind_of,
    load_yaml,
    write_atomically,
)
from tuner.errors import InputError
from tuner.noise import Noise

#: The profile's version; older ones are read for ever, newer ones refused.
SCHEMA = 1

#: What a filter needs of a reader (hdf5plugin's release notes); every other is read since Blosc2 came in.
_FIRST_HDF5PLUGIN = {"bytedelta": "4.4.0"}
_BLOSC2_CAME_IN = "4.1.0"

_DTYPES = (
    "bool",
    *(f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64"),
)


class EvidenceVoidWarning(UserWarning):
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
            raise InputError(
                f"{place}: the profile is for frames of shape {list(self.frame_shape)}, got {list(frame_shape)}"
                " (frame_shape: null in the profile takes any)"
            )


@dataclass(frozen=True, slots=True)
class Invalid:
    """The pixels that are not data."""

    values: tuple[int, ...] = ()
    """Values that mark a pixel as invalid in one frame."""
    mask: str | None = None
    """Digest of the mask of pixels that are invalid in all frames; None without a mask."""


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
        filters = {name for config in configs for name in config.blosc2.filters}
        versions = [_FIRST_HDF5PLUGIN[name] for name in sorted(filters & set(_FIRST_HDF5PLUGIN))]
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

    @property
    def readers(self) -> Readers:
        """Who can read what it writes."""
        return Readers.of(self.config, self.fallback)

    @property
    def digest(self) -> str:
        """What binds the evidence to what was measured: everything but the name."""
        document = self._document()
        del document["name"]
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
            "config": self.config.to_dict(),
            "invalid": {"values": list(self.invalid.values), "mask": self.invalid.mask},
            "noise": noise
            and {
                "gain": noise.gain,
                "offset": noise.offset,
                "read_noise": noise.read_noise,
                "source": noise.source,
            },
            "envelope": {name: list(bounds) for name, bounds in self.envelope.items()},
            "fallback": self.fallback.to_dict(),
            "readers": {"hdf5plugin": f">={self.readers.hdf5plugin}", "plugins": list(self.readers.plugins)},
            "evidence": dict(self.evidence),
        }

    @classmethod
    def from_dict(cls, document: Any, place: str = "") -> Profile:
        """The inverse of `to_dict`; the digest is not checked here, `load_profile` does."""
        check_mapping(document, place, _KEYS, required=("schema", "name", "match", "config"))
        schema = Interval(1).check(document["schema"], join(place, "schema"))
        if schema > SCHEMA:
            raise InputError(f"{join(place, 'schema')} must be at most {SCHEMA}, got {schema}: a newer tuner wrote it")
        config = Config.from_dict(document["config"], join(place, "config"))
        fallback = document.get("fallback")
        profile = cls(
            name=check_str(document["name"], join(place, "name")),
            match=_match(document["match"], join(place, "match")),
            config=config,
            fallback=config if fallback is None else Config.from_dict(fallback, join(place, "fallback")),
            invalid=_invalid(document.get("invalid") or {}, join(place, "invalid")),
            noise=_noise(document.get("noise"), join(place, "noise")),
            envelope=_envelope(document.get("envelope") or {}, join(place, "envelope")),
            evidence=_evidence(document.get("evidence") or {}, join(place, "evidence")),
        )
        ndim = len(profile.config.chunks) - 1
        for key, value in (("config.chunks", profile.config), ("fallback.chunks", profile.fallback)):
            shape = profile.match.frame_shape
            if shape is not None:
                try:
                    value.resolve(shape, np.dtype(profile.match.dtype))
                except InputError as error:
                    raise InputError(f"{join(place, key.split('.')[0])}: {error}") from None
            elif len(value.chunks) - 1 != ndim:
                raise InputError(f"{join(place, key)} must have {1 + ndim} extents, got {list(value.chunks)}")
        return profile

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile as YAML, by a temporary file and a rename."""
        write_atomically(path, dump_yaml(self.to_dict()))


def load_profile(path: str | os.PathLike[str], strict: bool = False) -> Profile:
    """Read a profile; one that was changed after it was measured loads with a warning and void evidence.

    Parameters
    ----------
    path : path of a YAML file
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
    return Profile(
        name=profile.name,
        match=profile.match,
        config=profile.config,
        fallback=profile.fallback,
        invalid=profile.invalid,
        noise=profile.noise,
        evidence={"void": what},
    )


_KEYS = (
    "schema",
    "name",
    "match",
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
    check_mapping(document, place, ("dtype", "axes", "frame_shape"), required=("dtype",))
    dtype = document["dtype"]
    if dtype not in _DTYPES:
        raise InputError(f"{join(place, 'dtype')} must be one of {' '.join(_DTYPES)}, got {kind_of(dtype)}")
    where = join(place, "axes")
    axes = tuple(check_str(a, join(where, i)) for i, a in enumerate(check_list(document.get("axes") or [], where)))
    shape = document.get("frame_shape")
    where = join(place, "frame_shape")
    if shape is not None:
        shape = tuple(Interval(1).check(size, join(where, i)) for i, size in enumerate(check_list(shape, where)))
        if not 1 <= len(shape) <= 2:
            raise InputError(f"{where} must have one or two axes, got {list(shape)}")
    return Match(dtype, axes, shape)


def _invalid(document: Any, place: str) -> Invalid:
    check_mapping(document, place, ("values", "mask"))
    where = join(place, "values")
    values = check_list(document.get("values") or [], where)
    for index, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{join(where, index)} must be a whole number, got {kind_of(value)}")
    mask = document.get("mask")
    return Invalid(tuple(values), None if mask is None else check_str(mask, join(place, "mask")))


def _noise(document: Any, place: str) -> Noise | None:
    if document is None:
        return None
    check_mapping(document, place, ("gain", "offset", "read_noise", "source"), ("gain",))
    numbers = {key: _number(document.get(key, 0.0), join(place, key)) for key in ("gain", "offset", "read_noise")}
    return Noise(**numbers, source=check_str(document.get("source", "given"), join(place, "source")))


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise InputError(f"{place} must be a finite number, got {kind_of(value)}")
    return float(value)


def _envelope(document: Any, place: str) -> dict[str, tuple[float, float]]:
    check_mapping(document, place, list(document) if isinstance(document, Mapping) else ())
    bounds = {}
    for name, value in document.items():
        where = join(place, name)
        pair = [_number(v, join(where, i)) for i, v in enumerate(check_list(value, where))]
        if len(pair) != 2 or pair[0] > pair[1]:
            raise InputError(f"{where} must be [low, high], got {kind_of(value)}")
        bounds[name] = (pair[0], pair[1])
    return bounds


def _evidence(document: Any, place: str) -> Mapping[str, Any]:
    check_mapping(document, place, list(document) if isinstance(document, Mapping) else ())
    try:
        canonical_json(document)
    except (TypeError, ValueError) as error:
        raise InputError(f"{place} must hold numbers, texts, lists and mappings only: {error}") from None
    return dict(document)
