"""What a writer promises of frames that come late, of writers that are forgotten, and of disks that are full."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import random
import re
import resource
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tuner.apply.opening import open_writer
from tuner.apply.recover import recover
from tuner.apply.scan_file import closing_once
from tuner.apply.writer import Writer
from tuner.config import Blosc2, Config
from tuner.errors import InputError, TunerError
from tuner.profile import Match, Profile
from tuner.read import open_stacks

ACCESSES = ("rolling", "single", "swmr")
MISSING = 65535


def profile(frames: int = 1, tile: int = -1) -> Profile:
    config = Config((frames, tile, -1), Blosc2("zstd", clevel=1))
    return Profile("safe", Match("uint16"), config, config)


def opened(path: Path, frames: int = 1, tile: int = -1, **about: Any) -> Writer:
    return open_writer(path, profile(frames, tile), frame_shape=(4, 5), dtype="uint16", **about)


def numbered(start: int, stop: int) -> NDArray[np.uint16]:
    """Frame n is n everywhere."""
    return np.arange(start, stop, dtype="uint16")[:, None, None] * np.ones((4, 5), "uint16")


def seen(path: Path) -> list[int]:
    with h5py.File(path) as file:
        data = file["entry/data/data"][()]
        assert (data == data[:, :1, :1]).all()
        return [int(frame[0, 0]) for frame in data]


@pytest.mark.parametrize("access", ACCESSES)
def test_a_frame_that_comes_late_is_listed_no_more(tmp_path: Path, access: str) -> None:
    path = tmp_path / "scan.h5"
    with opened(path, 1, -1, access=access, roll_every=6, workers=1) as writer:
        writer.append(numbered(1, 2), index=1)
        writer.flush()
        writer.append(numbered(0, 1), index=0)
    assert seen(path) == [0, 1]
    with h5py.File(path) as file:
        assert file["entry/data/data"].attrs.get("tuner_missing_frames", np.empty((0, 2), int)).tolist() == []


@settings(max_examples=20)
@given(st.data())
def test_frames_come_in_any_order_each_once_and_missing_ones_are_listed(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    """The law: what was taken is there, what was not reads as missing and is listed, all else was refused."""
    access = data.draw(st.sampled_from(ACCESSES))
    path = tmp_path_factory.mktemp("late") / "scan.h5"
    taken: set[int] = set()
    end = 0
    frames = data.draw(st.sampled_from([1, 3]))
    with opened(path, frames, data.draw(st.sampled_from([-1, 3])), access=access, roll_every=6, workers=1) as writer:
        for _ in range(data.draw(st.integers(1, 25))):
            start = max(0, end + data.draw(st.integers(-12, 8)))
            count = data.draw(st.integers(0, 5))
            wanted = set(range(start, start + count))
            try:
                writer.append(numbered(start, start + count), index=start)
            except InputError:
                late = access == "rolling" and start < end - 6
                assert wanted & taken or frames > 1 or late  # in a single file, single frames come at any time
            else:
                assert not wanted & taken
                taken |= wanted
                end = max(end, start + count) if count else end
            assert writer.frames_written == len(taken)
            if data.draw(st.booleans()):
                assert writer.flush() <= end
    expected = [number if number in taken else MISSING for number in range(end)]
    assert seen(path) == expected
    with h5py.File(path) as file:
        runs = file["entry/data/data"].attrs.get("tuner_missing_frames", np.empty((0, 2), int)).tolist()
    assert {n for first, stop in runs for n in range(first, stop)} == set(range(end)) - taken


def test_a_data_file_whose_last_frames_never_come_has_them_missing(tmp_path: Path) -> None:
    with opened(tmp_path / "a.h5", access="rolling", roll_every=6) as writer:
        writer.append(numbered(0, 1))
        writer.flush()
        writer.append(numbered(6, 7), index=6)
    assert seen(tmp_path / "a.h5") == [0, *[MISSING] * 5, 6]


def test_frames_that_cannot_be_placed_are_refused_and_the_scan_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path / "a.h5", 2, access="rolling", roll_every=4) as writer:
        writer.append(numbered(0, 3))
        with pytest.raises(InputError, match="frames 1 to 2 must be new, got some of them before"):
            writer.append(numbered(1, 4), index=1)
        with pytest.raises(InputError, match=r"a\.h5: index must be a whole number >= 0, got 1\.0"):
            writer.append(numbered(1, 2), index=1.0)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="index must be a whole number >= 0, got -1"):
            writer.append(numbered(0, 1), index=-1)
        writer.append(numbered(20, 21), index=20)
        with pytest.raises(InputError, match="frames 4 to 4 come too late: what is around them is written already"):
            writer.append(numbered(4, 5), index=4)
        writer.append(numbered(17, 18), index=17)
    assert seen(tmp_path / "a.h5") == [0, 1, 2, *[MISSING] * 14, 17, MISSING, MISSING, 20]


@pytest.mark.parametrize("access", ACCESSES)
def test_a_forgotten_writer_closes_its_file_at_once(tmp_path: Path, access: str) -> None:
    gc.collect()
    gc.disable()  # no cycle: it does not take the collector
    try:
        writer = opened(tmp_path / "a.h5", 4, access=access, roll_every=4)
        writer.append(numbered(0, 7))
        del writer
        assert seen(tmp_path / "a.h5") == list(range(7))
    finally:
        gc.enable()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tuner")]


LEFT_OPEN = """
import sys, numpy as np
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_writer_safety import opened, numbered
writer = opened(Path(sys.argv[1]), 4, access=sys.argv[2], roll_every=4)
writer.append(numbered(0, 7))
raise SystemExit("the script fails")
"""


@pytest.mark.parametrize("access", ACCESSES)
def test_a_writer_that_is_open_when_the_interpreter_exits_closes_its_file(tmp_path: Path, access: str) -> None:
    path = tmp_path / "a.h5"
    folder = str(Path(__file__).parent)
    command = [sys.executable, "-c", LEFT_OPEN, str(path), access, folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr.strip() == "the script fails"
    assert seen(path) == list(range(7))


@pytest.mark.parametrize("access", ACCESSES)
def test_an_exception_in_the_block_leaves_all_frames(tmp_path: Path, access: str) -> None:
    writer = opened(tmp_path / "a.h5", 4, access=access, roll_every=4)
    with contextlib.suppress(KeyboardInterrupt), writer:
        writer.append(numbered(0, 7))
        raise KeyboardInterrupt
    assert seen(tmp_path / "a.h5") == list(range(7))
    writer.close()
    writer.close()


def plain_look(path: Path) -> list[int]:
    script = "import h5py, hdf5plugin, sys; print(*h5py.File(sys.argv[1])['entry/data/data'][:, 0, 0])"
    done = subprocess.run([sys.executable, "-I", "-c", script, str(path)], capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


def test_a_writer_flushes_every_so_many_frames(tmp_path: Path) -> None:
    with opened(tmp_path / "a.h5", 2, flush_every=5) as writer:
        writer.append(numbered(0, 4))
        assert plain_look(tmp_path / "a.h5") == []
        writer.append(numbered(4, 5))
        assert plain_look(tmp_path / "a.h5") == [0, 1, 2, 3]


def test_a_writer_flushes_every_so_often_also_while_no_frames_come(tmp_path: Path) -> None:
    with opened(tmp_path / "a.h5", 2, flush_every="0.05s") as writer:
        writer.append(numbered(0, 5))
        for _ in range(100):
            time.sleep(0.05)
            if plain_look(tmp_path / "a.h5") == [0, 1, 2, 3]:
                break
        else:
            raise AssertionError("nothing was flushed")
        (tmp_path / "a.h5").unlink()
        time.sleep(0.3)
        with pytest.raises(TunerError, match="frames from 0 on are not safely written"):  # what the clock met
            writer.append(numbered(5, 6))
    writer = opened(tmp_path / "b.h5", flush_every="0.02s")
    writer.append(numbered(0, 3))
    del writer
    time.sleep(0.1)
    assert seen(tmp_path / "b.h5") == [0, 1, 2]


@pytest.mark.parametrize("value", [0, -3, "5", "5 m", "0s"])
def test_what_flush_every_cannot_be_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match="flush_every must be a number of frames >= 1, or seconds such as '5s', got"):
        opened(tmp_path / "a.h5", flush_every=value)
    assert not list(tmp_path.iterdir())


#: Says which system calls a sync makes: the file's content before its name.
SYNC = """
import os, sys, numpy as np
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_writer_safety import opened, numbered
synced, fsync = [], os.fsync
def noted(descriptor):
    path, there = Path(sys.argv[1]), os.fstat(descriptor)
    known = path.exists() and path.stat().st_ino == there.st_ino
    synced.append(path.name if known else os.readlink(f"/proc/self/fd/{descriptor}").rsplit("/", 1)[1])
    fsync(descriptor)
