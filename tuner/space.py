"""Space: a config with choices left open."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from tuner.config import EXTENT, FRAMES, VALID, Blosc2, Config
from tuner.document import (
    canonical_json,
    check_list,
    check_mapping,
    check_schema,
    check_str,
    join,
    kind_of,
    load_yaml,
    parse_size,
    parse_yaml,
    suggest,
)
from tuner.errors import InputError
from tuner.steps import Step, defaults, step_kind, step_to_dict
from tuner.steps.reduced import reductions_from
from tuner.steps.reductions import Reduction

#: The version of a space's document.
SCHEMA = 1

#: Compressions that a walk through a space holds in memory, at most.
_MOST_HELD = 1 << 16


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
    labels: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """A text for each alternative: the value itself, or its number where it leaves more open."""

    def __post_init__(self) -> None:
        labels = tuple(
            f"#{index}" if isinstance(option, Mapping | Choose | Range) or _is_steps(option) else canonical_json(option)
            for index, option in enumerate(self.options)
        )
        object.__setattr__(self, "labels", labels)


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
    reduce: tuple[Reduction, ...] = ()
    """What is done to all frames before anything is searched for."""

    @classmethod
    def from_dict(cls, document: Any, place: str = "", name: str = "") -> Space:
        """Read a space's document: `Config`'s keys, beside an optional `schema`, `name` and `reduce`.

        Every alternative is allowed on its own; those that are not allowed together are found when they are chosen.

        >>> space = Space.from_dict({"blosc2": {"codec": {"choose": ["lz4", "zstd"]}, "clevel": {"range": [1, 3]}}})
        >>> len(list(space.grid()))
        6
        >>> Space.from_dict({"blosc2": {"clevel": {"choose": [1, 12]}}}, "my.yaml:")
        Traceback (most recent call last):
        tuner.errors.InputError: my.yaml: blosc2.clevel.choose[1] must be in 0..9, got 12

        Raises
        ------
        InputError
            With the place in the document.
        """
        check_mapping(document, place, ("schema", "name", "reduce", "steps", "chunks", "blosc2"))
        check_schema(document, place, SCHEMA)
        name = check_str(document.get("name", name), join(place, "name"))
        tree: dict[str, Any] = {}
        if "steps" in document:
            tree["steps"] = _parse_steps(document["steps"], join(place, "steps"))
        if "chunks" in document:
            tree["chunks"] = _parse_leaf(document["chunks"], join(place, "chunks"), _check_chunks)
        if "blosc2" in document:
            tree["blosc2"] = _parse_branch(document["blosc2"], join(place, "blosc2"))
        return cls(name, tree, reductions_from(document.get("reduce", []), join(place, "reduce")))

    def bind(self, frame_shape: tuple[int, ...], dtype: np.dtype[Any], frames: int) -> Space:
        """The same space for frames of one shape and dtype: sizes become numbers of frames, what coincides is merged.

        A chunk holds at most `frames` frames, those that a sample has side by side; a size such as ``4MiB`` becomes the
        largest power of two of frames that fits into it, and at least one. Typesize is the dtype's where it is left
        open.

        >>> space = Space("doc", {"chunks": Choose(([1, "..."], ["4MiB", "..."], ["5MiB", 512, 512]))})
        >>> space.bind((1024, 512), np.dtype("uint16"), frames=64).tree["chunks"]
        Choose(options=([1, -1, -1], [4, -1, -1], [8, 512, -1]))
        """

        def leaf(key: str, value: Any) -> Any:
            if key == "chunks":
                return _bind_chunks(value, frame_shape, dtype.itemsize, frames)
            if key == "typesize":
                return value or dtype.itemsize
            return value

        blosc2 = _shared({"typesize": 0}, self.tree.get("blosc2", {}))
        tree = {"steps": [], "chunks": [1, "..."], **self.tree, "blosc2": blosc2}
        return Space(self.name, {key: _map(node, key, leaf) for key, node in tree.items()})

    def steps(self) -> list[tuple[Step, ...]]:
        """What may be done to frames before they are cut and compressed, each once; `()` keeps every pixel."""
        documents = [steps for _, steps in _expand(self.tree.get("steps", []), "steps")]
        return list(dict.fromkeys(Config.from_dict({"steps": steps}).steps for steps in documents))

    def with_steps(self, steps: tuple[Step, ...]) -> Space:
        """The same space with the steps given."""
        return replace(self, tree={**self.tree, "steps": [step_to_dict(step) for step in steps]})

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
        node = self.tree.get("blosc2", {})
        # Read once for all chunk shapes, unless a range makes too many to hold.
        held = list(_compressions(node)) if _size(node) <= _MOST_HELD else None
        for choices, document in _combine([(key, key, other) for key, other in self.tree.items() if key != "blosc2"]):
            config = Config.from_dict(document)
            for others, blosc2 in _compressions(node) if held is None else held:
                yield {**choices, **others}, replace(config, blosc2=blosc2)

    @property
    def size(self) -> int:
        """How many combinations of choices there are, those that are not allowed among them."""
        return _size(self.tree)


class _Given:
    """A chooser that answers from choices made before."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices

    def choose(self, name: str, labels: tuple[str, ...]) -> str:
        return str(self._choices[name])

    def number(self, name: str, low: int, high: int) -> int:
        return int(self._choices[name])


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


