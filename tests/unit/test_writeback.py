from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from cdc_relay.delivery import Delivery
from cdc_relay.errors import DatabaseUnavailable, KafkaUnavailable, PoisonRow, RetryableRow, RowError
from cdc_relay.metrics import RelayMetrics
from cdc_relay.outbox.backoff import Backoff
from cdc_relay.outbox.envelope import Record
from cdc_relay.outbox.parking import Ordering
from cdc_relay.outbox.sql import HELD_BACK, PARKED
from cdc_relay.parking import SharedParking
from cdc_relay.writeback import _BATCHES_A_TRANSACTION, StatusWriter
from tests.fakes import FakeOutboxTable, FakePublisher, StoredRow

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WALL = NOW.replace(tzinfo=None)


class Rig:
    """A status writer on a fake table, and deliveries that are complete."""

    def __init__(
        self,
        *rows: StoredRow,
        batch_rows: int = 100,
        zone: tzinfo = UTC,
        delay_s: float = 0.0,
        ordering: Ordering = Ordering.SKIP_DEAD,
    ) -> None:
        self.table = FakeOutboxTable(*rows)
        self.parking = SharedParking(ordering)
        self.registry = CollectorRegistry()
        self.settled: list[Delivery] = []
        self.seconds = 0.0
        self.writer = StatusWriter(
            self.table.transaction,
            self.table,  # type: ignore[arg-type]
            self.parking,
            RelayMetrics(self.registry),
            zone=zone,
            backoff=Backoff(),
            batch_rows=batch_rows,
            delay_s=delay_s,
            clock=lambda: self.seconds,
        )

    def complete(
        self,
        *sent: int,
        failed: dict[int, RowError] | None = None,
        parked: dict[int, int] | None = None,
        retry_counts: dict[int, int] | None = None,
        committed_at: float = 0.0,
        path: str = "tail",
    ) -> Delivery:
        """A delivery that Kafka has answered for."""
        publisher = FakePublisher()
        delivery: Delivery
        delivery = Delivery(
            publisher,
            self.writer.complete,
            path=path,
            committed_at=committed_at,
            on_settled=lambda: self.settled.append(delivery),
            retry_counts=retry_counts or {},
        )
        for row_id in sent:
            delivery.send(row_id, Record("t", b"k", b'{"outbox_id": %d}' % row_id, []))
        delivery.failed |= failed or {}
        delivery.parked |= parked or {}
        delivery.close()
        publisher.poll(0)
        return delivery

    def count(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"cdc_relay_{name}", labels)


def row(row_id: int, key: str = "k", **changes: Any) -> StoredRow:
    return StoredRow(row_id, key.encode(), **{"next_retry_at": WALL, "created_at": WALL} | changes)


# --- published --------------------------------------------------------------------------------------------------------


def test_with_nothing_complete_nothing_is_done() -> None:
    rig = Rig()
    assert rig.writer.idle
    assert rig.writer.run_once(NOW) == 0
    assert rig.table.committed == 0


def test_acknowledged_rows_are_published_in_one_transaction_and_then_settled() -> None:
    rig = Rig(row(1), row(2), row(3))
    first, second = rig.complete(1, 2), rig.complete(3)
    assert not rig.writer.idle
    assert rig.settled == []
    assert rig.writer.run_once(NOW) == 3
    assert rig.settled == [first, second]
    assert rig.table.committed == 1
    assert rig.writer.idle
    for stored in rig.table.rows.values():
        assert (stored.status, stored.published_at, stored.next_retry_at) == ("published", WALL, None)
    assert rig.count("rows_published_total", path="tail") == 3


def test_as_long_as_more_is_complete_than_one_transaction_takes_the_batch_is_full() -> None:
    many = range(1, 6)
    rig = Rig(*(row(n) for n in many), batch_rows=1)
    for row_id in many:
        rig.complete(row_id)
    assert rig.writer.has_full_batch
    assert rig.writer.run_once(NOW) == 4
    assert rig.writer.has_full_batch
    assert rig.writer.run_once(NOW) == 1
    assert not rig.writer.has_full_batch


