"""An HDF5 file as bytes: opening it, where its frames really are, in what chunks and through which filters."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from tuner.config import CODECS, PLUGINS
from tuner.errors import InputError
from tuner.stack import Storage

#: HDF5's own chunk cache keeps at least that much.
_CACHE_NBYTES = 8 << 20

#: Chunks side by side that make a row of frames are kept decoded up to this size, so that none is decoded twice.
_ROW_NBYTES = 128 << 20

#: Blosc2's registered identifier, and the package that decodes each plug-in codec, by the codec's.
_BLOSC2 = 32026
_PLUGINS = {CODECS[codec]: package for codec, package in PLUGINS.items()}

_CODECS = {
    "bitshuffle": {0: "", 2: "lz4", 3: "zstd"},
    "blosc": dict(enumerate(["blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd"])),
    "blosc2": {0: "blosclz", 1: "lz4", 2: "lz4hc", 4: "zlib", 5: "zstd", 35: "openhtj2k", 36: "grok"}
    | {39: "j2k", 40: "htj2k"},
}
_BLOSC_FILTERS = {0: "", 1: "shuffle", 2: "bitshuffle", 3: "delta", 4: "trunc_prec", 35: "bytedelta"}


def _blosc(family: str) -> Callable[..., str]:
    def text(*values: int) -> str:
        clevel, last_filter, codec = (*values[4:7], 0, 0, 0)[:3]
        return f"{family} {_CODECS[family].get(codec, codec)} {clevel} {_BLOSC_FILTERS.get(last_filter, last_filter)}"

    return text


#: How a filter and its parameters are written, by its registered identifier
#: (https://github.com/HDFGroup/hdf5_plugins/blob/master/docs/RegisteredFilterPlugins.md).
_FILTERS: dict[int, Callable[..., str]] = {
    1: lambda clevel=6, *_: f"gzip {clevel}",
    2: lambda *_: "shuffle",
    3: lambda *_: "fletcher32",
    4: lambda *_: "szip",
    5: lambda *_: "nbit",
    6: lambda *_: "scaleoffset",
    307: lambda *values: f"bzip2 {values[0] if values else ''}",
    32000: lambda *_: "lzf",
    32001: _blosc("blosc"),
    32004: lambda *_: "lz4",
    32008: lambda *values: f"bitshuffle {_CODECS['bitshuffle'].get((*values, 0, 0, 0, 0, 0)[4], '')}",
    32015: lambda clevel=3, *_: f"zstd {clevel}",
    _BLOSC2: _blosc("blosc2"),
}


@contextmanager
def open_file(path: str | os.PathLike[str], cache_nbytes: int = _CACHE_NBYTES) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading without locking it for a writer, also while one appends in SWMR mode.

    Raises
    ------
    InputError
        No such file, no permission, not HDF5, cut or damaged.
    """
    file = open_handle(path, cache_nbytes)
    try:
        yield file
    finally:
        file.close()


def open_handle(path: str | os.PathLike[str], cache_nbytes: int = _CACHE_NBYTES) -> h5py.File:
    """As `open_file`, for who closes it later."""
    # HDF5's manual: a prime number of slots, about a hundred times the chunks that fit; 1 MiB is a small chunk.
    cache = {"rdcc_nbytes": cache_nbytes, "rdcc_nslots": 10007, "locking": False}
    try:
        return h5py.File(path, "r", **cache)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except PermissionError:
        raise InputError(f"{path}: no permission to read it") from None
    except IsADirectoryError:
        raise InputError(f"{path}: must be a file, got a folder") from None
    except OSError as error:
        if Path(path).stat().st_size == 0:
            raise InputError(f"{path}: must be an HDF5 file, got an empty one") from None
        if not h5py.is_hdf5(path):
            raise InputError(f"{path}: must be an HDF5 file, got something else") from None
        # Opened by a writer in SWMR mode, or left so by one that was killed?
        with refusing_damage(f"{path}: is cut or damaged"):
            try:
                return h5py.File(path, "r", swmr=True, **cache)
            except (OSError, RuntimeError):
                raise error from None


