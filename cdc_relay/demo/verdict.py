"""What came of it, from the database and from Kafka alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from cdc_relay.bench.figures import nearest_rank
from cdc_relay.demo.observer import Seen


class Written(NamedTuple):
    """A message that the application committed, by its own table."""

    outbox_id: int
    chat_id: str
    seq: int
    body: bytes
    """A digest of it."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the database says after all is done."""

    written: Sequence[Written]
    outbox: Mapping[int, str]
    """Every row of the outbox: its status by id."""
    histories: Mapping[str, Sequence[bytes]]
    """By conversation, digests in the order of their ids."""
    message_counts: Mapping[str, int]
    """``agent_chats.message_count`` by conversation."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Counts of messages. Everything but the first three and ``redelivered`` must be 0."""

    inserted: int
    """Committed by the application."""
    published: int
    """Of these, found in Kafka."""
    consumed: int
    """Of these, marked consumed."""
    lost: int
    """Committed, but not in Kafka, or not in the chat history, or not marked consumed."""
    duplicates_applied: int
    """In the chat history more than once, counting each time beyond the first."""
    out_of_order: int
    """In Kafka or in the chat history behind a later one of their conversation."""
    invented: int
    """In Kafka or in the chat history, but never committed, or not as it was committed."""
    wrong_counts: int
    """Conversations whose message_count is not what was written."""
    redelivered: int
    """Records in Kafka beyond the first of their row. Allowed: delivery is at least once."""
    latency_ms: Mapping[str, float | None]
    """From the return of COMMIT to the arrival at an independent reader of the topic."""

    @property
    def is_good(self) -> bool:
        """Nothing lost, doubled, invented or out of order."""
        bad = self.lost + self.duplicates_applied + self.out_of_order + self.invented + self.wrong_counts
        return bad == 0 and self.inserted == self.published == self.consumed

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"latency_ms": dict(self.latency_ms)}


def judge(ledger: Ledger, seen: Sequence[Seen], latencies_s: Iterable[float]) -> Verdict:
    """Compare what was promised with what is there: pure."""
    by_id = {message.outbox_id: message for message in ledger.written}
    texts = {(message.chat_id, message.body): message for message in ledger.written}
    kafka = Counter(record.outbox_id for record in seen)
    applied = Counter((chat_id, body) for chat_id, bodies in ledger.histories.items() for body in bodies)
    consumed = {row_id for row_id, status in ledger.outbox.items() if status == "consumed" and row_id in by_id}
    lost = {
        message.outbox_id
        for message in ledger.written
        if not kafka[message.outbox_id]
        or not applied[message.chat_id, message.body]
        or message.outbox_id not in consumed
    }
    strange_rows = ledger.outbox.keys() - by_id.keys()  # the outbox itself holds what was never committed
    return Verdict(
        inserted=len(by_id),
        published=sum(1 for row_id in by_id if kafka[row_id]),
        consumed=len(consumed),
        lost=len(lost),
        duplicates_applied=sum(count - 1 for message, count in applied.items() if message in texts),
        out_of_order=_out_of_order(seen, ledger.histories, by_id, texts),
        invented=(
            len(kafka.keys() - by_id.keys()) + sum(1 for message in applied if message not in texts) + len(strange_rows)
        ),
        wrong_counts=_wrong_counts(ledger),
        redelivered=sum(count - 1 for row_id, count in kafka.items() if row_id in by_id),
        latency_ms=percentiles_ms(latencies_s),
    )


def percentiles_ms(latencies_s: Iterable[float]) -> dict[str, float | None]:
    """Median, 99th percentile and maximum, by nearest rank. A record may be there before COMMIT returns: that is 0."""
    ordered = sorted(max(0.0, latency) for latency in latencies_s)

    def at(share: float) -> float | None:
        return round(1000 * nearest_rank(ordered, share), 2) if ordered else None

    return {"p50": at(0.5), "p99": at(0.99), "max": at(1.0)}


def read_ledger(connection: Connection) -> Ledger:
    """Everything that ``judge`` needs, from the tables."""
    written = [
        Written(int(row.outbox_id), str(row.chat_id), int(row.seq), _digest(row.body))
        for row in _rows(connection, "SELECT outbox_id, chat_id, seq, body FROM demo_messages")
    ]
    histories: dict[str, list[bytes]] = {}
    for row in _rows(connection, "SELECT chat_id, message_content FROM chat_histories ORDER BY id"):
        histories.setdefault(str(row.chat_id), []).append(_digest(row.message_content))
    return Ledger(
        written,
        {int(row.id): str(row.status) for row in _rows(connection, "SELECT id, status FROM agent_outbox_messages")},
        histories,
        {
            str(r.chat_id): int(r.message_count)
            for r in _rows(connection, "SELECT chat_id, message_count FROM agent_chats")
        },
    )


def _out_of_order(
    seen: Sequence[Seen],
    histories: Mapping[str, Sequence[bytes]],
    by_id: Mapping[int, Written],
    texts: Mapping[tuple[str, bytes], Written],
) -> int:
    in_kafka: dict[str, list[int]] = {}
    for row_id in dict.fromkeys(record.outbox_id for record in seen if record.outbox_id in by_id):
        in_kafka.setdefault(by_id[row_id].chat_id, []).append(by_id[row_id].seq)
    in_history = (
        [texts[chat_id, body].seq for body in dict.fromkeys(bodies) if (chat_id, body) in texts]
        for chat_id, bodies in histories.items()
    )
    return sum(map(_descents, (*in_kafka.values(), *in_history)))


def _descents(seqs: Sequence[int]) -> int:
    """How many stand behind a higher one."""
    highest, found = -1, 0
    for seq in seqs:
        found += seq < highest
        highest = max(highest, seq)
    return found


def _wrong_counts(ledger: Ledger) -> int:
    expected = Counter(message.chat_id for message in ledger.written)
    return sum(count != expected[chat_id] for chat_id, count in ledger.message_counts.items())


def _rows(connection: Connection, sql: str) -> Iterable[Any]:
    return connection.execute(text(sql), execution_options={"yield_per": 5000})


def _digest(body: str) -> bytes:
    return blake2b(body.encode(), digest_size=12).digest()
