"""The rows of ``agent_chats`` that messages are counted in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

import orjson
from sqlalchemy import text

from cdc_relay.errors import DatabaseContended
from consumer.handlers.chat_message import Chat
from consumer.unit_of_work import UnitOfWork, quoted

#: Chats whose ids are remembered; some 300 B each.
_REMEMBERED = 50_000
#: Chats in one JSON text; MariaDB cuts it at 1 MB.
_LOOKED_UP_AT_A_TIME = 1_000

# All rows as one JSON text: the driver takes 7 µs more for a row of columns.
_LOOK_UP = (
    "SELECT JSON_ARRAYAGG(JSON_ARRAY(id, user_id, CONVERT(chat_id USING utf8mb4))) FROM agent_chats "
    "WHERE chat_id IN ({chat_ids}) FOR UPDATE"
)
_LOOK_UP_ONE = text("SELECT id FROM agent_chats WHERE user_id = :user_id AND chat_id = :chat_id FOR UPDATE")
# INTERVAL(id, 3, 7, 9) says by binary search which of the ascending ids it is, and ELT takes that one of a list. So one
# statement gives each chat its own values and finds it by primary key, in half the time of a join with JSON_TABLE.
# GREATEST: a message that was retried must not turn the clock back.
_COUNT = (
    "UPDATE agent_chats SET message_count = message_count + ELT({which}, {messages}), "
    "last_message_at = GREATEST(COALESCE(last_message_at, '1000-01-01'), CAST(ELT({which}, {latest}) AS DATETIME(6))), "
    "updated_at = '{now}' "
    "WHERE id IN ({ids}) AND CONCAT(user_id, ' ', chat_id) = ELT({which}, {names})"
)
CHECK = (
    "UPDATE agent_chats SET message_count = message_count + 1, last_message_at = NULL, updated_at = NULL "
    "WHERE FALSE AND chat_id = '' AND user_id = 0 AND id = 0"
)


class AgentChats:
    """Finds chats and counts messages in them. Safe for threads: what is remembered is only ever taken for a guess."""

    def __init__(self) -> None:
        self._ids: dict[Chat, int] = {}

    def find(self, work: UnitOfWork, wanted: Collection[Chat]) -> dict[Chat, int]:
        """The id of each chat that there is. One that is remembered may be out of date, which ``count`` notices."""
        remembered = self._ids
        chats = {chat: remembered[chat] for chat in wanted if chat in remembered}
        if len(chats) < len(wanted):
            found = _look_up(work, set(wanted) - chats.keys())
            if len(remembered) + len(found) > _REMEMBERED:
                self._ids = {}
            self._ids.update(found)
            chats |= found
        return chats

    def count(
        self, work: UnitOfWork, chats: Mapping[Chat, int], messages: Mapping[int, int], latest: Mapping[int, datetime]
    ) -> None:
        """Add to ``chats``, all of which have new messages: by id how many, and when the last of them was written.

        Raises DatabaseContended when one of the ids is no longer that chat's: a second attempt looks it up anew.
        """
        names = {row_id: chat for chat, row_id in chats.items()}  # two spellings of one chat are one
        ids = sorted(names)
        listed = ",".join(map(str, ids))
        found = work.run(
            _COUNT.format(
                which=f"INTERVAL(id, {listed})",
                messages=",".join([str(messages[row_id]) for row_id in ids]),
                latest=",".join([f"'{latest[row_id]}'" for row_id in ids]),
                now=work.now,
                ids=listed,
                names=",".join([quoted(f"{names[row_id][0]} {names[row_id][1]}") for row_id in ids]),
            )
        )
        if found != len(ids):
            self._ids = {}
            raise DatabaseContended("rows of agent_chats were removed, or given to other users, since they were found")


def _look_up(work: UnitOfWork, wanted: set[Chat]) -> dict[Chat, int]:
    """The ids from the table. The rows stay locked, so these are true until the transaction ends."""
    chats: dict[Chat, int] = {}
    in_order = sorted({chat_id for _, chat_id in wanted})
    for start in range(0, len(in_order), _LOOKED_UP_AT_A_TIME):
        some = ",".join(map(quoted, in_order[start : start + _LOOKED_UP_AT_A_TIME]))
        found = work.connection.exec_driver_sql(
            _LOOK_UP.format(chat_ids=some), execution_options={"no_parameters": True}
        ).scalar()
        for row_id, user_id, chat_id in orjson.loads(found or "[]"):
            if (user_id, chat_id) in wanted:
                chats[user_id, chat_id] = row_id
    for user_id, chat_id in sorted(wanted - chats.keys()):
        # MySQL's equality depends on the collation ("a" = "A" in most): it has the last word on a chat that seems gone.
        row_id = work.connection.execute(_LOOK_UP_ONE, {"user_id": user_id, "chat_id": chat_id}).scalar()
        if row_id is not None:
            chats[user_id, chat_id] = int(row_id)
    return chats
