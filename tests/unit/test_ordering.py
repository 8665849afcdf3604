"""The sweep under ``ordering.mode`` and ``ordering.on_dead``: what waits for a dead row, and until when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay import sweeper as module
from cdc_relay.cautious import CautiousPublisher
from cdc_relay.errors import KafkaUnavailable, PoisonRow, RetryableRow
from cdc_relay.outbox.envelope import Record, decode
from cdc_relay.outbox.parking import Ordering
from cdc_relay.outbox.row import OutboxRow
from cdc_relay.outbox.sql import HELD_BACK, PARKED, REQUEUED, WaitingRow
from cdc_relay.parked_rows import refill
from cdc_relay.parking import SharedParking
from cdc_relay.sweeper import SweepCounts
from tests.fakes import FakeOutboxTable, FakePublisher, Refusal, StoredRow
from tests.unit.test_sweeper import SOON, WALL, Rig, fresh, tried

BLOCK = Ordering.BLOCK_ON_DEAD


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SETTLE_WAIT_S", 0)


def dead(row_id: int, key: str = "a", **changes: Any) -> StoredRow:
    values: dict[str, Any] = {"status": "dead", "retry_count": 20, "last_error": "why"}
    return StoredRow(row_id, key.encode(), **values | changes)


def sweep_all(rig: Rig) -> None:
    while rig.sweep().more:
        pass


# --- no order ---------------------------------------------------------------------------------------------------------


def test_without_an_order_a_failed_row_holds_back_nobody() -> None:
    rig = Rig(
        tried(1, "a", next_retry_at=SOON),
        tried(2, "a"),
        tried(3, "a"),
        StoredRow(4, b"a", last_error=f"{HELD_BACK} (id 1)", next_retry_at=WALL),
        StoredRow(5, b"b", "published", retry_count=1, published_at=WALL),
        StoredRow(6, b"b", published_at=WALL, last_error=f"{PARKED} (id 5)", next_retry_at=WALL),
        fresh(7, "a"),
        ordering=Ordering.NONE,
    )
    assert rig.sweep() == SweepCounts(sent=5)
    assert rig.sent == [2, 3, 4, 6, 7]


def test_without_an_order_nobody_asks_what_is_held_back() -> None:
    rig = Rig(tried(1, "a"), ordering=Ordering.NONE)
    for question in ("waiting", "held_rows", "blocking_dead", "still_pending", "behind_published"):
        setattr(rig.table, question, None)
    refill(rig.parking, rig.table.transaction, rig.table, held=rig.parking.must_be_refilled)  # type: ignore[arg-type]
    assert rig.sweep().sent == 1


def test_without_an_order_rows_that_are_refused_are_tried_again_each_for_itself() -> None:
    rig = Rig(tried(1, "a"), tried(2, "a"), publisher=FakePublisher(missing=["t"]), ordering=Ordering.NONE)
    rig.sweep()
    assert {row.retry_count for row in rig.table.rows.values()} == {2}
    assert not rig.parking


# --- behind a dead row ------------------------------------------------------------------------------------------------


def test_rows_behind_a_dead_one_wait_and_say_for_which() -> None:
    rig = Rig(tried(1), dead(2), tried(3, "a"), fresh(4, "a"), tried(5, "b"), tried(6, ""), ordering=BLOCK)
    assert rig.sweep() == SweepCounts(sent=3, held_back=2)
    assert rig.sent == [1, 5, 6]
    assert rig.table.rows[4].last_error == f"{HELD_BACK} (id 2)"
    assert rig.table.rows[3].last_error == "broken"


def test_a_row_before_the_dead_one_goes_its_way() -> None:
    rig = Rig(tried(1, "a"), dead(2), tried(3, "a"), ordering=BLOCK)
    rig.sweep()
    assert rig.sent == [1]


def test_a_row_that_dies_holds_back_those_behind_it_from_then_on() -> None:
    rig = Rig(tried(1, "a", payload=b"no JSON"), tried(2, "a"), tried(3, "b"), ordering=BLOCK)
    sweep_all(rig)
    assert rig.sent == [3]
    assert rig.statuses() == {1: "dead", 2: "pending", 3: "published"}
    assert rig.metrics.blocked_keys._value.get() == 1


def test_a_row_that_has_used_up_its_retries_holds_back_those_behind_it() -> None:
    publisher = FakePublisher(missing=["t"])
    rig = Rig(tried(1, "a", retry_count=19), tried(2, "a"), publisher=publisher, ordering=BLOCK)
    rig.sweep()
    publisher.missing.clear()
    sweep_all(rig)
    assert rig.sent == []
    assert rig.statuses() == {1: "dead", 2: "pending"}


def test_rows_that_the_consumer_has_parked_behind_a_dead_one_are_not_sent_again_and_again() -> None:
    parked = StoredRow(2, b"a", published_at=WALL, last_error=f"{PARKED} (id 1)", next_retry_at=WALL)
    rig = Rig(dead(1), parked, ordering=BLOCK)
    for _ in range(3):
        assert rig.sweep() == SweepCounts(held_back=1)
    assert rig.table.rows[2] == parked


def test_once_they_are_known_they_are_neither_locked_nor_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SCAN_ROWS", 4)
    rig = Rig(dead(1), *(tried(n, "a") for n in range(2, 20)), tried(20, "b"), ordering=BLOCK)
    sweep_all(rig)
    for _ in range(6):  # they are met page by page, and nothing of others goes by them meanwhile
        rig.sweep()
    assert rig.sent == [20]
    asked: list[Sequence[int]] = []
    lock_due = rig.table.lock_due

    def ask(connection: Any, ids: Sequence[int], due_bound: datetime) -> list[OutboxRow]:
        asked.append(ids)
        return lock_due(connection, ids, due_bound)

    rig.table.lock_due = ask  # type: ignore[method-assign]
    rig.table.rows[30] = tried(30, "c")
    assert rig.sweep() == SweepCounts(sent=1, held_back=18)
    assert asked == [[30]]


def test_rows_that_wait_for_an_operator_do_not_keep_those_of_other_keys_from_being_looked_at() -> None:
    rig = Rig(dead(1), tried(2, "a"), tried(3, "b", next_retry_at=SOON), ordering=BLOCK)
    rig.parking.hold(b"b", 3)
    rig.sweep()
    rig.table.rows[3] = replace(rig.table.rows[3], status="consumed")
    rig.sweep()
    rig.sweep()
    assert rig.parking.blocked_by(b"b", 9) is None
    assert rig.parking.blocked_by(b"a", 9) == 1


def test_under_skip_a_dead_row_is_not_even_looked_for() -> None:
    rig = Rig(dead(1), tried(2, "a"))
    rig.table.blocking_dead = None  # type: ignore[assignment,method-assign]
    rig.sweep()
    assert rig.sent == [2]


# --- what the operator decides ----------------------------------------------------------------------------------------


def test_a_requeued_row_goes_first_and_those_behind_it_when_it_is_delivered() -> None:
    rig = Rig(dead(1), tried(2, "a"), tried(3, "a"), ordering=BLOCK)
    rig.sweep()
    rig.table.requeue_dead(None, [1], WALL)
    sweep_all(rig)
    assert rig.sent == [1, 2, 3]
    assert not rig.parking
    assert rig.table.rows[1].last_error == f"{REQUEUED}why", "a consumer that starts now must know"


def test_a_requeued_row_that_fails_again_still_holds_its_key_back() -> None:
    publisher = FakePublisher(missing=["elsewhere"])
    rig = Rig(dead(1, topic="elsewhere"), tried(2, "a"), publisher=publisher, ordering=BLOCK)
    rig.sweep()
    rig.table.requeue_dead(None, [1], WALL)
    for _ in range(5):
        rig.sweep()
    assert rig.sent == []
    assert (rig.table.rows[1].status, rig.table.rows[1].retry_count) == ("pending", 1)


def test_nothing_of_its_key_goes_right_behind_a_requeued_row_since_it_may_be_refused_again() -> None:
    rig = Rig(dead(1), tried(2, "a"), publisher=FakePublisher(answers=False), ordering=BLOCK)
    rig.table.requeue_dead(None, [1], WALL)  # before the relay has come to know that it was dead

    def refuse_the_first() -> None:
        if rig.publisher.waiting:
            rig.publisher.answer(Refusal(RetryableRow("not now")) if rig.sent == [1] else None)

    rig.on_wait = refuse_the_first
    sweep_all(rig)
    assert rig.sent == [1]
    assert rig.table.rows[1].retry_count == 1


def test_a_requeued_row_that_dies_again_still_holds_its_key_back() -> None:
    rig = Rig(dead(1, payload=b"no JSON"), tried(2, "a"), ordering=BLOCK)
    rig.sweep()
    rig.table.requeue_dead(None, [1], WALL)
    for _ in range(5):
        rig.sweep()
    assert rig.sent == []
    assert rig.statuses() == {1: "dead", 2: "pending"}


@pytest.mark.parametrize("how", ["discarded", "deleted"])
def test_a_row_that_is_let_go_frees_its_key(how: str) -> None:
    rig = Rig(dead(1), tried(2, "a"), fresh(3, "a"), ordering=BLOCK)
    rig.sweep()
    if how == "discarded":
        rig.table.discard_dead(None, [1], WALL)
    else:
        del rig.table.rows[1]
    sweep_all(rig)
    assert rig.sent == [2, 3]
    assert not rig.parking
    rig.sweep()
    assert rig.metrics.blocked_keys._value.get() == 0


def test_of_several_dead_rows_each_holds_back_what_is_behind_it() -> None:
    rig = Rig(dead(1), tried(2, "a"), dead(3), tried(4, "a"), ordering=BLOCK)
    rig.sweep()
    rig.table.requeue_dead(None, [3], WALL)
    for _ in range(3):
        rig.sweep()
    assert rig.sent == []
    rig.table.discard_dead(None, [1], WALL)
    sweep_all(rig)
    assert rig.sent == [2, 3, 4]


def test_a_row_that_dies_while_the_table_is_asked_is_not_taken_for_decided_on() -> None:
    rig = Rig(tried(1, "a", next_retry_at=SOON), tried(2, "a"), ordering=BLOCK)
    rig.parking.hold(b"a", 1)
    ask = rig.table.blocking_dead

    def dies_meanwhile(connection: Any) -> list[WaitingRow]:
        found = ask(connection)
        rig.table.rows[1] = dead(1)
        rig.parking.died(b"a", 1)  # as the status writer does when it has committed
        return found

    rig.table.blocking_dead = dies_meanwhile  # type: ignore[method-assign]
    for _ in range(3):
        rig.sweep()
    assert rig.sent == []
    assert rig.parking.dead == {1}


# --- a start ----------------------------------------------------------------------------------------------------------


def test_where_dead_rows_block_a_start_learns_of_one_that_was_requeued_while_nobody_looked() -> None:
    table = FakeOutboxTable(dead(1))
    table.requeue_dead(None, [1], WALL)
    parking = SharedParking(BLOCK)
    refill(parking, table.transaction, table, held=False)  # type: ignore[arg-type]
    assert parking.blocked_by(b"a", 9) == 1


@pytest.mark.parametrize(
    ("ordering", "held", "first"),
    [
        (Ordering.NONE, True, None),
        (Ordering.SKIP_DEAD, True, 2),
        (Ordering.SKIP_DEAD, False, None),
        (BLOCK, True, 1),
        (BLOCK, False, 1),
    ],
)
def test_a_start_learns_from_the_table_what_is_held_back(ordering: Ordering, held: bool, first: int | None) -> None:
    table = FakeOutboxTable(dead(1), tried(2, "a"), dead(3, "let go", last_error="discarded: why"), dead(4, ""))
    parking = SharedParking(ordering)
    refill(parking, table.transaction, table, held=held)  # type: ignore[arg-type]
    assert parking.blocked_by(b"a", 9) == first
    assert parking.blocked_by(b"let go", 9) is None


# --- records that Kafka may refuse for their size ---------------------------------------------------------------------


def record(row_id: int, key: bytes, size: int) -> Record:
    value = b'{"outbox_id": %d, "biz_type": "b", "payload": "' % row_id
    return Record("t", key, value + b"x" * (size - len(value) - 2) + b'"}', [])


def test_the_key_of_a_record_that_may_be_too_large_is_held_until_kafka_has_it() -> None:
    parking = SharedParking(BLOCK)
    inner = FakePublisher()
    publisher = CautiousPublisher(inner, parking, safe_bytes=100)
    publisher.publish(record(1, b"a", 100), lambda *_: None)
    publisher.publish(record(2, b"b", 101), lambda *_: None)
    publisher.publish(record(3, b"", 101), lambda *_: None)
    assert (parking.blocked_by(b"a", 9), parking.blocked_by(b"b", 9)) == (None, 2)
    assert parking.waiting(10) == [2]
    assert [decode(each.value).outbox_id for each in inner.published] == [1, 2, 3]
    assert publisher.poll(0) == 3
    assert publisher.outcome(Refusal(None), record(7, b"", 80)) == (7, None)


@pytest.mark.parametrize(("safe_bytes", "quick"), [(100, False), (998_000, True)])
def test_where_even_a_short_payload_may_be_too_large_no_record_takes_the_quick_way(
    safe_bytes: int, quick: bool
) -> None:
    inner = FakePublisher()
    inner.topics.add("t")
    publisher = CautiousPublisher(inner, SharedParking(BLOCK), safe_bytes=safe_bytes)
    assert ("t" in publisher.topics) == quick
    assert publisher.produce == inner.produce
    publisher.publish(record(1, b"a", 80), lambda *_: None)
    assert publisher.in_flight == 1


def test_it_is_held_also_when_the_record_cannot_be_sent_now() -> None:
    parking = SharedParking(BLOCK)
    inner = FakePublisher()
    inner.close()
    with pytest.raises(KafkaUnavailable):
        CautiousPublisher(inner, parking, safe_bytes=100).publish(record(2, b"b", 101), lambda *_: None)
    assert parking.blocked_by(b"b", 9) == 2


def test_the_sweep_sends_nothing_right_behind_a_record_that_may_be_too_large() -> None:
    large = dead(2, payload=b'"%b"' % (b"x" * 200), retry_count=0, status="pending", next_retry_at=WALL)
    publisher = FakePublisher(max_bytes=150)
    rig = Rig(tried(1, "a", retry_count=0), large, tried(3, "a"), publisher=publisher, ordering=BLOCK, safe_bytes=100)
    sweep_all(rig)
    rig.sweep()
    assert rig.sent == [1, 2]
    assert rig.statuses() == {1: "published", 2: "dead", 3: "pending"}


# --- any order of events ----------------------------------------------------------------------------------------------


@given(st.data())
def test_whatever_fails_nothing_overtakes_a_row_of_its_key_that_is_not_let_go(data: st.DataObject) -> None:
    """Refusals, poison and operators that requeue, discard and delete, in any order; time goes by between the runs."""
    count = data.draw(st.integers(1, 8))
    keys = st.sampled_from(["a", "b", ""])
    rows = [data.draw(st.sampled_from([tried, dead]))(n, data.draw(keys)) for n in range(1, count + 1)]
    rig = Rig(*rows, publisher=FakePublisher(answers=False), batch_rows=data.draw(st.integers(1, 4)), ordering=BLOCK)
    refusals = data.draw(st.integers(0, 5))
    let_go: set[int] = set()

    def answer() -> None:
        nonlocal refusals
        if not rig.publisher.waiting:
            return
        if refusals and data.draw(st.booleans()):
            refusals -= 1
            rig.publisher.answer(Refusal(data.draw(st.sampled_from([RetryableRow("later"), PoisonRow("never")]))))
        else:
            rig.publisher.answer()

    def decide(row_id: int, how: str) -> None:
        if how == "requeued":
            rig.table.requeue_dead(None, [row_id], rig.now.replace(tzinfo=None))
            return
        let_go.add(row_id)
        if how == "discarded":
            rig.table.discard_dead(None, [row_id], WALL)
        else:
            del rig.table.rows[row_id]

    rig.on_wait = answer
    for run in range(100):
        dead_now = [row.id for row in rig.table.rows.values() if row.blocks]
        if not dead_now and not any(row.status == "pending" for row in rig.table.rows.values()):
            break
        for row_id in dead_now:
            if run > 20 or data.draw(st.booleans()):
                decide(row_id, data.draw(st.sampled_from(["requeued", "discarded", "deleted"])))
        rig.sweep()
        rig.now += timedelta(seconds=data.draw(st.sampled_from([0, 1, 40])) if run < 20 else 40)
    taken = [decode(each.value).outbox_id for each in rig.publisher.acknowledged]
    assert sorted(taken) == sorted(row.id for row in rows if row.id not in let_go)
    assert not rig.parking.dead
    for key in (b"a", b"b"):
        of_key = [n for n in taken if rows[n - 1].message_key == key]
        assert of_key == sorted(of_key)
