"""The tree of an HDF5 file: walking it, following its links, reading its texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from tuner.errors import InputError

#: How deep groups and attributes that name each other are followed.
MAX_DEPTH = 12

#: What h5py raises for a link that leads nowhere, to a file that cannot be opened, or in a circle.
DEAD_LINK = (KeyError, OSError, RuntimeError)


def walk(group: h5py.Group, broken: list[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Each object below a group once, with its path, hard links before soft and external.

    Paths of links that lead nowhere are appended to `broken`; without it, links to other files are not followed.
    """
    order = (h5py.HardLink, h5py.SoftLink, h5py.ExternalLink)
    kinds = order if broken is not None else order[:2]
    seen = set()
    queue: list[tuple[str, h5py.Group, int]] = [(group.name.rstrip("/"), group, 0)]
    while queue:
        path, parent, depth = queue.pop(0)
        links = {name: type(link_at(parent, name)) for name in parent}
        for name in sorted((name for name in links if links[name] in kinds), key=lambda name: order.index(links[name])):
            try:
                node = parent[name]
            except DEAD_LINK:
                if broken is not None:
                    broken.append(f"{path}/{name}")
                continue
            info = h5py.h5o.get_info(node.id)
            if (info.fileno, info.addr) in seen or not hasattr(node, "attrs"):
                continue
            seen.add((info.fileno, info.addr))
            yield f"{path}/{name}", node
            if isinstance(node, h5py.Group) and depth < MAX_DEPTH:
                queue.append((f"{path}/{name}", node, depth + 1))


def groups(file: h5py.File) -> list[h5py.Group]:
    """The root of a file and all groups below it."""
    return [file, *(node for _, node in walk(file) if isinstance(node, h5py.Group))]


def peek(group: h5py.Group, name: str) -> Any:
    """What has a name in a group, or None where there is nothing, or a link that leads nowhere or in a circle."""
    try:
        return group[name]
    except DEAD_LINK:
        return None


def link_at(group: h5py.Group, name: str) -> Any:
    """The link that has a name in a group; None where there is none, or one that leads nowhere in this file."""
    try:
        return group.get(name, getlink=True)
    except DEAD_LINK:
        return None


def canonical(file: h5py.File, path: str) -> str:
    """A path with soft links replaced by what they lead to, as far as it exists.

    >>> with h5py.File("memory", "w", driver="core", backing_store=False) as file:
    ...     file["entry/detector/data"] = [1, 2]
    ...     file["entry/plot"] = h5py.SoftLink("detector")
    ...     canonical(file, "entry/plot/data")
    '/entry/detector/data'
    """
    done: list[str] = []
    left = [part for part in path.split("/") if part]
    for _ in range(100):  # soft links may form a circle
        if not left:
            break
        part = left.pop(0)
        parent = peek(file, "/" + "/".join(done))
        link = link_at(parent, part) if isinstance(parent, h5py.Group) else None
        if isinstance(link, h5py.SoftLink):
            if link.path.startswith("/"):
                done = []
            left = [step for step in link.path.split("/") if step not in ("", ".")] + left
        elif isinstance(link, h5py.ExternalLink):
            return "/" + "/".join([*done, part, *left])  # the rest is another file's
        else:
            done.append(part)
    return "/" + "/".join(done + left)


def open_link(file: h5py.File, path: str) -> Any:
    """What is at a path that the file itself names, or an InputError that says which link leads nowhere."""
    try:
        return file[path]
    except DEAD_LINK:
        refuse_broken(file, path)
        raise InputError(f"{file.filename}: must hold {path}, which it names, got nothing there") from None


def refuse_broken(file: h5py.File, path: str) -> None:
    """Raise InputError where a component of `path` is an external link that cannot be followed."""
    parts = path.strip("/").split("/")
    for depth in range(1, len(parts) + 1):
        here = "/" + "/".join(parts[:depth])
        link = link_at(file, here)
        if isinstance(link, h5py.ExternalLink) and peek(file, here) is None:
            raise InputError(
                f"{file.filename}: {here} links to {link.path} in {link.filename}, which must exist and be readable"
            )
        if link is None or isinstance(link, h5py.SoftLink):
            return


def is_numeric(node: Any) -> bool:
    """Whether an object is a dataset of numbers that numpy knows, with at least one axis."""
    if not isinstance(node, h5py.Dataset) or not node.shape:
        return False
    try:
        return node.dtype.kind in "biuf" and node.dtype.itemsize <= 8
    except TypeError:  # such as HDF5's times and 16-bit brain floats
        return False


def nx_class(node: Any) -> str | None:
    """The NeXus class of a group; None for anything else."""
    return as_text(node.attrs.get("NX_class")) if isinstance(node, h5py.Group) else None


def as_text(value: Any) -> str | None:
    """An attribute as text, whether it is stored as bytes, text, a number, or an array of one of them."""
    if isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else None
    if value is None or isinstance(value, h5py.Empty):
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
