"""Every valid configuration survives its document, and every invalid value is refused with its place."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusal import refusal

from tuner.config import (
    CHAINS,
    CODECS,
    EXTENT,
    FILTERS,
    FRAMES,
    SPLITMODES,
    VALID,
    Blosc2,
    Config,
    chunk_grid,
    one_line,
)
from tuner.document import Interval, OneOf, dump_yaml, parse_yaml
from tuner.errors import InputError
from tuner.steps.denoise import NlMeans
from tuner.steps.round_trip import Zfp
from tuner.steps.uniform import Uniform

INTERVALS = {name: valid for name, valid in VALID.items() if isinstance(valid, Interval)}
WORDS = {name: valid for name, valid in VALID.items() if isinstance(valid, OneOf)}

#: What is no whole number, though Python or YAML may take it for one.
NO_INTEGERS = (True, False, 1.0, math.nan, math.inf, "5", None, [5], {"a": 5}, 1 << 9999, -(1 << 9999))
NO_WORDS = ("", "LZ4", "lz5", "lz4 ", 1, True, None, ["lz4"], {"lz4": 1}, math.nan, "x" * 10**6)


def blosc2s(typesizes: st.SearchStrategy[int]) -> st.SearchStrategy[Blosc2]:
    """All of Blosc2's valid values."""

    def blocksizes(typesize: int) -> st.SearchStrategy[int]:
        low, high = 256, 536_866_816
        return st.just(0) | st.integers(-(-low // (typesize or 1)), high // (typesize or 1)).map(
            lambda items: items * (typesize or 1)
        )

    return typesizes.flatmap(
        lambda typesize: st.builds(
            Blosc2,
            codec=st.sampled_from(list(CODECS)),
            codec_meta=st.integers(0, 255),
            clevel=st.integers(0, 9),
            filters=st.sampled_from(CHAINS),
            splitmode=st.sampled_from(list(SPLITMODES)),
            typesize=st.just(typesize),
            blocksize=blocksizes(typesize),
        )
    )


chunks = st.tuples(st.integers(1, 2**32 - 1), *[st.just(-1) | st.integers(1, 2**32 - 1)] * 2)
configs = st.builds(Config, chunks=chunks | chunks.map(lambda shape: shape[:2]), blosc2=blosc2s(st.integers(0, 255)))


def refused(document: Any) -> str:
    """The one line that refuses a configuration's document."""
    return refusal(lambda: Config.from_dict(document, "i03.yaml: config"), "i03.yaml: config")


@given(configs)
def test_from_dict_is_the_inverse_of_to_dict(config: Config) -> None:
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(parse_yaml(dump_yaml(config.to_dict()), "")) == config


@given(configs)
def test_repr_is_the_constructor_call(config: Config) -> None:
    assert eval(repr(config)) == config
    assert hash(eval(repr(config))) == hash(config)


@given(configs)
def test_one_line_is_one(config: Config) -> None:
    assert len(one_line(config).splitlines()) == 1


def test_absent_keys_take_their_defaults() -> None:
    assert Config.from_dict({}) == Config()
    assert Config.from_dict({"blosc2": {"codec": "zstd"}}) == Config(blosc2=Blosc2("zstd"))


@pytest.mark.parametrize("name", VALID)
def test_every_default_is_valid(name: str) -> None:
    VALID[name].check(Blosc2().to_dict()[name], name)


@pytest.mark.parametrize(("name", "valid"), INTERVALS.items())
def test_whole_numbers_outside_are_refused(name: str, valid: Interval) -> None:
    assert valid.high is not None
    outside = [valid.low - 1, valid.high + 1, -1, *NO_INTEGERS]
    for value in outside:
        if value == valid.also and not isinstance(value, bool):
            continue
        message = refused({"blosc2": {name: value}})
        also = "" if valid.also is None else f"{valid.also} or "
        assert message.startswith(f"i03.yaml: config.blosc2.{name} must be {also}in {valid.low}..{valid.high}, got ")
    for value in (valid.low, valid.high):
        assert getattr(Blosc2(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "valid"), WORDS.items())
def test_unknown_words_are_refused(name: str, valid: OneOf) -> None:
    for value in NO_WORDS:
        message = refused({"blosc2": {name: value}})
        assert message.startswith(f"i03.yaml: config.blosc2.{name} must be one of {' '.join(valid.words)}, got ")
    for word in valid.words:
        assert getattr(Blosc2(**{name: word}), name) == word


def test_every_chain_that_is_not_allowed_is_refused_with_the_reason() -> None:
    for length in range(5):
        for chain in itertools.product(FILTERS, repeat=length):
            document = {"blosc2": {"filters": list(chain)}}
            if chain in CHAINS:
                assert Config.from_dict(document).blosc2.filters == chain
                continue
            message = refused(document)
            assert message.startswith("i03.yaml: config.blosc2.filters must ")
            assert "c-blosc2 decodes" in message


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ("shuffle", "filters must be a list, got 'shuffle'"),
        (None, "filters must be a list, got nothing"),
        ({"shuffle": 1}, "filters must be a list, got a mapping"),
        (["shuffle", "bytedeltas"], "filters[1] must be one of shuffle bitshuffle delta bytedelta, got 'bytedeltas'"),
        ([["shuffle"]], "filters[0] must be one of shuffle bitshuffle delta bytedelta, got ['shuffle']"),
        ([1], "filters[0] must be one of shuffle bitshuffle delta bytedelta, got 1"),
    ],
)
def test_what_is_no_chain_is_refused(filters: Any, expected: str) -> None:
    assert refused({"blosc2": {"filters": filters}}).startswith(f"i03.yaml: config.blosc2.{expected}")


