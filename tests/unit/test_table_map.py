from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.binlog.table_map import ColumnType as T
from cdc_relay.binlog.table_map import MappedColumn, parse_table_map, table_name
from tests.binlog_bytes import OUTBOX, OUTBOX_NAMES, Column, bigint, blob, char, opaque, table_map_body, varchar


def compressed(name: str, kind: int, metadata: bytes) -> Column:
    """A MariaDB column with the attribute COMPRESSED, which counts among the character columns."""
    return replace(opaque(f"compressed {name}", kind, metadata), collation=8)


#: As the manual page of Table_map_event lists them: type, its metadata, and what must come out.
#: What some servers count among the character columns.
DOUBTFUL = (T.GEOMETRY, T.VECTOR)

COLUMNS = [
    (opaque("tinyint", T.TINY), MappedColumn(T.TINY, 0)),
    (opaque("smallint", T.SHORT), MappedColumn(T.SHORT, 0)),
    (opaque("mediumint", T.INT24), MappedColumn(T.INT24, 0)),
    (opaque("int", T.LONG), MappedColumn(T.LONG, 0)),
    (opaque("bigint", T.LONGLONG), MappedColumn(T.LONGLONG, 0)),
    (opaque("float", T.FLOAT, b"\x04"), MappedColumn(T.FLOAT, 4)),
    (opaque("double", T.DOUBLE, b"\x08"), MappedColumn(T.DOUBLE, 8)),
    (opaque("decimal", T.NEWDECIMAL, b"\x0a\x02"), MappedColumn(T.NEWDECIMAL, 10 | 2 << 8)),
    (opaque("bit", T.BIT, b"\x03\x01"), MappedColumn(T.BIT, 3 | 1 << 8)),
    (opaque("date", T.DATE), MappedColumn(T.DATE, 0)),
    (opaque("year", T.YEAR), MappedColumn(T.YEAR, 0)),
    (opaque("time", T.TIME2, b"\x06"), MappedColumn(T.TIME2, 6)),
    (opaque("timestamp", T.TIMESTAMP2, b"\x03"), MappedColumn(T.TIMESTAMP2, 3)),
    (opaque("datetime", T.DATETIME2, b"\x00"), MappedColumn(T.DATETIME2, 0)),
    (opaque("old timestamp", T.TIMESTAMP), MappedColumn(T.TIMESTAMP, 0)),
    (opaque("enum", T.STRING, bytes([T.ENUM, 2])), MappedColumn(T.ENUM, 2)),
    (opaque("set", T.STRING, bytes([T.SET, 8])), MappedColumn(T.SET, 8)),
    (opaque("json", T.JSON, b"\x04"), MappedColumn(T.JSON, 4)),
    (opaque("geometry", T.GEOMETRY, b"\x04"), MappedColumn(T.GEOMETRY, 4)),
    (opaque("vector", T.VECTOR, b"\x04"), MappedColumn(T.VECTOR, 4)),
    (compressed("varchar", T.MARIADB_VARCHAR_COMPRESSED, b"\x00\x02"), MappedColumn(141, 512, "latin1")),
    (compressed("text", T.MARIADB_BLOB_COMPRESSED, b"\x02"), MappedColumn(140, 2, "latin1")),
]


@pytest.mark.parametrize(("column", "expected"), COLUMNS, ids=[column.name for column, _ in COLUMNS])
def test_each_type_takes_its_own_metadata_and_no_more(column: Column, expected: MappedColumn) -> None:
    table = parse_table_map(table_map_body([bigint("id"), column, varchar("after", 700, 33)]))
    charset = None if column.type in DOUBTFUL else "utf8mb3"
    assert table.columns == (MappedColumn(T.LONGLONG, 0), expected, MappedColumn(T.VARCHAR, 700, charset))


@given(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=300))
def test_columns_of_all_types_stand_in_any_order(columns: list[tuple[Column, MappedColumn]]) -> None:
    table = parse_table_map(table_map_body([column for column, _ in columns]))
    in_doubt = any(column.type in DOUBTFUL for column, _ in columns)
    assert table.columns == tuple(replace(it, charset=None) if in_doubt else it for _, it in columns)


@pytest.mark.parametrize("max_bytes", [0, 1, 255, 256, 400, 511, 512, 767, 768, 1020, 1023])
def test_the_upper_bits_of_a_long_char_are_hidden_in_its_type(max_bytes: int) -> None:
    table = parse_table_map(table_map_body([char("c", max_bytes)]))
    assert table.columns == (MappedColumn(T.STRING, max_bytes, "utf8mb4"),)


def test_schema_table_and_columns_of_the_outbox() -> None:
    body = table_map_body(OUTBOX, schema="shöp", table="outbox")
    table = parse_table_map(body)
    assert table_name(body) == ("shöp".encode(), b"outbox")
    assert (table.schema, table.table, table.names) == ("shöp", "outbox", None)
    assert [column.type for column in table.columns] == [column.type for column in OUTBOX]


def test_full_metadata_names_the_columns() -> None:
    assert parse_table_map(table_map_body(OUTBOX, names=True)).names == OUTBOX_NAMES


