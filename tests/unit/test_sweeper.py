from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from cdc_relay import sweeper as module
from cdc_relay import unconsumed
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.delivery import Delivery
from cdc_relay.errors import DatabaseUnavailable, KafkaUnavailable, PoisonRow, RetryableRow
from cdc_relay.fresh_rows import TailProgress
from cdc_relay.metrics import RelayMetrics
from cdc_relay.outbox.backoff import Backoff
from cdc_relay.outbox.envelope import decode
from cdc_relay.outbox.parking import Ordering
from cdc_relay.outbox.sql import HELD_BACK, PARKED, PendingRow
from cdc_relay.outbox.statements import PublishedPage
from cdc_relay.parking import SharedParking
from cdc_relay.sweeper import SweepCounts, Sweeper, _pages
from cdc_relay.writeback import StatusWriter
from tests.fakes import FakeOutboxTable, FakePublisher, Refusal, StoredRow

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WALL = NOW.replace(tzinfo=None)
SOON = WALL + timedelta(seconds=30)


def at(offset: int) -> BinlogPosition:
    return BinlogPosition("binlog.000001", offset)


def fresh(row_id: int, key: str = "", **changes: Any) -> StoredRow:
    return StoredRow(row_id, key.encode(), created_at=WALL, next_retry_at=WALL, **changes)


def tried(row_id: int, key: str = "", **changes: Any) -> StoredRow:
    """It has failed before, and its next attempt is due."""
    values: dict[str, Any] = {"retry_count": 1, "last_error": "broken", "next_retry_at": WALL}
    return StoredRow(row_id, key.encode(), **values | changes)


class Rig:
    """A sweep and a status writer on one table, a Kafka and a clock that are a test's."""

    def __init__(
        self,
        *rows: StoredRow,
        publisher: FakePublisher | None = None,
        ordering: Ordering = Ordering.SKIP_DEAD,
        **options: Any,
    ) -> None:
        self.table = FakeOutboxTable(*rows)
        self.publisher = publisher or FakePublisher()
        self.parking = SharedParking(ordering)
        self.metrics = RelayMetrics(CollectorRegistry())
        self.now = NOW
        self.head = at(100)
        self.progress = TailProgress(at(100), stalled=False)
        self.stopped = False
        self.writer = StatusWriter(
            self.table.transaction,
            self.table,  # type: ignore[arg-type]
            self.parking,
            self.metrics,
            zone=UTC,
            backoff=Backoff(),
            batch_rows=100,
        )
        self.sweeper = Sweeper(
            self.table.transaction,
            self.table,  # type: ignore[arg-type]
            self.publisher,
            self.parking,
            self.metrics,
            head=lambda: self.head,
            tail_progress=lambda: self.progress,
            complete=self._complete,
            now=lambda: self.now,
            stopping=self._stopping,
            zone=UTC,
            **{"batch_rows": 100, "lease_s": 60.0} | options,
        )
        self.writes = True
        self.on_wait: Callable[[], None] = lambda: None

    def _complete(self, delivery: Delivery) -> None:
        self.writer.complete(delivery)

    def _stopping(self) -> bool:
        """Asked again and again while the sweep waits: meanwhile the other thread works."""
        self.on_wait()
        self.publisher.poll(0)
        if self.writes:
            self.writer.run_once(self.now)
        return self.stopped

    def sweep(self) -> SweepCounts:
        return self.sweeper.run_once(self.now)

    @property
    def sent(self) -> list[int]:
        return [decode(record.value).outbox_id for record in self.publisher.published]

    def statuses(self) -> dict[int, str]:
        return {row.id: row.status for row in self.table.rows.values()}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SETTLE_WAIT_S", 0)


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_due_rows_are_sent_in_id_order_and_marked() -> None:
    rig = Rig(tried(3), tried(1), tried(2))
    assert rig.sweep() == SweepCounts(sent=3)
    assert rig.sent == [1, 2, 3]
    assert set(rig.statuses().values()) == {"published"}
    assert rig.table.rows[1].last_error is None
    assert rig.table.rows[1].next_retry_at is None


