"""Writers that nobody calls: flushed while no frames come, closed when the interpreter exits, left to who forked."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
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

    def leave(self) -> None:
        """Leave the file to the process that this one was forked from."""
        ...


#: How long who collects a forgotten writer waits for it to close, in seconds.
_PATIENCE = 0.5

#: Writers that are open, to be closed when the interpreter exits.
OPEN: weakref.WeakSet[Open] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for writer in list(OPEN):
        close_quietly(writer)


def _leave_all() -> None:
    for writer in list(OPEN):
        writer.leave()
    OPEN.clear()


os.register_at_fork(after_in_child=_leave_all)


def close_quietly(writer: Open) -> None:
    """Close a writer where nobody is there to be told by an exception."""
    try:
        writer.close()
    except TunerError as error:
        _log.error("%s", error)


def close_forgotten(writer: Open) -> None:
    """Close a writer that is being collected; by whom cannot be said.

    A collection may come in any thread, in the middle of a call to h5py or in a thread of the writer itself: who holds
    what closing needs, goes on after a while, and the file is closed then.
    """
    closing = threading.Thread(target=close_quietly, args=(writer,), name="tuner-close", daemon=False)
    try:
        closing.start()
    except RuntimeError:  # the interpreter is going down and starts no thread
        close_quietly(writer)
    else:
        closing.join(_PATIENCE)


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
