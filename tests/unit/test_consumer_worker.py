"""The way of a record through the worker, on fakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from threading import Event as StopFlag
from typing import Any

import pytest

from cdc_relay.errors import (
    DatabaseError,
    DatabaseUnavailable,
    KafkaUnavailable,
    PoisonRow,
    RelayError,
    RetryableRow,
    RowError,
)
from cdc_relay.outbox.backoff import Backoff
from cdc_relay.outbox.parking import Ordering
from cdc_relay.outbox.sql import DISCARDED, PARKED, REQUEUED, WaitingRow
from consumer.delivery import KafkaRecord
from consumer.plan import Outcome
from consumer.registry import HandlerRegistry, Refused
from consumer.worker import Worker
from tests.consumer_fakes import (
    T0,
    FakeDatabase,
    FakeDeadLetters,
    FakeOutbox,
    FakeRow,
    FakeSource,
    FakeTables,
    record,
    registry,
)

NOW = datetime(2026, 1, 2, 4, 0, tzinfo=UTC)
WALL = NOW.replace(tzinfo=None)


class Stage:
    """A worker with everything around it."""

    def __init__(
        self,
        rows: Sequence[FakeRow] = (),
        *batches: list[KafkaRecord],
        handlers: HandlerRegistry | None = None,
        attempts: int = 20,
        ordering: Ordering = Ordering.SKIP_DEAD,
    ) -> None:
        self.database = FakeDatabase(rows)
        self.source = FakeSource(*batches)
        self.dead_letters = FakeDeadLetters()
        self.turns: list[dict[Outcome, int]] = []
        self.attempts_left = attempts
        self.worker = Worker(
            source=self.source,
            registry=handlers or registry(),
            unit_of_work=self.database.unit_of_work,  # type: ignore[arg-type]  # a fake of a class
            bury=self.dead_letters.send,
            ride_out=self.ride_out,
            backoff=Backoff(),
            zone=UTC,
            ordering=ordering,
            on_turn=lambda counts, seconds, parked_keys: self.turns.append(dict(counts)),
        )

    def ride_out(self, action: Callable[[], None], wait: Callable[[float], None]) -> None:
        while True:
            try:
                return action()
            except RelayError as error:
                self.attempts_left -= 1
                if not error.retriable or not self.attempts_left:
                    raise
                wait(2.0)

    def turn(self) -> dict[Outcome, int]:
        return {outcome: n for outcome, n in self.worker.run_once(lambda: NOW).items() if n}


def rows(*ids: int, key: bytes = b"k", **values: Any) -> list[FakeRow]:
    return [FakeRow(row_id, key, **values) for row_id in ids]


def refusing(reasons: dict[int, RowError]) -> HandlerRegistry:
    """A handler that refuses these events as long as they are in ``reasons``."""

    def apply(work: Any, events: Sequence[Any]) -> None:
        refused = {event.row.id: reasons[event.row.id] for event in events if event.row.id in reasons}
        if refused:
            raise Refused(refused)

    return registry(apply)


def failing_on(*ids: int, error: RowError | None = None) -> HandlerRegistry:
    """A handler on which the database refuses something without saying which event."""

    def apply(work: Any, events: Sequence[Any]) -> None:
        if any(event.row.id in ids for event in events):
            raise error or PoisonRow("Data too long")

    return registry(apply)


def test_a_batch_is_applied_in_one_transaction_and_its_offsets_are_committed() -> None:
    stage = Stage(rows(1, 2, 3), [record(1, "a"), record(2, "b"), record(3, "c", partition=1)])
    assert stage.turn() == {Outcome.CONSUMED: 3}
    assert stage.database.notes == [(1, "a"), (2, "b"), (3, "c")]
    assert stage.database.transactions == 1
    assert set(stage.database.statuses().values()) == {"consumed"}
    assert stage.source.committed == {("topic", 0): 3, ("topic", 1): 4}


def test_a_quiet_topic_is_a_turn_too() -> None:
    stage = Stage()
    assert stage.turn() == {}
    assert stage.turns == [{}]
    assert stage.database.transactions == 0


def test_what_comes_again_has_no_effect() -> None:
    stage = Stage(rows(1, 2), [record(1)], [record(1), record(2), record(1), record(2)])
    stage.turn()
    assert stage.turn() == {Outcome.CONSUMED: 1, Outcome.DUPLICATE: 3}
    assert [row_id for row_id, _ in stage.database.notes] == [1, 2]


@pytest.mark.parametrize("plain", [False, True], ids=["read first", "only marked"])
def test_a_row_published_only_by_kafka_yet_gets_the_time_of_its_record(plain: bool) -> None:
    """Which is never later than now, and now where the record has none."""
    minute_ms = 60_000
    at_ms = int(NOW.timestamp() * 1000) - minute_ms
    unmarked = [FakeRow(row_id, status="pending", published_at=None) for row_id in range(1, 6)]
    batch = [
        record(1, timestamp_ms=at_ms),
        record(2, timestamp_ms=at_ms),
        record(3, timestamp_ms=at_ms + 1),
        record(4, timestamp_ms=at_ms + 10 * minute_ms),
        record(5),
        record(6, timestamp_ms=at_ms),
    ]
    table = [*unmarked, FakeRow(6)]
    stage = plain_stage(batch, table=table) if plain else Stage(table, batch)
    stage.turn()
    before, a_moment = timedelta(minutes=1), timedelta(milliseconds=1)
    assert [stage.database.rows[row_id].published_at for row_id in range(1, 7)] == [
        WALL - before,
        WALL - before,
        WALL - before + a_moment,
        WALL,
        WALL,
        T0,
    ]
    assert (stage.database.outbox.reads == 0) == plain


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no value"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "JSON object"),
        (b'{"biz_type": "note", "payload": "x"}', "outbox_id"),
        (b'{"outbox_id": true, "biz_type": "note", "payload": "x"}', "outbox_id"),
        (b'{"outbox_id": 1, "biz_type": "", "payload": "x"}', "biz_type"),
        (b'{"outbox_id": 1, "biz_type": "note"}', "payload is missing"),
    ],
)
def test_a_record_that_is_no_envelope_is_buried_and_passed(value: bytes | None, reason: str) -> None:
    malformed = KafkaRecord("topic", 0, 8, b"key", value, list)
    stage = Stage(rows(1), [malformed, record(1, offset=9)])
    assert stage.turn() == {Outcome.NO_ROW: 1, Outcome.CONSUMED: 1}
    (letter,) = stage.dead_letters.letters
    assert letter.record is malformed
    assert reason in letter.reason
    assert stage.source.committed == {("topic", 0): 10}


def test_a_record_without_a_row_is_buried_and_passed() -> None:
    stage = Stage(rows(1), [record(7), record(1, offset=8)])
    assert stage.turn() == {Outcome.NO_ROW: 1, Outcome.CONSUMED: 1}
    assert [letter.reason for letter in stage.dead_letters.letters] == ["the outbox has no row with id 7"]


@pytest.mark.parametrize(
    ("poison", "reason"),
    [(record(1, biz_type="unheard of"), "no handler for biz_type 'unheard of'"), (record(1, 42), "must be a string")],
)
def test_a_row_that_can_never_be_applied_is_dead_and_its_record_is_kept(poison: KafkaRecord, reason: str) -> None:
    stage = Stage(rows(1, 2), [poison, record(2)])
    assert stage.turn() == {Outcome.DEAD: 1, Outcome.CONSUMED: 1}
    assert stage.database.statuses() == {1: "dead", 2: "consumed"}
    assert reason in (stage.database.rows[1].last_error or "")
    assert [letter.record for letter in stage.dead_letters.letters] == [poison]


def test_the_dead_letter_comes_before_the_dead_row() -> None:
    stage = Stage(rows(1), [record(1, 42)])
    seen: list[str] = []
    stage.dead_letters.before = lambda: seen.append(stage.database.rows[1].status)
    stage.turn()
    assert seen == ["published"]


def test_no_offset_moves_while_kafka_takes_no_dead_letter() -> None:
    def away() -> None:
        raise KafkaUnavailable("no broker")

    stage = Stage(rows(1), [record(1, 42)], attempts=3)
    stage.dead_letters.before = away
    with pytest.raises(KafkaUnavailable):
        stage.turn()
    assert stage.source.committed == {}
    assert stage.database.statuses() == {1: "published"}
    assert stage.source.waits == [2.0, 2.0]


def test_an_outage_is_ridden_out_and_counts_nothing_twice() -> None:
    stage = Stage(rows(1, 2), [record(1, 42), record(2), record(9)])
    outages = [DatabaseUnavailable("away"), DatabaseUnavailable("deadlock")]

    def before_commit(_: FakeTables) -> None:
        if outages:
            raise outages.pop()

    stage.database.before_commit = before_commit
    assert stage.turn() == {Outcome.DEAD: 1, Outcome.CONSUMED: 1, Outcome.NO_ROW: 1}
    assert [letter.record.offset for letter in stage.dead_letters.letters] == [1, 9]
    assert stage.database.rows[1].retry_count == 1
    assert stage.database.rows[2].retry_count == 0


def test_a_commit_whose_answer_was_lost_is_not_done_again() -> None:
    stage = Stage(rows(1), [record(1)])
    lost = [DatabaseUnavailable("the answer was lost")]

    def before_commit(tables: FakeTables) -> None:
        if lost:
            stage.database.tables = tables
            raise lost.pop()

    stage.database.before_commit = before_commit
    assert stage.turn() == {Outcome.DUPLICATE: 1}
    assert len(stage.database.notes) == 1


def test_records_of_a_lost_partition_are_dropped_while_waiting() -> None:
    stage = Stage(rows(1, 2), [record(1, partition=0), record(2, partition=1)])
    outages = [DatabaseUnavailable("away")]

    def before_commit(_: FakeTables) -> None:
        if outages:
            stage.source.lost = {("topic", 0)}
            raise outages.pop()

    stage.database.before_commit = before_commit
    assert stage.turn() == {Outcome.CONSUMED: 1}
    assert stage.source.committed == {("topic", 1): 3}
    assert stage.database.statuses() == {1: "published", 2: "consumed"}


def test_an_error_that_waiting_does_not_cure_ends_the_program() -> None:
    def before_commit(_: FakeTables) -> None:
        raise DatabaseError("the table is gone")

    stage = Stage(rows(1), [record(1)])
    stage.database.before_commit = before_commit
    with pytest.raises(DatabaseError, match="the table is gone"):
        stage.worker.run(StopFlag())
    assert stage.source.committed == {}


def test_a_stop_during_an_outage_abandons_the_batch() -> None:
    stop = StopFlag()

    def before_commit(_: FakeTables) -> None:
        stop.set()
        raise DatabaseUnavailable("away")

    stage = Stage(rows(1), [record(1)], attempts=1)
    stage.database.before_commit = before_commit
    stage.worker.run(stop)
    assert stage.source.committed == {}


def test_a_failed_row_is_tried_again_and_holds_back_its_key_only() -> None:
    reasons: dict[int, RowError] = {1: RetryableRow("no chat")}
    table = [*rows(1, 2, 3), *rows(4, key=b"other")]
    stage = Stage(table, [record(1), record(2), record(3), record(4)], handlers=refusing(reasons))
    assert stage.turn() == {Outcome.FAILED: 1, Outcome.PARKED: 2, Outcome.CONSUMED: 1}
    failed, parked = stage.database.rows[1], stage.database.rows[2]
    assert (failed.status, failed.retry_count, failed.last_error) == ("pending", 1, "no chat")
    assert failed.next_retry_at == WALL + timedelta(seconds=1)
    assert (parked.status, parked.retry_count, parked.last_error) == ("pending", 0, f"{PARKED} (id 1)")
    assert parked.next_retry_at == failed.next_retry_at


def test_held_rows_follow_in_order_once_the_first_goes_well() -> None:
    reasons: dict[int, RowError] = {1: RetryableRow("no chat")}
    stage = Stage(rows(1, 2, 3), [record(1), record(2)], [record(3)], handlers=refusing(reasons))
    stage.turn()
    reasons.clear()
    assert stage.turn() == {Outcome.PARKED: 1}  # its key is held back, though nothing is wrong with it
    redeliver(stage, 1, 2, 3)
    assert stage.turn() == {Outcome.CONSUMED: 3}
    assert [row_id for row_id, _ in stage.database.notes] == [1, 2, 3]
    stage.database.rows[4] = FakeRow(4, b"k")
    stage.source.batches = [[record(4)]]
    assert stage.turn() == {Outcome.CONSUMED: 1}


def redeliver(stage: Stage, *ids: int) -> None:
    """What the relay's sweep does: lease, send, mark published."""
    for row_id in ids:
        row = stage.database.rows[row_id]
        row.status, row.published_at, row.next_retry_at, row.last_error = "published", T0, None, None
    stage.source.batches = [[record(row_id) for row_id in ids]]


