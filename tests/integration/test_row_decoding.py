"""Rows and tables made by hypothesis, on real servers: the binlog gives what SELECT gives for the same row."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from cdc_relay.binlog.connection import DumpConnection
from cdc_relay.binlog.rows import _CODECS
from cdc_relay.binlog.server import describe_table, head
from cdc_relay.binlog.source import BinlogSource
from cdc_relay.binlog.table_map import charset_name
from cdc_relay.binlog.tables import OutboxTables
from cdc_relay.config import DatabaseSettings, TailSettings
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.outbox.row import BinlogRow, OutboxRow
from cdc_relay.outbox.statements import OutboxStatements
from tests.conftest import fresh_database
from tests.harness import PATIENCE_S

TABLE = "agent_outbox_messages"
_server_ids = itertools.count(50_000)

#: The contract's columns, each in the forms that the contract lets it have.
OURS = {
    "id": ["BIGINT AUTO_INCREMENT PRIMARY KEY", "BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY"],
    "biz_type": ["VARCHAR(64) NOT NULL", "VARCHAR(300) NOT NULL"],
    "topic": ["VARCHAR(128) NOT NULL", "VARCHAR(400) NOT NULL"],
    "message_key": [
        *("VARCHAR(128) NULL", "VARCHAR(128) CHARACTER SET gbk NULL", "CHAR(60) NULL"),
        *("VARBINARY(200) NULL", "BLOB NULL"),
    ],
    "payload": ["LONGTEXT NULL", "MEDIUMTEXT NULL", "LONGTEXT CHARACTER SET utf8mb4 NULL", "LONGBLOB NULL"],
    "status": ["VARCHAR(32) NOT NULL DEFAULT 'pending'"],
    "retry_count": ["INT NOT NULL DEFAULT 0", "BIGINT NULL DEFAULT 0"],
    "max_retry": ["INT NOT NULL DEFAULT 20", "BIGINT NULL DEFAULT 20"],
    "next_retry_at": ["DATETIME NULL", "DATETIME(3) NULL", "DATETIME(6) NULL"],
    "last_error": ["TEXT NULL"],
    "published_at": ["DATETIME(3) NULL"],
    "consumed_at": ["DATETIME(3) NULL"],
    "created_at": ["DATETIME NULL", "DATETIME(3) NULL", "DATETIME(6) NULL"],
    "updated_at": ["DATETIME(6) NULL"],
}
#: Columns of others that may stand between them, with what goes in.
OTHERS = [
    ("TINYINT UNSIGNED NULL", "255"),
    ("SMALLINT NULL", "-5"),
    ("MEDIUMINT NULL", "-70000"),
    ("FLOAT NULL", "1.5"),
    ("DOUBLE NULL", "-2.25"),
    ("DECIMAL(20,7) NULL", "'1234567890123.1234567'"),
    ("DECIMAL(9,0) NULL", "-5"),
    ("YEAR NULL", "2026"),
    ("DATE NULL", "'2026-02-03'"),
    ("TIME(2) NULL", "'-11:12:13.25'"),
    ("TIMESTAMP(4) NULL", "'2026-01-02 03:04:05.6789'"),
    ("BIT(11) NULL", "b'10101010101'"),
    ("ENUM('a','b') NULL", "'b'"),
    ("SET('a','b','c') NULL", "'a,c'"),
    ("BINARY(7) NULL", "'abc'"),
    ("VARBINARY(300) NULL", "REPEAT('x', 299)"),
    ("TINYBLOB NULL", "'y'"),
    ("MEDIUMTEXT NULL", "REPEAT('z', 70000)"),
    ("JSON NULL", """'{"a": [1, 2, {"b": null}]}'"""),
    ("POINT NULL", "ST_GeomFromText('POINT(1 2)')"),
    ("CHAR(100) CHARACTER SET utf8mb4 NULL", "'ü'"),
    ("VARCHAR(50) CHARACTER SET latin1 NULL", "'ü'"),
    ("INT GENERATED ALWAYS AS (1 + 1) STORED", None),
    ("INT GENERATED ALWAYS AS (1 + 1) VIRTUAL", None),
]

_wall = st.none() | st.datetimes(datetime(1971, 1, 1), datetime(2037, 1, 1))
_text = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=60)
#: What the columns of a narrower character set can hold too.
_key = st.none() | st.text("abcXYZ 你好123-_", max_size=30).map(str.rstrip)


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[str, str, str | None]]:
    """Columns in some order: name, type, and the SQL of the value of others' columns."""
    spelt = draw(st.sampled_from([str.lower, str.upper, str.title]))
    columns: list[tuple[str, str, str | None]] = [
        (spelt(name), draw(st.sampled_from(forms)), None) for name, forms in OURS.items()
    ]
    for number, index in enumerate(draw(st.lists(st.integers(0, len(OTHERS) - 1), max_size=8))):
        kind, value = OTHERS[index]
        columns.append((f"other_{number}", kind, draw(st.sampled_from([value, "NULL"])) if value else None))
    return draw(st.permutations(columns))


