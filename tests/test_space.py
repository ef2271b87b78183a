"""A space is a config with holes: choices lead to configurations, and every configuration leads back to choices."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusal import refusal

from tuner.choices import Choices, Choose, Range
from tuner.config import CHAINS, CODECS, SPLITMODES, Config
from tuner.document import dump_yaml, parse_yaml
from tuner.errors import InputError
from tuner.goal import load_goal
from tuner.space import Space, load_space
from tuner.steps.uniform import Uniform

SHIPPED = (
    *("compatible", "counting", "float", "integrating", "mx", "plugins", "portable", "quick"),
    *("scattering", "spectroscopy", "tomography"),
)
U16 = np.dtype("uint16")


def leaves(values: st.SearchStrategy[Any], whole: bool) -> st.SearchStrategy[Any]:
    """A value, or what leaves it open."""
    ranges = st.tuples(values, values).map(lambda ends: {"range": sorted(ends)}) if whole else st.nothing()
    inner = values | ranges
    chosen = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"choose": options})
    return inner | chosen | st.lists(chosen | values, min_size=1, max_size=2).map(lambda options: {"choose": options})


plain = st.fixed_dictionaries(
    {},
    optional={
        "codec": leaves(st.sampled_from(list(CODECS)), whole=False),
        "clevel": leaves(st.integers(0, 3), whole=True),
        "filters": leaves(st.sampled_from([list(chain) for chain in CHAINS]), whole=False),
        "splitmode": leaves(st.sampled_from(list(SPLITMODES)), whole=False),
        "typesize": leaves(st.integers(0, 3), whole=True),
        "blocksize": leaves(st.sampled_from([0, 256, 768]), whole=False),
    },
).filter(lambda document: len(document) <= 3)
#: Keys beside `choose` are shared; alternatives may themselves choose.
branches = st.recursive(
    plain,
    lambda inner: st.builds(
        lambda shared, options: {**shared, "choose": options}, plain, st.lists(inner, min_size=1, max_size=2)
    ),
    max_leaves=3,
)
shapes = st.tuples(st.integers(1, 4), st.sampled_from([-1, 5]), st.sampled_from([-1, 7])).map(list)
documents = st.fixed_dictionaries({}, optional={"chunks": leaves(shapes, whole=False), "blosc2": branches})


def space_of(document: Any) -> Space | None:
    """The space, or None where two given values are not allowed together."""
    try:
        return Space.from_dict(document, "my.yaml:")
    except InputError as error:
        if "must be a multiple of typesize" in str(error):
            return None
        raise


def refused(document: Any) -> str:
    """The one line that refuses a space's document."""
    return refusal(lambda: Space.from_dict(document, "my.yaml:"), "my.yaml")


@given(documents)
def test_locate_is_the_inverse_of_at(document: Any) -> None:
    space = space_of(document)
    for choices, config in itertools.islice(space.grid() if space else [], 100):
        located = space.locate(config) if space else None
        assert space is not None
        assert located is not None
        assert space.at(located) == config
        assert space.at(choices) == config


@given(documents, st.data())
def test_whatever_is_suggested_is_in_the_grid(document: Any, data: st.DataObject) -> None:
    class Drawing:
        def __init__(self) -> None:
            self.choices: Choices = {}

        def choose(self, name: str, labels: tuple[str, ...]) -> str:
            assert len(set(labels)) == len(labels)
            assert name not in self.choices
            label = data.draw(st.sampled_from(labels))
            self.choices[name] = label
            return label

        def number(self, name: str, low: int, high: int) -> int:
            assert name not in self.choices
            number = data.draw(st.integers(low, high))
            self.choices[name] = number
            return number

    space, chooser = space_of(document), Drawing()
    if space is None:
        return
    try:
        config = space.suggest(chooser)
    except InputError:
        with pytest.raises(InputError, match="must be a multiple of typesize"):
            space.at(chooser.choices)
        return
    assert space.at(chooser.choices) == config
    if sum(1 for _ in itertools.islice(space.grid(), 500)) < 500:
        assert any(choices == chooser.choices for choices, _ in space.grid())


