"""A document runs nothing, expands nothing, and every mistake in it is one line that says where."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from refusal import refusal

from tuner.document import (
    MAX_BYTES,
    Interval,
    canonical_json,
    check_bounds,
    check_mapping,
    check_number,
    check_schema,
    dump_yaml,
    kind_of,
    load_yaml,
    parse_size,
    parse_yaml,
    write_atomically,
)
from tuner.errors import InputError

#: No surrogates: no YAML file holds them.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
keys = texts.filter(lambda key: key.isprintable() and key != "")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
documents = st.dictionaries(keys, values, max_size=5)


def refused(text: str | bytes) -> str:
    """The one line that refuses a document."""
    return refusal(lambda: parse_yaml(text, "my.yaml"), "my.yaml: ")


@given(documents)
@example({"small": 1e-05, "word": "1e-05", "large": 1e300, "yes": "no", "date": "2026-11-20", "nothing": "~"})
@example({"next line": "a\x85b\u2028c", "tab": "\t", "end": "x\n", "nul": "\0"})
def test_what_is_written_is_read_back(document: dict[str, Any]) -> None:
    read = parse_yaml(dump_yaml(document), "my.yaml")
    assert canonical_json(read) == canonical_json(document)


def test_what_stands_in_two_places_is_written_twice() -> None:
    shared = [1, 2]
    document = {"a": shared, "b": {"c": shared}}
    assert parse_yaml(dump_yaml(document), "my.yaml") == document


@pytest.mark.parametrize("text", ["1e-05", "1e5", "-2E+3", "1.5e-3", "+1e0"])
def test_a_number_with_an_exponent_needs_no_point(text: str) -> None:
    assert parse_yaml(f"a: {text}", "my.yaml") == {"a": float(text)}


@given(st.binary(max_size=60) | st.text(max_size=60))
@example(b"a: \xff")
@example("a: '\ud800'")
@example("\0")
@example("a: 0b_")
@example("? [1]\n: 2")
@example("? {a: b}\n: 2")
@example("a: 1\n---\nb: 2")
@example("<<: {a: 1}")
@example("a: 0x" + "f" * 5000)
@example("a: " + "9" * 5000)
def test_any_bytes_are_a_mapping_or_one_line(text: str | bytes) -> None:
    with suppress(InputError):
        parse_yaml(text, "my.yaml")
        return
    refused(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x [1]\nb: *x", "line 2: aliases are not allowed"),
        ("a: !!python/object/apply:os.system ['touch ran']", "line 1: tags are not allowed"),
        ("a: !!python/name:os.system", "line 1: tags are not allowed"),
        ("a: !!bool foo", "line 1: tags are not allowed"),
        ("a: !!timestamp foo", "line 1: tags are not allowed"),
        ("a: !mine {b: 1}", "line 1: tags are not allowed"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2: key 'c' is given twice"),
        ("a: 1\na: 2", "line 2: key 'a' is given twice"),
        ("a:\n  1: 2", "line 2: a key must be a word, got 1"),
        ("null: 2", "line 1: a key must be a word, got nothing"),
        ('"a\\nb": 2', "line 1: a key must be a word, got 'a\\nb'"),
        ("a: [1, 2", "line 2: did not find expected ',' or ']'"),
        ("a:\n\t- 1", "line 2: found character that cannot start any token"),
        ("[1, 2]", "must be a YAML mapping, got [1, 2]"),
        ("", "must be a YAML mapping, got nothing"),
        ("word", "must be a YAML mapping, got 'word'"),
        ("a: 2026-99-99", "is not valid YAML: month must be in 1..12"),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        (b"\xff\xfe\x00\xd8", "is not valid YAML"),
        (b"a: \xc3\x28", "invalid"),
        (b"\x89HDF\r\n\x1a\n\0\0\0", "is not valid YAML"),
    ],
)
def test_what_is_no_document_of_ours_is_refused(
    text: str | bytes, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in refused(text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["[" * 10**5, "- " * 10**5, "{a: " * 10**5, "? " * 10**5])
def test_deep_nesting_is_refused_before_it_overflows_a_stack(text: str) -> None:
    assert "line 1: nested too deeply" in refused(text)


def test_aliases_never_explode() -> None:
    laughs = "a0: &a0 [lol, lol]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    assert "line 2: aliases are not allowed" in refused(laughs)


def test_a_large_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.write(b"a: 1\n")
        file.truncate(100_000_000)
    with pytest.raises(InputError, match=r"large\.yaml: must be a YAML document of at most 256 KiB"):
        load_yaml(path)


@pytest.mark.parametrize("junk", [b"- a\n", b"a: {b: [1, 2]}\n", b"[],", b"\x80", b"'"])
def test_no_file_takes_long(junk: bytes, tmp_path: Path) -> None:
    path = tmp_path / "junk.yaml"
    path.write_bytes(junk * (MAX_BYTES // len(junk)))
    reference = time.thread_time()
    yaml.load(b"- a\n" * (MAX_BYTES // 4), Loader=yaml.CSafeLoader)
    reference = time.thread_time() - reference
    start = time.thread_time()
    with pytest.raises(InputError):
        load_yaml(path)
    assert time.thread_time() - start < 20 * reference


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_yaml(tmp_path)


KILLED = """
import sys
from tuner.document import write_atomically
text = sys.argv[2] * 2_000_000
print("ready", flush=True)
while True:
    write_atomically(sys.argv[1], text)
