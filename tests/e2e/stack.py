"""One scenario's world: a database, a topic, both programs, a ledger; and the wait for everything to be consumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from cdc_relay.embedded.mysql import MysqlServer
from tests.conftest import fresh_database
from tests.e2e.ledger import Ledger, Plan, Writers
from tests.e2e.programs import Program
from tests.e2e.verdict import Verdict, judge, read_kafka
from tests.harness import eventually

#: Guards against a hang and nothing else: on an idle machine all of it takes a few seconds.
PATIENCE_S = 120.0


class Stack:
    """``relay`` and ``consumer`` are not started by themselves."""

    def __init__(self, database_url: str, kafka: str, folder: Path, *, programs_url: str, partitions: int) -> None:
        self.database_url = database_url
        self.kafka = kafka
        self.topic = f"chat-{uuid.uuid4().hex[:10]}"
        self.ledger = Ledger()
        self.engine = create_engine(database_url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        self.checkpoint = folder / "checkpoints" / "relay.json"
        self.settings = {
            "CDC_NAME": self.topic,
            "CDC_DATABASE__URL": programs_url,
            "CDC_KAFKA__BOOTSTRAP_SERVERS": kafka,
            "CDC_CHECKPOINT__PATH": str(self.checkpoint),
            "CDC_CHECKPOINT__INTERVAL_S": "0.2",
            "CDC_SWEEP__INTERVAL_S": "0.3",
            "CDC_CONSUMER__TOPICS": json.dumps([self.topic]),
            "CDC_CONSUMER__GROUP_ID": self.topic,
        }
        self.partitions = partitions
        self.shows_logs = True
        self.relay = self.new_relay("relay")
        # A consumer that was killed keeps its partitions for this long; the default of 45 s would only be waited out.
        quick = {"CDC_KAFKA__PROPERTIES": json.dumps({"session.timeout.ms": 6000, "heartbeat.interval.ms": 1000})}
        self.consumer = Program("consumer", ["-m", "consumer.cli", "run"], self.settings | quick)
        self._writers: list[Writers] = []
        self._seed = 0

    def new_relay(self, name: str, **settings: str) -> Program:
        """Another relay of the same table, not started."""
        return Program(name, ["-m", "cdc_relay", "run"], self.settings | settings)

    def go_through(self, port: int) -> None:
        """Let the application reach the database by another port, too."""
        self.database_url = make_url(self.database_url).set(port=port).render_as_string(hide_password=False)
        self.engine.dispose()
        self.engine = create_engine(self.database_url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)

    def make_topic(self, **config: str) -> None:
        """With room for messages of a megabyte and more."""
        config = {"max.message.bytes": "8000000"} | {name.replace("_", "."): value for name, value in config.items()}
        admin = AdminClient({"bootstrap.servers": self.kafka, "log_level": 2})
        admin.create_topics([NewTopic(self.topic, self.partitions, 1, config=config)])[self.topic].result(30)

    def start(self) -> None:
        """Both programs."""
        for program in (self.relay, self.consumer):
            program.start(wait=False)
        for program in (self.relay, self.consumer):
            program.wait_until_ready()

    def write(self, rows: int | None = None, **plan: Any) -> Writers:
        """Writers of conversations of their own, started; ``rows``: until stopped when None."""
        self._seed += 1
        made = Plan(self.topic, rows, seed=plan.pop("seed", self._seed), **plan)
        with self.engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO agent_chats (user_id, chat_id, message_count) VALUES (%s, %s, 0)", made.chats
            )
        writers = Writers(self.database_url, self.ledger, made).start()
        self._writers.append(writers)
        return writers

    def settle(self, patience_s: float = PATIENCE_S) -> float:
        """Wait until every row of the ledger is at its end; the seconds that it took."""
        began = time.monotonic()
        while (left := self._unsettled()) is None or left > 0:
            for program in (self.relay, self.consumer):
                program.check()
            assert time.monotonic() - began < patience_s, (
                f"{left} rows are not at their end after {patience_s:g} s: {self._shown()}\n"
                f"relay:\n{self.relay.log_tail()}\nconsumer:\n{self.consumer.log_tail()}"
            )
            time.sleep(0.05)
        return time.monotonic() - began

    def verdict(self, *, kafka_kept_all: bool = True, patience_s: float = PATIENCE_S) -> Verdict:
        """Stop the writers, wait until all is consumed, and judge."""
        for writers in self._writers:
            writers.stop()
        recovered_in_s = self.settle(patience_s)
        verdict = judge(
            self.ledger, self.database_url, read_kafka(self.kafka, self.topic), kafka_kept_all=kafka_kept_all
        )
        verdict.recovered_in_s = recovered_in_s
        print(verdict)  # shown when the test fails
        return verdict

    def write_some(self, rows: int, **plan: Any) -> None:
        """So many rows, committed on return."""
        self.write(rows, **plan).join()

    def wait_for_rows(self, more: int) -> None:
        """Wait until writers that are at work have committed so many more."""
        enough = len(self.ledger) + more
        eventually(lambda: len(self.ledger) >= enough, f"{more} more rows written")

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """Run one statement as root; its rows."""
        with self.engine.connect() as connection:
            result = connection.execute(text(statement), values)
            return list(result.all()) if result.returns_rows else []

    def command(self, *words: str) -> str:
        """Run ``cdc-relay`` with the programs' settings, which must go well; what it says."""
        others = {key: value for key, value in os.environ.items() if not key.startswith("CDC_")}
        argv = [sys.executable, "-m", "cdc_relay", *words]
        told = subprocess.run(argv, env=others | self.settings, capture_output=True, text=True, timeout=60, check=False)
        assert told.returncode == 0, f"{words}: {told.stdout}{told.stderr}"
        return told.stdout

    def statuses(self) -> dict[str, int]:
        """Rows per status."""
        return {str(s): int(n) for s, n in self.sql("SELECT status, COUNT(*) FROM agent_outbox_messages GROUP BY 1")}

    def close(self) -> None:
        """End everything that is of this scenario."""
        for writers in self._writers:
            try:
                writers.stop()
            except AssertionError as error:
                print(f"a writer failed: {error}")
        for program in (self.relay, self.consumer):
            if self.shows_logs:  # by pytest, when the test fails
                print(f"--- the end of the log of {program.name}:\n{program.log_tail(60)}")
            program.close()
        self.engine.dispose()

    def _unsettled(self) -> int | None:
        """Rows on their way; None while the database does not tell."""
        try:
            statuses = self.statuses()
        except DBAPIError:
            return None
        return len(self.ledger) - statuses.get("consumed", 0) - statuses.get("dead", 0)

    def _shown(self) -> Any:
        waiting = self.sql(
            "SELECT id, message_key, status, retry_count, next_retry_at, last_error FROM agent_outbox_messages "
            "WHERE status NOT IN ('consumed', 'dead') ORDER BY id LIMIT 5"
        )
        return self.statuses(), waiting


