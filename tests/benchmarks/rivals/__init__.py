"""The relay beside Debezium Server and Maxwell's daemon: catch-up on the same rows, from the same place, in turn.
Latency beside them: ``tests/benchmarks/rivals_latency.py``.

Their programs are not installed for it: ``--debezium`` and ``--maxwell`` name the folders in which they were unpacked.
They run by the ``.properties`` beside this file. Neither marks rows, so the relay does not either; the broker has had
one catch-up of the relay before, as a cold one is measured otherwise.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, Self

from cdc_relay.bench.catchup import CatchUp, FilledOutbox
from cdc_relay.bench.figures import Figure, gather
from cdc_relay.bench.place import ThrowawayOutbox, ThrowawayTopic
from cdc_relay.bench.relay import MeasurementFailed, Variant, peak_mib, processor_s, with_writeback
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.embedded.process import GuardedProcess, free_port, tail
from cdc_relay.outbox.database import transaction
from cdc_relay.outbox.table import DEFAULT_TABLE
from tests.benchmarks import foreign
from tests.benchmarks.lab import Lab, plural, renew, say

RELAY = Variant("cdc-relay", with_writeback("none").change)
FROM_TABLE = Variant("cdc-relay, from the table", RELAY.change)

_HEAP = "1g"
_PATIENCE_S = 120.0
_STOP_S = 30.0
#: Until what a program has done is also written down, and until records come that nobody expects.
_SETTLED_S = 1.5


@dataclass(frozen=True)
class _Case:
    """What is waiting when they start."""

    name: str
    rows: int
    fill: Callable[[ThrowawayOutbox, str], None]
    """Commits the rows, for a topic."""
    from_table: bool = False
    """Whether the relay also does it from the table."""


def measure(lab: Lab) -> Iterator[Figure]:
    """With one row a transaction, with many, and where most of the binlog is others'."""
    if can_compare(lab):
        for case in _cases(lab):
            for name, found in _in_turn(lab, case).items():
                yield from gather("rivals", case.name, name, found)


def can_compare(lab: Lab) -> bool:
    """Whether there is anybody to compare with; says what is missing."""
    if not (lab.debezium or lab.maxwell):
        say("nobody to compare with: --debezium DIR, --maxwell DIR")
    elif not lab.throwaway:
        say("left out: Maxwell would leave its own database on your MySQL")
    else:
        return True
    return False


def _cases(lab: Lab) -> Iterator[_Case]:
    rows = lab.sizes.rows
    for n in lab.sizes.rows_each:
        yield _Case(f"{plural(n, 'row')} a transaction", rows, partial(_fill, rows=rows, rows_each=n))
    few = foreign.outbox_rows(lab)
    name = f"{plural(few, 'row')} in {lab.sizes.foreign_mb:,} MB of others"
    yield _Case(name, few, partial(foreign.fill, rows=few), from_table=True)


def _fill(outbox: ThrowawayOutbox, topic: str, *, rows: int, rows_each: int) -> None:
    outbox.fill(topic, rows=rows, rows_each=rows_each)


def _in_turn(lab: Lab, case: _Case) -> dict[str, list[CatchUp]]:
    with lab.place() as (outbox, topic), installed(lab, outbox, topic, FOR_MUCH) as rivals:
        for name, rival in rivals.items():
            say(f"{name} learns the schema")
            rival.learn()
        say(f"committing {case.rows:,} rows")
        filled = FilledOutbox(outbox, topic, rows=case.rows, fill=lambda: case.fill(outbox, topic.name))
        filled.run(RELAY)
        variants = [RELAY, *map(Variant, rivals)]
        found = lab.in_turn(variants, lambda variant: _once(filled, variant, rivals.get(variant.name)))
        if case.from_table:  # at the end: it marks the rows, and Maxwell would send that too
            found |= lab.in_turn([FROM_TABLE], lambda variant: _once(filled, variant, None))
        return found


