from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from cdc_relay.binlog import reconnect as module
from cdc_relay.binlog.batches import TransactionBatch
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.binlog.reconnect import ReconnectingSource
from cdc_relay.errors import DamagedBinlog, DatabaseUnavailable, LeadershipLost, StaleSource
from tests.binlog_bytes import outbox_row

START = BinlogPosition("binlog.000007", 100)
Step = list[TransactionBatch] | BaseException


def at(offset: int, file: int = 7) -> BinlogPosition:
    return BinlogPosition(f"binlog.{file:06d}", offset)


def batch(row_id: int, end: BinlogPosition | None) -> TransactionBatch:
    return TransactionBatch([outbox_row(row_id)], end)


class FakeReader:
    """Gives its steps, then breaks."""

    def __init__(self, steps: Sequence[Step], files_created: dict[str, int]) -> None:
        self.steps = list(steps)
        self.files_created = files_created
        self.closed = 0

    def read(self) -> list[TransactionBatch]:
        step = self.steps.pop(0) if self.steps else DatabaseUnavailable("the connection broke")
        if isinstance(step, BaseException):
            raise step
        return step

    @property
    def has_more(self) -> bool:
        return bool(self.steps)

    def close(self) -> None:
        self.closed += 1


class Server:
    """Opens readers; what it was asked for is kept."""

    def __init__(self, *readers: FakeReader | BaseException) -> None:
        self.readers = list(readers)
        self.opened: list[FakeReader] = []
        self.asked: list[tuple[BinlogPosition, int]] = []

    def open(self, position: BinlogPosition, file_created_at: int) -> FakeReader:
        self.asked.append((position, file_created_at))
        following = self.readers.pop(0)
        if isinstance(following, BaseException):
            raise following
        self.opened.append(following)
        return following


class Rig:
    """A source on a server, its waits taken down instead of waited."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch, file_created_at: int = 0) -> None:
        self.stopping = threading.Event()
        self.reconnects = 0
        self.source = ReconnectingSource(
            server.open,
            START,
            file_created_at=file_created_at,
            stopping=self.stopping,
            on_reconnect=self._count,
        )
        self.waits: list[float] = []
        monkeypatch.setattr(self.source._retrying, "sleep", self.waits.append)

    def _count(self) -> None:
        self.reconnects += 1


def reader(*steps: Step, created: dict[str, int] | None = None) -> FakeReader:
    return FakeReader(steps, created or {})


def test_it_connects_when_it_is_first_read(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(reader([batch(1, at(200))]))
    rig = Rig(server, monkeypatch, file_created_at=5)
    assert server.asked == []
    assert rig.source.read() == [batch(1, at(200))]
    assert server.asked == [(START, 5)]
    assert rig.reconnects == 0


def test_after_a_break_it_goes_on_from_the_end_of_the_last_whole_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    first = reader([batch(1, at(200)), batch(2, at(300))], [batch(3, None)])
    server = Server(first, reader([batch(3, None), batch(4, at(400))]))
    rig = Rig(server, monkeypatch)
    read = [rig.source.read() for _ in range(3)]
    assert [[b.rows[0].id for b in batches] for batches in read] == [[1, 2], [3], [3, 4]]
    assert [position for position, _ in server.asked] == [START, at(300)]
    assert first.closed == 1
    assert rig.reconnects == 1


def test_reads_that_bring_nothing_do_not_move_the_place_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(reader([], []), reader([batch(1, at(200))]))
    rig = Rig(server, monkeypatch)
    assert [rig.source.read() for _ in range(3)] == [[], [], [batch(1, at(200))]]
    assert [position for position, _ in server.asked] == [START, START]


def test_a_server_that_is_away_is_asked_again_with_growing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    away = [DatabaseUnavailable("away") for _ in range(30)]
    server = Server(*away, reader([batch(1, at(200))]))
    rig = Rig(server, monkeypatch)
    assert rig.source.read() == [batch(1, at(200))]
    assert rig.reconnects == len(rig.waits) == 30
    # Waits are random up to a bound that doubles.
    for number, wait in enumerate(rig.waits):
        assert 0 <= wait <= min(module._FIRST_WAIT_S * 2 ** (number + 1), module._LONGEST_WAIT_S)


def test_a_reader_that_has_brought_something_was_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a connection that breaks once an hour would wait as long as a server that is gone."""
    server = Server(*(reader([batch(n, at(100 * n))]) for n in range(2, 22)), reader())
    rig = Rig(server, monkeypatch)
    for _ in range(20):
        rig.source.read()
    assert all(wait <= 2 * module._FIRST_WAIT_S for wait in rig.waits)


def test_a_reader_that_breaks_before_it_brings_anything_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(reader(), reader(), reader([batch(1, at(200))]))
    rig = Rig(server, monkeypatch)
    assert rig.source.read() == [batch(1, at(200))]
    assert rig.reconnects == 2
    assert [one.closed for one in server.opened] == [1, 1, 0]


