from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.binlog.position import LAST_RESUMABLE_OFFSET, BinlogPosition

files = st.builds("{}.{:06d}".format, st.sampled_from(["binlog", "mysql-bin", "a.b"]), st.integers(0, 10**7))
positions = st.builds(BinlogPosition, files, st.integers(0, 2**40))


@given(positions)
def test_what_is_written_is_read_back(position: BinlogPosition) -> None:
    assert BinlogPosition.parse(str(position)) == position


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 2**33))))
def test_positions_are_ordered_by_the_number_of_the_file_and_then_by_the_offset(places: list[tuple[int, int]]) -> None:
    made = sorted(BinlogPosition(f"binlog.{number:06d}", offset) for number, offset in places)
    assert [(position.file_number, position.offset) for position in made] == sorted(places)


def test_the_file_after_999999_is_later_although_its_name_sorts_before() -> None:
    assert BinlogPosition("binlog.1000000", 4) > BinlogPosition("binlog.999999", 10**9)


@pytest.mark.parametrize("file", ["", "binlog", "binlog.", ".000001", "binlog.00000x", "binlog.000001\n"])
def test_a_name_that_does_not_end_in_a_number_is_no_binlog_file(file: str) -> None:
    with pytest.raises(ValueError, match="must end in a number"):
        BinlogPosition(file, 4)


def test_an_offset_is_not_negative() -> None:
    with pytest.raises(ValueError, match="not negative"):
        BinlogPosition("binlog.000001", -1)


@pytest.mark.parametrize("text", ["", "binlog.000001", "binlog.000001:", "binlog.000001:-4", "binlog.000001:4x", ":4"])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="file"):
        BinlogPosition.parse(text)


def test_only_offsets_of_32_bits_can_be_asked_for() -> None:
    assert BinlogPosition("binlog.000001", LAST_RESUMABLE_OFFSET).is_resumable
    assert not BinlogPosition("binlog.000001", LAST_RESUMABLE_OFFSET + 1).is_resumable
