"""The relay's SQL statements on the outbox table, one method a statement. What holds for all of them: ``sql.py``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

from cdc_relay.outbox.backoff import NextAttempt
from cdc_relay.outbox.fetch import fetch
from cdc_relay.outbox.row import OutboxRow
from cdc_relay.outbox.sql import (
    DEAD,
    HELD_BACK,
    IS_HELD,
    KEEPS_NOTE,
    PENDING_COLUMNS,
    REQUEUED,
    ROW_COLUMNS,
    PendingRow,
    TableStatements,
    WaitingRow,
    as_wall,
    failure,
    found_row,
    listed,
    pending_row,
    waiting_row,
    with_ids,
)

#: Ids that one statement reads the rows of at most.
_STRETCH_IDS = 50_000


class PublishedPage(NamedTuple):
    """Some published rows in id order."""

    rows: int
    last_id: int
    oldest: datetime | None
    """When that one was published which has waited longest."""


class UnmarkedPage(NamedTuple):
    """What was found in some pending rows in id order."""

    rows: list[PendingRow]
    seen_to: int | None
    """The id up to which they were looked at; None when there are no more."""


class OutboxStatements(TableStatements):
    """What the relay reads and writes."""

    # --- reading -----------------------------------------------------------------------------------------------

    def read_committed(self, connection: Connection, ids: Sequence[int]) -> list[OutboxRow]:
        """The rows with these ids, whatever their status, in id order. Changes nothing.

        A transaction stands in the binlog a moment before InnoDB shows it to others. A plain SELECT may miss it then;
        a shared lock waits for it instead.
        """
        sql = f"SELECT {ROW_COLUMNS} FROM {self.table} WHERE id IN ({listed(ids)}) ORDER BY id LOCK IN SHARE MODE"
        return [found_row(found) for found in fetch(connection, sql)]

    def untouched(self, connection: Connection, first: int, last: int) -> range | set[int]:
        """The ids from ``first`` to ``last`` of rows that are pending and were never tried. Changes nothing.

        A range when they follow one another without a gap, as they mostly do: then only three numbers are sent.
        """
        where = f"FROM {self.table} WHERE id BETWEEN :first AND :last AND status = 'pending' AND NOT ({IS_HELD})"
        values = {"first": first, "last": last}
        count, lowest, highest = connection.execute(text(f"SELECT COUNT(*), MIN(id), MAX(id) {where}"), values).one()
        if not count:
            return range(0)
        if count == highest - lowest + 1:
            return range(int(lowest), int(highest) + 1)
        return set(map(int, connection.execute(text(f"SELECT id {where}"), values).scalars()))

    def last_id(self, connection: Connection) -> int:
        """The highest id that is committed; 0 in an empty table. Changes nothing."""
        return int(connection.execute(text(f"SELECT COALESCE(MAX(id), 0) FROM {self.table}")).scalar_one())

    def next_page(
        self, connection: Connection, after_id: int, until_id: int, *, most_rows: int, most_bytes: int
    ) -> tuple[int, int] | None:
        """The ids behind which, and up to which, the next pending rows behind ``after_id`` are. Changes nothing.

        A page has ``most_rows``, or fewer that have ``most_bytes`` of payload together, but one at least. None when
        no row up to ``until_id`` is left. Only three numbers are sent, whatever the rows hold, and no statement reads
        more than ``_STRETCH_IDS`` rows: a table may hold any number that were consumed long ago.
        """
        most = most_rows
        while after_id < until_id:
            stretch_end = min(until_id, after_id + _STRETCH_IDS)
            sql = (
                "SELECT COUNT(*), COALESCE(SUM(size), 0), MAX(id) FROM (SELECT id, OCTET_LENGTH(payload) AS size "
                f"FROM {self._pending(after_id, stretch_end)} ORDER BY id LIMIT {most}) AS page"
            )
            rows, size, end = connection.exec_driver_sql(sql).one()
            if not rows:
                after_id = self._before_next_pending(connection, stretch_end, until_id)
            elif rows == 1 or size <= most_bytes:
                return after_id, int(end)
            else:
                most = max(1, min(rows - 1, int(rows * most_bytes / size)))
        return None

    def _before_next_pending(self, connection: Connection, after_id: int, until_id: int) -> int:
        """The id before the next pending row, or ``until_id``; by the index on status, which has the pending ones."""
        sql = (
            f"SELECT MIN(id) FROM {self.by_status} "
            f"WHERE status = 'pending' AND id > {after_id:d} AND id <= {until_id:d}"
        )
        found = connection.exec_driver_sql(sql).scalar()
        return until_id if found is None else int(found) - 1

    def pending(self, connection: Connection, after_id: int, until_id: int) -> list[OutboxRow]:
        """The pending rows behind ``after_id`` up to ``until_id``, in id order. Changes nothing."""
        sql = f"SELECT {ROW_COLUMNS} FROM {self._pending(after_id, until_id)} ORDER BY id"
        return [found_row(found) for found in fetch(connection, sql)]

    def _pending(self, after_id: int, until_id: int) -> str:
        stretch = f"id > {after_id:d} AND id <= {until_id:d}"
        return f"{self.table} FORCE INDEX (PRIMARY) WHERE {stretch} AND status = 'pending'"

    def due(self, connection: Connection, due_bound: datetime, limit: int, after_id: int = 0) -> list[PendingRow]:
        """The lowest ``limit`` due rows above ``after_id`` in id order. Changes nothing.

        Their ids come from the index on status and next_retry_at alone; only so many rows are touched as are returned.
        """
        sql = (
            f"SELECT {PENDING_COLUMNS} FROM {self.table} JOIN ("
            f"SELECT id FROM {self.by_status} WHERE status = 'pending' "
            "AND (next_retry_at <= %(due_bound)s OR next_retry_at IS NULL) AND id > %(after_id)s "
            "ORDER BY id LIMIT %(limit)s) AS lowest USING (id) ORDER BY id"
        )
        values = {"due_bound": due_bound, "after_id": after_id, "limit": limit}
        return [pending_row(found) for found in fetch(connection, sql, values)]

    def due_unmarked(
        self,
        connection: Connection,
        due_bound: datetime,
        sent_bound: datetime,
        after_id: int,
        *,
        look_at: int,
        limit: int,
    ) -> UnmarkedPage:
        """Like ``due``, where rows stay pending when they are sent from the binlog. Changes nothing.

        Of those, which were never tried and not scheduled for later, only the ones written before ``sent_bound``. That
        is to be read in the rows, at some 4 µs each, so only the lowest ``look_at`` pending ones are looked at.
        """
        pending = self._lowest("pending", after_id, look_at)
        count, end = connection.exec_driver_sql(f"SELECT COUNT(*), MAX(id) FROM ({pending}) AS page").one()
        sql = (
            f"SELECT {PENDING_COLUMNS} FROM {self.by_status} "
            f"WHERE status = 'pending' AND id > {after_id:d} AND id <= {end or after_id:d} "
            "AND (next_retry_at <= %(sent_bound)s "
            "OR next_retry_at IS NULL AND COALESCE(created_at, %(sent_bound)s) <= %(sent_bound)s "
            "OR next_retry_at > %(sent_bound)s AND next_retry_at <= %(due_bound)s "
            f"AND ({IS_HELD} OR next_retry_at > created_at + INTERVAL 1 SECOND)) ORDER BY id LIMIT {limit:d}"
        )
        values = {"due_bound": due_bound, "sent_bound": sent_bound}
        rows = [pending_row(found) for found in fetch(connection, sql, values)]
        if len(rows) == limit:
            return UnmarkedPage(rows, rows[-1].id)
        return UnmarkedPage(rows, int(end) if count == look_at else None)

    def waiting(self, connection: Connection, due_bound: datetime, until: datetime, limit: int) -> list[WaitingRow]:
        """Failed or parked rows whose next attempt is still to come, by ``until``, in id order. Changes nothing.

        The server reads every row that has such a time, and an application may have scheduled millions for later.
        """
        sql = (
            f"SELECT id, message_key FROM {self.by_status} WHERE status = 'pending' AND next_retry_at > :due_bound "
            "AND next_retry_at <= :until AND (retry_count > 0 OR last_error <> '') ORDER BY id LIMIT :limit"
        )
        found = connection.execute(text(sql), {"due_bound": due_bound, "until": until, "limit": limit})
        return [waiting_row(row) for row in found]

    def held_rows(self, connection: Connection, *, dead_too: bool = False) -> list[WaitingRow]:
        """Every failed or parked row, due or not: what a starting relay must hold back. Changes nothing.

        With ``dead_too`` also every dead row that nobody has let go.
        """
        return list(self._holding(connection, {"pending": IS_HELD} | (DEAD if dead_too else {})))

    def still_pending(self, connection: Connection, ids: Iterable[int]) -> set[int]:
        """Which of these ids are still pending. Changes nothing."""
        sql = f"SELECT id FROM {self.table} WHERE id IN :ids AND status = 'pending'"
        return set(connection.execute(with_ids(sql), {"ids": list(ids)}).scalars())

    def unmarked(self, connection: Connection, ids: Iterable[int]) -> set[int]:
        """Those of these ids, sent when they were fresh, that nobody has marked since. Changes nothing, locks nothing.

        Not those that a consumer has parked, nor those that were requeued: when their token is empty, it has been
        renewed for another delivery.
        """
        sql = f"SELECT id FROM {self.table} WHERE id IN ({listed(ids)}) AND published_at IS NULL AND NOT {KEEPS_NOTE}"
        return set(connection.exec_driver_sql(sql).scalars())

    def published_page(self, connection: Connection, after_id: int, limit: int) -> PublishedPage:
        """The lowest ``limit`` published rows above ``after_id``, in short. Changes nothing.

        Their ids come from the index on status alone, at some 0.3 µs for each published row; the rows of the page are
        read, at 4 µs each.
        """
        sql = (
            f"SELECT COUNT(*), MAX(id), MIN(published_at) FROM {self.table} "
            f"JOIN ({self._lowest('published', after_id, limit)}) AS lowest USING (id)"
        )
        rows, last_id, oldest = connection.exec_driver_sql(sql).one()
        return PublishedPage(int(rows), int(last_id or after_id), as_wall(oldest))

    def unconsumed(self, connection: Connection, published_before: datetime, after_id: int, limit: int) -> list[int]:
        """Those rows of such a page that are published since before that time; their ids in order. Changes nothing."""
        sql = (
            f"SELECT id FROM {self.table} JOIN ({self._lowest('published', after_id, limit)}) AS lowest USING (id) "
            "WHERE published_at <= %(before)s ORDER BY id"
        )
        return [int(row_id) for row_id in connection.exec_driver_sql(sql, {"before": published_before}).scalars()]

    def _lowest(self, status: str, after_id: int, limit: int) -> str:
        """A SELECT of ids that reads nothing but the index on status."""
        of = f"status = '{status}' AND id > {after_id:d}"
        return f"SELECT id FROM {self.by_status} WHERE {of} ORDER BY id LIMIT {limit:d}"

    def touch_none(self, connection: Connection) -> None:
        """Name every column that the relay writes, of no row: raises what a real write would. Changes nothing."""
        columns = ("status", "retry_count", "next_retry_at", "last_error", "published_at", "updated_at")
        assignments = ", ".join(f"{column} = {column}" for column in columns)
        connection.execute(text(f"UPDATE {self.table} SET {assignments} WHERE id = 0 AND FALSE"))

    # --- writing -----------------------------------------------------------------------------------------------

    def lock_due(self, connection: Connection, ids: Sequence[int], due_bound: datetime) -> list[OutboxRow]:
        """Lock those of ``ids`` that are still pending and due, in id order, passing over locked ones.

        Changes nothing by itself: ``lease`` follows in the same transaction.
        """
        sql = (
            f"SELECT {ROW_COLUMNS} FROM {self.table} WHERE id IN ({listed(ids)}) AND status = 'pending' "
            "AND (next_retry_at <= %(due_bound)s OR next_retry_at IS NULL) ORDER BY id FOR UPDATE SKIP LOCKED"
        )
        return [found_row(found) for found in fetch(connection, sql, {"due_bound": due_bound})]

    def lock_unconsumed(self, connection: Connection, ids: Sequence[int], published_before: datetime) -> list[int]:
        """Lock those of ``ids`` that are published since before that time, in id order, passing over locked ones.

        Changes nothing by itself: ``put_back`` follows in the same transaction.
        """
        sql = (
            f"SELECT id FROM {self.table} WHERE id IN ({listed(ids)}) AND status = 'published' "
            "AND published_at <= %(before)s ORDER BY id FOR UPDATE SKIP LOCKED"
        )
        return [int(row_id) for row_id in connection.exec_driver_sql(sql, {"before": published_before}).scalars()]

    def put_back(self, connection: Connection, ids: Sequence[int], now: datetime) -> int:
        """published -> pending, by the relay, for locked rows to be sent once more; ``retry_count`` stays."""
        sql = (
            f"UPDATE {self.table} SET next_retry_at = :now, published_at = NULL, updated_at = :now, status = 'pending' "
            "WHERE id IN :ids AND status = 'published'"
        )
        return connection.execute(with_ids(sql), {"ids": list(ids), "now": now}).rowcount

    def behind_published(self, connection: Connection, ids: Sequence[int]) -> set[int]:
        """Those of ``ids`` that a consumer has parked behind a row that is published. Changes nothing.

        That row is on its way to the consumer once more. Until it is consumed, these would only be parked again.
        """
        sql = (
            f"SELECT parked.id FROM {self.table} AS parked JOIN {self.table} AS ahead ON ahead.id = "
            "CAST(SUBSTRING_INDEX(SUBSTRING_INDEX(parked.last_error, '(id ', -1), ')', 1) AS UNSIGNED) "
            "WHERE parked.id IN :ids AND LEFT(parked.last_error, 7) = 'parked:' AND ahead.status = 'published'"
        )
        return set(map(int, connection.execute(with_ids(sql), {"ids": list(ids)}).scalars()))

    def requeued(self, connection: Connection, ids: Sequence[int]) -> set[int]:
        """Those of ``ids`` that were dead, were requeued, and have not failed since. Changes nothing."""
        sql = f"SELECT id FROM {self.table} WHERE id IN :ids AND LEFT(last_error, {len(REQUEUED)}) = '{REQUEUED}'"
        return set(map(int, connection.execute(with_ids(sql), {"ids": list(ids)}).scalars()))

    def lease(self, connection: Connection, ids: Sequence[int], until: datetime, now: datetime) -> int:
        """pending -> pending: keep locked rows from every other sweep until ``until``, and renew the delivery token."""
        sql = (
            f"UPDATE {self.table} SET next_retry_at = :until, published_at = NULL, updated_at = :now "
            "WHERE id IN :ids AND status = 'pending'"
        )
        return connection.execute(with_ids(sql), {"ids": list(ids), "until": until, "now": now}).rowcount

    def mark_published(self, connection: Connection, ids: Sequence[int], retry_count: int, now: datetime) -> int:
        """pending -> published, for rows acknowledged by Kafka that had ``retry_count`` when they were sent.

        Fills ``published_at`` of rows that the consumer has already marked consumed; never touches dead rows, nor rows
        that the consumer has meanwhile scheduled for a retry (their count has grown, or their token is filled).
        A row that was parked or requeued keeps saying so until it is consumed, as a failed one keeps its count: it now
        stands in Kafka behind later rows of its key, which a consumer that has just started must not let pass
        (``unsettled``).
        """
        sql = (
            f"UPDATE {self.table} SET published_at = %(now)s, updated_at = %(now)s, "
            f"last_error = IF(status = 'pending' AND NOT {KEEPS_NOTE}, "
            f"{self._cleared(connection)}, last_error), "
            "next_retry_at = IF(status = 'pending', NULL, next_retry_at), "
            "status = IF(status = 'pending', 'published', status) "
            f"WHERE id IN ({listed(ids)}) AND published_at IS NULL "
            "AND ((status = 'pending' AND retry_count = %(retry_count)s) OR status IN ('published', 'consumed'))"
        )
        return connection.exec_driver_sql(sql, {"retry_count": retry_count, "now": now}).rowcount

    def mark_undelivered(
        self, connection: Connection, row_id: int, retry_count: int, attempt: NextAttempt, reason: str, now: datetime
    ) -> int:
        """pending -> pending or dead, by the relay: Kafka refused the record, or none can be made of the row.

        Only a row that still has the ``retry_count`` it was sent with: anything else was decided by someone newer.
        """
        sql = (
            f"UPDATE {self.table} SET retry_count = :attempts, next_retry_at = :at, last_error = :reason, "
            "updated_at = :now, status = :status WHERE id = :id AND status = 'pending' AND retry_count = :retry_count"
        )
        values = failure(row_id, attempt, reason, now) | {"retry_count": retry_count}
        return connection.execute(text(sql), values).rowcount

    def hold_back(self, connection: Connection, ids: Sequence[int], behind: int, now: datetime) -> int:
        """pending -> pending, by the relay, for rows not sent yet that must wait for row ``behind`` of their key.

        The note in ``last_error`` is what a restart finds them by.
        """
        sql = (
            f"UPDATE {self.table} SET last_error = :reason, updated_at = :now "
            "WHERE id IN :ids AND status = 'pending' AND retry_count = 0 AND published_at IS NULL "
            f"AND NOT {KEEPS_NOTE}"
        )
        values = {"ids": list(ids), "reason": f"{HELD_BACK} (id {behind})", "now": now}
        return connection.execute(with_ids(sql), values).rowcount
