"""Real files, from the command line: read, searched, written anew, verified; smaller than what detectors write."""

from __future__ import annotations

import bz2
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import hdf5plugin
import pytest

from tuner.cli import main
from tuner.profile import load_profile
from tuner.read import open_stacks

FILES = (
    "tomography/tooth_aps2bm.h5",
    "tomography/k11_diad_dls.h5",
    "tomography/txm_xanes_aps.nxs",
    "tomography/chip_xradia.tif",
    "mx/thaumatin_pilatus6m_i24",
    "mx/eiger4m_bragg.h5",
    "scattering/lab6_waxs_pilatus300kw_ssrl.nxs",
    "coherent/siemens_star_ptychography_aps.nxs",
    "spectroscopy/xrf_map_aps2ide.nxs",
)


def bslz4_ratio(scan: Path) -> float:
    """What a whole scan comes to in bitshuffle-lz4, in chunks of a frame, or of some 1 MiB of small ones."""
    (stack,) = open_stacks([scan])
    depth = max(1, (1 << 20) // stack.frame_nbytes)
    with h5py.File("bslz4", "w", driver="core", backing_store=False) as file:
        shape, chunks = (len(stack), *stack.frame_shape), (min(depth, len(stack)), *stack.frame_shape)
        dataset = file.create_dataset("data", shape, stack.dtype, chunks=chunks, **hdf5plugin.Bitshuffle(cname="lz4"))
        for start in range(0, len(stack), depth):
            dataset[start : start + depth] = stack.read(start, min(start + depth, len(stack)))
        stack.source.close()
        return stack.nbytes / int(dataset.id.get_storage_size())


def unpacked(scan: Path, folder: Path) -> Path:
    """The same without bzip2, which takes a second for each time that a file is opened; it is read in other tests."""
    if not scan.is_dir():
        return scan
    folder.mkdir()
    for file in scan.glob("*.bz2"):
        (folder / file.stem).write_bytes(bz2.decompress(file.read_bytes()))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.usefixtures("home")
def test_from_a_real_file_to_a_smaller_one_that_holds_the_same(
    real_data: Path, few: Callable[[Path], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    scan = unpacked(few(real_data / name), tmp_path / "unpacked")
    profile, out = tmp_path / "profile.yaml", tmp_path / "out.h5"

    def run(*arguments: object) -> dict[str, object]:
        assert main([*map(str, arguments), "--json"]) == 0
        answer: dict[str, object] = json.loads(capfd.readouterr().out)
        return answer

    (stack,) = run("read", scan)["stacks"]  # type: ignore[misc]
    run("search", scan, "-o", profile, "--budget", "12", "--sample", "4MB")
    evidence = load_profile(profile, strict=True).evidence
    assert evidence["metrics"]["ratio"] > evidence["baselines"]["bslz4"]["ratio"]
    (applied,) = run("apply", profile, scan, out)["files"]  # type: ignore[misc]
    (verified,) = run("verify", profile, out, "--against", scan)["files"]  # type: ignore[misc]
    assert verified["frames"] == stack["frames"]
    assert verified["nbytes"] == stack["nbytes"]
    assert applied["ratio"] > bslz4_ratio(scan)