def test_nothing_is_settled_before_it_is_committed() -> None:
    rig = Rig(row(1), row(2, "b"))
    seen: list[tuple[int, list[int]]] = []
    delivery = rig.complete(1, failed={2: RetryableRow("later")})
    settle = delivery.settle

    def look() -> None:
        seen.append((rig.table.committed, rig.parking.waiting(10)))
        settle()

    delivery.settle = look  # type: ignore[method-assign]
    rig.writer.run_once(NOW)
    # And the key of a failed row is held before the position may pass the row.
    assert seen == [(1, [2])]


def test_when_mysql_is_away_everything_is_kept_for_the_next_time() -> None:
    rig = Rig(row(1), row(2, "b"), row(3, "c"))
    delivery = rig.complete(1, failed={2: PoisonRow("never")}, parked={3: 9})
    rig.table.fails = DatabaseUnavailable("away")
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable):
            rig.writer.run_once(NOW)
    assert rig.settled == []
    assert not rig.writer.idle
    assert not rig.parking
    assert rig.count("rows_published_total", path="tail") == 0
    assert rig.count("rows_dead_total") == 0
    rig.table.fails = None
    later = rig.complete()
    assert rig.writer.run_once(NOW) == 1
    assert rig.settled == [delivery, later]
    assert {r.id: r.status for r in rig.table.rows.values()} == {1: "published", 2: "dead", 3: "pending"}


def test_rows_that_the_consumer_was_faster_with_stay_consumed() -> None:
    rig = Rig(row(1, status="consumed", next_retry_at=None), row(2, status="dead"))
    rig.complete(1, 2)
    rig.writer.run_once(NOW)
    assert (rig.table.rows[1].status, rig.table.rows[1].published_at) == ("consumed", WALL)
    assert rig.table.rows[2] == row(2, status="dead")
    assert len(rig.settled) == 1


def test_rows_that_the_consumer_has_scheduled_meanwhile_stay_scheduled() -> None:
    scheduled = row(1, retry_count=1, published_at=WALL, last_error="broken", next_retry_at=WALL + timedelta(seconds=9))
    rig = Rig(scheduled, row(2, retry_count=2, last_error="x"))
    rig.complete(1, 2, retry_counts={2: 2})
    rig.writer.run_once(NOW)
    assert rig.table.rows[1] == scheduled
    assert rig.table.rows[2].status == "published"


def test_rows_that_are_gone_are_no_trouble() -> None:
    rig = Rig()
    rig.complete(1, failed={2: RetryableRow("later"), 3: PoisonRow("never")}, parked={4: 2})
    assert rig.writer.run_once(NOW) == 1
    assert len(rig.settled) == 1
    assert not rig.parking


def test_ids_go_to_the_table_in_batches_in_their_order() -> None:
    rig = Rig(*(row(n) for n in range(1, 26)), batch_rows=10)
    batches: list[list[int]] = []
    mark = rig.table.mark_published

    def marked(connection: Any, ids: Sequence[int], retry_count: int, now: datetime) -> int:
        batches.append(list(ids))
        return mark(connection, ids, retry_count, now)

    rig.table.mark_published = marked  # type: ignore[method-assign]
    rig.complete(*range(25, 12, -1))
    rig.complete(*range(1, 13))
    rig.writer.run_once(NOW)
    assert batches == [list(range(1, 11)), list(range(11, 21)), list(range(21, 26))]


def test_a_transaction_takes_so_many_rows_and_leaves_the_rest_to_the_next() -> None:
    rig = Rig(*(row(n) for n in range(1, 101)), batch_rows=10)
    for start in range(1, 101, 5):
        rig.complete(*range(start, start + 5))
    most = _BATCHES_A_TRANSACTION * 10
    assert [rig.writer.run_once(NOW) for _ in range(4)] == [most, most, 100 - 2 * most, 0]
    assert len(rig.settled) == 20


# --- left to the consumer at first -----------------------------------------------------------------------------------