def _account(server: MysqlServer, url: str, port: int | None) -> str:
    """The URL of an account that may do no more than the programs need."""
    database = make_url(url).database
    root = create_engine(server.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with root.connect() as connection:
        for statement in (
            "CREATE USER IF NOT EXISTS programs@'127.0.0.1' IDENTIFIED BY 'pässword'",
            "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO programs@'127.0.0.1'",
            f"GRANT SELECT, INSERT, UPDATE ON `{database}`.* TO programs@'127.0.0.1'",
        ):
            connection.exec_driver_sql(statement)
    programs = make_url(url).set(username="programs", password="pässword", port=port or server.port)
    return programs.render_as_string(hide_password=False)


@contextmanager
def stack_on(
    server: MysqlServer,
    kafka: str,
    folder: Path,
    *,
    through: int | None = None,
    partitions: int = 3,
    topic: bool = True,
    **settings: Any,
) -> Iterator[Stack]:
    """A stack on a database of its own. ``through`` is a proxy's port by which the programs reach MySQL; ``settings``
    are those of the programs, as in their CDC_ variables without the prefix."""
    for url in fresh_database(server):
        stack = Stack(url, kafka, folder, programs_url=_account(server, url, through), partitions=partitions)
        given = {f"CDC_{name.upper()}": str(value) for name, value in settings.items()}
        for program in (stack.relay, stack.consumer):
            program.settings |= given
        stack.settings |= given
        if topic:
            stack.make_topic()
        try:
            yield stack
        finally:
            stack.close()
