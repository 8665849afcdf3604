"""Deadlocks, servers and consumers that are killed, partitions that move: nothing lost, nothing applied twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.errors import DatabaseError, DatabaseUnavailable, KafkaError
from consumer import service, topics
from consumer.plan import Outcome
from tests.conftest import fresh_database
from tests.consumer_harness import World, payload
from tests.harness import eventually

pytestmark = [pytest.mark.mysql, pytest.mark.kafka]


@pytest.fixture
def world(database_url: str, kafka_broker: KafkaBroker, topic: str, request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(database_url, kafka_broker.bootstrap_servers, topic, partitions=6)
    if getattr(request, "param", "classic") == "consumer":
        world.group = {"group.protocol": "consumer"}
    yield world
    world.close()


#: Where the members of the group share out its partitions, and where the broker does (KIP-848).
in_either_group = pytest.mark.parametrize("world", ["classic", "consumer"], indirect=True)


def conversations(count: int, messages: int) -> dict[str, list[str]]:
    return {f"chat-{n}": [f"{n}/{m}" for m in range(messages)] for n in range(count)}


def interleaved(wanted: dict[str, list[str]]) -> list[dict[str, object]]:
    """One message of each conversation after another."""
    return [
        payload(chat, message)
        for turn in zip(*wanted.values(), strict=True)
        for chat, message in zip(wanted, turn, strict=True)
    ]


def assert_all_applied_once(world: World, wanted: dict[str, list[str]]) -> None:
    assert world.messages() == wanted
    assert world.message_counts() == {chat: len(messages) for chat, messages in wanted.items()}
    assert world.status_counts() == {"consumed": sum(map(len, wanted.values()))}


def committed_offsets(world: World) -> int:
    """How many records the group has committed, over all partitions."""
    reader = Consumer({"bootstrap.servers": world.bootstrap_servers, "group.id": world.topic})
    try:
        partitions = reader.list_topics(world.topic, timeout=10).topics[world.topic].partitions
        found = reader.committed([TopicPartition(world.topic, number) for number in partitions], timeout=10)
        return sum(max(0, at.offset) for at in found)
    finally:
        reader.close()


def test_a_locked_row_is_waited_for_and_a_lock_wait_timeout_is_no_failure(world: World) -> None:
    world.add_chats("a")
    ids = world.send([payload("a", "one"), payload("a", "two")])
    with world.running(database__read_timeout_s=2.0) as service, world.engine.connect() as other:
        with other.begin():
            other.exec_driver_sql("SELECT * FROM agent_chats WHERE chat_id = 'a' FOR UPDATE")
            retries = "cdc_consumer_database_retries_total"
            eventually(lambda: service._registry.get_sample_value(retries), "a lock wait timeout")
            assert world.status_counts() == {"published": 2}
        world.wait_consumed(2)
    assert_all_applied_once(world, {"a": ["one", "two"]})
    assert [world.rows()[row_id].retry_count for row_id in ids] == [0, 0]


def test_a_deadlock_with_the_application_is_no_failure(world: World) -> None:
    world.add_chats("a", "b", "c")
    ids = world.write([payload("a", "one"), payload("a", "two")])
    with world.running() as service, world.engine.connect() as other:
        with other.begin():
            other.exec_driver_sql("UPDATE agent_chats SET title = UUID()")
            world.produce(ids)
            waits = "SELECT COUNT(*) FROM performance_schema.data_lock_waits"
            eventually(lambda: other.exec_driver_sql(waits).scalar(), "the consumer waiting for the chat")
            # Of the two the consumer has changed less, so it is the one that MySQL rolls back.
            other.exec_driver_sql("UPDATE agent_outbox_messages SET updated_at = NOW() WHERE id = %s", (ids[0],))
        world.wait_consumed(2)
        assert service._registry.get_sample_value("cdc_consumer_database_retries_total")
    assert world.messages() == {"a": ["one", "two"]}
    assert [world.rows()[row_id].retry_count for row_id in ids] == [0, 0]


def test_mysql_killed_in_the_middle_costs_nothing(kafka_broker: KafkaBroker, topic: str) -> None:
    wanted = conversations(10, 200)
    with MysqlServer(flavour="mysql") as server, ExitStack() as stack:
        database = fresh_database(server)
        world = World(next(database), kafka_broker.bootstrap_servers, topic, partitions=3)
        stack.callback(world.close)
        world.add_chats(*wanted)
        ids = world.write(interleaved(wanted))
        with world.running(consumer__batch_rows=50):
            world.produce(ids[:1000])
            world.wait_consumed(100)
            server.kill()
            world.engine.dispose()
            server.start()
            world.wait_consumed(1000)
            world.produce(ids[1000:])
            world.wait_consumed(2000)
        assert_all_applied_once(world, wanted)
        assert {row.retry_count for row in world.rows().values()} == {0}


def test_kafka_killed_in_the_middle_costs_nothing(database_url: str, topic: str) -> None:
    wanted = conversations(10, 40)
    with KafkaBroker() as broker, ExitStack() as stack:
        world = World(database_url, broker.bootstrap_servers, topic)
        stack.callback(world.close)
        world.add_chats(*wanted)
        ids = world.write(interleaved(wanted))
        with world.running(consumer__batch_rows=20):
            world.produce(ids[:200])
            world.wait_consumed(100)
            broker.kill()
            broker.start()
            world.produce(ids[200:])
            world.produce_bytes(b"no envelope")
            world.flush()
            world.wait_consumed(400)
            assert len(world.dead_letters(1)) == 1
        assert_all_applied_once(world, wanted)


def test_a_consumer_killed_in_the_middle_of_a_batch_applies_nothing_twice(world: World, tmp_path: Path) -> None:
    wanted = conversations(20, 150)
    world.add_chats(*wanted)
    world.send(interleaved(wanted))
    log = tmp_path / "log"
    process = world.process(log=log)
    world.wait_consumed(200)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < world.status_counts()["consumed"] < 3000
    process = world.process(log=log)
    world.wait_consumed(3000)
    stop(process, log)
    assert_all_applied_once(world, wanted)


def stop(process: subprocess.Popen[bytes], log: Path) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(45) == 0, log.read_text()


@in_either_group
def test_partitions_that_move_between_consumers_lose_and_double_nothing(world: World) -> None:
    wanted = conversations(50, 100)
    world.add_chats(*wanted)
    ids = world.write(interleaved(wanted))
    small = {"consumer__batch_rows": 25}
    with world.running(**small):
        world.produce(ids[:1500])
        with world.running(**small):
            world.produce(ids[1500:3000])
            with world.running(**small):
                world.produce(ids[3000:4000])
                world.wait_consumed(2000)
            world.produce(ids[4000:])
            world.wait_consumed(3000)
        world.wait_consumed(5000)
    assert_all_applied_once(world, wanted)


@in_either_group
def test_rows_that_fail_while_partitions_move_stay_in_order(world: World) -> None:
    wanted = conversations(12, 30)
    world.add_chats(*list(wanted)[:6])  # the other half of the chats comes later
    ids = world.write(interleaved(wanted))
    small = {"consumer__batch_rows": 10}
    with world.running(**small):
        world.produce(ids[:120])
        eventually(lambda: world.status_counts().get("pending"), "rows that wait")
        with world.running(**small):
            world.produce(ids[120:240])
            world.sweep()
            world.add_chats(*list(wanted)[6:])
            world.produce(ids[240:])

        def all_consumed() -> bool:
            counts = world.status_counts()
            if "published" not in counts:  # else some are still on their way, and more would come than can be taken
                world.sweep()
            return counts == {"consumed": len(ids)}

        eventually(all_consumed, "every row consumed")
    assert_all_applied_once(world, wanted)


@in_either_group
def test_a_consumer_that_lost_its_partition_during_an_outage_drops_the_batch(world: World) -> None:
    """The first is stuck on a lock for longer than it may stay away; the second takes over."""
    wanted = {"a": [str(n) for n in range(10)]}
    world.add_chats("a")
    ids = world.write([payload("a", message) for message in wanted["a"]])
    with world.engine.connect() as other, world.running(database__read_timeout_s=2.0) as first:
        with other.begin():
            other.exec_driver_sql("SELECT * FROM agent_chats WHERE chat_id = 'a' FOR UPDATE")
            world.produce(ids)
            retries = "cdc_consumer_database_retries_total"
            eventually(lambda: first._registry.get_sample_value(retries), "a lock wait timeout")
            second = world.running(database__read_timeout_s=2.0)
            second.__enter__()
        world.wait_consumed(10)
    second.__exit__(None, None, None)
    assert_all_applied_once(world, wanted)


def test_sigterm_finishes_the_batch_commits_its_offsets_and_exits_0(world: World, tmp_path: Path) -> None:
    wanted = conversations(5, 40)
    world.add_chats(*wanted)
    world.send(interleaved(wanted))
    log = tmp_path / "log"
    process = world.process(log=log)
    world.wait_consumed(200)
    stop(process, log)
    assert committed_offsets(world) == 200
    assert_all_applied_once(world, wanted)
    assert "Traceback" not in log.read_text()


def test_a_second_signal_ends_it_at_once(world: World, tmp_path: Path) -> None:
    world.add_chats("a")
    log = tmp_path / "log"
    process = world.process(log=log)
    with world.engine.connect() as other, other.begin():
        other.exec_driver_sql("SELECT * FROM agent_chats WHERE chat_id = 'a' FOR UPDATE")
        world.send([payload("a", "one")])
        waits = "SELECT COUNT(*) FROM performance_schema.data_lock_waits"
        eventually(lambda: other.exec_driver_sql(waits).scalar(), "the consumer waiting for the lock")

        def interrupted() -> bool:  # two that come at once count as one
            process.send_signal(signal.SIGINT)
            return process.poll() is not None

        eventually(interrupted, "the end of the process")
        assert process.wait() == 1, log.read_text()
    assert "SIGINT again" in log.read_text()


def test_the_drain_timeout_bounds_the_stop(world: World, tmp_path: Path) -> None:
    world.add_chats("a")
    log = tmp_path / "log"
    process = world.process("--drain-timeout", "0.5", log=log)
    with world.engine.connect() as other, other.begin():
        other.exec_driver_sql("SELECT * FROM agent_chats WHERE chat_id = 'a' FOR UPDATE")
        world.send([payload("a", "one")])
        waits = "SELECT COUNT(*) FROM performance_schema.data_lock_waits"
        eventually(lambda: other.exec_driver_sql(waits).scalar(), "the consumer waiting for the lock")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 1, log.read_text()
    assert "not drained within 0.5 s" in log.read_text()
    # Another group need not wait until the killed member is missed.
    assert world.consume(1, consumer__group_id=f"{world.topic}-2") == {Outcome.CONSUMED: 1}


def test_a_table_that_is_gone_ends_the_program(world: World) -> None:
    world.add_chats("a")
    world.send([payload("a", "one")])
    with world.worker() as worker:
        with world.engine.begin() as connection:
            connection.exec_driver_sql("RENAME TABLE chat_histories TO away")
        with pytest.raises(DatabaseError, match=r"1146.*chat_histories"):
            world.take(worker, 1)
    with world.engine.begin() as connection:
        connection.exec_driver_sql("RENAME TABLE away TO chat_histories")
    assert world.consume(1) == {Outcome.CONSUMED: 1}


def test_when_one_worker_fails_all_end_and_its_error_is_told(world: World) -> None:
    world.add_chats("a")
    with pytest.raises(DatabaseError, match=r"1146.*chat_histories"), world.running(consumer__workers=3) as service:
        world.send([payload("a", "one")])
        world.wait_consumed(1)
        with world.engine.begin() as connection:
            connection.exec_driver_sql("RENAME TABLE chat_histories TO away")
        world.send([payload("a", "two")])
        eventually(service.stop.is_set, "the other workers told to end")


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"CDC_DATABASE__URL": "mysql://root:wrong@{host}/d"}, 3, "check user and password"),
        ({"CDC_DATABASE__TABLE": "no_such"}, 3, "no_such' doesn't exist"),
        ({"CDC_CONSUMER__TOPICS": '["nowhere"]', "CDC_CONSUMER__CREATE_TOPICS": "false"}, 4, "topic nowhere.dlq"),
        ({"CDC_KAFKA__PROPERTIES": '{"security.protocol": "sasl_plaintext"}'}, 2, "kafka.properties"),
    ],
)
def test_what_is_wrong_at_the_start_is_told_in_one_line_and_a_hint(
    world: World, tmp_path: Path, change: dict[str, str], code: int, says: str
) -> None:
    url = world.engine.url
    log = tmp_path / "log"
    given = {
        "CDC_DATABASE__URL": world.database_url,
        "CDC_KAFKA__BOOTSTRAP_SERVERS": world.bootstrap_servers,
        "CDC_CONSUMER__TOPICS": f'["{world.topic}"]',
        "CDC_LOG__LEVEL": "error",
    } | {name: value.replace("{host}", f"{url.host}:{url.port}") for name, value in change.items()}
    with log.open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "consumer.cli", "check"], env=os.environ | given, stderr=out, stdout=out, check=False
        )
    assert done.returncode == code, log.read_text()
    assert says in log.read_text()
    labels = [line.partition(": ")[0] for line in log.read_text().splitlines()]
    assert labels in (["error"], ["error", "hint"])


def test_servers_that_do_not_answer_are_named_after_a_bounded_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setattr(service, "DATABASE_TIMEOUT_S", 0.5)
    with pytest.raises(KafkaError, match=r"no Kafka broker answered at 127\.0\.0\.1:1 within 0\.5 s"):
        service.Service(world.settings(kafka__bootstrap_servers="127.0.0.1:1")).check()
    with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.5 s: MySQL is away"):
        service.Service(world.settings(database__url="mysql://root@127.0.0.1:1/d")).check()


def test_missing_topics_are_made(world: World, kafka_broker: KafkaBroker) -> None:
    name = f"{world.topic}-new"
    with world.worker(consumer__topics=[name]):
        there = AdminClient({"bootstrap.servers": kafka_broker.bootstrap_servers}).list_topics(timeout=10).topics
    assert {name, f"{name}.dlq"} <= set(there)


@pytest.mark.parametrize(("partitions", "is_noticed"), [(6, False), (1, True)])
def test_a_topic_that_is_deleted_is_waited_for(world: World, partitions: int, is_noticed: bool) -> None:
    world.add_chats("a")
    ids = world.write([payload("a", "one"), payload("a", "two")])
    properties = {"topic.metadata.refresh.interval.ms": 500, "session.timeout.ms": 6000}
    admin = AdminClient({"bootstrap.servers": world.bootstrap_servers})
    with world.running(kafka__properties=properties):
        world.produce(ids[:1])
        world.wait_consumed(1)
        admin.delete_topics([world.topic])[world.topic].result()
        eventually(lambda: world.topic not in admin.list_topics(timeout=10).topics, "the topic gone")
        if is_noticed:
            time.sleep(1.5)  # for three refreshes of the metadata; nothing depends on it but what is tested
        admin.create_topics([NewTopic(world.topic, partitions, 1)])[world.topic].result()
        again = World(world.database_url, world.bootstrap_servers, world.topic, partitions=None)
        again.produce(ids[1:])
        world.wait_consumed(2)
    assert_all_applied_once(world, {"a": ["one", "two"]})
