"""How many second copies a ``kill -9`` in the middle of a catch-up makes."""

from __future__ import annotations

import time
from collections.abc import Iterator

from cdc_relay.bench.catchup import FilledOutbox
from cdc_relay.bench.figures import Figure
from cdc_relay.bench.relay import MeasurementFailed, RelayProcess, Variant, with_writeback
from tests.benchmarks.lab import Lab, renew, wait_until

#: When nothing has come for so long after all rows have, nothing will.
_QUIET_S = 3.0


def measure(lab: Lab) -> Iterator[Figure]:
    """In each mode."""
    with lab.filled(lab.sizes.rows) as filled:
        variants = [with_writeback(mode) for mode in lab.sizes.modes]
        runs = lab.in_turn(variants, lambda variant: float(_once(filled, variant)))
        for name, counts in runs.items():
            case = f"{lab.sizes.rows:,} rows, killed after half of them"
            yield Figure("duplicates", case, name, "second copies", "records", tuple(counts))


def _once(filled: FilledOutbox, variant: Variant) -> int:
    renew(filled.outbox)
    filled.topic.mark()
    relay = RelayProcess(variant, filled.outbox.settings)
    try:
        relay.start(filled.checkpoint)
        wait_until(lambda: filled.topic.records() >= filled.rows // 2, relay, "half of the records")
        relay.kill()
        if filled.topic.records() >= filled.rows:
            raise MeasurementFailed("all records were there before the kill: more rows are needed (--rows)")
        relay.start()
        wait_until(lambda: filled.topic.records() >= filled.rows, relay, "all records")
        return _quiet(filled, relay) - filled.rows
    finally:
        relay.close()


def _quiet(filled: FilledOutbox, relay: RelayProcess) -> int:
    """How many records there are when no more come; where rows are marked only when all are."""
    if relay.settings.writeback.mode != "none":
        wait_until(lambda: filled.outbox.first_left() is None, relay, "every row is marked")
    records, since = filled.topic.records(), time.monotonic()
    while time.monotonic() - since < _QUIET_S:
        time.sleep(0.1)
        relay.require_alive()
        now = filled.topic.records()
        if now != records:
            records, since = now, time.monotonic()
    return records
