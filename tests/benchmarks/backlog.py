"""A row must cost the same however many are waiting, whether the binlog tells of them or the table does."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cdc_relay.bench.catchup import CatchUp, FilledOutbox
from cdc_relay.bench.figures import Figure, gather
from cdc_relay.bench.relay import Variant, with_writeback
from tests.benchmarks.catchup import once
from tests.benchmarks.lab import Lab, plural

FROM_BINLOG = Variant("from the binlog", with_writeback("status").change)
FROM_TABLE = Variant("from the table", with_writeback("status").change)


def measure(lab: Lab) -> Iterator[Figure]:
    """At each size."""
    for rows in lab.sizes.backlog:
        with lab.filled(rows) as filled:
            runs = lab.in_turn([FROM_BINLOG, FROM_TABLE], partial(_once, filled))
        for name, found in runs.items():
            yield from gather("backlog", f"{plural(rows, 'row')} waiting", name, found)


def _once(filled: FilledOutbox, variant: Variant) -> CatchUp:
    return once(filled, variant, from_table=variant is FROM_TABLE)
