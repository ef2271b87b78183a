"""What any reader sees: a fresh process that loads h5py and hdf5plugin, and nothing of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_READ = "import sys, h5py, hdf5plugin, numpy; numpy.save(sys.argv[2], h5py.File(sys.argv[1])['entry/data/data'][()])"


def read_elsewhere(path: Path) -> NDArray[Any]:
    """The frames of a written file."""
    target = path.with_suffix(".npy")
    subprocess.run([sys.executable, "-I", "-c", _READ, str(path), str(target)], check=True)
    return np.load(target)
