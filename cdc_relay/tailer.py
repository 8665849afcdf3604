"""THE data path of the binlog, top to bottom: source → route → envelope → publisher → status writer → watermark.

One thread reads and publishes: ``Tailer.run_once``, and ``Tailer.catch_up`` for what only the table can tell. Another
takes Kafka's answers and writes them back (``writeback.StatusWriter``), which moves the watermark, which is saved
(``checkpoint.Checkpointer``).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, tzinfo
from operator import attrgetter

from cdc_relay.binlog.batches import TransactionBatch
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.delivery import Delivery, Publisher
from cdc_relay.errors import RowError
from cdc_relay.outbox.clock import Clock, due_bound
from cdc_relay.outbox.envelope import Encoder
from cdc_relay.outbox.row import Due, OutboxRow
from cdc_relay.outbox.status import Status
from cdc_relay.parking import SharedParking
from cdc_relay.quick_send import QuickSender
from cdc_relay.sources import LookUp, PendingSource, SentBefore, TransactionSource
from cdc_relay.untouched import UntouchedRows
from cdc_relay.watermark import AckWatermark

#: How long to wait for Kafka's answers when there is no room, before looking again.
_FULL_WAIT_S = 0.005

#: Pauses before the looks at the pending rows: a transaction stands in the binlog a moment before others see its rows
#: in the table, and on a busy server the moment may be long. What is slower than that is left to the sweep.
_LOOKS_S = (0.0, 0.02, 0.2)

#: Ids asked for in one SELECT.
_LOOKUP_ROWS = 1000


class Tailer:
    """Sends the rows that the binlog gives, each once, in order; and those that only the table can tell."""

    def __init__(
        self,
        source: TransactionSource,
        pending: Callable[[], PendingSource],
        publisher: Publisher,
        watermark: AckWatermark,
        parking: SharedParking,
        look_up: LookUp,
        complete: Callable[[Delivery], None],
        *,
        head: Callable[[], BinlogPosition],
        wait: Callable[[float], bool],
        zone: tzinfo,
        untouched: Callable[[int, int], range | set[int]] | None = None,
        acknowledged: BinlogPosition | None = None,
        sent_before: SentBefore | None = None,
        max_unacknowledged_rows: int = 1_000_000,
    ) -> None:
        """``complete`` takes each delivery when Kafka has answered for all of it (``StatusWriter.complete``).

        ``head`` asks the server where its binlog ends now. ``wait`` sleeps so many seconds, or less when the tailer
        must stop, and then it is true. ``untouched`` is what ``UntouchedRows`` asks; without it every row that may
        have been sent before is read from the table.

        Rows up to where the binlog ends now may have been sent before: only those that the table still calls pending
        are sent again. Up to ``acknowledged`` Kafka has had every row that was this tailer's to send, whatever the
        table says; of those sent from the table it has what ``sent_before`` remembers. So a restart makes next to no
        duplicates: as many as ``max_unacknowledged_rows`` and one batch.
        """
        self._source = source
        self._pending = pending
        self._publisher = publisher
        self._watermark = watermark
        self._parking = parking
        self._look_up = look_up
        self._complete = complete
        self._head = head
        self._wait = wait
        self._zone = zone
        encoder = Encoder(zone)
        self._encode = encoder.encode
        self._quick = QuickSender(publisher, parking.held, encoder)
        self._untouched = UntouchedRows(untouched) if untouched else None
        self._acknowledged = acknowledged
        self._sent_before = sent_before
        self._max_unacknowledged_rows = max_unacknowledged_rows
        self._settled_until: BinlogPosition | None = head()
        self._reached = watermark.position
        self._caught_up_to: BinlogPosition | None = None
        self.is_behind = False
        """Whether there is more to send than was sent; then whatever can wait had better wait."""

    def run_once(self, now: Clock) -> int:
        """Read once and send; how many rows were sent. Nothing is read while too much is in flight.

        ``now`` is asked when rows have come: asked before the wait for them, it would find each a moment in the future.

        Raises what source, publisher and look-up raise; then this tailer is of no use, and a new one begins at the
        watermark.
        """
        if self._is_full:
            self._take_answers()
            return 0
        sent = 0
        for batch in self._source.read():
            while self._is_full:
                if self._take_answers():
                    return sent
            sent += self._deliver(batch, now(), "tail")
            self._reached = batch.end or self._reached
            if batch.unreadable and not self._is_caught_up(batch.end):
                # Its rows must not be overtaken, so they are sent from the table before anything else is.
                hold = self._watermark.track(batch.end, committed_at=batch.committed_at, rows=0, size=0)
                if not self.catch_up(now):
                    break
                self._watermark.resolve(hold)
        self.is_behind = self._source.has_more
        return sent

    def catch_up(self, now: Clock) -> bool:
        """Send every fresh row that is pending in the table, in id order; false when stopped before the end.

        At a start without a usable checkpoint, and where the binlog holds what cannot be read.
        """
        # What is under way is still pending in the table; it must be written before the table is asked.
        if not self._settled():
            return False
        before = self._head()
        if self._sent_before is not None:
            self._sent_before.begin()
        for pause_s in _LOOKS_S:
            if self._wait(pause_s):
                return False
            pending = self._pending()
            while not pending.exhausted:
                self.is_behind = True
                if self._wait(0):
                    return False
                for batch in pending.read():
                    while self._is_full:
                        if self._take_answers():
                            return False
                    self._deliver(batch, now(), "reconcile")
            if not self._settled():
                return False
        if self._sent_before is not None:
            self._sent_before.reset()
        self._caught_up_to = before
        self._settled_until = self._head()
        if self._untouched is not None:
            self._untouched.forget()
        return True

    def _settled(self) -> bool:
        """Wait until nothing is in flight; false when stopped first."""
        self.is_behind = False  # nothing is sent meanwhile
        while self._watermark.in_flight_rows:
            if self._take_answers():
                return False
        return True

    @property
    def _is_full(self) -> bool:
        return self._watermark.full or self._publisher.in_flight >= self._max_unacknowledged_rows

    def _take_answers(self) -> bool:
        """What there is to do while there is no room; true when the tailer must stop."""
        self._publisher.poll(_FULL_WAIT_S)
        return self._wait(0)

    def _is_caught_up(self, end: BinlogPosition | None) -> bool:
        return end is not None and self._caught_up_to is not None and end <= self._caught_up_to

    def _deliver(self, batch: TransactionBatch, now: datetime, path: str) -> int:
        rows = batch.rows
        if rows and path == "tail" and (batch.doubtful or not self._is_unsent(batch)):
            rows = self._committed(rows)
        ticket = self._watermark.track(
            batch.end if not batch.unreadable or self._is_caught_up(batch.end) else None,
            committed_at=batch.committed_at,
            rows=len(rows),
            size=batch.size if rows else 0,
        )
        note: Callable[[], None] | None = None

        def complete(delivery: Delivery) -> None:
            if delivery.all_acknowledged:
                self._watermark.acknowledge(ticket)
                if note is not None:
                    note()
            self._complete(delivery)

        delivery = Delivery(
            self._publisher,
            complete,
            path=path,
            committed_at=batch.committed_at,
            on_settled=lambda: self._watermark.resolve(ticket),
        )
        due = Due.at(due_bound(now, self._zone))
        if path == "reconcile" and self._sent_before is not None:
            rows = self._leave_acknowledged(rows, self._sent_before.has, due.wall, delivery)
        elif path == "tail" and self._is_acknowledged(batch):
            # A row that was scheduled may have been left to the sweep then, and be due now: it counts as not sent.
            rows = self._leave_acknowledged(rows, attrgetter("is_sent_at_once"), due.wall, delivery)
        at = 0
        while (at := self._quick.run(rows, at, due, delivery)) < len(rows):
            if self._is_ours(rows[at], due.wall):
                self._send(rows[at], delivery)
            at += 1
        if path == "reconcile" and self._sent_before is not None:
            sent = set(delivery.sent)
            note = self._sent_before.noting([row for row in rows if row.id in sent])
        if delivery.sent or delivery.failed or delivery.parked:
            delivery.close()
        else:
            self._watermark.resolve(ticket)  # nothing to wait for: the position moves on
        # Here too, and not only on the thread that writes statuses: as long as rows keep coming that one sleeps, or
        # the two would fight for the interpreter at every answer.
        self._publisher.poll(0)
        return len(delivery.sent)

    def _send(self, row: OutboxRow, delivery: Delivery) -> None:
        if self._parking:
            behind = self._parking.blocked_by(row.message_key, row.id)
            if behind is not None:
                self._parking.hold_unwritten(row.message_key, row.id)
                delivery.parked[row.id] = behind
                return
        try:
            delivery.send(row.id, self._encode(row))
        except RowError as reason:
            self._parking.refused(row.message_key, row.id, reason)
            delivery.failed[row.id] = reason

    def _is_ours(self, row: OutboxRow, due: datetime) -> bool:
        """Whether the row is to be sent now. Others leave the watermark as they are: the table has them."""
        if row.is_fresh:
            return not row.is_scheduled(due)
        if row.status == Status.PENDING:
            # Tried before and waiting for the sweep: later rows of its key wait with it.
            self._parking.hold(row.message_key, row.id)
        return False

    def _is_unsent(self, batch: TransactionBatch) -> bool:
        """Whether it is certain that no row of the batch was sent before."""
        if not self._may_have_been_sent():
            return True
        return self._untouched is not None and self._untouched.has_all([row.id for row in batch.rows])

    def _is_acknowledged(self, batch: TransactionBatch) -> bool:
        """Whether Kafka had the rows of the batch before this tailer began."""
        if self._acknowledged is None or batch.end is None or batch.unreadable:
            return False
        if batch.end > self._acknowledged:
            self._acknowledged = None  # from here on all is new
            return False
        return True

    def _leave_acknowledged(
        self, rows: list[OutboxRow], is_acknowledged: Callable[[OutboxRow], bool], due: datetime, delivery: Delivery
    ) -> list[OutboxRow]:
        """Put rows that Kafka has into the delivery as they are; the others."""
        others = []
        for row in rows:
            if is_acknowledged(row) and self._is_ours(row, due):
                delivery.add_acknowledged(row.id)
            else:
                others.append(row)
        return others

    def _may_have_been_sent(self) -> bool:
        # Where the batch begins counts, not where it ends: it may hold transactions from before and behind.
        if self._settled_until is not None and self._reached >= self._settled_until:
            self._settled_until = None
        return self._settled_until is not None

    def _committed(self, rows: list[OutboxRow]) -> list[OutboxRow]:
        """The rows as the table has them, in the order of the binlog; those that are gone are left out."""
        ids = list(dict.fromkeys(row.id for row in rows))  # one may have been inserted, deleted and inserted again
        found: dict[int, OutboxRow] = {}
        for at in range(0, len(ids), _LOOKUP_ROWS):
            found |= {row.id: row for row in self._look_up(ids[at : at + _LOOKUP_ROWS])}
        return [found[row_id] for row_id in ids if row_id in found]
