"""What a MySQL server and its operator can do to the relay and the consumer; nothing is lost, doubled or invented."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from tests.e2e.stack import Stack, stack_on
from tests.harness import eventually

#: A crash of a session may send what is in flight once more; nothing here has more in flight.
IN_FLIGHT = 500
SETTINGS: dict[str, Any] = {"tail__max_in_flight_rows": IN_FLIGHT}


@pytest.fixture
def stack(own_mysql: MysqlServer, kafka_broker: KafkaBroker, tmp_path: Path) -> Iterator[Stack]:
    with stack_on(own_mysql, kafka_broker.bootstrap_servers, tmp_path, **SETTINGS) as stack:
        yield stack


def kill_connections(stack: Stack) -> int:
    """KILL every connection of the scenario's database but the one that asks, the dump of the binlog included."""
    database = make_url(stack.database_url).database
    killed = 0
    with stack.engine.connect() as connection:
        ours = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar()
        found = connection.exec_driver_sql("SHOW PROCESSLIST").mappings().all()
    for number in (row["Id"] for row in found if row["db"] == database and row["Id"] != ours):
        try:
            stack.sql(f"KILL {number}")
            killed += 1
        except DBAPIError as error:
            assert "Unknown thread id" in str(error)
    return killed


def reset_binlog(stack: Stack) -> None:
    try:
        stack.sql("RESET BINARY LOGS AND GTIDS")
    except DBAPIError:  # before MySQL 8.2
        stack.sql("RESET MASTER")


def newest_binlog(stack: Stack) -> str:
    return str(stack.sql("SHOW BINARY LOGS")[-1][0])


def test_killing_the_dump_and_every_other_connection_again_and_again(stack: Stack) -> None:
    stack.start()
    writers = stack.write(pause_s=(0.0, 0.01))
    killed = 0
    for _ in range(8):
        time.sleep(0.4)
        killed += kill_connections(stack)
    assert killed > 3 * 8
    writers.stop()
    verdict = stack.verdict()
    assert stack.relay.starts == stack.consumer.starts == 1
    assert stack.relay.said("binlog_reconnect") or stack.relay.said("session_failed")
    verdict.require_good(duplicates=8 * IN_FLIGHT)


def test_after_a_crash_of_mysql_rows_of_a_table_that_got_the_outbox_s_id_never_come_out(
    stack: Stack, own_mysql: MysqlServer
) -> None:
    decoys = [f"decoy_{n}" for n in range(30)]
    for decoy in decoys:
        stack.sql(f"CREATE TABLE {decoy} LIKE agent_outbox_messages")
    stack.start()
    writers = stack.write(pause_s=(0.0, 0.01))
    stack.wait_for_rows(200)

    before = _table_ids(stack)["agent_outbox_messages"]
    own_mysql.kill()
    own_mysql.start()
    insert = "(biz_type, topic, message_key, payload) VALUES ('chat_history_persist', :topic, 'decoy', '{}')"
    for _ in range(60):
        for decoy in decoys:
            stack.sql(f"INSERT INTO {decoy} {insert}", topic=stack.topic)
        ids = _table_ids(stack)
        if before & set().union(*(ids[decoy] for decoy in decoys)):
            break
        stack.sql(f"FLUSH TABLES {', '.join(decoys)}")  # each gets the next id when it is opened anew
    else:
        pytest.fail("no table got an id that the outbox had: the test proves nothing")
    stack.wait_for_rows(200)
    writers.stop()
    stack.verdict().require_good(duplicates=IN_FLIGHT)


def _table_ids(stack: Stack) -> defaultdict[str, set[str]]:
    """The ids that each table has in the newest binlog file."""
    ids: defaultdict[str, set[str]] = defaultdict(set)
    for event in stack.sql(f"SHOW BINLOG EVENTS IN '{newest_binlog(stack)}'"):
        if found := re.search(r"table_id: (\d+) \(\w+\.(\w+)\)", event[5]):
            ids[found[2]].add(found[1])
    return ids


def test_resetting_the_binary_logs_while_the_relay_runs_and_restarting_the_server(
    stack: Stack, own_mysql: MysqlServer
) -> None:
    stack.start()
    stack.write_some(200)
    reset_binlog(stack)
    writers = stack.write(pause_s=(0.0, 0.01))
    time.sleep(0.5)
    own_mysql.restart()
    time.sleep(0.5)
    writers.stop()
    stack.verdict().require_good(duplicates=2 * IN_FLIGHT)


