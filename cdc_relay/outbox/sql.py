"""What the SQL statements on the outbox table share: notes, fragments, and rows as they are found.

The statements themselves are the methods of ``OutboxStatements`` (the relay's), ``OperatorStatements`` and
``ConsumerStatements``. Each docstring says which states a statement may leave and enter. Times are naive wall times in
``database.timezone`` (see ``clock.py``); the caller owns the transaction. MySQL evaluates the assignments of an UPDATE
from left to right, each seeing the ones before it, so ``status`` is always assigned last.

**The token of a delivery.** ``published_at IS NULL`` on a row means: the acknowledgement of its current delivery is not
written yet. Leasing a row clears it, the consumer fills it with everything it writes, and ``mark_published`` touches
only rows that lack it. So a write-back that comes late never undoes what the consumer has decided meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, TextClause, bindparam, text

from cdc_relay.outbox.backoff import NextAttempt, cut_error
from cdc_relay.outbox.fetch import TextRow, fetch
from cdc_relay.outbox.row import LockedRow, OutboxRow
from cdc_relay.outbox.status import Status
from cdc_relay.outbox.table import DEFAULT_MAX_RETRY, DEFAULT_TABLE

#: Whether a row has been sent, has failed or was parked before. An empty last_error is none: Go has no NULL text.
IS_HELD = "retry_count > 0 OR published_at IS NOT NULL OR COALESCE(last_error, '') <> ''"

#: In the order of OutboxRow.
ROW_COLUMNS = (
    f"id, biz_type, topic, message_key, payload, status, retry_count, next_retry_at, created_at, ({IS_HELD}) AS held"
)

#: In the order of PendingRow.
PENDING_COLUMNS = f"id, ({IS_HELD}) AS held, OCTET_LENGTH(payload) AS size"

#: In the order of LockedRow.
_LOCKED_COLUMNS = "id, message_key, status, retry_count, max_retry, next_retry_at, published_at, created_at"

HELD_BACK = "held back: waits for an earlier row of the same message_key"
"""How ``last_error`` begins on a row that the relay holds back behind an earlier one; cleared when it is sent."""

PARKED = "parked: waits for an earlier row of the same message_key"
"""How ``last_error`` begins on a row that the consumer put back behind an earlier one; kept until it is consumed."""

REQUEUED = "requeued: "
"""How ``last_error`` begins on a row that was dead and is to be delivered after all; kept until it is consumed."""

DISCARDED = "discarded: "
"""How ``last_error`` begins on a dead row that an operator has let go: it holds back nobody."""

#: Notes that stay when a row is published: the first letters of PARKED and of REQUEUED.
KEEPS_NOTE = "(LEFT(COALESCE(last_error, ''), 7) IN ('parked:', 'requeue'))"

IS_DISCARDED = f"(LEFT(COALESCE(last_error, ''), {len(DISCARDED)}) = '{DISCARDED}')"

DEAD = {"dead": f"NOT {IS_DISCARDED}"}
"""The dead rows that nobody has let go, for ``TableStatements._holding``."""

#: Of the rows that a long look passes over one in so many is sent all the same: a server that has said nothing for
#: ``database.read_timeout_s`` is taken for one that hangs. A prime, since ids may have a stride.
_ONE_IN = 101


_TRUE = b"1"

#: A named tuple made without the call of Python code that its class would cost.
_new_tuple = tuple.__new__


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


class TableStatements:
    """Statements bound to one table; these are the ones that more than one set of them needs."""

    def __init__(self, table: str = DEFAULT_TABLE) -> None:
        self.name = table
        self.table = quoted_name(table)
        self.by_status = f"{self.table} IGNORE INDEX (PRIMARY)"
        """For what is wanted in id order with a LIMIT: by the primary key the server would find soon enough what it
        expects to lie everywhere, and pass over any number of rows that were consumed long ago."""
        self._no_error: str | None = None

    def _cleared(self, connection: Connection) -> str:
        """``last_error`` of a row without an error: NULL, or '' where the application's column takes no NULL."""
        if self._no_error is None:  # asked once: a struct field of Go becomes NOT NULL easily
            column = connection.execute(text(f"SHOW COLUMNS FROM {self.table} LIKE 'last_error'")).mappings().first()
            self._no_error = "NULL" if column is None or column["Null"] == "YES" else "''"
        return self._no_error

    def _holding(self, connection: Connection, conditions: Mapping[str, str]) -> Iterator[WaitingRow]:
        """The rows that hold back later ones of their keys: by status, the condition that they meet. In no order.

        One statement, as a row may change its status between two. It costs the server some 4 µs for each row that has
        such a status, however many those are.
        """
        sql = " UNION ALL ".join(
            f"SELECT id, message_key, ({condition}) AS wanted FROM {self.table} "
            f"WHERE status = '{status}' AND ({condition} OR MOD(id, {_ONE_IN}) = 0)"
            for status, condition in conditions.items()
        )
        for *row, wanted in connection.execute(text(sql), execution_options={"yield_per": 1000}):
            if wanted:
                yield waiting_row(row)

    @staticmethod
    def database_now(connection: Connection) -> datetime:
        """The database's clock, as an instant. Changes nothing."""
        now: datetime = connection.execute(text("SELECT UTC_TIMESTAMP(6)")).scalar_one()
        return now.replace(tzinfo=UTC)

    def blocking_dead(self, connection: Connection) -> list[WaitingRow]:
        """Every dead row that nobody has let go: what holds back its key under ``on_dead = block``. Changes nothing."""
        return list(self._holding(connection, DEAD))

    def lock_rows(self, connection: Connection, ids: Sequence[int]) -> dict[int, LockedRow]:
        """Lock these rows, whatever their status, waiting for whoever holds them; by id. Changes nothing by itself."""
        in_order = listed(sorted(ids))  # the same order of locking for everyone
        sql = f"SELECT {_LOCKED_COLUMNS} FROM {self.table} WHERE id IN ({in_order}) ORDER BY id FOR UPDATE"
        return {row.id: row for row in map(_locked, fetch(connection, sql))}


