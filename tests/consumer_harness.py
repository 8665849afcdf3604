"""The relay's side, played by hand: rows that count as published, and their records in a real Kafka."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient

# From where they are defined: to mypy the public module does not export them.
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic
from sqlalchemy import create_engine, text

from cdc_relay.config import Settings
from cdc_relay.config_layers import load
from cdc_relay.outbox.clock import utc_now
from cdc_relay.outbox.envelope import encode
from cdc_relay.outbox.operator_statements import OperatorStatements
from cdc_relay.outbox.statements import OutboxStatements
from consumer.plan import Counts, Outcome
from consumer.service import Service
from consumer.worker import Worker
from tests.harness import eventually, read_topic

WRITTEN = datetime(2026, 1, 2, 3, 4, 5, 123456)
"""When the first row was written; each next one is a second later."""


class History(NamedTuple):
    """A row of ``chat_histories``."""

    chat_id: str
    user_id: int
    message: str
    role: str
    created_at: datetime


def payload(chat_id: str, message: str, user_id: int = 7, role: str = "user") -> dict[str, Any]:
    return {"user_id": user_id, "conversation_id": chat_id, "role": role, "message": message}


class World:
    """One database and one topic, with the application and the relay on their far sides."""

    def __init__(self, database_url: str, bootstrap_servers: str, topic: str, *, partitions: int | None = 1) -> None:
        """``partitions``: None when the topic is there."""
        self.database_url, self.bootstrap_servers, self.topic = database_url, bootstrap_servers, topic
        self.engine = create_engine(database_url, isolation_level="READ COMMITTED")
        self.producer = Producer({"bootstrap.servers": bootstrap_servers, "message.max.bytes": 100_000_000})
        if partitions is not None:
            admin = AdminClient({"bootstrap.servers": bootstrap_servers})
            admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result()
        self._written = 0
        self.group: dict[str, Any] = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}
        """Kafka's properties for a member of it."""
        self.zone: tzinfo = UTC
        """Of the columns, as the relay has it."""

    def set_message_limit(self, topic: str, limit: int) -> None:
        """Let ``topic`` take records of up to ``limit`` bytes."""
        entry = ConfigEntry("max.message.bytes", str(limit), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        for done in admin.incremental_alter_configs([resource]).values():
            done.result()

    # --- the application

    def add_chats(self, *chat_ids: str, user_id: int = 7) -> None:
        with self.engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO agent_chats (chat_id, user_id) VALUES (%s, %s)", [(chat, user_id) for chat in chat_ids]
            )

    def write(self, payloads: Iterable[Any], **columns: Any) -> list[int]:
        """Commit one row a payload; the key is its conversation unless ``message_key`` is given. Their ids."""
        columns = {"biz_type": "chat_history_persist", "topic": self.topic, "status": "published"} | columns
        rows = []
        for each in payloads:
            key = each.get("conversation_id", "k") if isinstance(each, dict) else "k"
            written = WRITTEN + timedelta(seconds=self._written)
            body = each if isinstance(each, str) else json.dumps(each, ensure_ascii=False)
            defaults = {"message_key": key, "payload": body, "created_at": written, "published_at": written}
            rows.append(defaults | columns)
            self._written += 1
        names = list(rows[0])
        sql = f"INSERT INTO agent_outbox_messages ({', '.join(names)}) VALUES ({', '.join(['%s'] * len(names))})"
        with self.engine.begin() as connection:
            before = connection.exec_driver_sql("SELECT COALESCE(MAX(id), 0) FROM agent_outbox_messages").scalar_one()
            connection.exec_driver_sql(sql, [tuple(row[name] for name in names) for row in rows])
            found = connection.exec_driver_sql(
                "SELECT id FROM agent_outbox_messages WHERE id > %s ORDER BY id", (before,)
            )
            return [int(row_id) for row_id in found.scalars()]

    # --- the relay

    def produce(self, ids: Sequence[int]) -> None:
        """Put the record of each row into Kafka, in this order."""
        statements = OutboxStatements()
        with self.engine.connect() as connection:
            rows = {row.id: row for row in statements.read_committed(connection, list(set(ids)))}
        for row_id in ids:
            made = encode(rows[row_id], self.zone)
            self.produce_bytes(made.value, made.key, made.headers)
        self.flush()

    def send(self, payloads: Iterable[Any], **columns: Any) -> list[int]:
        """Write rows and produce their records."""
        ids = self.write(payloads, **columns)
        self.produce(ids)
        return ids

    def produce_bytes(
        self, value: bytes | None, key: bytes | None = b"k", headers: Sequence[tuple[str, str | bytes | None]] = ()
    ) -> None:
        self.producer.produce(self.topic, value, key, headers=list(headers), on_delivery=self._delivered)
        self.producer.poll(0)

    def flush(self) -> None:
        assert self.producer.flush(30) == 0

    @staticmethod
    def _delivered(error: Any, _: Message) -> None:
        assert error is None, error

    def sweep(self) -> list[int]:
        """Redeliver every pending row in id order, as if its time had come; their ids."""
        statements, now = OutboxStatements(), datetime.now(UTC).replace(tzinfo=None)
        with self.engine.begin() as connection:
            found = connection.exec_driver_sql(
                "SELECT id, retry_count FROM agent_outbox_messages WHERE status = 'pending' ORDER BY id FOR UPDATE"
            )
            retries = {int(row_id): int(retry_count) for row_id, retry_count in found}
            statements.lease(connection, list(retries), now, now)
        self.produce(list(retries))
        with self.engine.begin() as connection:
            for row_id, retry_count in retries.items():
                statements.mark_published(connection, [row_id], retry_count, now)
        return list(retries)

    # --- what became of it

    def rows(self) -> dict[int, Any]:
        with self.engine.connect() as connection:
            return {row.id: row for row in connection.execute(text("SELECT * FROM agent_outbox_messages ORDER BY id"))}

    def status_counts(self) -> dict[str, int]:
        with self.engine.connect() as connection:
            return OperatorStatements().count_by_status(connection)

    def histories(self) -> list[History]:
        sql = "SELECT chat_id, user_id, message_content, role, created_at FROM chat_histories ORDER BY id"
        with self.engine.connect() as connection:
            return [History(*row) for row in connection.execute(text(sql))]

    def messages(self) -> dict[str, list[str]]:
        """The messages of each conversation, in the order in which they were stored."""
        found: dict[str, list[str]] = {}
        for history in self.histories():
            found.setdefault(history.chat_id, []).append(history.message)
        return found

    def chat(self, chat_id: str) -> Any:
        with self.engine.connect() as connection:
            sql = text("SELECT * FROM agent_chats WHERE chat_id = :chat_id")
            return connection.execute(sql, {"chat_id": chat_id}).one()

    def message_counts(self) -> dict[str, int]:
        with self.engine.connect() as connection:
            found = connection.execute(text("SELECT chat_id, message_count FROM agent_chats"))
            return {row.chat_id: row.message_count for row in found}

    def dead_letters(self, expected: int) -> list[Message]:
        return read_topic(self.bootstrap_servers, f"{self.topic}.dlq", expected)

    def wait_consumed(self, expected: int) -> None:
        eventually(lambda: self.status_counts().get("consumed", 0) >= expected, f"{expected} rows consumed")

    # --- the consumer

    def settings(self, **flags: Any) -> Settings:
        given = {name.replace("__", "."): value for name, value in flags.items()}
        return load(
            {
                "database.url": self.database_url,
                "kafka.bootstrap_servers": self.bootstrap_servers,
                "kafka.properties": self.group,
                "consumer.topics": [self.topic],
                "consumer.group_id": self.topic,
                "consumer.workers": 1,  # a second member would only make each start wait for another rebalance
                "admin.port": 0,
            }
            | given,
            environ={},
        )

    @contextmanager
    def worker(self, **flags: Any) -> Iterator[Worker]:
        """A consumer that takes a step when it is told to."""
        service = Service(self.settings(**flags))
        try:
            service.check()
            with service.worker() as worker:
                yield worker
        finally:
            service.close()

    def take(self, worker: Worker, records: int, now: Callable[[], datetime] = utc_now) -> dict[Outcome, int]:
        """Let ``worker`` take at least so many records; what became of them."""
        counts = Counts()

        def taken() -> bool:
            counts.update(worker.run_once(now))
            return sum(counts.values()) >= records

        eventually(taken, f"{records} records taken")
        return {outcome: n for outcome, n in counts.items() if n}

    def consume(self, records: int, **flags: Any) -> dict[Outcome, int]:
        """A consumer comes, takes so many records, and goes."""
        with self.worker(**flags) as worker:
            return self.take(worker, records)

    @contextmanager
    def running(self, **flags: Any) -> Iterator[Service]:
        """A consumer that works in threads until the block is left; what it raised is raised here."""
        service = Service(self.settings(**flags))
        failure: list[BaseException] = []

        def run() -> None:
            try:
                service.consume()
            except BaseException as error:  # noqa: BLE001  # carried to the test's own thread
                failure.append(error)

        thread = Thread(target=run, daemon=True)
        try:
            service.check()
            thread.start()
            yield service
        finally:
            service.stop.set()
            thread.join(45)
            service.close()
        assert not thread.is_alive(), "the consumer does not stop"
        if failure:
            raise failure[0]

    def process(self, *options: str, log: Path) -> subprocess.Popen[bytes]:
        """``cdc-consumer run`` as a process of its own, writing to ``log``."""
        settings = {
            "CDC_DATABASE__URL": self.database_url,
            "CDC_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "CDC_KAFKA__PROPERTIES": json.dumps({"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}),
            "CDC_CONSUMER__TOPICS": json.dumps([self.topic]),
            "CDC_CONSUMER__GROUP_ID": self.topic,
            "CDC_CONSUMER__WORKERS": "1",
            "CDC_ADMIN__PORT": "0",
        }
        argv = [sys.executable, "-m", "consumer.cli", "run", *options]
        with log.open("ab") as out:
            return subprocess.Popen(argv, env=os.environ | settings, stderr=out, stdout=out)

    def close(self) -> None:
        self.producer.flush(5)
        self.engine.dispose()
