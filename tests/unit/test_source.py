from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.binlog.batches import TransactionBatch
from cdc_relay.binlog.events import EventType
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.binlog.rows import DescribedColumn
from cdc_relay.binlog.source import BinlogSource
from cdc_relay.binlog.tables import OutboxTables
from cdc_relay.errors import DatabaseError, DatabaseUnavailable, StaleSource
from tests.binlog_bytes import OUTBOX, SCHEMA, TABLE, Binlog, opaque, outbox_row, packet
from tests.unit.test_rows import DESCRIBED


class Bytes:
    """A dump connection that gives these bytes, and then breaks."""

    def __init__(self, received: Iterable[bytes]) -> None:
        self._received = iter(received)
        self.has_more = True
        self.closed = False

    def receive(self) -> bytes:
        try:
            return next(self._received)
        except StopIteration:
            raise DatabaseUnavailable("the connection broke") from None

    def close(self) -> None:
        self.closed = True


def sent(*events: bytes) -> bytes:
    """Events as the server sends them: an OK byte before each, in a packet."""
    return b"".join(packet(b"\0" + event, number) for number, event in enumerate(events))


def error_packet(code: int, message: str, state: str = "#HY000") -> bytes:
    return packet(b"\xff" + code.to_bytes(2, "little") + (state + message).encode())


def source_of(
    binlog: Binlog, *received: bytes, file_created_at: int | None = None, tables: OutboxTables | None = None
) -> BinlogSource:
    return BinlogSource(
        Bytes(received),
        BinlogPosition(*binlog.position),
        tables or OutboxTables(SCHEMA, TABLE, lambda: DESCRIBED),
        on_unsupported=lambda kind: None,
        file_created_at=file_created_at,
    )


def read_all(source: BinlogSource) -> list[TransactionBatch]:
    batches: list[TransactionBatch] = []
    while True:
        try:
            batches += source.read()
        except DatabaseUnavailable as end:
            assert "broke" in str(end)
            return batches


@given(st.lists(st.integers(0, 5000), max_size=10))
def test_transactions_come_out_however_the_bytes_come_in(places: list[int]) -> None:
    binlog = Binlog()
    first = Binlog()
    events = [*binlog.start(), *binlog.transaction(outbox_row(1)), *binlog.transaction(outbox_row(2), outbox_row(3))]
    stream = sent(*events)
    ends = [0, *sorted(place for place in places if place < len(stream)), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(ends)]
    batches = read_all(source_of(first, *pieces))
    assert [row for batch in batches for row in batch.rows] == [outbox_row(1), outbox_row(2), outbox_row(3)]
    assert batches[-1].end == BinlogPosition(*binlog.position)


def test_a_row_larger_than_a_packet_comes_out() -> None:
    binlog, first = Binlog(), Binlog()
    row = outbox_row(1, payload='"' + "x" * 17_000_000 + '"')
    stream = sent(*binlog.start(), *binlog.transaction(row))
    pieces = [stream[at : at + 1_000_003] for at in range(0, len(stream), 1_000_003)]
    batches = read_all(source_of(first, *pieces))
    assert [row for batch in batches for row in batch.rows] == [row]


def test_bytes_that_complete_nothing_give_nothing() -> None:
    binlog, first = Binlog(), Binlog()
    stream = sent(*binlog.start(), *binlog.transaction(outbox_row(1)))
    source = source_of(first, stream[:-1], stream[-1:])
    assert source.read() == []
    assert [row.id for batch in source.read() for row in batch.rows] == [1]


def test_ids_that_an_earlier_reader_learned_are_not_trusted() -> None:
    tables = OutboxTables(SCHEMA, TABLE, lambda: DESCRIBED)
    binlog = Binlog(checksum=False)
    assert len(read_all(source_of(Binlog(), sent(*binlog.transaction(outbox_row(1))), tables=tables))) == 1
    frames = [binlog.query("BEGIN"), binlog.rows(outbox_row(2)), binlog.xid()]
    batches = read_all(source_of(Binlog(), sent(*frames), tables=tables))
    assert [row for batch in batches for row in batch.rows] == []


def test_closing_gives_the_connection_up() -> None:
    stream = Bytes([])
    tables = OutboxTables(SCHEMA, TABLE, list[DescribedColumn])
    source = BinlogSource(stream, BinlogPosition("b.1", 4), tables, on_unsupported=print)
    source.close()
    assert stream.closed


# --- what ends a stream -----------------------------------------------------------------------------------------------

