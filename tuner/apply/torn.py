"""Blocks of HDF5's metadata that a kill tore: their checksums are made right.

The kernel ends a write of a killed process between two pages, so that the front of a block may be newer than its end.
Of frames that were acknowledged both say the same, as an index only grows: only the checksum at the end is wrong. What
lies within one page cannot be torn: where its checksum is wrong it is damaged, and stays as it is, for HDF5 to refuse.
Formats: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, sections IV.A.1.b, IV.A.2.i and VII.D.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import h5py

from tuner.apply.superblock import lookup3

#: Bytes between the places of a file at which a write may end; larger pages end at multiples of it.
PAGE_NBYTES = 4096

#: Bytes of a checksum, an address, of what each block of an index begins with, and of an index's header.
_CHECKSUM, _ADDRESS, _PREFIX, _HEADER = 4, 8, 14, 72
#: Messages of an object header, and the beginning of a layout in chunks.
_LAYOUT, _CONTINUED, _CHUNKED = 0x08, 0x10, b"\x04\x02"
#: The kind of index that a dataset has which grows along one axis.
_EXTENSIBLE = 4


def mend_torn(path: Path, page: int = PAGE_NBYTES) -> int:
    """Make right the checksums of torn headers of objects, and of torn blocks of their indices of chunks; how many.

    Of a file that is whole nothing is changed, nor are blocks that lie within one page. In one that lies in two, damage
    and a kill look alike. What chunks hold is not looked at: they have checksums of their own, which also tell chunks
    that a damaged index finds in a wrong place.

    Parameters
    ----------
    path : Path
        Of a file of a killed writer; in those of other programs a wrong checksum is damage.
    page : int
        Bytes of a page.

    Raises
    ------
    OSError
        Where HDF5 cannot open the file.
    """
    with h5py.File(path, locking=False) as file:
        addresses = list(dict.fromkeys(_objects(file.id, set())))
    with path.open("r+b") as stream:
        blocks = _Blocks(stream, page)
        for address in addresses:
            with contextlib.suppress(struct.error, IndexError):  # damaged otherwise, and HDF5 will say so
                blocks.mend_object(address)
        if blocks.mended:
            stream.flush()
            os.fsync(stream.fileno())
    return blocks.mended


def _objects(group: h5py.h5g.GroupID, seen: set[int]) -> Iterator[int]:
    """Where the objects of a group and of those below it are, whether they can be opened or not."""
    for name in group:
        info = group.links.get_info(name)
        if info.type != h5py.h5l.TYPE_HARD or info.u in seen:
            continue
        seen.add(info.u)
        yield info.u
        try:
            member = h5py.h5o.open(group, name)
        except (KeyError, OSError, RuntimeError):  # torn: a dataset's, as groups do not grow
            continue
        if isinstance(member, h5py.h5g.GroupID):
            yield from _objects(member, seen)


class _Blocks:
    """The blocks of a file that end in checksums."""

    def __init__(self, stream: BinaryIO, page: int) -> None:
        self._stream = stream
        self._page = page
        self._end = stream.seek(0, os.SEEK_END)
        self._seen: set[int] = set()
        self.mended = 0

    def _read(self, address: int, nbytes: int) -> bytes:
        self._stream.seek(address)
        return self._stream.read(nbytes)

    def _whole(self, address: int, nbytes: int, signature: bytes) -> bytes | None:
        """A block, if it was torn with its checksum made right; None where there is none, or it was met before."""
        if address in self._seen or address + nbytes > self._end:  # as an undefined address is
            return None
        self._seen.add(address)
        block = self._read(address, nbytes)
        if not block.startswith(signature) or not any(block):
            return None
        within_a_page = address // self._page == (address + nbytes - 1) // self._page
        if not within_a_page and (right := lookup3(block[:-_CHECKSUM])) != int.from_bytes(block[-_CHECKSUM:], "little"):
            self._stream.seek(address + nbytes - _CHECKSUM)
            self._stream.write(struct.pack("<I", right))
            self.mended += 1
        return block

    def mend_object(self, address: int) -> None:
        """An object's header, and a dataset's index."""
        head = self._read(address, 32)
        if not head.startswith(b"OHDR"):  # of an older format, which has no checksums
            return
        flags = head[5]
        start = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        nbytes = int.from_bytes(head[start : start + width], "little")
        start += width
        parts = [(address, start, start + nbytes + _CHECKSUM, b"OHDR")]
        for place, first, size, signature in parts:  # which grows
            part = self._whole(place, size, signature)
            while part is not None and first + 4 <= size - _CHECKSUM:
                kind, length = struct.unpack_from("<BH", part, first)
                first += 6 if flags & 4 else 4
                body = part[first : first + length]
                first += length
                if kind == _CONTINUED:
                    further, nbytes = struct.unpack("<QQ", body)
                    parts.append((further, 4, nbytes, b"OCHK"))
                elif kind == _LAYOUT and body.startswith(_CHUNKED):
                    index = 5 + body[3] * body[4]
                    if body[index] == _EXTENSIBLE:
                        self._mend_index(*struct.unpack_from("<Q", body, index + 6))

    def _mend_index(self, address: int) -> None:
        """An extensible array: a header, a first block, data blocks that double, and blocks of their addresses."""
        header = self._whole(address, _HEADER, b"EAHD")
        if header is None:
            return
        element, bits, in_first, least, pointers, page_bits = header[6:12]
        (first,) = struct.unpack_from("<Q", header, _HEADER - _CHECKSUM - _ADDRESS)
        levels = 1 + bits - (least.bit_length() - 1)
        direct = 2 * (pointers - 1)
        lowest = 2 * (pointers.bit_length() - 1)
        count = direct + levels - lowest
        block = self._whole(first, _PREFIX + in_first * element + count * _ADDRESS + _CHECKSUM, b"EAIB")
        if block is None:
            return
        offset, page = -(-bits // 8), 1 << page_bits
        addresses = struct.unpack_from(f"<{count}Q", block, _PREFIX + in_first * element)
        sizes = [least << (level + 1) // 2 for level in range(lowest) for _ in range(1 << level // 2)]
        for place, elements in zip(addresses[:direct], sizes, strict=True):
            self._mend_data(place, elements, element, offset, page)
        for level, place in enumerate(addresses[direct:], lowest):
            count, elements = 1 << level // 2, least << (level + 1) // 2
            bitmap = count * -(-elements // page // 8) if elements > page else 0
            nbytes = _PREFIX + offset + bitmap + count * _ADDRESS + _CHECKSUM
            if (block := self._whole(place, nbytes, b"EASB")) is not None:
                for below in struct.unpack_from(f"<{count}Q", block, _PREFIX + offset + bitmap):
                    self._mend_data(below, elements, element, offset, page)

    def _mend_data(self, address: int, elements: int, element: int, offset: int, page: int) -> None:
        """A data block; a large one is cut into pages that have checksums of their own."""
        paged = elements > page
        nbytes = _PREFIX + offset + (0 if paged else elements * element) + _CHECKSUM
        if self._whole(address, nbytes, b"EADB") is not None and paged:
            for place in range(elements // page):
                self._whole(address + nbytes + place * (page * element + _CHECKSUM), page * element + _CHECKSUM, b"")