@pytest.mark.parametrize(
    "row",
    [
        tried(1, next_retry_at=SOON),
        fresh(1, status="published", published_at=WALL),
        fresh(1, status="consumed"),
        fresh(1, status="dead"),
        replace(fresh(1), next_retry_at=SOON),
    ],
    ids=["not due", "published", "consumed", "dead", "scheduled"],
)
def test_rows_that_are_not_due_are_left_alone(row: StoredRow) -> None:
    rig = Rig(row)
    assert rig.sweep() == SweepCounts()
    assert rig.sent == []
    assert rig.table.rows[1] == row


def test_a_scheduled_row_is_sent_when_its_time_has_come() -> None:
    rig = Rig(replace(fresh(1), next_retry_at=SOON))
    rig.sweep()
    rig.now += timedelta(seconds=31)
    assert rig.sweep().sent == 1


def test_rows_that_someone_else_has_locked_are_passed_over() -> None:
    rig = Rig(tried(1), tried(2))
    rig.table.locked = {1}
    assert rig.sweep().sent == 1
    assert rig.sent == [2]


def test_a_row_that_is_decided_on_between_looking_and_locking_is_not_sent() -> None:
    rig = Rig(tried(1), tried(2))
    due = rig.table.due

    def consumed_meanwhile(*args: Any, **named: Any) -> list[PendingRow]:
        found = due(*args, **named)
        rig.table.rows[1] = replace(rig.table.rows[1], status="consumed")
        return found

    rig.table.due = consumed_meanwhile  # type: ignore[method-assign]
    rig.sweep()
    assert rig.sent == [2]
    assert rig.statuses() == {1: "consumed", 2: "published"}


def test_a_poison_row_is_dead_and_the_others_are_sent() -> None:
    rig = Rig(tried(1), tried(2, payload=b"no JSON"), tried(3))
    rig.sweep()
    assert rig.sent == [1, 3]
    assert rig.statuses() == {1: "published", 2: "dead", 3: "published"}
    assert rig.table.rows[2].retry_count == 2


def test_a_row_that_is_refused_once_more_waits_longer() -> None:
    rig = Rig(tried(1, retry_count=3), publisher=FakePublisher(missing=["t"]))
    rig.sweep()
    row = rig.table.rows[1]
    assert (row.status, row.retry_count) == ("pending", 4)
    assert row.next_retry_at == WALL + timedelta(seconds=8)


def test_at_its_last_attempt_a_refused_row_is_dead() -> None:
    rig = Rig(tried(1, "a", retry_count=19), tried(2, "a"), publisher=FakePublisher(missing=["t"]))
    rig.sweep()
    assert (rig.table.rows[1].status, rig.table.rows[1].retry_count) == ("dead", 20)
    # Its key is free again.
    rig.publisher.missing.clear()
    rig.sweep()
    assert rig.sent == [2]


# --- the lease --------------------------------------------------------------------------------------------------------


def test_rows_are_leased_before_they_are_sent() -> None:
    rig = Rig(tried(1), publisher=FakePublisher(answers=False))
    seen: list[StoredRow] = []

    def look() -> None:
        if rig.publisher.waiting:
            seen.append(rig.table.rows[1])
            rig.publisher.answer_all()

    rig.on_wait = look
    rig.sweep()
    assert seen[0].status == "pending"
    assert seen[0].next_retry_at == WALL + timedelta(seconds=60)
    assert seen[0].published_at is None


