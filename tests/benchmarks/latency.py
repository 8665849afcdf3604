"""Latency: from the moment at which the application knows of its commit to the record's arrival at a consumer.

Writer and consumer are processes of their own. The commit is earlier than the application's knowledge of it, and the
record may be faster than the answer to the commit: what is below zero is counted as it is.
"""

from __future__ import annotations

import json
import multiprocessing
import time
import uuid
from dataclasses import dataclass
from multiprocessing.connection import Connection

from confluent_kafka import Consumer, TopicPartition
from sqlalchemy import create_engine

from cdc_relay.binlog.server import server_binlog
from tests.benchmarks.load import Outbox, write_steadily
from tests.benchmarks.relay import RelayProcess, Topic, Variant, checkpoint_at
from tests.benchmarks.servers import PARTITIONS, Servers

#: Left out at the beginning: the first records wait for connections to be made.
_WARM_UP_S = 2.0


@dataclass(frozen=True)
class Latency:
    """Milliseconds."""

    p50: float
    p99: float
    highest: float


def measure(servers: Servers, variant: Variant, *, rows_per_second: int, seconds: float) -> Latency:
    """One relay, one writer, one consumer."""
    outbox = Outbox(servers.mysql_url)
    topic = Topic(servers, f"bench-{uuid.uuid4().hex[:8]}")
    engine = create_engine(outbox.url)
    with engine.connect() as connection:
        binlog = server_binlog(connection)
    engine.dispose()
    relay = RelayProcess(servers, outbox.url, variant, checkpoint_at(binlog.server, binlog.head))
    theirs, ours = multiprocessing.Pipe()
    consumer = multiprocessing.get_context("spawn").Process(
        target=_consume, args=(servers.bootstrap_servers, topic.name, theirs)
    )
    consumer.start()
    theirs.close()  # so that its end is noticed, should it fail
    try:
        ours.recv()
        time.sleep(1.5)
        committed = write_steadily(outbox.url, topic.name, rows_per_second, seconds + _WARM_UP_S)
        relay.require_alive()
        ours.send(len(committed))
        arrived: dict[int, float] = ours.recv()
    finally:
        consumer.join(5)
        consumer.kill()
        relay.stop()
        topic.delete()
        outbox.drop()
    begun = min(committed.values()) + _WARM_UP_S
    waits = sorted((arrived[row] - at) * 1000 for row, at in committed.items() if at > begun)
    return Latency(waits[len(waits) // 2], waits[len(waits) * 99 // 100], waits[-1])


def _consume(bootstrap_servers: str, topic: str, pipe: Connection) -> None:
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "bench", "fetch.wait.max.ms": 50})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    consumer.poll(0.5)
    pipe.send("ready")
    arrived: dict[int, float] = {}
    expected = None
    while expected is None or len(arrived) < expected:
        record = consumer.poll(0.2)
        now = time.time()
        if record is not None and record.error() is None:
            arrived.setdefault(json.loads(record.value())["outbox_id"], now)
        elif expected is None and pipe.poll():
            expected = pipe.recv()
        if expected is None and not len(arrived) % 1000 and pipe.poll():
            expected = pipe.recv()
    pipe.send(arrived)
    consumer.close()
