"""How fast the writer is, beside other ways to the same file, and beside what the machine could do at best.

    python benchmarks/writer.py [--rows NAME...] [--quick] [--rounds 7] [--disk FOLDER] [--output results/writer.md]

Simulated frames of four sizes, lossless with lz4 and with zstd 1 (tomography) and rounded to the noise (photon
counts), to a memory file system and to a disk. All methods take turns, round after round; ratios are taken within a
round. Run it on a machine that does nothing else. What is measured is kept in the folder `--work`, a file a row: rows
can be measured one by one, and the page is made of all that are there. `--rows` alone measures none.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import blosc2
import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray
from writer_page import METHODS, picture, write_page

from tuner.apply.checksum import CHECKSUM_NBYTES, fletcher32
from tuner.apply.cut import corners, cut
from tuner.apply.encode import ROOM_NBYTES, Encoder, cparams
from tuner.apply.opening import open_writer
from tuner.apply.pipeline import default_workers
from tuner.apply.prepare import Preparation
from tuner.config import Blosc2, Config
from tuner.measure.timing import last_level_cache
from tuner.noise import Noise
from tuner.profile import Invalid, Match, Profile
from tuner.simulate import Saxs, Tomography
from tuner.simulate.tomography import scan_kinds
from tuner.stack import Kind
from tuner.steps.noise_aware import Sigma

#: Rows and columns of a frame, the chunks that it is stored in, and how many frames `append` is given at once.
SIZES = {
    "22x26": ((22, 26), (1024, -1, -1), 1),
    "22x26, 64 at once": ((22, 26), (1024, -1, -1), 64),
    "128x128": ((128, 128), (64, -1, -1), 1),
    "2 Mpixel": ((1024, 2048), (1, -1, -1), 1),
    "16 Mpixel": ((4096, 4096), (1, 1024, -1), 1),
}
#: To memory alone.
TINY = ("22x26", "22x26, 64 at once")
#: Of the table of workers and frame sizes, lossless.
SIDES = (32, 128, 512, 1024, 2048, 4096)
CODECS = {
    "lz4": Blosc2("lz4", clevel=1),
    "zstd 1": Blosc2("zstd", clevel=1),
    "sigma + zstd 1": Blosc2("zstd", clevel=1),
}
FILTERS = {"lz4": ("lz4", 1), "zstd 1": ("zstd", 1), "sigma + zstd 1": ("zstd", 1)}
#: Different frames are simulated as far as this, and repeated beyond.
_SIMULATED_NBYTES = 24 << 20


@dataclass(frozen=True)
class Case:
    """Frames of one size and how they are stored."""

    size: str
    shape: tuple[int, int]
    chunks: tuple[int, ...]
    at_once: int
    codec: str

    @property
    def lossy(self) -> bool:
        return "sigma" in self.codec

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("int32" if self.lossy else "uint16")

    @property
    def profile(self) -> Profile:
        config = Config(self.chunks, CODECS[self.codec], steps=(Sigma(1.0),) if self.lossy else ())
        return Profile(
            "benchmark",
            Match(self.dtype.name),
            config,
            Config(self.chunks),
            Invalid(underload=0) if self.lossy else Invalid(),
            Noise(1.0, 0.0, 0.0, "photon counter", floor=1.0) if self.lossy else None,
            evidence={"promise": {"provisional": False}},
        )

    @property
    def resolved(self) -> Config:
        return self.profile.config.resolve(self.shape, self.dtype)


@cache
def frames_of(shape: tuple[int, int], counts: bool) -> NDArray[Any]:
    """Frames in more memory than the last-level cache: photon counts, or a camera's; shape (n, *shape)."""
    technique = Saxs(shape=shape, flux=20.0) if counts else Tomography(shape=shape)
    nbytes = math.prod(shape) * (4 if counts else 2)
    wanted = max(2, min(512, _SIMULATED_NBYTES // nbytes))
    exposures = technique.simulate(wanted + (0 if counts else wanted // 2 + 4), seed=1)
    kinds = np.full(len(exposures), Kind.DATA) if counts else scan_kinds(len(exposures))
    made = [frame for frame, kind in zip(exposures, kinds, strict=True) if kind == Kind.DATA][:wanted]
    count = -(-max(2 * last_level_cache(), 2 * nbytes) // nbytes)
    return np.stack(list(itertools.islice(itertools.cycle(made), max(count, wanted))))


def slabs(case: Case, total: int) -> Iterator[NDArray[Any]]:
    """Rows of chunks, again and again, until there are so many frames."""
    frames = frames_of(case.shape, case.lossy)
    depth = case.resolved.chunks[0]
    for start in range(0, total, depth):
        at = start % (len(frames) - depth + 1) if len(frames) > depth else 0
        yield frames[at : at + depth]


def dataset(file: h5py.File, case: Case, **options: Any) -> h5py.Dataset:
    chunks = tuple(min(c, s) for c, s in zip(case.resolved.chunks[1:], case.shape, strict=True))
    return file.create_dataset(
        "data",
        (0, *case.shape),
        case.dtype,
        maxshape=(None, *case.shape),
        chunks=(case.resolved.chunks[0], *chunks),
        **options,
    )


def ours(path: Path, case: Case, total: int, workers: int, verify: str = "off", copy: bool = True) -> None:
    with open_writer(
        path, case.profile, frame_shape=case.shape, dtype=case.dtype, workers=workers, verify=verify
    ) as writer:
        for slab in slabs(case, total):
            for first in range(0, len(slab), case.at_once):
                writer.append(slab[first] if case.at_once == 1 else slab[first : first + case.at_once], copy=copy)


def through_filter(path: Path, case: Case, total: int, **options: Any) -> None:
    """As users of h5py do it, a row of chunks at a time; lossy steps in the same thread."""
    prepare = Preparation(case.profile)
    with h5py.File(path, "w") as file:
        made = dataset(file, case, **options)
        for slab in slabs(case, total):
            first = len(made)
            made.resize(first + len(slab), axis=0)
            made[first:] = prepare(slab) if options else slab


def naive_pool(path: Path, case: Case, total: int, workers: int) -> None:
    """The first thing that comes to mind: a pool's map, a super-chunk for each chunk, no checksum."""
    prepare, chunk_shape = Preparation(case.profile), case.resolved.chunks
    parameters = blosc2.CParams(**cparams(case.resolved.blosc2))

    def encode(slab: NDArray[Any]) -> list[tuple[tuple[int, ...], bytes]]:
        made = []
        for corner, chunk in cut(prepare(slab), chunk_shape):
            schunk = blosc2.SChunk(chunksize=chunk.nbytes, cparams=parameters)
            schunk.append_data(chunk)
            made.append((corner, schunk.to_cframe()))
        return made

    with h5py.File(path, "w") as file, ThreadPoolExecutor(workers) as pool:
        made = dataset(file, case, compression=hdf5plugin.Blosc2())
        first = 0
        for encoded in pool.map(encode, slabs(case, total)):
            made.resize(first + chunk_shape[0], axis=0)
            for corner, frame in encoded:
                made.id.write_direct_chunk((first, *corner[1:]), frame)
            first += chunk_shape[0]


def methods(case: Case, workers: int) -> dict[str, Callable[[Path, int], None]]:
    cname = CODECS[case.codec].codec
    bitshuffle = hdf5plugin.Bitshuffle(cname=cname, **({"clevel": 1} if cname == "zstd" else {}))
    blosc2_filter = hdf5plugin.Blosc2(cname=cname, clevel=1, filters=hdf5plugin.Blosc2.BITSHUFFLE)
    return {
        "ours": lambda path, total: ours(path, case, total, workers),
        "ours, lent": lambda path, total: ours(path, case, total, workers, copy=False),
        "ours, verified": lambda path, total: ours(path, case, total, workers, "sample"),
        "Blosc2 filter": lambda path, total: through_filter(path, case, total, compression=blosc2_filter),
        "Bitshuffle filter": lambda path, total: through_filter(path, case, total, compression=bitshuffle),
        "naive pool": lambda path, total: naive_pool(path, case, total, workers),
        "uncompressed": lambda path, total: through_filter(path, case, total),
    }


def timed(folder: Path, write: Callable[[Path], None]) -> tuple[float, float, int]:
    """Seconds until what was written is on the device, CPU seconds of that, and the file's bytes."""
    path = folder / "written.h5"
    try:
        start, cpu = time.perf_counter(), time.process_time()
        write(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return time.perf_counter() - start, time.process_time() - cpu, path.stat().st_size
    finally:
        path.unlink(missing_ok=True)


def parts_of(case: Case, folder: Path, total: int) -> dict[str, float]:
    """Seconds that each part takes for one byte of pixels, one after the other in one thread."""
    config = case.resolved
    prepare = Preparation(case.profile)
    encoder = Encoder(config.blosc2, config.chunks, case.dtype)
    seconds = defaultdict(float)
    nbytes, kept = 0, 0
    encoded: list[bytes] = []
    out = np.empty(encoder.nbytes + ROOM_NBYTES, np.uint8)
    for slab in slabs(case, total):
        start = time.perf_counter()
        prepared = prepare(slab)
        seconds["prepare"] += time.perf_counter() - start
        nbytes += slab.nbytes
        for _, chunk in cut(prepared, config.chunks):
            start = time.perf_counter()
            frame = encoder.encode(chunk, out)
            between = time.perf_counter()
            code = fletcher32(frame)
            seconds["checksum"] += time.perf_counter() - between
            seconds["encode"] += between - start
            if kept < 2 * last_level_cache():
                encoded.append(bytes(frame) + code.to_bytes(CHECKSUM_NBYTES, "little"))
                kept += len(encoded[-1])

    def write(path: Path) -> None:
        with h5py.File(path, "w", libver=("v110", "v110")) as file:
            made = dataset(file, case, compression=hdf5plugin.Blosc2())
            made.resize(total, axis=0)
            places = corners((total, *case.shape), config.chunks)
            for place, frame in zip(places, itertools.cycle(encoded), strict=False):
                made.id.write_direct_chunk(place, frame)

    seconds["write"] = timed(folder, write)[0]
    return {name: seconds[name] / nbytes for name in ("prepare", "encode", "checksum", "write")}


def crowded_parts(case: Case, folder: Path, total: int, cores: int) -> list[dict[str, float]]:
    """The same while every core does it in a process of its own: cores share memory and its caches, clocks fall."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        folders = [Path(made) / str(core) for core in range(cores)]
        for each in folders:
            each.mkdir()
        processes = ProcessPoolExecutor(
            cores, get_context("spawn"), initializer=frames_of, initargs=(case.shape, case.lossy)
        )
        with processes as pool:
            return list(pool.map(parts_of, [case] * cores, folders, [total] * cores))


def frames_in(case: Case, nbytes: int) -> int:
    """How many frames make so many bytes: rows of chunks, four at least."""
    depth = case.resolved.chunks[0]
    pixels = math.prod(case.shape) * case.dtype.itemsize
    return -(-max(nbytes, 4 * depth * pixels) // (depth * pixels)) * depth


def measure(
    case: Case, folder: Path, rounds: int, nbytes: int, workers: int, only: Sequence[str] = METHODS
) -> dict[str, Any]:
    """All methods and the parts of the bound in turn; the first round, which touches everything, does not count."""
    pixels, total = math.prod(case.shape) * case.dtype.itemsize, frames_in(case, nbytes)
    speeds = defaultdict(list)
    parts, cpu_ns, ratio = [], [], 0.0
    for turn in range(rounds + 1):
        parts.append(parts_of(case, folder, total))
        for name, method in methods(case, workers).items():
            if name not in only:
                continue
            seconds, cpu, stored = timed(folder, lambda path, method=method: method(path, total))  # type: ignore[misc]
            if turn:
                speeds[name].append(total * pixels / seconds / 1e6)
            if turn and name == "ours":
                ratio = total * pixels / stored
                cpu_ns.append(cpu / (total * pixels) * 1e9)
    return {"mb_s": speeds, "parts": parts[1:], "cpu_ns": cpu_ns, "ratio": ratio}


def measure_row(size: str, codec: str, folder: Path, rounds: int, nbytes: int, cores: int) -> dict[str, Any]:
    """One row of the first table."""
    case = Case(size, *SIZES[size], codec)
    crowded = [crowded_parts(case, folder, frames_in(case, nbytes), cores) for _ in range(rounds)]
    return {"crowded": crowded, **measure(case, folder, rounds, nbytes, cores)}


def measure_workers(side: int, folder: Path, rounds: int, nbytes: int, cores: int) -> dict[str, Any]:
    """One row of the second: every number of workers for frames of one size, lossless."""
    case = Case(f"{side}x{side}", (side, side), (max(1, (2 << 20) // (2 * side * side)), -1, -1), 1, "lz4")
    counts = range(1, cores + 2)
    measured = [measure(case, folder, max(1, rounds // 2), nbytes // 4, count, only=("ours",)) for count in counts]
    return {"side": side, "chunk": case.chunks[0], "workers": measured}


_FIRST_FRAME = {
    "ours": """
import sys, time, tuner
profile = tuner.load_profile(sys.argv[1])
import numpy as np
writer = tuner.open_writer(sys.argv[2], profile, frame_shape=(1024, 2048), dtype="uint16")
writer.append(np.zeros((1024, 2048), "uint16"))
print(time.time())
""",
    "h5py with hdf5plugin": """
import sys, time, h5py, hdf5plugin
import numpy as np
file = h5py.File(sys.argv[2], "w")
data = file.create_dataset("d", (1, 1024, 2048), "uint16", chunks=(1, 1024, 2048), compression=hdf5plugin.Blosc2())
data[0] = np.zeros((1024, 2048), "uint16")
print(time.time())
""",
}


def first_frame(folder: Path, rounds: int) -> dict[str, float]:
    """Seconds from the start of the interpreter to the first frame accepted."""
    case = Case("2 Mpixel", *SIZES["2 Mpixel"], "lz4")
    profile = folder / "profile.yaml"
    case.profile.save(profile)
    seconds = defaultdict(list)
    for turn, (name, script) in itertools.product(range(rounds + 1), _FIRST_FRAME.items()):
        start = time.time()
        command = [sys.executable, "-c", script, str(profile), str(folder / "first.h5")]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        (folder / "first.h5").unlink()
        if turn:
            seconds[name].append(float(told) - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    cores = default_workers()
    tables = {
        f"{size} {codec} {to}": (size, codec, to)
        for size, codec, to in itertools.product(SIZES, CODECS, ("memory", "disk"))
        if to == "memory" or size not in TINY
    }
    scaling = {f"workers {side}x{side}": side for side in SIDES}
    names = [*tables, *scaling, "first frame"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog="rows: " + "; ".join(names)
    )
    parser.add_argument("--rows", nargs="*", choices=names, default=names, metavar="NAME", help="only these")
    parser.add_argument("--quick", action="store_true", help="one short round of each, to see that it works")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--disk", default=tempfile.gettempdir(), help="a folder on the disk to write to")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tuner-writer")
    parser.add_argument("--output", type=Path, default=Path("results/writer.md"))
    parser.add_argument("--picture", type=Path, default=Path("docs/pictures/writer.png"))
    options = parser.parse_args()
    rounds, nbytes = (1, 8 << 20) if options.quick else (options.rounds, 1 << 30)
    work: Path = options.work / "quick" if options.quick else options.work
    work.mkdir(parents=True, exist_ok=True)
    kept = {name: work / f"{name.replace(' ', '_').replace(',', '')}.json" for name in names}
    for name in options.rows:
        if kept[name].exists():
            continue
        target = options.disk if name.endswith("disk") else "/dev/shm"
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory(dir=target) as made:
            folder = Path(made)
            if name in tables:
                size, codec, to = tables[name]
                row = measure_row(size, codec, folder, rounds, nbytes, cores)
                row |= {"size": size, "codec": codec, "to": to}
            elif name in scaling:
                row = measure_workers(scaling[name], folder, rounds, nbytes, cores)
            else:
                row = first_frame(folder, rounds)
        kept[name].write_text(json.dumps({**row, "load": load, "cores": cores, "rounds": rounds, "nbytes": nbytes}))
        print(f"{name}: measured", flush=True)
    rows = {name: json.loads(path.read_text()) for name, path in kept.items() if path.exists()}
    write_page(
        options.output,
        [rows[name] for name in tables if name in rows],
        [rows[name] for name in scaling if name in rows],
        rows.get("first frame"),
    )
    if some := [rows[name] for name in scaling if name in rows]:
        picture(options.picture, some)


if __name__ == "__main__":
    main()
