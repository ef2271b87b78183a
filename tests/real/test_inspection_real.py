"""What the files of real instruments are known to hold is what is told of them."""

from __future__ import annotations

import bz2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuner.read import open_stacks
from tuner.read.sampling import draw_sample
from tuner.report.inspection import format_inspection, inspect

FILES = [
    "tomography/tooth_aps2bm.h5",
    "tomography/k11_diad_dls.h5",
    "tomography/txm_xanes_aps.nxs",
    "tomography/chip_xradia.tif",
    "mx/thaumatin_pilatus6m_i24",
    "mx/eiger4m_bragg.h5",
    "scattering/lab6_waxs_pilatus300kw_ssrl.nxs",
    "coherent/siemens_star_ptychography_aps.nxs",
    "spectroscopy/xrf_map_aps2ide.nxs",
]


def inspected(path: Path, nbytes: int = 16 << 20) -> dict[str, Any]:
    (stack,) = open_stacks([path])
    inspection = inspect(stack, draw_sample([stack], nbytes))
    stack.source.close()
    return inspection


@pytest.mark.parametrize("file", FILES)
def test_every_file_fits_a_screen_and_its_bound_is_not_passed(real_data: Path, file: str) -> None:
    (stack,) = open_stacks([real_data / file])
    sample = draw_sample([stack], 4 << 20)
    inspection = inspect(stack, sample)
    stack.source.close()
    text = format_inspection(inspection)
    assert len(text.splitlines()) <= 24
    frames = np.concatenate([run.frames for run in sample.runs])
    planes = np.ascontiguousarray(frames.reshape(-1)).view(np.uint8).reshape(-1, frames.dtype.itemsize).T
    ratio = frames.nbytes / len(bz2.compress(planes.tobytes()))
    assert ratio < inspection["noise"][0]["ratio_bound"]


def test_a_pilatus_series(real_data: Path) -> None:
    inspection = inspected(real_data / "mx/thaumatin_pilatus6m_i24", 50 << 20)
    assert inspection["shape"] == [10, 2527, 2463]
    assert inspection["storage"]["filters"] == ["CBF byte offset", "bzip2"]
    assert inspection["photon_counting"] is True
    assert inspection["invalid"]["saturation"] == 115898, "the header's cut-off is 115897"
    traits = inspection["traits"]
    assert traits["masked_fraction"] == pytest.approx(0.0846, abs=0.0005)
    assert traits["maximum"] <= 115897
    assert inspection["noise"][0]["source"].startswith("photon counter")
    assert 0.85 < inspection["noise"][1]["gain"] < 1.1, "what is estimated agrees with what is declared"


def test_the_hot_pixel_of_the_pilatus_is_saturated(real_data: Path) -> None:
    (stack,) = open_stacks([real_data / "mx/thaumatin_pilatus6m_i24"])
    for number in range(len(stack)):
        frame = stack.read(number, number + 1)
        assert not stack.valid(frame)[frame == 1046527].any()
        assert frame[stack.valid(frame)].min() >= 0
    stack.source.close()


def test_values_are_known_for_what_they_are(real_data: Path) -> None:
    tooth = inspected(real_data / "tomography/tooth_aps2bm.h5")
    assert tooth["traits"]["step"] == 0.25
    assert tooth["kinds"] == {"data": 181, "flat": 10, "dark": 10}
    assert tooth["noise"][0]["source"] == "flats and darks"
    txm = inspected(real_data / "tomography/txm_xanes_aps.nxs")
    assert txm["traits"]["effective_bits"] == 12
    assert 0.1 < txm["noise"][0]["gain"] < 0.2, "pairs of frames say up to 2.6, as the scene changes"
    star = inspected(real_data / "coherent/siemens_star_ptychography_aps.nxs")
    assert star["traits"]["step"] == 1
    waxs = inspected(real_data / "scattering/lab6_waxs_pilatus300kw_ssrl.nxs")
    assert waxs["traits"]["masked_fraction"] == 0
    assert waxs["always_zero_fraction"] > 0.005, "its gaps are 0"
    assert 0.9 < waxs["noise"][0]["gain"] < 1.1
    k11 = inspected(real_data / "tomography/k11_diad_dls.h5")
    assert k11["noise"][0]["source"] == "differences of consecutive frames"
    assert 280 < k11["noise"][0]["sigma_at_mean"] < 500
    eiger = inspected(real_data / "mx/eiger4m_bragg.h5")
    assert eiger["traits"]["masked_fraction"] == pytest.approx(0.056, abs=0.001)
    xrf = inspected(real_data / "spectroscopy/xrf_map_aps2ide.nxs")
    assert xrf["frame_shape"] == [2000]
    assert xrf["traits"]["zero_fraction"] == pytest.approx(0.88, abs=0.01)
