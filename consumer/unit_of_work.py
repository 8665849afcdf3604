"""One transaction on the application's database: rolled back unless told to commit."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, tzinfo
from types import TracebackType
from typing import Any, Self

import pymysql
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import SQLAlchemyError

from cdc_relay.config import DatabaseSettings
from cdc_relay.errors import PoisonRow, RelayError, RetryableRow
from cdc_relay.outbox.clock import to_column
from cdc_relay.outbox.consumer_statements import ConsumerStatements
from cdc_relay.outbox.database import error_code, make_engine, translate

#: What SQLAlchemy and the driver raise.
DATABASE_ERRORS = (SQLAlchemyError, pymysql.err.Error)

UnitOfWorkFactory = Callable[[datetime], "UnitOfWork"]

#: Refusals of a value, which the same row meets again at each attempt (MySQL: Server Error Message Reference).
_POISON = {
    1062,  # duplicate entry for a unique key
    1153,  # packet bigger than max_allowed_packet
    1264,  # out of range
    1265,  # truncated
    1292,  # incorrect value
    1366,  # characters that the column's character set lacks
    1406,  # too long for the column
    1690,  # out of range in an expression
    3140,  # invalid JSON text
    3819,  # CHECK constraint (MySQL)
    4025,  # CHECK constraint (MariaDB)
}
#: Refusals that another transaction may lift.
_RETRYABLE = {
    1216,  # no parent row for a foreign key
    1452,  # no parent row for a foreign key
    1644,  # SIGNAL, from a trigger of the application
}


class UnitOfWork:
    """``with UnitOfWork(…) as work: …; work.commit()``; without the last call nothing is kept.

    Errors of SQLAlchemy and of the driver leave as ours: DatabaseUnavailable, DatabaseError, or, where MySQL refuses a
    value, PoisonRow or RetryableRow. The latter two do not say which row of a statement it was.
    """

    connection: Connection

    def __init__(self, engine: Engine, outbox: ConsumerStatements, zone: tzinfo, now: datetime) -> None:
        """``now`` is an instant; ``zone`` is that of the DATETIME columns."""
        self.outbox = outbox
        self.now = to_column(now, zone)
        """The time of this transaction as a column has it."""
        self._engine = engine

    def run(self, sql: str) -> int:
        """Run a statement with its values written in it (see ``quoted``); how many rows it has found.

        The driver takes 5 µs and more for each value that it puts in: for statements of many rows that is half of all.
        """
        return self.connection.exec_driver_sql(sql, execution_options={"no_parameters": True}).rowcount

    def commit(self) -> None:
        """Make it durable. Raises DatabaseUnavailable also when only the answer was lost: it may have happened."""
        self.connection.commit()

    def __enter__(self) -> Self:
        try:
            self.connection = self._engine.connect()
        except (*DATABASE_ERRORS, OSError) as error:
            raise translate(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            # Returning the connection to the pool rolls back whatever was not committed.
            self.connection.close()
        except (*DATABASE_ERRORS, OSError) as failed:
            if error is None:
                raise translate(failed) from failed
        if isinstance(error, (*DATABASE_ERRORS, OSError)):
            raise translate_refusal(error) from error


def quoted(value: str) -> str:
    """``value`` as a literal of SQL, in sessions of ``consumer_engine``.

    Only these two characters must be escaped (MySQL manual, "mysql_real_escape_string_quote()").
    """
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def translate_refusal(error: BaseException) -> RelayError:
    """The error of ours that says the same, telling a value that MySQL refuses from everything else."""
    code, told = error_code(error), translate(error)
    if code in _POISON:
        return PoisonRow(f"the database refuses the value: {told.message}")
    if code in _RETRYABLE:
        return RetryableRow(f"the database refuses the row: {told.message}")
    return told


def consumer_engine(settings: DatabaseSettings, *, connections: int = 1) -> Engine:
    """An engine on which a locked row is waited for longer than on the relay's, within bounds."""
    engine = make_engine(settings, pool_size=connections)
    # Below the read timeout, so that the server ends the wait and not a connection that looks dead.
    lock_wait_s = max(1, min(10, int(settings.read_timeout_s / 2)))

    @event.listens_for(engine, "connect")
    def _configure_session(connection: Any, _: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {lock_wait_s}")

    return engine
