"""Structured logs on stderr, for both programs and the libraries in them.

Each record is a sentence (``event``) with keys beside it, one of them ``action``: a stable word for the machine that
searches, where the sentence is for people. By convention:

    log.warning("Kafka is away; waiting 4 s before the next attempt", action="kafka_reconnect", wait_s=4.0)

Everything goes through the standard library's ``logging`` to one handler, so that records of confluent_kafka,
mysql-replication and SQLAlchemy look the same and are masked the same.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

from cdc_relay.config import LogSettings
from cdc_relay.masking import mask

#: Longest text in a record, in characters. A row may be 64 MB, and errors quote what they stumbled over.
MAX_TEXT = 8_192

#: SQLAlchemy below WARNING prints statements with their parameters: other people's messages.
_QUIET_LIBRARIES = ("sqlalchemy",)

#: The keys that every JSON record begins with.
_FIRST = ("timestamp", "level", "event", "action", "program", "logger")


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module (``__name__``); may be made before ``configure``."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def configure(settings: LogSettings, *, program: str, stream: TextIO | None = None) -> None:
    """Send every log of this process to ``stream`` (stderr when None) as ``settings`` say.

    Calling it again replaces what it has set up before.
    """
    stream = stream or sys.stderr
    console = settings.format == "console" or (settings.format == "auto" and stream.isatty())
    both: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *both,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [_in_order, structlog.processors.JSONRenderer(ensure_ascii=False)]
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*both, _of_a_library],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _with_program(program),
                structlog.processors.StackInfoRenderer(),
                structlog.processors.format_exc_info,
                _readable,
                *last,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for name in _QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


class OncePerKind:
    """Says each kind of trouble once, however often it happens; the count belongs into a metric.

    With ``every_s`` a kind that goes on is said again at most so often, with how many times it was left out.
    """

    #: Kinds come from what others send. Beyond this many they share one, so that memory and logs stay bounded.
    MAX_KINDS = 1_000

    def __init__(
        self,
        log: structlog.stdlib.BoundLogger,
        *,
        every_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._every_s = every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._said: dict[str, tuple[float, int]] = {}
        """When a kind was said last, and how often it was left out since."""

    def warning(self, kind: str, event: str, /, **fields: Any) -> bool:
        """Log ``event`` as a warning with ``kind`` unless that was done; True when it was logged now."""
        return self._say(logging.WARNING, kind, event, fields)

    def error(self, kind: str, event: str, /, **fields: Any) -> bool:
        """Log ``event`` as an error with ``kind`` unless that was done; True when it was logged now."""
        return self._say(logging.ERROR, kind, event, fields)

    def _say(self, level: int, kind: str, event: str, fields: dict[str, Any]) -> bool:
        now = self._clock()
        with self._lock:
            if kind not in self._said and len(self._said) >= self.MAX_KINDS:
                kind = "other"
            known = self._said.get(kind)
            if known is not None:
                at, left_out = known
                if self._every_s is None or now - at < self._every_s:
                    self._said[kind] = (at, left_out + 1)
                    return False
                if left_out:
                    fields["left_out"] = left_out
            self._said[kind] = (now, 0)
        self._log.log(level, event, kind=kind, **fields)
        return True


def _of_a_library(_: Any, __: str, record: EventDict) -> EventDict:
    record.setdefault("action", "library")
    return record


def _with_program(program: str) -> Processor:
    def add(_: Any, __: str, record: EventDict) -> EventDict:
        record["program"] = program
        return record

    return add


def _readable(_: Any, __: str, record: EventDict) -> EventDict:
    """Plain values, secrets masked, and only then cut: half a URL would not be recognized."""
    readable: EventDict = _cut(mask({str(name): _plain(value) for name, value in record.items()}))
    return readable


def _in_order(_: Any, __: str, record: EventDict) -> EventDict:
    return {**{name: record[name] for name in _FIRST if name in record}, **record}


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)  # JSON has no NaN
        case bytes():
            return value.decode("utf-8", "backslashreplace")
        case Mapping():
            return {str(name): _plain(inner) for name, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(inner) for inner in value]
        case BaseException():
            return f"{type(value).__name__}: {value}"
        case _:
            return str(value)


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_TEXT:
        # The end of a traceback tells the most, the beginning of everything else.
        half = MAX_TEXT // 2
        return f"{value[:half]} … {len(value) - 2 * half} characters left out … {value[-half:]}"
    if isinstance(value, dict):
        return {name: _cut(inner) for name, inner in value.items()}
    return [_cut(inner) for inner in value] if isinstance(value, list) else value
