"""Where the time of a row goes: the steps of the data path one after another on the same rows, in this process.

The processor time is that of the one thread at work, except for "deliver and answer", where librdkafka's threads
count. Each step works on what the one before it has left in memory, so their sum is more than the whole path takes.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Producer
from sqlalchemy import create_engine

from cdc_relay.binlog.connection import DumpConnection
from cdc_relay.binlog.server import describe_table
from cdc_relay.binlog.source import BinlogSource
from cdc_relay.binlog.tables import OutboxTables
from cdc_relay.config import load
from cdc_relay.delivery import Delivery
from cdc_relay.outbox.envelope import Encoder, Record
from cdc_relay.outbox.row import OutboxRow
from cdc_relay.outbox.statements import OutboxStatements
from tests.benchmarks.catchup import FilledOutbox
from tests.benchmarks.relay import Topic
from tests.benchmarks.servers import Servers

_CHUNK = 1_000


class _Recorded:
    """A stream that was received before."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = iter(pieces)

    def receive(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        pass


class _NoKafka:
    """A publisher that keeps nothing."""

    in_flight = 0

    def publish(self, record: Record, report: Callable[[Any, Any], None]) -> None:
        pass

    def outcome(self, error: Any, message: Any) -> tuple[int, None]:
        return 0, None

    def poll(self, timeout_s: float) -> int:
        return 0


def by_step(servers: Servers, *, rows: int, rows_each: int) -> Iterator[tuple[str, float]]:
    """``(step, microseconds a row)``."""
    filled = FilledOutbox(servers, rows=rows, rows_each=rows_each)
    topic = Topic(servers, filled.topic_name)
    try:
        yield from _steps(filled, servers, rows)
    finally:
        topic.delete()
        filled.drop()


def _steps(filled: FilledOutbox, servers: Servers, count: int) -> Iterator[tuple[str, float]]:
    pieces: list[bytes] = []
    yield "receive", _timed(count, lambda: pieces.extend(_receive(filled, servers)))

    engine = create_engine(filled.outbox.url)
    with engine.connect() as connection:
        columns = describe_table(connection, "agent_outbox_messages")
    tables = OutboxTables(str(engine.url.database), "agent_outbox_messages", lambda: columns)
    source = BinlogSource(_Recorded(pieces), filled.checkpoint.position, tables, on_unsupported=print)
    rows: list[OutboxRow] = []
    read = _timed(count, lambda: rows.extend(row for _ in pieces for batch in source.read() for row in batch.rows))
    yield "frame, verify, decode", read

    encode = Encoder(UTC).encode
    records: list[Record] = []
    yield "envelope, JSON check", _timed(count, lambda: records.extend(map(encode, rows)))
    delivery = Delivery(_NoKafka(), lambda _: None, path="tail")
    yield (
        "delivery",
        _timed(count, lambda: [delivery.send(row[0], record) for row, record in zip(rows, records, strict=True)]),
    )

    producer = Producer(
        {"bootstrap.servers": servers.bootstrap_servers, "acks": "all", "enable.idempotence": True, "linger.ms": 0}
        | {"queue.buffering.max.messages": 1_000_000, "queue.buffering.max.kbytes": 2_097_151}
    )

    def produce() -> None:
        for topic, key, value, headers in records:
            producer.produce(topic, value, key, headers=headers, on_delivery=delivery.report)

    yield "produce", _timed(count, produce)
    yield "deliver and answer", _timed(count, lambda: producer.flush(120), clock=time.process_time)

    statements = OutboxStatements()
    ids = sorted(row.id for row in rows)

    def write_back() -> None:
        for at in range(0, len(ids), _CHUNK):
            with engine.begin() as connection:
                statements.mark_published(connection, ids[at : at + _CHUNK], 0, datetime(2026, 1, 1))

    yield "write-back", _timed(count, write_back)
    engine.dispose()


def _receive(filled: FilledOutbox, servers: Servers) -> list[bytes]:
    settings = load(
        {"database.url": filled.outbox.url, "kafka.bootstrap_servers": servers.bootstrap_servers}, environ={}
    )
    dump = DumpConnection(settings.database, settings.tail, 2**31, filled.checkpoint.position, None)
    pieces: list[bytes] = []
    left = filled.binlog_bytes
    while left > 0:
        pieces.append(dump.receive())
        left -= len(pieces[-1])
    dump.close()
    return pieces


def _timed(count: int, work: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    gc.disable()  # all rows are kept at once here, which the relay never does
    begun = clock()
    work()
    spent = clock() - begun
    gc.enable()
    return spent / count * 1e6
