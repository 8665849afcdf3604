"""The binlog as a source of outbox rows: ``read()`` gives the next batches of whole transactions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pymysql

from cdc_relay.binlog.batches import TransactionBatch
from cdc_relay.binlog.events import DAMAGED, parse_event
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.binlog.quick import QuickLoop
from cdc_relay.binlog.tables import OutboxTables
from cdc_relay.binlog.transactions import TransactionAssembler
from cdc_relay.errors import DamagedBinlog, DatabaseError, DatabaseUnavailable, StaleSource
from cdc_relay.outbox.database import is_answer
from cdc_relay.outbox.packets import PacketSplitter, Payload

_OK = 0x00
_EOF = 0xFE
_ERR = 0xFF

#: ER_MASTER_FATAL_ERROR_READING_BINLOG (MySQL and MariaDB) and MariaDB's ER_SLAVE_SAME_ID.
_FATAL_READING = 1236
_SAME_ID = 4052
#: MariaDB 12.3 and later, whose binlog may lie in InnoDB (ER_ENGINE_BINLOG_REQUIRES_GTID).
_WANTS_GTID = 4246
#: ER_SPECIFIC_ACCESS_DENIED_ERROR: waiting does not help.
_DENIED = 1227


class ByteStream(Protocol):
    """An open dump connection."""

    def receive(self) -> bytes:
        """The next bytes; waits for them."""

    @property
    def has_more(self) -> bool:
        """Whether bytes have come already."""

    def close(self) -> None:
        """Give the connection up."""


class PacketStream(Protocol):
    """An open dump connection whose packets the library splits."""

    def packets(self) -> list[bytes]:
        """The next payloads; waits for the first. Raises pymysql.err.MySQLError too."""

    @property
    def has_more(self) -> bool:
        """Whether some have come already."""

    def close(self) -> None:
        """Give the connection up."""


class BinlogSource:
    """One reader of one dump connection; after any error it is closed and a new one made.

    This one, the *wire* reader, splits the bytes of the connection itself and reads most of them in the quick loop.
    """

    def __init__(
        self,
        stream: ByteStream,
        start: BinlogPosition,
        tables: OutboxTables,
        *,
        on_unsupported: Callable[[str], None],
        file_created_at: int | None = None,
    ) -> None:
        """Read from ``start``. ``file_created_at`` is when its file was begun, if that is known.

        Another time means another file of the same name (RESET BINARY LOGS): StaleSource is raised.
        """
        self._stream = stream
        self._splitter = PacketSplitter()
        tables.forget_ids()
        self._assembler = TransactionAssembler(start, tables, on_unsupported)
        self._quick = QuickLoop(self._assembler, tables)
        self._start = start
        self._expected_created_at = file_created_at

    @property
    def files_created(self) -> dict[str, int]:
        """When each file that was read was begun, in seconds since 1970."""
        return self._assembler.files_created

    def read(self) -> list[TransactionBatch]:
        """What the next bytes complete; may be empty. Waits for bytes at most as long as heartbeats take.

        Raises DatabaseUnavailable, StaleSource or DatabaseError; the source is of no use after that.
        """
        try:
            self._receive()
        except DAMAGED as error:
            raise DamagedBinlog(f"the binlog stream is damaged: {error}") from error
        return self._assembler.take()

    @property
    def has_more(self) -> bool:
        """Whether more has come already, so that ``read`` would not wait."""
        return self._stream.has_more

    def close(self) -> None:
        """Give the connection up; wakes a ``read`` of another thread."""
        self._stream.close()

    def _receive(self) -> None:
        splitter, quick = self._splitter, self._quick
        data = splitter.add(self._stream.receive())
        at, total = 0, len(data)
        while at < total:
            if not splitter.inside_long:
                before = -1
                while at != before and at < total:
                    before, at = at, quick.run(data, at)
            payload, end = splitter.take(data, at)
            if end == at:
                break
            at = end
            if payload is not None:
                self._take(payload)
        splitter.keep(data, at)

    def _take(self, payload: Payload) -> None:
        status = payload.data[payload.start] if payload.end > payload.start else None
        if status == _OK:
            self._assembler.feed(parse_event(payload.data, payload.start + 1, payload.end))
            self._check_file()
        elif status == _ERR:
            raise _refusal(payload)
        elif status == _EOF:
            raise DatabaseUnavailable("the server ended the binlog stream")
        else:
            raise DamagedBinlog(f"the binlog stream is damaged: a packet begins with {status}")

    def _check_file(self) -> None:
        expected, found = self._expected_created_at, self._assembler.files_created.get(self._start.file)
        if expected and found:
            self._expected_created_at = None
            if found != expected:
                raise StaleSource(
                    f"{self._start.file} is another file than the one that was read: it was begun at {found}, not at "
                    f"{expected} (seconds since 1970); the binary logs were reset",
                    reason="reset",
                )


class LibrarySource(BinlogSource):
    """The *library* reader: packets come from PyMySQL, and every event goes to the assembler.

    Slower, and independent of what the wire reader relies on.
    """

    def __init__(
        self,
        stream: PacketStream,
        start: BinlogPosition,
        tables: OutboxTables,
        *,
        on_unsupported: Callable[[str], None],
        file_created_at: int | None = None,
    ) -> None:
        """See BinlogSource."""
        super().__init__(
            _NoBytes(stream), start, tables, on_unsupported=on_unsupported, file_created_at=file_created_at
        )
        self._packets = stream

    def _receive(self) -> None:
        try:
            payloads = self._packets.packets()
        except pymysql.err.MySQLError as error:
            if not is_answer(error):
                raise DatabaseUnavailable(f"the binlog connection broke: {error}") from error
            code, text = (*error.args, "")[:2]
            raise _error(code, str(text)) from error
        for data in payloads:
            self._take(Payload(data, 0, len(data)))


class _NoBytes:
    """What a LibrarySource has in place of a byte stream."""

    def __init__(self, stream: PacketStream) -> None:
        self._packets = stream
        self.close = stream.close

    @property
    def has_more(self) -> bool:
        return self._packets.has_more

    def receive(self) -> bytes:
        raise AssertionError("the library reader takes packets")


def _refusal(payload: Payload) -> DatabaseError:
    data, start, end = payload
    code = int.from_bytes(data[start + 1 : start + 3], "little")
    message = data[start + 3 : end]
    if message[:1] == b"#":  # SQL state, six bytes with its mark
        message = message[6:]
    return _error(code, message.decode("utf-8", "replace"))


def _error(code: int, text: str) -> DatabaseError:
    if code == _SAME_ID or (code == _FATAL_READING and "same server_" in text):
        return DatabaseUnavailable(
            f"another client reads the binlog with our server id: {text}",
            hint="give each relay and replica its own tail.server_id, or leave it unset for a random one",
        )
    if code == _FATAL_READING:
        reason = "purged" if "find first log file" in text or "purged" in text else "position"
        return StaleSource(f"the server cannot send the binlog from here: {text}", reason=reason)
    if code == _DENIED:
        return DatabaseError(
            f"this account may not read the binlog: {text}", hint="GRANT REPLICATION SLAVE ON *.* to it"
        )
    if code == _WANTS_GTID:
        return DatabaseError(
            f"the binlog of this server cannot be followed by file and position: {text}",
            hint="leave binlog_storage_engine unset in my.cnf and restart the server, or let cdc-relay sweep do it all",
        )
    return DatabaseUnavailable(f"the server ended the binlog stream with error {code}: {text}")
