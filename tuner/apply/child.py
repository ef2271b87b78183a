"""Codec plug-ins in a child process: they may abort, hang or eat memory, and we may not.

The parent sends a request, a JSON header and the bytes it is about, and reads an answer of the same form. Time and
memory limits are the kernel's, so they hold whatever the codec does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.apply.codec import blosc2
from tuner.apply.encode import cparams
from tuner.config import CODECS, PLUGINS, Blosc2, Config
from tuner.errors import CodecError

#: Seconds that the child has to import what it needs; apart from the codec's own time.
_START_S = 60.0

#: Seconds that the child outlives its time limit if its parent is no longer there to stop it.
_ORPHAN_S = 5.0


class PluginChild:
    """One process that runs codecs for this one; a call after a crash or a hang starts it anew.

    Frames are b2nd, as plug-ins need the shape, and each image is a block. Safe to share between threads, one call
    at a time.

    Parameters
    ----------
    timeout_s : float
        What a call may take, in seconds.
    memory_bytes : int
        Address space of the child.
    command : tuple of str
        What to run; for tests. By default without the modules of the current folder, which are not ours to run.

    Examples
    --------
    >>> chunk = np.arange(3000, dtype="uint16").reshape(1, 50, 60)
    >>> config = Config(blosc2=Blosc2("zstd")).resolve((50, 60), chunk.dtype)
    >>> with PluginChild() as child:
    ...     frame = child.encode(config, chunk)
    ...     bool((child.decode(frame, chunk.shape, chunk.dtype) == chunk).all())
    True
    """

    def __init__(
        self,
        timeout_s: float = 30.0,
        memory_bytes: int = 4 << 30,
        command: tuple[str, ...] = (sys.executable, "-P", "-m", "tuner.apply.child"),
    ) -> None:
        self.timeout_s = timeout_s
        self.memory_bytes = memory_bytes
        self.command = command
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> PluginChild:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def encode(self, config: Config, chunk: NDArray[Any]) -> bytes:
        """The b2nd frame of a chunk.

        Parameters
        ----------
        config : Config
            Resolved. Its blocksize is left aside, as an image is a block; its typesize must be the dtype's.
        chunk : ndarray

        Raises
        ------
        CodecError
            Where the codec refuses the chunk, crashes, or exceeds a limit.
        """
        return self.timed_encode(config, chunk)[0]

    def decode(self, frame: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The chunk that a frame holds. That it is the one encoded is for the caller to compare.

        Raises
        ------
        CodecError
            Where the frame does not decode to this shape and dtype, the codec crashes, or exceeds a limit.
        """
        return self.timed_decode(frame, shape, dtype)[0]

    def timed_encode(self, config: Config, chunk: NDArray[Any], timeout_s: float = math.inf) -> tuple[bytes, float]:
        """`encode`, and the seconds that it took in the child, without those to load the codec or to send data.

        `timeout_s` may lower the limit for this call.
        """
        request = {"blosc2": config.blosc2.to_dict(), "shape": chunk.shape, "dtype": chunk.dtype.str}
        # A view of bytes, as not every dtype has a buffer format.
        data = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
        return self._call("encode", config.blosc2.codec, request, data, timeout_s)

    def timed_decode(
        self, frame: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], timeout_s: float = math.inf
    ) -> tuple[NDArray[Any], float]:
        """`decode`, and the seconds that it took in the child, without those to load the codec or to send data.

        `timeout_s` may lower the limit for this call.
        """
        codec = frame_codec(frame)
        request = {"shape": shape, "dtype": dtype.str}
        data, seconds = self._call("decode", codec, request, memoryview(frame), timeout_s)
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise CodecError(f"codec {codec} returned {len(data)} bytes for a chunk of shape {shape}, {dtype}")
        return np.frombuffer(bytearray(data), dtype).reshape(shape), seconds

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._stop()

    def _call(
        self, operation: str, codec: str, request: Mapping[str, Any], data: memoryview, timeout_s: float
    ) -> tuple[bytes, float]:
        timeout_s = min(timeout_s, self.timeout_s)
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            try:
                head, answer = self._exchange({"operation": operation, "codec": codec, **request}, data, timeout_s)
            except TimeoutError:
                self._stop()
                raise CodecError(f"codec {codec} took more than {timeout_s:g} s to {operation}") from None
            except (EOFError, OSError, ValueError):
                raise CodecError(f"codec {codec} {_how_it_ended(self._stop())}") from None
            except BaseException:  # An interrupted call must not leave its answer to the next.
                self._stop()
                raise
        if "error" in head:
            raise CodecError(f"codec {codec} cannot {operation}: {head['error']}")
        return answer, float(head["seconds"])

    def _exchange(self, request: Mapping[str, Any], data: memoryview, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        assert self._connection is not None
        self._connection.send_bytes(json.dumps(request).encode())
        self._connection.send_bytes(data)
        if not self._connection.poll(timeout_s):
            raise TimeoutError
        return json.loads(self._connection.recv_bytes()), self._connection.recv_bytes()

    def _start(self) -> None:
        self._stop()
        ours, theirs = socket.socketpair()
        with theirs:
            limits = (str(theirs.fileno()), str(self.memory_bytes), str(self.timeout_s))
            self._process = subprocess.Popen(
                (*self.command, *limits),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=plugin_environment(),
                start_new_session=True,  # Ctrl-C is for us, and we decide what becomes of the child.
            )
        self._connection = Connection(ours.detach())
        try:
            if not self._connection.poll(_START_S):
                raise TimeoutError
            self._connection.recv_bytes()
        except (EOFError, OSError):
            raise CodecError(f"the process that runs codecs did not start: it {_how_it_ended(self._stop())}") from None
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> int:
        """End the child if there is one, and return how it ended: an exit status, or a signal below 0."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is None:
            return 0
        # Without a pipe an idle child ends by itself, and one that crashed is on its way.
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=0.5)
        process.kill()
        return process.wait()


def probe(codec: str) -> str | None:
    """Why a plug-in cannot be used here, in one line; None where it round-trips small images.

    Parameters
    ----------
    codec : str
        One of `tuner.config.PLUGINS`.
    """
    if reason := missing(codec):
        return reason
    package = PLUGINS[codec]
    ramp = np.add.outer(np.arange(48), 3 * np.arange(64))[None]
    try:
        with PluginChild() as child:
            for dtype in (np.dtype("uint16"), np.dtype("int16")):
                image = (ramp - 100 * (dtype.kind == "i")).astype(dtype)
                config = Config(blosc2=Blosc2(codec, filters=())).resolve(image.shape[1:], dtype)
                if not np.array_equal(child.decode(child.encode(config, image), image.shape, dtype), image):
                    return f"{package}: codec {codec} does not return the {dtype} pixels that it was given"
    except CodecError as error:
        return f"{package}: {error}"
    return None


def missing(codec: str) -> str | None:
    """Which package is not installed, in one line, where a codec is a plug-in; None where nothing is missing."""
    package = PLUGINS.get(codec)
    if package is None or importlib.util.find_spec(_module(package)) is not None:
        return None
    return f"{package} is not installed: pip install tuner[plugins]"


def frame_codec(frame: bytes) -> str:
    """Name of the codec in the header of a frame; nothing is decoded.

    Raises
    ------
    CodecError
        Where these bytes are no Blosc2 frame.
    """
    # https://github.com/Blosc/c-blosc2/blob/main/README_CFRAME_FORMAT.rst
    if len(frame) < 97 or frame[2:10] != b"b2frame\0":
        raise CodecError("not a Blosc2 frame")
    return next((name for name, number in CODECS.items() if number == frame[77]), str(frame[77]))


def plugin_environment() -> dict[str, str]:
    """The environment for a process that decodes plug-ins' frames: ours, and the folders of their libraries.

    Without it c-blosc2 asks whatever `python` comes first on PATH. The dynamic loader reads it as a process starts.
    """
    specs = [importlib.util.find_spec(_module(package)) for package in PLUGINS.values()]
    folders = [str(Path(spec.origin).parent) for spec in specs if spec is not None and spec.origin]
    known = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join([*folders, *([known] if known else [])])}


def _module(package: str) -> str:
    return package.replace("-", "_")


def _how_it_ended(status: int) -> str:
    return f"aborted the process (signal {-status})" if status < 0 else f"ended the process (exit status {status})"


# What runs in the child -----------------------------------------------------------------------------------------------

_loaded: set[str] = set()


def _load(codec: str) -> None:
    """Have c-blosc2 load a plug-in, so that no measured call pays for it."""
    if codec in PLUGINS and codec not in _loaded:
        ramp = np.arange(1024, dtype=np.uint16).reshape(32, 32)
        blosc2.asarray(ramp, blocks=ramp.shape, cparams=cparams(Blosc2(codec, filters=(), typesize=2))).to_cframe()
        _loaded.add(codec)


def _encode(request: Mapping[str, Any], data: bytes) -> tuple[bytes, float]:
    config = Blosc2.from_dict(request["blosc2"])
    chunk = np.frombuffer(data, request["dtype"]).reshape(request["shape"])
    if config.typesize != chunk.itemsize:
        raise CodecError(f"typesize must be that of {chunk.dtype}, got {config.typesize}")
    _load(config.codec)
    blocks = (1,) * (chunk.ndim - 2) + chunk.shape[-2:]
    parameters = {**cparams(config), "blocksize": 0}
    start = time.perf_counter()
    frame = blosc2.asarray(chunk, chunks=chunk.shape, blocks=blocks, cparams=parameters).to_cframe()
    return frame, time.perf_counter() - start


def _decode(request: Mapping[str, Any], data: bytes) -> tuple[bytes, float]:
    _load(request["codec"])
    array = blosc2.ndarray_from_cframe(data)
    if array.shape != tuple(request["shape"]) or array.dtype != np.dtype(request["dtype"]):
        raise CodecError(f"the frame must hold {request['shape']} {request['dtype']}, got {array.shape} {array.dtype}")
    start = time.perf_counter()
    chunk = array[()]
    return chunk.tobytes(), time.perf_counter() - start


Operation = Callable[[Mapping[str, Any], bytes], tuple[bytes, float]]


def serve(arguments: list[str], operations: Mapping[str, Operation]) -> None:
    """Answer requests until the parent is gone.

    Parameters
    ----------
    arguments : list of str
        Descriptor of the pipe, bytes of memory, seconds for a request.
    operations : mapping
        What may be asked for: from request and its bytes to the answer's bytes and the seconds they took.
    """
    descriptor, memory_bytes, timeout_s = int(arguments[0]), int(arguments[1]), float(arguments[2])
    os.set_inheritable(descriptor, False)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Connection(descriptor) as connection:
        connection.send_bytes(b"ready")
        while True:
            try:
                request, data = json.loads(connection.recv_bytes()), connection.recv_bytes()
            except (EOFError, ConnectionResetError):
                return
            # The parent stops us earlier, if it still lives.
            signal.setitimer(signal.ITIMER_REAL, timeout_s + _ORPHAN_S)
            head: dict[str, Any] = {}
            answer = b""
            try:
                answer, head["seconds"] = operations[request["operation"]](request, data)
            except MemoryError:
                head["error"] = f"it needs more than {memory_bytes >> 20} MiB of memory"
            except Exception as error:
                head["error"] = " ".join(str(error).split()) or type(error).__name__
            try:
                connection.send_bytes(json.dumps(head).encode())
                connection.send_bytes(answer)
            except BrokenPipeError:
                return
            signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    serve(sys.argv[1:], {"encode": _encode, "decode": _decode})
