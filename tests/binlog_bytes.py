"""A binlog made of nothing: events as MySQL and MariaDB write them, byte by byte, from what the manuals say.

Nothing here uses the code under test, except for the numbers of the event and column types and the row that it gives.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cdc_relay.binlog.events import EventType
from cdc_relay.binlog.table_map import ColumnType as T
from cdc_relay.outbox.row import OutboxRow

SCHEMA, TABLE = "shop", "agent_outbox_messages"


def packed(number: int) -> bytes:
    """A length-encoded integer."""
    for limit, mark, size in ((251, b"", 1), (1 << 16, b"\xfc", 2), (1 << 24, b"\xfd", 3), (1 << 64, b"\xfe", 8)):
        if number < limit:
            return mark + number.to_bytes(size, "little")
    raise ValueError(number)


def packet(payload: bytes, sequence: int = 0) -> bytes:
    """A payload as the packets that carry it."""
    out = b""
    rest = payload
    while True:
        piece, rest = rest[: 2**24 - 1], rest[2**24 - 1 :]
        out += len(piece).to_bytes(3, "little") + bytes([sequence & 0xFF]) + piece
        sequence += 1
        if len(piece) < 2**24 - 1:
            return out


def datetime2(at: datetime, digits: int) -> bytes:
    """A DATETIME(digits), as my_time.cc packs it."""
    date = (at.year * 13 + at.month) << 5 | at.day
    time = at.hour << 12 | at.minute << 6 | at.second
    whole = ((date << 17 | time) + 0x8000000000).to_bytes(5, "big")
    size = (digits + 1) // 2
    unit = (0, 10_000, 100, 1)[size]
    return whole + ((at.microsecond // unit).to_bytes(size, "big") if size else b"")


# --- columns --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column, and how one of its values is written."""

    name: str
    type: int
    metadata: bytes
    encode: Callable[[Any], bytes]
    collation: int | None = None
    """Of a character column."""


def integer(name: str, kind: int, size: int) -> Column:
    return Column(name, kind, b"", lambda value: (value & (1 << 8 * size) - 1).to_bytes(size, "little"))


def bigint(name: str) -> Column:
    return integer(name, T.LONGLONG, 8)


def varchar(name: str, max_bytes: int, collation: int = 255) -> Column:
    size = 2 if max_bytes > 255 else 1
    return Column(
        name,
        T.VARCHAR,
        max_bytes.to_bytes(2, "little"),
        lambda value: len(_raw(value)).to_bytes(size, "little") + _raw(value),
        collation,
    )


def char(name: str, max_bytes: int, collation: int = 255) -> Column:
    size = 2 if max_bytes > 255 else 1
    # Field_string: the two upper bits of the length, inverted, lie in bits 4 and 5 of the type's byte.
    first = T.STRING ^ ((max_bytes & 0x300) >> 4)
    return Column(
        name,
        T.STRING,
        bytes([first, max_bytes & 0xFF]),
        lambda value: len(_raw(value)).to_bytes(size, "little") + _raw(value),
        collation,
    )


def blob(name: str, size: int = 4, collation: int | None = 255, kind: int = T.BLOB) -> Column:
    return Column(
        name, kind, bytes([size]), lambda value: len(_raw(value)).to_bytes(size, "little") + _raw(value), collation
    )


def wall_time(name: str, digits: int = 6) -> Column:
    return Column(name, T.DATETIME2, bytes([digits]), lambda value: datetime2(value, digits))


def opaque(name: str, kind: int, metadata: bytes = b"") -> Column:
    """A column whose values are given as the bytes that stand in the row."""
    return Column(name, kind, metadata, lambda value: value)


