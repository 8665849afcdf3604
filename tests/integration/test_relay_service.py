"""The relay as a whole on real servers: starts, restarts, retries, keys held back, two relays, bad rows."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from sqlalchemy import make_url, text

from cdc_relay import session
from cdc_relay.bench.settings import altered
from cdc_relay.binlog.reconnect import ReconnectingSource
from cdc_relay.checkpoint import FileCheckpointStore
from cdc_relay.config import Settings
from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.embedded.process import free_port
from cdc_relay.errors import KafkaUnavailable
from cdc_relay.service import RelayService
from cdc_relay.status import look
from tests.e2e.proxy import Proxy
from tests.harness import Outbox, eventually, outbox_id, read_topic, running_relay, settings_for


@pytest.fixture
def outbox(database_url: str, topic: str) -> Iterator[Outbox]:
    outbox = Outbox(database_url, topic)
    yield outbox
    outbox.engine.dispose()


@pytest.fixture
def settings(database_url: str, kafka_broker: KafkaBroker, tmp_path: Path) -> Settings:
    return settings_for(database_url, kafka_broker.bootstrap_servers, tmp_path)


def ids_in(kafka_broker: KafkaBroker, topic: str, expected: int) -> list[int]:
    return [outbox_id(record) for record in read_topic(kafka_broker.bootstrap_servers, topic, expected)]


def position_of(settings: Settings) -> str:
    checkpoint = FileCheckpointStore(settings.checkpoint.path).load()
    assert checkpoint is not None
    return str(checkpoint.position)


def test_a_first_start_sends_what_is_pending_in_id_order_and_then_tails(
    outbox: Outbox, settings: Settings, kafka_broker: KafkaBroker
) -> None:
    before = [outbox.add("k", n) for n in range(50)]
    with running_relay(settings, sweep=False):
        after = [outbox.add("k", n) for n in range(5)]
        outbox.wait_published(before + after)
    assert ids_in(kafka_broker, outbox.topic, 55) == before + after


def test_a_restart_resumes_from_the_checkpoint_and_sends_nothing_twice(
    outbox: Outbox, settings: Settings, kafka_broker: KafkaBroker
) -> None:
    with running_relay(settings):
        first = [outbox.add("k", n) for n in range(20)]
        outbox.wait_published(first)
    stopped_at = position_of(settings)
    down = [outbox.add("k", n) for n in range(20)]
    with running_relay(settings):
        outbox.wait_published(down)
    assert position_of(settings) != stopped_at
    assert ids_in(kafka_broker, outbox.topic, 40) == first + down


def test_the_name_of_the_server_is_looked_up_at_every_reconnect(
    outbox: Outbox, mysql_server: MysqlServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "127.0.0.2"
    look_up = socket.getaddrinfo

    def looked_up(host: str, *rest: Any, **more: Any) -> Any:
        return look_up(address if host == "outbox-db.test" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    with (
        Proxy(mysql_server.port, host="127.0.0.2") as before,
        Proxy(mysql_server.port, host="127.0.0.3", port=before.port) as after,
    ):
        named = make_url(settings.database.url).set(host="outbox-db.test", port=before.port)
        url = named.render_as_string(hide_password=False)
        database = settings.database.model_copy(update={"url": url})
        with running_relay(settings.model_copy(update={"database": database})):
            outbox.wait_published([outbox.add("k", 1)])
            assert before.accepted
            assert not after.accepted
            address = "127.0.0.3"
            before.cut()
            outbox.wait_published([outbox.add("k", 2)])
            assert after.accepted


def test_the_position_moves_with_foreign_traffic_alone(outbox: Outbox, settings: Settings) -> None:
    outbox.run("CREATE TABLE noise (v INT)")
    with running_relay(settings):
        row = outbox.add("k", 1)
        outbox.wait_published([row])
        eventually(settings.checkpoint.path.exists, "a checkpoint")
        before = position_of(settings)
        outbox.run("INSERT INTO noise VALUES (1)")
        eventually(lambda: position_of(settings) != before, "the checkpoint moving on")


@pytest.fixture
def always_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is always more to read, though nothing of it is the outbox's."""
    monkeypatch.setattr(ReconnectingSource, "has_more", True)


@pytest.mark.usefixtures("always_behind")
def test_rows_are_marked_though_there_is_always_more_to_read(outbox: Outbox, settings: Settings) -> None:
    with running_relay(settings, sweep=False):
        outbox.wait_published([outbox.add("k", n) for n in range(5)])
        outbox.wait_published([outbox.add("k", n) for n in range(5)])


