"""From files to a profile: the search as the command line and Python call it."""

from __future__ import annotations

import datetime
import os
import re
import secrets
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from tuner.apply.child import probe
from tuner.apply.dataset import done_before
from tuner.apply.pipeline import default_workers
from tuner.config import PLUGINS, Config
from tuner.document import parse_size
from tuner.errors import InputError, TunerWarning, UnsatisfiableError
from tuner.evaluation import Evaluation, Log, check_room, home, latest_logs, read_log
from tuner.goal import Goal, goal_of, load_goal
from tuner.measure.access import read_frames
from tuner.measure.analyses import check_allowed
from tuner.measure.baseline import FILTERS
from tuner.measure.meter import Meter, prepare_sample
from tuner.measure.pace import Detector
from tuner.measure.target import Target
from tuner.noise import Noise
from tuner.profile import Profile
from tuner.read import open_stacks
from tuner.read.sampling import Sample, draw_sample
from tuner.search.budget import Budget
from tuner.search.champion import load_surrogate
from tuner.search.evidence import envelope, other_containers, profile_of, readable, traits_of
from tuner.search.lossy import REPORTED, NoiseFound, informed, on_grid, rank_steps, settle_noise
from tuner.search.parts import Parts, split
from tuner.search.promise import RISK, Promise, hold, units_for
from tuner.search.reduction import about_reduction, as_of, noise_of
from tuner.search.run import Progress, Result, Search, small_part
from tuner.search.surrogate import Surrogate
from tuner.space import Choose, Space, load_space
from tuner.stack import Stack
from tuner.steps import Pixels, Step
from tuner.steps.jungfrau import Stages
from tuner.steps.reduced import check_order, parse_reductions, reduced, times_smaller
from tuner.steps.reductions import Reduction

#: The budget of a prediction: the baselines, eight configurations that verify the guess, and the best four timed again.
PREDICT_BUDGET = str(len(FILTERS) + 8 + 4)

#: How many of the finalists of earlier searches of the same data are measured first.
_WARM = 8


@dataclass(frozen=True, slots=True)
class Found:
    """What a search leads to."""

    profile: Profile
    """The configuration with its evidence."""
    result: Result
    """All that the search found."""
    log: Path
    """Where every evaluation was logged."""


