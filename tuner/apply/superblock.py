"""The superblock of an HDF5 file, and its flag that a writer in SWMR mode leaves when it dies."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from tuner.errors import InputError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"

#: In a superblock of version 3 with addresses of 8 bytes: where flags, end of file and checksum are.
#: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, section II.A
_FLAGS, _END, _CHECKSUM = 11, 28, 44


def clear_flag(path: Path) -> bool:
    """Clear the flag for which a file that was not closed refuses to open; whether there was one.

    Raises
    ------
    InputError
        Where it is no HDF5 file.
    """
    with path.open("r+b") as file:
        head = bytearray(file.read(_CHECKSUM + 4))
        if head[:8] != _SIGNATURE:
            raise InputError(f"{path}: must be an HDF5 file")
        if head[8] != 3 or head[9] != 8 or not head[_FLAGS]:
            return False
        head[_FLAGS] = 0
        # Chunks may lie beyond the end that was noted last.
        struct.pack_into("<Q", head, _END, os.fstat(file.fileno()).st_size)
        struct.pack_into("<I", head, _CHECKSUM, lookup3(bytes(head[:_CHECKSUM])))
        file.seek(0)
        file.write(head)
        file.flush()
        os.fsync(file.fileno())
    return True


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hash of at least one byte (http://burtleburtle.net/bob/c/lookup3.c), which HDF5's metadata ends in.

    >>> hex(lookup3(b"Four score and seven years ago"))
    '0x17770551'
    """

    def mixed(values: list[int], rounds: tuple[tuple[int, int, int], ...], final: bool) -> list[int]:
        for to, by, shift in rounds:
            turned = (values[by] << shift | values[by] >> 32 - shift) & 0xFFFFFFFF
            if final:
                values[to] = ((values[to] ^ values[by]) - turned) & 0xFFFFFFFF
            else:
                values[to] = (values[to] - values[by] ^ turned) & 0xFFFFFFFF
                other = 3 - to - by
                values[by] = (values[by] + values[other]) & 0xFFFFFFFF
        return values

    values = [(0xDEADBEEF + len(data)) & 0xFFFFFFFF] * 3
    padded = data + bytes(-len(data) % 12)
    for start in range(0, len(padded), 12):
        words = struct.unpack_from("<3I", padded, start)
        values = [(value + word) & 0xFFFFFFFF for value, word in zip(values, words, strict=True)]
        if start + 12 < len(padded):
            values = mixed(values, ((0, 2, 4), (1, 0, 6), (2, 1, 8), (0, 2, 16), (1, 0, 19), (2, 1, 4)), False)
    rounds = ((2, 1, 14), (0, 2, 11), (1, 0, 25), (2, 1, 16), (0, 2, 4), (1, 0, 14), (2, 1, 24))
    return mixed(values, rounds, True)[2]
