"""Which keys are held back while an earlier row of theirs waits in the table for its next attempt (P3)."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Container, Iterator
from enum import Enum, auto


class Ordering(Enum):
    """Which rows hold back the later ones of their message_key: ``ordering.mode`` and ``ordering.on_dead`` in one."""

    NONE = auto()
    """None does (``mode = none``)."""
    SKIP_DEAD = auto()
    """Those that wait for their next attempt, until they are delivered or dead (``on_dead = skip``)."""
    BLOCK_ON_DEAD = auto()
    """Dead ones too, until an operator has them delivered or lets them go (``on_dead = block``)."""


class Parking:
    """The ids that wait in the table, by message_key. A row may go on only when no lower id of its key waits.

    Pure memory of what the table says: whoever uses it fills it from the table at start, keeps it while rows come and
    go, and asks the table again before it believes an old entry, since an operator or another program may have ended
    a waiting row meanwhile. An empty key asks for no order, so rows without a key never wait for one another.

    Memory: 8 bytes a waiting row and some 250 a key; there is no other bound, since to forget one row is to break the
    order of its key. Not safe for threads: it belongs to the one thread that decides.
    """

    def __init__(self, ordering: Ordering = Ordering.SKIP_DEAD) -> None:
        self.ordering = ordering
        # Sorted. Ids nearly always come in ascending order and leave from the front, which are the cheap ends.
        self._waiting: dict[bytes, array[int]] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many ids wait."""
        return self._count

    @property
    def keys(self) -> int:
        """How many keys have an id that waits."""
        return len(self._waiting)

    def hold(self, key: bytes, row_id: int) -> None:
        """Row ``row_id`` waits in the table, and later ids of ``key`` behind it. Twice is the same as once."""
        if not key or self.ordering is Ordering.NONE:
            return
        ids = self._waiting.setdefault(key, array("q"))
        at = bisect_left(ids, row_id)
        if at == len(ids) or ids[at] != row_id:
            ids.insert(at, row_id)
            self._count += 1

    def release(self, key: bytes, row_id: int) -> None:
        """Row ``row_id`` no longer holds anything back; unknown ids are no error."""
        ids = self._waiting.get(key)
        if ids is None:
            return
        at = bisect_left(ids, row_id)
        if at < len(ids) and ids[at] == row_id:
            del ids[at]
            self._count -= 1
            if not ids:
                del self._waiting[key]

    def died(self, key: bytes, row_id: int) -> None:
        """Row ``row_id`` is dead: it holds nothing back any more, or all the longer."""
        (self.hold if self.ordering is Ordering.BLOCK_ON_DEAD else self.release)(key, row_id)

    def blocked_by(self, key: bytes, row_id: int) -> int | None:
        """The lowest id of ``key`` that waits and is lower than ``row_id``; None when the row may go on."""
        return next(self.ahead_of(key, row_id), None)

    def ahead_of(self, key: bytes, row_id: int) -> Iterator[int]:
        """Every id of ``key`` that waits and is lower than ``row_id``, ascending. Not to be used across a change."""
        for waiting in self._waiting.get(key, ()):
            if waiting >= row_id:
                return
            yield waiting

    def ids(self, *, but_behind: Container[int] = ()) -> Iterator[int]:
        """Every id that waits, key by key, without the keys whose lowest id is in ``but_behind``."""
        for ids in self._waiting.values():
            if ids[0] not in but_behind:
                yield from ids

    def clear(self) -> None:
        """Forget everything, to be filled anew from the table."""
        self._waiting.clear()
        self._count = 0
