"""A server that writes fifty times as much for others: following its binlog, against starting from the table."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from sqlalchemy import text

from cdc_relay.bench.catchup import FilledOutbox
from cdc_relay.bench.figures import Figure, gather, metric
from cdc_relay.bench.place import ThrowawayOutbox
from cdc_relay.bench.relay import Variant
from cdc_relay.outbox.database import transaction
from tests.benchmarks.backlog import FROM_BINLOG, FROM_TABLE
from tests.benchmarks.lab import Lab, renew, say

#: Bytes of binlog of a transaction with one outbox row of 600 B of payload; about.
_OUTBOX_BYTES = 1_200
_OUTBOX_SHARE = 0.02

_CONNECTIONS = 4
_ROWS_A_CALL = 50

_TABLE = """
CREATE TABLE orders (id BIGINT PRIMARY KEY AUTO_INCREMENT, customer INT NOT NULL, note TEXT NOT NULL,
  placed_at DATETIME(6) NOT NULL) CHARSET = utf8mb4
"""
#: After each outbox row ten transactions of six rows of a kilobyte: some 60 kB.
_FILL = """
CREATE PROCEDURE fill_among_orders(IN outbox_rows INT, IN topic_name VARCHAR(128))
BEGIN
  DECLARE n INT DEFAULT 0;
  DECLARE m INT;
  DECLARE note TEXT DEFAULT REPEAT('lorem ipsum dolor ', 53);
  WHILE n < outbox_rows DO
    CALL fill(1, 1, topic_name, 600);
    SET m = 0;
    WHILE m < 10 DO
      INSERT INTO orders (customer, note, placed_at) VALUES
        (n, note, UTC_TIMESTAMP(6)), (n, note, UTC_TIMESTAMP(6)), (n, note, UTC_TIMESTAMP(6)),
        (n, note, UTC_TIMESTAMP(6)), (n, note, UTC_TIMESTAMP(6)), (n, note, UTC_TIMESTAMP(6));
      SET m = m + 1;
    END WHILE;
    SET n = n + 1;
  END WHILE;
END
"""


@dataclass(frozen=True)
class AmongForeign:
    """What one run showed."""

    all_s: float = metric("start to last record", "s")
    first_s: float = metric("start to first record", "s")
    rows_per_s: float = metric("throughput", "rows/s")
    binlog_mb_per_s: float | None = metric("binlog read", "MB/s")
    """None where it is not read."""
    cpu_s: float = metric("processor time", "s")
    """From just before the first record to the last row that is marked."""


def measure(lab: Lab) -> Iterator[Figure]:
    """From a checkpoint behind all of it, and without one."""
    rows = outbox_rows(lab)
    with lab.place() as (outbox, topic):
        say(f"committing {rows:,} rows among those of others")
        filled = FilledOutbox(outbox, topic, rows=rows, fill=lambda: fill(outbox, topic.name, rows))
        runs = lab.in_turn([FROM_BINLOG, FROM_TABLE], partial(_once, filled))
        case = f"{filled.binlog_bytes / 1e6:,.0f} MB of binlog, {rows:,} rows"
    for name, found in runs.items():
        yield from gather("foreign binlog", case, name, found)


def _once(filled: FilledOutbox, variant: Variant) -> AmongForeign:
    renew(filled.outbox)  # what marked the rows before is no more than another foreign write
    from_table = variant is FROM_TABLE
    run = filled.run(variant, from_table=from_table)
    read_mb_per_s = None if from_table else filled.binlog_bytes / 1e6 / (run.all_s - run.first_s)
    return AmongForeign(run.all_s, run.first_s, run.rows_per_s, read_mb_per_s, run.cpu_us * filled.rows / 1e6)


def outbox_rows(lab: Lab) -> int:
    """How many there are in so many megabytes of binlog."""
    return int(lab.sizes.foreign_mb * 1e6 * _OUTBOX_SHARE / _OUTBOX_BYTES)


def fill(outbox: ThrowawayOutbox, topic: str, rows: int) -> None:
    """Commit so many rows, and what others write meanwhile."""
    with transaction(outbox.engine) as connection:
        connection.exec_driver_sql(_TABLE)
        connection.exec_driver_sql(_FILL)

    def call(count: int) -> None:
        with transaction(outbox.engine) as connection:
            connection.execute(text("CALL fill_among_orders(:rows, :topic)"), {"rows": count, "topic": topic})

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(call, [min(_ROWS_A_CALL, rows - at) for at in range(0, rows, _ROWS_A_CALL)]))
