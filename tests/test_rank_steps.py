"""Ways to prepare frames that a few pixels refuse are those that all of them refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tuner.evaluation import Log
from tuner.goal import Goal, broken
from tuner.measure.meter import Meter
from tuner.noise import Noise
from tuner.read.sampling import Run, Sample
from tuner.search.lossy import REPORTED, rank_steps
from tuner.space import load_space
from tuner.stack import Marks
from tuner.steps import Pixels
from tuner.steps.framewise import Tqc
from tuner.steps.regions import Regions

GOAL = Goal.from_dict({"maximize": ["ratio"], "require": ["max_error_sigma <= 0.5", "bias_sigma <= 0.01"]})


@pytest.mark.parametrize(("shape", "seen"), [((4, 300, 310), False), ((1, 300, 310), True), ((40, 500), False)])
def test_a_part_of_the_pixels_refuses_nothing_that_all_of_them_allow(
    shape: tuple[int, ...], seen: bool, tmp_path: Path
) -> None:
    """Of frames, of an only frame that is seen in part, and of spectra; with pixels that do not count."""
    rng = np.random.default_rng(0)
    frames = rng.poisson(rng.uniform(0, 400, shape[1:]), shape).astype(np.uint16)
    mask = rng.random(shape[1:]) < 0.1
    frames[0, ..., 5] = 65535
    pixels = [Pixels(Marks(invalid=(65535,)), mask, Noise(2.0, 0.0, 0.0, "given", 1.0))]
    part = rng.random(shape[1:]) < 0.5 if seen else None
    meter = Meter(Sample((Run(0, 0, frames),)), pixels=pixels, qualities=(*REPORTED, *GOAL.qualities), seen=part)
    options = [*load_space("integrating").steps(), (Tqc(2, 4),), (Regions(6.0, 2, width=2.0),)]
    with Log(tmp_path / "log.jsonl") as log:
        allowed, refused = rank_steps(options, meter, GOAL, log)
    assert len(allowed) + len(refused) == len(options)
    assert any(evaluation.failure for evaluation in refused), "no part refused anything"
    keeping = {option.steps for option in allowed}
    assert len(keeping) > 1, "nothing but every pixel as it was is allowed"
    for steps in options:
        quality = {name: np.array([value]) for name, value in meter.prepared(steps).quality.items()}
        assert (broken(quality, GOAL.require) is None) == (steps in keeping), steps


def test_pixels_are_not_given_away_for_nothing(tmp_path: Path) -> None:
    """Of counts below two no rounding keeps the means, so that a step can change no pixel but a bright one."""
    frames = np.random.default_rng(0).poisson(0.3, (2, 512, 512)).astype(np.int32)
    frames[:, 60, 60] = 1048575
    meter = Meter(
        Sample((Run(0, 0, frames),)), pixels=[Pixels(noise=Noise(1.0, 0.0, 0.0, "given", 1.0))], qualities=REPORTED
    )
    with Log(tmp_path / "log.jsonl") as log:
        allowed, _ = rank_steps(load_space("counting").steps(), meter, GOAL, log)
    changing = [option for option in allowed if option.evaluation.metrics["max_abs_error"] > 0]
    assert changing, "no step changed a pixel"
    assert allowed[0].steps == ()
