"""What `tuner verify` found, as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tuner.profile import Profile


def format_verified(profile: Profile, verified: Mapping[str, Any]) -> str:
    """What holds of a profile on an original, and what that is unlike."""
    kept = "bit for bit"
    if profile.config.steps:
        kept = (
            "within the limits on quality in each" if profile.limits else "rounded, with no limit on quality to hold to"
        )
    lines = [
        f"verified: {verified['path']}: {verified['frames']} frames, {verified['nbytes'] / 1e6:,.1f} MB,"
        f" come back {kept}; ratio {verified['ratio']:.2f}{format_reduced(verified)}"
    ]
    for held in verified["requirements"]:
        how = "met" if held["met"] else "missed"
        lines.append(f"  {how}: {held['requirement']} (here {held['limit']:.4g}), got {held['got']:.4g}")
    for name, (value, low, high) in verified["outside"].items():
        usual = f"at least {low:.4g}" if high is None else f"{low:.4g} to {high:.4g}"
        lines.append(f"  unlike what the profile was measured on: {name} is {value:.4g}, it is for {usual}")
    return "\n".join(lines)


def format_written(profile: Profile, verified: Mapping[str, Any]) -> str:
    """That a written file holds what it should, and who read it."""
    made = " as the profile's steps made them" if profile.config.steps else ""
    made += " of the originals as reduced" if profile.reduce else ""
    reader = ", ".join(f"{name} {version}" for name, version in verified["versions"].items())
    return (
        f"verified: {verified['path']}: {verified['dataset']}, {verified['frames']} frames,"
        f" {verified['nbytes'] / 1e6:,.1f} MB, read bit for bit{made} by a process with only {reader}"
    )


def format_reduced(done: Mapping[str, Any]) -> str:
    """What a reduction adds to a ratio."""
    times, ratio = done["reduction"], done["ratio"] or math.inf
    return "" if times == 1 else f", of frames reduced {times:.2f} times: {times * ratio:.2f} in all"
