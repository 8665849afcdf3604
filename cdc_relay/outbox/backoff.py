"""When a failed row is tried again: a pure function of the attempts so far."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from cdc_relay.outbox.clock import to_column

LAST_ERROR_CHARACTERS = 2_000
"""What ``last_error`` holds at most."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """1, 2, 4, 8, 16, 32, 32 … seconds with the defaults."""

    base_s: float = 1.0
    cap_s: float = 32.0

    def delay_s(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number ``attempt`` (from 1)."""
        if attempt < 1:
            raise ValueError(f"attempts count from 1, not {attempt}")
        # The exponent is bounded first: 2.0 ** 1100 overflows, and a requeued row may have any count.
        return float(min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 60)))


@dataclass(frozen=True, slots=True)
class NextAttempt:
    """What a failure makes of a row: ``at`` is the next attempt, or None for ``dead``."""

    retry_count: int
    at: datetime | None

    def in_zone(self, zone: tzinfo) -> NextAttempt:
        """The same with the wall time that the ``next_retry_at`` column holds."""
        return self if self.at is None else NextAttempt(self.retry_count, to_column(self.at, zone))


def after_failure(retry_count: int, max_retry: int, now: datetime, backoff: Backoff) -> NextAttempt:
    """The row has failed once more, having failed ``retry_count`` times before; at ``max_retry`` it is dead.

    ``now`` and the next attempt are instants: seconds added to a wall time come out an hour late in the night when the
    clocks go back. ``in_zone`` then gives what the column holds.
    """
    if now.tzinfo is None:
        raise ValueError(f"now must be an instant, not a wall time ({now})")
    attempts = retry_count + 1
    if attempts >= max_retry:
        return NextAttempt(attempts, None)
    return NextAttempt(attempts, now + timedelta(seconds=backoff.delay_s(attempts)))


def cut_error(reason: str) -> str:
    """``reason`` as ``last_error`` takes it: at most 2,000 characters, cut between characters."""
    # Lone surrogates (from undecodable input that an error quotes) cannot be stored as UTF-8.
    clean = reason.encode("utf-8", "replace").decode()
    return clean if len(clean) <= LAST_ERROR_CHARACTERS else clean[: LAST_ERROR_CHARACTERS - 1] + "…"
