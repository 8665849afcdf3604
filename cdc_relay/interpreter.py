"""Settings of the Python interpreter for a process whose one purpose is to move rows."""

from __future__ import annotations

import gc
import sys


def tune_interpreter() -> None:
    """To be called once, when everything is imported."""
    # A thread that has something to do waits no longer than this for one that computes (5 ms by default).
    sys.setswitchinterval(0.0005)
    # Rows in flight are no garbage, and make no cycles: looking through them again and again is wasted, and through
    # what was imported too.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
