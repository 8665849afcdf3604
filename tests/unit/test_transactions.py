from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc_relay.binlog import transactions as module
from cdc_relay.binlog import xa
from cdc_relay.binlog.batches import TransactionBatch
from cdc_relay.binlog.events import DAMAGED, parse_event, type_name
from cdc_relay.binlog.events import EventType as E
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.binlog.tables import OutboxTables
from cdc_relay.binlog.transactions import TransactionAssembler
from cdc_relay.errors import StaleSource
from cdc_relay.outbox.row import OutboxRow
from tests.binlog_bytes import OUTBOX, SCHEMA, TABLE, Binlog, mariadb_compressed, opaque, outbox_row
from tests.unit.test_rows import DESCRIBED


class Reading:
    """An assembler that is fed frame by frame, with what it tells."""

    def __init__(self, start: BinlogPosition) -> None:
        self.tables = OutboxTables(SCHEMA, TABLE, lambda: DESCRIBED)
        self.unsupported: Counter[str] = Counter()
        self.assembler = TransactionAssembler(start, self.tables, lambda kind: self.unsupported.update([kind]))

    def feed(self, *frames: bytes) -> list[TransactionBatch]:
        for frame in frames:
            self.assembler.feed(parse_event(frame, 0, len(frame)))
        return self.assembler.take()

    def rows(self, *frames: bytes) -> list[OutboxRow]:
        return [row for batch in self.feed(*frames) for row in batch.rows]


@pytest.fixture
def binlog() -> Binlog:
    return Binlog()


@pytest.fixture
def reading(binlog: Binlog) -> Reading:
    """At the beginning of ``binlog``, after what the server sends first."""
    return reading_of(binlog)


def reading_of(binlog: Binlog) -> Reading:
    reading = Reading(BinlogPosition(*binlog.position))
    assert reading.feed(*binlog.start()) == []
    return reading


def here(binlog: Binlog) -> BinlogPosition:
    return BinlogPosition(*binlog.position)


def only(batches: list[TransactionBatch]) -> TransactionBatch:
    (batch,) = batches
    return batch


# --- how transactions end ---------------------------------------------------------------------------------------------


def test_rows_leave_at_the_end_of_their_transaction_and_not_before(reading: Reading, binlog: Binlog) -> None:
    *before, end = binlog.transaction(outbox_row(1), outbox_row(2))
    for frame in before:
        assert reading.feed(frame) == []
        assert reading.assembler.in_transaction
    batch = only(reading.feed(end))
    assert batch == TransactionBatch(
        [outbox_row(1), outbox_row(2)],
        here(binlog),
        committed_at=float(binlog.timestamp),
        size=len(before[-1]),
    )
    assert not reading.assembler.in_transaction


@pytest.mark.parametrize("end", ["COMMIT", "commit"])
def test_engines_without_transactions_end_theirs_with_a_statement(reading: Reading, binlog: Binlog, end: str) -> None:
    batch = only(reading.feed(binlog.gtid(), binlog.query("BEGIN"), *binlog.insert(outbox_row(1)), binlog.query(end)))
    assert (batch.rows, batch.end, batch.doubtful) == ([outbox_row(1)], here(binlog), False)


@pytest.mark.parametrize("gtid", [None, E.GTID, E.ANONYMOUS_GTID, E.GTID_TAGGED])
def test_transactions_of_every_gtid_mode_are_read(reading: Reading, binlog: Binlog, gtid: int | None) -> None:
    first = [] if gtid is None else [binlog.gtid(kind=gtid)]
    frames = [*first, binlog.query("BEGIN"), *binlog.insert(outbox_row(1)), binlog.xid()]
    assert reading.rows(*frames) == [outbox_row(1)]
    assert not reading.unsupported


@pytest.mark.parametrize("gtid", [E.GTID, E.ANONYMOUS_GTID])
def test_the_time_of_the_commit_is_that_of_the_gtid(reading: Reading, binlog: Binlog, gtid: int) -> None:
    frames = [binlog.gtid(1_700_000_123.456789, gtid), binlog.query("BEGIN"), *binlog.insert(outbox_row(1))]
    assert only(reading.feed(*frames, binlog.xid())).committed_at == 1_700_000_123.456789
    # It is of that transaction only.
    assert only(reading.feed(binlog.query("BEGIN"), binlog.xid())).committed_at == float(binlog.timestamp)


def test_rolled_back_rows_never_leave(reading: Reading, binlog: Binlog) -> None:
    frames = [binlog.gtid(), binlog.query("BEGIN"), *binlog.insert(outbox_row(1)), binlog.query("ROLLBACK")]
    batch = only(reading.feed(*frames))
    assert (batch.rows, batch.end) == ([], here(binlog))
    assert reading.rows(*binlog.transaction(outbox_row(2))) == [outbox_row(2)]


def test_after_a_rollback_to_a_savepoint_the_table_is_asked_which_rows_have_stayed(
    reading: Reading, binlog: Binlog
) -> None:
    batch = only(
        reading.feed(
            binlog.gtid(),
            binlog.query("BEGIN"),
            *binlog.insert(outbox_row(1)),
            binlog.query("SAVEPOINT `a`"),
            *binlog.insert(outbox_row(2)),
            binlog.query("ROLLBACK TO `a`"),
            *binlog.insert(outbox_row(3)),
            binlog.xid(),
        )
    )
    assert [row.id for row in batch.rows] == [1, 2, 3]
    assert batch.doubtful


def test_savepoints_alone_change_nothing(reading: Reading, binlog: Binlog) -> None:
    batch = only(
        reading.feed(
            binlog.gtid(),
            binlog.query("BEGIN"),
            binlog.query("SAVEPOINT a"),
            *binlog.insert(outbox_row(1)),
            binlog.query("RELEASE SAVEPOINT a"),
            binlog.xid(),
        )
    )
    assert (batch.rows, batch.doubtful) == ([outbox_row(1)], False)


