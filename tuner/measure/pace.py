"""How fast frames come: what a detector asks of a writer."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuner.errors import InputError

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(Hz|kHz)", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)")
_DETECTOR = re.compile(r"(\d+)x(\d+):(\w+)@(.+)")
#: A writer must be so much faster than the detector, as it has to catch up after each pause of the disk (decision 28).
_HEADROOM = 1.25
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Detector:
    """Frames of one shape and dtype at a steady pace."""

    frame_shape: tuple[int, int]
    """(H, W)."""
    dtype: np.dtype[Any]
    """Of a pixel."""
    rate: float
    """Frames per second."""

    @classmethod
    def parse(cls, text: str, place: str = "--detector") -> Detector:
        """Read ``WxH:dtype@rate``.

        >>> detector = Detector.parse("2068x2162:uint16@500Hz")
        >>> detector.frame_shape, f"{detector.mb_s:.0f} MB/s"
        ((2162, 2068), '4471 MB/s')

        Raises
        ------
        InputError
            Where the text does not read so.
        """
        match = _DETECTOR.fullmatch(text.strip())
        if match is None or not (int(match[1]) and int(match[2])):
            raise InputError(f"{place} must be like 2048x2048:uint16@500Hz, got {text!r}")
        try:
            dtype = np.dtype(match[3])
        except TypeError:
            raise InputError(f"{place} must name a dtype of numpy's, got {match[3]!r}") from None
        if dtype.kind not in "buif":
            raise InputError(f"{place} must name a dtype of pixels, got {match[3]!r}")
        return cls((int(match[2]), int(match[1])), dtype, parse_rate(match[4], place))

    @property
    def mb_s(self) -> float:
        """MB (10^6 bytes) of pixels per second."""
        return math.prod(self.frame_shape) * self.dtype.itemsize * self.rate / 1e6

    @property
    def needed_mb_s(self) -> float:
        """The `write_mb_s` that keeps up with it: a quarter more than its pace, as disks pause."""
        return _HEADROOM * self.mb_s


def parse_rate(text: str, place: str = "--rate") -> float:
    """Frames per second of ``500Hz`` or ``1.5kHz``.

    >>> parse_rate("1.5kHz")
    1500.0
    """
    match = _RATE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise InputError(f"{place} must be a rate such as 500Hz or 1.5kHz, got {text!r}")
    return float(match[1]) * (1000.0 if match[2].lower() == "khz" else 1.0)


def parse_duration(text: str, place: str = "--for") -> float:
    """Seconds of ``30s``, ``10m`` or ``1h``.

    >>> parse_duration("10m")
    600.0
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise InputError(f"{place} must be a time such as 30s or 10m, got {text!r}")
    return float(match[1]) * _SECONDS[match[2]]
