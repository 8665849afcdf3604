"""Every form in which a row can stand in the binlog, on real servers: rows that committed arrive, others do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message
from sqlalchemy import text

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.service import RelayService
from tests.harness import Outbox, eventually, outbox_id, read_topic, running_relay, settings_for


@pytest.fixture
def outbox(either_database_url: str, topic: str) -> Iterator[Outbox]:
    outbox = Outbox(either_database_url, topic)
    yield outbox
    outbox.engine.dispose()


@pytest.fixture
def tail_only(
    outbox: Outbox, either_database_url: str, kafka_broker: KafkaBroker, tmp_path: Path
) -> Iterator[RelayService]:
    settings = settings_for(either_database_url, kafka_broker.bootstrap_servers, tmp_path)
    with running_relay(settings, sweep=False) as service:
        yield service


@pytest.fixture
def relay(
    outbox: Outbox, either_database_url: str, kafka_broker: KafkaBroker, tmp_path: Path
) -> Iterator[RelayService]:
    with running_relay(settings_for(either_database_url, kafka_broker.bootstrap_servers, tmp_path)) as service:
        yield service


def envelope(record: Message) -> Any:
    """The JSON that a record holds."""
    value = record.value()
    assert value is not None
    return json.loads(value)


def test_a_record_has_key_value_and_headers_as_the_contract_says(
    tail_only: RelayService, outbox: Outbox, kafka_broker: KafkaBroker
) -> None:
    payload = '{"text": "héllo 你好 \\u003c🎉", "n": 12345678901234567890}'
    row_id = outbox.add("kéy", 0, payload=payload)

    (record,) = read_topic(kafka_broker.bootstrap_servers, outbox.topic, 1)
    assert record.key() == "kéy".encode()
    assert record.value() == f'{{"outbox_id": {row_id}, "biz_type": "test", "payload": {payload}}}'.encode()
    headers = dict(record.headers() or [])
    assert headers["outbox_id"] == str(row_id).encode()
    assert headers["biz_type"] == b"test"
    assert headers["created_at"] == outbox.rows()[row_id].created_at.isoformat().encode() + b"+00:00"
    outbox.wait_published([row_id])
    row = outbox.rows()[row_id]
    assert row.published_at is not None
    assert row.next_retry_at is None
    assert row.last_error is None


def test_rows_rolled_back_are_never_published(
    tail_only: RelayService, outbox: Outbox, kafka_broker: KafkaBroker
) -> None:
    with outbox.engine.connect() as connection:
        outbox.insert(connection, "k", "rolled back")
        connection.rollback()
        kept = [outbox.insert(connection, "k", 1)]
        connection.exec_driver_sql("SAVEPOINT here")
        outbox.insert(connection, "k", "back to the savepoint")
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT here")
        kept.append(outbox.insert(connection, "k", 2))
        connection.commit()
    outbox.wait_published(kept)
    assert [outbox_id(record) for record in read_topic(kafka_broker.bootstrap_servers, outbox.topic, 2)] == kept


def test_every_way_to_insert_is_delivered(relay: RelayService, outbox: Outbox, kafka_broker: KafkaBroker) -> None:
    columns = "(biz_type, topic, message_key, payload, created_at)"
    row = f"('test', '{outbox.topic}', 'k', '{{}}', UTC_TIMESTAMP(6))"
    outbox.run(
        f"INSERT INTO agent_outbox_messages {columns} VALUES {row}, {row}, {row}",
        f"INSERT INTO agent_outbox_messages {columns} SELECT biz_type, topic, 'k2', '{{}}', created_at "
        "FROM agent_outbox_messages",
        f"REPLACE INTO agent_outbox_messages {columns} VALUES {row}",
        f"INSERT INTO agent_outbox_messages {columns} VALUES {row} ON DUPLICATE KEY UPDATE payload = '[]'",
        "CREATE TABLE chats (id INT PRIMARY KEY)",
        "CREATE TRIGGER told AFTER INSERT ON chats FOR EACH ROW "
        f"INSERT INTO agent_outbox_messages {columns} VALUES {row}",
        "INSERT INTO chats VALUES (1), (2)",
    )
    ids = list(outbox.rows())
    assert len(ids) == 3 + 3 + 1 + 1 + 2
    outbox.wait_published(ids)
    assert sorted(map(outbox_id, read_topic(kafka_broker.bootstrap_servers, outbox.topic, len(ids)))) == ids


def test_ten_thousand_rows_in_one_statement_and_many_bytes_in_one_transaction(
    tail_only: RelayService, outbox: Outbox, kafka_broker: KafkaBroker
) -> None:
    # 36 MB in one transaction: more than the assembler holds, so its rows leave in pieces before the end is seen.
    rows = [{"t": outbox.topic, "k": f"k{n % 7}", "p": json.dumps({"n": n, "pad": "x" * 3_500})} for n in range(10_000)]
    sql = "INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload) VALUES ('test', :t, :k, :p)"
    with outbox.engine.begin() as connection:
        connection.execute(text(sql), rows)
    records = read_topic(kafka_broker.bootstrap_servers, outbox.topic, 10_000)
    assert sorted(map(outbox_id, records)) == sorted(outbox.rows())
    eventually(lambda: set(outbox.statuses().values()) == {"published"}, "all published")
    last: dict[bytes | None, int] = {}
    for record in records:
        assert outbox_id(record) > last.get(record.key(), 0)
        last[record.key()] = outbox_id(record)


def test_a_row_changed_or_deleted_in_its_own_transaction(
    tail_only: RelayService, outbox: Outbox, kafka_broker: KafkaBroker
) -> None:
    with outbox.engine.begin() as connection:
        changed = outbox.insert(connection, "k", "before")
        gone = outbox.insert(connection, "k", "gone")
        done = outbox.insert(connection, "k", "done")
        connection.execute(
            text("""UPDATE agent_outbox_messages SET payload = '{"n": "after"}' WHERE id = :id"""), {"id": changed}
        )
        connection.execute(text("DELETE FROM agent_outbox_messages WHERE id = :id"), {"id": gone})
        connection.execute(text("UPDATE agent_outbox_messages SET status = 'consumed' WHERE id = :id"), {"id": done})
    outbox.wait_published([changed])
    (record,) = read_topic(kafka_broker.bootstrap_servers, outbox.topic, 1)
    assert envelope(record) == {"outbox_id": changed, "biz_type": "test", "payload": {"n": "after"}}
    assert outbox.statuses() == {changed: "published", done: "consumed"}


@pytest.mark.parametrize("status", ["dead", "consumed", "published"])
def test_rows_inserted_with_another_status_are_not_published(
    tail_only: RelayService, outbox: Outbox, kafka_broker: KafkaBroker, status: str
) -> None:
    other = outbox.add("k", 1, status=status)
    sent = outbox.add("k", 2)
    outbox.wait_published([sent])
    assert [outbox_id(record) for record in read_topic(kafka_broker.bootstrap_servers, outbox.topic, 1)] == [sent]
    assert outbox.statuses()[other] == status


def test_a_table_of_the_same_name_elsewhere_is_not_ours(
    tail_only: RelayService, outbox: Outbox, kafka_broker: KafkaBroker
) -> None:
    other = f"{outbox.engine.url.database}_b"
    outbox.run(
        f"CREATE DATABASE {other}",
        f"CREATE TABLE {other}.agent_outbox_messages LIKE agent_outbox_messages",
        f"INSERT INTO {other}.agent_outbox_messages (id, biz_type, topic, message_key, payload) "
        f"VALUES (77, 'test', '{outbox.topic}', 'k', '{{}}')",
    )
    try:
        ours = outbox.add("k", 1)
        assert [outbox_id(r) for r in read_topic(kafka_broker.bootstrap_servers, outbox.topic, 1)] == [ours]
    finally:
        outbox.run(f"DROP DATABASE {other}")


@pytest.mark.parametrize("image", ["FULL", "MINIMAL", "NOBLOB"])
def test_row_images_with_absent_columns(
    tail_only: RelayService, outbox: Outbox, kafka_broker: KafkaBroker, image: str
) -> None:
    with outbox.engine.begin() as connection:
        connection.exec_driver_sql(f"SET SESSION binlog_row_image = '{image}'")
        connection.exec_driver_sql(
            "INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload) "
            f"""VALUES ('test', '{outbox.topic}', 'k', '{{"n": 1}}')"""
        )
    (record,) = read_topic(kafka_broker.bootstrap_servers, outbox.topic, 1)
    assert envelope(record)["payload"] == {"n": 1}
    outbox.wait_published([outbox_id(record)])


def test_the_table_may_be_altered_while_the_relay_runs(
    tail_only: RelayService, outbox: Outbox, kafka_broker: KafkaBroker
) -> None:
    table = "agent_outbox_messages"
    ids = [outbox.add("k", 0)]
    for number, change in enumerate(
        [
            "ADD COLUMN at_the_end INT DEFAULT 7",
            "ADD COLUMN at_the_start VARCHAR(10) DEFAULT 'x' FIRST",
            "ADD COLUMN between_them DATETIME(3) NULL AFTER topic",
            "MODIFY COLUMN retry_count BIGINT NOT NULL DEFAULT 0, MODIFY COLUMN topic VARCHAR(400) NOT NULL",
            "MODIFY COLUMN message_key VARCHAR(128) NOT NULL AFTER payload",
            "DROP COLUMN between_them",
            "CONVERT TO CHARACTER SET latin1",
            "MODIFY COLUMN next_retry_at DATETIME NULL, MODIFY COLUMN created_at DATETIME(3) NULL",
        ],
        start=1,
    ):
        outbox.run(f"ALTER TABLE {table} {change}")
        ids.append(outbox.add("ké", number))
    outbox.wait_published(ids)  # the copy below does not take along what is marked while it is made, as gh-ost does
    # As gh-ost does at its end.
    outbox.run(
        f"CREATE TABLE _new LIKE {table}",
        f"INSERT INTO _new SELECT * FROM {table}",
        f"RENAME TABLE {table} TO _old, _new TO {table}",
    )
    ids.append(outbox.add("k", "after the rename"))
    outbox.wait_published(ids)
    records = read_topic(kafka_broker.bootstrap_servers, outbox.topic, len(ids))
    assert sorted(map(outbox_id, records)) == ids
    # In order per key, also where a row could only be told by the table.
    assert [outbox_id(record) for record in records if record.key() == "ké".encode()] == ids[1:-1]


def test_flushed_logs_and_foreign_traffic_do_not_disturb(
    tail_only: RelayService, outbox: Outbox, kafka_broker: KafkaBroker
) -> None:
    outbox.run("CREATE TABLE noise (id INT AUTO_INCREMENT PRIMARY KEY, v TEXT)")
    ids = []
    for number in range(20):
        outbox.run("INSERT INTO noise (v) VALUES (REPEAT('x', 1000))", "FLUSH BINARY LOGS")
        ids.append(outbox.add("k", number))
        outbox.run("DELETE FROM noise")
    outbox.wait_published(ids)
    assert [outbox_id(r) for r in read_topic(kafka_broker.bootstrap_servers, outbox.topic, 20)] == ids


def test_xa_rows_are_published_at_their_commit_only(
    relay: RelayService, outbox: Outbox, kafka_broker: KafkaBroker
) -> None:
    insert = (
        "INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload) "
        f"VALUES ('test', '{outbox.topic}', '{{key}}', '{{{{}}}}')"
    )
    outbox.run_apart("XA START 'gone'", insert.format(key="gone"), "XA END 'gone'", "XA PREPARE 'gone'")
    outbox.run_apart("XA START 'kept'", insert.format(key="kept"), "XA END 'kept'", "XA PREPARE 'kept'")
    outbox.run_apart("XA START 'once'", insert.format(key="once"), "XA END 'once'", "XA COMMIT 'once' ONE PHASE")
    marker = outbox.add("marker", 1)
    outbox.wait_published([marker])
    assert {record.key() for record in read_topic(kafka_broker.bootstrap_servers, outbox.topic, 2)} == {
        b"once",
        b"marker",
    }
    outbox.run("XA ROLLBACK 'gone'", "XA COMMIT 'kept'")
    records = read_topic(kafka_broker.bootstrap_servers, outbox.topic, 3)
    assert sorted(record.key() or b"" for record in records) == [b"kept", b"marker", b"once"]
    eventually(lambda: set(outbox.statuses().values()) == {"published"}, "all published")


def test_compressed_transactions_are_read_like_others(
    either_server: MysqlServer, tail_only: RelayService, outbox: Outbox, kafka_broker: KafkaBroker
) -> None:
    option = {"mysql": "SESSION binlog_transaction_compression", "mariadb": "GLOBAL log_bin_compress"}
    switch = option[either_server.flavour]
    with outbox.engine.connect() as connection:
        connection.exec_driver_sql(f"SET {switch} = ON")
        try:
            ids = [outbox.insert(connection, "k", n, payload=json.dumps({"pad": "x" * 5000})) for n in range(50)]
            connection.commit()
        finally:
            connection.exec_driver_sql(f"SET {switch} = OFF")
    outbox.wait_published(ids)
    assert [outbox_id(r) for r in read_topic(kafka_broker.bootstrap_servers, outbox.topic, 50)] == ids
