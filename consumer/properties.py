"""librdkafka properties for the consumer's two clients, from the one set that the user has given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from confluent_kafka import KafkaException

from cdc_relay.config import KafkaSettings
from cdc_relay.errors import ConfigurationError
from cdc_relay.kafka.clients import known_to

Properties = dict[str, Any]

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
        group_protocol="classic",
        enable_auto_commit=False,
        # What is fetched ahead takes memory, in each worker: 64 MB by default. This is a second's work and more.
        queued_max_messages_kbytes=16_384,
        fetch_queue_backoff_ms=20,
        # A topic that is made later, or grows by a partition, is seen after this time; the default is 5 minutes.
        topic_metadata_refresh_interval_ms=10_000,
        # A connection without an answer for so long is made anew; the default is a minute.
        socket_timeout_ms=10_000,
    )
    if str(properties["group.protocol"]).lower() == "classic":  # with the other (KIP-848) the broker shares them out
        properties.setdefault("partition.assignment.strategy", "cooperative-sticky")
    for name in ("enable.auto.commit", "auto.commit.enable"):
        if str(properties.get(name, False)).lower() != "false":
            raise ConfigurationError(
                f"kafka.properties: {name} must stay false, or records are lost when the consumer is killed",
                hint="Remove it; offsets are committed after the database",
            )
    return _QUIET | known_to("consumer", properties)


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
    for alias in ("request.required.acks", "delivery.timeout.ms", "transactional.id"):
        properties.pop(alias, None)
    return _QUIET | known_to("producer", properties)


def admin_properties(settings: KafkaSettings) -> Properties:
    """For the questions asked at the start."""
    return _QUIET | known_to("admin", settings.client_properties(client_id="cdc-consumer-start"))
