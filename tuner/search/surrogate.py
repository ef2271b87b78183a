"""scikit-learn, in one file: what a configuration is likely to do to data that it was never measured on."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor

from tuner.config import FILTERS, Blosc2, Config
from tuner.errors import InputError
from tuner.evaluation import Evaluation
from tuner.measure.probe import PIECE_NBYTES, PROBES

#: What is predicted, each as a natural logarithm; speeds relative to the reference kernel of their machine.
TARGETS = ("ratio", "encode_mb_s", "decode_mb_s")
#: The same, as the probe's traits call them.
_KINDS = ("ratio", "encode", "decode")

#: The traits that every evaluation must have.
_PROBED = tuple(f"probe_{name}_log_{kind}" for name in PROBES for kind in _KINDS)

#: The codecs that run in this process; others are measured, not guessed.
_CODECS = ("lz4", "lz4hc", "blosclz", "zstd", "zlib")
#: Which probed codec stands for one that is not.
_FAMILY = {"lz4": "lz4", "lz4hc": "lz4", "blosclz": "lz4", "zstd": "zstd", "zlib": "zstd"}

#: How many trees, and the least rows of a leaf.
_TREES, _LEAF = 100, 2
#: Fewer evaluations, or data sets, teach nothing.
_LEAST_ROWS, _LEAST_SETS = 200, 5

#: Between these is every ratio, speed, size and extent of a frame, whatever its unit; and up to that, either side of
#: zero, every logarithm of the probe.
_POSSIBLE, _POSSIBLE_LOG = (1e-9, 1e18), 50.0

#: Bytes of a frame's header and trailer.
_FRAME_NBYTES = 176
#: Column of `config_features` that holds the logarithm of a chunk's bytes.
_NBYTES = len(_CODECS) + 2 + len(FILTERS) + 2 + 3

#: Trees compare in single precision; pixels of double precision reach further.
_LARGEST = float(np.finfo(np.float32).max)

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Data:
    """The data that a prediction is for."""

    frame_shape: tuple[int, ...]
    """Shape of a frame."""
    dtype: np.dtype[Any]
    """The pixels' dtype."""
    traits: Mapping[str, float]
    """Traits of a sample, those of the probe included."""


class Surrogate:
    """Trees that learned from a log how configurations and traits lead to ratio and speed.

    They learn how far a configuration is from the probe of its filter chain: the probe measures on the data at hand
    what differs most between data, and leaves to the trees what levels, blocks, chunks and split modes add.
    """

    def __init__(self, trees: ExtraTreesRegressor, traits: tuple[str, ...], widen: Matrix) -> None:
        self._trees = trees
        self._traits = traits
        self._widen = widen

    @classmethod
    def fit(cls, evaluations: Sequence[Evaluation], *, seed: int = 0, jobs: int = -1, trees: int = _TREES) -> Surrogate:
        """Learn from those of some evaluations that can be learned from.

        Raises
        ------
        InputError
            Where they are too few.
        """
        return cls.fit_usable([e for e in evaluations if is_usable(e)], seed=seed, jobs=jobs, trees=trees)

    @classmethod
    def fit_usable(
        cls, evaluations: Sequence[Evaluation], *, seed: int = 0, jobs: int = -1, trees: int = _TREES
    ) -> Surrogate:
        """The same, where all of them are known to be usable: asking takes as long as learning.

        Raises
        ------
        InputError
            Where they are too few.
        """
        usable = sorted(evaluations, key=lambda e: str(e.origin["data"]))
        groups = [dataset_of(e) for e in usable]
        counts = Counter(groups)
        if len(usable) < _LEAST_ROWS or len(counts) < _LEAST_SETS:
            raise InputError(
                f"log: must hold {_LEAST_ROWS} evaluations of {_LEAST_SETS} data sets to learn from,"
                f" got {len(usable)} of {len(counts)}"
            )
        traits = tuple(sorted({name for e in usable for name in e.traits}))
        blocks, bases, targets = [], [], []
        for _, members in itertools.groupby(usable, key=lambda e: e.origin["data"]):
            same = list(members)
            data, configs = data_of(same[0]), [_config(e) for e in same]
            features = config_features(configs, data)
            bases.append(_base(configs, features, data))
            blocks.append(_row_block(features, bases[-1], data, traits))
            targets.append(logarithms(same))
        # Every data set weighs the same, however often it was measured.
        weights = np.array([1 / counts[group] for group in groups])
        forest = ExtraTreesRegressor(
            trees, min_samples_leaf=_LEAF, max_features=0.4, bootstrap=True, random_state=seed, n_jobs=jobs
        )
        residuals = np.concatenate(targets) - np.concatenate(bases)
        forest.fit(np.concatenate(blocks), residuals, sample_weight=weights / weights.mean())
        return cls(forest, traits, np.ones(len(TARGETS)))

    def predict(self, configs: Sequence[Config], data: Data, features: Matrix | None = None) -> tuple[Matrix, Matrix]:
        """Expected logarithm of each target and its standard deviation, each of shape (configurations, targets).

        Speeds are relative to the reference kernel. `features` are those of `config_features`, if they are at hand.
        """
        if features is None:
            features = config_features(configs, data)
        base = _base(configs, features, data)
        rows = _row_block(features, base, data, self._traits)
        total, squares = np.zeros((len(rows), len(TARGETS))), np.zeros((len(rows), len(TARGETS)))
        for tree in self._trees.estimators_:
            leaf = tree.predict(rows, check_input=False)
            total += leaf
            squares += leaf**2
        mean = total / len(self._trees.estimators_)
        variance = np.maximum(squares / len(self._trees.estimators_) - mean**2, 0.0)
        return base + mean, np.sqrt(variance) * self._widen

    def guess(self, configs: Sequence[Config], data: Data, reference_mb_s: float) -> list[Evaluation]:
        """What `predict` expects, as evaluations: speeds in MB/s on a machine whose reference kernel has that rate.

        The spread of a guess, of the ratio too, goes from one standard deviation below to one above.
        """
        mean, std = self.predict(configs, data)
        scale = np.array([1.0, reference_mb_s, reference_mb_s])
        middle, low, high = (np.exp(mean + shift * std) * scale for shift in (0.0, -1.0, 1.0))
        return [
            Evaluation(
                config,
                dict(zip(TARGETS, middle[index].tolist(), strict=True)),
                dict(zip(TARGETS, zip(low[index].tolist(), high[index].tolist(), strict=True), strict=True)),
                origin={"timing": "guessed"},
            )
            for index, config in enumerate(configs)
        ]

    def calibrated(self, widen: Matrix) -> Surrogate:
        """The same trees with each target's standard deviation multiplied."""
        return Surrogate(self._trees, self._traits, self._widen * widen)


