"""SIGKILL at any moment: a restart makes at most the rows in flight twice in Kafka, and none twice in the history."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from tests.e2e.programs import launched
from tests.e2e.stack import Stack, stack_on
from tests.e2e.verdict import read_kafka
from tests.harness import eventually

IN_FLIGHT = 300
#: The largest transaction of the writers, which is let in whole.
MORE = 60


@pytest.fixture
def stack(mysql_server: MysqlServer, kafka_broker: KafkaBroker, tmp_path: Path) -> Iterator[Stack]:
    settings: dict[str, Any] = {"tail__max_in_flight_rows": IN_FLIGHT, "checkpoint__interval_s": 0.05}
    with stack_on(mysql_server, kafka_broker.bootstrap_servers, tmp_path, **settings) as stack:
        yield stack


def kill_in_a_loop(stack: Stack, names: list[str], *, times: int, seed: int) -> None:
    """Kill and restart while writers write: mostly programs at work, now and then one that is just starting."""
    chance = random.Random(seed)
    stack.start()
    writers = stack.write(pause_s=(0.0, 0.02))
    for _ in range(times):
        time.sleep(chance.uniform(0.1, 1.5))
        for name in names:
            program = getattr(stack, name)
            program.kill()
            program.start(wait=False)
    writers.stop()


def test_the_relay_is_killed_again_and_again(stack: Stack) -> None:
    kill_in_a_loop(stack, ["relay"], times=5, seed=1)
    stack.verdict().require_good(duplicates=5 * (IN_FLIGHT + MORE))


@pytest.mark.parametrize("mode", ["lazy", "none"])
def test_the_relay_is_killed_before_it_has_marked_what_kafka_has(stack: Stack, mode: str) -> None:
    for program in (stack.relay, stack.consumer):
        program.settings["CDC_WRITEBACK__MODE"] = mode
    kill_in_a_loop(stack, ["relay"], times=3, seed=4)
    stack.verdict().require_good(duplicates=3 * (IN_FLIGHT + MORE))


def test_the_consumer_is_killed_again_and_again(stack: Stack) -> None:
    kill_in_a_loop(stack, ["consumer"], times=3, seed=2)
    stack.verdict().require_good(duplicates=0)


def test_both_are_killed_again_and_again(stack: Stack) -> None:
    kill_in_a_loop(stack, ["consumer", "relay"], times=4, seed=3)
    stack.verdict().require_good(duplicates=4 * (IN_FLIGHT + MORE))


@pytest.mark.parametrize("step", ["write", "fsync", "replace", "folder"])
def test_the_relay_is_killed_in_the_middle_of_writing_the_checkpoint(stack: Stack, step: str) -> None:
    with launched(stack.relay, FAULT_DIE_IN_CHECKPOINT=step):
        stack.relay.start(wait=False)
        writers = stack.write(pause_s=(0.0, 0.02))
        assert stack.relay.wait_ended() == -9
    starts = len(stack.relay.said("start"))
    stack.start()
    eventually(lambda: stack.relay.is_ready(), "the relay ready")
    writers.stop()
    stack.verdict().require_good(duplicates=IN_FLIGHT + MORE)
    # Whatever the step, the checkpoint is whole: the one before or the new one.
    assert len(stack.relay.said("start")) == starts + 1


def test_a_kill_doubles_what_was_on_its_way_to_kafka_and_not_all_since_the_checkpoint(
    mysql_server: MysqlServer, kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "tail__max_unacknowledged_rows": 100,
        "checkpoint__interval_s": 60,
        "writeback__mode": "none",
    }
    with stack_on(mysql_server, kafka_broker.bootstrap_servers, tmp_path, **settings) as stack:
        stack.relay.start()
        eventually(stack.checkpoint.exists, "the first checkpoint")  # without one the table is caught up from again
        writers = stack.write(pause_s=(0.0, 0.001))
        kills = 3
        for _ in range(kills):
            stack.wait_for_rows(1_000)
            stack.relay.kill()
            stack.relay.start()
        writers.stop()
        stack.consumer.start()  # not before: rows that it has marked are not sent again anyway
        # What one look at the connection brings comes on top; the rows since the checkpoint are several times as many.
        stack.verdict().require_good(duplicates=kills * (100 + 300))


def test_a_kill_while_the_table_is_caught_up_from_doubles_what_was_not_marked_and_that_is_little(
    mysql_server: MysqlServer, kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"tail__max_unacknowledged_rows": 100}
    with stack_on(mysql_server, kafka_broker.bootstrap_servers, tmp_path, **settings) as stack:
        stack.write_some(2_500, pause_s=(0.0, 0.0))
        [(row_id,)] = stack.sql("SELECT id FROM agent_outbox_messages ORDER BY id LIMIT 1 OFFSET 1000")
        with stack.engine.connect().execution_options(isolation_level="READ COMMITTED") as somebody:
            # From here on nothing can be marked, as on a server that is slow: what is sent meanwhile comes twice.
            somebody.execute(text("SELECT id FROM agent_outbox_messages WHERE id = :id FOR UPDATE"), {"id": row_id})
            stack.relay.start(wait=False)
            eventually(lambda: len(read_kafka(stack.kafka, stack.topic)) == 2_500, "all rows in Kafka")
            time.sleep(0.2)  # for the answers
            assert stack.statuses()["pending"] >= 1_500
            stack.relay.kill()
        stack.start()
        stack.verdict().require_good(duplicates=100 + 500 + MORE)
