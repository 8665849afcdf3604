"""The commands against real servers: short ones in this process, the relay itself as people run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from typer.testing import CliRunner

from cdc_relay.checkpoint import FileCheckpointStore
from cdc_relay.commands import app
from cdc_relay.embedded.kafka import MockKafka
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.errors import DatabaseError, KafkaUnavailable, RelayError

TABLES = ["agent_outbox_messages", "chat_histories", "agent_chats"]


class Ended(NamedTuple):
    code: int
    out: str
    error: RelayError | None


class Place:
    """A database, a broker and a checkpoint file, and how commands are told of them."""

    def __init__(self, url: str, kafka: str, folder: Path) -> None:
        self.url = url
        self.checkpoint = folder / "relay.json"
        self.environment = {
            "CDC_DATABASE__URL": url,
            "CDC_KAFKA__BOOTSTRAP_SERVERS": kafka,
            "CDC_CHECKPOINT__PATH": str(self.checkpoint),
            "CDC_ADMIN__PORT": "0",
            "CDC_LOG__FORMAT": "json",
        }
        self.engine: Engine = create_engine(url)

    def command(self, *argv: str) -> Ended:
        """Run a command in this process."""
        result = CliRunner().invoke(app, argv, env=self.environment)
        error = result.exception if isinstance(result.exception, RelayError) else None
        if result.exception is not None and error is None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ended(error.exit_code if error else result.exit_code, result.output, error)

    def start(self, *argv: str, **changed: str) -> subprocess.Popen[str]:
        """Start the relay as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "cdc_relay", *argv],
            env={**os.environ, **self.environment, **changed},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def insert(self, *keys: str, topic: str = "t", payload: str = "{}", **columns: str) -> None:
        names = "".join(f", {name}" for name in columns)
        values = "".join(f", {value}" for value in columns.values())
        with self.engine.begin() as connection:
            for key in keys:
                connection.execute(
                    text(
                        f"INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload{names}) "
                        f"VALUES ('x', :topic, :key, :payload{values})"
                    ),
                    {"topic": topic, "key": key, "payload": payload},
                )

    def statuses(self) -> list[str]:
        with self.engine.begin() as connection:
            return list(connection.execute(text("SELECT status FROM agent_outbox_messages ORDER BY id")).scalars())


