"""The same pixels in each container, for readers that know its filter and nothing of ours."""

from __future__ import annotations

import ctypes
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import fabio
import h5py
import hdf5plugin
import killing
import numpy as np
import pytest
import silx.io
from foreign import read_elsewhere
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tuner.apply import bitshuffle
from tuner.apply.bitshuffle import BitshuffleEncoder
from tuner.apply.dataset import create_dataset
from tuner.apply.foreign import verify_written
from tuner.apply.opening import open_writer
from tuner.apply.recover import recover
from tuner.apply.repack import repack
from tuner.cli import main
from tuner.config import Blosc2, Config
from tuner.container import CONTAINERS
from tuner.errors import CodecError, InputError
from tuner.noise import Noise
from tuner.profile import Match, Profile
from tuner.read import open_stacks
from tuner.read.sampling import Run, Sample
from tuner.search.evidence import other_containers
from tuner.steps import Pixels, step_from_dict

#: How often a writer is killed; `make test-faults` says more.
KILLS = int(os.environ.get("TUNER_FAULTS", "3"))
FRAMES = np.random.default_rng(0).poisson(5, (6, 30, 50)).astype("uint16")
#: What a process makes of a dataset that has only h5py and hdf5plugin.
BITSHUFFLE = {"bitshuffle": {"cname": "lz4"}, "bitshuffle-zstd": {"cname": "zstd"}}


def profile(chunks: tuple[int, ...] = (1, -1, -1), dtype: str = "uint16", **changed: Any) -> Profile:
    config = Config(chunks, Blosc2("zstd", clevel=1), **changed)
    return Profile("test", Match(dtype), config, Config(chunks), noise=Noise(1.0, 0.0, 0.0, "given"))


def write(path: Path, frames: NDArray[Any], container: str, ours: Profile | None = None, **options: Any) -> Path:
    ours = ours or profile(dtype=frames.dtype.name)
    shape = frames.shape[1:]
    with open_writer(path, ours, frame_shape=shape, dtype=frames.dtype, container=container, **options) as writer:
        writer.append(frames)
    return path


@settings(max_examples=40)
@given(
    container=st.sampled_from(list(BITSHUFFLE)),
    dtype=st.sampled_from(["bool", "uint8", "int16", "uint32", "float32", "int64"]),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 130)),
    seed=st.integers(0, 1000),
)
def test_a_chunk_is_stored_as_hdf5s_own_filter_stores_it(
    container: str, dtype: str, shape: tuple[int, int], seed: int
) -> None:
    random = np.random.default_rng(seed)
    chunk = random.poisson(random.choice([0.1, 5, 1e4]), (1, *shape)).astype(dtype)
    encoder = BitshuffleEncoder(CONTAINERS[container], chunk.shape, chunk.dtype)
    frame = encoder.encode(chunk)
    with h5py.File("filter", "w", driver="core", backing_store=False) as file:
        options = hdf5plugin.Bitshuffle(**BITSHUFFLE[container])
        dataset = file.create_dataset("data", data=chunk, chunks=chunk.shape, **options)
        mask, theirs = dataset.id.read_direct_chunk((0, 0, 0))
        ours = create_dataset(file, "ours", chunk.shape, chunk.shape, chunk.shape, encoder)
        declared = [made.id.get_create_plist().get_filter(0) for made in (ours, dataset)]
    assert declared[0] == declared[1]
    # An optional filter that does not make a chunk smaller is left out by HDF5.
    assert mask or frame == theirs
    assert encoder.decode(frame).tobytes() == chunk.tobytes()


@settings(max_examples=100)
@given(cut=st.integers(0, 3000), place=st.integers(0, 2999), value=st.integers(0, 255))
def test_what_is_torn_does_not_decode_and_what_is_flipped_crashes_nothing(cut: int, place: int, value: int) -> None:
    chunk = FRAMES[:1]
    encoder = BitshuffleEncoder(CONTAINERS["bitshuffle"], chunk.shape, chunk.dtype)
    frame = encoder.encode(chunk)
    if cut < len(frame):
        with pytest.raises(CodecError):
            encoder.decode(frame[:cut])
    flipped = bytearray(frame)
    flipped[place % len(frame)] = value
    encoder.decodes(flipped)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("access", ["single", "rolling", "swmr"])
