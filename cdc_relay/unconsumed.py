"""Rows that were published long ago and are not consumed: Kafka may have lost their records, so they are sent again.

To look for them the server reads every published row, some 4 µs each, and while a consumer is far behind there may be
millions. So one run of the sweep looks at a page of them, and when all were seen, nobody looks again before the oldest
can have waited too long.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta, tzinfo

from sqlalchemy import Connection

from cdc_relay.logs import get_logger
from cdc_relay.metrics import RelayMetrics
from cdc_relay.outbox.clock import from_column, to_column
from cdc_relay.outbox.statements import OutboxStatements

log = get_logger(__name__)

#: Published rows that one run looks at; those found among them are put back in batches.
_PAGE_ROWS = 100_000

#: Seconds between two looks at least.
_PAUSE_S = 30.0


class UnconsumedRows:
    """Remembers between runs of the sweep what the last look has found, and when the next is worth while."""

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[Connection]],
        statements: OutboxStatements,
        metrics: RelayMetrics,
        *,
        after_s: float,
        batch_rows: int,
        zone: tzinfo,
    ) -> None:
        """``after_s``: how long a row may be published without being consumed; 0 for ever."""
        self._transaction = transaction
        self._statements = statements
        self._metrics = metrics
        self._after = timedelta(seconds=after_s)
        self._pause = timedelta(seconds=min(_PAUSE_S, after_s / 4))
        self._batch_rows = batch_rows
        self._zone = zone
        self._found: list[int] = []
        self._seen_to = 0
        """The last id of the page before, while not all have been looked at."""
        self._oldest: datetime | None = None
        """When the oldest one was published of those that were seen since the beginning."""
        self._look_at = datetime.min.replace(tzinfo=UTC)

    def put_back(self, now: datetime) -> bool:
        """Make a batch of them pending, so that they take the way of all due rows; whether there may be more."""
        if not self._after or (not self._found and now < self._look_at):
            return False
        before = to_column(now - self._after, self._zone)
        with self._transaction() as connection:
            if not self._found:
                self._look(connection, now, before)
            batch, self._found = self._found[: self._batch_rows], self._found[self._batch_rows :]
            ids = self._statements.lock_unconsumed(connection, batch, before) if batch else []
            if ids:
                self._statements.put_back(connection, ids, to_column(now, self._zone))
        if ids:
            self._metrics.sweep_rows.labels(outcome="redelivered").inc(len(ids))
            log.warning(
                f"{len(ids)} rows were published more than {self._after.total_seconds():g} s ago and are not consumed; "
                "they are sent again. Is the consumer running?",
                action="redelivered",
                rows=len(ids),
            )
        return bool(self._found) or self._seen_to > 0

    def _look(self, connection: Connection, now: datetime, before: datetime) -> None:
        page = self._statements.published_page(connection, self._seen_to, _PAGE_ROWS)
        self._oldest = min(filter(None, (self._oldest, page.oldest)), default=None)
        if page.oldest is not None and page.oldest <= before:
            self._found = self._statements.unconsumed(connection, before, self._seen_to, _PAGE_ROWS)
        if page.rows == _PAGE_ROWS:
            self._seen_to = page.last_id
            return
        since = now if self._oldest is None else min(now, from_column(self._oldest, self._zone))
        self._look_at = max(since + self._after, now + self._pause)
        self._seen_to, self._oldest = 0, None
