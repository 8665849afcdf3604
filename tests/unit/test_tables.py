from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cdc_relay.binlog.events import Event, EventType, parse_event
from cdc_relay.binlog.rows import DescribedColumn
from cdc_relay.binlog.tables import OutboxTables
from cdc_relay.errors import DatabaseUnavailable
from cdc_relay.outbox.row import OutboxRow
from tests.binlog_bytes import OUTBOX, SCHEMA, TABLE, Binlog, bigint, opaque, outbox_row, varchar
from tests.unit.test_rows import DESCRIBED

E = EventType


def event(data: bytes) -> Event:
    return parse_event(data, 0, len(data))


class Described:
    """INFORMATION_SCHEMA, and how often it was asked."""

    def __init__(self, columns: list[DescribedColumn] | None = None) -> None:
        self.columns = DESCRIBED if columns is None else columns
        self.asked = 0

    def __call__(self) -> list[DescribedColumn]:
        self.asked += 1
        return self.columns


@pytest.fixture
def described() -> Described:
    return Described()


@pytest.fixture
def tables(described: Described) -> OutboxTables:
    return OutboxTables(SCHEMA, TABLE, described)


def decoded(tables: OutboxTables, data: bytes, *, compressed: bool = False) -> tuple[list[OutboxRow], bool] | None:
    decoder = tables.decoder(event(data), 4, compressed=compressed)
    return None if decoder is None else decoder()


def test_rows_of_the_outbox_are_decoded_by_their_table_id(tables: OutboxTables) -> None:
    binlog = Binlog()
    assert tables.map_table(event(binlog.table_map(7)), 4) is None
    assert decoded(tables, binlog.rows(outbox_row(1), outbox_row(2), table_id=7)) == (
        [outbox_row(1), outbox_row(2)],
        True,
    )


def test_rows_of_another_table_id_are_not_ours(tables: OutboxTables) -> None:
    binlog = Binlog()
    tables.map_table(event(binlog.table_map(7)), 4)
    rows = binlog.rows(outbox_row(1), table_id=8)
    assert decoded(tables, rows) is None
    assert not tables.is_outbox(event(rows))


@pytest.mark.parametrize(
    ("schema", "table"), [(SCHEMA, "agent_outbox_messages2"), ("shop2", TABLE), (TABLE, SCHEMA), (SCHEMA, "AGENT")]
)
def test_a_table_that_is_only_like_ours_is_not_ours(tables: OutboxTables, schema: str, table: str) -> None:
    binlog = Binlog()
    body = (
        (5).to_bytes(6, "little")
        + b"\x01\0"
        + binlog.table_map_body()[8:].replace(
            bytes([len(SCHEMA)]) + SCHEMA.encode() + b"\0" + bytes([len(TABLE)]) + TABLE.encode(),
            bytes([len(schema)]) + schema.encode() + b"\0" + bytes([len(table)]) + table.encode(),
        )
    )
    assert tables.map_table(event(binlog.event(E.TABLE_MAP, body)), 4) is None
    assert not tables.is_outbox(event(binlog.rows(outbox_row(1), table_id=5)))


def test_a_table_id_that_another_table_takes_over_is_not_ours_any_longer(tables: OutboxTables) -> None:
    binlog = Binlog()
    tables.map_table(event(binlog.table_map(7)), 4)
    tables.map_table(event(binlog.table_map(7, "audit_log")), 4)
    assert decoded(tables, binlog.rows(outbox_row(1), table_id=7)) is None


def test_ids_are_forgotten_at_a_new_file_but_what_the_table_looks_like_is_not(
    tables: OutboxTables, described: Described
) -> None:
    binlog = Binlog()
    tables.map_table(event(binlog.table_map(7)), 4)
    tables.forget_ids()
    assert decoded(tables, binlog.rows(outbox_row(1), table_id=7)) is None
    tables.map_table(event(binlog.table_map(9)), 4)
    assert decoded(tables, binlog.rows(outbox_row(1), table_id=9)) == ([outbox_row(1)], True)
    assert described.asked == 1


def test_the_server_is_asked_once_for_each_shape_of_the_table(tables: OutboxTables, described: Described) -> None:
    binlog = Binlog()
    for table_id in range(50):
        tables.map_table(event(binlog.table_map(table_id)), 4)
    assert described.asked == 1
    tables.forget_names()
    tables.map_table(event(binlog.table_map(50)), 4)
    assert described.asked == 2


def test_full_metadata_needs_no_question(tables: OutboxTables, described: Described) -> None:
    binlog = Binlog()
    tables.map_table(event(binlog.table_map(1, names=True)), 4)
    assert decoded(tables, binlog.rows(outbox_row(1))) == ([outbox_row(1)], True)
    assert described.asked == 0