def beyond_probe(evaluations: Sequence[Evaluation]) -> Matrix:
    """How far evaluations of the same data are from what the probe tells, shape (evaluations, targets).

    That is what the trees learn.
    """
    data, configs = data_of(evaluations[0]), [_config(e) for e in evaluations]
    base = _base(configs, config_features(configs, data), data)
    return logarithms(evaluations) - base


def logarithms(evaluations: Sequence[Evaluation]) -> Matrix:
    """Logarithms of the targets that were measured, speeds relative to the reference kernel."""
    return np.array([_target(e) for e in evaluations])


def is_usable(evaluation: Evaluation) -> bool:
    """Whether an evaluation can be learned from: exact, timed alone, probed, of frames that it can be applied to."""
    origin, config = evaluation.origin, evaluation.config
    if evaluation.failure is not None or config is None or config.blosc2.codec not in _CODECS:
        return False
    if config.steps:  # its speed is that of the steps too
        return False
    if origin.get("timing") != "alone" or not isinstance(origin.get("data"), str):
        return False
    # An origin is not checked when it is read.
    shape, dtype = origin.get("frame_shape"), origin.get("dtype")
    if not (isinstance(shape, list | tuple) and all(type(size) is int for size in shape) and isinstance(dtype, str)):
        return False
    metrics = [value for name, value in evaluation.metrics.items() if name in TARGETS or name.endswith("_mb_s")]
    numbers = [*metrics, *shape, origin.get("reference_mb_s"), origin.get("nbytes")]
    if not (set(TARGETS) <= set(evaluation.metrics) and all(map(_is_possible, numbers))):
        return False
    traits = evaluation.traits
    if not all(abs(traits.get(name, math.nan)) <= _POSSIBLE_LOG for name in _PROBED):
        return False
    try:
        data = data_of(evaluation)
        config.resolve(data.frame_shape, data.dtype)
    except (InputError, TypeError, ValueError):
        return False
    return data.dtype.kind in "buif"


def dataset_of(evaluation: Evaluation) -> str:
    """The data set that an evaluation is of; samples of one may share a name."""
    return str(evaluation.origin.get("dataset", evaluation.origin.get("data")))