def find_profile(
    paths: Sequence[str | os.PathLike[str]],
    *,
    dataset: str | None = None,
    axes: Sequence[str] | None = None,
    space: str | os.PathLike[str] | Space = "portable",
    reduce: str | Sequence[Reduction] | None = None,
    goal: str | os.PathLike[str] | Goal | None = None,
    maximize: Sequence[str] = (),
    require: Sequence[str] = (),
    prefer: str | None = None,
    budget: str = "60s",
    sample: str = "16MB",
    jobs: int | None = None,
    seed: int = 0,
    name: str | None = None,
    resume: bool = False,
    storage: str | None = None,
    surrogate: Surrogate | bool = True,
    noise: Noise | str | None = None,
    risk: float = RISK,
    allow_code: bool = False,
    target: str | os.PathLike[str] = ".",
    detector: str | None = None,
    notify: Callable[[Progress], None] = lambda _: None,
) -> Found:
    """Find a configuration for the frames of some files.

    Parameters
    ----------
    paths : sequence of path
        HDF5, TIFF, ``.npy`` and what fabio reads; the sample is drawn from all of them.
    dataset, axes
        As for `open_stacks`.
    space : name of a shipped space, path of a file, or Space
    reduce : str or sequence of Reduction, optional
        What makes fewer pixels or frames before all else, such as ``bin=2,sum=4``; the default is what the space says.
        All that is found and promised is of what comes of it.
    goal : name of a shipped goal, path of a file, or Goal
        The default is ``balanced``, unless `maximize` stands alone.
    maximize : sequence of str
        Metrics that replace the goal's objectives.
    require : sequence of str
        Requirements such as ``encode_mb_s >= 500`` that are added to the goal's.
    prefer : str, optional
        The objective whose end of the front is taken, instead of the knee.
    budget : str
        ``60s``, ``5m``, or a number of configurations.
    sample : str
        Size of the sample, such as ``16MB``.
    jobs : int, optional
        Threads for what is not timed; the default is one a core.
    seed : int
        Decides the sample and the proposals.
    name : str, optional
        The profile's name; the default is the first file's.
    resume : bool
        Take what earlier searches logged for the same sample as measured.
    storage : str, optional
        URL of an Optuna storage that mirrors every trial.
    surrogate : Surrogate or bool
        What leads the search: the champion unless another is given; False for none.
    noise : Noise or str, optional
        What lossy steps and limits in sigma rest on, such as ``gain=G,offset=O,read=R``; the default is what the file
        declares, or the smallest estimate that nothing speaks against. What is given is of frames that are not reduced.
    risk : float
        The share of frames that may break a limit on quality; frames are held back to judge it.
    allow_code : bool
        Run analyses of the user's own that the goal names.
    target : path of a folder
        Where finalists are written to by the real writer, if the goal has `write_mb_s`.
    detector : str, optional
        Such as ``2048x2048:uint16@500Hz``, WxH: adds the `write_mb_s` that it needs, a quarter above its pace, to the
        requirements.
    notify : callable
        Called with a `Progress` as the search goes on.

    Raises
    ------
    InputError
        One line: where, what, must be, got.
    UnsatisfiableError
        Where nothing meets the requirements.
    """
    limit = Budget.parse(budget)
    if not 0 < risk < 1:
        raise InputError(f"--risk must be above 0 and below 1, got {risk}")
    pace = None if detector is None else Detector.parse(detector)
    wanted = _goal(goal, maximize, require)
    check_allowed(wanted, allow_code)
    chosen = space if isinstance(space, Space) else load_space(space)
    if reduce is None:
        reduce = chosen.reduce
    reductions = parse_reductions(reduce) if isinstance(reduce, str) else check_order(reduce)
    chosen = available(chosen)
    nbytes = parse_size(sample, "--sample")
    originals = open_stacks(paths, dataset, axes)
    stacks = [reduced(stack, reductions) for stack in originals]
    if pace is not None:
        if (pace.frame_shape, pace.dtype) != (originals[0].frame_shape, originals[0].dtype):
            size = "x".join(map(str, reversed(originals[0].frame_shape)))
            text = f"{size}:{originals[0].dtype}, got {detector!r}"
            raise InputError(f"--detector must be of the frames at hand, {text}")
        wanted = _goal(wanted, (), [f"write_mb_s >= {pace.needed_mb_s / times_smaller(originals[:1], stacks[:1])!r}"])
    writes = "write_mb_s" in {*wanted.maximize, *(c.metric for c in wanted.require)}
    place = Target(Path(target), default_workers()) if writes else None
    given = Noise.parse(noise) if isinstance(noise, str) else noise
    given = given and noise_of(given, stacks[0])
    parts = split(stacks, units_for(risk), seed) if any(chosen.steps()) else None
    if parts is None and (wanted.limits or wanted.analysed):
        text = f"goal {wanted.name} allows steps, and space {chosen.name} has none: the result is lossless;"
        warnings.warn(f"{text} --space counting, integrating or float has some", TunerWarning, stacklevel=2)
    for stack in originals if parts is not None else ():
        if done := done_before(stack):
            text = f"{stack.name}: {done}; limits are held against these frames, not those of the detector"
            warnings.warn(text, TunerWarning, stacklevel=2)
    drawn = draw_sample(stacks, nbytes, seed, parts.search if parts else None)
    about = about_reduction(originals, stacks, drawn) if reductions else {}
    name = name or _name_of(paths)
    frames = len(stacks[0]) if len(stacks[0].shape) == 3 else 0
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
    folder = home() / "evaluations"
    check_room(folder)
    past = _past(folder, drawn)
    # Nodes may start a search in the same second as the same process; a file's name has 255 bytes.
    short = re.sub(r"[^\w.-]", "_", name)[:48]
    unique = f"{now}-{short}-{secrets.token_hex(4)}"
    with Log(folder / f"{unique}.jsonl") as log:
        say = partial(_say, notify, drawn.dtype.itemsize)
        lossy = _settle_steps(chosen, wanted, stacks, drawn, parts, given, risk, log, say)
        if parts is not None and _keeps(lossy, whole := draw_sample(stacks, nbytes, seed), drawn, wanted, log):
            # How it is compressed moves no pixel more, and of a short scan nearly all was held back to judge.
            drawn, past = whole, _past(folder, whole)
            lossy = replace(lossy, stepped=prepare_sample(lossy.steps, whole, lossy.pixels))
        bounds = envelope(drawn, stacks)
        for stack in stacks:
            stack.close()
        run = Search(
            drawn,
            frames,
            chosen.with_steps(lossy.steps),
            wanted.without_analyses,
            limit,
            log,
            traits=traits_of(lossy.stepped, stacks),
            pixels=lossy.pixels,
            seed=seed,
            jobs=jobs or default_workers(),
            prefer=prefer,
            storage=storage,
            study=unique,
            dataset=name,
            known=past if resume else (),
            warm=[*lossy.probed, *_warm(past)],
            target=place,
            notify=notify,
        )
        leader = surrogate if isinstance(surrogate, Surrogate) else None
        if surrogate is True:
            leader = load_surrogate(say)
        limit.restart()
        result = run.run(leader)
        assert result.best.config is not None
        h5py_mb_s = read_frames(Meter(drawn, frames, lossy.pixels), result.best.config).mb_s
        profile = profile_of(name, result, drawn, stacks, bounds, seed, h5py_mb_s)
        containers = other_containers(result.best.config, drawn, lossy.pixels)
        profile = replace(profile, evidence={**profile.evidence, "goal": wanted.to_dict(), "containers": containers})
        if place is not None:
            writer = {"target": readable(str(place.folder.resolve())), "workers": place.workers}
            profile = replace(profile, evidence={**profile.evidence, "writer": writer})
        if lossy.steps:
            profile = lossy.into(profile)
        if reductions:
            profile = as_of(profile, originals[0], reductions, about)
    return Found(profile, result, log.path)


