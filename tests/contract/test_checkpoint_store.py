"""What every checkpoint store promises, in a file and in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.checkpoint import Checkpoint, CheckpointStore, FileCheckpointStore
from cdc_relay.errors import CheckpointError
from tests.fakes import MemoryCheckpointStore

FIRST = Checkpoint("server", BinlogPosition("binlog.000042", 1234), 1_700_000_000, 1_700_000_001.5, 1_700_000_002.25)
SECOND = replace(FIRST, position=BinlogPosition("binlog.000043", 4), parked=True)


@dataclass
class Case:
    """A store, and how to take it away."""

    store: CheckpointStore
    take_away: Callable[[], None]


@pytest.fixture(params=["file", "memory"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    if request.param == "memory":
        memory = MemoryCheckpointStore()
        return Case(memory, lambda: setattr(memory, "broken", "gone"))
    path = tmp_path / "folder" / "relay.json"

    def a_folder_in_its_place() -> None:
        path.unlink(missing_ok=True)
        path.mkdir(parents=True)

    return Case(FileCheckpointStore(path), a_folder_in_its_place)


def test_at_first_there_is_none(case: Case) -> None:
    assert case.store.load() is None
    assert case.store.reset() is False


def test_the_last_one_saved_is_loaded_as_often_as_it_is_asked_for(case: Case) -> None:
    for checkpoint in (FIRST, SECOND, FIRST):
        case.store.save(checkpoint)
        assert case.store.load() == checkpoint
        assert case.store.load() == checkpoint


def test_what_is_reset_is_gone_and_another_may_be_saved(case: Case) -> None:
    case.store.save(FIRST)
    assert case.store.reset() is True
    assert case.store.load() is None
    assert case.store.reset() is False
    case.store.save(SECOND)
    assert case.store.load() == SECOND


def test_a_store_that_fails_says_so_with_one_error(case: Case) -> None:
    case.store.save(FIRST)
    case.take_away()
    with pytest.raises(CheckpointError):
        case.store.load()
    with pytest.raises(CheckpointError):
        case.store.save(SECOND)
    with pytest.raises(CheckpointError):
        case.store.reset()
