"""Roundings in proportion to the noise of each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tuner.document import Interval, Number
from tuner.errors import InputError
from tuner.noise import Noise
from tuner.steps.bins import deviation, round_to_noise
from tuner.steps.octave import round_to_octaves
from tuner.steps.pointwise import check_parameters
from tuner.steps.uniform import spacing


@dataclass(frozen=True, slots=True)
class Sigma:
    """Round to levels that lie `width` standard deviations of the noise apart.

    Law: twice is once; no pixel moves by more than ``width / 2`` sigma (and a float's spacing); and no mean of many
    pixels by more than a hundredth of sigma, be it of counts of 0.05 or of 100,000. Square-root quantisation (Bernstein
    et al., PASP 122, 336, 2010; Jungfraujoch's Poisson compression), with bins chosen so that means stay.

    >>> Sigma(1.0).round_values(np.array([0, 5, 100, 105, 1000], "uint16"), Noise(1, 0, 0, "photon counter")).tolist()
    [0, 5, 103, 103, 985]
    """

    width: float
    """Of the levels, in sigma; wider than 1.95 is taken as that."""
    grid: float = 1.0
    """Of which the values are multiples, data units; 0 for floats that are of none."""

    name: ClassVar[str] = "sigma"
    valid: ClassVar[Mapping[str, Number | Interval]] = {"width": Number(above=0.0), "grid": Number(least=0.0)}

    def __post_init__(self) -> None:
        check_parameters(self)

    def check(self, dtype: np.dtype[Any], noise: Noise | None) -> None:
        """Raise InputError where pixels of a dtype cannot be rounded so."""
        if noise is None:
            raise InputError(f"step {self.name} must have a noise model")
        if dtype.kind != "f" and self.grid != int(self.grid):
            raise InputError(f"grid must be a whole number for {dtype}, got {self.grid:g}")

    def bound(self, values: NDArray[Any], noise: Noise | None) -> NDArray[np.float64]:
        """The most that each value can move by, data units."""
        assert noise is not None
        half = self.width / 2 * deviation(values, noise, self._grid(values.dtype))
        # What a value is decoded to may be larger than itself, and so may the spacing there.
        return half + spacing(values) + half * float(np.finfo(values.dtype).eps) if values.dtype.kind == "f" else half

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype."""
        assert noise is not None
        return round_to_noise(values, noise, self._grid(values.dtype), self.width)

    def _grid(self, dtype: np.dtype[Any]) -> float:
        return self.grid if dtype.kind == "f" else max(1.0, self.grid)


@dataclass(frozen=True, slots=True)
class Octave(Sigma):
    """Round to the largest power of two that is at most `width` standard deviations of the noise.

    The laws of `Sigma`, with up to twice as many levels. But all low bits are empty, where codecs find them: files are
    mostly smaller. The powers are of `grid`, and each begins where means allow (docs/decisions/0016-octaves.md).

    >>> Octave(1.0).round_values(np.array([0, 5, 100, 105, 1000], "uint16"), Noise(1, 0, 0, "photon counter")).tolist()
    [0, 5, 96, 104, 992]
    """

    name: ClassVar[str] = "octave"

    def round_values(self, values: NDArray[Any], noise: Noise | None) -> NDArray[Any]:
        """Rounded values, same shape and dtype."""
        assert noise is not None
        return round_to_octaves(values, noise, self._grid(values.dtype), self.width)
