"""The command line: one subcommand per verb."""

from __future__ import annotations

import os
import resource
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuner.cli.arguments import make_parser
from tuner.cli.commands import INTERRUPTED, explained, say
from tuner.errors import TunerError, TunerWarning


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 success; 1 other failure; 2 bad input or usage; 3 requirements that cannot be met; 4 verification failed;
    130 interrupted, by Ctrl-C or as a batch system ends a job.
    """
    # Each file of a scan stays open, and shells allow 1,024 where the system allows more.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: Sequence[str] | None) -> int:
    warnings.simplefilter("ignore")
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    warnings.simplefilter("always", TunerWarning)
    # c-blosc2 asks whatever `python` is first on PATH where a codec plug-in is; the one that runs us knows.
    here, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    if path.split(os.pathsep)[0] != here:
        os.environ["PATH"] = os.pathsep.join([here, path])
    try:
        options = make_parser().parse_args(arguments)
        return int(options.run(options) or 0)
    except KeyboardInterrupt:
        say("tuner: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        say("tuner: out of memory")
        return 1
    except (TunerError, OSError) as error:
        text, code = explained(error)
        say(f"tuner: {text}")
        return code


def _show_warning(message: Warning | str, *_: Any) -> None:
    say(f"tuner: warning: {message}")