#: Raises InputError with the place that it is given where a value is not allowed there.
Check: TypeAlias = "Callable[[Any, str], object]"


def _parse_branch(node: Any, place: str) -> Choose | Mapping[str, Any]:
    """Blosc2's keys, or `choose:` among such mappings; keys beside it hold for those that do not give their own."""
    check_mapping(node, place, ("choose", *VALID))
    shared = {key: _parse_leaf(node[key], join(place, key), VALID[key].check) for key in node if key != "choose"}
    if "choose" not in node:
        if not any(isinstance(value, Choose | Range) for value in shared.values()):
            Blosc2.from_dict(shared, place)  # allowed together too
        return shared
    return _shared(shared, _choose(node["choose"], join(place, "choose"), _parse_branch))


def _parse_steps(node: Any, place: str) -> Choose | list[Any]:
    """A list of steps, each with what it leaves open, or `choose:` among such lists."""
    if isinstance(node, Mapping):
        check_mapping(node, place, ("choose",), required=("choose",))
        return _choose(node["choose"], join(place, "choose"), _parse_steps)
    return [_parse_step(step, join(place, index)) for index, step in enumerate(check_list(node, place))]


def _parse_step(node: Any, place: str) -> Mapping[str, Any]:
    kind = step_kind(node, place)
    given = {**defaults(kind), **check_mapping(node, place, ("step", *kind.valid))}
    check_mapping(given, place, required=kind.valid)
    leaves = {key: _parse_leaf(given[key], join(place, key), valid.check) for key, valid in kind.valid.items()}
    return {"step": kind.name, **leaves}


def _is_steps(node: Any) -> bool:
    """Whether a list is one of steps, which may leave something open, and not a value."""
    return isinstance(node, list) and any(isinstance(item, Mapping) for item in node)


def _parse_leaf(node: Any, place: str, check: Check) -> Node:
    """A value, `choose:` among such, or `range:` between two."""
    if not isinstance(node, Mapping):
        check(node, place)
        return node  # type: ignore[no-any-return]
    if len(check_mapping(node, place, ("choose", "range"))) != 1:
        raise InputError(f"{place} must be a value, choose: or range:, got {' and '.join(node) or 'an empty mapping'}")
    if "choose" in node:
        return _choose(node["choose"], join(place, "choose"), lambda option, where: _parse_leaf(option, where, check))
    where = join(place, "range")
    bounds = check_list(node["range"], where)
    if len(bounds) != 2 or any(isinstance(v, bool) or not isinstance(v, int) for v in bounds) or bounds[0] > bounds[1]:
        raise InputError(f"{where} must be [low, high] in whole numbers, got {kind_of(bounds)}")
    for index, value in enumerate(bounds):
        check(value, join(where, index))
    return Range(*bounds)


def _choose(options: Any, place: str, parse: Callable[[Any, str], Any]) -> Choose:
    options = check_list(options, place)
    if not options:
        raise InputError(f"{place} must have at least one alternative, got none")
    return Choose(_distinct([parse(option, join(place, index)) for index, option in enumerate(options)]))


def _shared(shared: Mapping[str, Any], node: Choose | Mapping[str, Any]) -> Choose | Mapping[str, Any]:
    """The node with keys that hold for each alternative that does not give its own."""
    if isinstance(node, Choose):
        return Choose(_distinct([_shared(shared, option) for option in node.options]))  # type: ignore[arg-type]
    return {**shared, **node}


def _distinct(options: list[Node]) -> tuple[Node, ...]:
    return tuple(option for index, option in enumerate(options) if option not in options[:index])