def quoted_name(table: str) -> str:
    """A table's name, with its database's before it or without, as it stands in SQL."""
    return ".".join("`" + part.replace("`", "``") + "`" for part in table.split("."))


def listed(ids: Iterable[int]) -> str:
    """Ids as they stand in SQL. To bind each of them takes a microsecond, which tells where there are many."""
    return ",".join([str(int(row_id)) for row_id in ids]) or "NULL"


def with_ids(sql: str) -> TextClause:
    """A statement whose ``:ids`` takes a list."""
    return text(sql).bindparams(bindparam("ids", expanding=True))


def failure(row_id: int, attempt: NextAttempt, reason: str, now: datetime) -> dict[str, Any]:
    """What a failed attempt writes into its row, as parameters: the last one leaves the row dead."""
    return {
        "id": row_id,
        "attempts": attempt.retry_count,
        "at": attempt.at,
        "reason": cut_error(reason),
        "now": now,
        "status": Status.DEAD if attempt.at is None else Status.PENDING,
    }


def found_row(found: TextRow) -> OutboxRow:
    """A row of ``ROW_COLUMNS``."""
    row_id, biz_type, topic, key, payload, status, retry_count, next_retry_at, created_at, held = found
    created = _wall(created_at)
    return _new_tuple(
        OutboxRow,
        (
            int(row_id or 0),
            word(biz_type),
            word(topic),
            key or b"",
            payload or b"",
            word(status),
            int(retry_count or 0),
            created if next_retry_at == created_at else _wall(next_retry_at),  # as mostly
            created,
            held == _TRUE,
        ),
    )


def pending_row(found: TextRow) -> PendingRow:
    """A row of ``PENDING_COLUMNS``."""
    row_id, held, size = found
    return PendingRow(int(row_id or 0), held == _TRUE, int(size or 0))


def waiting_row(found: Sequence[Any]) -> WaitingRow:
    """A row of ``id, message_key``."""
    row_id, key = found
    return WaitingRow(int(row_id), as_bytes(key))


def as_bytes(value: str | bytes | None) -> bytes:
    """What a text column holds, whatever the driver makes of it; NULL is empty."""
    if value is None:
        return b""
    return value.encode() if isinstance(value, str) else bytes(value)


def as_wall(value: object) -> datetime | None:
    """A DATETIME column; a zero date ("0000-00-00 00:00:00"), which PyMySQL hands on as text, is none."""
    return value if isinstance(value, datetime) else None


def _locked(found: TextRow) -> LockedRow:
    row_id, key, status, retry_count, max_retry, next_retry_at, published_at, created_at = found
    return LockedRow(
        int(row_id or 0),
        key or b"",
        word(status),
        int(retry_count or 0),
        DEFAULT_MAX_RETRY if max_retry is None else int(max_retry),
        _wall(next_retry_at),
        _wall(published_at),
        _wall(created_at),
    )


@lru_cache(4096)
def word(text: bytes | None) -> str:
    """One of a few values, as text: the same object each time, so that it is quickly compared."""
    return "" if text is None else text.decode("utf-8", "replace")


def _wall(text: bytes | None) -> datetime | None:
    try:
        return None if text is None else datetime.fromisoformat(text.decode())
    except ValueError:  # a zero date
        return None
