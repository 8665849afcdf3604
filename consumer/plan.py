"""What becomes of each record of a batch: a pure decision over locked rows, parked keys and known refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from cdc_relay.errors import PoisonRow, RowError
from cdc_relay.outbox.backoff import NextAttempt
from cdc_relay.outbox.parking import Parking
from cdc_relay.outbox.row import LockedRow
from consumer.delivery import Delivery
from consumer.registry import Event


class Outcome(StrEnum):
    """What became of a record; each has exactly one."""

    CONSUMED = "consumed"
    """Its effect is committed now."""
    DUPLICATE = "duplicate"
    """Its row was finished, or put back, before."""
    FAILED = "failed"
    """Its row is tried again later."""
    PARKED = "parked"
    """Its row waits for an earlier row of its key."""
    DEAD = "dead"
    """Its row is dead now."""
    NO_ROW = "no_row"
    """It names no row that there is: it is in the dead-letter topic."""


Counts = Counter[Outcome]


class Failure(NamedTuple):
    """A row that has failed, what that makes of it, and why."""

    row: LockedRow
    attempt: NextAttempt
    """Its time as a column has it."""
    reason: str


@dataclass(slots=True)
class Plan:
    """Every record of a batch is in exactly one of these."""

    events: dict[str, list[Event[Any]]] = field(default_factory=dict)
    """To be applied, by biz_type, in the order in which they came."""
    consumed: list[LockedRow] = field(default_factory=list)
    """The rows of these events, where they were read."""
    failures: list[Failure] = field(default_factory=list)
    parked: dict[tuple[int, datetime], list[LockedRow]] = field(default_factory=dict)
    """To be put back into the table: by the id that each waits for, and the time of their next attempt."""
    waiting: list[LockedRow] = field(default_factory=list)
    """Already put back, by us before a crash or by the key's former owner: nothing is written."""
    missing: list[Delivery] = field(default_factory=list)
    """No such row: deleted, or never one of this table."""
    finished: list[LockedRow] = field(default_factory=list)
    """Consumed or dead before: nothing is written."""
    blocking: list[LockedRow] = field(default_factory=list)
    """Dead before, and their keys wait for an operator: nothing is written."""
    repeated: int = 0
    """Records whose row this batch has met before."""

    @property
    def is_plain(self) -> bool:
        """Every record was met for the first time, and is consumed now."""
        unusual = (self.failures, self.parked, self.waiting, self.missing, self.finished, self.blocking)
        return not (any(unusual) or self.repeated)

    def counts(self) -> Counts:
        """How many records of each outcome; those without a row count once they are in the dead-letter topic."""
        dead = sum(failure.attempt.at is None for failure in self.failures)
        return Counter(
            {
                Outcome.CONSUMED: sum(map(len, self.events.values())),
                Outcome.DUPLICATE: sum(map(len, (self.finished, self.blocking, self.waiting))) + self.repeated,
                Outcome.FAILED: len(self.failures) - dead,
                Outcome.PARKED: sum(map(len, self.parked.values())),
                Outcome.DEAD: dead,
            }
        )

    def update(self, parking: Parking) -> None:
        """Tell ``parking`` what the table holds once this plan is committed."""
        if parking:
            for row in (*self.finished, *self.consumed):
                parking.release(row.message_key, row.id)
        for failure in self.failures:
            (parking.died if failure.attempt.at is None else parking.hold)(failure.row.message_key, failure.row.id)
        for rows in (*self.parked.values(), self.waiting, self.blocking):
            for row in rows:
                parking.hold(row.message_key, row.id)


def make_plan(
    deliveries: Sequence[Delivery],
    rows: Mapping[int, LockedRow],
    parking: Parking,
    still_open: Mapping[int, datetime | None],
    refused: Mapping[int, RowError],
    next_attempt: Callable[[LockedRow], NextAttempt],
    soon: datetime,
) -> Plan:
    """Decide on ``deliveries``, in the order in which they came.

    ``rows``: the locked rows by id. ``parking``: as it was before the batch; not changed. ``still_open``: the ids held
    in it, other than ``rows``, that may block a row of the batch, with the time of their next attempt where they have
    one; ids that are missing here no longer block. Dead ids block where dead rows do, also those of ``rows``.
    ``refused``: what earlier attempts at this batch have found out. ``next_attempt``: what one more failure makes of a
    row. ``soon``: the next attempt of a row that waits for one that is on its way, or dead, and has no time.
    """
    plan = Plan()
    here = Parking(parking.ordering)  # what this batch itself puts back
    due: dict[int, datetime] = {}  # the next attempts of those
    seen: set[int] = set()

    def waits(row_id: int) -> bool:
        """Whether an id held before the batch still waits; those met already are in ``here`` if they do."""
        row = rows.get(row_id)
        if row is None or row.is_dead:
            return row_id in still_open
        return row.is_open and row_id not in seen

    def blocked_by(row: LockedRow) -> int | None:
        """The lowest id of the key that waits ahead of ``row``, also by what the batch has decided so far."""
        before = next((i for i in parking.ahead_of(row.message_key, row.id) if waits(i)), None)
        within = here.blocked_by(row.message_key, row.id)
        return min((i for i in (before, within) if i is not None), default=None)

    for delivery in deliveries:
        row = rows.get(delivery.outbox_id or 0)
        if row is None:
            plan.missing.append(delivery)
            continue
        if row.id in seen:
            plan.repeated += 1
            continue
        error = refused.get(row.id)
        blocker = blocked_by(row) if parking or here else None
        seen.add(row.id)
        if not row.is_open:
            if row.id in still_open:
                plan.blocking.append(row)
                here.hold(row.message_key, row.id)
            else:
                plan.finished.append(row)
        elif row.is_scheduled:
            plan.waiting.append(row)
            here.hold(row.message_key, row.id)
            due[row.id] = row.next_retry_at or soon
        elif isinstance(error, PoisonRow):  # it has no effect whose order could matter
            plan.failures.append(Failure(row, NextAttempt(row.retry_count + 1, None), str(error)))
            here.died(row.message_key, row.id)
        elif blocker is not None:
            at = due.get(blocker) or still_open.get(blocker) or soon
            plan.parked.setdefault((blocker, at), []).append(row)
            here.hold(row.message_key, row.id)
            due[row.id] = at
        elif error is not None:
            failure = Failure(row, next_attempt(row), str(error))
            plan.failures.append(failure)
            if failure.attempt.at is None:
                here.died(row.message_key, row.id)
            else:
                here.hold(row.message_key, row.id)
                due[row.id] = failure.attempt.at
        else:
            plan.events.setdefault(delivery.biz_type, []).append(Event(row, delivery.payload))
            plan.consumed.append(row)
    return plan
