"""One round of the demo: servers, programs, application, observer, verdict; everything is gone afterwards."""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from sqlalchemy import Engine, create_engine, text

from cdc_relay.config import DatabaseSettings
from cdc_relay.demo import programs
from cdc_relay.demo.application import TOPIC, Application, Pace
from cdc_relay.demo.observer import Observer
from cdc_relay.demo.programs import Program
from cdc_relay.demo.show import Display, say, show_verdict
from cdc_relay.demo.verdict import Verdict, judge, percentiles_ms, read_ledger
from cdc_relay.embedded.kafka import KafkaBroker, MockKafka
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.embedded.stack import MysqlChoice, Stack
from cdc_relay.outbox.database import transaction
from cdc_relay.tables import create_missing

_WRITERS = 4
_PARTITIONS = 4
#: Without any progress for so long, the round is over.
_STALLED_S = 60.0
_LOOK_EVERY_S = 0.2
_STOP_S = 35.0
#: A topic that nobody writes to any more and that says nothing for so long has been read to its end.
_QUIET_S = 0.5
#: Rows on their way at most. The mock broker drops what is beyond 5 MiB in a partition, read or not: 3,000 rows of the
#: demo take about 2 MB, so they fit even if all are of one partition.
_MAX_OPEN_MOCK = 3_000
_MAX_OPEN_REAL = 1_000_000
#: Latencies that the live display looks at.
_RECENT = 2_000


