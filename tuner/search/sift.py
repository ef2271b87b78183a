"""What of a log is fit to learn from: measured alone, plausible, without contradiction, and not too much."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.document import canonical_json
from tuner.evaluation import Evaluation
from tuner.search.surrogate import Matrix, beyond_probe, data_of, is_usable

#: Configurations of one sample of data, and of all, that are kept at most.
_MOST_OF_DATA, MOST_ROWS = 150, 40_000
#: The ratio of one configuration on the same pixels is a fact: logarithms that differ by more contradict each other.
#: Versions of codecs differ by less.
_SAME_RATIO = 0.05
#: How far, as logarithms of ratio and speeds, a configuration may be from the probe of its data, and how far the median
#: of all of them. In the shipped log these are at most 3.1, 5.4, 3.8 and 0.15, 1.3, 0.5.
_FAR = np.array([4.6, 7.6, 7.6])
_MEDIAN_FAR = np.array([0.7, 2.5, 2.5])
#: The median of fewer says little.
_LEAST_FOR_MEDIAN = 8


@dataclass(frozen=True, slots=True)
class Sifted:
    """What is left of a log, and why the rest is not."""

    evaluations: list[Evaluation]
    """Usable ones, one for each configuration and sample of data, and baselines; those of one sample adjoin."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason to the number of evaluations that were not kept for it."""


def sift(evaluations: Iterable[Evaluation], known: Sequence[Evaluation] = ()) -> Sifted:
    """Keep what a surrogate can learn from.

    Of the same configuration on the same data the last one counts. Those whose ratios differ are both dropped, as one
    of them is wrong and nothing says which; but what contradicts `known` is dropped alone. Of which shape and dtype
    the frames of some data are, the first one says.

    Parameters
    ----------
    evaluations : iterable of Evaluation
        Read one by one: memory is bounded by what is kept.
    known : sequence of Evaluation
        What is learned from already, and not kept again.
    """
    frames = {e.origin["data"]: _frames(e) for e in known if is_usable(e)}
    facts = {_place(e): e.metrics["ratio"] for e in known if is_usable(e)}
    baselines_known = {(str(e.origin.get("data")), e.origin.get("baseline")) for e in known if e.config is None}
    found: dict[str, dict[str, Evaluation]] = {}
    baselines: dict[str, dict[str, Evaluation]] = {}
    contradictory: set[tuple[str, str]] = set()
    dropped: Counter[str] = Counter()
    for evaluation in evaluations:
        if evaluation.config is None:
            data, name = str(evaluation.origin.get("data")), str(evaluation.origin.get("baseline"))
            if evaluation.failure is None and (data, name) not in baselines_known:
                baselines.setdefault(data, {})[name] = evaluation
            continue
        if not is_usable(evaluation):
            dropped["not timed alone, failed, or of no probed data"] += 1
            continue
        if frames.setdefault(evaluation.origin["data"], _frames(evaluation)) != _frames(evaluation):
            dropped["of another shape or dtype than the same data before"] += 1
            continue
        place = data, rank = _place(evaluation)
        of_data = found.setdefault(data, {})
        ratio = facts.get(place) or (of_data[rank].metrics["ratio"] if rank in of_data else evaluation.metrics["ratio"])
        if place in contradictory or abs(math.log(evaluation.metrics["ratio"] / ratio)) > _SAME_RATIO:
            dropped["contradicts another of the same configuration and data"] += 1 + (rank in of_data)
            of_data.pop(rank, None)
            if place not in facts:
                contradictory.add(place)
        elif place in facts:
            dropped["known already"] += 1
        else:
            of_data[rank] = evaluation
            if len(of_data) > 2 * _MOST_OF_DATA:
                found[data] = _trimmed(of_data, _MOST_OF_DATA)
    plausible = {data: kept for data, of_data in found.items() if (kept := _plausible(of_data, dropped))}
    most = min(_MOST_OF_DATA, max(20, MOST_ROWS // max(1, len(plausible))))
    # Where there are too many data even so, the last are kept: logs are named by date.
    places = list(plausible)[-(MOST_ROWS // most) :]
    left = [e for d in places for e in (*baselines.get(d, {}).values(), *_trimmed(plausible[d], most).values())]
    return Sifted(left, dict(dropped))


def _frames(evaluation: Evaluation) -> tuple[tuple[int, ...], np.dtype[Any]]:
    data = data_of(evaluation)
    return data.frame_shape, data.dtype


def _place(evaluation: Evaluation) -> tuple[str, str]:
    """Digest of the data, and of the configuration on it: chosen by it, some are as good as others."""
    data = data_of(evaluation)
    assert evaluation.config is not None
    resolved = evaluation.config.resolve(data.frame_shape, data.dtype)
    return str(evaluation.origin["data"]), hashlib.sha256(canonical_json(resolved.to_dict()).encode()).hexdigest()


def _trimmed(of_data: Mapping[str, Evaluation], most: int) -> dict[str, Evaluation]:
    return {rank: of_data[rank] for rank in sorted(of_data)[:most]}


def _plausible(of_data: Mapping[str, Evaluation], dropped: Counter[str]) -> dict[str, Evaluation]:
    """Those of one sample of data that its probe does not belie."""
    if not of_data:
        return {}
    beyond: Matrix = beyond_probe(list(of_data.values()))
    far: NDArray[np.bool_] = np.asarray((np.abs(beyond) > _FAR).any(axis=1))
    if len(of_data) >= _LEAST_FOR_MEDIAN and (np.abs(np.median(beyond, axis=0)) > _MEDIAN_FAR).any():
        far[:] = True
    if far.any():
        dropped["implausible beside the probe of the same data"] += int(far.sum())
    return {rank: e for (rank, e), is_far in zip(of_data.items(), far, strict=True) if not is_far}