rows = st.fixed_dictionaries(
    {
        "biz_type": st.text("abc_é", max_size=20),
        "topic": st.text("abc.-_", max_size=20),
        "message_key": _key,
        "payload": st.none() | _text,
        "status": st.sampled_from(["pending", "consumed", "dead"]),
        "retry_count": st.integers(0, 2**31 - 1),
        "max_retry": st.integers(-1, 2**31 - 1),
        "next_retry_at": _wall,
        "created_at": _wall,
    }
)


@dataclass
class Stage:
    """A database and its administrator's settings."""

    url: str
    engine: Engine


@pytest.fixture
def stage(either_server: MysqlServer) -> Iterator[Stage]:
    for url in fresh_database(either_server):
        engine = create_engine(url)
        yield Stage(url, engine)
        with engine.begin() as connection:
            connection.exec_driver_sql("SET GLOBAL binlog_row_metadata = DEFAULT")
            connection.exec_driver_sql("SET GLOBAL binlog_checksum = DEFAULT")
        engine.dispose()


def read(stage: Stage, position: Any, expected: int, *, certain: bool = False) -> list[OutboxRow]:
    """The rows from the binlog, from ``position`` on; doubtful ones by their ids from the table, as the tailer does.

    ``certain``: none may be doubtful, so that it is the decoder that speaks.
    """

    def describe() -> list[Any]:
        with stage.engine.connect() as connection:
            return describe_table(connection, TABLE)

    database = DatabaseSettings(url=stage.url)
    tables = OutboxTables(str(database.parsed.database), TABLE, describe)
    unsupported: list[str] = []
    found: list[OutboxRow] = []
    with closing(DumpConnection(database, TailSettings(), next(_server_ids), position, None)) as dump:
        source = BinlogSource(dump, position, tables, on_unsupported=unsupported.append)
        deadline = time.monotonic() + PATIENCE_S
        while len(found) < expected:
            assert time.monotonic() < deadline, f"{len(found)} of {expected} rows came"
            for batch in source.read():
                rows = batch.rows
                if batch.doubtful and rows:
                    assert not certain, "a complete image of columns that we read is doubtful"
                    with stage.engine.connect() as connection:
                        rows = OutboxStatements().read_committed(connection, [row.id for row in rows])
                found += rows
            assert not unsupported
    return found


def as_read(row: OutboxRow) -> OutboxRow:
    """Without what only the table can tell."""
    return OutboxRow(*(row.unpacked if isinstance(row, BinlogRow) else row)[:9])


@given(
    columns=tables(),
    values=st.lists(rows, min_size=1, max_size=4),
    metadata=st.sampled_from(["MINIMAL", "FULL"]),
    image=st.sampled_from(["FULL", "MINIMAL", "NOBLOB"]),
    checksum=st.sampled_from(["CRC32", "NONE"]),
)
@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_the_binlog_gives_what_select_gives(
    stage: Stage,
    columns: list[tuple[str, str, str | None]],
    values: list[dict[str, Any]],
    metadata: str,
    image: str,
    checksum: str,
) -> None:
    definition = ", ".join(f"{name} {kind}" for name, kind, _ in columns)
    others = {name: value for name, _, value in columns if name.startswith("other_") and value}
    with stage.engine.begin() as connection:
        connection.exec_driver_sql(f"DROP TABLE {TABLE}")
        connection.exec_driver_sql(f"CREATE TABLE {TABLE} ({definition}) CHARACTER SET utf8mb4 ROW_FORMAT = DYNAMIC")
        connection.exec_driver_sql(f"SET GLOBAL binlog_row_metadata = {metadata}")
        connection.exec_driver_sql(f"SET GLOBAL binlog_checksum = {checksum}")
        connection.exec_driver_sql(f"SET SESSION binlog_row_image = {image}")
        position = head(connection)
    with stage.engine.begin() as connection:
        connection.exec_driver_sql(f"SET SESSION binlog_row_image = {image}")
        names = ", ".join([*values[0], *others])
        marks = ", ".join([*(f":{name}" for name in values[0]), *others.values()])
        marks = marks.replace(":12", r"\:12").replace(":13", r"\:13").replace(":04", r"\:04").replace(":05", r"\:05")
        connection.execute(text(f"INSERT INTO {TABLE} ({names}) VALUES ({marks})"), values)
        connection.exec_driver_sql("SET SESSION binlog_row_image = DEFAULT")

    found = read(stage, position, len(values), certain=image == "FULL")

    with stage.engine.connect() as connection:
        wanted = OutboxStatements().read_committed(connection, [row.id for row in found])
    assert [as_read(row) for row in found] == [as_read(row) for row in wanted]
    assert len(found) == len(values)


