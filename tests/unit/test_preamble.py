"""What stands before rows is supposed and verified: whatever differs is read as the careful reader reads it."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cdc_relay.binlog.quick as quick_module
from cdc_relay.binlog.events import EventType as E
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.binlog.preamble import Changeover, Passage, RowsHead, learn_changeover, learn_passage, learn_rows_head
from cdc_relay.binlog.quick import QuickLoop
from cdc_relay.binlog.rows import DescribedColumn
from cdc_relay.binlog.source import BinlogSource
from cdc_relay.binlog.tables import OutboxTables
from cdc_relay.binlog.transactions import PIECE_BYTES
from cdc_relay.errors import RelayError
from tests.binlog_bytes import SCHEMA, TABLE, Binlog, outbox_row, packet
from tests.unit.test_quick import Pieces, described, summary

Outcome = tuple[Any, list[str]]
#: What a transaction of one row consists of, in order, and the transactions read before one of them is changed.
EVENTS = ("XID", "GTID", "QUERY", "TABLE_MAP", "WRITE_ROWS")
BEFORE = 3


def outcome(
    pieces: list[bytes], binlog: Binlog, describe: Callable[[], list[DescribedColumn]] = described, *, careful: bool
) -> Outcome:
    """What a reader makes of the stream: batches or the error, and what it did not understand."""
    unsupported: list[str] = []
    tables = OutboxTables(SCHEMA, TABLE, describe)
    source = BinlogSource(Pieces(pieces), BinlogPosition(binlog.file, 4), tables, on_unsupported=unsupported.append)
    with pytest.MonkeyPatch.context() as patch:
        if careful:
            patch.setattr(QuickLoop, "run", lambda self, data, at: at)
        try:
            return summary([batch for _ in pieces for batch in source.read()]), unsupported
        except RelayError as error:
            return repr(error), unsupported


def assert_read_alike(pieces: list[bytes], binlog: Binlog) -> None:
    assert outcome(pieces, binlog, careful=False) == outcome(pieces, binlog, careful=True)


def packets(events: list[bytes]) -> list[bytes]:
    return [packet(b"\0" + event, number) for number, event in enumerate(events)]


def learned(binlog: Binlog, transactions: int) -> list[bytes]:
    """The packets of a stream in which both stretches are learned; the first two are the server's own."""
    events = binlog.start()
    for number in range(1, transactions + 1):
        events += binlog.transaction(outbox_row(number, f"k{number}"), committed_at=1.7e9 + number)
    return packets(events)


def repaired(one: bytes) -> bytes:
    """With the checksum that fits its bytes."""
    return one[:-4] + zlib.crc32(one[5:-4]).to_bytes(4, "little")


@pytest.mark.parametrize("checksum", [True, False], ids=["crc32", "none"])
@pytest.mark.parametrize("event", EVENTS)
def test_each_byte_of_a_preamble_counts_as_it_does_for_the_careful_reader(event: str, checksum: bool) -> None:
    binlog = Binlog(checksum=checksum)
    stream = learned(binlog, BEFORE + 3)
    # A transaction's packets are GTID, QUERY, TABLE_MAP, WRITE_ROWS, XID; the stretch begins with the XID before it.
    changed = 2 + 5 * BEFORE - 1 + EVENTS.index(event)
    for at in range(len(stream[changed])):
        for flip in (0x01, 0xFF):
            one = bytearray(stream[changed])
            one[at] ^= flip
            variants = {bytes(one), repaired(bytes(one))} if checksum else {bytes(one)}
            for variant in variants:
                whole = b"".join([*stream[:changed], variant, *stream[changed + 1 :]])
                assert_read_alike([whole], binlog)


