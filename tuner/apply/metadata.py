"""What a file says of its frames, rewritten where a reduction makes it untrue."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tuner.read.detector import detector_groups
from tuner.read.links import as_text, nx_class, peek
from tuner.read.nexus import axis_names
from tuner.stack import Stack
from tuner.steps.reduced import Reduced
from tuner.steps.reductions import Crop, Reduction, Scale

#: Bytes of flats or darks that are held at once.
_SLAB_NBYTES = 32 << 20

#: A dataset with an item for each frame has so many numbers in each at most; more is another detector's.
_MOST_PER_FRAME = 16

#: Times that add up where frames are summed.
_TIME = re.compile(
    r"(count|exposure|frame|real|live|elapsed|elapsed_real|elapsed_live|acquire|acquisition|integration|dwell)_?(time|period)",
    re.IGNORECASE,
)

#: When a frame began.
_STAMP = re.compile(r".*time_?stamp", re.IGNORECASE)

#: Of the angle that the sample turned by in each frame.
_INCREMENT = re.compile(r".*_(increment|increment_set|range_average)", re.IGNORECASE)

#: Numbers of a pixel that are known to be so everywhere on it, so that their mean is that of several.
_PER_PIXEL = re.compile(r".*(flat_?field|_offset|gain|efficiency|sensitivity|solid_angle|weight).*", re.IGNORECASE)

#: Metres of a unit.
_METRES = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "micron": 1e-6, "microns": 1e-6}

_PIXELS = ("", "pixel", "pixels", "px")

_SATURATION = ("saturation_value", "count_cutoff", "countrate_correction_count_cutoff")

#: What a number becomes, and in words what was done to it; None where it stays.
_Change = tuple[Any, str] | None


class Metadata:
    """What becomes of the datasets beside a stack that is reduced.

    Parameters
    ----------
    file : h5py.File
        That holds the stack.
    view : Stack
        The stack as reduced.
    """

    def __init__(self, file: h5py.File, view: Stack) -> None:
        source = view.source
        assert isinstance(source, Reduced)
        assert source.original.dataset is not None
        self.left: list[str] = []
        """Datasets that look as if they were of the frames as they were, and stay as they are."""
        self._view, self._original, self._chain, self._starts = view, source.original, source.chain, source.starts
        self._crop, self._bin = self._chain.find(Crop), self._chain.binned
        path = source.original.dataset
        self._own = path.rpartition("/")[0] or "/"
        entry = peek(file, path.split("/")[1])
        self._entry = f"/{path.split('/')[1]}/" if isinstance(entry, h5py.Group) else "/"
        self._detectors = [group.name for group in detector_groups(file, path)]
        names, _ = axis_names(file, path, len(file[path].shape))
        self._axes = {name: axis for axis, name in enumerate(names[-view.frame_ndim :])}
        self._beside = {beside.dataset: beside for beside in (view.flats, view.darks) if beside is not None}
        self._numbers: dict[str, Callable[[Any, h5py.Dataset], Any]] = {
            "x_pixel_size": lambda value, _: value * self._bin,
            "y_pixel_size": lambda value, _: value * self._bin,
            "fast_pixel_direction": lambda value, _: value * self._bin,
            "slow_pixel_direction": lambda value, _: value * self._bin,
            "beam_center_x": lambda value, node: self._centre(value, node, "x"),
            "beam_center_y": lambda value, node: self._centre(value, node, "y"),
            "x_pixels_in_detector": lambda *_: view.frame_shape[-1],
            "y_pixels_in_detector": lambda *_: (1, *view.frame_shape)[-2],
            "saturation_value": lambda value, _: value if view.saturation is None else view.saturation,
            "underload_value": lambda value, _: value if view.underload is None else view.underload,
            "count_cutoff": lambda value, _: self._cutoff(value),
            "countrate_correction_count_cutoff": lambda value, _: self._cutoff(value),
            "bit_depth_image": lambda *_: 8 * view.dtype.itemsize,
            "nimages": lambda value, _: max(1, round(value * len(view) / len(self._original))),
        }

    def rewrite(self, group: h5py.Group, name: str, node: h5py.Dataset) -> h5py.Dataset | None:
        """Make what becomes of a dataset in a group; None where it stays as it is, for the caller to copy."""
        if (stack := self._beside.get(node.name)) is not None:
            return self._frames(group, name, stack)
        change = self._change(name, node)
        if change is None:
            return None
        values, how = change
        if node.dtype.kind in "biuf":
            values = _as(values, node.dtype)
        large = {"chunks": True, "compression": "gzip", "shuffle": True} if np.size(values) > 1 << 14 else {}
        new = group.create_dataset(name, data=values, dtype=None if node.dtype.kind in "biuf" else node.dtype, **large)
        new.attrs["tuner_reduced"] = how
        return new

    def value(self, node: h5py.Dataset) -> Any:
        """What a dataset holds, as it becomes."""
        change = self._change(node.name.rpartition("/")[2], node)
        return node[()] if change is None else change[0]

    def _change(self, name: str, node: h5py.Dataset) -> _Change:
        if node.shape is None or not node.name.startswith(self._entry):
            return None
        change = self._pixels(name, node) or self._number(name, node) or self._per_frame(name, node)
        if change is None and self._looks_old(node):
            self.left.append(node.name)
        return change

    def _frames(self, group: h5py.Group, name: str, stack: Stack) -> h5py.Dataset:
        """Flats or darks, reduced as the data are."""
        new = group.create_dataset(
            name, stack.shape, stack.dtype, chunks=(*(1,) * len(stack.lead_shape), *stack.frame_shape), shuffle=True,
            compression="gzip", compression_opts=1,
        )  # fmt: skip
        new.attrs["tuner_reduced"] = "as the data"
        step = max(1, _SLAB_NBYTES // stack.frame_nbytes) if stack.lead_shape else 1
        for start in range(0, len(stack), step):
            frames = stack.read(start, min(start + step, len(stack)))
            if len(stack.lead_shape) == 1:
                new[start : start + len(frames)] = frames
            else:
                for i, frame in enumerate(frames):
                    new[np.unravel_index(start + i, stack.lead_shape)] = frame
        return new

    def _of_detector(self, node: h5py.Dataset) -> bool:
        parent = node.name.rpartition("/")[0] or "/"
        below = (name for name in self._detectors if name != self._own)
        return parent in self._detectors or any(node.name.startswith(f"{name}/") for name in below)

    # Pixels

    def _pixels(self, name: str, node: h5py.Dataset) -> _Change:
        """Masks, and numbers of each pixel, row or column."""
        if self._chain.before.frame_shape == self._chain.after.frame_shape or not self._of_detector(node):
            return None
        ndim = self._view.frame_ndim
        before = self._chain.before.frame_shape
        if node.shape[-ndim:] == before and math.prod(node.shape[:-ndim]) <= 1 and node.dtype.kind in "biuf":
            axes = tuple(range(len(node.shape) - ndim, len(node.shape)))
            if "mask" in name.lower() and node.dtype.kind in "biu":
                return self._blocks(node[()], axes, np.bitwise_or), "bits of any of the pixels"
            if _PER_PIXEL.fullmatch(name) or node.dtype.kind == "f":
                return self._blocks(node[()].astype(np.float64), axes), "mean of the pixels"
        if node.ndim == 1 and node.dtype.kind in "iuf":
            axis = self._axes.get(name) if node.name.rpartition("/")[0] == self._own else None
            if axis is None and name in ("x_pixel_offset", "y_pixel_offset"):
                axis = ndim - 1 if name[0] == "x" else 0
            if axis is not None and node.shape[0] == before[axis]:
                return self._blocks(node[()].astype(np.float64), (0,), first=axis), "mean of the pixels"
        return None

    def _blocks(
        self, values: NDArray[Any], axes: tuple[int, ...], join: np.ufunc | None = None, first: int = 0
    ) -> NDArray[Any]:
        """Bins of some axes joined to their mean, or by a function, and what a crop keeps of them."""
        n, ndim = self._bin, self._view.frame_ndim
        for axis, place in zip(axes, range(first, first + len(axes)), strict=True):
            values = np.moveaxis(values, axis, 0)
            count = len(values) // n
            parts = values[: count * n].reshape(count, n, *values.shape[1:])
            values = parts.mean(axis=1) if join is None else join.reduce(parts, axis=1)
            if self._crop is not None:
                values = values[self._crop.places(ndim)[place]]
            values = np.moveaxis(values, 0, axis)
        return values

    # Numbers of the detector and of the scan

    def _number(self, name: str, node: h5py.Dataset) -> _Change:
        if node.size != 1 or node.dtype.kind not in "iuf":
            return self._module(name, node)
        each = self._chain.each
        value = node[()].reshape(-1)[0]
        if self._of_detector(node) and name in self._numbers:
            new = self._numbers[name](value, node)
            return None if new == value else (np.full(node.shape, new), f"was {value}")
        if each > 1 and self._of_detector(node) and _TIME.fullmatch(name):
            return np.full(node.shape, value * each), f"was {value}"
        if each > 1 and _INCREMENT.fullmatch(name):
            return np.full(node.shape, value * each), f"was {value}"
        return None

    def _module(self, name: str, node: h5py.Dataset) -> _Change:
        """Origin or size of a module, rows before columns, as the last two of what may be more axes."""
        if name not in ("data_origin", "data_size") or nx_class(node.parent) != "NXdetector_module":
            return None
        other = peek(node.parent, "data_size" if name == "data_origin" else "data_origin")
        ndim = self._view.frame_ndim
        if node.ndim != 1 or node.size < ndim or not isinstance(other, h5py.Dataset) or other.shape != node.shape:
            return None
        values, others = node[()], other[()]
        origin, size = (values, others) if name == "data_origin" else (others, values)
        places = (0, 0) if self._crop is None else (self._crop.top, self._crop.left)
        shift, extent = np.array(places[-ndim:]), np.array(self._view.frame_shape)
        low = np.clip(origin[-ndim:] // self._bin - shift, 0, extent)
        high = np.clip((origin[-ndim:] + size[-ndim:]) // self._bin - shift, 0, extent)
        new = values.copy()
        new[-ndim:] = low if name == "data_origin" else high - low
        return None if (new == values).all() else (new, f"was {values.tolist()}")

    def _centre(self, value: float, node: h5py.Dataset, letter: str) -> float:
        """Where the beam is: in pixels counted from the edge of the first one, or in the unit that the field has."""
        shift = 0 if self._crop is None else self._crop.left if letter == "x" else self._crop.top
        units = (as_text(node.attrs.get("units")) or "").strip().lower()
        if units in _PIXELS:
            return value / self._bin - shift
        if not shift:
            return value
        size = peek(node.parent, f"{letter}_pixel_size")
        unit = (as_text(size.attrs.get("units")) or "m").strip().lower() if isinstance(size, h5py.Dataset) else ""
        if unit not in _METRES or units not in _METRES:
            self.left.append(node.name)
            return value
        pixel = float(np.ravel(size[()])[0]) * _METRES[unit] / _METRES[units]
        return value - shift * self._bin * pixel

    def _cutoff(self, value: float) -> float:
        """The last count that is trusted."""
        return value if self._view.saturation is None else math.ceil(self._view.saturation) - 1

    # Numbers of each frame

    def _per_frame(self, name: str, node: h5py.Dataset) -> _Change:
        each = self._chain.each
        if not self._renumbers or not self._is_per_frame(node):
            return None
        many = math.prod(node.shape[1:]) > _MOST_PER_FRAME
        if many and not _is_nd_attribute(node):
            return None
        values = node[()]
        if each == 1:
            return values[self._starts], "of the frames that are left"
        groups = values[self._starts[:, None] + np.arange(each)]
        of = f"of {each} frames"
        if node.dtype.kind in "iuf" and not many:
            if _TIME.fullmatch(name) or _INCREMENT.fullmatch(name) or nx_class(node.parent) == "NXmonitor":
                return groups.sum(axis=1, dtype=np.float64 if node.dtype.kind == "f" else None), f"sum {of}"
            if name.endswith("_end"):
                return groups[:, -1], f"last {of}"
            if node.dtype.kind == "f" and f"{name}_end" not in node.parent and not _STAMP.fullmatch(name):
                return groups.mean(axis=1, dtype=np.float64), f"mean {of}"
        return groups[:, 0], f"first {of}"

    @property
    def _renumbers(self) -> bool:
        return len(self._view) != len(self._original)

    def _is_per_frame(self, node: h5py.Dataset) -> bool:
        if not node.ndim or node.dtype.kind not in "biufSO":
            return False
        count = len(self._original)
        # Older IOCs made room in their attributes for all frames that were asked for, which an aborted scan leaves.
        return node.shape[0] == count or (_is_nd_attribute(node) and node.shape[0] > count)

    def _looks_old(self, node: h5py.Dataset) -> bool:
        """Whether a dataset that stays has the shape of frames as they were, or numbers them so."""
        before, ndim = self._chain.before.frame_shape, self._view.frame_ndim
        pixels = before != self._view.frame_shape and node.shape[-ndim:] == before
        return node.dtype.kind in "biuf" and (
            pixels or (self._renumbers and node.ndim > 1 and self._is_per_frame(node))
        )


def _is_nd_attribute(node: h5py.Dataset) -> bool:
    """Whether areaDetector wrote it, an item for each frame: a number, or in older files 256 bytes of a text."""
    return "NDAttrName" in node.attrs


def _as(values: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values in a dtype, or where they do not fit into its integers in the next that holds them."""
    array = np.asarray(values)
    if dtype.kind in "iu" and array.size:
        if array.dtype.kind == "f" and not (array == np.rint(array)).all():
            return array
        low, high = array.min(), array.max()
        kinds = [dtype, *(np.dtype(name) for name in ("uint32", "int64", "uint64"))]
        dtype = next((d for d in kinds if np.iinfo(d).min <= low and high <= np.iinfo(d).max), np.dtype("float64"))
    return array.astype(dtype)


