"""The consumer: rows that count as published and their records in Kafka, and how fast they are applied.

Each commit is as durable as MySQL makes it by default: binlog and redo log are flushed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from sqlalchemy import Connection, Engine, MetaData, text

from cdc_relay.bench.figures import Figure, gather, metric
from cdc_relay.bench.place import KEYS, ThrowawayOutbox, ThrowawayTopic, existing
from cdc_relay.bench.relay import MeasurementFailed, RelayProcess, Variant, processor_s
from cdc_relay.bench.settings import altered
from cdc_relay.config import Settings
from cdc_relay.outbox.database import transaction
from cdc_relay.outbox.envelope import Encoder, Record
from cdc_relay.outbox.statements import OutboxStatements
from cdc_relay.outbox.table import chat_tables
from tests.benchmarks.lab import PARTITIONS, Lab, plural, say

_PATIENCE_S = 300.0
#: A look costs the server something.
_LOOK_S = 0.05
_READ_AT_A_TIME = 10_000
#: Transactions whose delete-marked index entries are still to be removed; fewer than this is rest.
_HISTORY = 100

_CHATS = f"""
INSERT INTO agent_chats (id, chat_id, user_id)
WITH RECURSIVE counted (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM counted WHERE n + 1 < {KEYS})
SELECT n + 1, UUID(), n % 1000 FROM counted
"""
#: The conversations take turns as people who do not know of one another; the key of a row is its conversation.
_ROWS = f"""
INSERT INTO agent_outbox_messages
  (biz_type, topic, message_key, payload, status, created_at, published_at, updated_at)
WITH RECURSIVE counted (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM counted WHERE n + 1 < :rows)
SELECT 'chat_history_persist', 'bench', chat_id, CONCAT('{{"user_id": ', user_id, ', "conversation_id": "', chat_id,
  '", "role": "user", "message": "', LEFT(REPEAT('lorem ipsum dolor ', 60), 460 + n % 160), '"}}'),
  'published', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6)