@dataclass(frozen=True, slots=True)
class _Lossy:
    """What is done to frames before they are compressed, and what that is worth."""

    steps: tuple[Step, ...]
    pixels: Sequence[Pixels]
    stepped: Sample
    noise: NoiseFound | None = None
    promise: Promise | None = None
    probed: Sequence[Config] = ()
    """What was best when steps were compared."""

    def into(self, profile: Profile) -> Profile:
        """The profile with the noise that its steps rest on and the promise that was made."""
        evidence = dict(profile.evidence)
        if self.promise is not None:
            evidence["promise"] = self.promise.to_dict()
        if self.noise is not None:
            evidence["noise"] = {
                "estimates": [asdict(estimate) for estimate in self.noise.estimates],
                "doubts": [str(doubt) for doubt in self.noise.doubts],
            }
        return replace(profile, noise=self.noise.noise if self.noise else None, evidence=evidence)


def _settle_steps(
    space: Space,
    goal: Goal,
    stacks: Sequence[Stack],
    drawn: Sample,
    parts: Parts | None,
    given: Noise | None,
    risk: float,
    log: Log,
    say: Callable[[str], None],
) -> _Lossy:
    """Which steps of the space to take: the most promising that keep the goal's limits on frames held back."""
    options = space.steps()
    pixels = [Pixels(stack.marks, stack.mask) for stack in stacks]
    if parts is None:
        return _Lossy((), pixels, drawn)
    small = small_part(drawn)
    rounds_gain = any(not isinstance(step, Stages) for steps in options for step in steps)
    if rounds_gain and any(stacks[run.stack].tells_gain(run.frames) for run in drawn.runs):
        text = "steps must be stages alone, as raw frames of a JUNGFRAU have the gain in the upper bits of each pixel"
        raise InputError(f"{stacks[0].name}: {text}")
    say("noise")
    lossless, _ = rank_steps([()], Meter(small), replace(goal, require=()), log)
    found = settle_noise(given, stacks[0], drawn, lossless[0].evaluation)
    source = found.noise.source
    for doubt in found.doubts:
        text = f"{stacks[0].name}: the noise {'' if source == 'given' else 'from '}{source} may be wrong: {doubt}"
        warnings.warn(text, TunerWarning, stacklevel=3)
    pixels = [replace(about, noise=found.noise) for about in pixels]
    options = informed(on_grid(options, found.step), small, pixels)
    say(f"{len(options)} ways to prepare frames")
    meter = Meter(small, pixels=pixels, qualities=(*REPORTED, *goal.qualities), seen=parts.seen)
    allowed, refused = rank_steps(options, meter, goal, log)
    if not allowed:
        raise UnsatisfiableError(f"no step keeps the limits on quality: {refused[0].failure or goal.require}")
    say("judging them on frames held back")
    option, promise = hold(allowed, goal, stacks, pixels, parts, risk)
    stepped = prepare_sample(option.steps, drawn, pixels)
    probed = [option.evaluation.config] if option.evaluation.config else []
    return _Lossy(option.steps, pixels, stepped, found, promise, probed)


