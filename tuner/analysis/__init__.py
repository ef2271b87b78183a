"""Analyses: what a scientist does with the data, as limits on what lossy steps may change of its result.

Here is what they are told and what they answer; `tuner.measure.analyses` runs them. Loading one executes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from tuner.analysis.kinds import G2, OWN, Contrast, Own, Peaks, RadialProfile, Reconstruction, Spectrum
from tuner.analysis.parameters import Analysis, Figure
from tuner.document import check_mapping, check_str, join, suggest
from tuner.errors import InputError

__all__ = [
    "ANALYSES",
    "G2",
    "OWN",
    "Analysis",
    "Contrast",
    "Figure",
    "Own",
    "Peaks",
    "RadialProfile",
    "Reconstruction",
    "Spectrum",
    "analysis_from_dict",
    "analysis_to_dict",
]

_NAME = re.compile(r"[a-z]\w*")

#: Every analysis that is not the user's own by its kind.
ANALYSES: Mapping[str, type[Any]] = {
    kind.kind: kind for kind in (RadialProfile, Peaks, Reconstruction, Spectrum, G2, Contrast)
}


def analysis_to_dict(analysis: Any) -> dict[str, Any]:
    """What stands under an analysis's name in a document: its kind and the parameters that are not the default.

    >>> analysis_to_dict(RadialProfile(centre=(500, 480)))
    {'analysis': 'radial_profile', 'centre': [500.0, 480.0]}
    """
    kind = analysis.run if isinstance(analysis, Own) else analysis.kind
    given = {f.name: getattr(analysis, f.name) for f in fields(analysis) if f.name in analysis.valid}
    defaults = {f.name: f.default for f in fields(analysis)}
    stated = {key: list(v) if isinstance(v, tuple) else v for key, v in given.items() if v != defaults[key]}
    return {"analysis": kind, **stated}


def analysis_from_dict(name: str, document: Any, place: str) -> Any:
    """The inverse of `analysis_to_dict`; an analysis without a kind is of the kind that its name is.

    >>> analysis_from_dict("peaks", {"strong": 1}, "mx.yaml: analyses.peaks")
    Traceback (most recent call last):
    tuner.errors.InputError: mx.yaml: analyses.peaks.strong must be a number at least 3, got 1

    Raises
    ------
    InputError
        With the place in the document.
    """
    document = check_mapping({} if document is None else document, place)
    if not _NAME.fullmatch(name):
        raise InputError(f"{place} must be named by lower-case letters, digits and _, got {name!r}")
    kind = check_str(document.get("analysis", name), join(place, "analysis"))
    of = Own if kind.startswith(OWN) else ANALYSES.get(kind)
    if of is None:
        known = (*ANALYSES, "python:module.function", "command:program")
        raise InputError(
            f"{join(place, 'analysis')} must be one of {' '.join(known)}, got {kind!r}{suggest(kind, known)}"
        )
    needed = [f.name for f in fields(of) if f.name in of.valid and f.default is MISSING]
    check_mapping(document, place, ("analysis", *of.valid), needed)
    given = {key: value for key, value in document.items() if key != "analysis"}
    if of is Own:
        given["run"] = kind
    try:
        return of(name=name, **given)
    except InputError as error:
        raise InputError(join(place, str(error))) from None
