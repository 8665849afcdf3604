"""Due rows where rows stay pending when the tailer has sent them, until a consumer marks them.

Whether one of them is due stands in the row and in no index. While the consumer is away there may be millions, so one
run of the sweep looks at a page of them, and the next run at the next.
"""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo

from sqlalchemy import Connection

from cdc_relay.outbox.clock import due_bound
from cdc_relay.outbox.sql import PendingRow
from cdc_relay.outbox.statements import OutboxStatements

#: Pending rows that one run looks at: a second or two of the server's time, and a few where they are read from disk.
_PAGE_ROWS = 1_000_000


class UnmarkedRows:
    """Remembers between runs of the sweep how far the look has come."""

    def __init__(self, statements: OutboxStatements, *, sent_for_s: float, zone: tzinfo) -> None:
        """``sent_for_s``: how long a row may be pending before it counts as not sent."""
        self._statements = statements
        self._sent_for = timedelta(seconds=sent_for_s)
        self._zone = zone
        self._seen_to = 0
        self._began_at: datetime | None = None

    def due(self, connection: Connection, now: datetime, limit: int) -> list[PendingRow]:
        """The next of them in id order, at most ``limit``; from the beginning again when all were seen."""
        # All pages of a look go by the time at which it began: else a row might come due, and be sent, while an earlier
        # one of its key, which came due with it, lies in a page that was left behind.
        began_at = self._began_at or now
        page = self._statements.due_unmarked(
            connection,
            due_bound(began_at, self._zone),
            due_bound(began_at - self._sent_for, self._zone),
            self._seen_to,
            look_at=_PAGE_ROWS,
            limit=limit,
        )
        self._seen_to, self._began_at = page.seen_to or 0, began_at if page.seen_to else None
        return page.rows
