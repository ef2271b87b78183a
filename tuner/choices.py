"""Choices: a document with places left open, and how it is walked; `Space` says what the document means."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from tuner.config import Blosc2
from tuner.document import canonical_json


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
            f"#{index}" if isinstance(option, Mapping | Choose | Range) or is_steps(option) else canonical_json(option)
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


class Given:
    """A chooser that answers from choices made before."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices

    def choose(self, name: str, labels: tuple[str, ...]) -> str:
        return str(self._choices[name])

    def number(self, name: str, low: int, high: int) -> int:
        return int(self._choices[name])


def is_steps(node: Any) -> bool:
    """Whether a list is one of steps, which may leave something open, and not a value."""
    return isinstance(node, list) and any(isinstance(item, Mapping) for item in node)


def distinct(options: list[Node]) -> tuple[Node, ...]:
    """Each alternative once, in their order."""
    return tuple(option for index, option in enumerate(options) if option not in options[:index])


def with_leaves(node: Any, key: str, leaf: Callable[[str, Any], Any]) -> Any:
    """The same with `leaf(key, value)` for each value; alternatives that then are alike become one."""
    if isinstance(node, Choose):
        options = distinct([with_leaves(option, key, leaf) for option in node.options])
        return options[0] if len(options) == 1 else Choose(options)
    if isinstance(node, Mapping):
        return {inner: with_leaves(value, inner, leaf) for inner, value in node.items()}
    if is_steps(node):
        return [with_leaves(step, key, leaf) for step in node]
    return node if isinstance(node, Range) else leaf(key, node)


def decide(node: Any, name: str, chooser: Chooser) -> Any:
    """The value that the chooser decides for."""
    if isinstance(node, Choose):
        index = node.labels.index(chooser.choose(name, node.labels))
        option = node.options[index]
        return decide(option, f"{name}[{index}]", chooser)
    if isinstance(node, Range):
        return chooser.number(name, node.low, node.high)
    if isinstance(node, Mapping):
        return {key: decide(value, f"{name}.{key}", chooser) for key, value in node.items()}
    if is_steps(node):
        return [decide(step, f"{name}[{index}]", chooser) for index, step in enumerate(node)]
    return node


def expand(node: Any, name: str) -> Iterator[tuple[Choices, Any]]:
    """Every combination of choices below a place, with the value that comes of it."""
    if isinstance(node, Choose):
        for index, (label, option) in enumerate(zip(node.labels, node.options, strict=True)):
            for choices, value in expand(option, f"{name}[{index}]"):
                yield {name: label, **choices}, value
    elif isinstance(node, Range):
        for number in range(node.low, node.high + 1):
            yield {name: number}, number
    elif isinstance(node, Mapping):
        yield from combine([(key, f"{name}.{key}", value) for key, value in node.items()])
    elif is_steps(node):
        for choices, steps in combine([(str(i), f"{name}[{i}]", step) for i, step in enumerate(node)]):
            yield choices, list(steps.values())
    else:
        yield {}, node


def combine(nodes: Sequence[tuple[str, str, Any]]) -> Iterator[tuple[Choices, dict[str, Any]]]:
    """Every combination of keyed nodes, one at a time: a range may be too wide to be held."""
    if not nodes:
        yield {}, {}
        return
    (key, name, node), *rest = nodes
    for choices, value in expand(node, name):
        for others, values in combine(rest):
            yield {**choices, **others}, {key: value, **values}


def size_of(node: Any) -> int:
    """How many combinations `expand` goes through."""
    if isinstance(node, Choose):
        return sum(map(size_of, node.options))
    if isinstance(node, Range):
        return node.high - node.low + 1
    if isinstance(node, Mapping):
        return math.prod(map(size_of, node.values()))
    return math.prod(map(size_of, node)) if is_steps(node) else 1


def locate(node: Any, value: Any, name: str, choices: Choices) -> bool:
    """Whether a place may become a value; if so, `choices` takes what has to be chosen for it."""
    if isinstance(node, Choose):
        for index, (label, option) in enumerate(zip(node.labels, node.options, strict=True)):
            found: Choices = {}
            if locate(option, value, f"{name}[{index}]", found):
                choices.update({name: label, **found})
                return True
        return False
    if isinstance(node, Range):
        if not isinstance(value, int) or not node.low <= value <= node.high:
            return False
        choices[name] = value
        return True
    if is_steps(node):
        return len(node) == len(value) and all(
            locate(step, given, f"{name}[{index}]", choices)
            for index, (step, given) in enumerate(zip(node, value, strict=True))
        )
    if isinstance(node, Mapping) and "step" in node:
        return node["step"] == value["step"] and all(
            locate(node[key], value[key], f"{name}.{key}", choices) for key in node if key != "step"
        )
    if isinstance(node, Mapping):
        defaults = Blosc2().to_dict()
        return all(
            locate(node[key], value[key], f"{name}.{key}", choices) if key in node else value[key] == defaults[key]
            for key in value
        )
    return bool(node == value)
