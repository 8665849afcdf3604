from __future__ import annotations

from pathlib import Path

import pytest

from cdc_relay.acknowledged import Acknowledged, AcknowledgedFile
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.reconcile import ServerBinlog, Start

SERVER = "7c3a"
BEGUN = 1_700_000_000


def noted(offset: int, file: str = "binlog.000042", begun: int = BEGUN, server: str = SERVER) -> Acknowledged:
    return Acknowledged(server, BinlogPosition(file, offset), begun)


@pytest.fixture
def file(tmp_path: Path) -> AcknowledgedFile:
    return AcknowledgedFile.beside(tmp_path / "made" / "relay.json")


def test_the_last_one_noted_is_loaded_also_by_another_process(file: AcknowledgedFile) -> None:
    assert file.load() is None
    file.note(noted(4_000_000_000))
    file.note(noted(5))  # shorter
    assert file.load() == AcknowledgedFile(file.path).load() == noted(5)
    file.close()
    file.note(noted(6))
    assert file.load() == noted(6)


@pytest.mark.parametrize(
    "damaged",
    [b"", b"\0" * 512, b"0", b"00000000 7c3a binlog.000042:5 1700000000", b"\xff" * 20],
    ids=["empty", "zeros", "short", "checksum", "no text"],
)
def test_what_cannot_be_trusted_is_none(file: AcknowledgedFile, damaged: bytes) -> None:
    file.note(noted(5))
    file.path.write_bytes(damaged)
    assert file.load() is None


def test_every_flipped_bit_is_noticed(file: AcknowledgedFile) -> None:
    file.note(noted(5))
    whole = file.path.read_bytes()
    for index in range(len(whole.rstrip())):
        file.path.write_bytes(whole[:index] + bytes([whole[index] ^ 4]) + whole[index + 1 :])
        assert file.load() is None, index


def test_where_it_cannot_be_written_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    file = AcknowledgedFile.beside(tmp_path / "taken" / "relay.json")
    file.note(noted(5))
    file.note(noted(6))
    assert file.load() is None
    file.reset()


def test_it_is_made_anew_where_its_folder_was_removed(file: AcknowledgedFile) -> None:
    file.note(noted(5))
    file.path.unlink()
    file.path.parent.rmdir()
    file.close()
    file.note(noted(6))
    assert file.load() == noted(6)


def test_it_is_forgotten(file: AcknowledgedFile) -> None:
    file.note(noted(5))
    file.reset()
    assert file.load() is None
    file.reset()


BINLOG = ServerBinlog(SERVER, BinlogPosition("binlog.000043", 900), (("binlog.000042", 9000), ("binlog.000043", 900)))
START = Start(BinlogPosition("binlog.000042", 100), None, file_created_at=BEGUN)


def test_a_start_knows_what_was_noted_of_its_file() -> None:
    assert START.knowing(noted(500), BINLOG).acknowledged == BinlogPosition("binlog.000042", 500)


@pytest.mark.parametrize(
    ("start", "acknowledged"),
    [
        (START, None),
        (START, noted(100)),
        (START, noted(99)),
        (START, noted(500, server="other")),
        (START, noted(500, begun=BEGUN + 1)),
        (START, noted(500, file="binlog.000043")),
        (Start(BinlogPosition("binlog.000043", 100), None, file_created_at=BEGUN), noted(901, file="binlog.000043")),
        (Start(BinlogPosition("binlog.000042", 100), None, file_created_at=0), noted(500, begun=0)),
        (Start(BinlogPosition("binlog.000042", 100), "behind", file_created_at=BEGUN), noted(500)),
    ],
    ids=["none", "same", "before", "server", "begun", "file", "beyond the head", "file unknown", "reconciling"],
)
def test_a_start_makes_nothing_of_what_may_be_of_another_binlog(
    start: Start, acknowledged: Acknowledged | None
) -> None:
    assert start.knowing(acknowledged, BINLOG) == start
