"""A disk that takes no checkpoint, checkpoints that lie, clocks that disagree: never a wrong position, no row late."""

from __future__ import annotations

import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest

from cdc_relay.checkpoint import FileCheckpointStore
from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer
from cdc_relay.errors import CheckpointError
from tests.e2e.programs import launched
from tests.e2e.stack import Stack, stack_on
from tests.harness import eventually

IN_FLIGHT = 300
SETTINGS: dict[str, Any] = {"tail__max_in_flight_rows": IN_FLIGHT}


@pytest.fixture
def stack(mysql_server: MysqlServer, kafka_broker: KafkaBroker, tmp_path: Path) -> Iterator[Stack]:
    with stack_on(mysql_server, kafka_broker.bootstrap_servers, tmp_path, **SETTINGS) as stack:
        yield stack


def take_a_checkpoint_s_place(stack: Stack) -> None:
    shutil.rmtree(stack.checkpoint.parent, ignore_errors=True)
    stack.checkpoint.parent.write_text("a file where the folder was")  # as good as read-only, also for root


def give_it_back(stack: Stack) -> None:
    stack.checkpoint.parent.unlink()
    stack.checkpoint.parent.mkdir()


def test_the_relay_goes_on_and_says_why_while_the_checkpoint_s_folder_is_not_to_be_written(stack: Stack) -> None:
    stack.start()
    stack.write_some(100)
    take_a_checkpoint_s_place(stack)
    try:
        stack.write_some(100)
        eventually(lambda: stack.relay.said("checkpoint_failed"), "a word about the checkpoint")
        stack.settle()
    finally:
        give_it_back(stack)
    eventually(stack.checkpoint.exists, "a checkpoint again")
    stack.relay.kill()
    stack.write_some(100)
    stack.relay.start()
    stack.verdict().require_good(duplicates=IN_FLIGHT)
    assert stack.relay.said("start")


def test_a_folder_that_is_removed_is_made_again(stack: Stack) -> None:
    stack.start()
    stack.write_some(50)
    shutil.rmtree(stack.checkpoint.parent, ignore_errors=True)
    eventually(stack.checkpoint.exists, "a checkpoint again")
    stack.write_some(50)
    stack.verdict().require_good(duplicates=0)


def test_a_full_disk_keeps_the_old_checkpoint_whole_and_delivery_going(stack: Stack, tmp_path: Path) -> None:
    flag = tmp_path / "full"
    with launched(stack.relay, FAULT_FULL_DISK=str(flag)):
        stack.start()
        stack.write_some(100)
        stack.settle()
        flag.touch()
        before = eventually(lambda: stack.relay.said("checkpoint_failed") and stack.checkpoint.read_bytes(), "failures")
        stack.write_some(100)
        stack.settle()
        assert stack.checkpoint.read_bytes() == before
        assert not list(stack.checkpoint.parent.glob(".*.tmp"))
        assert "No space left" in str(stack.relay.said("checkpoint_failed"))
        stack.relay.kill()
    stack.relay.start()
    stack.write_some(100)
    stack.verdict().require_good(duplicates=0)


def rewritten(raw: bytes, **changes: object) -> bytes:
    """The checkpoint with other values and a checksum that fits."""
    content = orjson.loads(raw) | changes
    del content["checksum"]
    checksum = zlib.crc32(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))
    return orjson.dumps(content | {"checksum": f"{checksum:08x}"})


