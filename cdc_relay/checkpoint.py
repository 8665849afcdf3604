"""The position from which a restart resumes, in a file.

The steps of a save, each of which leaves either the old or the new checkpoint whole: write a temporary file beside it,
fsync it, rename it over the old one, fsync the folder. What cannot be read back with its checksum right is treated as
if there were none: the table is the truth, and the start reconciles from it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.errors import CheckpointError

_VERSION = 1

_TYPES: dict[str, type | tuple[type, ...]] = {
    "server": str,
    "position": str,
    "file_created_at": int,
    "committed_at": (int, float),
    "written_at": (int, float),
    "parked": bool,
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved position: before it, every row has left the watermark."""

    server: str
    """Identity of the server (server_uuid); the position means nothing on another."""
    position: BinlogPosition
    file_created_at: int
    """When the position's binlog file was begun, seconds since 1970: tells two files of one name apart."""
    committed_at: float
    """When the last transaction before the position committed, seconds since 1970 by the server's clock."""
    written_at: float
    """When this was written, seconds since 1970 by the relay's clock."""
    parked: bool = False
    """Whether keys were held back behind failed rows at that time."""


class CheckpointStore(Protocol):
    """Keeps one checkpoint."""

    def load(self) -> Checkpoint | None:
        """The last one saved; None when there is none. Raises CheckpointError when it cannot be trusted."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep it, durably, in place of the last. Raises CheckpointError when that is not possible."""

    def reset(self) -> bool:
        """Forget it; whether there was one."""


class FileCheckpointStore:
    """A checkpoint in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> Checkpoint | None:
        """See CheckpointStore."""
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"the checkpoint {self.path} cannot be read: {error.strerror}") from error
        return _decode(raw, self.path)

    def save(self, checkpoint: Checkpoint) -> None:
        """See CheckpointStore."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(_encode(checkpoint))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            try:
                temporary.unlink(missing_ok=True)
            except OSError:
                pass  # the same fault; the first one is told
            raise CheckpointError(
                f"the checkpoint {self.path} cannot be written: {error.strerror}",
                hint="make its folder writable and give it room, or set checkpoint.path",
            ) from error

    def reset(self) -> bool:
        """See CheckpointStore."""
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise CheckpointError(f"the checkpoint {self.path} cannot be removed: {error.strerror}") from error
        return True


class Checkpointer:
    """Saves the watermark every ``interval_s`` and when forced; one thread at a time uses it."""

    def __init__(self, store: CheckpointStore, interval_s: float, guard: Callable[[], None]) -> None:
        """``guard`` is called before every save and raises when this relay is the active one no longer."""
        self._store = store
        self._interval_s = interval_s
        self._guard = guard
        self._due_at = 0.0
        self.last: Checkpoint | None = None
        """The last one that was to be saved, whether the store could take it or not."""

    def save(self, checkpoint: Checkpoint, *, force: bool) -> bool:
        """Save when ``force`` or when the last save is an interval ago; whether it was done.

        Moved or not: the file's age shows that the relay lives. Raises CheckpointError, and what ``guard`` raises.
        """
        # Not due, unless the clock was set back: then the file would grow old for as long.
        if not force and self._due_at - self._interval_s <= checkpoint.written_at < self._due_at:
            return False
        # The next try is an interval away also when this one fails.
        self._due_at = checkpoint.written_at + self._interval_s
        self._guard()
        self.last = checkpoint
        self._store.save(checkpoint)
        return True


def _encode(checkpoint: Checkpoint) -> bytes:
    content = asdict(checkpoint) | {"version": _VERSION, "position": str(checkpoint.position)}
    return orjson.dumps(
        content | {"checksum": _checksum(content)}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    )


def _decode(raw: bytes, path: Path) -> Checkpoint:
    try:
        content = orjson.loads(raw)
        if not isinstance(content, dict) or content.pop("checksum", None) != _checksum(content):
            raise ValueError("its checksum does not fit")
        if content.pop("version") != _VERSION:
            raise ValueError("it was written by another version")
        for name, kind in _TYPES.items():
            if not isinstance(content[name], kind):
                raise ValueError(f"{name} is {content[name]!r}")
        return Checkpoint(**content | {"position": BinlogPosition.parse(content["position"])})
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint {path} cannot be trusted: {error}") from error


def _checksum(content: dict[str, Any]) -> str:
    return f"{zlib.crc32(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)):08x}"
