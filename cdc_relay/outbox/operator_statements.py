"""The operator's SQL statements on the outbox table, one method a statement. What holds for all of them: ``sql.py``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from cdc_relay.outbox.backoff import LAST_ERROR_CHARACTERS
from cdc_relay.outbox.fetch import fetch
from cdc_relay.outbox.sql import DISCARDED, IS_DISCARDED, REQUEUED, TableStatements, with_ids, word


class OperatorStatements(TableStatements):
    """What an operator asks about the table, and decides about dead rows."""

    def count_by_status(self, connection: Connection) -> dict[str, int]:
        """Rows per status, over the index. Changes nothing."""
        sql = f"SELECT status, COUNT(*) AS n FROM {self.table} GROUP BY status"
        return {row.status: int(row.n) for row in connection.execute(text(sql))}

    def oldest_pending(self, connection: Connection) -> Row[Any] | None:
        """Times, retry_count and last_error of the pending row with the lowest id. Changes nothing."""
        sql = (
            f"SELECT id, created_at, next_retry_at, retry_count, last_error FROM {self.table} "
            f"WHERE id = (SELECT MIN(id) FROM {self.by_status} WHERE status = 'pending')"
        )
        return connection.execute(text(sql)).first()

    def dead(self, connection: Connection, limit: int) -> list[Row[Any]]:
        """The latest ``limit`` dead rows, newest first, with why. Changes nothing."""
        sql = (
            "SELECT id, biz_type, topic, CONVERT(message_key USING utf8mb4) AS message_key, retry_count, created_at, "
            f"updated_at, last_error FROM {self.table} JOIN (SELECT id FROM {self.by_status} WHERE status = 'dead' "
            "ORDER BY id DESC LIMIT :limit) AS latest USING (id) ORDER BY id DESC"
        )
        return list(connection.execute(text(sql), {"limit": limit}))

    def pending_topics(self, connection: Connection, limit: int = 1_000) -> list[str]:
        """The topics of the ``limit`` oldest pending rows. Changes nothing."""
        sql = (
            f"SELECT DISTINCT topic FROM {self.table} JOIN (SELECT id FROM {self.by_status} WHERE status = 'pending' "
            "ORDER BY id LIMIT %(limit)s) AS oldest USING (id)"
        )
        return [word(topic) for (topic,) in fetch(connection, sql, {"limit": limit})]

    def requeue_dead(self, connection: Connection, ids: Sequence[int] | None, now: datetime) -> int:
        """dead -> pending, by an operator: these ids (None: all), with all their retries; the sweep delivers them.

        The note in ``last_error`` is what keeps later rows of the key behind it, over restarts of either program.
        """
        sql = (
            f"UPDATE {self.table} SET retry_count = 0, next_retry_at = :now, last_error = {_noted(REQUEUED)}, "
            "published_at = NULL, updated_at = :now, status = 'pending' WHERE status = 'dead'"
        )
        return _of_these(connection, sql, ids, now)

    def discard_dead(self, connection: Connection, ids: Sequence[int] | None, now: datetime) -> int:
        """dead -> dead, by an operator: these ids (None: all) are let go, and hold back nobody any more.

        Rows that were let go before are left as they are.
        """
        sql = (
            f"UPDATE {self.table} SET last_error = {_noted(DISCARDED)}, updated_at = :now "
            f"WHERE status = 'dead' AND NOT {IS_DISCARDED}"
        )
        return _of_these(connection, sql, ids, now)


def _of_these(connection: Connection, sql: str, ids: Sequence[int] | None, now: datetime) -> int:
    """Run ``sql`` for these ids, or as it is when they are None; how many rows it has changed."""
    if ids is None:
        return connection.execute(text(sql), {"now": now}).rowcount
    return connection.execute(with_ids(sql + " AND id IN :ids"), {"now": now, "ids": list(ids)}).rowcount


def _noted(note: str) -> str:
    """``last_error`` with ``note`` before the reason that stands there, as long as it may be."""
    return f"LEFT(CONCAT('{note}', COALESCE(last_error, '')), {LAST_ERROR_CHARACTERS})"
