"""The quick loop: ordinary transactions, many at a time, straight from the received bytes.

Nearly everything in a binlog is one of a few events that mean the same every time: a GTID, BEGIN, a TABLE_MAP that was
seen before, rows, XID. This loop reads those and nothing else. Whatever is in any way unusual it leaves where it lies:
the assembler (``transactions.py``), which alone knows what events mean, is fed it, and the loop goes on behind it. So
the loop must only be *certain* of what it takes, never complete, and the state of reading is the assembler's: the loop
borrows the open transaction and gives it back.

It is one long function on purpose: a call for each event would cost more than the work. Names of the bytes it reads:
``events.py``.
"""

from __future__ import annotations

from zlib_ng.zlib_ng import crc32

from cdc_relay.binlog.batches import JOINED_ROWS
from cdc_relay.binlog.events import (
    CRC32_RESIDUE,
    FRAME,
    FRAME_SIZE,
    HEADER,
    HEADER_SIZE,
    QUERY_SIZES,
    ROWS_FIXED_SIZE,
    TABLE_ID_SIZE,
    EventType,
    is_plain_mariadb_transaction,
    parse_commit_time,
    parse_event,
)
from cdc_relay.binlog.preamble import (
    BEGIN,
    Changeover,
    Passage,
    RowsHead,
    learn_changeover,
    learn_passage,
    learn_rows_head,
)
from cdc_relay.binlog.tables import OutboxTables
from cdc_relay.binlog.transactions import PIECE_BYTES, OpenTransaction, TransactionAssembler

# As plain integers: comparing with an IntEnum costs more than reading the event.
_TABLE_MAP, _XID, _QUERY = int(EventType.TABLE_MAP), int(EventType.XID), int(EventType.QUERY)
_MARIADB_GTID = int(EventType.MARIADB_GTID)
_WRITES = frozenset(map(int, (EventType.WRITE_ROWS, EventType.WRITE_ROWS_V1)))
_GTIDS = frozenset(map(int, (EventType.GTID, EventType.ANONYMOUS_GTID)))
_CHANGES = frozenset(
    map(
        int,
        (
            EventType.UPDATE_ROWS,
            EventType.DELETE_ROWS,
            EventType.UPDATE_ROWS_V1,
            EventType.DELETE_ROWS_V1,
            EventType.PARTIAL_UPDATE_ROWS,
        ),
    )
)
#: Texts beside the rows, for people.
_ANNOTATIONS = frozenset(map(int, (EventType.ROWS_QUERY, EventType.MARIADB_ANNOTATE_ROWS)))

#: Where an event's body begins, and what follows the fixed part of a row event's, counted from its packet.
_BODY = FRAME_SIZE
_TABLE_ID_END = FRAME_SIZE + TABLE_ID_SIZE
_AFTER_FIXED = FRAME_SIZE + ROWS_FIXED_SIZE
_HEADER_AT = FRAME_SIZE - HEADER_SIZE
_KIND = _HEADER_AT + 4
#: Where a statement begins, without the lengths of schema and status variables, and with the zero after the schema.
_QUERY_TEXT = FRAME_SIZE + QUERY_SIZES.size + 1

#: An event that fills its packet, 16 MiB - 1 with the status before it, is followed by the rest of its payload, be it
#: nothing.
_GOES_ON = 0xFFFFFF - 1

#: In place of where a transaction's GTID lies: in an earlier buffer, and the assembler has read it; it has none.
_LENT = -1
_NO_GTID = -2


