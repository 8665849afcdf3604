"""The throwaway servers themselves, real ones: MySQL, MariaDB, Kafka, and the stack of both."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from typer.testing import CliRunner

from cdc_relay.embedded import stack
from cdc_relay.embedded.cli import app
from cdc_relay.embedded.kafka import KafkaBroker, MockKafka
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.embedded.stack import Stack, StackBusy, StackChoice
from cdc_relay.errors import DatabaseUnavailable, KafkaUnavailable, RelayError

OWNER = """
import sys, time
from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
server = eval(sys.argv[1]).start()
print(server.pid, server.home, flush=True)
time.sleep(600)
"""


def eventually(done: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"not seen within {timeout_s:g} s: {what}"
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def ask(server: MysqlServer, statement: str) -> Any:
    with (
        pymysql.connect(
            host=server.host,
            port=server.port,
            user="root",
            database=server.database,
            autocommit=True,
            connect_timeout=5,
            read_timeout=2,
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)
        return cursor.fetchall()


def produce(broker: KafkaBroker | MockKafka, topic: str, value: bytes) -> None:
    failed: list[object] = []
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers})
    producer.produce(topic, value, on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(30) == 0
    assert failed == []


def consume(broker: KafkaBroker | MockKafka, topic: str, count: int) -> list[bytes]:
    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap_servers,
            "group.id": f"group-{time.monotonic_ns()}",
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    got: list[bytes] = []
    deadline = time.monotonic() + 30
    while len(got) < count and time.monotonic() < deadline:
        record = consumer.poll(1.0)
        if record is not None and record.error() is None:
            got.append(record.value() or b"")
    consumer.close()
    return got


@pytest.fixture(scope="class", params=["mysql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Iterator[MysqlServer]:
    with MysqlServer(flavour=request.param, server_id=7, options={"binlog_row_image": "MINIMAL"}) as running:
        assert running.flavour == request.param
        ask(running, "CREATE TABLE kept (id INT PRIMARY KEY)")
        yield running


@pytest.mark.mysql
class TestMysql:
    def test_it_is_what_it_says_and_as_it_was_asked_for(self, server: MysqlServer) -> None:
        ((version, log_bin, binlog_format, image, server_id, database),) = ask(
            server, "SELECT VERSION(), @@log_bin, @@binlog_format, @@binlog_row_image, @@server_id, DATABASE()"
        )
        assert ("mariadb" in version.lower()) == (server.flavour == "mariadb")
        assert version.startswith(server.server_version)
        assert (log_bin, binlog_format, image, server_id, database) == (1, "ROW", "MINIMAL", 7, "outbox")
        assert server.url == f"mysql+pymysql://root@127.0.0.1:{server.port}/outbox"

    def test_its_durability_is_the_servers_own(self, server: MysqlServer) -> None:
        ((flush, sync),) = ask(server, "SELECT @@innodb_flush_log_at_trx_commit, @@sync_binlog")
        assert (flush, sync) == ((1, 1) if server.flavour == "mysql" else (1, 0))

    def test_its_binlog_begins_without_our_own_preparations(self, server: MysqlServer) -> None:
        (first, *_) = ask(server, "SHOW BINARY LOGS")
        events = ask(server, f"SHOW BINLOG EVENTS IN '{first[0]}'")
        said = " ".join(str(event[-1]) for event in events)
        assert "CREATE TABLE kept" in said
        assert "GRANT" not in said
        assert "CREATE DATABASE" not in said

    def test_it_listens_on_loopback_only_with_its_socket_in_its_data(self, server: MysqlServer) -> None:
        assert ask(server, "SELECT @@bind_address")[0][0] == "127.0.0.1"
        assert (server.data_dir / "mysql.sock").is_socket()

    def test_a_restart_keeps_data_and_port_and_takes_new_options(self, server: MysqlServer) -> None:
        ask(server, "REPLACE INTO kept VALUES (1)")
        before = (server.port, server.data_dir)
        server.options["max_connections"] = 33
        server.restart()
        assert ask(server, "SELECT @@max_connections") == ((33,),)
        assert (server.port, server.data_dir) == before
        assert ask(server, "SELECT id FROM kept WHERE id = 1") == ((1,),)

    def test_a_kill_keeps_what_was_committed(self, server: MysqlServer) -> None:
        pid = server.pid
        assert pid is not None
        ask(server, "REPLACE INTO kept VALUES (2)")
        server.kill()
        assert is_gone(pid)
        assert server.pid is None
        with pytest.raises(pymysql.err.OperationalError):
            ask(server, "SELECT 1")
        server.start()
        assert ask(server, "SELECT id FROM kept WHERE id = 2") == ((2,),)

    def test_frozen_it_holds_its_connections_and_says_nothing(self, server: MysqlServer) -> None:
        connection = pymysql.connect(host=server.host, port=server.port, user="root", read_timeout=1)
        server.freeze()
        with pytest.raises(pymysql.err.OperationalError), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert server.is_running
        server.thaw()
        assert ask(server, "SELECT 1") == ((1,),)


@pytest.mark.mysql
@pytest.mark.parametrize("flavour", ["mysql", "mariadb"])
def test_an_option_the_server_does_not_know_is_told_in_its_own_words(flavour: Any) -> None:
    server = MysqlServer(flavour=flavour, options={"no_such_option": 1})
    with pytest.raises(DatabaseUnavailable, match="no-such-option"):
        server.start()
    assert not server.is_running


@pytest.mark.mysql
def test_two_servers_are_two(tmp_path: Path) -> None:
    with MysqlServer(flavour="mysql", server_id=1) as one, MysqlServer(flavour="mysql", server_id=2) as other:
        assert one.port != other.port
        assert ask(one, "SELECT @@server_uuid") != ask(other, "SELECT @@server_uuid")


@pytest.mark.mysql
def test_system_tables_are_made_anew_for_an_option_that_shapes_them() -> None:
    with MysqlServer(flavour="mysql", options={"lower_case_table_names": 1}) as server:
        assert ask(server, "SELECT @@lower_case_table_names") == ((1,),)


@pytest.mark.mysql
def test_mysqlbinlog_comes_with_the_server() -> None:
    with MysqlServer(flavour="mysql") as server:
        ask(server, "CREATE TABLE seen (id INT)")
        argv = [*server.client("mysqlbinlog"), "--no-defaults", str(server.data_dir / "binlog.000001")]
        said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "CREATE TABLE seen" in said


@pytest.mark.mysql
def test_a_port_that_somebody_has_is_refused_at_once_and_nothing_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = MysqlServer(flavour="mariadb", port=listening.getsockname()[1])
        with pytest.raises(DatabaseUnavailable, match="already in use"):
            server.start()
    with pytest.raises(DatabaseUnavailable, match="not started"):
        server.home  # noqa: B018


@pytest.fixture(scope="class")
def broker() -> Iterator[KafkaBroker]:
    with KafkaBroker(options={"num.partitions": 3}) as running:
        yield running


@pytest.mark.kafka
class TestKafka:
    def test_records_come_back(self, broker: KafkaBroker) -> None:
        produce(broker, "round", b"trip")
        assert consume(broker, "round", 1) == [b"trip"]

    def test_options_are_the_brokers(self, broker: KafkaBroker) -> None:
        produce(broker, "wide", b"x")
        topics = AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics("wide", timeout=10).topics
        assert len(topics["wide"].partitions) == 3

    def test_a_restart_keeps_records_and_port(self, broker: KafkaBroker) -> None:
        produce(broker, "kept", b"before")
        before = broker.bootstrap_servers
        broker.restart()
        assert broker.bootstrap_servers == before
        assert consume(broker, "kept", 1) == [b"before"]

    def test_a_kill_is_survived_by_what_it_holds(self, broker: KafkaBroker) -> None:
        produce(broker, "killed", b"before")
        broker.kill()
        assert not broker.is_running
        broker.start()
        assert consume(broker, "killed", 1) == [b"before"]

    def test_frozen_it_answers_nobody_until_it_is_thawed(self, broker: KafkaBroker) -> None:
        admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})
        broker.freeze()
        with pytest.raises(KafkaException):
            admin.list_topics(timeout=1)
        broker.thaw()
        produce(broker, "thawed", b"x")

    def test_a_property_it_refuses_is_told_in_its_own_words(self) -> None:
        with pytest.raises(KafkaUnavailable, match=r"log\.retention\.ms"):
            KafkaBroker(options={"log.retention.ms": "soon"}).start()


def test_the_mock_broker_takes_and_gives_records() -> None:
    mock = MockKafka()
    with pytest.raises(KafkaUnavailable):
        mock.bootstrap_servers  # noqa: B018
    with mock as broker:
        produce(broker, "round", b"trip")
        assert consume(broker, "round", 1) == [b"trip"]


@pytest.mark.mysql
@pytest.mark.kafka
@pytest.mark.parametrize("server", ["MysqlServer(flavour='mysql')", "MysqlServer(flavour='mariadb')", "KafkaBroker()"])
def test_a_server_whose_owner_is_killed_is_gone_with_its_data(server: str) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, server], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        number, home = owner.stdout.readline().split()
        assert not is_gone(int(number))
        owner.send_signal(signal.SIGKILL)
    eventually(lambda: is_gone(int(number)), "the server's end")
    eventually(lambda: not Path(home).exists(), "the removal of its data")


@pytest.fixture
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.mark.mysql
@pytest.mark.kafka
class TestStack:
    def test_both_serve_and_both_go(self) -> None:
        with Stack(mysql="mariadb", kafka="real") as both:
            assert ask(both.mysql, "SELECT 1") == ((1,),)
            produce(both.kafka, "round", b"trip")
            both.check()
            homes = [both.mysql.home]
            both.mysql.kill()
            with pytest.raises(DatabaseUnavailable, match="ended by itself"):
                both.check()
        assert not any(home.exists() for home in homes)

    def test_when_one_fails_the_other_is_ended(self) -> None:
        both = Stack(mysql=MysqlServer(flavour="mariadb", options={"no_such_option": 1}), kafka="embedded")
        with pytest.raises(DatabaseUnavailable):
            both.start()
        with pytest.raises(KafkaUnavailable):
            both.kafka.bootstrap_servers  # noqa: B018

    def test_a_detached_stack_is_up_until_it_is_taken_down(self, state_home: Path) -> None:
        assert stack.status() is None
        state = stack.up(StackChoice("mariadb", "embedded"))
        try:
            assert stack.status() == state
            assert state.mysql.startswith("mariadb 1")
            assert CliRunner().invoke(app, ["status", "--export"]).stdout == (
                f"export CDC_DATABASE__URL='{state.mysql_url}'\n"
                f"export CDC_KAFKA__BOOTSTRAP_SERVERS='{state.bootstrap_servers}'\n"
            )
            with pytest.raises(StackBusy, match=f"process {state.pid}"):
                stack.up(StackChoice("mariadb", "embedded"))
            with pytest.raises(StackBusy):
                stack.run(StackChoice("mariadb", "embedded"), threading.Event())
            port = int(state.mysql_url.partition("127.0.0.1:")[2].partition("/")[0])
            with pymysql.connect(host="127.0.0.1", port=port, user="root"):
                pass
        finally:
            assert stack.down() == state
        assert stack.status() is None
        assert stack.down() is None
        assert CliRunner().invoke(app, ["status"]).exit_code == 1
        with pytest.raises(pymysql.err.OperationalError):
            pymysql.connect(host="127.0.0.1", port=port, user="root")

    def test_a_detached_stack_that_was_killed_counts_as_gone(self, state_home: Path) -> None:
        state = stack.up(StackChoice("mariadb", "embedded"))
        os.kill(state.pid, signal.SIGKILL)
        eventually(lambda: stack.status() is None, "the end of the stack")

    def test_a_stack_that_cannot_start_says_why(self, state_home: Path) -> None:
        lines: list[str] = []
        with socket.create_server(("127.0.0.1", 0)) as listening:
            choice = StackChoice("mariadb", "embedded", mysql_port=listening.getsockname()[1])
            with pytest.raises(RelayError, match="while starting"):
                stack.up(choice, on_line=lines.append)
        assert "already in use" in " ".join(lines)
        assert stack.status() is None

    def test_a_stack_in_the_foreground_ends_when_told(self, state_home: Path) -> None:
        stop = threading.Event()
        seen: list[stack.StackState | None] = []

        def on_up(state: stack.StackState) -> None:
            seen.append(stack.status())
            stop.set()

        stack.run(StackChoice("mariadb", "embedded"), stop, on_up)
        assert seen[0] is not None
        assert seen[0].phase == "up"
        assert seen[0].pid == os.getpid()
        assert stack.status() is None
