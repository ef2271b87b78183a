"""Space: a config with choices left open."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from tuner.config import Blosc2, Config
from tuner.document import (
    canonical_json,
    check_list,
    check_mapping,
    check_str,
    join,
    kind_of,
    load_yaml,
    parse_size,
    parse_yaml,
    suggest,
)
from tuner.errors import InputError


class Chooser(Protocol):
    """Decides what a space leaves open; a parameter's name is its path, the branch included."""

    def choose(self, name: str, labels: tuple[str, ...]) -> str:
        """One of the labels."""
        ...

    def number(self, name: str, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        ...


@dataclass(frozen=True, slots=True)
class Choose:
    """A place that takes one of several alternatives, each of which may leave more open."""

    options: tuple[Node, ...]
    """The alternatives."""

    @property
    def labels(self) -> tuple[str, ...]:
        """A text for each alternative: the value itself, or its number where it leaves more open."""
        return tuple(
            str(index) if isinstance(option, Mapping | Choose | Range) else canonical_json(option)
            for index, option in enumerate(self.options)
        )


@dataclass(frozen=True, slots=True)
class Range:
    """A place that takes a whole number between two, both included."""

    low: int
    """The least."""
    high: int
    """The greatest."""


Node: TypeAlias = "Choose | Range | Mapping[str, Any] | str | int | list[Any]"
#: What each parameter was decided to be, by its name.
Choices: TypeAlias = "dict[str, str | int]"


@dataclass(frozen=True, slots=True)
class Space:
    """The configurations that a search may take: a configuration's document in which places are left open."""

    name: str
    """How tables call it."""
    tree: Mapping[str, Any]
    """Keys of `Config`; a value may be a `Choose`, a `Range`, a mapping of such, or given."""

    @classmethod
    def from_dict(cls, document: Any, place: str = "", name: str = "") -> Space:
        """Read a space's document: `Config`'s keys, beside an optional `schema` and `name`.

        >>> space = Space.from_dict({"blosc2": {"codec": {"choose": ["lz4", "zstd"]}, "clevel": {"range": [1, 3]}}})
        >>> len(list(space.grid()))
        6
        """
        keys = [f.name for f in fields(Config)]
        check_mapping(document, place, ("schema", "name", *keys))
        name = check_str(document.get("name", name), join(place, "name"))
        tree = {key: _parse(document[key], join(place, key)) for key in keys if key in document}
        return cls(name, tree).checked(place)

    def checked(self, place: str) -> Space:
        """The same space, after every alternative was shown to make a configuration that is allowed on its own."""
        blosc2 = self.tree.get("blosc2", {})
        for option, where in _alternatives(blosc2, join(place, "blosc2")):
            check_mapping(option, where, [f.name for f in fields(Blosc2)])
            for key, node in option.items():
                for value, inner in _alternatives(node, join(where, key)):
                    given = {key: value}
                    Blosc2.from_dict(given, inner.removesuffix(f".{key}") if inner.endswith(f".{key}") else inner)
        for chunks, where in _alternatives(self.tree.get("chunks", [1, "..."]), join(place, "chunks")):
            _check_chunks(chunks, where)
        return self

    def bind(self, frame_shape: tuple[int, ...], dtype: np.dtype[Any], frames: int) -> Space:
        """The same space for frames of one shape and dtype: sizes become numbers of frames, what coincides is merged.

        A chunk holds at most `frames` frames, those that a sample has side by side; a size such as ``4MiB`` becomes the
        largest power of two of frames that fits into it, and at least one.
        """
        frame_nbytes = math.prod(frame_shape) * dtype.itemsize

        def chunks(node: Any) -> Any:
            return _bind_chunks(node, frame_shape, frame_nbytes, frames) if isinstance(node, list) else node

        def leaf(key: str, node: Any) -> Any:
            if key == "chunks":
                return chunks(node)
            if key == "typesize":
                return node or dtype.itemsize
            return node

        tree = {"chunks": [1, "..."], **self.tree}
        return Space(self.name, {key: _map(node, key, leaf) for key, node in tree.items()})

    def suggest(self, chooser: Chooser) -> Config:
        """The configuration that the chooser decides for.

        Raises
        ------
        InputError
            Where what was chosen is not allowed together, such as a block size that is no multiple of the typesize.
        """
        return Config.from_dict({key: _suggest(node, key, chooser) for key, node in self.tree.items()})

    def locate(self, config: Config) -> Choices | None:
        """The choices that lead to a configuration; None where the space does not hold it."""
        document = config.to_dict()
        choices: Choices = {}
        defaults = Config().to_dict()
        for key, value in document.items():
            if key in self.tree:
                if not _locate(self.tree[key], value, key, choices):
                    return None
            elif value != defaults[key]:
                return None
        return choices

    def at(self, choices: Choices) -> Config:
        """The configuration of given choices, the inverse of `locate`."""
        return self.suggest(_Given(choices))

    def grid(self) -> Iterator[tuple[Choices, Config]]:
        """Every combination of choices with its configuration; those that are not allowed are left out."""
        stack: list[list[tuple[str, int | str]]] = [[]]
        while stack:
            prefix = stack.pop()
            walker = _Walk(prefix)
            try:
                config = self.suggest(walker)
            except InputError:
                config = None
            stack.extend(reversed(walker.branches))
            if config is not None:
                yield dict(walker.path), config


class _Given:
    """A chooser that answers from choices made before."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices

    def choose(self, name: str, labels: tuple[str, ...]) -> str:
        return str(self._choices[name])

    def number(self, name: str, low: int, high: int) -> int:
        return int(self._choices[name])


class _Walk:
    """A chooser that follows a prefix, then takes the first of each, and notes the branches that it left aside."""

    def __init__(self, prefix: list[tuple[str, int | str]]) -> None:
        self.path = list(prefix)
        self.branches: list[list[tuple[str, int | str]]] = []
        self._left = iter(prefix)

    def choose(self, name: str, labels: tuple[str, ...]) -> str:
        return str(self._take(name, list(labels)))

    def number(self, name: str, low: int, high: int) -> int:
        return int(self._take(name, list(range(low, high + 1))))

    def _take(self, name: str, values: list[Any]) -> Any:
        given = next(self._left, None)
        if given is not None:
            return given[1]
        self.branches.extend([*self.path, (name, value)] for value in values[1:])
        self.path.append((name, values[0]))
        return values[0]


def load_space(name_or_path: str | os.PathLike[str]) -> Space:
    """A shipped space by its name, or a user's own by its path.

    >>> load_space("quick").name
    'quick'

    Raises
    ------
    InputError
        Where there is no such space, with the shipped ones; or with the place of a mistake in it.
    """
    return Space.from_dict(*shipped(name_or_path, "search_spaces", "space"))


def shipped(name_or_path: str | os.PathLike[str], folder: str, what: str) -> tuple[dict[str, Any], str, str]:
    """A shipped document by its name, or a file by its path: the document, its place and its name."""
    text = os.fspath(name_or_path)
    root = files("tuner.search_spaces")
    for part in folder.split("/")[1:]:
        root = root / part
    known = sorted(item.name.removesuffix(".yaml") for item in root.iterdir() if item.name.endswith(".yaml"))
    if text in known:
        place = f"{folder}/{text}.yaml"
        return parse_yaml((root / f"{text}.yaml").read_text(encoding="utf-8"), place), f"{place}:", text
    path = Path(text)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        raise InputError(f"{what} must be one of {' '.join(known)} or a YAML file, got {text!r}{suggest(text, known)}")
    return load_yaml(path), f"{path}:", path.stem


def _parse(node: Any, place: str) -> Node:
    if isinstance(node, dict) and "range" in node:
        check_mapping(node, place, ("range",))
        bounds = check_list(node["range"], join(place, "range"))
        whole = [v for v in bounds if isinstance(v, int) and not isinstance(v, bool)]
        if len(bounds) != 2 or len(whole) != 2 or whole[0] > whole[1]:
            raise InputError(f"{join(place, 'range')} must be [low, high] in whole numbers, got {kind_of(bounds)}")
        return Range(whole[0], whole[1])
    if isinstance(node, dict) and "choose" in node:
        options = check_list(node["choose"], join(place, "choose"))
        if not options:
            raise InputError(f"{join(place, 'choose')} must have at least one alternative, got none")
        shared = {key: value for key, value in node.items() if key != "choose"}
        parsed: list[Node] = []
        for index, option in enumerate(options):
            where = join(join(place, "choose"), index)
            if shared and not isinstance(option, dict):
                raise InputError(f"{where} must be a mapping, as other keys stand beside choose, got {kind_of(option)}")
            parsed.append(_parse({**shared, **option} if shared else option, where))
        return Choose(_distinct(parsed))
    if isinstance(node, dict):
        return {str(key): _parse(value, join(place, str(key))) for key, value in node.items()}
    if node is None:
        raise InputError(f"{place} must have a value, got nothing")
    if not isinstance(node, str | int | list):
        raise InputError(f"{place} must be a value, a list, choose: or range:, got {kind_of(node)}")
    return node


def _distinct(options: list[Node]) -> tuple[Node, ...]:
    return tuple(option for index, option in enumerate(options) if option not in options[:index])


def _alternatives(node: Any, place: str) -> Iterator[tuple[Any, str]]:
    """Every alternative of a place with where it stands; of a range its ends."""
    if isinstance(node, Choose):
        for index, option in enumerate(node.options):
            yield from _alternatives(option, join(join(place, "choose"), index))
    elif isinstance(node, Range):
        yield node.low, place
        yield node.high, place
    else:
        yield node, place


def _map(node: Any, key: str, leaf: Any) -> Any:
    if isinstance(node, Choose):
        options = _distinct([_map(option, key, leaf) for option in node.options])
        return options[0] if len(options) == 1 else Choose(options)
    if isinstance(node, Mapping):
        return {inner: _map(value, inner, leaf) for inner, value in node.items()}
    return node if isinstance(node, Range) else leaf(key, node)


def _suggest(node: Any, name: str, chooser: Chooser) -> Any:
    if isinstance(node, Choose):
        index = node.labels.index(chooser.choose(name, node.labels))
        option = node.options[index]
        return _suggest(option, f"{name}[{index}]", chooser)
    if isinstance(node, Range):
        return chooser.number(name, node.low, node.high)
    if isinstance(node, Mapping):
        return {key: _suggest(value, f"{name}.{key}", chooser) for key, value in node.items()}
    return node


def _locate(node: Any, value: Any, name: str, choices: Choices) -> bool:
    if isinstance(node, Choose):
        for index, (label, option) in enumerate(zip(node.labels, node.options, strict=True)):
            found: Choices = {}
            if _locate(option, value, f"{name}[{index}]", found):
                choices.update({name: label, **found})
                return True
        return False
    if isinstance(node, Range):
        if not isinstance(value, int) or not node.low <= value <= node.high:
            return False
        choices[name] = value
        return True
    if isinstance(node, Mapping):
        defaults = Blosc2().to_dict()
        return all(
            _locate(node[key], value[key], f"{name}.{key}", choices) if key in node else value[key] == defaults[key]
            for key in value
        )
    return bool(node == value)


def _check_chunks(chunks: Any, place: str) -> None:
    extents = check_list(chunks, place)
    if not extents:
        raise InputError(f"{place} must be frames and the axes of a frame, got nothing")
    for index, extent in enumerate(extents):
        where = join(place, index)
        if index == 0 and isinstance(extent, str):
            parse_size(extent, where)
            continue
        if extent == "..." and index == len(extents) - 1 and index > 0:
            continue
        whole = isinstance(extent, int) and not isinstance(extent, bool)
        if not whole or not (extent >= 1 or (extent == -1 and index > 0)):
            allowed = (
                "a number of frames or a size such as 4MiB" if index == 0 else "-1, a whole number >= 1 or a last ..."
            )
            raise InputError(f"{where} must be {allowed}, got {kind_of(extent)}")


def _bind_chunks(chunks: list[Any], frame_shape: tuple[int, ...], frame_nbytes: int, frames: int) -> list[int]:
    count, *tile = chunks
    if tile and tile[-1] == "...":
        tile = [*tile[:-1], *[-1] * (len(frame_shape) - len(tile) + 1)]
    if len(tile) > len(frame_shape):  # a tile of images, for spectra
        tile = tile[len(tile) - len(frame_shape) :]
    tile = [*[-1] * (len(frame_shape) - len(tile)), *tile]
    tile = [-1 if extent >= size else extent for extent, size in zip(tile, frame_shape, strict=True)]
    if isinstance(count, str):
        covered = [size if extent == -1 else extent for extent, size in zip(tile, frame_shape, strict=True)]
        nbytes = frame_nbytes * math.prod(covered) // math.prod(frame_shape)
        count = 1 << max(0, (parse_size(count, "chunks") // max(nbytes, 1)).bit_length() - 1)
    return [max(1, min(count, frames)), *tile]
