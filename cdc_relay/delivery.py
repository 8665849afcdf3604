"""Rows on their way to Kafka, and what became of each.

A ``Delivery`` is one batch: the thread that sends adds rows and closes it; Kafka's delivery reports come in on the
thread that polls. When the last report is in, the whole batch goes to the status writer.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from threading import Lock
from types import MappingProxyType
from typing import Any, Protocol

from cdc_relay.errors import RowError
from cdc_relay.outbox.envelope import Record


class Publisher(Protocol):
    """Takes records to Kafka in order per partition, at least once."""

    @property
    def topics(self) -> Container[str]:
        """Those that are known to exist; a record of another one must be given to ``publish``."""

    @property
    def produce(self) -> Callable[..., None]:
        """``publish`` without its care, which is the client's own ``produce``: ``(topic, value, key or None, partition,
        report, None, timestamp, headers)``. Raises whatever the client does, and then it has not taken the record.
        """

    def publish(self, record: Record, report: Callable[[Any, Any], None]) -> None:
        """Hand a record over; ``report(error, message)`` is called by ``poll`` when it is acknowledged or refused.

        Waits while the send queue is full. Raises PoisonRow for a record that can never be sent, and ProducerFatal.
        """

    def outcome(self, error: Any, message: Any) -> tuple[int, RowError | None]:
        """``(outbox id, reason)`` of a reported error; no reason when the record was given up and not refused."""

    @property
    def in_flight(self) -> int:
        """Records handed over whose reports have not been called."""

    def poll(self, timeout_s: float) -> int:
        """Call the reports that have come in, waiting for the first up to ``timeout_s``; 0 when there were none.

        Reports come one at a time: a second thread waits until the first has polled, or turns away if it has no time.
        """


_FRESH: Mapping[int, int] = MappingProxyType({})


class Delivery:
    """One batch of rows: sent, refused, held back; complete when every sent row has been reported."""

    def __init__(
        self,
        publisher: Publisher,
        done: Callable[[Delivery], None],
        *,
        path: str,
        on_settled: Callable[[], None] | None = None,
        committed_at: float = 0.0,
        retry_counts: Mapping[int, int] = _FRESH,
    ) -> None:
        """``done`` is called once, on whichever thread completes the batch. ``path`` labels metrics. ``on_settled`` is
        called when the statuses of the rows are committed, and only then.

        ``retry_counts`` has the counts with which rows were sent, where they are not 0.
        """
        self.path = path
        self.committed_at = committed_at
        self.retry_counts = retry_counts
        self.sent: list[int] = []
        self.failed: dict[int, RowError] = {}
        self.parked: dict[int, int] = {}
        """Row id -> the id that it waits for."""
        self.abandoned = False
        """Given up before Kafka answered: no status may be written and the watermark must not pass."""
        self._publisher = publisher
        self._done = done
        self._on_settled = on_settled
        self._acknowledged_before = 0
        self._reported = 0
        self._expected = -1  # not known before close()
        self._lock = Lock()
        self._is_done = False

    def send(self, row_id: int, record: Record) -> None:
        """Publish one row's record; raises as ``Publisher.publish`` does, and then the row does not count as sent."""
        self._publisher.publish(record, self.report)
        self.sent.append(row_id)

    def add_acknowledged(self, row_id: int) -> None:
        """A row that Kafka has acknowledged before."""
        self.sent.append(row_id)
        self._acknowledged_before += 1

    def close(self) -> None:
        """All rows are in."""
        self._expected = len(self.sent) - self._acknowledged_before
        if self._reported == self._expected:
            self._complete()

    def report(self, error: Any, message: Any) -> None:
        """Kafka's answer to one record; on the polling thread."""
        if error is not None:
            self._refused(error, message)
        self._reported += 1
        if self._reported == self._expected:
            self._complete()

    @property
    def all_acknowledged(self) -> bool:
        """Whether Kafka has every row; valid once complete."""
        return not (self.failed or self.parked or self.abandoned)

    @property
    def published(self) -> list[int]:
        """Ids that Kafka has acknowledged; valid once complete."""
        return [row_id for row_id in self.sent if row_id not in self.failed] if self.failed else self.sent

    def settle(self) -> None:
        """The statuses of all rows are committed."""
        if self._on_settled is not None:
            self._on_settled()

    def _refused(self, error: Any, message: Any) -> None:
        row_id, reason = self._publisher.outcome(error, message)
        if reason is None:
            self.abandoned = True
        else:
            self.failed[row_id] = reason

    def _complete(self) -> None:
        # close() and the last report() may get here at the same time.
        with self._lock:
            if self._is_done:
                return
            self._is_done = True
        self._done(self)