@settings(max_examples=200)
@given(st.data(), st.booleans())
def test_lost_repeated_and_damaged_packets_are_read_alike(data: st.DataObject, checksum: bool) -> None:
    binlog = Binlog(checksum=checksum)
    stream = learned(binlog, 6)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(2, len(stream) - 1))
        match data.draw(st.sampled_from(["lose", "repeat", "swap", "damage"])):
            case "lose":
                del stream[at]
            case "repeat":
                stream.insert(at, stream[at])
            case "swap":
                stream[at - 1], stream[at] = stream[at], stream[at - 1]
            case _:
                byte = data.draw(st.integers(4, len(stream[at]) - 1))
                one = bytearray(stream[at])
                one[byte] = data.draw(st.integers(0, 255))
                stream[at] = bytes(one)
    whole = b"".join(stream)
    cut = data.draw(st.integers(1, len(whole)))
    assert_read_alike([whole[:cut], whole[cut:]], binlog)


def test_a_stream_cut_anywhere_is_read_alike() -> None:
    binlog = Binlog()
    stream = learned(binlog, 4)
    whole = b"".join(stream)
    expected = outcome([whole], binlog, careful=True)
    for cut in range(len(whole) - sum(map(len, stream[-6:])), len(whole)):  # from the last but one XID on
        assert outcome([whole[:cut], whole[cut:]], binlog, careful=False) == expected


class Learned:
    """Counts what the loop learns."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.changeovers: list[Changeover | None] = []
        self.heads: list[RowsHead] = []
        self.passages: list[Passage] = []
        patch.setattr(quick_module, "learn_changeover", self._changeover)
        patch.setattr(quick_module, "learn_rows_head", self._head)
        patch.setattr(quick_module, "learn_passage", self._passage)

    def _changeover(self, *values: Any) -> Changeover | None:
        self.changeovers.append(learn_changeover(*values))
        return self.changeovers[-1]

    def _passage(self, *values: Any) -> Passage:
        self.passages.append(learn_passage(*values))
        return self.passages[-1]

    def _head(self, *values: Any) -> RowsHead:
        self.heads.append(learn_rows_head(*values))
        return self.heads[-1]


@pytest.mark.parametrize("checksum", [True, False], ids=["crc32", "none"])
def test_a_steady_stream_is_learned_once(monkeypatch: pytest.MonkeyPatch, checksum: bool) -> None:
    known = Learned(monkeypatch)
    binlog = Binlog(checksum=checksum)
    stream = learned(binlog, 50)
    (rows, _, _), unsupported = outcome([b"".join(stream)], binlog, careful=False)
    assert (len(rows), unsupported) == (50, [])
    assert (len(known.changeovers), len(known.heads), len(known.passages)) == (1, 1, 1)


def test_another_shape_is_learned_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Learned(monkeypatch)
    binlog = Binlog()
    events = binlog.start()
    for number in range(1, 40):
        committed_at = 1.7e9 if number > 20 else None  # later GTIDs are longer
        events += binlog.transaction(outbox_row(number), committed_at=committed_at)
    assert_read_alike([b"".join(packets(events))], binlog)
    assert (len(known.changeovers), len(known.heads), len(known.passages)) == (2, 1, 2)
    first, second = known.changeovers
    assert first and second
    assert second.size == first.size + 7


def test_sessions_that_take_turns_do_not_make_it_learn_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Learned(monkeypatch)
    binlog = Binlog()
    events = binlog.start()
    for number in range(1, 40):
        events += binlog.transaction(outbox_row(number), committed_at=1.7e9 if number % 2 else None)
    assert_read_alike([b"".join(packets(events))], binlog)
    assert (len(known.changeovers), len(known.passages)) == (1, 1)


def test_a_transaction_of_many_statements_learns_only_what_stands_before_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Learned(monkeypatch)
    binlog = Binlog()
    events = [*binlog.start(), binlog.gtid(), binlog.query("BEGIN")]
    for number in range(1, 30):
        events += binlog.insert(outbox_row(number))
    events.append(binlog.xid())
    assert_read_alike([b"".join(packets(events))], binlog)
    assert (len(known.changeovers), len(known.heads), len(known.passages)) == (0, 1, 0)


def test_what_stands_between_is_not_part_of_a_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Learned(monkeypatch)
    binlog = Binlog()
    events = binlog.start()
    for number in range(1, 8):
        events += [binlog.gtid(), binlog.query("BEGIN"), binlog.event(E.ROWS_QUERY, b"\x01x"), binlog.table_map(1)]
        events += [binlog.event(E.ROWS_QUERY, b"\x01x"), binlog.rows(outbox_row(number)), binlog.xid()]
        events += [] if number % 2 else [binlog.event(E.HEARTBEAT, b"binlog.000001", in_file=False)]
    assert_read_alike([b"".join(packets(events))], binlog)
    assert not known.heads


def test_another_table_may_take_the_id_meanwhile() -> None:
    binlog = Binlog()
    events = binlog.start()
    for number in range(1, 8):
        row = outbox_row(number)
        events += binlog.transaction(row)
        events += [binlog.gtid(), binlog.query("BEGIN"), binlog.table_map(1, "orders"), binlog.rows(row), binlog.xid()]
        events += [binlog.gtid(), binlog.query("BEGIN"), *binlog.insert(row), binlog.rows(row), binlog.xid()]
    assert_read_alike([b"".join(packets(events))], binlog)


def renaming() -> Callable[[], list[DescribedColumn]]:
    """The table's columns before and after topic and biz_type changed their names."""
    swapped = {"biz_type": "topic", "topic": "biz_type"}
    later = [replace(column, name=swapped.get(column.name, column.name)) for column in described()]
    answers = iter([described(), later])
    return lambda: next(answers)


