"""The address leads to another server, and back: a replica with its own server_uuid, file names and positions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, make_url

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from tests.e2e.proxy import Proxy
from tests.e2e.stack import stack_on

GTID = {"gtid_mode": True, "enforce_gtid_consistency": True}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[MysqlServer, MysqlServer]]:
    """A source and its replica."""
    with (
        MysqlServer(flavour="mysql", server_id=11, options=GTID) as first,
        MysqlServer(flavour="mysql", server_id=12, options=GTID | {"log_bin": "other-binlog"}) as second,
    ):
        yield first, second


def run(server: MysqlServer, *statements: str) -> list[tuple[object, ...]]:
    """Statements as root; the rows of the last."""
    engine = create_engine(make_url(server.url).set(database=None), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    rows: list[tuple[object, ...]] = []
    with engine.connect() as connection:
        for statement in statements:
            result = connection.exec_driver_sql(statement)
            rows = [tuple(row) for row in result] if result.returns_rows else []
    return rows


def follow(replica: MysqlServer, source: MysqlServer) -> None:
    run(
        replica,
        "SET GLOBAL super_read_only = ON",
        f"CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT={source.port}, SOURCE_USER='root', "
        "SOURCE_AUTO_POSITION=1, GET_SOURCE_PUBLIC_KEY=1, SOURCE_CONNECT_RETRY=1",
        "START REPLICA",
    )


def switch(proxy: Proxy, old: MysqlServer, new: MysqlServer) -> None:
    """A planned failover: nothing that the old one has committed stays behind; no client is told."""
    run(old, "SET GLOBAL super_read_only = ON")
    ((executed,),) = run(old, "SELECT @@GLOBAL.gtid_executed")
    assert run(new, f"SELECT WAIT_FOR_EXECUTED_GTID_SET('{executed}', 60)") == [(0,)]
    run(new, "STOP REPLICA", "RESET REPLICA ALL", "SET GLOBAL super_read_only = OFF", "SET GLOBAL read_only = OFF")
    proxy.retarget(new.port)
    proxy.reset()


def test_failover_to_a_replica_and_back_behind_one_address(
    pair: tuple[MysqlServer, MysqlServer], kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    first, second = pair
    with (
        Proxy(first.port) as proxy,
        stack_on(first, kafka_broker.bootstrap_servers, tmp_path, through=proxy.port) as stack,
    ):
        stack.go_through(proxy.port)
        follow(second, first)
        stack.start()
        for old, new in ((first, second), (second, first)):
            writers = stack.write(pause_s=(0.0, 0.02))
            stack.wait_for_rows(150)
            switch(proxy, old, new)
            stack.wait_for_rows(150)
            writers.stop()
            stack.settle()
            follow(old, new)
        verdict = stack.verdict()
        verdict.require_good(duplicates=2 * verdict.rows)
        reasons = [entry["reason"] for entry in stack.relay.said("reconcile")]
        assert reasons.count("other_server") == 2
        assert stack.relay.starts == stack.consumer.starts == 1
        run(second, "STOP REPLICA", "SET GLOBAL super_read_only = OFF", "SET GLOBAL read_only = OFF")
