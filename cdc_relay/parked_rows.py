"""The parking and the table: what is held back stands in the table, and the parking must not differ from it for long.

It is read when a relay begins to work (``refill``), and looked at again before each sweep (``ParkedRows``), since an
operator or another program may have decided on a row meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy import Connection

from cdc_relay.logs import get_logger
from cdc_relay.outbox.parking import Ordering
from cdc_relay.outbox.statements import OutboxStatements
from cdc_relay.parking import SharedParking

log = get_logger(__name__)

#: Ids asked about at a time.
_LOOKED_AT = 10_000

Transaction = Callable[[], AbstractContextManager[Connection]]


def refill(parking: SharedParking, transaction: Transaction, statements: OutboxStatements, *, held: bool) -> None:
    """Learn what is held back, as a relay must that was away or is another one. ``held`` is false when it is known that
    nothing was when the checkpoint was saved; of dead rows, and of those that were requeued since, nobody can know."""
    dead_too = parking.ordering is Ordering.BLOCK_ON_DEAD
    if dead_too or (held and parking.ordering is not Ordering.NONE):
        with transaction() as connection:
            for row_id, key in statements.held_rows(connection, dead_too=dead_too):
                parking.hold(key, row_id)


class ParkedRows:
    """Looks at the rows that hold back their keys. One thread uses it."""

    def __init__(self, parking: SharedParking, transaction: Transaction, statements: OutboxStatements) -> None:
        self._parking = parking
        self._transaction = transaction
        self._statements = statements
        self._gone: set[int] = set()
        self._told: frozenset[int] = frozenset()

    def look(self) -> None:
        """Release rows that were ended elsewhere, and hold back the keys of those that have died there."""
        if self._parking.ordering is Ordering.NONE:
            return
        decided = self._look_for_the_dead() if self._parking.ordering is Ordering.BLOCK_ON_DEAD else frozenset()
        waiting = self._parking.waiting(_LOOKED_AT)
        gone: set[int] = set()
        if waiting:
            with self._transaction() as connection:
                gone = set(waiting) - self._statements.still_pending(connection, waiting)
            # Seen twice: a row that the tailer holds stands in the binlog a moment before the table shows it to others.
            self._parking.release(gone & (self._gone | decided))
        self._gone = gone

    def _look_for_the_dead(self) -> frozenset[int]:
        """Hold back the keys of dead rows; those that were dead before and that an operator has decided on since."""
        known = self._parking.dead  # before the table is asked: what dies meanwhile is not taken for decided on
        with self._transaction() as connection:
            dead = {row.id: row.message_key for row in self._statements.blocking_dead(connection)}
        for row_id in dead.keys() - known:
            self._parking.died(dead[row_id], row_id)
        decided = known - dead.keys()
        self._parking.revived(decided)
        if news := sorted(row_id for row_id, key in dead.items() if key and row_id not in self._told):
            log.warning(
                f"dead rows hold back their message_key ({len(news)}, such as {news[:5]}): it goes on when they are "
                "delivered after `cdc-relay dead requeue`, or let go with `cdc-relay dead discard`",
                action="blocked",
                ids=news[:20],
            )
        self._told = frozenset(dead)
        return decided