def _map(node: Any, key: str, leaf: Any) -> Any:
    if isinstance(node, Choose):
        options = _distinct([_map(option, key, leaf) for option in node.options])
        return options[0] if len(options) == 1 else Choose(options)
    if isinstance(node, Mapping):
        return {inner: _map(value, inner, leaf) for inner, value in node.items()}
    if _is_steps(node):
        return [_map(step, key, leaf) for step in node]
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
    if _is_steps(node):
        return [_suggest(step, f"{name}[{index}]", chooser) for index, step in enumerate(node)]
    return node


def _expand(node: Any, name: str) -> Iterator[tuple[Choices, Any]]:
    """Every combination of choices below a place, with the value that comes of it."""
    if isinstance(node, Choose):
        for index, (label, option) in enumerate(zip(node.labels, node.options, strict=True)):
            for choices, value in _expand(option, f"{name}[{index}]"):
                yield {name: label, **choices}, value
    elif isinstance(node, Range):
        for number in range(node.low, node.high + 1):
            yield {name: number}, number
    elif isinstance(node, Mapping):
        yield from _combine([(key, f"{name}.{key}", value) for key, value in node.items()])
    elif _is_steps(node):
        for choices, steps in _combine([(str(i), f"{name}[{i}]", step) for i, step in enumerate(node)]):
            yield choices, list(steps.values())
    else:
        yield {}, node


def _size(node: Any) -> int:
    if isinstance(node, Choose):
        return sum(map(_size, node.options))
    if isinstance(node, Range):
        return node.high - node.low + 1
    if isinstance(node, Mapping):
        return math.prod(map(_size, node.values()))
    return math.prod(map(_size, node)) if _is_steps(node) else 1


def _compressions(node: Any) -> Iterator[tuple[Choices, Blosc2]]:
    for choices, document in _expand(node, "blosc2"):
        try:
            yield choices, Blosc2.from_dict(document)
        except InputError:
            continue


def _combine(nodes: Sequence[tuple[str, str, Any]]) -> Iterator[tuple[Choices, dict[str, Any]]]:
    """Every combination of keyed nodes, one at a time: a range may be too wide to be held."""
    if not nodes:
        yield {}, {}
        return
    (key, name, node), *rest = nodes
    for choices, value in _expand(node, name):
        for others, values in _combine(rest):
            yield {**choices, **others}, {key: value, **values}


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
    if _is_steps(node):
        return len(node) == len(value) and all(
            _locate(step, given, f"{name}[{index}]", choices)
            for index, (step, given) in enumerate(zip(node, value, strict=True))
        )
    if isinstance(node, Mapping) and "step" in node:
        return node["step"] == value["step"] and all(
            _locate(node[key], value[key], f"{name}.{key}", choices) for key in node if key != "step"
        )
    if isinstance(node, Mapping):
        defaults = Blosc2().to_dict()
        return all(
            _locate(node[key], value[key], f"{name}.{key}", choices) if key in node else value[key] == defaults[key]
            for key in value
        )
    return bool(node == value)


def _check_chunks(chunks: Any, place: str) -> None:
    extents = check_list(chunks, place)
    if len(extents) < 2:
        raise InputError(f"{place} must be frames and the axes of a frame, or ..., got {kind_of(chunks)}")
    count, *tile = extents
    if isinstance(count, str):
        parse_size(count, join(place, 0))
    else:
        FRAMES.check(count, join(place, 0))
    for index, extent in enumerate(tile[:-1] if tile[-1] == "..." else tile, start=1):
        EXTENT.check(extent, join(place, index))


def _bind_chunks(chunks: list[Any], frame_shape: tuple[int, ...], itemsize: int, frames: int) -> list[int]:
    count, *tile = chunks
    ndim = len(frame_shape)
    if tile[-1] == "...":
        tile = [*tile[:-1], *[-1] * (ndim + 1 - len(tile))]
    # A tile of images serves spectra by its last axes, one of spectra serves images.
    tile = [*[-1] * (ndim - len(tile)), *tile][-ndim:]
    tile = [-1 if extent >= size else extent for extent, size in zip(tile, frame_shape, strict=True)]
    if isinstance(count, str):
        covered = [size if extent == -1 else extent for extent, size in zip(tile, frame_shape, strict=True)]
        fitting = parse_size(count, "chunks[0]") // max(1, math.prod(covered) * itemsize)
        count = 1 << max(0, fitting.bit_length() - 1)
    return [max(1, min(count, frames)), *tile]
