"""c-blosc2 decodes some filter chains wrongly, without an error and not always: what Config allows is proven here.

In fresh processes, as a warm one hides the fault; decoded by blosc2, and by a reader with h5py and hdf5plugin alone.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.config import CHAINS, FILTERS, Blosc2
from tuner.errors import InputError

CODECS = ("blosclz", "lz4", "lz4hc", "zlib", "zstd")

ENCODE = """
import itertools, json, sys
import h5py, numpy as np
from tuner.apply.checksum import with_checksum
from tuner.apply.dataset import create_dataset
from tuner.apply.encode import Encoder
from tuner.config import CHAINS, SPLITMODES, Blosc2

path, codec = sys.argv[1:]
rng = np.random.default_rng(0)
nbytes = 12000
chunks = {
    "constant": np.full(nbytes, 7, "uint8"),
    "random": rng.integers(0, 256, nbytes, dtype="uint8"),
    "smooth": (1000 * np.sin(np.arange(nbytes // 4) / 300)).astype("int32").view("uint8"),
}
wrong, count = [], 0
with h5py.File(path, "w") as file:
    np.savez(path + ".npz", **chunks)
    # 7168 leaves a last block shorter than the first, 0 leaves the choice to c-blosc2.
    for filters, typesize, split, blocksize in itertools.product(CHAINS, (1, 2, 4, 8), SPLITMODES, (0, 512, 7168)):
        config = Blosc2(codec, clevel=1 if codec != "blosclz" else 5, filters=filters, splitmode=split,
                        typesize=typesize, blocksize=blocksize)
        encoder = Encoder(config, (1, nbytes), np.dtype("uint8"))
        name = "-".join([*filters, str(typesize), split, str(blocksize)])
        dataset = create_dataset(file, name, (len(chunks), nbytes), (len(chunks), nbytes), (1, nbytes), encoder)
        for index, (kind, chunk) in enumerate(chunks.items()):
            frame = encoder.encode(chunk[None])
            dataset.id.write_direct_chunk((index, 0), with_checksum(frame))
            count += 1
            if (encoder.decode(frame) != chunk).any():
                wrong.append((name, kind))
print(json.dumps([count, wrong]))
"""

DECODE = """
import json, sys
import h5py, hdf5plugin, numpy as np
chunks = np.load(sys.argv[1] + ".npz")
wrong, count = [], 0
with h5py.File(sys.argv[1], "r") as file:
    for name, dataset in file.items():
        for index, kind in enumerate(chunks):
            count += 1
            try:
                same = (dataset[index] == chunks[kind]).all()
            except OSError:
                same = False
            if not same:
                wrong.append((name, kind))
assert "blosc2" not in sys.modules and "tuner" not in sys.modules
print(json.dumps([count, wrong]))
"""


def run(script: str, *arguments: str, **environment: str) -> tuple[int, list[list[str]]]:
    """What a script that prints one line of JSON says, in a process of its own."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    count, wrong = json.loads(done.stdout)
    return count, wrong


@pytest.mark.parametrize("codec", CODECS)
def test_every_allowed_chain_comes_back_in_a_fresh_process(tmp_path: Path, codec: str) -> None:
    path = str(tmp_path / "chains.h5")
    proven = (len(CHAINS) * 4 * 4 * 3 * 3, [])
    assert run(ENCODE, path, codec) == proven
    assert run(DECODE, path) == proven
    assert run(DECODE, path, BLOSC_NTHREADS="2") == proven


def test_config_refuses_every_other_chain_of_up_to_three_filters() -> None:
    chains = [chain for n in range(4) for chain in itertools.product(FILTERS, repeat=n)]
    for chain in chains:
        if chain in CHAINS:
            assert Blosc2(filters=chain).filters == chain
        else:
            with pytest.raises(InputError, match=r"^filters must .* c-blosc2 decodes"):
                Blosc2(filters=chain)
