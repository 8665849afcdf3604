"""TABLE_MAP events: which table the row events after them are of, and the types of its columns.

Source: MySQL source, ``libbinlogevents/include/rows_event.h`` (Table_map_event); MariaDB, "TABLE_MAP_EVENT".

The library parses these too, yet it misreads maps without a checksum and column types that it does not know, and asks
the server in between; what is needed here is little, so it is read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from pymysql.charset import charset_by_id

from cdc_relay.binlog.packed import packed, packed_list


class ColumnType(IntEnum):
    """Types as TABLE_MAP writes them (MySQL source, ``field_types.h``)."""

    TINY = 1
    SHORT = 2
    LONG = 3
    FLOAT = 4
    DOUBLE = 5
    TIMESTAMP = 7
    LONGLONG = 8
    INT24 = 9
    DATE = 10
    TIME = 11
    DATETIME = 12
    YEAR = 13
    NEWDATE = 14
    VARCHAR = 15
    BIT = 16
    TIMESTAMP2 = 17
    DATETIME2 = 18
    TIME2 = 19
    MARIADB_BLOB_COMPRESSED = 140
    MARIADB_VARCHAR_COMPRESSED = 141
    VECTOR = 242
    JSON = 245
    NEWDECIMAL = 246
    ENUM = 247
    SET = 248
    TINY_BLOB = 249
    MEDIUM_BLOB = 250
    LONG_BLOB = 251
    BLOB = 252
    VAR_STRING = 253
    STRING = 254
    GEOMETRY = 255


_T = ColumnType

#: How many bytes of metadata a type has in the event.
_METADATA_SIZE = {
    _T.FLOAT: 1,
    _T.DOUBLE: 1,
    _T.VARCHAR: 2,
    _T.BIT: 2,
    _T.TIMESTAMP2: 1,
    _T.DATETIME2: 1,
    _T.TIME2: 1,
    _T.MARIADB_BLOB_COMPRESSED: 1,
    _T.MARIADB_VARCHAR_COMPRESSED: 2,
    _T.VECTOR: 1,
    _T.JSON: 1,
    _T.NEWDECIMAL: 2,
    _T.ENUM: 2,
    _T.SET: 2,
    _T.TINY_BLOB: 1,
    _T.MEDIUM_BLOB: 1,
    _T.LONG_BLOB: 1,
    _T.BLOB: 1,
    _T.VAR_STRING: 2,
    _T.STRING: 2,
    _T.GEOMETRY: 1,
}

#: Types of the columns that the map gives a character set for.
_CHARACTER_TYPES = frozenset(
    {
        _T.VARCHAR,
        _T.VAR_STRING,
        _T.STRING,
        _T.BLOB,
        _T.MARIADB_BLOB_COMPRESSED,
        _T.MARIADB_VARCHAR_COMPRESSED,
    }
)
#: Types for which some servers give one and others do not: MariaDB does for GEOMETRY, MySQL 9.7 for VECTOR.
_DOUBTFUL_TYPES = frozenset({_T.GEOMETRY, _T.VECTOR})

_DEFAULT_CHARSET = 2
_COLUMN_CHARSET = 3
_COLUMN_NAME = 4


@dataclass(frozen=True, slots=True)
class MappedColumn:
    """One column of a TABLE_MAP."""

    type: int
    """A ColumnType, or a number that we do not know."""
    metadata: int
    """As the type defines it, e.g. the fraction digits of DATETIME2; the first byte is the low one."""
    charset: str | None = None
    """MySQL's name of the character set, when the map says it beyond doubt; of a collation that we do not know
    ``collation N``, which is the name of none."""


@dataclass(frozen=True, slots=True)
class TableMap:
    """A table as the row events after the map see it."""

    schema: str
    table: str
    columns: tuple[MappedColumn, ...]
    names: tuple[str, ...] | None
    """Column names, with binlog_row_metadata=FULL; None with MINIMAL."""


def table_name(body: bytes) -> tuple[bytes, bytes]:
    """``(schema, table)`` of a TABLE_MAP body (what follows table id and flags) without reading the rest."""
    schema_end = 1 + body[0]
    table_start = schema_end + 2
    return body[1:schema_end], body[table_start : table_start + body[schema_end + 1]]


def parse_table_map(body: bytes) -> TableMap:
    """Parse a TABLE_MAP body: what follows table id and flags, without the checksum.

    Raises ValueError or IndexError where it cannot be understood, e.g. for a column type without known metadata.
    """
    schema, table = table_name(body)
    at = len(schema) + len(table) + 4
    count, at = packed(body, at)
    types = body[at : at + count]
    at += count
    metadata_size, at = packed(body, at)
    columns = _columns(types, body[at : at + metadata_size])
    at += metadata_size + (count + 7) // 8
    names: tuple[str, ...] | None = None
    charsets: list[str | None] = [None] * count
    while at < len(body):
        field = body[at]
        size, at = packed(body, at + 1)
        value = body[at : at + size]
        at += size
        if at > len(body):
            raise ValueError(f"TABLE_MAP of {schema!r}.{table!r} ends within a field")
        if field in (_DEFAULT_CHARSET, _COLUMN_CHARSET):
            charsets = _charsets(columns, packed_list(value), default=field == _DEFAULT_CHARSET)
        elif field == _COLUMN_NAME:
            names = _names(value)
    if names is not None and len(names) != count:
        raise ValueError(f"TABLE_MAP of {schema!r}.{table!r} names {len(names)} of {count} columns")
    named = tuple(MappedColumn(c.type, c.metadata, charset) for c, charset in zip(columns, charsets, strict=True))
    return TableMap(schema.decode(), table.decode(), named, names)


def _columns(types: bytes, metadata: bytes) -> list[MappedColumn]:
    columns = []
    at = 0
    for number in types:
        size = _METADATA_SIZE.get(number, 0)  # type: ignore[call-overload]  # an unknown number has no entry
        columns.append(_real_type(MappedColumn(number, int.from_bytes(metadata[at : at + size], "little"))))
        at += size
    if at != len(metadata):
        raise ValueError(f"TABLE_MAP has {len(metadata)} bytes of column metadata, its known types explain {at}")
    return columns


def _real_type(column: MappedColumn) -> MappedColumn:
    """STRING hides ENUM and SET, and the upper bits of long CHAR columns, in its metadata (Field_string::unpack)."""
    if column.type != _T.STRING:
        return column
    first, second = column.metadata & 0xFF, column.metadata >> 8
    if first in (_T.ENUM, _T.SET):
        return MappedColumn(first, second)
    return MappedColumn(_T.STRING, (((first << 4) & 0x300) ^ 0x300) + second)


def _charsets(columns: list[MappedColumn], values: list[int], *, default: bool) -> list[str | None]:
    characters = [index for index, column in enumerate(columns) if column.type in _CHARACTER_TYPES]
    charsets: list[str | None] = [None] * len(columns)
    if default:  # the default, then pairs of (index among the character columns, collation)
        exceptions = dict(zip(values[1::2], values[2::2], strict=True))
        count = max([len(characters), *(ordinal + 1 for ordinal in exceptions)])
        collations = [exceptions.get(ordinal, values[0]) for ordinal in range(count)]
    else:
        collations = values
    is_certain = not any(column.type in _DOUBTFUL_TYPES for column in columns)
    if is_certain and len(collations) == len(characters):  # or it is not certain whose they are
        for index, collation in zip(characters, collations, strict=True):
            charsets[index] = charset_name(collation)
    return charsets


#: Collations that the driver does not know (INFORMATION_SCHEMA.COLLATION_CHARACTER_SET_APPLICABILITY of both servers):
#: what MySQL 8+ has added, and MariaDB's Croatian and Burmese ones and, since 10.10, its uca1400 family.
_NEWER = (
    (range(255, 324), "utf8mb4"),
    (range(576, 608), "utf8mb3"),
    (range(608, 640), "utf8mb4"),
    (range(2048, 2304), "utf8mb3"),
    (range(2304, 2560), "utf8mb4"),
)
#: MariaDB's collations that do not pad stand so far above those that do.
_NOPAD = range(1024, 2048)


def charset_name(collation: int) -> str:
    """The character set of a collation by its number; ``collation N`` when that is not known."""
    try:
        return str(charset_by_id(collation).name)  # type: ignore[attr-defined]  # missing in its stubs
    except KeyError:
        if collation in _NOPAD:
            return charset_name(collation - _NOPAD.start)
        return next((name for numbers, name in _NEWER if collation in numbers), f"collation {collation}")


def _names(value: bytes) -> tuple[str, ...]:
    names = []
    at = 0
    while at < len(value):
        size, at = packed(value, at)
        names.append(value[at : at + size].decode())
        at += size
    return tuple(names)
