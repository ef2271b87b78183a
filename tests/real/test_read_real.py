"""Frames from real instruments open as what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuner.read import open_stacks
from tuner.read.sampling import draw_sample

FILES: dict[str, tuple[str, tuple[int, ...], int]] = {
    "tomography/tooth_aps2bm.h5": ("float32", (181, 2, 640), 2),
    "tomography/k11_diad_dls.h5": ("uint16", (3201, 22, 26), 2),
    "tomography/txm_xanes_aps.nxs": ("uint16", (6, 1024, 1024), 2),
    "tomography/chip_xradia.tif": ("uint16", (7, 256, 256), 2),
    "mx/thaumatin_pilatus6m_i24": ("int32", (10, 2527, 2463), 2),
    "mx/eiger4m_bragg.h5": ("uint32", (1, 2167, 2070), 2),
    "scattering/lab6_waxs_pilatus300kw_ssrl.nxs": ("int32", (25, 195, 1475), 2),
    "coherent/siemens_star_ptychography_aps.nxs": ("float32", (516, 128, 128), 2),
    "spectroscopy/xrf_map_aps2ide.nxs": ("float32", (11, 11, 4, 2000), 1),
}


def one(real_data: Path, name: str) -> Any:
    (stack,) = open_stacks([real_data / name])
    return stack


@pytest.mark.parametrize("name", FILES)
def test_opens_and_samples(real_data: Path, name: str) -> None:
    dtype, shape, frame_ndim = FILES[name]
    stack = one(real_data, name)
    assert (str(stack.dtype), stack.shape, stack.frame_ndim) == (dtype, shape, frame_ndim)
    sample = draw_sample([stack])
    assert sample.frame_shape == stack.frame_shape
    assert sample.nbytes <= max(16 << 20, stack.frame_nbytes)
    assert sample.n_frames == len(stack) or sample.nbytes > 8 << 20
    stack.source.close()


def test_flats_and_darks_beside_the_data(real_data: Path) -> None:
    tooth = one(real_data, "tomography/tooth_aps2bm.h5")
    assert tooth.axes == ("theta", "y", "x")
    assert (tooth.flats.shape, tooth.darks.shape) == ((10, 2, 640), (10, 2, 640))
    assert tooth.flats.read(0, 10).mean() > tooth.read(0, 10).mean() > tooth.darks.read(0, 10).mean()
    txm = one(real_data, "tomography/txm_xanes_aps.nxs")
    assert txm.flats.shape == (4, 1024, 1024)
    assert txm.darks is None


def test_gaps_of_an_eiger(real_data: Path) -> None:
    stack = one(real_data, "mx/eiger4m_bragg.h5")
    assert stack.invalid == (4294967295,)
    frames = stack.read(0, 1)
    assert 1 - stack.valid(frames).mean() == pytest.approx(0.056, abs=0.002)
    assert frames[stack.valid(frames)].max() == 1208081  # a hot pixel, of which the file says nothing


def test_spectra_of_a_map_in_c_order(real_data: Path) -> None:
    stack = one(real_data, "spectroscopy/xrf_map_aps2ide.nxs")
    frames = stack.read(0, len(stack))
    assert (stack.read(13, 58) == frames[13:58]).all()
    assert np.ptp(frames.reshape(stack.shape).sum(axis=-1)) > 0
