"""``ordering.on_dead = block`` and ``ordering.mode = none``: what waits for a dead row, and what waits for nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from tests.e2e.stack import Stack, stack_on
from tests.e2e.test_order import all_consumed_but, last_consumed, mend
from tests.harness import eventually

IN_FLIGHT = 300
MORE = 60
SETTINGS: dict[str, Any] = {"tail__max_in_flight_rows": IN_FLIGHT, "retry__cap_s": 2}
BLOCK: dict[str, Any] = {"ordering__on_dead": "block"}
ILLEGAL = "/no topic"


@pytest.fixture
def stack(mysql_server: MysqlServer, own_kafka: KafkaBroker, tmp_path: Path) -> Iterator[Stack]:
    """Dead rows hold back their keys."""
    with stack_on(mysql_server, own_kafka.bootstrap_servers, tmp_path, **SETTINGS, **BLOCK) as stack:
        yield stack


def dead_rows(stack: Stack) -> dict[str, int]:
    """The dead row of each key that has one. A second one of a key would mean that the first did not block it."""
    found = stack.sql("SELECT message_key, id FROM agent_outbox_messages WHERE status = 'dead'")
    keys = {str(key): int(row_id) for key, row_id in found}
    assert len(keys) == len(found), f"several dead rows of a key: {found}"
    return keys


def the_wrong_ones_dead(stack: Stack) -> dict[str, int]:
    """The dead rows by key, once every row is dead that names no topic: each writer makes one, of a key of its own."""
    wrong = "SELECT id FROM agent_outbox_messages WHERE topic <> :topic AND status <> 'dead'"
    eventually(lambda: not stack.sql(wrong, topic=stack.topic), "every wrong row dead")
    return dead_rows(stack)


def assert_blocked(stack: Stack, keys: dict[str, int]) -> None:
    """Other keys are all consumed, of these nothing behind the dead row, and what waits says for which one it does."""
    eventually(lambda: all_consumed_but(stack, set(keys)), "the other keys consumed")
    last = last_consumed(stack)
    for key, row_id in keys.items():
        assert last.get(key, -1) < stack.ledger.committed[row_id].seq
    waits = "SELECT message_key, last_error FROM agent_outbox_messages WHERE status = 'pending'"
    eventually(lambda: all(error for _, error in stack.sql(waits)), "a reason on all that waits")
    waiting = stack.sql(waits)
    assert waiting, "nothing waits"
    for key, error in waiting:
        assert error.endswith(f"waits for an earlier row of the same message_key (id {keys[str(key)]})"), error


def test_behind_a_row_that_the_relay_makes_dead_its_key_waits_over_every_restart(stack: Stack) -> None:
    stack.start()
    writers = stack.write(misdirected=4, misdirected_to=ILLEGAL, conversations=40, pause_s=(0.01, 0.05))
    eventually(lambda: stack.relay.metric("cdc_relay_blocked_keys"), "keys blocked")
    for restart in ("with a checkpoint", "without"):
        stack.wait_for_rows(100)
        stack.relay.kill()
        if restart == "without":
            stack.checkpoint.unlink(missing_ok=True)
        stack.wait_for_rows(100)
        stack.relay.start()
    stack.wait_for_rows(100)
    writers.stop()
    keys = the_wrong_ones_dead(stack)
    assert_blocked(stack, keys)
    eventually(lambda: stack.relay.metric("cdc_relay_blocked_keys") == len(keys), "all of them counted")
    assert f"{len(keys)}, until these dead rows are requeued or discarded" in stack.command("status")
    mend(stack)
    stack.command("dead", "requeue", "--all")
    stack.verdict().require_good(duplicates=2 * (IN_FLIGHT + MORE))


def test_behind_a_row_that_the_consumer_makes_dead_its_key_waits_over_every_restart(stack: Stack) -> None:
    stack.start()
    writers = stack.write(conversations=20, max_retry=1, pause_s=(0.01, 0.05))
    stack.wait_for_rows(100)
    # As good as not there: a chat is found by both of its ids. With one attempt that is the end of its next row.
    stack.sql("UPDATE agent_chats SET user_id = -user_id ORDER BY id LIMIT 4")
    eventually(lambda: len(dead_rows(stack)) == 4, "a dead row of each")
    stack.consumer.stop()  # a kill would only add the wait until Kafka notices
    stack.relay.kill()
    stack.wait_for_rows(100)
    stack.start()
    stack.wait_for_rows(50)
    writers.stop()
    assert_blocked(stack, dead_rows(stack))
    stack.sql("UPDATE agent_chats SET user_id = -user_id ORDER BY id LIMIT 4")
    stack.consumer.stop()
    stack.command("dead", "requeue", "--all")
    sent_again = "SELECT id FROM agent_outbox_messages WHERE status = 'published' AND last_error LIKE 'requeued%'"
    eventually(lambda: len(stack.sql(sent_again)) == 4, "the requeued rows sent")
    stack.consumer.start()
    verdict = stack.verdict()
    verdict.require_good(duplicates=2 * verdict.rows)


def test_nothing_of_its_key_is_sent_behind_a_record_that_is_too_large(
    mysql_server: MysqlServer, own_kafka: KafkaBroker, tmp_path: Path
) -> None:
    with stack_on(mysql_server, own_kafka.bootstrap_servers, tmp_path, topic=False, **SETTINGS, **BLOCK) as stack:
        stack.make_topic(max_message_bytes="60000")
        stack.start()
        writers = stack.write(conversations=8, large=4)
        eventually(lambda: stack.relay.metric("cdc_relay_blocked_keys"), "a key blocked")
        stack.wait_for_rows(1000)
        writers.stop()
        large = "SELECT message_key FROM agent_outbox_messages WHERE LENGTH(payload) > 60000"
        eventually(lambda: dead_rows(stack).keys() == {str(key) for (key,) in stack.sql(large)}, "each key blocked")
        assert_blocked(stack, dead_rows(stack))
        entry = ConfigEntry("max.message.bytes", "8000000", incremental_operation=AlterConfigOpType.SET)
        topic = ConfigResource(ResourceType.TOPIC, stack.topic, incremental_configs=[entry])
        admin = AdminClient({"bootstrap.servers": stack.kafka})
        admin.incremental_alter_configs([topic])[topic].result(30)
        stack.command("dead", "requeue", "--all")
        stack.verdict().require_good(duplicates=2 * (IN_FLIGHT + MORE))


@pytest.mark.parametrize("how", ["discard", "delete"])
def test_a_standby_that_takes_over_holds_back_the_same_keys_until_their_rows_are_let_go(
    stack: Stack, tmp_path: Path, how: str
) -> None:
    stack.start()
    with stack.new_relay("other", CDC_CHECKPOINT__PATH=str(tmp_path / "other.json")) as other:
        other.start()
        writers = stack.write(misdirected=4, misdirected_to=ILLEGAL, conversations=40, pause_s=(0.01, 0.05))
        eventually(lambda: dead_rows(stack), "a dead row")
        stack.relay.kill()
        stack.wait_for_rows(200)
        writers.stop()
        eventually(lambda: other.said("active"), "the standby active")
        keys = the_wrong_ones_dead(stack)
        assert_blocked(stack, keys)
        if how == "discard":
            stack.command("dead", "discard", *map(str, keys.values()))
            stack.ledger.dead = set(keys.values())
        else:
            for row_id in keys.values():
                stack.sql("DELETE FROM agent_outbox_messages WHERE id = :id", id=row_id)
                del stack.ledger.committed[row_id]
        stack.relay.start()
        stack.verdict().require_good(duplicates=IN_FLIGHT + MORE)


def test_without_an_order_a_failing_row_holds_back_nobody(
    mysql_server: MysqlServer, own_kafka: KafkaBroker, tmp_path: Path
) -> None:
    settings = SETTINGS | {"ordering__mode": "none"}
    with stack_on(mysql_server, own_kafka.bootstrap_servers, tmp_path, **settings) as stack:
        stack.start()
        writers = stack.write(misdirected=4, conversations=40, pause_s=(0.01, 0.05))
        stack.wait_for_rows(100)
        stack.relay.kill()
        stack.checkpoint.unlink(missing_ok=True)
        stack.wait_for_rows(100)
        stack.relay.start()
        stack.wait_for_rows(100)
        writers.stop()
        wrong = {i for (i,) in stack.sql("SELECT id FROM agent_outbox_messages WHERE topic LIKE '%.missing'")}
        assert wrong
        unconsumed = "SELECT id FROM agent_outbox_messages WHERE status <> 'consumed'"
        eventually(lambda: {i for (i,) in stack.sql(unconsumed)} == wrong, "all but the wrong rows consumed")
        last = last_consumed(stack)
        assert any(last[row.key] > row.seq for row in map(stack.ledger.committed.__getitem__, wrong))
        mend(stack)
        verdict = stack.verdict()
        assert verdict.lost == verdict.invented == verdict.applied_twice == verdict.wrong_counts == 0, str(verdict)
        assert verdict.out_of_order, "there was an order after all"
