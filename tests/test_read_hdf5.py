"""What `open_hdf5` finds in the files that beamlines have, and what it says about those it cannot use."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tuner.errors import InputError
from tuner.read import natural, open_stacks
from tuner.read.hdf5 import open_hdf5, slabs
from tuner.read.nexus import find_frames
from tuner.stack import Kind, Stack


def ramp(*shape: int, dtype: str = "uint16") -> np.ndarray:
    """Frames whose pixels all differ, as far as the dtype goes."""
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)


def group(parent: h5py.Group, name: str, nx_class: str, **attrs: Any) -> h5py.Group:
    made = parent.create_group(name)
    made.attrs.update({"NX_class": nx_class, **attrs})
    return made


def read_all(stack: Stack) -> np.ndarray:
    frames = stack.read(0, len(stack))
    assert frames.dtype == stack.dtype
    assert frames.dtype.isnative
    return frames.reshape(stack.shape)


# Which dataset


def test_default_plot_wins_over_a_larger_dataset(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        file.attrs["default"] = "entry"
        entry = group(file, "entry", "NXentry", default="plot")
        group(entry, "plot", "NXdata", signal="counts")["counts"] = ramp(4, 6, 5)
        group(entry, "other", "NXdata", signal="big")["big"] = ramp(9, 16, 15)
    stack = open_hdf5(tmp_path / "a.nxs")
    assert (stack.dataset, stack.shape, stack.frame_shape) == ("/entry/plot/counts", (4, 6, 5), (6, 5))
    assert (read_all(stack) == ramp(4, 6, 5)).all()


def test_old_style_signal_and_numbers_in_bytes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        data = group(group(file, "entry1", "NXentry"), "data", "NXdata")
        data["frames"] = ramp(3, 4, 5)
        data["frames"].attrs["signal"] = np.bytes_("1")
        data["zzz"] = ramp(30, 4, 5)
    assert open_hdf5(tmp_path / "a.nxs").dataset == "/entry1/data/frames"


def test_data_exchange_with_flats_and_darks(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["exchange/data"] = ramp(5, 4, 6)
        file["exchange/data"].attrs["axes"] = "theta:y:x"
        file["exchange/data_white"] = ramp(2, 4, 6) + 1
        file["exchange/data_dark"] = ramp(3, 4, 6) + 2
        file["process/larger"] = ramp(50, 4, 6)
    stack = open_hdf5(tmp_path / "a.h5")
    assert (stack.dataset, stack.axes) == ("/exchange/data", ("theta", "y", "x"))
    assert stack.flats is not None
    assert stack.darks is not None
    assert (read_all(stack.flats) == ramp(2, 4, 6) + 1).all()
    assert (read_all(stack.darks) == ramp(3, 4, 6) + 2).all()


def test_largest_that_is_not_about_the_frames(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["scan/camera"] = ramp(2, 8, 9)
        file["scan/flatfield"] = ramp(8, 9, dtype="f8")
        file["scan/x_pixel_offset"] = np.zeros((40, 50))
        file["scan/time"] = np.zeros(5000)
        file["scan/names"] = np.zeros(5000, dtype="S5")
        file["scan/complex"] = np.zeros((20, 20, 20), dtype="c16")
    assert open_hdf5(tmp_path / "a.h5").dataset == "/scan/camera"


def test_axes_are_not_the_frames_of_a_spectrum(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["s/wavelengths"] = np.zeros(100, "f8")
        file["s/counts"] = ramp(100, dtype="f4")
        file["s"].attrs["axes"] = ["wavelengths"]
    stack = open_hdf5(tmp_path / "a.h5")
    assert (stack.dataset, len(stack), stack.frame_shape) == ("/s/counts", 1, (100,))


def test_a_name_alone_does_not_set_a_stack_aside(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["dark_corrected"] = ramp(20, 8, 9)
        file["motor"] = ramp(20)
        file["sum"] = ramp(8, 9)
    assert open_hdf5(tmp_path / "a.h5").dataset == "/dark_corrected"


def test_types_that_numpy_does_not_know_are_passed_over(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["camera"] = ramp(2, 8, 9)
        h5py.h5d.create(file.id, b"when", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((9000,)))
    assert open_hdf5(tmp_path / "a.h5").dataset == "/camera"
    one_line(lambda: open_hdf5(tmp_path / "a.h5", "when"))
    one_line(lambda: open_hdf5(tmp_path / "a.h5", "what"))


def test_circles_of_links(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = h5py.SoftLink("/b")
        file["b"] = h5py.SoftLink("/a")
        file["group/root"] = file["/"]
        file["self"] = h5py.ExternalLink("a.h5", "/")
        file["group/data"] = ramp(3, 4, 5)
    assert open_hdf5(tmp_path / "a.h5").dataset == "/group/data"
    assert len(open_hdf5(tmp_path / "a.h5", "self/group/root/group/data")) == 3
    for name in ("a", ""):
        assert "dataset must be one of /group/data" in one_line(lambda name=name: open_hdf5(tmp_path / "a.h5", name))


def test_a_user_block_and_no_ending(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan", "w", userblock_size=512) as file:
        file["data"] = ramp(3, 4, 5)
    assert len(open_stacks([tmp_path / "scan"])[0]) == 3


def test_a_file_of_flats_only_is_a_stack_of_them(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["flats"] = ramp(3, 4, 5)
    assert open_hdf5(tmp_path / "a.h5").dataset == "/flats"


def test_dataset_overrides_and_may_name_a_group(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/big"] = ramp(9, 8, 8)
        file["b/small"] = ramp(2, 3, 4)
        file["b"].attrs["signal"] = "small"
    for name in ("b/small", "/b/small", "b"):
        assert open_hdf5(tmp_path / "a.h5", dataset=name).dataset == "/b/small"
    with pytest.raises(InputError, match=r"a\.h5: dataset must be one of /a/big uint16.*; /b/small .*got 'b/smal'"):
        open_hdf5(tmp_path / "a.h5", dataset="b/smal")


# Links, virtual datasets, masters


def test_soft_and_external_links(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["deep/frames"] = ramp(3, 4, 5)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["inner/frames"] = ramp(3, 4, 5) + 1
        group(file, "soft", "NXdata", signal="s")["s"] = h5py.SoftLink("/inner/frames")
        group(file, "ext", "NXdata", signal="e")["e"] = h5py.ExternalLink("data.h5", "/deep/frames")
        group(file, "gone", "NXdata", signal="g")["g"] = h5py.ExternalLink("nowhere.h5", "/deep/frames")
    soft = open_hdf5(tmp_path / "a.h5", dataset="soft")
    assert soft.dataset == "/inner/frames"
    assert (read_all(soft) == ramp(3, 4, 5) + 1).all()
    external = open_hdf5(tmp_path / "a.h5", dataset="ext/e")
    assert (read_all(external) == ramp(3, 4, 5)).all()
    for name in ("gone", "gone/g"):
        with pytest.raises(InputError, match=r"links to /deep/frames in nowhere\.h5"):
            open_hdf5(tmp_path / "a.h5", dataset=name)


def eiger(folder: Path, parts: int = 3, missing: int | None = None) -> Path:
    """A master as a Dectris Eiger writes it, with its data files."""
    master = folder / "scan_1_master.h5"
    with h5py.File(master, "w") as file:
        entry = group(file, "entry", "NXentry")
        data = group(entry, "data", "NXdata")
        for part in range(1, parts + 1):
            name = f"scan_1_data_{part:06d}.h5"
            data[f"data_{part:06d}"] = h5py.ExternalLink(name, "/entry/data/data")
            if part != missing:
                with h5py.File(folder / name, "w") as frames:
                    made = frames.create_dataset(
                        "/entry/data/data", data=ramp(part, 6, 7, dtype="uint32") + part, chunks=(1, 6, 7)
                    )
                    made.attrs["image_nr_low"] = part
        detector = group(group(entry, "instrument", "NXinstrument"), "detector", "NXdetector")
        detector["description"] = "Dectris Eiger 4M"
        specific = detector.create_group("detectorSpecific")
        specific["pixel_mask"] = np.eye(6, 7, dtype="uint32") * 2
        specific["countrate_correction_count_cutoff"] = 1000
        specific["flatfield"] = np.ones((6, 7), "f4")
    return master


def test_eiger_master_joins_its_files(tmp_path: Path) -> None:
    stack = open_hdf5(eiger(tmp_path))
    expected = np.concatenate([ramp(part, 6, 7, dtype="uint32") + part for part in (1, 2, 3)])
    assert stack.shape == (6, 6, 7)
    assert (read_all(stack) == expected).all()
    for start in range(6):
        for stop in range(start, 7):
            assert (stack.read(start, stop) == expected[start:stop]).all()
    assert stack.mask is not None
    assert (stack.mask == np.eye(6, 7, dtype=bool)).all()
    assert (stack.saturation, stack.photon_counting, stack.invalid) == (1001, True, (2**32 - 1,))
    assert stack.source.stored_bytes().tolist() == [6 * 7 * 4] * 6


def test_eiger_master_without_a_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scan_1_data_000002\.h5, which must exist"):
        open_hdf5(eiger(tmp_path, missing=2))


def test_a_folder_leaves_data_files_to_their_master(tmp_path: Path) -> None:
    eiger(tmp_path)
    (stack,) = open_stacks([tmp_path])
    assert len(stack) == 6


def test_one_part_of_a_master_can_be_asked_for(tmp_path: Path) -> None:
    assert len(open_hdf5(eiger(tmp_path), dataset="entry/data/data_000002")) == 2


def virtual(folder: Path) -> Path:
    """Frames dealt in turn to two writers, the last never mapped, as at Diamond."""
    for writer in range(2):
        with h5py.File(folder / f"raw_{writer}.h5", "w") as file:
            made = file.create_dataset("data", (3, 4, 5), "uint16", chunks=(1, 4, 5), compression="gzip")
            made[:2] = ramp(2, 4, 5) + 100 * writer  # the third is never written
    layout = h5py.VirtualLayout((7, 4, 5), "uint16")
    for writer in range(2):
        layout[writer:6:2] = h5py.VirtualSource(folder / f"raw_{writer}.h5", "data", (3, 4, 5))
    with h5py.File(folder / "vds.nxs", "w") as file:
        file.create_virtual_dataset("entry/data", layout, fillvalue=9)
    return folder / "vds.nxs"


def test_virtual_dataset_knows_what_was_written(tmp_path: Path) -> None:
    stack = open_hdf5(virtual(tmp_path))
    assert stack.storage is not None
    assert (stack.storage.chunks, stack.storage.filters) == ((1, 4, 5), ("gzip 4",))
    stored = stack.source.stored_bytes()
    assert (stored > 0).tolist() == [True] * 4 + [False] * 3
    assert stored.sum() == stack.storage.nbytes
    assert (stack.read(2, 4) == np.stack([ramp(2, 4, 5)[1], ramp(2, 4, 5)[1] + 100])).all()


def test_virtual_dataset_without_a_source_names_it(tmp_path: Path) -> None:
    path = virtual(tmp_path)
    (tmp_path / "raw_1.h5").unlink()
    with pytest.raises(InputError, match=r"/entry/data is virtual and its source .*raw_1\.h5 must exist"):
        open_hdf5(path)


# Axes


@pytest.mark.parametrize(
    ("shape", "attrs", "frame_shape"),
    [
        ((50,), {}, (50,)),
        ((5, 6), {}, (5, 6)),
        ((5, 6, 7), {}, (6, 7)),
        ((2, 5, 6, 7), {}, (6, 7)),
        ((3, 3, 4, 200), {}, (200,)),
        ((5, 60), {"interpretation": "spectrum"}, (60,)),
        ((5, 6, 7), {"interpretation": "spectrum"}, (7,)),
        ((3, 3, 4, 200), {"interpretation": "image"}, (4, 200)),
        ((5, 60), {"axes": ["time", "energy"]}, (60,)),
        ((5, 60), {"axes": "frame,q"}, (60,)),
        ((5, 6, 7), {"axes": ["energy", "y", "x"]}, (6, 7)),
        ((5, 6, 7), {"axes": [".", ".", "channel"]}, (7,)),
    ],
)
@pytest.mark.parametrize("on_group", [True, False])
def test_frame_axes(
    tmp_path: Path, shape: tuple[int, ...], attrs: dict[str, Any], frame_shape: tuple[int, ...], on_group: bool
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = group(group(file, "entry", "NXentry"), "data", "NXdata", signal="signal")
        data["signal"] = ramp(*shape)
        (data if on_group else data["signal"]).attrs.update(attrs)
    stack = open_hdf5(tmp_path / "a.h5")
    assert stack.frame_shape == frame_shape
    assert (read_all(stack) == ramp(*shape)).all()


@pytest.mark.parametrize(
    ("shape", "navigate", "names", "frame_shape", "axes"),
    [
        ((17, 60), [True, False], ["place", "Energy loss"], (60,), ("place", "Energy loss")),
        ((4, 5, 60), [True, True, False], ["y", "x", ""], (60,), ()),
        ((4, 5, 6, 7), [True, True, False, False], ["scan y", "scan x", "ky", "kx"], (6, 7), None),
        ((8, 9), [False, False], ["height", "width"], (8, 9), None),
    ],
)
def test_axes_of_hyperspy_tell_a_line_of_spectra_from_an_image(
    tmp_path: Path, shape: Any, navigate: list[bool], names: list[str], frame_shape: Any, axes: Any
) -> None:
    with h5py.File(tmp_path / "a.hspy", "w") as file:
        signal = file.create_group("Experiments/a signal")
        signal["data"] = ramp(*shape)
        for number, (moves, name) in enumerate(zip(navigate, names, strict=True)):
            signal.create_group(f"axis-{number}").attrs.update({"navigate": moves, "name": name})
    (stack,) = open_stacks([tmp_path])
    assert (stack.frame_shape, stack.axes) == (frame_shape, tuple(names) if axes is None else axes)
    assert (read_all(stack) == ramp(*shape)).all()


def test_axes_override(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = ramp(3, 4, 5)
        file["data"].attrs["axes"] = ["theta", "y", "x"]
    path = tmp_path / "a.h5"
    stack = open_hdf5(path, axes=["y", "x", "energy"])
    assert (stack.axes, stack.frame_shape, len(stack)) == (("y", "x", "energy"), (5,), 12)
    with pytest.raises(InputError, match="axes must name each of 3 axes, got 2: y x"):
        open_hdf5(path, axes=["y", "x"])
    with pytest.raises(InputError, match="axes must end with those of a frame"):
        open_hdf5(path, axes=["y", "x", "theta"])


@given(st.lists(st.integers(1, 5), max_size=3), st.data())
def test_slabs_are_the_frames_in_c_order(lead: list[int], data: st.DataObject) -> None:
    frames = np.arange(np.prod(lead, dtype=int)).reshape(lead)
    stop = data.draw(st.integers(1, frames.size))
    start = data.draw(st.integers(0, stop - 1))
    pieces = [frames[selection].ravel() for selection in slabs(start, stop, tuple(lead))]
    assert np.concatenate(pieces).tolist() == list(range(start, stop))
    assert len(pieces) <= max(1, 2 * len(lead) - 1)


# Dtypes and filters


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_dtype_comes_back_native_and_equal(tmp_path: Path, data: st.DataObject) -> None:
    kinds = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]
    dtype = np.dtype(data.draw(st.sampled_from(["?", *(order + kind for order in "<>" for kind in kinds)])))
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    chunks = data.draw(st.sampled_from([None, True, tuple(max(1, n // 2) for n in shape)]))
    frames = data.draw(npst.arrays(dtype, shape))
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=frames, chunks=chunks)
    with contextlib.closing(open_hdf5(path)) as stack:  # hypothesis may end an example where it draws
        native = frames.astype(dtype.newbyteorder("="))
        assert stack.dtype == native.dtype
        assert read_all(stack).tobytes() == native.tobytes()
        stop = data.draw(st.integers(1, len(stack)))
        start = data.draw(st.integers(0, stop - 1))
        assert stack.read(start, stop).tobytes() == native.reshape(-1, *stack.frame_shape)[start:stop].tobytes()


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"compression": "gzip", "compression_opts": 7, "shuffle": True}, ("shuffle", "gzip 7")),
        ({"compression": "lzf"}, ("lzf",)),
        ({"compression": "gzip", "fletcher32": True}, ("gzip 4", "fletcher32")),
        (hdf5plugin.Bitshuffle(cname="lz4"), ("bitshuffle lz4",)),
        (hdf5plugin.Bitshuffle(cname="zstd"), ("bitshuffle zstd",)),
        (hdf5plugin.Blosc(cname="lz4", clevel=5), ("blosc lz4 5 shuffle",)),
        (hdf5plugin.Blosc2(cname="zstd", clevel=1), ("blosc2 zstd 1 shuffle",)),
        (hdf5plugin.Zstd(clevel=9), ("zstd 9",)),
        (hdf5plugin.LZ4(), ("lz4",)),
    ],
)
def test_whatever_filter_it_is_stored_with(tmp_path: Path, options: Any, texts: tuple[str, ...]) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=ramp(5, 60, 70), chunks=(2, 30, 70), **options)
    stack = open_hdf5(tmp_path / "a.h5")
    assert (read_all(stack) == ramp(5, 60, 70)).all()
    assert stack.storage is not None
    assert (stack.storage.chunks, stack.storage.filters) == ((2, 30, 70), texts)
    assert 0 < stack.storage.nbytes < 5 * 60 * 70 * 2


@pytest.mark.parametrize(("codec", "package"), [(39, "blosc2-j2k"), (40, "blosc2-htj2k")])
def test_a_blosc2_plugin_that_is_not_installed_is_named(tmp_path: Path, codec: int, package: str) -> None:
    if importlib.util.find_spec(package.replace("-", "_")):
        pytest.skip(f"{package} is installed here")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 4, 5))
        plist.set_filter(32026, h5py.h5z.FLAG_OPTIONAL, (1, 0, 2, 40, 5, 0, codec))
        space = h5py.h5s.create_simple((3, 4, 5))
        h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_UINT16, space, plist)
    with pytest.raises(InputError, match=f"/data is compressed with a Blosc2 plug-in: {package} is not installed"):
        open_stacks([tmp_path / "a.h5"])


def test_a_filter_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 4, 5))
        plist.set_filter(32099, h5py.h5z.FLAG_OPTIONAL, (1, 2))
        space = h5py.h5s.create_simple((3, 4, 5))
        h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_UINT16, space, plist)
    with pytest.raises(InputError, match=r"/data is compressed with filter 32099 \(unnamed\), which .* do not have"):
        open_hdf5(tmp_path / "a.h5")


# Stored bytes


def test_stored_bytes_follow_the_chunks(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        tiled = file.create_dataset("tiled", (7, 6, 8), "uint16", chunks=(2, 3, 8))
        tiled[2:5, :3] = 1  # chunks 2-3 and 4-5 of the upper tiles
        maps = file.create_dataset("maps", (3, 5, 4, 100), "uint8", chunks=(1, 2, 4, 100))
        maps[1, 4] = 1
        file.create_dataset("late", (3, 4, 5), "uint8")
        file["contiguous"] = ramp(3, 4, 5)
    path = tmp_path / "a.h5"
    chunk = 2 * 3 * 8 * 2
    stored = open_hdf5(path, "tiled").source.stored_bytes()
    assert stored.tolist() == [0, 0, chunk / 2, chunk / 2, chunk / 2, chunk / 2, 0]
    stack = open_hdf5(path, "maps", axes=["y", "x", "detector", "energy"])
    stored = stack.source.stored_bytes().reshape(3, 5, 4)
    assert np.argwhere(stored).tolist() == [[1, 4, element] for element in range(4)]
    assert open_hdf5(path, "late").source.stored_bytes().tolist() == [0, 0, 0]
    assert open_hdf5(path, "contiguous").source.stored_bytes() is None


# Masks, limits, kinds


def test_what_nxdetector_says(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        entry = group(file, "entry", "NXentry")
        detector = group(group(entry, "instrument", "NXinstrument"), "sCMOS", "NXdetector")
        detector["data"] = ramp(5, 4, 6, dtype="int32")
        detector["image_key"] = [2, 1, 0, 0, 7]
        detector["pixel_mask"] = np.eye(4, 6, dtype="uint32")[None]
        detector["saturation_value"] = 200
        detector["underload_value"] = 3
        detector["type"] = "sCMOS"
        group(entry, "data", "NXdata", signal="data")["data"] = detector["data"]
    stack = open_hdf5(tmp_path / "a.nxs")
    assert stack.dataset == "/entry/data/data"
    assert stack.kinds is not None
    assert stack.kinds.tolist() == [Kind.DARK, Kind.FLAT, Kind.DATA, Kind.DATA, Kind.INVALID]
    assert (stack.saturation, stack.underload, stack.photon_counting) == (200, 3, False)
    frames = stack.read(0, 5)
    outside = np.eye(4, 6, dtype=bool) | (frames >= 200) | (frames < 3)
    assert (stack.valid(frames) == ~outside).all()


def test_a_mask_of_cxi_excludes_what_is_bad_and_not_what_was_corrected_or_has_a_peak(tmp_path: Path) -> None:
    bits = np.zeros((4, 6), "uint16")
    bits[0, :5] = 1 << np.array([0, 3, 7, 9, 12])
    bits[1, :5] = 1 << np.array([5, 8, 11, 13, 14])
    with h5py.File(tmp_path / "a.cxi", "w") as file:
        file["cxi_version"] = 160
        detector = file.create_group("entry_1/instrument_1/detector_1")
        detector["data"], detector["mask"] = ramp(5, 4, 6), bits
        file.create_group("entry_1/data_1")["data"] = h5py.SoftLink(f"{detector.name}/data")
    mask = open_hdf5(tmp_path / "a.cxi").mask
    assert mask is not None
    assert np.argwhere(mask).tolist() == [[0, column] for column in range(5)]


def test_what_does_not_fit_is_not_taken(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        data = group(group(file, "entry", "NXentry"), "data", "NXdata", signal="data")
        data["data"] = ramp(5, 4, 6)
        data["image_key"] = [0, 1, 2]
        data["pixel_mask"] = np.ones((6, 4), "uint8")
        data["flat"] = ramp(2, 9, 9)
        data["dark"] = ramp(4, 6, dtype="f4")
    stack = open_hdf5(tmp_path / "a.nxs")
    assert (stack.kinds, stack.mask, stack.flats, stack.darks) == (None, None, None, None)


def test_of_two_detectors_each_keeps_its_own(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        instrument = group(group(file, "entry", "NXentry"), "instrument", "NXinstrument")
        for name, limit in (("near", 100), ("far", 200)):
            detector = group(instrument, name, "NXdetector")
            detector["saturation_value"] = limit
            plot = group(file["entry"], name, "NXdata", signal="data")
            plot["data"] = ramp(2, 3, 4)
    assert open_hdf5(tmp_path / "a.nxs", "entry/near").saturation == 100
    assert open_hdf5(tmp_path / "a.nxs", "entry/far").saturation == 200


def test_frames_in_a_detector_of_two_have_no_mask_of_the_other(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        instrument = group(group(file, "entry", "NXentry"), "instrument", "NXinstrument")
        for name in ("near", "far"):
            group(instrument, name, "NXdetector")["data"] = ramp(2, 3, 4)
        instrument["far/pixel_mask"] = np.eye(3, 4, dtype="uint8")
        instrument["far/saturation_value"] = 100
    near, far = (open_hdf5(tmp_path / "a.nxs", f"entry/instrument/{name}/data") for name in ("near", "far"))
    assert (near.mask, near.saturation) == (None, None)
    assert far.mask is not None
    assert far.saturation == 100


def test_conventional_marks_unless_they_are_the_saturation(tmp_path: Path) -> None:
    for dtype, marks in (("uint16", (65535,)), ("int32", (-1, -2)), ("int16", ()), ("f4", ())):
        with h5py.File(tmp_path / f"{dtype}.h5", "w") as file:
            file["data"] = ramp(2, 3, 4, dtype=dtype)
        assert open_hdf5(tmp_path / f"{dtype}.h5").invalid == marks
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = ramp(2, 3, 4)
        file["saturation_value"] = 65535
    assert (open_hdf5(tmp_path / "a.h5").invalid, open_hdf5(tmp_path / "a.h5").saturation) == ((), 65535)


@pytest.mark.parametrize(
    ("dtype", "attributes", "marks"),
    [
        ("int16", {"_FillValue": np.int16(-999)}, (-999,)),
        ("uint16", {"_FillValue": np.uint16(65535), "missing_value": np.array([0, 7], "uint16")}, (65535, 0, 7)),
        ("int32", {"_FillValue": np.int64(2**40), "missing_value": b"none"}, (-1, -2)),
        ("float32", {"_FillValue": np.float32(1e20)}, (int(np.float32(1e20)),)),
        ("float32", {"_FillValue": np.float32("nan"), "missing_value": 0.5}, ()),
        ("uint8", {"_FillValue": np.inf}, (255,)),
    ],
)
def test_what_a_dataset_calls_missing_does_not_count(
    dtype: str, attributes: dict[str, Any], marks: tuple[int, ...], tmp_path: Path
) -> None:
    frames = np.full((2, 3, 4), 5, dtype)
    frames[:, 0, : len(marks)] = marks
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("frames", data=frames).attrs.update(attributes)
    stack = open_hdf5(tmp_path / "a.h5")
    assert stack.invalid == marks
    np.testing.assert_array_equal(stack.valid(frames), frames == 5)


# Bad input: one line that names the file


def one_line(call: Any) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_files_that_are_none(tmp_path: Path) -> None:
    good = tmp_path / "good.h5"
    with h5py.File(good, "w") as file:
        file["data"] = ramp(20, 30, 40)
    raw = good.read_bytes()
    (tmp_path / "empty.h5").touch()
    (tmp_path / "text.h5").write_text("not at all")
    assert one_line(lambda: open_stacks([tmp_path / "no.h5"])).endswith("no.h5: no such file")
    assert "must be an HDF5 file, got an empty one" in one_line(lambda: open_stacks([tmp_path / "empty.h5"]))
    assert "must be an HDF5 file, got something else" in one_line(lambda: open_stacks([tmp_path / "text.h5"]))
    assert "must be a file, got a folder" in one_line(lambda: open_hdf5(tmp_path))
    for length in (len(raw) // 2, len(raw) - 1, 600, 40):
        (tmp_path / "cut.h5").write_bytes(raw[:length])
        assert "cut.h5: is cut or damaged: " in one_line(lambda: open_stacks([tmp_path / "cut.h5"]))


@pytest.mark.skipif(os.getuid() == 0, reason="root may read anything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.touch(mode=0)
    assert "no permission" in one_line(lambda: open_stacks([path]))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.zeros((3, 4, 5), "c8"), "got complex (complex64)"),
        (np.zeros((3, 4), [("a", "i4"), ("b", "f4")]), "got compound"),
        (np.zeros((3, 4), "S5"), "got text"),
        (np.full((3, 4), "a", object), "got text or objects"),
        (np.zeros((2,) * 7, "u2"), "must have 1 to 6 axes, got 7"),
        (np.zeros((0, 4, 5), "u2"), "must have at least one frame and no empty axis, got shape (0, 4, 5)"),
        (np.zeros((3, 0, 5), "u2"), "must have at least one frame and no empty axis, got shape (3, 0, 5)"),
        (np.float32(3), "must have 1 to 6 axes, got none"),
        (h5py.Empty("f4"), "must have 1 to 6 axes, got none"),
    ],
)
def test_data_that_cannot_be_frames(tmp_path: Path, value: Any, says: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group(file, "d", "NXdata", signal="x")["x"] = value
    message = one_line(lambda: open_hdf5(tmp_path / "a.h5", "d/x"))
    assert "a.h5: /d/x: must " in message
    assert says in message
    one_line(lambda: open_hdf5(tmp_path / "a.h5"))


def test_nothing_numeric(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["title"] = "a scan"
    assert "must hold a numeric dataset of 1 to 6 axes, got none" in one_line(lambda: open_hdf5(tmp_path / "a.h5"))


def test_damage_anywhere_is_one_line_or_no_matter(tmp_path: Path) -> None:
    """Zeros over any part of a file: it opens and reads, or says one line, never a traceback of the library."""
    with h5py.File(tmp_path / "good.h5", "w") as file:
        data = group(group(file, "entry", "NXentry", default="data"), "data", "NXdata", signal="data")
        data.create_dataset("data", data=ramp(8, 30, 40), chunks=(2, 30, 40), compression="gzip")
        data["image_key"] = np.zeros(8)
    raw = (tmp_path / "good.h5").read_bytes()
    for start in range(96, min(len(raw), 6000), 60):
        (tmp_path / "bad.h5").write_bytes(raw[:start] + bytes(60) + raw[start + 60 :])
        with contextlib.suppress(InputError):
            stack = open_hdf5(tmp_path / "bad.h5")
            stack.read(0, len(stack))
            stack.source.stored_bytes()


# A beamline's habits


APPEND = """
import sys, h5py
with h5py.File(sys.argv[1], "r+") as file:
    file["more"] = 1
