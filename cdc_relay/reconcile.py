"""Where a start begins, and catching up from the table.

A good checkpoint is tailed from. Everything else (none, unreadable, of another server, purged, reset, too far behind)
ends the same way: note the head of the binlog, send what is pending in id order, then tail from the noted head. So
catching up costs what is pending, not what the whole server wrote meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from cdc_relay.acknowledged import Acknowledged
from cdc_relay.binlog.batches import TransactionBatch
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.checkpoint import Checkpoint, CheckpointStore
from cdc_relay.errors import CheckpointError
from cdc_relay.outbox.statements import OutboxStatements

#: Pending rows looked at, and payload bytes read, at a time.
_PAGE_ROWS = 2_000
#: Rows sent together, and noted together when Kafka has them: a kill doubles so many more.
_BATCH_ROWS = 500
_PAGE_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class ServerBinlog:
    """What a server says of its binlog."""

    server: str
    """Its identity."""
    head: BinlogPosition
    """Where it writes next."""
    files: tuple[tuple[str, int], ...]
    """``(name, bytes)`` of the files that it still has, oldest first."""
    folds_names: bool = False
    """Whether names of databases and tables that differ by their case alone are one to it."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin."""

    position: BinlogPosition
    reconcile: str | None
    """Why the table comes first; None to tail at once."""
    detail: str = ""
    """The reason in words, for the log."""
    file_created_at: int = 0
    """When the position's file was begun, if the checkpoint says so."""
    parked: bool = False
    """Whether keys were held back when the checkpoint was saved."""
    acknowledged: BinlogPosition | None = None
    """Up to here Kafka has everything, though the table may not say so."""

    def knowing(self, acknowledged: Acknowledged | None, binlog: ServerBinlog) -> Start:
        """With what was noted of Kafka's acknowledgements, if it is of the very file that the checkpoint is in.

        Only of that file it is certain which one it is: the reader compares when it was begun.
        """
        if (
            acknowledged is None
            or self.reconcile is not None
            or not self.file_created_at
            or (acknowledged.server, acknowledged.file_created_at) != (binlog.server, self.file_created_at)
            or acknowledged.position.file != self.position.file
            or not self.position < acknowledged.position <= binlog.head
        ):
            return self
        return replace(self, acknowledged=acknowledged.position)


def load_start(
    store: CheckpointStore, binlog: ServerBinlog, *, jump_behind_bytes: int, distrust: str | None = None
) -> Start:
    """Read the checkpoint and decide. ``distrust`` is why the last attempt could not tail from it."""
    try:
        checkpoint = store.load()
    except CheckpointError as error:
        return Start(binlog.head, "unreadable", str(error))
    return decide_start(checkpoint, binlog, jump_behind_bytes=jump_behind_bytes, distrust=distrust)


def decide_start(
    checkpoint: Checkpoint | None, binlog: ServerBinlog, *, jump_behind_bytes: int, distrust: str | None = None
) -> Start:
    """The table "Where a start begins": pure."""

    def reconcile(reason: str, detail: str) -> Start:
        return Start(binlog.head, reason, detail)

    if checkpoint is None:
        return reconcile("no_checkpoint", "there is no checkpoint")
    at = checkpoint.position
    if checkpoint.server != binlog.server:
        return reconcile("other_server", f"the checkpoint is of server {checkpoint.server}, this is {binlog.server}")
    if distrust is not None:
        return reconcile(distrust, f"the binlog cannot be read from {at}")
    sizes = dict(binlog.files)
    if at.file not in sizes:
        return reconcile("purged", f"the server no longer has {at.file}")
    if at > binlog.head or at.offset > sizes[at.file]:
        return reconcile("future", f"the checkpoint {at} lies beyond what the server has written ({binlog.head})")
    behind = bytes_between(at, binlog)
    if jump_behind_bytes and behind > jump_behind_bytes:
        return reconcile("behind", f"the checkpoint is {behind} bytes of binlog behind")
    return Start(at, None, "", checkpoint.file_created_at, checkpoint.parked)


def bytes_between(position: BinlogPosition, binlog: ServerBinlog) -> int:
    """Bytes of binlog from ``position`` to the head."""
    later = sum(size for name, size in binlog.files if BinlogPosition(name, 0).file_number > position.file_number)
    here = dict(binlog.files).get(position.file, position.offset)
    return max(0, here - position.offset) + later


class PendingRows:
    """The pending rows of the table as a source for the tailer, in id order.

    Rows that failed before are given too, so that the tailer holds their keys back; it does not send them.
    """

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[Connection]],
        statements: OutboxStatements,
    ) -> None:
        self._transaction = transaction
        self._statements = statements
        self._after = 0
        # A row that is inserted later may follow one of its key that commits after its page was read, with a lower id.
        # Up to the highest id committed at the beginning, whatever comes before a row of its key has long been seen.
        self._until: int | None = None
        self.exhausted = False
        """Whether every row that was pending has been given."""

    def read(self) -> list[TransactionBatch]:
        """See PendingSource."""
        with self._transaction() as connection:
            if self._until is None:
                self._until = self._statements.last_id(connection)
            page = self._statements.next_page(
                connection, self._after, self._until, most_rows=_PAGE_ROWS, most_bytes=_PAGE_BYTES
            )
            if page is None:
                self.exhausted = True
                return []
            rows = self._statements.pending(connection, *page)
        _, self._after = page
        batches = [rows[at : at + _BATCH_ROWS] for at in range(0, len(rows), _BATCH_ROWS)]
        return [TransactionBatch(batch, None, size=sum(row.size for row in batch)) for batch in batches]
