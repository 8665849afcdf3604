"""What the relay counts, with names and units as Prometheus wants them (base units, ``_total`` on counters).

Every series with a known label exists from the start at 0, so that an alert on its increase sees the first one.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

_LATENCY_BUCKETS_S = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
_BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


def process_registry() -> CollectorRegistry:
    """A registry of its own with this process's CPU, memory and open files; nothing global, so tests stay apart."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


class RelayMetrics:
    """The relay's metrics, all beginning with ``cdc_relay_``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rows_published = Counter(
            "cdc_relay_rows_published_total",
            "Rows acknowledged by Kafka, by the way they took: tail (binlog), sweep or reconcile (table).",
            ["path"],
            registry=registry,
        )
        self.rows_failed = Counter(
            "cdc_relay_rows_failed_total",
            "Attempts that failed through an error of the row itself, by kind; outages are not among them.",
            ["kind"],
            registry=registry,
        )
        self.rows_dead = Counter(
            "cdc_relay_rows_dead_total",
            "Rows that this program made dead: retries used up, or an error that no retry can cure.",
            registry=registry,
        )
        self.rows_parked = Counter(
            "cdc_relay_rows_parked_total",
            "Rows left in the table because an earlier row of their message_key awaits a retry or blocks it.",
            registry=registry,
        )
        self.parked_keys = Gauge(
            "cdc_relay_parked_keys",
            "Values of message_key that are held back now: an earlier row of theirs awaits a retry or blocks them.",
            registry=registry,
        )
        self.blocked_keys = Gauge(
            "cdc_relay_blocked_keys",
            "Values of message_key that a dead row holds back until somebody requeues or discards it; 0 under "
            "ordering.on_dead = skip.",
            registry=registry,
        )
        self.binlog_events_unsupported = Counter(
            "cdc_relay_binlog_events_unsupported_total",
            "Binlog events that were not understood, by kind; what they hold is left to the sweep.",
            ["kind"],
            registry=registry,
        )
        self.reconciles = Counter(
            "cdc_relay_reconciles_total",
            "Starts that caught up from the table instead of the binlog, by reason.",
            ["reason"],
            registry=registry,
        )
        self.reconnects = Counter(
            "cdc_relay_reconnects_total",
            "Connections made anew after one was lost, by target: mysql or kafka.",
            ["target"],
            registry=registry,
        )
        self.binlog_reader = Info(
            "cdc_relay_binlog_reader",
            "How the relay of this name reads the binlog: wire or library, and why.",
            registry=registry,
        )
        self.binlog_file_number = Gauge(
            "cdc_relay_binlog_file_number",
            "Number in the name of the binlog file that the tailer reads.",
            registry=registry,
        )
        self.binlog_position_bytes = Gauge(
            "cdc_relay_binlog_position_bytes",
            "Position in that file up to which the tailer has read.",
            registry=registry,
        )
        self.binlog_lag_seconds = Gauge(
            "cdc_relay_binlog_lag_seconds",
            "Seconds since the commit of the last transaction before the watermark; 0 when nothing lies behind it.",
            registry=registry,
        )
        self.binlog_lag_bytes = Gauge(
            "cdc_relay_binlog_lag_bytes",
            "Bytes of binlog that the server has written behind the watermark.",
            registry=registry,
        )
        self.in_flight_rows = Gauge(
            "cdc_relay_in_flight_rows",
            "Rows read and not yet settled (published and written back, or failed, or parked).",
            registry=registry,
        )
        self.in_flight_bytes = Gauge(
            "cdc_relay_in_flight_bytes",
            "Bytes of payload and key of the rows in flight.",
            registry=registry,
        )
        self.delivery_latency_seconds = Histogram(
            "cdc_relay_delivery_latency_seconds",
            "Seconds from a row's commit, by the database's clock, to Kafka's acknowledgement.",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.writeback_batch_rows = Histogram(
            "cdc_relay_writeback_batch_rows",
            "Rows marked published by one UPDATE.",
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self.writeback_seconds = Histogram(
            "cdc_relay_writeback_seconds",
            "Seconds that one transaction of the write-back took.",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.checkpoint_timestamp_seconds = Gauge(
            "cdc_relay_checkpoint_timestamp_seconds",
            "Unix time at which the checkpoint was saved last.",
            registry=registry,
        )
        self.checkpoint_writes = Counter(
            "cdc_relay_checkpoint_writes_total",
            "Times that the checkpoint was saved.",
            registry=registry,
        )
        self.sweep_runs = Counter(
            "cdc_relay_sweep_runs_total",
            "Times that the table was swept for due rows.",
            registry=registry,
        )
        self.sweep_rows = Counter(
            "cdc_relay_sweep_rows_total",
            "Rows that the sweep leased, by outcome.",
            ["outcome"],
            registry=registry,
        )
        self.leader = Gauge(
            "cdc_relay_leader",
            "1 while this relay is the active one of its name, 0 while it is a standby.",
            registry=registry,
        )
        self.last_progress_timestamp_seconds = Gauge(
            "cdc_relay_last_progress_timestamp_seconds",
            "Unix time at which the tailer last read something from the server, a heartbeat included.",
            registry=registry,
        )
        for path in ("tail", "sweep", "reconcile"):
            self.rows_published.labels(path=path)
        for target in ("mysql", "kafka"):
            self.reconnects.labels(target=target)
