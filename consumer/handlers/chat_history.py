"""``chat_history_persist``: a message becomes a row of ``chat_histories`` and counts in its ``agent_chats``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from cdc_relay.errors import PoisonRow, RetryableRow, RowError
from consumer.handlers import agent_chats
from consumer.handlers.agent_chats import AgentChats
from consumer.handlers.chat_message import Chat, ChatMessage, read
from consumer.registry import Event, Handler, Refused
from consumer.unit_of_work import UnitOfWork, quoted

_INSERT = "INSERT INTO chat_histories (chat_id, user_id, message_content, role, created_at) VALUES "
_CHECK = (
    "INSERT INTO chat_histories (chat_id, user_id, message_content, role, created_at) "
    "SELECT chat_id, user_id, message_content, role, created_at FROM chat_histories WHERE FALSE"
)
#: Characters above which no more rows are put into one INSERT, far from what a server takes in one packet.
_INSERTED_AT_A_TIME = 1_000_000
#: Messages above this many characters are measured against the server's max_allowed_packet before they are sent.
_LARGE = 1_000_000


def handler() -> Handler[ChatMessage]:
    """The handler, remembering nothing yet."""
    chats = AgentChats()

    def apply(work: UnitOfWork, events: Sequence[Event[ChatMessage]]) -> None:
        """Insert the messages in the order in which they came and count them; raises Refused where there is no chat.

        Counted last: chats are what the application may wait for.
        """
        named = [event.payload.chat for event in events]
        found = chats.find(work, set(named))
        _refuse_unless_possible(work, events, found)
        _insert(work, events)
        ids = [found[chat] for chat in named]
        latest: dict[int, datetime] = {}
        for chat_id, (row, _) in zip(ids, events, strict=True):
            written_at = row.created_at or work.now
            if latest.setdefault(chat_id, written_at) < written_at:
                latest[chat_id] = written_at
        chats.count(work, found, Counter(ids), latest)

    return Handler("chat_history_persist", read=read, apply=apply, check=_check)


def _insert(work: UnitOfWork, events: Sequence[Event[ChatMessage]]) -> None:
    rows: list[str] = []
    size = 0
    for row, (user_id, chat_id, role, message) in events:
        values = f"({quoted(chat_id)},{user_id},{quoted(message)},{quoted(role)},'{row.created_at or work.now}')"
        size += len(values)
        if size > _INSERTED_AT_A_TIME and rows:
            work.run(_INSERT + ",".join(rows))
            rows, size = [], len(values)
        rows.append(values)
    work.run(_INSERT + ",".join(rows))


def _check(work: UnitOfWork) -> None:
    """Run both writes for no row at all, so that a missing table, column or privilege shows at the start."""
    for statement in (_CHECK, agent_chats.CHECK):
        work.run(statement)


def _refuse_unless_possible(work: UnitOfWork, events: Sequence[Event[ChatMessage]], chats: Mapping[Chat, int]) -> None:
    reasons: dict[int, RowError] = {}
    for row, message in events:
        if message.chat not in chats:
            user_id, chat_id = message.chat
            reasons[row.id] = RetryableRow(f"agent_chats has no row with user_id {user_id}, chat_id {chat_id!r}")
        elif len(message.message) > _LARGE:
            # The server would not refuse a larger packet, it would hang up: that looks like an outage.
            limit = int(work.connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar_one())
            size = len(quoted(message.message).encode()) + 1_000
            if size > limit:
                reasons[row.id] = PoisonRow(
                    f"the message takes {size} bytes to send to MySQL, max_allowed_packet is {limit}"
                )
    if reasons:
        raise Refused(reasons)
