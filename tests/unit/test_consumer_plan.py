"""What becomes of each record of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc_relay.errors import PoisonRow, RetryableRow, RowError
from cdc_relay.outbox.backoff import NextAttempt
from cdc_relay.outbox.parking import Ordering, Parking
from cdc_relay.outbox.row import LockedRow
from consumer.delivery import Delivery
from consumer.plan import Outcome, Plan, make_plan
from tests.consumer_fakes import T0, record

SOON = T0 + timedelta(seconds=1)
RETRY = T0 + timedelta(seconds=4)
LATER = T0 + timedelta(seconds=30)
STATUSES = st.sampled_from(["published", "pending", "consumed", "dead", "scheduled"])


def row(
    row_id: int,
    key: bytes = b"k",
    status: str = "published",
    *,
    published_at: datetime | None = T0,
    next_retry_at: datetime | None = None,
    retry_count: int = 0,
) -> LockedRow:
    return LockedRow(row_id, key, status, retry_count, 20, next_retry_at, published_at, T0)


def scheduled(row_id: int, key: bytes = b"k", at: datetime = LATER) -> LockedRow:
    return row(row_id, key, "pending", next_retry_at=at, retry_count=1)


def plan(
    arrivals: Sequence[int],
    rows: Sequence[LockedRow],
    *,
    parking: Parking | None = None,
    still_open: Mapping[int, datetime | None] | None = None,
    refused: Mapping[int, RowError] | None = None,
    dies: bool = False,
) -> Plan:
    return make_plan(
        [Delivery(record(i), i, "note", "hello") for i in arrivals],
        {each.id: each for each in rows},
        Parking() if parking is None else parking,
        still_open or {},
        refused or {},
        next_attempt=lambda failed: NextAttempt(failed.retry_count + 1, None if dies else RETRY),
        soon=SOON,
    )


def holding(*waiting: tuple[bytes, int], ordering: Ordering = Ordering.SKIP_DEAD) -> Parking:
    parking = Parking(ordering)
    for key, row_id in waiting:
        parking.hold(key, row_id)
    return parking


def applied(made: Plan) -> list[int]:
    return [event.row.id for events in made.events.values() for event in events]


def parked(made: Plan) -> dict[int, tuple[int, datetime]]:
    return {each.id: behind for behind, rows in made.parked.items() for each in rows}


def test_rows_whose_effect_is_to_come_are_applied_in_the_order_they_came() -> None:
    made = plan([2, 1, 3], [row(1), row(2, b"j"), row(3, status="pending", published_at=None)])
    assert applied(made) == [2, 1, 3]


@pytest.mark.parametrize("status", ["consumed", "dead", "cancelled by hand"])
def test_a_finished_row_is_left_alone_and_holds_nothing_back(status: str) -> None:
    parking = holding((b"k", 1))
    made = plan([1, 2], [row(1, status=status), row(2)], parking=parking)
    made.update(parking)
    assert (applied(made), [each.id for each in made.finished]) == ([2], [1])
    assert len(parking) == 0


def test_a_record_that_comes_twice_in_a_batch_counts_once() -> None:
    made = plan([1, 1, 1], [row(1)])
    assert (applied(made), made.repeated) == ([1], 2)


def test_a_record_without_a_row_is_missing() -> None:
    made = plan([1, 2], [row(2)])
    assert [delivery.outbox_id for delivery in made.missing] == [1]
    assert applied(made) == [2]


def test_a_late_copy_of_a_scheduled_row_changes_nothing_and_holds_later_ones_back() -> None:
    parking = Parking()
    made = plan([1, 2, 3], [scheduled(1), row(2), row(3, b"other")], parking=parking)
    assert [each.id for each in made.waiting] == [1]
    assert parked(made) == {2: (1, LATER)}
    assert applied(made) == [3]
    made.update(parking)
    assert list(parking.ahead_of(b"k", 9)) == [1, 2]


def test_a_row_that_is_on_its_way_again_is_no_late_copy() -> None:
    leased = row(1, status="pending", published_at=None, next_retry_at=LATER, retry_count=1)
    assert applied(plan([1], [leased])) == [1]


def test_rows_behind_a_failure_are_parked_until_its_next_attempt() -> None:
    parking = Parking()
    made = plan([1, 2, 3, 4], [row(1), row(2), row(3, b"other"), row(4)], refused={1: RetryableRow("no chat")})
    assert [(failure.row.id, failure.attempt.at, failure.reason) for failure in made.failures] == [
        (1, RETRY, "no chat")
    ]
    assert parked(made) == {2: (1, RETRY), 4: (1, RETRY)}
    assert applied(made) == [3]
    made.update(parking)
    assert list(parking.ahead_of(b"k", 9)) == [1, 2, 4]


def test_a_refused_row_behind_a_failure_is_parked_and_not_counted_as_failed() -> None:
    refused = {1: RetryableRow("no chat"), 2: RetryableRow("no chat")}
    made = plan([1, 2], [row(1), row(2)], refused=refused)
    assert [failure.row.id for failure in made.failures] == [1]
    assert parked(made) == {2: (1, RETRY)}


def test_rows_without_a_key_fail_each_for_itself() -> None:
    refused = {1: RetryableRow("no"), 2: RetryableRow("no")}
    made = plan([1, 2, 3], [row(1, b""), row(2, b""), row(3, b"")], refused=refused)
    assert [failure.row.id for failure in made.failures] == [1, 2]
    assert applied(made) == [3]


def test_a_dead_row_holds_nothing_back() -> None:
    parking = holding((b"k", 1))
    made = plan([1, 2], [row(1), row(2)], parking=parking, refused={1: RetryableRow("no chat")}, dies=True)
    assert [failure.attempt.at for failure in made.failures] == [None]
    assert applied(made) == [2]
    made.update(parking)
    assert len(parking) == 0


def test_a_poison_row_is_dead_at_once_even_behind_a_waiting_one() -> None:
    made = plan([2], [row(2)], parking=holding((b"k", 1)), still_open={1: LATER}, refused={2: PoisonRow("bad")})
    assert [(failure.row.id, failure.attempt) for failure in made.failures] == [(2, NextAttempt(1, None))]


def test_a_row_waits_as_long_as_the_one_that_blocks_it() -> None:
    made = plan([5], [row(5)], parking=holding((b"k", 3)), still_open={3: LATER})
    assert parked(made) == {5: (3, LATER)}


def test_a_row_behind_one_that_is_on_its_way_is_tried_again_soon() -> None:
    made = plan([5], [row(5)], parking=holding((b"k", 3)), still_open={3: None})
    assert parked(made) == {5: (3, SOON)}


def test_remembered_ids_that_are_open_no_more_do_not_block() -> None:
    assert applied(plan([5], [row(5)], parking=holding((b"k", 3)))) == [5]


def test_when_the_waiting_row_arrives_its_followers_go_on_behind_it() -> None:
    parking = holding((b"k", 3), (b"k", 5))
    made = plan([3, 5], [row(3, retry_count=1), row(5)], parking=parking)
    assert applied(made) == [3, 5]
    made.update(parking)
    assert len(parking) == 0


def test_a_later_row_that_arrives_before_the_waiting_one_is_parked() -> None:
    made = plan([5, 3], [row(3, retry_count=1), row(5)], parking=holding((b"k", 3)))
    assert applied(made) == [3]
    assert parked(made) == {5: (3, SOON)}


def test_a_later_row_does_not_wait_for_one_that_turns_out_finished() -> None:
    assert applied(plan([5, 3], [row(3, status="consumed"), row(5)], parking=holding((b"k", 3)))) == [5]


# --- dead rows that hold back their keys, and no order at all ---------------------------------------------------------

BLOCK = Ordering.BLOCK_ON_DEAD


@pytest.mark.parametrize("error", [RetryableRow("no chat"), PoisonRow("bad")])
def test_rows_behind_one_that_dies_wait_for_an_operator_where_dead_rows_block(error: RowError) -> None:
    parking = holding(ordering=BLOCK)
    made = plan([1, 2, 3], [row(1), row(2), row(3, b"other")], parking=parking, refused={1: error}, dies=True)
    assert [failure.attempt.at for failure in made.failures] == [None]
    assert parked(made) == {2: (1, SOON)}
    assert applied(made) == [3]
    made.update(parking)
    assert list(parking.ahead_of(b"k", 9)) == [1, 2]


def test_a_row_behind_a_dead_one_waits_until_the_table_says_that_it_was_let_go() -> None:
    parking = holding((b"k", 3), ordering=BLOCK)
    assert parked(plan([5], [row(5)], parking=parking, still_open={3: None})) == {5: (3, SOON)}
    assert applied(plan([5], [row(5)], parking=parking)) == [5]


def test_a_late_copy_of_a_dead_row_blocks_as_long_as_the_table_says_so() -> None:
    parking = holding(ordering=BLOCK)
    made = plan([1, 2], [row(1, status="dead"), row(2)], parking=parking, still_open={1: None})
    assert ([each.id for each in made.blocking], parked(made)) == ([1], {2: (1, SOON)})
    assert made.counts()[Outcome.DUPLICATE] == 1
    made.update(parking)
    assert list(parking.ahead_of(b"k", 9)) == [1, 2]
    made = plan([1, 2], [row(1, status="dead"), row(2)], parking=parking)
    assert ([each.id for each in made.finished], applied(made)) == ([1], [2])
    made.update(parking)
    assert len(parking) == 0


def test_a_remembered_dead_row_that_comes_behind_a_later_one_still_blocks_it() -> None:
    parking = holding((b"k", 1), ordering=BLOCK)
    made = plan([2, 1], [row(1, status="dead"), row(2)], parking=parking, still_open={1: None})
    assert parked(made) == {2: (1, SOON)}


def test_a_requeued_row_goes_and_those_behind_it_follow() -> None:
    parking = holding((b"k", 1), (b"k", 2), ordering=BLOCK)
    made = plan([1, 2], [row(1), row(2)], parking=parking)
    made.update(parking)
    assert (applied(made), len(parking)) == ([1, 2], 0)


def test_without_an_order_each_row_is_for_itself() -> None:
    parking = holding((b"k", 1), ordering=Ordering.NONE)
    rows = [row(2), scheduled(3), row(4), row(5)]
    made = plan([2, 3, 4, 5], rows, parking=parking, refused={2: RetryableRow("no chat"), 4: PoisonRow("bad")})
    assert [failure.row.id for failure in made.failures] == [2, 4]
    assert applied(made) == [5]
    made.update(parking)
    assert len(parking) == 0


@settings(max_examples=400)
@given(
    arrivals=st.lists(st.integers(1, 12), max_size=30),
    statuses=st.lists(STATUSES, min_size=12, max_size=12),
    keys=st.lists(st.sampled_from([b"a", b"b", b""]), min_size=12, max_size=12),
    waiting=st.sets(st.integers(1, 12)),
    refused=st.dictionaries(st.integers(1, 12), st.sampled_from([RetryableRow("r"), PoisonRow("p")])),
)
def test_every_record_has_one_outcome_and_no_key_is_overtaken(
    arrivals: list[int],
    statuses: list[str],
    keys: list[bytes],
    waiting: set[int],
    refused: dict[int, RowError],
) -> None:
    table = {
        i: scheduled(i, key) if status == "scheduled" else row(i, key, status)
        for i, status, key in zip(range(1, 13), statuses, keys, strict=True)
    }
    there = {i: table[i] for i in set(arrivals) if i != 12}  # id 12 is missing
    parking = holding(*((keys[i - 1], i) for i in waiting))
    still_open = {i: LATER for i in waiting - there.keys() if table[i].is_open}
    made = plan(arrivals, list(there.values()), parking=parking, still_open=still_open, refused=refused)

    assert sum(made.counts().values()) + len(made.missing) == len(arrivals)
    went = applied(made)
    for row_id in went:
        assert table[row_id].is_open
        assert not table[row_id].is_scheduled
        before = waiting | set(arrivals[: arrivals.index(row_id)])  # an id that comes later has not been overtaken
        key = table[row_id].message_key
        ahead = [i for i in before - {12} if i < row_id and table[i].message_key == key and table[i].is_open]
        poisoned = [failure.row.id for failure in made.failures if failure.attempt.at is None]
        assert not key or set(ahead) <= {*went, *poisoned}


def test_counts_name_every_outcome() -> None:
    rows = [row(1), row(2, b"b"), row(3, b"b"), row(4, b"c", "consumed"), row(5, b"d")]
    made = plan([1, 1, 2, 3, 4, 5, 9], rows, refused={2: RetryableRow("r"), 5: PoisonRow("p")})
    assert made.counts() == {
        Outcome.CONSUMED: 1,
        Outcome.DUPLICATE: 2,
        Outcome.FAILED: 1,
        Outcome.PARKED: 1,
        Outcome.DEAD: 1,
    }
