"""One outbox row in memory."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from cdc_relay.outbox.status import Status


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
    max_retry: int
    next_retry_at: datetime | None
    """Naive, in ``database.timezone``."""
    created_at: datetime | None
    """Naive, in ``database.timezone``."""

    @property
    def size(self) -> int:
        """Bytes that the row holds in memory while in flight, without Python's own overhead."""
        return len(self.payload) + len(self.message_key)

    @property
    def is_fresh(self) -> bool:
        """Pending and never failed: the tailer's row, if it is not scheduled for later."""
        return self.status == Status.PENDING and self.retry_count == 0
