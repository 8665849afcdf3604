"""Fixtures that every kind of test shares: real servers, started once, and a fresh database and topic a test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import MetaData, NullPool, create_engine, make_url, text

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.outbox.table import chat_tables, outbox_table

# A busy machine is slow; that is no failure of what is tested.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own CDC_ variables must not change what a test sees."""
    for name in os.environ:
        if name.startswith("CDC_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def mysql_server() -> Iterator[MysqlServer]:
    """A MySQL for the whole run. Tests that kill or restart a server start their own."""
    with MysqlServer(flavour="mysql") as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MysqlServer]:
    """A MariaDB for the whole run."""
    with MysqlServer(flavour="mariadb") as server:
        yield server


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[KafkaBroker]:
    """An Apache Kafka for the whole run."""
    with KafkaBroker() as broker:
        yield broker


@pytest.fixture(params=["mysql", "mariadb"])
def either_server(request: pytest.FixtureRequest) -> MysqlServer:
    """MySQL and MariaDB in turn."""
    server: MysqlServer = request.getfixturevalue(f"{request.param}_server")
    return server


def fresh_database(server: MysqlServer) -> Iterator[str]:
    """The URL of a new database on ``server`` with the outbox and chat tables made; dropped afterwards."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    # A connection each time, since the test may restart the server.
    root = create_engine(server.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with root.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} CHARACTER SET utf8mb4"))
    url = make_url(server.url).set(database=name)
    engine = create_engine(url)
    metadata = MetaData()
    outbox_table(metadata=metadata)
    chat_tables(metadata)
    metadata.create_all(engine)
    engine.dispose()
    yield url.render_as_string(hide_password=False)
    with root.connect() as connection:
        # A failed test may leave a transaction open: it must not hang the run.
        connection.execute(text("SET SESSION lock_wait_timeout = 5"))
        connection.execute(text(f"DROP DATABASE {name}"))
    root.dispose()


@pytest.fixture
def database_url(mysql_server: MysqlServer) -> Iterator[str]:
    """A fresh database on the MySQL."""
    yield from fresh_database(mysql_server)


@pytest.fixture
def either_database_url(either_server: MysqlServer) -> Iterator[str]:
    """A fresh database on MySQL and on MariaDB in turn."""
    yield from fresh_database(either_server)


@pytest.fixture
def topic() -> str:
    """A topic name of this test's own."""
    return f"t-{uuid.uuid4().hex[:12]}"
