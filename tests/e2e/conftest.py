"""Servers that a module's scenarios may mistreat; those of the whole run are for scenarios that spare them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer


@pytest.fixture(scope="module")
def own_mysql() -> Iterator[MysqlServer]:
    """A MySQL of this module's own."""
    with MysqlServer(flavour="mysql") as server:
        yield server


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[KafkaBroker]:
    """A Kafka of this module's own, which makes no topic that it was not told to make."""
    with KafkaBroker(options={"auto.create.topics.enable": False}) as broker:
        yield broker
