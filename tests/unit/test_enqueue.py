"""What ``enqueue`` refuses before it touches the database; the writing itself is in integration/test_statements.py."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import Connection
from sqlalchemy.orm import Session

from cdc_relay.errors import PoisonRow
from cdc_relay.outbox.enqueue import enqueue

GOOD: dict[str, Any] = {
    "biz_type": "chat_history_persist",
    "topic": "chat-history",
    "message_key": "conversation-1",
    "payload": {"user_id": 7},
}


class _Result:
    lastrowid = 42


class RecordingSession:
    """Stands for a Session: keeps what would have been sent to MySQL."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def connection(self) -> RecordingSession:
        return self

    def execute(self, sql: object, values: dict[str, Any]) -> _Result:
        self.sent.append((str(sql), values))
        return _Result()


def sent(**changes: Any) -> dict[str, Any]:
    session = RecordingSession()
    assert enqueue(cast("Session | Connection", session), **(GOOD | changes)) == 42
    ((_, values),) = session.sent
    return values


def refused(error: type[Exception], **changes: Any) -> str:
    session = RecordingSession()
    with pytest.raises(error) as caught:
        enqueue(cast("Session | Connection", session), **(GOOD | changes))
    assert session.sent == [], "it was written before it was refused"
    return str(caught.value)


def test_the_row_is_pending_and_due_now_in_the_zone_of_the_columns() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    values = sent(now=now, zone=ZoneInfo("Asia/Shanghai"))
    assert values["created"] == values["due"] == datetime(2026, 1, 2, 11, 4, 5, 678901)
    assert (values["biz_type"], values["topic"], values["message_key"]) == (
        "chat_history_persist",
        "chat-history",
        "conversation-1",
    )
    assert values["max_retry"] == 20


def test_the_clock_is_read_when_no_time_is_given() -> None:
    before = datetime.now(UTC).replace(tzinfo=None)
    created = sent()["created"]
    assert before <= created <= datetime.now(UTC).replace(tzinfo=None)


def test_a_delay_schedules_the_message_across_a_change_of_the_clocks() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    values = sent(now=datetime(2026, 3, 29, 0, 59, 50, tzinfo=UTC), delay=timedelta(seconds=20), zone=berlin)
    assert values["created"] == datetime(2026, 3, 29, 1, 59, 50)
    assert values["due"] == datetime(2026, 3, 29, 3, 0, 10), "20 s later it is past three"


@pytest.mark.parametrize(
    ("payload", "stored"),
    [
        ({"message": "汉字 😀 <&>"}, '{"message":"汉字 😀 <&>"}'),
        ([1, None, True], "[1,null,true]"),
        (7, "7"),
        (None, "null"),
        ('{"a":  1}', '{"a":  1}'),  # text that is JSON already is taken as it is
        (b' {"a": "\\u003c"}\n', ' {"a": "\\u003c"}\n'),
        ('"\\ud800"', '"\\ud800"'),
    ],
)
def test_a_payload_is_turned_into_json_unless_it_is_json_already(payload: object, stored: str) -> None:
    assert sent(payload=payload)["payload"] == stored


@pytest.mark.parametrize("payload", [b"", "", "hello", b"{", '{"a": NaN}', b"\xff", b"{} {}", "1, 2"])
def test_bytes_and_text_that_are_not_json_are_refused(payload: bytes | str) -> None:
    assert "payload is not JSON" in refused(PoisonRow, payload=payload)


@pytest.mark.parametrize("payload", [{1: 2}, object(), {"a": {1, 2}}, "\ud800", {"a": "\ud800"}, 2**70])
def test_what_json_cannot_say_is_refused(payload: object) -> None:
    refused((TypeError, UnicodeEncodeError), payload=payload)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"biz_type": ""}, "biz_type is empty"),
        ({"biz_type": "x" * 65}, "biz_type has 65 characters, the column takes 64"),
        ({"topic": ""}, "no legal Kafka topic"),
        ({"topic": "a b"}, "no legal Kafka topic"),
        ({"topic": ".."}, "no legal Kafka topic"),
        ({"topic": "对话"}, "no legal Kafka topic"),
        ({"topic": "x" * 129}, "topic has 129 characters, the column takes 128"),
        ({"message_key": "x" * 129}, "message_key has 129 characters, the column takes 128"),
        ({"max_retry": 0}, "max_retry is 0; it must be 1 or more"),
        ({"now": datetime(2026, 1, 2)}, "now has no zone"),
    ],
)
def test_a_value_that_could_never_be_delivered_is_refused_where_it_is_made(changes: dict[str, Any], says: str) -> None:
    assert says in refused(ValueError, **changes)


def test_values_as_long_as_their_columns_are_taken_counted_in_characters() -> None:
    values = sent(biz_type="汉" * 64, topic="x" * 128, message_key="😀" * 128)
    assert (len(values["biz_type"]), len(values["topic"]), len(values["message_key"])) == (64, 128, 128)


def test_an_empty_key_asks_for_no_order_and_is_allowed() -> None:
    assert sent(message_key="")["message_key"] == ""


def test_the_table_can_be_named_and_its_name_is_quoted() -> None:
    session = RecordingSession()
    enqueue(cast("Session | Connection", session), **GOOD, table="shop.out`box")
    ((sql, _),) = session.sent
    assert sql.startswith("INSERT INTO `shop`.`out``box` (")
