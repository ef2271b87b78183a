"""Bragg peaks before and after: found, matched, and integrated by summation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.analysis import Peaks
from tuner.errors import InputError
from tuner.measure.analyses.integration import Integrated, Window, Windows, integrate, tops_of
from tuner.measure.analyses.scan import Measured, Scan, draws

#: I/sigma of the weak peaks.
_WEAK = (1.0, 3.0)

#: A shell of fewer reflections tells nothing: of one, each change takes all correlation.
_FEW = 20

_Array = NDArray[np.float64]
_Flags = NDArray[np.bool_]
_Sums = dict[str, _Array]


def compare_peaks(analysis: Peaks, scan: Scan) -> dict[str, Measured]:
    """The figures of `Peaks`, over all frames of a scan.

    Intensity is the sum over a box less the mean of the square ring around it, its variance that of the box plus that
    of the background in it (summation integration; Leslie, Acta Cryst. D62, 48, 2006, eq. 6). Outliers are left out of
    the ring. A peak is a pixel whose intensity, with what is in the middle of the box counted more, is the largest
    within a box, and `strong` times its sigma. Boxes with a pixel that does not count are none. Weak ones are found in
    the frames before alone, by their own noise too, and integrated at the same place after, as programs do that predict
    where reflections are.

    With `halves` reflections are also found in the sum of two frames that follow each other, before, and integrated in
    either: what stands in both frames of a pair is as well known as the correlation over all pairs of one half of the
    frames with the other (CC1/2; Karplus & Diederichs, Science 336, 1030, 2012), before as after.

    Raises
    ------
    InputError
        Where scipy is not installed, frames are no images, the noise is not known, there are no peaks, or with
        `halves` no frames that follow each other.
    """
    if len(scan.stack.frame_shape) != 2:
        raise InputError(f"{scan.stack.name}: frames must be images for peaks, got {scan.stack.frame_shape}")
    scan, seconds = _in_pairs(analysis, scan)
    rows: list[_Sums] = []
    halves: list[_Sums] = []
    shells = _Shells.of(analysis, scan)
    for frames in _groups(analysis, scan, seconds):
        each, both = _compare(analysis, scan, frames, shells)
        rows += each
        halves += [both] if len(frames) == 2 else []
    if not sum(row["before"] for row in rows):
        raise InputError(
            f"{scan.stack.name}: must have peaks of I/sigma {analysis.strong:g} for analysis {analysis.name},"
            f" got none in {len(rows)} frames"
        )
    return _measured(rows, _figures) | (_measured(halves, _half_figures) if halves else {})


def _measured(rows: list[_Sums], figures: Callable[[_Sums], _Sums]) -> dict[str, Measured]:
    """Figures of what is summed over units, and over units drawn again."""
    sums = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    value = figures({key: one.sum(axis=0)[None] for key, one in sums.items()})
    weights = draws(len(rows))
    drawn = figures({key: len(rows) * np.tensordot(weights, one, 1) for key, one in sums.items()})
    return {name: Measured.of(float(one[0]), _defined(drawn[name], one[0]), len(rows)) for name, one in value.items()}


def _defined(drawn: _Array, value: float) -> _Array:
    """Draws without a single peak say nothing."""
    return np.where(np.isfinite(drawn), drawn, value)


def _in_pairs(analysis: Peaks, scan: Scan) -> tuple[Scan, frozenset[int]]:
    """The scan with the other frame of each pair where halves are compared, and the numbers of the second frames."""
    if not analysis.halves:
        return scan, frozenset()
    every = scan.whole().numbers
    firsts = every[:-1:2][np.diff(every)[::2] == 1]
    paired = np.isin(firsts, scan.numbers) | np.isin(firsts + 1, scan.numbers)
    if not paired.any():
        raise InputError(f"{scan.stack.name}: must have frames that follow each other for {analysis.name}.halves")
    numbers = np.union1d(scan.numbers, np.concatenate([firsts[paired], firsts[paired] + 1]))
    return replace(scan, numbers=numbers), frozenset((firsts[paired] + 1).tolist())


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame before and after."""

    original: NDArray[Any]
    decoded: NDArray[Any]
    windows: list[Window]


def _groups(analysis: Peaks, scan: Scan, seconds: frozenset[int]) -> Iterator[list[_Frame]]:
    """Pairs of frames, and frames that are in none."""
    windows, group = Windows(analysis), list[_Frame]()
    for pair in scan.pairs():
        for number, original, decoded, valid in zip(
            pair.numbers.tolist(), pair.original, pair.decoded, pair.valid, strict=True
        ):
            if group and number not in seconds:
                yield group
                group = []
            group.append(_Frame(original, decoded, windows.of(valid)))
    yield group


