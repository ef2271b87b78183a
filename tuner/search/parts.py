"""Which frames a search of lossy steps sees, by which it selects, and which judge its choice in the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.read.sampling import eligible_frames
from tuner.stack import Stack

#: A stack is cut into so many stretches, if it has the frames; into more where each has so many frames.
_FEW, _STRETCH = 6, 4
#: The share of stretches or files that judge, at least and at most; and the share by which is selected.
_TEST, _MOST_TEST, _SELECT = 1 / 3, 3 / 4, 1 / 8
#: Edges of the tiles into which an only frame is cut, pixels.
_TILES = (256, 128, 64, 32, 16, 8)
#: A tile counts if so many of its pixels do.
_VALID = 0.5


@dataclass(frozen=True, slots=True)
class Unit:
    """What is judged by itself: a frame, or a tile of the only one."""

    stack: int
    """Index of its stack."""
    frame: int
    """Its number."""
    place: tuple[slice, ...] = ()
    """Of the tile in the frame; empty for all of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Three parts of the data that share no pixel."""

    search: tuple[NDArray[np.bool_], ...]
    """For each stack which of its frames may be drawn to search on."""
    select: tuple[Unit, ...]
    """By which candidates are selected, as often as it takes."""
    test: tuple[Unit, ...]
    """By which the one that is left is judged."""
    population: str
    """What the test part is, in words."""
    seen: NDArray[np.bool_] | None = None
    """Of an only frame, the pixels by which the search may judge; shape of a frame."""


def split(stacks: Sequence[Stack], count: int, seed: int) -> Parts:
    """Cut data into three parts by chance: whole files where several are given, else stretches with a gap between.

    Parameters
    ----------
    stacks : sequence of Stack
        Of one frame shape. Only data frames are taken whose chunks were written.
    count : int
        Units that are wanted to judge; of few frames fewer are left, as some must remain to search on.
    seed : int
        Decides what is left to chance.
    """
    rng = np.random.default_rng([seed, 1])
    eligible = [eligible_frames(stack) for stack in stacks]
    filled = [index for index, frames in enumerate(eligible) if len(frames)]
    if sum(map(len, eligible)) == 1:
        return _tiles(stacks, filled[0], int(eligible[filled[0]][0]), count, rng)
    if len(filled) > 1:
        pieces = [(index, eligible[index]) for index in filled]
        population = "files that the search did not see, of these scans, this detector and these conditions"
    else:
        frames = eligible[filled[0]]
        # So many that one frame of each can judge: a few long ones are soon all beside what lasts for some time.
        stretches = min(max(len(frames) // _STRETCH, _FEW), max(math.ceil(count / _TEST), _FEW), len(frames))
        pieces = [(filled[0], stretch) for stretch in np.array_split(frames, stretches)]
        population = "frames that the search did not see, of this scan, this detector and these conditions"
    test, select = _roles([len(frames) for _, frames in pieces], count, rng)
    search = tuple(np.zeros(len(stack), np.bool_) for stack in stacks)
    for place, (index, frames) in enumerate(pieces):
        if place not in test and place not in select:
            search[index][frames] = True
    drawn = [_draw(pieces, part, search, count, rng) for part in (select, test)]
    return Parts(search, drawn[0], drawn[1], population)


def _roles(lengths: Sequence[int], count: int, rng: np.random.Generator) -> tuple[set[int], set[int]]:
    """Which of some pieces judge, and by which is selected."""
    order = rng.permutation(len(lengths)).tolist()
    # Of each piece a frame at either end may fall to a gap.
    worth = np.cumsum([max(lengths[place] - 2, 1) for place in order])
    wanted = max(int(np.searchsorted(worth, count)) + 1, math.ceil(_TEST * len(order)))
    # Where there are three or more, one is left to select by and one to search on.
    tested = max(1, min(wanted, int(_MOST_TEST * len(order)), len(order) - 2))
    selected = min(math.ceil(_SELECT * len(order)), len(order) - tested - 1)
    return set(order[:tested]), set(order[tested : tested + selected])


def _draw(
    pieces: Sequence[tuple[int, NDArray[np.int64]]],
    chosen: set[int],
    search: Sequence[NDArray[np.bool_]],
    count: int,
    rng: np.random.Generator,
) -> tuple[Unit, ...]:
    """Frames of the chosen pieces, none next to one that may be searched on, `count` at most, in order.

    One by chance of each of `count` equal parts. A share p of bad frames is then missed with a probability of at most
    (1 - p)^count, wherever they are: a product of which the factors have this mean is largest where all are alike.
    """
    free = [
        Unit(index, int(frame))
        for place, (index, frames) in enumerate(pieces)
        if place in chosen
        for frame in frames
        if len(frames) < _STRETCH or not search[index][max(0, frame - 1) : frame + 2].any()
    ]
    strata = np.array_split(np.arange(len(free)), min(count, len(free)) or 1)
    return tuple(free[rng.choice(places)] for places in strata if len(places))


def _tiles(stacks: Sequence[Stack], index: int, frame: int, count: int, rng: np.random.Generator) -> Parts:
    """Tiles of the only frame: half of them judge, and by some is selected."""
    stack = stacks[index]
    valid = stack.valid(stack.read(frame, frame + 1))[0]
    tiles: list[tuple[slice, ...]] = []
    for edge in _TILES:
        tiles = [place for place in _grid(stack.frame_shape, edge) if valid[place].mean() >= _VALID]
        if len(tiles) >= 3 * count:
            break
    order = [tiles[place] for place in rng.permutation(len(tiles))]
    tested = min(len(order) // 2, count)
    selected = math.ceil(_SELECT * tested)
    seen = np.ones(stack.frame_shape, np.bool_)
    for place in order[: tested + selected]:
        seen[place] = False
    test, select = order[:tested], order[tested : tested + selected]
    return Parts(
        tuple(np.ones(len(stack), np.bool_) for stack in stacks),
        tuple(Unit(index, frame, place) for place in select),
        tuple(Unit(index, frame, place) for place in test),
        "tiles of the only frame that the search did not judge by; they say nothing of other frames",
        seen,
    )


def _grid(shape: Sequence[int], edge: int) -> Iterator[tuple[slice, ...]]:
    """Tiles of one size, as many as fit; an axis that is shorter than an edge is not cut."""
    extents = [min(edge, size) for size in shape]
    for corner in np.ndindex(*(size // extent for size, extent in zip(shape, extents, strict=True))):
        yield tuple(slice(at * extent, (at + 1) * extent) for at, extent in zip(corner, extents, strict=True))
