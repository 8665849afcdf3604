"""One stretch of work of the active relay: from winning the lock to the stop, or to an error that needs a new start.

Threads: ``tail`` reads and publishes, ``write`` takes Kafka's answers and writes statuses and checkpoint, ``sweep``
sweeps. An error in any of them ends the session; ``service`` begins the next one from the watermark. What Kafka has
acknowledged by then is written first, so that a lost connection makes no duplicates.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Event, Thread
from typing import TypeVar

from sqlalchemy import Connection

from cdc_relay.acknowledged import Acknowledged, AcknowledgedFile
from cdc_relay.binlog.position import BinlogPosition
from cdc_relay.binlog.reconnect import ReconnectingSource
from cdc_relay.binlog.server import head, server_binlog
from cdc_relay.cautious import FRAME_BYTES, CautiousPublisher
from cdc_relay.checkpoint import Checkpoint, Checkpointer
from cdc_relay.config import Settings
from cdc_relay.delivery import Delivery, Publisher
from cdc_relay.errors import CheckpointError, DatabaseContended, LeadershipLost, RelayError, StaleSource
from cdc_relay.kafka.publisher import KafkaPublisher
from cdc_relay.logs import get_logger
from cdc_relay.metrics import RelayMetrics
from cdc_relay.outbox.clock import DatabaseClock
from cdc_relay.outbox.parking import Ordering
from cdc_relay.outbox.row import OutboxRow
from cdc_relay.outbox.statements import OutboxStatements
from cdc_relay.parked_rows import refill
from cdc_relay.parking import SharedParking
from cdc_relay.reconcile import PendingRows, ServerBinlog, Start, bytes_between
from cdc_relay.sweeper import SweepCounts, Sweeper, TailProgress
from cdc_relay.tailer import Tailer
from cdc_relay.watermark import AckWatermark
from cdc_relay.writeback import StatusWriter

log = get_logger(__name__)

T = TypeVar("T")

#: How often a transaction is begun anew at once when somebody else holds its rows.
_CONTENDED_TRIES = 6

#: The first sweep of a session leaves processor and server to the tailer until that has read nothing for so long, …
_TAILER_IDLE_S = 0.1
#: … but not for longer than this.
_TAILER_FIRST_S = 5.0

#: The longest pause between sweeps, in intervals.
_LONGEST_SWEEP_PAUSE = 10

#: How often the server is asked for its clock and for the head of its binlog.
_LOOK_S = 5.0

#: How often an unreachable Kafka is asked whether it is back, for readiness.
_PROBE_S = 1.0

#: How long the writing thread waits for a delivery report before it looks at its other duties.
_POLL_S = 0.05

#: While rows keep coming their statuses are gathered for so long: a transaction for each would take the processor, and
#: the server, from the rows themselves. After a pause the first is written at once.
_GATHER_S = 0.02


@dataclass(slots=True)
class Parts:
    """What outlives a session: built once by ``service``."""

    settings: Settings
    transaction: Callable[[], AbstractContextManager[Connection]]
    """A transaction of the active relay; raises LeadershipLost when it is active no longer."""
    clock: DatabaseClock
    statements: OutboxStatements
    parking: SharedParking
    writer: StatusWriter
    checkpointer: Checkpointer
    acknowledged: AcknowledgedFile
    metrics: RelayMetrics


class Session:
    """Runs until ``stop`` is set or something fails."""

    def __init__(
        self,
        parts: Parts,
        publisher: KafkaPublisher,
        binlog: ServerBinlog,
        start: Start,
        open_source: Callable[[Event], ReconnectingSource] | None,
        *,
        sweep: bool,
        other_tailer: Callable[[], TailProgress],
        on_swept: Callable[[SweepCounts], None] = lambda _: None,
    ) -> None:
        """``open_source`` is None when this relay does not tail; then ``other_tailer`` tells how another one fares.

        ``on_swept`` is told what each run of the sweep did.
        """
        self._parts = parts
        self._publisher = publisher
        self._sender: Publisher = publisher
        self._safe_bytes = math.inf
        if parts.parking.ordering is Ordering.BLOCK_ON_DEAD:
            # Batches are never larger than what any topic takes.
            self._safe_bytes = publisher.batch_bytes - FRAME_BYTES
            self._sender = CautiousPublisher(publisher, parts.parking, safe_bytes=self._safe_bytes)
        self._binlog = binlog
        self._start = start
        self._sweep = sweep
        self._other_tailer = other_tailer
        self._on_swept = on_swept
        self._intake_stopped = Event()
        self._drained = Event()
        self._failure: BaseException | None = None
        self._source = open_source(self._intake_stopped) if open_source else None
        self._reconciling = start.reconcile is not None
        self._noted = start.position
        self._progress_at = time.monotonic()
        self._probe_at = 0.0
        self._look_at = time.monotonic() + _LOOK_S
        tail = parts.settings.tail
        self.watermark = AckWatermark(
            start.position, max_rows=tail.max_in_flight_rows, max_bytes=tail.max_in_flight_bytes
        )

    def run(self, stop: Event, drain_timeout_s: float) -> None:
        """Work until ``stop``; then drain and save. Raises what ended the session otherwise."""
        if self._source is not None:
            # Before any thread works: a checkpoint that is saved meanwhile would say that nothing is held back.
            refill(self._parts.parking, self._parts.transaction, self._parts.statements, held=self._start.parked)
        threads = [self._thread("write", self._write)]
        if self._source is not None:
            threads.append(self._thread("tail", self._tail))
        if self._sweep:
            threads.append(self._thread("sweep", self._run_sweep))
        for thread in threads:
            thread.start()
        try:
            while not stop.wait(0.05) and self._failure is None:
                self._observe()
        except RelayError as error:
            self._failure = self._failure or error
        finally:
            self._stop(threads, drain_timeout_s if self._failure is None else 5.0)
        if self._failure is not None:
            raise self._failure

    def checkpoint(self) -> Checkpoint | None:
        """The watermark now; None while it must not be resumed from."""
        if self._source is None or self._reconciling:
            return None
        position = self.watermark.position
        file_created_at = self._source.file_created_at(position.file)
        if not file_created_at:
            return None  # known a moment later, when the beginning of the file has come
        return Checkpoint(
            server=self._binlog.server,
            position=position,
            file_created_at=file_created_at,
            committed_at=self.watermark.committed_at,
            written_at=time.time(),
            parked=self._parts.parking.must_be_refilled,
        )

    def tail_progress(self) -> TailProgress:
        """How the tailer of this session fares, or the other one where this relay has none."""
        if self._source is None:
            return self._other_tailer()
        silent_s = time.monotonic() - self._progress_at
        stalled = silent_s > self._parts.settings.sweep.takeover_after_s and self.watermark.idle
        return TailProgress(None if self._reconciling else self.watermark.position, stalled)

    @property
    def caught_up(self) -> bool:
        """Whether the table was caught up from, if that was to be done."""
        return not self._reconciling

    @property
    def is_tailing(self) -> bool:
        """Whether the binlog is followed."""
        return self._source is not None and not self._reconciling and self._failure is None

    @property
    def silent_s(self) -> float:
        """Seconds since the tailer has last got something from the server, a heartbeat included."""
        return time.monotonic() - self._progress_at if self._source is not None else 0.0

    # --- the threads -----------------------------------------------------------------------------------------------

    def _tail(self) -> None:
        assert self._source is not None
        parts = self._parts
        tailer = Tailer(
            self._source,
            lambda: PendingRows(parts.transaction, parts.statements),
            self._sender,
            self.watermark,
            parts.parking,
            self._look_up,
            self._complete,
            head=self._head,
            wait=self._wait,
            zone=parts.settings.database.zone,
            untouched=self._untouched,
            acknowledged=self._start.acknowledged,
            max_unacknowledged_rows=parts.settings.tail.max_unacknowledged_rows,
        )
        if self._reconciling:
            if not tailer.catch_up(self._parts.clock()):
                return
            self._reconciling = False
            log.info("caught up from the table; tailing from here", action="reconciled")
        while not self._intake_stopped.is_set():
            tailer.run_once(self._parts.clock())
            self._told_progress()

    def _complete(self, delivery: Delivery) -> None:
        self._note_acknowledged()
        self._parts.writer.complete(delivery)

    def _wait(self, seconds: float) -> bool:
        self._told_progress()
        return self._intake_stopped.wait(seconds)

    def _told_progress(self) -> None:
        self._progress_at = time.monotonic()
        self._parts.metrics.last_progress_timestamp_seconds.set_to_current_time()

    def _write(self) -> None:
        writer = self._parts.writer
        wrote_at = 0.0
        while not self._drained.is_set():
            if time.monotonic() - self._progress_at > _GATHER_S:
                self._publisher.poll(_POLL_S if writer.idle else _GATHER_S)
            elif not writer.has_full_batch:
                self._drained.wait(_GATHER_S)  # rows keep coming, and whoever sends them takes the answers
            is_due = writer.has_full_batch or time.monotonic() - wrote_at >= _GATHER_S
            if is_due and self._uncontended(self._write_statuses):
                wrote_at = time.monotonic()
            self._publisher.raise_if_fatal()
            self._save(force=False)

    def _write_statuses(self) -> int:
        # The consumer is not waited for at a stop, nor where the tailer might have to wait with it.
        at_once = self._intake_stopped.is_set() or self.watermark.half_full
        return self._parts.writer.run_once(self._parts.clock(), at_once=at_once)

    def _run_sweep(self) -> None:
        settings = self._parts.settings
        sweeper = Sweeper(
            self._parts.transaction,
            self._parts.statements,
            self._sender,
            self._parts.parking,
            self._parts.metrics,
            head=self._head,
            tail_progress=self.tail_progress,
            complete=self._parts.writer.complete,
            now=self._parts.clock,
            stopping=self._intake_stopped.is_set,
            zone=settings.database.zone,
            batch_rows=settings.sweep.batch_rows,
            lease_s=settings.sweep.lease_s,
            redeliver_published_after_s=settings.sweep.redeliver_published_after_s,
            marks_tailed=settings.writeback.mode != "none",
            safe_bytes=self._safe_bytes,
        )
        if self._source is not None:
            self._let_tailer_catch_up()
        while not self._intake_stopped.is_set():
            began = time.monotonic()
            try:
                counts = sweeper.run_once(self._parts.clock())
            except DatabaseContended as error:
                log.info(f"{error}; sweeping again soon", action="sweep_contended")
                self._intake_stopped.wait(settings.sweep.interval_s)
                continue
            self._on_swept(counts)
            if counts.sent:
                log.info("swept", action="swept", sent=counts.sent, held_back=counts.held_back)
            if not counts.more:
                # A look at a large backlog costs the server something, so it is taken less often.
                pause_s = min(9 * (time.monotonic() - began), _LONGEST_SWEEP_PAUSE * settings.sweep.interval_s)
                self._intake_stopped.wait(max(settings.sweep.interval_s, pause_s))

    def _let_tailer_catch_up(self) -> None:
        """What the tailer brings has never been tried yet; what is due can wait for a moment."""
        deadline = time.monotonic() + _TAILER_FIRST_S
        while time.monotonic() < deadline and (self._reconciling or self.silent_s < _TAILER_IDLE_S):
            if self._intake_stopped.wait(_TAILER_IDLE_S):
                return

    # --- beginning and end -----------------------------------------------------------------------------------------

    def _look_up(self, ids: Sequence[int]) -> list[OutboxRow]:
        def read() -> list[OutboxRow]:
            with self._parts.transaction() as connection:
                return self._parts.statements.read_committed(connection, ids)

        return self._uncontended(read)

    def _untouched(self, first: int, last: int) -> range | set[int]:
        with self._parts.transaction() as connection:
            return self._parts.statements.untouched(connection, first, last)

    def _uncontended(self, work: Callable[[], T]) -> T:
        """``work()``, begun anew when somebody else holds the rows; that is no reason to end a session."""
        for attempt in range(_CONTENDED_TRIES):
            try:
                return work()
            except DatabaseContended as error:
                log.debug(f"{error}; trying again", action="contended", attempt=attempt + 1)
                self._intake_stopped.wait(random.uniform(0.005, 0.02) * 2**attempt)
        return work()

    def _head(self) -> BinlogPosition:
        with self._parts.transaction() as connection:
            return head(connection)

    def _thread(self, name: str, work: Callable[[], None]) -> Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  # carried to run(), which raises it
                # A connection that is closed for the stop breaks under whoever reads from it: that is no failure.
                if not self._intake_stopped.is_set() or not isinstance(error, RelayError):
                    self._failure = self._failure or error

        return Thread(target=run, name=name, daemon=True)

    def _stop(self, threads: list[Thread], drain_timeout_s: float) -> None:
        """Two phases: stop intake, wait for what is under way; write it; save the checkpoint."""
        deadline = time.monotonic() + drain_timeout_s
        self._intake_stopped.set()
        if self._source is not None:
            self._source.close()
        writing, *taking = threads
        for thread in taking:
            thread.join(max(0.1, deadline - time.monotonic()))
        while writing.is_alive() and time.monotonic() < deadline:
            if self._publisher.in_flight == 0 and self._parts.writer.idle:
                break
            time.sleep(0.01)
        self._drained.set()
        writing.join(max(1.0, deadline - time.monotonic()))
        self._save(force=True)
        self._parts.acknowledged.close()

    def _save(self, *, force: bool) -> None:
        checkpoint = self.checkpoint()
        if checkpoint is None:
            return
        try:
            if self._parts.checkpointer.save(checkpoint, force=force):
                self._parts.acknowledged.close()  # the folder may be another one since the last time
                self._parts.metrics.checkpoint_writes.inc()
                self._parts.metrics.checkpoint_timestamp_seconds.set(checkpoint.written_at)
        except LeadershipLost:
            if not force:
                raise
            # At the end of a session that has lost the lock: the position is the next active relay's to keep.
        except CheckpointError as error:
            # The relay goes on: the table is the truth, a restart without the checkpoint only takes longer.
            log.error(f"{error}; delivery goes on", action="checkpoint_failed")

    def _note_acknowledged(self) -> None:
        position = self.watermark.acknowledged
        if position is self._noted or self._source is None or self._reconciling:
            return
        self._noted = position
        created_at = self._source.file_created_at(position.file)
        self._parts.acknowledged.note(Acknowledged(self._binlog.server, position, created_at))

    def _observe(self) -> None:
        metrics, watermark = self._parts.metrics, self.watermark
        metrics.in_flight_rows.set(watermark.in_flight_rows)
        metrics.in_flight_bytes.set(watermark.in_flight_bytes)
        metrics.binlog_file_number.set(watermark.position.file_number)
        metrics.binlog_position_bytes.set(watermark.position.offset)
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_S
            self._look_at_server()
        if self._publisher.brokers_down and time.monotonic() >= self._probe_at:
            self._publisher.probe()
            self._probe_at = time.monotonic() + _PROBE_S

    def _look_at_server(self) -> None:
        """Read the database's clock, and how far behind the head of the binlog the watermark is.

        Raises StaleSource when it is ahead: then nothing may ever come, and nobody would say so.
        """
        position = self.watermark.position
        with self._parts.transaction() as connection:
            self._parts.clock.set(self._parts.statements.database_now(connection))
            binlog = server_binlog(connection)
        if self._source is None:
            return
        if position > binlog.head:
            raise StaleSource(f"{position} lies beyond what the server has written ({binlog.head})", reason="reset")
        behind = bytes_between(position, binlog)
        seconds = self._parts.clock().timestamp() - self.watermark.committed_at if behind else 0.0
        self._parts.metrics.binlog_lag_bytes.set(behind)
        self._parts.metrics.binlog_lag_seconds.set(seconds if self.watermark.committed_at else 0.0)
