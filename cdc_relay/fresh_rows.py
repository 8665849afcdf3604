"""Whose a fresh row is that the sweep finds due: its own, or the tailer's.

Fresh rows belong to the tailer as long as it lives. One that it has passed it has missed, and that needs no clock: the
row was seen in the table; then the head of the binlog was noted, so the row's commit lies before it; then the watermark
was found at or beyond that head. What is still pending now is the sweep's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.outbox.sql import PendingRow


class TailProgress(NamedTuple):
    """How the tailer fares, as the sweep sees it."""

    position: BinlogPosition | None
    """The watermark; None when no tailer is known."""
    stalled: bool
    """It has made no progress for ``takeover_after_s``, so the sweep does its work too."""


class _Awaited(NamedTuple):
    """Fresh rows that were seen in the table before the binlog ended at ``head``: whose they are, shows when the tailer
    has come so far."""

    head: BinlogPosition
    ids: frozenset[int]


class FreshRows:
    """Remembers from one run of the sweep to the next which rows the tailer may still be coming to."""

    def __init__(self, head: Callable[[], BinlogPosition], tail_progress: Callable[[], TailProgress]) -> None:
        """``head`` asks the server where its binlog ends now."""
        self._head = head
        self._tail_progress = tail_progress
        self._awaited: _Awaited | None = None

    def without_the_tailers(self, found: list[PendingRow]) -> tuple[list[PendingRow], int]:
        """Of the rows that have just been seen in the table those that are the sweep's, and how many are not."""
        fresh = frozenset(row.id for row in found if not row.held)
        if not fresh:
            return found, 0
        # The order matters: the rows were seen first, then the head is asked for, then the watermark.
        head = self._head()
        progress = self._tail_progress()
        if progress.stalled:
            return found, 0
        # On a busy server the watermark is always behind the head of now; it passes that of an earlier run.
        awaited = self._awaited
        if awaited is None or awaited.head > head:
            awaited = _Awaited(head, fresh)
        passed: frozenset[int] = frozenset()
        # A watermark beyond the head is of a binlog that is no more: it was reset, or the server is another one.
        if progress.position is not None and progress.position <= self._head():
            if progress.position >= head:
                passed, awaited = fresh, None
            elif progress.position >= awaited.head:
                passed, awaited = awaited.ids, _Awaited(head, fresh)
        self._awaited = awaited
        ours = [row for row in found if row.held or row.id in passed]
        return ours, len(found) - len(ours)
