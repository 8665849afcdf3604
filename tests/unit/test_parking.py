from __future__ import annotations

import threading
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.errors import PoisonRow, RetryableRow
from cdc_relay.outbox.parking import Ordering
from cdc_relay.parking import SharedParking

KEYS = [b"a", b"b", b""]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("hold"), st.sampled_from(KEYS), st.integers(1, 12)),
            st.tuples(st.just("release"), st.just(b""), st.integers(1, 12)),
        ),
        max_size=60,
    )
)
def test_a_row_is_blocked_by_the_lowest_waiting_id_of_its_key(steps: list[tuple[str, bytes, int]]) -> None:
    parking = SharedParking()
    key_of = {row_id: KEYS[row_id % 3] for row_id in range(13)}  # a row has one key all its life
    waiting: defaultdict[bytes, set[int]] = defaultdict(set)
    for step, _, row_id in steps:
        key = key_of[row_id]
        if step == "hold":
            parking.hold(key, row_id)
            if key:
                waiting[key].add(row_id)
        else:
            parking.release([row_id, 999])
            waiting[key].discard(row_id)
    held = sorted(row_id for ids in waiting.values() for row_id in ids)
    assert bool(parking) == bool(held)
    assert parking.waiting(100) == held
    assert parking.waiting(2) == held[:2]
    assert parking.keys == sum(bool(ids) for ids in waiting.values())
    for key in KEYS:
        for row_id in range(14):
            lower = [other for other in waiting[key] if other < row_id]
            assert parking.blocked_by(key, row_id) == (min(lower) if lower else None)


def test_rows_without_a_key_wait_for_nobody() -> None:
    parking = SharedParking()
    parking.hold(b"", 1)
    assert not parking
    assert parking.blocked_by(b"", 2) is None


def test_the_row_that_waits_does_not_block_itself() -> None:
    parking = SharedParking()
    parking.hold(b"k", 5)
    assert parking.blocked_by(b"k", 5) is None
    assert parking.blocked_by(b"k", 4) is None
    assert parking.blocked_by(b"k", 6) == 5


def test_holding_twice_needs_one_release() -> None:
    parking = SharedParking()
    parking.hold(b"k", 5)
    parking.hold(b"k", 5)
    parking.release([5])
    assert not parking
    assert parking.blocked_by(b"k", 6) is None


def test_threads_may_hold_and_release_at_the_same_time() -> None:
    parking = SharedParking()

    def work(part: int) -> None:
        for n in range(2000):
            row_id = n * 4 + part
            parking.hold(b"key%d" % (n % 7), row_id)
            parking.blocked_by(b"key%d" % (n % 7), row_id)
            if part % 2:
                parking.release([row_id])

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert parking.waiting(10**6) == sorted(n * 4 + part for n in range(2000) for part in (0, 2))
    parking.release(parking.waiting(10**6))
    assert not parking
    assert parking.keys == 0


# --- what holds back, by the settings ---------------------------------------------------------------------------------


def test_without_an_order_nothing_is_held_back_and_a_restart_with_one_must_look() -> None:
    parking = SharedParking(Ordering.NONE)
    parking.hold(b"k", 1)
    parking.refused(b"k", 2, RetryableRow("later"))
    parking.died(b"k", 3)
    assert not parking
    assert parking.blocked_by(b"k", 9) is None
    assert parking.must_be_refilled
    assert not SharedParking().must_be_refilled


def test_a_dead_row_frees_its_key_or_blocks_it() -> None:
    for ordering, blocked_by in ((Ordering.SKIP_DEAD, None), (Ordering.BLOCK_ON_DEAD, 5)):
        parking = SharedParking(ordering)
        parking.hold(b"k", 5)
        parking.died(b"k", 5)
        assert parking.blocked_by(b"k", 6) == blocked_by
        assert parking.blocked_keys == (blocked_by is not None)


def test_a_row_that_cannot_be_sent_holds_back_what_will_wait_for_it() -> None:
    for ordering, reason, blocked_by in (
        (Ordering.SKIP_DEAD, RetryableRow("later"), 5),
        (Ordering.SKIP_DEAD, PoisonRow("never"), None),
        (Ordering.BLOCK_ON_DEAD, RetryableRow("later"), 5),
        (Ordering.BLOCK_ON_DEAD, PoisonRow("never"), 5),
    ):
        parking = SharedParking(ordering)
        parking.refused(b"k", 5, reason)
        assert parking.blocked_by(b"k", 6) == blocked_by


def test_a_dead_row_without_a_key_holds_back_nothing() -> None:
    parking = SharedParking(Ordering.BLOCK_ON_DEAD)
    parking.died(b"", 5)
    assert not parking
    assert (parking.dead, parking.blocked_keys) == (frozenset(), 0)


def test_rows_that_wait_for_an_operator_are_not_among_those_that_wait_for_something_to_happen() -> None:
    parking = SharedParking(Ordering.BLOCK_ON_DEAD)
    for row_id in (6, 7):
        parking.hold(b"blocked", row_id)
    parking.died(b"blocked", 5)
    parking.hold(b"partly", 1)
    parking.died(b"partly", 2)
    parking.hold(b"free", 3)
    assert parking.waiting(10) == [1, 3]
    assert (parking.dead, parking.blocked_keys, parking.keys) == (frozenset({2, 5}), 2, 3)
    parking.revived([5])
    assert parking.waiting(10) == [1, 3, 5, 6, 7]
    assert parking.blocked_by(b"blocked", 8) == 5, "it holds them back until it is delivered"
    parking.release([5, 2])
    assert (parking.dead, parking.waiting(10)) == (frozenset(), [1, 3, 6, 7])


def test_stuck_is_what_waits_behind_a_row_that_is_not_among_those_asked_about() -> None:
    parking = SharedParking()
    for row_id in (1, 2, 3):
        parking.hold(b"a", row_id)
    for row_id in (11, 12):
        parking.hold(b"b", row_id)
    assert parking.stuck([2, 3, 11, 12, 99]) == {2, 3}
    assert parking.stuck([1, 2, 3]) == set()
    assert SharedParking().stuck([1, 2]) == set()