@given(documents)
def test_the_grid_holds_every_combination_once(document: Any) -> None:
    space = space_of(document)
    grid = [choices for choices, _ in itertools.islice(space.grid(), 300)] if space else []
    assert len({tuple(choices.items()) for choices in grid}) == len(grid)


@given(documents)
def test_a_space_survives_its_yaml(document: Any) -> None:
    space = space_of(document)
    if space is not None:
        assert Space.from_dict(parse_yaml(dump_yaml(document), "my.yaml"), "my.yaml:") == space


@given(documents, st.sampled_from([(30, 40), (3, 1000), (64,)]), st.integers(1, 9))
def test_what_is_bound_resolves(document: Any, frame_shape: tuple[int, ...], frames: int) -> None:
    space = space_of(document)
    if space is None:
        return
    for _, config in itertools.islice(space.bind(frame_shape, U16, frames).grid(), 50):
        assert len(config.chunks) == 1 + len(frame_shape)
        assert config.chunks[0] <= frames
        # An extent that spans an axis is always -1, so that what coincides is equal.
        assert all(extent == -1 or extent < size for extent, size in zip(config.chunks[1:], frame_shape, strict=True))


def test_a_space_without_holes_is_one_config() -> None:
    space = Space.from_dict({"chunks": [2, -1, 64], "blosc2": {"codec": "zstd", "filters": ["shuffle", "bytedelta"]}})
    ((choices, config),) = space.grid()
    assert choices == {}
    assert config == Config.from_dict(
        {"chunks": [2, -1, 64], "blosc2": {"codec": "zstd", "filters": ["shuffle", "bytedelta"]}}
    )
    assert space.locate(config) == {}


def test_an_absent_key_takes_the_default_of_config() -> None:
    assert [config for _, config in Space.from_dict({}).grid()] == [Config()]
    space = Space.from_dict({"blosc2": {"clevel": {"range": [1, 2]}}})
    assert [config for _, config in space.grid()] == [
        Config.from_dict({"blosc2": {"clevel": clevel}}) for clevel in (1, 2)
    ]
    assert space.locate(Config.from_dict({"blosc2": {"clevel": 2, "codec": "zstd"}})) is None
    assert space.locate(Config.from_dict({"blosc2": {"clevel": 3}})) is None


def test_keys_beside_choose_hold_for_the_alternatives_that_do_not_give_their_own() -> None:
    space = Space.from_dict(
        {
            "blosc2": {
                "choose": [{"codec": "lz4"}, {"codec": "zstd", "clevel": 9}, {"choose": [{"codec": "zlib"}]}],
                "clevel": {"choose": [1, 3]},
            }
        }
    )
    levels = [(config.blosc2.codec, config.blosc2.clevel) for _, config in space.grid()]
    assert levels == [("lz4", 1), ("lz4", 3), ("zstd", 9), ("zlib", 1), ("zlib", 3)]


def test_alternatives_that_coincide_are_one() -> None:
    space = Space.from_dict({"blosc2": {"clevel": {"choose": [1, 1]}, "filters": {"choose": [[], ["shuffle"], []]}}})
    assert len(list(space.grid())) == 2


def test_a_number_and_an_alternative_that_leaves_more_open_are_told_apart() -> None:
    space = Space.from_dict({"blosc2": {"clevel": {"choose": [{"range": [4, 5]}, 0]}}})
    assert [config.blosc2.clevel for _, config in space.grid()] == [4, 5, 0]


def test_a_wide_range_takes_no_memory() -> None:
    space = Space.from_dict({"blosc2": {"blocksize": {"range": [256, 536_866_816]}}})
    grid = space.grid()
    assert [next(grid)[1].blosc2.blocksize for _ in range(3)] == [256, 257, 258]


