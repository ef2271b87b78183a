"""A frame as a detector compressed it, taken as it is."""

from __future__ import annotations

from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np

from tuner.apply.opening import open_writer
from tuner.config import Blosc2, Config
from tuner.profile import Match, Profile
from tuner.read import open_stacks


def test_an_eigers_frame_goes_into_an_eigers_files(real_data: Path, tmp_path: Path) -> None:
    stack = open_stacks([real_data / "mx" / "eiger4m_bragg.h5"])[0]
    with h5py.File(real_data / "mx" / "eiger4m_bragg.h5") as file:
        dataset = file[stack.dataset]
        filters = [dataset.id.get_create_plist().get_filter(0)[0], dataset.chunks]
        chunk = dataset.id.read_direct_chunk((0,) * dataset.ndim)[1]
        frame = np.asarray(dataset[()]).reshape(stack.frame_shape)
    assert filters[0] == 32008
    config = Config((1, -1, -1), Blosc2("zstd", clevel=1))
    profile = Profile("eiger", Match("uint32"), config, config)
    path = tmp_path / "scan_master.h5"
    with open_writer(
        path, profile, frame_shape=stack.frame_shape, dtype="uint32", access="rolling", layout="eiger", roll_every=2
    ) as writer:
        for _ in range(3):
            writer.append_compressed(chunk)
    written = open_stacks([path])[0]
    assert written.shape == (3, *stack.frame_shape)
    assert (written.read(0, 3) == frame).all()
    written.source.close()  # type: ignore[union-attr]
