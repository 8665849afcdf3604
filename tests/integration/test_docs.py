"""The README's MySQL settings and grants, tried on real servers: they suffice, to the letter."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, make_url, text

from cdc_relay.config_layers import load
from cdc_relay.embedded.kafka import MockKafka
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.preflight.check import Level
from cdc_relay.preflight.report import check_everything
from cdc_relay.tables import create_missing
from tests.unit.test_docs import ROOT, blocks

README = ROOT / "README.md"


@pytest.fixture(scope="module", params=["mysql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Iterator[MysqlServer]:
    """Set up as the README says: its settings, the tables, its accounts."""
    parser = configparser.ConfigParser()
    parser.read_string("".join(blocks(README, "ini")))
    with MysqlServer(flavour=request.param, database="shop", options=dict(parser["mysqld"])) as server:
        create_missing(load({"database.url": server.url, "kafka.bootstrap_servers": "k"}, environ={}).database)
        engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in filter(None, map(str.strip, "".join(blocks(README, "sql")).split(";"))):
                connection.execute(text(statement.replace("'…'", "'secret'")))
        engine.dispose()
        yield server


def url(server: MysqlServer, user: str) -> str:
    return make_url(server.url).set(username=user, password="secret").render_as_string(hide_password=False)


def test_what_the_readme_grants_the_relay_is_enough(server: MysqlServer) -> None:
    with MockKafka() as kafka:
        flags = {"database.url": url(server, "relay"), "kafka.bootstrap_servers": kafka.bootstrap_servers}
        mysql, broker = check_everything(load(flags, environ={}))
    assert [check for check in mysql + broker if check.level is not Level.OK] == []


def test_what_the_readme_grants_the_consumer_is_enough(server: MysqlServer) -> None:
    with MockKafka() as kafka:
        checked = subprocess.run(
            [sys.executable, "-m", "consumer.cli", "check", "--topics", "chat-history"],
            env={
                **os.environ,
                "CDC_DATABASE__URL": url(server, "consumer"),
                "CDC_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert checked.returncode == 0, checked.stderr