def reduced_fill(view: Stack) -> Any:
    """What chunks of a reduced stack that are never written read as: what does not count, if a value says so."""
    source = view.source
    assert isinstance(source, Reduced)
    return source.chain.after.filler


def note_scale(dataset: h5py.Dataset, reductions: Sequence[Reduction]) -> None:
    """Say beside a dataset what its numbers were before they were scaled, if they were."""
    name = dataset.name.rpartition("/")[2]
    for reduction in reductions:
        if isinstance(reduction, Scale):
            dataset.parent[f"{name}_offset"] = reduction.offset
            dataset.parent[f"{name}_scaling_factor"] = reduction.factor


def note(dataset: h5py.Dataset, view: Stack) -> None:
    """Say which frames those of a reduced stack are, what its numbers were, and from where on they saturate.

    In the detector's group, else beside the stack: `frame_numbers`, counted from 0, of the first frame that each is
    made of; `frames_audited`, those of them that triage keeps without peaks; `saturation_value` and `underload_value`
    where nothing says them yet. Beside it ``<name>_offset`` and ``<name>_scaling_factor``, as NXdata has them.
    """
    source = view.source
    assert isinstance(source, Reduced)
    groups = detector_groups(dataset.file, dataset.name)
    place = next((one for one in groups if nx_class(one) == "NXdetector"), dataset.parent)
    each = source.chain.each
    if len(view) != len(source.original):
        if "frame_numbers" in place:
            del place["frame_numbers"]
        numbers = place.create_dataset("frame_numbers", data=source.starts)
        numbers.attrs["long_name"] = "number of the first frame that each is made of, counted from 0"
        numbers.attrs["frames_each"] = each
        numbers.attrs["frames_left_out"] = len(source.original) - each * len(view)
    if source.audited.any():
        place["frames_audited"] = source.starts[source.audited]
        place["frames_audited"].attrs["long_name"] = "numbers of frames without peaks that are kept for audit"
    note_scale(dataset, source.chain.reductions)
    for names, value in ((_SATURATION, view.saturation), (("underload_value",), view.underload)):
        if value is not None and not any(isinstance(peek(one, n), h5py.Dataset) for one in groups for n in names):
            place[names[0]] = value
