"""Finds the Blosc2 configuration for the frames of your detector, proves it, and writes HDF5 with it."""

from __future__ import annotations

__version__ = "0.1.0"
