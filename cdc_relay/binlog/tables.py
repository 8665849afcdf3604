"""Which row events are the outbox table's, and the decoder for each.

Table ids are numbers in the server's memory that it gives out anew, so an id is trusted only from its TABLE_MAP to the
next rotation, and the TABLE_MAP of another table takes it away. What was learned of a table's shape is kept by the
bytes of the map itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from cdc_relay.binlog.events import ROWS_FIXED_SIZE, TABLE_ID_SIZE, Event, EventType
from cdc_relay.binlog.packed import packed
from cdc_relay.binlog.payload import mariadb_inflate
from cdc_relay.binlog.rows import DescribedColumn, RowDecoder, RowsUndecodable, described_matches, make_decoder
from cdc_relay.binlog.speculation import SpeculatingDecoder, speculate
from cdc_relay.binlog.table_map import TableMap, parse_table_map, table_name
from cdc_relay.outbox.row import OutboxRow

DescribeTable = Callable[[], list[DescribedColumn]]
"""The outbox table's columns by ordinal as INFORMATION_SCHEMA has them now."""


#: TABLE_MAPs of other tables that are remembered, so that their names need not be read again.
_FOREIGN_MAPS = 4096

#: Beginnings of row events that are remembered, for each shape of the outbox table.
_HEADS = 256

_WITH_EXTRA_DATA = frozenset(
    {
        EventType.WRITE_ROWS,
        EventType.MARIADB_WRITE_ROWS_COMPRESSED,
    }
)


@dataclass(frozen=True, slots=True)
class QuickRows:
    """How the quick loop reads a WRITE_ROWS event."""

    head: bytes
    """What must follow table id and flags: extra data, number of columns, bitmap of the columns present."""
    decoder: SpeculatingDecoder


@dataclass(slots=True)
class Shape:
    """What is known of the outbox table as one TABLE_MAP shows it."""

    table: TableMap
    names: tuple[str, ...]
    charsets: tuple[str | None, ...]
    decoders: dict[bytes, RowDecoder] = field(default_factory=dict)
    """By the bitmap of the columns present."""
    quick: QuickRows | None = None
    """For row events that begin as the last one did."""
    quicks: dict[bytes, QuickRows | None] = field(default_factory=dict)
    """By how they begin: sessions whose events differ may take turns, and each decoder has learned something."""

    def remember(self, head: bytes, decoder: RowDecoder) -> None:
        """The quick loop may read the next event that begins so."""
        if head not in self.quicks:
            if len(self.quicks) >= _HEADS:
                self.quicks.clear()
            quick = speculate(decoder)
            self.quicks[head] = QuickRows(head, quick) if quick else None
        self.quick = self.quicks[head]


class RowImages(NamedTuple):
    """The rows of a WRITE_ROWS event: they lie in ``data[start:end]``."""

    data: bytes
    start: int
    end: int
    present: bytes
    """The bitmap of the columns that they have."""
    head: bytes
    """What stands before them, after table id and flags."""


def row_images(event: Event, checksum_size: int, *, compressed: bool) -> RowImages:
    """Find the rows in a WRITE_ROWS event. Raises ValueError or IndexError for a damaged one."""
    data = event.data
    begin = start = event.body + ROWS_FIXED_SIZE
    if event.type in _WITH_EXTRA_DATA:
        start += int.from_bytes(data[start : start + 2], "little")
    width, start = packed(data, start)
    end = start + (width + 7) // 8
    present, head = data[start:end], data[begin:end]
    if compressed:
        inflated = mariadb_inflate(data[end : event.end - checksum_size])
        return RowImages(inflated, 0, len(inflated), present, head)
    return RowImages(data, end, event.end - checksum_size, present, head)


