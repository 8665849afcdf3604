"""What a dead row needs that is to hold back its key (``on_dead = block``): nothing of its key on the way behind it.

Most rows that die are found out before they are sent, or have failed before and go alone. A record that is too large is
refused by Kafka, and its answer comes when later records of the key have followed long ago.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from cdc_relay.delivery import Publisher
from cdc_relay.errors import RowError
from cdc_relay.outbox.envelope import OPENING, SHORT, Record
from cdc_relay.parking import SharedParking

#: What is more in a record, as Kafka weighs it, than payload and key: the envelope, headers, the framing of a batch.
FRAME_BYTES = 2_000


class CautiousPublisher:
    """A ``Publisher`` that holds a key from the moment on at which a record goes out that may be refused for its size.

    The key is released like any other when the row is written as published. Rows that come meanwhile wait in the table.
    """

    def __init__(self, publisher: Publisher, parking: SharedParking, *, safe_bytes: float) -> None:
        """``safe_bytes``: no record with a value of so many bytes is refused for its size."""
        self._publisher = publisher
        self._parking = parking
        self._safe_bytes = safe_bytes

    @property
    def topics(self) -> Container[str]:
        """See Publisher. None where even a short payload may be too large: then every record goes by ``publish``."""
        return self._publisher.topics if self._safe_bytes >= SHORT + FRAME_BYTES else ()

    @property
    def produce(self) -> Callable[..., None]:
        """See Publisher."""
        return self._publisher.produce

    @property
    def in_flight(self) -> int:
        """See Publisher."""
        return self._publisher.in_flight

    def publish(self, record: Record, report: Callable[[Any, Any], None]) -> None:
        """See Publisher."""
        if len(record.value) > self._safe_bytes:
            row_id = int(record.value[len(OPENING) : record.value.index(b",")])
            self._parking.hold_unwritten(record.key, row_id)
        self._publisher.publish(record, report)

    def outcome(self, error: Any, message: Any) -> tuple[int, RowError | None]:
        """See Publisher."""
        return self._publisher.outcome(error, message)

    def poll(self, timeout_s: float) -> int:
        """See Publisher."""
        return self._publisher.poll(timeout_s)