FROM counted JOIN agent_chats ON agent_chats.id = 1 + CRC32(n) % {KEYS} ORDER BY n
"""
_AGAIN = (
    "TRUNCATE TABLE chat_histories",
    "UPDATE agent_chats SET message_count = 0, last_message_at = NULL",
    "UPDATE agent_outbox_messages SET consumed_at = NULL, last_error = NULL, retry_count = 0, next_retry_at = NULL, "
    "status = 'published'",
)


@dataclass(frozen=True)
class Consumed:
    """What one run showed."""

    rows_per_s: float = metric("throughput", "rows/s")
    """From the moment at which they go on to that at which no row is left."""
    cpu_us: float = metric("processor time", "µs/row")
    """All consumer processes, all their threads."""
    server_us: float | None = metric("processor time of mysqld", "µs/row")
    """None where its process is not to be seen from here."""
    memory_mib: float = metric("peak memory", "MiB")
    """Of the largest process."""


def measure(lab: Lab) -> Iterator[Figure]:
    """With so many programs in the group."""
    outbox = ThrowawayOutbox(lab.settings)
    variants = [
        Variant(
            plural(workers, "worker"), partial(altered, changes={"consumer.workers": workers}), ("consumer.cli", "run")
        )
        for workers in lab.sizes.workers
    ]
    if lab.against:
        variants.append(Variant("other checkout", argv=("consumer.cli", "run"), checkout=lab.against))
    with existing(outbox), _durable_commits(outbox.engine) if lab.throwaway else nullcontext():
        say(f"filling the outbox with {lab.sizes.consumed:,} rows")
        published = PublishedOutbox(outbox, lab.sizes.consumed)
        for programs in lab.sizes.consumers:
            runs = lab.in_turn(variants, partial(published.consume, programs))
            case = f"{lab.sizes.consumed:,} rows, {plural(programs, 'program')}"
            for name, found in runs.items():
                yield from gather("consumer", case, name, found)


class PublishedOutbox:
    """An outbox whose rows wait for the consumer, with a chat for each conversation."""

    def __init__(self, outbox: ThrowawayOutbox, rows: int) -> None:
        self._outbox = outbox
        self._engine = outbox.engine
        self._settings = outbox.settings
        self._rows = rows
        metadata = MetaData()
        chat_tables(metadata)
        with transaction(self._engine) as connection:
            metadata.create_all(connection)
            connection.execute(text("SET SESSION cte_max_recursion_depth = 1000000000"))
            connection.execute(text(_CHATS))
            connection.execute(text(_ROWS), {"rows": rows})
        with transaction(self._engine) as connection:
            self._records = list(_records(connection))

    def consume(self, programs: int, variant: Variant) -> Consumed:
        """So many programs in one group, ready and idle; they stand still until all records are in Kafka."""
        topic, dead_letters = (ThrowawayTopic(self._settings.kafka, n) for n in (PARTITIONS, 1))
        dead_letters.name = f"{topic.name}.dlq"
        group = f"bench-{uuid.uuid4().hex[:8]}"
        settings = altered(self._settings, {"consumer.topics": [topic.name], "consumer.group_id": group})
        self._publish_again()
        with existing(topic, dead_letters), ExitStack() as stack:
            running = [RelayProcess(variant, settings) for _ in range(programs)]
            for each in running:
                stack.callback(each.close)
            for each in running:
                each.start()
            _wait_for_group(settings, running, programs * running[0].settings.consumer.workers)
            found = self._watch(running, topic.name)
            for each in running:
                each.stop()
        self._require_applied_once()
        return found

    def _watch(self, running: Sequence[RelayProcess], topic: str) -> Consumed:
        server = _mysqld(self._engine)
        with ExitStack() as stack:
            for each in running:
                stack.enter_context(each.frozen())
            _produce(self._settings, topic, self._records)
        begun_at = time.perf_counter()
        used, used_by_server = sum(each.cpu_s() for each in running), processor_s(server) if server else 0.0
        first = 1
        while found := self._outbox.first_left(("pending", "published"), first - 1):
            first = found
            for each in running:
                each.require_alive()
            if time.perf_counter() - begun_at > _PATIENCE_S:
                raise MeasurementFailed(f"rows are left after {_PATIENCE_S:g} s:\n{running[0].said()}")
            time.sleep(_LOOK_S)
        took_s = time.perf_counter() - begun_at
        used = sum(each.cpu_s() for each in running) - used
        used_by_server = (processor_s(server) if server else 0.0) - used_by_server
        return Consumed(
            self._rows / took_s,
            used / self._rows * 1e6,
            used_by_server / self._rows * 1e6 if server else None,
            max(each.peak_mib() for each in running),
        )

    def _require_applied_once(self) -> None:
        with transaction(self._engine) as connection:
            for sql in ("SELECT COUNT(*) FROM chat_histories", "SELECT SUM(message_count) FROM agent_chats"):
                applied = connection.execute(text(sql)).scalar_one()
                if applied != self._rows:
                    raise MeasurementFailed(f"{sql}: {applied}, not {self._rows}")

    def _publish_again(self) -> None:
        """All rows and chats as they were before any was consumed, and the server at rest."""
        with transaction(self._engine) as connection:
            for sql in _AGAIN:
                connection.execute(text(sql))
        purge = text("SELECT `count` FROM information_schema.innodb_metrics WHERE name = 'trx_rseg_history_len'")
        deadline = time.monotonic() + 60
        with self._engine.connect() as connection:
            while (connection.execute(purge).scalar() or 0) > _HISTORY and time.monotonic() < deadline:
                connection.rollback()
                time.sleep(0.1)


def _records(connection: Connection) -> Iterator[Record]:
    ids = [int(row_id) for row_id in connection.execute(text("SELECT id FROM agent_outbox_messages")).scalars()]
    encoder, statements = Encoder(UTC), OutboxStatements()
    for at in range(0, len(ids), _READ_AT_A_TIME):
        yield from map(encoder.encode, statements.read_committed(connection, ids[at : at + _READ_AT_A_TIME]))


def _produce(settings: Settings, topic: str, records: Sequence[Record]) -> None:
    producer: Any = Producer(
        settings.kafka.client_properties(partitioner="murmur2_random") | {"queue.buffering.max.messages": 0}
    )
    for record in records:
        producer.produce(topic, record.value, record.key, headers=record.headers)
    if producer.flush(_PATIENCE_S):
        raise MeasurementFailed("Kafka has not acknowledged the records")


def _wait_for_group(settings: Settings, running: Sequence[RelayProcess], members: int) -> None:
    """Until all are in the group and every partition has its reader."""
    admin = AdminClient(settings.kafka.client_properties(client_id="cdc-relay-bench") | {"log_level": 0})
    group = settings.consumer.group_id
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        for each in running:
            each.require_alive()
        told = admin.describe_consumer_groups([group], request_timeout=10)[group].result()
        assigned = sum(len(member.assignment.topic_partitions) for member in told.members)
        if (told.state.name, len(told.members), assigned) == ("STABLE", members, PARTITIONS):
            return
        if time.monotonic() > deadline:
            raise MeasurementFailed(f"the group is not complete: {told.state.name}, {len(told.members)} members")
        time.sleep(_LOOK_S)


@contextmanager
def _durable_commits(engine: Engine) -> Iterator[None]:
    """MySQL's own durability on a server that was started with less."""
    names = ("sync_binlog", "innodb_flush_log_at_trx_commit")
    with engine.connect() as connection:
        before = {name: connection.exec_driver_sql(f"SELECT @@GLOBAL.{name}").scalar_one() for name in names}
        for name in names:
            connection.exec_driver_sql(f"SET GLOBAL {name} = DEFAULT")
    try:
        yield
    finally:
        with engine.connect() as connection:
            for name, value in before.items():
                connection.exec_driver_sql(f"SET GLOBAL {name} = {value}")


def _mysqld(engine: Engine) -> int | None:
    """The server's process, where it runs on this machine."""
    if engine.url.host not in ("127.0.0.1", "localhost"):
        return None
    with transaction(engine) as connection:
        path = Path(*connection.execute(text("SELECT @@datadir, @@pid_file")).one())
    return int(path.read_text()) if path.exists() else None
