"""DM3 and DM4, the formats of Gatan's DigitalMicrograph, mapped into memory and never read as a whole.

Tags in groups, as those who read the files found out: https://www.ntu.edu.sg/home/cbb/info/dmformat/index.html.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tuner.errors import InputError
from tuner.read.axes import check_array, check_axes, frame_ndim
from tuner.read.npy import Mapped
from tuner.read.series import head_of
from tuner.stack import Stack, Storage, convention

#: Types of tags, by the words of `struct`; what else there is has parts.
_SIMPLE = {2: "h", 3: "i", 4: "H", 5: "I", 6: "f", 7: "d", 8: "B", 9: "b", 10: "B", 11: "q", 12: "Q"}
_STRUCTURE, _TEXT, _ARRAY = 15, 18, 20

#: Types of pixels, by the numbers of an image's DataType.
_PIXELS = {1: "i2", 2: "f4", 6: "u1", 7: "i4", 9: "i1", 10: "u2", 11: "u4", 12: "f8", 14: "u1"}

_GROUP, _LEAF = 20, 21


def open_dm(path: Path, axes: Sequence[str] | None = None) -> Stack:
    """Open the image of a ``.dm3`` or ``.dm4`` file; of several the largest that is not in colour, as thumbnails are.

    Axes are in the order of the file's memory, its first dimension last.

    Raises
    ------
    InputError
        No such file, not of that format, cut, or of pixels that are complex or colours.
    """
    path = Path(path)
    head = head_of(path, 16)
    version = int.from_bytes(head[:4], "big")
    if version not in (3, 4) or len(head) < 16:
        raise InputError(f"{path}: must be of the format DM3 or DM4, got something else, or a file that is cut")
    order: Literal["<", ">"] = "<" if head[11 if version == 3 else 15] == 1 else ">"
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            tags = dict(_Tags(memory, version, order).walk())
    except (struct.error, IndexError, KeyError, RecursionError):
        raise InputError(f"{path}: is cut or damaged: its tags do not end") from None
    arrays = {name: found for name, found in tags.items() if isinstance(found, tuple)}
    images = [name[:3] for name in arrays if name[0] == "ImageList" and name[2:] == ("ImageData", "Data")]
    codes = {image: tags.get((*image, "DataType"), 0) for image in images}
    grey = [image for image in images if codes[image] in _PIXELS]
    if not grey:
        got = f"DataType {', '.join(map(str, codes.values()))}" if images else "no image"
        raise InputError(f"{path}: must hold an image of DataType {', '.join(map(str, _PIXELS))}, got {got}")
    image = max(grey, key=lambda name: arrays[(*name, "Data")][1])
    start, nbytes = arrays[(*image, "Data")]
    stored = np.dtype(_PIXELS[codes[image]]).newbyteorder(order)
    sizes = [found for name, found in tags.items() if name[:4] == (*image, "Dimensions") and name not in arrays]
    shape = tuple(int(size) for size in reversed(sizes))
    dtype = check_array(shape, stored, str(path))
    if math.prod(shape) * stored.itemsize != nbytes:
        raise InputError(f"{path}: is cut or damaged: must have {nbytes} bytes for pixels of {dtype}, shape {shape}")
    names = check_axes(axes, shape, str(path)) if axes else ()
    ndim = frame_ndim(shape, names)
    return Stack(
        name=str(path),
        shape=shape,
        frame_ndim=ndim,
        dtype=dtype,
        source=Mapped(partial(np.memmap, path, stored, "r", start, shape), dtype, ndim),
        axes=names,
        invalid=convention(dtype),
        storage=Storage(nbytes),
    )


class _Tags:
    """The tags of a file, which is walked through from its beginning."""

    def __init__(self, memory: mmap.mmap, version: int, order: Literal["<", ">"]) -> None:
        self._memory = memory
        self._word = "i" if version == 3 else "q"  # of which counts and descriptions are, big-endian
        self._sized = version == 4
        self._order = order
        self._at = 12 if version == 3 else 16

    def walk(self, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Place and content of each tag below the group that begins here: a number, or where an array is, in bytes."""
        self._take("BB")
        (count,) = self._take(self._word)
        for number in range(count):
            kind, length = self._take("BH")
            name = bytes(self._memory[self._at : self._at + length]).decode("latin-1") or number
            self._at += length
            if self._sized:
                self._take("q")
            if kind == _GROUP:
                yield from self.walk((*place, name))
            elif kind == _LEAF:
                yield (*place, name), self._leaf()
            else:
                raise KeyError(kind)

    def _leaf(self) -> Any:
        self._take("4s")
        (count,) = self._take(self._word)
        described = self._take(f"{count}{self._word}")
        if count == 1:
            return self._take(_SIMPLE[described[0]], self._order)[0]
        start, nbytes = self._at, _nbytes(described)
        if not start <= start + nbytes <= len(self._memory):  # backwards, it would begin anew for ever
            raise IndexError(nbytes)
        self._at += nbytes
        return start, nbytes

    def _take(self, words: str, order: str = ">") -> tuple[Any, ...]:
        words = order + words
        found = struct.unpack_from(words, self._memory, self._at)
        self._at += struct.calcsize(words)
        return found


def _nbytes(described: Sequence[int]) -> int:
    """Bytes of a tag's content, by the numbers that describe it."""
    kind = described[0]
    if kind == _ARRAY:
        return _nbytes(described[1:-1]) * described[-1]
    if kind == _TEXT:
        return 2 * described[1]
    if kind == _STRUCTURE:
        return sum(struct.calcsize(f"={_SIMPLE[field]}") for field in described[4::2])
    return struct.calcsize(f"={_SIMPLE[kind]}")
