"""Which keys are held back: Parking against the plainest model of itself."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.outbox.parking import Ordering, Parking

KEYS = st.sampled_from([b"a", b"b", "钥匙".encode()])
IDS = st.integers(min_value=1, max_value=30) | st.integers(min_value=2**62, max_value=2**63 - 1)


@pytest.fixture
def parking() -> Parking:
    return Parking()


def test_nothing_blocks_at_first(parking: Parking) -> None:
    assert parking.blocked_by(b"k", 7) is None
    assert (len(parking), parking.keys) == (0, 0)


def test_a_waiting_row_blocks_later_rows_of_its_key_only(parking: Parking) -> None:
    parking.hold(b"k", 5)
    assert parking.blocked_by(b"k", 6) == 5
    assert parking.blocked_by(b"k", 5) is None
    assert parking.blocked_by(b"k", 4) is None
    assert parking.blocked_by(b"other", 6) is None


def test_the_lowest_waiting_row_is_the_one_that_blocks(parking: Parking) -> None:
    for row_id in (9, 5, 7):
        parking.hold(b"k", row_id)
    assert parking.blocked_by(b"k", 100) == 5
    assert list(parking.ahead_of(b"k", 9)) == [5, 7]
    parking.release(b"k", 5)
    assert parking.blocked_by(b"k", 100) == 7


def test_holding_twice_needs_one_release(parking: Parking) -> None:
    parking.hold(b"k", 5)
    parking.hold(b"k", 5)
    assert len(parking) == 1
    parking.release(b"k", 5)
    assert parking.blocked_by(b"k", 6) is None
    assert parking.keys == 0


def test_releasing_what_does_not_wait_is_no_error(parking: Parking) -> None:
    parking.release(b"k", 5)
    parking.hold(b"k", 5)
    parking.release(b"k", 4)
    parking.release(b"other", 5)
    assert len(parking) == 1


def test_an_empty_key_asks_for_no_order(parking: Parking) -> None:
    parking.hold(b"", 5)
    assert parking.blocked_by(b"", 6) is None
    assert len(parking) == 0


def test_without_an_order_nothing_is_held_back() -> None:
    parking = Parking(Ordering.NONE)
    parking.hold(b"k", 5)
    parking.died(b"k", 6)
    assert parking.blocked_by(b"k", 7) is None
    assert len(parking) == 0


@pytest.mark.parametrize(("ordering", "blocked_by"), [(Ordering.SKIP_DEAD, None), (Ordering.BLOCK_ON_DEAD, 5)])
def test_a_dead_row_frees_its_key_or_blocks_it(ordering: Ordering, blocked_by: int | None) -> None:
    parking = Parking(ordering)
    parking.hold(b"k", 5)
    parking.died(b"k", 5)
    assert parking.blocked_by(b"k", 6) == blocked_by


def test_the_ids_that_wait_are_told_without_the_keys_whose_first_one_is_left_out(parking: Parking) -> None:
    for key, row_id in ((b"a", 5), (b"a", 6), (b"b", 4), (b"b", 7)):
        parking.hold(key, row_id)
    assert sorted(parking.ids()) == [4, 5, 6, 7]
    assert sorted(parking.ids(but_behind={5, 7})) == [4, 7]


def test_cleared_is_as_new(parking: Parking) -> None:
    parking.hold(b"k", 5)
    parking.clear()
    assert parking.blocked_by(b"k", 6) is None
    assert (len(parking), parking.keys) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from(["hold", "release"]), KEYS, IDS)), KEYS, IDS)
def test_it_says_what_a_dict_of_sets_says(steps: list[tuple[str, bytes, int]], key: bytes, row_id: int) -> None:
    parking = Parking()
    model: dict[bytes, set[int]] = defaultdict(set)
    for step, at, waiting in steps:
        if step == "hold":
            parking.hold(at, waiting)
            model[at].add(waiting)
        else:
            parking.release(at, waiting)
            model[at].discard(waiting)
    ahead = sorted(waiting for waiting in model[key] if waiting < row_id)
    assert list(parking.ahead_of(key, row_id)) == ahead
    assert parking.blocked_by(key, row_id) == (ahead[0] if ahead else None)
    assert len(parking) == sum(map(len, model.values()))
    assert parking.keys == sum(1 for ids in model.values() if ids)
