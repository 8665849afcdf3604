"""A source that makes a new reader when the connection breaks, at the end of the last whole transaction."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import Protocol

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential
from tenacity.nap import sleep_using_event
from tenacity.stop import stop_when_event_set

from cdc_relay.binlog.batches import TransactionBatch
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.errors import DamagedBinlog, DatabaseUnavailable, StaleSource
from cdc_relay.logs import get_logger

log = get_logger(__name__)

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0

#: Readers that find the binlog damaged behind the same place before it is taken for damaged in its file.
_DAMAGED_READS = 3

#: How many files' times of creation are remembered; the watermark is never so many files behind the reader.
_REMEMBERED_FILES = 1_000


class Reader(Protocol):
    """One connection's worth of reading (``binlog.source.BinlogSource``)."""

    @property
    def files_created(self) -> dict[str, int]: ...

    def read(self) -> list[TransactionBatch]: ...

    @property
    def has_more(self) -> bool: ...

    def close(self) -> None: ...


OpenReader = Callable[[BinlogPosition, int], Reader]
"""Connects and asks for the binlog from a position; the number is when its file was begun, 0 if unknown."""


class ReconnectingSource:
    """Implements ``sources.TransactionSource``.

    Only failures in a row count for the backoff: a reader that has brought something was no failure.
    """

    def __init__(
        self,
        open_reader: OpenReader,
        start: BinlogPosition,
        *,
        file_created_at: int,
        stopping: Event,
        on_reconnect: Callable[[], None],
    ) -> None:
        """``stopping`` ends the waiting between attempts; the last error is raised then."""
        self._open_reader = open_reader
        self._resume_at = start
        self._files_created = {start.file: file_created_at}
        self._on_reconnect = on_reconnect
        self._stopping = stopping
        self._reader: Reader | None = None
        self._damaged_behind = start
        self._damaged_reads = 0
        self._retrying = Retrying(
            retry=retry_if_exception_type(DatabaseUnavailable),
            wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
            stop=stop_when_event_set(stopping),
            sleep=sleep_using_event(stopping),
            before_sleep=self._tell,
            reraise=True,
        )

    def read(self) -> list[TransactionBatch]:
        """See TransactionSource. Waits for the server to come back; raises StaleSource and errors that stay."""
        try:
            batches = self._read()
        except DatabaseUnavailable as lost:
            batches = self._read_again(lost)
        for batch in batches:
            if batch.end is not None:
                self._resume_at = batch.end
        return batches

    @property
    def has_more(self) -> bool:
        """See TransactionSource."""
        return self._reader is not None and self._reader.has_more

    def file_created_at(self, file: str) -> int:
        """When a binlog file was begun, in seconds since 1970; 0 if it was not seen."""
        return self._files_created.get(file, 0)

    def close(self) -> None:
        """Give the connection up; wakes a ``read`` of another thread."""
        reader = self._reader
        if reader is not None:
            reader.close()

    def _read_again(self, lost: DatabaseUnavailable) -> list[TransactionBatch]:
        """Read until it works, ``lost`` being the first failure.

        Only here, since to have every read repeated costs as much as to decode a row, while the row waits.
        """
        failures = iter([lost])

        def attempt() -> list[TransactionBatch]:
            for failure in failures:
                raise failure
            return self._read()

        return self._retrying(attempt)

    def _read(self) -> list[TransactionBatch]:
        if self._reader is None:
            at = self._resume_at
            self._reader = self._open_reader(at, self._files_created.get(at.file, 0))
        reader = self._reader
        try:
            batches = reader.read()
        except BaseException as error:
            # Whatever it was: a reader in the middle of a transaction must not be read on.
            self._reader = None
            reader.close()
            if isinstance(error, DamagedBinlog):
                self._count_damage(error)
            raise
        self._remember(reader.files_created)
        return batches

    def _count_damage(self, error: DamagedBinlog) -> None:
        """Raise StaleSource when reading has come no further by being repeated: the table has the rows as well."""
        if self._damaged_behind != self._resume_at:
            self._damaged_behind, self._damaged_reads = self._resume_at, 0
        self._damaged_reads += 1
        if self._damaged_reads >= _DAMAGED_READS:
            raise StaleSource(f"behind {self._resume_at} {error}", reason="damaged") from error

    def _remember(self, files_created: dict[str, int]) -> None:
        self._files_created.update(files_created)
        while len(self._files_created) > _REMEMBERED_FILES:
            del self._files_created[next(iter(self._files_created))]

    def _tell(self, state: RetryCallState) -> None:
        self._on_reconnect()
        error = state.outcome.exception() if state.outcome else None
        log.warning(
            f"the binlog connection is lost; reading goes on from {self._resume_at} in {state.upcoming_sleep:.1f} s",
            action="binlog_reconnect",
            error=str(error),
            attempt=state.attempt_number,
        )
