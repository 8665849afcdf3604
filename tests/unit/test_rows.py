from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc_relay.binlog.rows import (
    CachedWallTimes,
    DescribedColumn,
    RowDecoder,
    RowsUndecodable,
    described_matches,
    make_decoder,
    unpack_datetime2,
)
from cdc_relay.binlog.table_map import ColumnType as T
from cdc_relay.binlog.table_map import TableMap, parse_table_map
from cdc_relay.outbox.row import OutboxRow
from tests.binlog_bytes import (
    OUTBOX,
    Column,
    bigint,
    bitmap,
    blob,
    char,
    datetime2,
    integer,
    opaque,
    outbox_row,
    row_image,
    table_map_body,
    values_of,
    varchar,
    wall_time,
)


def decoder_of(columns: Sequence[Column], present: Sequence[bool] | None = None) -> RowDecoder:
    table = parse_table_map(table_map_body(columns, names=True))
    assert table.names is not None
    # Beside some types the map leaves them in doubt, and they come from elsewhere.
    without = [column for column in columns if column.type not in (T.GEOMETRY, T.VECTOR)]
    certain = parse_table_map(table_map_body(without, names=True))
    told = {name: column.charset for name, column in zip(certain.names or (), certain.columns, strict=True)}
    charsets = tuple(told.get(column.name) for column in columns)
    flags = [True] * len(columns) if present is None else present
    return make_decoder(table, table.names, charsets, bitmap(flags))


def decode(columns: Sequence[Column], *rows: dict[str, Any], present: Sequence[bool] | None = None) -> list[OutboxRow]:
    decoder = decoder_of(columns, present)
    there = [column for column, flag in zip(columns, present or [True] * len(columns), strict=True) if flag]
    image = b"".join(row_image(there, values) for values in rows)
    # Something before and after: a decoder that looks beyond its bounds must show.
    return decoder.decode(b"\xff" * 7 + image + b"\x01" * 40, 7, 7 + len(image))


def replaced(**columns: Column) -> tuple[Column, ...]:
    return tuple(columns.get(column.name, column) for column in OUTBOX)


# --- tables of any shape ----------------------------------------------------------------------------------------------