def test_what_is_damaged_whenever_it_is_read_is_left_to_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each reader brings something before it comes to the place, be it only that nothing is there."""
    readers = [reader([], DamagedBinlog(f"no sense {n}")) for n in range(3)]
    rig = Rig(Server(reader([batch(1, at(200))], DamagedBinlog("no sense")), *readers), monkeypatch)
    rig.source.read()
    with pytest.raises(StaleSource, match=r"binlog.000007:200 .*no sense 1") as stale:
        for _ in range(5):
            rig.source.read()
    assert stale.value.reason == "damaged"
    assert rig.reconnects == 2


def test_what_is_damaged_on_its_way_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as that brings it further it is the connection and not the file."""
    readers = [reader([batch(n, at(100 * n))], DamagedBinlog("no sense")) for n in range(2, 9)]
    rig = Rig(Server(*readers, reader([batch(9, at(900))])), monkeypatch)
    assert [rig.source.read()[0].rows[0].id for _ in range(8)] == [*range(2, 9), 9]
    assert rig.reconnects == 7


@pytest.mark.parametrize(
    "error", [StaleSource("purged", reason="purged"), LeadershipLost("lost"), ZeroDivisionError(), KeyboardInterrupt()]
)
@pytest.mark.parametrize("where", ["opening", "reading"])
def test_what_waiting_does_not_cure_is_raised_and_the_reader_given_up(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, where: str
) -> None:
    server = Server(error if where == "opening" else reader(error), reader([batch(1, at(200))]))
    rig = Rig(server, monkeypatch)
    with pytest.raises(type(error)):
        rig.source.read()
    assert rig.waits == []
    assert all(one.closed for one in server.opened)
    # A reader in the middle of something is not read on.
    assert rig.source.read() == [batch(1, at(200))]


def test_a_stop_ends_the_waiting_with_the_last_error(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(*(DatabaseUnavailable(f"away {n}") for n in range(5)))
    rig = Rig(server, monkeypatch)
    monkeypatch.setattr(rig.source._retrying, "before_sleep", lambda _: rig.stopping.set())
    with pytest.raises(DatabaseUnavailable, match="away 1"):
        rig.source.read()


def test_a_stop_wakes_whoever_waits_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping, waiting = threading.Event(), threading.Event()

    def away(position: BinlogPosition, file_created_at: int) -> FakeReader:
        raise DatabaseUnavailable("away")

    source = ReconnectingSource(away, START, file_created_at=0, stopping=stopping, on_reconnect=waiting.set)
    monkeypatch.setattr(source._retrying, "wait", lambda _: 3_600.0)
    ended: list[BaseException] = []

    def read() -> None:
        try:
            source.read()
        except DatabaseUnavailable as error:
            ended.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert waiting.wait(10)
    stopping.set()
    thread.join(30)
    assert not thread.is_alive()
    assert len(ended) == 1


def test_closing_gives_the_reader_up(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(reader([]))
    rig = Rig(server, monkeypatch)
    rig.source.close()  # before it ever connected
    rig.source.read()
    rig.source.close()
    assert server.opened[0].closed == 1


# --- when files were begun --------------------------------------------------------------------------------------------


def test_a_new_reader_is_told_when_its_file_was_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    first = reader([batch(1, at(300, 8))], created={"binlog.000007": 70, "binlog.000008": 80})
    server = Server(first, reader([batch(2, at(400, 8))]))
    rig = Rig(server, monkeypatch, file_created_at=70)
    rig.source.read()
    rig.source.read()
    assert server.asked == [(START, 70), (at(300, 8), 80)]


def test_when_files_were_begun_is_told_also_of_files_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(reader([batch(1, at(300, 8))], created={"binlog.000008": 80}))
    rig = Rig(server, monkeypatch, file_created_at=70)
    assert rig.source.file_created_at("binlog.000007") == 70
    rig.source.read()
    assert rig.source.file_created_at("binlog.000007") == 70
    assert rig.source.file_created_at("binlog.000008") == 80
    assert rig.source.file_created_at("binlog.000009") == 0


def test_the_oldest_of_too_many_files_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED_FILES", 3)
    files = {f"binlog.{n:06d}": n for n in range(8, 12)}
    server = Server(*(reader([batch(n, at(300, n))], created={f"binlog.{n:06d}": n}) for n in range(8, 12)))
    rig = Rig(server, monkeypatch, file_created_at=70)
    for _ in files:
        rig.source.read()
    assert {file: rig.source.file_created_at(file) for file in files} == {
        "binlog.000008": 0,
        "binlog.000009": 9,
        "binlog.000010": 10,
        "binlog.000011": 11,
    }
