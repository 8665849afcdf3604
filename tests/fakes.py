"""Stand-ins for what the heart talks to. ``tests/contract`` holds each to the same tests as the real thing."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cdc_relay.binlog.transactions import TransactionBatch
from cdc_relay.checkpoint import Checkpoint
from cdc_relay.errors import CheckpointError, KafkaUnavailable, PoisonRow, RetryableRow, RowError
from cdc_relay.outbox.envelope import Record

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
        self._waiting: deque[tuple[Record, Report]] = deque()
        self._reports: deque[tuple[Report, Refusal | None, Record]] = deque()
        self._lock = threading.Lock()

    # --- the port ---

    def publish(self, record: Record, report: Report) -> None:
        if self.closed:
            raise KafkaUnavailable("closed")
        if record.topic in self.missing:
            raise RetryableRow(f"there is no topic {record.topic!r}")
        with self._lock:
            self.published.append(record)
            self._waiting.append((record, report))

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

    def read(self) -> list[TransactionBatch]:
        if not self.reads:
            return []
        following = self.reads.popleft()
        if isinstance(following, Exception):
            raise following
        return following