def test_a_later_row_does_not_overtake_one_that_is_on_its_way_again() -> None:
    reasons: dict[int, RowError] = {1: RetryableRow("no chat")}
    stage = Stage(rows(1, 2), [record(1)], handlers=refusing(reasons))
    stage.turn()
    reasons.clear()
    redeliver(stage, 1)
    stage.source.batches = [[record(2)], [record(1)]]
    assert stage.turn() == {Outcome.PARKED: 1}
    assert stage.turn() == {Outcome.CONSUMED: 1}


def test_rows_held_back_before_the_start_are_learnt_from_the_table() -> None:
    table = [
        FakeRow(1, b"failed", "pending", retry_count=1, next_retry_at=T0),
        FakeRow(2, b"parked", "pending", last_error=PARKED, next_retry_at=T0),
        FakeRow(3, b"on its way", "published", retry_count=1),
        *(FakeRow(10 + n, key) for n, key in enumerate((b"failed", b"parked", b"on its way", b"free"))),
    ]
    stage = Stage(table, [record(10), record(11), record(12), record(13)])
    assert stage.turn() == {Outcome.PARKED: 3, Outcome.CONSUMED: 1}


def test_the_table_is_read_again_when_partitions_have_come() -> None:
    stage = Stage(rows(1, 2), [], [record(2)])
    stage.turn()
    stage.database.rows[1] = FakeRow(1, b"k", "pending", retry_count=1, next_retry_at=T0)  # by the former owner
    stage.source.assignments += 1
    assert stage.turn() == {Outcome.PARKED: 1}