PURGED = [
    # MySQL 5.7 to 9, MariaDB; sql/rpl_binlog_sender.cc and sql/sql_repl.cc.
    "Could not find first log file name in binary log index file",
    "Cannot replicate because the source purged required binary logs. Replicate the missing ones",
    "The slave is connecting using CHANGE MASTER TO MASTER_AUTO_POSITION = 1, but the master has purged binary logs",
]
BAD_POSITION = [
    "Client requested master to start replication from position > file size",
    "Client requested source to start replication from position > file size",
    "Client requested master to start replication from impossible position",
    "bogus data in log event; the first event 'binlog.000001' at 5, the last event read from './binlog.000001' at 123",
    "log event entry exceeded max_allowed_packet; Increase max_allowed_packet on source",
    "binlog truncated in the middle of event; consider out of disk space on source",
]
SAME_ID = [
    (1236, "A slave with the same server_uuid/server_id as this slave has connected to the master"),
    (1236, "A replica with the same server_uuid/server_id as this replica has connected to the source"),
    (4052, "A slave with the same server_id is already connected"),
]


@pytest.mark.parametrize("message", PURGED)
@pytest.mark.parametrize("state", ["#HY000", ""])
def test_a_purged_file_is_stale(message: str, state: str) -> None:
    source = source_of(Binlog(), error_packet(1236, message, state))
    with pytest.raises(StaleSource, match="binlog") as caught:
        source.read()
    assert caught.value.reason == "purged"
    assert message in str(caught.value)


@pytest.mark.parametrize("message", BAD_POSITION)
def test_a_position_that_the_server_cannot_send_from_is_stale(message: str) -> None:
    with pytest.raises(StaleSource) as caught:
        source_of(Binlog(), error_packet(1236, message)).read()
    assert caught.value.reason == "position"


@pytest.mark.parametrize(("code", "message"), SAME_ID)
def test_another_reader_with_our_server_id_is_an_outage_with_a_hint(code: int, message: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="server id") as caught:
        source_of(Binlog(), error_packet(code, message)).read()
    assert caught.value.hint is not None
    assert "server_id" in caught.value.hint


def test_a_binlog_that_is_read_by_gtid_only_is_told_with_what_can_be_done() -> None:
    """MariaDB 12.3 with ``binlog_storage_engine = innodb``; to wait would not help."""
    said = "GTID starting position is required on master with --binlog-storage-engine enabled"
    with pytest.raises(DatabaseError, match="by file and position") as caught:
        source_of(Binlog(), error_packet(4246, said)).read()
    assert not caught.value.retriable
    assert "binlog_storage_engine" in str(caught.value.hint)


@pytest.mark.parametrize("code", [1053, 1079, 1158, 1927, 3169])
def test_any_other_error_is_an_outage_with_its_number(code: int) -> None:
    with pytest.raises(DatabaseUnavailable, match=f"{code}: gone"):
        source_of(Binlog(), error_packet(code, "gone")).read()


def test_an_error_in_bytes_that_are_no_text_is_told_all_the_same() -> None:
    with pytest.raises(DatabaseUnavailable, match="1105"):
        source_of(Binlog(), packet(b"\xff" + (1105).to_bytes(2, "little") + b"#HY000\xff\xfe")).read()


def test_the_servers_end_of_the_stream_is_an_outage() -> None:
    with pytest.raises(DatabaseUnavailable, match="ended"):
        source_of(Binlog(), packet(b"\xfe\x00\x00\x02\x00")).read()


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\xfb", b"\x7f" * 30])
def test_a_packet_of_no_known_kind_is_an_outage_and_not_passed_over(payload: bytes) -> None:
    with pytest.raises(DatabaseUnavailable, match="damaged"):
        source_of(Binlog(), packet(payload)).read()


@pytest.mark.parametrize("size", range(40))
def test_an_event_that_is_cut_off_is_an_outage(size: int) -> None:
    binlog = Binlog()
    start = [packet(b"\0" + event) for event in binlog.start()]
    frame = b"\0" + binlog.query("BEGIN")
    with pytest.raises(DatabaseUnavailable, match="damaged"):
        source_of(Binlog(), b"".join(start) + packet(frame[: size + 1])).read()


@given(st.binary(min_size=1, max_size=120), st.integers(0, 255))
def test_noise_ends_a_stream_in_our_terms(noise: bytes, kind: int) -> None:
    binlog = Binlog()
    start = sent(*binlog.start())
    for payload in (b"\0" + noise, b"\0" + binlog.event(kind, noise), noise):
        try:
            source_of(Binlog(), start + packet(payload)).read()
        except DatabaseError:
            pass


# --- the same file? ---------------------------------------------------------------------------------------------------


def test_another_file_of_the_same_name_is_stale() -> None:
    """RESET BINARY LOGS begins anew at binlog.000001."""
    binlog = Binlog(timestamp=1_700_000_000)
    source = source_of(Binlog(), sent(*binlog.start()), file_created_at=1_600_000_000)
    with pytest.raises(StaleSource, match="reset") as caught:
        source.read()
    assert caught.value.reason == "reset"


