"""Unwrapping what servers compress: whole transactions (MySQL), single events (MariaDB).

Source: MySQL source, ``libbinlogevents/include/codecs`` and ``payload_event_buffer_istream``
(binlog_transaction_compression); MariaDB source, ``log_event.cc``: ``row_log_event_uncompress`` (log_bin_compress).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import zstandard

from cdc_relay.binlog.events import HEADER, HEADER_SIZE, Event, parse_event
from cdc_relay.binlog.packed import packed

_FIELD_END = 0
_FIELD_COMPRESSION = 2
_FIELD_UNCOMPRESSED_SIZE = 3
_COMPRESSION_ZSTD = 0
_COMPRESSION_NONE = 255

#: Read at a time from the decompressor, so that a transaction of any size needs little memory.
_PIECE = 1 << 20


def transaction_payload(event: Event, checksum_size: int) -> Iterator[Event]:
    """The events inside a TRANSACTION_PAYLOAD event; none of them has a checksum.

    Raises ValueError for a compression that we do not know or for damaged data.
    """
    data, at = event.data, event.body
    compression = _COMPRESSION_ZSTD
    expected: int | None = None
    while True:
        field, at = packed(data, at)
        if field == _FIELD_END:
            break
        size, at = packed(data, at)
        if field == _FIELD_COMPRESSION:
            compression, _ = packed(data, at)
        elif field == _FIELD_UNCOMPRESSED_SIZE:
            expected, _ = packed(data, at)
        at += size
    content = memoryview(data)[at : event.end - checksum_size]
    if compression == _COMPRESSION_NONE:
        yield from _split(iter([bytes(content)]), expected)
    elif compression == _COMPRESSION_ZSTD:
        yield from _split(_decompress(content), expected)
    else:
        raise ValueError(f"TRANSACTION_PAYLOAD uses compression {compression}, which is not known")


def _decompress(content: memoryview) -> Iterator[bytes]:
    try:
        with zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True) as reader:
            while piece := reader.read(_PIECE):
                yield piece
    except zstandard.ZstdError as error:
        raise ValueError(f"TRANSACTION_PAYLOAD cannot be decompressed: {error}") from error


def _split(pieces: Iterator[bytes], expected: int | None) -> Iterator[Event]:
    buffer = b""
    at = 0
    size = 0
    for piece in pieces:
        size += len(piece)
        buffer = buffer[at:] + piece
        at = 0
        while len(buffer) - at >= HEADER_SIZE:
            end = at + HEADER.unpack_from(buffer, at)[3]
            if end < at + HEADER_SIZE:
                raise ValueError("an event inside TRANSACTION_PAYLOAD is shorter than its header")
            if end > len(buffer):
                break
            yield parse_event(buffer, at, end)
            at = end
    if at != len(buffer):
        raise ValueError(f"TRANSACTION_PAYLOAD ends {len(buffer) - at} bytes into an event")
    if expected is not None and size != expected:
        raise ValueError(f"TRANSACTION_PAYLOAD has {size} bytes instead of {expected}")


def mariadb_inflate(data: bytes) -> bytes:
    """A compressed part of a MariaDB event: one byte with the length of the length, that length, zlib data.

    Raises ValueError for an algorithm that we do not know or for damaged data.
    """
    if not data or (data[0] & 0x70) != 0:
        raise ValueError("compressed event with an unknown algorithm")
    size_bytes = data[0] & 0x07
    try:
        inflated = zlib.decompress(data[1 + size_bytes :])
    except zlib.error as error:
        raise ValueError(f"compressed event cannot be decompressed: {error}") from error
    expected = int.from_bytes(data[1 : 1 + size_bytes], "big")
    if len(inflated) != expected:
        raise ValueError(f"compressed event has {len(inflated)} bytes instead of {expected}")
    return inflated
