"""What every throwaway server can do: start, stop, die, hang, come back on the same port with the same data."""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cdc_relay.embedded.process import POLL_S, GuardedProcess, free_port, port_is_free, tail
from cdc_relay.errors import RelayError


class ThrowawayServer(ABC):
    """One server process on 127.0.0.1 with data in a temporary folder that is removed on leaving the context.

    It cannot outlive the process that made it, however that ends. ``kill``, ``freeze`` and ``thaw`` act on the server
    itself. After ``stop`` or ``kill``, ``start`` brings it back on the same port with the same data, and with what
    ``options`` say by then.
    """

    #: Used in folder names and messages.
    name: str
    #: What is raised when it does not come up.
    unavailable: type[RelayError]

    host = "127.0.0.1"

    def __init__(
        self, *, port: int | None = None, start_timeout_s: float = 120.0, stop_timeout_s: float = 60.0
    ) -> None:
        self._wanted_port = port
        self._port: int | None = port
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._process: GuardedProcess | None = None
        self._log_start = 0

    # -- what a server tells about itself

    @abstractmethod
    def _prepare(self, home: Path) -> None:
        """Find or fetch the program and make the data folder. Called once."""

    @abstractmethod
    def _argv(self) -> Sequence[str]:
        """The command line, for the present port."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether a client is served. Must not block for more than a second or so."""

    # -- life

    def start(self) -> Self:
        """Start it and wait until it serves. Does nothing when it runs.

        Raises MissingTool when its program is neither here nor to be had, and DatabaseUnavailable or KafkaUnavailable,
        with the end of its log, when it does not come up. After a first start that failed nothing is left of it.
        """
        if self.is_running:
            return self
        if self._process is not None:
            self._start_once(self._process)
            return self
        # A name of its own, because another thread may close this one while it starts.
        process = self._process = GuardedProcess(self.name)
        try:
            self._prepare(process.home)
            self._start_first(process)
        except BaseException:
            self.close()
            raise
        return self

    def _start_first(self, process: GuardedProcess) -> None:
        """On a port of our choice, which somebody else may take between our look and the server's bind."""
        for attempts_left in (2, 1, 0):
            self._port = self._choose_port()
            try:
                self._start_once(process)
                return
            except self.unavailable as error:
                taken = "already in use" in str(error).lower()
                if self._wanted_port is not None or not taken or not attempts_left:
                    raise

    def _choose_port(self) -> int:
        return self._wanted_port or free_port()

    def _start_once(self, process: GuardedProcess) -> None:
        if not port_is_free(self.port):
            # Looked at before, because whoever has it might answer like the server that we wait for.
            raise self.unavailable(
                f"{self.name} cannot have port {self.port}, it is already in use",
                hint="End what listens there, or give another port or none",
            )
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        process.start(self._argv(), env=self._env(), cwd=process.home, log=self.log_path)
        deadline = time.monotonic() + self._start_timeout_s
        while not self._is_ready():
            code = process.exit_code()
            if code is not None:
                raise self.unavailable(f"{self.name} ended with code {code} while starting:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                process.signal(signal.SIGKILL)
                process.wait(10)
                raise self.unavailable(
                    f"{self.name} does not serve after {self._start_timeout_s:g} s:\n{self.log_tail()}"
                )
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Shut it down in good order; data and port stay for ``start``. Does nothing when it does not run.

        Raises when it has not ended after the stop timeout; it is killed then.
        """
        if not self.is_running:
            return
        process = self._guarded()
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)  # a frozen server would never see the request
        if process.wait(self._stop_timeout_s) is None:
            self.kill()
            raise self.unavailable(f"{self.name} did not stop within {self._stop_timeout_s:g} s:\n{self.log_tail()}")

    def kill(self) -> None:
        """SIGKILL, as a crash would be; data and port stay for ``start``."""
        process = self._guarded()
        process.signal(signal.SIGKILL)
        if process.wait(30) is None:
            raise self.unavailable(f"{self.name} survived SIGKILL for 30 s")

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, as with a host that hangs."""
        process = self._guarded()
        process.signal(signal.SIGSTOP)
        # The kernel stops one thread after another, and until the last of them stands a query may still be answered.
        if not process.wait_until_stopped(10):
            raise self.unavailable(f"{self.name} did not stand still within 10 s")

    def thaw(self) -> None:
        """SIGCONT."""
        self._guarded().signal(signal.SIGCONT)

    def restart(self) -> None:
        """``stop``, then ``start``."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Kill it and remove its data. Safe to call twice; ``start`` then begins anew, with a new folder."""
        process, self._process = self._process, None
        self._port = self._wanted_port
        if process is not None:
            process.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what callers may look at

    @property
    def is_running(self) -> bool:
        """Frozen counts as running."""
        return self._process is not None and self._process.pid is not None and self._process.exit_code() is None

    @property
    def pid(self) -> int | None:
        """The server's own process id, None while it does not run."""
        return self._process.pid if self._process is not None and self.is_running else None

    @property
    def port(self) -> int:
        if self._port is None:
            raise self.unavailable(f"{self.name} has no port before it was started")
        return self._port

    @property
    def home(self) -> Path:
        """The temporary folder that holds data and log."""
        return self._guarded().home

    @property
    def data_dir(self) -> Path:
        return self.home / "data"

    @property
    def log_path(self) -> Path:
        return self.home / f"{self.name}.log"

    def log_tail(self, lines: int = 30) -> str:
        """The last lines that the server wrote to its log."""
        return tail(self.log_path, lines)

    def _log_of_this_start(self) -> str:
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode("utf-8", "replace")

    def _guarded(self) -> GuardedProcess:
        if self._process is None:
            raise self.unavailable(f"{self.name} is not started")
        return self._process

    def _env(self) -> dict[str, str]:
        return {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