def test_a_remembered_row_that_was_ended_elsewhere_holds_nothing_back() -> None:
    reasons: dict[int, RowError] = {1: RetryableRow("no chat")}
    stage = Stage(rows(1, 2, 3), [record(1), record(2)], [record(3)], handlers=refusing(reasons))
    stage.turn()
    for row_id in (1, 2):
        stage.database.rows[row_id].status = "dead"  # by an operator
    assert stage.turn() == {Outcome.CONSUMED: 1}


def test_at_the_last_attempt_a_row_is_dead_and_its_key_goes_on() -> None:
    reasons: dict[int, RowError] = {1: RetryableRow("no chat")}
    table = [FakeRow(1, b"k", retry_count=19), FakeRow(2, b"k")]
    stage = Stage(table, [record(1), record(2)], handlers=refusing(reasons))
    assert stage.turn() == {Outcome.DEAD: 1, Outcome.CONSUMED: 1}
    assert stage.database.rows[1].retry_count == 20
    assert stage.dead_letters.letters == []  # the row itself tells the whole story


def test_a_late_copy_of_a_failed_record_does_not_count_as_another_failure() -> None:
    stage = Stage(rows(1), [record(1)], [record(1)], handlers=refusing({1: RetryableRow("no chat")}))
    stage.turn()
    assert stage.turn() == {Outcome.DUPLICATE: 1}
    assert stage.database.rows[1].retry_count == 1


