"""The keys that the relay holds back, shared by its threads (P3).

The tailer asks before it sends, the status writer holds keys whose row has failed, the sweep sends what was held.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sized
from threading import Lock

from cdc_relay.outbox.parking import Parking


class SharedParking:
    """A ``Parking`` behind a lock, which also finds a waiting row by its id alone."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._parking = Parking()
        self._keys: dict[int, bytes] = {}

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def held(self) -> Sized:
        """As long as it is empty nothing is held back; the same object always.

        Read without the lock: the tailer asks for every row, and a stale answer is that of a moment ago.
        """
        return self._keys

    def hold(self, key: bytes, row_id: int) -> None:
        """Row ``row_id`` waits in the table, and later rows of its key behind it."""
        if not key:
            return
        with self._lock:
            self._parking.hold(key, row_id)
            self._keys[row_id] = key

    def release(self, row_ids: Iterable[int]) -> None:
        """These rows are delivered or dead; ids that do not wait are no error."""
        if not self._keys:
            return
        with self._lock:
            for row_id in row_ids:
                key = self._keys.pop(row_id, None)
                if key is not None:
                    self._parking.release(key, row_id)

    def blocked_by(self, key: bytes, row_id: int, going: Container[int] = ()) -> int | None:
        """The lowest id of ``key`` that waits before ``row_id``; None when the row may go on.

        ``going``: ids that are on their way already, right ahead of it.
        """
        with self._lock:
            return next((ahead for ahead in self._parking.ahead_of(key, row_id) if ahead not in going), None)

    def waiting(self, limit: int) -> list[int]:
        """Up to ``limit`` ids that wait, lowest first."""
        with self._lock:
            return sorted(self._keys)[:limit]

    @property
    def keys(self) -> int:
        """How many keys are held back."""
        return self._parking.keys