def _compare(analysis: Peaks, scan: Scan, frames: list[_Frame], shells: _Shells | None) -> tuple[list[_Sums], _Sums]:
    """What is summed over each of one or two frames, and over both; nothing of that where there is one."""
    each: list[_Sums] = [{} for _ in frames]
    both: _Sums = {}
    for windows in zip(*(frame.windows for frame in frames), strict=True):
        sides = [
            tuple(
                integrate(analysis, pixels[window.outer], scan.variance(pixels[window.outer]), window)
                for pixels in (frame.original, frame.decoded)
            )
            for frame, window in zip(frames, windows, strict=True)
        ]
        for sums, (before, after), window in zip(each, sides, windows, strict=True):
            _add(sums, _rows(analysis, before, after, window, shells))
        if len(frames) == 2:
            (before, after), (next_before, next_after) = sides
            reflections = _reflections(analysis, before, next_before)[windows[0].inner]
            _add(both, _halves(reflections, (before, next_before), (after, next_after), windows[0], shells))
    return each, both


def _add(sums: _Sums, more: dict[str, Any]) -> None:
    for key, value in more.items():
        sums[key] = sums.get(key, 0.0) + np.asarray(value, np.float64)


def _reflections(analysis: Peaks, first: Integrated, second: Integrated) -> _Flags:
    """The peaks in the sum of two frames."""
    total, whole = first.intensity + second.intensity, first.whole & second.whole
    tops = tops_of(first.rank + second.rank, whole, analysis.box)
    return np.asarray(tops & (total >= analysis.strong * np.hypot(first.sigma, second.sigma)))


def _halves(
    reflections: _Flags,
    before: tuple[Integrated, Integrated],
    after: tuple[Integrated, Integrated],
    window: Window,
    shells: _Shells | None,
) -> dict[str, Any]:
    """Moments of reflections' intensities in one frame with those in the other, before and after, of inner rows."""
    places = np.nonzero(reflections)
    sums: dict[str, Any] = {}
    for name, pair in (("half_before", before), ("half_after", after)):
        x, y = (one.intensity[window.inner][places] for one in pair)
        sums[name] = _moments(x, y)
        if shells is not None:
            sums[f"shells_{name}"] = shells.moments(_on_frame(places, window), x, y)
    return sums


def _half_figures(sums: _Sums) -> _Sums:
    """The figures of halves from sums over pairs of frames."""
    figures = {"half_cc_loss": _correlation(sums["half_before"]) - _correlation(sums["half_after"])}
    if "shells_half_before" in sums:
        before, after = sums["shells_half_before"], sums["shells_half_after"]
        loss = np.where(before[..., 0] >= _FEW, _correlation(before) - _correlation(after), 0.0)
        figures["shell_half_cc_loss"] = loss.max(axis=1)
    return figures


def _on_frame(places: Any, window: Window) -> NDArray[np.intp]:
    """Places (row, column) among the inner rows of a window as those of the frame."""
    first = window.outer.start + window.inner.start
    return np.asarray(places, np.intp) + np.array([[first], [0]], np.intp)


@dataclass(frozen=True, slots=True)
class _Shells:
    """Rings of equal area around the beam."""

    centre: tuple[float, float]
    """Row and column of the beam."""
    reach: float
    """The square of the largest distance from it that a frame has, in pixels."""
    number: int
    """How many."""

    @classmethod
    def of(cls, analysis: Peaks, scan: Scan) -> _Shells | None:
        """Those of an analysis; None where the centre is not known."""
        row, column = scan.declared("beam_center_y"), scan.declared("beam_center_x")
        if analysis.centre is None and (row is None or column is None):
            return None
        centre = analysis.centre or (float(row[0]), float(column[0]))  # type: ignore[index]
        furthest = (max(at, extent - at) for at, extent in zip(centre, scan.stack.frame_shape, strict=True))
        return cls(centre, sum(one**2 for one in furthest), analysis.shells)

    def moments(self, places: NDArray[np.intp], x: _Array, y: _Array) -> _Array:
        """Those of intensities before and after at places (row, column) of a frame, shape (shells, 6)."""
        distance = sum((at + 0.5 - of) ** 2 for at, of in zip(places, self.centre, strict=True))
        shell = np.minimum(distance / self.reach * self.number, self.number - 1).astype(np.intp)
        weights = (np.ones_like(x), x, y, x * x, y * y, x * y)
        return np.stack([np.bincount(shell, each, self.number) for each in weights], axis=1)