def test_a_poison_event_named_by_its_handler_costs_one_more_transaction() -> None:
    ids = range(1, 101)
    stage = Stage(rows(*ids, key=b""), [record(i) for i in ids], handlers=refusing({50: PoisonRow("too large")}))
    assert stage.turn() == {Outcome.DEAD: 1, Outcome.CONSUMED: 99}
    assert stage.database.transactions == 1
    assert [letter.record.offset for letter in stage.dead_letters.letters] == [50]


@pytest.mark.parametrize("culprit", [1, 50, 100])
def test_a_poison_event_that_the_database_does_not_name_is_found_and_costs_only_itself(culprit: int) -> None:
    ids = range(1, 101)
    stage = Stage(rows(*ids), [record(i) for i in ids], handlers=failing_on(culprit))
    assert stage.turn() == {Outcome.DEAD: 1, Outcome.CONSUMED: 99}
    assert [row_id for row_id, _ in stage.database.notes] == [i for i in ids if i != culprit]
    assert stage.database.rows[culprit].last_error == "Data too long"
    assert [letter.record.offset for letter in stage.dead_letters.letters] == [culprit]


def test_several_poison_events_are_found() -> None:
    ids = range(1, 41)
    stage = Stage(rows(*ids), [record(i) for i in ids], handlers=failing_on(7, 8, 31))
    assert stage.turn() == {Outcome.DEAD: 3, Outcome.CONSUMED: 37}


