"""A profile is one screen that survives its file; what was changed by hand loads, and says that nothing proves it."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusal import refusal

import tuner
from tuner.config import CHAINS, CODECS, Blosc2, Config
from tuner.document import canonical_json, dump_yaml, load_yaml, parse_yaml
from tuner.errors import InputError
from tuner.evaluation import read_log
from tuner.noise import Noise
from tuner.profile import EvidenceVoidWarning, Invalid, Match, Profile, Readers, load_profile
from tuner.steps.reductions import Bin, Crop, Scale, Sum

GOLDEN = Path(__file__).parent / "golden"
PROFILES = sorted(path.stem for path in GOLDEN.glob("*.yaml"))
SIGNED = [name for name in PROFILES if name != "by_hand"]
SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "profile.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(0, allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
keys = texts.filter(lambda key: key.isprintable() and key != "")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
configs = st.builds(
    Config,
    chunks=st.tuples(st.integers(1, 99), st.just(-1) | st.integers(1, 999), st.just(-1) | st.integers(1, 999)),
    blosc2=st.builds(
        Blosc2,
        codec=st.sampled_from(list(CODECS)),
        clevel=st.integers(0, 9),
        filters=st.sampled_from(CHAINS),
        blocksize=st.sampled_from([0, 1 << 20]),
    ),
)


def able(profile: Profile) -> Profile:
    """Without reductions that cannot be done to such frames."""
    try:
        assert profile.form.frame_shape
    except InputError:
        return replace(profile, reduce=())
    return profile


profiles = st.builds(
    Profile,
    name=texts,
    match=st.builds(
        Match,
        dtype=st.sampled_from(["bool", "uint8", "uint16", "int32", "float16", "float64"]),
        axes=st.lists(texts, max_size=3).map(tuple),
        frame_shape=st.none() | st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    ),
    config=configs,
    fallback=configs,
    reduce=st.sampled_from([(), (Bin(2),), (Sum(4), Bin(3), Crop(0, 1, 5, 6), Scale("uint16", 0.5, -3.0))]),
    invalid=st.builds(Invalid, st.lists(st.integers(-(2**63), 2**64 - 1), max_size=3).map(tuple), st.none() | texts),
    noise=st.none() | st.builds(Noise, positive, finite, positive, texts),
    envelope=st.dictionaries(keys, st.tuples(finite, finite).map(lambda ends: (min(ends), max(ends))), max_size=3),
    evidence=st.dictionaries(keys, values, max_size=3),
).map(able)


def refused(document: Any) -> str:
    """The one line that refuses a profile's document."""
    return refusal(lambda: Profile.from_dict(document, "i03.yaml:"), "i03.yaml")


