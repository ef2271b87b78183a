"""What README and docs say is so: examples run, commands exist, links lead somewhere, files that are named exist."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import tuner
from tuner import find_profile
from tuner.cli import main
from tuner.config import PLUGINS
from tuner.evaluation import METRICS, Log
from tuner.goal import BASELINES, Goal
from tuner.profile import load_profile
from tuner.search import champion
from tuner.search.champion import shipped_log
from tuner.search.surrogate import dataset_of
from tuner.simulate import simulate, write_nexus
from tuner.space import load_space

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECORDS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What makes a search of an example short, whatever it says itself: later options replace earlier ones.
SHORT = ["--budget", "9", "--sample", "2MB", "--quiet"]
#: What makes frames of an example small, where they are images; those of scan.nxs have the size that pages speak of.
SMALL = {technique: ["--shape", "256", "256"] for technique in ("tomography", "mx", "saxs")}


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages take it: the simulated scan, of smaller frames, and a profile found on it.

    Of the shipped log every tenth data set is there, as to train on all of it, at each command, would take minutes.
    """
    folder = tmp_path_factory.mktemp("docs")
    for name in ("profiles", "shipped"):
        (folder / name).mkdir()
    write_nexus(str(folder / "scan.nxs"), simulate("tomography", 16, 0, (512, 512)))
    shipped = shipped_log()
    kept = {*sorted({dataset_of(evaluation) for evaluation in shipped})[::10]}
    with Log(folder / "shipped" / "log.jsonl") as log:
        for evaluation in shipped:
            if dataset_of(evaluation) in kept:
                log.append(evaluation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(folder / "home"))
        patch.setattr(champion, "_shipped", lambda: folder / "shipped")
        found = find_profile([folder / "scan.nxs"], space="quick", budget="12", sample="2MB")
    found.profile.save(folder / "profiles" / "id19.yaml")
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(champion, "_shipped", lambda: tmp_path / "shipped")
    return tmp_path


def commands(block: str) -> Iterator[list[str]]:
    """The `tuner` lines of a console block, as lists of words."""
    for line in block.splitlines():
        if line.startswith("$ tuner "):
            yield shlex.split(line.removeprefix("$ tuner "), comments=True)


def run(command: list[str]) -> int:
    if command[0] == "demo" and Path(command[2]).exists():
        return 0
    if command[0] == "apply" and not {"--overwrite", "--in-place"} & {*command}:
        Path(command[-1]).unlink(missing_ok=True)
    if command[0] == "demo":
        return main(command + SMALL.get(command[command.index("--technique") + 1], []))
    return main(command + SHORT if command[0] == "search" else command)


