"""Models that this installation fitted, in files that nobody else can have written."""

from __future__ import annotations

import hmac
import os
import pickle
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Model = TypeVar("Model")

#: So many models are kept, those used last, and a temporary file that a kill left is kept for so many seconds.
_KEPT, _PATIENCE = 3, 3600.0
#: Bytes of the key, and of the signature that a file begins with.
_KEY_NBYTES = _SIGNATURE_NBYTES = 32


def cached(folder: Path, name: str, make: Callable[[], Model]) -> Model:
    """What `make` returns, or what it returned when it was last called for that name.

    A file is unpickled only if it bears the signature (HMAC-SHA256 over name and content) of the key that this
    installation drew at random: one that is cut, changed, renamed, or from elsewhere is made anew. Where the folder
    cannot be written to, nothing is kept.

    Parameters
    ----------
    folder : path
        Holds the key, and the models in `models`.
    name : str
        Tells apart all that would make the model another one: what it learned from, and the versions of libraries.
    make : callable
        Its errors are passed on.
    """
    path = folder / "models" / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        key = _key(folder / "key")
    except OSError:
        return make()
    model: Model | None = _load(path, key)
    if model is None:
        model = make()
        _save(path, key, model)
    return model


def _key(path: Path) -> bytes:
    """The installation's key, drawn where there is none that is its user's alone."""
    for _ in range(2):
        try:
            status = path.stat()
            key = path.read_bytes()
        except FileNotFoundError:
            key = b""
        if len(key) == _KEY_NBYTES and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return key
        # Of two processes that draw one at once the later wins; what the other signs is made anew once more.
        _replace(path, [secrets.token_bytes(_KEY_NBYTES)])
    raise PermissionError(f"{path} cannot be made this user's alone")


def _load(path: Path, key: bytes) -> Any:
    try:
        with path.open("rb") as file:
            signature, content = file.read(_SIGNATURE_NBYTES), file.read()
    except OSError:
        return None
    if not hmac.compare_digest(signature, _signature(path.name, content, key)):
        return None
    try:
        model = pickle.loads(content)
        os.utime(path)
    except Exception:  # ours, but not for the libraries of today: whatever they raise, it is made anew
        return None
    return model


def _save(path: Path, key: bytes, model: object) -> None:
    content = pickle.dumps(model, pickle.HIGHEST_PROTOCOL)
    try:
        _replace(path, [_signature(path.name, content, key), content])
        _prune(path.parent)
    except OSError:
        return


def _signature(name: str, content: bytes, key: bytes) -> bytes:
    signed = hmac.new(key, name.encode() + b"\0", "sha256")
    signed.update(content)
    return signed.digest()


def _replace(path: Path, parts: list[bytes]) -> None:
    """Write a private file whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _prune(folder: Path) -> None:
    """Remove models that were not used for the longest, and what kills left."""
    now = time.time()
    used = {path: path.stat().st_mtime for path in folder.iterdir()}
    models = sorted((path for path in used if path.suffix != ".tmp"), key=used.__getitem__, reverse=True)
    left = [path for path in used if path.suffix == ".tmp" and now - used[path] > _PATIENCE]
    for path in (*models[_KEPT:], *left):
        path.unlink(missing_ok=True)