def changed(document: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The document with another value at a dotted path."""
    copied = copy.deepcopy(dict(document))
    *parents, last = path.split(".")
    place: Any = copied
    for key in parents:
        place = place[key]
    place[last] = value
    return copied


@pytest.fixture
def document() -> dict[str, Any]:
    return load_yaml(GOLDEN / "masked.yaml")


@given(profiles)
def test_from_dict_is_the_inverse_of_to_dict(profile: Profile) -> None:
    read = Profile.from_dict(profile.to_dict())
    assert read == profile
    assert read.digest == profile.digest
    read = Profile.from_dict(parse_yaml(dump_yaml(profile.to_dict()), ""))
    assert read == profile
    assert read.digest == profile.digest


@given(profiles)
def test_what_is_saved_is_loaded_strictly(tmp_path_factory: pytest.TempPathFactory, profile: Profile) -> None:
    path = tmp_path_factory.mktemp("profile") / "p.yaml"
    profile.save(path)
    assert load_profile(path, strict=True) == profile


@given(profiles, texts)
def test_a_name_is_not_part_of_the_digest(profile: Profile, name: str) -> None:
    assert replace(profile, name=name).digest == profile.digest


@given(profiles, profiles)
def test_all_else_is_part_of_the_digest(profile: Profile, other: Profile) -> None:
    def stated(some: Profile) -> str:
        # As JSON, as Python takes 1 and True for equal, and 0.0 and -0.0.
        return canonical_json({**some.to_dict(), "name": "", "digest": ""})

    assert (stated(profile) == stated(other)) == (profile.digest == other.digest)


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_ever_written_says_the_same(name: str) -> None:
    def says(whole: Any, part: Any) -> bool:
        if isinstance(part, Mapping):
            return all(says(whole[key], value) for key, value in part.items())
        return bool(whole == part)

    raw = load_yaml(GOLDEN / f"{name}.yaml")
    profile = Profile.from_dict(raw)
    # Who can read it may become better known.
    assert says(profile.to_dict(), {key: value for key, value in raw.items() if key not in ("schema", "readers")})


@pytest.mark.parametrize("name", SIGNED)
def test_every_profile_ever_written_keeps_its_digest(name: str) -> None:
    path = GOLDEN / f"{name}.yaml"
    assert load_profile(path, strict=True).digest == load_yaml(path)["digest"]


def test_every_log_ever_written_is_read() -> None:
    first, baseline, failed = read_log(GOLDEN / "evaluations.jsonl")
    assert first.config == Config(
        (4, 1024, 1024), Blosc2("zstd", 0, 5, ("shuffle", "bytedelta"), "always", typesize=2, blocksize=1 << 20)
    )
    assert (first.metrics["ratio"], first.spread["encode_mb_s"]) == (1.5021, (285.09, 398.34))
    assert (baseline.config, baseline.origin["baseline"]) == (None, "bslz4")
    assert failed.failure == "the codec took more than 10 s"


@pytest.mark.parametrize("name", SIGNED)
def test_a_profile_is_one_screen(name: str) -> None:
    text = (GOLDEN / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 50
    assert max(len(line) for line in text.splitlines()) <= 150


def test_a_profile_that_was_changed_loads_with_one_warning_and_void_evidence(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text((GOLDEN / "tomography.yaml").read_text().replace("clevel: 5", "clevel: 7"))
    with pytest.warns(EvidenceVoidWarning) as caught:
        profile = load_profile(path)
    assert [str(warning.message) for warning in caught] == [
        f"{path}: was changed after it was measured (its digest does not match): its evidence is void"
    ]
    assert caught[0].filename == __file__
    assert profile.config.blosc2.clevel == 7
    assert profile.evidence == {"void": "was changed after it was measured (its digest does not match)"}
    assert profile.envelope == {}
    with pytest.raises(InputError, match=r"p\.yaml: was changed after it was measured"):
        load_profile(path, strict=True)


def test_void_evidence_stays_void_when_saved_again(tmp_path: Path) -> None:
    with pytest.warns(EvidenceVoidWarning, match="has no digest"):
        profile = load_profile(GOLDEN / "by_hand.yaml")
    profile.save(tmp_path / "p.yaml")
    assert load_profile(tmp_path / "p.yaml").evidence == {"void": "has no digest"}


@pytest.mark.parametrize("digest", ["sha256:0", None, 5, ["sha256"]])
def test_a_wrong_digest_is_refused_strictly(digest: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(dump_yaml({**load_yaml(GOLDEN / "tomography.yaml"), "digest": digest}))
    with pytest.raises(InputError, match=r"p\.yaml: "):
        load_profile(path, strict=True)


def test_a_profile_may_be_renamed_and_laid_out_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    document = {**load_yaml(GOLDEN / "tomography.yaml"), "name": "other"}
    path.write_text("# mine\n" + json.dumps(dict(reversed(document.items())), indent=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_profile(path).name == "other"


def test_what_a_hand_written_profile_leaves_out_takes_defaults() -> None:
    with pytest.warns(EvidenceVoidWarning):
        profile = load_profile(GOLDEN / "by_hand.yaml")
    config = Config(blosc2=Blosc2("zstd", clevel=1))
    assert profile == Profile("by hand", Match("uint16"), config, config, evidence={"void": "has no digest"})


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("schema", 2, "i03.yaml: schema must be at most 1, got 2: a newer tuner wrote it"),
        ("schema", 0, "i03.yaml: schema must be a whole number >= 1, got 0"),
        ("schema", True, "i03.yaml: schema must be a whole number >= 1, got True"),
        ("name", 5, "i03.yaml: name must be a text, got 5"),
        ("name", None, "i03.yaml: name must be a text, got nothing"),
        ("nmae", "x", "i03.yaml: nmae is not a known key (did you mean 'name'?)"),
        ("match", None, "i03.yaml: match must be a mapping, got nothing"),
        ("match", {}, "i03.yaml: match.dtype must be given"),
        ("match.dtype", "uint17", "i03.yaml: match.dtype must be one of bool uint8"),
        ("match.dtype", ["uint16"], "i03.yaml: match.dtype must be one of bool uint8"),
        ("match.dtype", ">u2", "i03.yaml: match.dtype must be one of bool uint8"),
        ("match.axes", "x", "i03.yaml: match.axes must be a list, got 'x'"),
        ("match.axes", None, "i03.yaml: match.axes must be a list, got nothing"),
        ("match.axes", ["y", 1], "i03.yaml: match.axes[1] must be a text, got 1"),
        ("match.frame_shape", 5, "i03.yaml: match.frame_shape must be a list, got 5"),
        ("match.frame_shape", [], "i03.yaml: match.frame_shape must have one or two axes, got []"),
        ("match.frame_shape", [1, 2, 3], "i03.yaml: match.frame_shape must have one or two axes, got [1, 2, 3]"),
        ("match.frame_shape", [5, 0], "i03.yaml: match.frame_shape[1] must be in 1..4294967295, got 0"),
        ("match.frame_shape", [5, 1 << 9999], "i03.yaml: match.frame_shape[1] must be in 1..4294967295, got a number"),
        ("match.frame_shape", [100], "i03.yaml: config: chunks must be frames and the 1 axes of a frame"),
        ("config", None, "i03.yaml: config must be a mapping, got nothing"),
        ("config.blosc2.clevel", 12, "i03.yaml: config.blosc2.clevel must be in 0..9, got 12"),
        ("config.blosc2.level", 5, "i03.yaml: config.blosc2.level is not a known key (did you mean 'clevel'?)"),
        ("config.blosc2.typesize", 7, "i03.yaml: config: typesize must divide the chunk of"),
        ("config.chunks", [1, -1], "i03.yaml: config: chunks must be frames and the 2 axes of a frame"),
        ("fallback", None, "i03.yaml: fallback must be a mapping, got nothing"),
        ("fallback.blosc2.codec", "lz5", "i03.yaml: fallback.blosc2.codec must be one of"),
        ("fallback.chunks", [1, -1], "i03.yaml: fallback: chunks must be frames and the 2 axes of a frame"),
        ("invalid", [], "i03.yaml: invalid must be a mapping, got []"),
        ("invalid.value", [], "i03.yaml: invalid.value is not a known key (did you mean 'values'?)"),
        ("invalid.values", -1, "i03.yaml: invalid.values must be a list, got -1"),
        (
            "invalid.values",
            [-1, 1.5],
            "i03.yaml: invalid.values[1] must be in -9223372036854775808..1844674407370955161",
        ),
        ("invalid.values", [True], "i03.yaml: invalid.values[0] must be in"),
        ("invalid.values", [1 << 64], "i03.yaml: invalid.values[0] must be in"),
        ("invalid.mask", 5, "i03.yaml: invalid.mask must be a text, got 5"),
        ("noise", [], "i03.yaml: noise must be a mapping, got []"),
        ("noise", {}, "i03.yaml: noise.gain must be given"),
        ("noise.gain", math.nan, "i03.yaml: noise.gain must be a finite number, got nan"),
        ("noise.offset", "0", "i03.yaml: noise.offset must be a finite number, got '0'"),
        ("noise.read_noise", math.inf, "i03.yaml: noise.read_noise must be a finite number, got inf"),
        ("noise.source", 1, "i03.yaml: noise.source must be a text, got 1"),
        ("envelope", [], "i03.yaml: envelope must be a mapping, got []"),
        ("envelope.mean", [2, 1], "i03.yaml: envelope.mean must be [low, high], got [2, 1]"),
        ("envelope.mean", [1], "i03.yaml: envelope.mean must be [low, high], got [1]"),
        ("envelope.mean", [1, math.nan], "i03.yaml: envelope.mean[1] must be a finite number, got nan"),
        ("readers", [], "i03.yaml: readers must be a mapping, got []"),
        ("readers", {"hdf5plugins": ""}, "i03.yaml: readers.hdf5plugins is not a known key"),
        ("evidence", [], "i03.yaml: evidence must be a mapping, got []"),
        ("evidence.ratio", math.nan, "i03.yaml: evidence must hold finite numbers, texts, lists and mappings only"),
        ("evidence.date", b"x", "i03.yaml: evidence must hold finite numbers, texts, lists and mappings only"),
        ("evidence.ratio", [1 << 99999], "i03.yaml: evidence must hold finite numbers, texts, lists and mappings only"),
    ],
)
def test_a_mistake_is_told_with_its_place(document: dict[str, Any], path: str, value: Any, expected: str) -> None:
    assert refused(changed(document, path, value)).startswith(expected)


@pytest.mark.parametrize("key", ["schema", "name", "match", "config"])
def test_what_has_no_default_must_be_given(document: dict[str, Any], key: str) -> None:
    del document[key]
    assert refused(document) == f"i03.yaml: {key} must be given"


def test_a_fallback_has_the_axes_of_the_config() -> None:
    document = {"schema": 1, "name": "x", "match": {"dtype": "uint8"}, "config": {}, "fallback": {"chunks": [1, -1]}}
    assert refused(document) == "i03.yaml: fallback.chunks must have the 3 extents of config.chunks, got [1, -1]"


def test_readers_follow_from_what_is_written() -> None:
    plain, plugin = Config(), Config(blosc2=Blosc2("j2k", filters=()))
    delta = Config(blosc2=Blosc2(filters=("shuffle", "bytedelta")))
    versions = [tuple(map(int, Readers.of(*some).hdf5plugin.split("."))) for some in [(plain,), (plain, delta)]]
    assert versions == [(4, 1, 0), (4, 4, 0)]
    assert Readers.of(plugin, plain).plugins == ("blosc2-j2k",)


@pytest.mark.parametrize("frame_shape", [None, (4, 5)])
def test_frames_of_another_kind_are_refused(frame_shape: tuple[int, ...] | None) -> None:
    match = Match("uint16", frame_shape=frame_shape)
    match.check(np.dtype("uint16"), (4, 5), "scan.h5")
    match.check(np.dtype(">u2"), (4, 5), "scan.h5")
    with pytest.raises(InputError, match=r"^scan\.h5: the profile is for dtype uint16, got int16"):
        match.check(np.dtype("int16"), (4, 5), "scan.h5")
    if frame_shape:
        takes_any = r"got \[5, 4\] \(frame_shape: null in the profile takes any\)$"
        with pytest.raises(InputError, match=rf"^scan\.h5: the profile is for frames of shape \[4, 5\], {takes_any}"):
            match.check(np.dtype("uint16"), (5, 4), "scan.h5")
        with pytest.raises(InputError, match=r"got \[20\] \(--axes says which axes form a frame\)$"):
            match.check(np.dtype("uint16"), (20,), "scan.h5")
    else:
        match.check(np.dtype("uint16"), (5, 4), "scan.h5")


SAVING = """
import sys
from pathlib import Path
from dataclasses import replace
from tuner.profile import load_profile
profile = load_profile(sys.argv[1], strict=True)
profiles = [replace(profile, name=name * 1000) for name in "abcdefgh"]
print("ready", flush=True)
while True:
    for each in profiles:
        each.save(sys.argv[2])
"""


def test_a_kill_while_saving_leaves_a_whole_profile(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    load_profile(GOLDEN / "tomography.yaml").save(path)
    for turn in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", SAVING, GOLDEN / "tomography.yaml", path], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout
            child.stdout.readline()
            time.sleep(0.003 * turn)
            os.kill(child.pid, signal.SIGKILL)
        assert len(load_profile(path, strict=True).name) in (4, 1000)


def test_the_json_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def closed(node: Any) -> bool:
        if isinstance(node, list):
            return all(map(closed, node))
        if not isinstance(node, dict):
            return True
        return ("properties" not in node or node["additionalProperties"] is False) and all(map(closed, node.values()))

    assert closed(SCHEMA)


def test_the_json_schema_knows_every_key() -> None:
    written = load_profile(GOLDEN / "masked.yaml").to_dict()
    assert list(SCHEMA["properties"]) == list(written)
    for key in ("match", "invalid", "readers"):
        assert list(SCHEMA["properties"][key]["properties"]) == list(written[key])
    assert list(SCHEMA["properties"]["noise"]["anyOf"][1]["properties"]) == list(written["noise"])
    assert list(SCHEMA["$defs"]["config"]["properties"]) == list(written["config"])
    assert list(SCHEMA["$defs"]["blosc2"]["properties"]) == list(written["config"]["blosc2"])


@pytest.mark.parametrize("name", PROFILES)
def test_the_json_schema_accepts_every_profile_ever_written(name: str) -> None:
    VALIDATOR.validate(load_yaml(GOLDEN / f"{name}.yaml"))


@pytest.mark.usefixtures("home")
def test_a_profile_that_was_searched_for_is_one_screen_of_the_json_schema(tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).poisson(50, (16, 64, 64)).astype("uint16"))
    found = tuner.find_profile([tmp_path / "scan.npy"], space="quick", budget="12")
    found.profile.save(tmp_path / "p.yaml")
    assert load_profile(tmp_path / "p.yaml", strict=True) == found.profile
    VALIDATOR.validate(load_yaml(tmp_path / "p.yaml"))
    assert len((tmp_path / "p.yaml").read_text().splitlines()) <= 60


@given(profiles)
def test_the_json_schema_accepts_what_is_written(profile: Profile) -> None:
    VALIDATOR.validate(json.loads(json.dumps(replace(profile, evidence={}).to_dict())))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 2),
        ("name", 5),
        ("nmae", "x"),
        ("match", {}),
        ("match.dtype", "uint17"),
        ("match.axes", "x"),
        ("match.axes", [1]),
        ("match.frame_shape", []),
        ("match.frame_shape", [1, 2, 3]),
        ("match.frame_shape", [5, 0]),
        ("reduce", [{"step": "bin"}]),
        ("reduce", [{"step": "bin", "n": 1}]),
        ("config", None),
        ("config.steps", [{"step": "uniform"}]),
        ("config.chunks", [1]),
        ("config.chunks", [-1, 2, 3]),
        ("config.chunks", [1, 0, 3]),
        ("config.chunks", ["4MiB", -1, -1]),
        ("config.blosc2.level", 5),
        ("config.blosc2.clevel", 12),
        ("config.blosc2.clevel", True),
        ("config.blosc2.codec", "lz5"),
        ("config.blosc2.filters", ["shuffle", "delta"]),
        ("config.blosc2.filters", ["delta", "shuffle", "bytedelta"]),
        ("config.blosc2.filters", "shuffle"),
        ("config.blosc2.splitmode", "sometimes"),
        ("config.blosc2.typesize", 256),
        ("config.blosc2.blocksize", 100),
        ("fallback", None),
        ("fallback.blosc2.clevel", -1),
        ("invalid.values", [1.5]),
        ("invalid.mask", 5),
        ("noise", {}),
        ("noise.gain", "1"),
        ("envelope.mean", [1]),
        ("readers.hdf5plugin", "4"),
        ("evidence.other", 1),
        ("evidence.metrics.ratio", "2"),
        ("digest", "sha256:0"),
    ],
)
def test_the_json_schema_refuses_what_is_none(document: dict[str, Any], path: str, value: Any) -> None:
    VALIDATOR.validate(document)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(changed(document, path, value))
