"""TIFF, formats of fabio, npy, MRC, MIB and DM are stacks: what was written is read, bad files get one line."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import fabio
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tuner.errors import InputError
from tuner.read import open_stacks
from tuner.read.fabio_series import open_fabio
from tuner.read.mrc import open_mrc
from tuner.read.npy import open_npy
from tuner.read.tiff import open_tiff
from tuner.stack import Stack

PILATUS = """# Detector: PILATUS 300K, S/N 3-0104
# Count_cutoff 1047 counts
"""


def counts(*shape: int, dtype: str = "int32", seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).poisson(5, shape).astype(dtype)


def write_cbf(path: Path, frame: np.ndarray[Any, Any]) -> Path:
    fabio.cbfimage.CbfImage(
        data=frame,
        header={"_array_data.header_convention": "PILATUS_1.2", "_array_data.header_contents": PILATUS},
    ).write(str(path))
    return path


def write_edf(path: Path, frames: np.ndarray[Any, Any]) -> Path:
    image = fabio.edfimage.EdfImage(data=frames[0])
    for frame in frames[1:]:
        image.append_frame(data=frame)
    image.write(str(path))
    return path


def write_tiff(path: Path, frames: np.ndarray[Any, Any], **options: Any) -> Path:
    tifffile.imwrite(path, frames, photometric="minisblack", **options)
    return path


def assert_holds(stack: Stack, frames: np.ndarray[Any, Any]) -> None:
    """The stack's frames are these, all at once, and piece by piece in any order."""
    assert stack.shape == frames.shape
    assert stack.dtype == frames.dtype.newbyteorder("=")
    assert stack.dtype.isnative
    whole = stack.read(0, len(stack))
    assert whole.dtype == stack.dtype
    assert whole.flags.c_contiguous
    np.testing.assert_array_equal(whole, frames.reshape(whole.shape))
    for number in reversed(range(len(stack))):
        np.testing.assert_array_equal(stack.read(number, number + 1)[0], whole[number])
    stored = stack.source.stored_bytes()
    assert stored is None or (stored.shape == (len(stack),) and (stored > 0).all())
    for _ in range(2):  # closed, it is opened again where more is read
        stack.source.close()
        np.testing.assert_array_equal(stack.read(0, 1)[0], whole[0])
    stack.source.close()


def assert_refused(open_stack: Callable[[], Any], *words: str) -> None:
    with pytest.raises(InputError) as caught:
        open_stack()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def assert_same_or_refused(open_stack: Callable[[], Stack], path: Path, frames: np.ndarray[Any, Any]) -> None:
    refusal = ""
    try:
        stack = open_stack()
        with closing(stack.source):
            np.testing.assert_array_equal(stack.read(0, len(frames)), frames)
    except InputError as error:
        refusal = str(error)
    assert not refusal or (refusal.startswith(f"{path}: ") and "\n" not in refusal)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"compression": "zlib"}, {"tile": (16, 16)}], ids=str)
