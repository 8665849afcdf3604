"""Which of librdkafka's properties are for which of its clients.

A user gives one set of them for all clients of both programs. Each warns of those that are another's, or refuses them.
"""

from __future__ import annotations

from typing import Any, Literal

Client = Literal["producer", "consumer", "admin"]

#: librdkafka's CONFIGURATION.md, column C/P: P.
_PRODUCER_NAMES = """
    acks request.required.acks request.timeout.ms message.timeout.ms delivery.timeout.ms queuing.strategy partitioner
    partitioner_cb msg_order_cmp compression.codec compression.type compression.level produce.offset.report
    transactional.id transaction.timeout.ms enable.idempotence enable.gapless.guarantee queue.buffering.max.messages
    queue.buffering.max.kbytes queue.buffering.max.ms linger.ms message.send.max.retries retries
    queue.buffering.backpressure.threshold batch.num.messages batch.size delivery.report.only.error dr_cb dr_msg_cb
    sticky.partitioning.linger.ms
"""
#: The same column: C.
_CONSUMER_NAMES = """
    group.id group.instance.id group.protocol group.protocol.type group.remote.assignor session.timeout.ms
    heartbeat.interval.ms partition.assignment.strategy coordinator.query.interval.ms max.poll.interval.ms
    enable.auto.commit auto.commit.enable auto.commit.interval.ms enable.auto.offset.store queued.min.messages
    queued.max.messages.kbytes fetch.wait.max.ms fetch.queue.backoff.ms fetch.message.max.bytes
    max.partition.fetch.bytes fetch.max.bytes fetch.min.bytes fetch.error.backoff.ms offset.store.method
    offset.store.path offset.store.sync.interval.ms isolation.level auto.offset.reset enable.partition.eof check.crcs
    consume.callback.max.messages allow.auto.create.topics
"""
_PRODUCERS = frozenset(_PRODUCER_NAMES.split())
_CONSUMERS = frozenset(_CONSUMER_NAMES.split())
_OTHERS: dict[Client, frozenset[str]] = {
    "producer": _CONSUMERS,
    "consumer": _PRODUCERS,
    "admin": _CONSUMERS | _PRODUCERS,
}


def known_to(client: Client, properties: dict[str, Any]) -> dict[str, Any]:
    """Those of ``properties`` that are not for other kinds of client only."""
    others = _OTHERS[client]
    return {name: value for name, value in properties.items() if name not in others}