@pytest.mark.parametrize("next_gtid", ["mysql", "mariadb"])
def test_of_a_transaction_whose_end_never_came_nothing_is_invented_and_the_table_is_asked(
    reading: Reading, binlog: Binlog, next_gtid: str
) -> None:
    reading.feed(binlog.gtid(), binlog.query("BEGIN"), *binlog.insert(outbox_row(1)))
    gtid = binlog.gtid() if next_gtid == "mysql" else binlog.mariadb_gtid()
    batch = only(reading.feed(gtid, binlog.query("BEGIN"), *binlog.insert(outbox_row(2)), binlog.xid()))
    assert (batch.rows, batch.unreadable) == ([], True)
    assert reading.unsupported == {"unfinished_transaction": 1}
    assert reading.rows(*binlog.transaction(outbox_row(3))) == [outbox_row(3)]


def test_a_server_that_died_within_a_transaction_invents_nothing(reading: Reading, binlog: Binlog) -> None:
    reading.feed(binlog.gtid(), binlog.query("BEGIN"), *binlog.insert(outbox_row(1)))
    reading.feed(binlog.format(in_file=True))
    assert reading.rows(*binlog.transaction(outbox_row(2))) == [outbox_row(2)]


# --- tables -----------------------------------------------------------------------------------------------------------


def test_only_rows_of_the_outbox_leave(reading: Reading, binlog: Binlog) -> None:
    foreign = Binlog(columns=(OUTBOX[0],))
    frames = [
        binlog.gtid(),
        binlog.query("BEGIN"),
        binlog.table_map(1),
        binlog.table_map(2, "orders"),
        binlog.event(E.WRITE_ROWS, foreign.rows(outbox_row(77), table_id=2)[19:-4]),
        binlog.rows(outbox_row(1), table_id=1),
        binlog.event(E.UPDATE_ROWS, (2).to_bytes(6, "little") + b"whatever"),
        binlog.event(E.DELETE_ROWS, (2).to_bytes(6, "little") + b"whatever"),
        binlog.xid(),
    ]
    batch = only(reading.feed(*frames))
    assert (batch.rows, batch.doubtful) == ([outbox_row(1)], False)
    assert not reading.unsupported


@pytest.mark.parametrize("told_by", ["rotation", "format description"])
def test_a_table_id_given_out_anew_is_another_table(reading: Reading, binlog: Binlog, told_by: str) -> None:
    """After a restart of the server the outbox's old id may be any table's."""
    reading.feed(*binlog.transaction(outbox_row(1)))
    rotation = binlog.rotate("binlog.000002", made_up=False) if told_by == "rotation" else b""
    reading.feed(rotation or binlog.format(in_file=True))
    frames = [binlog.gtid(), binlog.query("BEGIN"), binlog.rows(outbox_row(66), table_id=1), binlog.xid()]
    assert reading.rows(*frames) == []
    assert reading.rows(*binlog.transaction(outbox_row(2))) == [outbox_row(2)]


@pytest.mark.parametrize(
    "change",
    [
        E.UPDATE_ROWS, E.UPDATE_ROWS_V1, E.DELETE_ROWS, E.DELETE_ROWS_V1, E.PARTIAL_UPDATE_ROWS,
        E.MARIADB_UPDATE_ROWS_COMPRESSED, E.MARIADB_UPDATE_ROWS_COMPRESSED_V1,
        E.MARIADB_DELETE_ROWS_COMPRESSED, E.MARIADB_DELETE_ROWS_COMPRESSED_V1,
    ],
)  # fmt: skip
def test_rows_changed_or_deleted_in_their_own_transaction_are_doubtful(
    reading: Reading, binlog: Binlog, change: int
) -> None:
    changed = (1).to_bytes(6, "little") + b"\x01\0whatever"
    frames = [binlog.gtid(), binlog.query("BEGIN"), *binlog.insert(outbox_row(1)), binlog.event(change, changed)]
    batch = only(reading.feed(*frames, binlog.xid()))
    assert ([row.id for row in batch.rows], batch.doubtful) == ([1], True)
    # In a transaction of its own it says nothing of later rows, which are fresh.
    frames = [binlog.gtid(), binlog.query("BEGIN"), binlog.table_map(), binlog.event(change, changed), binlog.xid()]
    batch = only(reading.feed(*frames))
    assert (batch.rows, batch.doubtful) == ([], False)
    assert not reading.unsupported


def test_rows_with_absent_columns_are_doubtful(reading: Reading, binlog: Binlog) -> None:
    present = [column.name != "payload" for column in OUTBOX]
    frames = [binlog.gtid(), binlog.query("BEGIN"), binlog.table_map(), binlog.rows(outbox_row(1), present=present)]
    batch = only(reading.feed(*frames, binlog.xid()))
    assert ([row.id for row in batch.rows], batch.doubtful) == ([1], True)


def test_doubtful_and_certain_transactions_do_not_travel_together(reading: Reading, binlog: Binlog) -> None:
    def doubtful(row_id: int) -> list[bytes]:
        rows = binlog.rows(outbox_row(row_id), present=[column.name != "payload" for column in OUTBOX])
        return [binlog.gtid(), binlog.query("BEGIN"), binlog.table_map(), rows, binlog.xid()]

    frames = [*binlog.transaction(outbox_row(1)), *doubtful(2), *doubtful(3), *binlog.transaction(outbox_row(4))]
    batches = reading.feed(*frames)
    assert [([row.id for row in batch.rows], batch.doubtful) for batch in batches] == [
        ([1], False),
        ([2, 3], True),
        ([4], False),
    ]
    assert batches[-1].end == here(binlog)


def test_small_transactions_travel_together(reading: Reading, binlog: Binlog) -> None:
    frames = [frame for number in range(1, 50) for frame in binlog.transaction(outbox_row(number))]
    batch = only(reading.feed(*frames, binlog.query("CREATE TABLE x (id INT)")))
    assert [row.id for row in batch.rows] == list(range(1, 50))
    assert batch.end == here(binlog)


