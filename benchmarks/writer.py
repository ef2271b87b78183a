"""How fast the writer is, beside other ways to the same file, and beside what the machine could do at best.

    python benchmarks/writer.py [--quick] [--rounds 7] [--disk FOLDER] [--output results/writer.md]

Simulated frames of three sizes, lossless with lz4 and with zstd 1 (tomography) and rounded to the noise (photon
counts), to a memory file system and to a disk. All methods take turns, round after round; ratios are taken within a
round. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import blosc2
import h5py
import hdf5plugin
import numpy as np
from grid import write_table
from numpy.typing import NDArray

from tuner.apply.checksum import CHECKSUM_NBYTES, fletcher32
from tuner.apply.cut import corners, cut
from tuner.apply.encode import Encoder, cparams
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

#: Rows and columns of a frame, and the chunks that it is stored in.
SIZES = {
    "128x128": ((128, 128), (64, -1, -1)),
    "2 Mpixel": ((1024, 2048), (1, -1, -1)),
    "16 Mpixel": ((4096, 4096), (1, 1024, -1)),
}
#: Of the table of workers and frame sizes, lossless.
SIDES = (32, 128, 512, 1024, 2048, 4096)
CODECS = {
    "lz4": Blosc2("lz4", clevel=1),
    "zstd 1": Blosc2("zstd", clevel=1),
    "sigma + zstd 1": Blosc2("zstd", clevel=1),
}
FILTERS = {"lz4": ("lz4", 1), "zstd 1": ("zstd", 1), "sigma + zstd 1": ("zstd", 1)}
METHODS = ("ours", "ours, verified", "Blosc2 filter", "Bitshuffle filter", "naive pool", "uncompressed")
#: Different frames are simulated as far as this, and repeated beyond.
_SIMULATED_NBYTES = 24 << 20


@dataclass(frozen=True)
class Case:
    """Frames of one size and how they are stored."""

    size: str
    shape: tuple[int, int]
    chunks: tuple[int, ...]
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


def ours(path: Path, case: Case, total: int, workers: int, verify: str = "off") -> None:
    with open_writer(
        path, case.profile, frame_shape=case.shape, dtype=case.dtype, workers=workers, verify=verify
    ) as writer:
        for slab in slabs(case, total):
            for frame in slab:
                writer.append(frame)


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


@dataclass
class Parts:
    """Seconds that each part takes for one byte of pixels, one after the other in one thread."""

    prepare: float
    encode: float
    checksum: float
    write: float

    @property
    def total(self) -> float:
        return self.prepare + self.encode + self.checksum + self.write

    def bound(self, cores: int) -> float:
        """The most MB/s: all cores always busy, or the file always being written to."""
        return min(cores / self.total, 1 / self.write) / 1e6


def parts_of(case: Case, folder: Path, total: int) -> Parts:
    """Each part timed alone, on the frames that the methods write."""
    config = case.resolved
    prepare = Preparation(case.profile)
    encoder = Encoder(config.blosc2, config.chunks, case.dtype)
    seconds = defaultdict(float)
    nbytes, kept = 0, 0
    encoded: list[bytes] = []
    for slab in slabs(case, total):
        start = time.perf_counter()
        prepared = prepare(slab)
        seconds["prepare"] += time.perf_counter() - start
        nbytes += slab.nbytes
        for _, chunk in cut(prepared, config.chunks):
            start = time.perf_counter()
            frame = encoder.encode(chunk)
            between = time.perf_counter()
            code = fletcher32(frame)
            seconds["checksum"] += time.perf_counter() - between
            seconds["encode"] += between - start
            if kept < 2 * last_level_cache():
                encoded.append(frame + code.to_bytes(CHECKSUM_NBYTES, "little"))
                kept += len(encoded[-1])

    def write(path: Path) -> None:
        with h5py.File(path, "w", libver=("v110", "v110")) as file:
            made = dataset(file, case, compression=hdf5plugin.Blosc2())
            made.resize(total, axis=0)
            places = corners((total, *case.shape), config.chunks)
            for place, frame in zip(places, itertools.cycle(encoded), strict=False):
                made.id.write_direct_chunk(place, frame)

    seconds["write"] = timed(folder, write)[0]
    return Parts(**{name: seconds[name] / nbytes for name in ("prepare", "encode", "checksum", "write")})


@dataclass
class Row:
    """What was measured of one case on one target."""

    mb_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    parts: list[Parts] = field(default_factory=list)
    ratio: float = 0.0

    def share(self, method: str, cores: int) -> float:
        """The median over rounds of ours over `method`, or over the bound."""
        others = [p.bound(cores) for p in self.parts] if method == "bound" else self.mb_s[method]
        return statistics.median(o / other for o, other in zip(self.mb_s["ours"], others, strict=True))


def measure(case: Case, folder: Path, rounds: int, nbytes: int, workers: int, only: Sequence[str] = METHODS) -> Row:
    """All methods and the parts of the bound in turn; the first round, which touches everything, does not count."""
    depth = case.resolved.chunks[0]
    pixels = math.prod(case.shape) * case.dtype.itemsize
    total = -(-max(nbytes, 4 * depth * pixels) // (depth * pixels)) * depth
    row = Row()
    for turn in range(rounds + 1):
        parts = parts_of(case, folder, total)
        if turn:
            row.parts.append(parts)
        for name, method in methods(case, workers).items():
            if name not in only:
                continue
            seconds, cpu, stored = timed(folder, lambda path, method=method: method(path, total))  # type: ignore[misc]
            if turn:
                row.mb_s[name].append(total * pixels / seconds / 1e6)
            if turn and name == "ours":
                row.ratio = total * pixels / stored
                row.mb_s["cpu"].append(cpu / (total * pixels) * 1e9)
    return row


def table(rows: Mapping[tuple[Case, str], Row], cores: int) -> list[str]:
    lines = [
        f"| frames | stored with | to | ratio | {' | '.join(METHODS)} | bound | of the bound | times Blosc2 filter |",
        f"|---|---|---|---:|{'---:|' * (len(METHODS) + 3)}",
    ]
    for (case, target), row in rows.items():
        speeds = [f"{statistics.median(row.mb_s[name]):,.0f}" for name in METHODS]
        bound = statistics.median(p.bound(cores) for p in row.parts)
        lines.append(
            f"| {case.size} | {case.codec} | {target} | {row.ratio:.2f} | {' | '.join(speeds)} | {bound:,.0f}"
            f" | {row.share('bound', cores):.0%} | {row.share('Blosc2 filter', cores):.2f} |"
        )
    return lines


def parts_table(rows: Mapping[tuple[Case, str], Row]) -> list[str]:
    names = ("prepare", "encode", "checksum", "write")
    lines = [
        f"| frames | stored with | to | {' | '.join(names)} | ours, CPU of all threads |",
        "|---|---|---|" + "---:|" * 5,
    ]
    for (case, target), row in rows.items():
        cells = [f"{statistics.median(getattr(p, name) for p in row.parts) * 1e9:.3f}" for name in names]
        cpu = statistics.median(row.mb_s["cpu"])
        lines.append(f"| {case.size} | {case.codec} | {target} | {' | '.join(cells)} | {cpu:.3f} |")
    return lines


def workers_table(sides: Sequence[int], folder: Path, rounds: int, nbytes: int, cores: int) -> list[str]:
    """MB/s and the share of the bound, for every number of workers and frame size."""
    counts = range(1, cores + 2)
    headings = " | ".join(f"{count} worker{'s' * (count > 1)}" for count in counts)
    lines = [
        f"| frames | {headings} | CPU s / GB | bound |",
        f"|---|{'---:|' * (len(counts) + 2)}",
    ]
    for side in sides:
        case = Case(f"{side}x{side}", (side, side), (max(1, (2 << 20) // (2 * side * side)), -1, -1), "lz4")
        measured = [measure(case, folder, rounds, nbytes, count, only=("ours",)) for count in counts]
        speeds = [statistics.median(row.mb_s["ours"]) for row in measured]
        bound = statistics.median(p.bound(cores) for row in measured for p in row.parts)
        cpu = statistics.median(measured[-2].mb_s["cpu"])
        cells = " | ".join(f"{speed:,.0f}" for speed in speeds)
        lines.append(f"| {case.size}, {case.chunks[0]} to a chunk | {cells} | {cpu:.2f} | {bound:,.0f} |")
        print(lines[-1], flush=True)
    return lines


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round of everything, to see that it works")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--disk", default=tempfile.gettempdir(), help="a folder on the disk to write to")
    parser.add_argument("--size", action="append", choices=SIZES, help="only these sizes")
    parser.add_argument("--codec", action="append", choices=CODECS, help="only these codecs")
    parser.add_argument("--output", default="results/writer.md")
    options = parser.parse_args()
    rounds, nbytes = (1, 8 << 20) if options.quick else (options.rounds, 1 << 30)
    cores = default_workers()
    load = os.getloadavg()[0]
    rows: dict[tuple[Case, str], Row] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory, tempfile.TemporaryDirectory(dir=options.disk) as disk:
        for size, codec in itertools.product(options.size or SIZES, options.codec or CODECS):
            case = Case(size, *SIZES[size], codec)
            for target, folder in (("memory", memory), ("disk", disk)):
                row = rows[case, target] = measure(case, Path(folder), rounds, nbytes, cores)
                print(table({(case, target): row}, cores)[-1], flush=True)
        scaling = workers_table(
            SIDES[1::2] if options.quick else SIDES, Path(memory), max(1, rounds // 2), nbytes // 4, cores
        )
        starts = first_frame(Path(memory), rounds)
    write_table(
        options.output,
        [
            "# The writer, beside other ways to the same file",
            "",
            f"`python benchmarks/writer.py{' --quick' * options.quick}`: MB of pixels per second, medians of {rounds}"
            f" rounds of {nbytes >> 20} MB, until the file is closed and synced; load average before {load:.1f}."
            " Tomography as uint16, photon counts as int32; 128x128 in chunks of 64 frames, 2 Mpixel in whole frames,"
            " 16 Mpixel in quarters. *Ours* takes frame after frame, with checksums; *verified*: with the default"
            ' verify="sample", of which each thread\'s first chunk weighs more here than in a scan. The *filters* are'
            " hdf5plugin's through h5py, a row of chunks at a time; the *naive pool* maps threads over chunks,"
            f" without checksums. The *bound* is {cores} cores / (prepare + encode + checksum + write seconds for a"
            " byte), or what writing alone allows, whichever is less. Ratios are taken within a round.",
            "",
            *table(rows, cores),
            "",
            "## Nanoseconds for a byte of pixels",
            "",
            "Each part alone, in one thread; and what all threads of the writer take for all of them, copy included.",
            "",
            *parts_table(rows),
            "",
            "## Workers and size of frames",
            "",
            "lz4, to a memory file system, MB/s; the bound is that of all cores.",
            "",
            *scaling,
            "",
            "## From the start of the interpreter to the first frame accepted",
            "",
            *(f"- {name}: {seconds:.2f} s" for name, seconds in starts.items()),
        ],
    )


if __name__ == "__main__":
    main()