def test_a_foreign_process_reads_what_a_writer_wrote(tmp_path: Path, container: str, access: str) -> None:
    path = write(tmp_path / "scan.h5", FRAMES, container, profile((4, 16, -1)), access=access, roll_every=4)
    assert read_elsewhere(path).tobytes() == FRAMES.tobytes()
    with h5py.File(path) as file:
        assert file["entry/data/data"].attrs["tuner_container"] == container
    if access == "single":
        (original,) = open_stacks([path])
        assert verify_written(original, path)["frames"] == len(FRAMES)


@pytest.mark.parametrize("container", CONTAINERS)
def test_silx_and_fabio_read_it(tmp_path: Path, container: str) -> None:
    path = write(tmp_path / "scan.h5", FRAMES, container)
    with silx.io.open(f"{path}::/entry/data/data") as dataset:
        assert (dataset[()] == FRAMES).all()
    with fabio.open(str(path)) as image:
        assert (image.data == FRAMES[0]).all()


def test_steps_make_the_same_of_frames_in_each_container(tmp_path: Path) -> None:
    ours = profile(steps=(step_from_dict({"step": "uniform", "width": 4}, "step"),))
    stored = {
        read_elsewhere(write(tmp_path / f"{container}.h5", FRAMES, container, ours, verify="all")).tobytes()
        for container in CONTAINERS
    }
    assert len(stored) == 1
    assert FRAMES.tobytes() not in stored


def chunk_index(dataset: h5py.Dataset) -> int:
    """HDF5's number for how chunks are found: 0 is the version-1 B-tree, -1 where this HDF5 does not say."""
    try:
        ask = ctypes.CDLL(h5py.h5.__file__).H5Dget_chunk_index_type
    except AttributeError:
        return -1
    ask.argtypes = (ctypes.c_int64, ctypes.POINTER(ctypes.c_int))
    found = ctypes.c_int(-2)
    assert ask(dataset.id.id, ctypes.byref(found)) >= 0
    return found.value


def meets_neggia(dataset: h5py.Dataset) -> bool:
    """What neggia's Dataset.cpp and H5DataLayoutMsg.cpp ask of a dataset of frames."""
    properties = dataset.id.get_create_plist()
    number, _, values, _ = properties.get_filter(0)
    return (
        properties.get_nfilters() == 1
        and number == 32008
        and values[2] == dataset.dtype.itemsize
        and values[4] == 2
        and dataset.chunks == (1, *dataset.shape[1:])
        and chunk_index(dataset) in (-1, 0)
        and all(dataset.id.get_chunk_info(i).filter_mask == 0 for i in range(len(dataset)))
    )


def test_data_files_of_a_scan_have_the_index_that_neggia_reads(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).poisson(5, (30, 16, 20)).astype("uint32")
    write(tmp_path / "scan_master.h5", frames, "bitshuffle", access="rolling", layout="eiger", roll_every=20)
    for number, (first, after) in enumerate([(0, 20), (20, 30)], 1):
        with h5py.File(tmp_path / f"scan_data_{number:06d}.h5") as file:
            assert meets_neggia(file["entry/data/data"])
            assert (file["entry/data/data"][()] == frames[first:after]).all()
    with fabio.open(str(tmp_path / "scan_master.h5")) as images:
        assert images.nframes == 30
        assert (images.get_frame(29).data == frames[29]).all()


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_is_written_anew_in_another_container(tmp_path: Path, container: str) -> None:
    source = write(tmp_path / "source.h5", FRAMES, "blosc2", profile((4, 16, -1)))
    profile((4, 16, -1)).save(tmp_path / "p.yaml")
    target = tmp_path / "target.h5"
    command = ["apply", "--quiet", "--container", container, *map(str, (tmp_path / "p.yaml", source, target))]
    assert main(command) == 0
    assert main(["verify", "--quiet", str(tmp_path / "p.yaml"), str(target), "--against", str(source)]) == 0
    assert read_elsewhere(target).tobytes() == FRAMES.tobytes()
    with h5py.File(target) as file:
        assert meets_neggia(file["entry/data/data"]) == (container == "bitshuffle")
        assert file["entry/data/data"].fletcher32 == CONTAINERS[container].checked


def test_evidence_has_the_ratio_of_what_is_written(tmp_path: Path) -> None:
    ours = profile((4, 16, -1), steps=(step_from_dict({"step": "uniform", "width": 4}, "step"),))
    found = other_containers(ours.config, Sample((Run(0, 0, FRAMES),)), [Pixels(ours.invalid.marks, None, ours.noise)])
    assert list(found) == list(BITSHUFFLE)
    for container, metrics in found.items():
        with h5py.File(write(tmp_path / f"{container}.h5", FRAMES, container, ours, verify="all")) as file:
            stored = file["entry/data/data"].id.get_storage_size()
        assert metrics["ratio"] == pytest.approx(FRAMES.nbytes / stored, rel=1e-4)