def test_a_retryable_refusal_by_the_database_holds_back_the_key_from_there_on() -> None:
    ids = range(1, 9)
    handlers = failing_on(5, error=RetryableRow("no parent row"))
    stage = Stage(rows(*ids), [record(i) for i in ids], handlers=handlers)
    assert stage.turn() == {Outcome.CONSUMED: 4, Outcome.FAILED: 1, Outcome.PARKED: 3}
    assert [row_id for row_id, _ in stage.database.notes] == [1, 2, 3, 4]


def test_a_refusal_that_goes_on_without_the_row_is_the_databases_fault() -> None:
    stage = Stage(rows(1), [record(1)])

    def before_commit(_: FakeTables) -> None:
        raise PoisonRow("last_error is too small")

    stage.database.before_commit = before_commit
    with pytest.raises(DatabaseError, match="refused again"):
        stage.turn()


def test_a_defect_of_a_handler_costs_only_the_row_that_it_fails_on() -> None:
    def apply(work: Any, events: Sequence[Any]) -> None:
        if any(event.row.id == 3 for event in events):
            raise ZeroDivisionError("a bug")

    stage = Stage(rows(1, 2, 3, 4, key=b""), [record(i) for i in (1, 2, 3, 4)], handlers=registry(apply))
    assert stage.turn() == {Outcome.CONSUMED: 3, Outcome.FAILED: 1}
    assert stage.database.rows[3].last_error == "the handler of 'note' failed: ZeroDivisionError: a bug"


def test_of_two_records_of_one_row_the_first_counts() -> None:
    stage = Stage(rows(1, 2), [record(1, 42), record(1, "fine"), record(2, "fine"), record(2, 42)])
    assert stage.turn() == {Outcome.DEAD: 1, Outcome.CONSUMED: 1, Outcome.DUPLICATE: 2}
    assert stage.database.statuses() == {1: "dead", 2: "consumed"}


# --- dead rows that hold back their keys, and no order at all ---------------------------------------------------------

BLOCK = Ordering.BLOCK_ON_DEAD


