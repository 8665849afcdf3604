from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc_relay.binlog.batches import TransactionBatch
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.delivery import Delivery
from cdc_relay.errors import DatabaseUnavailable, KafkaUnavailable, PoisonRow, RetryableRow, StaleSource
from cdc_relay.outbox.envelope import decode
from cdc_relay.outbox.parking import Ordering
from cdc_relay.outbox.row import OutboxRow
from cdc_relay.parking import SharedParking
from cdc_relay.sent_rows import SentRows
from cdc_relay.tailer import _LOOKS_S, Tailer
from cdc_relay.watermark import AckWatermark
from tests.binlog_bytes import outbox_row
from tests.fakes import FakePublisher, FakeSource, Refusal

T = TypeVar("T")

NOW = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
WALL = NOW.replace(tzinfo=None)


def at(offset: int) -> BinlogPosition:
    return BinlogPosition("binlog.000001", offset)


class Table:
    """The outbox table, with what is visible in it."""

    def __init__(self) -> None:
        self.rows: dict[int, OutboxRow] = {}
        self.asked: list[list[int]] = []

    def add(self, *rows: OutboxRow) -> None:
        self.rows |= {row.id: row for row in rows}

    def look_up(self, ids: Sequence[int]) -> list[OutboxRow]:
        self.asked.append(list(ids))
        return [self.rows[row_id] for row_id in sorted(set(ids)) if row_id in self.rows]

    def untouched(self, first: int, last: int) -> range | set[int]:
        return {row.id for row in self.rows.values() if first <= row.id <= last and row.is_fresh}


class PendingPages:
    """The table's pending rows, a few at a time, as they are when they are read."""

    def __init__(self, table: Table, page: int) -> None:
        self._table = table
        self._page = page
        self._after = 0
        self.exhausted = False

    def read(self) -> list[TransactionBatch]:
        found = sorted(row for row in self._table.rows.values() if row.status == "pending" and row.id > self._after)
        rows = found[: self._page]
        if not rows:
            self.exhausted = True
            return []
        self._after = rows[-1].id
        return [TransactionBatch(rows, None, size=sum(row.size for row in rows))]


class Rig:
    """A tailer whose Kafka, table and clock are a test's."""

    def __init__(
        self,
        *reads: list[TransactionBatch] | Exception,
        head: int = 0,
        max_rows: int = 1000,
        publisher: FakePublisher | None = None,
        untouched: bool = False,
        acknowledged: int | None = None,
        sent_before: SentRows | None = None,
        max_unacknowledged_rows: int = 1000,
        ordering: Ordering = Ordering.SKIP_DEAD,
    ) -> None:
        self.source = FakeSource(*reads)
        self.table = Table()
        self.publisher = publisher or FakePublisher()
        self.watermark = AckWatermark(at(0), max_rows=max_rows, max_bytes=10**9)
        self.parking = SharedParking(ordering)
        self.complete: list[Delivery] = []
        self.settled: list[Delivery] = []
        self.head = at(head)
        self.writes = True
        """Whether statuses can be written now."""
        self.writes_every = 1
        """How many waits of the tailer it takes until statuses are written."""
        self.waits = 0
        self.stop_after: int | None = None
        """How many waits from now on there is a stop."""
        self.tailer = Tailer(
            self.source,
            lambda: PendingPages(self.table, page=3),
            self.publisher,
            self.watermark,
            self.parking,
            self.table.look_up,
            self.complete.append,
            head=lambda: self.head,
            wait=self.wait,
            zone=UTC,
            untouched=self.table.untouched if untouched else None,
            acknowledged=None if acknowledged is None else at(acknowledged),
            sent_before=sent_before,
            max_unacknowledged_rows=max_unacknowledged_rows,
        )

    def wait(self, seconds: float) -> bool:
        """Meanwhile the other thread works."""
        self.waits += 1
        if self.waits % self.writes_every == 0:
            self.write()
        if self.stop_after is not None:
            self.stop_after -= 1
            assert self.stop_after > -1000, "it does not stop"
            return self.stop_after < 0
        return False

    def write(self) -> None:
        """What the status writer does: Kafka's answers, statuses, the watermark."""
        self.publisher.poll(0)
        if not self.writes:
            return
        for delivery in self.complete:
            for row_id in delivery.published:
                if row_id in self.table.rows:
                    self.table.rows[row_id] = self.table.rows[row_id]._replace(status="published")
            for row_id, reason in delivery.failed.items():
                if row_id in self.table.rows:
                    changes = {"retry_count": 1} if reason.retriable else {"status": "dead"}
                    self.table.rows[row_id] = self.table.rows[row_id]._replace(**changes)
            for row_id in delivery.parked:
                self.table.rows[row_id] = self.table.rows[row_id]._replace(held=True)
            self.parking.release(delivery.published)
            delivery.settle()
        self.settled += self.complete
        self.complete.clear()

    def run(self) -> int:
        """Until the source has no more; the rows sent."""
        sent = 0
        while self.source.reads:
            sent += self.tailer.run_once(lambda: NOW)
        self.write()
        return sent

    @property
    def sent(self) -> list[int]:
        return [decode(record.value).outbox_id for record in self.publisher.published]


