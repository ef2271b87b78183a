"""Codec plug-ins from search to file: whatever one does, the search goes on and no frame is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest
from numpy.typing import NDArray

import tuner.measure.meter
from tuner.apply.child import PluginChild, missing, plugin_environment
from tuner.apply.dataset import create_dataset, stamp_fallbacks
from tuner.apply.encode import Encoder
from tuner.apply.foreign import verify_written
from tuner.apply.opening import open_writer
from tuner.apply.pipeline import Pipeline
from tuner.apply.plugin import FallbackEncoder, PluginEncoder, open_encoder
from tuner.apply.prepare import Batch
from tuner.apply.repack import repack
from tuner.config import PLUGINS, Blosc2, Config
from tuner.errors import CodecError, InputError
from tuner.evaluation import Evaluation, Log, read_log
from tuner.goal import Goal
from tuner.measure.access import read_frames
from tuner.measure.meter import Meter
from tuner.measure.verify import verify_original
from tuner.profile import Match, Profile, Readers, load_profile
from tuner.read import open_stacks
from tuner.read.sampling import Run, Sample
from tuner.search.budget import Budget
from tuner.search.run import Result, Search
from tuner.space import Space

STAND_IN = str(Path(__file__).with_name("stand_in_codecs.py"))

each_plugin = pytest.mark.parametrize(
    "codec",
    [
        pytest.param(codec, marks=pytest.mark.skipif(bool(missing(codec)), reason=str(missing(codec))))
        for codec in PLUGINS
    ],
)
both_plugins = pytest.mark.skipif(any(map(missing, PLUGINS)), reason="blosc2-j2k and blosc2-htj2k must be installed")


def image(shape: tuple[int, ...], dtype: str = "uint16", seed: int = 0) -> NDArray[Any]:
    """Counts on a smooth scene."""
    scene = 100 + 50 * np.sin(np.arange(shape[-1]) / 30) + 30 * np.cos(np.arange(shape[-2])[:, None] / 40)
    return np.random.default_rng(seed).poisson(np.broadcast_to(scene, shape)).astype(dtype)


def child(manners: str, timeout_s: float = 10.0) -> PluginChild:
    return PluginChild(timeout_s=timeout_s, command=(sys.executable, STAND_IN, manners))


def plugin_config(codec: str, *chunks: int) -> Config:
    return Config(chunks or (1, -1, -1), Blosc2(codec, filters=(), splitmode="never"))


# Measuring and searching, with codecs that misbehave ------------------------------------------------------------------

SPACE = Space.from_dict(
    {
        "blosc2": {
            "choose": [
                {"codec": "j2k", "filters": [], "splitmode": "never"},
                {"codec": "htj2k", "filters": [], "splitmode": "never"},
                {"codec": "lz4", "clevel": {"choose": [1, 5]}},
            ]
        }
    }
)


def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manners: str) -> tuple[Result, dict[str, Evaluation]]:
    """The result of a search of all of `SPACE`, and what the log says of each plug-in on the small sample."""
    with child(manners, timeout_s=1.0) as stand_in, Log(tmp_path / "log.jsonl") as log:
        monkeypatch.setattr(tuner.measure.meter, "PLUGIN_CHILD", stand_in)
        sample = Sample((Run(0, 0, image((6, 64, 64))),))
        result = Search(sample, 6, SPACE, Goal(("ratio", "encode_mb_s")), Budget.parse("20"), log, jobs=2).run()
    logged = [e for e in read_log(tmp_path) if e.config is not None]
    return result, {e.config.blosc2.codec: e for e in reversed(logged) if e.config is not None}


@pytest.mark.parametrize(
    ("manner", "failure"),
    [
        ("abort", r"aborted the process \(signal 6\)"),
        ("hang", "took more than 1 s to encode"),
        ("refuse", "cannot encode: not these pixels"),
        ("wrong", "does not decode to the same pixels"),
        ("torn", "cannot decode"),
    ],
)
def test_a_search_survives_its_plugins_and_logs_how_they_failed(
    manner: str, failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, logged = search(tmp_path, monkeypatch, f"j2k={manner},htj2k=honest")
    assert result.stopped == "every configuration of the space was measured"
    assert logged["j2k"].metrics == {}
    with pytest.raises(CodecError, match=failure):
        raise CodecError(str(logged["j2k"].failure))
    assert logged["htj2k"].failure is None
    assert logged["htj2k"].metrics["ratio"] > 1
    assert logged["lz4"].failure is None


def test_a_search_survives_a_plugin_that_fails_only_when_it_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, logged = search(tmp_path, monkeypatch, "j2k=tired,htj2k=tired")
    assert result.best.config is not None
    assert result.best.config.blosc2.codec == "lz4"
    assert "aborted the process" in str(logged["j2k"].failure)


def test_a_plugin_that_is_slow_is_stopped_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(Sample((Run(0, 0, image((6, 64, 64))),)))
    with child("j2k=hang", timeout_s=30) as stand_in:
        monkeypatch.setattr(tuner.measure.meter, "PLUGIN_CHILD", stand_in)
        evaluation = meter.exact(plugin_config("j2k"), most_seconds=0.5)
    assert evaluation.failure == "codec j2k took more than 0.5 s to encode"


def test_the_seconds_of_a_plugin_are_those_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = image((1, 64, 64))
    with child("j2k=honest") as stand_in:
        encoder = PluginEncoder(plugin_config("j2k").resolve((64, 64), chunk.dtype), chunk.dtype, stand_in)
        encoder.encode(chunk)
        stand_in.close()
        assert 0 < encoder.timed_encode(chunk)[1] < 0.1  # starting the process takes longer


@pytest.mark.parametrize(
    ("manner", "failure"),
    [("honest", None), ("wrong", "h5py reads other pixels"), ("torn", "h5py cannot read .*OSError")],
)
def test_what_a_plugin_wrote_is_read_through_h5py(
    manner: str, failure: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = Meter(Sample((Run(0, 0, image((6, 64, 64))),)))
    with child(f"j2k={manner}") as stand_in:
        monkeypatch.setattr(tuner.measure.meter, "PLUGIN_CHILD", stand_in)
        if failure is None:
            assert len(read_frames(meter, plugin_config("j2k", 4, -1, -1)).rates) == 6
        else:
            with pytest.raises(CodecError, match=failure):
                read_frames(meter, plugin_config("j2k"))


# Writing, with codecs that misbehave ----------------------------------------------------------------------------------


@pytest.mark.parametrize("manner", ["honest", "abort", "hang", "refuse", "dark", "wrong", "torn"])
def test_whatever_a_plugin_does_every_chunk_reads_back(manner: str, tmp_path: Path) -> None:
    frames = image((5, 40, 50))
    frames[[1, 4], 20, 30] = 2000
    config = plugin_config("j2k").resolve((40, 50), frames.dtype)
    plugin = PluginEncoder(config, frames.dtype, child(f"j2k={manner}", timeout_s=0.2 if manner == "hang" else 10))
    encoder = FallbackEncoder(plugin, Encoder(Blosc2(typesize=2), config.chunks, frames.dtype))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = create_dataset(file, "data", frames.shape, frames.shape, config.chunks, encoder)
        pipeline = Pipeline(encoder, dataset.id.write_direct_chunk, 3)
        for index in range(len(frames)):
            pipeline.put((index, 0, 0), Batch(frames), (index, 0, 0))
        pipeline.drain()
        pipeline.close()
        stamp_fallbacks(dataset, encoder)
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.array_equal(file["data"][:], frames)
        assert file["data"].attrs["tuner_fallback_chunks"] == {"honest": 0, "dark": 2}.get(manner, 5)


def test_writing_with_a_plugin_that_is_not_installed_is_refused_before_anything_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tuner.apply.child.PLUGINS, "j2k", "blosc2-no-such-codec")
    tuner.apply.plugin._why_not.cache_clear()
    profile = Profile("test", Match("uint16"), plugin_config("j2k"), Config())
    with pytest.raises(InputError, match="blosc2-no-such-codec is not installed: pip install"):
        open_writer(tmp_path / "a.h5", profile, frame_shape=(40, 50), dtype="uint16")
    tuner.apply.plugin._why_not.cache_clear()
    assert list(tmp_path.iterdir()) == []


# The plug-ins themselves ----------------------------------------------------------------------------------------------


def saved(path: Path, frames: NDArray[Any]) -> Path:
    with h5py.File(path, "w") as file:
        file["data"] = frames
    return path


@each_plugin
def test_frames_that_a_plugin_refuses_are_stored_with_the_fallback(codec: str, tmp_path: Path) -> None:
    frames = image((6, 90, 100))
    # j2k refuses noise, as it does not get smaller, and both take any smooth image.
    frames[[2, 3]] = np.random.default_rng(0).integers(0, 65536, (2, 90, 100), "uint16")
    profile = Profile("test", Match("uint16"), plugin_config(codec), Config(blosc2=Blosc2("zstd", clevel=1)))
    with open_writer(tmp_path / "a.h5", profile, dataset="/data", frame_shape=(90, 100), dtype="uint16") as writer:
        writer.append(frames[:4])
        assert writer.flush() == 4
        writer.append(frames[4:])
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["data"].attrs["tuner_fallback_chunks"] == (2 if codec == "j2k" else 0)
    (stack,) = open_stacks([saved(tmp_path / "b.h5", frames)])
    assert verify_written(stack, tmp_path / "a.h5")["frames"] == 6
    assert verify_original(profile, stack, 1 << 20)["frames"] == 6


@each_plugin
@pytest.mark.parametrize("shape", [(120, 90), (5, 120, 90), (3, 4, 64, 50)])
@pytest.mark.parametrize("chunk", [(2, -1, -1), (1, 64, 64)])
def test_repacked_files_open_without_us_whatever_their_axes(
    codec: str, shape: tuple[int, ...], chunk: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # no `python` for c-blosc2 to ask
    source = saved(tmp_path / "a.h5", image(shape))
    stacks = open_stacks([source])
    profile = Profile("test", Match("uint16"), plugin_config(codec, *chunk), Config(chunk))
    repack(profile, stacks, [source], tmp_path / "b.h5")
    assert verify_written(stacks[0], tmp_path / "b.h5")["nbytes"] == stacks[0].nbytes
    with h5py.File(tmp_path / "b.h5") as file:
        assert file["data"].attrs["tuner_fallback_chunks"] == 0


@each_plugin
def test_an_encoder_for_writing_decodes_what_it_encodes(codec: str) -> None:
    chunk = image((2, 90, 100), "int16")
    encoder = open_encoder(plugin_config(codec, 2, -1, -1).resolve((90, 100), chunk.dtype), Blosc2(codec), chunk.dtype)
    try:
        for pixels in (chunk, np.random.default_rng(0).integers(-32768, 32767, chunk.shape, "int16")):
            assert np.array_equal(encoder.decode(encoder.encode(pixels)), pixels)
    finally:
        encoder.close()


@each_plugin
def test_h5py_reads_what_a_plugin_wrote_in_another_process(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "h5py.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)  # whose modules are not ours to run
    meter = Meter(Sample((Run(0, 0, image((4, 90, 100))),)))
    assert read_frames(meter, plugin_config(codec)).mb_s > 0


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from tuner.cli import main; sys.exit(main())", *arguments]
    environment = {**os.environ, "TUNER_HOME": str(folder / "home"), "PATH": "/nowhere"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@both_plugins
def test_from_search_to_a_verified_file(tmp_path: Path) -> None:
    saved(tmp_path / "scan.h5", image((5, 256, 256)))
    blosc2 = [{"codec": codec, "filters": [], "splitmode": "never"} for codec in PLUGINS]
    (tmp_path / "s.yaml").write_text(json.dumps({"blosc2": {"choose": [*blosc2, {"codec": "zstd"}]}}))
    found = run(tmp_path, "search", "scan.h5", "-o", "p.yaml", "--space", "s.yaml", "--maximize", "ratio")
    assert found.returncode == 0, found.stderr
    profile = load_profile(tmp_path / "p.yaml")
    codec = profile.config.blosc2.codec
    assert codec in PLUGINS  # smooth counts are what they are for
    assert profile.readers == Readers("7.0.0", (PLUGINS[codec],))
    assert profile.fallback.blosc2.codec not in PLUGINS
    assert profile.evidence["metrics"]["h5py_frame_read_mb_s"] > 0
    for arguments in (
        ("apply", "p.yaml", "scan.h5", "out.h5"),
        ("verify", "p.yaml", "out.h5", "--against", "scan.h5"),
        ("verify", "p.yaml", "scan.h5"),
        ("read", "out.h5"),
    ):
        done = run(tmp_path, *arguments)
        assert done.returncode == 0, done.stderr


@both_plugins
def test_a_search_of_frames_that_no_plugin_takes_finds_another_codec(tmp_path: Path) -> None:
    saved(tmp_path / "scan.h5", image((5, 64, 64), "int32"))
    found = run(tmp_path, "search", "scan.h5", "-o", "p.yaml", "--space", "plugins", "--budget", "100", "--json")
    assert found.returncode == 0, found.stderr
    logged = [e for e in read_log(Path(json.loads(found.stdout)["log"])) if e.config is not None]
    failures = {e.config.blosc2.codec for e in logged if e.failure is not None and e.config is not None}
    assert failures == set(PLUGINS)
    assert load_profile(tmp_path / "p.yaml").readers.plugins == ()


def test_every_process_that_decodes_finds_the_libraries() -> None:
    assert set(os.environ) <= set(plugin_environment())
