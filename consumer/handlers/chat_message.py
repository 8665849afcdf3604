"""The payload of ``chat_history_persist``."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cdc_relay.errors import PoisonRow

Chat = tuple[int, str]
"""user_id and chat_id, which together name a row of ``agent_chats``."""


class ChatMessage(NamedTuple):
    """A message as the application wrote it. What its payload has beside these fields is its own business."""

    user_id: int
    conversation_id: str
    role: str
    message: str

    @property
    def chat(self) -> Chat:
        return self[:2]


class _Rules(BaseModel):
    """What a payload must be, for telling which part of one is not."""

    model_config = ConfigDict(strict=True, extra="ignore")

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


def read(payload: Any) -> ChatMessage:
    """The payload, checked; raises PoisonRow that names each wrong field and the value it must have."""
    try:
        user_id, chat_id = payload["user_id"], payload["conversation_id"]
        role, message = payload["role"], payload["message"]
        # Types and not isinstance: True is no number. ``encode`` refuses half of a surrogate pair.
        if (
            type(user_id) is int
            and -(2**31) <= user_id < 2**31
            and type(chat_id) is type(role) is type(message) is str
            and 0 < len(chat_id) <= 36
            and len(role) <= 32
            and (chat_id + role + message).encode()
        ):
            return ChatMessage(user_id, chat_id, role, message)
    except (LookupError, TypeError, UnicodeEncodeError):
        pass  # the rules say what is wrong
    try:
        checked = _Rules.model_validate(payload)
    except ValidationError as invalid:
        raise PoisonRow("; ".join(_explain(problem) for problem in invalid.errors(include_url=False))) from invalid
    return ChatMessage(checked.user_id, checked.conversation_id, checked.role, checked.message)


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