def batch(*rows: OutboxRow | int, end: int | None = 100, **options: object) -> TransactionBatch:
    made = [row if isinstance(row, OutboxRow) else outbox_row(row) for row in rows]
    return TransactionBatch(made, None if end is None else at(end), size=len(made), **options)  # type: ignore[arg-type]


def looks(rig: Rig, look: Callable[[], T]) -> list[T]:
    """What ``look`` gives each time that the tailer waits."""
    seen: list[T] = []
    wait = rig.tailer._wait

    def waiting(seconds: float) -> bool:
        seen.append(look())
        return wait(seconds)

    rig.tailer._wait = waiting
    return seen


# --- the ordinary way -------------------------------------------------------------------------------------------------


def test_rows_are_sent_in_order_and_the_position_follows_when_their_statuses_are_written() -> None:
    rig = Rig([batch(1, 2, end=100)], [batch(3, end=200)])
    rig.writes = False
    assert rig.tailer.run_once(lambda: NOW) == 2
    assert rig.tailer.run_once(lambda: NOW) == 1
    assert rig.sent == [1, 2, 3]
    rig.write()
    assert len(rig.complete) == 2  # acknowledged, and not written yet
    assert rig.watermark.position == at(0)
    rig.writes = True
    rig.write()
    assert rig.watermark.position == at(200)
    assert rig.watermark.idle


def test_a_record_is_as_the_envelope_says() -> None:
    rig = Rig([batch(outbox_row(7, key="k", payload='{"a": 1}', topic="chat"))])
    rig.run()
    (record,) = rig.publisher.published
    assert (record.topic, record.key) == ("chat", b"k")
    assert record.value == b'{"outbox_id": 7, "biz_type": "chat", "payload": {"a": 1}}'
    assert ("created_at", b"2026-01-02T03:04:05.678901+00:00") in record.headers


def test_it_is_behind_as_long_as_there_is_more_to_read() -> None:
    rig = Rig([batch(1, end=100)], [batch(2, end=200)])
    assert not rig.tailer.is_behind
    rig.tailer.run_once(lambda: NOW)
    assert rig.tailer.is_behind
    rig.tailer.run_once(lambda: NOW)
    assert not rig.tailer.is_behind


def test_transactions_with_nothing_for_us_move_the_position_at_once() -> None:
    rig = Rig([batch(end=100)])
    rig.tailer.run_once(lambda: NOW)
    assert rig.watermark.position == at(100)


def test_the_position_does_not_pass_a_transaction_that_is_under_way() -> None:
    rig = Rig([batch(1, end=100)], [batch(end=200)], publisher=FakePublisher(answers=False))
    rig.run()
    assert rig.watermark.position == at(0)
    rig.publisher.answer()
    rig.write()
    assert rig.watermark.position == at(200)


def test_nothing_is_read_while_too_much_is_in_flight() -> None:
    rig = Rig([batch(1, 2, 3)], [batch(4)], max_rows=3, publisher=FakePublisher(answers=False))
    assert rig.tailer.run_once(lambda: NOW) == 3
    for _ in range(3):
        assert rig.tailer.run_once(lambda: NOW) == 0
    assert len(rig.source.reads) == 1
    rig.publisher.answer_all()
    rig.write()
    assert rig.tailer.run_once(lambda: NOW) == 1


