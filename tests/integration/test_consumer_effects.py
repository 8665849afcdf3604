"""The effect of ``chat_history_persist`` on a real MySQL (and MariaDB), records from a real Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.outbox.statements import OutboxStatements
from consumer.plan import Outcome
from tests.consumer_harness import WRITTEN, History, World, payload
from tests.harness import outbox_id, read_topic

pytestmark = [pytest.mark.mysql, pytest.mark.kafka]

NASTY = [
    "",
    "😀 emoji 👩‍👩‍👧‍👦",
    "中文，以及全角",
    "quotes ' \" ` and \\ backslashes \\' \\\\",
    "lines\nand\r\nmore\ttabs",
    "NUL \0 inside\0",
    "\x1a control \x01\x7f",
    "%s %(x)s {} ${y} :name ?",
    "trailing spaces   ",
    "<html>&amp;\u2028\u2029\ufeff",
]


@pytest.fixture
def world(database_url: str, kafka_broker: KafkaBroker, topic: str) -> Iterator[World]:
    world = World(database_url, kafka_broker.bootstrap_servers, topic)
    yield world
    world.close()


@pytest.fixture
def either_world(either_database_url: str, kafka_broker: KafkaBroker, topic: str) -> Iterator[World]:
    world = World(either_database_url, kafka_broker.bootstrap_servers, topic)
    yield world
    world.close()


def test_messages_become_chat_history_and_count(either_world: World) -> None:
    world = either_world
    world.add_chats("a", "b")
    ids = world.send([payload("a", "one"), payload("b", "two", role="assistant"), payload("a", "three")])

    assert world.consume(3) == {Outcome.CONSUMED: 3}

    second = timedelta(seconds=1)
    assert world.histories() == [
        History("a", 7, "one", "user", WRITTEN),
        History("b", 7, "two", "assistant", WRITTEN + second),
        History("a", 7, "three", "user", WRITTEN + 2 * second),
    ]
    assert world.message_counts() == {"a": 2, "b": 1}
    chat = world.chat("a")
    assert chat.last_message_at == WRITTEN + 2 * second
    assert chat.updated_at > chat.last_message_at
    for row_id in ids:
        row = world.rows()[row_id]
        assert (row.status, row.last_error, row.next_retry_at, row.retry_count) == ("consumed", None, None, 0)
        assert row.consumed_at is not None


def test_rows_that_the_relay_has_not_marked_were_published_when_their_records_say(either_world: World) -> None:
    world = either_world
    world.add_chats("a")
    ids = []
    for n in range(30):  # more than a few different times, and rows between them that are marked
        ids += world.send([payload("a", f"{n}")], status="pending", published_at=None)
        time.sleep(0.002)
    marked = datetime(2026, 1, 2, 3, 4, 5)
    with world.engine.begin() as connection:
        OutboxStatements().mark_published(connection, ids[::7], 0, marked)
    records = read_topic(world.bootstrap_servers, world.topic, 30)
    assert world.consume(30) == {Outcome.CONSUMED: 30}
    sent = {outbox_id(record): datetime.fromtimestamp(record.timestamp()[1] / 1000, UTC) for record in records}
    expected = {row_id: marked if row_id in ids[::7] else sent[row_id].replace(tzinfo=None) for row_id in ids}
    assert {row_id: row.published_at for row_id, row in world.rows().items()} == expected
    assert len(set(expected.values())) > 10


def test_every_text_comes_through_exactly(either_world: World) -> None:
    either_world.add_chats("a")
    either_world.send([payload("a", message) for message in NASTY])
    assert either_world.consume(len(NASTY)) == {Outcome.CONSUMED: len(NASTY)}
    assert [history.message for history in either_world.histories()] == NASTY


def test_large_messages_come_through_in_order_within_the_limit_of_a_batch(world: World) -> None:
    messages = [f"{n}" + "ab'中😀\\\n" * 100_000 for n in range(6)]
    assert all(len(message.encode()) > 1_000_000 for message in messages)
    world.add_chats("a")
    world.set_message_limit(world.topic, 10_000_000)
    world.send([payload("a", message) for message in messages])
    assert world.consume(6, consumer__batch_bytes=3_000_000) == {Outcome.CONSUMED: 6}
    assert [history.message for history in world.histories()] == messages


def test_records_that_come_again_have_no_effect(world: World) -> None:
    world.add_chats("a")
    ids = world.send([payload("a", "one"), payload("a", "two")])
    world.produce([*ids, *ids])
    assert world.consume(6) == {Outcome.CONSUMED: 2, Outcome.DUPLICATE: 4}
    world.produce(ids)
    assert world.consume(2) == {Outcome.DUPLICATE: 2}
    assert world.messages() == {"a": ["one", "two"]}
    assert world.message_counts() == {"a": 2}


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_batch_after_batch_the_effect_is_the_same_whether_rows_were_read_or_not(either_world: World, zone: str) -> None:
    world = either_world
    world.zone = ZoneInfo(zone)
    world.add_chats("a", "b")
    batches = [[payload(chat, f"{n}") for chat in "ab"] for n in range(4)]
    with world.worker(database__timezone=zone) as worker:
        for batch in batches:
            ids = world.send(batch)
            assert world.take(worker, 2) == {Outcome.CONSUMED: 2}
        world.produce(ids)
        assert world.take(worker, 2) == {Outcome.DUPLICATE: 2}
    assert [(each.chat_id, each.message) for each in world.histories()] == [
        (chat, f"{n}") for n in range(4) for chat in "ab"
    ]
    second = timedelta(seconds=1)
    assert [each.created_at for each in world.histories()] == [WRITTEN + n * second for n in range(8)]
    assert world.chat("b").last_message_at == WRITTEN + 7 * second
    assert {(row.status, row.consumed_at is None) for row in world.rows().values()} == {("consumed", False)}


def test_the_clock_of_a_chat_is_never_turned_back(world: World) -> None:
    world.add_chats("a")
    old, new = world.write([payload("a", "old")]) + world.write([payload("a", "new")])
    world.produce([new])
    world.consume(1)
    world.produce([old])
    world.consume(1)
    assert world.chat("a").last_message_at == WRITTEN + timedelta(seconds=1)
    assert world.messages() == {"a": ["new", "old"]}


def test_a_row_without_a_time_gets_the_present_one(world: World) -> None:
    world.add_chats("a")
    world.send([payload("a", "one")], created_at=None)
    now = datetime(2026, 5, 6, 7, 8, 9, 123456)
    with world.worker(database__timezone="Europe/Berlin") as worker:
        world.take(worker, 1, lambda: now.astimezone())
    (history,) = world.histories()
    assert history.created_at == world.chat("a").last_message_at == world.chat("a").updated_at
    assert (history.created_at - now).total_seconds() % 3600 == 0  # in the zone of the columns


def test_a_message_waits_for_its_chat_and_the_next_ones_wait_behind_it(world: World) -> None:
    world.add_chats("b")
    world.send([payload("a", "one"), payload("a", "two"), payload("b", "free")])
    with world.worker() as worker:
        assert world.take(worker, 3) == {Outcome.FAILED: 1, Outcome.PARKED: 1, Outcome.CONSUMED: 1}
        failed, parked, _ = world.rows().values()
        assert (failed.status, failed.retry_count) == ("pending", 1)
        assert failed.last_error == "agent_chats has no row with user_id 7, chat_id 'a'"
        assert (parked.status, parked.retry_count) == ("pending", 0)
        assert parked.last_error == f"parked: waits for an earlier row of the same message_key (id {failed.id})"
        assert parked.next_retry_at == failed.next_retry_at

        world.add_chats("a")
        world.send([payload("a", "three")])  # its chat is there now, and still it must not be the first
        assert world.take(worker, 1) == {Outcome.PARKED: 1}
        assert world.messages() == {"b": ["free"]}
        world.sweep()
        assert world.take(worker, 3) == {Outcome.CONSUMED: 3}
    assert world.messages() == {"b": ["free"], "a": ["one", "two", "three"]}
    assert world.message_counts() == {"a": 3, "b": 1}


def test_order_holds_across_a_restart_while_rows_wait(world: World) -> None:
    world.send([payload("a", "one"), payload("a", "two")])
    world.consume(2)
    world.add_chats("a")
    world.send([payload("a", "three")])
    world.sweep()  # the first two come behind the third, whose turn is after them
    assert world.consume(3) == {Outcome.PARKED: 1, Outcome.CONSUMED: 2}
    world.sweep()
    world.consume(1)
    assert world.messages() == {"a": ["one", "two", "three"]}


def test_a_chat_of_another_user_is_no_chat(world: World) -> None:
    world.add_chats("a", user_id=8)
    world.send([payload("a", "one")])
    assert world.consume(1) == {Outcome.FAILED: 1}


def test_a_chat_is_found_as_the_database_compares(world: World) -> None:
    world.add_chats("ABC")
    world.send([payload("abc", "one"), payload("ABC", "two")])
    assert world.consume(2) == {Outcome.CONSUMED: 2}
    assert world.message_counts() == {"ABC": 2}
    assert [history.chat_id for history in world.histories()] == ["abc", "ABC"]


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM agent_chats WHERE chat_id = 'a'",
        "UPDATE agent_chats SET user_id = 8 WHERE chat_id = 'a'",
        "UPDATE agent_chats SET chat_id = 'z' WHERE chat_id = 'a'",
    ],
)
def test_a_remembered_chat_that_is_gone_or_anothers_is_no_chat(either_world: World, change: str) -> None:
    world = either_world
    world.add_chats("a", "b")
    world.send([payload("a", "one"), payload("b", "one")])
    with world.worker() as worker:
        assert world.take(worker, 2) == {Outcome.CONSUMED: 2}
        with world.engine.begin() as connection:
            connection.exec_driver_sql(change)
        world.send([payload("a", "two"), payload("b", "two")])
        assert world.take(worker, 2) == {Outcome.FAILED: 1, Outcome.CONSUMED: 1}
    assert world.messages() == {"a": ["one"], "b": ["one", "two"]}
    assert world.message_counts()["b"] == 2


def test_a_chat_that_was_made_anew_is_counted_in_its_new_row(either_world: World) -> None:
    world = either_world
    world.add_chats("a", "b")
    world.send([payload("a", "one"), payload("b", "one")])
    with world.worker() as worker:
        assert world.take(worker, 2) == {Outcome.CONSUMED: 2}
        with world.engine.begin() as connection:  # each now has the id that the other one had
            connection.exec_driver_sql("UPDATE agent_chats SET chat_id = IF(chat_id = 'a', 'c', 'a') ORDER BY id")
            connection.exec_driver_sql("UPDATE agent_chats SET chat_id = 'b' WHERE chat_id = 'c'")
            connection.exec_driver_sql("UPDATE agent_chats SET message_count = 0")
        world.send([payload("a", "two"), payload("a", "three"), payload("b", "two")])
        assert world.take(worker, 3) == {Outcome.CONSUMED: 3}
    assert world.message_counts() == {"a": 2, "b": 1}


def test_many_chats_in_one_batch_are_each_counted_with_their_own_times(either_world: World) -> None:
    world = either_world
    chats = [f"chat-{n}" for n in range(1_200)]  # more than are looked up at a time
    world.add_chats(*chats)
    world.send([payload(chat, "x") for chat in chats] + [payload(chat, "y") for chat in chats[::3]])
    with world.worker(consumer__batch_rows=5_000, consumer__batch_wait_s=5.0) as worker:
        assert world.take(worker, 1_600) == {Outcome.CONSUMED: 1_600}
    for n in (0, 1, 600, 1_199):
        chat = world.chat(chats[n])
        second = 1_200 + n // 3 if n % 3 == 0 else n
        assert (chat.message_count, chat.last_message_at) == (2 - bool(n % 3), WRITTEN + timedelta(seconds=second))
    assert sum(world.message_counts().values()) == 1_600


def test_at_max_retry_a_row_is_dead_and_its_key_goes_on(world: World) -> None:
    world.send([payload("a", "one")], max_retry=2)
    world.send([payload("a", "two")])
    with world.worker() as worker:
        assert world.take(worker, 2) == {Outcome.FAILED: 1, Outcome.PARKED: 1}
        world.add_chats("b")
        world.sweep()
        assert world.take(worker, 2) == {Outcome.DEAD: 1, Outcome.FAILED: 1}
        world.add_chats("a")
        world.sweep()
        assert world.take(worker, 1) == {Outcome.CONSUMED: 1}
    assert [row.status for row in world.rows().values()] == ["dead", "consumed"]
    assert world.messages() == {"a": ["two"]}


@pytest.mark.parametrize("mode", ["NO_BACKSLASH_ESCAPES", "ANSI", "NO_BACKSLASH_ESCAPES,ANSI_QUOTES", ""])
def test_every_text_comes_through_whatever_the_sql_mode_of_the_server(world: World, mode: str) -> None:
    with world.engine.begin() as connection:
        connection.exec_driver_sql("SET GLOBAL sql_mode = %s", (mode,))
    try:
        world.add_chats("a", 'it\'s \\ "b"')
        world.send([payload('it\'s \\ "b"', message) for message in NASTY])
        assert world.consume(len(NASTY)) == {Outcome.CONSUMED: len(NASTY)}
    finally:
        with world.engine.begin() as connection:
            connection.exec_driver_sql("SET GLOBAL sql_mode = DEFAULT")
    assert [history.message for history in world.histories()] == NASTY


def test_one_message_too_long_for_the_applications_column_costs_only_itself(world: World) -> None:
    with world.engine.begin() as connection:  # as a schema of one's own may have it: 64 KiB, and a lenient server
        connection.exec_driver_sql("ALTER TABLE chat_histories MODIFY message_content TEXT NOT NULL")
        connection.exec_driver_sql("SET GLOBAL sql_mode = ''")
    try:
        world.add_chats("a", "b")
        messages = [f"{n}" for n in range(500)]
        messages[321] = "ü" * 40_000
        ids = world.send([payload("ab"[n % 2], message) for n, message in enumerate(messages)])
        assert world.consume(500, consumer__batch_wait_s=2.0) == {Outcome.DEAD: 1, Outcome.CONSUMED: 499}
    finally:
        with world.engine.begin() as connection:
            connection.exec_driver_sql("SET GLOBAL sql_mode = DEFAULT")
    dead = world.rows()[ids[321]]
    assert dead.status == "dead"
    assert "Data too long for column 'message_content'" in dead.last_error
    expected = [message for n, message in enumerate(messages) if n != 321]
    assert [history.message for history in world.histories()] == expected
    (letter,) = world.dead_letters(1)
    reason = dict(letter.headers() or [])["dlq_reason"]
    assert isinstance(reason, bytes)
    assert b"Data too long" in reason


def test_characters_that_the_column_cannot_hold_make_the_row_dead(world: World) -> None:
    with world.engine.begin() as connection:
        connection.exec_driver_sql(
            "ALTER TABLE chat_histories MODIFY message_content TEXT CHARACTER SET latin1 NOT NULL"
        )
    world.add_chats("a")
    world.send([payload("a", "café"), payload("a", "中文"), payload("a", "after")])
    assert world.consume(3) == {Outcome.CONSUMED: 2, Outcome.DEAD: 1}
    assert world.messages() == {"a": ["café", "after"]}


def test_a_table_of_another_name_is_served(world: World) -> None:
    with world.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE my_outbox LIKE agent_outbox_messages")
    world.add_chats("a")
    (row_id,) = world.write([payload("a", "one")])
    world.produce([row_id])
    with world.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO my_outbox SELECT * FROM agent_outbox_messages")
        connection.exec_driver_sql("DELETE FROM agent_outbox_messages")
    assert world.consume(1, database__table="my_outbox") == {Outcome.CONSUMED: 1}