# --- statements -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["CREATE TABLE x (id INT)", "DROP TABLE `x`", "GRANT ALL ON *.* TO me", "FLUSH"])
@pytest.mark.parametrize("gtid", ["none", "mysql", "mariadb"])
def test_a_statement_that_is_a_transaction_by_itself_moves_the_position(
    reading: Reading, binlog: Binlog, statement: str, gtid: str
) -> None:
    first = {"none": [], "mysql": [binlog.gtid()], "mariadb": [binlog.mariadb_gtid(0x29)]}[gtid]
    batch = only(reading.feed(*first, binlog.query(statement)))
    assert (batch.rows, batch.end, batch.unreadable) == ([], here(binlog), False)
    assert not reading.assembler.in_transaction


def test_the_position_does_not_move_between_a_gtid_and_what_follows_it(reading: Reading, binlog: Binlog) -> None:
    assert reading.feed(binlog.gtid()) == []
    assert reading.feed(binlog.event(E.INTVAR, b"\x02" + b"\0" * 8)) == []


@pytest.mark.parametrize("before", [["BEGIN"], []])
def test_the_rows_of_create_table_select_end_with_their_xid(
    reading: Reading, binlog: Binlog, before: list[str]
) -> None:
    frames = [binlog.gtid(), *map(binlog.query, before), binlog.query("CREATE TABLE `x` (id INT) START TRANSACTION")]
    assert reading.feed(*frames, *binlog.insert(outbox_row(1))) == []
    assert reading.rows(binlog.xid()) == [outbox_row(1)]


def test_the_rows_of_create_table_select_on_mariadb(reading: Reading, binlog: Binlog) -> None:
    frames = [binlog.mariadb_gtid(0x28), binlog.query("CREATE TABLE `x` (\n  `id` int(11) NOT NULL\n)")]
    assert reading.feed(*frames, *binlog.insert(outbox_row(1))) == []
    assert reading.rows(binlog.xid()) == [outbox_row(1)]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO agent_outbox_messages (topic) VALUES ('t')",
        "insert into `shop`.`AGENT_OUTBOX_MESSAGES` values (1)",
        "LOAD DATA INFILE '/x' INTO TABLE agent_outbox_messages",
    ],
)
def test_rows_logged_as_statements_are_told_and_left_to_the_table(
    reading: Reading, binlog: Binlog, statement: str
) -> None:
    frames = [binlog.gtid(), binlog.query("BEGIN"), binlog.query(statement), *binlog.insert(outbox_row(1))]
    (batch,) = reading.feed(*frames, binlog.xid())
    # The table has all of them in order; were only some to leave, they would overtake the others.
    assert (batch.rows, batch.end, batch.unreadable) == ([], here(binlog), True)
    assert reading.unsupported == {"statement": 1}
    assert reading.rows(*binlog.transaction(outbox_row(2))) == [outbox_row(2)]


def test_statements_on_other_tables_within_a_transaction_change_nothing(reading: Reading, binlog: Binlog) -> None:
    frames = [
        binlog.gtid(),
        binlog.query("BEGIN"),
        binlog.query("INSERT INTO orders VALUES (1)"),
        binlog.query("DROP TEMPORARY TABLE IF EXISTS `t`"),
        *binlog.insert(outbox_row(1)),
        binlog.query("UPDATE orders SET paid = 1"),
        binlog.xid(),
    ]
    batch = only(reading.feed(*frames))
    assert (batch.rows, batch.unreadable) == ([outbox_row(1)], False)
    assert not reading.unsupported


def test_an_altered_outbox_is_learned_anew(reading: Reading, binlog: Binlog) -> None:
    described = list(DESCRIBED)
    reading.tables._describe = lambda: described
    assert reading.rows(*binlog.transaction(outbox_row(1))) == [outbox_row(1)]
    # The two have the same types, so nothing but the statement tells.
    described[2], described[3] = described[3], described[2]
    reading.feed(binlog.gtid(), binlog.query("ALTER TABLE agent_outbox_messages MODIFY topic VARCHAR(128) AFTER id"))
    assert reading.rows(*binlog.transaction(outbox_row(2, key="k", topic="t"))) == [outbox_row(2, key="t", topic="k")]


# --- XA ---------------------------------------------------------------------------------------------------------------

MYSQL_ID = "X'61',X'6263',7"
XaBegin = Callable[[Binlog], list[bytes]]


def mysql_xa(binlog: Binlog) -> list[bytes]:
    return [binlog.gtid(), binlog.query(f"XA START {MYSQL_ID}")]


def mariadb_xa(binlog: Binlog) -> list[bytes]:
    """MariaDB tells by its GTID, and writes no XA START."""
    return [binlog.mariadb_gtid(0x4C)]


@pytest.fixture(params=[mysql_xa, mariadb_xa])
def xa_begin(request: pytest.FixtureRequest) -> XaBegin:
    begin: XaBegin = request.param
    return begin


def prepared(binlog: Binlog, begin: XaBegin, *rows: OutboxRow) -> list[bytes]:
    return [
        *begin(binlog),
        *(frame for row in rows for frame in binlog.insert(row)),
        binlog.query(f"XA END {MYSQL_ID}"),
        binlog.xa_prepare(b"a", b"bc", 7),
    ]


def test_the_rows_of_an_xa_transaction_leave_at_its_commit(reading: Reading, binlog: Binlog, xa_begin: XaBegin) -> None:
    batch = only(reading.feed(*prepared(binlog, xa_begin, outbox_row(1), outbox_row(2))))
    assert (batch.rows, batch.end, batch.unreadable) == ([], here(binlog), False)
    assert reading.rows(*binlog.transaction(outbox_row(3))) == [outbox_row(3)]
    batch = only(reading.feed(binlog.gtid(), binlog.query(f"XA COMMIT {MYSQL_ID}")))
    assert ([row.id for row in batch.rows], batch.doubtful, batch.end) == ([1, 2], True, here(binlog))
    assert not reading.unsupported


def test_the_rows_of_an_xa_transaction_rolled_back_never_leave(
    reading: Reading, binlog: Binlog, xa_begin: XaBegin
) -> None:
    reading.feed(*prepared(binlog, xa_begin, outbox_row(1)))
    batch = only(reading.feed(binlog.gtid(), binlog.query(f"XA ROLLBACK {MYSQL_ID}")))
    assert (batch.rows, batch.end, batch.unreadable) == ([], here(binlog), False)
    # The same id may be used again.
    reading.feed(*prepared(binlog, xa_begin, outbox_row(2)))
    assert [row.id for row in reading.rows(binlog.query(f"XA COMMIT {MYSQL_ID}"))] == [2]


