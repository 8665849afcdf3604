"""Stand-ins for what the heart talks to. ``tests/contract`` holds each to the same tests as the real thing."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from cdc_relay.binlog.batches import TransactionBatch
from cdc_relay.checkpoint import Checkpoint
from cdc_relay.errors import CheckpointError, KafkaUnavailable, PoisonRow, RetryableRow, RowError
from cdc_relay.outbox.backoff import NextAttempt, cut_error
from cdc_relay.outbox.envelope import Headers, Record
from cdc_relay.outbox.row import LockedRow, OutboxRow
from cdc_relay.outbox.sql import DISCARDED, HELD_BACK, PARKED, REQUEUED, PendingRow, WaitingRow
from cdc_relay.outbox.statements import PublishedPage

Report = Callable[[Any, Any], None]


class MemoryCheckpointStore:
    """A ``CheckpointStore`` that keeps the checkpoint in memory."""

    def __init__(self) -> None:
        self.saved: list[Checkpoint] = []
        self.broken: str | None = None
        """Why nothing can be read or written now."""

    def load(self) -> Checkpoint | None:
        self._check()
        return self.saved[-1] if self.saved else None

    def save(self, checkpoint: Checkpoint) -> None:
        self._check()
        self.saved.append(checkpoint)

    def reset(self) -> bool:
        self._check()
        had, self.saved = bool(self.saved), []
        return had

    def _check(self) -> None:
        if self.broken is not None:
            raise CheckpointError(self.broken)


@dataclass(frozen=True)
class Refusal:
    """What a FakePublisher reports where Kafka would report an error."""

    reason: RowError | None
    """None when the record was given up and not refused."""


_OUTBOX_ID = re.compile(rb'\{"outbox_id": (\d+)')


class FakePublisher:
    """A ``Publisher``: what is published waits until a test answers, and the answers come in ``poll``.

    Topics in ``missing`` do not exist; a record over ``max_bytes`` is too large.
    """

    def __init__(self, *, answers: bool = True, missing: Iterable[str] = (), max_bytes: int = 1_000_000) -> None:
        """``answers``: every record is answered in the next ``poll`` by itself."""
        self.answers = answers
        self.missing = set(missing)
        self.max_bytes = max_bytes
        self.published: list[Record] = []
        """Everything handed over, in order."""
        self.acknowledged: list[Record] = []
        """What Kafka has taken, in order."""
        self.closed = False
        self.topics: set[str] = set()
        self._waiting: deque[tuple[Record, Report]] = deque()
        self._reports: deque[tuple[Report, Refusal | None, Record]] = deque()
        self._lock = threading.Lock()

    # --- the port ---

    def publish(self, record: Record, report: Report) -> None:
        if self.closed:
            raise KafkaUnavailable("closed")
        if record.topic in self.missing:
            raise RetryableRow(f"there is no topic {record.topic!r}")
        self.topics.add(record.topic)
        with self._lock:
            self.published.append(record)
            self._waiting.append((record, report))

    def produce(
        self,
        topic: str,
        value: bytes,
        key: bytes | None,
        partition: int,
        report: Report,
        on_delivery: None,
        timestamp: int,
        headers: Headers,
    ) -> None:
        assert (partition, on_delivery, timestamp) == (-1, None, 0)
        self.publish(Record(topic, key or b"", value, headers), report)

    def outcome(self, error: Any, message: Any) -> tuple[int, RowError | None]:
        found = _OUTBOX_ID.match(message.value)
        assert found is not None
        return int(found[1]), error.reason

    def poll(self, timeout_s: float) -> int:
        if self.answers:
            self.answer_all()
        count = 0
        while self._reports:
            report, refusal, record = self._reports.popleft()
            report(refusal, record)
            count += 1
        return count

    # --- for tests ---

    @property
    def waiting(self) -> int:
        """Records that are not answered."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Records and answers that are not dealt with."""
        return len(self._waiting) + len(self._reports)

    def answer_all(self) -> None:
        """Kafka answers for everything that waits, in order."""
        while self._waiting:
            self.answer()

    def answer(self, refusal: Refusal | None = None) -> None:
        """Kafka answers for the record that waits longest: with an error, or as its size decides."""
        with self._lock:
            record, report = self._waiting.popleft()
        if refusal is None:
            refusal = self._verdict(record)
        if refusal is None:
            self.acknowledged.append(record)
        self._reports.append((report, refusal, record))

    def close(self) -> None:
        """Give up what is not answered."""
        self.closed = True
        while self._waiting:
            self.answer(Refusal(None))
        self.poll(0)

    def _verdict(self, record: Record) -> Refusal | None:
        if len(record.value) > self.max_bytes:
            return Refusal(PoisonRow(f"{len(record.value)} bytes are too large"))
        return None


