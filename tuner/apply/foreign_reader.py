"""Says what the frames of a dataset are, with h5py, hdf5plugin and numpy alone: run by path, nothing of ours.

Called with a file and a dataset ("" for the one that tuner wrote). Says what it found in one line of JSON; then for
each line ``[corner, extent, each]`` on stdin, a slab of the leading axes, the digest of its bytes in little-endian
order, or, where `each` is true, of each of its frames.
"""

import hashlib
import json
import re
import sys
from typing import Any

import h5py
import hdf5plugin
import numpy as np


class Linked:
    """The datasets behind the links of a Dectris master, as one."""

    def __init__(self, group: h5py.Group) -> None:
        self.parts = [group[name] for name in sorted(group) if re.fullmatch(r"data_\d{6}", name)]
        if not self.parts:
            raise ValueError(f"no data files are linked in {group.name}")
        first = self.parts[0]
        self.name, self.dtype, self.chunks, self.id = group.name, first.dtype, first.chunks, first.id
        self.shape = (sum(map(len, self.parts)), *first.shape[1:])

    def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """Frames of a slice of the first axis; what is left of the selection is that of each."""
        frames, start = [np.empty((0, *self.shape[1:]), self.dtype)], 0
        for part in self.parts:
            first, stop = max(selection[0].start - start, 0), min(selection[0].stop - start, len(part))
            if first < stop:
                frames.append(part[first:stop])
            start += len(part)
        return np.concatenate(frames)


def find(file: h5py.File, name: str) -> Any:
    """The dataset of that name, or what carries a profile's digest: a dataset, or a group of links."""
    if name and name not in file:
        raise ValueError(f"no dataset {name} in it")
    found = name or file.visititems(lambda _, node: node.name if "tuner_digest" in node.attrs else None)
    if found is None:
        raise ValueError("no dataset in it was written with a profile")
    return Linked(file[found]) if isinstance(file[found], h5py.Group) else file[found]


def codec(dataset: Any) -> int:
    """The codec that the Blosc2 filter is declared with; -1 where it is not in use."""
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(index) for index in range(properties.get_nfilters())]
    return next((values[6] for number, _, values, _ in filters if number == 32026 and len(values) > 6), -1)


def digests(dataset: Any, corner: list[int], extent: list[int], each: bool) -> list[str | None]:
    """The SHA-256 of a slab, or of each of its frames; None where it cannot be read."""
    selections = [tuple(slice(first, first + size) for first, size in zip(corner, extent, strict=True))]
    if each:
        selections = [
            tuple(slice(first + i, first + i + 1) for first, i in zip(corner, index, strict=True))
            for index in np.ndindex(*extent)
        ]
    found: list[str | None] = []
    for selection in selections:
        try:
            frames = dataset[selection]
        except OSError:
            found.append(None)
            continue
        found.append(hashlib.sha256(np.ascontiguousarray(frames, frames.dtype.newbyteorder("<")).data).hexdigest())
    return found


def main(path: str, name: str) -> None:
    """Answer until stdin ends."""

    def say(answer: Any) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    try:
        file = h5py.File(path, "r", locking=False)
        dataset = find(file, name)
    except (OSError, ValueError) as error:
        say({"error": " ".join(str(error).split())})
        return
    say(
        {
            "dataset": dataset.name,
            "shape": dataset.shape,
            "dtype": dataset.dtype.newbyteorder("=").name,
            "chunks": dataset.chunks,
            "codec": codec(dataset),
            "versions": {"h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version, "hdf5plugin": hdf5plugin.version},
        }
    )
    for line in sys.stdin:
        say(digests(dataset, *json.loads(line)))


if __name__ == "__main__":
    main(*sys.argv[1:])