def test_the_time_of_the_commit_travels_with_the_rows() -> None:
    rig = Rig([batch(1, committed_at=123.5)])
    rig.run()
    assert rig.settled[0].committed_at == 123.5
    assert rig.watermark.committed_at == 123.5


@pytest.mark.parametrize("error", [DatabaseUnavailable("away"), StaleSource("purged", reason="purged")])
def test_what_the_source_raises_is_not_swallowed(error: Exception) -> None:
    rig = Rig(error)
    with pytest.raises(type(error)):
        rig.tailer.run_once(lambda: NOW)


def test_when_kafka_is_given_up_in_a_batch_the_position_stays_before_it() -> None:
    rig = Rig([batch(1, end=100), batch(2, 3, end=200)])

    class GivesUp(FakePublisher):
        def publish(self, record, report):  # type: ignore[no-untyped-def]
            if decode(record.value).outbox_id == 3:
                raise KafkaUnavailable("gone")
            super().publish(record, report)

    rig = Rig([batch(1, end=100), batch(2, 3, end=200)], publisher=GivesUp())
    with pytest.raises(KafkaUnavailable):
        rig.tailer.run_once(lambda: NOW)
    rig.write()
    assert rig.watermark.position == at(100)


def test_records_that_kafka_gave_up_leave_the_position_before_them() -> None:
    rig = Rig([batch(1, 2, end=100)], publisher=FakePublisher(answers=False))
    rig.run()
    rig.publisher.answer()
    rig.publisher.answer(Refusal(None))
    rig.publisher.poll(0)
    (delivery,) = rig.complete
    assert delivery.abandoned
    assert rig.watermark.position == at(0)


# --- rows that are not for now ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["published", "consumed", "dead", "", "draft"])
def test_rows_that_are_not_pending_are_passed_over(status: str) -> None:
    rig = Rig([batch(outbox_row(1, status=status), 2)])
    assert rig.run() == 1
    assert rig.sent == [2]
    assert not rig.parking
    assert rig.watermark.position == at(100)


@pytest.mark.parametrize(
    ("created", "next_retry", "scheduled"),
    [
        # Due, by whatever clock.
        (WALL, WALL, False),
        (WALL, None, False),
        (None, WALL, False),
        (WALL - timedelta(days=1), WALL - timedelta(seconds=1), False),
        # The application's clock is ahead of ours: its "now" is our future.
        (WALL + timedelta(minutes=5), WALL + timedelta(minutes=5), False),
        (WALL + timedelta(minutes=5), WALL + timedelta(minutes=5, milliseconds=999), False),
        # The column keeps whole seconds and was rounded up.
        (WALL + timedelta(seconds=0.4), WALL + timedelta(seconds=1), False),
        # For later.
        (WALL, WALL + timedelta(seconds=2), True),
        (WALL, WALL + timedelta(days=1), True),
        (WALL + timedelta(minutes=5), WALL + timedelta(minutes=6), True),
        (None, WALL + timedelta(seconds=1), True),
        # For later once, and that has come.
        (WALL - timedelta(days=1), WALL - timedelta(hours=1), False),
    ],
)
def test_a_row_is_scheduled_when_the_application_says_so_by_its_own_clock(
    created: datetime | None, next_retry: datetime | None, scheduled: bool
) -> None:
    row = outbox_row(1, created_at=created, next_retry_at=next_retry)
    assert row.is_scheduled(WALL) is scheduled
    rig = Rig([batch(row, 2)])
    rig.run()
    assert rig.sent == ([2] if scheduled else [1, 2])
    # The table has it; the position does not wait for it, nor does its key.
    assert rig.watermark.position == at(100)
    assert not rig.parking


def test_a_row_that_was_tried_before_is_the_sweeps_and_holds_its_key() -> None:
    tried = outbox_row(1, key="a", retry_count=2)
    rig = Rig([batch(tried, outbox_row(2, key="a"), outbox_row(3, key="b"))])
    rig.table.add(tried, outbox_row(2, key="a"), outbox_row(3, key="b"))
    rig.run()
    assert rig.sent == [3]
    assert rig.settled[0].parked == {2: 1}


