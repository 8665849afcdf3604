"""What a server says of itself and of its binlog."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from cdc_relay.binlog.connection import identity
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.binlog.rows import DescribedColumn
from cdc_relay.errors import PreflightFailed
from cdc_relay.outbox.database import error_code
from cdc_relay.reconcile import ServerBinlog

_PARSE_ERROR = 1064


def server_binlog(connection: Connection) -> ServerBinlog:
    """The server's identity, the head of its binlog and the files that it has.

    Raises PreflightFailed when it writes none. Needs REPLICATION CLIENT (MariaDB: BINLOG MONITOR).
    """
    found = identity(lambda sql: _driver_value(connection, sql))
    files = connection.execute(text("SHOW BINARY LOGS")).all()
    folds_names = bool(_driver_value(connection, "SELECT @@lower_case_table_names"))
    return ServerBinlog(found, head(connection), tuple((str(row[0]), int(row[1])) for row in files), folds_names)


def head(connection: Connection) -> BinlogPosition:
    """Where the server writes its next event."""
    try:
        row = connection.execute(text("SHOW BINARY LOG STATUS")).first()
    except DBAPIError as error:  # before MySQL 8.2, and MariaDB
        if error_code(error) != _PARSE_ERROR:
            raise
        row = connection.execute(text("SHOW MASTER STATUS")).first()
    if row is None:
        raise PreflightFailed("the server writes no binary log", hint="start it with log_bin=ON")
    return BinlogPosition(str(row[0]), int(row[1]))


def describe_table(connection: Connection, table: str) -> list[DescribedColumn]:
    """The columns of ``table`` in the current database, by ordinal."""
    sql = (
        "SELECT COLUMN_NAME, DATA_TYPE, "
        "COALESCE(CHARACTER_SET_NAME, IF(CHARACTER_OCTET_LENGTH IS NULL, NULL, 'binary')) "
        "FROM INFORMATION_SCHEMA.COLUMNS "
        "WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = :table ORDER BY ORDINAL_POSITION"
    )
    rows = connection.execute(text(sql), {"table": table})
    return [DescribedColumn(str(name), str(kind).lower(), charset) for name, kind, charset in rows]


def _driver_value(connection: Connection, sql: str) -> Any:
    try:
        return connection.exec_driver_sql(sql).scalar()
    except DBAPIError as error:
        raise (error.orig or error) from error
