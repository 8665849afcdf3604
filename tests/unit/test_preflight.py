"""The judgement on a server and a table, from facts alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cdc_relay.errors import PreflightFailed
from cdc_relay.outbox.table import OUTBOX_COLUMNS
from cdc_relay.preflight.check import Level, raise_first_failure
from cdc_relay.preflight.facts import ColumnFacts, Essentials, Extras
from cdc_relay.preflight.mysql import essential_checks, extra_checks

INTEGERS = ("id", "retry_count", "max_retry")
TIMES = ("next_retry_at", "published_at", "consumed_at", "created_at", "updated_at")


def column(name: str, **changes: Any) -> ColumnFacts:
    if name in INTEGERS:
        usual = ColumnFacts(name, "bigint", "bigint", False, None, None)
    elif name in TIMES:
        usual = ColumnFacts(name, "datetime", "datetime(3)", True, None, None)
    elif name in ("payload", "last_error"):
        usual = ColumnFacts(name, "longtext", "longtext", True, 2**32 - 1, "utf8mb4")
    else:
        usual = ColumnFacts(name, "varchar", "varchar(128)", True, 128, "utf8mb4")
    return replace(usual, **changes)


FACTS = Essentials("9.7.4", True, "ROW", 1, "shop", "'relay'@'%'", tuple(column(name) for name in OUTBOX_COLUMNS))
EXTRAS = Extras({"binlog_row_image": "FULL"}, "InnoDB", {"i": ("status", "next_retry_at", "biz_type")}, 0.0)


def with_column(name: str, **changes: Any) -> Essentials:
    columns = tuple(column(each, **(changes if each == name else {})) for each in OUTBOX_COLUMNS)
    return replace(FACTS, columns=columns)


def failures(facts: Essentials) -> dict[str, tuple[str, str]]:
    return {
        check.name: (check.found, check.remedy)
        for check in essential_checks(facts, "outbox")
        if check.level is Level.FAIL
    }


def test_a_server_and_a_table_as_they_should_be_pass() -> None:
    assert failures(FACTS) == {}
    assert {check.level for check in extra_checks(FACTS, EXTRAS, "outbox")} == {Level.OK}


@pytest.mark.parametrize(
    ("facts", "name", "found", "remedy"),
    [
        (replace(FACTS, version="5.7.44-log"), "version", "MySQL 5.7.44-log", "upgrade"),
        (replace(FACTS, version="10.5.2-MariaDB"), "version", "MariaDB 10.5.2", "upgrade"),
        (replace(FACTS, log_bin=False), "log_bin", "OFF", "skip-log-bin"),
        (replace(FACTS, binlog_format="STATEMENT"), "binlog_format", "STATEMENT", "binlog_format = 'ROW'"),
        (replace(FACTS, binlog_format="MIXED"), "binlog_format", "MIXED", "binlog_format = 'ROW'"),
        (replace(FACTS, server_id=0), "server_id", "0", "SET GLOBAL server_id"),
        (replace(FACTS, columns=()), "table", "no table shop.outbox", "cdc-relay init-db"),
        (replace(FACTS, columns=FACTS.columns[:-1]), "table", "lacks updated_at", "init-db --print"),
        (with_column("id", type="varchar", declared="varchar(36)"), "table", "id is varchar(36)", "MODIFY id BIGINT"),
        (with_column("created_at", type="bigint", declared="bigint"), "table", "created_at is bigint", "DATETIME(6)"),
        (
            with_column("payload", type="bit", declared="bit(1)"),
            "table",
            "payload is bit(1)",
            "payload LONGTEXT NOT NULL;",
        ),
        (with_column("topic", type="blob", declared="blob"), "table", "topic is blob", "topic VARCHAR(128) NOT NULL;"),
        (
            with_column("retry_count", type="varchar", declared="varchar(9)"),
            "table",
            "retry_count is varchar(9)",
            "retry_count INTEGER NOT NULL DEFAULT 0;",
        ),
        (with_column("published_at", nullable=False), "table", "published_at is NOT NULL", "datetime(3) NULL"),
        (with_column("last_error", characters=255), "table", "last_error takes 255 of 2000", "last_error TEXT"),
        (with_column("last_error", charset="latin1"), "table", "only latin1", "CHARACTER SET utf8mb4"),
        (
            with_column("status", characters=8),
            "table",
            "does not take published",
            "status VARCHAR(32) NOT NULL DEFAULT",
        ),
        (
            with_column("status", type="enum", declared="enum('pending','published','consumed')"),
            "table",
            "does not take dead",
            "status VARCHAR(32)",
        ),
    ],
)
def test_what_is_missing_is_named_with_what_mends_it(facts: Essentials, name: str, found: str, remedy: str) -> None:
    failed = failures(facts)
    assert list(failed) == [name]
    assert found in failed[name][0]
    assert remedy in failed[name][1]


@pytest.mark.parametrize(
    ("facts", "version"),
    [(FACTS, "8.0.36"), (FACTS, "8.4.0"), (FACTS, "10.6.1-MariaDB-log"), (FACTS, "5.5.5-10.11.18-MariaDB-1:10")],
)
def test_versions_that_are_new_enough_pass(facts: Essentials, version: str) -> None:
    assert failures(replace(facts, version=version)) == {}


@pytest.mark.parametrize(
    "changed",
    [
        with_column("payload", type="json", declared="json", characters=None, charset=None),
        with_column("payload", type="longblob", declared="longblob", charset=None),
        with_column("message_key", type="varbinary", declared="varbinary(255)", charset=None),
        with_column("status", type="enum", declared="enum('pending','published','consumed','dead')"),
        with_column("created_at", type="timestamp", declared="timestamp(6)", nullable=False),
        replace(FACTS, columns=(*reversed(FACTS.columns), column("tenant"))),
        replace(FACTS, columns=tuple(replace(c, name=c.name.upper()) for c in FACTS.columns)),
    ],
)
def test_a_table_of_another_make_passes(changed: Essentials) -> None:
    assert failures(changed) == {}


@pytest.mark.parametrize(
    ("extras", "name", "level", "says"),
    [
        (replace(EXTRAS, engine="MyISAM"), "engine", Level.FAIL, "ENGINE = InnoDB"),
        (replace(EXTRAS, indexes={"i": ("status",)}), "index", Level.WARN, "CREATE INDEX"),
        (replace(EXTRAS, variables={"binlog_row_image": "MINIMAL"}), "binlog_row_image", Level.WARN, "'FULL'"),
        (
            replace(EXTRAS, variables={"binlog_expire_logs_seconds": "600"}),
            "binlog retention",
            Level.WARN,
            "binlog_expire_logs_seconds = 86400",
        ),
        (replace(EXTRAS, clock_ahead_s=-90.0), "clock", Level.WARN, "NTP"),
    ],
)
def test_what_an_operator_should_know_is_told(extras: Extras, name: str, level: Level, says: str) -> None:
    [told] = [check for check in extra_checks(FACTS, extras, "outbox") if check.level is not Level.OK]
    assert (told.name, told.level) == (name, level)
    assert says in told.remedy


@pytest.mark.parametrize(("value", "fails"), [("innodb", True), ("", False)])
def test_a_binlog_that_lies_in_innodb_cannot_be_followed(value: str, fails: bool) -> None:
    facts = replace(EXTRAS, variables={"binlog_row_image": "FULL", "binlog_storage_engine": value})
    checks = {check.name: check for check in extra_checks(FACTS, facts, "outbox")}
    assert ("binlog storage" in checks) is fails
    if fails:
        assert checks["binlog storage"].level is Level.FAIL
        assert "binlog_storage_engine" in checks["binlog storage"].remedy


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"binlog_expire_logs_seconds": "2592000"}, "720 h"),
        ({"binlog_expire_logs_seconds": "0", "expire_logs_days": "0.5"}, "12 h"),
        ({"binlog_expire_logs_seconds": "0"}, "until somebody removes them"),
        ({}, "until somebody removes them"),
    ],
)
def test_the_retention_of_both_makes_is_understood(variables: dict[str, str], found: str) -> None:
    checks = extra_checks(FACTS, replace(EXTRAS, variables=variables), "outbox")
    [retention] = [check for check in checks if check.name == "binlog retention"]
    assert retention.level is Level.OK
    assert found in retention.found


def test_a_start_names_the_first_failure_only() -> None:
    checks = essential_checks(replace(FACTS, log_bin=False, columns=()), "outbox")
    with pytest.raises(PreflightFailed, match=r"^log_bin: OFF; wanted: ON") as raised:
        raise_first_failure(checks)
    assert raised.value.exit_code == 3
    assert raised.value.hint is not None
