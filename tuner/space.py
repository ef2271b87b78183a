"""Space: a config with choices left open."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tuner.choices import (
    Choices,
    Chooser,
    Given,
    Node,
    Range,
    combine,
    decide,
    distinct,
    expand,
    locate,
    size_of,
    with_leaves,
)
from tuner.choices import Choose as Choose  # what `Space.tree` is made of
from tuner.config import EXTENT, FRAMES, VALID, Blosc2, Config
from tuner.document import (
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
        return Space(self.name, {key: with_leaves(node, key, leaf) for key, node in tree.items()})

    def steps(self) -> list[tuple[Step, ...]]:
        """What may be done to frames before they are cut and compressed, each once; `()` keeps every pixel."""
        documents = [steps for _, steps in expand(self.tree.get("steps", []), "steps")]
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
        return Config.from_dict({key: decide(node, key, chooser) for key, node in self.tree.items()})

    def locate(self, config: Config) -> Choices | None:
        """The choices that lead to a configuration; None where the space does not hold it."""
        document = config.to_dict()
        choices: Choices = {}
        defaults = Config().to_dict()
        for key, value in document.items():
            if key in self.tree:
                if not locate(self.tree[key], value, key, choices):
                    return None
            elif value != defaults[key]:
                return None
        return choices

    def at(self, choices: Choices) -> Config:
        """The configuration of given choices, the inverse of `locate`."""
        return self.suggest(Given(choices))

    def grid(self) -> Iterator[tuple[Choices, Config]]:
        """Every combination of choices with its configuration; those that are not allowed are left out."""
        node = self.tree.get("blosc2", {})
        # Read once for all chunk shapes, unless a range makes too many to hold.
        held = list(_compressions(node)) if size_of(node) <= _MOST_HELD else None
        for choices, document in combine([(key, key, other) for key, other in self.tree.items() if key != "blosc2"]):
            config = Config.from_dict(document)
            for others, blosc2 in _compressions(node) if held is None else held:
                yield {**choices, **others}, replace(config, blosc2=blosc2)

    @property
    def size(self) -> int:
        """How many combinations of choices there are, those that are not allowed among them."""
        return size_of(self.tree)


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
    return Choose(distinct([parse(option, join(place, index)) for index, option in enumerate(options)]))


def _shared(shared: Mapping[str, Any], node: Choose | Mapping[str, Any]) -> Choose | Mapping[str, Any]:
    """The node with keys that hold for each alternative that does not give its own."""
    if isinstance(node, Choose):
        return Choose(distinct([_shared(shared, option) for option in node.options]))  # type: ignore[arg-type]
    return {**shared, **node}


def _compressions(node: Any) -> Iterator[tuple[Choices, Blosc2]]:
    for choices, document in expand(node, "blosc2"):
        try:
            yield choices, Blosc2.from_dict(document)
        except InputError:
            continue


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