@contextmanager
def refusing_damage(place: str) -> Iterator[None]:
    """Turn what h5py raises where a file is damaged into an InputError that begins with `place`."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{place}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What HDF5 says, without the name of its function and on one line.

    >>> _reason(OSError("Unable to synchronously open file (truncated file: eof = 96)"))
    'truncated file: eof = 96'
    """
    text = " ".join(str(error).split())
    inner = text[text.find("(") + 1 : text.rfind(")")]
    return inner if "(" in text and inner else text


def virtual_sources(dataset: h5py.Dataset) -> list[tuple[Any, str]]:
    """The mappings of a virtual dataset, each with the path of its source file.

    Raises
    ------
    InputError
        Naming a file that is not there: HDF5 would read fill values in its place, silently.
    """
    sources = []
    path = dataset.file.filename
    for mapping in dataset.virtual_sources():
        found = path if mapping.file_name == "." else _find_file(mapping.file_name, Path(path).parent)
        if found is None:
            raise InputError(f"{path}: {dataset.name} is virtual and its source {mapping.file_name} must exist")
        sources.append((mapping, found))
    return sources


def _find_file(name: str, folder: Path) -> str | None:
    """Where HDF5 finds a file that another one names; None where it does not. A pattern with `%b` counts as found."""
    path = Path(name)
    places = [path, folder / path.name] if path.is_absolute() else [folder / path, path]
    prefix = os.environ.get("HDF5_VDS_PREFIX")
    if prefix:
        places.insert(0, Path(prefix.replace("${ORIGIN}", str(folder))) / path)
    return next((str(place) for place in places if "%" in name or place.is_file()), None)


def physical(dataset: h5py.Dataset) -> Iterator[h5py.Dataset]:
    """The datasets that hold the bytes: itself, or each distinct source of a virtual one while it is looked at."""
    if not dataset.is_virtual:
        yield dataset
        return
    for path, name in dict.fromkeys((path, mapping.dset_name) for mapping, path in virtual_sources(dataset)):
        if "%" in path + name:
            continue
        with open_file(path) as file:
            if name not in file:
                raise InputError(f"{path}: must hold {name}, which {dataset.file.filename} maps, got no such dataset")
            yield from physical(file[name])


def storage(dataset: h5py.Dataset) -> Storage:
    """How a dataset is stored; of a virtual one, its sources, which are taken to be alike.

    Raises
    ------
    InputError
        Where a filter is not installed.
    """
    nbytes = 0
    first: tuple[tuple[int, ...] | None, tuple[str, ...]] | None = None
    for part in physical(dataset):
        nbytes += part.id.get_storage_size()
        first = first or (part.chunks, filters(part))
    chunks, texts = first or (None, ())
    return Storage(nbytes, chunks, texts)


def filters(dataset: h5py.Dataset) -> tuple[str, ...]:
    """A text for each filter of a dataset, such as ``("shuffle", "gzip 4")``; refused where one is not installed."""
    plist = dataset.id.get_create_plist()
    texts = []
    for index in range(plist.get_nfilters()):
        code, _, values, name = plist.get_filter(index)
        name = name.decode(errors="replace").split(";")[0].strip()
        if not h5py.h5z.filter_avail(code):
            raise InputError(
                f"{dataset.file.filename}: {dataset.name} is compressed with filter {code} ({name or 'unnamed'}), "
                f"which h5py and hdf5plugin {hdf5plugin.version} do not have"
            )
        package = _PLUGINS.get(values[6]) if code == _BLOSC2 and len(values) > 6 else None
        if package and importlib.util.find_spec(package.replace("-", "_")) is None:
            raise InputError(
                f"{dataset.file.filename}: {dataset.name} is compressed with a Blosc2 plug-in:"
                f" {package} is not installed"
            )
        known = _FILTERS.get(code)
        texts.append(known(*values).strip() if known else f"{name or code} {list(values)}")
    return tuple(texts)


