"""What the quick loop sends is what the careful way sends, and it takes nothing that it is not certain of."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.binlog.batches import TransactionBatch
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.delivery import Delivery
from cdc_relay.outbox import datetime2
from cdc_relay.outbox.envelope import SHORT, Encoder, check_json, decode
from cdc_relay.outbox.row import BinlogRow, Due, OutboxRow
from cdc_relay.parking import SharedParking
from cdc_relay.quick_send import QuickSender
from cdc_relay.tailer import Tailer
from cdc_relay.watermark import AckWatermark
from tests.fakes import FakePublisher, FakeSource

NOW = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
WALL = NOW.replace(tzinfo=None)
START = BinlogPosition("binlog.000001", 4)

packed_times = st.none() | st.builds(
    datetime2.pack,
    st.timedeltas(timedelta(days=-2), timedelta(days=2)).map(lambda away: WALL + away),
    st.integers(datetime2.WHOLE_BYTES, datetime2.LONGEST_BYTES),
)
payloads = st.sampled_from(
    [
        *(b"{}", b"1", b"", b"{", b"NaN", b'"\\ud800"', b"[" * 600 + b"]" * 600, b'"' + b"x" * SHORT + b'"'),
        *(b"\xef\xbb\xbf{}", b'"\xff"', b"1e999", b"9" * 30, b"{} {}", b"{}\0", b"[1,]"),
    ]
)
rows = st.builds(
    BinlogRow,
    st.integers(1, 50),
    st.sampled_from(["chat", "mail", 'q"']),
    st.sampled_from(["topic", "other", "missing", "not legal"]),
    st.sampled_from([b"", b"a", b"b"]),
    payloads,
    st.sampled_from(["pending"] * 5 + ["dead", "published"]),
    st.sampled_from([0] * 5 + [1]),
    packed_times,
    packed_times,
    st.just(False),
)


def packed(row_id: int, **changes: Any) -> OutboxRow:
    at = datetime2.pack(WALL - timedelta(seconds=1), datetime2.LONGEST_BYTES)
    row = BinlogRow(row_id, "chat", "topic", b"a", b"{}", "pending", 0, at, at, False)  # type: ignore[arg-type]
    return row._replace(**changes)


def deliver(some: list[OutboxRow], held: list[tuple[bytes, int]]) -> tuple[Delivery, FakePublisher, SharedParking]:
    """One batch through a tailer."""
    publisher = FakePublisher(missing={"missing"})
    parking = SharedParking()
    for key, row_id in held:
        parking.hold(key, row_id)
    complete: list[Delivery] = []
    tailer = Tailer(
        FakeSource([TransactionBatch(some, BinlogPosition("binlog.000001", 100))]),
        lambda: FakeSource(),  # type: ignore[arg-type,return-value]  # not asked
        publisher,
        AckWatermark(START, max_rows=1000, max_bytes=10**9),
        parking,
        lambda ids: [],
        complete.append,
        head=lambda: START,
        wait=lambda seconds: False,
        zone=UTC,
    )
    tailer.run_once(lambda: NOW)
    publisher.poll(0)
    return (complete or [Delivery(publisher, complete.append, path="none")])[0], publisher, parking


@given(st.lists(rows, max_size=12), st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.integers(1, 50)), max_size=1))
def test_packed_rows_are_sent_as_the_same_rows_unpacked_are(
    some: list[BinlogRow], held: list[tuple[bytes, int]]
) -> None:
    quick, published, parking = deliver(list(some), held)
    careful, expected, parked = deliver([row.unpacked for row in some], held)
    assert published.published == expected.published
    assert quick.sent == careful.sent
    assert {row_id: str(why) for row_id, why in quick.failed.items()} == {
        row_id: str(why) for row_id, why in careful.failed.items()
    }
    assert quick.parked == careful.parked
    assert parking.waiting(100) == parked.waiting(100)


texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
).map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
scraps = st.sampled_from([*(bytes([byte]) for byte in b'{}[]",:\\/ \t\n\0\x1f\x7f\x80-+.0189eEuntf'), b"\xef\xbb\xbf"])


@pytest.mark.parametrize("has_simdjson", [True, False])
@given(texts, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 2), scraps), max_size=3))
def test_no_payload_passes_that_the_careful_way_refuses(
    has_simdjson: bool, payload: bytes, mutations: list[tuple[int, int, bytes]]
) -> None:
    for at, length, scrap in mutations:
        payload = payload[:at] + scrap + payload[at + length :]
    publisher = FakePublisher()
    publisher.topics.add("topic")
    with patch.dict(sys.modules, {} if has_simdjson else {"simdjson": None}):
        quick, delivery = sender(publisher, SharedParking())
    if quick.run([packed(1, payload=payload)], 0, Due.at(WALL), delivery):
        check_json(payload)
        assert decode(publisher.published[0].value).outbox_id == 1


def sender(publisher: FakePublisher, parking: SharedParking) -> tuple[QuickSender, Delivery]:
    return QuickSender(publisher, parking.held, Encoder(UTC)), Delivery(publisher, lambda _: None, path="tail")


def test_it_begins_where_it_is_told_and_stops_at_what_is_not_ordinary() -> None:
    publisher = FakePublisher()
    publisher.topics.add("topic")
    quick, delivery = sender(publisher, SharedParking())
    some = [packed(1), packed(2), packed(3), packed(4, payload=b"{"), packed(5)]
    due = Due.at(WALL)
    assert quick.run(some, 1, due, delivery) == 3
    assert quick.run(some, 3, due, delivery) == 3
    assert quick.run(some, 4, due, delivery) == 5
    assert quick.run(some, 5, due, delivery) == 5
    assert delivery.sent == [2, 3, 5]


def test_it_sends_nothing_to_a_topic_that_is_not_known_to_be_there() -> None:
    publisher = FakePublisher()
    quick, delivery = sender(publisher, SharedParking())
    assert quick.run([packed(1)], 0, Due.at(WALL), delivery) == 0
    assert not publisher.published


def test_a_key_held_back_meanwhile_stops_it() -> None:
    parking = SharedParking()
    publisher = FakePublisher()
    publisher.topics.add("topic")
    quick, delivery = sender(publisher, parking)
    assert quick.run([packed(1)], 0, Due.at(WALL), delivery) == 1
    parking.hold(b"b", 7)
    assert quick.run([packed(2)], 0, Due.at(WALL), delivery) == 0
    parking.release([7])
    assert quick.run([packed(2)], 0, Due.at(WALL), delivery) == 1


def test_what_the_client_refuses_is_left_to_the_careful_way() -> None:
    class Full(FakePublisher):
        def produce(self, *record: Any) -> None:
            raise BufferError("queue full")

    publisher = Full()
    publisher.topics.add("topic")
    quick, delivery = sender(publisher, SharedParking())
    assert quick.run([packed(1)], 0, Due.at(WALL), delivery) == 0
    assert not delivery.sent
