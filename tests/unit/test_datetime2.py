"""Packed times: what is read from them without unpacking is what the unpacked time gives."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.outbox import datetime2
from cdc_relay.outbox.clock import rfc3339
from cdc_relay.outbox.row import Due

walls = st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31))
sizes = st.integers(datetime2.WHOLE_BYTES, datetime2.LONGEST_BYTES)


@given(walls, sizes)
def test_packing_is_undone_by_unpacking(wall: datetime, size: int) -> None:
    raw = datetime2.pack(wall, size)
    assert len(raw) == size
    unpacked = datetime2.unpack(raw)
    assert unpacked is not None
    assert datetime2.pack(unpacked, size) == raw
    assert (wall - unpacked).total_seconds() < 1


@given(
    st.lists(walls, min_size=1), sizes, st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns"])
)
def test_the_header_is_that_of_the_unpacked_time(some: list[datetime], size: int, zone_name: str) -> None:
    zone = ZoneInfo(zone_name)
    packed_rfc3339 = datetime2.Rfc3339(zone).text
    for raw in (datetime2.pack(wall, size) for wall in some):
        unpacked = datetime2.unpack(raw)
        assert unpacked is not None
        assert packed_rfc3339(raw) == packed_rfc3339(raw) == rfc3339(unpacked, zone)


@pytest.mark.parametrize("raw", [b"\x80\0\0\0\0\0\0\0", b"\x80\0\0\0\0", b"\x99\xb8\xc41\x05\xff\xff\xff"])
def test_what_is_no_time_has_no_header(raw: bytes) -> None:
    assert datetime2.unpack(raw) is None
    assert datetime2.Rfc3339(UTC).text(raw) is None


@given(walls, walls, sizes)
def test_packed_times_are_due_as_the_unpacked_ones_are(due: datetime, at: datetime, size: int) -> None:
    raw = datetime2.pack(at, size)
    unpacked = datetime2.unpack(raw)
    assert unpacked is not None
    assert (raw <= Due.at(due).packed[size]) == (unpacked <= due)