def test_while_kafka_is_away_the_lease_is_renewed() -> None:
    rig = Rig(tried(1), publisher=FakePublisher(answers=False))
    leases: list[datetime | None] = []

    def time_goes_by() -> None:
        leases.append(rig.table.rows[1].next_retry_at)
        rig.now += timedelta(seconds=7)
        if rig.now > NOW + timedelta(seconds=200):
            rig.publisher.answer_all()

    rig.on_wait = time_goes_by
    assert rig.sweep().sent == 1
    # Never closer to its end than two thirds of it, and never let go.
    for number, until in enumerate(leases[1:]):
        assert until is not None
        assert until - (WALL + timedelta(seconds=7 * (number + 1))) >= timedelta(seconds=60 * 2 / 3 - 7)
    assert rig.statuses() == {1: "published"}


def test_a_stop_ends_the_waiting_and_leaves_the_rows_pending() -> None:
    rig = Rig(tried(1), tried(2), publisher=FakePublisher(answers=False), batch_rows=1)

    def stop_while_waiting() -> None:
        rig.stopped = bool(rig.publisher.waiting)

    rig.on_wait = stop_while_waiting
    rig.sweep()
    assert rig.sent == [1]
    assert rig.statuses() == {1: "pending", 2: "pending"}


def test_records_that_kafka_gave_up_leave_their_rows_pending() -> None:
    rig = Rig(tried(1), publisher=FakePublisher(answers=False))

    def give_up() -> None:
        if rig.publisher.waiting:
            rig.publisher.answer(Refusal(None))

    rig.on_wait = give_up
    with pytest.raises(KafkaUnavailable):
        rig.sweep()
    assert rig.statuses() == {1: "pending"}
    assert rig.table.rows[1].retry_count == 1  # an outage is no failure of the row


def test_when_mysql_is_away_nothing_is_sent() -> None:
    rig = Rig(tried(1))
    rig.table.fails = DatabaseUnavailable("away")
    with pytest.raises(DatabaseUnavailable):
        rig.sweep()
    assert rig.sent == []


def test_when_the_lease_fails_nothing_is_sent() -> None:
    rig = Rig(tried(1))
    lease = rig.table.lease

    def fail(*args: Any, **named: Any) -> int:
        lease(*args, **named)
        raise DatabaseUnavailable("away")

    rig.table.lease = fail  # type: ignore[method-assign]
    with pytest.raises(DatabaseUnavailable):
        rig.sweep()
    assert rig.sent == []
    assert rig.table.rows[1] == tried(1)


# --- whose is a fresh row? --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "stalled", "swept"),
    [
        (at(99), False, False),
        (at(100), False, True),
        (None, False, False),
        (None, True, True),
        (at(0), True, True),
        # Beyond the head: a position of a binlog that is no more.
        (at(101), False, False),
        (BinlogPosition("binlog.000002", 4), False, False),
    ],
)
def test_a_fresh_row_is_swept_when_the_tailer_has_passed_it_or_makes_no_progress(
    position: BinlogPosition | None, stalled: bool, swept: bool
) -> None:
    rig = Rig(fresh(1), tried(2))
    rig.progress = TailProgress(position, stalled)
    counts = rig.sweep()
    assert rig.sent == ([1, 2] if swept else [2])
    assert counts.left_to_tailer == (0 if swept else 1)


def test_on_a_quiet_server_a_row_is_swept_in_the_run_that_sees_it() -> None:
    rig = Rig(fresh(1))
    rig.sweep()
    for row_id in (2, 3):
        rig.table.rows[row_id] = fresh(row_id)
        assert rig.sweep().sent == 1


def test_on_a_busy_server_a_row_is_swept_when_the_tailer_has_passed_where_it_was_seen() -> None:
    """The watermark is always behind the head of the moment: to wait for it there would be to wait for ever."""
    rig = Rig(fresh(1))
    sent = 0
    for round_ in range(10):
        rig.head = at(1_000 * (round_ + 1))
        rig.progress = TailProgress(at(1_000 * round_ + 900), stalled=False)
        sent += rig.sweep().sent
    assert sent == 1