def test_tiff_pages(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    frames = counts(5, 33, 40, dtype=dtype)
    assert_holds(open_tiff([write_tiff(tmp_path / "a.tif", frames, **options)]), frames)


def test_tiff_of_bits(tmp_path: Path) -> None:
    frames = counts(5, 33, 40) % 2 == 1
    assert_holds(open_tiff([write_tiff(tmp_path / "a.tif", frames)]), frames)


def test_tiff_series(tmp_path: Path) -> None:
    frames = counts(6, 20, 30, dtype="uint16")
    cuts = [(0, 1), (1, 4), (4, 6)]
    paths = [write_tiff(tmp_path / f"{i}.tif", frames[a:b], compression="zlib") for i, (a, b) in enumerate(cuts)]
    stack = open_tiff(paths, axes=["theta", "y", "x"])
    assert stack.axes == ("theta", "y", "x")
    assert stack.storage is not None
    assert stack.storage.filters == ("TIFF adobe deflate",)
    assert stack.storage.nbytes == stack.source.stored_bytes().sum() < frames.nbytes  # type: ignore[union-attr]
    assert_holds(stack, frames)


def test_tiff_that_is_refused(tmp_path: Path) -> None:
    grey = write_tiff(tmp_path / "grey.tif", counts(5, 20, 30, dtype="uint16"))
    colour = tmp_path / "colour.tif"
    tifffile.imwrite(colour, np.zeros((20, 30, 3), np.uint8), photometric="rgb")
    waves = tmp_path / "waves.tif"
    tifffile.imwrite(waves, np.zeros((20, 30), np.complex64))
    other = write_tiff(tmp_path / "other.tif", counts(1, 20, 31, dtype="uint16"))
    signed = write_tiff(tmp_path / "signed.tif", counts(1, 20, 30, dtype="int16"))
    assert_refused(lambda: open_tiff([colour]), "colour.tif", "grey")
    assert_refused(lambda: open_tiff([waves]), "waves.tif", "complex")
    assert_refused(lambda: open_tiff([grey, other]), "other.tif", "grey.tif", "(20, 31)")
    assert_refused(lambda: open_tiff([grey, signed]), "signed.tif", "int16")
    assert_refused(lambda: open_tiff([tmp_path / "none.tif"]), "none.tif: no such file")
    assert_refused(lambda: open_tiff([grey], axes=["y", "x"]), "axes", "grey.tif")


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}], ids=["plain", "zlib"])
def test_a_cut_tiff_is_refused_or_loses_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    frames = counts(5, 20, 30, dtype="uint16")
    content = write_tiff(tmp_path / "whole.tif", frames, **options).read_bytes()
    cut = tmp_path / "cut.tif"
    for length in range(0, len(content), len(content) // 40):
        cut.write_bytes(content[:length])
        assert_same_or_refused(lambda: open_tiff([cut]), cut, frames)


@pytest.mark.parametrize("compress", [None, bz2.compress, gzip.compress], ids=["plain", "bz2", "gz"])
def test_cbf_series(tmp_path: Path, compress: Callable[[bytes], bytes] | None) -> None:
    frames = counts(4, 50, 60)
    frames[:, 0, :2] = (-1, -2)
    frames[:, 1, :3] = (1047, 1048, 1046)
    paths = [write_cbf(tmp_path / f"{number}.cbf", frame) for number, frame in enumerate(frames)]
    if compress:
        suffix = {bz2.compress: ".bz2", gzip.compress: ".gz"}[compress]
        for index, path in enumerate(paths):
            paths[index] = path.with_suffix(f".cbf{suffix}")
            paths[index].write_bytes(compress(path.read_bytes()))
    stack = open_fabio(paths)
    assert stack.photon_counting is True
    assert stack.saturation == 1048, "the cut-off is the last value that is counted"
    valid = stack.valid(stack.read(0, 1))[0]
    assert valid[0].tolist() == [False, False] + [True] * 58
    assert valid[1].tolist() == [True, False, True] + [True] * 57
    assert stack.source.stored_bytes().tolist() == [path.stat().st_size for path in paths]  # type: ignore[union-attr]
    assert_holds(stack, frames)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_edf_series_of_many_frames(tmp_path: Path, dtype: str) -> None:
    frames = counts(6, 20, 30, dtype=dtype)
    paths = [write_edf(tmp_path / f"{i}.edf", frames[a:b]) for i, (a, b) in enumerate([(0, 1), (1, 4), (4, 6)])]
    assert_holds(open_fabio(paths), frames)


def test_other_formats_of_fabio(tmp_path: Path) -> None:
    frame = counts(20, 30, dtype="uint16")
    image = fabio.adscimage.AdscImage(data=frame, header={"CCD_IMAGE_SATURATION": "65535"})
    image.write(str(tmp_path / "a_001.img"))
    stack = open_fabio([tmp_path / "a_001.img"])
    assert stack.saturation == 65535
    assert_holds(stack, frame[None])


def write_ge(path: Path, frames: np.ndarray[Any, Any]) -> Path:
    """A file of a GE flat panel, which has many frames behind one header."""
    said: dict[str, Any] = {"ImageFormat": b"ADEPT", "StandardHeaderSizeInBytes": 8192, "ImageDepthInBits": 16}
    said |= dict(zip(["NumberOfFrames", "NumberOfRowsInFrame", "NumberOfColsInFrame"], frames.shape, strict=True))
    header = b""
    for name, nbytes, code in fabio.GEimage.GE_HEADER_INFO:
        value = said.get(name, 0)
        header += struct.pack(code, value) if code else bytes(value).ljust(nbytes, b"\0")
    path.write_bytes(header.ljust(8192, b"\0") + frames.astype("<u2").tobytes())
    return path


def test_a_series_of_files_with_many_frames_loses_none(tmp_path: Path) -> None:
    frames = counts(9, 20, 30, dtype="uint16")
    paths = [write_ge(tmp_path / f"{i}.ge2", frames[a:b]) for i, (a, b) in enumerate([(0, 4), (4, 6), (6, 9)])]
    assert_holds(open_fabio(paths), frames)


def test_fabio_that_is_refused(tmp_path: Path) -> None:
    first = write_cbf(tmp_path / "1.cbf", counts(20, 30))
    second = write_cbf(tmp_path / "2.cbf", counts(20, 31))
    text = tmp_path / "notes.cbf"
    text.write_text("not a frame")
    unknown = tmp_path / "notes.img"
    unknown.write_text("not a frame")
    stack = open_fabio([first, second])
    assert_refused(lambda: stack.read(0, 2), "2.cbf", "1.cbf", "(20, 31)")
    np.testing.assert_array_equal(stack.read(0, 1)[0], counts(20, 30))
    first_edf = write_edf(tmp_path / "1.edf", counts(1, 20, 30))
    second_edf = write_edf(tmp_path / "2.edf", counts(1, 20, 31))
    assert_refused(lambda: open_fabio([first_edf, second_edf]), "2.edf", "(20, 31)")
    assert_refused(lambda: open_fabio([text]), "notes.cbf")
    assert_refused(lambda: open_fabio([unknown]), "notes.img")
    assert_refused(lambda: open_fabio([tmp_path / "none.cbf"]), "none.cbf: no such file")
    assert_refused(lambda: open_fabio([first, tmp_path / "none.cbf"]), "none.cbf: no such file")


@pytest.mark.parametrize("suffix", [".cbf", ".edf", ".cbf.bz2", ".cbf.gz", ".edf.gz", ".edf.bz2"])
def test_a_cut_frame_is_refused(tmp_path: Path, suffix: str) -> None:
    frame = counts(20, 30)
    inner, _, outer = suffix[1:].partition(".")
    write = {"cbf": lambda path: write_cbf(path, frame), "edf": lambda path: write_edf(path, frame[None])}[inner]
    content = write(tmp_path / f"whole.{inner}").read_bytes()
    content = {"bz2": bz2.compress, "gz": gzip.compress}.get(outer, bytes)(content)
    cut = tmp_path / f"cut{suffix}"
    for length in range(0, len(content), len(content) // 30):
        cut.write_bytes(content[:length])
        assert_same_or_refused(lambda: open_fabio([cut]), cut, frame[None])


def test_a_flipped_byte_in_a_cbf_is_refused(tmp_path: Path) -> None:
    path = write_cbf(tmp_path / "a.cbf", counts(20, 30))
    content = bytearray(path.read_bytes())
    content[content.find(b"\x0c\x1a\x04\xd5") + 100] ^= 1
    path.write_bytes(content)
    assert_refused(lambda: open_fabio([path]), "a.cbf", "Checksum")


@settings(max_examples=60)
@given(
    array=hnp.arrays(
        st.one_of(
            hnp.boolean_dtypes(),
            hnp.integer_dtypes(),
            hnp.unsigned_integer_dtypes(),
            hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
        ),
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=5),
    ),
    order=st.sampled_from("CF"),
)
def test_npy(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray[Any, Any], order: Any) -> None:
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    np.save(path, np.asarray(array, order=order))
    assert_holds(open_npy(path), array)


def test_npy_that_is_refused(tmp_path: Path) -> None:
    def saved(name: str, array: Any) -> Path:
        np.save(tmp_path / name, array, allow_pickle=True)
        return tmp_path / name

    assert_refused(lambda: open_npy(saved("o.npy", np.array([{}, 1], object))), "o.npy", "objects")
    assert_refused(lambda: open_npy(saved("c.npy", np.zeros((3, 3), complex))), "c.npy", "complex")
    assert_refused(lambda: open_npy(saved("v.npy", np.zeros(3, "i4,f4"))), "v.npy", "compound")
    assert_refused(lambda: open_npy(saved("7.npy", np.zeros((1,) * 7))), "7.npy", "axes")
    assert_refused(lambda: open_npy(saved("0.npy", np.zeros((0, 4, 4)))), "0.npy", "empty")
    assert_refused(lambda: open_npy(saved("s.npy", np.float64(1))), "s.npy", "axes")
    assert_refused(lambda: open_npy(tmp_path / "none.npy"), "none.npy: no such file")
    np.savez(tmp_path / "z.npz", a=np.zeros(3))
    assert_refused(lambda: open_npy(tmp_path / "z.npz"), "z.npz", "one array")
    path = saved("cut.npy", np.zeros((10, 20, 20)))
    content = path.read_bytes()
    for length in (0, 3, 60, 200, len(content) - 1):
        path.write_bytes(content[:length])
        assert_refused(lambda: open_npy(path), "cut.npy")


def mrc_bytes(frames: np.ndarray[Any, Any], mode: int, extended: int = 0, imod: int | None = None) -> bytes:
    """A file of MRC2014 by its description: words of 4 bytes, sections behind a header and what extends it."""
    order = ">" if frames.dtype.byteorder == ">" else "<"
    words = np.zeros(256, f"{order}i4")
    words[:4] = (*frames.shape[::-1], mode)
    words[23] = extended
    if imod is not None:
        words[38:40] = 1146047817, imod
    header = bytearray(words.tobytes())
    header[208:216] = b"MAP " + (b"\x11\x11\0\0" if order == ">" else b"\x44\x44\0\0")
    return bytes(header) + b"x" * extended + frames.tobytes()


@pytest.mark.parametrize("name", ["movie.mrc", "tilts.st"])
@pytest.mark.parametrize("extended", [0, 1152])
@pytest.mark.parametrize(
    ("mode", "dtype"), [(0, "i1"), (1, "<i2"), (1, ">i2"), (2, "<f4"), (2, ">f4"), (6, "<u2"), (6, ">u2"), (12, "<f2")]
)
def test_mrc(tmp_path: Path, name: str, extended: int, mode: int, dtype: str) -> None:
    frames = (counts(3, 5, 7) - 4).astype(dtype)
    path = tmp_path / name
    path.write_bytes(mrc_bytes(frames, mode, extended))
    (stack,) = open_stacks([path])
    assert_holds(stack, frames)


@pytest.mark.parametrize(("flags", "dtype"), [(0, "u1"), (1, "i1"), (2, "u1"), (3, "i1")])
def test_bytes_of_an_mrc_are_unsigned_where_imod_says_so(tmp_path: Path, flags: int, dtype: str) -> None:
    frames = np.arange(256, dtype="u1").reshape(1, 16, 16).view(dtype)
    path = tmp_path / "a.mrc"
    path.write_bytes(mrc_bytes(frames, 0, imod=flags))
    assert_holds(open_mrc(path), frames)


def test_mrc_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    content = mrc_bytes(counts(3, 5, 7, dtype="int16"), 1)
    for length in (0, 100, 1023, 1024, len(content) - 1):
        path.write_bytes(content[:length])
        assert_refused(lambda: open_mrc(path), "a.mrc: is cut")
    path.write_bytes(mrc_bytes(np.zeros((3, 5, 7), "c8"), 4))
    assert_refused(lambda: open_mrc(path), "a.mrc: mode must be one of 0, 1, 2, 6, 12, got 4")
    path.write_bytes(mrc_bytes(np.zeros((0, 5, 7), "i2"), 1))
    assert_refused(lambda: open_mrc(path), "a.mrc: is damaged", "0 x 5 x 7")
    assert_refused(lambda: open_mrc(tmp_path / "none.mrc"), "none.mrc: no such file")


def mib_bytes(frames: np.ndarray[Any, Any], pixels: str, header: int = 384) -> bytes:
    """A file of Merlin by its manual: before each frame a text of fixed length."""
    rows, columns = frames.shape[1:]
    heads = (
        f"MQ1,{n + 1:06d},{header:05d},01,{columns:04d},{rows:04d},{pixels},   1x1,01," for n in range(len(frames))
    )
    return b"".join(
        head.encode().ljust(header, b"0") + frame.tobytes() for head, frame in zip(heads, frames, strict=True)
    )


@pytest.mark.parametrize("name", ["scan.mib", "scan.dat"])
@pytest.mark.parametrize("header", [384, 768])
@pytest.mark.parametrize(("pixels", "dtype"), [("U08", "u1"), ("U16", ">u2"), ("U32", ">u4")])
def test_mib(tmp_path: Path, name: str, header: int, pixels: str, dtype: str) -> None:
    frames = counts(3, 5, 7).astype(dtype)
    (tmp_path / name).write_bytes(mib_bytes(frames, pixels, header))
    (stack,) = open_stacks([tmp_path / name])
    assert_holds(stack, frames)


def test_mib_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mib"
    content = mib_bytes(counts(3, 5, 7, dtype="u1"), "U08")
    for length in (0, 2, 30):
        path.write_bytes(content[:length])
        assert_refused(lambda: open_stacks([path]), "a.mib: must be of the format MIB")
    for length in (100, 384, 418, len(content) - 1):
        path.write_bytes(content[:length])
        assert_refused(lambda: open_stacks([path]), "a.mib: is cut")
    path.write_bytes(content[:-419] + b"x" * 419)
    assert_refused(lambda: open_stacks([path]), "a.mib: is damaged")
    path.write_bytes(content.replace(b"U08", b"R64"))
    assert_refused(lambda: open_stacks([path]), "a.mib: pixels must be of U08, U16, U32, got 'R64'")


def dm_bytes(images: list[np.ndarray[Any, Any]], codes: list[int], version: int) -> bytes:
    """A file of DigitalMicrograph, of tags in groups; in colour, the last axis is red, green, blue, alpha."""
    word = ">i" if version == 3 else ">q"

    def tag(kind: int, name: str, content: bytes) -> bytes:
        sized = struct.pack(">q", len(content)) if version == 4 else b""
        return struct.pack(">BH", kind, len(name)) + name.encode() + sized + content

    def group(**tags: bytes) -> bytes:
        parts = [tag(21 if content[:4] == b"%%%%" else 20, name.strip("_"), content) for name, content in tags.items()]
        return b"\1\0" + struct.pack(word, len(parts)) + b"".join(parts)

    def leaf(content: bytes, *described: int) -> bytes:
        return b"%%%%" + b"".join(struct.pack(word, number) for number in (len(described), *described)) + content

    def image(array: np.ndarray[Any, Any], code: int) -> bytes:
        sizes = array.shape[::-1] if code != 23 else array.shape[1::-1]
        dimensions = {"_" * (n + 1): leaf(struct.pack("<I", size), 5) for n, size in enumerate(sizes)}
        kind = {1: 9, 2: 4, 4: 3, 8: 7}[array.itemsize]  # DataType alone tells a sign
        data = leaf(array.tobytes(), 20, kind, array.size)
        about = group(DataType=leaf(struct.pack("<I", code), 5), Dimensions=group(**dimensions), Data=data)
        return group(ImageData=about, Name=leaf("a name".encode("utf-16-le"), 20, 4, 6))

    root = group(
        Place=leaf(struct.pack("<3f", 1, 2, 3), 15, 0, 3, 0, 6, 0, 6, 0, 6),
        Table=leaf(bytes(12), 20, 15, 0, 2, 0, 2, 0, 5, 2),
        Text=leaf("ab".encode("utf-16-le"), 18, 2),
        ImageList=group(**{"_" * (n + 1): image(*pair) for n, pair in enumerate(zip(images, codes, strict=True))}),
    )
    return struct.pack(">i", version) + struct.pack(word, len(root)) + struct.pack(">i", 1) + root


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize(
    ("code", "dtype"), [(6, "u1"), (9, "i1"), (10, "u2"), (1, "i2"), (11, "u4"), (7, "i4"), (2, "f4"), (12, "f8")]
)
@pytest.mark.parametrize("shape", [(7,), (6, 7), (3, 6, 7), (2, 3, 6, 7)])
def test_dm(tmp_path: Path, version: int, code: int, dtype: str, shape: tuple[int, ...]) -> None:
    frames = counts(*shape).astype(dtype)
    path = tmp_path / f"a.dm{version}"
    path.write_bytes(dm_bytes([np.zeros((40, 50, 4), "u1"), frames], [23, code], version))
    (stack,) = open_stacks([tmp_path])
    assert (stack.shape, stack.dtype) == (shape, np.dtype(dtype))
    np.testing.assert_array_equal(stack.read(0, len(stack)).reshape(shape), frames)
    stack.source.close()


@pytest.mark.parametrize("version", [3, 4])
def test_dm_that_is_refused(tmp_path: Path, version: int) -> None:
    path = tmp_path / "a.dm3"
    content = dm_bytes([counts(6, 7, dtype="u2")], [10], version)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert_refused(lambda: open_stacks([path]), "a.dm3: ")
    path.write_bytes(dm_bytes([np.zeros((40, 50, 4), "u1")], [23], version))
    assert_refused(lambda: open_stacks([path]), "a.dm3: must hold an image of DataType 1, 2,", "got DataType 23")
    path.write_bytes(dm_bytes([], [], version))
    assert_refused(lambda: open_stacks([path]), "got no image")


@given(st.data())
def test_no_byte_of_a_dm_makes_another_error_than_one_line(data: st.DataObject) -> None:
    images = [np.zeros((2, 2, 4), "u1"), counts(3, 4, dtype="u2")]
    content = bytearray(dm_bytes(images, [23, 10], data.draw(st.sampled_from([3, 4]))))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from([0, 1, 20, 21, 127, 128, 255]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.dm4"
        path.write_bytes(content)
        with contextlib.suppress(InputError):
            open_stacks([path])[0].source.close()


def test_a_format_that_nobody_knows_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "a.fits").write_bytes(b"SIMPLE  =                    T".ljust(2880))
    assert_refused(lambda: open_stacks([tmp_path / "a.fits"]), "a.fits: must be HDF5, NumPy,", "got an unknown format")


def test_a_large_npy_is_never_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.npy"
    np.lib.format.open_memmap(path, "w+", np.uint16, (1000, 512, 512)).flush()
    script = (
        "import sys; from tuner.read.npy import open_npy; s = open_npy(sys.argv[1]);"
        "print(sum(int(s.read(n, n + 1).max()) for n in range(0, 1000, 2)));"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    peak = subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True)
    assert int(peak.stdout.split()[1]) < 150_000, "kB, where 256 MB were read"


def test_neither_tifffile_nor_fabio_is_loaded_before_it_is_needed() -> None:
    script = (
        "import sys, tuner.read.tiff, tuner.read.fabio_series, tuner.read.npy, tuner.noise, tuner.traits;"
        "print(sorted({'tifffile', 'fabio', 'scipy', 'PIL', 'pandas', 'optuna', 'rich'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]"