os.fsync = noted
with opened(Path(sys.argv[1]), 2, access=sys.argv[2], roll_every=4) as writer:
    del synced[:]
    writer.append(numbered(0, 7))
    print(writer.sync(), *synced)
"""


@pytest.mark.parametrize("access", ACCESSES)
def test_sync_asks_for_the_disk_file_before_folder(tmp_path: Path, access: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-c", SYNC, str(folder / "a.h5"), access, str(Path(__file__).parent)]
    safe, *synced = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    if access == "rolling":
        data, first, master, second = synced
        assert (int(safe), first, second) == (4, "folder", "folder")
        assert data.startswith(".a_data_000001.h5.")
        assert master.startswith(".a.h5.")
    else:
        assert (int(safe), synced) == (6, ["a.h5", "folder"])


@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize("limit", [100_000, 150_123])
def test_a_full_disk_leaves_all_that_was_acknowledged(tmp_path: Path, access: str, limit: int) -> None:
    script = """
import resource, sys, numpy as np
from tuner.apply.opening import open_writer
from tuner.config import Config
from tuner.errors import TunerError
from tuner.profile import Match, Profile
path, access, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = Config((2, -1, -1))
writer = open_writer(path, Profile("t", Match("uint16"), config, config), frame_shape=(64, 64), dtype="uint16",
                     access=access, roll_every=100)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
