"""What the relay's own UPDATEs put into the binlog: with ``writeback.row_image``, and where the account may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, NullPool, create_engine, make_url, text

from cdc_relay.binlog.server import server_binlog
from cdc_relay.config import DatabaseSettings
from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.outbox.database import make_engine, transaction
from cdc_relay.outbox.statements import OutboxStatements
from cdc_relay.row_image import log_changes_only
from tests.harness import Outbox, outbox_id, read_topic, running_relay, settings_for

ROWS = 50
PAYLOAD = '{"text": "' + "x" * 500 + '"}'
NOW = datetime(2026, 1, 2, 3, 4, 5)

Engines = Callable[..., Engine]


@pytest.fixture
def engines() -> Iterator[Engines]:
    """Makes engines as the relay does."""
    made: list[Engine] = []

    def make(url: str, *, minimal: bool) -> Engine:
        engine = make_engine(DatabaseSettings(url=url))
        if minimal:
            log_changes_only(engine, "writeback.row_image")
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.dispose()


@pytest.fixture
def plain_url(either_server: MysqlServer, either_database_url: str) -> Iterator[str]:
    """An account that may read and mark rows, and no more."""
    url = make_url(either_database_url)
    root = create_engine(either_server.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with root.connect() as connection:
        connection.execute(text("CREATE USER plain@'%' IDENTIFIED BY 'secret'"))
        connection.execute(text(f"GRANT SELECT, UPDATE ON {url.database}.* TO plain@'%'"))
    yield url.set(username="plain", password="secret").render_as_string(hide_password=False)
    with root.connect() as connection:
        connection.execute(text("DROP USER plain@'%'"))


def image_of(engine: Engine) -> str:
    with transaction(engine) as connection:
        return str(connection.execute(text("SELECT @@binlog_row_image")).scalar_one())


def bytes_to_mark(engine: Engine, root: Engine, topic: str, database_url: str) -> float:
    """Bytes that the binlog grows by for each row that is marked published."""
    outbox = Outbox(database_url, topic)
    with outbox.engine.begin() as connection:
        ids = [outbox.insert(connection, "k", n, payload=PAYLOAD) for n in range(ROWS)]
    outbox.engine.dispose()
    with root.connect() as connection:
        before = server_binlog(connection).head
    with transaction(engine) as connection:
        assert OutboxStatements().mark_published(connection, ids, 0, NOW) == ROWS
    with root.connect() as connection:
        after = server_binlog(connection).head
    assert after.file == before.file
    return (after.offset - before.offset) / ROWS


def test_a_marked_row_costs_the_binlog_its_changes_and_not_its_payload(
    either_database_url: str, topic: str, engines: Engines
) -> None:
    root = engines(either_database_url, minimal=False)
    whole = bytes_to_mark(root, root, topic, either_database_url)
    changes = bytes_to_mark(engines(either_database_url, minimal=True), root, topic, either_database_url)
    assert whole > 2 * len(PAYLOAD)
    assert changes < len(PAYLOAD) / 2


def test_an_account_that_may_not_set_it_goes_on_and_says_so_once(
    plain_url: str, engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engines(plain_url, minimal=True)
    with caplog.at_level("INFO", logger="cdc_relay"), transaction(engine), transaction(engine):
        assert engine.pool.checkedout() == 2  # type: ignore[attr-defined]
    assert image_of(engine) == "FULL"
    (said,) = caplog.records
    assert said.fields["action"] == "row_image_refused"  # type: ignore[attr-defined]
    assert "1227" in said.getMessage()


def test_a_connection_that_was_lost_is_followed_by_one_that_sets_it_again(
    either_database_url: str, engines: Engines
) -> None:
    engine = engines(either_database_url, minimal=True)
    with transaction(engine) as connection:
        lost = connection.execute(text("SELECT CONNECTION_ID()")).scalar_one()
    assert image_of(engine) == "MINIMAL"
    with transaction(engines(either_database_url, minimal=False)) as root:
        root.execute(text(f"KILL {lost}"))
    with transaction(engine) as connection:
        assert connection.execute(text("SELECT CONNECTION_ID()")).scalar_one() != lost
    assert image_of(engine) == "MINIMAL"


@pytest.mark.parametrize("row_image", ["minimal", "server"])
def test_the_relay_reads_on_behind_its_own_updates_and_sends_every_row_once(
    either_database_url: str, topic: str, kafka_broker: KafkaBroker, tmp_path: Path, row_image: str
) -> None:
    outbox = Outbox(either_database_url, topic)
    settings = settings_for(
        either_database_url, kafka_broker.bootstrap_servers, tmp_path, writeback__row_image=row_image
    )
    ids: list[int] = []
    with running_relay(settings):
        for _ in range(3):
            ids += [outbox.add("k", n) for n in range(5)]
            outbox.wait_published(ids)
    outbox.engine.dispose()
    assert [outbox_id(record) for record in read_topic(kafka_broker.bootstrap_servers, topic, len(ids))] == ids