def test_where_dead_rows_block_the_later_ones_of_the_key_are_put_back_and_others_go_on() -> None:
    table = [*rows(1, 2, 4), *rows(3, key=b"other")]
    stage = Stage(table, [record(1, 42), record(2), record(3)], [record(4)], ordering=BLOCK)
    assert stage.turn() == {Outcome.DEAD: 1, Outcome.PARKED: 1, Outcome.CONSUMED: 1}
    assert stage.turn() == {Outcome.PARKED: 1}
    for row_id in (2, 4):
        parked = stage.database.rows[row_id]
        assert (parked.status, parked.last_error) == ("pending", f"{PARKED} (id 1)")
        assert parked.next_retry_at == WALL + timedelta(seconds=1)


@pytest.mark.parametrize("culprit", [1, 5, 10])
def test_a_poison_event_that_the_database_does_not_name_blocks_what_is_behind_it(culprit: int) -> None:
    ids = range(1, 11)
    stage = Stage(rows(*ids), [record(i) for i in ids], handlers=failing_on(culprit), ordering=BLOCK)
    stage.turn()
    assert [row_id for row_id, _ in stage.database.notes] == list(range(1, culprit))
    assert stage.database.statuses() == {
        i: "consumed" if i < culprit else "dead" if i == culprit else "pending" for i in ids
    }


def test_rows_behind_a_requeued_one_follow_in_order_when_it_goes_well() -> None:
    reasons: dict[int, RowError] = {1: RetryableRow("no chat")}
    table = [FakeRow(1, b"k", retry_count=19), *rows(2, 3)]
    stage = Stage(table, [record(1), record(2)], [record(3)], handlers=refusing(reasons), ordering=BLOCK)
    assert stage.turn() == {Outcome.DEAD: 1, Outcome.PARKED: 1}
    reasons.clear()
    stage.database.rows[1] = FakeRow(1, b"k", "pending", published_at=None, last_error=REQUEUED)
    assert stage.turn() == {Outcome.PARKED: 1}, "it is on its way, and not delivered yet"
    redeliver(stage, 1, 2, 3)
    assert stage.turn() == {Outcome.CONSUMED: 3}
    assert [row_id for row_id, _ in stage.database.notes] == [1, 2, 3]


@pytest.mark.parametrize("how", ["discarded", "deleted"])
def test_a_row_that_is_let_go_blocks_no_longer(how: str) -> None:
    stage = Stage(rows(1, 2, 3), [record(1, 42), record(2)], [record(3)], ordering=BLOCK)
    stage.turn()
    if how == "discarded":
        stage.database.rows[1].last_error = f"{DISCARDED}why"
    else:
        del stage.database.rows[1]
    redeliver(stage, 2)
    stage.source.batches.append([record(3)])
    assert [stage.turn(), stage.turn()] == [{Outcome.CONSUMED: 1}] * 2


@pytest.mark.parametrize("ordering", [BLOCK, Ordering.SKIP_DEAD])
def test_dead_rows_from_before_the_start_are_learnt_from_the_table_where_they_block(ordering: Ordering) -> None:
    table = [
        FakeRow(1, b"dead", "dead"),
        FakeRow(2, b"let go", "dead", last_error=f"{DISCARDED}why"),
        FakeRow(3, b"requeued", "pending", published_at=None, last_error=f"{REQUEUED}why"),
        FakeRow(4, b"sent again", "published", last_error=f"{REQUEUED}why"),
        *(FakeRow(10 + n, key) for n, key in enumerate((b"dead", b"let go", b"requeued", b"sent again"))),
    ]
    stage = Stage(table, [record(n) for n in (10, 11, 12, 13)], ordering=ordering)
    stage.turn()
    consumed = {row_id for row_id, status in stage.database.statuses().items() if status == "consumed"}
    assert consumed == ({11} if ordering is BLOCK else {10, 11})


