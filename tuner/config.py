"""Config: step whole frames, cut them into chunks, compress each with Blosc2."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from tuner.document import Interval, OneOf, check_list, check_mapping, join, kind_of
from tuner.errors import InputError
from tuner.steps import Step, step_from_dict, step_to_dict
from tuner.steps.round_trip import Filter

#: Codec names and their c-blosc2 identifiers; those of 32 and above are plug-ins.
CODECS = {"blosclz": 0, "lz4": 1, "lz4hc": 2, "zlib": 4, "zstd": 5, "j2k": 39, "htj2k": 40}

#: Codecs that live in a package of their own, which a reader must have too.
PLUGINS = {"j2k": "blosc2-j2k", "htj2k": "blosc2-htj2k"}

#: Filter names and their c-blosc2 identifiers.
FILTERS = {"shuffle": 1, "bitshuffle": 2, "delta": 3, "bytedelta": 35}

#: Split mode names and their c-blosc2 identifiers.
SPLITMODES = {"always": 1, "never": 2, "auto": 3, "forward_compat": 4}

#: The filter chains that c-blosc2 3.3.5 decodes rightly. Three filters, and `delta` anywhere but first,
#: corrupt silently (docs/decisions/0003-allowed-filter-chains.md); tests/test_chains.py proves these.
CHAINS: tuple[tuple[str, ...], ...] = (
    (),
    *((first,) for first in FILTERS),
    *((first, second) for first in FILTERS for second in FILTERS if second != "delta"),
)

#: The smallest block that c-blosc2 takes as given.
MIN_BLOCKSIZE = 256


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of filters that c-blosc2 decodes rightly."""

    def check(self, value: Any, place: str) -> tuple[str, ...]:
        """Return `value` as a tuple if it is one of `CHAINS`.

        >>> Chain().check(["shuffle", "delta"], "i03.yaml: config.blosc2.filters")
        Traceback (most recent call last):
        tuner.errors.InputError: i03.yaml: config.blosc2.filters must have 'delta' only first, got ['shuffle', \
'delta']: c-blosc2 decodes it wrongly elsewhere once more than one thread works
        """
        filters = tuple(check_list(value, place))
        for index, name in enumerate(filters):
            OneOf(tuple(FILTERS)).check(name, join(place, index))
        if len(filters) > 2:
            raise InputError(f"{place} must be at most two, got {len(filters)}: c-blosc2 decodes longer chains wrongly")
        if "delta" in filters[1:]:
            raise InputError(
                f"{place} must have 'delta' only first, got {list(filters)}:"
                " c-blosc2 decodes it wrongly elsewhere once more than one thread works"
            )
        return filters


#: What each of Blosc2's values may be: used to validate, to search and to generate bad values.
VALID: dict[str, Interval | OneOf | Chain] = {
    "codec": OneOf(tuple(CODECS)),
    "codec_meta": Interval(0, 255),
    "clevel": Interval(0, 9),
    "filters": Chain(),
    "splitmode": OneOf(tuple(SPLITMODES)),
    "typesize": Interval(0, 255),
    "blocksize": Interval(MIN_BLOCKSIZE, 536_866_816, also=0),  # up to BLOSC2_MAXBLOCKSIZE
}


@dataclass(frozen=True, slots=True)
class Blosc2:
    """Blosc2's compression parameters, in c-blosc2's own words."""

    codec: str = "lz4"
    """One of `CODECS`."""
    codec_meta: int = 0
    """The codec's own parameter; 0 is lossless for every codec."""
    clevel: int = 5
    """Compression level; 0 stores."""
    filters: tuple[str, ...] = ("bitshuffle",)
    """One of `CHAINS`, in the order in which they are applied."""
    splitmode: str = "auto"
    """Whether a block's bytes of equal significance are compressed apart; one of `SPLITMODES`."""
    typesize: int = 0
    """Bytes that the filters take for one item; 0 is the dtype's size."""
    blocksize: int = 0
    """Bytes of a block; 0 leaves it to c-blosc2."""

    def __post_init__(self) -> None:
        for name, valid in VALID.items():
            object.__setattr__(self, name, valid.check(getattr(self, name), name))
        if self.typesize and self.blocksize % self.typesize:
            raise InputError(
                f"blocksize must be a multiple of typesize {self.typesize}, got {self.blocksize}:"
                " c-blosc2 decodes it wrongly"
            )

    def to_dict(self) -> dict[str, Any]:
        """All fields, as YAML has them."""
        return {f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v for f in fields(self)}

    @classmethod
    def from_dict(cls, document: Any, place: str = "") -> Blosc2:
        """The inverse of `to_dict`; absent keys take their defaults."""
        check_mapping(document, place, [f.name for f in fields(cls)])
        try:
            return cls(**document)
        except InputError as error:
            raise InputError(join(place, str(error))) from None


