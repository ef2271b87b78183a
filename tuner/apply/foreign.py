"""What a reader without any of our code gets out of a file, compared bit for bit with the original."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from tuner.apply.child import missing, plugin_environment
from tuner.apply.cut import Slab, slabs
from tuner.apply.prepare import Preparation, kept_of
from tuner.config import CODECS, chunk_grid
from tuner.errors import InputError, VerificationError
from tuner.stack import Stack

_READER = Path(__file__).with_name("foreign_reader.py")

#: Bytes read at once, so that small frames are not asked for one by one; a larger chunk is read whole.
_SLAB_NBYTES = 16 << 20


def verify_written(
    stack: Stack,
    written: str | os.PathLike[str],
    dataset: str | None = None,
    preparation: Preparation | None = None,
) -> dict[str, Any]:
    """Compare every frame of a stack, bit for bit (payloads of NaN too), with what a foreign process reads.

    Parameters
    ----------
    stack : Stack
        The original.
    written : path
    dataset : str, optional
        Path in `written`; the default is the dataset that was written with a profile.
    preparation : Preparation, optional
        What was done to the frames before they were written: what it makes of them now is compared.

    Returns
    -------
    dict
        `dataset`, `frames`, `nbytes` compared, and `versions` of the reader.

    Raises
    ------
    InputError
        No such file, no such dataset in it, or a plug-in that is not installed.
    VerificationError
        Naming the first frame that differs or cannot be read.
    """
    place = os.fspath(written)
    if not Path(written).is_file():
        raise InputError(f"{place}: no such file")
    # Into a file, as libraries may complain of every chunk: a pipe that nobody empties would stop the reader.
    with tempfile.TemporaryFile() as complaints, _Reader(place, dataset, complaints) as reader:
        found = reader.answer()
        if "error" in found:
            raise InputError(f"{place}: {found['error']}")
        place = f"{place}: {found['dataset']}"
        if reason := next((missing(name) for name, number in CODECS.items() if number == found["codec"]), None):
            raise InputError(f"{place}: {reason}")
        shape = tuple(found["shape"])
        lead = len(shape) - stack.frame_ndim
        if found["dtype"] != stack.dtype.name:
            raise VerificationError(f"{place}: must have dtype {stack.dtype} as {stack.name}, got {found['dtype']}")
        if lead < 0 or shape[lead:] != stack.frame_shape or math.prod(shape[:lead]) != len(stack):
            raise VerificationError(f"{place}: must have shape {stack.shape} as {stack.name}, got {shape}")
        frames = math.prod(found["chunks"][:lead]) if found["chunks"] else 1
        frames = max(frames, frames * (_SLAB_NBYTES // (frames * stack.frame_nbytes)))
        for slab in slabs(shape[:lead], chunk_grid(shape, stack.frame_ndim, (frames, *stack.frame_shape))[:lead]):
            _compare(stack, slab, reader, place, preparation)
    return {
        "dataset": found["dataset"],
        "frames": len(stack),
        "nbytes": stack.nbytes,
        "versions": found["versions"],
    }


def _compare(stack: Stack, slab: Slab, reader: _Reader, place: str, preparation: Preparation | None) -> None:
    reader.ask(slab, each=False)
    frames = stack.read(slab.start, slab.stop)  # while the reader reads its own
    if preparation is not None:
        frames = preparation(frames, kept_of(stack, slab.start, slab.stop))
    digest = _digest(frames)
    if reader.answer(slab) == [digest]:
        return
    reader.ask(slab, each=True)
    for index, theirs in enumerate(reader.answer(slab)):
        if theirs is None:
            raise VerificationError(f"{place}: frame {slab.start + index} cannot be read")
        if theirs != _digest(frames[index]):
            made = " as the profile's steps make it" if preparation is not None and preparation.steps else ""
            raise VerificationError(f"{place}: frame {slab.start + index} differs from that of {stack.name}{made}")
    raise VerificationError(f"{place}: frames {slab.start} to {slab.stop - 1} read differently each time")


def _digest(frames: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(frames, frames.dtype.newbyteorder("<")).data).hexdigest()


class _Reader:
    """The foreign process; its death while it reads is a failure of what was written."""

    def __init__(self, path: str, dataset: str | None, complaints: IO[bytes]) -> None:
        self.path = path
        self._complaints = complaints
        # Isolated: neither our package nor the user's own is on its path.
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(_READER), path, dataset or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env=plugin_environment(),
        )

    def ask(self, slab: Slab, each: bool) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([slab.corner, slab.extent, each]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` says why

    def answer(self, slab: Slab | None = None) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line.endswith("\n"):
            return json.loads(line)
        self.process.communicate()
        code = self.process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        where = "while opening it" if slab is None else f"on frames {slab.start} to {slab.stop - 1}"
        self._complaints.seek(0)
        last = self._complaints.read().decode(errors="replace").strip().rsplit("\n", 1)[-1]
        raise VerificationError(f"{self.path}: the reader {how} {where}{': ' + last if last else ''}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()
