"""Files replaced by what a profile makes of them: the original stays until a verified copy takes its place."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tuner.apply.cut import slabs
from tuner.apply.foreign import verify_written
from tuner.apply.prepare import Preparation, kept_of
from tuner.apply.recover import check_unused
from tuner.apply.repack import repack
from tuner.apply.scan_file import sync_folder
from tuner.apply.target import check_target, reason, temporary_name
from tuner.apply.tree import attribute_values
from tuner.errors import InputError, TunerError, VerificationError
from tuner.profile import Profile
from tuner.read.hdf5 import Hdf5Source
from tuner.read.storage import open_file
from tuner.stack import Stack

#: Extended attributes that belong to a file's owner: what users note, and access lists.
_KEPT = re.compile(r"user\.|system\.posix_acl_")

#: Bytes of other datasets that are compared at once.
_PIECE_NBYTES = 32 << 20


def replace_in_place(
    profile: Profile,
    stacks: Sequence[Stack],
    discard_original: bool = False,
    workers: int | None = None,
    container: str = "blosc2",
) -> dict[str, Any]:
    """Write HDF5 files anew, each beside itself, and have the copy take its place once it is proven.

    Proven: a process with only h5py and hdf5plugin reads each frame as it was, or as the profile's steps make it,
    within all limits on quality; the other datasets hold the same values. The copy is on the disk before it takes the
    name in one step: a kill at any moment leaves the one file or the other, whole. It gets the original's mode, owner
    and access lists. What a symbolic link leads to is replaced, the link stays.

    Parameters
    ----------
    profile : Profile
        Without reductions, as other files may count on the shape.
    stacks : sequence of Stack
        As `open_stacks` returns them; they are closed.
    discard_original : bool
        Take a profile whose steps change pixels: what they were is then nowhere any more.
    workers, container
        As for `repack`.

    Returns
    -------
    dict
        `files`, as `repack` returns them, and `skipped`: files that were written with this profile before.

    Raises
    ------
    InputError
        Before anything is written: a file that has further names, that does not hold its frames itself, or is in use.
    VerificationError
        Where a copy is not what it must be; the original stays.
    TunerError
        Where a copy cannot be written; the original stays.
    """
    if profile.reduce:
        raise InputError(f"profile {profile.name} reduces frames: not in place, as others may count on the shape")
    if not profile.config.lossless and not discard_original:
        raise InputError(
            f"profile {profile.name} changes pixels: in place, the original is lost; --discard-original allows it"
        )
    paths = [_check(stack) for stack in stacks]
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(f"{path}: must be named once, got {paths.count(path)} times")
    done: list[dict[str, Any]] = []
    skipped: list[str] = []
    for stack, path in zip(stacks, paths, strict=True):
        if _is_done(stack, profile, container):
            skipped.append(str(path))
        else:
            done.append(_replace(profile, stack, path, workers, container))
        stack.close()
    return {"files": done, "skipped": skipped}


def _check(stack: Stack) -> Path:
    """The file itself; InputError where replacing it would lose something, or not be possible."""
    source = stack.source
    if not isinstance(source, Hdf5Source):
        raise InputError(f"{stack.name}: must be HDF5 to be replaced in place")
    path = Path(source.path).resolve()
    check_target(path, overwrite=True)
    status = path.stat()
    if status.st_nlink > 1:
        raise InputError(f"{path}: has {status.st_nlink} names (hard links), of which only this one would be replaced")
    if os.geteuid() != 0 and (status.st_uid != os.geteuid() or status.st_gid not in (os.getegid(), *os.getgroups())):
        raise InputError(f"{path}: must belong to this user and to one of its groups, which the copy could not")
    check_unused(path)
    with open_file(path) as file:
        if file.userblock_size:
            raise InputError(f"{path}: has a user block in front of HDF5, which would be lost")
        for name in source.datasets:
            node = file[name]
            if node.is_virtual or Path(node.file.filename).resolve() != path:
                raise InputError(f"{path}: must hold its frames itself, but {name} joins or links those of other files")
    return path


def _is_done(stack: Stack, profile: Profile, container: str) -> bool:
    assert isinstance(stack.source, Hdf5Source)
    with open_file(stack.source.path) as file:
        stamped = [file[name].attrs for name in stack.source.datasets]
        return all(
            attributes.get("tuner_digest") == profile.digest and attributes.get("tuner_container") == container
            for attributes in stamped
        )


def _replace(profile: Profile, stack: Stack, path: Path, workers: int | None, container: str) -> dict[str, Any]:
    copy = temporary_name(path, "copy")
    before = path.stat()
    try:
        (written,) = repack(profile, [stack], [path], copy, workers=workers, container=container)["files"]
        _check_limits(profile, stack)
        verify_written(stack, copy, written["dataset"], Preparation.of_stack(profile, stack))
        stack.close()
        with open_file(path) as old, open_file(copy) as new:
            _compare_rest(old, new, written["dataset"])
        _make_like(copy, path, before)
        check_unused(path)
        now = path.stat()
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (before.st_ino, before.st_size, before.st_mtime_ns):
            raise InputError(f"{path}: was changed meanwhile; it stays as it is")
        copy.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise TunerError(f"{path}: cannot be replaced: {reason(error)}; it stays as it was") from None
    finally:
        copy.unlink(missing_ok=True)
    return {**written, "destination": str(path)}


def _make_like(copy: Path, path: Path, status: os.stat_result) -> None:
    """Give a copy mode, owner and extended attributes of the original, and have the disk hold it."""
    descriptor = os.open(copy, os.O_RDONLY)
    try:
        os.fchown(descriptor, status.st_uid, status.st_gid)
        os.fchmod(descriptor, status.st_mode & 0o7777)
        for name in _kept_attributes(path):
            os.setxattr(descriptor, name, os.getxattr(path, name))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _kept_attributes(path: Path) -> list[str]:
    try:
        return list(filter(_KEPT.match, os.listxattr(path)))
    except OSError as error:
        if error.errno != errno.ENOTSUP:  # as of many file systems in user space, which have none
            raise
        return []


def _check_limits(profile: Profile, stack: Stack) -> None:
    """Raise VerificationError where the profile's steps break a limit in a frame that is about to be lost."""
    preparation = Preparation.of_stack(profile, stack)
    if not preparation.steps:
        return
    for slab in slabs((len(stack),), (max(1, _PIECE_NBYTES // stack.frame_nbytes),)):
        frames = stack.read(slab.start, slab.stop)
        prepared = preparation(frames, kept_of(stack, slab.start, slab.stop))
        for index, breach in enumerate(preparation.breaches(frames, prepared)):
            if breach is not None:
                raise VerificationError(f"{stack.name}: frame {slab.start + index}: {breach}; the file stays as it was")


def _compare_rest(old: h5py.File, new: h5py.File, stack: str) -> None:
    """Raise VerificationError where anything but the stack is not in the copy as it was."""
    names = ["/"]
    old.visit(names.append)
    for name in names:
        node, copied = old[name], new.get(name)
        what = f"{old.filename}: {node.name}"
        if copied is None or not all(_same_attribute(node, copied, attribute) for attribute in node.attrs):
            raise VerificationError(f"{what} is not in the copy as it was; the file stays as it was")
        if isinstance(node, h5py.Dataset) and new[name] != new[stack]:
            try:
                same = node.shape == copied.shape and node.dtype == copied.dtype and _same_values(node, copied)
            except OSError as error:
                raise VerificationError(f"{what} cannot be read to be compared: {reason(error)}") from None
            if not same:
                raise VerificationError(f"{what} has other values in the copy; the file stays as it was")


def _same_attribute(node: h5py.HLObject, copied: h5py.HLObject, name: str) -> bool:
    """Whether a copy has an attribute as it was; what we note ourselves may be new, as are addresses."""
    if name not in copied.attrs:
        return False
    theirs, ours = (h5py.h5a.open(one.id, name.encode()) for one in (node, copied))
    empty = theirs.get_space().get_simple_extent_type() == h5py.h5s.NULL
    if name.startswith("tuner_") or empty or theirs.get_type().detect_class(h5py.h5t.REFERENCE):
        return True
    return theirs.get_type() == ours.get_type() and _equal(attribute_values(theirs)[0], attribute_values(ours)[0])


def _same_values(node: h5py.Dataset, copied: h5py.Dataset) -> bool:
    if node.shape is None or h5py.check_ref_dtype(node.dtype) is not None:
        return True  # nothing in it; or addresses, which are others in another file
    return all(_equal(np.asarray(node[place]), np.asarray(copied[place])) for place in _pieces(node))


def _equal(theirs: NDArray[Any], ours: NDArray[Any]) -> bool:
    """Whether values are the same, bit for bit."""
    if theirs.dtype.hasobject:  # texts and arrays of varying length
        return all(np.array_equal(a, b) for a, b in zip(theirs.reshape(-1), ours.reshape(-1), strict=True))
    return theirs.tobytes() == ours.tobytes()


def _pieces(node: h5py.Dataset) -> Iterator[Any]:
    """Selections that make up a dataset, of bounded size."""
    if not node.shape:
        yield ()
        return
    rows = max(1, _PIECE_NBYTES // max(1, node.nbytes // max(1, node.shape[0])))
    if node.chunks:
        rows = -(-rows // node.chunks[0]) * node.chunks[0]
    for start in range(0, node.shape[0], rows):
        yield slice(start, start + rows)