def data_of(evaluation: Evaluation) -> Data:
    """The data that an evaluation is of."""
    origin = evaluation.origin
    return Data(tuple(origin["frame_shape"]), np.dtype(origin["dtype"]), evaluation.traits)


def config_features(configs: Sequence[Config], data: Data) -> Matrix:
    """Configurations in numbers, resolved for the data, shape (configurations, features): what lies near is alike."""
    itemsize = data.dtype.itemsize
    shaped = {config.chunks: config for config in configs}
    shapes = {chunks: config.resolve(data.frame_shape, data.dtype).chunks for chunks, config in shaped.items()}
    blosc2 = [config.blosc2 for config in configs]
    chunks = [shapes[config.chunks] for config in configs]
    nbytes = np.array([math.prod(chunk) * itemsize for chunk in chunks], np.float64)
    frames = np.array([chunk[0] for chunk in chunks], np.float64)
    width = np.array([chunk[-1] / data.frame_shape[-1] for chunk in chunks])
    codec = np.array([_CODECS.index(b.codec) for b in blosc2])
    level = np.array([b.clevel for b in blosc2], np.float64)
    typesize = np.array([b.typesize or itemsize for b in blosc2], np.float64)
    given = np.array([b.blocksize for b in blosc2], np.float64)
    # About what c-blosc2 takes where the block size is left to it; the trees learn the rest.
    usual = np.exp2(15 + level // 2 + 2 * np.isin(codec, [_CODECS.index(name) for name in ("zstd", "lz4hc", "zlib")]))
    block = np.minimum(np.where(given > 0, given, usual), nbytes)
    columns = [
        *(codec == index for index in range(len(_CODECS))),
        level,
        level == 0,
        *(np.array([name in b.filters for b in blosc2]) for name in FILTERS),
        np.array([b.splitmode == "always" for b in blosc2]),
        np.array([b.splitmode == "never" for b in blosc2]),
        np.log2(typesize / itemsize),
        np.log2(block),
        given == 0,
        np.log2(nbytes),
        np.log2(nbytes / block),
        np.log2(frames),
        np.log2(width),
    ]
    return np.stack(columns, axis=1).astype(np.float64)


#: How far apart a step of each of `config_features` takes two configurations.
FEATURE_WEIGHTS = np.array(
    [*[0.5] * len(_CODECS), 0.12, 1.0, *[0.5] * len(FILTERS), 0.2, 0.2, 0.3, 0.15, 0.1, 0.1, 0.05, 0.05, 0.1]
)


def _row_block(features: Matrix, base: Matrix, data: Data, traits: tuple[str, ...]) -> NDArray[np.float32]:
    """What the trees see of configurations of one data set."""
    about = np.array([data.traits.get(name, 0.0) for name in traits])
    rows = np.hstack([features, base, np.tile(about, (len(features), 1))])
    clipped: NDArray[np.float32] = np.clip(rows, -_LARGEST, _LARGEST).astype(np.float32)
    return clipped


def _base(configs: Sequence[Config], features: Matrix, data: Data) -> Matrix:
    """What the probe of the same filters by a codec of the same family made of the data; small chunks pay a frame."""
    base = np.array([_probe(config.blosc2, data.traits) for config in configs])
    nbytes = np.exp2(features[:, _NBYTES])
    header = np.maximum(0.0, 1 - nbytes / PIECE_NBYTES) * _FRAME_NBYTES
    base[:, 0] = np.log(nbytes / (nbytes / np.exp(base[:, 0]) + header))
    return base


def _probe(blosc2: Blosc2, traits: Mapping[str, float]) -> list[float]:
    if blosc2.clevel == 0:  # which stores, at about the speed of the reference kernel whatever the data
        return [0.0] * len(_KINDS)
    family = _FAMILY[blosc2.codec]
    tried = (blosc2.filters, blosc2.filters[-1:], ("shuffle",))
    name = next(n for f in tried if (n := f"{family}1_{'_'.join(f) or 'plain'}") in PROBES)
    return [traits[f"probe_{name}_log_{kind}"] for kind in _KINDS]


def _target(evaluation: Evaluation) -> list[float]:
    reference = float(evaluation.origin["reference_mb_s"])
    ratio, encode, decode = (evaluation.metrics[name] for name in TARGETS)
    return [math.log(ratio), math.log(encode / reference), math.log(decode / reference)]


def _is_possible(number: object) -> bool:
    return isinstance(number, int | float) and _POSSIBLE[0] <= number <= _POSSIBLE[1]


def _config(evaluation: Evaluation) -> Config:
    assert evaluation.config is not None
    return evaluation.config