def test_rows_are_left_to_the_consumer_for_the_delay_and_those_that_it_marks_are_not_written() -> None:
    rig = Rig(row(1), row(2, "b"), row(3, "c"), delay_s=0.5)
    written: list[int] = []
    mark = rig.table.mark_published

    def marked(connection: Any, ids: Sequence[int], retry_count: int, now: datetime) -> int:
        written.extend(ids)
        return mark(connection, ids, retry_count, now)

    rig.table.mark_published = marked  # type: ignore[method-assign]
    delivery = rig.complete(1, 2, 3)
    rig.seconds = 0.49
    assert rig.writer.run_once(NOW) == 0
    assert rig.settled == []
    assert not rig.writer.idle
    consumed = row(2, "b", status="consumed", published_at=WALL, next_retry_at=None)
    rig.table.rows[2] = consumed
    rig.seconds = 0.5
    assert rig.writer.run_once(NOW) == 3
    assert written == [1, 3]
    assert rig.settled == [delivery]
    assert rig.table.rows[2] == consumed
    assert rig.writer.idle
    assert rig.count("rows_published_total", path="tail") == 3


def test_rows_that_the_consumer_has_put_back_are_its_own_also_while_they_are_sent_again() -> None:
    failed = row(1, retry_count=1, published_at=WALL, last_error="broken")
    parked = row(2, published_at=None, last_error=f"{PARKED} (id 1)")  # leased by the sweep: another delivery's token
    rig = Rig(failed, parked, delay_s=0.5)
    rig.complete(1, 2)
    rig.seconds = 1.0
    assert rig.writer.run_once(NOW) == 2
    assert (rig.table.rows[1], rig.table.rows[2]) == (failed, parked)
    assert len(rig.settled) == 1


def test_when_the_first_is_due_those_go_with_it_that_have_waited_half_as_long() -> None:
    rig = Rig(*(row(n, str(n)) for n in range(1, 5)), delay_s=1.0)
    for row_id, at in ((1, 0.0), (2, 0.4), (3, 0.5), (4, 0.6)):
        rig.seconds = at
        rig.complete(row_id)
    rig.seconds = 0.9
    assert rig.writer.run_once(NOW) == 0
    rig.seconds = 1.0
    assert rig.writer.run_once(NOW) == 3
    assert (rig.table.committed, rig.table.rows[4].status) == (1, "pending")


def test_nothing_waits_when_it_is_to_be_written_at_once() -> None:
    rig = Rig(row(1), row(2, "b"), delay_s=0.5)
    rig.complete(1)
    rig.complete(2)
    assert rig.writer.run_once(NOW, at_once=True) == 2
    assert rig.writer.idle
    assert {stored.status for stored in rig.table.rows.values()} == {"published"}


def test_what_comes_from_the_table_and_what_failed_waits_for_nobody() -> None:
    rig = Rig(row(1), row(2, "b"), row(3, "c"), delay_s=0.5)
    rig.complete(1, path="sweep", retry_counts={1: 0})
    rig.complete(2, failed={3: RetryableRow("later")})
    assert rig.writer.run_once(NOW) == 2
    assert [rig.table.rows[n].status for n in (1, 2, 3)] == ["published", "published", "pending"]
    assert rig.parking.blocked_by(b"c", 4) == 3


# --- failed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "wait_s"), [(0, 1), (1, 2), (4, 16), (10, 32)])
def test_a_row_refused_for_now_waits_longer_each_time_and_holds_its_key(before: int, wait_s: int) -> None:
    rig = Rig(row(1, "a", retry_count=before))
    rig.complete(failed={1: RetryableRow("no such topic")}, retry_counts={1: before})
    rig.writer.run_once(NOW)
    stored = rig.table.rows[1]
    assert (stored.status, stored.retry_count, stored.last_error) == ("pending", before + 1, "no such topic")
    assert stored.next_retry_at == WALL + timedelta(seconds=wait_s)
    assert rig.parking.blocked_by(b"a", 2) == 1
    assert rig.count("rows_failed_total", kind="RetryableRow") == 1
    assert rig.count("parked_keys") == 1


