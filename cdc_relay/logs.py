"""Structured logs on stderr, for both programs and the libraries in them.

Each record is a sentence (``event``) with keys beside it, one of them ``action``: a stable word for the machine that
searches, where the sentence is for people. By convention:

    log.warning("Kafka is away; waiting 4 s before the next attempt", action="kafka_reconnect", wait_s=4.0)

Everything goes through the standard library's ``logging`` to one handler, so that records of confluent_kafka,
mysql-replication and SQLAlchemy look the same and are masked the same. Nothing else is imported: a relay that starts
has to say so before it does anything, and what it waits for by then its first row waits for too.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from cdc_relay.config import LogSettings
from cdc_relay.masking import mask

#: Longest text in a record, in characters. A row may be 64 MB, and errors quote what they stumbled over.
MAX_TEXT = 8_192

#: SQLAlchemy below WARNING prints statements with their parameters: other people's messages.
_QUIET_LIBRARIES = ("sqlalchemy",)

#: Terminal colours, those of the levels being grey, cyan, yellow and red.
_GREY = "90"
_COLOURS = {"debug": _GREY, "info": "36", "warning": "33", "error": "31", "critical": "31"}

#: Width of the sentence on a console, so that most keys stand below one another.
_EVENT_WIDTH = 60


class Log:
    """The logger of a module; may be made before ``configure``. Fields are any keys that are no parameters here."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, /, **fields: Any) -> None:
        """For whoever debugs."""
        self.log(logging.DEBUG, event, **fields)

    def info(self, event: str, /, **fields: Any) -> None:
        """What an operator wants to read afterwards."""
        self.log(logging.INFO, event, **fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        """Trouble that the program deals with; the sentence says what happens next."""
        self.log(logging.WARNING, event, **fields)

    def error(self, event: str, /, **fields: Any) -> None:
        """Trouble that somebody must look at."""
        self.log(logging.ERROR, event, **fields)

    def exception(self, event: str, /, **fields: Any) -> None:
        """An error with the traceback of the exception that is being handled."""
        self.log(logging.ERROR, event, exc_info=True, **fields)

    def log(self, level: int, event: str, /, *, exc_info: bool | BaseException | None = None, **fields: Any) -> None:
        """``level`` is one of ``logging``'s; ``exc_info`` as there: True for the exception that is being handled."""
        self._logger.log(level, event, exc_info=exc_info, extra={"fields": fields})


def get_logger(name: str) -> Log:
    """The logger of a module (``__name__``)."""
    return Log(name)


def configure(settings: LogSettings, *, program: str, stream: TextIO | None = None) -> None:
    """Send every log of this process to ``stream`` (stderr when None) as ``settings`` say.

    Calling it again replaces what it has set up before.
    """
    stream = stream or sys.stderr
    console = settings.format == "console" or (settings.format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Console(program, coloured=stream.isatty()) if console else _Json(program))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for name in _QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


class _Json(logging.Formatter):
    """One line of JSON a record; the keys that every record has come first."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self._told(record), ensure_ascii=False)

    def _told(self, record: logging.LogRecord) -> dict[str, Any]:
        fields: dict[str, Any] = dict(getattr(record, "fields", {"action": "library"}))
        at = datetime.fromtimestamp(record.created, UTC)
        told = {
            "timestamp": at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "action": fields.pop("action", None),
            "program": self._program,
            "logger": record.name,
            **fields,
        }
        if told["action"] is None:
            del told["action"]
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            told["stack"] = record.stack_info
        # Plain values, secrets masked, and only then cut: half a URL would not be recognized.
        readable: dict[str, Any] = _cut(mask({str(name): _plain(value) for name, value in told.items()}))
        return readable


class _Console(_Json):
    """A line for people, with the traceback below where there is one."""

    def __init__(self, program: str, *, coloured: bool) -> None:
        super().__init__(program)
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        told = self._told(record)
        level = told.pop("level")
        when, event = told.pop("timestamp"), told.pop("event")
        below = [told.pop(name) for name in ("exception", "stack") if name in told]
        keys = " ".join(f"{name}={value}" for name, value in told.items() if name != "program")
        line = (
            f"{when} {self._in(_COLOURS.get(level, '0'), f'{level:7}')} {event:{_EVENT_WIDTH}} {self._in('90', keys)}"
        )
        return "\n".join([line, *below])

    def _in(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._coloured else text


class OncePerKind:
    """Says each kind of trouble once, however often it happens; the count belongs into a metric.

    With ``every_s`` a kind that goes on is said again at most so often, with how many times it was left out.
    """

    #: Kinds come from what others send. Beyond this many they share one, so that memory and logs stay bounded.
    MAX_KINDS = 1_000

    def __init__(
        self,
        log: Log,
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
