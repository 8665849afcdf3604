"""Every SQL statement on the outbox table, one method a statement.

Each docstring says which states a statement may leave and enter. Times are naive wall times in ``database.timezone``
(see ``clock.py``); the caller owns the transaction. MySQL evaluates the assignments of an UPDATE from left to right,
each seeing the ones before it, so ``status`` is always assigned last.

**The token of a delivery.** ``published_at IS NULL`` on a row means: the acknowledgement of its current delivery is not
written yet. Leasing a row clears it, the consumer fills it with everything it writes, and ``mark_published`` touches
only rows that lack it. So a write-back that comes late never undoes what the consumer has decided meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, Row, bindparam, text

from cdc_relay.outbox.backoff import LAST_ERROR_CHARACTERS, NextAttempt, cut_error
from cdc_relay.outbox.row import LockedRow, OutboxRow
from cdc_relay.outbox.status import Status
from cdc_relay.outbox.table import DEFAULT_MAX_RETRY, DEFAULT_TABLE

#: Whether a row has been sent, has failed or was parked before. An empty last_error is none: Go has no NULL text.
_HELD = "retry_count > 0 OR published_at IS NOT NULL OR COALESCE(last_error, '') <> ''"

#: In the order of OutboxRow.
_ROW_COLUMNS = (
    "id, biz_type, topic, message_key, payload, status, retry_count, max_retry, next_retry_at, created_at, "
    f"({_HELD}) AS held"
)

#: In the order of LockedRow. All rows come as one JSON text: the driver takes 11 µs more for a row of columns.
_LOCKED_ROWS = (
    "JSON_ARRAYAGG(JSON_ARRAY(id, CONVERT(message_key USING utf8mb4), status, retry_count, max_retry, next_retry_at, "
    "published_at, created_at))"
)
#: Rows in one such text; MariaDB cuts it at group_concat_max_len, which is 1 MB unless it is set.
_LOCKED_AT_A_TIME = 1_000

HELD_BACK = "held back: waits for an earlier row of the same message_key"
"""How ``last_error`` begins on a row that the relay holds back behind an earlier one; cleared when it is sent."""

PARKED = "parked: waits for an earlier row of the same message_key"
"""How ``last_error`` begins on a row that the consumer put back behind an earlier one; kept until it is consumed."""

REQUEUED = "requeued: "
"""How ``last_error`` begins on a row that was dead and is to be delivered after all; kept until it is consumed."""

DISCARDED = "discarded: "
"""How ``last_error`` begins on a dead row that an operator has let go: it holds back nobody."""

#: Notes that stay when a row is published: the first letters of PARKED and of REQUEUED.
_KEEPS_NOTE = "(LEFT(COALESCE(last_error, ''), 7) IN ('parked:', 'requeue'))"

_IS_DISCARDED = f"(LEFT(COALESCE(last_error, ''), {len(DISCARDED)}) = '{DISCARDED}')"


class WaitingRow(NamedTuple):
    """A row that has failed, or is dead, and holds back the later rows of its key."""

    id: int
    message_key: bytes


class PendingRow(NamedTuple):
    """A pending row before it is read: which ones to read together is decided by their sizes."""

    id: int
    held: bool
    """It has been sent, has failed or was parked before."""
    size: int
    """Bytes of its payload."""


class OutboxStatements:
    """The statements, bound to one table."""

    def __init__(self, table: str = DEFAULT_TABLE) -> None:
        self.table = ".".join("`" + part.replace("`", "``") + "`" for part in table.split("."))
        self._no_error: str | None = None

    def _cleared(self, connection: Connection) -> str:
        """``last_error`` of a row without an error: NULL, or '' where the application's column takes no NULL."""
        if self._no_error is None:  # asked once: a struct field of Go becomes NOT NULL easily
            column = connection.execute(text(f"SHOW COLUMNS FROM {self.table} LIKE 'last_error'")).mappings().first()
            self._no_error = "NULL" if column is None or column["Null"] == "YES" else "''"
        return self._no_error

    def _dead(self, wanted: bool) -> str:
        """A further part of a UNION: the dead rows that nobody has let go; or nothing."""
        dead = f" UNION ALL SELECT id, message_key FROM {self.table} WHERE status = 'dead' AND NOT {_IS_DISCARDED}"
        return dead if wanted else ""

    @staticmethod
    def database_now(connection: Connection) -> datetime:
        """The database's clock, as an instant. Changes nothing."""
        now: datetime = connection.execute(text("SELECT UTC_TIMESTAMP(6)")).scalar_one()
        return now.replace(tzinfo=UTC)

    # --- reading -----------------------------------------------------------------------------------------------

    def read_committed(self, connection: Connection, ids: Sequence[int]) -> list[OutboxRow]:
        """The rows with these ids, whatever their status, in id order. Changes nothing.

        A transaction stands in the binlog a moment before InnoDB shows it to others. A plain SELECT may miss it then;
        a shared lock waits for it instead.
        """
        sql = f"SELECT {_ROW_COLUMNS} FROM {self.table} WHERE id IN :ids ORDER BY id LOCK IN SHARE MODE"
        return [_row(found) for found in connection.execute(_with_ids(sql), {"ids": list(ids)})]

    def read(self, connection: Connection, ids: Sequence[int]) -> list[OutboxRow]:
        """The rows with these ids as they are now, whatever their status, in id order. Changes nothing."""
        sql = f"SELECT {_ROW_COLUMNS} FROM {self.table} WHERE id IN :ids ORDER BY id"
        return [_row(found) for found in connection.execute(_with_ids(sql), {"ids": list(ids)})]

    def untouched(self, connection: Connection, first: int, last: int) -> range | set[int]:
        """The ids from ``first`` to ``last`` of rows that are pending and were never tried. Changes nothing.

        A range when they follow one another without a gap, as they mostly do: then only three numbers are sent.
        """
        where = f"FROM {self.table} WHERE id BETWEEN :first AND :last AND status = 'pending' AND NOT ({_HELD})"
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

    def pending_page(
        self, connection: Connection, after_id: int, limit: int, until_id: int = 2**63 - 1
    ) -> list[PendingRow]:
        """The next ``limit`` pending rows up to ``until_id`` in id order, by keyset. Changes nothing."""
        sql = (
            f"SELECT id, ({_HELD}) AS held, OCTET_LENGTH(payload) AS size FROM {self.table} FORCE INDEX (PRIMARY) "
            "WHERE id > :after_id AND id <= :until_id AND status = 'pending' ORDER BY id LIMIT :limit"
        )
        values = {"after_id": after_id, "until_id": until_id, "limit": limit}
        return [_pending(found) for found in connection.execute(text(sql), values)]

    def due(self, connection: Connection, due_bound: datetime, limit: int, after_id: int = 0) -> list[PendingRow]:
        """The lowest ``limit`` due rows above ``after_id`` in id order. Changes nothing.

        Their ids come from the index on status and next_retry_at alone; only so many rows are touched as are returned.
        """
        sql = (
            f"SELECT id, ({_HELD}) AS held, OCTET_LENGTH(payload) AS size FROM {self.table} JOIN ("
            f"SELECT id FROM {self.table} WHERE status = 'pending' "
            "AND (next_retry_at <= :due_bound OR next_retry_at IS NULL) AND id > :after_id ORDER BY id LIMIT :limit"
            ") AS lowest USING (id) ORDER BY id"
        )
        values = {"due_bound": due_bound, "after_id": after_id, "limit": limit}
        return [_pending(found) for found in connection.execute(text(sql), values)]

    def due_unmarked(
        self, connection: Connection, due_bound: datetime, sent_bound: datetime, limit: int, after_id: int = 0
    ) -> list[PendingRow]:
        """Like ``due``, where rows stay pending when they are sent from the binlog. Changes nothing.

        Of those, which were never tried and not scheduled for later, only the ones written before ``sent_bound``.
        """
        columns = f"id, ({_HELD}) AS held, OCTET_LENGTH(payload) AS size"
        of = f"SELECT {columns} FROM {self.table} WHERE status = 'pending' AND id > :after_id AND"
        sql = (
            f"({of} (next_retry_at <= :sent_bound OR next_retry_at IS NULL AND COALESCE(created_at, :sent_bound) "
            f"<= :sent_bound) ORDER BY id LIMIT :limit) UNION ALL ({of} next_retry_at > :sent_bound "
            f"AND next_retry_at <= :due_bound AND ({_HELD} OR next_retry_at > created_at + INTERVAL 1 SECOND) "
            "ORDER BY id LIMIT :limit) ORDER BY id LIMIT :limit"
        )
        values = {"due_bound": due_bound, "sent_bound": sent_bound, "limit": limit, "after_id": after_id}
        return [_pending(found) for found in connection.execute(text(sql), values)]

    def waiting(self, connection: Connection, due_bound: datetime, limit: int) -> list[WaitingRow]:
        """Failed or parked rows whose next attempt is still to come, in id order. Changes nothing."""
        sql = (
            f"SELECT id, message_key FROM {self.table} WHERE status = 'pending' AND next_retry_at > :due_bound "
            "AND (retry_count > 0 OR last_error <> '') ORDER BY id LIMIT :limit"
        )
        found = connection.execute(text(sql), {"due_bound": due_bound, "limit": limit})
        return [WaitingRow(int(row.id), _bytes(row.message_key)) for row in found]

    def held_rows(self, connection: Connection, *, dead_too: bool = False) -> list[WaitingRow]:
        """Every failed or parked row, due or not: what a starting relay must hold back. Changes nothing.

        With ``dead_too`` also every dead row that nobody has let go, by the same look: a row may die or be requeued
        between two.
        """
        sql = f"SELECT id, message_key FROM {self.table} WHERE status = 'pending' AND ({_HELD}){self._dead(dead_too)}"
        return [WaitingRow(int(r.id), _bytes(r.message_key)) for r in connection.execute(text(sql))]

    def blocking_dead(self, connection: Connection) -> list[WaitingRow]:
        """Every dead row that nobody has let go: what holds back its key under ``on_dead = block``. Changes nothing.

        Costs the server a microsecond or two for each dead row.
        """
        sql = f"SELECT id, message_key FROM {self.table} WHERE status = 'dead' AND NOT {_IS_DISCARDED}"
        return [WaitingRow(int(row.id), _bytes(row.message_key)) for row in connection.execute(text(sql))]

    def still_pending(self, connection: Connection, ids: Iterable[int]) -> set[int]:
        """Which of these ids are still pending. Changes nothing."""
        sql = f"SELECT id FROM {self.table} WHERE id IN :ids AND status = 'pending'"
        return set(connection.execute(_with_ids(sql), {"ids": list(ids)}).scalars())

    def unmarked(self, connection: Connection, ids: Iterable[int]) -> set[int]:
        """Those of these ids, sent when they were fresh, that nobody has marked since. Changes nothing, locks nothing.

        Not those that a consumer has parked, nor those that were requeued: when their token is empty, it has been
        renewed for another delivery.
        """
        sql = f"SELECT id FROM {self.table} WHERE id IN ({_listed(ids)}) AND published_at IS NULL AND NOT {_KEEPS_NOTE}"
        return set(connection.exec_driver_sql(sql).scalars())

    def count_by_status(self, connection: Connection) -> dict[str, int]:
        """Rows per status, over the index. Changes nothing."""
        sql = f"SELECT status, COUNT(*) AS n FROM {self.table} GROUP BY status"
        return {row.status: int(row.n) for row in connection.execute(text(sql))}

    def oldest_pending(self, connection: Connection) -> Row[Any] | None:
        """Times, retry_count and last_error of the pending row with the lowest id. Changes nothing."""
        sql = (
            f"SELECT id, created_at, next_retry_at, retry_count, last_error FROM {self.table} "
            "WHERE status = 'pending' ORDER BY id LIMIT 1"
        )
        return connection.execute(text(sql)).first()

    def dead(self, connection: Connection, limit: int) -> list[Row[Any]]:
        """The latest ``limit`` dead rows, newest first, with why. Changes nothing."""
        sql = (
            "SELECT id, biz_type, topic, message_key, retry_count, created_at, updated_at, last_error "
            f"FROM {self.table} WHERE status = 'dead' ORDER BY id DESC LIMIT :limit"
        )
        return list(connection.execute(text(sql), {"limit": limit}))

    def pending_topics(self, connection: Connection, limit: int = 1_000) -> list[str]:
        """The topics of the ``limit`` oldest pending rows. Changes nothing."""
        sql = (
            f"SELECT DISTINCT topic FROM (SELECT topic FROM {self.table} WHERE status = 'pending' "
            "ORDER BY id LIMIT :limit) AS oldest"
        )
        return [_str(topic) for topic in connection.execute(text(sql), {"limit": limit}).scalars()]

    def touch_none(self, connection: Connection) -> None:
        """Name every column that the relay writes, of no row: raises what a real write would. Changes nothing."""
        columns = ("status", "retry_count", "next_retry_at", "last_error", "published_at", "updated_at")
        assignments = ", ".join(f"{column} = {column}" for column in columns)
        connection.execute(text(f"UPDATE {self.table} SET {assignments} WHERE id = 0 AND FALSE"))

    # --- the relay writes --------------------------------------------------------------------------------------

    def lock_due(self, connection: Connection, ids: Sequence[int], due_bound: datetime) -> list[OutboxRow]:
        """Lock those of ``ids`` that are still pending and due, in id order, passing over locked ones.

        Changes nothing by itself: ``lease`` follows in the same transaction.
        """
        sql = (
            f"SELECT {_ROW_COLUMNS} FROM {self.table} WHERE id IN :ids AND status = 'pending' "
            "AND (next_retry_at <= :due_bound OR next_retry_at IS NULL) ORDER BY id FOR UPDATE SKIP LOCKED"
        )
        found = connection.execute(_with_ids(sql), {"ids": list(ids), "due_bound": due_bound})
        return [_row(row) for row in found]

    def lock_unconsumed(self, connection: Connection, published_before: datetime, limit: int) -> list[int]:
        """Lock up to ``limit`` rows that are published since before that time, passing over locked ones; their ids,
        lowest first. Changes nothing by itself: ``put_back`` follows in the same transaction.
        """
        sql = (
            f"SELECT id FROM {self.table} WHERE status = 'published' AND published_at <= :before "
            "ORDER BY id LIMIT :limit"
        )
        found = connection.execute(text(sql), {"before": published_before, "limit": limit})
        ids = [int(row_id) for row_id in found.scalars()]
        if not ids:
            return []
        # By id, since to lock while looking for them would lock every published row.
        sql = (
            f"SELECT id FROM {self.table} WHERE id IN :ids AND status = 'published' AND published_at <= :before "
            "ORDER BY id FOR UPDATE SKIP LOCKED"
        )
        locked = connection.execute(_with_ids(sql), {"ids": ids, "before": published_before})
        return [int(row_id) for row_id in locked.scalars()]

    def put_back(self, connection: Connection, ids: Sequence[int], now: datetime) -> int:
        """published -> pending, by the relay, for locked rows to be sent once more; ``retry_count`` stays."""
        sql = (
            f"UPDATE {self.table} SET next_retry_at = :now, published_at = NULL, updated_at = :now, status = 'pending' "
            "WHERE id IN :ids AND status = 'published'"
        )
        return connection.execute(_with_ids(sql), {"ids": list(ids), "now": now}).rowcount

    def behind_published(self, connection: Connection, ids: Sequence[int]) -> set[int]:
        """Those of ``ids`` that a consumer has parked behind a row that is published. Changes nothing.

        That row is on its way to the consumer once more. Until it is consumed, these would only be parked again.
        """
        sql = (
            f"SELECT parked.id FROM {self.table} AS parked JOIN {self.table} AS ahead ON ahead.id = "
            "CAST(SUBSTRING_INDEX(SUBSTRING_INDEX(parked.last_error, '(id ', -1), ')', 1) AS UNSIGNED) "
            "WHERE parked.id IN :ids AND LEFT(parked.last_error, 7) = 'parked:' AND ahead.status = 'published'"
        )
        return set(map(int, connection.execute(_with_ids(sql), {"ids": list(ids)}).scalars()))

    def requeued(self, connection: Connection, ids: Sequence[int]) -> set[int]:
        """Those of ``ids`` that were dead, were requeued, and have not failed since. Changes nothing."""
        sql = f"SELECT id FROM {self.table} WHERE id IN :ids AND LEFT(last_error, {len(REQUEUED)}) = '{REQUEUED}'"
        return set(map(int, connection.execute(_with_ids(sql), {"ids": list(ids)}).scalars()))

    def lease(self, connection: Connection, ids: Sequence[int], until: datetime, now: datetime) -> int:
        """pending -> pending: keep locked rows from every other sweep until ``until``, and renew the delivery token."""
        sql = (
            f"UPDATE {self.table} SET next_retry_at = :until, published_at = NULL, updated_at = :now "
            "WHERE id IN :ids AND status = 'pending'"
        )
        return connection.execute(_with_ids(sql), {"ids": list(ids), "until": until, "now": now}).rowcount

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
            f"last_error = IF(status = 'pending' AND NOT {_KEEPS_NOTE}, "
            f"{self._cleared(connection)}, last_error), "
            "next_retry_at = IF(status = 'pending', NULL, next_retry_at), "
            "status = IF(status = 'pending', 'published', status) "
            f"WHERE id IN ({_listed(ids)}) AND published_at IS NULL "
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
        values = _failure(row_id, attempt, reason, now) | {"retry_count": retry_count}
        return connection.execute(text(sql), values).rowcount

    def hold_back(self, connection: Connection, ids: Sequence[int], behind: int, now: datetime) -> int:
        """pending -> pending, by the relay, for rows not sent yet that must wait for row ``behind`` of their key.

        The note in ``last_error`` is what a restart finds them by.
        """
        sql = (
            f"UPDATE {self.table} SET last_error = :reason, updated_at = :now "
            "WHERE id IN :ids AND status = 'pending' AND retry_count = 0 AND published_at IS NULL "
            f"AND NOT {_KEEPS_NOTE}"
        )
        values = {"ids": list(ids), "reason": f"{HELD_BACK} (id {behind})", "now": now}
        return connection.execute(_with_ids(sql), values).rowcount

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
            f"WHERE status = 'dead' AND NOT {_IS_DISCARDED}"
        )
        return _of_these(connection, sql, ids, now)

    # --- the consumer writes -----------------------------------------------------------------------------------

    def unsettled(self, connection: Connection, *, dead_too: bool = False) -> Iterator[WaitingRow]:
        """Every failed or parked row, waiting or on its way again, in no order: what a consumer must hold back when it
        is given partitions. ``dead_too`` as in ``held_rows``. Changes nothing.

        Costs the server a microsecond or so for each row that is pending or published.
        """
        sql = (
            f"SELECT id, message_key FROM {self.table} WHERE status = 'pending' AND ({_HELD}) "
            f"UNION ALL SELECT id, message_key FROM {self.table} WHERE status = 'published' "
            f"AND (retry_count > 0 OR COALESCE(last_error, '') <> ''){self._dead(dead_too)}"
        )
        for row_id, key in connection.execute(text(sql), execution_options={"yield_per": 1000}):
            yield WaitingRow(int(row_id), _bytes(key))

    def still_open(
        self, connection: Connection, ids: Iterable[int], *, dead_too: bool = False
    ) -> dict[int, datetime | None]:
        """Those of these ids whose effect is still to come, with the time of their next attempt. Changes nothing.

        The time is None for a row that is on its way to the consumer: published, or leased and being sent. With
        ``dead_too`` also those that are dead and not let go, whose time is None as well.
        """
        dead = f" OR status = 'dead' AND NOT {_IS_DISCARDED}" if dead_too else ""
        sql = (
            f"SELECT id, IF(status = 'pending' AND published_at IS NOT NULL, next_retry_at, NULL) FROM {self.table} "
            f"WHERE id IN :ids AND (status IN ('pending', 'published'){dead})"
        )
        return {int(row_id): _wall(at) for row_id, at in connection.execute(_with_ids(sql), {"ids": list(ids)})}

    def lock_rows(self, connection: Connection, ids: Sequence[int]) -> dict[int, LockedRow]:
        """Lock these rows, whatever their status, waiting for whoever holds them; by id. Changes nothing by itself."""
        rows: list[LockedRow] = []
        in_order = sorted(ids)  # the same order of locking for everyone
        for start in range(0, len(in_order), _LOCKED_AT_A_TIME):
            some = _listed(in_order[start : start + _LOCKED_AT_A_TIME])
            sql = f"SELECT {_LOCKED_ROWS} FROM {self.table} WHERE id IN ({some}) FOR UPDATE"
            rows += map(_locked, orjson.loads(connection.exec_driver_sql(sql).scalar() or "[]"))
        return {row.id: row for row in sorted(rows)}

    def mark_consumed(self, connection: Connection, ids: Sequence[int], now: datetime) -> int:
        """pending or published -> consumed, for rows locked in this transaction whose effect stands in it."""
        return self._consume(connection, ids, now, "status IN ('pending', 'published')")

    def consume_undecided(self, connection: Connection, ids: Sequence[int], now: datetime) -> int:
        """pending or published -> consumed, for rows whose effect follows in this transaction; how many there were.

        Only those of ``ids`` on which no consumer has decided since their last delivery. The caller rolls back unless
        that was all of them, since it cannot tell which.
        """
        undecided = "(status = 'published' OR status = 'pending' AND published_at IS NULL)"
        return self._consume(connection, ids, now, undecided)

    def _consume(self, connection: Connection, ids: Sequence[int], now: datetime, only: str) -> int:
        sql = (
            f"UPDATE {self.table} SET published_at = COALESCE(published_at, %(now)s), consumed_at = %(now)s, "
            f"last_error = {self._cleared(connection)}, next_retry_at = NULL, updated_at = %(now)s, "
            f"status = 'consumed' WHERE id IN ({_listed(ids)}) AND {only}"
        )
        return connection.exec_driver_sql(sql, {"now": now}).rowcount

    def mark_failed(self, connection: Connection, row_id: int, attempt: NextAttempt, reason: str, now: datetime) -> int:
        """pending or published -> pending or dead, by the consumer, for a row locked in this transaction."""
        sql = (
            f"UPDATE {self.table} SET retry_count = :attempts, next_retry_at = :at, last_error = :reason, "
            "published_at = COALESCE(published_at, :now), updated_at = :now, status = :status "
            "WHERE id = :id AND status IN ('pending', 'published')"
        )
        return connection.execute(text(sql), _failure(row_id, attempt, reason, now)).rowcount

    def park(self, connection: Connection, ids: Sequence[int], behind: int, at: datetime, now: datetime) -> int:
        """pending or published -> pending, by the consumer, for locked rows that must wait for row ``behind``.

        ``retry_count`` stays: the rows themselves are not at fault.
        """
        sql = (
            f"UPDATE {self.table} SET next_retry_at = :at, last_error = :reason, "
            "published_at = COALESCE(published_at, :now), updated_at = :now, status = 'pending' "
            "WHERE id IN :ids AND status IN ('pending', 'published')"
        )
        values = {"ids": list(ids), "at": at, "now": now, "reason": f"{PARKED} (id {behind})"}
        return connection.execute(_with_ids(sql), values).rowcount


