"""``cdc-relay bench`` on real servers: it tells, it leaves nothing, and neither does it when it is cut short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from sqlalchemy import create_engine, make_url, text

from cdc_relay.bench.catchup import FilledOutbox
from cdc_relay.bench.place import ThrowawayOutbox, ThrowawayTopic, existing
from cdc_relay.bench.relay import MeasurementFailed, Variant
from cdc_relay.config_layers import load
from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from tests.benchmarks import comparison, profile

SMALL = ("--yes", "--rows", "500", "--rate", "50", "--seconds", "3", "--partitions", "2")

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def bench(kafka_broker: KafkaBroker, tmp_path: Path) -> Start:
    """Starts ``cdc-relay bench`` with all that it makes under ``tmp_path``."""

    def start(url: str, *argv: str, **environment: str) -> subprocess.Popen[str]:
        own = {"CDC_DATABASE__URL": url, "CDC_KAFKA__BOOTSTRAP_SERVERS": kafka_broker.bootstrap_servers}
        return subprocess.Popen(
            [sys.executable, "-m", "cdc_relay", "bench", *argv],
            env={**os.environ, "TMPDIR": str(tmp_path), **own, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def account(either_server: MysqlServer) -> Iterator[str]:
    """The URL of an account that may do what the help says, and no more. It starts in a database that has no outbox."""
    engine = create_engine(either_server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in (
            "CREATE USER measurer@'%' IDENTIFIED BY 's3cret'",
            r"GRANT ALL ON `cdc\_relay\_bench\_%`.* TO measurer@'%'",
            f"GRANT SELECT ON {either_server.database}.* TO measurer@'%'",
            "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO measurer@'%'",
        ):
            connection.exec_driver_sql(statement.replace("%", "%%"))
        yield make_url(either_server.url).set(username="measurer", password="s3cret").render_as_string(False)
        connection.execute(text("DROP USER measurer@'%'"))
    engine.dispose()


def leftovers(server: MysqlServer, broker: KafkaBroker, folder: Path) -> list[str]:
    """Databases, topics, folders, and processes that were started in or for one."""
    engine = create_engine(server.url)
    with engine.connect() as connection:
        seen = [name for name in connection.execute(text("SHOW DATABASES")).scalars() if "bench" in name]
    engine.dispose()
    topics = AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=10).topics
    seen += [name for name in topics if "bench" in name]
    seen += [path.name for path in folder.iterdir()]
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder) in line.read_text():
                seen.append(line.read_text().replace("\0", " "))
        except OSError:
            pass  # it has ended
    return seen


def test_it_measures_and_leaves_nothing(
    bench: Start, account: str, either_server: MysqlServer, kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    # Settings of the relay beside it: a server id that is in use, another table, a zone, a property of Kafka.
    settings = {
        "CDC_TAIL__SERVER_ID": str(either_server.server_id),
        "CDC_DATABASE__TABLE": "theirs",
        "CDC_DATABASE__TIMEZONE": "America/New_York",
        "CDC_KAFKA__PROPERTIES": '{"linger.ms": 1}',
    }
    with bench(account, *SMALL, "--rows-each", "3", "--json", **settings) as program:
        out, err = program.communicate(timeout=250)
    assert program.returncode == 0, err
    told = json.loads(out)
    found = {(each["scenario"], each["variant"], each["metric"]): each for each in told["figures"]}
    for mode in ("none", "status"):
        for scenario, metric in (("catch-up", "throughput"), ("catch-up", "peak memory"), ("latency", "p99")):
            figure = found[scenario, mode, metric]
            assert len(figure["values"]) == 1
            assert min(figure["values"]) > 0
    assert ("catch-up", "status", "throughput to marked rows") in found
    assert ("catch-up", "none", "throughput to marked rows") not in found
    assert told["facts"]["mysql"].startswith(either_server.server_version[:3])
    assert "s3cret" not in out + err
    assert leftovers(either_server, kafka_broker, tmp_path) == []


def test_people_get_a_table(bench: Start, mysql_server: MysqlServer) -> None:
    with bench(mysql_server.url, "--yes", "--rows", "200", "--rate", "0") as program:
        out, err = program.communicate(timeout=120)
    assert program.returncode == 0, err
    assert "catch-up, 200 rows, 1 row a transaction" in out
    assert "start to first record, s" in out
    assert "latency" not in out
    assert "committing rows: 200 of 200" in err


@pytest.mark.parametrize(
    ("while_it", "number"),
    [("committing rows", signal.SIGINT), ("catching up", signal.SIGTERM), ("latency at", signal.SIGINT)],
)
def test_it_leaves_nothing_when_it_is_interrupted(
    bench: Start,
    mysql_server: MysqlServer,
    kafka_broker: KafkaBroker,
    tmp_path: Path,
    while_it: str,
    number: signal.Signals,
) -> None:
    rows = "200000" if while_it == "committing rows" else "2000"
    with bench(mysql_server.url, "--yes", "--rows", rows, "--rate", "100", "--seconds", "60") as program:
        assert program.stderr is not None
        for line in program.stderr:
            if while_it in line:
                break
        program.send_signal(number)
        _, err = program.communicate(timeout=120)
    assert program.returncode == 130, err
    assert "interrupted; dropping the database and the topic" in err
    assert "Traceback" not in err
    assert leftovers(mysql_server, kafka_broker, tmp_path) == []


def test_an_account_that_may_not_make_a_database_is_told_what_it_needs(
    bench: Start, mysql_server: MysqlServer, kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    engine = create_engine(mysql_server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE USER reader@'%%'")
        connection.exec_driver_sql(f"GRANT SELECT ON {mysql_server.database}.* TO reader@'%%'")
    try:
        with bench(make_url(mysql_server.url).set(username="reader").render_as_string(False), *SMALL) as program:
            _, err = program.communicate(timeout=120)
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql("DROP USER reader@'%%'")
        engine.dispose()
    assert program.returncode == 3, err
    assert r"hint: GRANT ALL ON `cdc\_relay\_bench\_%`.* to this account" in err
    assert leftovers(mysql_server, kafka_broker, tmp_path) == []


def test_without_kafka_the_database_is_gone_all_the_same(
    bench: Start, mysql_server: MysqlServer, kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    with bench(mysql_server.url, *SMALL, CDC_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1") as program:
        _, err = program.communicate(timeout=120)
    assert program.returncode == 4, err
    assert "no Kafka broker answers at 127.0.0.1:1" in err
    assert leftovers(mysql_server, kafka_broker, tmp_path) == []


@pytest.fixture
def filled(mysql_server: MysqlServer, kafka_broker: KafkaBroker) -> Iterator[FilledOutbox]:
    """300 rows behind a position."""
    addresses = {"database.url": mysql_server.url, "kafka.bootstrap_servers": kafka_broker.bootstrap_servers}
    settings = load(addresses, environ={})
    outbox, topic = ThrowawayOutbox(settings), ThrowawayTopic(settings.kafka, 2)
    with existing(outbox, topic):
        yield FilledOutbox(outbox, topic, rows=300, fill=lambda: outbox.fill(topic.name, rows=300, rows_each=7))


@pytest.mark.parametrize("peer", [comparison.NAIVE, comparison.POLLER, comparison.RELAY], ids=lambda peer: peer.name)
def test_what_the_relay_is_compared_with_does_the_same_work(filled: FilledOutbox, peer: Variant) -> None:
    found = filled.run(peer)
    assert filled.topic.records() == 300
    assert filled.outbox.first_left() is None
    assert found.all_s >= found.first_s > 0


def test_the_steps_of_the_profile_are_all_that_the_path_takes(filled: FilledOutbox) -> None:
    steps: Any = vars(profile.by_step(filled, Variant("status")))
    assert filled.topic.records() == 300
    assert filled.outbox.first_left() is None
    total = steps.pop("total")
    assert sum(steps.values()) == pytest.approx(total)
    assert min(steps[name] for name in ("receive", "read", "encode", "poll", "mark", "threads")) > 0


def test_a_relay_that_ends_is_told_with_its_log(filled: FilledOutbox) -> None:
    mistaken = Variant("mistaken", argv=("cdc_relay", "run", "--log-level=loud"))
    with pytest.raises(MeasurementFailed, match=r"(?s)ended by itself with code 2.*log\.level"):
        filled.run(mistaken)
