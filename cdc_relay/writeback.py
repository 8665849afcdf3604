"""What became of the rows, written to the table: the last part of both data paths.

``StatusWriter.run_once`` writes the statuses of every delivery that Kafka has answered for, in one transaction, and
only then settles it, which moves the watermark: a row leaves by a durable exit or not at all.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, tzinfo
from itertools import chain, islice
from queue import Empty, SimpleQueue

from sqlalchemy import Connection

from cdc_relay.delivery import Delivery
from cdc_relay.errors import KafkaUnavailable, RowError
from cdc_relay.metrics import RelayMetrics
from cdc_relay.outbox.backoff import Backoff, NextAttempt, after_failure
from cdc_relay.outbox.clock import to_column
from cdc_relay.outbox.statements import OutboxStatements
from cdc_relay.outbox.status import Status
from cdc_relay.parking import SharedParking

#: How many UPDATEs of ``batch_rows`` one transaction has at most.
_BATCHES_A_TRANSACTION = 4

Transaction = Callable[[], AbstractContextManager[Connection]]
"""Opens a transaction that commits at its end; raises DatabaseUnavailable and LeadershipLost."""


class StatusWriter:
    """Takes complete deliveries and writes what became of their rows. One thread runs it."""

    def __init__(
        self,
        transaction: Transaction,
        statements: OutboxStatements,
        parking: SharedParking,
        metrics: RelayMetrics,
        *,
        zone: tzinfo,
        backoff: Backoff,
        batch_rows: int,
        marks_tailed: bool = True,
        delay_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``marks_tailed`` is false when rows that the binlog brought are not to be marked (``writeback.mode = none``):
        Kafka's acknowledgement and the checkpoint say then that they were published. What was sent from the table is
        marked there all the same, so that it is not found there again.

        ``delay_s``, where it is not 0 (``writeback.mode = lazy``), leaves rows that the binlog brought to the consumer
        for so long after Kafka's answer, by ``clock``; then those are marked that it has not marked itself.
        """
        self._transaction = transaction
        self._statements = statements
        self._parking = parking
        self._metrics = metrics
        self._zone = zone
        self._backoff = backoff
        self._batch_rows = batch_rows
        self._marks_tailed = marks_tailed
        self._delay_s = delay_s
        self._clock = clock
        self._deferred: deque[tuple[float, Delivery]] = deque()
        """Deliveries that are left to the consumer, with the time at which that ends."""
        self._complete: SimpleQueue[Delivery] = SimpleQueue()
        self._unwritten: list[Delivery] = []
        self._late: list[Delivery] = []
        """Deliveries of which a row waits behind one of a delivery that is not complete yet."""
        self._given_up = False
        self._waiting_rows = 0

    def complete(self, delivery: Delivery) -> None:
        """Kafka has answered for the whole delivery; called on any thread."""
        if delivery.abandoned:
            self._given_up = True
            return
        if delivery.committed_at and delivery.sent:
            self._metrics.delivery_latency_seconds.observe(max(0.0, time.time() - delivery.committed_at))
        if self._delay_s and delivery.path == "tail" and not (delivery.failed or delivery.parked):
            self._deferred.append((self._clock() + self._delay_s, delivery))
            return
        self._complete.put(delivery)
        self._waiting_rows += len(delivery.sent)  # about: only to decide when to write

    @property
    def idle(self) -> bool:
        """Whether nothing complete waits to be written."""
        return self._complete.empty() and not self._unwritten and not self._deferred

    @property
    def has_full_batch(self) -> bool:
        """Whether enough is complete for the largest UPDATE."""
        return self._waiting_rows >= self._batch_rows or self._given_up

    def run_once(self, now: datetime, *, at_once: bool = False) -> int:
        """Write what is complete; how many rows were settled. ``at_once``: also what is left to the consumer still.

        Raises DatabaseUnavailable with everything kept for the next call, and KafkaUnavailable when records were given
        up, so that they must be read again.
        """
        if self._given_up:
            self._given_up = False
            raise KafkaUnavailable("records were given up before Kafka answered; they are read again")
        self._collect(at_once)
        batch = self._unwritten
        if not batch:
            return 0
        wall = to_column(now, self._zone)
        dead: list[tuple[bytes, int]] = []
        held: list[tuple[bytes, int]] = []
        marked = [delivery for delivery in batch if self._marks_tailed or delivery.path != "tail"]
        if marked or any(delivery.failed or delivery.parked for delivery in batch):
            with self._metrics.writeback_seconds.time(), self._transaction() as connection:
                self._write_published(connection, marked, wall)
                for delivery in batch:
                    for row_id, reason in delivery.failed.items():
                        self._write_failure(connection, delivery, row_id, reason, now, dead, held)
                self._write_parked(connection, batch, wall)
        self._unwritten = []
        if self._complete.empty():
            self._waiting_rows = 0
        for delivery in batch:
            self._parking.written(_rows(delivery))
        # Committed. Keys are held before their rows leave the watermark, and released after they are safe.
        for key, row_id in held:
            self._parking.hold(key, row_id)
        for key, row_id in dead:
            self._parking.died(key, row_id)
        for delivery in batch:
            self._parking.release(delivery.published)
            self._metrics.rows_published.labels(path=delivery.path).inc(len(delivery.published))
            delivery.settle()
        self._metrics.rows_dead.inc(len(dead))
        self._metrics.parked_keys.set(self._parking.keys)
        return sum(len(delivery.sent) for delivery in batch)

    def forget_late(self) -> None:
        """What waits for a delivery that will never be complete is going to be read again."""
        self._late = []

    def forget_given_up(self) -> None:
        """What was given up is going to be read again anyway."""
        self._given_up = False

    def _collect(self, at_once: bool) -> None:
        rows = sum(len(delivery.sent) for delivery in self._unwritten)
        writable = self._writable(at_once)
        while rows < _BATCHES_A_TRANSACTION * self._batch_rows and (delivery := next(writable, None)) is not None:
            self._unwritten.append(delivery)
            rows += len(delivery.sent)
        ready = self._unwritten + self._late
        while late := self._too_early(ready):
            ready = [delivery for delivery in ready if delivery not in late]
        self._late = [delivery for delivery in self._unwritten + self._late if delivery not in ready]
        self._unwritten = ready

    def _too_early(self, ready: list[Delivery]) -> list[Delivery]:
        """Those with a row that waits behind one of which nothing will stand in the table when these are written."""
        if not any(delivery.parked for delivery in ready):
            return []
        decided = {row_id for delivery in ready for row_id in _rows(delivery)}
        unwritten = self._parking.unwritten
        return [
            delivery
            for delivery in ready
            if any(ahead in unwritten and ahead not in decided for ahead in delivery.parked.values())
        ]

    def _writable(self, at_once: bool) -> Iterator[Delivery]:
        while True:
            try:
                yield self._complete.get_nowait()
            except Empty:
                break
        now = self._clock()
        if self._deferred and (at_once or self._deferred[0][0] <= now):
            # Those that have waited half as long go with the first, or each would cost a transaction of its own.
            while self._deferred and (at_once or self._deferred[0][0] <= now + self._delay_s / 2):
                yield self._deferred.popleft()[1]

    def _write_published(self, connection: Connection, batch: list[Delivery], wall: datetime) -> None:
        by_count: defaultdict[int, list[int]] = defaultdict(list)
        left_to_consumer: list[int] = []
        for delivery in batch:
            if delivery.retry_counts:
                for row_id in delivery.published:
                    by_count[delivery.retry_counts.get(row_id, 0)].append(row_id)
            elif self._delay_s and delivery.path == "tail":
                left_to_consumer += delivery.published
            else:
                by_count[0] += delivery.published
        for some in _chunks(left_to_consumer, self._batch_rows):
            by_count[0] += self._statements.unmarked(connection, some)
        for retry_count, ids in by_count.items():
            for some in _chunks(sorted(ids), self._batch_rows):
                self._statements.mark_published(connection, some, retry_count, wall)
                self._metrics.writeback_batch_rows.observe(len(some))

    def _write_failure(
        self,
        connection: Connection,
        delivery: Delivery,
        row_id: int,
        reason: RowError,
        now: datetime,
        dead: list[tuple[bytes, int]],
        held: list[tuple[bytes, int]],
    ) -> None:
        row = self._statements.lock_rows(connection, [row_id]).get(row_id)
        if row is None:
            return  # deleted meanwhile: nothing is left to deliver
        sent_with = delivery.retry_counts.get(row_id, 0)
        # An instant until here: seconds added to a wall time go wrong in the night when the clocks go back.
        attempt = after_failure(sent_with, row.max_retry, now, self._backoff).in_zone(self._zone)
        if not reason.retriable:
            attempt = NextAttempt(attempt.retry_count, None)
        wall = to_column(now, self._zone)
        if not self._statements.mark_undelivered(connection, row_id, sent_with, attempt, reason.message, wall):
            # Someone newer has decided on the row, or we have: the answer to the last commit may have been lost.
            if row.status == Status.PENDING:
                held.append((row.message_key, row_id))
            elif row.status == Status.DEAD:
                dead.append((row.message_key, row_id))
            return
        self._metrics.rows_failed.labels(kind=type(reason).__name__).inc()
        (dead if attempt.at is None else held).append((row.message_key, row_id))

    def _write_parked(self, connection: Connection, batch: list[Delivery], wall: datetime) -> None:
        behind: defaultdict[int, list[int]] = defaultdict(list)
        for delivery in batch:
            for row_id, blocking in delivery.parked.items():
                behind[blocking].append(row_id)
        for blocking, ids in behind.items():
            for some in _chunks(ids, self._batch_rows):
                self._statements.hold_back(connection, some, blocking, wall)
            self._metrics.rows_parked.inc(len(ids))


def _rows(delivery: Delivery) -> Iterable[int]:
    return chain(delivery.sent, delivery.failed, delivery.parked)


def _chunks(ids: Iterable[int], size: int) -> Iterable[Sequence[int]]:
    rest = iter(ids)
    while some := list(islice(rest, size)):
        yield some
