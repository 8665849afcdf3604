"""XA transactions: how the binlog names them, and which rows are in those that are prepared."""

from __future__ import annotations

import re
from struct import Struct
from typing import NamedTuple

from cdc_relay.binlog.events import Event
from cdc_relay.outbox.row import OutboxRow

#: Prepared transactions are remembered by their ids, up to so many ids in all; the sweep has the rest.
_REMEMBERED_ROWS = 100_000


class Xid(NamedTuple):
    """The name of an XA transaction."""

    format_id: int
    global_part: bytes
    branch_part: bytes


#: XA_PREPARE: one phase u8, format id u32, length of the global part u32, of the branch part u32, then both parts.
_XA_PREPARE = Struct("<BIII")
#: How both servers write an XID into a statement, whatever the client wrote.
_XID_TEXT = re.compile(rb"X'([0-9a-fA-F]*)',X'([0-9a-fA-F]*)',(\d+)")


def parse_xa_prepare(event: Event) -> tuple[bool, Xid]:
    """``(one phase, name)`` of an XA_PREPARE event; one phase means that it commits."""
    one_phase, format_id, global_size, branch_size = _XA_PREPARE.unpack_from(event.data, event.body)
    start = event.body + _XA_PREPARE.size
    middle = start + global_size
    return bool(one_phase), Xid(format_id, event.data[start:middle], event.data[middle : middle + branch_size])


def parse_xid(statement: bytes) -> Xid | None:
    """The name in ``XA COMMIT X'…',X'…',1`` and its like; None when it is written otherwise."""
    found = _XID_TEXT.search(statement)
    if found is None:
        return None
    return Xid(int(found[3]), bytes.fromhex(found[1].decode()), bytes.fromhex(found[2].decode()))


class PreparedTransactions:
    """The ids of the rows of each, from its XA PREPARE until its XA COMMIT or XA ROLLBACK."""

    def __init__(self) -> None:
        self._ids: dict[Xid, list[int]] = {}
        self._rows = 0

    def remember(self, xid: Xid, rows: list[OutboxRow]) -> None:
        """Keep the ids of its rows, unless that were too many in all."""
        if self._rows + len(rows) <= _REMEMBERED_ROWS:
            self._ids[xid] = [row.id for row in rows]
            self._rows += len(rows)

    def forget(self, xid: Xid | None) -> list[int] | None:
        """The ids, for the last time; None when they are not known, as for a name that could not be read."""
        ids = self._ids.pop(xid, None) if xid is not None else None
        self._rows -= len(ids or ())
        return ids
