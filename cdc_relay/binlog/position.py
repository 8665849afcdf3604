"""A place in the binlog of one server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering

_NUMBERED = re.compile(r"(?P<base>.+)\.(?P<number>\d+)\Z")

#: COM_BINLOG_DUMP packs the offset in four bytes, so no later place in a file can be asked for.
LAST_RESUMABLE_OFFSET = 2**32 - 1


@total_ordering
@dataclass(frozen=True, slots=True)
class BinlogPosition:
    """The end of an event: ``offset`` bytes into ``file``. Ordered by the file's number, then by offset."""

    file: str
    offset: int

    def __post_init__(self) -> None:
        if not _NUMBERED.match(self.file):
            raise ValueError(f"{self.file!r} is no binlog file: it must end in a number, like binlog.000042")
        if self.offset < 0:
            raise ValueError(f"a binlog offset is not negative: {self.offset}")

    @property
    def file_number(self) -> int:
        """The number at the end of the file's name; it grows by one at every rotation."""
        return int(self.file.rpartition(".")[2])

    @property
    def is_resumable(self) -> bool:
        """Whether the server can be asked to send from here."""
        return self.offset <= LAST_RESUMABLE_OFFSET

    def __lt__(self, other: BinlogPosition) -> bool:
        # Numbers, not names: binlog.1000000 follows binlog.999999.
        return (self.file_number, self.offset) < (other.file_number, other.offset)

    def __str__(self) -> str:
        return f"{self.file}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> BinlogPosition:
        """The inverse of ``str``."""
        file, colon, offset = text.rpartition(":")
        if not colon or not offset.isdigit():
            raise ValueError(f"a binlog position is written file:offset, like binlog.000042:157, not {text!r}")
        return cls(file, int(offset))
