"""Which rows of the binlog nobody has touched since they were inserted.

After a restart the binlog is read again from the checkpoint, and the table must say which rows are still to be sent.
Mostly all are, tens of thousands in a row, so the table is asked for a stretch of ids at a time, not for rows; and for
the next stretch while the rows of this one are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Thread

Ask = Callable[[int, int], range | set[int]]
"""``ask(first, last)`` gives the ids from first to last of the rows that are pending and were never tried."""

#: How many ids are asked for ahead, and how many behind: transactions commit in another order than they take ids.
_AHEAD = 20_000
_BEHIND = 2_000

#: A batch whose ids lie further apart is not asked for in one stretch.
_WIDEST = 200_000


class UntouchedRows:
    """What the table said of a stretch of ids. ``ask`` is called on threads of its own too, one at a time."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._here: _Stretch | None = None
        self._next: _Stretch | None = None

    def has_all(self, ids: Sequence[int]) -> bool:
        """Whether every one of these was untouched when the table was asked; false may also mean not known.

        Raises what ``ask`` raises.
        """
        lowest, highest = min(ids), max(ids)
        if highest - lowest > _WIDEST:
            return False
        here = self._here
        if here is None or not here.covers(lowest, highest):
            here, self._next = self._next, None
            if here is None or not here.covers(lowest, highest):
                here = _Stretch(self._ask, lowest - _BEHIND, max(highest, lowest + _AHEAD))
            self._here = here
        untouched = here.untouched()
        if self._next is None and highest > here.last - _AHEAD // 2:
            self._next = _Stretch(self._ask, here.last - _BEHIND, here.last + _AHEAD)
        if isinstance(untouched, range):
            return lowest in untouched and highest in untouched
        return untouched.issuperset(ids)

    def forget(self) -> None:
        """Rows were sent by another way: what the table said before may hold no longer."""
        self._here = self._next = None


class _Stretch:
    """Asked for at once, in the background."""

    def __init__(self, ask: Ask, first: int, last: int) -> None:
        self.first, self.last = first, last
        self._ask = ask
        self._answer: range | set[int] | None = None
        self._failure: BaseException | None = None
        # A daemon: nobody may be interested any more when the answer comes, not even the program.
        self._thread = Thread(target=self._run, name="untouched", daemon=True)
        self._thread.start()

    def covers(self, lowest: int, highest: int) -> bool:
        return self.first <= lowest and highest <= self.last

    def untouched(self) -> range | set[int]:
        if self._answer is None:
            self._thread.join()
            if self._failure is not None:
                raise self._failure
        assert self._answer is not None
        return self._answer

    def _run(self) -> None:
        try:
            self._answer = self._ask(self.first, self.last)
        except BaseException as failure:  # noqa: BLE001  # raised where the answer is wanted
            self._failure = failure
