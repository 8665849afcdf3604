"""Soak: does memory grow while rows keep coming."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from cdc_relay.bench.figures import Figure
from cdc_relay.bench.latency import Load, write_steadily
from cdc_relay.bench.relay import RelayProcess, checkpoint_at, with_writeback
from tests.benchmarks.lab import Lab, say

_MODE = "status"
_ROWS_PER_S = 1_000
#: A tenth of the samples at each end, which are compared.
_PART = 10
#: Seconds left out at the beginning, while the process starts and caches fill.
_WARM_UP = 10


def measure(lab: Lab) -> Iterator[Figure]:
    """Resident memory of the relay, sampled each second, at the beginning and at the end."""
    case = f"{_ROWS_PER_S:,} rows/s for {lab.sizes.minutes:g} min"
    say(case)
    samples = _samples(lab)
    first, last = first_and_last(samples)
    for when, memory in (("at the beginning", first), ("at the end", last), ("at its highest", max(samples))):
        yield Figure("soak", case, when, "resident memory", "MiB", (memory,))


def _samples(lab: Lab) -> list[float]:
    samples: list[float] = []
    with lab.place() as (outbox, topic):
        binlog = outbox.binlog()
        relay = RelayProcess(with_writeback(_MODE), outbox.settings)
        try:
            relay.start(checkpoint_at(binlog.server, binlog.head))
            write_steadily(
                outbox,
                topic.name,
                Load(_ROWS_PER_S, lab.sizes.minutes * 60),
                each_second=lambda: samples.append(relay.memory_mib()),
            )
            relay.stop()
        finally:
            relay.close()
    return samples


def first_and_last(samples: list[float]) -> tuple[float, float]:
    """Medians of the first and of the last tenth, of what is behind the warm-up."""
    settled = samples[min(_WARM_UP, len(samples) // 2) :]
    part = max(1, len(settled) // _PART)
    return median(settled[:part]), median(settled[-part:])
