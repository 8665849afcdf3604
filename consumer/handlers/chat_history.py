"""``chat_history_persist``: a message becomes a row of ``chat_histories`` and counts in its ``agent_chats``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import bindparam, text

from cdc_relay.errors import PoisonRow, RetryableRow, RowError
from consumer.registry import Event, Handler, Refused
from consumer.unit_of_work import UnitOfWork

Chat = tuple[int, str]
"""user_id and chat_id, which together name a row of ``agent_chats``."""


class ChatMessage(BaseModel):
    """The payload. What the application adds beside these fields is its own business."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    user_id: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
    conversation_id: Annotated[str, Field(min_length=1, max_length=36)]
    role: Annotated[str, Field(max_length=32)]
    # The bound makes pydantic look at the characters: without one, half of a surrogate pair passes as text.
    message: Annotated[str, Field(min_length=0)]


_MUST_BE = {
    "user_id": "an integer from -2147483648 to 2147483647",
    "conversation_id": "a string of 1 to 36 characters",
    "role": "a string of at most 32 characters",
    "message": "a string",
}

# All rows as one JSON text: the driver takes 7 µs more for a row of columns.
_LOCK_CHATS = text(
    "SELECT JSON_ARRAYAGG(JSON_ARRAY(id, user_id, CONVERT(chat_id USING utf8mb4))) FROM agent_chats "
    "WHERE chat_id IN :chat_ids FOR UPDATE"
).bindparams(bindparam("chat_ids", expanding=True))
_LOCK_CHAT = text("SELECT id FROM agent_chats WHERE user_id = :user_id AND chat_id = :chat_id FOR UPDATE")
# PyMySQL sends it as one statement of many rows, in pieces of 1 MB.
_INSERT_HISTORIES = (
    "INSERT INTO chat_histories (chat_id, user_id, message_content, role, created_at) VALUES (%s, %s, %s, %s, %s)"
)
# One statement for all chats of a batch. GREATEST: a message that was retried must not turn the clock back.
_COUNT = (
    "UPDATE agent_chats AS chat JOIN JSON_TABLE(%s, '$[*]' COLUMNS ("
    "id BIGINT PATH '$[0]', messages INT PATH '$[1]', latest DATETIME(6) PATH '$[2]')) AS written "
    "ON chat.id = written.id SET chat.message_count = chat.message_count + written.messages, "
    "chat.last_message_at = GREATEST(COALESCE(chat.last_message_at, written.latest), written.latest), "
    "chat.updated_at = %s"
)
_CHECKS = (
    "INSERT INTO chat_histories (chat_id, user_id, message_content, role, created_at) "
    "SELECT chat_id, user_id, message_content, role, created_at FROM chat_histories WHERE FALSE",
    "UPDATE agent_chats SET message_count = message_count + 1, last_message_at = NULL, updated_at = NULL "
    "WHERE FALSE AND chat_id = '' AND user_id = 0 AND id = 0",
)

#: Chats in one JSON text; MariaDB cuts it at 1 MB.
_LOCKED_AT_A_TIME = 1_000
#: Messages above this many characters are measured against the server's max_allowed_packet before they are sent.
_LARGE = 1_000_000


def read(payload: Any) -> ChatMessage:
    """The payload, checked; raises PoisonRow that names each wrong field and the value it must have."""
    try:
        return ChatMessage.model_validate(payload)
    except ValidationError as invalid:
        raise PoisonRow("; ".join(_explain(problem) for problem in invalid.errors(include_url=False))) from invalid


def apply(work: UnitOfWork, events: Sequence[Event[ChatMessage]]) -> None:
    """Insert the messages in the order in which they came and count them; raises Refused where there is no chat."""
    chats = _lock_chats(work, {_chat(event) for event in events})
    _refuse_unless_possible(work, events, chats)
    work.connection.exec_driver_sql(
        _INSERT_HISTORIES,
        [
            (payload.conversation_id, payload.user_id, payload.message, payload.role, row.created_at or work.now)
            for row, payload in events
        ],
    )
    counts: dict[int, tuple[int, datetime]] = {}
    for event in events:
        written_at = event.row.created_at or work.now
        messages, latest = counts.get(chats[_chat(event)], (0, written_at))
        counts[chats[_chat(event)]] = messages + 1, max(latest, written_at)
    rows = [[chat, messages, str(latest)] for chat, (messages, latest) in sorted(counts.items())]
    work.connection.exec_driver_sql(_COUNT, (orjson.dumps(rows).decode(), work.now))


def check(work: UnitOfWork) -> None:
    """Run both writes for no row at all, so that a missing table, column or privilege shows at the start."""
    for statement in _CHECKS:
        work.connection.exec_driver_sql(statement)


HANDLER = Handler("chat_history_persist", read=read, apply=apply, check=check)


def _chat(event: Event[ChatMessage]) -> Chat:
    return event.payload.user_id, event.payload.conversation_id


def _lock_chats(work: UnitOfWork, wanted: Iterable[Chat]) -> dict[Chat, int]:
    """The id of the row of each chat that there is. The rows stay locked, so that the counts added to them stand."""
    wanted = set(wanted)
    chats: dict[Chat, int] = {}
    in_order = sorted({chat_id for _, chat_id in wanted})
    for start in range(0, len(in_order), _LOCKED_AT_A_TIME):
        found = work.connection.execute(_LOCK_CHATS, {"chat_ids": in_order[start : start + _LOCKED_AT_A_TIME]}).scalar()
        chats |= {(user_id, chat_id): row_id for row_id, user_id, chat_id in orjson.loads(found or "[]")}
    for user_id, chat_id in sorted(wanted - chats.keys()):
        # MySQL's equality depends on the collation ("a" = "A" in most): it has the last word on a chat that seems gone.
        row_id = work.connection.execute(_LOCK_CHAT, {"user_id": user_id, "chat_id": chat_id}).scalar()
        if row_id is not None:
            chats[user_id, chat_id] = int(row_id)
    return chats


def _refuse_unless_possible(work: UnitOfWork, events: Sequence[Event[ChatMessage]], chats: dict[Chat, int]) -> None:
    reasons: dict[int, RowError] = {}
    for event in events:
        user_id, chat_id = chat = _chat(event)
        if chat not in chats:
            reasons[event.row.id] = RetryableRow(f"agent_chats has no row with user_id {user_id}, chat_id {chat_id!r}")
        elif len(event.payload.message) > _LARGE:
            # The server would not refuse a larger packet, it would hang up: that looks like an outage.
            limit = int(work.connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar_one())
            message = event.payload.message
            size = len(message.encode()) + sum(map(message.count, _ESCAPED)) + 1_000
            if size > limit:
                reasons[event.row.id] = PoisonRow(
                    f"the message takes {size} bytes to send to MySQL, max_allowed_packet is {limit}"
                )
    if reasons:
        raise Refused(reasons)


#: The characters that take two bytes in a quoted string (MySQL manual, "String Literals").
_ESCAPED = "\0\n\r\x1a\"'\\"


def _explain(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if not name:
        return f"payload must be a JSON object, not {_shown(problem['input'])}"
    if problem["type"] == "missing":
        return f"payload.{name} is missing; it must be {_MUST_BE[name]}"
    if problem["type"] == "string_unicode":
        return f"payload.{name} must be text that UTF-8 can say; it has half of a surrogate pair"
    return f"payload.{name} must be {_MUST_BE[name]}, not {_shown(problem['input'])}"


def _shown(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case dict():
            return "an object"
        case list():
            return "an array"
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}… ({len(shown)} characters)"