def test_the_character_set_of_every_collation_is_the_servers_or_not_known(stage: Stage) -> None:
    with stage.engine.connect() as connection:
        # MariaDB's COLLATIONS has no numbers for those that several character sets share.
        is_mariadb = "MariaDB" in connection.exec_driver_sql("SELECT VERSION()").scalar_one()
        told = "COLLATION_CHARACTER_SET_APPLICABILITY" if is_mariadb else "COLLATIONS"
        found = connection.exec_driver_sql(f"SELECT ID, CHARACTER_SET_NAME FROM INFORMATION_SCHEMA.{told}").all()
    collations = {int(number): str(name) for number, name in found if number is not None}
    known = {number: charset_name(number) for number in collations}
    known = {number: name for number, name in known.items() if not name.startswith("collation ")}
    assert known == {number: collations[number] for number in known}
    assert {number for number, name in collations.items() if name.startswith("utf8")} <= known.keys()


@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_000, 17_000_000, 40_000_000])
def test_payloads_of_any_size_come_through(stage: Stage, size: int) -> None:
    with stage.engine.begin() as connection:
        connection.exec_driver_sql("SET GLOBAL max_allowed_packet = 134217728")
    stage.engine.dispose()
    with stage.engine.begin() as connection:
        position = head(connection)
        connection.execute(
            text(
                f"INSERT INTO {TABLE} (biz_type, topic, message_key, payload, created_at) "
                "VALUES ('t', 't', 'k', CONCAT('\"', REPEAT('x', :size), '🎉\"'), :at)"
            ),
            {"size": size, "at": datetime(2026, 1, 1) + timedelta(microseconds=size)},
        )
    (row,) = read(stage, position, 1, certain=size < 8_000_000)  # larger ones leave before the end of their transaction
    assert row.payload == b'"' + b"x" * size + '🎉"'.encode()


#: Beside the contract's columns, what servers keep in the image and INFORMATION_SCHEMA tells otherwise, or the other
#: way round: column definitions before ``topic``, keys at the end, and the only flavour that has them.
PECULIAR = {
    "invisible": ("x INT INVISIBLE DEFAULT 5,", "", None),
    "virtual": ("x VARCHAR(80) GENERATED ALWAYS AS (CONCAT(biz_type, 'x')) VIRTUAL,", "", None),
    "stored": ("x VARCHAR(80) GENERATED ALWAYS AS (CONCAT(biz_type, 'x')) STORED,", "", None),
    "geometry": ("g POINT,", "", None),
    "not null geometry": ("g POINT NOT NULL DEFAULT (ST_GeomFromText('POINT(1 2)')),", "", None),
    "wide set and bit": ("s SET('a','b','c','d','e','f','g','h','i') DEFAULT 'i', b BIT(64) DEFAULT b'1',", "", None),
    "fulltext": ("", ", FULLTEXT KEY f (payload)", None),
    "functional index": ("", ", KEY f ((LOWER(biz_type)))", "mysql"),
    "multi-valued index": ("j JSON,", ", KEY f ((CAST(j->'$.a' AS UNSIGNED ARRAY)))", "mysql"),
    "vector": ("v VECTOR(3) DEFAULT NULL, w VECTOR(2) DEFAULT (TO_VECTOR('[1,2]')),", "", "mysql"),
    "compressed": ("x VARCHAR(500) COMPRESSED DEFAULT 'abc', y TEXT COMPRESSED DEFAULT 'z',", "", "mariadb"),
    "uuid and inet6": ("u UUID DEFAULT '123e4567-e89b-12d3-a456-426655440000', i INET6 DEFAULT '::1',", "", "mariadb"),
}
#: The first major version that has them.
SINCE = {"vector": 9}