rng, safe = np.random.default_rng(0), 0
try:
    for number in range(60):
        writer.append(rng.integers(0, 65536, (64, 64), "uint16"))
        if number % 5 == 4:
            safe = writer.flush()
except TunerError as error:
    print(error)
writer.close()
print(safe)
"""
    path = tmp_path / "a.h5"
    command = [sys.executable, "-c", script, str(path), access, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    message, acknowledged = done.stdout.splitlines()
    assert done.stderr == ""
    assert "File too large: frames from " in message
    safe = int(message.split("frames from ")[1].split()[0])
    assert safe >= int(acknowledged)
    if access == "rolling":  # no file was finished; what was flushed is
        assert safe == 0
        safe = recover(path)["frames"]
    assert not list(tmp_path.glob(".*"))
    rng = np.random.default_rng(0)
    with h5py.File(path) as file:
        data = file["entry/data/data"]
        assert len(data) >= safe > 5
        for frame in data[:safe]:
            assert (frame == rng.integers(0, 65536, (64, 64), "uint16")).all()


#: Writers fail one after the other, and are held with their exceptions until the interpreter exits.
LET_GO = """
import os, random, resource, sys, h5py, numpy as np
from tuner.apply.opening import open_writer
from tuner.config import Config
from tuner.errors import TunerError
from tuner.profile import Match, Profile
folder, access, limited, rounds = sys.argv[1], sys.argv[2], sys.argv[3] == "limit", int(sys.argv[4])
count = lambda: (h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_ALL), len(os.listdir("/proc/self/fd")))
config, moments, before, held = Config((2, -1, -1)), random.Random(access), count(), []
for attempt in range(rounds):
    path = f"{folder}/{attempt}.h5"
    rng = np.random.default_rng(0)
    try:
        writer = open_writer(path, Profile("t", Match("uint16"), config, config), frame_shape=(4, 5), dtype="uint16",
                             access=access, roll_every=1000)
        held.append(writer)
        if limited:
            resource.setrlimit(resource.RLIMIT_FSIZE, (moments.randrange(12_000, 40_000), resource.RLIM_INFINITY))
        else:
            room = os.statvfs(folder)
            with open(f"{folder}/filler", "wb") as file:
                file.write(bytes(max(0, room.f_bavail * room.f_frsize - moments.randrange(0, 40_000))))
        every = moments.choice([1, 9])
        for number in range(4000):
            writer.append(rng.integers(0, 65536, (4, 5), "uint16"), index=3 * number)
            if number % every == 0:
                writer.flush()
        raise AssertionError("it was to fail")
    except TunerError as error:
        held.append(error)
    assert count() == before, (attempt, count(), before)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for name in os.listdir(folder):
        os.unlink(f"{folder}/{name}")
