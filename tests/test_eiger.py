"""The layout of a Dectris Eiger, as it is written: what programs of the field look for in it, and find."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest
from killing import Victims
from numpy.typing import NDArray

from tuner.apply.foreign import verify_written
from tuner.apply.opening import open_writer
from tuner.apply.recover import recover
from tuner.apply.repack import repack
from tuner.apply.writer import Writer
from tuner.config import Blosc2, Config
from tuner.errors import InputError, TunerError
from tuner.profile import Match, Profile
from tuner.read import open_stacks

SHAPE = (22, 30)
MASK = np.arange(22 * 30).reshape(SHAPE) % 7 == 3
FIELDS: dict[str, Any] = {
    "/entry/instrument/detector/description": "Dectris EIGER2 Si 1M",
    "/entry/instrument/detector/x_pixel_size": (75e-6, "m"),
    "/entry/instrument/detector/y_pixel_size": (75e-6, "m"),
    "/entry/instrument/detector/saturation_value": np.uint32(1000),
    "/entry/instrument/detector/detectorSpecific/software_version": "µ 1",
    "/entry/instrument/beam/incident_wavelength": (0.97, "angstrom"),
    "/entry/sample/goniometer/omega": (np.arange(12) / 10, "deg"),
}


def profile(frames: int = 1, tile: int = -1) -> Profile:
    config = Config((frames, tile, -1), Blosc2("zstd", clevel=1))
    return Profile("eiger", Match("uint32"), config, config)


def opened(path: Path, frames: int = 1, tile: int = -1, **about: Any) -> Writer:
    about = {"access": "rolling", "layout": "eiger", "roll_every": 5, "frame_shape": SHAPE, "dtype": "uint32"} | about
    return open_writer(path, profile(frames, tile), **about)


def frames_of(start: int, stop: int) -> NDArray[np.uint32]:
    return (
        np.random.default_rng(0).poisson(3, (stop, *SHAPE)).astype("uint32")[start:]
        + np.arange(start, stop, dtype="uint32")[:, None, None]
    )


def master(folder: Path, count: int = 12) -> Path:
    path = folder / "scan_master.h5"
    with opened(path, mask=MASK, fields=FIELDS) as writer:
        writer.append(frames_of(0, count))
    return path


#: What neggia's README asks of a file, and the frames behind the links: with h5py and hdf5plugin alone.
FOREIGN = """
import hdf5plugin, h5py, json, numpy as np, sys
with open(sys.argv[1], "rb") as file:
    assert file.read(9)[8] in (0, 2, 3)  # superblocks that neggia reads
with h5py.File(sys.argv[1], "r") as file:
    detector = file["/entry/instrument/detector"]
    specific = detector["detectorSpecific"]
    assert detector["x_pixel_size"].dtype in (np.float32, np.float64)
    assert specific["nimages"].dtype.kind in "iu" and specific["ntrigger"].dtype.kind in "iu"
    assert specific["pixel_mask"].dtype == np.uint32
    mask = specific["pixel_mask"]
    assert mask.id.get_create_plist().get_filter(0)[0] == 32008  # bitshuffle, the one that neggia has
    names = list(file["entry/data"])
    assert names == [f"data_{number:06d}" for number in range(1, len(names) + 1)]
    # As dxtbx's FormatHDF5EigerNearlyNexus looks whether a file is one.
    assert file["entry"].attrs["NX_class"] == np.bytes_("NXentry") and "definition" not in file["entry"]
    assert b"dectris eiger" in detector["description"][()].lower()
    links = [file["entry/data"].get(name, getlink=True) for name in names]
    parts = [file["entry/data"][name] for name in names]
    omega = file["entry/sample/goniometer/omega"]
    print(json.dumps({
        "links": [[link.filename, link.path] for link in links],
        "numbers": [[int(part.attrs["image_nr_low"]), int(part.attrs["image_nr_high"])] for part in parts],
        "images": int(specific["nimages"][()] * specific["ntrigger"][()]),
        "pixels": [int(specific[f"{axis}_pixels_in_detector"][()]) for axis in "yx"],
        "limits": [int(specific[name][()]) for name in ("saturation_value", "countrate_correction_count_cutoff")],
        "masked": int(np.count_nonzero(mask[()])),
        "sums": [int(frame.sum()) for part in parts for frame in part],
        "omega": [omega[3], omega.attrs["units"].decode()],
    }))