def test_a_row_that_came_later_is_not_swept_with_those_that_were_passed() -> None:
    rig = Rig(fresh(1))
    rig.progress = TailProgress(at(50), stalled=False)
    rig.sweep()
    rig.table.rows[2] = fresh(2)
    rig.head, rig.progress = at(200), TailProgress(at(150), stalled=False)
    rig.sweep()
    assert rig.sent == [1]
    assert rig.statuses() == {1: "published", 2: "pending"}


def test_a_tailer_that_has_come_to_the_end_leaves_every_row_that_was_seen() -> None:
    rig = Rig(fresh(1))
    rig.progress = TailProgress(at(50), stalled=False)
    rig.sweep()
    rig.table.rows[2] = fresh(2)
    rig.head, rig.progress = at(200), TailProgress(at(200), stalled=False)
    rig.sweep()
    assert rig.sent == [1, 2]


def test_a_tailer_that_does_not_move_keeps_its_rows() -> None:
    rig = Rig(fresh(1))
    rig.progress = TailProgress(at(99), stalled=False)
    for _ in range(5):
        rig.sweep()
    assert rig.sent == []


def test_where_the_binlog_ended_is_asked_after_the_rows_were_seen_and_the_watermark_after_that() -> None:
    """Else a row that commits in between would be taken from the tailer that is about to send it."""
    rig = Rig(fresh(1))
    order: list[str] = []
    due, sweeper = rig.table.due, rig.sweeper
    rig.table.due = lambda *args: order.append("rows") or due(*args)  # type: ignore[method-assign,func-returns-value]
    sweeper._fresh_rows._head = lambda: order.append("head") or rig.head  # type: ignore[func-returns-value]
    sweeper._fresh_rows._tail_progress = lambda: order.append("watermark") or rig.progress  # type: ignore[func-returns-value]
    rig.sweep()
    assert order[:3] == ["rows", "head", "watermark"]


def test_without_fresh_rows_nobody_is_asked() -> None:
    rig = Rig(tried(1))

    def fail() -> Any:
        raise AssertionError("asked")

    rig.sweeper._fresh_rows._head = rig.sweeper._fresh_rows._tail_progress = fail
    assert rig.sweep().sent == 1


def test_a_binlog_that_was_reset_is_waited_for_anew() -> None:
    rig = Rig(fresh(1))
    rig.head, rig.progress = at(5_000), TailProgress(at(4_000), stalled=False)
    rig.sweep()
    rig.head, rig.progress = at(100), TailProgress(at(50), stalled=False)
    assert rig.sweep().sent == 0
    rig.head, rig.progress = at(200), TailProgress(at(120), stalled=False)
    assert rig.sweep().sent == 1


# --- order per key ----------------------------------------------------------------------------------------------------


def test_a_due_row_behind_a_waiting_one_of_its_key_is_held_back() -> None:
    rig = Rig(tried(1, "a", next_retry_at=SOON), tried(2, "a"), tried(3, "b"), tried(4), tried(5))
    assert rig.sweep() == SweepCounts(sent=3, held_back=1)
    assert rig.sent == [3, 4, 5]


def test_a_due_row_behind_one_that_the_tailer_holds_is_held_back() -> None:
    rig = Rig(tried(1, "a", next_retry_at=SOON), tried(2, "a"))
    rig.parking.hold(b"a", 1)
    assert rig.sweep() == SweepCounts(held_back=1)


def test_a_row_that_the_sweep_holds_back_first_gets_a_note_that_a_restart_finds_it_by() -> None:
    """A scheduled row, or one that the tailer has missed: nobody has held it back before."""
    rig = Rig(tried(1, "a", next_retry_at=SOON), fresh(2, "a"), tried(3, "a"))
    assert rig.sweep().held_back == 2
    assert rig.table.rows[2].last_error == f"{HELD_BACK} (id 1)"
    assert rig.table.rows[3].last_error == "broken"


