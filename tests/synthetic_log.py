"""A log of a world simple enough to know: compression follows a formula, and a probe tells most of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from tuner.config import Blosc2, Config
from tuner.evaluation import Evaluation
from tuner.measure.probe import PROBES

SHAPE, DTYPE = (512, 512), "uint16"
REFERENCE_MB_S = 5000.0

#: Logarithms of the ratio that a filter chain gains at most, and of its speed.
_CHAINS = {
    (): (0.0, 0.2),
    ("shuffle",): (0.5, 0.0),
    ("bitshuffle",): (0.6, -0.1),
    ("shuffle", "bytedelta"): (0.8, -0.3),
    ("delta", "shuffle"): (0.4, -0.3),
}
#: The same of codecs, at level 1 and for each level more.
_CODECS = {"lz4": (0.0, 0.0, 0.01, -0.05), "zstd": (0.4, -1.5, 0.04, -0.3)}


def configs() -> list[Config]:
    """All configurations of this world, 240."""
    return [
        Config(
            (frames, *SHAPE), Blosc2(codec, clevel=level, filters=chain, splitmode=split, typesize=2, blocksize=block)
        )
        for codec in _CODECS
        for level in (1, 5, 9)
        for chain in _CHAINS
        for split in ("always", "never")
        for block in (65536, 262144)
        for frames in (1, 4)
    ]


def truth(config: Config, smooth: float, busy: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Logarithms of ratio and of the speeds over the reference kernel's.

    `smooth` says what filters are worth; `busy`, which no probe tells, what levels and blocks are.
    """
    blosc2 = config.blosc2
    gain, chain_speed = _CHAINS[blosc2.filters]
    worth, speed, per_level, slower = _CODECS[blosc2.codec]
    level = blosc2.clevel - 1
    large = blosc2.blocksize > 65536
    ratio = (
        0.3 + smooth * gain + worth + busy * (per_level * level + 0.1 * large) + 0.03 * (blosc2.splitmode == "never")
    )
    encode = -0.5 + chain_speed + speed + slower * level - 0.1 * large
    decode = 0.2 + chain_speed + speed / 3 + 0.02 * level + 0.1 * (config.chunks[0] == 4)
    return np.array([ratio, encode, decode])


def evaluations(
    name: str, smooth: float, busy: float, *, chosen: Sequence[Config] | None = None, noise: float = 0.01, seed: int = 0
) -> Iterator[Evaluation]:
    """What measuring configurations, and the baselines, of one data set leaves."""
    rng = np.random.default_rng([seed, *name.encode()])
    traits = {"smooth": smooth, "busy": busy}
    for probe, blosc2 in PROBES.items():
        known = Config(
            (1, *SHAPE), Blosc2(blosc2.codec, clevel=1, filters=blosc2.filters if blosc2.filters in _CHAINS else ())
        )
        for kind, value in zip(("ratio", "encode", "decode"), truth(known, smooth, 0.0), strict=True):
            traits[f"probe_{probe}_log_{kind}"] = float(value)
    origin = {
        "data": f"digest of {name}",
        "dataset": name,
        "dtype": DTYPE,
        "frame_shape": list(SHAPE),
        "nbytes": 4 << 20,
        "reference_mb_s": REFERENCE_MB_S,
        "timing": "alone",
    }
    for baseline, scale in (("none", 0.0), ("bslz4", 0.8)):
        logs = scale * truth(Config((1, *SHAPE), Blosc2("lz4", clevel=1)), smooth, 0.0)
        yield Evaluation(None, _metrics(logs), traits=traits, origin={**origin, "baseline": baseline})
    for config in configs() if chosen is None else chosen:
        logs = truth(config, smooth, busy) + np.array([0.0, *rng.normal(0, noise, 2)])
        metrics = _metrics(logs)
        spread = {m: (0.98 * v, 1.02 * v) for m, v in metrics.items() if m != "ratio"}
        yield Evaluation(config, metrics, spread, traits, origin)


def log(count: int, *, busy: tuple[float, float] = (0.0, 2.0), each: int = 40, seed: int = 0) -> list[Evaluation]:
    """A log of `count` data sets, of each some configurations."""
    rng = np.random.default_rng(seed)
    every = configs()
    found: list[Evaluation] = []
    for index in range(count):
        chosen = [every[place] for place in rng.choice(len(every), each, replace=False)]
        smooth, how_busy = float(rng.uniform(0.2, 1.5)), float(rng.uniform(*busy))
        found += evaluations(f"set-{seed}-{index}", smooth, how_busy, chosen=chosen, seed=seed)
    return found


def _metrics(logs: np.ndarray[tuple[int], np.dtype[np.float64]]) -> dict[str, float]:
    ratio, encode, decode = (math.exp(value) for value in logs)
    return {
        "ratio": ratio,
        "encode_mb_s": encode * REFERENCE_MB_S,
        "decode_mb_s": decode * REFERENCE_MB_S,
        "frame_read_mb_s": decode * REFERENCE_MB_S / 2,
    }
