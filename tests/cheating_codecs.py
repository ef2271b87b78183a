"""Run in place of the child that runs codecs: codecs that do all that a codec must not."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from tuner.apply.child import serve


def cheat(request: Mapping[str, Any], data: bytes) -> tuple[bytes, float]:
    """Do what the first byte of the chunk says, else return the chunk as it is."""
    match data[0]:
        case 1:
            os.abort()
        case 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 3:
            time.sleep(60)
        case 4:
            bytearray(8 << 30)
        case 5:
            os._exit(3)
        case 6:
            raise RuntimeError("codec says\nno")
        case 7:
            print("a codec that talks", flush=True)
            os.write(1, b"very much" * 10_000)
        case 8:
            signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL})
            while True:
                pass
    return data, 0.25


if __name__ == "__main__":
    serve(sys.argv[1:], {"encode": cheat, "decode": lambda request, data: (data[1:], 0.25)})