def _listed(ids: Iterable[int]) -> str:
    """Ids as they stand in SQL. To bind each of them takes a microsecond, which tells where there are many."""
    return ",".join([str(int(row_id)) for row_id in ids]) or "NULL"


def _with_ids(sql: str) -> Any:
    return text(sql).bindparams(bindparam("ids", expanding=True))


def _of_these(connection: Connection, sql: str, ids: Sequence[int] | None, now: datetime) -> int:
    """Run ``sql`` for these ids, or as it is when they are None; how many rows it has changed."""
    if ids is None:
        return connection.execute(text(sql), {"now": now}).rowcount
    return connection.execute(_with_ids(sql + " AND id IN :ids"), {"now": now, "ids": list(ids)}).rowcount


def _noted(note: str) -> str:
    """``last_error`` with ``note`` before the reason that stands there, as long as it may be."""
    return f"LEFT(CONCAT('{note}', COALESCE(last_error, '')), {LAST_ERROR_CHARACTERS})"


def _failure(row_id: int, attempt: NextAttempt, reason: str, now: datetime) -> dict[str, Any]:
    return {
        "id": row_id,
        "attempts": attempt.retry_count,
        "at": attempt.at,
        "reason": cut_error(reason),
        "now": now,
        "status": Status.DEAD if attempt.at is None else Status.PENDING,
    }