@pytest.mark.slow
@pytest.mark.parametrize("name", names(PAGES))
def test_the_examples_of_a_page_run_in_their_order(name: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    space: dict[str, Any] = {}
    for language, block in BLOCK.findall(text):
        assert language in ("python", "console", "yaml", "text"), f"{name}: {language}"
        if language == "python":
            exec(compile(block, name, "exec"), space)
        elif language == "yaml":
            # The first line names the file.
            Path(block.partition("\n")[0].removeprefix("# ")).write_text(block, encoding="utf-8")
            yaml.safe_load(block)
        for command in commands(block) if language == "console" else ():
            # A speed in MB/s may be more than a busy machine can do.
            allowed = (0, 3) if {"--require", "--goal"} & {*command} else (0,)
            assert run(command) in allowed, f"tuner {shlex.join(command)}: {capfd.readouterr().err}"


@pytest.mark.parametrize("name", names(PAGES))
def test_commands_of_a_page_are_understood(name: str) -> None:
    from tuner.cli.arguments import make_parser

    for language, block in BLOCK.findall((ROOT / name).read_text(encoding="utf-8")):
        for command in commands(block) if language == "console" else ():
            assert make_parser().parse_args(command)


def test_every_option_is_told_of() -> None:
    from tuner.cli.arguments import make_parser

    told = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    (choices,) = (action.choices for action in make_parser()._actions if action.choices)
    options = {option for command in choices.values() for option in command._option_string_actions}
    missing = sorted(option for option in options if option.startswith("--") and option not in told)
    assert missing == []


def test_every_key_of_a_profile_is_told_of(prepared: Path) -> None:
    told = (ROOT / "docs" / "profile.md").read_text(encoding="utf-8")
    document = load_profile(prepared / "profiles" / "id19.yaml").to_dict()
    keys = [*document, *document["match"], *document["invalid"], *document["readers"], *document["evidence"]]
    assert [key for key in keys if key not in told] == []


def test_every_metric_goal_and_space_is_told_of() -> None:
    told = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    shipped = [*(ROOT / "search_spaces").glob("*.yaml"), *(ROOT / "search_spaces" / "goals").glob("*.yaml")]
    wanted = [*METRICS, *BASELINES, *(path.stem for path in shipped)]
    assert [name for name in wanted if f"`{name}`" not in told] == []


def test_yaml_on_the_page_of_goals_and_spaces_is_what_it_says(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "goals-and-spaces.md").read_text(encoding="utf-8")
    goal, *spaces = [block for language, block in BLOCK.findall(text) if language == "yaml"]
    assert Goal.from_dict(yaml.safe_load(goal)).maximize == ("ratio", "frame_read_mb_s")
    for index, space in enumerate(spaces):
        path = tmp_path / f"{index}.yaml"
        path.write_text(space, encoding="utf-8")
        assert list(load_space(path).bind((1024, 1024), np.dtype("uint16"), frames=64).grid())


@pytest.mark.parametrize("name", names([*PAGES, *RECORDS, *sorted((ROOT / "results").glob("*.md"))]))
def test_links_and_files_that_are_named_exist(name: str) -> None:
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    folders = "tuner|tests|docs|search_spaces|benchmarks|results"
    named = re.findall(rf"(?:^|[\s`(])((?:{folders})/[\w./-]*)", text, re.MULTILINE)
    assert [path for path in named if not (ROOT / path.rstrip(".")).exists()] == []


def test_pages_and_records_are_listed_and_dated() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if page.name != "index.md" and f"({page.name})" not in index] == []
    for record in RECORDS:
        number, line = record.name[:4], record.read_text(encoding="utf-8").splitlines()
        assert line[0].startswith(f"# {int(number)}. ")
        assert re.match(r"\d{4}-\d\d-\d\d, ", line[2])


def test_the_readme_has_the_place_that_the_benchmark_fills() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.findall(r"<!-- results/real_data\.md -->\n.*?<!-- end -->", text, re.DOTALL)) == 1


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"(?:^ {4}|`)make (\w+)", page.read_text(encoding="utf-8"), re.MULTILINE)) <= targets


def test_public_names_are_documented() -> None:
    told = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    verbs = [name for name in tuner.__all__ if name[0].islower()]
    assert [name for name in verbs if f"tuner.{name}(" not in told and f"import {name}\n" not in told] == []


#: Packages whose module has another name.
MODULES = {"pyyaml": "yaml", "scikit-learn": "sklearn", "scikit-image": "skimage", "pillow": "PIL"}


def dependencies() -> list[tuple[str, str]]:
    """Each dependency with a file of ours that its comment in pyproject.toml names."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)
    found = []
    for name, comment in re.findall(r'^\s+"([\w-]+)[^"]*",\s*# (.*)$', text, re.MULTILINE):
        found += [(name, path) for path in re.findall(r"(?:tuner|tests)/[\w/]*(?:\.py)?", comment)]
    return found


@pytest.mark.parametrize(("name", "path"), dependencies())
def test_the_file_that_needs_a_dependency_imports_it(name: str, path: str) -> None:
    place = ROOT / path
    assert place.exists(), f"pyproject.toml: {name}: no {path}"
    files = [place] if place.is_file() else place.rglob("*.py")
    module = MODULES.get(name, name.replace("-", "_"))
    # A plug-in is loaded by the name that PLUGINS has for it.
    wanted = r"\bimport .*\bPLUGINS\b" if name in PLUGINS.values() else rf"^\s*(import|from) {module}\b"
    texts = (file.read_text(encoding="utf-8") for file in files)
    assert any(re.search(wanted, text, re.MULTILINE) for text in texts), f"{path} does not import {module}"


def test_the_lines_that_troubleshooting_explains_are_lines_of_ours() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    source = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tuner").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # texts that go on in the next line
    quoted = [line for cell in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for line in re.findall("`(.*?)`", cell)]
    assert len(quoted) > 30
    # Three words that follow each other, as paths, names and numbers between them vary.
    words = {line: re.split(r"[ ,:]+", line) for line in quoted}
    said = {line: [" ".join(w[i : i + 3]) for i in range(len(w) - 2)] for line, w in words.items()}
    source = re.sub(r"[,:]", "", source)
    assert [line for line, parts in said.items() if not any(part in source for part in parts)] == []
