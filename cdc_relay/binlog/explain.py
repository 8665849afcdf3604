"""The decoder that is generated for the outbox table, shown: for ``cdc-relay tail --explain-decoder``.

What is shown is made from rows that the binlog has, by the code that a running relay uses: ``rows`` writes the general
decoder, ``speculation`` the plan for rows that look like these.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from cdc_relay.binlog.connection import DumpConnection, ReaderChoice, choose_reader
from cdc_relay.binlog.events import Event
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.binlog.rows import RowDecoder, layout, make_decoder
from cdc_relay.binlog.server import describe_table, server_binlog
from cdc_relay.binlog.source import BinlogSource
from cdc_relay.binlog.speculation import ROLES, speculate
from cdc_relay.binlog.table_map import ColumnType
from cdc_relay.binlog.tables import OutboxTables, RowImages, Shape, row_images
from cdc_relay.config import Settings
from cdc_relay.errors import DatabaseError
from cdc_relay.outbox.database import make_engine, transaction
from cdc_relay.outbox.row import OutboxRow

#: Of the newest files so much is looked through for a row, and the file in which that ends to its beginning.
_LOOK_BACK_BYTES = 256 * 2**20

#: Where the events of a file begin.
_FIRST_OFFSET = 4

#: What a plan does with a column, by its role.
_USES = {
    "id": "read",
    "few": "read: known by its bytes when they were seen before",
    "wall": "read, and kept packed",
    "free": "read, whatever its length",
    "skip": "stepped over",
}


@dataclass(frozen=True, slots=True)
class ExplainedColumn:
    """A column of the row image."""

    name: str
    type: str
    """As the binlog has it, with the character set of text."""
    size: str
    """How many bytes it takes where it is not NULL, in words."""
    use: str
    """What becomes of it, in words."""


@dataclass(frozen=True, slots=True)
class ExplainedDecoder:
    """Both generated functions, and what they were made for."""

    reader: ReaderChoice
    table: str
    row_id: int
    """The row whose event they were made from."""
    columns: tuple[ExplainedColumn, ...]
    absent: tuple[str, ...]
    """Columns that the row image leaves out (binlog_row_image=MINIMAL, and defaults)."""
    complete: bool
    """Whether the row is read from the binlog alone; if not, the table is asked for it by its id."""
    general: str
    """The general decoder."""
    plan: str | None
    """What is tried before it; None where the table does not allow for one."""


def explain_decoder(settings: Settings) -> ExplainedDecoder:
    """Look for the newest form of row that the binlog has of the outbox, and show what is generated for it.

    Raises DatabaseError when there is no row, or the binlog cannot be read; ConfigurationError for ``tail.reader``.
    """
    reader = choose_reader(settings.tail.reader)
    database, table = str(settings.database.parsed.database), settings.database.table
    engine = make_engine(settings.database, pool_size=1)
    try:
        with transaction(engine) as connection:
            binlog = server_binlog(connection)
            columns = describe_table(connection, table)
        tables = _SampledTables(database, table, lambda: columns, folds_names=binlog.folds_names)
        looked = 0
        for file, size in reversed(binlog.files):
            until = binlog.head if file == binlog.head.file else BinlogPosition(file, size)
            _read_file(settings, binlog.server, until, tables)
            if tables.sample is not None:
                return _explain(reader, *tables.sample)
            looked += size
            if looked > _LOOK_BACK_BYTES:
                break
    finally:
        engine.dispose()
    raise DatabaseError(
        f"no row of {database}.{table} was inserted in the last {looked:,} bytes of the binlog",
        hint="insert one and ask again: the decoder is made from what the server writes of a row",
    )


class _SampledTables(OutboxTables):
    """Keeps the last row event that the assembler took: the first one of the newest form."""

    sample: tuple[Shape, RowImages] | None = None

    def decoder(
        self, event: Event, checksum_size: int, *, compressed: bool
    ) -> Callable[[], tuple[list[OutboxRow], bool]] | None:
        decode = super().decoder(event, checksum_size, compressed=compressed)
        shape = self.shape_of(event)
        if decode is not None and shape is not None:
            self.sample = shape, row_images(event, checksum_size, compressed=compressed)
        return decode


def _read_file(settings: Settings, server: str, until: BinlogPosition, tables: OutboxTables) -> None:
    start = BinlogPosition(until.file, _FIRST_OFFSET)
    server_id = settings.tail.server_id or random.randint(2**30, 2**32 - 1)
    dump = DumpConnection(settings.database, settings.tail, server_id, start, server)
    try:
        source = BinlogSource(dump, start, tables, on_unsupported=lambda _: None)
        reached = start
        while reached < until:
            for batch in source.read():
                reached = batch.end or reached
    finally:
        dump.close()


def _explain(reader: ReaderChoice, shape: Shape, images: RowImages) -> ExplainedDecoder:
    general = make_decoder(shape.table, shape.names, shape.charsets, images.present)
    row = general.decode(images.data, images.start, images.end)[-1]
    quick = speculate(general)
    if quick is not None:
        quick.decode_into(images.data, images.start, images.end, [])
    there = {name for name, _, _ in general.columns}
    return ExplainedDecoder(
        reader,
        f"{shape.table.schema}.{shape.table.table}",
        row.id,
        _columns(general),
        tuple(name for name in shape.names if name not in there),
        general.complete,
        general.source,
        quick.source if quick else None,
    )


def _columns(decoder: RowDecoder) -> tuple[ExplainedColumn, ...]:
    found = []
    for name, column, charset in decoder.columns:
        size, sized = layout(column)
        words = f"{size} of length, then the value" if sized else f"{size}"
        kind = " ".join(filter(None, (ColumnType(column.type).name, charset)))
        found.append(ExplainedColumn(name, kind, words, _USES[ROLES.get(name, "skip")]))
    return tuple(found)
