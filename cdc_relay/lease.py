"""One relay is active per name and server: the one that holds a lock of the server (GET_LOCK).

The lock lives as long as its connection. A relay that is killed loses it at once; one whose host has vanished loses it
when the server gives its silent connection up, after ``_SILENCE_S``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from sqlalchemy import Connection, Engine, text

from cdc_relay.errors import DatabaseError, DatabaseUnavailable, LeadershipLost
from cdc_relay.outbox.database import transaction, translated

#: The server gives a lock connection up that has said nothing for so long; ``check`` must be called more often.
_SILENCE_S = 15


class Leadership:
    """The locks ``names`` on one connection: all or none. Safe for threads."""

    def __init__(self, engine: Engine, names: tuple[str, ...]) -> None:
        self._engine = engine
        self._names = names
        self._connection: Connection | None = None
        self._number = 0  # the server's, of our connection
        self._lost = 0  # the server's, of the connection that broke while it held the locks
        self._lock = Lock()

    def acquire(self, wait_s: int) -> bool:
        """Try to become the active one, waiting up to ``wait_s`` for each lock. Raises DatabaseError."""
        with self._lock, translated():
            if self._connection is None:
                self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                self._connection.execute(text(f"SET SESSION wait_timeout = {_SILENCE_S}"))
                self._number = self._value("SELECT CONNECTION_ID()", "") or 0
            for name in self._names:
                self._end_lost(name)
                if self._value("SELECT GET_LOCK(:name, :wait)", name, wait=wait_s) != 1:
                    self._value("DO RELEASE_ALL_LOCKS()" if len(self._names) > 1 else "DO 0", name)
                    return False
        return True

    def holder(self) -> int | None:
        """The id of the server's connection that holds the first lock; None when it is free."""
        with self._lock, translated():
            return None if self._connection is None else self._value("SELECT IS_USED_LOCK(:name)", self._names[0])

    def check(self) -> None:
        """Raise LeadershipLost unless the locks are ours still."""
        with self._lock:
            if self._connection is None:
                raise LeadershipLost("the relay's lock was given up")
            try:
                with translated():
                    held = all(
                        self._value("SELECT IS_USED_LOCK(:name) = CONNECTION_ID()", name) == 1 for name in self._names
                    )
            except DatabaseError as error:
                self._lost = self._number
                self._discard()
                raise LeadershipLost(f"the connection that holds the relay's lock is gone: {error.message}") from error
            if not held:
                raise LeadershipLost("the relay's lock is held by someone else")

    def close(self) -> None:
        """Give the locks up, whatever state the connection is in."""
        with self._lock:
            self._discard()

    @contextmanager
    def transaction(self, engine: Engine) -> Iterator[Connection]:
        """A transaction of the active relay: refused when the lock is lost."""
        self.check()
        with transaction(engine) as connection:
            yield connection

    def _end_lost(self, name: str) -> None:
        """The server may not know yet that our former connection is gone, and keep the lock for it."""
        if self._lost and self._value("SELECT IS_USED_LOCK(:name)", name) == self._lost:
            try:
                with translated():
                    self._value(f"KILL {self._lost}", "")
            except DatabaseUnavailable:
                raise
            except DatabaseError:
                pass  # it has just ended

    def _discard(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()  # not back to the pool: its locks must end with it
            connection.close()

    def _value(self, sql: str, name: str, **values: int) -> int | None:
        assert self._connection is not None
        parameters = {"name": name} | values if ":name" in sql else {}
        result = self._connection.execute(text(sql), parameters)
        found = result.scalar() if result.returns_rows else None
        return None if found is None else int(found)


def lock_names(relay: str, *, tail: bool, sweep: bool) -> tuple[str, ...]:
    """The locks that a relay of this name needs for its parts (at most 64 characters, MySQL manual "GET_LOCK")."""
    names = []
    if tail:
        names.append(f"cdc_relay:{relay}")
    if sweep:
        names.append(f"cdc_relay:{relay}:sweep")
    return tuple(names)
