"""What one would write without this project, as one would write it: ``python -m tests.benchmarks.peers NAME``.

Settings and starting position are those of ``cdc-relay run``. They have none of its safety: no order per key after an
error, no retries, no dead rows, no checkpoint of their own; and they lose nothing only because they wait for each step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import pymysql
from confluent_kafka import Producer
from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.row_event import WriteRowsEvent

from cdc_relay.checkpoint import FileCheckpointStore
from cdc_relay.config import Settings
from cdc_relay.config_layers import load
from cdc_relay.outbox.table import OUTBOX_COLUMNS

_DUE = (
    "SELECT id, biz_type, topic, message_key, payload FROM agent_outbox_messages "
    "WHERE status = 'pending' AND next_retry_at <= UTC_TIMESTAMP(6) ORDER BY id LIMIT 100"
)
_PUBLISHED = "UPDATE agent_outbox_messages SET status = 'published', published_at = UTC_TIMESTAMP(6) WHERE id IN %s"
_IDLE_S = 0.05


def naive(settings: Settings) -> None:
    """The library's reader; each event's rows are sent, waited for, and marked one by one."""
    start = FileCheckpointStore(settings.checkpoint.path).load()
    assert start is not None
    stream = BinLogStreamReader(
        _arguments(settings),
        server_id=2**31 + os.getpid(),
        blocking=True,
        resume_stream=True,
        log_file=start.position.file,
        log_pos=start.position.offset,
        only_events=[WriteRowsEvent],
        only_schemas=[settings.database.parsed.database],
        only_tables=[settings.database.table],
    )
    producer = _producer(settings)
    with _connect(settings) as connection, connection.cursor() as cursor:
        for event in stream:
            rows = [dict(zip(OUTBOX_COLUMNS, row["values"].values(), strict=True)) for row in event.rows]
            for row in rows:
                _send(producer, row)
            producer.flush()
            for row in rows:
                cursor.execute(_PUBLISHED, [[row["id"]]])


def poller(settings: Settings, pause_s: float) -> None:
    """A hundred due rows at a time from the table: sent, waited for, marked. ``pause_s`` after each hundred."""
    producer = _producer(settings)
    with _connect(settings) as connection, connection.cursor(pymysql.cursors.DictCursor) as cursor:
        while True:
            cursor.execute(_DUE)
            rows = cursor.fetchall()
            for row in rows:
                _send(producer, row)
            if rows:
                producer.flush()
                cursor.execute(_PUBLISHED, [[row["id"] for row in rows]])
            time.sleep(pause_s if rows else max(pause_s, _IDLE_S))


def _send(producer: Producer, row: dict[str, Any]) -> None:
    text = {name: _text(row[name]) for name in ("biz_type", "topic", "message_key", "payload")}
    value = {"outbox_id": row["id"], "biz_type": text["biz_type"], "payload": json.loads(text["payload"])}
    producer.produce(text["topic"], json.dumps(value).encode(), key=text["message_key"])


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _producer(settings: Settings) -> Producer:
    return Producer(settings.kafka.client_properties(acks="all"))


def _connect(settings: Settings) -> pymysql.Connection[Any]:
    return pymysql.connect(**_arguments(settings), autocommit=True)


def _arguments(settings: Settings) -> dict[str, Any]:
    url = settings.database.parsed
    _, arguments = url.get_dialect()().create_connect_args(url)
    return dict(arguments)


PEERS: dict[str, Callable[[Settings], None]] = {
    "naive": naive,
    "poller": lambda settings: poller(settings, 0.0),
    "poller-each-second": lambda settings: poller(settings, 1.0),
}

if __name__ == "__main__":
    PEERS[sys.argv[1]](load(environ=os.environ))
