"""Where a start begins: every row of the table of the design."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.checkpoint import Checkpoint
from cdc_relay.errors import CheckpointError
from cdc_relay.reconcile import ServerBinlog, Start, bytes_between, decide_start, load_start
from tests.fakes import MemoryCheckpointStore

SERVER = ServerBinlog(
    "uuid-1",
    BinlogPosition("binlog.000012", 5_000),
    (("binlog.000010", 1_000), ("binlog.000011", 2_000), ("binlog.000012", 5_000)),
)
GOOD = Checkpoint("uuid-1", BinlogPosition("binlog.000011", 500), 77, 1.0, 2.0)


def start(checkpoint: Checkpoint | None, *, jump: int = 0, distrust: str | None = None) -> Start:
    return decide_start(checkpoint, SERVER, jump_behind_bytes=jump, distrust=distrust)


def test_a_good_checkpoint_is_tailed_from() -> None:
    assert start(GOOD) == Start(GOOD.position, None, "", 77, False)
    assert start(replace(GOOD, parked=True)).parked


@pytest.mark.parametrize(
    ("checkpoint", "distrust", "jump", "reason"),
    [
        (None, None, 0, "no_checkpoint"),
        (replace(GOOD, server="uuid-2"), None, 0, "other_server"),
        (replace(GOOD, position=BinlogPosition("binlog.000009", 4)), None, 0, "purged"),
        (replace(GOOD, position=BinlogPosition("binlog.000013", 4)), None, 0, "purged"),
        (replace(GOOD, position=BinlogPosition("binlog.000012", 5_001)), None, 0, "future"),
        (replace(GOOD, position=BinlogPosition("binlog.000010", 1_001)), None, 0, "future"),
        (GOOD, None, 6_499, "behind"),
        (GOOD, "reset", 0, "reset"),
        (GOOD, "position", 0, "position"),
    ],
)
def test_everything_else_begins_at_the_head_after_the_table(
    checkpoint: Checkpoint | None, distrust: str | None, jump: int, reason: str
) -> None:
    found = start(checkpoint, jump=jump, distrust=distrust)
    assert found.reconcile == reason
    assert found.position == SERVER.head
    assert found.detail
    assert found.file_created_at == 0


def test_how_far_behind_is_counted_over_files() -> None:
    assert bytes_between(GOOD.position, SERVER) == 1_500 + 5_000
    assert bytes_between(SERVER.head, SERVER) == 0
    assert start(GOOD, jump=6_500).reconcile is None


def test_an_unreadable_checkpoint_is_as_good_as_none_and_says_why() -> None:
    store = MemoryCheckpointStore()
    store.broken = "its checksum does not fit"
    with pytest.raises(CheckpointError):
        store.load()
    found = load_start(store, SERVER, jump_behind_bytes=0)
    assert (found.reconcile, found.position) == ("unreadable", SERVER.head)
    assert "checksum" in found.detail


def test_a_saved_checkpoint_is_loaded() -> None:
    store = MemoryCheckpointStore()
    assert load_start(store, SERVER, jump_behind_bytes=0).reconcile == "no_checkpoint"
    store.save(GOOD)
    assert load_start(store, SERVER, jump_behind_bytes=0).position == GOOD.position
