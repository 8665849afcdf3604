"""The speculating decoder gives what the general one gives, whatever the rows before looked like."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.binlog import speculation as module
from cdc_relay.binlog.events import DAMAGED
from cdc_relay.binlog.rows import RowDecoder, make_decoder
from cdc_relay.binlog.speculation import SpeculatingDecoder, speculate
from cdc_relay.binlog.table_map import parse_table_map
from cdc_relay.outbox.row import BinlogRow, OutboxRow
from tests.binlog_bytes import OUTBOX, Column, bitmap, outbox_row, row_image, table_map_body, values_of
from tests.unit.test_rows import tables_with_rows


def decoders(columns: list[Column]) -> tuple[RowDecoder, SpeculatingDecoder | None]:
    table = parse_table_map(table_map_body(columns, names=True))
    assert table.names is not None
    charsets = tuple(column.charset for column in table.columns)
    general = make_decoder(table, table.names, charsets, bitmap([True] * len(columns)))
    return general, speculate(general)


def decoded(decoder: SpeculatingDecoder, data: bytes) -> list[OutboxRow]:
    rows: list[OutboxRow] = []
    decoder.decode_into(data, 0, len(data), rows)
    return rows


@given(tables_with_rows(), st.integers(1, 3))
def test_any_table_is_decoded_as_the_general_decoder_does(
    table: tuple[list[Column], list[dict[str, Any]]], times: int
) -> None:
    columns, rows = table
    general, quick = decoders(columns)
    if quick is None:
        return
    images = b"".join(row_image(columns, row) for row in rows)
    for _ in range(times):  # the second time it has expectations
        assert decoded(quick, images) == general.decode(images, 0, len(images))


#: Values whose lengths and NULLs change from row to row.
ROWS = st.builds(
    outbox_row,
    st.integers(1, 2**63 - 1),
    key=st.text(max_size=6),
    payload=st.sampled_from(["", "{}", "[1]" * 100]),
    topic=st.sampled_from(["a", "b", "longer", "ünïcode"]),
    biz_type=st.sampled_from(["", "x", "chat"]),
    status=st.sampled_from(["pending", "published", "dead"]),
    retry_count=st.integers(0, 2),
    next_retry_at=st.none() | st.datetimes(min_value=outbox_row(1).created_at),
)


@given(st.lists(st.lists(ROWS, max_size=8), max_size=4))
def test_rows_that_differ_from_those_before_are_decoded_all_the_same(events: list[list[OutboxRow]]) -> None:
    _, quick = decoders(list(OUTBOX))
    assert quick is not None
    for rows in events:
        assert decoded(quick, b"".join(row_image(OUTBOX, values_of(row)) for row in rows)) == rows


@given(st.lists(st.lists(ROWS, max_size=8), max_size=4), st.integers(1, 3), st.integers(1, 3))
def test_more_shapes_and_values_than_are_remembered(events: list[list[OutboxRow]], plans: int, values: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST_PLANS", plans)
        patch.setattr(module, "_MOST_VALUES", values)
        test_rows_that_differ_from_those_before_are_decoded_all_the_same.hypothesis.inner_test(events)  # type: ignore[attr-defined]


@given(st.lists(ROWS, min_size=1, max_size=3), st.data())
def test_a_cut_event_is_no_rows(rows: list[OutboxRow], data: st.DataObject) -> None:
    _, quick = decoders(list(OUTBOX))
    assert quick is not None
    images = [row_image(OUTBOX, values_of(row)) for row in rows]
    whole = b"".join(images)
    decoded(quick, whole)
    ends = {sum(map(len, images[:n])) for n in range(len(images) + 1)}
    end = data.draw(st.integers(0, len(whole) - 1).filter(lambda n: n not in ends))
    with pytest.raises(DAMAGED):
        quick.decode_into(whole, 0, end, [])


def test_times_are_unpacked_when_they_are_asked_for() -> None:
    _, quick = decoders(list(OUTBOX))
    assert quick is not None
    expected = outbox_row(1)
    data = row_image(OUTBOX, values_of(expected))
    for row in (decoded(quick, data)[0], decoded(quick, data)[0]):
        assert row == expected and expected == row and hash(row) == hash(expected)
        assert row.created_at == expected.created_at
        assert row.next_retry_at == expected.next_retry_at
    assert isinstance(row, BinlogRow)
    assert type(row.unpacked) is OutboxRow
