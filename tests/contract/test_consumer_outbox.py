"""The fake outbox of the consumer's tests does to every state of a row what the real statements do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, text

from cdc_relay.outbox.backoff import NextAttempt
from cdc_relay.outbox.consumer_statements import ConsumerStatements
from cdc_relay.outbox.sql import DISCARDED, PARKED, REQUEUED
from tests.consumer_fakes import T0, FakeOutbox, FakeRow, FakeTables

pytestmark = pytest.mark.mysql

NOW = T0 + timedelta(minutes=1)
LATER = T0 + timedelta(minutes=2)

STATES = [
    FakeRow(
        row_id,
        f"key-{row_id}".encode(),
        status,
        retry_count=retries,
        next_retry_at=due,
        published_at=published,
        last_error=error,
    )
    for row_id, (status, retries, due, published, error) in enumerate(
        product(
            ("pending", "published", "consumed", "dead", "cancelled by hand"),
            (0, 3),
            (None, LATER),
            (None, T0),
            (None, "", f"{PARKED} (id 1)", f"{REQUEUED}why", f"{DISCARDED}why"),
        ),
        start=1,
    )
]
IDS = [row.id for row in STATES]
MISSING = len(STATES) + 1
#: Two of each three at one time, so that times change and stay from id to id.
PUBLISHED = {row_id: T0 + timedelta(milliseconds=row_id // 3) for row_id in [*IDS, MISSING]}

Step = Callable[[Any, Any], Any]

STEPS: dict[str, Step] = {
    "lock_rows": lambda outbox, at: outbox.lock_rows(at, [*IDS, MISSING]),
    "unsettled": lambda outbox, at: set(outbox.unsettled(at)),
    "still_open": lambda outbox, at: outbox.still_open(at, [*IDS, MISSING]),
    "still_open, dead ones too": lambda outbox, at: outbox.still_open(at, [*IDS, MISSING], dead_too=True),
    "unsettled, dead ones too": lambda outbox, at: set(outbox.unsettled(at, dead_too=True)),
    "mark_consumed": lambda outbox, at: outbox.mark_consumed(at, PUBLISHED, NOW),
    "consume_undecided": lambda outbox, at: outbox.consume_undecided(at, PUBLISHED, NOW),
    "mark_failed, to be tried again": lambda outbox, at: [
        outbox.mark_failed(at, row_id, NextAttempt(4, LATER), "why", NOW) for row_id in [*IDS, MISSING]
    ],
    "mark_failed, dead": lambda outbox, at: [
        outbox.mark_failed(at, row_id, NextAttempt(20, None), "x" * 3000, NOW) for row_id in [*IDS, MISSING]
    ],
    "park": lambda outbox, at: outbox.park(at, [*IDS, MISSING], 7, LATER, NOW),
}


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    engine = create_engine(database_url, isolation_level="READ COMMITTED")
    with engine.connect() as connection:
        connection.execute(
            text(
                "INSERT INTO agent_outbox_messages (id, biz_type, topic, message_key, payload, status, retry_count, "
                "max_retry, next_retry_at, published_at, created_at, last_error) VALUES (:id, 'b', 't', :message_key, "
                "'{}', :status, :retry_count, :max_retry, :next_retry_at, :published_at, :created_at, :last_error)"
            ),
            [vars(row) for row in STATES],
        )
        yield connection
        connection.rollback()
    engine.dispose()


def read(connection: Connection) -> dict[int, FakeRow]:
    found = connection.execute(text("SELECT * FROM agent_outbox_messages")).mappings()
    names = FakeRow.__dataclass_fields__
    rows = [FakeRow(**{name: row[name] for name in names}) for row in found]
    return {row.id: replace(row, message_key=str(row.message_key).encode()) for row in rows}


@pytest.mark.parametrize("step", STEPS)
def test_the_fake_does_what_mysql_does(connection: Connection, step: str) -> None:
    tables = FakeTables({row.id: row for row in STATES})
    said_by_fake, said = STEPS[step](FakeOutbox(), tables), STEPS[step](ConsumerStatements(), connection)
    assert said_by_fake == said
    assert tables.rows == read(connection)


def test_times_are_those_of_the_table(connection: Connection) -> None:
    row = ConsumerStatements().lock_rows(connection, [IDS[-1]])[IDS[-1]]
    assert isinstance(row.created_at, datetime)
    assert (row.created_at, row.published_at, row.next_retry_at) == (T0, T0, LATER)
