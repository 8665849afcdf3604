"""The keys that the relay holds back, shared by its threads (P3).

The tailer asks before it sends, the status writer holds keys whose row has failed, the sweep sends what was held.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sized
from threading import Lock

from cdc_relay.errors import RowError
from cdc_relay.outbox.parking import Ordering, Parking


class SharedParking:
    """A ``Parking`` behind a lock, which also finds a waiting row by its id alone and knows which of them are dead."""

    def __init__(self, ordering: Ordering = Ordering.SKIP_DEAD) -> None:
        self.ordering = ordering
        self._lock = Lock()
        self._parking = Parking(ordering)
        self._keys: dict[int, bytes] = {}
        self._dead: dict[int, bytes] = {}
        self._unwritten: set[int] = set()

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
        if not key or self.ordering is Ordering.NONE:
            return
        with self._lock:
            self._parking.hold(key, row_id)
            self._keys[row_id] = key

    def hold_unwritten(self, key: bytes, row_id: int) -> None:
        """Row ``row_id`` is to wait, and later rows of its key behind it; the table does not say so yet."""
        with self._lock:
            self._unwritten.add(row_id)
        self.hold(key, row_id)

    def written(self, row_ids: Iterable[int]) -> None:
        """The table says now what became of these rows."""
        if self._unwritten:
            with self._lock:
                self._unwritten.difference_update(row_ids)

    @property
    def unwritten(self) -> Container[int]:
        """The ids of which the table does not say yet that they wait. Nothing that waits behind one of them may be
        written before it: who finds the table so after a crash would send the later row first."""
        return self._unwritten

    def refused(self, key: bytes, row_id: int, reason: RowError) -> None:
        """Row ``row_id`` cannot be sent, for now or for good, and later rows of its key may follow at once."""
        if reason.retriable or self.ordering is Ordering.BLOCK_ON_DEAD:
            self.hold_unwritten(key, row_id)

    def died(self, key: bytes, row_id: int) -> None:
        """Row ``row_id`` is dead in the table: later rows of its key go on, or wait for an operator."""
        if self.ordering is not Ordering.BLOCK_ON_DEAD:
            self.release([row_id])
        elif key:
            with self._lock:
                self._parking.hold(key, row_id)
                self._keys[row_id] = self._dead[row_id] = key

    def release(self, row_ids: Iterable[int]) -> None:
        """These rows hold nothing back any more; ids that do not wait are no error."""
        if not self._keys:
            return
        with self._lock:
            for row_id in row_ids:
                self._unwritten.discard(row_id)
                key = self._keys.pop(row_id, None)
                if key is not None:
                    self._parking.release(key, row_id)
                    self._dead.pop(row_id, None)

    def blocked_by(self, key: bytes, row_id: int, going: Container[int] = ()) -> int | None:
        """The lowest id of ``key`` that waits before ``row_id``; None when the row may go on.

        ``going``: ids that are on their way already, right ahead of it.
        """
        with self._lock:
            return next((ahead for ahead in self._parking.ahead_of(key, row_id) if ahead not in going), None)

    def waiting(self, limit: int) -> list[int]:
        """Up to ``limit`` ids that wait for something to happen by itself, lowest first: none behind a dead row."""
        with self._lock:
            ids = sorted(self._parking.ids(but_behind=self._dead))
            return [row_id for row_id in ids if row_id not in self._dead][:limit]

    def stuck(self, row_ids: Collection[int]) -> set[int]:
        """Those of these ids that are known to wait behind a row which is not among them."""
        if not self._keys:
            return set()
        among = set(row_ids)
        with self._lock:
            first = {row_id: self._parking.blocked_by(self._keys.get(row_id, b""), row_id) for row_id in among}
        return {row_id for row_id, ahead in first.items() if ahead is not None and ahead not in among}

    @property
    def keys(self) -> int:
        """How many keys are held back."""
        return self._parking.keys

    @property
    def must_be_refilled(self) -> bool:
        """Whether a restart must read from the table what is held back: something is, or nobody has looked."""
        return bool(self._keys) or self.ordering is Ordering.NONE

    # --- dead rows that hold back their keys -----------------------------------------------------------------------

    @property
    def dead(self) -> frozenset[int]:
        """The dead rows that are known to hold back their keys."""
        with self._lock:
            return frozenset(self._dead)

    @property
    def blocked_keys(self) -> int:
        """How many keys wait for an operator."""
        with self._lock:
            return len(set(self._dead.values()))

    def revived(self, row_ids: Iterable[int]) -> None:
        """These rows are dead no longer: they hold back their keys as others do, until they are released."""
        with self._lock:
            for row_id in row_ids:
                self._dead.pop(row_id, None)
