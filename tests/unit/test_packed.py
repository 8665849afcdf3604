from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.binlog.packed import packed, packed_list
from tests import binlog_bytes

numbers = st.one_of(
    st.sampled_from([0, 250, 251, 252, 255, 256, 2**16 - 1, 2**16, 2**24 - 1, 2**24, 2**32, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)


@given(st.binary(max_size=5), numbers, st.binary(max_size=5))
def test_a_number_is_read_where_it_stands(before: bytes, number: int, after: bytes) -> None:
    written = binlog_bytes.packed(number)
    assert packed(before + written + after, len(before)) == (number, len(before) + len(written))


@given(st.lists(numbers))
def test_a_list_is_read_to_its_end(some: list[int]) -> None:
    assert packed_list(b"".join(map(binlog_bytes.packed, some))) == some


@pytest.mark.parametrize("first", [251, 255])
def test_a_byte_that_begins_no_number_is_refused(first: int) -> None:
    with pytest.raises(ValueError, match="does not begin"):
        packed(bytes([first, 0, 0, 0, 0, 0, 0, 0, 0]), 0)


@given(numbers, st.data())
def test_a_number_that_is_cut_off_is_refused(number: int, data: st.DataObject) -> None:
    written = binlog_bytes.packed(number)
    cut = written[: data.draw(st.integers(0, len(written) - 1))]
    with pytest.raises((ValueError, IndexError)):
        packed(cut, 0)
