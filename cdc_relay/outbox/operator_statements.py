"""The operator's SQL statements on the outbox table, one method a statement. What holds for all of them: ``sql.py``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from cdc_relay.outbox.backoff import LAST_ERROR_CHARACTERS
from cdc_relay.outbox.fetch import fetch
from cdc_relay.outbox.sql import DISCARDED, IS_DISCARDED, REQUEUED, TableStatements, with_ids, word

#: Consumed rows that are counted one by one.
CONSUMED_TO = 1_000_000


class OperatorStatements(TableStatements):
    """What an operator asks about the table, and decides about dead rows."""

    def count_by_status(self, connection: Connection, *, consumed_to: int = CONSUMED_TO) -> dict[str, int]:
        """Rows per status, over the index; of consumed ones no more than ``consumed_to`` are counted. Changes nothing.

        There may be hundreds of millions of those, and to count a million takes the server 0.1 s.
        """
        sql = (
            f"SELECT status, COUNT(*) FROM {self.table} WHERE status <> 'consumed' GROUP BY status UNION ALL "
            f"SELECT 'consumed', COUNT(*) FROM (SELECT 1 FROM {self.table} WHERE status = 'consumed' "
            f"LIMIT {consumed_to:d}) AS consumed"
        )
        return {status: int(rows) for status, rows in connection.execute(text(sql)) if rows}

    def estimated_rows(self, connection: Connection) -> int:
        """How many rows the table has, as the server supposes; 0 when it does not know. Changes nothing."""
        sql = "SELECT TABLE_ROWS FROM INFORMATION_SCHEMA.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = :table"
        return int(connection.execute(text(sql), {"table": self.name}).scalar() or 0)

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

    def dead_ids(self, connection: Connection, after_id: int, limit: int) -> list[int]:
        """The lowest ``limit`` dead rows above ``after_id``, in id order. Changes nothing."""
        sql = f"SELECT id FROM {self.by_status} WHERE status = 'dead' AND id > {after_id:d} ORDER BY id LIMIT {limit:d}"
        return [int(row_id) for row_id in connection.execute(text(sql)).scalars()]

    def requeue_dead(self, connection: Connection, ids: Sequence[int], now: datetime) -> int:
        """dead -> pending, by an operator, with all their retries; the sweep delivers them.

        The note in ``last_error`` is what keeps later rows of the key behind it, over restarts of either program.
        """
        sql = (
            f"UPDATE {self.table} SET retry_count = 0, next_retry_at = :now, last_error = {_noted(REQUEUED)}, "
            "published_at = NULL, updated_at = :now, status = 'pending' WHERE status = 'dead' AND id IN :ids"
        )
        return connection.execute(with_ids(sql), {"now": now, "ids": list(ids)}).rowcount

    def discard_dead(self, connection: Connection, ids: Sequence[int], now: datetime) -> int:
        """dead -> dead, by an operator: these rows are let go, and hold back nobody any more.

        Rows that were let go before are left as they are.
        """
        sql = (
            f"UPDATE {self.table} SET last_error = {_noted(DISCARDED)}, updated_at = :now "
            f"WHERE status = 'dead' AND NOT {IS_DISCARDED} AND id IN :ids"
        )
        return connection.execute(with_ids(sql), {"now": now, "ids": list(ids)}).rowcount


def _noted(note: str) -> str:
    """``last_error`` with ``note`` before the reason that stands there, as long as it may be."""
    return f"LEFT(CONCAT('{note}', COALESCE(last_error, '')), {LAST_ERROR_CHARACTERS})"
