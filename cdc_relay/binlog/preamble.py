"""What stands before rows, supposed to be what it was the last time.

An application writes the same few statements over and over. From one transaction to the next the events before its
rows keep their sizes and nearly all that the quick loop looks at: only packet numbers, times, positions, GTIDs and
checksums are new. So two *stretches* of events are remembered as the loop last read them, one after another:

* ``Changeover``: XID, GTID, QUERY ``BEGIN``; one transaction ends and the next begins.
* ``RowsHead``: TABLE_MAP and WRITE_ROWS up to its first row.

Where the one follows the other they are verified as one (``Passage``), which costs less. For each there is one
precompiled ``Struct`` of what must be the same, so that a single comparison of tuples verifies it all, and one of what
is new each time. The comparison covers all that the loop would verify event by event: lengths, status, type and event
size, the statement, the TABLE_MAP's bytes, how the rows begin. (Server id and QUERY's error code too, as they lie
between.) What is left to the loop are the numbers that must fit each other: positions, and the size of WRITE_ROWS. A
stretch that is other than supposed is read event by event. It is what is supposed from then on; a changeover only when
the next one is of the same sizes, as learning it for one transaction costs more than it saves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import Any

from cdc_relay.binlog.events import FRAME, FRAME_SIZE, HEADER_SIZE, QUERY_SIZES, ROWS_FIXED_SIZE, TABLE_ID_SIZE
from cdc_relay.binlog.tables import QuickRows, Shape

Unpack = Callable[[bytes, int], tuple[Any, ...]]

#: Of a packet's frame (``events.FRAME``) what stays: length u24; status; type, server id and event size as one.
_STAYS = "3sxB4x9s4x2x"
#: And what does not: the position of its end.
_END = "18xI2x"
#: The same for WRITE_ROWS, whose size does not stay: status; type and server id as one.
_WRITE_STAYS = "4xB4x5s8x2x"
#: Length u24 and sequence number as one u32, event size, the position of its end.
_WRITE_SIZES = "I10xII2x"
assert all(Struct("<" + code).size == FRAME_SIZE for code in (_STAYS, _END, _WRITE_STAYS, _WRITE_SIZES))

#: QUERY up to its status variables: two lengths stay, with the error code between them.
_QUERY_FIXED = "8x5s"
assert Struct("<" + _QUERY_FIXED).size == QUERY_SIZES.size
BEGIN = b"BEGIN"

#: Layouts that are remembered: few sizes occur.
_LAYOUTS = 256


@dataclass(slots=True)
class Changeover:
    """XID, GTID and QUERY ``BEGIN``, one after another."""

    size: int
    """Bytes of the three packets."""
    stays: Unpack
    """What must be the same, from the XID's packet on …"""
    expected: tuple[Any, ...]
    """… as it was the last time."""
    ends: Unpack
    """``(end of XID, end of GTID, end of QUERY)``: positions, low 32 bits."""
    xid_end: int
    gtid_end: int
    query_end: int
    """How far these are behind the event before them all."""
    gtid_at: int
    """Where the GTID's packet begins, from the XID's on."""
    checksum: int
    """Bytes of each event's checksum, for which all this holds."""
    codes: tuple[str, str]
    """Of the two structs, each over the whole size."""


@dataclass(slots=True)
class RowsHead:
    """A TABLE_MAP of the outbox and, right behind it, a WRITE_ROWS up to its first row."""

    size: int
    """Bytes up to the first row."""
    stays: Unpack
    """What must be the same, from the TABLE_MAP's packet on …"""
    expected: tuple[Any, ...]
    """… as it was the last time."""
    sizes: Unpack
    """``(end of TABLE_MAP, length and number of the packet with WRITE_ROWS, its event size, its end)``."""
    map_size: int
    """Of the TABLE_MAP event."""
    write_at: int
    """Where the packet with WRITE_ROWS begins, from the TABLE_MAP's on."""
    table_id: bytes
    map_body: bytes
    """The TABLE_MAP after table id and flags …"""
    shape: Shape
    """… and what it was known to mean."""
    quick: QuickRows
    checksum: int
    """Bytes of each event's checksum, for which all this holds."""
    codes: tuple[str, str]
    """Of the two structs."""


