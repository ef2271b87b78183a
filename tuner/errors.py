"""What can go wrong, in five words; each knows the exit code that the command line answers with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class TunerError(Exception):
    """Something outside of the user's input failed, such as a full disk."""

    exit_code = 1


class InputError(TunerError, ValueError):
    """An input cannot be used; the message is one line: where, what, must be, got."""

    exit_code = 2


class UnsatisfiableError(TunerError):
    """No measured configuration meets the requirements; the message names the nearest and what it misses."""

    exit_code = 3


class VerificationError(TunerError):
    """What was written does not decode to what was promised."""

    exit_code = 4

    def __init__(self, message: str, found: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.found = dict(found or {})
        """What was measured nevertheless."""


class CodecError(TunerError):
    """A configuration failed to encode, to decode, or to return the same pixels."""


class TunerWarning(UserWarning):
    """Something that the user should know of, and that stops nothing."""


class OverloadError(TunerError):
    """Frames came faster than they are written, and the writer was told to refuse them."""
