"""Instants and the zoneless DATETIME columns, above all in the nights when the clocks change.

Berlin goes back from 03:00 to 02:00 and forward from 02:00 to 03:00, New York from 02:00 to 01:00 and from 02:00 to
03:00, Lord Howe Island by half an hour only: back from 02:00 to 01:30, forward from 02:00 to 02:30. Shanghai never.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.outbox.clock import DatabaseClock, due_bound, from_column, rfc3339, to_column, utc_now

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
SHANGHAI, LORD_HOWE = ZoneInfo("Asia/Shanghai"), ZoneInfo("Australia/Lord_Howe")
ZONES: list[tzinfo] = [UTC, BERLIN, NEW_YORK, SHANGHAI, LORD_HOWE]

#: The instant at which the clocks go back, the wall time they go back to, and the one they came from.
BACK = [
    pytest.param(BERLIN, datetime(2026, 10, 25, 1, tzinfo=UTC), "02:00", "03:00", id="Berlin"),
    pytest.param(NEW_YORK, datetime(2026, 11, 1, 6, tzinfo=UTC), "01:00", "02:00", id="New York"),
    pytest.param(LORD_HOWE, datetime(2026, 4, 4, 15, tzinfo=UTC), "01:30", "02:00", id="Lord Howe"),
]
#: The instant at which they go forward, the first wall time that is skipped, and the next that is not.
FORWARD = [
    pytest.param(BERLIN, datetime(2026, 3, 29, 1, tzinfo=UTC), "02:00", "03:00", id="Berlin"),
    pytest.param(NEW_YORK, datetime(2026, 3, 8, 7, tzinfo=UTC), "02:00", "03:00", id="New York"),
    pytest.param(LORD_HOWE, datetime(2026, 10, 3, 15, 30, tzinfo=UTC), "02:00", "02:30", id="Lord Howe"),
]

_INSTANTS = st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))
_DELAYS = st.timedeltas(timedelta(0), timedelta(hours=3))


def clock(wall: datetime) -> str:
    return f"{wall:%H:%M}"


@pytest.mark.parametrize(
    ("zone", "wall"),
    [
        (UTC, datetime(2026, 1, 2, 3, 4, 5, 678901)),
        (BERLIN, datetime(2026, 1, 2, 4, 4, 5, 678901)),
        (NEW_YORK, datetime(2026, 1, 1, 22, 4, 5, 678901)),
        (SHANGHAI, datetime(2026, 1, 2, 11, 4, 5, 678901)),
        (LORD_HOWE, datetime(2026, 1, 2, 14, 4, 5, 678901)),
    ],
)
def test_a_column_holds_the_wall_time_of_its_zone_to_the_microsecond(zone: tzinfo, wall: datetime) -> None:
    instant = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    assert to_column(instant, zone) == wall
    assert to_column(instant, zone).tzinfo is None
    assert from_column(wall, zone) == instant


@given(_INSTANTS, st.sampled_from(ZONES))
def test_an_instant_comes_back_from_its_column_or_as_the_earlier_one_of_the_repeated_hour(
    instant: datetime, zone: tzinfo
) -> None:
    back = from_column(to_column(instant, zone), zone)
    assert back == instant or timedelta(0) < instant - back <= timedelta(hours=1)
    assert to_column(back, zone) == to_column(instant, zone)


@pytest.mark.parametrize(("zone", "change", "begin", "end"), BACK)
def test_in_the_repeated_hour_a_wall_time_is_the_earlier_instant(
    zone: tzinfo, change: datetime, begin: str, end: str
) -> None:
    twice = to_column(change, zone)
    assert clock(twice) == begin
    repeated = timedelta(hours=int(end[:2]), minutes=int(end[3:])) - timedelta(hours=twice.hour, minutes=twice.minute)
    assert from_column(twice, zone) == change - repeated


@pytest.mark.parametrize(("zone", "change", "begin", "end"), BACK)
def test_a_row_stamped_before_the_clocks_go_back_is_due_after_it(
    zone: tzinfo, change: datetime, begin: str, end: str
) -> None:
    stamped = to_column(change - timedelta(seconds=1), zone)  # the last second of the first pass
    now = change + timedelta(seconds=1)
    assert stamped > to_column(now, zone), "or this test shows nothing"
    assert stamped <= due_bound(now, zone)


@pytest.mark.parametrize(("zone", "change", "begin", "end"), BACK)
def test_in_the_repeated_hour_everything_to_its_end_is_due_and_nothing_beyond(
    zone: tzinfo, change: datetime, begin: str, end: str
) -> None:
    first_pass = from_column(to_column(change, zone), zone)
    second_pass_end = change + (change - first_pass)
    for instant in (
        first_pass,
        change - timedelta(microseconds=1),
        change,
        second_pass_end - timedelta(microseconds=1),
    ):
        bound = due_bound(instant, zone)
        assert clock(bound) == end
        assert (bound.second, bound.microsecond) == (0, 0)
    for instant in (first_pass - timedelta(microseconds=1), second_pass_end):
        assert due_bound(instant, zone) == to_column(instant, zone)


@pytest.mark.parametrize(("zone", "change", "begin", "end"), FORWARD)
def test_when_the_clocks_go_forward_the_wall_clock_is_the_bound(
    zone: tzinfo, change: datetime, begin: str, end: str
) -> None:
    before, after = change - timedelta(microseconds=1), change
    assert clock(to_column(before, zone)) < begin
    assert clock(to_column(after, zone)) == end
    for instant in (before, after, change + timedelta(minutes=59)):
        assert due_bound(instant, zone) == to_column(instant, zone)


@pytest.mark.parametrize(("zone", "change", "begin", "end"), FORWARD)
def test_a_wall_time_that_is_skipped_is_still_an_instant_and_due_once_it_is_past(
    zone: tzinfo, change: datetime, begin: str, end: str
) -> None:
    # An application that adds 30 s to its local time writes one of these.
    skipped = to_column(change, zone).replace(hour=int(begin[:2]), minute=int(begin[3:]), second=30)
    assert abs(from_column(skipped, zone) - change) <= timedelta(hours=1)
    assert skipped <= due_bound(change, zone)


@given(_INSTANTS, _DELAYS, st.sampled_from(ZONES))
def test_a_row_is_never_due_late_whatever_the_clocks_do(stamped: datetime, delay: timedelta, zone: tzinfo) -> None:
    assert to_column(stamped, zone) <= due_bound(stamped, zone)
    assert to_column(stamped, zone) <= due_bound(stamped + delay, zone)


@pytest.mark.parametrize(("zone", "change", "begin", "end"), BACK)
@given(minutes=st.integers(-180, 180), delay=st.integers(0, 180))
def test_a_row_is_never_due_late_around_the_change(
    zone: tzinfo, change: datetime, begin: str, end: str, minutes: int, delay: int
) -> None:
    stamped = change + timedelta(minutes=minutes)
    assert to_column(stamped, zone) <= due_bound(stamped + timedelta(minutes=delay), zone)


@given(_INSTANTS, _DELAYS.filter(bool), st.sampled_from(ZONES))
def test_a_row_is_due_early_by_no_more_than_the_repeated_hour(now: datetime, ahead: timedelta, zone: tzinfo) -> None:
    if to_column(now + ahead, zone) <= due_bound(now, zone):
        assert ahead <= timedelta(hours=2)
        assert due_bound(now, zone) != to_column(now, zone) or to_column(now + ahead, zone) <= to_column(now, zone)


@pytest.mark.parametrize("zone", [UTC, SHANGHAI])
@given(instant=_INSTANTS)
def test_where_clocks_never_change_the_bound_is_the_wall_clock(zone: tzinfo, instant: datetime) -> None:
    assert due_bound(instant, zone) == to_column(instant, zone)


@pytest.mark.parametrize(
    ("wall", "zone", "text"),
    [
        (datetime(2026, 1, 2, 3, 4, 5), UTC, b"2026-01-02T03:04:05+00:00"),
        (datetime(2026, 1, 2, 3, 4, 5, 678000), SHANGHAI, b"2026-01-02T03:04:05.678000+08:00"),
        (datetime(2026, 7, 2, 3, 4, 5), BERLIN, b"2026-07-02T03:04:05+02:00"),
        (datetime(2026, 10, 25, 2, 30), BERLIN, b"2026-10-25T02:30:00+02:00"),
        (datetime(2026, 1, 2, 3, 4, 5), LORD_HOWE, b"2026-01-02T03:04:05+11:00"),
        (datetime(2026, 7, 2, 3, 4, 5), LORD_HOWE, b"2026-07-02T03:04:05+10:30"),
    ],
)
def test_rfc3339_has_the_offset_of_the_day_and_not_of_another_zone_that_was_cached(
    wall: datetime, zone: tzinfo, text: bytes
) -> None:
    rfc3339(wall, ZoneInfo("Asia/Kathmandu"))
    assert rfc3339(wall, zone) == text
    assert datetime.fromisoformat(text.decode()) == from_column(wall, zone)


def test_now_is_an_instant_in_utc() -> None:
    assert utc_now().utcoffset() == timedelta(0)


def test_the_database_clock_is_ours_plus_the_difference_that_was_measured() -> None:
    clock = DatabaseClock()
    assert abs(clock() - utc_now()) < timedelta(minutes=1)
    clock.set(lambda: utc_now() + timedelta(minutes=10))
    assert timedelta(minutes=9) < clock() - utc_now() < timedelta(minutes=11)
