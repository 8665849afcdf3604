"""The relay beside what one would write without it (``peers.py``): on the same rows, in turn."""

from __future__ import annotations

from collections.abc import Iterator

from cdc_relay.bench import latency
from cdc_relay.bench.figures import Figure, gather
from cdc_relay.bench.relay import Variant, with_writeback
from tests.benchmarks.catchup import once
from tests.benchmarks.lab import Lab

NAIVE = Variant("loop over the library's reader", argv=("tests.benchmarks.peers", "naive"))
POLLER = Variant("poller, 100 rows at a time", argv=("tests.benchmarks.peers", "poller"))
SLOW_POLLER = Variant("poller, 100 rows a second", argv=("tests.benchmarks.peers", "poller-each-second"))
RELAY = Variant("cdc-relay", with_writeback("status").change)

_ALL = "start to last record"

#: What the slowest of them can follow.
_ROWS_PER_S = 50


def measure(lab: Lab) -> Iterator[Figure]:
    """Catch-up, with fewer rows for what sends fewer a second; and latency at a rate that all can follow."""
    with lab.filled(lab.sizes.rows) as many, lab.filled(lab.sizes.peer_rows) as few:
        runs = lab.in_turn([RELAY, NAIVE, POLLER], lambda variant: once(many if variant is RELAY else few, variant))
    for name, found in runs.items():
        # How long it takes in all says nothing where the rows are not as many.
        yield from (each for each in gather("comparison", "catch-up", name, found) if each.metric != _ALL)
    with lab.place() as (outbox, topic):
        waits = lab.in_turn(
            [RELAY, NAIVE, POLLER, SLOW_POLLER],
            lambda variant: latency.measure(outbox, topic, variant, latency.Load(_ROWS_PER_S, lab.sizes.seconds)),
        )
    for name, found_waits in waits.items():
        yield from gather("comparison", f"{_ROWS_PER_S} rows/s", name, found_waits)
