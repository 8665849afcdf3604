"""Transactions larger than anybody wants to hold: the relay stays as small as it was. FAULTS_LONG=1: the long forms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from tests.e2e.long_forms import MEGABYTES_ELSEWHERE, PATIENCE_S, PAYLOAD_BYTES, ROWS_IN_ONE_TRANSACTION
from tests.e2e.stack import Stack, stack_on
from tests.harness import eventually

KEYS = 1_000
#: What the relay may grow by, MiB. The transactions are several times as large.
GROWTH_MIB = 80

NUMBERS = """
WITH RECURSIVE digit AS (SELECT 0 AS d UNION ALL SELECT d + 1 FROM digit WHERE d < 9)
SELECT a.d + 10 * b.d + 100 * c.d + 1000 * e.d + 10000 * f.d + 100000 * g.d AS n
FROM digit a, digit b, digit c, digit e, digit f, digit g
"""


@pytest.fixture
def stack(own_mysql: MysqlServer, kafka_broker: KafkaBroker, tmp_path: Path) -> Iterator[Stack]:
    with stack_on(own_mysql, kafka_broker.bootstrap_servers, tmp_path) as stack:
        stack.relay.start()
        yield stack


def peak_mib(stack: Stack) -> float:
    """The relay's largest resident memory so far."""
    status = Path(f"/proc/{stack.relay.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def insert_rows(stack: Stack, count: int, payload_bytes: int) -> None:
    """So many rows in one transaction, in the order of their numbers."""
    stack.sql(
        "INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload, status, next_retry_at, created_at) "
        f"SELECT 'test', '{stack.topic}', CONCAT('key-', n % {KEYS}), "
        f"CONCAT('{{\"n\": ', n, ', \"pad\": \"', REPEAT('x', {payload_bytes - 20}), '\"}}'), "
        f"'pending', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6) FROM ({NUMBERS}) AS numbers WHERE n < {count} ORDER BY n"
    )


def wait_until_published(stack: Stack) -> None:
    def nothing_pending() -> bool:
        stack.relay.check()
        return stack.statuses().get("pending", 0) == 0

    eventually(nothing_pending, "every row published", PATIENCE_S)


def records(stack: Stack) -> Counter[int]:
    """How often each row is in Kafka; fails when rows of a key are not in order."""
    consumer = Consumer({"bootstrap.servers": stack.kafka, "group.id": "large", "enable.auto.commit": False})
    found: Counter[int] = Counter()
    last: dict[bytes | None, int] = {}
    try:
        ends = {}
        for partition in range(stack.partitions):
            _, end = consumer.get_watermark_offsets(TopicPartition(stack.topic, partition), timeout=30)
            if end:
                ends[partition] = end
        consumer.assign([TopicPartition(stack.topic, partition, 0) for partition in ends])
        while ends:
            for record in consumer.consume(1_000, timeout=5.0):
                assert record.error() is None
                header = dict(record.headers() or [])["outbox_id"]
                assert header is not None
                row_id = int(header)
                found[row_id] += 1
                if found[row_id] == 1:
                    assert last.get(record.key(), 0) < row_id
                    last[record.key()] = row_id
                offset, number = record.offset(), record.partition()
                assert offset is not None
                assert number is not None
                if offset + 1 >= ends.get(number, 0):
                    ends.pop(number, None)
    finally:
        consumer.close()
    return found


def test_an_outbox_transaction_of_any_size_is_published_in_order_and_not_held(stack: Stack) -> None:
    insert_rows(stack, KEYS, PAYLOAD_BYTES)  # what any traffic makes the relay grow to
    wait_until_published(stack)
    before = peak_mib(stack)
    insert_rows(stack, ROWS_IN_ONE_TRANSACTION, PAYLOAD_BYTES)
    wait_until_published(stack)
    grown = peak_mib(stack) - before
    found = records(stack)
    ids = {row_id for (row_id,) in stack.sql("SELECT id FROM agent_outbox_messages")}
    assert found.keys() == ids
    assert set(found.values()) == {1}
    print(f"grown by {grown:.0f} MiB")
    assert grown < GROWTH_MIB, f"a transaction of {ROWS_IN_ONE_TRANSACTION} rows cost {grown:.0f} MiB"


def test_a_transaction_of_any_size_in_other_tables_costs_no_memory(stack: Stack) -> None:
    insert_rows(stack, KEYS, 500)
    wait_until_published(stack)
    before = peak_mib(stack)
    stack.sql("CREATE TABLE other (id BIGINT AUTO_INCREMENT PRIMARY KEY, content LONGTEXT)")
    with stack.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        for _ in range(MEGABYTES_ELSEWHERE // 100):
            connection.exec_driver_sql(
                "INSERT INTO other (content) WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n "
                "WHERE i < 100) SELECT REPEAT(CHAR(65 + MOD(i, 26)), 1000000) FROM n"
            )
        connection.exec_driver_sql(
            "INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload, status, next_retry_at, "
            "created_at) VALUES ('test', %s, 'last', '{}', 'pending', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))",
            (stack.topic,),
        )
        connection.exec_driver_sql("COMMIT")
    wait_until_published(stack)
    grown = peak_mib(stack) - before
    assert len(records(stack)) == KEYS + 1
    print(f"grown by {grown:.0f} MiB")
    assert grown < GROWTH_MIB / 2, f"{MEGABYTES_ELSEWHERE} MB in another table cost {grown:.0f} MiB"
