"""Every statement on the outbox, on a real MySQL and a real MariaDB, on tables as applications really have them."""

from __future__ import annotations

import inspect
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import pytest
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.orm import Session

from cdc_relay import unmarked
from cdc_relay.config import DatabaseSettings
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.errors import DatabaseError
from cdc_relay.outbox.backoff import NextAttempt
from cdc_relay.outbox.consumer_statements import ConsumerStatements
from cdc_relay.outbox.database import make_engine, transaction
from cdc_relay.outbox.enqueue import enqueue
from cdc_relay.outbox.operator_statements import OperatorStatements
from cdc_relay.outbox.row import OutboxRow
from cdc_relay.outbox.sql import DISCARDED, HELD_BACK, PARKED, REQUEUED
from cdc_relay.outbox.statements import OutboxStatements
from cdc_relay.outbox.status import TRANSITIONS, Status
from cdc_relay.outbox.table import outbox_table
from cdc_relay.unmarked import UnmarkedRows

pytestmark = pytest.mark.mysql

# Whole seconds: one of the tables keeps no fractions.
BEFORE = datetime(2026, 1, 2, 3, 0)
NOW = datetime(2026, 1, 2, 3, 4, 5)
LATER = NOW + timedelta(minutes=1)

DATABASE = "statements"

T = TypeVar("T")

DDL = {
    # What GORM's AutoMigrate makes of plain struct fields: wide counts, milliseconds, text that takes no NULL.
    "gorm": """
        CREATE TABLE gorm (
            id bigint unsigned AUTO_INCREMENT, biz_type varchar(64) NOT NULL, topic varchar(128) NOT NULL,
            message_key varchar(128) NOT NULL, payload longtext NOT NULL,
            status varchar(32) NOT NULL DEFAULT 'pending', retry_count bigint NOT NULL DEFAULT 0,
            max_retry bigint NOT NULL DEFAULT 20, next_retry_at datetime(3) NULL,
            last_error varchar(2000) NOT NULL DEFAULT '', published_at datetime(3) NULL, consumed_at datetime(3) NULL,
            created_at datetime(3) NULL, updated_at datetime(3) NULL, PRIMARY KEY (id),
            INDEX idx_outbox_status_next (status, next_retry_at, biz_type)
        ) CHARACTER SET utf8mb4""",
    # Another order, no fractions of a second, a narrow character set, NULL counts, and more columns, two of them called
    # like aliases of ours.
    "odd": """
        CREATE TABLE odd (
            tenant int NOT NULL DEFAULT 7, updated_at datetime, created_at datetime, payload longtext,
            size int AS (char_length(payload)) STORED, held tinyint, message_key varchar(255) CHARACTER SET latin1,
            status varchar(64) NOT NULL DEFAULT 'pending', topic varchar(255), max_retry bigint unsigned,
            retry_count bigint unsigned, consumed_at datetime, published_at datetime, last_error longtext,
            next_retry_at datetime, biz_type varchar(255), id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY, note json,
            INDEX idx_outbox_status_next (status, next_retry_at, biz_type)
        ) CHARACTER SET utf8mb4""",
}


class Outbox:
    """One of the tables, with its statements, and rows put there by hand."""

    def __init__(self, engine: Engine, table: str) -> None:
        self.engine = engine
        self.table = table
        self.statements = OutboxStatements(table)
        self.operator = OperatorStatements(table)
        self.consumer = ConsumerStatements(table)
        self.no_error = "" if table == "gorm" else None

    def insert(self, **values: Any) -> int:
        row = {
            "biz_type": "chat",
            "topic": "chat-history",
            "message_key": "k",
            "payload": "{}",
            "status": "pending",
            "retry_count": 0,
            "max_retry": 20,
            "next_retry_at": BEFORE,
            "created_at": BEFORE,
            "updated_at": BEFORE,
        } | values
        names = ", ".join(row)
        sql = f"INSERT INTO {self.table} ({names}) VALUES ({', '.join(f':{name}' for name in row)})"
        with self.engine.begin() as connection:
            return int(connection.execute(text(sql), row).lastrowid)

    def insert_as(self, status: Status) -> int:
        """A row as it really looks in this status, its delivery not yet written back."""
        return self.insert(
            status=status,
            consumed_at=BEFORE if status is Status.CONSUMED else None,
            last_error="why" if status is Status.DEAD else self.no_error,
            retry_count=3 if status is Status.DEAD else 0,
            next_retry_at=BEFORE if status is Status.PENDING else None,
        )

    def row(self, row_id: int) -> dict[str, Any]:
        with self.engine.begin() as connection:
            found = connection.execute(text(f"SELECT * FROM {self.table} WHERE id = :id"), {"id": row_id})
            return dict(found.mappings().one())

    def do(self, statement: Callable[[Connection], T]) -> T:
        with transaction(self.engine) as connection:
            return statement(connection)


