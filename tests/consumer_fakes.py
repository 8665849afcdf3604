"""A small working outbox in memory, for tests of the consumer's logic; ``tests/contract`` holds it to the real one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

import orjson

from cdc_relay.errors import PoisonRow
from cdc_relay.outbox.backoff import NextAttempt, cut_error
from cdc_relay.outbox.clock import to_column
from cdc_relay.outbox.row import LockedRow
from cdc_relay.outbox.sql import DISCARDED, PARKED, WaitingRow
from consumer.delivery import DeadLetter, KafkaRecord, Partition
from consumer.registry import Event, Handler, HandlerRegistry

T0 = datetime(2026, 1, 2, 3, 4, 5)
"""When the fake rows were written."""


@dataclass
class FakeRow:
    """A row of the fake table."""

    id: int
    message_key: bytes = b""
    status: str = "published"
    retry_count: int = 0
    max_retry: int = 20
    next_retry_at: datetime | None = None
    published_at: datetime | None = T0
    created_at: datetime | None = T0
    consumed_at: datetime | None = None
    last_error: str | None = None

    @property
    def is_open(self) -> bool:
        return self.status in ("pending", "published")

    @property
    def blocks(self) -> bool:
        return self.status == "dead" and not (self.last_error or "").startswith(DISCARDED)


@dataclass
class FakeTables:
    """What a transaction sees, and what it leaves when it commits."""

    rows: dict[int, FakeRow] = field(default_factory=dict)
    notes: list[tuple[int, Any]] = field(default_factory=list)
    """The effects: outbox id and payload, in the order in which they were written."""


class FakeOutbox:
    """``ConsumerStatements``, as far as the worker uses them; the connection is a ``FakeTables``."""

    def __init__(self) -> None:
        self.reads = 0
        """How often rows were read to be decided on."""

    def lock_rows(self, tables: FakeTables, ids: Sequence[int]) -> dict[int, LockedRow]:
        self.reads += 1
        return {
            row.id: LockedRow(
                row.id,
                row.message_key,
                row.status,
                row.retry_count,
                row.max_retry,
                row.next_retry_at,
                row.published_at,
                row.created_at,
            )
            for row in (tables.rows[row_id] for row_id in sorted(ids) if row_id in tables.rows)
        }

    def unsettled(self, tables: FakeTables, *, dead_too: bool = False) -> Iterator[WaitingRow]:
        for row in tables.rows.values():
            held = row.retry_count > 0 or row.published_at is not None or bool(row.last_error)
            failed = row.retry_count > 0 or bool(row.last_error)
            if (
                (row.status == "pending" and held)
                or (row.status == "published" and failed)
                or (dead_too and row.blocks)
            ):
                yield WaitingRow(row.id, row.message_key)

    def still_open(
        self, tables: FakeTables, ids: Iterable[int], *, dead_too: bool = False
    ) -> dict[int, datetime | None]:
        rows = [tables.rows[row_id] for row_id in ids if row_id in tables.rows]
        return {
            row.id: row.next_retry_at if row.status == "pending" and row.published_at else None
            for row in rows
            if row.is_open or (dead_too and row.blocks)
        }

    def mark_consumed(self, tables: FakeTables, published: Mapping[int, datetime], now: datetime) -> int:
        for row_id, at in published.items():
            if row_id in tables.rows and tables.rows[row_id].is_open and tables.rows[row_id].published_at is None:
                tables.rows[row_id].published_at = at
        changes: dict[str, Any] = {"status": "consumed", "consumed_at": now, "last_error": None, "next_retry_at": None}
        return self._write(tables, list(published), now, **changes)

    def consume_undecided(self, tables: FakeTables, published: Mapping[int, datetime], now: datetime) -> int:
        rows = [tables.rows[row_id] for row_id in published if row_id in tables.rows]
        undecided = [row.id for row in rows if row.status == "published" or row.published_at is None]
        return self.mark_consumed(tables, {row_id: published[row_id] for row_id in undecided}, now)

    def mark_failed(self, tables: FakeTables, row_id: int, attempt: NextAttempt, reason: str, now: datetime) -> int:
        return self._write(
            tables,
            [row_id],
            now,
            retry_count=attempt.retry_count,
            next_retry_at=attempt.at,
            last_error=cut_error(reason),
            status="dead" if attempt.at is None else "pending",
        )

    def park(self, tables: FakeTables, ids: Sequence[int], behind: int, at: datetime, now: datetime) -> int:
        return self._write(tables, ids, now, next_retry_at=at, last_error=f"{PARKED} (id {behind})", status="pending")

    def _write(self, tables: FakeTables, ids: Sequence[int], now: datetime, **values: Any) -> int:
        rows = [tables.rows[row_id] for row_id in ids if row_id in tables.rows and tables.rows[row_id].is_open]
        for row in rows:
            tables.rows[row.id] = replace(row, published_at=row.published_at or now, **values)
        return len(rows)


class FakeDatabase:
    """Committed tables; ``before_commit`` may raise what a server would."""

    def __init__(self, rows: Iterable[FakeRow] = ()) -> None:
        self.tables = FakeTables({row.id: row for row in rows})
        self.before_commit: Callable[[FakeTables], None] = lambda tables: None
        self.transactions = 0
        self.outbox = FakeOutbox()

    @property
    def rows(self) -> dict[int, FakeRow]:
        return self.tables.rows

    @property
    def notes(self) -> list[tuple[int, Any]]:
        return self.tables.notes

    def statuses(self) -> dict[int, str]:
        return {row.id: row.status for row in self.rows.values()}

    def unit_of_work(self, now: datetime) -> FakeUnitOfWork:
        return FakeUnitOfWork(self, now)


class FakeUnitOfWork:
    """Works on a copy, which a commit puts in the place of the committed tables."""

    def __init__(self, database: FakeDatabase, now: datetime) -> None:
        self.outbox = database.outbox
        self.now = to_column(now, UTC)
        self._database = database

    def __enter__(self) -> Self:
        self.connection = copy.deepcopy(self._database.tables)
        return self

    def __exit__(self, *_: object) -> None:
        del self.connection

    def commit(self) -> None:
        self._database.before_commit(self.connection)
        self._database.transactions += 1
        self._database.tables = self.connection


class FakeSource:
    """Hands out the batches it was given; remembers what was committed."""

    def __init__(self, *batches: list[KafkaRecord]) -> None:
        self.assignments = 1
        self.batches = list(batches)
        self.committed: dict[Partition, int] = {}
        self.waits: list[float] = []
        self.lost: set[Partition] = set()

    def next_batch(self) -> list[KafkaRecord]:
        self.lost = set()
        return self.batches.pop(0) if self.batches else []

    def keep_alive(self, seconds: float) -> set[Partition]:
        self.waits.append(seconds)
        return self.lost

    def commit(self, records: Iterable[KafkaRecord]) -> None:
        for record in records:
            self.committed[record.home] = record.offset + 1


class FakeDeadLetters:
    """Keeps what is buried; ``before`` may raise what a broker would."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []
        self.before: Callable[[], None] = lambda: None

    def send(self, letters: Sequence[DeadLetter]) -> None:
        if letters:
            self.before()
            self.letters += letters


