"""A judge that acquits everybody proves nothing: every kind of violation, made by hand, must be seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from cdc_relay.embedded.mysql import MysqlServer
from tests.e2e.ledger import digest
from tests.e2e.stack import Stack, stack_on
from tests.e2e.verdict import Seen, Verdict, judge


@pytest.fixture
def stack(mysql_server: MysqlServer, tmp_path: Path) -> Iterator[Stack]:
    """Rows that have gone the whole way, without any program: the chat history written by hand, in order."""
    with stack_on(mysql_server, "127.0.0.1:1", tmp_path, topic=False) as stack:
        stack.write(40, writers=2, conversations=4).join()
        with stack.engine.begin() as connection:
            for row in connection.execute(text("SELECT payload FROM agent_outbox_messages ORDER BY id")).all():
                payload = json.loads(row.payload)
                connection.execute(
                    text(
                        "INSERT INTO chat_histories (chat_id, user_id, message_content, role) VALUES (:c, 1, :m, 'u')"
                    ),
                    {"c": payload["conversation_id"], "m": payload["message"]},
                )
        stack.sql("UPDATE agent_outbox_messages SET status = 'consumed'")
        stack.sql(
            "UPDATE agent_chats SET message_count = "
            "(SELECT COUNT(*) FROM chat_histories WHERE chat_histories.chat_id = agent_chats.chat_id)"
        )
        yield stack


def seen_in(stack: Stack) -> list[Seen]:
    return [Seen(row.row_id, row.key, row.payload) for _, row in sorted(stack.ledger.committed.items())]


def test_what_went_well_is_acquitted_and_duplicates_in_kafka_are_counted(stack: Stack) -> None:
    seen = seen_in(stack)
    verdict = judge(stack.ledger, stack.database_url, [*seen, *seen[:3]])
    assert verdict == Verdict(rows=40, duplicated_in_kafka=3)
    verdict.require_good(duplicates=3)
    with pytest.raises(AssertionError, match="more than 2 duplicates"):
        verdict.require_good(duplicates=2)


FAR_END = {
    "lost": "DELETE FROM chat_histories ORDER BY id LIMIT 1",
    "applied_twice": "INSERT INTO chat_histories (chat_id, user_id, message_content, role) "
    "SELECT chat_id, user_id, message_content, role FROM chat_histories ORDER BY id LIMIT 1",
    "invented": "INSERT INTO chat_histories (chat_id, user_id, message_content, role) VALUES ('chat', 1, 'no', 'u')",
    "wrong_counts": "UPDATE agent_chats SET message_count = message_count + 1 LIMIT 1",
    "out_of_order": "UPDATE chat_histories SET id = id + 1000000 ORDER BY id LIMIT 1",
}


@pytest.mark.parametrize("violation", FAR_END)
def test_a_violation_at_the_far_end_is_seen(stack: Stack, violation: str) -> None:
    stack.sql(FAR_END[violation])
    verdict = judge(stack.ledger, stack.database_url, seen_in(stack))
    assert getattr(verdict, violation) > 0
    assert verdict.violations == getattr(verdict, violation)


IN_KAFKA: dict[str, Callable[[list[Seen]], list[Seen]]] = {
    "lost": lambda seen: seen[1:],
    "invented": lambda seen: [*seen, Seen(10**9, seen[0].key, seen[0].payload)],
    "out_of_order": lambda seen: [*seen[1:], seen[0]],
}


@pytest.mark.parametrize("violation", IN_KAFKA)
def test_a_violation_in_kafka_is_seen(stack: Stack, violation: str) -> None:
    verdict = judge(stack.ledger, stack.database_url, IN_KAFKA[violation](seen_in(stack)))
    assert getattr(verdict, violation) > 0
    assert verdict.violations == getattr(verdict, violation)


def test_a_payload_that_was_touched_on_its_way_is_invented(stack: Stack) -> None:
    first, *others = seen_in(stack)
    verdict = judge(stack.ledger, stack.database_url, [first._replace(payload=digest("other")), *others])
    assert verdict.invented == 1


def test_a_row_that_is_not_marked_consumed_is_lost(stack: Stack) -> None:
    stack.sql("UPDATE agent_outbox_messages SET status = 'published' ORDER BY id LIMIT 2")
    assert judge(stack.ledger, stack.database_url, seen_in(stack)).lost == 2
