"""The life of an outbox row."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Status(StrEnum):
    """The values of the ``status`` column."""

    PENDING = "pending"
    """In the outbox, waiting for delivery or for the next retry window."""
    PUBLISHED = "published"
    """Acknowledged by Kafka, business effect still to come."""
    CONSUMED = "consumed"
    """Business effect committed. The end."""
    DEAD = "dead"
    """Retries used up, or an error that no retry can cure. The end, until an operator requeues it or lets it go."""


TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    # pending -> consumed: the consumer may be faster than the relay's write-back.
    # pending -> pending: a failed attempt, with a later next_retry_at.
    Status.PENDING: frozenset({Status.PENDING, Status.PUBLISHED, Status.CONSUMED, Status.DEAD}),
    # published -> pending: the consumer failed and schedules a retry, or none consumes it and the relay sends it anew.
    Status.PUBLISHED: frozenset({Status.PENDING, Status.CONSUMED, Status.DEAD}),
    Status.CONSUMED: frozenset(),
    # Only by `cdc-relay dead requeue`, and `dead discard`, which only notes that the row is let go.
    Status.DEAD: frozenset({Status.PENDING, Status.DEAD}),
}
"""Which status may follow which. The statements hold to it in their WHERE clauses; a test compares the two."""
