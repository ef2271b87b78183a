"""What analyses are told and what they answer: parameters with what each may be, and figures with their unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from tuner.document import Number, check_bounds, check_list, check_str, join, kind_of, parse_size
from tuner.errors import InputError


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


class Checked:
    """Holds the fields to `valid`."""

    valid: ClassVar[Mapping[str, Valid]]

    def __post_init__(self) -> None:
        for key, valid in self.valid.items():
            object.__setattr__(self, key, valid.check(getattr(self, key), key))