@pytest.mark.parametrize("flushed", [True, False])
def test_what_the_binary_logs_lose_when_they_are_reset_under_the_relay_is_still_sent_in_its_place(
    stack: Stack, flushed: bool
) -> None:
    reset_binlog(stack)  # so that the file which is lost has the name of the one after it
    stack.start()
    writers = stack.write(pause_s=(0.0, 0.01))
    stack.wait_for_rows(1_000)
    reset_binlog(stack)
    stack.wait_for_rows(50)  # a shorter file than the one that is gone: the server has nothing to send from there
    if flushed:  # it goes on with the second file, and the first one is never sent
        stack.sql("FLUSH BINARY LOGS")
        stack.wait_for_rows(200)
    else:
        writers.stop()
    eventually(lambda: len(stack.relay.said("reconcile")) > 1, "the reset noticed")
    writers.stop()
    stack.verdict().require_good(duplicates=IN_FLIGHT)


def test_resetting_the_binary_logs_while_the_relay_is_down_even_when_the_new_file_is_longer(stack: Stack) -> None:
    reset_binlog(stack)
    stack.start()
    stack.write_some(100)
    stack.settle()
    assert stack.relay.stop() == 0
    reset_binlog(stack)
    stack.write_some(1000)  # so that the old position lies inside the new file of the same name
    stack.relay.start()
    stack.verdict().require_good(duplicates=0)
    assert stack.relay.said("reconcile")[-1]["reason"] in ("reset", "position")


def test_purging_binary_logs_while_the_relay_is_down(stack: Stack) -> None:
    stack.start()
    stack.write_some(100)
    stack.relay.kill()
    stack.write_some(300)
    stack.sql("FLUSH BINARY LOGS")
    stack.sql(f"PURGE BINARY LOGS TO '{newest_binlog(stack)}'")
    stack.write_some(100)
    stack.relay.start()
    stack.verdict().require_good(duplicates=IN_FLIGHT)
    assert stack.relay.said("reconcile")[-1]["reason"] == "purged"


def test_purging_and_flushing_logs_in_a_loop_while_the_relay_runs(stack: Stack) -> None:
    stack.start()
    writers = stack.write(pause_s=(0.0, 0.01))
    for _ in range(25):
        time.sleep(0.1)
        stack.sql("FLUSH LOGS")
        stack.sql(f"PURGE BINARY LOGS TO '{newest_binlog(stack)}'")
    writers.stop()
    stack.verdict().require_good(duplicates=IN_FLIGHT)


def test_a_file_of_the_binlog_that_is_damaged_on_disk(stack: Stack) -> None:
    stack.start()
    stack.write_some(100)
    stack.settle()
    assert stack.relay.stop() == 0
    stack.write_some(100)
    file = newest_binlog(stack)
    stack.sql("FLUSH BINARY LOGS")
    # Its last event names the file that follows it; the server sends it as it is.
    path = Path(stack.sql("SELECT @@datadir")[0][0]) / file
    sane, name = path.read_bytes(), newest_binlog(stack).encode()
    path.write_bytes(sane[: sane.rindex(name)] + b"\xff" * len(name) + sane[sane.rindex(name) + len(name) :])
    writers = stack.write(pause_s=(0.0, 0.01))
    stack.relay.start()
    stack.wait_for_rows(200)
    writers.stop()
    stack.verdict().require_good(duplicates=0)
    assert [told["reason"] for told in stack.relay.said("reconcile")][1:] == ["damaged"]


@pytest.mark.parametrize("variable", ["read_only", "super_read_only"])
def test_a_server_that_is_read_only_for_a_while(stack: Stack, variable: str) -> None:
    stack.start()
    writers = stack.write(pause_s=(0.0, 0.02))
    stack.wait_for_rows(100)
    stack.sql(f"SET GLOBAL {variable} = ON")
    try:
        time.sleep(3)
    finally:
        stack.sql("SET GLOBAL super_read_only = OFF")
        stack.sql("SET GLOBAL read_only = OFF")
    writers.stop()
    verdict = stack.verdict()
    verdict.require_good(duplicates=4 * IN_FLIGHT)
    assert stack.relay.starts == stack.consumer.starts == 1
    assert stack.sql("SELECT MAX(retry_count) FROM agent_outbox_messages") == [(0,)]


def test_connection_slots_that_are_full_for_a_while(stack: Stack, own_mysql: MysqlServer) -> None:
    stack.start()
    stack.write_some(100)
    before = stack.sql("SELECT @@max_connections")[0][0]
    taken: list[pymysql.Connection] = []
    try:
        stack.sql("SET GLOBAL max_connections = 10")
        kill_connections(stack)
        with pytest.raises(pymysql.err.OperationalError, match="Too many connections"):
            while True:  # each sleeps in a slot that one of the programs has had
                kill_connections(stack)
                taken.append(pymysql.connect(host="127.0.0.1", port=own_mysql.port, user="root", autocommit=True))
        time.sleep(3)
        assert not (stack.relay.said("stopped") or stack.consumer.said("stopped"))
    finally:
        for connection in taken:
            connection.close()
        stack.sql(f"SET GLOBAL max_connections = {before}")
    stack.write_some(100)
    stack.verdict().require_good(duplicates=2 * IN_FLIGHT)
    assert stack.relay.starts == stack.consumer.starts == 1