@dataclass(frozen=True, slots=True)
class Choices:
    """What the command line says."""

    rows: int
    conversations: int
    kafka: Literal["embedded", "real"]
    mysql: MysqlChoice
    rate: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict and what it is about."""

    verdict: Verdict
    complete: bool
    """Whether all rows were committed and both programs ended in good order."""
    facts: dict[str, Any]

    @property
    def is_good(self) -> bool:
        """Whether the exit code is 0."""
        return self.complete and self.verdict.is_good

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.is_good, **self.verdict.plain(), **self.facts}


def play(choices: Choices, console: Console) -> Outcome:
    """Start everything, write, wait, stop, judge. Raises RelayError when it does not come to a verdict."""
    real = choices.kafka == "real"
    broker = KafkaBroker(options={"num.partitions": _PARTITIONS}) if real else MockKafka()
    if real:
        say(console, "Kafka is Apache Kafka, one node of its own.")
    else:
        say(
            console,
            "Kafka is librdkafka's mock broker, inside this process: the protocol is real, the storage is not. "
            "For a proof with Apache Kafka: cdc-relay demo --kafka real",
        )
    with ExitStack() as stack:
        servers = stack.enter_context(Stack(mysql=MysqlServer(flavour=choices.mysql), kafka=broker))
        mysql = f"{servers.mysql.flavour} {servers.mysql.server_version}"
        say(console, f"{mysql} and Kafka are up; starting cdc-relay and cdc-consumer.")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cdc-relay-demo-")))
        settings = {
            "CDC_DATABASE__URL": servers.mysql.url,
            "CDC_KAFKA__BOOTSTRAP_SERVERS": servers.kafka.bootstrap_servers,
            "PYTHONPATH": os.pathsep.join(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path),
        }
        create_missing(DatabaseSettings(url=servers.mysql.url))
        # The mock broker always makes a reader wait as long as it may, so it may not.
        patience_ms = 500 if real else 1
        relay = stack.enter_context(programs.relay(settings, folder / "relay.json"))
        consumer = stack.enter_context(
            programs.consumer(settings | {"CDC_KAFKA__PROPERTIES": f'{{"fetch.wait.max.ms": {patience_ms}}}'}, TOPIC)
        )
        engine = create_engine(servers.mysql.url, pool_size=_WRITERS + 1)
        stack.callback(engine.dispose)
        pace = Pace(choices.rate, _MAX_OPEN_REAL if real else _MAX_OPEN_MOCK)
        application = Application(
            engine, rows=choices.rows, conversations=choices.conversations, writers=_WRITERS, pace=pace
        )
        application.prepare()
        for program in (relay, consumer):
            program.wait_until_ready()
        observer = Observer(servers.kafka.bootstrap_servers, TOPIC, wait_ms=patience_ms)
        stack.callback(observer.close)
        stack.callback(application.stop)
        observer.start()
        return _Round(choices, console, engine, application, observer, pace, (relay, consumer)).run(mysql)


class _Round:
    """The part of it in which rows move."""

    def __init__(
        self,
        choices: Choices,
        console: Console,
        engine: Engine,
        application: Application,
        observer: Observer,
        pace: Pace,
        under_test: tuple[Program, ...],
    ) -> None:
        self._choices = choices
        self._console = console
        self._engine = engine
        self._application = application
        self._observer = observer
        self._pace = pace
        self._under_test = under_test
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._looked_at = 0

    def run(self, mysql: str) -> Outcome:
        writers = min(_WRITERS, self._choices.conversations)
        say(
            self._console,
            f"{writers} writers commit {self._choices.rows:,} rows of {self._choices.conversations:,} conversations "
            "in transactions of 1 to 100 rows, and roll others back.",
        )
        began = time.monotonic()
        self._application.start()
        with Display(self._console, self._choices.rows) as display:
            finished_at = self._follow(display)
        codes = {program.name: program.stop(_STOP_S) for program in self._under_test}
        self._wait_for_observer()
        seconds = finished_at - began
        with transaction(self._engine) as connection:
            ledger = read_ledger(connection)
        verdict = judge(ledger, self._observer.seen, self._latencies())
        complete = len(self._application.committed_at) == verdict.inserted == self._choices.rows
        for name, code in codes.items():
            if code != 0:
                complete = False
                say(self._console, f"{name} did not stop in good order: exit code {code}", "red")
        show_verdict(self._console, verdict, seconds=seconds, rolled_back=self._application.rolled_back_rows)
        outcome = Outcome(
            verdict,
            complete,
            {
                "rows": self._choices.rows,
                "conversations": self._choices.conversations,
                "rolled_back": self._application.rolled_back_rows,
                "seconds": round(seconds, 3),
                "mysql": mysql,
                "kafka": "Apache Kafka" if self._choices.kafka == "real" else "librdkafka mock broker",
            },
        )
        if not outcome.is_good:
            self._show_logs()
        return outcome

    def _follow(self, display: Display) -> float:
        """Show progress until every row has gone the whole way, or nothing moves any more; when that was."""
        before: dict[str, int] = {}
        moved_at = time.monotonic()
        while True:
            for program in self._under_test:
                program.check()
            for failure in (self._application.failure, self._observer.failure):
                if failure is not None:
                    raise failure
            is_writing = self._application.is_writing
            counts = self._count()
            self._pace.done(min(counts["published"], counts["consumed"]))
            now = time.monotonic()
            if counts != before:
                before, moved_at = counts, now
            finished = not is_writing and counts["inserted"] <= min(counts["published"], counts["consumed"])
            stalled = now - moved_at > _STALLED_S
            display.update(counts, self._recent_latency(), last=finished or stalled)
            if finished:
                return now
            if stalled:
                say(self._console, f"nothing has moved for {_STALLED_S:g} s", "red")
                return moved_at
            time.sleep(_LOOK_EVERY_S)

    def _count(self) -> dict[str, int]:
        consumed = "SELECT COUNT(*) FROM agent_outbox_messages WHERE status = 'consumed'"
        with transaction(self._engine) as connection:
            return {
                "inserted": len(self._application.committed_at),
                "published": len(self._observer.arrived_at),
                "consumed": int(connection.execute(text(consumed)).scalar() or 0),
            }

    def _latencies(self) -> list[float]:
        arrived = self._observer.arrived_at
        return [arrived[row_id] - at for row_id, at in self._application.committed_at.items() if row_id in arrived]

    def _recent_latency(self) -> dict[str, float | None]:
        seen = self._observer.seen
        end = len(seen)
        for record in seen[max(self._looked_at, end - _RECENT) : end]:
            committed_at = self._application.committed_at.get(record.outbox_id)
            if committed_at is not None:  # else its writer has not noted it yet
                self._recent.append(record.arrived_at - committed_at)
        self._looked_at = end
        return percentiles_ms(self._recent)

    def _wait_for_observer(self) -> None:
        deadline = time.monotonic() + _STALLED_S
        while not self._observer.has_read_everything(_QUIET_S) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S)
        self._observer.close()

    def _show_logs(self) -> None:
        for program in self._under_test:
            say(self._console, f"\nThe end of {program.name}'s log:\n{program.log_tail()}")
