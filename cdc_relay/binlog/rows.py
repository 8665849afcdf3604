"""From the bytes of a WRITE_ROWS event to ``OutboxRow``: a decoder generated for the table.

Parsing a column at a time through objects takes nine tenths of the reading time, so for each shape of row (a TABLE_MAP
and the set of columns present) a function is written, compiled once and kept. It reads the nine columns that delivery
needs and steps over all others. Source of the format: MySQL Internals, "Rows Event"; MySQL source, ``my_time.cc``
(packed DATETIME2).

A column that cannot be decoded (absent from the image, or of a type that the contract does not have) makes the decoder
*incomplete*: it gives the ids, and the rows are read from the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cdc_relay.binlog.table_map import ColumnType as T
from cdc_relay.binlog.table_map import MappedColumn, TableMap
from cdc_relay.outbox import datetime2
from cdc_relay.outbox.row import OutboxRow

DecodeRows = Callable[[bytes, int, int], list[OutboxRow]]
"""``(data, start, end) -> rows``: the rows that lie in ``data[start:end]``."""


class RowsUndecodable(ValueError):
    """The bytes do not have the shape that the decoder was made for; the sweep must deliver these rows."""


@dataclass(frozen=True, slots=True)
class DescribedColumn:
    """A column as INFORMATION_SCHEMA tells it: name, DATA_TYPE in lower case, character set or None."""

    name: str
    data_type: str
    charset: str | None


@dataclass(frozen=True, slots=True)
class RowDecoder:
    """The generated function for one shape of row."""

    decode: DecodeRows
    complete: bool
    """Whether every column that delivery needs is decoded. If not, only ``id`` is valid in the rows."""
    source: str
    """The generated Python, for whoever wants to see it."""
    columns: tuple[tuple[str, MappedColumn, str | None], ...] = ()
    """The columns present: name, as the TABLE_MAP has it, character set."""


_INTEGERS = {T.TINY: 1, T.SHORT: 2, T.INT24: 3, T.LONG: 4, T.LONGLONG: 8}
_FIXED = _INTEGERS | {
    T.FLOAT: 4,
    T.DOUBLE: 8,
    T.TIMESTAMP: 4,
    T.DATE: 3,
    T.TIME: 3,
    T.DATETIME: 8,
    T.YEAR: 1,
    T.NEWDATE: 3,
}
#: Types whose value begins with its length, in as many bytes as the metadata says.
_SELF_SIZED = frozenset(
    {T.TINY_BLOB, T.MEDIUM_BLOB, T.LONG_BLOB, T.BLOB, T.JSON, T.GEOMETRY, T.VECTOR, T.MARIADB_BLOB_COMPRESSED}
)
_VARIABLE = frozenset({T.VARCHAR, T.VAR_STRING, T.STRING, T.MARIADB_VARCHAR_COMPRESSED})
_TEXT = frozenset({T.VARCHAR, T.VAR_STRING, T.STRING, T.TINY_BLOB, T.MEDIUM_BLOB, T.LONG_BLOB, T.BLOB})
_DECIMAL_DIGIT_BYTES = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)

#: Character sets whose bytes are UTF-8 already.
_UTF8 = frozenset({"utf8", "utf8mb3", "utf8mb4", "ascii", "us-ascii", "binary"})

#: MySQL's character sets that Python reads exactly as the servers do (a test compares every character); where Python
#: knows no character the rows are undecodable. All others are read from the table, which the server converts.
_CODECS = {
    "cp1250": "cp1250",
    "cp1251": "cp1251",
    "cp1257": "cp1257",
    "cp850": "cp850",
    "cp852": "cp852",
    "cp932": "cp932",
    "euckr": "euc_kr",
    "gb2312": "gb2312",
    "gbk": "gbk",
    "koi8r": "koi8_r",
    "latin1": "cp1252",
    "latin2": "iso8859_2",
    "latin5": "iso8859_9",
    "latin7": "iso8859_13",
    "macroman": "mac_roman",
    "tis620": "tis_620",
}

#: Which binlog types a DATA_TYPE of INFORMATION_SCHEMA may have, for the columns that are read.
_MATCHING = {
    "bigint": {T.LONGLONG},
    "int": {T.LONG},
    "mediumint": {T.INT24},
    "smallint": {T.SHORT},
    "tinyint": {T.TINY},
    "varchar": {T.VARCHAR, T.VAR_STRING, T.MARIADB_VARCHAR_COMPRESSED},
    "char": {T.STRING},
    "varbinary": {T.VARCHAR, T.VAR_STRING, T.MARIADB_VARCHAR_COMPRESSED},
    "tinytext": {T.BLOB, T.TINY_BLOB},
    "text": {T.BLOB, T.MARIADB_BLOB_COMPRESSED},
    "mediumtext": {T.BLOB, T.MEDIUM_BLOB, T.MARIADB_BLOB_COMPRESSED},
    "longtext": {T.BLOB, T.LONG_BLOB, T.MARIADB_BLOB_COMPRESSED},
    "tinyblob": {T.BLOB, T.TINY_BLOB},
    "blob": {T.BLOB, T.MARIADB_BLOB_COMPRESSED},
    "mediumblob": {T.BLOB, T.MEDIUM_BLOB, T.MARIADB_BLOB_COMPRESSED},
    "longblob": {T.BLOB, T.LONG_BLOB, T.MARIADB_BLOB_COMPRESSED},
    "json": {T.JSON},
    "datetime": {T.DATETIME, T.DATETIME2},
    "timestamp": {T.TIMESTAMP, T.TIMESTAMP2},
}

_FALLBACKS = {
    "id": "0",
    "biz_type": "''",
    "topic": "''",
    "message_key": "b''",
    "payload": "b''",
    "status": "''",
    "retry_count": "0",
    "next_retry_at": "None",
    "created_at": "None",
}
"""The columns of OutboxRow, in its order, with what stands for NULL."""


def described_matches(table: TableMap, described: list[DescribedColumn]) -> bool:
    """Whether INFORMATION_SCHEMA, asked now, can be describing the table as it was at this TABLE_MAP."""
    names = tuple(column.name for column in described)
    if len(described) != len(table.columns) or names != (table.names or names):
        return False
    return all(
        column.name not in _FALLBACKS or mapped.type in _MATCHING.get(column.data_type, {mapped.type})
        for column, mapped in zip(described, table.columns, strict=True)
    )


def make_decoder(
    table: TableMap, names: tuple[str, ...], charsets: tuple[str | None, ...], present: bytes
) -> RowDecoder:
    """Write and compile the decoder for rows of ``table`` whose image holds the columns in the bitmap ``present``.

    ``names`` and ``charsets`` are by ordinal. Raises RowsUndecodable when not even ``id`` can be read, or when a
    column's size cannot be known.
    """
    columns = [
        (name, column, charset)
        for ordinal, (name, column, charset) in enumerate(zip(names, table.columns, charsets, strict=True))
        if present[ordinal >> 3] >> (ordinal & 7) & 1
    ]
    null_bytes = (len(columns) + 7) // 8
    body: list[str] = []
    read = set()
    for index, (name, column, charset) in enumerate(columns):
        value = _read(name, column, charset) if name in _FALLBACKS else None
        body.append(f"# {index}: {name!r}")  # quoted: a name may contain line ends
        body.append(f"if nulls & {1 << index}:")
        body.append(f"    {name} = {_FALLBACKS[name]}" if value else "    pass")
        body.append("else:")
        body += [f"    {line}" for line in (value or _skip(column))]
        if value:
            read.add(name)
    if "id" not in read:
        raise RowsUndecodable(f"{table.schema}.{table.table} has no integer column id in its row image")
    fields = ", ".join(name if name in read else fallback for name, fallback in _FALLBACKS.items())
    source = "\n".join(
        [
            "def decode(data, at, end):",
            "    rows = []",
            "    while at < end:",
            f"        nulls = from_bytes(data[at:at + {null_bytes}], 'little')",
            f"        at += {null_bytes}",
            *(f"        {line}" for line in body),
            f"        rows.append(OutboxRow({fields}))",
            "    if at != end:",
            "        raise RowsUndecodable(f'rows end at byte {at}, their event at {end}')",
            "    return rows",
        ]
    )
    namespace = {
        "OutboxRow": OutboxRow,
        "RowsUndecodable": RowsUndecodable,
        "from_bytes": int.from_bytes,
        "wall": CachedWallTimes(),
        **{_text_function(codec): _CachedText(codec) for codec in ("utf-8", *_CODECS.values())},
    }
    exec(compile(source, f"<decoder of {table.schema}.{table.table}>", "exec"), namespace)
    decode: DecodeRows = namespace["decode"]  # type: ignore[assignment]
    return RowDecoder(decode, complete=read == _FALLBACKS.keys(), source=source, columns=tuple(columns))


def _read(name: str, column: MappedColumn, charset: str | None) -> list[str] | None:
    """Lines that put the column's value into a variable of its name and step over it; None when we cannot."""
    if name in ("id", "retry_count"):
        size = _INTEGERS.get(column.type)  # type: ignore[call-overload]
        # Only counts can be negative; an id may come from an UNSIGNED column.
        signed = "" if name == "id" else ", signed=True"
        return size and [f"{name} = from_bytes(data[at:at + {size}], 'little'{signed})", f"at += {size}"]
    if name in ("next_retry_at", "created_at"):
        if column.type != T.DATETIME2:
            return None
        size = 5 + (column.metadata + 1) // 2
        return [f"{name} = wall(data[at:at + {size}])", f"at += {size}"]
    codec = _codec(charset)
    if column.type not in _TEXT or codec is None:
        return None
    if column.type == T.STRING and charset == "binary":
        return None  # BINARY(n) stands here without its trailing zero bytes, which the table gives
    if name in ("message_key", "payload"):
        value = "data[at:at + size]" if codec == "utf-8" else f"data[at:at + size].decode({codec!r}).encode()"
    else:  # few distinct values: decoded once, then looked up
        value = f"{_text_function(codec)}(data[at:at + size])"
    return [*_size(column), f"{name} = {value}", "at += size"]


