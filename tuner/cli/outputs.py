"""What is written to, checked before the work whose result it is to hold."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tuner.document import MAX_BYTES, load_yaml
from tuner.errors import InputError, TunerError


def check_output(output: str, inputs: Sequence[str]) -> None:
    """Raise where a file cannot be written, or is an input."""
    path = Path(output)
    if not path.parent.is_dir():
        raise InputError(f"{path}: its folder must exist, got none at {path.parent}")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: must be a file, got a {'folder' if path.is_dir() else 'device'}")
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(MAX_BYTES))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise TunerError(f"{path}: must have room for it, got {error.strerror}") from None
        raise InputError(f"{path}: its folder must be writable, got {error.strerror}") from None
    check_other(path, inputs)


def check_other(output: Path, inputs: Sequence[str]) -> None:
    """Raise where a file is an input."""
    for name in inputs:
        if output.exists() and Path(name).exists() and output.samefile(name):
            raise InputError(f"{output}: is an input; it must be another file")


def check_document(output: str, inputs: Sequence[str]) -> None:
    """Likewise; what is no document was named by mistake, and may be a scan."""
    check_output(output, inputs)
    if (path := Path(output)).exists() and path.stat().st_size:
        try:
            load_yaml(path)
        except InputError:
            text = "exists already and is not replaced, as it is no profile or report"
            raise InputError(f"{path}: {text}") from None


def check_folder(target: str) -> None:
    """Raise where a target is no folder."""
    if not Path(target).is_dir():
        raise InputError(f"--target must be an existing folder, got {target!r}")