#: What may stand between our columns: a column and the bytes of its values.
STRANGERS: list[tuple[Column, st.SearchStrategy[bytes]]] = [
    *((opaque(f"x{kind}", kind), st.binary(min_size=size, max_size=size))
      for kind, size in [(T.TINY, 1), (T.SHORT, 2), (T.INT24, 3), (T.LONG, 4), (T.LONGLONG, 8), (T.TIMESTAMP, 4),
                         (T.DATE, 3), (T.TIME, 3), (T.DATETIME, 8), (T.YEAR, 1), (T.NEWDATE, 3)]),
    (opaque("float", T.FLOAT, b"\x04"), st.binary(min_size=4, max_size=4)),
    (opaque("double", T.DOUBLE, b"\x08"), st.binary(min_size=8, max_size=8)),
    *((opaque(f"{kind.name}{digits}", kind, bytes([digits])),
       st.binary(min_size=whole + (digits + 1) // 2, max_size=whole + (digits + 1) // 2))
      for kind, whole in [(T.TIMESTAMP2, 4), (T.DATETIME2, 5), (T.TIME2, 3)] for digits in range(7)),
    *((opaque(f"bit{bits}", T.BIT, bytes([bits % 8, bits // 8])),
       st.binary(min_size=(bits + 7) // 8, max_size=(bits + 7) // 8))
      for bits in (1, 7, 8, 9, 33, 64)),
    *((opaque(f"enum{size}", T.STRING, bytes([T.ENUM, size])), st.binary(min_size=size, max_size=size))
      for size in (1, 2)),
    *((opaque(f"set{size}", T.STRING, bytes([T.SET, size])), st.binary(min_size=size, max_size=size))
      for size in (1, 2, 3, 4, 8)),
    # Sizes as the manual's "DECIMAL Data Type Characteristics" tells them: 4 bytes for nine digits, fewer for the rest.
    *((opaque(f"decimal{precision}_{scale}", T.NEWDECIMAL, bytes([precision, scale])),
       st.binary(min_size=size, max_size=size))
      for precision, scale, size in [(1, 0, 1), (1, 1, 1), (9, 0, 4), (10, 0, 5), (18, 9, 8), (20, 6, 10), (14, 4, 7),
                                     (65, 30, 30), (65, 0, 29), (5, 2, 3), (3, 0, 2), (4, 0, 2), (6, 0, 3), (7, 0, 4),
 (8, 0, 4)]),
]  # fmt: skip

sized = st.binary(max_size=300)
for _kind, _name in [(T.JSON, "json"), (T.GEOMETRY, "geometry"), (T.VECTOR, "vector")]:
    STRANGERS.append((blob(_name, 4, None, _kind), sized))
for _bytes in (1, 2, 3, 4):
    STRANGERS.append((blob(f"blob{_bytes}", _bytes, 63), st.binary(max_size=250)))
STRANGERS.append((varchar("narrow", 255, 8), st.binary(max_size=255)))
STRANGERS.append((varchar("wide", 256, 8), sized))
STRANGERS.append((char("char", 200, 28), st.binary(max_size=200)))
STRANGERS.append((char("long_char", 1020, 45), sized))

texts = st.text(max_size=20)
walls = st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31))


def text_column(name: str) -> st.SearchStrategy[Column]:
    return st.one_of(
        st.sampled_from([200, 255, 256, 512, 4000, 60_000]).map(lambda size: varchar(name, size)),
        st.sampled_from([80, 255, 256, 512, 768, 1020]).map(lambda size: char(name, size)),
        st.sampled_from([1, 2, 3, 4]).map(lambda size: blob(name, size)),
    )


def count_column(name: str) -> st.SearchStrategy[Column]:
    kinds = [(T.TINY, 1), (T.SHORT, 2), (T.INT24, 3), (T.LONG, 4), (T.LONGLONG, 8)]
    return st.sampled_from(kinds).map(lambda kind: integer(name, *kind))


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[Column, st.SearchStrategy[bytes] | None]]:
    """The columns that delivery needs, of any type that they may have, in any order, with strangers between them."""
    ours = [
        draw(count_column("id")),
        *(draw(text_column(name)) for name in ("biz_type", "topic", "message_key", "payload", "status")),
        *(draw(count_column(name)) for name in ("retry_count", "max_retry")),
        *(wall_time(name, draw(st.integers(0, 6))) for name in ("next_retry_at", "created_at")),
    ]
    strangers = draw(st.lists(st.sampled_from(STRANGERS), max_size=15))
    return draw(st.permutations([*((column, None) for column in ours), *strangers]))


@st.composite
def tables_with_rows(draw: st.DrawFn) -> tuple[list[Column], list[dict[str, Any]]]:
    chosen = draw(tables())
    # A stranger may stand there twice: each by its own name.
    columns = [
        column if values is None else Column(f"s{at}", column.type, column.metadata, column.encode, column.collation)
        for at, (column, values) in enumerate(chosen)
    ]
    rows = []
    for _ in range(draw(st.integers(0, 4))):
        values: dict[str, Any] = {}
        for column, (_, stranger) in zip(columns, chosen, strict=True):
            if stranger is not None:
                values[column.name] = draw(st.one_of(st.none(), stranger))
            elif column.name == "id":
                values["id"] = draw(st.integers(1, 2 ** (8 * len(column.encode(0))) - 1))
            elif column.name in ("retry_count", "max_retry"):
                bits = 8 * len(column.encode(0))
                values[column.name] = draw(st.one_of(st.none(), st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)))
            elif column.name in ("next_retry_at", "created_at"):
                values[column.name] = draw(st.one_of(st.none(), walls))
            else:
                values[column.name] = draw(st.one_of(st.none(), texts))
        rows.append(values)
    return columns, rows


def expected(columns: Sequence[Column], values: dict[str, Any]) -> OutboxRow:
    digits = {column.name: column.metadata[0] for column in columns if column.type == T.DATETIME2}

    def wall(name: str) -> datetime | None:
        at: datetime | None = values[name]
        # Two digits are one byte, so an odd number of digits is written with one more; servers round to what is asked.
        unit = 10 ** (6 - (digits[name] + 1) // 2 * 2)
        return None if at is None else at.replace(microsecond=at.microsecond // unit * unit)

    return OutboxRow(
        values["id"],
        values["biz_type"] or "",
        values["topic"] or "",
        (values["message_key"] or "").encode(),
        (values["payload"] or "").encode(),
        values["status"] or "",
        values["retry_count"] or 0,
        wall("next_retry_at"),
        wall("created_at"),
    )


@settings(max_examples=200)
@given(tables_with_rows())
def test_rows_of_any_table_are_decoded_as_they_were_written(made: tuple[list[Column], list[dict[str, Any]]]) -> None:
    columns, rows = made
    assert decoder_of(columns).complete
    assert decode(columns, *rows) == [expected(columns, values) for values in rows]


@pytest.mark.parametrize(("column", "values"), STRANGERS, ids=[column.name for column, _ in STRANGERS])
@given(data=st.data())
@settings(max_examples=5)
def test_every_type_is_stepped_over(column: Column, values: st.SearchStrategy[bytes], data: st.DataObject) -> None:
    columns = [OUTBOX[0], column, *OUTBOX[1:]]
    raw = [data.draw(values), None]
    rows = [values_of(outbox_row(at)) | {column.name: value} for at, value in enumerate(raw)]
    assert decode(columns, *rows) == [outbox_row(0), outbox_row(1)]


@settings(max_examples=50)
@given(tables_with_rows())
def test_rows_that_are_cut_off_anywhere_are_refused(made: tuple[list[Column], list[dict[str, Any]]]) -> None:
    columns, rows = made
    decoder = decoder_of(columns)
    image = b"".join(row_image(columns, values) for values in rows)
    ends, at = {0}, 0
    for values in rows:
        at += len(row_image(columns, values))
        ends.add(at)
    for end in set(range(len(image))) - ends:
        with pytest.raises((ValueError, IndexError)):
            decoder.decode(image, 0, end)
        with pytest.raises((ValueError, IndexError)):
            decoder.decode(image[:end], 0, end)


def test_bytes_after_the_last_row_are_refused() -> None:
    decoder = decoder_of(OUTBOX)
    image = row_image(OUTBOX, values_of(outbox_row(1)))
    with pytest.raises((ValueError, IndexError)):
        decoder.decode(image + b"\0", 0, len(image) + 1)


def test_a_row_whose_payload_claims_more_than_there_is_is_refused_and_not_filled_from_what_follows() -> None:
    image = bytearray(row_image(OUTBOX, values_of(outbox_row(1, payload='{"a": 1}'))))
    at = bytes(image).index(b'{"a": 1}') - 4
    image[at] += 100
    with pytest.raises((ValueError, IndexError)):
        decoder_of(OUTBOX).decode(bytes(image) + b"x" * 1000, 0, len(image))


def test_every_column_may_be_null() -> None:
    assert decode(OUTBOX, {"id": 5}) == [OutboxRow(5, "", "", b"", b"", "", 0, None, None)]


# --- columns that are absent or of other types ------------------------------------------------------------------------

NEEDED = frozenset(outbox_row(1)._asdict()) - {"id", "held"}


@pytest.mark.parametrize("absent", sorted(NEEDED))
def test_rows_without_a_column_that_delivery_needs_are_incomplete_and_tell_their_ids(absent: str) -> None:
    present = [column.name != absent for column in OUTBOX]
    decoder = decoder_of(OUTBOX, present)
    assert not decoder.complete
    rows = decode(OUTBOX, values_of(outbox_row(7)), values_of(outbox_row(8)), present=present)
    assert [row.id for row in rows] == [7, 8]


@pytest.mark.parametrize("absent", ["last_error", "published_at", "consumed_at", "updated_at"])
def test_columns_that_delivery_does_not_need_may_be_absent(absent: str) -> None:
    present = [column.name != absent for column in OUTBOX]
    assert decoder_of(OUTBOX, present).complete
    assert decode(OUTBOX, values_of(outbox_row(7)), present=present) == [outbox_row(7)]


@given(st.sets(st.sampled_from([column.name for column in OUTBOX])))
def test_whatever_is_absent_the_ids_are_right_or_nothing_is_read(absent: set[str]) -> None:
    present = [column.name not in absent for column in OUTBOX]
    if "id" in absent:
        with pytest.raises(RowsUndecodable, match="no integer column id"):
            decoder_of(OUTBOX, present)
        return
    assert decoder_of(OUTBOX, present).complete == NEEDED.isdisjoint(absent)
    rows = decode(OUTBOX, values_of(outbox_row(2**40)), values_of(outbox_row(9)), present=present)
    assert [row.id for row in rows] == [2**40, 9]


@pytest.mark.parametrize(
    "column",
    [
        opaque("status", T.STRING, bytes([T.ENUM, 1])),
        blob("payload", 4, None, T.JSON),
        opaque("payload", T.MARIADB_BLOB_COMPRESSED, b"\x04"),
        opaque("created_at", T.TIMESTAMP2, b"\x06"),
        opaque("next_retry_at", T.DATETIME),
        opaque("retry_count", T.NEWDECIMAL, b"\x0a\x00"),
        char("message_key", 16, 63),  # BINARY(16): the binlog leaves its trailing zero bytes out
        varchar("topic", 512, 32),  # armscii8, which Python does not know
        varchar("topic", 512, 35),  # ucs2
        varchar("topic", 512, 5000),  # a collation of the future
    ],
    ids=lambda column: f"{column.name} {column.type} {column.collation}",
)
def test_a_column_of_another_type_makes_the_rows_incomplete_and_is_stepped_over(column: Column) -> None:
    columns = replaced(**{column.name: column})
    decoder = decoder_of(columns)
    assert not decoder.complete
    if column.collation is not None or column.type == T.JSON:
        raw = b"some value"
    elif column.type == T.MARIADB_BLOB_COMPRESSED:
        raw = b"\x02\0\0\0{}"
    else:
        raw = b"\x01" * {T.STRING: 1, T.TIMESTAMP2: 7, T.DATETIME: 8, T.NEWDECIMAL: 5}[T(column.type)]
    values = values_of(outbox_row(3)) | {column.name: raw}
    assert [row.id for row in decode(columns, values, values_of(outbox_row(4)) | {column.name: raw})] == [3, 4]


@pytest.mark.parametrize("kind", [T.FLOAT, T.NEWDECIMAL, T.STRING, T.VARCHAR])
def test_without_an_integer_id_nothing_is_read(kind: T) -> None:
    metadata = {T.FLOAT: b"\x04", T.NEWDECIMAL: b"\x14\x00", T.STRING: b"\xfe\x10", T.VARCHAR: b"\x10\x00"}[kind]
    with pytest.raises(RowsUndecodable, match="no integer column id"):
        decoder_of(replaced(id=opaque("id", kind, metadata)))


def test_an_unknown_type_makes_the_rows_undecodable() -> None:
    with pytest.raises(RowsUndecodable, match="type 200"):
        decoder_of([*OUTBOX, opaque("new", 200)])


def test_an_unknown_type_does_no_harm_where_its_column_is_absent() -> None:
    columns = [*OUTBOX, opaque("new", 200)]
    present = [True] * len(OUTBOX) + [False]
    assert decode(columns, values_of(outbox_row(1)), present=present) == [outbox_row(1)]


def test_an_id_of_an_unsigned_column_may_be_larger_than_any_signed_one() -> None:
    assert decode(OUTBOX, values_of(outbox_row(2**64 - 1)))[0].id == 2**64 - 1


def test_the_name_of_a_column_is_never_run() -> None:
    name = "x\n        raise SystemExit('run')\n#"
    columns = [bigint(name), *OUTBOX]
    assert decode(columns, values_of(outbox_row(1)) | {name: 5}) == [outbox_row(1)]


def test_there_may_be_as_many_columns_as_a_table_can_have() -> None:
    columns = [*(integer(f"c{at}", T.TINY, 1) for at in range(4000)), *OUTBOX]
    values = {f"c{at}": at % 256 if at % 3 else None for at in range(4000)} | values_of(outbox_row(1))
    assert decode(columns, values) == [outbox_row(1)]


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("collation", "codec", "text"),
    [
        (8, "cp1252", "é€ÿ"),
        (28, "gbk", "你好"),
        (33, "utf-8", "é你"),
        (255, "utf-8", "é你🎉"),
        (24, "gb2312", "你好"),
        (51, "cp1251", "привет"),
        (95, "cp932", "日本語"),
        (63, "utf-8", "bytes"),
    ],
)
def test_text_and_keys_come_out_in_utf_8_whatever_the_column_is_in(collation: int, codec: str, text: str) -> None:
    columns = replaced(
        biz_type=varchar("biz_type", 256, collation),
        message_key=varchar("message_key", 512, collation),
        payload=blob("payload", 4, collation),
    )
    raw = text.encode(codec)
    values = values_of(outbox_row(1)) | {"biz_type": raw, "message_key": raw, "payload": raw}
    (row,) = decode(columns, values)
    assert (row.biz_type, row.message_key, row.payload) == (text, text.encode(), text.encode())


def test_the_same_bytes_in_columns_of_two_character_sets_are_two_texts() -> None:
    columns = replaced(biz_type=varchar("biz_type", 256, 8), topic=varchar("topic", 512, 255))
    values = values_of(outbox_row(1)) | {"biz_type": "é".encode(), "topic": "é".encode()}
    for _ in range(2):  # decoded, then remembered
        (row,) = decode(columns, values)
        assert (row.biz_type, row.topic) == ("Ã©", "é")
    (row,) = decode_twice(columns, values)
    assert (row.biz_type, row.topic) == ("Ã©", "é")


def decode_twice(columns: Sequence[Column], values: dict[str, Any]) -> list[OutboxRow]:
    """With one decoder, so that what it remembers counts."""
    decoder = decoder_of(columns)
    image = row_image(columns, values)
    decoder.decode(image, 0, len(image))
    return decoder.decode(image, 0, len(image))


@pytest.mark.parametrize("name", ["biz_type", "topic", "status"])
def test_text_that_is_not_in_its_character_set_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="decode"):
        decode(OUTBOX, values_of(outbox_row(1)) | {name: b"\xff\xfe"})


def test_more_texts_and_times_than_are_remembered() -> None:
    decoder = decoder_of(OUTBOX)
    rows = [
        outbox_row(n, topic=f"t{n}", created_at=datetime(2026, 1, 1, 0, 0, 0, n), next_retry_at=None)
        for n in range(1, 10_000)
    ]
    image = b"".join(row_image(OUTBOX, values_of(row)) for row in rows)
    assert decoder.decode(image, 0, len(image)) == rows


# --- times ------------------------------------------------------------------------------------------------------------


@given(walls, st.integers(0, 6))
def test_a_datetime_is_unpacked_as_it_was_packed(at: datetime, digits: int) -> None:
    unit = 10 ** (6 - (digits + 1) // 2 * 2)
    assert unpack_datetime2(datetime2(at, digits)) == at.replace(microsecond=at.microsecond // unit * unit)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        # As MySQL 9.7 wrote these literals into its binlog, with sql_mode = ''.
        ("99b9c43000", datetime(2026, 5, 2, 3)),
        ("99b9c57efb04ce", datetime(2026, 5, 2, 23, 59, 59, 123_000)),
        ("99b9c57efb01e240", datetime(2026, 5, 2, 23, 59, 59, 123_456)),
        ("fef3ff7efb0f423f", datetime(9999, 12, 31, 23, 59, 59, 999_999)),
        ("8000000000", None),  # 0000-00-00 00:00:00
        ("99b9c000000000", None),  # 2026-05-00 00:00:00.000
    ],
)
def test_datetimes_that_a_server_packed(raw: str, expected: datetime | None) -> None:
    if expected is not None:
        assert datetime2(expected, {5: 0, 7: 3, 8: 6}[len(raw) // 2]).hex() == raw
    assert unpack_datetime2(bytes.fromhex(raw)) == expected


@pytest.mark.parametrize("size", [0, 1, 4])
def test_a_datetime_of_too_few_bytes_is_refused(size: int) -> None:
    with pytest.raises(RowsUndecodable, match="bytes"):
        unpack_datetime2(b"\x99" * size)


def test_remembered_times_are_the_same_objects_and_zero_dates_are_remembered_too() -> None:
    wall = CachedWallTimes()
    raw = datetime2(datetime(2026, 1, 2), 6)
    assert wall(raw) is wall(raw)
    assert wall(b"\x80\0\0\0\0") is wall(b"\x80\0\0\0\0") is None


# --- whether INFORMATION_SCHEMA can mean this table -------------------------------------------------------------------

DESCRIBED = [
    DescribedColumn("id", "bigint", None),
    *(DescribedColumn(name, "varchar", "utf8mb4") for name in ("biz_type", "topic", "message_key")),
    DescribedColumn("payload", "longtext", "utf8mb4"),
    DescribedColumn("status", "varchar", "utf8mb4"),
    *(DescribedColumn(name, "int", None) for name in ("retry_count", "max_retry")),
    DescribedColumn("next_retry_at", "datetime", None),
    DescribedColumn("last_error", "text", "utf8mb4"),
    *(DescribedColumn(name, "datetime", None) for name in ("published_at", "consumed_at", "created_at", "updated_at")),
]


def outbox_map() -> TableMap:
    return parse_table_map(table_map_body(OUTBOX))


def test_the_description_of_the_same_table_matches() -> None:
    assert described_matches(outbox_map(), DESCRIBED)


@pytest.mark.parametrize(
    "described",
    [
        DESCRIBED[:-1],
        [*DESCRIBED, DescribedColumn("more", "int", None)],
        [],
        [DESCRIBED[1], DESCRIBED[0], *DESCRIBED[2:]],
        [*DESCRIBED[:4], DescribedColumn("payload", "json", None), *DESCRIBED[5:]],
        [*DESCRIBED[:6], DescribedColumn("retry_count", "bigint", None), *DESCRIBED[7:]],
        [*DESCRIBED[:8], DescribedColumn("next_retry_at", "timestamp", None), *DESCRIBED[9:]],
    ],
    ids=["one less", "one more", "dropped", "exchanged", "json", "bigint", "timestamp"],
)
def test_the_description_of_another_table_does_not_match(described: list[DescribedColumn]) -> None:
    assert not described_matches(outbox_map(), described)


def test_the_description_of_columns_that_the_map_names_otherwise_does_not_match() -> None:
    named = parse_table_map(table_map_body(OUTBOX, names=True))
    assert described_matches(named, DESCRIBED)
    exchanged = [*DESCRIBED[:-2], DESCRIBED[-1], DESCRIBED[-2]]  # of one type, so that nothing else tells
    assert described_matches(outbox_map(), exchanged)
    assert not described_matches(named, exchanged)


def test_columns_that_are_not_read_may_have_any_type() -> None:
    described = [*DESCRIBED[:9], DescribedColumn("last_error", "geometry", None), *DESCRIBED[10:]]
    assert described_matches(outbox_map(), described)