# --- keys that are held back ------------------------------------------------------------------------------------------


def test_a_row_behind_a_waiting_one_of_its_key_stays_in_the_table() -> None:
    rows = [outbox_row(5, key="a"), outbox_row(6, key="b"), outbox_row(7, key="a"), outbox_row(8, key="")]
    rig = Rig([batch(*rows)])
    rig.table.add(*rows)
    rig.parking.hold(b"a", 3)
    assert rig.run() == 2
    assert rig.sent == [6, 8]
    assert rig.settled[0].parked == {5: 3, 7: 3}
    assert rig.watermark.position == at(100)
    # They wait too, whatever becomes of the first one.
    rig.parking.release([3])
    assert rig.parking.waiting(10) == [5, 7]


def test_rows_older_than_the_waiting_one_go_their_way() -> None:
    rig = Rig([batch(outbox_row(2, key="a"))])
    rig.parking.hold(b"a", 3)
    rig.run()
    assert rig.sent == [2]


def test_a_batch_of_parked_rows_only_is_written_before_the_position_passes() -> None:
    rig = Rig([batch(outbox_row(5, key="a"))])
    rig.table.add(outbox_row(5, key="a"))
    rig.parking.hold(b"a", 3)
    rig.writes = False
    rig.run()
    assert rig.watermark.position == at(0)
    rig.writes = True
    rig.write()
    assert rig.watermark.position == at(100)


# --- rows that are at fault -------------------------------------------------------------------------------------------


def test_a_poison_row_costs_only_itself() -> None:
    poison = outbox_row(2, key="a", payload="no JSON")
    rig = Rig([batch(outbox_row(1, key="a"), poison, outbox_row(3, key="a"))])
    assert rig.run() == 2
    assert rig.sent == [1, 3]
    (reason,) = rig.settled[0].failed.values()
    assert isinstance(reason, PoisonRow)
    # It will be dead, so nothing waits for it.
    assert not rig.parking
    assert rig.watermark.position == at(100)


def test_a_poison_row_holds_back_its_key_at_once_where_dead_rows_do() -> None:
    rows = [outbox_row(1, key="a", payload="no JSON"), outbox_row(2, key="a"), outbox_row(3, key="b")]
    rig = Rig([batch(*rows)], ordering=Ordering.BLOCK_ON_DEAD)
    rig.table.add(*rows)
    assert rig.run() == 1
    assert rig.sent == [3]
    assert rig.settled[0].parked == {2: 1}


def test_without_an_order_no_row_waits_for_another() -> None:
    rows = [
        outbox_row(1, key="a", topic="missing"),
        outbox_row(2, key="a", payload="no JSON"),
        outbox_row(3, key="a", retry_count=1),
        outbox_row(4, key="a"),
    ]
    rig = Rig([batch(*rows)], publisher=FakePublisher(missing=["missing"]), ordering=Ordering.NONE)
    rig.table.add(*rows)
    rig.run()
    assert rig.sent == [4]
    assert not rig.parking
    assert rig.settled[0].parked == {}


def test_a_batch_of_poison_rows_only_is_written_too() -> None:
    rig = Rig([batch(outbox_row(1, payload=""), outbox_row(2, topic="no/topic"))])
    assert rig.run() == 0
    assert sorted(rig.settled[0].failed) == [1, 2]
    assert rig.watermark.position == at(100)


def test_behind_a_row_that_is_refused_for_now_its_key_waits_at_once() -> None:
    rows = [
        outbox_row(1, key="a", topic="missing"),
        outbox_row(2, key="a", topic="there"),
        outbox_row(3, key="b", topic="there"),
    ]
    rig = Rig([batch(*rows)], publisher=FakePublisher(missing=["missing"]))
    rig.table.add(*rows)
    rig.run()
    assert rig.sent == [3]
    assert isinstance(rig.settled[0].failed[1], RetryableRow)
    assert rig.settled[0].parked == {2: 1}


# --- rows that only the table can tell --------------------------------------------------------------------------------