def test_xa_transactions_are_told_apart_by_their_whole_id(reading: Reading, binlog: Binlog, xa_begin: XaBegin) -> None:
    names = [(b"a", b"b", 1), (b"a", b"c", 1), (b"ab", b"", 1), (b"a", b"b", 2)]
    for number, (gtrid, bqual, form) in enumerate(names):
        reading.feed(*xa_begin(binlog), *binlog.insert(outbox_row(number)), binlog.xa_prepare(gtrid, bqual, form))
    for number in (2, 0, 3, 1):
        gtrid, bqual, form = names[number]
        rows = reading.rows(binlog.query(f"XA COMMIT X'{gtrid.hex()}',X'{bqual.hex()}',{form}"))
        assert [row.id for row in rows] == [number]


def test_a_one_phase_xa_commit_is_an_ordinary_one(reading: Reading, binlog: Binlog, xa_begin: XaBegin) -> None:
    frames = [*xa_begin(binlog), *binlog.insert(outbox_row(1)), binlog.query(f"XA END {MYSQL_ID}")]
    batch = only(reading.feed(*frames, binlog.xa_prepare(b"a", b"bc", 7, one_phase=True)))
    assert (batch.rows, batch.doubtful, batch.end) == ([outbox_row(1)], False, here(binlog))


def test_an_xa_transaction_prepared_before_the_start_sends_to_the_table(reading: Reading, binlog: Binlog) -> None:
    batch = only(reading.feed(binlog.gtid(), binlog.query(f"XA COMMIT {MYSQL_ID}")))
    assert (batch.rows, batch.end, batch.unreadable) == ([], here(binlog), True)
    assert not reading.unsupported  # nothing that is not understood


def test_an_xa_transaction_whose_rows_cannot_be_read_sends_to_the_table_at_its_commit(
    reading: Reading, binlog: Binlog, xa_begin: XaBegin
) -> None:
    rows = bytearray(binlog.rows(outbox_row(2)))
    rows[30] ^= 1
    frames = [*xa_begin(binlog), *binlog.insert(outbox_row(1)), bytes(rows), binlog.xa_prepare(b"a", b"bc", 7)]
    reading.feed(*frames)
    assert reading.unsupported == {"rows": 1}
    batch = only(reading.feed(binlog.query(f"XA COMMIT {MYSQL_ID}")))
    assert (batch.rows, batch.unreadable) == ([], True)


def test_an_xa_transaction_of_too_many_rows_sends_to_the_table_at_its_commit(
    reading: Reading, binlog: Binlog, xa_begin: XaBegin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xa, "_REMEMBERED_ROWS", 2)
    reading.feed(*prepared(binlog, xa_begin, *map(outbox_row, range(3))))
    batch = only(reading.feed(binlog.query(f"XA COMMIT {MYSQL_ID}")))
    assert (batch.rows, batch.unreadable) == ([], True)
    # It took no room: the next one is remembered.
    reading.feed(*prepared(binlog, xa_begin, *map(outbox_row, range(2))))
    batch = only(reading.feed(binlog.query(f"XA COMMIT {MYSQL_ID}")))
    assert ([row.id for row in batch.rows], batch.unreadable) == ([0, 1], False)
    # And neither do those that are done.
    for _ in range(5):
        for end, count in (("ROLLBACK", 0), ("COMMIT", 2)):
            reading.feed(*prepared(binlog, xa_begin, *map(outbox_row, range(2))))
            assert len(reading.rows(binlog.query(f"XA {end} {MYSQL_ID}"))) == count


def test_a_large_xa_transaction_is_neither_held_nor_sent_before_its_commit(
    reading: Reading, binlog: Binlog, xa_begin: XaBegin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 1_000)
    batches = reading.feed(*prepared(binlog, xa_begin, *(outbox_row(n, payload="x" * 400) for n in range(9))))
    assert only(batches).rows == []
    batch = only(reading.feed(binlog.query(f"XA COMMIT {MYSQL_ID}")))
    assert (batch.rows, batch.unreadable) == ([], True)


# --- large transactions -----------------------------------------------------------------------------------------------


def test_a_transaction_too_large_to_hold_leaves_in_doubtful_pieces_without_an_end(
    reading: Reading, binlog: Binlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 2_000)
    rows = [outbox_row(number, payload="x" * 900) for number in range(10)]
    frames = [binlog.gtid(), binlog.query("BEGIN"), *(frame for row in rows for frame in binlog.insert(row))]
    batches = reading.feed(*frames)
    assert len(batches) > 2
    assert all(batch.doubtful and batch.end is None and batch.size > 2_000 for batch in batches)
    last = only(reading.feed(binlog.xid()))
    assert last.end == here(binlog)
    assert [row.id for batch in [*batches, last] for row in batch.rows] == list(range(10))


def test_the_piece_of_a_large_transaction_is_not_joined_with_what_follows(
    reading: Reading, binlog: Binlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 500)
    batches = reading.feed(*binlog.transaction(outbox_row(1)), *binlog.transaction(outbox_row(2, payload="x" * 900)))
    middle = batches[0].end
    assert middle is not None
    assert middle < here(binlog)
    assert [([row.id for row in batch.rows], batch.end) for batch in batches] == [
        ([1], middle),
        ([2], None),
        ([], here(binlog)),
    ]


def test_offsets_go_on_past_4_gib_where_reading_cannot_resume() -> None:
    binlog = Binlog(offset=2**32 - 500)
    reading = reading_of(binlog)
    batches: list[TransactionBatch] = []
    for number in range(5):
        batches += reading.feed(*binlog.transaction(outbox_row(number)))
    assert [row.id for batch in batches for row in batch.rows] == list(range(5))
    assert reading.assembler.position == here(binlog)
    assert here(binlog).offset > 2**32
    ends = [batch.end.offset for batch in batches if batch.end is not None]
    assert ends == sorted(ends)
    assert all(end < 2**32 for end in ends)
    assert batches[-1].end is None
    # In the next file it can again.
    batch = reading.feed(binlog.rotate("binlog.000002", made_up=False))[-1]
    assert batch.end == BinlogPosition("binlog.000002", 4)


