"""Between instants and the zoneless DATETIME columns of the application.

``database.timezone`` says in which zone the application writes. All functions are pure: the instant is an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

Clock = Callable[[], datetime]
"""Tells what time it is, as an instant."""


def to_column(instant: datetime, zone: tzinfo) -> datetime:
    """``instant`` (aware) as the naive wall time that the columns hold."""
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def from_column(wall: datetime, zone: tzinfo) -> datetime:
    """The instant, in UTC, of a column's naive wall time.

    In the hour that a DST change repeats a wall time names two instants; the earlier one is taken.
    """
    # In UTC, since Python finds a time of the repeated hour equal to none of another zone (PEP 495), and subtracts
    # times of one zone by the wall clock.
    return wall.replace(tzinfo=zone).astimezone(UTC)


def due_bound(instant: datetime, zone: tzinfo) -> datetime:
    """The latest wall time that counts as due at ``instant``.

    Usually the wall clock itself. In the hour that a DST change repeats it is the end of that hour: a row stamped
    before the change would otherwise look up to an hour in the future. It may then be tried early, never late.
    """
    wall = to_column(instant, zone)
    later = wall.replace(tzinfo=zone, fold=1).utcoffset()
    earlier = wall.replace(tzinfo=zone, fold=0).utcoffset()
    assert earlier is not None
    assert later is not None
    if earlier <= later:  # not ambiguous (equal), or a wall time that the spring change skips
        return wall
    # Walk to the end of the repeated hour: the first wall minute that is no longer ambiguous.
    end = wall.replace(second=0, microsecond=0)
    while end.replace(tzinfo=zone, fold=0).utcoffset() != end.replace(tzinfo=zone, fold=1).utcoffset():
        end += timedelta(minutes=1)
    return end


def utc_now() -> datetime:
    """The one place that reads this machine's clock for row times."""
    return datetime.now(UTC)


@lru_cache(maxsize=8192)
def rfc3339(wall: datetime, zone: tzinfo) -> bytes:
    """A column's wall time as RFC 3339 with offset, for the ``created_at`` header; cached, since rows share times."""
    return wall.replace(tzinfo=zone).isoformat().encode()


class DatabaseClock:
    """The database's clock: ours, corrected by the difference that was measured last.

    Relay and consumers may run on machines whose clocks disagree; they agree on the times in the table by this.
    """

    def __init__(self) -> None:
        self._ahead = timedelta(0)

    def __call__(self) -> datetime:
        """Now, as an instant."""
        return utc_now() + self._ahead

    def set(self, ask: Clock) -> None:
        """``ask`` asks the database. It counts as answered in the middle between question and answer."""
        asked_at = utc_now()
        database_now = ask()
        self._ahead = database_now - (asked_at + (utc_now() - asked_at) / 2)
