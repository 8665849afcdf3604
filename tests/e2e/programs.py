"""The two programs under test, each a process of its own that cannot outlive the tests and can be killed at will."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.request import urlopen

from cdc_relay.embedded.process import GuardedProcess, free_port, tail

PATIENCE_S = 60.0


class Program:
    """``cdc-relay run`` or ``cdc-consumer run``. Its log goes on in one file from start to start."""

    def __init__(self, name: str, argv: Sequence[str], settings: dict[str, str]) -> None:
        """``argv`` after ``python``; ``settings`` are CDC_ variables, the only ones that it gets."""
        self.name = name
        self.settings = dict(settings)
        self.argv = list(argv)
        self._port = free_port()
        self._process = GuardedProcess(name)
        self._log = self._process.home / f"{name}.log"
        self.starts = 0

    def start(self, *, wait: bool = True) -> Self:
        """Start it, and wait until it is ready unless told otherwise."""
        others = {key: value for key, value in os.environ.items() if not key.startswith("CDC_")}
        env = others | {"CDC_LOG__FORMAT": "json", "CDC_ADMIN__PORT": str(self._port)} | self.settings
        self._process.start([sys.executable, *self.argv], env=env, cwd=self._process.home, log=self._log)
        self.starts += 1
        if wait:
            self.wait_until_ready()
        return self

    def kill(self) -> None:
        """SIGKILL; does nothing when it has ended."""
        self._process.signal(signal.SIGKILL)
        assert self._process.wait(PATIENCE_S) is not None, f"{self.name} survives SIGKILL"

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self._process.signal(signal.SIGTERM)
        code = self._process.wait(PATIENCE_S)
        assert code is not None, f"{self.name} does not stop:\n{self.log_tail()}"
        return code

    def freeze(self) -> None:
        """SIGSTOP, as a host that hangs."""
        self._process.signal(signal.SIGSTOP)
        assert self._process.wait_until_stopped(10)

    def thaw(self) -> None:
        self._process.signal(signal.SIGCONT)

    def wait_ended(self, patience_s: float = PATIENCE_S) -> int:
        """Its exit code once it has ended by itself."""
        code = self._process.wait(patience_s)
        assert code is not None, f"{self.name} did not end in {patience_s:g} s:\n{self.log_tail()}"
        return code

    @property
    def is_running(self) -> bool:
        return self._process.pid is not None and self._process.exit_code() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Wait for 200 at /readyz."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.is_ready():
            self.check()
            assert time.monotonic() < deadline, f"{self.name} is not ready after {PATIENCE_S:g} s:\n{self.log_tail()}"
            time.sleep(0.03)

    def check(self) -> None:
        """Fail with the end of its log when it runs no longer."""
        code = self._process.exit_code()
        assert code is None, f"{self.name} ended by itself with code {code}:\n{self.log_tail()}"

    def is_ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):  # not there yet, or 503: HTTPError is a URLError
            return False

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a metric that have these labels."""
        with urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        samples = (line.rpartition(" ") for line in lines if line.split("{")[0].split(" ")[0] == name)
        return sum(float(value) for sample, _, value in samples if all(label in sample for label in wanted))

    def said(self, action: str) -> list[dict[str, Any]]:
        """What it has logged under ``action``, over all starts."""
        return [entry for entry in self.log() if entry.get("action") == action]

    def log(self) -> list[dict[str, Any]]:
        """Every line that is JSON."""
        if not self._log.exists():
            return []
        entries = []
        for line in self._log.read_text("utf-8", "replace").splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:
                continue  # a traceback, or the half of a line that a SIGKILL left
        return entries

    def log_tail(self, lines: int = 25) -> str:
        return tail(self._log, lines)

    def close(self) -> None:
        """Kill it and remove its log. Safe to call twice."""
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(f"--- the end of the log of {self.name}:\n{self.log_tail(60)}")
        self.close()


@contextmanager
def launched(program: Program, **faults: str) -> Iterator[None]:
    """Starts within the block go through ``launch.py``, with these FAULT_ variables."""
    argv, settings = program.argv, program.settings
    module = {"cdc_relay": "cdc_relay.cli"}.get(argv[1], argv[1])
    program.argv = ["-m", "tests.e2e.launch", module, *argv[2:]]
    program.settings = settings | faults | {"PYTHONPATH": str(Path(__file__).parents[2])}
    try:
        yield
    finally:
        program.argv, program.settings = argv, settings
