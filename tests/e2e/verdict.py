"""What came of it: the ledger against the outbox, Kafka and the chat history, each read by means of the test's own."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from confluent_kafka import Consumer, TopicPartition
from sqlalchemy import Engine, create_engine, text

from tests.e2e.ledger import BIZ_TYPE, Ledger, Written, digest

_READ_PATIENCE_S = 60.0


class Seen(NamedTuple):
    """A record, as it stands in its partition."""

    row_id: int
    key: str
    payload: bytes


@dataclass
class Verdict:
    """Counts of rows; only ``rows`` and ``duplicated_in_kafka`` may be other than 0."""

    rows: int = 0
    lost: int = 0
    """Committed, but not in Kafka, or without its effect, or not marked consumed at the end."""
    invented: int = 0
    """In Kafka, in the outbox or in the chat history, but never committed, or not as it was committed."""
    duplicated_in_kafka: int = 0
    """Records beyond the first of their row. Delivery is at least once: allowed within bounds."""
    applied_twice: int = 0
    out_of_order: int = 0
    """Behind a later one of their key, in Kafka (first occurrences) or in the chat history."""
    wrong_counts: int = 0
    """Conversations whose message_count is not what was written."""
    recovered_in_s: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def violations(self) -> int:
        return self.lost + self.invented + self.applied_twice + self.out_of_order + self.wrong_counts

    def require_good(self, *, duplicates: int) -> None:
        """Fail unless every promise was kept, with at most so many duplicates in Kafka."""
        assert self.violations == 0, f"{self}"
        assert self.duplicated_in_kafka <= duplicates, f"more than {duplicates} duplicates in Kafka: {self}"

    def note(self, what: str, found: Iterable[Any]) -> int:
        """Count what was found, keeping some of it as examples."""
        listed = list(found)
        if listed:
            self.examples.append(f"{what}: {len(listed)}, such as {listed[:5]}")
        return len(listed)


def read_kafka(bootstrap_servers: str, topic: str) -> list[Seen]:
    """Every record that is in ``topic`` now, in the order of each partition, read in no group of the programs."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "verdict",
            "enable.auto.commit": False,
            "fetch.message.max.bytes": 50_000_000,
            "log_level": 2,
        }
    )
    seen: list[Seen] = []
    try:
        partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        left: dict[int, int] = {}
        for number in partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)
            if high > low:
                left[number] = high
        consumer.assign([TopicPartition(topic, number, 0) for number in left])
        deadline = time.monotonic() + _READ_PATIENCE_S
        while left:
            for record in consumer.consume(1000, timeout=0.5):
                assert record.error() is None, str(record.error())
                seen.append(_seen(record.key(), record.value()))
                offset, partition = record.offset(), record.partition()
                assert offset is not None
                assert partition is not None
                if offset + 1 >= left.get(partition, 0):
                    left.pop(partition, None)
            assert time.monotonic() < deadline, f"Kafka does not give what it has: {left}"
    finally:
        consumer.close()
    return seen


def _seen(key: bytes | None, value: bytes | None) -> Seen:
    """The payload's bytes as they stand in the envelope, which nothing may have touched."""
    assert value is not None
    row_id = int(json.loads(value)["outbox_id"])
    head = b'{"outbox_id": %d, "biz_type": "%b", "payload": ' % (row_id, BIZ_TYPE.encode())
    assert value.startswith(head), value[:200]
    return Seen(row_id, (key or b"").decode(), digest(value[len(head) : -1]))


def judge(ledger: Ledger, url: str, seen: Sequence[Seen], *, kafka_kept_all: bool = True) -> Verdict:
    """Compare. ``kafka_kept_all``: false where Kafka itself was made to lose records."""
    engine = create_engine(url)
    try:
        return _judge(ledger, engine, seen, kafka_kept_all)
    finally:
        engine.dispose()


def _judge(ledger: Ledger, engine: Engine, seen: Sequence[Seen], kafka_kept_all: bool) -> Verdict:
    written = ledger.committed
    alive = {row_id: row for row_id, row in written.items() if row_id not in ledger.dead}
    verdict = Verdict(rows=len(written))
    with engine.connect() as connection:
        outbox = {
            int(row.id): (str(row.status), digest(row.payload))
            for row in connection.execute(
                text("SELECT id, status, payload FROM agent_outbox_messages"), execution_options={"yield_per": 500}
            )
        }
        histories = [
            (str(row.chat_id), digest(row.message_content))
            for row in connection.execute(
                text("SELECT chat_id, message_content FROM chat_histories ORDER BY id"),
                execution_options={"yield_per": 500},
            )
        ]
        counts = {
            str(chat_id): int(count)
            for chat_id, count in connection.execute(text("SELECT chat_id, message_count FROM agent_chats"))
        }
    kafka = Counter(record.row_id for record in seen)
    by_text = {(row.key, row.message): row for row in alive.values()}
    applied = Counter(histories)

    lost = {
        row_id
        for row_id, row in alive.items()
        if (kafka_kept_all and not kafka[row_id])
        or not applied[row.key, row.message]
        or outbox.get(row_id, ("", b""))[0] != "consumed"
    }
    lost |= {row_id for row_id in ledger.dead if outbox.get(row_id, ("", b""))[0] != "dead"}
    verdict.lost = verdict.note("lost", sorted(lost))
    verdict.invented = (
        verdict.note("invented in Kafka", [record for record in seen if not _is_of(record, alive)])
        + verdict.note("invented in the history", [one for one in applied if one not in by_text])
        + verdict.note(
            "invented in the outbox",
            [i for i, (_, payload) in outbox.items() if i not in written or written[i].payload != payload],
        )
    )
    verdict.duplicated_in_kafka = sum(count - 1 for count in kafka.values())
    verdict.applied_twice = verdict.note(
        "applied twice", [by_text[one] for one, count in applied.items() if count > 1 and one in by_text]
    )
    first_seen = dict.fromkeys(record.row_id for record in seen)
    verdict.out_of_order = verdict.note(
        "out of order in Kafka", _descents(written[i] for i in first_seen if i in written)
    ) + verdict.note(
        "out of order in the history", _descents(by_text[one] for one in dict.fromkeys(histories) if one in by_text)
    )
    expected = Counter(row.key for row in alive.values())
    verdict.wrong_counts = verdict.note(
        "wrong counts", [(key, count, expected[key]) for key, count in counts.items() if count != expected[key]]
    )
    return verdict


def _is_of(record: Seen, alive: Mapping[int, Written]) -> bool:
    row = alive.get(record.row_id)
    return row is not None and (row.key, row.payload) == (record.key, record.payload)


def _descents(rows: Iterable[Written]) -> list[Written]:
    """Those that stand behind a later one of their key."""
    highest: dict[str, int] = {}
    behind = []
    for row in rows:
        if row.seq < highest.get(row.key, -1):
            behind.append(row)
        highest[row.key] = max(row.seq, highest.get(row.key, -1))
    return behind