@pytest.fixture(scope="module", params=["mysql", "mariadb"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A database with each of the tables, on MySQL and on MariaDB in turn; a test empties its table first."""
    server: MysqlServer = request.getfixturevalue(f"{request.param}_server")
    root = create_engine(server.url)
    with root.begin() as connection:
        connection.execute(text(f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4"))
    url = make_url(server.url).set(database=DATABASE).render_as_string(hide_password=False)
    engine = make_engine(DatabaseSettings(url=url, read_timeout_s=20), pool_size=4)
    with engine.begin() as connection:
        outbox_table("ours").create(connection)  # what init-db makes
        for ddl in DDL.values():
            connection.execute(text(ddl))
    yield engine
    engine.dispose()
    with root.begin() as connection:
        connection.execute(text(f"DROP DATABASE {DATABASE}"))
    root.dispose()


@pytest.fixture(params=["ours", *DDL])
def outbox(engine: Engine, request: pytest.FixtureRequest) -> Outbox:
    with engine.begin() as connection:
        connection.execute(text(f"DELETE FROM {request.param}"))
    return Outbox(engine, request.param)


@pytest.fixture
def ours(engine: Engine) -> Outbox:
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM ours"))
    return Outbox(engine, "ours")


# --- which status a statement may leave and enter -------------------------------------------------------------------


class Case(NamedTuple):
    run: Callable[[Outbox, Connection, int], int]
    ends: dict[Status, Status]
    """Where it takes a row from each status that it touches; every other row stays exactly as it is."""


AGAIN, DEAD = NextAttempt(1, LATER), NextAttempt(1, None)
PENDING, PUBLISHED, CONSUMED = Status.PENDING, Status.PUBLISHED, Status.CONSUMED

CASES: dict[str, Case] = {
    "put_back": Case(lambda o, c, i: o.statements.put_back(c, [i], NOW), {PUBLISHED: PENDING}),
    "lease": Case(lambda o, c, i: o.statements.lease(c, [i], LATER, NOW), {PENDING: PENDING}),
    "mark_published": Case(
        lambda o, c, i: o.statements.mark_published(c, [i], 0, NOW),
        {PENDING: PUBLISHED, PUBLISHED: PUBLISHED, CONSUMED: CONSUMED},  # the latter two: published_at is filled
    ),
    "mark_undelivered": Case(
        lambda o, c, i: o.statements.mark_undelivered(c, i, 0, AGAIN, "too large", NOW), {PENDING: PENDING}
    ),
    "mark_undelivered, dead": Case(
        lambda o, c, i: o.statements.mark_undelivered(c, i, 0, DEAD, "too large", NOW), {PENDING: Status.DEAD}
    ),
    "hold_back": Case(lambda o, c, i: o.statements.hold_back(c, [i], 1, NOW), {PENDING: PENDING}),
    "requeue_dead": Case(lambda o, c, i: o.operator.requeue_dead(c, [i], NOW), {Status.DEAD: PENDING}),
    "discard_dead": Case(lambda o, c, i: o.operator.discard_dead(c, [i], NOW), {Status.DEAD: Status.DEAD}),
    "mark_consumed": Case(
        lambda o, c, i: o.consumer.mark_consumed(c, {i: NOW}, NOW), {PENDING: CONSUMED, PUBLISHED: CONSUMED}
    ),
    "consume_undecided": Case(
        lambda o, c, i: o.consumer.consume_undecided(c, {i: NOW}, NOW), {PENDING: CONSUMED, PUBLISHED: CONSUMED}
    ),
    "mark_failed": Case(
        lambda o, c, i: o.consumer.mark_failed(c, i, AGAIN, "no such chat", NOW), {PENDING: PENDING, PUBLISHED: PENDING}
    ),
    "mark_failed, dead": Case(
        lambda o, c, i: o.consumer.mark_failed(c, i, DEAD, "no such chat", NOW),
        {PENDING: Status.DEAD, PUBLISHED: Status.DEAD},
    ),
    "park": Case(lambda o, c, i: o.consumer.park(c, [i], 1, LATER, NOW), {PENDING: PENDING, PUBLISHED: PENDING}),
}


@pytest.mark.parametrize("start", list(Status))
@pytest.mark.parametrize("name", CASES)
def test_a_statement_touches_rows_of_its_statuses_only_and_takes_them_where_it_says(
    outbox: Outbox, name: str, start: Status
) -> None:
    row_id, bystander = outbox.insert_as(start), outbox.insert_as(PENDING)
    before, beside = outbox.row(row_id), outbox.row(bystander)
    touched = outbox.do(lambda connection: CASES[name].run(outbox, connection, row_id))
    after = outbox.row(row_id)
    end = CASES[name].ends.get(start)
    if end is None:
        assert touched == 0
        assert after == before
    else:
        assert touched == 1
        assert after["status"] == end
        assert after["updated_at"] == NOW
        assert {k: after[k] for k in ("id", "biz_type", "topic", "message_key", "payload", "max_retry")} == {
            k: before[k] for k in ("id", "biz_type", "topic", "message_key", "payload", "max_retry")
        }
        assert after["created_at"] == before["created_at"]
    assert outbox.row(bystander) == beside


def test_the_cases_above_are_transitions_of_the_contract_and_cover_all_of_them() -> None:
    made = {(start, end) for case in CASES.values() for start, end in case.ends.items()}
    allowed = {(start, end) for start, ends in TRANSITIONS.items() for end in ends}
    only_filled = {(PUBLISHED, PUBLISHED), (CONSUMED, CONSUMED)}  # mark_published fills a missing time
    assert made - only_filled == allowed


def test_every_writing_statement_is_among_the_cases_and_its_docstring_says_the_same() -> None:
    documented = {}
    methods = (
        inspect.getmembers(of, inspect.isfunction) for of in (OutboxStatements, OperatorStatements, ConsumerStatements)
    )
    for name, method in chain.from_iterable(methods):
        if said := re.match(r"(\w+(?: or \w+)*) -> (\w+(?: or \w+)*)", inspect.getdoc(method) or ""):
            documented[name] = tuple(set(group.split(" or ")) for group in said.groups())
        elif not name.startswith("_"):
            assert "Changes nothing" in (inspect.getdoc(method) or ""), f"{name} does not say what it changes"
    by_method: dict[str, list[Case]] = {}
    for name, case in CASES.items():
        by_method.setdefault(name.partition(",")[0], []).append(case)
    assert set(documented) == set(by_method)
    for name, (leaves, enters) in documented.items():
        moves = [
            (start, end)
            for case in by_method[name]
            for start, end in case.ends.items()
            if name != "mark_published" or start != end
        ]
        assert {start for start, _ in moves} == leaves, name
        assert {end for _, end in moves} == enters, name


# --- what they write ------------------------------------------------------------------------------------------------


def test_published_clears_the_error_and_the_next_attempt(outbox: Outbox) -> None:
    row_id = outbox.insert(last_error="Kafka refused it", retry_count=2, next_retry_at=LATER)
    assert outbox.do(lambda c: outbox.statements.mark_published(c, [row_id], 2, NOW)) == 1
    row = outbox.row(row_id)
    assert (row["published_at"], row["next_retry_at"], row["last_error"]) == (NOW, None, outbox.no_error)
    assert row["retry_count"] == 2


def test_consumed_clears_the_error_and_the_next_attempt_and_fills_both_times(outbox: Outbox) -> None:
    row_id = outbox.insert(last_error="no such chat", retry_count=2, next_retry_at=LATER)
    outbox.do(lambda c: outbox.consumer.mark_consumed(c, {row_id: NOW}, NOW))
    row = outbox.row(row_id)
    assert (row["published_at"], row["consumed_at"]) == (NOW, NOW)
    assert (row["next_retry_at"], row["last_error"]) == (None, outbox.no_error)


def test_consumed_keeps_the_time_at_which_it_was_published(outbox: Outbox) -> None:
    row_id = outbox.insert(status="published", published_at=BEFORE)
    outbox.do(lambda c: outbox.consumer.mark_consumed(c, {row_id: NOW}, NOW))
    assert outbox.row(row_id)["published_at"] == BEFORE


def test_only_rows_published_before_the_time_given_are_put_back_lowest_first_and_as_they_were(outbox: Outbox) -> None:
    old = [outbox.insert(status="published", published_at=BEFORE, retry_count=2) for _ in range(3)]
    outbox.insert(status="published", published_at=LATER)
    outbox.insert(status="pending", published_at=BEFORE)
    outbox.insert(status="consumed", published_at=BEFORE)
    assert outbox.do(lambda c: outbox.statements.published_page(c, 0, 2)) == (2, old[1], BEFORE)
    assert outbox.do(lambda c: outbox.statements.published_page(c, old[2], 2)) == (1, old[2] + 1, LATER)
    assert outbox.do(lambda c: outbox.statements.published_page(c, old[2] + 1, 2)) == (0, old[2] + 1, None)
    found = outbox.do(lambda c: outbox.statements.unconsumed(c, NOW, 0, 2))
    assert found == old[:2]
    everything = list(range(1, old[-1] + 4))
    assert outbox.do(lambda c: outbox.statements.lock_unconsumed(c, everything, NOW)) == old
    outbox.do(lambda c: outbox.statements.put_back(c, found, NOW))
    row = outbox.row(old[0])
    assert (row["published_at"], row["next_retry_at"], row["retry_count"]) == (None, NOW, 2)
    assert outbox.do(lambda c: outbox.statements.unconsumed(c, NOW, 0, 10)) == old[2:]
    assert outbox.do(lambda c: outbox.statements.lock_unconsumed(c, everything, NOW)) == old[2:]


def fail(outbox: Outbox, by: str, row_id: int, sent_with: int, attempt: NextAttempt, reason: str) -> None:
    """Let an attempt to deliver the row fail, as relay or consumer write it."""
    if by == "relay":
        outbox.do(lambda c: outbox.statements.mark_undelivered(c, row_id, sent_with, attempt, reason, NOW))
    else:
        outbox.do(lambda c: outbox.consumer.mark_failed(c, row_id, attempt, reason, NOW))


@pytest.mark.parametrize("by", ["relay", "consumer"])
def test_a_failure_counts_schedules_and_says_why(outbox: Outbox, by: str) -> None:
    row_id = outbox.insert(retry_count=4)
    reason = "汉字 😀 " * 1000
    fail(outbox, by, row_id, 4, NextAttempt(5, LATER), reason)
    row = outbox.row(row_id)
    assert (row["status"], row["retry_count"], row["next_retry_at"]) == ("pending", 5, LATER)
    assert row["last_error"] == reason[:1999] + "…"


@pytest.mark.parametrize("by", ["relay", "consumer"])
def test_the_last_failure_leaves_no_next_attempt(outbox: Outbox, by: str) -> None:
    row_id = outbox.insert(retry_count=19)
    fail(outbox, by, row_id, 19, NextAttempt(20, None), "why")
    row = outbox.row(row_id)
    assert (row["status"], row["retry_count"], row["next_retry_at"]) == ("dead", 20, None)
    assert row["last_error"] == "why"


def test_parking_and_holding_back_note_the_row_ahead_and_count_nothing(outbox: Outbox) -> None:
    parked, held = outbox.insert(status="published", published_at=BEFORE), outbox.insert()
    outbox.do(lambda c: outbox.consumer.park(c, [parked], 41, LATER, NOW))
    outbox.do(lambda c: outbox.statements.hold_back(c, [held], 42, NOW))
    assert (outbox.row(parked)["last_error"], outbox.row(held)["last_error"]) == (
        f"{PARKED} (id 41)",
        f"{HELD_BACK} (id 42)",
    )
    assert (outbox.row(parked)["retry_count"], outbox.row(held)["retry_count"]) == (0, 0)
    assert outbox.row(parked)["next_retry_at"] == LATER
    assert outbox.row(held)["next_retry_at"] == BEFORE, "it stays due"


def test_a_requeued_row_has_all_its_retries_and_holds_its_place_until_it_is_consumed(outbox: Outbox) -> None:
    row_id = outbox.insert(status="dead", retry_count=20, last_error="why", published_at=BEFORE, next_retry_at=None)
    assert outbox.do(lambda c: outbox.operator.requeue_dead(c, [row_id], NOW)) == 1
    row = outbox.row(row_id)
    assert (row["status"], row["retry_count"], row["next_retry_at"]) == ("pending", 0, NOW)
    assert (row["last_error"], row["published_at"]) == (f"{REQUEUED}why", None)
    assert outbox.do(lambda c: outbox.statements.requeued(c, [row_id, 999_999])) == {row_id}
    assert [waiting.id for waiting in outbox.do(outbox.statements.held_rows)] == [row_id]
    outbox.do(lambda c: outbox.statements.hold_back(c, [row_id], 1, NOW))
    outbox.do(lambda c: outbox.statements.mark_published(c, [row_id], 0, NOW))
    assert outbox.row(row_id)["last_error"] == f"{REQUEUED}why"
    assert [waiting.id for waiting in outbox.do(lambda c: list(outbox.consumer.unsettled(c)))] == [row_id]
    outbox.do(lambda c: outbox.consumer.mark_consumed(c, {row_id: NOW}, NOW))
    assert outbox.row(row_id)["last_error"] == outbox.no_error


def test_a_dead_row_blocks_until_it_is_discarded_which_is_noted_once_and_keeps_its_reason(outbox: Outbox) -> None:
    blocking, other = outbox.insert(status="dead", last_error="why", message_key="a"), outbox.insert_as(Status.DEAD)
    for status in (PENDING, PUBLISHED, CONSUMED):
        outbox.insert_as(status)
    assert sorted(outbox.do(outbox.statements.blocking_dead)) == [(blocking, b"a"), (other, b"k")]
    assert outbox.do(lambda c: outbox.operator.discard_dead(c, [blocking], NOW)) == 1
    assert outbox.do(lambda c: outbox.operator.discard_dead(c, [blocking], LATER)) == 0
    for learnt in (outbox.statements.held_rows, outbox.consumer.unsettled):
        with transaction(outbox.engine) as connection:
            assert list(learnt(connection, dead_too=True)) == [(other, b"k")]
        with transaction(outbox.engine) as connection:
            assert list(learnt(connection)) == []
    row = outbox.row(blocking)
    assert (row["status"], row["last_error"], row["updated_at"]) == ("dead", f"{DISCARDED}why", NOW)
    assert outbox.do(outbox.statements.blocking_dead) == [(other, b"k")]
    assert outbox.do(lambda c: outbox.consumer.still_open(c, [blocking, other], dead_too=True)) == {other: None}
    assert outbox.do(lambda c: outbox.consumer.still_open(c, [blocking, other])) == {}
    assert outbox.do(lambda c: outbox.operator.requeue_dead(c, [blocking], NOW)) == 1, "minds may be changed"


@pytest.mark.parametrize("note", [REQUEUED, DISCARDED])
def test_a_note_before_a_reason_as_long_as_it_may_be_leaves_it_that_long(outbox: Outbox, note: str) -> None:
    row_id = outbox.insert(status="dead", last_error="汉" * 2_000)
    by = {REQUEUED: outbox.operator.requeue_dead, DISCARDED: outbox.operator.discard_dead}[note]
    assert outbox.do(lambda c: by(c, [row_id], NOW)) == 1
    assert outbox.row(row_id)["last_error"] == note + "汉" * (2_000 - len(note))


def test_dead_rows_are_found_in_id_order_a_few_at_a_time(outbox: Outbox) -> None:
    dead = []
    for status in (PENDING, PUBLISHED, CONSUMED):
        dead.append(outbox.insert_as(Status.DEAD))
        outbox.insert_as(status)
    assert outbox.do(lambda c: outbox.operator.dead_ids(c, 0, 10)) == dead
    assert outbox.do(lambda c: outbox.operator.dead_ids(c, 0, 2)) == dead[:2]
    assert outbox.do(lambda c: outbox.operator.dead_ids(c, dead[1], 2)) == dead[2:]
    assert outbox.do(lambda c: outbox.operator.dead_ids(c, dead[2], 2)) == []


def test_consumed_rows_are_counted_up_to_a_bound_and_then_estimated(outbox: Outbox) -> None:
    for status in (PENDING, *[CONSUMED] * 5, *[Status.DEAD] * 5):
        outbox.insert_as(status)
    assert outbox.do(lambda c: outbox.operator.count_by_status(c, consumed_to=4)) == {
        "pending": 1,
        "consumed": 4,
        "dead": 5,
    }
    with outbox.engine.begin() as connection:
        connection.exec_driver_sql(f"ANALYZE TABLE {outbox.table}").all()
    assert outbox.do(outbox.operator.estimated_rows) > 0
    assert outbox.do(OperatorStatements("nowhere").estimated_rows) == 0


def test_a_thousand_rows_are_published_by_one_statement(outbox: Outbox) -> None:
    ids = [outbox.insert() for _ in range(200)]
    missing = [max(ids) + n for n in range(1, 801)]
    assert outbox.do(lambda c: outbox.statements.mark_published(c, ids + missing, 0, NOW)) == 200
    assert outbox.do(outbox.operator.count_by_status) == {"published": 200}


def test_no_rows_are_no_error(outbox: Outbox) -> None:
    for nothing in (
        outbox.do(lambda c: outbox.statements.mark_published(c, [], 0, NOW)),
        outbox.do(lambda c: outbox.statements.lease(c, [], LATER, NOW)),
        outbox.do(lambda c: outbox.consumer.mark_consumed(c, {}, NOW)),
        outbox.do(lambda c: outbox.consumer.consume_undecided(c, {}, NOW)),
        outbox.do(lambda c: outbox.operator.requeue_dead(c, [], NOW)),
    ):
        assert nothing == 0
    assert outbox.do(lambda c: outbox.statements.still_pending(c, [])) == set()
    assert outbox.do(lambda c: outbox.statements.lock_rows(c, [])) == {}


# --- the token of a delivery ----------------------------------------------------------------------------------------


def test_a_late_write_back_does_not_undo_the_consumers_retry(outbox: Outbox) -> None:
    row_id = outbox.insert()
    outbox.do(lambda c: outbox.consumer.mark_failed(c, row_id, AGAIN, "no such chat", NOW))
    before = outbox.row(row_id)
    assert before["published_at"] == NOW, "the consumer has it, so it was published"
    assert outbox.do(lambda c: outbox.statements.mark_published(c, [row_id], 0, LATER)) == 0
    assert outbox.row(row_id) == before


def test_a_late_write_back_does_not_undo_the_consumers_parking_though_the_count_is_the_same(outbox: Outbox) -> None:
    row_id = outbox.insert()
    outbox.do(lambda c: outbox.consumer.park(c, [row_id], 1, LATER, NOW))
    before = outbox.row(row_id)
    assert before["retry_count"] == 0
    assert outbox.do(lambda c: outbox.statements.mark_published(c, [row_id], 0, LATER)) == 0
    assert outbox.row(row_id) == before


def test_a_late_write_back_of_the_first_delivery_leaves_the_second_alone(outbox: Outbox) -> None:
    row_id = outbox.insert()
    outbox.do(lambda c: outbox.consumer.mark_failed(c, row_id, NextAttempt(1, NOW), "no such chat", NOW))
    outbox.do(lambda c: outbox.statements.lease(c, [row_id], LATER, NOW))
    before = outbox.row(row_id)
    assert before["published_at"] is None, "the lease renews the token"
    assert outbox.do(lambda c: outbox.statements.mark_published(c, [row_id], 0, LATER)) == 0
    assert outbox.row(row_id) == before
    assert outbox.do(lambda c: outbox.statements.mark_published(c, [row_id], 1, LATER)) == 1
    assert outbox.row(row_id)["status"] == "published"


def test_a_late_failure_report_leaves_what_was_decided_meanwhile(outbox: Outbox) -> None:
    row_id = outbox.insert()
    outbox.do(lambda c: outbox.consumer.mark_failed(c, row_id, AGAIN, "no such chat", NOW))
    before = outbox.row(row_id)
    assert outbox.do(lambda c: outbox.statements.mark_undelivered(c, row_id, 0, DEAD, "too large", LATER)) == 0
    assert outbox.row(row_id) == before


def test_a_late_write_back_fills_the_time_of_a_consumed_row_and_nothing_else(outbox: Outbox) -> None:
    row_id = outbox.insert(status="consumed", consumed_at=BEFORE, next_retry_at=None, last_error="kept")
    before = outbox.row(row_id)
    assert outbox.do(lambda c: outbox.statements.mark_published(c, [row_id], 0, NOW)) == 1
    assert outbox.row(row_id) == before | {"published_at": NOW, "updated_at": NOW}


def test_publishing_twice_is_publishing_once(outbox: Outbox) -> None:
    row_id = outbox.insert()
    outbox.do(lambda c: outbox.statements.mark_published(c, [row_id], 0, NOW))
    before = outbox.row(row_id)
    assert outbox.do(lambda c: outbox.statements.mark_published(c, [row_id], 0, LATER)) == 0
    assert outbox.row(row_id) == before


def test_a_row_that_was_sent_before_is_not_held_back_as_unsent(outbox: Outbox) -> None:
    for values in ({"retry_count": 1}, {"published_at": BEFORE}):
        row_id = outbox.insert(**values)
        assert outbox.do(partial(outbox.statements.hold_back, ids=[row_id], behind=1, now=NOW)) == 0


# --- reading --------------------------------------------------------------------------------------------------------


def test_a_row_is_read_as_the_application_wrote_it(outbox: Outbox) -> None:
    payload = '{"message": "汉字 😀 \\u003c ' + "x" * 2_000_000 + '"}'
    key = "schlüssel" if outbox.table == "odd" else "钥匙-😀"
    row_id = outbox.insert(payload=payload, message_key=key, retry_count=2, max_retry=5, next_retry_at=LATER)
    expected = OutboxRow(
        *(row_id, "chat", "chat-history", key.encode(), payload.encode(), "pending", 2, LATER, BEFORE), held=True
    )
    committed = outbox.do(lambda c: outbox.statements.read_committed(c, [row_id]))
    for row in committed + outbox.do(lambda c: outbox.statements.pending(c, 0, row_id)):
        assert row == expected
        assert type(row.payload) is bytes
        assert type(row.held) is bool
    (locked,) = outbox.do(lambda c: outbox.statements.lock_rows(c, [row_id])).values()
    assert (locked.id, locked.message_key, locked.retry_count, locked.max_retry) == (row_id, key.encode(), 2, 5)
    assert (locked.next_retry_at, locked.published_at, locked.created_at) == (LATER, None, BEFORE)


def test_a_null_reads_as_its_default(engine: Engine) -> None:
    outbox = Outbox(engine, "odd")
    row_id = outbox.insert(
        **dict.fromkeys(("biz_type", "topic", "message_key", "payload", "retry_count", "max_retry", "next_retry_at")),
        created_at=None,
    )
    (row,) = outbox.do(lambda c: outbox.statements.read_committed(c, [row_id]))
    assert row == OutboxRow(row_id, "", "", b"", b"", "pending", 0, None, None)


@pytest.mark.parametrize(
    ("values", "held"),
    [
        ({}, False),
        ({"last_error": ""}, False),
        ({"retry_count": 1}, True),
        ({"published_at": BEFORE}, True),
        ({"last_error": "parked"}, True),
    ],
)
def test_a_row_that_was_tried_before_is_held(outbox: Outbox, values: dict[str, Any], held: bool) -> None:
    row_id = outbox.insert(**values)
    assert outbox.do(lambda c: outbox.statements.read_committed(c, [row_id]))[0].held == held
    assert outbox.do(lambda c: outbox.statements.read_committed(c, [row_id]))[0].is_fresh == (not held)
    assert [row.held for row in outbox.do(lambda c: outbox.statements.pending(c, 0, row_id))] == [held]
    assert [row.id for row in outbox.do(outbox.statements.held_rows)] == ([row_id] if held else [])


def test_rows_are_read_in_id_order_whatever_the_order_asked_for(outbox: Outbox) -> None:
    ids = [outbox.insert() for _ in range(5)]
    asked = [ids[3], ids[0], ids[4], ids[1], ids[2]]
    assert [row.id for row in outbox.do(lambda c: outbox.statements.read_committed(c, asked))] == ids
    assert list(outbox.do(lambda c: outbox.statements.lock_rows(c, asked))) == ids


@pytest.mark.parametrize(
    ("most_rows", "most_bytes", "expected"),
    [
        (2, 10**9, [2, 2, 2, 1]),
        (100, 10**9, [7]),
        (100, 10, [1, 1, 1, 1, 1, 1, 1]),
        (100, 60, [1, 1, 1, 1, 3]),
        (1, 1, [1] * 7),
    ],
)
def test_pages_of_pending_rows_are_bounded_and_leave_nothing_out(
    outbox: Outbox, most_rows: int, most_bytes: int, expected: list[int]
) -> None:
    ids = []
    for size in (4, 5, 6, 1_000, 6, 5, 4):
        ids.append(outbox.insert(payload='"' + "汉" * size + '"'))
        outbox.insert_as(PUBLISHED)
    outbox.insert()  # too late for this run

    def page(after: int) -> tuple[int | None, list[int]]:
        def read(connection: Connection) -> tuple[int | None, list[int]]:
            bounds = {"most_rows": most_rows, "most_bytes": most_bytes}
            page = outbox.statements.next_page(connection, after, ids[-1], **bounds)
            rows = [] if page is None else outbox.statements.pending(connection, *page)
            return page and page[1], [row.id for row in rows]

        return outbox.do(read)

    pages: list[list[int]] = []
    end, page_ids = page(0)
    while end is not None:
        pages.append(page_ids)
        end, page_ids = page(end)
    assert [len(each) for each in pages] == expected
    assert [row_id for each in pages for row_id in each] == ids


def test_rows_without_a_payload_make_a_page_too(engine: Engine) -> None:
    outbox = Outbox(engine, "odd")
    ids = [outbox.insert(payload=None) for _ in range(3)]
    before = ids[0] - 1
    page = outbox.do(lambda c: outbox.statements.next_page(c, before, ids[-1], most_rows=10, most_bytes=10))
    assert page == (before, ids[-1])
    assert [row.payload for row in outbox.do(lambda c: outbox.statements.pending(c, *page))] == [b"", b"", b""]


def test_pending_rows_are_found_however_many_others_lie_between_them(outbox: Outbox) -> None:
    """Without reading those: there may be any number that were consumed long ago."""
    bounds = {"most_rows": 10, "most_bytes": 10**6}
    ids = [5, 6, 10**12, 10**12 + 1, 10**15]
    for row_id in ids:
        outbox.insert(id=row_id)
    outbox.insert(id=10**13, status="consumed")

    def pages(until: int) -> list[list[int]]:
        def read(connection: Connection) -> list[list[int]]:
            found, after = [], 0
            while (page := outbox.statements.next_page(connection, after, until, **bounds)) is not None:
                behind, after = page
                assert after - behind < 50_000, "the rows between are read"
                found.append([row.id for row in outbox.statements.pending(connection, *page)])
            return found

        return outbox.do(read)

    assert pages(10**15) == [[5, 6], [10**12, 10**12 + 1], [10**15]]
    assert pages(10**14) == [[5, 6], [10**12, 10**12 + 1]]
    assert pages(4) == []


LOOKS: dict[str, Callable[[Outbox, Connection], Any]] = {
    "due": lambda o, c: o.statements.due(c, NOW, 10),
    "due_unmarked": lambda o, c: o.statements.due_unmarked(c, NOW, BEFORE, 0, look_at=10, limit=10),
    "waiting": lambda o, c: o.statements.waiting(c, BEFORE, LATER, 10),
    "held_rows": lambda o, c: o.statements.held_rows(c, dead_too=True),
    "published_page": lambda o, c: o.statements.published_page(c, 0, 10),
    "unconsumed": lambda o, c: o.statements.unconsumed(c, NOW, 0, 10),
    "unsettled": lambda o, c: list(o.consumer.unsettled(c, dead_too=True)),
    "blocking_dead": lambda o, c: o.statements.blocking_dead(c),
    "oldest_pending": lambda o, c: o.operator.oldest_pending(c),
    "pending_topics": lambda o, c: o.operator.pending_topics(c, 10),
    "dead": lambda o, c: o.operator.dead(c, 10),
    "dead_ids": lambda o, c: o.operator.dead_ids(c, 0, 10),
    "count_by_status": lambda o, c: o.operator.count_by_status(c, consumed_to=10),
}


@pytest.mark.parametrize("look", LOOKS)
def test_what_was_consumed_long_ago_is_not_read(engine: Engine, look: str) -> None:
    """There may be any number of such rows, and they lie before all others in the table."""
    outbox = Outbox(engine, "gorm")
    columns = "biz_type, topic, message_key, payload, status, created_at"
    with engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE TABLE gorm")
    outbox.insert_as(Status.CONSUMED)
    with engine.begin() as connection:
        for _ in range(14):
            connection.exec_driver_sql(f"INSERT INTO gorm ({columns}) SELECT {columns} FROM gorm")
    for status in (Status.PENDING, Status.PUBLISHED, Status.DEAD):
        last = outbox.insert_as(status)
        with engine.begin() as connection:
            of_it = f"SELECT {columns}, next_retry_at FROM gorm WHERE id >= {last}"
            for _ in range(9):
                connection.exec_driver_sql(f"INSERT INTO gorm ({columns}, next_retry_at) {of_it}")
    with engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE TABLE gorm").all()
    with transaction(engine) as connection:
        connection.exec_driver_sql("FLUSH STATUS")
        LOOKS[look](outbox, connection)
        found = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'").all()
    with engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE TABLE gorm")
    read = {name: int(count) for name, count in found}
    assert sum(read.values()) < 2**13, "some are what the question for these numbers takes"


def test_a_long_look_is_not_taken_for_a_server_that_hangs(engine: Engine) -> None:
    """However many rows it passes over before it finds one."""
    outbox = Outbox(engine, "gorm")
    with engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE TABLE gorm")
    columns = "biz_type, topic, message_key, payload, status"
    last = [outbox.insert_as(status) for status in (Status.PENDING, Status.PUBLISHED, Status.DEAD)][-1]
    with engine.begin() as connection:
        for _ in range(9):
            connection.exec_driver_sql(
                f"INSERT INTO gorm ({columns}) SELECT {columns} FROM gorm WHERE id >= {last - 2}"
            )
        connection.exec_driver_sql("UPDATE gorm SET last_error = 'discarded: x' WHERE status = 'dead'")
        # Keys are long, so that the server sends what it has found when it is this much.
        connection.exec_driver_sql(
            "CREATE OR REPLACE VIEW slow AS SELECT id, REPEAT('k', 20000) AS message_key, status, published_at, "
            "retry_count, IF(SLEEP(0.004), '', last_error) AS last_error FROM gorm"
        )
    url = engine.url.render_as_string(hide_password=False)
    impatient = make_engine(DatabaseSettings(url=url, read_timeout_s=1))
    slow = Outbox(impatient, "slow")
    try:
        for look in (slow.statements.held_rows, slow.consumer.unsettled):
            with transaction(impatient) as connection:
                assert list(look(connection, dead_too=True)) == []
        assert slow.do(slow.statements.blocking_dead) == []
    finally:
        impatient.dispose()
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP VIEW slow")
            connection.exec_driver_sql("TRUNCATE TABLE gorm")


def test_due_are_pending_rows_whose_time_has_come_in_id_order(outbox: Outbox) -> None:
    late = outbox.insert(next_retry_at=NOW)
    never_scheduled = outbox.insert(next_retry_at=None)
    outbox.insert(next_retry_at=NOW + timedelta(seconds=1))
    earlier = outbox.insert(next_retry_at=BEFORE)
    for status in (PUBLISHED, CONSUMED, Status.DEAD):
        outbox.insert(status=status, next_retry_at=BEFORE)
    assert [row.id for row in outbox.do(lambda c: outbox.statements.due(c, NOW, 10))] == [
        late,
        never_scheduled,
        earlier,
    ]
    assert [row.id for row in outbox.do(lambda c: outbox.statements.due(c, NOW, 2))] == [late, never_scheduled]
    assert [row.id for row in outbox.do(lambda c: outbox.statements.due(c, NOW, 2, never_scheduled))] == [earlier]
    for after, expected in ((0, [late, never_scheduled, earlier]), (late, [never_scheduled, earlier])):
        page = outbox.do(lambda c: outbox.statements.due_unmarked(c, NOW, NOW, after, look_at=10, limit=10))  # noqa: B023
        assert ([row.id for row in page.rows], page.seen_to) == (expected, None)


def test_due_rows_that_nobody_marks_are_found_a_page_at_a_time(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once a look, by the time at which the look began, those of before among those that are not due."""
    monkeypatch.setattr(unmarked, "_PAGE_ROWS", 3)
    sent_for, now = timedelta(minutes=15), NOW.replace(tzinfo=UTC)
    long_ago, just_now = NOW - sent_for, NOW - sent_for + timedelta(seconds=1)
    due: list[int] = []
    for number in range(8):
        due.append(outbox.insert(next_retry_at=long_ago, created_at=long_ago))
        outbox.insert_as(CONSUMED)
        if number % 2:
            outbox.insert(next_retry_at=just_now, created_at=just_now)  # the tailer has sent it: not long enough ago
        if number == 5:
            due.append(outbox.insert(next_retry_at=NOW, created_at=long_ago, retry_count=1))
            due.append(outbox.insert(next_retry_at=NOW, created_at=just_now))  # was scheduled
    rows = UnmarkedRows(outbox.statements, sent_for_s=sent_for.total_seconds(), zone=UTC)

    def look(at: datetime, limit: int = 10) -> list[int]:
        return [row.id for row in outbox.do(lambda c: rows.due(c, at, limit))]

    later = now + timedelta(hours=1)
    assert list(chain(look(now), *(look(later) for _ in range(4)))) == due
    assert look(later) == [*due[:2], due[1] + 2], "the next look has begun, at another time"
    rows = UnmarkedRows(outbox.statements, sent_for_s=sent_for.total_seconds(), zone=UTC)
    assert [look(now, limit=1) for _ in range(2)] == [due[:1], due[1:2]], "goes on behind what it has told"


def test_waiting_are_failed_and_parked_rows_whose_time_is_to_come(outbox: Outbox) -> None:
    failed = outbox.insert(retry_count=1, next_retry_at=LATER, message_key="a")
    parked = outbox.insert(last_error=PARKED, next_retry_at=LATER, message_key="b")
    outbox.insert(next_retry_at=LATER)  # scheduled by the application: holds nothing back
    outbox.insert(retry_count=1, next_retry_at=NOW)  # due
    outbox.insert(retry_count=1, next_retry_at=LATER, status="dead")
    outbox.insert(retry_count=1, next_retry_at=LATER + timedelta(seconds=1))  # nobody's backoff is so long
    assert outbox.do(lambda c: outbox.statements.waiting(c, NOW, LATER, 10)) == [(failed, b"a"), (parked, b"b")]


def test_unsettled_are_failed_and_parked_rows_and_failed_ones_on_their_way_again(outbox: Outbox) -> None:
    expected = {
        (outbox.insert(retry_count=1, next_retry_at=LATER, message_key="a"), b"a"),
        (outbox.insert(retry_count=1, message_key="b"), b"b"),
        (outbox.insert(last_error=PARKED, message_key="c"), b"c"),
        (outbox.insert(status="published", retry_count=1, published_at=BEFORE, message_key="d"), b"d"),
    }
    outbox.insert()
    outbox.insert(status="published", published_at=BEFORE)
    outbox.insert(status="consumed", retry_count=1)
    outbox.insert(status="dead", retry_count=1)
    assert set(outbox.do(lambda c: list(outbox.consumer.unsettled(c)))) == expected


def test_a_row_that_a_consumer_has_put_back_is_decided_until_it_is_delivered_again(outbox: Outbox) -> None:
    put_back = outbox.insert(retry_count=1, next_retry_at=LATER, published_at=BEFORE)
    before = outbox.row(put_back)
    assert outbox.do(lambda c: outbox.consumer.consume_undecided(c, {put_back: NOW}, NOW)) == 0
    assert outbox.row(put_back) == before
    outbox.do(lambda c: outbox.statements.lease(c, [put_back], LATER, NOW))
    assert outbox.do(lambda c: outbox.consumer.consume_undecided(c, {put_back: NOW, 999_999: NOW}, NOW)) == 1
    assert outbox.row(put_back)["status"] == CONSUMED


def test_still_open_tells_the_next_attempt_of_rows_that_a_consumer_put_back(outbox: Outbox) -> None:
    put_back = outbox.insert(retry_count=1, next_retry_at=LATER, published_at=BEFORE)
    leased = outbox.insert(retry_count=1, next_retry_at=LATER)
    published = outbox.insert(status="published", published_at=BEFORE, next_retry_at=None)
    ended = [outbox.insert_as(CONSUMED), outbox.insert_as(Status.DEAD)]
    assert outbox.do(lambda c: outbox.consumer.still_open(c, [put_back, leased, published, *ended, 999_999])) == {
        put_back: LATER,
        leased: None,
        published: None,
    }


def test_unmarked_rows_are_those_whose_acknowledgement_nobody_has_written_and_are_told_without_waiting(
    outbox: Outbox, engine: Engine
) -> None:
    fresh, held = outbox.insert(), outbox.insert(last_error="broken", retry_count=1)
    marked = [outbox.insert(status=status, published_at=BEFORE) for status in (PUBLISHED, CONSUMED)]
    put_back, parked = outbox.insert(published_at=BEFORE), outbox.insert(last_error=f"{PARKED} (id 1)")
    ids = [fresh, held, *marked, put_back, parked, 999_999]
    with transaction(engine) as consumer:
        outbox.consumer.mark_consumed(consumer, {fresh: NOW}, NOW)
        assert outbox.do(lambda c: outbox.statements.unmarked(c, ids)) == {fresh, held}
    assert outbox.do(lambda c: outbox.statements.unmarked(c, ids)) == {held}


def test_still_pending_counts_and_the_oldest(outbox: Outbox) -> None:
    assert outbox.do(outbox.operator.oldest_pending) is None
    assert outbox.do(outbox.operator.count_by_status) == {}
    done = outbox.insert_as(CONSUMED)
    first = outbox.insert(retry_count=2, last_error="why", next_retry_at=LATER)
    second = outbox.insert()
    assert outbox.do(lambda c: outbox.statements.still_pending(c, [done, first, second, 999_999])) == {first, second}
    assert outbox.do(outbox.operator.count_by_status) == {"consumed": 1, "pending": 2}
    oldest = outbox.do(outbox.operator.oldest_pending)
    assert oldest is not None
    assert (oldest.id, oldest.retry_count, oldest.last_error) == (first, 2, "why")
    assert (oldest.created_at, oldest.next_retry_at) == (BEFORE, LATER)


# --- locks ----------------------------------------------------------------------------------------------------------


def test_two_sweeps_share_due_rows_without_waiting_for_one_another(outbox: Outbox) -> None:
    ids = [outbox.insert() for _ in range(4)]
    with transaction(outbox.engine) as one:
        assert [row.id for row in outbox.statements.lock_due(one, ids[:2], NOW)] == ids[:2]
        began = time.monotonic()
        with transaction(outbox.engine) as other:
            assert [row.id for row in outbox.statements.lock_due(other, ids, NOW)] == ids[2:]
        assert time.monotonic() - began < 2
        outbox.statements.lease(one, ids[:2], LATER, NOW)
    assert [row.id for row in outbox.do(lambda c: outbox.statements.lock_due(c, ids, NOW))] == ids[2:]
    assert [row.id for row in outbox.do(lambda c: outbox.statements.lock_due(c, ids, LATER))] == ids


def test_rows_that_ended_meanwhile_or_are_not_due_are_not_locked(outbox: Outbox) -> None:
    ids = [outbox.insert_as(status) for status in Status] + [outbox.insert(next_retry_at=LATER)]
    assert [row.id for row in outbox.do(lambda c: outbox.statements.lock_due(c, ids, NOW))] == ids[:1]


@pytest.mark.parametrize("read", ["read_committed", "lock_rows"])
def test_a_row_that_another_transaction_is_writing_is_waited_for(ours: Outbox, read: str) -> None:
    # As a row stands in the binlog a moment before InnoDB shows it to others.
    found: list[Any] = []
    started = threading.Event()

    def other() -> None:
        with transaction(ours.engine) as connection:
            started.set()
            found.extend(getattr(ours.statements, read)(connection, [row_id]))

    with transaction(ours.engine) as writing:
        row_id = enqueue(writing, biz_type="chat", topic="t", message_key="k", payload={}, table="ours")
        assert ours.do(lambda c: ours.statements.pending(c, 0, row_id)) == [], "a plain read sees nothing yet"
        reader = threading.Thread(target=other)
        reader.start()
        assert started.wait(5)
        reader.join(0.3)
        assert reader.is_alive(), "it did not wait"
    reader.join(10)
    assert len(found) == 1


# --- enqueue --------------------------------------------------------------------------------------------------------


def test_an_enqueued_row_is_committed_with_the_callers_own_data(outbox: Outbox) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    arguments: dict[str, Any] = {
        "biz_type": "chat",
        "topic": "chat-history",
        "message_key": "k",
        "payload": {"message": "汉字 😀 'quotes' \\ \n"},
        "table": outbox.table,
    }
    with Session(outbox.engine) as session, session.begin():
        by_session = enqueue(session, **arguments, now=now)
    with outbox.engine.begin() as connection:
        by_connection = enqueue(connection, **arguments, now=now, delay=timedelta(minutes=1), max_retry=3)
    assert by_connection > by_session > 0
    rows = outbox.do(lambda c: outbox.statements.read_committed(c, [by_session, by_connection]))
    payload = '{"message":"汉字 😀 \'quotes\' \\\\ \\n"}'.encode()
    assert rows == [
        OutboxRow(by_session, "chat", "chat-history", b"k", payload, "pending", 0, NOW, NOW),
        OutboxRow(by_connection, "chat", "chat-history", b"k", payload, "pending", 0, LATER, NOW),
    ]
    assert all(row.is_fresh for row in rows)


@pytest.mark.parametrize("how", ["session", "connection", "savepoint"])
def test_a_rollback_leaves_nothing(outbox: Outbox, how: str) -> None:
    arguments: dict[str, Any] = {
        "biz_type": "chat",
        "topic": "chat-history",
        "message_key": "k",
        "payload": b"{}",
        "table": outbox.table,
    }
    if how == "session":
        with pytest.raises(ZeroDivisionError), Session(outbox.engine) as session, session.begin():
            enqueue(session, **arguments)
            raise ZeroDivisionError
    elif how == "connection":
        with pytest.raises(ZeroDivisionError), outbox.engine.begin() as connection:
            enqueue(connection, **arguments)
            raise ZeroDivisionError
    else:
        with outbox.engine.begin() as connection:
            savepoint = connection.begin_nested()
            enqueue(connection, **arguments)
            savepoint.rollback()
    assert outbox.do(outbox.operator.count_by_status) == {}


def test_the_transaction_is_left_open_for_the_caller(outbox: Outbox) -> None:
    with outbox.engine.connect() as connection:
        enqueue(connection, biz_type="chat", topic="t", message_key="k", payload={}, table=outbox.table)
        assert connection.in_transaction()
        assert outbox.do(outbox.operator.count_by_status) == {}, "not visible before the caller commits"
        connection.commit()
    assert outbox.do(outbox.operator.count_by_status) == {"pending": 1}


def test_a_missing_table_or_column_is_named_with_what_to_do(ours: Outbox) -> None:
    with pytest.raises(DatabaseError, match=r"1146: .*nowhere.*init-db"):
        ours.do(OperatorStatements("nowhere").count_by_status)
    with ours.engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS bare (id BIGINT PRIMARY KEY, status VARCHAR(32))"))
    with pytest.raises(DatabaseError, match=r"1054: .*biz_type.*init-db --print"):
        ours.do(lambda c: OutboxStatements("bare").read_committed(c, [1]))


def test_a_table_of_another_database_is_reached_by_its_full_name(ours: Outbox) -> None:
    row_id = ours.insert()
    statements = OutboxStatements(f"{DATABASE}.ours")
    assert ours.do(lambda c: statements.mark_published(c, [row_id], 0, NOW)) == 1
