"""MySQL and Kafka together: as a context manager, or as a stack that stays up between commands.

One stack a user. Whoever runs it holds a file lock for as long as it lives, so whether a stack is up is asked of the
kernel and not of a file that a crash may have left behind; ``stack.json`` beside it tells where its servers are.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from cdc_relay.embedded.cache import state_root
from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mock_kafka import MockKafka
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.embedded.process import tail
from cdc_relay.errors import RelayError

MysqlChoice = Literal["auto", "mysql", "mariadb"]
KafkaChoice = Literal["real", "embedded"]

#: Seconds within which a detached stack must be up. The first one fetches some 150 MB.
UP_TIMEOUT_S = 1200.0
#: Seconds that ``down`` gives it before SIGKILL; the watchdogs then clean up.
DOWN_TIMEOUT_S = 30.0
POLL_S = 0.1


class StackBusy(RelayError):
    """There is a stack already, and one is all there can be."""


class Stack:
    """MySQL and Kafka, started side by side, gone after the ``with`` block::

    with Stack(kafka="embedded") as stack:
        print(stack.mysql.url, stack.kafka.bootstrap_servers)
    """

    def __init__(
        self, *, mysql: MysqlServer | MysqlChoice = "auto", kafka: KafkaBroker | MockKafka | KafkaChoice = "real"
    ) -> None:
        """``mysql`` is a flavour or a server of your own making, ``kafka`` likewise: ``real`` is Apache Kafka,
        ``embedded`` librdkafka's mock broker with the limits that ``MockKafka`` tells."""
        self.mysql = mysql if isinstance(mysql, MysqlServer) else MysqlServer(flavour=mysql)
        self.kafka: KafkaBroker | MockKafka
        if isinstance(kafka, KafkaBroker | MockKafka):
            self.kafka = kafka
        else:
            self.kafka = MockKafka() if kafka == "embedded" else KafkaBroker()

    def start(self) -> Self:
        """Start both. When one fails, the other is ended too. Raises what the servers' ``start`` raises."""
        with ThreadPoolExecutor(2, thread_name_prefix="stack") as threads:
            mysql = threads.submit(self.mysql.start)
            kafka = threads.submit(self.kafka.start)
            try:
                mysql.result()
                kafka.result()
            except BaseException:
                self.close()  # which also ends the wait of the other one's start
                raise
        return self

    def close(self) -> None:
        """End both and remove their data. Safe to call twice."""
        try:
            self.kafka.close()
        finally:
            self.mysql.close()

    def check(self) -> None:
        """Raises DatabaseUnavailable or KafkaUnavailable, with the end of its log, when a server has ended."""
        servers = (self.mysql, self.kafka) if isinstance(self.kafka, KafkaBroker) else (self.mysql,)
        for server in servers:
            if not server.is_running:
                raise server.unavailable(f"{server.name} has ended by itself:\n{server.log_tail()}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class StackState:
    """A stack that some process runs. The addresses are empty while ``phase`` is ``starting``."""

    pid: int
    phase: Literal["starting", "up"]
    since: str
    kafka: KafkaChoice
    mysql: str = ""
    mysql_url: str = ""
    bootstrap_servers: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """The settings that make both programs use it."""
        return {"CDC_DATABASE__URL": self.mysql_url, "CDC_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers}


@dataclass(frozen=True)
class StackChoice:
    """What ``run`` and ``up`` start."""

    mysql: MysqlChoice = "auto"
    kafka: KafkaChoice = "real"
    #: Fixed ports, or None for any free one. The mock broker chooses its own.
    mysql_port: int | None = None
    kafka_port: int | None = None

    def stack(self) -> Stack:
        kafka = MockKafka() if self.kafka == "embedded" else KafkaBroker(port=self.kafka_port)
        return Stack(mysql=MysqlServer(flavour=self.mysql, port=self.mysql_port), kafka=kafka)

    def arguments(self) -> list[str]:
        """As options of ``cdc-relay stack up``."""
        given = [f"--mysql={self.mysql}", f"--kafka={self.kafka}"]
        given += [f"--mysql-port={self.mysql_port}"] if self.mysql_port else []
        return given + ([f"--kafka-port={self.kafka_port}"] if self.kafka_port else [])


def run(choice: StackChoice, stop: threading.Event, on_up: Callable[[StackState], None] = lambda _: None) -> None:
    """Run a stack in this process until ``stop`` is set. Raises StackBusy, or why a server did not start or ended."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    with _the_only_one():
        try:
            _write(StackState(os.getpid(), "starting", since, choice.kafka))
            with choice.stack() as stack:
                state = StackState(
                    os.getpid(),
                    "up",
                    since,
                    choice.kafka,
                    f"{stack.mysql.flavour} {stack.mysql.server_version}",
                    stack.mysql.url,
                    stack.kafka.bootstrap_servers,
                )
                _write(state)
                on_up(state)
                while not stop.wait(1.0):
                    stack.check()
        finally:
            _state_path().unlink(missing_ok=True)


def up(choice: StackChoice, *, on_line: Callable[[str], None] | None = None) -> StackState:
    """Start a stack in a process of its own and wait until it serves; ``on_line`` is given what it tells meanwhile.

    Raises StackBusy when there is one, and RelayError when it does not come up, with the end of its log unless
    ``on_line`` was given that already.
    """
    if (running := status()) is not None:
        raise _busy(running)
    log = log_path()
    log.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "cdc_relay.embedded.cli", "up", *choice.arguments()]
    with log.open("wb") as output:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    try:
        return _wait_until_up(child, log, on_line)
    except BaseException:
        child.terminate()
        child.wait(DOWN_TIMEOUT_S)
        raise


def _wait_until_up(child: subprocess.Popen[bytes], log: Path, on_line: Callable[[str], None] | None) -> StackState:
    deadline = time.monotonic() + UP_TIMEOUT_S
    with log.open(encoding="utf-8", errors="replace") as output:
        while time.monotonic() < deadline:
            state = status()
            if state is not None and state.pid == child.pid and state.phase == "up":
                child.returncode = 0  # it stays; without this, Popen would warn that it was left running
                return state
            code = child.poll()  # before reading, so that nothing it said is missed
            for line in output:
                if on_line is not None:
                    on_line(line.rstrip())
            if code is not None:
                said = f"see {log}" if on_line else f"it said:\n{tail(log)}"
                raise RelayError(f"the stack ended with code {code} while starting; {said}")
            time.sleep(POLL_S)
    raise RelayError(f"the stack is not up after {UP_TIMEOUT_S:g} s:\n{tail(log)}")


def down() -> StackState | None:
    """End the stack, data and all, and return what ran; None when there was none."""
    state = status()
    if state is None:
        return None
    for number, timeout_s in ((signal.SIGTERM, DOWN_TIMEOUT_S), (signal.SIGKILL, DOWN_TIMEOUT_S)):
        try:
            os.kill(state.pid, number)
        except ProcessLookupError:
            pass  # it has just ended
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if status() is None:
                return state
            time.sleep(POLL_S)
    raise RelayError(f"the stack of process {state.pid} does not end")


def status() -> StackState | None:
    """The stack that runs now, or None."""
    with (state_root() / "stack.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # somebody holds it: a stack runs
        else:
            return None
    try:
        return StackState(**json.loads(_state_path().read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None  # it has the lock and is about to write, or is just leaving


def log_path() -> Path:
    """Where a detached stack writes what it has to say."""
    return state_root() / "stack.log"


def _state_path() -> Path:
    return state_root() / "stack.json"


def _write(state: StackState) -> None:
    part = _state_path().with_suffix(".part")
    part.write_text(json.dumps(asdict(state)), encoding="utf-8")
    part.replace(_state_path())


def _busy(running: StackState | None) -> StackBusy:
    who = f"a stack is {running.phase} already, run by process {running.pid}" if running else "a stack is up already"
    return StackBusy(who, hint="Use it, or end it first: cdc-relay stack down")


@contextmanager
def _the_only_one() -> Iterator[None]:
    with (state_root() / "stack.lock").open("a") as lock:
        deadline = time.monotonic() + 1.0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # A moment's patience: somebody who only looks holds it for microseconds.
                if time.monotonic() > deadline:
                    raise _busy(status()) from None
            time.sleep(0.02)
        yield
