"""NumPy's own file format, mapped into memory and never read as a whole."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.read.axes import check_array, check_axes, frame_ndim
from tuner.read.series import one_line
from tuner.stack import Stack, Storage, convention


def open_npy(path: Path, axes: Sequence[str] | None = None) -> Stack:
    """Open a ``.npy`` file, in C or Fortran order and either byte order; never unpickles.

    Raises
    ------
    InputError
        No such file, not of that format, cut, or of a dtype or shape that is no stack.
    """
    path = Path(path)
    array = _mapped(path)
    dtype = check_array(array.shape, array.dtype, str(path))
    names = check_axes(axes, array.shape, str(path)) if axes else ()
    return Stack(
        name=str(path),
        shape=array.shape,
        frame_ndim=frame_ndim(array.shape, names),
        dtype=dtype,
        source=Mapped(partial(_mapped, path), dtype, frame_ndim(array.shape, names)),
        axes=names,
        invalid=convention(dtype),
        storage=Storage(array.nbytes),
    )


class Mapped:
    """Frames of an array in mapped memory; `mapped` maps it, now and once more where that was let go of."""

    def __init__(self, mapped: Callable[[], NDArray[Any]], dtype: np.dtype[Any], ndim: int) -> None:
        array = mapped()
        self._mapped = mapped
        self._array: Any = array
        self._dtype = dtype
        self._lead, self._frame_shape = array.shape[: array.ndim - ndim], array.shape[array.ndim - ndim :]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Frames `start` to `stop`, shape (stop - start, *frame_shape), native and C-contiguous."""
        if self._array is None:
            self._array = self._mapped()
        out = np.empty((stop - start, *self._frame_shape), self._dtype)
        for number in range(start, stop):
            out[number - start] = self._array[np.unravel_index(number, self._lead)] if self._lead else self._array
        # Else what was read would count as this process's memory until the machine is short of it.
        self._array._mmap.madvise(mmap.MADV_DONTNEED)
        return out

    def stored_bytes(self) -> None:
        """Nothing: every frame takes the same."""

    def close(self) -> None:
        """Let go of the mapped memory."""
        self._array = None


def _mapped(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except PermissionError:
        raise InputError(f"{path}: no permission to read it") from None
    except (ValueError, EOFError, OSError) as error:
        if "object" in str(error).lower() and "pickle" not in path.name:
            raise InputError(f"{path}: must hold numbers, got Python objects") from None
        raise InputError(f"{path}: is cut, damaged or not of NumPy's format: {one_line(error)}") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(f"{path}: must hold one array, got an archive of several")
    return array
