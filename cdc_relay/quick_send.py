"""The quick loop of sending: ordinary rows, many at a time, as ``binlog/quick.py`` is the quick loop of reading.

Nearly every row is fresh, due, of a topic and type that were seen before, with a short payload that is JSON, and no key
is held back. This loop sends those and nothing else. At any other row it stops: the careful way (``Tailer._send``,
``Encoder``, ``Publisher.publish``) takes that one, and says what is the matter with it if something is. So the loop
must only be *certain* of what it takes, never complete.

It is one function on purpose: the calls would cost as much as the work. What a record is: ``outbox/envelope.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from itertools import islice
from typing import Any

import orjson

from cdc_relay.delivery import Delivery, Publisher
from cdc_relay.outbox.envelope import CLOSING, OPENING, SHORT, Encoder
from cdc_relay.outbox.row import BinlogRow, Due, OutboxRow
from cdc_relay.outbox.status import Status

_PENDING = Status.PENDING.value
_ANY_PARTITION = -1
_NOW = 0
#: How a byte order mark begins in UTF-8; no JSON text does.
_BYTE_ORDER_MARK = 0xEF


def json_check() -> Callable[[bytes], Any]:
    """A function that raises for whatever is not JSON; with a byte order mark before it, it may not.

    simdjson looks at every byte and makes no objects. Where there is none for this Python (pyproject.toml), orjson
    takes about twice as long.
    """
    try:
        from simdjson import Parser
    except ImportError:
        return orjson.loads
    return Parser().parse


class QuickSender:
    """Sends for one tailer."""

    def __init__(self, publisher: Publisher, held: Sized, encoder: Encoder) -> None:
        """``held``: what is held back; as long as it is not empty every row goes the careful way."""
        self._publisher = publisher
        self._held = held
        self._encoder = encoder
        self._parse = json_check()

    def run(self, rows: Sequence[OutboxRow], at: int, due: Due, delivery: Delivery) -> int:
        """Send ordinary rows from ``rows[at]`` on; where the first one stands that is not ordinary."""
        if at == len(rows):
            return at
        produce, topics, held = self._publisher.produce, self._publisher.topics, self._held
        parts, parse, join = self._encoder.parts, self._parse, b"".join
        sent, report = delivery.sent.append, delivery.report
        # From the binlog or from the table: a batch is of one kind, and only its times tell which.
        kind = type(rows[at])
        is_packed = kind is BinlogRow
        rfc3339: Callable[[Any], bytes | None] = self._encoder.packed_time if is_packed else self._encoder.wall_time
        latest, bounds = due
        known_topic = known_type = None
        for row in islice(rows, at, None):
            if type(row) is not kind or held:
                break
            row_id, biz_type, topic, key, payload, status, retry_count, due_at, created_at, is_held = row
            if status != _PENDING or retry_count or is_held or len(payload) >= SHORT or topic not in topics:
                break
            is_later = due_at is not None and due_at > (bounds[len(due_at)] if is_packed else latest)  # type: ignore
            if is_later and row.is_scheduled(latest):
                break
            if topic is not known_topic or biz_type is not known_type:
                middle, type_header = parts(topic, biz_type)
                known_topic, known_type = topic, biz_type
            number = b"%d" % row_id
            headers = [("outbox_id", number), type_header]
            if created_at is not None and (text := rfc3339(created_at)) is not None:
                headers.append(("created_at", text))
            try:
                parse(payload)
                if payload[0] == _BYTE_ORDER_MARK:
                    break
                # By place: names cost the client a fifth more.
                value = join((OPENING, number, middle, payload, CLOSING))
                produce(topic, value, key or None, _ANY_PARTITION, report, None, _NOW, headers)
            except Exception:  # noqa: BLE001  # no JSON, a full queue, a refusal: the careful way finds out which
                break
            sent(row_id)
            at += 1
        return at
