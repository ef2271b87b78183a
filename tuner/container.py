"""Container: the HDF5 filter that chunks are stored with, and which programs read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tuner.config import Config


@dataclass(frozen=True, slots=True)
class Container:
    """How chunks are stored in an HDF5 file; pixels and steps are the same in each."""

    name: str
    """What `open_writer` and ``tuner apply`` call it."""
    hdf5_filter: int
    """The filter's registered number."""
    checked: bool
    """Whether each chunk ends in HDF5's Fletcher32."""
    whole_frames: bool
    """Whether a chunk is one whole frame, whatever the profile says."""
    tested: tuple[str, ...]
    """Programs that our tests read it with."""
    not_read_by: tuple[str, ...] = ()
    """Programs whose source says that they do not read it; docs/containers.md names the places."""

    def resolve(self, config: Config, frame_shape: tuple[int, ...], dtype: np.dtype[Any]) -> Config:
        """The configuration that frames are stored with where a profile says `config`, with nothing left open.

        Raises
        ------
        InputError
            As by `Config.resolve`.

        >>> CONTAINERS["bitshuffle"].resolve(Config((4, 512, 512)), (2167, 2070), np.dtype("uint16")).chunks
        (1, 2167, 2070)
        """
        if self.whole_frames:  # what Blosc2 is told counts for nothing there, and may not suit these chunks
            config = Config((1, *(-1 for _ in config.chunks[1:])), steps=config.steps)
        return config.resolve(frame_shape, dtype)


_TESTED = ("fabio", "h5py", "silx")

#: All containers by name. One filter and one frame a chunk is what neggia takes, so bitshuffle has no checksum.
CONTAINERS = {
    container.name: container
    for container in (
        Container("blosc2", 32026, True, False, _TESTED, ("durin", "neggia")),
        Container("bitshuffle", 32008, False, True, _TESTED),
        Container("bitshuffle-zstd", 32008, False, True, _TESTED, ("durin", "neggia")),
    )
}

#: What is written unless another is asked for.
BLOSC2 = CONTAINERS["blosc2"]
