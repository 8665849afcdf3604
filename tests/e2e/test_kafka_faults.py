"""What a Kafka cluster and its operator can do to the relay and the consumer. An outage is no failure of a row (P6)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from tests.e2e.long_forms import OUTAGE_S
from tests.e2e.programs import launched
from tests.e2e.stack import Stack, stack_on
from tests.harness import eventually

IN_FLIGHT = 500
SETTINGS: dict[str, Any] = {"tail__max_in_flight_rows": IN_FLIGHT}


@pytest.fixture
def stack(mysql_server: MysqlServer, own_kafka: KafkaBroker, tmp_path: Path) -> Iterator[Stack]:
    with stack_on(mysql_server, own_kafka.bootstrap_servers, tmp_path, **SETTINGS) as stack:
        yield stack


def attempts(stack: Stack) -> int:
    """The highest count of failures of any row."""
    return int(stack.sql("SELECT COALESCE(MAX(retry_count), 0) FROM agent_outbox_messages")[0][0])


def test_a_broker_that_is_killed_and_comes_back_again_and_again(stack: Stack, own_kafka: KafkaBroker) -> None:
    stack.start()
    writers = stack.write(pause_s=(0.0, 0.02))
    for _ in range(2):
        stack.wait_for_rows(200)
        own_kafka.kill()
        stack.wait_for_rows(200)
        own_kafka.start()
    writers.stop()
    # The idempotent producer sends again what the broker may not have had, under the same numbers.
    stack.verdict().require_good(duplicates=0)
    assert attempts(stack) == 0


@pytest.mark.timeout(OUTAGE_S + 300)
def test_an_outage_costs_no_row_an_attempt_and_delivery_goes_on_by_itself(stack: Stack, own_kafka: KafkaBroker) -> None:
    stack.start()
    stack.write_some(50)
    stack.settle()
    own_kafka.kill()
    try:
        stack.write_some(1500)  # more than may be in flight
        time.sleep(OUTAGE_S)
        assert attempts(stack) == 0
        assert stack.statuses() == {"consumed": 50, "pending": 1500}
        assert not stack.relay.is_ready()
    finally:
        own_kafka.start()
    stack.verdict().require_good(duplicates=0)
    assert attempts(stack) == 0
    assert stack.relay.starts == stack.consumer.starts == 1


def test_a_relay_that_is_stopped_and_started_while_kafka_is_away(stack: Stack, own_kafka: KafkaBroker) -> None:
    stack.start()
    stack.write_some(50)
    stack.settle()
    own_kafka.kill()
    stack.write_some(100)
    stack.relay.kill()
    own_kafka.start()
    stack.relay.start()
    stack.verdict().require_good(duplicates=0)


def test_a_broker_that_is_frozen_for_longer_than_every_timeout(
    mysql_server: MysqlServer, own_kafka: KafkaBroker, tmp_path: Path
) -> None:
    with stack_on(mysql_server, own_kafka.bootstrap_servers, tmp_path, **SETTINGS) as stack:
        short = {"socket.timeout.ms": 2000, "request.timeout.ms": 2000, "socket.connection.setup.timeout.ms": 2000}
        stack.relay.settings["CDC_KAFKA__PROPERTIES"] = json.dumps(short)
        stack.start()
        writers = stack.write(pause_s=(0.0, 0.02))
        stack.wait_for_rows(100)
        own_kafka.freeze()
        try:
            time.sleep(8)
        finally:
            own_kafka.thaw()
        writers.stop()
        stack.verdict().require_good(duplicates=IN_FLIGHT)
        assert attempts(stack) == 0


def test_rows_of_a_missing_topic_wait_for_it_in_order(
    mysql_server: MysqlServer, own_kafka: KafkaBroker, tmp_path: Path
) -> None:
    settings = SETTINGS | {"retry__cap_s": 2}
    with stack_on(mysql_server, own_kafka.bootstrap_servers, tmp_path, topic=False, **settings) as stack:
        stack.relay.start()
        writers = stack.write(300, pause_s=(0.0, 0.05))
        eventually(lambda: attempts(stack) >= 2, "attempts that fail")
        assert "does not exist" in stack.sql("SELECT last_error FROM agent_outbox_messages WHERE retry_count > 0")[0][0]
        stack.make_topic()
        stack.consumer.start()
        writers.join()
        stack.verdict().require_good(duplicates=0)


def test_a_record_larger_than_the_topic_takes_is_dead_at_once_and_costs_no_other(
    mysql_server: MysqlServer, own_kafka: KafkaBroker, tmp_path: Path
) -> None:
    limit = 60_000
    with stack_on(mysql_server, own_kafka.bootstrap_servers, tmp_path, topic=False, **SETTINGS) as stack:
        stack.make_topic(max_message_bytes=str(limit))
        stack.write_some(2000, writers=2, conversations=4, large=3)  # many batches of more than the limit
        ((dead),) = (stack.sql(f"SELECT id FROM agent_outbox_messages WHERE LENGTH(payload) > {limit}"),)
        stack.ledger.dead = {row.id for row in dead}
        assert len(stack.ledger.dead) == 3
        stack.start()
        stack.verdict().require_good(duplicates=2 * IN_FLIGHT)
        for retry_count, error in stack.sql(
            "SELECT retry_count, last_error FROM agent_outbox_messages WHERE status = 'dead'"
        ):
            assert retry_count == 1
            assert str(limit) in error


def test_a_producer_that_fails_for_good_is_made_anew_and_reading_resumes_in_order(stack: Stack, tmp_path: Path) -> None:
    flag = tmp_path / "fail now"
    with launched(stack.relay, FAULT_FATAL_PRODUCER=str(flag)):
        stack.start()
        writers = stack.write(pause_s=(0.0, 0.01))
        for _ in range(3):
            stack.wait_for_rows(150)
            flag.touch()
            eventually(lambda: not flag.exists(), "the failure")
        stack.wait_for_rows(150)
        writers.stop()
        stack.verdict().require_good(duplicates=3 * (IN_FLIGHT + 60))
        assert attempts(stack) == 0
        assert "failed for good" in str(stack.relay.said("session_failed"))
        assert stack.relay.starts == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_topic_that_is_deleted_and_made_again_while_both_programs_run_loses_nothing(
    mysql_server: MysqlServer, own_kafka: KafkaBroker, tmp_path: Path, workers: int
) -> None:
    settings = SETTINGS | {"sweep__redeliver_published_after_s": 3, "retry__cap_s": 2, "consumer__workers": workers}
    with stack_on(mysql_server, own_kafka.bootstrap_servers, tmp_path, **settings) as stack:
        stack.start()
        writers = stack.write(pause_s=(0.0, 0.02))
        stack.wait_for_rows(200)
        delete_topic(stack)
        stack.wait_for_rows(100)
        time.sleep(1)
        stack.make_topic()
        stack.wait_for_rows(100)
        writers.stop()
        verdict = stack.verdict(kafka_kept_all=False)
        assert verdict.lost == verdict.invented == verdict.applied_twice == verdict.wrong_counts == 0, str(verdict)


def test_what_a_lost_topic_held_is_sent_again_in_order(
    mysql_server: MysqlServer, own_kafka: KafkaBroker, tmp_path: Path
) -> None:
    settings = SETTINGS | {"sweep__redeliver_published_after_s": 3}
    with stack_on(mysql_server, own_kafka.bootstrap_servers, tmp_path, **settings) as stack:
        stack.relay.start()
        stack.write_some(300)
        eventually(lambda: stack.statuses() == {"published": 300}, "all published")
        delete_topic(stack)
        stack.make_topic()
        stack.consumer.start()
        stack.verdict().require_good(duplicates=300)
        assert stack.relay.said("redelivered")


def delete_topic(stack: Stack) -> None:
    admin = AdminClient({"bootstrap.servers": stack.kafka, "log_level": 2})
    admin.delete_topics([stack.topic])[stack.topic].result(30)
    eventually(lambda: stack.topic not in admin.list_topics(timeout=10).topics, "the topic gone")
