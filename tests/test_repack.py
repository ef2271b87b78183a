"""The repacker: the pixels the same, everything else of the file where it was."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.apply.foreign import verify_written
from tuner.apply.repack import repack
from tuner.config import Blosc2, Config
from tuner.errors import InputError, TunerError
from tuner.profile import Match, Profile
from tuner.read import open_stacks


def profile(dtype: str = "uint16", chunks: tuple[int, ...] = (1, -1, -1), **blosc2: Any) -> Profile:
    config = Config(chunks, Blosc2(**blosc2))
    return Profile("test", Match(dtype), config, config)


def apply(ours: Profile, source: Path, destination: Path, **options: Any) -> dict[str, Any]:
    stacks = open_stacks([source])
    said = repack(ours, stacks, [source], destination, **options)["files"][0]
    if destination.is_file():
        verify_written(stacks[0], destination)
    stacks[0].source.close()
    return said


FRAMES = np.random.default_rng(0).poisson(5, (10, 6, 8)).astype("uint16")


def scan(path: Path, **create: Any) -> Path:
    """A NeXus file with all that a file may have beside its stack."""
    with h5py.File(path, "w", track_order=True) as file:
        file.attrs["default"] = "entry"
        entry = file.create_group("entry", track_order=True)
        entry.attrs.update({"NX_class": "NXentry", "default": "data", "fixed": np.bytes_("abc")})
        detector = entry.create_group("instrument/detector")
        data = detector.create_dataset("data", data=FRAMES, **create)
        data.attrs["units"] = "counts"
        data.attrs["wide"] = np.arange(6, dtype=">f4").reshape(2, 3)
        data.attrs["empty"] = h5py.Empty("f8")
        data.attrs["texts"] = ["a", "b\u03b8"]
        detector["threshold"] = np.array([(1, 2.5)], [("n", "i4"), ("e", "f8")])
        theta = entry.create_dataset("zz_theta", data=np.linspace(0, 1, 10))
        theta.make_scale("theta")
        data.dims[0].attach_scale(theta)
        data.dims[0].label = "theta"
        plot = entry.create_group("data")
        plot.attrs.update({"NX_class": "NXdata", "signal": "data"})
        plot["data"] = h5py.SoftLink("/entry/instrument/detector/data")
        plot["same"] = data  # a hard link
        plot["theta"] = theta
        plot.attrs["target"] = data.ref
        plot["where"] = h5py.ExternalLink("elsewhere.h5", "/x")
        plot["nowhere"] = h5py.ExternalLink("missing.h5", "/x")
        entry["title"] = "scan"
        entry.create_dataset("refs", data=[data.ref, theta.ref], dtype=h5py.ref_dtype)
        entry.create_dataset("image", data=np.eye(50), **hdf5plugin.Zstd())
        entry["kind"] = np.dtype("i4")
        entry["loop"] = file["entry/instrument"]
        file.create_group("last")
    with h5py.File(path.with_name("elsewhere.h5"), "w") as file:
        file["x"] = [1, 2, 3]
    return path


def test_all_of_the_tree_is_where_it_was(tmp_path: Path) -> None:
    source = scan(tmp_path / "scan.nxs")
    (tmp_path / "out").mkdir()
    said = apply(profile(chunks=(4, -1, -1)), source, tmp_path / "out" / "out.h5")
    assert said["dataset"] == "/entry/instrument/detector/data"
    with h5py.File(source) as old, h5py.File(tmp_path / "out" / "out.h5") as new:
        names: dict[str, list[str]] = {"old": [], "new": []}
        old.visit(names["old"].append)
        new.visit(names["new"].append)
        ours = [name for name in names["new"] if name.startswith("entry/tuner")]  # an NXprocess
        assert [name for name in names["new"] if name not in ours] == names["old"]
        assert list(new) == list(old) == ["entry", "last"]
        assert list(new["entry"]) == [*old["entry"], "tuner"]  # in the order in which they were made
        data = new["entry/instrument/detector/data"]
        assert (data[()] == FRAMES).all()
        assert data.chunks == (4, 6, 8)
        assert data.attrs["units"] == "counts"
        assert data.attrs["tuner_profile"] == "test"
        assert data.attrs["wide"].dtype == ">f4"
        assert (data.attrs["wide"] == np.arange(6).reshape(2, 3)).all()
        assert isinstance(data.attrs["empty"], h5py.Empty)
        assert data.attrs["texts"].tolist() == ["a", "b\u03b8"]
        assert new["entry"].attrs["fixed"] == np.bytes_("abc")
        assert new["entry"].attrs.get_id("fixed").get_type() == old["entry"].attrs.get_id("fixed").get_type()
        assert data.dims[0].label == "theta"
        assert data.dims[0][0] == new["entry/zz_theta"]
        assert data.dims[0]["theta"] == new["entry/data/theta"]
        plot = new["entry/data"]
        assert plot.get("data", getlink=True).path == "/entry/instrument/detector/data"
        assert plot["data"] == plot["same"] == data
        assert new[plot.attrs["target"]] == data
        assert [new[reference] for reference in new["entry/refs"]] == [data, new["entry/zz_theta"]]
        assert plot["where"][()].tolist() == [1, 2, 3]  # also from another folder
        assert plot.get("nowhere", getlink=True).filename == "missing.h5"
        assert new["entry/title"].asstr()[()] == "scan"
        assert new["entry/instrument/detector/threshold"][0].tolist() == (1, 2.5)
        assert new["entry/image"]._filters == old["entry/image"]._filters
        assert new["entry/image"].id.get_storage_size() == old["entry/image"].id.get_storage_size()
        assert (new["entry/image"][()] == np.eye(50)).all()
        assert isinstance(new["entry/kind"], h5py.Datatype)
        assert new["entry/loop"] == new["entry/instrument"]


def test_a_file_that_was_written_with_a_profile_can_be_written_with_another(tmp_path: Path) -> None:
    apply(profile(), scan(tmp_path / "scan.h5"), tmp_path / "a.h5")
    apply(profile(codec="zstd"), tmp_path / "a.h5", tmp_path / "b.h5")
    with h5py.File(tmp_path / "b.h5") as file:
        assert '"zstd"' in file["entry/data/data"].attrs["tuner_config"]


def test_attributes_and_groups_of_newer_formats_come_along(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w", libver="latest") as file:
        data = file.create_dataset("x", data=FRAMES, chunks=(1, 6, 8), maxshape=(None, 6, 8))
        data.attrs["large"] = np.arange(20_000.0)
        for number in range(40):
            file.create_group(f"many/{number}").attrs["number"] = number
    apply(profile(), tmp_path / "scan.h5", tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        assert (file["x"].attrs["large"] == np.arange(20_000)).all()
        assert [file[f"many/{number}"].attrs["number"] for number in range(40)] == list(range(40))


@settings(max_examples=15)
@given(st.data())
def test_stacks_of_any_shape_come_back(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("repacked")
    dtype = data.draw(st.sampled_from(["bool", "uint16", ">i4", "float16", "float32"]))
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    ndim = min(2, len(shape)) if data.draw(st.booleans()) else 1
    native = np.dtype(dtype).newbyteorder("=").name
    chunks = (data.draw(st.integers(1, 60)), *[data.draw(st.sampled_from([-1, 2, 5])) for _ in range(ndim)])
    frames = np.random.default_rng(0).integers(0, 99, shape).astype(dtype)
    with h5py.File(folder / "scan.h5", "w") as file:
        file.create_dataset("x/y", data=frames).attrs["interpretation"] = "image" if ndim == 2 else "spectrum"
    said = apply(profile(native, chunks, typesize=1), folder / "scan.h5", folder / "out.h5")
    assert said["shape"] == list(shape)
    with h5py.File(folder / "out.h5") as file:
        assert file["x/y"].shape == shape
        assert (file["x/y"][()] == frames).all()


def test_what_was_never_written_stays_so(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        data = file.create_dataset("x", (20, 6, 8), "i4", chunks=(1, 6, 8), fillvalue=-7, maxshape=(None, 6, 8))
        data[3] = 1
        data[12] = 2
    apply(profile("int32", (4, -1, -1)), tmp_path / "scan.h5", tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["x"].id.get_num_chunks() == 2
        assert file["x"].fillvalue == -7
        assert file["x"].maxshape == (None, 6, 8)
        assert (file["x"][19] == -7).all()
        assert (file["x"][12] == 2).all()


@pytest.mark.parametrize("kind", ["virtual", "uncovered", "master"])
def test_what_was_never_written_reads_as_before_whichever_file_says_so(tmp_path: Path, kind: str) -> None:
    """`apply` compares each frame."""
    for number, fill in ((1, 65535), (2, 7)):
        with h5py.File(tmp_path / f"scan_data_{number:06d}.h5", "w") as file:
            part = file.create_dataset("entry/data/data", (8, 6, 8), "u2", chunks=(1, 6, 8), fillvalue=fill)
            part[:5] = 3
    with h5py.File(tmp_path / "scan_master.h5", "w") as file:
        group = file.create_group("entry/data")
        if kind == "master":
            for number in (1, 2):
                group[f"data_{number:06d}"] = h5py.ExternalLink(f"scan_data_{number:06d}.h5", "/entry/data/data")
        else:
            layout = h5py.VirtualLayout((20, 6, 8), "u2")
            for number in (1, 2):
                source = h5py.VirtualSource(f"scan_data_{number:06d}.h5", "entry/data/data", (8, 6, 8))
                layout[8 * number - 8 : 8 * number] = source
            group.create_virtual_dataset("data", layout, fillvalue=9 if kind == "uncovered" else 65535)
    told = apply(profile(), tmp_path / "scan_master.h5", tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        seen = file["entry/data/data"][:, 0, 0].tolist()
        assert file["entry/data/data"].id.get_num_chunks() < len(seen), "what reads as the fill value needs no chunk"
    assert seen[:16] == [*[3] * 5, *[65535] * 3, *[3] * 5, *[7] * 3]
    assert seen[16:] == {"virtual": [65535] * 4, "uncovered": [9] * 4, "master": []}[kind]
    assert told["missing_frames"] == len(seen) - 10


def test_what_was_never_written_is_no_gain(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        data = file.create_dataset("x", (20, 40, 50), "i4", chunks=(1, 40, 50))
        data[:8] = np.random.default_rng(0).integers(-(2**31), 2**31, (8, 40, 50))
    told = apply(profile("int32", (4, -1, -1)), tmp_path / "scan.h5", tmp_path / "out.h5")
    assert told["missing_frames"] == 12
    assert told["nbytes"] == 8 * 40 * 50 * 4
    assert 0.9 < told["ratio"] <= 1, "nothing makes noise smaller"


def master(folder: Path) -> Path:
    """As Dectris writes it."""
    for number in (1, 2):
        with h5py.File(folder / f"scan_data_{number:06d}.h5", "w") as file:
            file["entry/data/data"] = FRAMES[5 * number - 5 : 5 * number]
    with h5py.File(folder / "scan_master.h5", "w") as file:
        group = file.create_group("entry/data")
        file["entry"].attrs["NX_class"] = "NXentry"
        group.attrs["NX_class"] = "NXdata"
        for number in (1, 2):
            group[f"data_{number:06d}"] = h5py.ExternalLink(f"scan_data_{number:06d}.h5", "/entry/data/data")
        file["entry/instrument/detector/description"] = "Eiger"
    return folder / "scan_master.h5"


def virtual(folder: Path) -> Path:
    with h5py.File(folder / "raw.h5", "w") as file:
        file["x"] = FRAMES
    with h5py.File(folder / "scan.h5", "w") as file:
        layout = h5py.VirtualLayout(FRAMES.shape, FRAMES.dtype)
        layout[...] = h5py.VirtualSource("raw.h5", "x", FRAMES.shape)
        file.create_virtual_dataset("entry/data", layout)
        small = h5py.VirtualLayout((6, 8), FRAMES.dtype)
        small[...] = h5py.VirtualSource("raw.h5", "x", FRAMES.shape)[0]
        file.create_virtual_dataset("entry/first", small, fillvalue=3)
    return folder / "scan.h5"


def linked(folder: Path) -> Path:
    with h5py.File(folder / "raw.h5", "w") as file:
        file["a/b/x"] = FRAMES
        file["a/b/note"] = "beside"
    with h5py.File(folder / "scan.h5", "w") as file:
        file["entry/data"] = h5py.ExternalLink("raw.h5", "/a")
        file["entry/other"] = h5py.ExternalLink("raw.h5", "/a/b/note")
    return folder / "scan.h5"


@pytest.mark.parametrize(
    ("make", "dataset"), [(master, "/entry/data/data"), (virtual, "/entry/data"), (linked, "/entry/data/b/x")]
)
def test_a_stack_in_other_files_becomes_one_real_dataset(tmp_path: Path, make: Any, dataset: str) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "out").mkdir()
    source = make(tmp_path / "raw")
    said = apply(profile(), source, tmp_path / "out" / "out.h5")
    assert said["dataset"] == dataset
    with h5py.File(tmp_path / "out" / "out.h5") as file:
        assert not file[dataset].is_virtual
        if make is master:
            assert list(file["entry/data"]) == ["data"]
            assert file["entry/data"].attrs["signal"] == "data"
            assert file["entry/instrument/detector/description"].asstr()[()] == "Eiger"
        if make is virtual:
            assert (file["entry/first"][()] == FRAMES[0]).all()
        if make is linked:
            assert file["entry/other"].asstr()[()] == "beside"
            assert file["entry/data/b/note"].asstr()[()] == "beside"
    assert open_stacks([tmp_path / "out" / "out.h5"])[0].shape == FRAMES.shape


def test_a_series_of_another_format_becomes_a_nexus_file(tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", FRAMES)
    said = apply(profile(), tmp_path / "scan.npy", tmp_path / "out.h5", dataset="/entry/frames/data")
    assert said["dataset"] == "/entry/frames/data"
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["entry/frames"].attrs["signal"] == "data"
    again = open_stacks([tmp_path / "out.h5"])[0]
    assert (again.read(0, 10) == FRAMES).all()


def test_several_files_go_into_a_folder(tmp_path: Path) -> None:
    sources = [scan(tmp_path / "a.nxs"), scan(tmp_path / "b.nxs")]
    stacks = open_stacks(sources)
    with pytest.raises(InputError, match="must be an existing folder, as there are 2 files to write"):
        repack(profile(), stacks, sources, tmp_path / "none.h5")
    (tmp_path / "out").mkdir()
    said = repack(profile(), stacks, sources, tmp_path / "out")
    assert [Path(file["destination"]).name for file in said["files"]] == ["a.nxs", "b.nxs"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.nxs", "b.nxs"]


def test_an_input_is_never_written_to(tmp_path: Path) -> None:
    source = scan(tmp_path / "scan.h5")
    content = source.read_bytes()
    (tmp_path / "soft.h5").symlink_to(source)
    (tmp_path / "hard.h5").hardlink_to(source)
    for target in (source, tmp_path / "soft.h5", tmp_path / "hard.h5", tmp_path):
        for overwrite in (False, True):
            with pytest.raises(InputError, match="is an input; it must be another file"):
                apply(profile(), source, target, overwrite=overwrite)
    assert source.read_bytes() == content


@pytest.mark.parametrize("make", [master, virtual, linked])
def test_nor_is_a_file_that_an_input_leads_to(tmp_path: Path, make: Any) -> None:
    source = make(tmp_path)
    for raw in set(tmp_path.iterdir()) - {source}:
        with pytest.raises(InputError, match="is an input; it must be another file"):
            apply(profile(), source, raw, overwrite=True)


@pytest.mark.parametrize("pattern", ["", "*.tif"])
def test_nor_is_a_file_of_a_series(tmp_path: Path, pattern: str) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    for number, frame in enumerate(FRAMES):
        tifffile.imwrite(folder / f"{number}.tif", frame)
    with pytest.raises(InputError, match=r"3\.tif: is an input; it must be another file"):
        apply(profile(), folder / pattern, folder / "3.tif", overwrite=True)
    apply(profile(), folder / pattern, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["series", "series.h5" if not pattern else "stack.h5"]


def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = scan(tmp_path / "scan.h5")
    existing = tmp_path / "out.h5"
    existing.write_text("precious")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"out\.h5: exists already"):
        apply(profile(), source, existing)
    with pytest.raises(InputError, match=r"scan\.h5: the profile is for dtype int16, got uint16"):
        apply(profile("int16"), source, tmp_path / "new.h5")
    with pytest.raises(InputError, match=r"folder .*none must exist"):
        apply(profile(), source, tmp_path / "none" / "new.h5")
    assert sorted(tmp_path.iterdir()) == before
    assert existing.read_text() == "precious"
    apply(profile(), source, existing, overwrite=True)
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_source_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    source = scan(tmp_path / "scan.h5", chunks=(1, 6, 8), fletcher32=True)
    with h5py.File(source) as file:
        place = file["entry/instrument/detector/data"].id.get_chunk_info(4).byte_offset
    with source.open("r+b") as opened:
        opened.seek(place)
        opened.write(b"damage")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(TunerError, match=r"scan\.h5") as caught:
        apply(profile(), source, tmp_path / "new.h5")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "scan.h5"
    with h5py.File(source, "w") as file:
        file["x"] = np.random.default_rng(0).integers(0, 65536, (50, 64, 64), "uint16")
    script = """
