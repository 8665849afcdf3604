"""Finished transactions on their way out, joined where they can travel together."""

from __future__ import annotations

from dataclasses import dataclass

from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.outbox.row import OutboxRow

#: Small transactions are joined until they have so many rows. A batch counts as acknowledged as a whole, so all of it
#: may come twice after a kill.
JOINED_ROWS = 250


@dataclass(slots=True)
class TransactionBatch:
    """Rows of one or more whole transactions, in commit order, or one piece of a large one."""

    rows: list[OutboxRow]
    end: BinlogPosition | None
    """Where reading may resume once these rows have left the watermark; None inside a transaction."""
    committed_at: float = 0.0
    """Seconds since 1970, by the server's clock, of the last commit in the batch; 0 when unknown."""
    doubtful: bool = False
    """The rows must be read from the table by their ids; here only ``id`` is certain."""
    unreadable: bool = False
    """Up to ``end`` there is something that only the table can tell: its pending rows must be looked at."""
    size: int = 0
    """Bytes of the row events."""


class FinishedBatches:
    """What is finished, in order, until it is taken."""

    def __init__(self) -> None:
        self._done: list[TransactionBatch] = []

    def take(self) -> list[TransactionBatch]:
        """All of it; nothing is kept."""
        done, self._done = self._done, []
        return done

    def end_at(self, offset: int) -> bool:
        """Whether the last one ends at this offset of the file that is being read, and reading may resume there."""
        end = self._done[-1].end if self._done else None
        return end is not None and end.offset == offset

    def add_piece(self, rows: list[OutboxRow], size: int) -> None:
        """A piece of a transaction whose end is not seen yet: the table must say whether the rows have come to stay."""
        self._done.append(TransactionBatch(rows, None, doubtful=True, size=size))

    def add(
        self,
        rows: list[OutboxRow],
        size: int,
        doubtful: bool,
        unreadable: bool,
        end: BinlogPosition,
        committed_at: float,
    ) -> None:
        """Whole transactions up to ``end``; joined to the last ones, so that many cost one round through the pipeline.

        What they mean: ``TransactionBatch``.
        """
        resumable = end if end.is_resumable else None
        if unreadable:
            rows = []  # the table has them too, and tells them in order with those that could not be read
        last = self._done[-1] if self._done else None
        if (
            last is not None
            and last.end is not None
            and not (last.unreadable or unreadable)
            and (not rows or not last.rows or last.doubtful == doubtful)
            and len(last.rows) < JOINED_ROWS
        ):
            last.rows += rows
            last.end = resumable or last.end
            last.doubtful = doubtful if rows else last.doubtful
            last.committed_at = committed_at or last.committed_at
            last.size += size
        else:
            self._done.append(TransactionBatch(rows, resumable, committed_at, doubtful, unreadable, size))
