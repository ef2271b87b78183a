"""The encoder of a profile's chunks, whether its codec is c-blosc2's or a plug-in that needs its own process."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tuner.apply.encode import Encoder
from tuner.config import PLUGINS, Blosc2, Config
from tuner.errors import CodecError, InputError


class ChunkEncoder(Protocol):
    """Encodes chunks of one shape and dtype."""

    chunk_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def filter_values(self) -> tuple[int, ...]:
        """What the HDF5 filter is declared with."""
        ...

    def encode(self, chunk: NDArray[Any]) -> bytes:
        """The Blosc2 frame of a C-contiguous array of `chunk_shape` and `dtype`."""
        ...

    def close(self) -> None:
        """Let go of a process that it may have."""
        ...


def open_encoder(config: Config, fallback: Blosc2, dtype: np.dtype[Any]) -> ChunkEncoder:
    """The encoder of a resolved configuration.

    Raises
    ------
    InputError
        Where the codec is a plug-in that does not work here.
    """
    if config.blosc2.codec not in PLUGINS:
        return Encoder(config.blosc2, config.chunks, dtype)
    return PluginEncoder(config, fallback, dtype)


class PluginEncoder:
    """Encodes in a child process, one chunk at a time; what the plug-in refuses or fails on is left to `fallback`.

    Every frame describes itself, so readers do not notice the change.
    """

    def __init__(self, config: Config, fallback: Blosc2, dtype: np.dtype[Any]) -> None:
        from tuner.apply.child import PluginChild, probe

        why_not = probe(config.blosc2.codec)
        if why_not is not None:
            raise InputError(f"codec {config.blosc2.codec} must work here: {why_not}")
        if fallback.codec in PLUGINS:
            fallback = Blosc2()
        resolved = Config(config.chunks, fallback).resolve(config.chunks[1:], dtype)
        self._fallback = Encoder(resolved.blosc2, config.chunks, dtype)
        self._config = config
        self._child = PluginChild()
        self.chunk_shape = config.chunks
        self.dtype = dtype

    @property
    def filter_values(self) -> tuple[int, ...]:
        """What the HDF5 filter is declared with: the fallback, which every build of the filter knows."""
        return self._fallback.filter_values

    def encode(self, chunk: NDArray[Any]) -> bytes:
        """The Blosc2 frame of a C-contiguous array of `chunk_shape` and `dtype`."""
        try:
            return self._child.encode(self._config, chunk)
        except CodecError:
            return self._fallback.encode(chunk)

    def close(self) -> None:
        """End the child."""
        self._child.close()
