"""`check` and the look before a start, against real servers, real accounts and real grants."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import Event

import pytest
from sqlalchemy import create_engine, make_url, text

from cdc_relay.config import Settings
from cdc_relay.config_layers import load
from cdc_relay.embedded.kafka import MockKafka
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.errors import DatabaseError, DatabaseUnavailable, PreflightFailed
from cdc_relay.outbox.database import make_engine
from cdc_relay.preflight.check import Check, Level
from cdc_relay.preflight.report import check_everything, exit_code
from cdc_relay.preflight.start import require

GRANTS = {
    "SELECT": "GRANT SELECT ON {database}.* TO {account}",
    "UPDATE": "GRANT UPDATE ON {database}.* TO {account}",
    "monitor": "GRANT {monitor} ON *.* TO {account}",
    "REPLICATION SLAVE": "GRANT REPLICATION SLAVE ON *.* TO {account}",
}

Account = Callable[..., str]


@pytest.fixture
def account(either_server: MysqlServer, either_database_url: str) -> Iterator[Account]:
    """Makes an account with every grant that a relay needs except those named; gives its URL."""
    url = make_url(either_database_url)
    root = create_engine(either_server.url, isolation_level="AUTOCOMMIT")
    names: list[str] = []
    monitor = "BINLOG MONITOR" if either_server.flavour == "mariadb" else "REPLICATION CLIENT"

    def make(*without: str) -> str:
        name = f"relay{len(names)}_{(url.database or '')[-8:]}"
        names.append(name)
        user = f"'{name}'@'%'"
        with root.connect() as connection:
            connection.execute(text(f"CREATE USER {user} IDENTIFIED BY 'secret'"))
            for grant, sql in GRANTS.items():
                if grant not in without:
                    connection.execute(text(sql.format(database=url.database, account=user, monitor=monitor)))
        return url.set(username=name, password="secret").render_as_string(hide_password=False)

    yield make
    with root.connect() as connection:
        for name in names:
            connection.execute(text(f"DROP USER '{name}'@'%'"))
    root.dispose()


@pytest.fixture(scope="module")
def mock_kafka() -> Iterator[MockKafka]:
    with MockKafka() as kafka:
        yield kafka


def settings(url: str, kafka: str = "127.0.0.1:1") -> Settings:
    return load({"database.url": url, "kafka.bootstrap_servers": kafka}, environ={})


def mysql_checks(url: str, kafka: MockKafka) -> dict[str, Check]:
    mysql, _ = check_everything(settings(url, kafka.bootstrap_servers))
    return {check.name: check for check in mysql}


def execute(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def look_before_start(url: str) -> None:
    database = settings(url).database
    engine = make_engine(database)
    try:
        require(engine, database, patience_s=0.0, stop=Event())
    finally:
        engine.dispose()


def test_an_account_with_exactly_the_documented_grants_passes(account: Account, mock_kafka: MockKafka) -> None:
    url = account()
    mysql, kafka = check_everything(settings(url, mock_kafka.bootstrap_servers))
    assert [check for check in mysql + kafka if check.level is not Level.OK] == []
    assert exit_code(mysql, kafka) == 0
    look_before_start(url)


@pytest.mark.parametrize("missing", GRANTS)
def test_a_missing_privilege_is_named_with_its_grant(account: Account, mock_kafka: MockKafka, missing: str) -> None:
    url = account(missing)
    checks = mysql_checks(url, mock_kafka)
    # Without SELECT no UPDATE can be tried either, and it comes after.
    name = next(name for name, check in checks.items() if check.level is Level.FAIL)
    assert name == missing or (missing == "monitor" and name in ("REPLICATION CLIENT", "BINLOG MONITOR"))
    assert checks[name].remedy.startswith(f"GRANT {name} ON ")
    assert f"'{make_url(url).username}'@'%'" in checks[name].remedy


def test_what_lets_the_relay_keep_the_binlog_small_is_named_and_not_asked_for(
    account: Account, either_database_url: str, mock_kafka: MockKafka
) -> None:
    url = account()
    refused = mysql_checks(url, mock_kafka)["writeback.row_image"]
    assert refused.level is Level.OK
    execute(either_database_url, refused.found[refused.found.index("GRANT") :])
    assert mysql_checks(url, mock_kafka)["writeback.row_image"].found == "minimal"


@pytest.mark.parametrize("missing", ["SELECT", "UPDATE"])
def test_a_start_without_a_privilege_on_the_table_is_refused(account: Account, missing: str) -> None:
    with pytest.raises(DatabaseError) as refused:
        look_before_start(account(missing))
    assert not refused.value.retriable
    assert refused.value.hint is not None


def test_a_wrong_password_is_told_and_not_shown(account: Account, mock_kafka: MockKafka) -> None:
    url = make_url(account()).set(password="wrong-one").render_as_string(hide_password=False)
    checks = mysql_checks(url, mock_kafka)
    assert list(checks) == ["connection"]
    assert "1045" in checks["connection"].found
    assert "wrong-one" not in str(checks)
    with pytest.raises(DatabaseError, match="1045") as refused:
        look_before_start(url)
    assert not refused.value.retriable


def test_a_missing_database_is_told(either_database_url: str, mock_kafka: MockKafka) -> None:
    url = make_url(either_database_url).set(database="nowhere").render_as_string(hide_password=False)
    assert "1049" in mysql_checks(url, mock_kafka)["connection"].found


def test_a_missing_table_is_told(either_database_url: str, mock_kafka: MockKafka) -> None:
    execute(either_database_url, "DROP TABLE agent_outbox_messages")
    assert mysql_checks(either_database_url, mock_kafka)["table"].level is Level.FAIL
    with pytest.raises(PreflightFailed, match="there is no table") as refused:
        look_before_start(either_database_url)
    assert "init-db" in str(refused.value.hint)


def test_a_missing_column_is_told(either_database_url: str, mock_kafka: MockKafka) -> None:
    execute(either_database_url, "ALTER TABLE agent_outbox_messages DROP COLUMN published_at, DROP COLUMN max_retry")
    found = mysql_checks(either_database_url, mock_kafka)["table"]
    assert "lacks max_retry, published_at" in found.found
    with pytest.raises(PreflightFailed, match="max_retry, published_at"):
        look_before_start(either_database_url)


def test_the_statements_that_mend_a_table_mend_it(either_database_url: str, mock_kafka: MockKafka) -> None:
    execute(
        either_database_url,
        "ALTER TABLE agent_outbox_messages MODIFY last_error VARCHAR(255), MODIFY status VARCHAR(8), "
        "MODIFY published_at DATETIME(3) NOT NULL, MODIFY created_at BIGINT, DROP KEY idx_outbox_status_next",
    )
    before = mysql_checks(either_database_url, mock_kafka)
    assert (before["table"].level, before["index"].level) == (Level.FAIL, Level.WARN)
    statements = f"{before['table'].remedy} {before['index'].remedy}".split(";")
    execute(either_database_url, *filter(None, map(str.strip, statements)))
    after = mysql_checks(either_database_url, mock_kafka)
    assert [check for check in after.values() if check.level is not Level.OK] == []


def test_a_table_that_keeps_no_transactions_is_refused(either_database_url: str, mock_kafka: MockKafka) -> None:
    execute(either_database_url, "ALTER TABLE agent_outbox_messages ENGINE = MyISAM")
    assert mysql_checks(either_database_url, mock_kafka)["engine"].level is Level.FAIL


def test_rows_from_the_future_show_a_wrong_zone(either_database_url: str, mock_kafka: MockKafka) -> None:
    execute(
        either_database_url,
        "INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload, created_at) "
        "VALUES ('x', 't', 'k', '{}', UTC_TIMESTAMP() + INTERVAL 8 HOUR)",
    )
    zone = mysql_checks(either_database_url, mock_kafka)["database.timezone"]
    assert zone.level is Level.WARN
    assert "will be written in 7:59" in zone.found or "will be written in 8:00" in zone.found


def test_topics_of_waiting_rows_are_looked_for(either_database_url: str, mock_kafka: MockKafka) -> None:
    execute(
        either_database_url,
        "INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload) VALUES "
        "('x', 'never-made', 'k', '{}'), ('x', 'not legal', 'k', '{}')",
    )
    _, kafka = check_everything(settings(either_database_url, mock_kafka.bootstrap_servers))
    [topics] = [check for check in kafka if check.name == "topics"]
    assert topics.level is Level.WARN
    assert "never-made" in topics.found
    assert "not legal" not in topics.found


def test_no_kafka_is_told(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_relay.preflight.kafka._ANSWER_S", 1.0)
    mysql, kafka = check_everything(settings(database_url))
    assert [check.level for check in kafka] == [Level.FAIL]
    assert "127.0.0.1:1" in kafka[0].found
    assert exit_code(mysql, kafka) == 4


@pytest.mark.parametrize("flavour", ["mysql", "mariadb"])
def test_a_server_without_a_row_binlog_is_refused(flavour: str, mock_kafka: MockKafka) -> None:
    options: dict[str, str | int | bool | None] = {"skip_log_bin": None, "binlog_format": "STATEMENT"}
    with MysqlServer(flavour=flavour, options=options) as server:  # type: ignore[arg-type]
        checks = mysql_checks(server.url, mock_kafka)
        assert {"log_bin", "binlog_format", "table"} <= {n for n, c in checks.items() if c.level is Level.FAIL}
        with pytest.raises(PreflightFailed, match="log_bin: OFF"):
            look_before_start(server.url)


@pytest.mark.parametrize("flavour", ["mysql", "mariadb"])
def test_a_database_that_is_kept_out_of_the_binlog_is_told(flavour: str, mock_kafka: MockKafka) -> None:
    with MysqlServer(flavour=flavour, options={"binlog_do_db": "other"}) as server:  # type: ignore[arg-type]
        assert mysql_checks(server.url, mock_kafka)["binlog filters"].level is Level.FAIL


def test_a_server_that_is_away_is_waited_for_and_then_told(database_url: str) -> None:
    nowhere = settings("mysql://root@127.0.0.1:1/x").database
    engine = make_engine(nowhere)
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match="no answer within") as away:
        require(engine, nowhere, patience_s=0.3, stop=Event())
    assert time.monotonic() - began >= 0.3
    assert away.value.hint is not None


def test_a_stop_ends_the_waiting() -> None:
    nowhere = settings("mysql://root@127.0.0.1:1/x").database
    stop = Event()
    stop.set()
    require(make_engine(nowhere), nowhere, patience_s=60.0, stop=stop)
