"""Frames that arrive compressed, as a Dectris detector sends them: decoded where they are encoded again."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.apply.bitshuffle import GROUP, HEADER, LENGTH, codec, end_of_blocks, library
from tuner.apply.guard import Watch
from tuner.apply.runs import Runs
from tuner.errors import CodecError, InputError

#: What a frame may be compressed with, by the names of SIMPLON; all but "lz4-block" as HDF5's filters have it.
COMPRESSIONS = ("bslz4", "bszstd", "lz4", "lz4-block")

#: Those of bitshuffle, by the containers that have the same.
_CONTAINERS = {"bslz4": "bitshuffle", "bszstd": "bitshuffle-zstd"}


@dataclass(frozen=True, slots=True)
class CompressedFrame:
    """The bytes of a frame as they arrived."""

    data: bytes
    compression: str
    """One of `COMPRESSIONS`."""

    def check(self, dtype: np.dtype[Any], nbytes: int) -> None:
        """Raise InputError where a look at the beginning tells that this is no frame of a dtype and so many bytes."""
        if self.compression not in COMPRESSIONS:
            raise InputError(f"compression must be one of {', '.join(COMPRESSIONS)}, got {self.compression!r}")
        library()
        if self.compression == "lz4-block" and self.data:
            return
        if len(self.data) < HEADER.size:
            raise InputError(
                f"a frame in {self.compression} must have {HEADER.size} bytes or more, got {len(self.data)}"
            )
        stated, block = HEADER.unpack_from(self.data)
        if stated != nbytes:
            raise InputError(f"a frame in {self.compression} must be one of {nbytes} bytes, got one of {stated}")
        unit = 1 if self.compression == "lz4" else GROUP * dtype.itemsize
        if not block or block % unit:
            raise InputError(f"blocks of {self.compression} must be a multiple of {unit} bytes, got {block}")

    def decode(self, out: NDArray[Any]) -> None:
        """Decode into a C-contiguous frame; other threads run meanwhile.

        Raises
        ------
        CodecError
            Where the bytes are damaged. A flipped bit inside of a block may go unnoticed: there is no checksum.
        """
        if self.compression in _CONTAINERS:
            block = HEADER.unpack_from(self.data)[1] // out.itemsize
            self._check_lengths(out, block)
            source = np.frombuffer(self.data, np.uint8)[HEADER.size :]
            decompress = codec(_CONTAINERS[self.compression]).decompress
            used = decompress(source.ctypes.data, out.ctypes.data, out.size, out.itemsize, block)
            if used != len(source):
                raise CodecError(f"{self.compression} cannot be decoded, error {used}")
        elif self.compression == "lz4":
            self._decode_lz4(out.reshape(-1).view(np.uint8))
        else:
            _decode_block(np.frombuffer(self.data, np.uint8), out.reshape(-1).view(np.uint8))

    def _check_lengths(self, out: NDArray[Any], block: int) -> None:
        """Raise CodecError where the blocks of bitshuffle end beyond the data: the library follows them anywhere."""
        last = len(self.data) - out.size % GROUP * out.itemsize
        end = end_of_blocks(memoryview(self.data)[: max(last, 0)], out.size, block)
        if end is None:
            raise CodecError(f"{self.compression} is cut at byte {len(self.data)}")
        if end != last:
            raise CodecError(f"{self.compression} must have {end} bytes for its blocks, got {last}")

    def _decode_lz4(self, out: NDArray[np.uint8]) -> None:
        """The blocks of HDF5's LZ4 filter; one that is as long as its pixels is stored as it is."""
        data = np.frombuffer(self.data, np.uint8)
        block = HEADER.unpack_from(self.data)[1]
        place = HEADER.size
        for start in range(0, len(out), block):
            part = out[start : start + block]
            if place + LENGTH.size > len(data):
                raise CodecError(f"lz4 is cut at byte {len(data)}")
            length = LENGTH.unpack_from(self.data, place)[0]
            source = data[place + LENGTH.size : place + LENGTH.size + length]
            place += LENGTH.size + length
            if len(source) == len(part):
                part[:] = source
            elif len(source) < length:
                raise CodecError(f"lz4 is cut at byte {len(data)}")
            else:
                _decode_block(source, part)


def _decode_block(source: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    got = _decode_lz4_block()(source.ctypes.data, out.ctypes.data, len(source), len(out))
    if got != len(out):
        raise CodecError(f"lz4 must decode to {len(out)} bytes, got {got}")


@cache
def _decode_lz4_block() -> Callable[..., int]:
    """LZ4's own decoder, without HDF5, whose lock would let one thread decode at a time."""
    function: Callable[..., int] = library().LZ4_decompress_safe
    function.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int] * 2  # type: ignore[attr-defined]
    function.restype = ctypes.c_int  # type: ignore[attr-defined]
    return function


class Undecoded:
    """The frames of one slab that are still compressed: decoded once, by the first thread that needs them."""

    def __init__(self) -> None:
        self._frames: dict[int, CompressedFrame] = {}
        self._lock = threading.Lock()

    def add(self, offset: int, frame: CompressedFrame) -> None:
        """Take in a frame by its place in the slab."""
        self._frames[offset] = frame

    def decode(self, frames: NDArray[Any], fill: Any) -> dict[int, CodecError | None]:
        """Decode all into their places, and say which; what is damaged reads as `fill`, with the reason."""
        decoded: dict[int, CodecError | None] = {}
        with self._lock:
            while self._frames:
                offset, frame = self._frames.popitem()
                decoded[offset] = None
                try:
                    frame.decode(frames[offset])
                except CodecError as error:
                    frames[offset] = fill
                    decoded[offset] = error
        return dict(sorted(decoded.items()))


class Arrivals:
    """What of a scan arrived compressed and could not be decoded.

    Parameters
    ----------
    fill : number
        What such a frame reads as.
    look : callable
        Sees frames that were decoded, and before them the number of the first; called by one thread at a time.
    """

    def __init__(self, fill: Any, look: Callable[[int, NDArray[Any]], None]) -> None:
        self.damaged = Runs()
        """Frames that read as `fill`."""
        self._fill = fill
        self._look = look
        self._lock = threading.Lock()
        self._watch = Watch("off")

    def decode(self, undecoded: Undecoded, first: int, frames: NDArray[Any], kept: NDArray[np.bool_]) -> None:
        """Decode what waits for it of some frames, of which `first` is the number of the first.

        Those of `kept`, shape (frames,), are not looked at.
        """
        decoded = undecoded.decode(frames, self._fill)
        with self._lock:
            for offset, error in decoded.items():
                if error is not None:
                    self.damaged.add(first + offset, first + offset + 1)
                elif not kept[offset]:
                    self._look(first + offset, frames[offset : offset + 1])
        for offset, error in decoded.items():
            if error is not None:
                self._watch.report(f"frame {first + offset} is damaged and reads as missing: {error}")
