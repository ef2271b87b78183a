"""One chunk to the bytes that the HDF5 Blosc2 filter decodes, and back."""

from __future__ import annotations

import math
import struct
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.apply.checksum import Encoded
from tuner.apply.codec import blosc2
from tuner.apply.compressor import Compressor, library
from tuner.config import CODECS, FILTERS, PLUGINS, SPLITMODES, Blosc2
from tuner.container import BLOSC2
from tuner.errors import CodecError, InputError

# A contiguous frame of one chunk: a header, the chunk, a trailer
# (https://github.com/Blosc/c-blosc2/blob/main/README_CFRAME_FORMAT.rst). Of header and trailer only two fields depend
# on the chunk's content, so a template patched twice saves the super-chunk that c-blosc2 would build for every chunk.
_HEADER_NBYTES = 97
_FRAME_LENGTH = 16
_CHUNK_LENGTH = 39
_INT64 = struct.Struct(">q")

#: What an encoded chunk, with a checksum behind it, is longer at most than its pixels, where encoding is given memory.
ROOM_NBYTES = 512


def cparams(blosc2_config: Blosc2) -> dict[str, Any]:
    """python-blosc2's compression parameters of a resolved configuration, for one thread."""
    filters = [blosc2.Filter(FILTERS[name]) for name in blosc2_config.filters]
    return {
        "codec": blosc2.Codec(CODECS[blosc2_config.codec]),
        "codec_meta": blosc2_config.codec_meta,
        "clevel": blosc2_config.clevel,
        "typesize": blosc2_config.typesize,
        "blocksize": blosc2_config.blocksize,
        "splitmode": blosc2.SplitMode(SPLITMODES[blosc2_config.splitmode]),
        # Two named slots keep python-blosc2 from adding its default shuffle to an empty chain.
        "filters": [*filters, *[blosc2.Filter.NOFILTER] * (2 - len(filters))],
        "filters_meta": [0, 0],
        "nthreads": 1,
    }


def filter_values(config: Blosc2, nbytes: int) -> tuple[int, ...]:
    """What the HDF5 filter is declared with for chunks of `nbytes` bytes.

    Format revision, block size, typesize, bytes of a chunk, level, filter, codec. It is informative: each frame
    describes itself.
    """
    last = FILTERS[config.filters[-1]] if config.filters else 0
    return (1, config.blocksize, config.typesize, nbytes, config.clevel, last, CODECS[config.codec])


