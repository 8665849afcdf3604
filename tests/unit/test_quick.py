"""The quick loop and the assembler alone make the same of any stream."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cdc_relay.binlog.quick as quick_module
from cdc_relay.binlog.batches import TransactionBatch
from cdc_relay.binlog.events import EventType as E
from cdc_relay.binlog.events import parse_event
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.binlog.rows import DescribedColumn
from cdc_relay.binlog.source import BinlogSource
from cdc_relay.binlog.tables import OutboxTables
from cdc_relay.binlog.transactions import TransactionAssembler
from cdc_relay.outbox.row import OutboxRow
from tests.binlog_bytes import OUTBOX_NAMES, SCHEMA, TABLE, Binlog, outbox_row, packet


def described() -> list[DescribedColumn]:
    kinds = {
        "id": "bigint",
        "payload": "longtext",
        "last_error": "text",
        **dict.fromkeys(("retry_count", "max_retry"), "int"),
        **dict.fromkeys(("next_retry_at", "published_at", "consumed_at", "created_at", "updated_at"), "datetime"),
    }
    return [DescribedColumn(name, kinds.get(name, "varchar"), "utf8mb4") for name in OUTBOX_NAMES]


class Pieces:
    """A stream that arrives in these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = iter(pieces)
        self.has_more = True

    def receive(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        pass


def summary(batches: list[TransactionBatch]) -> tuple[list[object], BinlogPosition | None, float]:
    """What must be equal however the batches are cut: rows with how sure they are, the last end, the last commit."""
    rows: list[object] = []
    end, committed_at = None, 0.0
    for batch in batches:
        rows += [(row.id if batch.doubtful else row, batch.doubtful) for row in batch.rows]
        if batch.unreadable:
            rows.append(("unreadable", batch.end))
        end = batch.end or end
        committed_at = batch.committed_at or committed_at
    return rows, end, committed_at


def slowly(events: list[bytes], start: BinlogPosition) -> tuple[object, list[str]]:
    unsupported: list[str] = []
    assembler = TransactionAssembler(start, OutboxTables(SCHEMA, TABLE, described), unsupported.append)
    for event in events:
        assembler.feed(parse_event(event, 0, len(event)))
    return summary(assembler.take()), unsupported


def quickly(events: list[bytes], start: BinlogPosition, cut: random.Random) -> tuple[object, list[str]]:
    stream = b"".join(packet(b"\0" + event) for event in events)
    places = sorted(cut.randrange(len(stream)) for _ in range(cut.choice([0, 1, 5, 40])))
    pieces = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    unsupported: list[str] = []
    source = BinlogSource(
        Pieces(pieces),
        start,
        OutboxTables(SCHEMA, TABLE, described),
        on_unsupported=unsupported.append,
    )
    batches = [batch for _ in pieces for batch in source.read()]
    return summary(batches), unsupported


def _flipped(event: bytes) -> bytes:
    """With another last byte of its rows: only its checksum tells."""
    return event[:-6] + bytes([event[-6] ^ 1]) + event[-5:]


Step = Callable[[Binlog, list[OutboxRow]], list[bytes]]

#: Ordinary and unusual things that a binlog may hold, each given the next rows.
STEPS: dict[str, Step] = {
    "one": lambda b, rows: b.transaction(*rows[:1]),
    "some": lambda b, rows: b.transaction(*rows),
    "timed": lambda b, rows: b.transaction(*rows, committed_at=1.7e9 + rows[0].id),
    "with GTID": lambda b, rows: [b.gtid(1.6e9, E.GTID), b.query("BEGIN"), *b.insert(*rows), b.xid()],
    "tagged": lambda b, rows: [b.gtid(None, E.GTID_TAGGED), b.query("BEGIN"), *b.insert(*rows), b.xid()],
    "MariaDB": lambda b, rows: [b.mariadb_gtid(), *b.insert(*rows), b.xid()],
    "MariaDB XA": lambda b, rows: [b.mariadb_gtid(0x40), *b.insert(*rows), b.xa_prepare(b"x")],
    "rolled back": lambda b, rows: [b.gtid(), b.query("BEGIN"), *b.insert(*rows), b.query("ROLLBACK")],
    "to a savepoint": lambda b, rows: [
        b.gtid(), b.query("BEGIN"), *b.insert(*rows), b.query("ROLLBACK TO `a`"), *b.insert(rows[0]), b.xid(),
    ],
    "no GTID": lambda b, rows: [b.query("BEGIN"), *b.insert(*rows), b.xid()],
    "no end": lambda b, rows: [b.gtid(), b.query("BEGIN"), *b.insert(*rows)],
    "other": lambda b, rows: [
        b.gtid(), b.query("BEGIN"), b.table_map(7, "orders"), b.rows(*rows, table_id=7), b.xid(),
    ],
    "other takes the id": lambda b, rows: [
        b.gtid(), b.query("BEGIN"), b.table_map(1, "orders"), b.rows(*rows, table_id=1), *b.insert(*rows, table_id=2),
        b.xid(),
    ],
    "update": lambda b, rows: [
        b.gtid(), b.query("BEGIN"), b.table_map(1), b.rows(*rows, kind=E.UPDATE_ROWS), b.xid(),
    ],
    "insert and update": lambda b, rows: [
        b.gtid(), b.query("BEGIN"), *b.insert(*rows), b.rows(*rows, kind=E.UPDATE_ROWS), b.xid(),
    ],
    "annotated": lambda b, rows: [
        b.gtid(), b.query("BEGIN"), b.event(E.ROWS_QUERY, b"\x01x"), *b.insert(*rows), b.xid(),
    ],
    "version 1": lambda b, rows: [
        b.gtid(), b.query("BEGIN"), b.table_map(1), b.rows(*rows, kind=E.WRITE_ROWS_V1, extra=None), b.xid(),
    ],
    "extra data": lambda b, rows: [
        b.gtid(), b.query("BEGIN"), b.table_map(1), b.rows(*rows, extra=b"\x07\x00"), b.xid(),
    ],
    "few columns": lambda b, rows: [
        b.gtid(), b.query("BEGIN"), b.table_map(1), b.rows(*rows, present=[True] * 5 + [False] * 9), b.xid(),
    ],
    "damaged": lambda b, rows: [
        b.gtid(), b.query("BEGIN"), b.table_map(1), _flipped(b.rows(*rows)), b.xid(),
    ],
    "ddl": lambda b, rows: [b.gtid(), b.query("CREATE TABLE x (id INT)")],
    "alter": lambda b, rows: [b.gtid(), b.query(f"ALTER TABLE {TABLE} ADD x INT")],
    "compressed": lambda b, rows: [
        b.gtid(),
        b.payload(
            b.inner(E.QUERY, b.query_body("BEGIN")),
            b.inner(E.TABLE_MAP, b.table_map_body(1)),
            b.inner(E.XID, b"\0" * 8),
        ),
    ],
    "unknown": lambda b, rows: [b.event(150, b"x")],
    "unknown inside": lambda b, rows: [b.gtid(), b.query("BEGIN"), b.event(150, b"x"), *b.insert(*rows), b.xid()],
    "heartbeat": lambda b, rows: [b.event(E.HEARTBEAT, b"binlog.000001", in_file=False)],
    "rotate": lambda b, rows: [b.rotate("binlog.000002", made_up=False), b.format(in_file=True)],
}  # fmt: skip


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(sorted(STEPS)), max_size=14),
    st.booleans(),
    st.sampled_from([4, 2**32 - 3_000]),
    st.sampled_from([200, 2**23]),
    st.randoms(use_true_random=False),
)
def test_the_quick_loop_makes_of_any_stream_what_the_assembler_makes(
    steps: list[str], checksum: bool, offset: int, piece: int, chance: random.Random
) -> None:
    binlog = Binlog(checksum=checksum, offset=offset)
    start = BinlogPosition(*binlog.position)
    events = binlog.start()
    number = 0
    for step in steps:
        rows = [outbox_row(number + n, f"k{chance.randrange(2000)}", "{}" * chance.randrange(40)) for n in range(1, 4)]
        number += 3
        events += STEPS[step](binlog, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cdc_relay.binlog.transactions.PIECE_BYTES", piece)
        patch.setattr(quick_module, "PIECE_BYTES", piece)
        assert quickly(events, start, chance) == slowly(events, start)


def test_ordinary_transactions_never_reach_the_assembler(monkeypatch: pytest.MonkeyPatch) -> None:
    binlog = Binlog()
    start = BinlogPosition(*binlog.position)
    first = [*binlog.start(), *binlog.transaction(outbox_row(1))]
    then = [e for n in range(2, 50) for e in binlog.transaction(outbox_row(n, f"k{n}"), committed_at=1.7e9 + n)]
    pieces = [b"".join(packet(b"\0" + event) for event in events) for events in (first, then)]
    source = BinlogSource(Pieces(pieces), start, OutboxTables(SCHEMA, TABLE, described), on_unsupported=print)
    source.read()
    monkeypatch.setattr(TransactionAssembler, "feed", lambda *_: pytest.fail("an ordinary event was fed"))
    (batch,) = source.read()
    assert [row.id for row in batch.rows] == list(range(2, 50))
    assert (batch.end, batch.committed_at) == (BinlogPosition(*binlog.position), 1.7e9 + 49)
