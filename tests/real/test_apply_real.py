"""Real files, written anew and compared bit for bit in a foreign process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tuner.apply.foreign import verify_written
from tuner.apply.opening import open_writer
from tuner.apply.repack import repack
from tuner.config import Blosc2, Config
from tuner.profile import Match, Profile
from tuner.read import open_stacks

FILES = {
    "tomography/tooth_aps2bm.h5": (16, 2, 640),
    "tomography/k11_diad_dls.h5": (256, -1, -1),
    "tomography/txm_xanes_aps.nxs": (1, 512, 1024),
    "tomography/chip_xradia.tif": (2, -1, -1),
    "mx/thaumatin_pilatus6m_i24": (1, -1, -1),
    "mx/eiger4m_bragg.h5": (1, -1, -1),
    "scattering/lab6_waxs_pilatus300kw_ssrl.nxs": (4, -1, -1),
    "coherent/siemens_star_ptychography_aps.nxs": (8, 100, -1),
    "spectroscopy/xrf_map_aps2ide.nxs": (16, -1),
}


def tree(path: Path) -> list[str]:
    """Names of everything in an HDF5 file, but for what says how it was written."""
    names: list[str] = []
    with h5py.File(path, locking=False) as file:
        file.visit(names.append)
    return [name for name in names if "tuner" not in name.split("/")]


@pytest.mark.parametrize(("name", "chunks"), FILES.items())
def test_a_real_file_written_anew_is_the_same(
    real_data: Path, few: Callable[[Path], Path], tmp_path: Path, name: str, chunks: tuple[int, ...]
) -> None:
    source = few(real_data / name)
    (stack,) = open_stacks([source])
    config = Config(chunks, Blosc2("zstd", clevel=1, filters=("shuffle", "bytedelta")))
    profile = Profile("real", Match(stack.dtype.name), config, config)
    (said,) = repack(profile, [stack], [source], tmp_path / "out.h5")["files"]
    compared = verify_written(stack, tmp_path / "out.h5")
    assert compared["frames"] == len(stack)
    assert compared["nbytes"] == stack.nbytes
    assert said["ratio"] > 1.1
    stack.source.close()
    if stack.dataset:
        assert said["dataset"] == stack.dataset
        assert tree(tmp_path / "out.h5") == tree(source)
    (again,) = open_stacks([tmp_path / "out.h5"])
    assert (again.shape, again.dtype, again.frame_ndim) == (stack.shape, stack.dtype, stack.frame_ndim)


def test_a_real_scan_streamed_frame_by_frame_is_the_same(real_data: Path, tmp_path: Path) -> None:
    (stack,) = open_stacks([real_data / "tomography/k11_diad_dls.h5"])
    config = Config((64, -1, -1), Blosc2("lz4"))
    profile = Profile("real", Match("uint16"), config, config)
    with open_writer(tmp_path / "out.h5", profile, frame_shape=stack.frame_shape, dtype=stack.dtype) as writer:
        frame = np.empty(stack.frame_shape, stack.dtype)
        for number in range(len(stack)):
            frame[...] = stack.read(number, number + 1)[0]
            writer.append(frame)
        assert writer.flush() == len(stack) // 64 * 64
    verify_written(stack, tmp_path / "out.h5")
    stack.source.close()
