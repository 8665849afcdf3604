"""A Kafka record, and what has been made of it so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any, NamedTuple

from cdc_relay.errors import RelayError
from cdc_relay.outbox.clock import to_column

Partition = tuple[str, int]
"""Topic and partition number."""


class KafkaRecord(NamedTuple):
    """A record as it stands in Kafka: the bytes, and where they are."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    read_headers: Callable[[], Any]
    """Pairs of name and bytes, or None. To read them costs more than all the rest."""
    timestamp_ms: int = 0
    """When it was sent, or came to Kafka, as the topic is set; since 1970, 0 when the record does not say."""

    @property
    def home(self) -> Partition:
        return self.topic, self.partition

    @property
    def size(self) -> int:
        """Bytes of key and value."""
        return len(self.key or b"") + len(self.value or b"")

    def written_at(self, zone: tzinfo) -> datetime | None:
        """When the row was written, as its column has it in ``zone``; None where the headers do not say."""
        for name, value in self.read_headers() or ():
            if name == "created_at":
                try:
                    instant = datetime.fromisoformat(value.decode())
                except (ValueError, AttributeError):  # no time, no UTF-8, no value
                    return None
                return to_column(instant, zone) if instant.tzinfo else None
        return None

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


class SentRow(NamedTuple):
    """What a record itself tells of its row."""

    id: int
    created_at: datetime
    """As the column has it."""


class NoRow(RelayError):
    """The table has no row with the record's outbox id: it was deleted, or the record is not of this table."""


class DeadLetter(NamedTuple):
    """A record to be kept for people to look at, and why it has no usable row."""

    record: KafkaRecord
    reason: str


@dataclass(slots=True)
class Delivery:
    """One arrival of a record, on its way through the worker."""

    record: KafkaRecord
    outbox_id: int | None = None
    """None when the record is no envelope, so that no row can be named for it."""
    biz_type: str = ""
    payload: Any = None
    """As the handler of ``biz_type`` reads it."""
    refusal: RelayError | None = None
    """Why no effect can ever come of it; None while one may."""
    is_buried: bool = False
    """A copy with the reason is acknowledged in the dead-letter topic."""
    is_settled: bool = False
    """What is to become of it is committed in the database."""