"""


@pytest.mark.parametrize("how", ["limit", "disk"])
@pytest.mark.parametrize("access", ACCESSES)
def test_a_file_that_cannot_be_saved_is_let_go_of(tmp_path: Path, access: str, how: str) -> None:
    """HDF5 keeps the number of a file that it cannot close, and closes it again at exit, which may crash."""
    rounds = os.environ.get("TUNER_FAULTS", "3")
    command = shlex.join([sys.executable, "-c", LET_GO, str(tmp_path), access, how, rounds])
    if how == "disk":
        alone = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
        disk = f"mount -t tmpfs -o size=200k none {tmp_path}"
        if subprocess.run([*alone, disk], capture_output=True, check=False).returncode:
            pytest.skip("the system lets nobody mount a small file system")
        done = subprocess.run([*alone, f"{disk} && {command}"], capture_output=True, text=True, check=False)
    else:
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_failed_first_is_told_and_not_what_follows_as_the_file_is_closed(tmp_path: Path) -> None:
    usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        with closing_once(h5py.File(tmp_path / "a.h5", "w")) as file:
            for number in range(200):
                file[f"{number}/data"] = np.arange(9)
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, most))
            file.flush()

    try:
        with pytest.raises(RuntimeError, match="File too large"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))


@pytest.mark.parametrize("access", ACCESSES)
def test_a_folder_that_vanishes_is_one_clear_exception(tmp_path: Path, access: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    writer = opened(folder / "a.h5", access=access, roll_every=5)
    writer.append(numbered(0, 7))
    writer.flush()
    while folder.exists():  # a file of it may just be given its name
        shutil.rmtree(folder, ignore_errors=True)

    def go_on() -> None:
        for number in range(7, 100):
            writer.append(numbered(number, number + 1))
        writer.flush()

    with pytest.raises(TunerError, match=r"a\.h5: No such file or directory: frames from 0 on are not safely written"):
        go_on()
    with pytest.raises(TunerError, match="frames from 0 on"):
        go_on()
    writer.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tuner")]


@pytest.mark.parametrize("access", ACCESSES)
def test_a_flipped_bit_is_an_error_and_recover_names_the_frame(tmp_path: Path, access: str) -> None:
    path = tmp_path / "a.h5"
    frames = np.random.default_rng(0).poisson(9, (6, 4, 5)).astype("uint16")
    with opened(path, 1, access=access, roll_every=10) as writer:
        writer.append(frames)
    data = tmp_path / "a_data_000001.h5" if access == "rolling" else path
    with h5py.File(data) as file:
        chunk = file["entry/data/data"].id.get_chunk_info(2)
    content = data.read_bytes()
    bits = random.Random(access)
    for _ in range(int(os.environ.get("TUNER_FAULTS", "3")) * 4):
        damaged = bytearray(content)
        damaged[chunk.byte_offset + bits.randrange(chunk.size)] ^= 1 << bits.randrange(8)
        data.write_bytes(damaged)
        with h5py.File(path) as file:
            assert (file["entry/data/data"][3:] == frames[3:]).all()
            with pytest.raises(OSError, match="read"):
                file["entry/data/data"][2]
        assert recover(path)["safe"] == [[0, 2], [3, 6]]


def test_a_master_is_read_back_and_replaces_an_older_one_with_its_files(tmp_path: Path) -> None:
    path = tmp_path / "scan_master.h5"
    with opened(path, access="rolling", roll_every=5) as writer:
        writer.append(numbered(0, 23))
    with pytest.raises(InputError, match="exists already"):
        opened(path, access="rolling", roll_every=5)
    path.rename(tmp_path / "aside.h5")
    with pytest.raises(InputError, match=r"scan_data_000001\.h5: exists already"):
        opened(path, access="rolling", roll_every=5)
    with opened(path, access="rolling", roll_every=5, mode="w") as writer:
        writer.append(numbered(0, 12))
    assert sorted(name.name for name in tmp_path.glob("scan_data*")) == [f"scan_data_00000{n}.h5" for n in (1, 2, 3)]
    stack = open_stacks([path])[0]
    assert stack.shape == (12, 4, 5)
    assert (stack.read(3, 12) == numbered(3, 12)).all()
    stack.source.close()  # type: ignore[union-attr]


def test_fabio_and_silx_open_a_master_and_a_data_file(tmp_path: Path) -> None:
    fabio = pytest.importorskip("fabio")
    path = tmp_path / "scan_master.h5"
    with opened(path, access="rolling", roll_every=5) as writer:
        writer.append(numbered(0, 8))
    with fabio.open(str(path)) as image:
        assert image.nframes == 8
        assert (image.get_frame(6).data == 6).all()
    with fabio.open(str(tmp_path / "scan_data_000002.h5")) as image:
        assert (image.nframes, int(image.data[0, 0])) == (3, 5)


@pytest.mark.parametrize("access", ACCESSES)
def test_a_program_may_change_its_folder_while_it_writes(
    tmp_path: Path, access: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    with opened(Path("scan.h5"), access=access, roll_every=3) as writer:
        writer.append(numbered(0, 4))
        monkeypatch.chdir(elsewhere)
        writer.append(numbered(4, 8))
        assert writer.sync() >= 6
    assert seen(tmp_path / "scan.h5") == list(range(8))
    assert writer.path == tmp_path / "scan.h5"
    assert not list(elsewhere.iterdir())


FORKED = """
import os, signal, sys, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_writer_safety import opened, numbered
warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
signal.alarm(60)
with opened(Path(sys.argv[1]), 4, access=sys.argv[2], roll_every=4) as writer:
    writer.append(numbered(0, 6))
    writer.flush()
    ask, told = os.pipe()
    if not os.fork():
        os.read(ask, 1)
        for call in (lambda: writer.append(numbered(6, 90)), writer.flush, writer.sync):
            try:
                call()
                print("taken")
            except ValueError as error:
                print(error)
        sys.exit()  # closes the writer, and leaves as any program does
    writer.append(numbered(6, 17))
    writer.flush()
    os.write(told, b"x")
    print(os.wait()[1])
    writer.append(numbered(17, 40))
