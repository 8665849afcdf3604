"""What the tailer reads from: the binlog, the table, and what is remembered of an earlier life."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from cdc_relay.binlog.batches import TransactionBatch
from cdc_relay.outbox.row import OutboxRow


class TransactionSource(Protocol):
    """Gives the outbox rows of transactions in commit order."""

    def read(self) -> list[TransactionBatch]:
        """The next batches; may be empty. Waits for them, but no longer than a heartbeat takes."""

    @property
    def has_more(self) -> bool:
        """Whether ``read`` would find something without waiting."""


LookUp = Callable[[Sequence[int]], list[OutboxRow]]
"""Reads committed rows from the table by id, waiting for transactions that are about to commit."""


class PendingSource(Protocol):
    """Gives the pending rows of the table in id order, once."""

    @property
    def exhausted(self) -> bool:
        """Whether every row has been given."""

    def read(self) -> list[TransactionBatch]:
        """The next rows; none when exhausted."""


class SentBefore(Protocol):
    """Remembers rows that were sent from the table (``sent_rows.SentRows``)."""

    def begin(self) -> None:
        """Learn what was noted before."""

    def has(self, row: OutboxRow) -> bool:
        """Whether Kafka has the row, as was noted before."""

    def noting(self, rows: Sequence[OutboxRow]) -> Callable[[], None]:
        """A call that notes that Kafka has these rows; it does not keep them in memory."""

    def reset(self) -> None:
        """All of them are marked."""
