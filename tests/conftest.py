"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

#: A program that tests run, not one of them.
collect_ignore = ["stand_in_codecs.py"]


@pytest.fixture
def real_data() -> Path:
    """The folder of frames from real instruments; the test is skipped where there is none."""
    folder = os.environ.get("TUNER_REAL_DATA")
    if not folder:
        pytest.skip("real data: set TUNER_REAL_DATA to the folder that holds it")
    return Path(folder)
