"""The pending rows of the table while others go on writing: each key in the order of its commits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine

from cdc_relay import reconcile
from cdc_relay.outbox.database import transaction
from cdc_relay.outbox.statements import OutboxStatements
from cdc_relay.reconcile import PendingRows
from tests.harness import Outbox


@pytest.fixture
def outbox(either_database_url: str) -> Iterator[Outbox]:
    outbox = Outbox(either_database_url, "t")
    yield outbox
    outbox.engine.dispose()


@pytest.fixture
def pending(either_database_url: str) -> Iterator[PendingRows]:
    engine = create_engine(either_database_url, isolation_level="READ COMMITTED")
    yield PendingRows(lambda: transaction(engine), OutboxStatements())
    engine.dispose()


def read_all(pending: PendingRows) -> list[int]:
    ids: list[int] = []
    while not pending.exhausted:
        ids += [row.id for batch in pending.read() for row in batch.rows]
    return ids


def test_a_row_whose_earlier_one_committed_too_late_to_be_seen_is_not_given_either(
    outbox: Outbox, pending: PendingRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "_PAGE_ROWS", 2)
    with outbox.engine.connect() as slow:
        first_of_a = outbox.insert(slow, "a", 1)
        others = [outbox.add("b", n) for n in range(4)]
        assert others[0] > first_of_a
        given = [row.id for batch in pending.read() for row in batch.rows]
        slow.commit()
        second_of_a = outbox.add("a", 2)
    given += read_all(pending)
    assert given == others
    assert second_of_a not in given


def test_pages_are_bounded_by_rows_and_by_bytes_and_leave_nothing_out(
    outbox: Outbox, pending: PendingRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "_PAGE_ROWS", 3)
    monkeypatch.setattr(reconcile, "_PAGE_BYTES", 100)
    ids = [outbox.add("k", "x" * size) for size in (10, 10, 10, 10, 500, 10, 60, 60, 10)]
    outbox.run(f"UPDATE agent_outbox_messages SET status = 'published' WHERE id = {ids[1]}")
    sizes = []
    given = []
    while not pending.exhausted:
        for batch in pending.read():
            given += [row.id for row in batch.rows]
            sizes.append(len(batch.rows))
    assert given == [row_id for row_id in ids if row_id != ids[1]]
    assert max(sizes) <= 3