def test_rows_that_are_known_to_wait_take_no_room_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SCAN_ROWS", 4)
    waiting = [StoredRow(n, b"a", last_error="held back", next_retry_at=WALL) for n in range(2, 30)]
    rig = Rig(tried(1, "a", next_retry_at=SOON), *waiting, tried(30, "b"))
    for row in waiting:
        rig.parking.hold(b"a", row.id)
    rig.parking.hold(b"a", 1)
    assert rig.sweep() == SweepCounts(sent=1, held_back=28, more=True)
    assert rig.sent == [30]


def test_behind_a_row_that_is_tried_again_its_key_is_postponed_to_the_next_run() -> None:
    """It may fail again."""
    rig = Rig(tried(1, "a"), tried(2, "a"), tried(3, "b"))
    counts = rig.sweep()
    assert rig.sent == [1, 3]
    assert counts.more
    rig.sweep()
    assert rig.sent == [1, 3, 2]


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 100])
def test_a_page_does_not_overtake_what_the_page_before_it_left(batch_rows: int) -> None:
    rig = Rig(*(tried(n, "a") for n in range(1, 8)), batch_rows=batch_rows)
    while rig.sweep().more:
        pass
    assert rig.sent == list(range(1, 8))


def test_a_key_that_becomes_free_between_two_pages_is_left_to_the_next_run() -> None:
    rig = Rig(tried(2, "a"), tried(3, "b"), tried(4, "a"), batch_rows=1)
    rig.parking.hold(b"a", 1)

    def free() -> None:
        if rig.sent == [3]:
            rig.parking.release([1])

    rig.on_wait = free
    rig.sweep()
    assert rig.sent == [3]
    rig.sweep()
    rig.sweep()
    assert rig.sent == [3, 2, 4]


def test_rows_held_back_go_together_once_the_one_before_them_is_sent() -> None:
    """They were never tried themselves, so they need not go one by one."""
    behind = [StoredRow(n, b"a", last_error="held back", next_retry_at=WALL) for n in range(2, 30)]
    rig = Rig(tried(1, "a"), *behind)
    rig.parking.hold(b"a", 1)
    for row in behind:
        rig.parking.hold(b"a", row.id)
    runs = 0
    while rig.sweep().more:
        runs += 1
    assert rig.sent == list(range(1, 30))
    assert runs <= 3
    assert not rig.parking


def test_while_keys_are_held_back_and_rows_go_the_next_run_follows_at_once() -> None:
    """Rows that come meanwhile are held back too, so a busy key would never be the tailer's again."""
    rig = Rig(tried(1, "a"), tried(9, "z", next_retry_at=SOON))
    rig.parking.hold(b"z", 9)
    assert rig.sweep().more
    assert not rig.sweep().more  # nothing went


def test_when_a_retry_fails_again_the_rows_behind_it_stay() -> None:
    rig = Rig(tried(1, "a"), tried(2, "a"), publisher=FakePublisher(answers=False))

    def refuse() -> None:
        if rig.publisher.waiting:
            rig.publisher.answer(Refusal(RetryableRow("not now")))

    rig.on_wait = refuse
    rig.sweep()
    rig.sweep()
    assert rig.sent == [1]
    assert rig.table.rows[1].retry_count == 2
    assert rig.parking.waiting(10) == [1]


def test_behind_a_row_that_is_refused_at_once_its_key_waits_in_the_same_page() -> None:
    rows = [replace(fresh(n, "a"), topic="missing" if n == 1 else "t") for n in (1, 2, 3)]
    rig = Rig(*rows, fresh(4, "b"), publisher=FakePublisher(missing=["missing"]))
    rig.sweep()
    assert rig.sent == [4]
    assert rig.table.rows[1].retry_count == 1
    assert [rig.table.rows[n].held for n in (2, 3)] == [True, True]


def test_a_row_that_was_parked_by_the_consumer_goes_when_it_is_due() -> None:
    rig = Rig(StoredRow(2, b"a", published_at=WALL, last_error=f"{PARKED} (id 1)", next_retry_at=WALL))
    assert rig.sweep().sent == 1
    assert rig.table.rows[2].last_error == f"{PARKED} (id 1)"


