"""Every bad input gets one clear line, its exit code, and leaves nothing behind."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tuner.cli import main
from tuner.config import PLUGINS, Blosc2, Config
from tuner.profile import Match, Profile

pytestmark = pytest.mark.usefixtures("empty_home")

#: The program as users run it.
TUNER = Path(sys.executable).with_name("tuner")

FRAMES = np.random.default_rng(0).poisson(8, (8, 64, 64)).astype("uint16")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A good scan, and a profile for it beside it."""
    path = tmp_path / "scan.h5"
    store(path, FRAMES)
    config = Config((1, -1, -1), Blosc2("zstd", clevel=1))
    Profile("scan", Match("uint16", (), (64, 64)), config, config).save(tmp_path / "scan.yaml")
    return path


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail, in the test's folder; the line that it says why in, without the program's name."""

    def run(*arguments: object, code: int = 2) -> str:
        before = content(tmp_path)
        assert main([str(argument) for argument in arguments]) == code
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("tuner: ")
        assert "Traceback" not in line
        assert "usage:" not in line
        assert content(tmp_path) == before
        return line.removeprefix("tuner: ")

    return run


def store(path: Path, data: object, name: str = "entry/data/data") -> None:
    with h5py.File(path, "w") as file:
        file[name] = data


def content(folder: Path) -> dict[Path, bytes | None]:
    """Everything in a folder, but for what searches leave in the user's home."""
    visible = (path for path in folder.rglob("*") if "home" not in path.relative_to(folder).parts[:1])
    return {path: path.read_bytes() if path.is_file() else None for path in visible}


def commands(folder: Path, scan: object) -> list[list[object]]:
    """Each command that reads a scan."""
    profile = folder / "scan.yaml"
    return [
        ["read", scan],
        ["search", scan, "-o", folder / "new.yaml"],
        ["apply", profile, scan, folder / "out.h5"],
        ["verify", profile, scan],
        ["verify", profile, folder / "scan.h5", "--against", scan],
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (FRAMES[:0], "at least one frame"),
        (FRAMES[:, :0], "no empty axis"),
        (FRAMES.astype("complex64"), "must hold a numeric dataset"),
        (np.zeros((3, 4, 4), [("a", "i4"), ("b", "f4")]), "must hold a numeric dataset"),
        (np.full((3, 4, 4), b"text"), "must hold a numeric dataset"),
        (np.array([["a"] * 4] * 4, h5py.string_dtype()), "must hold a numeric dataset"),
        (np.uint16(3), "must hold a numeric dataset"),
        (np.zeros((2,) * 7, "uint16"), "must have 1 to 6 axes, got 7"),
    ],
    ids=["no frames", "empty axis", "complex", "compound", "string", "text", "scalar", "seven axes"],
)
def test_data_that_are_no_frames(
    scan: Path, tmp_path: Path, refused: Callable[..., str], data: object, said: str
) -> None:
    store(tmp_path / "bad.h5", data)
    for command in commands(tmp_path, tmp_path / "bad.h5"):
        line = refused(*command)
        assert line.startswith(f"{tmp_path}/bad.h5: ")
        assert said in line


def test_files_that_are_not_there_or_not_what_they_should_be(
    scan: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "empty.h5").write_bytes(b"")
    (tmp_path / "noise.dat").write_text("hello")
    (tmp_path / "nothing").mkdir()
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        file.create_group("entry/data")
    said = {
        "missing.h5": "no such file",
        "text.h5": "must be an HDF5 file",
        "empty.h5": "must be an HDF5 file, got an empty one",
        "noise.dat": "unknown format",
        "groups.h5": "must hold a numeric dataset",
        "nothing": "must hold files of a format that can be read",
        "missing*.cbf": "must match a file",
    }
    for name, why in said.items():
        for command in commands(tmp_path, tmp_path / name):
            line = refused(*command)
            assert line.startswith(f"{tmp_path}/{name}: ")
            assert why in line


