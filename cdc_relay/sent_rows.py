"""Which rows of the table Kafka has though their status does not say so yet, remembered over the death of the process.

The twin of ``acknowledged.py`` for what is sent from the table, where there is no position to be kept: so the rows
themselves are noted, by id and by a checksum of what they hold, which makes it certain that a row is the one that was
sent. Marking them costs the server more than sending, so at a kill tens of thousands may be unmarked. Never fsynced:
when the machine dies the file may be old, torn or gone, and rows are sent twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from struct import Struct
from threading import Lock

from zlib_ng.zlib_ng import crc32

from cdc_relay.logs import get_logger
from cdc_relay.outbox.row import OutboxRow

log = get_logger(__name__)

_MOST = 100_000

#: A row: its id, its checksum. One that was torn has the wrong checksum.
_ENTRY = Struct("<QI")


class SentRows:
    """Notes the latest ``most`` rows. Nothing is ever raised: without it there are only more duplicates."""

    def __init__(self, path: Path, most: int) -> None:
        self.path = path
        self._most = most
        self._lock = Lock()
        self._file: int | None = None
        self._next = 0
        self._before: dict[int, int] = {}
        self._failed = False

    @classmethod
    def beside(cls, checkpoint: Path, most: int = _MOST) -> SentRows:
        """The one that belongs to a checkpoint."""
        return cls(checkpoint.with_name(f"{checkpoint.name}.sent"), most)

    def begin(self) -> None:
        """Learn what was noted before; go on behind it."""
        with self._lock:
            try:
                content = self.path.read_bytes()
            except OSError:
                content = b""
            whole = content[: len(content) // _ENTRY.size * _ENTRY.size]
            self._before = dict(_ENTRY.iter_unpack(whole))
            self._next = len(whole) // _ENTRY.size % self._most

    def has(self, row: OutboxRow) -> bool:
        """Whether the row was noted before ``begin``, as it is now."""
        checksum = self._before.get(row.id)
        return checksum is not None and checksum == _checksum(row)

    def noting(self, rows: Sequence[OutboxRow]) -> Callable[[], None]:
        """A call that notes that Kafka has these rows; any thread may make it. It does not keep them in memory."""
        return partial(self._note, b"".join([_ENTRY.pack(row.id, _checksum(row)) for row in rows]))

    def _note(self, entries: bytes) -> None:
        try:
            with self._lock:
                if self._file is None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
                os.pwrite(self._file, entries, self._next * _ENTRY.size)
                self._next += len(entries) // _ENTRY.size
                if self._next >= self._most:
                    self._next = 0
        except OSError as error:
            if not self._failed:
                log.warning(
                    f"{self.path} cannot be written, so a kill makes more duplicates: {error}", action="sent_unwritten"
                )
            self._failed = True

    def reset(self) -> None:
        """Every row is marked: forget all of them."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None
            self._before = {}
            self._next = 0
            with suppress(OSError):
                self.path.unlink()


def _checksum(row: OutboxRow) -> int:
    # With the time of the hour: ids may begin anew (TRUNCATE), and messages may be alike.
    at = row.created_at
    seed = 0 if at is None else at.minute << 26 | at.second << 20 | at.microsecond
    return crc32(row.payload, crc32(row.message_key, crc32(row.topic.encode(), seed)))
