"""How far Kafka has acknowledged, remembered over the death of the process.

The checkpoint is saved durably and once in a while, and only what is written to the table counts for it. So at a kill
it lies far behind what Kafka has, and without more knowledge all of that would be sent again. This file is written at
every step forward and never fsynced: what a process has written the kernel keeps when only the process dies. When the
machine dies the file may be old, torn or gone; then rows are sent twice, which is all that it is there to save.
"""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.logs import get_logger

log = get_logger(__name__)

#: Written as a whole each time, so that no old end is left behind a shorter text.
_BYTES = 512


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Every row that the binlog brought before ``position`` was acknowledged by Kafka, or has left by another durable
    exit. Its status may be unwritten."""

    server: str
    """Identity of the server."""
    position: BinlogPosition
    file_created_at: int
    """When the position's binlog file was begun, seconds since 1970."""


class AcknowledgedFile:
    """Keeps one ``Acknowledged``. Nothing is ever raised: without it there are only more duplicates."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._file: int | None = None
        self._failed = False

    @classmethod
    def beside(cls, checkpoint: Path) -> AcknowledgedFile:
        """The one that belongs to a checkpoint."""
        return cls(checkpoint.with_name(f"{checkpoint.name}.acknowledged"))

    def load(self) -> Acknowledged | None:
        """The last one noted; None when there is none, or none that can be trusted."""
        try:
            checksum, _, text = self.path.read_bytes().decode("ascii").rstrip().partition(" ")
            if checksum != _checksum(text):
                return None
            server, position, file_created_at = text.split(" ")
            return Acknowledged(server, BinlogPosition.parse(position), int(file_created_at))
        except (OSError, ValueError):
            return None

    def note(self, acknowledged: Acknowledged) -> None:
        """Keep it in place of the last. Threads may do so at once: the older one may win, and costs duplicates."""
        text = f"{acknowledged.server} {acknowledged.position} {acknowledged.file_created_at}"
        try:
            with self._lock:
                if self._file is None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
                os.pwrite(self._file, f"{_checksum(text)} {text}".encode("ascii").ljust(_BYTES)[:_BYTES], 0)
        except (OSError, ValueError) as error:
            if not self._failed:
                log.warning(
                    f"{self.path} cannot be written, so a kill makes more duplicates: {error}",
                    action="acknowledged_unwritten",
                )
            self._failed = True

    def reset(self) -> None:
        """Forget it."""
        with suppress(OSError):
            self.path.unlink()

    def close(self) -> None:
        """Close the file; the next note opens it again, or makes it anew where somebody has removed it."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode('ascii')):08x}"
