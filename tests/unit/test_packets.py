from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.outbox.packets import PacketSplitter
from tests.binlog_bytes import packet

_16_MIB = 2**24


def split(pieces: Iterable[bytes]) -> list[bytes]:
    splitter = PacketSplitter()
    return [payload.data[payload.start : payload.end] for piece in pieces for payload in splitter.feed(piece)]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    ends = [0, *sorted(places), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_payloads_come_out_whole_however_the_stream_is_cut(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(packet(payload, number) for number, payload in enumerate(payloads))
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=12))
    assert split(cut(stream, places)) == payloads


def test_payloads_come_out_whole_byte_by_byte() -> None:
    payloads = [b"", b"a", b"bc" * 200, b"", b"d"]
    stream = b"".join(map(packet, payloads))
    assert split(bytes([byte]) for byte in stream) == payloads


@pytest.mark.parametrize("size", [_16_MIB - 2, _16_MIB - 1, _16_MIB, 2 * (_16_MIB - 1), 40 * 2**20])
@pytest.mark.parametrize("received", [256 * 1024, _16_MIB + 3, 10**9])
def test_a_payload_of_16_mib_and_more_is_put_together_from_its_packets(size: int, received: int) -> None:
    # Not one byte repeated: pieces in the wrong order must show.
    large = (b"%07d " * 1000 % tuple(range(1000)) * (size // 8000 + 1))[:size]
    stream = packet(b"before") + packet(large) + packet(b"after")
    pieces = cut(stream, range(received, len(stream), received))
    assert split(pieces) == [b"before", large, b"after"]


@pytest.mark.parametrize("place", [1, 4, 5, _16_MIB + 2, _16_MIB + 3, _16_MIB + 4, _16_MIB + 7, _16_MIB + 8])
def test_a_large_payload_may_be_cut_at_its_inner_boundary(place: int) -> None:
    large = b"x" * _16_MIB + b"yz"
    stream = packet(large) + packet(b"after")
    assert split(cut(stream, [place])) == [large, b"after"]


def test_a_payload_that_is_not_whole_yet_is_kept_back() -> None:
    splitter = PacketSplitter()
    stream = packet(b"payload")
    assert list(splitter.feed(stream[:-1])) == []
    (payload,) = splitter.feed(stream[-1:])
    assert payload.data[payload.start : payload.end] == b"payload"