def _keeps(lossy: _Lossy, whole: Sample, drawn: Sample, goal: Goal, log: Log) -> bool:
    """Whether a sample has frames beyond those of the search, and the steps keep the limits in all of them too."""
    if whole.n_frames == drawn.n_frames:
        return False
    meter = Meter(whole, pixels=lossy.pixels, qualities=(*REPORTED, *goal.qualities))
    return not lossy.steps or bool(rank_steps([lossy.steps], meter, goal, log)[0])


def _say(notify: Callable[[Progress], None], itemsize: int, text: str) -> None:
    notify(Progress(text, 0, 0.0, None, itemsize))


def available(space: Space) -> Space:
    """The space without the alternatives whose codec plug-in does not work here.

    Raises
    ------
    InputError
        Where nothing is left, with the reason.
    """
    reasons: dict[str, str] = {}

    def works(node: object) -> bool:
        codec = node.get("codec") if isinstance(node, dict) else node
        if not isinstance(codec, str) or codec not in PLUGINS:
            return True
        if codec not in reasons:
            reasons[codec] = probe(codec) or ""
        return not reasons[codec]

    tree = dict(space.tree)
    blosc2 = tree.get("blosc2", {})
    options = blosc2.options if isinstance(blosc2, Choose) else (blosc2,)
    left = tuple(option for option in options if works(option))
    if not left:
        raise InputError(f"space {space.name}: {next(reason for reason in reasons.values() if reason)}")
    if isinstance(blosc2, Choose):
        tree["blosc2"] = Choose(left)
    return Space(space.name, tree)


def _goal(goal: str | os.PathLike[str] | Goal | None, maximize: Sequence[str], require: Sequence[str]) -> Goal:
    if goal is None and not maximize:
        goal = "balanced"
    known = goal if goal is None or isinstance(goal, Goal) else load_goal(goal)
    return goal_of(known, maximize, require)


def _name_of(paths: Sequence[str | os.PathLike[str]]) -> str:
    return readable(Path(paths[0]).name.split(".")[0]) or "profile"


def _past(folder: Path, sample: Sample) -> list[Evaluation]:
    """What was logged of this sample, on the part of it that a search measures or on all of it."""
    digests = {sample.digest, small_part(sample).digest}
    logs, _ = latest_logs([folder])
    return [e for log in logs for e in read_log(log, digests) if e.origin.get("data") in digests]


def _warm(past: Sequence[Evaluation]) -> list[Config]:
    finalists = [e.config for e in reversed(past) if e.config is not None and e.origin.get("finalist")]
    return list(dict.fromkeys(finalists))[:_WARM]