#: What the frames of a chunk may be; HDF5 counts in 32 bits. They are never all, as scans differ in length.
FRAMES = Interval(1, (1 << 32) - 1)

#: Steps of a configuration: a denoiser, a round trip and a rounding.
MOST_STEPS = 3

#: What a chunk's extent along an axis of a frame may be.
EXTENT = Interval(1, (1 << 32) - 1, also=-1)


@dataclass(frozen=True, slots=True)
class Config:
    """What is done to frames: how they are prepared, the chunks they are cut into, and how each is compressed."""

    chunks: tuple[int, ...] = (1, -1, -1)
    """Frames in a chunk, then a chunk's extent along each axis of a frame; -1 spans the axis."""
    blosc2: Blosc2 = field(default_factory=Blosc2)
    """How a chunk is compressed."""
    steps: tuple[Step, ...] = ()
    """What is done to whole frames before, filters first and then one rounding; none keeps every pixel."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        if len(self.steps) > MOST_STEPS or not all(isinstance(step, Filter) for step in self.steps[:-1]):
            raise InputError(
                f"steps must be at most {MOST_STEPS}, filters before one rounding,"
                f" got {' '.join(step.name for step in self.steps)}"
            )
        chunks = check_list(self.chunks, "chunks")
        if not 2 <= len(chunks) <= 3:
            raise InputError(f"chunks must be frames and one or two axes of a frame, got {kind_of(chunks)}")
        for index, extent in enumerate(chunks):
            (EXTENT if index else FRAMES).check(extent, join("chunks", index))
        object.__setattr__(self, "chunks", tuple(chunks))

    @property
    def lossless(self) -> bool:
        """Whether every pixel comes back as it was."""
        return not self.steps and self.blosc2.codec_meta == 0

    def resolve(self, frame_shape: tuple[int, ...], dtype: np.dtype[Any]) -> Config:
        """The same configuration for frames of one shape and dtype, with nothing left open but c-blosc2's block size.

        Two configurations that resolve to the same one store the same bytes.

        >>> Config((4, -1, 512), Blosc2(blocksize=1 << 30 >> 2)).resolve((100, 200), np.dtype("uint16"))
        Config(chunks=(4, 100, 200), blosc2=Blosc2(codec='lz4', codec_meta=0, clevel=5, filters=('bitshuffle',), \
splitmode='auto', typesize=2, blocksize=160000), steps=())

        Raises
        ------
        InputError
            Where the chunks do not have the frame's axes, or typesize does not divide the chunk.
        """
        if len(self.chunks) != 1 + len(frame_shape):
            raise InputError(
                f"chunks must be frames and the {len(frame_shape)} axes of a frame of shape {frame_shape},"
                f" got {list(self.chunks)}"
            )
        tile = tuple(
            size if extent == -1 else min(extent, size)
            for extent, size in zip(self.chunks[1:], frame_shape, strict=True)
        )
        chunks = (self.chunks[0], *tile)
        nbytes = math.prod(chunks) * dtype.itemsize
        typesize = self.blosc2.typesize or dtype.itemsize
        if nbytes % typesize:
            raise InputError(f"typesize must divide the chunk of {nbytes} bytes, got {typesize}")
        if self.blosc2.blocksize % typesize:
            raise InputError(f"blocksize must be a multiple of typesize {typesize}, got {self.blosc2.blocksize}")
        # A chunk of less than the least block is one block by itself.
        blocksize = min(self.blosc2.blocksize, nbytes) if nbytes >= MIN_BLOCKSIZE else 0
        return Config(chunks, _closed(self.blosc2, typesize, dtype.itemsize, blocksize), self.steps)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as YAML has them.

        >>> Config.from_dict(Config().to_dict()) == Config()
        True
        """
        steps = [step_to_dict(step) for step in self.steps]
        return {"steps": steps, "chunks": list(self.chunks), "blosc2": self.blosc2.to_dict()}

    @classmethod
    def from_dict(cls, document: Any, place: str = "") -> Config:
        """The inverse of `to_dict`; absent keys take their defaults.

        >>> Config.from_dict({"blosc2": {"clevel": 12}}, "i03.yaml: config")
        Traceback (most recent call last):
        tuner.errors.InputError: i03.yaml: config.blosc2.clevel must be in 0..9, got 12
        """
        check_mapping(document, place, [f.name for f in fields(cls)])
        values = dict(document)
        if "blosc2" in document:
            values["blosc2"] = Blosc2.from_dict(document["blosc2"], join(place, "blosc2"))
        if "steps" in document:
            where = join(place, "steps")
            steps = enumerate(check_list(document["steps"], where))
            values["steps"] = tuple(step_from_dict(step, join(where, index)) for index, step in steps)
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(join(place, str(error))) from None