def cache_nbytes(stored: Storage, shape: tuple[int, ...], frame_ndim: int, itemsize: int) -> int:
    """Size of a chunk cache that lets frames be read one after the other without decoding a chunk twice.

    A row of chunks, as far as it is bounded, but always the one chunk that HDF5 must decode as a whole anyway.
    """
    if stored.chunks is None or len(stored.chunks) != len(shape):
        return _CACHE_NBYTES
    chunk = math.prod(stored.chunks) * itemsize
    tiles = math.prod(-(-n // c) for n, c in zip(shape[-frame_ndim:], stored.chunks[-frame_ndim:], strict=True))
    return max(_CACHE_NBYTES, chunk, min(chunk * tiles, _ROW_NBYTES))


def frame_bytes(dataset: h5py.Dataset, frame_ndim: int) -> NDArray[np.int64] | None:
    """Stored bytes of each frame, shape (frames,): those of a chunk shared evenly among its frames.

    0 where none of its chunks was ever written. None where the file does not tell: contiguous data, or a virtual
    dataset that is more than whole frames of its sources in some order.
    """
    lead_ndim = dataset.ndim - frame_ndim
    lead_shape = dataset.shape[:lead_ndim]
    if dataset.is_virtual:
        return _virtual_frame_bytes(dataset, frame_ndim) if lead_ndim == 1 else None
    if dataset.chunks is None:
        return None if dataset.id.get_storage_size() else np.zeros(math.prod(lead_shape), np.int64)
    offsets: list[tuple[int, ...]] = []
    sizes: list[int] = []

    def visit(chunk: Any) -> None:
        offsets.append(chunk.chunk_offset[:lead_ndim])
        sizes.append(chunk.size)

    dataset.id.chunk_iter(visit)
    chunks = dataset.chunks[:lead_ndim]
    grid = tuple(-(-n // c) for n, c in zip(lead_shape, chunks, strict=True))
    rows = np.array(offsets, np.int64).reshape(len(sizes), lead_ndim) // np.array(chunks, np.int64)
    index = np.ravel_multi_index(tuple(rows.T), grid) if lead_ndim else np.zeros(len(sizes), np.int64)
    nbytes = np.bincount(index, weights=sizes, minlength=math.prod(grid)).reshape(grid)
    for axis, (n, c) in enumerate(zip(lead_shape, chunks, strict=True)):
        extents = np.minimum(c, n - c * np.arange(grid[axis]))
        columns = (-1, *(1,) * (nbytes.ndim - axis - 1))
        nbytes = np.repeat(nbytes / extents.reshape(columns), extents, axis=axis)
    return np.ceil(nbytes).astype(np.int64).ravel()


def _virtual_frame_bytes(dataset: h5py.Dataset, frame_ndim: int) -> NDArray[np.int64] | None:
    """As `frame_bytes`, from the sources; frames that no source covers have 0."""
    nbytes = np.zeros(dataset.shape[0], np.int64)
    known: dict[tuple[str, str], NDArray[np.int64] | None] = {}
    for mapping, path in virtual_sources(dataset):
        key = (path, mapping.dset_name)
        if "%" in "".join(key):
            return None
        if key not in known:
            with open_file(path) as file:
                source = file[mapping.dset_name]
                fits = source.ndim - frame_ndim in (0, 1)
                known[key] = frame_bytes(source, frame_ndim) if fits else None
        stored = known[key]
        frames = _selected(mapping.vspace, dataset.shape[0])
        if stored is None or frames is None:
            return None
        origin = _selected(mapping.src_space, len(stored)) if len(stored) > 1 else np.zeros(1, np.int64)
        if origin is None or len(origin) != len(frames):
            return None
        np.add.at(nbytes, frames, stored[origin])
    return nbytes


def _selected(space: Any, length: int) -> NDArray[np.int64] | None:
    """Indices along the first axis that a selection covers; None where it is not regular or has no end."""
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return np.arange(length)
    try:
        start, stride, count, block = (values[0] for values in space.get_regular_hyperslab())
    except (RuntimeError, ValueError, TypeError):
        return None
    if h5py.h5s.UNLIMITED in (count, block) or max(count, block) > length:
        return None
    indices = (start + stride * np.arange(count))[:, None] + np.arange(block)
    return indices.ravel() if indices.size and indices.max() < length else None
