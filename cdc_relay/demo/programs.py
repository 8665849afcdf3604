"""The two programs under test, as processes of their own, that cannot outlive this one."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen

from cdc_relay.embedded.process import GuardedProcess, free_port, tail
from cdc_relay.errors import RelayError

_READY_TIMEOUT_S = 60.0
_POLL_S = 0.05


class ProgramEnded(RelayError):
    """A program under test ended, or did not get ready."""


class Program:
    """``cdc-relay run`` or ``cdc-consumer run``, started on entering the context, killed on leaving it."""

    def __init__(self, name: str, argv: list[str], settings: dict[str, str]) -> None:
        """``argv`` after ``python -m``; ``settings`` are CDC_ variables, the only ones that it gets."""
        self.name = name
        self._port = free_port()
        self._argv = [sys.executable, "-m", *argv, f"--admin-port={self._port}", "--debug"]
        others = {key: value for key, value in os.environ.items() if not key.startswith("CDC_")}
        self._env = others | settings
        self._process = GuardedProcess(name)
        self._log = self._process.home / f"{name}.log"

    def __enter__(self) -> Self:
        self._process.start(self._argv, env=self._env, cwd=self._process.home, log=self._log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.close()

    def wait_until_ready(self) -> None:
        """Wait for 200 at /readyz. Raises ProgramEnded."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not self._is_ready():
            self.check()
            if time.monotonic() > deadline:
                raise ProgramEnded(f"{self.name} is not ready after {_READY_TIMEOUT_S:g} s:\n{self.log_tail()}")
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raise ProgramEnded with the end of its log when it runs no longer."""
        code = self._process.exit_code()
        if code is not None:
            raise ProgramEnded(f"{self.name} ended by itself with code {code}:\n{self.log_tail()}")

    def stop(self, timeout_s: float) -> int | None:
        """SIGTERM; its exit code, None if it still runs after ``timeout_s``."""
        self._process.signal(signal.SIGTERM)
        return self._process.wait(timeout_s)

    def log_tail(self, lines: int = 20) -> str:
        """The end of what it wrote."""
        return tail(self._log, lines)

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):  # not there yet, or 503: HTTPError is a URLError
            return False


def relay(settings: dict[str, str], checkpoint: Path) -> Program:
    """``cdc-relay run``."""
    return Program("cdc-relay", ["cdc_relay", "run", f"--checkpoint={checkpoint}"], settings)


def consumer(settings: dict[str, str], topic: str) -> Program:
    """``cdc-consumer run``. By its module's name, since the relay's code must not know the consumer's."""
    return Program("cdc-consumer", ["consumer.cli", "run", f"--topics={topic}"], settings)
