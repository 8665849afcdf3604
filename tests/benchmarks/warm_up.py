"""A broker as it is after a while: it is a Java program, which compiles itself while it begins to work.

In its first half minute that takes a whole processor, and each request some times what it takes later. A broker in
production is long past that, and so must be the one that is measured on.
"""

from __future__ import annotations

import time

from confluent_kafka import Consumer, Producer, TopicPartition

from cdc_relay.bench.place import ThrowawayTopic, existing
from cdc_relay.config import KafkaSettings

WARM_UP_S = 40.0
_PARTITIONS = 6
_VALUE = b"x" * 650
_KEYS = 5_000
_HEADERS: list[tuple[str, str | bytes | None]] = [
    ("outbox_id", b"1000000"),
    ("biz_type", b"chat_history_persist"),
    ("created_at", b"x" * 32),
]

#: By turns so long as fast as it goes, with few records unacknowledged as the relay has them; and at a steady pace.
_TURN_S = 2.0
_UNACKNOWLEDGED = 500
_PAUSE_S = 0.001


def warm_up(settings: KafkaSettings, seconds: float = WARM_UP_S) -> None:
    """Write and read records for so long, as the relay and its consumer do."""
    topic = ThrowawayTopic(settings, _PARTITIONS)
    with existing(topic):
        consumer = Consumer(settings.client_properties(group_id="warm-up", fetch_wait_max_ms=50))
        consumer.assign([TopicPartition(topic.name, n, 0) for n in range(_PARTITIONS)])
        producer = Producer(settings.client_properties(linger_ms=0, enable_idempotence=True))
        begun = time.monotonic()
        number = 0
        while (elapsed := time.monotonic() - begun) < seconds:
            is_fast = elapsed // _TURN_S % 2 == 0
            for _ in range(100 if is_fast else 1):
                number += 1
                producer.produce(topic.name, _VALUE, b"%d" % (number % _KEYS), headers=_HEADERS)
            while len(producer) > (_UNACKNOWLEDGED if is_fast else 0):
                producer.poll(_PAUSE_S)
            consumer.consume(1000, 0 if is_fast else _PAUSE_S)
        producer.flush()
        consumer.close()
