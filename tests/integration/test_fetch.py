"""Rows as the server sends them: the same as the driver gives, and every way in which an answer can break off."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pymysql
import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from cdc_relay.config import DatabaseSettings
from cdc_relay.errors import DatabaseContended, DatabaseError, DatabaseUnavailable
from cdc_relay.outbox import fetch as fetching
from cdc_relay.outbox.database import make_engine, transaction
from cdc_relay.outbox.fetch import TextRow, fetch
from tests.e2e.proxy import Proxy

pytestmark = pytest.mark.mysql

ROWS = 3000
#: About where the length takes more bytes, and where a packet is full.
LENGTHS = (0, 1, 250, 251, 252, 65_535, 65_536, 300_000, 16_777_200, 16_777_201, 16_777_215, 17_000_000)
#: Fails at row 2,000, when most rows before it have been sent: the inner SELECT gives more than one row there.
FAILS_LATE = (
    "SELECT n.id, REPEAT('x', 500), (SELECT m.id FROM numbers AS m WHERE m.id < 3 AND n.id = 2000) FROM numbers AS n"
)


@pytest.fixture
def engine(either_database_url: str) -> Iterator[Engine]:
    engine = make_engine(DatabaseSettings(url=either_database_url))
    with transaction(engine) as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS numbers")
        connection.exec_driver_sql("CREATE TABLE numbers (id int PRIMARY KEY, touched int)")
        values = ", ".join(f"({number}, 0)" for number in range(1, ROWS + 1))
        connection.exec_driver_sql(f"INSERT INTO numbers VALUES {values}")
    yield engine
    engine.dispose()


@pytest.fixture(params=["wire", "driver"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By either way: the driver reads the rows where it lacks what the quicker way needs."""
    if request.param == "driver":
        monkeypatch.setattr(fetching, "_NAMES", ("_rfile", "_no_such_name"))
    return str(request.param)


def ask(engine: Engine, sql: str, **values: object) -> list[TextRow]:
    with transaction(engine) as connection:
        return fetch(connection, sql, values or None)


def test_values_of_every_kind(engine: Engine, how: str) -> None:
    with transaction(engine) as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS kinds")
        connection.exec_driver_sql(
            "CREATE TABLE kinds (n bigint unsigned, small smallint, words varchar(40), narrow varchar(40) CHARACTER SET"
            " latin1, raw varbinary(10), at datetime(6), whole datetime, doc json, nothing text)"
        )
        connection.exec_driver_sql(
            "INSERT INTO kinds VALUES (18446744073709551615, -7, 'ключ 🔑', 'é', x'00ff1e', "
            "'2026-01-02 03:04:05.000060', '2026-01-02 03:04:05', '[1, 2]', NULL)"
        )
    sql = "SELECT n, small, words, narrow, raw, at, whole, doc, nothing, '', n IS NULL FROM kinds"
    assert ask(engine, sql) == [
        [
            *(b"18446744073709551615", b"-7", "ключ 🔑".encode(), "é".encode(), b"\x00\xff\x1e"),
            *(b"2026-01-02 03:04:05.000060", b"2026-01-02 03:04:05", b"[1, 2]", None, b"", b"0"),
        ]
    ]


@pytest.mark.parametrize("size", LENGTHS)
def test_values_of_every_length(engine: Engine, size: int) -> None:
    with transaction(engine) as connection:
        sql = "SELECT REPEAT('x', %(size)s), 'behind it'"
        driver_gives = connection.exec_driver_sql(sql, {"size": size}).scalar_one()
        [(value, behind)] = fetch(connection, sql, {"size": size})
    assert value == (None if driver_gives is None else driver_gives.encode())  # None: more than the server allows
    assert size > 16_000_000 or value is not None
    assert behind == b"behind it"


def test_many_rows_in_order(engine: Engine, how: str) -> None:
    rows = ask(engine, "SELECT id, REPEAT('y', MOD(id, 700)) FROM numbers WHERE id > %(after)s ORDER BY id", after=10)
    assert rows == [[b"%d" % number, b"y" * (number % 700)] for number in range(11, ROWS + 1)]
    assert ask(engine, "SELECT id FROM numbers WHERE id < 0") == []


def test_values_stand_for_themselves(engine: Engine, how: str) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 60)
    odd = 'it\'s 100 % \\ "so"'
    assert ask(engine, "SELECT %(odd)s, %(at)s, '%%'", odd=odd, at=at) == [[odd.encode(), str(at).encode(), b"%"]]
    assert ask(engine, "SELECT '%s'") == [[b"%s"]]  # without values nothing stands for one


