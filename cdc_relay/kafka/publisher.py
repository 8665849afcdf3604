"""Records to Kafka: an idempotent producer, and its errors in our terms.

An outage is no error of a row: with no ``message.timeout.ms`` of our own, librdkafka keeps what it was given and goes
on when the brokers are back, in order. What comes back as an error is about the record or its topic.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from threading import Event, Lock
from typing import Any

from confluent_kafka import KafkaError as ErrorCode
from confluent_kafka import KafkaException, Producer

from cdc_relay.config import KafkaSettings
from cdc_relay.errors import ConfigurationError, KafkaUnavailable, PoisonRow, ProducerFatal, RetryableRow, RowError
from cdc_relay.kafka.clients import known_to
from cdc_relay.kafka.limits import TopicLimits
from cdc_relay.kafka.properties import BATCH_BYTES, producer_properties
from cdc_relay.outbox.envelope import Record

#: For what librdkafka says.
_LOGGER = logging.getLogger("cdc_relay.kafka")

#: How the envelope begins; a delivery report carries the record, so this tells its row.
_OUTBOX_ID = re.compile(rb'\{"outbox_id": (\d+)')

#: How long to wait for room in the send queue before looking again.
_FULL_WAIT_S = 0.005

#: How long a topic may take to appear where the cluster makes it by itself, and how long a missing one is believed to
#: be missing.
_TOPIC_APPEARS_S = 0.5
_TOPIC_MISSING_FOR_S = 5.0
_REMEMBERED_MISSING = 10_000

_SMALLEST_BATCH_BYTES = 1_000

#: How long the first record of a topic waits to hear how much the topic takes.
_LIMIT_TOLD_S = 0.2
_LIMIT_TOLD_AGAIN_S = 5.0

_GIVEN_UP = frozenset(
    {
        ErrorCode._PURGE_QUEUE,
        ErrorCode._PURGE_INFLIGHT,
        ErrorCode._FATAL,
        ErrorCode._DESTROY,
        # Only when the user has set a message.timeout.ms: still an outage and no fault of the row (P6).
        ErrorCode._MSG_TIMED_OUT,
        ErrorCode._TIMED_OUT,
        ErrorCode._TRANSPORT,
        ErrorCode.REQUEST_TIMED_OUT,
        ErrorCode.NOT_ENOUGH_REPLICAS,
        ErrorCode.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        ErrorCode.NOT_LEADER_FOR_PARTITION,
        ErrorCode.LEADER_NOT_AVAILABLE,
    }
)
_POISON = {
    ErrorCode.INVALID_RECORD: "the broker refuses the record",
    ErrorCode.TOPIC_EXCEPTION: "the topic's name is not legal",
}
_RETRYABLE = {
    ErrorCode._UNKNOWN_TOPIC: "the topic does not exist and is not created by itself",
    ErrorCode.UNKNOWN_TOPIC_OR_PART: "the topic does not exist and is not created by itself",
    ErrorCode._UNKNOWN_PARTITION: "the topic has lost the partition",
    ErrorCode.TOPIC_AUTHORIZATION_FAILED: "this client may not write to the topic",
}

_FATAL_HINTS = {
    ErrorCode.CLUSTER_AUTHORIZATION_FAILED: "Allow this user to WRITE the topics; brokers before Kafka 2.8 want "
    "IDEMPOTENT_WRITE on the cluster too",
}


class KafkaPublisher:
    """Implements the ``Publisher`` port of ``delivery.py``."""

    def __init__(
        self, settings: KafkaSettings, *, logger: logging.Logger = _LOGGER, batch_bytes: int = BATCH_BYTES
    ) -> None:
        """Begin to connect; nothing here waits for it. ``batch_bytes``: what the publisher before this one has
        learned, see there. Raises ConfigurationError for properties that we or librdkafka refuse."""
        self._fatal: str | None = None
        self._hint: str | None = None
        self._servers = settings.bootstrap_servers
        self.topics: set[str] = set()  # of the port
        self._missing: dict[str, tuple[float, str]] = {}  # until when that is believed, and why
        self._closing = Event()
        self._polling = Lock()
        self.brokers_down = False
        """Whether no broker could be reached when that was heard last; for health, not for decisions."""
        properties = producer_properties(settings, batch_bytes=batch_bytes)
        self.batch_bytes: int = properties["batch.size"]
        """Bytes of records sent together at most. A broker refuses a whole batch that is larger than its topic takes,
        so a publisher that meets such a topic fails, and the next one must be made with this number."""
        asking = known_to("admin", settings.client_properties(client_id="cdc-relay"))
        self._limit_sources = TopicLimits(asking, logger=logger)
        try:
            self._producer = Producer(properties | {"error_cb": self._on_error}, logger=logger)
        except KafkaException as error:
            raise ConfigurationError(f"kafka.properties: {error.args[0].str()}") from error
        self.produce: Callable[..., None] = self._producer.produce

    def publish(self, record: Record, report: Callable[[Any, Any], None]) -> None:
        """See Publisher."""
        topic, key, value, headers = record
        if topic not in self.topics:
            self._require_topic(topic)
        while True:
            try:
                self.produce(topic, value, key or None, headers=headers, on_delivery=report)
                return
            except BufferError:
                # Full: the polling thread makes room as Kafka answers.
                if self._closing.wait(_FULL_WAIT_S):
                    raise KafkaUnavailable("the send queue stayed full until the stop") from None
                self.raise_if_fatal()
            except KafkaException as error:
                raise self._refusal(error.args[0], record) from error

    def outcome(self, error: Any, message: Any) -> tuple[int, RowError | None]:
        """See Publisher."""
        value = message.value() or b""
        found = _OUTBOX_ID.match(value)
        row_id = int(found[1]) if found else 0
        if error.fatal():
            self._fail(error)
        if error.fatal() or error.code() in _GIVEN_UP or not row_id:  # of no row: none may count as published for it
            return row_id, None
        topic = message.topic() or ""
        if error.code() == ErrorCode.MSG_SIZE_TOO_LARGE:
            return row_id, self._too_large(topic, len(value))
        if error.code() in _RETRYABLE:
            # Until this row holds its key back, nothing else may go to the topic, though it be mended meanwhile.
            self.topics.discard(topic)
            self._missing[topic] = time.monotonic() + _TOPIC_MISSING_FOR_S, _RETRYABLE[error.code()]
        return row_id, _row_error(error, topic, len(value))

    def poll(self, timeout_s: float) -> int:
        """See Publisher."""
        if not self._polling.acquire(blocking=timeout_s > 0):
            return 0
        try:
            return int(self._producer.poll(timeout_s))
        except KafkaException as error:  # how the library tells of a fatal error, beside the callback
            reported = error.args[0]
            if not reported.fatal():
                raise KafkaUnavailable(f"the Kafka producer reports {reported.str()}") from error
            self._fail(reported)
            return 0
        finally:
            self._polling.release()

    @property
    def failed(self) -> bool:
        """Whether the producer has failed for good."""
        return self._fatal is not None

    def raise_if_fatal(self) -> None:
        """Raise ProducerFatal when the producer can take no more records."""
        if self._fatal is not None:
            raise ProducerFatal(f"the Kafka producer has failed for good: {self._fatal}", hint=self._hint)

    def probe(self) -> None:
        """Find out whether brokers that were down are back; waits a moment for their answer."""
        try:
            self._producer.list_topics(timeout=0.5)
            self.brokers_down = False
        except KafkaException:
            pass  # still down

    @property
    def in_flight(self) -> int:
        """Records and reports that are not dealt with yet."""
        return len(self._producer)

    def require_broker(self, timeout_s: float) -> None:
        """Raise KafkaUnavailable when no broker answers within ``timeout_s``."""
        try:
            self._producer.list_topics(timeout=timeout_s)
        except KafkaException as error:
            raise KafkaUnavailable(
                f"no Kafka broker answers at {self._servers}: {error.args[0].str()}",
                hint="check kafka.bootstrap_servers, and that the brokers' advertised listeners can be reached",
            ) from error

    def close(self) -> None:
        """Give up what is not answered yet; its rows stay pending in the table."""
        self._closing.set()
        self._producer.purge()
        try:
            self.poll(0)
        except KafkaUnavailable:
            pass  # what it holds is given up anyway

    def _require_topic(self, topic: str) -> None:
        """Raise RetryableRow unless the cluster has the topic, or makes it when it is asked for it.

        Asked before the first record, and not left to the producer: that would find out half a minute later, when
        later rows of the key are on their way to other topics. Waits while Kafka is away.
        """
        until, why = self._missing.get(topic, (0.0, ""))
        if until < time.monotonic():
            deadline = time.monotonic() + _TOPIC_APPEARS_S
            while time.monotonic() < deadline:
                answer = self._ask_for_topic(topic)
                if answer is None:  # Kafka is away: an outage is not a missing topic
                    deadline = time.monotonic() + _TOPIC_APPEARS_S
                elif not answer:
                    self._learn_limit(topic, _LIMIT_TOLD_S)
                    self.topics.add(topic)
                    self._missing.pop(topic, None)
                    return
                else:
                    why = answer
                if self._closing.wait(_FULL_WAIT_S * 10):
                    raise KafkaUnavailable("Kafka was away until the stop")
                self.raise_if_fatal()
            if len(self._missing) > _REMEMBERED_MISSING:
                self._missing.clear()
            self._missing[topic] = time.monotonic() + _TOPIC_MISSING_FOR_S, why
        raise RetryableRow(f"Kafka has no topic {topic!r} for us: {why}")

    def _ask_for_topic(self, topic: str) -> str | None:
        """Why the topic cannot be had; nothing where it is there, and None when Kafka is away."""
        try:
            known = self._producer.list_topics(topic, timeout=1.0).topics.get(topic)
        except KafkaException as error:
            if error.args[0].code() in _GIVEN_UP or error.args[0].retriable():
                return None
            raise RetryableRow(f"Kafka refuses to tell of topic {topic!r}: {error.args[0].str()}") from error
        if known is not None and known.error is None:
            return ""
        refused = known is not None and known.error.code() == ErrorCode.TOPIC_AUTHORIZATION_FAILED
        return _RETRYABLE[ErrorCode.TOPIC_AUTHORIZATION_FAILED if refused else ErrorCode._UNKNOWN_TOPIC]

    def _learn_limit(self, topic: str, wait_s: float) -> None:
        """Ask what the topic takes. Raises ProducerFatal when that is less than the batches that are sent."""
        limit = self._limit_sources.ask(topic, wait_s)
        if limit is not None and limit < self.batch_bytes:
            self._need_batches_of(limit, topic)
            self.raise_if_fatal()

    def _too_large(self, topic: str, size: int) -> RowError | None:
        """What a refusal for its size says of a record; None when its batch may be at fault and not the record."""
        limit = self._limit_sources.ask(topic, _LIMIT_TOLD_AGAIN_S)
        if size > (limit or self.batch_bytes) or self.batch_bytes <= (limit or _SMALLEST_BATCH_BYTES):
            return PoisonRow(_too_large(topic, size, limit))
        self._need_batches_of(limit or self.batch_bytes // 4, topic)
        self._producer.purge()  # or later records of the same keys would be sent before this batch comes again
        return None

    def _need_batches_of(self, size: int, topic: str) -> None:
        self.batch_bytes = max(_SMALLEST_BATCH_BYTES, size)
        self._fatal = f"the topic {topic!r} takes no batches so large, so batches of {self.batch_bytes} bytes are sent"

    def _on_error(self, error: ErrorCode) -> None:
        if error.fatal():
            self._fail(error)
        elif error.code() == ErrorCode._ALL_BROKERS_DOWN:
            self.brokers_down = True

    def _fail(self, error: ErrorCode) -> None:
        self._fatal, self._hint = error.str(), _FATAL_HINTS.get(error.code())

    def _refusal(self, error: ErrorCode, record: Record) -> RowError | ProducerFatal:
        if error.fatal() or error.code() == ErrorCode._FATAL:
            self._fail(error)
            return ProducerFatal(f"the Kafka producer has failed for good: {self._fatal}", hint=self._hint)
        return _row_error(error, record.topic, len(record.value))


def _too_large(topic: str, size: int, limit: int | None) -> str:
    takes = f"takes {limit} bytes" if limit is not None else "takes no such size"
    return f"Kafka refuses the record of {size} bytes: the topic {topic!r} {takes} (max.message.bytes)"


def _row_error(error: ErrorCode, topic: str | None, size: int) -> RowError:
    code = error.code()
    words = f"Kafka refuses the record ({error.name()}, topic {topic!r}, {size} bytes)"
    if code in _POISON:
        return PoisonRow(f"{words}: {_POISON[code]}")
    return RetryableRow(f"{words}: {_RETRYABLE.get(code, error.str())}")