def test_unknown_optional_fields_are_stepped_over() -> None:
    body = table_map_body(OUTBOX, names=True, extra=[(1, b"\x00\x01"), (12, b""), (99, b"x" * 300)])
    assert parse_table_map(body) == parse_table_map(table_map_body(OUTBOX, names=True))


@pytest.mark.parametrize("how", ["each", "default"])
def test_each_character_column_has_its_own_character_set_whatever_stands_between(how: str) -> None:
    columns = [
        varchar("a", 10, 255),
        opaque("int", T.LONG),
        varchar("b", 10, 8),
        opaque("json", T.JSON, b"\x04"),
        char("c", 10, 28),
        opaque("enum", T.STRING, bytes([T.ENUM, 1])),
        blob("d", 4, 255),
        opaque("bit", T.BIT, b"\x03\x01"),
        blob("e", 2, 63),
    ]
    table = parse_table_map(table_map_body(columns, charsets=how))
    assert [column.charset for column in table.columns] == [
        "utf8mb4", None, "latin1", None, "gbk", None, "utf8mb4", None, "binary",
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["each", "default"])
@pytest.mark.parametrize("doubtful", DOUBTFUL)
def test_beside_a_column_that_not_every_server_counts_no_character_set_is_certain(doubtful: int, how: str) -> None:
    columns = [opaque("doubtful", doubtful, b"\x04"), varchar("a", 10, 28), varchar("b", 10, 255)]
    table = parse_table_map(table_map_body(columns, charsets=how))
    assert [column.charset for column in table.columns] == [None, None, None]


@pytest.mark.parametrize("how", ["each", "default"])
def test_where_the_server_counts_more_character_columns_than_we_do_no_character_set_is_certain(how: str) -> None:
    counted = replace(opaque("new", T.LONG), collation=63)
    table = parse_table_map(table_map_body([varchar("a", 10, 28), varchar("b", 10, 255), counted], charsets=how))
    assert [column.charset for column in table.columns] == [None, None, None]


def test_without_character_sets_none_is_known() -> None:
    table = parse_table_map(table_map_body(OUTBOX, charsets="none"))
    assert {column.charset for column in table.columns} == {None}


@pytest.mark.parametrize(
    ("collation", "charset"),
    [
        (8, "latin1"),
        (33, "utf8mb3"),
        (45, "utf8mb4"),
        (46, "utf8mb4"),
        (63, "binary"),
        (255, "utf8mb4"),  # utf8mb4_0900_ai_ci
        (309, "utf8mb4"),  # utf8mb4_0900_bin
        (323, "utf8mb4"),  # the last that MySQL 8 has added
        (608, "utf8mb4"),  # MariaDB's utf8mb4_croatian_mysql561_ci
        (1032, "latin1"),  # its latin1_swedish_nopad_ci
        (2048, "utf8mb3"),  # its uca1400 family
        (2304, "utf8mb4"),  # its default since 11.5
        (35, "collation 35"),  # ucs2
        (1059, "collation 35"),
        (2560, "collation 2560"),
        (9999, "collation 9999"),
    ],
)
def test_collations_tell_the_character_set(collation: int, charset: str) -> None:
    assert parse_table_map(table_map_body([varchar("v", 10, collation)])).columns[0].charset == charset


@pytest.mark.parametrize("unknown", [6, 20, 100, 200, 241, 243, 244])
def test_a_type_without_known_metadata_is_refused_when_it_has_some(unknown: int) -> None:
    with pytest.raises(ValueError, match="metadata"):
        parse_table_map(table_map_body([bigint("id"), opaque("new", unknown, b"\x01"), varchar("v", 10)]))


def test_a_type_that_is_not_known_may_stand_there_when_it_has_no_metadata() -> None:
    table = parse_table_map(table_map_body([bigint("id"), opaque("new", 200), varchar("v", 10)]))
    assert table.columns[1] == MappedColumn(200, 0)


def test_names_for_fewer_columns_than_there_are_are_refused() -> None:
    body = table_map_body(OUTBOX, extra=[(4, b"\x02id\x05topic")])
    with pytest.raises(ValueError, match="names 2 of 14"):
        parse_table_map(body)


@pytest.mark.parametrize("names", [True, False])
def test_a_map_that_is_cut_off_anywhere_is_refused_or_reads_the_same_columns(names: bool) -> None:
    body = table_map_body(OUTBOX, names=names)
    whole = parse_table_map(body)
    for size in range(len(body)):
        try:
            table = parse_table_map(body[:size])
        except (ValueError, IndexError):
            continue
        # Only what is optional may be missing, and then it is missing as a whole.
        assert [(c.type, c.metadata) for c in table.columns] == [(c.type, c.metadata) for c in whole.columns]
        assert table.names in (None, whole.names)
        assert all(c.charset in (None, w.charset) for c, w in zip(table.columns, whole.columns, strict=True))


@given(st.binary(max_size=80))
def test_noise_is_refused_in_our_terms(noise: bytes) -> None:
    try:
        parse_table_map(noise)
    except (ValueError, IndexError):
        pass
