"""Which rows of the binlog nobody has touched since they were inserted.

After a restart the binlog is read again from the checkpoint, and the table must say which rows are still to be sent.
Mostly all are, tens of thousands in a row, so the table is asked for a stretch of ids at a time, not for rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: How many ids are asked for ahead, and how many behind: transactions commit in another order than they take ids.
_AHEAD = 20_000
_BEHIND = 2_000

#: A batch whose ids lie further apart is not asked for in one stretch.
_WIDEST = 200_000


class UntouchedRows:
    """What the table said of a stretch of ids."""

    def __init__(self, ask: Callable[[int, int], range | set[int]]) -> None:
        """``ask(first, last)`` gives the ids from first to last of the rows that are pending and were never tried."""
        self._ask = ask
        self._first = 0
        self._last = -1
        self._ids: range | set[int] = range(0)

    def has_all(self, ids: Sequence[int]) -> bool:
        """Whether every one of these was untouched when the table was asked; false may also mean not known."""
        lowest, highest = min(ids), max(ids)
        if highest - lowest > _WIDEST:
            return False
        if lowest < self._first or highest > self._last:
            self._first, self._last = lowest - _BEHIND, max(highest, lowest + _AHEAD)
            self._ids = self._ask(self._first, self._last)
        if isinstance(self._ids, range):
            return lowest in self._ids and highest in self._ids
        return self._ids.issuperset(ids)

    def forget(self) -> None:
        """Rows were sent by another way: what the table said before may hold no longer."""
        self._first, self._last, self._ids = 0, -1, range(0)
