"""Fletcher32 as the HDF5 filter pipeline has it, so that every HDF5 reader finds a flipped bit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TypeAlias

import h5py
import numpy as np

#: A chunk as it is stored; as a memoryview, the beginning of memory that has room for a checksum.
Encoded: TypeAlias = bytes | memoryview

#: What `with_checksum` adds to every chunk.
CHECKSUM_NBYTES = 4

#: Words added up at once in numpy: the largest weighted sum, 2**16 * 2**16 * 2**17, stays far inside of uint64.
_BLOCK = 1 << 17


def fletcher32_numpy(data: Encoded) -> int:
    """Fletcher32 of at least one byte over big-endian 16-bit words, the last one padded with a zero byte.

    Slow; for the builds of HDF5 that do not export theirs.
    """
    words = np.frombuffer(bytes(data) + b"\0" * (len(data) % 2), ">u2").astype(np.uint64)
    first = second = 0
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK]
        weights = np.arange(len(block), 0, -1, dtype=np.uint64)
        second += first * len(block) + int((block * weights).sum())
        first += int(block.sum())
    return _ones_complement(second) << 16 | _ones_complement(first)


def _ones_complement(total: int) -> int:
    """The sum with its carries added back in: only zero gives 0, other multiples of 65535 give 65535."""
    return (total - 1) % 0xFFFF + 1 if total else 0


def _fletcher32_hdf5() -> Callable[[Encoded], int] | None:
    """HDF5's own, ten times as fast and without the GIL, where the library that h5py loaded exports it."""
    try:
        function = ctypes.CDLL(h5py.h5.__file__).H5_checksum_fletcher32
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_uint32
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

    def checksum(data: Encoded) -> int:
        return int(function(np.frombuffer(data, np.uint8).ctypes.data, len(data)))

    probe = bytes(range(251))
    return checksum if checksum(probe) == fletcher32_numpy(probe) else None


#: Fletcher32 of at least one byte.
fletcher32: Callable[[Encoded], int] = _fletcher32_hdf5() or fletcher32_numpy


def with_checksum(frame: Encoded) -> Encoded:
    """The frame followed by its checksum, as HDF5's Fletcher32 filter stores it (little-endian)."""
    checksum = fletcher32(frame).to_bytes(CHECKSUM_NBYTES, "little")
    if isinstance(frame, bytes):
        return frame + checksum
    whole = memoryview(frame.obj)[: len(frame) + CHECKSUM_NBYTES]
    whole[len(frame) :] = checksum
    return whole
