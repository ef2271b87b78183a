"""What an input that cannot be used is answered with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tuner.errors import InputError


def refusal(read: Callable[[], object], place: str) -> str:
    """The one line of text, beginning with the place, that reading a document is refused with."""
    with pytest.raises(InputError) as caught:
        read()
    message = str(caught.value)
    assert message.startswith(place)
    assert len(message.splitlines()) == 1
    assert len(message) < 400
    return message
