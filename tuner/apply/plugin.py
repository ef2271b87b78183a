"""The encoder of a profile's chunks, whether its codec is c-blosc2's or a plug-in that needs its own process."""

from __future__ import annotations

import math
import threading
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tuner.apply.bitshuffle import BitshuffleEncoder
from tuner.apply.checksum import Encoded
from tuner.apply.child import PluginChild, frame_codec, probe
from tuner.apply.encode import Encoder, filter_values
from tuner.config import PLUGINS, Blosc2, Config
from tuner.container import BLOSC2, Container
from tuner.errors import CodecError, InputError


class ChunkEncoder(Protocol):
    """Encodes chunks of one shape and dtype."""

    chunk_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    container: Container

    @property
    def filter_values(self) -> tuple[int, ...]:
        """What the HDF5 filter is declared with."""
        ...

    def encode(self, chunk: NDArray[Any], out: NDArray[np.uint8] | None = None) -> Encoded:
        """The bytes that stand for a C-contiguous array of `chunk_shape` and `dtype`.

        They may be the beginning of `out`, where that is given: memory for the chunk and `ROOM_NBYTES` more.
        """
        ...

    def decode(self, frame: Encoded, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The chunk that `encode` made a frame of, into `out` if given."""
        ...

    def close(self) -> None:
        """Let go of a process that it may have."""
        ...


def open_encoder(
    config: Config,
    fallback: Blosc2,
    dtype: np.dtype[Any],
    chunk_shape: tuple[int, ...] = (),
    container: Container = BLOSC2,
) -> ChunkEncoder:
    """The encoder of a resolved configuration, for writing.

    Parameters
    ----------
    config : Config
        Resolved.
    fallback : Blosc2
        For what a plug-in fails on.
    dtype : numpy.dtype
    chunk_shape : tuple of int, optional
        That of the dataset, if it has other axes than `config`.
    container : Container
        What the chunks are stored in; another than Blosc2 takes their shape from `config`, and nothing else.

    Raises
    ------
    InputError
        Where the codec is a plug-in that does not work here, or the container's library is not there.
    """
    if container is not BLOSC2:
        return BitshuffleEncoder(container, config.chunks, dtype)
    codec = config.blosc2.codec
    if codec not in PLUGINS:
        return Encoder(config.blosc2, config.chunks, dtype)
    if reason := _why_not(codec):
        raise InputError(f"codec {codec} must work here: {reason}")
    if fallback.codec in PLUGINS:
        fallback = Blosc2()
    resolved = Config(config.chunks, fallback).resolve(config.chunks[1:], dtype)
    plugin = PluginEncoder(config, dtype, PluginChild(), shape=chunk_shape)
    return FallbackEncoder(plugin, Encoder(resolved.blosc2, config.chunks, dtype))


_why_not = cache(probe)


def lossless_encoders(fallback: Blosc2, config: Config, dtype: np.dtype[Any]) -> list[ChunkEncoder]:
    """What a chunk is written with where the profile's encoder fails: its `fallback`, and no compression at all."""
    plain = Blosc2(clevel=0, filters=())
    if fallback.codec in PLUGINS or (
        fallback.typesize and math.prod(config.chunks) * dtype.itemsize % fallback.typesize
    ):
        fallback = plain
    encoders: list[ChunkEncoder] = []
    for blosc2 in dict.fromkeys((fallback, plain)):
        resolved = Config(config.chunks, blosc2).resolve(config.chunks[1:], dtype)
        encoders.append(Encoder(resolved.blosc2, config.chunks, dtype))
    return encoders


class PluginEncoder:
    """Encodes in a child process, one chunk at a time; safe to share between threads.

    Parameters
    ----------
    config : Config
        Resolved.
    dtype : numpy.dtype
    child : PluginChild
    timeout_s : float
        What a call may take, in seconds, if that is less than the child's own limit.
    shape : tuple of int, optional
        The frame's, if not `chunk_shape`: the HDF5 filter refuses a frame whose axes are not those of the dataset.
    """

    container = BLOSC2

    def __init__(
        self,
        config: Config,
        dtype: np.dtype[Any],
        child: PluginChild,
        timeout_s: float = math.inf,
        shape: tuple[int, ...] = (),
    ) -> None:
        self.config = config
        self.chunk_shape = config.chunks
        self.dtype = dtype
        self._child = child
        self._timeout_s = timeout_s
        self._shape = shape or config.chunks

    @property
    def filter_values(self) -> tuple[int, ...]:
        """What the HDF5 filter is declared with."""
        return filter_values(self.config.blosc2, math.prod(self.chunk_shape) * self.dtype.itemsize)

    def encode(self, chunk: NDArray[Any], out: NDArray[np.uint8] | None = None) -> bytes:
        """The Blosc2 frame of an array of `chunk_shape` and `dtype`.

        Raises
        ------
        CodecError
            Where the plug-in refuses the chunk, crashes, or exceeds a limit.
        """
        return self.timed_encode(chunk)[0]

    def decode(self, frame: Encoded, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The chunk that a frame holds, into `out` if given. That it is the one encoded is for the caller to compare.

        Raises
        ------
        CodecError
            Where the frame does not decode to `chunk_shape` and `dtype`, the plug-in crashes, or exceeds a limit.
        """
        out = np.empty(self.chunk_shape, self.dtype) if out is None else out
        self.timed_decode(bytes(frame), out)
        return out

    def timed_encode(self, chunk: NDArray[Any]) -> tuple[bytes, float]:
        """`encode`, and the seconds that it took in the child."""
        return self._child.timed_encode(self.config, chunk.reshape(self._shape), self._timeout_s)

    def timed_decode(self, frame: bytes, out: NDArray[Any]) -> float:
        """`decode` into `out`; the seconds that it took in the child."""
        chunk, seconds = self._child.timed_decode(frame, self._shape, self.dtype, self._timeout_s)
        out[...] = chunk.reshape(self.chunk_shape)
        return seconds

    def close(self) -> None:
        """End the child."""
        self._child.close()


class FallbackEncoder:
    """Encodes with a plug-in what that returns as it was, and the rest with a codec of c-blosc2 itself.

    Every frame describes itself, so readers do not notice the change. Safe to share between threads.
    """

    container = BLOSC2

    def __init__(self, plugin: PluginEncoder, fallback: Encoder) -> None:
        self.chunk_shape = plugin.chunk_shape
        self.dtype = plugin.dtype
        self.fallbacks = 0
        """Chunks that the fallback encoded."""
        self._plugin = plugin
        self._fallback = fallback
        self._lock = threading.Lock()

    @property
    def filter_values(self) -> tuple[int, ...]:
        """What the HDF5 filter is declared with: the plug-in."""
        return self._plugin.filter_values

    def encode(self, chunk: NDArray[Any], out: NDArray[np.uint8] | None = None) -> Encoded:
        """The Blosc2 frame of a C-contiguous array of `chunk_shape` and `dtype`; a plug-in's is decoded and compared.

        Raises
        ------
        CodecError
            Where the fallback fails too.
        """
        try:
            frame = self._plugin.encode(chunk)
            if self._plugin.decode(frame).tobytes() == chunk.tobytes():
                return frame
        except CodecError:
            pass
        with self._lock:
            self.fallbacks += 1
        return self._fallback.encode(chunk, out)

    def decode(self, frame: Encoded, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The chunk that `encode` made a frame of, into `out` if given.

        Raises
        ------
        CodecError
            Where the bytes do not decode.
        """
        encoder = self._plugin if frame_codec(bytes(frame)) in PLUGINS else self._fallback
        return encoder.decode(frame, out)

    def close(self) -> None:
        """End the child."""
        self._plugin.close()