# --- what compresses --------------------------------------------------------------------------------------------------


def inner_transaction(binlog: Binlog, *rows: OutboxRow, end: int | None = E.XID) -> list[bytes]:
    """As MySQL packs it: everything but the GTID."""
    return [
        binlog.inner(E.QUERY, binlog.query_body("BEGIN")),
        binlog.inner(E.TABLE_MAP, binlog.table_map_body()),
        binlog.inner(E.WRITE_ROWS, Binlog(checksum=False).rows(*rows)[19:]),
        *([] if end is None else [binlog.inner(end, b"\0" * 8)]),
    ]


@pytest.mark.parametrize("compression", [0, 255])
def test_the_rows_of_a_compressed_transaction_leave_at_the_end_of_its_event(
    reading: Reading, binlog: Binlog, compression: int
) -> None:
    inner = inner_transaction(binlog, outbox_row(1), outbox_row(2))
    content = zstandard.compress(b"".join(inner)) if compression == 0 else None
    gtid = binlog.gtid(1_700_000_000.5)
    batch = only(reading.feed(gtid, binlog.payload(*inner, compression=compression, content=content)))
    assert (batch.rows, batch.end) == ([outbox_row(1), outbox_row(2)], here(binlog))
    assert (batch.committed_at, batch.doubtful, batch.unreadable) == (1_700_000_000.5, False, False)
    assert not reading.unsupported


def damaged(frame: bytes, at: int = -30) -> bytes:
    out = bytearray(frame)
    out[at] ^= 0x10
    return bytes(out)


@pytest.mark.parametrize(
    "trouble",
    ["unknown compression", "damaged", "cut off", "no end", "header", "an event without sense", "unknown event"],
)
def test_a_compressed_transaction_that_cannot_be_read_is_told_and_left_to_the_table(
    reading: Reading, binlog: Binlog, trouble: str
) -> None:
    inner = inner_transaction(binlog, outbox_row(1))
    packed = zstandard.compress(b"".join(inner))
    gtid = binlog.gtid()
    frame = {
        "unknown compression": lambda: binlog.payload(*inner, compression=7),
        "damaged": lambda: damaged(binlog.payload(*inner, compression=255)),
        "cut off": lambda: binlog.payload(*inner, compression=0, content=packed[:-5]),
        "no end": lambda: binlog.payload(*inner_transaction(binlog, outbox_row(1), end=None)),
        "header": lambda: binlog.event(E.TRANSACTION_PAYLOAD, b"\x02\x01"),
        "an event without sense": lambda: binlog.payload(*inner[:-1], binlog.inner(E.QUERY, b"\x01")),
        "unknown event": lambda: binlog.payload(inner[0], binlog.inner(99, b"\x01"), *inner[1:]),
    }[trouble]()
    batch = only(reading.feed(gtid, frame))
    assert (batch.rows, batch.end, batch.unreadable) == ([], here(binlog), True)
    assert reading.unsupported == {"type_99" if trouble == "unknown event" else "transaction_payload": 1}
    assert reading.rows(*binlog.transaction(outbox_row(2))) == [outbox_row(2)]


def test_a_compressed_transaction_that_was_rolled_back_invents_nothing(reading: Reading, binlog: Binlog) -> None:
    inner = inner_transaction(binlog, outbox_row(1), end=None)
    rollback = binlog.inner(E.QUERY, binlog.query_body("ROLLBACK"))
    batch = only(reading.feed(binlog.gtid(), binlog.payload(*inner, rollback)))
    assert (batch.rows, batch.unreadable) == ([], False)


def test_a_compressed_xa_transaction_leaves_at_its_commit(reading: Reading, binlog: Binlog) -> None:
    start = binlog.inner(E.QUERY, binlog.query_body(f"XA START {MYSQL_ID}"))
    end = binlog.inner(E.QUERY, binlog.query_body(f"XA END {MYSQL_ID}"))
    prepare = binlog.inner(E.XA_PREPARE, binlog.xa_prepare(b"a", b"bc", 7)[19:-4])
    _, table_map, rows, _ = inner_transaction(binlog, outbox_row(1))
    assert reading.rows(binlog.gtid(), binlog.payload(start, table_map, rows, end, prepare)) == []
    assert [row.id for row in reading.rows(binlog.query(f"XA COMMIT {MYSQL_ID}"))] == [1]


@pytest.mark.parametrize("kind", [E.MARIADB_WRITE_ROWS_COMPRESSED_V1, E.MARIADB_WRITE_ROWS_COMPRESSED])
def test_compressed_rows_of_mariadb_are_read(reading: Reading, binlog: Binlog, kind: int) -> None:
    extra = None if kind == E.MARIADB_WRITE_ROWS_COMPRESSED_V1 else b""
    rows = binlog.rows(outbox_row(1), outbox_row(2), kind=kind, extra=extra, compress=True)
    assert reading.rows(binlog.mariadb_gtid(0x0C), binlog.table_map(), rows, binlog.xid()) == [
        outbox_row(1),
        outbox_row(2),
    ]
    assert not reading.unsupported


@pytest.mark.parametrize("statement", ["BEGIN", "ROLLBACK", f"XA COMMIT {MYSQL_ID}", "CREATE TABLE x (id INT)"])
def test_compressed_statements_of_mariadb_mean_the_same(reading: Reading, binlog: Binlog, statement: str) -> None:
    plain, compressed = Binlog(), Binlog()
    reading, other = reading_of(plain), reading_of(compressed)
    told = reading.feed(*prepared(plain, mariadb_xa, outbox_row(1)), plain.query("BEGIN"), *plain.insert(outbox_row(2)))
    assert told == other.feed(
        *prepared(compressed, mariadb_xa, outbox_row(1)), compressed.query("BEGIN"), *compressed.insert(outbox_row(2))
    )
    first = reading.feed(plain.query(statement))
    packed = compressed.query_body(mariadb_compressed(statement.encode()))
    second = other.feed(compressed.event(E.MARIADB_QUERY_COMPRESSED, packed))
    assert [(b.rows, b.doubtful, b.unreadable) for b in first] == [(b.rows, b.doubtful, b.unreadable) for b in second]
    assert reading.assembler.in_transaction == other.assembler.in_transaction
    assert not other.unsupported