@given(st.integers(1, 255), st.integers(256, 10**6))
def test_a_block_holds_whole_items(typesize: int, blocksize: int) -> None:
    document = {"blosc2": {"typesize": typesize, "blocksize": blocksize}}
    if blocksize % typesize:
        expected = f"blosc2.blocksize must be a multiple of typesize {typesize}, got {blocksize}: c-blosc2 decodes it"
        assert expected in refused(document)
    else:
        assert Config.from_dict(document).blosc2.blocksize == blocksize


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (None, " must be a mapping, got nothing"),
        ([], " must be a mapping, got []"),
        ({"blosc2": None}, ".blosc2 must be a mapping, got nothing"),
        ({"blosc2": []}, ".blosc2 must be a mapping, got []"),
        ({"blosc": {}}, ".blosc is not a known key (did you mean 'blosc2'?); known: chunks blosc2"),
        ({"blosc2": {"level": 5}}, ".blosc2.level is not a known key"),
        ({"chunks": 1}, ".chunks must be a list, got 1"),
        ({"chunks": "1"}, ".chunks must be a list, got '1'"),
        ({"chunks": []}, ".chunks must be frames and one or two axes of a frame, got []"),
        ({"chunks": [1]}, ".chunks must be frames and one or two axes of a frame, got [1]"),
        ({"chunks": [1, 2, 3, 4]}, ".chunks must be frames and one or two axes of a frame, got [1, 2, 3, 4]"),
        ({"chunks": [-1, 2, 3]}, f".chunks[0] must be in 1..{FRAMES.high}, got -1"),
        ({"chunks": [0, 2, 3]}, f".chunks[0] must be in 1..{FRAMES.high}, got 0"),
        ({"chunks": [1, 0, 3]}, f".chunks[1] must be -1 or in 1..{EXTENT.high}, got 0"),
        ({"chunks": [1, -1, -2]}, f".chunks[2] must be -1 or in 1..{EXTENT.high}, got -2"),
        ({"chunks": [1, -1, -1.0]}, f".chunks[2] must be -1 or in 1..{EXTENT.high}, got -1.0"),
        ({"chunks": [True, -1, -1]}, f".chunks[0] must be in 1..{FRAMES.high}, got True"),
        ({"chunks": ["4MiB", -1, -1]}, f".chunks[0] must be in 1..{FRAMES.high}, got '4MiB'"),
        ({"chunks": [1, "...", 3]}, f".chunks[1] must be -1 or in 1..{EXTENT.high}, got '...'"),
        ({"chunks": [1, 2, 1 << 9999]}, f".chunks[2] must be -1 or in 1..{EXTENT.high}, got a number of 10000 bits"),
    ],
)
def test_a_mistake_is_told_with_its_place(document: Any, expected: str) -> None:
    assert refused(document).startswith(f"i03.yaml: config{expected}")


