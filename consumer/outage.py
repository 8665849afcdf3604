"""An outage is not a failure (P6): what needs MySQL or Kafka is tried again, in place, until it goes well."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_when_event_set, wait_random_exponential

from cdc_relay.errors import DatabaseError, RelayError
from cdc_relay.logs import get_logger
from consumer.worker import RideOut, Wait

#: Seconds: a deadlock is over at once, and the end of no outage is noticed later than the longest wait.
SHORTEST_WAIT_S = 0.02
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 10.0

log = get_logger(__name__)


def ride_out_with(stop: threading.Event, on_outage: Callable[[RelayError], None]) -> RideOut:
    """A ``RideOut`` that gives up when ``stop`` is set and reports each failed attempt to ``on_outage``."""

    def before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        assert isinstance(error, RelayError)
        on_outage(error)
        log.warning(
            f"{error}; the batch stays in hand and is tried again",
            action="database_wait" if isinstance(error, DatabaseError) else "kafka_wait",
            attempt=state.attempt_number,
            wait_s=round(state.upcoming_sleep, 3),
        )

    def ride_out(action: Callable[[], None], wait: Wait) -> None:
        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, RelayError) and error.retriable),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S, min=SHORTEST_WAIT_S),
            stop=stop_when_event_set(stop),
            sleep=wait,
            before_sleep=before_sleep,
            reraise=True,
        )
        retrying(action)

    return ride_out