@pytest.mark.parametrize("untouched", [False, True])
def test_after_a_restart_only_rows_still_pending_are_sent_again(untouched: bool) -> None:
    rig = Rig([batch(1, 2, 3, 4, end=100)], [batch(5, 6, end=200)], [batch(7, end=201)], head=200, untouched=untouched)
    rig.table.add(
        outbox_row(1, status="published"),
        outbox_row(2),
        outbox_row(3, status="consumed"),
        outbox_row(5),
        outbox_row(6),
        outbox_row(7, status="published"),  # cannot be, so what is sent is what the binlog says
    )
    rig.run()
    assert rig.sent == [2, 5, 6, 7]
    assert rig.watermark.position == at(201)


def test_a_batch_that_reaches_beyond_what_may_have_been_sent_is_asked_for_too() -> None:
    """Transactions travel together: the first ones of a batch may lie before the head, the last ones behind it."""
    rig = Rig([batch(1, 2, end=300)], [batch(3, end=400)], head=200)
    rig.table.add(outbox_row(1, status="published"), outbox_row(2))
    rig.run()
    assert rig.sent == [2, 3]
    assert rig.table.asked == [[1, 2]]


def test_rows_that_were_tried_before_the_restart_hold_their_keys() -> None:
    rig = Rig([batch(outbox_row(1, key="a"), outbox_row(2, key="a"), outbox_row(3, key="b"))], head=200)
    rig.table.add(outbox_row(1, key="a", retry_count=1), outbox_row(2, key="a"), outbox_row(3, key="b"))
    rig.run()
    assert rig.sent == [3]
    assert rig.parking.waiting(10) == [1, 2]


def test_doubtful_rows_are_sent_as_the_table_has_them_in_the_order_of_the_binlog() -> None:
    rig = Rig([batch(9, 2, 5, doubtful=True)])
    rig.table.add(outbox_row(2, payload='"two"'), outbox_row(9, payload='"nine"'), outbox_row(5, status="dead"))
    rig.run()
    assert rig.sent == [9, 2]
    assert [decode(record.value).payload for record in rig.publisher.published] == ["nine", "two"]


def test_doubtful_rows_that_are_not_there_are_left_out_and_the_position_moves_on() -> None:
    rig = Rig([batch(1, 2, doubtful=True)])
    rig.run()
    assert rig.sent == []
    assert rig.watermark.position == at(100)


def test_a_row_that_stands_twice_in_its_transaction_is_sent_once() -> None:
    """Inserted, deleted, and inserted again with the same id."""
    rig = Rig([batch(1, 2, 1, doubtful=True)])
    rig.table.add(outbox_row(1), outbox_row(2))
    rig.run()
    assert sorted(rig.sent) == [1, 2]


def test_the_table_is_asked_for_a_thousand_rows_at_a_time() -> None:
    rig = Rig([batch(*range(1, 2_502), doubtful=True)], max_rows=10**6)
    rig.table.add(*(outbox_row(n) for n in range(1, 2_502)))
    rig.run()
    assert [len(ids) for ids in rig.table.asked] == [1000, 1000, 501]
    assert rig.sent == list(range(1, 2_502))


def test_certain_rows_are_not_asked_for() -> None:
    rig = Rig([batch(1, end=100)], head=50)
    rig.run()
    rig.source.reads.append([batch(2, end=200)])
    rig.run()
    assert rig.table.asked == [[1]]  # only the first batch may reach back behind the head


# --- what Kafka had before this process began ------------------------------------------------------------------------


@pytest.mark.parametrize("untouched", [True, False])
def test_what_kafka_has_is_written_and_not_sent_again(untouched: bool) -> None:
    rig = Rig(
        [batch(1, 2, end=100)],
        [batch(3, end=200)],
        [batch(4, end=300)],
        head=300,
        untouched=untouched,
        acknowledged=200,
    )
    rig.table.add(*(outbox_row(n) for n in (1, 2, 3, 4)))
    rig.run()
    assert rig.sent == [4]
    assert {row.status for row in rig.table.rows.values()} == {"published"}
    assert rig.watermark.position == rig.watermark.acknowledged == at(300)


def test_a_batch_that_reaches_beyond_what_kafka_has_is_sent() -> None:
    rig = Rig([batch(1, 2, end=100)], [batch(3, end=150)], head=300, untouched=True, acknowledged=99)
    rig.table.add(*(outbox_row(n) for n in (1, 2, 3)))
    rig.run()
    assert rig.sent == [1, 2, 3]


