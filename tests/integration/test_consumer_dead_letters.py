"""What has no usable row is kept: its bytes as they were, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from random import Random
from typing import Any

import pytest
from confluent_kafka import Message

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.errors import KafkaError
from consumer.plan import Outcome
from tests.consumer_harness import World, payload

pytestmark = [pytest.mark.mysql, pytest.mark.kafka]

MALFORMED: dict[str, bytes | None] = {
    "a tombstone": None,
    "nothing": b"",
    "text": b"hello",
    "half an object": b'{"outbox_id": 1, "biz_type": "chat_history_per',
    "no UTF-8": b'{"outbox_id": 1, "biz_type": "\xff\xfe", "payload": {}}',
    "an array": b"[1, 2]",
    "null": b"null",
    "no id": b'{"biz_type": "chat_history_persist", "payload": {}}',
    "an id in text": b'{"outbox_id": "1", "biz_type": "chat_history_persist", "payload": {}}',
    "an id of true": b'{"outbox_id": true, "biz_type": "chat_history_persist", "payload": {}}',
    "an id of 0": b'{"outbox_id": 0, "biz_type": "chat_history_persist", "payload": {}}',
    "an id beyond BIGINT": b'{"outbox_id": 9223372036854775808, "biz_type": "chat_history_persist", "payload": {}}',
    "no type": b'{"outbox_id": 1, "payload": {}}',
    "no payload": b'{"outbox_id": 1, "biz_type": "chat_history_persist"}',
    "NaN": b'{"outbox_id": 1, "biz_type": "chat_history_persist", "payload": NaN}',
    "deep nesting": b"[" * 100_000,
    "binary": bytes(range(256)),
}


@pytest.fixture
def world(database_url: str, kafka_broker: KafkaBroker, topic: str) -> Iterator[World]:
    world = World(database_url, kafka_broker.bootstrap_servers, topic)
    yield world
    world.close()


def headers(letter: Message) -> dict[str, Any]:
    return dict(letter.headers() or [])


def test_records_that_are_no_envelopes_are_kept_as_they_were_and_the_next_ones_go_on(world: World) -> None:
    world.add_chats("a")
    for value in MALFORMED.values():
        world.produce_bytes(value, b"the key", [("mine", b"\x00\xff"), ("mine", b"twice")])
    world.flush()
    world.send([payload("a", "after")])
    assert world.consume(len(MALFORMED) + 1) == {Outcome.NO_ROW: len(MALFORMED), Outcome.CONSUMED: 1}

    letters = world.dead_letters(len(MALFORMED))
    assert [letter.value() for letter in letters] == list(MALFORMED.values())
    for offset, letter in enumerate(letters):
        assert letter.key() == b"the key"
        kept = letter.headers()
        assert isinstance(kept, list)
        assert kept[:2] == [("mine", b"\x00\xff"), ("mine", b"twice")]
        found = headers(letter)
        assert found["dlq_reason"]
        assert (found["dlq_topic"], found["dlq_partition"]) == (world.topic.encode(), b"0")
        assert found["dlq_offset"] == b"%d" % offset
        assert datetime.fromisoformat(found["dlq_at"].decode()).tzinfo is not None
    assert world.consume(0) == {}  # its offset has moved: nothing comes again


def test_a_record_without_a_key_or_headers_is_kept_without(world: World) -> None:
    world.produce_bytes(b"hello", None)
    world.flush()
    world.consume(1)
    (letter,) = world.dead_letters(1)
    assert letter.key() is None
    assert set(headers(letter)) == {"dlq_reason", "dlq_topic", "dlq_partition", "dlq_offset", "dlq_at"}


def test_a_record_of_no_row_is_kept(world: World) -> None:
    value = json.dumps({"outbox_id": 4711, "biz_type": "chat_history_persist", "payload": payload("a", "x")}).encode()
    world.produce_bytes(value)
    world.flush()
    assert world.consume(1) == {Outcome.NO_ROW: 1}
    (letter,) = world.dead_letters(1)
    assert letter.value() == value
    assert headers(letter)["dlq_reason"] == b"the outbox has no row with id 4711"
    assert world.histories() == []


POISON: list[tuple[Any, dict[str, str], str]] = [
    (payload("a", "x"), {"biz_type": "unheard_of"}, "no handler for biz_type 'unheard_of'"),
    (payload("a", "x"), {"biz_type": "类型"}, "no handler for biz_type '类型'"),
    ("[1]", {}, "payload must be a JSON object, not an array"),
    ('"text"', {}, "payload must be a JSON object, not 'text'"),
    ("null", {}, "payload must be a JSON object, not null"),
    (payload("a", "x") | {"user_id": "7"}, {}, "payload.user_id must be an integer"),
    (payload("", "x"), {}, "payload.conversation_id must be a string of 1 to 36 characters"),
    (payload("a", "x", role="r" * 33), {}, "payload.role must be a string of at most 32 characters"),
    ({"user_id": 7}, {}, "payload.message is missing"),
    (
        '{"user_id": 7, "conversation_id": "a", "role": "user", "message": "half \\ud83d a pair"}',
        {},
        "payload.message must be text that UTF-8 can say",
    ),
]


def test_rows_that_can_never_be_applied_are_dead_and_their_records_kept(world: World) -> None:
    world.add_chats("a")
    ids = [row_id for body, columns, _ in POISON for row_id in world.send([body], **columns)]
    world.send([payload("a", "after")])
    assert world.consume(len(POISON) + 1) == {Outcome.DEAD: len(POISON), Outcome.CONSUMED: 1}
    rows, letters = world.rows(), world.dead_letters(len(POISON))
    for row_id, letter, (_, _, says) in zip(ids, letters, POISON, strict=True):
        dead = rows[row_id]
        assert (dead.status, dead.retry_count, dead.next_retry_at) == ("dead", 1, None)
        assert says in dead.last_error
        assert says in headers(letter)["dlq_reason"].decode()
        assert headers(letter)["outbox_id"] == b"%d" % row_id


def test_a_dead_row_stays_dead(world: World) -> None:
    world.add_chats("a")
    ids = world.send([payload("a", "one")], status="dead", last_error="by hand")
    assert world.consume(1) == {Outcome.DUPLICATE: 1}
    assert world.rows()[ids[0]].last_error == "by hand"
    assert world.histories() == []


def test_a_record_at_the_size_limit_still_fits_with_its_reason(world: World) -> None:
    value = b"x" * 1_048_000  # the broker's limit is 1,048,588 with its framing
    world.produce_bytes(value, b"")
    world.flush()
    world.consume(1)
    (letter,) = world.dead_letters(1)
    assert letter.value() == value


def test_a_dead_letter_that_the_broker_refuses_stops_the_program_and_loses_nothing(world: World) -> None:
    with world.worker():
        pass  # makes the dead-letter topic
    world.set_message_limit(f"{world.topic}.dlq", 1_000)
    noise = Random(1).randbytes(20_000)  # so that no compression makes it fit
    world.produce_bytes(noise)
    world.flush()
    with world.worker() as worker, pytest.raises(KafkaError, match=r"Raise max\.message\.bytes"):
        world.take(worker, 1)
    world.set_message_limit(f"{world.topic}.dlq", 1_000_000)
    assert world.consume(1) == {Outcome.NO_ROW: 1}
    (letter,) = world.dead_letters(1)
    assert letter.value() == noise
