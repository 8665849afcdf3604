"""Latency at steady rates, from when the application knows of its commit to the record's arrival at a consumer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cdc_relay.bench import latency
from cdc_relay.bench.figures import Figure, gather
from tests.benchmarks.lab import Lab, plural


def measure(lab: Lab) -> Iterator[Figure]:
    """At each rate."""
    for rate in lab.sizes.rates:
        with lab.place() as (outbox, topic):
            one = partial(latency.measure, outbox, topic, load=latency.Load(rate, lab.sizes.seconds))
            runs = lab.in_turn(lab.variants, one)
        for name, found in runs.items():
            yield from gather("latency", f"{plural(rate, 'row')}/s", name, found)
