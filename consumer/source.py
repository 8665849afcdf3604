"""Batches of records from Kafka, and the offsets back to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka import KafkaError as Reported

from cdc_relay.errors import KafkaError
from cdc_relay.logs import OncePerKind, get_logger
from consumer.delivery import KafkaRecord, Partition
from consumer.kafka_errors import is_final, translate
from consumer.properties import Properties, make_client

#: Seconds that one look for a first record may take; between two looks the program can be stopped.
IDLE_WAIT_S = 0.5
#: Seconds after which a commit of offsets that has failed is tried again. One takes up to 45 s if brokers are away.
COMMIT_AGAIN_AFTER_S = 5.0
#: Waits below this many seconds are slept; to pause the partitions would throw away what was fetched ahead.
SHORT_WAIT_S = 1.0

log = get_logger(__name__)
_troubles = OncePerKind(log, every_s=60.0)


class KafkaSource:
    """A member of the consumer group. Not safe for threads; callbacks come inside ``next_batch`` and ``keep_alive``.

    Partitions may come and go inside these two calls. Records of a partition that has gone are somebody else's: they
    are dropped here, and ``keep_alive`` tells which ones the caller must drop.
    """

    def __init__(
        self,
        properties: Properties,
        topics: Sequence[str],
        *,
        batch_rows: int,
        batch_bytes: int,
        batch_wait_s: float,
        replaced: Callable[[], set[str]],
        stop: threading.Event,
    ) -> None:
        """``batch_wait_s``: the longest wait for a batch to fill once it has a record. ``replaced`` names the topics
        that were deleted and made again since it was asked last. ``stop`` ends every wait."""
        self._replaced = replaced
        self.assignments = 0
        """How often partitions have come: what is known of the table may be out of date when it grows."""
        self._rows, self._bytes, self._wait_s = batch_rows, batch_bytes, batch_wait_s
        self._stop = stop
        self._early: list[KafkaRecord] = []  # received, and not yet handed out
        self._lost: set[Partition] = set()
        self._done: dict[Partition, int] = {}  # next offsets that Kafka does not know yet
        self._retry_at = 0.0  # when a commit that has failed is tried again, on the monotonic clock
        self._is_away = False  # no broker answered to the last commit
        self._is_paused = False
        self._is_stalled = False  # where a partition begins could not be asked, and librdkafka asks only once
        self._failure: KafkaError | None = None
        self._consumer = make_client(
            Consumer, properties | {"error_cb": self._on_error}, logger=logging.getLogger("confluent_kafka.consumer")
        )
        self._topics = list(topics)
        self._subscribe()

    def next_batch(self) -> list[KafkaRecord]:
        """The next records, in the order of their partitions; none when nothing came within ``IDLE_WAIT_S``.

        Raises KafkaError for what waiting does not cure.
        """
        self._resume()
        self._lost.clear()
        if self._is_stalled:
            self._is_stalled = False
            self._join_anew("the offsets to begin at could not be had")
        for topic in self._replaced():
            self._begin_anew(topic)
        if self._done and time.monotonic() >= self._retry_at:
            self._commit_offsets()
        deadline = time.monotonic() + self._wait_s if self._early else None
        size = sum(record.size for record in self._early)
        while len(self._early) < self._rows and size < self._bytes and not self._stop.is_set():
            timeout_s = IDLE_WAIT_S if deadline is None else max(0.0, deadline - time.monotonic())
            record = self._receive(timeout_s)
            if record is None:
                break
            self._early.append(record)
            size += record.size
            if deadline is None:
                deadline = time.monotonic() + self._wait_s
        batch, self._early = self._early, []
        return batch

    def keep_alive(self, seconds: float) -> set[Partition]:
        """Wait while a batch cannot be finished, staying in the group; the partitions lost since ``next_batch``."""
        deadline = time.monotonic() + seconds
        if seconds < SHORT_WAIT_S:
            self._stop.wait(seconds)
            return self._lost
        while not self._stop.is_set() and (left := deadline - time.monotonic()) > 0:
            self._pause()  # again each time: partitions that have come meanwhile are not paused
            record = self._receive(min(left, IDLE_WAIT_S))
            if record is not None:
                self._early.append(record)
        return self._lost

    def commit(self, records: Iterable[KafkaRecord]) -> None:
        """The records are dealt with: tell Kafka, which then delivers what follows them after a restart.

        Where Kafka cannot take it now, it is told again later; until then a restart makes duplicates, no losses.
        """
        for record in records:
            if record.home not in self._lost:
                self._done[record.home] = max(self._done.get(record.home, 0), record.offset + 1)
        self._commit_offsets()

    def lag(self) -> int | None:
        """Records of our partitions that Kafka has and we have not taken yet; None when that is not known."""
        assigned = self._consumer.assignment()
        lag = 0
        for at in self._consumer.position(assigned) if assigned else ():
            _, high = self._consumer.get_watermark_offsets(at, cached=True)
            if at.offset < 0 or high < 0:
                return None
            lag += max(0, high - at.offset)
        return lag + len(self._early)

    @property
    def partitions(self) -> int:
        """How many partitions are ours now."""
        return len(self._consumer.assignment())

    def close(self) -> None:
        """Leave the group, so that others take over at once.

        Offsets are left uncommitted while no broker answers: to try once more would wait for it.
        """
        if self._is_away:
            self._done.clear()
        self._consumer.close()

    def _subscribe(self) -> None:
        self._consumer.subscribe(
            self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _begin_anew(self, topic: str) -> None:
        """Read the new topic of an old name from its beginning; what was read of it before comes twice."""
        log.warning(f"the topic {topic} was made anew; reading it from its beginning", action="topic_replaced")
        self._early = [record for record in self._early if record.topic != topic]
        self._done = {home: offset for home, offset in self._done.items() if home[0] != topic}
        ours = [at.partition for at in self._consumer.assignment() if at.topic == topic]
        try:
            for number in ours:
                self._consumer.seek(TopicPartition(topic, number, OFFSET_BEGINNING))
        except KafkaException as failed:
            # It is not being read, as when it has fewer partitions now. Kafka has forgotten the group's offsets in it.
            self._join_anew(f"the new topic {topic} cannot be read so: {failed.args[0].str()}")
        if not ours:
            # The group may have shared out its partitions while there were none, and nobody has looked since.
            self._join_anew(f"no partition of the new topic {topic} is ours")

    def _join_anew(self, why: str) -> None:
        log.info(f"joining the group anew: {why}", action="join_anew")
        self._consumer.unsubscribe()
        self._subscribe()

    def _receive(self, timeout_s: float) -> KafkaRecord | None:
        """The next record. One at a time: of several taken in one call some may be of before a rebalance that came in
        the middle of it, and would overtake those that are read again after it."""
        try:
            message = self._consumer.poll(timeout_s)
        except KafkaException as failed:
            error = failed.args[0]
            if is_final(error):
                raise translate(error, "reading") from failed
            _troubles.warning(error.name(), f"waiting for Kafka: {error.str()}", action="kafka_wait")
            self._stop.wait(timeout_s)
            return None
        if self._failure is not None:
            raise self._failure
        return None if message is None or self._is_trouble(message) else _record(message)

    def _is_trouble(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return False
        if is_final(error):
            raise translate(error, f"reading {message.topic() or 'the group'}")
        # librdkafka has no code of its own for this one, and such partitions would never be read (its issue 5586).
        self._is_stalled |= "committed offset" in error.str()
        # A topic that is not there, a broker that is away: librdkafka asks again by itself.
        _troubles.warning(
            f"{error.name()} {message.topic()}",
            f"waiting for Kafka: {error.str()}",
            action="kafka_wait",
            topic=message.topic(),
        )
        return True

    def _commit_offsets(self) -> None:
        if not self._done:
            return
        offsets = [TopicPartition(topic, number, offset) for (topic, number), offset in self._done.items()]
        try:
            answers = self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as failed:
            errors = [failed.args[0]]
        else:
            errors = [answer.error for answer in answers if answer.error is not None]
        self._is_away = bool(errors) and errors[0].code() < 0  # librdkafka's own codes: no broker has said anything
        if not errors:
            self._done.clear()
            return
        if is_final(errors[0]):
            raise translate(errors[0], "committing offsets")
        self._retry_at = time.monotonic() + COMMIT_AGAIN_AFTER_S
        _troubles.warning(
            f"commit {errors[0].name()}",
            f"offsets are not committed yet, a restart would read some records again: {errors[0].str()}",
            action="offset_commit_failed",
        )

    def _pause(self) -> None:
        self._is_paused = True
        self._consumer.pause(self._consumer.assignment())

    def _resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._consumer.resume(self._consumer.assignment())

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self.assignments += 1
        for at in partitions:
            self._done.pop((at.topic, at.partition), None)
        log.info("partitions assigned", action="partitions_assigned", partitions=_named(partitions))

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            self._commit_offsets()  # the last moment at which they may be ours
        finally:
            self._forget(partitions)
        log.info("partitions revoked", action="partitions_revoked", partitions=_named(partitions))

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._forget(partitions)
        log.warning(
            "partitions lost: the group went on without this consumer; their records are read again by the new owner",
            action="partitions_lost",
            partitions=_named(partitions),
        )

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        gone = {(at.topic, at.partition) for at in partitions}
        self._lost |= gone
        self._early = [record for record in self._early if record.home not in gone]
        for home in gone:
            self._done.pop(home, None)

    def _on_error(self, error: Reported) -> None:
        if is_final(error):
            self._failure = translate(error, "connecting")
        else:
            _troubles.warning(error.name(), f"waiting for Kafka: {error.str()}", action="kafka_wait")


def _record(message: Message) -> KafkaRecord:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    kind, timestamp_ms = message.timestamp()
    if kind == TIMESTAMP_NOT_AVAILABLE:
        timestamp_ms = 0
    return KafkaRecord(topic, partition, offset, message.key(), message.value(), message.headers, timestamp_ms)


def _named(partitions: Iterable[TopicPartition]) -> str:
    return " ".join(f"{at.topic}[{at.partition}]" for at in partitions)
