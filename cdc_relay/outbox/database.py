"""Connections to the application's database, and MySQL's errors in our terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pymysql
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cdc_relay.config import DatabaseSettings
from cdc_relay.errors import DatabaseContended, DatabaseError, DatabaseUnavailable

# Server and client error numbers: MySQL manual, "Server Error Message Reference" and "Client Error Message Reference".
_AWAY = {
    0: "the connection broke",
    1040: "too many connections",
    1053: "the server is shutting down",
    1079: "the server is shutting down",
    1080: "the connection was forced off",
    1152: "the connection was aborted",
    1158: "a network error",
    1159: "a network timeout",
    1160: "a network error",
    1161: "a network timeout",
    1184: "the connection was aborted",
    1203: "too many connections of this user",
    1226: "the user's resource limit is reached",
    1290: "the server runs with --read-only",
    1317: "the statement was interrupted",
    1792: "the server is read-only",
    1836: "the server is read-only",
    1927: "the connection was killed",
    2002: "the server cannot be reached",
    2003: "the server cannot be reached",
    2005: "the server's name does not resolve",
    2006: "the server has gone away",
    2013: "the connection was lost",
    2014: "the connection broke in the middle of a statement",
    2026: "the TLS connection broke",
    2027: "the connection broke in the middle of a packet",
    2055: "the connection was lost",
    3024: "the statement took too long",
    3168: "the server is starting or stopping",
    3169: "the session was killed",
    4031: "the server closed an idle connection",
}
_CONTENDED = {1205: "lock wait timeout", 1213: "deadlock", 3572: "the row is locked"}
_HINTS = {
    1044: "GRANT SELECT, INSERT, UPDATE on the database to this user",
    1045: "check user and password in database.url",
    1698: "check user and password in database.url",
    1049: "create the database, or name the right one in database.url",
    1054: "compare the table with `cdc-relay init-db --print`",
    1142: "GRANT the privilege named above to this user",
    1143: "GRANT the privilege named above to this user",
    1146: "create it with `cdc-relay init-db`, or name the right one in database.table",
    1227: "GRANT the privilege named above to this user",
}

_SHORTEST_SILENCE_S = 15

#: What a server may have set for everybody and our statements do not expect: that values which do not fit are cut, that
#: a backslash is an ordinary character, that a SELECT gives no more than so many rows or may take only so long. Each
#: server takes the second kind of comment for a part of the statement if it is its own, and for a comment if not.
_OUR_SESSION = (
    "SESSION sql_mode = 'STRICT_ALL_TABLES', SESSION sql_select_limit = 18446744073709551615 "
    "/*!80000 , SESSION max_execution_time = 0 */ /*M!100600 , SESSION max_statement_time = 0 */"
)


def make_engine(settings: DatabaseSettings, *, pool_size: int = 2) -> Engine:
    """An engine whose every wait is bounded: READ COMMITTED (no gap locks), utf8mb4, pinged before use.

    A value that does not fit its column is an error.
    """
    return create_engine(
        settings.parsed,
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_size=pool_size,
        max_overflow=2,
        pool_timeout=settings.read_timeout_s,
        pool_recycle=1800,
        connect_args={
            "charset": "utf8mb4",
            "password": password_bytes(settings),
            "init_command": _init_command(settings),
            "connect_timeout": max(1, int(settings.connect_timeout_s)),
            "read_timeout": settings.read_timeout_s,
            "write_timeout": settings.read_timeout_s,
        },
    )


def password_bytes(settings: DatabaseSettings) -> bytes:
    """As MySQL's own clients send it; PyMySQL would encode text as Latin-1."""
    return (settings.parsed.password or "").encode()


def _init_command(settings: DatabaseSettings) -> str:
    # Below read_timeout_s, so that the server says who waits for a lock instead of being hung up on.
    lock_wait_s = max(1, int(settings.read_timeout_s / 3))
    # Above it, so that the server gives up a connection, with the row locks that it may hold, soon after we have: a
    # peer that vanished is noticed by neither TCP nor MySQL for hours.
    silence_s = max(_SHORTEST_SILENCE_S, int(settings.read_timeout_s * 1.5))
    return f"SET SESSION innodb_lock_wait_timeout = {lock_wait_s}, SESSION wait_timeout = {silence_s}, {_OUR_SESSION}"


@contextmanager
def closing_engine(engine: Engine) -> Iterator[None]:
    """Close the engine's pooled connections at the end."""
    try:
        yield
    finally:
        engine.dispose()


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction, committed at the end; library errors leave as DatabaseError or DatabaseUnavailable."""
    with translated(), engine.begin() as connection:
        yield connection


@contextmanager
def translated() -> Iterator[None]:
    """Turn SQLAlchemy's and PyMySQL's errors into ours."""
    try:
        yield
    except (SQLAlchemyError, pymysql.err.Error, OSError) as error:
        raise translate(error) from error


def error_code(error: BaseException) -> int | None:
    """The MySQL error number in ``error`` or in what it wraps; None when there is none."""
    original = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(original, pymysql.err.Error) and original.args and isinstance(original.args[0], int):
        return original.args[0]
    return None


def is_answer(error: BaseException) -> bool:
    """Whether the server has answered with this error, so that its connection goes on; else it is the client's own."""
    code = error_code(error)
    return code is not None and code > 0 and not 2000 <= code < 3000


def is_contention(error: BaseException) -> bool:
    """A deadlock or a lock wait timeout: the same transaction may go well when it is tried again at once."""
    return error_code(error) in _CONTENDED


def translate(error: BaseException) -> DatabaseError:
    """The error of ours that says the same."""
    code = error_code(error)
    original = error.orig if isinstance(error, DBAPIError) else error
    arguments: tuple[object, ...] = getattr(original, "args", ())
    words = str(arguments[1]) if len(arguments) > 1 else (str(original or error) or repr(error)).splitlines()[0]
    if isinstance(error, OSError) or code in _AWAY:
        return DatabaseUnavailable(f"MySQL is away: {_AWAY.get(code or 0, 'the connection broke')} ({code}: {words})")
    if code in _CONTENDED:
        return DatabaseContended(f"MySQL is contended: {_CONTENDED[code]} ({code}: {words})")
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return DatabaseUnavailable(f"MySQL is away: {words}")
    if isinstance(original, pymysql.err.InterfaceError | PoolTimeout):  # the latter: each connection waits for MySQL
        return DatabaseUnavailable(f"MySQL is away: {words}")
    return DatabaseError(f"MySQL says {code}: {words}" if code else f"MySQL: {words}", hint=_HINTS.get(code or -1))
