"""Documents that a person edits: read without running or expanding anything, checked with the place of each mistake."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tuner.errors import InputError, TunerError

#: A profile is one screen; what is a hundred times larger is not a document of ours.
MAX_BYTES = 256 << 10

#: Deeper than any document of ours; libyaml's composer takes the process down with it at some ten thousand.
_MAX_DEPTH = 40


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's safe loader, which also refuses duplicate keys, as one would be lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            # Places in the document are made of keys, and fit into a line.
            if not isinstance(key, str) or not key.isprintable() or not 0 < len(key) <= 100:
                problem = f"a key must be a word, got {kind_of(key)}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            if key in keys:
                problem = f"key {kind_of(key)} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            keys.add(key)
        return dict(super().construct_mapping(node, deep=deep))


#: Lines of the YAML that we write are at most that long.
_WIDTH = 132


class _Dumper(yaml.SafeDumper):
    """Flow style for leaves, lists and mappings without mappings in them, where they fit into two lines."""

    def ignore_aliases(self, data: Any) -> bool:
        """What stands in two places is written twice, as the loader refuses aliases."""
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        leaf = not any(isinstance(value, Mapping) for value in mapping.values()) and len(str(mapping)) < 2 * _WIDTH
        return super().represent_mapping(tag, mapping, flow_style=leaf or not mapping)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        nested = any(isinstance(item, Mapping | list) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=not nested)


# Only what is quoted and escaped comes back: PyYAML folds a next line character (U+0085) into a space.
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, None if text.isprintable() else '"'),
)

# As in YAML 1.2 and in C, a number with an exponent needs no point: PyYAML reads 1e-05 as a text.
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+"), list("-+0123456789"))


def load_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read one YAML mapping; aliases, tags, duplicate keys and oversized files are refused.

    Raises
    ------
    InputError
        With the path and, where YAML knows it, the line.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if len(text) > MAX_BYTES:
        raise InputError(f"{path}: must be a YAML document of at most {MAX_BYTES >> 10} KiB")
    return parse_yaml(text, str(path))


def parse_yaml(text: str | bytes, place: str) -> dict[str, Any]:
    """Parse one YAML mapping from text; `place` begins the message of every error."""
    try:
        _check_events(text)
        document = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{place}: is not valid YAML: {line}{error.problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{place}: is not valid YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # a timestamp such as 2026-99-99, a number of thousands of digits
        raise InputError(f"{place}: is not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise InputError(f"{place}: must be a YAML mapping, got {kind_of(document)}")
    return document


def _check_events(text: str | bytes) -> None:
    """Refuse aliases (they can explode), tags (they can run code) and deep nesting, before anything is composed."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        problem = (
            (isinstance(event, yaml.AliasEvent) and "aliases are not allowed")
            or (getattr(event, "tag", None) is not None and "tags are not allowed")
            or (depth > _MAX_DEPTH and "nested too deeply")
        )
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]


def dump_yaml(document: Mapping[str, Any]) -> str:
    """Write a mapping as YAML, keys in their order, leaves in flow style.

    >>> print(dump_yaml({"config": {"chunks": [1, -1, -1], "blosc2": {"codec": "lz4", "clevel": 5}}}), end="")
    config:
      chunks: [1, -1, -1]
      blosc2: {codec: lz4, clevel: 5}
    """
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=_WIDTH, allow_unicode=True)


def canonical_json(document: Any) -> str:
    """The one JSON text of a document: keys sorted, no spaces; what digests are taken of.

    >>> canonical_json({"b": 1, "a": [1.5, None]})
    '{"a":[1.5,null],"b":1}'
    """
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file so that a kill leaves the old one, or the new one, whole.

    Raises
    ------
    InputError
        Where the folder does not exist or cannot be written to.
    TunerError
        Where the disk is full.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: its folder must exist, got none at {path.parent}")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: must be a file, got a folder or a device")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:  # with the mode that the user's umask leaves, as a profile is for colleagues
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TunerError(f"{path}: cannot be written: {error.strerror}") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|kB|KB|MB|GB|KiB|MiB|GiB)")
_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def parse_size(text: Any, place: str) -> int:
    """Bytes of a size such as ``16MB`` or ``4MiB``.

    >>> parse_size("16MB", "--sample"), parse_size("4MiB", "chunks[0]")
    (16000000, 4194304)
    """
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    nbytes = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 1 <= nbytes < 1 << 63:
        raise InputError(f"{place} must be a size such as 16MB or 4MiB, got {kind_of(text)}")
    return int(nbytes)


def join(place: str, key: str | int) -> str:
    """The place of `key` inside `place`: a file's name ends in a colon, what follows is dotted.

    >>> join("i03.yaml:", "config"), join("i03.yaml: config", "blosc2"), join("filters", 1)
    ('i03.yaml: config', 'i03.yaml: config.blosc2', 'filters[1]')
    """
    if isinstance(key, int):
        return f"{place}[{key}]"
    if not place:
        return key
    return f"{place} {key}" if place.endswith(":") else f"{place}.{key}"


