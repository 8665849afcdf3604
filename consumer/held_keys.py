"""The keys that a worker holds back. What it remembers of them stands in the table.

That has the last word: an operator or another program may have decided on a row meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from itertools import islice

from cdc_relay.outbox.parking import Ordering, Parking
from cdc_relay.outbox.row import LockedRow
from consumer.unit_of_work import UnitOfWork

#: Ids of one key that are asked for at a time when a row seems to be blocked.
ASKED_AHEAD = 100


class HeldKeys:
    """A worker's ``parking``, and how it is kept true to the table. One thread uses it."""

    def __init__(self, ordering: Ordering) -> None:
        self.parking = Parking(ordering)
        self._dead_too = ordering is Ordering.BLOCK_ON_DEAD
        self._assignments = 0

    def refill(self, assignments: int, transaction: Callable[[], AbstractContextManager[UnitOfWork]]) -> None:
        """Learn from the table what others have put back, when partitions have come since the last time.

        ``assignments``: how often some have come.
        """
        if assignments == self._assignments or self.parking.ordering is Ordering.NONE:
            return
        with transaction() as work:
            self.parking.clear()
            for waiting in work.outbox.unsettled(work.connection, dead_too=self._dead_too):
                self.parking.hold(waiting.message_key, waiting.id)
        self._assignments = assignments

    def still_open(self, work: UnitOfWork, rows: Mapping[int, LockedRow]) -> dict[int, datetime | None]:
        """The ids that may block ``rows``, as the table knows them now; those that ended unseen are released.

        Dead rows that come once more are among them where they block: only the table knows which ones were let go.
        """
        dead = {row.id for row in rows.values() if row.is_dead} if self._dead_too else set()
        while self.parking or dead:
            keys: dict[int, bytes] = {}
            for row in rows.values():
                ahead = (i for i in self.parking.ahead_of(row.message_key, row.id) if i not in rows)
                keys |= dict.fromkeys(islice(ahead, ASKED_AHEAD), row.message_key)
            if not keys and not dead:
                return {}
            still_open = work.outbox.still_open(work.connection, [*keys, *dead], dead_too=self._dead_too)
            ended = keys.keys() - still_open.keys()
            if not ended:
                return still_open
            for row_id in ended:
                self.parking.release(keys[row_id], row_id)
        return {}
