"""What the threads of a session ask the database, each question in a transaction of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

from sqlalchemy import Connection

from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.binlog.server import head
from cdc_relay.errors import DatabaseContended
from cdc_relay.logs import get_logger
from cdc_relay.outbox.row import OutboxRow
from cdc_relay.outbox.statements import OutboxStatements

log = get_logger(__name__)

T = TypeVar("T")

#: How often a transaction is begun anew at once when somebody else holds its rows.
_CONTENDED_TRIES = 6


class Questions:
    """Safe for threads. Each method raises what ``transaction`` does."""

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[Connection]],
        statements: OutboxStatements,
        wait: Callable[[float], object],
    ) -> None:
        """``wait`` sleeps so many seconds, or less when the session stops."""
        self._transaction = transaction
        self._statements = statements
        self._wait = wait

    def committed(self, ids: Sequence[int]) -> list[OutboxRow]:
        """The rows with these ids (``OutboxStatements.read_committed``)."""

        def read() -> list[OutboxRow]:
            with self._transaction() as connection:
                return self._statements.read_committed(connection, ids)

        return self.uncontended(read)

    def untouched(self, first: int, last: int) -> range | set[int]:
        """See ``OutboxStatements.untouched``."""
        with self._transaction() as connection:
            return self._statements.untouched(connection, first, last)

    def head(self) -> BinlogPosition:
        """Where the server's binlog ends now."""
        with self._transaction() as connection:
            return head(connection)

    def uncontended(self, work: Callable[[], T]) -> T:
        """``work()``, begun anew when somebody else holds the rows; that is no reason to end a session."""
        for attempt in range(_CONTENDED_TRIES):
            try:
                return work()
            except DatabaseContended as error:
                log.debug(f"{error}; trying again", action="contended", attempt=attempt + 1)
                self._wait(random.uniform(0.005, 0.02) * 2**attempt)
        return work()