@pytest.mark.parametrize("names", [False, True])
def test_character_sets_come_from_the_server_where_the_map_has_none(
    tables: OutboxTables, described: Described, names: bool
) -> None:
    described.columns = [
        DescribedColumn(c.name, c.data_type, "latin1" if c.charset else None) for c in described.columns
    ]
    binlog = Binlog()
    tables.map_table(event(binlog.table_map(1, charsets="none", names=names)), 4)
    assert decoded(tables, binlog.rows(outbox_row(1, biz_type=b"\xe9"))) == ([outbox_row(1, biz_type="é")], True)


def test_what_the_map_says_of_character_sets_wins_over_the_server(tables: OutboxTables, described: Described) -> None:
    described.columns = [
        DescribedColumn(c.name, c.data_type, "latin1" if c.charset else None) for c in described.columns
    ]
    binlog = Binlog()
    tables.map_table(event(binlog.table_map(1)), 4)
    assert decoded(tables, binlog.rows(outbox_row(1, biz_type="é"))) == ([outbox_row(1, biz_type="é")], True)


@pytest.mark.parametrize("names", [False, True])
def test_what_the_map_says_and_we_do_not_know_is_not_looked_up_in_the_table_of_today(
    tables: OutboxTables, names: bool
) -> None:
    """It may have been converted since."""
    columns = [replace(column, collation=column.collation and 35) for column in OUTBOX]
    binlog = Binlog(columns=tuple(columns))
    tables.map_table(event(binlog.table_map(1, names=names)), 4)
    found = decoded(tables, binlog.rows(outbox_row(1, biz_type="x".encode("utf-16-be"))))
    assert found is not None
    rows, complete = found
    assert ([row.id for row in rows], complete) == ([1], False)


@pytest.mark.parametrize("columns", [[], DESCRIBED[:-1], [*DESCRIBED, DescribedColumn("new", "int", None)]])
def test_rows_of_a_shape_that_the_server_no_longer_knows_are_not_guessed_at(
    tables: OutboxTables, described: Described, columns: list[DescribedColumn]
) -> None:
    described.columns = columns
    binlog = Binlog()
    assert tables.map_table(event(binlog.table_map()), 4) == "table_map"
    rows = binlog.rows(outbox_row(1))
    assert tables.is_outbox(event(rows))
    decoder = tables.decoder(event(rows), 4, compressed=False)
    assert decoder is not None
    with pytest.raises(ValueError, match="not understood"):
        decoder()
    # Told each time, and asked once.
    assert tables.map_table(event(binlog.table_map()), 4) == "table_map"
    assert described.asked == 1


def test_a_map_with_a_type_of_the_future_is_told_and_its_rows_are_not_guessed_at(described: Described) -> None:
    tables = OutboxTables(SCHEMA, TABLE, described)
    binlog = Binlog(columns=(*OUTBOX, opaque("new", 200, b"\x05")))
    assert tables.map_table(event(binlog.table_map()), 4) == "table_map"
    assert tables.is_outbox(event(binlog.rows(outbox_row(1))))


def test_an_outage_while_the_server_is_asked_is_an_outage(tables: OutboxTables, described: Described) -> None:
    def away() -> list[DescribedColumn]:
        raise DatabaseUnavailable("away")

    binlog = Binlog()
    broken = OutboxTables(SCHEMA, TABLE, away)
    with pytest.raises(DatabaseUnavailable):
        broken.map_table(event(binlog.table_map()), 4)
    # It is not remembered as something that cannot be understood.
    with pytest.raises(DatabaseUnavailable):
        broken.map_table(event(binlog.table_map()), 4)


VERSIONS: list[tuple[int, bytes | None, bool]] = [
    (E.WRITE_ROWS_V1, None, False),
    (E.WRITE_ROWS, b"", False),
    (E.WRITE_ROWS, b"\x00\x05extra", False),
    (E.MARIADB_WRITE_ROWS_COMPRESSED_V1, None, True),
    (E.MARIADB_WRITE_ROWS_COMPRESSED, b"\x00\x02ab", True),
]


@pytest.mark.parametrize(("kind", "extra", "compressed"), VERSIONS)
@pytest.mark.parametrize("checksum", [True, False])
def test_every_version_of_a_row_event_is_read(
    tables: OutboxTables, kind: int, extra: bytes | None, compressed: bool, checksum: bool
) -> None:
    binlog = Binlog(checksum=checksum)
    size = 4 if checksum else 0
    tables.map_table(event(binlog.table_map()), size)
    data = binlog.rows(outbox_row(1), outbox_row(2), kind=kind, extra=extra, compress=compressed)
    decoder = tables.decoder(event(data), size, compressed=compressed)
    assert decoder is not None
    assert decoder() == ([outbox_row(1), outbox_row(2)], True)