def test_evidence_of_a_type_size_that_suits_only_chunks_of_two_frames() -> None:
    odd = np.zeros((4, 3, 5), np.int32)  # 60 bytes each
    config = Config((2, -1, -1), Blosc2(typesize=8))
    found = other_containers(config, Sample((Run(0, 0, odd),)), [Pixels()])
    assert all(metrics["ratio"] > 0 for metrics in found.values())


def test_without_the_library_of_bitshuffle_there_is_no_evidence_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5plugin, "PLUGIN_PATH", "/nowhere")
    for cached in (bitshuffle.library, bitshuffle.codec):
        cached.cache_clear()
    try:
        assert other_containers(Config((2, -1, -1)), Sample((Run(0, 0, FRAMES),)), [Pixels()]) == {}
    finally:
        for cached in (bitshuffle.library, bitshuffle.codec):
            cached.cache_clear()


@pytest.mark.parametrize("container", BITSHUFFLE)
def test_a_type_size_that_suits_only_chunks_of_two_frames_is_no_obstacle(tmp_path: Path, container: str) -> None:
    odd = np.arange(60, dtype=np.int32).reshape(4, 3, 5)  # 60 bytes each
    config = Config((2, -1, -1), Blosc2(typesize=8))
    ours = replace(profile((2, -1, -1), "int32"), config=config)
    ours.save(tmp_path / "p.yaml")
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["entry/data/data"] = odd
    command = ["apply", "--quiet", "--container", container, *map(str, (tmp_path / "p.yaml", tmp_path / "scan.h5"))]
    assert main([*command, str(tmp_path / "out.h5")]) == 0
    write(tmp_path / "new.h5", odd, container, ours)
    for name in ("out.h5", "new.h5"):
        assert read_elsewhere(tmp_path / name).tobytes() == odd.tobytes()


def test_the_page_on_containers_says_what_each_is() -> None:
    page = (Path(__file__).parents[1] / "docs" / "containers.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    assert [row[0].split("`")[1] for row in rows] == list(CONTAINERS)
    for container, (_, number, _, checksum, tested, not_read_by) in zip(CONTAINERS.values(), rows, strict=True):
        assert number == str(container.hdf5_filter)
        assert (checksum != "none") == container.checked
        assert {*tested.split(", ")} == {*container.tested}
        assert {*not_read_by.split(", ")} - {""} == {*container.not_read_by}


def test_recover_finds_chunks_that_do_not_decode(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5", FRAMES, "bitshuffle")
    assert recover(path)["safe"] == [[0, 6]]
    with h5py.File(path) as file:
        chunk = file["entry/data/data"].id.get_chunk_info(3)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset + 12)
        raw.write(b"\xff" * 4)
    assert recover(path)["safe"] == [[0, 3], [4, 6]]


def test_another_container_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^container must be 'blosc2' or 'bitshuffle' or 'bitshuffle-zstd', got 'b'"):
        open_writer(tmp_path / "scan.h5", profile(), frame_shape=(4, 5), dtype="uint16", container="b")
    with pytest.raises(InputError, match=r"^container must be blosc2 or bitshuffle or bitshuffle-zstd, got b"):
        repack(profile(), [], [], tmp_path / "out.h5", container="b")


@pytest.mark.parametrize("access", ["single", "rolling"])
def test_what_flush_acknowledged_survives_a_kill(victims: killing.Victims, tmp_path: Path, access: str) -> None:
    moments = random.Random(access)
    for attempt in range(KILLS):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        path = folder / "scan.h5"
        about = {"after": moments.uniform(0, 0.3), "fresh": not attempt}
        acknowledged = victims.kill(killing.write, path, 1, -1, access, False, "bitshuffle", **about).last
        for _ in range(2):  # as it is, and recovered
            with h5py.File(path) as file:
                data = file["entry/data/data"]
                assert len(data) >= acknowledged
                assert (data[:acknowledged, -1, -1] == np.arange(1, acknowledged + 1)).all()
            said = recover(path)
            assert acknowledged == 0 or said["safe"][0][1] >= acknowledged