def test_a_dead_row_that_somebody_else_has_made_blocks_when_it_comes_once_more() -> None:
    """Its key was given to this consumer while the former one, which has made it dead, was still at it."""
    table = [FakeRow(1, b"k"), *rows(2), *rows(9, key=b"other")]
    stage = Stage(table, [record(9)], [record(1), record(2)], ordering=BLOCK)
    stage.turn()
    stage.database.rows[1] = FakeRow(1, b"k", "dead", last_error="why")
    assert stage.turn() == {Outcome.DUPLICATE: 1, Outcome.PARKED: 1}


def test_a_late_copy_of_a_row_that_was_let_go_blocks_nothing() -> None:
    table = [FakeRow(1, b"k", "dead", last_error=f"{DISCARDED}why"), *rows(2)]
    stage = Stage(table, [record(1), record(2)], ordering=BLOCK)
    assert stage.turn() == {Outcome.DUPLICATE: 1, Outcome.CONSUMED: 1}


def test_under_skip_dead_rows_are_not_even_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def unsettled(self: FakeOutbox, tables: FakeTables, *, dead_too: bool) -> Iterator[WaitingRow]:
        asked.append(dead_too)
        return iter(())

    monkeypatch.setattr(FakeOutbox, "unsettled", unsettled)
    monkeypatch.delattr(FakeOutbox, "still_open")
    stage = Stage([FakeRow(1, b"k", "dead"), *rows(2)], [record(1), record(2)])
    assert stage.turn() == {Outcome.DUPLICATE: 1, Outcome.CONSUMED: 1}
    assert asked == [False]


def test_without_an_order_a_row_that_cannot_be_applied_yet_holds_back_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FakeOutbox, "unsettled")  # nobody asks
    reasons: dict[int, RowError] = {1: RetryableRow("no chat")}
    table = [FakeRow(9, b"k", "pending", retry_count=1, next_retry_at=T0), *rows(1, 10, 11)]
    batches = [record(1), record(10)], [record(11)]
    stage = Stage(table, *batches, handlers=refusing(reasons), ordering=Ordering.NONE)
    assert stage.turn() == {Outcome.FAILED: 1, Outcome.CONSUMED: 1}
    assert stage.turn() == {Outcome.CONSUMED: 1}
    assert stage.database.rows[1].retry_count == 1


# --- ordinary batches, whose rows are not read


def plain_stage(*batches: list[KafkaRecord], table: Sequence[FakeRow], **options: Any) -> Stage:
    """A stage that has seen a batch with nothing special in it, and so expects no other."""
    stage = Stage([FakeRow(1000), *table], [record(1000, "first")], *batches, **options)
    assert stage.turn() == {Outcome.CONSUMED: 1}
    stage.database.outbox.reads = 0
    stage.database.notes.clear()
    return stage


def test_after_an_ordinary_batch_rows_are_not_read_but_marked() -> None:
    stage = plain_stage([record(1), record(2)], [record(3)], table=[*rows(1, 2), FakeRow(3, status="pending")])
    stage.database.rows[3].published_at = None  # the relay has not said yet that it was sent
    assert stage.turn() == {Outcome.CONSUMED: 2}
    assert stage.turn() == {Outcome.CONSUMED: 1}
    assert stage.database.outbox.reads == 0
    assert [row_id for row_id, _ in stage.database.notes] == [1, 2, 3]
    assert set(stage.database.statuses().values()) == {"consumed"}
    assert stage.source.committed == {("topic", 0): 4}


@pytest.mark.parametrize(
    ("special", "outcome"),
    [
        (FakeRow(2, status="consumed"), Outcome.DUPLICATE),
        (FakeRow(2, status="dead"), Outcome.DUPLICATE),
        (FakeRow(2, b"held", "pending", retry_count=1, next_retry_at=T0), Outcome.DUPLICATE),
        (FakeRow(7), Outcome.NO_ROW),
    ],
)
def test_a_row_that_needs_a_look_makes_the_batch_be_read(special: FakeRow, outcome: Outcome) -> None:
    stage = plain_stage(
        [record(1), record(2), record(3)], [record(4)], [record(5)], table=[*rows(1, 3, 4, 5, key=b""), special]
    )
    assert stage.turn() == {Outcome.CONSUMED: 2, outcome: 1}
    assert stage.turn() == {Outcome.CONSUMED: 1}
    assert [row_id for row_id, _ in stage.database.notes] == [1, 3, 4]
    is_scheduled = special.status == "pending"
    assert stage.database.outbox.reads == 2, "the one before was special, so this one may be too"
    assert stage.turn() == {Outcome.CONSUMED: 1}
    assert stage.database.outbox.reads == 2 + is_scheduled, "unless a key is held back nothing is read any more"


