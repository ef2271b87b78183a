"""The file that is written: refused early, and under its final name only when it can be read."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tuner.errors import InputError


def check_target(path: Path, overwrite: bool) -> None:
    """Raise InputError where `path` cannot be created, or exists and may not be replaced."""
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: folder {folder} must exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: folder {folder} must be writable")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: must be a file, is a {'folder' if path.is_dir() else 'device'}")
    if not overwrite and os.path.lexists(path):
        raise InputError(f"{path}: exists already and is not overwritten unasked")


def temporary_name(path: Path, ending: str = "part") -> Path:
    """Where a file lives until it takes its name: hidden, in the same folder, of this process alone.

    By the ending `tuner recover` knows what is the part of a scan.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.{ending}")


def publish(temporary: Path, path: Path, overwrite: bool) -> None:
    """Give a file its final name in one step, which fails with InputError if the name was taken meanwhile."""
    if overwrite:
        temporary.replace(path)
        return
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise InputError(f"{path}: exists already and is not overwritten unasked") from None
    except OSError:  # a file system without hard links
        check_target(path, overwrite)
        temporary.rename(path)
    else:
        temporary.unlink()


def reason(error: BaseException) -> str:
    """What the system said, out of HDF5's report.

    >>> reason(OSError("Can't write chunk (errno = 28, error message = 'No space left on device', buf = 0x7f)"))
    'No space left on device'
    """
    said = re.search(r"error message = '([^']+)'", str(error))
    if said:
        return said[1]
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return " ".join(text.split())
