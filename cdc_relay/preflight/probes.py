"""What only trying can tell: whether this account may do what the relay does. Nothing is changed by it."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import Connection, text

from cdc_relay.binlog.connection import DumpConnection
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.binlog.server import server_binlog
from cdc_relay.binlog.source import BinlogSource
from cdc_relay.binlog.tables import OutboxTables
from cdc_relay.config import DatabaseSettings, Settings
from cdc_relay.errors import DatabaseError, RelayError
from cdc_relay.outbox.clock import from_column
from cdc_relay.outbox.database import translated
from cdc_relay.outbox.sql import quoted_name
from cdc_relay.outbox.statements import OutboxStatements
from cdc_relay.preflight.check import Check, Level, ok
from cdc_relay.preflight.facts import Essentials
from cdc_relay.row_image import SET_MINIMAL

#: A row that says it was written so far in the future was written in another zone.
_FUTURE = timedelta(minutes=5)


def privilege_checks(connection: Connection, settings: Settings, facts: Essentials) -> list[Check]:
    """SELECT and UPDATE on the table, REPLICATION CLIENT and REPLICATION SLAVE on the server."""
    statements = OutboxStatements(settings.database.table)
    table = f"`{facts.database}`.`{settings.database.table}`"
    monitor = "BINLOG MONITOR" if facts.is_mariadb else "REPLICATION CLIENT"
    head: list[BinlogPosition] = []
    found_server: list[str] = []

    def look_at_binlog() -> None:
        binlog = server_binlog(connection)
        head.append(binlog.head)
        found_server.append(binlog.server)

    checks = [
        _tried("SELECT", f"GRANT SELECT ON {table} TO {facts.account};", lambda: statements.due(connection, _EVER, 1)),
        _tried("UPDATE", f"GRANT UPDATE ON {table} TO {facts.account};", lambda: statements.touch_none(connection)),
        _tried(monitor, f"GRANT {monitor} ON *.* TO {facts.account};", look_at_binlog),
    ]
    remedy = f"GRANT REPLICATION SLAVE ON *.* TO {facts.account};"
    if head:
        checks.append(_tried("REPLICATION SLAVE", remedy, lambda: _open_dump(settings, head[0], found_server[0])))
    else:
        checks.append(
            Check("REPLICATION SLAVE", Level.WARN, "not tried, for want of a position", "the privilege", remedy)
        )
    return checks


def filter_check(connection: Connection, facts: Essentials) -> Check:
    """Whether binlog-do-db or binlog-ignore-db keep this database out of the binlog."""
    name = "binlog filters"
    try:
        with translated():
            row = connection.execute(text("SHOW MASTER STATUS" if facts.is_mariadb else _status_sql(facts))).first()
    except DatabaseError as error:
        return Check(name, Level.WARN, f"not told: {error.message}", "none for this database")
    do, ignore = (str(row[2] or ""), str(row[3] or "")) if row is not None else ("", "")
    if (do and facts.database not in do.split(",")) or facts.database in ignore.split(","):
        return Check(
            name,
            Level.FAIL,
            f"binlog-do-db={do} binlog-ignore-db={ignore} keep {facts.database} out",
            f"{facts.database} in the binlog",
            "my.cnf: remove the filter, then restart the server",
        )
    return ok(name, "none for this database")


def row_image_check(connection: Connection, settings: Settings, facts: Essentials) -> Check:
    """Whether the relay can keep its own UPDATEs small in the binlog. It works as well without."""
    name = "writeback.row_image"
    if settings.writeback.row_image == "server":
        return ok(name, "server: as binlog_row_image says")
    try:
        with translated():
            connection.execute(text(SET_MINIMAL))
    except DatabaseError:
        privilege = "BINLOG ADMIN" if facts.is_mariadb else "SESSION_VARIABLES_ADMIN"
        return ok(
            name,
            "as binlog_row_image says: this account may not set it. If the binlog is to grow less by the relay's "
            f"UPDATEs: GRANT {privilege} ON *.* TO {facts.account};",
        )
    return ok(name, "minimal")


def zone_check(connection: Connection, database: DatabaseSettings, now: datetime) -> Check:
    """Whether the newest row's created_at can be a time of ``database.timezone``."""
    name = "database.timezone"
    row = connection.execute(
        text(f"SELECT created_at FROM {quoted_name(database.table)} ORDER BY id DESC LIMIT 1")
    ).first()
    if row is None or not isinstance(row.created_at, datetime):
        return ok(name, f"{database.timezone}; no row to compare it with")
    age = now - from_column(row.created_at, database.zone)
    if age >= -_FUTURE:
        return ok(name, f"{database.timezone}; the newest row was written {_span(age)} ago by it")
    return Check(
        name,
        Level.WARN,
        f"by {database.timezone} the newest row will be written in {_span(-age)}",
        "the zone in which the application writes DATETIME columns",
        "set database.timezone (CDC_DATABASE__TIMEZONE), e.g. to Europe/Berlin",
    )


_EVER = datetime(2999, 1, 1)


def _status_sql(facts: Essentials) -> str:
    return "SHOW BINARY LOG STATUS" if _at_least(facts.version, 8, 2) else "SHOW MASTER STATUS"


def _at_least(version: str, major: int, minor: int) -> bool:
    numbers = tuple(int(number) for number in version.split("-")[0].split(".")[:2])
    return numbers >= (major, minor)


def _tried(name: str, remedy: str, attempt: Callable[[], object]) -> Check:
    try:
        with translated():
            attempt()
    except RelayError as error:
        return Check(name, Level.FAIL, error.message, "the privilege", remedy)
    return ok(name, "granted")


def _open_dump(settings: Settings, head: BinlogPosition, server: str) -> None:
    server_id = settings.tail.server_id or random.randint(2**30, 2**32 - 1)
    dump = DumpConnection(settings.database, settings.tail, server_id, head, server)
    try:
        # A refusal comes as the first packet; the name of the file, which is no row, when there is none.
        tables = OutboxTables(str(settings.database.parsed.database), settings.database.table, list)
        BinlogSource(dump, head, tables, on_unsupported=lambda _: None).read()
    finally:
        dump.close()


def _span(span: timedelta) -> str:
    return str(timedelta(seconds=round(max(0.0, span.total_seconds()))))