def test_a_compressed_statement_that_cannot_be_read_is_told(reading: Reading, binlog: Binlog) -> None:
    body = binlog.query_body(b"\xff\xff")
    reading.feed(binlog.event(E.MARIADB_QUERY_COMPRESSED, body))
    assert reading.unsupported == {"mariadb_query_compressed": 1}


# --- what is not understood -------------------------------------------------------------------------------------------

HANDLED = {
    E.QUERY, E.ROTATE, E.FORMAT_DESCRIPTION, E.XID, E.TABLE_MAP, E.WRITE_ROWS_V1, E.UPDATE_ROWS_V1, E.DELETE_ROWS_V1,
    E.WRITE_ROWS, E.UPDATE_ROWS, E.DELETE_ROWS, E.GTID, E.ANONYMOUS_GTID, E.XA_PREPARE, E.PARTIAL_UPDATE_ROWS,
    E.TRANSACTION_PAYLOAD, E.GTID_TAGGED, E.MARIADB_GTID, E.MARIADB_QUERY_COMPRESSED,
    E.MARIADB_WRITE_ROWS_COMPRESSED_V1, E.MARIADB_UPDATE_ROWS_COMPRESSED_V1, E.MARIADB_DELETE_ROWS_COMPRESSED_V1,
    E.MARIADB_WRITE_ROWS_COMPRESSED, E.MARIADB_UPDATE_ROWS_COMPRESSED, E.MARIADB_DELETE_ROWS_COMPRESSED,
}  # fmt: skip

#: What the manuals say holds nothing that an outbox row could be in.
HARMLESS = {
    E.STOP, E.INTVAR, E.RAND, E.USER_VAR, E.IGNORABLE, E.ROWS_QUERY, E.PREVIOUS_GTIDS, E.TRANSACTION_CONTEXT,
    E.VIEW_CHANGE, E.HEARTBEAT, E.HEARTBEAT_V2, E.MARIADB_ANNOTATE_ROWS, E.MARIADB_BINLOG_CHECKPOINT,
    E.MARIADB_GTID_LIST, E.MARIADB_START_ENCRYPTION,
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(set(range(256)) - HANDLED))
@pytest.mark.parametrize("within", [False, True], ids=["between transactions", "within one"])
def test_every_other_type_of_event_is_harmless_or_told(
    reading: Reading, binlog: Binlog, kind: int, within: bool
) -> None:
    other = b"any bytes that it may have" * 3
    before = binlog.transaction(outbox_row(1))
    first = [binlog.gtid(), binlog.query("BEGIN"), binlog.table_map()]
    strange = binlog.event(kind, other)
    rest = [binlog.rows(outbox_row(2)), binlog.xid()]
    after = binlog.transaction(outbox_row(3))
    middle = [*first, strange, *rest] if within else [strange, *first, *rest]
    batches = reading.feed(*before, *middle, *after)
    ids = [row.id for batch in batches for row in batch.rows]
    assert batches[-1].end == here(binlog)
    if kind in HARMLESS:
        assert not reading.unsupported
        assert ids == [1, 2, 3]
        assert not any(batch.unreadable for batch in batches)
        return
    assert reading.unsupported == {type_name(kind): 1}
    # Rows of the same transaction wait for the table, which has them all in order; others go their way.
    assert ids == ([1, 3] if within else [1, 2, 3])
    assert [batch.unreadable for batch in batches].count(True) == 1
    place = next(at for at, batch in enumerate(batches) if batch.unreadable)
    assert [row.id for batch in batches[:place] for row in batch.rows] == [1]


def test_rows_whose_checksum_does_not_fit_are_told_and_left_to_the_table(reading: Reading, binlog: Binlog) -> None:
    frames = [binlog.gtid(), binlog.query("BEGIN"), *binlog.insert(outbox_row(1))]
    frames += [binlog.table_map(), damaged(binlog.rows(outbox_row(2))), *binlog.insert(outbox_row(3)), binlog.xid()]
    batch = only(reading.feed(*frames))
    assert (batch.rows, batch.unreadable) == ([], True)
    assert reading.unsupported == {"rows": 1}
    assert reading.rows(*binlog.transaction(outbox_row(4))) == [outbox_row(4)]


def test_rows_of_a_table_that_cannot_be_understood_are_told_and_left_to_the_table(binlog: Binlog) -> None:
    binlog.columns = (*OUTBOX, opaque("new", 200, b"\x07"))
    reading = reading_of(binlog)
    frames = [
        binlog.gtid(),
        binlog.query("BEGIN"),
        binlog.table_map(),
        binlog.event(E.WRITE_ROWS, b"\x01" + b"\0" * 60),
    ]
    batch = only(reading.feed(*frames, binlog.xid()))
    assert (batch.rows, batch.unreadable) == ([], True)
    assert reading.unsupported == {"table_map": 1, "rows": 1}


def test_what_is_told_within_a_transaction_says_nothing_of_the_next_one(reading: Reading, binlog: Binlog) -> None:
    strange = [binlog.gtid(), binlog.query("BEGIN"), binlog.event(99), *binlog.insert(outbox_row(1)), binlog.xid()]
    batches = reading.feed(*strange, *binlog.transaction(outbox_row(2)))
    assert [(batch.unreadable, [row.id for row in batch.rows]) for batch in batches] == [(True, []), (False, [2])]


# --- checksums --------------------------------------------------------------------------------------------------------


def test_without_checksums_everything_is_read_all_the_same() -> None:
    binlog = Binlog(checksum=False)
    reading = reading_of(binlog)
    assert reading.rows(*binlog.transaction(outbox_row(1))) == [outbox_row(1)]
    inner = inner_transaction(binlog, outbox_row(2))
    assert reading.rows(binlog.gtid(), binlog.payload(*inner)) == [outbox_row(2)]
    rows = binlog.rows(outbox_row(3), kind=E.MARIADB_WRITE_ROWS_COMPRESSED_V1, extra=None, compress=True)
    assert reading.rows(binlog.mariadb_gtid(), binlog.table_map(), rows, binlog.xid()) == [outbox_row(3)]
    assert not reading.unsupported