def test_each_set_of_columns_present_has_its_own_decoder(tables: OutboxTables) -> None:
    binlog = Binlog()
    tables.map_table(event(binlog.table_map()), 4)
    without_payload = [column.name != "payload" for column in OUTBOX]
    without_errors = [column.name != "last_error" for column in OUTBOX]
    for _ in range(2):
        assert decoded(tables, binlog.rows(outbox_row(1))) == ([outbox_row(1)], True)
        found = decoded(tables, binlog.rows(outbox_row(2), present=without_payload))
        assert found is not None
        assert ([row.id for row in found[0]], found[1]) == ([2], False)
        assert decoded(tables, binlog.rows(outbox_row(3), present=without_errors)) == ([outbox_row(3)], True)


def test_sessions_whose_events_differ_may_take_turns(tables: OutboxTables) -> None:
    """What the quick decoder of each has learned is kept: to learn it anew takes as long as a thousand rows."""
    binlog = Binlog()
    tables.map_table(event(binlog.table_map()), 4)
    without_errors = [column.name != "last_error" for column in OUTBOX]
    seen = []
    for _ in range(3):
        for options in ({}, {"present": without_errors}, {"extra": b"\x00\x05extra"}):
            decoded(tables, binlog.rows(outbox_row(1), **options))
            shape = tables.by_id[(1).to_bytes(6, "little")]
            assert shape is not None
            assert shape.quick is not None
            seen.append(shape.quick)
    assert seen == seen[:3] * 3
    assert len({id(quick) for quick in seen}) == 3


@pytest.mark.parametrize(("kind", "extra", "compressed"), VERSIONS)
def test_a_row_event_that_is_cut_off_anywhere_is_refused(
    tables: OutboxTables, kind: int, extra: bytes | None, compressed: bool
) -> None:
    binlog = Binlog(checksum=False)
    tables.map_table(event(binlog.table_map()), 0)
    data = binlog.rows(outbox_row(1), kind=kind, extra=extra, compress=compressed)
    no_rows = len(binlog.rows(kind=kind, extra=extra))
    for size in range(27, len(data)):
        if size == no_rows and not compressed:
            continue  # an event without any row is none that lost one
        for rest in (b"", data[size:], b"\xff" * 50):
            decoder = tables.decoder(Event(kind, 0, 0, data[:size] + rest, 0, size), 0, compressed=compressed)
            assert decoder is not None
            with pytest.raises((ValueError, IndexError)):
                decoder()


def test_rows_of_more_columns_than_the_map_has_are_refused(tables: OutboxTables) -> None:
    binlog = Binlog()
    tables.map_table(event(binlog.table_map()), 4)
    wider = Binlog(columns=(*OUTBOX, *(bigint(f"more{n}") for n in range(9))))
    decoder = tables.decoder(event(wider.rows(outbox_row(1))), 4, compressed=False)
    assert decoder is not None
    with pytest.raises((ValueError, IndexError)):
        decoder()


@pytest.mark.parametrize(
    ("statement", "mentioned"),
    [
        ("ALTER TABLE agent_outbox_messages ADD x INT", True),
        ("alter table `Agent_Outbox_Messages` add x int", True),
        ("ALTER TABLE shop.agent_outbox_messages ADD x INT", True),
        ("RENAME TABLE _new TO agent_outbox_messages", True),
        ("ALTER TABLE agent_outbox ADD x INT", False),
        ("BEGIN", False),
    ],
)
def test_a_statement_that_names_the_table_is_noticed(tables: OutboxTables, statement: str, mentioned: bool) -> None:
    assert tables.is_mentioned(statement.encode()) is mentioned


@pytest.fixture(params=["describe", "full"])
def learn(request: pytest.FixtureRequest) -> Callable[[Binlog], bytes]:
    return lambda binlog: binlog.table_map(1, names=request.param == "full")


def test_a_wider_column_after_an_alter_is_read_with_its_new_width(learn: Callable[[Binlog], bytes]) -> None:
    narrow = tuple(varchar("status", 200) if column.name == "status" else column for column in OUTBOX)
    tables = OutboxTables(SCHEMA, TABLE, Described())
    for columns in (narrow, tuple(varchar(c.name, 4000) if c.name == "status" else c for c in OUTBOX)):
        binlog = Binlog(columns=columns)
        assert tables.map_table(event(learn(binlog)), 4) is None
        assert decoded(tables, binlog.rows(outbox_row(1))) == ([outbox_row(1)], True)


@pytest.mark.parametrize("folds_names", [False, True])
def test_a_server_that_folds_names_means_the_outbox_in_whatever_case_its_name_is_written(
    described: Described, folds_names: bool
) -> None:
    tables = OutboxTables(SCHEMA.upper(), TABLE.title(), described, folds_names=folds_names)
    binlog = Binlog()
    assert tables.map_table(event(binlog.table_map(7)), 4) is None
    found = decoded(tables, binlog.rows(outbox_row(1), table_id=7))
    assert found == (([outbox_row(1)], True) if folds_names else None)
