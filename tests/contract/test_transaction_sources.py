"""What the tailer may expect of every source of rows: the binlog, the table, and the fake of the unit tests."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import pytest
from sqlalchemy import text

from cdc_relay.binlog.batches import TransactionBatch
from cdc_relay.binlog.connection import DumpConnection
from cdc_relay.binlog.server import describe_table, head
from cdc_relay.binlog.source import BinlogSource
from cdc_relay.binlog.tables import OutboxTables
from cdc_relay.config import DatabaseSettings, TailSettings
from cdc_relay.outbox.row import OutboxRow
from cdc_relay.outbox.statements import OutboxStatements
from cdc_relay.reconcile import PendingRows
from cdc_relay.sources import TransactionSource
from tests.fakes import FakeSource
from tests.harness import PATIENCE_S, Outbox, eventually

pytestmark = pytest.mark.mysql

TABLE = "agent_outbox_messages"
_server_ids = itertools.count(60_000)


class Source(Protocol):
    """What a ``TransactionSource`` and a ``PendingSource`` have in common."""

    def read(self) -> list[TransactionBatch]:
        """The next batches; may be empty."""


Open = Callable[[], AbstractContextManager[Source]]


@dataclass
class Case:
    """A table, and the source that is to give its rows: those pending when ``open`` is called, or inserted since."""

    outbox: Outbox
    open: Open

    def stored(self) -> list[OutboxRow]:
        with self.outbox.engine.connect() as connection:
            return OutboxStatements().read_committed(connection, sorted(self.outbox.rows()))


@pytest.fixture(params=["binlog", "table", "fake"])
def case(request: pytest.FixtureRequest, either_database_url: str, topic: str) -> Iterator[Case]:
    outbox = Outbox(either_database_url, topic)
    with outbox.engine.connect() as connection:
        start = head(connection)

    def describe() -> list[Any]:
        with outbox.engine.connect() as connection:
            return list(describe_table(connection, TABLE))

    def from_binlog() -> AbstractContextManager[Source]:
        database = DatabaseSettings(url=either_database_url)
        tables = OutboxTables(str(outbox.engine.url.database), TABLE, describe)
        dump = DumpConnection(database, TailSettings(), next(_server_ids), start, None)
        return closing(BinlogSource(dump, start, tables, on_unsupported=pytest.fail))

    def from_table() -> AbstractContextManager[Source]:
        pending = PendingRows(outbox.engine.begin, OutboxStatements())
        return nullcontext(pending)

    def fake() -> AbstractContextManager[Source]:
        with outbox.engine.connect() as connection:
            rows = OutboxStatements().read_committed(connection, sorted(outbox.rows()))
        reads = [[TransactionBatch([row], None)] for row in rows]
        return nullcontext(FakeSource(*reads))

    yield Case(outbox, {"binlog": from_binlog, "table": from_table, "fake": fake}[request.param])
    outbox.engine.dispose()


def read(case: Case, count: int) -> list[TransactionBatch]:
    """Until so many rows have come, and once more: nothing comes twice."""
    batches: list[TransactionBatch] = []
    deadline = time.monotonic() + PATIENCE_S
    with case.open() as source:
        while sum(len(batch.rows) for batch in batches) < count:
            assert time.monotonic() < deadline, f"{batches} is all that came"
            batches += source.read()
        batches += source.read()
    return batches


def given(batches: list[TransactionBatch]) -> list[OutboxRow]:
    return [row for batch in batches for row in batch.rows]


def test_rows_come_once_and_in_order_and_as_the_table_has_them(case: Case) -> None:
    for number in range(20):
        case.outbox.add(f"kéy {number % 3}", "x" * number)
    rows = given(read(case, 20))
    assert rows == case.stored()
    assert all(row.is_fresh for row in rows)


def test_rows_that_were_rolled_back_do_not_come(case: Case) -> None:
    with case.outbox.engine.connect() as connection:
        kept = case.outbox.insert(connection, "k", 1)
        connection.commit()
        case.outbox.insert(connection, "k", 2)
        connection.rollback()
        last = case.outbox.insert(connection, "k", 3)
        connection.commit()
    assert [row.id for row in given(read(case, 2))] == [kept, last]


def test_an_empty_table_gives_nothing(case: Case) -> None:
    with case.open() as source:
        assert given(source.read()) == []


def test_many_and_large_rows_come_in_parts_that_lose_nothing(case: Case) -> None:
    sql = f"INSERT INTO {TABLE} (biz_type, topic, message_key, payload) VALUES ('t', 't', 'k', REPEAT('x', :size))"
    sizes = [10, 300_000, 3_000_000, *[20] * 2_500, 900_000, 10]
    with case.outbox.engine.begin() as connection:
        for size in sizes:
            connection.execute(text(sql), {"size": size})
    batches = read(case, len(sizes))
    assert [len(row.payload) for row in given(batches)] == sizes or any(batch.doubtful for batch in batches)
    assert [row.id for row in given(batches)] == [row.id for row in case.stored()]


@pytest.mark.parametrize("case", ["binlog", "fake"], indirect=True)
def test_a_source_that_goes_on_tells_whether_a_read_would_wait(case: Case) -> None:
    """By this the tailer knows that it is behind."""
    sql = f"INSERT INTO {TABLE} (biz_type, topic, message_key, payload) VALUES ('t', 't', 'k', REPEAT('x', 1000))"
    for _ in range(500):
        case.outbox.run(sql)
    with case.open() as opened:
        source = cast(TransactionSource, opened)
        found: list[OutboxRow] = []
        while len(found) < 500:
            eventually(lambda: source.has_more, "more to read")
            found += given(source.read())
        assert not source.has_more
    assert [row.id for row in found] == sorted(case.outbox.rows())