def assert_renamed_after_the_fourth(pieces: list[bytes], binlog: Binlog) -> None:
    quick = outcome(pieces, binlog, renaming(), careful=False)
    assert quick == outcome(pieces, binlog, renaming(), careful=True)
    (rows, _, _), _ = quick
    assert [row.topic for row, _ in rows] == ["topic"] * 4 + ["chat"] * 4


def test_columns_that_were_renamed_are_not_supposed_to_be_what_they_were() -> None:
    binlog = Binlog()
    stream = learned(binlog, 4)
    events = [binlog.gtid(), binlog.query(f"ALTER TABLE {TABLE} RENAME COLUMN topic TO biz_type")]
    for number in range(5, 9):
        events += binlog.transaction(outbox_row(number))
    assert_renamed_after_the_fourth([b"".join(stream), b"".join(packets(events))], binlog)


def test_where_a_statement_begins_is_verified_and_not_only_how_it_ends() -> None:
    alter = f"ALTER TABLE {TABLE}"
    binlog = Binlog()
    events = binlog.start()
    for number in range(1, 9):
        if number == 5:  # of the same size, and BEGIN stands in the same place
            query = binlog.query_body(f"{alter}\0BEGIN", schema="")
        else:
            query = binlog.query_body("BEGIN", schema="s" * (len(alter) + 1))
        events += [binlog.gtid(), binlog.event(E.QUERY, query), *binlog.insert(outbox_row(number)), binlog.xid()]
    assert_renamed_after_the_fourth([b"".join(packets(events))], binlog)


@pytest.mark.parametrize("checksum", [True, False], ids=["crc32 ends", "crc32 begins"])
def test_checksums_may_come_and_go(checksum: bool) -> None:
    binlog = Binlog(checksum=checksum)
    stream = learned(binlog, 4)
    events = [binlog.rotate("binlog.000002", made_up=False)]
    binlog.checksum = not checksum
    events.append(binlog.format(in_file=True))
    for number in range(5, 9):
        events += binlog.transaction(outbox_row(number))
    first = Binlog()
    assert_read_alike([b"".join(stream), b"".join(packets(events))], first)


def test_a_transaction_too_large_to_hold_leaves_in_pieces_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PIECE_BYTES > 2_000
    monkeypatch.setattr("cdc_relay.binlog.transactions.PIECE_BYTES", 2_000)
    monkeypatch.setattr(quick_module, "PIECE_BYTES", 2_000)
    binlog = Binlog()
    events = [*binlog.start(), binlog.gtid(), binlog.query("BEGIN")]
    for number in range(1, 40):
        events += binlog.insert(outbox_row(number))
    events.append(binlog.xid())
    assert_read_alike([b"".join(packets(events))], binlog)
