"""Two relays of one table: one works, the other waits; and what happens when the lock between them is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from tests.e2e.programs import Program
from tests.e2e.stack import Stack, stack_on
from tests.harness import eventually

IN_FLIGHT = 300
MORE = 60


@pytest.fixture
def stack(mysql_server: MysqlServer, kafka_broker: KafkaBroker, tmp_path: Path) -> Iterator[Stack]:
    settings: dict[str, Any] = {"tail__max_in_flight_rows": IN_FLIGHT}
    with stack_on(mysql_server, kafka_broker.bootstrap_servers, tmp_path, **settings) as stack:
        yield stack


@pytest.fixture
def other(stack: Stack, tmp_path: Path) -> Iterator[Program]:
    """A second relay, as on another host: with a checkpoint file of its own, or none."""
    with stack.new_relay("other", CDC_CHECKPOINT__PATH=str(tmp_path / "other.json")) as program:
        yield program


def lock_holder(stack: Stack) -> int | None:
    """The connection that holds the relay's lock."""
    (found,) = stack.sql("SELECT IS_USED_LOCK(:name)", name=f"cdc_relay:{stack.topic}")[0]
    return None if found is None else int(found)


def lock_has_moved(stack: Stack, holder: int) -> bool:
    """Whether another connection holds the lock."""
    return lock_holder(stack) not in (None, holder)


def was_active_more_often(program: Program, times: int) -> bool:
    return len(program.said("active")) > times


def test_a_standby_takes_over_from_one_that_is_killed_and_the_first_waits_when_it_comes_back(
    stack: Stack, other: Program
) -> None:
    stack.start()
    other.start()
    assert other.said("standby")
    assert not other.said("active")
    writers = stack.write(pause_s=(0.0, 0.02))
    takeovers = []
    for active, waiting in ((stack.relay, other), (other, stack.relay)):
        stack.wait_for_rows(300)
        times = len(waiting.said("active"))
        active.kill()
        began = time.monotonic()
        eventually(partial(was_active_more_often, waiting, times), "the standby active")
        takeovers.append(time.monotonic() - began)
        active.start()
    writers.stop()
    stack.verdict().require_good(duplicates=2 * (IN_FLIGHT + MORE))
    # The design says 5 s; the bound here only guards against a wait for some timeout of the server.
    assert max(takeovers) < 10, takeovers


def test_a_relay_that_loses_the_lock_stops_before_the_other_starts(stack: Stack, other: Program) -> None:
    stack.start()
    other.start()
    writers = stack.write(pause_s=(0.0, 0.02))
    for _ in range(4):
        stack.wait_for_rows(200)
        holder = eventually(lambda: lock_holder(stack), "a relay with the lock")
        stack.sql(f"KILL {holder}")
        eventually(partial(lock_has_moved, stack, holder), "the lock in other hands")
    writers.stop()
    verdict = stack.verdict()
    verdict.require_good(duplicates=4 * (IN_FLIGHT + MORE))
    assert stack.relay.is_running
    assert other.is_running


def test_a_relay_whose_host_vanished_is_followed_by_the_standby(stack: Stack, other: Program) -> None:
    """Frozen, its connections stay open: the server gives the lock's connection up because it says nothing."""
    stack.start()
    other.start()
    stack.write_some(50)
    stack.settle()
    stack.relay.freeze()
    stack.write_some(100)
    eventually(lambda: other.said("active"), "the standby active")
    eventually(lambda: stack.statuses() == {"consumed": 150}, "all consumed")
    stack.relay.thaw()
    stack.write_some(100)
    verdict = stack.verdict()
    verdict.require_good(duplicates=IN_FLIGHT)


@pytest.mark.parametrize("flavour", ["mysql", "mariadb"])
def test_another_reader_with_the_same_server_id_is_named_and_costs_nothing(
    flavour: str, kafka_broker: KafkaBroker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue(f"{flavour}_server")
    settings: dict[str, Any] = {"tail__server_id": 4711, "tail__max_in_flight_rows": IN_FLIGHT}
    with stack_on(server, kafka_broker.bootstrap_servers, tmp_path, **settings) as stack:
        stack.start()
        clash = {"CDC_NAME": "somebody-else", "CDC_CHECKPOINT__PATH": str(tmp_path / "clashing.json")}
        with stack.new_relay("clashing", **clash) as clashing:
            clashing.start()
            stack.write_some(100)
            if flavour == "mariadb":  # MySQL tells readers apart by their UUIDs, and ours have one each
                both = (stack.relay, clashing)
                eventually(lambda: any("server id" in str(e) for p in both for e in p.log()), "a word about the id")
        stack.write_some(100)
        stack.verdict().require_good(duplicates=10_000)  # the second one is another relay of the same rows