def _skip(column: MappedColumn) -> list[str]:
    size, sized = layout(column)
    return [*_size(column), "at += size"] if sized else [f"at += {size}"]


def layout(column: MappedColumn) -> tuple[int, bool]:
    """``(bytes, False)`` of the column's value, or ``(bytes, True)`` of the length that stands before it."""
    kind = column.type
    if kind in _FIXED:
        return _FIXED[kind], False  # type: ignore[index]
    if kind in _SELF_SIZED:
        return column.metadata, True
    if kind in _VARIABLE:
        return 2 if column.metadata > 255 else 1, True
    if kind in (T.TIMESTAMP2, T.DATETIME2, T.TIME2):
        whole = {T.TIMESTAMP2: 4, T.DATETIME2: 5, T.TIME2: 3}[T(kind)]
        return whole + (column.metadata + 1) // 2, False
    if kind == T.BIT:
        return (column.metadata >> 8) + ((column.metadata & 0xFF) + 7) // 8, False
    if kind in (T.ENUM, T.SET):
        return column.metadata, False
    if kind == T.NEWDECIMAL:
        precision, scale = column.metadata & 0xFF, column.metadata >> 8
        digits = (precision - scale, scale)
        return sum(some // 9 * 4 + _DECIMAL_DIGIT_BYTES[some % 9] for some in digits), False
    raise RowsUndecodable(f"a column has the type {kind}, whose size is not known")


def _size(column: MappedColumn) -> list[str]:
    size_bytes, _ = layout(column)
    if size_bytes == 1:
        return ["size = data[at]", "at += 1"]
    return [f"size = from_bytes(data[at:at + {size_bytes}], 'little')", f"at += {size_bytes}"]


def is_utf8(charset: str | None) -> bool:
    """Whether the bytes of a column of this character set are UTF-8 already."""
    return charset in _UTF8


def _codec(charset: str | None) -> str | None:
    return "utf-8" if charset in _UTF8 else _CODECS.get(charset or "")


def _text_function(codec: str) -> str:
    return f"text_{codec.replace('-', '_')}"


#: Bound of the caches below: topics and types are few, times of rows in flight are near each other.
_CACHE_ENTRIES = 4096


class _CachedText:
    """Text of few distinct values in one character set, decoded once."""

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._known: dict[bytes, str] = {}

    def __call__(self, raw: bytes) -> str:
        known = self._known.get(raw)
        if known is None:
            if len(self._known) >= _CACHE_ENTRIES:
                self._known.clear()
            known = self._known[raw] = raw.decode(self._codec)
        return known


class CachedWallTimes:
    """DATETIME2 values as naive datetimes; None for zero dates, which Python cannot hold."""

    def __init__(self) -> None:
        self._known: dict[bytes, datetime | None] = {}

    def __call__(self, raw: bytes) -> datetime | None:
        try:
            return self._known[raw]
        except KeyError:
            if len(self._known) >= _CACHE_ENTRIES:
                self._known.clear()
            wall = self._known[raw] = unpack_datetime2(raw)
            return wall


def unpack_datetime2(raw: bytes) -> datetime | None:
    """The packed DATETIME2 ``raw``: 5 bytes big endian, then 0 to 3 bytes of hundredths, ten thousandths or millionths.

    None for dates that Python cannot hold (0000-00-00, and days that a lax sql_mode lets in).
    """
    if len(raw) < 5:
        raise RowsUndecodable(f"a DATETIME has {len(raw)} bytes instead of 5 to 8")
    return datetime2.unpack(raw)
