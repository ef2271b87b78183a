"""Run in place of the child that runs codecs: zstd under the names of plug-ins, each with manners of its own.

The first argument says which, such as ``j2k=honest,htj2k=abort``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tuner.apply import child
from tuner.apply.child import serve

MANNERS = dict(item.split("=") for item in sys.argv[1].split(","))
calls = 0


def encode(request: Mapping[str, Any], data: bytes) -> tuple[bytes, float]:
    """A frame of zstd, and at times not."""
    global calls
    calls += 1
    match MANNERS[request["codec"]]:
        case "abort":
            os.abort()
        case "hang":
            time.sleep(60)
        case "tired" if calls > 10:
            os.abort()
        case "refuse":
            raise RuntimeError("not these pixels")
        case "dark" if np.frombuffer(data, request["dtype"]).max() >= 1000:
            raise RuntimeError("not these pixels")
        case "wrong":
            data = bytes(255 - byte for byte in data)
        case "torn":
            return honest(request, data)[0][:-40], 0.01
    return honest(request, data)


def honest(request: Mapping[str, Any], data: bytes) -> tuple[bytes, float]:
    """What zstd makes of it."""
    return child._encode({**request, "codec": "zstd", "blosc2": {**request["blosc2"], "codec": "zstd"}}, data)


if __name__ == "__main__":
    serve(sys.argv[2:], {"encode": encode, "decode": child._decode})
