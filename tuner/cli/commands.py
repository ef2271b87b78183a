"""What each subcommand does; only what it needs is imported."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from tuner.cli.outputs import check_document, check_folder, check_other, check_output
from tuner.errors import InputError, TunerError, UnsatisfiableError, VerificationError
from tuner.profile import Profile, load_profile
from tuner.stack import Stack

#: Exit code of what the user interrupts.
INTERRUPTED = 130


def demo_command(options: argparse.Namespace) -> None:
    """Simulate a scan."""
    from tuner.apply.target import check_target
    from tuner.simulate import simulate, write_nexus

    check_target(Path(options.output), options.overwrite)
    shape = (options.shape[0], options.shape[1]) if options.shape else None
    simulation = simulate(options.technique, options.frames, options.seed, shape)
    write_nexus(options.output, simulation)
    sides, dtype = list(simulation.shape), str(simulation.dtype)
    _answer(
        options,
        {"path": options.output, "technique": options.technique, "shape": sides, "dtype": dtype},
        f"{options.output}: {options.technique}, {dtype} {'x'.join(map(str, sides))}, /entry/data/data",
    )


def read_command(options: argparse.Namespace) -> int:
    """Say what is in files."""
    from tuner.document import parse_size
    from tuner.read import files_of_stacks
    from tuner.read.sampling import draw_sample
    from tuner.report.inspection import format_inspection, inspect

    nbytes = parse_size(options.sample, "--sample")

    def look(stack: Stack) -> dict[str, Any]:
        return inspect(stack, draw_sample([stack], nbytes, options.seed))

    work = [(str(files[0]), files, look) for files in files_of_stacks(options.files)]
    return _one_by_one(options, "stacks", work, format_inspection)


def search_command(options: argparse.Namespace) -> int:
    """Find a configuration and save its profile."""
    check_document(options.output, options.files)
    if options.target is not None:
        check_folder(options.target)
    with _needed_by("searching needs"):
        from tuner.report.terminal import SearchProgress, format_reduction, print_result
        from tuner.search.find import PREDICT_BUDGET, find_profile
    with SearchProgress(options.quiet) as progress:
        found = find_profile(
            options.files,
            dataset=options.dataset,
            axes=_axes(options),
            space=options.space,
            reduce=options.reduce,
            goal=options.goal,
            maximize=options.maximize,
            require=options.require,
            prefer=options.prefer,
            budget=PREDICT_BUDGET if options.budget is None else options.budget,
            sample=options.sample,
            jobs=options.jobs,
            seed=options.seed,
            name=options.name,
            resume=options.resume,
            storage=options.storage,
            surrogate=not options.unguided,
            noise=options.noise,
            risk=options.risk,
            allow_code=options.allow_code,
            target=options.target or Path(options.output).parent,
            detector=options.detector,
            notify=progress,
        )
    found.profile.save(options.output)
    if options.json:
        front = [evaluation.to_dict() for evaluation in found.result.front]
        _print_json({"path": options.output, "log": str(found.log), "profile": found.profile.to_dict(), "front": front})
    elif not options.quiet:
        print_result(found.result)
        if found.profile.reduce:
            print(format_reduction(found.profile))
        print(f"{options.output}: profile {found.profile.name}; every evaluation is in {found.log}")
    if found.result.stopped == "interrupted":
        say("tuner: interrupted; the profile holds the best so far")
        return INTERRUPTED
    return 0


def retrain_command(options: argparse.Namespace) -> None:
    """Learn from what searches measured, or take that back."""
    if options.rollback and options.logs:
        raise InputError("--rollback must stand alone, got logs too")
    with _needed_by("retraining needs"):
        from tuner.report.verdict import print_verdict
        from tuner.search.retrain import retrain, rollback
    notify = (lambda _: None) if options.quiet else (lambda text: say(f"tuner: {text}"))
    verdict = rollback() if options.rollback else retrain(options.logs, notify)
    if options.json:
        _print_json(verdict.to_dict())
    elif not options.quiet:
        print_verdict(verdict)


def apply_command(options: argparse.Namespace) -> None:
    """Write files anew."""
    if options.in_place:
        _apply_in_place(options)
        return
    if options.discard_original:
        raise InputError("--discard-original must come with --in-place: otherwise the original stays")
    if len(options.files) < 2:
        raise InputError("apply needs SRC and DST, got only one path")
    from tuner.apply.repack import repack

    *sources, destination = options.files
    check_other(Path(destination), [options.profile])
    profile = _load(options)
    with _opened(options, sources) as stacks:
        done = repack(
            profile,
            stacks,
            sources,
            destination,
            options.dataset,
            overwrite=options.overwrite,
            workers=options.workers,
            again=options.again,
            container=options.container,
            layout=options.layout,
        )
    _answer(options, done, _applied(done, profile))


def _apply_in_place(options: argparse.Namespace) -> None:
    from tuner.apply.in_place import replace_in_place

    for name in ("overwrite", "again", "layout"):
        if getattr(options, name, None):
            raise InputError(f"--{name} must not come with --in-place")
    profile = _load(options)
    with _opened(options, options.files) as stacks:
        done = replace_in_place(profile, stacks, options.discard_original, options.workers, options.container)
    skipped = [f"{path}: was written with this profile before" for path in done["skipped"]]
    _answer(options, done, "\n".join([*skipped, *filter(None, [_applied(done, profile)])]))


def _applied(done: Mapping[str, Any], profile: Profile) -> str:
    from tuner.report.verification import format_reduced

    return "\n".join(
        f"{file['destination']}: {file['dataset']}, {'x'.join(map(str, file['shape']))},"
        f" {file['nbytes'] / 1e6:,.1f} MB as {file['stored_nbytes'] / 1e6:,.1f} MB,"
        f" ratio {file['ratio'] or math.inf:.2f}, at {file['nbytes'] / 1e6 / max(file['seconds'], 1e-9):,.0f} MB/s"
        f"{_besides(file, bool(profile.config.steps))}{format_reduced(file)}"
        for file in done["files"]
    )


def _besides(file: Mapping[str, Any], lossy: bool) -> str:
    """Why the ratio of a file is not that of its profile: flats and darks are no data, and steps leave them alone."""
    missing = f", without {file['missing_frames']} frames that were never written" if file["missing_frames"] else ""
    if not file["other_frames"]:
        return missing
    alone = f", {file['ratio_of_data']:.2f} of data frames alone" if file["ratio_of_data"] else ""
    if not (alone or lossy):
        return missing
    how = "are kept as they are" if lossy else "beside them"
    return f"{missing}{alone}: {file['other_frames']} flats, darks or invalid frames {how}"


def verify_command(options: argparse.Namespace) -> int:
    """Check what was written, or a profile on other data."""
    profile = _load(options)
    if options.against:
        return _verify_written(options, profile)
    from tuner.document import parse_size
    from tuner.read import files_of_stacks
    from tuner.report.verification import format_verified

    with _needed_by("verifying a profile needs"):
        from tuner.measure.verify import verify_original

    nbytes = parse_size(options.sample, "--sample")

    def verify(original: Stack) -> dict[str, Any]:
        return {"path": original.name, **verify_original(profile, original, nbytes, allow_code=options.allow_code)}

    work = [(str(files[0]), files, verify) for files in files_of_stacks(options.files)]
    with _needed_by("verifying a profile needs"):
        return _one_by_one(options, "files", work, partial(format_verified, profile))


def _verify_written(options: argparse.Namespace, profile: Profile) -> int:
    from tuner.apply.foreign import verify_written
    from tuner.apply.prepare import Preparation
    from tuner.read import files_of_stacks
    from tuner.report.verification import format_written
    from tuner.steps.reduced import reduced

    originals = files_of_stacks(options.against)
    if len(originals) != len(options.files):
        text = f"one original for each file, got {len(originals)} for {len(options.files)}"
        raise InputError(f"--against must name {text}")

    def verify(written: str, original: Stack) -> dict[str, Any]:
        profile.match.check(original.dtype, original.frame_shape, original.name)
        stack = reduced(original, profile.reduce)
        preparation = Preparation.of_stack(profile, stack)
        return {"path": written, **verify_written(stack, written, preparation=preparation)}

    pairs = zip(options.files, originals, strict=True)
    work = [(written, files, partial(verify, written)) for written, files in pairs]
    return _one_by_one(options, "files", work, partial(format_written, profile))


def recover_command(options: argparse.Namespace) -> None:
    """Make what a killed writer left open again."""
    from tuner.apply.recover import recover

    found = recover(options.file)
    notes = ["its flag is cleared"] * found["cleared"]
    notes += [f"blocks of metadata that the kill tore are mended: {found['mended']}"] * bool(found["mended"])
    notes += [f"{name} is finished" for name in found["finished"]]
    said = [
        f"{options.file}: {one['dataset']}: of {one['frames']} frames safe: "
        + (", ".join(f"{first} to {after - 1}" for first, after in one["safe"]) or "none")
        for one in (found, *found["beside"])
    ]
    _answer(options, found, "; ".join([*said, *notes]))


def show_command(options: argparse.Namespace) -> None:
    """Draw what steps do to a frame."""
    from tuner.report.pictures import draw

    check_output(options.output, [options.file, options.profile])
    profile = _load(options)
    with _opened(options, [options.file]) as stacks, _needed_by("pictures need"):
        drawn = draw(profile, stacks[0], options.output, options.frame)
    _answer(
        options,
        drawn,
        f"{drawn['path']}: frame {drawn['frame']}, error at most {drawn['max_error']:.3g} {drawn['unit']},"
        f" autocorrelation at most {drawn['autocorrelation']:.2g}",
    )


def soak_command(options: argparse.Namespace) -> int:
    """Play frames at a detector's pace."""
    from tuner.document import OneOf, dump_yaml, write_atomically
    from tuner.measure.pace import parse_duration, parse_rate
    from tuner.measure.soak import soak
    from tuner.report.soak import format_soak

    way = OneOf(("block", "shed")).check(options.on_overload, "--on-overload")
    rate, seconds = parse_rate(options.rate), parse_duration(options.duration)
    check_folder(options.target)
    if options.output:
        check_document(options.output, [options.profile, *(options.data or ())])
    profile = _load(options)
    with _opened(options, options.data) if options.data else nullcontext([None]) as stacks:
        found = soak(profile, Path(options.target), rate, seconds, stacks[0], workers=options.workers, on_overload=way)
    document = found.to_dict()
    if options.output:
        text = json.dumps(document, indent=1) if options.output.endswith(".json") else dump_yaml(document)
        write_atomically(options.output, text)
    _answer(options, document, format_soak(found))
    if found.late:
        raise UnsatisfiableError(f"{options.target}: {found.late} of {found.frames} frames were late at {options.rate}")
    return 0