def _row(found: Row[Any]) -> OutboxRow:
    values: Sequence[Any] = found
    row_id, biz_type, topic, key, payload, status, retry_count, max_retry, next_retry_at, created_at, held = values
    return OutboxRow(
        int(row_id),
        _str(biz_type),
        _str(topic),
        _bytes(key),
        _bytes(payload),
        _str(status),
        int(retry_count or 0),
        DEFAULT_MAX_RETRY if max_retry is None else int(max_retry),
        _wall(next_retry_at),
        _wall(created_at),
        bool(held),
    )


def _pending(found: Row[Any]) -> PendingRow:
    return PendingRow(int(found.id), bool(found.held), int(found.size or 0))


def _locked(found: Sequence[Any]) -> LockedRow:
    row_id, key, status, retry_count, max_retry, next_retry_at, published_at, created_at = found
    return LockedRow(
        row_id,
        _bytes(key),
        status or "",
        retry_count or 0,
        DEFAULT_MAX_RETRY if max_retry is None else max_retry,
        _wall_of_text(next_retry_at),
        _wall_of_text(published_at),
        _wall_of_text(created_at),
    )


def _wall_of_text(value: str | None) -> datetime | None:
    try:
        return None if value is None else datetime.fromisoformat(value)
    except ValueError:  # a zero date
        return None


def _bytes(value: str | bytes | None) -> bytes:
    if value is None:
        return b""
    return value.encode() if isinstance(value, str) else bytes(value)


def _str(value: str | bytes | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else bytes(value).decode("utf-8", "replace")


def _wall(value: object) -> datetime | None:
    # PyMySQL hands a zero date ("0000-00-00 00:00:00") on as text.
    return value if isinstance(value, datetime) else None
