"""What Kafka lets an account do with topics, asked of the cluster before anything is sent or read."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import TimeoutError as NoAnswer

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclOperation
from confluent_kafka.admin._metadata import ClusterMetadata

#: Seconds for the answer.
_ANSWER_S = 5.0


def topics_without(
    client: AdminClient, known: ClusterMetadata, operations: Mapping[str, AclOperation]
) -> dict[str, AclOperation]:
    """Those of ``operations``, by topic, that the account may not do.

    A topic that it may not even see counts too, be it there or not; one that it could see, and that is missing, does
    not. Nothing does where the cluster does not tell: it needs Kafka 2.3 or later, and a controller, which
    librdkafka's mock broker has not. ``known`` is what the client was told of the cluster.
    """
    if not operations or known.controller_id not in known.brokers:
        return {}
    answers = client.describe_topics(
        TopicCollection(list(operations)), include_authorized_operations=True, request_timeout=_ANSWER_S
    )
    without = {}
    for topic, answer in answers.items():
        try:
            granted = answer.result(2 * _ANSWER_S).authorized_operations
        except KafkaException as failed:
            if failed.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                without[topic] = operations[topic]
            continue  # it is missing, or it cannot be told
        except NoAnswer:
            continue
        if granted and operations[topic] not in granted:
            without[topic] = operations[topic]
    return without


def named(without: Mapping[str, AclOperation]) -> str:
    """``without`` for people: ``WRITE chat, WRITE mail``."""
    return ", ".join(f"{operation.name} {topic}" for topic, operation in without.items())


def grants(without: Mapping[str, AclOperation], properties: Mapping[str, object]) -> str:
    """The commands that grant ``without`` to the account of these client properties, where its user name tells it."""
    principal = properties.get("sasl.username") or "…"
    return "; ".join(
        f"kafka-acls.sh --bootstrap-server … --add --allow-principal User:{principal} "
        f"--operation {operation.name.title()} --topic {topic}"
        for topic, operation in without.items()
    )
