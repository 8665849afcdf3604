"""Records without a usable row are kept in ``<topic>.dlq``: their bytes as they were, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError as Reported
from confluent_kafka import KafkaException, Producer

from cdc_relay.errors import KafkaUnavailable
from cdc_relay.logs import get_logger
from cdc_relay.outbox.backoff import cut_error
from cdc_relay.outbox.clock import utc_now
from consumer.delivery import DeadLetter
from consumer.kafka_errors import translate
from consumer.properties import Properties, make_client
from consumer.topics import dead_letter_topic

#: Seconds within which Kafka must acknowledge before the batch is taken up anew.
ACK_TIMEOUT_S = 10.0

log = get_logger(__name__)


class DeadLetterTopics:
    """Sends dead letters. Key, value and headers are those of the record; these headers are added:

    ``dlq_reason``, ``dlq_topic``, ``dlq_partition``, ``dlq_offset`` and ``dlq_at`` (RFC 3339, UTC).
    """

    def __init__(self, properties: Properties, suffix: str, on_sent: Callable[[int], None]) -> None:
        """``on_sent`` is told how many were acknowledged."""
        self._on_sent = on_sent
        self._properties = properties
        self._suffix = suffix
        # Made when the first dead letter comes, which in most programs is never.
        self._producer: Any = None

    def send(self, letters: Sequence[DeadLetter]) -> None:
        """Return once Kafka has acknowledged all; raise KafkaUnavailable or KafkaError when it has not.

        After an error some may have been acknowledged: to send all again makes copies, to go on loses records.
        """
        if not letters:
            return
        if self._producer is None:
            self._producer = make_client(Producer, self._properties)
        failures: list[Reported] = []
        acknowledged = 0

        def report(error: Reported | None, _: object) -> None:
            nonlocal acknowledged
            if error is None:
                acknowledged += 1
            else:
                failures.append(error)

        try:
            for letter in letters:
                self._produce(letter, report)
            self._producer.flush(ACK_TIMEOUT_S * 1.5)
        except KafkaException as failed:
            self._give_up()
            raise translate(failed.args[0], "writing dead letters") from failed
        self._on_sent(acknowledged)
        if acknowledged == len(letters):
            return
        self._give_up()
        topic = dead_letter_topic(letters[0].record.topic, self._suffix)
        if failures:
            raise translate(failures[0], f"writing dead letters to {topic}")
        raise KafkaUnavailable(f"{len(letters) - acknowledged} dead letters for {topic} were not acknowledged in time")

    def close(self) -> None:
        """Safe to call twice. Nothing is left to be sent: ``send`` waits for its records."""
        self._give_up()

    def _produce(self, letter: DeadLetter, report: Any) -> None:
        record = letter.record
        headers = [
            *(record.read_headers() or ()),
            ("dlq_reason", cut_error(letter.reason).encode()),
            ("dlq_topic", record.topic.encode()),
            ("dlq_partition", b"%d" % record.partition),
            ("dlq_offset", b"%d" % record.offset),
            ("dlq_at", utc_now().isoformat().encode()),
        ]
        topic = dead_letter_topic(record.topic, self._suffix)
        while True:
            try:
                self._producer.produce(topic, record.value, record.key, headers=headers, on_delivery=report)
                return
            except BufferError:
                if not self._producer.poll(ACK_TIMEOUT_S):
                    raise KafkaUnavailable(f"dead letters for {topic} are not acknowledged") from None

    def _give_up(self) -> None:
        """Drop the producer with all it holds: the next one begins clean, also after a fatal error."""
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(1.0)
            self._producer = None