# --- keys whose row is gone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["consumed", "dead", "published", None])
def test_a_key_is_free_again_when_someone_else_has_ended_its_waiting_row(end: str | None) -> None:
    rig = Rig(tried(1, "a", next_retry_at=SOON), tried(2, "a"))
    rig.parking.hold(b"a", 1)
    assert rig.sweep().held_back == 1
    if end is None:
        del rig.table.rows[1]
    else:
        rig.table.rows[1] = replace(rig.table.rows[1], status=end)
    for _ in range(3):
        rig.sweep()
    assert rig.sent == [2]
    assert not rig.parking


def test_a_row_that_is_not_visible_yet_keeps_its_key() -> None:
    """The tailer holds a row from the binlog a moment before the table shows it to others."""
    rig = Rig()
    rig.parking.hold(b"a", 7)
    rig.sweep()
    assert rig.parking.waiting(10) == [7]
    rig.table.rows[7] = tried(7, "a", next_retry_at=SOON)
    rig.sweep()
    assert rig.parking.waiting(10) == [7]


# --- pages ------------------------------------------------------------------------------------------------------------


def test_rows_are_sent_a_page_at_a_time() -> None:
    rig = Rig(*(tried(n) for n in range(1, 8)), batch_rows=3)
    leases = 0
    lease = rig.table.lease

    def count(*args: Any, **named: Any) -> int:
        nonlocal leases
        leases += 1
        return lease(*args, **named)

    rig.table.lease = count  # type: ignore[method-assign]
    assert rig.sweep().sent == 7
    assert leases == 3


def test_of_more_due_rows_than_one_run_looks_at_the_next_run_finds_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SCAN_ROWS", 4)
    rig = Rig(*(tried(n) for n in range(1, 11)))
    assert rig.sweep().more
    assert rig.sweep().more
    assert not rig.sweep().more
    assert rig.sent == list(range(1, 11))


@given(st.lists(st.integers(0, 20 * 2**20), max_size=40), st.integers(1, 10))
def test_pages_are_bounded_by_rows_and_by_bytes_and_lose_nothing(sizes: list[int], batch_rows: int) -> None:
    rows = [PendingRow(number, False, size) for number, size in enumerate(sizes)]
    pages = list(_pages(rows, batch_rows))
    assert [row for page in pages for row in page] == rows
    for page in pages:
        assert 0 < len(page) <= batch_rows
        assert len(page) == 1 or sum(row.size for row in page) <= module._PAGE_BYTES


# --- published and not consumed ---------------------------------------------------------------------------------------


def published(row_id: int, seconds_ago: float, **changes: Any) -> StoredRow:
    values: dict[str, Any] = {"status": "published", "published_at": WALL - timedelta(seconds=seconds_ago)}
    return StoredRow(row_id, b"k%d" % row_id, **values | changes)


def test_rows_published_long_ago_and_not_consumed_are_sent_again() -> None:
    rig = Rig(
        published(1, 200),
        published(2, 50),
        published(3, 200, status="consumed"),
        published(4, 200, status="dead"),
        redeliver_published_after_s=100,
    )
    rig.sweep()
    rig.sweep()
    assert rig.sent == [1]
    assert rig.table.rows[1].status == "published"
    assert rig.table.rows[1].published_at == WALL
    assert rig.table.rows[1].retry_count == 0


def test_they_stay_where_they_are_unless_that_is_asked_for() -> None:
    rig = Rig(published(1, 10**9))
    rig.sweep()
    assert rig.sent == []


