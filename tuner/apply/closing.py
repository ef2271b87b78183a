"""Writers that nobody calls: flushed while no frames come, closed when the interpreter exits."""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import weakref
from typing import Protocol

from tuner.errors import TunerError

_log = logging.getLogger(__name__)


class Open(Protocol):
    """A writer, as far as it matters here."""

    def flush(self) -> int:
        """Write what there is."""
        ...

    def close(self) -> None:
        """Write all and let go of it."""
        ...


#: Writers that are open, to be closed when the interpreter exits.
OPEN: weakref.WeakSet[Open] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for writer in list(OPEN):
        close_quietly(writer)


def close_quietly(writer: Open) -> None:
    """Close a writer where nobody is there to be told by an exception."""
    try:
        writer.close()
    except TunerError as error:
        _log.error("%s", error)


def flush_regularly(reference: weakref.ref[Open], seconds: float, ended: threading.Event) -> None:
    """Flush a writer every so many seconds until it has ended or is forgotten."""
    while not ended.wait(seconds):
        writer = reference()
        if writer is None:
            return
        # What fails here is raised by the next call, too.
        with contextlib.suppress(TunerError):
            writer.flush()
        del writer