@pytest.mark.parametrize(
    ("reason", "before"), [(PoisonRow("no JSON"), 0), (PoisonRow("no JSON"), 7), (RetryableRow("no topic"), 19)]
)
def test_a_row_that_no_retry_can_cure_or_that_has_had_them_all_is_dead_and_holds_nothing(
    reason: RowError, before: int
) -> None:
    rig = Rig(row(1, "a", retry_count=before))
    rig.parking.hold(b"a", 1)
    rig.complete(failed={1: reason}, retry_counts={1: before})
    rig.writer.run_once(NOW)
    stored = rig.table.rows[1]
    assert (stored.status, stored.retry_count, stored.next_retry_at) == ("dead", before + 1, None)
    assert stored.last_error == reason.message
    assert not rig.parking
    assert rig.count("rows_dead_total") == 1


def test_a_row_dead_for_one_attempt_only_when_that_is_all_it_is_given() -> None:
    rig = Rig(row(1, max_retry=1), row(2, max_retry=0), row(3, max_retry=2))
    rig.complete(failed=dict.fromkeys((1, 2, 3), RetryableRow("later")))
    rig.writer.run_once(NOW)
    assert {r.id: r.status for r in rig.table.rows.values()} == {1: "dead", 2: "dead", 3: "pending"}


@pytest.mark.parametrize("status", ["consumed", "dead", "published"])
def test_a_failure_of_a_row_that_is_decided_changes_nothing(status: str) -> None:
    rig = Rig(row(1, "a", status=status))
    rig.complete(failed={1: PoisonRow("too late")})
    rig.writer.run_once(NOW)
    assert rig.table.rows[1] == row(1, "a", status=status)
    assert not rig.parking
    assert len(rig.settled) == 1


def test_a_failure_that_someone_newer_has_overtaken_changes_nothing_but_the_key_waits() -> None:
    """A consumer has scheduled the row meanwhile: later rows of its key wait for it all the same."""
    scheduled = row(1, "a", retry_count=1, published_at=WALL, next_retry_at=WALL + timedelta(seconds=9))
    rig = Rig(scheduled)
    rig.complete(failed={1: RetryableRow("too late")})
    rig.writer.run_once(NOW)
    assert rig.table.rows[1] == scheduled
    assert rig.parking.blocked_by(b"a", 2) == 1


def test_a_commit_whose_answer_was_lost_is_not_repeated_and_the_key_waits() -> None:
    rig = Rig(row(1, "a"), row(2, "b"))
    rig.complete(2, failed={1: RetryableRow("later")})
    rig.table.loses_the_answer = DatabaseUnavailable("gone while committing")
    with pytest.raises(DatabaseUnavailable):
        rig.writer.run_once(NOW)
    committed = dict(rig.table.rows)
    rig.writer.run_once(NOW + timedelta(seconds=5))
    assert rig.table.rows == committed
    assert rig.table.rows[1].retry_count == 1
    assert rig.parking.blocked_by(b"a", 3) == 1
    assert len(rig.settled) == 1


@pytest.mark.parametrize("answer_lost", [False, True])
@pytest.mark.parametrize(("reason", "before"), [(PoisonRow("no JSON"), 0), (RetryableRow("no topic"), 19)])
def test_a_dead_row_holds_its_key_before_the_position_may_pass_it_where_that_is_asked_for(
    reason: RowError, before: int, answer_lost: bool
) -> None:
    rig = Rig(row(1, "a", retry_count=before), row(2, ""), ordering=Ordering.BLOCK_ON_DEAD)
    delivery = rig.complete(failed={1: reason, 2: PoisonRow("no JSON")}, retry_counts={1: before})
    settle = delivery.settle
    seen: list[int | None] = []

    def look() -> None:
        seen.append(rig.parking.blocked_by(b"a", 9))
        settle()

    delivery.settle = look  # type: ignore[method-assign]
    if answer_lost:
        rig.table.loses_the_answer = DatabaseUnavailable("the answer was lost")
        with pytest.raises(DatabaseUnavailable):
            rig.writer.run_once(NOW)
    rig.writer.run_once(NOW)
    assert seen == [1]
    assert (rig.parking.dead, rig.parking.blocked_keys) == (frozenset({1}), 1)
    assert {stored.status for stored in rig.table.rows.values()} == {"dead"}


