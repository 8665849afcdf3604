from __future__ import annotations

import threading
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

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
