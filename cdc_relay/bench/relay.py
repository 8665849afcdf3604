"""The program under test, as a process of its own, watched from outside; it cannot outlive this one."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cdc_relay
from cdc_relay.acknowledged import AcknowledgedFile
from cdc_relay.bench.settings import altered, as_environment, inherited
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.checkpoint import Checkpoint, FileCheckpointStore
from cdc_relay.config import Settings
from cdc_relay.embedded.process import GuardedProcess, tail
from cdc_relay.errors import MissingTool, RelayError
from cdc_relay.sent_rows import SentRows

_STOP_S = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


class MeasurementFailed(RelayError):
    """What was measured did not come to its end."""


@dataclass(frozen=True)
class Variant:
    """What is measured."""

    name: str
    change: Callable[[Settings], Settings] = lambda settings: settings
    """From the settings of the place to those that it runs with."""
    argv: tuple[str, ...] = ("cdc_relay", "run")
    """After ``python -m``."""
    checkout: Path | None = None
    """Whose code runs; None: this one's."""


def with_writeback(mode: str) -> Variant:
    """The relay in one of the values of ``writeback.mode``."""
    return Variant(mode, lambda settings: altered(settings, {"writeback.mode": mode}))


class RelayProcess:
    """``variant`` in a place. Not running before ``start``; it can be started again, with the same checkpoint."""

    def __init__(self, variant: Variant, settings: Settings) -> None:
        """``settings`` are those of the place. Raises MissingTool."""
        if not Path("/proc/self/stat").exists():
            raise MissingTool("a process is measured by what /proc tells of it", hint="run it on Linux")
        self._process = GuardedProcess("bench")
        home = self._process.home
        self._checkpoint = FileCheckpointStore(home / "checkpoint.json")
        self.settings = altered(
            variant.change(settings),
            {
                "name": home.name,
                "checkpoint.path": self._checkpoint.path,
                "admin.port": 0,
                "tail.server_id": None,  # the user's may be in use
                "log.format": "json",
            },
        )
        self._argv = [sys.executable, "-m", *variant.argv]
        self._environment = inherited() | as_environment(self.settings)
        self._environment["PYTHONPATH"] = str(variant.checkout or Path(cdc_relay.__file__).parents[1])
        self._log = home / "log"
        self.started_at = 0.0
        """``time.perf_counter()`` of the last start."""

    def start(self, checkpoint: Checkpoint | None = None) -> None:
        """Start it, from ``checkpoint`` if that is given, else from what the last run of it has left."""
        if checkpoint is not None:
            self.forget_checkpoint()
            self._checkpoint.save(checkpoint)
        self.started_at = time.perf_counter()
        self._process.start(self._argv, env=self._environment, cwd=self._process.home, log=self._log)

    def forget_checkpoint(self) -> None:
        """The next start finds none, nor what is noted beside it."""
        self._checkpoint.reset()
        AcknowledgedFile.beside(self._checkpoint.path).reset()
        SentRows.beside(self._checkpoint.path).reset()

    def cpu_s(self) -> float:
        """Processor seconds since the start, all threads, user and system."""
        return _processor_s(self._proc("stat"))

    def memory_mib(self) -> float:
        """Resident memory now."""
        return _memory_mib(self._proc("status"), "VmRSS")

    def peak_mib(self) -> float:
        """The largest resident memory since the start."""
        return _memory_mib(self._proc("status"), "VmHWM")

    def require_alive(self) -> None:
        """Raise MeasurementFailed with what it said when it has ended."""
        code = self._process.exit_code()
        if code is not None:
            raise MeasurementFailed(f"the relay ended by itself with code {code}:\n{self.said()}")

    def said(self) -> str:
        """The end of its log."""
        return tail(self._log)

    def stop(self) -> None:
        """End it in good order; by force when it takes too long."""
        self._process.signal(signal.SIGTERM)
        if self._process.wait(_STOP_S) is None:
            self.kill()

    def kill(self) -> None:
        """End it as a power failure would."""
        self._process.signal(signal.SIGKILL)
        self._process.wait(_STOP_S)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It stands still meanwhile, all its threads, and notices nothing but that time has passed."""
        self._process.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.signal(signal.SIGCONT)

    def close(self) -> None:
        """End it at once and remove what it has left. Safe to call twice."""
        self._process.close()

    def _proc(self, name: str) -> str:
        try:
            return Path(f"/proc/{self._process.pid}/{name}").read_text()
        except OSError as error:
            raise MeasurementFailed(f"the relay has ended:\n{self.said()}") from error


def processor_s(pid: int) -> float:
    """Processor seconds that a process has used so far, all threads, user and system. Raises OSError."""
    return _processor_s(Path(f"/proc/{pid}/stat").read_text())


def peak_mib(pid: int) -> float:
    """The largest resident memory that a process has had so far. Raises OSError."""
    return _memory_mib(Path(f"/proc/{pid}/status").read_text(), "VmHWM")


def _memory_mib(status: str, name: str) -> float:
    lines = [line for line in status.splitlines() if line.startswith(name)]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0  # none: it is just ending


def _processor_s(stat: str) -> float:
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def checkpoint_at(server: str, position: BinlogPosition) -> Checkpoint:
    """A checkpoint as a relay would have left it at ``position``."""
    return Checkpoint(server, position, 0, 0.0, time.time())