def kind_of(value: Any) -> str:
    """What a value is, in the words of YAML, with the value where it is short.

    >>> kind_of({}), kind_of(None), kind_of("lz5"), kind_of(12)
    ('a mapping', 'nothing', "'lz5'", '12')
    """
    if isinstance(value, Mapping):
        return "a mapping"
    if value is None:
        return "nothing"
    if isinstance(value, int) and value.bit_length() > 1024:  # Python refuses to print some
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def suggest(word: object, known: Iterable[str]) -> str:
    """`` (did you mean 'lz4'?)`` where a known word is close, else nothing."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_mapping(
    value: Any, place: str, known: Iterable[str] | None = None, required: Iterable[str] = ()
) -> Mapping[str, Any]:
    """Return `value` if it is a mapping with known keys only, where they are given, and all of the required ones."""
    if not isinstance(value, Mapping):
        raise InputError(f"{place.rstrip(':') or 'document'} must be a mapping, got {kind_of(value)}")
    known = value if known is None else list(known)
    for key in value:
        if key not in known:
            raise InputError(
                f"{join(place, str(key))} is not a known key{suggest(key, known)}; known: {' '.join(known)}"
            )
    for key in required:
        if key not in value:
            raise InputError(f"{join(place, key)} must be given")
    return value


def check_list(value: Any, place: str) -> list[Any]:
    """Return `value` if it is a list."""
    if not isinstance(value, list | tuple):
        raise InputError(f"{place} must be a list, got {kind_of(value)}")
    return list(value)


def check_str(value: Any, place: str) -> str:
    """Return `value` if it is a text."""
    if not isinstance(value, str):
        raise InputError(f"{place} must be a text, got {kind_of(value)}")
    return value


def check_number(value: Any, place: str) -> float:
    """Return `value` as a float if it is a finite number.

    >>> check_number(float("nan"), "i03.yaml: noise.gain")
    Traceback (most recent call last):
    tuner.errors.InputError: i03.yaml: noise.gain must be a finite number, got nan
    """
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{place} must be a finite number, got {kind_of(value)}")
    return number


def check_numbers(value: Any, place: str) -> dict[str, float]:
    """Return `value` as floats by their names if it is a mapping of finite numbers.

    >>> check_numbers({"gain": 2, "read": None}, "i03.yaml: noise")
    Traceback (most recent call last):
    tuner.errors.InputError: i03.yaml: noise.read must be a finite number, got nothing
    """
    # Logs hold millions: where a number is right, its place is not even put together.
    return {
        key: number if type(number) is float and math.isfinite(number) else check_number(number, join(place, key))
        for key, number in check_mapping(value, place).items()
    }


def check_bounds(value: Any, place: str) -> tuple[float, float]:
    """Return `value` if it is a list of two finite numbers, the lower first."""
    bounds = [check_number(v, join(place, index)) for index, v in enumerate(check_list(value, place))]
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        raise InputError(f"{place} must be [low, high], got {kind_of(value)}")
    return bounds[0], bounds[1]


def check_schema(document: Mapping[str, Any], place: str, newest: int) -> None:
    """Refuse a document that says a `schema` that is none, or newer than the `newest` that is known."""
    where = join(place, "schema")
    schema = Interval(1).check(document.get("schema", newest), where)
    if schema > newest:
        raise InputError(f"{where} must be at most {newest}, got {kind_of(schema)}: a newer tuner wrote it")


@dataclass(frozen=True, slots=True)
class Interval:
    """Whole numbers from `low` to `high`, both included."""

    low: int
    """The least."""
    high: int | None = None
    """The greatest; None for none."""
    also: int | None = None
    """One that is allowed beside them."""

    def check(self, value: Any, place: str) -> int:
        """Return `value` if it lies inside.

        >>> Interval(0, 9).check(12, "i03.yaml: config.blosc2.clevel")
        Traceback (most recent call last):
        tuner.errors.InputError: i03.yaml: config.blosc2.clevel must be in 0..9, got 12
        """
        whole = isinstance(value, int) and not isinstance(value, bool)
        inside = whole and self.low <= value and (self.high is None or value <= self.high)
        if not inside and not (whole and value == self.also):
            bound = f"in {self.low}..{self.high}" if self.high is not None else f"a whole number >= {self.low}"
            also = "" if self.also is None else f"{self.also} or "
            raise InputError(f"{place} must be {also}{bound}, got {kind_of(value)}")
        return int(value)


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]
    """The words."""

    def check(self, value: Any, place: str) -> str:
        """Return `value` if it is one of the words.

        >>> OneOf(("lz4", "zstd")).check("lz5", "codec")
        Traceback (most recent call last):
        tuner.errors.InputError: codec must be one of lz4 zstd, got 'lz5' (did you mean 'lz4'?)
        """
        if not isinstance(value, str) or value not in self.words:
            hint = suggest(value, self.words)
            raise InputError(f"{place} must be one of {' '.join(self.words)}, got {kind_of(value)}{hint}")
        return value


@dataclass(frozen=True, slots=True)
class Number:
    """Finite numbers between two."""

    above: float = -math.inf
    """Less than the least."""
    least: float = -math.inf
    """The least."""
    most: float = math.inf
    """The greatest."""

    def check(self, value: Any, place: str) -> float:
        """Return `value` as a float if it lies inside.

        >>> Number(above=0.0).check(-1, "config.steps[0].width")
        Traceback (most recent call last):
        tuner.errors.InputError: config.steps[0].width must be a number above 0, got -1
        """
        number = check_number(value, place)
        if not (self.above < number <= self.most and self.least <= number):
            bounds = [f"above {self.above:g}"] if math.isfinite(self.above) else []
            bounds += [f"at least {self.least:g}"] if math.isfinite(self.least) else []
            bounds += [f"at most {self.most:g}"] if math.isfinite(self.most) else []
            raise InputError(f"{place} must be a number {' and '.join(bounds)}, got {kind_of(value)}")
        return number
