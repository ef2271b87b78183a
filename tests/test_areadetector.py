"""Files as areaDetector's NDFileHDF5 writes them go through every command, and lose nothing on the way."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from foreign import read_elsewhere
from numpy.typing import NDArray

from tuner.apply.in_place import replace_in_place
from tuner.apply.repack import repack
from tuner.config import Blosc2, Config
from tuner.errors import VerificationError
from tuner.profile import Match, Profile
from tuner.read import open_stacks
from tuner.steps.reductions import Reduction, Sum
from tuner.steps.triage import Triage

FRAMES = np.random.default_rng(0).poisson(5, (12, 32, 40)).astype("uint16")
TEXT = b"Simulated detector"


def text(node: h5py.HLObject, name: str, value: str) -> None:
    """An attribute as writeH5attrStr of NDFileHDF5.cpp makes it: its type ends in a zero, for which it has no room."""
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(value))
    attribute = h5py.h5a.create(node.id, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
    attribute.write(np.array(value.encode(), f"V{len(value)}"), mtype=kind)


def ioc_file(path: Path, room: int = 0, **compression: Any) -> Path:
    """A file with the default layout of NDFileHDF5, as LayoutXML::DEFAULT_LAYOUT has it.

    `room`, where it is given, is NumCapture of an older IOC, whose NDAttributes had that length, and text as bytes.
    """
    count, *shape = FRAMES.shape
    with h5py.File(path, "w") as file:
        for group, nx_class in (
            ("entry", "NXentry"),
            ("entry/instrument", "NXinstrument"),
            ("entry/instrument/detector", "NXdetector"),
            ("entry/instrument/detector/NDAttributes", "NXcollection"),
            ("entry/instrument/NDAttributes", "NXcollection"),
            ("entry/data", "NXdata"),
        ):
            text(file.create_group(group), "NX_class", nx_class)
        text(file["entry/instrument/NDAttributes"], "hostname", "ioc01")
        data = file["entry/instrument/detector"].create_dataset(
            "data", data=FRAMES, maxshape=(None, *shape), chunks=(1, *shape), **compression
        )
        text(data, "NX_class", "SDS")
        data.attrs["signal"] = np.int32(1)
        file["entry/data/data"] = data
        stamps = 1.1e9 + 0.25 * np.arange(count)
        texts = np.full(count, TEXT, "S256")
        values: dict[str, NDArray[Any]] = {
            "detector/NDAttributes/ColorMode": np.zeros(count, np.int32),
            "NDAttributes/NDArrayUniqueId": np.arange(1, count + 1, dtype=np.int32),
            "NDAttributes/NDArrayTimeStamp": stamps,
            "NDAttributes/NDArrayEpicsTSSec": stamps.astype(np.int32),
            "NDAttributes/NDArrayEpicsTSnSec": (stamps % 1 * 1e9).astype(np.int32),
            "NDAttributes/RingCurrent": np.linspace(100, 99, count),
            "NDAttributes/AcquisitionTime": texts.view(np.int8).reshape(count, 256) if room else texts,
        }
        for name, items in values.items():
            if room:
                items = np.concatenate([items, np.zeros((room - count, *items.shape[1:]), items.dtype)])
            made = file["entry/instrument"].create_dataset(name, data=items)
            for attribute, value in (
                ("NDAttrName", made.name.rpartition("/")[2]),
                ("NDAttrDescription", "What it is"),
                ("NDAttrSourceType", "NDAttrSourceDriver"),
                ("NDAttrSource", "Driver"),
            ):
                text(made, attribute, value)
        file["entry/instrument/performance/timestamp"] = np.ones((count, 5))
    return path


def profile(*reduce: Reduction) -> Profile:
    config = Config((1, -1, -1), Blosc2("zstd", clevel=1))
    return Profile("test", Match("uint16"), config, Config((1, -1, -1)), reduce=reduce)


def attributes(path: Path) -> dict[str, dict[str, Any]]:
    """All attributes of a file but those that we add, by the path of what has them."""
    found = {}
    with h5py.File(path) as file:
        names = ["/"]
        file.visit(lambda name: names.append(name) if "tuner" not in name else None)
        for name in names:
            found[name] = {key: value for key, value in file[name].attrs.items() if not key.startswith("tuner_")}
    return found


def nbit_file(path: Path) -> Path:
    """A file of the plugin with NumDataBits 12."""
    ioc_file(path)
    kind = h5py.h5t.NATIVE_UINT16.copy()
    kind.set_precision(12)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((1, *FRAMES.shape[1:]))
    properties.set_filter(h5py.h5z.FILTER_NBIT, h5py.h5z.FLAG_OPTIONAL, ())
    with h5py.File(path, "a") as file:
        detector = file["entry/instrument/detector"]
        del detector["data"], file["entry/data/data"]
        made = h5py.h5d.create(detector.id, b"data", kind, h5py.h5s.create_simple(FRAMES.shape), properties)
        data = file["entry/data/data"] = h5py.Dataset(made)
        data[...] = FRAMES
    return path


@pytest.mark.parametrize(
    ("make", "stored"),
    [
        (ioc_file, []),
        (nbit_file, [h5py.h5z.FILTER_NBIT]),
        (partial(ioc_file, compression="szip"), [h5py.h5z.FILTER_SZIP]),
        (partial(ioc_file, compression="gzip", shuffle=False), [h5py.h5z.FILTER_DEFLATE]),
        (partial(ioc_file, **hdf5plugin.Blosc(cname="zstd", clevel=3, shuffle=2)), [32001]),
        (partial(ioc_file, **hdf5plugin.LZ4()), [32004]),
        (partial(ioc_file, **hdf5plugin.Bitshuffle(cname="lz4")), [32008]),
    ],
)
def test_whatever_an_ioc_compresses_without_loss_is_read(tmp_path: Path, make: Any, stored: list[int]) -> None:
    source = make(tmp_path / "ioc.h5")
    with h5py.File(source) as file:
        filters = file["entry/data/data"].id.get_create_plist()
        assert [filters.get_filter(place)[0] for place in range(filters.get_nfilters())] == stored
    (stack,) = open_stacks([source])
    assert (stack.read(0, len(stack)) == FRAMES).all()
    repack(profile(), [stack], [source], tmp_path / "out.h5")
    stack.close()
    assert (read_elsewhere(tmp_path / "out.h5") == FRAMES).all()


@pytest.mark.parametrize("in_place", [False, True])
def test_every_text_and_link_of_an_ioc_comes_along(tmp_path: Path, in_place: bool) -> None:
    source = ioc_file(tmp_path / "ioc.h5", **hdf5plugin.Bitshuffle(cname="lz4"))
    before = attributes(source)
    assert before["entry"]["NX_class"] == b"NXentry"
    stacks = open_stacks([source])
    if in_place:
        replace_in_place(profile(), stacks)
        written = source
    else:
        written = tmp_path / "out.h5"
        repack(profile(), stacks, [source], written)
        stacks[0].close()
    assert attributes(written) == before
    with h5py.File(written) as file:
        assert file["entry/data/data"] == file["entry/instrument/detector/data"]  # one dataset with two names
        assert (file["entry/data/data"][()] == FRAMES).all()
        assert file["entry/tuner"].attrs["NX_class"] == "NXprocess"  # in the entry that the source has


def test_a_copy_with_another_text_does_not_replace_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ioc_file(tmp_path / "ioc.h5")
    before = source.read_bytes()

    def damaged(*arguments: Any, **options: Any) -> Any:
        done = repack(*arguments, **options)
        with h5py.File(arguments[3], "a") as file:
            del file["entry"].attrs["NX_class"]
            text(file["entry"], "NX_class", "NXentrx")
        return done

    monkeypatch.setattr("tuner.apply.in_place.repack", damaged)
    with pytest.raises(VerificationError, match="/entry is not in the copy as it was"):
        replace_in_place(profile(), open_stacks([source]))
    assert source.read_bytes() == before


def test_the_layout_of_an_eiger_has_no_empty_dataset_under_the_other_name(tmp_path: Path) -> None:
    source = ioc_file(tmp_path / "ioc.h5")
    (stack,) = open_stacks([source])
    repack(profile(), [stack], [source], tmp_path / "scan_master.h5", layout="eiger")
    stack.close()
    with h5py.File(tmp_path / "scan_master.h5") as file:
        assert (file["entry/data/data_000001"][()] == FRAMES).all()
        assert "data" not in file["entry/data"]
        assert "data" not in file["entry/instrument/detector"]
        assert "NDArrayUniqueId" in file["entry/instrument/NDAttributes"]


@pytest.mark.parametrize("room", [0, len(FRAMES), 100])
def test_what_an_ioc_notes_of_each_frame_is_of_the_sums(tmp_path: Path, room: int) -> None:
    source = ioc_file(tmp_path / "ioc.h5", room)
    (stack,) = open_stacks([source])
    repack(profile(Sum(4)), [stack], [source], tmp_path / "summed.h5")
    stack.close()
    with h5py.File(source) as old, h5py.File(tmp_path / "summed.h5") as new:
        assert (new["entry/data/data"][()] == FRAMES.reshape(3, 4, 32, 40).sum(axis=1)).all()
        was, now = old["entry/instrument/NDAttributes"], new["entry/instrument/NDAttributes"]
        for name in ("NDArrayUniqueId", "NDArrayTimeStamp", "NDArrayEpicsTSSec", "NDArrayEpicsTSnSec"):
            assert (now[name][()] == was[name][: len(FRAMES) : 4]).all(), name  # when the first of them began
        assert np.allclose(now["RingCurrent"], was["RingCurrent"][: len(FRAMES)].reshape(3, 4).mean(axis=1))
        assert [bytes(item).rstrip(b"\0") for item in now["AcquisitionTime"][()]] == [TEXT] * 3
        assert new["entry/instrument/detector/NDAttributes/ColorMode"].shape == (3,)
        assert new["entry/instrument/performance/timestamp"].shape == (3, 5)
        assert now["RingCurrent"].attrs["NDAttrName"] == b"RingCurrent"


@pytest.mark.parametrize("room", [0, 100])
def test_what_an_ioc_notes_of_frames_that_triage_leaves_out_goes_with_them(tmp_path: Path, room: int) -> None:
    source = ioc_file(tmp_path / "ioc.h5", room)
    hits = [2, 3, 7]
    with h5py.File(source, "a") as file:
        for number in hits:
            file["entry/data/data"][number, 4::8, 4::8] = 500
    (stack,) = open_stacks([source])
    repack(profile(Triage(peaks=10, least=100.0, audit=100)), [stack], [source], tmp_path / "hits.h5")
    stack.close()
    with h5py.File(tmp_path / "hits.h5") as file:
        numbers = file["entry/instrument/detector/frame_numbers"][()]
        assert set(hits) <= set(numbers) < set(range(len(FRAMES)))
        noted = file["entry/instrument/NDAttributes"]
        assert (noted["NDArrayUniqueId"][()] == numbers + 1).all()
        assert (noted["NDArrayTimeStamp"][()] == 1.1e9 + 0.25 * numbers).all()
        assert [bytes(item).rstrip(b"\0") for item in noted["AcquisitionTime"][()]] == [TEXT] * len(numbers)