BAD: dict[str, tuple[Callable[[bytes], bytes], set[str]]] = {
    "truncated": (lambda raw: raw[: len(raw) // 2], {"unreadable"}),
    "empty": (lambda raw: b"", {"unreadable"}),
    "zeros": (lambda raw: bytes(len(raw)), {"unreadable"}),
    "a flipped bit in the position": (lambda raw: raw.replace(b"binlog.0", b"binlog.1", 1), {"unreadable"}),
    "of another server": (lambda raw: rewritten(raw, server="somebody"), {"other_server"}),
    "from the future": (lambda raw: rewritten(raw, position="binlog.999999:4"), {"purged", "future"}),
    "beyond the end": (lambda raw: rewritten(raw, position=orjson.loads(raw)["position"] + "000"), {"future"}),
    "in the middle of an event": (lambda raw: rewritten(raw, position=_moved(raw, -7)), {"position"}),
}


def _moved(raw: bytes, by: int) -> str:
    file, _, offset = orjson.loads(raw)["position"].partition(":")
    return f"{file}:{int(offset) + by}"


@pytest.mark.parametrize("kind", BAD)
def test_a_checkpoint_that_cannot_be_trusted_costs_a_look_at_the_table_and_no_row(stack: Stack, kind: str) -> None:
    spoil, reasons = BAD[kind]
    stack.start()
    stack.write_some(100)
    stack.settle()
    assert stack.relay.stop() == 0
    stack.checkpoint.write_bytes(spoil(stack.checkpoint.read_bytes()))
    stack.write_some(100)
    stack.relay.start()
    stack.verdict().require_good(duplicates=0)
    assert stack.relay.said("reconcile")[-1]["reason"] in reasons


def test_every_single_bit_that_flips_is_noticed_or_changes_nothing(stack: Stack) -> None:
    stack.relay.start()
    eventually(stack.checkpoint.exists, "a checkpoint")
    assert stack.relay.stop() == 0
    raw = stack.checkpoint.read_bytes()
    store = FileCheckpointStore(stack.checkpoint)
    whole = store.load()
    for bit in range(8 * len(raw)):
        spoilt = bytearray(raw)
        spoilt[bit // 8] ^= 1 << bit % 8
        stack.checkpoint.write_bytes(spoilt)
        try:
            assert store.load() == whole
        except CheckpointError:
            continue


@pytest.mark.parametrize("relay_s", [-600, 600])
@pytest.mark.parametrize("application_s", [-600, 600])
def test_clocks_that_are_ten_minutes_apart_delay_no_row_and_double_none(
    stack: Stack, application_s: float, relay_s: float
) -> None:
    with launched(stack.relay, FAULT_CLOCK_AHEAD_S=str(relay_s)):
        stack.start()
        began = time.monotonic()
        stack.write_some(200, clock_ahead_s=application_s)
        stack.settle()
        stack.relay.kill()
        stack.checkpoint.unlink()
        stack.write_some(200, clock_ahead_s=application_s)  # these are the table's to tell
        stack.relay.start()
        verdict = stack.verdict()
        verdict.require_good(duplicates=0)
        assert time.monotonic() - began < 60


@pytest.mark.parametrize("shift", ["back", "forward"])
def test_the_night_when_the_clocks_change_delays_no_row_and_doubles_none(
    mysql_server: MysqlServer, kafka_broker: KafkaBroker, tmp_path: Path, shift: str
) -> None:
    """Everybody's clock stands shortly before the change; the application writes wall times of Berlin."""
    change = datetime(2026, 10, 25, 1, 0, tzinfo=UTC) if shift == "back" else datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
    ahead_s = (change - datetime.now(UTC)).total_seconds() - 6  # a few seconds of the test lie before the change
    settings = SETTINGS | {"database__timezone": "Europe/Berlin"}
    with stack_on(mysql_server, kafka_broker.bootstrap_servers, tmp_path, **settings) as stack:
        fault = {"FAULT_EVERY_CLOCK_AHEAD_S": str(ahead_s)}
        with launched(stack.relay, **fault), launched(stack.consumer, **fault):
            stack.start()
            writers = stack.write(clock_ahead_s=ahead_s, zone=ZoneInfo("Europe/Berlin"), pause_s=(0.0, 0.05))
            time.sleep(4)
            stack.relay.kill()  # what comes now is the table's to tell, on both sides of the change
            stack.checkpoint.unlink()
            time.sleep(3)
            stack.relay.start()
            time.sleep(1)
            writers.stop()
            stack.verdict(patience_s=60).require_good(duplicates=IN_FLIGHT)
            first, last = stack.sql("SELECT MIN(created_at), MAX(created_at) FROM agent_outbox_messages")[0]
            assert (first.hour, last.hour) == ((2, 2) if shift == "back" else (1, 3))
