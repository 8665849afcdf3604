"""Rows that were published long ago and are not consumed: Kafka may have lost their records, so they are sent again.

To look for them the server reads every published row, some 4 µs each, and while a consumer is far behind there may be
millions. So the oldest is asked for first, and nobody looks before that one can have waited too long.
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

#: Ids that one look brings at most; they are put back in batches.
_FOUND_ROWS = 10_000

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
        return bool(self._found) or now >= self._look_at

    def _look(self, connection: Connection, now: datetime, before: datetime) -> None:
        oldest = self._statements.oldest_published(connection)
        if oldest is None or oldest > before:
            since = now if oldest is None else min(now, from_column(oldest, self._zone))
            self._look_at = max(since + self._after, now + self._pause)
            return
        self._found = self._statements.unconsumed(connection, before, _FOUND_ROWS)
        self._look_at = now if len(self._found) == _FOUND_ROWS else now + self._pause
