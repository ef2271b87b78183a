"""A night's work: hold each profile to the latest scans, search a candidate where it fails, and learn from that.

    python nightly.py nightly.toml

nightly.toml has a table for each profile; paths are relative to its folder:

    tuner = "/opt/tuner/bin/tuner"           # default: the one beside this Python

    [[instrument]]
    profile = "profiles/id19.yaml"
    scans = "/data/id19/*/*.nxs"             # files, or folders of images
    search = ["--space", "integrating"]      # as the profile was searched, but for its goal, which it knows
    quiet_minutes = 10                       # what was changed since may still be being written
    latest = 20                              # so many scans are looked at

No live profile is ever touched. A candidate that is better waits beside it: `mv` makes it the live one, `rm` rejects
it. What is found goes line by line into nightly.jsonl, so that a run that was killed goes on and no scan is verified
twice; it may be deleted. The exit code is the greatest of: 0 all promises hold; 1 something failed; 2 a scan or a
profile cannot be used; 3 a candidate is better; 4 a promise is broken.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import math
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

import tuner
from tuner.errors import InputError, TunerError

#: Seconds after which a command is given up.
TIMEOUT = 4 * 3600

#: By how much more a candidate must be worth: less may be the noise of what is timed.
BETTER = math.log(1.02)

#: What exit codes mean.
MEANING = (
    "all promises hold",
    "something failed",
    "a scan, or the profile, cannot be used",
    "a candidate is better",
    "a promise is broken",
)

Found = dict[str, Any]


class Journal(dict[str, Found]):
    """What was found, by a key that says of what; each entry is a line of a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("a+", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system gives it back, however we end
        self._file.seek(0)
        text = self._file.read()
        for line in text.splitlines():
            with suppress(ValueError):  # a run was killed while it wrote
                self.update([json.loads(line)])
        if text and not text.endswith("\n"):
            self._file.write("\n")

    def keep(self, key: str, found: Found) -> None:
        """Add an entry."""
        self._file.write(json.dumps([key, found]) + "\n")
        self._file.flush()
        self[key] = found


@dataclass(frozen=True)
class Instrument:
    """A profile, and the scans that it is held to."""

    profile: Path
    scans: Path
    search: Sequence[str]
    quiet_minutes: float = 10
    latest: int = 20

    @property
    def candidate(self) -> Path:
        """Where a candidate waits to be adopted."""
        return self.profile.with_suffix(".candidate.yaml")

    def quiet_scans(self) -> list[tuple[Path, str]]:
        """The latest scans that nobody writes to any more, each with what changes when it does; the oldest first."""
        found = []
        for scan in Path(self.scans.anchor).glob(str(self.scans.relative_to(self.scans.anchor))):
            try:
                files = [path.stat() for path in [scan, *(scan.iterdir() if scan.is_dir() else ())]]
            except FileNotFoundError:  # moved meanwhile
                continue
            changed, nbytes = max(file.st_mtime for file in files), sum(file.st_size for file in files)
            if changed < time.time() - 60 * self.quiet_minutes and not scan.name.startswith("."):
                found.append((changed, scan, f"{scan} {nbytes} {changed}"))
        if not found:  # a folder that is not mounted, or a mistake
            raise InputError(f"{self.scans}: must match a scan that is finished, got none")
        return [(scan, key) for _, scan, key in sorted(found)[-self.latest :]]


@dataclass(frozen=True)
class Tuner:
    """The program, in processes of its own, so that a crash costs no more than what it was at."""

    program: str

    def run(self, *arguments: object) -> tuple[int, Any, str]:
        """A command's exit code, the object that it printed, and its last line of complaint."""
        command = [self.program, *map(str, arguments), "--json", "--quiet"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return 1, None, f"tuner {arguments[0]} took more than {TIMEOUT} s"
        said = (done.stderr.strip().splitlines() or [f"tuner {arguments[0]} ended with {done.returncode}"])[-1]
        document = json.loads(done.stdout) if done.stdout.strip() else None
        code = done.returncode if 0 <= done.returncode < len(MEANING) else 1  # else it was killed or interrupted
        return code, document, said.removeprefix("tuner: ")

    def verify(self, profile: Path, scan: Path) -> Found:
        """What is found of one scan."""
        code, document, said = self.run("verify", profile, scan)
        found = [*document["files"], *document["failed"]] if document else []
        if len(found) == 1:
            return {"error": "", "exit_code": 0, **found[0]}
        return {"error": said if code else f"{scan}: must be one scan, got {len(found)}", "exit_code": code or 2}


def hold(instrument: Instrument, program: Tuner, journal: Journal, work: Path) -> tuple[int, list[str]]:
    """Hold a profile to its scans, and search a candidate for those that fail it or are unlike its own.

    Returns the exit code and the lines of the report.
    """
    profile = tuner.load_profile(instrument.profile, strict=True)
    if not profile.evidence.get("goal"):
        raise InputError(f"{instrument.profile}: must have the goal that it was searched for")
    live = work / "live.yaml"
    profile.save(live)  # whoever adopts a candidate meanwhile changes nothing here
    code, report = 0, []
    held: dict[str, Found] = {}
    flagged: list[str] = []
    for scan, state in instrument.quiet_scans():
        key = f"{profile.digest} {state}"
        found = journal.get(key) or program.verify(live, scan)
        if key not in journal and found["exit_code"] in (0, 4):  # what cannot be read may be the next time
            journal.keep(key, found)
        code = max(code, found["exit_code"])
        if found["error"]:
            report.append(found["error"])
        elif found["outside"]:
            report.append(f"{scan}: holds, but is unlike what was measured: {', '.join(found['outside'])}")
        report += found.get("warnings", [])
        if found["exit_code"] in (0, 4):
            held[str(scan)] = found
        if found["exit_code"] == 4 or found.get("outside"):
            flagged.append(str(scan))
    ratios = [found["metrics"]["ratio"] for found in held.values() if found.get("metrics")]
    if ratios:
        before = profile.evidence["metrics"]["ratio"]
        text = f"ratio {min(ratios):.3f} to {max(ratios):.3f}, {before:.3f} when it was searched"
        report.insert(0, f"{len(held)} scans verified: {text}")
    if not flagged:
        return code, report
    key = f"{profile.digest} candidate"
    if not {*flagged} <= {*journal.get(key, {}).get("scans", ())}:
        try:
            none = search(program, profile, work / "candidate.yaml", flagged, instrument.search)
            found = {"error": none} if none else compare(program, work / "candidate.yaml", held)
        except TunerError as error:
            return max(code, error.exit_code), [*report, str(error)]
        if judged(found)[0]:
            tuner.load_profile(work / "candidate.yaml").save(instrument.candidate)
        else:
            instrument.candidate.unlink(missing_ok=True)
        journal.keep(key, {"scans": flagged, **found})
    better, text = judged(journal[key])
    if better and not instrument.candidate.exists():
        return code, [*report, f"{text}, but it was rejected"]
    return max(code, better), [*report, text]


def search(program: Tuner, profile: tuner.Profile, path: Path, scans: Sequence[str], options: Sequence[str]) -> str:
    """Search a candidate on some scans; the line that says why there is none, where nothing meets the goal on them."""
    goal = path.with_name("goal.json")
    goal.write_text(json.dumps(profile.evidence["goal"]))
    name = f"{re.sub('-[0-9]{8}$', '', profile.name)}-{datetime.date.today():%Y%m%d}"
    target = ["--target", profile.evidence["writer"]["target"]] if "writer" in profile.evidence else []
    code, _, said = program.run("search", *scans, "-o", path, "--goal", goal, "--name", name, *target, *options)
    if code == 3:  # another night would find no more
        return said
    if code:
        raise TunerError(f"no candidate: {said}")
    return ""


def compare(program: Tuner, candidate: Path, held: Mapping[str, Found]) -> Found:
    """A candidate beside the live profile, on all scans that this was held to."""
    sides = [(old, program.verify(candidate, Path(scan))) for scan, old in held.items()]
    found: Found = {"compared": len(sides)}
    found["broken"] = [sum(one["exit_code"] != 0 for one in side) for side in zip(*sides, strict=True)]
    measured = [pair for pair in sides if all(one.get("worth") is not None for one in pair)]
    if measured:
        live, other = zip(*measured, strict=True)
        found["gain"] = fmean(new["worth"] - old["worth"] for old, new in measured)
        found["ratio"] = [
            sum(one["nbytes"] for one in side) / sum(one["nbytes"] / one["ratio"] for one in side)
            for side in (live, other)
        ]
        for name in ("encode_mb_s", "decode_mb_s"):  # as if the machine had always been equally busy
            old, new = (
                geometric_mean([one["metrics"][name] / one["reference_mb_s"] for one in side]) for side in (live, other)
            )
            found[name] = new / old
    return found


def judged(found: Found) -> tuple[int, str]:
    """What a comparison asks for: an exit code, and a line of the report."""
    if "error" in found:
        return 0, f"no candidate: {found['error']}"
    before, after = found["broken"]
    text = f"a candidate beside the live one, on {found['compared']} scans: promise broken on {after}, {before}"
    if "gain" in found:
        old, new = found["ratio"]
        text += f"; ratio {new:.3f}, {old:.3f}; encodes {found['encode_mb_s']:.2f} times as fast,"
        text += f" decodes {found['decode_mb_s']:.2f} times; worth {math.expm1(found['gain']):+.1%} by its goal"
    if after:
        return 0, f"{text}: search by hand"
    if before:
        return 4, f"{text}: better"
    if found.get("gain", 0.0) > BETTER:
        return 3, f"{text}: better"
    return 0, f"{text}: no better"


def main(config: str) -> int:
    """All instruments, and then what is learned from their searches; prints the report."""
    place = Path(config).absolute()
    night = tomllib.loads(place.read_text(encoding="utf-8"))
    program = Tuner(night.get("tuner", str(Path(sys.executable).with_name("tuner"))))
    journal = Journal(place.with_suffix(".jsonl"))
    worst = 0
    for table in night["instrument"]:
        paths = {name: place.parent / table[name] for name in ("profile", "scans")}
        with tempfile.TemporaryDirectory() as work:
            try:
                code, report = hold(Instrument(**{**table, **paths}), program, journal, Path(work))
            except (TunerError, OSError) as error:  # the others go on
                code, report = getattr(error, "exit_code", 1), [str(error)]
        print("\n  ".join([f"{table['profile']}: {MEANING[code]}", *report]), flush=True)
        worst = max(worst, code)
    code, verdict, said = program.run("retrain")
    print(f"retrain: {said if code else verdict['reason']}")
    return max(worst, int(code != 0))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what we started ends too
    try:
        sys.exit(main(sys.argv[1]))
    except BlockingIOError:
        sys.exit("nightly: another run is at work")
    except KeyboardInterrupt:
        sys.exit("nightly: interrupted; it goes on when it is run again")
    except (TunerError, OSError, tomllib.TOMLDecodeError) as error:
        sys.exit(f"nightly: {error}")