def note_handler(apply: Callable[[FakeUnitOfWork, Sequence[Event[str]]], None] | None = None) -> Handler[str]:
    """biz_type ``note``: the payload must be a string; the effect is an entry in ``notes``."""

    def read(payload: Any) -> str:
        if not isinstance(payload, str):
            raise PoisonRow(f"payload must be a string, not {payload!r}")
        return payload

    def write(work: Any, events: Sequence[Event[str]]) -> None:
        if apply is not None:
            apply(work, events)
        work.connection.notes += [(event.row.id, event.payload) for event in events]

    return Handler("note", read=read, apply=write, check=lambda work: None)


def registry(apply: Callable[[FakeUnitOfWork, Sequence[Event[str]]], None] | None = None) -> HandlerRegistry:
    return HandlerRegistry([note_handler(apply)])


def record(
    outbox_id: int,
    payload: Any = "hello",
    *,
    offset: int | None = None,
    partition: int = 0,
    biz_type: str = "note",
    value: bytes | None = None,
    written: bytes | None = b"2026-01-02T03:04:05+00:00",
    timestamp_ms: int = 0,
) -> KafkaRecord:
    """A record of row ``outbox_id``; its offset is the id unless it is given. ``written``: its header created_at."""
    if value is None:
        value = orjson.dumps({"outbox_id": outbox_id, "biz_type": biz_type, "payload": payload})
    headers = [("outbox_id", b"%d" % outbox_id), ("created_at", written)]
    at = outbox_id if offset is None else offset
    return KafkaRecord("topic", partition, at, b"key", value, lambda: headers, timestamp_ms)
