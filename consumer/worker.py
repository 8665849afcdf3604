"""THE data path of the consumer: records -> deliveries -> plan -> handlers -> one transaction -> offsets.

Follow a record from ``run_once`` downwards. Three durable steps, in this order, so that a crash between any two makes
a record come again and never makes it vanish: the dead letter is acknowledged, the transaction is committed, the
offset moves. What comes again finds its row consumed or dead and does nothing (P5).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from threading import Event as StopFlag
from typing import Any, Protocol

from cdc_relay.errors import DatabaseError, PoisonRow, RelayError, RowError
from cdc_relay.logs import OncePerKind, get_logger
from cdc_relay.outbox.backoff import Backoff, NextAttempt, after_failure
from cdc_relay.outbox.clock import Clock, to_column, utc_now
from cdc_relay.outbox.envelope import MalformedEnvelope, decode
from cdc_relay.outbox.parking import Ordering
from cdc_relay.outbox.row import LockedRow
from consumer.delivery import DeadLetter, Delivery, KafkaRecord, NoRow, Partition, SentRow
from consumer.held_keys import HeldKeys
from consumer.plan import Counts, Outcome, Plan, make_plan
from consumer.registry import Event, HandlerRegistry, Refused
from consumer.unit_of_work import UnitOfWork, UnitOfWorkFactory

Wait = Callable[[float], None]
RideOut = Callable[[Callable[[], None], Wait], None]
"""``ride_out(action, wait)``: run ``action`` until it raises nothing retriable, calling ``wait(seconds)`` in between.