@dataclass(slots=True)
class Passage:
    """A changeover and, right behind it, the head of rows: from the rows of one transaction to those of the next."""

    size: int
    """Bytes up to the first row."""
    stays: Unpack
    """What must be the same, from the XID's packet on …"""
    expected: tuple[Any, ...]
    """… as it was the last time."""
    numbers: Unpack
    """What ``Changeover.ends`` and then what ``RowsHead.sizes`` give."""
    changeover: Changeover
    head: RowsHead


def learn_changeover(data: bytes, xid_at: int, gtid_at: int, query_at: int, checksum: int) -> Changeover | None:
    """The stretch whose packets begin there, each verified already; None when others stand between them."""
    end = _packet_end(data, query_at)
    if _packet_end(data, xid_at) != gtid_at or _packet_end(data, gtid_at) != query_at:
        return None
    codes = _changeover_codes(gtid_at - xid_at, query_at - gtid_at, end - query_at, checksum)
    stays, ends = map(_unpacking, codes)
    xid_end = _event_size(gtid_at - xid_at)
    gtid_end = xid_end + _event_size(query_at - gtid_at)
    query_end = gtid_end + _event_size(end - query_at)
    return Changeover(
        end - xid_at, stays, stays(data, xid_at), ends, xid_end, gtid_end, query_end, gtid_at - xid_at, checksum, codes
    )


def learn_rows_head(
    data: bytes, map_at: int, write_at: int, start: int, shape: Shape, quick: QuickRows, checksum: int
) -> RowsHead:
    """The stretch of two packets, each verified already, of which the second one's rows begin at ``start``."""
    codes = _rows_codes(write_at - map_at, len(quick.head), checksum)
    stays, sizes = map(_unpacking, codes)
    table_id_at = map_at + FRAME_SIZE
    return RowsHead(
        start - map_at,
        stays,
        stays(data, map_at),
        sizes,
        _event_size(write_at - map_at),
        write_at - map_at,
        data[table_id_at : table_id_at + TABLE_ID_SIZE],
        data[table_id_at + ROWS_FIXED_SIZE : write_at - checksum],
        shape,
        quick,
        checksum,
        codes,
    )


def learn_passage(data: bytes, at: int, changeover: Changeover, head: RowsHead) -> Passage:
    """The two stretches, each verified already, that begin at ``at`` one behind the other."""
    stays, numbers = (_unpacking(first + second) for first, second in zip(changeover.codes, head.codes, strict=True))
    return Passage(changeover.size + head.size, stays, stays(data, at), numbers, changeover, head)


@lru_cache(_LAYOUTS)
def _unpacking(code: str) -> Unpack:
    return Struct("<" + code).unpack_from


def _changeover_codes(xid: int, gtid: int, query: int, checksum: int) -> tuple[str, str]:
    """For packets of these sizes."""
    names = query - FRAME_SIZE - QUERY_SIZES.size - len(BEGIN) - checksum  # status variables, schema and its zero
    xid_stays = f"{_STAYS}{xid - FRAME_SIZE}x"
    gtid_stays = f"{_STAYS}{gtid - FRAME_SIZE}x"
    query_stays = f"{_STAYS}{_QUERY_FIXED}{names}x{len(BEGIN)}s{checksum}x"
    ends = (f"{_END}{packet - FRAME_SIZE}x" for packet in (xid, gtid, query))
    return xid_stays + gtid_stays + query_stays, "".join(ends)


def _rows_codes(table_map: int, head: int, checksum: int) -> tuple[str, str]:
    """For a TABLE_MAP's packet of this size, and so many bytes between a row event's fixed part and its rows."""
    flags = ROWS_FIXED_SIZE - TABLE_ID_SIZE
    map_stays = f"{_STAYS}{table_map - FRAME_SIZE - checksum}s{checksum}x"
    write_stays = f"{_WRITE_STAYS}{TABLE_ID_SIZE}s{flags}x{head}s"
    sizes = f"{_END}{table_map - FRAME_SIZE}x{_WRITE_SIZES}"
    return map_stays + write_stays, sizes


def _packet_end(data: bytes, at: int) -> int:
    length: int = FRAME.unpack_from(data, at)[0] & 0xFFFFFF
    return at + 4 + length


def _event_size(packet_size: int) -> int:
    return packet_size - FRAME_SIZE + HEADER_SIZE
