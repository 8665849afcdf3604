"""An independent reader of the topic: what arrived in Kafka, when, and in which order."""

from __future__ import annotations

import time
from threading import Event, Thread
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition
from confluent_kafka import KafkaError as ErrorCode

from cdc_relay.errors import KafkaError
from cdc_relay.outbox.envelope import MalformedEnvelope, decode

_ANSWER_S = 10.0


class Seen(NamedTuple):
    """A record as it was read."""

    outbox_id: int
    """0 when the value is no envelope."""
    key: str
    arrived_at: float
    """Seconds since 1970."""


class Observer:
    """Reads every partition of ``topic`` from the beginning, in a thread, in no consumer group."""

    def __init__(self, bootstrap_servers: str, topic: str, *, wait_ms: int) -> None:
        """``wait_ms``: how long the broker may wait for a record before it answers that there is none."""
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "cdc-relay-demo-observer",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "allow.auto.create.topics": True,
                "fetch.wait.max.ms": wait_ms,
                "client.id": "cdc-relay-demo-observer",
                "log_level": 0,
            }
        )
        partitions = _ask_for(topic, self._consumer)
        self._partitions = [TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions]
        self._at_end: set[int] = set()
        self._moved_at = time.monotonic()
        self._stop = Event()
        self._thread = Thread(target=self._run, name="observer", daemon=True)
        self.seen: list[Seen] = []
        """In the order of each partition."""
        self.arrived_at: dict[int, float] = {}
        """When a row's first record arrived, by outbox id."""
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Read on until ``close``."""
        self._consumer.assign(self._partitions)
        self._thread.start()

    def close(self) -> None:
        """Read no more. Safe to call twice."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
            self._consumer.close()

    def has_read_everything(self, quiet_s: float) -> bool:
        """Whether every partition was read to its end and nothing has come for ``quiet_s``."""
        # The ends are not asked for: the mock broker may leave such a question unanswered while it is read from.
        at_rest = time.monotonic() - self._moved_at > quiet_s
        return at_rest and self._at_end == {partition.partition for partition in self._partitions}

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                # One with patience, then what is there already: consume() alone would wait for a batch to fill.
                first = self._consumer.poll(0.1)
                if first is not None:
                    rest = self._consumer.consume(1000, timeout=0)
                    self._take([first, *rest], time.time())
        except Exception as error:  # noqa: BLE001  # shown by whoever started us
            self.failure = error

    def _take(self, messages: list[Any], now: float) -> None:
        for message in messages:
            error = message.error()
            if error is None:
                self._note(message, now)
            elif error.code() == ErrorCode._PARTITION_EOF:
                self._at_end.add(message.partition())
            else:
                raise KafkaError(f"the observer cannot read: {error.str()}")

    def _note(self, message: Any, now: float) -> None:
        try:
            outbox_id = decode(message.value()).outbox_id
        except MalformedEnvelope:
            outbox_id = 0
        self._at_end.discard(message.partition())
        self._moved_at = time.monotonic()
        self.seen.append(Seen(outbox_id, (message.key() or b"").decode("utf-8", "replace"), now))
        self.arrived_at.setdefault(outbox_id, now)


def _ask_for(topic: str, client: Any) -> list[int]:
    """Its partitions."""
    try:
        return list(client.list_topics(topic, timeout=_ANSWER_S).topics[topic].partitions)
    except KafkaException as error:
        raise KafkaError(f"Kafka does not tell of the topic {topic}: {error.args[0].str()}") from error