def test_they_are_looked_for_now_and_then_and_to_the_end() -> None:
    rows = [published(n, 200) for n in range(1, 6)]
    rig = Rig(*rows, redeliver_published_after_s=100, batch_rows=2)
    while rig.sweep().more:
        pass
    assert sorted(rig.sent) == [1, 2, 3, 4, 5]
    rig.table.rows[6] = published(6, 200)
    rig.sweep()
    assert 6 not in rig.sent
    rig.now += timedelta(seconds=31)
    rig.sweep()
    rig.sweep()
    assert 6 in rig.sent


def test_nobody_looks_for_them_before_the_oldest_can_have_waited_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server reads every published row for it."""
    rig = Rig(published(1, 10), published(2, 50), redeliver_published_after_s=1_000)
    looks: list[datetime] = []
    page = rig.table.published_page

    def look(connection: Any, after_id: int, limit: int) -> PublishedPage:
        looks.append(rig.now)
        return page(connection, after_id, limit)

    monkeypatch.setattr(rig.table, "published_page", look)
    began = rig.now
    while rig.now < began + timedelta(seconds=1_020):
        rig.sweep()
        rig.now += timedelta(seconds=5)
    assert [round((at - began).total_seconds()) for at in looks] == [0, 950, 980, 1_010]
    assert rig.sent == [2, 1]


def test_of_very_many_a_look_brings_some_and_the_next_one_follows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unconsumed, "_PAGE_ROWS", 4)
    rig = Rig(*(published(n, 200) for n in range(1, 12)), redeliver_published_after_s=100, batch_rows=3)
    while rig.sweep().more:
        pass
    assert sorted(rig.sent) == list(range(1, 12))


def test_those_that_were_consumed_since_they_were_found_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(*(published(n, 200) for n in range(1, 5)), redeliver_published_after_s=100, batch_rows=2)
    rig.sweep()
    rig.table.rows[3] = replace(rig.table.rows[3], status="consumed")
    while rig.sweep().more:
        pass
    assert sorted(rig.sent) == [1, 2, 4]


# --- any order of events ----------------------------------------------------------------------------------------------


@given(st.data())
def test_whatever_fails_each_row_is_delivered_or_dead_in_the_end_and_in_order_per_key(data: st.DataObject) -> None:
    """Refusals for now, poison and outages, in any order; time goes by between the runs."""
    count = data.draw(st.integers(1, 10))
    kinds = data.draw(st.sampled_from([[tried], [fresh, tried]]))
    rows = [
        data.draw(st.sampled_from(kinds))(n, data.draw(st.sampled_from(["a", "b", ""]))) for n in range(1, count + 1)
    ]
    poison = data.draw(st.sets(st.integers(1, count), max_size=2))
    rows = [replace(row, payload=b"no JSON") if row.id in poison else row for row in rows]
    rig = Rig(*rows, publisher=FakePublisher(answers=False), batch_rows=data.draw(st.integers(1, 5)))
    refusals = data.draw(st.integers(0, 6))

    def answer() -> None:
        nonlocal refusals
        if not rig.publisher.waiting:
            return
        if refusals and data.draw(st.booleans()):
            refusals -= 1
            rig.publisher.answer(Refusal(data.draw(st.sampled_from([RetryableRow("later"), PoisonRow("never")]))))
        else:
            rig.publisher.answer()

    rig.on_wait = answer
    for _ in range(200):
        if not any(row.status == "pending" for row in rig.table.rows.values()):
            break
        rig.sweep()
        rig.now += timedelta(seconds=data.draw(st.sampled_from([0, 1, 40])))
    assert {row.status for row in rig.table.rows.values()} <= {"published", "dead"}
    assert not rig.parking
    dead = {row.id for row in rig.table.rows.values() if row.status == "dead"}
    taken = [decode(record.value).outbox_id for record in rig.publisher.acknowledged]
    assert sorted(taken) == [row.id for row in rows if row.id not in dead]
    if fresh not in kinds:  # what was never tried is sent together, and one of them may be refused alone
        for key in (b"a", b"b"):
            of_key = [n for n in taken if rows[n - 1].message_key == key]
            assert of_key == sorted(of_key)