def test_among_what_kafka_has_a_row_that_was_not_the_tailers_to_send_is_not_taken_for_sent() -> None:
    scheduled = outbox_row(2, key="b", next_retry_at=WALL - timedelta(seconds=1), created_at=WALL - timedelta(hours=1))
    held = outbox_row(3, key="c")._replace(held=True)
    failed = outbox_row(4, key="d", retry_count=1)
    dead = outbox_row(5, key="e", status="dead")
    plain = outbox_row(6, key="f")
    some = (scheduled, held, failed, dead, plain)
    inserted = [outbox_row(row.id, key=row.message_key.decode(), next_retry_at=row.next_retry_at) for row in some]
    rig = Rig([batch(*inserted, end=100)], head=300, acknowledged=100)
    rig.table.add(*some)
    rig.run()
    assert rig.sent == [2]  # due by now, and nobody knows whether the sweep has sent it
    assert rig.table.rows[6].status == "published"
    assert [rig.table.rows[n].status for n in (3, 4, 5)] == ["pending", "pending", "dead"]


def test_what_kafka_refused_or_what_waits_is_not_called_acknowledged_before_it_is_written() -> None:
    rig = Rig([batch(1, outbox_row(2, payload="{"), end=100)], [batch(3, end=200)])
    rig.writes = False
    rig.run()
    assert rig.watermark.acknowledged == at(0)
    rig.writes = True
    rig.write()
    assert rig.watermark.acknowledged == at(200)


def test_nothing_is_read_while_kafka_owes_too_many_answers() -> None:
    publisher = FakePublisher(answers=False)
    rig = Rig([batch(1, 2)], [batch(3)], publisher=publisher, max_unacknowledged_rows=2)
    rig.writes = False
    assert rig.tailer.run_once(lambda: NOW) == 2
    assert rig.tailer.run_once(lambda: NOW) == 0
    publisher.answer()
    assert rig.tailer.run_once(lambda: NOW) == 0  # the answer is taken
    assert rig.tailer.run_once(lambda: NOW) == 1


# --- what cannot be read ----------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_sent_from_the_table_before_what_follows() -> None:
    rows = [outbox_row(n, key="a") for n in range(1, 9)]
    rig = Rig([batch(rows[0], end=100), batch(end=200, unreadable=True), batch(rows[7], end=300)])
    rig.table.add(*rows)
    rig.head = at(300)
    rig.run()
    assert rig.sent == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {delivery.path for delivery in rig.settled} == {"tail", "reconcile"}
    assert rig.watermark.position == at(300)


def test_the_position_does_not_pass_what_cannot_be_read_before_the_table_is_caught_up_from() -> None:
    rig = Rig([batch(end=200, unreadable=True)], publisher=FakePublisher(answers=False))
    rig.table.add(outbox_row(1))
    rig.stop_after = 3
    rig.tailer.run_once(lambda: NOW)
    assert rig.sent == [1]
    rig.publisher.answer_all()
    rig.write()
    assert rig.watermark.position == at(0)


def test_the_table_is_caught_up_from_once_for_all_that_was_unreadable_until_then() -> None:
    rig = Rig([batch(end=100, unreadable=True), batch(end=150, unreadable=True)], [batch(end=250, unreadable=True)])
    rig.head = at(200)
    pages = 0
    opened = rig.tailer._pending

    def count() -> object:
        nonlocal pages
        pages += 1
        return opened()

    rig.tailer._pending = count  # type: ignore[assignment]
    rig.run()
    assert pages == 2 * len(_LOOKS_S)  # for the first and for the third
    assert rig.watermark.position == at(250)


def test_rows_that_become_visible_while_the_table_is_caught_up_from_are_sent_too() -> None:
    """A transaction stands in the binlog a moment before others see its rows."""
    rig = Rig([batch(end=200, unreadable=True)])
    rig.table.add(outbox_row(5))
    opened = rig.tailer._pending
    calls = 0

    def open_pages() -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            rig.table.add(outbox_row(3))
        return opened()

    rig.tailer._pending = open_pages  # type: ignore[assignment]
    rig.run()
    assert rig.sent == [5, 3]


