"""One chunk to the bytes that HDF5's bitshuffle filter decodes, and back."""

from __future__ import annotations

import ctypes
import math
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from tuner.container import Container
from tuner.errors import CodecError, InputError

#: In front of the blocks: bytes of the chunk, and of a block before compression; and in front of each its length.
HEADER = struct.Struct(">QI")
LENGTH = struct.Struct(">I")

#: How the filter calls its codecs.
_CODECS = {"bitshuffle": 2, "bitshuffle-zstd": 3}

#: The level that hdf5plugin takes by default.
_ZSTD_LEVEL = 3

#: Elements that are shuffled together; what is left over at the end of a chunk is stored as it is.
GROUP = 8


@dataclass(frozen=True, slots=True)
class Codec:
    """The functions of one codec, in the library that hdf5plugin carries."""

    bound: Callable[..., int]
    compress: Callable[..., int]
    decompress: Callable[..., int]
    block_size: Callable[[int], int]
    level: tuple[int, ...]


@cache
def library() -> ctypes.CDLL:
    """The code behind the filter: other threads run meanwhile, and nothing goes through HDF5.

    Raises
    ------
    InputError
        Where this hdf5plugin has no such library, or one without its functions.
    """
    try:
        (path,) = Path(hdf5plugin.PLUGIN_PATH).glob("libh5bshuf.*")
        found = ctypes.CDLL(str(path))
        for name in ("bshuf_compress_zstd", "bshuf_decompress_zstd", "bshuf_decompress_lz4", "LZ4_decompress_safe"):
            getattr(found, name)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"bitshuffle needs the library of hdf5plugin's wheels, got hdf5plugin {hdf5plugin.version}: {error}"
        ) from None
    return found


@cache
def codec(name: str) -> Codec:
    """The functions behind a container of bitshuffle.

    Raises
    ------
    InputError
        As by `library`.
    """
    kind = "zstd" if name == "bitshuffle-zstd" else "lz4"
    bound, compress, decompress, block_size = (
        getattr(library(), f"bshuf_{text}")
        for text in (f"compress_{kind}_bound", f"compress_{kind}", f"decompress_{kind}", "default_block_size")
    )
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    level = (_ZSTD_LEVEL,) if kind == "zstd" else ()
    bound.argtypes = [size] * 3
    compress.argtypes = [pointer, pointer, *[size] * 3, *[ctypes.c_int] * len(level)]
    decompress.argtypes = [pointer, pointer, *[size] * 3]
    block_size.argtypes = [size]
    for function in (bound, compress, decompress, block_size):
        function.restype = ctypes.c_int64
    return Codec(bound, compress, decompress, block_size, level)


class BitshuffleEncoder:
    """Encodes chunks of one shape and dtype as HDF5's filter 32008 does, byte for byte; safe to share between threads.

    ``decode(encode(chunk))`` is the chunk, bit for bit.

    Parameters
    ----------
    container : Container
        bitshuffle or bitshuffle-zstd.
    chunk_shape : tuple of int
    dtype : numpy.dtype

    Examples
    --------
    >>> from tuner.container import CONTAINERS
    >>> chunk = np.arange(2000, dtype="uint16").reshape(1, 40, 50)
    >>> encoder = BitshuffleEncoder(CONTAINERS["bitshuffle"], chunk.shape, chunk.dtype)
    >>> bool((encoder.decode(encoder.encode(chunk)) == chunk).all())
    True
    """

    def __init__(self, container: Container, chunk_shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.container = container
        self.chunk_shape = chunk_shape
        self.dtype = dtype
        self.nbytes = math.prod(chunk_shape) * dtype.itemsize
        self._codec = codec(container.name)
        self._size = math.prod(chunk_shape)
        self._block = self._codec.block_size(dtype.itemsize)
        self._header = HEADER.pack(self.nbytes, self._block * dtype.itemsize)
        self._bound = self._codec.bound(self._size, dtype.itemsize, self._block)
        self._thread = threading.local()

    @property
    def filter_values(self) -> tuple[int, ...]:
        """What the HDF5 filter is declared with: blocks, codec, level; it puts version and itemsize in front."""
        return (0, _CODECS[self.container.name], *self._codec.level)

    def encode(self, chunk: NDArray[Any], out: NDArray[np.uint8] | None = None) -> bytes:
        """What the filter makes of a C-contiguous array of `chunk_shape` and `dtype`.

        `out` is left alone: what cannot be compressed does not fit into it.
        """
        scratch = getattr(self._thread, "scratch", None)
        if scratch is None:
            scratch = self._thread.scratch = np.empty(len(self._header) + self._bound, np.uint8)
            scratch[: len(self._header)] = np.frombuffer(self._header, np.uint8)
        place = scratch.ctypes.data + len(self._header)
        codec = self._codec
        length = codec.compress(chunk.ctypes.data, place, self._size, self.dtype.itemsize, self._block, *codec.level)
        if length < 0:
            raise CodecError(f"{self.container.name}: cannot compress, error {length}")
        return scratch[: len(self._header) + length].tobytes()

    def decode(self, frame: bytes | memoryview, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The chunk that `encode` made `frame` of, into `out` if given.

        Raises
        ------
        CodecError
            Where the bytes do not decode.
        """
        self._check(frame)
        if out is None:
            out = np.empty(self.chunk_shape, self.dtype)
        self.timed_decode(frame, out)
        return out

    def decodes(self, frame: bytes | memoryview) -> bool:
        """Whether bytes decode to a chunk; that it is the one that was encoded, nothing tells."""
        try:
            self.decode(frame)
        except CodecError:
            return False
        return True

    def timed_encode(self, chunk: NDArray[Any]) -> tuple[bytes, float]:
        """`encode`, and the seconds that it took."""
        start = time.perf_counter()
        frame = self.encode(chunk)
        return frame, time.perf_counter() - start

    def timed_decode(self, frame: bytes | memoryview, out: NDArray[Any]) -> float:
        """Decode a frame of `encode`, which is not looked at before, into `out`; the seconds that it took."""
        start = time.perf_counter()
        source = np.frombuffer(frame, np.uint8)[len(self._header) :]
        length = self._codec.decompress(
            source.ctypes.data, out.ctypes.data, self._size, self.dtype.itemsize, self._block
        )
        if length != len(source):
            raise CodecError(f"{self.container.name}: cannot decompress, error {length}")
        return time.perf_counter() - start

    def close(self) -> None:
        """Nothing to let go of."""

    def _check(self, frame: bytes | memoryview) -> None:
        """Raise CodecError where the lengths in `frame` lead out of it: the library would follow them."""
        end = end_of_blocks(frame, self._size, self._block)
        left = self._size % GROUP * self.dtype.itemsize
        if bytes(frame[: len(self._header)]) != self._header or end is None or end + left != len(frame):
            raise CodecError(f"{self.container.name}: {len(frame)} bytes are no chunk of {self.chunk_shape}")


def end_of_blocks(frame: bytes | memoryview, size: int, block: int) -> int | None:
    """Where the blocks of a frame of `size` elements, `block` in each, end by their lengths; None where one is missing.

    Beyond the frame where the last says so.
    """
    place = HEADER.size
    for _ in range(-(-(size - size % GROUP) // block)):
        if place + LENGTH.size > len(frame):
            return None
        place += LENGTH.size + LENGTH.unpack_from(frame, place)[0]
    return place