def test_the_next_attempt_is_written_in_the_zone_of_the_columns_also_when_the_clocks_go_back() -> None:
    zone = ZoneInfo("Europe/Berlin")
    before = datetime(2026, 10, 25, 0, 59, 50, tzinfo=UTC)  # 02:59:50 in summer; ten seconds later it is 02:00 again
    rig = Rig(row(1, retry_count=5), zone=zone)
    rig.complete(failed={1: RetryableRow("later")}, retry_counts={1: 5})
    rig.writer.run_once(before)
    assert rig.table.rows[1].next_retry_at is not None
    at = rig.table.rows[1].next_retry_at.replace(tzinfo=zone)
    # 32 seconds later by the clock that counts; which of the two hours is meant, the column cannot say.
    assert (at - before) in (timedelta(seconds=32), timedelta(seconds=32, hours=-1), timedelta(hours=1, seconds=32))


# --- parked -----------------------------------------------------------------------------------------------------------


def test_parked_rows_get_a_note_that_a_restart_finds_them_by() -> None:
    rig = Rig(row(5, "a"), row(6, "a"), row(7, "b"), row(8, "b", retry_count=1), batch_rows=1)
    rig.complete(parked={5: 3, 6: 3, 7: 4, 8: 4})
    rig.writer.run_once(NOW)
    assert [rig.table.rows[n].last_error for n in (5, 6, 7, 8)] == [
        f"{HELD_BACK} (id 3)",
        f"{HELD_BACK} (id 3)",
        f"{HELD_BACK} (id 4)",
        None,  # it has a note of its own
    ]
    assert all(stored.status == "pending" for stored in rig.table.rows.values())
    assert {waiting.id for waiting in rig.table.held_rows(None)} == {5, 6, 7, 8}
    assert rig.count("rows_parked_total") == 4


def test_a_parked_row_that_was_sent_frees_its_key() -> None:
    rig = Rig(row(1, "a", last_error=f"{HELD_BACK} (id 0)"))
    rig.parking.hold(b"a", 1)
    rig.complete(1)
    rig.writer.run_once(NOW)
    assert not rig.parking
    assert rig.table.rows[1].last_error is None


def test_a_row_is_not_written_as_waiting_before_the_one_that_it_waits_for() -> None:
    """Or a crash between the two would leave a table in which the later row is due and the earlier one is fresh."""
    rig = Rig(row(1, "a"), row(2, "a"), row(3, "a"), row(4, "b"))
    rig.parking.refused(b"a", 1, RetryableRow("later"))
    rig.parking.hold_unwritten(b"a", 2)
    rig.parking.hold_unwritten(b"a", 3)
    rig.complete(4, parked={2: 1})  # complete before the delivery in which row 1 was refused
    rig.complete(parked={3: 2})
    for _ in range(2):
        assert rig.writer.run_once(NOW) == 0
    assert not rig.settled
    assert rig.table.rows[2].last_error is None
    assert rig.writer.idle, "a stop must not wait for it"
    rig.complete(failed={1: RetryableRow("later")})
    rig.writer.run_once(NOW)
    assert len(rig.settled) == 3
    assert rig.table.rows[1].retry_count == 1
    assert rig.table.rows[2].last_error == f"{HELD_BACK} (id 1)"
    assert rig.table.rows[3].last_error == f"{HELD_BACK} (id 2)"
    assert rig.table.rows[4].status == "published"
    assert not any(row_id in rig.parking.unwritten for row_id in (1, 2, 3))


def test_a_row_that_waited_for_one_that_kafka_took_after_all_is_written_with_it() -> None:
    rig = Rig(row(1, "a"), row(2, "a"), ordering=Ordering.BLOCK_ON_DEAD)
    rig.parking.hold_unwritten(b"a", 1)  # on its way, and so large that it may be refused
    rig.parking.hold_unwritten(b"a", 2)
    rig.complete(1, parked={2: 1})
    rig.writer.run_once(NOW)
    assert rig.table.rows[1].status == "published"
    assert rig.table.rows[2].last_error == f"{HELD_BACK} (id 1)"
    assert rig.parking.waiting(10) == [2]


