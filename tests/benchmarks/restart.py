"""Restart: from the start of the process until the first record of a row that was committed while it was down."""

from __future__ import annotations

import time
from collections.abc import Iterator

from cdc_relay.bench.figures import Figure
from cdc_relay.bench.place import ThrowawayOutbox, ThrowawayTopic
from cdc_relay.bench.relay import RelayProcess, checkpoint_at, with_writeback
from tests.benchmarks.lab import Lab, say, wait_until

#: So that the checkpoint has been saved since.
_REST_S = 1.5

AFTER_A_STOP = "after a stop"
AFTER_A_KILL = "after kill -9"
WITHOUT_A_CHECKPOINT = "without a checkpoint"


def measure(lab: Lab) -> Iterator[Figure]:
    """After each way of being down."""
    found: dict[str, list[float]] = {AFTER_A_STOP: [], AFTER_A_KILL: [], WITHOUT_A_CHECKPOINT: []}
    with lab.place() as (outbox, topic):
        relay = RelayProcess(with_writeback("status"), outbox.settings)
        try:
            binlog = outbox.binlog()
            relay.start(checkpoint_at(binlog.server, binlog.head))
            _first_record(relay, outbox, topic)
            for turn in range(lab.sizes.repeat):
                for way, times in found.items():
                    say(f"{way} ({turn + 1} of {lab.sizes.repeat})")
                    time.sleep(_REST_S)
                    if way == AFTER_A_KILL:
                        relay.kill()
                    else:
                        relay.stop()
                    if way == WITHOUT_A_CHECKPOINT:
                        relay.forget_checkpoint()
                    times.append(_started_again(relay, outbox, topic))
        finally:
            relay.close()
    for way, times in found.items():
        yield Figure("restart", "1 row is waiting", way, "start to first record", "s", tuple(times))


def _started_again(relay: RelayProcess, outbox: ThrowawayOutbox, topic: ThrowawayTopic) -> float:
    topic.mark()
    outbox.fill(topic.name, rows=1)
    relay.start()
    return wait_until(lambda: topic.records() > 0, relay, "the first record") - relay.started_at


def _first_record(relay: RelayProcess, outbox: ThrowawayOutbox, topic: ThrowawayTopic) -> None:
    topic.mark()
    outbox.fill(topic.name, rows=1)
    wait_until(lambda: topic.records() > 0, relay, "the first record")