@lru_cache(1 << 14)  # a space has few of these for its many configurations, and a search resolves all of them
def _closed(blosc2: Blosc2, typesize: int, itemsize: int, blocksize: int) -> Blosc2:
    if blosc2.clevel == 0:  # stored as it is, whatever else is asked for
        return Blosc2(blosc2.codec, clevel=0, filters=(), typesize=itemsize)
    return replace(blosc2, typesize=typesize, blocksize=blocksize)


_UNITS = {"MiB": 1 << 20, "KiB": 1 << 10, "B": 1}


def one_line(config: Config, itemsize: int = 0) -> str:
    """A configuration as a table shows it, its steps first; its typesize where that is not the dtype's `itemsize`.

    >>> one_line(Config(blosc2=Blosc2("zstd", clevel=1, filters=("shuffle", "bytedelta"), blocksize=1 << 20)))
    'zstd-1 shuffle+bytedelta, chunk 1xallxall, block 1 MiB'
    """
    blosc2 = config.blosc2
    steps = [" ".join([step.name, *(f"{step_to_dict(step)[key]:g}" for key in step.valid)]) for step in config.steps]
    text = ", ".join([*steps, f"{blosc2.codec}-{blosc2.clevel} {'+'.join(blosc2.filters) or 'no filter'}"])
    if blosc2.typesize not in (0, itemsize):
        text += f" of {blosc2.typesize} B"
    text += f", chunk {'x'.join('all' if extent == -1 else str(extent) for extent in config.chunks)}"
    if blosc2.blocksize:
        unit = next(unit for unit in ("MiB", "KiB", "B") if not blosc2.blocksize % _UNITS[unit])
        text += f", block {blosc2.blocksize // _UNITS[unit]} {unit}"
    if blosc2.splitmode != "auto":
        text += f", split {blosc2.splitmode}"
    return text


def chunk_grid(shape: tuple[int, ...], frame_ndim: int, chunks: tuple[int, ...]) -> tuple[int, ...]:
    """The chunk shape of a dataset whose leading axes number its frames, for `chunks` frames and tile.

    Frames are numbered in C order over the leading axes, and a chunk holds a contiguous run of them: it spans the last
    leading axes wholly, takes a part of one more, and one item of those before.

    >>> chunk_grid((3201, 22, 26), 2, (64, 22, 26))
    (64, 22, 26)
    >>> chunk_grid((11, 11, 4, 2000), 1, (16, 2000))
    (1, 4, 4, 2000)
    >>> chunk_grid((2167, 2070), 2, (1, 512, 2070))
    (512, 2070)
    """
    frames = chunks[0]
    lead: list[int] = []
    for size in reversed(shape[: len(shape) - frame_ndim]):
        lead.append(max(1, min(size, frames)))
        frames = frames // size if 0 < size <= frames else 1
    return (*reversed(lead), *chunks[1:])
