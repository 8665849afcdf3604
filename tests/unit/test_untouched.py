"""What is remembered of the table's answer about a stretch of ids."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import pytest

from cdc_relay.errors import DatabaseUnavailable
from cdc_relay.untouched import UntouchedRows


class Table:
    def __init__(self, *answers: range | set[int]) -> None:
        self._answers: Iterator[range | set[int]] = iter(answers)
        self.asked: list[tuple[int, int]] = []
        self.is_up = True
        self.may_answer = Event()
        self.may_answer.set()

    def ask(self, first: int, last: int) -> range | set[int]:
        self.asked.append((first, last))
        self.may_answer.wait(10)
        if not self.is_up:
            raise DatabaseUnavailable("it is away")
        return next(self._answers, range(first, last + 1))


def test_a_stretch_is_asked_for_once_and_again_when_it_was_forgotten() -> None:
    table = Table(range(1, 100), {1, 2, 50})
    rows = UntouchedRows(table.ask)
    assert rows.has_all([1, 2, 3])
    assert rows.has_all([50])
    assert not rows.has_all([99, 100])
    assert len(table.asked) == 1
    rows.forget()
    assert rows.has_all([1, 2, 50])
    assert not rows.has_all([3])
    assert len(table.asked) == 2


def test_ids_far_apart_are_not_known() -> None:
    assert not UntouchedRows(Table().ask).has_all([1, 10_000_000])


def test_the_next_stretch_is_asked_for_while_this_one_is_used() -> None:
    table = Table()
    rows = UntouchedRows(table.ask)
    for row_id in range(1, 100_000, 100):
        assert rows.has_all([row_id, row_id + 1_000])  # the rows of two batches may have taken turns at the ids
    assert len(table.asked) <= 6
    gaps = [first - last for (_, last), (first, _) in zip(table.asked, table.asked[1:], strict=False)]
    assert max(gaps) < 0  # whoever took an id early and committed late is there too


def test_nothing_waits_for_the_next_stretch_before_it_is_needed() -> None:
    table = Table()
    rows = UntouchedRows(table.ask)
    rows.has_all([1])
    table.may_answer.clear()
    assert rows.has_all([15_000])
    assert rows.has_all([20_000])
    table.may_answer.set()
    assert rows.has_all([21_000])


def test_what_is_asked_for_ahead_and_fails_is_told_when_it_is_needed() -> None:
    table = Table()
    rows = UntouchedRows(table.ask)
    rows.has_all([1])
    table.is_up = False
    assert rows.has_all([15_000])
    with pytest.raises(DatabaseUnavailable):
        rows.has_all([21_000])
    table.is_up = True
    rows.forget()
    assert rows.has_all([21_000])