def _rows(
    analysis: Peaks, before: Integrated, after: Integrated, window: Window, shells: _Shells | None
) -> dict[str, Any]:
    """What is summed over rows, of the inner ones."""
    inner = window.inner
    found, again, weak = before.found(analysis.strong), after.found(analysis.strong), before.found(*_WEAK)
    recalled, real = _beside(found, again, inner), _beside(again, found, inner)
    places = [np.nonzero(flags[inner]) for flags in (found, weak)]
    (strong, strong_after, strong_sigma), (dim, dim_after, dim_sigma) = (
        (before.intensity[inner][at], after.intensity[inner][at], before.sigma[inner][at]) for at in places
    )
    by_shell = {}
    if shells is not None:
        where = _on_frame(np.concatenate(places, axis=1), window)
        sides = np.concatenate([strong, dim]), np.concatenate([strong_after, dim_after])
        by_shell = {"shells": shells.moments(where, *sides)}
    change = (((strong_after - strong) / strong_sigma) ** 2).sum() + (((dim_after - dim) / dim_sigma) ** 2).sum()
    return {
        "before": strong.size,
        "after": np.count_nonzero(again[inner]),
        "recalled": recalled,
        "real": real,
        "weak": dim.size,
        "weak_kept": np.count_nonzero(dim_after >= dim / 2),
        "squares": change,
        "strong_moments": _moments(strong, strong_after),
        "weak_moments": _moments(dim, dim_after),
        **by_shell,
    }


def _moments(x: _Array, y: _Array) -> list[float]:
    return [float(v) for v in (x.size, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum())]


@np.errstate(divide="ignore", invalid="ignore")
def _figures(sums: dict[str, _Array]) -> dict[str, _Array]:
    """The figures from sums over frames, each of shape (draws,) or (draws, moments)."""
    strong, weak = sums["strong_moments"], sums["weak_moments"]
    by_shell = {}
    if "shells" in sums:
        shells = sums["shells"]
        enough = shells[..., 0] >= _FEW
        scale = np.where(enough, np.abs(shells[..., 2] / shells[..., 1] - 1), 0.0)
        likeness = np.where(enough, _correlation(shells), 1.0)
        by_shell = {"shell_cc": likeness.min(axis=1), "shell_scale_percent": 100 * scale.max(axis=1)}
    return {
        "recall": sums["recalled"] / sums["before"],
        # Where nothing is left, nothing of it is real.
        "precision": np.where(sums["after"] > 0, sums["real"] / sums["after"], 0.0),
        "cc": _correlation(strong),
        "scale_percent": 100 * np.abs(strong[:, 2] / strong[:, 1] - 1),
        # Where there are no weak ones, none of them changed.
        "weak_recall": np.where(sums["weak"] > 0, sums["weak_kept"] / sums["weak"], 1.0),
        "weak_cc": _correlation(weak),
        "weak_scale_percent": 100 * np.where(sums["weak"] > 0, np.abs(weak[:, 2] / weak[:, 1] - 1), 0.0),
        "rms_sigma": np.sqrt(sums["squares"] / (sums["before"] + sums["weak"])),
        **by_shell,
    }


@np.errstate(divide="ignore", invalid="ignore")
def _correlation(moments: _Array) -> _Array:
    """Pearson's, from sums; 0 where one side is constant, 1 where both are the same."""
    n, x, y, xx, yy, xy = np.moveaxis(moments, -1, 0)
    cov, var_x, var_y = n * xy - x * y, n * xx - x * x, n * yy - y * y
    spread = np.sqrt(np.maximum(var_x, 0) * np.maximum(var_y, 0))
    same = (x == y) & (xx == yy) & (xx == xy)
    return np.asarray(np.where(same, 1.0, np.where(spread > 0, cov / spread, 0.0)))


def _beside(flags: _Flags, others: _Flags, inner: slice) -> int:
    """How many flags of the inner rows have another within a pixel."""
    rows, columns = np.nonzero(flags[inner])
    padded = np.pad(others, 1)
    shifts = [(row, column) for row in range(3) for column in range(3)]
    return int(np.any([padded[rows + inner.start + r, columns + c] for r, c in shifts], axis=0).sum())
