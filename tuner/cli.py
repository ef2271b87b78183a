"""The command line: one subcommand per verb."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from tuner import __version__
from tuner.errors import InputError, TunerError, TunerWarning, UnsatisfiableError
from tuner.profile import Profile, load_profile
from tuner.stack import Stack

_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """argparse with one plain line for an error."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 success; 1 other failure; 2 bad input or usage; 3 requirements that cannot be met; 4 verification failed;
    130 interrupted.
    """
    warnings.simplefilter("ignore")
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    warnings.simplefilter("always", TunerWarning)
    # c-blosc2 asks whatever `python` is first on PATH where a codec plug-in is; the one that runs us knows.
    here, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    if path.split(os.pathsep)[0] != here:
        os.environ["PATH"] = os.pathsep.join([here, path])
    try:
        options = _parser().parse_args(arguments)
        return int(options.run(options) or 0)
    except TunerError as error:
        _say(f"tuner: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("tuner: interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        _say("tuner: out of memory")
        return 1
    except OSError as error:
        _say(f"tuner: {error.filename or 'system'}: {error.strerror or error}")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tuner",
        description="Finds the Blosc2 configuration for a detector's frames, proves it, and writes HDF5 with it.",
        epilog="example: tuner search scan.nxs -o profile.yaml",
    )
    parser.add_argument("--version", action="version", version=f"tuner {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_demo(commands)
    _add_read(commands)
    _add_search(commands)
    _add_predict(commands)
    _add_retrain(commands)
    _add_apply(commands)
    _add_verify(commands)
    _add_soak(commands)
    _add_recover(commands)
    _add_show(commands)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], text: str, example: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    command.add_argument("--quiet", action="store_true", help="print nothing but errors, and the JSON object")
    return command


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dataset", metavar="D", help="path of the dataset in an HDF5 file")
    command.add_argument("--axes", metavar="A", help="names of all axes, those of a frame last, such as frame,y,x")


def _add_demo(commands: Any) -> None:
    command = _command(
        commands, "demo", _demo, "simulate a scan as NeXus", "tuner demo -o scan.nxs --technique mx --frames 20"
    )
    command.add_argument("-o", "--output", type=_path, metavar="FILE", required=True, help="the file to write")
    command.add_argument("--technique", default="tomography", help="tomography, mx, saxs, xrf, jungfrau or xpcs")
    command.add_argument("--frames", type=_whole, default=64, metavar="N", help="how many (default 64)")
    command.add_argument("--seed", type=_whole, default=0, metavar="S", help="decides sample and noise (default 0)")


def _add_read(commands: Any) -> None:
    command = _command(
        commands,
        "read",
        _read,
        "say what is in a file, what it is stored with, and what its noise allows",
        "tuner read scan.nxs",
    )
    command.add_argument("files", nargs="+", type=_path, metavar="FILE", help="a file, a folder or a glob")
    _add_source(command)
    command.add_argument("--sample", default="32MB", metavar="SIZE", help="how much is looked at (default 32MB)")
    command.add_argument("--seed", type=_whole, default=0, metavar="N", help="decides the sample (default 0)")


def _add_search(commands: Any) -> None:
    command = _command(
        commands,
        "search",
        _search,
        "find a configuration for the frames of some files",
        'tuner search scan.nxs -o id19.yaml --maximize ratio --require "encode_mb_s >= 500" --budget 60s',
    )
    _add_wishes(command)
    command.add_argument("--budget", default="60s", metavar="60s|200", help="at most: seconds, or configurations")
    command.add_argument("--unguided", action="store_true", help="do without what was learned from other data")
    command.add_argument("--resume", action="store_true", help="go on from what a killed search had measured")
    command.add_argument("--storage", metavar="URL", help="mirror trials into an Optuna storage, for its dashboard")


def _add_predict(commands: Any) -> None:
    command = _command(
        commands,
        "predict",
        _search,
        "guess a configuration from what was learned from other data, and verify it by eight measurements",
        "tuner predict scan.nxs -o id19.yaml",
    )
    _add_wishes(command)
    command.set_defaults(budget=None, unguided=False, resume=False, storage=None)


def _add_wishes(command: argparse.ArgumentParser) -> None:
    command.add_argument("files", nargs="+", type=_path, metavar="FILE", help="the sample is drawn from all of them")
    command.add_argument("-o", "--output", type=_path, metavar="PROFILE", required=True, help="the profile to write")
    _add_source(command)
    command.add_argument("--space", default="portable", metavar="NAME|FILE", help="what to search (default portable)")
    command.add_argument("--reduce", metavar="R", help="first bin, sum, crop or scale frames: bin=2,sum=4")
    command.add_argument("--goal", metavar="NAME|FILE", help="what is better and allowed (default balanced)")
    command.add_argument("--maximize", action="append", default=[], metavar="M", help="replaces the goal's objectives")
    command.add_argument("--require", action="append", default=[], metavar="R", help="adds METRIC >= LIMIT, or <=")
    command.add_argument("--prefer", metavar="M", help="take the front's end with the most of M, not its knee")
    command.add_argument(
        "--detector", metavar="D", help="WxH:dtype@rate, such as 2048x2048:uint16@500Hz: requires the write_mb_s for it"
    )
    command.add_argument(
        "--target", type=_path, metavar="DIR", help="folder that write_mb_s is measured in (default: that of -o)"
    )
    command.add_argument("--noise", metavar="N", help="for lossy steps: gain=G,offset=O,read=R in data units")
    command.add_argument(
        "--risk", type=float, default=0.05, metavar="R", help="share of frames that may break a quality (default 0.05)"
    )
    command.add_argument("--allow-code", action="store_true", help="run analyses of your own that the goal names")
    command.add_argument("--sample", default="16MB", metavar="SIZE", help="how much is measured on (default 16MB)")
    command.add_argument("--jobs", type=_positive, metavar="N", help="threads for what is not timed (default: cores)")
    command.add_argument("--seed", type=_whole, default=0, metavar="N", help="decides sample and proposals (default 0)")
    command.add_argument("--name", metavar="N", help="the profile's name (default: the first file's)")


def _add_apply(commands: Any) -> None:
    command = _command(
        commands, "apply", _apply, "write files anew as a profile says", "tuner apply id19.yaml scan.nxs out.h5"
    )
    command.add_argument("profile", type=_path, metavar="PROFILE")
    command.add_argument(
        "files", nargs="+", type=_path, metavar="SRC... DST", help="what to read, and last where to write"
    )
    _add_source(command)
    command.add_argument("--overwrite", action="store_true", help="replace DST where it exists")
    command.add_argument("--workers", type=_positive, metavar="N", help="threads that encode (default: cores)")
    command.add_argument("--again", action="store_true", help="change what was written lossily before once more")
    command.add_argument(
        "--container", default="blosc2", metavar="C", help="blosc2 (default), bitshuffle or bitshuffle-zstd"
    )
    command.add_argument(
        "--in-place", action="store_true", help="replace each SRC by its copy once that is verified; there is no DST"
    )
    command.add_argument("--discard-original", action="store_true", help="in place, take a profile that changes pixels")
    command.add_argument("--layout", metavar="L", help="nexus, or eiger: a master with data files (default: as SRC)")
    command.add_argument("--strict", action="store_true", help="refuse a profile that was changed after measuring")


def _add_verify(commands: Any) -> None:
    command = _command(
        commands,
        "verify",
        _verify,
        "check a written file against its original, or a profile on other data",
        "tuner verify id19.yaml out.h5 --against scan.nxs",
    )
    command.add_argument("profile", type=_path, metavar="PROFILE")
    command.add_argument(
        "files", nargs="+", type=_path, metavar="FILE", help="what was written; without --against, originals"
    )
    command.add_argument("--against", nargs="+", type=_path, metavar="ORIGINAL", help="what it was written from")
    _add_source(command)
    command.add_argument("--sample", default="16MB", metavar="SIZE", help="for the requirements (default 16MB)")
    command.add_argument("--allow-code", action="store_true", help="run analyses of your own that the profile names")
    command.add_argument("--strict", action="store_true", help="refuse a profile that was changed after measuring")


def _add_recover(commands: Any) -> None:
    command = _command(
        commands,
        "recover",
        _recover,
        "make the file of a writer that was killed open again, and say which of its frames are safe",
        "tuner recover scan.h5",
    )
    command.add_argument("file", type=_path, metavar="FILE", help="what the writer wrote; its master if it has one")


def _add_show(commands: Any) -> None:
    command = _command(
        commands,
        "show",
        _show,
        "draw what a profile's steps do to a frame: original, decoded, difference, its autocorrelation",
        "tuner show id19.yaml scan.nxs -o picture.png",
    )
    command.add_argument("profile", type=_path, metavar="PROFILE")
    command.add_argument("file", type=_path, metavar="FILE", help="an original")
    command.add_argument("-o", "--output", type=_path, metavar="PNG", required=True, help="the picture to write")
    _add_source(command)
    command.add_argument("--frame", type=_whole, metavar="N", help="its number (default: the data frame in the middle)")
    command.add_argument("--strict", action="store_true", help="refuse a profile that was changed after measuring")


def _add_soak(commands: Any) -> None:
    command = _command(
        commands,
        "soak",
        _soak,
        "play frames at a detector's pace through the writer, and say how it kept up; exit code 3 if frames were late",
        "tuner soak id19.yaml --target /data/visit --rate 500Hz --for 10m --data scan.nxs",
    )
    command.add_argument("profile", type=_path, metavar="PROFILE")
    command.add_argument("--target", type=_path, metavar="DIR", required=True, help="folder to write to; emptied again")
    command.add_argument("--rate", metavar="R", required=True, help="frames per second, such as 500Hz or 1.5kHz")
    command.add_argument("--for", dest="duration", default="10m", metavar="T", help="how long (default 10m)")
    command.add_argument(
        "--data", nargs="+", type=_path, metavar="FILE", help="whose frames to play (default simulated)"
    )
    _add_source(command)
    command.add_argument(
        "-o", "--output", type=_path, metavar="FILE", help="keep the report, as JSON or YAML by its name"
    )
    command.add_argument("--workers", type=_positive, metavar="N", help="threads that encode (default: cores)")
    command.add_argument("--on-overload", default="block", metavar="WAY", help="block (default) or shed")
    command.add_argument("--strict", action="store_true", help="refuse a profile that was changed after measuring")


def _add_retrain(commands: Any) -> None:
    command = _command(
        commands,
        "retrain",
        _retrain,
        "learn from what searches measured, where that makes guesses better",
        "tuner retrain",
    )
    command.add_argument(
        "logs", nargs="*", type=_path, metavar="LOG", help="logs or folders of them (default: this user's searches)"
    )
    command.add_argument("--rollback", action="store_true", help="take back the last promotion")


def _demo(options: argparse.Namespace) -> None:
    from tuner.simulate import simulate, write_nexus

    simulation = simulate(options.technique, options.frames, options.seed)
    write_nexus(options.output, simulation)
    shape = list(simulation.shape)
    _answer(
        options,
        {"path": options.output, "technique": options.technique, "shape": shape, "dtype": str(simulation.dtype)},
        f"{options.output}: {options.technique}, {simulation.dtype} {'x'.join(map(str, shape))}, /entry/data/data",
    )


def _read(options: argparse.Namespace) -> None:
    from tuner.document import parse_size
    from tuner.read.sampling import draw_sample
    from tuner.report.inspection import format_inspection, inspect

    nbytes = parse_size(options.sample, "--sample")
    inspections = []
    with _opened(options, options.files) as stacks:
        for stack in stacks:
            inspections.append(inspect(stack, draw_sample([stack], nbytes, options.seed)))
            if not (options.json or options.quiet):
                print(format_inspection(inspections[-1]))
    if options.json:
        _print_json({"stacks": inspections})


def _search(options: argparse.Namespace) -> int:
    _check_output(options.output, options.files)
    try:
        from tuner.measure.baseline import TEXTS
        from tuner.report.terminal import SearchProgress, format_reduction, print_result
        from tuner.search.find import PREDICT_BUDGET, find_profile
    except ImportError as error:
        if (error.name or "tuner").startswith("tuner"):
            raise
        raise InputError(f"searching needs {error.name}: pip install 'tuner[lab]'") from None
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
            budget=options.budget or PREDICT_BUDGET,
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
        print_result(found.result, TEXTS)
        if found.profile.reduce:
            print(format_reduction(found.profile))
        print(f"{options.output}: profile {found.profile.name}; every evaluation is in {found.log}")
    if found.result.stopped == "interrupted":
        _say("tuner: interrupted; the profile holds the best so far")
        return _INTERRUPTED
    return 0


def _retrain(options: argparse.Namespace) -> None:
    if options.rollback and options.logs:
        raise InputError("--rollback must stand alone, got logs too")
    try:
        from tuner.report.verdict import print_verdict
        from tuner.search.retrain import retrain, rollback
    except ImportError as error:
        if (error.name or "tuner").startswith("tuner"):
            raise
        raise InputError(f"retraining needs {error.name}: pip install 'tuner[lab]'") from None
    notify = (lambda _: None) if options.quiet else (lambda text: _say(f"tuner: {text}"))
    verdict = rollback() if options.rollback else retrain(options.logs, notify)
    if options.json:
        _print_json(verdict.to_dict())
    elif not options.quiet:
        print_verdict(verdict)


def _apply(options: argparse.Namespace) -> None:
    if options.in_place:
        _apply_in_place(options)
        return
    if options.discard_original:
        raise InputError("--discard-original must come with --in-place: otherwise the original stays")
    if len(options.files) < 2:
        raise InputError("apply needs SRC and DST, got only one path")
    from tuner.apply.repack import repack

    *sources, destination = options.files
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
    _answer(options, done, _applied(done))


def _apply_in_place(options: argparse.Namespace) -> None:
    from tuner.apply.in_place import replace_in_place

    for name in ("overwrite", "again", "layout"):
        if getattr(options, name, None):
            raise InputError(f"--{name} must not come with --in-place")
    profile = _load(options)
    with _opened(options, options.files) as stacks:
        done = replace_in_place(profile, stacks, options.discard_original, options.workers, options.container)
    skipped = [f"{path}: was written with this profile before" for path in done["skipped"]]
    _answer(options, done, "\n".join([*skipped, *filter(None, [_applied(done)])]))


def _applied(done: Mapping[str, Any]) -> str:
    return "\n".join(
        f"{file['destination']}: {file['dataset']}, {'x'.join(map(str, file['shape']))},"
        f" {file['nbytes'] / 1e6:,.1f} MB as {file['stored_nbytes'] / 1e6:,.1f} MB,"
        f" ratio {file['ratio'] or math.inf:.2f}, at {file['nbytes'] / 1e6 / max(file['seconds'], 1e-9):,.0f} MB/s"
        f"{_besides(file)}{_reduced(file)}"
        for file in done["files"]
    )


def _besides(file: Mapping[str, Any]) -> str:
    """Why the ratio of a file is not that of its profile: flats and darks are no data, and steps leave them alone."""
    if not file["other_frames"]:
        return ""
    alone = f", {file['ratio_of_data']:.2f} of data frames alone" if file["ratio_of_data"] else ""
    return f"{alone}: {file['other_frames']} flats, darks or invalid frames are kept as they are"


def _verify(options: argparse.Namespace) -> None:
    profile = _load(options)
    if options.against:
        _verify_written(options, profile)
        return
    from tuner.document import parse_size
    from tuner.measure.verify import verify_original

    nbytes = parse_size(options.sample, "--sample")
    with _opened(options, options.files) as stacks:
        verified = verify_original(profile, stacks, nbytes, allow_code=options.allow_code)
    for warning in verified["warnings"]:
        _say(f"tuner: warning: {warning}")
    requirements = "".join(
        f"\n  {'met' if r['met'] else 'missed'}: {r['requirement']} (here {r['limit']:.4g}), got {r['got']:.4g}"
        for r in verified["requirements"]
    )
    kept = "within the limits on quality in each" if profile.config.steps else "bit for bit"
    _answer(
        options,
        verified,
        f"verified: {verified['frames']} frames, {verified['nbytes'] / 1e6:,.1f} MB, come back {kept};"
        f" ratio {verified['ratio']:.2f}{_reduced(verified)}{requirements}",
    )


def _reduced(done: Mapping[str, Any]) -> str:
    """What a reduction adds to a ratio."""
    times, ratio = done["reduction"], done["ratio"] or math.inf
    return "" if times == 1 else f", of frames reduced {times:.2f} times: {times * ratio:.2f} in all"


def _verify_written(options: argparse.Namespace, profile: Profile) -> None:
    from tuner.apply.foreign import verify_written
    from tuner.apply.prepare import Preparation
    from tuner.steps.reduced import reduced

    verified = []
    with _opened(options, options.against) as stacks:
        if (originals := len(stacks)) != (files := len(options.files)):
            raise InputError(f"--against must name one original for each file, got {originals} for {files}")
        for original, written in zip(stacks, options.files, strict=True):
            profile.match.check(original.dtype, original.frame_shape, original.name)
            stack = reduced(original, profile.reduce)
            preparation = Preparation.of_stack(profile, stack)
            verified.append({"path": written, **verify_written(stack, written, preparation=preparation)})
    made = " as the profile's steps made them" if profile.config.steps else ""
    made += " of the originals as reduced" if profile.reduce else ""
    reader = ", ".join(f"{name} {version}" for name, version in verified[0]["versions"].items())
    _answer(
        options,
        {"files": verified},
        "\n".join(
            f"verified: {v['path']}: {v['dataset']}, {v['frames']} frames, {v['nbytes'] / 1e6:,.1f} MB,"
            f" read bit for bit{made} by a process with only {reader}"
            for v in verified
        ),
    )


def _recover(options: argparse.Namespace) -> None:
    from tuner.apply.recover import recover

    found = recover(options.file)
    notes = ["its flag is cleared"] * found["cleared"] + [f"{name} is finished" for name in found["finished"]]
    said = [
        f"{options.file}: {one['dataset']}: of {one['frames']} frames safe: "
        + (", ".join(f"{first} to {after - 1}" for first, after in one["safe"]) or "none")
        for one in (found, *found["beside"])
    ]
    _answer(options, found, "; ".join([*said, *notes]))


def _show(options: argparse.Namespace) -> None:
    from tuner.report.pictures import draw

    _check_output(options.output, [options.file, options.profile])
    profile = _load(options)
    with _opened(options, [options.file]) as stacks:
        try:
            drawn = draw(profile, stacks[0], options.output, options.frame)
        except ImportError as error:
            if (error.name or "tuner").startswith("tuner"):
                raise
            raise InputError(f"pictures need {error.name}: pip install 'tuner[lab]'") from None
    _answer(
        options,
        drawn,
        f"{drawn['path']}: frame {drawn['frame']}, error at most {drawn['max_error']:.3g} {drawn['unit']},"
        f" autocorrelation at most {drawn['autocorrelation']:.2g}",
    )


def _soak(options: argparse.Namespace) -> int:
    from tuner.document import OneOf, dump_yaml, write_atomically
    from tuner.measure.pace import parse_duration, parse_rate
    from tuner.measure.soak import soak
    from tuner.report.soak import format_soak

    way = OneOf(("block", "shed")).check(options.on_overload, "--on-overload")
    rate, seconds = parse_rate(options.rate), parse_duration(options.duration)
    if options.output:
        _check_output(options.output, [options.profile])
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
def _opened(options: argparse.Namespace, paths: Sequence[str]) -> Iterator[list[Stack]]:
    from tuner.read import open_stacks

    stacks = open_stacks(paths, options.dataset, _axes(options))
    try:
        yield stacks
    finally:
        for stack in stacks:
            stack.close()


def _load(options: argparse.Namespace) -> Profile:
    return load_profile(options.profile, strict=options.strict)


def _check_output(output: str, inputs: Sequence[str]) -> None:
    """Say before searching what would fail after it."""
    path = Path(output)
    if not path.parent.is_dir():
        raise InputError(f"{path}: its folder must exist, got none at {path.parent}")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: must be a file, got a {'folder' if path.is_dir() else 'device'}")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InputError(f"{path}: its folder must be writable, got {error.strerror}") from None
    for name in inputs:
        if path.exists() and Path(name).exists() and path.samefile(name):
            raise InputError(f"{path}: the output must not be an input")


def _axes(options: argparse.Namespace) -> list[str] | None:
    if options.axes is None:
        return None
    axes = [axis.strip() for axis in options.axes.split(",")]
    if not all(axes) or len(set(axes)) != len(axes):
        raise InputError(f"--axes must be different names with commas between, got {options.axes!r}")
    return axes


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got an empty text")
    return text


def _whole(text: str, low: int = 0, high: int = 2**32 - 1) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
        raise argparse.ArgumentTypeError(f"must be a whole number in {low}..{high}, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    return _whole(text, low=1)


def _answer(options: argparse.Namespace, document: Mapping[str, Any], text: str) -> None:
    if options.json:
        _print_json(document)
    elif not options.quiet:
        print(text)


def _print_json(document: Mapping[str, Any]) -> None:
    print(json.dumps(document, indent=None, allow_nan=False, default=str))


def _show_warning(message: Warning | str, *_: Any) -> None:
    _say(f"tuner: warning: {message}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
