"""What both readers promise: of the same binlog the same rows, the same positions, the same doubts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from cdc_relay.binlog.batches import TransactionBatch
from cdc_relay.binlog.connection import DumpConnection, choose_reader
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.binlog.server import describe_table, head
from cdc_relay.binlog.source import BinlogSource, LibrarySource
from cdc_relay.binlog.tables import OutboxTables
from cdc_relay.config_layers import load
from cdc_relay.errors import ConfigurationError, DatabaseUnavailable, StaleSource
from tests.harness import Outbox, eventually

READERS: dict[str, type[BinlogSource]] = {"wire": BinlogSource, "library": LibrarySource}


@pytest.fixture
def outbox(either_database_url: str, topic: str) -> Iterator[Outbox]:
    outbox = Outbox(either_database_url, topic)
    yield outbox
    outbox.engine.dispose()


@pytest.fixture(params=sorted(READERS))
def reader(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def open_reader(outbox: Outbox, start: BinlogPosition, reader: str, unsupported: list[str]) -> BinlogSource:
    url = outbox.engine.url.render_as_string(hide_password=False)
    settings = load({"database.url": url, "kafka.bootstrap_servers": "localhost:1"}, environ={})
    dump = DumpConnection(settings.database, settings.tail, 4_000_000, start, None)

    def describe() -> list[object]:
        with outbox.engine.connect() as connection:
            return list(describe_table(connection, "agent_outbox_messages"))

    tables = OutboxTables(str(outbox.engine.url.database), "agent_outbox_messages", describe)  # type: ignore[arg-type]
    return READERS[reader](dump, start, tables, on_unsupported=unsupported.append)


def position(outbox: Outbox) -> BinlogPosition:
    with outbox.engine.connect() as connection:
        return head(connection)


def read_to_end(
    outbox: Outbox, start: BinlogPosition, reader: str
) -> tuple[list[tuple[object, bool]], BinlogPosition, list[str]]:
    """Rows with their doubts, the last position, what was not understood."""
    end = position(outbox)
    unsupported: list[str] = []
    source = open_reader(outbox, start, reader, unsupported)
    batches: list[TransactionBatch] = []
    last = start
    try:
        while last < end:
            for batch in source.read():
                batches.append(batch)
                last = batch.end or last
    finally:
        source.close()
    return [(row.id if b.doubtful else row, b.doubtful) for b in batches for row in b.rows], last, unsupported


def test_both_give_the_same(outbox: Outbox) -> None:
    start = position(outbox)
    sql = "INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload) VALUES ('t', :t, :k, :p)"
    with outbox.engine.begin() as connection:
        connection.execute(
            text(sql), [{"t": outbox.topic, "k": f"k{n}", "p": json.dumps({"n": "x" * n})} for n in range(300)]
        )
    for n in range(50):
        outbox.add(f"key {n * n}", n, biz_type=f"type {n % 3}", last_error=None if n % 2 else "")
    outbox.run(
        "FLUSH BINARY LOGS",
        "CREATE TABLE other (id INT PRIMARY KEY)",
        "INSERT INTO other VALUES (1), (2)",
        "UPDATE agent_outbox_messages SET status = 'published' WHERE id < 10",
    )
    with outbox.engine.connect() as connection:
        outbox.insert(connection, "gone", 0)
        connection.rollback()
        outbox.insert(connection, "k", 1)
        outbox.insert(connection, "k", 2)
        connection.commit()
        connection.exec_driver_sql("SET SESSION binlog_row_image = 'MINIMAL'")
        outbox.insert(connection, "minimal", 3)
        connection.commit()

    wire, library = (read_to_end(outbox, start, reader) for reader in ("wire", "library"))
    assert wire == library
    rows, _, unsupported = wire
    assert len(rows) == 353
    assert not unsupported

    # Altered, the table is no longer as INFORMATION_SCHEMA tells it for the rows before: they are not understood.
    outbox.run("ALTER TABLE agent_outbox_messages ADD extra INT")
    outbox.add("k", 4, extra=7)
    wire, library = (read_to_end(outbox, start, reader) for reader in ("wire", "library"))
    assert wire == library


def test_a_packet_of_more_than_16_mib_is_whole(outbox: Outbox, reader: str) -> None:
    start = position(outbox)
    payload = json.dumps({"pad": "x" * (17 * 2**20)})
    outbox.run("SET GLOBAL max_allowed_packet = 67108864")
    outbox.engine.dispose()  # the limit is that of new connections
    row_id = outbox.add("large", 0, payload=payload)
    small = outbox.add("small", 1)
    rows, _, _ = read_to_end(outbox, start, reader)
    assert [row if doubtful else row.id for row, doubtful in rows] == [row_id, small]  # type: ignore[attr-defined]


def test_a_position_that_is_not_there_is_a_stale_source(outbox: Outbox, reader: str) -> None:
    source = None
    with pytest.raises(StaleSource) as caught:
        source = open_reader(outbox, BinlogPosition("binlog.999999", 4), reader, [])
        while True:
            source.read()
    assert caught.value.reason == "purged"
    if source is not None:
        source.close()


def test_whether_more_has_come_is_known_before_it_is_read(outbox: Outbox, reader: str) -> None:
    source = open_reader(outbox, position(outbox), reader, [])
    try:
        row_id = outbox.add("k", 1)
        eventually(lambda: source.has_more, "the server sending something")
        found: list[int] = []
        while row_id not in found:
            found += [row.id for batch in source.read() for row in batch.rows]
        while source.has_more:  # a heartbeat
            source.read()
    finally:
        source.close()


def test_a_closed_connection_is_an_outage(outbox: Outbox, reader: str) -> None:
    source = open_reader(outbox, position(outbox), reader, [])
    source.close()
    with pytest.raises(DatabaseUnavailable):
        for _ in range(10):
            source.read()


def test_auto_is_the_wire_reader_and_falls_back_where_a_name_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_reader("auto").reader == choose_reader("wire").reader == "wire"
    assert choose_reader("library").reader == "library"
    monkeypatch.setattr("cdc_relay.binlog.connection._WIRE_NAMES", ("_sock", "_no_such_name"))
    chosen = choose_reader("auto")
    assert chosen.reader == "library"
    assert "_no_such_name" in chosen.why
    assert "_sock" not in chosen.why
    with pytest.raises(ConfigurationError, match="_no_such_name"):
        choose_reader("wire")


def test_small_records_of_tls_are_taken_together(database_url: str, topic: str) -> None:
    """The server sends a transaction in a record of its own, and a reader that takes one at a time falls behind."""
    outbox = Outbox(database_url, topic)
    source = open_reader(outbox, position(outbox), "wire", [])
    received: list[int] = []
    try:
        ids = [outbox.add("k", n) for n in range(40)]
        stream = source._stream
        assert isinstance(stream, DumpConnection)
        assert stream._is_tls
        receive = stream.receive

        def counted() -> bytes:
            data = receive()
            received.append(len(data))
            return data

        stream.receive = counted  # type: ignore[method-assign]
        time.sleep(1)  # for the server to have sent all of it
        found: list[int] = []
        while len(found) < len(ids):
            found += [row.id for batch in source.read() for row in batch.rows]
    finally:
        source.close()
        outbox.engine.dispose()
    assert found == ids
    assert len(received) < len(ids) / 2, received