"""


def test_a_kill_leaves_the_old_file_or_the_new_whole(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    letters = "abcdef"
    allowed = {""}
    path.write_text("")
    for turn, letter in enumerate(letters):
        with subprocess.Popen([sys.executable, "-c", KILLED, path, letter], stdout=subprocess.PIPE) as child:
            assert child.stdout
            child.stdout.readline()
            time.sleep(0.004 * turn)
            os.kill(child.pid, signal.SIGKILL)
        allowed.add(letter * 2_000_000)
        assert path.read_text() in allowed
    assert len(allowed) == len(letters) + 1


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none/p\.yaml: its folder must exist"):
        write_atomically(tmp_path / "none" / "p.yaml", "text")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "p.yaml", "\ud800")
    assert list(tmp_path.iterdir()) == []


def test_colleagues_can_read_what_is_written(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        write_atomically(tmp_path / "p.yaml", "text")
    finally:
        os.umask(umask)
    assert (tmp_path / "p.yaml").stat().st_mode & 0o777 == 0o644


def test_what_other_threads_create_meanwhile_keeps_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "umask")  # it is the process's, and can only be asked for by changing it
    write_atomically(tmp_path / "p.yaml", "text")
    assert (tmp_path / "p.yaml").read_text() == "text"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None, [1], 10**400])
def test_only_finite_numbers_are_numbers(value: Any) -> None:
    with pytest.raises(InputError, match=r"^x\.yaml: gain must be a finite number, got "):
        check_number(value, "x.yaml: gain")


@pytest.mark.parametrize("value", [[1], [2, 1], [1, 2, 3], 1, [1, math.nan], ["1", 2]])
def test_bounds_are_two_numbers_the_lower_first(value: Any) -> None:
    with pytest.raises(InputError, match=r"^x\.yaml: envelope\.mean"):
        check_bounds(value, "x.yaml: envelope.mean")


@given(st.integers(), st.integers(-100, 100), st.none() | st.integers(-100, 100), st.none() | st.integers(-100, 100))
def test_an_interval_allows_what_lies_inside(value: int, low: int, high: int | None, also: int | None) -> None:
    inside = value == also or (low <= value and (high is None or value <= high))
    try:
        assert Interval(low, high, also).check(value, "x") == value
    except InputError:
        assert not inside
    else:
        assert inside


@pytest.mark.parametrize("schema", [2, 0, -1, True, "1", 1.0, None, 1 << 9999])
def test_a_newer_or_senseless_schema_is_refused(schema: Any) -> None:
    with pytest.raises(InputError, match=r"^x\.yaml: schema must be "):
        check_schema({"schema": schema}, "x.yaml:", 1)


def test_an_unknown_key_is_told_with_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        check_mapping({"clevl": 1}, "i03.yaml: config.blosc2", ["codec", "clevel"])
    assert str(caught.value) == (
        "i03.yaml: config.blosc2.clevl is not a known key (did you mean 'clevel'?); known: codec clevel"
    )


@pytest.mark.parametrize("text", ["16", "16 PB", "-1MB", "MB", "1e3MB", 16, None, "0MB", "0.1B", "16MB 2", "٣MBx"])
def test_what_is_no_size_is_refused(text: Any) -> None:
    with pytest.raises(InputError, match=r"^--sample must be a size such as 16MB or 4MiB, got "):
        parse_size(text, "--sample")


@given(st.integers() | st.text() | st.lists(st.integers()))
@example(1 << 99999)
def test_any_value_is_told_in_a_short_line(value: Any) -> None:
    text = kind_of(value)
    assert len(text) <= 60
    assert len(text.splitlines()) == 1