@pytest.mark.parametrize("known", [None, 0, 1_700_000_000])
def test_the_same_file_or_one_of_which_nothing_is_known_is_read(known: int | None) -> None:
    binlog = Binlog(timestamp=1_700_000_000)
    source = source_of(Binlog(), sent(*binlog.start(), *binlog.transaction(outbox_row(1))), file_created_at=known)
    assert [row.id for batch in source.read() for row in batch.rows] == [1]
    assert source.files_created == {"binlog.000001": 1_700_000_000}


def test_later_files_may_have_been_begun_at_any_time() -> None:
    binlog = Binlog(timestamp=1_700_000_000)
    frames = [*binlog.start(), binlog.rotate("binlog.000002", made_up=False)]
    binlog.timestamp = 1_800_000_000
    frames += [binlog.format(in_file=True), *binlog.transaction(outbox_row(1))]
    source = source_of(Binlog(), sent(*frames), file_created_at=1_700_000_000)
    assert [row.id for batch in source.read() for row in batch.rows] == [1]
    assert source.files_created["binlog.000002"] == 1_800_000_000


@pytest.mark.parametrize("size", [2**24 - 3, 2**24 - 2, 2**24 - 1, 2**24])
@pytest.mark.parametrize("ours", [True, False])
def test_an_event_that_fills_its_packet_exactly_is_whole(size: int, ours: bool) -> None:
    """A packet of 16 MiB - 1 goes on in the next one, if only to say that there is no more."""
    binlog = Binlog()
    frames = [*binlog.start(), *binlog.transaction(outbox_row(1)), binlog.gtid(), binlog.query("BEGIN")]
    if ours:
        overhead = len(Binlog().rows(outbox_row(2, payload='""')))
        large = binlog.insert(outbox_row(2, payload='"' + "x" * (size - overhead) + '"'))
    else:
        large = [binlog.table_map(9, "images"), binlog.event(EventType.WRITE_ROWS, b"\x09".ljust(size - 23, b"\0"))]
    assert len(large[-1]) == size
    frames += [*large, binlog.xid(), *binlog.transaction(outbox_row(3))]
    batches = read_all(source_of(Binlog(), sent(*frames)))
    assert [row.id for batch in batches for row in batch.rows] == ([1, 2, 3] if ours else [1, 3])
    assert batches[-1].end == BinlogPosition(*binlog.position)


# --- what the quick loop leaves to the assembler ----------------------------------------------------------------------


class Told:
    """A source that has read a first transaction, so that it knows what rows look like, and then more."""

    def __init__(self, binlog: Binlog, *frames: bytes) -> None:
        self.unsupported: list[str] = []
        start = BinlogPosition(binlog.file, 4)
        received = [sent(*frames[:7]), sent(*frames[7:])]
        tables = OutboxTables(SCHEMA, TABLE, lambda: DESCRIBED)
        source = BinlogSource(Bytes(received), start, tables, on_unsupported=self.unsupported.append)
        self.batches = read_all(source)

    @property
    def rows(self) -> list[int]:
        return [row.id for batch in self.batches for row in batch.rows]


@pytest.mark.parametrize("cut", [1, 3, 40])
def test_of_an_event_whose_last_row_makes_no_sense_no_row_is_given(cut: int) -> None:
    """Its checksum is right, so only its rows tell."""
    binlog = Binlog()
    frames = [*binlog.start(), *binlog.transaction(outbox_row(1)), binlog.gtid(), binlog.query("BEGIN")]
    whole = Binlog().rows(outbox_row(2), outbox_row(3))
    frames += [binlog.table_map(), binlog.event(EventType.WRITE_ROWS, whole[19 : -4 - cut]), binlog.xid()]
    frames += binlog.transaction(outbox_row(4))
    told = Told(binlog, *frames)
    assert told.rows == [1, 4]
    assert told.unsupported == ["rows"]
    assert [batch.unreadable for batch in told.batches].count(True) == 1
    assert told.batches[-1].end == BinlogPosition(*binlog.position)


def test_a_table_that_is_not_understood_is_told_every_time() -> None:
    binlog = Binlog(columns=(*OUTBOX, opaque("new", 200, b"\x07")))
    frames = binlog.start()
    for _ in range(3):
        frames += [binlog.gtid(), binlog.query("BEGIN"), binlog.table_map(), binlog.xid()]
    told = Told(binlog, *frames)
    assert told.unsupported == ["table_map"] * 3
    assert [batch.unreadable for batch in told.batches] == [True] * 3
