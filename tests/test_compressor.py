"""c-blosc2 called directly makes what python-blosc2 makes, byte for byte, whatever its context compressed before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import blosc2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tuner.apply import encode
from tuner.apply.checksum import fletcher32_numpy, with_checksum
from tuner.apply.compressor import OVERHEAD_NBYTES, Compressor, library
from tuner.apply.encode import ROOM_NBYTES, Encoder, cparams
from tuner.config import Blosc2

CONFIGS = st.builds(
    Blosc2,
    codec=st.sampled_from(["blosclz", "lz4", "lz4hc", "zlib", "zstd"]),
    clevel=st.integers(0, 9),
    filters=st.sampled_from([(), ("shuffle",), ("bitshuffle",), ("delta", "shuffle"), ("shuffle", "bytedelta")]),
    splitmode=st.sampled_from(["always", "never", "auto", "forward_compat"]),
    typesize=st.sampled_from([1, 2, 4]),
    blocksize=st.sampled_from([0, 256, 4096]),
)


def chunks_of(kinds: list[str]) -> list[NDArray[np.uint16]]:
    rng = np.random.default_rng(0)
    made = {
        "zeros": np.zeros(3000, "uint16"),
        "constant": np.full(3000, 7, "uint16"),
        "counts": rng.poisson(30, 3000).astype("uint16"),
        "random": rng.integers(0, 65536, 3000, "uint16"),
    }
    return [made[kind] for kind in kinds]


KINDS = st.lists(st.sampled_from(["zeros", "constant", "counts", "random"]), min_size=1, max_size=5)


def direct(parameters: dict[str, Any]) -> Compressor:
    found = library()
    assert found is not None, "the wheel of python-blosc2 that the tests run with carries it"
    return Compressor(found, parameters)


@given(CONFIGS, KINDS)
def test_chunk_after_chunk_is_as_from_a_new_context(config: Blosc2, kinds: list[str]) -> None:
    parameters = cparams(config)
    compress = direct(parameters)
    for chunk in chunks_of(kinds):
        out = np.empty(chunk.nbytes + 2 * OVERHEAD_NBYTES, np.uint8)
        length = compress(chunk, out)
        assert out[:length].tobytes() == blosc2.compress2(chunk, **parameters)


@given(CONFIGS, KINDS)
def test_frames_are_the_same_without_the_library(config: Blosc2, kinds: list[str]) -> None:
    for chunk in chunks_of(kinds):
        encoder = Encoder(config, chunk.shape, chunk.dtype)
        out = np.empty(chunk.nbytes + ROOM_NBYTES, np.uint8)
        frames = [encoder.encode(chunk), bytes(encoder.encode(chunk, out))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encode, "library", lambda: None)
            frames += [encoder.encode(chunk), bytes(encoder.encode(chunk, out))]
        assert len(set(frames)) == 1


def test_threads_that_share_an_encoder_make_the_same_frames() -> None:
    chunk = chunks_of(["counts"])[0]
    encoder = Encoder(Blosc2("zstd", typesize=2), chunk.shape, chunk.dtype)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(encoder.encode, [chunk] * 200))) == 1


@pytest.mark.parametrize("kind", ["zeros", "counts", "random"])
@pytest.mark.parametrize("clevel", [0, 1])
def test_a_checksum_is_appended_in_place(kind: str, clevel: int) -> None:
    (chunk,) = chunks_of([kind])
    encoder = Encoder(Blosc2("lz4", clevel=clevel, typesize=2), chunk.shape, chunk.dtype)
    out = np.empty(chunk.nbytes + ROOM_NBYTES, np.uint8)
    frame = encoder.encode(chunk, out)
    whole = with_checksum(frame)
    assert np.shares_memory(np.frombuffer(whole, np.uint8), out)
    assert bytes(whole) == with_checksum(encoder.encode(chunk))
    assert int.from_bytes(whole[-4:], "little") == fletcher32_numpy(whole[:-4])


def test_memory_that_is_too_little_is_refused() -> None:
    chunk = chunks_of(["random"])[0]
    with pytest.raises(ValueError, match="out must have 6032 bytes, got 6031"):
        direct(cparams(Blosc2(typesize=2)))(chunk, np.empty(6031, np.uint8))


def test_a_chunk_that_is_not_contiguous_is_taken_as_it_reads() -> None:
    chunk = chunks_of(["counts"])[0].reshape(50, 60)
    encoder = Encoder(Blosc2(typesize=2), (60, 50), chunk.dtype)
    assert (encoder.decode(encoder.encode(chunk.T)) == chunk.T).all()
