"""What an outbox row becomes in Kafka, and how the consumer reads it back.

Value ``{"outbox_id": 1, "biz_type": "…", "payload": …}`` with the payload byte for byte as the application wrote it,
key ``message_key``, topic ``topic``, headers ``outbox_id``, ``biz_type`` and ``created_at``.
"""

from __future__ import annotations

import json
import re
from datetime import tzinfo
from functools import lru_cache, partial
from typing import Any, NamedTuple

import orjson

from cdc_relay.errors import PoisonRow, RelayError
from cdc_relay.outbox.clock import rfc3339
from cdc_relay.outbox.datetime2 import Rfc3339
from cdc_relay.outbox.row import BinlogRow, OutboxRow

Headers = list[tuple[str, str | bytes | None]]

SLOW_NESTING = 500
"""How deeply a payload may be nested that only the standard library's parser reads; 1,023 for every other one."""

#: Kafka's rule for topic names (org.apache.kafka.common.internals.Topic): these characters, 1 to 249 of them.
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}\Z")


#: Combinations of topic and biz_type that are remembered.
_REMEMBERED = 4096

#: A named tuple made without the call of Python code that its class would cost.
_new_tuple = tuple.__new__
_join = b"".join

#: A payload shorter than this cannot be nested so deeply that it can be read by itself but not within the record.
SHORT = 2000

#: Around what differs from row to row in a record's value; between id and payload stands ``Encoder.parts``.
OPENING = b'{"outbox_id": '
CLOSING = b"}"


class Record(NamedTuple):
    """A Kafka record to be produced."""

    topic: str
    key: bytes
    value: bytes
    headers: Headers


class Encoder:
    """Makes records of rows, for one ``database.timezone``. What rows have in common is made once."""

    def __init__(self, zone: tzinfo) -> None:
        self.packed_time = Rfc3339(zone).text
        """A time as the binlog packs it, as the header says it; None for what is no date."""
        self.wall_time = partial(rfc3339, zone=zone)
        """The same of a wall time."""
        self._known: dict[tuple[str, str], tuple[bytes, tuple[str, bytes]]] = {}

    def encode(self, row: OutboxRow) -> Record:
        """The record of ``row``; raises PoisonRow where no retry could ever make one."""
        row_id, biz_type, topic, key, payload = row[:5]
        middle, biz_header = self.parts(topic, biz_type)
        check_json(payload)
        number = b"%d" % row_id
        value = _join((OPENING, number, middle, payload, CLOSING))
        if type(row) is BinlogRow:
            packed: bytes | None = row[8]  # type: ignore[assignment]
            created_at = None if packed is None else self.packed_time(packed)
        else:
            created_at = None if row.created_at is None else self.wall_time(row.created_at)
        if created_at is None:
            headers: Headers = [("outbox_id", number), biz_header]
        else:
            headers = [("outbox_id", number), biz_header, ("created_at", created_at)]
        return _new_tuple(Record, (topic, key, value, headers))

    def parts(self, topic: str, biz_type: str) -> tuple[bytes, tuple[str, bytes]]:
        """What stands between id and payload, and the header, of rows with this topic and type.

        Raises PoisonRow where no retry could ever make a record of them.
        """
        known = self._known.get((topic, biz_type))
        if known is not None:
            return known
        if not is_legal_topic(topic):
            raise PoisonRow(
                f"topic {topic!r} is no legal Kafka topic: 1 to 249 of a-z A-Z 0-9 . _ - and neither '.' nor '..'"
            )
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        biz_json = json.dumps(biz_type, ensure_ascii=False).encode("utf-8", "replace")
        header = "biz_type", biz_type.encode("utf-8", "replace")
        known = self._known[topic, biz_type] = b', "biz_type": %b, "payload": ' % biz_json, header
        return known


def encode(row: OutboxRow, zone: tzinfo) -> Record:
    """The record of one row; see Encoder, which is quicker for many."""
    return Encoder(zone).encode(row)


def check_json(payload: bytes) -> None:
    """Raise PoisonRow unless ``payload`` is one JSON value (RFC 8259) in UTF-8 that ``decode`` can read again."""
    try:
        if len(payload) < SHORT:
            orjson.loads(payload)
            return
        # Within a list, so that it is as deeply nested as in the record: the parser's limit must strike here already.
        values = orjson.loads(b"[%b]" % payload)
    except orjson.JSONDecodeError:
        values = None
    if values is None or len(values) != 1:  # more than one: "1, 2" is a list's inside, and no value
        _check_slowly(payload)


def _check_slowly(payload: bytes) -> None:
    # orjson also refuses what the grammar allows: lone \\ud800 escapes, numbers too large for it. The slower parser
    # has the last word. Its own limit on nesting varies with the caller's stack, so a firm one lies well below it.
    try:
        parsed = json.loads(payload.decode(), parse_constant=_refuse_constant)
        too_deep = _is_deeper(parsed, SLOW_NESTING)
    except RecursionError:
        too_deep = True
    except ValueError as error:
        raise PoisonRow(f"payload is not JSON: {error}") from error
    if too_deep:
        raise PoisonRow(f"payload is nested too deeply: more than {SLOW_NESTING} arrays and objects")


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(inner, dict | list) for inner in level)


@lru_cache(maxsize=1024)
def is_legal_topic(topic: str) -> bool:
    """Whether Kafka accepts ``topic`` as a name."""
    return _TOPIC.match(topic) is not None and topic not in (".", "..")


class Envelope(NamedTuple):
    """A record's value, as the consumer needs it."""

    outbox_id: int
    biz_type: str
    payload: Any
    """The payload parsed from JSON."""


class MalformedEnvelope(RelayError):
    """A Kafka record is no envelope, so no outbox row can be named for it: it goes to the dead-letter topic."""


def decode(value: bytes | None) -> Envelope:
    """The envelope in a record's value; raises MalformedEnvelope with the reason."""
    if value is None:
        raise MalformedEnvelope("the record has no value")
    try:
        try:
            parsed = orjson.loads(value)
        except orjson.JSONDecodeError:
            parsed = json.loads(value.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedEnvelope(f"the value is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise MalformedEnvelope(f"the value must be a JSON object, not {type(parsed).__name__}")
    outbox_id, biz_type = parsed.get("outbox_id"), parsed.get("biz_type")
    # bool is an int in Python; an id is positive and fits the BIGINT column.
    if not isinstance(outbox_id, int) or isinstance(outbox_id, bool) or not 0 < outbox_id < 2**63:
        raise MalformedEnvelope(f"outbox_id must be a positive integer, not {_shown(outbox_id)}")
    if not isinstance(biz_type, str) or not biz_type:
        raise MalformedEnvelope(f"biz_type must be a non-empty string, not {_shown(biz_type)}")
    if "payload" not in parsed:
        raise MalformedEnvelope("payload is missing")
    return Envelope(outbox_id, biz_type, parsed["payload"])


def _shown(value: Any) -> str:
    # Not the repr of a list or object: it recurses, and a deeply nested one would end the program.
    return type(value).__name__ if isinstance(value, dict | list) else f"{value!r:.80}"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
