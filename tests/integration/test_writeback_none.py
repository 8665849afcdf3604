"""``writeback.mode = none``: what the binlog brings is published and left pending; the sweep makes sure of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from cdc_relay.embedded.kafka import KafkaBroker
from tests.harness import Outbox, eventually, outbox_id, read_topic, running_relay, settings_for


@pytest.fixture
def outbox(database_url: str, topic: str) -> Iterator[Outbox]:
    outbox = Outbox(database_url, topic)
    yield outbox
    outbox.engine.dispose()


def test_rows_are_published_once_and_left_to_the_consumer(
    outbox: Outbox, database_url: str, kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    settings = settings_for(database_url, kafka_broker.bootstrap_servers, tmp_path, writeback__mode="none")
    with running_relay(settings):
        ids = [outbox.add(f"k{n % 3}", n) for n in range(20)]
        records = read_topic(kafka_broker.bootstrap_servers, outbox.topic, 20)
    assert sorted(map(outbox_id, records)) == ids
    assert {outbox.statuses()[row_id] for row_id in ids} == {"pending"}


def test_what_failed_and_what_is_scheduled_is_marked_as_always(
    outbox: Outbox, database_url: str, kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    settings = settings_for(database_url, kafka_broker.bootstrap_servers, tmp_path, writeback__mode="none")
    with running_relay(settings):
        dead = outbox.add("k", 0, payload="no JSON")
        with outbox.engine.begin() as connection:
            scheduled = outbox.insert(connection, "k2", 1)
            sql = "UPDATE agent_outbox_messages SET next_retry_at = created_at + INTERVAL 3 SECOND WHERE id = :id"
            connection.execute(text(sql), {"id": scheduled})
        eventually(lambda: outbox.statuses()[dead] == "dead", "the row without JSON is dead")
        outbox.wait_published([scheduled])
    (record,) = read_topic(kafka_broker.bootstrap_servers, outbox.topic, 1)
    assert outbox_id(record) == scheduled


def test_rows_that_nobody_marks_are_sent_again_and_marked_then(
    outbox: Outbox, database_url: str, kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    settings = settings_for(
        database_url,
        kafka_broker.bootstrap_servers,
        tmp_path,
        writeback__mode="none",
        sweep__redeliver_published_after_s=2,
    )
    with running_relay(settings):
        row_id = outbox.add("k", 0)
        outbox.wait_published([row_id])
    assert [outbox_id(r) for r in read_topic(kafka_broker.bootstrap_servers, outbox.topic, 2)] == [row_id, row_id]
