"""Files of one series, each of one or more frames, joined as one source; one file is open at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tuner.errors import InputError
from tuner.read.axes import check_array, check_axes
from tuner.stack import Stack, Storage, convention


def head_of(path: Path, nbytes: int) -> bytes:
    """The first bytes of a file, fewer where it is shorter.

    Raises
    ------
    InputError
        Where there is none, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(nbytes)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except PermissionError:
        raise InputError(f"{path}: no permission to read it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


class OpenFile(Protocol):
    """A file of a series while it is open."""

    def __len__(self) -> int:
        """Frames in the file."""
        ...

    def frame(self, index: int) -> NDArray[Any]:
        """One frame, of any shape, dtype and byte order."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class Series:
    """The frames of several files, in their order.

    Every frame that is read is checked to have the shape and dtype of the first.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        counts: Sequence[int],
        open_file: Callable[[Path], OpenFile],
        frame_shape: tuple[int, ...],
        dtype: np.dtype[Any],
        stored: NDArray[np.int64],
    ) -> None:
        self._paths = tuple(paths)
        self._stops = np.cumsum(counts)
        self._counts = tuple(counts)
        self._open_file = open_file
        self._frame_shape = frame_shape
        self._dtype = dtype
        self._stored = stored
        self._index = -1
        self._file: OpenFile | None = None

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Frames `start` to `stop`, shape (stop - start, *frame_shape), native byte order.

        Raises
        ------
        InputError
            Naming the file that cannot be read, or whose frames differ from the first.
        """
        out = np.empty((stop - start, *self._frame_shape), self._dtype)
        for number in range(start, stop):
            index = int(np.searchsorted(self._stops, number, side="right"))
            path = self._paths[index]
            with only_input_errors(path):
                file = self._opened(index)
                frame = file.frame(number - int(self._stops[index]) + self._counts[index])
                check_same(path, frame.shape, frame.dtype, self._frame_shape, self._dtype, self._paths[0])
            out[number - start] = frame
        return out

    def stored_bytes(self) -> NDArray[np.int64]:
        """Bytes that each frame takes in its file, shape (frames,)."""
        return self._stored

    def close(self) -> None:
        """Let go of the file that was read last."""
        if self._file is not None:
            self._file.close()
        self._file, self._index = None, -1

    def _opened(self, index: int) -> OpenFile:
        if self._file is None or index != self._index:
            self.close()
            path, count = self._paths[index], self._counts[index]
            file = self._open_file(path)
            if len(file) != count:
                file.close()
                raise InputError(f"{path}: must have {count} frames, got {len(file)}")
            self._file, self._index = file, index
        return self._file


def join_series(
    paths: Sequence[Path],
    counts: Sequence[int],
    open_file: Callable[[Path], OpenFile],
    first: NDArray[Any],
    stored: NDArray[np.int64],
    filters: tuple[str, ...],
    axes: Sequence[str] | None,
    **facts: Any,
) -> Stack:
    """The files as a stack of images of shape (frames, rows, columns), like the frame `first` in shape and dtype.

    `facts` are what the files say about their detector, as fields of `Stack`.
    """
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    if first.ndim != 2:
        raise InputError(f"{paths[0]}: frames must be images of rows and columns, got shape {first.shape}")
    shape = (sum(counts), *first.shape)
    dtype = check_array(shape, first.dtype, str(paths[0]))
    return Stack(
        name=name,
        shape=shape,
        frame_ndim=2,
        dtype=dtype,
        source=Series(paths, counts, open_file, first.shape, dtype, stored),
        axes=check_axes(axes, shape, name) if axes else (),
        invalid=convention(dtype),
        storage=Storage(int(stored.sum()), (1, *first.shape), filters),
        **facts,
    )


def check_same(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    first_shape: tuple[int, ...],
    first_dtype: np.dtype[Any],
    first_path: Path,
) -> None:
    """Raise InputError where a frame does not have the first one's shape and dtype; byte order does not count."""
    if shape != first_shape or dtype.newbyteorder("=") != first_dtype.newbyteorder("="):
        raise InputError(
            f"{path}: frames must be as those of {first_path.name}, {first_dtype.newbyteorder('=')}{first_shape},"
            f" got {dtype.newbyteorder('=')}{shape}"
        )


@contextmanager
def only_input_errors(path: Path) -> Iterator[None]:
    """Turn whatever a library raises about a file, or logs as an error and goes on, into one InputError.

    Libraries for files of many makers raise everything from AttributeError to zlib.error where one is cut.
    """
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    loggers = [logging.getLogger(name) for name in ("tifffile", "fabio")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except PermissionError:
        raise InputError(f"{path}: no permission to read it") from None
    except Exception as error:
        raise InputError(f"{path}: is cut, damaged or of an unknown format: {one_line(error)}") from None
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate
    if records:
        raise InputError(f"{path}: is cut or damaged: {one_line(records[0].getMessage())}")


def one_line(message: object) -> str:
    """A message on one line of moderate length.

    >>> one_line(ValueError("two\\n  lines"))
    'two lines'
    """
    text = " ".join(str(message).split()) or type(message).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
