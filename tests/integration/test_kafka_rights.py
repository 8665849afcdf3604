"""A Kafka that asks who may do what: the rights in the README suffice, and a missing one is named with its mending."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.cimpl import NewTopic

from cdc_relay.config import Settings
from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.process import free_port
from cdc_relay.errors import KafkaError, ProducerFatal
from cdc_relay.kafka.publisher import KafkaPublisher
from cdc_relay.preflight.check import Check, Level
from cdc_relay.preflight.kafka import kafka_checks
from consumer.service import Service
from tests.consumer_harness import World, payload
from tests.harness import eventually, running_relay, settings_for
from tests.unit.test_docs import ROOT, blocks

pytestmark = [pytest.mark.mysql, pytest.mark.kafka]

README = ROOT / "README.md"
TOPIC = "chat-history"
COMMAND = re.compile(
    r"kafka-acls\.sh --bootstrap-server … --add --allow-principal (\S+) --operation (\w+) --(topic|group) ([\w.-]+)"
)


class GuardedBroker(KafkaBroker):
    """Accounts relay and consumer at one door, everybody without asking at the other, which is ``port``."""

    def __init__(self) -> None:
        port, self.guarded_port, controller = free_port(), free_port(), free_port()
        doors = f"PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{self.guarded_port}"
        super().__init__(
            port=port,
            options={
                "listeners": f"{doors},CONTROLLER://127.0.0.1:{controller}",
                "advertised.listeners": doors,
                "controller.quorum.voters": f"1@127.0.0.1:{controller}",
                "listener.security.protocol.map": (
                    "PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT"
                ),
                "inter.broker.listener.name": "PLAINTEXT",
                "sasl.enabled.mechanisms": "PLAIN",
                "listener.name.sasl_plaintext.plain.sasl.jaas.config": (
                    "org.apache.kafka.common.security.plain.PlainLoginModule required "
                    'user_relay="secret" user_consumer="secret";'
                ),
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS",
                "auto.create.topics.enable": False,
            },
        )

    def account(self, name: str) -> dict[str, Any]:
        """Settings of one who comes in at the guarded door."""
        properties = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.password": "secret"}
        return {
            "kafka__bootstrap_servers": f"127.0.0.1:{self.guarded_port}",
            "kafka__properties": properties | {"sasl.username": name},
        }


class Rights:
    """What the two accounts may do."""

    def __init__(self, broker: KafkaBroker) -> None:
        self._admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})

    def grant(self, commands: str) -> None:
        """Do what the calls of kafka-acls.sh in ``commands`` do."""
        found = [self._binding(*each) for each in COMMAND.findall(commands)]
        assert len(found) == commands.count("kafka-acls.sh") > 0
        for done in self._admin.create_acls(found).values():
            done.result()

    def withdraw(self, name: str | None = None) -> None:
        """All rights, or those on what is called ``name``."""
        everything = AclBindingFilter(
            ResourceType.ANY,
            name,  # type: ignore[arg-type]  # None is any, as librdkafka has it
            ResourcePatternType.ANY,
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            AclOperation.ANY,
            AclPermissionType.ANY,
        )
        for done in self._admin.delete_acls([everything]).values():
            done.result()

    @staticmethod
    def _binding(principal: str, operation: str, kind: str, name: str) -> AclBinding:
        return AclBinding(
            ResourceType[kind.upper()],
            name,
            ResourcePatternType.LITERAL,
            principal,
            "*",
            AclOperation[operation.upper()],
            AclPermissionType.ALLOW,
        )


@pytest.fixture(scope="module")
def guarded() -> Iterator[GuardedBroker]:
    with GuardedBroker() as broker:
        admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
        topics = [NewTopic(name, 1, 1) for name in (TOPIC, f"{TOPIC}.dlq", "other")]
        for made in admin.create_topics(topics).values():
            made.result()
        yield broker


@pytest.fixture
def rights(guarded: GuardedBroker) -> Iterator[Rights]:
    """Those of the README; all are gone afterwards."""
    rights = Rights(guarded)
    rights.grant("".join(block for block in blocks(README, "sh") if "kafka-acls.sh" in block))
    yield rights
    rights.withdraw()


@pytest.fixture
def world(database_url: str, guarded: GuardedBroker) -> Iterator[World]:
    world = World(database_url, guarded.bootstrap_servers, TOPIC, partitions=None)
    yield world
    world.close()


@pytest.fixture
def relay(database_url: str, guarded: GuardedBroker, tmp_path: Path) -> Settings:
    account = guarded.account("relay")
    return settings_for(database_url, guarded.bootstrap_servers, tmp_path, sweep__lease_s=2.0, **account)


@pytest.fixture
def consumer(guarded: GuardedBroker) -> dict[str, Any]:
    return {"consumer__group_id": "cdc-consumer"} | guarded.account("consumer")


def checked(relay: Settings, *topics: str) -> dict[str, Check]:
    return {check.name: check for check in kafka_checks(relay.kafka, topics or [TOPIC])}


def test_the_rights_in_the_readme_suffice(
    world: World, rights: Rights, relay: Settings, consumer: dict[str, Any]
) -> None:
    world.add_chats("a")
    world.write([payload("a", "one")], status="pending")
    assert {check.level for check in checked(relay).values()} == {Level.OK}
    with running_relay(relay), world.running(**consumer):
        world.write([payload("a", "two")], status="pending")
        world.wait_consumed(2)
    assert world.messages() == {"a": ["one", "two"]}


def test_without_any_right_the_relay_waits_and_says_what_it_needs(
    world: World, rights: Rights, relay: Settings
) -> None:
    rights.withdraw()
    found = checked(relay)["rights"]
    assert (found.level, found.found) == (Level.FAIL, f"not granted: WRITE {TOPIC}")
    world.add_chats("a")
    world.write([payload("a", "one")], status="pending")
    with running_relay(relay, tail=False) as service:  # a tailer would not get to tailing
        failed = ("cdc_relay_reconnects_total", {"target": "kafka"})
        eventually(lambda: service._registry.get_sample_value(*failed), "a producer that has failed for good")
        assert world.status_counts() == {"pending": 1}
        rights.grant(found.remedy)
        assert checked(relay).keys() == {"kafka", "topics"}
        eventually(lambda: world.status_counts() == {"published": 1}, "the row published")


def test_a_producer_that_may_not_send_anything_says_what_it_needs(rights: Rights, relay: Settings) -> None:
    rights.withdraw()
    publisher = KafkaPublisher(relay.kafka)
    try:
        eventually(lambda: (publisher.poll(0.1), publisher.failed)[1], "the refusal")
        with pytest.raises(ProducerFatal, match="authorization failed") as refused:
            publisher.raise_if_fatal()
    finally:
        publisher.close()
    assert "WRITE the topics" in str(refused.value.hint)


def test_a_topic_that_the_relay_may_not_write_to_is_named_and_costs_only_its_rows(
    world: World, rights: Rights, relay: Settings
) -> None:
    missing = checked(relay, TOPIC, "other", "hidden-or-not-there")
    assert missing["rights"].found == "not granted: WRITE hidden-or-not-there, WRITE other"
    assert missing["topics"].level is Level.OK
    [refused] = world.write([payload("a", "one")], status="pending", topic="other")
    [sent] = world.write([payload("b", "two")], status="pending")
    with running_relay(relay):
        eventually(lambda: world.rows()[sent].status == "published", "the other row published")
        eventually(lambda: world.rows()[refused].retry_count, "a failed attempt")
    assert "this client may not write to the topic" in world.rows()[refused].last_error


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (TOPIC, f"this account may not do in Kafka what it must: READ {TOPIC}"),
        (f"{TOPIC}.dlq", f"this account may not do in Kafka what it must: WRITE {TOPIC}.dlq"),
        ("cdc-consumer", "Group authorization failed"),
    ],
    ids=["topic", "dead letters", "group"],
)
def test_what_the_consumer_may_not_do_is_told_by_its_check(
    world: World, rights: Rights, consumer: dict[str, Any], name: str, said: str
) -> None:
    rights.withdraw(name)
    with pytest.raises(KafkaError) as refused:
        Service(world.settings(**consumer)).check()
    assert said in refused.value.message
    assert refused.value.hint
    if "kafka-acls.sh" in refused.value.hint:
        rights.grant(refused.value.hint)
        Service(world.settings(**consumer)).check()