@pytest.mark.parametrize("metadata", ["MINIMAL", "FULL"])
@pytest.mark.parametrize("name", PECULIAR)
def test_peculiar_columns_do_not_shift_ours(stage: Stage, either_server: MysqlServer, name: str, metadata: str) -> None:
    before_topic, keys, flavour = PECULIAR[name]
    # In different character sets, so that it shows when one is taken for its neighbour's.
    forms = {column: forms[0] for column, forms in OURS.items()}
    forms["message_key"] = "VARCHAR(128) CHARACTER SET gbk NULL"
    columns = ", ".join(f"{column} {form}" for column, form in forms.items())
    definition = columns.replace("topic ", f"{before_topic} topic ", 1) + keys
    create = f"CREATE TABLE {TABLE} ({definition}) CHARACTER SET utf8mb4".replace("%", "%%")
    major = int(either_server.server_version.partition(".")[0])
    if flavour not in (None, either_server.flavour) or major < SINCE.get(name, 0):
        with stage.engine.begin() as connection, pytest.raises(DBAPIError):  # or it is to be tested there too
            connection.exec_driver_sql(create.replace(TABLE, "peculiar"))
        return
    with stage.engine.begin() as connection:
        connection.exec_driver_sql(f"SET GLOBAL binlog_row_metadata = {metadata}")
        connection.exec_driver_sql(f"DROP TABLE {TABLE}")
        connection.exec_driver_sql(create)
        position = head(connection)
        connection.exec_driver_sql(
            f"INSERT INTO {TABLE} (biz_type, topic, message_key, payload, created_at) VALUES "
            "('b', 't', '好', '\"好\"', '2026-01-02 03:04:05'), ('bé', 'tt', NULL, '[1]', NULL)"
        )
    found = read(stage, position, 2, certain=True)
    with stage.engine.connect() as connection:
        wanted = OutboxStatements().read_committed(connection, [row.id for row in found])
    assert [as_read(row) for row in found] == [as_read(row) for row in wanted]


PAYLOADS = [
    "",
    "\0",
    "a\0b\0",
    "'\"\\\\\\'",
    "\r\n\t\b\x1a\x7f",
    "🎉👩‍👩‍👧‍👦\U0010ffff",
    "\ufeffBOM, \u2028 and \u2029, \ufffd",
    "é and e\u0301",
    "trailing spaces   ",
    "%s %% :name {} ${x}",
    '{"a": "\\ud83d\\ude00", "b": 1e400, "c": "\\u0000"}',
]


def test_text_of_every_kind_comes_through_byte_for_byte(stage: Stage) -> None:
    with stage.engine.begin() as connection:
        position = head(connection)
        connection.execute(
            text(f"INSERT INTO {TABLE} (biz_type, topic, message_key, payload) VALUES ('t', 't', :p, :p)"),
            [{"p": payload} for payload in PAYLOADS],
        )
    found = read(stage, position, len(PAYLOADS), certain=True)
    assert [row.payload.decode() for row in found] == PAYLOADS
    assert [row.message_key.decode() for row in found] == PAYLOADS


@pytest.mark.parametrize(
    "kind", ["BINARY(8)", "VARBINARY(8)", "CHAR(8)", "ENUM('x','k')", "VARCHAR(8) COLLATE ascii_bin"]
)
def test_keys_of_other_types_are_as_the_table_has_them(stage: Stage, kind: str) -> None:
    """Read by the decoder or, where it cannot, by their ids."""
    with stage.engine.begin() as connection:
        kind = kind.replace("COLLATE ascii_bin", "CHARACTER SET ascii COLLATE ascii_bin")
        connection.exec_driver_sql(f"ALTER TABLE {TABLE} MODIFY message_key {kind} NULL")
        connection.exec_driver_sql("SET GLOBAL binlog_row_metadata = FULL")
    with stage.engine.begin() as connection:
        position = head(connection)
        connection.exec_driver_sql(
            f"INSERT INTO {TABLE} (biz_type, topic, message_key, payload) "
            "VALUES ('t', 't', 'k', '1'), ('t', 't', NULL, '2')"
        )
    found = read(stage, position, 2)
    with stage.engine.connect() as connection:
        wanted = OutboxStatements().read_committed(connection, [row.id for row in found])
    assert [as_read(row) for row in found] == [as_read(row) for row in wanted]
    assert found[0].message_key.startswith(b"k")


@pytest.mark.parametrize("charset", sorted(_CODECS))
def test_every_character_of_the_sets_that_are_decoded_here_is_what_the_server_makes_of_it(
    mysql_server: MysqlServer, charset: str
) -> None:
    """Python's tables are not the server's: character sets where they differ are left to the server."""
    raw = [bytes([first]) for first in range(256)]
    if charset in ("cp932", "euckr", "gb2312", "gbk"):
        raw += [bytes([first, second]) for first in range(0x81, 0xFF) for second in range(0x40, 0xFF)]
    engine = create_engine(mysql_server.url)
    seen = 0
    with engine.connect() as connection:
        for at in range(0, len(raw), 4_000):
            some = raw[at : at + 4_000]
            columns = ", ".join(f"HEX(CONVERT(CONVERT(x'{one.hex()}' USING {charset}) USING utf8mb4))" for one in some)
            told = connection.exec_driver_sql(f"SELECT {columns}").one()
            for one, there in zip(some, told, strict=True):
                try:
                    here = one.decode(_CODECS[charset])
                except UnicodeDecodeError:
                    continue  # such rows are undecodable, which is told, and are read from the table
                if there is not None:  # which these bytes are no text of the set for
                    assert bytes.fromhex(there) == here.encode(), one
                    seen += 1
    engine.dispose()
    assert seen > 128