"""


@pytest.mark.parametrize("access", ACCESSES)
def test_what_is_forked_neither_takes_frames_nor_touches_the_file(tmp_path: Path, access: str) -> None:
    path = tmp_path / "a.h5"
    command = [sys.executable, "-c", FORKED, str(path), access, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    *said, code = done.stdout.splitlines()
    assert (code, done.stderr) == ("0", "")
    assert len(said) == 3
    for line in said:
        assert line.startswith(f"{path}: the writer must be used by process ")
    assert seen(path) == list(range(40))


def test_a_writer_is_neither_copied_nor_sent_to_another_process(tmp_path: Path) -> None:
    with opened(tmp_path / "a.h5") as writer:
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"a\.h5: a writer belongs to its process and cannot be copied"):
                duplicate(writer)
        writer.append(numbered(0, 3))
    assert seen(tmp_path / "a.h5") == [0, 1, 2]


@pytest.mark.parametrize("access", ACCESSES)
def test_a_writer_that_gets_no_threads_leaves_nothing_open(tmp_path: Path, access: str) -> None:
    path = tmp_path / "a.h5"
    before, files = threading.active_count(), len([*Path("/proc/self/fd").iterdir()])
    usual = threading.stack_size(1 << 46)  # more than there is memory for
    try:
        with pytest.raises(TunerError, match=r"a\.h5: cannot be written: can't start new thread"):
            opened(path, access=access)
    finally:
        threading.stack_size(usual)
    assert (threading.active_count(), len([*Path("/proc/self/fd").iterdir()])) == (before, files)
    assert seen(path) == []
    with opened(path, access=access, mode="w") as writer:
        writer.append(numbered(0, 3))
    assert seen(path) == [0, 1, 2]


@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize("spare", [10, 40])
def test_too_little_memory_is_one_clear_exception(tmp_path: Path, access: str, spare: int) -> None:
    """Of megabytes: for the first copies of frames, or for what their chunks are encoded to."""
    script = f"""
import resource, sys, numpy
from test_writer_safety import profile
from tuner.apply.opening import open_writer
from tuner.errors import TunerError
frame = numpy.random.default_rng(0).integers(0, 60000, (2000, 2000)).astype("uint16")
with open_writer(sys.argv[1], profile(), frame_shape=frame.shape, dtype="uint16", access="{access}", workers=2,
                 roll_every=1) as writer:
    writer.append(frame)
    print(writer.sync())
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ({spare} << 20), -1))
    try:
        while True:
            writer.append(frame)
    except TunerError as error:
        print(error)
"""
    path = tmp_path / "scan.h5"
    command = [sys.executable, "-c", script, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    safe, said = done.stdout.splitlines()
    assert safe == "1"
    first = re.fullmatch(rf"{path}: Unable to allocate .*: frames from (\d+) on are not safely written, .*", said)
    assert first is not None, said
    assert not done.stderr
    with h5py.File(path) as file:
        assert len(file["entry/data/data"]) == int(first[1]) >= 1
        assert (file["entry/data/data"][()] == file["entry/data/data"][0]).all()