@pytest.mark.usefixtures("always_behind")
def test_while_there_is_more_to_read_rows_are_marked_when_they_are_many_and_at_the_stop(
    outbox: Outbox, settings: Settings, kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_GATHER_BEHIND_S", math.inf)
    few_at_a_time = altered(settings, {"tail.max_in_flight_rows": 10})
    with running_relay(few_at_a_time, sweep=False):
        rows = [outbox.add("k", n) for n in range(4)]
        assert ids_in(kafka_broker, outbox.topic, 4) == rows
        time.sleep(0.3)
        assert set(outbox.statuses().values()) == {"pending"}, "they are marked before the rest is sent"
        rows += [outbox.add("k", n) for n in range(4)]
        outbox.wait_published(rows[:5])
    outbox.wait_published(rows)


def test_a_relay_that_falls_back_to_the_library_reader_says_so_everywhere(
    outbox: Outbox,
    database_url: str,
    kafka_broker: KafkaBroker,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_for(database_url, kafka_broker.bootstrap_servers, tmp_path, admin__port=free_port())
    caplog.set_level("INFO")
    with monkeypatch.context() as patched:
        patched.setattr("cdc_relay.binlog.connection._WIRE_NAMES", ("_sock", "_no_such_name"))
        relay = RelayService(settings, tail=True, sweep=True)
    with running_relay(settings, service=relay):
        outbox.wait_published([outbox.add("k", 1)])
        told = look(settings).reader
        other = look(settings.model_copy(update={"name": "another"})).reader
    assert told is not None
    assert told.reader == "library"
    assert "_no_such_name" in told.why
    assert told.told_by == f"http://127.0.0.1:{settings.admin.port}/"
    assert other is not None
    assert (other.reader, other.told_by) == ("wire", None)
    (warned,) = [record for record in caplog.records if "_no_such_name" in record.getMessage()]
    assert warned.levelname == "WARNING"


@pytest.mark.parametrize("fault", ["removed", "damaged", "of another server", "from the future", "purged"])
def test_a_start_without_a_usable_checkpoint_catches_up_from_the_table(
    outbox: Outbox, settings: Settings, kafka_broker: KafkaBroker, fault: str
) -> None:
    path = settings.checkpoint.path
    with running_relay(settings):
        first = [outbox.add("k", n) for n in range(10)]
        outbox.wait_published(first)
    store = FileCheckpointStore(path)
    saved = store.load()
    assert saved is not None
    if fault == "removed":
        path.unlink()
    elif fault == "damaged":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        changes: dict[str, dict[str, Any]] = {
            "of another server": {"server": "11111111-2222-3333-4444-555555555555"},
            "from the future": {"position": type(saved.position)("binlog.999999", 4)},
            "purged": {"position": type(saved.position)("binlog.000000", 4)},
        }
        values = {name: getattr(saved, name) for name in saved.__dataclass_fields__} | changes[fault]
        store.save(type(saved)(**values))
    down = [outbox.add("k", n) for n in range(10)]
    with running_relay(settings, sweep=False):
        later = [outbox.add("k", n) for n in range(3)]
        outbox.wait_published(down + later)
    assert ids_in(kafka_broker, outbox.topic, 23) == first + down + later


@pytest.mark.parametrize("metadata", ["MINIMAL", "FULL"])
def test_a_table_as_go_makes_it_of_bytes_and_with_names_in_another_case(
    either_server: MysqlServer,
    either_database_url: str,
    kafka_broker: KafkaBroker,
    topic: str,
    tmp_path: Path,
    metadata: str,
) -> None:
    outbox = Outbox(either_database_url, topic)
    settings = settings_for(either_database_url, kafka_broker.bootstrap_servers, tmp_path)
    outbox.run(
        f"SET GLOBAL binlog_row_metadata = {metadata}",
        "ALTER TABLE agent_outbox_messages CHANGE payload Payload LONGBLOB NOT NULL, "
        "CHANGE message_key MESSAGE_KEY VARBINARY(255) NOT NULL, CHANGE biz_type Biz_Type VARCHAR(64) NOT NULL",
    )
    before = [outbox.add("ключ", n) for n in range(3)]
    with running_relay(settings, sweep=False):
        outbox.wait_published(before)
        later = [outbox.add("ключ", n) for n in range(3)]
        outbox.wait_published(later)
    outbox.run("SET GLOBAL binlog_row_metadata = DEFAULT")
    outbox.engine.dispose()
    records = read_topic(kafka_broker.bootstrap_servers, topic, 6)
    assert [outbox_id(record) for record in records] == before + later
    assert {record.key() for record in records} == {"ключ".encode()}


def test_rows_that_no_retry_can_cure_are_dead_at_once_and_hold_nobody_up(
    outbox: Outbox, settings: Settings, kafka_broker: KafkaBroker
) -> None:
    with running_relay(settings, sweep=False):
        bad_payload = outbox.add("k", 0, payload='{"unfinished": ')
        bad_topic = outbox.add("k", 0, topic="no topic")
        empty_topic = outbox.add("k", 0, topic="")
        good = outbox.add("k", 1)
        outbox.wait_published([good])
    rows = outbox.rows()
    assert {i: rows[i].status for i in (bad_payload, bad_topic, empty_topic)} == dict.fromkeys(
        (bad_payload, bad_topic, empty_topic), "dead"
    )
    assert "payload is not JSON" in rows[bad_payload].last_error
    assert "no legal Kafka topic" in rows[bad_topic].last_error
    assert ids_in(kafka_broker, outbox.topic, 1) == [good]


def test_scheduled_rows_wait_for_their_time_and_a_wrong_clock_does_not_delay(
    outbox: Outbox, settings: Settings, kafka_broker: KafkaBroker
) -> None:
    insert = (
        "INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload, next_retry_at, created_at) "
        f"VALUES ('test', '{outbox.topic}', '{{}}', '{{{{}}}}', UTC_TIMESTAMP(6) + INTERVAL {{}} SECOND, "
        "UTC_TIMESTAMP(6) + INTERVAL {} SECOND)"
    )
    with running_relay(settings):
        outbox.run(insert.format("scheduled", 3, 0))  # three seconds from now
        outbox.run(insert.format("ahead", 600, 600))  # the application's clock is ten minutes ahead
        outbox.run(insert.format("behind", -600, -600))
        scheduled, ahead, behind = outbox.rows()
        outbox.wait_published([ahead, behind])
        assert outbox.statuses()[scheduled] == "pending"
        outbox.wait_published([scheduled])
    assert ids_in(kafka_broker, outbox.topic, 3)[-1] == scheduled


def test_the_sweep_alone_delivers_when_there_is_no_tailer(
    outbox: Outbox, settings: Settings, kafka_broker: KafkaBroker
) -> None:
    ids = [outbox.add(f"k{n % 3}", n) for n in range(30)]
    with running_relay(settings, tail=False):
        outbox.wait_published(ids)
    assert sorted(ids_in(kafka_broker, outbox.topic, 30)) == ids


def test_a_row_that_fails_holds_back_its_key_only_and_later_rows_follow_in_order(
    outbox: Outbox, database_url: str, tmp_path: Path
) -> None:
    """Its topic does not exist: an error of the row, which goes well once somebody makes the topic."""
    with KafkaBroker(options={"auto.create.topics.enable": "false"}) as broker:
        admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
        admin.create_topics([NewTopic(outbox.topic, 1, 1)])[outbox.topic].result(30)
        settings = settings_for(database_url, broker.bootstrap_servers, tmp_path, retry__base_s=0.5, retry__cap_s=0.5)
        missing = f"{outbox.topic}-missing"
        with running_relay(settings):
            failing = outbox.add("held", 0, topic=missing)
            eventually(lambda: outbox.rows()[failing].retry_count > 0, "the row failing")
            behind = [outbox.add("held", n) for n in range(1, 4)]
            others = [outbox.add("free", n) for n in range(3)]
            outbox.wait_published(others)
            held = outbox.rows()
            assert [held[i].status for i in behind] == ["pending"] * 3
            assert all("held back" in held[i].last_error for i in behind)
        # Held back across a restart as well.
        with running_relay(settings):
            behind.append(outbox.add("held", 4))
            marker = outbox.add("free", 4)
            outbox.wait_published([marker])
            assert outbox.statuses()[behind[-1]] == "pending"
            admin.create_topics([NewTopic(missing, 1, 1)])[missing].result(30)
            outbox.wait_published([failing, *behind])
            assert all(outbox.rows()[i].last_error is None for i in behind)
        records = read_topic(broker.bootstrap_servers, outbox.topic, 8)
        assert [outbox_id(record) for record in records if record.key() == b"held"] == behind


def test_a_row_is_dead_when_its_retries_are_used_up_and_its_key_goes_on(
    outbox: Outbox, database_url: str, tmp_path: Path
) -> None:
    with KafkaBroker(options={"auto.create.topics.enable": "false"}) as broker:
        admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
        admin.create_topics([NewTopic(outbox.topic, 1, 1)])[outbox.topic].result(30)
        settings = settings_for(database_url, broker.bootstrap_servers, tmp_path, retry__base_s=0.2, retry__cap_s=0.2)
        with running_relay(settings):
            failing = outbox.add("k", 0, topic=f"{outbox.topic}-missing", max_retry=3)
            eventually(lambda: outbox.rows()[failing].retry_count > 0, "the row failing")
            behind = outbox.add("k", 1)
            eventually(lambda: outbox.statuses()[failing] == "dead", "the row dead")
            row = outbox.rows()[failing]
            assert row.retry_count == 3
            assert "does not exist" in row.last_error
            outbox.wait_published([behind])


def test_a_second_relay_stands_by_and_takes_over(outbox: Outbox, settings: Settings, kafka_broker: KafkaBroker) -> None:
    stop = Event()
    standby = RelayService(settings, tail=True, sweep=True)
    thread = Thread(target=standby.run, args=(stop,), daemon=True)
    try:
        with running_relay(settings):
            thread.start()
            first = outbox.add("k", 1)
            outbox.wait_published([first])
            assert not standby.is_tailing
        second = outbox.add("k", 2)
        outbox.wait_published([second])
        assert standby.is_tailing
    finally:
        stop.set()
        thread.join(30)
    assert ids_in(kafka_broker, outbox.topic, 2) == [first, second]


def test_a_relay_that_loses_its_lock_stops_and_wins_it_again(
    outbox: Outbox, settings: Settings, kafka_broker: KafkaBroker
) -> None:
    with running_relay(settings) as service:
        ids = [outbox.add("k", 1)]
        outbox.wait_published(ids)
        with outbox.engine.connect() as connection:
            holder = connection.execute(
                text("SELECT IS_USED_LOCK(:name)"), {"name": f"cdc_relay:{settings.name}"}
            ).scalar()
            connection.exec_driver_sql(f"KILL {holder}")
        ids += [outbox.add("k", n) for n in range(5)]
        outbox.wait_published(ids)
        eventually(lambda: service.is_tailing, "tailing again")
    assert sorted(set(ids_in(kafka_broker, outbox.topic, 6))) == ids


def test_kafka_out_of_reach_at_the_start_is_told(database_url: str, tmp_path: Path) -> None:
    settings = settings_for(database_url, "127.0.0.1:1", tmp_path)
    with pytest.raises(KafkaUnavailable, match=r"127\.0\.0\.1:1"):
        RelayService(settings, tail=True, sweep=True).run(Event())


def test_mysql_killed_and_restarted_and_rows_of_other_tables_do_not_come_out(
    kafka_broker: KafkaBroker, topic: str, tmp_path: Path
) -> None:
    """After a crash the server gives out table ids anew, so an old id may mean another table."""
    with MysqlServer() as server:
        from sqlalchemy import MetaData, create_engine

        from cdc_relay.outbox.table import outbox_table

        metadata = MetaData()
        outbox_table(metadata=metadata)
        engine = create_engine(server.url)
        metadata.create_all(engine)
        engine.dispose()
        outbox = Outbox(server.url, topic)
        settings = settings_for(server.url, kafka_broker.bootstrap_servers, tmp_path)
        with running_relay(settings) as service:
            ids = [outbox.add("k", n) for n in range(10)]
            outbox.run("CREATE TABLE lookalike LIKE agent_outbox_messages")
            outbox.wait_published(ids)
            server.kill()
            server.start()
            outbox.engine.dispose()
            for number in range(20):
                outbox.run(
                    "INSERT INTO lookalike (id, biz_type, topic, message_key, payload) "
                    f"VALUES ({1000 + number}, 'test', '{topic}', 'k', '{{}}')"
                )
                ids.append(outbox.add("k", number))
            outbox.wait_published(ids)
            eventually(lambda: service.is_tailing, "tailing again")
        assert ids_in(kafka_broker, topic, 30) == ids
        outbox.engine.dispose()


def test_rows_larger_than_the_broker_takes_are_dead_and_say_so(
    outbox: Outbox, settings: Settings, kafka_broker: KafkaBroker
) -> None:
    with running_relay(settings, sweep=False):
        large = outbox.add("k", 0, payload=json.dumps("x" * 2_000_000))
        small = outbox.add("k", 1)
        eventually(lambda: outbox.statuses()[large] == "dead", "the large row dead")
        outbox.wait_published([small])
    assert "max.message.bytes" in outbox.rows()[large].last_error
