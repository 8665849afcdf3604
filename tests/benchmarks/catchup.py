"""Catch-up: a filled outbox, a relay that starts behind it, and how fast its rows come to Kafka."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

from sqlalchemy import create_engine

from cdc_relay.binlog.server import server_binlog
from cdc_relay.checkpoint import Checkpoint
from cdc_relay.reconcile import bytes_between
from tests.benchmarks.load import Outbox
from tests.benchmarks.relay import RelayProcess, Topic, Variant, checkpoint_at
from tests.benchmarks.servers import Servers

_LOOK_S = 0.01
_PATIENCE_S = 300.0


@dataclass(frozen=True)
class CatchUp:
    """What one run showed."""

    rows_per_s: float
    """From the first record in Kafka to the last."""
    cpu_us: float
    """The relay's processor time for a row over that stretch, all its threads, user and system."""
    first_s: float
    """From the start of the process to the first record."""
    peak_mib: float
    settled_s: float
    """From the first record until every row is marked; 0 where none is."""


class FilledOutbox:
    """An outbox with rows committed after a known position."""

    def __init__(self, servers: Servers, *, rows: int, rows_each: int, tls: bool = False) -> None:
        self.servers = servers
        self.rows = rows
        self.outbox = Outbox(servers.mysql_url, tls=tls)
        engine = create_engine(self.outbox.url)
        with engine.connect() as connection:
            binlog = server_binlog(connection)
            connection.rollback()
            self.checkpoint: Checkpoint = checkpoint_at(binlog.server, binlog.head)
            self.topic_name = f"bench-{uuid.uuid4().hex[:8]}"
            self.outbox.fill(self.topic_name, rows=rows, rows_each=rows_each)
            self.binlog_bytes = bytes_between(binlog.head, server_binlog(connection))
        engine.dispose()

    def run(self, variant: Variant, *, marks: bool) -> CatchUp:
        """One relay from the position before the rows until all have arrived, and are marked if it ``marks``."""
        # Records are named by the topic in the binlog, so it must be the same one in every run.
        topic = Topic(self.servers, self.topic_name)
        self.outbox.fresh_again(self.topic_name)
        relay = RelayProcess(self.servers, self.outbox.url, variant, self.checkpoint)
        try:
            return self._watch(relay, topic, marks)
        finally:
            relay.stop()
            topic.delete()
            time.sleep(1.0)  # deleting a topic goes on for a moment

    def _watch(self, relay: RelayProcess, topic: Topic, marks: bool) -> CatchUp:
        first_at = first_cpu = 0.0
        first = 0
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            there = topic.records()
            now = time.perf_counter()
            if there and not first:
                first, first_at, first_cpu = there, now, relay.cpu_s()
            if there >= self.rows:
                break
            relay.require_alive()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{there} of {self.rows} records arrived:\n{relay.said()}")
            time.sleep(_LOOK_S)
        last_at, cpu, settled_s = now, relay.cpu_s(), 0.0
        if marks:
            while self.outbox.pending():
                relay.require_alive()
                time.sleep(0.1)
            settled_s = time.perf_counter() - first_at
            cpu = relay.cpu_s()
        rows = max(1, self.rows - first)
        return CatchUp(
            rows / max(1e-9, last_at - first_at),
            (cpu - first_cpu) / rows * 1e6,
            first_at - relay.started_at,
            relay.peak_mib(),
            settled_s,
        )

    def drop(self) -> None:
        """Remove the database."""
        self.outbox.drop()
