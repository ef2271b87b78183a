"""Cutting and encoding: chunks of frames to Blosc2 frames and back."""

from __future__ import annotations

import math
import subprocess
import sys

import blosc2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.apply.checksum import fletcher32, fletcher32_numpy
from tuner.apply.cut import cut, slabs
from tuner.apply.encode import Encoder, cparams
from tuner.config import FILTERS, Blosc2, Config, chunk_grid
from tuner.errors import CodecError, InputError

SIZES = st.integers(1, 9)


@given(st.lists(st.tuples(SIZES, SIZES), min_size=2, max_size=3))
def test_cutting_and_reassembling_is_the_identity(axes: list[tuple[int, int]]) -> None:
    shape, chunk_shape = tuple(size for size, _ in axes), tuple(extent for _, extent in axes)
    frames = np.arange(1, math.prod(shape) + 1).reshape(shape)
    padded = np.full(tuple(-(-n // c) * c for n, c in axes), -1)
    for corner, chunk in cut(frames, chunk_shape):
        assert chunk.shape == chunk_shape
        assert chunk.flags.c_contiguous
        padded[tuple(slice(a, a + c) for a, c in zip(corner, chunk_shape, strict=True))] = chunk
    inside = tuple(slice(n) for n in shape)
    assert (padded[inside] == frames).all()
    padded[inside] = 0
    assert not padded.any()  # everything is covered, and the padding is zero


def test_a_chunk_that_lies_in_memory_already_is_not_copied() -> None:
    frames = np.zeros((6, 4, 5), "uint16")
    assert all(np.shares_memory(chunk, frames) for _, chunk in cut(frames, (2, 4, 5)))


@given(st.lists(SIZES, max_size=3), st.integers(1, 60))
def test_slabs_number_all_frames_once_and_each_is_a_chunk_of_the_grid(lead: list[int], frames: int) -> None:
    lead_chunk = chunk_grid((*lead, 7), 1, (frames, 7))[: len(lead)]
    numbers = np.arange(math.prod(lead)).reshape(lead)
    stop = 0
    for slab in slabs(tuple(lead), lead_chunk):
        assert slab.start == stop
        stop = slab.stop
        selection = tuple(slice(a, a + n) for a, n in zip(slab.corner, slab.extent, strict=True))
        assert numbers[selection].ravel().tolist() == list(range(slab.start, slab.stop))
        assert all(a % c == 0 for a, c in zip(slab.corner, lead_chunk, strict=True))
        assert slab.stop - slab.start <= max(1, frames)
    assert stop == math.prod(lead)


@given(
    st.sampled_from(["blosclz", "lz4", "zstd"]),
    st.integers(0, 9),
    st.sampled_from([(), ("shuffle",), ("delta", "bitshuffle"), ("shuffle", "bytedelta")]),
    st.integers(1, 3000),
    st.integers(0, 2**32 - 1),
)
def test_the_patched_template_is_the_frame_that_c_blosc2_makes(
    codec: str, clevel: int, filters: tuple[str, ...], items: int, seed: int
) -> None:
    chunk = np.random.default_rng(seed).poisson(100, items).astype("uint16")
    chunk[0] ^= 1  # a constant chunk would go into the frame's index
    config = Blosc2(codec, clevel=clevel, filters=filters, typesize=2)
    encoder = Encoder(config, chunk.shape, chunk.dtype)
    schunk = blosc2.SChunk(chunksize=chunk.nbytes, cparams=blosc2.CParams(**cparams(config)))
    schunk.append_data(chunk)
    if items > 1:
        assert encoder.encode(chunk) == schunk.to_cframe()
    assert (encoder.decode(encoder.encode(chunk)) == chunk).all()


@given(
    st.sampled_from(["blosclz", "lz4", "lz4hc", "zstd", "zlib"]),
    st.sampled_from([(), ("shuffle",), ("delta", "bitshuffle"), ("shuffle", "bytedelta")]),
    st.sampled_from(["always", "never"]),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([0, 4096, 16384]),
)
def test_level_0_stores_whatever_else_is_asked_for(
    codec: str, filters: tuple[str, ...], splitmode: str, typesize: int, blocksize: int
) -> None:
    chunk = np.random.default_rng(0).poisson(3, (2, 64, 64)).astype("uint16")
    asked = Config((2, -1, -1), Blosc2(codec, 0, 0, filters, splitmode, typesize, blocksize))
    resolved = asked.resolve((64, 64), chunk.dtype)
    assert resolved == Config((2, 64, 64), Blosc2(codec, clevel=0, filters=(), typesize=2))
    frames = [Encoder(blosc2, chunk.shape, chunk.dtype).encode(chunk) for blosc2 in (asked.blosc2, resolved.blosc2)]
    assert len(frames[0]) == len(frames[1])
    assert all(chunk.tobytes() in frame for frame in frames)


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_damaged_frame_is_an_error(damage: str) -> None:
    chunk = np.random.default_rng(0).poisson(5, 5000).astype("uint16")
    encoder = Encoder(Blosc2("zstd", typesize=2), chunk.shape, chunk.dtype)
    frame = bytearray(encoder.encode(chunk))
    if damage == "cut":
        frame = frame[: len(frame) // 2]
    else:
        frame[97:129] = bytes(32)
    with pytest.raises(CodecError):
        encoder.decode(bytes(frame))


def test_a_chunk_that_blosc2_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match="chunks must be of at most 2147483615 bytes, got 4294967296"):
        Encoder(Blosc2(typesize=2), (512, 2048, 2048), np.dtype("uint16"))


@given(st.binary(min_size=1, max_size=4000))
def test_the_checksum_of_hdf5_and_of_numpy_agree(data: bytes) -> None:
    assert fletcher32(data) == fletcher32_numpy(data)


@pytest.mark.parametrize("data", [b"\0" * 9, b"\xff" * 2_000_001, bytes(range(256)) * 4001, b"\0\0\xff\xff" * 65535])
def test_the_checksums_agree_where_sums_wrap(data: bytes) -> None:
    assert fletcher32(data) == fletcher32_numpy(data)


def test_every_filter_name_is_that_of_c_blosc2() -> None:
    assert {name: blosc2.Filter[name.upper()].value for name in FILTERS} == FILTERS


def test_importing_the_writer_loads_nothing_heavy() -> None:
    heavy = {"optuna", "sklearn", "scipy", "joblib", "rich", "pandas", "matplotlib", "dask", "tifffile", "fabio"}
    script = f"import tuner.profile, tuner.apply.opening, tuner.apply.repack, sys; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
