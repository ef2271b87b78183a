"""c-blosc2 without python-blosc2 in between, which makes a context, zeroed memory and a copy for every chunk."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.apply.codec import blosc2

#: What a chunk that c-blosc2 compresses is longer at most than its pixels (BLOSC2_MAX_OVERHEAD).
OVERHEAD_NBYTES = 32

#: The versions of c-blosc2 whose parameters these are.
_MAJOR = "3."


class _Parameters(ctypes.Structure):
    """`blosc2_cparams` (https://github.com/Blosc/c-blosc2/blob/main/include/blosc2.h)."""

    _fields_ = (
        ("compcode", ctypes.c_uint8),
        ("compcode_meta", ctypes.c_uint8),
        ("clevel", ctypes.c_uint8),
        ("use_dict", ctypes.c_int),
        ("typesize", ctypes.c_int32),
        ("nthreads", ctypes.c_int16),
        ("blocksize", ctypes.c_int32),
        ("splitmode", ctypes.c_int32),
        ("schunk", ctypes.c_void_p),
        ("filters", ctypes.c_uint8 * 6),
        ("filters_meta", ctypes.c_uint8 * 6),
        ("prefilter", ctypes.c_void_p),
        ("preparams", ctypes.c_void_p),
        ("tuner_params", ctypes.c_void_p),
        ("tuner_id", ctypes.c_int),
        ("instr_codec", ctypes.c_bool),
        ("codec_params", ctypes.c_void_p),
        ("filter_params", ctypes.c_void_p * 6),
        # It is passed by value: a later version that has more reads zeros.
        ("later", ctypes.c_void_p * 16),
    )


class Compressor:
    """A context of c-blosc2 that compresses chunk after chunk; for one thread at a time, others run meanwhile.

    What it makes is what `blosc2.compress2` makes, byte for byte.

    Parameters
    ----------
    library : ctypes.CDLL
        As `library` returns it.
    cparams : mapping
        Those of `blosc2.compress2`.
    """

    def __init__(self, library: ctypes.CDLL, cparams: Mapping[str, Any]) -> None:
        self._free, self._compress = library.blosc2_free_ctx, library.blosc2_compress_ctx
        typesize = cparams["typesize"]
        parameters = _Parameters(
            compcode=cparams["codec"].value,
            compcode_meta=cparams["codec_meta"],
            clevel=cparams["clevel"],
            typesize=typesize,
            nthreads=cparams["nthreads"],
            blocksize=cparams["blocksize"],
            splitmode=cparams["splitmode"].value,
        )
        for slot, (kind, meta) in enumerate(zip(cparams["filters"], cparams["filters_meta"], strict=True)):
            # As python-blosc2 has it: bytedelta is told the typesize, and is left out for single bytes.
            delta = kind == blosc2.Filter.BYTEDELTA
            parameters.filters[slot] = 0 if delta and typesize == 1 else kind.value
            parameters.filters_meta[slot] = meta or (typesize if delta and typesize > 1 else 0)
        self._context = library.blosc2_create_cctx(parameters)
        if not self._context:
            raise MemoryError("c-blosc2 made no context")

    def __del__(self) -> None:
        if getattr(self, "_context", None):
            self._free(self._context)

    def __call__(self, chunk: NDArray[Any], out: NDArray[np.uint8]) -> int:
        """Compress an array into memory for it and `OVERHEAD_NBYTES` more; the length, not above 0 if it fails."""
        chunk = np.ascontiguousarray(chunk)
        room = chunk.nbytes + OVERHEAD_NBYTES  # and no more, as what c-blosc2 makes depends on it
        if len(out) < room:
            raise ValueError(f"out must have {room} bytes, got {len(out)}")
        length: int = self._compress(self._context, chunk.ctypes.data, chunk.nbytes, out.ctypes.data, room)
        return length


@cache
def library() -> ctypes.CDLL | None:
    """The c-blosc2 of python-blosc2's wheel; None where there is none, of another version, or unlike python-blosc2."""
    version = blosc2.blosclib_version.split()[0]
    try:
        found = ctypes.CDLL(str(Path(blosc2.__file__).parent / "lib" / "libblosc2.so"))
        found.blosc2_get_version_string.restype = ctypes.c_char_p
        if not version.startswith(_MAJOR) or found.blosc2_get_version_string().decode() != version:
            return None
        pointer, size = ctypes.c_void_p, ctypes.c_int32
        found.blosc2_create_cctx.argtypes, found.blosc2_create_cctx.restype = [_Parameters], pointer
        found.blosc2_free_ctx.argtypes, found.blosc2_free_ctx.restype = [pointer], None
        found.blosc2_compress_ctx.argtypes = [pointer, pointer, size, pointer, size]
        found.blosc2_init()
    except (OSError, AttributeError):
        return None
    probe, out = np.arange(1000, dtype=np.uint32), np.empty(4000 + OVERHEAD_NBYTES, np.uint8)
    parameters = {
        "codec": blosc2.Codec.ZSTD,
        "codec_meta": 0,
        "clevel": 3,
        "typesize": 4,
        "blocksize": 1024,
        "splitmode": blosc2.SplitMode.ALWAYS_SPLIT,
        "filters": [blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA],
        "filters_meta": [0, 0],
        "nthreads": 1,
    }
    length = Compressor(found, parameters)(probe, out)
    return found if out[:length].tobytes() == blosc2.compress2(probe, **parameters) else None
