"""Contrast and correlation of speckles: what physics says of them is found, and what spoils them is seen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tuner.analysis import G2, Contrast
from tuner.errors import InputError
from tuner.goal import Goal, load_goal
from tuner.measure.analyses import Scan, analyse, breach, scans_of
from tuner.measure.analyses.contrast import _POWERS, _contrast, _sums
from tuner.measure.analyses.g2 import _Correlator, _rate
from tuner.measure.analyses.rings import SECTORS, rings_of
from tuner.noise import Noise
from tuner.read import open_stacks
from tuner.simulate import Xpcs, write_nexus
from tuner.steps import Pixels, prepare
from tuner.steps.noise_aware import Sigma

POISSON = Noise(1.0, 0.0, 0.0, "given", 1.0)
SAMPLE = Xpcs(shape=(128, 128), modes=2, rate=0.1, flux=30.0)
CENTRE = (0.15 * 128, 0.2 * 128)
GOALS = ("coherent", "xpcs")

Change = Callable[[NDArray[Any]], NDArray[Any]]


@pytest.fixture(scope="module")
def speckles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("speckles") / "speckles.nxs"
    write_nexus(path, SAMPLE.simulate(160, 1))
    return path


def scan_of(path: Path, change: Change | None = None, noise: Noise = POISSON) -> Scan:
    """A scan of which pixels that count are changed in some way; not at all where none is given."""
    (stack,) = open_stacks([path])
    pixels = Pixels(stack.marks, stack.mask, noise)

    def changed(frames: NDArray[Any]) -> NDArray[Any]:
        after = frames if change is None else change(frames)
        return np.where(pixels.valid(frames), after, frames).astype(frames.dtype)

    (scan,) = scans_of([stack], [pixels], ())
    return replace(scan, change=changed)


def lattice(frames: NDArray[Any], path: Path) -> Path:
    np.save(path, frames)
    return path


def test_what_particles_do_is_found(speckles: Path) -> None:
    """In narrow rings g2 - 1 falls with the rate that goes with the angle squared."""
    scan = scan_of(speckles)
    rings = rings_of(G2(rings=30, inner=20, outer=80), scan)
    correlator = _Correlator(rings)
    for frames in scan.pairs():
        for frame, valid in zip(frames.original, frames.valid, strict=True):
            correlator.add(rings.of(np.where(valid, frame, 0)), rings.of(valid))
    delays, found = correlator.g2()
    decay, error = found[0] - 1, found[1:].std(axis=0)
    assert delays.tolist()[:9] == [1, 2, 3, 4, 5, 6, 7, 8, 10]
    per_pixel = rings.of(SAMPLE.rates(CENTRE))
    truth = rings.sums(per_pixel).sum(axis=1) / rings.sums(np.ones_like(per_pixel)).sum(axis=1)
    rates = np.array([_rate(delays, decay[ring], error[ring])[0] for ring in range(rings.rings)])
    assert np.median(rates / truth) == pytest.approx(1, abs=0.12)
    assert np.corrcoef(rates, truth)[0, 1] > 0.95
    # Extrapolated to no delay, what is correlated is the contrast, one over the modes.
    assert np.median(decay[:, 0] * np.exp(2 * truth)) == pytest.approx(1 / SAMPLE.modes, rel=0.1)


def test_short_delays_are_the_formula_over_all_pairs_of_frames(speckles: Path) -> None:
    scan = scan_of(speckles)
    rings = rings_of(G2(rings=2, inner=30), scan)
    frames = scan.stack.read(0, 40).astype(float)
    valid = scan.pixels.valid(frames)
    valid[7, 60:70] = False
    correlator = _Correlator(rings)
    for frame, counted in zip(frames, valid, strict=True):
        correlator.add(rings.of(np.where(counted, frame, 0)), rings.of(counted))
    delays, found = correlator.g2()
    ring = np.zeros(frames.shape[1:], bool)
    ring.ravel()[rings.pixels[: rings.starts[SECTORS]]] = True
    for delay in (1, 3, 7):
        past, now, both = frames[:-delay], frames[delay:], valid[:-delay] & valid[delay:] & ring
        expected = (past * now)[both].mean() / (past[both].mean() * now[both].mean())
        assert found[0, 0, delays.tolist().index(delay)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("modes", "flux"), [(1, 0.5), (2, 5.0), (5, 200.0)])
def test_contrast_is_one_over_the_modes_however_many_photons(modes: int, flux: float, tmp_path: Path) -> None:
    write_nexus(tmp_path / "a.nxs", Xpcs(shape=(200, 200), modes=modes, flux=flux, rate=5.0).simulate(16, 3))
    value = contrast_of(scan_of(tmp_path / "a.nxs"))
    assert value == pytest.approx(1 / modes, rel=0.1)


def test_contrast_knows_the_noise_of_a_camera(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    field = np.abs(random.standard_normal((2, 20, 150, 150)) + 1j * random.standard_normal((2, 20, 150, 150))) ** 2
    light = 8 * field.mean(axis=0) / 2
    counts = random.poisson(light) * 3.0 + 100 + 7 * random.standard_normal(light.shape)
    path = lattice(np.rint(counts).astype("int32"), tmp_path / "a.npy")
    value = contrast_of(scan_of(path, noise=Noise(3.0, 100.0, 7.0, "given")), centre=(75, 75))
    assert value == pytest.approx(0.5, rel=0.05)


def test_contrast_is_known_of_rings_with_a_few_photons_a_frame(tmp_path: Path) -> None:
    """Nine in 450 pixels: the mean of so few is no divisor, it made 0.33 of 0.5; and a beam that flickers adds none."""
    random = np.random.default_rng(0)
    light = random.gamma(2, 0.5, (12_000, 24, 24)) * random.uniform(0.01, 0.03, (12_000, 1, 1))
    scan = scan_of(lattice(random.poisson(light).astype("uint16"), tmp_path / "a.npy"))
    scan = replace(scan, numbers=np.arange(12_000))
    assert contrast_of(scan, centre=(12, 12), rings=1, inner=0, outer=12) == pytest.approx(0.5, abs=0.12)


def contrast_of(scan: Scan, **parameters: Any) -> float:
    """The median contrast of narrow rings."""
    rings = rings_of(Contrast(**{"rings": 30, "inner": 40, **parameters}), scan)
    moments = np.zeros((len(_POWERS), rings.rings, SECTORS))
    for pair in scan.pairs():
        for frame, valid in zip(pair.original, pair.valid, strict=True):
            sums = _sums(rings, scan, frame, rings.of(valid))
            mean = sums[1].sum(axis=1) / sums[0].sum(axis=1)
            moments += sums * mean[:, None] ** _POWERS
    return float(np.median(_contrast(moments)[0]))


@pytest.mark.parametrize("kind", [G2, Contrast])
def test_what_is_spoilt_in_a_ring_of_few_pixels_is_seen(kind: type[Any], tmp_path: Path) -> None:
    """Some draws of its few sectors have no pixel: they tell nothing, but the others do."""
    random = np.random.default_rng(0)
    path = lattice(random.poisson(5 * random.gamma(2, 0.5, (50, 60, 60))).astype("uint16"), tmp_path / "a.npy")
    y, x = np.indices((60, 60)) - 29.5
    inner = np.hypot(y, x) < 1

    def changed(frames: NDArray[Any]) -> NDArray[Any]:
        return np.where(inner, 10 * np.arange(len(frames), dtype="uint16")[:, None, None], frames)

    analysis = kind(centre=(30, 30), rings=28, outer=28)
    found = analyse(Goal(("ratio",), analyses=(analysis,)), [scan_of(path, changed)]).metrics
    assert found[f"{analysis.name}.error_bars"] > 1


def blurred(frames: NDArray[Any]) -> NDArray[Any]:
    return (frames.astype(float) + np.roll(frames, 1, -1) + np.roll(frames, 1, -2)) / 3


def erased(frames: NDArray[Any]) -> NDArray[Any]:
    after = frames.copy()
    after[::3] = 0
    return after


#: What takes speckles away, or makes some.
CHEATS: dict[str, Change] = {
    "zeros": np.zeros_like,
    "blurred": blurred,
    "frames erased": erased,
    "dim pixels erased": lambda frames: np.where(frames > 3, frames, 0),
    "bright pixels cut": lambda frames: np.minimum(frames, 8),
    "coarse": lambda frames: frames // 8 * 8,
    "mean of frames": lambda frames: np.broadcast_to(frames.mean(axis=0), frames.shape),
}


@pytest.mark.parametrize("name", GOALS)
@pytest.mark.parametrize("cheat", CHEATS)
def test_what_spoils_speckles_is_seen(speckles: Path, name: str, cheat: str) -> None:
    goal = load_goal(name)
    assert breach(goal, analyse(goal, [scan_of(speckles, CHEATS[cheat])])) is not None


def test_frames_in_another_order_are_seen_by_what_looks_at_time(speckles: Path) -> None:
    goal = load_goal("xpcs")
    shuffled = scan_of(speckles, lambda frames: frames[np.random.default_rng(0).permutation(len(frames))])
    assert breach(goal, analyse(goal, [shuffled])) is not None


@pytest.mark.parametrize("name", GOALS)
def test_rounding_below_the_noise_passes(speckles: Path, name: str) -> None:
    goal, pixels = load_goal(name), scan_of(speckles).pixels
    found = analyse(goal, [scan_of(speckles, lambda frames: prepare([Sigma(0.5)], frames, pixels))])
    assert breach(goal, found) is None
    assert any(found.metrics.values())
    assert all(low <= found.metrics[key] <= high for key, (low, high) in found.spread.items())


@pytest.mark.parametrize("name", GOALS)
def test_frames_that_came_back_have_the_perfect_value_of_each_figure(speckles: Path, name: str) -> None:
    goal = load_goal(name)
    found = analyse(goal, [scan_of(speckles)])
    assert set(found.metrics.values()) == {0.0}
    assert Goal.from_dict(goal.to_dict()) == goal


def test_a_single_frame_has_a_contrast(speckles: Path) -> None:
    """Error bars are of sectors, not of frames."""
    scan = replace(scan_of(speckles, lambda frames: frames // 4 * 4), numbers=np.array([3]))
    goal = Goal(("ratio",), analyses=(Contrast(),))
    assert analyse(goal, [scan]).metrics["contrast.error_bars"] > 1


def test_what_an_analysis_needs_is_asked_for_in_one_line(tmp_path: Path, speckles: Path) -> None:
    flat = lattice(np.ones((20, 32, 32), "uint16"), tmp_path / "flat.npy")
    dark = lattice(np.zeros((20, 32, 32), "uint16"), tmp_path / "dark.npy")
    few = lattice(np.ones((9, 32, 32), "uint16"), tmp_path / "few.npy")
    expected = [
        (G2(), flat, "flat.npy: has no beam centre: g2 must be given centre"),
        (Contrast(), flat, "flat.npy: has no beam centre: contrast must be given centre"),
        (Contrast(centre=(9, 9), inner=90, outer=99), flat, "must have pixels in its rings from 90 to 99 pixels"),
        (G2(centre=(9, 9)), dark, "must have light in a ring for analysis g2"),
        (Contrast(centre=(9, 9)), dark, "must have light in a ring for analysis contrast"),
        (G2(centre=(9, 9)), few, "must have 16 frames for g2, got 9"),
    ]
    for analysis, path, line in expected:
        with pytest.raises(InputError, match=line):
            analyse(Goal(("ratio",), analyses=(analysis,)), [scan_of(path)])
    with pytest.raises(InputError, match="outer must be above inner, got 3 and 5"):
        G2(inner=5, outer=3)


def test_a_library_that_is_missing_is_named(speckles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(InputError, match=r"^analysis g2 needs scipy: pip install 'tuner\[analyses\]'$"):
        analyse(load_goal("xpcs"), [scan_of(speckles)])
