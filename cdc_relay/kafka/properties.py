"""librdkafka properties of the relay's producer: ours, the user's above them, and what may not be set."""

from __future__ import annotations

from typing import Any

from cdc_relay.config import KafkaSettings
from cdc_relay.errors import ConfigurationError
from cdc_relay.kafka.clients import known_to

#: Bytes of records sent together, where the topics take so many; their own default is 1,048,588.
BATCH_BYTES = 1_000_000

#: What the promise rests on and librdkafka does not refuse by itself: the value that it must keep, and what would
#: happen with another one. With idempotence it refuses the rest (acks, retries, max.in.flight).
_FIXED = {
    "enable.idempotence": ("true", "records get lost, doubled or out of order when a connection breaks"),
    "delivery.report.only.error": ("false", "the relay is not told what has arrived, and waits for ever"),
}
#: Likewise, and it must not be set at all.
_FORBIDDEN = {
    "transactional.id": "the relay does not send in Kafka's transactions, and such a producer sends nothing else",
}


def producer_properties(settings: KafkaSettings, *, batch_bytes: int = BATCH_BYTES) -> dict[str, Any]:
    """For the producer. Raises ConfigurationError for what would break the promise."""
    for name, (value, otherwise) in _FIXED.items():
        found = settings.properties.get(name, value)
        if str(found).lower() != value:
            raise ConfigurationError(
                f"kafka.properties: {name} is {found!r} and must be {value}: otherwise {otherwise}", hint="Remove it"
            )
    for name, otherwise in _FORBIDDEN.items():
        if settings.properties.get(name):
            raise ConfigurationError(f"kafka.properties: {name} must not be set: {otherwise}", hint="Remove it")
    properties = settings.client_properties(
        client_id="cdc-relay",
        acks="all",
        enable_idempotence=True,
        # The same key goes to the same partition as from Java and Go clients; records without a key are spread.
        partitioner="murmur2_random",
        # Under load batches fill while the one before is on its way; waiting would only cost latency.
        linger_ms=0,
        message_timeout_ms=0,
        # What a broker takes is the broker's decision; its answer makes the row dead with the limit's name.
        message_max_bytes=1_000_000_000,
        batch_size=BATCH_BYTES,
        # The relay bounds what is in flight by itself; these only have to be larger.
        queue_buffering_max_messages=1_000_000,
        queue_buffering_max_kbytes=2_097_151,
        reconnect_backoff_max_ms=2_000,
        # A connection without an answer for so long is made anew; the broker must give up its wait for replicas
        # before. Of what is sent again the broker keeps one.
        socket_timeout_ms=10_000,
        request_timeout_ms=8_000,
        topic_metadata_refresh_interval_ms=60_000,
        log_connection_close=False,
    )
    properties["batch.size"] = min(int(properties["batch.size"]), batch_bytes)
    return known_to("producer", properties)