def _once(filled: FilledOutbox, variant: Variant, rival: Rival | None) -> CatchUp:
    if rival is None:
        renew(filled.outbox)
        return filled.run(variant, from_table=variant is FROM_TABLE)
    filled.topic.mark()
    program = rival.start(filled.checkpoint.position)
    try:
        found = filled.watch(program, marks=False)
        time.sleep(_SETTLED_S)
        if filled.topic.records() != filled.rows:
            raise MeasurementFailed(f"{variant.name} sent {filled.topic.records()} records of {filled.rows} rows")
        return found
    finally:
        program.close()


@dataclass(frozen=True)
class Pace:
    """What a rival waits for, in milliseconds."""

    linger_ms: int
    """Its producer, for more records."""
    poll_ms: int
    """Debezium, for more events."""


FOR_MUCH = Pace(linger_ms=5, poll_ms=5)
AT_ONCE = Pace(linger_ms=0, poll_ms=1)


class Rival(Protocol):
    """Another program for the same job."""

    following: str
    """In its log as soon as it follows the binlog."""

    def learn(self) -> None:
        """Before any rows: let it make what it keeps about the table's schema."""

    def start(self, position: BinlogPosition) -> JavaProgram:
        """Let it send all rows that are committed behind ``position``."""


class JavaProgram:
    """A running rival, watched as the relay is; it cannot outlive this process."""

    def __init__(self, name: str, java: str) -> None:
        self._process = GuardedProcess(name)
        self._java = java
        self.home = self._process.home
        self._log = self.home / "log"
        self.started_at = 0.0

    def start(self, *arguments: str) -> None:
        """``java`` with these, in its home."""
        argv = [self._java, f"-Xms{_HEAP}", f"-Xmx{_HEAP}", *arguments]
        self.started_at = time.perf_counter()
        self._process.start(argv, env=dict(os.environ), cwd=self.home, log=self._log)

    def cpu_s(self) -> float:
        return processor_s(self._pid)

    def peak_mib(self) -> float:
        return peak_mib(self._pid)

    def require_alive(self) -> None:
        code = self._process.exit_code()
        if code is not None:
            raise MeasurementFailed(f"it ended by itself with code {code}:\n{self.said()}")

    def said(self) -> str:
        return tail(self._log)

    def wait_until(self, done: Callable[[str], bool], what: str) -> None:
        """``done`` is asked with all that it has said so far."""
        deadline = time.monotonic() + _PATIENCE_S
        while not done(self._log.read_text(errors="replace")):
            self.require_alive()
            if time.monotonic() > deadline:
                raise MeasurementFailed(f"not after {_PATIENCE_S:g} s: {what}\n{self.said()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it in good order."""
        self._process.signal(signal.SIGTERM)
        if self._process.wait(_STOP_S) is None:
            raise MeasurementFailed(f"it does not stop:\n{self.said()}")

    def close(self) -> None:
        self._process.close()

    @property
    def _pid(self) -> int:
        self.require_alive()
        return self._process.pid or 0


@dataclass
class _Installed:
    """What the rivals have in common: a folder, and a place to work in."""

    java: str
    folder: Path
    outbox: ThrowawayOutbox
    topic: ThrowawayTopic
    pace: Pace

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def configure(self, template: str, path: Path) -> None:
        """Write the template with this place in it to ``path``."""
        url = self.outbox.settings.database.parsed
        facts = {
            "host": url.host,
            "port": url.port or 3306,
            "user": url.username,
            "password": url.password or "",
            "database": self.outbox.name,
            "table": DEFAULT_TABLE,
            "topic": self.topic.name,
            "bootstrap_servers": self.outbox.settings.kafka.bootstrap_servers,
            "http_port": free_port(),
            "linger_ms": self.pace.linger_ms,
            "poll_ms": self.pace.poll_ms,
        }
        path.parent.mkdir(exist_ok=True)
        path.write_text((Path(__file__).parent / template).read_text().format(**facts))


class Debezium(_Installed):
    """Begins each time with what it had written down when the table was empty."""

    following = "Keepalive thread is running"

    def __enter__(self) -> Self:
        self._learned = GuardedProcess("debezium-data")  # a folder that goes at the end
        return self

    def __exit__(self, *_: object) -> None:
        self._learned.close()

    def learn(self) -> None:
        program = self._program()
        try:
            program.wait_until(lambda said: self.following in said, "it follows the binlog")
            # It keeps no place before it has sent something.
            self.outbox.fill(self.topic.name, rows=1)
            program.wait_until(lambda _: self.topic.records() == 1, "it sends a row")
            time.sleep(_SETTLED_S)
            program.stop()
            shutil.copytree(program.home / "data", self._learned.home / "data")
        finally:
            program.close()
        self.outbox.clear()

    def start(self, position: BinlogPosition) -> JavaProgram:
        return self._program(self._learned.home / "data")

    def _program(self, data: Path | None = None) -> JavaProgram:
        program = JavaProgram("debezium", self.java)
        try:
            self.configure("debezium.properties", program.home / "config" / "application.properties")
            (program.home / "data").mkdir()
            if data:
                shutil.copytree(data, program.home / "data", dirs_exist_ok=True)
            (runner,) = self.folder.glob("debezium-server-*runner.jar")
            program.start(
                *("--add-opens=java.base/java.lang=ALL-UNNAMED", "-cp", f"{runner}:config/lib:{self.folder}/lib/*"),
                "io.debezium.server.Main",
            )
        except BaseException:
            program.close()
            raise
        return program


class Maxwell(_Installed):
    """Keeps the schema in a database of its own, and is told where to begin."""

    following = "Binlog connected"

    def __enter__(self) -> Self:
        # What it knows from a place before this one would stand in the way.
        with transaction(self.outbox.engine) as connection:
            connection.exec_driver_sql("DROP DATABASE IF EXISTS maxwell")
        return self

    def learn(self) -> None:
        program = self._program()
        try:
            program.wait_until(lambda said: self.following in said, "it follows the binlog")
            time.sleep(_SETTLED_S)
            program.stop()
        finally:
            program.close()

    def start(self, position: BinlogPosition) -> JavaProgram:
        return self._program(f"--init_position={position.file}:{position.offset}:0")

    def _program(self, *arguments: str) -> JavaProgram:
        program = JavaProgram("maxwell", self.java)
        try:
            self.configure("maxwell.properties", program.home / "config.properties")
            kafka_client = max((self.folder / "lib" / "kafka-clients").glob("*.jar"), key=_version)
            program.start(
                *("-Dfile.encoding=UTF-8", "-cp", f"{self.folder}/classes:{self.folder}/lib/*:{kafka_client}"),
                *("com.zendesk.maxwell.Maxwell", "--config=config.properties", *arguments),
            )
        except BaseException:
            program.close()
            raise
        return program


@contextmanager
def installed(lab: Lab, outbox: ThrowawayOutbox, topic: ThrowawayTopic, pace: Pace) -> Iterator[dict[str, Rival]]:
    """Those that there are, by name, for one place."""
    with ExitStack() as stack:
        found: dict[str, Rival] = {}
        if lab.debezium:
            found["Debezium Server"] = stack.enter_context(Debezium(lab.java, lab.debezium, outbox, topic, pace))
        if lab.maxwell:
            found["Maxwell"] = stack.enter_context(Maxwell(lab.java, lab.maxwell, outbox, topic, pace))
        yield found


def _version(jar: Path) -> list[int]:
    """``kafka-clients-3.7.1.jar`` -> ``[3, 7, 1]``."""
    return [int(part) for part in jar.stem.rpartition("-")[2].split(".") if part.isdigit()]