def test_each_file_says_for_itself_whether_it_has_checksums(reading: Reading, binlog: Binlog) -> None:
    for number in range(2, 6):
        frames = [binlog.rotate(f"binlog.{number:06d}", made_up=False)]
        binlog.checksum = not binlog.checksum
        frames += [binlog.format(in_file=True), *binlog.transaction(outbox_row(number))]
        assert reading.rows(*frames) == [outbox_row(number)]
    assert not reading.unsupported


# --- positions --------------------------------------------------------------------------------------------------------


def test_the_rotation_that_the_server_makes_up_at_the_start_is_none(binlog: Binlog) -> None:
    binlog.offset = 12_345
    reading = Reading(here(binlog))
    assert reading.feed(*binlog.start()) == []
    assert reading.assembler.position == here(binlog)


def test_a_rotation_moves_on_to_the_next_file(reading: Reading, binlog: Binlog) -> None:
    reading.feed(*binlog.transaction(outbox_row(1)))
    batch = only(reading.feed(binlog.rotate("binlog.000002", made_up=False)))
    assert batch.end == BinlogPosition("binlog.000002", 4)
    # The same is told again when the next file is opened.
    assert reading.feed(binlog.rotate("binlog.000002"), binlog.format(in_file=True)) == []
    batch = only(reading.feed(*binlog.transaction(outbox_row(2))))
    assert batch.end == here(binlog)
    assert batch.end is not None
    assert batch.end.file == "binlog.000002"


def test_heartbeats_and_markers_move_the_position_of_a_quiet_outbox(reading: Reading, binlog: Binlog) -> None:
    for kind in (E.HEARTBEAT, E.MARIADB_BINLOG_CHECKPOINT, E.STOP):
        assert only(reading.feed(binlog.event(kind, b"x"))).end == here(binlog)


@pytest.mark.parametrize("size", range(80, 180, 10))
def test_an_event_may_end_exactly_at_4_gib_or_anywhere_around_it(size: int) -> None:
    binlog = Binlog(offset=2**32 - size)
    reading = reading_of(binlog)
    for _ in range(8):
        reading.feed(binlog.event(E.HEARTBEAT, b"1234567"))  # 30 bytes
        assert reading.assembler.position == here(binlog)
    reading.feed(binlog.format(), binlog.event(E.STOP, in_file=False))
    assert reading.assembler.position == here(binlog)


@pytest.mark.parametrize("offset", [4, 2**32 - 150, 2**32 - 70])
def test_the_position_follows_where_the_server_leaves_events_out(offset: int) -> None:
    """MariaDB sends no ANNOTATE_ROWS to whoever does not ask for them."""
    binlog = Binlog(offset=offset)
    reading = reading_of(binlog)
    first = [binlog.mariadb_gtid(0x0C)]
    binlog.offset += 50
    assert reading.rows(*first, *binlog.insert(outbox_row(1)), binlog.xid()) == [outbox_row(1)]
    assert reading.assembler.position == here(binlog)


@pytest.mark.parametrize("offset", [4, 20_000, 2**32 - 100])
@pytest.mark.parametrize("back", [1, 100, 2**20])
def test_a_heartbeat_that_tells_an_earlier_place_moves_nothing(offset: int, back: int) -> None:
    binlog = Binlog(offset=offset)
    reading = reading_of(binlog)
    reading.feed(*binlog.transaction(outbox_row(1)))
    earlier = Binlog(offset=max(5, binlog.offset - 50 - back))
    reading.feed(earlier.event(E.HEARTBEAT, b"binlog.000001"))
    assert reading.assembler.position == here(binlog)


def test_foreign_transactions_move_the_position(reading: Reading, binlog: Binlog) -> None:
    frames = [binlog.gtid(), binlog.query("BEGIN"), binlog.table_map(2, "orders"), binlog.event(E.WRITE_ROWS, b"\x02")]
    assert reading.feed(*frames) == []
    batch = only(reading.feed(binlog.xid()))
    assert (batch.rows, batch.end) == ([], here(binlog))


def test_a_file_that_ends_by_a_rotation_or_a_shutdown_is_followed_by_the_next(reading: Reading, binlog: Binlog) -> None:
    reading.feed(binlog.rotate("binlog.000002", made_up=False), binlog.rotate("binlog.000002"), binlog.format())
    reading.feed(binlog.event(E.STOP), binlog.rotate("binlog.000003"))
    assert reading.rows(*binlog.transaction(outbox_row(1))) == [outbox_row(1)]


@pytest.mark.parametrize("stopped_before", [False, True])
def test_behind_a_file_without_an_end_nothing_is_read(reading: Reading, binlog: Binlog, stopped_before: bool) -> None:
    """RESET BINARY LOGS under a reader: the server goes on with whatever file comes next, and may leave out some."""
    if stopped_before:
        reading.feed(binlog.event(E.STOP), binlog.rotate("binlog.000002"), binlog.format())
    reading.feed(*binlog.transaction(outbox_row(1)))
    with pytest.raises(StaleSource, match="no end") as caught:
        reading.feed(binlog.rotate("binlog.000007"))
    assert caught.value.reason == "reset"


def test_the_time_at_which_each_file_was_begun_is_kept(reading: Reading, binlog: Binlog) -> None:
    first = binlog.timestamp
    binlog.timestamp += 1000
    reading.feed(*binlog.transaction(outbox_row(1)), binlog.rotate("binlog.000002", made_up=False))
    reading.feed(binlog.format(in_file=True))
    assert reading.assembler.files_created == {"binlog.000001": first, "binlog.000002": first + 1000}


# --- any stream -------------------------------------------------------------------------------------------------------