def test_rows_sent_from_the_table_are_not_sent_again_when_the_binlog_comes_to_them() -> None:
    for untouched in (False, True):
        reads = [batch(1, end=50), batch(end=100, unreadable=True)], [batch(2, 3, end=200)]
        rig = Rig(*reads, head=200, untouched=untouched)
        rig.table.add(outbox_row(1), outbox_row(2), outbox_row(3))
        rig.run()
        assert rig.sent == [1, 2, 3]
        assert rig.watermark.position == at(200)


# --- catching up at a start -------------------------------------------------------------------------------------------


def test_catching_up_sends_what_is_pending_in_id_order() -> None:
    rig = Rig(head=100)
    rig.table.add(*(outbox_row(n) for n in (9, 2, 5, 7, 11)), outbox_row(3, status="published"))
    assert rig.tailer.catch_up(lambda: NOW)
    assert rig.sent == [2, 5, 7, 9, 11]
    assert rig.watermark.idle
    assert {delivery.path for delivery in rig.settled} == {"reconcile"}
    assert rig.watermark.position == at(0)  # a session that catches up begins at the head


def test_catching_up_leaves_scheduled_and_tried_rows_to_the_sweep_and_holds_the_keys_of_the_latter() -> None:
    rig = Rig(head=100)
    rig.table.add(
        outbox_row(1, key="a", retry_count=1),
        outbox_row(2, key="a"),
        outbox_row(3, key="b", next_retry_at=WALL + timedelta(hours=1)),
        outbox_row(4, key="b"),
        outbox_row(5, key="c", held=True),
        outbox_row(6, key="c"),
    )
    assert rig.tailer.catch_up(lambda: NOW)
    assert rig.sent == [4]
    assert rig.parking.waiting(10) == [1, 2, 5, 6]


@pytest.mark.parametrize("writes_every", [1, 2, 7])
def test_catching_up_waits_while_too_much_is_in_flight(writes_every: int) -> None:
    rig = Rig(head=100, max_rows=4)
    rig.writes_every = writes_every
    rig.table.add(*(outbox_row(n) for n in range(1, 50)))
    most = 0
    track = rig.watermark.track

    def tracked(*args: object, **options: object) -> object:
        nonlocal most
        ticket = track(*args, **options)  # type: ignore[arg-type]
        most = max(most, rig.watermark.in_flight_rows)
        return ticket

    rig.watermark.track = tracked  # type: ignore[method-assign,assignment]
    assert rig.tailer.catch_up(lambda: NOW)
    assert rig.sent == list(range(1, 50))
    assert most <= 4 + 3  # one page is always let in


def test_it_is_behind_while_the_table_has_more_and_no_longer_when_it_waits_for_the_rest_to_be_written() -> None:
    rig = Rig(head=100)
    rig.table.add(*(outbox_row(n) for n in range(1, 10)))
    seen = looks(rig, lambda: (rig.tailer.is_behind, len(rig.sent)))
    rig.writes_every = 10
    assert rig.tailer.catch_up(lambda: NOW)
    assert {sent for is_behind, sent in seen if is_behind} >= {3, 6}
    assert (False, 9) in seen
    assert not rig.tailer.is_behind


def test_what_must_be_written_before_it_goes_on_does_not_wait_for_what_comes_after() -> None:
    rig = Rig([batch(1, end=100)], [batch(end=200, unreadable=True)], [batch(3, end=300)], head=50)
    rig.table.add(outbox_row(1), outbox_row(2))
    seen = looks(rig, lambda: (rig.tailer.is_behind, rig.watermark.in_flight_rows))
    rig.writes_every = 5
    rig.run()
    assert seen[: seen.index((False, 0))] == [(False, 1)] * 5
    assert rig.sent == [1, 2, 3]


@pytest.mark.parametrize("waits", range(6))
def test_a_stop_ends_the_catching_up_anywhere(waits: int) -> None:
    rig = Rig(head=100, max_rows=4, publisher=FakePublisher(answers=False))
    rig.table.add(*(outbox_row(n) for n in range(1, 50)))
    rig.stop_after = waits
    assert not rig.tailer.catch_up(lambda: NOW)