@contextmanager
def _needed_by(what: str) -> Iterator[None]:
    """Name the package of the extra `lab` that is missing, where one is."""
    try:
        yield
    except ImportError as error:
        if (error.name or "tuner").startswith("tuner"):
            raise
        raise InputError(f"{what} {error.name}: pip install 'tuner[lab]'") from None


@contextmanager
def _opened(options: argparse.Namespace, paths: Sequence[str]) -> Iterator[list[Stack]]:
    from tuner.read import open_stacks

    stacks = open_stacks(paths, options.dataset, _axes(options))
    try:
        yield stacks
    finally:
        for stack in stacks:
            stack.close()


def _one_by_one(
    options: argparse.Namespace,
    key: str,
    work: Iterable[tuple[str, Sequence[Path], Callable[[Stack], dict[str, Any]]]],
    show: Callable[[dict[str, Any]], str],
) -> int:
    """What is found in each of some stacks: one that fails is told of, and the others go on; the greatest exit code."""
    _axes(options)  # said once, if at all
    document: dict[str, list[dict[str, Any]]] = {key: [], "failed": []}
    for path, files, do in work:
        try:
            with _opened(options, [str(file) for file in files]) as (stack,):
                found = do(stack)
        except (TunerError, OSError) as error:
            text, code = explained(error)
            found = error.found if isinstance(error, VerificationError) else {}
            document["failed"].append({"path": path, "error": text, "exit_code": code, **found})
            say(f"tuner: {text}")
        else:
            document[key].append(found)
            if not (options.json or options.quiet):
                print(show(found), flush=True)
        for warning in found.get("warnings", ()):
            say(f"tuner: warning: {warning}")
    if options.json:
        _print_json(document)
    return max((one["exit_code"] for one in document["failed"]), default=0)


def explained(error: TunerError | OSError) -> tuple[str, int]:
    """The line that is said of an error, and its exit code."""
    if isinstance(error, TunerError):
        return str(error), error.exit_code
    return f"{error.filename or 'system'}: {error.strerror or error}", 1


def _load(options: argparse.Namespace) -> Profile:
    return load_profile(options.profile, strict=options.strict)


def _axes(options: argparse.Namespace) -> list[str] | None:
    if options.axes is None:
        return None
    axes = [axis.strip() for axis in options.axes.split(",")]
    if not all(axes) or len(set(axes)) != len(axes):
        raise InputError(f"--axes must be different names with commas between, got {options.axes!r}")
    return axes


def _answer(options: argparse.Namespace, document: Mapping[str, Any], text: str) -> None:
    if options.json:
        _print_json(document)
    elif not options.quiet:
        print(text)


def _print_json(document: Mapping[str, Any]) -> None:
    print(json.dumps(document, indent=None, allow_nan=False, default=str))


def say(text: str) -> None:
    """Print a line for the user that is no answer."""
    print(text, file=sys.stderr)