"""


def test_a_writer_is_not_locked_out(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"] = ramp(3, 4, 5)
    stack = open_hdf5(path)
    stack.read(0, 1)
    subprocess.run([sys.executable, "-c", APPEND, path], check=True)
    assert (stack.read(1, 2) == ramp(3, 4, 5)[1:2]).all()


def test_a_file_that_is_being_written_in_swmr_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_dataset("data", (0, 4, 5), "uint16", maxshape=(None, 4, 5), chunks=(1, 4, 5))
        file.swmr_mode = True
        data.resize(3, axis=0)
        data[:] = ramp(3, 4, 5)
        data.flush()
        script = "import sys; from tuner.read.hdf5 import open_hdf5; print(open_hdf5(sys.argv[1]).read(0, 3).sum())"
        done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) == ramp(3, 4, 5).sum()


def test_a_chunk_of_many_frames_is_decoded_once(tmp_path: Path) -> None:
    """Frame by frame takes about as long as all at once: HDF5's own cache would decode 24 MB for each of 48 frames."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        frames = np.random.default_rng(0).integers(0, 9, (48, 500, 500), dtype=np.uint16)
        file.create_dataset("data", data=frames, chunks=frames.shape, **hdf5plugin.LZ4())

    def seconds(step: int) -> float:
        stack = open_hdf5(tmp_path / "a.h5")
        began = time.perf_counter()
        for start in range(0, 48, step):
            stack.read(start, start + step)
        return time.perf_counter() - began

    assert min(seconds(1) for _ in range(3)) < 10 * min(seconds(48) for _ in range(3))


