"""The frame grammar of binlog events, as far as the relay reads it.

Source: MySQL Internals, "Binlog Event", "Binlog Event Header", "Rows Event", "Table Map Event", "Query Event",
"Rotate Event"; MySQL source, ``libbinlogevents/include``; MariaDB Knowledge Base, "Replication Protocol".
Everything is little endian unless it says otherwise.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from struct import Struct
from typing import NamedTuple


class EventType(IntEnum):
    """The types that mean something to the relay; all others are counted as unsupported."""

    QUERY = 2
    STOP = 3
    ROTATE = 4
    INTVAR = 5
    RAND = 13
    USER_VAR = 14
    FORMAT_DESCRIPTION = 15
    XID = 16
    BEGIN_LOAD_QUERY = 17
    EXECUTE_LOAD_QUERY = 18
    TABLE_MAP = 19
    WRITE_ROWS_V1 = 23
    UPDATE_ROWS_V1 = 24
    DELETE_ROWS_V1 = 25
    INCIDENT = 26
    HEARTBEAT = 27
    IGNORABLE = 28
    ROWS_QUERY = 29
    WRITE_ROWS = 30
    UPDATE_ROWS = 31
    DELETE_ROWS = 32
    GTID = 33
    ANONYMOUS_GTID = 34
    PREVIOUS_GTIDS = 35
    TRANSACTION_CONTEXT = 36
    VIEW_CHANGE = 37
    XA_PREPARE = 38
    PARTIAL_UPDATE_ROWS = 39
    TRANSACTION_PAYLOAD = 40
    HEARTBEAT_V2 = 41
    GTID_TAGGED = 42
    MARIADB_ANNOTATE_ROWS = 160
    MARIADB_BINLOG_CHECKPOINT = 161
    MARIADB_GTID = 162
    MARIADB_GTID_LIST = 163
    MARIADB_START_ENCRYPTION = 164
    MARIADB_QUERY_COMPRESSED = 165
    MARIADB_WRITE_ROWS_COMPRESSED_V1 = 166
    MARIADB_UPDATE_ROWS_COMPRESSED_V1 = 167
    MARIADB_DELETE_ROWS_COMPRESSED_V1 = 168
    MARIADB_WRITE_ROWS_COMPRESSED = 169
    MARIADB_UPDATE_ROWS_COMPRESSED = 170
    MARIADB_DELETE_ROWS_COMPRESSED = 171


#: New rows; the same compressed.
WRITES = frozenset({EventType.WRITE_ROWS, EventType.WRITE_ROWS_V1})
WRITES_COMPRESSED = frozenset({EventType.MARIADB_WRITE_ROWS_COMPRESSED, EventType.MARIADB_WRITE_ROWS_COMPRESSED_V1})
#: Rows changed or deleted, compressed or not.
CHANGES = frozenset(
    {
        EventType.UPDATE_ROWS,
        EventType.UPDATE_ROWS_V1,
        EventType.DELETE_ROWS,
        EventType.DELETE_ROWS_V1,
        EventType.PARTIAL_UPDATE_ROWS,
        EventType.MARIADB_UPDATE_ROWS_COMPRESSED,
        EventType.MARIADB_UPDATE_ROWS_COMPRESSED_V1,
        EventType.MARIADB_DELETE_ROWS_COMPRESSED,
        EventType.MARIADB_DELETE_ROWS_COMPRESSED_V1,
    }
)
#: What neither holds rows nor ends a transaction.
NOTHING_FOR_US = frozenset(
    {
        EventType.STOP,
        EventType.INTVAR,
        EventType.RAND,
        EventType.USER_VAR,
        EventType.IGNORABLE,
        EventType.ROWS_QUERY,
        EventType.PREVIOUS_GTIDS,
        EventType.TRANSACTION_CONTEXT,
        EventType.VIEW_CHANGE,
        EventType.MARIADB_ANNOTATE_ROWS,
        EventType.MARIADB_BINLOG_CHECKPOINT,
        EventType.MARIADB_GTID_LIST,
        EventType.MARIADB_START_ENCRYPTION,
        EventType.HEARTBEAT,
        EventType.HEARTBEAT_V2,
    }
)

#: timestamp u32, type u8, server id u32, event size u32, end position u32, flags u16
HEADER = Struct("<IBIIIH")
HEADER_SIZE = HEADER.size
assert HEADER_SIZE == 19

#: What reading an event raises whose bytes are not what they should be.
DAMAGED = (ValueError, IndexError, struct.error)

#: A packet with an event in it, as a replica gets it: length u24 and sequence number u8 as one u32, status u8 (0), then
#: the event's header, of which timestamp, server id and flags are stepped over ("Protocol::Packet", "COM_BINLOG_DUMP").
FRAME = Struct("<IB4xB4xIIxx")
FRAME_SIZE = FRAME.size
assert FRAME_SIZE == 4 + 1 + HEADER_SIZE

#: TABLE_MAP and row events begin with the table id (6 bytes) and flags (2 bytes).
TABLE_ID_SIZE = 6
ROWS_FIXED_SIZE = 8

CHECKSUM_SIZE = 4
CHECKSUM_NONE = 0
CHECKSUM_CRC32 = 1
#: What zlib.crc32 gives for anything that its own CRC32 follows, least byte first, and for nothing else.
CRC32_RESIDUE = 0x2144DF1C

#: FORMAT_DESCRIPTION: binlog version u16, server version 50 bytes, created u32, header size u8, post-header sizes…,
#: checksum algorithm u8, checksum 4 bytes (always there since MySQL 5.6 and MariaDB 5.3).
FORMAT_ALGORITHM_FROM_END = 5

#: QUERY: thread id u32, execution time u32, schema length u8, error code u16, length of the status variables u16.
_QUERY_FIXED = Struct("<IIBHH")
#: The same, of which only the two lengths are wanted.
QUERY_SIZES = Struct("<8xBxxH")

#: GTID: flags u8, source id 16 bytes, number u64, type u8, last committed u64, sequence number u64, then seven bytes
#: with the microseconds since 1970 at which this server committed (the highest bit says that eight more follow).
_GTID_COMMIT_TIME = 1 + 16 + 8 + 1 + 8 + 8
_GTID_COMMIT_TIME_MASK = (1 << 55) - 1


class Event(NamedTuple):
    """One event in ``data`` from ``start`` (its header) to ``end`` (after its checksum)."""

    type: int
    timestamp: int
    """Seconds since 1970 at which the statement began; 0 in events that the server makes up while sending."""
    end_position: int
    """Low 32 bits of the offset after the event; 0 in events that are not in the file."""
    data: bytes
    start: int
    end: int

    @property
    def body(self) -> int:
        """Where the header ends."""
        return self.start + HEADER_SIZE


def parse_event(data: bytes, start: int, end: int) -> Event:
    """The event whose header begins at ``start``; raises ValueError when the sizes do not agree."""
    timestamp, kind, _, size, end_position, _ = HEADER.unpack_from(data, start)
    if size != end - start or size < HEADER_SIZE:
        raise ValueError(f"binlog event of type {kind} says {size} bytes but has {end - start}")
    return Event(kind, timestamp, end_position, data, start, end)


def has_checksum(event: Event) -> bool:
    """Whether the event's last four bytes are the CRC32 of the rest.

    For ROTATE and HEARTBEAT events, which the server makes up with or without one before the format is known.
    """
    content = event.end - CHECKSUM_SIZE
    if content <= event.body:
        return False
    return zlib.crc32(event.data[event.start : content]) == int.from_bytes(event.data[content : event.end], "little")


def parse_rotate(event: Event) -> tuple[str, int]:
    """``(file, offset)`` at which the stream goes on."""
    end = event.end - (CHECKSUM_SIZE if has_checksum(event) else 0)
    offset = int.from_bytes(event.data[event.body : event.body + 8], "little")
    return event.data[event.body + 8 : end].rstrip(b"\0").decode(), offset


def parse_query(event: Event, checksum_size: int) -> bytes:
    """The statement of a QUERY event."""
    _, _, schema_size, _, status_size = _QUERY_FIXED.unpack_from(event.data, event.body)
    start = event.body + _QUERY_FIXED.size + status_size + schema_size + 1
    return event.data[start : event.end - checksum_size]


def parse_commit_time(event: Event, checksum_size: int) -> float | None:
    """Seconds since 1970 at which a GTID or ANONYMOUS_GTID event's transaction committed, to the microsecond.

    None for servers before 8.0, which do not say.
    """
    at = event.body + _GTID_COMMIT_TIME
    if event.end - checksum_size < at + 7:
        return None
    return (int.from_bytes(event.data[at : at + 7], "little") & _GTID_COMMIT_TIME_MASK) / 1e6


def parse_checksum_algorithm(event: Event) -> int:
    """The algorithm that a FORMAT_DESCRIPTION event announces for the events after it."""
    return event.data[event.end - FORMAT_ALGORITHM_FROM_END]


#: MARIADB_GTID: number u64, domain u32, flags u8 (MariaDB source, ``Gtid_log_event``: FL_STANDALONE, FL_PREPARED_XA).
_MARIADB_GTID_FLAGS = 12
_MARIADB_STANDALONE = 0x01
_MARIADB_PREPARED_XA = 0x40


def is_mariadb_standalone(event: Event) -> bool:
    """Whether a MARIADB_GTID begins a single statement and no transaction."""
    return bool(event.data[event.body + _MARIADB_GTID_FLAGS] & _MARIADB_STANDALONE)


def is_mariadb_prepared_xa(event: Event) -> bool:
    """Whether a MARIADB_GTID begins an XA transaction up to its XA PREPARE."""
    return bool(event.data[event.body + _MARIADB_GTID_FLAGS] & _MARIADB_PREPARED_XA)


def is_plain_mariadb_transaction(data: bytes, body: int) -> bool:
    """Whether the MARIADB_GTID whose body is at ``body`` begins a transaction that is not XA."""
    return not data[body + _MARIADB_GTID_FLAGS] & (_MARIADB_STANDALONE | _MARIADB_PREPARED_XA)


def type_name(kind: int) -> str:
    """A metric label for an event type."""
    try:
        return EventType(kind).name.lower()
    except ValueError:
        return f"type_{kind}"
