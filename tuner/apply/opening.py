"""`open_writer`: what an acquisition calls, and what it may ask for."""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tuner.apply.master import check_eiger
from tuner.apply.nexus import check_dataset_path
from tuner.apply.overload import WAYS
from tuner.apply.pipeline import default_workers
from tuner.apply.writer import Writer
from tuner.container import CONTAINERS
from tuner.errors import InputError
from tuner.profile import Profile


def open_writer(
    path: str | os.PathLike[str] | Writer,
    profile: Profile,
    *,
    dataset: str = "/entry/data/data",
    frame_shape: tuple[int, ...],
    dtype: DTypeLike,
    mask: ArrayLike | None = None,
    fields: Mapping[str, Any] | None = None,
    container: str = "blosc2",
    mode: str = "x",
    access: str = "single",
    layout: str = "nexus",
    roll_every: int = 1000,
    flush_every: int | str | None = None,
    workers: int | None = None,
    verify: str = "sample",
    on_drift: str = "warn",
    on_overload: str = "block",
) -> Writer:
    """Create an HDF5 file for frames of one shape and dtype, stored as `profile` says.

    Parameters
    ----------
    path : path of the file
        It appears under this name complete with its empty dataset: readers may open it at any time. Or a writer that
        has no frames yet: its file, or the master of its files, takes another dataset, with a writer of its own.
    profile : Profile
        As `load_profile` returns it.
    dataset : str
        Where the frames go in the file; the groups around it are made as NeXus readers expect them.
    frame_shape : tuple of int
        (H, W), or (channels,) for spectra.
    dtype : dtype of the frames
        Boolean, integer or float; stored in little-endian byte order.
    mask : bool array of `frame_shape`, optional
        True where a pixel is invalid in all frames; stored as `pixel_mask` of an NXdetector.
    fields : mapping of path to value, optional
        What else the file says: text, numbers or arrays, alone or as (value, unit), such as
        ``{"/entry/instrument/detector/x_pixel_size": (75e-6, "m")}``.
    container : "blosc2", "bitshuffle" or "bitshuffle-zstd"
        What the same pixels are stored in: bitshuffle, one frame a chunk and without a checksum, for programs that do
        not know Blosc2.
    mode : "x" or "w"
        "x" refuses an existing file, "w" replaces it once the new one has been created.
    access : "single", "rolling" or "swmr"
        How others read meanwhile. "single": one file, of which they see the last flush when they open it. "rolling":
        `path` becomes a master that joins finished data files, ``<stem>_data_000001.h5`` and on, and is replaced after
        each. "swmr": one file in HDF5's SWMR mode, for readers that open it so.
    layout : "nexus" or "eiger"
        "eiger", in rolling access alone: the master is one of a Dectris Eiger, which links its data files. `path` must
        end in ``_master.h5`` and `dataset` be where Dectris has it.
    roll_every : int
        Frames of a data file in rolling access; rounded up to whole chunks.
    flush_every : int or str, optional
        Flush after so many frames, or so often, such as "5s", also while no frames come.
    workers : int, optional
        Threads that encode; the default is one for each core that the process may use.
    verify : "off", "sample" or "all"
        Which chunks are decoded and compared, and which frames that the profile's steps changed are held to what it
        promises: of the first of every thread and one in 64, or all. What is wrong is written losslessly instead and
        noted in the file, and from there on all are looked at. A provisional profile is taken only with "all".
    on_drift : "warn" or "lossless"
        What follows when frames leave the profile's envelope, beside a warning: "lossless" keeps every pixel from there
        on.
    on_overload : "block", "raise" or "shed"
        What follows when frames come faster than they are encoded: `append` waits; it raises `OverloadError`, having
        taken nothing; or frames are encoded with the profile's fallback, and if that is too slow as well without
        compression, every pixel as it is, until there is no queue any more. The file notes which.

    Raises
    ------
    InputError
        Before anything is created: a file that exists, a folder that does not, frames that the profile is not for.

    Examples
    --------
    >>> import tempfile
    >>> from tuner.config import Config
    >>> from tuner.profile import Match, Profile
    >>> profile = Profile("doc", Match("uint16"), config=Config(), fallback=Config())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open_writer(f"{folder}/scan.h5", profile, frame_shape=(4, 5), dtype="uint16") as writer:
    ...         writer.append(np.ones((3, 4, 5), "uint16"))
    ...         writer.append(np.zeros((4, 5), "uint16"))
    ...         writer.flush()
    4
    """
    if not isinstance(profile, Profile):
        raise InputError(f"profile must be what load_profile returns, got {profile!r}")
    if fields is not None and not isinstance(fields, Mapping):
        raise InputError(f"fields must be a mapping of path to value, got {fields!r}")
    try:
        shape = tuple(operator.index(size) for size in frame_shape)
    except TypeError:
        raise InputError(f"frame_shape must be one or two whole numbers, got {frame_shape!r}") from None
    if not shape or min(shape) < 1:
        raise InputError(f"frame_shape must be one or two whole numbers >= 1, got {shape}")
    try:
        pixel = np.dtype(dtype)
    except TypeError:
        raise InputError(f"dtype must be one of numpy's, got {dtype!r}") from None
    if pixel.kind not in "biuf" or pixel.itemsize > 8:
        raise InputError(f"dtype must be boolean, integer or float of at most 64 bits, got {pixel}")
    for name, value, known in (
        ("container", container, tuple(CONTAINERS)),
        ("mode", mode, ("x", "w")),
        ("access", access, ("single", "rolling", "swmr")),
        ("layout", layout, ("nexus", "eiger")),
        ("on_drift", on_drift, ("warn", "lossless")),
        ("on_overload", on_overload, WAYS),
    ):
        if value not in known:
            raise InputError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")
    for name, number in (("workers", workers), ("roll_every", roll_every)):
        if number is not None and not _counts(number):
            raise InputError(f"{name} must be a whole number >= 1, got {number!r}")
    place = check_dataset_path(dataset)
    beside = path if isinstance(path, Writer) else None
    if beside is not None and (mode, access, layout) != ("x", "single", "nexus"):
        raise InputError("mode, access and layout must be left out for another dataset of a file, which has its own")
    # A program may change its folder while it writes.
    target = path.path if isinstance(path, Writer) else Path(path).absolute()
    if layout == "eiger":
        check_eiger(target, place, shape)
        if access != "rolling":
            raise InputError(f"access must be 'rolling' for the layout of an Eiger, got {access!r}")
    return Writer(
        target,
        profile,
        place,
        shape,
        pixel.newbyteorder("="),
        mask=None if mask is None else _check_mask(mask, shape),
        fields=fields or {},
        eiger=layout == "eiger",
        beside=beside,
        container=CONTAINERS[container],
        overwrite=mode == "w",
        access=access,
        roll_every=roll_every,
        flush_every=_interval(flush_every),
        workers=workers or default_workers(),
        verify=verify,
        on_drift=on_drift,
        on_overload=on_overload,
    )


def _interval(flush_every: int | str | None) -> tuple[float, float]:
    """After how many frames, and after how many seconds, to flush."""
    if flush_every is None:
        return math.inf, math.inf
    if isinstance(flush_every, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?s", flush_every)
        if found and float(found[1]) > 0:
            return math.inf, float(found[1])
    elif _counts(flush_every):
        return flush_every, math.inf
    raise InputError(f"flush_every must be a number of frames >= 1, or seconds such as '5s', got {flush_every!r}")


def _counts(number: object) -> bool:
    """Whether it is a whole number of one or more."""
    return hasattr(number, "__index__") and operator.index(number) >= 1


def _check_mask(mask: ArrayLike, frame_shape: tuple[int, ...]) -> NDArray[np.bool_]:
    array = np.asarray(mask)
    if array.dtype != np.bool_ or array.shape != frame_shape:
        raise InputError(f"mask must be bool of shape {frame_shape}, got {array.dtype} of shape {array.shape}")
    return array
