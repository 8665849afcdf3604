"""THE data path of the table, top to bottom: due rows → lease → envelope → publisher → status writer.

The sweep makes delivery certain: it sends rows whose retry is due, scheduled rows whose time has come, and whatever the
tailer missed (``fresh_rows.py``).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from threading import Event

from sqlalchemy import Connection

from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.delivery import Delivery, Publisher
from cdc_relay.errors import RowError
from cdc_relay.fresh_rows import FreshRows, TailProgress
from cdc_relay.metrics import RelayMetrics
from cdc_relay.outbox.clock import due_bound, to_column
from cdc_relay.outbox.envelope import encode
from cdc_relay.outbox.parking import Ordering
from cdc_relay.outbox.row import OutboxRow
from cdc_relay.outbox.sql import PendingRow
from cdc_relay.outbox.statements import OutboxStatements
from cdc_relay.parked_rows import ParkedRows
from cdc_relay.parking import SharedParking
from cdc_relay.unconsumed import UnconsumedRows
from cdc_relay.unmarked import UnmarkedRows

#: Due rows looked at in one run, without those that are known to be held back; the next run goes on with what is left.
_SCAN_ROWS = 10_000

#: Payload bytes read and sent together.
_PAGE_BYTES = 16 * 2**20

#: The next attempt of a failed row is no farther away, unless ``retry.cap_s`` is longer: the consumer may have another
#: one. What lies beyond was scheduled by the application.
_LONGEST_WAIT_S = 3_600.0

#: How often a sweep that waits for Kafka looks whether it must stop.
_SETTLE_WAIT_S = 0.2


@dataclass(frozen=True, slots=True)
class SweepCounts:
    """What one run did, in rows."""

    sent: int = 0
    held_back: int = 0
    """Due, but behind an earlier row of their key."""
    left_to_tailer: int = 0
    more: bool = False
    """Another run would find work at once."""


class Sweeper:
    """Sends due rows from the table. One thread runs it."""

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[Connection]],
        statements: OutboxStatements,
        publisher: Publisher,
        parking: SharedParking,
        metrics: RelayMetrics,
        *,
        head: Callable[[], BinlogPosition],
        tail_progress: Callable[[], TailProgress],
        complete: Callable[[Delivery], None],
        now: Callable[[], datetime],
        stopping: Callable[[], bool],
        zone: tzinfo,
        batch_rows: int,
        lease_s: float,
        backoff_cap_s: float = 0.0,
        redeliver_published_after_s: float = 0.0,
        marks_tailed: bool = True,
        safe_bytes: float = math.inf,
    ) -> None:
        """``head`` asks the server where its binlog ends now. ``complete`` is ``StatusWriter.complete``.

        While a page waits for Kafka its leases are renewed by ``now``, until ``stopping`` says so.
        ``backoff_cap_s``: how far away the next attempt of a failed row may be, if that is longer than an hour.
        ``redeliver_published_after_s``: 0 for never. Without ``marks_tailed`` the tailer's rows stay pending until a
        consumer marks them; those that are pending so long after they were written are sent again, and marked.
        A row larger than ``safe_bytes`` may be refused by Kafka, so nothing of its key is sent right behind it.
        """
        self._transaction = transaction
        self._statements = statements
        self._publisher = publisher
        self._parking = parking
        self._metrics = metrics
        self._complete = complete
        self._now = now
        self._stopping = stopping
        self._zone = zone
        self._batch_rows = batch_rows
        self._lease_s = lease_s
        self._longest_wait = timedelta(seconds=max(_LONGEST_WAIT_S, backoff_cap_s))
        self._fresh_rows = FreshRows(head, tail_progress)
        self._parked_rows = ParkedRows(parking, transaction, statements)
        self._unconsumed_rows = UnconsumedRows(
            transaction, statements, metrics, after_s=redeliver_published_after_s, batch_rows=batch_rows, zone=zone
        )
        self._unmarked_rows = UnmarkedRows(statements, sent_for_s=redeliver_published_after_s, zone=zone)
        self._marks_tailed = marks_tailed
        self._safe_bytes = safe_bytes
        self._keeps_order = parking.ordering is not Ordering.NONE
        self._dead_block = parking.ordering is Ordering.BLOCK_ON_DEAD

    def run_once(self, now: datetime) -> SweepCounts:
        """Send what is due at ``now`` and wait until its statuses are written.

        Raises DatabaseUnavailable, KafkaUnavailable or ProducerFatal; leased rows come back when their lease ends.
        """
        due = due_bound(now, self._zone)
        self._parked_rows.look()
        self._metrics.parked_keys.set(self._parking.keys)
        self._metrics.blocked_keys.set(self._parking.blocked_keys)
        redelivering = self._unconsumed_rows.put_back(now)
        lowest_waiting: dict[bytes, int] = {}
        with self._transaction() as connection:
            if self._keeps_order:
                until = due_bound(now + self._longest_wait, self._zone)
                for row_id, key in self._statements.waiting(connection, due, until, _SCAN_ROWS):
                    lowest_waiting.setdefault(key, row_id)
            found, held_back = self._look(connection, now, due)
        ours, left = self._fresh_rows.without_the_tailers(found)
        sent = postponed = 0
        left_behind: set[bytes] = set()
        for page in _pages(ours, self._batch_rows):
            if self._stopping():
                break
            page_sent, page_held, page_postponed = self._sweep_page(page, lowest_waiting, left_behind, due)
            sent, held_back, postponed = sent + page_sent, held_back + page_held, postponed + page_postponed
        self._metrics.sweep_runs.inc()
        self._metrics.sweep_rows.labels(outcome="sent").inc(sent)
        self._metrics.sweep_rows.labels(outcome="held_back").inc(held_back)
        # At once while keys are held back: rows that come meanwhile are held back too, and the faster they are sent the
        # sooner a busy key is the tailer's again.
        draining = self._parking.keys > self._parking.blocked_keys
        more = sent > 0 and (postponed > 0 or draining or len(found) >= _SCAN_ROWS or redelivering)
        return SweepCounts(sent, held_back, left, more)

    def _look(self, connection: Connection, now: datetime, due: datetime) -> tuple[list[PendingRow], int]:
        """The due rows that may be sent now, and how many cannot: they are known to wait behind a row that is not due.

        The latter may be many, and stay so for long, when their key waits for an operator: they cost no more than a
        look at the index, and take no room from others.
        """
        if not self._marks_tailed:
            page = self._unmarked_rows.due(connection, now, _SCAN_ROWS)
            waiting = self._parking.stuck([row.id for row in page])
            return [row for row in page if row.id not in waiting], len(waiting)
        found: list[PendingRow] = []
        stuck = after = 0
        while len(found) < _SCAN_ROWS:
            page = self._statements.due(connection, due, _SCAN_ROWS, after)
            waiting = self._parking.stuck([row.id for row in page])
            found += [row for row in page if row.id not in waiting]
            stuck += len(waiting)
            if len(page) < _SCAN_ROWS:
                break
            after = page[-1].id
        return found, stuck

    def _sweep_page(
        self, page: list[PendingRow], lowest_waiting: dict[bytes, int], left_behind: set[bytes], due: datetime
    ) -> tuple[int, int, int]:
        """Lease and send one page: rows sent, held back, and postponed to the next run.

        ``left_behind`` are the keys of which this run, in this page or an earlier one, did not send a row.
        """
        rows: list[OutboxRow] = []
        going: set[int] = set()
        held_back = postponed = 0
        alone: set[bytes] = set()
        without_a_note: defaultdict[int, list[int]] = defaultdict(list)
        dead = self._parking.dead
        with self._transaction() as connection:
            found = self._statements.lock_due(connection, [row.id for row in page], due)
            held = [row.id for row in found if row.held and self._keeps_order]
            parked = self._statements.behind_published(connection, held) if held else set()
            requeued = self._statements.requeued(connection, held) if held and self._dead_block else set()
            for row in found:
                key = row.message_key if self._keeps_order else b""
                if row.id in parked:
                    held_back += 1
                elif key in alone:
                    postponed += 1  # the row before it may fail again
                    left_behind.add(key)
                elif (ahead := self._blocked_by(key, row.id, lowest_waiting, going)) is not None:
                    held_back += 1
                    left_behind.add(key)
                    if ahead in dead:  # for long, perhaps: the next look passes over it
                        self._parking.hold(key, row.id)
                    if not row.held and ahead not in self._parking.unwritten:
                        without_a_note[ahead].append(row.id)
                elif key in left_behind:
                    postponed += 1
                else:
                    rows.append(row)
                    going.add(row.id)
                    if key and (row.retry_count > 0 or row.id in requeued or row.size > self._safe_bytes):
                        alone.add(key)
            for ahead, ids in without_a_note.items():
                self._statements.hold_back(connection, ids, ahead, to_column(self._now(), self._zone))
            if rows:
                self._lease(connection, rows)
        if rows:
            self._send(rows)
        return len(rows), held_back, postponed

    def _send(self, rows: list[OutboxRow]) -> None:
        """Send leased rows and wait until their statuses are written."""
        settled = Event()
        delivery = Delivery(
            self._publisher,
            self._complete,
            path="sweep",
            on_settled=settled.set,
            retry_counts={row.id: row.retry_count for row in rows},
        )
        going: set[int] = set()
        for row in rows:
            behind = self._parking.blocked_by(row.message_key, row.id, going)
            if behind is not None:  # the row before it has just failed
                delivery.parked[row.id] = behind
                continue
            try:
                delivery.send(row.id, encode(row, self._zone))
                going.add(row.id)
            except RowError as reason:
                self._parking.refused(row.message_key, row.id, reason)
                delivery.failed[row.id] = reason
        delivery.close()
        renew_at = self._now() + timedelta(seconds=self._lease_s / 3)
        while not settled.wait(_SETTLE_WAIT_S) and not self._stopping():
            if self._now() >= renew_at:  # Kafka is away: keep the rows ours
                with self._transaction() as connection:
                    self._lease(connection, rows)
                renew_at = self._now() + timedelta(seconds=self._lease_s / 3)

    def _blocked_by(
        self, key: bytes, row_id: int, lowest_waiting: dict[bytes, int], going: Container[int]
    ) -> int | None:
        if not key:
            return None
        waiting = lowest_waiting.get(key)
        if waiting is not None and waiting < row_id:
            return waiting
        return self._parking.blocked_by(key, row_id, going)

    def _lease(self, connection: Connection, rows: Iterable[OutboxRow]) -> None:
        now = self._now()
        until = to_column(now + timedelta(seconds=self._lease_s), self._zone)
        self._statements.lease(connection, [row.id for row in rows], until, to_column(now, self._zone))


def _pages(rows: list[PendingRow], batch_rows: int) -> Iterator[list[PendingRow]]:
    """``rows`` in pages bounded by number and by payload bytes; a larger row makes a page of its own."""
    page: list[PendingRow] = []
    size = 0
    for row in rows:
        if page and (len(page) == batch_rows or size + row.size > _PAGE_BYTES):
            yield page
            page, size = [], 0
        page.append(row)
        size += row.size
    if page:
        yield page
