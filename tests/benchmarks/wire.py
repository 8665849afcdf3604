"""What server and broker allow at most: the binlog received and thrown away, records produced without a binlog."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from cdc_relay.bench.catchup import FilledOutbox
from cdc_relay.bench.figures import Figure
from cdc_relay.binlog.connection import DumpConnection
from cdc_relay.kafka.publisher import KafkaPublisher
from cdc_relay.outbox.envelope import Record
from tests.benchmarks.lab import Lab, plural, say

_SERVER_ID = 4_000_000_001
_KEYS = 5_000
_VALUE = b'{"outbox_id": 1, "biz_type": "chat_history_persist", "payload": "' + b"x" * 600 + b'"}'


def measure(lab: Lab) -> Iterator[Figure]:
    """Each alone, in rows a second."""
    for rows_each in lab.sizes.rows_each:
        case = f"{plural(rows_each, 'row')} a transaction"
        with lab.filled(lab.sizes.rows, rows_each) as filled:
            received = []
            for _ in range(lab.sizes.repeat):
                say(f"{case}, the binlog alone")
                received.append(lab.sizes.rows / _receive(filled))
            yield Figure("wire", case, "the binlog alone", "throughput", "rows/s", tuple(received))
    with lab.place() as (outbox, topic):
        produced = []
        for _ in range(lab.sizes.repeat):
            say("the producer alone")
            produced.append(
                lab.sizes.rows / _produce(KafkaPublisher(outbox.settings.kafka), topic.name, lab.sizes.rows)
            )
        yield Figure("wire", "600 B a record", "the producer alone", "throughput", "rows/s", tuple(produced))


def _receive(filled: FilledOutbox) -> float:
    """Seconds from the first byte of the rows to the last."""
    settings, start = filled.outbox.settings, filled.checkpoint
    dump = DumpConnection(settings.database, settings.tail, _SERVER_ID, start.position, None)
    try:
        left = filled.binlog_bytes - len(dump.receive())
        began = time.perf_counter()
        while left > 0:
            left -= len(dump.receive())
        return time.perf_counter() - began
    finally:
        dump.close()


def _produce(publisher: KafkaPublisher, topic: str, rows: int) -> float:
    """Seconds from the first record to the last acknowledgement."""
    left = rows

    def report(error: Any, _: Any) -> None:
        nonlocal left
        assert error is None, str(error)
        left -= 1

    publisher.publish(Record(topic, b"0", _VALUE, []), report)  # makes the topic known
    began = time.perf_counter()
    for number in range(1, rows):
        try:
            publisher.produce(topic, _VALUE, b"%d" % (number % _KEYS), -1, report, None, 0, [])
        except BufferError:
            publisher.publish(Record(topic, b"%d" % (number % _KEYS), _VALUE, []), report)
        if number % 200 == 0:
            publisher.poll(0)
    while left:
        publisher.poll(0.1)
    seconds = time.perf_counter() - began
    publisher.close()
    return seconds
