from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.watermark import AckWatermark, Ticket

START = BinlogPosition("binlog.000001", 4)


def at(offset: int) -> BinlogPosition:
    return BinlogPosition("binlog.000001", offset)


def watermark(max_rows: int = 1000, max_bytes: int = 1000) -> AckWatermark:
    return AckWatermark(START, max_rows=max_rows, max_bytes=max_bytes)


@dataclass
class Tracked:
    """A ticket, and what it was made of."""

    ticket: Ticket
    end: BinlogPosition | None
    committed_at: float
    rows: int
    size: int
    resolved: bool = field(default=False)


class AnyInterleaving(RuleBasedStateMachine):
    """What is tracked in order and resolved in any, against the plainest possible count."""

    def __init__(self) -> None:
        super().__init__()
        self.watermark = watermark(max_rows=20, max_bytes=500)
        self.tracked: list[Tracked] = []
        self.offset = START.offset
        self.last = START

    @rule(
        step=st.integers(0, 50),
        inside=st.booleans(),
        committed_at=st.sampled_from([0.0, 1.0, 2.0, 3.0]),
        rows=st.integers(0, 9),
        size=st.integers(0, 200),
    )
    def track(self, step: int, inside: bool, committed_at: float, rows: int, size: int) -> None:
        self.offset += step
        end = None if inside else at(self.offset)
        ticket = self.watermark.track(end, committed_at=committed_at, rows=rows, size=size)
        self.tracked.append(Tracked(ticket, end, committed_at, rows, size))

    @precondition(lambda self: self.tracked)
    @rule(data=st.data())
    def resolve(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.tracked))  # perhaps one that was resolved before
        self.watermark.resolve(one.ticket)
        one.resolved = True

    @invariant()
    def the_position_is_the_last_end_of_the_longest_resolved_prefix(self) -> None:
        position, committed_at = START, 0.0
        for one in self.tracked:
            if not one.resolved:
                break
            if one.end is not None:
                position = one.end
                committed_at = one.committed_at or committed_at
        assert self.watermark.position == position
        assert self.watermark.committed_at == committed_at

    @invariant()
    def it_never_moves_backwards(self) -> None:
        assert self.watermark.position >= self.last
        self.last = self.watermark.position

    @invariant()
    def what_is_in_flight_is_what_is_not_resolved(self) -> None:
        open_ones = [one for one in self.tracked if not one.resolved]
        rows, size = sum(one.rows for one in open_ones), sum(one.size for one in open_ones)
        assert (self.watermark.in_flight_rows, self.watermark.in_flight_bytes) == (rows, size)
        assert self.watermark.full == (rows >= 20 or size >= 500)
        assert self.watermark.idle == (not open_ones)


TestAnyInterleaving = AnyInterleaving.TestCase


def test_nothing_is_passed_over_while_the_first_is_under_way() -> None:
    mark = watermark()
    first, second, third = (mark.track(at(n), committed_at=n, rows=1, size=1) for n in (10, 20, 30))
    mark.resolve(third)
    mark.resolve(second)
    assert mark.position == START
    mark.resolve(first)
    assert mark.position == at(30)
    assert mark.committed_at == 30


def test_the_position_waits_within_a_transaction_until_its_end() -> None:
    mark = watermark()
    pieces = [mark.track(None, committed_at=0, rows=1, size=1) for _ in range(2)]
    end = mark.track(at(50), committed_at=5, rows=0, size=0)
    mark.resolve(end)
    mark.resolve(pieces[0])
    assert mark.position == START
    mark.resolve(pieces[1])
    assert mark.position == at(50)


def test_a_batch_is_resolved_once() -> None:
    mark = watermark()
    one = mark.track(at(10), committed_at=0, rows=3, size=30)
    mark.track(at(20), committed_at=0, rows=5, size=50)
    mark.resolve(one)
    mark.resolve(one)
    assert (mark.in_flight_rows, mark.in_flight_bytes) == (5, 50)


@pytest.mark.parametrize(("rows", "size", "half_full"), [(4, 49, False), (5, 0, True), (0, 50, True)])
def test_it_is_half_full_at_half_of_either_bound(rows: int, size: int, half_full: bool) -> None:
    mark = watermark(max_rows=10, max_bytes=100)
    mark.track(at(10), committed_at=0, rows=rows, size=size)
    assert mark.half_full is half_full


@pytest.mark.parametrize(("rows", "size", "full"), [(9, 99, False), (10, 0, True), (0, 100, True), (500, 5000, True)])
def test_reading_waits_when_as_many_rows_or_bytes_are_in_flight_as_are_allowed(
    rows: int, size: int, full: bool
) -> None:
    mark = watermark(max_rows=10, max_bytes=100)
    assert not mark.full
    ticket = mark.track(at(10), committed_at=0, rows=rows, size=size)
    assert mark.full is full
    mark.resolve(ticket)
    assert not mark.full


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_one_batch_is_let_in_however_large_it_is(max_rows: int, max_bytes: int) -> None:
    mark = watermark(max_rows, max_bytes)
    assert not mark.full


def test_one_thread_may_track_while_others_resolve() -> None:
    mark = watermark(max_rows=10**9, max_bytes=10**9)
    count = 3000
    tickets = [mark.track(at(n), committed_at=n, rows=1, size=2) for n in range(10, 10 + count)]
    seen: list[BinlogPosition] = []

    def track_more() -> None:
        for n in range(count):
            mark.track(at(100_000 + n), committed_at=0, rows=1, size=2)
            seen.append(mark.position)

    def resolve(some: list[Ticket]) -> None:
        for ticket in some:
            mark.resolve(ticket)

    threads = [threading.Thread(target=resolve, args=(tickets[part::3],)) for part in range(3)]
    threads.append(threading.Thread(target=track_more))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mark.position == at(10 + count - 1)
    assert seen == sorted(seen)
    assert (mark.in_flight_rows, mark.in_flight_bytes) == (count, 2 * count)


def test_what_kafka_has_runs_ahead_of_what_is_written_and_passes_nothing_that_kafka_has_not() -> None:
    mark = watermark()
    first, second, inside, last = (
        mark.track(end, committed_at=0.0, rows=1, size=1) for end in (at(10), at(20), None, at(40))
    )
    mark.acknowledge(second)
    assert mark.acknowledged == START
    mark.acknowledge(first)
    assert (mark.acknowledged, mark.position) == (at(20), START)
    mark.acknowledge(last)
    assert mark.acknowledged == at(20)
    mark.resolve(inside)  # by another exit
    assert (mark.acknowledged, mark.position) == (at(40), START)
    mark.resolve(first)
    assert (mark.acknowledged, mark.position) == (at(40), at(10))