@pytest.mark.parametrize("values", [{"filters": 5}, {"filters": "shuffle"}, {"clevel": None}, {"codec": []}])
def test_the_constructor_refuses_too(values: Any) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(values))}"):
        Blosc2(**values)


@given(
    st.builds(Config, chunks=st.tuples(*[st.integers(1, 300)] * 3), blosc2=blosc2s(st.sampled_from([0, 1, 2, 4, 8]))),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.sampled_from(["uint8", "uint16", "int32", "float64"]),
)
def test_resolving_leaves_nothing_open_and_twice_is_once(
    config: Config, frame_shape: tuple[int, int], dtype: str
) -> None:
    try:
        resolved = config.resolve(frame_shape, np.dtype(dtype))
    except InputError:
        itemsize = np.dtype(dtype).itemsize
        tile = [min(extent, size) for extent, size in zip(config.chunks[1:], frame_shape, strict=True)]
        typesize = config.blosc2.typesize or itemsize
        assert math.prod((config.chunks[0], *tile)) * itemsize % typesize or config.blosc2.blocksize % typesize
        return
    nbytes = math.prod(resolved.chunks) * np.dtype(dtype).itemsize
    assert all(1 <= extent <= size for extent, size in zip(resolved.chunks[1:], frame_shape, strict=True))
    assert nbytes % resolved.blosc2.typesize == 0
    assert resolved.blosc2.blocksize % resolved.blosc2.typesize == 0
    assert resolved.blosc2.blocksize <= nbytes
    assert resolved.resolve(frame_shape, np.dtype(dtype)) == resolved


def test_filters_come_before_one_rounding() -> None:
    """What a rounding left is not to be moved again."""
    denoise, trip, rounding = NlMeans(0.8), Zfp(2.0), Uniform(4)
    for steps in itertools.chain([(), (denoise, trip, rounding)], itertools.combinations((denoise, trip, rounding), 2)):
        config = Config(steps=steps)
        assert Config.from_dict(config.to_dict()) == config
    for steps in ((rounding, denoise), (rounding, Uniform(2)), (denoise, trip, trip, rounding)):
        with pytest.raises(InputError, match=r"^steps must be at most 3, filters before one rounding, got "):
            Config(steps=steps)


@pytest.mark.parametrize("chunks", [(1, -1), (1, 8)])
def test_chunks_have_the_axes_of_a_frame(chunks: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^chunks must be frames and the 2 axes of a frame of shape \(4, 5\), got"):
        Config(chunks).resolve((4, 5), np.dtype("uint16"))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 400))
def test_a_chunk_of_a_dataset_holds_a_run_of_frames(lead: list[int], frames: int) -> None:
    *grid, extent = chunk_grid((*lead, 50), 1, (frames, 50))
    assert extent == 50
    assert len(grid) == len(lead)
    assert math.prod(grid) <= frames
    partial = [size != full for size, full in zip(grid, lead, strict=True)]
    # After the first axis that is not spanned alone, every axis is spanned: the frames of a chunk follow each other.
    first = next((i for i, size in enumerate(grid) if size > 1), len(grid))
    assert not any(partial[first + 1 :])