def eventually(done: Callable[[], bool], what: str, timeout_s: float = 45.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"not seen: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def mock_kafka() -> Iterator[MockKafka]:
    with MockKafka() as kafka:
        yield kafka


@pytest.fixture
def place(database_url: str, mock_kafka: MockKafka, tmp_path: Path) -> Iterator[Place]:
    place = Place(database_url, mock_kafka.bootstrap_servers, tmp_path)
    yield place
    place.engine.dispose()


@pytest.fixture
def relay(place: Place) -> Iterator[subprocess.Popen[str]]:
    """A running `cdc-relay run` that has sent what was pending."""
    place.insert("ready")
    with place.start("run") as program:
        try:
            eventually(lambda: place.statuses() == ["published"] or program.poll() is not None, "the first row")
            yield program
        finally:
            program.kill()


def test_init_db_creates_what_is_missing_and_alters_nothing(
    either_database_url: str, mock_kafka: MockKafka, tmp_path: Path
) -> None:
    place = Place(either_database_url, mock_kafka.bootstrap_servers, tmp_path)
    with place.engine.begin() as connection:
        connection.execute(text("DROP TABLE chat_histories, agent_chats"))
        connection.execute(text("ALTER TABLE agent_outbox_messages ADD COLUMN tenant INT"))
        before = connection.execute(text("SHOW CREATE TABLE agent_outbox_messages")).one()
    told = place.command("init-db")
    assert told.out.splitlines() == [
        "agent_outbox_messages: is there already, left as it is",
        "chat_histories: created",
        "agent_chats: created",
    ]
    with place.engine.begin() as connection:
        assert connection.execute(text("SHOW CREATE TABLE agent_outbox_messages")).one() == before
        connection.execute(text("INSERT INTO agent_chats (chat_id, user_id) VALUES ('c', 1)"))
    assert place.command("init-db").out.count("left as it is") == 3
    place.engine.dispose()


def test_the_printed_sql_makes_the_same_tables(either_server: MysqlServer, either_database_url: str) -> None:
    engine = create_engine(either_database_url)
    printed = CliRunner().invoke(app, ["init-db", "--print"]).output

    def shown() -> list[Any]:
        with engine.begin() as connection:
            return [connection.execute(text(f"SHOW CREATE TABLE {table}")).one() for table in TABLES]

    made_by_us = shown()
    with engine.begin() as connection:
        connection.execute(text(f"DROP TABLE {', '.join(TABLES)}"))
        for statement in filter(None, map(str.strip, printed.split(";"))):
            connection.execute(text(statement))
    assert shown() == made_by_us
    engine.dispose()


def test_status_tells_rows_and_the_oldest_pending_one(place: Place) -> None:
    place.insert("a", "b", created_at="UTC_TIMESTAMP() - INTERVAL 1 HOUR", retry_count="3", last_error="'no luck'")
    place.insert("c", status="'dead'")
    told = json.loads(place.command("status", "--json").out)
    assert told["rows"] == {"pending": 2, "published": 0, "consumed": 0, "dead": 1}
    assert told["oldest_pending"]["id"] == 1
    assert 3590 < told["oldest_pending"]["age_s"] < 3700
    assert told["oldest_pending"]["last_error"] == "no luck"
    assert told["checkpoint"]["position"] is None
    assert [lock["connection_id"] for lock in told["locks"]] == [None, None]
    assert (told["reader"]["reader"], told["reader"]["told_by"]) == ("wire", None)
    shown = place.command("status").out
    assert "what a relay started here would use" in shown
    assert "failed 3 times: no luck" in shown
    assert f"none at {place.checkpoint}" in shown


def test_status_tells_what_an_account_may_not_ask(place: Place, mysql_server: MysqlServer) -> None:
    root = create_engine(mysql_server.url, isolation_level="AUTOCOMMIT")
    database = make_url(place.url).database
    with root.connect() as connection:
        connection.execute(text("CREATE USER looker@'%' IDENTIFIED BY 'x'"))
        connection.execute(text(f"GRANT SELECT ON {database}.* TO looker@'%'"))
    url = make_url(place.url).set(username="looker", password="x").render_as_string(hide_password=False)
    place.environment["CDC_DATABASE__URL"] = url
    told = json.loads(place.command("status", "--json").out)
    assert told["head"] is None
    assert "REPLICATION CLIENT" in told["unknown"]["binlog"]
    with root.connect() as connection:
        connection.execute(text("DROP USER looker@'%'"))
    root.dispose()


def test_dead_rows_are_listed_and_requeued(place: Place) -> None:
    assert "there are no dead rows" in place.command("dead", "list").out
    place.insert("a", "b", "c", status="'dead'", last_error="'topic [x] is not legal'", retry_count="20")
    place.insert("d")
    assert place.command("dead", "list").out.count("topic [x] is not legal") == 3
    listed = json.loads(place.command("dead", "list", "--json", "--limit", "2").out)
    assert [row["message_key"] for row in listed] == ["c", "b"]
    assert place.command("dead", "requeue", "1", "4")[:2] == (1, "requeued 1\n1 of the given ids are not dead rows\n")
    assert place.command("dead", "requeue", "--all")[:2] == (0, "requeued 2\n")
    assert place.statuses() == ["pending"] * 4


def test_any_number_of_dead_rows_is_requeued_and_discarded_a_batch_at_a_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.insert(*"abcdefg", status="'dead'", last_error="'why'")
    monkeypatch.setattr("cdc_relay.commands.dead._BATCH_ROWS", 3)
    assert place.command("dead", "discard", "--all")[:2] == (0, "3 rows so far\n6 rows so far\ndiscarded 7\n")
    assert place.command("dead", "requeue", "7", "3", "5", "1")[:2] == (0, "3 rows so far\nrequeued 4\n")
    assert place.statuses() == ["pending", "dead"] * 3 + ["pending"]
    assert place.command("dead", "requeue", "--all")[:2] == (0, "3 rows so far\nrequeued 3\n")


def test_where_many_rows_are_consumed_their_number_is_an_estimate(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.insert(*"abc", status="'consumed'")
    place.insert("d")
    monkeypatch.setattr("cdc_relay.status.CONSUMED_TO", 3)
    told = json.loads(place.command("status", "--json").out)
    assert (told["rows"]["pending"], told["estimated"]) == (1, ["consumed"])
    assert told["rows"]["consumed"] >= 3
    assert "about " in place.command("status").out


def test_keys_of_dead_rows_are_text_also_where_their_column_is_binary(place: Place) -> None:
    place.insert("ключ", status="'dead'")
    with place.engine.begin() as connection:
        connection.execute(text("ALTER TABLE agent_outbox_messages MODIFY message_key VARBINARY(255)"))
    assert [row["message_key"] for row in json.loads(place.command("dead", "list", "--json").out)] == ["ключ"]


def test_dead_rows_that_block_their_keys_are_shown_and_let_go(place: Place) -> None:
    place.insert("a", "a", "b", "", status="'dead'", last_error="'why'")
    place.insert("a", last_error="'held back: waits for an earlier row of the same message_key (id 1)'")
    assert json.loads(place.command("status", "--json").out)["blocked_keys"] == 0, "under skip they block nobody"
    place.environment["CDC_ORDERING__ON_DEAD"] = "block"
    told = json.loads(place.command("status", "--json").out)
    assert (told["blocked_keys"], told["blocked_by"]) == (2, [1, 2, 3])
    shown = place.command("status").out
    assert "2, until these dead rows are requeued or discarded: 1, 2, 3" in shown
    assert "held back: waits for an earlier row of the same message_key (id 1)" in shown
    assert place.command("dead", "discard", "1", "5")[:2] == (
        1,
        "discarded 1\n1 of the given ids are not dead rows, or were discarded before\n",
    )
    assert "discarded: why" in place.command("dead", "list").out
    assert json.loads(place.command("status", "--json").out)["blocked_by"] == [2, 3]
    assert place.command("dead", "discard", "--all")[:2] == (0, "discarded 3\n")
    assert place.command("dead", "discard", "--all")[:2] == (0, "discarded 0\n")
    assert json.loads(place.command("status", "--json").out)["blocked_keys"] == 0
    assert place.statuses() == [*["dead"] * 4, "pending"]


def test_sweep_once_sends_what_is_due_and_says_so(place: Place) -> None:
    place.insert("a", "b")
    place.insert("c", next_retry_at="UTC_TIMESTAMP() + INTERVAL 1 HOUR")
    place.insert("d", topic="not legal")
    swept = place.command("sweep", "--once", "--log-level", "error")
    assert swept.code == 0, swept
    assert place.statuses() == ["published", "published", "pending", "dead"]
    assert "left to the tailer 0" in swept.out


def test_sweep_once_beside_a_running_relay_is_refused(place: Place, relay: subprocess.Popen[str]) -> None:
    refused = place.command("sweep", "--once", "--log-level", "error")
    assert refused.code == 3
    assert "sweeps already" in str(refused.error)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_running_relay_is_seen_and_stops_in_good_order(
    place: Place, relay: subprocess.Popen[str], number: signal.Signals
) -> None:
    told = json.loads(place.command("status", "--json").out)
    [holder] = {lock["connection_id"] for lock in told["locks"]}
    assert isinstance(holder, int)
    assert {lock["user"] for lock in told["locks"]} == {"root"}
    eventually(lambda: json.loads(place.command("status", "--json").out)["lag_bytes"] == 0, "no lag")
    place.insert("a", "b")
    eventually(lambda: place.statuses() == ["published"] * 3, "rows published")
    relay.send_signal(number)
    out, log = relay.communicate(timeout=60)
    assert relay.returncode == 0, log
    assert out == ""
    assert all("timestamp" in json.loads(line) for line in log.splitlines())
    saved = FileCheckpointStore(place.checkpoint).load()
    assert saved is not None
    shown = place.command("checkpoint", "show")
    assert str(saved.position) in shown.out
    assert json.loads(place.command("checkpoint", "show", "--json").out)["server"] == saved.server


def test_tail_and_sweep_in_two_processes_do_what_run_does(place: Place) -> None:
    with place.start("tail") as tailing, place.start("sweep") as sweeping:
        try:
            eventually(place.checkpoint.exists, "the tailer's checkpoint")
            place.insert("a", "b")
            place.insert("c", next_retry_at="UTC_TIMESTAMP() + INTERVAL 1 SECOND")
            eventually(lambda: place.statuses() == ["published"] * 3, "rows published")
            for program in (tailing, sweeping):
                program.send_signal(signal.SIGTERM)
                assert program.wait(60) == 0
        finally:
            tailing.kill()
            sweeping.kill()


def refused(place: Place, **changed: str) -> tuple[int, list[str]]:
    """How `run` ends that cannot start: code, and the lines that are not JSON logs."""
    with place.start("run", **changed) as program:
        _, log = program.communicate(timeout=60)
    return program.returncode, [line for line in log.splitlines() if not line.startswith("{")]


def test_a_wrong_password_ends_run_with_3(place: Place) -> None:
    url = make_url(place.url).set(username="nobody", password="secret").render_as_string(hide_password=False)
    code, lines = refused(place, CDC_DATABASE__URL=url)
    assert code == 3
    assert lines[0].startswith("error: MySQL says 1045: Access denied for user 'nobody'")
    assert lines[1:] == ["hint: check user and password in database.url"]


def test_a_missing_table_ends_run_with_3(place: Place) -> None:
    code, lines = refused(place, CDC_DATABASE__TABLE="elsewhere")
    assert code == 3
    assert "there is no table" in lines[0]
    assert "init-db" in lines[1]


def test_a_missing_privilege_on_the_binlog_ends_run_with_3(place: Place, mysql_server: MysqlServer) -> None:
    root = create_engine(mysql_server.url, isolation_level="AUTOCOMMIT")
    with root.connect() as connection:
        connection.execute(text("CREATE USER deaf@'%' IDENTIFIED BY 'x'"))
        connection.execute(text(f"GRANT SELECT, UPDATE ON {make_url(place.url).database}.* TO deaf@'%'"))
        connection.execute(text("GRANT REPLICATION CLIENT ON *.* TO deaf@'%'"))
    url = make_url(place.url).set(username="deaf", password="x").render_as_string(hide_password=False)
    code, lines = refused(place, CDC_DATABASE__URL=url)
    with root.connect() as connection:
        connection.execute(text("DROP USER deaf@'%'"))
    root.dispose()
    assert code == 3
    assert "REPLICATION SLAVE" in lines[0]


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"CDC_DATABASE__URL": "mysql://root@127.0.0.1:1/x"}, DatabaseError),
        ({"CDC_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}, KafkaUnavailable),
    ],
)
def test_a_server_that_does_not_answer_ends_a_start(
    place: Place, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], error: type[RelayError]
) -> None:
    monkeypatch.setattr("cdc_relay.service._ANSWER_AT_START_S", 0.5)
    place.environment |= changed
    ended = place.command("run", "--log-level", "error")
    assert ended.code == error.exit_code
    assert "127.0.0.1" in str(ended.error)
    assert ended.error is not None
    assert ended.error.hint is not None


def test_check_is_content_with_a_good_place(place: Place) -> None:
    checked = place.command("check")
    assert checked.code == 0
    assert "fail" not in checked.out
    levels = {check["level"] for check in json.loads(place.command("check", "--json").out)}
    assert levels == {"ok"}


@pytest.mark.parametrize(
    ("changed", "code", "says"),
    [
        ({"CDC_DATABASE__TABLE": "elsewhere"}, 3, "cdc-relay init-db"),
        ({"CDC_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}, 4, "check kafka.bootstrap_servers"),
        ({"CDC_KAFKA__PROPERTIES": '{"no.such": 1}'}, 2, 'No such configuration property: "no.such"'),
    ],
)
def test_check_ends_with_the_code_of_what_is_missing(
    place: Place, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], code: int, says: str
) -> None:
    monkeypatch.setattr("cdc_relay.preflight.kafka._ANSWER_S", 1.0)
    place.environment |= changed
    checked = place.command("check")
    assert checked.code == code
    assert says in checked.out + str(checked.error)
