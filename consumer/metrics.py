"""What the consumer counts, and what it says of its health."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from cdc_relay.admin.server import Health
from cdc_relay.errors import DatabaseError, RelayError
from consumer.plan import Counts, Outcome

#: Seconds without a turn of the loop after which the program counts as stuck. One turn may wait for MySQL's read
#: timeout, for a lock and for Kafka's acknowledgement.
STUCK_AFTER_S = 120.0

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


def process_registry() -> CollectorRegistry:
    """A registry of its own with this process's CPU, memory and open files; nothing global, so tests stay apart."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


class ConsumerMetrics:
    """Beginning with ``cdc_consumer_``; and the state behind /healthz and /readyz. Workers report by ``worker()``."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._born_at = clock()
        self._workers: list[WorkerMetrics] = []
        self.records = Counter(
            "cdc_consumer_records_total",
            "Records by what became of them: " + ", ".join(Outcome) + ".",
            ["outcome"],
            registry=registry,
        )
        self.dead_letters = Counter(
            "cdc_consumer_dead_letters_total", "Records copied to a dead-letter topic.", registry=registry
        )
        self.batch_seconds = Histogram(
            "cdc_consumer_batch_seconds",
            "Seconds from receiving a batch to its offsets being committed, outages included.",
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.lag_records = Gauge(
            "cdc_consumer_lag_records", "Records of the assigned partitions that are not yet taken.", registry=registry
        )
        self.partitions = Gauge(
            "cdc_consumer_assigned_partitions", "Partitions that this consumer reads.", registry=registry
        )
        self.parked_keys = Gauge(
            "cdc_consumer_parked_keys",
            "Values of message_key that are held back now: an earlier row of theirs awaits a retry or blocks them.",
            registry=registry,
        )
        self.database_retries = Counter(
            "cdc_consumer_database_retries_total",
            "Batches tried again because MySQL was away or contended.",
            registry=registry,
        )
        self.kafka_retries = Counter(
            "cdc_consumer_kafka_retries_total",
            "Batches tried again because Kafka did not acknowledge dead letters.",
            registry=registry,
        )
        self.last_progress_timestamp_seconds = Gauge(
            "cdc_consumer_last_progress_timestamp_seconds",
            "Unix time at which a batch was last finished.",
            registry=registry,
        )
        for outcome in Outcome:
            self.records.labels(outcome=outcome)

    def worker(self) -> WorkerMetrics:
        """Where one more worker reports."""
        worker = WorkerMetrics(self, self._clock)
        self._workers.append(worker)
        return worker

    def refresh(self) -> None:
        """Set what is a sum over the workers."""
        self.parked_keys.set(sum(worker.parked_keys for worker in self._workers))
        self.partitions.set(self._partitions())
        lag = self._lag()
        self.lag_records.set(float("nan") if lag is None else lag)

    def health(self) -> Health:
        """Whether every loop turns. An outage is no reason to restart the program."""
        turned_at = min((worker.turned_at for worker in self._workers), default=self._born_at)
        silent_s = self._clock() - turned_at
        return Health(silent_s < STUCK_AFTER_S, {"loop": f"turned {silent_s:.0f} s ago"})

    def ready(self) -> Health:
        """Whether it takes part in the work."""
        alive = self.health()
        outage = next((worker.ongoing_outage for worker in self._workers if worker.ongoing_outage), None)
        partitions = f"{self._partitions()} assigned" if self._partitions() else "none assigned (yet)"
        return Health(
            alive.ok and outage is None and self._partitions() > 0,
            {**alive.checks, "partitions": partitions, "outage": "none" if outage is None else str(outage)},
        )

    def state(self) -> Mapping[str, object]:
        """For the page."""
        lag = self._lag()
        return {
            "Partitions": self._partitions(),
            "Lag (records)": "unknown" if lag is None else lag,
            **{f"Records {outcome}": sum(worker.totals[outcome] for worker in self._workers) for outcome in Outcome},
        }

    def _partitions(self) -> int:
        return sum(worker.partitions for worker in self._workers)

    def _lag(self) -> int | None:
        """None as long as one of the workers does not know its part of it."""
        lags = [worker.lag for worker in self._workers]
        return sum(lag for lag in lags if lag is not None) if lags and None not in lags else None


class WorkerMetrics:
    """What one worker reports. To be used in its thread; the others only look."""

    def __init__(self, metrics: ConsumerMetrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        self.turned_at = clock()
        self.partitions = 0
        self.lag: int | None = None
        self.parked_keys = 0
        self.ongoing_outage: RelayError | None = None
        self.totals = Counts()

    def turned(self, counts: Counts, seconds: float, parked_keys: int) -> None:
        """The loop has turned once; ``counts`` is empty when no record came, ``seconds`` is what the batch took."""
        self.turned_at = self._clock()
        self.ongoing_outage = None
        if parked_keys != self.parked_keys:
            self.parked_keys = parked_keys
            self._metrics.refresh()
        if not counts:
            return
        self.totals.update(counts)
        for outcome, number in counts.items():
            self._metrics.records.labels(outcome=outcome).inc(number)
        self._metrics.batch_seconds.observe(seconds)
        self._metrics.last_progress_timestamp_seconds.set(self._clock())

    def looked(self, partitions: int, lag: int | None) -> None:
        """What the worker's source knows of Kafka."""
        self.partitions, self.lag = partitions, lag
        self._metrics.refresh()

    def outage(self, error: RelayError) -> None:
        """An attempt has failed because something is away; the loop is alive."""
        self.turned_at = self._clock()
        self.ongoing_outage = error
        metrics = self._metrics
        (metrics.database_retries if isinstance(error, DatabaseError) else metrics.kafka_retries).inc()
