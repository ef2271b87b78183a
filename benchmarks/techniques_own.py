"""What codecs make that need their own decoders: files of their own, and JPEG 2000 inside Blosc2."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from lossy import Bench
from numpy.typing import NDArray

from tuner.apply.checksum import CHECKSUM_NBYTES
from tuner.apply.child import PluginChild
from tuner.config import Blosc2, Config
from tuner.noise import Noise
from tuner.steps import Step
from tuner.steps.round_trip import Filter, HCompress, Jpeg2000, Sz3, Zfp, filled


def own_nbytes(step: Step, frame: NDArray[Any], valid: NDArray[np.bool_], noise: Noise | None) -> int | None:
    """Bytes of a frame in the file of the codec itself, which a round trip goes through; None where it is none."""
    if not isinstance(step, Jpeg2000 | HCompress | Zfp | Sz3):
        return None
    assert isinstance(step, Filter)
    frame, valid = np.atleast_2d(frame), np.atleast_2d(valid)
    coded = step.coded(frame, valid, noise)
    if not coded.any():
        return None
    whole, stream = filled(frame, coded), io.BytesIO()
    if isinstance(step, Jpeg2000):
        from PIL import Image

        image = Image.fromarray((whole - whole.min()).astype(np.uint16))
        image.save(
            stream, "JPEG2000", no_jp2=True, irreversible=True, quality_mode="rates", quality_layers=[step.ratio]
        )
        return len(stream.getvalue())
    if isinstance(step, HCompress):
        from astropy.io import fits

        above = (whole - whole.min()).astype(np.int32)
        hdu = fits.CompImageHDU(
            above, compression_type="HCOMPRESS_1", tile_shape=above.shape, hcomp_scale=step.scale, hcomp_smooth=False
        )
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(stream)
        stream.seek(0)
        with fits.open(stream, disable_image_compression=True) as file:
            return int(file[1].header["PCOUNT"])
    wide = np.ascontiguousarray(whole, np.float64)
    if isinstance(step, Zfp):
        import zfpy

        return len(zfpy.compress_numpy(wide, tolerance=step.error))
    with h5py.File(stream, "w") as through:
        sz3 = hdf5plugin.SZ3(absolute=step.error)
        return int(through.create_dataset("frame", data=wide, chunks=wide.shape, compression=sz3).id.get_storage_size())


def own_ratio(bench: Bench, steps: Sequence[Step]) -> float:
    """The ratio that the codec of a round trip would make in its own file; 0 where there is none."""
    if len(steps) != 1:
        return 0.0
    stored = pixels = 0
    for run in bench.sample.runs:
        about = bench.pixels[run.stack]
        for frame, valid in zip(run.frames, about.valid(run.frames), strict=True):
            if (nbytes := own_nbytes(steps[0], frame, valid, bench.noise)) is None:
                return 0.0
            stored, pixels = stored + nbytes, pixels + frame.nbytes
    return pixels / stored


@dataclass(slots=True)
class InBlosc2:
    """JPEG 2000 as a codec of Blosc2 that loses pixels, each frame a chunk; it changes them as a `Filter` does.

    Pixels that do not count are filled before, and a reader gets what they were filled with.
    """

    codec: str
    """``j2k`` or ``htj2k``."""
    rate: int
    """Ten times the ratio that the codec is asked for, 1 to 255."""
    child: PluginChild
    """Where it runs."""
    pixels: int = 0
    """Bytes of the frames so far."""
    stored: int = 0
    """Bytes that they take in a file."""
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Of encoding and of decoding."""

    def coded(self, frame: NDArray[Any], valid: NDArray[np.bool_], noise: Noise | None) -> NDArray[np.bool_]:
        """All pixels that count."""
        return valid

    def filtered(self, frame: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """The frame decoded."""
        blosc2 = Blosc2(self.codec, codec_meta=self.rate, filters=(), splitmode="never")
        config = Config((1, *frame.shape), blosc2).resolve(frame.shape, frame.dtype)
        encoded, encoding = self.child.timed_encode(config, frame[None])
        decoded, decoding = self.child.timed_decode(encoded, (1, *frame.shape), frame.dtype)
        self.pixels += frame.nbytes
        self.stored += len(encoded) + CHECKSUM_NBYTES
        self.seconds = [self.seconds[0] + encoding, self.seconds[1] + decoding]
        return np.asarray(decoded[0])
