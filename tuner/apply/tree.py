"""Copy everything of an HDF5 file but one stack, whose place is made for it to be written anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tuner.read.links import groups, link_at, peek

Make = Callable[[h5py.Group, str, h5py.Dataset], h5py.Dataset]
Rewrite = Callable[[h5py.Group, str, h5py.Dataset], h5py.Dataset | None]

# Attributes that hold the references between a dataset and its scales, which H5DSattach_scale writes.
_SCALE_LINKS = ("DIMENSION_LIST", "REFERENCE_LIST")


def copy_tree(
    source: h5py.File, destination: h5py.File, stack: tuple[str, ...], make: Make, rewrite: Rewrite | None = None
) -> None:
    """Copy groups, attributes, links and datasets; datasets chunk by chunk as they are stored.

    Parameters
    ----------
    source, destination : h5py.File
    stack : tuple of str
        Paths in `source` of the datasets that are left out; external links on the way to them are followed, all others
        are copied as links, relative file names as seen from the destination's folder.
    make : callable
        ``make(group, name, original)`` creates the dataset that takes the place of the first of them, wherever hard
        links lead to it; the others are dropped. It gets the original's attributes and dimension scales, but keeps the
        attributes that `make` set on it or on its group.
    rewrite : callable, optional
        ``rewrite(group, name, original)`` likewise creates what becomes of any other dataset, also where an external
        link leads to it; None where it stays as it is.
    """
    _Copy(source, destination, stack, make, rewrite).run()


def remove(node: h5py.HLObject) -> None:
    """Take an object out of its file, under all its names."""
    identity = _identity(node)
    for group in groups(node.file):
        for name in list(group):
            if isinstance(link_at(group, name), h5py.HardLink) and _identity(group[name]) == identity:
                del group[name]


class _Copy:
    """One copy under way: what of the source became what of the destination."""

    def __init__(
        self,
        source: h5py.File,
        destination: h5py.File,
        stack: tuple[str, ...],
        make: Make,
        rewrite: Rewrite | None,
    ) -> None:
        self.source = source
        self.destination = destination
        self.paths = stack
        self.make = make
        self.rewrite = rewrite
        # Held open, as an object's identity lasts as long as its file is open.
        self.stack = [source[path] for path in stack]
        self.left_out = {_identity(node) for node in self.stack}
        self.copies: dict[tuple[Any, ...], h5py.HLObject] = {}
        self.copied: list[tuple[h5py.HLObject, h5py.HLObject]] = []
        self.moved = Path(source.filename).resolve().parent != Path(destination.filename).resolve().parent

    def run(self) -> None:
        """Copy members first, then what refers to them."""
        self._add(self.source, self.destination)
        self._members(self.source, self.destination, "")
        for original, copy in self.copied:
            self._attributes(original, copy)
        for original, copy in self.copied:
            if isinstance(original, h5py.Dataset):
                self._scales(original, copy)
                if h5py.check_ref_dtype(original.dtype) is h5py.Reference and original.shape is not None:
                    copy[...] = self._references(np.asarray(original[()]))

    def _add(self, node: h5py.HLObject, copy: h5py.HLObject) -> None:
        self.copies[_identity(node)] = copy
        self.copied.append((node, copy))

    def _members(self, group: h5py.Group, copy: h5py.Group, path: str) -> None:
        for name in group:
            place = f"{path}/{name}"
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.SoftLink):
                copy[name] = h5py.SoftLink(link.path)
            elif isinstance(link, h5py.ExternalLink) and not self._leads_to_stack(place):
                if self.rewrite is not None and isinstance(node := peek(group, name), h5py.Dataset):
                    new = self._rewritten(node, copy, name)
                    if new is not None:
                        self._add(node, new)
                        continue
                copy[name] = h5py.ExternalLink(self._relative(link.filename), link.path)
            else:
                self._member(group, copy, name, place)

    def _member(self, group: h5py.Group, copy: h5py.Group, name: str, place: str) -> None:
        node = group[name]
        identity = _identity(node)
        known = self.copies.get(identity)
        if known is not None:
            copy[name] = known
            return
        if identity in self.left_out:
            if identity != _identity(self.stack[0]):
                return
            new = self.make(copy, name, node)
        elif isinstance(node, h5py.Group):
            new = h5py.Group(h5py.h5g.create(copy.id, name.encode(), gcpl=_like(node)))
        elif (rewritten := self._rewritten(node, copy, name)) is not None:
            new = rewritten
        elif isinstance(node, h5py.Dataset) and node.is_virtual and self.moved:
            new = self._virtual(node, copy, name)
        else:
            properties = h5py.h5p.create(h5py.h5p.OBJECT_COPY)
            properties.set_copy_object(h5py.h5o.COPY_WITHOUT_ATTR_FLAG)
            h5py.h5o.copy(group.id, name.encode(), copy.id, name.encode(), properties)
            new = copy[name]
        self._add(node, new)
        if isinstance(node, h5py.Group):
            self._members(node, new, place)

    def _rewritten(self, node: h5py.HLObject, copy: h5py.Group, name: str) -> h5py.Dataset | None:
        return self.rewrite(copy, name, node) if self.rewrite is not None and isinstance(node, h5py.Dataset) else None

    def _leads_to_stack(self, place: str) -> bool:
        return any(f"{path}/".startswith(f"{place}/") for path in self.paths)

    def _relative(self, filename: str) -> str:
        """A file name as the destination's folder sees it; unchanged where there is no such file."""
        here = Path(self.source.filename).resolve().parent / filename
        if not self.moved or Path(filename).is_absolute() or not here.exists():
            return filename
        return os.path.relpath(here, Path(self.destination.filename).resolve().parent)

    def _virtual(self, node: h5py.Dataset, copy: h5py.Group, name: str) -> h5py.Dataset:
        """A virtual dataset with the file names of its sources as the destination's folder sees them."""
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_fill_value(np.asarray(node.fillvalue, node.dtype))
        for mapping in node.virtual_sources():
            file_name = mapping.file_name if mapping.file_name == "." else self._relative(mapping.file_name)
            properties.set_virtual(mapping.vspace, file_name.encode(), mapping.dset_name.encode(), mapping.src_space)
        space = node.id.get_space()
        return h5py.Dataset(h5py.h5d.create(copy.id, name.encode(), node.id.get_type().copy(), space, properties))

    def _attributes(self, node: h5py.HLObject, copy: h5py.HLObject) -> None:
        for name in node.attrs:
            if name in _SCALE_LINKS or name in copy.attrs:
                continue
            original = h5py.h5a.open(node.id, name.encode())
            kind = original.get_type().copy()
            attribute = h5py.h5a.create(copy.id, name.encode(), kind, original.get_space())
            if original.get_space().get_simple_extent_type() == h5py.h5s.NULL:
                continue
            if kind.detect_class(h5py.h5t.REFERENCE):
                value = node.attrs[name]
                if h5py.check_ref_dtype(np.asarray(value).dtype) is h5py.Reference or isinstance(value, h5py.Reference):
                    attribute.write(self._references(np.asarray(value, h5py.ref_dtype)))
            else:
                values, memory = attribute_values(original)
                attribute.write(values, mtype=memory)

    def _references(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Object references into the source as references to the copies; null where there is none."""
        mapped = np.empty(values.shape, h5py.ref_dtype)
        for index, reference in np.ndenumerate(values):
            copy = self.copies.get(_identity(self.source[reference])) if reference else None
            mapped[index] = h5py.Reference() if copy is None else copy.ref
        return mapped

    def _scales(self, node: h5py.Dataset, copy: h5py.Dataset) -> None:
        for axis, scale in _attached(node):
            known = self.copies.get(_identity(scale))
            if known is not None:
                copy.dims[axis].attach_scale(known)


def attribute_values(attribute: Any) -> tuple[np.ndarray[Any, Any], Any]:
    """What an attribute that holds something and no references has, and the type in memory to write it with.

    Byte for byte, whatever numpy thinks of the type: areaDetector's texts have no room for the end that HDF5 gives to
    numpy's. None for what varies in length, which is numpy's objects.
    """
    kind = attribute.get_type()
    varies = kind.detect_class(h5py.h5t.VLEN) or kind.detect_class(h5py.h5t.STRING)
    memory = None if varies and attribute.dtype.hasobject else kind
    values = np.empty(attribute.shape, attribute.dtype if memory is None else f"V{kind.get_size()}")
    attribute.read(values, mtype=memory)
    return values, memory


def _like(group: h5py.Group) -> Any:
    """What a group is created with to keep the order of its members and attributes if another does.

    Not the other's own property list: HDF5 2.0 takes addresses in the other's file from it.
    """
    original = group.id.get_create_plist()
    properties = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    properties.set_link_creation_order(original.get_link_creation_order())
    properties.set_attr_creation_order(original.get_attr_creation_order())
    return properties


def _attached(dataset: h5py.Dataset) -> Iterator[tuple[int, h5py.Dataset]]:
    if "DIMENSION_LIST" in dataset.attrs:
        for axis, dimension in enumerate(dataset.dims):
            for scale in dimension.values():
                yield axis, scale


def _identity(node: h5py.HLObject) -> tuple[Any, ...]:
    """The same for all links to one object."""
    about = h5py.h5g.get_objinfo(node.id)
    return (*about.fileno, *about.objno)
