"""What an operator sees of a session while it works: its gauges, its lag, and whether Kafka is back."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from sqlalchemy import Connection

from cdc_relay.binlog.server import server_binlog
from cdc_relay.errors import StaleSource
from cdc_relay.metrics import RelayMetrics
from cdc_relay.outbox.clock import DatabaseClock
from cdc_relay.outbox.statements import OutboxStatements
from cdc_relay.reconcile import bytes_between
from cdc_relay.watermark import AckWatermark

#: How often the server is asked for its clock and for the head of its binlog.
_LOOK_S = 5.0

#: How often an unreachable Kafka is asked whether it is back, for readiness.
_PROBE_S = 1.0


class Brokers(Protocol):
    """Whether Kafka can be reached (``kafka.publisher.KafkaPublisher``)."""

    brokers_down: bool

    def probe(self) -> None:
        """Find out whether brokers that were down are back."""


class Observer:
    """Looks when it is told to; one thread does so."""

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[Connection]],
        statements: OutboxStatements,
        clock: DatabaseClock,
        watermark: AckWatermark,
        brokers: Brokers,
        metrics: RelayMetrics,
        *,
        tails: bool,
    ) -> None:
        """``tails``: the watermark is one of the binlog, and may be compared with the server's."""
        self._transaction = transaction
        self._statements = statements
        self._clock = clock
        self._watermark = watermark
        self._brokers = brokers
        self._metrics = metrics
        self._tails = tails
        self._probe_at = 0.0
        self._look_at = time.monotonic() + _LOOK_S

    def look(self) -> None:
        """Set the gauges; now and then ask the server and, if it was away, Kafka.

        Raises StaleSource when the position is ahead of the server: then nothing may ever come, and nobody would say
        so. Raises what ``transaction`` does.
        """
        metrics, watermark = self._metrics, self._watermark
        metrics.in_flight_rows.set(watermark.in_flight_rows)
        metrics.in_flight_bytes.set(watermark.in_flight_bytes)
        metrics.binlog_file_number.set(watermark.position.file_number)
        metrics.binlog_position_bytes.set(watermark.position.offset)
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._look_at_server()
        if self._brokers.brokers_down and time.monotonic() >= self._probe_at:
            self._brokers.probe()
            self._probe_at = time.monotonic() + _PROBE_S

    def _look_at_server(self) -> None:
        """Read the database's clock, and how far behind the head of the binlog the watermark is."""
        position = self._watermark.position
        with self._transaction() as connection:
            self._clock.set(lambda: self._statements.database_now(connection))
            binlog = server_binlog(connection)
        if not self._tails:
            return
        if position > binlog.head:
            raise StaleSource(f"{position} lies beyond what the server has written ({binlog.head})", reason="reset")
        behind = bytes_between(position, binlog)
        committed_at = self._watermark.committed_at
        seconds = self._clock().timestamp() - committed_at if behind else 0.0
        self._metrics.binlog_lag_bytes.set(behind)
        self._metrics.binlog_lag_seconds.set(seconds if committed_at else 0.0)
