"""What is asked of Kafka before the start: is it there, and are the topics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicCollection, TopicPartition
from confluent_kafka import KafkaError as Reported
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclOperation
from confluent_kafka.admin._metadata import ClusterMetadata
from confluent_kafka.cimpl import NewTopic

from cdc_relay.errors import ConfigurationError, KafkaError
from cdc_relay.kafka.rights import grants, named, topics_without
from cdc_relay.logs import get_logger
from cdc_relay.outbox.envelope import is_legal_topic
from consumer.kafka_errors import is_final, translate
from consumer.properties import Properties, make_client

#: Seconds within which a broker must answer at the start.
ANSWER_TIMEOUT_S = 10.0

#: Seconds between two looks at who the topics are.
LOOK_EVERY_S = 5.0

log = get_logger(__name__)


def dead_letter_topic(topic: str, suffix: str) -> str:
    """Where the records of ``topic`` go that have no usable row."""
    return topic + suffix


def check_names(topics: Sequence[str], suffix: str) -> None:
    """Raises ConfigurationError unless each topic and its dead-letter topic can exist."""
    if not topics:
        raise ConfigurationError(
            "consumer.topics is required: the topics to read",
            hint='Use --topics, CDC_CONSUMER__TOPICS=["chat-history"] or the TOML file',
        )
    for topic in topics:
        for name in (topic, dead_letter_topic(topic, suffix)):
            if not is_legal_topic(name):
                raise ConfigurationError(
                    f"consumer.topics: {name!r:.80} is no legal Kafka topic: 1 to 249 of a-z A-Z 0-9 . _ -"
                )


def prepare(properties: Properties, topics: Sequence[str], suffix: str, *, create: bool) -> None:
    """Wait for a broker, and see to it that each topic and its dead-letter topic are there and may be used.

    Raises KafkaError when no broker answers in time, when this account may not read a topic or write its dead letters,
    or when one is missing and is not, or cannot be, made.
    """
    said: list[Reported] = []
    client = make_client(AdminClient, properties | {"error_cb": said.append})
    known = _what_is_there(client, said, str(properties.get("bootstrap.servers")))
    wanted = dict.fromkeys(topics, AclOperation.READ)
    wanted |= dict.fromkeys((dead_letter_topic(topic, suffix) for topic in topics), AclOperation.WRITE)
    without = topics_without(client, known, wanted)
    if without:
        raise KafkaError(
            f"this account may not do in Kafka what it must: {named(without)}", hint=grants(without, properties)
        )
    missing = [name for name in wanted if name not in known.topics]
    if not missing:
        return
    if not create:
        raise KafkaError(
            f"missing in Kafka: topic {', topic '.join(missing)}",
            hint="Create what is missing, or set consumer.create_topics to true",
        )
    _create(client, missing)


class TopicIdentities:
    """Notices that a topic was deleted and made again under its name.

    librdkafka goes on reading where the old topic was left and so passes over the first records of the new one.
    """

    def __init__(self, properties: Properties, topics: Sequence[str]) -> None:
        self._client = make_client(AdminClient, properties)
        self._topics = TopicCollection(list(topics))
        self._known: dict[str, str] = {}
        self._asked: dict[str, Future[Any]] = {}
        self._asked_at = 0.0

    def replaced(self) -> set[str]:
        """The topics that are others than when they were last looked at. Asks Kafka now and then; never waits."""
        replaced = set()
        for name, answer in self._asked.items():
            if not answer.done() or answer.exception() is not None:  # away, or not there just now
                continue
            identity = str(answer.result().topic_id)
            if self._known.setdefault(name, identity) != identity:
                self._known[name] = identity
                replaced.add(name)
        if all(answer.done() for answer in self._asked.values()):
            self._asked = {}
            if time.monotonic() - self._asked_at >= LOOK_EVERY_S:
                self._asked_at = time.monotonic()
                self._asked = self._client.describe_topics(self._topics, request_timeout=ANSWER_TIMEOUT_S)
        return replaced


def check_group(properties: Properties, topic: str) -> None:
    """Ask for the group's offsets, without joining it. Raises KafkaError when this account may not use the group."""
    consumer = make_client(Consumer, properties)
    try:
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                consumer.committed([TopicPartition(topic, 0)], timeout=1.0)
                return
            except KafkaException as failed:
                error = failed.args[0]
            reported = consumer.poll(0)  # what the coordinator said comes as a record does
            error = (reported and reported.error()) or error
            if is_final(error):
                raise translate(error, "looking for the group")
    finally:
        consumer.close()


def _what_is_there(client: AdminClient, said: list[Reported], servers: str) -> ClusterMetadata:
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        try:
            return client.list_topics(timeout=1.0)
        except KafkaException as failed:
            error = failed.args[0]
            client.poll(0)  # hands over what the connections said
            final = next((reported for reported in (error, *said) if is_final(reported)), None)
            if final is not None:
                raise translate(final, f"connecting to {servers}") from failed
            if time.monotonic() > deadline:
                why = said[-1].str() if said else error.str()
                raise KafkaError(
                    f"no Kafka broker answered at {servers} within {ANSWER_TIMEOUT_S:g} s: {why}",
                    hint="Check kafka.bootstrap_servers, and that the broker runs and is reachable from here",
                ) from failed


def _create(client: AdminClient, missing: Sequence[str]) -> None:
    known = client.list_topics(timeout=ANSWER_TIMEOUT_S)
    if known.controller_id not in known.brokers:
        # librdkafka's mock broker: it has nobody to send the request to, and makes what it is asked about.
        missing = [name for name in missing if client.list_topics(name, timeout=ANSWER_TIMEOUT_S).topics[name].error]
        if not missing:
            return
    # -1: the broker's own defaults (KIP-464).
    wanted = [NewTopic(name, num_partitions=-1, replication_factor=-1) for name in missing]
    answers: dict[str, Future[None]] = client.create_topics(
        wanted, operation_timeout=ANSWER_TIMEOUT_S, request_timeout=ANSWER_TIMEOUT_S
    )
    for name, answer in answers.items():
        try:
            answer.result(timeout=2 * ANSWER_TIMEOUT_S)
        except KafkaException as failed:
            error = failed.args[0]
            if error.code() == Reported.TOPIC_ALREADY_EXISTS:  # another consumer was faster
                continue
            raise KafkaError(
                f"the topic {name} could not be created: {error.str()}",
                hint="Create it by other means, or allow this user to create topics",
            ) from failed
        log.info(f"created the topic {name}", action="topic_created", topic=name)
