"""MySQL's errors in our terms: an outage is waited for, anything else is told with what mends it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pymysql
import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cdc_relay.config import DatabaseSettings
from cdc_relay.errors import DatabaseError, DatabaseUnavailable
from cdc_relay.outbox.database import error_code, is_contention, make_engine, transaction, translate, translated


def wrapped(code: int, words: str, *, invalidated: bool = False) -> DBAPIError:
    """As SQLAlchemy raises what the driver raised."""
    return OperationalError(
        "SELECT 'private'",
        {"payload": "private"},
        pymysql.err.OperationalError(code, words),
        connection_invalidated=invalidated,
    )


@pytest.mark.parametrize(
    "code",
    [
        *(0, 1040, 1053, 1158, 1203, 1205, 1213, 1290, 1317, 1792, 1836, 1927, 2002, 2003, 2005, 2006, 2013, 2014),
        *(2026, 2055, 3024, 3168, 3169, 3572, 4031),
    ],
)
def test_an_outage_or_contention_is_retriable_and_names_the_code(code: int) -> None:
    for error in (wrapped(code, "in MySQL's words"), pymysql.err.OperationalError(code, "in MySQL's words")):
        told = translate(error)
        assert isinstance(told, DatabaseUnavailable)
        assert told.retriable
        assert f"({code}: in MySQL's words)" in str(told)


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (1044, "GRANT"),
        (1045, "check user and password in database.url"),
        (1049, "database.url"),
        (1054, "init-db --print"),
        (1142, "GRANT"),
        (1146, "init-db"),
        (1227, "GRANT"),
    ],
)
def test_what_the_operator_must_mend_is_told_with_how(code: int, hint: str) -> None:
    told = translate(wrapped(code, "in MySQL's words"))
    assert type(told) is DatabaseError
    assert not told.retriable
    assert told.hint is not None
    assert hint in told.hint
    assert f"MySQL says {code}: in MySQL's words" in str(told)


@pytest.mark.parametrize("code", [1048, 1062, 1064, 1364, 1366, 1406])
def test_a_statement_that_is_wrong_is_no_outage(code: int) -> None:
    assert not translate(wrapped(code, "x")).retriable


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "refused"),
        TimeoutError("timed out"),
        pymysql.err.InterfaceError("closed"),
        InterfaceError("SELECT 1", {}, pymysql.err.InterfaceError(0, "")),
        wrapped(9999, "unknown", invalidated=True),
        PoolTimeout("QueuePool limit of size 2 overflow 2 reached, connection timed out"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_connection_that_broke_in_any_other_way_is_an_outage_too(error: Exception) -> None:
    assert isinstance(translate(error), DatabaseUnavailable)


def test_an_error_quotes_neither_statement_nor_values() -> None:
    for error in (wrapped(1146, "no table"), wrapped(2013, "lost"), wrapped(1205, "timeout")):
        assert "private" not in str(translate(error))


def test_errors_of_sqlalchemy_itself_are_told_in_one_line() -> None:
    told = translate(ArgumentError("first line\nsecond line"))
    assert str(told) == "MySQL: first line"
    assert str(translate(pymysql.err.Error())) != "MySQL: "


@pytest.mark.parametrize(
    ("error", "code", "contention"),
    [
        (wrapped(1213, "deadlock"), 1213, True),
        (wrapped(1205, "lock wait timeout"), 1205, True),
        (wrapped(2013, "lost"), 2013, False),
        (pymysql.err.InternalError(1213, "deadlock"), 1213, True),
        (pymysql.err.InterfaceError("closed"), None, False),
        (ValueError(1213), None, False),
    ],
)
def test_contention_is_told_from_outages_by_its_code(error: Exception, code: int | None, contention: bool) -> None:
    assert error_code(error) == code
    assert is_contention(error) == contention


def test_errors_leave_a_block_in_our_terms_with_their_cause() -> None:
    cause = wrapped(2013, "lost")
    with pytest.raises(DatabaseUnavailable) as caught, translated():
        raise cause
    assert caught.value.__cause__ is cause
    with pytest.raises(ZeroDivisionError), translated():
        raise ZeroDivisionError


@pytest.fixture
def sqlite() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    yield engine
    engine.dispose()


def test_a_transaction_commits_at_its_end_and_rolls_back_on_an_error(sqlite: Engine) -> None:
    with transaction(sqlite) as connection:
        connection.exec_driver_sql("CREATE TABLE t (id INTEGER PRIMARY KEY)")
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
    with pytest.raises(ZeroDivisionError), transaction(sqlite) as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (2)")
        raise ZeroDivisionError
    with pytest.raises(DatabaseError) as caught, transaction(sqlite) as connection:
        connection.exec_driver_sql("INSERT INTO nowhere VALUES (3)")
    assert isinstance(caught.value.__cause__, OperationalError | ProgrammingError)
    with transaction(sqlite) as connection:
        assert connection.exec_driver_sql("SELECT id FROM t").scalars().all() == [1]


def test_an_error_at_the_commit_is_translated_too() -> None:
    class Failing:
        @contextmanager
        def begin(self) -> Iterator[object]:
            yield object()
            raise wrapped(2013, "lost during COMMIT")

    with pytest.raises(DatabaseUnavailable, match="lost during COMMIT"), transaction(Failing()):  # type: ignore[arg-type]
        pass


def test_every_wait_of_an_engine_is_bounded() -> None:
    settings = DatabaseSettings(
        url="mysql://relay:secret@127.0.0.1:1/shop", connect_timeout_s=0.5, read_timeout_s=0.25, table="t"
    )
    engine = make_engine(settings)
    try:
        assert engine.pool._timeout == 0.25  # type: ignore[attr-defined]
        assert "secret" not in repr(engine)
        with pytest.raises(DatabaseUnavailable, match="2003"), transaction(engine):
            pytest.fail("connected to port 1")
    finally:
        engine.dispose()
