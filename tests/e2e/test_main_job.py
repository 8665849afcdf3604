"""The main job, end to end: both programs as processes, killed at random moments, and the ledger as the judge."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from tests.e2e.stack import Stack, stack_on

#: Few, so that the bound on duplicates says something.
IN_FLIGHT = 2_000


def kill_while_writing(stack: Stack, *, rows: int, conversations: int, large: int, seed: int) -> int:
    """Write ``rows`` rows while the relay is killed three times and the consumer once; how many kills of the relay."""
    chance = random.Random(seed)
    stack.start()
    writers = stack.write(rows, conversations=conversations, large=large, seed=seed)
    marks = sorted(chance.uniform(0.05, 0.9) for _ in range(4))
    for n, share in enumerate(marks):
        while len(stack.ledger) < share * rows and writers.are_writing:
            time.sleep(0.01)
        if n == 2:
            stack.consumer.kill()
            stack.consumer.start(wait=False)
        else:
            stack.relay.kill()
            stack.relay.start(wait=False)
    writers.join()
    return len(marks) - 1


def test_twenty_thousand_rows_survive_three_kills_of_the_relay_and_one_of_the_consumer(
    mysql_server: MysqlServer, kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"tail__max_in_flight_rows": IN_FLIGHT}
    with stack_on(mysql_server, kafka_broker.bootstrap_servers, tmp_path, **settings) as stack:
        kills = kill_while_writing(stack, rows=20_000, conversations=500, large=8, seed=1)
        verdict = stack.verdict()
        assert verdict.rows == 20_000
        assert stack.ledger.rolled_back
        verdict.require_good(duplicates=kills * (IN_FLIGHT + 100))


def test_the_same_holds_on_mariadb(mariadb_server: MysqlServer, kafka_broker: KafkaBroker, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tail__max_in_flight_rows": IN_FLIGHT}
    with stack_on(mariadb_server, kafka_broker.bootstrap_servers, tmp_path, **settings) as stack:
        kills = kill_while_writing(stack, rows=3_000, conversations=100, large=2, seed=2)
        verdict = stack.verdict()
        assert verdict.rows == 3_000
        verdict.require_good(duplicates=kills * (IN_FLIGHT + 100))


@pytest.mark.parametrize("mode", ["lazy", "none"])
def test_the_same_holds_where_statuses_are_left_to_the_consumer(
    mysql_server: MysqlServer, kafka_broker: KafkaBroker, tmp_path: Path, mode: str
) -> None:
    settings: dict[str, Any] = {"tail__max_in_flight_rows": IN_FLIGHT, "writeback__mode": mode}
    with stack_on(mysql_server, kafka_broker.bootstrap_servers, tmp_path, **settings) as stack:
        kills = kill_while_writing(stack, rows=3_000, conversations=100, large=2, seed=3)
        verdict = stack.verdict()
        assert verdict.rows == 3_000
        verdict.require_good(duplicates=kills * (IN_FLIGHT + 100))