@pytest.mark.parametrize(
    ("chunks", "frame_shape", "dtype", "frames", "expected"),
    [
        ([1, "..."], (100, 200), "uint16", 64, [1, -1, -1]),
        ([1, "..."], (100,), "uint16", 64, [1, -1]),
        (["4MiB", "..."], (1024, 1024), "uint16", 64, [2, -1, -1]),
        (["4MiB", "..."], (1024, 1025), "uint16", 64, [1, -1, -1]),
        (["4MiB", "..."], (100, 100), "uint16", 64, [64, -1, -1]),
        (["4MiB", "..."], (100, 100), "uint16", 10**9, [128, -1, -1]),
        (["4MiB", "..."], (4096, 4096), "uint16", 64, [1, -1, -1]),
        (["4MB", 512, "..."], (1024, 1000), "uint16", 64, [2, 512, -1]),
        (["4MiB", 32, -1], (2048, 2048), "uint16", 64, [32, 32, -1]),
        ([1, 512, 512], (512, 1024), "uint16", 64, [1, -1, 512]),
        ([1, 512, 512], (2000,), "uint16", 64, [1, 512]),
        ([1, 512], (512, 1024), "uint16", 64, [1, -1, 512]),
        ([1, 64, 64, "..."], (2000,), "uint16", 64, [1, 64]),
        ([100, "..."], (512, 1024), "uint16", 64, [64, -1, -1]),
        (["4MiB", "..."], (1024, 1024), "float64", 64, [1, -1, -1]),
    ],
)
def test_sizes_become_powers_of_two_of_frames(
    chunks: Any, frame_shape: tuple[int, ...], dtype: str, frames: int, expected: list[int]
) -> None:
    bound = Space.from_dict({"chunks": chunks}).bind(frame_shape, np.dtype(dtype), frames)
    assert bound.tree["chunks"] == expected
    ((_, config),) = bound.grid()
    config.resolve(frame_shape, np.dtype(dtype))


@given(st.integers(1, 10**9), st.integers(1, 4000), st.integers(1, 4000))
def test_a_size_is_filled_but_not_passed(nbytes: int, height: int, width: int) -> None:
    bound = Space.from_dict({"chunks": [f"{nbytes}B", "..."]}).bind((height, width), U16, 2**40)
    count = bound.tree["chunks"][0]
    frame = 2 * height * width
    assert math.log2(count).is_integer()
    assert count == 1 or count * frame <= nbytes
    assert 2 * count * frame > nbytes


