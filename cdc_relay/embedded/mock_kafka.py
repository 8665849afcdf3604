"""librdkafka's mock broker, for a demo that must start at once."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from confluent_kafka import Producer

from cdc_relay.errors import KafkaUnavailable


class MockKafka:
    """librdkafka's mock broker, inside this process: up in milliseconds, no Java. For demos that say so.

    Consumer groups, idempotence and transactions work, also from other processes. But it keeps only 5 MiB per
    partition and drops older records silently, knows no CreateTopics (topics appear on first use, with four
    partitions), forgets everything when it ends, and cannot be killed and brought back.
    So nothing about delivery is ever claimed on its account.
    """

    name = "kafka"

    def __init__(self) -> None:
        self._producer: Any = None
        self._bootstrap_servers = ""

    @property
    def bootstrap_servers(self) -> str:
        """Raises KafkaUnavailable before the start."""
        if not self._bootstrap_servers:
            raise KafkaUnavailable("the mock broker is not started")
        return self._bootstrap_servers

    def start(self) -> Self:
        """Raises KafkaUnavailable. Does nothing when it runs."""
        if self._producer is None:
            # The mock lives in the client instance that names it, so the producer is kept.
            producer = Producer(
                {
                    "bootstrap.servers": "replaced-by-the-mock",
                    "test.mock.num.brokers": 1,
                    # librdkafka warns at every start that this is a mock.
                    "log_level": 3,
                }
            )
            brokers = producer.list_topics(timeout=10).brokers.values()
            if not brokers:
                raise KafkaUnavailable("librdkafka's mock broker did not come up")
            self._bootstrap_servers = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
            self._producer = producer
        return self

    def close(self) -> None:
        """End it; its records are gone. Safe to call twice."""
        self._producer = None
        self._bootstrap_servers = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
