"""Composition root: builds everything from Settings, looks before it starts, runs the workers, stops in two phases."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from datetime import datetime
from types import FrameType

from cdc_relay.admin.server import AdminServer
from cdc_relay.config import Settings
from cdc_relay.errors import DatabaseUnavailable
from cdc_relay.logs import get_logger
from cdc_relay.outbox.backoff import Backoff, NextAttempt
from cdc_relay.outbox.clock import DatabaseClock, utc_now
from cdc_relay.outbox.consumer_statements import ConsumerStatements
from cdc_relay.row_image import log_changes_only
from consumer import topics
from consumer.dead_letter import ACK_TIMEOUT_S, DeadLetterTopics
from consumer.handlers import default_registry
from consumer.metrics import ConsumerMetrics, process_registry
from consumer.outage import ride_out_with
from consumer.plan import Counts
from consumer.properties import admin_properties, consumer_properties, member_properties, producer_properties
from consumer.registry import HandlerRegistry
from consumer.source import KafkaSource
from consumer.unit_of_work import UnitOfWork, consumer_engine
from consumer.worker import Worker

DEFAULT_PORT = 9465
#: Seconds within which MySQL must answer at the start; once it has, an outage is waited out.
DATABASE_TIMEOUT_S = 10.0
#: Seconds between two looks at the group and its lag.
LOOK_EVERY_S = 1.0
#: Seconds between two looks at the database's clock.
SET_CLOCK_EVERY_S = 60.0

log = get_logger(__name__)


class Service:
    """The consumer program. ``run`` returns when ``stop`` is set, by a signal or by the caller."""

    def __init__(self, settings: Settings, registry: HandlerRegistry | None = None) -> None:
        """``registry``: the handlers, all that ship when None. Nothing is connected to yet.

        Raises ConfigurationError.
        """
        topics.check_names(settings.consumer.topics, settings.consumer.dead_letter_suffix)
        self.stop = threading.Event()
        self._settings = settings
        self._handlers = registry or default_registry()
        self._engine = consumer_engine(settings.database, connections=settings.consumer.workers)
        if settings.consumer.row_image == "minimal":
            log_changes_only(self._engine, "consumer.row_image")
        self._outbox = ConsumerStatements(settings.database.table)
        self._consumer_properties = consumer_properties(settings.kafka, settings.consumer.group_id)
        self._registry = process_registry()
        self._metrics = ConsumerMetrics(self._registry)
        self._clock = DatabaseClock()
        self._clock_set_at = 0.0

    def check(self) -> None:
        """All that a start asks, and what the first batch would show: whether this account may use the group.

        Raises KafkaError or DatabaseError that says what is wrong.
        """
        self._require()
        topics.check_group(self._consumer_properties, self._settings.consumer.topics[0])

    def run(self, *, drain_timeout_s: float) -> None:
        """Consume until stopped. Raises RelayError for what waiting does not cure."""
        with (
            closing(self),
            two_phase_stop(self.stop, drain_timeout_s),
            AdminServer(
                self._settings.admin,
                program="cdc-consumer",
                default_port=DEFAULT_PORT,
                registry=self._registry,
                health=self._metrics.health,
                ready=self._metrics.ready,
                state=self._metrics.state,
            ),
        ):
            self._require()
            self._set_clock()
            if not self.stop.is_set():
                self.consume()
        log.info("stopped", action="stopped")

    def close(self) -> None:
        """Give the database's connections back. Safe to call twice."""
        self._engine.dispose()

    def consume(self) -> None:
        """Let the workers work until ``stop`` is set. When one fails all end, and its error is raised."""
        consumer = self._settings.consumer
        log.info(
            f"consuming {', '.join(consumer.topics)}",
            action="consuming",
            topics=consumer.topics,
            group_id=consumer.group_id,
            workers=consumer.workers,
        )
        # Not in this thread: librdkafka may wait for a broker longer than a signal may go unheard.
        with ThreadPoolExecutor(consumer.workers, "worker") as pool:
            running = [pool.submit(self._work, number) for number in range(consumer.workers)]
            wait(running, return_when=FIRST_EXCEPTION)
            self.stop.set()
        for each in running:
            each.result()

    def _work(self, number: int) -> None:
        with self.worker(number) as worker:
            worker.run(self.stop)

    @contextmanager
    def worker(self, number: int = 0) -> Iterator[Worker]:
        """A worker with all that it needs, in the group until the block is left. To be used in one thread.

        Each is a member of its own and a connection of its own, so that one parses while MySQL works for another.
        """
        settings = self._settings
        metrics = self._metrics.worker()
        identities = topics.TopicIdentities(admin_properties(settings.kafka), settings.consumer.topics)
        with (
            closing(
                DeadLetterTopics(
                    producer_properties(settings.kafka, timeout_s=ACK_TIMEOUT_S),
                    settings.consumer.dead_letter_suffix,
                    self._metrics.dead_letters.inc,
                )
            ) as dead_letters,
            closing(
                KafkaSource(
                    member_properties(self._consumer_properties, number),
                    settings.consumer.topics,
                    batch_rows=settings.consumer.batch_rows,
                    batch_bytes=settings.consumer.batch_bytes,
                    batch_wait_s=settings.consumer.batch_wait_s,
                    replaced=identities.replaced,
                    stop=self.stop,
                )
            ) as source,
        ):
            looked_at = 0.0

            def on_turn(counts: Counts, seconds: float, parked_keys: int) -> None:
                nonlocal looked_at
                metrics.turned(counts, seconds, parked_keys)
                now = time.monotonic()
                if now - looked_at >= LOOK_EVERY_S:
                    looked_at = now
                    metrics.looked(source.partitions, source.lag())
                if now - self._clock_set_at >= SET_CLOCK_EVERY_S:
                    self._set_clock()

            yield Worker(
                source=source,
                registry=self._handlers,
                unit_of_work=self._unit_of_work,
                bury=dead_letters.send,
                ride_out=ride_out_with(self.stop, metrics.outage),
                backoff=Backoff(settings.retry.base_s, settings.retry.cap_s),
                zone=settings.database.zone,
                ordering=settings.ordering.rule,
                clock=self._clock,
                on_turn=on_turn,
            )

    def _unit_of_work(self, now: datetime) -> UnitOfWork:
        return UnitOfWork(self._engine, self._outbox, self._settings.database.zone, now)

    def _set_clock(self) -> None:
        self._clock_set_at = time.monotonic()
        try:
            with self._unit_of_work(utc_now()) as work:
                self._clock.set(lambda: work.outbox.database_now(work.connection))
        except DatabaseUnavailable:
            pass  # the clock as it was set last will do until the outage is over

    def _require(self) -> None:
        """Ask Kafka and MySQL whether all that is needed is there; make missing topics where that is allowed."""
        consumer = self._settings.consumer
        topics.prepare(
            admin_properties(self._settings.kafka),
            consumer.topics,
            consumer.dead_letter_suffix,
            create=consumer.create_topics,
        )
        self._check_database()

    def _check_database(self) -> None:
        """Run every write for a row that there is not, and keep nothing."""
        deadline = time.monotonic() + DATABASE_TIMEOUT_S
        while not self.stop.is_set():
            try:
                with self._unit_of_work(utc_now()) as work:
                    work.outbox.lock_rows(work.connection, [0])
                    work.outbox.mark_consumed(work.connection, {0: work.now}, work.now)
                    work.outbox.mark_failed(work.connection, 0, NextAttempt(1, work.now), "", work.now)
                    for handler in self._handlers:
                        handler.check(work)
                return
            except DatabaseUnavailable as error:
                if time.monotonic() > deadline:
                    raise DatabaseUnavailable(
                        f"no answer within {DATABASE_TIMEOUT_S:g} s: {error.message}",
                        hint="Check database.url, and that the server runs and is reachable from here",
                    ) from error
                self.stop.wait(0.5)


@contextmanager
def two_phase_stop(stop: threading.Event, drain_timeout_s: float) -> Iterator[None]:
    """SIGTERM and SIGINT set ``stop``; a second one, or ``drain_timeout_s`` after the first, ends the process at once.

    To end it at once is safe, since nothing is acknowledged before it is durable; it only costs duplicates.
    """
    watch = threading.Timer(drain_timeout_s, _give_up, [drain_timeout_s])
    watch.daemon = True

    def on_signal(number: int, _: FrameType | None) -> None:
        # No logging here: the signal may have come in the middle of it.
        if stop.is_set():
            name = signal.Signals(number).name
            os.write(2, f"cdc-consumer: {name} again: ending at once; the next start goes on\n".encode())
            os._exit(1)
        stop.set()
        watch.start()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        watch.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _give_up(drain_timeout_s: float) -> None:
    log.error(
        f"not drained within {drain_timeout_s:g} s; what is in hand is read again after the next start",
        action="drain_timeout",
    )
    os._exit(1)
