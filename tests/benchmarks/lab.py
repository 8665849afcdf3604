"""What the scenarios share: sizes, places to measure in, and variants that take turns."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cdc_relay.bench.catchup import FilledOutbox
from cdc_relay.bench.place import ThrowawayOutbox, ThrowawayTopic, existing
from cdc_relay.bench.relay import MeasurementFailed, RelayProcess, Variant
from cdc_relay.bench.settings import altered
from cdc_relay.config import Settings
from tests.benchmarks.servers import with_tls

T = TypeVar("T")

PARTITIONS = 6
_LOOK_S = 0.005
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rows: int = 30_000
    rows_each: tuple[int, ...] = (1, 100)
    """Rows of a transaction."""
    rates: tuple[int, ...] = (1_000,)
    """Rows a second of the latencies."""
    seconds: float = 3.0
    repeat: int = 2
    modes: tuple[str, ...] = ("none", "status")
    readers: tuple[str, ...] = ("auto",)
    tls: tuple[str, ...] = ("off",)
    foreign_mb: int = 100
    """Of binlog, 2 % of it the outbox's."""
    backlog: tuple[int, ...] = (5_000, 50_000)
    minutes: float = 1.0
    """Of the soak."""
    peer_rows: int = 2_000
    """Of a catch-up of what sends a thousand a second."""
    consumed: int = 60_000
    """Rows for the consumer."""
    consumers: tuple[int, ...] = (1, 2)
    """Consumer programs in a group."""
    workers: tuple[int, ...] = (2,)
    """Of ``consumer.workers``."""


FULL = Sizes(
    rows=300_000,
    rates=(200, 1_000, 5_000),
    seconds=10.0,
    repeat=5,
    tls=("off", "on"),
    foreign_mb=500,
    backlog=(10_000, 100_000, 1_000_000),
    minutes=10.0,
    peer_rows=20_000,
    consumed=200_000,
    workers=(1, 2, 3),
)


@dataclass(frozen=True)
class Lab:
    """Servers, sizes, and whom else to measure."""

    settings: Settings
    sizes: Sizes
    against: Path | None = None
    """Another checkout."""
    against_modes: tuple[str, ...] = ()
    """Its values of ``writeback.mode``; "" where it has none."""
    throwaway: bool = True
    """The MySQL is nobody's: its settings may be changed."""
    debezium: Path | None = None
    """Where Debezium Server was unpacked."""
    maxwell: Path | None = None
    """Where Maxwell's daemon was."""
    java: str = "java"
    """What runs them."""

    @contextmanager
    def place(self) -> Iterator[tuple[ThrowawayOutbox, ThrowawayTopic]]:
        """An empty outbox and an empty topic."""
        outbox, topic = ThrowawayOutbox(self.settings), ThrowawayTopic(self.settings.kafka, PARTITIONS)
        with existing(outbox, topic):
            yield outbox, topic

    @contextmanager
    def filled(self, rows: int, rows_each: int = 1) -> Iterator[FilledOutbox]:
        """A place with rows in it."""
        with self.place() as (outbox, topic):
            say(f"committing {rows:,} rows")
            yield FilledOutbox(
                outbox, topic, rows=rows, fill=lambda: outbox.fill(topic.name, rows=rows, rows_each=rows_each)
            )

    @property
    def variants(self) -> list[Variant]:
        """Every mode with every reader with and without TLS, then the other checkout."""
        found = [
            _variant(mode, reader, tls)
            for mode in self.sizes.modes
            for reader in self.sizes.readers
            for tls in self.sizes.tls
        ]
        for mode in self.against_modes if self.against else ():
            name = ", ".join(filter(None, (mode, "other checkout")))
            changes = {"writeback.mode": mode} if mode else {}
            found.append(Variant(name, _changing(changes, "off"), checkout=self.against))
        return found

    def in_turn(self, variants: Sequence[Variant], run: Callable[[Variant], T]) -> dict[str, list[T]]:
        """Each of them, ``repeat`` times; in turn, so that a busy minute hits all alike. By name."""
        found: dict[str, list[T]] = {variant.name: [] for variant in variants}
        for turn in range(self.sizes.repeat):
            for variant in variants:
                say(f"{variant.name} ({turn + 1} of {self.sizes.repeat})")
                found[variant.name].append(run(variant))
        return found


def renew(outbox: ThrowawayOutbox) -> None:
    """All rows as they were when they were committed, behind the binlog's back."""
    with outbox.engine.connect() as connection:
        connection.exec_driver_sql("SET SESSION sql_log_bin = 0")
        connection.exec_driver_sql(
            "UPDATE agent_outbox_messages SET published_at = NULL, next_retry_at = created_at, last_error = NULL, "
            "retry_count = 0, updated_at = created_at, status = 'pending' WHERE status <> 'pending'"
        )
        connection.commit()
        connection.exec_driver_sql("SET SESSION sql_log_bin = 1")


def wait_until(done: Callable[[], bool], relay: RelayProcess, what: str) -> float:
    """When ``done`` was seen, by ``time.perf_counter``. Raises MeasurementFailed when it is not."""
    deadline = time.monotonic() + _PATIENCE_S
    while not done():
        relay.require_alive()
        if time.monotonic() > deadline:
            raise MeasurementFailed(f"not after {_PATIENCE_S:g} s: {what}\n{relay.said()}")
        time.sleep(_LOOK_S)
    return time.perf_counter()


def say(words: str) -> None:
    """Tell on stderr what is being done."""
    print(f"  … {words}", file=sys.stderr, flush=True)


def plural(count: int, noun: str) -> str:
    """``1 row``, ``1,000 rows``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _variant(mode: str, reader: str, tls: str) -> Variant:
    name = ", ".join([mode, *([reader] if reader != "auto" else []), *(["TLS"] if tls == "on" else [])])
    return Variant(name, _changing({"writeback.mode": mode, "tail.reader": reader}, tls))


def _changing(changes: dict[str, str], tls: str) -> Callable[[Settings], Settings]:
    return lambda settings: altered(with_tls(settings) if tls == "on" else settings, changes)
