"""``writeback.mode = lazy``: rows are left to the consumer for a while, and marked only if it has not marked them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest

from cdc_relay.config import Settings
from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.outbox.consumer_statements import ConsumerStatements
from tests.harness import Outbox, outbox_id, read_topic, running_relay, settings_for

#: Longer than anything waits when nothing is wrong, so that what is marked before was not waited for.
LONG_MS = 10_000
LONG_AGO = datetime(2026, 1, 2, 3, 4, 5)


@pytest.fixture
def outbox(database_url: str, topic: str) -> Iterator[Outbox]:
    outbox = Outbox(database_url, topic)
    yield outbox
    outbox.engine.dispose()


@pytest.fixture
def settings(database_url: str, kafka_broker: KafkaBroker, tmp_path: Path) -> Settings:
    return settings_for(
        database_url,
        kafka_broker.bootstrap_servers,
        tmp_path,
        writeback__mode="lazy",
        writeback__delay_ms=LONG_MS,
        tail__max_in_flight_rows=40,
    )


def consume(outbox: Outbox, ids: Sequence[int]) -> None:
    """What a consumer writes that has applied these rows."""
    with outbox.engine.begin() as connection:
        assert ConsumerStatements().mark_consumed(connection, dict.fromkeys(ids, LONG_AGO), LONG_AGO) == len(ids)


def test_rows_that_no_consumer_marks_are_published_after_the_delay(
    outbox: Outbox, database_url: str, kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    settings = settings_for(
        database_url, kafka_broker.bootstrap_servers, tmp_path, writeback__mode="lazy", writeback__delay_ms=200
    )
    with running_relay(settings):
        ids = [outbox.add(f"k{n % 3}", n) for n in range(20)]
        outbox.wait_published(ids)
    assert sorted(map(outbox_id, read_topic(kafka_broker.bootstrap_servers, outbox.topic, 20))) == ids


def test_rows_that_the_consumer_marks_are_not_touched_and_are_done_with(
    outbox: Outbox, settings: Settings, kafka_broker: KafkaBroker
) -> None:
    with running_relay(settings):
        ids = [outbox.add("k", n) for n in range(10)]
        read_topic(kafka_broker.bootstrap_servers, outbox.topic, 10)
        consume(outbox, ids)
    rows = outbox.rows().values()
    assert {(row.status, row.published_at, row.updated_at) for row in rows} == {("consumed", LONG_AGO, LONG_AGO)}
    with running_relay(settings):
        later = outbox.add("k", 10)
        records = read_topic(kafka_broker.bootstrap_servers, outbox.topic, 11)
    assert [outbox_id(record) for record in records] == [*ids, later]


def test_a_stop_writes_at_once_and_leaves_nothing_to_be_sent_again(
    outbox: Outbox, settings: Settings, kafka_broker: KafkaBroker
) -> None:
    with running_relay(settings):
        ids = [outbox.add("k", n) for n in range(10)]
        read_topic(kafka_broker.bootstrap_servers, outbox.topic, 10)
        consume(outbox, ids[:5])
    assert list(outbox.statuses().values()) == ["consumed"] * 5 + ["published"] * 5
    with running_relay(settings):
        later = outbox.add("k", 10)
        records = read_topic(kafka_broker.bootstrap_servers, outbox.topic, 11)
    assert [outbox_id(record) for record in records] == [*ids, later]


def test_the_tailer_is_not_kept_waiting_for_a_consumer(
    outbox: Outbox, settings: Settings, kafka_broker: KafkaBroker
) -> None:
    """With the delay, so many rows would take longer than the test waits: a window of 40 in each ten seconds."""
    with running_relay(settings):
        ids = [outbox.add("k", n) for n in range(400)]
        records = read_topic(kafka_broker.bootstrap_servers, outbox.topic, len(ids))
    assert [outbox_id(record) for record in records] == ids
