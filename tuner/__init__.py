"""Finds the Blosc2 configuration for the frames of your detector, proves it, and writes HDF5 with it.

>>> import tuner
>>> sorted(tuner.__all__)[:3]
['Config', 'Goal', 'Profile']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.apply.opening import open_writer
    from tuner.config import Config
    from tuner.goal import Goal
    from tuner.profile import Profile, load_profile
    from tuner.read import open_stacks
    from tuner.read.sampling import draw_sample
    from tuner.search.find import find_profile
    from tuner.space import Space, load_space

__version__ = "0.1.0"

#: Where each public name lives; imported when it is first asked for, so that a writer loads no more than it needs.
_HOMES = {
    "Config": "tuner.config",
    "Goal": "tuner.goal",
    "Profile": "tuner.profile",
    "Space": "tuner.space",
    "draw_sample": "tuner.read.sampling",
    "find_profile": "tuner.search.find",
    "load_profile": "tuner.profile",
    "load_space": "tuner.space",
    "open_stacks": "tuner.read",
    "open_writer": "tuner.apply.opening",
}

__all__ = [
    "Config",
    "Goal",
    "Profile",
    "Space",
    "draw_sample",
    "find_profile",
    "load_profile",
    "load_space",
    "open_stacks",
    "open_writer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tuner' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
