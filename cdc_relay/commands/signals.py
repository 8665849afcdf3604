"""SIGTERM and SIGINT: the first asks for an orderly stop, the second ends the program at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import FrameType

#: How long after its drain timeout a stop that hangs is still waited for.
_GRACE_S = 5.0


@contextmanager
def stop_on_signal() -> Iterator[Event]:
    """An event that the first signal sets; the second one exits the process with code 1.

    To end it at any moment is safe: what is not acknowledged and written is delivered again after the next start.
    """
    stop = Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        if stop.is_set():
            exit_now(f"{signal.Signals(number).name} again: ending at once; the next start goes on from the table")
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_until_stopped(work: Callable[[], None], stop: Event, drain_timeout_s: float) -> None:
    """Do ``work`` in a thread of its own; raise what it raises.

    Signals are heard by the main thread only, and only between two steps of Python: a call into a library, such as
    asking for a broker that is not there, would make them wait. If the work has not ended when the drain timeout is
    over, the process exits with code 1.
    """
    failure: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # raised below
            failure.append(error)

    thread = Thread(target=run, name="relay", daemon=True)
    thread.start()
    deadline: float | None = None
    while thread.is_alive():
        thread.join(0.1)
        if deadline is None and stop.is_set():
            deadline = time.monotonic() + drain_timeout_s + _GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            exit_now(f"the stop is not done after {drain_timeout_s:g} s: ending now; the next start goes on")
    if failure:
        raise failure[0]


def exit_now(last_words: str) -> None:
    """End the process with code 1 whatever its threads do."""
    # Not by print: the signal may have come while a log line was written, and buffered streams may not be re-entered.
    os.write(sys.stderr.fileno(), f"cdc-relay: {last_words}\n".encode())
    os._exit(1)
