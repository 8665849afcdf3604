"""From single binlog events to the outbox rows of whole transactions.

``TransactionAssembler`` is a state machine without I/O. It is fed every event in order and collects rows until their
transaction's end; only then do they leave, together with the position at which reading may resume.

* Rows of a transaction that ends in ROLLBACK are dropped; rows of an XA transaction leave at its XA COMMIT.
* Rows that the events alone do not settle leave as *doubtful*: whoever gets them reads them from the table by id.
  That is so for images with absent columns, for rows changed again in their own transaction, for pieces of a
  transaction too large to hold, and after ROLLBACK TO SAVEPOINT.
* What is not understood is reported to ``on_unsupported``, and the batch says that the table must be asked what was in
  it. Nothing is skipped silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cdc_relay.binlog.batches import FinishedBatches, TransactionBatch
from cdc_relay.binlog.events import (
    CHANGES,
    DAMAGED,
    NOTHING_FOR_US,
    WRITES,
    WRITES_COMPRESSED,
    Event,
    EventType,
    has_checksum,
    is_mariadb_prepared_xa,
    is_mariadb_standalone,
    parse_commit_time,
    parse_query,
    type_name,
)
from cdc_relay.binlog.payload import mariadb_inflate, transaction_payload
from cdc_relay.binlog.place import StreamPlace
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.binlog.tables import OutboxTables
from cdc_relay.binlog.xa import PreparedTransactions, parse_xa_prepare, parse_xid
from cdc_relay.outbox.row import OutboxRow

#: A transaction's rows are held until its end up to so many bytes of row events; beyond, they leave in pieces.
PIECE_BYTES = 8 * 2**20

_T = EventType


@dataclass(slots=True)
class OpenTransaction:
    """The transaction that is being read."""

    begun: bool = False
    """Whether more than its GTID was seen: statements may stand in it without ending it."""
    rows: list[OutboxRow] = field(default_factory=list)
    size: int = 0
    doubtful: bool = False
    is_xa: bool = False
    """Its rows leave at its XA COMMIT, read from the table: what happens to it after its XA PREPARE is not known."""
    forgotten: bool = False
    """Not all rows of the XA transaction are remembered or could be read; its XA COMMIT sends to the table for them."""

    @property
    def is_ordinary(self) -> bool:
        """Whether nothing is special about it so far."""
        return not (self.doubtful or self.is_xa or self.forgotten)


class TransactionAssembler:
    """Feed it events, take batches. One reader has one assembler; a new reader begins with a new one."""

    def __init__(self, start: BinlogPosition, tables: OutboxTables, on_unsupported: Callable[[str], None]) -> None:
        self._tables = tables
        self._on_unsupported = on_unsupported
        self._place = StreamPlace(start)
        self._open: OpenTransaction | None = None
        self._prepared = PreparedTransactions()
        self._finished = FinishedBatches()
        self._unreadable = False
        self._commit_time: float | None = None

    @property
    def in_transaction(self) -> bool:
        """Whether the last event fed was inside a transaction."""
        return self._open is not None

    @property
    def position(self) -> BinlogPosition:
        """The end of the last event fed."""
        return self._place.position

    @property
    def files_created(self) -> dict[str, int]:
        """When each binlog file seen was begun, seconds since 1970: tells two files of one name apart."""
        return self._place.files_created

    def take(self) -> list[TransactionBatch]:
        """What is finished, in order; neighbours that can travel together are joined."""
        return self._finished.take()

    def feed(self, event: Event) -> None:
        """Take one event of the stream.

        Raises one of ``events.DAMAGED`` when its frame is damaged, and StaleSource when files may have been left out.
        """
        kind = event.type
        if kind in (_T.ROTATE, _T.FORMAT_DESCRIPTION):
            self._enter(event)
            return
        self._place.advance(event)
        if kind == _T.TRANSACTION_PAYLOAD:
            self._unwrap(event)
        else:
            self._take(event, self.checksum_size)
        if self._open is None and (self._unreadable or not self._finished.end_at(self.offset)):
            # Whatever stands outside a transaction ends at a place to resume from: DDL, heartbeats, markers.
            self._finish([], size=0, doubtful=False, committed_at=0.0)

    # --- ordinary transactions, read by the quick loop (quick.py) -----------------------------------------------

    @property
    def checksum_size(self) -> int:
        """Bytes at the end of each event that are its checksum."""
        return self._place.checksum_size

    @property
    def offset(self) -> int:
        """The end of the last event fed, in its file."""
        return self._place.offset

    @property
    def commit_time(self) -> float | None:
        """When the open transaction committed, as its GTID says; None when it does not."""
        return self._commit_time

    def lend(self) -> tuple[bool, OpenTransaction | None]:
        """``(whether the quick loop may go on from here, the open transaction)``."""
        ordinary = not self._unreadable and (self._open is None or self._open.is_ordinary)
        return ordinary, self._open

    def take_finished(self, rows: list[OutboxRow], size: int, offset: int, committed_at: float) -> None:
        """Ordinary transactions that ended, the last one at ``offset``; the open one was among them."""
        self._open = None
        self._commit_time = None
        self._place.offset = offset
        self._finish(rows, size, False, committed_at)

    def take_open(self, opened: OpenTransaction, offset: int, commit_time: float | None) -> None:
        """An ordinary transaction that goes on; the last of its events that was read ends at ``offset``."""
        self._open = opened
        self._place.offset = offset
        self._commit_time = commit_time

    # --- inside --------------------------------------------------------------------------------------------------

    def _enter(self, event: Event) -> None:
        """Another file, or one from its middle."""
        # Table ids are numbers in the server's memory: after a restart they may mean other tables.
        self._tables.forget_ids()
        if event.type == _T.FORMAT_DESCRIPTION:
            self._place.begin_file(event)
            self._open = None  # a server that crashed inside a transaction begins a new file without its end
        elif self._place.rotate(event):
            self._open = None
            self._finish([], size=0, doubtful=False, committed_at=0.0)

    def _unwrap(self, event: Event) -> None:
        try:
            self._verify(event, self.checksum_size)
            for inner in transaction_payload(event, self.checksum_size):
                self._take(inner, 0)
            if self._open is not None:
                raise ValueError("the compressed transaction has no end")
        except DAMAGED:
            self._unsupported("transaction_payload")
            self._open = None

    def _take(self, event: Event, checksum_size: int) -> None:
        kind = event.type
        if kind in WRITES or kind in WRITES_COMPRESSED:
            self._write_rows(event, checksum_size)
        elif kind == _T.TABLE_MAP:
            self._transaction().begun = True
            kind_of_trouble = self._tables.map_table(event, checksum_size)
            if kind_of_trouble:
                self._unsupported(kind_of_trouble)
        elif kind == _T.XID:
            self._commit(event)
        elif kind == _T.QUERY:
            self._query(event, parse_query(event, checksum_size))
        elif kind in (_T.GTID, _T.ANONYMOUS_GTID):
            self._commit_time = parse_commit_time(event, checksum_size)
            self._new_transaction()
        elif kind == _T.GTID_TAGGED:
            self._commit_time = None
            self._new_transaction()
        elif kind == _T.MARIADB_GTID:
            self._commit_time = None
            opened = self._new_transaction()
            opened.begun = not is_mariadb_standalone(event)  # no BEGIN follows it
            opened.is_xa = is_mariadb_prepared_xa(event)
        elif kind in CHANGES:
            if self._open is not None and self._open.rows and self._tables.is_outbox(event):
                self._open.doubtful = True  # one of its rows may have been changed or deleted again
        elif kind == _T.XA_PREPARE:
            self._xa_prepare(event)
        elif kind == _T.STOP:
            self._place.stop()
        elif kind == _T.MARIADB_QUERY_COMPRESSED:
            self._compressed_query(event, checksum_size)
        elif kind not in NOTHING_FOR_US:
            self._unsupported(type_name(kind))

    def _transaction(self) -> OpenTransaction:
        if self._open is None:
            self._open = OpenTransaction()
        return self._open

    def _new_transaction(self) -> OpenTransaction:
        if self._open is not None and self._open.begun:
            self._unsupported("unfinished_transaction")  # its end was not recognized, so the table must tell
        self._open = OpenTransaction()
        return self._open

    def _write_rows(self, event: Event, checksum_size: int) -> None:
        opened = self._transaction()
        decoder = self._tables.decoder(event, checksum_size, compressed=event.type in WRITES_COMPRESSED)
        if decoder is None:
            return  # another table's
        try:
            self._verify(event, checksum_size)
            rows, complete = decoder()
        except (ValueError, IndexError, OverflowError):
            self._unsupported("rows")
            return
        opened.rows += rows
        opened.size += event.end - event.start
        if not complete:
            opened.doubtful = True
        if opened.size <= PIECE_BYTES:
            return
        # Held no longer: the memory for a transaction is bounded.
        if opened.is_xa:
            opened.forgotten = True
        else:
            self._finished.add_piece(opened.rows, opened.size)
        opened.rows, opened.size = [], 0

    @staticmethod
    def _verify(event: Event, checksum_size: int) -> None:
        if checksum_size and not has_checksum(event):
            raise ValueError("the checksum of the event does not fit its bytes")

    def _commit(self, event: Event) -> None:
        opened = self._transaction()
        self._open = None
        at = self._commit_time if self._commit_time is not None else float(event.timestamp)
        self._commit_time = None
        self._finish(opened.rows, opened.size, opened.doubtful, at)

    def _finish(self, rows: list[OutboxRow], size: int, doubtful: bool, committed_at: float) -> None:
        unreadable, self._unreadable = self._unreadable, False
        self._finished.add(rows, size, doubtful, unreadable, self._place.position, committed_at)

    # --- statements ----------------------------------------------------------------------------------------------

    def _query(self, event: Event, statement: bytes) -> None:
        verb = statement[:24].lstrip().upper()
        if verb == b"BEGIN":
            self._transaction().begun = True
        elif verb == b"COMMIT":  # how transactions on engines without transactions end
            self._commit(event)
        elif verb.startswith(b"ROLLBACK TO"):
            if self._open is not None and self._open.rows:
                self._open.doubtful = True
        elif verb.startswith(b"ROLLBACK"):
            self._open = None
        elif verb.startswith(b"SAVEPOINT"):
            pass
        elif verb.startswith(b"XA "):
            self._xa(event, statement)
        else:
            self._other_statement(statement)

    def _other_statement(self, statement: bytes) -> None:
        begun = self._open is not None and self._open.begun
        if self._tables.is_mentioned(statement):
            self._tables.forget_names()
            if begun:  # logged as text: binlog_format is not ROW in that session
                self._unsupported("statement")
        if statement.rstrip().upper().endswith(b"START TRANSACTION"):  # CREATE TABLE … SELECT, its rows follow
            self._transaction().begun = True
        elif not begun:
            self._open = None  # DDL and its like are transactions by themselves

    def _compressed_query(self, event: Event, checksum_size: int) -> None:
        try:
            self._query(event, mariadb_inflate(parse_query(event, checksum_size)))
        except DAMAGED:
            self._unsupported("mariadb_query_compressed")

    def _unsupported(self, kind: str) -> None:
        self._unreadable = True
        if self._open is not None:
            self._open.forgotten = True
        self._on_unsupported(kind)

    # --- XA --------------------------------------------------------------------------------------------------------

    def _xa(self, event: Event, statement: bytes) -> None:
        verb = statement.split(None, 2)[1].upper()
        if verb in (b"START", b"BEGIN"):
            opened = self._transaction()
            opened.begun = opened.is_xa = True
        elif verb == b"COMMIT":
            ids = self._prepared.forget(parse_xid(statement))
            self._open = None
            if ids is None:
                self._unreadable = True  # prepared before we began to read: the table knows its rows
            else:
                self._finish([_only_id(row_id) for row_id in ids], 0, True, float(event.timestamp))
        elif verb == b"ROLLBACK":
            self._prepared.forget(parse_xid(statement))
            self._open = None

    def _xa_prepare(self, event: Event) -> None:
        one_phase, xid = parse_xa_prepare(event)
        opened = self._transaction()
        if one_phase:  # XA COMMIT … ONE PHASE
            self._commit(event)
            return
        self._open = None
        if not opened.forgotten:
            self._prepared.remember(xid, opened.rows)


def _only_id(row_id: int) -> OutboxRow:
    return OutboxRow(row_id, "", "", b"", b"", "", 0, None, None)
