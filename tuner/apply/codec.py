"""python-blosc2, imported in this one place."""

import sys

# blosc2 imports httpx, and httpx its own command line where click and rich are installed: a writer needs neither, and
# without them the import takes a quarter less time. httpx takes a missing module for one that is not installed.
_PLACE = "httpx._main"
_unwanted = _PLACE not in sys.modules
if _unwanted:
    sys.modules[_PLACE] = None  # type: ignore[assignment]
try:
    import blosc2 as blosc2
finally:
    if _unwanted:
        del sys.modules[_PLACE]

# Without it python-blosc2 holds the GIL while it compresses, and no writer's threads run side by side.
blosc2.set_releasegil(True)
