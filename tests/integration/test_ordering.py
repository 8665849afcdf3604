"""``ordering.mode`` and ``ordering.on_dead`` on real servers: the relay and the consumer, each by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from sqlalchemy import Engine, text

from cdc_relay.config import Settings
from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.outbox.operator_statements import OperatorStatements
from consumer.plan import Outcome
from tests.consumer_harness import World, payload
from tests.harness import Outbox, eventually, outbox_id, read_topic, running_relay, settings_for

pytestmark = [pytest.mark.mysql, pytest.mark.kafka]

NO_TOPIC = "no topic"
"""No retry cures a row that names it, until somebody mends the row."""


def decide(engine: Engine, how: str, ids: Sequence[int]) -> None:
    """What an operator does with dead rows."""
    now = datetime.now(UTC).replace(tzinfo=None)
    with engine.begin() as connection:
        if how == "requeue":
            OperatorStatements().requeue_dead(connection, ids, now)
        elif how == "discard":
            OperatorStatements().discard_dead(connection, ids, now)
        else:
            connection.exec_driver_sql(f"DELETE FROM agent_outbox_messages WHERE id IN ({', '.join(map(str, ids))})")


# --- the relay --------------------------------------------------------------------------------------------------------


@pytest.fixture
def outbox(database_url: str, topic: str, kafka_broker: KafkaBroker) -> Iterator[Outbox]:
    make_topic(kafka_broker, topic, {})
    outbox = Outbox(database_url, topic)
    yield outbox
    outbox.engine.dispose()


def make_topic(broker: KafkaBroker, topic: str, config: dict[str, str]) -> None:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    admin.create_topics([NewTopic(topic, 1, 1, config=config)])[topic].result(30)


@pytest.fixture
def settings(database_url: str, kafka_broker: KafkaBroker, tmp_path: Path) -> Callable[..., Settings]:
    def make(**flags: Any) -> Settings:
        flags |= {"retry__base_s": 0.3, "retry__cap_s": 0.3}
        return settings_for(database_url, kafka_broker.bootstrap_servers, tmp_path, **flags)

    return make


def sent(broker: KafkaBroker, topic: str, expected: int, key: str = "k") -> list[int]:
    """The rows of one key that are in Kafka, in order."""
    records = read_topic(broker.bootstrap_servers, topic, expected)
    return [outbox_id(record) for record in records if record.key() == key.encode()]


def mend(outbox: Outbox) -> None:
    with outbox.engine.begin() as connection:
        sql = "UPDATE agent_outbox_messages SET topic = :topic WHERE topic = :wrong"
        connection.execute(text(sql), {"topic": outbox.topic, "wrong": NO_TOPIC})


def assert_held_back(outbox: Outbox, ids: Sequence[int], behind: int) -> None:
    eventually(lambda: all(outbox.rows()[i].last_error for i in ids), "a note on each row")
    rows = outbox.rows()
    assert {rows[i].status for i in ids} == {"pending"}
    assert {rows[i].last_error for i in ids} == {
        f"held back: waits for an earlier row of the same message_key (id {behind})"
    }


@pytest.mark.parametrize("start", ["without a checkpoint", "with a checkpoint", "sweep only"])
def test_behind_a_dead_row_its_key_waits_over_every_kind_of_start(
    outbox: Outbox, settings: Callable[..., Settings], kafka_broker: KafkaBroker, start: str
) -> None:
    block = settings(ordering__on_dead="block")
    with running_relay(block):
        before = outbox.add("k", 0)
        dead = outbox.add("k", 1, topic=NO_TOPIC)
        alone = outbox.add("alone", 1, topic=NO_TOPIC)
        behind = [outbox.add("k", n) for n in range(2, 5)]
        free = [outbox.add("free", n) for n in range(3)]
        outbox.wait_published([before, *free])
        eventually(lambda: outbox.statuses()[dead] == outbox.statuses()[alone] == "dead", "the rows dead")
        assert_held_back(outbox, behind, dead)
    if start == "without a checkpoint":
        block.checkpoint.path.unlink()
    behind_alone = outbox.add("alone", 5)  # while it is down
    behind += [outbox.add("k", n) for n in range(5, 8)]
    tail = start != "sweep only"
    if not tail:
        block = settings(ordering__on_dead="block", sweep__takeover_after_s=0.5)  # there is no other tailer
    with running_relay(block, tail=tail) as service:
        behind.append(outbox.add("k", 8))
        outbox.wait_published([outbox.add("free", 9)])
        assert_held_back(outbox, behind, dead)
        assert_held_back(outbox, [behind_alone], alone)
        eventually(lambda: service._registry.get_sample_value("cdc_relay_blocked_keys") == 2, "both keys counted")
        mend(outbox)
        decide(outbox.engine, "requeue", [dead, alone])
        outbox.wait_published([dead, alone, *behind, behind_alone])
        last = outbox.add("k", 10)
        outbox.wait_published([last])
        eventually(lambda: service._registry.get_sample_value("cdc_relay_blocked_keys") == 0, "no key blocked")
    assert sent(kafka_broker, outbox.topic, len(behind) + 9) == [before, dead, *behind, last]
    assert sent(kafka_broker, outbox.topic, len(behind) + 9, "alone") == [alone, behind_alone]


@pytest.mark.parametrize("how", ["discard", "delete"])
def test_a_dead_row_that_is_let_go_frees_its_key(
    outbox: Outbox, settings: Callable[..., Settings], kafka_broker: KafkaBroker, how: str
) -> None:
    with running_relay(settings(ordering__on_dead="block")):
        dead = outbox.add("k", 0, payload="no JSON")
        behind = [outbox.add("k", n) for n in range(1, 4)]
        outbox.wait_published([outbox.add("free", 4)])
        assert_held_back(outbox, behind, dead)
        decide(outbox.engine, how, [dead])
        outbox.wait_published(behind)
        after = outbox.add("k", 5)
        outbox.wait_published([after])
    assert sent(kafka_broker, outbox.topic, 5) == [*behind, after]
    with running_relay(settings(ordering__on_dead="block")):  # and stays free
        outbox.wait_published([outbox.add("k", 6)])


def test_a_row_that_somebody_else_makes_dead_is_noticed(outbox: Outbox, settings: Callable[..., Settings]) -> None:
    with running_relay(settings(ordering__on_dead="block")) as service:
        row = outbox.add("k", 0)
        outbox.wait_published([row])
        outbox.run(f"UPDATE agent_outbox_messages SET status = 'dead' WHERE id = {row}")
        eventually(lambda: service._registry.get_sample_value("cdc_relay_blocked_keys"), "the key blocked")
        behind = outbox.add("k", 1)
        outbox.wait_published([outbox.add("free", 2)])
        assert_held_back(outbox, [behind], row)


def test_what_is_sent_together_with_a_record_that_is_too_large_waits_for_it(
    outbox: Outbox, settings: Callable[..., Settings], kafka_broker: KafkaBroker
) -> None:
    outbox.topic += "-small"
    make_topic(kafka_broker, outbox.topic, {"max.message.bytes": "50000"})
    with running_relay(settings(ordering__on_dead="block")):
        outbox.wait_published([outbox.add("k", 0)])
        with outbox.engine.begin() as connection:
            large = outbox.insert(connection, "k", 1, payload=json.dumps("x" * 49_900))  # too large with its headers
            behind = [outbox.insert(connection, "k", n) for n in range(2, 12)]
            free = outbox.insert(connection, "free", 12)
        outbox.wait_published([free])
        eventually(lambda: outbox.statuses()[large] == "dead", "the large row dead")
        assert_held_back(outbox, behind, large)
        assert sent(kafka_broker, outbox.topic, 2) == [large - 1]
        for _ in range(2):  # it is no better the second time, from the table now
            decide(outbox.engine, "requeue", [large])
            eventually(lambda: outbox.statuses()[large] == "dead", "the large row dead again")
        outbox.wait_published([outbox.add("free", 13)])
        assert {outbox.statuses()[i] for i in behind} == {"pending"}
        decide(outbox.engine, "discard", [large])
        outbox.wait_published(behind)
    assert sent(kafka_broker, outbox.topic, 13) == [large - 1, *behind]


def test_a_large_record_that_kafka_takes_keeps_its_place(
    outbox: Outbox, settings: Callable[..., Settings], kafka_broker: KafkaBroker
) -> None:
    with running_relay(settings(ordering__on_dead="block")):
        with outbox.engine.begin() as connection:
            ids = [
                outbox.insert(connection, "k", n, payload=json.dumps("x" * (1_020_000 if n % 3 == 1 else 10)))
                for n in range(9)
            ]
        outbox.wait_published(ids)
    assert sent(kafka_broker, outbox.topic, 9) == ids


@pytest.mark.parametrize("start", ["without a checkpoint", "with a checkpoint"])
def test_without_an_order_later_rows_of_a_failing_ones_key_do_not_wait(
    outbox: Outbox, database_url: str, tmp_path: Path, start: str
) -> None:
    with KafkaBroker(options={"auto.create.topics.enable": "false"}) as broker:
        make_topic(broker, outbox.topic, {})
        flags = {"ordering__mode": "none", "retry__base_s": 0.3, "retry__cap_s": 0.3}
        settings = settings_for(database_url, broker.bootstrap_servers, tmp_path, **flags)
        with running_relay(settings):
            failing = outbox.add("k", 0, topic=f"{outbox.topic}-missing")
            eventually(lambda: outbox.rows()[failing].retry_count > 0, "the row failing")
            outbox.wait_published([outbox.add("k", n) for n in range(1, 4)])
        if start == "without a checkpoint":
            settings.checkpoint.path.unlink()
        later = [outbox.add("k", n) for n in range(4, 7)]
        with running_relay(settings):
            outbox.wait_published([*later, outbox.add("k", 7)])
            assert outbox.statuses()[failing] == "pending"
            make_topic(broker, f"{outbox.topic}-missing", {})
            outbox.wait_published([failing])


def test_an_order_that_is_asked_for_later_counts_for_what_failed_before(
    outbox: Outbox, database_url: str, tmp_path: Path
) -> None:
    with KafkaBroker(options={"auto.create.topics.enable": "false"}) as broker:
        make_topic(broker, outbox.topic, {})
        none, key = (
            settings_for(database_url, broker.bootstrap_servers, tmp_path, ordering__mode=mode, retry__base_s=20)
            for mode in ("none", "key")
        )
        with running_relay(none):
            failing = outbox.add("k", 0, topic=f"{outbox.topic}-missing")
            eventually(lambda: outbox.rows()[failing].retry_count > 0, "the row failing")
            outbox.wait_published([outbox.add("k", 1)])
        with running_relay(key):
            behind = outbox.add("k", 2)
            outbox.wait_published([outbox.add("free", 3)])
            assert_held_back(outbox, [behind], failing)


# --- the consumer -----------------------------------------------------------------------------------------------------


@pytest.fixture
def world(database_url: str, kafka_broker: KafkaBroker, topic: str) -> Iterator[World]:
    world = World(database_url, kafka_broker.bootstrap_servers, topic)
    yield world
    world.close()


def statuses(world: World) -> list[str]:
    return [str(row.status) for row in world.rows().values()]


def test_behind_a_row_that_the_consumer_makes_dead_its_key_waits_until_it_is_requeued(world: World) -> None:
    block = {"ordering__on_dead": "block"}
    world.add_chats("a", "b")
    bad, *behind = world.send(
        [payload("a", "one", user_id="seven"), payload("a", "two"), payload("b", "one"), payload("a", "three")]  # type: ignore[arg-type]
    )
    assert world.consume(4, **block) == {Outcome.DEAD: 1, Outcome.PARKED: 2, Outcome.CONSUMED: 1}
    assert statuses(world) == ["dead", "pending", "consumed", "pending"]
    assert {world.rows()[i].last_error for i in (behind[0], behind[2])} == {
        f"parked: waits for an earlier row of the same message_key (id {bad})"
    }
    world.send([payload("a", "four")])
    assert world.consume(1, **block) == {Outcome.PARKED: 1}, "another consumer knows as well"
    with world.engine.begin() as connection:
        mended = json.dumps(payload("a", "one"))
        connection.exec_driver_sql("UPDATE agent_outbox_messages SET payload = %s WHERE id = %s", (mended, bad))
    decide(world.engine, "requeue", [bad])
    world.send([payload("a", "five")])
    assert world.consume(1, **block) == {Outcome.PARKED: 1}, "it is not delivered yet"
    world.sweep()
    assert world.consume(5, **block) == {Outcome.CONSUMED: 5}
    assert world.messages()["a"] == ["one", "two", "three", "four", "five"]


def test_rows_in_kafka_behind_a_row_that_was_requeued_and_sent_while_no_consumer_ran_wait_for_it(world: World) -> None:
    block = {"ordering__on_dead": "block", "consumer__batch_rows": 1}
    world.add_chats("a")
    bad, *_ = world.send([payload("a", "one", user_id="seven"), payload("a", "two"), payload("a", "three")])  # type: ignore[arg-type]
    assert world.consume(1, **block) == {Outcome.DEAD: 1}
    with world.engine.begin() as connection:
        mended = json.dumps(payload("a", "one"))
        connection.exec_driver_sql("UPDATE agent_outbox_messages SET payload = %s WHERE id = %s", (mended, bad))
    decide(world.engine, "requeue", [bad])
    assert world.sweep() == [bad]
    assert world.consume(3, **block) == {Outcome.PARKED: 2, Outcome.CONSUMED: 1}
    world.sweep()
    assert world.consume(2, **block) == {Outcome.CONSUMED: 2}
    assert world.messages()["a"] == ["one", "two", "three"]


@pytest.mark.parametrize("how", ["discard", "delete"])
def test_a_dead_row_that_is_let_go_frees_its_key_in_the_consumer_too(world: World, how: str) -> None:
    world.add_chats("a")
    bad, *_ = world.send([payload("a", "one", user_id="seven"), payload("a", "two")])  # type: ignore[arg-type]
    with world.worker(ordering__on_dead="block") as worker:
        assert world.take(worker, 2) == {Outcome.DEAD: 1, Outcome.PARKED: 1}
        decide(world.engine, how, [bad])
        world.sweep()
        world.send([payload("a", "three")])
        assert world.take(worker, 2) == {Outcome.CONSUMED: 2}
    assert world.messages() == {"a": ["two", "three"]}


def test_without_an_order_a_row_that_cannot_be_applied_yet_holds_back_nobody(world: World) -> None:
    world.add_chats("there")
    messages = [payload("missing", "one"), payload("there", "one"), payload("missing", "two"), payload("there", "two")]
    world.send(messages, message_key="k")
    none = {"ordering__mode": "none"}
    assert world.consume(4, **none) == {Outcome.FAILED: 2, Outcome.CONSUMED: 2}
    assert [row.retry_count for row in world.rows().values()] == [1, 0, 1, 0]
    world.send([payload("there", "three")], message_key="k")
    assert world.consume(1, **none) == {Outcome.CONSUMED: 1}
    assert world.messages() == {"there": ["one", "two", "three"]}
