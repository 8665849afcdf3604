"""What the throwaway servers tell while one waits: a live line on a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

_lock = threading.Lock()
_steps: list[str] = []
_status: Status | None = None


@contextmanager
def step(text: str) -> Iterator[None]:
    """Show ``text`` on stderr while the body runs. Steps of several threads share one live line."""
    _show(text)
    try:
        yield
    finally:
        _hide(text)


def _show(text: str) -> None:
    global _status
    with _lock:
        _steps.append(text)
        if not sys.stderr.isatty():
            print(f"cdc-relay: {text}", file=sys.stderr, flush=True)
        elif _status is None:
            _status = Console(stderr=True).status(_line())
            _status.start()
        else:
            _status.update(_line())


def _hide(text: str) -> None:
    global _status
    with _lock:
        _steps.remove(text)
        if _status is None:
            return
        if _steps:
            _status.update(_line())
        else:
            _status.stop()
            _status = None


def _line() -> str:
    return " · ".join(_steps)
