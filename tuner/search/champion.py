"""The champion: the surrogate that searches ask; the log that it learned from is kept, and rebuilds it."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import sklearn

import tuner
from tuner.errors import InputError, TunerError, TunerWarning
from tuner.evaluation import Evaluation, Log, latest_logs, read_log
from tuner.search import surrogate as definition
from tuner.search.model_cache import cached
from tuner.search.score import widening
from tuner.search.sift import sift
from tuner.search.surrogate import Surrogate, is_usable
from tuner.search.verdict import SHIPPED, champion_log, folder

_DIGEST = re.compile(r"[0-9a-f]{64}")


def load_surrogate(notify: Callable[[str], object] = lambda _: None) -> Surrogate | None:
    """The champion, from its cache or fitted anew; None where there is nothing to learn from.

    Neither a broken cache nor a lost log raises: the model is rebuilt, and where the promoted log is lost, the shipped
    one is learned from.

    Parameters
    ----------
    notify : callable
        Called with a line where fitting takes some seconds, or something is lost.
    """
    champion = champion_log()
    for name in dict.fromkeys((champion, SHIPPED)):
        try:
            return fitted(name, notify)
        except (InputError, OSError) as error:
            if name != SHIPPED:
                notify(f"the promoted surrogate cannot be rebuilt, the shipped one serves: {error}")
    return None


def fitted(name: str, notify: Callable[[str], object] = lambda _: None) -> Surrogate:
    """The calibrated surrogate of a log by its name: `SHIPPED`, or the digest of a kept one.

    Raises
    ------
    InputError
        Where the log is too small or lost.
    """

    def make() -> Surrogate:
        evaluations = named_log(name)
        notify(f"training the surrogate on {len(evaluations)} evaluations: takes some seconds, once")
        usable = [e for e in evaluations if is_usable(e)]
        return Surrogate.fit_usable(usable).calibrated(widening(usable))

    # Each user of a shared folder has a cache, as none may load what another wrote.
    place = folder() / "cache" / str(os.getuid())
    return cached(place, f"{_digest(name)[:24]}-{_made_by()[:24]}.model", make)


def shipped_log() -> list[Evaluation]:
    """The evaluations that come with the package, with the baselines; there may be none."""
    return list(read_log(_shipped()))


def training_log(paths: Sequence[str | os.PathLike[str]]) -> list[Evaluation]:
    """What of some logs, files or folders, can be learned from.

    Raises
    ------
    InputError
        Where there is no such file or folder.
    """
    return sift(read_logs(paths)).evaluations


def read_logs(
    paths: Sequence[str | os.PathLike[str]], notify: Callable[[str], object] = lambda _: None
) -> Iterator[Evaluation]:
    """The evaluations of the latest of some logs, files or folders, one by one; what may not be read is warned of.

    Parameters
    ----------
    paths : sequence of path
    notify : callable
        Called with a line where older logs, or lines that are no evaluations, are passed over.

    Raises
    ------
    InputError
        At once, where there is no such file or folder; at the end, where there are lines and none is an evaluation.
    """
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if not os.access(path, os.R_OK):
            raise InputError(f"{path}: must be readable")
    files, older = latest_logs(map(Path, paths))
    if older:
        notify(f"{older} logs are too old to be read, the latest {len(files)} are")
    closed = [file for file in files if not os.access(file, os.R_OK)]
    if closed:
        text = f"{closed[0]}: must be readable; {len(closed)} such logs are not learned from"
        warnings.warn(text, TunerWarning, stacklevel=2)
    return _evaluations(files, notify)


def _evaluations(logs: Iterable[Path], notify: Callable[[str], object]) -> Iterator[Evaluation]:
    first, count, known = "", 0, 0

    def skipped(place: str, wrong: str) -> None:
        nonlocal first, count
        first, count = first or f"{place}: {wrong}", count + 1

    for path in logs:
        for evaluation in read_log(path, skipped=skipped):
            known += 1
            yield evaluation
    if count and not known:
        raise InputError(f"{first}; none of {count} lines is an evaluation that this version knows")
    if count:
        notify(f"{first}; {count} such lines are passed over, torn or of another version")


def named_log(name: str) -> list[Evaluation]:
    """The evaluations that a champion learns from.

    Raises
    ------
    InputError
        Where a kept log is lost, or not what it was.
    """
    if name == SHIPPED:
        return shipped_log()
    path = _kept(name)
    try:
        with gzip.open(path) as lines:
            right = hashlib.file_digest(lines, "sha256").hexdigest() == name
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not right:
        raise InputError(f"{path}: must be the log that was promoted, got another one")
    return list(read_log(path))


def keep_log(evaluations: Iterable[Evaluation]) -> str:
    """Keep a log, whatever becomes of the files that it was read from; its name is the digest of its lines.

    Raises
    ------
    TunerError
        Where it cannot be written.
    """
    place = folder() / "logs"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, prefix=".") as temporary:
            with Log(Path(temporary) / "log.jsonl") as log:
                for evaluation in evaluations:
                    log.append(evaluation)
            lines = log.path.read_bytes() if log.path.exists() else b""
            name = hashlib.sha256(lines).hexdigest()
            packed = Path(temporary) / "log.jsonl.gz"
            packed.write_bytes(gzip.compress(lines, 6, mtime=0))
            packed.replace(_kept(name))
    except OSError as error:
        raise TunerError(f"{place}: the log cannot be kept: {error.strerror}") from None
    return name


def _shipped() -> Path:
    return Path(str(files("tuner.evaluations")))


def _kept(name: str) -> Path:
    if not _DIGEST.fullmatch(name):
        raise InputError(f"champion must be {SHIPPED} or the digest of a log, got {name!r}")
    return folder() / "logs" / f"{name}.jsonl.gz"


def _digest(name: str) -> str:
    """Of a log's content; that of a kept log is its name."""
    if name != SHIPPED:
        if not _kept(name).exists():
            raise InputError(f"{_kept(name)}: no such file")
        return name
    digest = hashlib.sha256()
    for path in sorted(_shipped().glob("*.jsonl*")):
        with contextlib.suppress(OSError):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _made_by() -> str:
    """Digest of all besides the log that a model depends on: versions, and how data becomes features."""
    versions = (sys.version, tuner.__version__, np.__version__, sklearn.__version__)
    source = Path(definition.__file__).read_bytes()
    return hashlib.sha256(repr(versions).encode() + source).hexdigest()
