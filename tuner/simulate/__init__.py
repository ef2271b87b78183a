"""Physically plausible frames of several techniques, for a first look and for learning.

>>> simulation = simulate("saxs", frames=3, seed=1, shape=(200, 180))
>>> simulation.shape, [axis.path for axis in simulation.axes]
((3, 200, 180), ['time', 'y', 'x'])
>>> next(iter(simulation)).dtype
dtype('int32')

A technique's parameters are a dataclass, for data that the defaults do not give:

>>> Tomography(shape=(64, 64), bits=12, flux=500.0).simulate(frames=16, seed=1).dtype
dtype('uint16')
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tuner.document import Interval, OneOf
from tuner.simulate.jungfrau import Jungfrau
from tuner.simulate.mx import Mx
from tuner.simulate.nexus import write_nexus
from tuner.simulate.saxs import Saxs
from tuner.simulate.simulation import Field, Simulation, Technique
from tuner.simulate.tomography import Tomography
from tuner.simulate.xpcs import Xpcs
from tuner.simulate.xrf import Xrf

__all__ = [
    "TECHNIQUES",
    "Field",
    "Jungfrau",
    "Mx",
    "Saxs",
    "Simulation",
    "Technique",
    "Tomography",
    "Xpcs",
    "Xrf",
    "simulate",
    "write_nexus",
]

#: The techniques by name.
TECHNIQUES: Mapping[str, Callable[..., Technique]] = {
    "tomography": Tomography,
    "mx": Mx,
    "saxs": Saxs,
    "xrf": Xrf,
    "jungfrau": Jungfrau,
    "xpcs": Xpcs,
}


def simulate(technique: str, frames: int, seed: int, shape: tuple[int, int] | None = None) -> Simulation:
    """Exposures of a technique with its default parameters; the same for the same arguments.

    Parameters
    ----------
    technique : str
        One of `TECHNIQUES`.
    frames : int
        Exposures, those without sample or light included; points of the map for xrf.
    seed : int
        Decides sample, detector flaws and noise.
    shape : tuple of int, optional
        Rows and columns of a frame, detector elements and channels for xrf; the technique's own where None.

    Raises
    ------
    InputError
        Where an argument is out of range.

    Examples
    --------
    >>> simulate("tomograpy", frames=8, seed=0)
    Traceback (most recent call last):
    tuner.errors.InputError: technique must be one of tomography mx saxs xrf jungfrau xpcs, got 'tomograpy' \
(did you mean 'tomography'?)
    """
    OneOf(tuple(TECHNIQUES)).check(technique, "technique")
    Interval(1).check(frames, "frames")
    Interval(0).check(seed, "seed")
    parameters = TECHNIQUES[technique]() if shape is None else TECHNIQUES[technique](shape=shape)
    return parameters.simulate(frames, seed)
