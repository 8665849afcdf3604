"""What the server says of itself and of the table: two questions for a start, a few more for ``cdc-relay check``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

#: One round trip: the variables that matter at a start, and the table's columns if there are any.
_ESSENTIALS = """
SELECT server.*, c.COLUMN_NAME AS name, LOWER(c.DATA_TYPE) AS type, c.COLUMN_TYPE AS declared,
       c.IS_NULLABLE AS nullable, c.CHARACTER_MAXIMUM_LENGTH AS characters, c.CHARACTER_SET_NAME AS charset
FROM (SELECT @@version AS version, @@global.log_bin AS log_bin, @@global.binlog_format AS binlog_format,
             @@global.server_id AS server_id, DATABASE() AS db, CURRENT_USER() AS account) AS server
LEFT JOIN INFORMATION_SCHEMA.COLUMNS AS c ON c.TABLE_SCHEMA = server.db AND c.TABLE_NAME = :table
ORDER BY c.ORDINAL_POSITION
"""

_VARIABLES = (
    *("binlog_row_image", "binlog_row_metadata", "binlog_expire_logs_seconds", "expire_logs_days"),
    *("binlog_storage_engine", "time_zone", "system_time_zone", "version_comment"),
)


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """A column as INFORMATION_SCHEMA describes it."""

    name: str
    type: str
    """DATA_TYPE, in lower case."""
    declared: str
    """COLUMN_TYPE: with length, values of an ENUM and so on."""
    nullable: bool
    characters: int | None
    charset: str | None


@dataclass(frozen=True, slots=True)
class Essentials:
    """What a start depends on."""

    version: str
    log_bin: bool
    binlog_format: str
    server_id: int
    database: str
    account: str
    """As GRANT wants it: ``'relay'@'%'``."""
    columns: tuple[ColumnFacts, ...]
    """Empty when there is no table, or none that this account may know of."""

    @property
    def is_mariadb(self) -> bool:
        """MariaDB has other names for some privileges."""
        return "mariadb" in self.version.lower()


@dataclass(frozen=True, slots=True)
class Extras:
    """What an operator should know besides."""

    variables: Mapping[str, str]
    engine: str | None
    indexes: Mapping[str, tuple[str, ...]]
    """Columns by index."""
    clock_ahead_s: float
    """How much the server's clock is ahead of this machine's."""


def essentials(connection: Connection, table: str) -> Essentials:
    """Ask for what a start depends on: one round trip."""
    rows = connection.execute(text(_ESSENTIALS), {"table": table}).all()
    first = rows[0]
    user, _, host = str(first.account).rpartition("@")
    return Essentials(
        version=str(first.version),
        log_bin=_is_on(first.log_bin),
        binlog_format=str(first.binlog_format),
        server_id=int(first.server_id),
        database=str(first.db),
        account=f"'{user}'@'{host}'",
        columns=tuple(_column(row) for row in rows if row.name is not None),
    )


def extras(connection: Connection, table: str, now_utc_s: float) -> Extras:
    """Ask for the rest. ``now_utc_s`` is this machine's time in seconds since 1970."""
    names = ", ".join(f"'{name}'" for name in _VARIABLES)
    variables = connection.execute(text(f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names})"))
    found = {str(name).lower(): str(value) for name, value in variables}
    values = {"table": table}
    engine = connection.execute(
        text("SELECT ENGINE FROM INFORMATION_SCHEMA.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = :table"),
        values,
    ).scalar()
    indexes: dict[str, tuple[str, ...]] = {}
    for name, column in connection.execute(
        text(
            "SELECT INDEX_NAME, COLUMN_NAME FROM INFORMATION_SCHEMA.STATISTICS "
            "WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = :table ORDER BY INDEX_NAME, SEQ_IN_INDEX"
        ),
        values,
    ):
        indexes[str(name)] = (*indexes.get(str(name), ()), str(column))
    server_s = float(connection.execute(text("SELECT UNIX_TIMESTAMP(NOW(6))")).scalar() or 0)
    return Extras(found, None if engine is None else str(engine), indexes, server_s - now_utc_s)


def _column(row: Any) -> ColumnFacts:
    return ColumnFacts(
        str(row.name),
        str(row.type),
        str(row.declared),
        str(row.nullable).upper() == "YES",
        None if row.characters is None else int(row.characters),
        None if row.charset is None else str(row.charset),
    )


def _is_on(value: object) -> bool:
    return str(value).upper() in ("1", "ON")
