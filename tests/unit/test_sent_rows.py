from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cdc_relay.outbox.row import OutboxRow
from cdc_relay.sent_rows import SentRows
from tests.binlog_bytes import outbox_row

MOST = 10


@pytest.fixture
def sent(tmp_path: Path) -> SentRows:
    return SentRows.beside(tmp_path / "made" / "relay.json", MOST)


def after_a_kill(sent: SentRows) -> SentRows:
    """What the next process learns."""
    found = SentRows(sent.path, MOST)
    found.begin()
    return found


def rows(*ids: int) -> list[OutboxRow]:
    return [outbox_row(row_id) for row_id in ids]


def known(sent: SentRows, *ids: int) -> list[int]:
    return [row.id for row in rows(*ids) if sent.has(row)]


def test_rows_are_known_after_a_kill_once_kafka_has_them(sent: SentRows) -> None:
    sent.begin()
    first, second = sent.noting(rows(1, 2)), sent.noting(rows(3))
    assert known(after_a_kill(sent), 1, 2, 3) == []
    second()
    assert known(after_a_kill(sent), 1, 2, 3) == [3]
    first()
    assert known(after_a_kill(sent), 1, 2, 3, 4) == [1, 2, 3]
    assert known(sent, 1, 2, 3) == [], "this process knows what it has sent"


def test_the_next_process_notes_behind_what_it_has_found(sent: SentRows) -> None:
    sent.noting(rows(1))()
    again = after_a_kill(sent)
    again.noting(rows(2))()
    assert known(after_a_kill(sent), 1, 2) == [1, 2]


@pytest.mark.parametrize(
    "changes",
    [{"payload": b"[]"}, {"message_key": b"other"}, {"topic": "other"}, {"created_at": datetime(2026, 1, 2)}],
    ids=["payload", "key", "topic", "time"],
)
def test_another_row_of_the_same_id_is_not_the_one_that_was_sent(sent: SentRows, changes: dict[str, Any]) -> None:
    sent.noting(rows(1))()
    assert not after_a_kill(sent).has(outbox_row(1)._replace(**changes))


def test_the_latest_are_kept(sent: SentRows) -> None:
    for row_id in range(1, 25):
        sent.noting(rows(row_id))()
    assert known(after_a_kill(sent), *range(1, 25)) == list(range(15, 25))


@pytest.mark.parametrize(
    "damaged", [b"", b"\0" * 12 * 3, b"short", b"\xff" * 40], ids=["empty", "zeros", "torn", "noise"]
)
def test_what_is_damaged_names_no_row(sent: SentRows, damaged: bytes) -> None:
    sent.noting(rows(1))()
    sent.path.write_bytes(damaged)
    again = after_a_kill(sent)
    assert known(again, 1) == []
    again.noting(rows(2))()
    assert known(after_a_kill(sent), 1, 2) == [2]


def test_every_flipped_bit_is_noticed(sent: SentRows) -> None:
    sent.noting(rows(1))()
    whole = sent.path.read_bytes()
    for index in range(len(whole)):
        sent.path.write_bytes(whole[:index] + bytes([whole[index] ^ 4]) + whole[index + 1 :])
        assert known(after_a_kill(sent), 1) == [], index


def test_it_is_forgotten_when_all_is_marked(sent: SentRows) -> None:
    sent.noting(rows(1))()
    sent = after_a_kill(sent)
    sent.reset()
    assert known(sent, 1) == []
    assert not sent.path.exists()
    sent.noting(rows(2))()
    assert known(after_a_kill(sent), 1, 2) == [2]
    sent.reset()
    sent.reset()


def test_where_it_cannot_be_written_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    sent = SentRows.beside(tmp_path / "taken" / "relay.json")
    sent.begin()
    sent.noting(rows(1))()
    sent.noting(rows(2))()
    assert known(after_a_kill(sent), 1, 2) == []
    sent.reset()