class FakeSource:
    """A ``TransactionSource`` that gives what a test puts in, a list a read; then nothing."""

    def __init__(self, *reads: list[TransactionBatch] | Exception) -> None:
        self.reads: deque[list[TransactionBatch] | Exception] = deque(reads)

    @property
    def has_more(self) -> bool:
        return bool(self.reads)

    def read(self) -> list[TransactionBatch]:
        if not self.reads:
            return []
        following = self.reads.popleft()
        if isinstance(following, Exception):
            raise following
        return following


@dataclass(frozen=True)
class StoredRow:
    """A row of a ``FakeOutboxTable``."""

    id: int
    message_key: bytes = b""
    status: str = "pending"
    retry_count: int = 0
    max_retry: int = 20
    next_retry_at: datetime | None = None
    last_error: str | None = None
    published_at: datetime | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    topic: str = "t"
    payload: bytes = b"{}"

    @property
    def held(self) -> bool:
        return self.retry_count > 0 or self.published_at is not None or bool(self.last_error)

    @property
    def keeps_note(self) -> bool:
        return (self.last_error or "").startswith((PARKED[:7], REQUEUED))

    @property
    def blocks(self) -> bool:
        return self.status == "dead" and not (self.last_error or "").startswith(DISCARDED)

    @property
    def as_row(self) -> OutboxRow:
        return OutboxRow(
            self.id, "b", self.topic, self.message_key, self.payload, self.status, self.retry_count,
            self.next_retry_at, self.created_at, self.held,
        )  # fmt: skip

    def is_due(self, bound: datetime) -> bool:
        return self.status == "pending" and (self.next_retry_at is None or self.next_retry_at <= bound)


