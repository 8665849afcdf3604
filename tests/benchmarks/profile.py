"""Where the processor time of a row goes: the data path in one thread, with a look at the clock between its steps.

Each received piece takes the whole way before the next one is received, as in the relay, so that what a step leaves is
in the processor's caches for the next one, and no more rows are in memory than the relay has. The steps are this
thread's time (``time.thread_time``); what the process took beyond it is librdkafka's threads. Waiting counts nowhere.

Checking, encoding and producing are one loop. Every few pieces it is run once more with a client that takes nothing;
that time is no part of the whole, and what it is less is the client's. Left out is what the relay does once a batch:
watermark, checkpoint, metrics.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from cdc_relay.bench.catchup import FilledOutbox
from cdc_relay.bench.figures import Figure, gather, metric
from cdc_relay.bench.relay import Variant
from cdc_relay.binlog.connection import DumpConnection
from cdc_relay.binlog.server import describe_table
from cdc_relay.binlog.source import BinlogSource
from cdc_relay.binlog.tables import OutboxTables
from cdc_relay.delivery import Delivery, Publisher
from cdc_relay.kafka.publisher import KafkaPublisher
from cdc_relay.outbox.database import transaction
from cdc_relay.outbox.envelope import Encoder, Record
from cdc_relay.outbox.row import Due, OutboxRow
from cdc_relay.outbox.statements import OutboxStatements
from cdc_relay.quick_send import QuickSender
from tests.benchmarks.lab import Lab, plural, renew

#: The loop is run once more at one piece of so many that have rows.
_SAMPLED = 8


@dataclass
class Steps:
    """Microseconds of processor time for a row."""

    receive: float = metric("receive", "µs/row")
    read: float = metric("frame, verify, decode", "µs/row")
    encode: float = metric("check, envelope, JSON, headers", "µs/row")
    produce: float = metric("produce", "µs/row")
    poll: float = metric("delivery reports", "µs/row")
    mark: float = metric("write-back", "µs/row")
    rest: float = metric("these looks at the clock", "µs/row")
    threads: float = metric("librdkafka's threads", "µs/row")
    total: float = metric("all", "µs/row")


def measure(lab: Lab) -> Iterator[Figure]:
    """With one row a transaction, and with many."""
    for rows_each in lab.sizes.rows_each:
        with lab.filled(lab.sizes.rows, rows_each) as filled:
            runs = lab.in_turn([Variant("status")], partial(by_step, filled))
        for figure in gather("profile", f"{plural(rows_each, 'row')} a transaction", "status", runs["status"]):
            yield replace(figure, variant=figure.metric, metric="processor time")  # on one scale


def by_step(filled: FilledOutbox, _: Variant) -> Steps:
    """One run over all rows."""
    renew(filled.outbox)
    path = _Path(filled)
    gc.collect()
    gc.freeze()  # as the relay does
    try:
        return path.run()
    finally:
        gc.unfreeze()
        path.close()


class _Path:
    """The parts of the data path, without the threads around them."""

    def __init__(self, filled: FilledOutbox) -> None:
        self._rows = filled.rows
        self._engine = filled.outbox.engine
        settings, start = filled.outbox.settings, filled.checkpoint.position
        with transaction(self._engine) as connection:
            columns = describe_table(connection, settings.database.table)
        tables = OutboxTables(filled.outbox.name, settings.database.table, lambda: columns)
        self._dump = DumpConnection(settings.database, settings.tail, 2**31, start, None)
        self._piece = _Received()
        self._source = BinlogSource(self._piece, start, tables, on_unsupported=print)
        self._publisher = KafkaPublisher(settings.kafka, logger=logging.getLogger("benchmarks"))
        self._most_in_flight = settings.tail.max_unacknowledged_rows
        self._encoder = Encoder(UTC)
        self._quick = QuickSender(self._publisher, (), self._encoder)
        self._due = Due.at(datetime.now(UTC).replace(tzinfo=None))
        self._statements = OutboxStatements(settings.database.table)
        self._batch_rows = settings.writeback.batch_rows
        self._answered: list[int] = []
        self._nowhere = _Nowhere({filled.topic.name})
        self._quick_nowhere = QuickSender(self._nowhere, (), self._encoder)

    def run(self) -> Steps:
        """From the first byte to the last row that is marked."""
        clock = time.thread_time
        steps = Steps(*[0.0] * len(fields(Steps)))
        sent = pieces = sampled = 0
        again = 0.0
        process_begun, begun = time.process_time(), clock()
        while sent < self._rows:
            at0 = clock()
            self._piece.data = self._dump.receive()
            at1 = clock()
            batches = self._source.read()
            at2 = clock()
            for batch in batches:
                self._send(batch.rows, self._publisher, self._quick)
            at3 = clock()
            self._take_answers(self._most_in_flight)
            at4 = clock()
            self._mark(self._batch_rows)
            at5 = clock()
            steps.receive += at1 - at0
            steps.read += at2 - at1
            steps.produce += at3 - at2
            steps.poll += at4 - at3
            steps.mark += at5 - at4
            here = sum(len(batch.rows) for batch in batches)
            sent += here
            pieces += here > 0
            if here and pieces % _SAMPLED == 1:
                for batch in batches:
                    self._send(batch.rows, self._nowhere, self._quick_nowhere)
                again += clock() - at5
                sampled += here
        at0 = clock()
        self._take_answers(1)
        at1 = clock()
        self._mark(1)
        steps.poll += at1 - at0
        steps.mark += clock() - at1
        this_thread = clock() - begun - again
        steps.total = time.process_time() - process_begun - again
        steps.encode = again / sampled * self._rows
        steps.produce -= steps.encode
        steps.threads = steps.total - this_thread
        steps.rest = this_thread - sum((steps.receive, steps.read, steps.encode, steps.produce, steps.poll, steps.mark))
        return Steps(*(getattr(steps, each.name) / self._rows * 1e6 for each in fields(Steps)))

    def close(self) -> None:
        self._dump.close()
        self._publisher.close()

    def _send(self, rows: Sequence[OutboxRow], publisher: Publisher, quick: QuickSender) -> None:
        delivery = Delivery(publisher, self._complete, path="tail")
        at = 0
        while (at := quick.run(rows, at, self._due, delivery)) < len(rows):
            delivery.send(rows[at].id, self._encoder.encode(rows[at]))  # such as the first of its topic
            at += 1
        delivery.close()

    def _complete(self, delivery: Delivery) -> None:
        self._answered.extend(delivery.published)

    def _take_answers(self, fewer_than: int) -> None:
        self._publisher.poll(0)
        while self._publisher.in_flight >= fewer_than:
            self._publisher.poll(0.005)

    def _mark(self, at_least: int) -> None:
        while len(self._answered) >= at_least:
            ids = sorted(self._answered[: self._batch_rows])
            del self._answered[: self._batch_rows]
            with transaction(self._engine) as connection:
                self._statements.mark_published(connection, ids, 0, datetime.now(UTC).replace(tzinfo=None))


class _Received:
    """A stream whose pieces are received elsewhere."""

    data = b""
    has_more = False

    def receive(self) -> bytes:
        return self.data

    def close(self) -> None:
        pass


class _Nowhere:
    """A publisher that takes everything and keeps nothing."""

    in_flight = 0

    def __init__(self, topics: set[str]) -> None:
        self.topics = topics

    def produce(self, *_: Any) -> None:
        pass

    def publish(self, record: Record, report: Any) -> None:
        pass

    def outcome(self, error: Any, message: Any) -> tuple[int, None]:
        return 0, None

    def poll(self, timeout_s: float) -> int:
        return 0
