"""When a failed row is tried again, and what is kept of its error."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.outbox.backoff import LAST_ERROR_CHARACTERS, Backoff, NextAttempt, after_failure, cut_error
from cdc_relay.outbox.clock import due_bound, to_column

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_the_default_schedule_is_1_2_4_8_16_32_and_then_32_seconds() -> None:
    assert [Backoff().delay_s(attempt) for attempt in range(1, 10)] == [1, 2, 4, 8, 16, 32, 32, 32, 32]


@pytest.mark.parametrize(
    ("base_s", "cap_s", "schedule"),
    [(0.5, 3, [0.5, 1, 2, 3, 3]), (10, 10, [10, 10, 10, 10, 10]), (1, 1e9, [1, 2, 4, 8, 16])],
)
def test_base_and_cap_can_be_set(base_s: float, cap_s: float, schedule: list[float]) -> None:
    assert [Backoff(base_s, cap_s).delay_s(attempt) for attempt in range(1, 6)] == schedule


@pytest.mark.parametrize("attempt", [0, -1])
def test_attempts_count_from_one(attempt: int) -> None:
    with pytest.raises(ValueError, match="from 1"):
        Backoff().delay_s(attempt)


@given(
    st.floats(0.001, 1e6), st.floats(1, 1e3), st.integers(1, 2**63), st.integers(1, 2**63)
)  # BIGINT counts: any number may stand in the table
def test_delays_grow_never_shrink_and_stay_between_base_and_cap(base: float, ratio: float, one: int, two: int) -> None:
    backoff = Backoff(base, base * ratio)
    sooner, later = sorted((one, two))
    assert base <= backoff.delay_s(sooner) <= backoff.delay_s(later) <= base * ratio


def test_a_failure_is_tried_again_after_its_delay_until_max_retry_and_then_it_is_dead() -> None:
    seen = [after_failure(count, 5, NOW, Backoff()) for count in range(5)]
    assert seen == [
        NextAttempt(1, NOW + timedelta(seconds=1)),
        NextAttempt(2, NOW + timedelta(seconds=2)),
        NextAttempt(3, NOW + timedelta(seconds=4)),
        NextAttempt(4, NOW + timedelta(seconds=8)),
        NextAttempt(5, None),
    ]


@pytest.mark.parametrize("max_retry", [1, 0, -1])
def test_without_retries_the_first_failure_is_the_last(max_retry: int) -> None:
    assert after_failure(0, max_retry, NOW, Backoff()) == NextAttempt(1, None)


def test_a_count_beyond_max_retry_is_dead_and_does_not_start_anew() -> None:
    assert after_failure(30, 20, NOW, Backoff()) == NextAttempt(31, None)


@given(st.integers(0, 2**40), st.integers(-(2**40), 2**40))
def test_a_row_is_dead_exactly_when_its_attempts_reach_max_retry(count: int, max_retry: int) -> None:
    attempt = after_failure(count, max_retry, NOW, Backoff())
    assert attempt.retry_count == count + 1
    assert (attempt.at is None) == (count + 1 >= max_retry)


def test_the_wait_is_as_long_in_the_night_when_the_clocks_change() -> None:
    # Each second of both nights: the row must be due when its delay is over, not an hour later.
    berlin = ZoneInfo("Europe/Berlin")
    for change in (datetime(2026, 10, 25, 1, tzinfo=UTC), datetime(2026, 3, 29, 1, tzinfo=UTC)):
        for seconds in range(-40, 5):
            now = change + timedelta(seconds=seconds)
            attempt = after_failure(5, 20, now, Backoff()).in_zone(berlin)
            assert attempt.at is not None
            assert attempt.at.tzinfo is None
            assert attempt.at == to_column(now + timedelta(seconds=32), berlin)
            assert attempt.at <= due_bound(now + timedelta(seconds=32), berlin)


def test_a_wall_time_is_refused_since_seconds_cannot_be_added_to_it() -> None:
    with pytest.raises(ValueError, match="must be an instant"):
        after_failure(0, 20, datetime(2026, 10, 25, 2, 59, 50), Backoff())


def test_a_dead_row_has_no_next_attempt_in_any_zone() -> None:
    assert NextAttempt(5, None).in_zone(ZoneInfo("Asia/Shanghai")) == NextAttempt(5, None)


def test_a_short_reason_is_kept_as_it_is() -> None:
    reason = "汉字 😀 " * 200
    assert cut_error(reason) == reason


@pytest.mark.parametrize("character", ["x", "汉", "😀", "é"])
def test_a_long_reason_is_cut_between_characters_and_says_so(character: str) -> None:
    assert cut_error(character * LAST_ERROR_CHARACTERS) == character * LAST_ERROR_CHARACTERS
    cut = cut_error(character * (LAST_ERROR_CHARACTERS + 1))
    assert cut == character * (LAST_ERROR_CHARACTERS - 1) + "…"
    assert len(cut) == LAST_ERROR_CHARACTERS == 2000


@given(st.text(max_size=3000))  # with surrogates, which an error may quote from undecodable input
def test_whatever_the_reason_it_can_be_stored_as_utf8_within_the_limit(reason: str) -> None:
    cut = cut_error(reason)
    cut.encode()
    assert len(cut) <= LAST_ERROR_CHARACTERS
