"""One outbox row in memory: what delivery needs of it, and what the consumer does."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from cdc_relay.outbox import datetime2
from cdc_relay.outbox.status import Status

#: How much later than created_at an unscheduled row's next_retry_at may be: two readings of one clock, rounded.
_SAME_MOMENT = timedelta(seconds=1)


class Due(NamedTuple):
    """The latest wall time that counts as due (``clock.due_bound``), also as the binlog packs it."""

    wall: datetime
    packed: dict[int, bytes]
    """By the number of bytes that a column's times have."""

    @classmethod
    def at(cls, wall: datetime) -> Due:
        return cls(wall, datetime2.packed_forms(wall))


class OutboxRow(NamedTuple):
    """What delivery needs of a row, decoded from the binlog or read from the table; the two give equal values.

    A tuple and not a dataclass: one is made for every row on the hot path.
    """

    id: int
    biz_type: str
    topic: str
    message_key: bytes
    """UTF-8, whatever the column's character set; empty when NULL."""
    payload: bytes
    """UTF-8, byte for byte as the application wrote it; empty when NULL."""
    status: str
    retry_count: int
    next_retry_at: datetime | None
    """Naive, in ``database.timezone``."""
    created_at: datetime | None
    """Naive, in ``database.timezone``."""
    held: bool = False
    """It has been sent, has failed or was parked before, so it is the sweep's; an insert in the binlog never is."""

    @property
    def size(self) -> int:
        """Bytes that the row holds in memory while in flight, without Python's own overhead."""
        return len(self.payload) + len(self.message_key)

    @property
    def is_fresh(self) -> bool:
        """Pending and never tried: the tailer's row, if it is not scheduled for later."""
        return self.status == Status.PENDING and self.retry_count == 0 and not self.held

    @property
    def is_sent_at_once(self) -> bool:
        """Whether the application has not scheduled the row, so that the tailer sends it whatever time it is."""
        at, created_at = self.next_retry_at, self.created_at
        return at is None or (created_at is not None and at <= created_at + _SAME_MOMENT)

    def is_scheduled(self, due: datetime) -> bool:
        """Whether the application wants the row sent later than ``due``.

        ``next_retry_at`` of an ordinary row is the moment of its insert by the application's clock, which may be
        minutes from ours: so it is compared with ``created_at``, written by the same clock.
        """
        return self.next_retry_at is not None and self.next_retry_at > due and not self.is_sent_at_once


class BinlogRow(OutboxRow):
    """A row whose times are still packed as DATETIME2: most are compared or printed so, and never unpacked.

    Packed they stand in the tuple itself: ``row[7]`` and ``row[8]``.
    """

    __slots__ = ()

    @property
    def next_retry_at(self) -> datetime | None:
        """See OutboxRow."""
        raw: bytes | None = self[7]  # type: ignore[assignment]
        return None if raw is None else datetime2.unpack(raw)

    @property
    def created_at(self) -> datetime | None:
        """See OutboxRow."""
        raw: bytes | None = self[8]  # type: ignore[assignment]
        return None if raw is None else datetime2.unpack(raw)

    @property
    def unpacked(self) -> OutboxRow:
        """The same row with its times unpacked."""
        return OutboxRow(*self[:7], self.next_retry_at, self.created_at, self.held)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, BinlogRow):
            other = other.unpacked
        return tuple.__eq__(self.unpacked, other) if isinstance(other, tuple) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.unpacked)


#: Looked up once a row: an attribute of an enum takes longer than all the rest.
_OPEN = frozenset({str(Status.PENDING), str(Status.PUBLISHED)})


class LockedRow(NamedTuple):
    """What the consumer needs of a row that it holds locked. The payload came with the record."""

    id: int
    message_key: bytes
    status: str
    retry_count: int
    max_retry: int
    next_retry_at: datetime | None
    """Naive, in ``database.timezone``, as are the other times."""
    published_at: datetime | None
    created_at: datetime | None

    @property
    def is_open(self) -> bool:
        """The business effect is still to come."""
        return self.status in _OPEN

    @property
    def is_dead(self) -> bool:
        """No effect will come of it unless an operator requeues it."""
        return self.status == Status.DEAD

    @property
    def is_scheduled(self) -> bool:
        """A consumer has put the row back since its last delivery: the sweep delivers it anew when it is due.

        A record that arrives for it is a late copy of the delivery that was decided on already.
        """
        return self.status == Status.PENDING and self.published_at is not None