"""


def test_a_foreign_process_finds_what_neggia_and_dxtbx_look_for(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c", FOREIGN, str(master(tmp_path))]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert said == {
        "links": [[f"scan_data_00000{number}.h5", "/entry/data/data"] for number in (1, 2, 3)],
        "numbers": [[1, 5], [6, 10], [11, 12]],
        "images": 12,
        "pixels": [22, 30],
        "limits": [1000, 999],
        "masked": int(MASK.sum()),
        "sums": frames_of(0, 12).sum(axis=(1, 2)).tolist(),
        "omega": [0.3, "deg"],
    }


def test_our_reader_joins_it_again_with_mask_and_limits(tmp_path: Path) -> None:
    stack = open_stacks([master(tmp_path)])[0]
    assert (stack.read(0, 12) == frames_of(0, 12)).all()
    assert stack.mask is not None
    assert (stack.mask == MASK).all()
    assert (stack.saturation, stack.photon_counting) == (1000, True)
    stack.source.close()  # type: ignore[union-attr]


def test_fabio_opens_master_and_data_file(tmp_path: Path) -> None:
    fabio = pytest.importorskip("fabio")
    with fabio.open(str(master(tmp_path))) as image:
        assert image.nframes == 12
        for number in (0, 4, 5, 11):
            assert (image.get_frame(number).data == frames_of(0, 12)[number]).all()
    with fabio.open(str(tmp_path / "scan_data_000002.h5")) as image:
        assert image.nframes == 5
        assert (image.data == frames_of(5, 6)[0]).all()


def test_silx_finds_the_default_plot_and_follows_the_links(tmp_path: Path) -> None:
    pytest.importorskip("silx")
    import silx.io
    from silx.io import nxdata

    with silx.io.open(str(master(tmp_path))) as file:
        plot = nxdata.get_default(file)
        assert (plot.signal[2] == frames_of(2, 3)[0]).all()
        assert (file["/entry/data/data_000003"][1] == frames_of(11, 12)[0]).all()


def test_dxtbx_opens_a_master(tmp_path: Path) -> None:
    loading = pytest.importorskip("dxtbx", reason="dxtbx is on conda-forge alone: PyPI has no wheels of it")
    assert loading.load(str(master(tmp_path))).get_num_images() == 12


@pytest.mark.parametrize(("frames", "tile"), [(1, -1), (2, 10)])
def test_frames_that_never_come_keep_their_numbers(tmp_path: Path, frames: int, tile: int) -> None:
    """Links say nothing about numbers: data files of nothing but missing frames are there, too."""
    path = tmp_path / "scan_master.h5"
    with opened(path, frames, tile, roll_every=4) as writer:
        writer.append(frames_of(0, 1))
        writer.append(frames_of(23, 25), index=23)
        assert writer.sync() <= 20
        writer.append(frames_of(21, 22), index=21) if frames == 1 else None
        writer.append(frames_of(25, 26))
    stack = open_stacks([path])[0]
    expected = np.full((26, *SHAPE), 2**32 - 1, "uint32")
    for number in (0, *([21] if frames == 1 else []), 23, 24, 25):
        expected[number] = frames_of(number, number + 1)[0]
    assert (stack.read(0, 26) == expected).all()
    stack.source.close()  # type: ignore[union-attr]
    with h5py.File(path) as file:
        missing = file["entry/data"].attrs["tuner_missing_frames"].tolist()
    assert missing == ([[1, 21], [22, 23]] if frames == 1 else [[1, 23]])


def test_a_master_is_there_from_the_start_and_grows_by_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "scan_master.h5"
    with opened(path, fields={"entry/instrument/detector/detectorSpecific/ntrigger": np.uint32(1)}) as writer:
        for number in range(12):
            with h5py.File(path, locking=False) as file:
                assert sum(len(part) for part in file["entry/data"].values()) == number // 5 * 5
                assert file["entry/instrument/detector/detectorSpecific/nimages"][()] == number // 5 * 5
            writer.append(frames_of(number, number + 1))
            writer.sync()


def test_a_master_without_data_files_has_no_frames(tmp_path: Path) -> None:
    """The largest dataset in it is the mask, which is none."""
    said = "must link a data file in /entry/data, got none yet"
    with opened(tmp_path / "scan_master.h5", mask=MASK), pytest.raises(InputError, match=said):
        open_stacks([tmp_path / "scan_master.h5"])


def test_what_a_user_says_of_the_images_stays(tmp_path: Path) -> None:
    """A master may announce more than there is: so do those of the detector itself."""
    path = tmp_path / "scan_master.h5"
    fields = {
        f"entry/instrument/detector/detectorSpecific/{name}": np.uint32(n)
        for name, n in (("nimages", 3), ("ntrigger", 4))
    }
    with opened(path, fields=fields) as writer:
        writer.append(frames_of(0, 12))
    recover(path)
    with h5py.File(path) as file:
        specific = file["entry/instrument/detector/detectorSpecific"]
        assert (specific["nimages"][()], specific["ntrigger"][()]) == (3, 4)


def test_recover_says_which_frames_are_safe_and_leaves_out_what_links_cannot_number(tmp_path: Path) -> None:
    path = master(tmp_path)
    assert recover(path)["safe"] == [[0, 12]]
    (tmp_path / "scan_data_000002.h5").unlink()
    found = recover(path)
    assert (found["dataset"], found["frames"], found["safe"]) == ("/entry/data/data", 5, [[0, 5], [10, 12]])
    with h5py.File(path) as file:
        assert list(file["entry/data"]) == ["data_000001"]
        assert file["entry/instrument/detector/detectorSpecific/nimages"][()] == 5


@pytest.mark.parametrize("layout", ["nexus", "eiger"])
def test_recover_changes_no_master_whose_data_files_are_elsewhere(tmp_path: Path, layout: str) -> None:
    with opened(tmp_path / "scan_master.h5", layout=layout) as writer:
        writer.append(frames_of(0, 12))
    (tmp_path / "copy").mkdir()
    alone = (tmp_path / "scan_master.h5").rename(tmp_path / "copy" / "scan_master.h5")
    content = alone.read_bytes()
    with pytest.raises(InputError, match=r"scan_master\.h5: must have .* beside it"):
        recover(alone)
    assert alone.read_bytes() == content
    assert list(alone.parent.iterdir()) == [alone]


@pytest.mark.parametrize("kind", ["virtual", "chunked", "contiguous"])
def test_recover_changes_no_file_that_another_program_wrote(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["x"] = frames_of(0, 4)
    with h5py.File(path, "w") as file:
        if kind == "virtual":
            layout = h5py.VirtualLayout((4, *SHAPE), "u4")
            layout[:] = h5py.VirtualSource("raw.h5", "x", (4, *SHAPE))
            file.create_virtual_dataset("entry/data/data", layout)
        else:
            file.create_dataset("entry/data/data", data=frames_of(0, 4), chunks=True if kind == "chunked" else None)
    content = path.read_bytes()
    with pytest.raises(InputError, match="/entry/data/data must be written with a profile to tell which frames"):
        recover(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"path": "scan.h5"}, r"scan\.h5: must end in _master\.h5"),
        ({"dataset": "/entry/data/frames"}, "dataset must be /entry/data/data for the layout of an Eiger"),
        ({"frame_shape": (30,)}, "frame_shape must have two axes"),
        ({"access": "single"}, "access must be 'rolling'"),
        ({"layout": "pilatus"}, "layout must be 'nexus' or 'eiger'"),
        ({"fields": {"/entry/data/data": 1}}, "/entry/data/data must not be what is written anyway"),
        ({"fields": {"/entry/a": 1, "/entry/a/b": 1}}, "/entry/a must be a group"),
        ({"fields": {"/entry/a": None}}, "/entry/a must be text, a number, an array"),
        ({"fields": {"entry//a": 1}}, "must be a path"),
    ],
)
def test_what_readers_would_not_find_is_refused_and_nothing_is_left(
    tmp_path: Path, about: dict[str, Any], said: str
) -> None:
    path = tmp_path / str(about.pop("path", "scan_master.h5"))
    with pytest.raises(InputError, match=said):
        opened(path, **about)
    assert not list(tmp_path.iterdir())


def apply(source: Path, target: Path, frames: int = 2, **about: Any) -> dict[str, Any]:
    stacks = open_stacks([source])
    done = repack(profile(frames), stacks, [source], target, **about)["files"][0]
    assert verify_written(stacks[0], done["destination"])["frames"] == len(stacks[0])
    for stack in stacks:
        stack.source.close()  # type: ignore[union-attr]
    return dict(done)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_master_that_is_written_anew_stays_one_with_all_that_it_says(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    source = master(tmp_path / "raw")
    done = apply(source, tmp_path / "new_master.h5", workers=2)
    assert done["shape"] == [12, *SHAPE]
    assert done["ratio"] > 1
    assert listing(tmp_path) == [*(f"new_data_00000{number}.h5" for number in (1, 2)), "new_master.h5", "raw"]
    with h5py.File(source) as old, h5py.File(tmp_path / "new_master.h5") as new:
        sizes = [len(new["entry/data"][name]) for name in new["entry/data"]]
        assert sizes == [6, 6]  # five, rounded up to whole chunks
        described: list[str] = []
        old["entry/instrument"].visititems(lambda name, node: described.append(name))
        for name in described:
            assert name in new["entry/instrument"]
            if isinstance(old["entry/instrument"][name], h5py.Dataset):
                assert np.array_equal(old["entry/instrument"][name][()], new["entry/instrument"][name][()])
        assert [part.attrs["image_nr_high"] for part in new["entry/data"].values()] == [6, 12]
    command = [sys.executable, "-I", "-c", FOREIGN, str(tmp_path / "new_master.h5")]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert said["sums"] == frames_of(0, 12).sum(axis=(1, 2)).tolist()
    assert recover(tmp_path / "new_master.h5")["safe"] == [[0, 12]]


def test_the_mask_is_stored_as_neggia_reads_it_whatever_it_was_stored_as(tmp_path: Path) -> None:
    """With the bits that say what is wrong with a pixel: neggia tells a gap from a bad one by them."""
    bits = np.where(MASK, np.uint8(8), np.uint8(0))
    for place, shared in (("detector", False), ("detector/detectorSpecific", False), ("detector", True)):
        (tmp_path / "raw").mkdir(exist_ok=True)
        source = master(tmp_path / "raw")
        with h5py.File(source, "r+") as file:
            detector = file["entry/instrument/detector"]
            del detector["pixel_mask"], detector["detectorSpecific/pixel_mask"]
            stored = file["entry/instrument"].create_dataset(
                f"{place}/pixel_mask", data=bits, chunks=(7, 11), compression="gzip", shuffle=True
            )
            stored.attrs["long_name"] = "what is wrong"
            if shared:
                detector["detectorSpecific/pixel_mask"] = stored
        apply(source, tmp_path / "new_master.h5", overwrite=True)
        with h5py.File(tmp_path / "new_master.h5") as file:
            detector = file["entry/instrument/detector"]
            mask = detector["detectorSpecific/pixel_mask"]
            properties = mask.id.get_create_plist()
            number, _, values, _ = properties.get_filter(0)
            # Dataset.cpp and H5ToXds.cpp: one filter, bitshuffle with lz4 (2) of 4-byte items, one chunk, uint32.
            assert (properties.get_nfilters(), number, values[2], values[4]) == (1, 32008, 4, 2)
            assert (mask.dtype, mask.chunks, mask.id.get_num_chunks()) == (np.uint32, SHAPE, 1)
            assert (mask[()] == bits).all()
            assert (detector["pixel_mask"][()] == bits).all()
            assert ("long_name" in mask.attrs) == (shared or place != "detector")
            assert detector["detectorSpecific/number_of_excluded_pixels"][()] == MASK.sum()
        for path in (tmp_path / "raw").iterdir():
            path.unlink()


def test_a_series_becomes_a_master_where_that_is_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", frames_of(0, 7))
    with pytest.raises(InputError, match=r"out\.h5: must end in _master\.h5"):
        apply(tmp_path / "scan.npy", tmp_path / "out.h5", layout="eiger")
    apply(tmp_path / "scan.npy", tmp_path / "out_master.h5", layout="eiger")
    assert listing(tmp_path) == ["out_data_000001.h5", "out_master.h5", "scan.npy"]
    with h5py.File(tmp_path / "out_master.h5") as file:
        assert list(file["entry/data"]) == ["data_000001"]
        assert file["entry/instrument/detector/detectorSpecific/nimages"][()] == 7
    apply(tmp_path / "scan.npy", tmp_path / "other_master.h5")
    with h5py.File(tmp_path / "other_master.h5") as file:
        assert file["entry/data/data"].shape == (7, *SHAPE)


def test_a_scan_of_nexus_becomes_a_master_with_what_stands_beside_its_frames(tmp_path: Path) -> None:
    with open_writer(
        tmp_path / "scan.h5", profile(), frame_shape=SHAPE, dtype="uint32", mask=MASK, fields=FIELDS
    ) as writer:
        writer.append(frames_of(0, 5))
        writer.append(frames_of(9, 10), index=9)
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        file["entry/data/theta"] = np.arange(10.0)
        file["entry/data/theta"].make_scale()
        file["entry/data/data"].dims[0].attach_scale(file["entry/data/theta"])
        file["entry/data/data"].attrs["units"] = "counts"
    apply(tmp_path / "scan.h5", tmp_path / "scan_master.h5", frames=1, layout="eiger")
    with h5py.File(tmp_path / "scan_master.h5") as file:
        assert sorted(file["entry/data"]) == ["data_000001", "theta"]
        part = file["entry/data/data_000001"]
        assert part.attrs["units"] == "counts"
        assert (part[5] == 2**32 - 1).all()
        assert part.id.get_num_chunks() == 6  # what was never written is not written now
        assert (file["entry/instrument/detector/detectorSpecific/pixel_mask"][()] == MASK).all()
        assert file["entry/instrument/beam/incident_wavelength"][()] == 0.97


def test_nothing_of_an_older_master_is_left_and_no_input_is_touched(tmp_path: Path) -> None:
    source = master(tmp_path)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "scan_master.h5"
    apply(source, tmp_path / "out", frames=1)
    assert len(listing(tmp_path / "out")) == 4
    with pytest.raises(InputError, match="exists already"):
        apply(source, target)
    target.unlink()
    with pytest.raises(InputError, match=r"scan_data_000001\.h5: exists already"):
        apply(source, target)
    apply(source, target, frames=12, overwrite=True)
    assert listing(tmp_path / "out") == ["scan_data_000001.h5", "scan_master.h5"]
    part = tmp_path / "scan_data_000001.h5"
    content = part.read_bytes()
    source.unlink()
    with pytest.raises(InputError, match=r"scan_data_000001\.h5: is an input"):
        apply(part, tmp_path / "scan_master.h5", layout="eiger", overwrite=True)
    assert part.read_bytes() == content


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    """A damaged frame in the last data file is met when the others are complete."""
    (tmp_path / "raw").mkdir()
    source = master(tmp_path / "raw")
    part = tmp_path / "raw" / "scan_data_000003.h5"
    with h5py.File(part) as file:
        place = file["entry/data/data"].id.get_chunk_info(1).byte_offset
    content = bytearray(part.read_bytes())
    content[place + 40] ^= 1
    part.write_bytes(content)
    with pytest.raises(TunerError):
        apply(source, tmp_path / "new_master.h5")
    assert listing(tmp_path) == ["raw"]


def rewrite(source: str, target: str) -> None:
    stacks = open_stacks([source])
    print("ready", flush=True)
    repack(profile(1), stacks, [source], target)


def test_a_killed_apply_leaves_no_master_or_a_whole_one(victims: Victims, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    source = master(tmp_path / "raw", 200)
    moments = random.Random(0)
    for attempt in range(int(os.environ.get("TUNER_FAULTS", "3"))):
        target = tmp_path / f"{attempt}_master.h5"
        victims.kill(rewrite, source, target, after=moments.uniform(0, 0.3), fresh=not attempt)
        if target.exists():
            with h5py.File(target) as file:
                frames = np.concatenate([part[()] for part in file["entry/data"].values()])
            assert (frames == frames_of(0, 200)).all()


#: Kills itself at each moment at which a file is given a name or loses one, and looks what is there then.
OVERWRITE = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_eiger import *

folder, moment = Path(sys.argv[1]), 0
target = folder / "scan_master.h5"

def whole():
    with h5py.File(target) as file:
        frames = np.concatenate([part[()] for _, part in sorted(file["entry/data"].items())])
        assert len(frames) == file["entry/instrument/detector/detectorSpecific/nimages"][()]
    assert any(len(frames) == len(one) and (frames == one).all() for one in (older, newer)), len(frames)
    return len(frames)

def stop_at(left):
    def hook(event, arguments):
        nonlocal left
        if event in ("os.rename", "os.link", "os.remove"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

ours = profile(2)
(folder / "made").mkdir()
many, few = frames_of(0, 20), frames_of(0, 9) + 7
for name, frames in (("many", many), ("few", few)):
    (folder / "made" / name).mkdir()
    with opened(folder / "made" / name / "scan_master.h5", roll_every=6) as writer:
        writer.append(frames)

for older, newer, there, source in ((few, many, "few", "many"), (many, few, "many", "few")):
    source = folder / "made" / source / "scan_master.h5"
    for moment in range(0, 1000, int(sys.argv[3])):
        for path in folder.glob("*scan_*"):
            path.unlink()
        shutil.copytree(folder / "made" / there, folder, dirs_exist_ok=True)
        stacks = open_stacks([source])
        process = os.fork()
        if not process:
            stop_at(moment)
            repack(ours, stacks, [source], target, overwrite=True)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        stacks[0].source.close()
        before = whole()
        recover(target)
        assert whole() == before
        with h5py.File(target) as file:
            names = [file["entry/data"].get(name, getlink=True).filename for name in sorted(file["entry/data"])]
        assert names == [f"scan_data_{number:06d}.h5" for number in range(1, len(names) + 1)]
        print(before, end=" ")
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            assert before == len(newer)
            assert sorted(p.name for p in folder.iterdir()) == ["made", *names, "scan_master.h5"]
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    print()
"""


