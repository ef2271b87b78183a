"""Round trips through lossy codecs: encoded, decoded, and stored losslessly, so that any reader opens what is left."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tuner.document import Interval, Number
from tuner.errors import InputError
from tuner.noise import Noise
from tuner.stack import Marks
from tuner.steps.pointwise import check_parameters

_REMEDY = "pip install 'tuner[round-trips]'"

#: The greatest value that JPEG 2000 is given.
_CODED = (1 << 16) - 1

#: The greatest value that HCompress is given, so that what it overshoots by fits into 32 bits, and its least extent.
_TRANSFORMED, _LEAST_EXTENT = 1 << 30, 4

#: Whole numbers up to this are exact as double precision.
_EXACT = 1 << 53


@runtime_checkable
class Filter(Protocol):
    """A step that makes other frames of frames, of the same shape and dtype; twice may be another than once."""

    def coded(self, frame: NDArray[Any], valid: NDArray[np.bool_], noise: Noise | None) -> NDArray[np.bool_]:
        """The valid pixels that it can take, shape (rows, columns); the others stay."""
        ...

    def filtered(self, frame: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """A frame of pixels that it can take, shape (rows, columns), as it leaves it: same shape and dtype."""
        ...


@np.errstate(over="ignore", invalid="ignore")
def filter_frames(
    step: Filter, frames: NDArray[Any], marks: Marks, mask: NDArray[np.bool_] | None, noise: Noise | None
) -> NDArray[Any]:
    """Frames as a filter leaves them, as new array of the same shape and dtype; each frame by itself.

    Pixels that do not count, and those that the filter cannot take, are filled from their neighbours before, so that
    no edge of a gap rings, and are put back after. A pixel that would not count any more stays too.

    Parameters
    ----------
    step : Filter
    frames : ndarray
        Shape (n, *frame_shape); a spectrum is a frame of one row.
    marks : Marks
        Which values do not count.
    mask : ndarray of bool, optional
        True where a pixel does not count in any frame, shape of a frame.
    noise : Noise, optional
    """
    result = frames.copy()
    for frame, out in zip(frames, result, strict=True):
        whole, into = np.atleast_2d(frame), np.atleast_2d(out)
        coded = step.coded(whole, np.atleast_2d(marks.valid(frame, mask)), noise)
        if coded.any():
            after = step.filtered(filled(whole, coded), noise)
            np.copyto(into, after, where=coded & marks.valid(after))
    return result


def filled(frame: NDArray[Any], known: NDArray[np.bool_]) -> NDArray[Any]:
    """A frame with unknown pixels taken from those around them, same shape and dtype.

    The means of known pixels in squares of 2, 4, 8 ... pixels; an unknown pixel takes that of the smallest square that
    has any (pull and push; Gortler et al., SIGGRAPH 1996, p. 43). At least one pixel must be known.

    >>> filled(np.array([[1, 3, 0, 99]]), np.array([[True, True, False, True]])).tolist()
    [[1, 3, 99, 99]]
    """
    if known.all():
        return frame
    levels = [(np.where(known, frame, 0).astype(np.float64), known.astype(np.float64))]
    while levels[-1][0].size > 1:
        levels.append((_halved(levels[-1][0]), _halved(levels[-1][1])))
    mean = levels[-1][0] / levels[-1][1]
    for total, count in reversed(levels[:-1]):
        coarse = np.repeat(np.repeat(mean, 2, 0), 2, 1)[: total.shape[0], : total.shape[1]]
        mean = np.where(count > 0, total / np.maximum(count, 1), coarse)
    # A mean lies between known pixels, but for what sums lose.
    between = np.clip(mean, float(frame[known].min()), float(frame[known].max()))
    return np.where(known, frame, (between if frame.dtype.kind == "f" else np.rint(between)).astype(frame.dtype))


def _halved(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over squares of two pixels."""
    rows, columns = (extent + extent % 2 for extent in values.shape)
    even = np.zeros((rows, columns))
    even[: values.shape[0], : values.shape[1]] = values
    return np.asarray(even.reshape(rows // 2, 2, columns // 2, 2).sum(axis=(1, 3)))


def exactly_double(frame: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The valid pixels that are floats, or whole numbers that double precision holds."""
    return valid if frame.dtype.kind == "f" else valid & (frame <= _EXACT) & (frame >= -_EXACT)


def need(module: str, package: str, remedy: str, step: str) -> None:
    """Raise InputError where a step's library is not installed, with what brings it."""
    if find_spec(module) is None:
        raise InputError(f"step {step} needs {package}: {remedy}")


@dataclass(frozen=True, slots=True)
class Jpeg2000:
    """Through JPEG 2000 at a compression `ratio`, with the irreversible wavelet transform (ISO/IEC 15444-1).

    The ratio is of 16 bits a pixel to JPEG 2000's own bytes, not of the file that is written: its pixels are stored
    losslessly. Coded are values from the frame's least on that fit into 16 bits; those above stay as they are, as do
    whole numbers beyond 2^53. Law: shape, dtype and pixels that do not count stay; no pixel starts or stops counting.
    No bound, and twice is not once.
    As l_bnl_compress (H. J. Bernstein) and Marone et al., J. Synchrotron Rad. 27, 1326 (2020).
    """

    ratio: float
    """Of 16 bits a pixel."""

    name: ClassVar[str] = "jpeg2000"
    valid: ClassVar[Mapping[str, Number | Interval]] = {"ratio": Number(above=1.0, most=10000.0)}

    def __post_init__(self) -> None:
        check_parameters(self)

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be coded, or Pillow is not installed."""
        need("PIL", "Pillow", _REMEDY, self.name)
        if dtype.kind == "f":
            raise InputError(f"step jpeg2000 must be used on integers, got {dtype}")

    def bound(self, values: NDArray[Any], noise: Noise | None) -> NDArray[np.float64]:
        """None by construction."""
        return np.full(values.shape, np.inf)

    def coded(self, frame: NDArray[Any], valid: NDArray[np.bool_], noise: Noise | None) -> NDArray[np.bool_]:
        """True from the least value on, as far as 16 bits reach."""
        return _reached(frame, valid, _CODED)

    def filtered(self, frame: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """The frame decoded."""
        from PIL import Image

        above = _above(frame, frame.min())
        stream = io.BytesIO()
        Image.fromarray(above.astype(np.uint16)).save(
            stream, "JPEG2000", no_jp2=True, irreversible=True, quality_mode="rates", quality_layers=[self.ratio]
        )
        with Image.open(stream) as image:
            decoded = np.asarray(image)
        return _from_above(frame, above, decoded)


def _reached(frame: NDArray[Any], valid: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """The valid whole numbers that double precision holds, from the least on as far as `reach`."""
    exact = exactly_double(frame, valid)
    least = frame[exact].min(initial=np.iinfo(frame.dtype).max)
    return exact & (_above(frame, least) <= reach)


def _from_above(frame: NDArray[Any], above: NDArray[Any], decoded: NDArray[Any]) -> NDArray[Any]:
    """Integers that are `decoded`, 0 or more, above the frame's least, but not beyond its own range.

    So nothing wraps around the end of the dtype.
    """
    within = np.minimum(decoded.astype(np.uint64), above.max()).astype(above.dtype)
    return np.asarray(frame.min() + within.view(frame.dtype))


def _above(frame: NDArray[Any], least: Any) -> NDArray[Any]:
    """How far integers are above one that none is below, unsigned: differences of signed ones may pass the dtype."""
    unsigned = np.dtype(f"u{frame.dtype.itemsize}")
    return np.asarray(frame.view(unsigned) - np.asarray(least, frame.dtype).view(unsigned))


@dataclass(frozen=True, slots=True)
class Zfp:
    """Through ZFP with a bound on each error (fixed accuracy; Lindstrom, IEEE TVCG 20, 2674, 2014).

    Coded in double precision. Pixels that come back further away, as those do in which numbers of 1e16 times the bound
    are near, stay as they were, and so do whole numbers beyond 2^53. ZFP mostly errs by a quarter of what it may. Law:
    shape, dtype and pixels that do not count stay; no pixel starts or stops counting, and none moves by more than
    `error`. Twice may not be once.
    """

    error: float
    """The most that a pixel may move by, data units."""

    name: ClassVar[str] = "zfp"
    valid: ClassVar[Mapping[str, Number | Interval]] = {"error": Number(above=0.0)}

    def __post_init__(self) -> None:
        check_parameters(self)

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be coded, or zfpy is not installed."""
        need("zfpy", "zfpy", _REMEDY, self.name)

    def bound(self, values: NDArray[Any], noise: Noise | None) -> NDArray[np.float64]:
        """The most that each value can move by, data units."""
        return np.full(values.shape, self.error)

    def coded(self, frame: NDArray[Any], valid: NDArray[np.bool_], noise: Noise | None) -> NDArray[np.bool_]:
        """True but for whole numbers that double precision does not hold."""
        return exactly_double(frame, valid)

    def filtered(self, frame: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """The frame decoded."""
        import zfpy

        wide = np.ascontiguousarray(frame, np.float64)
        return _near(frame, zfpy.decompress_numpy(zfpy.compress_numpy(wide, tolerance=self.error)), self.error)


def _near(frame: NDArray[Any], decoded: NDArray[np.float64], error: float) -> NDArray[Any]:
    """Decoded pixels in the frame's dtype; those that are further away than `error` as they were."""
    after = (decoded if frame.dtype.kind == "f" else np.rint(decoded)).astype(frame.dtype)
    near = np.abs(after.astype(np.float64) - frame.astype(np.float64)) <= error
    return np.where(near, after, frame)


@dataclass(frozen=True, slots=True)
class Sz3:
    """Through SZ3 with a bound on each error (Liang et al., IEEE Trans. Big Data 9, 485, 2023).

    By the HDF5 filter of hdf5plugin, in double precision, from the interpolation of neighbours and quantised residuals.
    Pixels that come back further away stay as they were, and so do whole numbers beyond 2^53; the filter keeps frames
    of about a thousand pixels as they are. Law: shape, dtype and pixels that do not count stay; no pixel starts or
    stops counting, and none moves by more than `error`. Twice may not be once.
    """

    error: float
    """The most that a pixel may move by, data units."""

    name: ClassVar[str] = "sz3"
    valid: ClassVar[Mapping[str, Number | Interval]] = {"error": Number(above=0.0)}

    def __post_init__(self) -> None:
        check_parameters(self)

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Any pixels can be coded."""

    def bound(self, values: NDArray[Any], noise: Noise | None) -> NDArray[np.float64]:
        """The most that each value can move by, data units."""
        return np.full(values.shape, self.error)

    def coded(self, frame: NDArray[Any], valid: NDArray[np.bool_], noise: Noise | None) -> NDArray[np.bool_]:
        """True but for whole numbers that double precision does not hold."""
        return exactly_double(frame, valid)

    def filtered(self, frame: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """The frame decoded."""
        import h5py
        import hdf5plugin

        # Without a cache of chunks, what is read has been through the filter.
        with h5py.File(io.BytesIO(), "w", rdcc_nbytes=0) as file:
            through = hdf5plugin.SZ3(absolute=self.error)
            wide = np.ascontiguousarray(frame, np.float64)
            decoded = file.create_dataset("frame", data=wide, chunks=wide.shape, compression=through)[()]
        return _near(frame, decoded, self.error)


@dataclass(frozen=True, slots=True)
class HCompress:
    """Through HCompress at a scale, the H-transform's coefficients divided by it (White, NASA CP-3183, 1992).

    By the FITS of astropy, a frame as one tile, without smoothing. The scale is about 6 times the root mean square
    error, and most pixels move by less than half of it. Coded are values from the frame's least on up to 2^30 above;
    those beyond stay as they are, as do whole numbers beyond 2^53. Law: shape, dtype and pixels that do not count stay;
    no pixel starts or stops counting. No bound, and twice is not once. As l_bnl_compress (H. J. Bernstein).
    """

    scale: int
    """What coefficients are divided by, data units; 1 keeps them."""

    name: ClassVar[str] = "hcompress"
    valid: ClassVar[Mapping[str, Number | Interval]] = {"scale": Interval(2, 1 << 20)}

    def __post_init__(self) -> None:
        check_parameters(self)

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be coded, or astropy is not installed."""
        need("astropy", "astropy", _REMEDY, self.name)
        if dtype.kind == "f":
            raise InputError(f"step hcompress must be used on integers, got {dtype}")

    def bound(self, values: NDArray[Any], noise: Noise | None) -> NDArray[np.float64]:
        """None by construction."""
        return np.full(values.shape, np.inf)

    def coded(self, frame: NDArray[Any], valid: NDArray[np.bool_], noise: Noise | None) -> NDArray[np.bool_]:
        """True from the least value on, as far as the decoder's 32 bits surely reach."""
        return _reached(frame, valid, _TRANSFORMED)

    def filtered(self, frame: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """The frame decoded."""
        from astropy.io import fits

        above = _above(frame, frame.min())
        short = [max(0, _LEAST_EXTENT - extent) for extent in frame.shape]
        whole = np.pad(above.astype(np.int32), [(0, extent) for extent in short], mode="edge")
        stream = io.BytesIO()
        coded = fits.CompImageHDU(
            whole, compression_type="HCOMPRESS_1", tile_shape=whole.shape, hcomp_scale=self.scale, hcomp_smooth=False
        )
        fits.HDUList([fits.PrimaryHDU(), coded]).writeto(stream)
        stream.seek(0)
        with fits.open(stream) as file:
            decoded = np.asarray(file[1].data)[: frame.shape[0], : frame.shape[1]]
        return _from_above(frame, above, np.maximum(decoded, 0))
