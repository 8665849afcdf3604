"""One stretch of work of the active relay: from winning the lock to the stop, or to an error that needs a new start.

Threads: ``tail`` reads and publishes, ``write`` takes Kafka's answers and writes statuses and checkpoint, ``sweep``
sweeps. An error in any of them ends the session; ``service`` begins the next one from the watermark. What Kafka has
acknowledged by then is written first, so that a lost connection makes no duplicates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Event, Thread

from sqlalchemy import Connection

from cdc_relay.acknowledged import AcknowledgedFile
from cdc_relay.binlog.reconnect import ReconnectingSource
from cdc_relay.cautious import FRAME_BYTES, CautiousPublisher
from cdc_relay.checkpoint import Checkpoint, Checkpointer
from cdc_relay.config import Settings
from cdc_relay.delivery import Delivery, Publisher
from cdc_relay.errors import DatabaseContended, RelayError
from cdc_relay.fresh_rows import TailProgress
from cdc_relay.kafka.publisher import KafkaPublisher
from cdc_relay.logs import get_logger
from cdc_relay.metrics import RelayMetrics
from cdc_relay.observer import Observer
from cdc_relay.outbox.clock import DatabaseClock
from cdc_relay.outbox.parking import Ordering
from cdc_relay.outbox.statements import OutboxStatements
from cdc_relay.parked_rows import refill
from cdc_relay.parking import SharedParking
from cdc_relay.progress import Progress
from cdc_relay.questions import Questions
from cdc_relay.reconcile import PendingRows, ServerBinlog, Start
from cdc_relay.sent_rows import SentRows
from cdc_relay.sweeper import SweepCounts, Sweeper
from cdc_relay.tailer import Tailer
from cdc_relay.watermark import AckWatermark
from cdc_relay.writeback import StatusWriter

log = get_logger(__name__)

#: The first sweep of a session leaves processor and server to the tailer until that has read nothing for so long, …
_TAILER_IDLE_S = 0.1
#: … but not for longer than this.
_TAILER_FIRST_S = 5.0

#: The longest pause between sweeps, in intervals.
_LONGEST_SWEEP_PAUSE = 10

#: How long the writing thread waits for a delivery report before it looks at its other duties.
_POLL_S = 0.05

#: How often it looks whether it is time to write while rows keep coming, and whoever sends them takes the reports.
_LOOK_S = 0.02

#: While rows keep coming their statuses are gathered for so long: a transaction for each would take the processor, and
#: the server, from the rows themselves. After a pause the first is written at once.
_GATHER_S = 0.05
#: The same while the tailer is behind: to mark a row costs more than to send it, and what waits is sent first.
_GATHER_BEHIND_S = 0.5


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
    sent_rows: SentRows
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
        self._start = start
        self._sweep = sweep
        self._other_tailer = other_tailer
        self._on_swept = on_swept
        self._intake_stopped = Event()
        self._drained = Event()
        self._failure: BaseException | None = None
        self._source = open_source(self._intake_stopped) if open_source else None
        self._tailer: Tailer | None = None
        self._heard_at = time.monotonic()
        tail = parts.settings.tail
        self.watermark = AckWatermark(
            start.position, max_rows=tail.max_in_flight_rows, max_bytes=tail.max_in_flight_bytes
        )
        self._progress = Progress(
            binlog.server,
            self.watermark,
            self._source,
            parts.parking,
            parts.checkpointer,
            parts.acknowledged,
            parts.metrics,
            reconciling=start.reconcile is not None,
        )
        self._observer = Observer(
            parts.transaction,
            parts.statements,
            parts.clock,
            self.watermark,
            publisher,
            parts.metrics,
            tails=self._source is not None,
        )
        self._questions = Questions(parts.transaction, parts.statements, self._intake_stopped.wait)

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
                self._observer.look()
        except RelayError as error:
            self._failure = self._failure or error
        finally:
            self._stop(threads, drain_timeout_s if self._failure is None else 5.0)
        if self._failure is not None:
            raise self._failure

    def checkpoint(self) -> Checkpoint | None:
        """The watermark now; None while it must not be resumed from."""
        return self._progress.checkpoint()

    def tail_progress(self) -> TailProgress:
        """How the tailer of this session fares, or the other one where this relay has none."""
        if self._source is None:
            return self._other_tailer()
        stalled = self.silent_s > self._parts.settings.sweep.takeover_after_s and self.watermark.idle
        return TailProgress(self.watermark.position if self.caught_up else None, stalled)

    @property
    def caught_up(self) -> bool:
        """Whether the table was caught up from, if that was to be done."""
        return not self._progress.reconciling

    @property
    def is_tailing(self) -> bool:
        """Whether the binlog is followed."""
        return self._source is not None and self.caught_up and self._failure is None

    @property
    def silent_s(self) -> float:
        """Seconds since the tailer has last got something from the server, a heartbeat included."""
        return time.monotonic() - self._heard_at if self._source is not None else 0.0

    # --- the threads -----------------------------------------------------------------------------------------------

    def _tail(self) -> None:
        assert self._source is not None
        parts = self._parts
        tailer = self._tailer = Tailer(
            self._source,
            lambda: PendingRows(parts.transaction, parts.statements),
            self._sender,
            self.watermark,
            parts.parking,
            self._questions.committed,
            self._complete,
            head=self._questions.head,
            wait=self._wait,
            zone=parts.settings.database.zone,
            untouched=self._questions.untouched,
            acknowledged=self._start.acknowledged,
            sent_before=parts.sent_rows,
            max_unacknowledged_rows=parts.settings.tail.max_unacknowledged_rows,
        )
        if not self.caught_up:
            if not tailer.catch_up(self._parts.clock):
                return
            self._progress.reconciling = False
            log.info("caught up from the table; tailing from here", action="reconciled")
        while not self._intake_stopped.is_set():
            tailer.run_once(self._parts.clock)
            self._heard()

    def _complete(self, delivery: Delivery) -> None:
        self._progress.note_acknowledged()
        self._parts.writer.complete(delivery)

    def _wait(self, seconds: float) -> bool:
        self._heard()
        return self._intake_stopped.wait(seconds)

    def _heard(self) -> None:
        self._heard_at = time.monotonic()
        self._parts.metrics.last_progress_timestamp_seconds.set_to_current_time()

    def _write(self) -> None:
        writer = self._parts.writer
        wrote_at = 0.0
        while not self._drained.is_set():
            if time.monotonic() - self._heard_at > _GATHER_S:
                self._publisher.poll(_POLL_S if writer.idle else _LOOK_S)
            elif not self._is_write_due(wrote_at):
                self._drained.wait(_LOOK_S)
            if self._is_write_due(wrote_at) and self._questions.uncontended(self._write_statuses):
                wrote_at = time.monotonic()
            self._publisher.raise_if_fatal()
            self._progress.save(force=False)

    def _is_write_due(self, wrote_at: float) -> bool:
        since_s = time.monotonic() - wrote_at
        is_behind = self._tailer is not None and self._tailer.is_behind
        # With none there is nothing to mark while it tails, only memory to be given back.
        has_marks = self._parts.settings.writeback.mode != "none" or not self.caught_up
        if is_behind and has_marks and not self.watermark.half_full and not self._intake_stopped.is_set():
            return since_s >= _GATHER_BEHIND_S
        return since_s >= _GATHER_S or self._parts.writer.has_full_batch

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
            head=self._questions.head,
            tail_progress=self.tail_progress,
            complete=self._parts.writer.complete,
            now=self._parts.clock,
            stopping=self._intake_stopped.is_set,
            zone=settings.database.zone,
            batch_rows=settings.sweep.batch_rows,
            lease_s=settings.sweep.lease_s,
            backoff_cap_s=settings.retry.cap_s,
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
        while time.monotonic() < deadline and (not self.caught_up or self.silent_s < _TAILER_IDLE_S):
            if self._intake_stopped.wait(_TAILER_IDLE_S):
                return

    # --- beginning and end -----------------------------------------------------------------------------------------

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
        self._progress.close()
