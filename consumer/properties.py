"""librdkafka properties for the consumer's two clients, from the one set that the user has given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from confluent_kafka import KafkaException

from cdc_relay.config import KafkaSettings
from cdc_relay.errors import ConfigurationError

Properties = dict[str, Any]

#: librdkafka's CONFIGURATION.md, column C/P: P. The user's properties serve the relay's producer too, and a consumer
#: that meets these warns about each on stderr.
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
_PRODUCER_ONLY = frozenset(_PRODUCER_NAMES.split())
_CONSUMER_ONLY = frozenset(_CONSUMER_NAMES.split())
#: While the brokers are away librdkafka writes 20 lines a second; its error callback tells us the same.
_QUIET: Properties = {"log_level": 2}

Client = TypeVar("Client")


def make_client(kind: Callable[..., Client], properties: Properties, **options: Any) -> Client:
    """A client of librdkafka; raises ConfigurationError for properties that it does not take."""
    try:
        return kind(properties, **options)
    except KafkaException as failed:
        raise ConfigurationError(f"kafka.properties: {failed.args[0].str()}") from failed


def consumer_properties(settings: KafkaSettings, group_id: str) -> Properties:
    """For the consumer. Raises ConfigurationError for what would let an offset move ahead of the database."""
    properties = settings.client_properties(
        group_id=group_id,
        client_id="cdc-consumer",
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        partition_assignment_strategy="cooperative-sticky",
        enable_auto_commit=False,
        # A topic that is made later, or grows by a partition, is seen after this time; the default is 5 minutes.
        topic_metadata_refresh_interval_ms=10_000,
        # A connection without an answer for so long is made anew; the default is a minute.
        socket_timeout_ms=10_000,
    )
    for name in ("enable.auto.commit", "auto.commit.enable"):
        if str(properties.get(name, False)).lower() != "false":
            raise ConfigurationError(
                f"kafka.properties: {name} must stay false, or records are lost when the consumer is killed",
                hint="Remove it; offsets are committed after the database",
            )
    return _QUIET | {name: value for name, value in properties.items() if name not in _PRODUCER_ONLY}


def member_properties(properties: Properties, number: int) -> Properties:
    """For member ``number`` of those that one program has in the group, from what ``consumer_properties`` gives."""
    instance = properties.get("group.instance.id")
    if instance is None:
        return properties
    return properties | {"group.instance.id": f"{instance}-{number}"}  # a name that two have shuts one of them out


def producer_properties(settings: KafkaSettings, *, timeout_s: float) -> Properties:
    """For the producer of dead letters: each is acknowledged by all in-sync replicas, or fails after ``timeout_s``."""
    properties = settings.client_properties(
        client_id="cdc-consumer-dead-letters",
        compression_type="lz4",  # the original bytes and the reason must fit where the original fitted
        partitioner="murmur2_random",
    )
    properties |= {
        "acks": "all",
        "enable.idempotence": True,
        "message.timeout.ms": int(timeout_s * 1000),
        # The broker decides what is too large; librdkafka's own limit of 1 MB would refuse what the broker takes.
        "message.max.bytes": 1_000_000_000,
    }
    aliases = ("request.required.acks", "delivery.timeout.ms", "transactional.id")
    unwanted = _CONSUMER_ONLY.union(aliases)
    return _QUIET | {name: value for name, value in properties.items() if name not in unwanted}


def admin_properties(settings: KafkaSettings) -> Properties:
    """For the questions asked at the start."""
    properties = settings.client_properties(client_id="cdc-consumer-start")
    unwanted = _CONSUMER_ONLY | _PRODUCER_ONLY
    return _QUIET | {name: value for name, value in properties.items() if name not in unwanted}
