from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.checkpoint import Checkpoint, Checkpointer, FileCheckpointStore
from cdc_relay.errors import CheckpointError, LeadershipLost
from tests.fakes import MemoryCheckpointStore

AT = Checkpoint(
    server="8319c95d-e81e-11f1-9083-02fc00000001",
    position=BinlogPosition("binlog.000042", 1234567),
    file_created_at=1_700_000_000,
    committed_at=1_700_000_123.456789,
    written_at=1_700_000_124.25,
)
LATER = Checkpoint(AT.server, BinlogPosition("binlog.000043", 4), 1_700_000_500, 1_700_000_600.5, 1_700_000_601.0, True)

checkpoints = st.builds(
    Checkpoint,
    server=st.text(st.characters(codec="utf-8"), max_size=60),
    position=st.builds(BinlogPosition, st.sampled_from(["binlog.000001", "mysql-bin.1000000"]), st.integers(0, 2**33)),
    file_created_at=st.integers(0, 2**33),
    committed_at=st.floats(0, 2**33),
    written_at=st.floats(0, 2**33),
    parked=st.booleans(),
)


@pytest.fixture
def store(tmp_path: Path) -> FileCheckpointStore:
    return FileCheckpointStore(tmp_path / "relay.json")


def files(store: FileCheckpointStore) -> list[str]:
    return sorted(path.name for path in store.path.parent.iterdir())


@given(checkpoint=checkpoints)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_saved_is_loaded(store: FileCheckpointStore, checkpoint: Checkpoint) -> None:
    store.save(checkpoint)
    assert store.load() == checkpoint
    assert files(store) == ["relay.json"]


def test_the_file_can_be_read_by_people(store: FileCheckpointStore) -> None:
    store.save(AT)
    content = json.loads(store.path.read_text())
    assert content["position"] == "binlog.000042:1234567"
    assert content["server"] == AT.server


def test_the_folder_is_made(tmp_path: Path) -> None:
    store = FileCheckpointStore(tmp_path / "a" / "b" / "relay.json")
    store.save(AT)
    assert store.load() == AT


def test_a_relative_path_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = FileCheckpointStore(Path("relay.json"))
    store.save(AT)
    assert store.load() == AT
    assert store.reset()


# --- what cannot be trusted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [AT, LATER])
def test_a_file_that_is_cut_off_anywhere_is_refused(store: FileCheckpointStore, checkpoint: Checkpoint) -> None:
    store.save(checkpoint)
    whole = store.path.read_bytes()
    assert whole.endswith(b"}\n")
    for size in range(len(whole) - 1):  # without its last line end it is whole
        store.path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="cannot be trusted"):
            store.load()


def test_a_file_with_any_flipped_bit_is_refused(store: FileCheckpointStore) -> None:
    store.save(AT)
    whole = store.path.read_bytes()
    for at in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        store.path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="cannot be trusted"):
            store.load()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 400, b"null", b"[]", b"{}", b"1", b'"checkpoint"', b'{"checksum": null}', b"\xff\xfe",
        b"[" * 5000, b'{"a":' * 5000, b'{"position": "binlog.000042:4"}', b'{"checksum": "00000000", "x": 1e999}',
        b'{"a": 123456789012345678901234567890}',
    ],
)  # fmt: skip
def test_anything_else_is_refused(store: FileCheckpointStore, content: bytes) -> None:
    store.path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be trusted"):
        store.load()


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_is_refused(store: FileCheckpointStore, noise: bytes) -> None:
    store.path.write_bytes(noise)
    with pytest.raises(CheckpointError):
        store.load()


def tampered(store: FileCheckpointStore, **changes: Any) -> None:
    """The file as another version of the program would write it: its checksum is right."""
    from cdc_relay.checkpoint import _checksum

    store.save(AT)
    content = json.loads(store.path.read_text())
    del content["checksum"]
    content |= changes
    content = {name: value for name, value in content.items() if value != "gone"}
    store.path.write_text(json.dumps(content | {"checksum": _checksum(content)}))


def test_the_same_content_written_otherwise_is_trusted(store: FileCheckpointStore) -> None:
    tampered(store)
    assert store.load() == AT


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"version": "gone"},
        {"position": "binlog.000042"},
        {"position": 42},
        {"position": None},
        {"position": "gone"},
        {"server": "gone"},
        {"more": 1},
        {"server": 5},
        {"file_created_at": "yesterday"},
        {"committed_at": None},
        {"written_at": "now"},
        {"parked": 1},
    ],
    ids=str,
)
def test_a_file_of_another_version_is_refused(store: FileCheckpointStore, changes: dict[str, Any]) -> None:
    tampered(store, **changes)
    with pytest.raises(CheckpointError, match="cannot be trusted"):
        store.load()


def test_a_folder_in_its_place_is_refused(store: FileCheckpointStore) -> None:
    store.path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        store.load()
    with pytest.raises(CheckpointError, match="cannot be written"):
        store.save(AT)
    with pytest.raises(CheckpointError, match="cannot be removed"):
        store.reset()
    assert files(store) == ["relay.json"]


def test_a_file_in_place_of_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = FileCheckpointStore(tmp_path / "file" / "relay.json")
    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        store.save(AT)
    assert caught.value.hint is not None
    assert caught.value.exit_code == 6