def test_find_frames_follows_the_hard_link_of_nxtomo(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        file["raw/data"] = ramp(3, 4, 5)
        file["alias"] = h5py.SoftLink("/raw")
        assert find_frames(file) == ("/raw/data",)


# Files, folders, globs


def test_each_hdf5_file_is_a_stack_in_natural_order(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        with h5py.File(tmp_path / f"scan_{number}.h5", "w") as file:
            file["data"] = ramp(number, 4, 5)
    (tmp_path / "notes.txt").write_text("x")
    for given_paths in (
        [tmp_path],
        [tmp_path / "scan_*.h5"],
        sorted(tmp_path.glob("*.h5")),
    ):
        assert [len(stack) for stack in open_stacks(given_paths)] == [1, 2, 10]
    chosen = [tmp_path / f"scan_{number}.h5" for number in (10, 1, 2)]
    assert [len(stack) for stack in open_stacks(chosen)] == [10, 1, 2]


def test_names_with_digits_of_other_scripts_are_sorted_too() -> None:
    names = ["a1²10", "a1²2", "²", "a٣"]  # a power, and a digit of another script
    assert [path.name for path in natural(map(Path, names))] == ["a1²2", "a1²10", "a٣", "²"]


def test_folders_and_globs_without_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert "must hold files of a format that can be read, got none of 1" in one_line(lambda: open_stacks([tmp_path]))
    assert "must match a file, got none" in one_line(lambda: open_stacks([tmp_path / "*.h5"]))
    assert "must be at least one" in one_line(lambda: open_stacks([]))
