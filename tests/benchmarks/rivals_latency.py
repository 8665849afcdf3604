"""Latency at a steady rate beside Debezium Server and Maxwell's daemon, each set to send at once.

A place of its own for each run, so that none begins with the rows of the one before. All are given the same time to get
warm, since the Java programs need it. As for ``rivals``: nobody marks rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cdc_relay.bench.figures import Figure, gather
from cdc_relay.bench.latency import Latency, Load, measure_program
from cdc_relay.bench.latency import measure as measure_relay
from cdc_relay.bench.relay import Variant
from tests.benchmarks.lab import Lab, plural
from tests.benchmarks.rivals import AT_ONCE, RELAY, JavaProgram, can_compare, installed

_WARM_UP_S = 20.0


def measure(lab: Lab) -> Iterator[Figure]:
    """At each rate."""
    if not can_compare(lab):
        return
    names = [name for name, folder in (("Debezium Server", lab.debezium), ("Maxwell", lab.maxwell)) if folder]
    for rate in lab.sizes.rates:
        load = Load(rate, lab.sizes.seconds, warm_up_s=_WARM_UP_S)
        runs = lab.in_turn([RELAY, *map(Variant, names)], partial(_once, lab, load))
        for name, found in runs.items():
            yield from gather("latency of rivals", f"{plural(rate, 'row')}/s", name, found)


def _once(lab: Lab, load: Load, variant: Variant) -> Latency:
    with lab.place() as (outbox, topic):
        if variant is RELAY:
            return measure_relay(outbox, topic, variant, load)
        with installed(lab, outbox, topic, AT_ONCE) as rivals:
            rival = rivals[variant.name]
            rival.learn()

            def start() -> JavaProgram:
                program = rival.start(outbox.binlog().head)
                try:
                    program.wait_until(lambda said: rival.following in said, "it follows the binlog")
                except BaseException:
                    program.close()
                    raise
                return program

            return measure_program(outbox, topic, start, load)
