"""Where things stand, as the database and the checkpoint file tell it, and how the binlog is read.

What an account may not ask is told as such, beside what it may.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, text

from cdc_relay.admin.ask import labels
from cdc_relay.admin.server import address
from cdc_relay.binlog.connection import choose_reader
from cdc_relay.binlog.server import server_binlog
from cdc_relay.checkpoint import Checkpoint, FileCheckpointStore
from cdc_relay.config import RELAY_ADMIN_PORT, Settings
from cdc_relay.errors import CheckpointError, ConfigurationError, DatabaseError
from cdc_relay.lease import lock_names
from cdc_relay.outbox.clock import from_column, utc_now
from cdc_relay.outbox.database import make_engine, transaction, translated
from cdc_relay.outbox.operator_statements import CONSUMED_TO, OperatorStatements
from cdc_relay.outbox.parking import Ordering
from cdc_relay.outbox.status import Status
from cdc_relay.reconcile import ServerBinlog, bytes_between

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class OldestPending:
    """The pending row with the lowest id. Times are UTC; ``age_s`` counts from ``created_at``."""

    id: int
    created_at: datetime | None
    age_s: float | None
    next_retry_at: datetime | None
    retry_count: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """The checkpoint file, as found."""

    path: str
    position: str | None = None
    server: str | None = None
    committed_at: datetime | None = None
    written_at: datetime | None = None
    age_s: float | None = None


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who is the active one. ``host`` and ``user`` are None where this account may not see other connections."""

    lock: str
    connection_id: int | None
    host: str | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class ReaderState:
    """Which binlog reader is in use, and why so."""

    reader: str
    """``wire`` or ``library``."""
    why: str
    told_by: str | None
    """The address of the running relay that said so; None where none of this name answers on this machine, and it is
    what one would use that is started here with these settings."""


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """Everything that ``cdc-relay status`` shows."""

    name: str
    table: str
    rows: dict[str, int]
    """By status. Where many are consumed, that is what the server supposes; see ``estimated``."""
    oldest_pending: OldestPending | None
    checkpoint: CheckpointState
    head: str | None
    lag_bytes: int | None
    lag_seconds: float | None
    locks: list[LockHolder]
    reader: ReaderState | None
    blocked_keys: int = 0
    """Values of message_key that wait for an operator's decision on a dead row (``ordering.on_dead = block``)."""
    blocked_by: list[int] = field(default_factory=list)
    """The dead rows that hold them back."""
    estimated: list[str] = field(default_factory=list)
    """The statuses whose rows were not counted."""
    unknown: dict[str, str] = field(default_factory=dict)
    """What could not be told, and why."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def look(settings: Settings) -> RelayStatus:
    """Ask the database and, where there is one, the relay on this machine; read the checkpoint file.

    Raises DatabaseError when the outbox itself cannot be read.
    """
    unknown: dict[str, str] = {}
    engine = make_engine(settings.database, pool_size=1)
    try:
        with transaction(engine) as connection:
            statements = OperatorStatements(settings.database.table)
            rows, estimated = _count(connection, statements)
            oldest = _oldest(connection, statements, settings)
            blocking = []
            if settings.ordering.rule is Ordering.BLOCK_ON_DEAD:
                blocking = [row for row in statements.blocking_dead(connection) if row.message_key]
            locks = [_holder(connection, name) for name in lock_names(settings.name, tail=True, sweep=True)]
            binlog = _told("binlog", unknown, lambda: server_binlog(connection))
    finally:
        engine.dispose()
    checkpoint = _told("checkpoint", unknown, FileCheckpointStore(settings.checkpoint.path).load)
    lag_bytes, lag_seconds = _lag(checkpoint, binlog, unknown)
    return RelayStatus(
        settings.name,
        settings.database.table,
        rows,
        oldest,
        _checkpoint_state(settings.checkpoint.path, checkpoint),
        str(binlog.head) if binlog else None,
        lag_bytes,
        lag_seconds,
        locks,
        _told("reader", unknown, lambda: _reader(settings)),
        len({row.message_key for row in blocking}),
        sorted(row.id for row in blocking),
        estimated,
        unknown,
    )


def _count(connection: Connection, statements: OperatorStatements) -> tuple[dict[str, int], list[str]]:
    """Rows by status, and the statuses of which that is an estimate."""
    found = statements.count_by_status(connection)
    rows = {status.value: found.pop(status.value, 0) for status in Status} | found
    consumed = rows[Status.CONSUMED.value]
    if consumed < CONSUMED_TO:
        return rows, []
    others = sum(rows.values()) - consumed
    rows[Status.CONSUMED.value] = max(consumed, statements.estimated_rows(connection) - others)
    return rows, [Status.CONSUMED.value]


def _told(what: str, unknown: dict[str, str], ask: Callable[[], _T]) -> _T | None:
    try:
        with translated():
            return ask()
    except (DatabaseError, CheckpointError, ConfigurationError) as error:
        unknown[what] = str(error)
        return None


def _oldest(connection: Connection, statements: OperatorStatements, settings: Settings) -> OldestPending | None:
    row = statements.oldest_pending(connection)
    if row is None:
        return None
    zone = settings.database.zone
    # A zero date comes as text.
    created, due = (
        from_column(wall, zone) if isinstance(wall, datetime) else None for wall in (row.created_at, row.next_retry_at)
    )
    age_s = None if created is None else round((utc_now() - created).total_seconds(), 3)
    return OldestPending(int(row.id), created, age_s, due, int(row.retry_count or 0), row.last_error or None)


def _holder(connection: Connection, lock: str) -> LockHolder:
    number = connection.execute(text("SELECT IS_USED_LOCK(:name)"), {"name": lock}).scalar()
    if number is None:
        return LockHolder(lock, None)
    sql = "SELECT HOST, USER FROM INFORMATION_SCHEMA.PROCESSLIST WHERE ID = :id"
    seen = connection.execute(text(sql), {"id": number}).first()
    return LockHolder(lock, int(number), *(map(str, seen) if seen else (None, None)))


def _reader(settings: Settings) -> ReaderState:
    host = settings.admin.host
    port = RELAY_ADMIN_PORT if settings.admin.port is None else settings.admin.port
    if settings.admin.enabled and port:
        found = labels(host, port, "cdc_relay_binlog_reader_info")
        if found.get("relay") == settings.name:
            return ReaderState(found["reader"], found["why"], address(host, port))
    chosen = choose_reader(settings.tail.reader)
    return ReaderState(chosen.reader, chosen.why, None)


def _lag(
    checkpoint: Checkpoint | None, binlog: ServerBinlog | None, unknown: dict[str, str]
) -> tuple[int | None, float | None]:
    if checkpoint is None or binlog is None:
        return None, None
    if checkpoint.server != binlog.server:
        unknown["lag"] = f"the checkpoint is of server {checkpoint.server}, this is {binlog.server}"
        return None, None
    if checkpoint.position.file not in dict(binlog.files):
        unknown["lag"] = f"the server no longer has {checkpoint.position.file}; the relay will catch up from the table"
        return None, None
    lag_bytes = bytes_between(checkpoint.position, binlog)
    # While nothing is left to read there is no lag, however long ago the last commit was.
    lag_s = max(0.0, round(time.time() - checkpoint.committed_at, 3)) if lag_bytes and checkpoint.committed_at else 0.0
    return lag_bytes, lag_s


def _checkpoint_state(path: Path, checkpoint: Checkpoint | None) -> CheckpointState:
    if checkpoint is None:
        return CheckpointState(str(path))
    return CheckpointState(
        str(path),
        str(checkpoint.position),
        checkpoint.server,
        datetime.fromtimestamp(checkpoint.committed_at, UTC) if checkpoint.committed_at else None,
        datetime.fromtimestamp(checkpoint.written_at, UTC),
        round(max(0.0, time.time() - checkpoint.written_at), 3),
    )
