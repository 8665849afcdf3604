from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.binlog.events import (
    Event,
    EventType,
    has_checksum,
    is_mariadb_standalone,
    parse_checksum_algorithm,
    parse_commit_time,
    parse_event,
    parse_query,
    parse_rotate,
    type_name,
)
from cdc_relay.binlog.xa import parse_xa_prepare, parse_xid
from tests.binlog_bytes import Binlog


def event(data: bytes) -> Event:
    return parse_event(data, 0, len(data))


def test_the_header_of_an_event_that_mysql_9_7_wrote() -> None:
    # XID of a transaction: 31 bytes, with CRC32.
    data = bytes.fromhex("a4b8056b10010000001f000000c80d000000005c9e050000000000157c2ae2")
    xid = event(data)
    assert (xid.type, xid.timestamp, xid.end_position) == (EventType.XID, 1795537060, 3528)
    assert data[xid.body : xid.end - 4] == bytes.fromhex("5c9e050000000000")
    assert has_checksum(xid)


@given(st.integers(0, 255), st.binary(max_size=50), st.binary(max_size=9), st.binary(max_size=9))
def test_an_event_is_read_where_it_stands(kind: int, body: bytes, before: bytes, after: bytes) -> None:
    data = Binlog(checksum=False).event(kind, body)
    found = parse_event(before + data + after, len(before), len(before) + len(data))
    assert found.type == kind
    assert found.data[found.body : found.end] == body


def test_an_event_of_another_size_than_it_says_is_refused() -> None:
    data = Binlog().xid()
    with pytest.raises(ValueError, match="says 31 bytes but has 30"):
        parse_event(data, 0, len(data) - 1)


@pytest.mark.parametrize("size", range(19))
def test_an_event_shorter_than_its_header_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"has {size}"):
        parse_event(Binlog().xid()[:size] + b"\0" * 100, 0, size)


def test_any_flipped_bit_breaks_the_checksum() -> None:
    data = Binlog().query("BEGIN")
    assert has_checksum(event(data))
    for at in range(len(data) * 8):
        if at // 8 in range(9, 13):
            continue  # the size, which is looked at before
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        assert not has_checksum(event(bytes(flipped)))


def test_without_a_checksum_there_is_none() -> None:
    assert not has_checksum(event(Binlog(checksum=False).query("BEGIN")))
    assert not has_checksum(event(Binlog(checksum=False).event(EventType.STOP)))


@pytest.mark.parametrize("checksum", [True, False])
def test_a_rotation_names_file_and_offset_with_or_without_a_checksum(checksum: bool) -> None:
    data = Binlog(checksum=checksum).rotate("mysql-bin.000043", 2**33 + 5)
    assert parse_rotate(event(data)) == ("mysql-bin.000043", 2**33 + 5)


@pytest.mark.parametrize("algorithm", [0, 1])
def test_a_format_description_announces_the_checksum(algorithm: int) -> None:
    assert parse_checksum_algorithm(event(Binlog(checksum=bool(algorithm)).format())) == algorithm


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("status", [b"", b"\x00\x01\x02\x03" * 20])
def test_a_statement_is_found_behind_schema_and_status_variables(checksum: bool, status: bytes) -> None:
    binlog = Binlog(checksum=checksum)
    assert parse_query(event(binlog.query("SAVEPOINT `é`", status)), 4 if checksum else 0) == "SAVEPOINT `é`".encode()


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("committed_at", [1_700_000_000.0, 1_700_000_000.123456, 2**32 + 0.5])
def test_a_gtid_tells_when_its_transaction_committed(checksum: bool, committed_at: float) -> None:
    data = Binlog(checksum=checksum).gtid(committed_at)
    assert parse_commit_time(event(data), 4 if checksum else 0) == committed_at


def test_a_gtid_whose_original_commit_time_follows_has_the_highest_bit_set() -> None:
    binlog = Binlog()
    committed_at = 1_700_000_000_123_456
    body = b"\x01" + b"\0" * 41 + (committed_at | 1 << 55).to_bytes(7, "little") + b"\x01" * 8
    assert parse_commit_time(event(binlog.event(EventType.GTID, body)), 4) == committed_at / 1e6


def test_a_gtid_before_mysql_8_does_not_tell() -> None:
    assert parse_commit_time(event(Binlog().gtid(None)), 4) is None


def test_a_mariadb_gtid_tells_whether_a_transaction_follows() -> None:
    assert is_mariadb_standalone(event(Binlog().mariadb_gtid(0x29)))
    assert not is_mariadb_standalone(event(Binlog().mariadb_gtid(0x0C)))


def test_every_type_has_a_label() -> None:
    assert type_name(40) == "transaction_payload"
    assert type_name(99) == "type_99"


@pytest.mark.parametrize("end", ["XA COMMIT", "XA ROLLBACK", "XA START"])
def test_an_xa_name_is_the_same_in_the_statement_and_in_the_prepare_event(end: str) -> None:
    prepared = parse_xa_prepare(event(Binlog().xa_prepare(b"a", b"bc", 7)))
    assert prepared == (False, parse_xid(f"{end} X'61',X'6263',7".encode()))
    assert parse_xa_prepare(event(Binlog().xa_prepare(b"", b"", 2**31 - 1, one_phase=True)))[0] is True


@pytest.mark.parametrize("statement", [b"XA COMMIT 'a'", b"XA COMMIT", b"XA COMMIT 0x61", b""])
def test_an_xa_name_that_is_written_otherwise_is_not_known(statement: bytes) -> None:
    assert parse_xid(statement) is None
