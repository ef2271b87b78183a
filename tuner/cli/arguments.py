"""What the command line takes: one subcommand per verb."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from tuner import __version__
from tuner.cli import commands
from tuner.errors import InputError


class _Parser(argparse.ArgumentParser):
    """argparse with one plain line for an error."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:  # the help of the command has what is known
            raise InputError(f"unrecognized arguments: {' '.join(unknown)} (see {found.prog} --help)")
        return found


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; what it returns has the function to call as `run`."""
    parser = _Parser(
        prog="tuner",
        description="Finds the Blosc2 configuration for a detector's frames, proves it, and writes HDF5 with it.",
        epilog="example: tuner search scan.nxs -o profile.yaml",
    )
    parser.add_argument("--version", action="version", version=f"tuner {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_demo(subparsers)
    _add_read(subparsers)
    _add_search(subparsers)
    _add_predict(subparsers)
    _add_retrain(subparsers)
    _add_apply(subparsers)
    _add_verify(subparsers)
    _add_soak(subparsers)
    _add_recover(subparsers)
    _add_show(subparsers)
    return parser


def _command(
    subparsers: Any, name: str, run: Callable[[argparse.Namespace], int | None], text: str, example: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, prog=command.prog)
    command.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    command.add_argument("--quiet", action="store_true", help="print nothing but errors, and the JSON object")
    return command


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dataset", metavar="D", help="path of the dataset in an HDF5 file")
    command.add_argument("--axes", metavar="A", help="names of all axes, those of a frame last, such as frame,y,x")


def _add_profile(command: argparse.ArgumentParser) -> None:
    command.add_argument("profile", type=_path, metavar="PROFILE")
    command.add_argument("--strict", action="store_true", help="refuse a profile that was changed after measuring")


def _add_demo(subparsers: Any) -> None:
    command = _command(
        subparsers,
        "demo",
        commands.demo_command,
        "simulate a scan as NeXus",
        "tuner demo -o scan.nxs --technique mx --frames 20",
    )
    command.add_argument("-o", "--output", type=_path, metavar="FILE", required=True, help="the file to write")
    command.add_argument("--overwrite", action="store_true", help="replace FILE where it exists")
    command.add_argument("--technique", default="tomography", help="tomography, mx, saxs, xrf, jungfrau or xpcs")
    command.add_argument("--frames", type=_whole, default=64, metavar="N", help="how many (default 64)")
    command.add_argument(
        "--shape", nargs=2, type=_whole, metavar=("ROWS", "COLUMNS"), help="of a frame (default the technique's own)"
    )
    command.add_argument("--seed", type=_whole, default=0, metavar="S", help="decides sample and noise (default 0)")


def _add_read(subparsers: Any) -> None:
    command = _command(
        subparsers,
        "read",
        commands.read_command,
        "say what is in a file, what it is stored with, and what its noise allows",
        "tuner read scan.nxs",
    )
    command.add_argument("files", nargs="+", type=_path, metavar="FILE", help="a file, a folder or a glob")
    _add_source(command)
    command.add_argument("--sample", default="32MB", metavar="SIZE", help="how much is looked at (default 32MB)")
    command.add_argument("--seed", type=_whole, default=0, metavar="N", help="decides the sample (default 0)")


def _add_search(subparsers: Any) -> None:
    command = _command(
        subparsers,
        "search",
        commands.search_command,
        "find a configuration for the frames of some files",
        'tuner search scan.nxs -o id19.yaml --maximize ratio --require "encode_mb_s >= 500" --budget 60s',
    )
    _add_wishes(command)
    command.add_argument("--budget", default="60s", metavar="60s|200", help="at most: seconds, or configurations")
    command.add_argument("--unguided", action="store_true", help="do without what was learned from other data")
    command.add_argument("--resume", action="store_true", help="go on from what a killed search had measured")
    command.add_argument("--storage", metavar="URL", help="mirror trials into an Optuna storage, for its dashboard")


def _add_predict(subparsers: Any) -> None:
    command = _command(
        subparsers,
        "predict",
        commands.search_command,
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
    command.add_argument("--reduce", metavar="R", help="first triage, sum, bin, crop or scale frames: bin=2,sum=4")
    command.add_argument("--goal", metavar="NAME|FILE", help="what is better and allowed (default balanced)")
    command.add_argument("--maximize", action="append", default=[], metavar="M", help="replaces the goal's objectives")
    command.add_argument("--require", action="append", default=[], metavar="R", help="adds METRIC >= LIMIT, or <=")
    command.add_argument("--prefer", metavar="M", help="take the front's end with the most of M, not its knee")
    command.add_argument(
        "--detector",
        metavar="D",
        help="WxH:dtype@rate, such as 2048x2048:uint16@500Hz: requires the write_mb_s for it and a quarter more",
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


def _add_apply(subparsers: Any) -> None:
    command = _command(
        subparsers,
        "apply",
        commands.apply_command,
        "write files anew as a profile says",
        "tuner apply id19.yaml scan.nxs out.h5",
    )
    _add_profile(command)
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


def _add_verify(subparsers: Any) -> None:
    command = _command(
        subparsers,
        "verify",
        commands.verify_command,
        "check a written file against its original, or a profile on other data",
        "tuner verify id19.yaml out.h5 --against scan.nxs",
    )
    _add_profile(command)
    command.add_argument(
        "files", nargs="+", type=_path, metavar="FILE", help="what was written; without --against, originals"
    )
    command.add_argument("--against", nargs="+", type=_path, metavar="ORIGINAL", help="what it was written from")
    _add_source(command)
    command.add_argument("--sample", default="16MB", metavar="SIZE", help="for the requirements (default 16MB)")
    command.add_argument("--allow-code", action="store_true", help="run analyses of your own that the profile names")


def _add_recover(subparsers: Any) -> None:
    command = _command(
        subparsers,
        "recover",
        commands.recover_command,
        "make the file of a writer that was killed open again, and say which of its frames are safe",
        "tuner recover scan.h5",
    )
    command.add_argument("file", type=_path, metavar="FILE", help="what the writer wrote; its master if it has one")


def _add_show(subparsers: Any) -> None:
    command = _command(
        subparsers,
        "show",
        commands.show_command,
        "draw what a profile's steps do to a frame: original, decoded, difference, its autocorrelation",
        "tuner show id19.yaml scan.nxs -o picture.png",
    )
    _add_profile(command)
    command.add_argument("file", type=_path, metavar="FILE", help="an original")
    command.add_argument("-o", "--output", type=_path, metavar="PNG", required=True, help="the picture to write")
    _add_source(command)
    command.add_argument("--frame", type=_whole, metavar="N", help="its number (default: the data frame in the middle)")


def _add_soak(subparsers: Any) -> None:
    command = _command(
        subparsers,
        "soak",
        commands.soak_command,
        "play frames at a detector's pace through the writer, and say how it kept up; exit code 3 if frames were late",
        "tuner soak id19.yaml --target /data/visit --rate 500Hz --for 10m --data scan.nxs",
    )
    _add_profile(command)
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


def _add_retrain(subparsers: Any) -> None:
    command = _command(
        subparsers,
        "retrain",
        commands.retrain_command,
        "learn from what searches measured, where that makes guesses better",
        "tuner retrain",
    )
    command.add_argument(
        "logs", nargs="*", type=_path, metavar="LOG", help="logs or folders of them (default: this user's searches)"
    )
    command.add_argument("--rollback", action="store_true", help="take back the last promotion")


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
