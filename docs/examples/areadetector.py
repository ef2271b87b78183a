"""The frames that an areaDetector IOC sends by pvAccess, in one file, as a profile says.

    pip install tuner p4p
    python areadetector.py profiles/id19.yaml 13SIM1:Pva1:Image scan.h5 1000 --first 1

The channel is one of NDPluginPva or NDPluginPvxs. Start the acquisition once this program says that it listens. The
uniqueId of a frame says where it belongs: frames that were dropped on the way are left out and listed, and shift no
other. It ends with frame 999, when none came for ten seconds, or with Ctrl-C. Frames that are missing make the exit
code 3.
"""

from __future__ import annotations

import argparse
import contextlib
import struct
import sys
import threading
import zlib
from collections.abc import Iterator

import blosc2
import h5py
import numpy as np
from p4p import Value
from p4p.client.raw import Context, Disconnected

import tuner
from tuner.apply.writer import Writer
from tuner.errors import InputError, TunerError

DATASET = "/entry/data/data"

#: What NDPluginCodec compresses with and loses nothing.
CODECS = ("bslz4", "lz4", "lz4hdf5", "blosc", "zlib")

#: What `codec.parameters` says that the pixels are which were compressed: a ScalarType of pvData.
DTYPES = {1: "int8", 2: "int16", 3: "int32", 5: "uint8", 6: "uint16", 7: "uint32", 9: "float32", 10: "float64"}

#: What HDF5's bitshuffle filter has in front of its blocks, and an NDArray has not: bytes of the frame and of a block.
HEADER = struct.Struct(">QI")
BLOCK = 8192  # as bitshuffle chooses it


def updates_of(channel: str, queue: int, idle: float) -> Iterator[Value]:
    """What comes over a channel, but what was there before; ends when there was nothing for `idle` seconds."""
    woken, listening, begun = threading.Event(), False, False
    with (
        Context("pva", useenv=True, nt=False) as context,
        contextlib.closing(context.monitor(channel, woken.set, f"record[queueSize={queue}]field()")) as monitor,
    ):
        while True:
            update = monitor.pop()
            if update is None:
                if not woken.wait(None if listening and not begun else idle):
                    if not listening and not begun:
                        raise TunerError(f"{channel}: no IOC answered in {idle:g} s")
                    return
                woken.clear()
            elif isinstance(update, Disconnected):
                if listening:
                    print(f"{channel}: disconnected", file=sys.stderr, flush=True)
                listening = False
            elif isinstance(update, Exception):
                raise TunerError(f"{channel}: {update}")
            elif not update.getID().startswith("epics:nt/NTNDArray:"):
                raise InputError(f"{channel}: must be an NTNDArray, got {update.getID()}")
            elif begun or listening:
                if not listening:
                    print(f"{channel}: is back", file=sys.stderr, flush=True)
                listening = True
                if update.value is not None:  # as of an IOC that started again
                    begun = True
                    yield update
            else:
                listening = True
                print(f"listening to {channel}", flush=True)


def dtype_of(update: Value, place: str) -> np.dtype:
    """What the pixels of a frame are, also where they are compressed, and so are bytes."""
    codec = update.codec
    if not codec.name:
        return update.value.dtype
    if codec.name not in CODECS:
        raise InputError(f"{place}: codec must be one of {', '.join(CODECS)}, got {codec.name}")
    if codec.parameters not in DTYPES:
        raise InputError(f"{place}: codec.parameters must be one of {list(DTYPES)}, got {codec.parameters}")
    return np.dtype(DTYPES[codec.parameters])


def give(writer: Writer, update: Value, dtype: np.dtype, shape: tuple[int, ...], index: int) -> None:
    """Hand a frame to the writer, if possible as it came."""
    if not update.codec.name:  # memory that pvAccess has delivered never changes
        writer.append(update.value.reshape(shape), index=index, copy=False)
        return
    data = update.value.view(np.uint8)[: update.compressedSize].tobytes()
    match update.codec.name:
        case "bslz4":
            header = HEADER.pack(update.uncompressedSize, BLOCK)
            writer.append_compressed(header + data, "bslz4", index=index)
        case "lz4":
            writer.append_compressed(data, "lz4-block", index=index)
        case "lz4hdf5":
            writer.append_compressed(data, "lz4", index=index)
        case "blosc":
            writer.append(np.frombuffer(blosc2.decompress(data), dtype).reshape(shape), index=index)
        case _:
            writer.append(np.frombuffer(zlib.decompress(data), dtype).reshape(shape), index=index)


def record(options: argparse.Namespace) -> bool:
    """Write a scan, and say what became of it; whether it is complete."""
    profile = tuner.load_profile(options.profile, strict=True)  # what was measured, unchanged
    expected, shape = np.dtype(profile.match.dtype), profile.match.frame_shape
    if shape is None:
        raise InputError(f"{options.profile}: match.frame_shape must be that of the detector, got null")
    first, stamps = options.first, {}
    with (
        tuner.open_writer(
            options.file,
            profile,
            dataset=DATASET,
            frame_shape=shape,
            dtype=expected,
            flush_every="1s",  # at most a second of frames is lost if this process dies
            on_overload="shed",  # a writer that waits makes pvAccess drop frames
        ) as writer,
        contextlib.suppress(KeyboardInterrupt),
    ):
        for update in updates_of(options.channel, options.queue, options.idle):
            number = update.uniqueId
            place = f"{options.channel}: uniqueId {number}"
            profile.match.check(dtype_of(update, place), tuple(side.size for side in reversed(update.dimension)), place)
            first = number if first is None else first
            index = number - first
            if index < 0:
                raise InputError(f"{place}: must be {first} or more; was the counter reset?")
            if index >= options.count:
                break
            if index in stamps:  # sent again after the IOC came back
                continue
            try:
                give(writer, update, expected, shape, index)
            except (ValueError, RuntimeError, zlib.error) as error:  # damaged, or later than frames around it
                print(f"{place}: left out: {error}", file=sys.stderr)
                continue
            stamps[index] = update.dataTimeStamp.secondsPastEpoch + update.dataTimeStamp.nanoseconds * 1e-9
            if index == options.count - 1:
                break
    with h5py.File(options.file, "r+") as file:
        times = np.full(len(file[DATASET]), np.nan)
        times[list(stamps)] = list(stamps.values())
        file["entry/data/dataTimeStamp"] = times
        file["entry/data/dataTimeStamp"].attrs["units"] = "s since 1970-01-01"
    missing = sorted({*range(options.count)} - {*stamps})
    said = f", missing: {', '.join(map(str, missing[:10]))}{'...' if missing[10:] else ''}" if missing else ""
    print(f"{options.file}: {len(stamps)} of {options.count} frames{said}")
    return not missing


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("channel")
    parser.add_argument("file")
    parser.add_argument("count", type=int, help="frames of the scan")
    parser.add_argument("--first", type=int, help="uniqueId of the first frame; by default of the first that arrives")
    parser.add_argument("--queue", type=int, default=100, help="frames that wait before pvAccess drops any")
    parser.add_argument("--idle", type=float, default=10, help="seconds without a frame that end the scan")
    try:
        sys.exit(0 if record(parser.parse_args()) else 3)
    except TunerError as error:  # one line: where, what, must be, got
        sys.exit(f"areadetector: {error}")
