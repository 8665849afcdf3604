"""Catch-up: how fast the rows of a filled outbox come to Kafka, and what each of them costs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cdc_relay.bench.catchup import CatchUp, FilledOutbox
from cdc_relay.bench.figures import Figure, gather
from cdc_relay.bench.relay import Variant
from tests.benchmarks.lab import Lab, plural, renew, say


def measure(lab: Lab) -> Iterator[Figure]:
    """With one row a transaction, and with many."""
    for rows_each in lab.sizes.rows_each:
        with lab.filled(lab.sizes.rows, rows_each) as filled:
            for name, runs in lab.in_turn(lab.variants, partial(once, filled)).items():
                yield from gather("catch-up", f"{plural(rows_each, 'row')} a transaction", name, runs)


def once(filled: FilledOutbox, variant: Variant, *, from_table: bool = False) -> CatchUp:
    """One run on rows that are as if they had just been committed."""
    if from_table:
        renew(filled.outbox)  # the binlog is not looked at
    elif filled.marked:
        say(f"committing {filled.rows:,} rows anew")
        filled.again()
    return filled.run(variant, from_table=from_table)
