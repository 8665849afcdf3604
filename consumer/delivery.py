"""A Kafka record, and what has been made of it so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from cdc_relay.errors import RelayError

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
    """Pairs of name and bytes, or None. Only a dead letter needs them, and they cost more than all the rest."""

    @property
    def home(self) -> Partition:
        return self.topic, self.partition

    @property
    def size(self) -> int:
        """Bytes of key and value."""
        return len(self.key or b"") + len(self.value or b"")

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


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