class QuickLoop:
    """Reads for one assembler."""

    def __init__(self, assembler: TransactionAssembler, tables: OutboxTables) -> None:
        self._assembler = assembler
        self._tables = tables
        self._changeover: Changeover | None = None
        self._head: RowsHead | None = None
        self._passage: Passage | None = None

    def run(self, data: bytes, at: int) -> int:
        """Read whole packets from ``at`` on, as long as they are ordinary, or until a batch is full; where it ends."""
        assembler = self._assembler
        ordinary, opened = assembler.lend()
        if not ordinary:
            return at
        unpack, query_sizes = FRAME.unpack_from, QUERY_SIZES.unpack_from
        by_id, by_map, foreign_maps = self._tables.by_id, self._tables.by_map, self._tables.foreign_maps
        checksum = assembler.checksum_size
        changeover, head, passage = self._still_supposed(checksum)
        total = len(data)
        last = total - FRAME_SIZE

        rows = opened.rows if opened else []
        begun = opened.begun if opened else False
        is_open = opened is not None
        size = opened.size if opened else 0
        end_position = assembler.offset & 0xFFFFFFFF
        gtid_at = _LENT if is_open else _NO_GTID  # of the open transaction
        map_at = map_end = -1  # the last TABLE_MAP of the outbox
        crossed_at = -1  # where the last changeover ended
        missed = None  # the last transaction that did not begin as supposed: its GTID's place, sizes of GTID and QUERY
        # What has ended: so many rows of so many bytes, and where the last transaction's events lie.
        finished = finished_size = 0
        xid_at, finished_gtid_at = -1, _NO_GTID

        while at <= last:
            kind = data[at + _KIND]
            is_supposed = False
            if kind == _XID and changeover and begun and at + changeover.size <= total:
                xid_end = -1
                if passage and at + passage.size <= total and passage.stays(data, at) == passage.expected:
                    numbers = passage.numbers(data, at)
                    xid_end, gtid_end, query_end, map_end_position, length, event_size, next_position = numbers
                    is_supposed = True
                elif changeover.stays(data, at) == changeover.expected:
                    xid_end, gtid_end, query_end = changeover.ends(data, at)
                if (
                    xid_end == end_position + changeover.xid_end
                    and gtid_end == end_position + changeover.gtid_end
                    and query_end == end_position + changeover.query_end
                ):
                    finished = len(rows)
                    finished_size += size
                    size = 0
                    xid_at, finished_gtid_at, gtid_at = at, gtid_at, at + changeover.gtid_at
                    end_position = query_end
                    at += changeover.size
                    crossed_at = at
                    if finished >= JOINED_ROWS:
                        break
                    if not is_supposed:
                        continue
                else:
                    is_supposed = False
            elif (
                kind == _TABLE_MAP
                and head
                and begun
                and at + head.size <= total
                and head.stays(data, at) == head.expected
            ):
                map_end_position, length, event_size, next_position = head.sizes(data, at)
                is_supposed = True
            if is_supposed and head:
                write_at = at + head.write_at
                end = write_at + 5 + event_size
                is_supposed = (
                    map_end_position == end_position + head.map_size
                    and next_position == map_end_position + event_size
                    and length & 0xFFFFFF == event_size + 1
                    and end <= total
                )
            if is_supposed and head:
                by_id[head.table_id] = head.shape
                decoder = head.quick.decoder
                start = at + head.size
                if crossed_at == at and changeover and not passage:
                    passage = self._passage = learn_passage(data, at - changeover.size, changeover, head)
            else:
                length, status, kind, event_size, next_position = unpack(data, at)
                end = at + 4 + (length & 0xFFFFFF)
                if end > total or status or event_size != end - at - 5 or event_size == _GOES_ON:
                    break
                # Made up by the server, or past 4 GiB, where positions begin anew, or something was left out before it.
                if next_position - event_size != end_position:
                    break
                if kind not in _WRITES:
                    if kind == _XID:
                        if not begun:
                            break
                        begun = is_open = False
                        finished = len(rows)
                        finished_size += size
                        size = 0
                        xid_at, finished_gtid_at, gtid_at = at, gtid_at, _NO_GTID
                    elif kind == _TABLE_MAP:
                        if not begun:
                            break
                        body = data[at + _AFTER_FIXED : end - checksum]
                        shape = by_map.get(body)
                        if shape:
                            by_id[data[at + _BODY : at + _TABLE_ID_END]] = shape
                            map_at, map_end = at, end
                        elif body in foreign_maps:
                            by_id.pop(data[at + _BODY : at + _TABLE_ID_END], None)
                        else:
                            break
                    elif kind in _GTIDS:
                        if begun or len(rows) > finished:  # a transaction without its end, or rows without a beginning
                            break
                        is_open = True
                        gtid_at = at
                    elif kind == _QUERY:
                        if not is_open:
                            break
                        schema_size, status_size = query_sizes(data, at + _BODY)
                        if data[at + _QUERY_TEXT + schema_size + status_size : end - checksum] != BEGIN:
                            break
                        begun = True
                        if 0 <= xid_at < gtid_at:
                            seen = (gtid_at, at - gtid_at, end - at)
                            # Sessions whose events differ may take turns: it must be so twice running.
                            if not changeover or missed == (finished_gtid_at, *seen[1:]):
                                changeover = learn_changeover(data, xid_at, gtid_at, at, checksum)
                                self._changeover, self._passage = changeover, None
                                passage = None
                            missed = seen
                    elif kind in _CHANGES:
                        if not begun or (len(rows) > finished and data[at + _BODY : at + _TABLE_ID_END] in by_id):
                            break
                    elif kind == _MARIADB_GTID:
                        if begun or len(rows) > finished or not is_plain_mariadb_transaction(data, at + _BODY):
                            break
                        begun = is_open = True  # no BEGIN follows it
                        gtid_at = _NO_GTID
                    elif kind not in _ANNOTATIONS or not begun:
                        break
                    end_position = next_position
                    at = end
                    if kind == _XID and finished >= JOINED_ROWS:
                        break
                    continue
                if not begun:
                    break
                table_id = data[at + _BODY : at + _TABLE_ID_END]
                if table_id not in by_id:
                    end_position = next_position
                    at = end
                    continue
                shape = by_id[table_id]
                quick = shape and shape.quick
                if not shape or not quick:
                    break
                start = at + _AFTER_FIXED + len(quick.head)
                if data[at + _AFTER_FIXED : start] != quick.head:
                    break
                if map_end == at:
                    head = self._head = learn_rows_head(data, map_at, at, start, shape, quick, checksum)
                    passage = self._passage = None
                write_at = at
                decoder = quick.decoder

            # Rows of the outbox, from start on. Up to here nothing has changed that reading them again would not.
            if size + event_size > PIECE_BYTES:
                break
            if checksum and crc32(data[write_at + _HEADER_AT : end]) != CRC32_RESIDUE:
                break
            stop = end - checksum
            had = len(rows)
            try:
                begins = decoder.plan(data, start, stop, rows)
                if begins != stop:
                    decoder.decode_into(data, begins, stop, rows)
            except (ValueError, IndexError, OverflowError):
                del rows[had:]
                break
            size += event_size
            end_position = next_position
            at = end

        beyond_4_gib = assembler.offset & ~0xFFFFFFFF
        if xid_at >= 0:
            committed_at = self._commit_time(data, finished_gtid_at, checksum)
            if committed_at is None:
                committed_at = float(HEADER.unpack_from(data, xid_at + _HEADER_AT)[0])
            done = rows if finished == len(rows) else rows[:finished]
            xid_end = FRAME.unpack_from(data, xid_at)[4]
            assembler.take_finished(done, finished_size, beyond_4_gib | xid_end, committed_at)
            rows = rows[finished:]
        if is_open:
            commit_time = self._commit_time(data, gtid_at, checksum)
            assembler.take_open(OpenTransaction(begun, rows, size), beyond_4_gib | end_position, commit_time)
        return at

    def _still_supposed(self, checksum: int) -> tuple[Changeover | None, RowsHead | None, Passage | None]:
        """What was learned, unless checksums came or went since then, or the outbox table is not what it was."""
        if self._changeover and self._changeover.checksum != checksum:
            self._changeover = self._passage = None
        head = self._head
        if head and (head.checksum != checksum or self._tables.by_map.get(head.map_body) is not head.shape):
            self._head = self._passage = None
        return self._changeover, self._head, self._passage

    def _commit_time(self, data: bytes, gtid_at: int, checksum: int) -> float | None:
        """As the GTID at ``gtid_at`` says, or as the assembler knows of the transaction that it lent."""
        if gtid_at < 0:
            return self._assembler.commit_time if gtid_at == _LENT else None
        end = gtid_at + 4 + (FRAME.unpack_from(data, gtid_at)[0] & 0xFFFFFF)
        return parse_commit_time(parse_event(data, gtid_at + _HEADER_AT, end), checksum)
