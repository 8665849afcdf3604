from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.binlog import payload as module
from cdc_relay.binlog.events import Event, parse_event, parse_query
from cdc_relay.binlog.payload import mariadb_inflate, transaction_payload
from tests.binlog_bytes import Binlog, mariadb_compressed


def event(data: bytes) -> Event:
    return parse_event(data, 0, len(data))


def inner_of(data: bytes, checksum_size: int = 4) -> list[tuple[int, bytes]]:
    """Types and bodies of the events inside."""
    return [(e.type, e.data[e.body : e.end]) for e in transaction_payload(event(data), checksum_size)]


BODIES = [(19, b"table map"), (30, b"rows" * 500), (30, b""), (16, b"\x07" * 8)]


def inner_events(binlog: Binlog) -> list[bytes]:
    return [binlog.inner(kind, body) for kind, body in BODIES]


def one_frame(raw: bytes) -> bytes:
    return zstandard.compress(raw)


def one_frame_of_unknown_size(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(raw)


def frame_for_every_hundred_bytes(raw: bytes) -> bytes:
    return b"".join(zstandard.compress(raw[at : at + 100]) for at in range(0, len(raw), 100))


def flushed_blocks(raw: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor().compressobj()
    out = b"".join(
        compressor.compress(raw[at : at + 7]) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        for at in range(0, len(raw), 7)
    )
    return out + compressor.flush()


@pytest.mark.parametrize(
    "compress", [one_frame, one_frame_of_unknown_size, frame_for_every_hundred_bytes, flushed_blocks]
)
@pytest.mark.parametrize("checksum", [True, False])
def test_what_zstd_has_packed_comes_out(compress: Callable[[bytes], bytes], checksum: bool) -> None:
    binlog = Binlog(checksum=checksum)
    events = inner_events(binlog)
    data = binlog.payload(*events, compression=0, content=compress(b"".join(events)))
    assert inner_of(data, 4 if checksum else 0) == BODIES


def test_zstd_is_meant_where_no_compression_is_named() -> None:
    binlog = Binlog()
    events = inner_events(binlog)
    data = binlog.payload(*events, compression=None, content=one_frame(b"".join(events)))
    assert inner_of(data) == BODIES


def test_what_is_not_compressed_comes_out() -> None:
    binlog = Binlog()
    assert inner_of(binlog.payload(*inner_events(binlog), compression=255)) == BODIES


@pytest.mark.parametrize("compression", [1, 2, 254, 1000])
def test_an_unknown_compression_is_refused(compression: int) -> None:
    binlog = Binlog()
    with pytest.raises(ValueError, match=f"compression {compression}"):
        inner_of(binlog.payload(*inner_events(binlog), compression=compression))


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=400)), max_size=20), st.integers(1, 500))
def test_events_come_out_whole_wherever_the_decompressor_pauses(events: list[tuple[int, bytes]], piece: int) -> None:
    binlog = Binlog()
    raw = b"".join(binlog.inner(kind, body) for kind, body in events)
    data = binlog.payload(raw, content=one_frame(raw), compression=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", piece)
        assert inner_of(data) == events


def test_more_than_is_decompressed_at_a_time() -> None:
    binlog = Binlog()
    events = [(30, b"%d" % at * 300_000) for at in range(12)]
    raw = b"".join(binlog.inner(kind, body) for kind, body in events)
    assert inner_of(binlog.payload(raw, content=one_frame(raw), compression=0)) == events


def test_damaged_zstd_data_is_refused() -> None:
    binlog = Binlog()
    content = bytearray(one_frame(b"".join(inner_events(binlog))))
    content[0] ^= 0xFF
    with pytest.raises(ValueError, match="decompressed"):
        inner_of(binlog.payload(compression=0, content=bytes(content)))


@pytest.mark.parametrize("compression", [0, 255])
def test_data_that_is_cut_off_anywhere_is_refused(compression: int) -> None:
    binlog = Binlog()
    events = inner_events(binlog)
    content = b"".join(events) if compression == 255 else one_frame(b"".join(events))
    for size in range(len(content)):
        with pytest.raises(ValueError, match="TRANSACTION_PAYLOAD"):
            inner_of(binlog.payload(*events, compression=compression, content=content[:size]))


def test_data_that_ends_within_an_event_is_refused_where_its_size_is_not_told() -> None:
    event_in = Binlog().inner(30, b"rows")
    with pytest.raises(ValueError, match="22 bytes into an event"):
        list(module._split(iter([event_in, event_in[:-1]]), None))


def test_an_inner_event_that_says_to_be_shorter_than_its_header_is_refused() -> None:
    binlog = Binlog()
    inner = bytearray(binlog.inner(30, b"rows"))
    inner[9:13] = (18).to_bytes(4, "little")
    with pytest.raises(ValueError, match="shorter than its header"):
        inner_of(binlog.payload(bytes(inner)))


def test_a_header_that_is_cut_off_is_refused() -> None:
    binlog = Binlog(checksum=False)
    whole = binlog.payload(*inner_events(binlog))
    head = len(whole) - sum(map(len, inner_events(binlog)))
    for size in range(19, head):
        with pytest.raises((ValueError, IndexError)):
            list(transaction_payload(Event(40, 0, 0, whole[:size], 0, size), 0))


# --- MariaDB ----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=2000), st.integers(1, 7))
def test_what_mariadb_has_packed_comes_out(data: bytes, size_bytes: int) -> None:
    size_bytes = max(size_bytes, (len(data).bit_length() + 7) // 8)
    assert mariadb_inflate(mariadb_compressed(data, size_bytes=size_bytes)) == data


@pytest.mark.parametrize("mark", [0x90, 0xA0, 0xC0, 0xF0])
def test_an_unknown_algorithm_of_mariadb_is_refused(mark: int) -> None:
    packed = mariadb_compressed(b"data")
    with pytest.raises(ValueError, match="unknown algorithm"):
        mariadb_inflate(bytes([mark | packed[0] & 0x07]) + packed[1:])


def test_a_compressed_event_with_another_size_than_it_says_is_refused() -> None:
    packed = b"\x81\x05" + zlib.compress(b"four")
    with pytest.raises(ValueError, match="4 bytes instead of 5"):
        mariadb_inflate(packed)


def test_a_compressed_event_that_is_cut_off_is_refused_anywhere() -> None:
    packed = mariadb_compressed(b"data " * 100)
    for size in range(len(packed)):
        with pytest.raises(ValueError, match="compressed event"):
            mariadb_inflate(packed[:size])


def test_any_flipped_bit_of_a_compressed_event_is_refused_or_does_not_matter() -> None:
    data = b"some data of a row"
    packed = mariadb_compressed(data)
    for at in range(len(packed) * 8):
        flipped = bytearray(packed)
        flipped[at // 8] ^= 1 << at % 8
        try:
            assert mariadb_inflate(bytes(flipped)) == data
        except ValueError:
            pass


# --- as servers wrote them --------------------------------------------------------------------------------------------

MYSQL_PAYLOAD = (
    "a4b8056b2801000000a80000000128000000000201000301bb0101870028b52ffd20bbf50300e2051623a0298d01ffff3fdafbf5ff4594977c89"
    "7ee566db239d6df2f773edb5f147b9c9de3205ff6b437208bca170cccd8245e2cc3ff93aa3e73e83c0107c8fa59263d7204b69c7c17189ece468"
    "aaacc811afab01af3f0d43f0051000a004c465ea464e8b413360222aeb97ca01da805f4c58965bceb234101a0c32002fc602e765"
)
MARIADB_QUERY = (
    "a4b8056ba5010000008d000000f20b000004002100000000000000060000230000000000010100002054000000000603737464042d002d000800"
    "815a9e0500000000006f7574626f78008135789c7309f20f50087174f27155f07453708df00c0e09564848cfcf494950d0d752484fcd4b2d4a2c"
    "494d5148aa54284e2d2a4b2d52d0d20700a5621066eb07b86d"
)
MARIADB_ROWS = (
    "a4b8056ba60100000038000000a90d00000000180000000000010002038201fb789cfbc3c8c0c0f085b162148c3800003c0dec53c8997ded"
)


def test_a_transaction_that_mysql_9_7_compressed() -> None:
    """``INSERT INTO xt VALUES (21), (22)`` with binlog_transaction_compression=ON."""
    begin, table_map, rows, xid = inner_of(bytes.fromhex(MYSQL_PAYLOAD))
    assert (begin[0], table_map[0], rows[0], xid[0]) == (2, 19, 30, 16)
    assert begin[1].endswith(b"BEGIN")
    assert b"outbox\0\x02xt\0" in table_map[1]
    assert rows[1].endswith(b"\x00\x15\0\0\0\x00\x16\0\0\0")


def test_a_statement_and_rows_that_mariadb_10_11_compressed() -> None:
    """``DROP TABLE IF EXISTS gold`` and ``INSERT INTO gold VALUES (1, REPEAT('x', 500))`` with log_bin_compress=ON."""
    query, rows = event(bytes.fromhex(MARIADB_QUERY)), event(bytes.fromhex(MARIADB_ROWS))
    statement = mariadb_inflate(parse_query(query, 4))
    assert statement == b"DROP TABLE IF EXISTS `gold` /* generated by server */"
    rows_at = rows.body + 8 + 2  # table id, flags, number of columns, columns present
    assert mariadb_inflate(rows.data[rows_at : rows.end - 4]) == b"\xfc\x01\0\0\0\xf4\x01" + b"x" * 500
