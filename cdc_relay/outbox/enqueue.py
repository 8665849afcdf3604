"""For Python applications: write an outbox row inside the transaction that is already open.

    with Session(engine) as session, session.begin():
        session.add(message)
        enqueue(session, biz_type="chat_history_persist", topic="chat-history", message_key=chat_id, payload={...})

The row commits and rolls back with the caller's own data; nothing is sent from here.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import Connection, text

from cdc_relay.outbox.clock import to_column, utc_now
from cdc_relay.outbox.envelope import check_json, is_legal_topic
from cdc_relay.outbox.sql import quoted_name
from cdc_relay.outbox.table import DEFAULT_MAX_RETRY, DEFAULT_TABLE

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_LIMITS = {"biz_type": 64, "topic": 128, "message_key": 128}


def enqueue(
    session: Session | Connection,
    *,
    biz_type: str,
    topic: str,
    message_key: str,
    payload: Any,
    delay: timedelta = timedelta(0),
    max_retry: int = DEFAULT_MAX_RETRY,
    zone: tzinfo = UTC,
    table: str = DEFAULT_TABLE,
    now: datetime | None = None,
) -> int:
    """Write one pending row in the caller's transaction and return its id.

    ``payload`` is anything that JSON can say, or ``bytes``/``str`` that already are JSON and are taken as they are.
    ``delay`` schedules the message for later. ``zone`` must equal the relay's ``database.timezone``.
    Raises ValueError for values that could never be delivered, so that the mistake shows where it is made, TypeError
    for a payload that JSON cannot say, and PoisonRow for ``bytes`` or ``str`` that are not JSON.
    """
    for name, value in (("biz_type", biz_type), ("topic", topic), ("message_key", message_key)):
        if len(value) > _LIMITS[name]:
            raise ValueError(f"{name} has {len(value)} characters, the column takes {_LIMITS[name]}")
    if not biz_type:
        raise ValueError("biz_type is empty; it must name the handler of the message")
    if not is_legal_topic(topic):
        raise ValueError(f"topic {topic!r} is no legal Kafka topic: 1 to 249 of a-z A-Z 0-9 . _ -")
    if max_retry < 1:
        raise ValueError(f"max_retry is {max_retry}; it must be 1 or more")
    instant = now or utc_now()
    if instant.tzinfo is None:
        raise ValueError(f"now has no zone ({instant}); use datetime.now(UTC)")
    body = _json(payload)
    created = to_column(instant, zone)
    # A Session has .connection(), which is the connection of its transaction; a Connection is one already.
    connection = session if isinstance(session, Connection) else session.connection()
    sql = (
        f"INSERT INTO {quoted_name(table)} (biz_type, topic, message_key, payload, status, retry_count, "
        "max_retry, next_retry_at, created_at, updated_at) VALUES (:biz_type, :topic, :message_key, :payload, "
        "'pending', 0, :max_retry, :due, :created, :created)"
    )
    values = {
        "biz_type": biz_type,
        "topic": topic,
        "message_key": message_key,
        "payload": body,
        "max_retry": max_retry,
        "due": to_column(instant + delay, zone),
        "created": created,
    }
    return int(connection.execute(text(sql), values).lastrowid)


def _json(payload: Any) -> str:
    if isinstance(payload, bytes | str):
        raw = payload.encode() if isinstance(payload, str) else payload
        check_json(raw)
        return raw.decode()
    return orjson.dumps(payload).decode()
