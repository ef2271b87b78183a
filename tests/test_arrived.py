"""Frames that arrive compressed come out as if they had been decoded before; damaged ones cost no other frame."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tuner.apply.arrived import COMPRESSIONS, CompressedFrame
from tuner.apply.opening import open_writer
from tuner.apply.writer import Writer
from tuner.config import Blosc2, Config
from tuner.errors import CodecError, InputError
from tuner.profile import Invalid, Match, Profile
from tuner.steps.uniform import Uniform

SHAPE = (37, 53)  # not a multiple of eight pixels
MISSING = 65535


def compressed(frame: NDArray[Any], compression: str = "bslz4", block: int = 0) -> bytes:
    """As the HDF5 filters make it; `block` in pixels, which are then no more than 64 bits each."""
    if compression.startswith("bs"):
        filters = hdf5plugin.Bitshuffle(nelems=block * 8, cname=compression[2:])
    else:
        filters = hdf5plugin.LZ4(nbytes=block * 64 if compression == "lz4" else 0)
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        data = file.create_dataset("x", data=frame[None], chunks=(1, *frame.shape), **filters)
        chunk: bytes = data.id.read_direct_chunk((0,) * data.ndim)[1]
    return chunk[16:] if compression == "lz4-block" else chunk


def opened(path: Path, frames: int = 1, **about: Any) -> Writer:
    config = Config((frames, -1, -1), Blosc2("zstd", clevel=1))
    return open_writer(
        path, Profile("arrived", Match("uint16"), config, config), frame_shape=SHAPE, dtype="uint16", **about
    )


def poisson(count: int) -> NDArray[np.uint16]:
    return np.random.default_rng(0).poisson(3, (count, *SHAPE)).astype("uint16")


@settings(max_examples=60)
@given(st.data())
def test_decoding_is_what_hdf5_does(data: st.DataObject) -> None:
    """For any filter, block, dtype and shape."""
    compression = data.draw(st.sampled_from(COMPRESSIONS))
    dtype = np.dtype(data.draw(st.sampled_from(["bool", "uint8", "uint16", "int32", "uint32", "float64"])))
    shape = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 40)))
    high = data.draw(st.sampled_from([2, 9, 251]))
    frame = np.random.default_rng(0).integers(0, high, shape).astype(dtype)
    if compression == "lz4-block" and len(compressed(frame, "lz4")) - 16 == frame.nbytes:
        return  # HDF5's filter stored it as it is: this is no LZ4
    arrived = CompressedFrame(compressed(frame, compression, data.draw(st.integers(0, 20))), compression)
    arrived.check(dtype, frame.nbytes)
    out = np.full_like(frame, 1)
    arrived.decode(out)
    assert (out == frame).all()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(("frames", "access"), [(1, "rolling"), (3, "single")])
def test_compressed_and_other_frames_mix_in_any_order(
    tmp_path: Path, compression: str, frames: int, access: str
) -> None:
    wanted = poisson(11)
    with opened(tmp_path / "a.h5", frames, access=access, roll_every=6, verify="all") as writer:
        for number in (0, 1, 2, 4, 3, 5, 7, 6, 8, 9):
            if number % 4 == 3:
                writer.append(wanted[number], index=number)
            else:
                reused = bytearray(compressed(wanted[number], compression))
                writer.append_compressed(reused, compression, index=number)
                reused[:] = bytes(len(reused))
        writer.append_compressed(compressed(wanted[10], compression), compression)
        assert writer.frames_written == 11
    with h5py.File(tmp_path / "a.h5") as file:
        data = file["entry/data/data"]
        assert (data[()] == wanted).all()
        assert "tuner_damaged_frames" not in data.attrs


def test_frames_are_decoded_in_the_threads_that_encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()
    decode = CompressedFrame.decode

    def spy(self: CompressedFrame, out: NDArray[Any]) -> None:
        threads.add(threading.current_thread().name)
        decode(self, out)

    monkeypatch.setattr(CompressedFrame, "decode", spy)
    with opened(tmp_path / "a.h5", workers=2) as writer:
        for frame in poisson(20):
            writer.append_compressed(compressed(frame))
    assert threads <= {"tuner-encode-0", "tuner-encode-1"}


@pytest.mark.parametrize("frames", [1, 4])
def test_steps_round_them_as_any_frame_but_those_that_stay(tmp_path: Path, frames: int) -> None:
    config = Config((frames, -1, -1), Blosc2("zstd", clevel=1), (Uniform(8),))
    lossy = Profile("arrived", Match("uint16"), config, Config((frames, -1, -1)), Invalid((MISSING,)))
    wanted = np.random.default_rng(0).poisson(500, (10, *SHAPE)).astype("uint16")
    contents = []
    for path, arrives in ((tmp_path / "a.h5", False), (tmp_path / "b.h5", True)):
        with open_writer(path, lossy, frame_shape=SHAPE, dtype="uint16", verify="all") as writer:
            for number, frame in enumerate(wanted):
                if arrives:
                    writer.append_compressed(compressed(frame), lossless=number == 3)
                else:
                    writer.append(frame, lossless=number == 3)
        with h5py.File(path) as file:
            contents.append(
                (file["entry/data/data"][()], file["entry/data/data"].attrs["tuner_lossless_frames"].tolist())
            )
    assert (contents[0][0] == contents[1][0]).all()
    assert contents[0][1] == contents[1][1] == [[3, 4]]
    assert not (contents[1][0][4] % 8).any()
    assert (contents[1][0][3] == wanted[3]).all()


def test_their_drift_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    narrow = Profile("arrived", Match("uint16"), Config(), Config(), envelope={"zero_fraction": (0.9, 1.0)})
    with open_writer(tmp_path / "a.h5", narrow, frame_shape=SHAPE, dtype="uint16") as writer:
        content = compressed(poisson(1)[0])
        for _ in range(2000):
            writer.append_compressed(content)
            if "zero_fraction" in caplog.text:
                break
            time.sleep(0.005)
    assert "zero_fraction" in caplog.text


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_damage_costs_one_frame_and_is_told(tmp_path: Path, compression: str, caplog: pytest.LogCaptureFixture) -> None:
    """Cut anywhere, or with lengths that lead out of it: the frame reads as missing, all others as they were."""
    wanted = poisson(12)
    whole = compressed(wanted[4], compression)
    first = 0 if compression == "lz4-block" else 12
    damaged = {4: whole[: len(whole) // 2], 9: whole + b"x", 10: whole[: first + 2]}
    if first:
        damaged[7] = whole[:12] + b"\xff\xff\xff\xf0" + whole[16:]
        damaged[8] = whole[:12] + b"\x00\x00\x00\x01" + whole[16:]
    if compression == "lz4":
        del damaged[9]  # as HDF5's filter, it does not look behind the last block
    with opened(tmp_path / "a.h5", 3, access="rolling", roll_every=6) as writer:
        for number, frame in enumerate(wanted):
            writer.append_compressed(damaged.get(number, compressed(frame, compression)), compression)
        writer.flush()
    with h5py.File(tmp_path / "a.h5") as file:
        data = file["entry/data/data"]
        for number in range(12):
            assert (data[number] == (MISSING if number in damaged else wanted[number])).all(), number
        runs = data.attrs["tuner_damaged_frames"].tolist()
    assert sorted(damaged) == [number for first, after in runs for number in range(first, after)]
    # Which is told first depends on the threads; not all are told.
    assert any(f"frame {number} is damaged and reads as missing" in caplog.text for number in damaged)


@settings(max_examples=300)
@given(st.data())
def test_no_bytes_crash_the_decoder(data: st.DataObject) -> None:
    """The libraries follow lengths wherever they lead: what does not fit is refused before."""
    compression = data.draw(st.sampled_from(COMPRESSIONS))
    frame = poisson(1)[0]
    content = bytearray(compressed(frame, compression, 8))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    arrived = CompressedFrame(bytes(content), compression)
    guarded = np.full((3, *SHAPE), 7, "uint16")
    try:
        arrived.check(frame.dtype, frame.nbytes)
        arrived.decode(guarded[1])
    except (InputError, CodecError):
        pass
    assert (guarded[[0, 2]] == 7).all()


@pytest.mark.parametrize(
    ("content", "compression", "said"),
    [
        (b"", "bslz4", "frame 1: a frame in bslz4 must have 12 bytes or more, got 0"),
        (b"", "lz4-block", "12 bytes or more"),
        (compressed(poisson(1)[0].astype("uint32")), "bslz4", "must be one of 3922 bytes, got one of 7844"),
        (compressed(poisson(1)[0])[:8] + b"\0\0\0\5", "bslz4", "must be a multiple of 16 bytes, got 5"),
        (compressed(poisson(1)[0])[:8] + b"\0\0\0\0", "lz4", "must be a multiple of 1 bytes, got 0"),
        (b"x", "gzip", "compression must be one of bslz4, bszstd, lz4, lz4-block, got 'gzip'"),
    ],
)
def test_what_is_no_frame_is_refused_and_the_writer_goes_on(
    tmp_path: Path, content: bytes, compression: str, said: str
) -> None:
    with opened(tmp_path / "a.h5") as writer:
        writer.append(poisson(1))
        with pytest.raises(InputError, match=said):
            writer.append_compressed(content, compression)
        with pytest.raises(InputError, match="frames 0 to 0 must be new"):
            writer.append_compressed(compressed(poisson(1)[0]), index=0)
        assert writer.frames_written == 1
        writer.append_compressed(compressed(poisson(2)[1]))
    with h5py.File(tmp_path / "a.h5") as file:
        assert (file["entry/data/data"][()] == poisson(2)).all()