class OutboxTables:
    """The outbox table among the tables of the stream."""

    def __init__(self, schema: str, table: str, describe: DescribeTable, *, folds_names: bool = False) -> None:
        """``folds_names``: the server takes names that differ by their case alone for one (lower_case_table_names), so
        its binlog may write them in another one than we do."""
        self._folds_names = folds_names
        self._wanted = self._as_server((schema.encode(), table.encode()))
        self._describe = describe
        self.by_id: dict[bytes, Shape | None] = {}
        """The outbox table's ids; None where its TABLE_MAP was not understood. Other tables' are not in it."""
        self.by_map: dict[bytes, Shape | None] = {}
        """The outbox table's TABLE_MAPs seen, by their bytes after table id and flags."""
        self.foreign_maps: set[bytes] = set()
        """TABLE_MAPs of other tables that were seen, likewise."""

    def forget_ids(self) -> None:
        """A new binlog file: ids may mean other tables from here on."""
        self.by_id.clear()

    def forget_names(self) -> None:
        """The table was altered: what INFORMATION_SCHEMA said of it holds no longer."""
        self.by_map.clear()

    def is_mentioned(self, statement: bytes) -> bool:
        """Whether a statement's text has the table's name in it; no parser, so it may also be a mere word."""
        return self._wanted[1].lower() in statement.lower()

    def is_outbox(self, event: Event) -> bool:
        """Whether a row event is of the outbox table."""
        return event.data[event.body : event.body + TABLE_ID_SIZE] in self.by_id

    def shape_of(self, event: Event) -> Shape | None:
        """What is known of the table of a row event; None where it is another table, or was not understood."""
        return self.by_id.get(event.data[event.body : event.body + TABLE_ID_SIZE])

    def map_table(self, event: Event, checksum_size: int) -> str | None:
        """Take a TABLE_MAP. The result names what could not be understood, if it is the outbox table's."""
        table_id = event.data[event.body : event.body + TABLE_ID_SIZE]
        body = event.data[event.body + ROWS_FIXED_SIZE : event.end - checksum_size]
        if body in self.by_map:
            shape = self.by_map[body]
        elif self._as_server(table_name(body)) != self._wanted:
            self.by_id.pop(table_id, None)
            if len(self.foreign_maps) >= _FOREIGN_MAPS:
                self.foreign_maps.clear()
            self.foreign_maps.add(body)
            return None
        else:
            shape = self.by_map[body] = self._learn(body)
        self.by_id[table_id] = shape
        return None if shape else "table_map"

    def decoder(
        self, event: Event, checksum_size: int, *, compressed: bool
    ) -> Callable[[], tuple[list[OutboxRow], bool]] | None:
        """For a WRITE_ROWS event of the outbox: a call that gives ``(rows, complete)``; None for other tables.

        The call raises ValueError or IndexError for rows that cannot be decoded.
        """
        data, at = event.data, event.body
        table_id = data[at : at + TABLE_ID_SIZE]
        if table_id not in self.by_id:
            return None
        shape = self.by_id[table_id]

        def decode() -> tuple[list[OutboxRow], bool]:
            if shape is None:
                raise RowsUndecodable("its TABLE_MAP was not understood")
            images = row_images(event, checksum_size, compressed=compressed)
            known = shape.decoders.get(images.present)
            if known is None:
                known = make_decoder(shape.table, shape.names, shape.charsets, images.present)
                shape.decoders[images.present] = known
            if not compressed:
                shape.remember(images.head, known)
            return known.decode(images.data, images.start, images.end), known.complete

        return decode

    def _as_server(self, names: tuple[bytes, bytes]) -> tuple[bytes, ...]:
        """Names so that they are equal when the server means the same table by them."""
        return tuple(name.decode("utf-8", "replace").lower().encode() for name in names) if self._folds_names else names

    def _learn(self, body: bytes) -> Shape | None:
        try:
            table = parse_table_map(body)
        except (ValueError, IndexError):
            return None
        charsets = tuple(column.charset for column in table.columns)
        if table.names is not None and any(charsets):
            return Shape(table, _as_ours(table.names), charsets)
        # binlog_row_metadata=MINIMAL: names, and on some servers character sets, must come from the server. With FULL
        # the latter too where the map leaves them in doubt.
        described = self._describe()
        if not described_matches(table, described):
            return None
        names = table.names or tuple(column.name for column in described)
        known = tuple(mapped or column.charset for mapped, column in zip(charsets, described, strict=True))
        return Shape(table, _as_ours(names), known)


def _as_ours(names: tuple[str, ...]) -> tuple[str, ...]:
    """To the server, names of columns that differ by their case alone are one."""
    return tuple(name.lower() for name in names)