@pytest.mark.parametrize("writes_every", [1, 2, 7])
def test_what_is_under_way_is_written_before_the_table_is_asked(writes_every: int) -> None:
    """Or it would still be pending there, and be sent twice."""
    rig = Rig([batch(1, end=100), batch(end=200, unreadable=True)], head=50)
    rig.writes_every = writes_every
    rig.table.add(outbox_row(1), outbox_row(2))
    rig.run()
    assert rig.sent == [1, 2]


@pytest.mark.parametrize("waits", range(1, 12))
def test_what_kafka_had_before_a_kill_is_marked_by_the_next_start_and_not_sent_again(
    tmp_path: Path, waits: int
) -> None:
    killed = Rig(head=100, sent_before=SentRows.beside(tmp_path / "relay.json"))
    killed.table.add(*(outbox_row(n) for n in range(1, 20)), outbox_row(20, next_retry_at=WALL + timedelta(hours=1)))
    killed.writes = False
    killed.stop_after = waits
    assert not killed.tailer.catch_up(lambda: NOW)

    rig = Rig(head=100, sent_before=SentRows.beside(tmp_path / "relay.json"))
    rig.table = killed.table
    assert rig.tailer.catch_up(lambda: NOW + timedelta(hours=2))
    assert killed.sent + rig.sent == list(range(1, 21)), "also the row that was not due then"
    assert {row.status for row in rig.table.rows.values()} == {"published"}
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_has_failed_since_it_was_sent_is_left_to_the_sweep(tmp_path: Path) -> None:
    killed = Rig(head=100, sent_before=SentRows.beside(tmp_path / "relay.json"))
    killed.table.add(outbox_row(1, key="a"), outbox_row(2, key="a"), outbox_row(3, key="b"))
    killed.writes = False
    killed.stop_after = 3
    assert not killed.tailer.catch_up(lambda: NOW)
    assert killed.sent == [1, 2, 3]

    rig = Rig(head=100, sent_before=SentRows.beside(tmp_path / "relay.json"))
    rig.table.add(outbox_row(1, key="a", retry_count=1), outbox_row(2, key="a"), outbox_row(3, key="b", payload="[]"))
    assert rig.tailer.catch_up(lambda: NOW)
    assert rig.sent == [3], "another row than the one that was sent"
    assert rig.parking.waiting(10) == [1]
    assert rig.table.rows[1].status == "pending"
    assert rig.table.rows[2].status == "published"


# --- any history ------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.randoms(use_true_random=False), st.booleans())
def test_whatever_happened_each_pending_row_is_sent_once_and_in_order_per_key(
    chance: random.Random, untouched: bool
) -> None:
    """Rows that may have been sent before, doubtful ones, unreadable ones: the table tells which are to be sent."""
    head = chance.choice([0, 200, 10_000])
    reads: list[list[TransactionBatch] | Exception] = []
    rows: list[OutboxRow] = []
    unsettled: set[int] = set()
    offset, next_id = 0, 1
    for _ in range(chance.randrange(1, 8)):
        batches = []
        for _ in range(chance.randrange(4)):
            offset += chance.randrange(1, 100)
            new = [outbox_row(next_id + n, key=chance.choice("abc")) for n in range(chance.randrange(4))]
            next_id += len(new)
            rows += new
            unreadable = chance.random() < 0.2
            doubtful = chance.random() < 0.3
            if not unreadable and not doubtful and offset > head:
                unsettled |= {row.id for row in new}  # nobody else can have sent those
            batches.append(batch(*([] if unreadable else new), end=offset, unreadable=unreadable, doubtful=doubtful))
        reads.append(batches)
    rig = Rig(*reads, head=head, max_rows=chance.choice([1, 5, 1000]), untouched=untouched)
    rig.writes_every = chance.choice([1, 3])
    already = {row.id for row in rows if row.id not in unsettled and chance.random() < 0.3}
    rig.table.add(*(row._replace(status="published") if row.id in already else row for row in rows))
    rig.head = at(max(offset, head))
    rig.run()
    assert sorted(rig.sent) == [row.id for row in rows if row.id not in already]
    for key in "abc":
        ids = [decode(r.value).outbox_id for r in rig.publisher.published if r.key == key.encode()]
        assert ids == sorted(ids)
    assert rig.watermark.position == at(offset)
    assert rig.watermark.idle
