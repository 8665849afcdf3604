"""What a network does: connections that go silent, crawl or are reset. Found and mended without a restart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from tests.e2e.coordinator import Coordinator
from tests.e2e.proxy import Proxy
from tests.e2e.stack import Stack, stack_on

IN_FLIGHT = 300

#: A silent connection is given up after 10 s: the relay's first, and then the consumer's, when it has something to do.
HEALED_S = 40.0


@pytest.fixture(scope="module")
def kafka_proxy() -> Iterator[Coordinator]:
    with Coordinator(0) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def kafka_behind_proxy(kafka_proxy: Proxy) -> Iterator[KafkaBroker]:
    """A Kafka that tells everybody to come through the proxy."""
    with KafkaBroker(options={"advertised.listeners": f"PLAINTEXT://127.0.0.1:{kafka_proxy.port}"}) as broker:
        kafka_proxy.retarget(broker.port)
        yield broker


@pytest.fixture
def mysql_proxy(mysql_server: MysqlServer) -> Iterator[Proxy]:
    with Proxy(mysql_server.port) as proxy:
        yield proxy


@pytest.fixture
def stack(
    mysql_server: MysqlServer, kafka_behind_proxy: KafkaBroker, mysql_proxy: Proxy, kafka_proxy: Proxy, tmp_path: Path
) -> Iterator[Stack]:
    kafka_proxy.heal()
    settings: dict[str, Any] = {"tail__max_in_flight_rows": IN_FLIGHT}
    kafka = f"127.0.0.1:{kafka_proxy.port}"
    with stack_on(mysql_server, kafka, tmp_path, through=mysql_proxy.port, **settings) as stack:
        yield stack
        kafka_proxy.heal()


def started(stack: Stack) -> None:
    """Both programs at work."""
    stack.start()
    stack.write_some(50)
    stack.settle()


@pytest.mark.parametrize(
    ("which", "up", "down"),
    [
        ("mysql_proxy", True, True),
        ("mysql_proxy", True, False),
        ("kafka_proxy", True, True),
        ("kafka_proxy", False, True),
    ],
)
def test_connections_that_are_silent_for_ever_are_given_up_and_made_anew(
    stack: Stack, which: str, up: bool, down: bool, request: pytest.FixtureRequest
) -> None:
    started(stack)
    request.getfixturevalue(which).silence(up=up, down=down)
    began = time.monotonic()
    stack.write_some(100)
    verdict = stack.verdict()
    healed_in_s = time.monotonic() - began
    verdict.require_good(duplicates=IN_FLIGHT)
    assert stack.relay.starts == stack.consumer.starts == 1
    assert healed_in_s < HEALED_S


def test_half_a_second_of_latency_costs_time_and_nothing_else(
    stack: Stack, mysql_proxy: Proxy, kafka_proxy: Proxy
) -> None:
    started(stack)
    for proxy in (mysql_proxy, kafka_proxy):
        proxy.delay(0.25)  # in each direction
    writers = stack.write(150, pause_s=(0.0, 0.05))
    writers.join()
    verdict = stack.verdict()
    verdict.require_good(duplicates=0)
    assert not stack.relay.said("session_failed")


def test_resets_again_and_again(stack: Stack, mysql_proxy: Proxy, kafka_proxy: Proxy) -> None:
    started(stack)
    writers = stack.write(pause_s=(0.0, 0.02))
    for _ in range(6):
        time.sleep(0.5)
        mysql_proxy.reset()
        kafka_proxy.reset()
    writers.stop()
    verdict = stack.verdict()
    verdict.require_good(duplicates=6 * IN_FLIGHT)
    assert stack.relay.starts == stack.consumer.starts == 1


def test_a_network_that_is_cut_for_a_while(stack: Stack, mysql_proxy: Proxy, kafka_proxy: Proxy) -> None:
    started(stack)
    for proxy in (mysql_proxy, kafka_proxy):
        proxy.cut()
    stack.write_some(200)
    time.sleep(3)
    for proxy in (mysql_proxy, kafka_proxy):
        proxy.heal()
    verdict = stack.verdict()
    verdict.require_good(duplicates=IN_FLIGHT)
    assert stack.sql("SELECT MAX(retry_count) FROM agent_outbox_messages") == [(0,)]


def test_a_group_whose_coordinator_moves_just_as_its_offsets_are_asked_for(
    stack: Stack, kafka_proxy: Coordinator
) -> None:
    """librdkafka asks once and would never read those partitions again."""
    started(stack)
    stack.consumer.stop()
    stack.write_some(100)
    kafka_proxy.refusals = 2
    stack.consumer.start()
    stack.verdict().require_good(duplicates=0)
    assert kafka_proxy.refusals == 0
