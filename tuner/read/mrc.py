"""MRC, the format of electron microscopes, mapped into memory and never read as a whole.

Cheng et al. 2015, J. Struct. Biol. 192, 146, https://www.ccpem.ac.uk/mrc_format/mrc2014.php; what IMOD adds to it:
https://bio3d.colorado.edu/imod/doc/mrc_format.txt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from tuner.errors import InputError
from tuner.read.axes import check_array, check_axes
from tuner.read.npy import Mapped
from tuner.read.series import head_of
from tuner.stack import Stack, Storage, convention

_HEADER_NBYTES = 1024

_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}

#: IMOD signs its files at byte 152; then the first flag behind says whether bytes are signed.
_IMOD = 1146047817


def open_mrc(path: Path, axes: Sequence[str] | None = None) -> Stack:
    """Open an ``.mrc`` file of either byte order as a stack of its sections, shape (sections, rows, columns).

    Rows are in the order of the file, which is from the bottom up by convention.

    Raises
    ------
    InputError
        No such file, not of that format, cut, of complex numbers or half bytes.
    """
    path = Path(path)
    header = head_of(path, _HEADER_NBYTES)
    if len(header) < _HEADER_NBYTES:
        raise InputError(f"{path}: is cut: must have a header of {_HEADER_NBYTES} bytes, got {len(header)}")
    order: Literal["<", ">"] = "<" if 0 <= int.from_bytes(header[12:16], "little", signed=True) < 1 << 16 else ">"
    words = np.frombuffer(header, f"{order}i4")
    columns, rows, sections, mode = (int(word) for word in words[:4])
    extended = int(words[23])
    if mode not in _MODES:
        raise InputError(f"{path}: mode must be one of {', '.join(map(str, _MODES))}, got {mode}")
    if min(columns, rows, sections) < 1 or extended < 0:
        raise InputError(f"{path}: is damaged: its header says {sections} x {rows} x {columns} pixels")
    unsigned_bytes = mode == 0 and words[38] == _IMOD and not words[39] & 1
    stored = np.dtype("u1" if unsigned_bytes else _MODES[mode]).newbyteorder(order)
    shape = (sections, rows, columns)
    dtype = check_array(shape, stored, str(path))
    start, nbytes = _HEADER_NBYTES + extended, sections * rows * columns * dtype.itemsize
    if (size := path.stat().st_size) < start + nbytes:
        raise InputError(f"{path}: is cut: must have {start + nbytes} bytes for {sections} sections, got {size}")
    return Stack(
        name=str(path),
        shape=shape,
        frame_ndim=2,
        dtype=dtype,
        source=Mapped(partial(np.memmap, path, stored, "r", start, shape), dtype, 2),
        axes=check_axes(axes, shape, str(path)) if axes else (),
        invalid=convention(dtype),
        storage=Storage(nbytes),
    )