# --- a disk that fails ------------------------------------------------------------------------------------------------


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_leaves_the_old_checkpoint_whole_and_nothing_beside_it(
    store: FileCheckpointStore, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    store.save(AT)
    with monkeypatch.context() as broken:
        broken.setattr(os, step, failing(number))
        with pytest.raises(CheckpointError, match=os.strerror(number)):
            store.save(LATER)
    assert store.load() == AT
    assert files(store) == ["relay.json"]
    store.save(LATER)
    assert store.load() == LATER


def test_a_full_disk_while_writing_leaves_the_old_checkpoint_whole(
    store: FileCheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(AT)
    really_open = open
    with monkeypatch.context() as full:
        full.setattr("builtins.open", lambda *_: really_open("/dev/full", "wb"))
        with pytest.raises(CheckpointError, match="No space left"):
            store.save(LATER)
    assert store.load() == AT
    assert files(store) == ["relay.json"]


def test_when_the_folder_cannot_be_synced_the_new_checkpoint_is_whole(
    store: FileCheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(AT)
    real = os.fsync
    calls = 0

    def second_fails(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(CheckpointError):
        store.save(LATER)
    assert store.load() == LATER
    assert files(store) == ["relay.json"]


def test_a_save_is_on_the_disk_in_the_order_that_survives_a_crash(
    store: FileCheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        steps.append("sync " + ("folder" if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir() else "file"))
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        assert FileCheckpointStore(Path(source)).load() == LATER  # whole before it takes the place
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    store.save(LATER)
    assert steps == ["sync file", "rename", "sync folder"]


SAVER = """
import sys
from pathlib import Path
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.checkpoint import Checkpoint, FileCheckpointStore

store = FileCheckpointStore(Path(sys.argv[1]))
offset = int(sys.argv[2])
while True:
    offset += 1
    # Of very different sizes, so that one half written over another would show.
    store.save(Checkpoint("s" * (offset * 7919 % 50_000), BinlogPosition("binlog.000001", offset), 0, 0.0, 0.0))
    print(offset, flush=True)
"""


def test_a_program_that_is_killed_while_it_saves_leaves_a_checkpoint_to_load(store: FileCheckpointStore) -> None:
    chance = random.Random(7)
    offset = 4
    for _ in range(12):
        saver = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(store.path), str(offset)], stdout=subprocess.PIPE, text=True
        )
        assert saver.stdout is not None
        with saver, saver.stdout:
            saved = int(saver.stdout.readline())
            time.sleep(chance.random() * 0.05)
            saver.kill()
            saved = int((saver.stdout.read().split() or [str(saved)])[-1])
        found = store.load()
        assert found is not None
        # What it said is saved is there, or the one that it was about to tell of.
        assert found.position.offset in (saved, saved + 1)
        offset = found.position.offset


# --- when it is saved -------------------------------------------------------------------------------------------------


def written(at: float) -> Checkpoint:
    return Checkpoint("s", BinlogPosition("binlog.000001", int(at) + 4), 0, 0.0, at)


@pytest.fixture
def memory() -> MemoryCheckpointStore:
    return MemoryCheckpointStore()


def checkpointer(memory: MemoryCheckpointStore, guard: Callable[[], None] = lambda: None) -> Checkpointer:
    return Checkpointer(memory, 10.0, guard)


def test_it_is_saved_once_an_interval(memory: MemoryCheckpointStore) -> None:
    saver = checkpointer(memory)
    done = [
        at for at in (100.0, 101.0, 109.9, 110.0, 115.0, 120.5, 125.0, 131.0) if saver.save(written(at), force=False)
    ]
    assert done == [100.0, 110.0, 120.5, 131.0]
    assert memory.saved == [written(at) for at in done]


def test_it_is_saved_at_once_when_forced_and_then_an_interval_later(memory: MemoryCheckpointStore) -> None:
    saver = checkpointer(memory)
    assert saver.save(written(100.0), force=False)
    assert saver.save(written(101.0), force=True)
    assert not saver.save(written(110.5), force=False)
    assert saver.save(written(111.0), force=False)


def test_a_clock_that_is_set_back_does_not_stop_the_saving(memory: MemoryCheckpointStore) -> None:
    """Or the checkpoint would grow as old as the clock was set back, and another program take the relay for dead."""
    saver = checkpointer(memory)
    assert saver.save(written(10_000.0), force=False)
    assert saver.save(written(6_400.0), force=False)
    assert not saver.save(written(6_405.0), force=False)
    assert saver.save(written(6_410.0), force=False)


def test_a_relay_that_is_active_no_longer_saves_nothing(memory: MemoryCheckpointStore) -> None:
    def lost() -> None:
        raise LeadershipLost("gone")

    saver = checkpointer(memory, lost)
    with pytest.raises(LeadershipLost):
        saver.save(written(100.0), force=True)
    assert memory.saved == []
    assert saver.last is None


def test_a_store_that_fails_is_tried_again_an_interval_later_and_the_position_is_remembered(
    memory: MemoryCheckpointStore,
) -> None:
    saver = checkpointer(memory)
    memory.broken = "the disk is full"
    with pytest.raises(CheckpointError, match="full"):
        saver.save(written(100.0), force=False)
    assert saver.last == written(100.0)
    assert not saver.save(written(105.0), force=False)
    memory.broken = None
    assert saver.save(written(110.0), force=False)
    assert memory.saved == [written(110.0)]
