"""The fake outbox of the relay's tests does to every state of a row what the real statements do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from cdc_relay.outbox.backoff import NextAttempt
from cdc_relay.outbox.operator_statements import OperatorStatements
from cdc_relay.outbox.sql import DISCARDED, HELD_BACK, PARKED, REQUEUED
from cdc_relay.outbox.statements import OutboxStatements
from tests.fakes import FakeOutboxTable, StoredRow

pytestmark = pytest.mark.mysql

T0 = datetime(2026, 1, 2, 3, 4, 5, 678901)
NOW = T0 + timedelta(minutes=1)
LATER = T0 + timedelta(minutes=2)

STATES = [
    StoredRow(
        row_id,
        f"key-{row_id % 5}".encode(),
        status,
        retry_count,
        next_retry_at=due,
        published_at=published,
        last_error=error,
        created_at=T0,
        updated_at=T0,
    )
    for row_id, (status, retry_count, due, published, error) in enumerate(
        product(
            ("pending", "published", "consumed", "dead", "cancelled by hand"),
            (0, 3),
            (None, T0, LATER),
            (None, T0),
            (None, "", "broken", f"{PARKED} (id 1)", f"{HELD_BACK} (id 1)", f"{REQUEUED}broken", f"{DISCARDED}broken"),
        ),
        start=1,
    )
]
IDS = [row.id for row in STATES]
MISSING = len(STATES) + 1
ASKED = [*IDS, MISSING]


class Statements(OutboxStatements, OperatorStatements):
    """All that the fake stands in for."""


Step = Callable[[Any, Any], Any]

STEPS: dict[str, Step] = {
    "read_committed": lambda outbox, at: outbox.read_committed(at, ASKED),
    "due": lambda outbox, at: outbox.due(at, NOW, 1_000),
    "due, a few": lambda outbox, at: outbox.due(at, NOW, 7),
    "due, from the middle on": lambda outbox, at: outbox.due(at, NOW, 7, IDS[30]),
    "waiting": lambda outbox, at: outbox.waiting(at, NOW, LATER, 1_000),
    "waiting, a few": lambda outbox, at: outbox.waiting(at, NOW, LATER, 3),
    "waiting, for a moment": lambda outbox, at: outbox.waiting(at, NOW, NOW + timedelta(seconds=1), 1_000),
    "held_rows": lambda outbox, at: sorted(outbox.held_rows(at)),
    "held_rows, dead ones too": lambda outbox, at: sorted(outbox.held_rows(at, dead_too=True)),
    "blocking_dead": lambda outbox, at: sorted(outbox.blocking_dead(at)),
    "still_pending": lambda outbox, at: outbox.still_pending(at, ASKED),
    "unmarked": lambda outbox, at: outbox.unmarked(at, ASKED),
    "lock_due": lambda outbox, at: outbox.lock_due(at, ASKED, NOW),
    "behind_published": lambda outbox, at: [
        outbox.behind_published(at, ASKED),
        outbox.mark_published(at, IDS[:1], 0, NOW),
        outbox.behind_published(at, IDS),
    ],
    "requeued": lambda outbox, at: outbox.requeued(at, ASKED),
    "lock_rows": lambda outbox, at: outbox.lock_rows(at, ASKED),
    "published_page": lambda outbox, at: outbox.published_page(at, 0, 1_000),
    "published_page, a few": lambda outbox, at: outbox.published_page(at, IDS[30], 4),
    "published_page, none": lambda outbox, at: outbox.published_page(at, IDS[-1], 4),
    "unconsumed": lambda outbox, at: outbox.unconsumed(at, T0, 0, 1_000),
    "unconsumed, a few": lambda outbox, at: outbox.unconsumed(at, T0, IDS[30], 4),
    "unconsumed, none so old": lambda outbox, at: outbox.unconsumed(at, T0 - timedelta(seconds=1), 0, 4),
    "lock_unconsumed": lambda outbox, at: outbox.lock_unconsumed(at, ASKED, T0),
    "lock_unconsumed, none so old": lambda outbox, at: outbox.lock_unconsumed(at, ASKED, T0 - timedelta(seconds=1)),
    "put_back": lambda outbox, at: outbox.put_back(at, ASKED, NOW),
    "lease": lambda outbox, at: outbox.lease(at, ASKED, LATER, NOW),
    "mark_published": lambda outbox, at: outbox.mark_published(at, ASKED, 0, NOW),
    "mark_published, tried before": lambda outbox, at: outbox.mark_published(at, ASKED, 3, NOW),
    "mark_undelivered": lambda outbox, at: [
        outbox.mark_undelivered(at, row_id, 0, NextAttempt(1, LATER), "why", NOW) for row_id in ASKED
    ],
    "mark_undelivered, dead": lambda outbox, at: [
        outbox.mark_undelivered(at, row_id, 3, NextAttempt(4, None), "x" * 3_000, NOW) for row_id in ASKED
    ],
    "hold_back": lambda outbox, at: outbox.hold_back(at, ASKED, 7, NOW),
    "requeue_dead": lambda outbox, at: outbox.requeue_dead(at, ASKED, NOW),
    "discard_dead": lambda outbox, at: outbox.discard_dead(at, ASKED, NOW),
}

COLUMNS = tuple(asdict(STATES[0]))


@pytest.fixture
def transaction(either_database_url: str) -> Iterator[Callable[[], AbstractContextManager[Any]]]:
    """Transactions on a real table that holds every state."""
    engine = create_engine(either_database_url, isolation_level="READ COMMITTED")
    names = ", ".join(COLUMNS)
    with engine.begin() as connection:
        connection.execute(
            text(
                f"INSERT INTO agent_outbox_messages (biz_type, {names}) "
                f"VALUES ('b', {', '.join(f':{name}' for name in COLUMNS)})"
            ),
            [asdict(row) for row in STATES],
        )
    yield engine.begin
    engine.dispose()


def stored(connection: Any) -> dict[int, StoredRow]:
    rows = connection.execute(text(f"SELECT {', '.join(COLUMNS)} FROM agent_outbox_messages"))
    found = [StoredRow(**row) for row in rows.mappings()]
    return {row.id: replace(row, message_key=as_bytes(row.message_key), payload=as_bytes(row.payload)) for row in found}


def as_bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


@pytest.mark.parametrize("name", STEPS)
def test_the_fake_does_to_every_state_what_the_statement_does(
    transaction: Callable[[], AbstractContextManager[Any]], name: str
) -> None:
    step = STEPS[name]
    fake = FakeOutboxTable(*STATES)
    with transaction() as connection:
        wanted = step(Statements(), connection)
    with transaction() as connection:
        table = stored(connection)
    with fake.transaction() as at:
        found = step(fake, at)
    assert found == wanted
    assert fake.rows == table


def test_a_transaction_that_fails_leaves_nothing_behind(
    transaction: Callable[[], AbstractContextManager[Any]],
) -> None:
    fake = FakeOutboxTable(*STATES)

    def interrupted(outbox: Any, begin: Callable[[], AbstractContextManager[Any]]) -> None:
        with pytest.raises(ZeroDivisionError), begin() as at:
            outbox.mark_published(at, IDS, 0, NOW)
            raise ZeroDivisionError

    interrupted(fake, fake.transaction)
    interrupted(OutboxStatements(), transaction)
    with transaction() as connection:
        assert fake.rows == stored(connection) == {row.id: row for row in STATES}


def test_rows_that_someone_else_has_locked_are_passed_over(
    transaction: Callable[[], AbstractContextManager[Any]],
) -> None:
    ids = [row.id for row in STATES if row.is_due(NOW)][:6]
    published = [row.id for row in STATES if row.status == "published" and row.published_at == T0][:6]
    fake = FakeOutboxTable(*STATES)
    fake.locked = {ids[0], ids[3], published[1]}
    with transaction() as other:
        OutboxStatements().lock_rows(other, sorted(fake.locked))
        with transaction() as connection:
            due = OutboxStatements().lock_due(connection, ids, NOW)
            unconsumed = OutboxStatements().lock_unconsumed(connection, published, T0)
    assert due == fake.lock_due(fake, ids, NOW)
    assert unconsumed == fake.lock_unconsumed(fake, published, T0) == [*published[:1], *published[2:]]
    assert [row.id for row in due] == [ids[1], ids[2], ids[4], ids[5]]
