"""Wrote the profiles and the log in this folder, which every later version must read: run it only to add new ones.

python tests/golden/make_profiles.py

Files that are there are left as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuner.config import Blosc2, Config
from tuner.evaluation import Evaluation, Log
from tuner.goal import Constraint, Goal
from tuner.noise import Noise
from tuner.profile import Invalid, Match, Profile

FOLDER = Path(__file__).parent

FAST = Blosc2("lz4", clevel=1, filters=("bitshuffle",), splitmode="never", typesize=2)
SMALL = Blosc2("zstd", clevel=5, filters=("shuffle", "bytedelta"), splitmode="always", typesize=2, blocksize=1 << 20)

EVIDENCE: dict[str, Any] = {
    "goal": Goal(("ratio", "encode_mb_s"), (Constraint("ratio", ">=", 1.0, "bslz4"),), "balanced").to_dict(),
    "metrics": {"ratio": 1.5021, "encode_mb_s": [363.6, 285.09, 398.34], "h5py_frame_read_mb_s": 1157.1},
    "fallback": {"ratio": 1.2927, "encode_mb_s": [1033.8, 955.84, 1248.6]},
    "baselines": {
        "none": {"ratio": 1.0, "encode_mb_s": 8620.7, "decode_mb_s": 10468.0},
        "bslz4": {"ratio": 1.3112, "encode_mb_s": 1793.5, "decode_mb_s": 1622.8},
    },
    "sample": {
        "files": ["Müller/scan.nxs"],
        "of_files": 1,
        "frames": 7,
        "of_frames": 16,
        "nbytes": 14680064,
        "seed": 0,
    },
    "data": "sha256:0d4c9c4a6f6139e528a3dc074a9ce95cdb61944cff7c0c9ddb76ebde7e5cda2f",
    "search": {"measured": 51, "seconds": 6.7004, "stopped": "budget used"},
    "machine": {"cpu": "AMD EPYC", "cores": 2, "cache_mib": 32, "host": "vm"},
    "versions": {"tuner": "0.1.0", "python": "3.11.7", "c-blosc2": "3.3.5"},
    "date": "2026-11-20T09:06:19Z",
}

PROFILES = {
    "tomography": Profile(
        name="id19",
        match=Match("uint16", ("rotation_angle", "y", "x"), (1024, 1024)),
        config=Config((1, -1, -1), SMALL),
        fallback=Config((1, -1, -1), FAST),
        envelope={"zero_fraction": (0.0, 0.0), "repeat_fraction": (1e-05, 0.0014985), "maximum": (26840.0, 37839.0)},
        evidence=EVIDENCE,
    ),
    "masked": Profile(
        name="pilatus 6M",
        match=Match("int32", (), (2527, 2463)),
        config=Config((1, 512, -1), Blosc2("zstd", clevel=1, filters=("bitshuffle",), splitmode="never", typesize=4)),
        fallback=Config((1, 512, -1), Blosc2("lz4", clevel=0, filters=(), typesize=1)),
        invalid=Invalid((-1, -2), "sha256:" + "0" * 64),
        noise=Noise(1.0, 0.0, 0.0, "photon counter, as the file declares"),
        evidence={"metrics": {"ratio": 3.25}},
    ),
    "spectra": Profile(
        name="xrf",
        match=Match("float32", ("y", "x", "detector", "energy")),
        config=Config((64, -1), Blosc2("lz4hc", clevel=9, filters=("delta", "shuffle"), typesize=4, blocksize=65536)),
        fallback=Config((64, -1), Blosc2()),
    ),
    "plugin": Profile(
        name="jpeg",
        match=Match("uint8", ("frame", "y", "x"), (256, 256)),
        config=Config((1, -1, -1), Blosc2("htj2k", filters=(), splitmode="never", typesize=1)),
        fallback=Config((1, -1, -1), Blosc2("lz4", typesize=1)),
    ),
}

#: As a user writes it by hand.
BY_HAND = """\
# The least that a profile says.
schema: 1
name: by hand
match: {dtype: uint16}
config: {blosc2: {codec: zstd, clevel: 1}}
"""

EVALUATIONS = [
    Evaluation(
        Config((4, 1024, 1024), SMALL),
        {"ratio": 1.5021, "encode_mb_s": 363.6},
        {"encode_mb_s": (285.09, 398.34)},
        {"mean": 15382.0, "step": 1.0},
        {"data": "0d4c9c4a", "machine": {"cpu": "AMD EPYC", "cores": 2}, "timing": "alone", "finalist": True},
    ),
    Evaluation(None, {"ratio": 1.3112}, origin={"data": "0d4c9c4a", "baseline": "bslz4"}),
    Evaluation(Config((1, -1, -1), Blosc2("j2k", filters=())), failure="the codec took more than 10 s"),
]


def main() -> None:
    """Write what is not there."""
    for name, profile in PROFILES.items():
        path = FOLDER / f"{name}.yaml"
        if not path.exists():
            profile.save(path)
    path = FOLDER / "by_hand.yaml"
    if not path.exists():
        path.write_text(BY_HAND)
    path = FOLDER / "evaluations.jsonl"
    if not path.exists():
        with Log(path) as log:
            for evaluation in EVALUATIONS:
                log.append(evaluation)


if __name__ == "__main__":
    main()