def test_a_file_cut_anywhere(scan: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    whole = scan.read_bytes()
    cut = tmp_path / "cut.h5"
    lengths = [*range(1, 100, 7), *np.random.default_rng(1).integers(100, len(whole), 40), len(whole) - 1]
    for length in lengths:
        cut.write_bytes(whole[:length])
        assert refused("read", cut).startswith(f"{cut}: ")
    for command in commands(tmp_path, cut):
        assert refused(*command).startswith(f"{cut}: is cut or damaged: ")
    for length in (200, len(whole) // 2):
        cut.write_bytes(whole[:length])
        assert refused("verify", tmp_path / "scan.yaml", cut, "--against", scan).startswith(f"{cut}: ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dataset", "/nope"], "dataset must be one of /entry/data/data uint16(8, 64, 64), got '/nope'"),
        (["--axes", "y,x"], "axes must name each of 3 axes, got 2"),
        (["--axes", "frame,y,x,z"], "axes must name each of 3 axes, got 4"),
        (["--axes", "a,a,a"], "--axes must be different names"),
        (["--axes", "frame,,x"], "--axes must be different names"),
    ],
)
def test_a_wrong_dataset_or_wrong_axes(
    scan: Path, tmp_path: Path, refused: Callable[..., str], options: list[str], said: str
) -> None:
    for command in commands(tmp_path, scan):
        assert said in refused(*command, *options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--space", "portabel"], "space must be one of compatible counting float integrating mx plugins portable"),
        (["--goal", "archiv"], "goal must be one of acquire archive balanced coherent mx noise-equivalent read saxs"),
        (["--space", "missing.yaml"], "missing.yaml: no such file"),
        (["--maximize", "ratioo"], "--maximize must be one of ratio "),
        (["--maximize", "ratio", "--maximize", "ratio"], "once"),
        (["--require", "rato >= 2"], "--require must be one of ratio "),
        (["--require", "ratio > 2"], "--require must read METRIC >= LIMIT or METRIC <= LIMIT, got 'ratio > 2'"),
        (["--require", "ratio >= 2 * bslz"], "must name one of none gzip bslz4"),
        (["--require", "ratio >= 1e999"], "must have a finite number as limit"),
        (["--require", "ratio >= 1.2.3"], "must have a finite number as limit"),
        (["--require", "ratio >= 3", "--require", "ratio <= 2"], "contradict"),
        (["--require", "ratio >= 1.1 * best"], "nothing is better than the best"),
        (["--prefer", "decode_mb_s"], "--prefer must name one of the objectives ratio encode_mb_s, got 'decode_mb_s'"),
        *((["--budget", text], "--budget must be ") for text in ("", "0", "-1", "0s", "soon", "1.5", "inf", "6")),
        (["--budget", "9" * 400 + "s"], "--budget must be "),
        *((["--sample", text], "--sample must be a size ") for text in ("0MB", "16", "-1MB", "big", "9" * 400 + "GB")),
        *((["--seed", text], "--seed: must be a whole number in ") for text in ("-1", "x", "4294967296")),
        *((["--jobs", text], "--jobs: must be a whole number in ") for text in ("0", "x", "1.5")),
        (["--storage", "nonsense"], "--storage must be the URL of a database"),
        (["--storage", "sqlite:////nope/trials.db"], "--storage must be the URL of a database"),
        (["--nope"], "unrecognized arguments: --nope"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_options_of_a_search(
    scan: Path, tmp_path: Path, refused: Callable[..., str], options: list[str], said: str
) -> None:
    # Joined, as a value may begin with a minus.
    given = [f"{name}={value}" for name, value in zip(options[::2], options[1::2], strict=False)] or options
    assert said in refused("search", scan, "-o", tmp_path / "new.yaml", *given)


SPACES = {
    "blosc2: {codec: lz5}": "blosc2.codec must be one of blosclz lz4 lz4hc zlib zstd j2k htj2k, got 'lz5'",
    "blosc2: {codek: lz4}": "blosc2.codek is not a known key (did you mean 'codec'?)",
    "blocs2: {codec: lz4}": "blocs2 is not a known key (did you mean 'blosc2'?)",
    "blosc2: {clevel: {range: [0, 12]}}": "must be in 0..9, got 12",
    "blosc2: {clevel: {range: [9, 1]}}": "blosc2.clevel.range must be [low, high]",
    "blosc2: {clevel: 5.5}": "blosc2.clevel must be ",
    "blosc2: {clevel: '5'}": "blosc2.clevel must be in 0..9, got '5'",
    "blosc2: {clevel: {choose: [1, 10]}}": "must be in 0..9, got 10",
    "blosc2: {codec: {choose: []}}": "blosc2.codec.choose must have at least one alternative",
    "blosc2: {filters: [shuffle, delta]}": "must have 'delta' only first",
    "blosc2: {filters: [shuffle, bytedelta, bitshuffle]}": "c-blosc2 decodes longer chains wrongly",
    "blosc2: {codec: null}": "blosc2.codec must ",
    "chunks: [0, -1, -1]": "chunks[0] must be ",
    "chunks: {choose: [[1, ...], [1XB, ...]]}": "must be a size such as 16MB",
}

#: Documents that are none, whatever they should be.
DOCUMENTS = {
    "": "must be a YAML mapping, got nothing",
    "- a": "must be a YAML mapping",
    "name: [": "is not valid YAML: line",
    "name: a\nname: b": "is not valid YAML: line 2: key 'name' is given twice",
    "1: a": "a key must be a word",
    "name: &a [x]\nschema: *a": "is not valid YAML: line 2: aliases are not allowed",
    "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9)): "aliases are not allowed",
    "name: !!python/object/apply:os.mkdir [pwned]": "is not valid YAML: line 1: ",
    "name: !!python/name:os.system": "is not valid YAML: line 1: ",
    "name: 2026-99-99": "is not valid YAML: ",
    "name: " + "[" * 100_000: "nested too deeply",
    "name: " + "{a: " * 20_000: "nested too deeply",
    "name: " + "9" * 5000: "",
    "name: " + "x" * (5 << 20): "must be a YAML document of at most",
    "\0": "is not valid YAML",
}


@pytest.mark.parametrize(("text", "said"), SPACES.items(), ids=lambda text: text[:40])
def test_mistakes_in_a_space(scan: Path, tmp_path: Path, refused: Callable[..., str], text: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    line = refused("search", scan, "-o", tmp_path / "new.yaml", "--space", tmp_path / "mine.yaml")
    assert line.startswith(f"{tmp_path}/mine.yaml: ")
    assert said in line


@pytest.mark.parametrize(("text", "said"), DOCUMENTS.items(), ids=lambda text: repr(text[:30]))
def test_documents_that_are_none(
    scan: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    for command in (
        ["search", scan, "-o", "new.yaml", "--space", "mine.yaml"],
        ["search", scan, "-o", "new.yaml", "--goal", "mine.yaml"],
        ["apply", "mine.yaml", scan, "out.h5"],
        ["verify", "mine.yaml", scan],
    ):
        line = refused(*command)
        assert line.startswith("mine.yaml: ")
        assert said in line


def test_a_profile_for_other_frames(scan: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    store(tmp_path / "dtype.h5", FRAMES.astype("uint32"))
    store(tmp_path / "shape.h5", FRAMES[:, :32])
    for name, said in {
        "dtype.h5": "the profile is for dtype uint16, got uint32",
        "shape.h5": "the profile is for frames of shape [64, 64], got [32, 64]",
    }.items():
        for command in commands(tmp_path, tmp_path / name)[2:]:
            line = refused(*command)
            assert line.startswith(f"{tmp_path}/{name}: ")
            assert said in line


def test_a_changed_profile_is_refused_where_that_is_asked_for(
    scan: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    profile = tmp_path / "scan.yaml"
    profile.write_text(profile.read_text().replace("clevel: 1", "clevel: 2"))
    assert "digest does not match" in refused("apply", profile, scan, tmp_path / "out.h5", "--strict")
    profile.write_text(profile.read_text().replace("schema: 1", "schema: 99"))
    assert "a newer tuner wrote it" in refused("apply", profile, scan, tmp_path / "out.h5")


def test_outputs_that_cannot_be_written(scan: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "old.h5").write_text("precious")
    profile = tmp_path / "scan.yaml"
    for output, said in {
        "/nope/deep/out": "must exist",
        str(scan / "out"): "must exist",
        str(scan): "input",
    }.items():
        assert said in refused("search", scan, "-o", output)
        assert said in refused("apply", profile, scan, output)
    os.mkfifo(tmp_path / "device")  # which a rename would replace, as it would /dev/null
    assert "must be a file" in refused("search", scan, "-o", tmp_path / "device")
    assert "must be a file" in refused("apply", profile, scan, tmp_path / "device", "--overwrite")
    assert "must be a file" in refused("demo", "-o", tmp_path / "device")
    assert "must be a file" in refused("search", scan, "-o", tmp_path)
    assert "input" in refused("apply", profile, scan, scan, "--overwrite")
    assert "input" in refused("apply", profile, scan, profile, "--overwrite")
    assert "exists already" in refused("apply", profile, scan, tmp_path / "old.h5")
    # What is mistaken for an output may be the only scan of its kind.
    store(tmp_path / "other.h5", FRAMES)
    assert "exists already" in refused("demo", "-o", scan)
    assert "exists already" in refused("search", scan, "-o", tmp_path / "other.h5")
    assert "exists already" in refused("search", scan, "-o", tmp_path / "old.h5")
    soak = ("soak", profile, "--target", tmp_path, "--rate", "2Hz", "--for", "1s")
    assert "exists already" in refused(*soak, "-o", tmp_path / "other.h5")
    assert "input" in refused(*soak, "--data", scan, "-o", scan)
    (tmp_path / "again.h5").symlink_to(scan)
    assert "input" in refused("apply", profile, scan, tmp_path / "again.h5", "--overwrite")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which even root may not write: /proc")
def test_a_folder_that_cannot_be_written_to_is_said_before_searching(
    scan: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert "/proc/new.yaml: its folder must be writable" in refused("search", scan, "-o", "/proc/new.yaml")
    refused("apply", tmp_path / "scan.yaml", scan, "/proc/out.h5", code=1)
    refused("demo", "-o", "/proc/scan.nxs", "--frames", "2", code=1)


def test_a_full_disk_is_said_before_searching(scan: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        line = refused("search", scan, "-o", tmp_path / "new.yaml", code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert line == f"{tmp_path}/new.yaml: must have room for it, got File too large"


def test_usage(scan: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    profile = tmp_path / "scan.yaml"
    for command in (
        [],
        ["nonsense"],
        ["read"],
        ["search", scan],
        ["search", "-o", tmp_path / "new.yaml"],
        ["apply", profile],
        ["apply", profile, scan],
        ["verify", profile],
        ["verify", profile, scan, scan, "--against", scan],
        ["demo"],
        ["demo", "-o", tmp_path / "new.nxs", "--technique", "xrd"],
        ["demo", "-o", tmp_path / "new.nxs", "--frames", "0"],
        ["demo", "-o", tmp_path / "new.nxs", "--shape", "8", "512"],
        ["demo", "-o", tmp_path / "new.nxs", "--seed", "-1"],
        ["verify", tmp_path / "missing.yaml", scan],
        ["verify", profile, tmp_path / "missing.h5", "--against", scan],
        ["verify", profile, scan, "--against", scan],
        ["read", ""],  # what a shell makes of a variable that is not set
        ["apply", profile, scan, ""],
    ):
        refused(*command)


def test_demo_replaces_a_file_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "scan.nxs"
    path.write_text("of before")
    assert main(["demo", "-o", str(path), "--frames", "2", "--shape", "64", "64", "--quiet", "--overwrite"]) == 0
    assert h5py.is_hdf5(path)


def test_a_mistyped_option_leads_to_the_help_of_its_command(scan: Path, refused: Callable[..., str]) -> None:
    line = refused("search", scan, "-o", "new.yaml", "--bugdet", "10s")
    assert line == "unrecognized arguments: --bugdet 10s (see tuner search --help)"


def test_a_target_that_is_no_folder(scan: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    """Also where nothing is asked of it: else the wrong disk would be searched for."""
    for target in (tmp_path / "nope", scan):
        line = f"--target must be an existing folder, got '{target}'"
        assert refused("search", scan, "-o", tmp_path / "new.yaml", "--target", target) == line
        assert refused("soak", tmp_path / "scan.yaml", "--target", target, "--rate", "2Hz") == line


@pytest.mark.skipif(
    all(__import__("importlib.util").util.find_spec(name.replace("-", "_")) for name in PLUGINS.values()),
    reason="all codec plug-ins are installed",
)
@pytest.mark.usefixtures("home")
def test_a_plug_in_that_is_not_installed(
    scan: Path, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("blosc2: {codec: j2k, filters: [], splitmode: never}")
    line = refused("search", scan, "-o", tmp_path / "new.yaml", "--space", tmp_path / "mine.yaml")
    assert line == "space mine: blosc2-j2k is not installed: pip install tuner[plugins]"
    # Where the space holds others, those are searched.
    assert main(["search", str(scan), "-o", str(tmp_path / "new.yaml"), "--space", "plugins", "--budget", "12"]) == 0
    assert "plugins: []" in (tmp_path / "new.yaml").read_text()
    capsys.readouterr()


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("kilobytes", [0, 4, 24])
def test_a_full_disk(scan: Path, tmp_path: Path, kilobytes: int) -> None:
    """A limit on the size of a file stands for a full disk: a write fails half-way."""
    limit = kilobytes << 10

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    before = content(tmp_path)
    for command in (
        ["apply", tmp_path / "scan.yaml", scan, tmp_path / "out.h5"],
        ["demo", "-o", tmp_path / "new.nxs", "--frames", "4"],
        *([["search", scan, "-o", tmp_path / "new.yaml", "--budget", "8"]] if not kilobytes else []),
    ):
        done = subprocess.run(
            [TUNER, *map(str, command)],
            preexec_fn=limited,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        lines = [line for line in done.stderr.splitlines() if line.startswith("tuner:")]
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert len(lines) == 1, done.stderr
        assert content(tmp_path) == before


def test_a_full_pipe(scan: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run([TUNER, "read", str(scan)], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "No space left on device" in line
