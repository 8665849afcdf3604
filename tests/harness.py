"""What tests on real servers do over and over: run a relay in this process, write rows, read records back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from confluent_kafka import Consumer, Message, TopicPartition
from sqlalchemy import Connection, Engine, NullPool, create_engine, text

from cdc_relay.config import Settings
from cdc_relay.config_layers import load
from cdc_relay.service import RelayService

#: Generous: a slow machine must not fail a test, and nothing waits this long when all is well.
PATIENCE_S = 45.0


def eventually(found: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The first true value of ``found()``; fails, naming what was found last, when there is none in time."""
    deadline = time.monotonic() + patience_s
    while True:
        value = found()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not happen in {patience_s:g} s; found last: {value!r}"
        time.sleep(0.02)


class Outbox:
    """The application's side: writes rows, and looks at what became of them."""

    def __init__(self, url: str, topic: str) -> None:
        self.engine: Engine = create_engine(url)
        self.topic = topic

    def insert(self, connection: Connection, key: str, value: Any, **columns: Any) -> int:
        """Insert one pending row in the caller's transaction; ``value`` becomes the payload ``{"n": value}``."""
        values = {
            "biz_type": "test",
            "topic": self.topic,
            "message_key": key,
            "payload": json.dumps({"n": value}),
            "status": "pending",
        } | columns
        names, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
        sql = (
            f"INSERT INTO agent_outbox_messages ({names}, next_retry_at, created_at) "
            f"VALUES ({marks}, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))"
        )
        return int(connection.execute(text(sql), values).lastrowid)

    def add(self, key: str, value: Any, **columns: Any) -> int:
        """Insert one pending row in a transaction of its own."""
        with self.engine.begin() as connection:
            return self.insert(connection, key, value, **columns)

    def run(self, *statements: str) -> None:
        """Run statements on one connection, each committing by itself unless they say otherwise."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def run_apart(self, *statements: str) -> None:
        """Run statements on a connection of their own and hang up, as a client that dies would."""
        apart = create_engine(self.engine.url, poolclass=NullPool)
        connection = apart.raw_connection()
        driver = connection.driver_connection
        connection.detach()
        assert driver is not None
        with driver.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        driver.close()

    def rows(self) -> dict[int, Any]:
        """Every row by id."""
        with self.engine.connect() as connection:
            found = connection.execute(text("SELECT * FROM agent_outbox_messages ORDER BY id"))
            return {row.id: row for row in found}

    def statuses(self) -> dict[int, str]:
        """The status of every row by id."""
        return {row_id: row.status for row_id, row in self.rows().items()}

    def wait_published(self, ids: Sequence[int]) -> None:
        """Wait until all of these are published."""
        eventually(lambda: all(self.statuses().get(i) == "published" for i in ids), f"rows {ids} published")


def settings_for(database_url: str, bootstrap_servers: str, folder: Path, **flags: Any) -> Settings:
    """Settings of a relay for a test; ``flags`` with ``__`` for the dot."""
    given = {name.replace("__", "."): value for name, value in flags.items()}
    return load(
        {
            "name": f"test-{folder.name}"[:40],
            "database.url": database_url,
            "kafka.bootstrap_servers": bootstrap_servers,
            "checkpoint.path": folder / "checkpoint.json",
            "admin.port": 0,
            "checkpoint.interval_s": 0.2,
            "sweep.interval_s": 0.2,
        }
        | given,
        environ={},
    )


@contextmanager
def running_relay(
    settings: Settings, *, tail: bool = True, sweep: bool = True, service: RelayService | None = None
) -> Iterator[RelayService]:
    """A relay in a thread, active on entry, stopped at the end; what it raised is raised here.

    ``service`` is one that was made before.
    """
    service = service or RelayService(settings, tail=tail, sweep=sweep, drain_timeout_s=10)
    stop = Event()
    failure: list[BaseException] = []

    def run() -> None:
        try:
            service.run(stop)
        except BaseException as error:  # noqa: BLE001  # carried to the test's own thread
            failure.append(error)

    thread = Thread(target=run, name="relay", daemon=True)
    thread.start()
    try:
        eventually(lambda: failure or service.is_tailing or not tail, "the relay at work")
        yield service
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the relay does not stop"
    if failure:
        raise failure[0]


def read_topic(bootstrap_servers: str, topic: str, expected: int, patience_s: float = PATIENCE_S) -> list[Message]:
    """Every record of ``topic``, in order per partition: waits for ``expected`` and then for no more to come."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "reader",
            "enable.auto.commit": False,
            "fetch.message.max.bytes": 100_000_000,
            "allow.auto.create.topics": False,
        }
    )
    records: list[Message] = []
    try:
        deadline = time.monotonic() + patience_s
        while topic not in (topics := consumer.list_topics(timeout=10).topics) or topics[topic].error:
            assert time.monotonic() < deadline, f"topic {topic} does not appear"
            time.sleep(0.05)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in topics[topic].partitions])
        quiet = 0
        while quiet < 2:
            got = consumer.consume(1000, timeout=0.3)
            records += [record for record in got if record.error() is None]
            if got:
                quiet = 0
            elif len(records) >= expected:
                quiet += 1
            else:
                assert time.monotonic() < deadline, f"{len(records)} of {expected} records arrived in {topic}"
    finally:
        consumer.close()
    return records


def outbox_id(record: Message) -> int:
    """The row that a record is of."""
    value = record.value()
    assert value is not None
    return int(json.loads(value)["outbox_id"])
