"""Server settings that change under a running relay, and rows of unusual size: on servers of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from sqlalchemy import MetaData, create_engine, make_url

from cdc_relay.config import Settings
from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.outbox.table import outbox_table
from tests.harness import Outbox, eventually, outbox_id, read_topic, running_relay, settings_for


@pytest.fixture(scope="module")
def own_server() -> Iterator[MysqlServer]:
    with MysqlServer(flavour="mysql", options={"max_allowed_packet": 128 * 2**20, "local_infile": True}) as server:
        metadata = MetaData()
        outbox_table(metadata=metadata)
        engine = create_engine(server.url)
        metadata.create_all(engine)
        engine.dispose()
        yield server


@pytest.fixture
def outbox(own_server: MysqlServer, topic: str) -> Iterator[Outbox]:
    outbox = Outbox(own_server.url, topic)
    outbox.run("DELETE FROM agent_outbox_messages")
    yield outbox
    outbox.engine.dispose()


@pytest.fixture
def tail_settings(own_server: MysqlServer, kafka_broker: KafkaBroker, tmp_path: Path) -> Settings:
    return settings_for(own_server.url, kafka_broker.bootstrap_servers, tmp_path)


def published(outbox: Outbox, kafka_broker: KafkaBroker, ids: list[int]) -> list[int]:
    outbox.wait_published(ids)
    return [outbox_id(record) for record in read_topic(kafka_broker.bootstrap_servers, outbox.topic, len(ids))]


def test_gtids_are_switched_on_tagged_and_off_while_the_relay_runs(
    tail_settings: Settings, outbox: Outbox, kafka_broker: KafkaBroker, own_server: MysqlServer
) -> None:
    has_tags = [int(part) for part in own_server.server_version.split(".")[:2]] >= [8, 3]
    ids = []
    outbox.run("SET GLOBAL enforce_gtid_consistency = ON")
    with outbox.engine.connect() as connection:
        if connection.exec_driver_sql("SELECT @@global.gtid_mode").scalar() == "OFF":
            outbox.run(*(f"SET GLOBAL gtid_mode = {mode}" for mode in ("OFF_PERMISSIVE", "ON_PERMISSIVE", "ON")))
    with running_relay(tail_settings, sweep=False):
        ids.append(outbox.add("k", "on"))
        with outbox.engine.connect() as connection:
            connection.exec_driver_sql(f"SET gtid_next = 'AUTOMATIC{':a_tag' if has_tags else ''}'")
            ids.append(outbox.insert(connection, "k", "tagged"))
            connection.commit()
            connection.exec_driver_sql("SET gtid_next = 'AUTOMATIC'")
        for mode in ("ON_PERMISSIVE", "OFF_PERMISSIVE", "OFF", "OFF_PERMISSIVE", "ON_PERMISSIVE", "ON"):
            outbox.run(f"SET GLOBAL gtid_mode = {mode}")
            ids.append(outbox.add("k", mode))
        assert published(outbox, kafka_broker, ids) == ids


def test_row_metadata_and_checksums_change_while_the_relay_runs(
    tail_settings: Settings, outbox: Outbox, kafka_broker: KafkaBroker
) -> None:
    ids = []
    with running_relay(tail_settings, sweep=False):
        for setting in (
            "binlog_row_metadata = 'FULL'",
            "binlog_checksum = 'NONE'",
            "binlog_row_metadata = 'MINIMAL'",
            "binlog_checksum = 'CRC32'",
        ):
            outbox.run(f"SET GLOBAL {setting}")
            ids.append(outbox.add("k", setting))
        assert published(outbox, kafka_broker, ids) == ids


def test_an_xa_transaction_left_prepared_over_a_restart_is_delivered_at_its_commit(
    tail_settings: Settings, outbox: Outbox, kafka_broker: KafkaBroker
) -> None:
    with running_relay(tail_settings, sweep=False):
        first = outbox.add("k", 1)
        outbox.wait_published([first])
        outbox.run_apart(
            "XA START 'open'",
            "INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload) "
            f"VALUES ('test', '{outbox.topic}', 'x', '{{}}')",
            "XA END 'open'",
            "XA PREPARE 'open'",
        )
    with running_relay(tail_settings, sweep=False):
        second = outbox.add("k", 2)
        outbox.wait_published([second])
        outbox.run("XA COMMIT 'open'")
        eventually(lambda: set(outbox.statuses().values()) == {"published"}, "the XA row published")
    assert len(read_topic(kafka_broker.bootstrap_servers, outbox.topic, 3)) == 3


def test_load_data_is_delivered(
    tail_settings: Settings, outbox: Outbox, kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    file = tmp_path / "rows.tsv"
    file.write_text("".join(f"test\t{outbox.topic}\tk\t{n}\n" for n in range(100)))
    with running_relay(tail_settings, sweep=False):
        engine = create_engine(outbox.engine.url, connect_args={"local_infile": True})
        with engine.begin() as connection:
            connection.exec_driver_sql(
                f"LOAD DATA LOCAL INFILE '{file}' INTO TABLE agent_outbox_messages "
                "(biz_type, topic, message_key, payload)"
            )
        engine.dispose()
        ids = list(outbox.rows())
        assert len(ids) == 100
        assert published(outbox, kafka_broker, ids) == ids


def test_a_statement_logged_as_text_is_delivered_in_order(
    tail_settings: Settings, outbox: Outbox, kafka_broker: KafkaBroker
) -> None:
    with running_relay(tail_settings, sweep=False):
        ids = [outbox.add("k", "as a row")]
        with outbox.engine.connect() as connection:
            connection.exec_driver_sql("SET SESSION binlog_format = 'STATEMENT'")
            connection.exec_driver_sql("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            ids.append(outbox.insert(connection, "k", "as text"))
            connection.commit()
            connection.invalidate()
        ids.append(outbox.add("k", "as a row again"))
        assert published(outbox, kafka_broker, ids) == ids


@pytest.mark.parametrize("flavour", ["mysql", "mariadb"])
def test_names_are_written_in_another_case_than_the_server_keeps_them(
    flavour: Literal["mysql", "mariadb"], kafka_broker: KafkaBroker, topic: str, tmp_path: Path
) -> None:
    with MysqlServer(flavour=flavour, options={"lower_case_table_names": 1}) as server:
        url = make_url(server.url).set(database="CHAT").render_as_string(hide_password=False)
        engine = create_engine(server.url)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE DATABASE Chat")
        engine.dispose()
        outbox = Outbox(url, topic)
        metadata = MetaData()
        outbox_table(metadata=metadata)
        metadata.create_all(outbox.engine)
        settings = settings_for(url, kafka_broker.bootstrap_servers, tmp_path, database__table="AGENT_Outbox_Messages")
        with running_relay(settings, sweep=False):
            ids = [outbox.add("k", n) for n in range(3)]
            assert published(outbox, kafka_broker, ids) == ids
        outbox.engine.dispose()


@pytest.mark.parametrize("flavour", ["mysql", "mariadb"])
def test_what_a_server_sets_for_everybody_does_not_cut_what_we_read(
    flavour: Literal["mysql", "mariadb"], kafka_broker: KafkaBroker, topic: str, tmp_path: Path
) -> None:
    with MysqlServer(flavour=flavour) as server:
        outbox = Outbox(server.url, topic)
        metadata = MetaData()
        outbox_table(metadata=metadata)
        metadata.create_all(outbox.engine)
        ids = [outbox.add(f"k{n % 3}", n) for n in range(30)]
        longest = "max_execution_time = 1" if flavour == "mysql" else "max_statement_time = 0.001"
        modes = "ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,PAD_CHAR_TO_FULL_LENGTH,HIGH_NOT_PRECEDENCE"
        outbox.run(f"SET GLOBAL sql_select_limit = 7, GLOBAL sql_mode = '{modes}', GLOBAL {longest}")
        settings = settings_for(server.url, kafka_broker.bootstrap_servers, tmp_path)
        with running_relay(settings, sweep=False):
            ids += [outbox.add('k\'s \\ "key"', n) for n in range(3)]
            assert published(outbox, kafka_broker, ids) == ids
        outbox.engine.dispose()


def test_a_payload_of_sixty_megabytes_is_delivered(own_server: MysqlServer, outbox: Outbox, tmp_path: Path) -> None:
    limit = 100 * 2**20
    with KafkaBroker(
        options={
            "message.max.bytes": str(limit),
            "socket.request.max.bytes": str(2 * limit),
            "replica.fetch.max.bytes": str(limit),
        },
        tuned=True,
    ) as broker:
        settings = settings_for(own_server.url, broker.bootstrap_servers, tmp_path)
        payload = json.dumps({"text": "0123456789" * 6_000_000})
        with running_relay(settings, sweep=False):
            large = outbox.add("k", 0, payload=payload)
            small = outbox.add("k", 1)
            outbox.wait_published([large, small])
        first, second = read_topic(broker.bootstrap_servers, outbox.topic, 2)
        value = first.value()
        assert value is not None
        assert value.endswith(payload.encode() + b"}")
        assert [outbox_id(first), outbox_id(second)] == [large, small]
