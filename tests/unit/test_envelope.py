"""Row to record and back: the payload byte for byte, and whatever the relay accepts the consumer can read."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdc_relay.errors import PoisonRow
from cdc_relay.outbox.envelope import (
    SLOW_NESTING,
    Envelope,
    MalformedEnvelope,
    check_json,
    decode,
    encode,
    is_legal_topic,
)
from cdc_relay.outbox.row import OutboxRow
from cdc_relay.outbox.status import Status


def row(
    payload: bytes = b"{}",
    *,
    id: int = 1,
    biz_type: str = "chat_history_persist",
    topic: str = "chat-history",
    message_key: bytes = b"conversation-1",
    created_at: datetime | None = datetime(2026, 1, 2, 3, 4, 5, 678901),
) -> OutboxRow:
    return OutboxRow(id, biz_type, topic, message_key, payload, Status.PENDING, 0, None, created_at)


# Integers beyond 64 bits come back as floats, as JSON allows: see the test of numbers below.
_SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
_TEXTS = st.text(st.characters(codec="utf-8"))
_VALUES = st.recursive(
    _SCALARS | _TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_TEXTS, inner, max_size=5),
    max_leaves=30,
)
_TOPICS = st.from_regex(r"[a-zA-Z0-9._-]{1,128}", fullmatch=True).filter(lambda topic: topic not in (".", ".."))
_DIALECTS: list[Callable[[Any], bytes]] = [
    orjson.dumps,
    lambda value: orjson.dumps(value, option=orjson.OPT_INDENT_2),
    lambda value: json.dumps(value).encode(),  # \u escapes for all that is not ASCII
    lambda value: json.dumps(value, ensure_ascii=False, indent="\t").encode(),
    lambda value: json.dumps(value).replace("<", r"\u003c").replace("&", r"\u0026").encode(),  # as Go writes it
    lambda value: b" \r\n\t" + orjson.dumps(value) + b" \r\n\t",
]
_ROWS = st.builds(
    row,
    st.builds(lambda value, dialect: dialect(value), _VALUES, st.sampled_from(_DIALECTS)),
    id=st.integers(1, 2**63 - 1),
    biz_type=st.text(st.characters(codec="utf-8"), min_size=1, max_size=64),
    topic=_TOPICS,
    message_key=st.binary(max_size=128),
    created_at=st.none() | st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)),
)


@given(_ROWS)
@example(row('{"message": "汉字 😀 \\" \\\\ \\u2028"}'.encode()))
@example(row(b"0"))
@example(row(b'""', biz_type='quote" back\\slash \x00 😀'))
def test_what_is_encoded_is_decoded_to_the_same(source: OutboxRow) -> None:
    record = encode(source, UTC)
    assert decode(record.value) == Envelope(source.id, source.biz_type, orjson.loads(source.payload))
    assert (record.topic, record.key) == (source.topic, source.message_key)


@given(_ROWS)
def test_the_payload_stands_in_the_record_byte_for_byte(source: OutboxRow) -> None:
    value = encode(source, UTC).value
    assert value.endswith(b', "payload": ' + source.payload + b"}")
    assert value.startswith(b'{"outbox_id": %d, "biz_type": "' % source.id)
    assert list(json.loads(value)) == ["outbox_id", "biz_type", "payload"]


def test_the_value_is_what_the_contract_says_to_the_byte() -> None:
    record = encode(row(b'{"user_id": 7,  "message":"\\u003cb\\u003e"}'), UTC)
    assert record.value == (
        b'{"outbox_id": 1, "biz_type": "chat_history_persist", "payload": {"user_id": 7,  "message":"\\u003cb\\u003e"}}'
    )


# --- headers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "created_at"),
    [
        ("UTC", b"2026-01-02T03:04:05.678901+00:00"),
        ("Asia/Shanghai", b"2026-01-02T03:04:05.678901+08:00"),
        ("America/New_York", b"2026-01-02T03:04:05.678901-05:00"),
    ],
)
def test_headers_name_the_row_its_type_and_when_it_was_written(zone: str, created_at: bytes) -> None:
    record = encode(row(id=42, biz_type="聊天"), ZoneInfo(zone))
    assert record.headers == [
        ("outbox_id", b"42"),
        ("biz_type", "聊天".encode()),
        ("created_at", created_at),
    ]


def test_a_row_without_a_time_has_no_header_for_it() -> None:
    assert [name for name, _ in encode(row(created_at=None), UTC).headers] == ["outbox_id", "biz_type"]


def test_each_record_has_a_list_of_headers_of_its_own() -> None:
    assert encode(row(), UTC).headers is not encode(row(), UTC).headers


# --- payloads that are no JSON --------------------------------------------------------------------------------------

NOT_JSON = {
    "empty": b"",
    "white space": b" \n",
    "text": b"hello",
    "truncated object": b'{"a": 1',
    "truncated string": b'"abc',
    "closing too much": b'{"a": 1}}',
    "trailing garbage": b'{"a": 1} x',
    "two values": b"{} {}",
    "the inside of a list": b"1, 2",
    "the inside of an object": b'1, "x": 2',
    "a second payload": b'1, "payload": 2',
    "a second id": b'1, "outbox_id": 2',
    "end of a list and begin of the next": b"1], [2",
    "a list turned inside out": b"][",
    "end of the envelope": b'1}, {"a": 1',
    "trailing comma": b"[1,]",
    "single quotes": b"{'a': 1}",
    "comment": b"/* a */ 1",
    "NaN": b"NaN",
    "NaN inside": b'{"a": NaN}',
    "Infinity": b"Infinity",
    "-Infinity": b"[-Infinity]",
    "undefined": b"undefined",
    "True": b"True",
    "leading zero": b"01",
    "hexadecimal": b"0x1",
    "plus": b"+1",
    "point at the end": b"1.",
    "byte order mark": b"\xef\xbb\xbf{}",
    "invalid UTF-8": b'"\xff"',
    "overlong UTF-8": b'"\xc0\x80"',
    "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "NUL after it": b"{}\x00",
    "newline in a string": b'"a\nb"',
    "half an escape": b'"\\u12"',
    "unknown escape": b'"\\x41"',
}


@pytest.mark.parametrize("payload", NOT_JSON.values(), ids=NOT_JSON)
def test_a_payload_that_is_no_json_is_poison_with_the_reason(payload: bytes) -> None:
    with pytest.raises(PoisonRow, match=r"payload is not JSON: .+") as caught:
        encode(row(payload), UTC)
    assert not caught.value.retriable


@given(st.binary(max_size=40) | st.text(st.sampled_from('[]{}",:01. \\ue-nultrfas'), max_size=40).map(str.encode))
@example(b'1, "x": 2')
@example(b"1],[2")
def test_whatever_the_bytes_the_relay_refuses_them_or_the_consumer_reads_the_same(payload: bytes) -> None:
    try:
        record = encode(row(payload), UTC)
    except PoisonRow:
        return
    assert decode(record.value) == Envelope(1, "chat_history_persist", json.loads(payload))


# --- payloads that are JSON, though not every parser reads them -----------------------------------------------------


@pytest.mark.parametrize("text", [r"\ud800", r"\udc00", r"\udc00\ud800", r"a\ud83d", r"\ud83dx\ude00"])
def test_lone_surrogate_escapes_are_json_and_arrive(text: str) -> None:
    payload = f'{{"message": "{text}"}}'.encode()
    record = encode(row(payload), UTC)
    assert payload in record.value
    assert decode(record.value).payload == json.loads(payload)


@pytest.mark.parametrize(
    ("number", "arrives_as"),
    [
        ("9223372036854775807", 2**63 - 1),
        ("18446744073709551615", 2**64 - 1),
        ("-0", 0),
        ("1E2", 100.0),
        ("1e400", math.inf),
        ("1" * 400, int("1" * 400)),
        ("123456789012345678901234567890", 123456789012345678901234567890.0),  # the payload's bytes stay exact
    ],
)
def test_numbers_of_every_size_arrive(number: str, arrives_as: float) -> None:
    record = encode(row(number.encode()), UTC)
    assert decode(record.value).payload == arrives_as


def test_the_same_name_twice_is_json() -> None:
    assert decode(encode(row(b'{"a": 1, "a": 2}'), UTC).value).payload == {"a": 2}


def nested(depth: int, inner: bytes = b"", opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + inner + closing * depth


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("inner", [b"0", rb'"\ud800"', b"1e400"], ids=["plain", "surrogate", "huge"])
@pytest.mark.parametrize("depth", [1, 100, 499, 500, 501, 900, 1022, 1023, 1024, 1025, 2000, 100_000])
def test_what_the_relay_accepts_is_never_nested_too_deeply_for_the_consumer(
    depth: int, inner: bytes, opening: bytes, closing: bytes
) -> None:
    payload = nested(depth, inner, opening, closing)
    accepted_to = 1023 if inner == b"0" else SLOW_NESTING
    if depth > accepted_to:
        with pytest.raises(PoisonRow, match=r"nested too deeply|not JSON"):
            encode(row(payload), UTC)
        return
    value = encode(row(payload), UTC).value
    at = decode(value).payload
    for _ in range(depth):
        at = at["a"] if isinstance(at, dict) else at[0]
    assert not isinstance(at, list | dict)


def test_the_limit_does_not_depend_on_how_deep_the_caller_stands() -> None:
    payload = nested(SLOW_NESTING, rb'"\ud800"')

    def down(levels: int) -> None:
        if levels:
            down(levels - 1)
        else:
            decode(encode(row(payload), UTC).value)

    down(sys.getrecursionlimit() - SLOW_NESTING - 200)


# --- topics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", ["a", "chat-history", "A.b_c-9", "x" * 249, "...", "__consumer_offsets"])
def test_legal_topics(topic: str) -> None:
    assert is_legal_topic(topic)
    assert encode(row(topic=topic), UTC).topic == topic


@pytest.mark.parametrize("topic", ["", ".", "..", "a b", "a/b", "a:b", "对话", "x" * 250, "a\n", "a\x00", " a"])
def test_an_illegal_topic_is_poison_that_names_it(topic: str) -> None:
    assert not is_legal_topic(topic)
    with pytest.raises(PoisonRow, match="no legal Kafka topic") as caught:
        encode(row(topic=topic), UTC)
    assert repr(topic) in str(caught.value)


# --- records that are no envelope -----------------------------------------------------------------------------------

MALFORMED: dict[str, tuple[bytes | None, str]] = {
    "tombstone": (None, "has no value"),
    "empty": (b"", "not JSON"),
    "text": (b"hello", "not JSON"),
    "invalid UTF-8": (b'{"outbox_id": 1, "biz_type": "\xff", "payload": 1}', "not JSON"),
    "NaN": (b'{"outbox_id": 1, "biz_type": "a", "payload": NaN}', "not JSON"),
    "nested too deeply": (nested(100_000), "not JSON"),
    "a list": (b"[]", "must be a JSON object, not list"),
    "null": (b"null", "must be a JSON object, not NoneType"),
    "no id": (b'{"biz_type": "a", "payload": 1}', "outbox_id must be a positive integer, not None"),
    "id 0": (b'{"outbox_id": 0, "biz_type": "a", "payload": 1}', "outbox_id must be a positive integer, not 0"),
    "negative id": (b'{"outbox_id": -1, "biz_type": "a", "payload": 1}', "outbox_id must be"),
    "id beyond BIGINT": (b'{"outbox_id": 9223372036854775808, "biz_type": "a", "payload": 1}', "outbox_id must be"),
    "true as id": (b'{"outbox_id": true, "biz_type": "a", "payload": 1}', "outbox_id must be"),
    "text as id": (b'{"outbox_id": "1", "biz_type": "a", "payload": 1}', "outbox_id must be"),
    "float as id": (b'{"outbox_id": 1.0, "biz_type": "a", "payload": 1}', "outbox_id must be"),
    "deep id": (b'{"outbox_id": %b, "biz_type": "a", "payload": 1}' % nested(1020), "not list"),
    "no type": (b'{"outbox_id": 1, "payload": 1}', "biz_type must be a non-empty string, not None"),
    "empty type": (b'{"outbox_id": 1, "biz_type": "", "payload": 1}', "biz_type must be"),
    "number as type": (b'{"outbox_id": 1, "biz_type": 7, "payload": 1}', "biz_type must be a non-empty string, not 7"),
    "deep type": (b'{"outbox_id": 1, "biz_type": %b, "payload": 1}' % nested(1020, b"1", b'{"a":', b"}"), "not dict"),
    "no payload": (b'{"outbox_id": 1, "biz_type": "a"}', "payload is missing"),
}


@pytest.mark.parametrize(("value", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_a_record_that_is_no_envelope_is_refused_with_the_reason(value: bytes | None, reason: str) -> None:
    with pytest.raises(MalformedEnvelope, match=reason) as caught:
        decode(value)
    assert len(str(caught.value)) < 500


def test_more_members_than_ours_and_another_order_are_no_error() -> None:
    value = b'{"payload": null, "trace": "x", "biz_type": "a", "outbox_id": 9223372036854775807}'
    assert decode(value) == Envelope(2**63 - 1, "a", None)


@given(st.binary(max_size=200))
def test_no_bytes_make_decode_fail_in_another_way(value: bytes) -> None:
    try:
        decode(value)
    except MalformedEnvelope:
        pass


def test_check_json_accepts_what_encode_accepts() -> None:
    check_json(b'{"a": [1, 2.5, "x", null, true]}')
    with pytest.raises(PoisonRow):
        check_json(b"{")