def test_what_waits_for_a_session_that_has_ended_is_read_again() -> None:
    rig = Rig(row(1, "a"), row(2, "a"))
    rig.parking.refused(b"a", 1, RetryableRow("later"))
    rig.complete(parked={2: 1})
    rig.writer.run_once(NOW)
    rig.writer.forget_late()
    rig.complete(failed={1: RetryableRow("later")})
    rig.writer.run_once(NOW)
    assert rig.table.rows[1].retry_count == 1
    assert rig.table.rows[2].last_error is None


# --- given up ---------------------------------------------------------------------------------------------------------


def given_up(rig: Rig) -> None:
    publisher = FakePublisher(answers=False)
    delivery = Delivery(publisher, rig.writer.complete, path="tail", on_settled=lambda: rig.settled.append(delivery))
    delivery.send(1, Record("t", b"", b'{"outbox_id": 1}', []))
    delivery.close()
    publisher.close()


def test_records_given_up_are_told_once_and_never_written() -> None:
    rig = Rig(row(1), row(2))
    given_up(rig)
    rig.complete(2)
    with pytest.raises(KafkaUnavailable, match="read again"):
        rig.writer.run_once(NOW)
    assert rig.writer.run_once(NOW) == 1
    assert rig.table.rows[1] == row(1)
    assert len(rig.settled) == 1


def test_records_given_up_by_a_session_that_has_ended_are_forgotten() -> None:
    rig = Rig(row(1))
    given_up(rig)
    rig.writer.forget_given_up()
    assert rig.writer.run_once(NOW) == 0


# --- latency ----------------------------------------------------------------------------------------------------------


def test_the_latency_is_observed_where_the_commit_is_known_and_something_was_sent() -> None:
    rig = Rig(row(1), row(2))
    rig.complete(1)
    rig.complete(failed={2: PoisonRow("x")}, committed_at=1.0)
    assert rig.count("delivery_latency_seconds_count") == 0
    rig.complete(2, committed_at=10.0**12)  # the server's clock is ahead
    assert rig.count("delivery_latency_seconds_count") == 1
    assert rig.count("delivery_latency_seconds_sum") == 0


# --- anything ---------------------------------------------------------------------------------------------------------


@given(st.data())
def test_whatever_fails_in_between_each_delivery_is_settled_once_and_its_rows_have_left_by_a_durable_exit(
    data: st.DataObject,
) -> None:
    rows = [row(n, data.draw(st.sampled_from("ab"))) for n in range(1, data.draw(st.integers(2, 12)))]
    rig = Rig(*rows, batch_rows=data.draw(st.integers(1, 4)), delay_s=data.draw(st.sampled_from([0.0, 1.0])))
    deliveries, expected = [], {}
    rest = [stored.id for stored in rows]
    while rest:
        count = data.draw(st.integers(1, 4))
        some, rest = rest[:count], rest[count:]
        failed: dict[int, RowError] = {}
        sent = []
        for row_id in some:
            outcome = data.draw(st.sampled_from(["published", "published", "pending", "dead"]))
            expected[row_id] = outcome
            if outcome == "published":
                sent.append(row_id)
            else:
                failed[row_id] = PoisonRow("never") if outcome == "dead" else RetryableRow("later")
        deliveries.append(rig.complete(*sent, failed=failed))
    for _ in range(100):
        rig.seconds += data.draw(st.sampled_from([0.0, 0.5]))
        trouble = data.draw(st.sampled_from(["none", "none", "fails", "answer lost"]))
        rig.table.fails = DatabaseUnavailable("away") if trouble == "fails" else None
        rig.table.loses_the_answer = DatabaseUnavailable("lost") if trouble == "answer lost" else None
        try:
            rig.writer.run_once(NOW)
        except DatabaseUnavailable:
            continue
        if rig.writer.idle:
            break
    rig.table.fails = rig.table.loses_the_answer = None
    while not rig.writer.idle:
        rig.writer.run_once(NOW, at_once=True)
    assert sorted(rig.settled, key=deliveries.index) == deliveries
    assert {row_id: rig.table.rows[row_id].status for row_id in expected} == expected
    waiting = sorted(row_id for row_id, outcome in expected.items() if outcome == "pending")
    assert rig.parking.waiting(100) == waiting
    assert all(rig.table.rows[row_id].retry_count == 1 for row_id in waiting)
