"""The command line: what each command prints, and what it exits with."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from tuner.cli import main
from tuner.config import Config
from tuner.goal import goal_of
from tuner.profile import Match, Profile, load_profile
from tuner.report.terminal import SearchProgress
from tuner.search.result import Progress

pytestmark = pytest.mark.usefixtures("home")

#: The program as users run it.
TUNER = Path(sys.executable).with_name("tuner")

COMMANDS = ("demo", "read", "search", "apply", "verify")
FRAMES = np.random.default_rng(0).poisson(20, (16, 64, 64)).astype("uint16")
#: A search that is over at once.
BRIEF = ("--budget", "9", "--space", "quick")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = FRAMES
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("flag", ["--json", "--quiet", None])
def test_from_a_simulated_scan_to_a_verified_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], flag: str | None
) -> None:
    scan, profile, out = (tmp_path / name for name in ("scan.nxs", "scan.yaml", "out.h5"))
    commands = [
        ("demo", "-o", scan, "--technique", "saxs", "--frames", 4, "--shape", 450, 400),
        ("read", scan),
        ("search", scan, "-o", profile, *BRIEF),
        ("apply", profile, scan, out),
        ("verify", profile, out, "--against", scan),
        ("verify", profile, scan),
    ]
    keys = [
        {"path", "shape"},
        {"stacks"},
        {"profile", "front", "log"},
        {"files"},
        {"files", "failed"},
        {"files", "failed"},
    ]
    for command, expected in zip(commands, keys, strict=True):
        assert run(*command, *([flag] if flag else [])) == 0
        out_text, err = capfd.readouterr()
        assert "\x1b" not in out_text + err
        if flag == "--json":
            (line,) = out_text.splitlines()
            assert expected <= set(json.loads(line))
        elif flag == "--quiet":
            assert out_text == ""
            assert [line for line in err.splitlines() if "warning: " not in line] == []
        else:
            assert out_text
            assert bool(err) == (command[0] == "search") or "warning: " in err


def test_quiet_and_json_together_print_the_object_alone(scan: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("read", scan, "--quiet", "--json") == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["stacks"]
    assert err == ""


def test_frames_that_were_never_written_stay_so(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("search", scan, "-o", tmp_path / "scan.yaml", "--quiet", *BRIEF) == 0
    with h5py.File(tmp_path / "planned.h5", "w") as file:
        file.create_dataset("entry/data/data", FRAMES.shape, FRAMES.dtype, chunks=(1, 64, 64))
    assert run("apply", tmp_path / "scan.yaml", tmp_path / "planned.h5", tmp_path / "out.h5") == 0
    assert "ratio inf, at 0 MB/s, without 16 frames that were never written" in capsys.readouterr().out
    assert run("verify", tmp_path / "scan.yaml", tmp_path / "out.h5", "--against", tmp_path / "planned.h5") == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    example = text.partition("example: ")[2].strip()
    assert example.startswith(f"tuner {command} ")


def test_a_table_in_a_pipe_is_plain_and_uncut(scan: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [TUNER, "search", scan, "-o", tmp_path / "scan.yaml", *BRIEF],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "40", "FORCE_COLOR": "1", "TERM": "xterm-256color"},
        check=True,
    )
    assert "\x1b" not in done.stdout + done.stderr
    assert "…" not in done.stdout
    for name in ("none", "gzip", "bslz4", "blosc2", "zstd"):
        assert any(line.strip().startswith(f"{name}: ") for line in done.stdout.splitlines())
    (result,) = [line for line in done.stdout.splitlines() if line.startswith("> is the result: ratio ")]
    profile = load_profile(tmp_path / "scan.yaml")
    assert f"ratio {profile.evidence['metrics']['ratio']:.2f}," in result
    assert f"{tmp_path}/scan.yaml" in done.stdout


def test_the_reader_of_the_output_may_leave(scan: Path) -> None:
    with subprocess.Popen([TUNER, "read", scan], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_requirements_that_cannot_be_met_name_the_nearest(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run("search", scan, "-o", tmp_path / "scan.yaml", "--require", "ratio >= 1000", "--quiet", *BRIEF)
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 3
    assert line.startswith("tuner: nothing meets the requirements; nearest is ")
    assert "chunk " in line
    assert line.endswith(" must be >= 1000")
    assert not (tmp_path / "scan.yaml").exists()


def test_a_lossy_goal_without_a_lossy_space_is_told(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("search", scan, "-o", tmp_path / "scan.yaml", "--goal", "sub-noise", "--quiet", *BRIEF) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tuner: warning: goal sub-noise allows steps, and space quick has none: ")
    assert load_profile(tmp_path / "scan.yaml").config.steps == ()


def test_a_changed_pixel_is_found_and_its_frame_named(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile, out = tmp_path / "scan.yaml", tmp_path / "out.h5"
    assert run("search", scan, "-o", profile, "--quiet", *BRIEF) == 0
    assert run("apply", profile, scan, out, "--quiet") == 0
    with h5py.File(scan, "r+") as file:
        file["entry/data/data"][11, 63, 5] += 1
    assert run("verify", profile, out, "--against", scan) == 4
    out_text, err = capsys.readouterr()
    assert out_text == ""
    assert err == f"tuner: {out}: /entry/data/data: frame 11 differs from that of {scan}\n"


def test_a_profile_that_does_not_hold_on_other_data(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "scan.yaml"
    options = ("--maximize", "ratio", "--require", "ratio >= 2", "--quiet")
    assert run("search", scan, "-o", profile, *options, *BRIEF) == 0
    with h5py.File(scan, "r+") as file:
        file["entry/data/data"][...] = np.random.default_rng(0).integers(0, 1 << 16, FRAMES.shape)
    assert run("verify", profile, scan) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tuner: {scan}: ")
    assert "ratio >= 2 (here 2), got 0.9" in line


@pytest.fixture
def night(scan: Path, tmp_path: Path) -> list[Path]:
    """A profile that promises a ratio, and scans: it holds on the first and last, the second is cut, one is noise."""
    goal = goal_of(None, ["ratio"], ["ratio >= 2"])
    Profile("night", Match("uint16"), Config(), Config(), evidence={"goal": goal.to_dict()}).save(tmp_path / "p.yaml")
    for name in ("2_cut.h5", "4_alike.h5"):
        shutil.copy(scan, tmp_path / name)
    os.truncate(tmp_path / "2_cut.h5", 9_000)
    with h5py.File(tmp_path / "3_noise.h5", "w") as file:
        file["entry/data/data"] = np.random.default_rng(0).integers(0, 1 << 16, FRAMES.shape).astype("uint16")
    return [scan.rename(tmp_path / "1_alike.h5"), *(tmp_path / f"{n}.h5" for n in ("2_cut", "3_noise", "4_alike"))]


def test_a_bad_file_stops_no_other(night: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Frames of several files were one sample once, and what one broke was lost in the mean of all."""
    assert run("verify", tmp_path / "p.yaml", *night) == 4, "what is broken is told before what cannot be read"
    out, err = capsys.readouterr()
    verified = [line for line in out.splitlines() if line.startswith("verified: ")]
    assert [line.split(": ")[1] for line in verified] == [str(night[0]), str(night[3])]
    cut, noise = err.splitlines()
    assert cut.startswith(f"tuner: {night[1]}: is cut or damaged: ")
    assert noise.startswith(f"tuner: {night[2]}: the profile promises ratio >= 2")
    assert run("verify", tmp_path / "p.yaml", night[0], night[1]) == 2
    assert run("verify", tmp_path / "p.yaml", night[0], night[3]) == 0
    capsys.readouterr()
    assert run("read", *night, "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told["stacks"]] == [str(night[i]) for i in (0, 2, 3)]
    assert [one["path"] for one in told["failed"]] == [str(night[1])]


def test_what_failed_is_an_object_too(night: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", tmp_path / "p.yaml", *night, "--json") == 4
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert [one["path"] for one in told["files"]] == [str(night[0]), str(night[3])]
    assert [(one["path"], one["exit_code"]) for one in told["failed"]] == [(str(night[1]), 2), (str(night[2]), 4)]
    assert [f"tuner: {one['error']}" for one in told["failed"]] == err.splitlines()
    assert 0.9 < told["failed"][1]["ratio"] < 1.1, "also of what breaks its promise"
    assert run("apply", tmp_path / "p.yaml", night[0], tmp_path / "out.h5", "--quiet") == 0
    written = [tmp_path / "out.h5"] * 3
    originals = [night[0], night[2], night[3]]
    assert run("verify", tmp_path / "p.yaml", *written, "--json", "--against", *originals) == 4
    out, err = capsys.readouterr()
    assert len(json.loads(out)["files"]) == 2
    assert f"frame 0 differs from that of {night[2]}" in err


def test_the_same_seed_draws_the_same_sample(scan: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        options = ("--sample", "32KiB", "--seed", 7, "--quiet")
        assert run("search", scan, "-o", tmp_path / name, *options, *BRIEF) == 0
        digests.add(load_profile(tmp_path / name).evidence["data"])
    assert len(digests) == 1


def test_a_name_may_be_longer_than_that_of_a_file_and_searches_in_a_second_have_logs_of_their_own(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in a container
    logs = set()
    for _ in range(2):
        assert run("search", scan, "-o", tmp_path / "scan.yaml", "--json", "--name", "ü/" * 200, *BRIEF) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["profile"]["name"] == "ü/" * 200
        logs.add(found["log"])
    assert len(logs) == 2


def test_prefer_takes_an_end_of_the_front(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for metric in ("ratio", "encode_mb_s"):
        options = ("--prefer", metric, "--json", "--space", "quick", "--budget", "24")
        assert run("search", scan, "-o", tmp_path / "scan.yaml", *options) == 0
        found = json.loads(capsys.readouterr().out)
        chosen = found["profile"]["evidence"]["metrics"][metric]
        value = chosen[0] if isinstance(chosen, list) else chosen
        assert value == pytest.approx(max(e["metrics"][metric] for e in found["front"]), rel=1e-4)


def test_a_storage_mirrors_every_trial(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import optuna
    from sqlalchemy.pool import NullPool

    url = f"sqlite:///{tmp_path}/trials.db"
    assert run("search", scan, "-o", tmp_path / "scan.yaml", "--storage", url, "--json", *BRIEF) == 0
    log = Path(json.loads(capsys.readouterr().out)["log"])
    logged = [json.loads(line)["origin"] for line in log.read_text().splitlines()]
    searched = [origin for origin in logged if "baseline" not in origin and "finalist" not in origin]
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": NullPool})
    (name,) = optuna.study.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    assert len(trials) == len(searched) > 0


def test_a_folder_of_more_files_than_a_shell_allows_to_be_open_is_read(tmp_path: Path) -> None:
    for number in range(60):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["x"] = np.full((2, 4, 4), number, "uint16")
    done = subprocess.run(
        ["bash", "-c", f"ulimit -Sn 40 && {TUNER} read {tmp_path} --json"], capture_output=True, text=True, check=True
    )
    assert len(json.loads(done.stdout)["stacks"]) == 60


@pytest.mark.parametrize(
    ("by", "goal"),
    [
        (signal.SIGINT, []),
        (signal.SIGTERM, []),  # by this Slurm ends a job
        (signal.SIGINT, ["--maximize", "ratio"]),  # for which nothing is timed alone before the finalists
    ],
)
def test_an_interrupt_keeps_the_best_so_far(scan: Path, tmp_path: Path, by: signal.Signals, goal: list[str]) -> None:
    path = tmp_path / "scan.yaml"
    with subprocess.Popen(
        [TUNER, "search", scan, "-o", path, "--budget", "10m", *goal],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "best so far" in line:
                break
        process.send_signal(by)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "tuner: interrupted; the profile holds the best so far"
    assert "Traceback" not in err
    assert "> is the result: ratio " in out
    assert load_profile(path, strict=True).evidence["search"]["stopped"] == "interrupted"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_names_with_brackets_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with SearchProgress(quiet=False) as progress:
        progress(Progress("rebuilding [/data]/x", 0, 0.0, None, 2))
    assert isinstance(sys.stderr, Terminal)
    assert "[/data]/x" in sys.stderr.getvalue()


def interrupted(process: subprocess.Popen[str]) -> str:
    """What a process says that is interrupted: again if need be, as Python drops an interrupt within a callback."""
    for _ in range(8):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=8)[1]
    process.kill()
    raise AssertionError("it does not end")


def test_an_interrupt_before_there_is_a_best_leaves_no_profile(scan: Path, tmp_path: Path) -> None:
    logs = tmp_path / "home" / "evaluations"
    for measuring in (False, True):
        past = {*logs.glob("*")}
        with subprocess.Popen(
            [TUNER, "search", scan, "-o", tmp_path / "scan.yaml", "--require", "ratio >= 1000", "--budget", "10m"],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            process.stderr.readline()  # the search has begun
            while measuring and {*logs.glob("*")} == past:
                assert process.poll() is None
                time.sleep(0.01)
            err = interrupted(process)
        assert process.returncode == 130
        assert err.splitlines()[-1] == "tuner: interrupted"
        assert "Traceback" not in err or "Exception ignored" in err
        assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["scan.h5"]