def test_it_is_part_of_the_transaction(engine: Engine, how: str) -> None:
    with pytest.raises(ZeroDivisionError), transaction(engine) as connection:
        assert fetch(connection, "SELECT touched FROM numbers WHERE id = 1 FOR UPDATE") == [[b"0"]]
        connection.exec_driver_sql("UPDATE numbers SET touched = 1 WHERE id = 1")
        assert fetch(connection, "SELECT touched FROM numbers WHERE id = 1") == [[b"1"]]
        raise ZeroDivisionError
    assert ask(engine, "SELECT touched FROM numbers WHERE id = 1") == [[b"0"]]
    with engine.connect() as first, engine.connect() as second:
        fetch(first, "SELECT id FROM numbers WHERE id = 1 FOR UPDATE")
        assert first.in_transaction()  # so that its end lets the lock go
        first.rollback()
        assert fetch(second, "SELECT id FROM numbers WHERE id = 1 FOR UPDATE NOWAIT") == [[b"1"]]


@pytest.mark.parametrize(("sql", "code"), [("SELECT 1 FROM no_such_table", 1146), (FAILS_LATE, 1242)])
def test_the_server_refuses_at_once_or_behind_the_first_rows(engine: Engine, how: str, sql: str, code: int) -> None:
    with pytest.raises(DatabaseError, match=str(code)):
        ask(engine, sql)
    with engine.connect() as connection:
        same = fetch(connection, "SELECT CONNECTION_ID()")
        with pytest.raises((SQLAlchemyError, pymysql.err.Error)):
            fetch(connection, sql)
        connection.rollback()
        assert fetch(connection, "SELECT CONNECTION_ID()") == same, "the connection goes on"


def test_a_lock_that_somebody_else_keeps(either_database_url: str, engine: Engine, how: str) -> None:
    impatient = make_engine(DatabaseSettings(url=either_database_url, read_timeout_s=3))
    with transaction(engine) as holder, pytest.raises(DatabaseContended):
        holder.exec_driver_sql("UPDATE numbers SET touched = 2 WHERE id = 5")
        ask(impatient, "SELECT id FROM numbers WHERE id = 5 FOR UPDATE")
    assert ask(impatient, "SELECT id FROM numbers WHERE id = 5 FOR UPDATE") == [[b"5"]]
    impatient.dispose()


def test_a_server_that_does_not_answer_in_time(either_database_url: str, how: str) -> None:
    engine = make_engine(DatabaseSettings(url=either_database_url, read_timeout_s=0.5))
    with pytest.raises(DatabaseUnavailable):
        ask(engine, "SELECT SLEEP(20)")
    assert ask(engine, "SELECT 1") == [[b"1"]]
    engine.dispose()


@pytest.mark.parametrize("fault", ["cut", "reset", "silence"])
def test_a_connection_that_breaks_in_the_middle_of_an_answer(either_database_url: str, fault: str, how: str) -> None:
    url = make_url(either_database_url)
    with Proxy(url.port or 3306) as proxy:
        through = url.set(host=proxy.host, port=proxy.port).render_as_string(hide_password=False)
        engine = make_engine(DatabaseSettings(url=through, read_timeout_s=1))
        with pytest.raises(DatabaseUnavailable), transaction(engine) as connection:
            connection.execute(text("SELECT 1"))
            getattr(proxy, fault)()
            fetch(connection, "SELECT 1 UNION ALL SELECT SLEEP(0)")
        proxy.heal()
        assert ask(engine, "SELECT 1") == [[b"1"]]
        engine.dispose()


def test_an_answer_of_which_only_the_beginning_comes(either_database_url: str, engine: Engine) -> None:
    """The server closes the connection behind a part of the rows: what has come must not pass for all."""
    with transaction(engine) as killer, pytest.raises(pymysql.err.Error), engine.connect() as connection:
        number = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar()
        driver: Any = connection.connection.driver_connection
        reads = driver._rfile

        class KillsBehindTheFirst:
            """Reads a few bytes, and never again before the server has closed."""

            def __init__(self) -> None:
                self.killed = False

            def read1(self, size: int) -> bytes:
                if self.killed:
                    return bytes(reads.read1(size))
                self.killed = True
                some = bytes(reads.read1(20))
                killer.exec_driver_sql(f"KILL {number}")
                return some

            def __getattr__(self, name: str) -> object:
                return getattr(reads, name)

        driver._rfile = KillsBehindTheFirst()
        fetch(connection, "SELECT n.id, REPEAT('z', 30000) FROM numbers AS n")