def test_a_record_that_comes_twice_in_an_ordinary_batch_has_one_effect() -> None:
    stage = plain_stage([record(1), record(1), record(2)], table=rows(1, 2))
    assert stage.turn() == {Outcome.CONSUMED: 2, Outcome.DUPLICATE: 1}
    assert [row_id for row_id, _ in stage.database.notes] == [1, 2]


@pytest.mark.parametrize("written", [None, b"yesterday", b"\xff", b"2026-01-02T03:04:05"])
def test_a_record_that_does_not_say_when_its_row_was_written_is_read(written: bytes | None) -> None:
    stage = plain_stage([record(1), record(2, written=written)], table=rows(1, 2))
    assert stage.turn() == {Outcome.CONSUMED: 2}
    assert stage.database.outbox.reads == 1


def test_handlers_are_told_the_same_time_whether_the_row_is_read_or_not() -> None:
    seen: list[datetime | None] = []

    def apply(_: Any, events: Sequence[Any]) -> None:
        seen.extend(event.row.created_at for event in events)

    at = datetime(2026, 1, 2, 3, 4, 5, 678901)
    table = [FakeRow(1, created_at=at), FakeRow(2, created_at=at), FakeRow(3, created_at=at)]
    utc, elsewhere = b"2026-01-02T03:04:05.678901+00:00", b"2026-01-02T05:04:05.678901+02:00"
    stage = Stage(
        table,
        *[[record(1, written=utc)], [record(2, written=utc)], [record(3, written=elsewhere)]],
        handlers=registry(apply),
    )
    for _ in range(3):
        stage.turn()
    assert seen == [at, at, at]
    assert stage.database.outbox.reads == 1


def test_an_event_refused_in_an_ordinary_batch_costs_only_itself_and_its_key() -> None:
    reasons: dict[int, RowError] = {2: RetryableRow("no chat")}
    stage = plain_stage(
        [record(1), record(2), record(3)],
        [record(4), record(5)],
        table=[*rows(1, key=b"a"), *rows(2, 3, 4, key=b"b"), *rows(5, key=b"c")],
        handlers=refusing(reasons),
    )
    assert stage.turn() == {Outcome.CONSUMED: 1, Outcome.FAILED: 1, Outcome.PARKED: 1}
    assert stage.turn() == {Outcome.PARKED: 1, Outcome.CONSUMED: 1}
    assert [row_id for row_id, _ in stage.database.notes] == [1, 5]


def test_a_poison_event_in_an_ordinary_batch_is_found_and_costs_only_itself() -> None:
    ids = range(1, 33)
    stage = plain_stage([record(i) for i in ids], table=rows(*ids), handlers=failing_on(20))
    assert stage.turn() == {Outcome.DEAD: 1, Outcome.CONSUMED: 31}
    assert [row_id for row_id, _ in stage.database.notes] == [i for i in ids if i != 20]


def test_a_commit_of_an_ordinary_batch_whose_answer_was_lost_is_not_done_again() -> None:
    stage = plain_stage([record(1)], table=rows(1))
    lost = [DatabaseUnavailable("the answer was lost")]

    def before_commit(tables: FakeTables) -> None:
        if lost:
            stage.database.tables = tables
            raise lost.pop()

    stage.database.before_commit = before_commit
    assert stage.turn() == {Outcome.DUPLICATE: 1}
    assert len(stage.database.notes) == 1