class Encoder:
    """Encodes chunks of one shape and dtype with one configuration; safe to share between threads.

    ``decode(encode(chunk))`` is the chunk, bit for bit, for every allowed lossless configuration.

    Parameters
    ----------
    config : Blosc2
        Resolved: typesize given, dividing the chunk; a codec of c-blosc2 itself.
    chunk_shape : tuple of int
    dtype : numpy.dtype

    Examples
    --------
    >>> chunk = np.arange(2000, dtype="uint16").reshape(1, 40, 50)
    >>> encoder = Encoder(Blosc2("zstd", typesize=2), chunk.shape, chunk.dtype)
    >>> bool((encoder.decode(encoder.encode(chunk)) == chunk).all())
    True
    """

    container = BLOSC2

    def __init__(self, config: Blosc2, chunk_shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if config.codec in PLUGINS:
            raise CodecError(f"codec {config.codec} must run in a child process, as it may abort this one")
        self.config = config
        self.chunk_shape = chunk_shape
        self.dtype = dtype
        self.nbytes = math.prod(chunk_shape) * dtype.itemsize
        self._cparams = cparams(config)
        if self.nbytes > blosc2.MAX_BUFFERSIZE:
            raise InputError(f"chunks must be of at most {blosc2.MAX_BUFFERSIZE} bytes, got {self.nbytes}")
        # Not constant, as c-blosc2 stores a constant chunk in the frame's index instead.
        content = np.zeros(self.nbytes, dtype=np.uint8)
        content[0] = 1
        schunk = blosc2.SChunk(chunksize=self.nbytes, cparams=blosc2.CParams(**self._cparams))
        schunk.append_data(content)
        frame = schunk.to_cframe()
        (length,) = _INT64.unpack_from(frame, _CHUNK_LENGTH)
        self._header = frame[:_HEADER_NBYTES]
        self._trailer = frame[_HEADER_NBYTES + length :]
        self._thread = threading.local()

    @property
    def filter_values(self) -> tuple[int, ...]:
        """What the HDF5 filter is declared with."""
        return filter_values(self.config, self.nbytes)

    def compress(self, chunk: NDArray[Any]) -> bytes:
        """The Blosc2 chunk of a C-contiguous array of `chunk_shape` and `dtype`."""
        try:
            compressed: bytes = blosc2.compress2(chunk, **self._cparams)
        except (RuntimeError, ValueError) as error:
            raise CodecError(f"{self.config}: c-blosc2 cannot compress: {error}") from None
        return compressed

    def encode(self, chunk: NDArray[Any], out: NDArray[np.uint8] | None = None) -> Encoded:
        """The Blosc2 frame of a C-contiguous array of `chunk_shape` and `dtype`.

        It is the beginning of `out`, where that is given: memory for the chunk and `ROOM_NBYTES` more.
        """
        if out is not None:
            return self._encode_into(out, chunk)
        if not hasattr(self._thread, "out"):
            self._thread.out = np.empty(self.nbytes + ROOM_NBYTES, np.uint8)
        return bytes(self._encode_into(self._thread.out, chunk))

    def decode(self, frame: Encoded, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The chunk that `encode` made a frame of, into `out` if given.

        Raises
        ------
        CodecError
            Where the bytes do not decode.
        """
        if out is None:
            out = np.empty(self.chunk_shape, self.dtype)
        try:
            (length,) = _INT64.unpack_from(frame, _CHUNK_LENGTH)
            blosc2.decompress2(memoryview(frame)[_HEADER_NBYTES : _HEADER_NBYTES + length], dst=out, nthreads=1)
        except (RuntimeError, ValueError, struct.error) as error:
            raise CodecError(f"{self.config}: c-blosc2 cannot decompress: {error}") from None
        return out

    def timed_encode(self, chunk: NDArray[Any]) -> tuple[bytes, float]:
        """`encode`, and the seconds that it took."""
        start = time.perf_counter()
        frame = self.encode(chunk)
        return bytes(frame), time.perf_counter() - start

    def timed_decode(self, frame: Encoded, out: NDArray[Any]) -> float:
        """`decode` into `out`; the seconds that it took."""
        start = time.perf_counter()
        self.decode(frame, out)
        return time.perf_counter() - start

    def close(self) -> None:
        """Nothing to let go of; the encoder of a plug-in has a process."""

    def _encode_into(self, out: NDArray[np.uint8], chunk: NDArray[Any]) -> memoryview:
        length = self._compress_into(out[_HEADER_NBYTES:], chunk)
        end = _HEADER_NBYTES + length + len(self._trailer)
        frame = out.data[:end]
        frame[:_HEADER_NBYTES] = self._header
        frame[_HEADER_NBYTES + length :] = self._trailer
        _INT64.pack_into(frame, _FRAME_LENGTH, end)
        _INT64.pack_into(frame, _CHUNK_LENGTH, length)
        return frame

    def _compress_into(self, out: NDArray[np.uint8], chunk: NDArray[Any]) -> int:
        c_blosc2 = library()
        if c_blosc2 is None:
            compressed = self.compress(chunk)
            out[: len(compressed)] = np.frombuffer(compressed, np.uint8)
            return len(compressed)
        if not hasattr(self._thread, "compressor"):
            self._thread.compressor = Compressor(c_blosc2, self._cparams)
        length: int = self._thread.compressor(chunk, out)
        if length <= 0:
            raise CodecError(f"{self.config}: c-blosc2 cannot compress: error {length}")
        return length