Raises the last error when the program is told to stop meanwhile, and whatever is not retriable."""

log = get_logger(__name__)
_troubles = OncePerKind(log, every_s=60.0)


class Source(Protocol):
    """Where records come from; see ``KafkaSource``."""

    assignments: int

    def next_batch(self) -> list[KafkaRecord]: ...
    def keep_alive(self, seconds: float) -> set[Partition]: ...
    def commit(self, records: Iterable[KafkaRecord]) -> None: ...


class Worker:
    """Takes a batch, applies it, commits its offsets; one thread, no state but the keys that are held back."""

    def __init__(
        self,
        *,
        source: Source,
        registry: HandlerRegistry,
        unit_of_work: UnitOfWorkFactory,
        bury: Callable[[Sequence[DeadLetter]], None],
        ride_out: RideOut,
        backoff: Backoff,
        zone: tzinfo,
        ordering: Ordering = Ordering.SKIP_DEAD,
        clock: Clock = utc_now,
        on_turn: Callable[[Counts, float, int], None] = lambda counts, seconds, parked_keys: None,
    ) -> None:
        """``bury`` returns once dead letters are acknowledged. ``on_turn`` is told after each turn of the loop what
        became of the records, the seconds that the batch took, and how many keys are held back."""
        self._source = source
        self._registry = registry
        self._unit_of_work = unit_of_work
        self._bury_letters = bury
        self._ride_out = ride_out
        self._backoff = backoff
        self._zone = zone
        self._clock = clock
        self._on_turn = on_turn
        self._held_keys = HeldKeys(ordering)
        self._is_plain = False  # the last batch held nothing but rows that were met for the first time

    def run(self, stop: StopFlag) -> None:
        """Until ``stop`` is set. Raises RelayError for what waiting does not cure."""
        while not stop.is_set():
            try:
                self.run_once(self._clock)
            except RelayError as error:
                if not (error.retriable and stop.is_set()):
                    raise
                log.warning(
                    f"stopped during an outage ({error}); the batch in hand is read again after the next start",
                    action="batch_abandoned",
                )

    def run_once(self, now: Clock = utc_now) -> Counts:
        """Take one batch, if there is one, through to its committed offsets; what became of its records."""
        counts = Counts()
        batch = [self._read(record) for record in self._source.next_batch()]
        started = time.perf_counter()
        if batch:

            def wait(seconds: float) -> None:
                lost = self._source.keep_alive(seconds)
                batch[:] = [delivery for delivery in batch if delivery.record.home not in lost]

            self._ride_out(lambda: self._settle(batch, counts, now), wait)
            self._source.commit(delivery.record for delivery in batch)
        self._on_turn(counts, time.perf_counter() - started, self._held_keys.parking.keys)
        return counts

    # --- one record ----------------------------------------------------------------------------------------------

    def _read(self, record: KafkaRecord) -> Delivery:
        """As far as it can be understood without the database."""
        delivery = Delivery(record)
        try:
            envelope = decode(record.value)
            delivery.outbox_id, delivery.biz_type = envelope.outbox_id, envelope.biz_type
            delivery.payload = self._registry.read(envelope.biz_type, envelope.payload)
        except (MalformedEnvelope, PoisonRow) as error:
            delivery.refusal = error
        return delivery

    # --- one batch -----------------------------------------------------------------------------------------------

    def _settle(self, batch: Sequence[Delivery], counts: Counts, now: Clock) -> None:
        """Bring every delivery to its end. May be called again after it was interrupted by any error."""
        self._held_keys.refill(self._source.assignments, lambda: self._unit_of_work(now()))
        self._bury([delivery for delivery in batch if delivery.refusal is not None])
        self._apply([delivery for delivery in batch if not delivery.is_settled], counts, now)
        self._bury([delivery for delivery in batch if delivery.refusal is not None])  # those that name no row
        for delivery in batch:
            if not delivery.is_settled:
                delivery.is_settled = True
                counts[Outcome.NO_ROW] += 1

    def _bury(self, deliveries: Sequence[Delivery]) -> None:
        """Put a copy of each into the dead-letter topic, unless it is there."""
        deliveries = [delivery for delivery in deliveries if not delivery.is_buried]
        self._bury_letters([DeadLetter(delivery.record, str(delivery.refusal)) for delivery in deliveries])
        for delivery in deliveries:
            delivery.is_buried = True
            _troubles.error(
                f"{type(delivery.refusal).__name__} {delivery.biz_type}",
                f"record {delivery.record} has no usable row and is kept in the dead-letter topic: {delivery.refusal}",
                action="dead_letter",
                outbox_id=delivery.outbox_id,
            )

    def _apply(self, deliveries: Sequence[Delivery], counts: Counts, now: Clock) -> None:
        """Apply those that name a row, in one transaction.

        A handler says which events it refuses: they are left out the next time. The database only says that it refuses
        *something*: then the deliveries are halved until the one at fault stands alone and costs only itself.
        """
        by_id = _first_of_each(deliveries)
        if not by_id:
            return
        refused = {row_id: d.refusal for row_id, d in by_id.items() if isinstance(d.refusal, RowError)}
        while True:
            try:
                plan = self._transact(deliveries, refused, now())
            except Refused as refusal:
                reasons = dict(refusal.reasons)
            except RowError as error:
                if len(by_id) > 1:
                    middle = len(deliveries) // 2
                    self._apply(deliveries[:middle], counts, now)
                    self._apply(deliveries[middle:], counts, now)
                    return
                reasons = dict.fromkeys(by_id, error)
            else:
                counts.update(plan.counts())
                self._note(deliveries, plan)
                return
            if reasons.keys() <= refused.keys():
                raise DatabaseError(f"rows are refused again after they were left out: {reasons}")
            for row_id, reason in reasons.items():
                if isinstance(reason, PoisonRow):
                    by_id[row_id].refusal = reason
                    self._bury([by_id[row_id]])
            refused |= reasons

    def _transact(self, deliveries: Sequence[Delivery], refused: Mapping[int, RowError], now: datetime) -> Plan:
        """One transaction. Raises whatever a handler or the database raises, nothing being kept."""
        deliveries = [delivery for delivery in deliveries if delivery.outbox_id is not None]
        if self._is_plain and not refused and not self._held_keys.parking:
            plan = self._transact_unseen(deliveries, now)
            if plan is not None:
                return plan
        plan = self._transact_seen(deliveries, refused, now)
        self._is_plain = plan.is_plain
        return plan

    def _transact_unseen(self, deliveries: Sequence[Delivery], now: datetime) -> Plan | None:
        """Mark, apply, commit; None, nothing being kept, when a row among them needs a look.

        The UPDATE that marks the rows locks them as well, and its count tells whether each was still to be consumed.
        So the rows of an ordinary batch, which are all met for the first time, need not be read.
        """
        events: dict[str, list[Event[Any]]] = {}
        for delivery in deliveries:
            written_at = delivery.record.written_at(self._zone)
            if written_at is None or delivery.outbox_id is None:
                return None
            row = SentRow(delivery.outbox_id, written_at)
            events.setdefault(delivery.biz_type, []).append(Event(row, delivery.payload))
        published = self._published(_first_of_each(deliveries), now)
        with self._unit_of_work(now) as work:
            found = work.outbox.consume_undecided(work.connection, published, work.now)
            if found == len(deliveries):
                self._handle(work, events)
                work.commit()
                return Plan(events)
        return None

    def _transact_seen(self, deliveries: Sequence[Delivery], refused: Mapping[int, RowError], now: datetime) -> Plan:
        """Lock and read, decide, apply, mark, commit."""
        with self._unit_of_work(now) as work:
            rows = work.outbox.lock_rows(work.connection, sorted(_first_of_each(deliveries)))
            plan = make_plan(
                deliveries,
                rows,
                self._held_keys.parking,
                self._held_keys.still_open(work, rows),
                refused,
                next_attempt=lambda row: self._next_attempt(row, now),
                soon=to_column(now + timedelta(seconds=self._backoff.delay_s(1)), self._zone),
            )
            self._handle(work, plan.events)
            self._mark(work, plan, self._published(_first_of_each(deliveries), now))
            work.commit()
        plan.update(self._held_keys.parking)
        return plan

    def _handle(self, work: UnitOfWork, events: Mapping[str, Sequence[Event[Any]]]) -> None:
        for biz_type, of_type in events.items():
            self._registry.apply(work, biz_type, of_type)

    def _mark(self, work: UnitOfWork, plan: Plan, published: Mapping[int, datetime]) -> None:
        """Write what becomes of each row."""
        if plan.consumed:
            consumed = {row.id: published[row.id] for row in plan.consumed}
            work.outbox.mark_consumed(work.connection, consumed, work.now)
        for failure in plan.failures:
            work.outbox.mark_failed(work.connection, failure.row.id, failure.attempt, failure.reason, work.now)
        for (behind, at), rows in plan.parked.items():
            work.outbox.park(work.connection, [row.id for row in rows], behind, at, work.now)

    def _published(self, by_id: Mapping[int, Delivery], now: datetime) -> dict[int, datetime]:
        """When each row was published, as its column has it, for those that the relay has not marked.

        By the record's time, but never later than ``now``: the clocks may differ.
        """
        wall_now = to_column(now, self._zone)
        walls: dict[int, datetime] = {0: wall_now}
        for delivery in by_id.values():
            at_ms = delivery.record.timestamp_ms
            if at_ms not in walls:
                walls[at_ms] = to_column(min(now, datetime.fromtimestamp(at_ms / 1000, UTC)), self._zone)
        return {row_id: walls[delivery.record.timestamp_ms] for row_id, delivery in by_id.items()}

    def _next_attempt(self, row: LockedRow, now: datetime) -> NextAttempt:
        attempt = after_failure(row.retry_count, row.max_retry, now, self._backoff)
        return attempt if attempt.at is None else NextAttempt(attempt.retry_count, to_column(attempt.at, self._zone))

    def _note(self, deliveries: Sequence[Delivery], plan: Plan) -> None:
        """After the commit: what is settled, and a word to the operator about what went wrong."""
        for delivery in plan.missing:
            delivery.refusal = delivery.refusal or NoRow(f"the outbox has no row with id {delivery.outbox_id}")
        missing = {id(delivery) for delivery in plan.missing}
        for delivery in deliveries:
            if delivery.outbox_id is not None and id(delivery) not in missing:
                delivery.is_settled = True
        for row, attempt, reason in plan.failures:
            if attempt.at is None:
                _troubles.error("dead", f"row {row.id} is dead: {reason}", action="row_dead", outbox_id=row.id)
            else:
                _troubles.warning(
                    "failed",
                    f"row {row.id} has failed and is tried again at {attempt.at}: {reason}",
                    action="row_failed",
                    outbox_id=row.id,
                    attempt=attempt.retry_count,
                )


def _first_of_each(deliveries: Iterable[Delivery]) -> dict[int, Delivery]:
    """By outbox id, the delivery that counts where a record came more than once; without those that name no row."""
    first: dict[int, Delivery] = {}
    for delivery in deliveries:
        if delivery.outbox_id is not None:
            first.setdefault(delivery.outbox_id, delivery)
    return first
