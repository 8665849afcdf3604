"""The payload of ``chat_history_persist``: what is taken, and what a wrong one is told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.errors import PoisonRow
from consumer.handlers.chat_message import ChatMessage, read

GOOD = {"user_id": 7, "conversation_id": "c-1", "role": "user", "message": "hello"}


def test_a_good_payload_is_taken_as_it_is() -> None:
    assert read(GOOD) == ChatMessage(user_id=7, conversation_id="c-1", role="user", message="hello")


def test_fields_that_the_application_adds_are_ignored() -> None:
    assert read(GOOD | {"trace_id": "x", "tokens": {"in": 3}}) == read(GOOD)


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": -(2**31)},
        {"user_id": 2**31 - 1},
        {"conversation_id": "x" * 36},
        {"conversation_id": "会" * 36},
        {"role": ""},
        {"role": "😀" * 32},
        {"message": ""},
        {"message": "a\0b\r\n\"'\\ 😀 中文"},
    ],
)
def test_the_limits_are_inside(change: dict[str, Any]) -> None:
    assert read(GOOD | change)._asdict() == GOOD | change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"user_id": "7"}, "payload.user_id must be an integer from -2147483648 to 2147483647, not '7'"),
        ({"user_id": True}, "payload.user_id must be an integer from -2147483648 to 2147483647, not true"),
        ({"user_id": 7.0}, "payload.user_id must be an integer from -2147483648 to 2147483647, not 7.0"),
        ({"user_id": None}, "not null"),
        ({"user_id": 2**31}, "not 2147483648"),
        ({"user_id": -(2**31) - 1}, "not -2147483649"),
        ({"user_id": [1]}, "not an array"),
        ({"conversation_id": ""}, "payload.conversation_id must be a string of 1 to 36 characters, not ''"),
        ({"conversation_id": "x" * 37}, "payload.conversation_id must be a string of 1 to 36 characters"),
        ({"conversation_id": 5}, "not 5"),
        ({"role": "x" * 33}, "payload.role must be a string of at most 32 characters"),
        ({"role": {}}, "not an object"),
        ({"message": None}, "payload.message must be a string, not null"),
        ({"message": b"bytes"}, "payload.message must be a string"),
        ({"message": "half \ud800 a pair"}, "payload.message must be text that UTF-8 can say"),
        ({"conversation_id": "\udfff"}, "payload.conversation_id must be text that UTF-8 can say"),
    ],
)
def test_a_wrong_field_is_named_with_the_value_it_must_have(change: dict[str, Any], says: str) -> None:
    with pytest.raises(PoisonRow) as error:
        read(GOOD | change)
    assert says in str(error.value)


@pytest.mark.parametrize("field", GOOD)
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(PoisonRow, match=rf"payload\.{field} is missing; it must be "):
        read({name: value for name, value in GOOD.items() if name != field})


def test_every_wrong_field_is_named_at_once() -> None:
    with pytest.raises(PoisonRow) as error:
        read({"user_id": "7", "role": 1})
    assert all(field in str(error.value) for field in GOOD)


@pytest.mark.parametrize("payload", [None, 5, "text", [], [GOOD], True])
def test_a_payload_that_is_no_object_is_refused(payload: Any) -> None:
    with pytest.raises(PoisonRow, match="payload must be a JSON object, not "):
        read(payload)


def test_a_long_value_is_not_quoted_whole() -> None:
    with pytest.raises(PoisonRow) as error:
        read(GOOD | {"conversation_id": "x" * 100_000})
    assert len(str(error.value)) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD, JSON)) | JSON)
def test_whatever_json_says_it_is_a_message_or_poison(payload: Any) -> None:
    try:
        message = read(payload)
    except PoisonRow as error:
        str(error).encode()
    else:
        assert message._asdict() == {name: payload[name] for name in GOOD}
