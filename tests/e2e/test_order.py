"""Order per key (P3): a row that fails holds back its own key and no other, wherever it fails and whatever restarts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from tests.e2e.stack import Stack, stack_on
from tests.harness import eventually

IN_FLIGHT = 300


@pytest.fixture
def stack(mysql_server: MysqlServer, own_kafka: KafkaBroker, tmp_path: Path) -> Iterator[Stack]:
    settings: dict[str, Any] = {"tail__max_in_flight_rows": IN_FLIGHT, "retry__cap_s": 2}
    with stack_on(mysql_server, own_kafka.bootstrap_servers, tmp_path, **settings) as stack:
        yield stack


def misdirected_keys(stack: Stack) -> set[str]:
    found = stack.sql("SELECT message_key FROM agent_outbox_messages WHERE topic LIKE '%.missing'")
    return {str(key) for (key,) in found}


def mend(stack: Stack) -> None:
    """As an operator would: the rows name the right topic now."""
    stack.sql("UPDATE agent_outbox_messages SET topic = :topic WHERE topic <> :topic", topic=stack.topic)


def all_consumed_but(stack: Stack, keys: set[str]) -> bool:
    """Whether every row of every other key is consumed."""
    left = stack.sql("SELECT DISTINCT message_key FROM agent_outbox_messages WHERE status <> 'consumed'")
    return {str(key) for (key,) in left} <= keys


def last_consumed(stack: Stack) -> dict[str, int]:
    """The number of each key's last consumed row."""
    rows = stack.sql("SELECT id FROM agent_outbox_messages WHERE status = 'consumed'")
    last: dict[str, int] = {}
    for (row_id,) in rows:
        row = stack.ledger.committed[row_id]
        last[row.key] = max(row.seq, last.get(row.key, -1))
    return last


def test_a_row_that_kafka_refuses_holds_back_its_key_only_and_goes_first_when_it_is_mended(stack: Stack) -> None:
    stack.start()
    stack.write_some(600, misdirected=4, conversations=40)
    keys = misdirected_keys(stack)
    assert 0 < len(keys) < 40
    eventually(lambda: all_consumed_but(stack, keys), "the other keys consumed")
    stalled = last_consumed(stack)
    for row_id, key in stack.sql(
        "SELECT MIN(id), message_key FROM agent_outbox_messages WHERE topic LIKE '%.missing' GROUP BY 2"
    ):
        assert stalled[key] < stack.ledger.committed[row_id].seq
    mend(stack)
    stack.verdict().require_good(duplicates=0)


@pytest.mark.parametrize("how", ["restart", "reconcile"])
def test_what_is_held_back_stays_so_over_a_restart_of_the_relay(stack: Stack, how: str) -> None:
    stack.start()
    writers = stack.write(misdirected=4, conversations=40, pause_s=(0.0, 0.02))
    stack.wait_for_rows(300)
    eventually(lambda: misdirected_keys(stack) and stack.relay.metric("cdc_relay_parked_keys"), "keys held back")
    for _ in range(2):
        stack.wait_for_rows(100)
        stack.relay.kill()
        if how == "reconcile":
            stack.checkpoint.unlink(missing_ok=True)
        stack.wait_for_rows(100)
        stack.relay.start()
    writers.stop()
    keys = misdirected_keys(stack)
    eventually(lambda: all_consumed_but(stack, keys), "the other keys consumed")
    mend(stack)
    stack.verdict().require_good(duplicates=2 * (IN_FLIGHT + 60))


def test_a_row_that_is_dead_lets_the_later_ones_of_its_key_go_on(stack: Stack) -> None:
    stack.start()
    stack.write_some(600, misdirected=4, conversations=40, max_retry=2)
    stack.ledger.dead = {i for (i,) in stack.sql("SELECT id FROM agent_outbox_messages WHERE topic LIKE '%.missing'")}
    assert stack.ledger.dead
    stack.verdict().require_good(duplicates=0)


@pytest.mark.parametrize("kill", ["nothing", "consumer", "relay"])
def test_rows_whose_chat_comes_later_are_applied_then_in_order_and_others_do_not_wait(stack: Stack, kill: str) -> None:
    stack.start()
    writers = stack.write(conversations=20, pause_s=(0.0, 0.02))
    stack.wait_for_rows(100)
    keys = {str(key) for (key,) in stack.sql("SELECT chat_id FROM agent_chats ORDER BY id LIMIT 4")}
    # As good as not there: a chat is found by both of its ids.
    stack.sql("UPDATE agent_chats SET user_id = -user_id ORDER BY id LIMIT 4")
    stack.wait_for_rows(200)
    if kill != "nothing":
        getattr(stack, kill).kill()
        getattr(stack, kill).start()
    stack.wait_for_rows(100)
    writers.stop()
    eventually(lambda: all_consumed_but(stack, keys), "the other keys consumed")
    assert stack.sql("SELECT COUNT(*) FROM agent_outbox_messages WHERE retry_count > 0 AND status = 'pending'")[0][0]
    stack.sql("UPDATE agent_chats SET user_id = -user_id ORDER BY id LIMIT 4")
    # A row that is tried again is sent again; those behind it at most twice more, however often it fails.
    verdict = stack.verdict()
    verdict.require_good(duplicates=2 * verdict.rows)


def test_a_message_scheduled_for_later_goes_out_in_its_time_however_busy_the_server_is(stack: Stack) -> None:
    stack.relay.start()
    writers = stack.write(sizes=(1,))
    stack.sql(
        "INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload, created_at, next_retry_at) "
        "VALUES ('later', :topic, 'later', '{}', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6) + INTERVAL 3 SECOND)",
        topic=stack.topic,
    )
    in_time = "published_at >= created_at + INTERVAL 3 SECOND"
    look = f"SELECT status, {in_time} FROM agent_outbox_messages WHERE biz_type = 'later'"
    assert stack.sql(look) == [("pending", None)]
    eventually(lambda: stack.sql(look) == [("published", 1)], "the scheduled message published")
    assert writers.are_writing
    writers.stop()
