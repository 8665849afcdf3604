"""Is Kafka there, do the topics exist or come into being by themselves, and may the relay write to them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclOperation
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._resource import ResourceType

from cdc_relay.config import KafkaSettings
from cdc_relay.errors import ConfigurationError
from cdc_relay.kafka.properties import producer_properties
from cdc_relay.kafka.rights import grants, named, topics_without
from cdc_relay.preflight.check import Check, Level, ok

_ANSWER_S = 10.0
_AUTO_CREATE = "auto.create.topics.enable"

#: librdkafka's own words; the checks say it better.
_UNHEARD = logging.Logger("unheard", logging.CRITICAL + 1)


def kafka_checks(settings: KafkaSettings, topics: Iterable[str]) -> list[Check]:
    """Look for a broker, then for ``topics``. Raises ConfigurationError for properties that a start would refuse."""
    said: list[Any] = []
    properties = producer_properties(settings) | {"client.id": "cdc-relay-check"}
    try:
        client = AdminClient(properties | {"error_cb": said.append}, logger=_UNHEARD)
    except KafkaException as error:
        raise ConfigurationError(f"kafka.properties: {error.args[0].str()}") from error
    try:
        known = client.list_topics(timeout=_ANSWER_S)
    except KafkaException as error:
        client.poll(0)  # hands over what the connections said
        why = said[-1].str() if said else error.args[0].str()
        return [
            Check(
                "kafka",
                Level.FAIL,
                f"no broker answers at {settings.bootstrap_servers}: {why}",
                "a broker that can be reached",
                "check kafka.bootstrap_servers, the brokers' advertised listeners and, with TLS or SASL, "
                "kafka.properties",
            )
        ]
    brokers = ", ".join(f"{broker.host}:{broker.port}" for broker in known.brokers.values())
    without = topics_without(client, known, dict.fromkeys(sorted(topics), AclOperation.WRITE))
    missing = sorted(set(topics) - known.topics.keys() - without.keys())
    return [
        ok("kafka", f"{len(known.brokers)} brokers: {brokers}"),
        _missing(client, min(known.brokers), missing) if missing else ok("topics", "all there that were asked about"),
        *([_forbidden(without, properties)] if without else []),
    ]


def _forbidden(without: Mapping[str, AclOperation], properties: Mapping[str, object]) -> Check:
    found = f"not granted: {named(without)}"
    return Check("rights", Level.FAIL, found, "WRITE on every topic", grants(without, properties))


def _missing(client: AdminClient, broker: int, missing: list[str]) -> Check:
    names = ", ".join(missing)
    create = f"kafka-topics.sh --bootstrap-server … --create --topic {missing[0]}"
    match _auto_creates(client, broker):
        case True:
            return ok("topics", f"{names}: missing, and created by the broker on first use")
        case False:
            return Check("topics", Level.FAIL, f"missing: {names}", f"all topics, or {_AUTO_CREATE}=true", create)
        case None:
            found = f"missing: {names}; whether brokers create topics is not told"
            return Check("topics", Level.WARN, found, f"all topics, or {_AUTO_CREATE}=true", create)


def _auto_creates(client: AdminClient, broker: int) -> bool | None:
    """None when the broker does not say: not allowed to, or a mock."""
    resource = ConfigResource(ResourceType.BROKER, str(broker))
    asked = client.describe_configs([resource], request_timeout=3)
    try:
        entry = asked[resource].result(2 * _ANSWER_S).get(_AUTO_CREATE)
    except (KafkaException, FutureTimeout):
        return None
    return None if entry is None else str(entry.value).lower() == "true"