import resource, sys
from tuner.apply.repack import repack
from tuner.config import Config
from tuner.errors import TunerError
from tuner.profile import Match, Profile
from tuner.read import open_stacks

source, destination = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
config = Config()
try:
    repack(Profile("full", Match("uint16"), config, config), open_stacks([source]), [source], destination)
except TunerError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, str(source), str(tmp_path / "out.h5")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/out.h5: cannot be written: File too large; nothing is left of it\n"
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == [source]


def test_a_reader_that_complains_of_every_chunk_is_heard_out(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(5, (2000, 32, 32)).astype("uint16")
    np.save(tmp_path / "scan.npy", frames)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        made = file.create_dataset("data", data=frames, chunks=(1, 32, 32), **hdf5plugin.Blosc2())
        file.flush()
        places = [made.id.get_chunk_info(index).byte_offset for index in range(len(frames))]
    with (tmp_path / "scan.h5").open("r+b") as stream:
        for place in places:
            stream.seek(place + 100)
            stream.write(b"\xff" * 40)
    done = subprocess.run(
        [sys.executable, "-c", VERIFY, tmp_path / "scan.npy", tmp_path / "scan.h5"],
        env={**os.environ, "BLOSC_TRACE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "data: frame 0 cannot be read" in done.stderr


#: Verifies a file against its original.
VERIFY = """
import sys
from tuner.apply.foreign import verify_written
from tuner.read import open_stacks
verify_written(open_stacks(sys.argv[1:2])[0], sys.argv[2], "data")
"""


@pytest.mark.parametrize("lead", [(4, 3), (3,), (2, 5), (1,), (12,), (2, 1, 2, 3)])
@pytest.mark.parametrize("typesize", [4, 8, 24])
def test_a_type_size_gives_way_to_chunks_of_fewer_frames_than_the_profile_says(
    tmp_path: Path, lead: tuple[int, ...], typesize: int
) -> None:
    """Of a grid of 4 x 3 positions, a chunk takes a row of 3: 90 bytes, which 4 does not divide."""
    frames = np.random.default_rng(0).poisson(5, (*lead, 5, 3)).astype("uint16")
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["entry/data"] = frames
    ours = profile(chunks=(4, -1, -1), filters=("shuffle",), typesize=typesize, blocksize=24 * 2000)
    apply(ours, tmp_path / "in.h5", tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        assert (file["entry/data"][()] == frames).all()


def test_memory_is_that_of_chunks_not_of_the_file(tmp_path: Path) -> None:
    script = """
import resource, sys
import h5py
from tuner.apply.repack import repack
from tuner.config import Config
from tuner.profile import Match, Profile
from tuner.read import open_stacks

source, frames = sys.argv[1], int(sys.argv[2])
with h5py.File(source, "w") as file:
    data = file.create_dataset("x", (frames, 512, 512), "uint16", chunks=(1, 512, 512), compression="gzip")
    for number in range(frames):
        data[number] = number
config = Config((4, -1, -1))
repack(Profile("t", Match("uint16"), config, config), open_stacks([source]), [source], source + ".out", workers=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""

    def peak_kib(frames: int) -> int:
        command = [sys.executable, "-c", script, str(tmp_path / f"{frames}.h5"), str(frames)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak_kib(400) - peak_kib(100) < 30 << 10  # of 150 MiB more


@pytest.mark.parametrize("kind", ["h5", "npy"])
def test_no_flipped_bit_beside_the_chunks_makes_pixels_wrong(tmp_path: Path, kind: str) -> None:
    source, written = tmp_path / f"scan.{kind}", tmp_path / "out.h5"
    if kind == "npy":
        np.save(source, FRAMES)
    else:
        with h5py.File(source, "w") as file:
            file.create_dataset("entry/data/data", data=FRAMES, chunks=(1, 6, 8))
    apply(profile(), source, written)
    content = written.read_bytes()
    with h5py.File(written) as file:
        dataset = file["entry/data/data"]
        chunks = [dataset.id.get_chunk_info(number) for number in range(len(FRAMES))]
    stored = {place for c in chunks for place in range(c.byte_offset, c.byte_offset + c.size)}
    # The addresses of chunks are in the index, and nowhere else.
    places = {content.find(c.byte_offset.to_bytes(8, "little")) for c in chunks}
    assert -1 not in places
    refused = 0
    for place in sorted({p + shift for p in places for shift in range(-8, 12)} - stored):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        with h5py.File(io.BytesIO(damaged)) as file:
            try:
                assert (file["entry/data/data"][:] == FRAMES).all()
            except OSError:
                refused += 1
    assert refused