def test_binding_merges_what_coincides() -> None:
    space = Space.from_dict(
        {"chunks": {"choose": [[1, "..."], ["1MiB", "..."], [1, 512, 512]]}, "blosc2": {"typesize": {"choose": [0, 2]}}}
    )
    bound = space.bind((100, 100_000), U16, 8)
    assert bound.tree["chunks"] == Choose(([1, -1, -1], [1, -1, 512]))
    assert bound.tree["blosc2"] == {"typesize": 2}


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("frame_shape", [(2528, 2464), (22, 26), (2000,)])
def test_every_config_of_a_shipped_space_is_allowed(name: str, frame_shape: tuple[int, ...]) -> None:
    space = load_space(name)
    assert space.name == name

    def count(node: Any) -> int:
        if isinstance(node, Choose):
            return sum(count(option) for option in node.options)
        if isinstance(node, Range):
            return node.high - node.low + 1
        parts = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        return math.prod(count(part) for part in parts)

    # Of Blosc2's values every combination is allowed; with more chunk shapes they would only be the same again.
    blosc2 = Space(name, {**space.bind(frame_shape, U16, 16).tree, "chunks": [1, *[-1] * len(frame_shape)]})
    step = max(1, count(dict(blosc2.tree)) // 500)
    configs = [config for _, config in blosc2.grid()]
    assert len(configs) == count(dict(blosc2.tree))
    for config in configs[::step]:
        config.resolve(frame_shape, U16)
        located = blosc2.locate(config)
        assert located is not None
        assert blosc2.at(located) == config
    for _, config in Space(name, {"chunks": space.bind(frame_shape, U16, 16).tree["chunks"]}).grid():
        config.resolve(frame_shape, U16)


def test_the_shipped_are_those_that_are_named() -> None:
    with pytest.raises(InputError) as caught:
        load_space("portabel")
    assert str(caught.value) == (
        f"space must be one of {' '.join(SHIPPED)} or a YAML file, got 'portabel' (did you mean 'portable'?)"
    )
    for name in ("acquire", "archive", "balanced", "noise-equivalent", "read", "sub-noise"):
        assert load_goal(name).name == name


def test_a_users_own_file_is_as_good(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("blosc2: {codec: {choose: [lz4, zstd]}}")
    assert load_space(path).name == "mine"
    path.write_text("name: other\nblosc2: {clevel: 12}")
    with pytest.raises(InputError, match=r"mine\.yaml: blosc2\.clevel must be in 0\.\.9, got 12"):
        load_space(path)
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        load_space(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "blosc: {}",
            "my.yaml: blosc is not a known key (did you mean 'blosc2'?); known: schema name reduce steps chunks blosc2",
        ),
        ("schema: 2", "my.yaml: schema must be at most 1, got 2: a newer tuner wrote it"),
        ("name: 1", "my.yaml: name must be a text, got 1"),
        ("blosc2: 1", "my.yaml: blosc2 must be a mapping, got 1"),
        ("blosc2:", "my.yaml: blosc2 must be a mapping, got nothing"),
        ("blosc2: {level: 1}", "my.yaml: blosc2.level is not a known key (did you mean 'clevel'?)"),
        ("blosc2: {range: [1, 2]}", "my.yaml: blosc2.range is not a known key"),
        ("blosc2: {choose: []}", "my.yaml: blosc2.choose must have at least one alternative, got none"),
        ("blosc2: {choose: 1}", "my.yaml: blosc2.choose must be a list, got 1"),
        ("blosc2: {choose: {a: 1}}", "my.yaml: blosc2.choose must be a list, got a mapping"),
        ("blosc2: {choose: [{codec: lz4}, zstd]}", "my.yaml: blosc2.choose[1] must be a mapping, got 'zstd'"),
        (
            "blosc2: {choose: [{codec: lz4}, {codec: zstd, clevel: 12}]}",
            "my.yaml: blosc2.choose[1].clevel must be in 0..9, got 12",
        ),
        (
            "blosc2: {choose: [{codec: lz4}, {choose: [{}, {codec: lz5}]}]}",
            "my.yaml: blosc2.choose[1].choose[1].codec must be one of",
        ),
        (
            "blosc2: {choose: [{codec: lz4}], filters: {choose: [[], [shuffle], [shuffle, delta]]}}",
            "my.yaml: blosc2.filters.choose[2] must have 'delta' only first, got ['shuffle', 'delta']:",
        ),
        (
            "blosc2: {filters: {choose: [[shuffle], [shufle]]}}",
            "my.yaml: blosc2.filters.choose[1][0] must be one of shuffle bitshuffle delta bytedelta, got 'shufle'",
        ),
        ("blosc2: {filters: {choose: [shuffle]}}", "my.yaml: blosc2.filters.choose[0] must be a list, got 'shuffle'"),
        ("blosc2: {clevel: {range: [3, 1]}}", "my.yaml: blosc2.clevel.range must be [low, high] in whole numbers, got"),
        (
            "blosc2: {clevel: {range: [1]}}",
            "my.yaml: blosc2.clevel.range must be [low, high] in whole numbers, got [1]",
        ),
        ("blosc2: {clevel: {range: [1, 2.5]}}", "my.yaml: blosc2.clevel.range must be [low, high] in whole numbers"),
        ("blosc2: {clevel: {range: [true, 2]}}", "my.yaml: blosc2.clevel.range must be [low, high] in whole numbers"),
        ("blosc2: {clevel: {range: 5}}", "my.yaml: blosc2.clevel.range must be a list, got 5"),
        ("blosc2: {clevel: {range: [1, 10]}}", "my.yaml: blosc2.clevel.range[1] must be in 0..9, got 10"),
        ("blosc2: {codec: {range: [1, 2]}}", "my.yaml: blosc2.codec.range[0] must be one of"),
        ("blosc2: {clevel: {choose: [1, true]}}", "my.yaml: blosc2.clevel.choose[1] must be in 0..9, got True"),
        ("blosc2: {clevel: {choose: [1, .nan]}}", "my.yaml: blosc2.clevel.choose[1] must be in 0..9, got nan"),
        ("blosc2: {clevel: {choose: [1, 2026-11-20]}}", "my.yaml: blosc2.clevel.choose[1] must be in 0..9, got dateti"),
        ("blosc2: {clevel: {choose: [1], range: [1, 2]}}", "my.yaml: blosc2.clevel must be a value, choose: or range:"),
        ("blosc2: {clevel: {}}", "my.yaml: blosc2.clevel must be a value, choose: or range:, got an empty mapping"),
        ("blosc2: {clevel: [1, 2]}", "my.yaml: blosc2.clevel must be in 0..9, got [1, 2]"),
        ("blosc2: {clevel: }", "my.yaml: blosc2.clevel must be in 0..9, got nothing"),
        ("blosc2: {clevel: {choose: [1, {codec: lz4}]}}", "my.yaml: blosc2.clevel.choose[1].codec is not a known key"),
        (
            "blosc2: {blocksize: {choose: [0, 100]}}",
            "my.yaml: blosc2.blocksize.choose[1] must be 0 or in 256..536866816",
        ),
        (
            "blosc2: {choose: [{typesize: 3, blocksize: 1000}]}",
            "my.yaml: blosc2.choose[0].blocksize must be a multiple of typesize 3, got 1000",
        ),
        ("chunks: 1", "my.yaml: chunks must be a list, got 1"),
        ("chunks: [1]", "my.yaml: chunks must be frames and the axes of a frame, or ..., got [1]"),
        ("chunks: [-1, ...]", "my.yaml: chunks[0] must be in 1..4294967295, got -1"),
        ("chunks: {choose: [[1, ...], [4 MIB, ...]]}", "my.yaml: chunks.choose[1][0] must be a size such as 16MB"),
        ("chunks: {choose: [[1, ...], [1, ..., 5]]}", "my.yaml: chunks.choose[1][1] must be -1 or in 1..4294967295"),
        ("chunks: [..., 1]", "my.yaml: chunks[0] must be a size such as 16MB or 4MiB, got '...'"),
        ("chunks: [1, {choose: [1, 2]}]", "my.yaml: chunks[1] must be -1 or in 1..4294967295, got a mapping"),
        ("chunks: {range: [1, 2]}", "my.yaml: chunks.range[0] must be a list, got 1"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, expected: str) -> None:
    assert refused(parse_yaml(text, "my.yaml")).startswith(expected)


STEPS = """
steps:
  choose:
    - []
    - [{step: uniform, width: {choose: [2, 4]}}]
    - [{step: window, bits: {range: [4, 6]}, low: 0, high: 4095}]
blosc2: {clevel: {choose: [1, 2]}}
"""


def test_steps_are_chosen_with_their_parameters_and_found_again() -> None:
    space = Space.from_dict(parse_yaml(STEPS, "my.yaml"), "my.yaml:").bind((64, 64), np.dtype("uint16"), 8)
    grid = list(space.grid())
    assert len({config for _, config in grid}) == len(grid) == (1 + 2 + 3) * 2
    for choices, config in grid:
        assert space.locate(config) == choices
        assert space.at(choices) == config
    assert space.locate(replace(grid[0][1], steps=(Uniform(3),))) is None


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        ("steps: uniform", "my.yaml: steps must be a list, got 'uniform'"),
        ("steps: {chose: []}", "my.yaml: steps.chose is not a known key (did you mean 'choose'?); known: choose"),
        ("steps: [{width: 3}]", "my.yaml: steps[0].step must be given: one of uniform window mantissa"),
        (
            "steps: {choose: [[], [{step: uniform, width: {choose: [1, -1]}}]]}",
            "my.yaml: steps.choose[1][0].width.choose[1] must be a number above 0, got -1",
        ),
    ],
)
def test_a_mistake_in_steps_is_told_with_its_place(steps: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        Space.from_dict(parse_yaml(steps, "my.yaml"), "my.yaml:")
    assert str(caught.value).startswith(line)


def test_a_walk_through_a_wide_range_begins_at_once() -> None:
    space = Space("wide", {"chunks": Choose(([1, -1], [2, -1])), "blosc2": {"blocksize": Range(256, 1 << 29)}})
    assert space.size == 2 * ((1 << 29) - 255)
    sizes = [config.blosc2.blocksize for _, config in itertools.islice(space.grid(), 3)]
    assert sizes == [256, 257, 258]