class FakeOutboxTable:
    """The outbox table in memory, and what sweep, status writer and operator do to it.

    As by ``OutboxStatements`` and ``OperatorStatements``.

    Every statement takes the "connection" first, which is the table itself. ``transaction`` undoes what it has done
    when it ends in an exception; ``fails`` and ``loses_the_answer`` let the next ones end so.
    """

    def __init__(self, *rows: StoredRow) -> None:
        self.rows = {row.id: row for row in rows}
        self.locked: set[int] = set()
        """Rows that someone else holds locked: passed over by whoever skips those."""
        self.fails: Exception | None = None
        """What the next transactions end with, undone."""
        self.loses_the_answer: Exception | None = None
        """What the next transaction ends with although it is committed."""
        self.committed = 0

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        before = dict(self.rows)
        try:
            yield self
            if self.fails is not None:
                raise self.fails
        except BaseException:
            self.rows = before
            raise
        self.committed += 1
        if self.loses_the_answer is not None:
            lost, self.loses_the_answer = self.loses_the_answer, None
            raise lost

    # --- reading ---

    def read_committed(self, connection: Any, ids: Sequence[int]) -> list[OutboxRow]:
        return [self.rows[row_id].as_row for row_id in sorted(set(ids)) if row_id in self.rows]

    def due(self, connection: Any, due_bound: datetime, limit: int, after_id: int = 0) -> list[PendingRow]:
        due = (row for row in self.rows.values() if row.is_due(due_bound) and row.id > after_id)
        found = sorted(due, key=lambda row: row.id)
        return [PendingRow(row.id, row.held, len(row.payload)) for row in found[:limit]]

    def waiting(self, connection: Any, due_bound: datetime, until: datetime, limit: int) -> list[WaitingRow]:
        found = sorted(
            row.id
            for row in self.rows.values()
            if row.status == "pending"
            and row.next_retry_at is not None
            and due_bound < row.next_retry_at <= until
            and (row.retry_count > 0 or row.last_error)
        )
        return [WaitingRow(row_id, self.rows[row_id].message_key) for row_id in found[:limit]]

    def held_rows(self, connection: Any, *, dead_too: bool = False) -> list[WaitingRow]:
        held = (r for r in self.rows.values() if (r.status == "pending" and r.held) or (dead_too and r.blocks))
        return [WaitingRow(row.id, row.message_key) for row in held]

    def blocking_dead(self, connection: Any) -> list[WaitingRow]:
        return [WaitingRow(row.id, row.message_key) for row in self.rows.values() if row.blocks]

    def still_pending(self, connection: Any, ids: Iterable[int]) -> set[int]:
        return {row_id for row_id in ids if row_id in self.rows and self.rows[row_id].status == "pending"}

    def unmarked(self, connection: Any, ids: Iterable[int]) -> set[int]:
        found = (self.rows[row_id] for row_id in ids if row_id in self.rows)
        return {row.id for row in found if row.published_at is None and not row.keeps_note}

    # --- locking ---

    def lock_due(self, connection: Any, ids: Sequence[int], due_bound: datetime) -> list[OutboxRow]:
        found = [self.rows[row_id] for row_id in sorted(set(ids)) if row_id in self.rows and row_id not in self.locked]
        return [row.as_row for row in found if row.is_due(due_bound)]

    def behind_published(self, connection: Any, ids: Sequence[int]) -> set[int]:
        def ahead(row: StoredRow) -> StoredRow | None:
            found = re.fullmatch(r"parked:.*\(id (\d+)\)", row.last_error or "")
            return self.rows.get(int(found[1])) if found else None

        rows = (self.rows[row_id] for row_id in ids if row_id in self.rows)
        return {row.id for row in rows if (blocker := ahead(row)) is not None and blocker.status == "published"}

    def requeued(self, connection: Any, ids: Sequence[int]) -> set[int]:
        rows = (self.rows[row_id] for row_id in ids if row_id in self.rows)
        return {row.id for row in rows if (row.last_error or "").startswith(REQUEUED)}

    def lock_rows(self, connection: Any, ids: Sequence[int]) -> dict[int, LockedRow]:
        return {
            row.id: LockedRow(
                row.id, row.message_key, row.status, row.retry_count, row.max_retry, row.next_retry_at,
                row.published_at, row.created_at,
            )
            for row in (self.rows[row_id] for row_id in ids if row_id in self.rows)
        }  # fmt: skip

    def _published(self, after_id: int, limit: int) -> list[StoredRow]:
        above = sorted(row_id for row_id, row in self.rows.items() if row.status == "published" and row_id > after_id)
        return [self.rows[row_id] for row_id in above[:limit]]

    def published_page(self, connection: Any, after_id: int, limit: int) -> PublishedPage:
        page = self._published(after_id, limit)
        oldest = min((row.published_at for row in page if row.published_at is not None), default=None)
        return PublishedPage(len(page), page[-1].id if page else after_id, oldest)

    def unconsumed(self, connection: Any, published_before: datetime, after_id: int, limit: int) -> list[int]:
        page = self._published(after_id, limit)
        return [row.id for row in page if row.published_at is not None and row.published_at <= published_before]

    def lock_unconsumed(self, connection: Any, ids: Sequence[int], published_before: datetime) -> list[int]:
        overdue = self.unconsumed(connection, published_before, 0, len(self.rows))
        return [row_id for row_id in overdue if row_id in ids and row_id not in self.locked]

    # --- writing ---

    def put_back(self, connection: Any, ids: Sequence[int], now: datetime) -> int:
        changes = {"status": "pending", "next_retry_at": now, "published_at": None, "updated_at": now}
        return self._write(ids, lambda row: changes if row.status == "published" else None)

    def lease(self, connection: Any, ids: Sequence[int], until: datetime, now: datetime) -> int:
        changes = {"next_retry_at": until, "published_at": None, "updated_at": now}
        return self._write(ids, lambda row: changes if row.status == "pending" else None)

    def mark_published(self, connection: Any, ids: Sequence[int], retry_count: int, now: datetime) -> int:
        def changes(row: StoredRow) -> dict[str, Any] | None:
            if row.published_at is not None:
                return None
            filled = {"published_at": now, "updated_at": now}
            if row.status == "pending" and row.retry_count == retry_count:
                error = row.last_error if row.keeps_note else None
                return filled | {"status": "published", "next_retry_at": None, "last_error": error}
            return filled if row.status in ("published", "consumed") else None

        return self._write(ids, changes)

    def mark_undelivered(
        self, connection: Any, row_id: int, retry_count: int, attempt: NextAttempt, reason: str, now: datetime
    ) -> int:
        changes = {
            "retry_count": attempt.retry_count,
            "next_retry_at": attempt.at,
            "last_error": cut_error(reason),
            "updated_at": now,
            "status": "dead" if attempt.at is None else "pending",
        }
        return self._write(
            [row_id], lambda row: changes if row.status == "pending" and row.retry_count == retry_count else None
        )

    def hold_back(self, connection: Any, ids: Sequence[int], behind: int, now: datetime) -> int:
        changes = {"last_error": f"{HELD_BACK} (id {behind})", "updated_at": now}
        return self._write(
            ids,
            lambda row: (
                changes
                if row.status == "pending" and row.retry_count == 0 and row.published_at is None and not row.keeps_note
                else None
            ),
        )

    def requeue_dead(self, connection: Any, ids: Sequence[int], now: datetime) -> int:
        def changes(row: StoredRow) -> dict[str, Any] | None:
            if row.status != "dead":
                return None
            clean = {"retry_count": 0, "next_retry_at": now, "published_at": None, "updated_at": now}
            return clean | {"status": "pending", "last_error": REQUEUED + (row.last_error or "")}

        return self._write(ids, changes)

    def discard_dead(self, connection: Any, ids: Sequence[int], now: datetime) -> int:
        def changes(row: StoredRow) -> dict[str, Any] | None:
            return {"last_error": DISCARDED + (row.last_error or ""), "updated_at": now} if row.blocks else None

        return self._write(ids, changes)

    def _write(self, ids: Iterable[int], changes: Callable[[StoredRow], dict[str, Any] | None]) -> int:
        count = 0
        for row_id in set(ids):
            row = self.rows.get(row_id)
            made = changes(row) if row is not None else None
            if row is not None and made is not None:
                self.rows[row_id] = replace(row, **made)
                count += self.rows[row_id] != row
        return count
