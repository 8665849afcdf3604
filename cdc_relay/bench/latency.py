"""Latency: from the moment at which the application knows of its commit to the record's arrival at a consumer.

Writers and consumer are in different processes. The commit is earlier than the application's knowledge of it, and the
record may be faster than the answer to the commit: what is below zero is counted as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Thread
from typing import Protocol

from cdc_relay.bench.arrivals import arrivals
from cdc_relay.bench.figures import metric, nearest_rank
from cdc_relay.bench.place import KEYS, SMALLEST_PAYLOAD, ThrowawayOutbox, ThrowawayTopic
from cdc_relay.bench.relay import MeasurementFailed, RelayProcess, Variant, checkpoint_at
from cdc_relay.errors import RelayError
from cdc_relay.outbox.database import make_engine, translated
from cdc_relay.outbox.table import DEFAULT_TABLE

#: Left out at the beginning: the first records wait for connections to be made.
WARM_UP_S = 2.0
_SETTLE_S = 1.5
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Latency:
    """What one run showed."""

    p50_ms: float = metric("p50", "ms")
    p99_ms: float = metric("p99", "ms")
    highest_ms: float = metric("highest", "ms")
    reached_per_s: float = metric("rate that the writers reached", "rows/s")
    """Below the wanted one where commits take long: then more writers are needed."""


@dataclass(frozen=True)
class Load:
    """What the writers do: commit rows at an even pace, one a transaction."""

    rate: float
    """Rows a second, of all writers together."""
    seconds: float
    """How long, behind the warm-up."""
    writers: int = 1
    payload_bytes: int = 600
    warm_up_s: float = WARM_UP_S


class Program(Protocol):
    """What sends the rows; it is running already."""

    def require_alive(self) -> None:
        """Raise MeasurementFailed with what it said when it has ended."""

    def stop(self) -> None:
        """End it in good order."""

    def close(self) -> None:
        """End it at once and remove what it has left."""


def measure(
    outbox: ThrowawayOutbox,
    topic: ThrowawayTopic,
    variant: Variant,
    load: Load,
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> Latency:
    """The relay under ``load``; see ``measure_program``."""

    def start() -> RelayProcess:
        binlog = outbox.binlog()
        relay = RelayProcess(variant, outbox.settings)
        try:
            relay.start(checkpoint_at(binlog.server, binlog.head))
        except BaseException:
            relay.close()
            raise
        return relay

    return measure_program(outbox, topic, start, load, on_wait=on_wait)


def measure_program(
    outbox: ThrowawayOutbox,
    topic: ThrowawayTopic,
    start: Callable[[], Program],
    load: Load,
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> Latency:
    """One program that sends what is committed from now on, one consumer, and writers.

    Rows that are in the outbox are removed first. ``on_wait`` is called each second or more often; what it raises ends
    the run. Raises MeasurementFailed and what the place raises.
    """
    outbox.clear()
    program = start()

    def go_on() -> None:
        on_wait()
        program.require_alive()

    try:
        with arrivals(topic, outbox.settings) as consumer:
            time.sleep(_SETTLE_S)
            committed = write_steadily(outbox, topic.name, load, each_second=go_on)
            arrived = consumer.wait(len(committed), _PATIENCE_S, go_on)
        program.stop()
    finally:
        program.close()
    return summary(committed, arrived, load.warm_up_s)


def summary(committed: dict[int, float], arrived: dict[int, float], warm_up_s: float = WARM_UP_S) -> Latency:
    """Of the rows behind the warm-up. Times are seconds since 1970, by the number of the row."""
    first, last = min(committed.values()), max(committed.values())
    waits = sorted((arrived[row] - at) * 1000 for row, at in committed.items() if at >= first + warm_up_s)
    if not waits:
        raise MeasurementFailed(f"{len(committed)} rows were committed, none of them behind the first {warm_up_s:g} s")
    return Latency(
        nearest_rank(waits, 0.5), nearest_rank(waits, 0.99), waits[-1], (len(committed) - 1) / (last - first)
    )


def write_steadily(
    outbox: ThrowawayOutbox, topic: str, load: Load, *, each_second: Callable[[], None] = lambda: None
) -> dict[int, float]:
    """When the application knew of each commit, by the number that stands in the row's payload.

    ``each_second`` is called meanwhile; what it raises ends the writing.
    """
    seconds = load.warm_up_s + load.seconds
    pad = "x" * (max(SMALLEST_PAYLOAD, load.payload_bytes) - 100)
    payload = f'{{"number": %d, "user_id": 1, "conversation_id": "c", "role": "user", "message": "{pad}"}}'
    sql = (
        f"INSERT INTO {DEFAULT_TABLE} (biz_type, topic, message_key, payload, next_retry_at, created_at) "
        f"VALUES ('chat_history_persist', '{topic}', '%s', '{payload}', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))"
    )
    stop = Event()
    committed: dict[int, float] = {}
    failures: list[RelayError] = []
    engine = make_engine(outbox.settings.database, pool_size=load.writers)
    begun = time.perf_counter()

    def write(first: int) -> None:
        number = first
        with translated():
            connection = engine.raw_connection()
            try:
                connection.driver_connection.autocommit(True)  # type: ignore[union-attr]  # PyMySQL's
                cursor = connection.cursor()
                while not stop.is_set() and (due := number / load.rate) < seconds:
                    wait_s = due - (time.perf_counter() - begun)
                    if wait_s > 0:
                        time.sleep(wait_s)
                    elif time.perf_counter() - begun > seconds:
                        break
                    cursor.execute(sql % (f"conversation-{number % KEYS}", number))
                    committed[number] = time.time()
                    number += load.writers
            finally:
                connection.close()

    def run(first: int) -> None:
        try:
            write(first)
        except RelayError as error:
            failures.append(error)
            stop.set()

    threads = [Thread(target=run, args=(n,), daemon=True) for n in range(load.writers)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            each_second()
            for thread in threads:
                thread.join(1.0 / load.writers)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        engine.dispose()
    if failures:
        raise failures[0]
    return committed
