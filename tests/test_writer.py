"""The streaming writer: what goes in comes out of a foreign reader, and what cannot go in says so."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import Memory, stack_of
from numpy.typing import NDArray

from tuner.apply.foreign import verify_written
from tuner.apply.opening import open_writer
from tuner.config import Blosc2, Config
from tuner.errors import InputError, TunerError, VerificationError
from tuner.profile import Match, Profile
from tuner.stack import Stack
from tuner.steps.uniform import Uniform

DTYPES = ("bool", "uint8", "uint16", "int32", "uint64", "float16", "float32", "float64", ">u2", ">f4")


def profile(dtype: str = "uint16", chunks: tuple[int, ...] = (1, -1, -1), **blosc2: Any) -> Profile:
    config = Config(chunks, Blosc2(**blosc2))
    return Profile("test", Match(np.dtype(dtype).newbyteorder("=").name), config, config)


def noise(shape: tuple[int, ...], dtype: str, seed: int = 0) -> NDArray[Any]:
    """Every bit pattern of the dtype, NaN with payloads included."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype) == np.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(rng.bytes(size), dtype).reshape(shape)


@settings(max_examples=20)
@given(st.data())
def test_what_is_appended_is_what_a_foreign_reader_gets(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    frame_shape = tuple(data.draw(st.lists(st.integers(1, 13), min_size=1, max_size=2)))
    tile = [data.draw(st.sampled_from([-1, 1, size, (size + 1) // 2, size + 3])) for size in frame_shape]
    chunks = (data.draw(st.integers(1, 5)), *tile)
    frames = noise((data.draw(st.integers(1, 12)), *frame_shape), dtype, data.draw(st.integers(0, 99)))
    path = tmp_path_factory.mktemp("written") / "scan.h5"
    buffer = np.empty(frames.shape, frames.dtype)
    with open_writer(
        path,
        profile(dtype, chunks, typesize=1),
        frame_shape=frame_shape,
        dtype=dtype,
        workers=data.draw(st.integers(1, 3)),
    ) as writer:
        done = 0
        while done < len(frames):
            count = data.draw(st.integers(0, len(frames) - done))
            if count:
                buffer[:count] = frames[done : done + count]
                writer.append(buffer[:count])
            else:
                count = 1
                buffer[0] = frames[done]
                writer.append(buffer[0])
            buffer.view("uint8")[...] = 0xA5  # the caller reuses its buffer
            done += count
            assert writer.frames_written == done
            if data.draw(st.booleans()):
                safe = writer.flush()
                assert safe == done // chunks[0] * chunks[0]
    original = stack_of(frames, len(frame_shape))
    assert verify_written(original, path)["frames"] == len(frames)


@settings(max_examples=10)
@given(
    size=st.integers(1, 3),
    rows=st.sampled_from([1, 4, 6]),
    order=st.sampled_from(["C", "F"]),
    workers=st.integers(1, 3),
    steps=st.sampled_from([(), (Uniform(16),)]),
)
def test_frames_that_are_lent_may_change_once_depth_chunks_were_given(
    tmp_path_factory: pytest.TempPathFactory, size: int, rows: int, order: Any, workers: int, steps: Any
) -> None:
    path = tmp_path_factory.mktemp("written") / "scan.h5"
    known = profile(chunks=(size, rows, -1))
    known = replace(known, config=replace(known.config, steps=steps), evidence={"promise": {"provisional": False}})
    frames = noise((40 * size + 1, 6, 50), "uint16", size) // 16 * 16  # which the step leaves
    with open_writer(path, known, frame_shape=(6, 50), dtype="uint16", workers=workers) as writer:
        ring = [np.empty((size, 6, 50), "uint16", order) for _ in range(writer.depth + 1)]
        for number in range(40):
            lent = ring[number % len(ring)]
            lent[...] = frames[number * size : (number + 1) * size]
            writer.append(lent, copy=False)
        writer.append(frames[-1], copy=False)
        writer.flush()
        for lent in ring:
            lent[...] = 0xA5
    assert verify_written(stack_of(frames, 2), path)["frames"] == len(frames)


def test_the_order_of_many_small_frames_is_kept(tmp_path: Path) -> None:
    frames = np.arange(5000, dtype="uint16")[:, None, None] * np.ones((4, 3), "uint16")
    with open_writer(tmp_path / "a.h5", profile(chunks=(1, 2, -1)), frame_shape=(4, 3), dtype="uint16") as writer:
        for frame in frames:
            writer.append(frame)
    verify_written(stack_of(frames), tmp_path / "a.h5")


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    mask = np.zeros((4, 5), bool)
    mask[1, 2] = True
    ours = profile(codec="zstd")
    with open_writer(
        tmp_path / "a.h5", ours, dataset="/scan/detector/frames", frame_shape=(4, 5), dtype="uint16", mask=mask
    ) as writer:
        writer.append(np.ones((4, 5), "uint16"))
    with h5py.File(tmp_path / "a.h5") as file:
        group = file[file.attrs["default"]]
        assert group.attrs["NX_class"] == "NXentry"
        group = group[group.attrs["default"]]
        assert group.attrs["NX_class"] == "NXdata"
        dataset = group[group.attrs["signal"]]
        assert dataset.name == "/scan/detector/frames"
        assert dataset.maxshape == (None, 4, 5)
        assert list(dataset._filters) == ["32026", "fletcher32"]
        assert dataset.attrs["tuner_profile"] == "test"
        assert dataset.attrs["tuner_digest"] == ours.digest
        assert Config.from_dict(json.loads(dataset.attrs["tuner_config"])) == ours.config
        assert (file["scan/instrument/detector/pixel_mask"][()] == mask).all()


@pytest.mark.parametrize(("dtype", "value"), [("uint16", 65535), ("int32", -1), ("int64", 0), ("float32", np.nan)])
def test_a_pixel_that_is_not_there_is_invalid(tmp_path: Path, dtype: str, value: float) -> None:
    with open_writer(tmp_path / "a.h5", profile(dtype), frame_shape=(4, 5), dtype=dtype):
        pass
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_equal(file["entry/data/data"].fillvalue, value)


def test_a_boolean_reads_as_a_boolean(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.h5", profile("bool"), frame_shape=(4, 5), dtype=bool) as writer:
        writer.append(np.eye(4, 5, dtype=bool))
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["entry/data/data"].dtype == np.bool_


def test_a_flipped_byte_is_a_read_error(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with open_writer(path, profile(codec="zstd"), frame_shape=(64, 64), dtype="uint16") as writer:
        writer.append(np.random.default_rng(0).poisson(9, (3, 64, 64)).astype("uint16"))
    with h5py.File(path) as file:
        chunk = file["entry/data/data"].id.get_chunk_info(1)
    content = path.read_bytes()
    for index in range(chunk.byte_offset, chunk.byte_offset + chunk.size, 97):
        damaged = bytearray(content)
        damaged[index] ^= 1 << index % 8
        with h5py.File(io.BytesIO(damaged)) as file:
            assert file["entry/data/data"][::2].any()
            with pytest.raises(OSError, match=r"filter returned failure|Fletcher32"):
                file["entry/data/data"][1]


BAD = {
    "dtype": ({"dtype": "uint32"}, r"a\.h5: the profile is for dtype uint16, got uint32"),
    "axes": ({"frame_shape": (10,)}, r"chunks must be frames and the 1 axes of a frame"),
    "mode": ({"mode": "a"}, r"mode must be 'x' or 'w', got 'a'"),
    "profile": ({"profile": "i03.yaml"}, r"profile must be what load_profile returns, got 'i03.yaml'"),
    "fields": ({"fields": [3]}, r"fields must be a mapping of path to value, got \[3\]"),
    "workers": ({"workers": 0}, r"workers must be a whole number >= 1, got 0"),
    "half a worker": ({"workers": 2.5}, r"workers must be a whole number >= 1, got 2\.5"),
    "roll_every": ({"access": "rolling", "roll_every": "9"}, r"roll_every must be a whole number >= 1, got '9'"),
    "dataset": ({"dataset": "/entry//data"}, r"dataset must be a path such as /entry/data/data, got '/entry//data'"),
    "pixel": ({"dtype": "uint17"}, r"dtype must be one of numpy's, got 'uint17'"),
    "complex": ({"dtype": "complex64"}, "dtype must be boolean, integer or float of at most 64 bits, got complex64"),
    "objects": ({"dtype": "O"}, "dtype must be boolean, integer or float of at most 64 bits, got object"),
    "shape": ({"frame_shape": (0, 5)}, r"frame_shape must be one or two whole numbers >= 1, got \(0, 5\)"),
    "half a pixel": ({"frame_shape": (4.5, 5)}, r"frame_shape must be one or two whole numbers, got \(4\.5, 5\)"),
    "size": ({"frame_shape": 5}, r"frame_shape must be one or two whole numbers, got 5"),
    "mask": ({"mask": np.zeros((2, 2), bool)}, r"mask must be bool of shape \(4, 5\), got bool of shape \(2, 2\)"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused_before_the_file_is_there(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    arguments = {"profile": profile(), "frame_shape": (4, 5), "dtype": "uint16", **change}
    with pytest.raises(InputError, match=message):
        open_writer(tmp_path / "a.h5", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none/a\.h5: folder .*none must exist"):
        open_writer(tmp_path / "none" / "a.h5", profile(), frame_shape=(4, 5), dtype="uint16")


def test_an_existing_file_is_refused_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_text("precious")
    with pytest.raises(InputError, match=r"a\.h5: exists already"):
        open_writer(path, profile(), frame_shape=(4, 5), dtype="uint16")
    with pytest.raises(InputError, match="profile is for dtype"):
        open_writer(path, profile(), frame_shape=(4, 5), dtype="int16", mode="w")
    assert path.read_text() == "precious"
    with open_writer(path, profile(), frame_shape=(4, 5), dtype="uint16", mode="w"):
        assert h5py.is_hdf5(path)  # a reader may open it while it is being written
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.ones((4, 5), "int16"), "frames must be uint16, got int16"),
        (np.ones((5, 4), "uint16"), r"frames must have shape \(4, 5\) or \(n, 4, 5\), got \(5, 4\)"),
        (np.ones((1, 1, 4, 5), "uint16"), r"got \(1, 1, 4, 5\)"),
        (np.ones(5, "uint16"), r"got \(5,\)"),
        ([np.ones((4, 5), "uint16"), np.ones((4, 4), "uint16")], r"a\.h5: frames must be one array: "),
        (np.ma.array(np.ones((4, 5), "uint16"), mask=np.eye(4, 5)), r"a\.h5: frames must have no masked pixels"),
    ],
)
def test_a_wrong_frame_is_refused_and_the_scan_goes_on(tmp_path: Path, frames: Any, message: str) -> None:
    right = np.arange(40, dtype="uint16").reshape(2, 4, 5)
    with open_writer(tmp_path / "a.h5", profile(), frame_shape=(4, 5), dtype="uint16") as writer:
        writer.append(right[0])
        with pytest.raises(InputError, match=message):
            writer.append(frames)
        writer.append(right[1])
    verify_written(stack_of(right), tmp_path / "a.h5")


@pytest.mark.parametrize("chunks", [(2, -1, -1), (2, 4, -1)])
def test_a_frame_number_that_no_file_can_hold_costs_no_other_frame(tmp_path: Path, chunks: tuple[int, ...]) -> None:
    frames = noise((3, 8, 9), "uint16")
    with open_writer(tmp_path / "a.h5", profile(chunks=chunks), frame_shape=(8, 9), dtype="uint16") as writer:
        writer.append(frames[:2])
        for index in (2**33, 2**64 - 1):  # a counter that ran backwards
            with pytest.raises(InputError, match=f"frames {index} to {index} must be below "):
                writer.append(frames[2], index=index)
        writer.append(frames[2])
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["/entry/data/data"], frames)


def test_an_exception_of_the_caller_leaves_the_frames_so_far(tmp_path: Path) -> None:
    frames = noise((7, 4, 5), "uint16")
    writer = open_writer(tmp_path / "a.h5", profile(chunks=(4, -1, -1)), frame_shape=(4, 5), dtype="uint16")
    with contextlib.suppress(KeyError), writer:
        writer.append(frames)
        raise KeyError
    verify_written(stack_of(frames), tmp_path / "a.h5")
    writer.close()  # closed already: nothing happens
    with pytest.raises(InputError, match="the writer is closed"):
        writer.append(frames)


def test_a_plain_reader_sees_the_last_flush_while_the_scan_runs(tmp_path: Path) -> None:
    frames = noise((9, 4, 5), "uint16")
    script = "import h5py, hdf5plugin, sys; print(*h5py.File(sys.argv[1])['entry/data/data'][:].ravel())"
    with open_writer(tmp_path / "a.h5", profile(chunks=(4, -1, -1)), frame_shape=(4, 5), dtype="uint16") as writer:
        for start, stop, safe in ((0, 3, 0), (3, 6, 4), (6, 9, 8)):
            writer.append(frames[start:stop])
            assert writer.flush() == safe
            command = [sys.executable, "-I", "-c", script, str(tmp_path / "a.h5")]
            seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            assert [int(value) for value in seen] == frames[:safe].ravel().tolist()


def test_a_target_that_vanishes_is_noticed(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "a.h5", profile(), frame_shape=(4, 5), dtype="uint16")
    writer.append(noise((2, 4, 5), "uint16"))
    (tmp_path / "a.h5").unlink()
    with pytest.raises(TunerError, match=r"a\.h5: No such file or directory: frames from 0 on are not safely written"):
        writer.flush()
    with pytest.raises(TunerError, match="frames from 0 on"):
        writer.append(noise((4, 5), "uint16"))
    writer.close()


FULL = """
import resource, sys
import numpy as np
from tuner.apply.opening import open_writer
from tuner.config import Config
from tuner.errors import TunerError
from tuner.profile import Match, Profile
path, frames, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
config = Config((frames, -1, -1))
writer = open_writer(path, Profile("test", Match("uint16"), config, config), frame_shape=(64, 64), dtype="uint16")
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
rng = np.random.default_rng(0)
flushed = 0
try:
    for number in range(1000):
        writer.append(rng.integers(0, 65536, (64, 64), "uint16"))
        if number % 10 == 9:
            flushed = writer.flush()
except TunerError as error:
    print(flushed, error)
writer.close()
"""


@pytest.mark.parametrize("frames", [1, 8])
@pytest.mark.parametrize("limit", [300_000, 301_234, 700_000])
def test_a_full_disk_is_one_line_and_a_file_that_reads_up_to_there(tmp_path: Path, frames: int, limit: int) -> None:
    path = tmp_path / "a.h5"
    command = [sys.executable, "-c", FULL, str(path), str(frames), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    flushed, message = done.stdout.strip().split(" ", 1)
    assert done.stderr == ""
    assert message.startswith(f"{path}: File too large: frames from ")
    safe = int(message.split("frames from ")[1].split()[0])
    assert safe >= int(flushed) > 0
    rng = np.random.default_rng(0)
    with h5py.File(path) as file:
        assert len(file["entry/data/data"]) == safe
        for frame in file["entry/data/data"]:
            assert (frame == rng.integers(0, 65536, (64, 64), "uint16")).all()


def test_memory_in_flight_is_bounded(tmp_path: Path) -> None:
    script = """
import resource, sys, numpy as np
from tuner.apply.opening import open_writer
from tuner.config import Config
from tuner.profile import Match, Profile
config = Config()
frame = np.random.default_rng(0).integers(0, 65536, (1024, 1024), "uint16")
with open_writer(sys.argv[1], Profile("t", Match("uint16"), config, config), frame_shape=frame.shape, dtype="uint16",
                 workers=2) as writer:
    for number in range(int(sys.argv[2])):
        writer.append(frame)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""

    def peak_kib(frames: int) -> int:
        command = [sys.executable, "-c", script, str(tmp_path / f"{frames}.h5"), str(frames)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak_kib(120) - peak_kib(20) < 20 << 10


@pytest.mark.parametrize("dataset", [None, "/entry/data/data"])
def test_the_foreign_reader_names_the_first_frame_that_differs(tmp_path: Path, dataset: str | None) -> None:
    frames = noise((9, 4, 5), "float32")
    with open_writer(tmp_path / "a.h5", profile("float32", (2, -1, -1)), frame_shape=(4, 5), dtype="float32") as writer:
        writer.append(frames)
    other = frames.copy()
    other.view("uint32")[6, 3, 4] ^= 1
    assert verify_written(stack_of(frames), tmp_path / "a.h5", dataset)["dataset"] == "/entry/data/data"
    with pytest.raises(VerificationError, match=r"a\.h5: /entry/data/data: frame 6 differs from that of memory"):
        verify_written(stack_of(other), tmp_path / "a.h5", dataset)
    with pytest.raises(VerificationError, match=r"must have shape \(8, 4, 5\) as memory, got \(9, 4, 5\)"):
        verify_written(stack_of(frames[:8]), tmp_path / "a.h5", dataset)
    with pytest.raises(VerificationError, match="must have dtype int32 as memory, got float32"):
        verify_written(stack_of(frames.view("int32")), tmp_path / "a.h5", dataset)
    with pytest.raises(InputError, match=r"a\.h5: no dataset none in it"):
        verify_written(stack_of(frames), tmp_path / "a.h5", "none")
    with pytest.raises(InputError, match=r"b\.h5: no such file"):
        verify_written(stack_of(frames), tmp_path / "b.h5", dataset)


def test_a_payload_of_nan_counts(tmp_path: Path) -> None:
    frames = np.array([0x7FC00000, 0x7FC00001], "uint32").view("float32").reshape(2, 1, 1)
    with open_writer(tmp_path / "a.h5", profile("float32"), frame_shape=(1, 1), dtype="float32") as writer:
        writer.append(frames)
    verify_written(stack_of(frames), tmp_path / "a.h5")
    with pytest.raises(VerificationError, match="frame 0 differs"):
        verify_written(stack_of(frames[::-1].copy()), tmp_path / "a.h5")


def test_a_reader_that_dies_or_finds_damage_is_a_failed_verification(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    frames = noise((9, 64, 64), "uint16")
    with open_writer(path, profile(), frame_shape=(64, 64), dtype="uint16") as writer:
        writer.append(frames)
    with h5py.File(path) as file:
        place = file["entry/data/data"].id.get_chunk_info(5).byte_offset + 200
    with path.open("r+b") as opened:
        opened.seek(place)
        opened.write(b"damage")
    with pytest.raises(VerificationError, match="frame 5 cannot be read"):
        verify_written(stack_of(frames), path)

    class Killing(Memory):
        """Kills the reader while it works, as a bug in a filter would."""

        def read(self, start: int, stop: int) -> NDArray[Any]:
            me = os.getpid()
            children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
            os.kill(int(children[-1]), 11)
            return super().read(start, stop)

    dying = Stack("memory", frames.shape, 2, frames.dtype, Killing(frames))
    with pytest.raises(VerificationError, match=r"the reader was killed by signal 11 on frames 0 to 8"):
        verify_written(dying, path)


PLUGIN_MISSING = importlib.util.find_spec("blosc2_j2k") is None


@pytest.mark.skipif(not PLUGIN_MISSING, reason="blosc2-j2k is installed here")
def test_a_plugin_that_is_not_installed_is_refused_before_the_file_is_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="codec j2k must work here: blosc2-j2k is not installed"):
        open_writer(tmp_path / "a.h5", profile(codec="j2k", filters=()), frame_shape=(4, 5), dtype="uint16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(PLUGIN_MISSING, reason="blosc2-j2k is not installed: pip install tuner[plugins]")
def test_frames_that_a_plugin_refuses_are_stored_all_the_same(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype("uint16")
    frames = np.stack([smooth, noise((64, 64), "uint16"), smooth])  # j2k raises on what it cannot compress
    config = profile(codec="j2k", filters=()).config
    mixed = Profile("test", Match("uint16"), config, Config(blosc2=Blosc2("zstd")))
    with open_writer(tmp_path / "a.h5", mixed, frame_shape=(64, 64), dtype="uint16") as writer:
        writer.append(frames)
    verify_written(stack_of(frames), tmp_path / "a.h5")
