"""What is right and wrong with a server and a table: pure, from the facts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cdc_relay.outbox.backoff import LAST_ERROR_CHARACTERS
from cdc_relay.outbox.status import Status
from cdc_relay.outbox.table import OUTBOX_COLUMNS, contract_column
from cdc_relay.preflight.check import Check, Level, ok
from cdc_relay.preflight.facts import ColumnFacts, Essentials, Extras

#: SKIP LOCKED came with these.
_OLDEST = {"MySQL": (8, 0), "MariaDB": (10, 6)}
_INTEGERS = frozenset({"tinyint", "smallint", "mediumint", "int", "bigint"})
_TEXTS = frozenset({"char", "varchar", "tinytext", "text", "mediumtext", "longtext"})
#: What GORM makes of []byte.
_BINARIES = frozenset({"varbinary", "tinyblob", "blob", "mediumblob", "longblob"})
_TIMES = frozenset({"datetime", "timestamp"})
_TYPES = {
    **dict.fromkeys(("id", "retry_count", "max_retry"), _INTEGERS),
    **dict.fromkeys(("biz_type", "topic", "last_error"), _TEXTS),
    "message_key": _TEXTS | _BINARIES,
    "payload": _TEXTS | _BINARIES | {"json"},
    "status": _TEXTS | {"enum"},
    **dict.fromkeys(("next_retry_at", "published_at", "consumed_at", "created_at", "updated_at"), _TIMES),
}
#: Columns that are emptied on the way.
_EMPTIED = ("next_retry_at", "published_at")
_INDEX = ("status", "next_retry_at")
_AN_HOUR_S = 3_600
_CLOCKS_APART_S = 2.0


def essential_checks(facts: Essentials, table: str) -> list[Check]:
    """What a start depends on, the most basic first."""
    return [_version(facts), _log_bin(facts), _binlog_format(facts), _server_id(facts), _columns(facts, table)]


def extra_checks(facts: Essentials, extras: Extras, table: str) -> list[Check]:
    """What an operator should know besides."""
    return [
        _engine(extras, table),
        _index(extras, table),
        _row_image(extras),
        _row_metadata(extras),
        *_storage(extras),
        _retention(facts, extras),
        _clock(extras),
    ]


def _version(facts: Essentials) -> Check:
    kind = "MariaDB" if facts.is_mariadb else "MySQL"
    # "5.5.5-10.11.18-MariaDB" is how MariaDB greets old replicas.
    numbers = re.search(r"(\d+)\.(\d+)", facts.version.removeprefix("5.5.5-"))
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    found = f"{kind} {facts.version}"
    if version >= _OLDEST[kind]:
        return ok("version", found)
    oldest = ".".join(map(str, _OLDEST[kind]))
    return Check("version", Level.FAIL, found, f"{kind} {oldest} or later", "upgrade the server")


def _log_bin(facts: Essentials) -> Check:
    if facts.log_bin:
        return ok("log_bin", "ON")
    remedy = "remove skip-log-bin from [mysqld]" if not facts.is_mariadb else "log_bin = binlog under [mysqld]"
    return Check("log_bin", Level.FAIL, "OFF", "ON", f"my.cnf: {remedy}, then restart the server")


def _binlog_format(facts: Essentials) -> Check:
    if facts.binlog_format.upper() == "ROW":
        return ok("binlog_format", "ROW")
    return Check(
        "binlog_format",
        Level.FAIL,
        facts.binlog_format,
        "ROW",
        "SET GLOBAL binlog_format = 'ROW'; and binlog_format = ROW under [mysqld] in my.cnf, then let the application "
        "connect anew",
    )


def _server_id(facts: Essentials) -> Check:
    if facts.server_id:
        return ok("server_id", str(facts.server_id))
    return Check("server_id", Level.FAIL, "0", "any other number", "SET GLOBAL server_id = 1; and the same in my.cnf")


def _columns(facts: Essentials, table: str) -> Check:
    columns = {column.name.lower(): column for column in facts.columns}
    if not columns:
        return Check(
            "table",
            Level.FAIL,
            f"there is no table {facts.database}.{table} that {facts.account} may see",
            "the outbox table",
            f"cdc-relay init-db; or name the right one in database.table; or "
            f"GRANT SELECT, UPDATE ON `{facts.database}`.`{table}` TO {facts.account};",
        )
    missing = [name for name in OUTBOX_COLUMNS if name not in columns]
    if missing:
        return Check(
            "table",
            Level.FAIL,
            f"{facts.database}.{table} lacks {', '.join(missing)}",
            "every column of the contract",
            "add what is missing as `cdc-relay init-db --print` shows it",
        )
    faults = [fault for name in OUTBOX_COLUMNS for fault in _faults(columns[name])]
    if not faults:
        return ok("table", f"{facts.database}.{table} has all {len(OUTBOX_COLUMNS)} columns")
    return Check(
        "table",
        Level.FAIL,
        "; ".join(found for found, _ in faults),
        "columns that take what is written to them, as `cdc-relay init-db --print` shows them",
        " ".join(f"ALTER TABLE `{facts.database}`.`{table}` MODIFY {remedy};" for _, remedy in faults),
    )


def _faults(column: ColumnFacts) -> Iterator[tuple[str, str]]:
    """What is wrong with a column, and its definition that would be right."""
    name = column.name.lower()
    if column.type not in _TYPES[name]:
        yield f"{name} is {column.declared}", contract_column(name)
    elif name in _EMPTIED and not column.nullable:
        yield f"{name} is NOT NULL", f"{name} {column.declared} NULL"
    elif name == "last_error" and column.characters is not None and column.characters < LAST_ERROR_CHARACTERS:
        yield f"last_error takes {column.characters} of {LAST_ERROR_CHARACTERS} characters", contract_column(name)
    elif name == "last_error" and column.charset not in ("utf8mb4", None):
        yield f"last_error takes only {column.charset}", "last_error TEXT CHARACTER SET utf8mb4"
    elif name == "status":
        lacking = [status for status in Status if not _takes(column, status)]
        if lacking:
            yield f"status does not take {', '.join(lacking)}", contract_column(name)


def _takes(column: ColumnFacts, value: str) -> bool:
    if column.type == "enum":
        return f"'{value}'" in column.declared
    return column.characters is None or column.characters >= len(value)


def _engine(extras: Extras, table: str) -> Check:
    if extras.engine is None or extras.engine.lower() == "innodb":
        return ok("engine", extras.engine or "not told")
    return Check(
        "engine",
        Level.FAIL,
        f"{table} is {extras.engine}",
        "InnoDB: without transactions there is no transactional outbox",
        f"ALTER TABLE `{table}` ENGINE = InnoDB;",
    )


def _index(extras: Extras, table: str) -> Check:
    for name, columns in extras.indexes.items():
        if tuple(column.lower() for column in columns[:2]) == _INDEX:
            return ok("index", f"{name} ({', '.join(columns)})")
    return Check(
        "index",
        Level.WARN,
        "none begins with status, next_retry_at",
        "one: the sweep reads the whole table without",
        f"CREATE INDEX idx_outbox_status_next ON `{table}` (status, next_retry_at, biz_type);",
    )


def _row_image(extras: Extras) -> Check:
    found = extras.variables.get("binlog_row_image", "FULL")
    if found.upper() == "FULL":
        return ok("binlog_row_image", "FULL")
    return Check(
        "binlog_row_image",
        Level.WARN,
        found,
        "FULL: with less, rows whose columns were left to their defaults are read again from the table",
        "SET GLOBAL binlog_row_image = 'FULL'; and the same in my.cnf",
    )


def _row_metadata(extras: Extras) -> Check:
    found = extras.variables.get("binlog_row_metadata", "not known to this server")
    return ok("binlog_row_metadata", f"{found}: any will do")


def _storage(extras: Extras) -> Iterator[Check]:
    """MariaDB 12.3 and later only."""
    found = extras.variables.get("binlog_storage_engine")
    if found:
        yield Check(
            "binlog storage",
            Level.FAIL,
            f"binlog_storage_engine is {found}: such a binlog is read by GTID only",
            "files, which is the default",
            "my.cnf: remove binlog_storage_engine, then restart the server; or run cdc-relay sweep without a tailer",
        )


def _retention(facts: Essentials, extras: Extras) -> Check:
    seconds = float(extras.variables.get("binlog_expire_logs_seconds") or 0)
    seconds = seconds or 86_400 * float(extras.variables.get("expire_logs_days") or 0)
    if not seconds:
        return ok("binlog retention", "files are kept until somebody removes them")
    if seconds >= _AN_HOUR_S:
        return ok("binlog retention", f"{seconds / 3600:g} h")
    return Check(
        "binlog retention",
        Level.WARN,
        f"{seconds:g} s",
        "an hour or more: after a longer stop the relay catches up from the table instead",
        "SET GLOBAL binlog_expire_logs_seconds = 86400; and the same in my.cnf",
    )


def _clock(extras: Extras) -> Check:
    ahead = extras.clock_ahead_s
    if abs(ahead) <= _CLOCKS_APART_S:
        return ok("clock", "the server's and this machine's agree")
    return Check(
        "clock",
        Level.WARN,
        f"the server's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's",
        "the same time: retries and scheduled rows come early or late, and latencies are told wrong",
        "synchronize both by NTP",
    )