def _raw(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


#: The table as ``init-db`` makes it.
OUTBOX: tuple[Column, ...] = (
    bigint("id"),
    varchar("biz_type", 256),
    varchar("topic", 512),
    varchar("message_key", 512),
    blob("payload"),
    varchar("status", 128),
    integer("retry_count", T.LONG, 4),
    integer("max_retry", T.LONG, 4),
    wall_time("next_retry_at"),
    blob("last_error", 2),
    wall_time("published_at"),
    wall_time("consumed_at"),
    wall_time("created_at"),
    wall_time("updated_at"),
)
OUTBOX_NAMES = tuple(column.name for column in OUTBOX)


def outbox_row(row_id: int, key: str = "k", payload: str = "{}", **changes: Any) -> OutboxRow:
    """A fresh row as an application inserts it."""
    at = datetime(2026, 1, 2, 3, 4, 5, 678901)
    row = OutboxRow(row_id, "chat", "topic", key.encode(), payload.encode(), "pending", 0, at, at)
    return row._replace(**changes)


def values_of(row: OutboxRow) -> dict[str, Any]:
    return row._asdict() | {"max_retry": 20}


# --- TABLE_MAP and rows ---------------------------------------------------------------------------------------------


def table_map_body(
    columns: Sequence[Column],
    schema: str = SCHEMA,
    table: str = TABLE,
    *,
    charsets: str = "each",
    names: bool = False,
    extra: Iterable[tuple[int, bytes]] = (),
) -> bytes:
    """What follows table id and flags. ``charsets`` is "each", "default" or "none"; ``names`` is metadata FULL."""
    metadata = b"".join(column.metadata for column in columns)
    body = packed(len(schema.encode()))[:1] + schema.encode() + b"\0"
    body += packed(len(table.encode()))[:1] + table.encode() + b"\0"
    body += packed(len(columns)) + bytes(column.type for column in columns)
    body += packed(len(metadata)) + metadata + b"\xff" * ((len(columns) + 7) // 8)
    collations = [column.collation for column in columns if column.collation is not None]
    fields = list(extra)
    if collations and charsets == "each":
        fields.append((3, b"".join(map(packed, collations))))
    elif collations and charsets == "default":
        others = [(at, collation) for at, collation in enumerate(collations) if collation != collations[0]]
        fields.append((2, packed(collations[0]) + b"".join(packed(at) + packed(c) for at, c in others)))
    if names:
        fields.append((4, b"".join(packed(len(c.name.encode())) + c.name.encode() for c in columns)))
    return body + b"".join(bytes([kind]) + packed(len(value)) + value for kind, value in fields)


def bitmap(flags: Sequence[bool]) -> bytes:
    number = sum(1 << at for at, flag in enumerate(flags) if flag)
    return number.to_bytes((len(flags) + 7) // 8, "little")


def row_image(columns: Sequence[Column], values: dict[str, Any]) -> bytes:
    """One row: the null bitmap, then what is not NULL. ``columns`` are those present."""
    nulls = bitmap([values.get(column.name) is None for column in columns])
    return nulls + b"".join(c.encode(values[c.name]) for c in columns if values.get(c.name) is not None)


def rows_body(
    columns: Sequence[Column],
    rows: Iterable[dict[str, Any]],
    *,
    table_id: int = 1,
    present: Sequence[bool] | None = None,
    extra: bytes | None = b"",
    compress: bool = False,
) -> bytes:
    """The body of a row event. ``extra`` is what version 2 has after the flags; None writes version 1."""
    present = [True] * len(columns) if present is None else present
    there = [column for column, flag in zip(columns, present, strict=True) if flag]
    images = b"".join(row_image(there, values) for values in rows)
    head = table_id.to_bytes(6, "little") + b"\x01\x00"
    if extra is not None:
        head += (2 + len(extra)).to_bytes(2, "little") + extra
    return head + packed(len(columns)) + bitmap(present) + (mariadb_compressed(images) if compress else images)


def mariadb_compressed(data: bytes, *, size_bytes: int = 4) -> bytes:
    """As log_event.cc (binlog_buf_compress) writes it."""
    return bytes([0x80 | size_bytes]) + len(data).to_bytes(size_bytes, "big") + zlib.compress(data)


# --- events ---------------------------------------------------------------------------------------------------------


@dataclass
class Binlog:
    """Writes events one after another, as one server writes one file: each knows where it ends."""

    file: str = "binlog.000001"
    offset: int = 4
    checksum: bool = True
    timestamp: int = 1_700_000_000
    server_id: int = 1
    columns: tuple[Column, ...] = OUTBOX
    log: list[bytes] = field(default_factory=list)
    """Everything written so far."""

    @property
    def position(self) -> tuple[str, int]:
        return self.file, self.offset

    def event(self, kind: int, body: bytes = b"", *, in_file: bool = True) -> bytes:
        """Write one event; ``in_file`` is false for those that a server makes up while sending."""
        size = 19 + len(body) + (4 if self.checksum else 0)
        if in_file:
            self.offset += size
        end = self.offset & 0xFFFFFFFF if in_file else 0
        data = struct.pack("<IBIIIH", self.timestamp, kind, self.server_id, size, end, 0) + body
        if self.checksum:
            data += zlib.crc32(data).to_bytes(4, "little")
        self.log.append(data)
        return data

    def inner(self, kind: int, body: bytes = b"") -> bytes:
        """An event inside a TRANSACTION_PAYLOAD: without checksum and place."""
        return struct.pack("<IBIIIH", self.timestamp, kind, self.server_id, 19 + len(body), 0, 0) + body

    def format(self, *, in_file: bool = False) -> bytes:
        """FORMAT_DESCRIPTION: its own four last bytes are always there, whatever it announces."""
        algorithm = 1 if self.checksum else 0
        version = b"9.7.4".ljust(50, b"\0")
        body = b"\x04\x00" + version + b"\0" * 4 + b"\x13" + b"\x00" * 40 + bytes([algorithm])
        had, self.checksum = self.checksum, True
        data = self.event(EventType.FORMAT_DESCRIPTION, body, in_file=in_file)
        self.checksum = had
        return data

    def rotate(self, file: str, offset: int = 4, *, made_up: bool = True) -> bytes:
        """The stream goes on elsewhere; events written from here on are there."""
        had, self.timestamp = self.timestamp, 0 if made_up else self.timestamp
        data = self.event(EventType.ROTATE, offset.to_bytes(8, "little") + file.encode(), in_file=not made_up)
        self.timestamp = had
        self.file, self.offset = file, offset
        return data

    def start(self) -> list[bytes]:
        """What a server sends first."""
        return [self.rotate(self.file, self.offset), self.format()]

    def gtid(self, committed_at: float | None = None, kind: int = EventType.ANONYMOUS_GTID) -> bytes:
        body = b"\x01" + b"\0" * 16 + b"\0" * 8 + b"\x02" + b"\0" * 16
        if committed_at is not None:
            body += int(committed_at * 1_000_000).to_bytes(7, "little")
        return self.event(kind, body)

    def mariadb_gtid(self, flags: int = 0) -> bytes:
        return self.event(EventType.MARIADB_GTID, b"\x05" + b"\0" * 7 + b"\0" * 4 + bytes([flags]) + b"\0" * 6)

    def query_body(self, sql: str | bytes, status: bytes = b"", schema: str = SCHEMA) -> bytes:
        head = struct.pack("<IIBHH", 7, 0, len(schema), 0, len(status))
        return head + status + schema.encode() + b"\0" + _raw(sql)

    def query(self, sql: str | bytes, status: bytes = b"") -> bytes:
        return self.event(EventType.QUERY, self.query_body(sql, status))

    def xid(self) -> bytes:
        return self.event(EventType.XID, b"\x07" + b"\0" * 7)

    def xa_prepare(self, gtrid: bytes, bqual: bytes = b"", number: int = 1, *, one_phase: bool = False) -> bytes:
        body = bytes([one_phase]) + struct.pack("<iii", number, len(gtrid), len(bqual)) + gtrid + bqual
        return self.event(EventType.XA_PREPARE, body)

    def table_map_body(self, table_id: int = 1, table: str = TABLE, **options: Any) -> bytes:
        columns = self.columns if table == TABLE else (bigint("id"),)
        return table_id.to_bytes(6, "little") + b"\x01\x00" + table_map_body(columns, table=table, **options)

    def table_map(self, table_id: int = 1, table: str = TABLE, **options: Any) -> bytes:
        return self.event(EventType.TABLE_MAP, self.table_map_body(table_id, table, **options))

    def rows(self, *rows: OutboxRow, table_id: int = 1, kind: int = EventType.WRITE_ROWS, **options: Any) -> bytes:
        body = rows_body(self.columns, [values_of(row) for row in rows], table_id=table_id, **options)
        return self.event(kind, body)

    def insert(self, *rows: OutboxRow, table_id: int = 1) -> list[bytes]:
        """TABLE_MAP and rows."""
        return [self.table_map(table_id), self.rows(*rows, table_id=table_id)]

    def transaction(self, *rows: OutboxRow, committed_at: float | None = None) -> list[bytes]:
        """A whole transaction with these rows."""
        return [self.gtid(committed_at), self.query("BEGIN"), *self.insert(*rows), self.xid()]

    def payload(self, *inner: bytes, compression: int | None = 255, content: bytes | None = None) -> bytes:
        """TRANSACTION_PAYLOAD with these inner events; ``content`` is what they are compressed to."""
        raw = b"".join(inner)
        content = raw if content is None else content
        body = b""
        if compression is not None:
            body += packed(2) + packed(len(packed(compression))) + packed(compression)
        body += packed(3) + packed(len(packed(len(raw)))) + packed(len(raw))
        body += packed(1) + packed(len(packed(len(content)))) + packed(len(content)) + packed(0)
        return self.event(EventType.TRANSACTION_PAYLOAD, body + content)