def test_overwriting_a_master_leaves_one_whole_at_any_moment(tmp_path: Path) -> None:
    step = "1" if int(os.environ.get("TUNER_FAULTS", "3")) > 20 else "4"
    command = [sys.executable, "-W", "ignore", "-c", OVERWRITE, str(tmp_path), str(Path(__file__).parent), step]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    for line, counts in zip(done.stdout.splitlines(), ((9, 20), (20, 9)), strict=True):
        seen = line.split()
        assert len(seen) > 3
        assert list(dict.fromkeys(map(int, seen))) == list(counts)  # first the one, then the other


#: Under limits on the size of a file, which are met by data files, by the master, and by the one that takes its place.
LIMITED = """
import resource, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_eiger import *

folder, moments = Path(sys.argv[1]), random.Random(0)
source, target = folder / "raw" / "scan_master.h5", folder / "scan_master.h5"
(folder / "raw").mkdir()
with opened(source, roll_every=6) as writer:
    writer.append(frames_of(0, 20))
for _ in range(int(sys.argv[3])):
    with opened(target, roll_every=6, mode="w") as writer:
        writer.append(frames_of(0, 9) + 7)
    stacks = open_stacks([source])
    resource.setrlimit(resource.RLIMIT_FSIZE, (moments.randrange(3_000, 40_000), resource.RLIM_INFINITY))
    wanted = frames_of(0, 20)
    try:
        repack(profile(2), stacks, [source], target, overwrite=True)
    except TunerError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if "is whole" in str(error):
            recover(target)
        else:
            print(error)
            wanted = frames_of(0, 9) + 7
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    stacks[0].close()
    with h5py.File(target) as file:
        frames = np.concatenate([part[()] for _, part in sorted(file["entry/data"].items())])
    assert np.array_equal(frames, wanted)
    assert not list(folder.glob(".*"))
"""


def test_what_cannot_replace_a_master_leaves_it_and_nothing_else(tmp_path: Path) -> None:
    rounds = os.environ.get("TUNER_FAULTS", "8")
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(Path(__file__).parent), rounds]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    said = f"{tmp_path}/scan_master.h5: cannot be written: file too large; nothing is left of it"
    assert {line.lower() for line in done.stdout.splitlines()} == {said.lower()}
