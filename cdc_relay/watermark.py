"""The highest binlog position before which all work is done.

Source of the idea: Maxwell's in-flight list and Benthos' capped checkpoint, with every row tracked and not only the
last of a transaction.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import Lock

from cdc_relay.binlog.position import BinlogPosition


@dataclass(slots=True, eq=False)
class Ticket:
    """What ``track`` gives and ``resolve`` takes: a batch of rows on its way."""

    end: BinlogPosition | None
    committed_at: float
    rows: int
    size: int
    acknowledged: bool = False
    resolved: bool = False


class AckWatermark:
    """Batches go in in binlog order and are resolved in any order; the position moves over resolved ones only.

    A second position, ``acknowledged``, runs ahead of it: over batches that Kafka has whole, written to the table or
    not. Pure but for a lock: one thread tracks, others acknowledge and resolve.
    """

    def __init__(self, start: BinlogPosition, *, max_rows: int, max_bytes: int) -> None:
        self._lock = Lock()
        self._tickets: deque[Ticket] = deque()
        self._unacknowledged: deque[Ticket] = deque()
        self._position = self._acknowledged = start
        self._committed_at = 0.0
        self._rows = 0
        self._bytes = 0
        self._max_rows = max_rows
        self._max_bytes = max_bytes

    def track(self, end: BinlogPosition | None, *, committed_at: float, rows: int, size: int) -> Ticket:
        """The next batch in binlog order. ``end`` is None where reading cannot resume; the position waits there."""
        ticket = Ticket(end, committed_at, rows, size)
        with self._lock:
            self._tickets.append(ticket)
            self._unacknowledged.append(ticket)
            self._rows += rows
            self._bytes += size
        return ticket

    def acknowledge(self, ticket: Ticket) -> None:
        """Kafka has acknowledged every row of the batch."""
        with self._lock:
            self._acknowledge(ticket)

    def resolve(self, ticket: Ticket) -> None:
        """Every row of the batch has left by a durable exit. Resolving twice changes nothing."""
        with self._lock:
            if ticket.resolved:
                return
            self._acknowledge(ticket)
            ticket.resolved = True
            self._rows -= ticket.rows
            self._bytes -= ticket.size
            while self._tickets and self._tickets[0].resolved:
                first = self._tickets.popleft()
                if first.end is not None:
                    self._position = first.end
                    self._committed_at = first.committed_at or self._committed_at

    def _acknowledge(self, ticket: Ticket) -> None:
        ticket.acknowledged = True
        while self._unacknowledged and self._unacknowledged[0].acknowledged:
            end = self._unacknowledged.popleft().end
            if end is not None:
                self._acknowledged = end

    @property
    def acknowledged(self) -> BinlogPosition:
        """Nothing before it needs to be sent again; not before ``position``."""
        return self._acknowledged

    @property
    def position(self) -> BinlogPosition:
        """Everything before it is done."""
        return self._position

    @property
    def committed_at(self) -> float:
        """When the last transaction before the position committed: seconds since 1970, 0 when none was seen."""
        return self._committed_at

    @property
    def full(self) -> bool:
        """Whether reading must wait. One batch is always let in, however large it is."""
        return self._rows >= self._max_rows or self._bytes >= self._max_bytes

    @property
    def half_full(self) -> bool:
        """Whether what is in flight should be settled without waiting for anything that is not needed."""
        return self._rows * 2 >= self._max_rows or self._bytes * 2 >= self._max_bytes

    @property
    def in_flight_rows(self) -> int:
        """Rows tracked and not resolved."""
        return self._rows

    @property
    def in_flight_bytes(self) -> int:
        """Bytes tracked and not resolved."""
        return self._bytes

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        return not self._tickets