@dataclass
class Written:
    """A stream, and what must come of it."""

    binlog: Binlog
    start: BinlogPosition
    frames: list[tuple[BinlogPosition, bytes]] = field(default_factory=list)
    """With the place after each."""
    boundaries: dict[BinlogPosition, int] = field(default_factory=dict)
    """Where no transaction is open, and how many ids had been committed by then."""
    committed: list[int] = field(default_factory=list)
    next_id: int = 1

    def write(self, *frames: bytes) -> None:
        self.frames += [(here(self.binlog), frame) for frame in frames]

    def boundary(self) -> None:
        self.boundaries[here(self.binlog)] = len(self.committed)

    def rows(self, count: int) -> list[OutboxRow]:
        rows = [outbox_row(self.next_id + n, payload="x" * (97 * (self.next_id + n) % 500)) for n in range(count)]
        self.next_id += count
        return rows


@st.composite
def streams(draw: st.DrawFn) -> Written:
    binlog = Binlog(checksum=draw(st.booleans()), offset=draw(st.sampled_from([4, 12_345, 2**32 - 2_000])))
    written = Written(binlog, here(binlog))
    written.write(*binlog.start())
    written.boundary()
    file = 1
    for _ in range(draw(st.integers(0, 12))):
        kind = draw(
            st.sampled_from(["mysql", "mysql", "mariadb", "compressed", "rollback", "foreign", "ddl", "rotate", "idle"])
        )
        # A large transaction may have to leave in pieces.
        rows = written.rows(draw(st.integers(0, 4)))
        if kind == "rotate":
            file += 1
            written.write(binlog.rotate(f"binlog.{file:06d}", made_up=False), binlog.rotate(f"binlog.{file:06d}"))
            written.write(binlog.format(in_file=True))
            # The place before the format description is where a reader would begin, too.
            written.boundaries[BinlogPosition(binlog.file, 4)] = len(written.committed)
        elif kind == "idle":
            written.write(binlog.event(draw(st.sampled_from([E.HEARTBEAT, E.STOP, E.PREVIOUS_GTIDS]))))
        elif kind == "ddl":
            written.write(binlog.gtid())
            written.write(binlog.query("CREATE TABLE x (id INT)"))
        elif kind == "compressed":
            written.write(binlog.gtid())
            written.write(binlog.payload(*inner_transaction(binlog, *rows)))
            written.committed += [row.id for row in rows]
        else:
            mariadb = kind == "mariadb"
            written.write(binlog.mariadb_gtid(0x0C) if mariadb else binlog.gtid())
            if not mariadb:
                written.write(binlog.query("BEGIN"))
            for row in rows:
                written.write(binlog.table_map(draw(st.integers(1, 3))))
                table_id = int.from_bytes(binlog.log[-1][19:25], "little")
                if kind == "foreign":
                    written.write(binlog.table_map(table_id, "orders"))
                written.write(binlog.rows(row, table_id=table_id))
            written.write(binlog.query("ROLLBACK") if kind == "rollback" else binlog.xid())
            if kind not in ("rollback", "foreign"):
                written.committed += [row.id for row in rows]
        written.boundary()
    return written


def delivered(reading: Reading, frames: Iterable[bytes], pause: random.Random) -> list[TransactionBatch]:
    """Fed with pauses anywhere, as the socket gives it."""
    batches: list[TransactionBatch] = []
    for frame in frames:
        reading.assembler.feed(parse_event(frame, 0, len(frame)))
        if pause.random() < 0.3:
            batches += reading.assembler.take()
    return batches + reading.assembler.take()


@settings(max_examples=300)
@given(streams(), st.randoms(use_true_random=False), st.sampled_from([300, 2_000, 10**9]))
def test_of_any_stream_exactly_the_committed_rows_leave_in_order_with_ends_to_resume_from(
    written: Written, pause: random.Random, piece: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", piece)
        reading = Reading(written.start)
        batches = delivered(reading, [frame for _, frame in written.frames], pause)

        # Pieces may hold rows of a transaction that is rolled back later; the table says that those are not there.
        committed = set(written.committed)
        ids = [row.id for b in batches for row in b.rows if not b.doubtful or row.id in committed]
        assert ids == written.committed
        assert not reading.unsupported
        assert not any(batch.unreadable for batch in batches)

        given_so_far = 0
        last = written.start
        for batch in batches:
            given_so_far += sum(row.id in committed for row in batch.rows)
            if batch.end is None:
                continue
            assert batch.end >= last
            last = batch.end
            assert batch.end.is_resumable
            # A position from which to resume lies between transactions, and nothing before it is still to come. Past
            # 4 GiB rows travel with the last position there is, and are given again after a restart.
            if written.start.offset < 2**20:
                assert given_so_far == written.boundaries[batch.end]
            assert given_so_far >= written.boundaries[batch.end]

    # Whoever resumes from any of them is given exactly the rest.
    ends = sorted({batch.end for batch in batches if batch.end is not None})
    for end in ends[-3:]:
        rest = [frame for place, frame in written.frames if place > end]
        again = Reading(end)
        binlog = Binlog(file=end.file, offset=end.offset, checksum=written.binlog.checksum)
        batches = delivered(again, [*binlog.start(), *rest], pause)
        assert [row.id for b in batches for row in b.rows] == written.committed[written.boundaries[end] :]


@given(streams(), st.data())
@settings(max_examples=200)
def test_a_damaged_frame_is_refused_in_our_terms(written: Written, data: st.DataObject) -> None:
    """Whatever is changed in one event, feeding raises nothing but what the source takes for a damaged stream."""
    place = data.draw(st.integers(0, len(written.frames) - 1))
    frame = bytearray(written.frames[place][1])
    at = data.draw(st.integers(0, len(frame) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "zeros"]))
    if how == "flip":
        frame[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "zeros":
        frame[at:] = bytes(len(frame) - at)
    else:
        frame = frame[: max(at, 19)]
        frame[9:13] = len(frame).to_bytes(4, "little")
    reading = Reading(written.start)
    for number, (_, original) in enumerate(written.frames):
        given_frame = bytes(frame) if number == place else original
        try:
            reading.assembler.feed(parse_event(given_frame, 0, len(given_frame)))
        except (*DAMAGED, StaleSource):
            return
